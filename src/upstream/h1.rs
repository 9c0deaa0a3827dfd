//! HTTP/1.1 upstream connections: one exchange at a time, reused after a clean one.
//!
//! An exchange belongs to its request's own task: whoever polls for the head, and later for the
//! body, sends what is left of the request and reads what has come. There is no task, channel or
//! buffer per connection; an idle one is its socket alone.
//!
//! Invariants: a lease that is dropped before [`SoloLease::finish`] closes its connection with RST,
//! so that a cancelled request does not go on generating upstream. A connection is reused only if
//! the request was wholly sent, the response wholly read and nothing came after it. Cost while a
//! response streams: the size of [`Body`], and no byte of the body between two polls.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::response::Parts;
use tokio::io::{AsyncRead, ReadBuf};

use crate::error::{Failure, Kind};
use crate::limits;
use crate::telemetry::cells::ConnState;
use crate::upstream::download::Data;
use crate::upstream::h1_send::{SendError, Sending};
use crate::upstream::pool::Pool;
use crate::upstream::send::Unanswered;
use crate::upstream::transport::Transport;
use crate::wire::chunked::{ChunkError, Decoder};
use crate::wire::response::{self, Framing, ResponseHead};

#[cfg(test)]
mod tests;

/// The use of an HTTP/1.1 connection; dropping it closes the connection with RST.
pub(crate) struct SoloLease {
    pool: Rc<Pool>,
    /// `None` once it was given back.
    transport: Option<Transport>,
}

impl SoloLease {
    pub(super) fn new(pool: &Rc<Pool>, transport: Transport) -> SoloLease {
        pool.cells().connections(ConnState::Active).add(1);
        pool.cells().leases.add(1);
        pool.used.set(pool.used.get() + 1);
        pool.endpoint.began();
        SoloLease { pool: pool.clone(), transport: Some(transport) }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    fn transport(&mut self) -> &mut Transport {
        self.transport.as_mut().expect("held until it is given back, which takes the lease")
    }

    /// The exchange is over and both bodies were wholly sent and read: reuse the connection.
    fn finish(mut self) {
        let Some(transport) = self.transport.take() else { return };
        let pool = self.pool.clone();
        drop(self);
        pool.give_back(transport);
    }

    /// The exchange is over, and the connection with it: close it with FIN.
    fn close(mut self) {
        self.transport = None;
    }
}

impl Drop for SoloLease {
    fn drop(&mut self) {
        self.pool.cells().connections(ConnState::Active).sub(1);
        self.pool.cells().leases.sub(1);
        self.pool.used.set(self.pool.used.get() - 1);
        self.pool.endpoint.ended();
        if let Some(transport) = self.transport.take() {
            transport.abort();
        }
    }
}

/// Sends a request and waits for the response's head, while the request's body may still be going
/// out: some answers come early. `bodiless`: it is a HEAD request.
///
/// # Errors
/// See [`Unanswered`]. A request is untouched only if the socket took no byte of it.
pub(super) async fn exchange(
    mut lease: SoloLease,
    sending: Sending,
    bodiless: bool,
) -> Result<(Parts, Body), Unanswered> {
    lease.transport().begin();
    let mut exchange =
        Exchange { lease: Some(lease), sending: Some(Box::new(sending)), broken: false };
    let mut held = Vec::new();
    let (head, ahead) =
        std::future::poll_fn(|cx| exchange.poll_head(cx, &mut held, bodiless)).await?;
    let ResponseHead { parts, framing, keep_alive } = head;
    let rest = match framing {
        Framing::Length(length) => Rest::Length(length),
        Framing::Chunked => Rest::Chunked(Decoder::new()),
        Framing::Close => Rest::Close,
    };
    let ahead = (!ahead.is_empty()).then(|| Box::new(ahead));
    let mut body = Body { exchange, ahead, rest, keep_alive };
    if let Rest::Length(0) = body.rest {
        body.complete(body.ahead.is_some());
    }
    Ok((parts, body))
}

/// A connection in use, and what of the request it still has to take.
struct Exchange {
    /// `None` once the response is over.
    lease: Option<SoloLease>,
    /// `None` once the request was sent, or could not be.
    sending: Option<Box<Sending>>,
    /// The connection took no more of the request; what it still says is heard.
    broken: bool,
}

impl Exchange {
    /// Goes on sending the request. Only a fault of the client's is an error: if the connection
    /// breaks, what the server has said until then still counts.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Unanswered> {
        let (Some(lease), Some(sending)) = (&mut self.lease, &mut self.sending) else {
            return Ok(());
        };
        match sending.poll(cx, lease.transport()) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.sending = None,
            Poll::Ready(Err(SendError::Connection(error))) => {
                self.broken = true;
                let sending = self.sending.take().map(|sending| *sending);
                let untouched = sending.and_then(|s| s.into_untouched(lease.transport()));
                if let Some(upload) = untouched {
                    return Err(Unanswered::Untouched(Box::new(upload), gone(&error)));
                }
            }
            Poll::Ready(Err(SendError::Client)) => {
                let failure = sending.client_failure();
                let failure = failure.unwrap_or_else(|| {
                    Failure::new(Kind::BadRequest, "the request body broke off")
                });
                self.lease = None;
                return Err(Unanswered::Failed(failure));
            }
        }
        Ok(())
    }

    /// The response's head and what came behind it; `held` is what came of the head so far.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        held: &mut Vec<u8>,
        bodiless: bool,
    ) -> Poll<Result<(ResponseHead, Bytes), Unanswered>> {
        self.send(cx)?;
        loop {
            let mut space = [const { MaybeUninit::uninit() }; limits::RESPONSE_HEAD_READ];
            let mut read = ReadBuf::uninit(&mut space);
            let lease = self.lease.as_mut().expect("held until the response is over");
            let polled = Pin::new(lease.transport()).poll_read(cx, &mut read);
            ready!(polled).map_err(|error| Unanswered::Failed(gone(&error)))?;
            let new = read.filled();
            if new.is_empty() {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Poll::Ready(Err(Unanswered::Failed(gone(&error))));
            }
            // A head that comes byte by byte is not looked at anew with each.
            let look = held.is_empty() || new.contains(&b'\n');
            if !held.is_empty() {
                held.extend_from_slice(new);
            }
            let bytes = if held.is_empty() { new } else { held.as_slice() };
            let look = look || bytes.len() > limits::RESPONSE_HEAD_BYTES;
            let parsed = if look { response::parse(bytes, bodiless) } else { Ok(None) };
            match parsed {
                Ok(Some((head, len))) => {
                    return Poll::Ready(Ok((head, Bytes::copy_from_slice(&bytes[len..]))));
                }
                Ok(None) if held.is_empty() => held.extend_from_slice(new),
                Ok(None) => {}
                Err(error) => {
                    let text = format!("the upstream's response is no valid HTTP: {error}");
                    let failure = Failure::new(Kind::UpstreamProtocol, text);
                    return Poll::Ready(Err(Unanswered::Failed(failure)));
                }
            }
        }
    }
}

fn gone(error: &io::Error) -> Failure {
    let text = format!("the upstream broke the connection before its response: {error}");
    Failure::new(Kind::UpstreamGone, text)
}

/// A response's body as it comes.
pub(crate) struct Body {
    exchange: Exchange,
    /// What came with the head; boxed, since it is gone after the first look.
    ahead: Option<Box<Bytes>>,
    rest: Rest,
    keep_alive: bool,
}

/// What is still to come of a body.
enum Rest {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Decoder),
    /// Everything until the connection ends.
    Close,
    /// The chunks are malformed here; what came before was given out.
    Malformed(ChunkError),
    /// Nothing: all of it was read, or there was a failure.
    Over,
}

impl Body {
    /// The next bytes, read into `scratch` and unframed there; `None` at the clean end.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Option<Result<Data, Failure>>> {
        loop {
            match &self.rest {
                Rest::Over => return Poll::Ready(None),
                Rest::Malformed(error) => {
                    let text = format!("the upstream's response body is badly framed: {error}");
                    return self.fail(Failure::new(Kind::UpstreamProtocol, text));
                }
                _ => {}
            }
            if let Err(Unanswered::Failed(failure) | Unanswered::Untouched(_, failure)) =
                self.exchange.send(cx)
            {
                return self.fail(failure);
            }
            let read = match ready!(self.poll_read(cx, scratch)) {
                Ok(0) if matches!(self.rest, Rest::Close) => {
                    self.complete(false);
                    return Poll::Ready(None);
                }
                Ok(0) => {
                    let text = "the upstream closed the connection in mid-stream";
                    return self.fail(Failure::new(Kind::Truncated, text));
                }
                Ok(read) => read,
                Err(error) => {
                    let text = format!("the upstream broke off in mid-stream: {error}");
                    return self.fail(Failure::new(Kind::Truncated, text));
                }
            };
            let data = self.unframe(&mut scratch[..read]);
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Data::Here(data))));
            }
        }
    }

    /// Whether all of it was read.
    pub(super) fn over(&self) -> bool {
        matches!(self.rest, Rest::Over)
    }

    fn fail(&mut self, failure: Failure) -> Poll<Option<Result<Data, Failure>>> {
        self.exchange.lease = None;
        self.rest = Rest::Over;
        Poll::Ready(Some(Err(failure)))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(ahead) = &mut self.ahead {
            let first = ahead.split_to(ahead.len().min(scratch.len()));
            scratch[..first.len()].copy_from_slice(&first);
            if ahead.is_empty() {
                self.ahead = None;
            }
            return Poll::Ready(Ok(first.len()));
        }
        let Some(lease) = &mut self.exchange.lease else { return Poll::Ready(Ok(0)) };
        let mut read = ReadBuf::new(scratch);
        ready!(Pin::new(lease.transport()).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Which of `bytes`, just read, are the body's; chunks are moved together.
    fn unframe(&mut self, bytes: &mut [u8]) -> Range<usize> {
        match &mut self.rest {
            Rest::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= here as u64;
                if *left == 0 {
                    self.complete(here < bytes.len() || self.ahead.is_some());
                }
                0..here
            }
            Rest::Chunked(decoder) => {
                let (data, used) = join_chunks(decoder, bytes);
                match used {
                    Err(error) => self.rest = Rest::Malformed(error),
                    Ok(used) if decoder.is_done() => {
                        self.complete(used < bytes.len() || self.ahead.is_some());
                    }
                    Ok(_) => {}
                }
                data
            }
            Rest::Close => 0..bytes.len(),
            Rest::Malformed(_) | Rest::Over => 0..0,
        }
    }

    /// The response is over; `more` bytes came after it.
    fn complete(&mut self, more: bool) {
        self.rest = Rest::Over;
        let exchange = &mut self.exchange;
        let sent = exchange.sending.take().is_none() && !exchange.broken;
        let Some(lease) = exchange.lease.take() else { return };
        if !sent {
            // It overtook its request's body, which nobody wants any more.
            drop(lease);
        } else if self.keep_alive && !more {
            lease.finish();
        } else {
            lease.close();
        }
    }
}

/// Moves the payload of the chunks in `bytes` together; returns where it is then, and how many of
/// `bytes` were used or what is wrong with the first that was not.
fn join_chunks(
    decoder: &mut Decoder,
    bytes: &mut [u8],
) -> (Range<usize>, Result<usize, ChunkError>) {
    let (mut data, mut at) = (0..0, 0);
    while at < bytes.len() && !decoder.is_done() {
        let step = match decoder.feed(&bytes[at..]) {
            Ok(step) => step,
            Err(error) => return (data, Err(error)),
        };
        let payload = at + step.data.start..at + step.data.end;
        if data.is_empty() {
            data = payload;
        } else {
            let len = payload.len();
            bytes.copy_within(payload, data.end);
            data.end += len;
        }
        at += step.consumed;
    }
    (data, Ok(at))
}
