//! One worker's connections to one URL.
//!
//! A request that finds no connection queues here while connections are dialled in tasks of their
//! own, so a client that leaves does not waste a handshake. Idle HTTP/1.1 connections are handed
//! out last in, first out; HTTP/2 connections take as many streams as the peer's SETTINGS allow
//! and further connections are opened beyond that.
//!
//! How many connections there may be, and how many are opened at once, is one number for all workers
//! and URLs of an upstream ([`Allowance`]): a pool that may not dial stands in line there with the
//! longest wait of its requests, and pools with idle connections close one for it.
//!
//! An idle HTTP/1.1 connection is its socket alone, watched by nobody: that its server has closed it
//! is seen when it is wanted, and by [`Pool::close_idle`]. One that is too old, or was idle for too
//! long, is not used again; an HTTP/2 connection that is too old, or got a GOAWAY, takes no further
//! streams, is forgotten here, and is closed by its last stream. No stream is ever cut for its
//! connection's sake.
//!
//! A pool whose URL a reload has taken out of the configuration is retired: who still comes, with the
//! configuration of before, is served, and what nobody uses or waits for is closed.
//!
//! Invariant: a [`Lease`] is given back exactly once, by its exchange's end or by its drop; a drop
//! cancels what still runs (RST on HTTP/1.1, RST_STREAM on HTTP/2 by dropping the exchange).
//! Waiters are bounded by the stream permits, dials by the waiters and by `pool_dials`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::admission::permit::Permits;
use crate::clock::{Clock, Moment};
use crate::config::{PoolRule, Url};
use crate::error::{Failure, Kind};
use crate::limits;
use crate::memory;
use crate::telemetry::cells::{Cells, ConnState, UpstreamCells};
use crate::upstream::allowance::{Allowance, Entry, Ticket};
use crate::upstream::balance::Endpoint;
use crate::upstream::connect::{Dialer, Protocol};
use crate::upstream::dial;
use crate::upstream::h1::SoloLease;
use crate::upstream::h2::{Shared, SharedLease};
use crate::upstream::transport::Transport;
use crate::wire::wheel::Tick;

/// A request that waits for a connection.
struct Waiter {
    since: Moment,
    tell: oneshot::Sender<Result<Lease, Failure>>,
}

impl Waiter {
    fn has_left(&self) -> bool {
        self.tell.is_closed()
    }
}

/// Connections to one URL, idle and shared, and the requests waiting for one.
pub(crate) struct Pool {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) dialer: Dialer,
    /// The process's open files.
    pub(super) files: Arc<Permits>,
    pub(super) clock: Clock,
    pub(super) cells: Arc<Cells>,
    upstream: usize,
    rule: Cell<PoolRule>,
    /// Shared with the other pools of the upstream.
    allowance: Arc<Allowance>,
    /// What the last connection spoke; `None` until ALPN has told.
    pub(super) protocol: Cell<Option<Protocol>>,
    /// Streams the last HTTP/2 peer allowed on one connection.
    pub(super) room_each: Cell<usize>,
    idle: RefCell<Vec<(Transport, Moment)>>,
    /// HTTP/1.1 connections in use.
    pub(super) used: Cell<usize>,
    pub(super) shared: RefCell<Vec<Rc<Shared>>>,
    waiters: RefCell<VecDeque<Waiter>>,
    pub(super) dials: Cell<usize>,
    /// Its place in the line for another dial.
    ticket: RefCell<Option<Ticket>>,
    /// No connection is opened in advance before this.
    pub(super) warm_from: Cell<Moment>,
    /// When a connection in use was last given up for another pool.
    yielded: Cell<Moment>,
    /// No configuration in force leads here any more.
    retired: Cell<bool>,
}

/// A connection's use for one exchange.
pub(crate) enum Lease {
    Solo(SoloLease),
    Shared(SharedLease),
}

impl Pool {
    #[allow(clippy::too_many_arguments, reason = "each is a part of what it is made of")]
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        dialer: Dialer,
        files: &Arc<Permits>,
        rule: PoolRule,
        allowance: Arc<Allowance>,
        upstream: usize,
        clock: Clock,
        cells: Arc<Cells>,
    ) -> Rc<Pool> {
        let protocol = Cell::new(dialer.settled());
        Rc::new(Pool {
            endpoint,
            dialer,
            files: files.clone(),
            clock,
            cells,
            upstream,
            rule: Cell::new(rule),
            allowance,
            protocol,
            room_each: Cell::new(100),
            idle: RefCell::default(),
            used: Cell::new(0),
            shared: RefCell::default(),
            waiters: RefCell::default(),
            dials: Cell::new(0),
            ticket: RefCell::default(),
            warm_from: Cell::default(),
            yielded: Cell::default(),
            retired: Cell::new(false),
        })
    }

    /// Where it leads to.
    pub(crate) fn url(&self) -> &Url {
        &self.endpoint.url
    }

    /// Goes by another rule from now on; `lifetime` is that of connections to come.
    pub(crate) fn adopt(self: &Rc<Pool>, rule: PoolRule) {
        self.rule.set(rule);
        self.close_idle();
    }

    pub(super) fn rule(&self) -> PoolRule {
        self.rule.get()
    }

    /// Whether its connections speak HTTP/2, as far as is known.
    pub(super) fn may_be_h2(&self) -> bool {
        self.protocol.get() != Some(Protocol::H1)
    }

    pub(super) fn cells(&self) -> &UpstreamCells {
        self.cells.upstream(self.upstream)
    }

    /// A connection with a place free: an open one, or the first that becomes free or is dialled.
    pub(crate) async fn checkout(self: &Rc<Pool>) -> Result<Lease, Failure> {
        if self.waiters.borrow().is_empty()
            && let Some(lease) = self.take()
        {
            return Ok(lease);
        }
        let (tell, told) = oneshot::channel();
        self.waiters.borrow_mut().push_back(Waiter { since: self.clock.now(), tell });
        let _waits = Waits::begin(self);
        self.offer();
        told.await.unwrap_or_else(|_| {
            Err(Failure::new(Kind::Draining, "the gateway is closing its upstream connections"))
        })
    }

    fn take(self: &Rc<Pool>) -> Option<Lease> {
        let now = self.clock.now();
        loop {
            let Some((mut transport, since)) = self.idle.borrow_mut().pop() else { break };
            self.cells().connections(ConnState::Idle).sub(1);
            if self.is_fit(&mut transport, since, now) {
                return Some(Lease::Solo(SoloLease::new(self, transport)));
            }
        }
        // Filling the oldest connection first lets the younger ones fall idle and close.
        let fit = |shared: &&Rc<Shared>| shared.room() > 0 && !self.is_spent(shared, now);
        let shared = self.shared.borrow().iter().find(fit).cloned()?;
        Some(Lease::Shared(SharedLease::new(self, shared)))
    }

    /// Whether a connection that is idle `since` may carry another exchange.
    fn is_fit(&self, transport: &mut Transport, since: Moment, now: Moment) -> bool {
        let young = now.since(since) < self.rule().idle && Tick(now.ticks()) < transport.until();
        young && transport.is_quiet()
    }

    /// Whether an HTTP/2 connection is to take no further stream, though its peer would let it. While
    /// there is no place for another, one that is too old goes on as long as it is in use.
    fn is_spent(&self, shared: &Shared, now: Moment) -> bool {
        if shared.live.get() == 0 && now.since(shared.idle_since.get()) >= self.rule().idle {
            return true;
        }
        Tick(now.ticks()) >= shared.until.get()
            && (shared.live.get() == 0 || shared.is_given_up() || self.allowance.has_place())
    }

    /// Hands free places to waiters, oldest first, and dials for those left over.
    pub(super) fn offer(self: &Rc<Pool>) {
        self.let_go(|_| false);
        loop {
            let waiter = {
                let mut waiters = self.waiters.borrow_mut();
                while waiters.front().is_some_and(Waiter::has_left) {
                    waiters.pop_front();
                }
                if waiters.is_empty() {
                    drop(waiters);
                    self.ticket.take();
                    if self.retired.get() {
                        self.sweep(Duration::ZERO);
                    }
                    return;
                }
                let Some(lease) = self.take() else { break };
                waiters.pop_front().map(|waiter| (waiter, lease))
            };
            if let Some((waiter, lease)) = waiter {
                // A waiter that left in between drops the lease, which comes back by itself.
                let _ = waiter.tell.send(Ok(lease));
            }
        }
        self.dial_for_waiters();
    }

    /// Forgets HTTP/2 connections that take no further streams, and those that `spent` names. What is
    /// idle closes now, what is in use with its last stream.
    fn let_go(&self, spent: impl Fn(&Shared) -> bool) {
        let now = self.clock.now();
        self.shared.borrow_mut().retain(|shared| {
            if !(shared.is_over() || self.is_spent(shared, now) || spent(shared)) {
                return true;
            }
            if shared.live.get() > 0 {
                // Its leases find it gone from the list, and the last of them closes it.
                shared.count(self.cells(), Some(ConnState::Closing));
            } else {
                shared.close(self.cells());
            }
            false
        });
    }

    fn dial_for_waiters(self: &Rc<Pool>) {
        while let Some(since) = self.lacks() {
            if self.ticket.borrow().is_some() {
                return;
            }
            let (ticket, mut told) = self.allowance.ask(since);
            let Ok(entry) = told.try_recv() else {
                tokio::task::spawn_local(in_line(self.clone(), ticket.number(), told));
                self.ticket.replace(Some(ticket));
                return;
            };
            self.start(entry);
        }
        self.ticket.take();
    }

    /// Since when the first request waits for which no connection is being opened.
    fn lacks(&self) -> Option<Moment> {
        let (dials, waiters) = (self.dials.get(), self.waiters.borrow());
        let mut waiting = waiters.iter().filter(|waiter| !waiter.has_left());
        let first = match self.protocol.get() {
            Some(Protocol::H1) => waiting.nth(dials),
            None if dials > 0 => None,
            Some(Protocol::H2) if self.shared_wanted(waiting.clone().count()) <= dials => None,
            _ => waiting.next(),
        };
        first.map(|waiter| waiter.since)
    }

    /// HTTP/2 connections to dial for `waiting` requests, beside those whose SETTINGS will make
    /// room any moment. A peer that allows no streams at all gets no further connections.
    fn shared_wanted(&self, waiting: usize) -> usize {
        let now = self.clock.now();
        let each = self.room_each.get();
        let shared = self.shared.borrow();
        let unsettled = shared.iter().filter(|s| s.is_unsettled(now)).count();
        let barren = shared.iter().filter(|s| s.live.get() == 0 && s.room() == 0).count();
        let wanted = waiting.saturating_sub(unsettled * each).div_ceil(each);
        wanted.saturating_sub(barren).min(limits::DIALS_AT_ONCE)
    }

    fn start(self: &Rc<Pool>, entry: Entry) {
        self.dials.set(self.dials.get() + 1);
        tokio::task::spawn_local(memory::apart(dial::dial(self.clone(), entry)));
    }

    /// Opens connections until there are `pool_warm`, as far as there are places that nobody waits
    /// for. Nothing happens for a while after one has failed.
    pub(crate) fn warm(self: &Rc<Pool>) {
        let rule = self.rule();
        let wanted = match self.protocol.get() {
            // One more would be closed as it falls idle.
            Some(Protocol::H1) => rule.warm.min(rule.idle_max),
            Some(Protocol::H2) => rule.warm,
            None => rule.warm.min(1),
        };
        if self.retired.get() || self.clock.now() < self.warm_from.get() {
            return;
        }
        while self.open() + self.dials.get() < wanted {
            let Some(entry) = self.allowance.spare() else { return };
            self.start(entry);
        }
    }

    /// Connections that carry exchanges or may.
    fn open(&self) -> usize {
        self.idle.borrow().len() + self.used.get() + self.shared.borrow().len()
    }

    /// Tells those for whom a connection was being opened that there is none.
    pub(super) fn dial_failed(&self, failure: &Failure) {
        // One HTTP/1.1 dial serves one waiter. Any other was to serve them all.
        let all = self.protocol.get() != Some(Protocol::H1);
        // But whoever has waited for a turn as long as a dial may take would have failed by now with
        // one of its own. Not so if it may be `pool_max` that it waits for, and one may come free.
        let (now, all_late) = (self.clock.now(), self.rule().max == 0 || self.open() == 0);
        let late = |waiter: &Waiter| all_late && now.since(waiter.since) >= self.dialer.longest();
        let (mut waiters, mut told) = (self.waiters.borrow_mut(), 0);
        while waiters.front().is_some_and(|first| all || told == 0 || late(first)) {
            let Some(waiter) = waiters.pop_front() else { return };
            if waiter.tell.send(Err(failure.clone())).is_err() {
                continue;
            }
            told += 1;
            if let Kind::Limited(limit) = failure.kind {
                self.cells.rejections(limit.into()).inc();
            }
        }
    }

    /// Takes back a connection that can carry another exchange. It is closed if it is too old, if none
    /// is used twice, or if its place is wanted more elsewhere.
    pub(super) fn give_back(self: &Rc<Pool>, transport: Transport) {
        let fresh = self.rule().idle_max > 0 && Tick(self.clock.now().ticks()) < transport.until();
        if fresh && !self.allowance.is_over() && !self.owes_place() {
            return self.put_idle(transport);
        }
        drop(transport);
        self.offer();
    }

    pub(super) fn put_idle(self: &Rc<Pool>, transport: Transport) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.rule().idle_max.max(1) || !self.waiters.borrow().is_empty() {
            idle.push((transport, self.clock.now()));
            self.cells().connections(ConnState::Idle).add(1);
        }
        drop(idle);
        self.offer();
    }

    /// Whether the next place that comes free here is another pool's: one waits for it, and no request
    /// here has waited as long, give or take [`limits::POOL_YIELD`].
    fn owes_place(&self) -> bool {
        let Some((since, number)) = self.allowance.first() else { return false };
        let own = self.ticket.borrow().as_ref().is_some_and(|own| own.number() == number);
        let waiters = self.waiters.borrow();
        let here = waiters.iter().find(|waiter| !waiter.has_left());
        !own && here.is_none_or(|here| since.after(limits::POOL_YIELD) < here.since)
    }

    /// Closes idle connections for as long as another pool waits for a place, or there are more than
    /// `pool_max`. If there is none and another waits, an HTTP/2 connection in use takes no further
    /// streams, so that it closes some time.
    pub(crate) fn make_room(self: &Rc<Pool>) {
        while self.owes_place() || self.allowance.is_over() {
            if !self.idle.borrow().is_empty() {
                let oldest = self.idle.borrow_mut().remove(0);
                self.cells().connections(ConnState::Idle).sub(1);
                drop(oldest);
                continue;
            }
            let now = self.clock.now();
            let idle = |shared: &&Rc<Shared>| shared.live.get() == 0;
            let shared = self.shared.borrow();
            let waits_long = |(since, _)| now.since(since) >= limits::POOL_YIELD;
            let oldest = shared.iter().find(idle).or_else(|| {
                let again = now.since(self.yielded.get()) >= limits::POOL_YIELD;
                let oldest = shared.first().filter(|_| again);
                oldest.filter(|_| self.allowance.first().is_some_and(waits_long))
            });
            // Its place comes free when its task has ended.
            if let Some(oldest) = oldest {
                oldest.give_up();
                self.yielded.set(now);
            }
            drop(shared);
            return self.let_go(|_| false);
        }
    }

    /// Closes what has been idle for too long or is too old, and forgets what has closed.
    pub(crate) fn close_idle(self: &Rc<Pool>) {
        self.sweep(self.rule().idle);
        self.offer();
    }

    /// Closes what is idle now, and from now on whatever nobody uses or waits for.
    pub(crate) fn retire(self: &Rc<Pool>) {
        self.retired.set(true);
        self.offer();
    }

    fn sweep(&self, idle_max: Duration) {
        let now = self.clock.now();
        let expired = |since: Moment| now.since(since) >= idle_max;
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        // A reload may have brought a lower number.
        let excess = before.saturating_sub(self.rule().idle_max);
        idle.drain(..excess);
        idle.retain_mut(|(transport, since)| {
            !expired(*since) && self.is_fit(transport, *since, now)
        });
        self.cells().connections(ConnState::Idle).sub((before - idle.len()) as i64);
        drop(idle);
        self.let_go(|shared| shared.live.get() == 0 && expired(shared.idle_since.get()));
    }
}

/// Waits for the pool's place in the line, and dials if that is still wanted.
async fn in_line(pool: Rc<Pool>, ticket: u64, told: oneshot::Receiver<Entry>) {
    // None comes when the pool has left the line.
    let Ok(entry) = told.await else { return };
    drop(pool.ticket.borrow_mut().take_if(|own| own.number() == ticket));
    if pool.lacks().is_some() {
        pool.start(entry);
    }
    pool.dial_for_waiters();
}

/// The time in which a request waits for a connection.
struct Waits<'a>(&'a Pool);

impl<'a> Waits<'a> {
    fn begin(pool: &'a Pool) -> Waits<'a> {
        pool.cells().waiting.add(1);
        Waits(pool)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.cells().waiting.sub(1);
        // Nobody gives up a connection for a request that has left.
        if self.0.ticket.borrow().is_some() && self.0.lacks().is_none() {
            self.0.ticket.take();
        }
    }
}

impl Lease {
    /// The URL it leads to.
    pub(crate) fn url(&self) -> &Url {
        match self {
            Lease::Solo(lease) => lease.pool().url(),
            Lease::Shared(lease) => lease.pool().url(),
        }
    }
}
