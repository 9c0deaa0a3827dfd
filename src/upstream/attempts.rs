//! One request's attempts at one upstream: where each goes, what came of it, whether there is another.
//!
//! [`answer`] is what the gateway waits for. Each attempt goes to an endpoint of its own choice
//! (`balance`), and what it comes to is told to that endpoint's breaker. Connecting that fails goes
//! on with the next endpoint at once; whatever else may be tried again is bounded by `retry`, and
//! waits where it would meet the same endpoint. When nothing more may be tried here, the body is
//! given back if another upstream may be asked.
//!
//! Invariant: nothing of an answer has gone on to the client when another attempt is made, since
//! the answer is given out only by the last. What the client gets then is that last attempt's answer
//! or failure, whatever it is.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
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
    /// There is another upstream that may be asked after this one.
    pub others: bool,
    /// What it has in common with requests that should go to the same endpoint.
    pub key: Option<u64>,
    /// How its events are read.
    pub family: Family,
    /// Longest event, bytes.
    pub max_event: usize,
}

/// How a request came out at an upstream.
pub struct Outcome {
    /// The last attempt's answer, or its failure; `BreakerOpen` if no endpoint could be asked.
    pub answer: Result<Answer, Failure>,
    /// The request's body, if another upstream may be asked in place of this answer.
    pub body: Option<Box<Upload>>,
    /// How many attempts were made.
    pub attempts: u32,
}

/// How an attempt came out.
struct Tried {
    /// What the client gets if it is the last.
    answer: Result<Answer, Failure>,
    /// What is wrong with that.
    trouble: Option<Trouble>,
    /// The request's body, if no byte of the request was written.
    untouched: Option<Box<Upload>>,
}

/// What comes behind an attempt that is not what the client should get.
enum Next {
    /// It is all that there is.
    Settle,
    /// Nothing more here; another upstream may be asked.
    Leave,
    /// Another attempt, for this reason; after a pause if it would meet the same endpoint.
    Again(RetryReason, Option<Duration>),
}

/// How far a request's attempts have come.
struct Course<'a> {
    upstream: &'a Upstream,
    bounds: &'a Bounds,
    outgoing: Box<Outgoing>,
    /// The request may be run twice.
    repeatable: bool,
    /// The attempt under way, from 1 on.
    attempt: u32,
    /// Endpoints that are not to be asked again before a pause.
    tried: Places,
    /// A key was read anew, which is done once.
    renewed: bool,
}

/// Sends a request until there is an answer for the client, or nothing more to try. `began` is told
/// the number of each attempt.
pub async fn answer(
    upstream: &Upstream,
    mut outgoing: Box<Outgoing>,
    mut body: Box<Upload>,
    bounds: &Bounds,
    began: impl Fn(u32),
) -> Outcome {
    prepare(upstream, &mut outgoing, &body);
    let known = &upstream.known;
    known.budget.request(&upstream.config.retry);
    let state = body.state();
    let mut course = Course::new(upstream, bounds, outgoing);
    let (mut last, mut attempts) = (None, 0);
    loop {
        let start = bounds.clock.now();
        let choice = known.endpoints.choose(course.tried, bounds.key, trace::random(), start);
        let choice = match choice {
            Ok(choice) => choice,
            Err(none) => {
                let answer = last.unwrap_or_else(|| Err(unavailable(upstream, none)));
                return Outcome { answer, body: Some(body), attempts };
            }
        };
        // The one before is given up only now.
        if last.take().is_some() {
            state.restarted(bounds.wheel.now());
        }
        attempts = course.attempt;
        began(attempts);
        let copy = if course.may_need_it_again() { body.again() } else { None };
        known.keys.look(start);
        let key = known.keys.put(&mut course.outgoing.headers, start);
        let mut tried = course.one(choice.index, body, copy.is_some()).await;
        let took = bounds.clock.now().since(start);
        tell(&known.endpoints.list()[choice.index], choice.attempt, &tried, took, bounds);
        let limited = tried.status() == Some(StatusCode::TOO_MANY_REQUESTS);
        let other_key =
            limited && key.is_some_and(|key| known.keys.limited(key, tried.retry_after(), start));
        let Some(whole) = copy.map(Box::new).or(tried.untouched.take()) else {
            return Outcome { answer: tried.answer, body: None, attempts };
        };
        body = whole;
        if course.renews(key, &tried).await {
            upstream.cells().retries(RetryReason::Credential).inc();
            last = Some(tried.answer);
            continue;
        }
        match course.next(&tried, choice.index, other_key) {
            Next::Settle => return Outcome { answer: tried.answer, body: None, attempts },
            Next::Leave => return Outcome { answer: tried.answer, body: Some(body), attempts },
            Next::Again(reason, pause) => {
                if let Some(pause) = pause {
                    // An upstream that was not asked yet cannot be late.
                    state.asked_at(bounds.wheel.now().after(pause));
                    tokio::time::sleep(pause).await;
                }
                upstream.cells().retries(reason).inc();
            }
        }
        last = Some(tried.answer);
    }
}

impl<'a> Course<'a> {
    fn new(upstream: &'a Upstream, bounds: &'a Bounds, outgoing: Box<Outgoing>) -> Course<'a> {
        let rule = &upstream.config.retry;
        let repeatable = retry::repeatable(rule, &outgoing.method, bounds.safe);
        let tried = Places::default();
        Course { upstream, bounds, outgoing, repeatable, attempt: 1, tried, renewed: false }
    }

    /// Whether the body may be wanted once more. Only what has come in whole can be sent twice, and
    /// not everything ever has to be.
    fn may_need_it_again(&self) -> bool {
        let rule = &self.upstream.config.retry;
        let more = rule.attempts > 1 || self.bounds.others;
        more && (self.repeatable || rule.names_answers() || self.upstream.may_refuse())
            || !self.upstream.known.keys.is_empty()
    }

    /// One attempt at an endpoint; `kept`: the body is there for another one.
    async fn one(&self, index: usize, body: Box<Upload>, kept: bool) -> Tried {
        let more = self.attempt < self.upstream.config.retry.attempts || self.bounds.others;
        let limit = (kept && more && self.repeatable).then_some(self.bounds.first_byte);
        // Passed by value it would take its size three times in every waiting request's future.
        let attempt = pin!(one(self.upstream, index, &self.outgoing, body, self.bounds));
        within(limit, self.bounds, attempt).await
    }

    /// Whether the key that was used is refused, and there is another now: nothing was run for a key
    /// that nobody knows, so this is no attempt.
    async fn renews(&mut self, key: Option<usize>, tried: &Tried) -> bool {
        let refused = tried.status() == Some(StatusCode::UNAUTHORIZED);
        let Some(key) = key.filter(|_| refused && !self.renewed) else { return false };
        self.renewed = self.upstream.known.keys.refused(key, &self.outgoing.headers).await;
        self.renewed
    }

    /// What comes behind an attempt at the endpoint `index`, the body being whole. `other_key`: with
    /// another key the same endpoint may have room.
    fn next(&mut self, tried: &Tried, index: usize, other_key: bool) -> Next {
        let (known, rule) = (&self.upstream.known, &self.upstream.config.retry);
        let Some(remedy) = tried.remedy(rule, &self.outgoing, self.bounds) else {
            return Next::Settle;
        };
        self.tried.add(index);
        let elsewhere = known.endpoints.has_other(self.tried);
        if !(remedy.unsent && elsewhere) {
            if self.attempt >= rule.attempts || !known.budget.retry() {
                return Next::Leave;
            }
            self.attempt += 1;
        }
        let pause = if other_key || elsewhere { None } else { Some(self.pause(tried)) };
        if pause.is_some_and(|pause| !self.allows(pause)) {
            return Next::Leave;
        }
        if other_key || pause.is_some() {
            self.tried = Places::default();
        }
        Next::Again(remedy.reason, pause)
    }

    fn pause(&self, tried: &Tried) -> Duration {
        let asked = tried.retry_after().unwrap_or_default();
        asked.max(retry::pause(&self.upstream.config.retry, self.attempt, trace::random()))
    }

    /// Whether so long a pause is within the rule, and within what the client has told.
    fn allows(&self, pause: Duration) -> bool {
        let until = self.bounds.clock.now().after(pause);
        pause <= self.upstream.config.retry.backoff_max
            && self.bounds.deadline.is_none_or(|end| until < end)
    }
}

/// Tells an endpoint what an attempt came to. What never reached an answer and speaks for nothing,
/// such as a fault in the request's body, tells its breaker nothing.
fn tell(
    endpoint: &Endpoint,
    attempt: Option<Attempt>,
    tried: &Tried,
    took: Duration,
    bounds: &Bounds,
) {
    let now = bounds.clock.now();
    if tried.answer.is_ok() {
        endpoint.measured(took, now);
    }
    let Some(attempt) = attempt else { return };
    let late = endpoint.breaker().and_then(|b| b.slow()).is_some_and(|slow| took > slow);
    if late || tried.trouble.is_some_and(Trouble::speaks_against) {
        attempt.failed(now);
    } else if tried.answer.is_ok() {
        attempt.succeeded(now);
    }
}

impl Tried {
    /// What may be done about it, the body being there for another attempt.
    fn remedy(&self, rule: &RetryRule, outgoing: &Outgoing, bounds: &Bounds) -> Option<Remedy> {
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
    attempt: Pin<&mut impl Future<Output = Tried>>,
) -> Tried {
    let Some(limit) = limit else { return attempt.await };
    bounds.wheel.timeout(limit, attempt).await.unwrap_or_else(|_| {
        let text = format!("no event within stream.first_byte = {limit:?}");
        let trouble = Some(Trouble::Failed(Kind::FirstByte));
        let answer = Err(Failure::new(Kind::FirstByte, text));
        Tried { answer, trouble, untouched: None }
    })
}

/// One attempt at an endpoint.
async fn one(
    upstream: &Upstream,
    index: usize,
    outgoing: &Outgoing,
    body: Box<Upload>,
    bounds: &Bounds,
) -> Tried {
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
            Tried { answer: Ok(answer), trouble, untouched: None }
        }
        Err(Unanswered::Untouched(body, failure)) => {
            // Nobody saw it, however the connection ended; what the gateway itself lacks, such as open
            // files, is no better the next time.
            let gone = failure.kind == Kind::UpstreamGone || failure.kind == Kind::UpstreamProtocol;
            let kind = if gone { Kind::Refused } else { failure.kind };
            let trouble = Some(Trouble::Failed(kind));
            Tried { answer: Err(failure), trouble, untouched: Some(body) }
        }
        Err(Unanswered::Failed(failure)) => {
            let trouble = Some(Trouble::Failed(failure.kind));
            Tried { answer: Err(failure), trouble, untouched: None }
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
