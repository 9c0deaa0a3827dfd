//! One worker's connections to one URL.
//!
//! A request that finds no connection queues here while connections are dialled in tasks of their
//! own, so a client that leaves does not waste a handshake. Idle HTTP/1.1 connections are handed
//! out last in, first out; HTTP/2 connections take as many streams as the peer's SETTINGS allow
//! and further connections are opened beyond that.
//!
//! Invariant: a [`Lease`] is given back exactly once, by [`Lease::finish`] or by its drop; a drop
//! cancels what still runs (RST on HTTP/1.1, RST_STREAM on HTTP/2 by dropping the exchange).
//! Waiters are bounded by the stream permits, dials by the waiters.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::TokioTimer;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::clock::{Clock, Moment};
use crate::config::Url;
use crate::error::{Failure, Kind};
use crate::limits;
use crate::telemetry::cells::{Cells, ConnState, ConnectResult, UpstreamCells};
use crate::upstream::connect::{Dialed, Dialer, Link, Protocol, Transport};
use crate::upstream::upload::Upload;

/// Streams on an HTTP/2 connection before the peer has told how many it takes.
const UNSETTLED: usize = 1;

type H2Connection = http2::Connection<Transport, Upload, Watch>;
type Waiter = oneshot::Sender<Result<Lease, Failure>>;

/// Connections to one URL, idle and shared, and the requests waiting for one.
pub(crate) struct Pool {
    pub(crate) url: Url,
    dialer: Dialer,
    clock: Clock,
    cells: Arc<Cells>,
    upstream: usize,
    idle_max: usize,
    /// What the last connection spoke; `None` until ALPN has told.
    protocol: Cell<Option<Protocol>>,
    /// Streams the last HTTP/2 peer allowed on one connection.
    room_each: Cell<usize>,
    idle: RefCell<Vec<(Solo, Moment)>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    waiters: RefCell<VecDeque<Waiter>>,
    dials: Cell<usize>,
}

/// An HTTP/1.1 connection between or during exchanges.
struct Solo {
    sender: http1::SendRequest<Upload>,
    link: Link,
    task: AbortHandle,
}

/// An HTTP/2 connection.
pub(crate) struct Shared {
    sender: http2::SendRequest<Upload>,
    /// hyper's driver of the connection; the only one that knows the peer's stream limit.
    /// `None` once it has ended: until it is dropped hyper takes requests that nobody will send.
    connection: Rc<RefCell<Option<H2Connection>>>,
    /// Streams the peer allows, as last seen.
    streams_max: Cell<usize>,
    live: Cell<usize>,
    opened: Moment,
    idle_since: Cell<Moment>,
    task: RefCell<Option<AbortHandle>>,
}

/// A connection's use for one exchange.
pub(crate) enum Lease {
    Solo(SoloLease),
    Shared(SharedLease),
}

/// The use of an HTTP/1.1 connection; dropping it closes the connection with RST.
pub(crate) struct SoloLease {
    pool: Rc<Pool>,
    solo: Option<Solo>,
}

/// The use of one stream's place on an HTTP/2 connection.
pub(crate) struct SharedLease {
    pool: Rc<Pool>,
    shared: Rc<Shared>,
}

impl Pool {
    pub(crate) fn new(
        url: Url,
        dialer: Dialer,
        idle_max: usize,
        upstream: usize,
        clock: Clock,
        cells: Arc<Cells>,
    ) -> Rc<Pool> {
        let protocol = Cell::new(dialer.settled());
        Rc::new(Pool {
            url,
            dialer,
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
        })
    }

    fn cells(&self) -> &UpstreamCells {
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
            let Some((solo, _)) = self.idle.borrow_mut().pop() else { break };
            self.cells().connections(ConnState::Idle).sub(1);
            if solo.sender.is_ready() {
                self.cells().connections(ConnState::Active).add(1);
                let pool = self.clone();
                return Some(Lease::Solo(SoloLease { pool, solo: Some(solo) }));
            }
        }
        // Filling the oldest connection first lets the younger ones fall idle and close.
        let shared = self.shared.borrow().iter().find(|s| s.room() > 0).cloned()?;
        Some(Lease::Shared(SharedLease::new(self, shared)))
    }

    /// Hands free places to waiters, oldest first, and dials for those left over.
    fn offer(self: &Rc<Pool>) {
        self.shared.borrow_mut().retain(|shared| !self.is_over(shared));
        loop {
            let waiter = {
                let mut waiters = self.waiters.borrow_mut();
                while waiters.front().is_some_and(Waiter::is_closed) {
                    waiters.pop_front();
                }
                if waiters.is_empty() {
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
        let over = shared.sender.is_closed();
        if over {
            let state = if shared.live.get() > 0 { ConnState::Active } else { ConnState::Idle };
            // A closed connection leaves the gauges here; its leases find it gone from the list.
            self.cells().connections(state).sub(1);
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
            tokio::task::spawn_local(dial(self.clone()));
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
            if waiter.send(Err(failure.clone())).is_ok() && !all {
                break;
            }
        }
    }

    fn put_idle(self: &Rc<Pool>, solo: Solo) {
        if solo.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.idle_max.max(1) || !self.waiters.borrow().is_empty() {
            idle.push((solo, self.clock.now()));
            self.cells().connections(ConnState::Idle).add(1);
        }
        drop(idle);
        self.offer();
    }

    /// Closes what has been idle for `idle_max` or longer, and forgets what has closed.
    pub(crate) fn close_idle(self: &Rc<Pool>, idle_max: Duration) {
        let now = self.clock.now();
        let expired = |since: Moment| now.since(since) >= idle_max;
        let mut closing = Vec::new();
        self.idle.borrow_mut().retain_mut(|(solo, since)| {
            let keep = !solo.sender.is_closed() && !expired(*since);
            if !keep {
                closing.push(solo.task.clone());
            }
            keep
        });
        self.cells().connections(ConnState::Idle).sub(closing.len() as i64);
        self.shared.borrow_mut().retain(|shared| {
            if self.is_over(shared) {
                return false;
            }
            let close = shared.live.get() == 0 && expired(shared.idle_since.get());
            if close {
                self.cells().connections(ConnState::Idle).sub(1);
                closing.extend(shared.task.borrow_mut().take());
            }
            !close
        });
        for task in closing {
            task.abort();
        }
        self.offer();
    }
}

/// Opens one connection and puts it into the pool, or fails those who wait for it.
async fn dial(pool: Rc<Pool>) {
    let cells = pool.cells();
    cells.connections(ConnState::Connecting).add(1);
    let started = pool.clock.now();
    let opened = open(&pool).await;
    cells.connections(ConnState::Connecting).sub(1);
    pool.dials.set(pool.dials.get() - 1);
    match opened {
        Ok(()) => {
            cells.connects(ConnectResult::Ok).inc();
            cells.handshake.observe(pool.clock.now().since(started));
        }
        Err((failure, result)) => {
            cells.connects(result).inc();
            tracing::warn!(upstream = %pool.url.authority, %failure, "connecting failed");
            pool.dial_failed(&failure);
        }
    }
    pool.offer();
}

async fn open(pool: &Rc<Pool>) -> Result<(), (Failure, ConnectResult)> {
    let Dialed { transport, protocol, link } = pool.dialer.dial().await?;
    pool.protocol.set(Some(protocol));
    let handshake = match protocol {
        Protocol::H1 => open_h1(pool, transport, link).await,
        Protocol::H2 => open_h2(pool, transport).await,
    };
    handshake.map_err(|error| {
        let text = format!("{}: HTTP handshake: {error}", pool.url.authority);
        (Failure::new(Kind::Connect, text), ConnectResult::Other)
    })
}

async fn open_h1(pool: &Rc<Pool>, transport: Transport, link: Link) -> hyper::Result<()> {
    let (mut sender, connection) = http1::Builder::new().handshake(transport).await?;
    let task = tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an HTTP/1.1 upstream connection ended");
        }
    });
    // hyper says so only once its task has run.
    sender.ready().await?;
    pool.put_idle(Solo { sender, link, task: task.abort_handle() });
    Ok(())
}

async fn open_h2(pool: &Rc<Pool>, transport: Transport) -> hyper::Result<()> {
    let watch = Watch { pool: Rc::downgrade(pool), shared: Rc::default() };
    let (sender, connection) = http2::Builder::new(watch.clone())
        .timer(TokioTimer::new())
        .initial_connection_window_size(u32::try_from(i32::MAX).expect("2^31-1"))
        .initial_stream_window_size(limits::UPSTREAM_STREAM_WINDOW)
        .initial_max_send_streams(UNSETTLED)
        .keep_alive_interval(limits::UPSTREAM_PING)
        .keep_alive_timeout(limits::UPSTREAM_PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(transport)
        .await?;
    let connection = Rc::new(RefCell::new(Some(connection)));
    let shared = Rc::new(Shared {
        sender,
        connection: connection.clone(),
        streams_max: Cell::new(UNSETTLED),
        live: Cell::new(0),
        opened: pool.clock.now(),
        idle_since: Cell::new(pool.clock.now()),
        task: RefCell::default(),
    });
    *watch.shared.borrow_mut() = Rc::downgrade(&shared);
    let task = tokio::task::spawn_local(async move {
        let driven = std::future::poll_fn(|cx| match connection.borrow_mut().as_mut() {
            Some(connection) => Pin::new(connection).poll(cx),
            None => Poll::Ready(Ok(())),
        });
        if let Err(error) = driven.await {
            tracing::debug!(%error, "an HTTP/2 upstream connection ended");
        }
        let ended = connection.borrow_mut().take();
        drop(ended);
        if let Some(pool) = watch.pool.upgrade() {
            pool.offer();
        }
    });
    *shared.task.borrow_mut() = Some(task.abort_handle());
    pool.cells().connections(ConnState::Idle).add(1);
    pool.shared.borrow_mut().push(shared);
    Ok(())
}

impl Shared {
    /// Streams this connection takes on top of those it has.
    fn room(&self) -> usize {
        if self.sender.is_closed() {
            return 0;
        }
        self.streams_max.get().saturating_sub(self.live.get())
    }

    /// Whether the peer's SETTINGS are probably still on their way.
    fn is_unsettled(&self, now: Moment) -> bool {
        self.streams_max.get() == UNSETTLED && now.since(self.opened) < limits::SETTINGS_WAIT
    }
}

/// Runs hyper's HTTP/2 tasks, and after each of their steps looks whether the peer's SETTINGS
/// have made room for more streams: h2 tells nobody.
#[derive(Clone)]
struct Watch {
    pool: Weak<Pool>,
    shared: Rc<RefCell<Weak<Shared>>>,
}

impl<F: Future + 'static> Executor<F> for Watch {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(Watched { task: Box::pin(task), watch: self.clone() });
    }
}

struct Watched<F> {
    task: Pin<Box<F>>,
    watch: Watch,
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let done = self.task.as_mut().poll(cx);
        self.watch.look();
        done.map(|_| ())
    }
}

impl Watch {
    fn look(&self) {
        let Some(shared) = self.shared.borrow().upgrade() else { return };
        let Ok(connection) = shared.connection.try_borrow() else { return };
        let Some(streams_max) = connection.as_ref().map(H2Connection::current_max_send_streams)
        else {
            return;
        };
        drop(connection);
        if shared.streams_max.replace(streams_max) != streams_max
            && let Some(pool) = self.pool.upgrade()
        {
            pool.room_each.set(streams_max.clamp(1, 1000));
            pool.offer();
        }
    }
}

impl SharedLease {
    fn new(pool: &Rc<Pool>, shared: Rc<Shared>) -> SharedLease {
        if shared.live.get() == 0 {
            pool.cells().connections(ConnState::Idle).sub(1);
            pool.cells().connections(ConnState::Active).add(1);
        }
        shared.live.set(shared.live.get() + 1);
        SharedLease { pool: pool.clone(), shared }
    }
}

impl Drop for SharedLease {
    fn drop(&mut self) {
        let live = self.shared.live.get() - 1;
        self.shared.live.set(live);
        let pooled = self.pool.shared.borrow().iter().any(|s| Rc::ptr_eq(s, &self.shared));
        if live == 0 && pooled {
            self.shared.idle_since.set(self.pool.clock.now());
            self.pool.cells().connections(ConnState::Active).sub(1);
            self.pool.cells().connections(ConnState::Idle).add(1);
        }
        self.pool.offer();
    }
}

impl Drop for SoloLease {
    fn drop(&mut self) {
        self.pool.cells().connections(ConnState::Active).sub(1);
        if let Some(solo) = self.solo.take() {
            solo.link.abort();
            solo.task.abort();
        }
    }
}

impl Lease {
    /// The URL it leads to.
    pub(crate) fn url(&self) -> &Url {
        match self {
            Lease::Solo(lease) => &lease.pool.url,
            Lease::Shared(lease) => &lease.pool.url,
        }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        match self {
            Lease::Solo(_) => Protocol::H1,
            Lease::Shared(_) => Protocol::H2,
        }
    }

    /// Sends `request`; a request of which no byte was written comes back with the error.
    pub(crate) async fn try_send(
        &mut self,
        request: http::Request<Upload>,
    ) -> Result<
        http::Response<hyper::body::Incoming>,
        hyper::client::conn::TrySendError<http::Request<Upload>>,
    > {
        match self {
            Lease::Solo(lease) => {
                let solo = lease.solo.as_mut().expect("held until finish or drop");
                solo.sender.try_send_request(request).await
            }
            Lease::Shared(lease) => lease.shared.sender.clone().try_send_request(request).await,
        }
    }

    /// The exchange is over and both bodies were wholly sent and read: reuse the connection.
    pub(crate) fn finish(self) {
        let Lease::Solo(mut lease) = self else { return };
        let Some(mut solo) = lease.solo.take() else { return };
        let pool = lease.pool.clone();
        drop(lease);
        if solo.sender.is_ready() {
            pool.put_idle(solo);
            return;
        }
        tokio::task::spawn_local(async move {
            let ready = tokio::time::timeout(limits::REUSE_WAIT, solo.sender.ready()).await;
            match ready {
                Ok(Ok(())) => pool.put_idle(solo),
                Ok(Err(_)) | Err(_) => solo.task.abort(),
            }
        });
    }
}
