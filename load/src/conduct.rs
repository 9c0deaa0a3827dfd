//! A run from its first stream to its report.
//!
//! Owns the phases and what is measured of the server at their edges. Refuses to wait for ever:
//! streams that neither come nor fail hold the window back for a bounded time. Invariant: CPU time
//! is read at the edges of the window, memory outside it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::control::{Phase, Progress, real_ns};
use crate::fleet::Fleet;
use crate::output::Screen;
use crate::plan::Plan;
use crate::proc::{self, Cpu, Memory};
use crate::tally::Tally;

/// Given to all processes to come up before the first stream is due.
const LEAD: Duration = Duration::from_millis(300);
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What was measured around the tallies.
pub(crate) struct Measured {
    pub(crate) tally: Tally,
    /// CLOCK_REALTIME of the first stream, seconds.
    pub(crate) started_at: u64,
    /// Length of the window.
    pub(crate) window: Duration,
    /// Most streams seen live at a time.
    pub(crate) live_max: u64,
    /// Streams live when the window closed (hold, churn) or when all had been opened.
    pub(crate) live: u64,
    /// The window closed before its time: no stream was left.
    pub(crate) ended_early: bool,
    /// The window began though some streams had neither come nor failed.
    pub(crate) unsettled: u64,
    pub(crate) server: Option<Server>,
    pub(crate) own_cpu: Cpu,
    pub(crate) own_memory: Memory,
}

/// The server, as far as `--pid` tells.
pub(crate) struct Server {
    pub(crate) before: Memory,
    pub(crate) at: Memory,
    pub(crate) after: Memory,
    pub(crate) cpu: Cpu,
}

/// Whom to measure: the server's processes and our own.
struct Meter<'a> {
    plan: &'a Plan,
}

impl Meter<'_> {
    /// Without ourselves, should the server have started us.
    fn server(&self) -> BTreeSet<u32> {
        let family = proc::family(&self.plan.args.pid);
        if family.contains(&std::process::id()) { &family - &Self::own() } else { family }
    }

    fn own() -> BTreeSet<u32> {
        proc::family(&[std::process::id()])
    }
}

struct Run<'a> {
    plan: &'a Plan,
    fleet: Fleet,
    screen: Screen,
    live_max: u64,
}

impl Run<'_> {
    /// Looks until `until` says so, the time is over or all workers have ended; true if the first.
    fn watch(
        &mut self,
        deadline: Option<Instant>,
        mut until: impl FnMut(&Progress) -> bool,
    ) -> bool {
        loop {
            let progress = self.fleet.progress();
            self.live_max = self.live_max.max(progress.live);
            self.screen.progress(&progress);
            if until(&progress) {
                return true;
            }
            let left = deadline.map_or(LOOK, |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() || self.fleet.wait(left.min(LOOK)) {
                return false;
            }
        }
    }

    /// When the wait for the slowest stream's first event is over.
    fn patience(&self) -> Instant {
        let args = &self.plan.args;
        let ramp = Duration::from_nanos(self.plan.begin_ns(self.plan.streams));
        Instant::now() + LEAD + ramp + args.connect_timeout + args.head_timeout
    }
}

/// Runs the plan.
pub(crate) fn conduct(plan: &Arc<Plan>) -> Result<Measured> {
    let args = &plan.args;
    let meter = Meter { plan };
    let before = proc::memory(&meter.server());
    let start_ns = real_ns() + LEAD.as_nanos() as u64;
    let fleet = Fleet::start(plan, start_ns)?;
    let mut run = Run { plan, fleet, screen: Screen::new(args.quiet, plan.streams), live_max: 0 };
    let timed = args.hold.or(args.churn.then_some(args.duration));
    let settled = |progress: &Progress| progress.settled >= plan.streams;

    let mut edge = (Instant::now() + LEAD, proc::cpu(&meter.server()), proc::cpu(&Meter::own()));
    let patience = run.patience();
    run.watch(Some(patience), settled);
    let unsettled = plan.streams.saturating_sub(run.fleet.progress().settled);
    let mut at = (run.fleet.progress().live, Memory::default());
    let mut ended_early = false;
    if let Some(time) = timed {
        run.fleet.enter(Phase::Window)?;
        edge = (Instant::now(), proc::cpu(&meter.server()), proc::cpu(&Meter::own()));
        run.watch(Some(edge.0 + time), |p| p.finished >= plan.streams);
        let progress = run.fleet.progress();
        at.0 = progress.live;
        ended_early = progress.finished >= plan.streams;
        run.fleet.enter(Phase::Closed)?;
    } else {
        at.1 = proc::memory(&meter.server());
        run.watch(None, |progress| progress.finished >= plan.streams);
    }
    let window = edge.0.elapsed();
    let (server_cpu, own_cpu) = (proc::cpu(&meter.server()), proc::cpu(&Meter::own()));
    let own_memory = proc::memory(&Meter::own());
    if timed.is_some() {
        at.1 = proc::memory(&meter.server());
    }
    run.fleet.enter(Phase::Stop)?;
    let tally = run.fleet.finish()?;
    run.screen.clear();
    let server = (!args.pid.is_empty()).then(|| {
        // A pause for the server to close and give back, not a wait for something to happen.
        std::thread::park_timeout(args.settle);
        let after = proc::memory(&meter.server());
        Server { before, at: at.1, after, cpu: server_cpu.since(&edge.1) }
    });
    Ok(Measured {
        tally,
        started_at: start_ns / 1_000_000_000,
        window,
        live_max: run.live_max,
        live: at.0,
        ended_early,
        unsettled,
        server,
        own_cpu: own_cpu.since(&edge.2),
        own_memory,
    })
}
