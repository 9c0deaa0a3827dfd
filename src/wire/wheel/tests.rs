//! Time is only what the tests say it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake};

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;

/// Counts its wakes.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn counter() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count::default());
    (Arc::clone(&count), Waker::from(count))
}

fn wakes(count: &Count) -> usize {
    count.0.load(Ordering::Relaxed)
}

/// Runs code in a waker, as a task does that is polled right where it is woken.
struct Run<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for Run<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

thread_local! {
    static WOKEN: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static HERE: RefCell<Option<(Wheel, Timer)>> = const { RefCell::new(None) };
}

/// A waker that notes its number in `WOKEN`.
fn numbered(n: u32) -> Waker {
    Waker::from(Arc::new(Run(move || WOKEN.with_borrow_mut(|woken| woken.push(n)))))
}

fn woken() -> Vec<u32> {
    WOKEN.take()
}

#[test]
fn an_entry_stays_small() {
    assert!(size_of::<Entry>() <= 40, "{}", size_of::<Entry>());
    assert!(size_of::<Timer>() <= 16);
}

#[test]
fn durations_round_up_to_ticks() {
    let at = Tick(10);
    assert_eq!(at.after(Duration::ZERO), Tick(11));
    assert_eq!(at.after(Duration::from_millis(1)), Tick(11));
    assert_eq!(at.after(limits::TICK), Tick(11));
    assert_eq!(at.after(Duration::from_millis(101)), Tick(12));
    assert_eq!(at.after(Duration::from_secs(60)), Tick(610));
    assert_eq!(at.after(Duration::MAX), Tick(u32::MAX));
    assert_eq!(Tick(u32::MAX).after(Duration::from_secs(1)), Tick(u32::MAX));
    assert_eq!(Tick(25).since(at), Duration::from_millis(1500));
    assert_eq!(at.since(Tick(25)), Duration::ZERO);
}

#[test]
fn timers_fire_at_their_tick_in_order() {
    let wheel = Wheel::new();
    let timers: Vec<Timer> = [5, 2, 9, 2, 7]
        .into_iter()
        .map(|due| {
            let timer = wheel.timer();
            timer.set(Tick(due), &numbered(due));
            timer
        })
        .collect();
    assert_eq!(wheel.armed(), 5);
    assert_eq!(wheel.advance(Tick(1)), 0);
    assert_eq!(wheel.advance(Tick(2)), 2);
    assert_eq!(woken(), [2, 2]);
    assert_eq!(wheel.advance(Tick(8)), 2);
    assert_eq!(woken(), [5, 7]);
    assert_eq!(wheel.advance(Tick(9)), 1);
    assert_eq!((wheel.armed(), wheel.now()), (0, Tick(9)));
    assert!(timers.iter().all(Timer::is_due));
    woken();
}

#[test]
fn a_jump_wakes_the_earliest_deadline_first_even_if_filed_late() {
    let wheel = Wheel::new();
    let (a, b) = (wheel.timer(), wheel.timer());
    a.set(Tick(3), &numbered(8));
    a.set(Tick(8), &numbered(8));
    b.set(Tick(6), &numbered(6));
    assert_eq!(wheel.advance(Tick(10)), 2);
    assert_eq!(woken(), [6, 8]);
}

#[test]
fn pushing_out_is_lazy_and_pulling_in_is_not() {
    let wheel = Wheel::new();
    let (count, waker) = counter();
    let timer = wheel.timer();
    timer.set(Tick(10), &waker);
    timer.set(Tick(20), &waker);
    assert_eq!(wheel.0.inner.borrow().entries[0].slot_tick, 10, "only stored");
    assert_eq!(wheel.advance(Tick(10)), 0);
    assert_eq!(wheel.0.inner.borrow().entries[0].slot_tick, 20, "filed anew");
    timer.set(Tick(15), &waker);
    assert_eq!(wheel.0.inner.borrow().entries[0].slot_tick, 15);
    assert_eq!(wheel.advance(Tick(14)), 0);
    assert!(!timer.is_due());
    assert_eq!(wheel.advance(Tick(15)), 1);
    assert!(timer.is_due());
    assert_eq!(wheel.advance(Tick(40)), 0, "it fires once");
    assert_eq!(wakes(&count), 1);
}

#[test]
fn deadlines_beyond_the_horizon_are_met() {
    let wheel = Wheel::new();
    let (count, waker) = counter();
    let timer = wheel.timer();
    timer.set(Tick(5000), &waker);
    for tick in 1..5000 {
        assert_eq!(wheel.advance(Tick(tick)), 0, "{tick}");
    }
    assert_eq!(wheel.advance(Tick(5000)), 1);
    timer.set(Tick(5000 + SLOTS), &waker);
    assert_eq!(wheel.advance(Tick(5000 + SLOTS - 1)), 0);
    assert_eq!(wheel.advance(Tick(5000 + SLOTS)), 1);
    timer.set(Tick(u32::MAX), &waker);
    assert_eq!(wheel.advance(Tick(u32::MAX - 1)), 0);
    assert_eq!(wheel.advance(Tick(u32::MAX)), 1);
    assert_eq!(wakes(&count), 3);
}

#[test]
fn a_long_jump_wakes_what_is_due_and_refiles_the_rest() {
    let wheel = Wheel::new();
    let (count, waker) = counter();
    let timers: Vec<Timer> = (1..=4000)
        .map(|due| {
            let timer = wheel.timer();
            timer.set(Tick(due), &waker);
            timer
        })
        .collect();
    assert_eq!(wheel.advance(Tick(3000)), 3000);
    assert_eq!(wheel.armed(), 1000);
    for tick in 3001..=4000 {
        assert_eq!(wheel.advance(Tick(tick)), 1, "{tick}");
    }
    assert_eq!(wakes(&count), 4000);
    drop(timers);
}

#[test]
fn a_deadline_not_in_the_future_fires_with_the_next_tick() {
    let wheel = Wheel::new();
    wheel.advance(Tick(50));
    let (count, waker) = counter();
    let (past, present) = (wheel.timer(), wheel.timer());
    past.set(Tick(3), &waker);
    present.set(Tick(50), &waker);
    assert!(past.is_due() && present.is_due());
    assert_eq!(wheel.advance(Tick(50)), 0, "no time has passed");
    assert_eq!(wheel.advance(Tick(20)), 0, "time does not go back");
    assert_eq!(wheel.advance(Tick(51)), 2);
    assert_eq!(wakes(&count), 2);
}

#[test]
fn dropping_and_clearing_take_a_deadline_away() {
    let wheel = Wheel::new();
    let (count, waker) = counter();
    let (dropped, cleared, kept) = (wheel.timer(), wheel.timer(), wheel.timer());
    for timer in [&dropped, &cleared, &kept] {
        timer.set(Tick(5), &waker);
    }
    assert_eq!(Arc::strong_count(&count), 5, "one waker each");
    drop(dropped);
    cleared.clear();
    assert_eq!((wheel.armed(), cleared.due(), cleared.is_due()), (1, None, false));
    assert_eq!(wheel.advance(Tick(5)), 1);
    cleared.set(Tick(7), &waker);
    assert_eq!(wheel.advance(Tick(7)), 1);
    cleared.set(Tick(9), &waker);
    cleared.clear();
    cleared.set(Tick(12), &waker);
    assert_eq!(wheel.advance(Tick(11)), 0);
    assert_eq!(wheel.advance(Tick(12)), 1);
    assert_eq!(wakes(&count), 3);
    drop((cleared, kept));
    assert_eq!((Arc::strong_count(&count), wheel.armed()), (2, 0));
}

#[test]
fn entries_are_used_again() {
    let wheel = Wheel::new();
    let (_, waker) = counter();
    for round in 0..100 {
        let timers: Vec<Timer> = (0..10).map(|_| wheel.timer()).collect();
        timers.iter().for_each(|timer| timer.set(Tick(round + 3), &waker));
        wheel.advance(Tick(round));
    }
    assert_eq!(wheel.0.inner.borrow().entries.len(), 10);
    assert_eq!(wheel.advance(Tick(500)), 0);
}

#[test]
fn a_new_owner_replaces_the_waker() {
    let wheel = Wheel::new();
    let timer = wheel.timer();
    timer.set(Tick(2), &numbered(1));
    timer.set(Tick(3), &numbered(2));
    wheel.advance(Tick(3));
    assert_eq!(woken(), [2]);
}

#[test]
fn expire_all_wakes_and_leaves_the_deadlines() {
    let wheel = Wheel::new();
    let (count, waker) = counter();
    let (a, b, c) = (wheel.timer(), wheel.timer(), wheel.timer());
    a.set(Tick(5), &waker);
    b.set(Tick(1), &waker);
    c.set(Tick(5), &waker);
    c.clear();
    wheel.advance(Tick(1));
    wheel.expire_all();
    assert_eq!(wakes(&count), 2, "b before, a now");
    assert_eq!((wheel.armed(), a.due()), (1, Some(Tick(5))));
    assert_eq!(wheel.advance(Tick(5)), 1);
}

#[test]
fn a_waker_may_use_the_wheel() {
    let wheel = Wheel::new();
    HERE.set(Some((wheel.clone(), wheel.timer())));
    let again = Waker::from(Arc::new(Run(|| {
        HERE.with_borrow(|here| {
            let (wheel, timer) = here.as_ref().unwrap();
            assert!(timer.is_due());
            timer.set(wheel.now().after(limits::TICK * 2), &numbered(7));
            drop(wheel.timer());
            wheel.expire_all();
            wheel.advance(Tick(3));
        });
    })));
    HERE.with_borrow(|here| here.as_ref().unwrap().1.set(Tick(1), &again));
    assert_eq!(wheel.advance(Tick(1)), 1);
    assert_eq!(woken(), [7, 7], "by expire_all, and by the advance to its tick");
    drop(HERE.take());
    assert_eq!(wheel.armed(), 0);
}

/// A timer dropped by the drop of a waker: the last handle of a task that owned it.
#[test]
fn dropping_a_waker_may_drop_a_timer() {
    struct Owner;
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            drop(HERE.take());
        }
    }
    let wheel = Wheel::new();
    for way in 0..3 {
        let holder = wheel.timer();
        HERE.set(Some((wheel.clone(), wheel.timer())));
        holder.set(Tick(wheel.now().0 + 1), &Waker::from(Arc::new(Owner)));
        match way {
            0 => drop(holder),
            1 => holder.set(Tick(9), &numbered(0)),
            _ => assert_eq!(wheel.advance(wheel.now().after(limits::TICK)), 1),
        }
        assert!(HERE.with_borrow(Option::is_none), "way {way}");
    }
}

#[test]
fn timeout_gives_the_result_or_the_end_of_patience() {
    let wheel = Wheel::new();
    let (count, waker) = counter();
    let mut cx = Context::from_waker(&waker);
    let ready = wheel.timeout(Duration::from_secs(1), async { 5 });
    assert_eq!(ready.now_or_never(), Some(Ok(5)));

    let mut slow = pin!(wheel.timeout(Duration::from_secs(1), std::future::pending::<()>()));
    assert!(slow.as_mut().poll(&mut cx).is_pending());
    assert_eq!(wheel.armed(), 1);
    wheel.advance(Tick(9));
    assert!(slow.as_mut().poll(&mut cx).is_pending());
    assert_eq!(wakes(&count), 0);
    wheel.advance(Tick(10));
    assert_eq!(wakes(&count), 1);
    assert_eq!(slow.as_mut().poll(&mut cx), Poll::Ready(Err(Elapsed)));

    let mut late = pin!(wheel.timeout(
        limits::TICK,
        poll_fn(|_| match wheel.now().0 {
            10 => Poll::Pending,
            _ => Poll::Ready("late"),
        })
    ));
    assert!(late.as_mut().poll(&mut cx).is_pending());
    wheel.advance(Tick(30));
    assert_eq!(late.as_mut().poll(&mut cx), Poll::Ready(Ok("late")));
    assert_eq!(wheel.armed(), 0, "a finished timeout leaves nothing behind");
}

#[derive(Clone, Debug)]
enum Op {
    Set { timer: usize, ahead: u32 },
    Clear { timer: usize },
    Replace { timer: usize },
    Advance { ticks: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    let ahead = prop_oneof![4 => 0..20u32, 2 => 0..1100u32, 1 => 0..5000u32];
    let ticks = prop_oneof![8 => 0..4u32, 2 => 0..1100u32, 1 => 0..9000u32];
    prop_oneof![
        6 => (0..12usize, ahead).prop_map(|(timer, ahead)| Op::Set { timer, ahead }),
        1 => (0..12usize).prop_map(|timer| Op::Clear { timer }),
        1 => (0..12usize).prop_map(|timer| Op::Replace { timer }),
        5 => ticks.prop_map(|ticks| Op::Advance { ticks }),
    ]
}

proptest! {
    #[test]
    fn it_behaves_as_a_sorted_map(ops in proptest::collection::vec(op(), 1..200)) {
        let wheel = Wheel::new();
        let mut timers: Vec<Timer> = (0..12).map(|_| wheel.timer()).collect();
        let wakers: Vec<Waker> = (0..12).map(numbered).collect();
        let mut model: BTreeMap<usize, u32> = BTreeMap::new();
        for op in ops {
            let now = wheel.now().0;
            match op {
                Op::Set { timer, ahead } => {
                    // Now and then a deadline in the past.
                    let due = (now + ahead).saturating_sub(3);
                    timers[timer].set(Tick(due), &wakers[timer]);
                    model.insert(timer, due);
                    prop_assert_eq!(timers[timer].due(), Some(Tick(due)));
                }
                Op::Clear { timer } => {
                    timers[timer].clear();
                    model.remove(&timer);
                }
                Op::Replace { timer } => {
                    timers[timer] = wheel.timer();
                    model.remove(&timer);
                }
                Op::Advance { ticks } => {
                    let to = now + ticks;
                    let mut expected: Vec<(u32, usize)> = model
                        .iter()
                        .filter(|(_, due)| ticks > 0 && **due <= to)
                        .map(|(timer, due)| (*due, *timer))
                        .collect();
                    model.retain(|_, due| ticks == 0 || *due > to);
                    prop_assert_eq!(wheel.advance(Tick(to)), expected.len());
                    let mut got: Vec<(u32, usize)> = woken()
                        .into_iter()
                        .map(|n| (timers[n as usize].due().unwrap().0, n as usize))
                        .collect();
                    if ticks > 1 {
                        prop_assert!(got.is_sorted_by_key(|(due, _)| *due), "{:?}", got);
                    }
                    expected.sort_unstable();
                    got.sort_unstable();
                    prop_assert_eq!(got, expected);
                }
            }
            prop_assert_eq!(wheel.armed(), model.len());
        }
    }
}
