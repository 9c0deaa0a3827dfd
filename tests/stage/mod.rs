//! The stage for integration tests: a real gateway on its own threads in front of the simulated
//! upstream, over real sockets, and clients that see the bytes.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the stage")]

pub mod alloc;
pub mod client;
pub mod events;
pub mod program;
pub mod random;
pub mod raw;
pub mod scrape;
pub mod sees;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidegate::config::{self, Notice};
use tidegate::gateway::FaultHook;
use tidegate::server::reload::{self, Refused};
use tidegate::server::{self, Options, Ready};
use tidegate::sim::{self, Certificate, Sim};
use tokio::sync::{mpsc, oneshot, watch};

#[allow(unused_imports, reason = "as above")]
pub use client::{Answer, Client, End, Http};
pub use scrape::Metrics;

/// Longest wait for anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(20);

static PATIENT: OnceLock<Duration> = OnceLock::new();

/// [`PATIENCE`], or what the test binary asked for instead.
pub fn patience() -> Duration {
    *PATIENT.get().unwrap_or(&PATIENCE)
}

/// Waits longer than [`PATIENCE`], in all tests of the binary. Only where no test would take a limit
/// of the gateway's for what it waits for.
pub fn be_patient(patience: Duration) {
    PATIENT.get_or_init(|| patience);
}

/// Takes as many open files as the process may have; panics if they are fewer than `needed`.
pub fn open_files(needed: u64) {
    let most = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    assert!(now >= needed, "raise the open-file limit: {now}, and {needed} are needed");
}

/// `future` within [`patience`].
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(patience(), future).await.expect("within the test's patience")
}

/// What to put on the stage.
#[derive(Default)]
pub struct Setup {
    /// The gateway's listener speaks TLS.
    pub client_tls: bool,
    /// The upstream speaks TLS.
    pub upstream_tls: bool,
    /// The upstream speaks HTTP/2 (ALPN on TLS, prior knowledge on cleartext).
    pub upstream_h2: bool,
    /// Lines of the `[stream]` section.
    pub stream: String,
    /// Further lines: whole sections, or keys of `[server]` in `server`.
    pub more: String,
    pub server: String,
    /// Lines of the `[[upstream]]` section.
    pub upstream: String,
    /// Lines of the `[[route]]` section.
    pub route: String,
    pub sim: sim::Options,
    pub fault: Option<FaultHook>,
}

/// A running gateway and its simulated upstream.
pub struct Stage {
    pub sim: Sim,
    pub gateway: Gateway,
    pub certificate: Certificate,
    pub client_tls: bool,
    _files: tempfile::TempDir,
}

/// A running gateway; stopped and waited for when dropped.
pub struct Gateway {
    pub ready: Ready,
    /// What its next reload reads.
    text: Arc<Mutex<String>>,
    reload: mpsc::Sender<reload::Wish>,
    stop: Option<watch::Sender<u32>>,
    thread: Option<std::thread::JoinHandle<Result<server::Ended, server::StartError>>>,
}

impl Stage {
    pub async fn start(setup: Setup) -> Stage {
        let certificate =
            sim::make_certificate(&["localhost", "127.0.0.1"]).expect("a certificate");
        let files = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| -> PathBuf {
            let path = files.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let ca = write("ca.pem", &certificate.ca_pem);
        let chain = write("chain.pem", &certificate.chain_pem);
        let key = write("key.pem", &certificate.key_pem);

        let mut options = setup.sim.clone();
        options.h1 &= !setup.upstream_h2;
        options.h2 &= setup.upstream_h2;
        options.tls = setup.upstream_tls.then(|| certificate.clone().into());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sim = Sim::start(any, options).await.expect("the simulated upstream");

        let scheme = if setup.upstream_tls { "https" } else { "http" };
        let http = if setup.upstream_h2 { "2" } else { "1" };
        let mut text = format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{}\n", setup.server);
        if setup.client_tls {
            text += &format!("[server.tls]\ncert = {chain:?}\nkey = {key:?}\n");
        }
        text += "[admin]\nlisten = \"127.0.0.1:0\"\n";
        text += &format!("[stream]\n{}\n{}\n", setup.stream, setup.more);
        text += &format!(
            "[[upstream]]\nname = \"sim\"\nurls = [\"{scheme}://localhost:{}\"]\nhttp = \"{http}\"\n{}\n",
            sim.addr().port(),
            setup.upstream
        );
        if setup.upstream_tls {
            text += &format!("ca = {ca:?}\n");
        }
        text +=
            &format!("[[route]]\npath = \"/v1/{{*rest}}\"\nupstream = \"sim\"\n{}\n", setup.route);
        let gateway = Gateway::start(&text, setup.fault).await;
        Stage { sim, gateway, certificate, client_tls: setup.client_tls, _files: files }
    }

    /// A client connection of its own.
    pub async fn client(&self, http: Http) -> Client {
        let ca = self.client_tls.then_some(self.certificate.ca_pem.as_str());
        Client::connect(self.gateway.ready.listen[0], http, ca).await
    }

    /// The gateway's metrics now.
    pub async fn metrics(&self) -> Metrics {
        scrape::metrics(self.gateway.ready.admin).await
    }

    /// Waits until the metrics satisfy `wanted`.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        scrape::until(self.gateway.ready.admin, what, wanted).await
    }
}

impl Gateway {
    pub async fn start(config: &str, fault: Option<FaultHook>) -> Gateway {
        static LOG: Once = Once::new();
        LOG.call_once(|| {
            if std::env::var_os("TIDEGATE_TEST_LOG").is_some() {
                let guard =
                    tidegate::telemetry::log::init("debug", tidegate::telemetry::log::Format::Text);
                std::mem::forget(guard);
            }
        });
        let loaded = config::parse(config, "test.toml").unwrap_or_else(|f| panic!("{f}\n{config}"));
        let (stop, stopped) = watch::channel(0);
        let (tell, told) = oneshot::channel();
        let (reload, wishes) = mpsc::channel(1);
        let text = Arc::new(Mutex::new(String::new()));
        let read = text.clone();
        let load: reload::Load =
            Arc::new(move || config::parse(&read.lock().expect("no panic"), "test.toml"));
        // Everything can be tested without the relay too: both ways must look alike.
        let no_relay = std::env::var_os("TIDEGATE_TEST_NO_RELAY").is_some();
        let (load, stop_asked, wishes) = (Some(load), Some(stopped), Some(wishes));
        let options =
            Options { signals: false, stop: stop_asked, load, reload: wishes, fault, no_relay };
        let thread = std::thread::spawn(move || {
            server::run(loaded.config, options, move |ready| {
                let _ = tell.send(ready.clone());
            })
        });
        let Ok(ready) = soon(told).await else {
            panic!("the gateway did not start: {:?}", thread.join().expect("no panic"));
        };
        Gateway { ready, text, reload, stop: Some(stop), thread: Some(thread) }
    }

    /// Reloads with `config`; returns when every worker goes by it, or when it was refused.
    pub async fn reload(&self, config: &str) -> Result<Vec<Notice>, Refused> {
        config.clone_into(&mut self.text.lock().expect("no panic"));
        let (wish, done) = oneshot::channel();
        soon(self.reload.send(wish)).await.expect("it runs");
        soon(done).await.expect("an answer")
    }

    /// Asks for a drain; a second time: ends what is left at once.
    pub fn stop(&self) {
        self.stop.as_ref().expect("running").send_modify(|calls| *calls += 1);
    }

    /// Waits until the gateway has ended by itself.
    pub async fn ended(mut self) {
        let thread = self.thread.take().expect("running");
        let ended = soon(tokio::task::spawn_blocking(move || thread.join())).await;
        let ended = ended.expect("joined").expect("no panic").expect("a clean end");
        assert_eq!(ended.leaks, 0, "upstream connections that were never given back");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop();
        self.stop();
        let ended = thread.join();
        if !std::thread::panicking() {
            let ended = ended.expect("the gateway's thread did not panic").expect("a clean end");
            assert_eq!(ended.leaks, 0, "upstream connections that were never given back");
        }
    }
}
