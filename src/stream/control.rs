//! How a response ends uncleanly without losing what was written before the end.
//!
//! hyper drops unflushed bytes when a body fails, and h2 when a stream is reset. So a sink here never
//! fails: it goes quiet and asks its [`Control`] for the cut. The owner of the connection (HTTP/1.1)
//! or of the stream's task (HTTP/2) asks [`Control::poll_cut`] after each step and ends its part when
//! told: after the flush and `limits::CUT_LINGER`, or at once when the client has made no progress
//! for `client_stall`. The control also knows how far a client lags behind.
//!
//! Invariant: a cut that was asked for happens within `client_stall` and the linger.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::clock::{Clock, Moment};
use crate::limits;
use crate::telemetry::cells::{Cells, Reason};
use crate::wire::wheel::{Tick, Timer, Wheel};

#[cfg(test)]
mod tests;

/// What a client connection's socket is doing; kept by the IO wrapper, read by controls.
#[derive(Default)]
pub struct IoState {
    flushes: Cell<u64>,
    blocked_since: Cell<Option<Tick>>,
    /// When the oldest piece not yet written came from upstream.
    read_at: Cell<Option<Moment>>,
    /// Streams that wait until the socket takes bytes again.
    #[allow(clippy::box_collection, reason = "a pointer while nobody is parked: HTTP/1.1, always")]
    parked: Cell<Option<Box<Vec<Waker>>>>,
    /// How often the parked ones were woken.
    rounds: Cell<u32>,
}

impl IoState {
    /// The socket took bytes; returns how long the oldest waited since it was read.
    pub fn wrote(&self, clock: &Clock) -> Option<Duration> {
        self.blocked_since.set(None);
        self.read_at.take().map(|read| clock.now().since(read))
    }

    /// The socket took nothing at `now`.
    pub fn blocked(&self, now: Tick) {
        if self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(now));
        }
    }

    /// Everything there was has gone out through the socket.
    pub fn flushed(&self) {
        self.flushes.set(self.flushes.get() + 1);
        // TLS takes bytes at once and may have waited with them until now.
        self.blocked_since.set(None);
    }

    /// Has `waker` called when the socket takes bytes again. `parked` is the caller's note of it,
    /// `None` at first.
    pub fn park(&self, parked: &mut Option<u32>, waker: &Waker) {
        if parked.replace(self.rounds.get()) != Some(self.rounds.get()) {
            let mut all = self.parked.take().unwrap_or_default();
            all.push(waker.clone());
            self.parked.set(Some(all));
        }
    }

    /// Wakes whoever is parked, if the socket takes bytes: to be called after each step of the
    /// connection.
    pub fn unpark(&self) {
        if self.blocked_since.get().is_some() {
            return;
        }
        if let Some(parked) = self.parked.take() {
            self.rounds.set(self.rounds.get().wrapping_add(1));
            parked.into_iter().for_each(Waker::wake);
        }
    }

    /// How often everything was handed to the socket.
    pub fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    /// Since when the socket takes nothing.
    pub fn blocked_since(&self) -> Option<Tick> {
        self.blocked_since.get()
    }

    /// A piece came from upstream at `now` and waits to be written.
    pub fn read(&self, now: Moment) {
        if self.read_at.get().is_none() {
            self.read_at.set(Some(now));
        }
    }
}

/// How far the wish for a cut has come.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nobody asked.
    Open,
    /// Asked at this tick; waiting for the socket to have flushed more than so often.
    Flushing(Tick, u64),
    /// Flushed; waiting for this tick.
    Lingering(Tick),
}

/// How to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// FIN after what was written.
    Close,
    /// RST: the client would not read, or could not tell a FIN from a clean end (HTTP/1.0).
    Reset,
}

/// What is borne from a client that lags.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Longest time without any progress.
    pub client_stall: Duration,
    /// Bytes held for it while its connection takes nothing; no more are asked of the source.
    pub backlog: u32,
}

/// One response's line from its body to the owner of its connection or stream.
pub struct Control {
    io: Rc<IoState>,
    cells: Arc<Cells>,
    wheel: Wheel,
    /// Made when first needed: most streams never lag.
    timer: OnceCell<Timer>,
    patience: Patience,
    phase: Cell<Phase>,
    /// When bytes for the client last moved, if some still wait.
    waiting_since: Cell<Option<Tick>>,
    /// Bytes that wait, or were given since the client was last seen to keep up.
    given: Cell<u32>,
    lagging: Cell<bool>,
    /// What of `given` the backlog gauge holds.
    counted: Cell<u32>,
    ended: Cell<Option<Reason>>,
    ends_by_close: Cell<bool>,
}

impl Control {
    /// For one response on the connection of `io`.
    pub fn new(
        io: Rc<IoState>,
        cells: Arc<Cells>,
        wheel: &Wheel,
        patience: Patience,
    ) -> Rc<Control> {
        Rc::new(Control {
            io,
            cells,
            wheel: wheel.clone(),
            timer: OnceCell::new(),
            patience,
            phase: Cell::new(Phase::Open),
            waiting_since: Cell::new(None),
            given: Cell::new(0),
            lagging: Cell::new(false),
            counted: Cell::new(0),
            ended: Cell::new(None),
            ends_by_close: Cell::new(false),
        })
    }

    /// The worker's time.
    #[cfg(test)]
    pub(crate) fn now(&self) -> Tick {
        self.wheel.now()
    }

    /// The connection it belongs to.
    pub fn io(&self) -> &Rc<IoState> {
        &self.io
    }

    /// The response goes to an HTTP/1.0 client, whose bodies end with the connection.
    pub fn ends_by_close(&self) {
        self.ends_by_close.set(true);
    }

    /// The body gave `bytes` bytes.
    pub fn gave(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.given.set(self.given.get().saturating_add(bytes));
        self.waiting_since.set(Some(self.wheel.now()));
    }

    /// The body was asked for more.
    pub fn asked(&self) {
        self.waiting_since.set(None);
    }

    /// `bytes` bytes wait for the client; some of what waited went on since the last call if
    /// `moved`. For a sink that holds the backlog itself; takes the place of
    /// [`gave`](Control::gave) and [`asked`](Control::asked).
    pub fn waits(&self, bytes: usize, moved: bool) {
        self.given.set(u32::try_from(bytes).unwrap_or(u32::MAX));
        if bytes == 0 {
            self.waiting_since.set(None);
        } else if moved || self.waiting_since.get().is_none() {
            self.waiting_since.set(Some(self.wheel.now()));
        }
    }

    /// Bytes that may wait for the client before no more are asked of the source.
    pub fn backlog_max(&self) -> usize {
        self.patience.backlog as usize
    }

    /// Asks for the unclean end.
    pub fn cut(&self) {
        if let Phase::Open = self.phase.get() {
            self.phase.set(Phase::Flushing(self.wheel.now(), self.io.flushes.get()));
        }
    }

    /// Why the owner ended it, if it did.
    pub fn ended(&self) -> Option<Reason> {
        self.ended.get()
    }

    /// Notes why the owner is about to end it.
    pub fn end(&self, reason: Reason) {
        self.ended.set(Some(reason));
    }

    /// Bytes waiting for the client, as far as known.
    pub fn backlog(&self) -> u32 {
        self.counted.get()
    }

    /// Whether the client does not keep up at present.
    pub fn lagging(&self) -> bool {
        self.lagging.get()
    }

    /// Whether as much as may be waits for the client: the source is not to be asked for more.
    /// Whoever drives the connection asks again when the socket has taken something.
    pub fn full(&self) -> bool {
        self.io.blocked_since().is_some() && self.given.get() >= self.patience.backlog
    }

    fn lag_since(&self) -> Option<Tick> {
        match (self.waiting_since.get(), self.io.blocked_since()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// To be asked after each step: is it time to drop the response, and how?
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        let now = self.wheel.now();
        let lag = self.lag_since();
        self.account(lag.is_some());
        let mut due = None;
        if let Some(since) = lag {
            let stalled = since.after(self.patience.client_stall);
            if now >= stalled {
                if self.ended.get().is_none() {
                    self.ended.set(Some(Reason::ClientStalled));
                }
                return Poll::Ready(Cut::Reset);
            }
            due = Some(stalled);
        }
        loop {
            match self.phase.get() {
                Phase::Open => break,
                Phase::Flushing(since, flushes) => {
                    if lag.is_none() && self.io.flushes.get() > flushes {
                        self.phase
                            .set(Phase::Lingering(now.after(limits::CUT_LINGER + limits::TICK)));
                        continue;
                    }
                    let latest = since.after(self.patience.client_stall);
                    if now >= latest {
                        return Poll::Ready(Cut::Reset);
                    }
                    // The flush may come in a step of somebody else's task (HTTP/2).
                    due = Some(now.after(limits::TICK).min(latest));
                    break;
                }
                Phase::Lingering(until) if now >= until => {
                    let reset = self.ends_by_close.get();
                    return Poll::Ready(if reset { Cut::Reset } else { Cut::Close });
                }
                Phase::Lingering(until) => {
                    due = Some(due.map_or(until, |due| due.min(until)));
                    break;
                }
            }
        }
        match due {
            Some(due) => self.timer.get_or_init(|| self.wheel.timer()).set(due, cx.waker()),
            None => self.timer.get().into_iter().for_each(Timer::clear),
        }
        Poll::Pending
    }

    fn account(&self, lagging: bool) {
        if !lagging {
            self.given.set(0);
        }
        let backlog = if lagging { self.given.get() } else { 0 };
        let counted = self.counted.replace(backlog);
        if backlog != counted {
            self.cells.backlog_bytes.add(i64::from(backlog) - i64::from(counted));
        }
        if self.lagging.replace(lagging) != lagging {
            self.cells.stalled_streams.add(if lagging { 1 } else { -1 });
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.account(false);
    }
}
