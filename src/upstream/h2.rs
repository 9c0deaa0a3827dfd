//! HTTP/2 upstream connections: shared by as many streams as the peer's SETTINGS allow.
//!
//! h2 tells nobody when SETTINGS change or come at all, so the pool looks after each step of
//! hyper's tasks, which run through an executor of ours.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::TokioTimer;
use tokio::task::AbortHandle;

use crate::clock::Moment;
use crate::limits;
use crate::telemetry::cells::ConnState;
use crate::upstream::connect::Transport;
use crate::upstream::pool::Pool;
use crate::upstream::upload::Upload;

/// Streams on an HTTP/2 connection before the peer has told how many it takes.
pub(super) const UNSETTLED: usize = 1;

pub(super) type H2Connection = http2::Connection<Transport, Upload, Watch>;
/// An HTTP/2 connection.
pub(crate) struct Shared {
    pub(super) sender: http2::SendRequest<Upload>,
    /// hyper's driver of the connection; the only one that knows the peer's stream limit.
    /// `None` once it has ended: until it is dropped hyper takes requests that nobody will send.
    connection: Rc<RefCell<Option<H2Connection>>>,
    /// Streams the peer allows, as last seen.
    streams_max: Cell<usize>,
    pub(super) live: Cell<usize>,
    pub(super) opened: Moment,
    pub(super) idle_since: Cell<Moment>,
    pub(super) task: RefCell<Option<AbortHandle>>,
}

/// The use of one stream's place on an HTTP/2 connection.
pub(crate) struct SharedLease {
    pub(super) pool: Rc<Pool>,
    pub(super) shared: Rc<Shared>,
}

/// Starts HTTP/2 on a fresh connection and puts it into the pool.
pub(super) async fn open(pool: &Rc<Pool>, transport: Transport) -> hyper::Result<()> {
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
    pub(super) fn room(&self) -> usize {
        if self.sender.is_closed() {
            return 0;
        }
        self.streams_max.get().saturating_sub(self.live.get())
    }

    /// Whether the peer's SETTINGS are probably still on their way.
    pub(super) fn is_unsettled(&self, now: Moment) -> bool {
        self.streams_max.get() == UNSETTLED && now.since(self.opened) < limits::SETTINGS_WAIT
    }
}

/// Runs hyper's HTTP/2 tasks, and after each of their steps looks whether the peer's SETTINGS
/// have made room for more streams: h2 tells nobody.
#[derive(Clone)]
pub(super) struct Watch {
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
    pub(super) fn new(pool: &Rc<Pool>, shared: Rc<Shared>) -> SharedLease {
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
