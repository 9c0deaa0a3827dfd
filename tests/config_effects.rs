//! Every key of the configuration does something that a client or an operator can see, or `check`
//! says that it does not yet. A key with neither fails here.

mod stage;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stage::client::{CHAT, STREAM};
use stage::{Answer, Client, End, Gateway, Http, Metrics, Setup, Stage, scrape};
use tidegate::config::{self, NoticeKind};
use tidegate::sim::{self, Sim};

/// One row per key: the key, and the test that sees its effect.
macro_rules! effects {
    ($($key:literal $name:ident $body:block)+) => {
        const SEEN: &[&str] = &[$($key),+];
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() $body)+
    };
}

/// Keys that are checked and have no effect yet, with a value that is not the default.
const NOT_YET: &[(&str, &str, &str)] = &[
    ("server.trusted_proxies", "server", "trusted_proxies = [\"10.0.0.0/8\"]"),
    ("limits.new_streams_per_second", "limits", "new_streams_per_second = 7"),
    ("limits.per_ip.streams", "limits", "per_ip = { streams = 5 }"),
    ("limits.per_ip.new_per_second", "limits", "per_ip = { new_per_second = 5 }"),
    ("limits.memory", "limits", "memory = \"512MiB\""),
    ("upstream.max_streams", "upstream", "max_streams = 5"),
    ("upstream.queue", "upstream", "queue = 5"),
    ("upstream.queue_wait", "upstream", "queue_wait = \"1s\""),
    ("route.resume", "route", "resume = true"),
];

#[test]
fn every_key_is_seen_to_work_or_said_not_to() {
    for (key, section, line) in NOT_YET {
        let lines = |name| if name == *section { *line } else { "" };
        let text = format!(
            "[server]\n{}\n[limits]\n{}\n[[upstream]]\nname = \"a\"\nurls = [\"http://h\"]\n{}\n\
             [[route]]\npath = \"/v1/{{*rest}}\"\nupstream = \"a\"\n{}\n",
            lines("server"),
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

/// How large the backlog of a client grows that reads nothing.
async fn backlog(size: &str) -> f64 {
    let setup = with_stream(&format!("backlog = \"{size}\""));
    let stage = Stage::start(setup).await;
    let mut client = stage.client(Http::H1).await;
    let fields = [("sim-size", "64KiB"), ("sim-count", "1000")];
    let _started = client.start("POST", CHAT, &fields, STREAM).await;
    let mut last = (Instant::now(), -1.0, 0.0);
    let settled = |m: &Metrics| m.get("tidegate_bytes_total{direction=\"in\",side=\"upstream\"}");
    loop {
        let now =
            stage.until("a lagging client", |m| m.get("tidegate_stalled_streams") > 0.0).await;
        if settled(&now) != last.1 {
            last = (Instant::now(), settled(&now), 0.0);
        } else if last.0.elapsed() > Duration::from_millis(500) {
            return now.get("tidegate_backlog_bytes");
        }
        tokio::task::yield_now().await;
    }
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
        let (small, large) = tokio::join!(backlog("64KiB"), backlog("2MiB"));
        assert!(small < 256.0 * 1024.0 && large > 2.0 * small, "{small} against {large}");
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
        let timeouts = "tidegate_upstream_connects_total{upstream=\"main\",result=\"timeout\"}";
        assert_eq!(metrics.get(timeouts), 1.0);
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
            let route = format!("heartbeat_style = \"{style}\"");
            let setup = Setup { route, ..with_stream("heartbeat = \"300ms\"") };
            let text = streamed(setup, &fields).await.text().replace("\"type\":\"ping\"", "\"type\": \"ping\"");
            match wanted {
                Some(wanted) => assert!(text.contains(wanted), "{style}: {text}"),
                None => assert!(!text.contains("ping"), "{style}: {text}"),
            }
        }
    }
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
