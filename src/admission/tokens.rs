//! Tokens per minute of one tenant and model: reserved before a request, settled after it.
//!
//! What a request will use is not known when it is let in, so an estimate is taken from the bucket,
//! and the difference when the upstream has said what it was. Invariant: a [`Reservation`] is
//! settled once at most, since settling consumes it; one that is dropped leaves its estimate charged.

use std::sync::Arc;
use std::time::Duration;

use crate::admission::rate::Rate;
use crate::clock::Moment;
use crate::limits::TOKEN_MINUTES;

/// A minute's worth of tokens, shared by all workers. Lock-free as [`Rate`] is.
#[derive(Debug)]
pub struct Tokens(Rate);

/// An estimate that is taken from its bucket, 16 bytes. Dropped, it stays charged, because a request
/// that may have reached the upstream may have used it.
#[derive(Debug)]
#[must_use = "dropped, the whole estimate stays charged"]
pub struct Reservation {
    tokens: Arc<Tokens>,
    /// What was taken.
    taken: u64,
}

impl Tokens {
    /// A full bucket of `per_minute` tokens, which come back within a minute; 0 grants nothing.
    pub fn new(per_minute: u32) -> Arc<Tokens> {
        Arc::new(Tokens(Rate::per(Duration::from_secs(60), per_minute, 0)))
    }

    /// Changes the limit at `now`; what is left or owed stays as far as it fits.
    pub fn set(&self, per_minute: u32, now: Moment) {
        self.0.set(per_minute, 0, now);
    }

    /// Takes `estimate` tokens. An estimate above the whole limit is granted by a full bucket only and
    /// leaves it in debt: it waits for its turn, but is not refused for ever.
    ///
    /// # Errors
    /// How long until the estimate would be granted, if nobody else comes; `Duration::MAX` if never,
    /// at a limit of 0.
    pub fn reserve(
        self: &Arc<Tokens>,
        estimate: u64,
        now: Moment,
    ) -> Result<Reservation, Duration> {
        let taken = self.at_most(estimate);
        self.0.take_many(taken, now)?;
        Ok(Reservation { tokens: self.clone(), taken })
    }

    /// How many tokens are left; none in debt.
    pub fn remaining(&self, now: Moment) -> u32 {
        self.0.remaining(now)
    }

    /// Tokens per minute.
    pub fn limit(&self) -> u32 {
        self.0.limit()
    }

    fn at_most(&self, tokens: u64) -> u64 {
        tokens.min(u64::from(self.limit()) * u64::from(TOKEN_MINUTES))
    }
}

impl Reservation {
    /// Charges what was used in place of the estimate: more may leave a debt, less comes back, never
    /// above the limit. At most [`TOKEN_MINUTES`] of the limit are charged.
    pub fn settle(self, actual: u64, now: Moment) {
        let actual = self.tokens.at_most(actual);
        match actual.checked_sub(self.taken) {
            Some(more) => self.tokens.0.charge(more, now),
            None => self.tokens.0.give_back_many(self.taken - actual),
        }
    }

    /// Puts the whole estimate back: nothing reached the upstream.
    pub fn cancel(self) {
        self.tokens.0.give_back_many(self.taken);
    }
}

#[cfg(test)]
mod tests;
