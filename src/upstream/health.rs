//! Asking an endpoint, beside all traffic, how it is.
//!
//! A check is a `GET` with the upstream's own headers and key; the status alone counts, and it must
//! come within `timeout`. The verdict changes after `changes` checks in a row that say otherwise. It
//! is "well" before the first: nobody waits for that.
//!
//! A check has connections of its own and is in no metric of the upstream's: neither its streams nor
//! its retries nor its breaker know of it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};

use crate::admission::permit::Permits;
use crate::clock::Clock;
use crate::config::{self, HealthRule};
use crate::limits;
use crate::telemetry::{Cells, Shape, trace};
use crate::upstream::balance::Endpoint;
use crate::upstream::send::{Outgoing, prepare, send};
use crate::upstream::upload::Upload;
use crate::upstream::{Known, Upstream};
use crate::wire::wheel::Wheel;

/// Checks `endpoint` of the upstream `config`, of which `known` is known, until dropped.
pub async fn watch(
    endpoint: Arc<Endpoint>,
    config: config::Upstream,
    known: Arc<Known>,
    rule: HealthRule,
) {
    let checker = Checker::new(&endpoint, config, &known, &rule);
    let mut row = Row { well: endpoint.healthy(), against: 0, changes: rule.changes };
    loop {
        let said = tokio::time::timeout(rule.timeout, checker.ask(rule.status)).await;
        let said = said.unwrap_or_else(|_| Err(format!("no answer within {:?}", rule.timeout)));
        if row.changes(said.is_ok()) {
            endpoint.set_healthy(row.well);
            match said {
                Ok(()) => tracing::info!(url = %endpoint.url, "it is well again"),
                Err(reason) => tracing::warn!(url = %endpoint.url, reason, "it is not well"),
            }
        }
        tokio::time::sleep(spread(rule.interval, trace::random())).await;
    }
}

/// Within a tenth of `interval`, so that many checks do not fall together.
fn spread(interval: Duration, random: u64) -> Duration {
    let part = (random >> 11) as f64 / (1u64 << 53) as f64;
    interval.mul_f64(0.95 + part / 10.0)
}

/// Verdicts that count only in a row.
struct Row {
    well: bool,
    against: u32,
    changes: u32,
}

impl Row {
    /// Takes one check's word; whether the verdict is another one now.
    fn changes(&mut self, well: bool) -> bool {
        self.against = if well == self.well { 0 } else { self.against + 1 };
        let changes = self.against >= self.changes;
        if changes {
            (self.well, self.against) = (well, 0);
        }
        changes
    }
}

/// What asks one endpoint.
struct Checker {
    upstream: Rc<Upstream>,
    path: Uri,
    wheel: Wheel,
}

impl Checker {
    fn new(
        endpoint: &Endpoint,
        mut config: config::Upstream,
        known: &Known,
        rule: &HealthRule,
    ) -> Checker {
        config.urls = vec![endpoint.url.clone()];
        (config.weights, config.breaker) = (Vec::new(), None);
        let own = Known::new(&config, &known.tls, None);
        let shape = Shape { upstreams: vec![config.name.clone()], ..Shape::default() };
        let (files, cells) = (Permits::new(limits::HEALTH_FILES), Arc::new(Cells::new(&shape)));
        let upstream = Upstream::new(0, config, own, None, &files, &Clock::System, &cells);
        let path = rule.path.parse().expect("the configuration has checked it");
        Checker { upstream, path, wheel: Wheel::new() }
    }

    async fn ask(&self, status: u16) -> Result<(), String> {
        let mut outgoing = Outgoing {
            method: Method::GET,
            uri: self.path.clone(),
            literal_prefix: "".into(),
            headers: HeaderMap::new(),
            identity: true,
        };
        let body = Upload::empty(&self.wheel);
        prepare(&self.upstream, &mut outgoing, &body);
        let now = Clock::System.now();
        self.upstream.known.keys.look(now);
        self.upstream.known.keys.put(&mut outgoing.headers, now);
        let sent = send(&self.upstream, 0, &outgoing, Box::new(body)).await;
        let mut answer = sent.map_err(|unanswered| unanswered.failure().to_string())?;
        // To its end, for the connection to be used again.
        let mut scratch = [0; 4096];
        let mut left = limits::ERROR_BODY;
        while left > 0 {
            match std::future::poll_fn(|cx| answer.body.poll_data(cx, &mut scratch)).await {
                Some(Ok(data)) => left = left.saturating_sub(data.bytes(&scratch).len()),
                Some(Err(_)) | None => break,
            }
        }
        match answer.head.status.as_u16() {
            said if said == status => Ok(()),
            said => Err(format!("it answered {said}, not {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_in_a_row_change_the_verdict() {
        let mut row = Row { well: true, against: 0, changes: 3 };
        let said = [false, false, true, false, false, false, true, true, false, true, true, true];
        let changed: Vec<_> = said.into_iter().map(|well| row.changes(well)).collect();
        let at: Vec<_> = (0..changed.len()).filter(|at| changed[*at]).collect();
        assert_eq!(at, [5, 11]);
        assert!(row.well);
    }

    #[test]
    fn checks_are_spread_by_a_tenth() {
        let interval = Duration::from_secs(10);
        assert_eq!(spread(interval, 0), Duration::from_millis(9_500));
        assert!(spread(interval, u64::MAX) <= Duration::from_millis(10_500));
    }
}
