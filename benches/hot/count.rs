//! Instructions per operation, by callgrind.
//!
//! This program runs itself under valgrind, once with N and once with 2 N operations, and takes the
//! difference: what is left is the operation alone, without building what it works on and without
//! the first call's surprises. Only what happens below [`collected`] is counted.
//!
//! Not `gungraun`, which was tried: its runner takes minutes to install and must be of the crate's
//! exact version, it counts one cold call, and it compares with the last run, not with a file that
//! is committed.

use std::env;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::operations::{self, Operation, Repeat};

/// How the program tells itself to be the one that is counted.
const COUNTED: &str = "--counted";
/// What it is called then, in a folder of its own.
const PROGRAM: &str = "./hot";

/// Valgrind, as found on this machine.
pub(crate) struct Counter {
    valgrind: PathBuf,
    /// What it calls itself, such as `valgrind-3.19.0`.
    pub(crate) version: String,
}

impl Counter {
    /// Looks for valgrind.
    ///
    /// # Errors
    /// It is not there or does not run, and what to do about it.
    pub(crate) fn find() -> Result<Counter, String> {
        let path = env::var_os("PATH").unwrap_or_default();
        let valgrind = env::split_paths(&path)
            .map(|folder| folder.join("valgrind"))
            .find(|candidate| candidate.is_file())
            .ok_or("there is no valgrind; install it: apt-get install valgrind")?;
        let told = Command::new(&valgrind).arg("--version").output();
        let told = told.map_err(|error| format!("{} does not run: {error}", valgrind.display()))?;
        let version = String::from_utf8_lossy(&told.stdout).trim().to_owned();
        Ok(Counter { valgrind, version })
    }

    /// Instructions per operation, to a tenth.
    ///
    /// # Errors
    /// Valgrind's own words when it fails, or that nothing was counted.
    pub(crate) fn count(&self, operation: &Operation) -> Result<f64, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let folder = folder.path();
        let program = env::current_exe().map_err(|error| error.to_string())?;
        symlink(program, folder.join(PROGRAM)).map_err(|error| error.to_string())?;
        let (once, twice) = (operation.times, operation.times * 2);
        // Both at once: counts do not depend on what else runs.
        let running = [once, twice].map(|times| self.start(operation.name, times, folder));
        let [once, twice] = running.map(|run| run.and_then(total));
        let (once, twice) = (once?, twice?);
        let per = twice.saturating_sub(once) as f64 / f64::from(operation.times);
        match per {
            0.0 => Err(format!("{}: callgrind saw no instruction of it", operation.name)),
            per => Ok((per * 10.0).round() / 10.0),
        }
    }

    /// Starts one run; its counts will be in the file.
    fn start(&self, name: &str, times: u32, folder: &Path) -> Result<(Child, PathBuf), String> {
        let out = folder.join(times.to_string());
        let child = Command::new(&self.valgrind)
            .args(["--tool=callgrind", "--toggle-collect=hot::count::collected*"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            // A longer path or a larger environment would move the stack, and alignment changes how
            // memory is copied and compared.
            .args([PROGRAM, COUNTED, name, &times.to_string()])
            .current_dir(folder)
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.valgrind.display()))?;
        Ok((child, out))
    }
}

/// Waits for a run and reads what it counted.
fn total((child, out): (Child, PathBuf)) -> Result<u64, String> {
    let ended = child.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&ended.stderr);
    if !ended.status.success() {
        return Err(format!("valgrind failed: {}\n{said}", ended.status));
    }
    let text = std::fs::read_to_string(&out).map_err(|error| format!("{error}\n{said}"))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total
        .and_then(|total| total.trim().parse().ok())
        .ok_or_else(|| format!("callgrind's file has no line 'totals: NUMBER'\n{said}"))
}

/// The name of the operation and how often to repeat it, if this process is to be counted.
pub(crate) fn asked_to_be_counted() -> Option<(String, u32)> {
    let mut arguments = env::args().skip(1);
    let asked = arguments.next()? == COUNTED;
    let (name, times) = (arguments.next()?, arguments.next()?);
    asked.then_some((name, times.parse().ok()?))
}

/// Repeats one operation, to be watched by callgrind.
///
/// # Errors
/// There is no such operation.
pub(crate) fn be_counted(name: &str, times: u32) -> Result<(), String> {
    let operation = operations::ALL.iter().find(|operation| operation.name == name);
    let operation = operation.ok_or_else(|| format!("there is no operation {name:?}"))?;
    collected(&mut (operation.build)(), times);
    Ok(())
}

/// What callgrind counts; it knows this function by its name.
#[inline(never)]
fn collected(repeat: &mut Repeat, times: u32) {
    repeat(times);
}
