//! One worker's connections to one URL.
//!
//! A request that finds no connection queues here while connections are dialled in tasks of their
//! own, so a client that leaves does not waste a handshake. Idle HTTP/1.1 connections are handed
//! out last in, first out; HTTP/2 connections take as many streams as the peer's SETTINGS allow
//! and further connections are opened beyond that.
//!
//! An idle HTTP/1.1 connection is its socket alone, watched by nobody: that its server has closed it
//! is seen when it is wanted, and by [`Pool::close_idle`].
//!
//! A pool whose URL a reload has taken out of the configuration is retired: who still comes, with the
//! configuration of before, is served, and what nobody uses or waits for is closed.
//!
//! Invariant: a [`Lease`] is given back exactly once, by its exchange's end or by its drop; a drop
//! cancels what still runs (RST on HTTP/1.1, RST_STREAM on HTTP/2 by dropping the exchange).
//! Waiters are bounded by the stream permits, dials by the waiters.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::admission::permit::{Permit, Permits};
use crate::clock::{Clock, Moment};
use crate::config::Url;
use crate::error::{Failure, Kind, Limit};
use crate::limits;
use crate::memory;
use crate::telemetry::cells::{Cells, ConnState, ConnectResult, UpstreamCells};
use crate::upstream::balance::Endpoint;
use crate::upstream::connect::{Dialed, Dialer, Protocol};
use crate::upstream::h1::SoloLease;
use crate::upstream::h2::{self, Shared, SharedLease};
use crate::upstream::transport::Transport;

type Waiter = oneshot::Sender<Result<Lease, Failure>>;

/// Connections to one URL, idle and shared, and the requests waiting for one.
pub(crate) struct Pool {
    pub(super) endpoint: Arc<Endpoint>,
    dialer: Dialer,
    /// The process's open files.
    files: Arc<Permits>,
    pub(super) clock: Clock,
    cells: Arc<Cells>,
    upstream: usize,
    idle_max: usize,
    /// What the last connection spoke; `None` until ALPN has told.
    protocol: Cell<Option<Protocol>>,
    /// Streams the last HTTP/2 peer allowed on one connection.
    pub(super) room_each: Cell<usize>,
    idle: RefCell<Vec<(Transport, Moment)>>,
    pub(super) shared: RefCell<Vec<Rc<Shared>>>,
    waiters: RefCell<VecDeque<Waiter>>,
    dials: Cell<usize>,
    /// No configuration in force leads here any more.
    retired: Cell<bool>,
}

/// A connection's use for one exchange.
pub(crate) enum Lease {
    Solo(SoloLease),
    Shared(SharedLease),
}

impl Pool {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        dialer: Dialer,
        files: &Arc<Permits>,
        idle_max: usize,
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
            idle_max,
            protocol,
            room_each: Cell::new(100),
            idle: RefCell::default(),
            shared: RefCell::default(),
            waiters: RefCell::default(),
            dials: Cell::new(0),
            retired: Cell::new(false),
        })
    }

    /// Where it leads to.
    pub(crate) fn url(&self) -> &Url {
        &self.endpoint.url
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
        let (waiter, told) = oneshot::channel();
        self.waiters.borrow_mut().push_back(waiter);
        self.dial_for_waiters();
        told.await.unwrap_or_else(|_| {
            Err(Failure::new(Kind::Draining, "the gateway is closing its upstream connections"))
        })
    }

    fn take(self: &Rc<Pool>) -> Option<Lease> {
        loop {
            let Some((mut transport, _)) = self.idle.borrow_mut().pop() else { break };
            self.cells().connections(ConnState::Idle).sub(1);
            if transport.is_quiet() {
                return Some(Lease::Solo(SoloLease::new(self, transport)));
            }
        }
        // Filling the oldest connection first lets the younger ones fall idle and close.
        let shared = self.shared.borrow().iter().find(|s| s.room() > 0).cloned()?;
        Some(Lease::Shared(SharedLease::new(self, shared)))
    }

    /// Hands free places to waiters, oldest first, and dials for those left over.
    pub(super) fn offer(self: &Rc<Pool>) {
        self.shared.borrow_mut().retain(|shared| !self.is_over(shared));
        loop {
            let waiter = {
                let mut waiters = self.waiters.borrow_mut();
                while waiters.front().is_some_and(Waiter::is_closed) {
                    waiters.pop_front();
                }
                if waiters.is_empty() {
                    drop(waiters);
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
                let _ = waiter.send(Ok(lease));
            }
        }
        self.dial_for_waiters();
    }

    fn is_over(&self, shared: &Shared) -> bool {
        let over = shared.is_over();
        if over {
            let state = if shared.live.get() > 0 { ConnState::Active } else { ConnState::Idle };
            // It leaves the gauges here; its leases find it gone from the list, and the last of
            // them closes it.
            self.cells().connections(state).sub(1);
            if shared.live.get() == 0 {
                shared.close();
            }
        }
        over
    }

    fn dial_for_waiters(self: &Rc<Pool>) {
        let waiting = self.waiters.borrow().iter().filter(|w| !w.is_closed()).count();
        let wanted = match self.protocol.get() {
            None => waiting.min(1),
            Some(Protocol::H1) => waiting,
            Some(Protocol::H2) => self.shared_wanted(waiting),
        };
        for _ in self.dials.get()..wanted {
            self.dials.set(self.dials.get() + 1);
            tokio::task::spawn_local(memory::apart(dial(self.clone())));
        }
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

    fn dial_failed(&self, failure: &Failure) {
        // One HTTP/1.1 dial serves one waiter. Any other was to serve them all.
        let all = self.protocol.get() != Some(Protocol::H1);
        let mut waiters = self.waiters.borrow_mut();
        while let Some(waiter) = waiters.pop_front() {
            if waiter.send(Err(failure.clone())).is_err() {
                continue;
            }
            if let Kind::Limited(limit) = failure.kind {
                self.cells.rejections(limit.into()).inc();
            }
            if !all {
                break;
            }
        }
    }

    /// Takes back a connection that can carry another exchange; with an `idle_max` of 0 none does.
    pub(super) fn give_back(self: &Rc<Pool>, transport: Transport) {
        if self.idle_max > 0 {
            return self.put_idle(transport);
        }
        drop(transport);
        self.offer();
    }

    fn put_idle(self: &Rc<Pool>, transport: Transport) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.idle_max.max(1) || !self.waiters.borrow().is_empty() {
            idle.push((transport, self.clock.now()));
            self.cells().connections(ConnState::Idle).add(1);
        }
        drop(idle);
        self.offer();
    }

    /// Closes what has been idle for `idle_max` or longer, and forgets what has closed.
    pub(crate) fn close_idle(self: &Rc<Pool>, idle_max: Duration) {
        self.sweep(idle_max);
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
        idle.retain_mut(|(transport, since)| !expired(*since) && transport.is_quiet());
        self.cells().connections(ConnState::Idle).sub((before - idle.len()) as i64);
        drop(idle);
        self.shared.borrow_mut().retain(|shared| {
            if self.is_over(shared) {
                return false;
            }
            let close = shared.live.get() == 0 && expired(shared.idle_since.get());
            if close {
                self.cells().connections(ConnState::Idle).sub(1);
                shared.close();
            }
            !close
        });
    }
}

/// Opens one connection and puts it into the pool, or fails those who wait for it.
async fn dial(pool: Rc<Pool>) {
    let cells = pool.cells();
    let Some(place) = pool.files.take() else {
        pool.dials.set(pool.dials.get() - 1);
        pool.dial_failed(&out_of_files(&pool.files));
        return pool.offer();
    };
    cells.connections(ConnState::Connecting).add(1);
    let started = pool.clock.now();
    let opened = open(&pool, place).await;
    cells.connections(ConnState::Connecting).sub(1);
    pool.dials.set(pool.dials.get() - 1);
    match opened {
        Ok(()) => {
            cells.connects(ConnectResult::Ok).inc();
            cells.handshake.observe(pool.clock.now().since(started));
        }
        Err((failure, result)) => {
            cells.connects(result).inc();
            tracing::warn!(upstream = %pool.url().authority, %failure, "connecting failed");
            pool.dial_failed(&failure);
        }
    }
    pool.offer();
}

/// Nothing was touched: the same request may pass once something has closed.
fn out_of_files(files: &Permits) -> Failure {
    let max = files.max();
    let text = format!(
        "no open file is left for a connection to the upstream: connections have {max}; raise \
         LimitNOFILE= (or `ulimit -n`), or lower limits.connections"
    );
    Failure::limited(Limit::Files, limits::FILES_WAIT, text)
}

async fn open(pool: &Rc<Pool>, place: Permit) -> Result<(), (Failure, ConnectResult)> {
    let Dialed { mut transport, protocol } = pool.dialer.dial().await?;
    transport.occupy(place);
    pool.protocol.set(Some(protocol));
    match protocol {
        Protocol::H1 if transport.is_quiet() => {
            pool.put_idle(transport);
            Ok(())
        }
        // Not put into the pool, which would only dial another one, and so on.
        Protocol::H1 => {
            let text = format!("{}: it closed the connection at once", pool.url().authority);
            Err((Failure::new(Kind::Connect, text), ConnectResult::Other))
        }
        Protocol::H2 => h2::open(pool, transport).await.map_err(|error| {
            let text = format!("{}: HTTP/2 handshake: {error}", pool.url().authority);
            (Failure::new(Kind::Connect, text), ConnectResult::Other)
        }),
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
