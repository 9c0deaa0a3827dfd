//! One worker: a thread with its own runtime, wheel, gateway, upstream pools and listeners.
//!
//! Nothing of it is shared but what [`Worker`] brings along.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::admission::permit::Permits;
use crate::clock::Clock;
use crate::gateway::{Gateway, Shared};
use crate::limits;
use crate::memory;
use crate::server::listen::WorkerSockets;
use crate::server::reload::Orders;
use crate::server::tls_stream::Acceptor;
use crate::server::{Stage, accept};
use crate::telemetry::Cells;
use crate::wire::wheel::{Tick, Wheel};

/// How often upstream connections are looked after, in ticks.
const POOLS_TICKS: u32 = 50;
/// How often memory is given back, in ticks.
const GIVE_BACK_TICKS: u32 = 10;

/// A question from the control thread.
pub enum Ask {
    /// The live streams, one JSON object each.
    Streams(oneshot::Sender<Vec<Value>>),
}

/// What a worker is made of.
pub struct Worker {
    /// What all workers share.
    pub shared: Shared,
    /// What it goes by.
    pub orders: watch::Receiver<Orders>,
    /// Where it tells which orders it goes by.
    pub follows: watch::Sender<u64>,
    /// This worker's metrics.
    pub cells: Arc<Cells>,
    /// Places for client connections.
    pub connections: Arc<Permits>,
    /// How far the process has come.
    pub stage: watch::Receiver<Stage>,
    /// Set each tick, for the watchdog.
    pub beat: Arc<AtomicBool>,
}

/// What a connection needs of its worker.
pub struct Floor {
    /// The way of its requests.
    pub gateway: Rc<Gateway>,
    /// TLS, if the listeners have it.
    pub tls: Option<Rc<Acceptor>>,
}

impl Floor {
    /// What comes from now on goes by `orders`. They may have other certificates, but neither bring
    /// TLS nor take it away.
    fn follow(&self, orders: &Orders) {
        self.gateway.adopt(&orders.terms);
        if let (Some(tls), Some(config)) = (&self.tls, &orders.tls) {
            tls.renew(config.clone());
        }
    }
}

impl Worker {
    /// Serves on `sockets` until the drain is over.
    pub fn run(self, sockets: WorkerSockets, asked: mpsc::Receiver<Ask>) {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .expect("the operating system gives an epoll instance");
        runtime.block_on(self.serve(sockets, asked));
    }

    async fn serve(self, sockets: WorkerSockets, mut asked: mpsc::Receiver<Ask>) {
        let (clock, wheel) = (Clock::System, Wheel::new());
        let gateway = Gateway::new(&self.shared, &clock, &wheel, &self.cells);
        // Orders newer than those of the start are still to be followed below.
        let tls = self.orders.borrow().tls.clone().map(Acceptor::new);
        let floor = Rc::new(Floor { gateway: gateway.clone(), tls });
        wheel.advance(Tick(clock.now().ticks()));
        let mut claims = sockets.claims;
        let mut accepting = Vec::new();
        for (index, listener) in sockets.listeners.into_iter().enumerate() {
            let places = self.connections.clone();
            let task = accept::serve(listener, index, floor.clone(), places);
            accepting.push(tokio::task::spawn_local(task).abort_handle());
        }
        let (mut stage, mut orders) = (self.stage, self.orders);
        let mut turn = tokio::time::interval(limits::TICK);
        turn.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut turns: u32 = 0;
        loop {
            tokio::select! {
                _ = turn.tick() => {
                    wheel.advance(Tick(clock.now().ticks()));
                    self.beat.store(true, Ordering::Relaxed);
                    gateway.shed();
                    gateway.make_room();
                    turns = turns.wrapping_add(1);
                    if turns.is_multiple_of(POOLS_TICKS) {
                        gateway.look_after_pools();
                    }
                    if turns.is_multiple_of(GIVE_BACK_TICKS) {
                        memory::give_back();
                    }
                }
                Ok(()) = orders.changed() => {
                    let orders = orders.borrow_and_update().clone();
                    floor.follow(&orders);
                    self.follows.send_replace(orders.number);
                }
                Some(ask) = asked.recv() => answer(ask, &gateway, &clock),
                changed = stage.changed() => {
                    // The control thread is gone when all is over.
                    let Ok(()) = changed else { return gateway.look_for_leaks() };
                    let now = *stage.borrow_and_update();
                    for task in accepting.drain(..) {
                        task.abort();
                    }
                    // The next instance may start while this one drains.
                    claims.clear();
                    match now {
                        Stage::Serving => {}
                        Stage::Draining => gateway.drain(),
                        Stage::Cutting => { gateway.drain(); gateway.cut() }
                    }
                }
            }
        }
    }
}

fn answer(ask: Ask, gateway: &Gateway, clock: &Clock) {
    let Ask::Streams(to) = ask;
    let now = clock.now();
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let mut rows = Vec::with_capacity(gateway.ground.live.len());
    gateway.ground.live.for_each(|row| {
        rows.push(json!({
            "id": &*row.id,
            "route": row.place.route,
            "upstream": row.target().upstream,
            "age_ms": millis(now.since(row.started)),
            "bytes": row.bytes.get(),
            "last_activity_ms": millis(now.since(row.active.get())),
            "backlog": row.control.backlog(),
        }));
    });
    // Whoever asked may have left.
    let _ = to.send(rows);
}
