//! Heads good and bad, whole and cut at every byte.

use super::*;
use crate::limits::{RESPONSE_HEAD_BYTES, RESPONSE_HEAD_FIELDS};

fn parsed(text: &str) -> Result<Option<(ResponseHead, usize)>, HeadError> {
    parse(text.as_bytes(), false)
}

fn whole(text: &str) -> ResponseHead {
    let (head, len) = parsed(text).expect("well formed").expect("complete");
    assert_eq!(len, text.len(), "{text:?}");
    head
}

/// A head with these fields: where its body ends and whether the connection may be used again.
fn means(fields: &str) -> (Framing, bool) {
    let head = whole(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
    (head.framing, head.keep_alive)
}

fn refused(text: &str) -> HeadError {
    match parsed(text) {
        Err(error) => error,
        Ok(head) => panic!("{text:?} passed: {head:?}"),
    }
}

#[test]
fn status_version_and_fields_come_through() {
    let head = whole(
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: a/b; c=\"d\"\r\nset-cookie: a\r\n\
         Set-Cookie: b\r\nx-empty:\r\n\r\n",
    );
    assert_eq!(
        (head.parts.status, head.parts.version),
        (429.try_into().expect("one"), Version::HTTP_11)
    );
    assert_eq!(head.parts.headers["content-type"], "a/b; c=\"d\"");
    assert_eq!(head.parts.headers["x-empty"], "");
    let cookies: Vec<_> = head.parts.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a", "b"]);
    // Bytes beyond ASCII are opaque, not wrong (RFC 9110, 5.5).
    let (head, _) =
        parse(b"HTTP/1.1 200 \r\nx: caf\xe9\r\n\r\n", false).expect("fine").expect("all");
    assert_eq!(head.parts.headers["x"].as_bytes(), b"caf\xe9");
    assert_eq!(whole("HTTP/1.0 599\r\n\r\n").parts.version, Version::HTTP_10);
}

#[test]
fn lines_may_end_in_bare_lf() {
    let head = whole("HTTP/1.1 200 OK\ncontent-length: 5\nconnection: close\n\n");
    assert_eq!((head.framing, head.keep_alive), (Framing::Length(5), false));
}

#[test]
fn a_head_is_incomplete_at_every_byte_but_its_last() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    for text in [head.to_owned(), format!("{interim}{head}"), head.replace("\r\n", "\n")] {
        for end in 0..text.len() {
            let partial = parsed(&text[..end]).expect("well formed so far");
            assert!(partial.is_none(), "complete after {end} of {}: {partial:?}", text.len());
        }
        let with_body = format!("{text}5\r\nhello\r\n");
        let (head, len) = parsed(&with_body).expect("well formed").expect("complete");
        assert_eq!((len, head.framing), (text.len(), Framing::Chunked));
        assert!(!head.parts.headers.contains_key("link"), "of an interim response");
    }
}

#[test]
fn the_end_of_the_body_follows_rfc_9112() {
    assert_eq!(means(""), (Framing::Close, false));
    assert_eq!(means("content-length: 0\r\n"), (Framing::Length(0), true));
    assert_eq!(
        means("content-length: 18446744073709551615\r\n"),
        (Framing::Length(u64::MAX), true)
    );
    assert_eq!(means("content-length: 5\r\nContent-Length: 5, 5\r\n"), (Framing::Length(5), true));
    assert_eq!(means("transfer-encoding: Chunked\r\n"), (Framing::Chunked, true));
    assert_eq!(means("transfer-encoding: , chunked ,\r\n"), (Framing::Chunked, true));
    // Both: the chunks count, the length goes, and so does the connection.
    let both = whole("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!((both.framing, both.keep_alive), (Framing::Chunked, false));
    assert!(!both.parts.headers.contains_key("content-length"));
    let one = whole("HTTP/1.1 200 OK\r\ncontent-length: 05\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(one.parts.headers.get_all("content-length").iter().collect::<Vec<_>>(), ["5"]);
}

#[test]
fn some_answers_have_no_body_whatever_their_fields_say() {
    for fields in ["", "content-length: 7\r\n", "transfer-encoding: chunked\r\n"] {
        for status in ["204 No Content", "304 Not Modified"] {
            let head = whole(&format!("HTTP/1.1 {status}\r\n{fields}\r\n"));
            assert_eq!((head.framing, head.keep_alive), (Framing::Length(0), true), "{status}");
        }
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        let (head, _) = parse(text.as_bytes(), true).expect("well formed").expect("complete");
        assert_eq!((head.framing, head.keep_alive), (Framing::Length(0), true), "{fields:?}");
        let kept = head.parts.headers.contains_key("content-length");
        assert_eq!(kept, fields.starts_with("content-length"), "HEAD's length goes on");
    }
}

#[test]
fn connections_close_when_told_and_http_1_0_by_itself() {
    let keeps = |version: &str, fields: &str| {
        whole(&format!("HTTP/{version} 200 OK\r\ncontent-length: 1\r\n{fields}\r\n")).keep_alive
    };
    assert!(keeps("1.1", ""));
    assert!(keeps("1.1", "connection: x-closed\r\n"));
    assert!(!keeps("1.1", "connection: x, Close\r\n"));
    assert!(!keeps("1.1", "connection: close\r\nconnection: keep-alive\r\n"));
    assert!(!keeps("1.0", ""));
    assert!(keeps("1.0", "Connection: Keep-Alive\r\n"));
    assert!(!keeps("1.0", "connection: keep-alive, close\r\n"));
}

#[test]
fn doubt_about_the_bodys_end_is_refused() {
    for length in [
        "",
        "+5",
        "-1",
        "5 5",
        "0x5",
        "5,",
        "5, 6",
        "18446744073709551616",
        "5\r\ncontent-length: 6",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        assert_eq!(refused(&text), HeadError::ContentLength, "{length:?}");
    }
    for coding in [
        "",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked;q=1",
        "identity",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n");
        assert_eq!(refused(&text), HeadError::TransferEncoding, "{coding:?}");
    }
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(refused(old), HeadError::TransferEncoding);
}

#[test]
fn what_is_no_head_is_refused() {
    for text in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\x15\x03\x01\x00\x02\x02\x46",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nspace : x\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
    ] {
        let error = refused(text);
        assert!(matches!(error, HeadError::Malformed(_)), "{text:?}: {error:?}");
    }
    assert_eq!(refused("HTTP/1.1 101 Switching Protocols\r\n\r\n"), HeadError::Switching);
}

#[test]
fn heads_have_limits_interim_ones_included() {
    let fields = "a: b\r\n".repeat(RESPONSE_HEAD_FIELDS);
    whole(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
    let more = format!("HTTP/1.1 200 OK\r\n{fields}a: b\r\n\r\n");
    assert_eq!(refused(&more), HeadError::TooManyFields);

    let around = "HTTP/1.1 200 OK\r\na: \r\n\r\n".len();
    let value = "x".repeat(RESPONSE_HEAD_BYTES - around);
    whole(&format!("HTTP/1.1 200 OK\r\na: {value}\r\n\r\n"));
    let more = format!("HTTP/1.1 200 OK\r\na: {value}x\r\n\r\n");
    assert_eq!(refused(&more), HeadError::TooLarge);
    let endless = "HTTP/1.1 200 OK\r\na: ".to_owned() + &"x".repeat(RESPONSE_HEAD_BYTES);
    assert_eq!(refused(&endless), HeadError::TooLarge);

    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let many = interim.repeat(RESPONSE_HEAD_BYTES / interim.len());
    assert!(parsed(&many).expect("within the limit").is_none());
    assert_eq!(refused(&format!("{many}{interim}")), HeadError::TooLarge);
}
