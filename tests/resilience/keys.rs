//! Keys of an upstream: the next one when one has had its share, and one that was rotated.

use tidegate::sim::Behaviour;

use crate::endpoints::{asks, gateway, sim};
use crate::stage::scrape;

fn sent(sim: &tidegate::sim::Sim) -> Vec<String> {
    let key = |seen: tidegate::sim::Seen| seen.header("authorization").expect("a key").to_owned();
    sim.requests().into_iter().map(key).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limited_key_is_followed_by_the_next_at_once() {
    let files = tempfile::tempdir().expect("a folder");
    let file = |name: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, name).expect("a file");
        format!("{{ file = {path:?} }}")
    };
    for h2 in [false, true] {
        let sim = sim(Behaviour::default(), h2).await;
        let lines = format!(
            "credential = [{}, {}]\nretry = {{ backoff = \"1h\", backoff_max = \"1h\" }}",
            file("one"),
            file("two")
        );
        let gateway = gateway(&[sim.addr()], h2, &lines).await;
        assert_eq!(asks(&gateway, &[]).await.status, 200);
        let limited = [
            ("sim-status", "429"),
            ("sim-retry-after", "60"),
            ("sim-fault-times", "1"),
            ("sim-stream", "7"),
        ];
        assert_eq!(asks(&gateway, &limited).await.status, 200);
        assert_eq!(asks(&gateway, &[]).await.status, 200);
        let [one, two] = ["Bearer one", "Bearer two"];
        assert_eq!(sent(&sim), [one, one, two, two]);
        // Both have had their share: the upstream's own answer.
        let limited = [("sim-status", "429"), ("sim-retry-after", "7200")];
        assert_eq!(asks(&gateway, &limited).await.status, 429);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_rotated_is_read_anew_when_the_upstream_refuses_the_old_one() {
    let files = tempfile::tempdir().expect("a folder");
    let path = files.path().join("key");
    std::fs::write(&path, "old").expect("a file");
    let sim = sim(Behaviour::default(), false).await;
    let gateway =
        gateway(&[sim.addr()], false, &format!("credential = {{ file = {path:?} }}")).await;
    assert_eq!(asks(&gateway, &[]).await.status, 200);
    // Refused, and nothing has changed: the client is told.
    assert_eq!(asks(&gateway, &[("sim-status", "401")]).await.status, 401);
    std::fs::write(&path, "new").expect("a file");
    let once = [("sim-status", "401"), ("sim-fault-times", "1"), ("sim-stream", "7")];
    assert_eq!(asks(&gateway, &once).await.status, 200);
    let [old, new] = ["Bearer old", "Bearer new"];
    assert_eq!(sent(&sim), [old, old, old, new]);
    let metrics = scrape::metrics(gateway.ready.admin).await;
    let retries = "tidegate_retries_total{upstream=\"sim\",reason=\"credential\"}";
    assert_eq!(metrics.get(retries), 1.0);
}
