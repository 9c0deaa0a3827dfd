//! Endpoints that fail again and again are left alone, and come back.

use std::time::Duration;

use tidegate::sim::Behaviour;

use crate::endpoints::{asks, gateway, nobody, sim};
use crate::stage::scrape;

const RULE: &str = "breaker = { consecutive = 3, open = \"300ms\" }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_upstream_is_left_alone_and_comes_back_by_a_probe() {
    for h2 in [false, true] {
        let sim = sim(Behaviour::default(), h2).await;
        let gateway = gateway(&[sim.addr()], h2, RULE).await;
        for _ in 0..3 {
            assert_eq!(asks(&gateway, &[("sim-status", "500")]).await.status, 500);
        }
        let refused = asks(&gateway, &[]).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.text().contains("upstream_unavailable"), "{}", refused.text());
        assert!(refused.header("retry-after").is_some(), "{:?}", refused.headers);
        assert_eq!(sim.counts().requests, 3, "an open breaker asks nobody");
        let state =
            |state: &str| format!("tidegate_breaker_state{{upstream=\"sim\",state=\"{state}\"}}");
        let metrics = scrape::metrics(gateway.ready.admin).await;
        assert_eq!((metrics.get(&state("open")), metrics.get(&state("closed"))), (1.0, 0.0));
        scrape::until(gateway.ready.admin, "half-open", |m| m.get(&state("half_open")) == 1.0)
            .await;
        assert_eq!(asks(&gateway, &[]).await.status, 200);
        let metrics = scrape::metrics(gateway.ready.admin).await;
        assert_eq!(metrics.get(&state("closed")), 1.0);
        assert_eq!(asks(&gateway, &[]).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_whose_breaker_is_open_is_passed_by() {
    let good = sim(Behaviour::default(), false).await;
    let gateway = gateway(&[nobody(), good.addr()], false, RULE).await;
    for _ in 0..10 {
        assert_eq!(asks(&gateway, &[]).await.status, 200);
    }
    let metrics = scrape::metrics(gateway.ready.admin).await;
    let refused =
        metrics.get("tidegate_upstream_connects_total{upstream=\"sim\",result=\"refused\"}");
    // Three to open it, and one or two probes at most in the time that ten requests take.
    assert!((3.0..=6.0).contains(&refused), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_first_bytes_open_it() {
    let slow = Behaviour { first_byte: Duration::from_millis(120), ..Behaviour::default() };
    let (slow, good) = (sim(slow, false).await, sim(Behaviour::default(), false).await);
    let rule = "breaker = { consecutive = 2, slow = \"100ms\", open = \"1h\" }";
    let gateway = gateway(&[slow.addr(), good.addr()], false, rule).await;
    for _ in 0..6 {
        assert_eq!(asks(&gateway, &[]).await.status, 200);
    }
    assert_eq!((slow.counts().requests, good.counts().requests), (2, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_and_wrong_requests_say_nothing_about_an_upstream() {
    let sim = sim(Behaviour::default(), false).await;
    let gateway = gateway(&[sim.addr()], false, RULE).await;
    for _ in 0..10 {
        assert_eq!(asks(&gateway, &[("sim-status", "400")]).await.status, 400);
        assert_eq!(asks(&gateway, &[("sim-status", "429")]).await.status, 429);
    }
    for _ in 0..10 {
        let mut client =
            crate::stage::Client::connect(gateway.ready.listen[0], crate::stage::Http::H1, None)
                .await;
        let before = sim.counts().requests;
        let fields = [("sim-fault", "stall-head")];
        let started = client
            .start("POST", crate::stage::client::CHAT, &fields, crate::stage::client::STREAM)
            .await;
        let asked = sim.wait_for(|c| c.requests > before, crate::stage::PATIENCE).await;
        asked.expect("asked");
        drop(started);
    }
    scrape::until(gateway.ready.admin, "all have left", |m| m.live() == 0.0).await;
    assert_eq!(asks(&gateway, &[]).await.status, 200);
}
