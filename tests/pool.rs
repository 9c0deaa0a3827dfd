//! Connections to upstreams: reused, spread, counted, verified, and no request lost to a dead one.

#[path = "pool/ages.rs"]
mod ages;
#[path = "pool/bounds.rs"]
mod bounds;
#[path = "pool/leaks.rs"]
mod leaks;
#[path = "pool/owned.rs"]
mod owned;
mod stage;
#[path = "pool/warm.rs"]
mod warm;

use bytes::Bytes;
use serde_json::Value;
use stage::client::{CHAT, STREAM};
use stage::{Answer, Client, End, Gateway, Http, Metrics, Setup, Stage, scrape};
use tidegate::sim::{self, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

fn one_worker(setup: Setup) -> Setup {
    Setup { server: "workers = 1".into(), ..setup }
}

fn connections(metrics: &Metrics, state: &str) -> f64 {
    metrics.sum(&format!("tidegate_upstream_connections{{upstream=\"sim\",state=\"{state}\""))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_connections_are_used_again_one_exchange_after_the_other() {
    let stage = Stage::start(one_worker(Setup::default())).await;
    let mut client = stage.client(Http::H1).await;
    for n in 0..8 {
        let answer = match n % 4 {
            0 => client.ask("GET", "/v1/models", &[], "").await,
            1 => client.stream(&[]).await,
            2 => client.ask("HEAD", "/v1/models", &[], "").await,
            _ => client.ask("PUT", "/v1/x", &[], vec![b'x'; 200_000]).await,
        };
        assert_eq!((answer.status, &answer.end), (200, &End::Clean), "{n}");
        let idle = |m: &Metrics| connections(m, "idle") == 1.0 && connections(m, "active") == 0.0;
        stage.until("idle again", idle).await;
    }
    let numbers: Vec<_> = stage.sim.requests().iter().map(|seen| seen.connection).collect();
    assert_eq!(numbers, [1; 8]);
    assert_eq!(stage.sim.counts().connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_burst_over_http_2_spreads_over_as_many_connections_as_settings_ask_for() {
    for upstream_tls in [false, true] {
        let sim = sim::Options { h2_max_streams: Some(10), ..sim::Options::default() };
        let setup = Setup { upstream_h2: true, upstream_tls, sim, ..Setup::default() };
        let stage = Stage::start(one_worker(setup)).await;
        let Client::H2(sender) = stage.client(Http::H2).await else { panic!("HTTP/2") };
        let tasks: Vec<_> = (0..95)
            .map(|_| {
                let mut client = Client::H2(sender.clone());
                let fields = [("sim-interval", "100ms"), ("sim-count", "15")];
                tokio::spawn(async move { client.stream(&fields).await })
            })
            .collect();
        for task in tasks {
            let answer: Answer = task.await.expect("no panic");
            assert_eq!((answer.status, &answer.end), (200, &End::Clean));
            assert!(answer.text().ends_with("data: [DONE]\n\n"));
        }
        let counts = stage.sim.counts();
        assert_eq!((counts.completed, counts.cancelled), (95, 0));
        assert!((10..=26).contains(&counts.connections), "{counts:?}");
        let metrics = stage.until("all idle", |m| connections(m, "active") == 0.0).await;
        assert_eq!(connections(&metrics, "idle"), counts.connections as f64);
        assert_eq!(connections(&metrics, "connecting"), 0.0);
        let opened =
            metrics.get("tidegate_upstream_connects_total{upstream=\"sim\",result=\"ok\"}");
        assert_eq!(opened, counts.connections as f64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gauge_returns_when_upstreams_go_away() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(one_worker(Setup { upstream_h2, ..Setup::default() })).await;
        let mut client = stage.client(Http::H1).await;
        for fault in ["none", "fin", "rst", "conn", "bad-chunk", "goaway", "early"] {
            client = match client.stream(&[("sim-fault", fault)]).await.end {
                End::Clean => client,
                End::Cut => stage.client(Http::H1).await,
            };
            // A broken connection must not be given to the next request, which would wait on it.
            let next = client.stream(&[]).await;
            assert_eq!((next.status, &next.end), (200, &End::Clean), "after {fault}");
        }
        drop(client);
        let Stage { sim, gateway, .. } = stage;
        let admin = gateway.ready.admin;
        let open = sim.counts().connections_live as f64;
        scrape::until(admin, "what is open is idle", |m| {
            connections(m, "active") == 0.0 && connections(m, "idle") <= open.max(1.0)
        })
        .await;
        drop(sim);
        // Its connections close with the simulator's tasks only when those end, so ask no more.
        gateway.stop();
        gateway.ended().await;
    }
}

/// An upstream that closes each connection after one answer, before the gateway reuses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_closes_idle_connections_fails_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (closed, mut closes) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else { return };
            let closed = closed.clone();
            tokio::spawn(async move {
                let done = closes_after_one(socket).await;
                closed.send_modify(|closed| *closed += 1);
                done
            });
        }
    });
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"http://127.0.0.1:{port}\"]\n"
    );
    let gateway = Gateway::start(&text, None).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    for n in 0..200 {
        let method = if n % 2 == 0 { "POST" } else { "GET" };
        let body = if n % 2 == 0 { "{}" } else { "" };
        let answer = client.ask(method, "/v1/x", &[], body).await;
        assert_eq!(answer.status, 200, "{n}: {}", answer.text());
        // Closed just as it is used again it would be another matter: the request may have run.
        stage::soon(closes.wait_for(|closed| *closed > n)).await.expect("it closes");
    }
    let gone = |m: &Metrics| connections(m, "active") == 0.0;
    scrape::until(gateway.ready.admin, "none is active", gone).await;
}

async fn closes_after_one(mut socket: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if socket.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    if head.starts_with(b"POST") && head.ends_with(b"\r\n\r\n") {
        let _ = socket.read_buf(&mut head).await?;
    }
    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
    // It says nothing of closing, and does.
    socket.shutdown().await
}

/// The answer to one request through a gateway with this upstream, and the metrics then.
async fn through(upstream: &str) -> (Answer, Metrics) {
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"sim\"\n{upstream}\n"
    );
    let gateway = Gateway::start(&text, None).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    let answer = client.ask("POST", CHAT, &[], STREAM).await;
    (answer, scrape::metrics(gateway.ready.admin).await)
}

async fn fails(upstream: &str, status: u16, code: &str, result: &str) -> String {
    let (answer, metrics) = through(upstream).await;
    assert_eq!(answer.status, status, "{upstream}: {}", answer.text());
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(body["error"]["code"], code, "{upstream}: {body}");
    let series =
        format!("tidegate_upstream_connects_total{{upstream=\"sim\",result=\"{result}\"}}");
    assert!(metrics.get(&series) >= 1.0, "{upstream}");
    assert_eq!(metrics.ended("upstream_error"), 1.0, "{upstream}");
    assert_eq!(connections(&metrics, "connecting"), 0.0);
    body["error"]["message"].as_str().expect("a message").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_to_connect_are_told_apart() {
    let told = fails("urls = [\"http://no-such-host.invalid\"]", 502, "upstream_dns", "dns").await;
    assert!(told.contains("no-such-host.invalid"), "{told}");
    // Bound and let go: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let port = port.expect("an address").port();
    let refused = format!("urls = [\"http://127.0.0.1:{port}\"]");
    fails(&refused, 502, "upstream_connect", "refused").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_verified() {
    let files = tempfile::tempdir().expect("a folder");
    let own = sim::make_certificate(&["localhost"]).expect("a certificate");
    let other = sim::make_certificate(&["localhost"]).expect("a certificate");
    let (own_ca, other_ca) = (files.path().join("own.pem"), files.path().join("other.pem"));
    std::fs::write(&own_ca, &own.ca_pem).expect("a file");
    std::fs::write(&other_ca, &other.ca_pem).expect("a file");
    let options = sim::Options { tls: Some(own.into()), ..sim::Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.expect("an upstream");
    let port = sim.addr().port();

    let unknown = format!("urls = [\"https://localhost:{port}\"]");
    fails(&unknown, 502, "upstream_tls", "tls").await;
    let wrong_ca = format!("{unknown}\nca = {other_ca:?}");
    fails(&wrong_ca, 502, "upstream_tls", "tls").await;
    let wrong_name = format!("urls = [\"https://127.0.0.1:{port}\"]\nca = {own_ca:?}");
    fails(&wrong_name, 502, "upstream_tls", "tls").await;
    let clear = format!("urls = [\"https://{}\"]\nca = {own_ca:?}", cleartext().await);
    fails(&clear, 502, "upstream_tls", "tls").await;
    assert_eq!(sim.counts().requests, 0, "nothing was sent to whom it was not meant for");
    let right = format!("{unknown}\nca = {own_ca:?}");
    let (answer, _) = through(&right).await;
    assert_eq!((answer.status, &answer.end), (200, &End::Clean));
    // ALPN chose, since `http` is "auto".
    assert_eq!(sim.requests()[0].version, "HTTP/2");
}

/// The address of a server that answers TLS with cleartext.
async fn cleartext() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_address_before_a_live_one_costs_nothing_but_a_try() {
    // The name has both addresses on some machines and one on others; each must do.
    let all: Vec<_> = tokio::net::lookup_host("localhost:0").await.expect("it resolves").collect();
    for addr in all {
        let sim = Sim::start(addr, sim::Options::default()).await.expect("an upstream");
        let url = format!("urls = [\"http://localhost:{}\"]", sim.addr().port());
        let (answer, _) = through(&url).await;
        assert_eq!(answer.status, 200, "{addr}: {}", answer.text());
    }
    // And the second url is used when the first takes no connection.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let port = port.expect("an address").port();
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), sim::Options::default()).await.expect("up");
    let two = format!("urls = [\"http://127.0.0.1:{port}\", \"http://{}\"]", sim.addr());
    assert_eq!(through(&two).await.0.status, 200);
}

/// TLS 1.1 and older: a server that offers nothing newer is refused. Its hello is made by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_below_1_2_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut hello = [0; 1024];
            let _ = socket.read(&mut hello).await;
            // A ServerHello of version 3.2 (TLS 1.1): random, no session, AES128-SHA.
            let mut body = vec![3, 2];
            body.extend([7; 32]);
            body.extend([0, 0, 0x2f, 0]);
            let mut raw = vec![22, 3, 2, 0, body.len() as u8 + 4, 2, 0, 0, body.len() as u8];
            raw.extend(body);
            let _ = socket.write_all(&raw).await;
            let _ = socket.read(&mut hello).await;
        }
    });
    fails(&format!("urls = [\"https://{addr}\"]"), 502, "upstream_tls", "tls").await;
}

/// One client's cancelled stream leaves the others on its upstream connection alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_stream_leaves_its_upstream_connection_to_the_others() {
    let stage = Stage::start(one_worker(Setup { upstream_h2: true, ..Setup::default() })).await;
    let (mut stays, mut leaves) = (stage.client(Http::H1).await, stage.client(Http::H1).await);
    let fields = [("sim-interval", "100ms"), ("sim-count", "10")];
    let mut live = stays
        .start("POST", CHAT, &fields, Bytes::from_static(STREAM.as_bytes()))
        .await
        .head()
        .await;
    live.until("data:").await;
    let mut gone = leaves.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head().await;
    gone.until("data:").await;
    drop(leaves);
    stage.sim.wait_for(|c| c.cancelled == 1, stage::PATIENCE).await.expect("cancelled upstream");
    assert_eq!(live.rest().await.end, End::Clean);
    assert_eq!(stage.sim.counts().connections, 1);
}
