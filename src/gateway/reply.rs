//! The heads of answers, and the answers the gateway makes itself.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};

use crate::config::Family;
use crate::error::{Failure, Kind, Quota};
use crate::stream::body::ClientBody;
use crate::stream::control::Control;
use crate::stream::core::Stream;
use crate::stream::shape;
use crate::telemetry::cells::Rejection;
use crate::wire::head;

/// The gateway's own request id; the upstream's `x-request-id` stays what it is.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("tidegate-request-id");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");
/// Limit, what is left of it, and when it is whole again, as OpenAI names them.
const RATE_LIMIT_REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const RATE_LIMIT_TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
/// How soon another instance is expected to answer while this one shuts down.
const SUCCESSOR: Duration = Duration::from_secs(1);

/// A head for an event stream: the upstream's, or a plain 200 when the client is promised one
/// before the upstream's head is there.
pub fn event_stream_head(upstream: Option<http::response::Parts>) -> Response<()> {
    let mut response = match upstream {
        Some(head) => passed_on(head),
        None => {
            let mut response = Response::new(());
            let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
    };
    let headers = response.headers_mut();
    // Heartbeats change the length.
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// The upstream's head as it is, without what belongs to the upstream's connection.
pub fn passed_on(upstream: http::response::Parts) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = upstream.status;
    *response.headers_mut() = upstream.headers;
    head::strip_hop_by_hop(response.headers_mut());
    response
}

/// `head` with the body that `stream` gives.
pub fn streamed(
    head: Response<()>,
    client: Version,
    stream: Stream,
    control: &Rc<Control>,
) -> Response<ClientBody> {
    if client == Version::HTTP_10 && !head.headers().contains_key(header::CONTENT_LENGTH) {
        control.ends_by_close();
    }
    head.map(|()| ClientBody::stream(stream, control.clone()))
}

/// Whether an SDK says that this is another attempt.
pub fn is_retry(headers: &HeaderMap) -> bool {
    headers.get(RETRY_COUNT).is_some_and(|count| count.as_bytes() != b"0")
}

/// Under which limit or rule a refusal of `kind` is counted; `None`: it is none.
pub fn rejection(kind: Kind) -> Option<Rejection> {
    match kind {
        Kind::Limited(limit) => Some(limit.into()),
        Kind::Draining => Some(Rejection::Drain),
        Kind::Key => Some(Rejection::Key),
        Kind::Forbidden => Some(Rejection::Forbidden),
        Kind::NoRoute => Some(Rejection::NoRoute),
        Kind::BadRequest | Kind::Method | Kind::Upgrade => Some(Rejection::BadRequest),
        Kind::BodySlow | Kind::BodyTooLarge => Some(Rejection::Body),
        Kind::HeadSlow | Kind::HeadTooLarge => Some(Rejection::Head),
        _ => None,
    }
}

/// The answer that tells `failure`; a client that had `retried` already is told not to go on with
/// that while the gateway has no room.
pub fn refused(family: Family, failure: &Failure, retried: bool) -> Response<ClientBody> {
    let own = failure.upstream_error.as_deref().and_then(shape::error_status);
    let status = own.unwrap_or(failure.kind.status());
    let mut response = Response::new(ClientBody::full(shape::error_body(family, failure)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(quota) = &failure.quota {
        tell(headers, quota);
    }
    match failure.kind {
        Kind::Limited(limit) if limit.overload() && retried => {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        Kind::Key => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Kind::Draining => tell(headers, &Quota { retry_after: SUCCESSOR, ..Quota::default() }),
        Kind::Method => {
            let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            headers.insert(header::ALLOW, allowed);
        }
        // The connection cannot be trusted to be at a request's beginning any more.
        Kind::BadRequest | Kind::BodySlow | Kind::BodyTooLarge => close(headers),
        _ => {}
    }
    response
}

/// When to come back, in the words that SDKs read: they prefer milliseconds and round seconds up.
fn tell(headers: &mut HeaderMap, quota: &Quota) {
    let millis = u64::try_from(quota.retry_after.as_millis()).unwrap_or(u64::MAX).max(1);
    headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
    headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis));
    let counted = [(&RATE_LIMIT_REQUESTS, quota.requests), (&RATE_LIMIT_TOKENS, quota.tokens)];
    for ([limit, remaining, reset], counted) in counted {
        let Some((size, left)) = counted else { continue };
        headers.insert(limit, HeaderValue::from(size));
        headers.insert(remaining, HeaderValue::from(left));
        let millis = HeaderValue::from_str(&format!("{millis}ms")).expect("digits and letters");
        headers.insert(reset, millis);
    }
}

/// A refusal as raw HTTP/1.1, for a request that hyper must not see.
pub fn refused_raw(status: u16, failure: &Failure, request_id: &str) -> Bytes {
    let body = shape::error_body(Family::Plain, failure);
    let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
    let mut raw = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         {REQUEST_ID}: {request_id}\r\nconnection: close\r\n\r\n",
        reason.unwrap_or("Refused"),
        body.len()
    )
    .into_bytes();
    raw.extend_from_slice(&body);
    Bytes::from(raw)
}

fn close(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}
