//! Rates and places: who is refused under which limit, when it may come back, what that costs.

use std::time::{Duration, Instant};

use super::stage::client::{CHAT, STREAM};
use super::stage::events::code_of;
use super::stage::{Answer, Client, Http, Setup, Stage};
use super::{TRUSTED, hold, quiet, refused, tenant, told_to_wait};

/// A limit, and how one that runs into it is told.
struct Case {
    /// Sections of the configuration, those of the tenant `a` apart.
    limits: &'static str,
    /// Further keys of the tenant.
    tenant: &'static str,
    label: &'static str,
    code: &'static str,
    status: u16,
    /// `x-ratelimit-limit-requests`.
    quota: Option<&'static str>,
}

const PLACES: [Case; 3] = [
    Case {
        limits: "[limits]\nstreams = 1",
        tenant: "",
        label: "streams",
        code: "streams_limit",
        status: 503,
        quota: Some("1"),
    },
    Case {
        limits: "[limits]\nper_ip = { streams = 1 }",
        tenant: "",
        label: "ip_streams",
        code: "address_streams_limit",
        status: 429,
        quota: Some("1"),
    },
    Case {
        limits: "",
        tenant: "streams = 1",
        label: "tenant_streams",
        code: "tenant_streams_limit",
        status: 429,
        quota: Some("1"),
    },
];

/// Two a second, and two at once.
const RATES: [Case; 3] = [
    Case {
        limits: "[limits]\nnew_streams_per_second = 2",
        tenant: "",
        label: "new_streams",
        code: "new_streams_limit",
        status: 503,
        quota: None,
    },
    Case {
        limits: "[limits]\nper_ip = { new_per_second = 2 }",
        tenant: "",
        label: "ip_new_streams",
        code: "address_rate_limit",
        status: 429,
        quota: Some("2"),
    },
    Case {
        limits: "",
        tenant: "new_per_second = 2",
        label: "tenant_new_streams",
        code: "tenant_rate_limit",
        status: 429,
        quota: Some("2"),
    },
];

impl Case {
    /// A stage under this limit, and the tenant's `authorization`.
    async fn stage(&self) -> (Stage, String) {
        let one = tenant("a", self.tenant);
        let more = format!("{}\n{}", self.limits, one.section);
        (Stage::start(Setup { more, ..Setup::default() }).await, one.bearer)
    }

    fn check(&self, answer: &Answer, retried: bool) {
        let what = format!("{}: {:?} {}", self.label, answer.headers, answer.text());
        assert_eq!(answer.status, self.status, "{what}");
        assert_eq!(code_of(&answer.text()).as_deref(), Some(self.code), "{what}");
        // Only an overloaded gateway is spared; who had its share may come back for it.
        let should_retry = (retried && self.status == 503).then_some("false");
        assert_eq!(answer.header("x-should-retry"), should_retry, "{what}");
        assert_eq!(answer.header("x-ratelimit-limit-requests"), self.quota, "{what}");
        let zero = self.quota.map(|_| "0");
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), zero, "{what}");
        let millis = told_to_wait(answer);
        let reset = self.quota.map(|_| format!("{millis}ms"));
        assert_eq!(answer.header("x-ratelimit-reset-requests"), reset.as_deref(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_that_are_taken_refuse_until_one_is_free() {
    for case in &PLACES {
        let (stage, bearer) = case.stage().await;
        let key = ("authorization", bearer.as_str());
        let mut refusals = 0.0;
        for http in [Http::H1, Http::H2] {
            let mut second = stage.client(http).await;
            let live = hold(&stage, http, &[key]).await;
            let asked = stage.sim.counts().requests;
            for (count, retried) in [(None, false), (Some("0"), false), (Some("2"), true)] {
                let told = count.map(|count| ("x-stainless-retry-count", count));
                let fields: Vec<_> = [key].into_iter().chain(told).collect();
                case.check(&second.stream(&fields).await, retried);
                refusals += 1.0;
            }
            assert_eq!(stage.sim.counts().requests, asked, "{}: no upstream", case.label);
            drop(live);
            quiet(&stage).await;
            assert_eq!(second.stream(&[key]).await.status, 200, "{}: free again", case.label);
            quiet(&stage).await;
        }
        let metrics = stage.metrics().await;
        assert_eq!(refused(&metrics, case.label), refusals, "{}", case.label);
        assert_eq!(metrics.sum("tidegate_rejections_total"), refusals, "under no other label");
    }
}

/// Asks until it is refused; returns how many were not, and the refusal.
async fn until_refused(client: &mut Client, fields: &[(&str, &str)]) -> (u64, Answer) {
    for granted in 0..100 {
        let answer = client.ask("GET", "/v1/x", fields, "").await;
        if answer.status != 200 {
            return (granted, answer);
        }
    }
    panic!("a hundred requests in a row are within no limit of this test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_refuses_until_the_time_it_tells() {
    for case in &RATES {
        for http in [Http::H1, Http::H2] {
            let (stage, bearer) = case.stage().await;
            let mut client = stage.client(http).await;
            let fields = [("authorization", bearer.as_str()), ("x-stainless-retry-count", "1")];
            let began = Instant::now();
            let (granted, answer) = until_refused(&mut client, &fields).await;
            let most = 2 + (began.elapsed().as_secs_f64() * 2.0).ceil() as u64;
            assert!((2..=most).contains(&granted), "{}: {granted} of {most}", case.label);
            case.check(&answer, true);
            let millis = told_to_wait(&answer);
            assert!(millis <= 500, "{}: one comes back in 500 ms, not {millis}", case.label);
            assert_eq!(stage.sim.counts().requests, granted, "{}: no upstream", case.label);
            // This wait is what is tested: who keeps to what it was told gets in.
            tokio::time::sleep(Duration::from_millis(millis)).await;
            let again = client.ask("GET", "/v1/x", &fields, "").await;
            assert_eq!(again.status, 200, "{}: after {millis} ms", case.label);
            let metrics = stage.metrics().await;
            assert_eq!(refused(&metrics, case.label), 1.0, "{}", case.label);
            assert_eq!(metrics.sum("tidegate_rejections_total"), 1.0, "under no other label");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_granted_at_once_and_then_the_rate() {
    let more = "[limits]\nnew_streams_per_second = 1\nnew_streams_burst = 7".to_owned();
    let stage = Stage::start(Setup { more, ..Setup::default() }).await;
    let mut client = stage.client(Http::H1).await;
    let began = Instant::now();
    let (granted, answer) = until_refused(&mut client, &[]).await;
    let most = 7 + began.elapsed().as_secs() + 1;
    assert!((7..=most).contains(&granted), "{granted}");
    assert!(told_to_wait(&answer) <= 1000, "{:?}", answer.headers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_or_tenant_at_its_limit_is_no_other_ones_trouble() {
    let (one, two) = (tenant("a", "streams = 1"), tenant("b", "streams = 1"));
    let limits = "[limits]\nper_ip = { streams = 1 }\n";
    let more = format!("{limits}{}{}", one.section, two.section);
    let server = TRUSTED.to_owned();
    let stage = Stage::start(Setup { more, server, ..Setup::default() }).await;
    let mut second = stage.client(Http::H1).await;
    let here = ("x-forwarded-for", "2001:db8::1");
    let _live = hold(&stage, Http::H1, &[("authorization", &one.bearer), here]).await;
    for (bearer, address, status) in [
        (&one.bearer, "9.9.9.9", 429),
        (&two.bearer, "2001:db8::ffff", 429),
        (&two.bearer, "2001:db8:0:1::1", 200),
    ] {
        let fields = [("authorization", bearer.as_str()), ("x-forwarded-for", address)];
        let answer = second.ask("GET", "/v1/x", &fields, "").await;
        assert_eq!(answer.status, status, "{address}");
    }
    let metrics = stage.metrics().await;
    assert_eq!(refused(&metrics, "tenant_streams"), 1.0);
    assert_eq!(refused(&metrics, "ip_streams"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_for_want_of_room_has_not_used_its_own_share() {
    let one = tenant("a", "new_per_second = 3\nstreams = 3");
    let other = tenant("b", "");
    let limits = "[limits]\nstreams = 1\nper_ip = { streams = 3, new_per_second = 3 }\n";
    let more = format!("{limits}{}{}", one.section, other.section);
    let server = TRUSTED.to_owned();
    let stage = Stage::start(Setup { more, server, ..Setup::default() }).await;
    let mut second = stage.client(Http::H1).await;
    let there = [("authorization", other.bearer.as_str()), ("x-forwarded-for", "9.9.9.9")];
    let live = hold(&stage, Http::H1, &there).await;
    let here = [("authorization", one.bearer.as_str()), ("x-forwarded-for", "9.9.9.8")];
    for n in 0..50 {
        let answer = second.ask("GET", "/v1/x", &here, "").await;
        assert_eq!(code_of(&answer.text()).as_deref(), Some("streams_limit"), "request {n}");
    }
    drop(live);
    quiet(&stage).await;
    for n in 0..3 {
        assert_eq!(second.ask("GET", "/v1/x", &here, "").await.status, 200, "request {n}");
    }
}

/// Rounds of refusals whose times are compared.
const ROUNDS: usize = 10;
/// Refusals in each.
const REFUSALS: usize = 100;

/// The median time of a refusal in the best of [`ROUNDS`], from the request's first byte written to
/// the answer's last byte read, on one connection. Whatever else the machine does only adds to it,
/// and so do the client, both sides' system calls and loopback: the gateway's own part is less.
async fn refusal(client: &mut Client, fields: &[(&str, &str)], status: u16) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let mut times = Vec::new();
        while times.len() < REFUSALS {
            let began = Instant::now();
            let answer = client.ask("POST", CHAT, fields, STREAM).await;
            let took = began.elapsed();
            // A rate grants one now and then.
            if answer.status != 200 {
                assert_eq!(answer.status, status, "{}", answer.text());
                times.push(took);
            }
        }
        times.sort_unstable();
        best = best.min(times[times.len() / 2]);
    }
    best
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_takes_less_than_a_millisecond_and_no_upstream() {
    for case in PLACES.iter().chain(&RATES) {
        let (stage, bearer) = case.stage().await;
        let key = ("authorization", bearer.as_str());
        let mut client = stage.client(Http::H1).await;
        let _live = hold(&stage, Http::H1, &[key]).await;
        let took = refusal(&mut client, &[key], case.status).await;
        println!("{}: {took:?}", case.label);
        assert!(took < Duration::from_millis(1), "{}: {took:?}", case.label);
        let metrics = stage.metrics().await;
        let sent = metrics.sum("tidegate_streams_ended_total") + metrics.live();
        assert_eq!(stage.sim.counts().requests as f64, sent, "{}: no upstream", case.label);
        assert_eq!(refused(&metrics, case.label) as usize, ROUNDS * REFUSALS);
    }
    let setup = Setup { upstream: "max_streams = 1\nqueue = 0".to_owned(), ..Setup::default() };
    let more = format!("[limits]\nfailed_keys_per_minute = 1\n{}", tenant("a", "").section);
    let route = "auth = \"none\"\n[[route]]\npath = \"/v2/{*rest}\"\nupstream = \"sim\"".to_owned();
    let stage = Stage::start(Setup { more, route, ..setup }).await;
    let mut client = stage.client(Http::H1).await;
    let _live = hold(&stage, Http::H1, &[]).await;
    let took = refusal(&mut client, &[], 503).await;
    println!("queue: {took:?}");
    assert!(took < Duration::from_millis(1), "a full queue: {took:?}");
    assert_eq!(refused(&stage.metrics().await, "queue") as usize, ROUNDS * REFUSALS);
    assert_eq!(stage.sim.counts().requests, 1, "no upstream");
    assert_eq!(client.ask("GET", "/v2/x", &[], "").await.status, 401, "the one that may fail");
    let mut times = Vec::new();
    for _ in 0..REFUSALS {
        let began = Instant::now();
        assert_eq!(client.ask("GET", "/v2/x", &[], "").await.status, 429);
        times.push(began.elapsed());
    }
    times.sort_unstable();
    println!("failed keys: {:?}", times[times.len() / 2]);
    assert!(times[times.len() / 4] < Duration::from_millis(1), "{times:?}");
}
