//! Any method and path passes, bodies stream through whole, and heads change only where they must.

mod stage;

use bytes::Bytes;
use serde_json::Value;
use stage::{Answer, Client, End, Gateway, Http, Setup, Stage};
use tidegate::sim::{self, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("no JSON: {}", answer.text()))
}

/// The checksum the simulated upstream makes of a body.
fn fnv1a64(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_method_and_path_passes() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        for http in [Http::H1, Http::H2] {
            let mut client = stage.client(http).await;
            let models = client.ask("GET", "/v1/models", &[], "").await;
            assert_eq!(models.status, 200);
            assert_eq!(json(&models)["object"], "list");
            let embeddings =
                client.ask("POST", "/v1/embeddings", &[], r#"{"input":["a","b"]}"#).await;
            assert_eq!(json(&embeddings)["data"].as_array().map(Vec::len), Some(2));
            let plain = client.ask("POST", stage::client::CHAT, &[], r#"{"messages":[]}"#).await;
            assert_eq!(plain.header("content-type"), Some("application/json"));
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
                let body = if method == "GET" { "" } else { "a body" };
                let answer = client.ask(method, "/v1/files/f-1?a=b", &[], body).await;
                assert_eq!(answer.status, 200, "{method}");
                let echo = json(&answer);
                assert_eq!(
                    (&echo["method"], &echo["path"]),
                    (&method.into(), &"/v1/files/f-1".into())
                );
                assert_eq!(echo["body_bytes"], body.len());
                assert_eq!(
                    echo["headers"]["content-length"].is_null(),
                    body.is_empty(),
                    "{method}"
                );
            }
            let empty = client.ask("POST", "/v1/files", &[], "").await;
            assert_eq!(json(&empty)["headers"]["content-length"], "0", "a POST has a length");
            let head = client.ask("HEAD", "/v1/models", &[], "").await;
            assert_eq!((head.status, head.body.len()), (200, 0));
            assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200, "in step");
            let missing = client.ask("GET", "/other", &[], "").await;
            assert_eq!(
                (missing.status, &json(&missing)["error"]["code"]),
                (404, &"no_route".into())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_arrive_whole_whatever_their_framing() {
    let body: Vec<u8> = (0..10_000_000u32).map(|n| (n ^ (n >> 7)) as u8).collect();
    let sum = format!("{:016x}", fnv1a64(&body));
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let form = [("content-type", "multipart/form-data; boundary=b")];
        for http in [Http::H1, Http::H2] {
            let mut client = stage.client(http).await;
            let answer = client.ask("POST", "/v1/files", &form, body.clone()).await;
            let echo = json(&answer);
            assert_eq!(
                (&echo["body_bytes"], &echo["body_fnv1a64"]),
                (&10_000_000.into(), &sum.as_str().into())
            );
            assert_eq!(echo["headers"]["content-type"], form[0].1);
            if http == Http::H1 {
                assert_eq!(echo["headers"]["content-length"], "10000000");
            }
        }
        let mut client = stage.client(Http::H1).await;
        client.raw(b"POST /v1/x HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n").await;
        for piece in body.chunks(123_457) {
            client.raw(format!("{:x}\r\n", piece.len()).as_bytes()).await;
            client.raw(piece).await;
            client.raw(b"\r\n").await;
        }
        client.raw(b"0\r\nx-trailer: 1\r\n\r\n").await;
        let echo = json(&client.answer().await);
        assert_eq!(
            (&echo["body_bytes"], &echo["body_fnv1a64"]),
            (&10_000_000.into(), &sum.as_str().into())
        );
        let metrics = stage.until("all ended", |m| m.live() == 0.0).await;
        let bytes = metrics.get("tidegate_bytes_total{direction=\"in\",side=\"client\"}");
        assert!(bytes >= 30_000_000.0, "{bytes}");
    }
}

/// While the upstream does not read, the gateway takes no more than a bound from the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_read_no_further_ahead_than_a_bound() {
    let sim = sim::Options { window: Some(65_535), ..sim::Options::default() };
    let stage = Stage::start(Setup { upstream_h2: true, sim, ..Setup::default() }).await;
    let Client::H2(sender) = stage.client(Http::H2).await else { panic!("HTTP/2") };
    let request = http::Request::post("http://gateway/v1/x").header("sim-read-delay", "2s");
    let request = request.body(()).expect("a request");
    let mut sender = stage::soon(sender.ready()).await.expect("ready");
    let (response, mut upload) = sender.send_request(request, false).expect("a stream");
    let whole = 4_000_000;
    let (mut sent, mut most) = (0, None);
    while sent < whole {
        upload.reserve_capacity(whole - sent);
        let room = std::future::poll_fn(|cx| upload.poll_capacity(cx));
        // Quiet for that long: everything on the way is full.
        let patience = std::time::Duration::from_millis(700);
        let Ok(room) = tokio::time::timeout(patience, room).await else {
            most.get_or_insert(sent);
            continue;
        };
        let room = room.expect("open").expect("open");
        upload.send_data(Bytes::from(vec![b'x'; room]), sent + room == whole).expect("sent");
        sent += room;
    }
    let most = most.expect("the upstream's delay was felt");
    assert!(most < 512 * 1024, "{most} bytes went in while the upstream read none");
    let response = stage::soon(response).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let seen = &stage.sim.requests()[0];
    assert_eq!((seen.body_length, seen.body_complete), (whole as u64, true));
    assert_eq!(seen.body_fnv1a64, fnv1a64(&vec![b'x'; whole]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_pass_byte_for_byte() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    for query in
        ["a=%20+b&c=[1]&d='x'&e={y}&f=%zz&&=&g", "?", "a=b?c=/../d&e=%2e%2e", "q=%00%ff;x|y^z`w~\\"]
    {
        let request = format!("GET /v1/echo?{query} HTTP/1.1\r\nhost: g\r\n\r\n");
        client.raw(request.as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        assert_eq!(json(&answer)["query"], query);
    }
    let answer = client.ask("GET", "/v1/a%2Fb//c%20d;e=f/@:!$&'()*,", &[], "").await;
    assert_eq!(json(&answer)["path"], "/v1/a%2Fb//c%20d;e=f/@:!$&'()*,");
}

/// A gateway before `sim` whose upstream and route sections are these.
async fn before(sim: &Sim, base: &str, upstream: &str, route: &str) -> Gateway {
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"http://localhost:{}{base}\"]\n{upstream}\n\
         [[route]]\nupstream = \"sim\"\n{route}\n",
        sim.addr().port()
    );
    Gateway::start(&text, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_upstream_section_adds_is_added_and_what_it_replaces_is_gone() {
    let files = tempfile::tempdir().expect("a folder");
    let key = files.path().join("key");
    std::fs::write(&key, "sk-ours").expect("a file");
    let any = ([127, 0, 0, 1], 0).into();
    let sim = Sim::start(any, sim::Options::default()).await.expect("the upstream");
    let upstream = format!(
        "query = {{ api-version = \"2024-10-21\", x = \"a b\" }}\n\
         headers = {{ anthropic-version = \"2023-06-01\", user-agent = \"gw\" }}\n\
         credential = {{ file = {key:?}, header = \"api-key\", scheme = \"\" }}"
    );
    let gateway = before(&sim, "/openai/v1", &upstream, "path = \"/v1/{*rest}\"").await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    let fields = [
        ("authorization", "Bearer theirs"),
        ("x-api-key", "theirs"),
        ("api-key", "theirs"),
        ("cookie", "session=theirs"),
        ("anthropic-version", "theirs"),
        ("openai-organization", "org"),
    ];
    let echo = json(&client.ask("GET", "/v1/a/b?c=d", &fields, "").await);
    assert_eq!(echo["path"], "/openai/v1/a/b");
    assert_eq!(echo["query"], "c=d&api-version=2024-10-21&x=a%20b");
    let headers = &echo["headers"];
    assert_eq!(headers["api-key"], "sk-ours", "{headers}");
    assert_eq!(headers["anthropic-version"], "2023-06-01");
    assert_eq!(headers["user-agent"], "gw");
    assert_eq!(headers["openai-organization"], "org");
    for gone in ["authorization", "x-api-key", "cookie"] {
        assert!(headers[gone].is_null(), "{gone}");
    }
    let bare = json(&client.ask("GET", "/v1/a", &[], "").await);
    assert_eq!(bare["query"], "api-version=2024-10-21&x=a%20b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_credential_the_clients_own_is_forwarded() {
    let stage = Stage::start(Setup::default()).await;
    let fields = [
        ("authorization", "Bearer theirs"),
        ("x-api-key", "k"),
        ("cookie", "a=b"),
        ("x-custom", "one"),
        ("x-custom", "two"),
        ("accept-encoding", "gzip, br"),
    ];
    for http in [Http::H1, Http::H2] {
        let echo = json(&stage.client(http).await.ask("POST", "/v1/x", &fields, "{}").await);
        let headers = &echo["headers"];
        assert_eq!(headers["authorization"], "Bearer theirs");
        assert_eq!((&headers["x-api-key"], &headers["cookie"]), (&"k".into(), &"a=b".into()));
        assert_eq!(headers["x-custom"], serde_json::json!(["one", "two"]));
        assert_eq!(headers["accept-encoding"], "gzip, br", "not a stream: left alone");
        let host = format!("localhost:{}", stage.sim.addr().port());
        assert_eq!(headers["host"], host.as_str());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_and_headers_of_the_upstream_pass_untouched() {
    let stage = Stage::start(Setup::default()).await;
    for http in [Http::H1, Http::H2] {
        let mut client = stage.client(http).await;
        for status in ["201", "204", "304", "400", "401", "404", "418", "429", "500", "503", "529"]
        {
            let fields = [("sim-status", status), ("sim-retry-after", "7")];
            let answer = client.ask("POST", "/v1/x", &fields, "{}").await;
            assert_eq!(answer.status.to_string(), status);
            assert_eq!(answer.header("retry-after"), Some("7"));
            assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_sim")));
            assert_eq!(answer.header("openai-processing-ms"), Some("0"));
            assert!(answer.header("tidegate-request-id").is_some());
            if answer.status > 399 {
                assert_eq!(json(&answer)["error"]["code"], "sim", "the upstream's own words");
            }
        }
        // A 200 stream's fields, too, with those that keep proxies from holding it.
        let answer = client.stream(&[("sim-retry-after", "7"), ("accept-encoding", "gzip")]).await;
        assert_eq!(answer.header("retry-after"), Some("7"));
        assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_sim")));
        assert_eq!(answer.header("cache-control"), Some("no-cache, no-transform"));
        assert_eq!(answer.header("x-accel-buffering"), Some("no"));
        assert_eq!(answer.header("content-encoding"), None);
        let seen = stage.sim.requests();
        let seen = seen.last().expect("seen");
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_and_traces_are_taken_over_or_made() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let longest = "i".repeat(128);
    let own = [("x-request-id", longest.as_str()), ("traceparent", trace)];
    let answer = client.ask("GET", "/v1/x", &own, "").await;
    assert_eq!(answer.header("tidegate-request-id"), Some(longest.as_str()));
    assert_eq!(json(&answer)["headers"]["x-request-id"], longest.as_str());
    assert_eq!(json(&answer)["headers"]["traceparent"], trace);

    let long = "i".repeat(129);
    for bad in [long.as_str(), "two words", "caf\u{e9}", ""] {
        let fields = [("x-request-id", bad), ("traceparent", "00-nonsense")];
        let answer = client.ask("GET", "/v1/x", &fields, "").await;
        let ours = answer.header("tidegate-request-id").expect("an id").to_owned();
        assert!(!ours.is_empty() && ours != bad, "{ours}");
        let headers = &json(&answer)["headers"];
        assert_eq!(headers["x-request-id"], ours.as_str());
        let made = headers["traceparent"].as_str().expect("a traceparent");
        assert!(made.len() == 55 && made.starts_with("00-"), "{made}");
    }
    let (one, two) =
        (client.ask("GET", "/v1/x", &[], "").await, client.ask("GET", "/v1/x", &[], "").await);
    assert_ne!(one.header("tidegate-request-id"), two.header("tidegate-request-id"));
    assert_ne!(json(&one)["headers"]["traceparent"], json(&two)["headers"]["traceparent"]);
}

/// An event stream with a content-encoding cannot be followed: it passes as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoded_event_stream_passes_untracked() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let upstream = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.expect("a head"));
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n\
            x-ratelimit-remaining-tokens: 9\r\nanthropic-x: y\r\nretry-after-ms: 1\r\nconnection: x-hop\r\n\
            x-hop: 1\r\nkeep-alive: timeout=1\r\ncontent-length: 5\r\n\r\n\x1f\x8bxyz";
        socket.write_all(answer).await.expect("sent");
        socket
    });
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [stream]\nheartbeat = \"100ms\"\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"http://127.0.0.1:{port}\"]\n"
    );
    let gateway = Gateway::start(&text, None).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    let answer = client.ask("GET", "/v1/x", &[], "").await;
    assert_eq!((answer.body.as_slice(), &answer.end), (&b"\x1f\x8bxyz"[..], &End::Clean));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(answer.header("content-length"), Some("5"));
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), Some("9"));
    assert_eq!(answer.header("anthropic-x"), Some("y"));
    assert_eq!(answer.header("retry-after-ms"), Some("1"));
    assert_eq!((answer.header("x-hop"), answer.header("keep-alive")), (None, None));
    let metrics =
        stage::scrape::until(gateway.ready.admin, "ended", |m| m.ended("completed") == 1.0).await;
    assert_eq!(metrics.get("tidegate_events_total{upstream=\"sim\"}"), 0.0);
    drop(upstream.await);
}

/// `first_byte` is the upstream's time: a client that takes longer to send its body is no reason to
/// give the upstream up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_is_not_taken_for_a_slow_upstream() {
    let setup = Setup { stream: "first_byte = \"700ms\"".into(), ..Setup::default() };
    let stage = Stage::start(setup).await;
    for size in [1000, 200_000] {
        let mut socket =
            TcpStream::connect(stage.gateway.ready.listen[0]).await.expect("it listens");
        let head = format!(
            "PUT /v1/files HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.expect("a head");
        for piece in vec![b'x'; size].chunks(size / 4) {
            // The client's pace, 1.2 s in all.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            socket.write_all(piece).await.expect("a piece of the body");
        }
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{size}: {answer}");
    }
}
