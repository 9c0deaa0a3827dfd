//! One gateway before an upstream on whose connections a thousand bystanders stream, and before
//! further upstreams, the places, where things go wrong at the same time.
//!
//! Each bystander has one stream, which its upstream ends when everything else is over, and which
//! must arrive whole. What each place's metrics come to is compared with what its rows say, as a
//! whole, when the row is over and again when everything is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use tidegate::sim::{Behaviour, Kind, Sim, expected_body};
use tokio::task::JoinSet;

use crate::endpoints::sim;
use crate::stage::client::{CHAT, STREAM};
use crate::stage::{Answer, Client, End, Gateway, Http, Metrics, PATIENCE, scrape};

/// Streams that run beside all that goes wrong.
const BYSTANDERS: u64 = 1000;
/// Of them, who have asked and whose stream has not begun.
const AT_ONCE: u64 = 50;
/// The pace of their events.
const INTERVAL: &str = "400ms";
/// Ids of their streams from here on; rows have smaller ones.
const FIRST_ID: u64 = 10_000;

/// The upstream of the bystanders, as metrics and [`Scene::comes_to`] call it.
pub(crate) const AMONG: &str = "sim";

/// A further upstream, with a route `/NAME/v1/…` to it.
pub(crate) struct Place {
    name: &'static str,
    upstream: String,
}

impl Place {
    /// An upstream with these URLs and further lines.
    pub(crate) fn new(name: &'static str, urls: &[String], lines: &str) -> Place {
        let urls: Vec<_> = urls.iter().map(|url| format!("{url:?}")).collect();
        let upstream = format!("urls = [{}]\n{lines}", urls.join(", "));
        Place { name, upstream }
    }

    fn text(&self, h2: bool) -> String {
        let Place { name, upstream } = self;
        let http = if h2 { 2 } else { 1 };
        format!(
            "[[upstream]]\nname = \"{name}\"\nhttp = \"{http}\"\n{upstream}\n\
             [[route]]\npath = \"/{name}/v1/{{*rest}}\"\nupstream = \"{name}\"\n\
             family = \"openai\"\n"
        )
    }
}

/// `http://` before an address.
pub(crate) fn clear(addr: SocketAddr) -> String {
    format!("http://{addr}")
}

/// What `/metrics` counts at one place: `ended REASON`, `retries REASON`, and `connects RESULT` where
/// the result is no connection.
type Tally = BTreeMap<String, f64>;

fn tally(metrics: &Metrics, place: &str) -> Tally {
    let mut tally = Tally::new();
    for (word, name) in [
        ("ended", "tidegate_streams_ended_total"),
        ("retries", "tidegate_retries_total"),
        ("connects", "tidegate_upstream_connects_total"),
    ] {
        for (label, value) in metrics.by_last_label(&format!("{name}{{upstream=\"{place}\",")) {
            tally.insert(format!("{word} {label}"), value);
        }
    }
    tally.remove("connects ok");
    tally
}

/// See the module.
pub(crate) struct Scene {
    /// The bystanders' upstream.
    pub(crate) sim: Sim,
    pub(crate) gateway: Gateway,
    /// Whether the upstreams speak HTTP/2.
    pub(crate) h2: bool,
    /// What is counted at each place in the end.
    wanted: Mutex<BTreeMap<&'static str, Tally>>,
    /// Requests of rows that the bystanders' upstream has seen.
    pub(crate) asked_among: AtomicU64,
}

impl Scene {
    pub(crate) async fn start(h2: bool, places: Vec<Place>) -> Arc<Scene> {
        let sim = sim(Behaviour::default(), h2).await;
        let mut text = "[server]\nlisten = [\"127.0.0.1:0\"]\nh2_max_streams = 2000\nworkers = 2\n\
                        [admin]\nlisten = \"127.0.0.1:0\"\n[limits]\nnew_streams_per_second = 100000\n\
                        [stream]\nfirst_byte = \"6s\"\nidle = \"6s\"\n"
            .to_owned();
        let http = if h2 { 2 } else { 1 };
        text += &format!(
            "[[upstream]]\nname = \"{AMONG}\"\nhttp = \"{http}\"\nurls = [\"{}\"]\n\
             [[route]]\nupstream = \"{AMONG}\"\n",
            clear(sim.addr())
        );
        places.iter().for_each(|place| text += &place.text(h2));
        let gateway = Gateway::start(&text, None).await;
        let (wanted, asked_among) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Scene { sim, gateway, h2, wanted, asked_among })
    }

    /// A client connection of its own.
    pub(crate) async fn client(&self, http: Http) -> Client {
        Client::connect(self.gateway.ready.listen[0], http, None).await
    }

    /// Asks for a stream at `place`.
    pub(crate) async fn asks(&self, place: &str, http: Http, fields: &[(&str, &str)]) -> Answer {
        let path = format!("/{place}{CHAT}");
        self.client(http).await.ask("POST", &path, fields, STREAM).await
    }

    /// Waits until the metrics satisfy `wanted`.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        scrape::until(self.gateway.ready.admin, what, wanted).await
    }

    /// The metrics count these at `place`, besides what they were said to count before, and nothing
    /// else; now and when all is over.
    pub(crate) async fn comes_to(&self, place: &'static str, more: &[(&str, f64)]) {
        let wanted = self.counts_on(place, more);
        self.until(&format!("{place}: {wanted:?}"), |m| tally(m, place) == wanted).await;
    }

    /// The same when all is over only.
    pub(crate) fn counts_on(&self, place: &'static str, more: &[(&str, f64)]) -> Tally {
        let mut all = self.wanted.lock().expect("no panic");
        let tally = all.entry(place).or_default();
        for (series, by) in more {
            *tally.entry((*series).to_owned()).or_default() += by;
        }
        tally.clone()
    }

    /// The bystanders leave, everything is as it was, and the gateway ends, which it does only when
    /// every permit is back.
    pub(crate) async fn over(self: Arc<Scene>, crowd: Crowd) {
        crowd.leaves(&self.sim).await;
        self.counts_on(AMONG, &[("ended completed", BYSTANDERS as f64)]);
        let wanted = self.wanted.lock().expect("no panic").clone();
        for (place, wanted) in wanted {
            let connections = |m: &Metrics, state: &str| {
                let series = format!("upstream=\"{place}\",state=\"{state}\"");
                m.get(&format!("tidegate_upstream_connections{{{series}}}"))
            };
            let over = |m: &Metrics| {
                tally(m, place) == wanted
                    && connections(m, "connecting") == 0.0
                    && connections(m, "active") == 0.0
            };
            self.until(&format!("{place}: {wanted:?}"), over).await;
        }
        let asked = self.sim.counts().requests;
        assert_eq!(asked, BYSTANDERS + self.asked_among.load(Relaxed), "no request twice");
        let gauges = ["tidegate_queue_depth", "tidegate_backlog_bytes", "tidegate_memory_bytes"];
        let nothing =
            |m: &Metrics| m.live() == 0.0 && gauges.iter().all(|gauge| m.sum(gauge) == 0.0);
        self.until("nothing is left", nothing).await;
        let Ok(scene) = Arc::try_unwrap(self) else { panic!("a row still runs") };
        scene.gateway.stop();
        scene.gateway.ended().await;
    }
}

/// The bystanders.
pub(crate) struct Crowd(JoinSet<()>);

impl Crowd {
    /// Half of them over HTTP/1.1, half over one HTTP/2 connection; returns when the upstream has
    /// the stream of each.
    pub(crate) async fn of(gateway: &Gateway, upstream: &Sim) -> Crowd {
        let connect = async |http| Client::connect(gateway.ready.listen[0], http, None).await;
        let shared = connect(Http::H2).await;
        let mut running = JoinSet::new();
        for n in 0..BYSTANDERS {
            let client = match &shared {
                Client::H2(sender) if n % 2 == 1 => Client::H2(sender.clone()),
                _ => connect(Http::H1).await,
            };
            running.spawn(bystander(client, FIRST_ID + n));
            // On a busy machine the last of a thousand at once would wait longer than a row's limits.
            let asked = (n + 1).saturating_sub(AT_ONCE);
            let all = upstream.wait_for(|c| c.live >= asked, PATIENCE).await;
            all.expect("the bystanders' streams at the upstream");
        }
        let all = upstream.wait_for(|c| c.live >= BYSTANDERS, PATIENCE).await;
        all.expect("every bystander's stream at the upstream");
        Crowd(running)
    }

    /// Their upstream ends the streams, of which every one must have run till now.
    pub(crate) async fn leaves(self, upstream: &Sim) {
        upstream.hurry();
        self.0.join_all().await;
    }
}

/// One stream, as long as its upstream goes on.
async fn bystander(mut client: Client, id: u64) {
    let text = id.to_string();
    let fields = [
        ("sim-clock", "off"),
        ("sim-stream", text.as_str()),
        ("sim-count", "1000000"),
        ("sim-interval", INTERVAL),
    ];
    arrived(id, &client.stream(&fields).await);
}

/// Asserts that the stream `id`, which its upstream was asked to end, came whole.
pub(crate) fn arrived(id: u64, answer: &Answer) {
    let came = answer.text();
    assert_eq!((answer.status, answer.end), (200, End::Clean), "stream {id}: {came}");
    let events = came.strip_suffix("data: [DONE]\n\n");
    let events = events.unwrap_or_else(|| panic!("stream {id}: no mark: {came}"));
    assert!(!events.is_empty() && began(id, events), "stream {id}: {came}");
}

/// Whether `came` is what the stream `id` begins with, in whole events.
pub(crate) fn began(id: u64, came: &str) -> bool {
    // One event more than came, for the last one of all says that it is.
    let count = u32::try_from(came.matches("\n\n").count() + 1).expect("few");
    let behaviour = Behaviour { count, ..Behaviour::default() };
    let longer = expected_body(&behaviour, Kind::Chat, id, "tide-1", false);
    longer.starts_with(came.as_bytes()) && (came.is_empty() || came.ends_with("\n\n"))
}
