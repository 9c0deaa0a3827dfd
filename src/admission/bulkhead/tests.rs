//! The bulkhead against a slow model of itself, its promises one by one, and threads at it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Wake;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::Class::{Batch, Interactive};
use super::*;
use crate::clock::Clock;
use crate::limits::BATCH_SHARE;

/// Counts its wakes, and that the bulkhead was locked at none of them, nor when it is dropped.
struct Probe {
    bulkhead: Arc<Bulkhead>,
    woken: AtomicUsize,
    locked: Arc<AtomicBool>,
}

impl Probe {
    fn look(&self) {
        if self.bulkhead.0.try_lock().is_err() {
            self.locked.store(true, Ordering::SeqCst);
        }
    }
}

impl Wake for Probe {
    fn wake(self: Arc<Probe>) {
        self.look();
        self.woken.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.look();
    }
}

fn claim(tenant: u32, weight: u32, class: Class) -> Claim {
    Claim { tenant, weight, class }
}

/// A ticket that must be had.
#[track_caller]
fn wait(bulkhead: &Arc<Bulkhead>, claim: Claim) -> Ticket {
    match bulkhead.enter(claim) {
        Entry::Wait(ticket) => ticket,
        other => panic!("{claim:?} got {other:?}"),
    }
}

#[track_caller]
fn slot(bulkhead: &Arc<Bulkhead>) -> Slot {
    match bulkhead.enter(claim(0, 1, Interactive)) {
        Entry::Slot(slot) => slot,
        other => panic!("{other:?}"),
    }
}

fn poll(ticket: &mut Ticket) -> Poll<Result<Slot, Evicted>> {
    ticket.poll(&mut Context::from_waker(Waker::noop()))
}

fn evicted(ticket: &mut Ticket) -> bool {
    matches!(poll(ticket), Poll::Ready(Err(Evicted)))
}

/// The slot that a ticket was granted.
#[track_caller]
fn fetch(ticket: &mut Ticket) -> Slot {
    match poll(ticket) {
        Poll::Ready(Ok(slot)) => slot,
        other => panic!("not granted: {other:?}"),
    }
}

/// Frees the only slot `count` times and lists who was granted it; a claim that was granted is made
/// anew if `again` says so.
fn grants(claims: &[Claim], count: usize, again: impl Fn(Claim) -> bool) -> Vec<Claim> {
    let bulkhead = Bulkhead::new(1, claims.len() + 1);
    let mut held = Some(slot(&bulkhead));
    let mut tickets: Vec<(Claim, Ticket)> =
        claims.iter().map(|claim| (*claim, wait(&bulkhead, *claim))).collect();
    let mut order = Vec::new();
    while order.len() < count {
        held.take();
        let (at, fetched) = tickets
            .iter_mut()
            .enumerate()
            .find_map(|(at, (_, ticket))| match poll(ticket) {
                Poll::Ready(fetched) => Some((at, fetched.expect("nobody is pushed out"))),
                Poll::Pending => None,
            })
            .expect("a free slot is granted");
        held = Some(fetched);
        let (claim, _) = tickets.remove(at);
        order.push(claim);
        if again(claim) {
            tickets.push((claim, wait(&bulkhead, claim)));
        }
    }
    order
}

fn of_tenant(order: &[Claim], tenant: u32) -> usize {
    order.iter().filter(|claim| claim.tenant == tenant).count()
}

/// Exactly nothing is left.
#[track_caller]
fn assert_empty(bulkhead: &Bulkhead) {
    let state = bulkhead.0.lock().unwrap();
    state.lines.iter().for_each(Line::check);
    assert_eq!((state.used, state.waiting(), state.granted.len()), (0, 0, 0));
}

#[test]
fn slots_are_bounded_and_go_to_the_next_in_line() {
    let bulkhead = Bulkhead::new(2, 2);
    let (a, b) = (slot(&bulkhead), slot(&bulkhead));
    let mut first = wait(&bulkhead, claim(1, 1, Interactive));
    let mut second = wait(&bulkhead, claim(1, 1, Interactive));
    assert!(matches!(bulkhead.enter(claim(1, 1, Interactive)), Entry::Full));
    assert_eq!((bulkhead.used(), bulkhead.depth(), bulkhead.max()), (2, 2, 2));
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    drop(a);
    assert!(poll(&mut second).is_pending(), "not before the first");
    assert_eq!((bulkhead.used(), bulkhead.depth()), (2, 1), "counted before it is fetched");
    let fetched = fetch(&mut first);
    assert!(poll(&mut first).is_pending(), "once only");
    drop((b, first));
    drop(fetched);
    drop(fetch(&mut second));
    assert_empty(&bulkhead);
}

#[test]
fn a_newcomer_does_not_take_a_granted_slot() {
    let bulkhead = Bulkhead::new(1, 4);
    let held = slot(&bulkhead);
    let mut waiting = wait(&bulkhead, claim(1, 1, Batch));
    drop(held);
    let mut newcomer = wait(&bulkhead, claim(1, 1, Interactive));
    assert!(poll(&mut newcomer).is_pending());
    drop(fetch(&mut waiting));
    drop(fetch(&mut newcomer));
}

#[test]
fn a_grant_that_nobody_fetches_goes_to_the_next() {
    let bulkhead = Bulkhead::new(1, 4);
    let held = slot(&bulkhead);
    let gone = wait(&bulkhead, claim(1, 1, Interactive));
    let mut next = wait(&bulkhead, claim(1, 1, Interactive));
    drop(held);
    assert!(poll(&mut next).is_pending());
    drop(gone);
    assert_eq!((bulkhead.used(), bulkhead.depth()), (1, 0));
    drop(fetch(&mut next));
    assert_empty(&bulkhead);
}

#[test]
fn new_limits_hold_at_once() {
    let bulkhead = Bulkhead::new(1, 8);
    let mut held = vec![slot(&bulkhead)];
    let mut tickets: Vec<Ticket> =
        (0..4).map(|_| wait(&bulkhead, claim(1, 1, Interactive))).collect();
    bulkhead.set(3, 8);
    assert_eq!((bulkhead.used(), bulkhead.depth()), (3, 2));
    for ticket in &mut tickets[..2] {
        held.push(fetch(ticket));
    }
    bulkhead.set(1, 1);
    assert_eq!((bulkhead.used(), bulkhead.depth(), bulkhead.max()), (3, 2, 1), "nobody is cut");
    assert!(matches!(bulkhead.enter(claim(1, 1, Interactive)), Entry::Full));
    held.truncate(1);
    assert_eq!((bulkhead.used(), bulkhead.depth()), (1, 2), "none until below");
    held.clear();
    assert_eq!((bulkhead.used(), bulkhead.depth()), (1, 1));
    bulkhead.set(0, 0);
    drop(tickets);
    assert!(matches!(bulkhead.enter(claim(1, 1, Interactive)), Entry::Full));
    assert_empty(&bulkhead);
}

#[test]
fn wakers_run_and_end_outside_of_the_lock() {
    let bulkhead = Bulkhead::new(1, 4);
    let locked = Arc::new(AtomicBool::new(false));
    let probe = || {
        let (bulkhead, locked) = (bulkhead.clone(), locked.clone());
        Arc::new(Probe { bulkhead, woken: AtomicUsize::new(0), locked })
    };
    let held = slot(&bulkhead);
    let mut tickets: Vec<Ticket> =
        (0..4).map(|_| wait(&bulkhead, claim(1, 1, Interactive))).collect();
    for ticket in &mut tickets {
        // The second poll replaces the first one's waker, which ends with that.
        for _ in 0..2 {
            let _ = ticket.poll(&mut Context::from_waker(&Waker::from(probe())));
        }
    }
    let last = probe();
    let _ = tickets[1].poll(&mut Context::from_waker(&Waker::from(last.clone())));
    let lone = wait(&bulkhead, claim(2, 1, Interactive));
    assert!(evicted(&mut tickets[3]));
    drop(tickets.pop());
    drop(tickets.pop());
    assert!(poll(&mut tickets[0]).is_pending());
    drop(held);
    drop(tickets.remove(0));
    assert_eq!(last.woken.load(Ordering::SeqCst), 0, "the other tenant's turn");
    drop(lone);
    assert_eq!(last.woken.load(Ordering::SeqCst), 1);
    drop(tickets);
    assert!(!locked.load(Ordering::SeqCst));
    assert_empty(&bulkhead);
}

#[test]
fn a_lone_request_passes_a_thousand_of_another_tenant() {
    let mut claims = vec![claim(1, 1, Interactive); 1000];
    claims.push(claim(2, 1, Interactive));
    assert_eq!(of_tenant(&grants(&claims, 2, |_| false), 2), 1);
    // Also when the other tenant's turns have gone on for long.
    let bulkhead = Bulkhead::new(1, 1001);
    let mut held = slot(&bulkhead);
    let mut many: Vec<Ticket> =
        (0..1000).map(|_| wait(&bulkhead, claim(1, 1, Interactive))).collect();
    for ticket in &mut many[..500] {
        drop(held);
        held = fetch(ticket);
    }
    let mut lone = wait(&bulkhead, claim(2, 1, Interactive));
    drop(held);
    drop(fetch(&mut many[500]));
    drop(fetch(&mut lone));
}

#[test]
fn an_idle_tenant_saves_nothing_up() {
    let bulkhead = Bulkhead::new(1, 1000);
    let mut held = slot(&bulkhead);
    let mut ones: Vec<Ticket> =
        (0..150).map(|_| wait(&bulkhead, claim(1, 1, Interactive))).collect();
    for mut ticket in ones.drain(..100) {
        drop(held);
        held = fetch(&mut ticket);
    }
    let twos: Vec<Ticket> = (0..20).map(|_| wait(&bulkhead, claim(2, 1, Interactive))).collect();
    for (mut one, mut two) in ones.into_iter().zip(twos) {
        drop(held);
        drop(fetch(&mut one));
        held = fetch(&mut two);
    }
}

#[test]
fn one_request_at_a_time_gains_and_loses_nothing() {
    // Tenant 2 always has one waiter only, so that nothing is kept of it between two.
    let mut claims = vec![claim(1, 1, Interactive); 200];
    claims.push(claim(2, 1, Interactive));
    let order = grants(&claims, 100, |claim| claim.tenant == 2);
    assert_eq!(of_tenant(&order, 2), 50);
}

#[test]
fn tenants_of_equal_claim_are_served_as_they_came() {
    let claims: Vec<Claim> = (0..100).rev().map(|n| claim(n, 3, Interactive)).collect();
    let order: Vec<u32> = grants(&claims, 100, |_| false).iter().map(|c| c.tenant).collect();
    assert_eq!(order, (0..100).rev().collect::<Vec<u32>>());
}

#[test]
fn batch_has_its_share_and_no_more_while_both_wait() {
    let mut claims = vec![claim(1, 1, Batch); 4];
    claims.extend(vec![claim(2, 1, Interactive); 4]);
    let order = grants(&claims, 800, |_| true);
    for (at, claim) in order.iter().enumerate() {
        let expected = if at % BATCH_SHARE == BATCH_SHARE - 1 { Batch } else { Interactive };
        assert_eq!(claim.class, expected, "grant {at}");
    }
    // Alone, each has everything.
    for class in [Interactive, Batch] {
        assert_eq!(grants(&[claim(1, 1, class); 3], 50, |_| true).len(), 50);
    }
}

#[test]
fn one_tenant_cannot_lock_another_out_of_the_queue() {
    for class in [Interactive, Batch] {
        let bulkhead = Bulkhead::new(1, 100);
        let _held = slot(&bulkhead);
        let mut ones: Vec<Ticket> = (0..100).map(|_| wait(&bulkhead, claim(1, 1, class))).collect();
        assert!(matches!(bulkhead.enter(claim(1, 1, class)), Entry::Full), "its own fault");
        let mut twos: Vec<Ticket> = (0..50).map(|_| wait(&bulkhead, claim(2, 1, class))).collect();
        assert!(matches!(bulkhead.enter(claim(2, 1, class)), Entry::Full), "half is its share");
        assert!(matches!(bulkhead.enter(claim(1, 1, class)), Entry::Full), "so it is the other's");
        let mut three = wait(&bulkhead, claim(3, 1, class));
        assert_eq!((bulkhead.used(), bulkhead.depth()), (1, 100));
        assert!(!evicted(&mut three));
        // The youngest of the one with the most went: of equals, the youngest of all.
        let gone = |tickets: &mut [Ticket]| tickets.iter_mut().map(evicted).collect::<Vec<_>>();
        assert_eq!(gone(&mut ones), [vec![false; 50], vec![true; 50]].concat());
        assert_eq!(gone(&mut twos), [vec![false; 49], vec![true; 1]].concat());
    }
}

#[test]
fn places_in_the_full_queue_go_by_weight() {
    let bulkhead = Bulkhead::new(1, 100);
    let _held = slot(&bulkhead);
    let _ones: Vec<Ticket> = (0..100).map(|_| wait(&bulkhead, claim(1, 1, Interactive))).collect();
    let heavier = (0..100).map(|_| bulkhead.enter(claim(2, 3, Interactive)));
    let places: Vec<Entry> = heavier.filter(|entry| matches!(entry, Entry::Wait(_))).collect();
    assert_eq!(places.len(), 75);
}

#[test]
fn the_lightest_tenant_may_have_one_waiter() {
    let bulkhead = Bulkhead::new(1, 10);
    let _held = slot(&bulkhead);
    let _heavy: Vec<Ticket> =
        (0..10).map(|_| wait(&bulkhead, claim(1, u32::MAX, Interactive))).collect();
    let mut light = wait(&bulkhead, claim(2, 1, Interactive));
    assert!(matches!(bulkhead.enter(claim(2, 1, Interactive)), Entry::Full));
    assert!(!evicted(&mut light));
}

#[test]
fn classes_push_each_other_out_down_to_their_shares() {
    let bulkhead = Bulkhead::new(1, 80);
    let _held = slot(&bulkhead);
    // Each of a tenant of its own, so that none has more than another.
    let fill = |class: Class| {
        let mut tickets = Vec::new();
        for _ in 0..100 {
            if let Entry::Wait(ticket) = bulkhead.enter(claim(tickets.len() as u32, 1, class)) {
                tickets.push(ticket);
            }
        }
        tickets
    };
    let gone =
        |tickets: &mut [Ticket]| tickets.iter_mut().map(evicted).filter(|gone| *gone).count();
    let mut batch = fill(Batch);
    let mut interactive = fill(Interactive);
    assert_eq!((batch.len(), interactive.len()), (80, 70));
    assert_eq!(gone(&mut batch), 70);
    drop(batch);
    interactive.extend(fill(Interactive));
    assert_eq!(interactive.len(), 80);
    let batch = fill(Batch);
    assert_eq!(batch.len(), 10);
    assert_eq!(gone(&mut interactive), 10);
    assert_eq!(bulkhead.depth(), 80);
}

/// The bulkhead again, as lists that are searched from end to end. Weights are powers of two up to
/// 8, so that its virtual time can count in eighths.
#[derive(Default)]
struct Model {
    max: usize,
    queue: usize,
    used: usize,
    /// In the order they came: ticket, claim.
    waiting: Vec<(usize, Claim)>,
    granted: BTreeSet<usize>,
    evicted: BTreeSet<usize>,
    /// By class and tenant: the tag, the weight.
    tags: BTreeMap<(bool, u32), (u64, u32)>,
    now: [u64; 2],
    passed: usize,
}

impl Model {
    fn of(&self, class: Class) -> Vec<(usize, Claim)> {
        self.waiting.iter().filter(|(_, claim)| claim.class == class).copied().collect()
    }

    fn leave(&mut self, ticket: usize) -> Claim {
        let at = self.waiting.iter().position(|(n, _)| *n == ticket).expect("it waits");
        let (_, claim) = self.waiting.remove(at);
        let left =
            self.waiting.iter().any(|(_, c)| (c.tenant, c.class) == (claim.tenant, claim.class));
        if !left {
            self.tags.remove(&(claim.class == Batch, claim.tenant));
        }
        claim
    }

    fn grant(&mut self) {
        while self.used < self.max && !self.waiting.is_empty() {
            let (interactive, batch) = (self.of(Interactive), self.of(Batch));
            let both = !interactive.is_empty() && !batch.is_empty();
            let to_batch = interactive.is_empty() || both && self.passed == BATCH_SHARE - 1;
            self.passed = if to_batch { 0 } else { self.passed + usize::from(both) };
            let line = if to_batch { batch } else { interactive };
            // Of equal tags, the one whose oldest waiter came first.
            let tag = |claim: &Claim| self.tags[&(to_batch, claim.tenant)];
            let (ticket, claim) = *line.iter().min_by_key(|(_, claim)| tag(claim).0).expect("some");
            let (tag, weight) = tag(&claim);
            self.now[usize::from(to_batch)] = tag;
            self.tags.insert((to_batch, claim.tenant), (tag + 8 / u64::from(weight), weight));
            self.leave(ticket);
            self.used += 1;
            self.granted.insert(ticket);
        }
    }

    /// Waiters beyond the first of a tenant, per weight, in eighths.
    fn surplus(&self, class: Class, tenant: u32, more: usize, weight: u32) -> usize {
        let held = self.of(class).iter().filter(|(_, claim)| claim.tenant == tenant).count();
        (held + more).saturating_sub(1) * 8 / weight as usize
    }

    fn make_room(&mut self, new: Claim) -> bool {
        let share = (self.queue / 8).max(1).min(self.queue / 2);
        let batch = self.of(Batch).len();
        let from = match new.class {
            Interactive if batch > share => Batch,
            Batch if batch < share => Interactive,
            same => same,
        };
        let load = |claim: &Claim| {
            let (_, weight) = self.tags[&(from == Batch, claim.tenant)];
            self.surplus(from, claim.tenant, 0, weight)
        };
        // Of equal loads, the youngest: the last of all, as each tenant's last stands for it.
        let line = self.of(from);
        let Some((ticket, most)) = line.iter().map(|(n, c)| (*n, load(c))).max_by_key(|(_, l)| *l)
        else {
            return false;
        };
        let just = from != new.class || self.surplus(from, new.tenant, 1, new.weight) < most;
        if just {
            self.leave(ticket);
            self.evicted.insert(ticket);
        }
        just
    }

    /// What becomes of the claim: a slot, a place in the queue, or nothing.
    fn enter(&mut self, ticket: usize, claim: Claim) -> (bool, bool) {
        if self.used < self.max {
            self.used += 1;
            return (true, false);
        }
        if self.waiting.len() >= self.queue && !self.make_room(claim) {
            return (false, false);
        }
        let start = self.now[usize::from(claim.class == Batch)] + 8 / u64::from(claim.weight);
        let tag = self.tags.entry((claim.class == Batch, claim.tenant)).or_insert((start, 1));
        tag.1 = claim.weight;
        self.waiting.push((ticket, claim));
        (false, true)
    }

    fn drop_ticket(&mut self, ticket: usize) {
        if self.granted.remove(&ticket) {
            self.used -= 1;
        } else if !self.evicted.remove(&ticket) {
            self.leave(ticket);
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Enter(Claim),
    Poll(usize),
    DropTicket(usize),
    DropSlot(usize),
    Set(usize, usize),
}

fn any_claim() -> impl Strategy<Value = Claim> {
    // Mostly one weight per tenant, now and then another.
    let weight = (0..5_u32, prop_oneof![6 => Just(None), 1 => (0..4_u32).prop_map(Some)]);
    (weight, any::<bool>()).prop_map(|((tenant, other), batch)| {
        claim(tenant, 1 << other.unwrap_or(tenant % 4), if batch { Batch } else { Interactive })
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => any_claim().prop_map(Op::Enter),
        4 => any::<usize>().prop_map(Op::Poll),
        3 => any::<usize>().prop_map(Op::DropTicket),
        5 => any::<usize>().prop_map(Op::DropSlot),
        1 => (0..4_usize, 0..20_usize).prop_map(|(max, queue)| Op::Set(max, queue)),
    ]
}

/// A ticket under test.
struct Held {
    number: usize,
    seq: u64,
    ticket: Ticket,
    /// Of the poll before, if there was one.
    probe: Option<Arc<Probe>>,
}

/// The bulkhead and its model, moved in step.
struct Pair {
    bulkhead: Arc<Bulkhead>,
    model: Model,
    tickets: Vec<Held>,
    slots: Vec<Slot>,
    made: usize,
    locked: Arc<AtomicBool>,
}

impl Pair {
    fn new() -> Pair {
        let bulkhead = Bulkhead::new(2, 12);
        let model = Model { max: 2, queue: 12, ..Model::default() };
        let (tickets, slots, locked) = (Vec::new(), Vec::new(), Arc::default());
        Pair { bulkhead, model, tickets, slots, made: 0, locked }
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Enter(claim) => {
                self.made += 1;
                let number = self.made;
                let got = match self.bulkhead.enter(claim) {
                    Entry::Slot(slot) => {
                        self.slots.push(slot);
                        (true, false)
                    }
                    Entry::Wait(ticket) => {
                        let seq = ticket.seq;
                        self.tickets.push(Held { number, seq, ticket, probe: None });
                        (false, true)
                    }
                    Entry::Full => (false, false),
                };
                assert_eq!(got, self.model.enter(number, claim));
            }
            Op::Poll(at) if !self.tickets.is_empty() => self.poll(at % self.tickets.len()),
            Op::DropTicket(at) if !self.tickets.is_empty() => {
                let held = self.tickets.swap_remove(at % self.tickets.len());
                self.model.drop_ticket(held.number);
            }
            Op::DropSlot(at) if !self.slots.is_empty() => {
                self.slots.swap_remove(at % self.slots.len());
                self.model.used -= 1;
            }
            Op::Set(max, queue) => {
                self.bulkhead.set(max, queue);
                (self.model.max, self.model.queue) = (max, queue);
            }
            Op::Poll(_) | Op::DropTicket(_) | Op::DropSlot(_) => {}
        }
        self.model.grant();
    }

    fn poll(&mut self, at: usize) {
        let (bulkhead, locked) = (self.bulkhead.clone(), self.locked.clone());
        let probe = Arc::new(Probe { bulkhead, woken: AtomicUsize::new(0), locked });
        let held = &mut self.tickets[at];
        let got = held.ticket.poll(&mut Context::from_waker(&Waker::from(probe.clone())));
        held.probe = Some(probe);
        match got {
            Poll::Pending => {
                assert!(self.model.waiting.iter().any(|(number, _)| *number == held.number));
            }
            Poll::Ready(Ok(slot)) => {
                assert!(self.model.granted.remove(&held.number));
                self.slots.push(slot);
                self.tickets.swap_remove(at);
            }
            Poll::Ready(Err(Evicted)) => {
                assert!(self.model.evicted.remove(&held.number));
                self.tickets.swap_remove(at);
            }
        }
    }

    /// Both agree on everything, and whoever has news was woken once.
    fn check(&self) {
        let mut state = self.bulkhead.0.lock().unwrap();
        state.lines.iter().for_each(Line::check);
        let model = &self.model;
        assert_eq!((state.used, state.waiting()), (model.used, model.waiting.len()));
        assert_eq!(state.granted.len(), model.granted.len());
        assert_eq!(state.used, self.slots.len() + state.granted.len());
        assert!(state.used >= state.max || state.waiting() == 0, "nobody waits beside a free slot");
        for held in &self.tickets {
            let Ticket { tenant, class, .. } = held.ticket;
            let granted = state.granted.contains(&held.seq);
            let waits = state.line(class).waker(tenant, held.seq).is_some();
            assert_eq!(granted, model.granted.contains(&held.number), "{}", held.number);
            assert_eq!(!granted && !waits, model.evicted.contains(&held.number));
            let woken = held.probe.as_ref().map(|probe| probe.woken.load(Ordering::SeqCst));
            assert!(woken.is_none_or(|woken| woken == usize::from(!waits)), "no wake lost");
        }
    }
}

proptest! {
    #[test]
    fn it_behaves_as_its_model(ops in proptest::collection::vec(op(), 1..300)) {
        let mut pair = Pair::new();
        for op in ops {
            pair.act(op);
            pair.check();
        }
        pair.tickets.clear();
        pair.slots.clear();
        prop_assert!(!pair.locked.load(Ordering::SeqCst), "woken or dropped under the lock");
        assert_empty(&pair.bulkhead);
    }

    #[test]
    fn grants_follow_the_weights_within_one(
        weights in proptest::collection::vec(1..60_u32, 2..5),
        count in 1..300_usize,
    ) {
        let claims: Vec<Claim> = (1..).zip(&weights).map(|(n, w)| claim(n, *w, Interactive)).collect();
        let order = grants(&claims, count, |_| true);
        let counts: Vec<u64> =
            claims.iter().map(|claim| of_tenant(&order, claim.tenant) as u64).collect();
        for (a, x) in claims.iter().zip(&counts) {
            for (b, y) in claims.iter().zip(&counts) {
                // At most one grant of the lighter of the two off x : y = a : b.
                let (a, b) = (u64::from(a.weight), u64::from(b.weight));
                prop_assert!((x * b).abs_diff(y * a) <= a.max(b), "{:?} of {:?}", counts, weights);
            }
        }
    }
}

/// What one thread does: several claims at once; slots are held for a moment; tickets are dropped
/// after a poll or waited for. Counts the slots, the evictions and the refusals.
fn work(bulkhead: &Arc<Bulkhead>, inside: &AtomicUsize, most: usize, mut seed: u64) -> [usize; 3] {
    let mut random = |below: u64| {
        // xorshift64 (Marsaglia 2003).
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let hold = |slot: Slot| {
        let others = inside.fetch_add(1, Ordering::SeqCst);
        assert!(others < most, "{others} others have slots");
        thread::yield_now();
        inside.fetch_sub(1, Ordering::SeqCst);
        drop(slot);
    };
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let [mut served, mut pushed_out, mut refused] = [0; 3];
    for _ in 0..5000 {
        let mut tickets = Vec::new();
        for _ in 0..random(6) {
            let class = if random(3) == 0 { Batch } else { Interactive };
            match bulkhead.enter(claim(random(4) as u32, 1 + random(3) as u32, class)) {
                Entry::Slot(slot) => {
                    hold(slot);
                    served += 1;
                }
                Entry::Wait(ticket) => tickets.push(ticket),
                Entry::Full => refused += 1,
            }
        }
        let since = Clock::System.now();
        while !tickets.is_empty() {
            tickets.retain_mut(|ticket| match ticket.poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => true,
                Poll::Ready(Ok(slot)) => {
                    hold(slot);
                    served += 1;
                    false
                }
                Poll::Ready(Err(Evicted)) => {
                    pushed_out += 1;
                    false
                }
            });
            if !tickets.is_empty() && random(4) == 0 {
                drop(tickets.swap_remove(random(tickets.len() as u64) as usize));
            } else if !tickets.is_empty() {
                thread::park_timeout(Duration::from_secs(30));
                let waited = Clock::System.now().since(since);
                assert!(waited < Duration::from_secs(30), "a wake was lost");
            }
        }
    }
    [served, pushed_out, refused]
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}

#[test]
fn threads_share_it_without_losing_a_slot_or_a_wake() {
    const MOST: usize = 3;
    let bulkhead = Bulkhead::new(MOST, 6);
    let (inside, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let sums = thread::scope(|scope| {
        let threads: Vec<_> = (1..=6)
            .map(|seed| {
                let (bulkhead, inside) = (&bulkhead, &inside);
                scope.spawn(move || work(bulkhead, inside, MOST, seed * 0x9E37_79B9))
            })
            .collect();
        // Meanwhile the limits change.
        let (bulkhead, over) = (&bulkhead, &over);
        let changes = scope.spawn(move || {
            for step in 0_usize.. {
                bulkhead.set(step % (MOST + 1), 1 + step % 6);
                bulkhead.set(1 + step % MOST, 6);
                assert!(bulkhead.used() <= MOST && bulkhead.depth() <= 6);
                if over.load(Ordering::SeqCst) {
                    return;
                }
                thread::yield_now();
            }
        });
        let mut sums = [0; 3];
        let ends: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::SeqCst);
        for end in ends {
            let counts = end.expect("no panic");
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        changes.join().expect("no panic");
        sums
    });
    assert!(sums.iter().all(|sum| *sum > 0), "served, pushed out, refused: {sums:?}");
    assert_empty(&bulkhead);
}
