//! The real program as a child process: its ready line, its log, its end.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;

/// A running child; killed when dropped.
pub struct Program {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    log: tempfile::NamedTempFile,
}

/// How a child ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    /// Starts `tidegate serve` with these arguments; `files` limits its open files.
    pub fn serve(args: &[&str], files: Option<u32>) -> Program {
        Program::serve_in(args, files, None)
    }

    /// The same with these variables in its environment.
    pub fn serve_with(args: &[&str], variables: &[(&str, &str)]) -> Program {
        Program::start(args, "", variables)
    }

    /// The same in the control group at `group`.
    pub fn serve_in(args: &[&str], files: Option<u32>, group: Option<&Path>) -> Program {
        let mut limit = files.map_or(String::new(), |files| format!("ulimit -n {files}; "));
        if let Some(group) = group {
            limit += &format!("echo $$ > {}/cgroup.procs; ", group.display());
        }
        Program::start(args, &limit, &[])
    }

    /// `before` is what its shell does first.
    fn start(args: &[&str], before: &str, variables: &[(&str, &str)]) -> Program {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let mut child = Command::new("sh")
            .args(["-c", &format!("{before}exec \"$0\" serve \"$@\"")])
            .envs(variables.iter().copied())
            .arg(env!("CARGO_BIN_EXE_tidegate"))
            .args(args)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .stdout(log.reopen().expect("a file"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("a ready line");
        let line = line.replace("admin on", "admin-on");
        let words: Vec<_> = line.trim().split([' ', ',']).collect();
        let after = |word| {
            let at = words.iter().position(|w| *w == word).map(|at| words[at + 1]);
            at.and_then(|w| w.parse().ok()).unwrap_or_else(|| panic!("not ready: {line}"))
        };
        let (listen, admin) = (after("on"), after("admin-on"));
        Program { listen, admin, child, stderr, log }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs still.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("its log")
    }

    /// Waits until the log holds `text`.
    pub async fn logged(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "never logged {text:?}: {}", self.log());
            // A file has no bell; this is the interval of looking.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let code = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status.code();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).expect("its stderr");
        Ended { code, stdout: self.log(), stderr }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program to its end, which must come by itself.
pub fn run(args: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(args).output().expect("it runs");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
