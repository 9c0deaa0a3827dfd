//! HTTP/2 upstream connections: shared by as many streams as the peer's SETTINGS allow.
//!
//! One task drives each connection. h2 tells nobody when SETTINGS change or come at all, so the
//! task looks after each step; and it pings a peer that has gone quiet, since a connection into a
//! black hole would otherwise be given to ever more requests.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};

use crate::clock::Moment;
use crate::limits;
use crate::memory;
use crate::telemetry::cells::{ConnState, UpstreamCells};
use crate::upstream::pool::Pool;
use crate::upstream::transport::Transport;
use crate::wire::wheel::Tick;

#[cfg(test)]
mod tests;

/// Streams on an HTTP/2 connection before the peer has told how many it takes.
pub(super) const UNSETTLED: usize = 1;

/// An HTTP/2 connection.
pub(crate) struct Shared {
    /// Requests go out on clones of it: this one never waits, and so always knows of a GOAWAY.
    sender: RefCell<SendRequest<Bytes>>,
    /// Its task has ended.
    ended: Cell<bool>,
    /// Streams the peer allows, as last seen.
    streams_max: Cell<usize>,
    pub(super) live: Cell<usize>,
    opened: Moment,
    /// From when on it is too old for another stream.
    pub(super) until: Cell<Tick>,
    pub(super) idle_since: Cell<Moment>,
    /// What the metrics have it as.
    counted: Cell<Option<ConnState>>,
    task: RefCell<Option<AbortHandle>>,
}

/// The use of one stream's place on an HTTP/2 connection.
pub(crate) struct SharedLease {
    pool: Rc<Pool>,
    shared: Rc<Shared>,
}

/// Starts HTTP/2 on a fresh connection and puts it into the pool.
pub(super) async fn open(pool: &Rc<Pool>, transport: Transport) -> Result<(), h2::Error> {
    let heard = Rc::new(Cell::new(Instant::now()));
    let until = Cell::new(transport.until());
    let io = Heard { io: transport, at: heard.clone() };
    let (sender, mut connection) = builder().handshake(io).await?;
    let pings = connection.ping_pong().expect("it is asked for once");
    let alive = KeepAlive::new(pings, heard, limits::UPSTREAM_PING, limits::UPSTREAM_PING_TIMEOUT);
    let now = pool.clock.now();
    let shared = Rc::new(Shared {
        sender: RefCell::new(sender),
        ended: Cell::new(false),
        streams_max: Cell::new(UNSETTLED),
        live: Cell::new(0),
        opened: now,
        until,
        idle_since: Cell::new(now),
        counted: Cell::new(None),
        task: RefCell::default(),
    });
    shared.count(pool.cells(), Some(ConnState::Idle));
    let task = memory::apart(drive(connection, alive, Rc::downgrade(pool), shared.clone()));
    *shared.task.borrow_mut() = Some(tokio::task::spawn_local(task).abort_handle());
    pool.shared.borrow_mut().push(shared);
    Ok(())
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .header_table_size(limits::UPSTREAM_HEADER_TABLE)
        .initial_window_size(limits::UPSTREAM_STREAM_WINDOW)
        // Streams are bounded one by one: a lagging one must not close the window of the others.
        .initial_connection_window_size(u32::try_from(i32::MAX).expect("2^31-1"))
        .data_frame_budget(limits::UPSTREAM_FRAME_BUDGET)
        .initial_max_send_streams(UNSETTLED)
        .max_send_buffer_size(limits::UPSTREAM_SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits::RESPONSE_HEAD_BYTES).expect("64 KiB"))
        .max_concurrent_reset_streams(limits::UPSTREAM_RESETS)
        // h2 counts an answer to what comes late for a stream that its client has left as if it
        // were the peer's fault: a connection would end after some thousand clients that leave.
        .max_local_error_reset_streams(None);
    builder
}

/// Drives a connection until it ends or stops answering.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<T, Bytes>,
    mut alive: KeepAlive,
    pool: Weak<Pool>,
    shared: Rc<Shared>,
) {
    let driven = std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        shared.look(connection.max_concurrent_send_streams(), &pool);
        if polled.is_pending() && alive.poll(cx).is_ready() {
            return Poll::Ready(Err("it answers no ping".to_owned()));
        }
        polled.map_err(|error| error.to_string())
    });
    if let Err(error) = driven.await {
        tracing::debug!(%error, "an HTTP/2 upstream connection ended");
    }
    // Only its drop tells the streams that are left.
    drop(connection);
    shared.ended.set(true);
    if let Some(pool) = pool.upgrade() {
        pool.offer();
    }
}

impl Shared {
    /// A handle for one request.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.sender.borrow().clone()
    }

    /// Whether it takes no further request: it has ended, or the peer said GOAWAY.
    pub(super) fn is_over(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.ended.get()
            || matches!(self.sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Streams this connection takes on top of those it has.
    pub(super) fn room(&self) -> usize {
        let room = self.streams_max.get().saturating_sub(self.live.get());
        if room > 0 && self.is_over() { 0 } else { room }
    }

    /// Whether the peer's SETTINGS are probably still on their way.
    pub(super) fn is_unsettled(&self, now: Moment) -> bool {
        self.streams_max.get() == UNSETTLED && now.since(self.opened) < limits::SETTINGS_WAIT
    }

    /// It takes no further stream, whether there is a place for another connection or not.
    pub(super) fn give_up(&self) {
        self.until.set(Tick::default());
    }

    /// See [`Shared::give_up`].
    pub(super) fn is_given_up(&self) -> bool {
        self.until.get() == Tick::default()
    }

    /// From now on the metrics have it as `state`, or not at all.
    pub(super) fn count(&self, cells: &UpstreamCells, state: Option<ConnState>) {
        if let Some(before) = self.counted.replace(state) {
            cells.connections(before).sub(1);
        }
        if let Some(state) = state {
            cells.connections(state).add(1);
        }
    }

    /// Ends it at once.
    pub(super) fn close(&self, cells: &UpstreamCells) {
        self.count(cells, None);
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    fn look(&self, streams_max: usize, pool: &Weak<Pool>) {
        if self.streams_max.replace(streams_max) != streams_max
            && let Some(pool) = pool.upgrade()
        {
            pool.room_each.set(streams_max.clamp(1, 1000));
            pool.offer();
        }
    }
}

impl SharedLease {
    pub(super) fn new(pool: &Rc<Pool>, shared: Rc<Shared>) -> SharedLease {
        shared.count(pool.cells(), Some(ConnState::Active));
        pool.cells().leases.add(1);
        shared.live.set(shared.live.get() + 1);
        pool.endpoint.began();
        SharedLease { pool: pool.clone(), shared }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// It stays out for a while though its stream is over, on purpose.
    pub(super) fn linger(&self) -> Lingers {
        self.pool.cells().lingering.add(1);
        Lingers(self.pool.clone())
    }
}

/// The time in which a lease outlives its stream on purpose.
pub(super) struct Lingers(Rc<Pool>);

impl Drop for Lingers {
    fn drop(&mut self) {
        self.0.cells().lingering.sub(1);
    }
}

impl Drop for SharedLease {
    fn drop(&mut self) {
        let live = self.shared.live.get() - 1;
        self.shared.live.set(live);
        self.pool.endpoint.ended();
        self.pool.cells().leases.sub(1);
        if live == 0 {
            if self.pool.shared.borrow().iter().any(|s| Rc::ptr_eq(s, &self.shared)) {
                self.shared.idle_since.set(self.pool.clock.now());
                self.shared.count(self.pool.cells(), Some(ConnState::Idle));
            } else {
                // The pool has forgotten it, so nobody else will.
                self.shared.close(self.pool.cells());
            }
        }
        self.pool.offer();
    }
}

/// A transport that notes when something came.
struct Heard<T> {
    io: T,
    at: Rc<Cell<Instant>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.at.set(Instant::now());
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

/// Pings a peer from which nothing has come for a while.
struct KeepAlive {
    pings: PingPong,
    heard: Rc<Cell<Instant>>,
    /// The next ping; while one is out, the end of the wait for its answer.
    timer: Pin<Box<Sleep>>,
    asked: bool,
    quiet_max: Duration,
    answer_max: Duration,
}

impl KeepAlive {
    fn new(
        pings: PingPong,
        heard: Rc<Cell<Instant>>,
        quiet_max: Duration,
        answer_max: Duration,
    ) -> KeepAlive {
        let timer = Box::pin(tokio::time::sleep(quiet_max));
        KeepAlive { pings, heard, timer, asked: false, quiet_max, answer_max }
    }

    /// Ready when the peer owes an answer for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.asked {
                ready!(self.timer.as_mut().poll(cx));
                let due = self.heard.get() + self.quiet_max;
                if due > Instant::now() {
                    self.timer.as_mut().reset(due);
                    continue;
                }
                // It fails only for a connection that is about to tell its end itself.
                self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
                self.timer.as_mut().reset(Instant::now() + self.answer_max);
            } else if self.pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.timer.as_mut().reset(self.heard.get() + self.quiet_max);
            } else {
                return self.timer.as_mut().poll(cx);
            }
        }
    }
}
