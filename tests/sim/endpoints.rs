//! What each endpoint answers, and that the bytes are those promised.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tidegate::sim::{Behaviour, Kind, expected_body};

use crate::client::*;

#[tokio::test]
async fn streams_are_the_expected_bytes_on_both_protocols() {
    let behaviour = quick(30);
    let sim = start(behaviour.clone()).await;
    let h2 = connect2(sim.addr()).await;
    let mut h1 = Client::connect(sim.addr()).await;
    for (path, kind) in [(CHAT, Kind::Chat), ("/v1/completions", Kind::Completion)] {
        for usage in [true, false] {
            let body = json!({"model": "a \"b\"", "stream": true,
                "stream_options": {"include_usage": usage}, "unknown": [1, {"x": null}]})
            .to_string();
            let expected = expected_body(&behaviour, kind, 7, "a \"b\"", usage);
            let reply = h1.ask(&post(path, &[], &body)).await;
            assert_eq!(reply.body, expected);
            assert_eq!(reply.ended, Ended::Framed(String::new()));
            assert_eq!(reply.chunks.len(), 31 + usize::from(usage), "one chunk per event");
            let reply = ask2(&h2, post2(path, &[]), &body).await;
            assert_eq!(reply.body, expected);
            assert_eq!(reply.ended, Ended2::Clean(None));
        }
    }
    // What comes ahead of the content, after it, and the terminal event: a chunk each.
    for (path, kind) in [("/v1/responses", Kind::Response), ("/v1/messages", Kind::Message)] {
        let body = json!({"model": "m", "stream": true, "max_tokens": 5}).to_string();
        let expected = expected_body(&behaviour, kind, 7, "m", false);
        let reply = h1.ask(&post(path, &[], &body)).await;
        assert_eq!((&reply.body, reply.chunks.len()), (&expected, 33), "{path}");
        let reply = ask2(&h2, post2(path, &[]), &body).await;
        assert_eq!(reply.body, expected);
    }
    let counts = sim.counts();
    assert_eq!((counts.connections, counts.requests), (2, 12), "connections were used again");
}

#[tokio::test]
async fn a_stream_head_carries_what_the_api_sends() {
    let sim = start(quick(1)).await;
    let reply = ask(&sim, &post(CHAT, &[], STREAM)).await;
    assert!(reply.head.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(reply.field("content-type"), Some("text/event-stream"));
    assert!(reply.field("x-request-id").unwrap().starts_with("req_sim"));
    assert_eq!(reply.field("openai-processing-ms"), Some("0"));
    assert!(reply.field("date").unwrap().ends_with(" GMT"));
    assert_eq!(reply.field("connection"), None);
}

#[tokio::test]
async fn every_layout_carries_the_same_payload() {
    let sim = start(quick(6)).await;
    let h2 = connect2(sim.addr()).await;
    for split in ["none", "byte", "random"] {
        for line_end in ["lf", "crlf", "cr"] {
            for bom in ["0", "1"] {
                let fields = [("sim-split", split), ("sim-line-end", line_end), ("sim-bom", bom)];
                let mut behaviour = quick(6);
                for (name, value) in fields {
                    behaviour.apply(name, value).unwrap();
                }
                let expected = expected_body(&behaviour, Kind::Chat, 7, "m", false);
                let reply = ask(&sim, &post(CHAT, &fields, STREAM)).await;
                assert_eq!(reply.body, expected, "{fields:?}");
                let reply2 = ask2(&h2, post2(CHAT, &fields), STREAM).await;
                assert_eq!(reply2.body, expected, "{fields:?}");
                let largest = reply.chunks.iter().max().unwrap();
                match split {
                    "byte" => {
                        assert_eq!(reply.chunks.len(), expected.len());
                        assert!(reply2.frames.iter().all(|&frame| frame <= 1));
                    }
                    "random" => assert!(*largest <= 40 && reply.chunks.len() > 30),
                    _ => assert_eq!(reply.chunks.len(), 7),
                }
            }
        }
    }
}

#[tokio::test]
async fn expected_bytes_depend_on_their_arguments_only() {
    let behaviour = Behaviour { clock: true, ..quick(9) };
    let body = |id, usage| expected_body(&behaviour, Kind::Chat, id, "m", usage);
    assert_eq!(body(1, true), body(1, true));
    assert_ne!(body(1, true), body(2, true));
    assert_ne!(body(1, true), body(1, false));
    assert_eq!(body(1, true), expected_body(&quick(9), Kind::Chat, 1, "m", true));
}

#[tokio::test]
async fn the_clock_and_the_stream_id_show_in_the_events() {
    let sim = start(Behaviour { count: 2, ..Behaviour::default() }).await;
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let reply = ask(&sim, &post(CHAT, &[("sim-stream", "4711")], STREAM)).await;
    let events: Vec<Value> = reply
        .text()
        .split_terminator("\n\n")
        .filter_map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).ok())
        .collect();
    assert_eq!(events.len(), 2);
    assert_eq!(events[1]["sim"]["stream"], 4711);
    assert_eq!(events[1]["sim"]["seq"], 2);
    let sent = u128::from(events[1]["sim"]["sent_ns"].as_u64().unwrap());
    assert!(sent >= before && sent < before + 20_000_000_000);
    let first = ask(&sim, &post(CHAT, &[], STREAM)).await;
    let second = ask(&sim, &post(CHAT, &[], STREAM)).await;
    assert!(first.text().contains(r#""stream":1,"#) && second.text().contains(r#""stream":2,"#));
}

#[tokio::test]
async fn answers_that_are_no_streams() {
    let sim = start(quick(3)).await;
    let mut client = Client::connect(sim.addr()).await;
    let chat = client.ask(&post("/openai/v1/chat/completions", &[], r#"{"model":"x"}"#)).await;
    assert_eq!(chat.field("content-type"), Some("application/json"));
    assert_eq!(chat.json()["object"], "chat.completion");
    assert_eq!(chat.json()["choices"][0]["message"]["content"], "The tide comes ");
    assert_eq!(chat.json()["usage"]["completion_tokens"], 3);
    let text = client.ask(&post("/v1/completions", &[], r#"{"stream":false}"#)).await;
    assert_eq!(text.json()["choices"][0]["text"], "The tide comes ");
    let models = client.ask(&get("/v1/models")).await;
    assert_eq!(models.json()["data"][0]["object"], "model");
    let body = r#"{"model":"e","input":["a","b","c"]}"#;
    let embeddings = client.ask(&post("/v1/embeddings", &[], body)).await;
    assert_eq!(embeddings.json()["data"].as_array().unwrap().len(), 3);
    assert_eq!(sim.counts().connections, 1);
}

#[tokio::test]
async fn event_source_can_get_a_stream_by_query_alone() {
    let sim = start(quick(9)).await;
    let request = format!(
        "GET {CHAT}?sim-count=2&x=y HTTP/1.1\r\nhost: sim\r\naccept: text/event-stream\r\n\r\n"
    );
    let reply = ask(&sim, request.as_bytes()).await;
    let expected = expected_body(&quick(2), Kind::Chat, 7, "tide-1", false);
    assert_eq!(reply.body, expected);
    let plain = ask(&sim, &get(CHAT)).await;
    assert_eq!((plain.status(), plain.field("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn other_paths_echo_what_arrived() {
    let sim = start(quick(1)).await;
    let fields = [("content-type", "multipart/form-data; boundary=b"), ("x-a", "1"), ("x-a", "2")];
    let reply = ask(&sim, &post("/v1/files?purpose=x%20y", &fields, "--b\r\nhello")).await;
    let echo = reply.json();
    assert_eq!(echo["method"], "POST");
    assert_eq!((&echo["path"], &echo["query"]), (&json!("/v1/files"), &json!("purpose=x%20y")));
    assert_eq!(echo["headers"]["x-a"], json!(["1", "2"]));
    assert_eq!(echo["headers"]["host"], "sim");
    assert_eq!(echo["body_bytes"], 10);
    let fnv = b"--b\r\nhello".iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    assert_eq!(echo["body_fnv1a64"], format!("{fnv:016x}"));
    let h2 = connect2(sim.addr()).await;
    let reply = ask2(&h2, post2("/anything", &[("x-a", "1")]), "").await;
    let echo: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(echo["version"], "HTTP/2");
    assert_eq!(echo["headers"][":authority"], "sim");
    let head = b"HEAD /v1/x HTTP/1.1\r\nhost: sim\r\n\r\n";
    let mut client = Client::connect(sim.addr()).await;
    client.send(head).await;
    assert!(client.head().await.unwrap().contains("content-length: "));
    assert_eq!(client.ask(&get("/v1/models")).await.status(), 200, "no body came after the head");
}

#[tokio::test]
async fn unknown_sim_values_answer_400_and_name_the_valid_ones() {
    let sim = start(quick(1)).await;
    let reply = ask(&sim, &post(CHAT, &[("sim-fault", "explode")], STREAM)).await;
    assert_eq!(reply.status(), 400);
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("stall-head") && message.contains("goaway"), "{message}");
    let h2 = connect2(sim.addr()).await;
    let reply = ask2(&h2, post2("/v1/models?sim-nonsense=1", &[]), "").await;
    assert_eq!(reply.status.unwrap(), 400);
    assert!(String::from_utf8(reply.body).unwrap().contains("sim-first-byte"));
    let bad = ask(&sim, &post(CHAT, &[], "{not json")).await;
    assert_eq!((bad.status(), bad.json()["error"]["code"].as_str()), (400, Some("bad_body")));
}

#[tokio::test]
async fn statuses_come_with_an_error_body_and_retry_after() {
    let sim = start(quick(1)).await;
    let fields = [("sim-status", "429"), ("sim-retry-after", "7")];
    let reply = ask(&sim, &post(CHAT, &fields, STREAM)).await;
    assert!(reply.head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
    assert_eq!(reply.field("retry-after"), Some("7"));
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    let h2 = connect2(sim.addr()).await;
    let reply = ask2(&h2, post2(CHAT, &[("sim-status", "503")]), STREAM).await;
    assert_eq!(reply.status.unwrap(), 503);
    let mut client = Client::connect(sim.addr()).await;
    let none = client.ask(&post(CHAT, &[("sim-status", "204")], STREAM)).await;
    assert_eq!((none.status(), none.field("content-length")), (204, None));
    assert_eq!(client.ask(&get("/v1/models")).await.status(), 200);
}

#[tokio::test]
async fn waits_happen_where_they_are_asked_for() {
    let sim = start(quick(3)).await;
    let mut client = Client::connect(sim.addr()).await;
    let fields = [
        ("sim-read-delay", "30ms"),
        ("sim-first-byte", "60ms"),
        ("sim-first-event", "50ms"),
        ("sim-interval", "20ms"),
    ];
    let start = Instant::now();
    client.send(&post(CHAT, &fields, STREAM)).await;
    let head = client.head().await.unwrap();
    let at_head = start.elapsed();
    assert!(head.contains("openai-processing-ms: 60\r\n"));
    assert!(at_head >= Duration::from_millis(90), "{at_head:?}");
    client.until(b"\n\n").await.unwrap();
    let at_event = start.elapsed();
    assert!(at_event >= Duration::from_millis(140), "{at_event:?}");
    client.until(b"[DONE]\n\n").await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(180));
    assert!(start.elapsed() < Duration::from_secs(5));
}
