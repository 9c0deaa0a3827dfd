//! Out of memory, or not: stalled readers and large bodies against a gateway in a control group whose
//! memory is limited, with the budget (`limits.memory`) and, beside it, without.
//!
//! Run by `make overload` (release build); it needs Linux, root, and a `memory` controller, and says
//! loudly if it has none. Everything here but the gateway is this process, outside of the group.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tidegate::sim::{self, Sim};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

mod stage;

use stage::program::Program;
use stage::{Client, Http, Metrics, scrape};

/// Clients that ask for an endless stream and read none of it.
const STALLED: usize = 2000;
/// Clients that send a large body which the upstream does not take.
const UPLOADS: usize = 200;
/// What the group may take, bytes.
const GROUP: u64 = 192 << 20;
const BUDGET: &str = "64MiB";
const UNBOUNDED: &str = "16TiB";

/// A memory control group of our own, removed when dropped. Whatever ran in it has to be gone.
struct Group {
    path: PathBuf,
    peak: &'static str,
}

impl Group {
    /// `None` where there is no controller that we may use.
    fn new() -> Option<Group> {
        let v1 = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes");
        let v2 = ("/sys/fs/cgroup", "memory.max", "memory.peak");
        [v1, v2].into_iter().find_map(|(root, limit, peak)| {
            let path = PathBuf::from(root).join(format!("tidegate-{}", std::process::id()));
            fs::create_dir(&path).ok()?;
            let group = Group { path, peak };
            fs::write(group.path.join(limit), GROUP.to_string()).ok()?;
            // Where there is swap, it would only make the end slow. Older kernels have no such file.
            let _ = fs::write(group.path.join("memory.swappiness"), "0");
            let _ = fs::write(group.path.join("memory.swap.max"), "0");
            Some(group)
        })
    }

    /// The most that it has taken so far, bytes.
    fn peak(&self) -> u64 {
        let peak = fs::read_to_string(self.path.join(self.peak)).expect("the group's peak");
        peak.trim().parse().expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes that were just killed leave it within moments.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// How one run came out.
struct Outcome {
    survived: bool,
    peak_mb: f64,
    memory_mb: f64,
    shed: f64,
    refused: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { survived, peak_mb, memory_mb, shed, refused } = self;
        let end = if *survived { "lived" } else { "was killed" };
        write!(
            f,
            "{end}; the group's peak {peak_mb:.0} MB, tidegate_memory_bytes {memory_mb:.0} MB at the \
             last look, {shed} streams cut, {refused} requests refused"
        )
    }
}

async fn run(memory: &str, sim: &Sim) -> Option<Outcome> {
    let group = Group::new()?;
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("gateway.toml");
    let text = format!(
        "[stream]\nclient_stall = \"10m\"\nfirst_byte = \"40s\"\n\
         [limits]\nmemory = \"{memory}\"\nnew_streams_per_second = 1000000\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"http://{}\"]\nhttp = \"2\"\n",
        sim.addr()
    );
    fs::write(&config, text).expect("a file");
    let config = config.to_str().expect("UTF-8");
    let mut gateway = Program::serve_in(&["--config", config], None, Some(&group.path));
    let mut held = JoinSet::new();
    for n in 0..STALLED + UPLOADS {
        let upload = n % (STALLED / UPLOADS + 1) == 0;
        held.spawn(hold(gateway.listen, upload));
        if n % 100 == 99 {
            // A ramp, so that it is not the accept queue that is tested.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let mut last = None;
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until && gateway.runs() {
        if let Some(metrics) = look(gateway.admin).await {
            last = Some(metrics);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let of = |series: &str| last.as_ref().map_or(0.0, |metrics: &Metrics| metrics.get(series));
    let outcome = Outcome {
        survived: gateway.runs(),
        peak_mb: group.peak() as f64 / 1e6,
        memory_mb: of("tidegate_memory_bytes") / 1e6,
        shed: last.as_ref().map_or(0.0, |metrics| metrics.ended("limit")),
        refused: of("tidegate_rejections_total{limit=\"memory\"}"),
    };
    // Uploads that the upstream does not take end with `first_byte`: whether their clients are still
    // there is not asked as long as nothing more may come from them.
    held.abort_all();
    while held.join_next().await.is_some() {}
    if outcome.survived {
        let free = |m: &Metrics| m.live() == 0.0 && m.get("tidegate_memory_bytes") == 0.0;
        scrape::until(gateway.admin, "all of it is given back", free).await;
        let mut client = Client::connect(gateway.listen, Http::H1, None).await;
        let answer = client.stream(&[("sim-count", "5")]).await;
        assert_eq!((answer.status, answer.end), (200, stage::End::Clean), "new work is served");
    }
    drop(gateway);
    Some(outcome)
}

/// The metrics, unless the gateway is gone or dies meanwhile, which then prints a panic.
async fn look(admin: SocketAddr) -> Option<Metrics> {
    let scraped = tokio::spawn(scrape::metrics(admin));
    tokio::time::timeout(Duration::from_secs(5), scraped).await.ok()?.ok()
}

/// A client that never reads; with `upload` it sends as much as is taken.
async fn hold(gateway: SocketAddr, upload: bool) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.set_send_buffer_size(65_536).expect("a small buffer");
    let Ok(mut socket) = socket.connect(gateway).await else { return };
    // Errors are the gateway's end, which others look at.
    let _ = if upload { send_large(&mut socket).await } else { ask_endless(&mut socket).await };
    std::future::pending::<()>().await;
}

async fn ask_endless(socket: &mut TcpStream) -> std::io::Result<()> {
    let body = stage::client::STREAM;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nsim-count: 10000000\r\nsim-size: 4KiB\r\n\
         sim-first-event: 6s\r\nsim-interval: 10ms\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await
}

async fn send_large(socket: &mut TcpStream) -> std::io::Result<()> {
    let head = "POST /v1/echo HTTP/1.1\r\nhost: g\r\nsim-read-delay: 600s\r\n\
        content-length: 52428800\r\n\r\n";
    socket.write_all(head.as_bytes()).await?;
    let piece = vec![b'x'; 65_536];
    for _ in 0..800 {
        socket.write_all(&piece).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a demonstration that takes a minute and a control group; make overload"]
async fn with_the_budget_it_lives_without_it_it_is_killed() {
    stage::be_patient(Duration::from_secs(90));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = sim::Options { h2_max_streams: Some(100), ..sim::Options::default() };
    let sim = Sim::start(any, options).await.expect("the simulated upstream");
    for round in 1..=3 {
        let Some(with) = run(BUDGET, &sim).await else {
            eprintln!("SKIPPED: no memory control group can be made here (needs root): NOT SHOWN");
            return;
        };
        let without = run(UNBOUNDED, &sim).await.expect("the same group again");
        eprintln!("round {round}: limits.memory = {BUDGET} in {} MB: {with}", GROUP / 1_000_000);
        eprintln!("round {round}: limits.memory = {UNBOUNDED}, the same: {without}");
        assert!(with.survived, "with the budget it lives");
        assert!(with.shed + with.refused > 0.0, "it was too much");
        assert!(!without.survived, "without it, it is killed: else this shows nothing");
    }
}
