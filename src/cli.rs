//! The command line: `serve`, `check`, `demo`, `simulate`, `key`.
//!
//! Exit codes: 0 done, 1 could not start or run, 78 (EX_CONFIG) bad configuration.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Fault, Faults, Loaded};
use crate::gateway::auth;
use crate::server::reload::Load;
use crate::server::{self, Options, Ready};
use crate::sim;
use crate::telemetry::log;

/// sysexits.h EX_CONFIG.
const BAD_CONFIGURATION: u8 = 78;

/// A streaming gateway for LLM APIs.
///
/// Holds many thousand Server-Sent-Event streams between clients and OpenAI-compatible upstreams,
/// with heartbeats, limits, honest ends and Prometheus metrics.
#[derive(Parser)]
#[command(name = "tidegate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(Serve),
    Check(Check),
    Demo(Demo),
    Simulate(Simulate),
    Key(Key),
}

/// Run the gateway
///
/// With --config it serves what the file says; the other options override the file. Without a
/// file, --upstream URL is enough: /v1/* goes there with the client's own credentials.
/// SIGTERM and SIGINT drain: no new requests, streams finish until server.drain_deadline, the rest
/// ends with an error event; a second signal ends them at once.
/// SIGHUP reads the file again: a good one is taken over while streams go on, a faulty one changes
/// nothing and the log has every fault.
#[derive(Args)]
struct Serve {
    /// Configuration file (TOML); docs/CONFIG.md has every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Instead of `server.listen`.
    #[arg(
        long,
        value_name = "ADDR",
        help = "Listen for clients here instead of server.listen, e.g. 127.0.0.1:8080 or [::]:8080"
    )]
    listen: Option<SocketAddr>,
    /// Listen for operators here instead of admin.listen
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Serve this upstream without a file, e.g. https://api.openai.com
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    upstream: Option<String>,
    /// Worker threads instead of server.workers; 0 is one per core
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

/// Validate a configuration file and print every fault in it
///
/// Exits with 0 if the gateway would start with it, with 78 if not. Keys that are accepted but
/// have no effect yet, and advice, are printed as notices.
#[derive(Args)]
struct Check {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", default_value = "/etc/tidegate/tidegate.toml")]
    config: PathBuf,
}

/// Run the gateway in front of a simulated upstream over real HTTPS, to try it
///
/// Makes a certificate at start, lets the gateway trust it, and prints a curl line to paste into
/// another terminal.
#[derive(Args)]
struct Demo {
    /// Listen for clients here
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Listen for operators here
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    admin: SocketAddr,
    /// Quiet time before a heartbeat, e.g. 200ms; "off" for none
    #[arg(long, value_name = "DURATION", default_value = "15s")]
    heartbeat: String,
}

/// Run the simulated OpenAI-compatible upstream alone
///
/// Its pace and its faults are set by these options, and for one request by headers such as
/// `sim-interval: 20ms` or `sim-fault: fin`.
#[derive(Args)]
struct Simulate {
    #[command(flatten)]
    args: sim::SimulateArgs,
}

/// Make an API key for a tenant
///
/// Prints the key once, for the client, and its SHA-256 for the configuration: the key is stored
/// nowhere, so that nobody who reads the file can use it.
#[derive(Args)]
struct Key {}

/// Runs the program.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Check(check) => check.run(),
        Command::Demo(demo) => demo.run(),
        Command::Simulate(simulate) => simulate.run(),
        Command::Key(key) => key.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { code, text }) => {
            say(&format!("tidegate: {text}"));
            ExitCode::from(code)
        }
    }
}

/// Why the program ends early.
struct Failed {
    code: u8,
    text: String,
}

fn failed(error: impl std::fmt::Display) -> Failed {
    Failed { code: 1, text: error.to_string() }
}

fn bad_configuration(error: impl std::fmt::Display) -> Failed {
    Failed { code: BAD_CONFIGURATION, text: format!("bad configuration\n{error}") }
}

/// One line on stderr; nobody may be listening there.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Serve {
    fn run(self) -> Result<(), Failed> {
        let loaded = self.load().map_err(bad_configuration)?;
        let load = move || match self.config {
            Some(_) => self.load(),
            None => Err(fault(
                "there is nothing to read again: the gateway was started without a file; start it \
                 with --config FILE to reload on SIGHUP",
            )),
        };
        serve(loaded, Some(Arc::new(load)), |ready| {
            let listen: Vec<_> = ready.listen.iter().map(ToString::to_string).collect();
            say(&format!(
                "tidegate ready: listening on {}, admin on {}",
                listen.join(", "),
                ready.admin
            ));
        })
    }

    /// What the file, or the URL, and the command line say.
    fn load(&self) -> Result<Loaded, Faults> {
        let mut loaded = match (&self.config, &self.upstream) {
            (Some(path), _) => config::load(path)?,
            (None, Some(url)) => config::for_upstream(url)?,
            (None, None) => {
                return Err(fault("nothing to serve: give --config FILE or --upstream URL"));
            }
        };
        let config = &mut loaded.config;
        if let Some(listen) = self.listen {
            config.server.listen = vec![listen];
        }
        config.admin.listen = self.admin.unwrap_or(config.admin.listen);
        config.server.workers = self.workers.unwrap_or(config.server.workers);
        Ok(loaded)
    }
}

/// What is wrong with the command line, like what is wrong with a file.
fn fault(text: &str) -> Faults {
    let (file, key, text) = (String::new(), String::new(), text.to_owned());
    Faults { faults: vec![Fault { file, line: None, column: None, key, text }] }
}

fn serve(
    mut loaded: Loaded,
    load: Option<Load>,
    ready: impl FnOnce(&Ready) + 'static,
) -> Result<(), Failed> {
    let open_files = raise_open_files();
    let clamp = move |loaded: &mut Loaded| {
        loaded.notices.extend(loaded.config.limits.clamp_to_open_files(open_files));
    };
    clamp(&mut loaded);
    let Loaded { config, notices } = loaded;
    let _log = log::init(config.log.level.as_str(), log::Format::Auto);
    for notice in &notices {
        tracing::warn!("{notice}");
    }
    let load = load.map(|load| -> Load {
        Arc::new(move || {
            let mut loaded = load()?;
            clamp(&mut loaded);
            Ok(loaded)
        })
    });
    let options = Options { signals: true, load, ..Options::default() };
    server::run(config, options, ready).map(drop).map_err(failed)
}

/// Raises the soft limit of open files to the hard one; returns what holds now.
fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    now.unwrap_or(u64::MAX)
}

impl Check {
    fn run(self) -> Result<(), Failed> {
        let mut loaded = config::load(&self.config).map_err(bad_configuration)?;
        let open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        loaded.notices.extend(loaded.config.limits.clamp_to_open_files(open_files));
        for notice in &loaded.notices {
            say(&notice.to_string());
        }
        server::check_files(&loaded.config).map_err(bad_configuration)?;
        say(&format!("{}: ok", self.config.display()));
        Ok(())
    }
}

impl Key {
    fn run(self) -> Result<(), Failed> {
        let made = auth::new_key().map_err(failed)?;
        let text = format!(
            "The key, for the client. It is shown this once:\n\n  {}\n\n\
             Its hash, for the configuration, below the tenant's [[tenant]]:\n\n  \
             [[tenant.key]]\n  sha256 = \"{}\"\n",
            made.key, made.sha256
        );
        std::io::stdout().write_all(text.as_bytes()).map_err(failed)
    }
}

impl Simulate {
    fn run(self) -> Result<(), Failed> {
        raise_open_files();
        let (listen, options) = self.args.into_options().map_err(failed)?;
        runtime()?.block_on(async move {
            let sim = sim::Sim::start(listen, options).await.map_err(failed)?;
            say(&format!("tidegate simulate ready: listening on {}", sim.addr()));
            tokio::signal::ctrl_c().await.map_err(failed)
        })
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(failed)
}

impl Demo {
    fn run(self) -> Result<(), Failed> {
        let certificate =
            sim::make_certificate(&["localhost", "127.0.0.1", "::1"]).map_err(failed)?;
        let defaults = sim::Behaviour {
            first_event: Duration::from_millis(400),
            interval: Duration::from_millis(150),
            count: 40,
            ..sim::Behaviour::default()
        };
        let tls = Some(sim::Tls::from(certificate.clone()));
        let options = sim::Options { defaults, tls, ..sim::Options::default() };
        let upstream = runtime()?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sim = upstream.block_on(sim::Sim::start(any, options)).map_err(failed)?;
        let ca = tempfile(&certificate.ca_pem)?;
        let text = format!(
            "[server]\nlisten = [\"{}\"]\n[admin]\nlisten = \"{}\"\n[stream]\nheartbeat = \"{}\"\n\
             [[upstream]]\nname = \"simulated\"\nurls = [\"https://localhost:{}\"]\nca = {:?}\n",
            self.listen,
            self.admin,
            self.heartbeat,
            sim.addr().port(),
            ca.0.display().to_string(),
        );
        let loaded = config::parse(&text, "the demo's options").map_err(bad_configuration)?;
        serve(loaded, None, |ready| {
            let listen = ready.listen[0];
            say(&format!(
                "tidegate demo: {listen} in front of a simulated upstream over HTTPS (HTTP/2).\n\
                 Paste into another terminal and watch the tokens arrive one by one:\n\n  \
                 curl -N http://{listen}/v1/chat/completions -H 'content-type: application/json' \
                 -d '{{\"model\":\"tide-1\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\
                 \"content\":\"hello\"}}]}}'\n\n\
                 Metrics: http://{}/metrics   live streams: http://{}/streams   end: Ctrl-C",
                ready.admin, ready.admin
            ));
        })
    }
}

/// A file that is removed when dropped.
struct TempFile(PathBuf);

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn tempfile(text: &str) -> Result<TempFile, Failed> {
    let name = format!("tidegate-demo-{}-ca.pem", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).map_err(failed)?;
    Ok(TempFile(path))
}
