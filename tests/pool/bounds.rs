//! `pool_max` and `pool_dials`: how many connections there are, how many are opened at once, and who
//! gets the next.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidegate::sim::{self, Options};
use tidegate::telemetry::cells::{ConnState, ConnectResult};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinSet, spawn_local};

use super::owned::{self, Process, Worker, read};
use super::stage::client::{CHAT, STREAM};
use super::stage::{Client, Gateway, Http, Metrics, PATIENCE, Setup, Stage, scrape, soon};

const PATH: &str = "/v1/models";

/// Waits until so many of the worker's requests wait for a connection.
async fn waiting(worker: &Worker, count: i64) {
    soon(async {
        while worker.cells().waiting.get() != count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[test]
fn at_pool_max_requests_wait_for_a_connection_that_comes_free() {
    owned::run(async {
        for h2 in [false, true] {
            // Two exchanges at once: on two connections, or on one that takes two streams.
            let options = Options { h1: !h2, h2, h2_max_streams: Some(2), ..Options::default() };
            let (sim, max) = (owned::sim_of(options).await, if h2 { 1 } else { 2 });
            let process = Process::new(&[sim.addr()], h2, &format!("pool_max = {max}"));
            let worker = process.worker();
            let (first, second) = (worker.answer(PATH).await, worker.answer(PATH).await);
            let third = worker.clone();
            let third = spawn_local(async move { third.whole(PATH).await });
            waiting(&worker, 1).await;
            assert_eq!(sim.counts().requests, 2, "h2 {h2}");
            read(second).await;
            soon(third).await.expect("no panic");
            read(first).await;
            assert_eq!((worker.cells().waiting.get(), sim.counts().connections), (0, max));
            assert_eq!(sim.counts().requests, 3);
        }
    });
}

/// Two workers, the second of which waits for the only place, which the first's connection has.
async fn waits_for_the_others_place(
    h2: bool,
    sim: &sim::Sim,
) -> (Process, Rc<Worker>, Rc<Worker>, tokio::task::JoinHandle<()>) {
    let process = Process::new(&[sim.addr()], h2, "pool_max = 1");
    let (one, two) = (process.worker(), process.worker());
    one.whole(PATH).await;
    one.until(ConnState::Idle, 1).await;
    let asks = two.clone();
    let asks = spawn_local(async move { asks.whole(PATH).await });
    waiting(&two, 1).await;
    (process, one, two, asks)
}

#[test]
fn an_idle_connection_makes_room_for_another_worker() {
    owned::run(async {
        for h2 in [false, true] {
            let sim = owned::sim(h2).await;
            let (_process, one, two, asks) = waits_for_the_others_place(h2, &sim).await;
            assert_eq!(sim.counts().connections, 1, "h2 {h2}: there is one place");
            one.upstream.make_room();
            soon(asks).await.expect("no panic");
            assert_eq!(
                (one.connections(ConnState::Idle), two.connections(ConnState::Idle)),
                (0, 1)
            );
            sim.wait_for(|c| c.connections_live == 1, PATIENCE)
                .await
                .expect("the other one closed");
            // Nobody waits: what is idle stays.
            two.upstream.make_room();
            assert_eq!(two.connections(ConnState::Idle), 1);
        }
    });
}

#[test]
fn an_idle_connection_makes_room_for_another_url() {
    owned::run(async {
        let (one, two) = (owned::sim(false).await, owned::sim(false).await);
        // By lot, while both have no stream.
        let lines = "pool_max = 1\nbalance = \"least\"";
        let process = Process::new(&[one.addr(), two.addr()], false, lines);
        let worker = process.worker();
        let asks = worker.clone();
        let asks = spawn_local(async move {
            for _ in 0..64 {
                asks.whole(PATH).await;
            }
        });
        soon(async {
            while !asks.is_finished() {
                worker.upstream.make_room();
                tokio::task::yield_now().await;
            }
        })
        .await;
        soon(asks).await.expect("no panic");
        let (one, two) = (one.counts(), two.counts());
        assert!(one.requests > 0 && two.requests > 0, "{one:?} {two:?}");
        assert_eq!(one.requests + two.requests, 64);
        let open = worker.connections(ConnState::Idle) + worker.connections(ConnState::Active);
        assert_eq!(open, 1);
    });
}

#[test]
fn a_request_that_leaves_takes_no_connection_from_another_worker() {
    owned::run(async {
        let sim = owned::sim(false).await;
        let (_process, one, two, asks) = waits_for_the_others_place(false, &sim).await;
        asks.abort();
        waiting(&two, 0).await;
        one.upstream.make_room();
        assert_eq!(one.connections(ConnState::Idle), 1);
        one.whole(PATH).await;
        assert_eq!(sim.counts().connections, 1);
    });
}

#[test]
fn under_load_the_longest_wait_is_served_next_give_or_take_a_second() {
    owned::run(async {
        for (head_start, handed_over) in
            [(Duration::from_millis(900), false), (Duration::from_secs(2), true)]
        {
            let sim = owned::sim(false).await;
            let process = Process::new(&[sim.addr()], false, "pool_max = 1");
            let (one, two) = (process.worker(), process.worker());
            let held = one.answer(PATH).await;
            let asks = two.clone();
            let foreign = spawn_local(async move { asks.answer("/v1/foreign").await });
            waiting(&two, 1).await;
            process.after(head_start);
            let asks = one.clone();
            let own = spawn_local(async move { asks.answer("/v1/own").await });
            waiting(&one, 1).await;
            read(held).await;
            let (first, path) =
                if handed_over { (foreign, "/v1/foreign") } else { (own, "/v1/own") };
            let first = soon(first).await.expect("no panic");
            assert_eq!(sim.requests()[1].path_and_query, path, "after {head_start:?}");
            assert_eq!(sim.counts().connections, 1 + u64::from(handed_over));
            drop(first);
            soon(async {
                while sim.counts().requests < 3 {
                    one.upstream.make_room();
                    two.upstream.make_room();
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    });
}

#[test]
fn a_busy_http_2_connection_makes_room_behind_its_last_stream() {
    owned::run(async {
        let sim = owned::sim(true).await;
        let process = Process::new(&[sim.addr()], true, "pool_max = 1");
        let (one, two) = (process.worker(), process.worker());
        one.whole(PATH).await;
        let held = one.answer(PATH).await;
        let asks = two.clone();
        let asks = spawn_local(async move { asks.whole(PATH).await });
        waiting(&two, 1).await;
        one.upstream.make_room();
        assert_eq!(one.connections(ConnState::Active), 1, "not at once");
        process.after(Duration::from_secs(1));
        one.upstream.make_room();
        assert_eq!(
            (one.connections(ConnState::Active), one.connections(ConnState::Closing)),
            (0, 1)
        );
        assert_eq!(two.cells().waiting.get(), 1, "its stream goes on");
        read(held).await;
        soon(asks).await.expect("no panic");
        assert_eq!(one.connections(ConnState::Closing), 0);
        assert_eq!(sim.counts().connections, 2);
    });
}

#[test]
fn connections_are_opened_in_the_order_of_asking() {
    owned::run(async {
        let sim = owned::sim(false).await;
        let process = Process::new(&[sim.addr()], false, "pool_dials = 1");
        let (one, two) = (process.worker(), process.worker());
        let mut asking = JoinSet::new();
        let paths = ["/v1/0", "/v1/1", "/v1/2", "/v1/3", "/v1/4", "/v1/5", "/v1/6", "/v1/7"];
        for (n, path) in paths.into_iter().enumerate() {
            let worker = if n % 3 == 0 { one.clone() } else { two.clone() };
            asking.spawn_local(async move { worker.answer(path).await });
            // It asks now.
            tokio::task::yield_now().await;
            process.after(Duration::from_millis(1));
        }
        // All are kept, so that none is used again.
        let held = soon(asking.join_all()).await;
        let mut seen = sim.requests();
        seen.sort_by_key(|seen| seen.connection);
        let seen: Vec<_> = seen.into_iter().map(|seen| seen.path_and_query).collect();
        assert_eq!(seen, paths);
        assert_eq!(sim.counts().connections, paths.len() as u64);
        drop(held);
    });
}

/// An HTTP/1.1 server over TLS that notes how many handshakes were under way at once. Each takes some
/// time, as over a distance.
struct Handshakes {
    port: u16,
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

impl Handshakes {
    async fn start(certificate: &sim::Certificate) -> Arc<Handshakes> {
        let chain = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes());
        let chain = chain.collect::<Result<_, _>>().expect("a chain");
        let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).expect("a key");
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(chain, key).expect("they fit");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (now, most, all) = (0.into(), 0.into(), 0.into());
        let counts = Arc::new(Handshakes { port, now, most, all });
        let counting = counts.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, counts) = (acceptor.clone(), counting.clone());
                tokio::spawn(async move {
                    counts.all.fetch_add(1, Relaxed);
                    let now = counts.now.fetch_add(1, Relaxed) + 1;
                    counts.most.fetch_max(now, Relaxed);
                    // The way there and back.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    // Done here before the last flight is, which is what the gateway waits for.
                    counts.now.fetch_sub(1, Relaxed);
                    let Ok(mut tls) = acceptor.accept(socket).await else { return };
                    let mut request = Vec::new();
                    while tls.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
                        while let Some(end) = memchr::memmem::find(&request, b"\r\n\r\n") {
                            request.drain(..end + 4);
                            let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                            if tls.write_all(ok).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        counts
    }
}

/// Asks for `PATH` so often at once, over HTTP/2 connections of a hundred streams; the statuses.
async fn burst(gateway: &Gateway, count: usize) -> Vec<u16> {
    let mut asking = JoinSet::new();
    let mut left = count;
    while left > 0 {
        let Client::H2(sender) = Client::connect(gateway.ready.listen[0], Http::H2, None).await
        else {
            panic!("HTTP/2")
        };
        for _ in 0..left.min(100) {
            let mut client = Client::H2(sender.clone());
            asking.spawn(async move { client.ask("GET", PATH, &[], "").await.status });
        }
        left -= left.min(100);
    }
    asking.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_starts_no_more_handshakes_at_once_than_pool_dials() {
    let certificate = sim::make_certificate(&["localhost"]).expect("a certificate");
    let files = tempfile::tempdir().expect("a folder");
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, &certificate.ca_pem).expect("a file");
    let server = Handshakes::start(&certificate).await;
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [limits]\nnew_streams_per_second = 10000\nnew_streams_burst = 10000\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"https://localhost:{}\"]\nhttp = 1\nca = {ca:?}\n\
         pool_dials = 6\n",
        server.port
    );
    let gateway = Gateway::start(&text, None).await;
    let statuses = burst(&gateway, 1000).await;
    assert_eq!(statuses, [200; 1000]);
    let none_left = |m: &Metrics| {
        m.get("tidegate_upstream_connections{upstream=\"sim\",state=\"connecting\"}") == 0.0
    };
    let metrics = scrape::until(gateway.ready.admin, "all dials have ended", none_left).await;
    let (most, all) = (server.most.load(Relaxed), server.all.load(Relaxed));
    assert!((2..=6).contains(&most), "{most} at once, {all} in all");
    assert_eq!(metrics.get("tidegate_pool_waiting{upstream=\"sim\"}"), 0.0);
    assert_eq!(metrics.sum("tidegate_upstream_connects_total{"), all as f64);
}

/// Whoever has waited for a turn as long as connecting may take fails with those that had one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_takes_no_connection_keeps_nobody_waiting_for_a_turn() {
    // TCP connects by the backlog; the TLS handshake never ends.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"https://127.0.0.1:{port}\"]\nhttp = 1\n\
         connect = \"400ms\"\npool_dials = 2\nretry.attempts = 1\n"
    );
    let gateway = Gateway::start(&text, None).await;
    let asked = Instant::now();
    assert_eq!(burst(&gateway, 80).await, [504; 80]);
    // One after the other, two at a time, they would be told in 16 s.
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    let metrics = scrape::metrics(gateway.ready.admin).await;
    let timeouts = "tidegate_upstream_connects_total{upstream=\"sim\",result=\"tls_timeout\"}";
    assert!(metrics.get(timeouts) <= 8.0, "{}", metrics.get(timeouts));
}

/// A reload's numbers act at once, on the pools that are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_pool_max_for_those_who_wait() {
    let sim = owned::sim(false).await;
    let text = |max: usize| {
        format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[upstream]]\nname = \"sim\"\nurls = [\"http://{}\"]\nhttp = 1\npool_max = {max}\n",
            sim.addr()
        )
    };
    let gateway = Gateway::start(&text(1), None).await;
    let client = async || Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    let (mut one, mut two) = (client().await, client().await);
    let stall = [("sim-fault", "stall")];
    let mut held = one.start("POST", CHAT, &stall, STREAM).await.head().await;
    held.until("data:").await;
    let asked = two.start("GET", PATH, &[], "").await;
    let waits = |m: &Metrics| m.get("tidegate_pool_waiting{upstream=\"sim\"}") == 1.0;
    scrape::until(gateway.ready.admin, "it waits", waits).await;
    assert_eq!(sim.counts().connections, 1);
    gateway.reload(&text(2)).await.unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(soon(asked.head()).await.rest().await.status, 200);
    assert_eq!(sim.counts().connections, 2, "the first connection was kept");
    assert_eq!(sim.counts().cancelled, 0);
}

#[test]
fn after_a_lower_pool_max_connections_close_as_they_come_free() {
    owned::run(async {
        for h2 in [false, true] {
            let options = Options { h1: !h2, h2, h2_max_streams: Some(1), ..Options::default() };
            let sim = owned::sim_of(options).await;
            let mut process = Process::new(&[sim.addr()], h2, "");
            let worker = process.worker();
            // HTTP/2 with one stream on each: the next is opened when its SETTINGS do not come any more.
            let mut held = Vec::new();
            for _ in 0..3 {
                let asks = worker.clone();
                let asked = spawn_local(async move { asks.answer(PATH).await });
                soon(async {
                    while !asked.is_finished() {
                        process.after(Duration::from_millis(100));
                        worker.upstream.close_idle();
                        tokio::task::yield_now().await;
                    }
                })
                .await;
                held.push(asked.await.expect("no panic"));
            }
            assert_eq!(sim.counts().connections, 3, "h2 {h2}");
            process.reload("pool_max = 1");
            worker.upstream.make_room();
            assert_eq!(worker.connections(ConnState::Active), 3, "h2 {h2}: all are in use");
            for (held, left) in held.into_iter().zip([2, 1, 1]) {
                read(held).await;
                worker.upstream.make_room();
                let closed = sim.wait_for(|c| c.connections_live == left, PATIENCE).await;
                closed
                    .unwrap_or_else(|counts| panic!("h2 {h2}: {left} are to be left: {counts:?}"));
            }
            worker.whole(PATH).await;
            assert_eq!(sim.counts().connections, 3, "h2 {h2}: one was kept");
            assert_eq!(sim.counts().cancelled, 0);
        }
    });
}

/// Four workers on threads of their own, fewer connections than that, and clients that leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_workers_share_few_connections_and_every_request_is_answered() {
    for upstream_h2 in [false, true] {
        let setup = Setup {
            upstream_h2,
            server: "workers = 4".into(),
            upstream: "pool_max = 3".into(),
            ..Setup::default()
        };
        let stage = Arc::new(Stage::start(setup).await);
        let mut clients = JoinSet::new();
        for n in 0..40_usize {
            let stage = stage.clone();
            clients.spawn(async move {
                for _ in 0..8 {
                    let mut client = stage.client(Http::H1).await;
                    let slow = [("sim-first-byte", "5ms")];
                    let ask = client.ask("GET", PATH, &slow, "");
                    if n.is_multiple_of(5) {
                        // It leaves, wherever its request is.
                        let _ = tokio::time::timeout(Duration::from_millis(7), ask).await;
                    } else {
                        assert_eq!(ask.await.status, 200);
                    }
                }
            });
        }
        clients.join_all().await;
        let still = |m: &Metrics| {
            m.live() == 0.0 && m.get("tidegate_pool_waiting{upstream=\"sim\"}") == 0.0
        };
        let metrics = stage.until("nobody waits", still).await;
        let open = metrics.sum("tidegate_upstream_connections{");
        assert!((1.0..=3.0).contains(&open), "{open}");
        let left = stage.sim.wait_for(|c| c.connections_live <= 3, PATIENCE).await;
        left.unwrap_or_else(|counts| panic!("{counts:?}"));
    }
}

/// Waiting for a connection is bounded as waiting for the head is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_for_a_connection_is_told_within_its_first_byte() {
    let setup = Setup {
        stream: "first_byte = \"500ms\"".into(),
        upstream: "pool_max = 1".into(),
        ..Setup::default()
    };
    let stage = Stage::start(setup).await;
    let (mut one, mut two) = (stage.client(Http::H1).await, stage.client(Http::H1).await);
    let stall = [("sim-fault", "stall")];
    let mut held = one.start("POST", CHAT, &stall, STREAM).await.head().await;
    held.until("data:").await;
    let answer = two.ask("GET", PATH, &[], "").await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(answer.text().contains("upstream_first_byte_timeout"), "{}", answer.text());
    assert_eq!((stage.sim.counts().connections, stage.sim.counts().requests), (1, 1));
    let none = |m: &Metrics| m.get("tidegate_pool_waiting{upstream=\"sim\"}") == 0.0;
    stage.until("nobody waits", none).await;
    drop(one);
    stage.until("the place is free", |m| m.live() == 0.0).await;
    assert_eq!(two.ask("GET", PATH, &[], "").await.status, 200);
}

#[test]
fn what_is_being_opened_counts_for_pool_max() {
    owned::run(async {
        let sim = owned::sim(false).await;
        let process = Process::new(&[sim.addr()], false, "pool_max = 3");
        let workers = [(); 3].map(|()| process.worker());
        let mut asking = JoinSet::new();
        for n in 0..12 {
            let worker = workers[n % 3].clone();
            asking.spawn_local(async move {
                let held = worker.answer(PATH).await;
                tokio::task::yield_now().await;
                read(held).await;
            });
        }
        soon(async {
            while asking.try_join_next().is_some() || !asking.is_empty() {
                workers.iter().for_each(|worker| worker.upstream.make_room());
                assert!(sim.counts().connections_live <= 4, "one may be about to close");
                let open = |worker: &Rc<Worker>| {
                    [ConnState::Connecting, ConnState::Active, ConnState::Idle]
                        .map(|state| worker.connections(state))
                        .iter()
                        .sum::<i64>()
                };
                let open: i64 = workers.iter().map(open).sum();
                assert!(open <= 3, "{open}");
                tokio::task::yield_now().await;
            }
        })
        .await;
        let failed: u64 =
            workers.iter().map(|worker| worker.cells().connects(ConnectResult::Other).get()).sum();
        assert_eq!((sim.counts().requests, failed), (12, 0));
    });
}
