//! Whether a stream's events came once each, in order, and were its own.
//!
//! Owns the account of one stream. Refuses to guess: an event that is missing counts as lost until
//! it comes late, and is then reordered instead. Invariant: `lost + highest == events accepted in
//! order or late`. Cost: 40 bytes per stream; a list only while something is missing.

use serde::{Deserialize, Serialize};

/// Ranges of missing events remembered per stream. Beyond it the oldest is forgotten: its events
/// stay lost, and count as duplicates should they come after all.
const GAPS_MAX: usize = 64;

/// What was wrong with the events of one stream, or of all. Any non-zero fails a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Faults {
    /// Never came, though a later event, or the end mark of a stream of known length, did.
    pub(crate) lost: u64,
    /// Came again.
    pub(crate) duplicated: u64,
    /// Came after a later one.
    pub(crate) reordered: u64,
    /// Belonged to another stream.
    pub(crate) foreign: u64,
    /// Not an event of the format, no JSON, incomplete at a clean end, or after the end mark.
    pub(crate) malformed: u64,
    /// Comment lines between the lines of one event.
    pub(crate) heartbeats_inside: u64,
}

impl Faults {
    pub(crate) fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.foreign += other.foreign;
        self.malformed += other.malformed;
        self.heartbeats_inside += other.heartbeats_inside;
    }

    pub(crate) fn total(&self) -> u64 {
        let Self { lost, duplicated, reordered, foreign, malformed, heartbeats_inside } = self;
        lost + duplicated + reordered + foreign + malformed + heartbeats_inside
    }
}

/// The account of one stream.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    highest: u64,
    /// Missing numbers below `highest`, as ranges with both ends included, oldest first.
    gaps: Vec<(u64, u64)>,
    pub(crate) faults: Faults,
}

impl Sequence {
    /// Takes the number (from 1) of an event of this stream.
    pub(crate) fn see(&mut self, number: u64) {
        if number == self.highest + 1 {
            self.highest = number;
        } else if number == 0 {
            self.faults.malformed += 1;
        } else if number > self.highest {
            self.miss(self.highest + 1, number - 1);
            self.highest = number;
        } else if self.close_gap(number) {
            self.faults.lost -= 1;
            self.faults.reordered += 1;
        } else {
            self.faults.duplicated += 1;
        }
    }

    /// The end mark came; the stream was to have `count` events, if that is known.
    pub(crate) fn finish(&mut self, count: Option<u64>) {
        if let Some(count) = count.filter(|&count| count > self.highest) {
            self.miss(self.highest + 1, count);
        }
    }

    fn miss(&mut self, from: u64, to: u64) {
        self.faults.lost += to - from + 1;
        if self.gaps.len() == GAPS_MAX {
            self.gaps.remove(0);
        }
        self.gaps.push((from, to));
    }

    fn close_gap(&mut self, number: u64) -> bool {
        let Some(at) = self.gaps.iter().position(|&(from, to)| (from..=to).contains(&number))
        else {
            return false;
        };
        let (from, to) = self.gaps.remove(at);
        let (before, after) = ((from, number - 1), (number + 1, to));
        for (from, to) in [after, before] {
            if from <= to {
                self.gaps.insert(at, (from, to));
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(numbers: &[u64], count: Option<u64>) -> [u64; 4] {
        let mut sequence = Sequence::default();
        for &number in numbers {
            sequence.see(number);
        }
        sequence.finish(count);
        let Faults { lost, duplicated, reordered, malformed, .. } = sequence.faults;
        [lost, duplicated, reordered, malformed]
    }

    #[test]
    fn each_disorder_has_its_counter() {
        assert_eq!(faults(&[1, 2, 3], Some(3)), [0; 4]);
        assert_eq!(faults(&[], None), [0; 4]);
        assert_eq!(faults(&[1, 3, 4], Some(4)), [1, 0, 0, 0]);
        assert_eq!(faults(&[1, 2], Some(4)), [2, 0, 0, 0]);
        assert_eq!(faults(&[2, 3], Some(3)), [1, 0, 0, 0]);
        assert_eq!(faults(&[1, 2, 2, 3], None), [0, 1, 0, 0]);
        assert_eq!(faults(&[1, 3, 2, 4], None), [0, 0, 1, 0]);
        assert_eq!(faults(&[1, 3, 2, 2], None), [0, 1, 1, 0]);
        assert_eq!(faults(&[5, 3, 1, 2, 4], None), [0, 0, 4, 0]);
        assert_eq!(faults(&[0, 1], None), [0, 0, 0, 1]);
    }

    #[test]
    fn memory_is_bounded_under_endless_loss() {
        let mut sequence = Sequence::default();
        (1..=10_000).for_each(|n| sequence.see(n * 2));
        assert_eq!(sequence.gaps.len(), GAPS_MAX);
        assert_eq!(sequence.faults.lost, 10_000);
        sequence.see(1);
        assert_eq!(sequence.faults.duplicated, 1);
    }
}
