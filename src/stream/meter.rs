//! What one stream's timing looks like: first event, intervals, their spread, the largest gap.
//!
//! Cost: one subtraction and a few float operations per event (Welford's running variance).

use std::time::Duration;

use crate::clock::Moment;

/// Running figures of one stream.
#[derive(Debug, Default)]
pub struct Meter {
    /// Of use once there was an event.
    first: Moment,
    last: Moment,
    /// Data events so far; from 2^32 on, that many.
    events: u32,
    intervals: u32,
    mean: f32,
    spread: f32,
    max_gap_ns: u64,
}

impl Meter {
    /// Notes `events` events that arrived together at `now`; returns the interval since the ones
    /// before, `None` for the first.
    pub fn events(&mut self, events: u32, now: Moment) -> Option<Duration> {
        if events == 0 {
            return None;
        }
        let seen = self.events;
        self.events = seen.saturating_add(events);
        if seen == 0 {
            (self.first, self.last) = (now, now);
            return None;
        }
        let gap = now.since(self.last);
        self.last = now;
        let gap_ns = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX);
        self.max_gap_ns = self.max_gap_ns.max(gap_ns);
        self.intervals = self.intervals.saturating_add(1);
        let seconds = gap.as_secs_f32();
        let off = seconds - self.mean;
        self.mean += off / self.intervals as f32;
        self.spread += off * (seconds - self.mean);
        Some(gap)
    }

    /// When the first event came.
    pub fn first(&self) -> Option<Moment> {
        (self.events > 0).then_some(self.first)
    }

    /// Data events so far.
    pub fn count(&self) -> u64 {
        self.events.into()
    }

    /// The longest time between two arrivals; `None` before the second.
    pub fn max_gap(&self) -> Option<Duration> {
        (self.intervals > 0).then_some(Duration::from_nanos(self.max_gap_ns))
    }

    /// Standard deviation of the intervals; `None` before there are two.
    pub fn jitter(&self) -> Option<Duration> {
        (self.intervals > 1).then(|| {
            let variance = (self.spread / self.intervals as f32).max(0.0);
            Duration::from_secs_f32(variance.sqrt())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_gap_and_jitter_agree_with_a_known_pacing() {
        let mut meter = Meter::default();
        let at = |ms| Moment::default().after(Duration::from_millis(ms));
        assert_eq!(meter.events(1, at(1000)), None);
        assert_eq!((meter.max_gap(), meter.jitter()), (None, None));
        assert_eq!(meter.events(1, at(1010)), Some(Duration::from_millis(10)));
        assert_eq!(meter.events(2, at(1040)), Some(Duration::from_millis(30)));
        assert_eq!(meter.count(), 4);
        assert_eq!(meter.max_gap(), Some(Duration::from_millis(30)));
        let jitter = meter.jitter().expect("two intervals").as_secs_f32();
        assert!((jitter - 0.010).abs() < 1e-5, "{jitter}");
    }
}
