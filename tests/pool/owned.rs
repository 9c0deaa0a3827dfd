//! Upstreams as workers see them, in one thread and on a clock that only the test moves.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use tidegate::admission::permit::Permits;
use tidegate::clock::Clock;
use tidegate::config::{self, Family};
use tidegate::error::Failure;
use tidegate::sim::{Options, Sim};
use tidegate::telemetry::cells::{ConnState, UpstreamCells};
use tidegate::telemetry::{Cells, Shape};
use tidegate::upstream::attempts::{self, Bounds};
use tidegate::upstream::download::Download;
use tidegate::upstream::send::Outgoing;
use tidegate::upstream::tls::ClientTls;
use tidegate::upstream::upload::Upload;
use tidegate::upstream::{Known, Upstream};
use tidegate::wire::wheel::Wheel;

use crate::stage::soon;

/// Runs a test within one worker's runtime.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let options = tokio::runtime::LocalOptions::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(options);
    runtime.expect("a runtime").block_on(test);
}

/// What all workers share.
pub(crate) struct Process {
    time: Rc<Cell<Duration>>,
    config: config::Upstream,
    known: Arc<Known>,
    files: Arc<Permits>,
}

/// One worker's side of the upstream.
pub(crate) struct Worker {
    pub(crate) upstream: Rc<Upstream>,
    pub(crate) cells: Arc<Cells>,
    clock: Clock,
    wheel: Wheel,
}

/// A simulated upstream, over HTTP/2 or HTTP/1.1, cleartext.
pub(crate) async fn sim(h2: bool) -> Sim {
    let options = Options { h1: !h2, h2, ..Options::default() };
    sim_of(options).await
}

pub(crate) async fn sim_of(options: Options) -> Sim {
    Sim::start(SocketAddr::from(([127, 0, 0, 1], 0)), options).await.expect("an upstream")
}

impl Process {
    /// With `lines` of the `[[upstream]]` section that leads to these addresses.
    pub(crate) fn new(to: &[SocketAddr], h2: bool, lines: &str) -> Process {
        let urls: Vec<_> = to.iter().map(|addr| format!("http://{addr}")).collect();
        let http = if h2 { 2 } else { 1 };
        let text = format!("[[upstream]]\nurls = {urls:?}\nhttp = {http}\n{lines}\n");
        let config = config::parse(&text, "test.toml").unwrap_or_else(|f| panic!("{f}")).config;
        let roots = rustls::RootCertStore::empty();
        let tls = ClientTls::new(&roots, None, None).expect("nothing to read");
        let config = config.upstreams[0].clone();
        let known = Known::new(&config, &tls, None);
        let time = Rc::new(Cell::new(Duration::from_secs(1000)));
        Process { time, config, known, files: Permits::new(1000) }
    }

    pub(crate) fn worker(&self) -> Rc<Worker> {
        let clock = Clock::Manual(self.time.clone());
        let shape = Shape { upstreams: vec!["u".into()], ..Shape::default() };
        let (cells, known) = (Arc::new(Cells::new(&shape)), self.known.clone());
        let config = self.config.clone();
        let upstream = Upstream::new(0, config, known, None, &self.files, &clock, &cells);
        Rc::new(Worker { upstream, cells, clock, wheel: Wheel::new() })
    }

    /// What a reload with these lines changes for all workers at once.
    pub(crate) fn reload(&mut self, lines: &str) {
        let known = self.known.clone();
        let to: Vec<_> = self.config.urls.iter().map(|url| url.authority.clone()).collect();
        let to: Vec<_> = to.iter().map(|to| to.parse().expect("an address")).collect();
        let next = Process::new(&to, self.config.http == config::HttpVersion::H2, lines);
        self.known = Known::new(&next.config, &known.tls, Some(&known));
        self.config = next.config;
    }

    /// Time goes on.
    pub(crate) fn after(&self, wait: Duration) {
        self.time.set(self.time.get() + wait);
    }
}

impl Worker {
    pub(crate) fn cells(&self) -> &UpstreamCells {
        self.cells.upstream(0)
    }

    pub(crate) fn connections(&self, state: ConnState) -> i64 {
        self.cells().connections(state).get()
    }

    /// Asks for `path`; returns the answer's body.
    pub(crate) async fn ask(&self, path: &'static str) -> Result<Download, Failure> {
        let outgoing = Box::new(Outgoing {
            method: Method::GET,
            uri: Uri::from_static(path),
            literal_prefix: "/v1".into(),
            headers: HeaderMap::new(),
            identity: true,
        });
        let bounds = Bounds {
            clock: self.clock.clone(),
            wheel: self.wheel.clone(),
            first_byte: Duration::from_secs(10),
            deadline: None,
            safe: false,
            others: false,
            key: None,
            family: Family::OpenAi,
            max_event: 1 << 20,
        };
        let body = Box::new(Upload::empty(&self.wheel));
        let outcome = attempts::answer(&self.upstream, outgoing, body, &bounds, |_| ()).await;
        let answer = outcome.answer?;
        assert_eq!(answer.head.status, 200);
        Ok(answer.body)
    }

    /// The same, of which an answer is expected soon.
    pub(crate) async fn answer(&self, path: &'static str) -> Download {
        soon(self.ask(path)).await.unwrap_or_else(|failure| panic!("{failure:?}"))
    }

    /// Asks and reads the answer to its end.
    pub(crate) async fn whole(&self, path: &'static str) {
        read(self.answer(path).await).await;
    }

    /// Waits until so many of its connections are in this state.
    pub(crate) async fn until(&self, state: ConnState, count: i64) {
        soon(async {
            while self.connections(state) != count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// Reads an answer to its end.
pub(crate) async fn read(mut body: Download) {
    let mut scratch = vec![0; 1 << 14];
    let read = async {
        while let Some(data) = std::future::poll_fn(|cx| body.poll_data(cx, &mut scratch)).await {
            data.unwrap_or_else(|failure| panic!("{failure:?}"));
        }
    };
    soon(read).await;
}
