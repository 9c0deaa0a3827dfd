//! The bucket against a plain model that refills step by step, and against its promise; and threads.

use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;

fn at(nanos: u64) -> Moment {
    Moment::default().after(Duration::from_nanos(nanos))
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Takes until refused.
fn drain(rate: &Rate, now: Moment) -> u32 {
    let mut taken = 0;
    while rate.take(now).is_ok() {
        taken += 1;
    }
    taken
}

#[test]
fn a_burst_at_once_and_then_the_rate() {
    let rate = Rate::new(10, 3);
    assert_eq!((rate.limit(), rate.remaining(at(0))), (10, 3));
    assert_eq!(drain(&rate, at(0)), 3);
    assert_eq!((rate.take(at(0)), rate.remaining(at(0))), (Err(millis(100)), 0));
    assert_eq!(rate.take(at(40_000_000)), Err(millis(60)));
    assert_eq!(rate.take(at(99_999_999)), Err(Duration::from_nanos(1)));
    assert_eq!(rate.take(at(100_000_000)), Ok(()));
    assert_eq!(rate.remaining(at(299_999_999)), 1);
    assert_eq!(drain(&rate, at(1_000_000_000_000)), 3, "never more than the burst");
    assert_eq!(size_of::<Rate>(), 40);
}

#[test]
fn no_burst_is_one_second_and_no_rate_is_nothing() {
    assert_eq!(drain(&Rate::new(7, 0), at(5)), 7);
    for nothing in [Rate::new(0, 0), Rate::new(0, 9)] {
        assert_eq!(nothing.take(at(1)), Err(Duration::MAX));
        assert_eq!((nothing.remaining(at(1)), nothing.limit()), (0, 0));
    }
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    for (per_second, burst) in [(1, u32::MAX), (u32::MAX, 1), (u32::MAX, u32::MAX), (u32::MAX, 0)] {
        let rate = Rate::new(per_second, burst);
        for now in [at(0), at(1), at(u64::MAX / FINE / 2)] {
            assert_eq!(rate.take(now), Ok(()), "{per_second} {burst}");
            rate.give_back();
        }
        let now = at(u64::MAX / FINE / 2);
        rate.charge(u64::MAX, now);
        assert_eq!(rate.remaining(now), 0);
        assert!(rate.take(now).is_err());
        rate.set(1, 1, now);
        assert!(rate.take(now).is_err(), "a debt stays");
    }
    let deep = Rate::new(1, u32::MAX);
    let years = f64::from(deep.remaining(at(0))) / 3600.0 / 24.0 / 365.0;
    assert!((9.0..10.0).contains(&years), "{years}");
}

#[test]
fn a_given_back_token_never_overfills() {
    let rate = Rate::new(1, 2);
    rate.take(at(0)).unwrap();
    rate.give_back();
    rate.give_back();
    assert_eq!(drain(&rate, at(0)), 2);
    rate.give_back();
    assert_eq!(drain(&rate, at(0)), 1);
    // Refilled meanwhile: nothing to add.
    rate.give_back();
    assert_eq!(drain(&rate, at(60_000_000_000)), 2);
}

#[test]
fn a_reload_is_no_refill() {
    let second = |n: u64| at(n * 1_000_000_000);
    // Slower: what was empty stays so, in the new tokens.
    let rate = Rate::new(100, 100);
    drain(&rate, second(0));
    rate.set(1, 100, second(0));
    assert_eq!((rate.limit(), rate.take(second(0))), (1, Err(millis(1000))));
    // Faster: as well, and nobody waits for the old one.
    rate.set(1000, 10, second(0));
    assert_eq!(rate.take(second(0)), Err(millis(1)));
    // A larger bucket has no more in it, a smaller one what fits.
    assert_eq!(rate.remaining(second(1)), 10);
    rate.set(1000, 500, second(1));
    assert_eq!(rate.remaining(second(1)), 10);
    rate.set(5, 4, second(1));
    assert_eq!(rate.remaining(second(1)), 4);
    // Nothing at all for a time, and then from an empty bucket.
    rate.set(0, 0, second(1));
    assert_eq!(rate.take(second(9)), Err(Duration::MAX));
    rate.set(10, 10, second(9));
    assert_eq!(rate.take(second(9)), Err(millis(100)));
    // A debt is kept in tokens.
    rate.charge(20, second(9));
    rate.set(20, 10, second(9));
    assert_eq!(rate.take(second(9)), Err(millis(21 * 50)));
}

#[test]
fn between_the_steps_of_a_reload_nothing_is_granted_that_is_not_there() {
    let limits = [(100, 10), (1000, 5), (10, 500), (1, 1), (100, 1000), (7, 3)];
    for (old, new) in limits.iter().flat_map(|old| limits.map(|new| (*old, new))) {
        let (rate, mut seen) = (Rate::new(old.0, old.1), None);
        drain(&rate, at(5));
        rate.change(new.0, new.1, at(5), || seen = Some(rate.take(at(5))));
        assert!(matches!(seen, Some(Err(_))), "{old:?} to {new:?}: {seen:?}");
        // Nor from a full bucket more than it holds.
        let (rate, mut seen) = (Rate::new(old.0, old.1), 0);
        rate.change(new.0, new.1, at(5), || seen = rate.remaining(at(5)));
        assert!(seen <= old.1, "{old:?} to {new:?}: {seen}");
    }
}

/// What a bucket does, written the other way round: it holds something and is refilled.
struct Model {
    interval: u64,
    depth: u64,
    held: i128,
    then: u64,
}

impl Model {
    fn new(per_second: u32, burst: u32) -> Model {
        let interval = 16_000_000_000_u64.div_ceil(u64::from(per_second));
        let depth = interval * u64::from(if burst == 0 { per_second } else { burst });
        Model { interval, depth, held: i128::from(depth), then: 0 }
    }

    fn add(&mut self, n: u64) {
        self.held = (self.held + i128::from(n)).min(i128::from(self.depth));
    }

    fn refill(&mut self, nanos: u64) {
        self.add((nanos - self.then) * 16);
        self.then = nanos;
    }

    fn take(&mut self) -> Result<(), Duration> {
        match i128::from(self.interval) - self.held {
            missing if missing > 0 => Err(Duration::from_nanos((missing as u64).div_ceil(16))),
            _ => {
                self.held -= i128::from(self.interval);
                Ok(())
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Take,
    GiveBack,
    Charge(u64),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::Take),
        2 => Just(Op::GiveBack),
        1 => (0..20_u64).prop_map(Op::Charge),
        3 => prop_oneof![0..1000_u64, 0..2_000_000_000_u64, 0..100_000_000_000_u64].prop_map(Op::Wait),
    ]
}

fn limits() -> impl Strategy<Value = (u32, u32)> {
    (prop_oneof![1..20_u32, 1..5000_u32, 1..5_000_000_u32], prop_oneof![0..10_u32, 0..5000_u32])
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(
        (per_second, burst) in limits(),
        ops in proptest::collection::vec(op(), 1..200),
    ) {
        let (rate, mut model) = (Rate::new(per_second, burst), Model::new(per_second, burst));
        let mut now = 0;
        for op in ops {
            match op {
                Op::Take => prop_assert_eq!(rate.take(at(now)), model.take()),
                Op::GiveBack => {
                    rate.give_back();
                    model.add(model.interval);
                }
                Op::Charge(tokens) => {
                    rate.charge(tokens, at(now));
                    model.held -= i128::from(tokens * model.interval);
                }
                Op::Wait(nanos) => {
                    now += nanos;
                    model.refill(now);
                }
            }
            let remaining = model.held.max(0) / i128::from(model.interval);
            prop_assert_eq!(i128::from(rate.remaining(at(now))), remaining);
        }
    }

    /// The promise, in exact numbers, with callers whose times jump back and forth.
    #[test]
    fn no_window_has_more_than_burst_and_rate(
        (per_second, burst) in limits(),
        times in proptest::collection::vec(0..3_000_000_000_u64, 1..120),
        each in 1..20_u32,
    ) {
        let rate = Rate::new(per_second, burst);
        let mut grants = Vec::new();
        for time in times {
            grants.extend((0..each).filter(|_| rate.take(at(time)).is_ok()).map(|_| time));
        }
        grants.sort_unstable();
        let burst = u128::from(if burst == 0 { per_second } else { burst });
        let billion = 1_000_000_000;
        for (first, from) in grants.iter().enumerate() {
            for (n, to) in grants[first..].iter().enumerate() {
                let most = burst * billion + u128::from(per_second) * u128::from(to - from);
                prop_assert!((n as u128 + 1) * billion <= most, "{} in {}..{}", n + 1, from, to);
            }
        }
    }

    /// Each wait is enough, and one nanosecond less is not.
    #[test]
    fn a_wait_is_exact((per_second, burst) in limits(), start in 0..u64::from(u32::MAX)) {
        let rate = Rate::new(per_second, burst);
        let mut now = at(start);
        drain(&rate, now);
        for _ in 0..50 {
            let wait = rate.take(now).expect_err("just emptied");
            prop_assert!(!wait.is_zero());
            prop_assert!(rate.take(now.after(wait - Duration::from_nanos(1))).is_err());
            now = now.after(wait);
            prop_assert_eq!(rate.take(now), Ok(()));
        }
    }

    #[test]
    fn a_reload_neither_adds_nor_takes_tokens(
        (old, old_burst) in limits(),
        (new, new_burst) in limits(),
        taken in 0..6000_u32,
        now in 0..u64::from(u32::MAX),
    ) {
        let (rate, now) = (Rate::new(old, old_burst), at(now));
        for _ in 0..taken {
            let _ = rate.take(now);
        }
        let fits = rate.remaining(now).min(if new_burst == 0 { new } else { new_burst });
        rate.set(new, new_burst, now);
        let left = rate.remaining(now);
        // The conversion may round a sixteenth of a nanosecond, and so one token, away.
        prop_assert!(left == fits || left + 1 == fits, "{left} of {fits}");
        prop_assert_eq!(rate.limit(), new);
    }
}

/// Runs `work` on four threads at once and sums what they return.
fn four(work: impl Fn(u64) -> u64 + Sync) -> u64 {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn({
                    let work = &work;
                    move || work(n)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    })
}

#[test]
fn threads_share_a_burst_exactly() {
    let rate = Rate::new(1, 100_000);
    let granted = four(|_| (0..50_000).filter(|_| rate.take(at(0)).is_ok()).count() as u64);
    assert_eq!(granted, 100_000);
    assert_eq!(rate.remaining(at(0)), 0);
}

#[test]
fn threads_give_back_exactly() {
    let rate = Rate::new(1, 1_000_000);
    let kept = four(|n| {
        let mut kept = 0;
        for i in 0..50_000 {
            rate.take(at(0)).expect("enough for all");
            if i % (n + 2) == 0 {
                kept += 1;
            } else {
                rate.give_back();
            }
        }
        kept
    });
    assert_eq!(u64::from(rate.remaining(at(0))), 1_000_000 - kept);
}

/// Each thread runs through its own time, so that they are ahead of and behind one another.
#[test]
fn threads_with_times_of_their_own_get_no_more() {
    let (rate, end) = (Rate::new(1_000_000, 10), 20_000_000);
    let granted = four(|n| {
        let step = 97 + n * 13;
        (0..end / step).filter(|i| rate.take(at(i * step)).is_ok()).count() as u64
    });
    assert!(granted <= 10 + end / 1000, "{granted}");
    assert!(granted >= end / 1000 / 2, "{granted}: it granted what there was");
}

#[test]
fn an_empty_bucket_stays_empty_whatever_reload_races() {
    let (rate, done) = (Rate::new(100, 10), AtomicBool::new(false));
    drain(&rate, at(0));
    let granted = four(|n| {
        let mut granted = 0;
        if n == 0 {
            // Never twice the same moment of being full: a `take` must not sleep through two changes
            // and find the bucket as it left it.
            for burst in 10..20_000 {
                rate.set(if burst % 2 == 0 { 1000 } else { 7 }, burst, at(0));
            }
            done.store(true, Ordering::Release);
        }
        while !done.load(Ordering::Acquire) {
            granted += u64::from(rate.take(at(0)).is_ok());
        }
        granted
    });
    assert_eq!((granted, rate.limit()), (0, 7));
}
