//! Taking an HTTP/1.1 connection out of hyper's hands while its response streams, and giving it back.
//!
//! hyper parses the request. If the answer is an event stream, the service does not give it to
//! hyper: it parks it as an [`Offer`] and never returns. Whoever drives hyper then takes the socket
//! back and lets a [`Relay`] write the response, in a task of its own that holds nothing else.
//!
//! Invariant: hyper owes the client nothing when the socket is taken. hyper flushes its socket only
//! when its buffer is empty, so a flush after the offer was parked shows that whatever it had to say
//! (an earlier response's tail, a 100) is out; and the request's body has wholly come in.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Response, Version};

use crate::clock;
use crate::server::connection::Seat;
use crate::server::h1;
use crate::server::io::ClientIo;
use crate::server::worker::Floor;
use crate::stream::body::{ClientBody, StreamBody};
use crate::stream::control::{Cut, IoState};
use crate::stream::relay::{Relay, Verdict};
use crate::telemetry::cells::Path;
use crate::wire::head;

/// A response that waits for its connection to be taken from hyper.
pub struct Offer {
    head: Response<()>,
    body: StreamBody,
    keep_alive: bool,
    /// The socket's flushes when it was parked.
    flushes: u32,
}

/// Where a connection's service parks its offer.
pub type Slot = RefCell<Option<Offer>>;

/// What of a request decides about the hand-off, noted before it is consumed.
#[derive(Clone, Copy)]
pub struct Asked {
    version: Version,
    keep_alive: bool,
}

impl Asked {
    /// Notes it.
    pub fn of(version: Version, headers: &HeaderMap) -> Asked {
        Asked { version, keep_alive: head::keeps_alive(headers) }
    }
}

/// Parks `response` if it is one to be relayed; else it is hyper's.
///
/// # Errors
/// The response, for hyper.
pub fn park(
    slot: &Slot,
    asked: Asked,
    io: &IoState,
    response: Response<ClientBody>,
) -> Result<(), Box<Response<ClientBody>>> {
    let (head, body) = response.into_parts();
    let mut body = match body {
        ClientBody::Stream(body) if body.is_events() => body,
        other => return Err(Box::new(Response::from_parts(head, other))),
    };
    let path = if asked.version != Version::HTTP_11 {
        Path::Http10
    } else if !body.life().received_whole_request() {
        Path::Upload
    } else {
        Path::Relay
    };
    body.life().takes(path);
    if path != Path::Relay {
        return Err(Box::new(Response::from_parts(head, ClientBody::Stream(body))));
    }
    let keep_alive = asked.keep_alive && head::keeps_alive(&head.headers);
    let head = Response::from_parts(head, ());
    *slot.borrow_mut() = Some(Offer { head, body, keep_alive, flushes: io.flushes() });
    Ok(())
}

/// The offer that waits in `slot`, once hyper owes the client nothing.
pub fn take(slot: &Slot, io: &IoState) -> Option<Offer> {
    slot.borrow_mut().take_if(|offer| io.flushes() != offer.flushes)
}

/// Starts the relay of `offer` on `io`; hyper had read `read` behind the request.
pub fn start(offer: Offer, mut io: ClientIo, read: Bytes, seat: Seat, floor: Rc<Floor>) {
    let Offer { head, body, keep_alive, .. } = offer;
    let keep_alive = keep_alive && !floor.gateway.ground.draining.get();
    let (mut parts, ()) = head.into_parts();
    parts.headers.remove(header::CONNECTION);
    if !parts.headers.contains_key(header::DATE) {
        parts.headers.insert(header::DATE, clock::http_date());
    }
    let head = head::chunked_head(parts.status, &parts.headers, keep_alive);
    drop(parts);
    io.rest(&read);
    let relay = Relay::new(io, head, keep_alive, *body.into_stream(), &read);
    tokio::task::spawn_local(Streaming { relay: Some(relay), seat: Some((seat, floor)) });
}

/// The task of a response that streams.
struct Streaming {
    /// `None` once it is over.
    relay: Option<Relay<ClientIo>>,
    seat: Option<(Seat, Rc<Floor>)>,
}

impl Future for Streaming {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(relay) = self.relay.as_mut() else { return Poll::Ready(()) };
        let verdict = ready!(relay.poll(cx));
        let (relay, seat) = (self.relay.take(), self.seat.take());
        if let (Some(relay), Some((seat, floor))) = (relay, seat) {
            over(verdict, relay, seat, floor);
        }
        Poll::Ready(())
    }
}

/// What becomes of a connection whose response is over.
fn over(verdict: Verdict, relay: Relay<ClientIo>, seat: Seat, floor: Rc<Floor>) {
    let (io, read) = relay.into_parts();
    let draining = floor.gateway.ground.draining.get();
    match verdict {
        Verdict::Gone => {}
        Verdict::Cut(Cut::Reset) => io.reset(),
        // In tasks of their own, so that the one that streams stays small.
        Verdict::Complete { keep_alive: true } if !draining => {
            tokio::task::spawn_local(h1::serve(io.resume(read), seat, floor));
        }
        Verdict::Complete { .. } | Verdict::Cut(Cut::Close) => {
            tokio::task::spawn_local(async move {
                io.close().await;
                drop(seat);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every streaming HTTP/1.1 client costs beside its sockets' registrations.
    #[test]
    fn a_streaming_task_is_small() {
        let bytes = size_of::<Streaming>();
        // tokio adds some 100 and rounds up to a multiple of 128: with eight bytes more it is 640.
        assert!(bytes <= 408, "{bytes} bytes");
    }
}
