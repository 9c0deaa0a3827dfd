//! Another configuration while the gateway runs: read whole, then refused whole or taken over.
//!
//! Invariants: one reload at a time; nothing changes before everything that may fail has succeeded;
//! what runs keeps what it began with. Limits of the process act at once, everything else from each
//! worker's next turn on, and a reload is reported when all of them have turned.

use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::{Config, Faults, Loaded, Notice};
use crate::gateway::terms::{self, Terms};
use crate::limits;
use crate::server::files::Files;
use crate::server::{Fleet, Options, Stage, systemd};
use crate::telemetry::cells::ReloadResult;
use crate::telemetry::{Metrics, Slots, log, slots};

/// Reads the configuration again, as it was read at the start. Called on a thread that may block.
pub type Load = Arc<dyn Fn() -> Result<Loaded, Faults> + Send + Sync>;

/// An embedder's wish for a reload: answered when it is done.
pub type Wish = oneshot::Sender<Result<Vec<Notice>, Refused>>;

/// Why nothing has changed: every fault there is.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Refused(pub Vec<String>);

/// What every worker goes by.
#[derive(Clone)]
pub struct Orders {
    /// Rises by one with each reload.
    pub number: u64,
    /// What the configuration means.
    pub terms: Arc<Terms>,
    /// TLS of new client connections.
    pub tls: Option<Arc<ServerConfig>>,
}

/// The slots of `config`'s upstreams, routes and tenants.
///
/// # Errors
/// There are not as many left.
pub(super) fn slots(metrics: &Metrics, config: &Config) -> Result<Slots, slots::Full> {
    let upstreams: Vec<_> = config.upstreams.iter().map(|up| up.name.as_str()).collect();
    let routes: Vec<_> = config.routes.iter().map(|r| (r.path.as_str(), &*r.upstreams)).collect();
    let mut slots = metrics.join(&upstreams, &routes)?;
    let models = || config.usage.models.iter().map(String::as_str);
    let nobody = std::iter::once(("", models().collect()));
    let tenants = config.tenants.iter().map(|tenant| {
        let limited = tenant.tokens_per_minute.keys().map(String::as_str);
        (tenant.name.as_str(), models().chain(limited.filter(|model| *model != "*")).collect())
    });
    slots.usage = metrics.join_usage(nobody.chain(tenants));
    Ok(slots)
}

/// SIGHUP, if it is to be listened for: an embedder, or a program that has nothing to read again,
/// leaves it as it was.
pub(super) fn hangup(options: &Options) -> Option<Signal> {
    if !options.signals || options.load.is_none() {
        return None;
    }
    let listening = signal(SignalKind::hangup());
    listening.inspect_err(|error| tracing::error!(%error, "cannot listen for SIGHUP")).ok()
}

/// Reloads on every SIGHUP and every wish, one after the other. Signals that come during a reload
/// are one more reload after it.
pub(super) async fn serve(
    load: Load,
    mut hangup: Option<Signal>,
    mut wishes: Option<mpsc::Receiver<Wish>>,
    fleet: Rc<Fleet>,
) {
    loop {
        let wish = tokio::select! {
            Some(()) = next_hangup(&mut hangup) => None,
            Some(wish) = next_wish(&mut wishes) => Some(wish),
            else => return,
        };
        let done = reload(&load, &fleet).await;
        if let Some(wish) = wish {
            // Whoever asked may have left.
            let _ = wish.send(done);
        }
    }
}

async fn next_hangup(hangup: &mut Option<Signal>) -> Option<()> {
    hangup.as_mut()?.recv().await
}

async fn next_wish(wishes: &mut Option<mpsc::Receiver<Wish>>) -> Option<Wish> {
    wishes.as_mut()?.recv().await
}

/// One reload, from the file to the last worker.
async fn reload(load: &Load, fleet: &Fleet) -> Result<Vec<Notice>, Refused> {
    let draining = || *fleet.stage.borrow() != Stage::Serving;
    let ignored = || {
        let text = "a reload during a drain is ignored";
        tracing::info!("{text}");
        Err(Refused(vec![text.to_owned()]))
    };
    if draining() {
        return ignored();
    }
    systemd::reloading();
    let before = fleet.orders.borrow().terms.clone();
    let read = read(load.clone(), before.clone()).await;
    if draining() {
        return ignored();
    }
    let taken = match read {
        Ok(read) => take_over(fleet, &before, read).await,
        Err(refused) => Err(refused),
    };
    match &taken {
        Ok(_) => {
            fleet.metrics.process().reloaded(ReloadResult::Ok);
            systemd::reloaded("serving with the configuration of the last reload");
        }
        Err(Refused(faults)) => {
            fleet.metrics.process().reloaded(ReloadResult::Refused);
            for fault in faults {
                tracing::error!("{fault}");
            }
            let count = faults.len();
            tracing::error!(faults = count, "configuration refused; the one before stays in force");
            systemd::reloaded("the last reload was refused; serving with the configuration before");
        }
    }
    taken
}

/// A configuration with all that it needs.
struct Read {
    config: Config,
    notices: Vec<Notice>,
    files: Files,
}

/// Reads and checks everything, off the control thread: a file system may hang.
async fn read(load: Load, before: Arc<Terms>) -> Result<Read, Refused> {
    let reading = tokio::task::spawn_blocking(move || {
        let told = |faults: Faults| faults.faults.iter().map(ToString::to_string).collect();
        let Loaded { mut config, mut notices } = load().map_err(|f| Refused(told(f)))?;
        notices.extend(config.keep_fixed(&before.config));
        let files = Files::read(&config, Some(&before)).map_err(|unusable| Refused(unusable.0))?;
        Ok(Read { config, notices, files })
    });
    let panicked = |_| Err(Refused(vec!["reading the configuration panicked; report it".into()]));
    reading.await.unwrap_or_else(panicked)
}

/// Puts a configuration in force.
async fn take_over(fleet: &Fleet, before: &Arc<Terms>, read: Read) -> Result<Vec<Notice>, Refused> {
    let Read { config, notices, files } = read;
    let slots = slots(&fleet.metrics, &config);
    let slots = slots.map_err(|full| Refused(vec![format!("upstream, route: {full}")]))?;
    // Nothing fails from here on.
    for notice in &notices {
        tracing::warn!("{notice}");
    }
    let changes = config.changes_since(&before.config);
    if config.log != before.config.log {
        log::set_level(config.log.level.as_str());
    }
    let (config, now) = (Arc::new(config), Clock::System.now());
    fleet.admission.resize(&terms::sizes(&config.limits), now);
    fleet.connections.set_max(config.limits.connections);
    let terms = Terms::new(config, files.upstreams, slots, Some(before), now);
    let number = fleet.orders.borrow().number + 1;
    fleet.orders.send_replace(Orders { number, terms: Arc::new(terms), tls: files.server });
    all_follow(fleet, number).await;
    let changes = if changes.is_empty() { "nothing but what files hold" } else { &changes };
    tracing::info!(changes, "configuration reloaded");
    Ok(notices)
}

/// Waits until every worker goes by these orders, within reason.
async fn all_follow(fleet: &Fleet, number: u64) {
    let until = Instant::now() + limits::RELOAD_WAIT;
    for follows in &fleet.follows {
        let mut follows = follows.clone();
        let followed = follows.wait_for(|last| *last >= number);
        if tokio::time::timeout_at(until, followed).await.is_err() {
            tracing::warn!("a worker is busy; it takes the new configuration over when it turns");
        }
    }
}
