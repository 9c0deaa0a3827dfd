//! Rules about heads: hop-by-hop headers, hosts, paths, and the few values the gateway reads.
//!
//! Owns: what must not travel on to the next hop (RFC 9110, 7.6.1), and which hosts, paths and ids
//! are refused. Refuses: to route. A host is checked and never used: the upstream comes from the
//! configuration alone. Invariant: headers are stripped before the gateway adds its own, so that a
//! client cannot nominate ours away. Cost: allocates only if there is a Connection header.

use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Scheme;
use http::{StatusCode, Uri, Version};

use crate::limits;

#[cfg(test)]
mod tests;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Removes what belongs to one connection only: `Connection` and every header it nominates,
/// `Keep-Alive`, `Proxy-*`, `TE`, `Trailer`, `Transfer-Encoding`, `Upgrade` (RFC 9110, 7.6.1).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let options = headers.get_all(CONNECTION).iter().flat_map(|value| list(value.as_bytes()));
        let nominated: Vec<HeaderName> =
            options.filter_map(|option| HeaderName::from_bytes(option).ok()).collect();
        for name in nominated {
            headers.remove(name);
        }
    }
    for name in [CONNECTION, KEEP_ALIVE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let proxies: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("proxy-")).cloned().collect();
    for name in proxies {
        headers.remove(name);
    }
}

/// What is wrong with a request's host; the message tells its sender what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostFault {
    /// RFC 9112, 3.2: required from HTTP/1.1 on; HTTP/2 may have `:authority` instead.
    #[error("the request needs a Host header")]
    Missing,
    /// RFC 9112, 3.2.
    #[error("send Host only once")]
    Multiple,
    /// Not `host` or `host:port`: empty, or with user information, white space, a path.
    #[error("Host must be a host name or address, with an optional port")]
    Malformed,
    /// RFC 9112, 3.2.2 has a proxy believe the target; who contradicts himself is refused here.
    #[error("the Host header contradicts the request target")]
    Contradicts,
}

/// Checks the Host header, and the authority of the target if it has one (absolute form, or
/// HTTP/2's `:authority`).
pub fn check_host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), HostFault> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HostFault::Multiple);
    }
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.map(HeaderValue::as_bytes);
    let split = |text: Option<_>| text.map(|t| split_host(t).ok_or(HostFault::Malformed));
    match (split(host).transpose()?, split(authority).transpose()?) {
        (Some(host), Some(authority)) => {
            let port = |port| effective_port(port, uri.scheme());
            let same =
                host.0.eq_ignore_ascii_case(authority.0) && port(host.1) == port(authority.1);
            if same { Ok(()) } else { Err(HostFault::Contradicts) }
        }
        (Some(_), None) => Ok(()),
        // From HTTP/2 on `:authority` stands for Host.
        (None, Some(_)) if version >= Version::HTTP_2 => Ok(()),
        (None, _) if version <= Version::HTTP_10 => Ok(()),
        (None, _) => Err(HostFault::Missing),
    }
}

/// Host and port of `uri-host [ ":" port ]` (RFC 9110, 7.2; RFC 3986, 3.2.2).
fn split_host(text: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let end = if text.first() == Some(&b'[') {
        let end = text.iter().position(|byte| *byte == b']')? + 1;
        let address = &text[1..end - 1];
        let fine = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
        if address.is_empty() || !address.iter().all(fine) {
            return None;
        }
        end
    } else {
        let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
        let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte);
        if end == 0 || !text[..end].iter().all(fine) {
            return None;
        }
        end
    };
    let (host, rest) = text.split_at(end);
    let port = match rest {
        // An empty port is the default one.
        [] | [b':'] => None,
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            Some(std::str::from_utf8(digits).ok()?.parse().ok()?)
        }
        _ => return None,
    };
    Some((host, port))
}

fn effective_port(port: Option<u16>, scheme: Option<&Scheme>) -> Option<u16> {
    let default = match scheme.map(Scheme::as_str) {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    };
    port.or(default)
}

/// True if the path has a `.` or `..` segment, which some server behind may resolve: the dots also
/// as `%2e`, the separators also as `\`, `%2f` and `%5c`, and a segment's `;parameters` ignored.
pub fn dot_segments(path: &str) -> bool {
    // The segment's dots so far; `None` once it holds anything else.
    let mut dots = Some(0u8);
    let mut rest = path.as_bytes();
    let is_dots = |dots: Option<u8>| matches!(dots, Some(1 | 2));
    while let Some((byte, len)) = decoded(rest) {
        rest = &rest[len..];
        match byte {
            b'/' | b'\\' => {
                if is_dots(dots) {
                    return true;
                }
                dots = Some(0);
            }
            b'.' => dots = dots.map(|dots| dots.saturating_add(1)),
            b';' if is_dots(dots) => return true,
            _ => dots = None,
        }
    }
    is_dots(dots)
}

/// The first byte, percent-decoded if it is one that matters in a path, and how long it is written.
fn decoded(path: &[u8]) -> Option<(u8, usize)> {
    match path {
        [b'%', b'2', b'e' | b'E', ..] => Some((b'.', 3)),
        [b'%', b'2', b'f' | b'F', ..] => Some((b'/', 3)),
        [b'%', b'5', b'c' | b'C', ..] => Some((b'\\', 3)),
        [byte, ..] => Some((*byte, 1)),
        [] => None,
    }
}

/// Whether a client's request id may be taken over: 1 to [`limits::REQUEST_ID`] visible ASCII
/// characters.
pub fn request_id_ok(v: &HeaderValue) -> bool {
    let bytes = v.as_bytes();
    (1..=limits::REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

/// Whether this is a `traceparent` (W3C Trace Context, 3.2): of version 00, or of a later one that
/// begins like it.
pub fn traceparent_ok(v: &HeaderValue) -> bool {
    let bytes = v.as_bytes();
    let Some((fixed, more)) = bytes.split_at_checked(55) else { return false };
    let part = |from: usize, to: usize| {
        let part = &fixed[from..to];
        part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(part)
    };
    let parts = (part(0, 2), part(3, 35), part(36, 52), part(53, 55));
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = parts else { return false };
    let zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    [2, 35, 52].iter().all(|at| fixed[*at] == b'-')
        && version != b"ff"
        && !zero(trace)
        && !zero(parent)
        && (more.is_empty() || version != b"00" && more[0] == b'-')
}

/// Whether answers of this status have no content whatever their headers say (RFC 9110, 6.4.1).
pub fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational()
        || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
}

/// Whether the content type is `text/event-stream`, in any case and with any parameters.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        let kind = value.split(|byte| *byte == b';').next().unwrap_or(value);
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// Whether an answer is a stream of events to be followed. One with a content-encoding is not.
pub fn is_tracked(head: &http::response::Parts) -> bool {
    head.status.is_success() && is_event_stream(&head.headers) && !is_encoded(&head.headers)
}

/// Whether a body has a content-encoding.
pub fn is_encoded(headers: &HeaderMap) -> bool {
    let encoding = headers.get(http::header::CONTENT_ENCODING);
    encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Headers with another value in every message.
const UNREPEATED: [&str; 3] = ["traceparent", "x-request-id", "tidegate-request-id"];

/// Makes headers fit for HTTP/2, which keeps sent fields in its compression table. Every value gets
/// memory of its own: parsers cut values out of the block they have read, and some bytes in the
/// table would hold kilobytes here. Values that never come again are marked as sensitive, which
/// keeps them out: in the table they would only push out what does come again, and fill it.
pub fn detach(headers: &mut HeaderMap) {
    for (name, value) in headers.iter_mut() {
        let sensitive = value.is_sensitive() || UNREPEATED.contains(&name.as_str());
        let copy = HeaderValue::from_bytes(value.as_bytes());
        *value = copy.expect("what was a value is one");
        value.set_sensitive(sensitive);
    }
}

/// Whether an HTTP/1.1 message leaves its connection open (RFC 9112, 9.3).
pub fn keeps_alive(headers: &HeaderMap) -> bool {
    let options = headers.get_all(CONNECTION).iter().flat_map(|value| list(value.as_bytes()));
    !options.into_iter().any(|option| option.eq_ignore_ascii_case(b"close"))
}

/// An HTTP/1.1 response's head in wire form, for a chunked body. `headers` hold nothing about the
/// connection or the body's framing.
pub fn chunked_head(status: StatusCode, headers: &HeaderMap, keep_alive: bool) -> Vec<u8> {
    let fields: usize = headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum();
    let mut head = Vec::with_capacity(fields + 96);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    head.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"transfer-encoding: chunked\r\n");
    if !keep_alive {
        head.extend_from_slice(b"connection: close\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Whether the client asks to leave HTTP (a WebSocket). An offer of `h2c` alone, as Java's client
/// makes with every request, may be ignored (RFC 9110, 7.8; RFC 9113, 3.1) and does not count.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    let offers = headers.get_all(UPGRADE).iter();
    offers.flat_map(|value| list(value.as_bytes())).any(|offer| !offer.eq_ignore_ascii_case(b"h2c"))
}

/// The elements of a comma-separated list, without white space and empty ones (RFC 9110, 5.6.1).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}
