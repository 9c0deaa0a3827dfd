//! Many streams at once through one gateway process with an HTTP/2 upstream over TLS: all
//! complete, none loses, doubles, reorders or mixes an event.
//!
//! Gateway and simulator run as processes of their own, so that each has its own open-file limit;
//! the clients are this process, one HTTP/1.1 connection each. `TIDEGATE_STREAMS` says how many
//! (`make many` runs 9,000 with the release build).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

mod stage;

const EVENTS: u64 = 10;

/// A child process, killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program and waits for its ready line; returns the addresses in it.
fn start(arguments: &[&str]) -> (Running, Vec<SocketAddr>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stderr = child.stderr.take().expect("piped");
    let running = Running(child);
    let mut lines = BufReader::new(stderr).lines();
    let ready = lines
        .find_map(|line| line.ok().filter(|line| line.contains(" ready: ")))
        .expect("a ready line");
    // Nobody reads on; the program must not care.
    let words = ready.split([' ', ',']).filter_map(|word| word.parse().ok());
    (running, words.collect())
}

/// One stream from request to end: every event of it, in order, and nobody else's.
async fn one(gateway: SocketAddr, id: usize, all_open: &Barrier) -> Result<(), String> {
    let told = |what: &str| format!("stream {id}: {what}");
    let mut socket = TcpStream::connect(gateway).await.map_err(|e| told(&e.to_string()))?;
    let body = r#"{"model":"tide-1","stream":true,"messages":[]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nsim-stream: {id}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.map_err(|e| told(&e.to_string()))?;
    let mut answer = vec![0; 1024];
    let head = socket.read(&mut answer).await.map_err(|e| told(&e.to_string()))?;
    answer.truncate(head);
    // Every stream has its head before any may end: they are all open at the same time.
    all_open.wait().await;
    socket.read_to_end(&mut answer).await.map_err(|e| told(&e.to_string()))?;
    let text = String::from_utf8_lossy(&answer);
    if !text.starts_with("HTTP/1.1 200") || !text.ends_with("\r\n0\r\n\r\n") {
        return Err(told(&format!("no clean 200: {text:.300}")));
    }
    let mut expected = 1;
    for part in text.split(r#""sim":{"stream":"#).skip(1) {
        let (stream, rest) = part.split_once(r#","seq":"#).ok_or_else(|| told("no seq"))?;
        let seq = rest.split(',').next().and_then(|seq| seq.parse::<u64>().ok());
        if stream.parse() != Ok(id) || seq != Some(expected) {
            return Err(told(&format!("got {stream}/{seq:?}, expected {id}/{expected}")));
        }
        expected += 1;
    }
    match text.matches("data: [DONE]\n\n").count() {
        1 if expected == EVENTS + 1 => Ok(()),
        done => Err(told(&format!("{} events, {done} ends", expected - 1))),
    }
}

#[test]
fn many_streams_at_once_complete_without_loss_or_mixture() {
    let wanted = std::env::var("TIDEGATE_STREAMS").ok().and_then(|n| n.parse().ok());
    let streams: usize = wanted.unwrap_or(1000);
    let files = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files });
    let files = files.map_or(usize::MAX, |files| files as usize);
    assert!(streams + 500 < files, "raise the open-file limit ({files}) for {streams} streams");

    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("ca.pem");
    // The first event comes late enough for all to be open, whatever the machine.
    let first_event = format!("{}ms", 3000 + streams * 2);
    let ca_path = ca.to_str().expect("UTF-8");
    let (_simulator, at) = start(&[
        "simulate",
        "--listen",
        "127.0.0.1:0",
        "--tls",
        "--cert-out",
        ca_path,
        "--h2-only",
        "--h2-max-streams",
        "100",
        "--interval",
        "200ms",
        "--count",
        &EVENTS.to_string(),
        "--first-event",
        &first_event,
    ]);
    let config = folder.path().join("gateway.toml");
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [stream]\ncommit_after = \"1s\"\nheartbeat = \"1s\"\n\
         [limits]\nconnections = 19000\nstreams = 19000\nnew_streams_per_second = 100000\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"https://localhost:{}\"]\nca = {ca_path:?}\n",
        at[0].port()
    );
    std::fs::write(&config, text).expect("a file");
    let path = config.to_str().expect("UTF-8");
    let (_gateway, at) = start(&["serve", "--config", path]);
    let (gateway, admin) = (at[0], at[1]);

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        let begun = Instant::now();
        let all_open = Arc::new(Barrier::new(streams + 1));
        let failed = Arc::new(AtomicUsize::new(0));
        let mut running = tokio::task::JoinSet::new();
        for id in 0..streams {
            let (all_open, failed) = (all_open.clone(), failed.clone());
            running.spawn(async move {
                let done = one(gateway, id, &all_open).await;
                if let Err(fault) = &done {
                    // Let the others on: what is wanting is counted, not waited for.
                    failed.fetch_add(1, Ordering::Relaxed);
                    eprintln!("{fault}");
                }
            });
            if id % 200 == 199 {
                // A ramp, so that it is not the accept queue that is tested.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let opened = tokio::time::timeout(Duration::from_secs(60), all_open.wait()).await;
        assert!(opened.is_ok(), "{} of {streams} failed to open", failed.load(Ordering::Relaxed));
        let at_once = stage::scrape::metrics(admin).await;
        let live = at_once.live();
        let connections =
            at_once.sum("tidegate_upstream_connections{upstream=\"sim\",state=\"active\"}");
        eprintln!(
            "{live} streams live at once over {connections} upstream connections, \
             resident {:.1} MB, opened in {:.1} s",
            at_once.get("process_resident_memory_bytes") / 1e6,
            begun.elapsed().as_secs_f64()
        );
        assert_eq!(live, streams as f64);
        while running.join_next().await.is_some() {}
        assert_eq!(failed.load(Ordering::Relaxed), 0);
        let after = stage::scrape::until(admin, "all ended", |m| m.live() == 0.0).await;
        assert_eq!(after.ended("completed"), streams as f64);
        assert!(after.get("tidegate_heartbeats_total") >= streams as f64, "while they waited");
        eprintln!("all complete and in order after {:.1} s", begun.elapsed().as_secs_f64());
    });
}
