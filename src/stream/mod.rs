//! The streaming phase: from the moment a request may go out until its last byte has reached the
//! client.
//!
//! [`core`] is the one place bytes come out of a [`source`], event boundaries are tracked,
//! heartbeats written, limits checked and the end decided. Three sinks pull them: [`relay`] writes to
//! an HTTP/1.1 client itself, [`frames`] gives them to h2, [`body`] to hyper. [`control`] ends a
//! response uncleanly without losing what was written. [`deadline`] tells when a limit or a heartbeat
//! is due. [`life`] is a request's record, from
//! admission to its one log line. [`shape`] writes error bodies and events; [`queue`] holds what
//! waits; [`usage`] reads what an answer took; [`ground`] is what all streams of a worker share.
//!
//! Invariant: what the client receives is what the upstream sent, in order, and heartbeats
//! between events; or an explicit error and an unclean end.

pub mod body;
pub mod control;
pub mod core;
pub mod deadline;
pub mod frames;
pub mod ground;
pub mod life;
pub mod meter;
pub mod queue;
pub mod relay;
pub mod shape;
pub mod source;
pub mod usage;
