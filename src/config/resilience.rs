//! `[upstream.retry]`, `[upstream.breaker]`, `[upstream.health]` and `balance`: what is done about
//! upstreams that fail. What the values mean is told where they are used: `upstream::retry`,
//! `upstream::breaker`, `upstream::health` and `upstream::balance`.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;

use super::read::{Reading, Section};

/// How requests are spread over an upstream's `urls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The first that can be asked.
    Ordered,
    /// By lot, as likely as its weight.
    Weighted,
    /// The one with the fewest streams for its weight.
    Least,
    /// The one with the shorter recent time to first byte of two.
    Fastest,
}

impl Balance {
    pub(super) const ALL: [(&'static str, Balance); 4] = [
        ("ordered", Balance::Ordered),
        ("weighted", Balance::Weighted),
        ("least", Balance::Least),
        ("fastest", Balance::Fastest),
    ];
}

/// What keeps requests together, with [`Balance::Weighted`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// Nothing.
    Off,
    /// Their tenant.
    Tenant,
    /// The value of this header.
    Header(HeaderName),
}

pub(super) fn read_sticky(r: &mut Reading<'_>, s: &Section<'_>) -> Sticky {
    let Some((place, text)) = r.text(s, "sticky") else { return Sticky::Off };
    let header = text.strip_prefix("header:").and_then(|name| name.trim().parse().ok());
    match (text, header) {
        ("off", _) => Sticky::Off,
        ("tenant", _) => Sticky::Tenant,
        (_, Some(name)) => Sticky::Header(name),
        (_, None) => {
            r.fault(&place, "must be \"off\", \"tenant\" or a header such as \"header:x-session\"");
            Sticky::Off
        }
    }
}

/// When another attempt is made for a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryRule {
    /// Attempts for one request in all; 1 = no other.
    pub attempts: u32,
    /// Statuses that are not passed on while another attempt may be made.
    pub statuses: Statuses,
    /// Whether an event stream that begins with an error, or ends without any event, is such an
    /// answer as well.
    pub first_event: bool,
    /// Most further attempts, as a share of the requests.
    pub budget: f64,
    /// Longest pause before the second attempt; twice as long before each further one.
    pub backoff: Duration,
    /// Longest pause of all, also of one that the upstream asks for.
    pub backoff_max: Duration,
}

impl Default for RetryRule {
    /// Without the section: one more attempt, and only for what was never sent.
    fn default() -> Self {
        RetryRule {
            attempts: 2,
            statuses: Statuses::default(),
            first_event: false,
            budget: 0.2,
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(2),
        }
    }
}

impl RetryRule {
    /// Whether a request may have to be sent again after it was read.
    pub fn replays(&self) -> bool {
        self.attempts > 1 && self.names_answers()
    }

    /// Whether it names answers that are not passed on while there is somebody else to ask.
    pub fn names_answers(&self) -> bool {
        self.first_event || !self.statuses.is_empty()
    }
}

/// A set of HTTP statuses from 400 to 599.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Statuses([u64; 4]);

impl Statuses {
    /// What an upstream that is overloaded, or has a server in trouble, answers with.
    pub const USUAL: [u16; 5] = [429, 500, 502, 503, 504];

    /// Whether `status` is one of them.
    pub fn has(self, status: u16) -> bool {
        let at = usize::from(status.wrapping_sub(400));
        at < 200 && self.0[at / 64] & 1 << (at % 64) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Statuses::default()
    }
}

impl FromIterator<u16> for Statuses {
    fn from_iter<T: IntoIterator<Item = u16>>(statuses: T) -> Self {
        let mut set = Statuses::default();
        for at in statuses.into_iter().map(|status| usize::from(status.wrapping_sub(400))) {
            if at < 200 {
                set.0[at / 64] |= 1 << (at % 64);
            }
        }
        set
    }
}

impl fmt::Debug for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((400..600).filter(|status| self.has(*status))).finish()
    }
}

/// When an endpoint is left alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerRule {
    /// Time over which outcomes are counted.
    pub window: Duration,
    /// Fewer attempts in the window than this say nothing.
    pub requests: u32,
    /// Share of them that failed, 0 to 1, from which on it opens.
    pub share: f64,
    /// Failures in a row from which on it opens.
    pub consecutive: u32,
    /// A first byte that takes longer is a failure; `None` = none is too slow.
    pub slow: Option<Duration>,
    /// How long it is open the first time.
    pub open: Duration,
    /// Requests that probe whether it may close again.
    pub probes: u32,
}

impl Default for BreakerRule {
    fn default() -> Self {
        BreakerRule {
            window: Duration::from_secs(10),
            requests: 20,
            share: 0.5,
            consecutive: 5,
            slow: None,
            open: Duration::from_secs(5),
            probes: 1,
        }
    }
}

/// How endpoints are asked how they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthRule {
    /// The target of the `GET`, below the URL's own path.
    pub path: String,
    /// Time from one check to the next.
    pub interval: Duration,
    /// Longest time of one, connecting included.
    pub timeout: Duration,
    /// The status of a healthy one.
    pub status: u16,
    /// Checks in a row that change the verdict.
    pub changes: u32,
}

const TIME: RangeInclusive<Duration> = Duration::from_millis(1)..=super::LONGEST;

pub(super) fn read_retry(r: &mut Reading<'_>, upstream: &Section<'_>) -> RetryRule {
    let s = r.section(upstream, "retry");
    let d = RetryRule::default();
    if !s.present() {
        return d;
    }
    let statuses = r.integers(&s, "statuses", 200, 400..=599);
    let first_event = r.flag(&s, "first_event", true);
    RetryRule {
        attempts: r.number(&s, "attempts", 1..=10, d.attempts),
        statuses: match statuses {
            Some(statuses) => statuses.iter().map(|(_, status)| *status as u16).collect(),
            None => Statuses::USUAL.into_iter().collect(),
        },
        first_event,
        budget: r.percent(&s, "budget", d.budget),
        backoff: r.duration(&s, "backoff", &TIME, d.backoff),
        backoff_max: r.duration(&s, "backoff_max", &TIME, d.backoff_max),
    }
}

pub(super) fn read_breaker(r: &mut Reading<'_>, upstream: &Section<'_>) -> Option<BreakerRule> {
    let s = r.section(upstream, "breaker");
    let d = BreakerRule::default();
    s.present().then(|| BreakerRule {
        window: r.duration(&s, "window", &TIME, d.window),
        requests: r.number(&s, "requests", 1..=1_000_000, d.requests),
        share: r.percent(&s, "share", d.share),
        consecutive: r.number(&s, "consecutive", 1..=1_000_000, d.consecutive),
        slow: r.duration_or_off(&s, "slow", &TIME, d.slow),
        open: r.duration(&s, "open", &TIME, d.open),
        probes: r.number(&s, "probes", 1..=1000, d.probes),
    })
}

pub(super) fn read_health(r: &mut Reading<'_>, upstream: &Section<'_>) -> Option<HealthRule> {
    let s = r.section(upstream, "health");
    if !s.present() {
        return None;
    }
    let path = match r.text(&s, "path") {
        Some((place, path)) if !path.starts_with('/') || path.parse::<http::Uri>().is_err() => {
            r.fault(&place, "must be a path such as \"/health\"");
            "/"
        }
        Some((_, path)) => path,
        None => "/health",
    };
    let interval = r.duration(&s, "interval", &TIME, Duration::from_secs(10));
    Some(HealthRule {
        path: path.to_owned(),
        interval,
        timeout: r.duration(&s, "timeout", &TIME, Duration::from_secs(2)),
        status: r.number(&s, "status", 100..=599, 200),
        changes: r.number(&s, "changes", 1..=100, 2),
    })
}

/// As many as there are `of`, of which there are `count`; or none.
pub(super) fn read_weights(
    r: &mut Reading<'_>,
    s: &Section<'_>,
    count: usize,
    of: &str,
) -> Vec<u32> {
    let Some(weights) = r.integers(s, "weights", super::upstream::URLS, 1..=1_000_000) else {
        return Vec::new();
    };
    if weights.len() != count
        && let Some((place, _)) = r.field(s, "weights")
    {
        let text = format!("has {} entries for {count} {of}; write one for each", weights.len());
        r.fault(&place, text);
    }
    weights.iter().map(|(_, weight)| u32::try_from(*weight).unwrap_or(u32::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_statuses_has_what_was_put_in() {
        let set: Statuses = [399, 400, 429, 463, 464, 599, 600, 0].into_iter().collect();
        let has: Vec<_> = (0..=u16::MAX).filter(|status| set.has(*status)).collect();
        assert_eq!(has, [400, 429, 463, 464, 599]);
        assert!(!set.is_empty() && Statuses::default().is_empty());
        assert_eq!(format!("{set:?}"), "{400, 429, 463, 464, 599}");
    }
}
