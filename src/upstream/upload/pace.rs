//! How long a client lets its request's body be waited for, and when that is too long.
//!
//! Only time in which the client was asked and had nothing counts: while the upstream, or a queue,
//! holds the body up, its client is not late. Cost: 32 bytes; one comparison when bytes come, some
//! additions when none are there.

use std::time::Duration;

use crate::limits;
use crate::upstream::upload::UploadError;
use crate::wire::wheel::Tick;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// `limits.body_time`.
    time: Duration,
    /// `limits.body_rate`, bytes per second; 0 = any.
    rate: u64,
    /// Ticks waited for the client until now, but for the wait that lasts.
    waited: u32,
    /// Since when it is waited for.
    since: Option<Tick>,
}

impl Pace {
    pub(super) fn new(time: Duration, rate: u64) -> Pace {
        Pace { time, rate, waited: 0, since: None }
    }

    /// Something came at `now`.
    pub(super) fn came(&mut self, now: Tick) {
        if let Some(since) = self.since.take() {
            self.waited = self.waited.saturating_add(now.0.saturating_sub(since.0));
        }
    }

    /// Nothing is there at `now`, after `bytes` bytes: when to look again.
    ///
    /// # Errors
    /// The client is too slow.
    pub(super) fn waits(&mut self, now: Tick, bytes: u64) -> Result<Tick, UploadError> {
        let since = *self.since.get_or_insert(now);
        let Pace { time, rate, waited, .. } = *self;
        // Of a limit on the whole time, what the waits before this one have left.
        let whole = |limit: Duration| {
            Tick(since.0.saturating_add(Tick(0).after(limit).0.saturating_sub(waited)))
        };
        let all = [
            (Some(since.after(limits::CLIENT_BODY_IDLE)), UploadError::Idle),
            (Some(whole(time)), UploadError::Late { time }),
            (self.enough(bytes).map(whole), UploadError::Slow { rate }),
        ];
        let soonest = all.into_iter().filter_map(|(due, error)| Some((due?, error)));
        let (due, error) =
            soonest.min_by_key(|(due, _)| *due).expect("two of them are always there");
        if now >= due { Err(error) } else { Ok(due) }
    }

    /// For how long `bytes` bytes are enough.
    fn enough(&self, bytes: u64) -> Option<Duration> {
        let millis = bytes.saturating_mul(1000).checked_div(self.rate)?;
        Some(Duration::from_millis(millis).max(limits::BODY_RATE_GRACE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u32 = 10;

    fn at(seconds: u32) -> Tick {
        Tick(1000 + seconds * SECOND)
    }

    #[test]
    fn a_quiet_client_is_given_up_after_the_longest_pause() {
        let mut pace = Pace::new(Duration::from_secs(600), 0);
        assert_eq!(pace.waits(at(0), 0), Ok(at(30)));
        assert_eq!(pace.waits(at(29), 0), Ok(at(30)));
        assert_eq!(pace.waits(at(30), 0), Err(UploadError::Idle));
        pace.came(at(30));
        assert_eq!(pace.waits(at(31), 1), Ok(at(61)));
    }

    #[test]
    fn the_whole_time_counts_only_what_the_client_took() {
        let time = Duration::from_secs(20);
        let mut pace = Pace::new(time, 0);
        assert_eq!(pace.waits(at(0), 0), Ok(at(20)));
        pace.came(at(15));
        // A minute in which the upstream took nothing.
        assert_eq!(pace.waits(at(75), 1), Ok(at(80)));
        assert_eq!(pace.waits(at(80), 1), Err(UploadError::Late { time }));
    }

    #[test]
    fn the_rate_is_an_average_after_a_grace() {
        let mut pace = Pace::new(Duration::from_secs(600), 100);
        let grace = u32::try_from(limits::BODY_RATE_GRACE.as_secs()).expect("seconds");
        assert_eq!(pace.waits(at(0), 0), Ok(at(grace)));
        pace.came(at(1));
        // 2,000 bytes are enough for 20 seconds.
        assert_eq!(pace.waits(at(1), 2000), Ok(at(20)));
        assert_eq!(pace.waits(at(20), 2000), Err(UploadError::Slow { rate: 100 }));
        let mut steady = Pace::new(Duration::from_secs(600), 100);
        for second in 0..300_u32 {
            assert!(steady.waits(at(second), u64::from(second) * 101).is_ok(), "{second}");
            steady.came(at(second + 1));
        }
    }

    #[test]
    fn drops_of_a_byte_do_not_help() {
        let (mut pace, mut now) = (Pace::new(Duration::from_secs(600), 256), at(0));
        for bytes in 0.. {
            if let Err(error) = pace.waits(now, bytes) {
                assert_eq!(error, UploadError::Slow { rate: 256 });
                break;
            }
            now = Tick(now.0 + 1);
            pace.came(now);
        }
        let took = now.since(at(0));
        assert!(took <= limits::BODY_RATE_GRACE + limits::TICK, "{took:?}");
    }
}
