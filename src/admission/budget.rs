//! The memory budget: bytes of request bodies, backlogs and queues that the whole process may hold.
//!
//! Owns: one count. It does not allocate or free anything: whoever holds bytes keeps a [`Charge`] of
//! the same size beside them. What is held already is counted even beyond the budget, since it is
//! there; the budget then says by how much it is too much ([`Budget::excess`]), and new work is
//! refused a little earlier ([`Budget::admits`]).
//!
//! Invariant: `used` is the sum of all charges; a charge is taken back exactly once, by dropping
//! it, or by who keeps its size itself ([`Budget::changed`]). Cost: one atomic update where a charge changes.
//!
//! All accesses are `Relaxed`. The count guards no other memory: nobody reads anything because of
//! its value. That no update is lost, and that a limit is not passed by two at once, follows from
//! the updates of one atomic having one order that all threads agree on, which holds for every
//! ordering. A thread may see the count a moment late, and it may have changed a moment later in any
//! case.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::limits;

/// A number of bytes shared by all workers.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
}

/// Bytes counted against a budget; dropping it takes them back.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    /// Never more than [`Charge::MOST`].
    bytes: usize,
}

const _: () = assert!(size_of::<Charge>() == 2 * size_of::<usize>(), "every stream may hold some");

impl Budget {
    /// `max` bytes, none used.
    pub fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicUsize::new(0), max: AtomicUsize::new(max) })
    }

    /// Sets a new size, in bytes; what is charged stays charged.
    pub fn set(&self, max: usize) {
        self.max.store(max, Relaxed);
    }

    /// Bytes charged now.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// The budget's size, bytes.
    pub fn max(&self) -> usize {
        self.max.load(Relaxed)
    }

    /// Whether there is room for new work: not when only the last part of the budget
    /// ([`limits::MEMORY_RESERVE`]) is left, which is kept for the work that has begun.
    pub fn admits(&self) -> bool {
        let max = self.max();
        self.used() < max - max / limits::MEMORY_RESERVE
    }

    /// For who keeps the size of its charge itself, and never loses it: what was a charge of `from`
    /// bytes is one of `to`, within the budget or not.
    pub fn changed(&self, from: u32, to: u32) {
        self.replaced(from as usize, to as usize);
    }

    fn replaced(&self, from: usize, to: usize) {
        if to > from {
            self.used.fetch_add(to - from, Relaxed);
        } else if to < from {
            self.used.fetch_sub(from - to, Relaxed);
        }
    }

    /// Bytes charged beyond the budget, to be freed by cutting the largest backlogs.
    pub fn excess(&self) -> usize {
        self.used().saturating_sub(self.max())
    }
}

impl Charge {
    /// The most that one charge counts, bytes: 4 GiB less one. What is held beyond is not counted;
    /// no body or backlog that is kept whole is as large. The sum then cannot overflow: that would
    /// take four thousand million charges of that size.
    pub const MOST: usize = u32::MAX as usize;

    /// A charge of no bytes.
    pub fn none(budget: &Arc<Budget>) -> Charge {
        Charge { budget: budget.clone(), bytes: 0 }
    }

    /// What is charged, to be held by somebody else; nothing is charged here then.
    pub fn take(&mut self) -> Charge {
        let bytes = std::mem::take(&mut self.bytes);
        Charge { budget: self.budget.clone(), bytes }
    }

    /// Bytes charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it a charge of `bytes`, within the budget or not; above [`Charge::MOST`] it counts as
    /// that.
    pub fn set(&mut self, bytes: usize) {
        let bytes = bytes.min(Charge::MOST);
        self.budget.replaced(self.bytes, bytes);
        self.bytes = bytes;
    }

    /// Adds `bytes`; `false`, and nothing changes, if the budget would be passed by that or the
    /// charge grow beyond [`Charge::MOST`]. Adding nothing always succeeds.
    #[must_use]
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let Some(grown) = self.bytes.checked_add(bytes).filter(|grown| *grown <= Charge::MOST)
        else {
            return false;
        };
        let within = |used: usize| {
            let sum = used.checked_add(bytes)?;
            (sum <= self.budget.max()).then_some(sum)
        };
        let fits = self.budget.used.fetch_update(Relaxed, Relaxed, within).is_ok();
        if fits {
            self.bytes = grown;
        }
        fits
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn charges_grow_shrink_and_come_back() {
        let budget = Budget::new(100);
        let mut a = Charge::none(&budget);
        a.set(60);
        let mut b = Charge::none(&budget);
        b.set(30);
        assert_eq!((budget.used(), budget.max(), budget.excess()), (90, 100, 0));
        a.set(10);
        assert_eq!((a.bytes(), budget.used()), (10, 40));
        b.set(200);
        assert_eq!((budget.used(), budget.excess()), (210, 110));
        drop(b);
        drop(a);
        assert_eq!((budget.used(), budget.excess()), (0, 0));
    }

    #[test]
    fn new_work_is_refused_from_95_percent_on() {
        let budget = Budget::new(1000);
        let mut charge = Charge::none(&budget);
        for (bytes, admits) in [(0, true), (949, true), (950, false), (1000, false), (2000, false)]
        {
            charge.set(bytes);
            assert_eq!(budget.admits(), admits, "{bytes}");
        }
        budget.set(4000);
        assert!(budget.admits(), "a larger budget holds at once");
        budget.set(0);
        assert_eq!((budget.admits(), budget.excess()), (false, 2000));
        charge.set(0);
        assert!(!budget.admits(), "no budget, no work");
        budget.set(usize::MAX);
        assert!(budget.admits());
    }

    #[test]
    fn growing_stops_at_the_budget() {
        let budget = Budget::new(100);
        let (mut a, mut b) = (Charge::none(&budget), Charge::none(&budget));
        assert!(a.try_grow(60) && b.try_grow(40) && a.try_grow(0));
        assert!(!a.try_grow(1));
        assert_eq!((a.bytes(), b.bytes(), budget.used()), (60, 40, 100));
        budget.set(50);
        assert!(!b.try_grow(1) && b.try_grow(0));
        a.set(9);
        assert!(b.try_grow(1) && !b.try_grow(1));
    }

    #[test]
    fn sums_do_not_overflow() {
        let budget = Budget::new(usize::MAX);
        let mut charges: Vec<Charge> = (0..100).map(|_| Charge::none(&budget)).collect();
        for charge in &mut charges {
            charge.set(usize::MAX);
            assert_eq!(charge.bytes(), Charge::MOST);
            assert!(!charge.try_grow(1) && !charge.try_grow(usize::MAX));
        }
        assert_eq!(budget.used(), 100 * Charge::MOST);
        let mut other = Charge::none(&budget);
        assert!(!other.try_grow(usize::MAX) && other.try_grow(Charge::MOST));
        drop((charges, other));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn threads_never_grow_it_past_its_size_and_lose_no_byte() {
        let budget = Budget::new(1000);
        let grown = thread::scope(|scope| {
            let work = |seed: usize| {
                let (mut charge, mut grown) = (Charge::none(&budget), 0_usize);
                for step in 0..20_000 {
                    let bytes = (seed * 7919 + step * 104_729) % 400;
                    grown += usize::from(charge.try_grow(bytes));
                    assert!(budget.used() <= 1000 && budget.used() >= charge.bytes());
                    charge.set(charge.bytes() / 2);
                }
                grown
            };
            let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || work(seed))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<usize>()
        });
        assert!(grown > 1000, "{grown}");
        assert_eq!(budget.used(), 0);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(usize, usize),
        Grow(usize, usize),
        Drop(usize),
        Max(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let bytes = || prop_oneof![8 => 0..50_usize, 1 => 0..2000_usize, 1 => Just(usize::MAX)];
        prop_oneof![
            4 => (0..5_usize, bytes()).prop_map(|(i, bytes)| Op::Set(i, bytes)),
            4 => (0..5_usize, bytes()).prop_map(|(i, bytes)| Op::Grow(i, bytes)),
            1 => (0..5_usize).prop_map(Op::Drop),
            1 => bytes().prop_map(Op::Max),
        ]
    }

    proptest! {
        #[test]
        fn it_is_the_sum_of_its_charges(ops in proptest::collection::vec(op(), 0..100)) {
            let (budget, mut max) = (Budget::new(100), 100);
            let mut charges: Vec<Charge> = (0..5).map(|_| Charge::none(&budget)).collect();
            let mut model = [0_usize; 5];
            for op in ops {
                let sum: usize = model.iter().sum();
                match op {
                    Op::Set(i, bytes) => {
                        charges[i].set(bytes);
                        model[i] = bytes.min(Charge::MOST);
                    }
                    Op::Grow(i, bytes) => {
                        let fits = bytes == 0
                            || bytes <= Charge::MOST - model[i] && sum + bytes <= max;
                        prop_assert_eq!(charges[i].try_grow(bytes), fits);
                        model[i] += if fits { bytes } else { 0 };
                    }
                    Op::Drop(i) => {
                        charges[i] = Charge::none(&budget);
                        model[i] = 0;
                    }
                    Op::Max(bytes) => {
                        budget.set(bytes);
                        max = bytes;
                    }
                }
                let sum: usize = model.iter().sum();
                prop_assert_eq!(budget.used(), sum);
                prop_assert_eq!(budget.excess(), sum.saturating_sub(max));
                let room = sum as u128 * 100 < max as u128 * 95;
                prop_assert_eq!(budget.admits(), room);
            }
            drop(charges);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
