//! The sink for HTTP/2: an answer's body as DATA frames.
//!
//! h2 is given what flow control lets go, nothing while the socket takes nothing, and no more than
//! [`limits::CLIENT_FRAMES_QUEUED`] frames between two steps of the connection: it keeps a record of
//! some hundred bytes for each frame, however small. What has to wait lies here, close together, and
//! counts against `stream.backlog`; when that is full, the source is not asked.
//!
//! Invariant: an unclean end is asked of the [`Control`] only after h2 has taken every byte within
//! the client's window, so that only the socket stands between them and the client. Cost: a client
//! that keeps up costs no buffer; one that lags `stream.backlog` and one more read of the source.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::SendStream;

use crate::limits;
use crate::stream::control::Control;
use crate::stream::core::{End, Fill, Out, Stream};

/// How the work on a stream came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Everything is with h2, the end too.
    Sent,
    /// The client reset the stream, or its connection is gone.
    Gone,
}

/// A body on its way to an HTTP/2 client.
pub struct Frames {
    send: SendStream<Bytes>,
    /// Where more comes from; `None` when all that there is waits already.
    stream: Option<Box<Stream>>,
    waiting: Waiting,
    /// Known once the source has no more.
    end: Option<End>,
    /// Our place in the line of those who wait for the connection.
    place: u64,
}

impl Drop for Frames {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.leave();
        }
    }
}

/// What became of what waited, in one step.
#[derive(Default)]
struct Step {
    /// Some of it went on.
    moved: bool,
    /// The rest waits for other streams of the connection, not for the client.
    in_line: bool,
}

/// Bytes that h2 has not taken.
#[derive(Default)]
struct Waiting {
    first: Bytes,
    /// What follows, copied: so small pieces take no more than their size, and nobody else's
    /// buffers stay because of them.
    more: Vec<u8>,
}

impl Waiting {
    fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    /// Bytes of memory that they take.
    fn memory(&self) -> usize {
        self.first.len() + self.more.capacity()
    }

    /// They are kept for a while: a short piece must not keep a whole buffer of its connection.
    fn settle(&mut self) {
        if self.first.len() < limits::PIECE_SHARED && !self.first.is_unique() {
            self.first = Bytes::copy_from_slice(&self.first);
        }
    }

    /// At most `max` of the bytes that come next.
    fn take(&mut self, max: usize) -> Bytes {
        let taken = self.first.split_to(self.first.len().min(max));
        if self.first.is_empty() {
            // Without what it had to spare, which nobody could account for afterwards.
            self.first = std::mem::take(&mut self.more).into_boxed_slice().into();
        }
        taken
    }
}

impl Out for Waiting {
    fn put(&mut self, bytes: &[u8]) {
        if self.first.is_empty() {
            self.first = Bytes::copy_from_slice(bytes);
        } else {
            self.more.extend_from_slice(bytes);
        }
    }

    fn put_owned(&mut self, bytes: Bytes) {
        if self.first.is_empty() {
            self.first = bytes;
        } else {
            self.more.extend_from_slice(&bytes);
        }
    }
}

impl Frames {
    /// What `stream` gives.
    pub fn of_stream(send: SendStream<Bytes>, stream: Box<Stream>) -> Frames {
        let waiting = Waiting::default();
        Frames { send, stream: Some(stream), waiting, end: None, place: 0 }
    }

    /// These bytes, which must not be none.
    pub fn of_bytes(send: SendStream<Bytes>, bytes: Bytes) -> Frames {
        let waiting = Waiting { first: bytes, more: Vec::new() };
        Frames { send, stream: None, waiting, end: Some(End::Clean), place: 0 }
    }

    /// Breaks the stream off.
    pub fn reset(&mut self, reason: h2::Reason) {
        self.send.send_reset(reason);
    }

    /// Passes on what there is. After it stayed pending, `control` says whether to go on.
    pub fn poll(&mut self, cx: &mut Context<'_>, control: &Control) -> Poll<Over> {
        if self.send.poll_reset(cx).is_ready() {
            return Poll::Ready(Over::Gone);
        }
        let mut step = Step::default();
        loop {
            if let Poll::Ready(over) = self.push(cx, control, &mut step) {
                return Poll::Ready(over);
            }
            let Some(stream) = self.stream.as_mut().filter(|_| self.end.is_none()) else { break };
            if control.enough(self.waiting.len()) {
                break;
            }
            match stream.poll_fill_guarded(cx, &mut self.waiting) {
                Poll::Ready(Fill::Data) => self.end = stream.over().then_some(End::Clean),
                Poll::Ready(Fill::End(end)) => self.end = Some(end),
                Poll::Pending => break,
            }
        }
        if step.moved || !step.in_line {
            control.waits(self.waiting.len(), step.moved);
        }
        if !step.in_line {
            self.tell_memory(control);
        }
        if self.end == Some(End::Cut) && self.waiting.len() == 0 {
            control.cut_stream();
        }
        Poll::Pending
    }

    /// Tells `control` what is kept for a client that lags.
    fn tell_memory(&mut self, control: &Control) {
        let held = self.waiting.len();
        if held == 0 {
            return;
        }
        self.waiting.settle();
        let stopped = control.enough(held) && self.end.is_none();
        let unread = self.stream.as_ref().filter(|_| stopped).map_or(0, |stream| stream.unread());
        control.takes(self.waiting.memory() - held + unread);
    }

    /// Gives h2 what waits, as far as it may go now.
    fn push(&mut self, cx: &mut Context<'_>, control: &Control, step: &mut Step) -> Poll<Over> {
        loop {
            let ends = self.end == Some(End::Clean);
            if self.waiting.len() == 0 && !ends {
                return Poll::Pending;
            }
            let io = control.io();
            let blocked = io.blocked_since().is_some();
            if blocked || io.busy() {
                io.park(&mut self.place, cx.waker());
                step.in_line = !blocked;
                return Poll::Pending;
            }
            if self.waiting.len() == 0 {
                return self.send(control, Bytes::new(), true);
            }
            let wanted = self.waiting.first.len().min(limits::PIECE);
            self.send.reserve_capacity(wanted);
            let mut room = self.send.capacity();
            if room == 0 {
                room = match self.send.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(room))) => room,
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Over::Gone),
                    Poll::Pending => return Poll::Pending,
                };
            }
            let piece = self.waiting.take(room.min(wanted));
            step.moved = true;
            let last = ends && self.waiting.len() == 0;
            if let Poll::Ready(over) = self.send(control, piece, last) {
                return Poll::Ready(over);
            }
        }
    }

    fn send(&mut self, control: &Control, piece: Bytes, last: bool) -> Poll<Over> {
        control.io().queued();
        match self.send.send_data(piece, last) {
            Ok(()) if last => Poll::Ready(Over::Sent),
            Ok(()) => Poll::Pending,
            Err(_) => Poll::Ready(Over::Gone),
        }
    }
}
