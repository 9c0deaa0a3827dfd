//! One exchange on an HTTP/2 connection, in its request's own task.
//!
//! Whoever polls for the head, and later for the body, also sends what is left of the request's
//! body. Received bytes are acknowledged only once the next are asked for, so that a lagging client
//! closes its stream's window. Dropping an exchange resets its stream with CANCEL.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http_body::Body as _;

use crate::error::{Failure, Kind};
use crate::limits;
use crate::upstream::download::Data;
use crate::upstream::h2::{Lingers, SharedLease};
use crate::upstream::send::Unanswered;
use crate::upstream::upload::Upload;

/// Sends a request and waits for the response's head, while the request's body may still be going
/// out.
///
/// # Errors
/// See [`Unanswered`]. A request is untouched if the connection was over before it began.
pub(super) async fn exchange(
    lease: SharedLease,
    request: Request<()>,
    upload: Upload,
) -> Result<(Parts, Body), Unanswered> {
    let mut sender = lease.shared().sender();
    if let Err(error) = std::future::poll_fn(|cx| sender.poll_ready(cx)).await {
        return Err(Unanswered::Untouched(Box::new(upload), unanswered(&error)));
    }
    let ended = upload.is_end_stream();
    let sent = sender.send_request(request, ended);
    let (mut response, stream) = sent.map_err(|error| Unanswered::Failed(unanswered(&error)))?;
    drop(sender);
    let piece = Bytes::new();
    let sending = (!ended).then(|| Box::new(Sending { stream, upload, piece, sent: false }));
    let mut exchange = Exchange { sending };
    let (parts, received) =
        std::future::poll_fn(|cx| exchange.poll_head(cx, &mut response)).await?.into_parts();
    exchange.sending.take_if(|sending| sending.sent);
    // h2 holds the body to it.
    let length =
        parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = Body { received, exchange, lease: Some(lease), left: length, held: 0 };
    if body.received.is_end_stream() {
        body.complete();
    }
    Ok((parts, body))
}

/// What of a request is still to be sent.
struct Exchange {
    /// `None` once the request was sent and answered, or is not wanted any more: until the answer
    /// h2 may hold its last part, and the upload the memory that is charged for that.
    sending: Option<Box<Sending>>,
}

impl Exchange {
    /// Goes on sending the request's body. Only a fault of the client's is an error: what is wrong
    /// with the stream or its connection, the response will tell.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        match sending.poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(sent) => sent,
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut ResponseFuture,
    ) -> Poll<Result<http::Response<RecvStream>, Unanswered>> {
        self.send(cx).map_err(Unanswered::Failed)?;
        let answered = Pin::new(response).poll(cx);
        answered.map_err(|error| Unanswered::Failed(unanswered(&error)))
    }
}

/// A request's body on its way out.
struct Sending {
    stream: SendStream<Bytes>,
    upload: Upload,
    /// What the client has sent and the upstream's window has not let pass yet.
    piece: Bytes,
    /// Nothing more will be.
    sent: bool,
}

impl Sending {
    /// Sends what the client has sent and the window lets pass; ready once all of it was sent, or
    /// the stream takes no more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if !self.sent {
            ready!(self.poll_send(cx))?;
            self.sent = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if self.piece.is_empty() {
                match ready!(Pin::new(&mut self.upload).poll_frame(cx)) {
                    Some(Ok(frame)) => self.piece = frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => {
                        self.stream.send_reset(Reason::CANCEL);
                        let failure = self.upload.state().failure();
                        let told = || Failure::new(Kind::BadRequest, error.to_string());
                        return Poll::Ready(Err(failure.unwrap_or_else(told)));
                    }
                    None => {
                        // A stream that is closed already has answered.
                        let _ = self.stream.send_data(Bytes::new(), true);
                        return Poll::Ready(Ok(()));
                    }
                }
                continue;
            }
            self.stream.reserve_capacity(self.piece.len());
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(room)) => {
                    let piece = self.piece.split_to(room.min(self.piece.len()));
                    let last = self.piece.is_empty() && self.upload.is_end_stream();
                    if !piece.is_empty() && self.stream.send_data(piece, last).is_err() || last {
                        return Poll::Ready(Ok(()));
                    }
                }
                Some(Err(_)) | None => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// A response's body as it comes.
pub(crate) struct Body {
    received: RecvStream,
    exchange: Exchange,
    /// `None` once the response is over.
    lease: Option<SharedLease>,
    /// Bytes still to come, when known.
    left: Option<u64>,
    /// Bytes given out last, which the upstream is not told yet.
    held: usize,
}

impl Body {
    /// The next bytes; `None` at the clean end.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Data, Failure>>> {
        loop {
            if self.held > 0 {
                // It fails only for more than was received.
                let _ = self.received.flow_control().release_capacity(self.held);
                self.held = 0;
            }
            if let Err(failure) = self.exchange.send(cx) {
                self.complete();
                return Poll::Ready(Some(Err(failure)));
            }
            self.exchange.sending.take_if(|sending| sending.sent);
            match ready!(self.received.poll_data(cx)) {
                None => {
                    self.complete();
                    return Poll::Ready(None);
                }
                Some(Ok(bytes)) => {
                    self.held = bytes.len();
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    if self.received.is_end_stream() {
                        self.complete();
                    }
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(Ok(Data::Owned(bytes))));
                    }
                }
                Some(Err(error)) => {
                    self.complete();
                    return Poll::Ready(Some(Err(broken(&error))));
                }
            }
        }
    }

    /// Whether the last byte was read; the frame that ends the stream may still be on its way.
    pub(super) fn over(&self) -> bool {
        self.lease.is_none() || self.left == Some(0)
    }

    /// It stays out for a while though its stream is over, on purpose; `None` if it is ended.
    pub(super) fn linger(&self) -> Option<Lingers> {
        self.lease.as_ref().map(SharedLease::linger)
    }

    /// Whether the stream's end was seen.
    pub(super) fn ended(&self) -> bool {
        self.lease.is_none()
    }

    /// Nothing more will come; what of the request is still unsent nobody wants.
    fn complete(&mut self) {
        self.exchange.sending = None;
        self.lease = None;
    }
}

fn unanswered(error: &h2::Error) -> Failure {
    // Either says that nothing was done for the stream (RFC 9113, 8.7). A peer that goes away in
    // peace finishes what it has begun, so a stream that ends by that was not.
    let away = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    if error.is_remote() && (away || error.reason() == Some(Reason::REFUSED_STREAM)) {
        let text = format!("the upstream refused the stream: {error}");
        return Failure::new(Kind::Refused, text);
    }
    if error.is_library() {
        let text = format!("the upstream's response is no valid HTTP: {error}");
        return Failure::new(Kind::UpstreamProtocol, text);
    }
    let text = format!("the upstream broke the stream before its response: {error}");
    Failure::new(Kind::UpstreamGone, text)
}

fn broken(error: &h2::Error) -> Failure {
    if error.is_library() {
        let text = format!("the upstream's response body is no valid HTTP: {error}");
        return Failure::new(Kind::UpstreamProtocol, text);
    }
    let text = format!("the upstream broke off in mid-stream: {error}");
    Failure::new(Kind::Truncated, text)
}

const _: () = assert!(limits::UPSTREAM_STREAM_WINDOW as usize <= limits::UPSTREAM_FRAME_BUDGET);
