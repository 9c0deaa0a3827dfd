//! How a failure looks to a client: a JSON body before the head is committed, an event after it.
//!
//! The one place error bytes are made. Each family's SDKs know errors by a shape of their own; those
//! of OpenAI raise theirs on `data: {"error":{…}}`, named or not, and any other family gets that too.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::config::Family;
use crate::error::{Failure, FailureSide, Kind};

/// The JSON body of an error answer.
pub fn error_body(family: Family, failure: &Failure) -> Bytes {
    Bytes::from(error_value(family, failure).to_string())
}

/// One whole event that tells `failure`, ending in a blank line.
pub fn error_event(family: Family, failure: &Failure) -> Bytes {
    let name = if family == Family::Anthropic { "event: error\n" } else { "" };
    Bytes::from(format!("{name}data: {}\n\n", error_value(family, failure)))
}

fn error_value(family: Family, failure: &Failure) -> Value {
    // The upstream's own words are the better ones.
    let own = failure.upstream_error.as_ref().and_then(|body| error_object(body));
    if let Some(own) = own {
        return own;
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

/// `body` if it is a JSON object with an `error` in it.
fn error_object(body: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(body).ok()?;
    value.get("error").is_some_and(|error| !error.is_null()).then_some(value)
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
    Some(Bytes::from(value.to_string()))
}

/// The HTTP status an upstream's error object asks for: a numeric `code` or `status` of 400-599.
pub fn error_status(body: &[u8]) -> Option<u16> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error")?;
    let code = error.get("status").or_else(|| error.get("code"))?.as_u64()?;
    u16::try_from(code).ok().filter(|code| (400..600).contains(code))
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
        let event = error_event(Family::OpenAi, &failure);
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
        let event = error_event(Family::Anthropic, &failure);
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
        let event = error_event(Family::OpenAi, &failure);
        assert!(String::from_utf8_lossy(&event).contains("slow down"));
        assert_eq!(event.iter().filter(|b| **b == b'\n').count(), 2);
        assert_eq!(error_status(&own), Some(429));
        let html = Failure::new(Kind::UpstreamStatus(500), "mine")
            .with_upstream_error(Bytes::from_static(b"<html>"));
        assert!(String::from_utf8_lossy(&error_event(Family::OpenAi, &html)).contains("mine"));
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
}
