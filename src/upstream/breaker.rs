//! The circuit breaker of one endpoint: whether requests may go there now.
//!
//! The rule. While **closed**, requests pass and their outcomes of the last `window` are counted. It
//! opens when `consecutive` attempts in a row have failed, or when at least `requests` attempts fell
//! into the window and `share` of them or more failed. While **open**, nothing passes; that lasts
//! `open`, twice as long with each opening that no closing lay before, at most [`LONGEST`] times.
//! Then it is **half-open**: `probes` requests pass at once, and no others. As many successes close
//! it; a single failure opens it again.
//!
//! What failed is said by [`Attempt`]'s user: no connection, a connection that broke, a status that
//! tells of a server in trouble, a first byte that was late (`slow`). An attempt whose client left
//! says neither. One that began before the breaker last changed says nothing about what it is now.
//!
//! One breaker serves all workers: verdicts are shared. A lock per attempt, none per byte (20 ns when
//! nobody else holds it).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Moment;
use crate::config::BreakerRule;
use crate::telemetry::cells::BreakerState;

/// An opening lasts at most so many times `open`.
pub const LONGEST: u32 = 16;

/// The window is counted in so many parts, and moves on by one of them.
const PARTS: usize = 10;

/// See the module.
#[derive(Debug)]
pub struct Breaker {
    rule: BreakerRule,
    inner: Mutex<Inner>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: Moment },
    HalfOpen { probing: u32, passed: u32 },
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// How often the state has changed.
    era: u64,
    /// Openings without a closing between them.
    openings: u32,
    /// Failures in a row.
    row: u32,
    parts: [Part; PARTS],
    /// Which part of time, since the clock began, the last one counted is.
    latest: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    good: u32,
    bad: u32,
}

/// One request that may go to the endpoint; dropped without a verdict, it counts as neither.
#[derive(Debug)]
pub struct Attempt {
    breaker: Arc<Breaker>,
    era: u64,
    probe: bool,
    told: bool,
}

impl Breaker {
    /// A closed one.
    pub fn new(rule: BreakerRule) -> Arc<Breaker> {
        let inner = Inner {
            state: State::Closed,
            era: 0,
            openings: 0,
            row: 0,
            parts: Default::default(),
            latest: 0,
        };
        Arc::new(Breaker { rule, inner: Mutex::new(inner) })
    }

    /// A first byte that took longer is a failure.
    pub fn slow(&self) -> Option<Duration> {
        self.rule.slow
    }

    /// Lets one request pass, or not.
    ///
    /// # Errors
    /// How long until one may pass again; zero while others probe, whose end nobody knows.
    pub fn attempt(self: &Arc<Breaker>, now: Moment) -> Result<Attempt, Duration> {
        let mut inner = self.lock();
        inner.ripen(now);
        let probe = match &mut inner.state {
            State::Closed => false,
            State::Open { until } => return Err(until.since(now)),
            State::HalfOpen { probing, passed } if *probing + *passed < self.rule.probes => {
                *probing += 1;
                true
            }
            State::HalfOpen { .. } => return Err(Duration::ZERO),
        };
        Ok(Attempt { breaker: self.clone(), era: inner.era, probe, told: false })
    }

    /// What it is at `now`.
    pub fn state(&self, now: Moment) -> BreakerState {
        let mut inner = self.lock();
        inner.ripen(now);
        match inner.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What has been open long enough is half-open.
    fn ripen(&mut self, now: Moment) {
        if let State::Open { until } = self.state
            && now >= until
        {
            self.becomes(State::HalfOpen { probing: 0, passed: 0 });
        }
    }

    fn becomes(&mut self, state: State) {
        self.state = state;
        self.era += 1;
        self.row = 0;
        self.parts = Default::default();
    }

    fn opens(&mut self, rule: &BreakerRule, now: Moment) {
        let times = 1 << self.openings.min(LONGEST.ilog2());
        self.openings = self.openings.saturating_add(1);
        self.becomes(State::Open { until: now.after(rule.open.saturating_mul(times)) });
    }

    /// The part that `now` falls into; those that have left the window are emptied.
    fn part(&mut self, rule: &BreakerRule, now: Moment) -> &mut Part {
        let each = (rule.window.as_nanos() / PARTS as u128).clamp(1, u64::MAX.into()) as u64;
        let present = now.nanos() / each;
        let gone = present.saturating_sub(self.latest).min(PARTS as u64);
        for at in 1..=gone {
            self.parts[(self.latest + at) as usize % PARTS] = Part::default();
        }
        if gone == PARTS as u64 {
            self.parts = Default::default();
        }
        self.latest = self.latest.max(present);
        &mut self.parts[self.latest as usize % PARTS]
    }

    fn counted(&mut self, rule: &BreakerRule, good: bool, now: Moment) {
        let part = self.part(rule, now);
        if good {
            part.good = part.good.saturating_add(1);
            self.row = 0;
            return;
        }
        part.bad = part.bad.saturating_add(1);
        self.row = self.row.saturating_add(1);
        let sum = |of: fn(&Part) -> u32| self.parts.iter().map(|part| u64::from(of(part))).sum();
        let (good, bad): (u64, u64) = (sum(|part| part.good), sum(|part| part.bad));
        let enough = good + bad >= u64::from(rule.requests);
        let share = bad as f64 / (good + bad) as f64 >= rule.share;
        if self.row >= rule.consecutive || (enough && share) {
            self.opens(rule, now);
        }
    }
}

impl Attempt {
    /// It answered as it should.
    pub fn succeeded(self, now: Moment) {
        self.tell(true, now);
    }

    /// It did not.
    pub fn failed(self, now: Moment) {
        self.tell(false, now);
    }

    fn tell(mut self, good: bool, now: Moment) {
        self.told = true;
        let rule = self.breaker.rule;
        let mut inner = self.breaker.lock();
        if inner.era != self.era {
            return;
        }
        match &mut inner.state {
            State::Closed => inner.counted(&rule, good, now),
            State::HalfOpen { .. } if !good => inner.opens(&rule, now),
            State::HalfOpen { probing, passed } => {
                *probing -= 1;
                *passed += 1;
                if *passed >= rule.probes {
                    inner.openings = 0;
                    inner.becomes(State::Closed);
                }
            }
            // Nothing passes while it is open, so an attempt of this era does not exist.
            State::Open { .. } => {}
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.told || !self.probe {
            return;
        }
        let mut inner = self.breaker.lock();
        if inner.era == self.era
            && let State::HalfOpen { probing, .. } = &mut inner.state
        {
            *probing -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULE: BreakerRule = BreakerRule {
        window: Duration::from_secs(10),
        requests: 10,
        share: 0.5,
        consecutive: 5,
        slow: None,
        open: Duration::from_secs(4),
        probes: 2,
    };

    fn at(millis: u64) -> Moment {
        Moment::default().after(Duration::from_millis(millis))
    }

    fn go(breaker: &Arc<Breaker>, good: bool, millis: u64) {
        let attempt = breaker.attempt(at(millis)).expect("it lets pass");
        if good { attempt.succeeded(at(millis)) } else { attempt.failed(at(millis)) }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let breaker = Breaker::new(BreakerRule { requests: 1000, ..RULE });
        (0..4).for_each(|_| go(&breaker, false, 0));
        go(&breaker, true, 0);
        (0..4).for_each(|_| go(&breaker, false, 0));
        assert_eq!(breaker.state(at(0)), BreakerState::Closed);
        go(&breaker, false, 0);
        assert_eq!(breaker.state(at(0)), BreakerState::Open);
        let wait = breaker.attempt(at(1000)).expect_err("it is open");
        assert_eq!(wait, Duration::from_secs(3));
    }

    #[test]
    fn a_share_of_the_window_opens_it_only_when_enough_were_asked() {
        let breaker = Breaker::new(RULE);
        // Half of nine.
        for at in 0..9 {
            go(&breaker, at % 2 == 1, 0);
        }
        assert_eq!(breaker.state(at(0)), BreakerState::Closed);
        go(&breaker, false, 0);
        assert_eq!(breaker.state(at(0)), BreakerState::Open);
    }

    #[test]
    fn what_has_left_the_window_does_not_count() {
        let breaker = Breaker::new(RULE);
        for at in 0..9 {
            go(&breaker, at % 2 == 1, 0);
        }
        // Only these are in the window then: one failure of ten.
        (0..9).for_each(|_| go(&breaker, true, 10_000));
        go(&breaker, false, 19_999);
        assert_eq!(breaker.state(at(19_999)), BreakerState::Closed);
        // A clock that goes back, or far ahead, changes nothing and does no harm.
        go(&breaker, true, 0);
        go(&breaker, false, u64::MAX / 2_000_000);
    }

    #[test]
    fn half_open_lets_its_probes_pass_and_closes_by_as_many_successes() {
        let breaker = Breaker::new(RULE);
        (0..5).for_each(|_| go(&breaker, false, 0));
        assert!(breaker.attempt(at(3_999)).is_err());
        let first = breaker.attempt(at(4_000)).expect("a probe");
        let second = breaker.attempt(at(4_000)).expect("another");
        assert_eq!(breaker.attempt(at(4_000)).expect_err("no third"), Duration::ZERO);
        assert_eq!(breaker.state(at(4_000)), BreakerState::HalfOpen);
        first.succeeded(at(4_001));
        assert!(breaker.attempt(at(4_001)).is_err(), "the second is still to tell");
        // Its client left: another may try.
        drop(second);
        go(&breaker, true, 4_002);
        assert_eq!(breaker.state(at(4_002)), BreakerState::Closed);
        // And the time that it is open begins anew.
        (0..5).for_each(|_| go(&breaker, false, 5_000));
        assert_eq!(breaker.state(at(9_000)), BreakerState::HalfOpen);
    }

    #[test]
    fn each_opening_in_a_row_lasts_twice_as_long_up_to_a_bound() {
        let breaker = Breaker::new(RULE);
        (0..5).for_each(|_| go(&breaker, false, 0));
        let mut now = 0;
        for times in [1, 2, 4, 8, 16, 16, 16] {
            assert!(breaker.attempt(at(now + times * 4_000 - 1)).is_err(), "{times}");
            now += times * 4_000;
            go(&breaker, false, now);
        }
    }

    #[test]
    fn an_attempt_from_before_says_nothing_about_now() {
        let breaker = Breaker::new(RULE);
        let old: Vec<_> = (0..20).map(|_| breaker.attempt(at(0)).expect("closed")).collect();
        (0..5).for_each(|_| go(&breaker, false, 0));
        let probe = breaker.attempt(at(4_000)).expect("a probe");
        for (n, attempt) in old.into_iter().enumerate() {
            match n % 3 {
                0 => attempt.failed(at(4_000)),
                1 => attempt.succeeded(at(4_000)),
                _ => drop(attempt),
            }
        }
        assert_eq!(breaker.state(at(4_000)), BreakerState::HalfOpen);
        probe.succeeded(at(4_000));
        go(&breaker, true, 4_000);
        assert_eq!(breaker.state(at(4_000)), BreakerState::Closed);
    }

    proptest! {
        /// Whatever happens, it is never stuck: some time later a request passes, and while half-open
        /// never more than its probes are on their way.
        #[test]
        fn it_always_comes_back(steps in prop::collection::vec((0u8..4, 0u64..3_000), 1..300)) {
            let breaker = Breaker::new(RULE);
            let (mut now, mut under_way) = (0, Vec::new());
            for (step, wait) in steps {
                now += wait;
                match (step, under_way.is_empty()) {
                    (0, _) | (_, true) => under_way.extend(breaker.attempt(at(now))),
                    (1, _) => under_way.swap_remove(0).succeeded(at(now)),
                    (2, _) => under_way.swap_remove(0).failed(at(now)),
                    _ => drop(under_way.swap_remove(0)),
                }
                if breaker.state(at(now)) == BreakerState::HalfOpen {
                    let era = breaker.lock().era;
                    let probes = under_way.iter().filter(|attempt| attempt.era == era).count();
                    prop_assert!(probes as u32 <= RULE.probes);
                }
            }
            under_way.clear();
            let late = now + 4_000 * u64::from(LONGEST);
            prop_assert!(breaker.attempt(at(late)).is_ok());
        }
    }
}
