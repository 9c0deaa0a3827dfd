//! The simulated upstream, spoken to in raw bytes over HTTP/1.1 and through h2's client.
//!
//! It judges the gateway in all other tests, so it is judged here by clients that share nothing
//! with it. Nothing sleeps: every wait is for the thing itself, with a deadline.

// clippy.toml allows it in test functions; here the functions around them are tests as well.
#![allow(clippy::unwrap_used)]

#[path = "sim/client.rs"]
mod client;
#[path = "sim/endpoints.rs"]
mod endpoints;
#[path = "sim/faults_h1.rs"]
mod faults_h1;
#[path = "sim/faults_h2.rs"]
mod faults_h2;
#[path = "sim/life.rs"]
mod life;
#[path = "sim/requests.rs"]
mod requests;
