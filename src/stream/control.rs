//! How a response ends uncleanly without losing what was written before the end.
//!
//! hyper drops unflushed bytes when a body fails, and h2 when a stream is reset. So a sink here never
//! fails: it goes quiet and asks its [`Control`] for the cut. The owner of the connection (HTTP/1.1)
//! or of the stream's task (HTTP/2) asks [`Control::poll_cut`] after each step and ends its part when
//! told: after the flush and `limits::CUT_LINGER`, or at once when the client has made no progress
//! for `client_stall`. The control also knows how far a client lags behind.
//!
//! Invariant: a cut that was asked for happens within `client_stall` and the linger.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::clock::{Clock, Moment};
use crate::limits;
use crate::stream::ground::Ground;
use crate::telemetry::cells::Reason;
use crate::wire::wheel::{Tick, Timer};

#[cfg(test)]
mod tests;

/// What a client connection's socket is doing; kept by the IO wrapper, read by controls.
#[derive(Default)]
pub struct IoState {
    flushes: Cell<u32>,
    blocked_since: Cell<Option<Tick>>,
    /// When the oldest piece not yet written came from upstream.
    read_at: Cell<Option<Moment>>,
    /// Frames handed to the connection since its last step.
    queued: Cell<u32>,
    /// A pointer while nobody waits: HTTP/1.1 connections have no such line.
    line: RefCell<Option<Box<Line>>>,
}

/// Streams that wait until their connection takes frames again.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Waker>,
    /// How many have been called up so far.
    served: u64,
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
        self.flushes.set(self.flushes.get().wrapping_add(1));
        // TLS takes bytes at once and may have waited with them until now.
        self.blocked_since.set(None);
    }

    /// A frame was handed to the connection (HTTP/2).
    pub fn queued(&self) {
        self.queued.set(self.queued.get() + 1);
    }

    /// Whether the connection has as many frames to write as it should in one step: it keeps the
    /// room for the most that it ever had.
    pub fn busy(&self) -> bool {
        self.queued.get() >= limits::CLIENT_FRAMES_QUEUED
    }

    /// Has `waker` called when the connection can take frames again. `place` is the caller's place
    /// in the line, 0 at first.
    pub fn park(&self, place: &mut u64, waker: &Waker) {
        let mut line = self.line.borrow_mut();
        let line = line.get_or_insert_default();
        if *place <= line.served {
            line.waiting.push_back(waker.clone());
            *place = line.served + line.waiting.len() as u64;
        }
    }

    /// To be called after each step of an HTTP/2 connection: if its socket took everything, calls up
    /// those who are parked, as many as may go on at once. Whether there are more.
    pub fn unpark(&self) -> bool {
        if self.blocked_since.get().is_some() {
            return false;
        }
        self.queued.set(0);
        let mut kept = self.line.borrow_mut();
        let Some(line) = kept.as_mut().filter(|line| !line.waiting.is_empty()) else {
            return false;
        };
        let called = line.waiting.len().min(limits::CLIENT_FRAMES_QUEUED as usize);
        line.served += called as u64;
        let rest = line.waiting.split_off(called);
        let called = std::mem::replace(&mut line.waiting, rest);
        let more = !line.waiting.is_empty();
        drop(kept);
        called.into_iter().for_each(Waker::wake);
        more
    }

    /// Whether no frame waits for the connection's next step, and so no flush is to be expected: a
    /// step ends with everything written, or with a socket that takes nothing.
    fn rests(&self) -> bool {
        self.queued.get() == 0 && self.blocked_since.get().is_none()
    }

    /// How often everything was handed to the socket; it wraps.
    pub fn flushes(&self) -> u32 {
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
    /// Asked at this tick, when the socket had flushed so often; waiting for it to do so again.
    Flushing(Tick, u32),
    /// Flushed; waiting for this tick.
    Lingering(Tick),
    /// Its memory is needed: at once.
    Shed,
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
    ground: Rc<Ground>,
    /// Made when first needed: most streams never lag.
    timer: OnceCell<Timer>,
    /// [`Patience::client_stall`] in milliseconds.
    stall_ms: u32,
    /// [`Patience::backlog`].
    backlog: u32,
    phase: Cell<Phase>,
    /// When bytes for the client last moved, if some still wait.
    waiting_since: Cell<Option<Tick>>,
    /// Bytes that wait, or were given since the client was last seen to keep up.
    given: Cell<u32>,
    lagging: Cell<bool>,
    /// Bytes of memory that this takes beyond `given`.
    extra: Cell<u32>,
    /// What of `given` the backlog gauge holds.
    counted: Cell<u32>,
    /// What is charged to the memory budget.
    charged: Cell<u32>,
    ended: Cell<Option<Reason>>,
    ends_by_close: Cell<bool>,
    /// The request's attempts so far; 0 before the first.
    attempts: Cell<u8>,
    /// Which of its route's upstreams the request is with.
    target: Cell<u8>,
}

impl Control {
    /// For one response on the connection of `io`.
    pub fn new(io: Rc<IoState>, ground: &Rc<Ground>, patience: Patience) -> Rc<Control> {
        Rc::new(Control {
            io,
            ground: ground.clone(),
            timer: OnceCell::new(),
            stall_ms: u32::try_from(patience.client_stall.as_millis()).unwrap_or(u32::MAX),
            backlog: patience.backlog,
            phase: Cell::new(Phase::Open),
            waiting_since: Cell::new(None),
            given: Cell::new(0),
            lagging: Cell::new(false),
            extra: Cell::new(0),
            counted: Cell::new(0),
            charged: Cell::new(0),
            ended: Cell::new(None),
            ends_by_close: Cell::new(false),
            attempts: Cell::new(0),
            target: Cell::new(0),
        })
    }

    /// The request is sent for the `n`th time.
    pub fn attempt(&self, n: u32) {
        self.attempts.set(u8::try_from(n).unwrap_or(u8::MAX));
    }

    /// Whether the upstream may have seen the request.
    pub fn was_sent(&self) -> bool {
        self.attempts.get() > 0
    }

    /// Its client has left: nothing waits for it any more.
    pub fn left(&self) {
        self.account(false);
        self.timer.get().into_iter().for_each(Timer::clear);
    }

    /// How often the request was sent, 1 if it never was.
    pub fn attempts(&self) -> u32 {
        self.attempts.get().max(1).into()
    }

    /// Which of its route's upstreams the request is with.
    pub fn target(&self) -> usize {
        self.target.get().into()
    }

    /// The request goes to the `target`th of its route's upstreams, of which there are few.
    pub fn leads_to(&self, target: usize) {
        self.target.set(u8::try_from(target).unwrap_or(u8::MAX));
    }

    /// The worker's time.
    #[cfg(test)]
    pub(crate) fn now(&self) -> Tick {
        self.ground.wheel.now()
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
        // What went on meanwhile is not known; more than this never waits.
        let most = self.backlog.saturating_add(limits::PIECE as u32);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.given.set(self.given.get().saturating_add(bytes).min(most));
        self.waiting_since.set(Some(self.ground.wheel.now()));
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
            self.waiting_since.set(Some(self.ground.wheel.now()));
        }
    }

    /// What waits for the client takes `bytes` more of memory than its own length: the spare room of
    /// its buffer, what the upstream's connection has read and nobody asks for.
    pub fn takes(&self, bytes: usize) {
        self.extra.set(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Whether the source is not to be asked while `bytes` bytes wait for the client: there are as
    /// many as may be, or some, and the process is out of memory for more.
    pub fn enough(&self, bytes: usize) -> bool {
        bytes > 0 && (bytes >= self.backlog as usize || self.ground.memory.excess() > 0)
    }

    /// How much may be read at once while `bytes` bytes wait for the client, so that they become no more
    /// than may wait; a little at least, since reads cost what they cost.
    pub fn room(&self, bytes: usize) -> usize {
        if bytes == 0 {
            return usize::MAX;
        }
        (self.backlog as usize).saturating_sub(bytes).max(limits::READ_LEAST)
    }

    /// Asks for the unclean end.
    pub fn cut(&self) {
        if let Phase::Open = self.phase.get() {
            self.phase.set(Phase::Flushing(self.ground.wheel.now(), self.io.flushes.get()));
        }
    }

    /// Asks for the unclean end of an HTTP/2 stream of which h2 has taken every byte. They may be
    /// with the client since long.
    pub fn cut_stream(&self) {
        if let (Phase::Open, true) = (self.phase.get(), self.io.rests()) {
            self.linger(self.ground.wheel.now());
        }
        self.cut();
    }

    fn linger(&self, now: Tick) {
        self.phase.set(Phase::Lingering(now.after(limits::CUT_LINGER + limits::TICK)));
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
        self.io.blocked_since().is_some() && self.enough(self.given.get() as usize)
    }

    /// Bytes of memory charged for it.
    pub fn charged(&self) -> u32 {
        self.charged.get()
    }

    /// Ends the response at once, since the process is out of memory. The charge is given back here;
    /// what it stands for goes when the owner has its turn, which comes before the worker rests.
    pub fn shed(&self) {
        self.end(Reason::Limit);
        self.phase.set(Phase::Shed);
        self.account(false);
        // Whoever lags has a deadline.
        self.timer.get().into_iter().for_each(Timer::expire);
    }

    fn stall(&self) -> Duration {
        Duration::from_millis(self.stall_ms.into())
    }

    fn lag_since(&self) -> Option<Tick> {
        match (self.waiting_since.get(), self.io.blocked_since()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// To be asked after each step: is it time to drop the response, and how?
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        if let Phase::Shed = self.phase.get() {
            return Poll::Ready(Cut::Reset);
        }
        let now = self.ground.wheel.now();
        let lag = self.lag_since();
        self.account(lag.is_some());
        let mut due = None;
        if let Some(since) = lag {
            let stalled = since.after(self.stall());
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
                Phase::Open | Phase::Shed => break,
                Phase::Flushing(since, flushes) => {
                    if lag.is_none() && self.io.flushes.get() != flushes {
                        self.linger(now);
                        continue;
                    }
                    let latest = since.after(self.stall());
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
            Some(due) => self.timer.get_or_init(|| self.ground.wheel.timer()).set(due, cx.waker()),
            None => self.timer.get().into_iter().for_each(Timer::clear),
        }
        Poll::Pending
    }

    fn account(&self, lagging: bool) {
        if !lagging {
            self.given.set(0);
            self.extra.set(0);
        }
        let cells = &self.ground.cells;
        let backlog = self.given.get();
        let counted = self.counted.replace(backlog);
        if backlog != counted {
            cells.backlog_bytes.add(i64::from(backlog) - i64::from(counted));
        }
        let charge = backlog.saturating_add(self.extra.get());
        let charged = self.charged.replace(charge);
        if charge != charged {
            self.ground.memory.changed(charged, charge);
        }
        if self.lagging.replace(lagging) != lagging {
            cells.stalled_streams.add(if lagging { 1 } else { -1 });
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.account(false);
    }
}
