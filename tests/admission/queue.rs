//! Waiting for a place at an upstream: who is next, what the client sees meanwhile, how it leaves.
//! Weights and classes are seen in `config_effects` (`tenant.weight`, `tenant.priority`).

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use tidegate::sim::{self, Behaviour, Kind, Sim, expected_body};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::stage::client::{CHAT, STREAM};
use super::stage::events::{code_of, error_code, without_heartbeats};
use super::stage::{Client, End, Gateway, Http, Metrics, Setup, Stage, scrape, soon};
use super::{hold, quiet, refused, tenant};

fn depth(metrics: &Metrics) -> f64 {
    metrics.get("tidegate_queue_depth{upstream=\"sim\"}")
}

fn waits(metrics: &Metrics) -> [f64; 2] {
    let of = |what| metrics.get(&format!("tidegate_queue_wait_seconds_{what}{{upstream=\"sim\"}}"));
    [of("count"), of("sum")]
}

fn with_upstream(lines: &str) -> Setup {
    Setup { upstream: lines.to_owned(), ..Setup::default() }
}

/// Another handle to the same HTTP/2 connection.
fn again(client: &Client) -> Client {
    match client {
        Client::H2(sender) => Client::H2(sender.clone()),
        Client::H1(..) => panic!("an HTTP/1.1 connection cannot be shared"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_of_one_tenant_delay_anothers_one_by_two_grants_at_most() {
    const MANY: usize = 1_000;
    let (one, two) = (tenant("a", ""), tenant("b", ""));
    let setup = Setup {
        more: format!("[limits]\nnew_streams_per_second = 100000\n{}{}", one.section, two.section),
        server: format!("h2_max_streams = {}", 2 * MANY),
        ..with_upstream(&format!("max_streams = 1\nqueue = {}\nqueue_wait = \"1m\"", 2 * MANY))
    };
    let stage = Stage::start(setup).await;
    let holder = hold(&stage, Http::H1, &[("authorization", &one.bearer)]).await;
    let shared = stage.client(Http::H2).await;
    let mut many = JoinSet::new();
    for _ in 0..MANY {
        let (mut client, bearer) = (again(&shared), one.bearer.clone());
        many.spawn(async move {
            // So slow that few are served before the other tenant's answer has come.
            let fields = [("authorization", bearer.as_str()), ("sim-first-byte", "50ms")];
            let started = client.start("GET", "/v1/many", &fields, "").await;
            started.head().await.rest().await.status
        });
    }
    stage.until("all wait", |m| depth(m) == MANY as f64).await;
    let mut client = stage.client(Http::H1).await;
    let waiting = client.start("GET", "/v1/one", &[("authorization", &two.bearer)], "").await;
    stage.until("one more waits", |m| depth(m) == MANY as f64 + 1.0).await;
    drop(holder);
    assert_eq!(soon(waiting.head()).await.rest().await.status, 200);
    let seen = stage.sim.requests();
    let at = seen.iter().position(|seen| seen.path_and_query == "/v1/one").expect("it was sent");
    // The first is the holder's.
    assert!(at <= 1 + 2, "{} were served before it", at - 1);
    many.abort_all();
    drop(shared);
    let metrics = stage.until("the rest leave", |m| depth(m) == 0.0 && m.live() == 0.0).await;
    assert_eq!(metrics.sum("tidegate_rejections_total"), 0.0);
    assert!(stage.sim.counts().requests < 100, "who left was not sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_stream_is_promised_kept_alive_and_then_itself() {
    for http in [Http::H1, Http::H2] {
        let setup = Setup {
            stream: "commit_after = \"200ms\"\nheartbeat = \"100ms\"".to_owned(),
            ..with_upstream("max_streams = 1\nqueue_wait = \"1m\"")
        };
        let stage = Stage::start(setup).await;
        let holder = hold(&stage, Http::H1, &[]).await;
        let mut client = stage.client(http).await;
        let fields = [("sim-clock", "off"), ("sim-stream", "7")];
        let began = Instant::now();
        let mut live = soon(client.start("POST", CHAT, &fields, STREAM).await.head()).await;
        assert_eq!(
            (live.status, live.headers["content-type"].as_bytes()),
            (200, &EVENT_STREAM[..])
        );
        live.until(": ping\n: ping\n").await;
        let waited = began.elapsed();
        let metrics = stage.metrics().await;
        assert_eq!((depth(&metrics), waits(&metrics)[0]), (1.0, 0.0));
        assert_eq!(stage.sim.counts().requests, 1, "the upstream knows nothing of it yet");
        drop(holder);
        let answer = live.rest().await;
        let (events, beats) = without_heartbeats(&answer.body);
        let whole = expected_body(&Behaviour::default(), Kind::Chat, 7, "tide-1", false);
        assert_eq!(String::from_utf8_lossy(&events), String::from_utf8_lossy(&whole));
        assert!(answer.end == End::Clean && beats >= 2, "{beats}");
        let metrics = quiet(&stage).await;
        let [count, sum] = waits(&metrics);
        let longest = began.elapsed().as_secs_f64();
        assert_eq!((depth(&metrics), count), (0.0, 1.0));
        assert!(sum <= longest && sum > waited.as_secs_f64() / 2.0, "{sum} of {longest}");
    }
}

const EVENT_STREAM: [u8; 32] = *b"text/event-stream; charset=utf-8";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_stream_that_gets_no_place_is_told_so_in_an_event() {
    for http in [Http::H1, Http::H2] {
        let setup = Setup {
            stream: "commit_after = \"200ms\"\nheartbeat = \"100ms\"".to_owned(),
            ..with_upstream("max_streams = 1\nqueue_wait = \"1s\"")
        };
        let stage = Stage::start(setup).await;
        let _holder = hold(&stage, Http::H1, &[]).await;
        let answer = stage.client(http).await.stream(&[]).await;
        let (events, beats) = without_heartbeats(&answer.body);
        assert_eq!(error_code(&events).as_deref(), Some("queue_timeout"), "{}", answer.text());
        assert_eq!((answer.status, &answer.end), (200, &End::Cut));
        assert!(beats >= 2, "{}", answer.text());
        // Who did not ask for a stream has nothing to be kept alive by, and gets a real status.
        let plain = stage.client(http).await.ask("GET", "/v1/x", &[], "").await;
        assert_eq!(code_of(&plain.text()).as_deref(), Some("queue_timeout"));
        assert_eq!(plain.status, 503);
        super::told_to_wait(&plain);
        let metrics = stage.metrics().await;
        assert_eq!((refused(&metrics, "queue_wait"), depth(&metrics)), (2.0, 0.0));
        assert_eq!(waits(&metrics)[0], 2.0);
        assert_eq!(metrics.ended("limit"), 2.0);
        assert_eq!(stage.sim.counts().requests, 1, "they never reached the upstream");
    }
}

/// How a queued client leaves.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// FIN, and it would still read.
    H1Fin,
    H1Rst,
    H2Reset,
    H2Disconnect,
    /// In the middle of its request's body, of which enough has come to queue.
    H1Torn,
    H2Torn,
}

/// A client in the queue; dropping it closes its connection.
enum Queued {
    H1(TcpStream),
    H2(h2::SendStream<Bytes>, h2::client::ResponseFuture, tokio::task::AbortHandle),
}

impl Queued {
    async fn ask(stage: &Stage, way: Way) -> Queued {
        let tcp = TcpStream::connect(stage.gateway.ready.listen[0]).await;
        let mut tcp = tcp.expect("the gateway");
        // Beyond what is read ahead of the upstream, for the client that leaves half-way.
        let more = if matches!(way, Way::H1Torn | Way::H2Torn) { 100_000 } else { 0 };
        let (half, length) = (STREAM.to_owned() + &" ".repeat(more * 3 / 4), STREAM.len() + more);
        if matches!(way, Way::H2Reset | Way::H2Disconnect | Way::H2Torn) {
            let (sender, connection) = soon(h2::client::handshake(tcp)).await.expect("h2");
            let connection = tokio::spawn(async move { drop(connection.await) }).abort_handle();
            let request = Request::post(format!("http://gateway{CHAT}")).body(()).expect("one");
            let mut sender = soon(sender.ready()).await.expect("a ready connection");
            let (response, mut body) = sender.send_request(request, false).expect("a stream");
            body.send_data(Bytes::from(half), more == 0).expect("a body");
            return Queued::H2(body, response, connection);
        }
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {length}\r\n\r\n");
        soon(tcp.write_all((head + &half).as_bytes())).await.expect("a request");
        Queued::H1(tcp)
    }

    /// Leaves; what is returned stays open until it is dropped.
    async fn leave(self, way: Way) -> Option<Queued> {
        match (self, way) {
            (Queued::H1(mut tcp), Way::H1Fin) => {
                tcp.shutdown().await.expect("an open connection");
                Some(Queued::H1(tcp))
            }
            (Queued::H1(tcp), Way::H1Rst) => {
                let at_once = Some(Duration::ZERO);
                socket2::SockRef::from(&tcp).set_linger(at_once).expect("an open connection");
                None
            }
            (Queued::H1(_), _) => None,
            (Queued::H2(mut body, response, connection), Way::H2Reset | Way::H2Torn) => {
                body.send_reset(h2::Reason::CANCEL);
                Some(Queued::H2(body, response, connection))
            }
            (Queued::H2(_, _, connection), _) => {
                connection.abort();
                None
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_the_queue_is_gone_from_it_and_the_place_goes_on() {
    leaves(&[Way::H1Fin, Way::H1Rst, Way::H2Reset, Way::H2Disconnect, Way::H2Torn]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_the_queue_half_way_through_an_http1_body_is_gone_from_it() {
    leaves(&[Way::H1Torn]).await;
}

/// Each of `ways` to leave, before and after the 200 was promised.
async fn leaves(ways: &[Way]) {
    for commit in ["off", "100ms"] {
        let setup = Setup {
            stream: format!("commit_after = \"{commit}\"\nheartbeat = \"100ms\""),
            ..with_upstream("max_streams = 1\nqueue = 2\nqueue_wait = \"1m\"")
        };
        let stage = Stage::start(setup).await;
        let mut sent = 0;
        for (n, &way) in (1_u32..).zip(ways) {
            let what = format!("{way:?} commit {commit}");
            let holder = hold(&stage, Http::H1, &[]).await;
            let leaver = Queued::ask(&stage, way).await;
            stage.until(&what, |m| depth(m) == 1.0).await;
            let mut client = stage.client(Http::H1).await;
            let behind = client.start("GET", "/v1/x", &[], "").await;
            stage.until(&what, |m| depth(m) == 2.0).await;
            if commit != "off" {
                let beats = stage.metrics().await.get("tidegate_heartbeats_total");
                stage.until("a heartbeat", |m| m.get("tidegate_heartbeats_total") > beats).await;
            }
            let left = leaver.leave(way).await;
            stage.until(&what, |m| depth(m) == 1.0).await;
            drop(holder);
            assert_eq!(soon(behind.head()).await.rest().await.status, 200, "{what}");
            let metrics = quiet(&stage).await;
            sent += 2;
            assert_eq!(stage.sim.counts().requests, sent, "{what}: never sent");
            // The holder's too.
            assert_eq!(metrics.ended("client_closed"), f64::from(n) * 2.0, "{what}");
            assert_eq!(metrics.sum("tidegate_rejections_total"), 0.0, "{what}");
            drop(left);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_queued_beyond_a_deadline() {
    let read = "x-stainless-read-timeout";
    let whole = "x-stainless-timeout";
    // The route's, what the client tells, the queue's own; which of them refuses.
    for (route, fields, queue_wait, label) in [
        ("", &[(read, "0.5")][..], "1m", "deadline"),
        ("", &[(whole, "0.5")], "1m", "deadline"),
        ("", &[(whole, "600"), (read, "0.5")], "1m", "deadline"),
        ("timeout = \"500ms\"", &[], "1m", "deadline"),
        ("timeout = \"500ms\"", &[(read, "600")], "1m", "deadline"),
        ("timeout = \"1h\"", &[(read, "0.5")], "1m", "deadline"),
        ("timeout = \"1h\"", &[(read, "600")], "500ms", "queue_wait"),
        // What is no time is not taken for one.
        ("", &[(read, "soon"), (whole, "-1")], "500ms", "queue_wait"),
        ("", &[(read, "nan"), (whole, "inf")], "500ms", "queue_wait"),
        ("", &[(read, "1e300")], "500ms", "queue_wait"),
    ] {
        let lines = format!("max_streams = 1\nqueue_wait = \"{queue_wait}\"");
        let setup = Setup { route: route.to_owned(), ..with_upstream(&lines) };
        let stage = Stage::start(setup).await;
        let _holder = hold(&stage, Http::H1, &[]).await;
        for http in [Http::H1, Http::H2] {
            let began = Instant::now();
            let answer = stage.client(http).await.ask("GET", "/v1/x", fields, "").await;
            let (what, took) = (format!("{route} {fields:?} {http:?}"), began.elapsed());
            assert_eq!(answer.status, 503, "{what}");
            let code = if label == "deadline" { "queue_deadline" } else { "queue_timeout" };
            assert_eq!(code_of(&answer.text()).as_deref(), Some(code), "{what}");
            // Deadlines are kept to within a tick of the wheel, 100 ms, and count from the arrival;
            // the machine may be busy.
            assert!((300..5_000).contains(&took.as_millis()), "{what}: {took:?}");
        }
        let metrics = stage.metrics().await;
        assert_eq!((refused(&metrics, label), depth(&metrics)), (2.0, 0.0), "{route} {fields:?}");
        assert_eq!(stage.sim.counts().requests, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_in_the_queue_is_not_the_upstreams() {
    for (body, commit) in [(STREAM, "off"), (STREAM, "100ms"), ("{}", "off")] {
        let setup = Setup {
            stream: format!("first_byte = \"600ms\"\ncommit_after = \"{commit}\""),
            ..with_upstream("max_streams = 1\nqueue_wait = \"1m\"")
        };
        let stage = Stage::start(setup).await;
        for http in [Http::H1, Http::H2] {
            // The place is taken for more than twice as long as the upstream may take.
            let long = [("sim-interval", "100ms"), ("sim-count", "15")];
            let mut first = stage.client(Http::H1).await;
            let mut live = soon(first.start("POST", CHAT, &long, STREAM).await.head()).await;
            live.until("data:").await;
            let mut second = stage.client(http).await;
            let waiting = second.start("POST", CHAT, &[("sim-first-byte", "300ms")], body).await;
            stage.until("it waits", |m| depth(m) == 1.0).await;
            assert_eq!(live.rest().await.end, End::Clean);
            let answer = soon(waiting.head()).await.rest().await;
            let what = format!("{http:?} commit {commit}: {}", answer.text());
            assert_eq!((answer.status, &answer.end), (200, &End::Clean), "{what}");
            assert!(waits(&stage.metrics().await)[1] > 0.6, "it waited for longer than that");
            // Once it has its place, the upstream's time runs.
            let holder = hold(&stage, Http::H1, &[]).await;
            let waiting = second.start("POST", CHAT, &[("sim-fault", "stall-head")], body).await;
            stage.until("it waits", |m| depth(m) == 1.0).await;
            drop(holder);
            let began = Instant::now();
            let answer = soon(waiting.head()).await.rest().await;
            assert!(answer.text().contains("upstream_first_byte_timeout"), "{}", answer.text());
            assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
            quiet(&stage).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_stalls_with_a_full_queue_is_its_own_trouble() {
    let any = ([127, 0, 0, 1], 0).into();
    let start = async || Sim::start(any, sim::Options::default()).await.expect("an upstream");
    let (stalled, other) = (start().await, start().await);
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"stalled\"\nurls = [\"http://{}\"]\nmax_streams = 20\nqueue = 30\n\
         queue_wait = \"1m\"\n[[upstream]]\nname = \"other\"\nurls = [\"http://{}\"]\n\
         max_streams = 20\nqueue = 30\n[[route]]\npath = \"/v1/{{*rest}}\"\nupstream = \"stalled\"\n\
         [[route]]\npath = \"/other/v1/{{*rest}}\"\nupstream = \"other\"\n",
        stalled.addr(),
        other.addr()
    );
    let gateway = Gateway::start(&text, None).await;
    let connect = |http| Client::connect(gateway.ready.listen[0], http, None);
    let shared = connect(Http::H2).await;
    let mut stuck = JoinSet::new();
    for _ in 0..50 {
        let mut client = again(&shared);
        stuck.spawn(async move {
            let fields = [("sim-fault", "stall-head")];
            let started = client.start("POST", CHAT, &fields, STREAM).await;
            started.head().await.status
        });
    }
    let of = |name: &str, upstream: &str| format!("{name}{{upstream=\"{upstream}\"}}");
    let (stalled_depth, other_depth) =
        (of("tidegate_queue_depth", "stalled"), of("tidegate_queue_depth", "other"));
    let full = |m: &Metrics| m.get(&stalled_depth) == 30.0;
    scrape::until(gateway.ready.admin, "its queue is full", full).await;
    let whole = expected_body(&Behaviour::default(), Kind::Chat, 1, "tide-1", false);
    let path = format!("/other{CHAT}");
    for round in 0..100 {
        let mut client = connect(if round % 2 == 0 { Http::H1 } else { Http::H2 }).await;
        let fields = [("sim-clock", "off"), ("sim-stream", "1")];
        let answer = client.ask("POST", &path, &fields, STREAM).await;
        assert_eq!((answer.status, &answer.end), (200, &End::Clean), "round {round}");
        assert_eq!(answer.body, whole, "round {round}");
    }
    let refused = connect(Http::H1).await.stream(&[]).await;
    assert_eq!(code_of(&refused.text()).as_deref(), Some("queue_full"), "it is full still");
    let metrics = scrape::metrics(gateway.ready.admin).await;
    assert_eq!((metrics.get(&stalled_depth), metrics.get(&other_depth)), (30.0, 0.0));
    assert_eq!(metrics.get(&of("tidegate_queue_wait_seconds_count", "other")), 0.0);
    assert_eq!((stalled.counts().live, other.counts().requests), (20, 100));
    assert!(stuck.try_join_next().is_none(), "all fifty are where they were");
    stuck.abort_all();
}
