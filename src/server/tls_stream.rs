//! TLS towards one client: rustls without buffers of its own, over the client's socket.
//!
//! rustls' usual connection keeps the buffer that it last read into, 4 KiB for every idle client.
//! Here records are read into, decrypted from and encrypted into scratch memory that belongs to the
//! worker ([`Acceptor`]). A connection owns bytes only in the middle of a record, while its reader
//! takes less than a record held, or behind a socket that takes nothing.
//!
//! Invariants: what was encrypted goes out in order, and nothing is encrypted while some of it still
//! waits, so that what waits is one write's at most; no plaintext is given out after a failure; the
//! end of the socket without close_notify is an error, never an end.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ContentType, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The largest record with its header, bytes: TLS 1.2 allows most (RFC 5246, 6.2.3).
const RECORD_MAX: usize = 5 + 16 * 1024 + 2048;
/// Room for the largest message of a handshake that rustls puts together, 64 KiB, in its records.
const INCOMING: usize = 64 * 1024 + 2 * RECORD_MAX;
/// Most plaintext that is encrypted at once, bytes.
const PLAIN: usize = 32 * 1024;
/// Room for that in records, and for what rustls has to say itself beside it.
const OUTGOING: usize = PLAIN + 2 * RECORD_MAX;

/// An alert as TLS 1.3 sends it: header, level, what it says, type and tag (RFC 8446, 5.2).
const SEALED_ALERT: usize = 5 + 2 + 1 + 16;

/// What makes TLS connections out of sockets: one per worker, with the memory that they share.
pub struct Acceptor {
    config: RefCell<Arc<ServerConfig>>,
    /// Borrowed within one step of one connection only.
    scratch: RefCell<Scratch>,
}

struct Scratch {
    incoming: Box<[u8]>,
    outgoing: Box<[u8]>,
    /// Pieces that are written together become one record.
    plain: Vec<u8>,
}

impl Acceptor {
    /// For one worker; takes 190 kB, of which only what is used becomes resident.
    pub fn new(config: Arc<ServerConfig>) -> Rc<Acceptor> {
        let (incoming, outgoing) = (vec![0; INCOMING].into(), vec![0; OUTGOING].into());
        let scratch = Scratch { incoming, outgoing, plain: Vec::new() };
        Rc::new(Acceptor { config: RefCell::new(config), scratch: RefCell::new(scratch) })
    }

    /// Handshakes that begin from now on go by `config`.
    pub fn renew(&self, config: Arc<ServerConfig>) {
        self.config.replace(config);
    }

    /// The handshake. Who waits for it limits the time.
    ///
    /// # Errors
    /// Of the socket, its end, or what the client sent; it was told by an alert, if its socket took
    /// that at once.
    pub async fn accept<Io>(self: &Rc<Acceptor>, io: Io) -> io::Result<TlsStream<Io>>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let tls = UnbufferedServerConnection::new(self.config.borrow().clone())
            .map_err(io::Error::other)?;
        let (partial, received, unsent) = Default::default();
        let acceptor = self.clone();
        let (ended, closed, failed) = (false, false, false);
        let mut stream =
            TlsStream { io, tls, acceptor, partial, received, unsent, ended, closed, failed };
        while stream.tls.is_handshaking() {
            let none = &mut ReadBuf::new(&mut []);
            std::future::poll_fn(|cx| stream.poll_fill(cx, none)).await?;
            // All of it, also the last: the client may wait for it.
            std::future::poll_fn(|cx| stream.poll_push(cx)).await?;
        }
        Ok(stream)
    }
}

/// A connection after its handshake; see the module.
pub struct TlsStream<Io = TcpStream> {
    io: Io,
    tls: UnbufferedServerConnection,
    acceptor: Rc<Acceptor>,
    /// Of records or of a handshake message that have not come whole; rustls counts on getting it
    /// back as it left it.
    partial: Vec<u8>,
    /// Decrypted and not read yet.
    received: Held,
    /// Encrypted and not taken by the socket yet.
    unsent: Held,
    /// The client's close_notify has come.
    ended: bool,
    /// Our close_notify was encrypted.
    closed: bool,
    /// What the client sent is not TLS, or it gave up with an alert.
    failed: bool,
}

/// Bytes that wait.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    /// How many of them wait no more.
    gone: usize,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    fn add(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// So many went; nothing is kept behind the last.
    fn went(&mut self, bytes: usize) {
        self.gone += bytes;
        if self.gone == self.bytes.len() {
            *self = Held::default();
        }
    }
}

/// What is to be encrypted.
enum Say<'a> {
    Nothing,
    Data(&'a [u8]),
    Close,
}

/// What a step came to.
struct Step {
    /// Bytes of what came in that are done with.
    used: usize,
    /// Bytes encrypted at the beginning of the outgoing buffer.
    written: usize,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> TlsStream<Io> {
    /// The socket below.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// The socket below; what is read from it or written to it is lost to TLS.
    pub fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// Whether HTTP/2 was agreed on.
    pub fn is_h2(&self) -> bool {
        self.tls.alpn_protocol() == Some(b"h2")
    }

    /// Everything rustls can do with `incoming`, then what there is to `say`. What is decrypted goes
    /// to `into`, or waits; what rustls has to say itself waits to be sent, and comes first.
    fn process(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut [u8],
        say: &Say<'_>,
        mut into: Option<&mut ReadBuf<'_>>,
    ) -> io::Result<Step> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state } =
                self.tls.process_tls_records(&mut incoming[used..]);
            used += discard;
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.failed = true;
                    self.last_words(&mut incoming[used..], outgoing);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            match state {
                ConnectionState::EncodeTlsData(mut record) => {
                    let written = record.encode(outgoing).map_err(io::Error::other)?;
                    self.unsent.add(&outgoing[..written]);
                }
                ConnectionState::TransmitTlsData(records) => records.done(),
                ConnectionState::ReadTraffic(mut records) => {
                    while let Some(record) = records.next_record() {
                        let record = record.map_err(io::Error::other)?;
                        used += record.discard;
                        let mut payload = record.payload;
                        if let (Some(into), true) = (&mut into, self.received.is_empty()) {
                            let now = payload.len().min(into.remaining());
                            into.put_slice(&payload[..now]);
                            payload = &payload[now..];
                        }
                        self.received.add(payload);
                    }
                }
                ConnectionState::PeerClosed => self.ended = true,
                ConnectionState::WriteTraffic(mut writer) => {
                    let written = match say {
                        Say::Nothing => 0,
                        Say::Data(plain) => {
                            writer.encrypt(plain, outgoing).map_err(io::Error::other)?
                        }
                        Say::Close => {
                            writer.queue_close_notify(outgoing).map_err(io::Error::other)?
                        }
                    };
                    return Ok(Step { used, written });
                }
                ConnectionState::BlockedHandshake | ConnectionState::Closed => {
                    return Ok(Step { used, written: 0 });
                }
                // Early data is off, and nothing else is known.
                other => return Err(io::Error::other(format!("unexpected in TLS: {other:?}"))),
            }
        }
    }

    /// What rustls still has to say after a failure: the alert that tells the client why, perhaps
    /// behind the beginning of an answer. It hands that out before it looks at the bytes that made
    /// it fail again, which must not be, so nothing is asked for behind an alert.
    fn last_words(&mut self, incoming: &mut [u8], outgoing: &mut [u8]) {
        loop {
            let status = self.tls.process_tls_records(incoming);
            let Ok(ConnectionState::EncodeTlsData(mut record)) = status.state else { return };
            let Ok(written) = record.encode(outgoing) else { return };
            self.unsent.add(&outgoing[..written]);
            // TLS 1.3 hides the type, but nothing else that it hides is as short.
            match ContentType::from(outgoing[0]) {
                ContentType::Alert => return,
                ContentType::ApplicationData if written <= SEALED_ALERT => return,
                _ => {}
            }
        }
    }

    /// Reads once from the socket; ready when something came, which need not be anything to read.
    fn poll_fill(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let acceptor = self.acceptor.clone();
        let Scratch { incoming, outgoing, .. } = &mut *acceptor.scratch.borrow_mut();
        let kept = self.partial.len();
        let room = incoming.len().min(kept + RECORD_MAX);
        if kept == room {
            let text = "a message of a TLS handshake is too long";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        incoming[..kept].copy_from_slice(&self.partial);
        let mut space = ReadBuf::new(&mut incoming[kept..room]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        let filled = kept + space.filled().len();
        if filled == kept {
            let text = "the client ended the connection without TLS's close_notify";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
        }
        match self.process(&mut incoming[..filled], outgoing, &Say::Nothing, Some(into)) {
            Ok(step) => {
                self.partial = incoming[step.used..filled].to_vec();
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.partial = Vec::new();
                // An alert that the socket does not take at once nobody waits for.
                let _ = self.poll_push(cx);
                Poll::Ready(Err(error))
            }
        }
    }

    /// Sends what waits.
    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.unsent.rest()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                taken => self.unsent.went(taken),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts, and sends as much as the socket takes; the rest waits.
    fn say(&mut self, cx: &mut Context<'_>, say: &Say<'_>, outgoing: &mut [u8]) -> io::Result<()> {
        let mut partial = std::mem::take(&mut self.partial);
        let Step { used, written } = self.process(&mut partial, outgoing, say, None)?;
        self.partial = partial.split_off(used);
        let mut sent = 0;
        while self.unsent.is_empty() && sent < written {
            match Pin::new(&mut self.io).poll_write(cx, &outgoing[sent..written]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(taken) => sent += taken?,
                Poll::Pending => break,
            }
        }
        self.unsent.add(&outgoing[sent..written]);
        match self.poll_push(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<Io> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        loop {
            if !me.received.is_empty() {
                let taken = me.received.rest().len().min(buf.remaining());
                buf.put_slice(&me.received.rest()[..taken]);
                me.received.went(taken);
            }
            if me.ended || buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if me.failed {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if let Err(error) = ready!(me.poll_fill(cx, buf)) {
                buf.set_filled(before);
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<Io> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        if me.closed || me.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(me.poll_push(cx))?;
        let acceptor = me.acceptor.clone();
        let Scratch { outgoing, plain, .. } = &mut *acceptor.scratch.borrow_mut();
        let data = match pieces {
            [one] => &one[..one.len().min(PLAIN)],
            several => {
                plain.clear();
                for piece in several {
                    let room = piece.len().min(PLAIN - plain.len());
                    plain.extend_from_slice(&piece[..room]);
                }
                &plain[..]
            }
        };
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        me.say(cx, &Say::Data(data), outgoing)?;
        Poll::Ready(Ok(data.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_push(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if !me.closed && !me.failed {
            me.closed = true;
            let acceptor = me.acceptor.clone();
            me.say(cx, &Say::Close, &mut acceptor.scratch.borrow_mut().outgoing)?;
        }
        ready!(me.poll_push(cx))?;
        match ready!(Pin::new(&mut me.io).poll_shutdown(cx)) {
            // The client was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside rustls' own blocks, what every TLS client costs.
    #[test]
    fn a_connection_is_small() {
        let bytes = size_of::<TlsStream>() - size_of::<UnbufferedServerConnection>();
        assert!(bytes <= 144, "{bytes} bytes");
    }
}
