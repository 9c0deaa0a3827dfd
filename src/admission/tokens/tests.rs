//! Reservations and what they settle to, against a ledger kept in whole numbers; and threads.

use std::thread;

use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Moment {
    Moment::default().after(Duration::from_secs(seconds))
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn what_was_used_takes_the_estimates_place() {
    let tokens = Tokens::new(600);
    let less = tokens.reserve(100, at(0)).unwrap();
    let more = tokens.reserve(200, at(0)).unwrap();
    assert_eq!((tokens.limit(), tokens.remaining(at(0))), (600, 300));
    less.settle(40, at(0));
    assert_eq!(tokens.remaining(at(0)), 360);
    more.settle(250, at(0));
    assert_eq!(tokens.remaining(at(0)), 310);
    tokens.reserve(10, at(0)).unwrap().settle(10, at(0));
    assert_eq!(tokens.remaining(at(0)), 300);
    assert_eq!(tokens.remaining(at(10)), 400);
    assert_eq!(size_of::<Reservation>(), 16);
}

#[test]
fn dropped_it_stays_charged_and_cancelled_it_comes_back() {
    let tokens = Tokens::new(600);
    drop(tokens.reserve(100, at(0)).unwrap());
    assert_eq!(tokens.remaining(at(0)), 500);
    tokens.reserve(500, at(0)).unwrap().cancel();
    assert_eq!(tokens.remaining(at(0)), 500);
    assert_eq!(tokens.reserve(501, at(0)).err(), Some(Duration::from_millis(100)));
    assert_eq!(tokens.remaining(at(0)), 500, "a refusal takes nothing");
}

#[test]
fn debt_is_worked_off_before_anyone_gets_more() {
    let tokens = Tokens::new(600);
    tokens.reserve(600, at(0)).unwrap().settle(1200, at(0));
    assert_eq!(tokens.remaining(at(0)), 0);
    assert_eq!(tokens.reserve(0, at(0)).err(), Some(seconds(60)));
    assert_eq!(tokens.reserve(10, at(30)).err(), Some(seconds(31)));
    assert!(tokens.reserve(10, at(61)).is_ok());
}

#[test]
fn an_estimate_above_the_limit_needs_a_full_bucket_and_leaves_a_debt() {
    let tokens = Tokens::new(600);
    drop(tokens.reserve(10, at(0)).unwrap());
    assert_eq!(tokens.reserve(1800, at(0)).err(), Some(seconds(1)));
    let large = tokens.reserve(1800, at(1)).unwrap();
    assert_eq!(tokens.reserve(1, at(1)).err(), Some(Duration::from_millis(120_100)));
    large.settle(700, at(1));
    assert_eq!(tokens.reserve(1, at(1)).err(), Some(Duration::from_millis(10_100)));
}

#[test]
fn what_comes_back_late_does_not_overfill() {
    let tokens = Tokens::new(600);
    let early = tokens.reserve(600, at(0)).unwrap();
    drop(tokens.reserve(100, at(60)).unwrap());
    early.settle(1, at(60));
    assert_eq!(tokens.remaining(at(60)), 600);
}

#[test]
fn nonsense_costs_a_day_at_most() {
    let tokens = Tokens::new(600);
    let day = seconds(24 * 3600);
    tokens.reserve(1, at(0)).unwrap().settle(u64::MAX, at(0));
    assert_eq!(tokens.reserve(600, at(0)).err(), Some(day));
    let full = at(0).after(day);
    tokens.reserve(u64::MAX, full).unwrap().settle(0, full);
    assert_eq!(tokens.remaining(full), 600, "what was not charged is not given back");
}

#[test]
fn no_limit_of_zero_ever_grants_and_a_reload_keeps_what_is_owed() {
    let tokens = Tokens::new(0);
    assert_eq!(tokens.reserve(1, at(0)).err(), Some(Duration::MAX));
    assert_eq!(tokens.reserve(0, at(9)).err(), Some(Duration::MAX));
    tokens.set(600, at(9));
    assert_eq!(tokens.reserve(10, at(9)).err(), Some(seconds(1)), "no free refill");
    // 500 left, of which as many are left after any change that has room for them.
    let under_way = tokens.reserve(100, at(69)).unwrap();
    tokens.set(6000, at(69));
    assert_eq!((tokens.limit(), tokens.remaining(at(69))), (6000, 500));
    under_way.settle(50, at(69));
    assert_eq!(tokens.remaining(at(69)), 550, "tokens are tokens under the new limit, too");
}

/// The bucket in parts of a token, refilled step by step.
struct Ledger {
    part: i128,
    full: i128,
    held: i128,
}

impl Ledger {
    fn new(per_minute: u32) -> Ledger {
        let part = i128::from(960_000_000_000_u64.div_ceil(u64::from(per_minute)));
        let full = part * i128::from(per_minute);
        Ledger { part, full, held: full }
    }

    fn add(&mut self, parts: i128) {
        self.held = (self.held + parts).min(self.full);
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Reserve(u64),
    Settle(usize, u64),
    Cancel(usize),
    Drop(usize),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let amount = || prop_oneof![0..50_u64, 0..5000_u64];
    prop_oneof![
        4 => amount().prop_map(Op::Reserve),
        3 => (any::<usize>(), amount()).prop_map(|(n, actual)| Op::Settle(n, actual)),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => any::<usize>().prop_map(Op::Drop),
        2 => (0..40_000_000_000_u64).prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn it_keeps_the_ledgers_books(
        per_minute in prop_oneof![1..100_u32, 1..100_000_u32],
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        let (tokens, mut ledger) = (Tokens::new(per_minute), Ledger::new(per_minute));
        let most = u64::from(per_minute) * 1440;
        let (mut open, mut now) = (Vec::<(Reservation, u64)>::new(), at(0));
        for op in ops {
            let count = open.len();
            match op {
                Op::Reserve(estimate) => {
                    let parts = i128::from(estimate.min(most)) * ledger.part;
                    let enough = ledger.held >= parts.min(ledger.full);
                    match tokens.reserve(estimate, now) {
                        Ok(reservation) => {
                            prop_assert!(enough);
                            ledger.held -= parts;
                            open.push((reservation, estimate.min(most)));
                        }
                        Err(wait) => {
                            let missing = parts.min(ledger.full) - ledger.held;
                            let wait = i128::try_from(wait.as_nanos()).unwrap() * 16;
                            prop_assert!(!enough && (missing..missing + 16).contains(&wait));
                        }
                    }
                }
                Op::Settle(n, actual) if count > 0 => {
                    let (reservation, estimate) = open.swap_remove(n % count);
                    reservation.settle(actual, now);
                    let change = i128::from(estimate) - i128::from(actual.min(most));
                    ledger.add(change * ledger.part);
                }
                Op::Cancel(n) if count > 0 => {
                    let (reservation, estimate) = open.swap_remove(n % count);
                    reservation.cancel();
                    ledger.add(i128::from(estimate) * ledger.part);
                }
                Op::Drop(n) if count > 0 => drop(open.swap_remove(n % count)),
                Op::Wait(nanos) => {
                    now = now.after(Duration::from_nanos(nanos));
                    ledger.add(i128::from(nanos) * 16);
                }
                Op::Settle(..) | Op::Cancel(_) | Op::Drop(_) => {}
            }
            let left = ledger.held.max(0) / ledger.part;
            prop_assert_eq!(i128::from(tokens.remaining(now)), left);
        }
    }
}

#[test]
fn threads_settle_each_reservation_once() {
    let tokens = Tokens::new(10_000_000);
    let used: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (1..5_u64)
            .map(|n| {
                scope.spawn({
                    let tokens = &tokens;
                    move || {
                        let mut used = 0;
                        for i in 0..20_000_u64 {
                            let reservation = tokens.reserve(20, at(0)).expect("enough for all");
                            match i % 4 {
                                0 => {
                                    reservation.settle(i % 37 + n, at(0));
                                    used += i % 37 + n;
                                }
                                1 => reservation.cancel(),
                                2 => {
                                    reservation.settle(20, at(0));
                                    used += 20;
                                }
                                _ => {
                                    drop(reservation);
                                    used += 20;
                                }
                            }
                        }
                        used
                    }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(u64::from(tokens.remaining(at(0))), 10_000_000 - used);
}
