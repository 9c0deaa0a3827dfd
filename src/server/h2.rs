//! Driving hyper's HTTP/2 server for one client.
//!
//! hyper runs each stream in a task of its own through our executor; that task is where a stream
//! can be cut: dropping it resets the stream, and the connection with its other streams lives on.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2::{Builder, Connection};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::gateway::Gateway;
use crate::gateway::handle::handle;
use crate::limits;
use crate::server::io::ClientIo;
use crate::server::worker::Floor;
use crate::stream::body::ClientBody;
use crate::stream::control::{Control, IoState, Patience};
use crate::wire::wheel::{Tick, Timer};

/// What a connection and the tasks of its streams share.
struct Streams {
    gateway: Rc<Gateway>,
    io: Rc<IoState>,
    /// The control of the stream whose task is being polled.
    current: RefCell<Option<Rc<Control>>>,
    live: Cell<usize>,
    /// Wakes the connection when its last stream ends.
    connection: RefCell<Option<Waker>>,
}

/// Serves `io` until it is closed.
pub async fn serve(io: ClientIo, floor: Rc<Floor>) {
    let gateway = floor.gateway.clone();
    let streams = Rc::new(Streams {
        gateway: gateway.clone(),
        io: io.state(),
        current: RefCell::default(),
        live: Cell::new(0),
        connection: RefCell::default(),
    });
    let service = {
        let streams = streams.clone();
        service_fn(move |request: Request<Incoming>| {
            let streams = streams.clone();
            async move {
                let control = streams.current.borrow().clone();
                let control = control.expect("a stream is polled by its StreamTask");
                let gateway = streams.gateway.clone();
                drop(streams);
                Ok::<_, Infallible>(handle(gateway, control, request).await)
            }
        })
    };
    let hyper = Builder::new(StreamExecutor(streams.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(floor.h2_max_streams)
        .initial_stream_window_size(limits::CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(limits::CLIENT_CONNECTION_WINDOW)
        .max_send_buf_size(gateway.patience.backlog as usize)
        .max_header_list_size(limits::CLIENT_HEAD_BYTES as u32)
        .serve_connection(TokioIo::new(io), service);
    let mut hyper = Box::pin(hyper);
    let timer = gateway.ground.wheel.timer();
    let idle_since = gateway.ground.wheel.now();
    let mut watch = Watch { streams, timer, idle_since, closing_since: None };
    std::future::poll_fn(|cx| watch.step(hyper.as_mut(), cx)).await;
}

struct Watch {
    streams: Rc<Streams>,
    timer: Timer,
    idle_since: Tick,
    /// When GOAWAY was sent.
    closing_since: Option<Tick>,
}

impl Watch {
    fn step<S>(
        &mut self,
        mut hyper: Pin<&mut Connection<TokioIo<ClientIo>, S, StreamExecutor>>,
        cx: &mut Context<'_>,
    ) -> Poll<()>
    where
        S: HttpService<Incoming, ResBody = ClientBody>,
        S::Future: 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let gateway = &self.streams.gateway;
        let now = gateway.ground.wheel.now();
        let live = self.streams.live.get() > 0;
        if live {
            self.idle_since = now;
        }
        let expired = !live && now >= self.idle_since.after(limits::CLIENT_IDLE);
        if (gateway.draining.get() || expired) && self.closing_since.is_none() {
            self.closing_since = Some(now);
            hyper.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(ended) = hyper.as_mut().poll(cx) {
            if let Err(error) = ended {
                tracing::debug!(%error, "a client's HTTP/2 connection ended");
            }
            return Poll::Ready(());
        }
        let now = gateway.ground.wheel.now();
        let mut due = match self.closing_since {
            // GOAWAY was sent; a client without streams that does not close is not waited for.
            Some(_) if live => now.after(limits::CLIENT_IDLE),
            Some(since) => since.max(self.idle_since).after(limits::CLOSE_WAIT),
            None => self.idle_since.after(limits::CLIENT_IDLE),
        };
        if self.closing_since.is_some() && now >= due {
            return Poll::Ready(());
        }
        if let Some(since) = self.streams.io.blocked_since() {
            let stalled = since.after(gateway.patience.client_stall);
            if now >= stalled {
                return Poll::Ready(());
            }
            due = due.min(stalled);
        }
        let mut connection = self.streams.connection.borrow_mut();
        if !connection.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *connection = Some(cx.waker().clone());
        }
        self.timer.set(due.max(Tick(now.0 + 1)), cx.waker());
        Poll::Pending
    }
}

/// Runs hyper's stream tasks.
#[derive(Clone)]
struct StreamExecutor(Rc<Streams>);

impl<F: Future + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, hyper: F) {
        let streams = self.0.clone();
        let ground = &streams.gateway.ground;
        // hyper's send buffer is the backlog here; nobody would wake a body that waits for the
        // connection's socket.
        let patience = Patience { backlog: u32::MAX, ..streams.gateway.patience };
        let io = streams.io.clone();
        let control = Control::new(io, ground.cells.clone(), &ground.wheel, patience);
        streams.live.set(streams.live.get() + 1);
        tokio::task::spawn_local(StreamTask { hyper: Box::pin(hyper), control, streams });
    }
}

/// One stream: hyper's task and the control by which it is cut.
struct StreamTask<F> {
    hyper: Pin<Box<F>>,
    control: Rc<Control>,
    streams: Rc<Streams>,
}

impl<F: Future> Future for StreamTask<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let me = &mut *self;
        *me.streams.current.borrow_mut() = Some(me.control.clone());
        let polled = me.hyper.as_mut().poll(cx);
        me.streams.current.borrow_mut().take();
        if polled.is_ready() {
            return Poll::Ready(());
        }
        // The task's end drops hyper's part, which resets the stream.
        me.control.poll_cut(cx).map(|_| ())
    }
}

impl<F> Drop for StreamTask<F> {
    fn drop(&mut self) {
        self.streams.live.set(self.streams.live.get() - 1);
        if let Some(connection) = self.streams.connection.borrow_mut().take() {
            connection.wake();
        }
    }
}
