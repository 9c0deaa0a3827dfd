//! `[limits]`: how much the whole process takes on, and the open-file limit's share in that.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::fault::{Notice, NoticeKind};
use super::read::{Reading, Section};
use crate::limits::RESERVED_FILES;

/// Bounds of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections open at once.
    pub connections: usize,
    /// Proxied requests in flight at once, streams or not.
    pub streams: usize,
    /// New proxied requests per second.
    pub new_streams_per_second: u32,
    /// How many of them may come at once after a quiet time; 0 = one second's worth.
    pub new_streams_burst: u32,
    /// Bounds of each client address; `None` = off.
    pub per_ip: Option<PerIp>,
    /// Requests with a key that is none, per client address; 0 = without limit.
    pub failed_keys_per_minute: u32,
    /// Bytes that request bodies, backlogs and queues may hold together.
    pub memory: u64,
    /// Largest request body, bytes.
    pub body: u64,
    /// Longest time for a whole request body.
    pub body_time: Duration,
    /// Least bytes per second of a request body, on average since it began; 0 = none.
    pub body_rate: u64,
}

/// Bounds of one client address; at least one of them is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerIp {
    /// Proxied requests in flight at once.
    pub streams: Option<usize>,
    /// New proxied requests per second.
    pub new_per_second: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 18_000,
            streams: 15_000,
            new_streams_per_second: 1_000,
            new_streams_burst: 0,
            per_ip: None,
            failed_keys_per_minute: 60,
            memory: 1 << 30,
            body: 100 << 20,
            body_time: Duration::from_secs(600),
            body_rate: 256,
        }
    }
}

impl Limits {
    /// Lowers `connections` to what `nofile` open files allow, keeping [`RESERVED_FILES`] back.
    /// `streams` stay: over HTTP/2 a hundred and more share a file. Never refuses: at least one
    /// connection remains. A notice if it was lowered.
    pub fn clamp_to_open_files(&mut self, nofile: u64) -> Option<Notice> {
        let spare = nofile.saturating_sub(RESERVED_FILES).max(1);
        let allowed = usize::try_from(spare).unwrap_or(usize::MAX);
        let wanted = self.connections;
        if wanted <= allowed {
            return None;
        }
        self.connections = allowed;
        Some(Notice {
            kind: NoticeKind::Clamped,
            key: "limits.connections".to_owned(),
            line: None,
            text: format!(
                "{wanted} wanted, {allowed} given: {nofile} files may be open, {RESERVED_FILES} \
                 of them are kept in reserve; raise LimitNOFILE= (or `ulimit -n`), or lower the key"
            ),
        })
    }
}

const MANY: u64 = 10_000_000;
const BODY_TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=super::LONGEST;
const PER_SECOND: u64 = 10_000_000;

pub(super) fn read(r: &mut Reading<'_>, root: &Section<'_>) -> Limits {
    let d = Limits::default();
    let s = r.section(root, "limits");
    Limits {
        connections: r.number(&s, "connections", 1..=MANY, d.connections),
        streams: r.number(&s, "streams", 1..=MANY, d.streams),
        new_streams_per_second: r.number(
            &s,
            "new_streams_per_second",
            1..=PER_SECOND,
            d.new_streams_per_second,
        ),
        new_streams_burst: r.number(&s, "new_streams_burst", 0..=PER_SECOND, d.new_streams_burst),
        per_ip: read_per_ip(r, &s),
        failed_keys_per_minute: r.number(
            &s,
            "failed_keys_per_minute",
            0..=PER_SECOND,
            d.failed_keys_per_minute,
        ),
        memory: r.size(&s, "memory", 1 << 20..=16 << 40, d.memory),
        body: r.size(&s, "body", 1024..=1 << 40, d.body),
        body_time: r.duration(&s, "body_time", &BODY_TIME, d.body_time),
        body_rate: r.size(&s, "body_rate", 0..=1 << 30, d.body_rate),
    }
}

fn read_per_ip(r: &mut Reading<'_>, limits: &Section<'_>) -> Option<PerIp> {
    let s = r.section(limits, "per_ip");
    if !s.present() {
        return None;
    }
    let set = |r: &Reading<'_>, name: &str| r.field(&s, name).is_some();
    let (streams, rate) = (set(r, "streams"), set(r, "new_per_second"));
    if !streams && !rate {
        r.fault(&s.place, "limits nothing; write streams = 100, new_per_second = 20, or both");
    }
    let per_ip = PerIp {
        streams: streams.then(|| r.number(&s, "streams", 1..=MANY, 1)),
        new_per_second: rate.then(|| r.number(&s, "new_per_second", 1..=PER_SECOND, 1)),
    };
    Some(per_ip)
}
