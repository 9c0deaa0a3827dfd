//! Whether one more request may run now.

use std::time::Duration;

use crate::admission::permit::Permit;
use crate::error::{Failure, Kind, Limit};
use crate::gateway::Gateway;
use crate::gateway::auth::Identity;
use crate::telemetry::cells::Rejection;

/// A place among the streams, for the request's whole life.
///
/// # Errors
/// `Draining` and `Streams` (both 503); counted.
pub fn admit(gateway: &Gateway, _identity: &Identity) -> Result<Permit, Failure> {
    let cells = gateway.cells();
    if gateway.draining.get() {
        cells.rejections(Rejection::Drain).inc();
        let text = "the gateway shuts down; try again, another instance will answer";
        return Err(Failure::new(Kind::Draining, text));
    }
    gateway.streams.take().ok_or_else(|| {
        cells.rejections(Rejection::Streams).inc();
        let max = gateway.streams.max();
        Failure::limited(
            Limit::Streams,
            Duration::from_secs(1),
            format!("limits.streams = {max} streams are running; try later"),
        )
    })
}
