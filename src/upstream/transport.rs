//! The byte stream under an upstream connection: TCP, or TLS over it.
//!
//! Owns what an exchange must know of its socket: whether it took a byte, whether it is fit for
//! another request, and whether it closes with FIN or RST. Cost: 56 bytes and what tokio registers
//! per socket; TLS is boxed, since its state alone is more than a kilobyte.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::upstream::allowance::Open;
use crate::wire::wheel::Tick;

/// A connected transport.
pub(crate) enum Transport {
    /// Cleartext.
    Plain(TcpIo),
    /// TLS as hyper-rustls builds it.
    Tls(Box<TlsStream<TokioIo<TokioIo<TcpIo>>>>),
}

impl From<MaybeHttpsStream<TokioIo<TcpIo>>> for Transport {
    fn from(connected: MaybeHttpsStream<TokioIo<TcpIo>>) -> Transport {
        match connected {
            MaybeHttpsStream::Http(tcp) => Transport::Plain(tcp.into_inner()),
            MaybeHttpsStream::Https(tls) => Transport::Tls(Box::new(tls.into_inner())),
        }
    }
}

impl Transport {
    fn tcp(&self) -> &TcpIo {
        match self {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(tls) => tls.get_ref().0.inner().inner(),
        }
    }

    fn tcp_mut(&mut self) -> &mut TcpIo {
        match self {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(tls) => tls.get_mut().0.inner_mut().inner_mut(),
        }
    }

    /// Keeps `open` for as long as the connection is. From the tick `until` on it is too old for
    /// another request.
    pub(super) fn occupy(&mut self, open: Open, until: Tick) {
        let tcp = self.tcp_mut();
        (tcp.open, tcp.until) = (Some(open), until);
    }

    /// From when on it is too old for another request.
    pub(super) fn until(&self) -> Tick {
        self.tcp().until
    }

    /// A request begins: nothing of it was written yet.
    pub(super) fn begin(&mut self) {
        self.tcp_mut().wrote = false;
    }

    /// Whether the socket has taken a byte since [`Transport::begin`].
    pub(super) fn wrote(&self) -> bool {
        self.tcp().wrote
    }

    /// Closes with RST instead of FIN: a cancelled request must not go on generating upstream.
    pub(super) fn abort(self) {
        let socket = socket2::SockRef::from(&self.tcp().stream);
        // A failure leaves the ordinary FIN.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }

    /// Whether an idle connection may take a request: the peer has neither closed it nor said
    /// anything unasked. Asks the socket itself, since tokio knows only what its last turn has
    /// brought; that costs one system call and misses only what is still on its way.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let peeked = socket2::SockRef::from(&self.tcp().stream).peek(&mut byte);
        let nothing = matches!(&peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        let Transport::Tls(tls) = self else { return nothing };
        if !nothing && !matches!(peeked, Ok(1..)) {
            return false;
        }
        // Bytes on the socket may be session tickets, which TLS takes for itself; and it may hold
        // data that was read before.
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(tls).poll_read(&mut cx, &mut byte).is_pending()
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }
}

/// A TCP stream that remembers whether anything was written.
pub(crate) struct TcpIo {
    stream: TcpStream,
    wrote: bool,
    /// From when on it is too old for another request; a tick, for which there is room.
    until: Tick,
    /// Its places among the upstream's connections and the process's open files.
    open: Option<Open>,
}

impl TcpIo {
    pub(super) fn new(stream: TcpStream) -> TcpIo {
        TcpIo { stream, wrote: false, until: Tick(u32::MAX), open: None }
    }

    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.wrote |= matches!(written, Poll::Ready(Ok(1..)));
        written
    }
}

impl Connection for TcpIo {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for TcpIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TcpIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    /// A connection's both ends.
    async fn pair() -> (Transport, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to = listener.local_addr().expect("an address");
        let (ours, theirs) = tokio::join!(TcpStream::connect(to), listener.accept());
        (Transport::Plain(TcpIo::new(ours.expect("connected"))), theirs.expect("accepted").0)
    }

    /// Waits until `transport` has something to read, as the kernel sees it.
    async fn readable(transport: &Transport) {
        let waited = transport.tcp().stream.readable();
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, waited).await.expect("in time").expect("readable");
    }

    #[test]
    fn a_cleartext_connection_is_small() {
        assert!(size_of::<Transport>() <= 56, "{}", size_of::<Transport>());
    }

    #[tokio::test]
    async fn an_idle_connection_is_quiet_until_its_peer_speaks_or_closes() {
        let (mut transport, mut peer) = pair().await;
        assert!(transport.is_quiet());
        peer.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.expect("written");
        readable(&transport).await;
        assert!(!transport.is_quiet(), "unasked bytes");

        let (mut transport, peer) = pair().await;
        drop(peer);
        readable(&transport).await;
        assert!(!transport.is_quiet(), "closed");

        let (mut transport, peer) = pair().await;
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("set");
        drop(peer);
        readable(&transport).await;
        assert!(!transport.is_quiet(), "reset");
    }

    #[tokio::test]
    async fn only_what_the_socket_took_counts_as_written() {
        let (mut transport, peer) = pair().await;
        transport.begin();
        assert!(!transport.wrote());
        transport.write_all(b"x").await.expect("written");
        assert!(transport.wrote());
        transport.begin();
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("set");
        drop(peer);
        readable(&transport).await;
        transport.write_all(b"x").await.expect_err("the connection was reset");
        assert!(!transport.wrote());
    }
}
