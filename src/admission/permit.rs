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
    max: usize,
}

/// One taken place; dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<Permits>);

impl Permits {
    /// `max` places, all free.
    pub fn new(max: usize) -> Arc<Permits> {
        Arc::new(Permits { used: AtomicUsize::new(0), max })
    }

    /// Takes a place; `None` when all are taken.
    pub fn take(self: &Arc<Permits>) -> Option<Permit> {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                (used < self.max).then_some(used + 1)
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
        self.max
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
}
