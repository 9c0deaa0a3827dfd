//! At the limit of open files: what still answers, and that everything comes back.

use std::net::SocketAddr;
use std::time::Duration;

use tidegate::sim::{self, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stage::client::{CHAT, Headed, STREAM};
use super::stage::program::Program;
use super::stage::{Client, Http, Metrics, scrape, soon};
use super::{MEMORY, refused};

/// Files that the gateway may have open; connections get what the reserve leaves.
const FILES: u32 = 296;
const PLACES: usize = 40;
const REFUSED: &str = "tidegate_rejections_total{limit=\"open_files\"}";

async fn simulator() -> Sim {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Sim::start(any, sim::Options::default()).await.expect("the simulated upstream")
}

fn gateway(sim: &Sim) -> Program {
    let upstream = format!("http://{}", sim.addr());
    Program::serve(&["--upstream", &upstream], Some(FILES))
}

/// Operators are answered, and the reserve is not used up.
async fn operators_are_answered(admin: SocketAddr) -> Metrics {
    for path in ["/healthz", "/readyz", "/streams"] {
        assert_eq!(soon(scrape::admin(admin, "GET", path)).await.0, 200, "{path}");
    }
    let metrics = soon(scrape::metrics(admin)).await;
    let open = metrics.get("process_open_fds");
    assert!(open < f64::from(FILES) - 128.0, "{open} files are open");
    metrics
}

/// A stream that goes on, on a connection of its own towards the upstream.
async fn stream(client: &mut Client) -> Headed<'_> {
    let mut answer =
        soon(client.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await.head()).await;
    assert_eq!(answer.status, 200);
    answer.until("data:").await;
    answer
}

/// A connection that has begun a request.
async fn beginner(gateway: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(gateway).await.expect("the gateway's listener");
    socket.write_all(b"G").await.expect("it is open");
    socket
}

/// What a new connection is told.
async fn told(gateway: SocketAddr) -> Vec<u8> {
    let mut socket = TcpStream::connect(gateway).await.expect("the gateway's listener");
    // Ours may be reset by then, with its answer on the way.
    let _ =
        socket.write_all(b"GET /v1/models HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n").await;
    let mut said = Vec::new();
    let _ = soon(socket.read_to_end(&mut said)).await;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reached_by_clients_new_ones_are_refused_and_operators_are_answered() {
    let sim = simulator().await;
    let gateway = gateway(&sim);
    let mut idle = Vec::new();
    for _ in 1..PLACES {
        idle.push(beginner(gateway.listen).await);
    }
    let taken = |m: &Metrics| m.sum("tidegate_connections_live") == PLACES as f64 - 1.0;
    scrape::until(gateway.admin, "all but one place are taken", taken).await;
    // Whoever takes the last one can have nothing sent on for it.
    let mut first = Client::connect(gateway.listen, Http::H1, None).await;
    let answer = first.ask("GET", "/v1/models", &[], "").await;
    refused(&answer, 503, "open_files_limit");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(sim.counts().connections, 0, "the upstream is not touched");
    let said = told(gateway.listen).await;
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 503 "), "{said:?}");
    let metrics = operators_are_answered(gateway.admin).await;
    assert!(metrics.get(REFUSED) >= 1.0, "the request");

    idle.truncate(PLACES / 2);
    let freed = |m: &Metrics| m.sum("tidegate_connections_live") <= PLACES as f64 / 2.0 + 1.0;
    scrape::until(gateway.admin, "places came back", freed).await;
    assert_eq!(first.ask("GET", "/v1/models", &[], "").await.status, 200);
    let said = told(gateway.listen).await;
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 "), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reached_by_the_upstream_side_requests_are_refused_and_everything_comes_back() {
    let sim = simulator().await;
    let gateway = gateway(&sim);
    // Two files for each: the client's connection and the upstream's.
    let mut clients = Vec::new();
    for _ in 0..PLACES / 2 {
        clients.push(Client::connect(gateway.listen, Http::H1, None).await);
    }
    let (mut last, mut streaming) = (Vec::new(), Vec::new());
    last.push(clients.pop().expect("one of them"));
    for client in &mut clients {
        streaming.push(stream(client).await);
    }
    // One more client takes the place that was meant for the last one's upstream connection.
    let extra = beginner(gateway.listen).await;
    let all = |m: &Metrics| {
        let streams = PLACES as f64 / 2.0 - 1.0;
        m.live() == streams && m.sum("tidegate_connections_live") == streams + 1.0
    };
    scrape::until(gateway.admin, "all but the last one's places are taken", all).await;
    let before = sim.counts();
    let refusal = tokio::time::timeout(Duration::from_secs(5), async {
        last[0].ask("GET", "/v1/models", &[], "").await
    });
    refused(&refusal.await.expect("at once"), 503, "open_files_limit");
    let after = sim.counts();
    assert_eq!((after.connections, after.requests), (before.connections, before.requests));
    let metrics = operators_are_answered(gateway.admin).await;
    assert_eq!(metrics.get(REFUSED), 1.0);
    drop(streaming);
    drop((extra, clients));
    let gone = |m: &Metrics| m.live() == 0.0 && m.get(MEMORY) == 0.0;
    scrape::until(gateway.admin, "all have ended", gone).await;
    assert_eq!(last[0].ask("GET", "/v1/models", &[], "").await.status, 200);
}
