//! OpenAI's Responses API as the simulator speaks it.
//!
//! Owns its event names, their numbering and the response object. Invariant: every event carries
//! its name as `type`, first, and the numbers go up by one from 0, as the real ones do.

use bytes::Bytes;
use serde_json::json;

use super::options::Behaviour;
use super::payload::{PROMPT_TOKENS, Voice, line_end, named, put, told};

/// Events before the first with content.
const OPENING: u32 = 4;
/// Where the text stands in the response.
const PLACE: &str = r#""output_index":0,"content_index":0"#;

/// One event whose data ends in `fields`.
fn event(behaviour: &Behaviour, number: u32, name: &str, fields: &str) -> Bytes {
    let data = format!(r#"{{"type":"{name}","sequence_number":{number},{fields}}}"#);
    named(behaviour, name, &data)
}

/// From `response.created` to the part that text will be added to.
pub(super) fn opening(voice: &Voice, behaviour: &Behaviour) -> Bytes {
    let begun = format!(r#""response":{}"#, response(voice, "in_progress", "", "null"));
    let item = format!(r#""output_index":0,"item":{}"#, item(voice, "in_progress", ""));
    let part = format!(r#""item_id":"{}",{PLACE},"part":{}"#, voice.id_of("msg"), part(""));
    let events = [
        event(behaviour, 0, "response.created", &begun),
        event(behaviour, 1, "response.in_progress", &begun),
        event(behaviour, 2, "response.output_item.added", &item),
        event(behaviour, 3, "response.content_part.added", &part),
    ];
    Bytes::from(events.concat())
}

/// The beginning of the event with content number `seq`.
pub(super) fn open(voice: &Voice, behaviour: &Behaviour, seq: u32, text: &mut String) {
    let name = "response.output_text.delta";
    let (id, number, end) = (voice.id_of("msg"), OPENING - 1 + seq, line_end(behaviour));
    put(
        text,
        format_args!(
            "event: {name}{end}data: {{\"type\":\"{name}\",\"sequence_number\":{number},\
             \"item_id\":\"{id}\",{PLACE},"
        ),
    );
}

/// The ends of text, part and item.
pub(super) fn closing(voice: &Voice, behaviour: &Behaviour) -> Bytes {
    let (text, _) = told(behaviour);
    let at = format!(r#""item_id":"{}",{PLACE}"#, voice.id_of("msg"));
    let item = format!(r#""output_index":0,"item":{}"#, item(voice, "completed", &text));
    let part = format!(r#"{at},"part":{}"#, part(&text));
    let text = format!(r#"{at},"text":"{text}","logprobs":[]"#);
    let next = OPENING + behaviour.count;
    let events = [
        event(behaviour, next, "response.output_text.done", &text),
        event(behaviour, next + 1, "response.content_part.done", &part),
        event(behaviour, next + 2, "response.output_item.done", &item),
    ];
    Bytes::from(events.concat())
}

/// The terminal event, which holds the whole response and its usage.
pub(super) fn completed(voice: &Voice, behaviour: &Behaviour) -> Bytes {
    let (text, events) = told(behaviour);
    let response = format!(r#""response":{}"#, whole(voice, &text, events));
    event(behaviour, OPENING + behaviour.count + 3, "response.completed", &response)
}

/// The error event after `sent` events with content, flat as the API documents it.
pub(super) fn error(behaviour: &Behaviour, sent: u32, message: &str) -> Bytes {
    let number = if sent == 0 { 0 } else { OPENING + sent };
    let fields = format!(r#""code":"sim","message":"{message}","param":null"#);
    event(behaviour, number, "error", &fields)
}

/// A finished response that says `text`, told in so many tokens.
pub(super) fn whole(voice: &Voice, text: &str, tokens: u32) -> String {
    let usage = json!({
        "input_tokens": PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": u64::from(PROMPT_TOKENS) + u64::from(tokens),
    });
    response(voice, "completed", &item(voice, "completed", text), &usage.to_string())
}

fn response(voice: &Voice, status: &str, output: &str, usage: &str) -> String {
    let Voice { model, created, .. } = voice;
    let id = voice.id_of("resp");
    format!(
        "{{\"id\":\"{id}\",\"object\":\"response\",\"created_at\":{created},\
         \"status\":\"{status}\",\"error\":null,\"incomplete_details\":null,\"instructions\":null,\
         \"max_output_tokens\":null,\"metadata\":{{}},\"model\":{model},\"output\":[{output}],\
         \"parallel_tool_calls\":true,\"previous_response_id\":null,\
         \"reasoning\":{{\"effort\":null,\"summary\":null}},\"store\":false,\"temperature\":1.0,\
         \"text\":{{\"format\":{{\"type\":\"text\"}}}},\"tool_choice\":\"auto\",\"tools\":[],\
         \"top_p\":1.0,\"truncation\":\"disabled\",\"usage\":{usage},\"user\":null}}"
    )
}

fn item(voice: &Voice, status: &str, text: &str) -> String {
    let id = voice.id_of("msg");
    let content = if status == "completed" { part(text) } else { String::new() };
    format!(
        "{{\"id\":\"{id}\",\"type\":\"message\",\"status\":\"{status}\",\"role\":\"assistant\",\
         \"content\":[{content}]}}"
    )
}

fn part(text: &str) -> String {
    format!(r#"{{"type":"output_text","text":"{text}","annotations":[],"logprobs":[]}}"#)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::options::Fault;
    use super::super::payload::Kind;
    use super::super::script::expected_body;
    use super::*;

    fn events(fault: Fault) -> Vec<Value> {
        let behaviour = Behaviour { count: 3, fault, fault_after: 2, ..Behaviour::default() };
        let body = expected_body(&behaviour, Kind::Response, 7, "tide", false);
        let text = String::from_utf8(body).unwrap();
        let event = |event: &str| {
            let (name, data) = event.split_once("\ndata: ").unwrap();
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            assert!(event.contains("data: {\"type\":"), "the type comes first");
            data
        };
        text.split_terminator("\n\n").map(event).collect()
    }

    #[test]
    fn a_stream_is_that_of_the_api() {
        let events = events(Fault::None);
        let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(
            types,
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.delta",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        let numbers = events.iter().map(|event| event["sequence_number"].as_u64().unwrap());
        assert!(numbers.eq(0..11));
        let deltas: String = events[4..7].iter().map(|e| e["delta"].as_str().unwrap()).collect();
        assert_eq!(deltas, "The tide comes ");
        assert_eq!(events[7]["text"], *deltas);
        let response = &events[10]["response"];
        assert_eq!(response["output"][0]["content"][0]["text"], *deltas);
        assert_eq!(response["usage"]["total_tokens"], 15);
        assert_eq!(events[0]["response"]["usage"], Value::Null);
        assert_eq!(events[4]["sim"], json!({"stream": 7, "seq": 1, "sent_ns": 0}));
    }

    #[test]
    fn faults_leave_out_or_tell_what_they_name() {
        let last = |fault| events(fault).pop().unwrap();
        assert_eq!(last(Fault::NoDone)["type"], "response.output_item.done");
        let error = last(Fault::ErrorMiddle);
        assert_eq!((&error["type"], &error["code"]), (&"error".into(), &"sim".into()));
        assert_eq!(error["sequence_number"], 6);
        assert!(error.get("error").is_none(), "flat");
        assert_eq!(events(Fault::ErrorFirst).len(), 1);
        assert_eq!(last(Fault::ErrorFirst)["sequence_number"], 0);
    }
}
