//! The main job over every pair of protocols: what the client gets is what the upstream sent, plus
//! heartbeats between events, however the upstream cuts and frames its bytes.

mod stage;

use std::time::Duration;

use bytes::BytesMut;
use stage::events::without_heartbeats;
use stage::{Answer, Client, End, Http, Setup, Stage, be_patient, patience};
use tidegate::sim::{Behaviour, Framing, Kind, LineEnd, Split, expected_body};
use tokio::task::JoinSet;

/// Streams at once over each pair of protocols.
const STREAMS: usize = 200;
/// Streams of one HTTP/2 client connection.
const EACH: usize = 25;
/// Events of each, with `[DONE]` on top; and the quiet time between them.
const EVENTS: u32 = 4;
const INTERVAL: &str = "350ms";
/// Quiet times between the events of all streams.
const QUIETS: usize = STREAMS * (EVENTS as usize - 1);

/// How long anything may take: a crowd is a fixed amount of work, byte by byte more than a
/// million pieces, and what that takes depends on what else the machine does. Nothing here waits for a
/// limit, so a gateway that reaches one fails the test in any case.
const BUSY: Duration = Duration::from_secs(120);
/// The same for the gateway's own limits on dialling and on clients that take nothing.
const BUSY_STREAM: &str =
    "heartbeat = \"100ms\"\nclient_stall = \"2m\"\nidle = \"5m\"\nfirst_byte = \"5m\"";
const BUSY_UPSTREAM: &str = "connect = \"2m\"";

/// A way to lay out the upstream's bytes: `sim-split`, `sim-line-end`, `sim-bom`.
type Layout = (&'static str, &'static str, &'static str);

const LAYOUTS: [Layout; 6] = [
    ("none", "lf", "off"),
    ("none", "crlf", "off"),
    ("none", "cr", "off"),
    ("none", "lf", "on"),
    ("random", "crlf", "on"),
    ("random", "cr", "off"),
];

/// Every byte a chunk (or a frame) and a write of its own.
const BYTEWISE: [Layout; 4] =
    [("byte", "lf", "off"), ("byte", "crlf", "off"), ("byte", "cr", "off"), ("byte", "lf", "on")];

/// One stream in ten comes byte by byte, which over TLS costs a record each.
fn mixed(n: usize) -> Layout {
    if n.is_multiple_of(10) {
        BYTEWISE[n / 10 % BYTEWISE.len()]
    } else {
        LAYOUTS[n % LAYOUTS.len()]
    }
}

fn fields(id: &str, events: u32, (split, line_end, bom): Layout) -> Vec<(&'static str, String)> {
    let field = |name, value: &str| (name, value.to_owned());
    vec![
        field("sim-clock", "off"),
        field("sim-stream", id),
        field("sim-count", &events.to_string()),
        field("sim-interval", INTERVAL),
        field("sim-split", split),
        field("sim-line-end", line_end),
        field("sim-bom", bom),
    ]
}

/// What the client has to get: the upstream's bytes without a byte order mark, which eats the
/// first event in some clients.
fn expected(id: u64, events: u32, (_, line_end, _): Layout) -> Vec<u8> {
    let line_end = match line_end {
        "crlf" => LineEnd::Crlf,
        "cr" => LineEnd::Cr,
        _ => LineEnd::Lf,
    };
    let framing = Framing { split: Split::None, line_end, bom: false };
    let behaviour = Behaviour { count: events, framing, ..Behaviour::default() };
    expected_body(&behaviour, Kind::Chat, id, "tide-1", false)
}

/// Runs [`STREAMS`] streams at once, stream `n` laid out as `layout(n)`.
async fn run(
    stage: &Stage,
    http: Http,
    events: u32,
    layout: impl Fn(usize) -> Layout,
) -> Vec<(usize, Answer)> {
    let mut running = JoinSet::new();
    let mut shared = None;
    for n in 0..STREAMS {
        let mut client = match http {
            Http::H1 => stage.client(http).await,
            Http::H2 => {
                if n % EACH == 0 {
                    shared = Some(stage.client(http).await);
                }
                let Some(Client::H2(sender)) = &shared else { panic!("an HTTP/2 connection") };
                Client::H2(sender.clone())
            }
        };
        let fields = fields(&n.to_string(), events, layout(n));
        running.spawn(async move {
            let fields: Vec<_> =
                fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            (n, client.stream(&fields).await)
        });
    }
    running.join_all().await
}

async fn all_arrive(
    setup: Setup,
    http: Http,
    events: u32,
    layout: impl Fn(usize) -> Layout + Copy,
    quiet_times: std::ops::RangeInclusive<usize>,
) {
    let (client_tls, upstream_tls) = (setup.client_tls, setup.upstream_tls);
    let what = format!("{http:?} tls {client_tls} -> h2 {} tls {upstream_tls}", setup.upstream_h2);
    be_patient(BUSY);
    let (stream, upstream) = (BUSY_STREAM.into(), BUSY_UPSTREAM.into());
    let stage = Stage::start(Setup { stream, upstream, ..setup }).await;
    let answers = run(&stage, http, events, layout).await;
    let mut beats = 0;
    for (n, answer) in answers {
        let layout = layout(n);
        let what = format!("{what} stream {n} {layout:?}");
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        let (rest, own) = without_heartbeats(&answer.body);
        let expected = expected(n as u64, events, layout);
        assert_eq!(String::from_utf8_lossy(&rest), String::from_utf8_lossy(&expected), "{what}");
        assert_eq!(answer.end, End::Clean, "{what}");
        beats += own;
    }
    assert!(quiet_times.contains(&beats), "{what}: {beats} heartbeats, not {quiet_times:?}");

    let ended = |m: &stage::Metrics| m.ended("completed") == STREAMS as f64 && m.live() == 0.0;
    let metrics = stage.until("all ended", ended).await;
    assert_eq!(metrics.get("tidegate_heartbeats_total"), beats as f64, "{what}");
    assert_eq!(metrics.sum("tidegate_streams_ended_total"), STREAMS as f64, "{what}");
    let all = |c: &tidegate::sim::Counts| c.completed == STREAMS as u64;
    stage.sim.wait_for(all, patience()).await.expect("all completed");
    assert_eq!(stage.sim.counts().requests, STREAMS as u64, "{what}: no request twice");
}

/// Each of the 16 pairs, half of them per test so that the tests share the machine's cores.
async fn every_pair(upstream_h2: bool) {
    // A heartbeat comes 100 ms after the last byte, rounded up to whole ticks: one to three in
    // each of the quiet times. A busy machine may squeeze or stretch those, hence the generosity.
    for (client_tls, upstream_tls) in [(false, false), (false, true), (true, false), (true, true)] {
        for http in [Http::H1, Http::H2] {
            let setup = Setup { client_tls, upstream_tls, upstream_h2, ..Setup::default() };
            all_arrive(setup, http, EVENTS, mixed, QUIETS / 2..=QUIETS * 5).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_arrive_byte_for_byte_from_an_http1_upstream() {
    every_pair(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_arrive_byte_for_byte_from_an_http2_upstream() {
    every_pair(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_all_come_byte_by_byte_arrive_byte_for_byte() {
    for (client_tls, upstream_tls) in [(false, false), (false, true), (true, false), (true, true)] {
        for upstream_h2 in [false, true] {
            for http in [Http::H1, Http::H2] {
                let setup = Setup { client_tls, upstream_tls, upstream_h2, ..Setup::default() };
                // Sending so many small pieces may leave no time to be quiet.
                let layout = |n| BYTEWISE[n % BYTEWISE.len()];
                all_arrive(setup, http, 2, layout, 0..=QUIETS * 5).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_one_client_after_another_is_its_own() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let mut h1 = stage.client(Http::H1).await;
        let mut h2 = stage.client(Http::H2).await;
        for id in ["1", "2", "3"] {
            for client in [&mut h1, &mut h2] {
                let fields = [("sim-clock", "off"), ("sim-stream", id), ("sim-count", "5")];
                let answer = client.stream(&fields).await;
                let id = id.parse().expect("a number");
                let behaviour = Behaviour { count: 5, ..Behaviour::default() };
                let expected = expected_body(&behaviour, Kind::Chat, id, "tide-1", false);
                assert_eq!(answer.text(), String::from_utf8_lossy(&expected));
                assert_eq!((answer.status, answer.end), (200, End::Clean));
            }
        }
        // Nothing of one answer is left on the connection for the next.
        let Client::H1(_, ahead) = h1 else { panic!("an HTTP/1.1 client") };
        assert_eq!(ahead, BytesMut::new());
    }
}
