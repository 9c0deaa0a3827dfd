//! The line is held against what `tracing` writes, and its time against another calendar.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::telemetry::Reason;
use crate::telemetry::log::{Format, by_tracing};
use crate::telemetry::tests::logged;

/// What a pen writes.
fn written(end: &StreamEnd<'_>) -> String {
    let mut out = Vec::new();
    Pen::new(&mut out).write(end).unwrap();
    String::from_utf8(out).unwrap()
}

/// A line in two: its time, and all the rest.
fn time_and_rest(line: &str) -> (&str, &str) {
    let rest = line.strip_prefix("{\"timestamp\":\"").unwrap();
    rest.split_once('"').unwrap()
}

#[track_caller]
fn same_as_by_tracing(end: &StreamEnd<'_>) {
    let (own, theirs) = (written(end), logged("info", Format::Json, || by_tracing(end)));
    let (own_time, own) = time_and_rest(&own);
    let (their_time, theirs) = time_and_rest(&theirs);
    assert_eq!(own, theirs);
    assert_eq!(own_time.len(), their_time.len());
}

fn reason() -> impl Strategy<Value = Reason> {
    prop_oneof![Just(Reason::Completed), Just(Reason::ClientStalled), Just(Reason::Internal)]
}

/// Short and long text of any characters, with those that have to be escaped more often than not.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[\"\\\\/\\x00-\\x20\\x7f\u{80}\u{2028}\u{feff}\u{1f30a}]{0,80}",
        "[a-z]{0,300}",
    ]
}

/// From nothing to more than a process lives: 31 years.
fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![0..10_000u64, 0..10_000_000_000u64, 0..1_000_000_000_000_000u64]
        .prop_flat_map(|micros| (Just(micros), 0..1000u64))
        .prop_map(|(micros, ns)| Duration::from_micros(micros) + Duration::from_nanos(ns))
}

proptest! {
    #[test]
    fn it_is_what_tracing_writes(
        id in text(),
        upstream_request_id in proptest::option::of(text()),
        trace_id in proptest::option::of(any::<u128>()),
        (route, upstream) in (text(), text()),
        (status, reason) in (any::<u16>(), reason()),
        (ttfb, duration) in (proptest::option::of(time()), time()),
        (events, bytes) in (any::<u64>(), any::<u64>()),
        max_gap in proptest::option::of(time()),
        attempt in any::<u32>(),
    ) {
        let end = StreamEnd {
            id: &id,
            upstream_request_id: upstream_request_id.as_deref(),
            trace_id,
            route: &route,
            upstream: &upstream,
            status,
            reason,
            ttfb,
            duration,
            events,
            bytes,
            max_gap,
            attempt,
        };
        same_as_by_tracing(&end);
        let line: Value = serde_json::from_str(&written(&end)).unwrap();
        prop_assert_eq!(line["id"].as_str(), Some(bounded(&id)));
        prop_assert_eq!(line["route"].as_str(), Some(&*route));
    }
}

#[test]
fn every_ascii_character_and_every_reason_is_what_tracing_writes() {
    let all: String = (0..=127u8).map(char::from).collect();
    for reason in Reason::ALL {
        let end = StreamEnd {
            id: &all,
            upstream_request_id: Some(&all),
            trace_id: Some(1),
            route: &all,
            upstream: &all,
            status: 499,
            reason: *reason,
            ttfb: Some(Duration::ZERO),
            duration: Duration::from_millis(1),
            events: 0,
            bytes: u64::MAX,
            max_gap: Some(Duration::from_nanos(999)),
            attempt: 1,
        };
        same_as_by_tracing(&end);
    }
}

/// A pen keeps its buffer and the second's text; yet each line stands alone and has the time it was
/// written at. Until the clock has gone from one second to the next twice, which takes at most two.
#[test]
fn lines_follow_one_another_and_their_times_are_true() {
    let micros = |time: SystemTime| {
        u64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
    };
    let mut pen = Pen::new(Vec::new());
    let mut seconds = BTreeSet::new();
    while seconds.len() < 3 {
        for id in ["a-longer-one", "b"] {
            pen.out.clear();
            let before = micros(SystemTime::now());
            pen.write(&StreamEnd { id, ..some() }).unwrap();
            let after = micros(SystemTime::now());
            let text = std::str::from_utf8(&pen.out).unwrap();
            let (time, _) = time_and_rest(text);
            let (whole, micros) = time.split_at(19);
            let mut possible = (before / 1_000_000)..=(after / 1_000_000);
            let at = possible.find(|since_1970| second(*since_1970) == whole).expect(time);
            seconds.insert(at);
            let micros: u64 = micros.strip_prefix('.').unwrap()[..6].parse().unwrap();
            assert!((before..=after).contains(&(at * 1_000_000 + micros)), "{time}");
            assert_eq!((time.len(), &time[26..]), (27, "Z"));
            assert_eq!(
                time_and_rest(&written(&StreamEnd { id, ..some() })).1,
                time_and_rest(text).1
            );
        }
    }
}

/// `2026-11-21T09:30:00`, by the calendar of `httpdate`: `Sat, 21 Nov 2026 09:30:00 GMT`.
fn second(since_1970: u64) -> String {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(since_1970));
    let month = "JanFebMarAprMayJunJulAugSepOctNovDec".find(&text[8..11]).unwrap() / 3 + 1;
    format!("{}-{month:02}-{}T{}", &text[12..16], &text[5..7], &text[17..25])
}

fn some() -> StreamEnd<'static> {
    StreamEnd {
        id: "",
        upstream_request_id: None,
        trace_id: None,
        route: "/v1/{*rest}",
        upstream: "main",
        status: 200,
        reason: Reason::Completed,
        ttfb: None,
        duration: Duration::ZERO,
        events: 0,
        bytes: 0,
        max_gap: None,
        attempt: 1,
    }
}
