//! Tidegate: a streaming gateway for LLM APIs.
//!
//! The floors, from the ground up; a floor uses only those below it (`tests/tidy.rs` checks it):
//! [`limits`] [`memory`] · [`clock`] [`error`] · [`admission`] · [`config`] · [`wire`] · [`telemetry`] ·
//! [`upstream`] · [`stream`] · [`gateway`] · [`server`] · [`cli`]. [`sim`], the simulated
//! upstream, stands apart and shares no code with them.

pub mod admission;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod gateway;
pub mod limits;
pub mod memory;
pub mod server;
pub mod sim;
pub mod stream;
pub mod telemetry;
pub mod upstream;
pub mod wire;
