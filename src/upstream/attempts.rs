//! One request's attempts: where each goes, what came of it, whether there is another.
//!
//! [`answer`] is what the gateway waits for. Each attempt goes to an endpoint of its own choice
//! (`balance`), and what it comes to is told to that endpoint's breaker. Connecting that fails goes
//! on with the next endpoint at once; whatever else may be tried again is bounded by `retry`, and
//! waits where it would meet the same endpoint.
//!
//! Invariant: nothing of an answer has gone on to the client when another attempt is made, since
//! the answer is given out only by the last. What the client gets then is that last attempt's answer
//! or failure, whatever it is.

use std::collections::VecDeque;
use std::future::Future;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::clock::{Clock, Moment};
use crate::config::{Family, RetryRule};
use crate::error::{Failure, Kind, Quota};
use crate::limits;
use crate::telemetry::cells::RetryReason;
use crate::telemetry::trace;
use crate::upstream::Upstream;
use crate::upstream::balance::{Endpoint, NoEndpoint, Places};
use crate::upstream::breaker::Attempt;
use crate::upstream::retry::{self, Remedy, Trouble};
use crate::upstream::send::{Answer, Outgoing, Unanswered, prepare, send};
use crate::upstream::upload::Upload;
use crate::wire::head;
use crate::wire::sse::Tracker;
use crate::wire::wheel::Wheel;

/// What an attempt needs to know of its request.
pub struct Bounds {
    /// Time.
    pub clock: Clock,
    /// The worker's wheel.
    pub wheel: Wheel,
    /// Longest wait for a response head.
    pub first_byte: Duration,
    /// When its client stops waiting, if that is known: no pause goes beyond.
    pub deadline: Option<Moment>,
    /// Its route says that it may be run twice.
    pub safe: bool,
    /// What it has in common with requests that should go to the same endpoint.
    pub key: Option<u64>,
    /// How its events are read.
    pub family: Family,
    /// Longest event, bytes.
    pub max_event: usize,
}

/// How an attempt came out.
struct Outcome {
    /// What the client gets if it is the last.
    answer: Result<Answer, Failure>,
    /// What is wrong with that.
    trouble: Option<Trouble>,
    /// The request's body, if no byte of the request was written.
    untouched: Option<Box<Upload>>,
}

/// Sends a request until there is an answer for the client, or nothing more to try. `began` is told
/// the number of each attempt.
///
/// # Errors
/// The last attempt's failure; `BreakerOpen` if no endpoint may be asked.
pub async fn answer(
    upstream: &Upstream,
    mut outgoing: Outgoing,
    body: Upload,
    bounds: Bounds,
    began: impl Fn(u32),
) -> Result<Answer, Failure> {
    prepare(upstream, &mut outgoing, &body);
    let (known, rule) = (&upstream.known, &upstream.config.retry);
    known.budget.request(rule);
    let state = body.state();
    let repeatable = retry::repeatable(rule, &outgoing.method, bounds.safe);
    let (mut attempt, mut tried) = (1, Places::default());
    let mut body = Some(Box::new(body));
    let mut last: Option<Outcome> = None;
    // A key was refused before; another key may be used where one was limited.
    let (mut refused, mut other_key) = (false, false);
    loop {
        let start = bounds.clock.now();
        let choice = known.endpoints.choose(tried, bounds.key, trace::random(), start);
        let choice = match (choice, &last) {
            (Ok(choice), _) => choice,
            (Err(_), Some(_)) => break,
            (Err(none), None) => return Err(unavailable(upstream, none)),
        };
        // The one before is given up only now.
        last = None;
        let Some(mut sent) = body.take() else { break };
        // Only what has come in whole can be sent twice, and not everything ever has to be.
        let wanted = rule.attempts > 1 && (repeatable || rule.replays() || upstream.may_refuse());
        let copy = if wanted || !known.keys.is_empty() { sent.again() } else { None };
        if attempt > 1 || refused {
            state.restarted(bounds.wheel.now());
        }
        began(attempt);
        known.keys.look(start);
        let key = known.keys.put(&mut outgoing.headers, start);
        let limited = copy.is_some() && attempt < rule.attempts && repeatable;
        let limit = limited.then_some(bounds.first_byte);
        let mut outcome =
            within(limit, &bounds, one(upstream, choice.index, &outgoing, sent, &bounds)).await;
        let took = bounds.clock.now().since(start);
        tell(&known.endpoints.list()[choice.index], choice.attempt, &outcome, took, &bounds);
        body = copy.map(Box::new).or(outcome.untouched.take());
        let remedy = outcome.remedy(rule, &outgoing, &bounds, body.is_some());
        let refreshed = match (key, outcome.status()) {
            (Some(key), Some(StatusCode::TOO_MANY_REQUESTS)) => {
                other_key = known.keys.limited(key, outcome.retry_after(), start);
                false
            }
            (Some(key), Some(StatusCode::UNAUTHORIZED)) => {
                body.is_some() && !refused && known.keys.refused(key).await
            }
            _ => false,
        };
        last = Some(outcome);
        if refreshed {
            // Nothing was run for a key that nobody knows.
            refused = true;
            upstream.cells().retries(RetryReason::Credential).inc();
            continue;
        }
        let Some(remedy) = remedy else { break };
        tried.add(choice.index);
        let elsewhere = known.endpoints.has_other(tried);
        if !(remedy.unsent && elsewhere) {
            if attempt >= rule.attempts || !known.budget.retry() {
                break;
            }
            attempt += 1;
        }
        if other_key {
            // With that one the same endpoint may have room.
            (other_key, tried) = (false, Places::default());
        } else if !elsewhere {
            let asked = last.as_ref().and_then(Outcome::retry_after).unwrap_or_default();
            let pause = asked.max(retry::pause(rule, attempt, trace::random()));
            let until = bounds.clock.now().after(pause);
            if pause > rule.backoff_max || bounds.deadline.is_some_and(|end| until >= end) {
                break;
            }
            // An upstream that was not asked yet cannot be late.
            state.asked_at(bounds.wheel.now().after(pause));
            tokio::time::sleep(pause).await;
            tried = Places::default();
        }
        upstream.cells().retries(remedy.reason).inc();
    }
    last.expect("the loop ends behind an attempt").answer
}

/// Tells an endpoint what an attempt came to. What never reached an answer and speaks for nothing,
/// such as a fault in the request's body, tells its breaker nothing.
fn tell(
    endpoint: &Endpoint,
    attempt: Option<Attempt>,
    outcome: &Outcome,
    took: Duration,
    bounds: &Bounds,
) {
    let now = bounds.clock.now();
    if outcome.answer.is_ok() {
        endpoint.measured(took, now);
    }
    let Some(attempt) = attempt else { return };
    let late = endpoint.breaker().and_then(|b| b.slow()).is_some_and(|slow| took > slow);
    if late || outcome.trouble.is_some_and(Trouble::speaks_against) {
        attempt.failed(now);
    } else if outcome.answer.is_ok() {
        attempt.succeeded(now);
    }
}

impl Outcome {
    /// What may be done about it; `whole`: the body is there for another attempt.
    fn remedy(
        &self,
        rule: &RetryRule,
        outgoing: &Outgoing,
        bounds: &Bounds,
        whole: bool,
    ) -> Option<Remedy> {
        if !whole {
            return None;
        }
        // The upstream's own word on it (OpenAI and those who took it over).
        let told = self.answer.as_ref().ok().and_then(|a| a.head.headers.get("x-should-retry"));
        if told.is_some_and(|told| told == "false") {
            return None;
        }
        self.trouble?.remedy(rule, &outgoing.method, bounds.safe)
    }

    fn status(&self) -> Option<StatusCode> {
        Some(self.answer.as_ref().ok()?.head.status)
    }

    fn retry_after(&self) -> Option<Duration> {
        let answer = self.answer.as_ref().ok()?;
        retry::retry_after(&answer.head.headers, SystemTime::now())
    }
}

/// `attempt` unless it takes longer than `limit`, from which on another may be made.
async fn within(
    limit: Option<Duration>,
    bounds: &Bounds,
    attempt: impl Future<Output = Outcome>,
) -> Outcome {
    let Some(limit) = limit else { return attempt.await };
    bounds.wheel.timeout(limit, attempt).await.unwrap_or_else(|_| {
        let text = format!("no event within stream.first_byte = {limit:?}");
        let trouble = Some(Trouble::Failed(Kind::FirstByte));
        let answer = Err(Failure::new(Kind::FirstByte, text));
        Outcome { answer, trouble, untouched: None }
    })
}

/// One attempt at an endpoint.
async fn one(
    upstream: &Upstream,
    index: usize,
    outgoing: &Outgoing,
    body: Box<Upload>,
    bounds: &Bounds,
) -> Outcome {
    let sent = send(upstream, index, outgoing, body).await;
    match sent {
        Ok(answer) => {
            let look = upstream.config.retry.first_event && answer.head.status.is_success();
            let status = answer.head.status;
            let wrong = status.is_client_error() || status.is_server_error();
            let (answer, trouble) = match look && head::is_tracked(&answer.head) {
                true => first_event(answer, bounds).await,
                false => (answer, wrong.then_some(Trouble::Status(status))),
            };
            Outcome { answer: Ok(answer), trouble, untouched: None }
        }
        Err(Unanswered::Untouched(body, failure)) => {
            // Nobody saw it, however the connection ended; what the gateway itself lacks, such as open
            // files, is no better the next time.
            let gone = failure.kind == Kind::UpstreamGone || failure.kind == Kind::UpstreamProtocol;
            let kind = if gone { Kind::Refused } else { failure.kind };
            let trouble = Some(Trouble::Failed(kind));
            Outcome { answer: Err(failure), trouble, untouched: Some(body) }
        }
        Err(Unanswered::Failed(failure)) => {
            let trouble = Some(Trouble::Failed(failure.kind));
            Outcome { answer: Err(failure), trouble, untouched: None }
        }
    }
}

/// Waits for the first event of a stream, and puts what came back in front of the rest.
async fn first_event(mut answer: Answer, bounds: &Bounds) -> (Answer, Option<Trouble>) {
    let mut tracker = Tracker::new(bounds.family, bounds.max_event);
    let (mut pieces, mut held) = (VecDeque::new(), 0);
    let (broken, trouble) = loop {
        let next = std::future::poll_fn(|cx| {
            let mut scratch = [0; limits::RESPONSE_HEAD_READ];
            let polled = answer.body.poll_data(cx, &mut scratch);
            polled.map(|said| said.map(|data| data.map(|data| data.into_bytes(&scratch))))
        });
        match next.await {
            Some(Ok(bytes)) => {
                // Line by line: an error that comes later, though at once, is the client's.
                for line in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
                    tracker.feed(line);
                    if tracker.events() > 0 {
                        break;
                    }
                }
                held += bytes.len();
                pieces.push_back(bytes);
                if tracker.events() > 0 || held >= limits::COMMIT_BYTES {
                    break (None, tracker.error_event().then_some(Trouble::ErrorFirst));
                }
            }
            Some(Err(failure)) => break (Some(failure), Some(Trouble::Empty)),
            None => break (None, Some(Trouble::Empty)),
        }
    };
    answer.body = answer.body.behind(pieces, broken);
    (answer, trouble)
}

fn unavailable(upstream: &Upstream, none: NoEndpoint) -> Failure {
    let wait = match none {
        NoEndpoint::Open(wait) => wait,
        NoEndpoint::Tried => Duration::ZERO,
    };
    let name = &upstream.config.name;
    let text = format!("upstream {name}: its breakers are open, since it failed too often");
    let quota = Quota { retry_after: wait.max(Duration::from_millis(100)), ..Quota::default() };
    Failure { quota: Some(Box::new(quota)), ..Failure::new(Kind::BreakerOpen, text) }
}
