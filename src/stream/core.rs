//! The pull core: one [`Stream`] per response, one [`Stream::poll_fill`] from which its bytes come.
//!
//! It tracks event boundaries, writes heartbeats between events, keeps the limits, feeds the
//! meters and decides the end. It does not know who calls it: the sink brings an [`Out`].
//!
//! A response that is no event stream passes through the same core without a tracker: no
//! heartbeats and no error events, but the same limits, records and unclean ends.
//!
//! Invariant: after an end was decided, the source is gone (which cancels the upstream) and only
//! the error event, if any, still comes out. Cost per chunk: one look at the bytes, one clock
//! read, a few `Cell` stores; the wheel is touched by storing a deadline.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::config::Family;
use crate::error::{Failure, Kind};
use crate::limits::{self, SCRATCH_MARGIN as MARGIN};
use crate::stream::control::Control;
use crate::stream::deadline::Deadlines;
use crate::stream::life::Life;
use crate::stream::queue::Queue;
use crate::stream::shape;
use crate::stream::source::Source;
use crate::telemetry::cells::Reason;
use crate::upstream::download::Data;
use crate::wire::sse::{self, Fed, Tracker};
use crate::wire::wheel::{Tick, Timer};

mod drain;
#[cfg(test)]
pub(in crate::stream) mod tests;

/// Takes what [`Stream::poll_fill`] gives: bytes of the response, to be sent in order.
pub trait Out {
    /// Bytes that are valid during the call only.
    fn put(&mut self, bytes: &[u8]);

    /// The same for those at `range` of `buffer`, in which everything around them may be written over.
    fn put_within(&mut self, buffer: &mut [u8], range: Range<usize>) {
        self.put(&buffer[range]);
    }

    /// How many bytes it has room for; what comes in pieces of its own may be more.
    fn room(&self) -> usize {
        usize::MAX
    }

    /// Bytes that may be kept.
    fn put_owned(&mut self, bytes: Bytes) {
        self.put(&bytes);
    }
}

/// What one call of [`Stream::poll_fill`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// At least one byte was put out.
    Data,
    /// Nothing more will come.
    End(End),
}

/// How a response has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As complete.
    Clean,
    /// Visibly broken off, once everything put out has reached the client.
    Cut,
}

/// What is left to do.
enum Phase {
    /// Relaying.
    Flow,
    /// The end is decided; what is ahead still goes out.
    Last(End),
}

/// See the module.
pub struct Stream {
    family: Family,
    source: Source,
    tracker: Option<Tracker>,
    /// Tracked, not yet put out.
    ahead: Queue,
    phase: Phase,
    timer: Timer,
    life: Life,
    deadlines: Deadlines,
}

impl Stream {
    /// The stream of events of the request `life`, in `family`'s manner.
    pub fn events(family: Family, source: Source, life: Life) -> Stream {
        let tracker = Some(Tracker::new(family, life.rules().max_event));
        Stream::new(family, source, tracker, life)
    }

    /// Any other response.
    pub fn opaque(source: Source, mut life: Life) -> Stream {
        if source.over() {
            // The answer to a HEAD, a 204 or a 304: nobody will ask even once.
            life.end(Reason::Completed);
        }
        Stream::new(Family::Plain, source, None, life)
    }

    fn new(family: Family, source: Source, tracker: Option<Tracker>, life: Life) -> Stream {
        let now = Tick(life.ground().clock.now().ticks());
        let started = Tick(life.started().ticks());
        Stream {
            timer: life.ground().wheel.timer(),
            family,
            source,
            tracker,
            ahead: Queue::default(),
            phase: Phase::Flow,
            life,
            deadlines: Deadlines::new(started, now),
        }
    }

    /// The request's record.
    pub fn life(&mut self) -> &mut Life {
        &mut self.life
    }

    /// Its line to the owner of the client's connection.
    pub fn control(&self) -> &Rc<Control> {
        self.life.control()
    }

    /// Bytes that the upstream's connection may hold of it while nobody asks.
    pub fn unread(&self) -> usize {
        self.source.unread()
    }

    /// Whether it is a stream of events, and followed as one.
    pub fn is_events(&self) -> bool {
        self.tracker.is_some()
    }

    /// Before the head is committed: collects the first event, or `limits::COMMIT_BYTES`, or what
    /// there is at `commit_at`.
    ///
    /// # Errors
    /// A stream that fails, ends or turns out to be an error before its first event: the client
    /// can still get a real status.
    pub fn poll_prime(
        &mut self,
        cx: &mut Context<'_>,
        commit_at: Option<Tick>,
    ) -> Poll<Result<(), Failure>> {
        loop {
            let held: usize = self.ahead.iter().map(Bytes::len).sum();
            if self.events_seen() > 0 || held >= limits::COMMIT_BYTES {
                return Poll::Ready(self.first_event_check());
            }
            if self.life.ground().cutting.get() {
                return Poll::Ready(Err(draining()));
            }
            let ground = self.life.ground().clone();
            let polled = ground.scratch.lend(|scratch| {
                let data = self.source.poll_data(cx, scratch);
                data.map(|said| said.map(|data| data.map(|data| data.into_bytes(scratch))))
            });
            match polled {
                Poll::Ready(Some(Ok(bytes))) => {
                    let fed = self.track(&bytes);
                    self.keep(bytes, &fed);
                    if fed.too_long {
                        return Poll::Ready(Err(self.life.rules().event_too_long()));
                    }
                }
                Poll::Ready(Some(Err(failure))) => return Poll::Ready(Err(failure)),
                Poll::Ready(None) => {
                    self.source = Source::Ended;
                    let text = "the upstream ended the stream without a single event";
                    return Poll::Ready(Err(Failure::new(Kind::Empty, text)));
                }
                Poll::Pending => {
                    let now = self.life.ground().wheel.now();
                    if commit_at.is_some_and(|at| now >= at) {
                        return Poll::Ready(Ok(()));
                    }
                    let (due, kind) = self.deadline();
                    if now >= due {
                        return Poll::Ready(Err(self.life.rules().timed_out(kind)));
                    }
                    let due = commit_at.map_or(due, |at| at.min(due));
                    self.timer.set(due, cx.waker());
                    return Poll::Pending;
                }
            }
        }
    }

    fn first_event_check(&self) -> Result<(), Failure> {
        if !self.tracker.as_ref().is_some_and(Tracker::error_event) {
            return Ok(());
        }
        let held: Vec<u8> = self.ahead.iter().flatten().copied().collect();
        match shape::first_event_error(&held) {
            None => Ok(()),
            Some(error) => {
                let text = "the upstream's first event was an error";
                Err(Failure::new(Kind::ErrorFirst, text).with_upstream_error(error))
            }
        }
    }

    /// Whether everything has been put out and the end is clean, as far as is known without asking.
    pub fn over(&self) -> bool {
        self.ahead.is_empty() && matches!(self.phase, Phase::Last(End::Clean))
    }

    /// As [`poll_fill`](Stream::poll_fill); a panic in it ends this stream uncleanly, and only it.
    pub fn poll_fill_guarded(&mut self, cx: &mut Context<'_>, out: &mut impl Out) -> Poll<Fill> {
        let fill = catch_unwind(AssertUnwindSafe(|| self.poll_fill(cx, out)));
        fill.unwrap_or_else(|_| {
            self.abandon();
            Poll::Ready(Fill::End(End::Cut))
        })
    }

    /// Puts the next bytes into `out`, or tells how to end. After an end it only repeats itself.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut impl Out) -> Poll<Fill> {
        loop {
            if let Some(bytes) = self.ahead.pop() {
                return Poll::Ready(self.put(bytes, out));
            }
            if let Phase::Last(end) = self.phase {
                return Poll::Ready(Fill::End(end));
            }
            if self.life.ground().cutting.get() {
                self.fail(draining());
                continue;
            }
            let ground = self.life.ground().clone();
            let room = out.room();
            let pulled = ground.scratch.lend(|scratch| self.pull(cx, scratch, room, out));
            match pulled {
                Poll::Ready(true) => return Poll::Ready(Fill::Data),
                Poll::Ready(false) => {}
                Poll::Pending => {
                    if let Poll::Ready(fill) = self.poll_quiet(cx, out) {
                        return Poll::Ready(fill);
                    }
                    if matches!(self.phase, Phase::Flow) {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// One step of the source, of at most `room` bytes; whether something was put out.
    fn pull(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        room: usize,
        out: &mut impl Out,
    ) -> Poll<bool> {
        let room = room.min(scratch.len() - 2 * MARGIN);
        match std::task::ready!(self.source.poll_data(cx, &mut scratch[MARGIN..][..room])) {
            Some(Ok(data)) => {
                let put = self.pass(data, scratch, out);
                if matches!(self.phase, Phase::Flow) && self.source.over() {
                    // With a known length nobody asks again after its last byte.
                    self.end_of_source();
                }
                return Poll::Ready(put);
            }
            Some(Err(failure)) => self.fail(failure),
            None => self.end_of_source(),
        }
        Poll::Ready(false)
    }

    /// Passes on what came from upstream, tracked; whether something was put out. It lies within the
    /// margins of `scratch`, if there.
    fn pass(&mut self, data: Data, scratch: &mut [u8], out: &mut impl Out) -> bool {
        let within = &scratch[MARGIN..];
        let fed = self.track(data.bytes(within));
        if fed.too_long || !fed.replay.is_empty() {
            self.keep(data.into_bytes(within), &fed);
            if fed.too_long {
                self.fail(self.life.rules().event_too_long());
            }
            return false;
        }
        if let Some(instead) = self.instead(&data.bytes(within)[fed.skip..]) {
            self.ahead.push(instead.into());
            return false;
        }
        match data {
            Data::Owned(bytes) if fed.skip < bytes.len() => {
                self.put(bytes.slice(fed.skip..), out);
            }
            Data::Here(range) if fed.skip < range.len() => {
                let (start, end) = (MARGIN + range.start + fed.skip, MARGIN + range.end);
                self.giving();
                out.put_within(scratch, start..end);
                self.gave(end - start);
            }
            _ => return false,
        }
        true
    }

    fn put(&mut self, bytes: Bytes, out: &mut impl Out) -> Fill {
        let len = bytes.len();
        self.giving();
        out.put_owned(bytes);
        self.gave(len);
        Fill::Data
    }

    /// Bytes are about to be put out: from here on they count as on their way.
    fn giving(&self) {
        self.life.io().read(self.life.ground().clock.now());
    }

    /// So many bytes were put out.
    fn gave(&mut self, bytes: usize) {
        self.deadlines.went(self.life.ground().wheel.now());
        self.life.gave(bytes);
        if self.ahead.is_empty() && self.completed() {
            // A client may leave now without having missed anything.
            self.life.end(self.complete_reason());
        }
    }

    /// Looks at what came from upstream.
    fn track(&mut self, bytes: &[u8]) -> Fed {
        let now = self.life.ground().clock.now();
        self.deadlines.came(self.life.ground().wheel.now());
        self.life.reads(bytes);
        let fed = self.tracker.as_mut().map(|tracker| tracker.feed(bytes)).unwrap_or_default();
        self.life.received(bytes.len(), fed.events, now);
        fed
    }

    /// Queues what came from upstream to be put out.
    fn keep(&mut self, bytes: Bytes, fed: &Fed) {
        for piece in [Bytes::from_static(fed.replay), bytes.slice(fed.skip..)] {
            let instead = self.instead(&piece);
            self.ahead.push(instead.map_or(piece, Bytes::from));
        }
    }

    /// What goes on in place of `bytes`, if it is not they.
    fn instead(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.is_events() { self.life.instead(bytes) } else { None }
    }

    fn events_seen(&self) -> u64 {
        self.tracker.as_ref().map_or(0, Tracker::events)
    }

    fn completed(&self) -> bool {
        self.tracker.as_ref().is_some_and(Tracker::completed)
    }

    /// The source has nothing now: time for a limit, a heartbeat, or to wait.
    fn poll_quiet(&mut self, cx: &mut Context<'_>, out: &mut impl Out) -> Poll<Fill> {
        let now = self.life.ground().wheel.now();
        let (due, kind) = self.deadline();
        if now >= due {
            self.fail(self.life.rules().timed_out(kind));
            return Poll::Pending;
        }
        let heartbeat = self.heartbeat_at(now);
        if let (Some(at), Some(tracker)) = (heartbeat, self.tracker.as_mut())
            && now >= at
        {
            tracker.heartbeat_written();
            self.life.ground().cells.heartbeats.inc();
            let beat = sse::heartbeat(self.life.rules().style, self.family);
            return Poll::Ready(self.put(Bytes::from_static(beat), out));
        }
        self.timer.set(heartbeat.map_or(due, |at| at.min(due)), cx.waker());
        Poll::Pending
    }

    /// When a heartbeat would be due, if one may be. One that is due by `now` is not for a client that
    /// does not even take what it was sent; when it does, it is asked again.
    fn heartbeat_at(&self, now: Tick) -> Option<Tick> {
        let due = self.deadlines.heartbeat(self.life.rules(), self.tracker.as_ref()?)?;
        (now < due || !self.life.control().lagging()).then_some(due)
    }

    /// The next limit that will be reached if nothing comes.
    fn deadline(&self) -> (Tick, Kind) {
        self.deadlines.limit(self.life.rules(), self.tracker.as_ref(), || self.life.asked())
    }

    fn end_of_source(&mut self) {
        self.source.settle();
        let Some(tracker) = self.tracker.as_ref() else { return self.finish(Reason::Completed) };
        let held = tracker.held_at_eof();
        if !held.is_empty() {
            self.ahead.push(Bytes::from_static(held));
        }
        if tracker.complete_at_eof() {
            self.finish(self.complete_reason());
        } else {
            let text = "the upstream ended the stream before its terminal mark";
            self.fail(Failure::new(Kind::Truncated, text));
        }
    }

    /// A stream with its terminal mark is complete, unless an error of the upstream's is in it.
    fn complete_reason(&self) -> Reason {
        match &self.tracker {
            Some(tracker) if tracker.error_event() => Reason::UpstreamError,
            _ => Reason::Completed,
        }
    }

    fn finish(&mut self, reason: Reason) {
        self.ahead.push(self.life.withheld().into());
        self.life.end(reason);
        self.last(End::Clean);
    }

    /// Ends uncleanly: the error event in the family's shape, unless the upstream told one.
    fn fail(&mut self, failure: Failure) {
        if self.completed() {
            // Everything the client waits for is through; how the connection ends is no matter.
            return self.finish(self.complete_reason());
        }
        self.source = Source::Ended;
        let tracker = self.tracker.as_ref();
        if tracker.is_some_and(Tracker::error_event) {
            self.life.end(Reason::UpstreamError);
            return self.last(End::Cut);
        }
        self.life.failed(failure.kind);
        let Some(tracker) = tracker else { return self.last(End::Cut) };
        // An event begun cannot be taken back, unless none of it went on; it is ended, so that the
        // error stands alone.
        let closing = if self.life.withheld().is_empty() { tracker.closing() } else { b"" };
        self.ahead.push(Bytes::from_static(closing));
        let seen = self.events_seen();
        self.ahead.push(shape::error_event(self.family, &failure, seen));
        self.last(End::Cut);
    }

    fn last(&mut self, end: End) {
        self.source = Source::Ended;
        self.timer.clear();
        self.phase = Phase::Last(end);
    }

    /// Ends at once without an error event: something in the gateway broke.
    fn abandon(&mut self) {
        self.life.end(Reason::Internal);
        self.last(End::Cut);
    }
}

fn draining() -> Failure {
    Failure::new(Kind::Draining, "the gateway shuts down; server.drain_deadline has passed")
}
