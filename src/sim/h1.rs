//! The HTTP/1.1 server, by hand: it shares no code with the gateway, so it shares no bug.
//!
//! Owns the connection, its keep-alive and pipelining, and the writing of answers with all their
//! faults. Refuses malformed requests with 400 and a close. Invariant: while an answer is sent the
//! read side is always polled, so a client that leaves (or half-closes) is noticed at once; what
//! it pipelines meanwhile is kept, up to [`UNREAD_MAX`].
//! Cost: no buffer while a stream is quiet; one write per event.

use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::answer::{self, Answer, Endpoint, Length, TRAILER};
use super::counts::{Connected, Live, Outcome};
use super::h1_head::{self, Delimited, HEAD_MAX};
use super::listen::Io;
use super::options::{Behaviour, Fault};
use super::request::{Intake, Request};
use super::script::{End, Pieces, Step};
use super::{Pace, Shared};

/// Pipelined bytes kept while an answer is sent; beyond them the client has to wait.
const UNREAD_MAX: usize = 64 * 1024;
/// After our half of the connection is closed, what the client still sends is read for this long:
/// closing on unread bytes would reset the connection and take our last bytes with it.
const CLOSE_LINGER: Duration = Duration::from_secs(1);

/// Serves one connection to its end.
pub(super) async fn serve(io: Io, connected: Connected, shared: Arc<Shared>) {
    let unread = BytesMut::new();
    let mut connection = Connection { io, unread, number: connected.number, shared };
    loop {
        match connection.exchange().await {
            Ok(Next::Request) => {}
            Ok(Next::Close) => return connection.close().await,
            Ok(Next::Reset) => return connection.io.reset_on_close(),
            Ok(Next::Drop) | Err(Gone) => return,
        }
    }
}

/// What a connection does after an exchange.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Reads the next request.
    Request,
    /// Closes its half in order, then waits for the client's.
    Close,
    /// Closes with a TCP reset.
    Reset,
    /// Closes without ado, on TLS without close_notify.
    Drop,
}

/// The client went away: an outcome, not an error.
struct Gone;

/// Why a body could not be read.
enum BodyFault {
    Gone,
    Malformed(&'static str),
}

impl From<Gone> for BodyFault {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// How the body is laid out on this connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Chunked,
    /// As it is: a length was declared, or the close ends it.
    Raw,
}

struct Connection {
    io: Io,
    /// Received, not yet read as part of a request.
    unread: BytesMut,
    number: u64,
    shared: Arc<Shared>,
}

impl Connection {
    /// One request and its answer.
    async fn exchange(&mut self) -> Result<Next, Gone> {
        let (request, body) = match self.head().await? {
            Ok(head) => head,
            Err(fault) => {
                self.shared.ledger.malformed();
                return self.refuse(fault).await;
            }
        };
        let endpoint = Endpoint::of(request.path());
        let ledger = &self.shared.ledger;
        let live = if endpoint.is_control() { Live::uncounted() } else { Live::new(ledger) };
        let planned = answer::behaviour(&self.shared, &request);
        let behaviour = planned.as_deref().ok();
        let early = behaviour.is_some_and(|b| b.fault == Fault::Early);
        let mut intake = Intake::new(endpoint);
        let received =
            if early { Ok(()) } else { self.receive(&request, body, behaviour, &mut intake).await };
        if !endpoint.is_control() {
            self.shared.ledger.record(intake.seen(&request, received.is_ok() && !early));
        }
        match received {
            Ok(()) => {}
            Err(BodyFault::Gone) => return Err(Gone),
            Err(BodyFault::Malformed(fault)) => {
                live.end(Outcome::Malformed);
                return self.refuse(fault).await;
            }
        }
        let close =
            early || request.version == "HTTP/1.0" || request.has_token("connection", "close");
        let old = request.version == "HTTP/1.0";
        let answer = match planned {
            Ok(behaviour) => answer::plan(&self.shared, &request, &intake, *behaviour),
            Err(answer) => answer,
        };
        // Neither is of use any more, and the answer may stream for an hour.
        drop((request, intake));
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
        }
        let (outcome, next) = self.send(answer, close, old).await?;
        live.end(outcome);
        Ok(next)
    }

    /// Reads the next request head; [`Gone`] at the end of the connection.
    async fn head(&mut self) -> Result<Result<(Request, Delimited), &'static str>, Gone> {
        loop {
            match h1_head::head(&self.unread, self.number) {
                Ok(Some(head)) => {
                    self.unread.advance(head.length);
                    return Ok(Ok((head.request, head.body)));
                }
                Ok(None) => self.fill(2048).await?,
                Err(fault) => return Ok(Err(fault)),
            }
        }
    }

    async fn receive(
        &mut self,
        request: &Request,
        body: Delimited,
        behaviour: Option<&Behaviour>,
        intake: &mut Intake,
    ) -> Result<(), BodyFault> {
        if let Some(behaviour) = behaviour
            && !behaviour.read_delay.is_zero()
        {
            // Not watching: reading ahead is just what the delay is to prevent.
            tokio::time::sleep(behaviour.read_delay).await;
        }
        if body == Delimited::Length(0) {
            return Ok(());
        }
        if self.unread.is_empty() && request.has_token("expect", "100-continue") {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        match body {
            Delimited::Length(length) => self.take(length, intake).await?,
            Delimited::Chunked => loop {
                let size = self.line(h1_head::chunk_size).await?;
                if size == 0 {
                    break self.trailers().await?;
                }
                self.take(size, intake).await?;
                self.line(|end| end.is_empty().then_some(()).ok_or("a chunk too long")).await?;
            },
        }
        Ok(())
    }

    /// Moves `length` bytes of body into `intake`.
    async fn take(&mut self, mut length: u64, intake: &mut Intake) -> Result<(), Gone> {
        while length > 0 {
            if self.unread.is_empty() {
                self.fill(16 * 1024).await?;
            }
            let take = self.unread.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            intake.push(&self.unread[..take]);
            self.unread.advance(take);
            length -= take as u64;
        }
        Ok(())
    }

    /// Reads one line of chunk framing through `read`.
    async fn line<T>(
        &mut self,
        read: impl Fn(&[u8]) -> Result<T, &'static str>,
    ) -> Result<T, BodyFault> {
        loop {
            match h1_head::line(&self.unread).map_err(BodyFault::Malformed)? {
                Some((line, length)) => {
                    let value = read(line).map_err(BodyFault::Malformed)?;
                    self.unread.advance(length);
                    return Ok(value);
                }
                None => self.fill(2048).await?,
            }
        }
    }

    /// Skips a trailer section.
    async fn trailers(&mut self) -> Result<(), BodyFault> {
        let mut total = 0;
        loop {
            let length = self.line(|line| Ok(line.len())).await?;
            total += length + 2;
            match length {
                0 => return Ok(()),
                _ if total > HEAD_MAX => return Err(BodyFault::Malformed("too large trailers")),
                _ => {}
            }
        }
    }

    async fn fill(&mut self, room: usize) -> Result<(), Gone> {
        self.unread.reserve(room);
        match self.io.read_buf(&mut self.unread).await {
            Ok(0) | Err(_) => Err(Gone),
            Ok(_) => Ok(()),
        }
    }

    async fn refuse(&mut self, fault: &str) -> Result<Next, Gone> {
        let length = fault.len() + 1;
        let text = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n{fault}\n"
        );
        self.write(text.as_bytes()).await?;
        Ok(Next::Close)
    }

    /// Sends a whole answer with its fault.
    async fn send(
        &mut self,
        mut answer: Box<Answer>,
        close: bool,
        old: bool,
    ) -> Result<(Outcome, Next), Gone> {
        let first_byte = answer.script.behaviour.first_byte;
        let mut pace = Pace::new();
        self.pause(&mut pace, first_byte).await?;
        match answer.fault() {
            Fault::StallHead => return Err(self.until_gone().await),
            Fault::ResetHead => return Ok((Outcome::Aborted, Next::Reset)),
            Fault::Refuse => return Ok((Outcome::Aborted, Next::Drop)),
            _ => {}
        }
        let old = old || answer.fault() == Fault::Http10;
        let by_close =
            answer.length == Length::Unknown && (old || answer.fault() == Fault::EofDelimited);
        let chunked = answer.length == Length::Unknown && !by_close;
        let layout = if chunked { Layout::Chunked } else { Layout::Raw };
        let close = close || old || by_close || answer.fault() == Fault::Goaway;
        let mut pieces = Pieces::new(answer.script.behaviour.framing.split, answer.script.seed());
        let head = head(&answer, layout, close, old);
        self.write_cut(head.as_bytes(), &mut pieces).await?;
        drop(head);
        let after = if close { Next::Close } else { Next::Request };
        if answer.head_only || answer.length == Length::None {
            return Ok((Outcome::Completed, after));
        }
        answer.fields = Vec::new();
        let mut written = 0;
        loop {
            // After the last byte of a known length a client may close: it has not left us.
            if answer.length != Length::Declared(written) {
                let wait = answer.script.wait();
                self.pause(&mut pace, wait).await?;
            }
            if self.shared.hurries() {
                answer.script.hurry();
            }
            match answer.script.step() {
                Step::Data(data) => {
                    self.data(&data, layout, &mut pieces).await?;
                    written += data.len() as u64;
                }
                Step::Goaway => {}
                Step::End(end) => return self.end(end, layout, after).await,
            }
        }
    }

    async fn end(
        &mut self,
        end: End,
        layout: Layout,
        after: Next,
    ) -> Result<(Outcome, Next), Gone> {
        match end {
            End::Clean | End::Trailers if layout == Layout::Raw => {}
            End::Clean => self.write(b"0\r\n\r\n").await?,
            End::Trailers => {
                let (name, value) = TRAILER;
                self.write(format!("0\r\n{name}: {value}\r\n\r\n").as_bytes()).await?;
            }
            End::Fin | End::Short => return Ok((Outcome::Aborted, Next::Close)),
            End::Reset => return Ok((Outcome::Aborted, Next::Reset)),
            End::Connection | End::Calm => return Ok((Outcome::Aborted, Next::Drop)),
            End::Stall => return Err(self.until_gone().await),
            End::BadChunk => {
                self.write(b"xyz\r\ndata: lost\n\n\r\n").await?;
                return Ok((Outcome::Aborted, Next::Close));
            }
            End::ShortChunk => {
                self.write(b"1e\r\n: half a chunk\n").await?;
                return Ok((Outcome::Aborted, Next::Close));
            }
        }
        Ok((Outcome::Completed, after))
    }

    /// Writes one step's data, cut as the pieces want it.
    async fn data(&mut self, data: &[u8], layout: Layout, pieces: &mut Pieces) -> Result<(), Gone> {
        if layout == Layout::Raw {
            return self.write_cut(data, pieces).await;
        }
        let mut wire = Vec::with_capacity(data.len() + 16);
        let mut rest = data;
        while !rest.is_empty() {
            let (piece, left) = rest.split_at(pieces.next(rest.len()));
            let size = format!("{:x}\r\n", piece.len());
            wire.extend_from_slice(size.as_bytes());
            wire.extend_from_slice(piece);
            wire.extend_from_slice(b"\r\n");
            rest = left;
        }
        self.write_cut(&wire, pieces).await
    }

    /// Writes bytes in as many writes as there are pieces, which need not match the chunks.
    async fn write_cut(&mut self, bytes: &[u8], pieces: &mut Pieces) -> Result<(), Gone> {
        if pieces.is_whole() {
            return self.write(bytes).await;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, left) = rest.split_at(pieces.next(rest.len()));
            self.write(piece).await?;
            // So that a reader on the same thread gets to see this piece alone.
            tokio::task::yield_now().await;
            rest = left;
        }
        Ok(())
    }

    /// Writes and flushes everything, watching for the client's leave whenever it must wait.
    async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        let mut done = 0;
        poll_fn(|cx| {
            while done < bytes.len() {
                match Pin::new(&mut self.io).poll_write(cx, &bytes[done..]) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Gone)),
                    Poll::Ready(Ok(written)) => done += written,
                    Poll::Pending => return self.poll_gone(cx).map(Err),
                }
            }
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(flushed) => Poll::Ready(flushed.map_err(|_| Gone)),
                Poll::Pending => self.poll_gone(cx).map(Err),
            }
        })
        .await
    }

    async fn pause(&mut self, pace: &mut Pace, wait: Duration) -> Result<(), Gone> {
        let Some(until) = pace.next(wait) else {
            // A look costs no system call while there is nothing to read.
            return poll_fn(|cx| match self.poll_gone(cx) {
                Poll::Ready(gone) => Poll::Ready(Err(gone)),
                Poll::Pending => Poll::Ready(Ok(())),
            })
            .await;
        };
        let mut sleep = pin!(tokio::time::sleep_until(until));
        poll_fn(|cx| match self.poll_gone(cx) {
            Poll::Ready(gone) => Poll::Ready(Err(gone)),
            Poll::Pending => sleep.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    async fn until_gone(&mut self) -> Gone {
        poll_fn(|cx| self.poll_gone(cx)).await
    }

    /// Ready when the client has closed; keeps what it sends instead.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        while self.unread.len() < UNREAD_MAX {
            // On the stack: a waiting stream owns no read buffer.
            let mut room = [0; 2048];
            let mut room = ReadBuf::new(&mut room);
            match Pin::new(&mut self.io).poll_read(cx, &mut room) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !room.filled().is_empty() => {
                    self.unread.extend_from_slice(room.filled());
                }
                Poll::Ready(_) => return Poll::Ready(Gone),
            }
        }
        Poll::Pending
    }

    /// Closes our half and reads off the other, see [`CLOSE_LINGER`].
    async fn close(mut self) {
        let drained = async {
            self.io.shutdown().await?;
            loop {
                self.unread.clear();
                if self.io.read_buf(&mut self.unread).await? == 0 {
                    return Ok::<(), std::io::Error>(());
                }
            }
        };
        // Either way the connection is dropped now.
        let _ = tokio::time::timeout(CLOSE_LINGER, drained).await;
    }
}

/// The head as text, informational ones before it.
fn head(answer: &Answer, layout: Layout, close: bool, old: bool) -> String {
    let eol = if answer.fault() == Fault::BareLfHead { "\n" } else { "\r\n" };
    let mut text = String::with_capacity(320);
    if answer.fault() == Fault::Informational {
        for _ in 0..2 {
            text.push_str("HTTP/1.1 103 Early Hints\r\nlink: </sim>; rel=preconnect\r\n\r\n");
        }
    }
    let version = if old { "HTTP/1.0" } else { "HTTP/1.1" };
    let reason = http::StatusCode::from_u16(answer.status).ok();
    let reason = reason.and_then(|status| status.canonical_reason()).unwrap_or("Simulated");
    let mut put = |what: std::fmt::Arguments<'_>| {
        text.write_fmt(what).expect("writing to a String cannot fail");
        text.push_str(eol);
    };
    put(format_args!("{version} {} {reason}", answer.status));
    for (name, value) in &answer.fields {
        put(format_args!("{name}: {value}"));
    }
    match answer.length {
        Length::Declared(length) => put(format_args!("content-length: {length}")),
        Length::Unknown if layout == Layout::Chunked => {
            put(format_args!("transfer-encoding: chunked"));
        }
        Length::Unknown | Length::None => {}
    }
    if close {
        put(format_args!("connection: close"));
    }
    put(format_args!(""));
    text
}
