//! What the threads of one process share: the phase of the run, the clocks, and live counts.
//!
//! Owns nothing but atomics. Refuses locks: workers look at it with every read. Invariant: phases
//! only go forward, and the window's ends are set before the phase that needs them.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::stream::Moment;

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub(crate) enum Phase {
    /// Streams are opened; only what belongs to opening is measured.
    Ramp,
    /// Everything is measured.
    Window,
    /// Nothing is measured any more; streams stay.
    Closed,
    /// Streams are dropped.
    Stop,
}

/// The phase and the clocks of one process.
#[derive(Debug)]
pub(crate) struct Control {
    base: Instant,
    phase: AtomicU8,
    from: AtomicU64,
    to: AtomicU64,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            phase: AtomicU8::new(Phase::Ramp as u8),
            from: AtomicU64::new(u64::MAX),
            to: AtomicU64::new(u64::MAX),
        }
    }

    /// Nanoseconds since this process began.
    pub(crate) fn mono(&self) -> u64 {
        nanos(self.base.elapsed())
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment { mono: self.mono(), real: real_ns() }
    }

    /// When something at `mono` is, for timers.
    pub(crate) fn instant(&self, mono: u64) -> Instant {
        self.base + std::time::Duration::from_nanos(mono)
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Ramp,
            1 => Phase::Window,
            2 => Phase::Closed,
            _ => Phase::Stop,
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        match phase {
            Phase::Ramp => {}
            Phase::Window => self.from.store(self.mono(), Ordering::Release),
            Phase::Closed | Phase::Stop => {
                self.to.fetch_min(self.mono(), Ordering::AcqRel);
            }
        }
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Begin and end of the window; the end may lie ahead. None if it has not begun.
    pub(crate) fn window(&self) -> Option<(u64, u64)> {
        let from = self.from.load(Ordering::Acquire);
        (from != u64::MAX).then(|| (from, self.to.load(Ordering::Acquire)))
    }
}

/// CLOCK_REALTIME in nanoseconds; 0 for a clock before 1970.
pub(crate) fn real_ns() -> u64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn nanos(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Live counts, for the progress line and for the decision when the window begins.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    opened: AtomicU64,
    live: AtomicU64,
    chunks: AtomicU64,
    faults: AtomicU64,
    settled: AtomicU64,
    finished: AtomicU64,
}

/// The counts at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) opened: u64,
    pub(crate) live: u64,
    pub(crate) chunks: u64,
    pub(crate) faults: u64,
    /// Places whose first stream has had its first event, or its failure.
    pub(crate) settled: u64,
    /// Places with nothing left to do.
    pub(crate) finished: u64,
}

impl Gauges {
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self, faults: u64) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.faults.fetch_add(faults, Ordering::Relaxed);
    }

    pub(crate) fn chunks(&self, count: u32) {
        self.chunks.fetch_add(count.into(), Ordering::Relaxed);
    }

    pub(crate) fn settled(&self) {
        self.settled.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn finished(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn progress(&self) -> Progress {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Progress {
            opened: get(&self.opened),
            live: get(&self.live),
            chunks: get(&self.chunks),
            faults: get(&self.faults),
            settled: get(&self.settled),
            finished: get(&self.finished),
        }
    }
}

impl Progress {
    pub(crate) fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.live += other.live;
        self.chunks += other.chunks;
        self.faults += other.faults;
        self.settled += other.settled;
        self.finished += other.finished;
    }
}
