//! From a configured URL to an HTTP connection: resolve, TCP, TLS with ALPN.
//!
//! hyper-rustls does the TLS over our own TCP step, which tries every resolved address (a further
//! one in parallel every `limits::CONNECT_STAGGER`, RFC 8305) and sets the socket options. All of
//! it happens within the upstream's `connect`.
//!
//! Invariant: a failure from here means that no byte of any request was sent.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::Connection;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tower_service::Service;

use crate::config::{HttpVersion, Scheme};
use crate::error::{Failure, Kind};
use crate::limits;
use crate::telemetry::cells::ConnectResult;
use crate::upstream::balance::Endpoint;
use crate::upstream::resolve::Addresses;
use crate::upstream::transport::{TcpIo, Transport};

/// Which HTTP a new connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    H2,
}

/// A fresh connection before its HTTP handshake.
pub(crate) struct Dialed {
    pub(crate) transport: Transport,
    pub(crate) protocol: Protocol,
}

/// Connects to one URL.
pub(crate) struct Dialer {
    tls: Arc<rustls::ClientConfig>,
    addresses: Arc<Addresses>,
    uri: Uri,
    name: String,
    version: HttpVersion,
    connect_max: Duration,
}

impl Dialer {
    pub(crate) fn new(
        endpoint: &Endpoint,
        version: HttpVersion,
        tls: &rustls::ClientConfig,
        connect_max: Duration,
    ) -> Dialer {
        let (url, addresses) = (&endpoint.url, endpoint.addresses.clone());
        let mut tls = tls.clone();
        tls.alpn_protocols = match version {
            HttpVersion::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            HttpVersion::H1 => vec![b"http/1.1".to_vec()],
            HttpVersion::H2 => vec![b"h2".to_vec()],
        };
        let scheme = if url.scheme == Scheme::Https { "https" } else { "http" };
        let name = format!("{scheme}://{}", url.authority);
        let uri = name.parse().expect("the configuration holds only valid authorities");
        Dialer { tls: Arc::new(tls), addresses, uri, name, version, connect_max }
    }

    /// The protocol that needs no asking; `None` when ALPN decides.
    pub(crate) fn settled(&self) -> Option<Protocol> {
        match self.version {
            HttpVersion::H1 => Some(Protocol::H1),
            HttpVersion::H2 => Some(Protocol::H2),
            HttpVersion::Auto if self.uri.scheme_str() == Some("http") => Some(Protocol::H1),
            HttpVersion::Auto => None,
        }
    }

    /// The longest that connecting takes: the upstream's `connect`.
    pub(crate) fn longest(&self) -> Duration {
        self.connect_max
    }

    /// Connects, within the upstream's `connect`.
    ///
    /// # Errors
    /// What failed, for the client and for `tidegate_upstream_connects_total`.
    pub(crate) async fn dial(&self) -> Result<Dialed, (Failure, ConnectResult)> {
        let step = Arc::new(AtomicU8::new(Step::Resolving as u8));
        let tcp = TcpConnector { addresses: self.addresses.clone(), step: step.clone() };
        let connecting = HttpsConnector::from((tcp, self.tls.clone())).call(self.uri.clone());
        let transport = match tokio::time::timeout(self.connect_max, connecting).await {
            Err(_) => return Err(self.late(step.load(Relaxed))),
            Ok(Err(error)) => return Err(self.classify(error.as_ref())),
            Ok(Ok(transport)) => transport,
        };
        let negotiated_h2 = transport.connected().is_negotiated_h2();
        let https = self.uri.scheme_str() == Some("https");
        if https && self.version == HttpVersion::H2 && !negotiated_h2 {
            let text = format!(
                "{}: the server did not agree to HTTP/2 (ALPN); set http = \"auto\" or \"1\"",
                self.name
            );
            return Err((Failure::new(Kind::Tls, text), ConnectResult::Tls));
        }
        let protocol = self.settled().unwrap_or(match negotiated_h2 {
            true => Protocol::H2,
            false => Protocol::H1,
        });
        Ok(Dialed { transport: transport.into(), protocol })
    }

    /// No connection in time: the step that it did not come through is the reason.
    fn late(&self, step: u8) -> (Failure, ConnectResult) {
        let (lacking, kind, result) = match step {
            at if at == Step::Resolving as u8 => {
                ("address", Kind::DnsTimeout, ConnectResult::DnsTimeout)
            }
            at if at == Step::Connecting as u8 => {
                ("connection", Kind::ConnectTimeout, ConnectResult::Timeout)
            }
            _ => ("TLS handshake", Kind::TlsTimeout, ConnectResult::TlsTimeout),
        };
        let text = format!("{}: no {lacking} within connect = {:?}", self.name, self.connect_max);
        (Failure::new(kind, text), result)
    }

    fn classify(&self, error: &(dyn std::error::Error + 'static)) -> (Failure, ConnectResult) {
        let mut cause = Some(error);
        while let Some(at) = cause {
            if let Some(tcp) = at.downcast_ref::<TcpError>() {
                let text = format!("{}: {tcp}", self.name);
                return match tcp {
                    TcpError::Resolve(_) => (Failure::new(Kind::Dns, text), ConnectResult::Dns),
                    TcpError::Refused(_) => {
                        (Failure::new(Kind::Connect, text), ConnectResult::Refused)
                    }
                    TcpError::Io(_) => (Failure::new(Kind::Connect, text), ConnectResult::Other),
                };
            }
            cause = at.source();
        }
        let text = format!("{}: TLS: {error}", self.name);
        (Failure::new(Kind::Tls, text), ConnectResult::Tls)
    }
}

/// Why there is no TCP connection.
#[derive(Debug, thiserror::Error)]
enum TcpError {
    #[error("the name does not resolve: {0}")]
    Resolve(String),
    #[error("no address took the connection: {0}")]
    Refused(io::Error),
    #[error("{0}")]
    Io(io::Error),
}

/// How far a connection has come.
#[derive(Clone, Copy)]
enum Step {
    Resolving,
    Connecting,
    Securing,
}

/// The TCP step under hyper-rustls.
#[derive(Clone)]
struct TcpConnector {
    addresses: Arc<Addresses>,
    step: Arc<AtomicU8>,
}

impl Service<Uri> for TcpConnector {
    type Response = TokioIo<TcpIo>;
    type Error = TcpError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, TcpError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TcpError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let TcpConnector { addresses, step } = self.clone();
        Box::pin(async move {
            let addresses = addresses.next().await;
            let addresses = addresses.map_err(|error| TcpError::Resolve(error.to_string()))?;
            step.store(Step::Connecting as u8, Relaxed);
            let stream = first_to_answer(addresses).await?;
            step.store(Step::Securing as u8, Relaxed);
            configure(&stream).map_err(TcpError::Io)?;
            Ok(TokioIo::new(TcpIo::new(stream)))
        })
    }
}

/// Tries the addresses in order, the next one after `CONNECT_STAGGER` or as soon as one fails;
/// the first connection wins, the other attempts are dropped.
async fn first_to_answer(addresses: Vec<SocketAddr>) -> Result<TcpStream, TcpError> {
    let mut addresses = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = None;
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(TcpStream::connect(address));
        } else if attempts.is_empty() {
            break;
        }
        let next = attempts.join_next();
        let joined = if addresses.len() == 0 {
            next.await
        } else {
            match tokio::time::timeout(limits::CONNECT_STAGGER, next).await {
                Ok(joined) => joined,
                Err(_) => continue,
            }
        };
        match joined {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => failed = Some(error),
            Some(Err(_)) | None => {}
        }
    }
    match failed {
        Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(TcpError::Refused(error))
        }
        Some(error) => Err(TcpError::Io(error)),
        None => Err(TcpError::Resolve("the name has no addresses".into())),
    }
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(limits::TCP_USER_TIMEOUT))?;
    socket.set_keepalive(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port of `address` where nobody listens.
    async fn dead(address: &str) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind(address).await.expect("a port");
        listener.local_addr().expect("an address")
    }

    #[tokio::test]
    async fn every_address_is_tried_until_one_answers() {
        let dead = [dead("127.0.0.1:0").await, dead("[::1]:0").await];
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tokio::net::TcpListener::bind(own).await.expect("a port");
            let alive = listener.local_addr().expect("an address");
            for place in 0..=dead.len() {
                let mut addresses = dead.to_vec();
                addresses.insert(place, alive);
                let stream = first_to_answer(addresses).await.expect("one of them answers");
                assert_eq!(stream.peer_addr().expect("connected"), alive);
            }
        }
        let failed = first_to_answer(dead.to_vec()).await;
        assert!(matches!(failed, Err(TcpError::Refused(_))), "{failed:?}");
        assert!(matches!(first_to_answer(Vec::new()).await, Err(TcpError::Resolve(_))));
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_does_not_hold_up_the_next() {
        // A listener whose queue is full drops what comes: its address answers nobody.
        let socket = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )
        .expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("a port");
        socket.listen(0).expect("listening");
        let silent = socket.local_addr().expect("an address").as_socket().expect("an IP address");
        let _fills = TcpStream::connect(silent).await.expect("the only place");
        let listener = tokio::net::TcpListener::bind(any).await.expect("a port");
        let alive = listener.local_addr().expect("an address");
        let begun = std::time::Instant::now();
        let stream = first_to_answer(vec![silent, alive]).await.expect("the second answers");
        assert_eq!(stream.peer_addr().expect("connected"), alive);
        assert!(begun.elapsed() >= limits::CONNECT_STAGGER, "the first had its head start");
    }
}
