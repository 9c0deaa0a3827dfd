//! What only HTTP/2 clients can do, or see: resets in every phase, windows that stay closed,
//! answers that overtake their requests, and the manners of heads and ends.

mod stage;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request};
use stage::client::{CHAT, STREAM};
use stage::{Client, End, Http, Metrics, PATIENCE, Setup, Stage, soon};
use tidegate::sim::{self, Behaviour, Kind, expected_body};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

type Fields<'a> = &'a [(&'a str, &'a str)];
type Asked = (ResponseFuture, SendStream<Bytes>);

/// A connection whose streams have windows of `window` bytes, not driven yet.
async fn handshake(stage: &Stage, window: u32) -> (SendRequest<Bytes>, Connection<TcpStream>) {
    let tcp = TcpStream::connect(stage.gateway.ready.listen[0]).await.expect("the gateway");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(1 << 24);
    soon(builder.handshake(tcp)).await.expect("a handshake")
}

async fn connect(stage: &Stage, window: u32) -> SendRequest<Bytes> {
    let (sender, connection) = handshake(stage, window).await;
    tokio::spawn(connection);
    sender
}

/// Begins a request; its body is the caller's, unless it `ends` with the head.
async fn ask(
    sender: &SendRequest<Bytes>,
    method: &str,
    path: &str,
    f: Fields<'_>,
    ends: bool,
) -> Asked {
    let mut request = Request::builder().method(method).uri(format!("http://gateway{path}"));
    for (name, value) in f {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("a request");
    let mut ready = soon(sender.clone().ready()).await.expect("a ready connection");
    ready.send_request(request, ends).expect("a stream")
}

/// A chat stream asked for.
async fn chat(sender: &SendRequest<Bytes>, fields: Fields<'_>) -> Asked {
    let (response, mut upload) = ask(sender, "POST", CHAT, fields, false).await;
    upload.send_data(Bytes::from_static(STREAM.as_bytes()), true).expect("a body");
    (response, upload)
}

/// Reads to the end; an error if it is not clean.
async fn rest(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = soon(body.data()).await {
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn reset_of(stream: &mut SendStream<Bytes>) -> Reason {
    soon(poll_fn(|cx| stream.poll_reset(cx))).await.expect("a reset")
}

fn left(times: f64) -> impl Fn(&Metrics) -> bool {
    move |m| m.ended("client_closed") == times && m.live() == 0.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_while_the_body_is_on_its_way_ends_the_request_and_is_no_end_of_the_body() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let sender = connect(&stage, 65_535).await;
        // Within what is read ahead, and beyond it, when the upstream has a part already.
        for (times, size) in [(1.0, 1000), (2.0, 200_000)] {
            let (_response, mut upload) = ask(&sender, "POST", "/v1/x", &[], false).await;
            let mut wanted = size;
            while wanted > 0 {
                upload.reserve_capacity(wanted);
                let room = soon(poll_fn(|cx| upload.poll_capacity(cx))).await;
                let piece = room.expect("open").expect("room").min(wanted);
                upload.send_data(vec![b'x'; piece].into(), false).expect("sent");
                wanted -= piece;
            }
            let live = |m: &Metrics| m.live() == 1.0;
            stage.until("admitted", live).await;
            if size > 100_000 {
                let there = stage.sim.wait_for(|c| c.live == 1, PATIENCE).await;
                there.expect("the request at the upstream");
            }
            upload.send_reset(Reason::CANCEL);
            stage.until("left", left(times)).await;
        }
        let gone = stage.sim.wait_for(|c| c.requests == 1 && c.live == 0, PATIENCE).await;
        gone.expect("only the larger one reached the upstream, and was broken off");
        let whole = stage.sim.requests().iter().any(|seen| seen.body_complete);
        assert!(!whole, "upstream h2 {upstream_h2}: a part was taken for the whole");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_while_no_upstream_connection_is_there_ends_the_request() {
    let sim = sim::Options { slow_accept: Duration::from_secs(60), ..sim::Options::default() };
    let upstream = "connect = \"60s\"".to_owned();
    let setup = Setup { upstream_tls: true, upstream, sim, ..Setup::default() };
    let stage = Stage::start(setup).await;
    let sender = connect(&stage, 65_535).await;
    let (_response, mut upload) = chat(&sender, &[]).await;
    stage.until("admitted", |m| m.live() == 1.0).await;
    upload.send_reset(Reason::CANCEL);
    stage.until("left", left(1.0)).await;
    assert_eq!(stage.sim.counts().requests, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_a_client_whose_window_is_closed_ends_the_stream() {
    let stage = Stage::start(Setup { upstream_h2: true, ..Setup::default() }).await;
    let sender = connect(&stage, 1000).await;
    let (response, mut upload) =
        chat(&sender, &[("sim-count", "100000"), ("sim-size", "1KiB")]).await;
    let head = soon(response).await.expect("a head");
    stage.until("it lags", |m| m.get("tidegate_stalled_streams") == 1.0).await;
    upload.send_reset(Reason::CANCEL);
    stage.until("left", left(1.0)).await;
    drop(head);
    let cancelled = stage.sim.wait_for(|c| c.cancelled == 1, PATIENCE).await;
    cancelled.expect("the upstream is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_flow_beside_those_whose_windows_are_closed_and_those_go_on_once_they_open() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let sender = connect(&stage, 1000).await;
        let mut closed = Vec::new();
        for id in ["1", "2", "3"] {
            let fields = [
                ("sim-clock", "off"),
                ("sim-stream", id),
                ("sim-count", "40"),
                ("sim-size", "2KiB"),
            ];
            let (response, upload) = chat(&sender, &fields).await;
            closed.push((soon(response).await.expect("a head").into_body(), upload));
        }
        stage.until("they lag", |m| m.get("tidegate_stalled_streams") == 3.0).await;
        let fields = [("sim-clock", "off"), ("sim-stream", "9"), ("sim-count", "40")];
        let (response, _upload) = chat(&sender, &fields).await;
        let mut body = soon(response).await.expect("a head").into_body();
        let flowed = rest(&mut body).await.expect("a clean end");
        let behaviour = Behaviour { count: 40, ..Behaviour::default() };
        assert_eq!(flowed, expected_body(&behaviour, Kind::Chat, 9, "tide-1", false));
        let metrics = stage.metrics().await;
        assert_eq!((metrics.live(), metrics.get("tidegate_stalled_streams")), (3.0, 3.0));
        let behaviour = Behaviour { count: 40, size: 2048, ..Behaviour::default() };
        for (id, (mut body, _upload)) in (1..).zip(closed) {
            let late = rest(&mut body).await.expect("a clean end");
            assert_eq!(late, expected_body(&behaviour, Kind::Chat, id, "tide-1", false));
        }
        stage.until("all ended", |m| m.ended("completed") == 4.0 && m.live() == 0.0).await;
    }
}

/// Drives `connection` until told to stop, then lets it lie until told to go on: a client that
/// takes nothing from its socket.
fn drive(connection: Connection<TcpStream>, stop: oneshot::Receiver<oneshot::Receiver<()>>) {
    tokio::spawn(async move {
        let mut connection = connection;
        let go_on = tokio::select! {
            _ = &mut connection => panic!("the connection ended"),
            go_on = stop => go_on.expect("the test goes on"),
        };
        go_on.await.expect("the test goes on");
        let _ = connection.await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_of_a_client_that_takes_nothing_hold_little_and_go_on_when_it_reads() {
    const STREAMS: u64 = 1000;
    for upstream_h2 in [false, true] {
        // Beyond what sockets take; half of it would still be beyond the bound.
        let (count, size) = ("40", "4KiB");
        let server = "workers = 1\nh2_max_streams = 1000".to_owned();
        let stream = "backlog = \"16KiB\"".to_owned();
        let setup = Setup { upstream_h2, server, stream, ..Setup::default() };
        let stage = Stage::start(setup).await;
        let (sender, connection) = handshake(&stage, 1 << 20).await;
        let (stop, stopped) = oneshot::channel();
        drive(connection, stopped);
        let warm_up = chat(&sender, &[("sim-count", "1")]).await;
        rest(&mut soon(warm_up.0).await.expect("a head").into_body()).await.expect("a clean end");
        let mut asked = Vec::new();
        for id in 0..STREAMS {
            let id = id.to_string();
            let fields = [
                ("sim-clock", "off"),
                ("sim-stream", id.as_str()),
                ("sim-count", count),
                ("sim-size", size),
                ("sim-first-event", "2s"),
            ];
            asked.push(chat(&sender, &fields).await);
        }
        stage.until("all are there", |m| m.live() == STREAMS as f64).await;
        let (go_on, going_on) = oneshot::channel();
        stop.send(going_on).expect("driven");

        // One or another may have found room in the sockets for all of its stream.
        let stuck = |m: &Metrics| {
            let stalled = m.get("tidegate_stalled_streams");
            stalled > 0.98 * STREAMS as f64 && stalled == m.live()
        };
        stage.until("all lag", stuck).await;
        let read = |m: &Metrics| m.get("tidegate_bytes_total{direction=\"in\",side=\"upstream\"}");
        let mut last = (read(&stage.metrics().await), tokio::time::Instant::now());
        let waiting = loop {
            let now = stage.metrics().await;
            if read(&now) != last.0 {
                last = (read(&now), tokio::time::Instant::now());
            } else if last.1.elapsed() > Duration::from_millis(500) {
                break now;
            }
            tokio::task::yield_now().await;
        };
        // The backlog and one more read of the source; what h2 took before, and the sockets.
        let each = (16 + 64) * 1024;
        let bound = (STREAMS * each + (8 << 20)) as f64;
        assert!(read(&waiting) < bound, "{} bytes were read", read(&waiting));
        let backlog = waiting.get("tidegate_backlog_bytes");
        assert!(backlog <= (STREAMS * (16 + 64) * 1024) as f64, "{backlog} bytes wait");

        go_on.send(()).expect("it lies there");
        // All at once: they share the connection's window.
        let mut reading = tokio::task::JoinSet::new();
        for (id, (response, upload)) in (0..).zip(asked) {
            reading.spawn(async move {
                let mut body = soon(response).await.expect("a head").into_body();
                let all = rest(&mut body).await.expect("a clean end");
                let behaviour = Behaviour { count: 40, size: 4096, ..Behaviour::default() };
                let expected = expected_body(&behaviour, Kind::Chat, id, "tide-1", false);
                assert!(all == expected, "stream {id}: {} of {} bytes", all.len(), expected.len());
                drop(upload);
            });
        }
        reading.join_all().await;
        stage.until("all ended", |m| m.ended("completed") == STREAMS as f64 + 1.0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_overtakes_the_request_is_whole_and_then_the_rest_is_declined() {
    let stage = Stage::start(Setup::default()).await;
    let sender = connect(&stage, 65_535).await;
    // Our own refusal, and an upstream's that does not read the body.
    for (path, fields, status) in [
        ("/other", &[][..], 404),
        ("/v1/x", &[("sim-fault", "early"), ("sim-status", "413")][..], 413),
    ] {
        let (response, mut upload) = ask(&sender, "POST", path, fields, false).await;
        // More than is read ahead, so that the upstream is asked before the body has ended.
        let mut wanted = 150_000;
        while wanted > 0 && status == 413 {
            upload.reserve_capacity(wanted);
            let room = tokio::time::timeout(PATIENCE, poll_fn(|cx| upload.poll_capacity(cx))).await;
            let Ok(Some(Ok(room))) = room else { break };
            let piece = room.min(wanted);
            upload.send_data(vec![b'x'; piece].into(), false).expect("sent");
            wanted -= piece;
        }
        let (head, mut body) = soon(response).await.expect("a head").into_parts();
        assert_eq!(head.status, status);
        let told = rest(&mut body).await.expect("the whole answer");
        assert!(!told.is_empty(), "{path}");
        assert_eq!(reset_of(&mut upload).await, Reason::NO_ERROR, "{path}");
    }
    stage.until("settled", |m| m.live() == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_what_http_2_wants_and_nothing_about_the_connection() {
    let stage = Stage::start(Setup::default()).await;
    let sender = connect(&stage, 65_535).await;
    // Over HTTP/1.1 this refusal says `connection: close`.
    let (response, _) = ask(&sender, "GET", "/v1/../x", &[], true).await;
    let (head, mut body) = soon(response).await.expect("a head").into_parts();
    assert_eq!(head.status, 400);
    let text = rest(&mut body).await.expect("a clean end");
    assert_eq!(head.headers["content-length"], text.len().to_string().as_str());
    assert!(httpdate::parse_http_date(head.headers["date"].to_str().expect("ASCII")).is_ok());
    for name in ["connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection"] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
    // A stream has a date and no length.
    let (response, _upload) = chat(&sender, &[]).await;
    let head = soon(response).await.expect("a head");
    assert!(head.headers().contains_key("date") && !head.headers().contains_key("content-length"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_end_with_their_head() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let sender = connect(&stage, 65_535).await;
        for (method, path, status) in [
            ("HEAD", "/v1/models", 200),
            ("HEAD", "/other", 404),
            ("GET", "/v1/x?sim-status=204", 204),
            ("GET", "/v1/x?sim-status=304", 304),
        ] {
            let what = format!("{method} {path} upstream h2 {upstream_h2}");
            let (response, _) = ask(&sender, method, path, &[], true).await;
            let head = soon(response).await.expect("a head");
            assert_eq!(head.status(), status, "{what}");
            assert!(head.body().is_end_stream(), "{what}");
            let length = head.headers().get("content-length");
            let length = length.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
            assert_eq!(length.is_some_and(|n| n > 0), method == "HEAD", "{what}: {length:?}");
        }
        let completed = |m: &Metrics| m.ended("completed") == 3.0 && m.live() == 0.0;
        stage.until("three went to the upstream", completed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_a_request_are_dropped_and_its_body_arrives_whole() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let sender = connect(&stage, 65_535).await;
        let (response, mut upload) = ask(&sender, "POST", "/v1/x", &[], false).await;
        upload.send_data(Bytes::from_static(b"a body"), false).expect("sent");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("1"));
        upload.send_trailers(trailers).expect("sent");
        assert_eq!(soon(response).await.expect("a head").status(), 200);
        let seen = stage.sim.requests();
        let seen = seen.last().expect("one");
        assert_eq!((seen.body_length, seen.body_complete), (6, true), "h2 {upstream_h2}");
        assert_eq!(seen.header("x-checksum"), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_contradicts_its_length_resets_its_stream_only() {
    let stage = Stage::start(Setup::default()).await;
    let sender = connect(&stage, 65_535).await;
    let (response, _beside) = chat(&sender, &[("sim-interval", "100ms"), ("sim-count", "5")]).await;
    let mut beside = soon(response).await.expect("a head").into_body();
    for (declared, sent) in [("3", "four"), ("5", "four")] {
        let fields = [("content-length", declared)];
        let (response, mut upload) = ask(&sender, "POST", "/v1/x", &fields, false).await;
        upload.send_data(Bytes::from_static(sent.as_bytes()), true).expect("sent");
        let refused = soon(response).await.expect_err("a reset");
        assert_eq!(refused.reason(), Some(Reason::PROTOCOL_ERROR), "{declared} {sent}");
    }
    let all = rest(&mut beside).await.expect("a clean end");
    assert!(all.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(stage.sim.counts().requests, 1, "neither went upstream");
    stage.until("settled", |m| m.live() == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_says_goaway_lets_streams_finish_and_then_closes() {
    let stage = Stage::start(Setup::default()).await;
    let (sender, connection) = handshake(&stage, 65_535).await;
    let closed = tokio::spawn(connection);
    let (response, _upload) =
        chat(&sender, &[("sim-interval", "100ms"), ("sim-count", "15")]).await;
    let mut body = soon(response).await.expect("a head").into_body();
    stage.gateway.stop();
    // Once GOAWAY is there the client itself begins no more streams on this connection.
    let refused = soon(async {
        loop {
            let Ok(mut ready) = sender.clone().ready().await else { break };
            let request = Request::get("http://gateway/v1/models").body(()).expect("a request");
            let Ok((response, _)) = ready.send_request(request, true) else { break };
            if response.await.is_err() {
                break;
            }
        }
    });
    refused.await;
    let all = rest(&mut body).await.expect("a clean end");
    assert!(all.ends_with(b"data: [DONE]\n\n"));
    drop(sender);
    soon(closed).await.expect("no panic").expect("closed in order");
    let Stage { gateway, .. } = stage;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_that_promised_http_2_is_not_waited_for() {
    let stage = Stage::start(Setup { client_tls: true, ..Setup::default() }).await;
    let tcp = TcpStream::connect(stage.gateway.ready.listen[0]).await.expect("the gateway");
    let mut tls = stage::client::tls(tcp, &stage.certificate.ca_pem, Http::H2).await;
    let mut said = Vec::new();
    let _ = soon(tokio::io::AsyncReadExt::read_to_end(&mut tls, &mut said)).await;
    assert_eq!(said.get(3), Some(&4), "SETTINGS came, and then the end: {said:?}");
    assert_eq!(stage.client(Http::H2).await.stream(&[]).await.end, End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_is_reset_with_cancel() {
    let stage = Stage::start(Setup::default()).await;
    let sender = connect(&stage, 65_535).await;
    let fields = [("sim-fault", "fin"), ("sim-fault-after", "2"), ("sim-count", "5")];
    let (response, _upload) = chat(&sender, &fields).await;
    let mut body = soon(response).await.expect("a head").into_body();
    let error = rest(&mut body).await.expect_err("an unclean end");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    let Client::H2(_) = stage.client(Http::H2).await else { panic!("HTTP/2") };
}
