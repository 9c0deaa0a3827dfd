//! Upstreams that fail: another attempt, another endpoint, a breaker; what the client gets, how often
//! an upstream was asked, and what the metrics say.

#[path = "faults/crowd.rs"]
#[allow(dead_code, reason = "other tests use all of it")]
mod crowd;
mod stage;

#[path = "resilience/breaker.rs"]
mod breaker;
#[path = "resilience/endpoints.rs"]
mod endpoints;
#[path = "resilience/health.rs"]
mod health;
#[path = "resilience/keys.rs"]
mod keys;
#[path = "resilience/retry.rs"]
mod retry;
#[path = "resilience/upstreams.rs"]
mod upstreams;
