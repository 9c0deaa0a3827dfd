//! What all workers share in order to let requests in: places, rates, queues, memory.
//!
//! Everything here is counted for the whole process, may be used from any thread and knows nothing
//! of HTTP. [`Admission`] is the process's own share, [`tenant`] one tenant's; [`held`] is what one
//! request took. Invariant: whatever is taken is given back exactly once, by dropping what was taken.

pub mod addresses;
pub mod budget;
pub mod bulkhead;
pub mod held;
pub mod permit;
pub mod rate;
pub mod tenant;
pub mod tokens;

use std::sync::Arc;

use crate::clock::Moment;
use crate::limits::USAGE_DRAINS;

use addresses::Addresses;
use budget::Budget;
use permit::Permits;
use rate::Rate;

/// What the process has to give.
pub struct Admission {
    /// Places for proxied requests.
    pub streams: Arc<Permits>,
    /// New proxied requests per second.
    pub rate: Rate,
    /// What each client address has.
    pub addresses: Arc<Addresses>,
    /// Bytes for request bodies and backlogs.
    pub memory: Arc<Budget>,
    /// Open files, for connections on either side.
    pub files: Arc<Permits>,
    /// Answers that are read on after their clients have left.
    pub drains: Arc<Permits>,
}

/// How much of each there is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// `limits.streams`.
    pub streams: usize,
    /// `limits.new_streams_per_second`.
    pub per_second: u32,
    /// `limits.new_streams_burst`.
    pub burst: u32,
    /// `limits.memory`, bytes.
    pub memory: usize,
    /// Files that connections may use.
    pub files: usize,
}

impl Admission {
    /// All of it free.
    pub fn new(sizes: &Sizes) -> Admission {
        Admission {
            streams: Permits::new(sizes.streams),
            rate: Rate::new(sizes.per_second, sizes.burst),
            addresses: Addresses::new(),
            memory: Budget::new(sizes.memory),
            files: Permits::new(sizes.files),
            drains: Permits::new(USAGE_DRAINS),
        }
    }

    /// Other sizes; what was taken stays taken. Open files stay as they were.
    pub fn resize(&self, sizes: &Sizes, now: Moment) {
        self.streams.set_max(sizes.streams);
        self.rate.set(sizes.per_second, sizes.burst, now);
        self.memory.set(sizes.memory);
    }
}
