//! What was counted and measured, by one worker or, merged, by all.
//!
//! Owns counters, closed lists of failures and ends, and the histograms. Refuses averages of
//! averages: merging adds buckets. Invariant: merging the tallies of parts equals the tally of the
//! whole. Cost: seven histograms of some 170 kB per worker, nothing per stream.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sequence::Faults;

/// Longest time a histogram tells apart, microseconds: one hour.
const TIME_MAX_US: u64 = 3_600_000_000;

macro_rules! closed_list {
    ($(#[$doc:meta])* $name:ident { $($(#[$why:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub(crate) enum $name { $($(#[$why])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

closed_list! {
    /// How a stream that was opened ended.
    End {
        /// A clean end after the end mark.
        Done = "done",
        /// A clean end, but no end mark.
        NoDone = "no_done",
        /// An error event, whatever end followed.
        ErrorEvent = "error_event",
        /// The connection ended short of the body's end.
        Cut = "cut",
        /// As `Cut`, but the end mark had come.
        CutAfterDone = "cut_after_done",
        /// A TCP reset, or RST_STREAM.
        Reset = "reset",
        /// Chunk framing (h2: a protocol rule) was broken.
        BadFraming = "bad_framing",
        /// Nothing came for `--idle-timeout`.
        Timeout = "timeout",
        /// We left, as planned.
        Aborted = "aborted",
    }
}

closed_list! {
    /// Why a stream was not opened.
    Failure {
        /// Refused, unreachable, or reset while connecting.
        Connect = "connect",
        /// No connection within `--connect-timeout`.
        ConnectTimeout = "connect_timeout",
        /// The TLS or HTTP/2 handshake failed.
        Handshake = "handshake",
        /// No file descriptor was left.
        Files = "files",
        /// No local port was left; see `--sources`.
        Ports = "ports",
        /// No response head within `--head-timeout`.
        HeadTimeout = "head_timeout",
        /// Closed before the head.
        Closed = "closed",
        /// Reset before the head.
        Reset = "reset",
        /// The head could not be read.
        BadHead = "bad_head",
        /// A status other than 200; `statuses` tells which.
        Status = "status",
        /// 200, but not an event stream.
        NotAStream = "not_a_stream",
        /// The run was over before the head came.
        Unfinished = "unfinished",
    }
}

impl End {
    /// An end that HTTP does not call clean, and that we did not ask for.
    pub(crate) fn is_unclean(self) -> bool {
        matches!(self, Self::Cut | Self::CutAfterDone | Self::Reset | Self::BadFraming)
    }
}

/// A histogram of microseconds with three significant digits.
#[derive(Clone, Debug)]
pub(crate) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, TIME_MAX_US, 3).expect("the bounds are valid"))
    }
}

impl Times {
    /// Records a time in nanoseconds.
    pub(crate) fn record_ns(&mut self, ns: u64) {
        self.0.saturating_record(ns.div_ceil(1000));
    }

    pub(crate) fn get(&self) -> &Histogram<u64> {
        &self.0
    }

    fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }
}

impl Serialize for Times {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(
            self.0.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value())),
        )
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut times = Self::default();
        for (value, count) in Vec::<(u64, u64)>::deserialize(from)? {
            times.0.saturating_record_n(value, count);
        }
        Ok(times)
    }
}

/// Everything that is counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Streams that were begun.
    pub(crate) attempts: u64,
    /// Streams whose head was a good one.
    pub(crate) opened: u64,
    pub(crate) failures: BTreeMap<Failure, u64>,
    /// Statuses other than 200.
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) ends: BTreeMap<End, u64>,
    pub(crate) faults: Faults,
    /// Streams with at least one fault.
    pub(crate) faulty_streams: u64,
    /// Stamped events, and events without a stamp (end marks and errors apart).
    pub(crate) chunks: u64,
    pub(crate) plain_events: u64,
    /// Bytes of response bodies.
    pub(crate) body_bytes: u64,
    /// Heartbeats: bare comment lines, comments with a blank line, Anthropic pings.
    pub(crate) bare_comments: u64,
    pub(crate) comment_frames: u64,
    pub(crate) pings: u64,
    /// Stamped events within the window: all; of streams read at full speed; and of those, the ones
    /// that shared a read with another of the same stream.
    pub(crate) window_chunks: u64,
    pub(crate) measured_chunks: u64,
    pub(crate) coalesced: u64,
    /// Time which streams read at full speed were live within the window, nanoseconds.
    pub(crate) live_ns: u64,
    /// Stamps that lie in the future: clocks differ.
    pub(crate) future_stamps: u64,
    /// Stalled readers that the server cut.
    pub(crate) stalled_cut: u64,
    pub(crate) head: Times,
    pub(crate) first_event: Times,
    pub(crate) relay: Times,
    pub(crate) interval: Times,
    pub(crate) jitter: Times,
    pub(crate) max_gap: Times,
    /// How late streams were begun: the tool's own delay.
    pub(crate) start_delay: Times,
}

impl Tally {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.opened += other.opened;
        add(&mut self.failures, &other.failures);
        add(&mut self.statuses, &other.statuses);
        add(&mut self.ends, &other.ends);
        self.faults.add(&other.faults);
        self.faulty_streams += other.faulty_streams;
        self.chunks += other.chunks;
        self.plain_events += other.plain_events;
        self.body_bytes += other.body_bytes;
        self.bare_comments += other.bare_comments;
        self.comment_frames += other.comment_frames;
        self.pings += other.pings;
        self.window_chunks += other.window_chunks;
        self.measured_chunks += other.measured_chunks;
        self.coalesced += other.coalesced;
        self.live_ns += other.live_ns;
        self.future_stamps += other.future_stamps;
        self.stalled_cut += other.stalled_cut;
        self.head.merge(&other.head);
        self.first_event.merge(&other.first_event);
        self.relay.merge(&other.relay);
        self.interval.merge(&other.interval);
        self.jitter.merge(&other.jitter);
        self.max_gap.merge(&other.max_gap);
        self.start_delay.merge(&other.start_delay);
    }

    /// Streams that were not opened; those which our own end forestalled are not among them.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum::<u64>() - self.unfinished()
    }

    pub(crate) fn unfinished(&self) -> u64 {
        self.failures.get(&Failure::Unfinished).copied().unwrap_or(0)
    }

    pub(crate) fn ended(&self, end: End) -> u64 {
        self.ends.get(&end).copied().unwrap_or(0)
    }

    pub(crate) fn cut(&self) -> u64 {
        self.ends.iter().filter(|(end, _)| end.is_unclean()).map(|(_, count)| count).sum()
    }
}

fn add<K: Copy + Ord>(to: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *to.entry(*key).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(from: u64, to: u64) -> Tally {
        let mut tally = Tally { attempts: to - from, ..Tally::default() };
        for n in from..to {
            tally.relay.record_ns(n * n * 1000);
            *tally.ends.entry(End::ALL[(n % 9) as usize]).or_default() += 1;
            *tally.statuses.entry(500 + (n % 4) as u16).or_default() += 1;
        }
        tally
    }

    #[test]
    fn merging_parts_through_json_equals_the_whole() {
        let whole = part(0, 3000);
        let mut merged = Tally::default();
        for (from, to) in [(0, 1), (1, 1200), (1200, 3000)] {
            let text = serde_json::to_string(&part(from, to)).unwrap();
            merged.merge(&serde_json::from_str(&text).unwrap());
        }
        let json = |tally: &Tally| serde_json::to_string(tally).unwrap();
        assert_eq!(json(&merged), json(&whole));
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            let at = |tally: &Tally| tally.relay.get().value_at_quantile(quantile);
            assert_eq!(at(&merged), at(&whole));
        }
        assert_eq!(merged.attempts, 3000);
    }

    #[test]
    fn no_time_is_too_long_or_too_short_to_be_recorded() {
        let mut times = Times::default();
        [0, 1, 999, u64::MAX].into_iter().for_each(|ns| times.record_ns(ns));
        assert_eq!(times.get().len(), 4);
        assert!(times.get().max() >= TIME_MAX_US);
    }
}
