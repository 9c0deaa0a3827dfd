//! What goes wrong with a stream while bystanders stream from the same upstream: over HTTP/2 on the
//! same connection.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tidegate::sim::{Behaviour, Kind, expected_body};
use tokio::task::JoinSet;

use crate::scene::{AMONG, Scene};
use crate::stage::client::{CHAT, STREAM};
use crate::stage::sees::Sees::{self, Broken, OwnError, Passed, Status, Whole};
use crate::stage::{End, Http};

/// What comes of a row.
#[derive(Clone, Copy)]
struct Met {
    sees: Sees,
    /// What each request adds to the metrics.
    counted: &'static [&'static str],
    /// How often the upstream is asked for each.
    asked: u32,
}

const fn met(sees: Sees, counted: &'static [&'static str]) -> Met {
    Met { sees, counted, asked: 1 }
}

struct Row {
    fields: &'static [(&'static str, &'static str)],
    /// Over an HTTP/1.1 and over an HTTP/2 upstream.
    over: [Met; 2],
}

const fn row(fields: &'static [(&'static str, &'static str)], both: Met) -> Row {
    Row { fields, over: [both; 2] }
}

const fn apart(fields: &'static [(&'static str, &'static str)], h1: Met, h2: Met) -> Row {
    Row { fields, over: [h1, h2] }
}

const COMPLETED: &[&str] = &["ended completed"];
const FAILED: &[&str] = &["ended upstream_error"];
const LATE: &[&str] = &["ended upstream_timeout"];
const TRUNCATED: &[&str] = &["ended upstream_truncated"];
const BROKEN_OFF: Met = met(Broken("upstream_truncated"), TRUNCATED);
const GONE: Met = met(Status(502, "upstream_gone"), FAILED);
const GOOD: Met = met(Whole, COMPLETED);
/// It was sent again, since it had not run, and was refused again.
const REFUSED: Met = Met {
    sees: Status(502, "upstream_refused"),
    counted: &["ended upstream_error", "retries unsent"],
    asked: 2,
};

const TABLE: [Row; 20] = [
    // Before the head.
    row(&[("sim-fault", "reset-head")], GONE),
    apart(&[("sim-fault", "refuse")], GONE, REFUSED),
    apart(&[("sim-fault", "calm")], GOOD, GONE),
    row(&[("sim-fault", "stall-head")], met(Status(504, "upstream_first_byte_timeout"), LATE)),
    // By its answer.
    row(&[("sim-status", "429")], met(Passed(429, "rate_limit_error"), COMPLETED)),
    row(&[("sim-status", "500")], met(Passed(500, "server_error"), COMPLETED)),
    row(&[("sim-fault", "error-first")], met(Status(502, "sim"), FAILED)),
    row(&[("sim-fault", "empty")], met(Status(502, "upstream_empty"), TRUNCATED)),
    row(&[("sim-fault", "html")], met(Passed(200, "Please sign in"), COMPLETED)),
    row(&[("sim-fault", "early")], met(Passed(413, r#""code":"sim""#), COMPLETED)),
    // The head has come, and no event.
    row(
        &[("sim-fault", "stall"), ("sim-fault-after", "0")],
        met(Status(504, "upstream_first_byte_timeout"), LATE),
    ),
    // In mid-stream.
    row(&[("sim-fault", "stall")], met(Broken("upstream_idle_timeout"), LATE)),
    row(&[("sim-fault", "fin")], BROKEN_OFF),
    row(&[("sim-fault", "rst")], BROKEN_OFF),
    row(&[("sim-fault", "no-done")], BROKEN_OFF),
    row(&[("sim-fault", "short-chunk")], BROKEN_OFF),
    apart(&[("sim-fault", "bad-chunk")], met(Broken("upstream_protocol"), FAILED), BROKEN_OFF),
    row(&[("sim-fault", "error-middle")], met(OwnError, FAILED)),
    row(&[("sim-fault", "wrong-length")], GOOD),
    row(&[("sim-fault", "content-length-exact")], GOOD),
];

/// Comes behind the others: a request that meets a connection which goes away uses up an attempt.
const LEAVES: Row = row(&[("sim-fault", "goaway")], GOOD);

/// Ids of its streams.
const FIRST_LEAVES: u64 = 100;

/// Events of a row's stream.
const EVENTS: &str = "5";

/// Every row at once, from an HTTP/1.1 and an HTTP/2 client each.
pub(crate) async fn met_by_all(scene: Arc<Scene>) {
    let mut rows = JoinSet::new();
    for (n, row) in TABLE.iter().enumerate() {
        for (at, http) in [Http::H1, Http::H2].into_iter().enumerate() {
            rows.spawn(row.strikes(scene.clone(), http, (2 * n + at + 1) as u64));
        }
    }
    rows.spawn(a_body_that_is_no_stream_is_too_short(scene.clone(), Http::H1));
    rows.spawn(a_body_that_is_no_stream_is_too_short(scene.clone(), Http::H2));
    rows.join_all().await;
    LEAVES.strikes(scene.clone(), Http::H1, FIRST_LEAVES).await;
    LEAVES.strikes(scene, Http::H2, FIRST_LEAVES + 1).await;
}

impl Row {
    async fn strikes(&self, scene: Arc<Scene>, http: Http, id: u64) {
        let met = self.over[usize::from(scene.h2)];
        let text = id.to_string();
        let own = [
            ("sim-stream", text.as_str()),
            ("sim-clock", "off"),
            ("sim-count", EVENTS),
            ("sim-interval", "100ms"),
            // Never over; with it the simulator counts how often the row is asked for.
            ("sim-fault-times", "1000"),
        ];
        let mut client = scene.client(http).await;
        let answer = client.ask("POST", CHAT, &[&own, self.fields].concat(), STREAM).await;
        let what = format!("{:?} upstream h2 {}, client {http:?}", self.fields, scene.h2);
        let mut behaviour = Behaviour::default();
        for (name, value) in own.iter().chain(self.fields) {
            behaviour.apply(name, value).expect("a field of the simulator");
        }
        let mut sent = expected_body(&behaviour, Kind::Chat, id, "tide-1", false);
        if self.fields[0].1 == "short-chunk" && !scene.h2 {
            sent.extend_from_slice(b": half a chunk\n");
        }
        met.sees.check(&what, &sent, &answer);
        let asked = scene.sim.attempts(id);
        assert_eq!(asked, met.asked, "{what}: asked");
        scene.asked_among.fetch_add(asked.into(), Relaxed);
        let counted: Vec<_> = met.counted.iter().map(|series| (*series, 1.0)).collect();
        scene.counts_on(AMONG, &counted);
    }
}

/// A length that promises more than comes: the client gets what came, and no end.
async fn a_body_that_is_no_stream_is_too_short(scene: Arc<Scene>, http: Http) {
    let fields = [("sim-fault", "wrong-length")];
    let answer = scene.client(http).await.ask("GET", "/v1/models", &fields, "").await;
    let what = format!("upstream h2 {}, client {http:?}: {}", scene.h2, answer.text());
    assert_eq!((answer.status, answer.end), (200, End::Cut), "{what}");
    let came: serde_json::Value = serde_json::from_slice(&answer.body).expect("all that came");
    assert_eq!(came["object"], "list", "{what}");
    scene.asked_among.fetch_add(1, Relaxed);
    let reason = if scene.h2 { "ended upstream_error" } else { "ended upstream_truncated" };
    scene.counts_on(AMONG, &[(reason, 1.0)]);
}
