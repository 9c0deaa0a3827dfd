//! The bulkhead of one upstream: how many streams it may have at once, in the whole process, and
//! who waits when it has them.
//!
//! Owns: the count of slots and the queue before them. Refuses: to know the time (a wait is ended by
//! dropping its ticket) or HTTP. Who is next:
//!
//! - Between classes, `interactive` is before `batch`, but while both wait one grant in
//!   [`limits::BATCH_SHARE`] goes to `batch`.
//! - Between tenants of a class, grants follow the weights ([`mod@line`]): one tenant's thousand
//!   waiters delay another's one by one grant.
//! - Within a tenant, the first to come is the first to go.
//!
//! Who may wait when the queue is full, since what is fair only among waiters is of no use to one
//! that never becomes a waiter: a class that holds less than its share pushes out a waiter of the
//! other one; the queue's `BATCH_SHARE`th part is `batch`'s, the rest is `interactive`'s. Otherwise
//! a tenant that holds less than others pushes out a waiter of its class. The pushed out is the
//! youngest of the tenant with the most, by weight.
//!
//! Invariants: whenever the lock is free, nobody waits while a slot is free; a slot is used from its
//! grant on, even before its ticket knows of it, and freed exactly once; no waker is called or
//! dropped under the lock, since that may run code that comes back here. Memory: at most `queue`
//! waiters and `max_streams` grants not yet fetched; a ticket that was pushed out leaves nothing.
//! Cost: one uncontended lock to take a slot and one to free it, and O(log n) with n waiters.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::limits;

use line::Line;

mod line;
#[cfg(test)]
mod tests;

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits for the answer: served first.
    #[default]
    Interactive,
    /// Nobody watches: served last, but not starved.
    Batch,
}

/// Who asks for a slot.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The tenant's number; 0 for requests of nobody in particular.
    pub tenant: u32,
    /// The tenant's share of the grants relative to others'; 0 counts as 1. The newest claim's
    /// holds for all that the tenant has waiting in the class.
    pub weight: u32,
    /// How urgent it is.
    pub class: Class,
}

/// What became of a claim.
#[must_use]
#[derive(Debug)]
pub enum Entry {
    /// A slot was free.
    Slot(Slot),
    /// None was; the ticket waits for one.
    Wait(Ticket),
    /// The queue is full, and the claim has no right to another's place in it.
    Full,
}

/// The wait is over: the queue was full, and somebody with a better right to the place came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pushed out of the full queue")]
pub struct Evicted;

/// The slots of one upstream and the queue before them; shared by all workers.
#[derive(Debug)]
pub struct Bulkhead(Mutex<State>);

/// The right to one stream; dropping it hands it to the next waiter.
#[derive(Debug)]
pub struct Slot(Arc<Bulkhead>);

const _: () = assert!(size_of::<Slot>() == size_of::<usize>(), "every stream holds one");

/// A place in the queue; dropping it leaves the queue, and frees the slot if one was granted
/// meanwhile.
#[must_use]
#[derive(Debug)]
pub struct Ticket {
    bulkhead: Arc<Bulkhead>,
    tenant: u32,
    class: Class,
    /// Whether `poll` has given its result.
    over: bool,
    /// Its arrival's number: never used twice.
    seq: u64,
}

#[derive(Debug)]
struct State {
    max: usize,
    queue: usize,
    used: usize,
    /// By [`Class`].
    lines: [Line; 2],
    /// Tickets that were granted a slot and have not fetched it.
    granted: BTreeSet<u64>,
    /// Grants to interactive requests since a batch request that waits was last served.
    passed: usize,
    /// The last arrival's number.
    arrived: u64,
    /// Who is to be woken when the lock is free.
    wake: Vec<Waker>,
}

impl State {
    fn line(&mut self, class: Class) -> &mut Line {
        &mut self.lines[class as usize]
    }

    fn waiting(&self) -> usize {
        self.lines.iter().map(Line::len).sum()
    }

    /// Gives free slots to waiters.
    fn grant(&mut self) {
        while self.used < self.max {
            let Some((seq, waker)) = self.next() else { break };
            self.used += 1;
            self.granted.insert(seq);
            self.wake.extend(waker);
        }
    }

    /// Takes who is next out of the queue.
    fn next(&mut self) -> Option<(u64, Option<Waker>)> {
        let [interactive, batch] = &mut self.lines;
        let batch_waits = !batch.is_empty();
        let turn_of_batch = interactive.is_empty() || self.passed + 1 >= limits::BATCH_SHARE;
        if batch_waits && turn_of_batch {
            self.passed = 0;
            return batch.pop();
        }
        self.passed += usize::from(batch_waits);
        interactive.pop()
    }

    /// Pushes somebody out of the full queue in favour of the claim, if that is just.
    fn make_room(&mut self, claim: Claim) -> bool {
        let share = (self.queue / limits::BATCH_SHARE).max(1).min(self.queue / 2);
        let batch = self.lines[Class::Batch as usize].len();
        let from = match claim.class {
            Class::Interactive if batch > share => Class::Batch,
            Class::Batch if batch < share => Class::Interactive,
            same => same,
        };
        if from == claim.class && !self.line(from).is_owed(claim.tenant, claim.weight) {
            return false;
        }
        let Some((_, waker)) = self.line(from).evict() else { return false };
        self.wake.extend(waker);
        true
    }
}

impl Bulkhead {
    /// `max_streams` slots, all free, and room for `queue` waiters.
    pub fn new(max_streams: usize, queue: usize) -> Arc<Bulkhead> {
        let lines = [Line::default(), Line::default()];
        let (granted, wake) = (BTreeSet::new(), Vec::new());
        let (max, used, passed, arrived) = (max_streams, 0, 0, 0);
        let state = State { max, queue, used, lines, granted, passed, arrived, wake };
        Arc::new(Bulkhead(Mutex::new(state)))
    }

    /// Sets new limits. More slots go to waiters at once. With fewer, who has one keeps it, and none
    /// is granted until so many are free; with a shorter queue, who waits goes on waiting.
    pub fn set(&self, max_streams: usize, queue: usize) {
        self.with(|state| (state.max, state.queue) = (max_streams, queue));
    }

    /// Asks for a slot. Whoever comes while others wait waits behind them.
    pub fn enter(self: &Arc<Bulkhead>, claim: Claim) -> Entry {
        let Claim { tenant, weight, class } = claim;
        self.with(|state| {
            // Then nobody waits: see the invariant.
            if state.used < state.max {
                state.used += 1;
                return Entry::Slot(Slot(self.clone()));
            }
            if state.waiting() >= state.queue && !state.make_room(claim) {
                return Entry::Full;
            }
            state.arrived += 1;
            let seq = state.arrived;
            state.line(class).push(tenant, weight, seq);
            Entry::Wait(Ticket { bulkhead: self.clone(), tenant, class, over: false, seq })
        })
    }

    /// Slots in use, those granted to tickets that have not fetched them included.
    pub fn used(&self) -> usize {
        self.with(|state| state.used)
    }

    /// How many wait.
    pub fn depth(&self) -> usize {
        self.with(|state| state.waiting())
    }

    /// How many slots there are.
    pub fn max(&self) -> usize {
        self.with(|state| state.max)
    }

    /// Runs `act` under the lock, then grants what is free and, with the lock free again, wakes.
    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        // Nothing under the lock panics half-way through a change.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut state);
        state.grant();
        let wake = std::mem::take(&mut state.wake);
        drop(state);
        wake.into_iter().for_each(Waker::wake);
        result
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.with(|state| state.used -= 1);
    }
}

impl Ticket {
    /// The slot once it is granted, or the news that the place was lost; until then the waker is
    /// kept. To be called again, like any future, only until it gave its result: after that it is
    /// pending for ever.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Slot, Evicted>> {
        if self.over {
            return Poll::Pending;
        }
        // Cloned before the lock is taken; what it replaces is dropped after.
        let mut waker = Some(cx.waker().clone());
        let granted = self.bulkhead.with(|state| {
            if let Some(kept) = state.line(self.class).waker(self.tenant, self.seq) {
                std::mem::swap(kept, &mut waker);
                return None;
            }
            Some(state.granted.remove(&self.seq))
        });
        let Some(granted) = granted else { return Poll::Pending };
        self.over = true;
        Poll::Ready(if granted { Ok(Slot(self.bulkhead.clone())) } else { Err(Evicted) })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // The waker is handed out, to be dropped when the lock is free.
        let _waker = self.bulkhead.with(|state| {
            if state.granted.remove(&self.seq) {
                state.used -= 1;
                return None;
            }
            state.line(self.class).remove(self.tenant, self.seq)
        });
    }
}
