//! Connections: source addresses, TCP options, TLS.
//!
//! Owns how a connection comes to be and why it does not. Refuses to retry.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::plan::Plan;
use crate::stream::Pace;
use crate::tally::Failure;

/// Receive buffer of a reader that lags on purpose, bytes: the kernel's usual one would take
/// megabytes and hide it from the server.
const LAGGING_BUFFER: u32 = 4096;

/// A connection, in the clear or not.
pub(crate) enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How connections are made.
pub(crate) struct Dialer {
    address: SocketAddr,
    sources: u32,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dialer {
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        let tls = if plan.tls {
            let name = ServerName::try_from(plan.host.clone()).context("no name for TLS")?;
            Some((TlsConnector::from(Arc::new(tls_config(plan)?)), name))
        } else {
            None
        };
        Ok(Self { address: plan.address, sources: plan.sources, tls })
    }

    /// Connects; `number` selects the source address.
    pub(crate) async fn dial(&self, number: u64, pace: Pace) -> Result<Io, Failure> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.map_err(|fault| classify(&fault))?;
        if pace != Pace::Full {
            socket.set_recv_buffer_size(LAGGING_BUFFER).map_err(|fault| classify(&fault))?;
        }
        if self.sources > 0 {
            let source = SocketAddr::new(source(number % u64::from(self.sources)), 0);
            socket.bind(source).map_err(|fault| classify(&fault))?;
        }
        let tcp = socket.connect(self.address).await.map_err(|fault| classify(&fault))?;
        tcp.set_nodelay(true).map_err(|fault| classify(&fault))?;
        let Some((connector, name)) = &self.tls else { return Ok(Io::Tcp(tcp)) };
        let tls = connector.connect(name.clone(), tcp).await.map_err(|_| Failure::Handshake)?;
        Ok(Io::Tls(Box::new(tls)))
    }
}

/// 127.0.1.1 to 127.0.250.250.
fn source(index: u64) -> IpAddr {
    let part = |value: u64| u8::try_from(value % 250 + 1).unwrap_or(1);
    IpAddr::V4(Ipv4Addr::new(127, 0, part(index / 250), part(index)))
}

fn classify(fault: &io::Error) -> Failure {
    // EMFILE and ENFILE have no kind of their own.
    match (fault.kind(), fault.raw_os_error()) {
        (_, Some(23 | 24)) => Failure::Files,
        (io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse, _) => Failure::Ports,
        _ => Failure::Connect,
    }
}

fn tls_config(plan: &Plan) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("no TLS version")?;
    let mut config = if plan.args.insecure {
        let any = Arc::new(AnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &plan.args.ca {
            for certificate in CertificateDer::pem_file_iter(path)
                .with_context(|| format!("cannot read {}", path.display()))?
            {
                roots.add(certificate.context("no certificate")?).context("no CA")?;
            }
            ensure!(!roots.is_empty(), "{} holds no certificate", path.display());
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    let protocol: &[u8] = if plan.args.http == 2 { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

/// Believes every certificate, but still wants it to belong to the peer.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl Io {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Whether the peer has closed its side or reset the connection, though nothing was read.
    pub(crate) async fn is_closed_unread(&self) -> bool {
        let interest = Interest::READABLE | Interest::ERROR;
        match self.tcp().ready(interest).await {
            Ok(ready) => ready.is_read_closed() || ready.is_error(),
            Err(_) => true,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, room),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, room),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
