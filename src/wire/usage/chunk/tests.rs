//! Split at every offset, and drawn by lot.

use proptest::prelude::*;

use super::*;

/// What goes on of `pieces`, and what is held in the end.
fn through<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (String, String) {
    let mut chunk = UsageChunk::default();
    let mut out = Vec::new();
    for piece in pieces {
        match chunk.feed(piece) {
            Some(instead) => out.extend_from_slice(&instead),
            None => out.extend_from_slice(piece),
        }
        assert!(chunk.held.len() <= USAGE_CHUNK, "{} bytes are held", chunk.held.len());
        assert_eq!(chunk.holds(), chunk.event == Event::Open);
    }
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (text(out), text(chunk.take()))
}

/// Asserts what goes on of `text`, however it is split.
fn assert_through(text: &str, expected: &str) {
    let bytes = text.as_bytes();
    let wanted = (expected.to_owned(), String::new());
    assert_eq!(through([bytes]), wanted);
    for at in 0..=bytes.len() {
        assert_eq!(through([&bytes[..at], &bytes[at..]]), wanted, "split at {at}");
    }
    for size in [1, 2, 3, 7] {
        assert_eq!(through(bytes.chunks(size)), wanted, "pieces of {size}");
    }
}

const CONTENT: &str = "data: {\"id\":\"c\",\"choices\":[{\"delta\":{}}],\"usage\":null}\n\n";
const USAGE: &str =
    "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"total_tokens\":3}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[test]
fn the_usage_chunk_is_withheld_and_nothing_else() {
    assert_through(&[CONTENT, USAGE, DONE].concat(), &[CONTENT, DONE].concat());
    for line_end in ["\r\n", "\r"] {
        let with = |parts: &[&str]| parts.concat().replace('\n', line_end);
        assert_through(&with(&[CONTENT, USAGE, DONE]), &with(&[CONTENT, DONE]));
        assert_through(&with(&[USAGE]), "");
        assert_through(&with(&[USAGE, ": ping\n", USAGE, USAGE]), &with(&[": ping\n"]));
    }
    for usage in [
        "data:{\"choices\":[],\"usage\":{}}\n\n",
        "data: { \"usage\" : {\"a\":[1,{}]} , \"choices\" : [ ] }\n\n",
        "id: 7\nevent: chunk\ndata: {\"choices\":[],\"usage\":{}}\n: within\n\n",
        "data: {\"choices\":[],\ndata: \"usage\":{}}\n\n",
        "data: {\"model\":\"choices\",\"choices\":[],\"usage\":{},\"error\":null}\n\n",
        "data: {\"s\":\"\\\"choices\\\":[1]\",\"choices\":[],\"usage\":{}}\n\n",
    ] {
        assert_through(&[CONTENT, usage, DONE].concat(), &[CONTENT, DONE].concat());
    }
}

#[test]
fn whatever_else_passes_byte_for_byte() {
    for text in [
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
        "data: {\"choices\":[{}],\"usage\":{}}\n\n",
        "data: {\"choices\":null,\"usage\":{}}\n\n",
        "data: {\"usage\":{\"total_tokens\":3}}\n\n",
        "data: {\"choices\":[],\"usage\":{},\"error\":{\"message\":\"no\"}}\n\n",
        "data: {\"choices\":[],\"choices\":[],\"usage\":{}}\n\n",
        "data: {\"choices\":[],\"usage\":{}} x\n\n",
        "data: [{\"choices\":[],\"usage\":{}}]\n\n",
        "data: {\"x\":{\"choices\":[1]},\"choices\":[],\"usage\":{}}\n\n",
        "data: {\"error\":{\"message\":\"no\"}}\n\n",
        // Nobody writes it so.
        "data: {\"choices\":\ndata: [],\ndata: \"usage\":{}}\n\n",
        ": {\"choices\":[],\"usage\":{}}\n\n",
        "dat: {\"choices\":[],\"usage\":{}}\n\n",
        "\n\n\r\n\r\rdata\n\ndata:\n\ndata: \n\nid\n\n:\n\n::\n",
        "retry: 5\n\nid: 1\n\nevent: x\n\n",
    ] {
        assert_through(text, text);
        let crlf = text.replace('\n', "\r\n");
        assert_through(&crlf, &crlf);
    }
}

#[test]
fn an_event_is_held_until_its_first_choice_and_no_longer() {
    let mut chunk = UsageChunk::default();
    let begin = b"data: {\"id\":\"c\",\"choices\":[";
    assert_eq!(chunk.feed(begin), Some(Vec::new()));
    assert!(chunk.holds());
    assert_eq!(chunk.feed(b"{"), Some([begin.as_slice(), b"{"].concat()));
    assert!(!chunk.holds());
    assert_eq!(chunk.feed(b"\"delta\":{}}]}"), None, "what passes is not copied");
    assert_eq!(chunk.feed(b"\n\n: ping\n"), None);
    assert_eq!(chunk.feed(CONTENT.as_bytes()), None);
    assert_eq!(chunk.feed(b"data: [DONE]"), None, "no JSON is no chunk");
    assert_eq!(chunk.feed(b"\n\ndata"), Some(b"\n\n".to_vec()));
    assert_eq!(chunk.feed(b"base"), Some(Vec::new()), "a field of another name, for all we know");
    assert_eq!(chunk.take(), b"database", "the end of the stream lets it go on");
    assert_eq!(chunk.feed(b": 1\n\n"), None);
}

#[test]
fn a_chunk_may_have_so_many_bytes() {
    let padded = |len: usize| {
        let rest = "data: {\"choices\":[],\"usage\":{\"x\":\"\"}}\n\n".len();
        format!("data: {{\"choices\":[],\"usage\":{{\"x\":\"{}\"}}}}\n\n", "y".repeat(len - rest))
    };
    assert_eq!(padded(USAGE_CHUNK).len(), USAGE_CHUNK);
    assert_through(&[&padded(USAGE_CHUNK), DONE].concat(), DONE);
    let long = padded(USAGE_CHUNK + 1);
    assert_through(&[&long, DONE].concat(), &[&long, DONE].concat());
}

fn event() -> impl Strategy<Value = (String, bool)> {
    let passes = |text: &str| (text.to_owned(), false);
    let withheld = |text: &str| (text.to_owned(), true);
    prop_oneof![
        3 => Just(passes(CONTENT)),
        2 => Just(withheld(USAGE)),
        1 => Just(passes(DONE)),
        1 => Just(passes(": ping\n")),
        1 => Just(passes(": ping\n\n")),
        1 => Just(passes("\n")),
        1 => Just(passes("data: {\"choices\":[],\"usage\":null}\n\n")),
        1 => Just(withheld("id: 1\ndata: {\"usage\":{},\ndata: \"choices\":[]}\n\n")),
        1 => "(id: 1\n)?(event: [a-z]{0,3}\n)?data: ?[\\[\\{\"choicesu: ,\\]\\}]{0,30}\n\n"
            .prop_map(|text| (text, false)),
    ]
}

proptest! {
    #[test]
    fn events_are_withheld_whole_or_not_at_all(
        events in proptest::collection::vec((event(), 0..3usize), 0..12),
        sizes in proptest::collection::vec(1..60usize, 1..20),
    ) {
        let (mut text, mut expected) = (String::new(), String::new());
        for ((event, withheld), line_end) in events {
            let line_end = ["\n", "\r\n", "\r"][line_end];
            // An LF would belong to the CR before it.
            let glued = event.starts_with('\n') && line_end == "\n" && text.ends_with('\r');
            let event = event.replace('\n', line_end);
            if glued {
                continue;
            }
            text += &event;
            if !withheld {
                expected += &event;
            }
        }
        let mut sizes = sizes.into_iter().cycle();
        let (mut pieces, mut rest) = (Vec::new(), text.as_bytes());
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        let (out, held) = through(pieces);
        prop_assert_eq!(out + &held, expected);
    }

    #[test]
    fn any_bytes_pass_as_they_would_whole(
        bytes in proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(b"data: {}[]\"choicesu,\r\n:".to_vec()),
                any::<u8>(),
            ],
            0..200,
        ),
        size in 1..20usize,
    ) {
        let all = |pieces: Vec<&[u8]>| {
            let mut chunk = UsageChunk::default();
            let mut out = Vec::new();
            for piece in pieces {
                out.extend_from_slice(&chunk.feed(piece).unwrap_or_else(|| piece.to_vec()));
            }
            out.extend_from_slice(&chunk.take());
            out
        };
        prop_assert_eq!(all(bytes.chunks(size).collect()), all(vec![&bytes]));
    }
}
