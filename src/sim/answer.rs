//! From a request to its answer: endpoints, errors, and the fields of the response head.
//!
//! Owns the routing table and the JSON of the endpoints that do not stream. Refuses to write a
//! byte: what it makes is the same for HTTP/1.1 and HTTP/2. Invariant: every request gets an
//! answer; what cannot be understood gets a 4xx with a JSON error that says why.
//! Cost: one head's worth of strings per request.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Shared;
use super::options::{Behaviour, Fault};
use super::payload::{Kind, Voice, error_body};
use super::request::{Intake, Request};
use super::script::Script;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Complete(Kind),
    Embeddings,
    Models,
    Echo,
    Counts,
    Reset,
}

impl Endpoint {
    /// Any prefix before `/v1` is accepted, as providers put some there.
    pub(super) fn of(path: &str) -> Self {
        match path {
            "/sim/counts" => Self::Counts,
            "/sim/reset" => Self::Reset,
            _ if path.ends_with("/v1/chat/completions") => Self::Complete(Kind::Chat),
            _ if path.ends_with("/v1/completions") => Self::Complete(Kind::Completion),
            _ if path.ends_with("/v1/responses") => Self::Complete(Kind::Response),
            _ if path.ends_with("/v1/messages") => Self::Complete(Kind::Message),
            _ if path.ends_with("/v1/embeddings") => Self::Embeddings,
            _ if path.ends_with("/v1/models") => Self::Models,
            _ => Self::Echo,
        }
    }

    /// Whose errors `request` gets; OpenAI's where no API is spoken.
    fn kind(request: &Request) -> Kind {
        if let Self::Complete(kind) = Self::of(request.path()) { kind } else { Kind::Chat }
    }

    pub(super) fn reads_json(self) -> bool {
        matches!(self, Self::Complete(_) | Self::Embeddings)
    }

    /// Requests to the simulator itself, which are neither counted nor recorded.
    pub(super) fn is_control(self) -> bool {
        matches!(self, Self::Counts | Self::Reset)
    }
}

/// How the end of the body is known to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// No body belongs to this status.
    None,
    /// A content-length field says so, truly or not.
    Declared(u64),
    /// Chunks, END_STREAM or the close.
    Unknown,
}

/// A whole answer, ready to be sent by either protocol.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Field lines except those of the message framing.
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) length: Length,
    /// The head only, as HEAD wants it.
    pub(super) head_only: bool,
    pub(super) script: Script,
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    input: Value,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

const MODEL: &str = "tide-1";
const JSON: &str = "application/json";

/// The behaviour of `request`, or the answer that tells what is wrong with its `sim-*` values.
/// Counts the attempt where `sim-fault-times` wants it.
pub(super) fn behaviour(shared: &Shared, request: &Request) -> Result<Box<Behaviour>, Box<Answer>> {
    if Endpoint::of(request.path()).is_control() {
        return Ok(Box::default());
    }
    let mut behaviour = request.behaviour(&shared.defaults()).map_err(|fault| {
        let body = error_body(Endpoint::kind(request), 400, &fault, "sim_bad_value");
        Answer::new(shared, request, 400, JSON, Script::fixed(Behaviour::default(), body))
    })?;
    if let Some(times) = behaviour.fault_times
        && shared.ledger.attempts_before(behaviour.stream.unwrap_or(0)) >= times
    {
        behaviour = Behaviour { fault: Fault::None, status: None, retry_after: None, ..behaviour };
    }
    if behaviour.fault == Fault::ContentLengthExact {
        behaviour.clock = false;
    }
    Ok(Box::new(behaviour))
}

/// The answer to `request` with the body `intake`.
pub(super) fn plan(
    shared: &Shared,
    request: &Request,
    intake: &Intake,
    behaviour: Behaviour,
) -> Box<Answer> {
    let early = behaviour.fault == Fault::Early;
    if let Some(status) = behaviour.status.or(early.then_some(413)).filter(|&s| s != 200) {
        return error(shared, request, behaviour, status, "simulated error", "sim");
    }
    if behaviour.fault == Fault::Html {
        let page =
            "<!DOCTYPE html>\n<title>Sign in</title>\n<p>Please sign in to the network.</p>\n";
        return Answer::new(shared, request, 200, "text/html", Script::fixed(behaviour, page));
    }
    let ok = |body: Value| {
        let script = Script::fixed(behaviour.clone(), body.to_string());
        Answer::new(shared, request, 200, JSON, script)
    };
    match Endpoint::of(request.path()) {
        Endpoint::Complete(kind) => complete(shared, request, intake, behaviour, kind),
        Endpoint::Embeddings => match serde_json::from_slice(intake.whole().unwrap_or(b"")) {
            Ok(asked) => ok(embeddings(asked)),
            Err(fault) => bad_body(shared, request, behaviour, &fault.to_string()),
        },
        Endpoint::Models => ok(json!({"object": "list", "data": [
            {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "tidegate"},
            {"id": "tide-1-mini", "object": "model", "created": 1_700_000_000, "owned_by": "tidegate"},
        ]})),
        Endpoint::Echo => ok(echo(request, intake)),
        Endpoint::Counts => ok(json!(shared.ledger.counts())),
        Endpoint::Reset => {
            shared.ledger.reset();
            ok(json!(shared.ledger.counts()))
        }
    }
}

fn complete(
    shared: &Shared,
    request: &Request,
    intake: &Intake,
    behaviour: Behaviour,
    kind: Kind,
) -> Box<Answer> {
    // EventSource can only GET, and says what it wants in `accept`.
    let asked = match request.method.as_str() {
        "GET" if request.has_token("accept", "text/event-stream") => {
            Ok(Asked { stream: Some(true), model: None, stream_options: None, input: Value::Null })
        }
        "POST" => match intake.whole() {
            Some(body) => serde_json::from_slice::<Asked>(body).map_err(|f| f.to_string()),
            None => return error(shared, request, behaviour, 413, "body too large", "too_large"),
        },
        _ => {
            let mut answer =
                error(shared, request, behaviour, 405, "POST a JSON body", "method_not_allowed");
            answer.fields.push(("allow", "POST".to_owned()));
            return answer;
        }
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(fault) => return bad_body(shared, request, behaviour, &fault),
    };
    let stream = behaviour.stream.unwrap_or_else(|| shared.ledger.next_stream());
    let model = asked.model.as_deref().unwrap_or(MODEL);
    let include_usage = asked.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
    let voice = Voice::new(&behaviour, kind, stream, model, include_usage);
    if asked.stream.unwrap_or(false) {
        let script = Script::stream(behaviour, voice);
        Answer::new(shared, request, 200, "text/event-stream", script)
    } else {
        let body = voice.completion(&behaviour);
        Answer::new(shared, request, 200, JSON, Script::fixed(behaviour, body))
    }
}

fn bad_body(shared: &Shared, request: &Request, behaviour: Behaviour, fault: &str) -> Box<Answer> {
    let message = format!("the body is not the JSON of this endpoint: {fault}");
    error(shared, request, behaviour, 400, &message, "bad_body")
}

/// An error answer; the behaviour's faults apply to it as to any other.
fn error(
    shared: &Shared,
    request: &Request,
    behaviour: Behaviour,
    status: u16,
    message: &str,
    code: &str,
) -> Box<Answer> {
    let body = error_body(Endpoint::kind(request), status, message, code);
    let script = Script::fixed(behaviour, body);
    Answer::new(shared, request, status, JSON, script)
}

fn embeddings(asked: Asked) -> Value {
    let inputs = match &asked.input {
        // A list of numbers is one input, already in tokens.
        Value::Array(list) if !list.iter().all(Value::is_number) => list.len(),
        _ => 1,
    };
    let vector = [0.5, -0.25, 0.125, 0.0625, -0.5, 0.25, -0.125, 1.0];
    let data: Vec<Value> = (0..inputs)
        .map(|index| json!({"object": "embedding", "index": index, "embedding": vector}))
        .collect();
    json!({
        "object": "list",
        "data": data,
        "model": asked.model.as_deref().unwrap_or(MODEL),
        "usage": {"prompt_tokens": inputs, "total_tokens": inputs},
    })
}

/// What arrived, for tests of what a proxy forwards. A field that came on several lines becomes a
/// list, so that a merge or a duplicate shows.
fn echo(request: &Request, intake: &Intake) -> Value {
    let mut headers = Map::new();
    for (name, value) in &request.headers {
        match headers.get_mut(name) {
            None => {
                headers.insert(name.clone(), Value::from(value.as_str()));
            }
            Some(Value::Array(list)) => list.push(Value::from(value.as_str())),
            Some(one) => *one = json!([one.take(), value]),
        }
    }
    json!({
        "method": request.method,
        "path": request.path(),
        "query": request.query(),
        "version": request.version,
        "headers": headers,
        "body_bytes": intake.length(),
        "body_fnv1a64": format!("{:016x}", intake.fnv1a64()),
    })
}

impl Answer {
    fn new(
        shared: &Shared,
        request: &Request,
        status: u16,
        content_type: &'static str,
        script: Script,
    ) -> Box<Self> {
        let behaviour = &script.behaviour;
        let length = length(status, content_type, &script);
        let mut fields = Vec::with_capacity(6);
        if length != Length::None {
            fields.push(("content-type", content_type.to_owned()));
        }
        fields.push(("x-request-id", format!("req_sim{:012x}", shared.next_request())));
        fields.push(("openai-processing-ms", behaviour.first_byte.as_millis().to_string()));
        fields.push(("date", http_date(SystemTime::now())));
        if let Some(retry_after) = &behaviour.retry_after {
            fields.push(("retry-after", retry_after.clone()));
        }
        if behaviour.fault == Fault::Trailers {
            fields.push(("trailer", TRAILER.0.to_owned()));
        }
        let head_only = request.method == "HEAD";
        Box::new(Self { status, fields, length, head_only, script })
    }

    pub(super) fn fault(&self) -> Fault {
        self.script.behaviour.fault
    }
}

/// The one field of the trailer section.
pub(super) const TRAILER: (&str, &str) = ("sim-trailer", "end");

fn length(status: u16, content_type: &str, script: &Script) -> Length {
    let streams = content_type == "text/event-stream";
    match script.behaviour.fault {
        _ if matches!(status, 204 | 304) => Length::None,
        Fault::WrongLength => {
            // More than is sent even if every digit of the clock were to grow.
            let spare = 64 * (1 + u64::from(script.behaviour.count));
            Length::Declared(script.length() + spare)
        }
        Fault::ContentLengthExact => Length::Declared(script.length()),
        Fault::BadChunk | Fault::EofDelimited | Fault::Trailers => Length::Unknown,
        _ if streams => Length::Unknown,
        Fault::Fin | Fault::Rst | Fault::Conn | Fault::Stall => match script.whole() {
            Some(body) => Length::Declared(body as u64),
            None => Length::Unknown,
        },
        _ => Length::Declared(script.length()),
    }
}

/// A date as RFC 9110, section 5.6.7 wants it.
fn http_date(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 0000-03-01, so that the leap day ends a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn paths_lead_to_endpoints_whatever_is_before_v1() {
        let chat = Endpoint::Complete(Kind::Chat);
        assert_eq!(Endpoint::of("/v1/chat/completions"), chat);
        assert_eq!(Endpoint::of("/openai/deployments/x/v1/chat/completions"), chat);
        assert_eq!(Endpoint::of("/v1/completions"), Endpoint::Complete(Kind::Completion));
        assert_eq!(Endpoint::of("/x/v1/responses"), Endpoint::Complete(Kind::Response));
        assert_eq!(Endpoint::of("/v1/messages"), Endpoint::Complete(Kind::Message));
        assert_eq!(Endpoint::of("/api/v1/models"), Endpoint::Models);
        assert_eq!(Endpoint::of("/v1/models/x"), Endpoint::Echo);
        assert_eq!(Endpoint::of("/v2/chat/completions"), Endpoint::Echo);
        assert_eq!(Endpoint::of("/v1/files"), Endpoint::Echo);
        assert_eq!(Endpoint::of("/sim/counts"), Endpoint::Counts);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(at(1_709_251_199), "Thu, 29 Feb 2024 23:59:59 GMT");
        assert_eq!(at(4_107_542_400), "Mon, 01 Mar 2100 00:00:00 GMT");
    }

    #[test]
    fn embeddings_answer_one_vector_per_input() {
        let count = |input: Value| {
            let asked = serde_json::from_value(json!({"input": input})).unwrap();
            embeddings(asked)["data"].as_array().unwrap().len()
        };
        assert_eq!(count(json!("one")), 1);
        assert_eq!(count(json!(["one", "two"])), 2);
        assert_eq!(count(json!([1, 2, 3])), 1);
    }
}
