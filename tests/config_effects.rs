//! Every key of the configuration does something that a client or an operator can see, or `check`
//! says that it does not yet. A key with neither fails here.

mod stage;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stage::client::{CHAT, STREAM};
use stage::program::Program;
use stage::{Answer, Client, End, Gateway, Http, Metrics, Setup, Stage, scrape};
use tidegate::config::{self, NoticeKind};
use tidegate::gateway::auth::{self, NewKey};
use tidegate::sim::{self, Behaviour, Sim};

/// One row per key: the key, and the test that sees its effect.
macro_rules! effects {
    ($($key:literal $name:ident $body:block)+) => {
        const SEEN: &[&str] = &[$($key),+];
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() $body)+
    };
}

/// Keys that are checked and have no effect yet, with a value that is not the default.
const NOT_YET: &[(&str, &str, &str)] = &[("route.resume", "route", "resume = true")];

#[test]
fn every_key_is_seen_to_work_or_said_not_to() {
    for (key, section, line) in NOT_YET {
        let lines = |name| if name == *section { *line } else { "" };
        let text = format!(
            "[limits]\n{}\n[[upstream]]\nname = \"a\"\nurls = [\"http://h\"]\n{}\n\
             [[route]]\npath = \"/v1/{{*rest}}\"\nupstream = \"a\"\n{}\n",
            lines("limits"),
            lines("upstream"),
            lines("route")
        );
        let loaded = config::parse(&text, "t").unwrap_or_else(|faults| panic!("{faults}"));
        let named = loaded.notices.iter().any(|notice| {
            let plain = notice.key.replace("[0]", "");
            let covers = plain == *key || key.starts_with(&format!("{plain}."));
            notice.kind == NoticeKind::NotYet && covers
        });
        assert!(named, "{key} has no effect and `check` is silent: {:?}", loaded.notices);
    }
    let keys: BTreeSet<_> = config::keys().iter().copied().collect();
    let rows: Vec<_> = SEEN.iter().copied().chain(NOT_YET.iter().map(|row| row.0)).collect();
    let known: BTreeSet<_> = rows.iter().copied().collect();
    assert_eq!(rows.len(), known.len(), "one row per key");
    assert_eq!(keys, known, "every key has a row, every row a key");
}

/// A tenant `a` with one key.
fn tenant(lines: &str, key: &NewKey, key_lines: &str) -> String {
    format!(
        "[[tenant]]\nname = \"a\"\n{lines}\n[[tenant.key]]\nsha256 = \"{}\"\n{key_lines}\n",
        key.sha256
    )
}

async fn with_key(stage: &Stage, key: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    let mut client = stage.client(Http::H1).await;
    client.ask("GET", "/v1/x", &[("authorization", &bearer)], "").await
}

/// How often each of a route's two upstreams is asked, of forty requests with `fields`.
async fn split(route: &str, fields: &[(&str, &str)]) -> [usize; 2] {
    let (one, two) = (sim().await, sim().await);
    let text = format!(
        "{LISTEN}[[upstream]]\nname = \"one\"\nurls = [\"http://{}\"]\n\
         [[upstream]]\nname = \"two\"\nurls = [\"http://{}\"]\n\
         [[route]]\nupstream = [\"one\", \"two\"]\n{route}\n",
        one.addr(),
        two.addr()
    );
    let gateway = Gateway::start(&text, None).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    for _ in 0..40 {
        assert_eq!(client.ask("GET", "/v1/x", fields, "").await.status, 200);
    }
    [one.counts().requests as usize, two.counts().requests as usize]
}

/// The status with a key of a tenant with these lines.
async fn keyed(lines: &str, key_lines: &str) -> u16 {
    let key = auth::new_key().expect("a key");
    let stage =
        Stage::start(Setup { more: tenant(lines, &key, key_lines), ..Setup::default() }).await;
    with_key(&stage, &key.key).await.status
}

/// The third request in a row, which is refused under `limit` without touching the upstream.
async fn third(lines: &str, fields: &[(&str, &str)], limit: &str) -> Answer {
    let stage = Stage::start(Setup { more: lines.to_owned(), ..Setup::default() }).await;
    let mut client = stage.client(Http::H1).await;
    for _ in 0..2 {
        assert_eq!(client.ask("GET", "/v1/x", fields, "").await.status, 200);
    }
    let answer = client.ask("GET", "/v1/x", fields, "").await;
    refused_under(&stage, limit, 2).await;
    answer
}

/// A request beside one that streams, which is refused under `limit`.
async fn second_beside(lines: &str, fields: &[(&str, &str)], limit: &str) -> Answer {
    second_beside_with(Setup { more: lines.to_owned(), ..Setup::default() }, fields, limit).await
}

async fn second_beside_with(setup: Setup, fields: &[(&str, &str)], limit: &str) -> Answer {
    let stage = Stage::start(setup).await;
    let (mut one, mut two) = (stage.client(Http::H1).await, stage.client(Http::H1).await);
    let stall = [fields, &[("sim-fault", "stall")]].concat();
    let mut live = one.start("POST", CHAT, &stall, STREAM).await.head().await;
    live.until("data:").await;
    let answer = two.ask("GET", "/v1/x", fields, "").await;
    refused_under(&stage, limit, 1).await;
    drop(one);
    stage.until("it is over", |m| m.live() == 0.0).await;
    assert_eq!(two.ask("GET", "/v1/x", fields, "").await.status, 200, "the place is free again");
    answer
}

/// The status that half of a body gets within 8 seconds.
async fn half_a_body(limits: &str) -> Option<u16> {
    let stage =
        Stage::start(Setup { more: format!("[limits]\n{limits}"), ..Setup::default() }).await;
    let mut client = stage.client(Http::H1).await;
    client.raw(b"POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\n\r\nx").await;
    let answer = tokio::time::timeout(Duration::from_secs(8), client.answer()).await;
    answer.ok().map(|answer| answer.status)
}

async fn refused_under(stage: &Stage, limit: &str, asked: u64) {
    let metrics = stage.metrics().await;
    let series = format!("tidegate_rejections_total{{limit=\"{limit}\"}}");
    assert_eq!(metrics.get(&series), 1.0, "{series}");
    assert_eq!(stage.sim.counts().requests, asked, "a refusal touches no upstream");
}

/// Of eight grants, so many go to either of two tenants that both wait with ten requests.
async fn shares(one: &str, two: &str, expected: &[usize; 2]) {
    let keys = [auth::new_key().expect("a key"), auth::new_key().expect("a key")];
    let more = tenant(one, &keys[0], "") + &tenant(two, &keys[1], "").replace("\"a\"", "\"b\"");
    let upstream = "max_streams = 1\nqueue_wait = \"1m\"".to_owned();
    let stage = Stage::start(Setup { more, upstream, ..Setup::default() }).await;
    let bearers = keys.map(|key| format!("Bearer {}", key.key));
    let mut first = stage.client(Http::H1).await;
    let stall = [("authorization", bearers[0].as_str()), ("sim-fault", "stall")];
    let mut live = first.start("POST", CHAT, &stall, STREAM).await.head().await;
    live.until("data:").await;
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (bearer, mut client) = (bearers[n % 2].clone(), stage.client(Http::H1).await);
        waiting.spawn(async move {
            let path = format!("/v1/{}", n % 2);
            client.ask("GET", &path, &[("authorization", &bearer)], "").await.status
        });
    }
    stage.until("all wait", |m| m.sum("tidegate_queue_depth") == 20.0).await;
    drop(first);
    while let Some(status) = waiting.join_next().await {
        assert_eq!(status.expect("a task"), 200);
    }
    let granted = stage.sim.requests();
    let of = |n: usize| {
        let path = format!("/v1/{n}");
        granted[1..9].iter().filter(|seen| seen.path_and_query == path).count()
    };
    assert_eq!([of(0), of(1)], *expected);
}

fn with_stream(lines: &str) -> Setup {
    Setup { stream: lines.to_owned(), ..Setup::default() }
}

fn with_upstream(lines: impl Into<String>) -> Setup {
    Setup { upstream: lines.into(), ..Setup::default() }
}

/// One stream over HTTP/1.1 on a stage of its own.
async fn streamed(setup: Setup, fields: &[(&str, &str)]) -> Answer {
    let stage = Stage::start(setup).await;
    stage.client(Http::H1).await.stream(fields).await
}

/// What the upstream saw of a request through a gateway with these upstream lines.
async fn seen(lines: impl Into<String>) -> sim::Seen {
    let stage = Stage::start(with_upstream(lines)).await;
    let answer = stage.client(Http::H1).await.ask("GET", "/v1/x", &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    stage.sim.requests().remove(0)
}

async fn sim() -> Sim {
    Sim::start(([127, 0, 0, 1], 0).into(), sim::Options::default()).await.expect("an upstream")
}

async fn status(gateway: &Gateway, path: &str) -> u16 {
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    client.ask("GET", path, &[], "").await.status
}

const LISTEN: &str = "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n";

/// A client that reads nothing of a long answer, of which `backlog` may be held.
async fn lagging(backlog: &str) -> (Stage, impl Sized) {
    let stage = Stage::start(with_stream(&format!("backlog = \"{backlog}\""))).await;
    let mut client = stage.client(Http::H1).await;
    let fields = [("sim-size", "64KiB"), ("sim-count", "1000")];
    client.start("POST", CHAT, &fields, STREAM).await;
    stage.until("a lagging client", |m| m.get("tidegate_stalled_streams") > 0.0).await;
    (stage, client)
}

effects! {
    "server.listen" listen {
        let sim = sim().await;
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\", \"[::1]:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[upstream]]\nurls = [\"http://{}\"]\n", sim.addr());
        let gateway = Gateway::start(&text, None).await;
        assert!(gateway.ready.listen[0].is_ipv4() && gateway.ready.listen[1].is_ipv6());
        for addr in &gateway.ready.listen {
            let mut client = Client::connect(*addr, Http::H1, None).await;
            assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200);
        }
        let metrics = scrape::metrics(gateway.ready.admin).await;
        let series = format!(
            "tidegate_connections_total{{listener=\"{}\",proto=\"h1\"}}", gateway.ready.listen[1]);
        assert_eq!(metrics.get(&series), 1.0);
    }
    "server.workers" workers {
        let stage = Stage::start(Setup { server: "workers = 3".into(), ..Setup::default() }).await;
        // One listening socket each; 0A is LISTEN in the kernel's table.
        let port = format!(":{:04X} 00000000:0000 0A", stage.gateway.ready.listen[0].port());
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
        assert_eq!(sockets.lines().filter(|line| line.contains(&port)).count(), 3);
    }
    "server.drain_deadline" drain_deadline {
        let stage =
            Stage::start(Setup { server: "drain_deadline = \"300ms\"".into(), ..Setup::default() }).await;
        let mut client = stage.client(Http::H1).await;
        let mut live = client.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
        live.until("data:").await;
        let asked = Instant::now();
        stage.gateway.stop();
        let answer = live.rest().await;
        assert!(answer.text().contains("\"draining\""), "{}", answer.text());
        assert!(answer.end == End::Cut && asked.elapsed() < Duration::from_secs(5));
        assert!(asked.elapsed() >= Duration::from_millis(300));
    }
    "server.h2_max_streams" h2_max_streams {
        let stage = Stage::start(Setup { server: "h2_max_streams = 7".into(), ..Setup::default() }).await;
        let mut client = stage.client(Http::H2).await;
        assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200);
        let Client::H2(sender) = client else { panic!("HTTP/2") };
        assert_eq!(sender.current_max_send_streams(), 7, "SETTINGS said so");
    }
    "server.tls.cert" tls_cert {
        // The client trusts the CA of this very certificate alone.
        let stage = Stage::start(Setup { client_tls: true, ..Setup::default() }).await;
        assert_eq!(stage.client(Http::H2).await.stream(&[]).await.end, End::Clean);
    }
    "server.tls.key" tls_key {
        let files = tempfile::tempdir().expect("a folder");
        let (one, two) = (made(), made());
        let write = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let (cert, key) = (write("cert", &one.chain_pem), write("key", &two.key_pem));
        let text = format!("[server.tls]\ncert = {cert:?}\nkey = {key:?}\n[[upstream]]\nurls = [\"http://h\"]\n");
        let loaded = config::parse(&text, "t").unwrap_or_else(|faults| panic!("{faults}"));
        let told = tidegate::server::check_files(&loaded.config).expect_err("another's key");
        assert!(told.to_string().contains("cert"), "{told}");
        write("key", &one.key_pem);
        tidegate::server::check_files(&loaded.config).expect("its own key");
    }
    "server.tls.client_ca" tls_client_ca {
        client_certificates().await;
    }
    "admin.listen" admin_listen {
        let sim = sim().await;
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"[::1]:0\"\n\
             [[upstream]]\nurls = [\"http://{}\"]\n", sim.addr());
        let gateway = Gateway::start(&text, None).await;
        assert!(gateway.ready.admin.is_ipv6());
        assert_eq!(scrape::admin(gateway.ready.admin, "GET", "/readyz").await.0, 200);
    }
    "log.level" log_level {
        let sim = sim().await;
        let files = tempfile::tempdir().expect("a folder");
        let path = files.path().join("gateway.toml");
        for (level, ends) in [("info", 1), ("warn", 0)] {
            let text = format!("[log]\nlevel = \"{level}\"\n[[upstream]]\nurls = [\"http://{}\"]\n", sim.addr());
            std::fs::write(&path, text).expect("a file");
            let program = Program::serve(&["--config", path.to_str().expect("UTF-8")], None);
            let mut client = Client::connect(program.listen, Http::H1, None).await;
            assert_eq!(client.stream(&[]).await.end, End::Clean);
            drop(client);
            program.terminate();
            let said = program.ended().await.stdout;
            assert_eq!(said.matches("stream ended").count(), ends, "{level}: {said}");
        }
    }
    "stream.heartbeat" heartbeat {
        let answer = streamed(with_stream("heartbeat = \"100ms\""),
            &[("sim-interval", "500ms"), ("sim-count", "3")]).await;
        assert!(answer.text().contains(": ping\n"), "{}", answer.text());
        let off = streamed(with_stream("heartbeat = \"off\""),
            &[("sim-interval", "500ms"), ("sim-count", "3")]).await;
        assert!(!off.text().contains(": ping\n"), "{}", off.text());
    }
    "stream.commit_after" commit_after {
        let stage = Stage::start(with_stream("commit_after = \"200ms\"")).await;
        let mut client = stage.client(Http::H1).await;
        let asked = Instant::now();
        let live = client.start("POST", CHAT, &[("sim-first-byte", "2s")], STREAM).await.head().await;
        let waited = asked.elapsed();
        assert_eq!(live.status, 200);
        // To within a tick of the wheel; without the key it would be the upstream's two seconds.
        assert!((100..1500).contains(&waited.as_millis()), "{waited:?}");
        assert_eq!(live.rest().await.end, End::Clean);
    }
    "stream.first_byte" first_byte {
        let answer = streamed(with_stream("first_byte = \"300ms\""), &[("sim-fault", "stall-head")]).await;
        assert_eq!(answer.status, 504);
        assert!(answer.text().contains("upstream_first_byte_timeout"), "{}", answer.text());
    }
    "stream.idle" idle {
        let answer = streamed(with_stream("idle = \"300ms\""), &[("sim-fault", "stall")]).await;
        assert!(answer.text().contains("upstream_idle_timeout"), "{}", answer.text());
        assert_eq!(answer.end, End::Cut);
    }
    "stream.total" total {
        let answer = streamed(with_stream("total = \"500ms\""),
            &[("sim-interval", "50ms"), ("sim-count", "1000")]).await;
        assert!(answer.text().contains("total_timeout"), "{}", answer.text());
        assert_eq!(answer.end, End::Cut);
    }
    "stream.client_stall" client_stall {
        let stage = Stage::start(with_stream("client_stall = \"500ms\"")).await;
        let mut client = stage.client(Http::H1).await;
        let fields = [("sim-size", "64KiB"), ("sim-count", "1000")];
        let started = client.start("POST", CHAT, &fields, STREAM).await;
        stage.until("the stall", |m| m.ended("client_stalled") == 1.0).await;
        drop(started);
    }
    "stream.backlog" backlog_bounds_what_waits {
        let held = |m: &Metrics| m.get("tidegate_backlog_bytes");
        let ((small, _one), (large, _two)) = tokio::join!(lagging("64KiB"), lagging("2MiB"));
        // What is left to hyper ends at hyper's own bound, some 400 KiB, if that is less.
        let relayed = std::env::var_os("TIDEGATE_TEST_NO_RELAY").is_none();
        let wanted = if relayed { 1024.0 } else { 128.0 } * 1024.0;
        let grown = large.until("a large backlog", |m| held(m) > wanted).await;
        // Pieces on their way come on top.
        assert!(held(&grown) < 2.2 * 1024.0 * 1024.0, "{}", held(&grown));
        let small = small.until("a small one", |m| held(m) > 0.0).await;
        let most = if relayed { 256.0 } else { 512.0 } * 1024.0;
        assert!(held(&small) < most, "{}", held(&small));
    }
    "stream.max_event" max_event {
        let answer = streamed(with_stream("max_event = \"64KiB\""), &[("sim-fault", "huge")]).await;
        assert!(answer.text().contains("event_too_long"), "no event_too_long");
        assert_eq!(answer.end, End::Cut);
    }
    "limits.connections" connections {
        let stage =
            Stage::start(Setup { more: "[limits]\nconnections = 2".into(), ..Setup::default() }).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut client = stage.client(Http::H1).await;
            assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200);
            held.push(client);
        }
        let mut third = stage.client(Http::H1).await;
        assert!(third.remains().await.starts_with(b"HTTP/1.1 503 "));
        held.pop();
        stage.until("one left", |m| m.sum("tidegate_connections_live") == 1.0).await;
        assert_eq!(stage.client(Http::H1).await.ask("GET", "/v1/models", &[], "").await.status, 200);
    }
    "limits.streams" streams {
        let stage = Stage::start(Setup { more: "[limits]\nstreams = 1".into(), ..Setup::default() }).await;
        let (mut one, mut two) = (stage.client(Http::H1).await, stage.client(Http::H1).await);
        let mut live = one.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
        live.until("data:").await;
        let full = two.ask("GET", "/v1/models", &[], "").await;
        assert_eq!((full.status, full.header("retry-after")), (503, Some("1")));
        assert!(full.text().contains("streams_limit"), "{}", full.text());
        drop(one);
        stage.until("freed", |m| m.live() == 0.0).await;
        assert_eq!(two.ask("GET", "/v1/models", &[], "").await.status, 200);
    }
    "limits.memory" memory {
        // Sixteen bodies wait for the upstream; there is no room for another, be it one byte.
        for (memory, status) in [("1MiB", 503), ("16MiB", 200)] {
            let stage = Stage::start(Setup {
                more: format!("[limits]\nmemory = \"{memory}\""),
                upstream: "max_streams = 1\nqueue = 100\nqueue_wait = \"60s\"".into(),
                ..Setup::default()
            })
            .await;
            let mut one = stage.client(Http::H1).await;
            let mut live = one.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
            live.until("data:").await;
            let mut waiting = tokio::task::JoinSet::new();
            for n in 1..=16 {
                let mut client = stage.client(Http::H1).await;
                waiting.spawn(async move { client.ask("POST", "/v1/x", &[], vec![b'x'; 64_000]).await });
                let depth = |m: &Metrics| m.get("tidegate_queue_depth{upstream=\"sim\"}") == f64::from(n);
                stage.until("it waits", depth).await;
            }
            let mut last = stage.client(Http::H1).await;
            let last = tokio::spawn(async move { last.ask("POST", "/v1/x", &[], "x").await });
            let told = |m: &Metrics| {
                m.get("tidegate_rejections_total{limit=\"memory\"}") == 1.0
                    || m.get("tidegate_queue_depth{upstream=\"sim\"}") == 17.0
            };
            stage.until("refused or queued", told).await;
            drop(one);
            assert_eq!(last.await.expect("no panic").status, status, "{memory}");
            while let Some(answer) = waiting.join_next().await {
                assert_eq!(answer.expect("no panic").status, 200, "{memory}");
            }
        }
    }
    "limits.body" body {
        for (size, status) in [("1KiB", 413), ("2KiB", 200)] {
            let more = format!("[limits]\nbody = \"{size}\"");
            let stage = Stage::start(Setup { more, ..Setup::default() }).await;
            let answer = stage.client(Http::H1).await.ask("POST", "/v1/x", &[], vec![b'x'; 2000]).await;
            assert_eq!(answer.status, status, "{size}");
        }
    }
    "limits.body_time" body_time {
        // Half of a body, and then nothing.
        assert_eq!(half_a_body("body_rate = \"0B\"\nbody_time = \"1s\"").await, Some(408));
        assert_eq!(half_a_body("body_rate = \"0B\"\nbody_time = \"10s\"").await, None);
    }
    "limits.body_rate" body_rate {
        let (fast, any) = tokio::join!(half_a_body("body_rate = \"1MiB\""), half_a_body("body_rate = \"0B\""));
        assert_eq!((fast, any), (Some(408), None));
    }
    "server.trusted_proxies" trusted_proxies {
        let more = "[limits]\nper_ip = { new_per_second = 1 }".to_owned();
        let server = "trusted_proxies = [\"127.0.0.0/8\"]".to_owned();
        let stage = Stage::start(Setup { more, server, ..Setup::default() }).await;
        let mut client = stage.client(Http::H1).await;
        for (from, status) in [("9.9.9.9", 200), ("9.9.9.9", 429), ("9.9.9.8", 200)] {
            let told = [("x-forwarded-for", from)];
            assert_eq!(client.ask("GET", "/v1/x", &told, "").await.status, status, "{from}");
        }
    }
    "limits.new_streams_per_second" new_streams {
        let lines = "[limits]\nnew_streams_per_second = 2";
        let refused = third(lines, &[], "new_streams").await;
        assert_eq!(refused.status, 503);
        let millis = refused.header("retry-after-ms").and_then(|ms| ms.parse::<u64>().ok());
        assert!(millis.is_some_and(|ms| (1..=500).contains(&ms)), "{millis:?}");
    }
    "limits.new_streams_burst" new_streams_burst {
        let lines = "[limits]\nnew_streams_per_second = 1\nnew_streams_burst = 2";
        assert_eq!(third(lines, &[], "new_streams").await.status, 503);
    }
    "limits.per_ip.streams" per_ip_streams {
        let lines = "[limits]\nper_ip = { streams = 1 }";
        let refused = second_beside(lines, &[], "ip_streams").await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.header("x-ratelimit-limit-requests"), Some("1"));
    }
    "limits.per_ip.new_per_second" per_ip_rate {
        let lines = "[limits]\nper_ip = { new_per_second = 2 }";
        assert_eq!(third(lines, &[], "ip_new_streams").await.status, 429);
    }
    "limits.failed_keys_per_minute" failed_keys {
        let key = auth::new_key().expect("a key");
        let lines = format!("[limits]\nfailed_keys_per_minute = 2\n{}", tenant("", &key, ""));
        let stage = Stage::start(Setup { more: lines, ..Setup::default() }).await;
        let mut client = stage.client(Http::H1).await;
        for status in [401, 401, 429, 429] {
            let wrong = [("authorization", "Bearer wrong")];
            assert_eq!(client.ask("GET", "/v1/x", &wrong, "").await.status, status);
        }
        assert_eq!(stage.sim.counts().requests, 0);
    }
    "cors.origins" cors_origins {
        let more = "[cors]\norigins = [\"https://app.example\"]\n[limits]\nstreams = 1".to_owned();
        let stage = Stage::start(Setup { more, ..Setup::default() }).await;
        let mut client = stage.client(Http::H1).await;
        let page = ("origin", "https://app.example");
        let asked = [page, ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, content-type")];
        let answer = client.ask("OPTIONS", CHAT, &asked, "").await;
        assert_eq!((answer.status, stage.sim.counts().requests), (204, 0));
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
        assert_eq!(answer.header("access-control-allow-headers"), Some("authorization, content-type"));
        let other = [("origin", "https://evil.example"), asked[1]];
        let answer = client.ask("OPTIONS", CHAT, &other, "").await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, None));
        let answer = client.ask("GET", "/v1/x", &[page], "").await;
        assert_eq!(answer.status, 200);
        assert!(answer.header("access-control-expose-headers").is_some_and(|h| h.contains("retry-after")));
        let mut stalled = stage.client(Http::H1).await;
        let mut live = stalled.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
        live.until("data:").await;
        let full = client.ask("GET", "/v1/x", &[page], "").await;
        assert_eq!(full.status, 503);
        assert_eq!(full.header("access-control-allow-origin"), Some("https://app.example"));
    }
    "cors.max_age" cors_max_age {
        let more = "[cors]\norigins = [\"*\"]\nmax_age = \"2m\"".to_owned();
        let stage = Stage::start(Setup { more, ..Setup::default() }).await;
        let asked = [("origin", "https://a.example"), ("access-control-request-method", "GET")];
        let answer = stage.client(Http::H1).await.ask("OPTIONS", CHAT, &asked, "").await;
        assert_eq!(answer.header("access-control-max-age"), Some("120"));
    }
    "tenant.name" tenant_name {
        let key = auth::new_key().expect("a key");
        let route = "tenants = [\"a\"]".to_owned();
        let stage = Stage::start(Setup { more: tenant("", &key, ""), route, ..Setup::default() }).await;
        assert_eq!(with_key(&stage, &key.key).await.status, 200);
    }
    "tenant.key.sha256" tenant_key {
        let key = auth::new_key().expect("a key");
        let stage = Stage::start(Setup { more: tenant("", &key, ""), ..Setup::default() }).await;
        assert_eq!(with_key(&stage, &key.key).await.status, 200);
        let passed = stage.sim.requests().pop().expect("a request");
        assert!(passed.header("authorization").is_none(), "the key is not the upstream's");
        let mut client = stage.client(Http::H1).await;
        for name in ["x-api-key", "api-key"] {
            assert_eq!(client.ask("GET", "/v1/x", &[(name, &key.key)], "").await.status, 200, "{name}");
        }
        let asked = stage.sim.counts().requests;
        let refused = client.ask("POST", CHAT, &[("authorization", "Bearer wrong")], STREAM).await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
        assert!(refused.text().contains("invalid_api_key"), "{}", refused.text());
        assert_eq!(stage.sim.counts().requests, asked, "refusals touch no upstream");
        let setup = Setup { more: tenant("", &key, ""), ..Setup::default() };
        let stage = Stage::start(Setup { route: "family = \"anthropic\"".to_owned(), ..setup }).await;
        let none = stage.client(Http::H2).await.ask("POST", "/v1/messages", &[], STREAM).await;
        assert_eq!(none.status, 401);
        assert!(none.text().contains("authentication_error"), "{}", none.text());
    }
    "tenant.key.expires" tenant_key_expires {
        assert_eq!(keyed("", "expires = 2020-01-01").await, 401);
        assert_eq!(keyed("", "expires = 2999-01-01").await, 200);
    }
    "tenant.key.disabled" tenant_key_disabled {
        assert_eq!(keyed("", "disabled = true").await, 401);
    }
    "tenant.disabled" tenant_disabled {
        assert_eq!(keyed("disabled = true", "").await, 401);
    }
    "tenant.streams" tenant_streams {
        let key = auth::new_key().expect("a key");
        let bearer = format!("Bearer {}", key.key);
        let lines = tenant("streams = 1", &key, "");
        let refused = second_beside(&lines, &[("authorization", &bearer)], "tenant_streams").await;
        assert_eq!(refused.status, 429);
    }
    "tenant.new_per_second" tenant_rate {
        let key = auth::new_key().expect("a key");
        let bearer = format!("Bearer {}", key.key);
        let lines = tenant("new_per_second = 2", &key, "");
        let refused = third(&lines, &[("authorization", &bearer)], "tenant_new_streams").await;
        assert_eq!(refused.status, 429);
    }
    "tenant.tokens_per_minute" tenant_tokens {
        let key = auth::new_key().expect("a key");
        let bearer = format!("Bearer {}", key.key);
        let lines = tenant("tokens_per_minute = { \"small\" = 2000, \"*\" = 100000 }", &key, "");
        let stage = Stage::start(Setup { more: lines, ..Setup::default() }).await;
        let mut client = stage.client(Http::H1).await;
        let of = |model: &str| -> String { format!("{{\"model\":\"{model}\",\"max_tokens\":1500,\"messages\":[]}}") };
        let mut ask = async |model: &str| {
            let fields = [("authorization", bearer.as_str())];
            client.ask("POST", CHAT, &fields, of(model)).await
        };
        assert_eq!(ask("large").await.status, 200);
        assert_eq!(ask("small").await.status, 200);
        stage.until("both are over", |m| m.live() == 0.0).await;
        // The simulator tells the usage of these answers, so what was reserved came back.
        assert_eq!(ask("small").await.status, 200);
    }
    "tenant.weight" tenant_weight { shares("weight = 3", "weight = 1", &[6, 2]).await; }
    "tenant.priority" tenant_priority { shares("", "priority = \"batch\"", &[7, 1]).await; }
    "upstream.max_streams" max_streams {
        let stage = Stage::start(with_upstream("max_streams = 1\nqueue = 1")).await;
        let (mut one, mut two) = (stage.client(Http::H1).await, stage.client(Http::H1).await);
        let mut live = one.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
        live.until("data:").await;
        let waiting = two.start("GET", "/v1/x", &[], "").await;
        stage.until("it waits", |m| m.sum("tidegate_queue_depth") == 1.0).await;
        assert_eq!(stage.sim.counts().requests, 1, "it is not asked");
        drop(one);
        assert_eq!(waiting.head().await.status, 200);
        let metrics = stage.until("it left", |m| m.sum("tidegate_queue_depth") == 0.0).await;
        assert_eq!(metrics.sum("tidegate_queue_wait_seconds_count"), 1.0);
    }
    "upstream.queue" queue {
        let refused = second_beside_with(with_upstream("max_streams = 1\nqueue = 0"), &[], "queue").await;
        assert_eq!(refused.status, 503);
        assert!(refused.text().contains("queue_full"), "{}", refused.text());
    }
    "upstream.queue_wait" queue_wait {
        let setup = with_upstream("max_streams = 1\nqueue_wait = \"300ms\"");
        let refused = second_beside_with(setup, &[], "queue_wait").await;
        assert_eq!(refused.status, 503);
    }
    "route.auth" route_auth {
        let key = auth::new_key().expect("a key");
        let route = "auth = \"none\"".to_owned();
        let stage = Stage::start(Setup { more: tenant("", &key, ""), route, ..Setup::default() }).await;
        assert_eq!(status(&stage.gateway, "/v1/x").await, 200);
    }
    "route.tenants" route_tenants {
        let (one, two) = (auth::new_key().expect("a key"), auth::new_key().expect("a key"));
        let more = tenant("", &one, "") + &tenant("", &two, "").replace("\"a\"", "\"b\"");
        let route = "tenants = [\"b\"]".to_owned();
        let stage = Stage::start(Setup { more, route, ..Setup::default() }).await;
        assert_eq!(with_key(&stage, &one.key).await.status, 403);
        assert_eq!(with_key(&stage, &two.key).await.status, 200);
    }
    "route.timeout" route_timeout {
        let setup = Setup {
            route: "timeout = \"300ms\"".to_owned(),
            ..with_upstream("max_streams = 1\nqueue_wait = \"1h\"")
        };
        assert_eq!(second_beside_with(setup, &[], "deadline").await.status, 503);
        let setup = with_upstream("max_streams = 1\nqueue_wait = \"1h\"");
        let told = [("x-stainless-read-timeout", "0.3")];
        assert_eq!(second_beside_with(setup, &told, "deadline").await.status, 503);
    }
    "route.repeatable" repeatable {
        for (repeatable, asked) in [("false", 1), ("true", 2)] {
            let setup = Setup { route: format!("repeatable = {repeatable}"), ..Setup::default() };
            let stage = Stage::start(setup).await;
            let fields = [("sim-fault", "reset-head"), ("sim-fault-times", "1"), ("sim-stream", "1")];
            stage.client(Http::H1).await.stream(&fields).await;
            assert_eq!(stage.sim.counts().requests, asked, "{repeatable}");
        }
    }
    "route.body_buffer" body_buffer {
        // The model stands behind what is read ahead without the key.
        let body = format!("{{\"messages\":[\"{}\"],\"model\":\"small\"}}", "x".repeat(200_000));
        for (lines, status) in [("body_buffer = \"1MiB\"", 429), ("body_buffer = \"64KiB\"", 200)] {
            let key = auth::new_key().expect("a key");
            let bearer = format!("Bearer {}", key.key);
            let more = tenant("tokens_per_minute = { \"small\" = 100 }\nweight = 1", &key, "");
            let route = lines.to_owned();
            let stage = Stage::start(Setup { more, route, ..Setup::default() }).await;
            let mut client = stage.client(Http::H1).await;
            let fields = [("authorization", bearer.as_str()), ("sim-fault", "stall")];
            let mut first = stage.client(Http::H1).await;
            // The first is granted from a full bucket and leaves it in debt.
            let stream = body.replace("\"messages\"", "\"stream\":true,\"messages\"");
            let headed = first.start("POST", CHAT, &fields, stream).await;
            let _live = headed.head().await;
            assert_eq!(client.ask("POST", CHAT, &fields[..1], body.clone()).await.status, status, "{lines}");
        }
    }
    "route.usage" route_usage {
        for (usage, counted) in [("off", 0.0), ("count", 32.0)] {
            let setup = Setup { route: format!("usage = \"{usage}\""), ..Setup::default() };
            let stage = Stage::start(setup).await;
            stage.client(Http::H1).await.ask("POST", CHAT, &[], "{\"model\":\"m\"}").await;
            let metrics = stage.until("it is over", |m| m.ended("completed") == 1.0).await;
            assert_eq!(metrics.sum("tidegate_tokens_total{"), counted, "{usage}");
        }
    }
    "route.usage_drain" usage_drain {
        for (drain, counted) in [("off", 0.0), ("1m", 32.0)] {
            let route = format!("usage = \"inject\"\nusage_drain = \"{drain}\"");
            let stage = Stage::start(Setup { route, ..Setup::default() }).await;
            let mut client = stage.client(Http::H1).await;
            let fields = [("sim-interval", "100ms"), ("sim-count", "20")];
            let mut live = client.start("POST", CHAT, &fields, STREAM).await.head().await;
            live.until("\"seq\":1").await;
            drop(live);
            drop(client);
            let metrics = stage.until("it is over", |m| m.ended("client_closed") == 1.0).await;
            assert_eq!(metrics.sum("tidegate_tokens_total{"), counted, "{drain}");
        }
    }
    "usage.models" usage_models {
        let more = "[usage]\nmodels = [\"m\"]".to_owned();
        let route = "usage = \"count\"".to_owned();
        let stage = Stage::start(Setup { more, route, ..Setup::default() }).await;
        for model in ["m", "n"] {
            let body = format!("{{\"model\":\"{model}\"}}");
            stage.client(Http::H1).await.ask("POST", CHAT, &[], body).await;
        }
        let metrics = stage.until("both are over", |m| m.ended("completed") == 2.0).await;
        for model in ["m", "*"] {
            let series = format!("tidegate_tokens_total{{tenant=\"\",model=\"{model}\",kind=\"output\"}}");
            assert_eq!(metrics.get(&series), 20.0, "{model}");
        }
    }
    "upstream.name" name {
        let text = format!("{LISTEN}[[upstream]]\nname = \"zebra\"\nurls = [\"http://127.0.0.1:9\"]\n");
        let gateway = Gateway::start(&text, None).await;
        let metrics = scrape::metrics(gateway.ready.admin).await;
        assert_eq!(metrics.get("tidegate_events_total{upstream=\"zebra\"}"), 0.0);
    }
    "upstream.urls" urls {
        let (one, two) = (sim().await, sim().await);
        for (to, other) in [(&one, &two), (&two, &one)] {
            let text = format!("{LISTEN}[[upstream]]\nurls = [\"http://{}\"]\n", to.addr());
            other.reset();
            assert_eq!(status(&Gateway::start(&text, None).await, "/v1/x").await, 200);
            assert_eq!((to.counts().requests, other.counts().requests), (1, 0));
        }
    }
    "upstream.weights" weights {
        let (one, two) = (sim().await, sim().await);
        for (weights, most) in [("[1, 1000000]", [0, 20]), ("[1000000, 1]", [20, 0])] {
            one.reset();
            two.reset();
            let gateway = before(&[&one, &two], &format!("balance = \"weighted\"\nweights = {weights}")).await;
            for _ in 0..20 {
                assert_eq!(status(&gateway, "/v1/x").await, 200);
            }
            assert_eq!([one.counts().requests, two.counts().requests], most, "{weights}");
        }
    }
    "upstream.balance" balance {
        for (balance, both) in [("ordered", false), ("weighted", true), ("least", true), ("fastest", true)] {
            let (one, two) = (sim().await, sim().await);
            let gateway = before(&[&one, &two], &format!("balance = \"{balance}\"")).await;
            // The odds that a fair lot names one only are one in 2^39.
            for _ in 0..40 {
                assert_eq!(status(&gateway, "/v1/x").await, 200);
            }
            assert_eq!(two.counts().requests > 0, both, "{balance}");
        }
    }
    "upstream.sticky" sticky {
        let (one, two) = (sim().await, sim().await);
        let gateway = before(&[&one, &two], "balance = \"weighted\"\nsticky = \"header:x-who\"").await;
        let mut both = BTreeSet::new();
        for who in 0..20 {
            one.reset();
            two.reset();
            let who = who.to_string();
            for _ in 0..3 {
                let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
                client.ask("GET", "/v1/x", &[("x-who", &who)], "").await;
            }
            let counts = [one.counts().requests, two.counts().requests];
            assert!(counts == [3, 0] || counts == [0, 3], "{who}: {counts:?}");
            both.insert(counts);
        }
        assert_eq!(both.len(), 2);
    }
    "upstream.retry.attempts" retry_attempts {
        for (attempts, asked) in [(1, 1), (4, 4)] {
            assert_eq!(asked_for_500(&format!("attempts = {attempts}, backoff = \"1ms\"")).await, asked);
        }
    }
    "upstream.retry.statuses" retry_statuses {
        for (statuses, asked) in [("[]", 1), ("[503]", 1), ("[500]", 2)] {
            assert_eq!(asked_for_500(&format!("statuses = {statuses}")).await, asked, "{statuses}");
        }
    }
    "upstream.retry.first_event" retry_first_event {
        for (first_event, asked) in [("false", 1), ("true", 2)] {
            let stage = Stage::start(with_upstream(format!("retry = {{ first_event = {first_event} }}"))).await;
            stage.client(Http::H1).await.stream(&[("sim-fault", "error-first")]).await;
            assert_eq!(stage.sim.counts().requests, asked, "{first_event}");
        }
    }
    "upstream.retry.budget" retry_budget {
        for (budget, asked) in [("0%", 30), ("100%", 40)] {
            let rule = format!("retry = {{ budget = \"{budget}\", backoff = \"1ms\" }}");
            let stage = Stage::start(with_upstream(&rule)).await;
            let mut client = stage.client(Http::H1).await;
            for _ in 0..20 {
                client.ask("GET", "/v1/x", &[("sim-status", "500")], "").await;
            }
            assert_eq!(stage.sim.counts().requests, asked, "{budget}");
        }
    }
    "upstream.retry.backoff" retry_backoff {
        // Nine pauses of up to a second each, drawn by lot: less than 0.1 s in all once in 10^14 runs.
        let rule = "retry = { attempts = 10, budget = \"100%\", backoff = \"1s\", backoff_max = \"1s\" }";
        let stage = Stage::start(with_upstream(rule)).await;
        let asked = Instant::now();
        stage.client(Http::H1).await.ask("GET", "/v1/x", &[("sim-status", "500")], "").await;
        assert_eq!(stage.sim.counts().requests, 10);
        assert!(asked.elapsed() > Duration::from_millis(100), "{:?}", asked.elapsed());
    }
    "upstream.retry.backoff_max" retry_backoff_max {
        for (max, asked) in [("500ms", 1), ("2s", 2)] {
            let rule = format!("retry = {{ backoff_max = \"{max}\" }}");
            let stage = Stage::start(with_upstream(&rule)).await;
            let fields = [("sim-status", "503"), ("sim-retry-after", "1")];
            stage.client(Http::H1).await.ask("GET", "/v1/x", &fields, "").await;
            assert_eq!(stage.sim.counts().requests, asked, "{max}");
        }
    }
    "upstream.breaker.window" breaker_window {
        // The first failures have left a short window when the others come.
        for (window, opens) in [("1h", true), ("200ms", false)] {
            let rule = format!("window = \"{window}\", requests = 6, consecutive = 100");
            let stage = Stage::start(with_breaker(&rule)).await;
            fail(&stage, 3).await;
            let seen = Instant::now();
            stage.until("a while", |_| seen.elapsed() > Duration::from_millis(300)).await;
            fail(&stage, 3).await;
            assert_eq!(is_open(&stage).await, opens, "{window}");
        }
    }
    "upstream.breaker.requests" breaker_requests {
        for (requests, opens) in [(3, true), (4, false)] {
            let stage = Stage::start(with_breaker(&format!("requests = {requests}, consecutive = 100"))).await;
            fail(&stage, 3).await;
            assert_eq!(is_open(&stage).await, opens, "{requests}");
        }
    }
    "upstream.breaker.share" breaker_share {
        for (share, opens) in [("50%", true), ("51%", false)] {
            let rule = format!("requests = 4, share = \"{share}\", consecutive = 100");
            let stage = Stage::start(with_breaker(&rule)).await;
            assert_eq!(status(&stage.gateway, "/v1/x").await, 200);
            assert_eq!(status(&stage.gateway, "/v1/x").await, 200);
            fail(&stage, 2).await;
            assert_eq!(is_open(&stage).await, opens, "{share}");
        }
    }
    "upstream.breaker.consecutive" breaker_consecutive {
        for (consecutive, opens) in [(3, true), (4, false)] {
            let stage = Stage::start(with_breaker(&format!("consecutive = {consecutive}"))).await;
            fail(&stage, 3).await;
            assert_eq!(is_open(&stage).await, opens, "{consecutive}");
        }
    }
    "upstream.breaker.slow" breaker_slow {
        for (slow, opens) in [("1ms", true), ("off", false)] {
            let stage = Stage::start(with_breaker(&format!("consecutive = 1, slow = \"{slow}\""))).await;
            let fields = [("sim-first-byte", "50ms")];
            assert_eq!(stage.client(Http::H1).await.ask("GET", "/v1/x", &fields, "").await.status, 200);
            assert_eq!(is_open(&stage).await, opens, "{slow}");
        }
    }
    "upstream.breaker.open" breaker_open {
        let stage = Stage::start(with_breaker("consecutive = 1, open = \"200ms\"")).await;
        fail(&stage, 1).await;
        let half = "tidegate_breaker_state{upstream=\"sim\",state=\"half_open\"}";
        stage.until("half-open", |m| m.get(half) == 1.0).await;
    }
    "upstream.breaker.probes" breaker_probes {
        for (probes, opens) in [(1, false), (2, true)] {
            let rule = format!("consecutive = 1, open = \"1ms\", probes = {probes}");
            let stage = Stage::start(with_breaker(&rule)).await;
            fail(&stage, 1).await;
            let half = "tidegate_breaker_state{upstream=\"sim\",state=\"half_open\"}";
            stage.until("half-open", |m| m.get(half) == 1.0).await;
            assert_eq!(status(&stage.gateway, "/v1/x").await, 200);
            let closed = "tidegate_breaker_state{upstream=\"sim\",state=\"closed\"}";
            assert_eq!(stage.metrics().await.get(closed) == 0.0, opens, "{probes}");
        }
    }
    "upstream.health.path" health_path {
        let stage = Stage::start(with_health("path = \"/v1/up?x=1\", interval = \"10ms\"")).await;
        stage.sim.wait_for(|c| c.completed > 0, stage::PATIENCE).await.expect("a check");
        let seen = &stage.sim.requests()[0];
        assert_eq!((&*seen.method, &*seen.path_and_query), ("GET", "/v1/up?x=1"));
    }
    "upstream.health.interval" health_interval {
        let stage = Stage::start(with_health("interval = \"10ms\"")).await;
        stage.sim.wait_for(|c| c.requests > 5, stage::PATIENCE).await.expect("checks");
        let stage = Stage::start(with_health("interval = \"1h\"")).await;
        stage.sim.wait_for(|c| c.requests > 0, stage::PATIENCE).await.expect("the first");
        assert_eq!(status(&stage.gateway, "/v1/x").await, 200);
        assert_eq!(stage.sim.counts().requests, 2);
    }
    "upstream.health.timeout" health_timeout {
        let slow = Behaviour { first_byte: Duration::from_millis(300), ..Behaviour::default() };
        for (timeout, first) in [("10ms", false), ("5s", true)] {
            let (one, two) = (sim_of(slow.clone()).await, sim().await);
            let lines = format!("health = {{ interval = \"10ms\", changes = 1, timeout = \"{timeout}\" }}");
            assert_eq!(the_first_answers(&one, &two, &lines).await, first, "{timeout}");
        }
    }
    "upstream.health.status" health_status {
        for (wanted, first) in [(200, false), (404, true)] {
            let (one, two) = (sim_of(Behaviour { status: Some(404), ..Behaviour::default() }).await, sim().await);
            let lines = format!("health = {{ path = \"/v1/x\", interval = \"10ms\", changes = 1, status = {wanted} }}");
            assert_eq!(the_first_answers(&one, &two, &lines).await, first, "{wanted}");
        }
    }
    "upstream.health.changes" health_changes {
        for (changes, first) in [(1, false), (100, true)] {
            let (one, two) = (sim_of(Behaviour { status: Some(404), ..Behaviour::default() }).await, sim().await);
            let lines = format!("health = {{ interval = \"1h\", changes = {changes} }}");
            assert_eq!(the_first_answers(&one, &two, &lines).await, first, "{changes}");
        }
    }
    "upstream.resolve" resolve {
        // What is resolved, and when, is a test of `upstream::resolve`; here it is only taken.
        let stage = Stage::start(with_upstream("resolve = \"1ms\"\npool_idle_max = 0")).await;
        for _ in 0..3 {
            assert_eq!(status(&stage.gateway, "/v1/x").await, 200);
        }
        assert_eq!(stage.sim.counts().connections, 3);
    }
    "upstream.http" http_version {
        for (upstream_h2, version) in [(false, "HTTP/1.1"), (true, "HTTP/2")] {
            let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
            assert_eq!(status(&stage.gateway, "/v1/x").await, 200);
            assert_eq!(stage.sim.requests()[0].version, version);
        }
        let sim = sim().await;
        let text = format!("{LISTEN}[[upstream]]\nhttp = \"2\"\nurls = [\"http://{}\"]\n", sim.addr());
        assert_eq!(status(&Gateway::start(&text, None).await, "/v1/x").await, 200);
        assert_eq!(sim.requests()[0].version, "HTTP/2", "the upstream would have taken either");
    }
    "upstream.ca" ca {
        let stage = Stage::start(Setup { upstream_tls: true, ..Setup::default() }).await;
        assert_eq!(status(&stage.gateway, "/v1/x").await, 200);
        let text = format!("{LISTEN}[[upstream]]\nurls = [\"https://localhost:{}\"]\n", stage.sim.addr().port());
        assert_eq!(status(&Gateway::start(&text, None).await, "/v1/x").await, 502, "unknown CA");
    }
    "upstream.credential.env" credential_env {
        // cargo sets it for tests.
        let seen = seen("credential = { env = \"CARGO_PKG_NAME\" }").await;
        assert_eq!(seen.header("authorization"), Some("Bearer tidegate"));
    }
    "upstream.credential.file" credential_file {
        let seen = credential("").await;
        assert_eq!(seen.header("authorization"), Some("Bearer sk-file"));
    }
    "upstream.credential.header" credential_header {
        let seen = credential(", header = \"x-key\"").await;
        assert!(seen.header("x-key").is_some_and(|value| value.ends_with("sk-file")));
        assert_eq!(seen.header("authorization"), None);
    }
    "upstream.credential.scheme" credential_scheme {
        let seen = credential(", scheme = \"Token\"").await;
        assert_eq!(seen.header("authorization"), Some("Token sk-file"));
    }
    "upstream.headers" headers {
        assert_eq!(seen("headers = { x-a = \"b\" }").await.header("x-a"), Some("b"));
    }
    "upstream.query" query {
        assert_eq!(seen("query = { v = \"1\" }").await.path_and_query, "/v1/x?v=1");
    }
    "upstream.connect" connect {
        // TCP connects by the backlog; the TLS handshake never ends.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = silent.local_addr().expect("an address").port();
        let text = format!(
            "{LISTEN}[[upstream]]\nconnect = \"300ms\"\nurls = [\"https://127.0.0.1:{port}\"]\n");
        let gateway = Gateway::start(&text, None).await;
        let asked = Instant::now();
        assert_eq!(status(&gateway, "/v1/x").await, 504);
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        let metrics = scrape::metrics(gateway.ready.admin).await;
        let timeouts = "tidegate_upstream_connects_total{upstream=\"main\",result=\"tls_timeout\"}";
        // Nothing was sent, so it was tried twice.
        assert_eq!(metrics.get(timeouts), 2.0);
    }
    "upstream.pool_idle_max" pool_idle_max {
        let setup = Setup { server: "workers = 1".into(), ..with_upstream("pool_idle_max = 1") };
        let stage = Stage::start(setup).await;
        let ask = async || {
            let slow = [("sim-first-byte", "300ms")];
            stage.client(Http::H1).await.ask("GET", "/v1/x", &slow, "").await
        };
        tokio::join!(ask(), ask(), ask());
        assert_eq!(stage.sim.counts().connections, 3);
        let idle = "tidegate_upstream_connections{upstream=\"sim\",state=\"idle\"}";
        stage.until("one is kept", |m| m.get(idle) == 1.0).await;
        stage.sim.wait_for(|c| c.connections_live == 1, stage::PATIENCE).await.expect("others closed");
        // With 0 not even one that somebody waits for carries a second request.
        for (kept, dialled) in [(1, 1), (0, 3)] {
            let lines = format!("pool_idle_max = {kept}\nmax_streams = 1");
            let setup = Setup { server: "workers = 1".into(), ..with_upstream(&lines) };
            let stage = Stage::start(setup).await;
            let ask = async || stage.client(Http::H1).await.ask("GET", "/v1/x", &[], "").await.status;
            assert_eq!(tokio::join!(ask(), ask(), ask()), (200, 200, 200));
            assert_eq!(stage.sim.counts().connections, dialled, "pool_idle_max = {kept}");
        }
    }
    "upstream.pool_max" pool_max {
        for (max, connections) in [(0, 3), (2, 2)] {
            let lines = format!("pool_max = {max}");
            let setup = Setup { server: "workers = 1".into(), ..with_upstream(&lines) };
            let stage = Stage::start(setup).await;
            let ask = async || {
                let slow = [("sim-first-byte", "300ms")];
                stage.client(Http::H1).await.ask("GET", "/v1/x", &slow, "").await.status
            };
            assert_eq!(tokio::join!(ask(), ask(), ask()), (200, 200, 200));
            assert_eq!(stage.sim.counts().connections, connections, "{max}");
        }
    }
    "upstream.pool_idle" pool_idle {
        for (idle, connections) in [("1ms", 2), ("50s", 1)] {
            let lines = format!("pool_idle = \"{idle}\"");
            let setup = Setup { server: "workers = 1".into(), ..with_upstream(&lines) };
            let stage = Stage::start(setup).await;
            let mut client = stage.client(Http::H1).await;
            assert_eq!(client.ask("GET", "/v1/x", &[], "").await.status, 200);
            let at_rest = "tidegate_upstream_connections{upstream=\"sim\",state=\"active\"}";
            stage.until("it is idle", |m| m.get(at_rest) == 0.0).await;
            assert_eq!(client.ask("GET", "/v1/x", &[], "").await.status, 200);
            assert_eq!(stage.sim.counts().connections, connections, "{idle}");
        }
    }
    "upstream.pool_lifetime" pool_lifetime {
        for (lifetime, connections) in [("1s", 2), ("off", 1)] {
            let lines = format!("pool_lifetime = \"{lifetime}\"");
            let setup = Setup { server: "workers = 1".into(), ..with_upstream(&lines) };
            let stage = Stage::start(setup).await;
            let mut client = stage.client(Http::H1).await;
            for wait in ["1200ms", "0ms"] {
                let slow = [("sim-first-byte", wait)];
                assert_eq!(client.ask("GET", "/v1/x", &slow, "").await.status, 200);
            }
            assert_eq!(stage.sim.counts().connections, connections, "{lifetime}");
        }
    }
    "upstream.pool_dials" pool_dials {
        // TCP connects by the backlog; the TLS handshake never ends.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = silent.local_addr().expect("an address").port();
        for dials in [1, 2] {
            let text = format!(
                "{LISTEN}[[upstream]]\nconnect = \"1m\"\nurls = [\"https://127.0.0.1:{port}\"]\n\
                 http = 1\npool_dials = {dials}\n");
            let gateway = Gateway::start(&text, None).await;
            let mut asking = tokio::task::JoinSet::new();
            for _ in 0..3 {
                let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
                asking.spawn(async move { client.ask("GET", "/v1/x", &[], "").await });
            }
            let connecting = "tidegate_upstream_connections{upstream=\"main\",state=\"connecting\"}";
            let waiting = "tidegate_pool_waiting{upstream=\"main\"}";
            let all = |m: &Metrics| m.get(waiting) == 3.0 && m.get(connecting) > 0.0;
            let metrics = scrape::until(gateway.ready.admin, "they wait", all).await;
            assert_eq!(metrics.get(connecting), f64::from(dials));
        }
    }
    "upstream.pool_warm" pool_warm {
        let setup = Setup { server: "workers = 1".into(), ..with_upstream("pool_warm = 2") };
        let stage = Stage::start(setup).await;
        stage.sim.wait_for(|c| c.connections == 2, stage::PATIENCE).await.expect("two connections");
        assert_eq!(stage.sim.counts().requests, 0);
    }
    "route.path" path {
        let sim = sim().await;
        let text = format!("{LISTEN}[[upstream]]\nurls = [\"http://{}\"]\n\
            [[route]]\npath = \"/only/{{*rest}}\"\nupstream = \"main\"\n", sim.addr());
        let gateway = Gateway::start(&text, None).await;
        assert_eq!((status(&gateway, "/only/x").await, status(&gateway, "/v1/x").await), (200, 404));
    }
    "route.upstream" route_upstream {
        let (one, two) = (sim().await, sim().await);
        let text = format!("{LISTEN}[[upstream]]\nname = \"one\"\nurls = [\"http://{}\"]\n\
            [[upstream]]\nname = \"two\"\nurls = [\"http://{}\"]\n\
            [[route]]\npath = \"/v1/{{*rest}}\"\nupstream = \"two\"\n\
            [[route]]\npath = \"/v2/{{*rest}}\"\nupstream = \"one\"\n", one.addr(), two.addr());
        let gateway = Gateway::start(&text, None).await;
        assert_eq!(status(&gateway, "/v1/x").await, 200);
        assert_eq!((one.counts().requests, two.counts().requests), (0, 1));
        assert_eq!(status(&gateway, "/v2/x").await, 200);
        assert_eq!((one.counts().requests, two.counts().requests), (1, 1));
    }
    "route.weights" route_weights {
        let asked = split("balance = \"weighted\"\nweights = [1000000, 1]", &[]).await;
        assert!(asked[1] <= 1, "{asked:?}");
    }
    "route.balance" route_balance {
        assert_eq!(split("", &[]).await, [40, 0]);
        let asked = split("balance = \"weighted\"", &[]).await;
        assert!((8..=32).contains(&asked[0]), "{asked:?}");
    }
    "route.sticky" route_sticky {
        let route = "balance = \"weighted\"\nsticky = \"header:x-session\"";
        let asked = split(route, &[("x-session", "one")]).await;
        assert!(asked == [40, 0] || asked == [0, 40], "{asked:?}");
    }
    "route.family" family {
        let fields = [("sim-fault", "no-done")];
        let open_ai = streamed(Setup::default(), &fields).await;
        assert!(open_ai.text().contains("upstream_truncated") && open_ai.end == End::Cut);
        let plain = streamed(Setup { route: "family = \"plain\"".into(), ..Setup::default() }, &fields).await;
        assert_eq!(plain.end, End::Clean, "the end of a plain stream is its completion");
    }
    "route.heartbeat_style" heartbeat_style {
        let fields = [("sim-interval", "400ms"), ("sim-count", "2")];
        for (style, wanted) in [
            ("comment", Some("\n\n: ping\ndata:")),
            ("comment-frame", Some("\n\n: ping\n\n")),
            ("anthropic", Some("event: ping\ndata: {\"type\": \"ping\"}\n\n")),
            ("off", None),
        ] {
            let route = format!("heartbeat_style = \"{style}\"\nfamily = \"plain\"");
            let setup = Setup { route, ..with_stream("heartbeat = \"300ms\"") };
            let text = streamed(setup, &fields).await.text().replace("\"type\":\"ping\"", "\"type\": \"ping\"");
            match wanted {
                Some(wanted) => assert!(text.contains(wanted), "{style}: {text}"),
                None => assert!(!text.contains("ping"), "{style}: {text}"),
            }
        }
        // OpenAI's clients would take Anthropic's for a chunk.
        let route = "heartbeat_style = \"anthropic\"".to_owned();
        let setup = Setup { route, ..with_stream("heartbeat = \"300ms\"") };
        let text = streamed(setup, &fields).await.text();
        assert!(text.contains("\n\n: ping\ndata:") && !text.contains("event: ping"), "{text}");
    }
}

/// A gateway before these, in this order.
async fn before(sims: &[&Sim], lines: &str) -> Gateway {
    let urls: Vec<_> = sims.iter().map(|sim| format!("\"http://{}\"", sim.addr())).collect();
    let urls = urls.join(", ");
    Gateway::start(&format!("{LISTEN}[[upstream]]\nurls = [{urls}]\n{lines}\n"), None).await
}

async fn sim_of(defaults: Behaviour) -> Sim {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let options = sim::Options { defaults, ..sim::Options::default() };
    Sim::start(any, options).await.expect("a simulated upstream")
}

/// How often an upstream that only ever answers 500 is asked for one request, with a rule of these.
async fn asked_for_500(rule: &str) -> u64 {
    let stage = Stage::start(with_upstream(format!("retry = {{ {rule} }}"))).await;
    let mut client = stage.client(Http::H1).await;
    assert_eq!(client.ask("GET", "/v1/x", &[("sim-status", "500")], "").await.status, 500);
    stage.sim.counts().requests
}

fn with_breaker(rule: &str) -> Setup {
    with_upstream(format!("breaker = {{ {rule} }}"))
}

fn with_health(rule: &str) -> Setup {
    with_upstream(format!("health = {{ {rule} }}"))
}

/// So many failures in a row.
async fn fail(stage: &Stage, times: usize) {
    let mut client = stage.client(Http::H1).await;
    for _ in 0..times {
        let answer = client.ask("GET", "/v1/x", &[("sim-status", "500")], "").await;
        assert_eq!(answer.status, 500);
    }
}

async fn is_open(stage: &Stage) -> bool {
    let open = "tidegate_breaker_state{upstream=\"sim\",state=\"open\"}";
    stage.metrics().await.get(open) == 1.0
}

/// Whether requests go to the first of two, once it has been checked.
async fn the_first_answers(one: &Sim, two: &Sim, lines: &str) -> bool {
    let gateway = before(&[one, two], lines).await;
    one.wait_for(|c| c.completed + c.cancelled >= 1, stage::PATIENCE).await.expect("a check");
    let deadline = Instant::now() + Duration::from_secs(2);
    // A verdict may be under way; one that does not come is none.
    while Instant::now() < deadline {
        let before = two.requests().iter().filter(|seen| seen.path_and_query == "/v1/y").count();
        status(&gateway, "/v1/y").await;
        if two.requests().iter().filter(|seen| seen.path_and_query == "/v1/y").count() > before {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

fn made() -> sim::Certificate {
    sim::make_certificate(&["localhost"]).expect("a certificate")
}

/// What the upstream saw with a credential from a file, and `more` about it.
async fn credential(more: &str) -> sim::Seen {
    let files = tempfile::tempdir().expect("a folder");
    let path = files.path().join("key");
    std::fs::write(&path, "sk-file").expect("a file");
    seen(format!("credential = {{ file = {path:?}{more} }}")).await
}

async fn client_certificates() {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

    let files = tempfile::tempdir().expect("a folder");
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let path = files.path().join("clients.pem");
    std::fs::write(&path, ca.self_signed(&ca_key).expect("a CA").pem()).expect("a file");
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["client".to_owned()]).expect("a name");
    let leaf = params.signed_by(&key, &issuer).expect("a certificate");

    let own = made();
    let (cert, server_key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    std::fs::write(&cert, &own.chain_pem).expect("a file");
    std::fs::write(&server_key, &own.key_pem).expect("a file");
    let upstream = sim().await;
    let text = format!(
        "{LISTEN}[server.tls]\ncert = {cert:?}\nkey = {server_key:?}\nclient_ca = {path:?}\n\
         [[upstream]]\nurls = [\"http://{}\"]\n",
        upstream.addr()
    );
    let gateway = Gateway::start(&text, None).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(own.ca_pem.as_bytes()).expect("PEM")).expect("a CA");
    for with in [true, false] {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots.clone());
        let tls = match with {
            false => builder.with_no_client_auth(),
            true => {
                let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes());
                builder
                    .with_client_auth_cert(vec![leaf.der().clone()], key.expect("PEM"))
                    .expect("a client certificate")
            }
        };
        let tcp = tokio::net::TcpStream::connect(gateway.ready.listen[0]).await.expect("open");
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
        let Ok(socket) = stage::soon(connector.connect(name, tcp)).await else {
            assert!(!with);
            continue;
        };
        let mut client = Client::H1(Box::new(socket), bytes::BytesMut::new());
        client.raw(b"GET /v1/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        let answered = client.remains().await.starts_with(b"HTTP/1.1 200");
        assert_eq!(answered, with, "a certificate is {with}");
    }
    assert_eq!(upstream.counts().requests, 1);
}
