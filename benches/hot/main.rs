//! What the parts on every chunk's and every request's way cost, one by one: `make bench`.
//!
//! Each line has the instructions of one operation, counted by callgrind: the same on an idle and
//! on a busy machine, and so compared with `baseline.json`; a growth beyond 10 % fails. Beside it,
//! nanoseconds: the median of several rounds, with the fastest and the slowest. Those follow the
//! machine's mood; compare them within one run only. The allocator is the C library's and not the
//! program's: mimalloc places its memory at random, and then the counts vary by half a percent.
//! Where a time is required, the fastest round is held against it: whatever else runs only adds.
//!
//! `cargo bench --bench hot -- WORDS` measures only what has these words in its name;
//! `TIDEGATE_BENCH_BASELINE=write` replaces the baseline.
#![allow(clippy::print_stdout, reason = "a report is what it is for")]

mod admission;
mod baseline;
mod count;
mod operations;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use baseline::{Baseline, Growth};
use count::Counter;
use operations::Operation;

const ROUNDS: usize = 15;
/// A round is at least this long, so that the clock's own cost and grain do not show in it.
const ROUND: Duration = Duration::from_millis(2);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let done = match count::asked_to_be_counted() {
        Some((name, times)) => count::be_counted(&name, times).map(|()| true),
        None => report(&words.join(" ")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("bench: {fault}");
            ExitCode::from(2)
        }
    }
}

/// Measures and prints every operation with `words` in its name; false if one has grown too much or
/// takes longer than it may.
fn report(words: &str) -> Result<bool, String> {
    let rewrite = baseline::to_be_written()?;
    if rewrite && !words.is_empty() {
        return Err("a baseline is written whole; leave the words out".into());
    }
    let wanted = || operations::ALL.iter().filter(|operation| operation.name.contains(words));
    if wanted().next().is_none() {
        return Err(format!("no operation has {words:?} in its name"));
    }
    let known = Baseline::read()?;
    let counter = Counter::find();
    let skipped = counter.as_ref().err();
    if let Some(why) = skipped {
        println!("SKIPPED: instructions are not counted: {why}");
    }
    let valgrind = counter.as_ref().map_or("", |counter| &counter.version);
    let mut measured = Baseline::of_this_machine(valgrind)?;
    println!("{:<46}{:>14} {:>9}   {:>11}", "per operation", "instructions", "change", "ns");
    let (mut grown, mut slow) = (Vec::new(), Vec::new());
    for operation in wanted() {
        let mut cells = ("-".to_owned(), String::new());
        if let Ok(counter) = &counter {
            let instructions = counter.count(operation)?;
            let growth = Growth::of(known.instructions.get(operation.name), instructions);
            cells = (format!("{instructions:.1}"), growth.to_string());
            if growth.is_too_much() {
                grown.push(operation.name);
            }
            measured.instructions.insert(operation.name.to_owned(), instructions);
        }
        let [least, median, most] = time(operation);
        let (name, (instructions, change)) = (operation.name, cells);
        let bar = operation.ns_max.map(|max| format!(", at most {max:.0}")).unwrap_or_default();
        println!(
            "{name:<46}{instructions:>14} {change:>9}   {median:>11.1} ({least:.1} - {most:.1}){bar}"
        );
        if operation.is_too_slow(least) {
            slow.push(format!("TOO SLOW: {name}: {least:.1} ns{bar}"));
        }
    }
    for name in &slow {
        println!("{name}");
    }
    if let Some(why) = skipped {
        println!("SKIPPED: instructions were not counted: {why}");
        return if rewrite {
            Err("without them there is no baseline".into())
        } else {
            Ok(slow.is_empty())
        };
    }
    if rewrite {
        measured.write()?;
        println!("benches/baseline.json is written");
        return Ok(slow.is_empty());
    }
    let comparable = known.compiler == measured.compiler;
    println!("the baseline is of {}, {}", known.compiler, known.valgrind);
    if !comparable {
        println!("this is {}: the changes are shown, not judged", measured.compiler);
        return Ok(slow.is_empty());
    }
    for name in &grown {
        println!("GROWN by more than 10 %: {name}");
    }
    if !grown.is_empty() {
        println!(
            "if that is meant, say why in the commit: TIDEGATE_BENCH_BASELINE=write make bench"
        );
    }
    Ok(grown.is_empty() && slow.is_empty())
}

/// Nanoseconds per operation: the fastest round, the median, the slowest.
fn time(operation: &Operation) -> [f64; 3] {
    let mut repeat = (operation.build)();
    let mut round = |times: u32| {
        let begun = Instant::now();
        repeat(times);
        begun.elapsed()
    };
    let mut times = 1;
    while round(times) < ROUND && times < u32::MAX / 2 {
        times *= 2;
    }
    let each = |_| round(times).as_secs_f64() * 1e9 / f64::from(times);
    let mut rounds: Vec<f64> = (0..ROUNDS).map(each).collect();
    rounds.sort_by(f64::total_cmp);
    [rounds[0], rounds[ROUNDS / 2], rounds[ROUNDS - 1]]
}
