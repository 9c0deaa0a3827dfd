//! Split at every offset, and held against an independent parser of the same format.

use eventsource_stream::{Event, EventStream};
use futures_util::{FutureExt, StreamExt, stream};
use proptest::prelude::*;

use super::*;

const PING: &[u8] = b": ping\n";

/// What a stream came to, and what was forwarded of it.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    out: Vec<u8>,
    events: u64,
    completed: bool,
    complete_at_eof: bool,
    error: bool,
}

/// Feeds the pieces; writes `beat` wherever it is allowed, before each piece and at the end.
fn run(family: Family, pieces: &[&[u8]], beat: Option<&[u8]>) -> Outcome {
    let mut tracker = Tracker::new(family, 1 << 20);
    let mut out = Vec::new();
    let mut events = 0;
    for piece in pieces {
        pulse(&mut tracker, &mut out, beat);
        let fed = tracker.feed(piece);
        out.extend_from_slice(fed.replay);
        out.extend_from_slice(&piece[fed.skip..]);
        events += u64::from(fed.events);
        assert_eq!(fed.first_event_end.is_some(), fed.events > 0);
        assert!(fed.first_event_end.is_none_or(|end| end <= piece.len()));
    }
    pulse(&mut tracker, &mut out, beat);
    out.extend_from_slice(tracker.held_at_eof());
    assert_eq!(events, tracker.events());
    Outcome {
        out,
        events,
        completed: tracker.completed(),
        complete_at_eof: tracker.complete_at_eof(),
        error: tracker.error_event(),
    }
}

fn pulse(tracker: &mut Tracker, out: &mut Vec<u8>, beat: Option<&[u8]>) {
    let Some(beat) = beat else { return };
    if tracker.at_boundary() {
        out.extend_from_slice(beat);
        tracker.heartbeat_written();
        assert!(tracker.at_boundary(), "a heartbeat leaves a boundary");
    }
}

/// The events an independent client library makes of `bytes`, ended by a blank line. It waits for
/// the byte after a CR and panics on a BOM, so a comment is put behind and one in the BOM's place.
fn oracle(bytes: &[u8]) -> Vec<Event> {
    let mut all = b":\n".to_vec();
    all.extend_from_slice(bytes.strip_prefix(BOM).unwrap_or(bytes));
    all.extend_from_slice(b"\n\n:");
    EventStream::new(stream::iter([Ok::<_, ()>(all)]))
        .map(|event| event.expect("the test streams are UTF-8"))
        .collect()
        .now_or_never()
        .expect("a ready stream")
}

fn without_pings(events: Vec<Event>) -> Vec<Event> {
    events.into_iter().filter(|event| event.event != "ping").collect()
}

const STREAMS: &[&[u8]] = &[
    b"data: {\"id\":1}\n\ndata: {\"id\":2}\n\ndata: [DONE]\n\n",
    b"data: one\r\n\r\ndata: two\r\n\r\ndata: [DONE]\r\n\r\n",
    b"data: one\r\rdata: two\r\rdata: [DONE]\r\r",
    b"data: one\r\r\ndata: two\n\rdata: three\r\n\rdata: [DONE]  \r\n\n",
    b"\xEF\xBB\xBFdata: bom\n\n: c\n: d\n\ndata:x\ndata\n\n",
    b"\xEF\xBB\xBF\xEF\xBB\xBFdata: second bom is a name\n\n",
    b"\xEF\xBBdata: not a bom\n\ndata: x\n\n",
    b"\xEF",
    b"\r\n\r\n\n\r\rid: 1\nretry: 5\n\nid\n\n: comment\r\n\r\n",
    b"event: error\ndata: {\"a\":1}\n\nevent: message_stop\ndata: {}\n\n",
    b"event:message_stop\r\ndata: {}\r\n\r\n",
    b"event: response.failed\rdata: {}\r\r: bye\r",
    b"data: {\"error\": {\"message\":\"no\"}}\n\n",
    b"data: {\"error\" : null}\n\n",
    "data: zażółć gęślą 🌊\n\ndata: 思考\r\n\r\n".as_bytes(),
    b"data: [DONE]",
    b"data: [DONE]x\n\n",
    b"dat: x\ndatax: y\ndata\n\ndata\ndata\n\neventx: error\neven: error\n\n",
    b"data: {\"type\":\"response.created\"}\n\ndata: {\"type\": \"response.completed\"}\n\n",
    b"event: error\ndata: {\"type\":\"error\",\"code\":null}\n\ndata: [\ndata: {\n\n",
];

#[test]
fn it_stays_small() {
    assert!(size_of::<Tracker>() <= 32, "{}", size_of::<Tracker>());
}

#[test]
fn any_split_gives_the_same() {
    for family in [Family::OpenAi, Family::Responses, Family::Anthropic, Family::Plain] {
        for whole in STREAMS {
            let expected = run(family, &[whole], None);
            for at in 0..=whole.len() {
                let (a, b) = whole.split_at(at);
                assert_eq!(run(family, &[a, b], None), expected, "{family:?} {whole:?} at {at}");
            }
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            assert_eq!(run(family, &bytes, None), expected, "{family:?} {whole:?} bytewise");
        }
    }
}

#[test]
fn nothing_but_a_leading_bom_is_dropped() {
    for whole in STREAMS {
        let expected = whole.strip_prefix(BOM).unwrap_or(whole);
        assert_eq!(run(Family::OpenAi, &[whole], None).out, expected);
    }
}

#[test]
fn heartbeats_change_no_event_however_the_stream_is_split() {
    for style in [HeartbeatStyle::Comment, HeartbeatStyle::CommentFrame, HeartbeatStyle::Anthropic]
    {
        let beat = Some(heartbeat(style, Family::Plain));
        for whole in STREAMS.iter().filter(|whole| std::str::from_utf8(whole).is_ok()) {
            let expected = oracle(whole);
            for at in 0..=whole.len() {
                let (a, b) = whole.split_at(at);
                let got = run(Family::OpenAi, &[a, b], beat);
                assert_eq!(without_pings(oracle(&got.out)), expected, "{whole:?} at {at}");
            }
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            let got = run(Family::OpenAi, &bytes, beat);
            assert_eq!(without_pings(oracle(&got.out)), expected, "{whole:?} bytewise");
        }
    }
}

#[test]
fn no_heartbeat_between_cr_and_lf() {
    let whole = b": hello\r\n\r\ndata: a\r\n\r\ndata: b\r\n\r\n";
    let bytes: Vec<&[u8]> = whole.chunks(1).collect();
    let got = run(Family::OpenAi, &bytes, Some(PING)).out;
    let expected = ": ping\n: hello\r\n: ping\n\r\n: ping\ndata: a\r\n\r\n: ping\n\
                    data: b\r\n\r\n: ping\n";
    assert_eq!(String::from_utf8(got).unwrap(), expected);
}

#[test]
fn a_cr_is_a_boundary_once_lone_crs_are_proven() {
    let mut tracker = Tracker::new(Family::OpenAi, 1024);
    tracker.feed(b": c\r");
    assert!(!tracker.at_boundary(), "an LF may follow");
    tracker.feed(b"data: x\r\r");
    assert!(tracker.at_boundary(), "the first CR of two stood alone");
    tracker.heartbeat_written();
    let fed = tracker.feed(b"\ndata: y\r\r");
    assert_eq!((fed.skip, fed.events, fed.first_event_end), (1, 1, Some(10)));
    assert!(tracker.at_boundary());
    // Without a heartbeat in between the LF is passed on.
    assert_eq!(tracker.feed(b"\n").skip, 0);
    assert!(tracker.at_boundary());
}

#[test]
fn an_answered_cr_swallows_one_lf_only() {
    let mut tracker = Tracker::new(Family::Plain, 1024);
    tracker.feed(b"data: x\r\r");
    tracker.heartbeat_written();
    tracker.heartbeat_written();
    assert_eq!(tracker.feed(b"").skip, 0);
    assert_eq!(tracker.feed(b"\n").skip, 1);
    assert_eq!(tracker.feed(b"\n").skip, 0);
}

#[test]
fn boundaries_lie_between_events_only() {
    let cases: &[(&[u8], bool)] = &[
        (b"", true),
        (b"\n", true),
        (b": c\n", true),
        (b": c", false),
        (b"d", false),
        (b"data: x\n", false),
        (b"data: x\n: c\n", false),
        (b"id: 1\n", false),
        (b"data: x\n\n", true),
        (b"data: x\r\n\r", false),
        (b"data: x\r\n\r\n", true),
        (b"\xEF", false),
        (b"\xEF\xBB", false),
        (b"\xEF\xBB\xBF", true),
        (b"\xEF\xBB\xBF\n", true),
    ];
    for (bytes, expected) in cases {
        let mut tracker = Tracker::new(Family::OpenAi, 1024);
        tracker.feed(bytes);
        assert_eq!(tracker.at_boundary(), *expected, "{bytes:?}");
    }
}

#[test]
fn a_possible_bom_is_held_back_and_replayed() {
    let mut tracker = Tracker::new(Family::Plain, 1024);
    assert_eq!(tracker.feed(b"\xEF").skip, 1);
    assert_eq!(tracker.held_at_eof(), b"\xEF");
    assert_eq!(tracker.feed(b"\xBB").skip, 1);
    assert_eq!(tracker.held_at_eof(), b"\xEF\xBB");
    let fed = tracker.feed(b"data: x\n\n");
    assert_eq!((fed.replay, fed.skip), (&b"\xEF\xBB"[..], 0));
    assert_eq!(fed.events, 0, "the line's name is not `data`");
    assert_eq!(tracker.held_at_eof(), b"");
}

#[test]
fn the_first_event_ends_after_its_blank_line() {
    let first = |bytes: &[u8]| Tracker::new(Family::Plain, 1024).feed(bytes).first_event_end;
    assert_eq!(first(b"data: x\n\ndata: y\n\n"), Some(9));
    assert_eq!(first(b"data: x\r\n\r\ndata"), Some(11));
    assert_eq!(first(b"data: x\r\rdata"), Some(9));
    assert_eq!(first(b": c\n\nid: 1\n\ndata: x\n\n"), Some(21));
    assert_eq!(first(b"\xEF\xBB\xBFdata: x\n\n"), Some(12));
    assert_eq!(first(b"data: x\n"), None);
    assert_eq!(first(b"data:\n\n"), None);
}

#[test]
fn only_events_that_carry_data_count() {
    let count = |bytes: &[u8]| run(Family::Plain, &[bytes], None).events;
    assert_eq!(count(b"id: 1\n\n: c\n\nevent: x\n\n"), 0);
    assert_eq!(count(b"data\n\ndata:\n\ndata: \n\n"), 0);
    assert_eq!(count(b"data\ndata\n\n"), 1);
    assert_eq!(count(b"data:  \n\n"), 1);
    assert_eq!(count(b"data:x\n\ndata: y\n\n"), 2);
    assert_eq!(count(b"data: a\ndata: b\n\n"), 1);
}

/// (bytes, completed, complete at EOF)
fn ends(family: Family, cases: &[(&str, bool, bool)]) {
    for (bytes, completed, at_eof) in cases {
        let got = run(family, &[bytes.as_bytes()], None);
        assert_eq!((got.completed, got.complete_at_eof), (*completed, *at_eof), "{bytes:?}");
    }
}

#[test]
fn openai_ends_with_done() {
    let cases = [
        ("data: [DONE]\n\n", true, true),
        ("data:[DONE]\n\n", true, true),
        ("data: [DONE]  \r\n\r\n", true, true),
        ("data: [DONE]\r\r", true, true),
        ("data: [DONE]\n", false, true),
        ("data: [DONE]", false, true),
        ("data: [DONE]  ", false, true),
        ("data: [DONE]\n\ndata: more", true, true),
        ("data: [DONE", false, false),
        ("data:  [DONE]\n\n", false, false),
        ("data: [DONE]x\n\n", false, false),
        ("data: [done]\n\n", false, false),
        ("data: \"[DONE]\"\n\n", false, false),
        (": [DONE]\n\n", false, false),
        ("event: message_stop\ndata: {}\n\n", false, false),
        ("data: x\n\n", false, false),
        ("", false, false),
    ];
    ends(Family::OpenAi, &cases);
}

#[test]
fn named_events_end_the_other_families() {
    let anthropic = [
        ("event: message_stop\ndata: {}\n\n", true, true),
        ("event:message_stop\r\ndata: {}\r\n\r\n", true, true),
        ("event: message_stop\ndata: {}\n", false, false),
        ("event: message_stopped\n\n", false, false),
        ("event: message_stop\nevent: other\n\n", false, false),
        ("event: message_stop\nevent\n\n", false, false),
        ("event: response.completed\n\n", false, false),
        ("data: [DONE]\n\n", false, false),
    ];
    ends(Family::Anthropic, &anthropic);
    let responses = [
        ("event: response.completed\ndata: {}\n\n", true, true),
        ("event: response.failed\ndata: {}\n\n", true, true),
        ("event: response.incomplete\ndata: {}\n\n", true, true),
        ("event: response.created\ndata: {}\n\n", false, false),
        ("event: response.\n\n", false, false),
        ("event: message_stop\n\n", false, false),
        // Clients go by the type in the data, and some servers give no name.
        ("data: {\"type\":\"response.completed\",\"response\":{}}\n\n", true, true),
        ("data:{ \"type\" :\t\"response.incomplete\"}\r\n\r\n", true, true),
        ("data: {\ndata: \"type\":\ndata: \"response.failed\"}\n\n", true, true),
        ("data: {\"type\":\"response.completed\"}\nevent: other\n\n", true, true),
        ("data: {\"type\":\"response.completed\"}\n", false, false),
        ("data: {\"type\":\"response.completed", false, false),
        ("data: {\"type\":\"response.\ndata: completed\"}\n\n", false, false),
        ("data: {\"type\":\"response.complete\"}\n\n", false, false),
        ("data: {\"type\":\"response.completed.x\"}\n\n", false, false),
        ("data: {\"types\":\"response.completed\"}\n\n", false, false),
        ("data: {\"id\":\"response.completed\"}\n\n", false, false),
        ("data: {\"type\":\"message_stop\"}\n\n", false, false),
    ];
    ends(Family::Responses, &responses);
    let typed = [("data: {\"type\":\"message_stop\"}\n\n", false, false)];
    ends(Family::Anthropic, &typed);
    let plain = [("data: [DONE]\n\n", false, true), ("data: x", false, true), ("", false, true)];
    ends(Family::Plain, &plain);
}

#[test]
fn an_upstreams_own_error_is_seen() {
    let cases = [
        ("event: error\ndata: {}\n\n", true),
        ("event:error\r\rdata: x\r\r", true),
        ("event: error\ndata: {}\n", false),
        ("event: errors\n\n", false),
        ("event: error\nevent: fine\ndata: x\n\n", false),
        ("data: {\"error\":{\"message\":\"x\"}}\n\n", true),
        ("data:{ \t\"error\" : \"x\"}\n\n", true),
        ("data: {\ndata: \"error\":\ndata: 1}\n\n", true),
        ("data: {\"err\ndata: or\":1}\n\n", false),
        ("data: {\"error\": null}\n\n", false),
        ("data: {\"error\":", false),
        ("data: {\"errors\":1}\n\n", false),
        ("data: {\"id\":1,\"error\":1}\n\n", false),
        ("data: [\"error\":1]\n\n", false),
        ("data: x{\"error\":1}\n\n", false),
    ];
    for (bytes, expected) in cases {
        for family in [Family::OpenAi, Family::Anthropic, Family::Responses, Family::Plain] {
            let got = run(family, &[bytes.as_bytes()], None);
            assert_eq!(got.error, expected, "{family:?} {bytes:?}");
        }
    }
}

#[test]
fn the_responses_api_tells_errors_by_type_too() {
    let cases = [
        ("data: {\"type\":\"error\",\"code\":null,\"message\":\"x\"}\n\n", true),
        ("data: {\"type\" : \"error\"}\n\n", true),
        ("event: response.failed\ndata: {}\n\n", true),
        ("data: {\"type\":\"response.failed\",\"response\":{}}\n\n", true),
        ("event: response.failed\nevent: response.completed\ndata: {}\n\n", false),
        ("data: {\"type\":\"error\"}\n", false),
        ("data: {\"type\":\"errors\"}\n\n", false),
        ("data: {\"type\":\"response.completed\"}\n\n", false),
        ("event: response.incomplete\ndata: {}\n\n", false),
        ("data: {\"type\":null,\"error\":{}}\n\n", false),
    ];
    for (bytes, expected) in cases {
        let got = run(Family::Responses, &[bytes.as_bytes()], None);
        assert_eq!(got.error, expected, "{bytes:?}");
    }
    for family in [Family::OpenAi, Family::Anthropic, Family::Plain] {
        let got = run(family, &[b"data: {\"type\":\"error\"}\n\n"], None);
        assert!(!got.error, "{family:?}");
    }
}

#[test]
fn an_event_has_a_longest_length() {
    let too_long = |pieces: &[&[u8]]| {
        let mut tracker = Tracker::new(Family::Plain, 10);
        pieces.iter().any(|piece| tracker.feed(piece).too_long)
    };
    assert!(!too_long(&[b"data: xx\n\n"]));
    assert!(too_long(&[b"data: xxx\n\n"]));
    assert!(too_long(&[b"data: x\n\ndata: xxx\n\ndata: x\n\n"]));
    assert!(!too_long(&[b"data: xx\n\n", b"data: xx\n\n: c\n: c\n: c\n"]));
    assert!(!too_long(&[b"dat", b"a: xx", b"\n\n"]));
    assert!(too_long(&[b"dat", b"a: xx", b"x\n\n"]));
    assert!(too_long(&[b": endless", b" comment"]));
    assert!(too_long(&[b"data\n", b"data\n", b"data\n"]));
    assert!(!Tracker::new(Family::Plain, usize::MAX).feed(&[b'x'; 4096]).too_long);
}

#[test]
fn a_16_mib_line_passes_in_pieces() {
    let piece = vec![b'x'; 64 * 1024];
    let mut tracker = Tracker::new(Family::OpenAi, 17 << 20);
    tracker.feed(b"data: ");
    for _ in 0..256 {
        assert_eq!(tracker.feed(&piece), Fed::default());
    }
    assert_eq!(tracker.feed(b"\n\n").first_event_end, Some(2));
}

#[test]
fn an_own_event_can_follow_any_break() {
    for whole in STREAMS.iter().filter(|whole| std::str::from_utf8(whole).is_ok()) {
        for at in 0..=whole.len() {
            if std::str::from_utf8(&whole[..at]).is_err() {
                continue;
            }
            let mut tracker = Tracker::new(Family::OpenAi, 1024);
            let fed = tracker.feed(&whole[..at]);
            let mut out = whole[fed.skip..at].to_vec();
            out.extend_from_slice(tracker.closing());
            out.extend_from_slice(b"event: own\ndata: last\n\n");
            let last = oracle(&out).pop().unwrap();
            assert_eq!((last.event.as_str(), last.data.as_str()), ("own", "last"), "{out:?}");
        }
    }
}

#[test]
fn the_path_decides_an_automatic_family() {
    let auto = |path| family_of(path, Family::Auto);
    assert_eq!(auto("/v1/chat/completions"), Family::OpenAi);
    assert_eq!(auto("/openai/v1/completions"), Family::OpenAi);
    assert_eq!(auto("/v1/responses"), Family::Responses);
    assert_eq!(auto("/openai/v1/responses/resp_1"), Family::Responses);
    assert_eq!(auto("/v1/responses/resp_1/cancel"), Family::Plain);
    assert_eq!(auto("/v1/messages"), Family::Anthropic);
    assert_eq!(auto("/v1/messages/batches"), Family::Plain);
    for path in ["/v1/chat/completions/123", "/", "", "messages", "/v1/xmessages", "/v1/models"] {
        assert_eq!(auto(path), Family::Plain, "{path}");
    }
    assert_eq!(auto("/v1/xcompletions"), Family::Plain);
    for set in [Family::OpenAi, Family::Responses, Family::Anthropic, Family::Plain] {
        assert_eq!(family_of("/v1/chat/completions", set), set);
    }
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "data: ?[a-zé\\[\\]{}\": ]{0,12}",
        1 => Just("data".to_owned()),
        1 => Just("data: [DONE]".to_owned()),
        1 => ": ?[a-z]{0,6}",
        1 => "(event|id|retry|dat|x)(: ?[a-z0-9]{0,6})?",
        3 => Just(String::new()),
    ]
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let lines = proptest::collection::vec((line(), end), 0..24);
    (any::<bool>(), lines, line()).prop_map(|(bom, lines, tail)| {
        let mut text = if bom { "\u{feff}".to_owned() } else { String::new() };
        for (line, end) in lines {
            text.push_str(&line);
            text.push_str(end);
        }
        text.push_str(&tail);
        text.into_bytes()
    })
}

/// The bytes cut at the given places (taken modulo what is there).
fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn random_streams_with_heartbeats_parse_to_the_same_events(
        bytes in text(),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
        style in prop_oneof![
            Just(HeartbeatStyle::Comment),
            Just(HeartbeatStyle::CommentFrame),
            Just(HeartbeatStyle::Anthropic),
        ],
    ) {
        let expected = oracle(&bytes);
        let pieces = cut(&bytes, &cuts);
        let got = run(Family::OpenAi, &pieces, Some(heartbeat(style, Family::Plain)));
        // The oracle ends an unfinished last event too; the tracker rightly does not count it.
        let finished = run(Family::OpenAi, &[&pieces.concat(), b"\n\n"], None);
        let carrying = expected.iter().filter(|event| !event.data.is_empty()).count();
        prop_assert_eq!(finished.events, carrying as u64);
        let done = expected.iter().any(|e| e.data.split('\n').any(|d| d.trim_end() == "[DONE]"));
        prop_assert_eq!(finished.completed, done);
        prop_assert_eq!(without_pings(oracle(&got.out)), without_pings(expected));
    }

    #[test]
    fn random_splits_forward_the_same_bytes(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let whole = run(Family::Anthropic, &[&bytes], None);
        prop_assert_eq!(run(Family::Anthropic, &cut(&bytes, &cuts), None), whole);
    }
}
