//! Whether another attempt is made for a request, and when.
//!
//! What was never sent may always be sent again. What the upstream answered may be asked for again
//! if the rule names it: a status, an event stream that begins with an error, one without events.
//! What may have run without an answer (the connection broke, or nothing came in time) is asked for
//! again only on a route that says it is safe (`repeatable`), or with a method that is by its meaning
//! (RFC 9110, 9.2.2) where there is a rule; and nothing is, once a byte has gone on to the client.
//!
//! Attempts are bounded for each request, and for all together: retries may be a share of the requests
//! and no more, so that an upstream in trouble gets little on top (a token bucket that requests
//! fill, of [`BURST`] tokens).
//!
//! Pauses double with each attempt and are drawn by lot between zero and that ("full jitter"), so
//! that those who failed together do not come back together.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::config::RetryRule;
use crate::error::Kind;
use crate::telemetry::cells::RetryReason;

/// Retries that may be made at once, after a time without any.
pub const BURST: u64 = 10;

/// A token in the parts that requests bring.
const TOKEN: u64 = 1_000_000;

/// What an upstream's requests have left for retries; all workers share it.
#[derive(Debug)]
pub struct Budget {
    parts: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { parts: AtomicU64::new(BURST * TOKEN) }
    }
}

impl Budget {
    /// A request has come.
    pub fn request(&self, rule: &RetryRule) {
        let share = (rule.budget * TOKEN as f64) as u64;
        let filled = |parts: u64| Some((parts + share).min(BURST * TOKEN));
        let _ = self.parts.fetch_update(Relaxed, Relaxed, filled);
    }

    /// Takes what one retry costs, if it is there.
    pub fn retry(&self) -> bool {
        let taken = |parts: u64| parts.checked_sub(TOKEN);
        self.parts.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }
}

/// Why the answer to an attempt, if there was one, is not what the client should get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There was none, for this reason.
    Failed(Kind),
    /// Its status.
    Status(StatusCode),
    /// Its first event is an error.
    ErrorFirst,
    /// It ended without an event.
    Empty,
}

/// What may be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// What another attempt would be counted as.
    pub reason: RetryReason,
    /// Whether the upstream never saw the request.
    pub unsent: bool,
}

impl Trouble {
    /// Whether another attempt may be made, if there is one left. `safe`: the route says that its
    /// requests may be run twice.
    pub fn remedy(self, rule: &RetryRule, method: &Method, safe: bool) -> Option<Remedy> {
        let asked = |reason| Some(Remedy { reason, unsent: false });
        match self {
            Trouble::Failed(Kind::Refused) => {
                Some(Remedy { reason: RetryReason::Unsent, unsent: true })
            }
            Trouble::Failed(kind) if kind.never_sent() => {
                Some(Remedy { reason: RetryReason::Connect, unsent: true })
            }
            Trouble::Failed(kind) => {
                let reason = match kind {
                    Kind::UpstreamGone => RetryReason::Gone,
                    Kind::FirstByte => RetryReason::Timeout,
                    _ => return None,
                };
                if repeatable(rule, method, safe) { asked(reason) } else { None }
            }
            Trouble::Status(status) if rule.statuses.has(status.as_u16()) => {
                asked(RetryReason::Status)
            }
            Trouble::ErrorFirst if rule.first_event => asked(RetryReason::ErrorFirst),
            Trouble::Empty if rule.first_event => asked(RetryReason::Empty),
            _ => None,
        }
    }

    /// Whether it speaks against the endpoint, for its breaker. That a key has had its share (429)
    /// or a request is wrong (4xx) does not.
    pub fn speaks_against(self) -> bool {
        match self {
            Trouble::Failed(kind) => {
                kind.never_sent()
                    || matches!(
                        kind,
                        Kind::UpstreamGone
                            | Kind::UpstreamProtocol
                            | Kind::FirstByte
                            | Kind::Refused
                    )
            }
            Trouble::Status(status) => {
                status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
            }
            Trouble::ErrorFirst | Trouble::Empty => true,
        }
    }
}

/// Whether a request may be run twice: its route says so, or its method and there is a rule at all.
pub fn repeatable(rule: &RetryRule, method: &Method, safe: bool) -> bool {
    safe || method.is_idempotent() && rule.replays()
}

/// The pause before attempt `next` (2 is the first that has one), by `random`.
pub fn pause(rule: &RetryRule, next: u32, random: u64) -> Duration {
    let doubled = rule.backoff.saturating_mul(1 << next.saturating_sub(2).min(30));
    let most = doubled.min(rule.backoff_max);
    most.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// What the upstream asks to wait: `retry-after-ms`, else `retry-after` in seconds or as a date.
pub fn retry_after(headers: &HeaderMap, now: std::time::SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str, each: f64| {
        let number: f64 = text(name)?.parse().ok()?;
        Duration::try_from_secs_f64(number * each).ok()
    };
    number("retry-after-ms", 0.001).or_else(|| number("retry-after", 1.0)).or_else(|| {
        let date = httpdate::parse_http_date(text("retry-after")?).ok()?;
        Some(date.duration_since(now).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    fn rule() -> RetryRule {
        let statuses = [429, 500, 503].into_iter().collect();
        RetryRule { statuses, first_event: true, ..RetryRule::default() }
    }

    #[test]
    fn retries_are_a_share_of_requests_after_a_burst() {
        let (budget, rule) = (Budget::default(), RetryRule { budget: 0.1, ..rule() });
        assert_eq!((0..20).filter(|_| budget.retry()).count() as u64, BURST);
        let retries = (0..1000).filter(|_| {
            budget.request(&rule);
            budget.retry()
        });
        assert_eq!(retries.count(), 100);
        (0..10_000).for_each(|_| budget.request(&rule));
        assert_eq!((0..20).filter(|_| budget.retry()).count() as u64, BURST, "no more is saved");
        let none = RetryRule { budget: 0.0, ..rule };
        budget.request(&none);
        assert!(!budget.retry());
    }

    #[test]
    fn what_may_have_run_is_asked_for_again_only_where_that_is_safe() {
        let rule = rule();
        let silent = RetryRule::default();
        for kind in [Kind::UpstreamGone, Kind::FirstByte] {
            let of = |rule, method, safe| Trouble::Failed(kind).remedy(rule, method, safe);
            assert_eq!(of(&rule, &Method::POST, false), None, "{kind:?}");
            assert!(of(&rule, &Method::POST, true).is_some(), "{kind:?}");
            assert!(of(&rule, &Method::GET, false).is_some(), "{kind:?}");
            assert_eq!(of(&silent, &Method::GET, false), None, "{kind:?}: nobody asked for it");
        }
        for kind in [Kind::Dns, Kind::Connect, Kind::ConnectTimeout, Kind::Tls, Kind::Refused] {
            let remedy = Trouble::Failed(kind).remedy(&rule, &Method::POST, false);
            assert!(remedy.is_some_and(|remedy| remedy.unsent), "{kind:?}");
        }
        for kind in [Kind::BadRequest, Kind::Draining, Kind::UpstreamProtocol, Kind::Total] {
            assert_eq!(Trouble::Failed(kind).remedy(&rule, &Method::GET, true), None, "{kind:?}");
        }
    }

    #[test]
    fn answers_are_asked_for_again_only_if_the_rule_names_them() {
        let named = rule();
        let silent = RetryRule::default();
        let status = |status| Trouble::Status(StatusCode::from_u16(status).expect("a status"));
        for (trouble, expected) in [
            (status(429), true),
            (status(503), true),
            (status(502), false),
            (status(400), false),
            (Trouble::ErrorFirst, true),
            (Trouble::Empty, true),
        ] {
            let remedy = trouble.remedy(&named, &Method::POST, false);
            assert_eq!(remedy.is_some(), expected, "{trouble:?}");
            assert!(remedy.is_none_or(|remedy| !remedy.unsent));
            assert_eq!(trouble.remedy(&silent, &Method::POST, true), None);
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_are_drawn_from_zero_on() {
        let rule = RetryRule {
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_millis(350),
            ..rule()
        };
        for (next, most) in [(2, 100), (3, 200), (4, 350), (9, 350), (u32::MAX, 350)] {
            assert_eq!(pause(&rule, next, 0), Duration::ZERO);
            let longest = pause(&rule, next, u64::MAX);
            let most = Duration::from_millis(most);
            assert!(longest <= most && longest > most.mul_f64(0.999), "{next}: {longest:?}");
        }
    }

    #[test]
    fn the_upstreams_own_wait_is_read_in_all_its_forms() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_700);
        for (name, value, expected) in [
            ("retry-after", "3", Some(3000)),
            ("retry-after", "0.25", Some(250)),
            ("retry-after-ms", "20", Some(20)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", Some(77_000)),
            ("retry-after", "Sun, 06 Nov 1904 08:49:37 GMT", None),
            ("retry-after", "-1", None),
            ("retry-after", "soon", None),
            ("x", "1", None),
        ] {
            let headers = HeaderMap::from_iter([(
                name.parse::<http::HeaderName>().expect("a name"),
                value.parse().expect("a value"),
            )]);
            let wait = retry_after(&headers, now);
            assert_eq!(wait, expected.map(Duration::from_millis), "{name}: {value}");
        }
        let past = HeaderMap::from_iter([(
            http::header::RETRY_AFTER,
            "Sun, 06 Nov 1994 08:49:37 GMT".parse().expect("a value"),
        )]);
        assert_eq!(retry_after(&past, SystemTime::now()), Some(Duration::ZERO));
    }
}
