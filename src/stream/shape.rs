//! How a failure looks to a client: a JSON body before the head is committed, an event after it.
//!
//! The one place error bytes are made, and the one that reads an upstream's. Each family's SDKs know
//! errors by a shape of their own; those of OpenAI raise theirs on `data: {"error":{…}}`, named or
//! not, and any other family gets that too.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config::Family;
use crate::error::{Failure, FailureSide, Kind};

/// The JSON body of an error answer.
pub fn error_body(family: Family, failure: &Failure) -> Bytes {
    Bytes::from(error_value(family, failure).to_string())
}

/// One whole event that tells `failure`, ending in a blank line; `seen` is the number of events
/// before it.
pub fn error_event(family: Family, failure: &Failure, seen: u64) -> Bytes {
    let value = error_value(family, failure);
    match family {
        Family::Responses => event("event: error\n", &response_error(value, seen)),
        Family::Anthropic => event("event: error\n", &value),
        Family::OpenAi | Family::Plain | Family::Auto => event("", &value),
    }
}

fn event(name: &str, value: &Value) -> Bytes {
    Bytes::from(format!("{name}data: {value}\n\n"))
}

/// The Responses API documents the flat `{"type":"error","code",…}` and sends the nested one too.
/// OpenAI's SDKs raise only where there is an `error`, and other clients read the flat fields, so
/// both are there. Its events are numbered from 0 on; the Vercel SDK ignores one without a number.
fn response_error(value: Value, seen: u64) -> Value {
    let error = &value["error"];
    let word = |key: &str| match &error[key] {
        Value::Number(number) => Value::String(number.to_string()),
        Value::String(text) => Value::String(text.clone()),
        _ => Value::Null,
    };
    let message = match (error, word("message")) {
        (Value::String(text), _) => Value::String(text.clone()),
        (_, Value::Null) => Value::String(error.to_string()),
        (_, message) => message,
    };
    json!({
        "type": "error",
        "code": word("code"),
        "message": message,
        "param": word("param"),
        "sequence_number": seen,
        "error": error,
    })
}

/// A JSON object with an `error` in it, which is all that is told beside the Responses API's events.
fn error_value(family: Family, failure: &Failure) -> Value {
    // The upstream's own words are the better ones.
    let own = failure.upstream_error.as_ref().and_then(|body| error_object(body));
    if let Some(mut own) = own {
        if family == Family::Anthropic {
            own.insert("type".to_owned(), "error".into());
        }
        return Value::Object(own);
    }
    let (message, code) = (&failure.detail, failure.kind.code());
    match family {
        Family::Anthropic => json!({
            "type": "error",
            "error": {"type": anthropic_type(failure.kind), "message": message, "code": code},
        }),
        Family::Auto | Family::OpenAi | Family::Responses | Family::Plain => json!({"error": {
            "message": message,
            "type": openai_type(failure.kind),
            "param": null,
            "code": code,
        }}),
    }
}

fn openai_type(kind: Kind) -> &'static str {
    match (kind, kind.side()) {
        (Kind::Limited(limit), _) if !limit.overload() => "rate_limit_error",
        (_, FailureSide::Client) => "invalid_request_error",
        (_, FailureSide::Gateway) => "gateway_error",
        (_, FailureSide::Upstream) => "upstream_error",
    }
}

/// Anthropic's names go by the status.
fn anthropic_type(kind: Kind) -> &'static str {
    match kind.status() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "overloaded_error",
        _ => "api_error",
    }
}

/// `body` if it is a JSON object with an `error` in it; one that is flat, as the Responses API has
/// it, with that put inside.
fn error_object(body: &[u8]) -> Option<Map<String, Value>> {
    let Value::Object(mut object) = serde_json::from_slice(body).ok()? else { return None };
    if object.get("error").is_some_and(|error| !error.is_null()) {
        return Some(object);
    }
    if object.get("type").is_none_or(|kind| kind != "error") || !object.contains_key("message") {
        return None;
    }
    let mut take = |key| object.remove(key).unwrap_or(Value::Null);
    let (message, param, code) = (take("message"), take("param"), take("code"));
    let error = json!({"error": {
        "message": message, "type": "upstream_error", "param": param, "code": code,
    }});
    if let Value::Object(error) = error { Some(error) } else { None }
}

/// The error object within the first event of `stream`, if that event is one.
pub fn first_event_error(stream: &[u8]) -> Option<Bytes> {
    let text = String::from_utf8_lossy(stream);
    let mut data = String::new();
    for line in text.lines() {
        match line.strip_prefix("data:") {
            Some(value) => data.push_str(value),
            None if line.is_empty() && !data.is_empty() => break,
            None => {}
        }
    }
    let value = error_object(data.as_bytes())?;
    Some(Bytes::from(Value::Object(value).to_string()))
}

/// The HTTP status an upstream's error object asks for: a numeric `code` or `status` of 400-599,
/// or one that its `type` or `code` stands for (Anthropic's documented error types, and those of
/// OpenAI's that mean 429).
pub fn error_status(body: &[u8]) -> Option<u16> {
    let object = error_object(body)?;
    let error = object.get("error")?;
    let code = error.get("status").or_else(|| error.get("code")).and_then(Value::as_u64);
    if let Some(code) = code {
        return u16::try_from(code).ok().filter(|code| (400..600).contains(code));
    }
    let word = |key| error.get(key).and_then(Value::as_str).and_then(status_of);
    word("type").or_else(|| word("code"))
}

fn status_of(word: &str) -> Option<u16> {
    Some(match word {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" | "rate_limit_exceeded" | "insufficient_quota" => 429,
        "api_error" => 500,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::error::Limit;

    #[test]
    fn errors_have_the_openai_shape() {
        let failure = Failure::new(Kind::Truncated, "broke \"off\"\nhere");
        let body: Value =
            serde_json::from_slice(&error_body(Family::OpenAi, &failure)).expect("JSON");
        assert_eq!(body["error"]["code"], "upstream_truncated");
        assert_eq!(body["error"]["type"], "upstream_error");
        assert_eq!(body["error"]["message"], "broke \"off\"\nhere");
        assert!(body["error"].get("param").is_some_and(Value::is_null));
        let event = error_event(Family::OpenAi, &failure, 0);
        assert!(event.starts_with(b"data: {\"error\":") && event.ends_with(b"}\n\n"));
        assert_eq!(event.iter().filter(|b| **b == b'\n').count(), 2, "one line of data");
    }

    #[test]
    fn errors_have_the_shape_of_the_family() {
        let failure = Failure::new(Kind::Key, "no key");
        let body = error_body(Family::Anthropic, &failure);
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["type"], "error");
        assert_eq!(body["error"]["type"], "authentication_error");
        let event = error_event(Family::Anthropic, &failure, 0);
        assert!(event.starts_with(b"event: error\ndata: {") && event.ends_with(b"}\n\n"));
        let limited = Failure::limited(Limit::TenantRate, Duration::ZERO, "slow down");
        let body: Value =
            serde_json::from_slice(&error_body(Family::OpenAi, &limited)).expect("JSON");
        assert_eq!(body["error"]["type"], "rate_limit_error");
        assert_eq!(body["error"]["code"], "tenant_rate_limit");
    }

    #[test]
    fn the_upstreams_own_error_is_handed_on_on_one_line() {
        let own =
            Bytes::from_static(b"{\n \"error\": {\"message\": \"slow down\", \"code\": 429}\n}");
        let failure = Failure::new(Kind::UpstreamStatus(429), "x").with_upstream_error(own.clone());
        let event = error_event(Family::OpenAi, &failure, 0);
        assert!(String::from_utf8_lossy(&event).contains("slow down"));
        assert_eq!(event.iter().filter(|b| **b == b'\n').count(), 2);
        assert_eq!(error_status(&own), Some(429));
        let html = Failure::new(Kind::UpstreamStatus(500), "mine")
            .with_upstream_error(Bytes::from_static(b"<html>"));
        assert!(String::from_utf8_lossy(&error_event(Family::OpenAi, &html, 0)).contains("mine"));
    }

    #[test]
    fn the_first_event_is_an_error_only_if_it_says_so() {
        let error = b": hi\n\nevent: error\ndata: {\"error\":{\"message\":\"no\"}}\n\ndata: x\n\n";
        assert!(first_event_error(error).is_some());
        let later = b"data: {\"id\":1}\n\ndata: {\"error\":{\"message\":\"no\"}}\n\n";
        assert_eq!(first_event_error(later), None);
        assert_eq!(first_event_error(b"data: {\"error\":null}\n\n"), None);
        assert_eq!(error_status(b"{\"error\":{\"code\":\"x\"}}"), None);
    }
    #[test]
    fn an_error_of_the_responses_api_is_flat_and_nested_and_numbered() {
        let data = |failure: &Failure| -> Value {
            let event = error_event(Family::Responses, failure, 7);
            let text = std::str::from_utf8(&event).expect("UTF-8");
            let data = text.strip_prefix("event: error\ndata: ").expect("a name, then data");
            assert_eq!(text.matches('\n').count(), 3, "one line of data");
            serde_json::from_str(data).expect("JSON")
        };
        let told = data(&Failure::new(Kind::Truncated, "broke off"));
        assert_eq!(told["type"], "error");
        assert_eq!(told["sequence_number"], 7);
        assert_eq!(
            (&told["code"], &told["message"]),
            (&"upstream_truncated".into(), &"broke off".into())
        );
        assert!(told.get("param").is_some_and(Value::is_null));
        assert_eq!(
            (&told["error"]["code"], &told["error"]["type"]),
            (&told["code"], &"upstream_error".into())
        );
        for (own, code, message) in [
            (r#"{"error":{"message":"no","code":429}}"#, "429".into(), "no"),
            (
                r#"{"type":"error","code":"busy","message":"no","sequence_number":3}"#,
                "busy".into(),
                "no",
            ),
            (r#"{"error":"no"}"#, Value::Null, "no"),
            (r#"{"error":{"code":"x"}}"#, "x".into(), r#"{"code":"x"}"#),
        ] {
            let failure =
                Failure::new(Kind::UpstreamStatus(500), "x").with_upstream_error(own.into());
            let told = data(&failure);
            assert_eq!((&told["code"], &told["message"]), (&code, &message.into()), "{own}");
            let body: Value =
                serde_json::from_slice(&error_body(Family::Responses, &failure)).expect("JSON");
            assert_eq!(body["error"], told["error"], "{own}");
        }
    }

    #[test]
    fn an_upstreams_error_is_an_anthropic_one_on_its_routes_whoever_made_it() {
        let own = Bytes::from_static(b"{\"error\":{\"message\":\"no\",\"type\":\"x\"}}");
        let failure = Failure::new(Kind::UpstreamStatus(500), "x").with_upstream_error(own);
        let body: Value =
            serde_json::from_slice(&error_body(Family::Anthropic, &failure)).expect("JSON");
        assert_eq!(body, json!({"type": "error", "error": {"message": "no", "type": "x"}}));
    }

    #[test]
    fn an_error_names_its_status() {
        for (error, status) in [
            (r#"{"error":{"type":"overloaded_error"}}"#, Some(529)),
            (r#"{"type":"error","error":{"type":"rate_limit_error","message":"x"}}"#, Some(429)),
            (r#"{"type":"error","code":"rate_limit_exceeded","message":"x"}"#, Some(429)),
            (r#"{"error":{"type":"requests","code":"rate_limit_exceeded"}}"#, Some(429)),
            (r#"{"error":{"code":503,"type":"rate_limit_error"}}"#, Some(503)),
            (r#"{"error":{"code":200}}"#, None),
            (r#"{"error":{"type":"server_error"}}"#, None),
            (r#"{"error":"overloaded_error"}"#, None),
            (r#"{"type":"error"}"#, None),
        ] {
            assert_eq!(error_status(error.as_bytes()), status, "{error}");
        }
        let flat = b"event: error\ndata: {\"type\":\"error\",\"code\":null,\"message\":\"m\"}\n\n";
        let error: Value =
            serde_json::from_slice(&first_event_error(flat).expect("one")).expect("JSON");
        assert_eq!(error["error"]["message"], "m");
    }
}
