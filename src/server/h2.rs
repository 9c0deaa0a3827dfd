//! HTTP/2 for one client, on the `h2` crate.
//!
//! One task drives the connection and one, small, each of its streams. A stream's task holds the
//! way to the answer's head in a box of its own, which goes when the head is there; from then on
//! it is [`stream::frames`](crate::stream::frames) and the control by which it is cut. A client's reset is
//! looked for at every step: it drops whatever the stream was busy with.
//!
//! Invariant: what happens to a stream, a panic included, happens to that stream only. The number
//! of streams is bounded by `server.h2_max_streams`, what each holds by `stream.backlog` and one read
//! of its source (answers) and by `limits::CLIENT_STREAM_WINDOW` (request bodies), and what h2 holds
//! of all answers by `limits::CLIENT_FRAMES_QUEUED` pieces.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderValue, Method, Request, Response};

use crate::clock::http_date;
use crate::gateway::Gateway;
use crate::gateway::handle::handle;
use crate::limits;
use crate::server::io::ClientIo;
use crate::server::worker::Floor;
use crate::stream::body::ClientBody;
use crate::stream::control::{Control, IoState};
use crate::stream::frames::{Frames, Over};
use crate::telemetry::cells::Reason as Ended;
use crate::upstream::upload::RequestBody;
use crate::wire::head;
use crate::wire::wheel::{Tick, Timer};

/// What a connection and the tasks of its streams share.
struct Streams {
    gateway: Rc<Gateway>,
    peer: IpAddr,
    io: Rc<IoState>,
    live: Cell<usize>,
    /// Wakes the connection when its last stream ends.
    connection: RefCell<Option<Waker>>,
}

/// Serves `io` until it is closed.
pub async fn serve(io: ClientIo, floor: Rc<Floor>) {
    let gateway = floor.gateway.clone();
    let Some(peer) = io.peer() else { return };
    let streams = Rc::new(Streams {
        gateway: gateway.clone(),
        peer,
        io: io.state(),
        live: Cell::new(0),
        connection: RefCell::default(),
    });
    let Some(connection) = shake(io, &floor).await else { return };
    drop(floor);
    let timer = gateway.ground.wheel.timer();
    let idle_since = gateway.ground.wheel.now();
    let mut watch = Watch { connection, streams, timer, idle_since, closing_since: None };
    std::future::poll_fn(|cx| watch.step(cx)).await;
}

/// The handshake; `None` if the client did not bring it to its end in time.
async fn shake(io: ClientIo, floor: &Floor) -> Option<Box<Connection<ClientIo, Bytes>>> {
    let handshake = Builder::new()
        .max_concurrent_streams(floor.gateway.plan().terms.config.server.h2_max_streams)
        .initial_window_size(limits::CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(limits::CLIENT_CONNECTION_WINDOW)
        .max_header_list_size(limits::CLIENT_HEAD_BYTES as u32)
        .max_send_buffer_size(limits::SCRATCH)
        .max_concurrent_reset_streams(limits::CLIENT_RESETS_KEPT)
        .max_pending_accept_reset_streams(limits::CLIENT_RESETS_UNSEEN)
        .data_frame_budget(limits::CLIENT_FRAMES_BUDGET)
        .handshake(io);
    let wheel = &floor.gateway.ground.wheel;
    match wheel.timeout(limits::CLIENT_FIRST_BYTE, Box::pin(handshake)).await {
        Ok(Ok(connection)) => Some(Box::new(connection)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a client's HTTP/2 handshake failed");
            None
        }
        Err(_) => None,
    }
}

struct Watch {
    connection: Box<Connection<ClientIo, Bytes>>,
    streams: Rc<Streams>,
    timer: Timer,
    idle_since: Tick,
    /// When GOAWAY was sent.
    closing_since: Option<Tick>,
}

impl Watch {
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let gateway = self.streams.gateway.clone();
        let now = gateway.ground.wheel.now();
        let live = self.streams.live.get() > 0;
        if live {
            self.idle_since = now;
        }
        let expired = !live && now >= self.idle_since.after(limits::CLIENT_IDLE);
        if (gateway.ground.draining.get() || expired) && self.closing_since.is_none() {
            self.closing_since = Some(now);
            self.connection.graceful_shutdown();
        }
        while let Poll::Ready(accepted) = self.connection.poll_accept(cx) {
            match accepted {
                Some(Ok((request, respond))) => StreamTask::start(&self.streams, request, respond),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a client's HTTP/2 connection ended");
                    return Poll::Ready(());
                }
                None => return Poll::Ready(()),
            }
        }
        if self.streams.io.unpark() {
            cx.waker().wake_by_ref();
        }
        let live = self.streams.live.get() > 0;
        let mut due = match self.closing_since {
            // GOAWAY was sent; a client without streams that does not close is not waited for.
            Some(_) if live => now.after(limits::CLIENT_IDLE),
            Some(since) => since.max(self.idle_since).after(limits::CLOSE_WAIT),
            None => self.idle_since.after(limits::CLIENT_IDLE),
        };
        if self.closing_since.is_some() && now >= due {
            return Poll::Ready(());
        }
        if let Some(since) = self.streams.io.blocked_since() {
            let stalled = since.after(gateway.plan().patience.client_stall);
            if now >= stalled {
                return Poll::Ready(());
            }
            due = due.min(stalled);
        }
        let mut connection = self.streams.connection.borrow_mut();
        if !connection.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *connection = Some(cx.waker().clone());
        }
        self.timer.set(due.max(Tick(now.0 + 1)), cx.waker());
        Poll::Pending
    }
}

/// One stream.
struct StreamTask {
    phase: Phase,
    control: Rc<Control>,
    streams: Rc<Streams>,
}

enum Phase {
    /// The answer's head is not there yet.
    Head {
        handling: Pin<Box<dyn Future<Output = Response<ClientBody>>>>,
        respond: SendResponse<Bytes>,
        /// The request is a HEAD.
        bodiless: bool,
        /// The place in the line of those who wait for the connection.
        place: u64,
    },
    /// The head went out.
    Body(Frames),
}

impl StreamTask {
    fn start(streams: &Rc<Streams>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let gateway = &streams.gateway;
        let patience = gateway.plan().patience;
        let control = Control::new(streams.io.clone(), &gateway.ground, patience);
        let bodiless = request.method() == Method::HEAD;
        let (head, body) = request.into_parts();
        let body = RequestBody::h2(body, &head.headers);
        let request = Request::from_parts(head, body);
        let handling = Box::pin(handle(gateway.clone(), control.clone(), streams.peer, request));
        let phase = Phase::Head { handling, respond, bodiless, place: 0 };
        streams.live.set(streams.live.get() + 1);
        tokio::task::spawn_local(StreamTask { phase, control, streams: streams.clone() });
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        if let Phase::Head { handling, respond, bodiless, place } = &mut self.phase {
            if respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Over::Gone);
            }
            let io = &self.streams.io;
            if io.busy() && io.blocked_since().is_none() {
                io.park(place, cx.waker());
                return Poll::Pending;
            }
            let response = ready!(handling.as_mut().poll(cx));
            io.queued();
            match answer(respond, response, *bodiless) {
                Some(frames) => self.phase = Phase::Body(frames),
                None => return Poll::Ready(Over::Sent),
            }
        }
        let Phase::Body(frames) = &mut self.phase else { return Poll::Pending };
        frames.poll(cx, &self.control)
    }
}

/// Sends the head of `response`; its body is left to be sent, if it has one.
fn answer(
    respond: &mut SendResponse<Bytes>,
    response: Response<ClientBody>,
    bodiless: bool,
) -> Option<Frames> {
    let (mut parts, body) = response.into_parts();
    // RFC 9113, 8.2.2: there are no headers about the connection in HTTP/2.
    head::strip_hop_by_hop(&mut parts.headers);
    head::detach(&mut parts.headers);
    parts.headers.entry(DATE).or_insert_with(http_date);
    if let ClientBody::Full(bytes) = &body {
        let length = bytes.as_ref().map_or(0, Bytes::len);
        parts.headers.entry(CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    let bodiless = bodiless || head::is_bodiless(parts.status);
    let ends = bodiless || matches!(body, ClientBody::Full(None));
    let send = match respond.send_response(Response::from_parts(parts, ()), ends) {
        Ok(send) => send,
        Err(error) => {
            tracing::debug!(%error, "an answer's head could not be sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
            return None;
        }
    };
    match body {
        _ if ends => None,
        ClientBody::Full(bytes) => bytes.map(|bytes| Frames::of_bytes(send, bytes)),
        ClientBody::Stream(body) => Some(Frames::of_stream(send, body.into_stream())),
    }
}

impl Future for StreamTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let me = self.get_mut();
        match me.step(cx) {
            Poll::Ready(Over::Sent) => Poll::Ready(()),
            Poll::Ready(Over::Gone) => {
                // If the client was given up because it stalled, the control notes that.
                let _ = me.control.poll_cut(cx);
                Poll::Ready(())
            }
            Poll::Pending => {
                ready!(me.control.poll_cut(cx));
                let reason = match me.control.ended() {
                    // RFC 9113, 7: the peer may be generating excessive load.
                    Some(Ended::Limit) => Reason::ENHANCE_YOUR_CALM,
                    _ => Reason::CANCEL,
                };
                match &mut me.phase {
                    Phase::Head { respond, .. } => respond.send_reset(reason),
                    Phase::Body(frames) => frames.reset(reason),
                }
                Poll::Ready(())
            }
        }
    }
}

impl Drop for StreamTask {
    fn drop(&mut self) {
        self.streams.live.set(self.streams.live.get() - 1);
        if let Some(connection) = self.streams.connection.borrow_mut().take() {
            connection.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every open stream is one of these, beside its [`Stream`](crate::stream::core::Stream). tokio puts
    /// some hundred bytes around it and rounds up to whole 128s.
    #[test]
    fn a_streams_task_is_small() {
        let bytes = size_of::<StreamTask>();
        assert!(bytes <= 144, "{bytes} bytes");
    }
}
