//! The timer wheel of one worker: every deadline of every stream and connection is one entry here.
//!
//! Owns: which timers are due when the worker says what tick it is. Refuses: to read a clock (the
//! worker calls [`Wheel::advance`]), to be shared between threads, and to be exact: a deadline is
//! met within one tick. Invariant: a filed entry's slot comes round no later than its deadline and
//! no later than the horizon; no waker is called or dropped while the wheel is borrowed, since that
//! may run code that calls back into the wheel.
//! Cost: 40 bytes per timer (kept for reuse at the high-water mark) and 4 KiB per wheel. Pushing a
//! deadline out, the common case, is one store: the entry moves only when its slot comes round.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::limits;

#[cfg(test)]
mod tests;

/// Slots of the wheel, one tick each.
const SLOTS: u32 = 1024;
/// The farthest tick from now that an entry is filed at: each slot then holds one tick only.
const HORIZON: u32 = SLOTS - 1;
/// No entry: the end of a list.
const NIL: u32 = u32::MAX;
/// `Entry::slot_tick` of an entry in no list. No entry is ever filed at tick 0.
const UNFILED: u32 = 0;
/// Wakers that may stay allocated between two advances.
const READY_KEPT: usize = 1024;

/// A moment, or a deadline, in ticks of [`limits::TICK`] since the worker began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Tick(pub u32);

impl Tick {
    /// The tick that lies `d` after this one: rounded up, at least one tick, saturating.
    pub fn after(self, d: Duration) -> Tick {
        let ticks = d.as_nanos().div_ceil(limits::TICK.as_nanos()).max(1);
        Tick(self.0.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)))
    }

    /// The time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Tick) -> Duration {
        limits::TICK * self.0.saturating_sub(earlier.0)
    }
}

/// The wait was longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline passed")]
pub struct Elapsed;

/// A worker's timer wheel; clones are handles to the same one.
#[derive(Clone)]
pub struct Wheel(Rc<Shared>);

struct Shared {
    now: Cell<u32>,
    inner: RefCell<Inner>,
}

struct Inner {
    entries: Vec<Entry>,
    /// First of the free entries, linked by `next`.
    free: u32,
    /// First entry of each slot's list.
    slots: Box<[u32; SLOTS as usize]>,
    armed: usize,
    /// Empty between advances; kept for its memory.
    ready: Vec<(u32, Waker)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Belongs to no timer.
    Free,
    /// Has no deadline. It may still be filed under an old one.
    Clear,
    /// Waits for its deadline; always filed.
    Armed,
    /// The deadline has passed and the waker was called; not filed.
    Fired,
}

struct Entry {
    waker: Option<Waker>,
    due: u32,
    /// The tick under which it is filed: never later than `due`. Or `UNFILED`.
    slot_tick: u32,
    next: u32,
    prev: u32,
    state: State,
}

impl Wheel {
    /// A wheel at tick 0, without timers.
    pub fn new() -> Wheel {
        let inner = Inner {
            entries: Vec::new(),
            free: NIL,
            slots: Box::new([NIL; SLOTS as usize]),
            armed: 0,
            ready: Vec::new(),
        };
        Wheel(Rc::new(Shared { now: Cell::new(0), inner: RefCell::new(inner) }))
    }

    /// The tick of the last advance; up to one tick behind the clock.
    pub fn now(&self) -> Tick {
        Tick(self.0.now.get())
    }

    /// Moves time on to `to` and wakes what is due, earliest deadline first (in no order within a
    /// tick); returns how many. Nothing happens if `to` is not later than now. After a jump of
    /// any length (a suspended machine) each slot and each entry is visited at most twice.
    pub fn advance(&self, to: Tick) -> usize {
        let from = self.0.now.get();
        if to.0 <= from {
            return 0;
        }
        self.0.now.set(to.0);
        let mut inner = self.0.inner.borrow_mut();
        let mut ready = std::mem::take(&mut inner.ready);
        inner.collect(from, to.0, &mut ready);
        drop(inner);
        if to.0 - from > 1 {
            ready.sort_unstable_by_key(|(due, _)| *due);
        }
        let woken = ready.len();
        for (_, waker) in ready.drain(..) {
            waker.wake();
        }
        if ready.capacity() <= READY_KEPT {
            self.0.inner.borrow_mut().ready = ready;
        }
        woken
    }

    /// Wakes every armed timer's owner at once, so that it looks at the drain signal. Deadlines
    /// stay as they are.
    pub fn expire_all(&self) {
        let inner = self.0.inner.borrow();
        let armed = inner.entries.iter().filter(|entry| entry.state == State::Armed);
        let wakers: Vec<Waker> = armed.filter_map(|entry| entry.waker.clone()).collect();
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A timer without a deadline; nothing is filed until it is set.
    pub fn timer(&self) -> Timer {
        let key = self.0.inner.borrow_mut().allocate();
        Timer { wheel: Rc::clone(&self.0), key }
    }

    /// Timers that wait for a deadline.
    pub fn armed(&self) -> usize {
        self.0.inner.borrow().armed
    }

    /// Runs `f` for at most `d`, counted from the first poll. A result that is there together
    /// with the deadline wins. A large future is better passed pinned (`pin!(..)`): one passed by
    /// value takes its size twice in the caller's.
    pub async fn timeout<F: Future>(&self, d: Duration, f: F) -> Result<F::Output, Elapsed> {
        let timer = self.timer();
        let due = self.now().after(d);
        let mut f = pin!(f);
        poll_fn(|cx| {
            if let Poll::Ready(output) = f.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if self.now() >= due {
                return Poll::Ready(Err(Elapsed));
            }
            timer.set(due, cx.waker());
            Poll::Pending
        })
        .await
    }
}

impl Default for Wheel {
    fn default() -> Wheel {
        Wheel::new()
    }
}

/// One deadline of one task. Dropping it removes its entry.
pub struct Timer {
    wheel: Rc<Shared>,
    key: u32,
}

impl Timer {
    /// Sets, or moves, the deadline. A deadline that is not in the future fires with the next
    /// tick. Moving it out is a store; moving it closer re-files the entry; the waker is cloned
    /// only if it would wake another task than the one known.
    pub fn set(&self, due: Tick, waker: &Waker) {
        let now = self.wheel.now.get();
        let mut inner = self.wheel.inner.borrow_mut();
        let known = &inner.entries[self.key as usize].waker;
        if known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            inner.arm(self.key, due.0, now);
            return;
        }
        drop(inner);
        let waker = waker.clone();
        let mut inner = self.wheel.inner.borrow_mut();
        let old = inner.entries[self.key as usize].waker.replace(waker);
        inner.arm(self.key, due.0, now);
        drop(inner);
        drop(old);
    }

    /// Takes the deadline away: nothing is woken until it is set again.
    pub fn clear(&self) {
        self.wheel.inner.borrow_mut().disarm(self.key, State::Clear);
    }

    /// Wakes its owner at once, if it has a deadline; that stays as it is.
    pub fn expire(&self) {
        let inner = self.wheel.inner.borrow();
        let entry = &inner.entries[self.key as usize];
        let waker = entry.waker.clone().filter(|_| entry.state == State::Armed);
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
    }

    /// The deadline, also after it has passed; `None` if never set, or cleared.
    pub fn due(&self) -> Option<Tick> {
        let inner = self.wheel.inner.borrow();
        let entry = &inner.entries[self.key as usize];
        matches!(entry.state, State::Armed | State::Fired).then_some(Tick(entry.due))
    }

    /// Whether there is a deadline and it has passed.
    pub fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due.0 <= self.wheel.now.get())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let waker = self.wheel.inner.borrow_mut().release(self.key);
        drop(waker);
    }
}

impl Inner {
    fn allocate(&mut self) -> u32 {
        if self.free != NIL {
            let key = self.free;
            let entry = &mut self.entries[key as usize];
            self.free = entry.next;
            entry.state = State::Clear;
            return key;
        }
        let key = u32::try_from(self.entries.len()).expect("fewer than 2^32 timers fit in memory");
        let (next, prev) = (NIL, NIL);
        let entry =
            Entry { waker: None, due: 0, slot_tick: UNFILED, next, prev, state: State::Clear };
        if self.entries.len() == self.entries.capacity() {
            // By a quarter, not by half: streams share what is spare.
            self.entries.reserve_exact((self.entries.len() / 4).max(64));
        }
        self.entries.push(entry);
        key
    }

    fn release(&mut self, key: u32) -> Option<Waker> {
        self.disarm(key, State::Free);
        self.unfile(key);
        let free = std::mem::replace(&mut self.free, key);
        let entry = &mut self.entries[key as usize];
        entry.next = free;
        entry.waker.take()
    }

    fn arm(&mut self, key: u32, due: u32, now: u32) {
        let entry = &mut self.entries[key as usize];
        entry.due = due;
        if entry.state != State::Armed {
            entry.state = State::Armed;
            self.armed += 1;
        }
        if entry.slot_tick == UNFILED || due < entry.slot_tick {
            self.unfile(key);
            self.file(key, due, now);
        }
    }

    /// Leaves the entry filed: it is taken out, or used again, when its slot comes round.
    fn disarm(&mut self, key: u32, to: State) {
        let entry = &mut self.entries[key as usize];
        if std::mem::replace(&mut entry.state, to) == State::Armed {
            self.armed -= 1;
        }
    }

    fn file(&mut self, key: u32, due: u32, now: u32) {
        // Saturated only after 13 years; the clamp keeps `min <= max` even then.
        let soonest = now.saturating_add(1);
        let tick = due.clamp(soonest, now.saturating_add(HORIZON).max(soonest));
        let head = std::mem::replace(&mut self.slots[slot(tick)], key);
        let entry = &mut self.entries[key as usize];
        entry.slot_tick = tick;
        entry.prev = NIL;
        entry.next = head;
        if head != NIL {
            self.entries[head as usize].prev = key;
        }
    }

    fn unfile(&mut self, key: u32) {
        let entry = &mut self.entries[key as usize];
        let tick = std::mem::replace(&mut entry.slot_tick, UNFILED);
        if tick == UNFILED {
            return;
        }
        let (prev, next) = (entry.prev, entry.next);
        if prev == NIL {
            self.slots[slot(tick)] = next;
        } else {
            self.entries[prev as usize].next = next;
        }
        if next != NIL {
            self.entries[next as usize].prev = prev;
        }
    }

    /// Empties the slots of the ticks after `from` up to `to`: what is due goes to `ready`, and the
    /// rest is filed anew once all are empty, so that nothing is met again in this round.
    fn collect(&mut self, from: u32, to: u32, ready: &mut Vec<(u32, Waker)>) {
        let mut later = NIL;
        for step in 1..=(to - from).min(SLOTS) {
            let mut key = std::mem::replace(&mut self.slots[slot(from + step)], NIL);
            while key != NIL {
                let entry = &mut self.entries[key as usize];
                let next = entry.next;
                entry.slot_tick = UNFILED;
                if entry.state == State::Armed && entry.due <= to {
                    entry.state = State::Fired;
                    self.armed -= 1;
                    let due = entry.due;
                    ready.extend(entry.waker.take().map(|waker| (due, waker)));
                } else if entry.state == State::Armed {
                    entry.next = later;
                    later = key;
                }
                key = next;
            }
        }
        while later != NIL {
            let (key, due) = (later, self.entries[later as usize].due);
            later = self.entries[later as usize].next;
            self.file(key, due, to);
        }
    }
}

fn slot(tick: u32) -> usize {
    (tick % SLOTS) as usize
}
