//! What the simulator saw: counters with a wake-up, and the last requests.
//!
//! Owns the numbers tests wait for. Refuses to poll: [`Ledger::wait_for`] sleeps until a change.
//! Invariant: `requests == live + completed + cancelled + aborted` in every snapshot since the
//! last reset, because one lock covers them and a [`Live`] guard ends each request exactly once.
//! Cost: one short lock at either end of a request; nothing per event.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;

/// Requests kept for [`Sim::requests`](super::Sim::requests).
const SEEN_MAX: usize = 64;
/// `sim-stream` ids remembered for `sim-fault-times`.
const ATTEMPTS_MAX: usize = 1024;

/// A snapshot of what has happened since the start or the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now; a reset leaves it alone.
    pub connections_live: u64,
    /// Requests whose head was read, those to `/sim/…` apart.
    pub requests: u64,
    /// Requests between their head and the end of their answer; a reset leaves it alone.
    pub live: u64,
    /// Requests whose client went away before we had ended the answer.
    pub cancelled: u64,
    /// Requests answered to their (HTTP) end.
    pub completed: u64,
    /// Requests ended uncleanly by a fault of ours.
    pub aborted: u64,
    /// Requests refused because their HTTP/1.1 framing was wrong; they are not in `requests`
    /// when even the head was.
    pub malformed: u64,
}

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Method, as sent.
    pub method: String,
    /// Request target, as sent (origin form), or `:path` on HTTP/2.
    pub path_and_query: String,
    /// Field lines in order, names in lower case; on HTTP/2 `:authority` and `:scheme` too.
    /// Bytes that are not UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub version: &'static str,
    /// Number of the connection, counted from 1: equal numbers mean it was used again.
    pub connection: u64,
    /// Bytes of body that arrived.
    pub body_length: u64,
    /// The first 4 KiB of the body.
    pub body_prefix: Vec<u8>,
    /// FNV-1a (64 bits) of the body.
    pub body_fnv1a64: u64,
    /// Whether the body arrived up to its end.
    pub body_complete: bool,
}

impl Seen {
    /// The first value of the field `name` (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered to the end.
    Completed,
    /// Cut by one of our faults.
    Aborted,
    /// The client broke its own framing.
    Malformed,
}

#[derive(Default)]
struct State {
    counts: Counts,
    seen: VecDeque<Seen>,
    attempts: VecDeque<(u64, u32)>,
    stream_next: u64,
    connection_next: u64,
}

/// The counters of one simulator.
#[derive(Default)]
pub(super) struct Ledger {
    state: Mutex<State>,
    changed: Notify,
}

impl Ledger {
    /// A poisoned lock only means that a test panicked while it looked; the numbers are whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let value = f(&mut self.lock());
        self.changed.notify_waiters();
        value
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Zeroes what counts up; what is open stays counted as open.
    pub(super) fn reset(&self) {
        self.change(|state| {
            let Counts { connections_live, live, .. } = state.counts;
            // Live requests still end later, so they open the new balance.
            state.counts = Counts { connections_live, live, requests: live, ..Counts::default() };
            state.seen.clear();
            state.attempts.clear();
        });
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.lock().seen.iter().cloned().collect()
    }

    pub(super) fn record(&self, seen: Seen) {
        self.change(|state| {
            if state.seen.len() == SEEN_MAX {
                state.seen.pop_front();
            }
            state.seen.push_back(seen);
        });
    }

    pub(super) fn malformed(&self) {
        self.change(|state| state.counts.malformed += 1);
    }

    /// Waits until `what` holds, or gives the last counts at the deadline.
    pub(super) async fn wait_for(
        &self,
        what: impl Fn(&Counts) -> bool,
        deadline: Duration,
    ) -> Result<(), Counts> {
        let wait = async {
            loop {
                // Enabled before the look, so that no change between look and wait is lost.
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if what(&self.counts()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(deadline, wait).await.map_err(|_| self.counts())
    }

    /// A fresh id for a stream without `sim-stream`, counted from 1.
    pub(super) fn next_stream(&self) -> u64 {
        let mut state = self.lock();
        state.stream_next += 1;
        state.stream_next
    }

    /// How many requests with this `sim-stream` have come, among those that are remembered.
    pub(super) fn attempts(&self, stream: u64) -> u32 {
        let state = self.lock();
        state.attempts.iter().find(|(id, _)| *id == stream).map_or(0, |(_, times)| *times)
    }

    /// How many requests with this `sim-stream` came before this one.
    pub(super) fn attempts_before(&self, stream: u64) -> u32 {
        let mut state = self.lock();
        if let Some((_, times)) = state.attempts.iter_mut().find(|(id, _)| *id == stream) {
            *times = times.saturating_add(1);
            return *times - 1;
        }
        if state.attempts.len() == ATTEMPTS_MAX {
            state.attempts.pop_front();
        }
        state.attempts.push_back((stream, 1));
        0
    }
}

/// An open connection; dropping it counts it out.
pub(super) struct Connected {
    ledger: Arc<Ledger>,
    /// Number of the connection, counted from 1.
    pub(super) number: u64,
}

impl Connected {
    pub(super) fn new(ledger: &Arc<Ledger>) -> Self {
        let number = ledger.change(|state| {
            state.counts.connections += 1;
            state.counts.connections_live += 1;
            state.connection_next += 1;
            state.connection_next
        });
        Self { ledger: Arc::clone(ledger), number }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.ledger.change(|state| state.counts.connections_live -= 1);
    }
}

/// A live request; dropped without an outcome it counts as cancelled by its client.
pub(super) struct Live {
    ledger: Option<Arc<Ledger>>,
}

impl Live {
    pub(super) fn new(ledger: &Arc<Ledger>) -> Self {
        ledger.change(|state| {
            state.counts.requests += 1;
            state.counts.live += 1;
        });
        Self { ledger: Some(Arc::clone(ledger)) }
    }

    /// For requests to the simulator itself, which are not counted.
    pub(super) fn uncounted() -> Self {
        Self { ledger: None }
    }

    pub(super) fn end(mut self, outcome: Outcome) {
        self.close(Some(outcome));
    }

    fn close(&mut self, outcome: Option<Outcome>) {
        let Some(ledger) = self.ledger.take() else { return };
        ledger.change(|state| {
            let counts = &mut state.counts;
            counts.live -= 1;
            match outcome {
                Some(Outcome::Completed) => counts.completed += 1,
                Some(Outcome::Aborted) => counts.aborted += 1,
                Some(Outcome::Malformed) => {
                    counts.malformed += 1;
                    counts.cancelled += 1;
                }
                None => counts.cancelled += 1,
            }
        });
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.close(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_ends_once_and_the_balance_holds() {
        let ledger = Arc::new(Ledger::default());
        let dropped = Live::new(&ledger);
        Live::new(&ledger).end(Outcome::Completed);
        Live::new(&ledger).end(Outcome::Aborted);
        Live::uncounted().end(Outcome::Completed);
        assert_eq!(ledger.counts().live, 1);
        drop(dropped);
        let Counts { requests, live, completed, aborted, cancelled, .. } = ledger.counts();
        assert_eq!((requests, live, completed, aborted, cancelled), (3, 0, 1, 1, 1));
    }

    #[test]
    fn a_reset_keeps_what_is_open() {
        let ledger = Arc::new(Ledger::default());
        let (connected, live) = (Connected::new(&ledger), Live::new(&ledger));
        Live::new(&ledger).end(Outcome::Completed);
        ledger.reset();
        let open = Counts { connections_live: 1, live: 1, requests: 1, ..Counts::default() };
        assert_eq!(ledger.counts(), open);
        live.end(Outcome::Completed);
        drop(connected);
        let ended = Counts { requests: 1, completed: 1, ..Counts::default() };
        assert_eq!(ledger.counts(), ended);
    }

    #[test]
    fn attempts_are_counted_per_stream_and_bounded() {
        let ledger = Ledger::default();
        assert_eq!((ledger.attempts_before(7), ledger.attempts_before(7)), (0, 1));
        assert_eq!((ledger.attempts(7), ledger.attempts(8)), (2, 0));
        for id in 100..100 + ATTEMPTS_MAX as u64 {
            assert_eq!(ledger.attempts_before(id), 0);
        }
        assert_eq!(ledger.attempts_before(7), 0, "the oldest id was forgotten");
    }

    #[tokio::test]
    async fn wait_for_wakes_on_the_change_and_reports_the_counts_at_the_deadline() {
        let ledger = Arc::new(Ledger::default());
        let waiting = Arc::clone(&ledger);
        let waiter = tokio::spawn(async move {
            waiting.wait_for(|counts| counts.live == 1, Duration::from_secs(10)).await
        });
        tokio::task::yield_now().await;
        let _live = Live::new(&ledger);
        assert_eq!(waiter.await.unwrap(), Ok(()));
        let late = ledger.wait_for(|counts| counts.live == 2, Duration::from_millis(1)).await;
        assert_eq!(late.unwrap_err().live, 1);
    }
}
