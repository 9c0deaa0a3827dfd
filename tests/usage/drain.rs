//! `usage_drain`: what becomes of an answer whose client has left before its usage was known.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::stage::client::{CHAT, STREAM};
use super::stage::{Client, Gateway, Http, Metrics, PATIENCE, Setup, Stage, scrape, soon};
use super::{PROMPT, all_tokens, all_unknown, tokens, unknown};

fn draining(time: &str) -> Setup {
    let route = format!("usage = \"inject\"\nusage_drain = \"{time}\"");
    Setup { route, ..Setup::default() }
}

/// A client that asks for a stream and leaves it after its third event.
async fn leaves(stage: &Stage, http: Http, path: &str, fields: &[(&str, &str)]) {
    let mut client = stage.client(http).await;
    let started = client.start("POST", path, fields, STREAM).await;
    let mut live = soon(started.head()).await;
    assert_eq!(live.status, 200);
    live.until("\"seq\":3").await;
    drop(live);
}

fn drains(metrics: &Metrics, result: &str) -> f64 {
    metrics.get(&format!("tidegate_usage_drains_total{{result=\"{result}\"}}"))
}

const LIVE: &str = "tidegate_usage_drains_live";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_is_read_to_its_end() {
    // Long enough for every client to have left in its midst.
    let fields = [("sim-interval", "100ms"), ("sim-count", "30"), ("sim-split", "random")];
    for (upstream_h2, upstream_tls) in [(false, false), (true, true)] {
        let stage = Stage::start(Setup { upstream_h2, upstream_tls, ..draining("1m") }).await;
        tokio::join!(
            leaves(&stage, Http::H1, CHAT, &fields),
            leaves(&stage, Http::H1, "/v1/responses", &fields),
            leaves(&stage, Http::H1, "/v1/messages", &fields),
            leaves(&stage, Http::H2, CHAT, &fields),
            leaves(&stage, Http::H2, "/v1/responses", &fields),
            leaves(&stage, Http::H2, "/v1/messages", &fields),
        );
        let over = |m: &Metrics| drains(m, "learned") == 6.0 && m.live() == 0.0;
        let metrics = stage.until("all are read to their ends", over).await;
        assert_eq!(tokens(&metrics, "", "*"), (6.0 * PROMPT, 6.0 * 30.0));
        assert_eq!(metrics.ended("client_closed"), 6.0, "nobody has got them");
        assert_eq!((metrics.get(LIVE), all_unknown(&metrics)), (0.0, 0.0));
        let counts = stage.sim.counts();
        assert_eq!((counts.cancelled, counts.completed), (0, 6), "none was cancelled");
        // Their connections can be used again.
        let idle = "tidegate_upstream_connections{upstream=\"sim\",state=\"idle\"}";
        stage.until("they are idle", |m| m.get(idle) == counts.connections as f64).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_read_on_for_a_bounded_time_only() {
    let ended = |n| move |m: &Metrics| drains(m, "not_learned") == n && m.live() == 0.0;
    for http in [Http::H1, Http::H2] {
        let stage = Stage::start(draining("300ms")).await;
        leaves(&stage, http, CHAT, &[("sim-fault", "stall")]).await;
        let cancelled = stage.sim.wait_for(|c| c.cancelled == 1, PATIENCE).await;
        cancelled.expect("the upstream is told in the end");
        let metrics = stage.until("it is over", ended(1.0)).await;
        assert_eq!((unknown(&metrics, "client_left"), all_tokens(&metrics)), (1.0, 0.0));
        assert_eq!((metrics.get(LIVE), metrics.live()), (0.0, 0.0));
        // An upstream that fails meanwhile ends it.
        leaves(
            &stage,
            http,
            CHAT,
            &[("sim-interval", "50ms"), ("sim-fault", "rst"), ("sim-fault-after", "5")],
        )
        .await;
        let metrics = stage.until("it is over", ended(2.0)).await;
        assert_eq!(unknown(&metrics, "client_left"), 2.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_on_without_the_key_or_for_who_has_it_all() {
    for (setup, usage) in [
        (Setup { route: "usage = \"inject\"".to_owned(), ..Setup::default() }, "off by default"),
        (Setup { route: "usage_drain = \"1m\"".to_owned(), ..Setup::default() }, "not counted"),
    ] {
        let stage = Stage::start(setup).await;
        leaves(&stage, Http::H1, CHAT, &[("sim-fault", "stall")]).await;
        let cancelled = stage.sim.wait_for(|c| c.cancelled == 1, Duration::from_secs(5)).await;
        cancelled.unwrap_or_else(|counts| panic!("{usage}: {counts:?}"));
    }
    let stage = Stage::start(draining("1m")).await;
    for http in [Http::H1, Http::H2] {
        let answer = stage.client(http).await.stream(&[]).await;
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
    }
    let metrics = stage.until("both are over", |m| m.ended("completed") == 2.0).await;
    assert_eq!(metrics.sum("tidegate_usage_drains"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_for_it() {
    let stage = Stage::start(draining("10m")).await;
    for http in [Http::H1, Http::H2] {
        leaves(&stage, http, CHAT, &[("sim-fault", "stall")]).await;
    }
    stage.until("both are read on", |m| m.get(LIVE) == 2.0).await;
    let began = Instant::now();
    stage.gateway.stop();
    // The drain's deadline is ten minutes as well.
    let cancelled = stage.sim.wait_for(|c| c.cancelled == 2, PATIENCE).await;
    cancelled.expect("both are cancelled");
    let Stage { gateway, .. } = stage;
    gateway.ended().await;
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_no_stream_is_read_on_too_and_keeps_its_place_until_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [limits]\nstreams = 1\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"http://127.0.0.1:{port}\"]\n\
         [[route]]\nusage = \"count\"\nusage_drain = \"1m\"\n"
    );
    let gateway = Gateway::start(&text, None).await;
    for (n, http) in [(1.0, Http::H1), (2.0, Http::H2)] {
        let mut client = Client::connect(gateway.ready.listen[0], http, None).await;
        let started = client.start("POST", CHAT, &[], "{\"model\":\"m\"}").await;
        let (mut peer, _) = soon(listener.accept()).await.expect("a connection");
        let mut asked = Vec::new();
        while !asked.ends_with(b"\"m\"}") {
            assert!(soon(peer.read_buf(&mut asked)).await.expect("a request") > 0);
        }
        let said =
            b"HTTP/1.1 200 OK\r\ncontent-length: 38\r\nconnection: close\r\n\r\n{\"text\":\"half";
        peer.write_all(said).await.expect("open");
        let mut live = soon(started.head()).await;
        live.until("half").await;
        drop(live);
        drop(client);
        let read_on = |m: &Metrics| m.get(LIVE) == 1.0;
        let metrics = scrape::until(gateway.ready.admin, "it is read on", read_on).await;
        assert_eq!(metrics.live(), 1.0);
        let mut other = Client::connect(gateway.ready.listen[0], http, None).await;
        let refused = other.ask("POST", CHAT, &[], "{}").await;
        assert_eq!(refused.status, 503, "its place is taken");
        peer.write_all(b"\",\"total_tokens\":   5}\r\n\r\n").await.expect("open");
        let over = |m: &Metrics| drains(m, "learned") == n && m.live() == 0.0;
        let metrics = scrape::until(gateway.ready.admin, "it is learned", over).await;
        assert_eq!((all_tokens(&metrics), all_unknown(&metrics)), (5.0 * n, 0.0));
    }
}
