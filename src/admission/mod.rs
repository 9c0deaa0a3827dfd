//! What all workers share in order to let requests in: places, rates, queues, memory.
//!
//! Everything here is counted for the whole process, may be used from any thread and knows nothing
//! of HTTP. Invariant: whatever is taken is given back exactly once, by dropping what was taken.

pub mod addresses;
pub mod budget;
pub mod bulkhead;
pub mod permit;
pub mod rate;
pub mod tokens;
