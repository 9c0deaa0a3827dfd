//! Tokens: what is counted of answers, asked for where the client did not, and learned after it left.

#[path = "usage/ask.rs"]
mod ask;
#[path = "usage/count.rs"]
mod count;
#[path = "usage/drain.rs"]
mod drain;
mod stage;

use stage::Metrics;
use tidegate::gateway::auth;

/// What the simulator says that a request took besides one token per event.
const PROMPT: f64 = 12.0;

/// Sections of tenants, and the value of `authorization` for each.
fn tenants(names: &[(&str, &str)]) -> (String, Vec<String>) {
    let (mut sections, mut bearers) = (String::new(), Vec::new());
    for (name, lines) in names {
        let key = auth::new_key().expect("a key");
        let sha256 = &key.sha256;
        sections += &format!(
            "[[tenant]]\nname = \"{name}\"\n{lines}\n[[tenant.key]]\nsha256 = \"{sha256}\"\n"
        );
        bearers.push(format!("Bearer {}", key.key));
    }
    (sections, bearers)
}

/// Input and output tokens counted for a tenant and a model.
fn tokens(metrics: &Metrics, tenant: &str, model: &str) -> (f64, f64) {
    let of = |kind| {
        metrics.get(&format!(
            "tidegate_tokens_total{{tenant=\"{tenant}\",model=\"{model}\",kind=\"{kind}\"}}"
        ))
    };
    (of("input"), of("output"))
}

/// All tokens counted.
fn all_tokens(metrics: &Metrics) -> f64 {
    metrics.sum("tidegate_tokens_total{")
}

/// Answers whose usage stayed unknown for `reason`, over all tenants and models.
fn unknown(metrics: &Metrics, reason: &str) -> f64 {
    metrics.sum_of("tidegate_usage_unknown_total{", &format!("reason=\"{reason}\""))
}

/// Answers whose usage stayed unknown.
fn all_unknown(metrics: &Metrics) -> f64 {
    metrics.sum("tidegate_usage_unknown_total{")
}
