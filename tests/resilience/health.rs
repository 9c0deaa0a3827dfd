//! Endpoints that are asked, beside the traffic, how they are.

use tidegate::sim::Behaviour;

use crate::endpoints::{asks, gateway, nobody, sim};
use crate::stage::{Gateway, PATIENCE, scrape};

const RULE: &str =
    "health = { path = \"/v1/models\", interval = \"20ms\", timeout = \"1s\", changes = 2 }";

/// Who of the two answers one request.
async fn answers(gateway: &Gateway, sims: [&tidegate::sim::Sim; 2]) -> [usize; 2] {
    let posts = |sim: &tidegate::sim::Sim| {
        sim.requests().iter().filter(|seen| seen.method == "POST").count()
    };
    let before = sims.map(posts);
    assert_eq!(asks(gateway, &[]).await.status, 200);
    let after = sims.map(posts);
    [after[0] - before[0], after[1] - before[1]]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_it_is_not_well_gets_no_requests_until_it_is() {
    for h2 in [false, true] {
        // It answers streams well, and its checks never.
        let sick = sim(Behaviour::default(), h2).await;
        let good = sim(Behaviour::default(), h2).await;
        let rule = RULE.replace("/v1/models", "/v1/models?sim-status=503");
        let gateway = gateway(&[sick.addr(), good.addr()], h2, &rule).await;
        // Both say so: nobody believes it.
        for sim in [&sick, &good] {
            sim.wait_for(|c| c.requests >= 4, PATIENCE).await.expect("checks");
        }
        assert_eq!(answers(&gateway, [&sick, &good]).await, [1, 0]);
        let ended = |m: &scrape::Metrics| m.sum("tidegate_streams_ended_total") >= 1.0;
        let metrics = scrape::until(gateway.ready.admin, "it has ended", ended).await;
        assert_eq!(metrics.sum("tidegate_requests_total"), 1.0, "checks are no traffic");
        assert_eq!(metrics.sum("tidegate_streams_ended_total"), 1.0);
        let connects = "tidegate_upstream_connects_total{upstream=\"sim\",result=\"ok\"}";
        assert_eq!(metrics.get(connects), 1.0);
        assert!(sick.counts().connections <= 3, "a check uses its connection again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_nobody_reaches_is_not_even_tried() {
    let good = sim(Behaviour::default(), false).await;
    let gateway = gateway(&[nobody(), good.addr()], false, RULE).await;
    // Until the check has found it out, requests do.
    let refused = "tidegate_upstream_connects_total{upstream=\"sim\",result=\"refused\"}";
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let before = scrape::metrics(gateway.ready.admin).await.get(refused);
        assert_eq!(asks(&gateway, &[]).await.status, 200);
        if scrape::metrics(gateway.ready.admin).await.get(refused) == before {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it is tried again and again");
    }
    let before = scrape::metrics(gateway.ready.admin).await.get(refused);
    for _ in 0..10 {
        assert_eq!(asks(&gateway, &[]).await.status, 200);
    }
    assert_eq!(scrape::metrics(gateway.ready.admin).await.get(refused), before);
}
