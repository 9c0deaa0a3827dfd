//! Upstreams that are played byte by byte by the test: what the gateway makes of their answers, and
//! which of their connections it uses again.

mod stage;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use stage::client::{CHAT, STREAM, Started};
use stage::{Answer, Client, End, Gateway, Http, scrape, soon};
use tidegate::sim;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A gateway with one worker, and its upstream's listener.
struct Play {
    gateway: Gateway,
    listener: TcpListener,
}

/// One connection of the gateway's to its upstream.
struct Peer(TcpStream);

impl Play {
    async fn begin(upstream: &str) -> Play {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[upstream]]\nname = \"sim\"\nurls = [\"http://127.0.0.1:{port}\"]\n{upstream}\n"
        );
        Play { gateway: Gateway::start(&text, None).await, listener }
    }

    async fn client(&self) -> Client {
        Client::connect(self.gateway.ready.listen[0], Http::H1, None).await
    }

    async fn accept(&self) -> Peer {
        let (socket, _) = soon(self.listener.accept()).await.expect("a connection");
        socket.set_nodelay(true).expect("open");
        Peer(socket)
    }

    /// The answer to a GET for which a new connection is made, on which `raw` is said; and that
    /// connection.
    async fn answer(&self, method: &str, raw: &str) -> (Answer, Peer) {
        let mut client = self.client().await;
        let asked = client.start(method, "/v1/x", &[], "").await;
        let mut peer = self.accept().await;
        peer.request().await;
        peer.says(raw).await;
        (heard(asked).await, peer)
    }

    /// The same for an upstream that closes behind what it says.
    async fn last_answer(&self, raw: &str) -> Answer {
        let mut client = self.client().await;
        let asked = client.start("GET", "/v1/x", &[], "").await;
        let mut peer = self.accept().await;
        peer.request().await;
        peer.says(raw).await;
        peer.0.shutdown().await.expect("open");
        heard(asked).await
    }

    /// Asserts that the next request comes on a new connection.
    async fn makes_a_new_connection(&self, what: &str) {
        let (answer, peer) = self.answer("GET", OK).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{what}");
        // It is used up, too, so that the next request of the test needs a new one again.
        drop(peer);
    }
}

/// The whole answer.
async fn heard(asked: Started<'_>) -> Answer {
    soon(Box::pin(async { asked.head().await.rest().await })).await
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

impl Peer {
    /// A request without a body.
    async fn request(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(self.0.read_u8()).await.expect("a request"));
        }
        String::from_utf8(head).expect("ASCII")
    }

    async fn says(&mut self, raw: &str) {
        soon(self.0.write_all(raw.as_bytes())).await.expect("the gateway reads");
    }

    /// How the gateway closes: with FIN, or else RST.
    async fn is_closed_cleanly(&mut self) -> bool {
        let mut rest = Vec::new();
        soon(self.0.read_to_end(&mut rest)).await.is_ok()
    }

    /// Answers a further request of `client` on this connection.
    async fn serves(&mut self, client: &mut Client, what: &str) {
        let asked = client.start("GET", "/v1/again", &[], "").await;
        let request = self.request().await;
        assert!(request.starts_with("GET /v1/again HTTP/1.1\r\n"), "{what}: {request}");
        self.says(OK).await;
        let answer = heard(asked).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{what}");
    }
}

fn code_and_message(answer: &Answer) -> (String, String) {
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let text = |name: &str| body["error"][name].as_str().expect("a string").to_owned();
    (text("code"), text("message"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_every_framing_pass_and_connections_are_used_again_only_after_clean_ones() {
    let play = Play::begin("").await;
    let big = "x".repeat(300_000);
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{big}", big.len());
    let one_byte_chunks = "1\r\ny\r\n".repeat(50_000);
    let many =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{one_byte_chunks}0\r\n\r\n");
    let ys = "y".repeat(50_000);
    let with = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}");
    let table: &[(&str, String, u16, &str)] = &[
        ("length", with("content-length: 5\r\n", "hello"), 200, "hello"),
        ("nothing", with("content-length: 0\r\n", ""), 200, ""),
        ("long", long, 200, &big),
        ("one-byte chunks", many, 200, &ys),
        ("chunks", with("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), 200, "hello"),
        (
            "extensions and trailers",
            with(
                "transfer-encoding: chunked\r\n",
                "5;a=b;c=\"d\"\r\nhello\r\n0\r\nt: 1\r\nu: 2\r\n\r\n",
            ),
            200,
            "hello",
        ),
        ("100", format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"), 200, "ok"),
        (
            "103 twice",
            format!("{0}{0}{OK}", "HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n"),
            200,
            "ok",
        ),
        ("bare LF", "HTTP/1.1 200 OK\ncontent-length: 2\n\nok".to_owned(), 200, "ok"),
        ("204", "HTTP/1.1 204 No Content\r\n\r\n".to_owned(), 204, ""),
        ("304", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n".to_owned(), 304, ""),
        (
            "HTTP/1.0 that stays",
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok".to_owned(),
            200,
            "ok",
        ),
    ];
    for (what, raw, status, body) in table {
        let (answer, mut peer) = play.answer("GET", raw).await;
        assert_eq!((answer.status, &answer.end), (*status, &End::Clean), "{what}");
        assert_eq!(answer.text(), *body, "{what}");
        assert!(answer.header("link").is_none(), "{what}");
        // The client has its answer when the connection is back in the pool, not before.
        peer.serves(&mut play.client().await, what).await;
    }
    let (answer, mut peer) =
        play.answer("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("9")));
    peer.serves(&mut play.client().await, "HEAD").await;
    drop(peer);

    let table: &[(&str, String, &str)] = &[
        ("close", with("connection: close\r\ncontent-length: 2\r\n", "ok"), "ok"),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned(), "ok"),
        (
            "two lengths",
            with("content-length: 9\r\ntransfer-encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n"),
            "ok",
        ),
        ("bytes behind the length", format!("{OK}HTTP/1.1 200 OK"), "ok"),
        (
            "bytes behind the chunks",
            with("transfer-encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n\r\n"),
            "ok",
        ),
    ];
    for (what, raw, body) in table {
        let (answer, mut peer) = play.answer("GET", raw).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, *body), "{what}");
        assert_eq!(answer.end, End::Clean, "{what}");
        if *what == "two lengths" {
            assert_eq!(answer.header("content-length"), None);
        }
        assert!(peer.is_closed_cleanly().await, "{what}");
        play.makes_a_new_connection(what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_its_connection_ends_is_whole_only_without_other_framing() {
    let play = Play::begin("").await;
    let answer = play.last_answer("HTTP/1.1 200 OK\r\n\r\nall there is").await;
    assert_eq!((answer.text().as_str(), &answer.end), ("all there is", &End::Clean));
    let answer = play.last_answer("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ntoo").await;
    assert_eq!((answer.text().as_str(), &answer.end), ("too", &End::Cut));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntoo\r\n";
    let answer = play.last_answer(chunked).await;
    assert_eq!((answer.text().as_str(), &answer.end), ("too", &End::Cut));
    // Half closed behind a whole answer, and behind a head alone.
    assert_eq!(play.last_answer(OK).await.text(), "ok");
    let events = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let answer = play.last_answer(&format!("{events}transfer-encoding: chunked\r\n\r\n")).await;
    assert_eq!((answer.status, code_and_message(&answer).0.as_str()), (502, "upstream_truncated"));
    let answer = play.last_answer(&format!("{events}\r\n")).await;
    assert_eq!((answer.status, code_and_message(&answer).0.as_str()), (502, "upstream_empty"));
    // An event stream that ends with its connection.
    let answer = play.last_answer(&format!("{events}\r\ndata: 1\n\ndata: [DONE]\n\n")).await;
    assert_eq!((answer.status, &answer.end), (200, &End::Clean), "{}", answer.text());
    let answer = play.last_answer("").await;
    assert_eq!((answer.status, code_and_message(&answer).0.as_str()), (502, "upstream_gone"));
    scrape::until(play.gateway.ready.admin, "none is active", |m| {
        m.sum("tidegate_upstream_connections{upstream=\"sim\",state=\"active\"") == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_answer_is_told() {
    let play = Play::begin("").await;
    let many = "a: b\r\n".repeat(129);
    let large = "b".repeat(70_000);
    let table: &[(&str, &str)] = &[
        ("SSH-2.0-OpenSSH_9.2\r\n", "malformed"),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "malformed"),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "switches"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", "content-length"),
        ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nab", "content-length"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "transfer-encoding"),
        (&format!("HTTP/1.1 200 OK\r\n{many}\r\n"), "128 fields"),
        (&format!("HTTP/1.1 200 OK\r\na: {large}\r\n\r\n"), "65536 bytes"),
    ];
    for (raw, word) in table {
        let (answer, mut peer) = play.answer("GET", raw).await;
        let (code, message) = code_and_message(&answer);
        assert_eq!((answer.status, code.as_str()), (502, "upstream_protocol"), "{message}");
        assert!(message.contains(word), "{word}: {message}");
        assert!(!peer.is_closed_cleanly().await, "{word}: reset");
    }
    let (answer, _) = play
        .answer(
            "GET",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\ngood\r\nno size\r\n",
        )
        .await;
    assert_eq!((answer.text().as_str(), answer.end), ("good", End::Cut), "what came before it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_closed_or_spoke_while_idle_is_not_used() {
    let play = Play::begin("").await;
    for n in 0..50 {
        let (answer, mut peer) = play.answer("GET", OK).await;
        assert_eq!(answer.status, 200);
        match n % 3 {
            0 => drop(peer),
            1 => {
                peer.says("HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n").await;
                play.makes_a_new_connection("after unasked bytes").await;
                // Let go of with FIN; with what it did not read, that is a reset.
                assert!(!peer.is_closed_cleanly().await);
            }
            _ => {
                let at_once = Some(std::time::Duration::ZERO);
                socket2::SockRef::from(&peer.0).set_linger(at_once).expect("open");
                drop(peer);
            }
        }
    }
    let metrics = scrape::metrics(play.gateway.ready.admin).await;
    assert_eq!(metrics.ended("upstream_error"), 0.0, "no request was lost");
}

/// Its server may have begun to work before it closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_written_is_not_sent_again() {
    let play = Play::begin("").await;
    let (_, mut peer) = play.answer("GET", OK).await;
    let mut client = play.client().await;
    let asked = client.start("POST", CHAT, &[], STREAM).await;
    peer.request().await;
    drop(peer);
    let answer = heard(asked).await;
    assert_eq!((answer.status, code_and_message(&answer).0.as_str()), (502, "upstream_gone"));
    let metrics = scrape::metrics(play.gateway.ready.admin).await;
    let dialled = metrics.get("tidegate_upstream_connects_total{upstream=\"sim\",result=\"ok\"}");
    assert_eq!(dialled, 1.0, "another connection was tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_during_a_large_upload_is_passed_on_and_ends_it() {
    let play = Play::begin("").await;
    let (addr, size) = (play.gateway.ready.listen[0], 10_000_000);
    let socket = soon(TcpStream::connect(addr)).await.expect("the gateway");
    let (mut read, mut write) = socket.into_split();
    let uploading = tokio::spawn(async move {
        let head = format!("PUT /v1/files HTTP/1.1\r\nhost: g\r\ncontent-length: {size}\r\n\r\n");
        write.write_all(head.as_bytes()).await?;
        // The gateway closes once the answer is there: how far this comes is no matter.
        write.write_all(&vec![b'x'; size]).await
    });
    let mut peer = play.accept().await;
    let request = peer.request().await;
    assert!(request.contains("\r\ncontent-length: 10000000\r\n"), "{request}");
    let mut some = vec![0; 100_000];
    soon(peer.0.read_exact(&mut some)).await.expect("some of the body");
    peer.says("HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\n\r\ntoo large").await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"too large") {
        answer.push(soon(read.read_u8()).await.expect("the answer"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
    assert!(!peer.is_closed_cleanly().await, "a request that breaks off must not look complete");
    drop(read);
    let _ = soon(uploading).await.expect("no panic");
    play.makes_a_new_connection("after an answer that overtook its request").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_breaks_off_its_upload_takes_the_upstreams_connection_along() {
    let play = Play::begin("").await;
    let mut client = soon(TcpStream::connect(play.gateway.ready.listen[0])).await.expect("up");
    let head = b"PUT /v1/files HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write_all(head).await.expect("written");
    let piece = format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000));
    client.write_all(piece.as_bytes()).await.expect("written");
    let mut peer = play.accept().await;
    let request = peer.request().await;
    assert!(request.contains("\r\ntransfer-encoding: chunked\r\n"), "{request}");
    assert!(!request.contains("content-length"), "{request}");
    // No chunk: the client's own fault, told to it.
    client.write_all(b"nonsense\r\n").await.expect("written");
    let mut answer = vec![0; 12];
    soon(client.read_exact(&mut answer)).await.expect("an answer");
    assert_eq!(answer, b"HTTP/1.1 400");
    assert!(!peer.is_closed_cleanly().await, "a chunked request must not look complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_at_once_is_no_reason_to_dial_for_ever() {
    let play = Play::begin("").await;
    let Play { gateway, listener } = play;
    let closes = tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else { return };
            drop(socket);
        }
    });
    for _ in 0..20 {
        let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
        let answer = heard(client.start("GET", "/v1/x", &[], "").await).await;
        assert_eq!(answer.status, 502, "{}", answer.text());
        let (code, _) = code_and_message(&answer);
        assert!(["upstream_connect", "upstream_gone"].contains(&code.as_str()), "{code}");
    }
    closes.abort();
}

/// TLS has bytes of its own on an idle connection: tickets, and the notice of its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_connections_are_used_again_until_their_servers_close_them() {
    let files = tempfile::tempdir().expect("a folder");
    let certificate = sim::make_certificate(&["127.0.0.1"]).expect("a certificate");
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, &certificate.ca_pem).expect("a file");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"https://127.0.0.1:{port}\"]\nca = {ca:?}\n"
    );
    let gateway = Gateway::start(&text, None).await;
    let acceptor = acceptor(&certificate);
    let accept = async || {
        let (socket, _) = soon(listener.accept()).await.expect("a connection");
        soon(acceptor.accept(socket)).await.expect("a handshake")
    };
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    for n in 0..10 {
        let mut tls = None;
        for _ in 0..3 {
            let asked = client.start("GET", "/v1/x", &[], "").await;
            let peer = match &mut tls {
                Some(tls) => tls,
                none => none.insert(accept().await),
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(soon(peer.read_u8()).await.expect("a request"));
            }
            soon(peer.write_all(OK.as_bytes())).await.expect("the gateway reads");
            soon(peer.flush()).await.expect("the gateway reads");
            let answer = heard(asked).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{n}");
        }
        let mut tls = tls.expect("it was used");
        match n % 3 {
            // The notice and FIN, FIN alone, unasked bytes.
            0 => soon(tls.shutdown()).await.expect("open"),
            1 => drop(tls.into_inner()),
            _ => {
                soon(tls.write_all(b"HTTP/1.1 408 \r\n\r\n")).await.expect("open");
                soon(tls.flush()).await.expect("open");
            }
        }
    }
    let dialled = "tidegate_upstream_connects_total{upstream=\"sim\",result=\"ok\"}";
    assert_eq!(scrape::metrics(gateway.ready.admin).await.get(dialled), 10.0);
}

fn acceptor(certificate: &sim::Certificate) -> tokio_rustls::TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .expect("certificates");
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).expect("a key");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    std::sync::Arc::new(config).into()
}

/// Frames of HTTP/2, as far as this needs them.
async fn frame(peer: &mut Peer) -> (u8, u32) {
    let mut head = [0; 9];
    soon(peer.0.read_exact(&mut head)).await.expect("a frame");
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; len as usize];
    soon(peer.0.read_exact(&mut payload)).await.expect("its payload");
    (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_2_answer_that_breaks_the_protocol_is_told() {
    let play = Play::begin("http = \"2\"").await;
    let mut client = play.client().await;
    let asked = client.start("POST", CHAT, &[], STREAM).await;
    let mut peer = play.accept().await;
    let mut preface = [0; 24];
    soon(peer.0.read_exact(&mut preface)).await.expect("a preface");
    // SETTINGS, empty.
    peer.0.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("open");
    let stream = loop {
        if let (1, stream) = frame(&mut peer).await {
            break u8::try_from(stream).expect("a small number");
        }
    };
    // DATA before any head.
    peer.0.write_all(&[0, 0, 1, 0, 0, 0, 0, 0, stream, b'x']).await.expect("open");
    let answer = heard(asked).await;
    assert_eq!((answer.status, code_and_message(&answer).0.as_str()), (502, "upstream_protocol"));
}
