//! Who may stream, and how much: each rule of admission by what a client gets, what is counted and
//! what the upstream sees. That every key has an effect at all is `config_effects`' business.

#![allow(clippy::large_futures, reason = "several clients at once are held by one test, once")]
#![allow(clippy::print_stdout, reason = "with --nocapture it shows what it measured")]

#[path = "admission/cors.rs"]
mod cors;
#[path = "admission/keys.rs"]
mod keys;
#[path = "admission/limits.rs"]
mod limits;
#[path = "admission/lives.rs"]
mod lives;
#[path = "admission/queue.rs"]
mod queue;
mod stage;
#[path = "admission/tokens.rs"]
mod tokens;

use stage::client::{CHAT, STREAM};
use stage::{Answer, Http, Metrics, Stage, soon};
use tidegate::gateway::auth::{self, NewKey};

/// Peers on loopback are proxies whose `X-Forwarded-For` counts: a test has any address it likes.
const TRUSTED: &str = "trusted_proxies = [\"127.0.0.0/8\"]";

/// A tenant with one key.
struct Tenant {
    key: NewKey,
    /// Its section of the configuration.
    section: String,
    /// The value of its `authorization`.
    bearer: String,
}

/// A tenant of this name; `lines` are its further keys.
fn tenant(name: &str, lines: &str) -> Tenant {
    let key = auth::new_key().expect("a key");
    let section = format!(
        "[[tenant]]\nname = \"{name}\"\n{lines}\n[[tenant.key]]\nsha256 = \"{}\"\n",
        key.sha256
    );
    let bearer = format!("Bearer {}", key.key);
    Tenant { key, section, bearer }
}

/// How often requests were refused under this label.
fn refused(metrics: &Metrics, limit: &str) -> f64 {
    metrics.get(&format!("tidegate_rejections_total{{limit=\"{limit}\"}}"))
}

/// How long a refused client is told to wait, milliseconds; both ways of saying it agree.
fn told_to_wait(answer: &Answer) -> u64 {
    let number = |name: &str| answer.header(name).and_then(|value| value.parse::<u64>().ok());
    let millis = number("retry-after-ms").expect("retry-after-ms");
    assert_eq!(number("retry-after"), Some(millis.div_ceil(1000)), "seconds are rounded up");
    assert!(millis > 0);
    millis
}

/// A stream that goes on until this is dropped; its client leaves then.
struct Holder(tokio::task::JoinHandle<()>);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins a stream over a connection of its own; it is at its first event.
async fn hold(stage: &Stage, http: Http, fields: &[(&str, &str)]) -> Holder {
    let mut client = stage.client(http).await;
    let mut fields: Vec<_> = fields.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    fields.push(("sim-fault".to_owned(), "stall".to_owned()));
    let (tell, told) = tokio::sync::oneshot::channel();
    let holder = Holder(tokio::spawn(async move {
        let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut live = soon(client.start("POST", CHAT, &fields, STREAM).await.head()).await;
        assert_eq!(live.status, 200);
        live.until("\"seq\":").await;
        let _ = tell.send(());
        std::future::pending::<()>().await;
    }));
    soon(told).await.expect("a stream");
    holder
}

/// Waits until nothing is left of any request.
async fn quiet(stage: &Stage) -> Metrics {
    stage.until("all are over", |m| m.live() == 0.0).await
}
