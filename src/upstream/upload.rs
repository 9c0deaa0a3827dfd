//! The request body on its way from the client to the upstream.
//!
//! Its beginning is read before the upstream is contacted ([`Upload::prefetch`]), so that broken
//! framing costs the upstream nothing and the usual small JSON body goes out with its length; the
//! rest streams through. Every byte passes the JSON key scanner.
//!
//! Invariants: never more than was asked for ahead, and later one frame, is held, and what is held is
//! charged to the memory budget. A body that is too large or whose client is too slow ([`pace`])
//! fails, and what an upstream has seen of it until then breaks off.

mod ahead;
mod pace;
mod splice;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::header::{self, HeaderMap};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::admission::budget::{Budget, Charge};
use crate::error::{Failure, Kind, Limit};
use crate::limits;
use crate::upstream::upload::ahead::Ahead;
use crate::upstream::upload::pace::Pace;
use crate::wire::scan::{Found, Scanner};
use crate::wire::wheel::{Tick, Timer, Wheel};

/// A request body as the client's connection gives it. Trailers are not passed on (RFC 9110, 6.5.1
/// lets a proxy drop them).
pub enum RequestBody {
    /// Of an HTTP/1.1 client.
    H1(Incoming),
    /// Of an HTTP/2 client.
    H2 {
        /// The stream's receiving side. What is taken from it opens the client's window again.
        stream: RecvStream,
        /// The declared length, bytes; h2 resets a stream that does not keep to it.
        length: Option<u64>,
    },
}

impl RequestBody {
    /// The body of an HTTP/2 request with these headers.
    pub fn h2(stream: RecvStream, headers: &HeaderMap) -> RequestBody {
        let declared =
            headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let length = if stream.is_end_stream() { Some(0) } else { declared };
        RequestBody::H2 { stream, length }
    }

    /// Its length in bytes, when known before it has come.
    fn length(&self) -> Option<u64> {
        match self {
            RequestBody::H1(incoming) => incoming.size_hint().exact(),
            RequestBody::H2 { length, .. } => *length,
        }
    }

    /// The same, of an HTTP/1.1 client: its buffer waits with it for the answer, so that a piece of it
    /// may be kept. One of an HTTP/2 connection would keep what other streams have sent.
    fn is_over_on_http1(&self) -> bool {
        matches!(self, RequestBody::H1(_)) && self.is_over()
    }

    /// Whether the last byte has been taken, as far as is known without asking.
    fn is_over(&self) -> bool {
        match self {
            RequestBody::H1(incoming) => incoming.is_end_stream(),
            RequestBody::H2 { stream, .. } => stream.is_end_stream(),
        }
    }

    /// The next bytes; `None` at the end. Whatever breaks a body off is an error, also a client's
    /// cancel: no upstream may take a part for the whole.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UploadError>>> {
        match self {
            RequestBody::H1(incoming) => loop {
                return match std::task::ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        let Ok(bytes) = frame.into_data() else { continue };
                        Poll::Ready(Some(Ok(bytes)))
                    }
                    Some(Err(_)) => Poll::Ready(Some(Err(UploadError::Broken))),
                    None => Poll::Ready(None),
                };
            },
            RequestBody::H2 { stream, .. } => {
                let data = std::task::ready!(stream.poll_data(cx));
                Poll::Ready(data.map(|data| match data {
                    Ok(bytes) => {
                        // Fails only for more than was received.
                        let _ = stream.flow_control().release_capacity(bytes.len());
                        Ok(bytes)
                    }
                    Err(_) => Err(UploadError::Broken),
                }))
            }
        }
    }
}

/// What is asked of a request's body.
#[derive(Clone, Copy, Debug)]
pub struct BodyRules {
    /// How much of it is read before anything is decided, bytes.
    pub prefetch: usize,
    /// `limits.body`, bytes.
    pub max: u64,
    /// `limits.body_time`.
    pub time: Duration,
    /// `limits.body_rate`, bytes per second; 0 = any.
    pub rate: u64,
}

/// A request body: what was read ahead, and the rest as it comes.
pub struct Upload {
    ahead: VecDeque<Bytes>,
    /// `None` once the client's body has ended.
    rest: Option<RequestBody>,
    /// Bytes still to come, when known.
    left: Option<u64>,
    state: Rc<UploadState>,
    wheel: Wheel,
    timer: Timer,
    pace: Pace,
    /// `limits.body`, bytes.
    max: u64,
    /// For what lies ahead, or was given out last, and for what is kept of a body that streams.
    charge: Charge,
}

/// What the gateway learns of a body while the connection to the upstream owns it.
#[derive(Default)]
pub struct UploadState {
    fault: Cell<Option<UploadError>>,
    done: Cell<bool>,
    moved: Cell<Tick>,
    received: Cell<bool>,
    bytes: Cell<u64>,
    /// How many more go out.
    added: Cell<i64>,
    /// `None` once nobody will ask any more what it found.
    scanner: RefCell<Option<Box<Scanner>>>,
}

/// Why a body could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// The client broke its connection or the rules of framing.
    #[error("the request body broke off or is badly framed")]
    Broken,
    /// It is, or says that it will be, larger than `limits.body`.
    #[error("the request body is larger than limits.body = {max} bytes; send less, or raise it")]
    TooLarge {
        /// The limit, bytes.
        max: u64,
    },
    /// The client stopped sending.
    #[error("no byte of the request body came for {} s", limits::CLIENT_BODY_IDLE.as_secs())]
    Idle,
    /// The client took longer than `limits.body_time`.
    #[error("the request body took longer than limits.body_time = {time:?}")]
    Late {
        /// The limit.
        time: Duration,
    },
    /// The client was slower than `limits.body_rate`.
    #[error("the request body came slower than limits.body_rate = {rate} bytes/s on average")]
    Slow {
        /// The limit, bytes per second.
        rate: u64,
    },
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Failure {
        let kind = match error {
            UploadError::Broken => Kind::BadRequest,
            UploadError::TooLarge { .. } => Kind::BodyTooLarge,
            UploadError::Idle | UploadError::Late { .. } | UploadError::Slow { .. } => {
                Kind::BodySlow
            }
        };
        Failure::new(kind, error.to_string())
    }
}

impl UploadState {
    /// The failure on the client's side, if it was that.
    pub fn failure(&self) -> Option<Failure> {
        self.fault.get().map(Failure::from)
    }

    /// Whether the whole body went on to the upstream's connection.
    pub fn done(&self) -> bool {
        self.done.get()
    }

    /// When the body last made progress towards the upstream, or was ready to go out: what an
    /// upstream's answer is waited for from.
    pub fn moved(&self) -> Tick {
        self.moved.get()
    }

    /// The upstream is asked at `when`, not before.
    pub fn asked_at(&self, when: Tick) {
        self.moved.set(when);
    }

    /// It goes out once more, at `now`.
    pub fn restarted(&self, now: Tick) {
        self.moved.set(now);
        // Nobody polls an empty body.
        self.done.set(self.bytes.get() == 0);
    }

    /// Whether the whole body has come in from the client.
    pub fn received(&self) -> bool {
        self.received.get()
    }

    /// Body bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Body bytes for the upstream so far.
    pub fn sent(&self) -> u64 {
        self.bytes.get().saturating_add_signed(self.added.get())
    }

    /// Looks at what the key scanner has found so far; at nothing after
    /// [`forget`](UploadState::forget).
    pub fn found<T: Default>(&self, look: impl FnOnce(&Found) -> T) -> T {
        self.scanner.borrow().as_ref().map(|scanner| look(scanner.found())).unwrap_or_default()
    }

    /// Lets go of what was found: a stream would hold it to its end.
    pub fn forget(&self) {
        self.scanner.take();
    }
}

impl Upload {
    /// Reads the beginning of `body`: until its end or `rules.prefetch` bytes, charged to `budget`.
    /// When that is used up it stops early, having read `limits::BODY_PREFETCH`.
    ///
    /// # Errors
    /// `BadRequest` for broken framing or a body that broke off, `BodyTooLarge` (413), `BodySlow`
    /// (408), `Limited` (503) if the budget has no room.
    pub async fn prefetch(
        body: RequestBody,
        rules: &BodyRules,
        wheel: &Wheel,
        budget: &Arc<Budget>,
    ) -> Result<Upload, Failure> {
        let left = body.length();
        if left.is_some_and(|left| left > rules.max) {
            return Err(UploadError::TooLarge { max: rules.max }.into());
        }
        let mut upload = Upload {
            ahead: VecDeque::new(),
            rest: (!body.is_over()).then_some(body),
            left,
            state: Rc::new(UploadState {
                scanner: RefCell::new(Some(Box::default())),
                ..UploadState::default()
            }),
            wheel: wheel.clone(),
            timer: wheel.timer(),
            pace: Pace::new(rules.time, rules.rate),
            max: rules.max,
            charge: Charge::none(budget),
        };
        let mut ahead = Ahead::default();
        while ahead.len() < rules.prefetch && upload.rest.is_some() {
            let Some(came) = std::future::poll_fn(|cx| upload.poll_rest(cx)).await else { break };
            let bytes = came?;
            let whole = upload.rest.as_ref().is_none_or(RequestBody::is_over_on_http1);
            let collected = ahead.len();
            if ahead.collect(bytes, whole, rules.prefetch, &mut upload.charge) {
                continue;
            }
            if collected < limits::BODY_PREFETCH {
                return Err(no_room(budget));
            }
            break;
        }
        if upload.rest.is_none() {
            upload.state.received.set(true);
            upload.left = Some(ahead.len() as u64);
        }
        upload.ahead.extend(ahead.into_bytes());
        if upload.rest.as_ref().is_some_and(|rest| !rest.is_over())
            && !upload.charge.try_grow(limits::BODY_STREAMING)
        {
            return Err(no_room(budget));
        }
        // Nobody polls an empty body, and without this its connection would never be reused.
        upload.state.done.set(upload.is_end_stream());
        upload.state.moved.set(wheel.now());
        upload.timer.clear();
        Ok(upload)
    }

    /// No body at all.
    pub fn empty(wheel: &Wheel) -> Upload {
        let state = UploadState::default();
        state.received.set(true);
        state.done.set(true);
        Upload {
            ahead: VecDeque::new(),
            rest: None,
            left: Some(0),
            state: Rc::new(state),
            wheel: wheel.clone(),
            timer: wheel.timer(),
            pace: Pace::new(Duration::MAX, 0),
            max: 0,
            charge: Charge::none(&Budget::new(0)),
        }
    }

    /// The same body once more, if it has come in whole. The two share their bytes, and the charge for
    /// them goes to the copy: it is kept until an answer has come, when this one has been sent, but for
    /// the rest of one that was answered early.
    pub(super) fn again(&mut self) -> Option<Upload> {
        if self.rest.is_some() || !self.state.received() {
            return None;
        }
        let charge = self.charge.take();
        Some(Upload {
            ahead: self.ahead.clone(),
            rest: None,
            left: self.left,
            state: self.state.clone(),
            wheel: self.wheel.clone(),
            timer: self.wheel.timer(),
            pace: self.pace,
            max: self.max,
            charge,
        })
    }

    /// What others may know of it while it is being sent.
    pub fn state(&self) -> Rc<UploadState> {
        self.state.clone()
    }

    /// Takes back what was given last and went nowhere.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.left = self.left.map(|left| left + bytes.len() as u64);
            self.ahead.push_front(bytes);
        }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UploadError>>> {
        let Some(rest) = self.rest.as_mut() else { return Poll::Ready(None) };
        let now = self.wheel.now();
        match rest.poll_data(cx) {
            Poll::Ready(Some(Ok(bytes))) => {
                self.pace.came(now);
                self.timer.clear();
                let received = self.state.bytes.get() + bytes.len() as u64;
                self.state.bytes.set(received);
                if received > self.max {
                    return self.fail(UploadError::TooLarge { max: self.max });
                }
                if let Some(scanner) = self.state.scanner.borrow_mut().as_mut() {
                    scanner.feed(&bytes);
                }
                Poll::Ready(Some(Ok(bytes)))
            }
            Poll::Ready(Some(Err(error))) => self.fail(error),
            Poll::Ready(None) => {
                self.rest = None;
                self.state.received.set(true);
                Poll::Ready(None)
            }
            Poll::Pending => match self.pace.waits(now, self.state.bytes.get()) {
                Ok(due) => {
                    self.timer.set(due, cx.waker());
                    Poll::Pending
                }
                Err(error) => self.fail(error),
            },
        }
    }

    fn fail(&mut self, error: UploadError) -> Poll<Option<Result<Bytes, UploadError>>> {
        self.state.fault.set(Some(error));
        self.rest = None;
        Poll::Ready(Some(Err(error)))
    }
}

fn no_room(budget: &Budget) -> Failure {
    let text = format!(
        "limits.memory = {} bytes has no room for this request's body; try later",
        budget.max()
    );
    Failure::limited(Limit::Memory, limits::MEMORY_WAIT, text)
}

#[cfg(test)]
impl Upload {
    /// A body that has come in whole.
    pub(crate) fn made_of(pieces: &[&str], wheel: &Wheel) -> Upload {
        let ahead: VecDeque<_> =
            pieces.iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes())).collect();
        let left = ahead.iter().map(|piece| piece.len() as u64).sum();
        let (wheel, timer) = (wheel.clone(), wheel.timer());
        let charge = Charge::none(&Budget::new(usize::MAX));
        let (left, pace) = (Some(left), Pace::new(Duration::MAX, 0));
        let (rest, state, max) = (None, Rc::default(), u64::MAX);
        Upload { ahead, rest, left, state, wheel, timer, pace, max, charge }
    }

    /// What was not given out yet.
    pub(crate) fn pieces(&self) -> Vec<&[u8]> {
        self.ahead.iter().map(|piece| &**piece).collect()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let polled = match self.ahead.pop_front() {
            Some(bytes) => Poll::Ready(Some(Ok(bytes))),
            None => {
                // What was given before has gone on.
                let streams = if self.rest.is_some() { limits::BODY_STREAMING } else { 0 };
                if self.charge.bytes() > streams {
                    self.charge.set(streams);
                }
                self.poll_rest(cx)
            }
        };
        if let Poll::Ready(Some(Ok(bytes))) = &polled {
            self.state.moved.set(self.wheel.now());
            self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
        }
        if matches!(polled, Poll::Ready(None)) || self.is_end_stream() {
            self.state.done.set(true);
        }
        polled.map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.rest.as_ref().is_none_or(RequestBody::is_over)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}
