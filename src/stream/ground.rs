//! What all streams of a worker, or of a route, share.
//!
//! Invariant: [`Scratch`] is lent to one reader at a time; a panic while it is lent costs the buffer,
//! not the worker.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::budget::Budget;
use crate::admission::permit::Permits;
use crate::clock::Clock;
use crate::config::HeartbeatStyle;
use crate::error::{Failure, Kind};
use crate::limits;
use crate::stream::life::Live;
use crate::telemetry::cells::Cells;
use crate::wire::wheel::Wheel;

/// The limits and habits of a route's streams.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Quiet time towards the client before a heartbeat; `None`: none.
    pub heartbeat: Option<Duration>,
    /// How a heartbeat is written.
    pub style: HeartbeatStyle,
    /// From the request's last byte to the first event.
    pub first_byte: Duration,
    /// Longest quiet of the upstream after that.
    pub idle: Duration,
    /// Longest life.
    pub total: Duration,
    /// Largest event, bytes.
    pub max_event: usize,
    /// How long an answer is read on after its client has left, to learn its usage; `None`: not at all.
    pub usage_drain: Option<Duration>,
}

impl Rules {
    /// The failure of a stream that has reached a limit of time.
    pub fn timed_out(&self, kind: Kind) -> Failure {
        let text = match kind {
            Kind::FirstByte => {
                format!("no event within stream.first_byte = {:?}", self.first_byte)
            }
            Kind::Idle => format!("no byte for stream.idle = {:?}", self.idle),
            _ => format!("the stream reached stream.total = {:?}", self.total),
        };
        Failure::new(kind, text)
    }

    /// The failure of a stream with an event beyond its limit.
    pub fn event_too_long(&self) -> Failure {
        let max = self.max_event;
        let text =
            format!("an event of the upstream is larger than stream.max_event = {max} bytes");
        Failure::new(Kind::EventTooLong, text)
    }
}

/// What a stream needs of its worker.
pub struct Ground {
    /// The worker's clock.
    pub clock: Clock,
    /// The worker's wheel.
    pub wheel: Wheel,
    /// The worker's metrics.
    pub cells: Arc<Cells>,
    /// The process's memory for what clients that lag let wait.
    pub memory: Arc<Budget>,
    /// The streams that live on this worker.
    pub live: Live,
    /// Places for answers that are read on after their clients have left, shared by all workers.
    pub drains: Arc<Permits>,
    /// Set from the moment the process drains.
    pub draining: Cell<bool>,
    /// Set when the drain deadline has passed.
    pub cutting: Rc<Cell<bool>>,
    /// Where sockets are read into.
    pub scratch: Scratch,
}

/// A worker's one read buffer of [`limits::SCRATCH`] bytes: streams own bytes only while their
/// clients lag.
#[derive(Default)]
pub struct Scratch(Cell<Option<Box<[u8]>>>);

impl Scratch {
    /// Calls `with` the buffer, which holds anything.
    pub fn lend<T>(&self, with: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = self.0.take().unwrap_or_else(|| vec![0; limits::SCRATCH].into());
        let done = with(&mut buffer);
        self.0.set(Some(buffer));
        done
    }
}
