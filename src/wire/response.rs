//! Heads of HTTP/1.1 responses: status and fields, and where the body ends (RFC 9112, 6.3).
//!
//! Owns: which bytes are a head, and what it says about its connection. httparse judges the syntax
//! (a head whose lines end in bare LF passes). Refuses: what leaves the end of the body in doubt, a
//! transfer coding nobody asked for, and a switch of protocols. Interim responses (1xx) are passed
//! over. Cost: one pass over the bytes per call; nothing is kept between calls.

use std::mem::MaybeUninit;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Response, StatusCode, Version};
use httparse::{ParserConfig, Status};

use crate::limits::{RESPONSE_HEAD_BYTES, RESPONSE_HEAD_FIELDS};
use crate::wire::head::list;

#[cfg(test)]
mod tests;

/// Where the body of a response ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes; 0 if there is none.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With its connection.
    Close,
}

/// A response's head and what it means for its connection.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status and fields.
    pub parts: http::response::Parts,
    /// Where the body ends.
    pub framing: Framing,
    /// The connection takes another request after it.
    pub keep_alive: bool,
}

/// Why bytes are not the head of a response that can be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// No HTTP/1 head at all.
    #[error("the head is malformed: {0}")]
    Malformed(httparse::Error),
    /// More than [`RESPONSE_HEAD_BYTES`].
    #[error("the head is larger than {RESPONSE_HEAD_BYTES} bytes")]
    TooLarge,
    /// More than [`RESPONSE_HEAD_FIELDS`].
    #[error("the head has more than {RESPONSE_HEAD_FIELDS} fields")]
    TooManyFields,
    /// 101, which nobody asked for.
    #[error("it switches to another protocol, which the request did not ask for")]
    Switching,
    /// Not a number, or several that differ (RFC 9112, 6.3).
    #[error("content-length is not one number")]
    ContentLength,
    /// Anything but `chunked` once, or any with HTTP/1.0 (RFC 9112, 6.1): its effect on the body
    /// could not be undone.
    #[error("transfer-encoding is not just \"chunked\"")]
    TransferEncoding,
}

/// Reads the head at the beginning of `bytes`; returns it with its length, interim responses before
/// it included, or `None` while it is incomplete. `bodiless`: it answers a HEAD request.
///
/// # Errors
/// See [`HeadError`]; an incomplete head fails as soon as it is too large.
pub fn parse(bytes: &[u8], bodiless: bool) -> Result<Option<(ResponseHead, usize)>, HeadError> {
    let mut at = 0;
    loop {
        let mut fields = [const { MaybeUninit::uninit() }; RESPONSE_HEAD_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            &bytes[at..],
            &mut fields,
        );
        match parsed {
            Ok(Status::Complete(len)) => at += len,
            Ok(Status::Partial) if bytes.len() <= RESPONSE_HEAD_BYTES => return Ok(None),
            Ok(Status::Partial) => return Err(HeadError::TooLarge),
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
            Err(error) => return Err(HeadError::Malformed(error)),
        }
        if at > RESPONSE_HEAD_BYTES {
            return Err(HeadError::TooLarge);
        }
        match response.code {
            Some(101) => return Err(HeadError::Switching),
            Some(100..=199) => {}
            _ => return Ok(Some((head(&response, bodiless)?, at))),
        }
    }
}

fn head(parsed: &httparse::Response<'_, '_>, bodiless: bool) -> Result<ResponseHead, HeadError> {
    let malformed = HeadError::Malformed;
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(malformed(httparse::Error::Status))?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| malformed(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_bytes(field.value);
        headers.append(name, value.map_err(|_| malformed(httparse::Error::HeaderValue))?);
    }
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let bodiless = bodiless || matches!(status.as_u16(), 204 | 304);
    let framing = if bodiless { Framing::Length(0) } else { framing(version, &mut headers)? };
    // A response with both lengths is one that somebody before us may have read differently: the
    // chunks are right (RFC 9112, 6.3), but what follows them on the connection is not to be trusted.
    let doubtful = framing == Framing::Chunked && headers.remove(CONTENT_LENGTH).is_some();
    let keep_alive = framing != Framing::Close && !doubtful && keeps_alive(version, &headers);
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.version = version;
    parts.headers = headers;
    Ok(ResponseHead { parts, framing, keep_alive })
}

fn framing(version: Version, headers: &mut HeaderMap) -> Result<Framing, HeadError> {
    if headers.contains_key(TRANSFER_ENCODING) {
        let values = headers.get_all(TRANSFER_ENCODING).iter();
        let mut codings = values.flat_map(|value| list(value.as_bytes()));
        let chunked = codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        let fine = chunked && codings.next().is_none() && version == Version::HTTP_11;
        return if fine { Ok(Framing::Chunked) } else { Err(HeadError::TransferEncoding) };
    }
    let Some(length) = content_length(headers)? else { return Ok(Framing::Close) };
    // Said several times alike, it goes on once.
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(Framing::Length(length))
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for number in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let digits = number.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(number).ok().filter(|_| digits);
            let number: u64 =
                number.and_then(|n| n.parse().ok()).ok_or(HeadError::ContentLength)?;
            if length.is_some_and(|length| length != number) {
                return Err(HeadError::ContentLength);
            }
            length = Some(number);
        }
    }
    Ok(length)
}

/// RFC 9112, 9.3: HTTP/1.1 stays open unless it says `close`, HTTP/1.0 closes unless it says
/// `keep-alive`.
fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let says = |option: &[u8]| {
        let mut options = headers.get_all(CONNECTION).iter().flat_map(|v| list(v.as_bytes()));
        options.any(|said| said.eq_ignore_ascii_case(option))
    };
    !says(b"close") && (version == Version::HTTP_11 || says(b"keep-alive"))
}
