//! What one worker counts: plain cells, written by that worker alone and read by the admin thread.
//!
//! Refuses: read-modify-write instructions, locks, allocation, names. Invariant: **one writer per
//! [`Cells`]**; a second one would lose counts (nothing worse). A reader may see one cell an update
//! ahead of another, never a torn value. Cost (`cells_cost` in `tests.rs`, in a loop on a warm
//! cache): 0.6 ns for a counter, 5-7 ns for a histogram. A `Cells` for 20 routes and upstreams
//! stays below 100 KiB (tested). Cells of routes and upstreams have slots for the process's life
//! ([`super::slots`]): a reload adds to them while their worker counts.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::names::{self, BUCKETS_MAX, Buckets};
use super::slots::Table;
use crate::limits;

pub use super::labels::{
    BreakerState, ConnState, ConnectResult, Direction, DrainResult, Path, Proto, Reason, Rejection,
    ReloadResult, ResumeResult, RetryReason, Side, StatusClass, TokenKind, UsageUnknown,
};

/// What is or was configured: the label values that are not closed lists. The positions in these
/// lists are the slots that [`Cells`] takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Addresses of the client listeners.
    pub listeners: Vec<String>,
    /// Names of the upstreams.
    pub upstreams: Vec<String>,
    /// Path of each route, and the index of its upstream.
    pub routes: Vec<(String, usize)>,
    /// Tenant and model of what is counted by tokens: [`super::slots`] says how they are named.
    pub usage: Vec<(Box<str>, Box<str>)>,
}

/// A number that only rises. Single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that rises and falls. Single writer. It may be negative on one worker when what was
/// added there is taken away elsewhere: only the sum over all workers has a meaning.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`.
    pub fn add(&self, n: i64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Takes `n` away.
    pub fn sub(&self, n: i64) {
        self.set(self.get().wrapping_sub(n));
    }

    /// Replaces the value.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Counts durations per bucket. Single writer, no allocation.
#[derive(Debug)]
pub struct Histogram {
    buckets: &'static Buckets,
    /// One count per bucket, not cumulative; what exceeds the last bound follows the bounds in use.
    counts: [Counter; BUCKETS_MAX + 1],
    /// Sum in seconds as `f64` bits: nanoseconds in a `u64` would wrap within weeks when 10,000
    /// streams add their durations.
    sum: AtomicU64,
}

impl Histogram {
    /// An empty histogram with these bounds.
    pub fn new(buckets: &'static Buckets) -> Histogram {
        Histogram { buckets, counts: Default::default(), sum: AtomicU64::new(0f64.to_bits()) }
    }

    /// Counts one duration; a bound is part of its bucket (`le`).
    pub fn observe(&self, d: Duration) {
        let ns = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let at = self.buckets.ns().partition_point(|&bound| bound < ns);
        self.counts[at].inc();
        let sum = f64::from_bits(self.sum.load(Relaxed)) + d.as_secs_f64();
        self.sum.store(sum.to_bits(), Relaxed);
    }

    /// A copy of what was counted so far.
    pub fn get(&self) -> Observed {
        Observed {
            buckets: self.buckets,
            counts: std::array::from_fn(|i| self.counts[i].get()),
            sum_seconds: f64::from_bits(self.sum.load(Relaxed)),
        }
    }
}

/// A copy of a histogram at one moment; copies of several workers can be added up.
#[derive(Clone, Debug)]
pub struct Observed {
    buckets: &'static Buckets,
    counts: [u64; BUCKETS_MAX + 1],
    /// Sum of the observed durations, seconds.
    pub sum_seconds: f64,
}

impl Observed {
    /// Number of observations. It is made from the buckets, so that the two always agree.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bound in seconds and cumulative count of each finite bucket.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.buckets.seconds.iter().zip(&self.counts).scan(0, |below, (&bound, &count)| {
            *below += count;
            Some((bound, *below))
        })
    }

    /// Adds another worker's copy of the same metric.
    pub(super) fn merge(&mut self, other: &Observed) {
        debug_assert!(std::ptr::eq(self.buckets, other.buckets), "two metrics mixed up");
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_seconds += other.sum_seconds;
    }
}

/// Client connections of one listener and protocol.
#[derive(Debug, Default)]
pub struct ConnectionCells {
    /// Open now.
    pub live: Gauge,
    /// Accepted so far.
    pub total: Counter,
}

// The structs below are aligned to 128 bytes (two cache lines, which the hardware fetches
// together), so that two workers never write to the same line.

/// One listener.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ListenerCells {
    connections: [ConnectionCells; Proto::COUNT],
}

/// One route with its upstream.
#[derive(Debug)]
#[repr(align(128))]
pub struct RouteCells {
    /// Streams open now.
    pub streams_live: Gauge,
    /// Request in to first data event out.
    pub ttfb: Histogram,
    /// Request in to end of stream.
    pub duration: Histogram,
    requests: [Counter; StatusClass::COUNT],
}

impl RouteCells {
    fn new() -> RouteCells {
        RouteCells {
            streams_live: Gauge::default(),
            ttfb: Histogram::new(&names::TTFB),
            duration: Histogram::new(&names::DURATION),
            requests: Default::default(),
        }
    }

    /// Requests answered with a status of this class.
    pub fn requests(&self, class: StatusClass) -> &Counter {
        &self.requests[class.index()]
    }
}

/// One upstream.
#[derive(Debug)]
#[repr(align(128))]
pub struct UpstreamCells {
    /// Time between two events, per event.
    pub chunk_interval: Histogram,
    /// Standard deviation of a stream's intervals, at its end.
    pub jitter: Histogram,
    /// Longest interval of a stream, at its end.
    pub max_gap: Histogram,
    /// TCP and TLS handshake of a new connection.
    pub handshake: Histogram,
    /// Wait for a slot.
    pub queue_wait: Histogram,
    /// Data events relayed.
    pub events: Counter,
    /// Requests waiting for a slot now.
    pub queue_depth: Gauge,
    /// Requests waiting for a connection now.
    pub waiting: Gauge,
    /// Connections, or places on one, that exchanges have now. No series of its own; with the next
    /// two it is how leaks are found.
    pub leases: Gauge,
    /// Of these, what is kept for a moment after its stream has ended, on purpose.
    pub lingering: Gauge,
    /// Of these, what was counted as a leak and is still there.
    pub leaked: Gauge,
    /// Leases that were kept for longer than their streams lived.
    pub leaks: Counter,
    ended: [Counter; Reason::COUNT],
    connections: [Gauge; ConnState::COUNT],
    connects: [Counter; ConnectResult::COUNT],
    retries: [Counter; RetryReason::COUNT],
}

impl UpstreamCells {
    fn new() -> UpstreamCells {
        UpstreamCells {
            chunk_interval: Histogram::new(&names::INTERVAL),
            jitter: Histogram::new(&names::INTERVAL),
            max_gap: Histogram::new(&names::INTERVAL),
            handshake: Histogram::new(&names::WAIT),
            queue_wait: Histogram::new(&names::WAIT),
            events: Counter::default(),
            queue_depth: Gauge::default(),
            waiting: Gauge::default(),
            leases: Gauge::default(),
            lingering: Gauge::default(),
            leaked: Gauge::default(),
            leaks: Counter::default(),
            ended: Default::default(),
            connections: Default::default(),
            connects: Default::default(),
            retries: Default::default(),
        }
    }

    /// Streams that ended for this reason.
    pub fn ended(&self, reason: Reason) -> &Counter {
        &self.ended[reason.index()]
    }

    /// Connections in this state now.
    pub fn connections(&self, state: ConnState) -> &Gauge {
        &self.connections[state.index()]
    }

    /// Attempts to connect with this outcome.
    pub fn connects(&self, result: ConnectResult) -> &Counter {
        &self.connects[result.index()]
    }

    /// Further attempts made for this reason.
    pub fn retries(&self, reason: RetryReason) -> &Counter {
        &self.retries[reason.index()]
    }
}

/// What one tenant used of one model.
#[derive(Debug, Default)]
pub struct UsageCells {
    tokens: [Counter; TokenKind::COUNT],
    unknown: [Counter; UsageUnknown::COUNT],
}

impl UsageCells {
    /// Tokens that upstreams told of.
    pub fn tokens(&self, kind: TokenKind) -> &Counter {
        &self.tokens[kind.index()]
    }

    /// Answers of which nobody knows what they took.
    pub fn unknown(&self, why: UsageUnknown) -> &Counter {
        &self.unknown[why.index()]
    }
}

/// The cells of usage are made so many at a time: a pointer for each would be most of them.
const USAGE_BLOCK: usize = 64;

/// One block of them.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct UsageBlock([UsageCells; USAGE_BLOCK]);

impl UsageBlock {
    fn new() -> UsageBlock {
        UsageBlock(std::array::from_fn(|_| UsageCells::default()))
    }
}

/// Everything one worker counts. Shared as `Arc<Cells>`; only its worker writes.
#[derive(Debug)]
#[repr(align(128))]
pub struct Cells {
    /// In the order of [`Shape::listeners`].
    pub listeners: Vec<ListenerCells>,
    pub(super) routes: Table<RouteCells>,
    pub(super) upstreams: Table<UpstreamCells>,
    pub(super) usage: Table<UsageBlock>,
    /// Heartbeats written.
    pub heartbeats: Counter,
    /// Bytes held for lagging clients now.
    pub backlog_bytes: Gauge,
    /// Streams whose client takes nothing now.
    pub stalled_streams: Gauge,
    /// Answers that are read on for their usage now.
    pub usage_drains: Gauge,
    /// Bytes in event logs now.
    pub log_bytes: Gauge,
    /// Our own time per chunk: upstream read to client write.
    pub chunk_relay: Histogram,
    /// Our own time per request: request read to upstream write.
    pub overhead: Histogram,
    bytes: [[Counter; Side::COUNT]; Direction::COUNT],
    rejections: [Counter; Rejection::COUNT],
    paths: [Counter; Path::COUNT],
    drained: [Counter; DrainResult::COUNT],
    resumes: [Counter; ResumeResult::COUNT],
}

impl Cells {
    /// Cells at zero for everything in `shape`.
    pub fn new(shape: &Shape) -> Cells {
        let cells = Cells {
            listeners: shape.listeners.iter().map(|_| ListenerCells::default()).collect(),
            routes: Table::new(limits::ROUTES),
            upstreams: Table::new(limits::UPSTREAMS),
            usage: Table::new(limits::USAGE_PAIRS.div_ceil(USAGE_BLOCK)),
            heartbeats: Counter::default(),
            backlog_bytes: Gauge::default(),
            stalled_streams: Gauge::default(),
            usage_drains: Gauge::default(),
            log_bytes: Gauge::default(),
            chunk_relay: Histogram::new(&names::OWN_TIME),
            overhead: Histogram::new(&names::OWN_TIME),
            bytes: Default::default(),
            rejections: Default::default(),
            paths: Default::default(),
            drained: Default::default(),
            resumes: Default::default(),
        };
        cells.grow(shape);
        cells
    }

    /// Adds cells, at zero, for what is in `shape` and has none yet. Any thread may do this, at any
    /// time; panics beyond [`limits::ROUTES`], [`limits::UPSTREAMS`] and [`limits::USAGE_PAIRS`], to
    /// which [`Shape::join`] and [`Shape::join_usage`] keep.
    pub fn grow(&self, shape: &Shape) {
        self.routes.grow(shape.routes.len(), RouteCells::new);
        self.upstreams.grow(shape.upstreams.len(), UpstreamCells::new);
        self.usage.grow(shape.usage.len().div_ceil(USAGE_BLOCK), UsageBlock::new);
    }

    /// Client connections of a listener, an index into [`Shape::listeners`] (panics beyond it, as
    /// the two methods below do: slots come from the configuration that made the shape).
    pub fn connections(&self, listener: usize, proto: Proto) -> &ConnectionCells {
        &self.listeners[listener].connections[proto.index()]
    }

    /// The cells of all upstreams, by slot.
    pub fn upstreams(&self) -> impl Iterator<Item = &UpstreamCells> {
        self.upstreams.iter()
    }

    /// A route's cells, by its slot: an index into [`Shape::routes`].
    pub fn route(&self, route: usize) -> &RouteCells {
        self.routes.get(route)
    }

    /// An upstream's cells, by its slot: an index into [`Shape::upstreams`].
    pub fn upstream(&self, upstream: usize) -> &UpstreamCells {
        self.upstreams.get(upstream)
    }

    /// What a tenant used of a model, by its slot: an index into [`Shape::usage`].
    pub fn usage(&self, slot: u16) -> &UsageCells {
        let slot = usize::from(slot);
        &self.usage.get(slot / USAGE_BLOCK).0[slot % USAGE_BLOCK]
    }

    /// Body bytes that went this way on this side.
    pub fn bytes(&self, direction: Direction, side: Side) -> &Counter {
        &self.bytes[direction.index()][side.index()]
    }

    /// `tidegate_stream_paths_total`.
    pub fn paths(&self, path: Path) -> &Counter {
        &self.paths[path.index()]
    }

    /// `tidegate_usage_drains_total`.
    pub fn drained(&self, result: DrainResult) -> &Counter {
        &self.drained[result.index()]
    }

    /// Connections and requests that this limit or rule refused.
    pub fn rejections(&self, limit: Rejection) -> &Counter {
        &self.rejections[limit.index()]
    }

    /// Requests to continue a stream with this outcome.
    pub fn resumes(&self, result: ResumeResult) -> &Counter {
        &self.resumes[result.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n: usize) -> Shape {
        Shape {
            listeners: vec!["127.0.0.1:8080".into()],
            upstreams: (0..n).map(|i| format!("u{i}")).collect(),
            routes: (0..n).map(|i| (format!("/v{i}/{{*rest}}"), i)).collect(),
            usage: (0..n).map(|i| (format!("t{i}").into(), "*".into())).collect(),
        }
    }

    #[test]
    fn counters_and_gauges_count() {
        let cells = Cells::new(&shape(1));
        cells.heartbeats.inc();
        cells.heartbeats.add(4);
        assert_eq!(cells.heartbeats.get(), 5);
        cells.backlog_bytes.add(10);
        cells.backlog_bytes.sub(14);
        assert_eq!(cells.backlog_bytes.get(), -4);
        cells.backlog_bytes.set(7);
        assert_eq!(cells.backlog_bytes.get(), 7);
    }

    #[test]
    fn each_label_value_has_its_own_cell() {
        let cells = Cells::new(&shape(2));
        for (i, reason) in Reason::ALL.iter().enumerate() {
            cells.upstream(1).ended(*reason).add(i as u64 + 1);
        }
        let counts: Vec<u64> =
            Reason::ALL.iter().map(|r| cells.upstream(1).ended(*r).get()).collect();
        assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(cells.upstream(0).ended(Reason::Completed).get(), 0);

        cells.bytes(Direction::In, Side::Upstream).add(3);
        assert_eq!(cells.bytes(Direction::Out, Side::Upstream).get(), 0);
        assert_eq!(cells.bytes(Direction::In, Side::Client).get(), 0);
        cells.connections(0, Proto::H2).live.add(1);
        assert_eq!(cells.connections(0, Proto::H1).live.get(), 0);
        cells.route(1).requests(StatusClass::from(404)).inc();
        assert_eq!(cells.route(1).requests(StatusClass::S4xx).get(), 1);
    }

    #[test]
    fn a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed() {
        for buckets in
            [&names::TTFB, &names::INTERVAL, &names::OWN_TIME, &names::DURATION, &names::WAIT]
        {
            for (i, &bound) in buckets.ns().iter().enumerate() {
                for (ns, expected) in [(bound - 1, i), (bound, i), (bound + 1, i + 1)] {
                    let histogram = Histogram::new(buckets);
                    histogram.observe(Duration::from_nanos(ns));
                    assert_eq!(histogram.get().counts[expected], 1, "{ns} ns");
                }
            }
        }
    }

    #[test]
    fn buckets_are_cumulative_and_sums_add_up() {
        let histogram = Histogram::new(&names::WAIT);
        for ms in [0, 1, 2, 30, 9_999, 10_000, 10_001, 3_600_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut seen = histogram.get();
        assert_eq!(seen.count(), 8);
        let cumulative: Vec<u64> = seen.cumulative().map(|(_, count)| count).collect();
        assert_eq!(cumulative, [2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 6]);
        assert!((seen.sum_seconds - 3_630.033).abs() < 1e-9);
        seen.merge(&histogram.get());
        assert_eq!(seen.count(), 16);
        assert!((seen.sum_seconds - 7_260.066).abs() < 1e-9);
    }

    #[test]
    fn absurd_durations_neither_panic_nor_wrap() {
        let histogram = Histogram::new(&names::DURATION);
        histogram.observe(Duration::MAX);
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.get().count(), 2);
        assert!(histogram.get().sum_seconds > 3e19);
    }

    #[test]
    fn a_worker_with_20_upstreams_stays_small() {
        let cells = Cells::new(&shape(20));
        let bytes = size_of::<Cells>()
            + size_of_val(&cells.listeners[..])
            + cells.routes.bytes()
            + cells.upstreams.bytes();
        assert!(bytes < 100 * 1024, "{bytes} bytes");
    }

    #[test]
    fn cells_are_added_while_their_worker_counts() {
        let cells = std::sync::Arc::new(Cells::new(&shape(1)));
        let adds = cells.clone();
        let adding = std::thread::spawn(move || (1..100).for_each(|n| adds.grow(&shape(n))));
        (0..1000).for_each(|_| cells.upstream(0).events.inc());
        adding.join().unwrap();
        assert_eq!(cells.upstream(0).events.get(), 1000, "what was there stays as it is");
        assert_eq!((cells.upstream(98).events.get(), cells.upstreams.iter().count()), (0, 99));
        assert_eq!(cells.routes.iter().count(), 99);
    }

    #[test]
    fn another_thread_reads_what_the_worker_wrote() {
        fn shared<T: Send + Sync>(_: &T) {}
        let cells = std::sync::Arc::new(Cells::new(&shape(1)));
        shared(&cells);
        let writer = cells.clone();
        std::thread::spawn(move || (0..1000).for_each(|_| writer.upstream(0).events.inc()))
            .join()
            .unwrap();
        assert_eq!(cells.upstream(0).events.get(), 1000);
    }
}
