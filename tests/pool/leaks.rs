//! A connection that is out for longer than its stream lives is found and counted.
//!
//! That there is none in any other test is asserted where the stage's gateways end.

use std::sync::Arc;

use bytes::Bytes;
use tidegate::admission::{Admission, Sizes};
use tidegate::clock::{Clock, Moment};
use tidegate::config;
use tidegate::gateway::terms::{self, Terms};
use tidegate::gateway::{self, Shared};
use tidegate::telemetry::{Slots, cells::ConnState};
use tidegate::upstream::tls::ClientTls;
use tidegate::wire::wheel::Wheel;
use tokio::net::TcpListener;

use super::connections;
use super::owned::{self, Process, read};
use super::stage::{Client, End, Gateway, Http, Metrics, scrape};

#[test]
fn an_answer_that_is_never_let_go_of_is_counted_once() {
    owned::run(async {
        for h2 in [false, true] {
            let sim = owned::sim(h2).await;
            let process = Process::new(&[sim.addr()], h2, "");
            let worker = process.worker();
            let text = format!("[[upstream]]\nurls = [\"http://{}\"]\n", sim.addr());
            let loaded = config::parse(&text, "test.toml").unwrap_or_else(|f| panic!("{f}"));
            let config = Arc::new(loaded.config);
            let roots = rustls::RootCertStore::empty();
            let tls = vec![ClientTls::new(&roots, None, None).expect("nothing to read")];
            let slots = Slots { upstreams: vec![0], routes: vec![vec![0]], ..Slots::default() };
            let sizes = Sizes { files: 100, ..terms::sizes(&config.limits) };
            let shared = Shared {
                admission: Arc::new(Admission::new(&sizes)),
                terms: Arc::new(Terms::new(config, tls, slots, None, Moment::default())),
                fault: None,
                no_relay: false,
            };
            // It counts in the worker's cells, and knows of no stream there.
            let gateway =
                gateway::Gateway::new(&shared, &Clock::System, &Wheel::new(), &worker.cells);
            let leaks = || {
                gateway.look_after_pools();
                worker.cells().leaks.get()
            };
            worker.whole("/v1/models").await;
            worker.until(ConnState::Active, 0).await;
            assert_eq!(leaks(), 0, "h2 {h2}");
            let (held, lost) = (worker.answer("/v1/x").await, worker.answer("/v1/x").await);
            assert_eq!(leaks(), 2, "h2 {h2}: there are no streams that they belong to");
            assert_eq!(leaks(), 2, "h2 {h2}: each is counted once");
            std::mem::forget(lost);
            read(held).await;
            assert_eq!(leaks(), 2, "h2 {h2}");
            std::mem::forget(worker.answer("/v1/x").await);
            assert_eq!(leaks(), 3, "h2 {h2}: another one");
        }
    });
}

/// An HTTP/2 server whose answers are whole by their length, and are never ended.
async fn never_ends(listener: TcpListener) {
    let (socket, _) = listener.accept().await.expect("the gateway");
    let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
    let mut open = Vec::new();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let head = http::Response::builder().header("content-length", 2).body(());
        let sent = respond.send_response(head.expect("a head"), false);
        let mut body = sent.expect("the gateway waits for it");
        body.send_data(Bytes::from_static(b"ok"), false).expect("within the window");
        open.push(body);
    }
}

/// The frame that ends an HTTP/2 answer may be late, and its stream is over before that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lingers_on_purpose_is_no_leak() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = tokio::spawn(never_ends(listener));
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"http://127.0.0.1:{port}\"]\nhttp = 2\n"
    );
    let gateway = Gateway::start(&text, None).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    for _ in 0..3 {
        let answer = client.ask("GET", "/v1/x", &[], "").await;
        assert_eq!((answer.status, answer.text().as_str(), answer.end), (200, "ok", End::Clean));
    }
    let over = |m: &Metrics| m.live() == 0.0;
    let metrics = scrape::until(gateway.ready.admin, "the streams are over", over).await;
    assert_eq!(connections(&metrics, "active"), 1.0, "their end is waited for");
    drop(client);
    // It looks for leaks as it ends, within that wait.
    gateway.stop();
    gateway.ended().await;
    server.abort();
}
