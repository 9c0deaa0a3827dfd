//! Reading of HTTP/1.1 request heads and chunk headers, by hand.
//!
//! Owns the grammar (RFC 9112), strictly: the simulator also judges what a proxy sends, so
//! everything a careful sender avoids is refused. Invariant: nothing is consumed before it is
//! complete. Cost: one pass per arrival over the bytes of the head.

use super::request::Request;

/// Largest request head, trailer section and chunk header, bytes.
pub(super) const HEAD_MAX: usize = 64 * 1024;

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delimited {
    /// By its length, 0 for a request without body fields.
    Length(u64),
    /// By chunks.
    Chunked,
}

/// A complete request head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) request: Request,
    pub(super) body: Delimited,
    /// Bytes of input it took, the empty line included.
    pub(super) length: usize,
}

/// Reads a head from the start of `input`: `None` if it is not complete yet.
///
/// # Errors
/// What is wrong with it; the connection is of no more use then.
pub(super) fn head(input: &[u8], connection: u64) -> Result<Option<Head>, &'static str> {
    let Some(length) = head_length(input)? else { return Ok(None) };
    let mut lines = input[..length - 2].split(|&b| b == b'\n').map(|line| {
        // head_length saw to it that every LF follows a CR.
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    let (method, target, version) = request_line(lines.next().unwrap_or(b""))?;
    let mut headers = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        headers.push(field(line)?);
    }
    let request = Request { method, target, headers, version, connection };
    let body = delimited(&request)?;
    Ok(Some(Head { request, body, length }))
}

/// Length of the head up to and with its empty line; every line must end in CRLF.
fn head_length(input: &[u8]) -> Result<Option<usize>, &'static str> {
    let mut start = 0;
    while let Some(at) = input[start..].iter().position(|&b| b == b'\n') {
        let end = start + at;
        if end == 0 || input[end - 1] != b'\r' {
            return Err("a line of the head ends in a bare LF");
        }
        if end == start + 1 {
            return if start == 0 { Err("an empty request line") } else { Ok(Some(end + 1)) };
        }
        start = end + 1;
    }
    if input.len() > HEAD_MAX { Err("the head is too large") } else { Ok(None) }
}

fn request_line(line: &[u8]) -> Result<(String, String, &'static str), &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "the request line is not ASCII")?;
    let mut parts = text.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("the request line does not have three parts");
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err("the method is no token");
    }
    let origin = target.starts_with('/') || (target == "*" && method == "OPTIONS");
    if !origin || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err("the target is not in origin form");
    }
    let version = match version {
        "HTTP/1.1" => "HTTP/1.1",
        "HTTP/1.0" => "HTTP/1.0",
        _ => return Err("the version is not HTTP/1.0 or HTTP/1.1"),
    };
    Ok((method.to_owned(), target.to_owned(), version))
}

fn field(line: &[u8]) -> Result<(String, String), &'static str> {
    let colon = line.iter().position(|&b| b == b':').ok_or("a field line without a colon")?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
        return Err("a field name is no token");
    }
    if value.iter().any(|&b| (b < b' ' && b != b'\t') || b == 0x7f) {
        return Err("a control character in a field value");
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    Ok((name, String::from_utf8_lossy(value).into_owned()))
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9112, section 6.3, with everything ambiguous refused.
fn delimited(request: &Request) -> Result<Delimited, &'static str> {
    let all = |name: &str| -> Vec<&str> {
        let lines = request.headers.iter().filter(|(n, _)| n == name);
        lines.map(|(_, value)| value.as_str()).collect()
    };
    if request.version == "HTTP/1.1" && all("host").len() != 1 {
        return Err("not exactly one host");
    }
    match (all("transfer-encoding").as_slice(), all("content-length").as_slice()) {
        ([], []) => Ok(Delimited::Length(0)),
        ([], [length]) if length.bytes().all(|b| b.is_ascii_digit()) => {
            length.parse().map(Delimited::Length).map_err(|_| "a content-length that is no number")
        }
        ([], _) => Err("a content-length that is no number"),
        ([coding], [])
            if coding.eq_ignore_ascii_case("chunked") && request.version == "HTTP/1.1" =>
        {
            Ok(Delimited::Chunked)
        }
        (_, []) => Err("a transfer-encoding other than chunked"),
        _ => Err("transfer-encoding and content-length together"),
    }
}

/// Reads one line of chunk framing: its text and the bytes it took; `None` if it is incomplete.
pub(super) fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, &'static str> {
    match input.iter().position(|&b| b == b'\n') {
        Some(at) if at > 0 && input[at - 1] == b'\r' => Ok(Some((&input[..at - 1], at + 1))),
        Some(_) => Err("a line of chunk framing ends in a bare LF"),
        None if input.len() > HEAD_MAX => Err("a line of chunk framing is too long"),
        None => Ok(None),
    }
}

/// The size in a chunk header; extensions are skipped.
pub(super) fn chunk_size(line: &[u8]) -> Result<u64, &'static str> {
    let end = line.iter().position(|&b| b == b';').unwrap_or(line.len());
    let digits = line[..end].trim_ascii_end();
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err("a chunk size that is no number");
    }
    let text = std::str::from_utf8(digits).map_err(|_| "a chunk size that is no number")?;
    u64::from_str_radix(text, 16).map_err(|_| "a chunk size that is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[u8] =
        b"POST /v1/x?a=b HTTP/1.1\r\nHost: h\r\nX-A:  one \r\nX-a: \xff\r\nContent-Length: 3\r\n\r\nabc";

    #[test]
    fn a_head_is_read_once_it_is_complete_and_not_before() {
        let end = GOOD.len() - 3;
        for cut in 0..end {
            assert!(head(&GOOD[..cut], 1).unwrap().is_none(), "at {cut}");
        }
        for cut in end..=GOOD.len() {
            let head = head(&GOOD[..cut], 1).unwrap().unwrap();
            assert_eq!((head.length, head.body), (end, Delimited::Length(3)));
            let names: Vec<_> = head.request.headers.iter().map(|(n, _)| n.as_str()).collect();
            assert_eq!(names, ["host", "x-a", "x-a", "content-length"]);
            assert_eq!(head.request.headers[1].1, "one");
            assert_eq!(head.request.target, "/v1/x?a=b");
        }
    }

    #[test]
    fn what_a_careful_sender_avoids_is_refused() {
        let bad: [&[u8]; 18] = [
            b"\r\n\r\n",
            b"GET / HTTP/1.1\nHost: h\n\n",
            b"GET / HTTP/1.1\r\nHost: h\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
            b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
            b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /#x HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\r\nx: a\rb\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \r\n\r\n",
        ];
        for input in bad {
            assert!(head(input, 1).is_err(), "{}", String::from_utf8_lossy(input));
        }
        assert!(head(&vec![b'a'; HEAD_MAX + 1], 1).is_err());
    }

    #[test]
    fn chunk_framing_lines() {
        assert_eq!(line(b"5\r").unwrap(), None);
        assert_eq!(line(b"5\r\nhello").unwrap(), Some((b"5".as_slice(), 3)));
        assert!(line(b"5\nhello").is_err() && line(b"\n").is_err());
        assert_eq!(chunk_size(b"1aF;ext=\"x\""), Ok(0x1af));
        assert_eq!(chunk_size(b"ffffffffffffffff"), Ok(u64::MAX));
        for bad in [&b""[..], b"-1", b"0x5", b"g", b" 5", b"00000000000000001"] {
            assert!(chunk_size(bad).is_err());
        }
    }
}
