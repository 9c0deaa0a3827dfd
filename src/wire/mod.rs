//! What bytes on the wire mean: event framing, message framing, hop-by-hop rules, and the timer
//! wheel that every wait hangs on.
//!
//! Everything here is a state machine over bytes or ticks that the caller hands in. Nothing here
//! reads a socket or a clock, and nothing allocates in proportion to what passes.

pub mod chunked;
pub mod guard;
pub mod head;
pub mod response;
pub mod scan;
pub mod sse;
pub mod usage;
pub mod wheel;
