//! Upstreams that fail: another attempt, another endpoint, a breaker; what the client gets, how often
//! an upstream was asked, and what the metrics say.

mod stage;

#[path = "resilience/among.rs"]
mod among;
#[path = "resilience/breaker.rs"]
mod breaker;
#[path = "resilience/closes.rs"]
mod closes;
#[path = "resilience/connects.rs"]
mod connects;
#[path = "resilience/departs.rs"]
mod departs;
#[path = "resilience/endpoints.rs"]
mod endpoints;
#[path = "resilience/health.rs"]
mod health;
#[path = "resilience/keys.rs"]
mod keys;
#[path = "resilience/lost.rs"]
mod lost;
#[path = "resilience/matrix.rs"]
mod matrix;
#[path = "resilience/recovers.rs"]
mod recovers;
#[path = "resilience/retry.rs"]
mod retry;
#[path = "resilience/scene.rs"]
mod scene;
#[path = "resilience/upstreams.rs"]
mod upstreams;
