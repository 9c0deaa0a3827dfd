//! Every body split at every offset; every leniency refused.

use proptest::prelude::*;

use super::*;

/// What the decoder made of the pieces: payload, and the bytes left over once done.
fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, Option<Vec<u8>>), ChunkError> {
    let mut decoder = Decoder::new();
    let (mut payload, mut rest) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut at = 0;
        while at < piece.len() && !decoder.is_done() {
            let step = decoder.feed(&piece[at..])?;
            assert!(step.consumed > 0 && step.data.end <= step.consumed);
            assert_eq!(step.done, decoder.is_done());
            payload.extend_from_slice(&piece[at..][step.data]);
            at += step.consumed;
        }
        rest.extend_from_slice(&piece[at..]);
    }
    Ok((payload, decoder.is_done().then_some(rest)))
}

#[test]
fn it_stays_small() {
    assert!(size_of::<Decoder>() <= 16, "{}", size_of::<Decoder>());
}

const BODIES: &[(&str, &str)] = &[
    ("0\r\n\r\n", ""),
    ("5\r\nhello\r\n0\r\n\r\n", "hello"),
    ("5\r\nhello\r\n1\r\n!\r\n00\r\n\r\n", "hello!"),
    ("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
    ("0000000000000002\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
    ("3;a=b;c=\"d e\"\r\nabc\r\n0;last\r\n\r\n", "abc"),
    ("1\r\nx\r\n0\r\nA: b\r\nLonger-Name: c d\r\n\r\n", "x"),
];

#[test]
fn bodies_decode_however_they_are_split() {
    for (body, payload) in BODIES {
        let followed = format!("{body}NEXT");
        let bytes = followed.as_bytes();
        let expected = Ok((payload.as_bytes().to_vec(), Some(b"NEXT".to_vec())));
        for at in 0..=bytes.len() {
            let (a, b) = bytes.split_at(at);
            assert_eq!(decode(&[a, b]), expected, "{body:?} at {at}");
        }
        assert_eq!(decode(&bytes.chunks(1).collect::<Vec<_>>()), expected, "{body:?} bytewise");
        for end in 0..body.len() {
            let (_, rest) = decode(&[&bytes[..end]]).unwrap();
            assert_eq!(rest, None, "{body:?} is not complete at {end}");
        }
    }
}

#[test]
fn one_call_yields_a_chunk_with_its_framing() {
    let mut decoder = Decoder::new();
    let bytes = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let step = decoder.feed(bytes).unwrap();
    assert_eq!(step, Step { consumed: 11, data: 3..6, done: false });
    let step = decoder.feed(&bytes[11..]).unwrap();
    assert_eq!(step, Step { consumed: 9, data: 0..2, done: true });
    assert_eq!(decoder.feed(b"GET"), Ok(Step { consumed: 0, data: 0..0, done: true }));
}

#[test]
fn a_huge_chunk_is_followed() {
    let mut decoder = Decoder::new();
    decoder.feed(b"ffffffffffffffff\r\n").unwrap();
    let step = decoder.feed(&[b'x'; 1000]).unwrap();
    assert_eq!(step, Step { consumed: 1000, data: 0..1000, done: false });
    assert_eq!(decoder.left, u64::MAX - 1000);
}

#[test]
fn every_leniency_is_refused() {
    let cases: &[(&str, ChunkError)] = &[
        ("\r\n", ChunkError::Size),
        (";x\r\n", ChunkError::Size),
        ("+5\r\n", ChunkError::Size),
        ("-1\r\n", ChunkError::Size),
        ("0x5\r\n", ChunkError::Size),
        (" 5\r\n", ChunkError::Size),
        ("5 \r\n", ChunkError::Size),
        ("5\t;x\r\n", ChunkError::Size),
        ("5\n", ChunkError::Size),
        ("g\r\n", ChunkError::Size),
        ("00000000000000005\r\n", ChunkError::SizeTooLong),
        ("5\rx", ChunkError::LineEnd),
        ("5;a\nhello", ChunkError::LineEnd),
        ("5;a\0\r\n", ChunkError::LineEnd),
        ("5;a\rb\r\n", ChunkError::LineEnd),
        ("5\r\nhello!\r\n", ChunkError::Overrun),
        ("5\r\nhello\n", ChunkError::Overrun),
        ("5\r\nhello\r!", ChunkError::LineEnd),
        ("0\r\n\n", ChunkError::LineEnd),
        ("0\r\na: b\n\r\n", ChunkError::LineEnd),
        ("0\r\na: b\rc\r\n", ChunkError::LineEnd),
        ("0\r\n\rx", ChunkError::LineEnd),
    ];
    for (body, error) in cases {
        let bytes = body.as_bytes();
        for at in 0..=bytes.len() {
            let (a, b) = bytes.split_at(at);
            assert_eq!(final_error(&[a, b]), Some(*error), "{body:?} at {at}");
        }
    }
}

/// The error that feeding on and on meets; also checks that it stays.
fn final_error(pieces: &[&[u8]]) -> Option<ChunkError> {
    let mut decoder = Decoder::new();
    for piece in pieces {
        let mut at = 0;
        while at < piece.len() {
            match decoder.feed(&piece[at..]) {
                Ok(step) => at += step.consumed,
                Err(error) => {
                    assert_eq!(decoder.feed(b"0\r\n\r\n"), Err(error));
                    return Some(error);
                }
            }
        }
    }
    None
}

#[test]
fn payload_before_a_fault_is_handed_out() {
    let mut decoder = Decoder::new();
    let step = decoder.feed(b"3\r\nabcX").unwrap();
    assert_eq!(step, Step { consumed: 6, data: 3..6, done: false });
    assert_eq!(decoder.feed(b"X"), Err(ChunkError::Overrun));
}

#[test]
fn what_is_skipped_is_limited() {
    let extension = |n: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(n));
    assert_eq!(final_error(&[extension(4095).as_bytes()]), None);
    let error = Some(ChunkError::ExtensionsTooLong);
    assert_eq!(final_error(&[extension(4096).as_bytes()]), error);
    let bytes = extension(5000);
    assert_eq!(final_error(&bytes.as_bytes().chunks(7).collect::<Vec<_>>()), error);
    let spread = "1;eeeeeee\r\nx\r\n".repeat(513);
    assert_eq!(final_error(&[spread.as_bytes()]), error, "the limit is for all of them");

    let trailer = |n: usize| format!("0\r\na: {}\r\n\r\n", "t".repeat(n));
    assert_eq!(final_error(&[trailer(16 * 1024 - 5).as_bytes()]), None);
    let error = Some(ChunkError::TrailersTooLong);
    assert_eq!(final_error(&[trailer(16 * 1024 - 4).as_bytes()]), error);
    let many = format!("0\r\n{}", "a: b\r\n".repeat(3000));
    assert_eq!(final_error(&[many.as_bytes()]), error);
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_split_alike(
        bytes in "[0-9a-f;\r\n x]{0,60}", at in any::<usize>(),
    ) {
        let bytes = bytes.as_bytes();
        let (a, b) = bytes.split_at(at % (bytes.len() + 1));
        prop_assert_eq!(final_error(&[a, b]), final_error(&[bytes]));
    }

    #[test]
    fn random_payloads_come_back(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
        size in 1..30usize,
    ) {
        let mut body = Vec::new();
        for chunk in &chunks {
            body.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        let pieces: Vec<&[u8]> = body.chunks(size).collect();
        prop_assert_eq!(decode(&pieces), Ok((chunks.concat(), Some(Vec::new()))));
    }
}
