//! Another attempt at the same upstream: for what, how often, and for what never.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tidegate::sim::{Behaviour, Kind, expected_body};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::endpoints::{self, gateway, sim};
use crate::scene::Crowd;
use crate::stage::client::{CHAT, STREAM};
use crate::stage::events::{code_of, error_code};
use crate::stage::{Answer, End, Http, Metrics, Setup, Stage, open_files, scrape};

/// What the upstream does at first, and what comes of it.
struct Row {
    /// `sim-*` fields; the fault is over after so many attempts as `sim-fault-times` says.
    fields: &'static [(&'static str, &'static str)],
    /// Lines of the route.
    route: &'static str,
    /// The client's status, and the code of its error if it is one.
    sees: (u16, Option<&'static str>),
    /// Requests that the upstream saw, over HTTP/1.1 and HTTP/2.
    asked: [u32; 2],
    /// What `tidegate_retries_total` counts, and under which reason.
    retries: (&'static str, f64),
}

const WHOLE: (u16, Option<&str>) = (200, None);
const REPEATABLE: &str = "repeatable = true";

const TABLE: [Row; 17] = [
    // The answer says when: not sooner.
    Row {
        fields: &[("sim-status", "429"), ("sim-retry-after", "1"), ("sim-fault-times", "1")],
        route: "",
        sees: WHOLE,
        asked: [2; 2],
        retries: ("status", 1.0),
    },
    // It asks for more time than anybody has.
    Row {
        fields: &[("sim-status", "429"), ("sim-retry-after", "60"), ("sim-fault-times", "1")],
        route: "",
        sees: (429, Some("simulated error")),
        asked: [1; 2],
        retries: ("status", 0.0),
    },
    Row {
        fields: &[("sim-status", "500"), ("sim-fault-times", "3")],
        route: "",
        sees: WHOLE,
        asked: [4; 2],
        retries: ("status", 3.0),
    },
    // One more than there are attempts: the last answer is the client's.
    Row {
        fields: &[("sim-status", "500"), ("sim-fault-times", "4")],
        route: "",
        sees: (500, Some("simulated error")),
        asked: [4; 2],
        retries: ("status", 3.0),
    },
    // Not one of the statuses that the rule names.
    Row {
        fields: &[("sim-status", "400"), ("sim-fault-times", "1")],
        route: "",
        sees: (400, Some("simulated error")),
        asked: [1; 2],
        retries: ("status", 0.0),
    },
    Row {
        fields: &[("sim-fault", "error-first"), ("sim-fault-times", "1")],
        route: "",
        sees: WHOLE,
        asked: [2; 2],
        retries: ("error_first", 1.0),
    },
    Row {
        fields: &[("sim-fault", "error-first"), ("sim-fault-times", "1000")],
        route: "",
        sees: (502, None),
        asked: [4; 2],
        retries: ("error_first", 3.0),
    },
    Row {
        fields: &[("sim-fault", "empty"), ("sim-fault-times", "2")],
        route: "",
        sees: WHOLE,
        asked: [3; 2],
        retries: ("empty", 2.0),
    },
    // It may have run.
    Row {
        fields: &[("sim-fault", "reset-head"), ("sim-fault-times", "1")],
        route: "",
        sees: (502, Some("upstream_gone")),
        asked: [1; 2],
        retries: ("gone", 0.0),
    },
    Row {
        fields: &[("sim-fault", "reset-head"), ("sim-fault-times", "1")],
        route: REPEATABLE,
        sees: WHOLE,
        asked: [2; 2],
        retries: ("gone", 1.0),
    },
    // A closed connection may have run it; a refused stream has not.
    Row {
        fields: &[("sim-fault", "refuse"), ("sim-fault-times", "1")],
        route: REPEATABLE,
        sees: WHOLE,
        asked: [2; 2],
        retries: ("", 1.0),
    },
    Row {
        fields: &[("sim-fault", "stall-head"), ("sim-fault-times", "1")],
        route: "",
        sees: (504, Some("upstream_first_byte_timeout")),
        asked: [1; 2],
        retries: ("timeout", 0.0),
    },
    Row {
        fields: &[("sim-fault", "stall-head"), ("sim-fault-times", "1")],
        route: REPEATABLE,
        sees: WHOLE,
        asked: [2; 2],
        retries: ("timeout", 1.0),
    },
    // The head has come, and nothing more.
    Row {
        fields: &[("sim-fault", "stall"), ("sim-fault-after", "0"), ("sim-fault-times", "1")],
        route: REPEATABLE,
        sees: WHOLE,
        asked: [2; 2],
        retries: ("timeout", 1.0),
    },
    // Something has gone on to the client: never again, whatever the rule says.
    Row {
        fields: &[("sim-fault", "fin"), ("sim-fault-times", "1")],
        route: REPEATABLE,
        sees: (200, Some("upstream_truncated")),
        asked: [1; 2],
        retries: ("", 0.0),
    },
    Row {
        fields: &[("sim-fault", "rst"), ("sim-fault-times", "1")],
        route: REPEATABLE,
        sees: (200, Some("upstream_truncated")),
        asked: [1; 2],
        retries: ("", 0.0),
    },
    Row {
        fields: &[("sim-fault", "error-middle"), ("sim-fault-times", "1")],
        route: REPEATABLE,
        sees: (200, Some("simulated")),
        asked: [1; 2],
        retries: ("", 0.0),
    },
];

const RULE: &str = "retry = { attempts = 4, backoff = \"20ms\", budget = \"100%\" }";

/// The whole stream of `id`, and nothing else.
fn whole(id: u64) -> Vec<u8> {
    expected_body(&Behaviour::default(), Kind::Chat, id, "tide-1", false)
}

async fn asks(stage: &Stage, http: Http, id: u64, fields: &[(&str, &str)]) -> Answer {
    let text = id.to_string();
    let own = [("sim-stream", text.as_str()), ("sim-clock", "off")];
    stage.client(http).await.stream(&[&own, fields].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_trouble_is_met_as_its_row_says_beside_a_thousand_streams_over_http1() {
    each_trouble_is_met(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_trouble_is_met_as_its_row_says_beside_a_thousand_streams_over_http2() {
    each_trouble_is_met(true).await;
}

async fn each_trouble_is_met(upstream_h2: bool) {
    open_files(12_000);
    let route =
        format!("[[route]]\npath = \"/safe/v1/{{*rest}}\"\nupstream = \"sim\"\n{REPEATABLE}");
    let setup = Setup {
        upstream_h2,
        server: "h2_max_streams = 1000".to_owned(),
        stream: "first_byte = \"3s\"".to_owned(),
        upstream: RULE.to_owned(),
        route,
        ..Setup::default()
    };
    let stage = Stage::start(setup).await;
    let crowd = Crowd::of(&stage.gateway, &stage.sim).await;
    for (n, row) in TABLE.iter().enumerate() {
        for (at, http) in [Http::H1, Http::H2].into_iter().enumerate() {
            let what = format!("row {n}, upstream h2 {upstream_h2}, client {http:?}");
            row.met(&stage, upstream_h2, http, (2 * n + at) as u64, &what).await;
        }
    }
    crowd.leaves(&stage.sim).await;
    stage.until("nothing is left", |m| m.live() == 0.0).await;
}

impl Row {
    /// Why the request ends, if it does not as completed; an upstream's own status is an answer.
    fn ends_as(&self) -> Option<&'static str> {
        match self.sees {
            (_, Some("simulated error")) | WHOLE => None,
            (_, Some("upstream_truncated")) => Some("upstream_truncated"),
            (504, _) => Some("upstream_timeout"),
            _ => Some("upstream_error"),
        }
    }

    /// One request with this trouble, and all that is to come of it.
    async fn met(&self, stage: &Stage, upstream_h2: bool, http: Http, id: u64, what: &str) {
        let what = format!("{what}: {:?} {}", self.fields, self.route);
        // What the retries below cost, brought by other requests.
        for _ in 0..3 {
            stage.client(http).await.ask("GET", "/v1/models", &[], "").await;
        }
        let before = stage.metrics().await;
        let began = Instant::now();
        let path = if self.route == REPEATABLE { "/safe/v1/chat/completions" } else { CHAT };
        let text = id.to_string();
        let own = [("sim-stream", text.as_str()), ("sim-clock", "off")];
        let fields = [&own, self.fields].concat();
        let answer = stage.client(http).await.ask("POST", path, &fields, STREAM).await;
        let what = format!("{what}: {}", answer.text());
        assert_eq!(answer.status, self.sees.0, "{what}");
        if self.sees == WHOLE {
            assert_eq!((answer.end, &answer.body), (End::Clean, &whole(id)), "{what}");
        } else if answer.status == 200 {
            assert_eq!(answer.end, End::Cut, "{what}");
        }
        if let Some(code) = self.sees.1 {
            assert!(answer.text().contains(code), "{what}");
        }
        assert_eq!(stage.sim.attempts(id), self.asked[usize::from(upstream_h2)], "{what}");
        let reason = match self.retries.0 {
            "" => String::new(),
            reason => format!("reason=\"{reason}\""),
        };
        let series = format!("tidegate_retries_total{{upstream=\"sim\",{reason}");
        let counted = stage.metrics().await.sum(&series) - before.sum(&series);
        assert_eq!(counted, self.retries.1, "{what}");
        for reason in ["upstream_error", "upstream_timeout", "upstream_truncated"] {
            let by = if self.ends_as() == Some(reason) { 1.0 } else { 0.0 };
            let ended = |m: &Metrics| m.ended(reason) == before.ended(reason) + by;
            stage.until(&format!("{what}: {reason} by {by}"), ended).await;
        }
        if self.fields.contains(&("sim-retry-after", "1")) {
            assert!(began.elapsed() >= Duration::from_secs(1), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_reached_the_upstream_is_sent_again_without_a_rule() {
    for (fields, upstream_h2, asked) in [
        // An HTTP/2 stream that was refused.
        (&[("sim-fault", "refuse"), ("sim-fault-times", "1")][..], true, 2),
        // An HTTP/1.1 connection that ended: it may have run.
        (&[("sim-fault", "refuse"), ("sim-fault-times", "1")], false, 1),
        (&[("sim-status", "503"), ("sim-fault-times", "1")], true, 1),
        (&[("sim-fault", "error-first"), ("sim-fault-times", "1")], true, 1),
    ] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let answer = asks(&stage, Http::H1, 1, fields).await;
        assert_eq!(answer.status == 200, asked == 2, "{fields:?}: {}", answer.text());
        assert_eq!(stage.sim.counts().requests, asked, "{fields:?}");
    }
}

/// An HTTP/2 upstream, frame by frame, that leaves as many connections as `leaves` (GOAWAY without an
/// error, and no stream was begun) when a request comes, and then hands on to `sim`.
async fn leaving(leaves: usize, sim: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        for n in 0.. {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            if n >= leaves {
                let mut to = TcpStream::connect(sim).await.expect("the simulator");
                tokio::spawn(async move { copy_bidirectional(&mut socket, &mut to).await });
                continue;
            }
            // SETTINGS, without any.
            socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("open");
            let mut preface = [0; 24];
            socket.read_exact(&mut preface).await.expect("a preface");
            loop {
                let mut head = [0; 9];
                socket.read_exact(&mut head).await.expect("a frame");
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                socket.read_exact(&mut vec![0; length]).await.expect("its payload");
                if head[3] == 1 {
                    break;
                }
            }
            // GOAWAY: last stream 0, NO_ERROR.
            let mut away = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
            away.extend([0; 8]);
            socket.write_all(&away).await.expect("open");
            socket.shutdown().await.expect("open");
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_goes_away_before_the_stream_began_costs_an_attempt_and_no_more() {
    for (leaves, status) in [(1, 200), (2, 502)] {
        let sim = sim(Behaviour::default(), true).await;
        let gateway = gateway(&[leaving(leaves, sim.addr()).await], true, "").await;
        let answer = endpoints::asks(&gateway, &[]).await;
        assert_eq!(answer.status, status, "{leaves}: {}", answer.text());
        let told = code_of(&answer.text());
        let refused = (status == 502).then_some("upstream_refused");
        assert_eq!(told.as_deref(), refused, "{leaves}: {}", answer.text());
        let asked = if status == 200 { 1 } else { 0 };
        assert_eq!(sim.counts().requests, asked, "{leaves}: it never ran more often");
        let metrics = scrape::metrics(gateway.ready.admin).await;
        let retries = "tidegate_retries_total{upstream=\"sim\",reason=\"unsent\"}";
        assert_eq!(metrics.get(retries), 1.0, "{leaves}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_sent_again_whole_and_only_if_they_are_kept() {
    for (length, asked) in [(200_000, 2), (2_000_000, 1)] {
        let setup = Setup { upstream: RULE.to_owned(), ..Setup::default() };
        let stage = Stage::start(setup).await;
        let body = STREAM.replace("[]", &format!("\"{}\"", "x".repeat(length)));
        let fields = [("sim-status", "500"), ("sim-fault-times", "1"), ("sim-stream", "1")];
        let mut client = stage.client(Http::H1).await;
        let answer = client.ask("POST", CHAT, &fields, body.clone()).await;
        assert_eq!(answer.status == 200, asked == 2, "{length}");
        let seen = stage.sim.requests();
        assert_eq!(seen.len() as u64, asked, "{length}");
        assert!(seen.iter().all(|seen| seen.body_length == body.len() as u64), "{length}");
        let same = seen.iter().all(|other| other.body_fnv1a64 == seen[0].body_fnv1a64);
        assert!(same && seen.iter().all(|seen| seen.body_complete), "{length}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_bounded_for_all_requests_together() {
    let upstream = "retry = { attempts = 10, backoff = \"1ms\", budget = \"0%\" }".to_owned();
    let stage = Stage::start(Setup { upstream, ..Setup::default() }).await;
    for id in 0..30 {
        assert_eq!(asks(&stage, Http::H1, id, &[("sim-status", "500")]).await.status, 500);
    }
    // Thirty requests and the ten of the burst.
    assert_eq!(stage.sim.counts().requests, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_a_retry_waits_has_left() {
    let upstream = "retry = { backoff_max = \"1h\" }".to_owned();
    let stage = Stage::start(Setup { upstream, ..Setup::default() }).await;
    let mut client = stage.client(Http::H1).await;
    let fields = [("sim-status", "503"), ("sim-retry-after", "600")];
    let started = client.start("POST", CHAT, &fields, STREAM).await;
    stage.sim.wait_for(|c| c.requests == 1, crate::stage::PATIENCE).await.expect("asked");
    drop(started);
    drop(client);
    stage.until("it has left", |m| m.ended("client_closed") == 1.0 && m.live() == 0.0).await;
    assert_eq!(stage.sim.counts().requests, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pause_goes_beyond_the_clients_own_deadline() {
    let upstream = "retry = { backoff_max = \"1h\" }".to_owned();
    let stage = Stage::start(Setup { upstream, ..Setup::default() }).await;
    let fields =
        [("sim-status", "503"), ("sim-retry-after", "30"), ("x-stainless-read-timeout", "5")];
    let began = Instant::now();
    let answer = asks(&stage, Http::H1, 1, &fields).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("30"), "the upstream's own words");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promised_stream_is_retried_too_and_its_client_sees_only_heartbeats() {
    let setup = Setup {
        stream: "commit_after = \"100ms\"\nheartbeat = \"200ms\"".to_owned(),
        upstream: RULE.to_owned(),
        ..Setup::default()
    };
    let stage = Stage::start(setup).await;
    let fields =
        [("sim-fault", "error-first"), ("sim-fault-times", "2"), ("sim-first-byte", "400ms")];
    let answer = asks(&stage, Http::H1, 1, &fields).await;
    assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
    let beats = answer.text().matches(": ping\n").count();
    assert!(beats >= 2, "{beats}");
    assert_eq!(answer.text().replace(": ping\n", "").as_bytes(), whole(1));
    assert_eq!(error_code(&answer.body), None);
    assert_eq!(stage.sim.counts().requests, 3);
}
