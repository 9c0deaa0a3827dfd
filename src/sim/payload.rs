//! The bytes of every body: stream events, completions, error bodies.
//!
//! Owns what is told and the JSON shapes of OpenAI's completions; those of the other APIs are in
//! `responses.rs` and `messages.rs`. Refuses to know anything of HTTP or of time beyond the clock
//! fields. Invariant: with the behaviour's clock off, the same
//! arguments give the same bytes. Cost: one allocation per event, sized up front; the JSON is
//! written by hand because its shape never varies.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::json;

use super::options::{Behaviour, Fault};
use super::{messages, responses};

/// Which of the streaming endpoints speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`: `chat.completion.chunk` objects with a `delta`.
    Chat,
    /// `/v1/completions`: `text_completion` objects with a `text`.
    Completion,
    /// `/v1/responses`: OpenAI's Responses API, named and numbered events around `response.output_text.delta`.
    Response,
    /// `/v1/messages`: Anthropic's, named events around `content_block_delta`.
    Message,
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
pub(super) const PROMPT_TOKENS: u32 = 12;
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
    pub(super) model: Box<str>,
    include_usage: bool,
    pub(super) created: u64,
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
        self.id_of(match self.kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
            Kind::Response => "resp",
            Kind::Message => "msg",
        })
    }

    /// An id of this answer; two with the same prefix are the same.
    pub(super) fn id_of(&self, prefix: &str) -> String {
        if self.clock {
            format!("{prefix}-{:x}{:08x}", self.created, self.stream)
        } else {
            format!("{prefix}-sim")
        }
    }

    /// Opens the object of one event: everything before `choices`.
    fn open(&self, text: &mut String) {
        let object =
            if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
        let Self { created, model, .. } = self;
        put(
            text,
            format_args!(
                r#"data: {{"id":"{}","object":"{object}","created":{created},"model":{model},"#,
                self.id()
            ),
        );
    }

    /// What an API sends before the first event with content.
    pub(super) fn opening(&self, behaviour: &Behaviour) -> Option<Bytes> {
        match self.kind {
            Kind::Chat | Kind::Completion => None,
            Kind::Response => Some(responses::opening(self, behaviour)),
            Kind::Message => Some(messages::opening(self, behaviour)),
        }
    }

    /// The event number `seq` (from 1) of `behaviour.count`, with `size` bytes of padding.
    pub(super) fn event(&self, behaviour: &Behaviour, seq: u32, size: usize) -> Bytes {
        let mut text = String::with_capacity(320 + self.model.len() + size);
        match self.kind {
            Kind::Chat | Kind::Completion => self.open(&mut text),
            Kind::Response => responses::open(self, behaviour, seq, &mut text),
            Kind::Message => messages::open(behaviour, &mut text),
        }
        match self.kind {
            Kind::Chat if seq == 1 => {
                text.push_str(r#""choices":[{"index":0,"delta":{"role":"assistant","content":""#);
            }
            Kind::Chat => text.push_str(r#""choices":[{"index":0,"delta":{"content":""#),
            Kind::Completion => text.push_str(r#""choices":[{"index":0,"text":""#),
            Kind::Response => text.push_str(r#""delta":""#),
            Kind::Message => text.push_str(r#""delta":{"type":"text_delta","text":""#),
        }
        token(&mut text, seq, size);
        text.push_str(match self.kind {
            Kind::Chat => r#""},"#,
            Kind::Completion => r#"","logprobs":null,"#,
            Kind::Response => r#"","logprobs":[],"#,
            Kind::Message => r#""},"#,
        });
        if matches!(self.kind, Kind::Chat | Kind::Completion) {
            let finish = if seq == behaviour.count { r#""stop""# } else { "null" };
            let usage = if self.include_usage { r#""usage":null,"# } else { "" };
            put(&mut text, format_args!(r#""finish_reason":{finish}}}],{usage}"#));
        }
        let sent_ns = if self.clock { now_ns() } else { 0 };
        put(
            &mut text,
            format_args!(r#""sim":{{"stream":{},"seq":{seq},"sent_ns":{sent_ns}}}}}"#, self.stream),
        );
        close(behaviour, text)
    }

    /// What comes between the last content and the terminal mark: for OpenAI's completions the chunk
    /// which `stream_options.include_usage` asks for.
    pub(super) fn closing(&self, behaviour: &Behaviour) -> Option<Bytes> {
        match self.kind {
            Kind::Response => Some(responses::closing(self, behaviour)),
            Kind::Message => Some(messages::closing(behaviour)),
            Kind::Chat | Kind::Completion if !self.include_usage => None,
            Kind::Chat | Kind::Completion => {
                let mut text = String::with_capacity(320);
                self.open(&mut text);
                let usage = usage(behaviour.count);
                put(&mut text, format_args!(r#""choices":[],"usage":{usage}}}"#));
                Some(close(behaviour, text))
            }
        }
    }

    /// The terminal mark.
    pub(super) fn done(&self, behaviour: &Behaviour) -> Bytes {
        match self.kind {
            Kind::Chat | Kind::Completion => close(behaviour, "data: [DONE]".to_owned()),
            Kind::Response => responses::completed(self, behaviour),
            Kind::Message => named(behaviour, "message_stop", r#"{"type":"message_stop"}"#),
        }
    }

    /// An error inside the event stream after `sent` events with content, in the shape that makes
    /// the SDKs raise an error.
    pub(super) fn error(&self, behaviour: &Behaviour, sent: u32) -> Bytes {
        let error = error_body(self.kind, 500, FAILED, "sim");
        match self.kind {
            Kind::Chat | Kind::Completion => close(behaviour, format!("data: {error}")),
            Kind::Response => responses::error(behaviour, sent, FAILED),
            Kind::Message => named(behaviour, "error", &error),
        }
    }

    /// The whole answer of a request that did not ask for a stream.
    pub(super) fn completion(&self, behaviour: &Behaviour) -> Bytes {
        let (content, seq) = told(behaviour);
        let Self { created, model, stream, .. } = self;
        let (object, said) = match self.kind {
            Kind::Chat => (
                "chat.completion",
                format!(r#""message":{{"role":"assistant","content":"{content}"}}"#),
            ),
            Kind::Completion => {
                ("text_completion", format!(r#""text":"{content}","logprobs":null"#))
            }
            Kind::Response => return Bytes::from(responses::whole(self, &content, seq)),
            Kind::Message => return Bytes::from(messages::whole(self, &content, seq)),
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

/// What the error says that a stream breaks off with.
const FAILED: &str = "the simulated upstream failed";

/// An error body in the shape of `kind`'s API; Anthropic's has no `code`.
pub(super) fn error_body(kind: Kind, status: u16, message: &str, code: &str) -> String {
    let words = match (kind, status) {
        (_, 401) => "authentication_error",
        (_, 429) => "rate_limit_error",
        (Kind::Message, 529) => "overloaded_error",
        (Kind::Message, 500..) => "api_error",
        (_, 500..) => "server_error",
        _ => "invalid_request_error",
    };
    let error = if kind == Kind::Message {
        json!({"type": "error", "error": {"type": words, "message": message}})
    } else {
        json!({"error": {"message": message, "type": words, "param": null, "code": code}})
    };
    error.to_string()
}

/// Bytes of padding in the event `seq` of a stream.
pub(super) fn size(behaviour: &Behaviour, seq: u32) -> usize {
    let huge = behaviour.fault_after.min(behaviour.count).max(1);
    if behaviour.fault == Fault::Huge && seq == huge { behaviour.size_huge } else { behaviour.size }
}

/// All that is told, as far as it fits, and in how many events.
pub(super) fn told(behaviour: &Behaviour) -> (String, u32) {
    let mut content = String::new();
    let mut seq = 0;
    while seq < behaviour.count && content.len() < TEXT_MAX {
        seq += 1;
        token(&mut content, seq, size(behaviour, seq));
    }
    (content, seq)
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

/// An event with a name.
pub(super) fn named(behaviour: &Behaviour, name: &str, data: &str) -> Bytes {
    close(behaviour, format!("event: {name}{}data: {data}", line_end(behaviour)))
}

/// The line end of `behaviour` as text.
pub(super) fn line_end(behaviour: &Behaviour) -> &'static str {
    std::str::from_utf8(behaviour.framing.line_end.bytes()).expect("line ends are ASCII")
}

/// Ends the data line and its event.
fn close(behaviour: &Behaviour, text: String) -> Bytes {
    let line_end = behaviour.framing.line_end.bytes();
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(line_end);
    bytes.extend_from_slice(line_end);
    Bytes::from(bytes)
}

pub(super) fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
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
        let usage = json(&voice.closing(&behaviour).unwrap());
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["total_tokens"], 15);
        let whole: Value = serde_json::from_slice(&voice.completion(&behaviour)).unwrap();
        assert_eq!(whole["choices"][0]["message"]["content"], "The tide comes ");
        assert_eq!(whole["usage"], usage["usage"]);
        assert_eq!(json(&voice.error(&behaviour, 1))["error"]["code"], "sim");
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
