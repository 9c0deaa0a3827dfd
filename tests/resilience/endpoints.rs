//! Several endpoints of one upstream: who is asked, and what becomes of a request whose first
//! endpoint fails.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tidegate::sim::{Behaviour, Options, Sim};

use crate::stage::client::{CHAT, STREAM};
use crate::stage::{Answer, Client, End, Gateway, Http, scrape};

/// A simulator of its own.
pub(crate) async fn sim(behaviour: Behaviour, h2: bool) -> Sim {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = Options { defaults: behaviour, h1: !h2, h2, ..Options::default() };
    Sim::start(any, options).await.expect("a simulated upstream")
}

/// A gateway before these addresses, in this order.
pub(crate) async fn gateway(urls: &[SocketAddr], h2: bool, lines: &str) -> Gateway {
    let urls: Vec<_> = urls.iter().map(|addr| format!("\"http://{addr}\"")).collect();
    let http = if h2 { 2 } else { 1 };
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [stream]\nfirst_byte = \"2s\"\n\
         [[upstream]]\nname = \"sim\"\nhttp = \"{http}\"\nurls = [{}]\n{lines}\n",
        urls.join(", ")
    );
    Gateway::start(&text, None).await
}

pub(crate) async fn asks(gateway: &Gateway, fields: &[(&str, &str)]) -> Answer {
    Client::connect(gateway.ready.listen[0], Http::H1, None).await.stream(fields).await
}

/// An address where nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_cannot_be_reached_costs_no_attempt_while_there_is_another() {
    // Takes connections and never says a word; its TLS handshake never ends.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    for h2 in [false, true] {
        let good = sim(Behaviour::default(), h2).await;
        let urls = [nobody(), nobody(), nobody(), good.addr()];
        let gateway = gateway(&urls, h2, "").await;
        for _ in 0..3 {
            let answer = asks(&gateway, &[]).await;
            assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
        }
        assert_eq!(good.counts().requests, 3);
        let metrics = scrape::metrics(gateway.ready.admin).await;
        assert_eq!(metrics.get("tidegate_retries_total{upstream=\"sim\",reason=\"connect\"}"), 9.0);
    }
    let good = sim(Behaviour::default(), false).await;
    let addr = silent.local_addr().expect("an address");
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"sim\"\nconnect = \"200ms\"\n\
         urls = [\"https://{addr}\", \"http://{}\"]\n",
        good.addr()
    );
    let gateway = Gateway::start(&text, None).await;
    assert_eq!(asks(&gateway, &[]).await.status, 200);
    let metrics = scrape::metrics(gateway.ready.admin).await;
    let timeouts = "tidegate_upstream_connects_total{upstream=\"sim\",result=\"tls_timeout\"}";
    assert_eq!(metrics.get(timeouts), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_may_be_retried_goes_to_the_next_endpoint_at_once() {
    for h2 in [false, true] {
        let bad = sim(Behaviour { status: Some(503), ..Behaviour::default() }, h2).await;
        let good = sim(Behaviour::default(), h2).await;
        // A pause would be longer than the test's patience.
        let rule = "retry = { backoff = \"1h\", backoff_max = \"1h\" }";
        let gateway = gateway(&[bad.addr(), good.addr()], h2, rule).await;
        let answer = asks(&gateway, &[]).await;
        assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
        assert_eq!((bad.counts().requests, good.counts().requests), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_endpoints_down_is_told_as_the_last_one_failed() {
    let gateway = gateway(&[nobody(), nobody()], false, "").await;
    let answer = asks(&gateway, &[]).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("upstream_connect"), "{}", answer.text());
    scrape::until(gateway.ready.admin, "nothing is left", |m| m.live() == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_share_requests_out() {
    let (one, two) =
        (sim(Behaviour::default(), false).await, sim(Behaviour::default(), false).await);
    let lines = "balance = \"weighted\"\nweights = [9, 1]";
    let gateway = gateway(&[one.addr(), two.addr()], false, lines).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    for _ in 0..400 {
        assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200);
    }
    let two = two.counts().requests;
    // Forty are expected, six is a standard deviation.
    assert!((10..=75).contains(&two), "{two}");
    assert_eq!(one.counts().requests + two, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_streams_fills_endpoints_evenly() {
    let slow = Behaviour { interval: Duration::from_secs(600), ..Behaviour::default() };
    let (one, two) = (sim(slow.clone(), true).await, sim(slow, true).await);
    let gateway = gateway(&[one.addr(), two.addr()], true, "balance = \"least\"").await;
    let mut live = Vec::new();
    for n in 0..20 {
        let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
        client.start("POST", CHAT, &[], STREAM).await.head().await.until("data:").await;
        live.push(client);
        let counts = [one.counts().requests, two.counts().requests];
        assert!(counts[0].abs_diff(counts[1]) <= 1, "{n}: {counts:?}");
    }
}
