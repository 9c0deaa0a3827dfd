//! Answers towards clients, and the sink for hyper: a stream as an HTTP body.
//!
//! Gives at most [`limits::PIECE`] bytes at once: it looks at the backlog before each.
//!
//! Invariant: it never fails. An unclean end is asked of the [`Control`] and then waited for.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::limits;
use crate::stream::control::Control;
use crate::stream::core::{End, Fill, Out, Stream};
use crate::stream::life::Life;

/// A response body towards a client.
pub enum ClientBody {
    /// All of it is known.
    Full(Option<Bytes>),
    /// It comes as the upstream sends it.
    Stream(StreamBody),
}

/// A stream on its way to the client.
pub struct StreamBody {
    /// `None` once it was taken for another sink.
    stream: Option<Box<Stream>>,
    control: Rc<Control>,
    piece: Piece,
}

#[derive(Default)]
struct Piece(Bytes);

impl Out for Piece {
    fn put(&mut self, bytes: &[u8]) {
        self.0 = Bytes::copy_from_slice(bytes);
    }

    fn put_owned(&mut self, bytes: Bytes) {
        self.0 = bytes;
    }
}

impl ClientBody {
    /// A body of these bytes.
    pub fn full(bytes: Bytes) -> ClientBody {
        ClientBody::Full((!bytes.is_empty()).then_some(bytes))
    }

    /// The body that `stream` gives.
    pub fn stream(stream: Stream, control: Rc<Control>) -> ClientBody {
        let stream = Some(Box::new(stream));
        ClientBody::Stream(StreamBody { stream, control, piece: Piece::default() })
    }
}

impl StreamBody {
    /// The request's record.
    pub fn life(&mut self) -> &mut Life {
        stream(&mut self.stream).life()
    }

    /// Whether it is a stream of events.
    pub fn is_events(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_events())
    }

    /// The stream, for another sink. Nothing may have been asked of this one.
    pub fn into_stream(mut self) -> Box<Stream> {
        debug_assert!(self.piece.0.is_empty(), "a body that gave something stays with hyper");
        self.stream.take().expect(WHOLE)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.control.asked();
        // hyper stops asking when it likes to: what the upstream's connection may fill then counts as
        // soon as the socket takes nothing.
        let blocked = self.control.io().blocked_since().is_some();
        let stream = stream(&mut self.stream);
        self.control.takes(if blocked { stream.unread() } else { 0 });
        if self.control.full() {
            return Poll::Pending;
        }
        if self.piece.0.is_empty() {
            match std::task::ready!(stream.poll_fill_guarded(cx, &mut self.piece)) {
                Fill::Data => {}
                Fill::End(End::Clean) => return Poll::Ready(None),
                Fill::End(End::Cut) => {
                    self.control.cut();
                    return Poll::Pending;
                }
            }
        }
        let bytes = self.piece.0.split_to(self.piece.0.len().min(limits::PIECE));
        self.control.gave(bytes.len());
        Poll::Ready(Some(bytes))
    }
}

const WHOLE: &str = "only a body that is gone has no stream";

fn stream(stream: &mut Option<Box<Stream>>) -> &mut Stream {
    stream.as_mut().expect(WHOLE)
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.leave();
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = match &mut *self {
            ClientBody::Full(bytes) => Poll::Ready(bytes.take()),
            ClientBody::Stream(body) => body.poll(cx),
        };
        polled.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, ClientBody::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            ClientBody::Stream(_) => SizeHint::default(),
        }
    }
}
