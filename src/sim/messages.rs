//! Anthropic's Messages API as the simulator speaks it.
//!
//! Owns its event names and the message object. Usage is told in two places, as the real one does:
//! the prompt's in `message_start`, the answer's in `message_delta`.

use bytes::Bytes;

use super::options::Behaviour;
use super::payload::{PROMPT_TOKENS, Voice, line_end, named, put};

/// From `message_start` to the first ping.
pub(super) fn opening(voice: &Voice, behaviour: &Behaviour) -> Bytes {
    let message = message(voice, "", "null", 1);
    let start = format!(r#"{{"type":"message_start","message":{message}}}"#);
    let block =
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    let events = [
        named(behaviour, "message_start", &start),
        named(behaviour, "content_block_start", block),
        named(behaviour, "ping", r#"{"type": "ping"}"#),
    ];
    Bytes::from(events.concat())
}

/// The beginning of an event with content.
pub(super) fn open(behaviour: &Behaviour, text: &mut String) {
    let (name, end) = ("content_block_delta", line_end(behaviour));
    put(text, format_args!("event: {name}{end}data: {{\"type\":\"{name}\",\"index\":0,"));
}

/// The end of the text, and why it ended.
pub(super) fn closing(behaviour: &Behaviour) -> Bytes {
    let delta = format!(
        "{{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"end_turn\",\
         \"stop_sequence\":null}},\"usage\":{{\"output_tokens\":{}}}}}",
        behaviour.count
    );
    let events = [
        named(behaviour, "content_block_stop", r#"{"type":"content_block_stop","index":0}"#),
        named(behaviour, "message_delta", &delta),
    ];
    Bytes::from(events.concat())
}

/// A finished message that says `text`, told in so many tokens.
pub(super) fn whole(voice: &Voice, text: &str, tokens: u32) -> String {
    message(voice, &format!(r#"{{"type":"text","text":"{text}"}}"#), r#""end_turn""#, tokens)
}

fn message(voice: &Voice, content: &str, stop_reason: &str, output_tokens: u32) -> String {
    let (id, model) = (voice.id_of("msg"), &voice.model);
    format!(
        "{{\"id\":\"{id}\",\"type\":\"message\",\"role\":\"assistant\",\"model\":{model},\
         \"content\":[{content}],\"stop_reason\":{stop_reason},\"stop_sequence\":null,\
         \"usage\":{{\"input_tokens\":{PROMPT_TOKENS},\"cache_creation_input_tokens\":0,\
         \"cache_read_input_tokens\":0,\"output_tokens\":{output_tokens}}}}}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::options::Fault;
    use super::super::payload::{Kind, error_body};
    use super::super::script::expected_body;
    use super::*;

    fn events(fault: Fault) -> Vec<(String, Value)> {
        let behaviour = Behaviour { count: 2, fault, fault_after: 1, ..Behaviour::default() };
        let body = expected_body(&behaviour, Kind::Message, 7, "tide", false);
        let text = String::from_utf8(body).unwrap();
        let event = |event: &str| {
            let (name, data) = event.split_once("\ndata: ").unwrap();
            let data: Value = serde_json::from_str(data).unwrap();
            let name = name.strip_prefix("event: ").unwrap();
            assert_eq!(data["type"], name);
            (name.to_owned(), data)
        };
        text.split_terminator("\n\n").map(event).collect()
    }

    #[test]
    fn a_stream_is_that_of_the_api() {
        let events = events(Fault::None);
        let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "message_start",
                "content_block_start",
                "ping",
                "content_block_delta",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
        );
        assert_eq!(events[0].1["message"]["usage"]["input_tokens"], 12);
        assert_eq!(events[3].1["delta"], json!({"type": "text_delta", "text": "The "}));
        assert_eq!(events[3].1["sim"]["seq"], 1);
        assert_eq!(events[6].1["usage"]["output_tokens"], 2);
        assert_eq!(events[6].1["delta"]["stop_reason"], "end_turn");
    }

    #[test]
    fn faults_leave_out_or_tell_what_they_name() {
        let last = |fault| events(fault).pop().unwrap();
        assert_eq!(last(Fault::NoDone).0, "message_delta");
        for fault in [Fault::ErrorMiddle, Fault::ErrorFirst] {
            let (name, data) = last(fault);
            assert_eq!((name.as_str(), &data["error"]["type"]), ("error", &"api_error".into()));
        }
        assert_eq!(events(Fault::ErrorFirst).len(), 1);
        let body: Value = serde_json::from_str(&error_body(Kind::Message, 529, "m", "c")).unwrap();
        let error = json!({"type": "overloaded_error", "message": "m"});
        assert_eq!(body, json!({"type": "error", "error": error}));
    }
}
