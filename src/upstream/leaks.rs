//! Connections that are out for longer than their streams live: a bug of ours, to be found and counted.
//!
//! Every [`Lease`](super::pool::Lease) belongs to a request's answer and goes back with it, so on one
//! worker there can never be more of them than live streams. Two counts per upstream are compared, so
//! nothing is kept per stream. What the comparison cannot see: a leak that hides behind streams which
//! have no connection, or none any more; it is found as soon as there are fewer of those.

use crate::telemetry::cells::UpstreamCells;

/// Compares what is out with the worker's live `streams` of that upstream, between two steps of any
/// task. Counts what is too much, each once, and says how many are new.
pub fn look(cells: &UpstreamCells, streams: usize) -> u64 {
    let may_be_out =
        i64::try_from(streams).unwrap_or(i64::MAX).saturating_add(cells.lingering.get());
    let leaked = cells.leases.get().saturating_sub(may_be_out).max(0);
    let new = leaked - cells.leaked.get();
    // One that came back late was no less a leak.
    cells.leaked.set(leaked);
    let new = u64::try_from(new).unwrap_or(0);
    cells.leaks.add(new);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::cells::{Cells, Shape};

    #[test]
    fn what_is_out_without_a_stream_is_counted_once() {
        let shape = Shape { upstreams: vec!["u".into()], ..Shape::default() };
        let cells = Cells::new(&shape);
        let cells = cells.upstream(0);
        cells.leases.add(3);
        assert_eq!(look(cells, 3), 0, "each has its stream");
        assert_eq!(look(cells, 5), 0, "two streams wait");
        cells.lingering.add(1);
        assert_eq!(look(cells, 2), 0, "one is kept on purpose");
        cells.lingering.sub(1);
        assert_eq!(look(cells, 2), 1);
        assert_eq!((look(cells, 2), cells.leaks.get()), (0, 1), "not a second time");
        assert_eq!((look(cells, 0), cells.leaks.get()), (2, 3));
        cells.leases.sub(2);
        assert_eq!((look(cells, 0), cells.leaks.get()), (0, 3), "two came back late");
        cells.leases.add(1);
        assert_eq!((look(cells, 0), cells.leaks.get()), (1, 4), "another one");
    }
}
