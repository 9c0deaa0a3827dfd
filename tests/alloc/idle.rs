//! What an idle stream retains of the gateway's heap, HTTP/1.1 on both sides.
//!
//! The gateway runs in a process of its own, which is this test binary once more: there, and only
//! there, every byte counted is the gateway's. The clients and the simulated upstream are here.
//! The figure is what was asked for, without an allocator's rounding, stacks and the kernel's
//! sockets; `load/` measures what a deployed process takes.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidegate::sim::{self, Behaviour, Options, Sim};

use crate::stage::client::{CHAT, STREAM};
use crate::stage::{Client, Gateway, Http, PATIENCE, alloc, scrape, soon};

/// Streams open at the first and at the second look.
const FEW: usize = 200;
const MANY: usize = 1200;
/// What an idle stream may retain, bytes, as long as hyper's buffers stay with it: four of 8 to
/// 16 KiB, and its tasks.
const BYTES_MAX: i64 = 1600;
/// The same with an HTTP/2 upstream over TLS, a hundred streams to a connection, bytes.
const BYTES_MAX_H2: i64 = 2250;
/// Less would mean that the wrong process was counted.
const BYTES_MIN: i64 = 256;
/// What may be left of a stream that has ended, bytes: its places in tables that do not shrink.
const BYTES_KEPT_MAX: i64 = 512;
/// The same where connections to the upstream stay, ready for the next requests.
const BYTES_KEPT_MAX_H2: i64 = 1300;
/// A key and every limit on requests, wide enough to refuse nothing. They stand before the
/// upstream, and their client shows [`SHOWN`].
const LIMITS: &str = r#"[limits]
new_streams_per_second = 1000000
per_ip = { streams = 1000000, new_per_second = 1000000 }
[[tenant]]
name = "many"
key = [{ sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" }]
streams = 1000000
new_per_second = 1000000
tokens_per_minute = { "*" = 4000000000 }
"#;
/// What [`LIMITS`] set for an upstream.
const UPSTREAM_LIMITS: &str = "max_streams = 1000000\n";
/// The key in [`LIMITS`].
const SHOWN: [(&str, &str); 1] = [("authorization", "Bearer hello")];
/// Tells the child which configuration to run.
const CONFIG: &str = "TIDEGATE_TEST_COUNTED_GATEWAY";
/// Begins each line that the child means for its parent; the test harness prints others.
const MARK: &str = "counted gateway: ";

/// The gateway's process; killed when dropped.
struct Counted {
    listen: SocketAddr,
    admin: SocketAddr,
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Counted {
    fn start(config: &str) -> Counted {
        let mut child = Command::new(std::env::current_exe().expect("this test's binary"))
            .args(["--ignored", "--exact", "idle::counted_gateway", "--nocapture"])
            .env(CONFIG, config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test's binary starts once more");
        let asks = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut counted = Counted { listen: any, admin: any, child, asks, answers };
        let ready = counted.answer();
        let (listen, admin) = ready.split_once(' ').expect("two addresses");
        counted.listen = listen.parse().expect("an address");
        counted.admin = admin.parse().expect("an address");
        counted
    }

    /// The next line that is meant for us.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.answers.read_line(&mut line).expect("text");
            assert!(read > 0, "the gateway's process has ended");
            if let Some((_, answer)) = line.split_once(MARK) {
                return answer.trim().to_owned();
            }
        }
    }

    /// Bytes on the gateway's heap now.
    fn live_bytes(&mut self) -> i64 {
        self.asks.write_all(b"\n").expect("it listens");
        self.answer().parse().expect("a number")
    }

    /// Bytes on its heap once `streams` streams live and nothing moves any more.
    async fn settled(&mut self, streams: usize) -> i64 {
        let what = format!("{streams} streams live");
        scrape::until(self.admin, &what, |m| m.live() == streams as f64).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut before = self.live_bytes();
        loop {
            // The interval of looking; the scrape's own connection is among what has to go.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = self.live_bytes();
            if now == before {
                return now;
            }
            assert!(tokio::time::Instant::now() < deadline, "never quiet: {before}, then {now}");
            before = now;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process behind [`Counted`]: a gateway that tells its live bytes for each line it is sent,
/// and ends with its input.
#[tokio::test]
#[ignore = "runs as the child of an_idle_stream_retains_little"]
#[allow(clippy::print_stdout, reason = "it is how parent and child talk")]
async fn counted_gateway() {
    // Asked for by hand there is nothing to serve.
    let Ok(config) = std::env::var(CONFIG) else { return };
    let gateway = Gateway::start(&config, None).await;
    println!("{MARK}{} {}", gateway.ready.listen[0], gateway.ready.admin);
    for line in std::io::stdin().lines() {
        line.expect("text");
        println!("{MARK}{}", alloc::process().live_bytes);
    }
}

/// Opens streams until there are so many, each past its first event.
async fn open(gateway: SocketAddr, clients: &mut Vec<Client>, streams: usize) {
    while clients.len() < streams {
        let mut client = Client::connect(gateway, Http::H1, None).await;
        let mut answer = soon(client.start("POST", CHAT, &SHOWN, STREAM).await.head()).await;
        assert_eq!(answer.status, 200);
        answer.until("\n\n").await;
        clients.push(client);
    }
}

/// An upstream of the simulator that sends one event and then is quiet, and the lines of the
/// gateway's configuration that name it.
async fn quiet_upstream(h2_tls: bool, files: &Path) -> (Sim, String) {
    let limit = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit });
    let defaults = Behaviour { interval: Duration::from_secs(3600), ..Behaviour::default() };
    let made = sim::make_certificate(&["localhost"]).expect("a certificate");
    let ca = files.join("ca.pem");
    std::fs::write(&ca, &made.ca_pem).expect("a file");
    let options = Options {
        defaults,
        h1: !h2_tls,
        h2: h2_tls,
        tls: h2_tls.then(|| made.into()),
        // As most servers do.
        h2_max_streams: Some(100),
        ..Options::default()
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let sim = Sim::start(any, options).await.expect("the simulated upstream");
    let (scheme, http) = if h2_tls { ("https", 2) } else { ("http", 1) };
    let mut lines = format!(
        "[[upstream]]\nname = \"sim\"\nurls = [\"{scheme}://localhost:{}\"]\nhttp = {http}\n",
        sim.addr().port()
    );
    if h2_tls {
        lines += &format!("ca = {ca:?}\n");
    }
    (sim, lines)
}

/// Bytes that an idle stream of an HTTP/1.1 client retains, and those left of one that has ended.
async fn retained(h2_tls: bool, limited: bool) -> (i64, i64) {
    let files = tempfile::tempdir().expect("a folder");
    let (_sim, upstream) = quiet_upstream(h2_tls, files.path()).await;
    let mut gateway = Counted::start(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [stream]\nheartbeat = \"off\"\n{}{upstream}{}",
        if limited { LIMITS } else { "" },
        if limited { UPSTREAM_LIMITS } else { "" },
    ));

    let mut clients = Vec::new();
    let before = gateway.settled(0).await;
    open(gateway.listen, &mut clients, FEW).await;
    let few = gateway.settled(FEW).await;
    open(gateway.listen, &mut clients, MANY).await;
    let many = gateway.settled(MANY).await;
    let each = (many - few) / (MANY - FEW) as i64;
    clients.clear();
    let after = gateway.settled(0).await;
    eprintln!(
        "{each} bytes of the gateway's heap per idle stream: {before} before any, {few} with {FEW}, \
         {many} with {MANY}, {after} after them"
    );
    // Tables keep the size they had; streams keep nothing.
    (each, (after - before) / MANY as i64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_stream_retains_little() {
    let (each, kept) = retained(false, false).await;
    assert!((BYTES_MIN..=BYTES_MAX).contains(&each), "{each} bytes per idle stream");
    assert!(kept <= BYTES_KEPT_MAX, "{kept} bytes per stream that has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_stream_of_an_http2_upstream_over_tls_retains_little() {
    let (each, kept) = retained(true, false).await;
    assert!((BYTES_MIN..=BYTES_MAX_H2).contains(&each), "{each} bytes per idle stream");
    // Its connections are idle now, and stay for a while.
    assert!(kept <= BYTES_KEPT_MAX_H2, "{kept} bytes per stream that has ended");
}

/// What a request has taken of its address's, tenant's and upstream's shares goes with its stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_stream_under_every_limit_retains_little() {
    for (h2_tls, most) in [(false, BYTES_MAX), (true, BYTES_MAX_H2)] {
        let (each, _) = retained(h2_tls, true).await;
        assert!((BYTES_MIN..=most).contains(&each), "{each} bytes per idle stream");
    }
}
