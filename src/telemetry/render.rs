//! All cells as Prometheus text (format 0.0.4).
//!
//! Owns the sum over the workers and the few counts that belong to the whole process. Refuses names
//! that are not in [`names`](super::names): `Look::fill` matches on every one of them, so neither a
//! name without series nor a series without name compiles. Invariants: every series exists from the
//! start, or from the reload that brought its route or upstream, to the end of the process; equal
//! label sets (two routes with one path, say) are one series, added up; `+Inf` equals the count.
//! Cost: paid by the admin thread per scrape; workers are only read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder, proto};

use crate::admission::budget::Budget;

use super::cells::{
    Cells, Counter, Gauge, Histogram, Observed, RouteCells, Shape, UpstreamCells, UsageCells,
};
use super::labels::{
    BreakerState, ConnState, ConnectResult, Direction, DrainResult, Path, Proto, Reason, Rejection,
    ReloadResult, ResumeResult, RetryReason, Side, StatusClass, TokenKind, UsageUnknown,
};
use super::log;
use super::names::{Kind, LABELS_MAX, Metric, Name};
use super::slots::{Full, Slots, UsageSlots};
use crate::limits;

/// Content type of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What belongs to the process and not to a worker. Any thread may write.
#[derive(Debug)]
pub struct Process {
    reloads: [AtomicU64; ReloadResult::COUNT],
    /// Index of the [`BreakerState`] per upstream's slot: breakers are shared between workers, so adding
    /// them up over workers would be wrong.
    breakers: Vec<AtomicU8>,
    memory: OnceLock<Arc<Budget>>,
}

impl Process {
    fn new() -> Process {
        let breakers = (0..limits::UPSTREAMS).map(|_| AtomicU8::new(0)).collect();
        Process { reloads: Default::default(), breakers, memory: OnceLock::new() }
    }

    /// Counts one configuration reload.
    pub fn reloaded(&self, result: ReloadResult) {
        self.reloads[result.index()].fetch_add(1, Relaxed);
    }

    /// The memory budget to be shown; the first one given stays.
    pub fn memory(&self, budget: Arc<Budget>) {
        self.memory.get_or_init(|| budget);
    }

    /// Notes the state of an upstream's breaker, by its slot; all start closed. A slot that cannot be
    /// is ignored.
    pub fn breaker(&self, upstream: usize, state: BreakerState) {
        if let Some(cell) = self.breakers.get(upstream) {
            cell.store(state.index() as u8, Relaxed);
        }
    }
}

/// Everything that `/metrics` shows.
pub struct Metrics {
    registry: Registry,
    process: Arc<Process>,
    /// Written by [`Metrics::join`] only, so a scrape never waits for long.
    shape: Arc<RwLock<Shape>>,
    workers: Vec<Arc<Cells>>,
}

impl Metrics {
    /// Metrics over the cells of all workers, which were made from the same `shape`. Without a
    /// worker the series are there, at zero.
    pub fn new(shape: Shape, mut workers: Vec<Arc<Cells>>) -> Metrics {
        if workers.is_empty() {
            workers.push(Arc::new(Cells::new(&shape)));
        }
        let (process, shape) = (Arc::new(Process::new()), Arc::new(RwLock::new(shape)));
        let source = Source {
            shape: shape.clone(),
            workers: workers.clone(),
            process: process.clone(),
            descs: descs(),
        };
        let registry = Registry::new();
        registry
            .register(Box::new(source))
            .and_then(|()| registry.register(Box::new(ProcessCollector::for_self())))
            .expect("the names in the table are valid and unique, and none starts with process_");
        Metrics { registry, process, shape, workers }
    }

    /// The slots of a configuration's upstreams, by name, and routes, by path and places in
    /// `upstreams`. What is new gets cells on every worker, and its series from now on; what is gone
    /// keeps both.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub fn join(&self, upstreams: &[&str], routes: &[(&str, &[usize])]) -> Result<Slots, Full> {
        // A shape that a panic left half-changed would only have more names.
        let mut shape = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        let slots = shape.join(upstreams, routes)?;
        self.workers.iter().for_each(|cells| cells.grow(&shape));
        Ok(slots)
    }

    /// The slots of a configuration's tenants, in its order, those of nobody before them; each with
    /// its models, but `*`. What finds no place shares one: see [`Shape::join_usage`].
    pub fn join_usage<'n>(
        &self,
        tenants: impl Iterator<Item = (&'n str, BTreeSet<&'n str>)> + Clone,
    ) -> Vec<UsageSlots> {
        let mut shape = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        let wanted: usize = tenants.clone().map(|(_, models)| models.len() + 1).sum();
        let slots = shape.join_usage(tenants);
        self.workers.iter().for_each(|cells| cells.grow(&shape));
        let lost = wanted - slots.iter().map(UsageSlots::own).sum::<usize>();
        if lost > 0 {
            let most = limits::USAGE_PAIRS;
            tracing::warn!(
                lost,
                "tokens are counted apart for {most} pairs of a tenant and a model in the life of a \
                 process; what found no place counts as `*`; name fewer models, or restart"
            );
        }
        slots
    }

    /// What belongs to the whole process, to be written to.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Every series as text, sorted by name, to be sent as [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(64 * 1024);
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cut short");
        }
        text
    }
}

fn descs() -> Vec<Desc> {
    let desc = |metric: &Metric| {
        let labels = metric.labels.iter().map(|label| label.to_string()).collect();
        Desc::new(metric.name.into(), metric.help.into(), labels, HashMap::new())
            .expect("the names in the table are valid")
    };
    Name::ALL.iter().map(|name| desc(name.metric())).collect()
}

/// What the registry collects from.
struct Source {
    shape: Arc<RwLock<Shape>>,
    workers: Vec<Arc<Cells>>,
    process: Arc<Process>,
    descs: Vec<Desc>,
}

impl Collector for Source {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let shape = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        let look = Look { shape: &shape, workers: &self.workers, process: &self.process };
        let family = |name: &Name| {
            let mut family = Family { metric: name.metric(), series: BTreeMap::new() };
            look.fill(*name, &mut family);
            family.into_proto()
        };
        Name::ALL.iter().map(family).collect()
    }
}

/// What there is to show at one moment.
#[derive(Clone, Copy)]
struct Look<'a> {
    shape: &'a Shape,
    workers: &'a [Arc<Cells>],
    process: &'a Process,
}

impl<'a> Look<'a> {
    /// Adds all series of one metric.
    fn fill(self, name: Name, f: &mut Family<'a>) {
        use Name::*;
        match name {
            ConnectionsLive => self.connections(|listener, proto, cells| {
                f.gauge([listener, proto.as_str()], &cells.live);
            }),
            ConnectionsTotal => self.connections(|listener, proto, cells| {
                f.counter([listener, proto.as_str()], &cells.total);
            }),
            StreamsLive => self.routes(|route, up, r| f.gauge([route, up], &r.streams_live)),
            RequestsTotal => self.routes(|route, _, r| {
                each(StatusClass::ALL, |c| f.counter([route, c.as_str()], r.requests(c)));
            }),
            StreamTtfb => self.routes(|route, up, r| f.histogram([route, up], &r.ttfb)),
            StreamDuration => self.routes(|route, up, r| f.histogram([route, up], &r.duration)),
            ChunkInterval => self.upstreams(|up, u| f.histogram([up], &u.chunk_interval)),
            StreamJitter => self.upstreams(|up, u| f.histogram([up], &u.jitter)),
            StreamMaxGap => self.upstreams(|up, u| f.histogram([up], &u.max_gap)),
            EventsTotal => self.upstreams(|up, u| f.counter([up], &u.events)),
            StreamsEnded => self.upstreams(|up, u| {
                each(Reason::ALL, |r| f.counter([up, r.as_str()], u.ended(r)));
            }),
            QueueDepth => self.upstreams(|up, u| f.gauge([up], &u.queue_depth)),
            QueueWait => self.upstreams(|up, u| f.histogram([up], &u.queue_wait)),
            UpstreamHandshake => self.upstreams(|up, u| f.histogram([up], &u.handshake)),
            UpstreamConnections => self.upstreams(|up, u| {
                each(ConnState::ALL, |s| f.gauge([up, s.as_str()], u.connections(s)));
            }),
            PoolWaiting => self.upstreams(|up, u| f.gauge([up], &u.waiting)),
            PoolLeaks => self.upstreams(|up, u| f.counter([up], &u.leaks)),
            UpstreamConnects => self.upstreams(|up, u| {
                each(ConnectResult::ALL, |r| f.counter([up, r.as_str()], u.connects(r)));
            }),
            Retries => self.upstreams(|up, u| {
                each(RetryReason::ALL, |r| f.counter([up, r.as_str()], u.retries(r)));
            }),
            ChunkRelay => self.cells(|c| f.histogram([], &c.chunk_relay)),
            GatewayOverhead => self.cells(|c| f.histogram([], &c.overhead)),
            BytesTotal => self.cells(|c| {
                each(Direction::ALL, |d| {
                    each(Side::ALL, |s| f.counter([d.as_str(), s.as_str()], c.bytes(d, s)));
                });
            }),
            Heartbeats => self.cells(|c| f.counter([], &c.heartbeats)),
            BacklogBytes => self.cells(|c| f.gauge([], &c.backlog_bytes)),
            StalledStreams => self.cells(|c| f.gauge([], &c.stalled_streams)),
            Rejections => self.cells(|c| {
                each(Rejection::ALL, |r| f.counter([r.as_str()], c.rejections(r)));
            }),
            StreamPaths => self.cells(|c| {
                each(Path::ALL, |p| f.counter([p.as_str()], c.paths(p)));
            }),
            Resumes => self.cells(|c| {
                each(ResumeResult::ALL, |r| f.counter([r.as_str()], c.resumes(r)));
            }),
            Tokens => self.usage(|tenant, model, u| {
                each(TokenKind::ALL, |k| f.counter([tenant, model, k.as_str()], u.tokens(k)));
            }),
            UsageUnknowns => self.usage(|tenant, model, u| {
                each(UsageUnknown::ALL, |r| f.counter([tenant, model, r.as_str()], u.unknown(r)));
            }),
            UsageDrainsLive => self.cells(|c| f.gauge([], &c.usage_drains)),
            UsageDrains => self.cells(|c| {
                each(DrainResult::ALL, |r| f.counter([r.as_str()], c.drained(r)));
            }),
            LogBytes => self.cells(|c| f.gauge([], &c.log_bytes)),
            BreakerStates | ConfigReloads | LogLinesDropped | BuildInfo | MemoryBytes => {
                self.fill_process(name, f)
            }
        }
    }

    /// The metrics that no worker counts.
    fn fill_process(self, name: Name, f: &mut Family<'a>) {
        match name {
            Name::BreakerStates => {
                for (up, cell) in self.shape.upstreams.iter().zip(&self.process.breakers) {
                    let now = usize::from(cell.load(Relaxed));
                    each(BreakerState::ALL, |s| {
                        f.number([up, s.as_str()], f64::from(u8::from(s.index() == now)));
                    });
                }
            }
            Name::ConfigReloads => each(ReloadResult::ALL, |r| {
                f.number([r.as_str()], self.process.reloads[r.index()].load(Relaxed) as f64);
            }),
            Name::MemoryBytes => {
                f.number([], self.process.memory.get().map_or(0, |memory| memory.used()) as f64);
            }
            Name::LogLinesDropped => f.number([], log::dropped_lines() as f64),
            Name::BuildInfo => {
                let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
                f.number([env!("CARGO_PKG_VERSION"), profile, std::env::consts::ARCH], 1.0);
            }
            _ => debug_assert!(false, "a worker counts {name:?}"),
        }
    }

    fn cells(self, each: impl FnMut(&'a Cells)) {
        self.workers.iter().map(|cells| &**cells).for_each(each);
    }

    fn connections(self, mut each: impl FnMut(&'a str, Proto, &'a super::cells::ConnectionCells)) {
        self.cells(|cells| {
            for (i, listener) in self.shape.listeners.iter().enumerate() {
                Proto::ALL.iter().for_each(|&p| each(listener, p, cells.connections(i, p)));
            }
        });
    }

    fn routes(self, mut each: impl FnMut(&'a str, &'a str, &'a RouteCells)) {
        self.cells(|cells| {
            for (slot, (route, upstream)) in self.shape.routes.iter().enumerate() {
                let upstream = self.shape.upstreams.get(*upstream).map_or("", String::as_str);
                each(route, upstream, cells.route(slot));
            }
        });
    }

    fn usage(self, mut each: impl FnMut(&'a str, &'a str, &'a UsageCells)) {
        self.cells(|cells| {
            for (slot, (tenant, model)) in (0..).zip(&self.shape.usage) {
                each(tenant, model, cells.usage(slot));
            }
        });
    }

    fn upstreams(self, mut each: impl FnMut(&'a str, &'a UpstreamCells)) {
        self.cells(|cells| {
            for (slot, name) in self.shape.upstreams.iter().enumerate() {
                each(name, cells.upstream(slot));
            }
        });
    }
}

fn each<T: Copy>(all: &[T], f: impl FnMut(T)) {
    all.iter().copied().for_each(f);
}

/// The series of one metric while they are added up. Label values in the order of `metric.labels`;
/// what a metric does not use stays empty.
struct Family<'a> {
    metric: &'static Metric,
    series: BTreeMap<[&'a str; LABELS_MAX], Value>,
}

enum Value {
    Number(f64),
    Histogram(Observed),
}

impl<'a> Family<'a> {
    fn counter<const N: usize>(&mut self, labels: [&'a str; N], cell: &Counter) {
        self.number(labels, cell.get() as f64);
    }

    fn gauge<const N: usize>(&mut self, labels: [&'a str; N], cell: &Gauge) {
        self.number(labels, cell.get() as f64);
    }

    fn histogram<const N: usize>(&mut self, labels: [&'a str; N], cell: &Histogram) {
        self.add(labels, Value::Histogram(cell.get()));
    }

    fn number<const N: usize>(&mut self, labels: [&'a str; N], value: f64) {
        self.add(labels, Value::Number(value));
    }

    fn add<const N: usize>(&mut self, labels: [&'a str; N], value: Value) {
        debug_assert_eq!(N, self.metric.labels.len(), "{}", self.metric.name);
        let mut key = [""; LABELS_MAX];
        key.iter_mut().zip(labels).for_each(|(slot, label)| *slot = label);
        match (self.series.get_mut(&key), value) {
            (Some(Value::Number(sum)), Value::Number(more)) => *sum += more,
            (Some(Value::Histogram(sum)), Value::Histogram(more)) => sum.merge(&more),
            (_, value) => {
                self.series.insert(key, value);
            }
        }
    }

    fn into_proto(self) -> proto::MetricFamily {
        let metric = self.metric;
        let series = self.series.into_iter().map(|(labels, value)| {
            let label = |(name, value): (&&str, &str)| {
                let mut pair = proto::LabelPair::default();
                pair.set_name(name.to_string());
                pair.set_value(value.to_string());
                pair
            };
            let labels = metric.labels.iter().zip(labels).map(label).collect();
            let mut out = proto::Metric::from_label(labels);
            set_value(&mut out, metric.kind, value);
            out
        });
        let mut family = proto::MetricFamily::default();
        family.set_name(metric.name.into());
        family.set_help(metric.help.into());
        family.set_field_type(match metric.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram(_) => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(series.collect());
        family
    }
}

fn set_value(out: &mut proto::Metric, kind: Kind, value: Value) {
    match (kind, value) {
        (Kind::Counter, Value::Number(value)) => {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            out.set_counter(counter);
        }
        (Kind::Gauge, Value::Number(value)) => {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            out.set_gauge(gauge);
        }
        (Kind::Histogram(_), Value::Histogram(observed)) => {
            let bucket = |(bound, count)| {
                let mut bucket = proto::Bucket::default();
                bucket.set_upper_bound(bound);
                bucket.set_cumulative_count(count);
                bucket
            };
            let mut histogram = proto::Histogram::default();
            histogram.set_bucket(observed.cumulative().map(bucket).collect());
            histogram.set_sample_count(observed.count());
            histogram.set_sample_sum(observed.sum_seconds);
            out.set_histogram(histogram);
        }
        (kind, _) => debug_assert!(false, "wrong value for a {}", kind.as_str()),
    }
}
