//! `pool_…` of `[[upstream]]`: the connections that are kept to it.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::read::{Reading, Section};

/// How connections to an upstream are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRule {
    /// Most connections of the whole process, to all of its `urls` together; 0 = no limit.
    pub max: usize,
    /// Idle HTTP/1.1 connections kept per worker and URL; 0 = none is kept.
    pub idle_max: usize,
    /// How long an idle connection is kept.
    pub idle: Duration,
    /// From which age on a connection takes no more requests; `None` = any age will do.
    pub lifetime: Option<Duration>,
    /// Connections of the whole process that are opened at once.
    pub dials: usize,
    /// Connections per worker and URL that are opened before they are needed.
    pub warm: usize,
}

impl Default for PoolRule {
    fn default() -> Self {
        PoolRule {
            max: 0,
            idle_max: 256,
            // Common servers close theirs after 60 to 90 s.
            idle: Duration::from_secs(50),
            // As long as nginx uses one: other addresses of the name get their turn within that.
            lifetime: Some(Duration::from_secs(3600)),
            // At 100 ms each, more in a second than `limits.new_streams_per_second` lets in.
            dials: 128,
            warm: 0,
        }
    }
}

const TIME: RangeInclusive<Duration> = Duration::from_millis(1)..=super::LONGEST;
/// Less would be a handshake for each request.
const LIFETIME: RangeInclusive<Duration> = Duration::from_secs(1)..=super::LONGEST;
const MOST: u64 = 65_536;

pub(super) fn read(r: &mut Reading<'_>, s: &Section<'_>) -> PoolRule {
    let d = PoolRule::default();
    PoolRule {
        max: r.number(s, "pool_max", 0..=MOST, d.max),
        idle_max: r.number(s, "pool_idle_max", 0..=MOST, d.idle_max),
        idle: r.duration(s, "pool_idle", &TIME, d.idle),
        lifetime: r.duration_or_off(s, "pool_lifetime", &LIFETIME, d.lifetime),
        dials: r.number(s, "pool_dials", 1..=MOST, d.dials),
        warm: r.number(s, "pool_warm", 0..=1024, d.warm),
    }
}
