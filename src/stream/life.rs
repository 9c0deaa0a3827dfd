//! One proxied request's record, from admission until it is gone.
//!
//! Holds the permit, counts, and at its drop, whatever way that comes about, settles them once:
//! gauges down, one end reason, one log line. A life that is dropped without a verdict was left by
//! its client.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use slab::Slab;

use crate::admission::held::Held;
use crate::clock::Moment;
use crate::error::Kind;
use crate::stream::control::{Control, IoState};
use crate::stream::ground::{Ground, Rules};
use crate::stream::meter::Meter;
use crate::stream::usage::{Looks, Usage};
use crate::telemetry::cells::{Cells, Direction, Path, Reason, Side};
use crate::telemetry::log::{self, StreamEnd};
use crate::upstream::upload::UploadState;
use crate::wire::usage::may_tell;
use crate::wire::wheel::Tick;

/// A route, and where its requests may go: what a stream's log line, `/streams` and metrics tell.
#[derive(Debug)]
pub struct Place {
    /// The route's path as configured.
    pub route: String,
    /// Limits and habits of its streams.
    pub rules: Rules,
    /// Its upstreams, at least one. Which of them a request is with is noted in its [`Control`].
    pub targets: Box<[Target]>,
}

/// One upstream of a route.
#[derive(Debug)]
pub struct Target {
    /// The upstream's name.
    pub upstream: String,
    /// The slot of the metrics of the route with this upstream.
    pub route_index: usize,
    /// The slot of the upstream's metrics.
    pub upstream_index: usize,
}

impl Place {
    /// A live request goes to the upstream `to` from now on.
    pub fn moves(&self, control: &Control, cells: &Cells, to: usize) {
        let from = control.target();
        if from != to {
            cells.route(self.targets[from].route_index).streams_live.sub(1);
            cells.route(self.targets[to].route_index).streams_live.add(1);
            control.leads_to(to);
        }
    }
}

/// A worker's live streams.
#[derive(Default)]
pub struct Live(RefCell<Slab<Rc<Row>>>);

/// What others may see of a live stream. What every chunk touches stands together: with many streams
/// each line of memory is fetched anew for each chunk (`make price`, the row of many streams).
#[repr(C)]
pub struct Row {
    /// Its route.
    pub place: Rc<Place>,
    /// Bytes given to the client.
    pub bytes: Cell<u64>,
    /// When the upstream last sent something.
    pub active: Cell<Moment>,
    /// The control's, for who has no other wish to it.
    io: Rc<IoState>,
    /// Its line to the client's connection.
    pub control: Rc<Control>,
    /// When it was admitted.
    pub started: Moment,
    /// The gateway's request id.
    pub id: Box<str>,
}

impl Row {
    /// The upstream it is with.
    pub fn target(&self) -> &Target {
        &self.place.targets[self.control.target()]
    }
}

impl Live {
    /// How many streams live.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether none lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `look` for each live stream.
    pub fn for_each(&self, mut look: impl FnMut(&Row)) {
        for (_, row) in self.0.borrow().iter() {
            look(row);
        }
    }
}

/// What a life needs of its worker and its request.
pub struct Birth {
    /// What the worker's streams share.
    pub ground: Rc<Ground>,
    /// What the request has taken.
    pub held: Held,
    /// Its route; which of its upstreams comes first is noted in `control`.
    pub place: Rc<Place>,
    /// The gateway's request id.
    pub id: String,
    /// The W3C trace id it belongs to.
    pub trace_id: Option<u128>,
    /// Its line to the client's connection.
    pub control: Rc<Control>,
}

/// What a life needs at its beginning and end only, apart from what every chunk touches: the task
/// of a stream stays below a step of its size.
struct Notes {
    /// All zeros: none. Bytes, since a `u128` is aligned to 16.
    trace_id: [u8; 16],
    upstream_request_id: Option<Box<str>>,
    /// What the answer took, if anybody wants to know.
    usage: Option<Box<Usage>>,
    /// What the request has taken.
    held: Held,
    /// The request's body, until it has wholly gone on.
    upload: Option<Rc<UploadState>>,
}

/// See the module.
pub struct Life {
    row: Rc<Row>,
    ground: Rc<Ground>,
    notes: Box<Notes>,
    key: u32,
    status: u16,
    reason: Option<Reason>,
    /// Of the answer's next piece, for the sake of [`Notes::usage`].
    looks: Looks,
    /// The slot of the metrics of the upstream that sends, once it has sent an event: then it stays.
    upstream: u16,
    /// When the request's body had wholly gone on.
    asked: Tick,
    /// Timing and counts.
    pub meter: Meter,
}

impl Life {
    /// Enters the live streams.
    pub fn begin(birth: Birth) -> Life {
        let Birth { ground, held, place, id, trace_id, control } = birth;
        let now = ground.clock.now();
        let row = Rc::new(Row {
            place,
            bytes: Cell::new(0),
            active: Cell::new(now),
            io: control.io().clone(),
            control,
            started: now,
            id: id.into(),
        });
        ground.cells.route(row.target().route_index).streams_live.add(1);
        let key = ground.live.0.borrow_mut().insert(row.clone());
        Life {
            row,
            ground,
            notes: Box::new(Notes {
                trace_id: trace_id.unwrap_or(0).to_be_bytes(),
                upstream_request_id: None,
                usage: None,
                held,
                upload: None,
            }),
            key: u32::try_from(key).expect("permits keep streams far below 2^32"),
            status: 499,
            reason: None,
            looks: Looks::Never,
            upstream: 0,
            asked: Tick(now.ticks()),
            meter: Meter::default(),
        }
    }

    /// When it was admitted.
    pub fn started(&self) -> Moment {
        self.row.started
    }

    /// What the worker's streams share.
    pub fn ground(&self) -> &Rc<Ground> {
        &self.ground
    }

    /// Its line to the owner of the client's connection.
    pub fn control(&self) -> &Rc<Control> {
        &self.row.control
    }

    /// What the client's connection does.
    pub fn io(&self) -> &IoState {
        &self.row.io
    }

    /// The limits and habits of its route's streams.
    pub fn rules(&self) -> &Rules {
        &self.row.place.rules
    }

    /// What the request has taken.
    pub fn held(&self) -> &Held {
        &self.notes.held
    }

    /// What its answer takes is to be read.
    pub fn uses(&mut self, usage: Usage) {
        self.notes.usage = Some(Box::new(usage));
        self.looks = Looks::Always;
    }

    /// What its answer takes, if that is read.
    pub fn usage(&mut self) -> Option<&mut Usage> {
        let usage = self.notes.usage.as_deref_mut()?;
        // Whatever is done with it now: it is asked again with the next piece.
        self.looks = Looks::Always;
        Some(usage)
    }

    /// The upstream's answer went on with `bytes`.
    pub fn reads(&mut self, bytes: &[u8]) {
        let sees = match self.looks {
            Looks::Never => false,
            Looks::IfItTells => may_tell(bytes),
            Looks::Always => true,
        };
        if sees && let Some(usage) = self.notes.usage.as_deref_mut() {
            usage.reads(bytes);
            self.looks = usage.looks();
        }
    }

    /// Its client has left. Whether reading on may bring to light what the answer takes; then how it ended
    /// is noted now.
    pub fn leaves(&mut self) -> bool {
        let left = matches!(self.row.control.ended(), None | Some(Reason::ClientStalled));
        let missing = self.notes.usage.as_ref().is_some_and(|usage| usage.is_missing());
        if self.reason.is_some() || !left || !missing {
            return false;
        }
        self.end(self.row.control.ended().unwrap_or(Reason::ClientClosed));
        self.row.control.left();
        true
    }

    /// The upstream sent `bytes` at `now`, of which nobody gets anything.
    pub fn drained(&mut self, bytes: &[u8], now: Moment) {
        self.row.active.set(now);
        self.ground.cells.bytes(Direction::In, Side::Upstream).add(bytes.len() as u64);
        self.reads(bytes);
    }

    /// What goes on to the client in place of `bytes`; `None`: they do.
    pub fn instead(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        // Whoever withholds something looks at all there is.
        if self.looks == Looks::Always { self.usage()?.instead(bytes) } else { None }
    }

    /// What has been withheld from the client for the time being: the beginning of an event.
    pub fn withheld(&mut self) -> Vec<u8> {
        self.usage().map(Usage::withheld).unwrap_or_default()
    }

    /// It failed; nothing is charged for what no model worked on.
    pub fn failed(&mut self, kind: Kind) {
        self.end(reason_of(kind));
        if kind.never_sent() || matches!(kind, Kind::Limited(_) | Kind::UpstreamStatus(_)) {
            self.nothing_used();
        }
    }

    /// No model has worked on it: what was reserved for it comes back.
    pub fn nothing_used(&mut self) {
        self.notes.held.cancel();
        if let Some(usage) = self.usage() {
            usage.nothing_used();
        }
    }

    /// From when on the upstream's first event is waited for: the last progress of the request's
    /// body, so that a slow upload is not taken for a slow upstream.
    pub fn asked(&self) -> Tick {
        self.notes.upload.as_ref().map_or(self.asked, |upload| upload.moved().max(self.asked))
    }

    /// The request body it came with.
    pub fn uploads(&mut self, upload: Rc<UploadState>) {
        self.notes.upload = Some(upload);
    }

    /// Lets go of the request's body once it has wholly gone on.
    fn settle_upload(&mut self) {
        if let Some(upload) = self.notes.upload.take_if(|upload| upload.done()) {
            self.asked = upload.moved().max(self.asked);
            self.count_upload(&upload);
        }
    }

    fn count_upload(&self, upload: &UploadState) {
        let cells = &self.ground.cells;
        cells.bytes(Direction::In, Side::Client).add(upload.bytes());
        cells.bytes(Direction::Out, Side::Upstream).add(upload.sent());
    }

    /// Whether the whole request has come in.
    pub fn received_whole_request(&self) -> bool {
        self.notes.upload.as_ref().is_none_or(|upload| upload.received())
    }

    /// Notes how the response reaches the client.
    pub fn takes(&self, path: Path) {
        self.ground.cells.paths(path).inc();
    }

    /// The response's status is `status`; `request_id` is the upstream's own.
    pub fn answered(&mut self, status: u16, request_id: Option<&str>) {
        self.status = status;
        self.notes.upstream_request_id = request_id.map(Into::into);
        self.settle_upload();
    }

    /// The first verdict stands.
    pub fn end(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }

    /// The upstream sent `bytes` bytes with `events` whole events at `now`.
    pub fn received(&mut self, bytes: usize, events: u32, now: Moment) {
        self.row.active.set(now);
        let cells = &self.ground.cells;
        cells.bytes(Direction::In, Side::Upstream).add(bytes as u64);
        if events == 0 {
            return;
        }
        if self.meter.first().is_none() {
            let target = self.row.target();
            self.upstream = u16::try_from(target.upstream_index).expect("upstreams are few");
            cells.route(target.route_index).ttfb.observe(now.since(self.row.started));
        }
        let upstream = cells.upstream(self.upstream.into());
        upstream.events.add(u64::from(events));
        if let Some(interval) = self.meter.events(events, now) {
            upstream.chunk_interval.observe(interval);
            // Events that came in one piece have no time between them.
            for _ in 1..events {
                upstream.chunk_interval.observe(std::time::Duration::ZERO);
            }
        }
    }

    /// `bytes` bytes went to the client.
    pub fn gave(&mut self, bytes: usize) {
        self.row.bytes.set(self.row.bytes.get() + bytes as u64);
        self.ground.cells.bytes(Direction::Out, Side::Client).add(bytes as u64);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.ground.live.0.borrow_mut().remove(self.key as usize);
        let target = self.row.target();
        // A panic unwinds through here before anybody can catch it and name the reason.
        let left = if std::thread::panicking() {
            self.status = 500;
            Reason::Internal
        } else {
            Reason::ClientClosed
        };
        let reason = self.reason.or_else(|| self.row.control.ended()).unwrap_or(left);
        let duration = self.ground.clock.now().since(self.row.started);
        let cells = &self.ground.cells;
        // Whoever sees that it has ended sees what it took.
        if let Some(usage) = &self.notes.usage {
            let sent = self.row.control.was_sent();
            usage.settle(&self.notes.held, cells, reason, sent, self.ground.clock.now());
        }
        let (route, upstream) =
            (cells.route(target.route_index), cells.upstream(target.upstream_index));
        route.streams_live.sub(1);
        route.duration.observe(duration);
        upstream.ended(reason).inc();
        if let Some(jitter) = self.meter.jitter() {
            upstream.jitter.observe(jitter);
        }
        if let Some(gap) = self.meter.max_gap() {
            upstream.max_gap.observe(gap);
        }
        if let Some(upload) = &self.notes.upload {
            self.count_upload(upload);
        }
        let trace_id = u128::from_be_bytes(self.notes.trace_id);
        log::stream_end(&StreamEnd {
            id: &self.row.id,
            upstream_request_id: self.notes.upstream_request_id.as_deref(),
            trace_id: (trace_id != 0).then_some(trace_id),
            route: &self.row.place.route,
            upstream: &target.upstream,
            status: self.status,
            reason,
            ttfb: self.meter.first().map(|first| first.since(self.row.started)),
            duration,
            events: self.meter.count(),
            bytes: self.row.bytes.get(),
            max_gap: self.meter.max_gap(),
            attempt: self.row.control.attempts(),
        });
    }
}

/// The end reason of a stream that failed with `kind`.
fn reason_of(kind: Kind) -> Reason {
    match kind {
        Kind::Truncated | Kind::Empty => Reason::UpstreamTruncated,
        Kind::FirstByte
        | Kind::Idle
        | Kind::DnsTimeout
        | Kind::ConnectTimeout
        | Kind::TlsTimeout => Reason::UpstreamTimeout,
        Kind::Total | Kind::EventTooLong | Kind::Limited(_) => Reason::Limit,
        Kind::Draining => Reason::Drain,
        Kind::Internal => Reason::Internal,
        Kind::Dns
        | Kind::Connect
        | Kind::Tls
        | Kind::BreakerOpen
        | Kind::Refused
        | Kind::UpstreamGone
        | Kind::UpstreamProtocol
        | Kind::ErrorFirst
        | Kind::UpstreamStatus(_) => Reason::UpstreamError,
        // The client broke its own request: it is the one that ended the exchange.
        Kind::BadRequest
        | Kind::HeadTooLarge
        | Kind::HeadSlow
        | Kind::BodySlow
        | Kind::NoRoute
        | Kind::Method
        | Kind::Upgrade
        | Kind::Key
        | Kind::Forbidden
        | Kind::BodyTooLarge => Reason::ClientClosed,
    }
}
