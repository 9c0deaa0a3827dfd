//! Keys stay secret: those of upstreams, of tenants, of clients. Each is a canary, and what the
//! gateway tells anybody, on good days and bad, is searched for every piece of it.
//!
//! What legitimately holds a key: the upstream that it is for, and the gateway's own memory.

#![allow(clippy::print_stdout, reason = "with --nocapture it shows what it measured")]

#[path = "secrets/canary.rs"]
mod canary;
#[path = "secrets/memory.rs"]
mod memory;
mod stage;
#[path = "secrets/told.rs"]
mod told;
