//! The benchmarks' own tests, which are Python as they are (`load/compare/*tests.py`).
//!
//! Owns no check of its own. Without a Python that can run them they are skipped, loudly.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

use std::io::Write;
use std::path::Path;
use std::process::Command;

/// What the scripts are written in.
const ENOUGH: &str = "import sys; sys.exit(sys.version_info < (3, 11))";

/// Runs one file of tests.
fn run(file: &str) {
    let found = Command::new("python3").args(["-c", ENOUGH]).status();
    if !found.is_ok_and(|status| status.success()) {
        // Straight to stderr: the test harness keeps what a passing test prints with a macro.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: load/compare/{file}: install Python 3.11 or newer"
        );
        return;
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("compare").join(file);
    let done = Command::new("python3").arg("-B").arg(tests).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("\nOK"), "no test ran: {said}");
}

#[test]
fn the_comparison_counts_right_and_leaves_nothing_running() {
    run("tests.py");
}

#[test]
fn the_price_is_held_against_its_bars() {
    run("price_tests.py");
}
