//! `load/wrk` and `load/oha`: both give their table, and a tool that is absent, has no figures or
//! counts what the gateway did not complete is found out.
//!
//! The real tools are run where they are installed; where not, that is said, and
//! `TIDEGATE_REQUIRE_CHECK_TOOLS=1` turns it into a failure. Those that lie are scripts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A run of one of the scripts with programs of this build, small loads, and its report in `folder`.
fn run(tool: &str, folder: &Path) -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_tidegate-load")).parent().unwrap();
    assert!(programs.join("tidegate").exists(), "build the gateway too: cargo build --workspace");
    let mut command = Command::new(format!("{ROOT}/load/{tool}/run"));
    command.env("TIDEGATE_PROGRAMS", programs).env("REPORT", folder.join("report.json")).envs([
        ("QUICK", "1"),
        ("TIME", "1"),
        ("HIGH", "100"),
    ]);
    command
}

/// An executable called `tool` in `folder`, and a PATH on which it comes first.
fn pretend(tool: &str, folder: &Path, script: &str) -> String {
    let file = folder.join(tool);
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

/// Everything a run said, and its status.
fn ended(output: &Output) -> (i32, String) {
    let utf8 = String::from_utf8_lossy;
    let said = format!("{}{}", utf8(&output.stdout), utf8(&output.stderr));
    (output.status.code().unwrap(), said)
}

/// Where the tool is; `None`, loudly, where it is not installed.
fn installed(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap();
    let own = PathBuf::from(format!("{ROOT}/target/tools/bin"));
    let found = std::env::split_paths(&path).chain([own]).map(|folder| folder.join(tool));
    let found = found.into_iter().find(|file| file.exists());
    if found.is_none() {
        let required = std::env::var_os("TIDEGATE_REQUIRE_CHECK_TOOLS").is_some();
        assert!(!required, "{tool} is not installed: load/{tool}/run install");
        // Straight to stderr: the test harness keeps what a passing test prints with a macro.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {tool} is not installed");
    }
    found
}

/// Both loads are in table and report, and both witnesses counted the same streams.
fn measures(tool: &str) {
    if installed(tool).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (status, said) = ended(&run(tool, folder.path()).output().unwrap());
    assert_eq!(status, 0, "{said}");
    let report = std::fs::read_to_string(folder.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for (row, (load, asked)) in rows.iter().zip([("low", 50), ("high", 100)]) {
        assert_eq!((&row["load"], &row["asked_per_s"]), (&json!(load), &json!(asked)));
        assert!(said.contains(&format!("| {load} | {asked} |")), "{said}");
        let complete = row["streams"]["tool"]["complete"].as_u64().unwrap();
        let beside = row["streams"]["beside"]["complete"].as_u64().unwrap();
        assert!(complete > 0 && beside == 10, "{row:#}");
        assert_eq!(row["streams"]["gateway"], json!({ "completed": complete + beside }));
        assert_eq!(row["error_share"].as_f64(), Some(0.0));
        // Ten events take nine intervals at least, and the first one some time.
        assert!(row["mean_ms"].as_f64().unwrap() >= 90.0, "{row:#}");
        assert!(row["ttfb_us"]["p50"].as_u64().unwrap() > 0);
        assert!(row["cpu_of_one_core"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn wrk_gives_its_table() {
    measures("wrk");
}

#[test]
fn oha_gives_its_table() {
    measures("oha");
}

#[test]
fn streams_that_only_the_tool_saw_complete_are_failures() {
    let line = json!({
        "responses": 40, "checked": true, "without_done": 6, "strange_status": 3, "connect": 0,
        "read": 1, "write": 0, "timeout": 0, "status": 3, "mean_us": 95000.0,
    });
    let folder = tempfile::tempdir().unwrap();
    let path = pretend("wrk", folder.path(), &format!("echo Running; echo '{line}'"));
    let (status, said) = ended(&run("wrk", folder.path()).env("PATH", path).output().unwrap());
    assert_eq!(status, 2, "{said}");
    // 31 good ones that never reached the gateway, and ten failures of its own; ten beside it.
    assert!(said.contains("high: **the counts differ**"), "{said}");
    assert!(said.contains("low: 41 of 51 streams failed"), "{said}");
    assert!(said.contains("| 80.39% |"), "{said}");
}

#[test]
fn a_report_without_figures_is_no_result() {
    let nothing = json!({
        "summary": { "successRate": null, "average": null },
        "latencyPercentiles": { "p50": null },
        "statusCodeDistribution": {}, "errorDistribution": { "aborted due to deadline": 5 },
    });
    for (tool, script, wanted) in [
        ("oha", format!("echo '{nothing}'"), "(NaN): no stream came to a good end"),
        ("oha", "echo 'no such option'".to_owned(), "oha printed no report: 'no such option'"),
        ("oha", "test \"$1\" = --version; exit $?".to_owned(), "oha ended with status 1"),
        ("wrk", "echo 0 requests".to_owned(), "its last one was: 0 requests"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = pretend(tool, folder.path(), &script);
        let (status, said) = ended(&run(tool, folder.path()).env("PATH", path).output().unwrap());
        assert!(status == 1 && said.contains(wanted), "{status} {said}");
    }
}

/// The processes below `parent`.
fn below(parent: u32) -> Vec<u32> {
    let file = format!("/proc/{parent}/task/{parent}/children");
    let listed = std::fs::read_to_string(file).unwrap_or_default();
    let children = listed.split_whitespace().map(|pid| pid.parse().unwrap());
    children.flat_map(|pid: u32| [vec![pid], below(pid)].concat()).collect()
}

#[test]
fn a_script_that_is_stopped_leaves_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    let begun = folder.path().join("begun");
    let script = format!("touch '{}'; exec sleep 60", begun.display());
    let path = pretend("wrk", folder.path(), &format!("[ $# = 1 ] || {{ {script}; }}"));
    let mut running = run("wrk", folder.path()).env("PATH", path).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !begun.exists() {
        assert!(Instant::now() < deadline && running.try_wait().unwrap().is_none());
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let family = below(running.id());
    // The simulator, the gateway, wrk and the load tool, the last two with a bound on their time.
    assert!(family.len() >= 5, "{family:?}");
    Command::new("kill").arg(running.id().to_string()).status().unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(143));
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Some(pid) = family.iter().find(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        assert!(Instant::now() < deadline, "{pid} of {family:?} was left");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn a_tool_that_is_absent_is_named_with_its_remedy() {
    for (tool, remedy) in [("wrk", "apt-get install wrk"), ("oha", "cargo install oha --locked")] {
        let folder = tempfile::tempdir().unwrap();
        // A copy, so that a tool built into target/tools is not there either.
        let script = folder.path().join("load").join(tool).join("run");
        std::fs::create_dir_all(script.parent().unwrap()).unwrap();
        std::fs::copy(format!("{ROOT}/load/{tool}/run"), &script).unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for program in ["bash", "dirname"] {
            let path = std::env::var_os("PATH").unwrap();
            let mut all = std::env::split_paths(&path).map(|folder| folder.join(program));
            std::os::unix::fs::symlink(all.find(|file| file.exists()).unwrap(), bin.join(program))
                .unwrap();
        }
        let output = Command::new("/usr/bin/env")
            .args(["bash".as_ref(), script.as_os_str()])
            .env("PATH", &bin)
            .output()
            .unwrap();
        let (status, said) = ended(&output);
        assert!(status == 3 && said.contains(remedy), "{status} {said}");
    }
}
