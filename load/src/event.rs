//! What one event says: a stamped chunk, an end mark, an error, a ping.
//!
//! Owns the reading of payloads. Refuses to pass over what it cannot read: every payload is checked
//! to be whole JSON. Cost: one pass over the payload, nothing copied but an escaped `type`.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The stamp which the simulator puts at the end of each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Stamp {
    /// The stream it belongs to.
    pub(crate) stream: u64,
    /// Its number in the stream, from 1.
    pub(crate) seq: u64,
    /// CLOCK_REALTIME when it was made, nanoseconds; 0 if the simulator's clock is off.
    pub(crate) sent_ns: u64,
}

/// What an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A chunk with the simulator's stamp.
    Chunk(Stamp),
    /// JSON without a stamp: a usage chunk, or a server that is not the simulator.
    Plain,
    /// The end mark of its family: `[DONE]`, `message_stop`, `response.completed`.
    Done,
    /// An error event in the shape of any family.
    Error,
    /// Anthropic's heartbeat.
    Ping,
    /// Not JSON, or a stamp that is none.
    Malformed,
}

#[derive(Deserialize)]
struct Payload<'a> {
    sim: Option<Stamp>,
    error: Option<IgnoredAny>,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
}

/// Reads an event.
pub(crate) fn read(name: &[u8], data: &[u8]) -> Meaning {
    if data == b"[DONE]" {
        return Meaning::Done;
    }
    let object = data.first() == Some(&b'{');
    let payload = str::from_utf8(data).ok().filter(|_| object);
    let Some(Ok(payload)) = payload.map(serde_json::from_str::<Payload<'_>>) else {
        return Meaning::Malformed;
    };
    match payload.kind.as_deref() {
        Some("ping") if name == b"ping" => Meaning::Ping,
        Some("error" | "response.failed") => Meaning::Error,
        Some("message_stop" | "response.completed" | "response.incomplete") => Meaning::Done,
        _ if payload.error.is_some() => Meaning::Error,
        _ => payload.sim.map_or(Meaning::Plain, Meaning::Chunk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_told_apart() {
        let chunk = br#"{"id":"c","choices":[{"d":"}{"}],"sim":{"stream":7,"seq":2,"sent_ns":9}}"#;
        let stamp = Stamp { stream: 7, seq: 2, sent_ns: 9 };
        assert_eq!(read(b"", chunk), Meaning::Chunk(stamp));
        let others: [(&str, &str, Meaning); 11] = [
            ("", "[DONE]", Meaning::Done),
            ("", r#"{"choices":[],"usage":{"a":1}}"#, Meaning::Plain),
            ("", r#"{"error":{"message":"no"}}"#, Meaning::Error),
            ("", r#"{"error":null}"#, Meaning::Plain),
            ("error", r#"{"type":"error","error":{}}"#, Meaning::Error),
            ("ping", r#"{"type":"ping"}"#, Meaning::Ping),
            ("", r#"{"type":"message_stop"}"#, Meaning::Done),
            ("", r#"{"sim":{"stream":1}}"#, Meaning::Malformed),
            ("", r#"{"a":1}{"b":2}"#, Meaning::Malformed),
            ("", "[1]", Meaning::Malformed),
            ("", "", Meaning::Malformed),
        ];
        for (name, data, meaning) in others {
            assert_eq!(read(name.as_bytes(), data.as_bytes()), meaning, "{data}");
        }
        assert_eq!(read(b"", b"{\"a\":\"\xff\"}"), Meaning::Malformed);
        for end in 1..chunk.len() {
            assert_eq!(read(b"", &chunk[..end]), Meaning::Malformed, "{end}");
        }
    }
}
