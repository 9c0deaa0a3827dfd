//! The way to an unclean end, on a clock of the test's own.

use std::sync::Arc;
use std::task::Waker;

use super::*;
use crate::admission::budget::Budget;
use crate::admission::permit::Permits;
use crate::stream::ground::Scratch;
use crate::stream::life::Live;
use crate::telemetry::{Cells, Shape};
use crate::wire::wheel::Wheel;

struct Bench {
    io: Rc<IoState>,
    wheel: Wheel,
    cells: Arc<Cells>,
    memory: Arc<Budget>,
    control: Option<Rc<Control>>,
}

const STALL: Duration = Duration::from_secs(30);
const PATIENCE: Patience = Patience { client_stall: STALL, backlog: 1000 };

impl Bench {
    fn new() -> Bench {
        let none = Shape::default();
        let (io, wheel, cells) = (Rc::default(), Wheel::new(), Arc::new(Cells::new(&none)));
        let memory = Budget::new(10_000);
        let ground = Rc::new(Ground {
            clock: Clock::System,
            wheel: wheel.clone(),
            cells: cells.clone(),
            memory: memory.clone(),
            live: Live::default(),
            drains: Permits::new(1),
            draining: Cell::default(),
            cutting: Rc::default(),
            scratch: Scratch::default(),
        });
        let control = Control::new(Rc::clone(&io), &ground, PATIENCE);
        Bench { io, wheel, cells, memory, control: Some(control) }
    }

    fn control(&self) -> &Control {
        self.control.as_ref().expect("not dropped")
    }

    fn pass(&self, time: Duration) {
        self.wheel.advance(self.wheel.now().after(time));
    }

    fn poll(&self) -> Poll<Cut> {
        self.control().poll_cut(&mut Context::from_waker(Waker::noop()))
    }
}

#[test]
fn a_cut_waits_for_the_flush_and_then_for_the_linger() {
    let bench = Bench::new();
    assert!(bench.poll().is_pending());
    bench.control().cut();
    bench.pass(limits::CUT_LINGER * 4);
    assert!(bench.poll().is_pending(), "nothing was flushed yet");
    bench.io.flushed();
    assert!(bench.poll().is_pending(), "flushed, lingering");
    bench.pass(limits::TICK);
    assert!(bench.poll().is_pending());
    bench.pass(limits::CUT_LINGER);
    assert_eq!(bench.poll(), Poll::Ready(Cut::Close));
    assert_eq!(bench.control().ended(), None, "the body knows why");
}

#[test]
fn http_1_0_is_reset_for_a_fin_would_look_clean() {
    let bench = Bench::new();
    bench.control().ends_by_close();
    bench.control().cut();
    bench.io.flushed();
    assert!(bench.poll().is_pending());
    bench.pass(limits::CUT_LINGER + limits::TICK);
    assert_eq!(bench.poll(), Poll::Ready(Cut::Reset));
}

#[test]
fn a_client_that_takes_nothing_is_cut_after_client_stall_and_any_progress_counts() {
    let bench = Bench::new();
    bench.control().gave(1000);
    bench.control().asked();
    bench.io.blocked(bench.wheel.now());
    assert!(bench.poll().is_pending());
    assert!(bench.control().lagging());
    assert_eq!((bench.cells.stalled_streams.get(), bench.cells.backlog_bytes.get()), (1, 1000));
    bench.pass(STALL - limits::TICK * 2);
    assert!(bench.poll().is_pending());
    bench.io.wrote(&Clock::System);
    assert!(bench.poll().is_pending());
    assert_eq!((bench.cells.stalled_streams.get(), bench.cells.backlog_bytes.get()), (0, 0));
    bench.io.blocked(bench.wheel.now());
    bench.pass(STALL - limits::TICK * 2);
    assert!(bench.poll().is_pending(), "counted anew since the progress");
    bench.pass(limits::TICK * 2);
    assert_eq!(bench.poll(), Poll::Ready(Cut::Reset));
    assert_eq!(bench.control().ended(), Some(Reason::ClientStalled));
}

#[test]
fn a_full_backlog_asks_no_more_of_the_source_until_the_client_takes_something() {
    let bench = Bench::new();
    bench.control().gave(999);
    bench.io.blocked(bench.wheel.now());
    assert!(!bench.control().full());
    bench.control().gave(1);
    assert!(bench.control().full());
    bench.io.wrote(&Clock::System);
    assert!(!bench.control().full());
}

#[test]
fn a_body_that_is_not_asked_for_more_means_a_closed_window() {
    let mut bench = Bench::new();
    bench.control().gave(500);
    bench.pass(STALL);
    assert_eq!(bench.poll(), Poll::Ready(Cut::Reset), "HTTP/2: no capacity for client_stall");
    assert_eq!(bench.control().ended(), Some(Reason::ClientStalled));
    bench.control = None;
    assert_eq!((bench.cells.stalled_streams.get(), bench.cells.backlog_bytes.get()), (0, 0));
}

#[test]
fn a_cut_towards_a_client_that_lags_happens_at_client_stall_at_the_latest() {
    let bench = Bench::new();
    bench.io.blocked(bench.wheel.now());
    bench.pass(STALL / 2);
    bench.control().cut();
    assert!(bench.poll().is_pending());
    bench.pass(STALL / 2);
    assert_eq!(bench.poll(), Poll::Ready(Cut::Reset));
}

#[test]
fn what_waits_is_a_stall_unless_some_of_it_moves() {
    let bench = Bench::new();
    bench.control().waits(700, false);
    assert!(bench.poll().is_pending());
    assert_eq!((bench.cells.stalled_streams.get(), bench.cells.backlog_bytes.get()), (1, 700));
    bench.pass(STALL - limits::TICK);
    bench.control().waits(800, false);
    assert!(bench.poll().is_pending(), "more waits, which is no progress, but it is not yet time");
    bench.control().waits(600, true);
    bench.pass(STALL - limits::TICK);
    assert!(bench.poll().is_pending(), "some went on");
    assert_eq!(bench.cells.backlog_bytes.get(), 600);
    bench.control().waits(0, true);
    bench.pass(STALL);
    assert!(bench.poll().is_pending(), "nothing waits");
    assert_eq!((bench.cells.stalled_streams.get(), bench.cells.backlog_bytes.get()), (0, 0));
    bench.control().waits(1, false);
    bench.pass(STALL);
    assert_eq!(bench.poll(), Poll::Ready(Cut::Reset));
    assert_eq!(bench.control().ended(), Some(Reason::ClientStalled));
}

#[test]
fn a_flush_ends_a_block_for_tls_takes_bytes_before_the_socket_does() {
    let bench = Bench::new();
    bench.io.blocked(bench.wheel.now());
    assert!(bench.poll().is_pending());
    assert!(bench.control().lagging());
    bench.io.flushed();
    bench.pass(STALL);
    assert!(bench.poll().is_pending());
    assert!(!bench.control().lagging());
}

#[test]
fn who_waits_for_the_socket_is_woken_once_when_it_takes_bytes_again() {
    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicU32);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Woken>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let bench = Bench::new();
    let woken = Arc::new(Woken::default());
    let times = || woken.0.load(std::sync::atomic::Ordering::Relaxed);
    let waker = Waker::from(woken.clone());
    let mut place = 0;
    for round in 1..=3 {
        bench.io.blocked(bench.wheel.now());
        bench.io.park(&mut place, &waker);
        bench.io.park(&mut place, &waker);
        assert!(!bench.io.unpark());
        assert_eq!(times(), round - 1, "still blocked");
        bench.io.wrote(&Clock::System);
        assert!(!bench.io.unpark() && !bench.io.unpark());
        assert_eq!(times(), round);
    }
    // In their order, and no more than may go on at once.
    let most = limits::CLIENT_FRAMES_QUEUED;
    (0..most).for_each(|_| bench.io.queued());
    assert!(bench.io.busy());
    let mut places = vec![0; most as usize + 1];
    places.iter_mut().for_each(|place| bench.io.park(place, &waker));
    assert!(bench.io.unpark(), "one is left");
    assert!(!bench.io.busy());
    assert_eq!(times(), 3 + most);
    places.iter_mut().rev().for_each(|place| bench.io.park(place, &waker));
    assert!(bench.io.unpark(), "the same one was the first, and stood in line but once");
    assert!(!bench.io.unpark());
    assert_eq!(times(), 3 + most + most + 1);
}

#[test]
fn what_a_client_lets_wait_is_charged_while_it_lags() {
    let mut bench = Bench::new();
    bench.control().waits(700, false);
    bench.control().takes(300);
    assert!(bench.poll().is_pending());
    assert_eq!((bench.control().charged(), bench.memory.used()), (1000, 1000));
    bench.control().waits(200, true);
    bench.control().takes(0);
    assert!(bench.poll().is_pending());
    assert_eq!(bench.memory.used(), 200);
    bench.control().waits(0, true);
    assert!(bench.poll().is_pending());
    assert_eq!((bench.memory.used(), bench.cells.backlog_bytes.get()), (0, 0));
    bench.control().waits(500, true);
    assert!(bench.poll().is_pending());
    bench.control = None;
    assert_eq!((bench.memory.used(), bench.cells.backlog_bytes.get()), (0, 0));
}

#[test]
fn beyond_the_budget_nothing_is_asked_of_the_source_while_anything_waits() {
    let bench = Bench::new();
    assert!(!bench.control().enough(999) && bench.control().enough(1000));
    bench.memory.changed(0, 10_000);
    assert!(!bench.control().enough(999), "just used up");
    bench.memory.changed(0, 1);
    assert!(bench.control().enough(1) && !bench.control().enough(0));
    bench.control().gave(1);
    assert!(!bench.control().full());
    bench.io.blocked(bench.wheel.now());
    assert!(bench.control().full());
}

#[test]
fn who_is_shed_gives_its_charge_back_and_is_reset_at_its_next_turn() {
    struct Count(std::sync::atomic::AtomicU32);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let bench = Bench::new();
    let woken = Arc::new(Count(0.into()));
    let waker = Waker::from(woken.clone());
    bench.control().waits(900, false);
    assert!(bench.control().poll_cut(&mut Context::from_waker(&waker)).is_pending());
    bench.control().shed();
    assert_eq!(woken.0.load(std::sync::atomic::Ordering::Relaxed), 1, "without a tick");
    assert_eq!((bench.memory.used(), bench.cells.stalled_streams.get()), (0, 0));
    bench.control().waits(900, false);
    assert_eq!(bench.poll(), Poll::Ready(Cut::Reset));
    assert_eq!((bench.control().ended(), bench.memory.used()), (Some(Reason::Limit), 0));
}
