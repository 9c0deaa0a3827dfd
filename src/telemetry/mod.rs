//! What an operator sees: metrics, the log, and the ids that tie the two to a request.
//!
//! - [`names`]: every metric, declared once; [`labels`]: the closed label values.
//! - [`cells`]: what a worker counts, [`slots`]: for which routes, upstreams and tenants.
//! - [`render`]: all workers' cells as Prometheus text.
//! - [`log`]: the log, with exactly one line per ended stream; [`mod@line`]: that line as JSON,
//!   [`lines`]: their way to standard output.
//! - [`trace`]: request and trace ids.
//!
//! Invariant: no label, field or line ever carries a header's value or a body's content, apart from
//! the ids that exist to be logged.

pub mod cells;
pub mod labels;
pub mod line;
pub mod lines;
pub mod log;
pub mod names;
pub mod render;
pub mod slots;
pub mod trace;

pub use cells::{Cells, Shape};
pub use labels::Reason;
pub use render::{Metrics, Process};
pub use slots::{Slots, UsageSlots};

#[cfg(test)]
mod tests;
