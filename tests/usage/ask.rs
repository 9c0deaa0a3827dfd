//! `usage = "inject"`: what the upstream is asked, and that the client sees nothing of it.

use tidegate::sim::{Behaviour, Framing, Kind, LineEnd, Seen, Split, expected_body};

use super::stage::client::{CHAT, STREAM};
use super::stage::events::without_heartbeats;
use super::stage::{Answer, End, Http, Metrics, Setup, Stage};
use super::{PROMPT, all_unknown, tokens, unknown};

const EVENTS: u32 = 5;
const ROUTE: &str = "usage = \"inject\"";
/// [`STREAM`] as it goes on.
const ASKING: &str =
    r#"{"model":"tide-1","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#;

fn injecting() -> Setup {
    Setup { route: ROUTE.to_owned(), ..Setup::default() }
}

/// What the upstream sends if it is asked for its usage, without the chunk that tells it.
fn expected(line_end: &str, kind: Kind) -> Vec<u8> {
    let (line_end, break_) = match line_end {
        "crlf" => (LineEnd::Crlf, "\r\n"),
        "cr" => (LineEnd::Cr, "\r"),
        _ => (LineEnd::Lf, "\n"),
    };
    let framing = Framing { split: Split::None, line_end, bom: false };
    let behaviour = Behaviour { count: EVENTS, framing, ..Behaviour::default() };
    let whole = expected_body(&behaviour, kind, 7, "tide-1", true);
    let whole = String::from_utf8(whole).expect("text");
    let blank = break_.repeat(2);
    let events = whole.split_inclusive(&blank);
    let kept: String = events.clone().filter(|event| !event.contains("\"choices\":[]")).collect();
    assert_eq!(events.count(), kept.split_inclusive(&blank).count() + 1, "one chunk tells it");
    assert!(kept.contains("\"usage\":null"), "which others have too");
    kept.into_bytes()
}

fn fields<'f>(split: &'f str, line_end: &'f str, bom: &'f str) -> Vec<(&'static str, &'f str)> {
    vec![
        ("sim-clock", "off"),
        ("sim-stream", "7"),
        ("sim-count", "5"),
        ("sim-split", split),
        ("sim-line-end", line_end),
        ("sim-bom", bom),
    ]
}

/// The last request that the upstream saw.
fn last(stage: &Stage) -> Seen {
    stage.sim.requests().last().expect("a request").clone()
}

async fn after(stage: &Stage, requests: u32) -> Metrics {
    let over = |m: &Metrics| {
        m.live() == 0.0 && m.sum("tidegate_streams_ended_total{") == f64::from(requests)
    };
    stage.until("all are over", over).await
}

fn assert_whole(answer: &Answer, expected: &[u8], what: &str) {
    assert_eq!((answer.status, answer.end), (200, End::Clean), "{what}");
    let (got, wanted) = (String::from_utf8_lossy(&answer.body), String::from_utf8_lossy(expected));
    assert_eq!(got, wanted, "{what}");
}

async fn over_the_pair(http: Http, upstream_h2: bool) {
    let stage = Stage::start(Setup { upstream_h2, ..injecting() }).await;
    let mut asked = 0;
    let mut client = stage.client(http).await;
    for line_end in ["lf", "crlf", "cr"] {
        for (split, bom) in [("none", "off"), ("byte", "off"), ("random", "on"), ("byte", "on")] {
            let what = format!("{http:?} upstream h2 {upstream_h2} {line_end} {split} bom {bom}");
            let answer = client.ask("POST", CHAT, &fields(split, line_end, bom), STREAM).await;
            assert_whole(&answer, &expected(line_end, Kind::Chat), &what);
            let seen = last(&stage);
            assert_eq!(String::from_utf8_lossy(&seen.body_prefix), ASKING, "{what}");
            assert_eq!(seen.body_length, ASKING.len() as u64);
            let length = ASKING.len().to_string();
            assert_eq!(seen.header("content-length"), Some(length.as_str()), "{what}");
            asked += 1;
        }
    }
    let answer = client.ask("POST", "/v1/completions", &fields("byte", "lf", "off"), STREAM).await;
    assert_whole(&answer, &expected("lf", Kind::Completion), "legacy completions");
    asked += 1;
    let metrics = after(&stage, asked).await;
    let (n, events) = (f64::from(asked), f64::from(EVENTS));
    assert_eq!(tokens(&metrics, "", "*"), (n * PROMPT, n * events));
    assert_eq!(all_unknown(&metrics), 0.0);
    let sent = "tidegate_bytes_total{direction=\"out\",side=\"upstream\"}";
    assert_eq!(metrics.get(sent), n * ASKING.len() as f64, "what was put in went out");
    let came = "tidegate_bytes_total{direction=\"in\",side=\"client\"}";
    assert_eq!(metrics.get(came), n * STREAM.len() as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_is_asked_and_the_client_does_not_see_it() {
    for http in [Http::H1, Http::H2] {
        for upstream_h2 in [false, true] {
            over_the_pair(http, upstream_h2).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_stay_between_events() {
    let stream = "heartbeat = \"100ms\"\ncommit_after = \"100ms\"".to_owned();
    for (http, upstream_h2) in [(Http::H1, true), (Http::H2, false)] {
        let setup = Setup { stream: stream.clone(), upstream_h2, ..injecting() };
        let stage = Stage::start(setup).await;
        let mut client = stage.client(http).await;
        let mut fields = fields("random", "crlf", "off");
        fields.extend([("sim-first-byte", "300ms"), ("sim-interval", "250ms")]);
        let answer = client.ask("POST", CHAT, &fields, STREAM).await;
        let (body, heartbeats) = without_heartbeats(&answer.body);
        assert!(heartbeats >= 3, "{heartbeats}");
        let answer = Answer { body, ..answer };
        assert_whole(&answer, &expected("crlf", Kind::Chat), "without heartbeats");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_for_usage_gets_it_and_what_is_not_certain_is_not_touched() {
    let route = format!("{ROUTE}\nbody_buffer = \"70KiB\"");
    let stage = Stage::start(Setup { route, ..Setup::default() }).await;
    let long = "x".repeat(80_000);
    let asks = r#""stream_options":{"include_usage":true}"#;
    // A body, a field of its request, whether its stream tells the usage.
    let none = ("x-none", "none");
    for (path, body, field, told) in [
        (CHAT, format!("{{\"stream\":true,{asks}}}"), none, true),
        (CHAT, "{\"stream\":false}".to_owned(), none, true),
        (CHAT, format!("{{\"stream\":true,\"messages\":[\"{long}\"]}}"), none, false),
        (CHAT, STREAM.to_owned(), ("content-encoding", "identity"), false),
        (CHAT, STREAM.to_owned(), ("content-digest", "sha-256=:x:"), false),
        (CHAT, "{\"stream\":true,\"user\":\"a\",\"user\":\"b\",\"n\":1}".to_owned(), none, true),
        ("/v1/responses", STREAM.to_owned(), none, true),
        ("/v1/messages", STREAM.to_owned(), none, true),
    ] {
        let mut client = stage.client(Http::H1).await;
        let before = stage.metrics().await;
        let answer = client.ask("POST", path, &[field, ("sim-count", "3")], body.clone()).await;
        assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
        let touched = body.contains("\"user\":\"b\"");
        let seen = last(&stage);
        let added = asks.len() as u64 + 1;
        let length = body.len() as u64 + if touched { added } else { 0 };
        assert_eq!(seen.body_length, length, "{path} {}", &body[..20]);
        if !touched {
            let prefix = &body.as_bytes()[..body.len().min(4096)];
            assert_eq!(seen.body_prefix, prefix, "{path}");
        }
        let counted = |m: &Metrics| tokens(m, "", "*").0 + unknown(m, "not_sent");
        let now = stage.until("it is counted", |m| counted(m) > counted(&before)).await;
        let newly = tokens(&now, "", "*").0 - tokens(&before, "", "*").0;
        assert_eq!(newly, if told { PROMPT } else { 0.0 }, "{path} {}", &body[..20]);
        if body.contains(asks) {
            assert!(answer.text().contains("\"choices\":[],\"usage\""), "the client asked for it");
        }
    }
    let metrics = stage.metrics().await;
    assert_eq!((unknown(&metrics, "not_sent"), all_unknown(&metrics)), (3.0, 3.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_pieces_is_asked_for_its_usage_and_so_is_a_request_that_is_tried_again() {
    for upstream_h2 in [false, true] {
        let upstream = "[upstream.retry]\nbackoff = \"1ms\"".to_owned();
        let stage = Stage::start(Setup { upstream, upstream_h2, ..injecting() }).await;
        let mut client = stage.client(Http::H1).await;
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\
                    sim-clock: off\r\nsim-stream: 7\r\nsim-count: 5\r\nsim-status: 503\r\n\
                    sim-fault-times: 1\r\n\r\n";
        client.raw(head.as_bytes()).await;
        for byte in STREAM.as_bytes() {
            client.raw(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']).await;
        }
        client.raw(b"0\r\n\r\n").await;
        let answer = Box::pin(client.answer()).await;
        assert_whole(&answer, &expected("lf", Kind::Chat), "the second attempt's");
        let seen = stage.sim.requests();
        assert_eq!(seen.len(), 2);
        for seen in seen {
            assert_eq!(String::from_utf8_lossy(&seen.body_prefix), ASKING);
        }
        let metrics = after(&stage, 1).await;
        assert_eq!(tokens(&metrics, "", "*"), (PROMPT, f64::from(EVENTS)), "counted once");
        assert_eq!(metrics.sum("tidegate_memory_bytes"), 0.0, "nothing stays charged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_or_fails_looks_as_ever() {
    let stage = Stage::start(injecting()).await;
    let mut client = stage.client(Http::H1).await;
    let mut fields = fields("byte", "lf", "off");
    fields.push(("sim-fault", "no-done"));
    let answer = client.ask("POST", CHAT, &fields, STREAM).await;
    assert_eq!(answer.end, End::Cut);
    let text = answer.text();
    assert!(!text.contains("\"choices\":[],\"usage\"") && text.contains("upstream_truncated"));
    let mut client = stage.client(Http::H2).await;
    let error = [("sim-fault", "error-middle"), ("sim-split", "byte")];
    let answer = client.ask("POST", CHAT, &error, STREAM).await;
    assert_eq!((answer.end, answer.text().matches("{\"error\":").count()), (End::Cut, 1));
    let refused = client.ask("POST", CHAT, &[("sim-status", "400")], STREAM).await;
    assert_eq!(refused.status, 400);
}
