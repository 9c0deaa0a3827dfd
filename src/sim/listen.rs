//! Accepting connections, TLS, and telling HTTP/1.1 from HTTP/2.
//!
//! Owns the listener and the transport under both protocols. Refuses connections of a protocol
//! that is switched off, by closing them. Invariant: an accept error never ends the loop.
//! Cost: one task per connection; the transport is one enum, so that no connection is boxed twice.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::counts::Connected;
use super::{Shared, h1, h2};

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pause after a failed accept (the process is out of files, mostly).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Accepts until dropped; dropping it ends every connection.
pub(super) async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => {
                    let connected = Connected::new(&shared.ledger);
                    connections.spawn(connection(tcp, tls.clone(), connected, shared.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// One connection from its first byte; whatever fails here just closes it.
async fn connection(
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    connected: Connected,
    shared: Arc<Shared>,
) {
    // Without it small events wait for acknowledgements; a failure only costs latency.
    let _ = tcp.set_nodelay(true);
    if !shared.slow_accept.is_zero() {
        tokio::time::sleep(shared.slow_accept).await;
    }
    let mut io = match tls {
        None => Io { transport: Transport::Tcp(tcp), prefix: Bytes::new() },
        // Boxed, as HTTP/2 below: passing needs must not stay in every task.
        Some(acceptor) => match Box::pin(acceptor.accept(tcp)).await {
            Ok(tls) => Io { transport: Transport::Tls(Box::new(tls)), prefix: Bytes::new() },
            Err(_) => return,
        },
    };
    let speaks_h2 = match &io.transport {
        Transport::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        Transport::Tcp(_) if !shared.h2 => false,
        Transport::Tcp(_) if !shared.h1 => true,
        Transport::Tcp(_) => match io.sniff().await {
            Ok(speaks_h2) => speaks_h2,
            Err(_) => return,
        },
    };
    if speaks_h2 {
        Box::pin(h2::serve(io, connected, shared)).await;
    } else if shared.h1 {
        h1::serve(io, connected, shared).await;
    }
}

/// A transport whose first bytes may have been read already.
pub(super) struct Io {
    transport: Transport,
    prefix: Bytes,
}

enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    /// Reads until the bytes are the HTTP/2 preface or cannot become it any more.
    async fn sniff(&mut self) -> io::Result<bool> {
        let mut seen = BytesMut::with_capacity(PREFACE.len());
        while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
            let mut room = (&mut *self).take((PREFACE.len() - seen.len()) as u64);
            if room.read_buf(&mut seen).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let speaks_h2 = seen == PREFACE;
        self.prefix = seen.freeze();
        Ok(speaks_h2)
    }

    /// Makes the close a TCP reset which discards what is not sent yet.
    pub(super) fn reset_on_close(&self) {
        let tcp = match &self.transport {
            Transport::Tcp(tcp) => tcp,
            Transport::Tls(tls) => tls.get_ref().0,
        };
        // Failing leaves an ordinary close, which is the best there is then.
        let _ = tcp.set_zero_linger();
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let take = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..take]);
            self.prefix.advance(take);
            return Poll::Ready(Ok(()));
        }
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Options, Sim};

    #[tokio::test]
    async fn a_connection_task_stays_small() {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        let tcp = TcpStream::connect(sim.addr()).await.unwrap();
        let shared = Arc::clone(&sim.shared);
        let task = connection(tcp, None, Connected::new(&shared.ledger), shared);
        let size = size_of_val(&task);
        assert!(size <= 1200, "{size} bytes; every HTTP/1.1 stream holds one");
    }
}
