//! A hundred reloads while hundreds of streams run and new requests come all the time.
//!
//! Two configurations take turns: keys, tenants, limits, rules, routes and upstreams come, go and
//! change. Every stream must be whole, and every answer must be one that a configuration in force
//! while it was decided gives; where only one was in force, that one's.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tidegate::gateway::auth::{self, NewKey};
use tidegate::sim::{self, Sim};

use super::stage::client::{CHAT, STREAM};
use super::stage::{Answer, Client, End, Gateway, Http, be_patient, soon};
use super::{config, connections, metrics, reloads, route, sees, upstream};

const RELOADS: u64 = 100;
/// Streams over HTTP/1.1, each on a connection of its own.
const ALONE: u64 = 120;
/// HTTP/2 connections, and the streams on each.
const SHARED: (u64, u64) = (10, 15);
/// Streams that live through all of it.
const LONG: u64 = 30;
/// Tasks that ask for something short, one request after the other.
const ASKING: u64 = 8;

/// What is on the stage: three upstreams that can be told apart by how many events they send.
struct World {
    kept: Sim,
    left: Sim,
    right: Sim,
    stays: NewKey,
    comes: NewKey,
    /// Twice the number of reloads done; odd while one is under way.
    epoch: AtomicU64,
    /// Short requests answered.
    asked: AtomicU64,
    over: AtomicBool,
}

async fn told_apart(h2: bool, count: u32) -> Sim {
    let defaults = sim::Behaviour { count, clock: false, ..sim::Behaviour::default() };
    let options = sim::Options { h1: !h2, h2, defaults, ..sim::Options::default() };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.expect("an upstream")
}

impl World {
    async fn new() -> Arc<World> {
        Arc::new(World {
            kept: told_apart(false, 5).await,
            left: told_apart(false, 7).await,
            right: told_apart(true, 9).await,
            stays: auth::new_key().expect("a key"),
            comes: auth::new_key().expect("a key"),
            epoch: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            over: AtomicBool::new(false),
        })
    }

    /// The configuration after so many reloads.
    fn config(&self, reloads: u64) -> String {
        let odd = !reloads.is_multiple_of(2);
        let tenant = |name: &str, key: &NewKey| {
            let hash = &key.sha256;
            format!(
                "[[tenant]]\nname = \"{name}\"\nstreams = 2000\n[[tenant.key]]\nsha256 = \"{hash}\"\n"
            )
        };
        let rates = "new_streams_per_second = 1000000\nfailed_keys_per_minute = 0\n";
        let open = "auth = \"none\"";
        let mut text = match odd {
            false => format!("[limits]\nstreams = 3000\n{rates}[stream]\nidle = \"60s\"\n"),
            // Its own order, so that every index moves.
            true => format!(
                "[limits]\nstreams = 4000\nconnections = 9000\n{rates}\
                 per_ip = {{ streams = 3000 }}\n[stream]\nidle = \"90s\"\nheartbeat = \"20s\"\n{}{}{}",
                tenant("comes", &self.comes),
                upstream("comes", &self.left, "http = 1\nmax_streams = 1000"),
                route("/comes/{*rest}", "comes", open),
            ),
        };
        text += &tenant("stays", &self.stays);
        let (sim, http) = if odd { (&self.right, "http = 2") } else { (&self.left, "http = 1") };
        text += &upstream("moves", sim, http);
        text += &upstream("kept", &self.kept, "http = 1");
        text += &route("/kept/{*rest}", "kept", open);
        text += &route("/moves/{*rest}", "moves", open);
        text += &route("/door/{*rest}", "kept", "auth = \"key\"");
        config(&text)
    }

    /// Checks that `found`, asked for in one epoch and decided by another, is what a configuration in
    /// force between them gives: `of` says what an odd or an even one does.
    fn judge<T: PartialEq + Debug>(
        what: &str,
        epochs: (u64, u64),
        found: &T,
        of: impl Fn(bool) -> T,
    ) {
        // 2n: n reloads are done. 2n + 1: the next one is under way.
        let (first, last) = (epochs.0 / 2, epochs.1.div_ceil(2));
        let right = (first..=last).any(|n| of(!n.is_multiple_of(2)) == *found);
        assert!(right, "{what}: {found:?}, epochs {epochs:?}");
    }
}

/// What the three upstreams say, by their number of events and the stream's number.
#[derive(Default)]
struct Whole(HashMap<(u32, u64), Vec<u8>>);

impl Whole {
    /// Asks the upstreams themselves.
    async fn learn(world: &World, streams: impl Iterator<Item = u64>) -> Whole {
        let mut whole = Whole::default();
        let mut kept = Client::connect(world.kept.addr(), Http::H1, None).await;
        let mut left = Client::connect(world.left.addr(), Http::H1, None).await;
        let mut right = Client::connect(world.right.addr(), Http::H2, None).await;
        for n in streams {
            let number = n.to_string();
            let fields = [("sim-stream", number.as_str())];
            for (count, client) in [(5, &mut kept), (7, &mut left), (9, &mut right)] {
                let answer = client.stream(&fields).await;
                assert_eq!((answer.status, answer.end), (200, End::Clean));
                whole.0.insert((count, n), answer.body);
            }
        }
        whole
    }

    /// Which upstream this whole answer is of.
    fn of(&self, answer: &Answer, n: u64) -> u32 {
        assert_eq!(answer.end, End::Clean, "stream {n}");
        let counts = [5, 7, 9].into_iter();
        let mut right = counts.filter(|count| self.0[&(*count, n)] == answer.body);
        right.next().unwrap_or_else(|| panic!("stream {n} is not whole: {}", answer.text()))
    }
}

/// Streams again and again until it is over.
async fn streams(world: Arc<World>, whole: Arc<Whole>, mut client: Client, n: u64) {
    let number = n.to_string();
    // The number of events is each upstream's own.
    let fields = [("sim-interval", "150ms"), ("sim-stream", number.as_str())];
    let mut round = n;
    while !world.over.load(SeqCst) {
        round += 1;
        let before = world.epoch.load(SeqCst);
        let (path, expected): (&str, fn(bool) -> u32) = match round % 3 {
            0 => ("/kept", |_| 5),
            1 => ("/moves", |odd| if odd { 9 } else { 7 }),
            _ => ("/comes", |odd| if odd { 7 } else { 404 }),
        };
        let started = client.start("POST", &format!("{path}{CHAT}"), &fields, STREAM).await;
        let headed = soon(started.head()).await;
        // Its way was decided by now.
        let status = headed.status;
        let decided = world.epoch.load(SeqCst);
        let answer = headed.rest().await;
        let found = if status == 200 { whole.of(&answer, n) } else { status.into() };
        World::judge(path, (before, decided), &found, expected);
    }
}

/// Asks for something short again and again until it is over.
async fn asks(world: Arc<World>, mut client: Client) {
    let mut round = 0;
    while !world.over.load(SeqCst) {
        round += 1;
        let before = world.epoch.load(SeqCst);
        let (stays, comes) = (world.stays.key.as_str(), world.comes.key.as_str());
        let (path, key, expected): (&str, &str, fn(bool) -> u16) = match round % 5 {
            0 => ("/door/x", stays, |_| 200),
            1 => ("/door/x", comes, |odd| if odd { 200 } else { 401 }),
            2 => ("/comes/x", "", |odd| if odd { 200 } else { 404 }),
            3 => ("/door/x", "nobody's", |_| 401),
            _ => ("/moves/x", "", |_| 200),
        };
        let answer = client.ask("GET", path, &[("x-api-key", key)], "").await;
        let epochs = (before, world.epoch.load(SeqCst));
        World::judge(&format!("{path} {key}"), epochs, &answer.status, expected);
        assert_eq!(answer.end, End::Clean);
        world.asked.fetch_add(1, SeqCst);
    }
}

/// Lives through all of it: on an upstream that stays, one that moves and one that is taken away.
async fn lives_long(world: Arc<World>, address: std::net::SocketAddr, n: u64) {
    let http = if n.is_multiple_of(2) { Http::H1 } else { Http::H2 };
    let mut client = Client::connect(address, http, None).await;
    let path = ["/kept", "/moves", "/comes"][(n % 3) as usize];
    let fields = [("sim-interval", "100ms"), ("sim-count", "1000000")];
    let started = client.start("POST", &format!("{path}{CHAT}"), &fields, STREAM).await;
    let mut live = soon(started.head()).await;
    assert_eq!(live.status, 200);
    let mut seq = 0u64;
    // The last event that is there is looked for in what is new; a gap would never be found.
    while !world.over.load(SeqCst) {
        assert!(soon(live.more()).await, "stream {n} on {path} ended");
        let said = String::from_utf8(live.body.split().to_vec()).expect("UTF-8");
        for event in said.split_inclusive("\n\n") {
            seq += 1;
            let whole = event.starts_with("data: {") && event.ends_with("}\n\n");
            assert!(whole && event.contains(&format!("\"seq\":{seq},")), "{seq}: {event}");
        }
    }
    assert!(seq > 10, "stream {n} on {path} lived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_disturb_no_stream_and_answer_nothing_wrongly() {
    // A busy machine is slow, not wrong.
    be_patient(Duration::from_secs(60));
    let world = World::new().await;
    // `/comes` is there at the beginning, for the streams that outlive it.
    let gateway = Gateway::start(&world.config(1), None).await;
    world.epoch.store(2, SeqCst);
    let address = gateway.ready.listen[0];
    let short = ALONE + SHARED.0 * SHARED.1;
    let whole = Arc::new(Whole::learn(&world, 0..short).await);
    let learned = 3 * short;

    let mut tasks = Vec::new();
    for n in 0..LONG {
        tasks.push(tokio::spawn(lives_long(world.clone(), address, n)));
    }
    let mut clients = Vec::new();
    for _ in 0..ALONE {
        clients.push(Client::connect(address, Http::H1, None).await);
    }
    for _ in 0..SHARED.0 {
        let Client::H2(sender) = Client::connect(address, Http::H2, None).await else {
            panic!("HTTP/2")
        };
        clients.extend((0..SHARED.1).map(|_| Client::H2(sender.clone())));
    }
    for (n, client) in (0..).zip(clients) {
        tasks.push(tokio::spawn(streams(world.clone(), whole.clone(), client, n)));
    }
    let wanted = (LONG + short / 2) as f64;
    super::until(&gateway, "a crowd", |m| m.live() > wanted).await;
    for n in 0..ASKING {
        let http = if n.is_multiple_of(2) { Http::H1 } else { Http::H2 };
        let client = Client::connect(address, http, None).await;
        tasks.push(tokio::spawn(asks(world.clone(), client)));
    }

    let mut least = f64::MAX;
    for n in 2..2 + RELOADS {
        world.epoch.fetch_add(1, SeqCst);
        let done = gateway.reload(&world.config(n)).await;
        assert!(done.is_ok(), "{done:?}");
        world.epoch.fetch_add(1, SeqCst);
        // Between two reloads some requests see one configuration alone.
        let asked = world.asked.load(SeqCst);
        soon(async {
            while world.asked.load(SeqCst) < asked + 3 * ASKING
                && !tasks.iter().any(tokio::task::JoinHandle::is_finished)
            {
                // The interval of looking.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        least = least.min(metrics(&gateway).await.live());
        assert!(!tasks.iter().any(tokio::task::JoinHandle::is_finished), "a task gave up");
    }
    assert!(least > wanted / 2.0, "there was a load all the time: {least}");
    world.over.store(true, SeqCst);
    for task in tasks {
        soon(task).await.expect("nothing was wrong");
    }
    let asked = world.asked.load(SeqCst);
    eprintln!("{asked} short requests, never fewer than {least} streams at once");
    at_rest(&world, &gateway, learned).await;
}

/// Everything has been given back, and nothing was lost upstream.
async fn at_rest(world: &World, gateway: &Gateway, learned: u64) {
    let end = super::until(gateway, "all is over", |m| {
        m.live() == 0.0
            && m.sum("tidegate_queue_depth") == 0.0
            && m.sum("tidegate_connections_live") == 0.0
            && m.sum("tidegate_backlog_bytes") == 0.0
    })
    .await;
    assert_eq!(reloads(&end), (RELOADS as f64, 0.0));
    // The three names and four routes that there ever were, one of them with one upstream.
    assert_eq!(end.sum("tidegate_breaker_state"), 3.0);
    // Reload 101 has left the odd configuration: `right` is reached by `moves`, `left` by `comes`.
    super::until(gateway, "no connection is busy", |m| {
        ["kept", "moves", "comes"].iter().all(|name| {
            let of = |state| {
                m.get(&format!(
                    "tidegate_upstream_connections{{upstream=\"{name}\",state=\"{state}\"}}"
                ))
            };
            of("active") == 0.0 && of("connecting") == 0.0
        })
    })
    .await;
    for sim in [&world.kept, &world.left, &world.right] {
        sees(sim, "nothing runs", |counts| counts.live == 0).await;
    }
    let told = metrics(gateway).await;
    let told: f64 = ["kept", "moves", "comes"].iter().map(|name| connections(&told, name)).sum();
    let open = || {
        let sims = [&world.kept, &world.left, &world.right];
        sims.iter().map(|sim| sim.counts().connections_live).sum::<u64>()
    };
    // Retired pools have closed theirs: those that are open are those that are told.
    for sim in [&world.kept, &world.left, &world.right] {
        sees(sim, "retired connections are gone", |_| open() as f64 <= told).await;
    }
    assert_eq!(open() as f64, told);
    // Those that lived through all of it were left by their clients, and nobody else was.
    let sims = [&world.kept, &world.left, &world.right].map(Sim::counts);
    assert_eq!(sims.iter().map(|counts| counts.cancelled).sum::<u64>(), LONG, "{sims:?}");
    assert_eq!(sims.iter().map(|counts| counts.aborted + counts.malformed).sum::<u64>(), 0);
    assert!(sims.iter().map(|counts| counts.completed).sum::<u64>() > learned);
}
