//! The sink for HTTP/1.1: a stream written to the client's connection itself, in the chunked coding.
//!
//! Takes over once the HTTP library has parsed the request, and gives the connection back when the
//! response has ended cleanly. Owns no buffer while the client keeps up: what comes out of the
//! stream is written where it was read; only what the socket does not take is kept, up to the
//! client's backlog.
//!
//! Invariant: after the head, the client gets whole chunks of the stream, in order, and the last
//! chunk only at a clean end. An unclean end is asked of the stream's control, as with every sink.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits;
use crate::stream::control::Cut;
use crate::stream::core::{End, Fill, Out, Stream};

#[cfg(test)]
mod tests;

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
const CRLF: &[u8] = b"\r\n";
/// Hexadecimal digits of the largest chunk written, and CRLF.
const SIZE_LINE: usize = 18;
const _: () = assert!(SIZE_LINE <= limits::SCRATCH_MARGIN);
/// Reads of a stream before others get their turn.
const TURNS: usize = 16;

/// How the streaming phase came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The response is complete and with the client's kernel; the connection goes on if it said so.
    Complete {
        /// As the relay was told.
        keep_alive: bool,
    },
    /// The response has to end uncleanly, now.
    Cut(Cut),
    /// The client has gone.
    Gone,
}

/// See the module.
pub struct Relay<Io> {
    line: Line<Io>,
    stream: Stream,
    /// What the client sent meanwhile, if it did: the beginning of its next requests.
    #[allow(clippy::box_collection, reason = "a pointer for the many that send nothing")]
    pipelined: Option<Box<Vec<u8>>>,
    ended: Option<End>,
    /// Nothing was written yet: the head waits for the first event to go with it.
    fresh: bool,
    /// The head says that the connection goes on.
    keep_alive: bool,
    /// The control knows of something that waits for the client, or may.
    noted: bool,
}

/// The way to the client.
struct Line<Io> {
    io: Io,
    /// What the connection has not taken, if so.
    backlog: Option<Box<Backlog>>,
    /// Bytes may be in a buffer below (TLS).
    unflushed: bool,
    broken: bool,
}

/// Bytes for a client that lags.
#[derive(Default)]
struct Backlog {
    bytes: Vec<u8>,
    /// How many of them the connection has taken since.
    taken: usize,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Relay<Io> {
    /// Begins with `head`, the response's head in wire form, which says `keep_alive` or not; `read` is
    /// what was read behind the request.
    pub fn new(io: Io, head: Vec<u8>, keep_alive: bool, stream: Stream, read: &[u8]) -> Relay<Io> {
        let backlog = Some(Box::new(Backlog { bytes: head, taken: 0 }));
        let line = Line { io, backlog, unflushed: false, broken: false };
        let pipelined = (!read.is_empty()).then(|| Box::new(read.to_vec()));
        Relay { line, stream, pipelined, ended: None, fresh: true, keep_alive, noted: true }
    }

    /// The connection, and what the client sent behind its request. The stream is left, if it has not
    /// ended.
    pub fn into_parts(self) -> (Io, Vec<u8>) {
        self.stream.leave();
        (self.line.io, self.pipelined.map(|read| *read).unwrap_or_default())
    }

    /// Drives the response until it is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        if self.client_left(cx) {
            return Poll::Ready(Verdict::Gone);
        }
        let mut turns = 0;
        while self.step(cx) {
            turns += 1;
            if turns == TURNS {
                cx.waker().wake_by_ref();
                break;
            }
        }
        if self.line.broken {
            return Poll::Ready(Verdict::Gone);
        }
        if self.ended == Some(End::Clean) && self.line.is_clear() {
            return Poll::Ready(Verdict::Complete { keep_alive: self.keep_alive });
        }
        let rests = self.ended.is_none() && self.line.is_clear();
        if rests && !self.noted {
            return Poll::Pending;
        }
        self.noted = !rests;
        let (held, control) = (self.line.held(), self.stream.control());
        control.waits(held, true);
        let unread = if control.enough(held) { self.stream.unread() } else { 0 };
        control.takes(self.line.memory() - held + unread);
        control.poll_cut(cx).map(Verdict::Cut)
    }

    /// Whether there may be more to do at once.
    fn step(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.fresh {
            self.line.push(cx);
        }
        let (held, control) = (self.line.held(), self.stream.control());
        if self.ended.is_some() || self.line.broken || control.enough(held) {
            return false;
        }
        let room = control.room(held);
        let mut out = Chunks { line: &mut self.line, waker: cx.waker(), fresh: self.fresh, room };
        let fill = self.stream.poll_fill_guarded(cx, &mut out);
        self.fresh = false;
        match fill {
            Poll::Ready(Fill::Data) => return true,
            Poll::Ready(Fill::End(end)) => self.end(end),
            Poll::Pending => {}
        }
        self.line.push(cx);
        false
    }

    fn end(&mut self, end: End) {
        self.ended = Some(end);
        match end {
            End::Clean => self.line.keep(&[IoSlice::new(LAST_CHUNK)], 0),
            End::Cut => {
                self.stream.control().cut();
                // The cut waits for a flush, whether there was anything left to flush or not.
                self.line.unflushed = true;
            }
        }
    }

    /// Reads what the client sends, to know whether it is still there.
    fn client_left(&mut self, cx: &mut Context<'_>) -> bool {
        while self.pipelined.as_ref().map_or(0, |read| read.len()) < limits::PIPELINED {
            let mut piece = [MaybeUninit::uninit(); 1024];
            let mut piece = ReadBuf::uninit(&mut piece);
            match Pin::new(&mut self.line.io).poll_read(cx, &mut piece) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    let read = self.pipelined.get_or_insert_default();
                    read.extend_from_slice(piece.filled());
                }
                // Half closed counts as gone: whoever has no more to say to an HTTP server has left.
                Poll::Ready(_) => return true,
            }
        }
        false
    }
}

impl<Io: AsyncWrite + Unpin> Line<Io> {
    fn held(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.bytes.len() - backlog.taken)
    }

    /// Bytes of memory that the backlog takes.
    fn memory(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.bytes.capacity())
    }

    fn is_clear(&self) -> bool {
        self.backlog.is_none() && !self.unflushed
    }

    /// Hands on what waits, as far as it is taken.
    fn push(&mut self, cx: &mut Context<'_>) {
        while let Some(backlog) = &mut self.backlog {
            let polled = Pin::new(&mut self.io).poll_write(cx, &backlog.bytes[backlog.taken..]);
            match polled {
                Poll::Ready(Ok(taken)) if taken > 0 => {
                    self.unflushed = true;
                    backlog.taken += taken;
                    if backlog.taken == backlog.bytes.len() {
                        self.backlog = None;
                    }
                }
                Poll::Ready(_) => return self.broken = true,
                Poll::Pending => return,
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => self.broken = true,
                Poll::Pending => {}
            }
        }
    }

    fn keep(&mut self, pieces: &[IoSlice<'_>], taken: usize) {
        let backlog = self.backlog.get_or_insert_default();
        if backlog.taken > 0 {
            // Rather than to grow by what has gone on.
            backlog.bytes.drain(..backlog.taken);
            backlog.taken = 0;
        }
        let mut skip = taken;
        for piece in pieces {
            let from = skip.min(piece.len());
            skip -= from;
            backlog.bytes.extend_from_slice(&piece[from..]);
        }
    }
}

/// Writes what a stream gives as chunks.
struct Chunks<'a, Io> {
    line: &'a mut Line<Io>,
    waker: &'a Waker,
    /// Only collect: what comes first goes out with the head.
    fresh: bool,
    /// Bytes that may be kept until the client takes some.
    room: usize,
}

impl<Io: AsyncWrite + Unpin> Out for Chunks<'_, Io> {
    fn room(&self) -> usize {
        self.room
    }

    fn put(&mut self, bytes: &[u8]) {
        let mut line = [0; SIZE_LINE];
        let size = size_line(bytes.len(), &mut line);
        self.write(&[IoSlice::new(size), IoSlice::new(bytes), IoSlice::new(CRLF)]);
    }

    /// In one piece: gathering three costs the kernel more than the size line costs us.
    fn put_within(&mut self, buffer: &mut [u8], Range { start, end }: Range<usize>) {
        let mut line = [0; SIZE_LINE];
        let size = size_line(end - start, &mut line);
        let from = start - size.len();
        buffer[from..start].copy_from_slice(size);
        buffer[end..end + CRLF.len()].copy_from_slice(CRLF);
        self.write(&[IoSlice::new(&buffer[from..end + CRLF.len()])]);
    }
}

impl<Io: AsyncWrite + Unpin> Chunks<'_, Io> {
    fn write(&mut self, pieces: &[IoSlice<'_>]) {
        // A connection that has not flushed what it took (TLS) gets no more: its buffer has no
        // bound of ours.
        if self.fresh || !self.line.is_clear() || self.line.broken {
            return self.line.keep(pieces, 0);
        }
        let mut cx = Context::from_waker(self.waker);
        let io = Pin::new(&mut self.line.io);
        let polled = match pieces {
            [whole] => io.poll_write(&mut cx, whole),
            pieces => io.poll_write_vectored(&mut cx, pieces),
        };
        match polled {
            Poll::Ready(Ok(taken)) => {
                self.line.unflushed = true;
                if taken < pieces.iter().map(|piece| piece.len()).sum() {
                    self.line.keep(pieces, taken);
                }
            }
            Poll::Ready(Err(_)) => self.line.broken = true,
            Poll::Pending => self.line.keep(pieces, 0),
        }
    }
}

/// `len` in hexadecimal and CRLF, at the end of `line`.
fn size_line(len: usize, line: &mut [u8; SIZE_LINE]) -> &[u8] {
    let mut at = SIZE_LINE - 2;
    line[at..].copy_from_slice(b"\r\n");
    let mut rest = len;
    loop {
        at -= 1;
        line[at] = b"0123456789abcdef"[rest & 0xF];
        rest >>= 4;
        if rest == 0 {
            return &line[at..];
        }
    }
}
