//! `[stream]`: what bounds one stream in time and memory.
//!
//! Durations are rounded up to whole ticks of the timer wheel where they are used, not here.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::read::{Reading, Section};

/// Bounds of every stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Quiet time before a heartbeat; `None` = none are sent.
    pub heartbeat: Option<Duration>,
    /// The 200 head is sent by then even without a first event; `None` = it waits for one.
    pub commit_after: Option<Duration>,
    /// Longest wait for an upstream's first byte.
    pub first_byte: Duration,
    /// Longest silence of an upstream in mid-stream.
    pub idle: Duration,
    /// Longest life of a stream.
    pub total: Duration,
    /// Longest time without write progress towards the client.
    pub client_stall: Duration,
    /// Bytes held for a lagging client; when full, the source is not read.
    pub backlog: usize,
    /// Largest event, bytes; a larger one ends its stream.
    pub max_event: usize,
}

impl Default for Stream {
    fn default() -> Self {
        Stream {
            heartbeat: Some(Duration::from_secs(15)),
            commit_after: Some(Duration::from_secs(20)),
            first_byte: Duration::from_secs(120),
            idle: Duration::from_secs(120),
            total: Duration::from_secs(3600),
            client_stall: Duration::from_secs(30),
            backlog: 64 << 10,
            max_event: 16 << 20,
        }
    }
}

const TIME: RangeInclusive<Duration> = Duration::from_millis(1)..=super::LONGEST;
const BYTES: RangeInclusive<u64> = 1 << 10..=1 << 30;

pub(super) fn read(r: &mut Reading<'_>, root: &Section<'_>) -> Stream {
    let d = Stream::default();
    let s = r.section(root, "stream");
    Stream {
        heartbeat: r.duration_or_off(&s, "heartbeat", &TIME, d.heartbeat),
        commit_after: r.duration_or_off(&s, "commit_after", &TIME, d.commit_after),
        first_byte: r.duration(&s, "first_byte", &TIME, d.first_byte),
        idle: r.duration(&s, "idle", &TIME, d.idle),
        total: r.duration(&s, "total", &TIME, d.total),
        client_stall: r.duration(&s, "client_stall", &TIME, d.client_stall),
        backlog: read_bytes(r, &s, "backlog", d.backlog),
        max_event: read_bytes(r, &s, "max_event", d.max_event),
    }
}

fn read_bytes(r: &mut Reading<'_>, s: &Section<'_>, name: &str, default: usize) -> usize {
    let bytes = r.size(s, name, BYTES, default as u64);
    usize::try_from(bytes).expect("at most 1 GiB, which every target's usize holds")
}
