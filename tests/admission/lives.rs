//! Random lives: thousands of requests that end in every way there is, under every limit at once;
//! whatever they took is back afterwards. `TIDEGATE_TEST_SEED` runs other lives than usual.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::sim::{self, Sim};
use tokio::task::JoinSet;

use super::stage::client::CHAT;
use super::stage::events::code_of;
use super::stage::random::Random;
use super::stage::{Answer, Client, End, Http, Metrics, PATIENCE, Setup, Stage, soon};
use super::{TRUSTED, Tenant, refused, tenant, told_to_wait};

/// Scripts, each a client's life.
const SCRIPTS: usize = 500;
/// Requests of each, one after another.
const STEPS: usize = 15;
/// Scripts at once.
const AT_ONCE: usize = 60;

// The limits, small enough to be reached.
const STREAMS: usize = 30;
const TENANT_STREAMS: usize = 12;
const ADDRESS_STREAMS: usize = 6;
const SLOTS: usize = 8;
const QUEUE: usize = 5;
/// Addresses that clients come from.
const ADDRESSES: u64 = 12;

/// The way to the upstream without a queue.
const WIDE: &str = "/wide/v1/chat/completions";

/// What the upstream does; `none` is a good answer.
const FAULTS: [&str; 24] = [
    "fin",
    "rst",
    "conn",
    "stall",
    "stall-head",
    "error-first",
    "error-middle",
    "empty",
    "huge",
    "no-done",
    "wrong-length",
    "bad-chunk",
    "103",
    "trailers",
    "html",
    "reset-head",
    "refuse",
    "early",
    "eof-delimited",
    "content-length-exact",
    "goaway",
    "bare-lf-head",
    "http10",
    "none",
];

/// Labels under which some of the lives must have been refused.
const REFUSED: [&str; 13] = [
    "streams",
    "new_streams",
    "ip_streams",
    "ip_new_streams",
    "tenant_streams",
    "tenant_new_streams",
    "tenant_tokens",
    "queue",
    "queue_wait",
    "deadline",
    "key",
    "failed_keys",
    "forbidden",
];

fn panics(headers: &http::HeaderMap) {
    assert!(!headers.contains_key("x-panic"), "a test wants it");
}

/// Three tenants with places and a rate of their own, and one that has neither.
fn tenants() -> [Tenant; 4] {
    let own = format!(
        "streams = {TENANT_STREAMS}\nnew_per_second = 150\ntokens_per_minute = {{ m = 60000 }}\n"
    );
    [
        tenant("a", &format!("{own}weight = 3")),
        tenant("b", &own),
        tenant("c", &format!("{own}priority = \"batch\"")),
        tenant("free", ""),
    ]
}

fn setup(tenants: &[Tenant], wide: &Sim, upstream_h2: bool) -> Setup {
    let sections: String = tenants.iter().map(|tenant| tenant.section.as_str()).collect();
    let wide = format!(
        "[[upstream]]\nname = \"wide\"\nurls = [\"http://{}\"]\nhttp = \"{}\"\n",
        wide.addr(),
        if upstream_h2 { 2 } else { 1 }
    );
    Setup {
        upstream_h2,
        server: format!("workers = 2\n{TRUSTED}"),
        stream: "first_byte = \"500ms\"\nidle = \"500ms\"\ncommit_after = \"100ms\"\n\
                 heartbeat = \"100ms\"\nmax_event = \"1MiB\""
            .to_owned(),
        more: format!(
            "[limits]\nstreams = {STREAMS}\nnew_streams_per_second = 500\n\
             new_streams_burst = 100\nfailed_keys_per_minute = 3\n\
             per_ip = {{ streams = {ADDRESS_STREAMS}, new_per_second = 40 }}\n{sections}{wide}"
        ),
        upstream: format!("max_streams = {SLOTS}\nqueue = {QUEUE}\nqueue_wait = \"200ms\""),
        route: "[[route]]\npath = \"/free/{*rest}\"\nupstream = \"wide\"\ntenants = [\"free\"]\n\
                [[route]]\npath = \"/wide/v1/{*rest}\"\nupstream = \"wide\""
            .to_owned(),
        fault: Some(panics),
        ..Setup::default()
    }
}

/// When a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Never,
    /// With a part of its body unsent.
    HalfWay,
    /// After so long, wherever the answer is by then.
    After(Duration),
    /// With the first bytes of the answer's body.
    Begun,
}

/// One request.
struct Step {
    path: &'static str,
    fields: Vec<(&'static str, String)>,
    body: String,
    leave: Leave,
    connect_anew: bool,
}

impl Step {
    fn random(random: &mut Random, bearers: &[String; 4]) -> Step {
        let mut fields = Vec::new();
        let path = random.of(&[CHAT, WIDE]);
        let path = if random.once_in(40) { "/free/v1/x" } else { path };
        let bearer = &bearers[random.below(3) as usize];
        if random.once_in(30) {
            // So few addresses guess that most of the others' keys are taken.
            fields.push(("authorization", "Bearer wrong".to_owned()));
            fields.push(("x-forwarded-for", "9.9.9.100".to_owned()));
        } else {
            fields.push(("authorization", bearer.clone()));
            let address = format!("2001:db8:0:{}::{}", random.below(ADDRESSES), random.below(9));
            fields.push(("x-forwarded-for", address));
        }
        if random.once_in(2) {
            fields.push(("sim-fault", random.of(&FAULTS).to_owned()));
        } else if random.once_in(10) {
            fields.push(("sim-status", random.of(&["400", "429", "500", "503"]).to_owned()));
        }
        if random.once_in(60) {
            fields.push(("x-panic", "1".to_owned()));
        }
        if random.once_in(4) {
            fields.push(("x-stainless-read-timeout", "0.1".to_owned()));
        }
        fields.push(("sim-first-byte", format!("{}ms", random.of(&[0, 0, 20, 150]))));
        fields.push(("sim-interval", format!("{}ms", random.of(&[0, 1, 10, 30]))));
        fields.push(("sim-count", random.below(12).to_string()));
        let body = format!(
            "{{\"model\":\"{}\",\"max_tokens\":{},\"stream\":{},\"stream_options\":\
             {{\"include_usage\":{}}},\"messages\":[]}}",
            random.of(&["m", "n"]),
            random.below(2_000),
            !random.once_in(4),
            random.once_in(2)
        );
        let leave = match random.below(10) {
            0 => Leave::HalfWay,
            1..=3 => Leave::After(Duration::from_millis(random.below(200))),
            4 => Leave::Begun,
            _ => Leave::Never,
        };
        Step { path, fields, body, leave, connect_anew: random.once_in(4) }
    }

    fn describe(&self) -> String {
        format!("{} {:?} {} {:?}", self.path, &self.fields[1..], self.body, self.leave)
    }

    /// Takes it over `client`, which is given back if it can be used again.
    async fn take(&self, mut client: Client) -> Option<Client> {
        let fields: Vec<_> = self.fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
        if self.leave == Leave::HalfWay {
            if let Client::H1(..) = client {
                let (length, half) = (self.body.len(), &self.body[..self.body.len() / 2]);
                let mut raw = format!("POST {} HTTP/1.1\r\nhost: g\r\n", self.path);
                fields.iter().for_each(|(n, v)| raw += &format!("{n}: {v}\r\n"));
                raw += &format!("content-length: {length}\r\n\r\n{half}");
                client.raw(raw.as_bytes()).await;
            } else {
                drop(client.start("POST", self.path, &fields, self.body.clone()).await);
            }
            return None;
        }
        let answered = async {
            let started = client.start("POST", self.path, &fields, self.body.clone()).await;
            let mut headed = soon(started.head()).await;
            if self.leave == Leave::Begun {
                soon(headed.more()).await;
                return None;
            }
            Some(headed.rest().await)
        };
        let answer = match self.leave {
            Leave::After(wait) => tokio::time::timeout(wait, answered).await.ok().flatten(),
            _ => answered.await,
        };
        let is_h2 = matches!(client, Client::H2(_));
        let again = match answer {
            None => is_h2,
            Some(answer) => {
                self.check(&answer);
                if answer.header("retry-after-ms").is_some() {
                    // Else most of the lives would be refusals.
                    tokio::time::sleep(Duration::from_millis(told_to_wait(&answer).min(50))).await;
                }
                is_h2 || (answer.end == End::Clean && answer.header("connection").is_none())
            }
        };
        again.then_some(client)
    }

    /// Every answer is whole, or says that it is not.
    fn check(&self, answer: &Answer) {
        let what = || format!("{}: {} {}", self.describe(), answer.status, answer.text());
        assert!([200, 400, 401, 403, 413, 429, 500, 502, 503, 504].contains(&answer.status));
        let kind = answer.header("content-type").unwrap_or_default();
        if answer.status == 200 && kind.starts_with("text/event-stream") {
            match answer.end {
                End::Clean => assert!(answer.text().contains("data: [DONE]"), "{}", what()),
                End::Cut => assert!(answer.text().contains("\"error\""), "{}", what()),
            }
        } else if answer.status != 200 {
            assert!(code_of(&answer.text()).is_some(), "{}", what());
        }
    }
}

async fn live(stage: &Stage, script: usize, seed: u64, bearers: &[String; 4]) {
    let mut random = Random(seed ^ (script as u64) << 32);
    let http = random.of(&[Http::H1, Http::H2]);
    let mut kept = None;
    for _ in 0..STEPS {
        let step = Step::random(&mut random, bearers);
        let client = match kept.take().filter(|_| !step.connect_anew) {
            Some(client) => client,
            None => stage.client(http).await,
        };
        let taken = tokio::time::timeout(PATIENCE / 2, step.take(client)).await;
        kept = taken.unwrap_or_else(|_| panic!("{http:?}, for ever: {}", step.describe()));
    }
}

/// All scripts, so many at once; a failed one says which it was.
async fn live_all(stage: &Arc<Stage>, bearers: &Arc<[String; 4]>, seed: u64) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut running = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (stage, bearers, next) = (stage.clone(), bearers.clone(), next.clone());
        running.spawn(async move {
            loop {
                let script = next.fetch_add(1, Ordering::Relaxed);
                if script >= SCRIPTS {
                    return;
                }
                live(&stage, script, seed, &bearers).await;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap_or_else(|error| panic!("TIDEGATE_TEST_SEED={seed}: {error}"));
    }
}

/// Runs into each rate, which a slow machine's lives might not do.
async fn outrun(stage: &Stage, bearers: &[String; 4]) {
    let shared = stage.client(Http::H2).await;
    for (tenant, addresses, label) in
        [(3, 1, "ip_new_streams"), (1, 1_000, "tenant_new_streams"), (3, 1_000, "new_streams")]
    {
        let path = if tenant == 3 { "/free/v1/x" } else { "/wide/v1/x" };
        let mut asked = 0;
        while refused(&stage.metrics().await, label) == 0.0 {
            assert!(asked < 10_000, "no {label}");
            let mut running = JoinSet::new();
            // So few at once that places are no matter.
            for _ in 0..ADDRESS_STREAMS {
                asked += 1;
                let (bearer, address) = (bearers[tenant].clone(), address(asked % addresses));
                let mut client = match &shared {
                    Client::H2(sender) => Client::H2(sender.clone()),
                    Client::H1(..) => panic!("it is HTTP/2"),
                };
                running.spawn(async move {
                    for _ in 0..10 {
                        let fields =
                            [("authorization", bearer.as_str()), ("x-forwarded-for", &address)];
                        client.ask("GET", path, &fields, "").await;
                    }
                });
            }
            running.join_all().await;
        }
    }
}

/// Everything that counts what is taken now. Connections that are kept for reuse are none of it.
fn taken(metrics: &Metrics) -> f64 {
    let gauges = [
        "tidegate_streams_live{",
        "tidegate_connections_live{",
        "tidegate_queue_depth{",
        "tidegate_backlog_bytes",
        "tidegate_stalled_streams",
        "tidegate_upstream_connections{upstream=\"sim\",state=\"active\"}",
        "tidegate_upstream_connections{upstream=\"sim\",state=\"connecting\"}",
        "tidegate_upstream_connections{upstream=\"wide\",state=\"active\"}",
        "tidegate_upstream_connections{upstream=\"wide\",state=\"connecting\"}",
    ];
    gauges.into_iter().map(|name| metrics.sum(name).abs()).sum()
}

/// Everything that was taken is back; the upstreams know it too.
async fn nothing_is_taken(stage: &Stage, wide: &Sim) -> Metrics {
    let metrics = stage.until("every gauge is zero", |m| taken(m) == 0.0).await;
    for sim in [&stage.sim, wide] {
        let live = sim.wait_for(|c| c.live == 0, PATIENCE).await;
        live.unwrap_or_else(|counts| panic!("left at the upstream: {counts:?}"));
    }
    metrics
}

/// Streams that are held, one more after another.
struct Held<'a> {
    stage: &'a Stage,
    bearers: &'a [String; 4],
    path: &'static str,
    clients: Vec<Client>,
}

impl Held<'_> {
    /// Asks for a stream without end; waits out the rates, as it is told to. The code of the error
    /// if another limit refuses.
    async fn ask(&self, tenant: usize, address: &str, stream: bool) -> Result<Client, String> {
        loop {
            let mut client = self.stage.client(Http::H1).await;
            let fields = [
                ("authorization", self.bearers[tenant].as_str()),
                ("x-forwarded-for", address),
                ("sim-interval", "50ms"),
                ("sim-count", "1000000"),
            ];
            let body = format!("{{\"stream\":{stream},\"model\":\"n\"}}");
            let started = client.start("POST", self.path, &fields, body).await;
            let mut headed = soon(started.head()).await;
            if headed.status == 200 {
                // An event of the upstream: one of ours, an error, has none of these.
                headed.until("\"seq\":").await;
                drop(headed);
                return Ok(client);
            }
            let answer = headed.rest().await;
            let code = code_of(&answer.text()).expect("an error");
            let rates = ["new_streams_limit", "tenant_rate_limit", "address_rate_limit"];
            if !rates.contains(&code.as_str()) {
                return Err(code);
            }
            tokio::time::sleep(Duration::from_millis(told_to_wait(&answer))).await;
        }
    }

    async fn admits(&mut self, tenant: usize, address: &str) {
        let number = self.clients.len();
        let client = self.ask(tenant, address, true).await;
        self.clients.push(client.unwrap_or_else(|code| panic!("stream {number}: {code}")));
    }

    async fn refuses(&self, tenant: usize, address: &str, code: &str) {
        let refused = self.ask(tenant, address, false).await.err();
        assert_eq!(refused.as_deref(), Some(code), "one more than {}", self.clients.len());
    }
}

/// An address of its own for the `n`th stream.
fn address(n: usize) -> String {
    format!("9.8.{}.{}", n / 200, n % 200)
}

/// As many streams as the limits allow are admitted, and none more.
async fn all_is_given_again(stage: &Stage, bearers: &[String; 4], wide: &Sim) {
    let mut held = Held { stage, bearers, path: CHAT, clients: Vec::new() };
    for n in 0..SLOTS {
        held.admits(n % 3, &address(n)).await;
    }
    held.refuses(0, &address(SLOTS), "queue_timeout").await;
    drop(held);
    nothing_is_taken(stage, wide).await;

    let mut held = Held { stage, bearers, path: WIDE, clients: Vec::new() };
    for _ in 0..ADDRESS_STREAMS {
        // One of those that the lives came from.
        held.admits(0, "2001:db8:0:1::1").await;
    }
    held.refuses(0, "2001:db8:0:1::2", "address_streams_limit").await;
    for tenant in 0..3 {
        let more = (STREAMS - held.clients.len()).min(TENANT_STREAMS);
        let more = if tenant == 0 { TENANT_STREAMS - ADDRESS_STREAMS } else { more };
        for _ in 0..more {
            held.admits(tenant, &address(held.clients.len())).await;
        }
        let code =
            if held.clients.len() < STREAMS { "tenant_streams_limit" } else { "streams_limit" };
        held.refuses(tenant, &address(STREAMS), code).await;
    }
    assert_eq!(held.clients.len(), STREAMS);
    drop(held);
    nothing_is_taken(stage, wide).await;
}

async fn random_lives(upstream_h2: bool) {
    let seed = std::env::var("TIDEGATE_TEST_SEED").ok();
    let seed = seed.map_or(20_261_121, |text| text.parse().expect("TIDEGATE_TEST_SEED: a number"));
    let wide = sim::Options { h1: !upstream_h2, h2: upstream_h2, ..sim::Options::default() };
    let wide = Sim::start(([127, 0, 0, 1], 0).into(), wide).await.expect("an upstream");
    let tenants = tenants();
    let stage = Arc::new(Stage::start(setup(&tenants, &wide, upstream_h2)).await);
    let bearers = Arc::new(tenants.map(|tenant| tenant.bearer));
    outrun(&stage, &bearers).await;
    live_all(&stage, &bearers, seed).await;
    let metrics = nothing_is_taken(&stage, &wide).await;
    let ended = metrics.sum("tidegate_streams_ended_total");
    let admitted = stage.sim.counts().requests + wide.counts().requests;
    println!("upstream h2 {upstream_h2}: {ended} lives, {admitted} of them at an upstream");
    for reason in [
        "completed",
        "client_closed",
        "upstream_error",
        "upstream_truncated",
        "upstream_timeout",
        "limit",
        "internal",
    ] {
        println!("  ended {reason}: {}", metrics.ended(reason));
        assert!(metrics.ended(reason) > 0.0, "TIDEGATE_TEST_SEED={seed}: none ended {reason}");
    }
    for label in REFUSED {
        println!("  refused {label}: {}", refused(&metrics, label));
        assert!(refused(&metrics, label) > 0.0, "TIDEGATE_TEST_SEED={seed}: no {label}");
    }
    all_is_given_again(&stage, &bearers, &wide).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_random_lives_took_of_an_http1_upstreams_gateway_is_back() {
    random_lives(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_random_lives_took_of_an_http2_upstreams_gateway_is_back() {
    random_lives(true).await;
}
