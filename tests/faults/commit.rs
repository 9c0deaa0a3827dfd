//! The early commit: a 200 before the upstream has said anything, so that heartbeats can start.

use std::time::Duration;

use tidegate::sim::{Behaviour, Kind, expected_body};
use tokio::time::Instant;

use super::over_every_pair;
use super::stage::client::{CHAT, STREAM};
use super::stage::events::{code_of, error_code, without_heartbeats};
use super::stage::{Answer, End, Setup, Stage};

const EARLY: &str = "commit_after = \"300ms\"\nheartbeat = \"200ms\"";
const NO_STREAM: &str = r#"{"model":"tide-1","messages":[]}"#;

async fn stage(upstream_h2: bool, stream: &str) -> Stage {
    Stage::start(Setup { upstream_h2, stream: stream.to_owned(), ..Setup::default() }).await
}

/// Asserts that `answer` is heartbeats, then one error event, then the cut; returns its code.
fn only_an_error(answer: &Answer, what: &str) -> String {
    let what = format!("{what}: {}", answer.text());
    let (rest, beats) = without_heartbeats(&answer.body);
    assert!(beats > 0, "{what}");
    assert_eq!((answer.status, &answer.end), (200, &End::Cut), "{what}");
    error_code(&rest).unwrap_or_else(|| panic!("not exactly one error event: {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_comes_early_then_heartbeats_then_the_events() {
    // Once the upstream thinks before its head, once between its head and the first event.
    for slow in ["sim-first-byte", "sim-first-event"] {
        over_every_pair(async |http, upstream_h2| {
            let what = format!("{slow} {http:?} upstream h2 {upstream_h2}");
            let stage = stage(upstream_h2, EARLY).await;
            let mut client = stage.client(http).await;
            let fields =
                [("sim-clock", "off"), ("sim-stream", "1"), ("sim-count", "3"), (slow, "1500ms")];
            let asked = Instant::now();
            let mut headed = client.start("POST", CHAT, &fields, STREAM).await.head().await;
            let waited = asked.elapsed();
            assert!(waited >= Duration::from_millis(250), "{what}: a head after {waited:?}");
            assert_eq!(headed.status, 200, "{what}");
            let kind = headed.headers["content-type"].to_str().expect("ASCII").to_owned();
            assert!(kind.starts_with("text/event-stream"), "{what}: {kind}");
            headed.until(": ping\n").await;
            assert!(headed.body.starts_with(b": ping\n"), "{what}");
            let answer = headed.rest().await;
            let (rest, beats) = without_heartbeats(&answer.body);
            let behaviour = Behaviour { count: 3, ..Behaviour::default() };
            assert_eq!(rest, expected_body(&behaviour, Kind::Chat, 1, "tide-1", false), "{what}");
            assert_eq!(answer.end, End::Clean, "{what}");
            assert!((2..=8).contains(&beats), "{what}: {beats} heartbeats");
            stage.until("completed", |m| m.ended("completed") == 1.0).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_commit_the_upstreams_refusal_is_an_error_event_with_its_own_words() {
    over_every_pair(async |http, upstream_h2| {
        let stage = stage(upstream_h2, EARLY).await;
        for (status, kind) in [("429", "rate_limit_error"), ("500", "server_error")] {
            let what = format!("{status} {http:?} upstream h2 {upstream_h2}");
            let fields = [("sim-first-byte", "1800ms"), ("sim-status", status)];
            let answer = stage.client(http).await.stream(&fields).await;
            assert_eq!(only_an_error(&answer, &what), "sim");
            let text = answer.text();
            assert!(text.contains("simulated error") && text.contains(kind), "{what}: {text}");
        }
        let fields = [("sim-first-byte", "1800ms"), ("sim-fault", "html")];
        let answer = stage.client(http).await.stream(&fields).await;
        assert_eq!(only_an_error(&answer, "html"), "upstream_status");
        let fields = [("sim-first-byte", "1800ms"), ("sim-fault", "reset-head")];
        let answer = stage.client(http).await.stream(&fields).await;
        assert_eq!(only_an_error(&answer, "reset-head"), "upstream_gone");
        stage.until("all ended", |m| m.ended("upstream_error") == 4.0 && m.live() == 0.0).await;
        assert_eq!(stage.sim.counts().requests, 4, "no request twice");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_commit_heartbeats_end_with_the_first_byte_limit() {
    over_every_pair(async |http, upstream_h2| {
        let stage = stage(upstream_h2, &format!("{EARLY}\nfirst_byte = \"1s\"")).await;
        for fault in ["stall-head", "stall"] {
            let fields = [("sim-fault", fault), ("sim-fault-after", "0")];
            let answer = stage.client(http).await.stream(&fields).await;
            let what = format!("{fault} {http:?} upstream h2 {upstream_h2}");
            assert_eq!(only_an_error(&answer, &what), "upstream_first_byte_timeout");
        }
        stage.until("both ended", |m| m.ended("upstream_timeout") == 2.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_no_stream_is_never_committed_early() {
    over_every_pair(async |http, upstream_h2| {
        let what = format!("{http:?} upstream h2 {upstream_h2}");
        let stage = stage(upstream_h2, EARLY).await;
        let mut client = stage.client(http).await;
        let slow = ("sim-first-byte", "900ms");
        let answer = client.ask("POST", CHAT, &[slow], NO_STREAM).await;
        assert_eq!((answer.status, &answer.end), (200, &End::Clean), "{what}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
        let json: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON alone");
        assert_eq!(json["object"], "chat.completion", "{what}");
        let fields = [slow, ("sim-status", "429"), ("sim-retry-after", "7")];
        let answer = client.ask("POST", CHAT, &fields, NO_STREAM).await;
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")), "{what}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_commit_the_status_is_the_true_one() {
    over_every_pair(async |http, upstream_h2| {
        let what = format!("{http:?} upstream h2 {upstream_h2}");
        let limits = "commit_after = \"2s\"\nfirst_byte = \"500ms\"";
        let stage = stage(upstream_h2, limits).await;
        for fault in ["stall-head", "stall"] {
            let fields = [("sim-fault", fault), ("sim-fault-after", "0")];
            let answer = stage.client(http).await.stream(&fields).await;
            assert_eq!((answer.status, &answer.end), (504, &End::Clean), "{what} {fault}");
            let code = code_of(&answer.text());
            assert_eq!(code.as_deref(), Some("upstream_first_byte_timeout"), "{what} {fault}");
        }
        let fields = [("sim-status", "429"), ("sim-retry-after", "7")];
        let answer = stage.client(http).await.stream(&fields).await;
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")), "{what}");
        stage.until("ended", |m| m.ended("upstream_timeout") == 2.0 && m.live() == 0.0).await;
    })
    .await;
}
