//! `limits.memory`: what is charged to it, who is refused, who is cut.

use tidegate::gateway::auth;
use tokio::task::JoinSet;

use super::reader::small;
use super::stage::client::{CHAT, STREAM};
use super::stage::{self, End, Http, Metrics, Setup, Stage, soon};
use super::{MEMORY, nothing_left, refused};

const REFUSED: &str = "tidegate_rejections_total{limit=\"memory\"}";
const MIB: f64 = 1024.0 * 1024.0;
/// Events without end, as far as a test is concerned.
const ENDLESS: &str = "10000000";

/// One worker, a budget of `memory`, room for one request at the upstream and a queue.
async fn queued(memory: &str, upstream_h2: bool) -> Stage {
    Stage::start(Setup {
        upstream_h2,
        more: format!("[limits]\nmemory = \"{memory}\""),
        upstream: "max_streams = 1\nqueue = 1000\nqueue_wait = \"60s\"".into(),
        ..Setup::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_requests_hold_their_bodies_and_nobody_is_let_in_at_95_percent() {
    for http in [Http::H1, Http::H2] {
        let stage = queued("1MiB", http == Http::H2).await;
        let mut first = stage.client(http).await;
        let mut held =
            first.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
        held.until("data:").await;
        let mut waiting = JoinSet::new();
        let body = vec![b'x'; 60 * 1024];
        for n in 1..=16 {
            let (mut client, body) = (stage.client(http).await, body.clone());
            waiting.spawn(async move { client.ask("POST", "/v1/echo", &[], body).await });
            let (least, most) = (f64::from(n) * 60.0 * 1024.0, f64::from(n) * 64.0 * 1024.0);
            // Both, since a scrape reads one after the other.
            let holds = |m: &Metrics| {
                m.get("tidegate_queue_depth{upstream=\"sim\"}") == f64::from(n)
                    && m.get(MEMORY) >= least
            };
            let metrics = stage.until(&format!("{n} wait"), holds).await;
            let used = metrics.get(MEMORY);
            assert!(used <= most, "{http:?}: {n} bodies are charged {used}");
            if used >= 0.95 * MIB {
                break;
            }
        }
        let before = stage.sim.counts();
        let mut refusals = 0.0;
        for path in ["/v1/echo", CHAT] {
            let answer = stage.client(http).await.ask("POST", path, &[], "x").await;
            refused(&answer, 503, "memory_limit");
            assert_eq!(answer.header("retry-after"), Some("1"));
            refusals += 1.0;
        }
        assert_eq!(stage.sim.counts().requests, before.requests, "nothing upstream");
        assert_eq!(stage.metrics().await.get(REFUSED), refusals);
        drop(held);
        drop(first);
        while let Some(answer) = soon(waiting.join_next()).await {
            assert_eq!(answer.expect("no panic").status, 200);
        }
        nothing_left(&stage).await;
        assert_eq!(stage.client(http).await.ask("POST", "/v1/echo", &[], body).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_find_no_room_are_refused_and_the_others_pass() {
    let more = "[limits]\nmemory = \"1MiB\"".to_owned();
    let stage = Stage::start(Setup { more, ..Setup::default() }).await;
    let (first, second) = (vec![b'x'; 20_000], vec![b'y'; 40_000]);
    let mut clients = Vec::new();
    for _ in 0..24 {
        let mut client = stage.client(Http::H1).await;
        let fields = format!("content-length: {}", first.len() + second.len());
        client
            .raw(format!("POST /v1/echo HTTP/1.1\r\nhost: g\r\n{fields}\r\n\r\n").as_bytes())
            .await;
        client.raw(&first).await;
        clients.push(client);
    }
    // All have begun; a second half of each does not fit.
    stage.until("all have come in", |m| m.get(MEMORY) >= 24.0 * 20_000.0).await;
    let mut answers = JoinSet::new();
    for mut client in clients {
        client.raw(&second).await;
        answers.spawn(async move { client.answer().await });
    }
    let mut passed = 0;
    while let Some(answer) = soon(answers.join_next()).await {
        let answer = answer.expect("no panic");
        match answer.status {
            200 => passed += 1,
            _ => refused(&answer, 503, "memory_limit"),
        }
    }
    assert!(passed > 0, "those that fit pass");
    let metrics = nothing_left(&stage).await;
    assert_eq!(metrics.get(REFUSED), f64::from(24 - passed));
    assert_eq!(stage.sim.counts().requests, passed as u64, "nothing upstream of those refused");
}

/// Frames of a byte each would keep a read buffer each, were they not merged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_small_pieces_are_charged_is_their_length_not_their_number() {
    let stage = queued("1MiB", false).await;
    let mut first = stage.client(Http::H1).await;
    let mut held = first.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
    held.until("data:").await;
    let mut client = stage.client(Http::H1).await;
    let mut request =
        b"POST /v1/echo HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..10_000 {
        request.extend_from_slice(b"1\r\nx\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    client.raw(&request).await;
    let queued = |m: &Metrics| m.get("tidegate_queue_depth{upstream=\"sim\"}") == 1.0;
    let used = stage.until("queued", queued).await.get(MEMORY);
    assert!((10_000.0..=20_000.0).contains(&used), "{used}");
    drop(first);
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(stage.sim.requests().iter().map(|seen| seen.body_length).max(), Some(10_000));
    nothing_left(&stage).await;
}

/// A tenant with token limits: the body is collected up to `body_buffer`, and let go of when it went on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collected_body_is_let_go_of_once_it_was_sent() {
    for upstream_h2 in [false, true] {
        let key = auth::new_key().expect("a key");
        let more = format!(
            "[[tenant]]\nname = \"a\"\ntokens_per_minute = {{ \"*\" = 10000000 }}\n\
             [[tenant.key]]\nsha256 = \"{}\"\n",
            key.sha256
        );
        let route = "body_buffer = \"512KiB\"".to_owned();
        let upstream = "max_streams = 1\nqueue = 10\nqueue_wait = \"60s\"".to_owned();
        let stage =
            Stage::start(Setup { upstream_h2, more, route, upstream, ..Setup::default() }).await;
        let bearer = format!("Bearer {}", key.key);
        let filler = "x".repeat(400 * 1024);
        let body = format!(r#"{{"model":"tide-1","stream":true,"messages":[],"user":"{filler}"}}"#);
        let mut first = stage.client(Http::H1).await;
        let stall = [("authorization", bearer.as_str()), ("sim-fault", "stall")];
        let mut held = first.start("POST", CHAT, &stall, STREAM).await.head().await;
        held.until("data:").await;
        let mut client = stage.client(Http::H1).await;
        let started = client.start("POST", CHAT, &stall, body.clone()).await;
        stage.until("collected", |m| m.get(MEMORY) >= 400.0 * 1024.0).await;
        drop(first);
        let mut answer = soon(started.head()).await;
        answer.until("data:").await;
        let metrics = stage.until("let go", |m| m.get(MEMORY) == 0.0).await;
        assert_eq!(metrics.live(), 1.0, "while it streams");
        let lengths = stage.sim.requests().into_iter().map(|seen| seen.body_length);
        assert_eq!(lengths.max(), Some(body.len() as u64), "whole");
        drop(client);
        nothing_left(&stage).await;
    }
}

/// Clients that take nothing, each of an endless stream, all admitted before any of it comes.
async fn stalled(stage: &Stage, http: Http, count: usize) -> JoinSet<()> {
    let (mut holding, before) = (JoinSet::new(), stage.metrics().await.live());
    for _ in 0..count {
        let mut client = small(stage, http).await;
        holding.spawn(async move {
            let fields = [
                ("sim-count", ENDLESS),
                ("sim-size", "4KiB"),
                ("sim-clock", "off"),
                ("sim-first-event", "500ms"),
            ];
            let _held = client.start("POST", CHAT, &fields, STREAM).await.head().await;
            std::future::pending::<()>().await;
        });
    }
    stage.until("all are admitted", |m| m.live() == before + count as f64).await;
    holding
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_backlogs_are_cut_until_the_budget_holds_and_others_go_on() {
    for upstream_h2 in [false, true] {
        for http in [Http::H1, Http::H2] {
            let what = format!("{http:?} upstream h2 {upstream_h2}");
            let more = "[limits]\nmemory = \"1MiB\"".to_owned();
            let stream = "backlog = \"256KiB\"".to_owned();
            let stage = Stage::start(Setup { upstream_h2, more, stream, ..Setup::default() }).await;
            let mut reading = stage.client(http).await;
            let fields = [("sim-count", "60"), ("sim-interval", "50ms")];
            let reading = tokio::spawn(async move { reading.stream(&fields).await });
            stage.until("it reads", |m| m.live() == 1.0).await;
            // Left to hyper, some 80 KiB wait for each.
            let holding = stalled(&stage, http, 20).await;
            let cut = |m: &Metrics| m.ended("limit") > 0.0 && m.get(MEMORY) <= MIB;
            let metrics = stage.until(&format!("{what}: some are cut"), cut).await;
            assert_eq!(metrics.ended("client_stalled"), 0.0, "{what}");
            let answer = soon(reading).await.expect("no panic");
            assert_eq!((answer.status, &answer.end), (200, &End::Clean), "{what}");
            assert!(answer.text().ends_with("data: [DONE]\n\n"), "{what}");
            let metrics = stage.metrics().await;
            assert!(metrics.ended("limit") < 20.0, "{what}: those that fit stay");
            assert!(metrics.get(MEMORY) > MIB / 2.0, "{what}: no more were cut than needed");
            drop(holding);
            let metrics = nothing_left(&stage).await;
            assert_eq!(metrics.sum("tidegate_streams_ended_total"), 21.0, "{what}");
            stage.sim.wait_for(|c| c.live == 0, stage::PATIENCE).await.expect("given up upstream");
            assert_eq!(stage.client(http).await.stream(&[]).await.end, End::Clean, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http2_a_cut_stream_is_told_to_calm_down() {
    let more = "[limits]\nmemory = \"1MiB\"".to_owned();
    let stream = "backlog = \"2MiB\"".to_owned();
    let stage = Stage::start(Setup { more, stream, ..Setup::default() }).await;
    let super::stage::Client::H2(sender) = small(&stage, Http::H2).await else {
        panic!("an HTTP/2 client")
    };
    let mut sender = soon(sender.ready()).await.expect("a ready connection");
    let request = http::Request::post(format!("http://g{CHAT}"))
        .header("sim-count", ENDLESS)
        .header("sim-size", "64KiB");
    let (answer, mut body) =
        sender.send_request(request.body(()).expect("valid"), false).expect("sent");
    body.send_data(STREAM.into(), true).expect("its window is open");
    let mut answer = soon(answer).await.expect("an answer").into_body();
    stage.until("cut", |m| m.ended("limit") == 1.0).await;
    let error = loop {
        match soon(answer.data()).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("a cut stream looks complete"),
        }
    };
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM), "{error}");
    nothing_left(&stage).await;
}

/// What h2 has read for a client that lags is charged with its backlog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_clients_window_over_http2_is_charged_too() {
    for http in [Http::H1, Http::H2] {
        for (upstream_h2, least, most) in [(false, 64, 160), (true, 128, 224)] {
            let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
            let holding = stalled(&stage, http, 1).await;
            let within = |m: &Metrics| {
                let kib = m.get(MEMORY) / 1024.0;
                kib >= f64::from(least) && kib <= f64::from(most)
            };
            stage.until(&format!("{http:?} upstream h2 {upstream_h2}"), within).await;
            drop(holding);
            nothing_left(&stage).await;
        }
    }
}
