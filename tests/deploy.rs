//! The files under `deploy/`, and the metrics text, checked by the tools that will read them.
//!
//! A tool that is not installed skips its checks with a line on stderr;
//! `TIDEGATE_REQUIRE_CHECK_TOOLS=1` turns that into a failure.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tidegate::telemetry::{Cells, Metrics, Reason, Shape};

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

fn text(file: &str) -> String {
    std::fs::read_to_string(deploy(file)).expect("a file of the repository")
}

/// Runs a tool with this input; `None`, loudly, where it is not installed.
fn tool(name: &str, args: &[&str], input: &str) -> Option<Output> {
    let spawned = Command::new(name)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let required = std::env::var_os("TIDEGATE_REQUIRE_CHECK_TOOLS").is_some();
            assert!(!required, "{name} is not installed: run deploy/install-check-tools.sh");
            // Straight to stderr: the test harness keeps what a passing test prints with a macro.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {name} {}: install it with deploy/install-check-tools.sh",
                args.join(" ")
            );
            return None;
        }
        Err(error) => panic!("{name}: {error}"),
    };
    let mut stdin = child.stdin.take().expect("piped");
    // A tool that does not read its input may be gone already; its output says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Some(child.wait_with_output().expect("the tool's end"))
}

/// Everything a tool said.
fn said(output: &Output) -> String {
    let utf8 = String::from_utf8_lossy;
    format!("{}\n{}{}", output.status, utf8(&output.stdout), utf8(&output.stderr))
}

/// The unit's assignments; a key that may repeat keeps all its values.
fn unit() -> BTreeMap<String, Vec<String>> {
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text("systemd/tidegate.service").lines() {
        if line.starts_with(['#', '[']) || line.is_empty() {
            continue;
        }
        let (key, value) = line.split_once('=').expect("Key=value");
        settings.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    settings
}

fn seconds(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).expect("a unit"));
    number.parse::<u64>().expect("a number")
        * match unit {
            "s" => 1,
            "m" => 60,
            other => panic!("unit {other:?}"),
        }
}

#[test]
fn the_unit_keeps_the_promises_of_the_program() {
    let unit = unit();
    let one = |key: &str| {
        let values = unit.get(key).unwrap_or_else(|| panic!("no {key}="));
        assert_eq!(values.len(), 1, "{key}= more than once");
        values[0].as_str()
    };
    assert_eq!(
        one("ExecStart"),
        "/usr/local/bin/tidegate serve --config /etc/tidegate/tidegate.toml"
    );
    assert_eq!(one("Type"), "notify");
    assert_eq!(one("KillSignal"), "SIGTERM");
    assert_eq!(one("RestartPreventExitStatus"), "78");
    assert_eq!(one("EnvironmentFile"), "-/etc/tidegate/env");
    // Killed in mid-drain otherwise: `server.drain_deadline` is 10 minutes by default.
    assert!(seconds(one("TimeoutStopSec")) > 600);
    assert!(seconds(one("WatchdogSec")) >= 10);
    // The default limits: 18,000 client and up to 15,000 upstream connections, 256 kept in reserve.
    assert!(one("LimitNOFILE").parse::<u64>().unwrap() > 18_000 + 15_000 + 256);
    // A faulty file never reaches the running gateway, which reloads on SIGHUP.
    assert_eq!(
        unit["ExecReload"],
        [
            "/usr/local/bin/tidegate check --config /etc/tidegate/tidegate.toml",
            "/bin/kill -HUP $MAINPID"
        ]
    );
}

#[test]
fn systemd_accepts_the_unit() {
    // The program need not be installed here, but systemd insists that what it starts exists.
    let copy = tempfile::tempdir().unwrap();
    let unit = text("systemd/tidegate.service");
    let here = unit.replace("=/usr/local/bin/tidegate ", "=/bin/true ");
    assert_ne!(unit, here);
    let path = copy.path().join("tidegate.service");
    std::fs::write(&path, here).unwrap();
    let path = path.to_str().unwrap();

    let Some(verified) = tool("systemd-analyze", &["verify", path], "") else { return };
    assert!(verified.status.success(), "{}", said(&verified));
    let complaints = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(!complaints.contains("tidegate.service"), "{complaints}");

    // Fails above an exposure level of 2.0 of 10.
    let args = ["security", "--offline=true", "--no-pager", "--threshold=20", path];
    let Some(exposed) = tool("systemd-analyze", &args, "") else { return };
    assert!(exposed.status.success(), "{}", said(&exposed));
}

#[test]
fn prometheus_accepts_the_scrape_configuration() {
    let path = deploy("prometheus/scrape.yml");
    // The default of `admin.listen`.
    assert!(text("prometheus/scrape.yml").contains("\"127.0.0.1:9464\""));
    let args = ["check", "config", path.to_str().unwrap()];
    let Some(checked) = tool("promtool", &args, "") else { return };
    assert!(checked.status.success(), "{}", said(&checked));
}

#[test]
fn promtool_accepts_the_metrics() {
    let shape = Shape {
        listeners: vec!["127.0.0.1:8080".into(), "[::1]:8443".into()],
        upstreams: vec!["main".into(), "a \"quoted\" \\ name".into()],
        routes: vec![("/v1/{*rest}".into(), 0), ("/v2/{*rest}".into(), 1)],
        ..Shape::default()
    };
    let workers: Vec<_> = (0..3).map(|_| Arc::new(Cells::new(&shape))).collect();
    for cells in &workers {
        cells.upstream(1).ended(Reason::Completed).inc();
        cells.upstream(0).chunk_interval.observe(Duration::from_millis(40));
        cells.route(1).duration.observe(Duration::from_secs(90));
    }
    let metrics = Metrics::new(shape, workers).render();
    let Some(checked) = tool("promtool", &["check", "metrics"], &metrics) else { return };
    let nothing_to_say = checked.stdout.is_empty() && checked.stderr.is_empty();
    assert!(checked.status.success() && nothing_to_say, "{}", said(&checked));
}

#[test]
fn the_shell_script_parses() {
    let path = deploy("install-check-tools.sh");
    let Some(checked) = tool("sh", &["-n", path.to_str().unwrap()], "") else { return };
    assert!(checked.status.success(), "{}", said(&checked));
}
