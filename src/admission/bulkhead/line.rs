//! The waiters of one class: first in, first out within a tenant, weighted fair between tenants.
//!
//! Self-clocked fair queueing (Golestani, INFOCOM 1994). Each tenant with waiters has a tag: the
//! virtual time at which its oldest waiter is through, had every tenant its weight's share. The
//! smallest tag is next, and becomes the present of the virtual clock; the tenant's next waiter is
//! due `COST / weight` later. A tenant that comes (back) starts at the present, so that it neither
//! saved up credit while it was away nor escapes what it owes: since its last granted tag lies in
//! the past, nothing needs to be remembered of a tenant without waiters.
//!
//! Invariant: a tenant has a [`Flow`], a turn and a load exactly while it has waiters. No waker is
//! called or dropped in here: they are handed out. Cost: O(log n) for everything.

use std::collections::BTreeMap;
use std::task::Waker;

/// Virtual time that one grant takes a tenant of weight 1. So large that whole numbers divide it
/// finely, so small that `u128` does not overflow before 2^64 grants.
const COST: u128 = 1 << 64;

/// The waiters of one class.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// By tenant.
    flows: BTreeMap<u32, Flow>,
    /// Tenants by who is next: tag, then the oldest waiter.
    turns: BTreeMap<(u128, u64), u32>,
    /// Tenants by who holds the most: surplus, then the youngest waiter.
    loads: BTreeMap<(u128, u64), u32>,
    /// The virtual present: the tag granted last.
    now: u128,
    waiters: usize,
}

/// One tenant's waiters.
#[derive(Debug)]
struct Flow {
    /// By arrival; without a waker until first polled.
    waiters: BTreeMap<u64, Option<Waker>>,
    /// Of the newest claim: a changed weight is in force at once.
    weight: u32,
    tag: u128,
}

impl Flow {
    /// Its keys in [`Line::turns`] and [`Line::loads`]; `None` without waiters.
    fn places(&self) -> Option<((u128, u64), (u128, u64))> {
        let (oldest, _) = self.waiters.first_key_value()?;
        let (youngest, _) = self.waiters.last_key_value()?;
        let surplus = surplus(self.waiters.len(), self.weight);
        Some(((self.tag, *oldest), (surplus, *youngest)))
    }
}

/// How much `waiters` of one tenant are over its first, which every tenant may have, by weight.
fn surplus(waiters: usize, weight: u32) -> u128 {
    (waiters as u128).saturating_sub(1) * cost(weight)
}

fn cost(weight: u32) -> u128 {
    COST / u128::from(weight.max(1))
}

impl Line {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiters
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiters == 0
    }

    /// Puts the newest arrival, `seq`, behind its tenant's other waiters.
    pub(super) fn push(&mut self, tenant: u32, weight: u32, seq: u64) {
        let tag = self.now + cost(weight);
        let new = || Flow { waiters: BTreeMap::new(), weight, tag };
        self.flows.entry(tenant).or_insert_with(new);
        self.change(tenant, |flow| {
            flow.weight = weight;
            flow.waiters.insert(seq, None)
        });
    }

    /// Takes out who is next.
    pub(super) fn pop(&mut self) -> Option<(u64, Option<Waker>)> {
        let (&(tag, _), &tenant) = self.turns.first_key_value()?;
        self.now = tag;
        self.change(tenant, |flow| {
            flow.tag += cost(flow.weight);
            flow.waiters.pop_first()
        })?
    }

    /// Takes out the youngest waiter of the tenant with the most.
    pub(super) fn evict(&mut self) -> Option<(u64, Option<Waker>)> {
        let (_, &tenant) = self.loads.last_key_value()?;
        self.change(tenant, |flow| flow.waiters.pop_last())?
    }

    /// Whether one more waiter of this tenant would still leave it with less than the tenant with
    /// the most has now. Tenants of equal load so cannot push each other out in turns.
    pub(super) fn is_owed(&self, tenant: u32, weight: u32) -> bool {
        let held = self.flows.get(&tenant).map_or(0, |flow| flow.waiters.len());
        let most = self.loads.last_key_value().map_or(0, |(&(surplus, _), _)| surplus);
        surplus(held + 1, weight) < most
    }

    /// Takes out a waiter that leaves; `None` if it is not here.
    pub(super) fn remove(&mut self, tenant: u32, seq: u64) -> Option<Option<Waker>> {
        self.change(tenant, |flow| flow.waiters.remove(&seq))?
    }

    /// Where the waker of a waiter is kept; `None` if it is not here.
    pub(super) fn waker(&mut self, tenant: u32, seq: u64) -> Option<&mut Option<Waker>> {
        self.flows.get_mut(&tenant)?.waiters.get_mut(&seq)
    }

    /// Changes one tenant's flow and files it anew, or drops it when nobody is left in it.
    fn change<R>(&mut self, tenant: u32, act: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        let flow = self.flows.get_mut(&tenant)?;
        if let Some((turn, load)) = flow.places() {
            self.turns.remove(&turn);
            self.loads.remove(&load);
        }
        self.waiters -= flow.waiters.len();
        let result = act(flow);
        self.waiters += flow.waiters.len();
        match flow.places() {
            Some((turn, load)) => {
                self.turns.insert(turn, tenant);
                self.loads.insert(load, tenant);
            }
            None => {
                self.flows.remove(&tenant);
            }
        }
        Some(result)
    }

    /// Panics unless all that is kept twice agrees.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let waiters: usize = self.flows.values().map(|flow| flow.waiters.len()).sum();
        assert_eq!(waiters, self.waiters);
        assert_eq!((self.turns.len(), self.loads.len()), (self.flows.len(), self.flows.len()));
        for (tenant, flow) in &self.flows {
            let (turn, load) = flow.places().expect("a flow has waiters");
            assert_eq!(self.turns.get(&turn), Some(tenant));
            assert_eq!(self.loads.get(&load), Some(tenant));
            assert!(flow.tag >= self.now, "nobody is due before the present");
        }
    }
}
