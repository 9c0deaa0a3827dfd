//! HTTP/1.1 clients whose response streams outside of the HTTP library: which way a stream took,
//! and what becomes of the connection and of everything else the client sends on it.

mod stage;

use stage::{Client, End, Http, Setup, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"stream":true}"#;

/// A request for a stream of `count` events.
fn ask(count: u32, more: &str) -> String {
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {}\r\nsim-count: {count}\r\n\
         sim-clock: off\r\nsim-stream: {count}\r\n{more}\r\n{STREAM}",
        STREAM.len()
    )
}

fn models(id: &str) -> String {
    format!("GET /v1/models HTTP/1.1\r\nhost: gateway\r\nx-request-id: {id}\r\n\r\n")
}

async fn paths(stage: &Stage) -> [f64; 4] {
    let metrics = stage.metrics().await;
    let of = |path| metrics.get(&format!("tidegate_stream_paths_total{{path=\"{path}\"}}"));
    ["relay", "http2", "http10", "upload"].map(of)
}

fn events(body: &[u8]) -> usize {
    body.windows(6).filter(|window| window == b"data: ").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_tells_which_way_a_stream_took() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    client.raw(ask(3, "").as_bytes()).await;
    assert_eq!(client.answer().await.end, End::Clean);
    assert_eq!(paths(&stage).await, [1.0, 0.0, 0.0, 0.0]);
    client.raw(models("a").as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(paths(&stage).await, [1.0, 0.0, 0.0, 0.0], "JSON is no event stream");

    let fields = [("sim-count", "3")];
    let answer = stage.client(Http::H2).await.ask("POST", CHAT, &fields, STREAM).await;
    assert_eq!(answer.end, End::Clean);
    assert_eq!(paths(&stage).await, [1.0, 1.0, 0.0, 0.0]);

    let mut old = stage.client(Http::H1).await;
    old.raw(ask(3, "").replace("HTTP/1.1", "HTTP/1.0").as_bytes()).await;
    let text = String::from_utf8(old.remains().await).expect("text");
    assert!(text.starts_with("HTTP/1.0 200") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(paths(&stage).await, [1.0, 1.0, 1.0, 0.0]);
}

/// A gateway in front of an upstream of the test's own.
async fn in_front_of(upstream: std::net::SocketAddr) -> stage::Gateway {
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"u\"\nurls = [\"http://{upstream}\"]\n"
    );
    stage::Gateway::start(&text, None).await
}

/// An upstream that answers with a stream as soon as it has seen the request's head, and then reads
/// on; one connection.
async fn hasty_upstream() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("the gateway");
        let mut seen = bytes::BytesMut::new();
        while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
            socket.read_buf(&mut seen).await.expect("a head");
        }
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
            b\r\ndata: one\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        socket.write_all(answer.as_bytes()).await.expect("taken");
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_overtakes_its_request_stays_with_the_http_library() {
    let upstream = hasty_upstream().await;
    let gateway = in_front_of(upstream).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    // More than is read ahead, so that the upstream is asked before the rest has come.
    let half = "x".repeat(200_000);
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: gateway\r\naccept: text/event-stream\r\n\
         content-length: {}\r\n\r\n",
        2 * half.len()
    );
    client.raw(head.as_bytes()).await;
    client.raw(half.as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, &answer.end), (200, &End::Clean));
    assert_eq!(answer.text().matches("data: ").count(), 2, "{}", answer.text());
    let metrics = stage::scrape::metrics(gateway.ready.admin).await;
    let of = |path| metrics.get(&format!("tidegate_stream_paths_total{{path=\"{path}\"}}"));
    assert_eq!((of("relay"), of("upload")), (0.0, 1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_behind_a_stream_are_answered_after_it_in_order() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    let all = [ask(5, ""), models("a"), ask(2, ""), ask(3, ""), models("b")].concat();
    client.raw(all.as_bytes()).await;
    for (count, id) in [(5, None), (0, Some("a")), (2, None), (3, None), (0, Some("b"))] {
        let answer = client.answer().await;
        assert_eq!((answer.status, &answer.end), (200, &End::Clean), "{}", answer.text());
        match id {
            Some(id) => assert_eq!(answer.header("tidegate-request-id"), Some(id)),
            // The events and the end mark.
            None => assert_eq!(events(&answer.body), count + 1, "{}", answer.text()),
        }
    }
    let metrics = stage.metrics().await;
    assert_eq!(metrics.sum("tidegate_connections_total"), 1.0);
    assert_eq!(metrics.sum("tidegate_upstream_connects_total"), 1.0, "reused on that side too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_behind_a_stream_may_come_in_any_pieces() {
    let stage = Stage::start(Setup::default()).await;
    let next = models("next");
    for cut in (1..next.len()).step_by(7) {
        let mut client = stage.client(Http::H1).await;
        let slow = "sim-interval: 20ms\r\n";
        client.raw([&ask(3, slow), &next[..cut]].concat().as_bytes()).await;
        let mut headed = client.head().await;
        headed.until("data: ").await;
        let answer = headed.rest().await;
        assert_eq!((events(&answer.body), &answer.end), (4, &End::Clean), "{}", answer.text());
        client.raw(&next.as_bytes()[cut..]).await;
        let answer = client.answer().await;
        assert_eq!(answer.header("tidegate-request-id"), Some("next"), "cut at {cut}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_behind_a_stream_wait_in_the_socket_and_are_all_answered() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    let many = 2000;
    let mut all = ask(20, "sim-interval: 10ms\r\n");
    all.extend((0..many).map(|n| models(&n.to_string())));
    assert!(all.len() > 4 * tidegate::limits::PIPELINED, "more than is read while streaming");
    let Client::H1(socket, ahead) = client else { panic!("an HTTP/1.1 client") };
    let (read, mut write) = tokio::io::split(socket);
    let writing = tokio::spawn(async move {
        write.write_all(all.as_bytes()).await.expect("taken");
        write
    });
    // The client's two halves are joined again once everything is written: nobody else waits.
    let write = stage::soon(writing).await.expect("no panic");
    client = Client::H1(read.unsplit(write), ahead);
    let answer = client.answer().await;
    assert_eq!((events(&answer.body), &answer.end), (21, &End::Clean));
    for n in 0..many {
        let answer = client.answer().await;
        assert_eq!(answer.header("tidegate-request-id"), Some(&*n.to_string()));
    }
}

/// An upstream that answers the request with the id `first` with `large` bytes, others with a short
/// stream.
async fn large_then_stream(large: usize) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let first = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {large}\r\nconnection: close\r\n\r\n{}",
        "x".repeat(large)
    );
    let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 14\r\n\
                  connection: close\r\n\r\ndata: [DONE]\n\n";
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.expect("the gateway");
            let mut seen = bytes::BytesMut::new();
            while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
                socket.read_buf(&mut seen).await.expect("a head");
            }
            let asked_first = seen.windows(5).any(|window| window == b"first");
            let answer = if asked_first { first.clone() } else { stream.to_owned() };
            tokio::spawn(async move {
                socket.write_all(answer.as_bytes()).await.expect("taken");
                socket.shutdown().await.expect("open");
                let _ = socket.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    addr
}

/// The socket may be taken from the HTTP library only when it owes the client nothing: here an
/// earlier answer is stuck in its buffer while the request for the stream waits behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_answer_that_is_still_on_its_way_comes_first_and_whole() {
    let large = 8 << 20;
    let upstream = large_then_stream(large).await;
    let gateway = in_front_of(upstream).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    client.raw([models("first"), models("second")].concat().as_bytes()).await;
    // Nothing is read until the kernel's buffers, and then the library's, are full.
    let admin = gateway.ready.admin;
    let stalled = |m: &stage::Metrics| m.get("tidegate_stalled_streams") == 1.0;
    stage::scrape::until(admin, "the first answer is stuck", stalled).await;
    let first = client.answer().await;
    assert_eq!((first.body.len(), &first.end), (large, &End::Clean));
    let second = client.answer().await;
    assert_eq!((second.text(), &second.end), ("data: [DONE]\n\n".into(), &End::Clean));
    let metrics = stage::scrape::metrics(admin).await;
    assert_eq!(metrics.get("tidegate_stream_paths_total{path=\"relay\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_request_behind_a_stream_is_refused_after_it() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    let faulty = "GET /v1/models HTTP/1.1\nhost: gateway\n\n";
    client.raw([&ask(5, "sim-interval: 10ms\r\n"), faulty].concat().as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((events(&answer.body), &answer.end), (6, &End::Clean));
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.header("connection")), (400, Some("close")));
    assert_eq!(client.remains().await, b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_is_answered_with_close_and_done() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    client.raw(ask(3, "connection: close\r\n").as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!((events(&answer.body), &answer.end), (4, &End::Clean));
    assert_eq!(client.remains().await, b"");
    stage.until("the connection gone", |m| m.sum("tidegate_connections_live") == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_what_the_http_library_would_have_sent() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    client.raw(ask(1, "").as_bytes()).await;
    let answer = client.answer().await;
    let names: Vec<&str> = answer.headers.keys().map(|name| name.as_str()).collect();
    for name in ["content-type", "cache-control", "x-accel-buffering", "tidegate-request-id"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    let date = answer.header("date").expect("a date");
    assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
    assert_eq!(answer.headers.get_all("date").iter().count(), 1);
    assert_eq!((answer.header("connection"), answer.header("content-length")), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_a_continue_gets_it_and_its_stream() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    let whole = ask(3, "expect: 100-continue\r\n");
    let (head, body) = whole.split_at(whole.len() - STREAM.len());
    client.raw(head.as_bytes()).await;
    let Client::H1(socket, ahead) = &mut client else { panic!("an HTTP/1.1 client") };
    while !ahead.ends_with(b"\r\n\r\n") {
        let read = socket.read_buf(ahead);
        assert_ne!(stage::soon(read).await.expect("readable"), 0, "closed");
    }
    assert!(ahead.starts_with(b"HTTP/1.1 100 "), "{ahead:?}");
    ahead.clear();
    client.raw(body.as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((events(&answer.body), &answer.end), (4, &End::Clean));
    assert_eq!(paths(&stage).await, [1.0, 0.0, 0.0, 0.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_half_closes_has_left() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    client.raw(ask(1000, "sim-interval: 10ms\r\n").as_bytes()).await;
    let mut headed = client.head().await;
    headed.until("data: ").await;
    drop(headed);
    let Client::H1(socket, _) = &mut client else { panic!("an HTTP/1.1 client") };
    socket.shutdown().await.expect("half closed");
    let metrics = stage.until("gone", |m| m.ended("client_closed") == 1.0).await;
    assert_eq!(metrics.live(), 0.0);
    stage.sim.wait_for(|counts| counts.cancelled == 1, stage::PATIENCE).await.expect("told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_the_stream_end_and_then_closes() {
    let stage = Stage::start(Setup::default()).await;
    let mut client = stage.client(Http::H1).await;
    client.raw(ask(30, "sim-interval: 10ms\r\n").as_bytes()).await;
    let mut headed = client.head().await;
    headed.until("data: ").await;
    stage.gateway.stop();
    let answer = headed.rest().await;
    assert_eq!((events(&answer.body), &answer.end), (31, &End::Clean));
    assert_eq!(client.remains().await, b"", "closed, though it had asked for keep-alive");
}
