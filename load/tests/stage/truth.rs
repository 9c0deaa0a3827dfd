//! What the tool's figures have to be, from what its server saw.
//!
//! The server knows when it wrote something and when the tool had read it; the tool's own time of
//! reading lies between the two. So every figure has a range, however late programs get to run: a
//! narrow one on a quiet machine, and on a busy one as wide as it was busy.

use super::Run;

/// Something the tool read after `from` and before `to`, nanoseconds of the machine's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) stream: u64,
    /// Of the event in its stream, from 1; 0 is the head.
    pub(crate) number: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// The least and the most that a figure can be, microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range(pub(crate) f64, pub(crate) f64);

/// Between an earlier and a later moment.
pub(crate) fn between(earlier: &Reading, later: &Reading) -> Range {
    let micros = |from: u64, to: u64| (to as f64 - from as f64) / 1e3;
    Range(micros(earlier.to, later.from).max(0.0), micros(earlier.from, later.to))
}

/// The reads of each stream in their order, heads left out.
fn streams(reads: &[Reading]) -> Vec<Vec<Reading>> {
    let mut events: Vec<Reading> = reads.iter().filter(|read| read.number > 0).copied().collect();
    events.sort_by_key(|read| (read.stream, read.number));
    events.chunk_by(|a, b| a.stream == b.stream).map(<[Reading]>::to_vec).collect()
}

/// From one event of a stream to its next.
fn steps(stream: &[Reading]) -> Vec<Range> {
    stream.windows(2).map(|pair| between(&pair[0], &pair[1])).collect()
}

/// The same of all streams.
pub(crate) fn intervals(reads: &[Reading]) -> Vec<Range> {
    streams(reads).iter().flat_map(|stream| steps(stream)).collect()
}

/// A figure of each stream.
pub(crate) fn each(reads: &[Reading], figure: fn(&[Reading]) -> Range) -> Vec<Range> {
    streams(reads).iter().map(|stream| figure(stream)).collect()
}

/// From the first event of a stream to its last.
pub(crate) fn length(stream: &[Reading]) -> Range {
    between(&stream[0], &stream[stream.len() - 1])
}

/// How long something was under way that was stamped `age` microseconds before it was written.
pub(crate) fn delays(reads: &[Reading], age: f64) -> Vec<Range> {
    let took = |read: &Reading| (read.to - read.from) as f64 / 1e3;
    reads.iter().filter(|read| read.number > 0).map(|read| Range(age, age + took(read))).collect()
}

/// The longest interval.
pub(crate) fn longest(stream: &[Reading]) -> Range {
    let all = steps(stream);
    let most = |pick: fn(&Range) -> f64| all.iter().map(pick).fold(0.0, f64::max);
    Range(most(|range| range.0), most(|range| range.1))
}

/// The standard deviation of the intervals: it differs from that of the ranges' middles by no more
/// than the intervals do.
pub(crate) fn deviation(stream: &[Reading]) -> Range {
    let all = steps(stream);
    let count = all.len() as f64;
    let middle = |range: &Range| f64::midpoint(range.0, range.1);
    let mean = all.iter().map(middle).sum::<f64>() / count;
    let squares = all.iter().map(|range| (middle(range) - mean).powi(2)).sum::<f64>();
    let deviation = (squares / count).sqrt();
    let spare = all.iter().map(|range| (range.1 - range.0) / 2.0).fold(0.0, f64::max);
    Range((deviation - spare).max(0.0), deviation + spare)
}

/// The fewest and the most reads that a window can hold which was at least `least` long and at most
/// `most`, and lay after all streams had begun and before `end`; nanoseconds.
pub(crate) fn in_a_window(reads: &[Reading], least: u64, most: u64, end: u64) -> (u64, u64) {
    let all = streams(reads);
    let begin = all.iter().map(|stream| stream[0].from).max().unwrap();
    let count =
        |is: &dyn Fn(&Reading) -> bool| all.iter().flatten().filter(|read| is(read)).count();
    // A window holds fewest if one that begins with it was just missed, most if the last just was not.
    let missed = all.iter().flatten().map(|read| read.from);
    let fewest = missed
        .filter(|&at| at >= begin && at + least <= end)
        .map(|at| count(&|read| read.from > at && read.to < at + least));
    let caught = all.iter().flatten().map(|read| read.from.saturating_sub(most).max(begin));
    let greatest = caught.map(|at| count(&|read| read.to >= at && read.from <= at + most));
    (fewest.min().unwrap() as u64, greatest.max().unwrap() as u64)
}

impl Run {
    /// The median at `path`, microseconds, is one that these ranges allow.
    #[track_caller]
    pub(crate) fn median_is(&self, path: &str, ranges: &[Range]) {
        let value = self.at(&format!("{path}/p50")) as f64;
        assert_eq!(self.at(&format!("{path}/count")), ranges.len() as u64, "{path}");
        let mut lows: Vec<f64> = ranges.iter().map(|range| range.0).collect();
        let mut highs: Vec<f64> = ranges.iter().map(|range| range.1).collect();
        lows.sort_by(f64::total_cmp);
        highs.sort_by(f64::total_cmp);
        let middle = ranges.len().div_ceil(2) - 1;
        // The tool may have been interrupted between a read and its look at the clock, now and then.
        let spare = 1 + ranges.len() / 50;
        let low = lows[middle.saturating_sub(spare)];
        let high = highs[(middle + spare).min(ranges.len() - 1)];
        // Its histograms have three digits.
        let allowed = low * 0.999 - 1.0..=high * 1.001 + 1.0;
        assert!(allowed.contains(&value), "{path}: {value} us is not within {allowed:?}");
    }
}
