//! Clients that read slowly, or not at all.

use std::time::Duration;

use tidegate::sim::{Behaviour, Fault, Kind, expected_body};

use tokio::task::JoinSet;

use super::crowd::{CROWD, Crowd, warm_up};
use super::over_every_pair;
use super::reader::small;
use super::stage::client::{CHAT, STREAM};
use super::stage::events::error_code;
use super::stage::{End, Http, Metrics, PATIENCE, Setup, Stage};

const EVENTS: u32 = 100;
const SIZE: usize = 4096;
/// Events without end, as far as a test is concerned.
const ENDLESS: &str = "10000000";

fn from_upstream(metrics: &Metrics) -> f64 {
    metrics.get("tidegate_bytes_total{direction=\"in\",side=\"upstream\"}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_client_gets_everything_then_the_error_then_the_cut() {
    let behaviour = Behaviour {
        count: EVENTS,
        size: SIZE,
        fault: Fault::Fin,
        fault_after: EVENTS,
        ..Behaviour::default()
    };
    let sent = expected_body(&behaviour, Kind::Chat, 1, "tide-1", false);
    over_every_pair(async |client_http, upstream_h2| {
        let what = format!("{client_http:?} upstream h2 {upstream_h2}");
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let mut client = small(&stage, client_http).await;
        let fields = [
            ("sim-clock", "off"),
            ("sim-stream", "1"),
            ("sim-count", "100"),
            ("sim-size", "4KiB"),
            ("sim-fault", "fin"),
            ("sim-fault-after", "100"),
        ];
        let started = client.start("POST", CHAT, &fields, STREAM).await;
        let answer = started.head().await.rest_slowly(Duration::from_millis(4)).await;
        let tail = answer.body.strip_prefix(sent.as_slice());
        let tail = tail.unwrap_or_else(|| panic!("{what}: {} bytes came", answer.body.len()));
        assert_eq!(error_code(tail).as_deref(), Some("upstream_truncated"), "{what}");
        assert_eq!((answer.status, answer.end), (200, End::Cut), "{what}");
        stage.until("ended", |m| m.ended("upstream_truncated") == 1.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_is_ended_and_holds_little_until_then() {
    for upstream_h2 in [false, true] {
        for client_http in [Http::H1, Http::H2] {
            let what = format!("{client_http:?} upstream h2 {upstream_h2}");
            let stream = "client_stall = \"1s\"\nbacklog = \"64KiB\"".to_owned();
            let stage = Stage::start(Setup { upstream_h2, stream, ..Setup::default() }).await;
            let mut client = small(&stage, client_http).await;
            let fields = [("sim-count", ENDLESS), ("sim-size", "4KiB")];
            let mut headed = client.start("POST", CHAT, &fields, STREAM).await.head().await;
            headed.until("\n\n").await;
            let ended = stage.sim.wait_for(|c| c.cancelled == 1, PATIENCE).await;
            ended.unwrap_or_else(|counts| panic!("{what}: never cancelled, {counts:?}"));
            let metrics = stage.until("ended", |m| m.ended("client_stalled") == 1.0).await;
            assert_eq!(metrics.live(), 0.0, "{what}");
            // The client's buffer or window, the gateway's socket, and its backlog.
            let read = from_upstream(&metrics);
            assert!(read < 384.0 * 1024.0, "{what}: read {read} bytes for a client that stalls");
            assert_eq!(metrics.get("tidegate_backlog_bytes"), 0.0, "{what}");
            assert_eq!(metrics.get("tidegate_stalled_streams"), 0.0, "{what}");
            assert_eq!(headed.rest().await.end, End::Cut, "{what}");
        }
    }
}

/// TCP tells of a reader only when it has made room for a segment, or for half its buffer: whoever
/// takes longer for that than `client_stall` cannot be told from one that does not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_too_little_to_open_its_window_counts_as_stalled() {
    for upstream_h2 in [false, true] {
        let stream = "client_stall = \"2s\"".to_owned();
        let stage = Stage::start(Setup { upstream_h2, stream, ..Setup::default() }).await;
        let mut client = small(&stage, Http::H1).await;
        // It takes a chunk of some twenty bytes at a time.
        let fields = [("sim-count", ENDLESS), ("sim-size", "4KiB"), ("sim-split", "random")];
        let mut live = client.start("POST", CHAT, &fields, STREAM).await.head().await;
        let stalled = |m: &Metrics| m.ended("client_stalled") == 1.0;
        let mut over = Box::pin(stage.until("over", stalled));
        loop {
            let more = tokio::select! {
                _ = &mut over => false,
                more = live.more() => more,
            };
            if !more {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stage.until("for that reason", stalled).await;
        let ended = stage.sim.wait_for(|c| c.cancelled == 1, PATIENCE).await;
        ended.unwrap_or_else(|counts| panic!("upstream h2 {upstream_h2}: {counts:?}"));
        assert_eq!(live.rest().await.end, End::Cut, "upstream h2 {upstream_h2}");
    }
}

/// A hundred clients that take nothing, and a hundred that do, on the same upstream connection.
async fn the_others_go_on(client_http: Http, size: &str, split: &str, stalled: usize) {
    let what = format!("{stalled} stalled {client_http:?} size {size} split {split}");
    let server = "workers = 1".to_owned();
    let stage = Stage::start(Setup { upstream_h2: true, server, ..Setup::default() }).await;
    warm_up(&stage).await;
    let mut holding = JoinSet::new();
    for _ in 0..stalled {
        let mut client = small(&stage, client_http).await;
        let (size, split) = (size.to_owned(), split.to_owned());
        holding.spawn(async move {
            let fields = [("sim-count", ENDLESS), ("sim-size", &size), ("sim-split", &split)];
            let _held = client.start("POST", CHAT, &fields, STREAM).await.head().await;
            std::future::pending::<()>().await;
        });
    }
    let wanted = |m: &Metrics| m.get("tidegate_stalled_streams") == stalled as f64;
    stage.until(&format!("all stalled: {what}"), wanted).await;
    Crowd::start(&stage).await.arrives(&what).await;
    let metrics = stage.metrics().await;
    assert_eq!(metrics.live(), stalled as f64, "{what}: the stalled wait on");
    assert_eq!(metrics.ended("completed"), CROWD as f64 + 1.0, "{what}");
    let bound = (stalled * 384 * 1024 + 4 * 1024 * 1024) as f64;
    assert!(from_upstream(&metrics) < bound, "{what}: {}", from_upstream(&metrics));
    assert_eq!(stage.sim.counts().connections, 1, "{what}: not shared");
    drop(holding);
    let gone = stage.sim.wait_for(|c| c.cancelled == stalled as u64, PATIENCE).await;
    gone.unwrap_or_else(|counts| panic!("{what}: {counts:?}"));
    stage.until("all ended", |m| m.ended("client_closed") == stalled as f64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_do_not_stop_others_on_the_same_upstream_connection() {
    the_others_go_on(Http::H1, "4KiB", "none", 100).await;
    the_others_go_on(Http::H2, "4KiB", "none", 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_they_with_the_small_events_of_a_usual_stream() {
    the_others_go_on(Http::H1, "0", "none", 100).await;
    the_others_go_on(Http::H2, "0", "none", 100).await;
}

/// Such frames go on piling up inside h2 while the others run, each at the price of some 250 bytes
/// of memory and of h2's budget for them, which is set to what a thousand such streams need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_they_with_frames_of_one_byte() {
    // Ten, for each takes about a hundred thousand frames until its buffers are full.
    the_others_go_on(Http::H1, "0", "byte", 10).await;
}
