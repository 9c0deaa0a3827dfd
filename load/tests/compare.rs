//! The comparison's own tests, which are Python as it is (`load/compare/tests.py`).
//!
//! Owns no check of its own. Without a Python that can run them they are skipped, loudly.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

use std::io::Write;
use std::path::Path;
use std::process::Command;

/// What the scripts are written in.
const ENOUGH: &str = "import sys; sys.exit(sys.version_info < (3, 11))";

#[test]
fn the_comparison_counts_right_and_leaves_nothing_running() {
    let found = Command::new("python3").args(["-c", ENOUGH]).status();
    if !found.is_ok_and(|status| status.success()) {
        // Straight to stderr: the test harness keeps what a passing test prints with a macro.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: load/compare/tests.py: install Python 3.11 or newer"
        );
        return;
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("compare/tests.py");
    let done = Command::new("python3").arg("-B").arg(tests).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("\nOK"), "no test ran: {said}");
}
