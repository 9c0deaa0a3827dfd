//! Which of an upstream's endpoints a request goes to, and what all workers know of each.
//!
//! Every endpoint gets a cost by the upstream's `balance`, and the cheapest one that may be asked is
//! taken:
//!
//! - **ordered**: its place in `urls`; the later ones are for when the earlier ones fail.
//! - **weighted**: drawn by lot, each as likely as its weight. With a key (a tenant, a header) the
//!   lot is the key's own, so that the same key comes to the same endpoint, and when an endpoint is
//!   missing only its keys move (rendezvous hashing).
//! - **least**: streams under way per weight.
//! - **fastest**: of two drawn by lot, the one with the shorter recent time to first byte, times its
//!   streams. Two and not all, so that not everybody runs to the same one; a time that was not
//!   measured again fades, so that an endpoint that was slow once is tried again.
//!
//! An endpoint may be asked if it was not tried for this request, its breaker lets pass, and its
//! health checks say yes. If they say no of all endpoints they are not believed, since a wrong
//! `path` must not take an upstream down; open breakers are: they have seen real requests fail.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::clock::Moment;
use crate::config::{self, Balance, Url};
use crate::upstream::breaker::{Attempt, Breaker};
use crate::upstream::resolve::Addresses;

/// A new measurement counts one fourth, those before it the rest.
const SMOOTHING: u64 = 4;
/// In this time a measurement fades to half of it.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// One address of an upstream, as all workers know it. 100 bytes and its breaker.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub url: Url,
    /// The addresses of its host.
    pub addresses: Arc<Addresses>,
    breaker: Option<Arc<Breaker>>,
    sick: AtomicBool,
    live: AtomicUsize,
    /// Smoothed time to first byte, nanoseconds; 0 is none.
    ttfb: AtomicU64,
    /// When it was measured last, nanoseconds of the clock.
    measured: AtomicU64,
}

impl Endpoint {
    /// One that nobody has asked yet.
    pub fn new(url: Url, resolve: Duration, rule: Option<config::BreakerRule>) -> Arc<Endpoint> {
        let addresses = Arc::new(Addresses::new(&url.host, url.port, resolve));
        Arc::new(Endpoint {
            url,
            addresses,
            breaker: rule.map(Breaker::new),
            sick: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            ttfb: AtomicU64::new(0),
            measured: AtomicU64::new(0),
        })
    }

    /// Its breaker, if it has one.
    pub fn breaker(&self) -> Option<&Arc<Breaker>> {
        self.breaker.as_ref()
    }

    /// What its health checks say.
    pub fn set_healthy(&self, healthy: bool) {
        self.sick.store(!healthy, Relaxed);
    }

    /// Whether its health checks say yes, or there are none.
    pub fn healthy(&self) -> bool {
        !self.sick.load(Relaxed)
    }

    /// A stream began on it.
    pub fn began(&self) {
        self.live.fetch_add(1, Relaxed);
    }

    /// A stream ended on it.
    pub fn ended(&self) {
        self.live.fetch_sub(1, Relaxed);
    }

    /// Streams on it now.
    pub fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// Its first byte took so long. Two workers that tell at once may lose one of the two.
    pub fn measured(&self, took: Duration, now: Moment) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / SMOOTHING).max(1);
        let smoothed = match self.ttfb.load(Relaxed) {
            0 => took,
            before => before - before / SMOOTHING + took / SMOOTHING,
        };
        self.ttfb.store(smoothed.max(1), Relaxed);
        self.measured.store(now.nanos(), Relaxed);
    }

    /// Its recent time to first byte, faded, nanoseconds; 0 if there is none.
    fn pace(&self, now: Moment) -> f64 {
        let age = now.nanos().saturating_sub(self.measured.load(Relaxed)) as f64;
        self.ttfb.load(Relaxed) as f64 * (-age / HALF_LIFE.as_nanos() as f64).exp2()
    }
}

/// The endpoints of one upstream, for all workers.
#[derive(Debug)]
pub struct Endpoints {
    list: Box<[Arc<Endpoint>]>,
    weights: Box<[u32]>,
    balance: Balance,
    /// What an endpoint goes on with only if it has not changed.
    rule: (Option<config::BreakerRule>, Duration),
}

/// What was chosen.
#[derive(Debug)]
pub struct Choice {
    /// Its place in `urls`.
    pub index: usize,
    /// What its breaker has to be told; none without a breaker.
    pub attempt: Option<Attempt>,
}

/// Endpoints by their places in `urls`, of which there are at most 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places(u64);

impl Places {
    /// With `index` as well.
    pub fn add(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    /// Whether `index` is among them.
    pub fn has(self, index: usize) -> bool {
        self.0 & 1 << index != 0
    }
}

/// Why no endpoint was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEndpoint {
    /// All have been tried.
    Tried,
    /// The breakers of those left are open, the first for so long; zero if nobody knows.
    Open(Duration),
}

/// What an endpoint or upstream of `weight` costs by the lot of `drawn`, so that the cheapest of
/// several is each as often as its weight: the first of exponentially distributed times is as
/// likely as its rate.
pub fn weighted_cost(drawn: &impl Hash, weight: u32) -> f64 {
    -lot(drawn).max(f64::MIN_POSITIVE).ln() / f64::from(weight)
}

/// Between 0 and 1, the same for the same thing.
fn lot(drawn: &impl Hash) -> f64 {
    (hash(drawn) >> 11) as f64 / (1u64 << 53) as f64
}

/// The key of something that is to come to the same endpoint each time.
pub fn key_of(thing: &[u8]) -> u64 {
    hash(&thing)
}

fn hash(thing: &impl Hash) -> u64 {
    // Without a seed of the process: several gateways choose alike.
    let mut hasher = DefaultHasher::new();
    thing.hash(&mut hasher);
    hasher.finish()
}

impl Endpoints {
    /// Those of `upstream`; one that `before` has as well, under the same rules, goes on with what is
    /// known of it.
    pub fn new(upstream: &config::Upstream, before: Option<&Endpoints>) -> Self {
        let rule = upstream.breaker;
        let kept = |url: &Url| {
            let before = before.filter(|before| before.rule == (rule, upstream.resolve))?;
            before.list.iter().find(|endpoint| endpoint.url == *url).cloned()
        };
        let one = |url: &Url| {
            kept(url).unwrap_or_else(|| Endpoint::new(url.clone(), upstream.resolve, rule))
        };
        let weight = |index: usize| upstream.weights.get(index).copied().unwrap_or(1);
        Endpoints {
            list: upstream.urls.iter().map(one).collect(),
            weights: (0..upstream.urls.len()).map(weight).collect(),
            balance: upstream.balance,
            rule: (rule, upstream.resolve),
        }
    }

    /// All of them, in the order of `urls`.
    pub fn list(&self) -> &[Arc<Endpoint>] {
        &self.list
    }

    /// Whether there is one beside those `tried`.
    pub fn has_other(&self, tried: Places) -> bool {
        (0..self.list.len()).any(|index| !tried.has(index))
    }

    /// The endpoint for one attempt of a request, not among those `tried`. `key` keeps what has the
    /// same one together (with **weighted** only); `random` is another number each time.
    ///
    /// # Errors
    /// There is none.
    pub fn choose(
        &self,
        tried: Places,
        key: Option<u64>,
        random: u64,
        now: Moment,
    ) -> Result<Choice, NoEndpoint> {
        let well = self.list.iter().any(|endpoint| endpoint.healthy());
        let mut passed = tried;
        let mut refused = None;
        loop {
            let may = |index: &usize| !passed.has(*index) && (!well || self.list[*index].healthy());
            let left = (0..self.list.len()).filter(may);
            let Some(index) = self.cheapest(left, key, random, now) else { break };
            match self.list[index].breaker.as_ref().map(|breaker| breaker.attempt(now)) {
                None => return Ok(Choice { index, attempt: None }),
                Some(Ok(attempt)) => return Ok(Choice { index, attempt: Some(attempt) }),
                Some(Err(wait)) => {
                    refused = Some(refused.map_or(wait, |other: Duration| other.min(wait)));
                    passed.add(index);
                }
            }
        }
        Err(refused.map_or(NoEndpoint::Tried, NoEndpoint::Open))
    }

    fn cheapest(
        &self,
        left: impl Iterator<Item = usize> + Clone,
        key: Option<u64>,
        random: u64,
        now: Moment,
    ) -> Option<usize> {
        let weight = |index: usize| f64::from(self.weights[index]);
        let load = |index: usize| (self.list[index].live() + 1) as f64 / weight(index);
        // Different for each endpoint.
        let lot = |index: usize| lot(&(random, index));
        let cheapest_by = |cost: &dyn Fn(usize) -> f64| {
            let costs = left.clone().map(|index| (cost(index), index));
            costs.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, index)| index)
        };
        match self.balance {
            Balance::Ordered => left.clone().next(),
            Balance::Weighted => cheapest_by(&|index| {
                let url = &self.list[index].url;
                match key {
                    Some(key) => weighted_cost(&(key, &url.host, url.port), self.weights[index]),
                    None => weighted_cost(&(random, index), self.weights[index]),
                }
            }),
            // A little of the lot, or all would begin with the first.
            Balance::Least => cheapest_by(&|index| load(index) + lot(index) / 1e6),
            Balance::Fastest => {
                let mut two: Vec<_> = left.clone().collect();
                two.sort_by(|a, b| lot(*a).total_cmp(&lot(*b)));
                two.truncate(2);
                let cost = |index: &usize| {
                    (self.list[*index].pace(now).max(1.0) * load(*index), lot(*index))
                };
                two.into_iter().min_by(|a, b| {
                    let (a, b) = (cost(a), cost(b));
                    a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(
        balance: Balance,
        weights: &[u32],
        rule: Option<config::BreakerRule>,
    ) -> Endpoints {
        let mut upstream = config::Upstream::new("main", url(0));
        upstream.urls = (0..weights.len()).map(url).collect();
        upstream.weights = weights.to_vec();
        (upstream.balance, upstream.breaker) = (balance, rule);
        Endpoints::new(&upstream, None)
    }

    fn url(n: usize) -> Url {
        let (host, port) = ("127.0.0.1".to_owned(), 9000 + u16::try_from(n).expect("few"));
        let authority = format!("{host}:{port}");
        Url { scheme: config::Scheme::Http, host, port, authority, base_path: None }
    }

    fn at(millis: u64) -> Moment {
        Moment::default().after(Duration::from_millis(millis))
    }

    fn shares(of: &Endpoints, key: impl Fn(u64) -> Option<u64>) -> Vec<f64> {
        let mut counts = vec![0.0; of.list.len()];
        for n in 0..20_000u64 {
            let chosen = of.choose(Places::default(), key(n), n, at(0)).expect("one");
            counts[chosen.index] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn ordered_takes_the_first_that_was_not_tried() {
        let of = endpoints(Balance::Ordered, &[1, 1, 1], None);
        let mut tried = Places::default();
        for expected in 0..3 {
            let chosen = of.choose(tried, None, 7, at(0)).expect("one is left");
            assert_eq!(chosen.index, expected);
            tried.add(expected);
        }
        assert_eq!(of.choose(tried, None, 7, at(0)).expect_err("none is left"), NoEndpoint::Tried);
    }

    #[test]
    fn weighted_shares_are_the_weights_with_and_without_keys() {
        let of = endpoints(Balance::Weighted, &[95, 5], None);
        for key in [|_| None, |n| Some(hash(&n))] {
            let shares = shares(&of, key);
            assert!((shares[1] - 0.05).abs() < 0.01, "{shares:?}");
        }
    }

    #[test]
    fn a_key_stays_where_it_is_and_moves_only_if_its_endpoint_is_gone() {
        let of = endpoints(Balance::Weighted, &[1, 1, 1, 1], None);
        for key in (0..200).map(|n| hash(&n)) {
            let home = of.choose(Places::default(), Some(key), 1, at(0)).expect("one").index;
            for other in 0..4 {
                let mut tried = Places::default();
                tried.add(other);
                let now = of.choose(tried, Some(key), 2, at(0)).expect("one").index;
                assert!(other == home || now == home);
                assert_ne!(now, other);
            }
        }
    }

    #[test]
    fn least_takes_the_one_with_the_fewest_streams_for_its_weight() {
        let of = endpoints(Balance::Least, &[1, 3], None);
        for n in 0..400 {
            let chosen = of.choose(Places::default(), None, n, at(0)).expect("one");
            of.list[chosen.index].began();
        }
        assert_eq!([of.list[0].live(), of.list[1].live()], [100, 300]);
        (0..100).for_each(|_| of.list[0].ended());
        assert_eq!(of.choose(Places::default(), None, 1, at(0)).expect("one").index, 0);
        // Equal ones share the first requests.
        let shares = shares(&endpoints(Balance::Least, &[1, 1], None), |_| None);
        assert!((shares[0] - 0.5).abs() < 0.02, "{shares:?}");
    }

    #[test]
    fn fastest_prefers_the_quick_one_and_tries_a_slow_one_again_when_its_time_has_faded() {
        let of = endpoints(Balance::Fastest, &[1, 1, 1], None);
        let chosen_at = |millis| {
            let mut counts = [0; 3];
            for n in 0..3000 {
                let chosen = of.choose(Places::default(), None, n, at(millis)).expect("one");
                counts[chosen.index] += 1;
            }
            counts
        };
        for _ in 0..20 {
            of.list[0].measured(Duration::from_millis(2000), at(0));
            of.list[1].measured(Duration::from_millis(100), at(0));
            of.list[2].measured(Duration::from_millis(100), at(0));
        }
        let counts = chosen_at(0);
        assert_eq!(counts[0], 0, "it loses against either: {counts:?}");
        assert!((1200..1800).contains(&counts[1]), "{counts:?}");
        // The others are measured again, it is not: 2 s have faded to 60 ms.
        of.list[1].measured(Duration::from_millis(100), at(50_000));
        of.list[2].measured(Duration::from_millis(100), at(50_000));
        assert!(chosen_at(50_000)[0] > 1000);
    }

    const RULE: config::BreakerRule = config::BreakerRule {
        window: Duration::from_secs(10),
        requests: 100,
        share: 1.0,
        consecutive: 1,
        slow: None,
        open: Duration::from_secs(4),
        probes: 1,
    };

    fn fails(of: &Endpoints, index: usize, millis: u64) {
        let breaker = of.list[index].breaker().expect("it has one");
        breaker.attempt(at(millis)).expect("closed").failed(at(millis));
    }

    #[test]
    fn an_open_breaker_is_passed_by_and_all_open_ones_tell_how_long() {
        let of = endpoints(Balance::Ordered, &[1, 1], Some(RULE));
        fails(&of, 0, 1000);
        let chosen = of.choose(Places::default(), None, 0, at(2000)).expect("the other");
        assert_eq!(chosen.index, 1);
        drop(chosen);
        fails(&of, 1, 2000);
        let refused = of.choose(Places::default(), None, 0, at(2000)).expect_err("both are open");
        assert_eq!(refused, NoEndpoint::Open(Duration::from_secs(3)));
        // Half-open: one probe, the next goes elsewhere or nowhere.
        let probe = of.choose(Places::default(), None, 0, at(5000)).expect("a probe");
        assert_eq!(probe.index, 0);
        let refused = of.choose(Places::default(), None, 0, at(5000)).expect_err("probed");
        assert_eq!(refused, NoEndpoint::Open(Duration::ZERO));
    }

    #[test]
    fn health_checks_are_believed_unless_they_leave_nothing() {
        let of = endpoints(Balance::Ordered, &[1, 1], None);
        of.list[0].set_healthy(false);
        assert_eq!(of.choose(Places::default(), None, 0, at(0)).expect("one").index, 1);
        let mut tried = Places::default();
        tried.add(1);
        assert_eq!(of.choose(tried, None, 0, at(0)).expect_err("sick"), NoEndpoint::Tried);
        of.list[1].set_healthy(false);
        assert_eq!(of.choose(Places::default(), None, 0, at(0)).expect("one").index, 0);
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_endpoints_that_stay() {
        let mut upstream = config::Upstream::new("main", url(1));
        let before = Endpoints::new(&upstream, None);
        before.list[0].began();
        upstream.urls.insert(0, url(0));
        let after = Endpoints::new(&upstream, Some(&before));
        assert_eq!([after.list[0].live(), after.list[1].live()], [0, 1]);
        upstream.breaker = Some(RULE);
        assert_eq!(Endpoints::new(&upstream, Some(&before)).list[1].live(), 0);
    }
}
