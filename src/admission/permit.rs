//! Counted places that are given back by dropping them.
//!
//! Invariant: a [`Permit`] is released exactly once, whatever way its holder ends. One atomic
//! update to take, one to release, and as much for the places around them, if there are any; shared
//! by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of places shared by all workers.
#[derive(Debug)]
pub struct Permits {
    used: AtomicUsize,
    max: AtomicUsize,
    /// Each place here takes one of these too.
    around: Option<Arc<Permits>>,
}

/// One taken place; dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<Permits>);

/// Whose places were all taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Those asked for.
    Here,
    /// Those around them.
    Around,
}

impl Permits {
    /// `max` places, all free.
    pub fn new(max: usize) -> Arc<Permits> {
        Arc::new(Permits { used: AtomicUsize::new(0), max: AtomicUsize::new(max), around: None })
    }

    /// `max` places, all free, each of which takes one of `around` while it is taken.
    pub fn within(around: &Arc<Permits>, max: usize) -> Arc<Permits> {
        let around = Some(around.clone());
        Arc::new(Permits { used: AtomicUsize::new(0), max: AtomicUsize::new(max), around })
    }

    /// Takes a place; `None` when all are taken.
    pub fn take(self: &Arc<Permits>) -> Option<Permit> {
        self.try_take().ok()
    }

    /// Takes a place.
    ///
    /// # Errors
    /// Where there was none.
    pub fn try_take(self: &Arc<Permits>) -> Result<Permit, Full> {
        if !self.count() {
            return Err(Full::Here);
        }
        if self.around.as_ref().is_some_and(|around| !around.count()) {
            self.used.fetch_sub(1, Ordering::AcqRel);
            return Err(Full::Around);
        }
        Ok(Permit(self.clone()))
    }

    fn count(&self) -> bool {
        let more = |used| (used < self.max()).then_some(used + 1);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
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
        if let Some(around) = &self.0.around {
            around.used.fetch_sub(1, Ordering::AcqRel);
        }
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
    fn places_within_others_take_one_of_both() {
        let around = Permits::new(3);
        let within = Permits::within(&around, 2);
        let other = around.take();
        let a = within.try_take().expect("a place");
        assert_eq!((within.used(), around.used()), (1, 2));
        let b = within.try_take().expect("a place");
        assert_eq!(within.try_take().expect_err("two are taken"), Full::Here);
        drop(b);
        let last = around.take();
        assert_eq!(within.try_take().expect_err("three are taken"), Full::Around);
        assert_eq!((within.used(), around.used()), (1, 3));
        drop((a, last));
        assert_eq!((within.used(), around.used()), (0, 1));
        drop(other);
        assert_eq!(around.used(), 0);
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
