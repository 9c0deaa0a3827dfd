//! Hundreds of streams whose upstream fails in ways drawn by lot: where, how often, how the bytes are
//! cut, who reads them and how fast. Whatever happens, the client has every byte that came, in
//! order, or is told; nothing is generated twice once something of it went on; and nothing is left.
//!
//! A seed is one stream's whole story. `TIDEGATE_TEST_SEED` runs others than usual; a seed that failed
//! once stays in [`KEPT`].

mod stage;

use std::sync::Arc;
use std::time::Duration;

use stage::client::{CHAT, STREAM};
use stage::events::{code_of, without_heartbeats};
use stage::random::Random;
use stage::{Answer, Client, End, Http, Setup, Stage};
use tidegate::sim::{Behaviour, Fault, Kind, expected_body};
use tokio::task::JoinSet;

/// Stories of each run, over HTTP/1.1 and again over HTTP/2 upstreams.
const SEEDS: u64 = 300;
/// Stories at once.
const AT_ONCE: usize = 30;
/// Attempts that the gateway may make.
const ATTEMPTS: u32 = 3;
/// Seeds that found something.
const KEPT: &[u64] = &[];

/// What the upstream does. A lost HTTP/2 connection takes other streams along and has its own test.
const FAULTS: [&str; 16] = [
    "fin",
    "rst",
    "stall",
    "error-middle",
    "bad-chunk",
    "no-done",
    "empty",
    "error-first",
    "reset-head",
    "refuse",
    "stall-head",
    "wrong-length",
    "trailers",
    "103",
    "goaway",
    "none",
];

/// One stream's story.
#[derive(Clone, Debug)]
struct Story {
    id: u64,
    fault: &'static str,
    fields: Vec<(&'static str, String)>,
    client: Http,
    path: &'static str,
    /// Pause before each read.
    reads: Option<Duration>,
    /// It leaves at this text, if that comes.
    leaves: Option<&'static str>,
}

impl Story {
    fn of(seed: u64) -> Story {
        let mut random = Random(seed);
        let fault = random.of(&FAULTS);
        let split = random.of(&["none", "byte", "random"]);
        // Byte by byte, a long answer is a hundred thousand frames; and who takes a byte at a time with
        // pauses counts as stalled (`a_client_that_reads_too_little_to_open_its_window_counts_as_stalled`).
        let sizes: &[u32] = if split == "byte" { &[0, 10] } else { &[0, 0, 10, 3000] };
        let mut fields = vec![
            ("sim-stream", seed.to_string()),
            ("sim-clock", "off".to_owned()),
            ("sim-fault", fault.to_owned()),
            ("sim-count", random.below(30).to_string()),
            ("sim-fault-after", random.below(12).to_string()),
            ("sim-size", random.of(sizes).to_string()),
            ("sim-split", split.to_owned()),
            ("sim-line-end", random.of(&["lf", "lf", "crlf", "cr"]).to_owned()),
            ("sim-bom", random.of(&["off", "on"]).to_owned()),
            ("sim-interval", random.of(&["0ms", "1ms", "7ms"]).to_owned()),
        ];
        // Always, or so often.
        let times = if random.once_in(2) { 1000 } else { 1 + random.below(3) };
        fields.push(("sim-fault-times", times.to_string()));
        Story {
            id: seed,
            fault,
            fields,
            client: random.of(&[Http::H1, Http::H2]),
            path: random.of(&["/v1/chat/completions", "/safe/v1/chat/completions"]),
            reads: (split != "byte" && random.once_in(5))
                .then(|| Duration::from_millis(random.below(20))),
            leaves: random.once_in(8).then(|| random.of(&["HTTP", "data:", "tide"])),
        }
    }

    /// What the upstream sends, with the fault and without.
    fn sent(&self) -> [Vec<u8>; 2] {
        let mut behaviour = Behaviour::default();
        for (name, value) in &self.fields {
            behaviour.apply(name, value).expect("a field of the simulator");
        }
        // The gateway takes it away.
        behaviour.framing.bom = false;
        let faulty = expected_body(&behaviour, Kind::Chat, self.id, "tide-1", false);
        behaviour.fault = Fault::None;
        [faulty, expected_body(&behaviour, Kind::Chat, self.id, "tide-1", false)]
    }

    async fn live(&self, stage: &Stage) -> Option<Answer> {
        let mut client = stage.client(self.client).await;
        let fields: Vec<_> =
            self.fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let started = client.start("POST", self.path, &fields, STREAM).await;
        let mut headed = stage::soon(started.head()).await;
        if let Some(text) = self.leaves {
            while headed.more().await {
                if memchr::memmem::find(&headed.body, text.as_bytes()).is_some() {
                    break;
                }
            }
            return None;
        }
        Some(match self.reads {
            Some(pause) => headed.rest_slowly(pause).await,
            None => headed.rest().await,
        })
    }

    /// Whether what the client got is all, or said not to be.
    fn judge(&self, answer: &Answer) {
        let what = format!("{self:?}: {} {:?}\n{}", answer.status, answer.end, answer.text());
        if answer.status != 200 {
            assert_eq!(answer.end, End::Clean, "{what}");
            assert!(code_of(&answer.text()).is_some(), "an error that says what: {what}");
            return;
        }
        let [faulty, good] = self.sent();
        let (body, _) = without_heartbeats(&answer.body);
        if answer.end == End::Clean {
            assert!(body == good || body == faulty, "not what was sent: {what}");
            let tail = String::from_utf8_lossy(&body[body.len().saturating_sub(20)..]).into_owned();
            assert!(tail.trim_end().ends_with("data: [DONE]"), "a clean end in the middle: {what}");
            return;
        }
        // What came, then one error and nothing else: the upstream's own, or the gateway's.
        let at = memchr::memmem::rfind(&body, b"data: {\"error\":");
        let at = at.unwrap_or_else(|| panic!("cut without a word: {what}"));
        let came = body[..at].trim_ascii_end();
        let own = faulty.starts_with(&body);
        let sent = own || faulty.starts_with(came) || good.starts_with(came);
        assert!(sent, "not what was sent: {what}");
        let error = String::from_utf8_lossy(&body[at..]).into_owned();
        let told = code_of(error.trim_start_matches("data: ").trim_end());
        assert!(told.is_some(), "no error: {what}");
    }
}

async fn run(upstream_h2: bool) {
    let more = "[[route]]\npath = \"/safe/v1/{*rest}\"\nupstream = \"sim\"\nrepeatable = true\n";
    let setup = Setup {
        upstream_h2,
        stream: "first_byte = \"2s\"\nidle = \"2s\"\nheartbeat = \"100ms\"".to_owned(),
        upstream: format!(
            "retry = {{ attempts = {ATTEMPTS}, backoff = \"5ms\", budget = \"100%\" }}"
        ),
        route: more.replace("[[route]]\n", "\n[[route]]\n"),
        ..Setup::default()
    };
    let stage = Arc::new(Stage::start(setup).await);
    let first: u64 =
        std::env::var("TIDEGATE_TEST_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let mut seeds = KEPT.iter().copied().chain(first..first + SEEDS);
    let mut running = JoinSet::new();
    let mut begin = |running: &mut JoinSet<()>| {
        let Some(seed) = seeds.next() else { return };
        let (story, stage) = (Story::of(seed), stage.clone());
        running.spawn(async move {
            if let Some(answer) = story.live(&stage).await {
                story.judge(&answer);
                let asked = stage.sim.attempts(story.id);
                let what = format!("{story:?}: {} {}", answer.status, answer.text());
                // Each attempt may meet a connection that the upstream is about to leave (GOAWAY), for
                // which there is no attempt left, or no budget: then its answer says so.
                let never = code_of(&answer.text()).as_deref() == Some("upstream_refused");
                let fewest = if upstream_h2 && never { 0 } else { 1 };
                assert!((fewest..=ATTEMPTS).contains(&asked), "asked {asked} times: {what}");
                let middle = ["fin", "rst", "bad-chunk", "error-middle", "stall"];
                // On the other path nothing is asked for again for being late.
                let cut = answer.end == End::Cut && story.path == CHAT;
                if cut && middle.contains(&story.fault) {
                    assert_eq!(asked, 1, "something had gone on to the client: {what}");
                }
            }
        });
    };
    (0..AT_ONCE).for_each(|_| begin(&mut running));
    while let Some(done) = running.join_next().await {
        done.expect("a story without a contradiction");
        begin(&mut running);
    }
    let gone = |m: &stage::Metrics| {
        m.live() == 0.0
            && m.get("tidegate_backlog_bytes") == 0.0
            && m.get("tidegate_stalled_streams") == 0.0
            && m.get("tidegate_upstream_connections{upstream=\"sim\",state=\"active\"}") == 0.0
    };
    let last = stage.until("nothing is left", gone).await;
    assert_eq!(last.ended("internal"), 0.0);
    let mut client = Client::connect(stage.gateway.ready.listen[0], Http::H1, None).await;
    let answer = client.ask("POST", CHAT, &[], STREAM).await;
    assert_eq!((answer.status, answer.end), (200, End::Clean), "and it still serves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_http1_upstream_does_clients_have_all_or_are_told() {
    run(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_http2_upstream_does_clients_have_all_or_are_told() {
    run(true).await;
}
