//! Listeners, workers and connections; the process around the gateways.
//!
//! [`run`] starts it all and returns when the last connection of a drain has ended: [`listen`]
//! makes the sockets, [`worker`] is one thread with its runtime, [`accept`] and [`connection`]
//! take a client up to the first request, [`h1`] and [`h2`] drive hyper, [`admin`] answers
//! operators, [`reload`] brings another configuration, [`systemd`] reports to the service manager.

pub mod accept;
pub mod admin;
pub mod connection;
pub mod files;
pub mod h1;
pub mod h2;
pub mod handoff;
mod health;
pub mod io;
pub mod listen;
pub mod reload;
pub mod systemd;
pub mod tls;
pub mod tls_stream;
pub mod worker;

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::admission::permit::Permits;
use crate::admission::{Admission, Sizes};
use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::terms::{self, Terms};
use crate::gateway::{FaultHook, Shared};
use crate::server::files::Files;
use crate::server::reload::{Load, Orders, Wish};
use crate::server::worker::{Ask, Worker};
use crate::telemetry::{Cells, Metrics, Shape};

/// How far the process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Serving.
    Serving,
    /// Shutting down: no new connections or requests, streams go on.
    Draining,
    /// The drain deadline has passed: streams are being ended.
    Cutting,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be made.
    #[error("{0}")]
    Listen(#[from] listen::ListenError),
    /// Certificates, keys or CA files are no good.
    #[error("{0}")]
    Tls(#[from] files::Unusable),
    /// The operating system refused a thread or a runtime.
    #[error("cannot start a worker: {0}")]
    Worker(std::io::Error),
}

/// Where a running server can be reached.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The client listeners, in the order of the configuration.
    pub listen: Vec<SocketAddr>,
    /// The admin listener.
    pub admin: SocketAddr,
}

/// What the embedder, `main` or a test, decides.
#[derive(Default)]
pub struct Options {
    /// Drain on SIGTERM and SIGINT; with `load`, reload on SIGHUP.
    pub signals: bool,
    /// Drain when this becomes true or its sender is gone; a second change cuts at once.
    pub stop: Option<watch::Receiver<u32>>,
    /// How a reload reads the configuration; without it there are no reloads.
    pub load: Option<Load>,
    /// Reload when something comes.
    pub reload: Option<mpsc::Receiver<Wish>>,
    /// See [`FaultHook`].
    pub fault: Option<FaultHook>,
    /// Leave every response to the HTTP library, so that tests can compare the two ways.
    pub no_relay: bool,
}

/// What the control thread knows of the workers.
pub struct Fleet {
    /// Metrics over all workers.
    pub metrics: Metrics,
    /// Where questions to each worker go.
    pub asks: Vec<mpsc::Sender<Ask>>,
    /// Tells everyone how far the process has come.
    pub stage: watch::Sender<Stage>,
    /// Places for client connections, shared.
    pub connections: Arc<Permits>,
    /// What the process has to give to requests, shared.
    pub admission: Arc<Admission>,
    /// What every worker goes by.
    pub orders: watch::Sender<Orders>,
    /// The number of the orders that each worker goes by.
    pub follows: Vec<watch::Receiver<u64>>,
    beats: Vec<Arc<AtomicBool>>,
}

impl Fleet {
    /// Begins a drain; the second call, or one in a drain, changes nothing.
    pub fn drain(&self) {
        self.stage.send_if_modified(|stage| {
            let begin = *stage == Stage::Serving;
            if begin {
                *stage = Stage::Draining;
            }
            begin
        });
    }

    /// A worker to be run, and where it hears questions.
    fn hire(&mut self, shared: &Shared, cells: Arc<Cells>) -> (Worker, mpsc::Receiver<Ask>) {
        let (ask, asked) = mpsc::channel(16);
        let (follows, follow) = watch::channel(0);
        let beat = Arc::new(AtomicBool::new(true));
        self.asks.push(ask);
        self.follows.push(follow);
        self.beats.push(beat.clone());
        let worker = Worker {
            shared: shared.clone(),
            orders: self.orders.subscribe(),
            follows,
            cells,
            connections: self.connections.clone(),
            stage: self.stage.subscribe(),
            beat,
        };
        (worker, asked)
    }

    /// The metrics as they are now.
    fn scrape(&self) -> String {
        let (terms, now) = (self.orders.borrow().terms.clone(), Clock::System.now());
        for (known, slot) in terms.known.iter().zip(&terms.slots.upstreams) {
            self.metrics.process().breaker(*slot, known.breaker(now));
        }
        self.metrics.render()
    }

    /// Whether every worker has turned since the last question.
    pub fn alive(&self) -> bool {
        // Every one is asked, so that none keeps an old answer.
        let still = self.beats.iter().filter(|beat| !beat.swap(false, Ordering::Relaxed)).count();
        still == 0
    }
}

/// How a gateway has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Upstream connections that were kept for longer than their streams lived, in its whole life; any
    /// is a bug.
    pub leaks: u64,
}

/// Serves until drained; calls `ready` once everything listens.
///
/// # Errors
/// What kept it from starting; nothing is left running then.
pub fn run(
    config: Config,
    options: Options,
    ready: impl FnOnce(&Ready) + 'static,
) -> Result<Ended, StartError> {
    let files = Files::read(&config, None)?;
    let workers = match config.server.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        fixed => fixed,
    };
    let sockets = listen::bind(&config.server.listen, workers)?;
    let admin = listen::bind_admin(config.admin.listen)?;
    let addresses = Ready { listen: sockets.addresses.clone(), admin: admin.1 };

    let listeners = addresses.listen.iter().map(SocketAddr::to_string).collect();
    let shape = Shape { listeners, ..Shape::default() };
    let cells: Vec<_> = (0..workers).map(|_| Arc::new(Cells::new(&shape))).collect();
    let metrics = Metrics::new(shape, cells.clone());
    let slots = reload::slots(&metrics, &config).expect("the bounds of a configuration are lower");
    let (config, now) = (Arc::new(config), Clock::System.now());
    let shared = Shared {
        admission: Arc::new(Admission::new(&Sizes {
            files: listen::open_files(),
            ..terms::sizes(&config.limits)
        })),
        terms: Arc::new(Terms::new(config.clone(), files.upstreams, slots, None, now)),
        fault: options.fault,
        no_relay: options.no_relay,
    };
    let orders = Orders { number: 0, terms: shared.terms.clone(), tls: files.server };
    let mut fleet = Fleet {
        metrics,
        asks: Vec::new(),
        stage: watch::Sender::new(Stage::Serving),
        connections: Permits::within(&shared.admission.files, config.limits.connections),
        admission: shared.admission.clone(),
        orders: watch::Sender::new(orders),
        follows: Vec::new(),
        beats: Vec::new(),
    };
    fleet.metrics.process().memory(shared.admission.memory.clone());
    drop(config);
    let mut threads = Vec::new();
    for (index, (listeners, cells)) in sockets.per_worker.into_iter().zip(&cells).enumerate() {
        let (worker, asked) = fleet.hire(&shared, cells.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        let thread = thread.spawn(move || worker.run(listeners, asked));
        threads.push(thread.map_err(StartError::Worker)?);
    }
    drop(shared);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(StartError::Worker)?;
    runtime.block_on(control(fleet, admin.0, options, move || ready(&addresses)));
    // The workers end when the control thread's tasks, and with them the fleet, are gone.
    drop(runtime);
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker thread had panicked");
        }
    }
    let leaks = cells.iter().flat_map(|cells| cells.upstreams()).map(|up| up.leaks.get()).sum();
    Ok(Ended { leaks })
}

/// What the control thread does, from the open listeners to the end of the drain.
async fn control(fleet: Fleet, admin: TcpListener, mut options: Options, ready: impl FnOnce()) {
    let fleet = Rc::new(fleet);
    tokio::task::spawn_local(admin::serve(admin, fleet.clone()));
    let (hangup, wishes) = (reload::hangup(&options), options.reload.take());
    if let Some(load) = options.load.take() {
        tokio::task::spawn_local(reload::serve(load, hangup, wishes, fleet.clone()));
    }
    tokio::task::spawn_local(health::serve(fleet.clone()));
    ready();
    systemd::ready();
    tokio::task::spawn_local(systemd::watchdog(fleet.clone()));
    stop_requested(&options, &fleet).await;
    let deadline = fleet.orders.borrow().terms.config.server.drain_deadline;
    drain(&fleet, &options, deadline).await;
}

/// Reads and tries the certificates, keys and CA files that `config` names, as `run` would.
///
/// # Errors
/// All that are no good, told with their paths.
pub fn check_files(config: &Config) -> Result<(), StartError> {
    Files::read(config, None)?;
    Ok(())
}

/// Waits for the first wish to stop: a signal, the embedder, or `POST /drain`.
async fn stop_requested(options: &Options, fleet: &Fleet) {
    let mut stage = fleet.stage.subscribe();
    tokio::select! {
        () = signalled(options.signals) => {}
        () = embedder(options, 1) => {}
        _ = stage.wait_for(|stage| *stage >= Stage::Draining) => {}
    }
}

async fn signalled(wanted: bool) {
    use tokio::signal::unix::{SignalKind, signal};
    if !wanted {
        return std::future::pending().await;
    }
    let both = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = both else {
        tracing::error!("cannot listen for signals");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn embedder(options: &Options, calls: u32) {
    let Some(stop) = &options.stop else { return std::future::pending().await };
    // A sender that is gone wants the stop as well.
    let _ = stop.clone().wait_for(|stop| *stop >= calls).await;
}

/// Lets streams finish until the deadline or a second wish to stop, then ends the rest.
async fn drain(fleet: &Fleet, options: &Options, deadline: Duration) {
    systemd::stopping();
    fleet.drain();
    tracing::info!(streams = fleet.admission.streams.used(), ?deadline, "draining");
    tokio::select! {
        () = all_gone(fleet) => return,
        () = tokio::time::sleep(deadline) => {}
        () = signalled(options.signals) => {}
        () = embedder(options, 2) => {}
    }
    tracing::warn!(
        streams = fleet.admission.streams.used(),
        "the drain deadline has passed; ending the rest"
    );
    fleet.stage.send_replace(Stage::Cutting);
    let give_up = Instant::now() + crate::limits::CUT_WAIT;
    let _ = tokio::time::timeout_at(give_up, all_gone(fleet)).await;
}

async fn all_gone(fleet: &Fleet) {
    // Looked at, not waited for: the last connection ends on another thread, once per process.
    let mut look = tokio::time::interval(crate::limits::TICK);
    while fleet.connections.used() > 0 || fleet.admission.streams.used() > 0 {
        look.tick().await;
    }
}
