//! One stream as it is measured, whichever protocol carries it.
//!
//! Owns the way from body bytes to counters: parsing, sequence, times. Refuses to touch a socket.
//! Invariant: a stream that was begun ends exactly once in the tally; dropping it counts as our
//! abort, or as unfinished if it was never opened. Cost: about 300 bytes per stream, no
//! allocation per event; the clock is read once per read.

use std::rc::Rc;

use crate::control::Phase;
use crate::event::{self, Meaning, Stamp};
use crate::sequence::Sequence;
use crate::sse::{Item, Parser};
use crate::tally::{End, Failure, Tally};
use crate::worker::Worker;

/// How a stream is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as data comes; only these streams are measured.
    Full,
    /// At `--read-rate`.
    Slow,
    /// Not at all after the head.
    Stalled,
}

/// When a read took place, on both clocks, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Since the process began; for differences.
    pub(crate) mono: u64,
    /// CLOCK_REALTIME; for stamps.
    pub(crate) real: u64,
}

/// Which mark of an end has been seen in the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    None,
    Done,
    Error,
}

/// Mean and spread of the intervals so far (Welford's method), nanoseconds.
#[derive(Debug, Default)]
struct Spread {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Spread {
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds below 2^53")]
    fn add(&mut self, ns: u64) {
        self.count += 1;
        let value = ns as f64;
        let delta = value - self.mean;
        self.mean += delta / self.count as f64;
        self.squares += delta * (value - self.mean);
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn deviation(&self) -> Option<u64> {
        (self.count >= 2).then(|| (self.squares / self.count as f64).sqrt() as u64)
    }
}

/// A stream that was begun.
pub(crate) struct Stream {
    worker: Rc<Worker>,
    id: u64,
    /// When it was to begin, by the schedule.
    intended: u64,
    pub(crate) pace: Pace,
    /// Whether this is the first stream in its place, on which the start of the window waits.
    waited_for: bool,
    parser: Parser,
    sequence: Sequence,
    mark: Mark,
    opened: bool,
    over: bool,
    first: Option<u64>,
    last: u64,
    /// When body bytes came last, or the head.
    last_read: u64,
    spread: Spread,
    max_gap: u64,
}

impl Stream {
    pub(crate) fn begin(
        worker: Rc<Worker>,
        id: u64,
        intended: u64,
        pace: Pace,
        waited_for: bool,
    ) -> Self {
        let now = worker.control.mono();
        let mut tally = worker.tally.borrow_mut();
        tally.attempts += 1;
        tally.start_delay.record_ns(now.saturating_sub(intended));
        drop(tally);
        Self {
            worker,
            id,
            intended,
            pace,
            waited_for,
            parser: Parser::default(),
            sequence: Sequence::default(),
            mark: Mark::None,
            opened: false,
            over: false,
            first: None,
            last: 0,
            last_read: now,
            spread: Spread::default(),
            max_gap: 0,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn was_opened(&self) -> bool {
        self.opened
    }

    pub(crate) fn last_read(&self) -> u64 {
        self.last_read
    }

    /// Whether a head is one that opens a stream.
    pub(crate) fn check_head(&self, status: u16, is_stream: bool) -> Result<(), Failure> {
        if status != 200 {
            *self.worker.tally.borrow_mut().statuses.entry(status).or_default() += 1;
            return Err(Failure::Status);
        }
        if is_stream { Ok(()) } else { Err(Failure::NotAStream) }
    }

    /// The head came, and it was a good one.
    pub(crate) fn opened(&mut self) {
        let now = self.worker.control.mono();
        self.opened = true;
        self.last_read = now;
        let mut tally = self.worker.tally.borrow_mut();
        tally.opened += 1;
        tally.head.record_ns(now.saturating_sub(self.intended));
        drop(tally);
        self.worker.gauges.opened();
        if self.pace == Pace::Stalled {
            self.settle();
        }
    }

    /// Takes what one read brought. `pieces` hands body bytes to its argument, in order.
    pub(crate) fn read<R>(&mut self, pieces: impl FnOnce(&mut dyn FnMut(&[u8])) -> R) -> R {
        let worker = Rc::clone(&self.worker);
        let now = worker.control.moment();
        let mut tally = worker.tally.borrow_mut();
        let mut parser = std::mem::take(&mut self.parser);
        let (mut seen, mut some) = (0, false);
        let result = pieces(&mut |bytes| {
            some = true;
            tally.body_bytes += bytes.len() as u64;
            parser.feed(bytes, |item| seen += u32::from(self.item(&item, now, &mut tally)));
        });
        self.parser = parser;
        if some {
            self.last_read = now.mono;
        }
        if seen > 0 {
            worker.gauges.chunks(seen);
        }
        if seen > 1 && self.is_measured() {
            tally.coalesced += u64::from(seen);
        }
        result
    }

    /// Returns whether the item was a chunk of this stream.
    fn item(&mut self, item: &Item<'_>, now: Moment, tally: &mut Tally) -> bool {
        let faults = &mut self.sequence.faults;
        let (name, data) = match *item {
            Item::Event { name, data } => (name, data),
            Item::Comment { inside } => {
                faults.heartbeats_inside += u64::from(inside);
                tally.bare_comments += u64::from(!inside);
                return false;
            }
            Item::Frame { comments } => {
                tally.bare_comments = tally.bare_comments.saturating_sub(comments.into());
                tally.comment_frames += 1;
                return false;
            }
            Item::Strange => {
                faults.malformed += 1;
                return false;
            }
        };
        if self.mark == Mark::Done {
            faults.malformed += 1;
            return false;
        }
        match event::read(name, data) {
            Meaning::Chunk(stamp) => return self.chunk(stamp, now, tally),
            Meaning::Plain => {
                tally.plain_events += 1;
                self.arrived(now, tally);
            }
            Meaning::Done => {
                self.mark = Mark::Done;
                self.sequence.finish(self.worker.plan.count);
                self.settle();
            }
            Meaning::Error => {
                self.mark = Mark::Error;
                self.settle();
            }
            Meaning::Ping => tally.pings += 1,
            Meaning::Malformed => faults.malformed += 1,
        }
        false
    }

    fn chunk(&mut self, stamp: Stamp, now: Moment, tally: &mut Tally) -> bool {
        tally.chunks += 1;
        if stamp.stream != self.id {
            self.sequence.faults.foreign += 1;
            return false;
        }
        self.sequence.see(stamp.seq);
        if self.worker.control.phase() == Phase::Window {
            tally.window_chunks += 1;
        }
        if self.is_measured() && stamp.sent_ns > 0 {
            tally.future_stamps += u64::from(stamp.sent_ns > now.real);
            tally.relay.record_ns(now.real.saturating_sub(stamp.sent_ns));
        }
        self.arrived(now, tally);
        true
    }

    /// An event with data came: first-event time, intervals.
    fn arrived(&mut self, now: Moment, tally: &mut Tally) {
        if self.first.is_none() {
            self.first = Some(now.mono);
            if self.pace == Pace::Full {
                tally.first_event.record_ns(now.mono.saturating_sub(self.intended));
            }
            self.settle();
        } else if self.is_measured() {
            let interval = now.mono - self.last;
            tally.measured_chunks += 1;
            tally.interval.record_ns(interval);
            self.spread.add(interval);
            self.max_gap = self.max_gap.max(interval);
        }
        self.last = now.mono;
    }

    /// The last of it was read, and the body's end was a proper one.
    pub(crate) fn end_clean(&mut self) {
        if self.parser.is_inside() {
            self.sequence.faults.malformed += 1;
        }
        self.end(match self.mark {
            Mark::Done => End::Done,
            Mark::Error => End::ErrorEvent,
            Mark::None => End::NoDone,
        });
    }

    /// The body stopped short in the way `end` tells.
    pub(crate) fn end_short(&mut self, end: End) {
        self.end(match (self.mark, end) {
            (Mark::Error, _) => End::ErrorEvent,
            (Mark::Done, End::Cut | End::Reset) => End::CutAfterDone,
            _ => end,
        });
    }

    /// It was never opened.
    pub(crate) fn fail(&mut self, failure: Failure) {
        *self.worker.tally.borrow_mut().failures.entry(failure).or_default() += 1;
        self.over = true;
        self.settle();
    }

    fn end(&mut self, end: End) {
        self.over = true;
        let control = &self.worker.control;
        let mut tally = self.worker.tally.borrow_mut();
        *tally.ends.entry(end).or_default() += 1;
        tally.faults.add(&self.sequence.faults);
        tally.faulty_streams += u64::from(self.sequence.faults.total() > 0);
        self.worker.gauges.closed(self.sequence.faults.total());
        if self.pace == Pace::Stalled {
            tally.stalled_cut += u64::from(end != End::Aborted);
        }
        if let (Pace::Full, Some(first), Some((from, to))) =
            (self.pace, self.first, control.window())
        {
            // After the end mark nothing was due any more; before it, silence is a gap as well:
            // a stream that stands still must not look smooth.
            let until = if self.mark == Mark::None { control.mono() } else { self.last }.min(to);
            tally.live_ns += until.saturating_sub(first.max(from));
            self.max_gap = self.max_gap.max(until.saturating_sub(self.last.max(from)));
            if self.max_gap > 0 {
                tally.max_gap.record_ns(self.max_gap);
            }
        }
        if let Some(deviation) = self.spread.deviation() {
            tally.jitter.record_ns(deviation);
        }
        drop(tally);
        self.settle();
    }

    fn is_measured(&self) -> bool {
        self.pace == Pace::Full && self.worker.control.phase() == Phase::Window
    }

    /// What this stream can tell about its opening is known.
    fn settle(&mut self) {
        if std::mem::take(&mut self.waited_for) {
            self.worker.gauges.settled();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        match (self.over, self.opened) {
            (true, _) => {}
            (false, true) => self.end(End::Aborted),
            (false, false) => self.fail(Failure::Unfinished),
        }
    }
}
