//! Response heads of HTTP/1.1.
//!
//! Owns what a head says about the body. Refuses contradictions about the body's length. Cost: one
//! pass per stream.

use crate::body::Body;

/// Fields a head may have.
const FIELDS_MAX: usize = 100;
/// A head longer than this is none, bytes.
pub(crate) const HEAD_MAX: usize = 64 * 1024;

/// A head that was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes it took.
    pub(crate) length: usize,
    pub(crate) status: u16,
    pub(crate) is_event_stream: bool,
    pub(crate) body: Body,
}

/// The head could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadHead;

/// Reads a head; None if it is not whole yet.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<Head>, BadHead> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_MAX => return Ok(None),
        _ => return Err(BadHead),
    };
    let mut body = Body::Close;
    let mut declared = None;
    let mut is_event_stream = false;
    for field in response.headers.iter() {
        if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if !field.value.eq_ignore_ascii_case(b"chunked") || body == Body::CHUNKED {
                return Err(BadHead);
            }
            body = Body::CHUNKED;
        } else if field.name.eq_ignore_ascii_case("content-length") {
            let text = str::from_utf8(field.value).map_err(|_| BadHead)?;
            let length: u64 = text.parse().map_err(|_| BadHead)?;
            if declared.replace(length).is_some_and(|other| other != length) {
                return Err(BadHead);
            }
        } else if field.name.eq_ignore_ascii_case("content-type") {
            is_event_stream = is_stream(field.value);
        }
    }
    match (declared, body) {
        (Some(_), Body::Chunked(_)) => return Err(BadHead),
        (Some(length), _) => body = Body::Length(length),
        (None, _) => {}
    }
    Ok(Some(Head { length, status: response.code.unwrap_or(0), is_event_stream, body }))
}

/// Whether a content type is that of an event stream, parameters apart.
pub(crate) fn is_stream(content_type: &[u8]) -> bool {
    let essence = content_type.split(|&byte| byte == b';').next().unwrap_or(content_type);
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_what_the_head_says() {
        let read = |fields: &str| {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nrest");
            super::read(text.as_bytes()).map(|head| head.map(|h| (h.body, h.is_event_stream)))
        };
        assert_eq!(
            read("Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked"),
            Ok(Some((Body::CHUNKED, true)))
        );
        assert_eq!(read("content-length: 5"), Ok(Some((Body::Length(5), false))));
        assert_eq!(read("content-type: application/json"), Ok(Some((Body::Close, false))));
        for bad in [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "content-length: 5\r\ncontent-length: 6",
            "transfer-encoding: gzip, chunked",
            "content-length: -1",
            "no field",
        ] {
            assert_eq!(read(bad), Err(BadHead), "{bad}");
        }
        assert_eq!(super::read(b"HTTP/1.1 20"), Ok(None));
        assert_eq!(super::read(b"SSH-2.0\r\n\r\n"), Err(BadHead));
    }
}
