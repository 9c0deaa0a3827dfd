//! Tokens per minute: reserved by an estimate, settled by what the upstream tells, given back where
//! nothing was asked of it.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::stage::client::CHAT;
use super::stage::events::code_of;
use super::stage::{Answer, Client, End, Http, Setup, Stage};
use super::{hold, quiet, refused, tenant, told_to_wait};

/// Tokens per minute of the model `m`; fifty come back in a second.
const LIMIT: u64 = 3_000;
/// What the simulator says that a request took besides one token per event.
const PROMPT: u64 = 12;
/// What an answer is taken to use if the request does not say.
const ANSWER: u64 = 1_024;

/// A stage with a tenant that may use so many tokens.
struct Metered {
    stage: Stage,
    bearer: String,
    /// From when on tokens come back.
    began: Instant,
}

/// A request's body; its length is what the prompt is estimated by.
fn body(model: &str, max_tokens: Option<u64>, stream: bool, usage: bool) -> String {
    let max = max_tokens.map_or(String::new(), |max| format!("\"max_tokens\":{max},"));
    let options = if usage { "\"stream_options\":{\"include_usage\":true}," } else { "" };
    format!("{{\"model\":\"{model}\",{max}{options}\"stream\":{stream},\"messages\":[]}}")
}

/// What is reserved for a request with this body.
fn estimate(body: &str, max_tokens: Option<u64>) -> u64 {
    (body.len() as u64).div_ceil(4) + max_tokens.unwrap_or(ANSWER)
}

impl Metered {
    async fn start(setup: Setup) -> Metered {
        let one = tenant("a", &format!("tokens_per_minute = {{ m = {LIMIT}, \"*\" = 50000 }}"));
        let more = format!("{}\n{}", setup.more, one.section);
        let stage = Stage::start(Setup { more, ..setup }).await;
        Metered { stage, bearer: one.bearer, began: Instant::now() }
    }

    async fn ask(&self, client: &mut Client, fields: &[(&str, &str)], body: String) -> Answer {
        let key = [("authorization", self.bearer.as_str())];
        client.ask("POST", CHAT, &[&key, fields].concat(), body).await
    }

    /// What a refusal says is left of the model's tokens; `None` if all are there. What is asked for
    /// is granted by a full bucket only, and refused it takes nothing.
    async fn left(&self, model: &str) -> Option<u64> {
        let mut client = self.stage.client(Http::H1).await;
        // The upstream's error makes it cost nothing if it is granted.
        let fields = [("sim-status", "500")];
        let answer = self.ask(&mut client, &fields, body(model, Some(100_000), false, false)).await;
        if answer.status != 429 {
            return None;
        }
        assert_eq!(code_of(&answer.text()).as_deref(), Some("tenant_tokens_limit"));
        let number = |name| answer.header(name).and_then(|value| value.parse().ok());
        let limit = if model == "m" { LIMIT } else { 50_000 };
        assert_eq!(number("x-ratelimit-limit-tokens"), Some(limit));
        told_to_wait(&answer);
        Some(number("x-ratelimit-remaining-tokens").expect("what is left"))
    }

    /// What may be left after `used` tokens, now.
    fn after(&self, used: u64) -> RangeInclusive<u64> {
        let back = (self.began.elapsed().as_secs_f64() * LIMIT as f64 / 60.0).ceil() as u64;
        LIMIT - used..=(LIMIT - used + back).min(LIMIT)
    }

    /// `used` tokens are gone, and no other number.
    async fn assert_used(&self, used: u64, what: &str) {
        quiet(&self.stage).await;
        // All are there again if the machine took so long.
        let left = self.left("m").await.unwrap_or(LIMIT);
        let expected = self.after(used);
        assert!(expected.contains(&left), "{what}: {left} left, not {expected:?}");
    }

    async fn assert_untouched(&self, what: &str) {
        quiet(&self.stage).await;
        assert_eq!(self.left("m").await, None, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_is_charged_in_place_of_the_estimate() {
    for http in [Http::H1, Http::H2] {
        // Max tokens, a stream, with usage, events: what is charged.
        for (max, stream, usage, count) in [
            // An over-estimate comes back, from JSON and from a stream's usage chunk,
            (Some(4_000), false, false, "300"),
            (Some(4_000), true, true, "300"),
            (None, true, true, "300"),
            // what goes beyond an estimate is charged,
            (Some(10), false, false, "2000"),
            (Some(10), true, true, "2000"),
        ] {
            let metered = Metered::start(Setup::default()).await;
            let mut client = metered.stage.client(http).await;
            let fields = [("sim-count", count)];
            let answer = metered.ask(&mut client, &fields, body("m", max, stream, usage)).await;
            assert_eq!((answer.status, answer.end), (200, End::Clean));
            let told = PROMPT + count.parse::<u64>().expect("a number");
            let what = format!("{http:?} {max:?} stream {stream} usage {usage} count {count}");
            metered.assert_used(told, &what).await;
        }
        // and where nothing is told, the estimate stands.
        for max in [Some(2_000), None] {
            let metered = Metered::start(Setup::default()).await;
            let mut client = metered.stage.client(http).await;
            let asked = body("m", max, true, false);
            let used = estimate(&asked, max);
            let answer = metered.ask(&mut client, &[("sim-count", "3")], asked).await;
            assert_eq!((answer.status, answer.end), (200, End::Clean));
            metered.assert_used(used, "unknown usage").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_used_stays_charged() {
    for fault in ["fin", "rst", "reset-head"] {
        let metered = Metered::start(Setup::default()).await;
        let asked = body("m", Some(2_000), true, true);
        let used = estimate(&asked, Some(2_000));
        let mut client = metered.stage.client(Http::H1).await;
        let answer = metered.ask(&mut client, &[("sim-fault", fault)], asked).await;
        assert!(answer.end == End::Cut || answer.status == 502, "{fault}");
        metered.assert_used(used, fault).await;
    }
    let metered = Metered::start(Setup::default()).await;
    let asked = body("m", Some(2_000), true, true);
    let used = estimate(&asked, Some(2_000));
    let mut client = metered.stage.client(Http::H2).await;
    let fields = [("authorization", metered.bearer.as_str()), ("sim-fault", "stall")];
    let mut live = client.start("POST", CHAT, &fields, asked).await.head().await;
    live.until("data:").await;
    let left = metered.left("m").await.expect("it is reserved from the beginning");
    assert!(metered.after(used).contains(&left), "{left}");
    drop(live);
    metered.assert_used(used, "a client that left in mid-stream").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_learned_after_the_client_left_is_charged_in_place_of_the_estimate() {
    for http in [Http::H1, Http::H2] {
        let route = "usage_drain = \"1m\"".to_owned();
        let metered = Metered::start(Setup { route, ..Setup::default() }).await;
        let mut client = metered.stage.client(http).await;
        let fields = [
            ("authorization", metered.bearer.as_str()),
            ("sim-interval", "50ms"),
            ("sim-count", "40"),
        ];
        let asked = body("m", Some(2_000), true, true);
        let mut live = client.start("POST", CHAT, &fields, asked).await.head().await;
        live.until("\"seq\":2").await;
        drop(live);
        drop(client);
        metered.assert_used(PROMPT + 40, "it was read on").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_model_worked_on_is_given_back() {
    let metered = Metered::start(Setup::default()).await;
    let asked = || body("m", Some(2_000), true, false);
    for status in ["400", "429", "500", "503"] {
        let mut client = metered.stage.client(Http::H1).await;
        let answer = metered.ask(&mut client, &[("sim-status", status)], asked()).await;
        assert_eq!(answer.status.to_string(), status);
        metered.assert_untouched(status).await;
    }
    // The same after the 200 was promised.
    let promised = Setup { stream: "commit_after = \"100ms\"".to_owned(), ..Setup::default() };
    let metered = Metered::start(promised).await;
    let mut client = metered.stage.client(Http::H1).await;
    let fields = [("sim-status", "500"), ("sim-first-byte", "500ms")];
    let answer = metered.ask(&mut client, &fields, asked()).await;
    assert_eq!((answer.status, &answer.end), (200, &End::Cut), "{}", answer.text());
    metered.assert_untouched("an error status that came too late to be one").await;
    // Nobody takes connections here.
    let metered = Metered::start(Setup::default()).await;
    let Metered { stage, bearer, began } = metered;
    let Stage { sim, gateway, certificate, .. } = stage;
    drop(sim);
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    let key = [("authorization", bearer.as_str())];
    for n in 0..20 {
        // Without giving back the second would be refused.
        let answer = client.ask("POST", CHAT, &key, asked()).await;
        assert_eq!(answer.status, 502, "request {n}, {:?}: {}", began.elapsed(), answer.text());
    }
    drop(certificate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_reserved_for_a_queued_request_comes_back_when_it_is_not_sent() {
    let upstream = "max_streams = 1\nqueue = 1\nqueue_wait = \"1s\"".to_owned();
    for (http, stream) in [(Http::H1, false), (Http::H2, false), (Http::H1, true), (Http::H2, true)]
    {
        let setup = Setup {
            upstream: upstream.clone(),
            stream: "commit_after = \"100ms\"\nheartbeat = \"100ms\"".to_owned(),
            ..Setup::default()
        };
        let metered = Metered::start(setup).await;
        let stage = &metered.stage;
        let key = ("authorization", metered.bearer.as_str());
        let holder = hold(stage, Http::H1, &[key]).await;
        let asked = body("m", Some(1_000), stream, false);
        let depth = |depth| move |m: &super::Metrics| m.sum("tidegate_queue_depth") == depth;
        // One waits in vain,
        let mut client = stage.client(http).await;
        let answer = metered.ask(&mut client, &[], asked.clone()).await;
        assert_eq!(answer.status, if stream { 200 } else { 503 }, "{}", answer.text());
        assert!(answer.text().contains("queue_timeout"), "{}", answer.text());
        // one leaves while it waits.
        let mut leaver = stage.client(http).await;
        let started = leaver.start("POST", CHAT, &[key], asked.clone()).await;
        stage.until("it waits", depth(1.0)).await;
        // The next finds the queue full.
        let mut third = stage.client(http).await;
        let answer = metered.ask(&mut third, &[], asked.clone()).await;
        assert!(answer.text().contains("queue_full"), "{}", answer.text());
        if stream {
            let mut headed = started.head().await;
            headed.until(": ping").await;
            drop(headed);
        } else {
            drop(started);
        }
        drop(leaver);
        stage.until("it left", depth(0.0)).await;
        drop(holder);
        metered.assert_untouched(&format!("{http:?} stream {stream}")).await;
        // One was the holder's, one asked what is left.
        assert_eq!(stage.sim.counts().requests, 2, "they never reached the upstream");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_model_has_its_own_and_the_rest_share() {
    let metered = Metered::start(Setup::default()).await;
    let mut client = metered.stage.client(Http::H1).await;
    let fields = [("sim-count", "3")];
    for model in ["x", "y"] {
        let asked = body(model, Some(20_000), true, false);
        assert_eq!(metered.ask(&mut client, &fields, asked).await.status, 200);
    }
    quiet(&metered.stage).await;
    assert_eq!(metered.left("m").await, None, "it has its own");
    let left = metered.left("z").await.expect("it shares");
    // 833 come back in a second.
    let back = metered.began.elapsed().as_millis() as u64 * 50 / 60 + 1;
    assert!((9_900..10_000 + back).contains(&left), "{left} left");
    // A body without a model is any other model's; one that is no JSON too.
    for odd in ["{\"stream\":true,\"max_tokens\":20000}", "max_tokens"] {
        let answer =
            metered.ask(&mut client, &fields, format!("{odd}{}", " ".repeat(80_000))).await;
        assert_eq!(answer.status, 429, "{odd}: {}", answer.text());
    }
    // Without `*`, what is not named is not limited.
    let one = tenant("a", "tokens_per_minute = { m = 100 }");
    let stage = Stage::start(Setup { more: one.section.clone(), ..Setup::default() }).await;
    let mut client = stage.client(Http::H1).await;
    for _ in 0..3 {
        let fields = [("authorization", one.bearer.as_str())];
        let answer = client.ask("POST", CHAT, &fields, body("x", Some(9_999), true, false)).await;
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_the_told_time_is_granted() {
    let metered = Metered::start(Setup::default()).await;
    let mut client = metered.stage.client(Http::H1).await;
    let big = metered.ask(&mut client, &[], body("m", Some(LIMIT - 100), true, false)).await;
    assert_eq!(big.status, 200);
    let small = || body("m", Some(250), true, false);
    let retried = [("x-stainless-retry-count", "1")];
    let refusal = metered.ask(&mut client, &retried, small()).await;
    assert_eq!(refusal.status, 429, "{}", refusal.text());
    assert_eq!(refusal.header("x-should-retry"), None, "its own share, not the gateway's room");
    let millis = told_to_wait(&refusal);
    // 150 and the prompts' are missing, fifty a second come back.
    assert!(millis <= 5_000, "{millis}");
    let asked = metered.stage.sim.counts().requests;
    assert_eq!(asked, 1, "no upstream");
    // This wait is what is tested.
    tokio::time::sleep(Duration::from_millis(millis)).await;
    let again = metered.ask(&mut client, &retried, small()).await;
    assert_eq!(again.status, 200, "after {millis} ms: {}", again.text());
    assert_eq!(refused(&metered.stage.metrics().await, "tenant_tokens"), 1.0);
}
