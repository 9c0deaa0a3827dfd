//! The committed counts, `benches/baseline.json`, and how new ones compare with them.
//!
//! Counts are those of one compiler: another one is told, and then nothing is judged.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// How an environment variable asks for a new baseline: its name, and the one value it may have.
const WRITE: (&str, &str) = ("TIDEGATE_BENCH_BASELINE", "write");
/// A count may grow by this factor.
const FACTOR: f64 = 1.1;
/// It may grow by so many instructions in any case: in the smallest operations the compiler's choice
/// of registers makes that difference.
const INSTRUCTIONS: f64 = 2.0;

/// Counts of every operation, and what they were made with.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Baseline {
    /// As `rustc --version` says.
    pub(crate) compiler: String,
    /// As `valgrind --version` says; it is here to explain a difference, not to
    /// decide.
    pub(crate) valgrind: String,
    /// Instructions per operation, by its name.
    pub(crate) instructions: BTreeMap<String, f64>,
}

/// How a count has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Growth {
    /// The baseline does not have it.
    New,
    /// From, to.
    Known(f64, f64),
}

impl Baseline {
    fn path() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/baseline.json")
    }

    /// Reads the committed one.
    ///
    /// # Errors
    /// It cannot be read, and how to make a new one.
    pub(crate) fn read() -> Result<Baseline, String> {
        let path = Baseline::path();
        let parsed = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let (name, value) = WRITE;
        parsed.or_else(|error| match std::env::var_os(name) {
            Some(_) => Ok(Baseline::empty(String::new(), String::new())),
            None => Err(format!("{}: {error}; {name}={value} makes a new one", path.display())),
        })
    }

    /// One without counts yet, for the compiler that cargo uses here.
    ///
    /// # Errors
    /// The compiler does not tell its version.
    pub(crate) fn of_this_machine(valgrind: &str) -> Result<Baseline, String> {
        let told = Command::new("rustc")
            .arg("--version")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .map_err(|error| format!("rustc --version: {error}"))?;
        let compiler = String::from_utf8_lossy(&told.stdout).trim().to_owned();
        Ok(Baseline::empty(compiler, valgrind.to_owned()))
    }

    fn empty(compiler: String, valgrind: String) -> Baseline {
        Baseline { compiler, valgrind, instructions: BTreeMap::new() }
    }

    /// Replaces the committed one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self) -> Result<(), String> {
        let path = Baseline::path();
        let mut text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        text.push('\n');
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Whether the baseline is to be replaced.
///
/// # Errors
/// The environment variable has a value that means nothing.
pub(crate) fn to_be_written() -> Result<bool, String> {
    let (name, value) = WRITE;
    match std::env::var_os(name) {
        None => Ok(false),
        Some(given) if given == value => Ok(true),
        Some(given) => Err(format!("{name} is {given:?}; write {name}={value}, or leave it out")),
    }
}

impl Growth {
    /// From the baseline's count, if it has one, to `now`.
    pub(crate) fn of(before: Option<&f64>, now: f64) -> Growth {
        before.map_or(Growth::New, |before| Growth::Known(*before, now))
    }

    /// Whether it is a regression.
    pub(crate) fn is_too_much(self) -> bool {
        match self {
            Growth::New => false,
            Growth::Known(before, now) => now > before * FACTOR && now - before > INSTRUCTIONS,
        }
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Growth::New => f.pad("new"),
            Growth::Known(before, now) => f.pad(&format!("{:+.1} %", (now / before - 1.0) * 100.0)),
        }
    }
}
