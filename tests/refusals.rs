//! What a gateway must refuse though its HTTP library lets it through: raw bytes over real
//! sockets, each refusal answered, counted, never passed on, and survived.

mod stage;

use bytes::BytesMut;
use serde_json::Value;
use stage::{Answer, Client, End, Http, Setup, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A refusal as every one looks: JSON, our request id, and one count under `limit`.
async fn refused(stage: &Stage, answer: &Answer, status: u16, code: &str, limit: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("tidegate-request-id").is_some_and(|id| !id.is_empty()));
    let body: Value = serde_json::from_slice(&answer.body).expect("a JSON body");
    assert_eq!(body["error"]["code"], code, "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|text| text.len() > 10), "{body}");
    let metrics = stage.metrics().await;
    assert_eq!(metrics.get(&format!("tidegate_rejections_total{{limit=\"{limit}\"}}")), 1.0);
    assert_eq!(metrics.sum("tidegate_rejections_total"), 1.0);
    assert_eq!(metrics.live(), 0.0);
}

async fn alive(stage: &Stage) {
    let answer = stage.client(Http::H1).await.ask("GET", "/v1/models", &[], "").await;
    assert_eq!((answer.status, answer.end), (200, End::Clean));
}

/// Sends `raw` and expects that refusal, nothing upstream, and a gateway that lives on.
async fn refuses(raw: &[u8], status: u16, code: &str, limit: &str, closes: bool) {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    client.raw(raw).await;
    let answer = client.answer().await;
    refused(&stage, &answer, status, code, limit).await;
    if closes {
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(client.remains().await, b"", "nothing after the refusal");
    }
    assert_eq!(stage.sim.counts().requests, 0, "nothing went upstream");
    assert_eq!(stage.sim.counts().malformed, 0, "nothing went upstream");
    alive(&stage).await;
}

macro_rules! refusals {
    ($($name:ident: $raw:expr => $status:literal $code:literal $limit:literal $closes:literal;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            refuses($raw.as_ref(), $status, $code, $limit, $closes).await;
        })+
    };
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /v1/x HTTP/1.1\r\nhost: gateway\r\n{fields}\r\n{body}")
}

refusals! {
    missing_host: "GET /v1/models HTTP/1.1\r\n\r\n" => 400 "bad_request" "bad_request" true;
    empty_host: "GET /v1/models HTTP/1.1\r\nhost:\r\n\r\n" => 400 "bad_request" "bad_request" true;
    two_hosts: "GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    the_same_host_twice: "GET /v1/models HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    host_with_user_information: "GET /v1/models HTTP/1.1\r\nhost: me@gateway\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    host_with_a_space: "GET /v1/models HTTP/1.1\r\nhost: gate way\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    host_with_a_path: "GET /v1/models HTTP/1.1\r\nhost: gateway/v1\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    absolute_form_that_contradicts_host:
        "GET http://other.example/v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    duplicate_transfer_encoding:
        post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")
        => 400 "bad_request" "bad_request" true;
    gzip_chunked: post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n")
        => 400 "bad_request" "bad_request" true;
    transfer_encoding_with_content_length:
        post("transfer-encoding: chunked\r\ncontent-length: 5\r\n", "0\r\n\r\n")
        => 400 "bad_request" "bad_request" true;
    content_length_with_transfer_encoding:
        post("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")
        => 400 "bad_request" "bad_request" true;
    two_lengths: post("content-length: 5\r\ncontent-length: 6\r\n", "hello!")
        => 400 "bad_request" "bad_request" true;
    bare_lf_head: "GET /v1/models HTTP/1.1\nhost: gateway\n\n"
        => 400 "bad_request" "bad_request" true;
    bare_lf_in_one_line: "GET /v1/models HTTP/1.1\r\nhost: gateway\nx: y\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    fragment_in_the_target: "GET /v1/models#a HTTP/1.1\r\nhost: gateway\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    folded_line: "GET /v1/models HTTP/1.1\r\nhost: gateway\r\nx: y\r\n z\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    space_before_the_colon: "GET /v1/models HTTP/1.1\r\nhost : gateway\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    bad_chunk_at_once: post("transfer-encoding: chunked\r\n", "ZZ\r\nhello\r\n0\r\n\r\n")
        => 400 "bad_request" "body" true;
    bad_chunk_after_a_good_one: post("transfer-encoding: chunked\r\n", "5\r\nhello\r\n-1\r\n")
        => 400 "bad_request" "body" true;
    body_longer_than_its_chunk: post("transfer-encoding: chunked\r\n", "4\r\nhello\r\n0\r\n\r\n")
        => 400 "bad_request" "body" true;
    no_http_at_all: "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n" => 400 "bad_request" "bad_request" true;
    unknown_version: "GET /v1/models HTTP/3.7\r\nhost: gateway\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    space_in_the_target: "GET /v1/mod els HTTP/1.1\r\nhost: gateway\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    connect: "CONNECT other.example:443 HTTP/1.1\r\nhost: other.example:443\r\n\r\n"
        => 405 "method_not_allowed" "bad_request" false;
    trace: "TRACE /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n"
        => 405 "method_not_allowed" "bad_request" false;
    websocket: "GET /v1/realtime HTTP/1.1\r\nhost: gateway\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        => 501 "upgrade_not_supported" "bad_request" false;
    dot_segments: "GET /v1/../admin HTTP/1.1\r\nhost: gateway\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    encoded_dot_segments: "GET /v1/%2E%2e%2fadmin HTTP/1.1\r\nhost: gateway\r\n\r\n"
        => 400 "bad_request" "bad_request" true;
    large_head: format!("GET /v1/models HTTP/1.1\r\nhost: gateway\r\nx: {}\r\n\r\n", "y".repeat(66_000))
        => 431 "head_too_large" "head" true;
    large_target: format!("GET /v1/{} HTTP/1.1\r\nhost: gateway\r\n\r\n", "y".repeat(66_000))
        => 431 "head_too_large" "head" true;
    many_fields: format!("GET /v1/models HTTP/1.1\r\nhost: gateway\r\n{}\r\n", "a: b\r\n".repeat(5_000))
        => 431 "head_too_large" "head" true;
    no_route: "GET /v2/models HTTP/1.1\r\nhost: gateway\r\n\r\n"
        => 404 "no_route" "no_route" false;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_chunks_late_in_a_large_body_end_it_on_both_sides() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let mut client = stage.client(Http::H1).await;
        let chunk = format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000));
        client.raw(post("transfer-encoding: chunked\r\n", &chunk).as_bytes()).await;
        let begun = |c: &tidegate::sim::Counts| c.requests == 1;
        stage.sim.wait_for(begun, stage::PATIENCE).await.expect("the body streams upstream");
        client.raw(b"ZZ\r\n").await;
        let answer = client.answer().await;
        refused(&stage, &answer, 400, "bad_request", "body").await;
        assert_eq!(client.remains().await, b"");
        stage.sim.wait_for(|c| c.live == 0, stage::PATIENCE).await.expect("given up upstream");
        assert_eq!(stage.sim.counts().completed, 0, "never a whole request upstream");
        assert!(stage.sim.requests().iter().all(|seen| !seen.body_complete));
        alive(&stage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_is_never_a_whole_one_upstream() {
    let stage = Stage::start(Setup::default()).await;
    for body in [10, 100_000] {
        let mut client = stage.client(Http::H1).await;
        let fields = format!("content-length: {}\r\n", body + 1);
        client.raw(post(&fields, &"x".repeat(body)).as_bytes()).await;
        drop(client);
    }
    let both = |m: &stage::Metrics| m.sum("tidegate_streams_ended_total") == 2.0;
    let metrics = stage.until("both ended", both).await;
    assert_eq!(metrics.ended("internal") + metrics.ended("completed"), 0.0);
    stage.sim.wait_for(|c| c.live == 0, stage::PATIENCE).await.expect("given up upstream");
    assert_eq!(stage.sim.counts().completed, 0);
    alive(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absolute_target_that_agrees_passes_and_routes_by_configuration_only() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    client
        .raw(b"GET http://other.example/v1/echo?a=b HTTP/1.1\r\nhost: OTHER.example:80\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = &stage.sim.requests()[0];
    assert_eq!(seen.path_and_query, "/v1/echo?a=b");
    let upstream = format!("localhost:{}", stage.sim.addr().port());
    assert_eq!(seen.header("host"), Some(upstream.as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hop_by_hop_headers_stay_behind_and_nominate_none_of_ours() {
    let files = tempfile::tempdir().expect("a folder");
    let key = files.path().join("key");
    std::fs::write(&key, "sk-upstream\n").expect("a file");
    for upstream_h2 in [false, true] {
        let upstream =
            format!("credential = {{ file = {key:?} }}\nheaders = {{ x-added = \"1\" }}");
        let stage = Stage::start(Setup { upstream, upstream_h2, ..Setup::default() }).await;
        let mut client = stage.client(Http::H1).await;
        client
            .raw(
                b"GET /v1/echo HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer theirs\r\n\
                connection: keep-alive, authorization, x-secret, x-added, host\r\nconnection: x-more\r\n\
                x-secret: 1\r\nx-more: 1\r\nx-added: 2\r\nkeep-alive: timeout=5\r\nte: trailers\r\n\
                proxy-authorization: Basic eDp5\r\nproxy-connection: keep-alive\r\n\
                upgrade: h2c\r\ntrailer: x-t\r\nx-kept: yes\r\n\r\n",
            )
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = &stage.sim.requests()[0];
        assert_eq!(seen.header("authorization"), Some("Bearer sk-upstream"));
        assert_eq!(seen.header("x-added"), Some("1"));
        assert_eq!(seen.header("x-kept"), Some("yes"));
        let gone = [
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "upgrade",
            "proxy-authorization",
            "proxy-connection",
            "x-secret",
            "x-more",
            "transfer-encoding",
        ];
        for name in gone {
            assert_eq!(seen.header(name), None, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_handed_on_not_followed() {
    let stage = Stage::start(Setup::default()).await;
    for status in [301, 302, 303, 307, 308] {
        let fields = [("sim-status", status.to_string())];
        let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
        let answer = stage.client(Http::H1).await.ask("GET", "/v1/x", &fields, "").await;
        assert_eq!(answer.status, status);
    }
    assert_eq!(stage.sim.counts().requests, 5);
}

const GOOD: &str = "GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_after_a_good_request_leaves_its_answer_whole() {
    let chat = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nsim-interval: 20ms\r\n\
         content-length: {}\r\n\r\n{}",
        stage::client::STREAM.len(),
        stage::client::STREAM
    );
    for faulty in
        ["GET /v1/models HTTP/1.1\nhost: gateway\n\n", &post("transfer-encoding: x\r\n", "")]
    {
        for good in [GOOD, &chat] {
            let stage = Stage::start(Setup::default()).await;
            let mut client = stage.client(Http::H1).await;
            client.raw(format!("{good}{faulty}").as_bytes()).await;
            let first = client.answer().await;
            assert_eq!((first.status, first.end), (200, End::Clean));
            let second = client.answer().await;
            refused(&stage, &second, 400, "bad_request", "bad_request").await;
            assert_eq!(client.remains().await, b"");
            assert_eq!(stage.sim.counts().requests, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    let five: String =
        (0..5).map(|n| format!("GET /v1/echo?n={n} HTTP/1.1\r\nhost: gateway\r\n\r\n")).collect();
    client.raw(five.as_bytes()).await;
    for n in 0..5 {
        let answer = client.answer().await;
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["query"], format!("n={n}"));
    }
    // The connection is still good for one after the other, streams among them.
    for _ in 0..3 {
        assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200);
        assert_eq!(client.stream(&[]).await.end, End::Clean);
    }
    let total = stage.metrics().await.sum("tidegate_connections_total");
    assert_eq!(total, 1.0, "all on one connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_1_0_client_gets_a_stream_that_the_close_ends() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    let body = stage::client::STREAM;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nsim-count: 4\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.raw(head.as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, &answer.end), (200, &End::Clean));
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.header("content-length"), None);
    assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    // And what fails is a reset, or it would look complete.
    let mut client = stage.client(Http::H1).await;
    client.raw(head.replace("sim-count: 4", "sim-fault: fin").as_bytes()).await;
    let answer = client.answer().await;
    assert!(answer.text().contains("\"error\""), "{}", answer.text());
    assert_eq!(answer.end, End::Cut);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_100_continue_is_answered_before_the_body() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    client.raw(post("expect: 100-continue\r\ncontent-length: 5\r\n", "").as_bytes()).await;
    let Client::H1(socket, _) = &mut client else { panic!("HTTP/1.1") };
    let mut interim = [0; 25];
    stage::soon(socket.read_exact(&mut interim)).await.expect("an interim answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.raw(b"hello").await;
    assert_eq!(client.answer().await.status, 200);
    let seen = &stage.sim.requests()[0];
    assert_eq!((seen.body_length, seen.header("expect")), (5, None));
}

/// The deadlines are fixed, so this one waits for real: all of them at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_silent_connections_are_closed() {
    let stage = Stage::start(Setup::default()).await;
    let tls = Stage::start(Setup { client_tls: true, ..Setup::default() }).await;
    let started = std::time::Instant::now();
    let within = || (9..12).contains(&started.elapsed().as_secs());
    let silent = async {
        let mut client = stage.client(Http::H1).await;
        assert_eq!(client.remains().await, b"");
        assert!(within(), "silent: {:?}", started.elapsed());
    };
    let silent_tls = async {
        let mut socket =
            TcpStream::connect(tls.gateway.ready.listen[0]).await.expect("the gateway");
        assert_eq!(stage::soon(socket.read(&mut [0; 9])).await.expect("a close"), 0);
        assert!(within(), "no TLS handshake: {:?}", started.elapsed());
    };
    let preface = async {
        let mut client = stage.client(Http::H1).await;
        client.raw(b"PRI * HTTP/2.0\r\n").await;
        assert_eq!(client.remains().await, b"");
        assert!(within(), "half a preface: {:?}", started.elapsed());
    };
    let slow = async |drip: bool| {
        let mut client = stage.client(Http::H1).await;
        client.raw(b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nx: ").await;
        if drip {
            let Client::H1(socket, ahead) = &mut client else { panic!("HTTP/1.1") };
            let mut every = tokio::time::interval(std::time::Duration::from_millis(500));
            loop {
                tokio::select! {
                    read = socket.read_buf(ahead) => break assert!(read.expect("an answer") > 0),
                    _ = every.tick() => socket.write_all(b"y").await.expect("open"),
                }
            }
        }
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
        assert!(answer.header("tidegate-request-id").is_some());
        assert!(within(), "drip {drip}: {:?}", started.elapsed());
        assert_eq!(client.remains().await, b"");
    };
    tokio::join!(silent, silent_tls, preface, slow(false), slow(true));
    let metrics = stage.metrics().await;
    assert_eq!(metrics.get("tidegate_rejections_total{limit=\"head\"}"), 2.0);
    assert_eq!(stage.sim.counts().requests, 0);
    alive(&stage).await;
}

/// HTTP/2 by hand: frames as `(type, flags, stream, payload)`.
struct H2(TcpStream, BytesMut);

impl H2 {
    /// Sends a HEADERS frame on stream 1 with these fields, none indexed.
    async fn request(stage: &Stage, fields: &[(&str, &str)]) -> H2 {
        let mut socket = TcpStream::connect(stage.gateway.ready.listen[0]).await.expect("open");
        let mut raw = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        let mut block = Vec::new();
        for (name, value) in fields {
            assert!(name.len() < 127 && value.len() < 127, "one-byte lengths");
            block.extend([0, name.len() as u8]);
            block.extend(name.as_bytes());
            block.push(value.len() as u8);
            block.extend(value.as_bytes());
        }
        // END_STREAM and END_HEADERS.
        raw.extend([0, (block.len() >> 8) as u8, block.len() as u8, 1, 0x5, 0, 0, 0, 1]);
        raw.extend(block);
        socket.write_all(&raw).await.expect("sent");
        H2(socket, BytesMut::new())
    }

    /// The first frame that answers stream 1, or ends the connection: its type.
    async fn verdict(&mut self) -> u8 {
        loop {
            while self.1.len() < 9 || self.1.len() < 9 + self.length() {
                let read = stage::soon(self.0.read_buf(&mut self.1)).await.unwrap_or(0);
                assert!(read > 0, "closed without a word");
            }
            let frame = self.1.split_to(9 + self.length());
            // HEADERS, RST_STREAM, GOAWAY.
            if [1, 3, 7].contains(&frame[3]) {
                return frame[3];
            }
        }
    }

    fn length(&self) -> usize {
        usize::from(self.1[1]) << 8 | usize::from(self.1[2]) | usize::from(self.1[0]) << 16
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_headers_over_http_2_are_refused_by_resetting_the_stream() {
    let stage = Stage::start(Setup::default()).await;
    let good =
        [(":method", "GET"), (":scheme", "http"), (":path", "/v1/x"), (":authority", "gateway")];
    assert_eq!(H2::request(&stage, &good).await.verdict().await, 1, "the frames are right");
    assert_eq!(stage.sim.counts().requests, 1);
    let bad = [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("X-Upper", "1"),
        (":path", "/v1/y"),
        (":status", "200"),
    ];
    for field in bad {
        let fields: Vec<_> = good.into_iter().chain([field]).collect();
        let verdict = H2::request(&stage, &fields).await.verdict().await;
        assert!([3, 7].contains(&verdict), "{field:?}: frame type {verdict}");
    }
    assert_eq!(stage.sim.counts().requests, 1, "none went upstream");
    alive(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_http_2_lets_through_is_refused_like_http_1() {
    let scheme = [(":scheme", "http")];
    let get = [(":method", "GET"), (":path", "/v1/x")];
    let cases: [(&str, Vec<(&str, &str)>); 5] = [
        ("no authority", [&get[..], &scheme].concat()),
        ("two hosts", [&get[..], &scheme, &[("host", "a"), ("host", "b")]].concat()),
        ("contradiction", [&get[..], &scheme, &[(":authority", "a"), ("host", "b")]].concat()),
        ("user information", [&get[..], &scheme, &[(":authority", "me@a")]].concat()),
        (
            "dot segments",
            [&[(":method", "GET"), (":path", "/v1/../x"), (":authority", "a")][..], &scheme]
                .concat(),
        ),
    ];
    for (what, fields) in cases {
        let stage = Stage::start(Setup::default()).await;
        let mut h2 = H2::request(&stage, &fields).await;
        let verdict = h2.verdict().await;
        if verdict == 1 {
            let bad = stage.metrics().await.get("tidegate_rejections_total{limit=\"bad_request\"}");
            assert_eq!(bad, 1.0, "{what}");
        }
        assert_eq!(stage.sim.counts().requests, 0, "{what}");
        alive(&stage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_over_http_2_is_refused() {
    let stage = Stage::start(Setup::default()).await;
    let Client::H2(sender) = stage.client(Http::H2).await else { panic!("HTTP/2") };
    let request = http::Request::connect("other.example:443").body(()).expect("a request");
    let mut sender = stage::soon(sender.ready()).await.expect("ready");
    let (response, _stream) = sender.send_request(request, false).expect("a stream");
    let response = stage::soon(response).await.expect("an answer");
    assert_eq!(response.status(), 405);
    assert!(response.headers().contains_key("tidegate-request-id"));
    assert_eq!(stage.sim.counts().requests, 0);
    alive(&stage).await;
}
