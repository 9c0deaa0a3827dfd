//! The Responses API and Anthropic's, where they differ from OpenAI's completions: what completes a
//! stream, how an error looks before and after the commit, and whose the upstream's own is.

use serde_json::Value;
use tidegate::sim::{Behaviour, Kind, expected_body};

use super::over_every_pair;
use super::stage::client::STREAM;
use super::stage::events::{code_of, without_heartbeats};
use super::stage::{Answer, End, Setup, Stage};

const FAMILIES: [(&str, Kind); 2] =
    [("/v1/responses", Kind::Response), ("/v1/messages", Kind::Message)];

/// What the client gets.
#[derive(Clone, Copy, Debug)]
enum Sees {
    /// 200, the whole stream byte for byte, a clean end.
    Whole,
    /// 200, what the upstream sent before the fault, one error event with this code, the cut.
    Broken(&'static str),
    /// 200, what the upstream sent, its own error event being the last, no second one, the cut.
    OwnError,
    /// No stream: a status for each of the two families, and an error of the gateway's with this code.
    Status([u16; 2], &'static str),
    /// The same with the upstream's own error in it.
    OwnStatus([u16; 2]),
    /// The upstream's answer as it is.
    Passed(u16, &'static str),
}
use Sees::{Broken, OwnError, OwnStatus, Passed, Status, Whole};

type Fields = &'static [(&'static str, &'static str)];

/// What the upstream does, what comes of it, and the stream's end reason.
const TABLE: [(Fields, Sees, &str); 19] = [
    (&[("sim-fault", "none")], Whole, "completed"),
    (&[("sim-split", "byte")], Whole, "completed"),
    (&[("sim-split", "byte"), ("sim-line-end", "crlf")], Whole, "completed"),
    (&[("sim-split", "random"), ("sim-line-end", "cr")], Whole, "completed"),
    (&[("sim-split", "random"), ("sim-bom", "on")], Whole, "completed"),
    (&[("sim-fault", "content-length-exact")], Whole, "completed"),
    (&[("sim-fault", "huge")], Whole, "completed"),
    (&[("sim-fault", "fin")], Broken("upstream_truncated"), "upstream_truncated"),
    (
        &[("sim-fault", "fin"), ("sim-split", "byte")],
        Broken("upstream_truncated"),
        "upstream_truncated",
    ),
    (&[("sim-fault", "rst")], Broken("upstream_truncated"), "upstream_truncated"),
    // All but the terminal event: `[DONE]` would not have completed it either.
    (&[("sim-fault", "no-done")], Broken("upstream_truncated"), "upstream_truncated"),
    (&[("sim-fault", "stall")], Broken("upstream_idle_timeout"), "upstream_timeout"),
    (&[("sim-fault", "error-middle")], OwnError, "upstream_error"),
    (&[("sim-fault", "error-middle"), ("sim-split", "byte")], OwnError, "upstream_error"),
    // Anthropic's `api_error` stands for 500.
    (&[("sim-fault", "error-first")], OwnStatus([502, 500]), "upstream_error"),
    (
        &[("sim-fault", "error-first"), ("sim-split", "byte")],
        OwnStatus([502, 500]),
        "upstream_error",
    ),
    (&[("sim-fault", "empty")], Status([502, 502], "upstream_empty"), "upstream_truncated"),
    (&[("sim-fault", "reset-head")], Status([502, 502], "upstream_gone"), "upstream_error"),
    (&[("sim-status", "429")], Passed(429, "rate_limit_error"), "completed"),
];

const EVENTS: &str = "5";

/// What the upstream sends, without a byte order mark.
fn sent(kind: Kind, fields: Fields) -> Vec<u8> {
    let mut behaviour = Behaviour::default();
    for (name, value) in [("sim-count", EVENTS)].iter().chain(fields) {
        behaviour.apply(name, value).expect("a field of the simulator");
    }
    behaviour.framing.bom = false;
    expected_body(&behaviour, kind, 1, "tide-1", false)
}

fn events(stream: &[u8]) -> usize {
    let text = String::from_utf8_lossy(stream).replace("\r\n", "\n").replace('\r', "\n");
    text.matches("\n\n").count()
}

/// The `code` of an error object in the family's shape.
fn code_in(kind: Kind, body: &str) -> Option<String> {
    if kind != Kind::Message {
        return code_of(body);
    }
    let value: Value = serde_json::from_str(body).ok()?;
    let error = value.get("error")?;
    let shaped = value["type"] == "error" && error["type"].is_string();
    let words = error["message"].as_str().is_some_and(|words| !words.is_empty());
    (shaped && words).then(|| error["code"].as_str().map(str::to_owned))?
}

/// The `code` of an error event in the family's shape, if `tail` is exactly one and nothing else;
/// `before` is the number of events ahead of it.
fn code_of_event(kind: Kind, tail: &[u8], before: usize) -> Option<String> {
    let text = std::str::from_utf8(tail).ok()?;
    let data = text.strip_prefix("event: error\ndata: ")?.strip_suffix("\n\n")?;
    if kind == Kind::Response {
        let value: Value = serde_json::from_str(data).ok()?;
        let numbered = value["type"] == "error" && value["sequence_number"] == before;
        let same = ["code", "message", "param"].iter().all(|key| value[key] == value["error"][key]);
        if !numbered || !same {
            return None;
        }
    }
    code_in(kind, data)
}

fn check(what: &str, kind: Kind, sees: Sees, sent: &[u8], answer: &Answer) {
    let what = format!("{what}: {} {}", answer.status, answer.text());
    let nth = usize::from(kind == Kind::Message);
    let end = if matches!(sees, Broken(_) | OwnError) { End::Cut } else { End::Clean };
    assert_eq!(answer.end, end, "{what}");
    match sees {
        Whole | OwnError => {
            assert_eq!((answer.status, &*answer.body), (200, sent), "{what}");
        }
        Broken(code) => {
            assert_eq!(answer.status, 200, "{what}");
            let tail = answer.body.strip_prefix(sent);
            let tail = tail.unwrap_or_else(|| panic!("not all that was sent: {what}"));
            assert_eq!(code_of_event(kind, tail, events(sent)).as_deref(), Some(code), "{what}");
        }
        Status(statuses, code) => {
            assert_eq!(answer.status, statuses[nth], "{what}");
            assert_eq!(code_in(kind, &answer.text()).as_deref(), Some(code), "{what}");
        }
        OwnStatus(statuses) => {
            assert_eq!(answer.status, statuses[nth], "{what}");
            assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
            let error: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(error["error"]["message"], "the simulated upstream failed", "{what}");
            let shaped = if nth == 1 { &error["type"] } else { &error["error"]["code"] };
            assert_eq!(shaped, if nth == 1 { "error" } else { "sim" }, "{what}");
        }
        Passed(status, words) => {
            assert_eq!(answer.status, status, "{what}");
            assert!(answer.text().contains(words), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_family_has_its_own_ends_and_errors() {
    over_every_pair(async |http, upstream_h2| {
        let stream = "idle = \"1500ms\"".to_owned();
        let stage = Stage::start(Setup { upstream_h2, stream, ..Setup::default() }).await;
        for (path, kind) in FAMILIES {
            for (fields, sees, reason) in TABLE {
                let what = format!("{path} {fields:?} {http:?} upstream h2 {upstream_h2}");
                let before = stage.metrics().await.ended(reason);
                let mut asked =
                    vec![("sim-clock", "off"), ("sim-stream", "1"), ("sim-count", EVENTS)];
                // Apart, so that a reset does not overtake them.
                asked.push(("sim-interval", "20ms"));
                asked.extend(fields);
                let answer = stage.client(http).await.ask("POST", path, &asked, STREAM).await;
                check(&what, kind, sees, &sent(kind, fields), &answer);
                stage.until(&what, |m| m.ended(reason) == before + 1.0 && m.live() == 0.0).await;
            }
        }
        let asked = (TABLE.len() * FAMILIES.len()) as u64;
        assert_eq!(stage.sim.counts().requests, asked, "no request twice");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_commit_a_refusal_is_an_event_of_the_family() {
    over_every_pair(async |http, upstream_h2| {
        let stream = "commit_after = \"300ms\"\nheartbeat = \"200ms\"".to_owned();
        let stage = Stage::start(Setup { upstream_h2, stream, ..Setup::default() }).await;
        for (path, kind) in FAMILIES {
            for (field, code) in
                [(("sim-status", "429"), None), (("sim-fault", "html"), Some("upstream_status"))]
            {
                let fields = [("sim-first-byte", "900ms"), field];
                let answer = stage.client(http).await.ask("POST", path, &fields, STREAM).await;
                let what = format!("{path} {field:?} {http:?} h2 {upstream_h2}: {}", answer.text());
                assert_eq!((answer.status, &answer.end), (200, &End::Cut), "{what}");
                let (event, beats) = without_heartbeats(&answer.body);
                assert!(beats > 0, "{what}");
                match (code, kind) {
                    // The upstream's own words, in which Anthropic has no code.
                    (None, Kind::Message) => {
                        let words =
                            b"event: error\ndata: {\"error\":{\"message\":\"simulated error\"";
                        assert!(event.starts_with(words) && events(&event) == 1, "{what}");
                    }
                    _ => {
                        let told = code_of_event(kind, &event, 0);
                        assert_eq!(told.as_deref(), code.or(Some("sim")), "{what}");
                    }
                }
            }
        }
        stage.until("all ended", |m| m.ended("upstream_error") == 4.0 && m.live() == 0.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_stand_between_the_events_of_each_family() {
    for style in ["comment", "anthropic"] {
        over_every_pair(async |http, upstream_h2| {
            let setup = Setup {
                upstream_h2,
                stream: "heartbeat = \"100ms\"".to_owned(),
                route: format!("heartbeat_style = \"{style}\""),
                ..Setup::default()
            };
            let stage = Stage::start(setup).await;
            for (path, kind) in FAMILIES {
                let fields = [
                    ("sim-clock", "off"),
                    ("sim-stream", "1"),
                    ("sim-count", EVENTS),
                    ("sim-interval", "400ms"),
                ];
                let answer = stage.client(http).await.ask("POST", path, &fields, STREAM).await;
                let what = format!("{style} {path} {http:?} upstream h2 {upstream_h2}");
                assert_eq!((answer.status, &answer.end), (200, &End::Clean), "{what}");
                // As Anthropic sends it, but for one space less than the simulator writes.
                let pings = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
                let named = kind == Kind::Message && style == "anthropic";
                let (rest, beats) = if named {
                    let beats = answer.text().matches(pings).count() - 1;
                    let first = pings.replace("\": \"", "\":\"");
                    let text = answer.text().replacen(pings, &first, 1).replace(pings, "");
                    (text.replacen(&first, pings, 1).into_bytes(), beats)
                } else {
                    without_heartbeats(&answer.body)
                };
                assert!(beats >= 4, "{what}: {beats} heartbeats");
                assert_eq!(rest, sent(kind, &[]), "{what}");
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_streamed_passes_whole() {
    over_every_pair(async |http, upstream_h2| {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        for (path, object, tokens) in [
            ("/v1/responses", "response", "output_tokens"),
            ("/v1/messages", "message", "output_tokens"),
        ] {
            let fields = [("sim-count", EVENTS)];
            let mut client = stage.client(http).await;
            let answer = client.ask("POST", path, &fields, r#"{"model":"m","max_tokens":9}"#).await;
            assert_eq!((answer.status, &answer.end), (200, &End::Clean), "{path}");
            let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert!(body["object"] == object || body["type"] == object, "{body}");
            assert_eq!(body["usage"][tokens], 5, "{body}");
        }
        stage.until("both completed", |m| m.ended("completed") == 2.0).await;
    })
    .await;
}
