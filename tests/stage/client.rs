//! Clients that speak raw HTTP/1.1 or HTTP/2 and see exactly which bytes came and how it ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    H1,
    H2,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As its framing says it should.
    Clean,
    /// Visibly broken off: no last chunk, too short, or RST_STREAM.
    Cut,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
    pub end: End,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection to the gateway.
pub enum Client {
    H1(Box<dyn Transport>, BytesMut),
    H2(h2::client::SendRequest<Bytes>),
}

impl Client {
    /// Connects; with `ca` over TLS, trusting it.
    pub async fn connect(addr: SocketAddr, http: Http, ca: Option<&str>) -> Client {
        let tcp = soon(TcpStream::connect(addr)).await.expect("the gateway");
        tcp.set_nodelay(true).expect("an open socket");
        let socket: Box<dyn Transport> = match ca {
            None => Box::new(tcp),
            Some(ca) => Box::new(tls(tcp, ca, http).await),
        };
        match http {
            Http::H1 => Client::H1(socket, BytesMut::new()),
            Http::H2 => {
                let (sender, connection) = soon(
                    h2::client::Builder::new()
                        .initial_window_size(1 << 20)
                        .initial_connection_window_size(1 << 24)
                        .handshake::<_, Bytes>(socket),
                )
                .await
                .expect("an h2 handshake");
                tokio::spawn(connection);
                Client::H2(sender)
            }
        }
    }

    /// Sends one request; `fields` are `name: value`.
    pub async fn start(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Started<'_> {
        let body = body.into();
        match self {
            Client::H1(socket, ahead) => {
                let mut head = format!("{method} {path} HTTP/1.1\r\nhost: gateway\r\n");
                for (name, value) in fields {
                    head += &format!("{name}: {value}\r\n");
                }
                if !body.is_empty() {
                    head += &format!("content-length: {}\r\n", body.len());
                }
                head += "\r\n";
                let mut raw = head.into_bytes();
                raw.extend_from_slice(&body);
                soon(socket.write_all(&raw)).await.expect("the gateway takes the request");
                Started::H1(socket, ahead, method == "HEAD")
            }
            Client::H2(sender) => {
                let uri = format!("http://gateway{path}");
                let mut request = Request::builder().method(method).uri(uri);
                for (name, value) in fields {
                    request = request.header(*name, *value);
                }
                let mut sender = soon(sender.clone().ready()).await.expect("a ready connection");
                let request = request.body(()).expect("a request");
                let (response, mut stream) =
                    sender.send_request(request, body.is_empty()).expect("a stream");
                if !body.is_empty() {
                    // A gateway that refuses by the head may have ended the stream by now, which
                    // the answer shows.
                    let _ = stream.send_data(body, true);
                }
                Started::H2(Box::new(response), stream)
            }
        }
    }

    /// Sends one request and reads the whole answer.
    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let started = self.start(method, path, fields, body).await;
        soon(started.head()).await.rest().await
    }

    /// Asks for a chat stream.
    pub async fn stream(&mut self, fields: &[(&str, &str)]) -> Answer {
        self.ask("POST", CHAT, fields, STREAM).await
    }
}

pub const CHAT: &str = "/v1/chat/completions";
pub const STREAM: &str = r#"{"model":"tide-1","stream":true,"messages":[]}"#;

/// A request on its way.
pub enum Started<'a> {
    H1(&'a mut Box<dyn Transport>, &'a mut BytesMut, bool),
    H2(Box<h2::client::ResponseFuture>, h2::SendStream<Bytes>),
}

/// An answer whose body is still coming.
pub struct Headed<'a> {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: BytesMut,
    from: From<'a>,
    end: Option<End>,
}

enum From<'a> {
    Chunked(&'a mut Box<dyn Transport>, &'a mut BytesMut),
    Length(&'a mut Box<dyn Transport>, &'a mut BytesMut, usize),
    Close(&'a mut Box<dyn Transport>, &'a mut BytesMut),
    H2(h2::RecvStream, h2::SendStream<Bytes>),
}

impl<'a> Started<'a> {
    pub async fn head(self) -> Headed<'a> {
        match self {
            Started::H1(socket, ahead, is_head) => loop {
                let (status, headers) = h1_head(socket, ahead).await;
                if (100..200).contains(&status) {
                    continue;
                }
                let chunked = headers.contains_key("transfer-encoding");
                let length = headers
                    .get("content-length")
                    .map(|length| length.to_str().expect("ASCII").parse().expect("a number"));
                let from = match length {
                    _ if is_head || status == 204 || status == 304 => {
                        From::Length(socket, ahead, 0)
                    }
                    _ if chunked => From::Chunked(socket, ahead),
                    Some(length) => From::Length(socket, ahead, length),
                    None => From::Close(socket, ahead),
                };
                return Headed { status, headers, body: BytesMut::new(), from, end: None };
            },
            Started::H2(response, stream) => {
                let (head, body) = response.await.expect("a response").into_parts();
                let from = From::H2(body, stream);
                let status = head.status.as_u16();
                Headed { status, headers: head.headers, body: BytesMut::new(), from, end: None }
            }
        }
    }
}

impl Headed<'_> {
    /// Reads more into `body`; false at the end.
    pub async fn more(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        self.end = match &mut self.from {
            From::H2(body, _) => match body.data().await {
                Some(Ok(piece)) => {
                    let _ = body.flow_control().release_capacity(piece.len());
                    self.body.extend_from_slice(&piece);
                    None
                }
                Some(Err(_)) => Some(End::Cut),
                None => Some(End::Clean),
            },
            From::Chunked(socket, ahead) => match h1_chunk(socket, ahead).await {
                Some(chunk) if chunk.is_empty() => Some(End::Clean),
                Some(chunk) => {
                    self.body.extend_from_slice(&chunk);
                    None
                }
                None => Some(End::Cut),
            },
            From::Length(socket, ahead, left) => {
                if *left == 0 {
                    Some(End::Clean)
                } else if !ahead.is_empty() || fill(socket, ahead).await {
                    let piece = ahead.split_to(ahead.len().min(*left));
                    *left -= piece.len();
                    self.body.extend_from_slice(&piece);
                    None
                } else {
                    Some(End::Cut)
                }
            }
            From::Close(socket, ahead) => {
                self.body.extend_from_slice(&ahead.split());
                let mut piece = [0; 4096];
                match socket.read(&mut piece).await {
                    Ok(0) => Some(End::Clean),
                    Ok(n) => {
                        self.body.extend_from_slice(&piece[..n]);
                        None
                    }
                    Err(_) => Some(End::Cut),
                }
            }
        };
        self.end.is_none()
    }

    /// Reads until the body holds `text`.
    pub async fn until(&mut self, text: &str) {
        while memchr::memmem::find(&self.body, text.as_bytes()).is_none() {
            let more = soon(self.more()).await;
            assert!(more, "the answer ended without {text:?}: {:?}", self.body);
        }
    }

    /// Reads to the end, which may take as long as something comes within the patience.
    pub async fn rest(mut self) -> Answer {
        while soon(self.more()).await {}
        let Headed { status, headers, body, end, .. } = self;
        Answer { status, headers, body: body.to_vec(), end: end.expect("read to the end") }
    }

    /// Reads to the end with a pause before each read: a client that lags.
    pub async fn rest_slowly(mut self, pause: Duration) -> Answer {
        loop {
            tokio::time::sleep(pause).await;
            if !soon(self.more()).await {
                break;
            }
        }
        self.rest().await
    }
}

async fn fill(socket: &mut Box<dyn Transport>, ahead: &mut BytesMut) -> bool {
    // A reset is an end like any other here; what came before it has been read.
    matches!(socket.read_buf(ahead).await, Ok(n) if n > 0)
}

async fn h1_line(socket: &mut Box<dyn Transport>, ahead: &mut BytesMut) -> Option<Bytes> {
    loop {
        if let Some(at) = memchr::memmem::find(ahead, b"\r\n") {
            let line = ahead.split_to(at).freeze();
            let _ = ahead.split_to(2);
            return Some(line);
        }
        if !fill(socket, ahead).await {
            return None;
        }
    }
}

async fn h1_head(socket: &mut Box<dyn Transport>, ahead: &mut BytesMut) -> (u16, http::HeaderMap) {
    let line = h1_line(socket, ahead).await.expect("a status line");
    let status = StatusCode::from_bytes(&line[9..12]).expect("a status").as_u16();
    let mut headers = http::HeaderMap::new();
    loop {
        let line = h1_line(socket, ahead).await.expect("a header line");
        if line.is_empty() {
            return (status, headers);
        }
        let colon = memchr::memchr(b':', &line).expect("a colon");
        let name = http::HeaderName::from_bytes(&line[..colon]).expect("a name");
        let value = http::HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).expect("a value");
        headers.append(name, value);
    }
}

/// The next chunk; empty for the last one, `None` if the connection ended.
async fn h1_chunk(socket: &mut Box<dyn Transport>, ahead: &mut BytesMut) -> Option<Bytes> {
    let line = h1_line(socket, ahead).await?;
    let size = std::str::from_utf8(&line).ok().and_then(|l| usize::from_str_radix(l, 16).ok());
    let size = size.unwrap_or_else(|| panic!("no chunk size: {line:?}"));
    while ahead.len() < size + 2 {
        if !fill(socket, ahead).await {
            // What there is of the chunk counts for nothing without its end.
            return None;
        }
    }
    let chunk = ahead.split_to(size).freeze();
    assert_eq!(&ahead.split_to(2)[..], b"\r\n", "a chunk's end");
    Some(chunk)
}

/// A TLS handshake that trusts `ca`, offering the one protocol.
pub async fn tls(
    tcp: TcpStream,
    ca: &str,
    http: Http,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca.as_bytes()).expect("a PEM certificate");
    roots.add(ca).expect("a CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![match http {
        Http::H1 => b"http/1.1".to_vec(),
        Http::H2 => b"h2".to_vec(),
    }];
    let name = ServerName::try_from("localhost").expect("a name");
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp);
    soon(connecting).await.expect("a TLS handshake")
}
