//! Tidegate: a streaming gateway for LLM APIs.
//!
//! The floors, from the ground up; a floor uses only those below it (`tests/tidy.rs` checks it):
//! `clock limits error` · [`config`] · [`wire`] · [`telemetry`] · [`upstream`] · [`stream`] ·
//! [`gateway`] · [`server`] · `main cli`. [`sim`] is the simulated upstream and uses none of them.
