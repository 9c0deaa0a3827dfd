//! The request body on its way from the client to the upstream.
//!
//! Its beginning is read before the upstream is contacted ([`Upload::prefetch`]), so that broken
//! framing costs the upstream nothing and the usual small JSON body goes out with its length; the
//! rest streams through. Every byte passes the JSON key scanner.
//!
//! Invariant: never more than `limits::BODY_PREFETCH` and one more frame is held. A client that
//! sends nothing for `limits::CLIENT_BODY_IDLE` fails the body.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use http::header::{self, HeaderMap};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::error::{Failure, Kind};
use crate::limits;
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
}

/// What the gateway learns of a body while the connection to the upstream owns it.
#[derive(Default)]
pub struct UploadState {
    fault: Cell<Option<Kind>>,
    done: Cell<bool>,
    moved: Cell<Tick>,
    received: Cell<bool>,
    bytes: Cell<u64>,
    /// `None` once nobody will ask any more what it found.
    scanner: RefCell<Option<Box<Scanner>>>,
}

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The client broke its connection or the rules of framing.
    #[error("the request body broke off or is badly framed")]
    Broken,
    /// The client stopped sending.
    #[error("no byte of the request body came for {} s", limits::CLIENT_BODY_IDLE.as_secs())]
    Slow,
}

impl UploadState {
    /// The failure on the client's side, if it was that.
    pub fn failure(&self) -> Option<Failure> {
        self.fault.get().map(|kind| {
            let error =
                if kind == Kind::BodySlow { UploadError::Slow } else { UploadError::Broken };
            Failure::new(kind, error.to_string())
        })
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

    /// Whether the whole body has come in from the client.
    pub fn received(&self) -> bool {
        self.received.get()
    }

    /// Body bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
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
    /// Reads the beginning of `body`: until its end or `most` bytes.
    ///
    /// # Errors
    /// `BadRequest` for broken framing or a body that broke off, `BodySlow` (408).
    pub async fn prefetch(
        body: RequestBody,
        most: usize,
        wheel: &Wheel,
    ) -> Result<Upload, Failure> {
        let left = body.length();
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
        };
        let mut held = 0;
        while held < most && upload.rest.is_some() {
            match std::future::poll_fn(|cx| upload.poll_rest(cx)).await {
                Some(Ok(bytes)) => {
                    held += bytes.len();
                    upload.ahead.push_back(bytes);
                }
                Some(Err(error)) => {
                    let kind = upload.state.fault.get().unwrap_or(Kind::BadRequest);
                    return Err(Failure::new(kind, error.to_string()));
                }
                None => {}
            }
        }
        if upload.rest.is_none() {
            upload.state.received.set(true);
            upload.left = Some(held as u64);
        }
        // Nobody polls an empty body, and without this its connection would never be reused.
        upload.state.done.set(upload.is_end_stream());
        upload.state.moved.set(wheel.now());
        upload.timer.clear();
        Ok(upload)
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
        match rest.poll_data(cx) {
            Poll::Ready(Some(Ok(bytes))) => {
                self.state.bytes.set(self.state.bytes.get() + bytes.len() as u64);
                if let Some(scanner) = self.state.scanner.borrow_mut().as_mut() {
                    scanner.feed(&bytes);
                }
                self.timer.clear();
                Poll::Ready(Some(Ok(bytes)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.state.fault.set(Some(Kind::BadRequest));
                self.rest = None;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.rest = None;
                self.state.received.set(true);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let now = self.wheel.now();
                if self.timer.due().is_some_and(|due| due <= now) {
                    self.state.fault.set(Some(Kind::BodySlow));
                    self.rest = None;
                    return Poll::Ready(Some(Err(UploadError::Slow)));
                }
                let due = self.timer.due().unwrap_or(now.after(limits::CLIENT_BODY_IDLE));
                self.timer.set(due, cx.waker());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
impl Upload {
    /// A body that has come in whole.
    pub(crate) fn made_of(pieces: &[&str], wheel: &Wheel) -> Upload {
        let ahead: VecDeque<_> =
            pieces.iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes())).collect();
        let left = ahead.iter().map(|piece| piece.len() as u64).sum();
        let (wheel, timer) = (wheel.clone(), wheel.timer());
        Upload { ahead, rest: None, left: Some(left), state: Rc::default(), wheel, timer }
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
            None => self.poll_rest(cx),
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
