//! Token buckets: so many a second, so many at once.
//!
//! A bucket is one number, the moment at which it will be full again (GCRA, the generic cell rate
//! algorithm of ITU-T I.371, with that moment as its theoretical arrival time): a token taken moves
//! it on by the time in which a token comes back. Nothing is refilled by a timer and no fraction is
//! lost between two calls. Invariant: over any span of time the grants, less what was given back,
//! are at most `burst` + rate × span, whatever order threads come in and whoever's time is behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Moment;

/// Times are kept in sixteenths of a nanosecond: an interval between tokens is rounded up to one of
/// them, which makes a rate of a million a second at most 0.007 % slow, and they last for 36 years.
const FINE: u64 = 16;

/// The longest time to fill an empty bucket, nine years; a burst that would take longer is cut to it,
/// so that no sum below overflows.
const DEEPEST: u64 = 1 << 62;

/// A moment as buckets count it, [`FINE`] parts of a nanosecond.
pub(super) fn fine(now: Moment) -> u64 {
    now.nanos().saturating_mul(FINE)
}

/// What a bucket allows. A bucket itself is a number `full_at`: when it is full again, [`fine`]; one
/// that lies in the past, such as 0, is a full bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// The time in which a token comes back.
    interval: u64,
    /// The time in which an empty bucket fills; 0 grants nothing.
    depth: u64,
}

impl Pace {
    /// `count` tokens in each `per`, `burst` at most at once; a burst of 0 means `count`. A `count`
    /// of 0 grants nothing.
    pub(super) fn new(count: u32, per: Duration, burst: u32) -> Pace {
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX).saturating_mul(FINE);
        let interval = per.div_ceil(u64::from(count.max(1))).clamp(1, DEEPEST);
        let burst = match (count, burst) {
            (0, _) => 0,
            (count, 0) => count,
            (_, burst) => burst,
        };
        Pace { interval, depth: u64::from(burst).min(DEEPEST / interval) * interval }
    }

    /// The bucket after `tokens` more. More of them than it can ever hold are granted by a full bucket
    /// only, and leave it in debt.
    ///
    /// # Errors
    /// How long until it would grant them, if nobody else comes; `Duration::MAX` if never.
    pub(super) fn take(self, full_at: u64, tokens: u64, now: u64) -> Result<u64, Duration> {
        if self.depth == 0 {
            return Err(Duration::MAX);
        }
        let needed = tokens.saturating_mul(self.interval).min(self.depth);
        match full_at.saturating_sub(now).saturating_sub(self.depth - needed) {
            0 => Ok(self.charge(full_at, tokens, now)),
            early => Err(Duration::from_nanos(early.div_ceil(FINE))),
        }
    }

    /// The bucket after `tokens` that are not asked for but gone: it may be left in debt.
    pub(super) fn charge(self, full_at: u64, tokens: u64, now: u64) -> u64 {
        full_at.max(now).saturating_add(tokens.saturating_mul(self.interval))
    }

    /// The bucket with `tokens` put back; what it cannot hold is lost.
    pub(super) fn give_back(self, full_at: u64, tokens: u64) -> u64 {
        full_at.saturating_sub(tokens.saturating_mul(self.interval))
    }

    /// How many tokens are there; none in a bucket in debt.
    pub(super) fn remaining(self, full_at: u64, now: u64) -> u32 {
        let left = self.depth.saturating_sub(full_at.saturating_sub(now)) / self.interval;
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// The bucket of this pace that holds what one of the pace `old` holds, or owes, as far as it
    /// can hold that.
    fn convert(self, old: Pace, full_at: u64, now: u64) -> u64 {
        let held = i128::from(old.depth) - i128::from(full_at.saturating_sub(now));
        let held = (held * i128::from(self.interval)).div_euclid(i128::from(old.interval));
        let missing = (i128::from(self.depth) - held).max(0);
        now.saturating_add(u64::try_from(missing).unwrap_or(u64::MAX))
    }
}

/// A token bucket that all workers share. One atomic update to take; 40 bytes.
#[derive(Debug)]
pub struct Rate {
    /// The bucket, see [`Pace`].
    full_at: AtomicU64,
    /// Count and burst, 32 bits each, so that they change together.
    limit: AtomicU64,
    per: Duration,
    /// Held by who changes the limit.
    changing: Mutex<()>,
}

impl Rate {
    /// A full bucket of `burst` tokens, of which `per_second` come back each second. A burst of 0
    /// means one second's worth; 0 per second grants nothing, ever.
    pub fn new(per_second: u32, burst: u32) -> Rate {
        Rate::per(Duration::from_secs(1), per_second, burst)
    }

    /// The same with `count` tokens in each `per`.
    pub(super) fn per(per: Duration, count: u32, burst: u32) -> Rate {
        let limit = AtomicU64::new(pack(count, burst));
        Rate { full_at: AtomicU64::new(0), limit, per, changing: Mutex::new(()) }
    }

    /// Changes the limit at `now`. What the bucket holds or owes stays, as far as it fits: a reload is
    /// no refill. A `take` that falls into the change itself is judged by the stricter of what is and
    /// what will be, and charged the price of either; only one that sleeps through two changes, and
    /// wakes to the very same bucket, may be judged by the limit between them.
    pub fn set(&self, per_second: u32, burst: u32, now: Moment) {
        self.change(per_second, burst, now, || ());
    }

    /// `set`, and `between` its two steps.
    fn change(&self, count: u32, burst: u32, now: Moment, between: impl FnOnce()) {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (old, limit, now) = (self.pace(), pack(count, burst), fine(now));
        let new = self.pace_of(limit);
        let convert = |full_at| new.convert(old, full_at, now);
        // Takers read the bucket first and the limit second. Between our two steps they find the
        // later of the two times with the other limit, which is the stricter pair.
        let full_at = self.full_at.load(Ordering::Acquire);
        let stricter = convert(full_at) > full_at;
        if stricter {
            self.full_at.update(Ordering::AcqRel, Ordering::Acquire, convert);
            between();
            self.limit.store(limit, Ordering::Release);
        } else {
            self.limit.store(limit, Ordering::Release);
            between();
            self.full_at.update(Ordering::AcqRel, Ordering::Acquire, convert);
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long until one is there, if nobody else comes; `Duration::MAX` if never.
    pub fn take(&self, now: Moment) -> Result<(), Duration> {
        self.take_many(1, now)
    }

    /// Takes `tokens`, or more than the bucket can ever hold from a full one; errors as for `take`.
    pub(super) fn take_many(&self, tokens: u64, now: Moment) -> Result<(), Duration> {
        let now = fine(now);
        let mut refused = Ok(());
        let _ = self.full_at.try_update(Ordering::AcqRel, Ordering::Acquire, |full_at| {
            let taken = self.pace().take(full_at, tokens, now);
            refused = taken.map(drop);
            taken.ok()
        });
        refused
    }

    /// Takes `tokens` that are gone already; the bucket may be left in debt.
    pub fn charge(&self, tokens: u64, now: Moment) {
        let now = fine(now);
        self.full_at.update(Ordering::AcqRel, Ordering::Acquire, |full_at| {
            self.pace().charge(full_at, tokens, now)
        });
    }

    /// Puts a token back, because a limit that came later refused; never above the burst.
    pub fn give_back(&self) {
        self.give_back_many(1);
    }

    /// Puts `tokens` back; never above the burst.
    pub(super) fn give_back_many(&self, tokens: u64) {
        self.full_at.update(Ordering::AcqRel, Ordering::Acquire, |full_at| {
            self.pace().give_back(full_at, tokens)
        });
    }

    /// How many tokens are there.
    pub fn remaining(&self, now: Moment) -> u32 {
        let full_at = self.full_at.load(Ordering::Acquire);
        self.pace().remaining(full_at, fine(now))
    }

    /// How many tokens come back in a second (in a minute, for [`super::tokens::Tokens`]).
    pub fn limit(&self) -> u32 {
        unpack(self.limit.load(Ordering::Acquire)).0
    }

    fn pace(&self) -> Pace {
        self.pace_of(self.limit.load(Ordering::Acquire))
    }

    fn pace_of(&self, limit: u64) -> Pace {
        let (count, burst) = unpack(limit);
        Pace::new(count, self.per, burst)
    }
}

fn pack(count: u32, burst: u32) -> u64 {
    u64::from(count) << 32 | u64::from(burst)
}

fn unpack(limit: u64) -> (u32, u32) {
    ((limit >> 32) as u32, limit as u32)
}

#[cfg(test)]
mod tests;
