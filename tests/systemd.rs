//! What the service manager hears from the real program: ready once it listens, alive while its
//! workers turn, reloading and ready again, stopping when told to.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sd_notify::NotifyState;

/// Reads datagrams until one holds the line `wanted`; that one.
fn hears(socket: &UnixDatagram, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut heard = Vec::new();
    while Instant::now() < deadline {
        let mut datagram = [0; 4096];
        let Ok(length) = socket.recv(&mut datagram) else { continue };
        let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
        if text.lines().any(|line| line == wanted) {
            return text;
        }
        heard.push(text);
    }
    panic!("never {wanted}, only {heard:?}");
}

/// The child, killed if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program as a service with these arguments, and where it reports.
fn service(folder: &Path, args: &[&str]) -> (Running, UnixDatagram) {
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).expect("a datagram socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    // systemd names the process that the watchdog is for; the shell becomes that process.
    let child = Command::new("sh")
        .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_tidegate")])
        .arg("serve")
        .args(args)
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    (Running(child), socket)
}

fn signal(running: &Running, signal: Signal) {
    let pid = i32::try_from(running.0.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, signal).expect("it runs");
}

#[test]
fn the_service_manager_hears_ready_watchdog_and_stopping() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut running, socket) = service(folder.path(), &["--upstream", "http://127.0.0.1:9"]);
    hears(&socket, "READY=1");
    for _ in 0..3 {
        hears(&socket, "WATCHDOG=1");
    }
    signal(&running, Signal::TERM);
    hears(&socket, "STOPPING=1");
    assert_eq!(running.0.wait().expect("it ends").code(), Some(0));
}

#[test]
fn the_service_manager_hears_of_reloads_and_what_became_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("a file");
    write("[[upstream]]\nurls = [\"http://127.0.0.1:9\"]\n");
    let args = ["--config", path.to_str().expect("UTF-8")];
    let (running, socket) = service(folder.path(), &args);
    hears(&socket, "READY=1");
    for (text, status) in [
        ("[[upstream]]\nurls = [\"http://127.0.0.1:99\"]\n", "configuration of the last reload"),
        ("[[upstream]]\n", "refused"),
    ] {
        write(text);
        let before = monotonic_us();
        signal(&running, Signal::HUP);
        // systemd takes the reload for its own only if it began after the signal was sent.
        let begun = hears(&socket, "RELOADING=1");
        let at = begun.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let at: i128 = at.and_then(|at| at.parse().ok()).expect("since when");
        assert!((before..=monotonic_us()).contains(&at), "{before} {at}");
        let done = hears(&socket, "READY=1");
        assert!(done.contains("STATUS=") && done.contains(status), "{done}");
    }
}

fn monotonic_us() -> i128 {
    match NotifyState::monotonic_usec_now().expect("a clock") {
        NotifyState::MonotonicUsec(now) => now,
        other => panic!("{other:?}"),
    }
}
