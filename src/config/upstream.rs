//! `[[upstream]]`: an API that requests are sent to.
//!
//! Invariant: names are unique and fit for a metric label. Debug shows the names of headers and
//! query parameters only, since their values may be keys.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderMap;

use super::credential::{self, Credential};
use super::files;
use super::headers;
use super::pool::{self, PoolRule};
use super::read::{Place, Reading, Section};
use super::resilience::{self, Balance, BreakerRule, HealthRule, RetryRule, Sticky};
use super::units::quoted;
use super::url::{self, Url};
use crate::limits::UPSTREAMS;

/// One API and how it is reached.
#[derive(Clone, PartialEq)]
pub struct Upstream {
    /// Unique name, a metric label: 1 to 64 of letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Addresses, at least one.
    pub urls: Vec<Url>,
    /// Weights of `urls`, as many; all 1 if empty.
    pub weights: Vec<u32>,
    /// Which of `urls` a request goes to.
    pub balance: Balance,
    /// Which requests go to the same one, as long as it is there.
    pub sticky: Sticky,
    /// When another attempt is made.
    pub retry: RetryRule,
    /// When one of `urls` is left alone; `None` = never.
    pub breaker: Option<BreakerRule>,
    /// How `urls` are asked how they are; `None` = not at all.
    pub health: Option<HealthRule>,
    /// HTTP version.
    pub http: HttpVersion,
    /// PEM roots that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// Replace whatever credential the client sent: one at a time, the next one while one is rate
    /// limited. Empty = the client's own is forwarded.
    pub credentials: Vec<Credential>,
    /// Added to every request, replacing the client's headers of the same names.
    pub headers: HeaderMap,
    /// Appended to every request's query: percent-encoded `a=b&c=d`, or empty.
    pub query: String,
    /// Longest time for name look-up, TCP and TLS together, per address.
    pub connect: Duration,
    /// How long a host's addresses count before its name is resolved again.
    pub resolve: Duration,
    /// Requests in flight to this upstream; 0 = as many as `limits.streams`.
    pub max_streams: usize,
    /// Requests that may wait for a place among `max_streams`; 0 = none waits.
    pub queue: usize,
    /// Longest wait in the queue.
    pub queue_wait: Duration,
    /// How connections to it are kept.
    pub pool: PoolRule,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = self.query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
        f.debug_struct("Upstream")
            .field("name", &self.name)
            .field("urls", &self.urls)
            .field("weights", &self.weights)
            .field("balance", &self.balance)
            .field("sticky", &self.sticky)
            .field("retry", &self.retry)
            .field("breaker", &self.breaker)
            .field("health", &self.health)
            .field("http", &self.http)
            .field("ca", &self.ca)
            .field("credentials", &self.credentials)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("query", &query.collect::<Vec<_>>())
            .field("connect", &self.connect)
            .field("resolve", &self.resolve)
            .field("max_streams", &self.max_streams)
            .field("queue", &self.queue)
            .field("queue_wait", &self.queue_wait)
            .field("pool", &self.pool)
            .finish()
    }
}

impl Upstream {
    /// An upstream of this name and address, everything else at its default.
    pub fn new(name: impl Into<String>, url: Url) -> Self {
        Upstream { name: name.into(), urls: vec![url], ..Upstream::blank() }
    }

    fn blank() -> Self {
        Upstream {
            name: "main".to_owned(),
            urls: Vec::new(),
            weights: Vec::new(),
            balance: Balance::Ordered,
            sticky: Sticky::Off,
            retry: RetryRule::default(),
            breaker: None,
            health: None,
            http: HttpVersion::Auto,
            ca: None,
            credentials: Vec::new(),
            headers: HeaderMap::new(),
            query: String::new(),
            connect: Duration::from_secs(3),
            resolve: Duration::from_secs(30),
            max_streams: 0,
            queue: 1000,
            queue_wait: Duration::from_secs(5),
            pool: PoolRule::default(),
        }
    }
}

/// Which HTTP version an upstream is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// What ALPN chooses; HTTP/1.1 on cleartext.
    Auto,
    /// HTTP/1.1 only.
    H1,
    /// HTTP/2 only; on cleartext with prior knowledge.
    H2,
}

pub(super) const URLS: usize = 64;
const MANY: u64 = 10_000_000;
const TIME: RangeInclusive<Duration> = Duration::from_millis(1)..=super::LONGEST;

pub(super) fn read(r: &mut Reading<'_>, root: &Section<'_>) -> Vec<Upstream> {
    let sections = r.sections(root, "upstream");
    if r.lacks(root, "upstream") {
        let nowhere = r.place("upstream");
        r.fault(&nowhere, "there is none; write [[upstream]] and urls = [\"https://…\"] below it");
    }
    if sections.len() > UPSTREAMS {
        let place = r.place("upstream");
        r.fault(&place, format!("there are more than {UPSTREAMS}"));
    }
    let mut upstreams = Vec::new();
    for section in sections.iter().take(UPSTREAMS) {
        let upstream = read_one(r, section, &upstreams);
        upstreams.push(upstream);
    }
    upstreams
}

fn read_one(r: &mut Reading<'_>, s: &Section<'_>, before: &[Upstream]) -> Upstream {
    let d = Upstream::blank();
    let versions = [("auto", HttpVersion::Auto), ("1", HttpVersion::H1), ("2", HttpVersion::H2)];
    let urls = read_urls(r, s);
    Upstream {
        name: read_name(r, s, d.name, before),
        weights: resilience::read_weights(r, s, urls.len(), "urls"),
        urls,
        balance: r.choice(s, "balance", &Balance::ALL, d.balance),
        sticky: resilience::read_sticky(r, s),
        retry: resilience::read_retry(r, s),
        breaker: resilience::read_breaker(r, s),
        health: resilience::read_health(r, s),
        http: r.choice(s, "http", &versions, d.http),
        ca: read_ca(r, s),
        credentials: credential::read(r, s),
        headers: headers::read(r, s),
        query: headers::read_query(r, s),
        connect: r.duration(s, "connect", &TIME, d.connect),
        resolve: r.duration(s, "resolve", &TIME, d.resolve),
        max_streams: r.number(s, "max_streams", 0..=MANY, d.max_streams),
        queue: r.number(s, "queue", 0..=MANY, d.queue),
        queue_wait: r.duration(s, "queue_wait", &TIME, d.queue_wait),
        pool: pool::read(r, s),
    }
}

fn read_name(r: &mut Reading<'_>, s: &Section<'_>, default: String, before: &[Upstream]) -> String {
    let (place, name) = match r.text(s, "name") {
        Some((place, name)) => (place, name.to_owned()),
        None => (s.place.clone(), default),
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        let text = format!(
            "{} cannot be a name; write 1 to 64 letters, digits, dots, hyphens or underscores",
            quoted(&name)
        );
        r.fault(&place, text);
    }
    if let Some(n) = before.iter().position(|other| other.name == name) {
        r.fault(
            &place,
            format!("the name {} is taken by upstream[{n}]; choose another", quoted(&name)),
        );
    }
    name
}

fn read_urls(r: &mut Reading<'_>, s: &Section<'_>) -> Vec<Url> {
    let Some(texts) = r.texts(s, "urls", URLS) else {
        if r.field(s, "urls").is_none() {
            r.fault(&s.place.below("urls"), "is missing; write urls = [\"https://…\"]");
        }
        return Vec::new();
    };
    let mut urls: Vec<Url> = Vec::new();
    for (place, text) in &texts {
        match url::parse(text) {
            Ok(url) if urls.contains(&url) => r.fault(place, format!("{url} is listed twice")),
            Ok(url) => urls.push(url),
            Err(reason) => r.fault(place, reason),
        }
    }
    let place = r.place(&s.place.below("urls").key);
    if r.lacks(s, "urls") {
        r.fault(&place, "is empty; write urls = [\"https://…\"]");
    }
    urls
}

fn read_ca(r: &mut Reading<'_>, s: &Section<'_>) -> Option<PathBuf> {
    let (place, path): (Place, PathBuf) = r.path(s, "ca")?;
    if let Err(reason) = files::certificates(&path) {
        r.fault(&place, format!("{} {reason}", quoted(&path.display().to_string())));
    }
    Some(path)
}
