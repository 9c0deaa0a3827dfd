//! The bytes of every body: stream events, completions, error bodies.
//!
//! Owns the JSON shapes of the OpenAI API as the simulator speaks them. Refuses to know anything
//! of HTTP or of time beyond the clock fields. Invariant: with the behaviour's clock off, the same
//! arguments give the same bytes. Cost: one allocation per event, sized up front; the JSON is
//! written by hand because its shape never varies.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::json;

use super::options::Behaviour;

/// Which of the two streaming endpoints speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`: `chat.completion.chunk` objects with a `delta`.
    Chat,
    /// `/v1/completions`: `text_completion` objects with a `text`.
    Completion,
}

/// What is told: one token per event, round and round.
const WORDS: [&str; 40] = [
    "The", "tide", "comes", "in", "without", "hurry,", "wave", "after", "wave,", "over", "the",
    "sand", "and", "the", "stones.", "At", "the", "gate", "the", "keeper", "counts", "the",
    "boats", "and", "lets", "each", "one", "through", "in", "its", "turn.", "Then", "the", "sea",
    "draws", "breath", "and", "goes", "out", "again.",
];

/// Padding is cut from this, over and over; it needs no escape in JSON.
const FILLER: &str = "salt wind over long water, grey light on the harbour wall, ropes and gulls; ";

/// Tokens the simulator pretends to have read.
const PROMPT_TOKENS: u32 = 12;
/// A completion that is not streamed stops growing here, bytes.
const TEXT_MAX: usize = 16 * 1024 * 1024;
/// `created` when the clock is off.
const FIXED_CREATED: u64 = 1_700_000_000;

/// Who speaks in one answer: what all its events have in common.
#[derive(Clone, Debug)]
pub(super) struct Voice {
    pub(super) kind: Kind,
    pub(super) stream: u64,
    /// The model's name as a JSON string, quotes included.
    model: Box<str>,
    pub(super) include_usage: bool,
    created: u64,
    clock: bool,
}

impl Voice {
    pub(super) fn new(
        behaviour: &Behaviour,
        kind: Kind,
        stream: u64,
        model: &str,
        include_usage: bool,
    ) -> Self {
        let model = serde_json::Value::from(model).to_string().into_boxed_str();
        let clock = behaviour.clock;
        let created = if clock { now_ns() / 1_000_000_000 } else { FIXED_CREATED };
        Self { kind, stream, model, include_usage, created, clock }
    }

    fn id(&self) -> String {
        let prefix = match self.kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
        };
        if self.clock {
            format!("{prefix}-{:x}{:08x}", self.created, self.stream)
        } else {
            format!("{prefix}-sim")
        }
    }

    /// Opens the object of one event: everything before `choices`.
    fn open(&self, text: &mut String) {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let Self { created, model, .. } = self;
        put(
            text,
            format_args!(
                r#"data: {{"id":"{}","object":"{object}","created":{created},"model":{model},"#,
                self.id()
            ),
        );
    }

    /// The event number `seq` (from 1) of `behaviour.count`, with `size` bytes of padding.
    pub(super) fn event(&self, behaviour: &Behaviour, seq: u32, size: usize) -> Bytes {
        let mut text = String::with_capacity(320 + self.model.len() + size);
        self.open(&mut text);
        match self.kind {
            Kind::Chat if seq == 1 => {
                text.push_str(r#""choices":[{"index":0,"delta":{"role":"assistant","content":""#);
            }
            Kind::Chat => text.push_str(r#""choices":[{"index":0,"delta":{"content":""#),
            Kind::Completion => text.push_str(r#""choices":[{"index":0,"text":""#),
        }
        token(&mut text, seq, size);
        text.push_str(match self.kind {
            Kind::Chat => r#""},"#,
            Kind::Completion => r#"","logprobs":null,"#,
        });
        let finish = if seq == behaviour.count { r#""stop""# } else { "null" };
        let usage = if self.include_usage { r#""usage":null,"# } else { "" };
        let sent_ns = if self.clock { now_ns() } else { 0 };
        put(
            &mut text,
            format_args!(
                r#""finish_reason":{finish}}}],{usage}"sim":{{"stream":{},"seq":{seq},"sent_ns":{sent_ns}}}}}"#,
                self.stream
            ),
        );
        close(behaviour, text)
    }

    /// The extra chunk which `stream_options.include_usage` asks for.
    pub(super) fn usage(&self, behaviour: &Behaviour) -> Bytes {
        let mut text = String::with_capacity(320);
        self.open(&mut text);
        put(&mut text, format_args!(r#""choices":[],"usage":{}}}"#, usage(behaviour.count)));
        close(behaviour, text)
    }

    /// The whole answer of a request that did not ask for a stream.
    pub(super) fn completion(&self, behaviour: &Behaviour) -> Bytes {
        let mut content = String::new();
        let mut seq = 0;
        while seq < behaviour.count && content.len() < TEXT_MAX {
            seq += 1;
            token(&mut content, seq, behaviour.size);
        }
        let Self { created, model, stream, .. } = self;
        let (object, said) = match self.kind {
            Kind::Chat => (
                "chat.completion",
                format!(r#""message":{{"role":"assistant","content":"{content}"}}"#),
            ),
            Kind::Completion => {
                ("text_completion", format!(r#""text":"{content}","logprobs":null"#))
            }
        };
        let text = format!(
            "{{\"id\":\"{}\",\"object\":\"{object}\",\"created\":{created},\"model\":{model},\
             \"choices\":[{{\"index\":0,{said},\"finish_reason\":\"stop\"}}],\"usage\":{},\
             \"sim\":{{\"stream\":{stream}}}}}",
            self.id(),
            usage(seq)
        );
        Bytes::from(text)
    }
}

/// The terminal mark of both endpoints.
pub(super) fn done(behaviour: &Behaviour) -> Bytes {
    close(behaviour, "data: [DONE]".to_owned())
}

/// An error inside the event stream, in the shape that makes the SDKs raise an error.
pub(super) fn error_event(behaviour: &Behaviour) -> Bytes {
    let error = error_body("the simulated upstream failed", "server_error", "sim");
    close(behaviour, format!("data: {error}"))
}

/// An error body in OpenAI's shape.
pub(super) fn error_body(message: &str, kind: &str, code: &str) -> String {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}}).to_string()
}

/// Appends the content of event `seq`: a word, a space, padding.
fn token(text: &mut String, seq: u32, size: usize) {
    text.push_str(WORDS[(seq as usize).wrapping_sub(1) % WORDS.len()]);
    text.push(' ');
    let end = text.len() + size;
    while text.len() < end {
        let take = (end - text.len()).min(FILLER.len());
        text.push_str(&FILLER[..take]);
    }
}

fn usage(completion_tokens: u32) -> String {
    let total = u64::from(PROMPT_TOKENS) + u64::from(completion_tokens);
    format!(
        r#"{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{completion_tokens},"total_tokens":{total}}}"#
    )
}

/// Ends the data line and its event.
fn close(behaviour: &Behaviour, text: String) -> Bytes {
    let line_end = behaviour.framing.line_end.bytes();
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(line_end);
    bytes.extend_from_slice(line_end);
    Bytes::from(bytes)
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("writing to a String cannot fail");
}

/// CLOCK_REALTIME in nanoseconds; 0 for a clock before 1970.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn voice(kind: Kind, include_usage: bool) -> (Behaviour, Voice) {
        let behaviour = Behaviour { clock: false, count: 3, ..Behaviour::default() };
        let voice = Voice::new(&behaviour, kind, 7, "tide \"1\"", include_usage);
        (behaviour, voice)
    }

    fn json(event: &[u8]) -> Value {
        let text = std::str::from_utf8(event).unwrap();
        let data = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        serde_json::from_str(data).unwrap()
    }

    #[test]
    fn events_are_chunks_of_the_api() {
        let (behaviour, voice) = voice(Kind::Chat, false);
        let first = json(&voice.event(&behaviour, 1, 0));
        assert_eq!(first["object"], "chat.completion.chunk");
        assert_eq!(first["model"], "tide \"1\"");
        assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(first["choices"][0]["delta"]["content"], "The ");
        assert_eq!(first["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(first["sim"], json!({"stream": 7, "seq": 1, "sent_ns": 0}));
        assert!(first.get("usage").is_none());
        let last = json(&voice.event(&behaviour, 3, 0));
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
        assert!(last["choices"][0]["delta"].get("role").is_none());
    }

    #[test]
    fn padding_is_exact_and_needs_no_escape() {
        let (behaviour, voice) = voice(Kind::Completion, true);
        for size in [0, 1, 74, 75, 76, 4096] {
            let event = json(&voice.event(&behaviour, 2, size));
            let text = event["choices"][0]["text"].as_str().unwrap();
            assert_eq!(text.len(), "tide ".len() + size);
            assert_eq!(event["usage"], Value::Null);
        }
        assert!(FILLER.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b'"' && b != b'\\'));
    }

    #[test]
    fn usage_and_completion_are_valid() {
        let (behaviour, voice) = voice(Kind::Chat, true);
        let usage = json(&voice.usage(&behaviour));
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["total_tokens"], 15);
        let whole: Value = serde_json::from_slice(&voice.completion(&behaviour)).unwrap();
        assert_eq!(whole["choices"][0]["message"]["content"], "The tide comes ");
        assert_eq!(whole["usage"], usage["usage"]);
        assert_eq!(json(&error_event(&behaviour))["error"]["code"], "sim");
    }

    #[test]
    fn the_clock_shows_in_ids_and_times_only_when_on() {
        let behaviour = Behaviour { count: 1, ..Behaviour::default() };
        let voice = Voice::new(&behaviour, Kind::Chat, 1, "m", false);
        let event = json(&voice.event(&behaviour, 1, 0));
        assert!(event["sim"]["sent_ns"].as_u64().unwrap() > 1_700_000_000_000_000_000);
        assert!(event["id"].as_str().unwrap().ends_with("00000001"));
    }
}
