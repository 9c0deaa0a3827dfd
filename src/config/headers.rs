//! Headers and query parameters that a configuration adds to upstream requests.
//!
//! Refuses what the gateway itself decides: framing, connection management, the authority, the
//! content codings it can follow, and credentials, which have a key of their own.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::read::{Place, Reading, Section};
use super::units::quoted;

/// What a configured header name is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It carries the upstream's credential.
    Credential,
    /// It is added as it stands.
    Added,
}

/// Most headers, and most query parameters, of one upstream.
const ENTRIES: usize = 64;

/// Connection-level headers (RFC 9110, section 7.6.1) and those that frame or route a message.
const MANAGED: [&str; 14] = [
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "accept-encoding",
];

/// Headers that carry credentials with the APIs we know.
const SECRET: [&str; 6] =
    ["authorization", "x-api-key", "api-key", "cookie", "set-cookie", "x-goog-api-key"];

/// Reads `headers` of an upstream.
pub(super) fn read(r: &mut Reading<'_>, upstream: &Section<'_>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (place, header, text) in r.pairs(upstream, "headers", ENTRIES) {
        let Some(header) = name(r, &place, header, Use::Added) else { continue };
        match HeaderValue::from_str(text) {
            Ok(_) if map.contains_key(&header) => {
                r.fault(&place, "is given twice (case does not count); remove one");
            }
            Ok(value) => {
                map.insert(header, value);
            }
            Err(_) => r.fault(&place, "has a value with line breaks or characters outside ASCII"),
        }
    }
    map
}

/// Checks a header's name for its use.
pub(super) fn name(
    r: &mut Reading<'_>,
    place: &Place,
    text: &str,
    wanted: Use,
) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        r.fault(place, format!("{} is not a header name", quoted(text)));
        return None;
    };
    if MANAGED.contains(&name.as_str()) {
        let subject = if wanted == Use::Added { "" } else { name.as_str() };
        r.fault(place, format!("{subject} is set by the gateway itself; remove it").trim_start());
        return None;
    }
    if wanted == Use::Added && SECRET.contains(&name.as_str()) {
        let text = format!(
            "carries a credential; write \
             credential = {{ env = \"VARIABLE\", header = \"{name}\" }} instead"
        );
        r.fault(place, text);
        return None;
    }
    Some(name)
}

/// Reads `query` of an upstream into `a=b&c=d`, percent-encoded, in the order of the file.
pub(super) fn read_query(r: &mut Reading<'_>, upstream: &Section<'_>) -> String {
    let mut query = String::new();
    for (place, name, value) in r.pairs(upstream, "query", ENTRIES) {
        if name.is_empty() {
            r.fault(&place, "has an empty name");
        }
        if !query.is_empty() {
            query.push('&');
        }
        encode(name, &mut query);
        query.push('=');
        encode(value, &mut query);
    }
    query
}

/// Percent-encodes all but the unreserved characters of RFC 3986, section 2.3.
fn encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(b >> 4)]));
            out.push(char::from(HEX[usize::from(b & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let mut out = String::new();
        encode("a-Z_0.~ &=+/?#%\u{e9}", &mut out);
        assert_eq!(out, "a-Z_0.~%20%26%3D%2B%2F%3F%23%25%C3%A9");
    }
}
