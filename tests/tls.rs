//! TLS clients whose records come in every way that a network and a client can bring them, and
//! how their connections end.

mod stage;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, SupportedProtocolVersion};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use stage::client::{CHAT, STREAM};
use stage::{Answer, Client, End, Http, PATIENCE, Setup, Stage, soon};
use tidegate::sim::{Behaviour, Kind, expected_body};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
/// Events without end, as far as a test is concerned.
const ENDLESS: &str = "10000000";
/// The type of a record with an alert in it, as a client without keys sees it.
const ALERT: u8 = 21;
/// Its level and what it says (RFC 8446, 6).
const FATAL: u8 = 2;

async fn stage() -> Stage {
    Stage::start(Setup { client_tls: true, ..Setup::default() }).await
}

fn config(stage: &Stage, version: &'static SupportedProtocolVersion, alpn: &str) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let ca = stage.certificate.ca_pem.as_bytes();
    let ca = rustls_pki_types::CertificateDer::from_pem_slice(ca).expect("a PEM certificate");
    roots.add(ca).expect("a CA");
    config_with(roots, version, alpn)
}

fn config_with(
    roots: rustls::RootCertStore,
    version: &'static SupportedProtocolVersion,
    alpn: &str,
) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

/// A client's end whose every write is the test's.
struct Wire {
    tcp: TcpStream,
    tls: ClientConnection,
    /// Decrypted and not looked at yet.
    plain: Vec<u8>,
}

/// How the gateway's side ended.
#[derive(Debug, PartialEq)]
enum Over {
    /// close_notify, then FIN.
    Closed,
    /// FIN alone, or RST.
    Cut,
    /// An alert, or what is no TLS.
    Failed(rustls::Error),
}

impl Wire {
    /// Connects, `step` bytes a write.
    async fn connect(stage: &Stage, config: ClientConfig, step: usize) -> Wire {
        let mut wire = Wire::begin(stage, config).await;
        while wire.tls.is_handshaking() {
            wire.send(step).await;
            if wire.tls.is_handshaking() {
                assert_eq!(soon(wire.receive()).await, None, "during the handshake");
            }
        }
        wire.send(step).await;
        wire
    }

    async fn begin(stage: &Stage, config: ClientConfig) -> Wire {
        let tcp = soon(TcpStream::connect(stage.gateway.ready.listen[0])).await.expect("connected");
        tcp.set_nodelay(true).expect("an open socket");
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = ClientConnection::new(Arc::new(config), name).expect("a client");
        Wire { tcp, tls, plain: Vec::new() }
    }

    /// What TLS has to send, in records.
    fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).expect("a Vec takes all");
        }
        records
    }

    /// `plain` in a record of its own.
    fn sealed(&mut self, plain: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(plain).expect("buffered");
        self.records()
    }

    async fn raw(&mut self, bytes: &[u8]) {
        soon(self.tcp.write_all(bytes)).await.expect("the gateway takes it");
    }

    /// Sends what TLS has to send, `step` bytes a write.
    async fn send(&mut self, step: usize) {
        let records = self.records();
        for piece in records.chunks(step) {
            self.raw(piece).await;
        }
    }

    /// Reads once; how it ended, if it did.
    async fn receive(&mut self) -> Option<Over> {
        let mut piece = [0; 4096];
        let read = match self.tcp.read(&mut piece).await {
            Ok(read) => read,
            Err(_) => return Some(Over::Cut),
        };
        let mut bytes = &piece[..read];
        loop {
            if self.tls.read_tls(&mut bytes).is_err() {
                return Some(Over::Cut);
            }
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => return Some(Over::Failed(error)),
            };
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut plain).expect("it is there");
            self.plain.extend_from_slice(&plain);
            if state.peer_has_closed() {
                return Some(Over::Closed);
            }
            if bytes.is_empty() {
                return (read == 0).then_some(Over::Cut);
            }
        }
    }

    /// Reads until `text` has come; what came up to its end.
    async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = memchr::memmem::find(&self.plain, text.as_bytes()) {
                let rest = self.plain.split_off(at + text.len());
                let came = std::mem::replace(&mut self.plain, rest);
                return String::from_utf8(came).expect("text");
            }
            let over = soon(self.receive()).await;
            assert_eq!(over, None, "{:?}", String::from_utf8_lossy(&self.plain));
        }
    }

    /// Reads to the end.
    async fn over(&mut self) -> Over {
        loop {
            if let Some(over) = soon(self.receive()).await {
                return over;
            }
        }
    }
}

fn ask(count: &str) -> String {
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {}\r\nsim-count: {count}\r\n\
         \r\n{STREAM}",
        STREAM.len()
    )
}

const MODELS: &str = "GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n";

/// Another client is served: whatever came before it has been dealt with, or lies apart.
async fn others_are_served(stage: &Stage) {
    let answer = stage.client(Http::H1).await.ask("GET", "/v1/models", &[], "").await;
    assert_eq!((answer.status, answer.end), (200, End::Clean));
}

async fn nobody_is_left(stage: &Stage) {
    stage
        .until("no connection", |m| m.sum("tidegate_connections_live{") == 0.0 && m.live() == 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_may_come_byte_by_byte() {
    let stage = stage().await;
    for version in VERSIONS {
        let mut wire = Wire::connect(&stage, config(&stage, version, "http/1.1"), 1).await;
        for _ in 0..2 {
            let records = wire.sealed(ask("3").as_bytes());
            for byte in records {
                wire.raw(&[byte]).await;
            }
            let answer = wire.until("0\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{version:?} {answer}");
            assert!(answer.contains("data: [DONE]"), "{version:?} {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_records_may_come_at_once_and_one_in_two_halves() {
    let stage = stage().await;
    for version in VERSIONS {
        let mut wire = Wire::connect(&stage, config(&stage, version, "http/1.1"), 9999).await;
        // Two requests, one behind the other, in records of ten bytes, all in one segment but the
        // last one's second half.
        let requests = MODELS.repeat(2);
        let pieces: Vec<_> = requests.as_bytes().chunks(10).collect();
        let mut records: Vec<u8> = pieces.iter().flat_map(|piece| wire.sealed(piece)).collect();
        let half = records.split_off(records.len() - 9);
        wire.raw(&records).await;
        wire.until("HTTP/1.1 200").await;
        // The first half has been read by now: its segment brought the first request as well.
        others_are_served(&stage).await;
        wire.raw(&half).await;
        wire.until("HTTP/1.1 200").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_come_with_the_end_of_the_handshake() {
    let stage = stage().await;
    for version in VERSIONS {
        let mut wire = Wire::begin(&stage, config(&stage, version, "http/1.1")).await;
        let mut records = wire.records();
        while wire.tls.is_handshaking() {
            wire.raw(&records).await;
            assert_eq!(soon(wire.receive()).await, None);
            records = wire.records();
        }
        records.extend(wire.sealed(ask("1").as_bytes()));
        wire.raw(&records).await;
        wire.until("data: [DONE]").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_close_notify_is_its_end_and_is_answered() {
    let stage = stage().await;
    for version in VERSIONS {
        // Between requests: the answer has wholly come.
        let mut wire = Wire::connect(&stage, config(&stage, version, "http/1.1"), 9999).await;
        let request = wire.sealed(MODELS.as_bytes());
        wire.raw(&request).await;
        wire.until("\"list\"}").await;
        wire.tls.send_close_notify();
        wire.send(9999).await;
        assert_eq!(wire.over().await, Over::Closed, "{version:?}");
        // While its answer streams: it has left.
        let cancelled = stage.sim.counts().cancelled;
        let mut wire = Wire::connect(&stage, config(&stage, version, "http/1.1"), 9999).await;
        let request = wire.sealed(ask(ENDLESS).as_bytes());
        wire.raw(&request).await;
        wire.until("data: ").await;
        wire.tls.send_close_notify();
        wire.send(9999).await;
        let gone = stage.sim.wait_for(|c| c.cancelled == cancelled + 1, PATIENCE).await;
        gone.unwrap_or_else(|counts| panic!("{version:?}: {counts:?}"));
        wire.over().await;
    }
    nobody_is_left(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_without_close_notify_is_an_end_as_well() {
    let stage = stage().await;
    for version in VERSIONS {
        let cancelled = stage.sim.counts().cancelled;
        let mut wire = Wire::connect(&stage, config(&stage, version, "http/1.1"), 9999).await;
        let request = wire.sealed(ask(ENDLESS).as_bytes());
        wire.raw(&request).await;
        wire.until("data: ").await;
        soon(wire.tcp.shutdown()).await.expect("an open socket");
        let gone = stage.sim.wait_for(|c| c.cancelled == cancelled + 1, PATIENCE).await;
        gone.unwrap_or_else(|counts| panic!("{version:?}: {counts:?}"));
        // In the middle of a request's body: the upstream must not take it for the whole.
        let mut wire = Wire::connect(&stage, config(&stage, version, "http/1.1"), 9999).await;
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: 100\r\n\r\nhalf");
        let request = wire.sealed(head.as_bytes());
        wire.raw(&request).await;
        soon(wire.tcp.shutdown()).await.expect("an open socket");
        wire.over().await;
    }
    nobody_is_left(&stage).await;
    assert_eq!(stage.sim.counts().requests, 2, "no half request went upstream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_trust_the_certificate_is_gone() {
    let stage = stage().await;
    for version in VERSIONS {
        let stranger = config_with(rustls::RootCertStore::empty(), version, "http/1.1");
        let mut wire = Wire::begin(&stage, stranger).await;
        wire.send(9999).await;
        assert!(matches!(wire.over().await, Over::Failed(_)), "{version:?}");
        // The alert.
        wire.send(9999).await;
        assert_eq!(soon(wire.tcp.read_to_end(&mut Vec::new())).await.ok(), Some(0), "{version:?}");
    }
    nobody_is_left(&stage).await;
    others_are_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_tls_is_told_so_and_ends() {
    let stage = stage().await;
    for garbage in [MODELS.as_bytes(), &[0; 64], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]] {
        let mut tcp = TcpStream::connect(stage.gateway.ready.listen[0]).await.expect("connected");
        soon(tcp.write_all(garbage)).await.expect("it is taken");
        let mut told = Vec::new();
        let _ = soon(tcp.read_to_end(&mut told)).await;
        assert_eq!((told[0], told[5], told.len()), (ALERT, FATAL, 7), "{garbage:?}");
    }
    nobody_is_left(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_record_ends_its_stream_with_an_alert() {
    let stage = stage().await;
    for version in VERSIONS {
        let cancelled = stage.sim.counts().cancelled;
        let mut wire = Wire::connect(&stage, config(&stage, version, "http/1.1"), 9999).await;
        // Calm: an alert that a full socket does not take at once is not waited for.
        let calm = ask(ENDLESS).replace("sim-count", "sim-interval: 50ms\r\nsim-count");
        let request = wire.sealed(calm.as_bytes());
        wire.raw(&request).await;
        wire.until("data: ").await;
        let mut record = wire.sealed(b"more");
        *record.last_mut().expect("a byte") ^= 1;
        wire.raw(&record).await;
        let over = wire.over().await;
        let told = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
        assert_eq!(over, Over::Failed(told), "{version:?}");
        let gone = stage.sim.wait_for(|c| c.cancelled == cancelled + 1, PATIENCE).await;
        gone.unwrap_or_else(|counts| panic!("{version:?}: {counts:?}"));
    }
    nobody_is_left(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_may_be_renewed_while_an_answer_streams() {
    let stage = stage().await;
    let mut wire = Wire::connect(&stage, config(&stage, &TLS13, "http/1.1"), 9999).await;
    let request = wire.sealed(ask(ENDLESS).as_bytes());
    wire.raw(&request).await;
    for _ in 0..3 {
        wire.until("data: ").await;
        // Asks the gateway to renew its own as well; byte by byte, so that it comes in parts.
        wire.tls.refresh_traffic_keys().expect("TLS 1.3");
        wire.send(1).await;
    }
    // Whatever comes now comes under new keys, and further requests are still understood.
    let request = wire.sealed(MODELS.as_bytes());
    wire.raw(&request).await;
    for _ in 0..20 {
        wire.until("data: ").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed_without_early_data_and_alpn_decides() {
    let stage = stage().await;
    for version in VERSIONS {
        let config = config(&stage, version, "http/1.1");
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut wire = Wire::begin(&stage, config.clone()).await;
            assert!(wire.tls.early_data().is_none(), "{version:?}");
            while wire.tls.is_handshaking() {
                wire.send(9999).await;
                assert_eq!(soon(wire.receive()).await, None);
            }
            let request = wire.sealed(MODELS.as_bytes());
            wire.raw(&request).await;
            wire.until("\r\n\r\n").await;
            assert_eq!(wire.tls.handshake_kind(), Some(kind), "{version:?}");
            assert_eq!(wire.tls.alpn_protocol(), Some(&b"http/1.1"[..]));
        }
    }
    let answer = stage.client(Http::H2).await.stream(&[("sim-count", "3")]).await;
    assert_eq!((answer.status, answer.end), (200, End::Clean));
    let mut wire = Wire::begin(&stage, config(&stage, &TLS13, "spdy/3")).await;
    wire.send(9999).await;
    let told = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    assert_eq!(wire.over().await, Over::Failed(told));
}

/// As [`stage::client::Client::connect`] over TLS, with a receive buffer that takes little.
async fn small(stage: &Stage, http: Http) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("a small buffer");
    let tcp = soon(socket.connect(stage.gateway.ready.listen[0])).await.expect("the gateway");
    let tls = stage::client::tls(tcp, &stage.certificate.ca_pem, http).await;
    match http {
        Http::H1 => Client::H1(Box::new(tls), BytesMut::new()),
        Http::H2 => {
            let (sender, connection) = soon(h2::client::handshake(tls)).await.expect("HTTP/2");
            tokio::spawn(connection);
            Client::H2(sender)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_go_up_whole() {
    let stage = stage().await;
    let body: Vec<u8> = (0..10_000_000u32).map(|n| (n ^ (n >> 7)) as u8).collect();
    let sum = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for http in [Http::H1, Http::H2] {
        stage.sim.reset();
        let mut client = stage.client(http).await;
        let answer: Answer = client.ask("POST", "/v1/files", &[], body.clone()).await;
        assert_eq!(answer.end, End::Clean, "{http:?}");
        let seen = stage.sim.requests();
        let arrived = (seen[0].body_length, seen[0].body_fnv1a64, seen[0].body_complete);
        assert_eq!(arrived, (10_000_000, sum, true), "{http:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_come_down_whole_to_a_client_that_lags_and_wait_upstream_until_then() {
    let behaviour = Behaviour { count: 160, size: 64 * 1024, ..Behaviour::default() };
    let sent = expected_body(&behaviour, Kind::Chat, 1, "tide-1", false);
    assert!(sent.len() > 10_000_000, "{}", sent.len());
    let stage = stage().await;
    for http in [Http::H1, Http::H2] {
        let mut client = small(&stage, http).await;
        let fields = [
            ("sim-count", "160"),
            ("sim-size", "64KiB"),
            ("sim-clock", "off"),
            ("sim-stream", "1"),
        ];
        let read =
            |m: &stage::Metrics| m.get("tidegate_bytes_total{direction=\"in\",side=\"upstream\"}");
        let before = read(&stage.metrics().await);
        let started = client.start("POST", CHAT, &fields, STREAM).await;
        let headed = soon(started.head()).await;
        stage.until("it lags", |m| m.get("tidegate_stalled_streams") == 1.0).await;
        // The client's and the gateway's sockets, what is encrypted, and the backlog.
        let ahead = read(&stage.metrics().await) - before;
        assert!(ahead < 6.0 * 1024.0 * 1024.0, "{http:?}: {ahead} bytes are held");
        let answer = headed.rest_slowly(Duration::from_millis(1)).await;
        assert_eq!((answer.status, answer.end), (200, End::Clean), "{http:?}");
        assert!(answer.body == sent, "{http:?}: {} of {} bytes", answer.body.len(), sent.len());
    }
}
