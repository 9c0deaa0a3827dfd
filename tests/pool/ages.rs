//! `pool_idle`, `pool_lifetime` and GOAWAY: which connections take no further request, and that none
//! of their streams is cut for it.

use std::time::{Duration, Instant};

use tidegate::telemetry::cells::ConnState;
use tokio::task::spawn_local;

use super::owned::{self, Process, Worker, read};
use super::stage::client::{CHAT, STREAM};
use super::stage::{End, Http, Metrics, PATIENCE, Setup, Stage, soon};
use super::{connections, one_worker};

const PATH: &str = "/v1/models";
const SECOND: Duration = Duration::from_secs(1);

/// Asks once and waits until the connection is idle again.
async fn use_once(worker: &Worker) {
    worker.whole(PATH).await;
    worker.until(ConnState::Active, 0).await;
}

#[test]
fn a_connection_that_was_idle_for_too_long_is_not_used_and_closes() {
    owned::run(async {
        for h2 in [false, true] {
            let sim = owned::sim(h2).await;
            let process = Process::new(&[sim.addr()], h2, "pool_idle = \"10s\"");
            let worker = process.worker();
            use_once(&worker).await;
            process.after(10 * SECOND - Duration::from_millis(1));
            worker.upstream.close_idle();
            use_once(&worker).await;
            assert_eq!(sim.counts().connections, 1, "h2 {h2}: it was idle for less");
            process.after(10 * SECOND);
            use_once(&worker).await;
            assert_eq!(
                sim.counts().connections,
                2,
                "h2 {h2}: not used though nobody has closed it yet"
            );
            process.after(10 * SECOND);
            assert_eq!(worker.connections(ConnState::Idle), 1);
            worker.upstream.close_idle();
            assert_eq!(worker.connections(ConnState::Idle), 0);
            sim.wait_for(|c| c.connections_live == 0, PATIENCE).await.expect("both have closed");
            // A stream is no idle time.
            let held = worker.answer(PATH).await;
            process.after(100 * SECOND);
            worker.upstream.close_idle();
            read(held).await;
            use_once(&worker).await;
            assert_eq!(sim.counts().connections, 3, "h2 {h2}");
        }
    });
}

#[test]
fn an_http_1_connection_past_its_lifetime_ends_its_exchange_and_is_not_used_again() {
    owned::run(async {
        let sim = owned::sim(false).await;
        let process = Process::new(&[sim.addr()], false, "pool_lifetime = \"20s\"");
        let worker = process.worker();
        use_once(&worker).await;
        process.after(17 * SECOND);
        use_once(&worker).await;
        assert_eq!(sim.counts().connections, 1, "nine tenths have not passed");
        // Its last exchange goes beyond.
        let held = worker.answer(PATH).await;
        process.after(10 * SECOND);
        worker.upstream.close_idle();
        read(held).await;
        assert_eq!(worker.connections(ConnState::Idle), 0);
        sim.wait_for(|c| c.connections_live == 0, PATIENCE).await.expect("closed behind it");
        assert_eq!((sim.counts().completed, sim.counts().cancelled), (3, 0));
        use_once(&worker).await;
        // One that is idle then closes by itself.
        process.after(20 * SECOND);
        worker.upstream.close_idle();
        sim.wait_for(|c| c.connections_live == 0, PATIENCE).await.expect("closed");
        assert_eq!(sim.counts().connections, 2);
    });
}

#[test]
fn an_http_2_connection_past_its_lifetime_takes_no_further_streams_and_closes_behind_its_last() {
    owned::run(async {
        let sim = owned::sim(true).await;
        let process = Process::new(&[sim.addr()], true, "pool_lifetime = \"20s\"");
        let worker = process.worker();
        let (one, two) = (worker.answer(PATH).await, worker.answer(PATH).await);
        assert_eq!(sim.counts().connections, 1);
        process.after(20 * SECOND);
        let three = worker.answer(PATH).await;
        assert_eq!(sim.counts().connections, 2);
        let states = [ConnState::Active, ConnState::Closing].map(|s| worker.connections(s));
        assert_eq!(states, [1, 1]);
        read(one).await;
        assert_eq!(worker.connections(ConnState::Closing), 1, "there is another stream on it");
        assert_eq!(sim.counts().connections_live, 2);
        read(two).await;
        assert_eq!(worker.connections(ConnState::Closing), 0);
        sim.wait_for(|c| c.connections_live == 1, PATIENCE).await.expect("closed behind its last");
        read(three).await;
        use_once(&worker).await;
        assert_eq!((sim.counts().connections, sim.counts().completed), (2, 4));
        assert_eq!(sim.counts().cancelled, 0);
    });
}

#[test]
fn a_busy_connection_past_its_lifetime_goes_on_while_there_is_no_place_for_another() {
    owned::run(async {
        let sim = owned::sim(true).await;
        let lines = "pool_lifetime = \"20s\"\npool_max = 1";
        let process = Process::new(&[sim.addr()], true, lines);
        let worker = process.worker();
        use_once(&worker).await;
        let held = worker.answer(PATH).await;
        process.after(30 * SECOND);
        worker.whole(PATH).await;
        assert_eq!(sim.counts().connections, 1, "waiting would be worse");
        read(held).await;
        // Now that it is idle it closes, and leaves its place.
        sim.wait_for(|c| c.connections_live == 0, PATIENCE).await.expect("closed");
        use_once(&worker).await;
        assert_eq!(sim.counts().connections, 2);
    });
}

#[test]
fn with_no_lifetime_a_connection_never_grows_too_old() {
    owned::run(async {
        for h2 in [false, true] {
            let sim = owned::sim(h2).await;
            let lines = "pool_lifetime = \"off\"\npool_idle = \"168h\"";
            let process = Process::new(&[sim.addr()], h2, lines);
            let worker = process.worker();
            for _ in 0..50 {
                use_once(&worker).await;
                process.after(Duration::from_secs(100 * 3600));
            }
            assert_eq!(sim.counts().connections, 1);
        }
    });
}

/// While a peer lets go of its connection, the streams on it go on, and new ones go elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goaway_ends_no_stream_and_its_connection_takes_no_further_ones() {
    for upstream_tls in [false, true] {
        let setup = Setup { upstream_h2: true, upstream_tls, ..Setup::default() };
        let stage = Stage::start(one_worker(setup)).await;
        let (mut one, mut two) = (stage.client(Http::H1).await, stage.client(Http::H1).await);
        let more = [("sim-interval", "50ms"), ("sim-count", "30")];
        let mut calm = one.start("POST", CHAT, &more, STREAM).await.head().await;
        calm.until("data:").await;
        let goaway = [("sim-interval", "50ms"), ("sim-count", "20"), ("sim-fault", "goaway")];
        let mut last = two.start("POST", CHAT, &goaway, STREAM).await.head().await;
        last.until("data:").await;
        assert_eq!(stage.sim.counts().connections, 1);
        let closing = |m: &Metrics| connections(m, "closing") == 1.0;
        // It is forgotten as soon as somebody looks for a connection.
        let mut fresh = stage.client(Http::H1).await;
        let deadline = Instant::now() + PATIENCE;
        while stage.sim.counts().connections == 1 {
            assert!(Instant::now() < deadline, "no second connection");
            assert_eq!(fresh.ask("GET", PATH, &[], "").await.status, 200);
        }
        stage.until("the first closes behind its streams", closing).await;
        for (name, stream) in [("with the GOAWAY", last), ("beside it", calm)] {
            let answer = stream.rest().await;
            assert_eq!(answer.end, End::Clean, "{name}");
            assert!(answer.text().ends_with("data: [DONE]\n\n"), "{name}: {}", answer.text());
        }
        let gone =
            |m: &Metrics| connections(m, "closing") == 0.0 && connections(m, "active") == 0.0;
        stage.until("it has closed", gone).await;
        let closed = stage.sim.wait_for(|c| c.connections_live == 1, PATIENCE).await;
        closed.expect("one connection is left");
        assert_eq!(stage.sim.counts().cancelled, 0);
    }
}

/// The next request of a pool that is full goes out once the old connection has closed.
#[test]
fn a_place_comes_free_with_the_last_stream_behind_a_goaway() {
    owned::run(async {
        let sim = owned::sim(true).await;
        let process = Process::new(&[sim.addr()], true, "pool_max = 1");
        let worker = process.worker();
        let held = worker.answer("/v1/models?sim-fault=goaway").await;
        let asks = worker.clone();
        let asks = spawn_local(async move {
            while sim.counts().connections == 1 {
                asks.whole(PATH).await;
            }
            sim
        });
        worker.until(ConnState::Closing, 1).await;
        read(held).await;
        let sim = soon(asks).await.expect("no panic");
        assert_eq!((sim.counts().connections, sim.counts().cancelled), (2, 0));
    });
}
