//! Each fault and each good message, split at every offset.

use proptest::prelude::*;

use super::*;

const HEAD_MAX: usize = 256;

/// Feeds the pieces until one fails; what passed, and the fault.
fn run(pieces: &[&[u8]]) -> (Guard, Vec<u8>, Option<Fault>) {
    let mut guard = Guard::new(HEAD_MAX);
    let mut passed = Vec::new();
    for piece in pieces {
        match guard.feed(piece) {
            Ok(()) => passed.extend_from_slice(piece),
            Err((n, fault)) => {
                passed.extend_from_slice(&piece[..n]);
                assert_eq!(guard.feed(b"GET / HTTP/1.1\r\n\r\n"), Err((0, fault)), "it is final");
                return (guard, passed, Some(fault));
            }
        }
    }
    (guard, passed, None)
}

/// Every way to cut `bytes` in two, and into single bytes.
fn splits(bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut all: Vec<Vec<&[u8]>> =
        (0..=bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]).collect();
    all.push(bytes.chunks(1).collect());
    all
}

#[test]
fn it_stays_small() {
    assert!(size_of::<Guard>() <= 64, "{}", size_of::<Guard>());
}

#[test]
fn fields_are_counted_head_by_head() {
    let head = |fields| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(fields));
    let most = usize::from(crate::limits::CLIENT_HEAD_FIELDS);
    let mut guard = Guard::new(64 * 1024);
    for _ in 0..3 {
        assert_eq!(guard.feed(head(most).as_bytes()), Ok(()));
    }
    let over = guard.feed(head(most + 1).as_bytes());
    assert!(matches!(over, Err((_, Fault::TooManyFields))), "{over:?}");
    assert_eq!(Fault::TooManyFields.status(), 431);
}

#[test]
fn faulty_heads_are_refused_before_they_are_complete() {
    use Fault::*;
    let cases: &[(&str, Fault)] = &[
        ("\nGET / HTTP/1.1\r\n\r\n", BareLf),
        ("GET / HTTP/1.1\n\n", BareLf),
        ("GET\n", BareLf),
        ("GET / HTTP/1.1\r\nA: b\n\r\n", BareLf),
        ("GET / HTTP/1.1\r\nA\n\r\n", BareLf),
        ("GET / HTTP/1.1\r\nContent-Length: 1\n\r\n", BareLf),
        ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\n\r\n", BareLf),
        ("GET / HTTP/1.1\r\nA: b\r\n\n", BareLf),
        ("\rGET / HTTP/1.1\r\n\r\n", BareCr),
        ("GET /\rx HTTP/1.1\r\n\r\n", BadRequestLine),
        ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", BareCr),
        ("GET / HTTP/1.1\r\n\rX", BareCr),
        ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", FoldedLine),
        ("GET / HTTP/1.1\r\n\tA: b\r\n\r\n", FoldedLine),
        ("GET / HTTP/1.1\r\nContent-Length : 1\r\n\r\n", BadFieldName),
        ("GET / HTTP/1.1\r\n: x\r\n\r\n", BadFieldName),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", BadFieldName),
        ("GET / HTTP/1.1\r\nnocolon\r\n\r\n", BadFieldName),
        ("GET / HTTP/1.1\r\nContent-Length\0: 1\r\n\r\n", BadFieldName),
        ("GET /a#b HTTP/1.1\r\n\r\n", Fragment),
        ("GET / HTTP/3.7\r\n\r\n", BadRequestLine),
        ("GET / HTTP/1.2\r\n\r\n", BadRequestLine),
        ("GET / http/1.1\r\n\r\n", BadRequestLine),
        ("GET /a b HTTP/1.1\r\n\r\n", BadRequestLine),
        ("GET  HTTP/1.1\r\n\r\n", BadRequestLine),
        ("GET /\0 HTTP/1.1\r\n\r\n", BadRequestLine),
        ("GET /\r\n\r\n", BadRequestLine),
        (" GET / HTTP/1.1\r\n\r\n", BadRequestLine),
        ("G\0T / HTTP/1.1\r\n\r\n", BadRequestLine),
        ("GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", BadFieldValue),
        ("GET / HTTP/1.1\r\nA: b\x7fc\r\n\r\n", BadFieldValue),
        ("GET # HTTP/1.1\r\n\r\n", Fragment),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            DuplicateTransferEncoding,
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            UnsupportedTransferEncoding,
        ),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", CODING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked;a=b\r\n\r\n", CODING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunke\r\n\r\n", CODING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunkedd\r\n\r\n", CODING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chun ked\r\n\r\n", CODING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked x\r\n\r\n", CODING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", CODING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", CODING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n", CODING),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncodingInHttp10),
        (
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            LengthWithTransferEncoding,
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
            LengthWithTransferEncoding,
        ),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", ConflictingLength),
        ("POST / HTTP/1.1\r\nCONTENT-LENGTH: 1\r\ncontent-length: 2\r\n\r\n", ConflictingLength),
        ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", BadLength),
        ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", BadLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", BadLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1 1\r\n\r\n", BadLength),
        ("POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n", BadLength),
        ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", BadLength),
        ("POST / HTTP/1.1\r\nContent-Length:  \r\n\r\n", BadLength),
        ("POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n", BadLength),
    ];
    let good = "POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
    for (head, fault) in cases {
        for bytes in [(*head).to_owned(), format!("{good}{head}")] {
            let heads = u64::from(bytes.len() > head.len());
            let (_, expected, _) = run(&[bytes.as_bytes()]);
            for pieces in splits(bytes.as_bytes()) {
                let (guard, passed, found) = run(&pieces);
                assert_eq!(found, Some(*fault), "{bytes:?} as {pieces:?}");
                assert_eq!(guard.heads(), heads, "{bytes:?}: the faulty head is not complete");
                assert_eq!(guard.expecting(), Expecting::Head);
                assert!(passed.len() < bytes.len() && passed == expected, "{bytes:?}");
                let end = passed.get(heads as usize * good.len()..).unwrap();
                assert!(!end.ends_with(b"\r\n\r\n"), "{bytes:?}: the head was let through");
            }
        }
    }
}

#[test]
fn good_messages_pass_and_are_framed() {
    let cases: &[(&str, u64)] = &[
        ("GET / HTTP/1.1\r\n\r\n", 1),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n", 1),
        ("GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n", 2),
        ("M#X / HTTP/1.1\r\nA: #\r\nB:\r\nC: caf\u{e9}\r\n\r\n", 1),
        ("POST / HTTP/1.1\r\nContent-Length:3\r\n\r\n\n\n\nGET / HTTP/1.1\r\n\r\n", 2),
        ("POST / HTTP/1.1\r\ncOnTeNt-LeNgTh: \t 03 \t\r\n\r\nG#TGET / HTTP/1.1\r\n\r\n", 2),
        ("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        ("POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nA\nB\nC\r\n0\r\n\r\n\
             GET / HTTP/1.1\r\n\r\n",
            2,
        ),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding:\t CHUNKED \r\n\r\n1\r\nx\r\n0\r\n\
             Content-Length: 1\r\nTransfer-Encoding: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            2,
        ),
        ("GET / HTTP/1.1\r\nContent-Lengths: x\r\nXTransfer-Encoding: x\r\nContent: y\r\n\r\n", 1),
    ];
    for (bytes, heads) in cases {
        for pieces in splits(bytes.as_bytes()) {
            let (guard, passed, fault) = run(&pieces);
            assert_eq!((fault, guard.heads()), (None, *heads), "{bytes:?} as {pieces:?}");
            assert_eq!(guard.expecting(), Expecting::Idle, "{bytes:?}");
            assert_eq!(passed, bytes.as_bytes());
        }
    }
}

#[test]
fn it_knows_what_is_expected() {
    let mut guard = Guard::new(HEAD_MAX);
    let steps: &[(&str, Expecting)] = &[
        ("", Expecting::Idle),
        ("\r", Expecting::Idle),
        ("\n", Expecting::Idle),
        ("P", Expecting::Head),
        ("OST / HTTP/1.1\r\nContent-Length: 2\r\n\r", Expecting::Head),
        ("\n", Expecting::Body),
        ("a", Expecting::Body),
        ("b", Expecting::Idle),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Expecting::Body),
        ("1\r\nx\r\n0\r\n\r", Expecting::Body),
        ("\n", Expecting::Idle),
    ];
    for (bytes, expected) in steps {
        assert_eq!(guard.feed(bytes.as_bytes()), Ok(()));
        assert_eq!(guard.expecting(), *expected, "after {bytes:?}");
    }
}

#[test]
fn a_head_has_a_largest_size() {
    let head = |n: usize| {
        let frame = "GET / HTTP/1.1\r\nA: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(n - frame))
    };
    let just = head(HEAD_MAX).repeat(2);
    for pieces in splits(just.as_bytes()) {
        assert_eq!(run(&pieces).2, None);
    }
    let over = head(HEAD_MAX + 1);
    for pieces in splits(over.as_bytes()) {
        let (guard, passed, fault) = run(&pieces);
        assert_eq!((fault, passed.len()), (Some(Fault::HeadTooLarge), HEAD_MAX));
        assert_eq!(guard.heads(), 0);
    }
    assert_eq!(run(&["\r\n".repeat(HEAD_MAX).as_bytes()]).2, Some(Fault::HeadTooLarge));
    assert_eq!(run(&[&[b'x'; HEAD_MAX + 1]]).2, Some(Fault::HeadTooLarge));
}

#[test]
fn a_body_with_broken_chunks_ends_the_connection() {
    let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    // The HTTP library would take the first of these, and go on to the next head unguarded.
    for body in ["5 \r\nhello\r\n0\r\n\r\n", "5\nhello", "x", "1\r\nab", "0\r\n\n"] {
        let bytes = format!("{head}{body}GET / HTTP/1.1\nA: b\n\n");
        for pieces in splits(bytes.as_bytes()) {
            let (guard, passed, fault) = run(&pieces);
            assert!(matches!(fault, Some(Fault::BadChunk(_))), "{body:?}: {fault:?}");
            assert_eq!((guard.heads(), guard.expecting()), (1, Expecting::Body));
            assert!(passed.len() < head.len() + body.len());
        }
    }
}

#[test]
fn faults_have_statuses_and_say_what_to_change() {
    assert_eq!(Fault::HeadTooLarge.status(), 431);
    assert_eq!(Fault::UnsupportedTransferEncoding.status(), 400);
    assert_eq!(Fault::BadChunk(ChunkError::Size).status(), 400);
    let text = Fault::BadChunk(ChunkError::Size).to_string();
    assert_eq!(
        text,
        "the chunked request body is malformed: chunk size is not a hexadecimal number"
    );
}

fn message() -> impl Strategy<Value = String> {
    let body = "[a-z\r\n#]{0,20}";
    prop_oneof![
        Just("GET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        body.prop_map(|b| format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{b}", b.len())),
        body.prop_map(|b| {
            let chunk = if b.is_empty() { b } else { format!("{:x}\r\n{b}\r\n", b.len()) };
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n")
        }),
    ]
}

proptest! {
    #[test]
    fn pipelines_are_followed(
        messages in proptest::collection::vec(message(), 0..8), size in 1..60usize,
    ) {
        let bytes = messages.concat();
        let pieces: Vec<&[u8]> = bytes.as_bytes().chunks(size).collect();
        let (guard, _, fault) = run(&pieces);
        prop_assert_eq!((fault, guard.heads()), (None, messages.len() as u64));
        prop_assert_eq!(guard.expecting(), Expecting::Idle);
    }

    #[test]
    fn random_bytes_fail_alike_however_split(
        bytes in "[GET/ #:a0-9\r\n]{0,60}", at in any::<usize>(),
    ) {
        let bytes = bytes.as_bytes();
        let (a, b) = bytes.split_at(at % (bytes.len() + 1));
        let (_, passed, fault) = run(&[bytes]);
        let (_, passed_split, fault_split) = run(&[a, b]);
        prop_assert_eq!((passed, fault), (passed_split, fault_split));
    }
}

/// How many requests hyper makes of the bytes; bodies are read to their end.
fn hyper_sees(bytes: &[u8]) -> u64 {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::rc::Rc;

    use http_body_util::{BodyExt, Empty};
    use hyper::body::{Bytes, Incoming};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let seen = Rc::new(Cell::new(0));
    let counter = Rc::clone(&seen);
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        counter.set(counter.get() + 1);
        async move {
            drop(request.into_body().collect().await);
            Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new()))
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let io = hyper_util::rt::TokioIo::new(server);
        let serve = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        let mut answers = Vec::new();
        let (_, read) = tokio::join!(serve, client.read_to_end(&mut answers));
        read.unwrap();
    });
    seen.get()
}

proptest! {
    #[test]
    fn hyper_sees_no_head_that_the_guard_has_not_checked(
        messages in proptest::collection::vec(message(), 1..4),
        changes in proptest::collection::vec(
            (
                any::<proptest::sample::Index>(),
                proptest::sample::select(vec![
                    "\n", "\r", "\r\n", " ", "#", "0", ";", ",", "\n\n", "\r\n ", "\0",
                    "\r\nContent-Length: 1", "\r\nTransfer-Encoding: chunked",
                ]),
                any::<bool>(),
            ),
            0..4,
        ),
    ) {
        let whole = messages.concat();
        let mut bytes = whole.into_bytes();
        for (at, insert, replace) in changes {
            let at = at.index(bytes.len());
            let end = at + usize::from(replace);
            bytes.splice(at..end, insert.bytes());
        }
        let (guard, passed, fault) = run(&[&bytes]);
        let seen = hyper_sees(&passed);
        prop_assert!(seen <= guard.heads(), "{seen} > {}, {fault:?}", guard.heads());
    }
}

#[test]
fn hyper_alone_would_go_on_after_a_padded_chunk_size() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bytes = format!("{head}1 \r\nx\r\n0\r\n\r\nGET / HTTP/1.1\n\n");
    assert_eq!(hyper_sees(bytes.as_bytes()), 2);
    let (_, passed, _) = run(&[bytes.as_bytes()]);
    assert_eq!(hyper_sees(&passed), 1);
}
