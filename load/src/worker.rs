//! One worker: a thread with a runtime of its own, and the streams in its places.
//!
//! Owns the schedule (a stream begins when it is due, whatever the server does) and the times of a
//! stream. Refuses to share: its tally is handed over when it is done. Invariant: places are never
//! more than the plan has. Cost: one read buffer; one timer per stream, moved only when it fires.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::control::{Control, Gauges, Phase};
use crate::dial::Dialer;
use crate::http1;
use crate::http2::{self, Lane};
use crate::plan::Plan;
use crate::stream::{Pace, Stream};
use crate::tally::Tally;

/// The one read buffer, bytes.
const BUFFER: usize = 64 * 1024;
/// How often the phase is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// A place whose stream failed waits so long before the next: the server may be down.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// A slow reader reads a tenth of a second's share ten times a second.
const SHARES_PER_SECOND: usize = 10;
/// Further than any run lasts.
const NEVER: u64 = u64::MAX / 4;

/// What the streams of one worker share.
pub(crate) struct Worker {
    pub(crate) plan: Arc<Plan>,
    pub(crate) control: Arc<Control>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) tally: RefCell<Tally>,
    pub(crate) buffer: RefCell<Box<[u8]>>,
    pub(crate) dialer: Dialer,
    pub(crate) lanes: Vec<Lane>,
    /// HTTP/1.1 head up to the id.
    pub(crate) head: String,
    /// This worker's number among all of the run.
    pub(crate) number: u64,
    attempts: Cell<u64>,
}

/// Runs the streams of worker `number`, the first of the run due at `begin` on the process's clock.
pub(crate) fn work(
    plan: Arc<Plan>,
    control: Arc<Control>,
    gauges: Arc<Gauges>,
    number: u64,
    begin: u64,
) -> Result<Tally> {
    let places = (plan.streams.saturating_sub(number)).div_ceil(plan.workers());
    let lanes = match plan.args.http {
        2 => usize::try_from(places.div_ceil(plan.args.per_connection.into()))?,
        _ => 0,
    };
    let worker = Rc::new(Worker {
        dialer: Dialer::new(&plan)?,
        head: plan.head(),
        lanes: std::iter::repeat_with(Lane::default).take(lanes).collect(),
        tally: RefCell::default(),
        buffer: RefCell::new(vec![0; BUFFER].into_boxed_slice()),
        attempts: Cell::new(0),
        plan,
        control,
        gauges,
        number,
    });
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("cannot make a runtime")?;
    runtime.block_on(schedule(Rc::clone(&worker), begin));
    drop(runtime);
    Ok(worker.tally.take())
}

async fn schedule(worker: Rc<Worker>, begin: u64) {
    let plan = Arc::clone(&worker.plan);
    let mut tasks = JoinSet::new();
    let places = (worker.number..plan.streams).step_by(plan.workers() as usize);
    for (local, place) in places.enumerate() {
        let due = begin + plan.begin_ns(place);
        while worker.control.mono() < due && worker.control.phase() != Phase::Stop {
            let look = (worker.control.mono() + LOOK.as_nanos() as u64).min(due);
            sleep_until(worker.control.instant(look).into()).await;
        }
        if worker.control.phase() == Phase::Stop {
            break;
        }
        tasks.spawn_local(hold_place(Rc::clone(&worker), place, local, due));
    }
    while worker.control.phase() != Phase::Stop {
        if let Ok(None) = timeout(LOOK, tasks.join_next()).await {
            return;
        }
    }
    // Dropping a stream counts it.
    tasks.shutdown().await;
}

/// The streams of one place, one after the other; more than one only with `--churn`.
async fn hold_place(worker: Rc<Worker>, place: u64, local: usize, due: u64) {
    let mut intended = due;
    let mut first = true;
    loop {
        let number = worker.attempts.replace(worker.attempts.get() + 1);
        let id = worker.plan.id(worker.number, number);
        let pace = worker.plan.pace(place);
        let mut stream = Stream::begin(Rc::clone(&worker), id, intended, pace, first);
        if worker.plan.args.http == 2 {
            let lane = local / worker.plan.args.per_connection as usize;
            http2::run(&worker, &mut stream, lane).await;
        } else {
            http1::run(&worker, &mut stream, id).await;
        }
        let failed = !stream.was_opened();
        drop(stream);
        if !worker.plan.args.churn || worker.control.phase() == Phase::Stop {
            return worker.gauges.finished();
        }
        if failed {
            sleep(AFTER_FAILURE).await;
        }
        first = false;
        intended = worker.control.mono();
    }
}

/// When a stream reads, rests, is given up and is left.
pub(crate) struct Times {
    /// When the timer is to fire.
    pub(crate) wake: Instant,
    /// Most bytes to read at once.
    pub(crate) share: usize,
    rate: Option<u64>,
    resume: u64,
    leave: u64,
    leave_at: Instant,
}

/// The times of a stream whose head has just come.
pub(crate) fn pauses(worker: &Worker, stream: &Stream) -> Times {
    let args = &worker.plan.args;
    let now = worker.control.mono();
    let leave = worker.plan.abort_ns(stream.id()).map_or(NEVER, |ns| now + ns);
    let slow = stream.pace == Pace::Slow;
    let idle = now + args.idle_timeout.as_nanos() as u64;
    Times {
        wake: worker.control.instant(leave.min(idle)),
        share: if slow { args.read_rate / SHARES_PER_SECOND } else { usize::MAX },
        rate: slow.then_some(args.read_rate as u64),
        resume: 0,
        leave,
        leave_at: worker.control.instant(leave),
    }
}

impl Times {
    pub(crate) fn leave(&self) -> Instant {
        self.leave_at
    }

    pub(crate) fn is_paused(&self, worker: &Worker) -> bool {
        self.resume > 0 && worker.control.mono() < self.resume
    }

    /// After a read of a full share: whether the stream rests now, until `wake`.
    pub(crate) fn pause(&mut self, worker: &Worker) -> bool {
        self.pause_for(worker, self.share)
    }

    /// As [`Self::pause`], for another number of bytes.
    pub(crate) fn pause_for(&mut self, worker: &Worker, bytes: usize) -> bool {
        let Some(rate) = self.rate else { return false };
        let rest = (bytes as u64).saturating_mul(1_000_000_000) / rate;
        self.resume = worker.control.mono() + rest;
        self.wake = worker.control.instant(self.resume.min(self.leave));
        true
    }

    pub(crate) fn is_time_to_leave(&self, worker: &Worker) -> bool {
        worker.control.mono() >= self.leave
    }

    /// Whether nothing came for too long; if not, sets `wake` to when that would be.
    pub(crate) fn is_idle(&mut self, worker: &Worker, stream: &Stream) -> bool {
        let idle = worker.plan.args.idle_timeout.as_nanos() as u64;
        let due = stream.last_read().saturating_add(idle);
        self.wake = worker.control.instant(due.min(self.leave));
        worker.control.mono() >= due
    }
}
