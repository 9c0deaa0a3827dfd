//! An answer whose client has left, read on to learn its usage, where the route wants that.
//!
//! Its upstream goes on working, and is paid for that, so this is not the rule: a dropped stream cancels.
//! What is read goes nowhere. Invariants: it ends within `usage_drain`, and within every limit that the stream
//! had before; with the process's drain; and keeps its request's places and slot until then, since the upstream's
//! are taken. At most [`USAGE_DRAINS`](crate::limits::USAGE_DRAINS) are there at once. Cost: the stream's state
//! and a task.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::admission::permit::Permit;
use crate::stream::core::{Phase, Stream};
use crate::stream::queue::Queue;
use crate::stream::source::Source;
use crate::stream::usage::Usage;
use crate::telemetry::cells::DrainResult;
use crate::wire::sse::Tracker;
use crate::wire::wheel::Tick;

/// Reads before others get their turn.
const TURNS: usize = 16;

/// See the module.
pub(in crate::stream) struct Drain {
    stream: Stream,
    until: Tick,
    _place: Permit,
}

impl Stream {
    /// Nobody will ask for more. If that is because the client has left before the usage was known, the
    /// answer may be read on in a task of its own, as [`Rules::usage_drain`](crate::stream::ground::Rules)
    /// says; else it is cancelled.
    pub fn leave(self) {
        if let Some(drain) = self.drain() {
            tokio::task::spawn_local(drain);
        }
    }

    /// What reads it on, if that is to be done.
    pub(in crate::stream) fn drain(mut self) -> Option<Drain> {
        let time = self.life.rules().usage_drain?;
        let ground = self.life.ground().clone();
        let stopping = ground.draining.get() || ground.cutting.get();
        if stopping || std::thread::panicking() || !matches!(self.phase, Phase::Flow) {
            return None;
        }
        // Nothing is queued, sent or tried again for who has left.
        if matches!(self.source, Source::Awaiting(_)) || !self.life.leaves() {
            return None;
        }
        let Some(place) = ground.drains.take() else {
            ground.cells.drained(DrainResult::NoRoom).inc();
            return None;
        };
        ground.cells.usage_drains.add(1);
        self.ahead = Queue::default();
        let until = ground.wheel.now().after(time);
        Some(Drain { stream: self, until, _place: place })
    }

    /// Reads on; whether there may be more.
    fn poll_read_on(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let ground = self.life.ground().clone();
        ground.scratch.lend(|scratch| {
            let data = match std::task::ready!(self.source.poll_data(cx, scratch)) {
                Some(Ok(data)) => data,
                Some(Err(_)) => return Poll::Ready(false),
                None => return Poll::Ready(self.read_whole()),
            };
            let bytes = data.bytes(scratch);
            self.deadlines.came(ground.wheel.now());
            self.life.drained(bytes, ground.clock.now());
            let fed = self.tracker.as_mut().map(|tracker| tracker.feed(bytes)).unwrap_or_default();
            if self.source.over() {
                return Poll::Ready(self.read_whole());
            }
            if self.completed() {
                // It goes on to its end, so that its connection can be used again.
                self.usage_complete();
            }
            Poll::Ready(!fed.too_long)
        })
    }

    /// The source has ended cleanly: there is no more.
    fn read_whole(&mut self) -> bool {
        self.source.settle();
        if self.tracker.as_ref().is_none_or(Tracker::complete_at_eof) {
            self.usage_complete();
        }
        false
    }

    fn usage_complete(&mut self) {
        self.life.usage().into_iter().for_each(Usage::completed);
    }
}

impl Future for Drain {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let drain = self.get_mut();
        let ground = drain.stream.life.ground().clone();
        let stream = &mut drain.stream;
        for _ in 0..TURNS {
            let due = stream.deadline().0.min(drain.until);
            let stopping = ground.draining.get() || ground.cutting.get();
            if stopping || ground.wheel.now() >= due {
                return Poll::Ready(());
            }
            match stream.poll_read_on(cx) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(()),
                Poll::Pending => {
                    stream.timer.set(due, cx.waker());
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let learned = self.stream.life.usage().is_some_and(|usage| usage.is_learned());
        let result = if learned { DrainResult::Learned } else { DrainResult::NotLearned };
        let cells = &self.stream.life.ground().cells;
        cells.usage_drains.sub(1);
        cells.drained(result).inc();
    }
}
