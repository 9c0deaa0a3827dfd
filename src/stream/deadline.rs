//! When something has to happen to a stream if nothing comes: the next limit, the next heartbeat.
//!
//! Cost: three ticks per stream and a few additions per chunk (`make bench`, "heartbeats, wheel and
//! metrics").

use crate::config::HeartbeatStyle;
use crate::error::Kind;
use crate::limits;
use crate::stream::ground::Rules;
use crate::wire::sse::Tracker;
use crate::wire::wheel::Tick;

/// When a stream began and last moved.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    started: Tick,
    last_in: Tick,
    last_out: Tick,
}

impl Deadlines {
    /// Of a stream that was admitted at `started` and is answered `now`.
    pub fn new(started: Tick, now: Tick) -> Deadlines {
        Deadlines { started, last_in: now, last_out: now }
    }

    /// The upstream sent something.
    pub fn came(&mut self, now: Tick) {
        self.last_in = now;
    }

    /// The client was given something.
    pub fn went(&mut self, now: Tick) {
        self.last_out = now;
    }

    /// The next limit that will be reached if nothing comes, and which. `tracker` is there for a
    /// stream of events; `asked` tells from when on its first event is waited for.
    pub fn limit(
        &self,
        rules: &Rules,
        tracker: Option<&Tracker>,
        asked: impl FnOnce() -> Tick,
    ) -> (Tick, Kind) {
        let total = self.started.after(rules.total);
        let (quiet, kind) = match tracker {
            Some(tracker) if tracker.completed() => {
                (self.last_in.after(limits::AFTER_TERMINAL), Kind::Idle)
            }
            Some(tracker) if tracker.events() == 0 => {
                (asked().after(rules.first_byte), Kind::FirstByte)
            }
            _ => (self.last_in.after(rules.idle), Kind::Idle),
        };
        if total < quiet { (total, Kind::Total) } else { (quiet, kind) }
    }

    /// When a heartbeat would be due; `None` inside an event and after the terminal mark.
    pub fn heartbeat(&self, rules: &Rules, tracker: &Tracker) -> Option<Tick> {
        let quiet = rules.heartbeat?;
        let may =
            rules.style != HeartbeatStyle::Off && tracker.at_boundary() && !tracker.completed();
        may.then(|| self.last_out.after(quiet))
    }
}
