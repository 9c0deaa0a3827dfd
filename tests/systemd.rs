//! What the service manager hears from the real program: ready once it listens, alive while its
//! workers turn, stopping when told to.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Reads datagrams until one holds `wanted`.
fn hears(socket: &UnixDatagram, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut heard = Vec::new();
    while Instant::now() < deadline {
        let mut datagram = [0; 4096];
        let Ok(length) = socket.recv(&mut datagram) else { continue };
        let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
        if text.lines().any(|line| line == wanted) {
            return;
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

#[test]
fn the_service_manager_hears_ready_watchdog_and_stopping() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a datagram socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    // systemd names the process that the watchdog is for; the shell becomes that process.
    let child = Command::new("sh")
        .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_tidegate")])
        .args(["serve", "--upstream", "http://127.0.0.1:9"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut running = Running(child);
    hears(&socket, "READY=1");
    for _ in 0..3 {
        hears(&socket, "WATCHDOG=1");
    }
    let pid = i32::try_from(running.0.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::TERM).expect("it runs");
    hears(&socket, "STOPPING=1");
    assert_eq!(running.0.wait().expect("it ends").code(), Some(0));
}
