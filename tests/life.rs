//! The life of the process: what operators see, how it drains, what it survives, what it never tells.

mod stage;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use stage::client::{CHAT, STREAM};
use stage::program::{self, Program};
use stage::{Answer, Client, End, Http, Setup, Stage, scrape};
use tidegate::sim::{self, Sim};
use tokio::net::TcpStream;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text}"))
}

/// The table of metrics that outside scripts rely on.
const CONTRACT: &str = "tidegate_connections_live tidegate_connections_total tidegate_streams_live \
    tidegate_requests_total tidegate_stream_ttfb_seconds tidegate_chunk_interval_seconds \
    tidegate_stream_jitter_seconds tidegate_stream_max_gap_seconds tidegate_chunk_relay_seconds \
    tidegate_gateway_overhead_seconds tidegate_stream_duration_seconds tidegate_bytes_total \
    tidegate_events_total tidegate_streams_ended_total tidegate_heartbeats_total \
    tidegate_backlog_bytes tidegate_stalled_streams tidegate_rejections_total tidegate_queue_depth \
    tidegate_queue_wait_seconds tidegate_upstream_connections tidegate_upstream_connects_total \
    tidegate_upstream_handshake_seconds tidegate_breaker_state tidegate_retries_total \
    tidegate_resumes_total tidegate_log_bytes tidegate_config_reloads_total \
    tidegate_log_lines_dropped_total tidegate_build_info process_resident_memory_bytes \
    process_open_fds process_cpu_seconds_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_see_it_even_when_the_data_side_is_full() {
    let stage =
        Stage::start(Setup { more: "[limits]\nconnections = 1".into(), ..Setup::default() }).await;
    let admin = stage.gateway.ready.admin;
    let mut client = stage.client(Http::H1).await;
    let mut live = client
        .start("POST", CHAT, &[("sim-fault", "stall"), ("x-request-id", "my-id")], STREAM)
        .await
        .head()
        .await;
    live.until("data:").await;
    let mut refused = stage.client(Http::H1).await;
    assert!(refused.remains().await.starts_with(b"HTTP/1.1 503 "));

    let (status, text) = scrape::admin(admin, "GET", "/metrics").await;
    assert_eq!(status, 200);
    let typed: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for name in CONTRACT.split_whitespace() {
        assert!(typed.contains(name), "{name} is not in /metrics");
    }
    let metrics = stage.metrics().await;
    assert_eq!(metrics.get("tidegate_rejections_total{limit=\"connections\"}"), 1.0);
    assert_eq!(metrics.live(), 1.0);

    let (_, rows) = scrape::admin(admin, "GET", "/streams").await;
    let rows = json(&rows);
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    let row = &rows[0];
    assert_eq!((&row["id"], &row["route"]), (&"my-id".into(), &"/v1/{*rest}".into()));
    assert_eq!(row["upstream"], "sim");
    assert!(row["bytes"].as_u64() > Some(0), "{row}");
    for number in ["age_ms", "last_activity_ms", "backlog"] {
        assert!(row[number].is_u64(), "{number}: {row}");
    }
    assert_eq!(scrape::admin(admin, "GET", "/healthz").await.0, 200);
    assert_eq!(scrape::admin(admin, "GET", "/readyz").await.0, 200);
    assert_eq!(scrape::admin(admin, "GET", "/nonsense").await.0, 404);
    for (method, path) in [("POST", "/metrics"), ("DELETE", "/streams"), ("GET", "/drain")] {
        assert_eq!(scrape::admin(admin, method, path).await.0, 405, "{method} {path}");
    }
    drop(client);
    stage.until("all gone", |m| m.live() == 0.0).await;
    assert_eq!(scrape::admin(admin, "GET", "/streams").await.1, "[]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_streams_finish_and_takes_nothing_new() {
    for http in [Http::H1, Http::H2] {
        let stage = Stage::start(Setup::default()).await;
        let admin = stage.gateway.ready.admin;
        let mut client = stage.client(http).await;
        let fields = [("sim-interval", "100ms"), ("sim-count", "15")];
        let mut live = client.start("POST", CHAT, &fields, STREAM).await.head().await;
        live.until("data:").await;
        assert_eq!(scrape::admin(admin, "POST", "/drain").await.0, 202);
        assert_eq!(scrape::admin(admin, "GET", "/readyz").await.0, 503);
        assert_eq!(scrape::admin(admin, "GET", "/healthz").await.0, 200);
        assert_eq!(scrape::admin(admin, "POST", "/drain").await.0, 202, "again changes nothing");
        let deadline = Instant::now() + stage::PATIENCE;
        while TcpStream::connect(stage.gateway.ready.listen[0]).await.is_ok() {
            assert!(Instant::now() < deadline, "it still takes connections");
            tokio::task::yield_now().await;
        }
        let answer = live.rest().await;
        assert_eq!(answer.end, End::Clean, "{http:?}");
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
        drop(client);
        let Stage { gateway, .. } = stage;
        gateway.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stop_ends_streams_at_once_with_an_error_event() {
    for http in [Http::H1, Http::H2] {
        let stage = Stage::start(Setup::default()).await;
        let mut client = stage.client(http).await;
        let mut live =
            client.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
        live.until("data:").await;
        stage.gateway.stop();
        stage::soon(async {
            while scrape::admin(stage.gateway.ready.admin, "GET", "/readyz").await.0 != 503 {}
        })
        .await;
        let asked = Instant::now();
        stage.gateway.stop();
        let answer = live.rest().await;
        assert!(answer.text().contains("\"draining\""), "{}", answer.text());
        assert_eq!(answer.end, End::Cut, "{http:?}");
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        drop(client);
        let Stage { gateway, .. } = stage;
        gateway.ended().await;
    }
}

fn panics(headers: &http::HeaderMap) {
    assert!(!headers.contains_key("x-panic"), "a test wants it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_takes_its_request_only() {
    let setup = Setup { fault: Some(panics), server: "workers = 1".into(), ..Setup::default() };
    let stage = Stage::start(setup).await;
    let (mut one, mut other) = (stage.client(Http::H2).await, stage.client(Http::H1).await);
    let Client::H2(same) = &one else { panic!("HTTP/2") };
    let same = same.clone();
    let fields = [("sim-interval", "50ms"), ("sim-count", "10")];
    let beside = one.start("POST", CHAT, &fields, STREAM).await.head().await;
    let elsewhere = other.start("POST", CHAT, &fields, STREAM).await.head().await;
    for http in [Http::H1, Http::H2] {
        let mut client = match http {
            Http::H1 => stage.client(Http::H1).await,
            Http::H2 => Client::H2(same.clone()),
        };
        let answer: Answer = client.ask("POST", CHAT, &[("x-panic", "1")], STREAM).await;
        assert_eq!(answer.status, 500, "{http:?}");
        assert_eq!(json(&answer.text())["error"]["code"], "internal");
        assert!(answer.header("tidegate-request-id").is_some());
        assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200, "same connection");
    }
    for live in [beside, elsewhere] {
        let answer = live.rest().await;
        assert_eq!((answer.status, &answer.end), (200, &End::Clean));
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
    }
    let metrics = stage.until("all ended", |m| m.live() == 0.0).await;
    assert_eq!(metrics.ended("internal"), 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_limits_are_told_and_counted() {
    let stage =
        Stage::start(Setup { more: "[limits]\nstreams = 2".into(), ..Setup::default() }).await;
    let mut client = stage.client(Http::H2).await;
    let Client::H2(sender) = &client else { panic!("HTTP/2") };
    let mut second = Client::H2(sender.clone());
    let stall = [("sim-fault", "stall")];
    let mut one = client.start("POST", CHAT, &stall, STREAM).await.head().await;
    let mut two = second.start("POST", CHAT, &stall, STREAM).await.head().await;
    one.until("data:").await;
    two.until("data:").await;
    for http in [Http::H1, Http::H2] {
        let full = stage.client(http).await.stream(&[]).await;
        assert_eq!(full.status, 503);
        assert_eq!(full.header("retry-after"), Some("1"));
        assert_eq!(full.header("retry-after-ms"), Some("1000"));
        assert_eq!(json(&full.text())["error"]["code"], "streams_limit");
    }
    let metrics = stage.metrics().await;
    assert_eq!(metrics.get("tidegate_rejections_total{limit=\"streams\"}"), 2.0);
    assert_eq!(stage.sim.counts().requests, 2);
    drop(one);
    stage.until("one place is free", |m| m.live() == 1.0).await;
    assert_eq!(stage.client(Http::H1).await.stream(&[]).await.end, End::Clean);
}

async fn upstream() -> (Sim, String) {
    let any = ([127, 0, 0, 1], 0).into();
    let sim = Sim::start(any, sim::Options::default()).await.expect("an upstream");
    let url = format!("http://{}", sim.addr());
    (sim, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_survives_running_out_of_files() {
    let (_sim, url) = upstream().await;
    let program = Program::serve(&["--upstream", &url, "--workers", "1"], Some(40));
    // Operators' connections are not limited by the clamp on clients', so they fill the table.
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(TcpStream::connect(program.admin).await.expect("the kernel's queue takes it"));
    }
    program.logged("accept on the admin listener failed").await;
    let mut client = Client::connect(program.listen, Http::H1, None).await;
    client.raw(b"GET /v1/models HTTP/1.1\r\nhost: g\r\n\r\n").await;
    program.logged("accept failed").await;
    drop(held);
    assert_eq!(client.answer().await.status, 200, "it goes on");
    assert_eq!(scrape::admin(program.admin, "GET", "/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_instance_on_the_same_port_is_refused() {
    let (_sim, url) = upstream().await;
    let program = Program::serve(&["--upstream", &url], None);
    let (listen, admin) = (program.listen.to_string(), program.admin.to_string());
    for (listen, admin, taken) in
        [(listen.as_str(), "127.0.0.1:0", &listen), ("127.0.0.1:0", admin.as_str(), &admin)]
    {
        let args = ["serve", "--upstream", &url, "--listen", listen, "--admin", admin];
        let second = program::run(&args);
        assert_eq!(second.code, Some(1), "{}", second.stderr);
        let told = format!("{taken} is in use");
        assert!(second.stderr.contains(&told), "{}", second.stderr);
    }
    let mut client = Client::connect(program.listen, Http::H1, None).await;
    assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200, "the first serves on");
}

#[test]
fn check_tells_every_fault_and_exits_78() {
    let files = tempfile::tempdir().expect("a folder");
    let path = files.path().join("bad.toml");
    let text = "[server]\nlisten = [\"nowhere\"]\nworkerz = 3\n[stream]\nidle = 5\n\
        [[upstream]]\nname = \"a\"\nurls = [\"ftp://x\"]\nhttp = \"3\"\n";
    std::fs::write(&path, text).expect("a file");
    let name = path.to_str().expect("UTF-8");
    for args in [&["check", "--config", name][..], &["serve", "--config", name][..]] {
        let ended = program::run(args);
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        for key in ["server.listen", "workerz", "workers", "stream.idle", "urls", "http"] {
            assert!(ended.stderr.contains(key), "{key}: {}", ended.stderr);
        }
    }
    std::fs::write(&path, "[[upstream]]\nurls = [\"https://h\"]\n").expect("a file");
    let good = program::run(&["check", "--config", name]);
    assert_eq!(good.code, Some(0), "{}", good.stderr);
    assert_eq!(program::run(&["serve"]).code, Some(78), "nothing to serve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains_and_the_log_has_one_line_per_stream_and_no_secret() {
    const CANARY: &str = "sk-canary-7f3a9";
    let (sim, url) = upstream().await;
    let files = tempfile::tempdir().expect("a folder");
    let (key, path) = (files.path().join("key"), files.path().join("gateway.toml"));
    std::fs::write(&key, format!("{CANARY}-upstream")).expect("a file");
    let text = format!(
        "[stream]\nidle = \"300ms\"\n[[upstream]]\nname = \"main\"\nurls = [\"{url}\"]\n\
         credential = {{ file = {key:?} }}\nheaders = {{ x-extra = \"{CANARY}-header\" }}\n"
    );
    std::fs::write(&path, text).expect("a file");
    let program = Program::serve(&["--config", path.to_str().expect("UTF-8")], None);
    let mut client = Client::connect(program.listen, Http::H1, None).await;
    let body = format!("{{\"stream\":true,\"messages\":[{{\"content\":\"{CANARY}-content\"}}]}}");
    let bearer = format!("Bearer {CANARY}-client");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut said = String::new();
    for (n, fault) in
        ["none", "fin", "stall", "reset-head", "error-first", "bad-chunk"].iter().enumerate()
    {
        let id = format!("id-{n}");
        let fields = [
            ("authorization", bearer.as_str()),
            ("cookie", bearer.as_str()),
            ("sim-fault", fault),
            ("x-request-id", &id),
            ("traceparent", trace),
        ];
        let mut client = Client::connect(program.listen, Http::H1, None).await;
        said += &client
            .ask("POST", &format!("{CHAT}?key={CANARY}-query"), &fields, body.clone())
            .await
            .text();
    }
    let authorized =
        |seen: &sim::Seen| seen.header("authorization") == Some("Bearer sk-canary-7f3a9-upstream");
    assert!(sim.requests().iter().all(authorized));
    let fields = [("sim-interval", "100ms"), ("sim-count", "8"), ("x-request-id", "last")];
    let mut live = client.start("POST", CHAT, &fields, body.clone()).await.head().await;
    live.until("data:").await;
    said += &scrape::admin(program.admin, "GET", "/streams").await.1;
    said += &scrape::admin(program.admin, "GET", "/metrics").await.1;
    program.terminate();
    assert_eq!(live.rest().await.end, End::Clean, "a drain lets it finish");
    drop(client);
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let lines: Vec<Value> = ended.stdout.lines().map(json).collect();
    let ends: Vec<_> = lines.iter().filter(|line| line["message"] == "stream ended").collect();
    let ids: Vec<_> = ends.iter().filter_map(|line| line["id"].as_str()).collect();
    assert_eq!(ids, ["id-0", "id-1", "id-2", "id-3", "id-4", "id-5", "last"]);
    let reasons: Vec<_> = ends.iter().filter_map(|line| line["reason"].as_str()).collect();
    assert_eq!(
        (reasons[0], reasons[2], reasons[6]),
        ("completed", "upstream_timeout", "completed")
    );
    for name in
        ["route", "upstream", "status", "duration_ms", "events", "bytes", "attempt", "timestamp"]
    {
        assert!(ends.iter().all(|line| !line[name].is_null()), "{name}: {ends:?}");
    }
    assert_eq!(ends[0]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert!(ends[0]["ttfb_ms"].is_number());
    // The only one whose events certainly arrive one after another.
    assert!(ends[6]["max_gap_ms"].as_f64().is_some_and(|gap| gap > 50.0), "{}", ends[6]);
    assert!(ends[0]["upstream_request_id"].as_str().is_some_and(|id| id.starts_with("req_sim")));
    for text in [&said, &ended.stdout, &ended.stderr] {
        assert!(!text.contains("canary"), "a secret was told: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_line_tells_who_answered_and_which_attempt_that_was() {
    let any = || std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let refuses = sim::Behaviour { status: Some(503), ..sim::Behaviour::default() };
    let options = sim::Options { defaults: refuses, ..sim::Options::default() };
    let refusing = Sim::start(any(), options).await.expect("an upstream");
    let (good, url) = upstream().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "[[upstream]]\nname = \"first\"\nurls = [\"http://{}\"]\n\
         retry = {{ attempts = 1, statuses = [503] }}\n\
         breaker = {{ consecutive = 1, open = \"10m\" }}\n\
         [[upstream]]\nname = \"second\"\nurls = [\"{url}\"]\n\
         [[route]]\nupstream = [\"first\", \"second\"]\n",
        refusing.addr()
    );
    std::fs::write(file.path(), text).expect("a file");
    let program = Program::serve(&["--config", file.path().to_str().expect("UTF-8")], None);
    let mut client = Client::connect(program.listen, Http::H1, None).await;
    for id in ["both", "breaker"] {
        let answer = client.ask("POST", CHAT, &[("x-request-id", id)], STREAM).await;
        assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
    }
    drop(client);
    program.terminate();
    let ended = program.ended().await;
    let lines: Vec<Value> = ended.stdout.lines().map(json).collect();
    for (id, attempt) in [("both", 2), ("breaker", 1)] {
        let line = lines.iter().find(|line| line["id"] == id).expect("one line each");
        assert_eq!(line["upstream"], "second", "{line}");
        assert_eq!(line["attempt"], attempt, "{line}");
    }
    assert_eq!((refusing.counts().requests, good.counts().requests), (1, 2));
}
