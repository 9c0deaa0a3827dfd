//! Counted places that are given back by dropping them.
//!
//! Invariant: a [`Permit`] is released exactly once, whatever way its holder ends. One atomic
//! update to take, one to release; shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of places shared by all workers.
#[derive(Debug)]
pub struct Permits {
    used: AtomicUsize,
    max: AtomicUsize,
}

/// One taken place; dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<Permits>);

impl Permits {
    /// `max` places, all free.
    pub fn new(max: usize) -> Arc<Permits> {
        Arc::new(Permits { used: AtomicUsize::new(0), max: AtomicUsize::new(max) })
    }

    /// Takes a place; `None` when all are taken.
    pub fn take(self: &Arc<Permits>) -> Option<Permit> {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                (used < self.max()).then_some(used + 1)
            })
            .ok()
            .map(|_| Permit(self.clone()))
    }

    /// How many places are taken now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// How many places there are.
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Changes how many there are. What was taken stays taken: after a lower number nothing more is
    /// given until enough has come back.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let places = Permits::new(2);
        let (a, b) = (places.take(), places.take());
        assert!(a.is_some() && b.is_some() && places.take().is_none());
        drop(a);
        assert_eq!(places.used(), 1);
        assert!(places.take().is_some(), "freed and taken again");
        drop(b);
        assert_eq!(places.used(), 0);
    }

    #[test]
    fn a_lower_number_takes_nothing_away_and_gives_nothing_more() {
        let places = Permits::new(3);
        let taken: Vec<_> = (0..3).filter_map(|_| places.take()).collect();
        places.set_max(2);
        assert_eq!((places.used(), places.max()), (3, 2));
        let mut taken = taken.into_iter();
        drop(taken.next());
        assert!(places.take().is_none(), "two are still taken");
        drop(taken.next());
        assert!(places.take().is_some());
        places.set_max(9);
        let more: Vec<_> = (0..9).filter_map(|_| places.take()).collect();
        assert_eq!(more.len(), 8);
    }
}
