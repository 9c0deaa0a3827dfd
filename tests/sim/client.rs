//! Small clients for both protocols; they read strictly and fail loudly.

use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};
use tidegate::sim::{Behaviour, Options, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const STREAM: &str = r#"{"model":"m","stream":true,"messages":[]}"#;

/// Everything here is over in far less; a test that hangs says where.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it took too long")
}

pub(crate) async fn start(behaviour: Behaviour) -> Sim {
    let options = Options { defaults: behaviour, ..Options::default() };
    Sim::start("127.0.0.1:0".parse().unwrap(), options).await.unwrap()
}

/// A deterministic stream of `count` events without pauses.
pub(crate) fn quick(count: u32) -> Behaviour {
    Behaviour { clock: false, count, stream: Some(7), ..Behaviour::default() }
}

pub(crate) fn post(path: &str, fields: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("POST {path} HTTP/1.1\r\nhost: sim\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: sim\r\n\r\n").into_bytes()
}

/// How an HTTP/1.1 body ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By its framing; the connection is open still. Trailers, if any, as text.
    Framed(String),
    /// By a FIN; `complete` where no framing said otherwise.
    Closed {
        complete: bool,
    },
    Reset,
    /// A chunk header that is none.
    BadChunk,
}

#[derive(Debug)]
pub(crate) struct Reply {
    /// Status line and fields with their line ends.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) ended: Ended,
    /// Sizes of the chunks.
    pub(crate) chunks: Vec<usize>,
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.head.lines().find_map(|line| line.strip_prefix(&prefix))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// One HTTP/1.1 connection.
pub(crate) struct Client {
    pub(crate) tcp: TcpStream,
    pub(crate) unread: Vec<u8>,
}

/// What reading more brought.
enum More {
    Bytes,
    Fin,
    Reset,
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let tcp = TcpStream::connect(addr).await.unwrap();
        // Tests that cut their requests would wait for delayed acknowledgements.
        tcp.set_nodelay(true).unwrap();
        Self { tcp, unread: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        soon(self.tcp.write_all(bytes)).await.unwrap();
    }

    pub(crate) async fn ask(&mut self, request: &[u8]) -> Reply {
        self.send(request).await;
        soon(self.reply()).await
    }

    async fn more(&mut self) -> More {
        match self.tcp.read_buf(&mut self.unread).await {
            Ok(0) => More::Fin,
            Ok(_) => More::Bytes,
            Err(fault) if fault.kind() == ErrorKind::ConnectionReset => More::Reset,
            Err(fault) => panic!("{fault}"),
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        self.unread.drain(..length).collect()
    }

    /// Reads up to and with `mark`.
    pub(crate) async fn until(&mut self, mark: &[u8]) -> Result<Vec<u8>, Ended> {
        loop {
            if let Some(at) = self.unread.windows(mark.len()).position(|w| w == mark) {
                return Ok(self.take(at + mark.len()));
            }
            match soon(self.more()).await {
                More::Bytes => {}
                More::Fin => return Err(Ended::Closed { complete: false }),
                More::Reset => return Err(Ended::Reset),
            }
        }
    }

    /// Reads one head (informational ones too are heads) without its body.
    pub(crate) async fn head(&mut self) -> Result<String, Ended> {
        Ok(String::from_utf8(self.until(b"\r\n\r\n").await?).unwrap())
    }

    /// Reads one whole reply, however it ends.
    pub(crate) async fn reply(&mut self) -> Reply {
        let mut reply =
            Reply { head: String::new(), body: Vec::new(), ended: Ended::Reset, chunks: vec![] };
        match self.head().await {
            Ok(head) => reply.head = head,
            Err(ended) => return Reply { ended, ..reply },
        }
        if reply.field("transfer-encoding") == Some("chunked") {
            reply.ended = match self.chunks(&mut reply.body, &mut reply.chunks).await {
                Ok(trailers) => Ended::Framed(trailers),
                Err(ended) => ended,
            };
        } else {
            let length = reply.field("content-length").map(|length| length.parse().unwrap());
            let length = length.or((reply.status() == 204).then_some(0));
            reply.ended = self.raw(length, &mut reply.body).await;
        }
        reply
    }

    async fn raw(&mut self, length: Option<usize>, body: &mut Vec<u8>) -> Ended {
        loop {
            if length.is_some_and(|length| self.unread.len() >= length) {
                body.extend(self.take(length.unwrap()));
                return Ended::Framed(String::new());
            }
            let more = soon(self.more()).await;
            if matches!(more, More::Bytes) {
                continue;
            }
            body.append(&mut self.unread);
            return match more {
                More::Reset => Ended::Reset,
                _ => Ended::Closed { complete: length.is_none() },
            };
        }
    }

    async fn chunks(
        &mut self,
        body: &mut Vec<u8>,
        sizes: &mut Vec<usize>,
    ) -> Result<String, Ended> {
        loop {
            let line = String::from_utf8(self.until(b"\r\n").await?).unwrap();
            let Ok(size) = usize::from_str_radix(line.trim_end(), 16) else {
                return Err(Ended::BadChunk);
            };
            if size == 0 {
                let mut trailers = String::new();
                loop {
                    let line = String::from_utf8(self.until(b"\r\n").await?).unwrap();
                    if line == "\r\n" {
                        return Ok(trailers);
                    }
                    trailers.push_str(&line);
                }
            }
            while self.unread.len() < size + 2 {
                match soon(self.more()).await {
                    More::Bytes => {}
                    More::Fin => return Err(Ended::Closed { complete: false }),
                    More::Reset => return Err(Ended::Reset),
                }
            }
            body.extend(self.take(size));
            assert_eq!(self.take(2), b"\r\n");
            sizes.push(size);
        }
    }
}

/// One request on a connection of its own.
pub(crate) async fn ask(sim: &Sim, request: &[u8]) -> Reply {
    Client::connect(sim.addr()).await.ask(request).await
}

/// How an HTTP/2 body ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended2 {
    /// END_STREAM, with these trailers.
    Clean(Option<HeaderMap>),
    /// RST_STREAM by the peer.
    Reset(h2::Reason),
    /// The connection is gone.
    Connection,
    /// The frames contradict the head (h2 checks the content-length).
    Broken,
}

#[derive(Debug)]
pub(crate) struct Reply2 {
    /// `None` if the stream ended before its head.
    pub(crate) status: Option<StatusCode>,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) ended: Ended2,
    /// Sizes of the DATA frames.
    pub(crate) frames: Vec<usize>,
}

/// Connects with prior knowledge and drives the connection.
pub(crate) async fn connect2(addr: SocketAddr) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(addr).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(8 << 20).initial_connection_window_size(64 << 20);
    let (send, connection) = soon(builder.handshake(tcp)).await.unwrap();
    tokio::spawn(connection);
    send
}

pub(crate) fn post2(path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("http://sim{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn ended(fault: &h2::Error) -> Ended2 {
    match fault.reason() {
        Some(reason) if fault.is_remote() && fault.is_reset() => Ended2::Reset(reason),
        _ if fault.is_io() => Ended2::Connection,
        _ if fault.is_library() => Ended2::Broken,
        _ => panic!("{fault:?}"),
    }
}

pub(crate) async fn ask2(send: &SendRequest<Bytes>, request: Request<()>, body: &str) -> Reply2 {
    let mut send = soon(send.clone().ready()).await.unwrap();
    let (response, mut stream) = send.send_request(request, false).unwrap();
    stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
    soon(reply2(response)).await
}

async fn reply2(response: h2::client::ResponseFuture) -> Reply2 {
    let mut reply = Reply2 {
        status: None,
        fields: HeaderMap::new(),
        body: Vec::new(),
        ended: Ended2::Connection,
        frames: Vec::new(),
    };
    let mut body = match response.await {
        Ok(response) => {
            reply.status = Some(response.status());
            reply.fields = response.headers().clone();
            response.into_body()
        }
        Err(fault) => return Reply2 { ended: ended(&fault), ..reply },
    };
    loop {
        match poll_fn(|cx| body.poll_data(cx)).await {
            Some(Ok(data)) => {
                body.flow_control().release_capacity(data.len()).unwrap();
                reply.frames.push(data.len());
                reply.body.extend_from_slice(&data);
            }
            Some(Err(fault)) => return Reply2 { ended: ended(&fault), ..reply },
            None => break,
        }
    }
    let trailers = body.trailers().await;
    reply.ended = match trailers {
        Ok(trailers) => Ended2::Clean(trailers),
        Err(fault) => ended(&fault),
    };
    reply
}
