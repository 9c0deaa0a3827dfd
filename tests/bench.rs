//! The parts of `make bench` that do not need valgrind: its judgement, and that what it measures
//! still works and has a committed count.

#[path = "../benches/hot/admission.rs"]
mod admission;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/hot/baseline.rs"]
mod baseline;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/hot/operations.rs"]
mod operations;

use baseline::{Baseline, Growth};

#[test]
fn every_operation_can_be_repeated_and_is_in_the_baseline() {
    let baseline = Baseline::read().unwrap_or_else(|fault| panic!("{fault}"));
    let mut names = Vec::new();
    for operation in operations::ALL {
        let mut repeat = (operation.build)();
        repeat(3);
        names.push(operation.name);
    }
    names.sort_unstable();
    let committed: Vec<&str> = baseline.instructions.keys().map(String::as_str).collect();
    assert_eq!(names, committed, "TIDEGATE_BENCH_BASELINE=write make bench makes a new baseline");
}

#[test]
fn growth_beyond_a_tenth_is_too_much_and_nothing_else_is() {
    for (before, now, too_much) in [
        (100.0, 110.0, false),
        (100.0, 110.1, true),
        (100.0, 50.0, false),
        (100.0, 100.0, false),
        (5.0, 7.0, false),
        (5.0, 8.0, true),
    ] {
        let growth = Growth::of(Some(&before), now);
        assert_eq!(growth.is_too_much(), too_much, "{before} to {now}");
    }
    assert!(!Growth::of(None, 1e9).is_too_much(), "what is new has nothing to grow from");
}

#[test]
fn an_operation_with_a_bar_is_too_slow_beyond_it_only() {
    let with_bar: Vec<_> = operations::ALL.iter().filter(|o| o.ns_max.is_some()).collect();
    let [chunk, admission] = with_bar[..] else { panic!("two bars are set") };
    assert_eq!(chunk.name, "heartbeats, wheel and metrics of a chunk");
    assert!(chunk.is_too_slow(300.1) && !chunk.is_too_slow(300.0));
    assert_eq!(admission.name, "admission of a request, every limit on");
    assert!(admission.is_too_slow(2000.1) && !admission.is_too_slow(2000.0));
    let without = operations::ALL.iter().filter(|o| o.ns_max.is_none());
    assert!(without.into_iter().all(|operation| !operation.is_too_slow(f64::MAX)));
}

#[test]
fn changes_are_told_in_percent() {
    assert_eq!(Growth::of(Some(&200.0), 215.0).to_string(), "+7.5 %");
    assert_eq!(format!("{:>8}", Growth::of(Some(&200.0), 100.0)), " -50.0 %");
    assert_eq!(Growth::of(None, 1.0).to_string(), "new");
}
