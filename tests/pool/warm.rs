//! `pool_warm`: connections that are there before the first request needs one.

use std::time::Duration;

use tidegate::sim::{self, Options, Sim};
use tidegate::telemetry::cells::{ConnState, ConnectResult};

use super::owned::{self, Process};
use super::stage::{Client, Gateway, Http, Metrics, PATIENCE, Setup, Stage, scrape, soon};
use super::{connections, one_worker};

const SECOND: Duration = Duration::from_secs(1);

fn config(upstreams: &str) -> String {
    format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n{upstreams}"
    )
}

async fn are_there(sim: &Sim, count: u64) {
    let there = sim.wait_for(|c| c.connections_live == count, PATIENCE).await;
    there.unwrap_or_else(|counts| panic!("{count} are wanted: {counts:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_there_before_the_first_request_and_serve_it() {
    for (upstream_h2, upstream_tls) in [(false, false), (true, false), (false, true), (true, true)]
    {
        // Every next connection takes a turn; and HTTP/2 is known to be that only after the first.
        let upstream = "pool_warm = 3\npool_dials = 1".to_owned();
        let setup = Setup { upstream_h2, upstream_tls, upstream, ..Setup::default() };
        let stage = Stage::start(one_worker(setup)).await;
        are_there(&stage.sim, 3).await;
        let idle = |m: &Metrics| connections(m, "idle") == 3.0;
        stage.until("they are idle", idle).await;
        assert_eq!(stage.sim.counts().requests, 0);
        for _ in 0..3 {
            let answer = stage.client(Http::H1).await.stream(&[]).await;
            assert_eq!(answer.status, 200);
        }
        assert_eq!(stage.sim.counts().connections, 3, "none was opened for a request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alpn_decides_once_and_the_others_follow() {
    let options = Options::default();
    let made = sim::make_certificate(&["localhost"]).expect("a certificate");
    let files = tempfile::tempdir().expect("a folder");
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, &made.ca_pem).expect("a file");
    let sim = owned::sim_of(Options { tls: Some(made.into()), ..options }).await;
    let port = sim.addr().port();
    let upstream = format!(
        "[[upstream]]\nname = \"sim\"\nurls = [\"https://localhost:{port}\"]\nca = {ca:?}\npool_warm = 4\n"
    );
    let gateway = Gateway::start(&config(&upstream), None).await;
    are_there(&sim, 4).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    assert_eq!(client.stream(&[]).await.status, 200);
    assert_eq!((sim.requests()[0].version, sim.counts().connections), ("HTTP/2", 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_down_holds_up_neither_the_start_nor_another() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let port = port.expect("an address").port();
    let sim = owned::sim(false).await;
    let upstreams = format!(
        "[[upstream]]\nname = \"down\"\nurls = [\"http://127.0.0.1:{port}\"]\npool_warm = 5\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"http://{}\"]\npool_warm = 2\n\
         [[route]]\npath = \"/v1/{{*rest}}\"\nupstream = \"sim\"\n",
        sim.addr()
    );
    let gateway = Gateway::start(&config(&upstreams), None).await;
    let (status, _) = scrape::admin(gateway.ready.admin, "GET", "/readyz").await;
    assert_eq!(status, 200);
    are_there(&sim, 2).await;
    let refused = "tidegate_upstream_connects_total{upstream=\"down\",result=\"refused\"}";
    let told = |m: &Metrics| m.get(refused) > 0.0;
    let metrics = scrape::until(gateway.ready.admin, "it is counted", told).await;
    assert!(metrics.get(refused) <= 5.0);
}

#[test]
fn after_a_failure_there_is_a_pause() {
    owned::run(async {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = gone.local_addr().expect("an address");
        drop(gone);
        let process = Process::new(&[addr], false, "pool_warm = 2");
        let worker = process.worker();
        let refused = || worker.cells().connects(ConnectResult::Refused).get();
        let settled = async |count: u64| {
            let tries = async {
                // A dial begins now, if there is one.
                tokio::task::yield_now().await;
                while refused() < count || worker.connections(ConnState::Connecting) > 0 {
                    tokio::task::yield_now().await;
                }
            };
            soon(tries).await;
            assert_eq!(refused(), count);
        };
        worker.upstream.warm();
        settled(2).await;
        for _ in 0..9 {
            process.after(SECOND);
            worker.upstream.close_idle();
            worker.upstream.warm();
            settled(2).await;
        }
        process.after(SECOND);
        worker.upstream.warm();
        settled(4).await;
    });
}

#[test]
fn what_has_closed_is_opened_again() {
    owned::run(async {
        for h2 in [false, true] {
            let sim = owned::sim(h2).await;
            let lines = "pool_warm = 2\npool_idle = \"10s\"\npool_max = 3";
            let process = Process::new(&[sim.addr()], h2, lines);
            let worker = process.worker();
            worker.upstream.warm();
            worker.until(ConnState::Idle, 2).await;
            worker.upstream.warm();
            worker.whole("/v1/models").await;
            assert_eq!(sim.counts().connections, 2, "h2 {h2}: there are as many");
            process.after(10 * SECOND);
            worker.upstream.close_idle();
            assert_eq!(worker.connections(ConnState::Idle), 0);
            are_there(&sim, 0).await;
            worker.upstream.warm();
            worker.until(ConnState::Idle, 2).await;
            assert_eq!(sim.counts().connections, 4);
        }
    });
}

#[test]
fn warming_takes_no_place_that_somebody_waits_for() {
    owned::run(async {
        let sim = owned::sim(false).await;
        let process = Process::new(&[sim.addr()], false, "pool_warm = 3\npool_max = 2");
        let (one, two) = (process.worker(), process.worker());
        one.upstream.warm();
        one.until(ConnState::Idle, 2).await;
        two.upstream.warm();
        assert_eq!(two.connections(ConnState::Connecting), 0, "there is no place");
        // Nor does it stand in line for one.
        one.upstream.make_room();
        assert_eq!(one.connections(ConnState::Idle), 2);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_warms_what_it_brings() {
    let (old, new) = (owned::sim(false).await, owned::sim(false).await);
    let upstream = |sim: &Sim, warm: usize| {
        let addr = sim.addr();
        format!("[[upstream]]\nname = \"sim\"\nurls = [\"http://{addr}\"]\npool_warm = {warm}\n")
    };
    let gateway = Gateway::start(&config(&upstream(&old, 1)), None).await;
    are_there(&old, 1).await;
    let reload = async |upstream: String| {
        let done = gateway.reload(&config(&upstream)).await;
        done.unwrap_or_else(|refused| panic!("{refused}"));
    };
    reload(upstream(&old, 3)).await;
    are_there(&old, 3).await;
    assert_eq!(old.counts().connections, 3, "the first was kept");
    reload(upstream(&new, 2)).await;
    are_there(&new, 2).await;
    are_there(&old, 0).await;
}
