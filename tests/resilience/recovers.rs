//! Upstreams of several endpoints, or keys, of which some fail and come back; answers that come before
//! the request has gone out.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate::sim::{Behaviour, Fault, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::connects::{Refusing, whole};
use crate::endpoints::sim;
use crate::scene::{Place, Scene, clear};
use crate::stage::client::{CHAT, STREAM};
use crate::stage::events::code_of;
use crate::stage::{Client, Http, PATIENCE, soon};

/// What stands at the places of this file.
pub(crate) struct Recovers {
    bad: Sim,
    good: Sim,
    down: [Refusing; 2],
    flaps: Sim,
    steady: Sim,
    breaks: Sim,
    limited: Sim,
    rotated: Sim,
    early: Sim,
    files: tempfile::TempDir,
}

/// Probes of the breaker that is tried under load.
const PROBES: usize = 2;
/// They are asked before the others are answered.
const PROBES_ARRIVE: Duration = Duration::from_secs(5);

impl Recovers {
    pub(crate) async fn new(h2: bool) -> Recovers {
        let plain = || sim(Behaviour::default(), h2);
        let files = tempfile::tempdir().expect("a folder");
        for name in ["one", "two", "old"] {
            std::fs::write(files.path().join(name), name).expect("a file");
        }
        Recovers {
            bad: sim(Behaviour { status: Some(503), ..Behaviour::default() }, h2).await,
            good: plain().await,
            down: [Refusing::new(), Refusing::new()],
            flaps: plain().await,
            steady: plain().await,
            breaks: plain().await,
            limited: plain().await,
            rotated: plain().await,
            early: plain().await,
            files,
        }
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let at = |sims: &[&Sim]| sims.iter().map(|sim| clear(sim.addr())).collect::<Vec<_>>();
        let down: Vec<_> = self.down.iter().map(|down| clear(down.addr())).collect();
        let key = |name: &str| format!("{{ file = {:?} }}", self.files.path().join(name));
        // A pause would be longer than the test's patience.
        let at_once = "retry = { backoff = \"1h\", backoff_max = \"1h\", budget = \"100%\" }";
        let flapping = "breaker = { consecutive = 2, open = \"100ms\" }";
        let breaking = format!("consecutive = 3, open = \"300ms\", probes = {PROBES}");
        vec![
            Place::new("one-bad", &at(&[&self.bad, &self.good]), at_once),
            Place::new("all-down", &down, ""),
            Place::new(
                "flaps",
                &at(&[&self.flaps, &self.steady]),
                &format!("{at_once}\n{flapping}"),
            ),
            Place::new("breaks", &at(&[&self.breaks]), &format!("breaker = {{ {breaking} }}")),
            Place::new(
                "limited",
                &at(&[&self.limited]),
                &format!("credential = [{}, {}]\n{at_once}", key("one"), key("two")),
            ),
            Place::new("rotated", &at(&[&self.rotated]), &format!("credential = {}", key("old"))),
            Place::new("early", &at(&[&self.early]), ""),
        ]
    }

    pub(crate) async fn met(&self, scene: &Scene) {
        tokio::join!(
            self.one_bad_endpoint_is_passed_by(scene),
            all_down_is_told(scene),
            Box::pin(self.an_endpoint_that_flaps_costs_nobody_an_answer(scene)),
            Box::pin(self.a_half_open_breaker_lets_its_probes_pass_and_no_more(scene)),
            self.a_limited_key_is_followed_by_the_next(scene),
            self.a_rotated_key_is_read_anew(scene),
            Box::pin(self.an_answer_may_come_before_ten_megabytes_are_read(scene)),
        );
    }

    async fn one_bad_endpoint_is_passed_by(&self, scene: &Scene) {
        for http in [Http::H1, Http::H2] {
            whole(&scene.asks("one-bad", http, &[]).await);
        }
        scene.comes_to("one-bad", &[("ended completed", 2.0), ("retries status", 2.0)]).await;
        assert_eq!((self.bad.counts().requests, self.good.counts().requests), (2, 2));
    }

    async fn an_endpoint_that_flaps_costs_nobody_an_answer(&self, scene: &Scene) {
        let place = "flaps";
        let (mut asked, mut failed) = (0.0, 0);
        for _ in 0..3 {
            self.flaps.set_defaults(Behaviour { status: Some(503), ..Behaviour::default() });
            let before = self.flaps.counts().requests;
            // Two open its breaker; the others do not even try it, or as its probes.
            for n in 0..10 {
                let http = if n % 2 == 0 { Http::H1 } else { Http::H2 };
                whole(&scene.asks(place, http, &[]).await);
                asked += 1.0;
            }
            let tried = self.flaps.counts().requests - before;
            assert!(tried >= 2, "{tried}");
            failed += tried;
            self.flaps.set_defaults(Behaviour::default());
            // It comes back by a probe: until then the other one answers.
            let served = self.flaps.counts().requests;
            let deadline = Instant::now() + PATIENCE;
            while self.flaps.counts().requests < served + 3 {
                whole(&scene.asks(place, Http::H1, &[]).await);
                asked += 1.0;
                assert!(Instant::now() < deadline, "it is never asked again");
                // Nothing tells that its breaker would let pass; this is the interval of asking.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let counted = [("ended completed", asked), ("retries status", failed as f64)];
        scene.comes_to(place, &counted).await;
        let seen = self.flaps.counts().requests + self.steady.counts().requests;
        assert_eq!(seen as f64, asked + failed as f64, "none was sent twice but by a retry");
    }

    async fn a_half_open_breaker_lets_its_probes_pass_and_no_more(&self, scene: &Scene) {
        const MANY: usize = 100;
        let place = "breaks";
        for _ in 0..3 {
            let answer = scene.asks(place, Http::H1, &[("sim-status", "500")]).await;
            assert_eq!(answer.status, 500);
        }
        // Whoever is let through from now on stays there.
        self.breaks.set_defaults(Behaviour { fault: Fault::StallHead, ..Behaviour::default() });
        let half = "tidegate_breaker_state{upstream=\"breaks\",state=\"half_open\"}";
        scene.until("half-open", |m| m.get(half) == 1.0).await;
        let mut asking = JoinSet::new();
        for n in 0..MANY {
            let http = if n % 2 == 0 { Http::H1 } else { Http::H2 };
            let (gateway, path) = (scene.gateway.ready.listen[0], format!("/{place}{CHAT}"));
            asking.spawn(async move {
                let mut client = Client::connect(gateway, http, None).await;
                client.ask("POST", &path, &[], STREAM).await
            });
        }
        for _ in PROBES..MANY {
            let answer = soon(asking.join_next()).await.expect("one").expect("no panic");
            let text = answer.text();
            assert_eq!(answer.status, 503, "{text}");
            assert_eq!(code_of(&text).as_deref(), Some("upstream_unavailable"), "{text}");
            assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
        }
        let probes = self.breaks.wait_for(|c| c.live >= PROBES as u64, PROBES_ARRIVE).await;
        probes.expect("the probes at the upstream, before they are late");
        assert_eq!(self.breaks.counts().requests, 3 + PROBES as u64);
        // They leave without a verdict, and others may try: as many successes close it.
        self.breaks.set_defaults(Behaviour::default());
        asking.abort_all();
        let left = self.breaks.wait_for(|c| c.cancelled == PROBES as u64, PATIENCE).await;
        left.expect("the probes cancelled");
        for _ in 0..PROBES {
            whole(&scene.asks(place, Http::H1, &[]).await);
        }
        let closed = "tidegate_breaker_state{upstream=\"breaks\",state=\"closed\"}";
        scene.until("closed", |m| m.get(closed) == 1.0).await;
        let counted = [
            // The three that opened it passed as they were.
            ("ended completed", 3.0 + PROBES as f64),
            ("ended upstream_error", (MANY - PROBES) as f64),
            ("ended client_closed", PROBES as f64),
        ];
        scene.comes_to(place, &counted).await;
        assert_eq!(self.breaks.counts().requests, 3 + 2 * PROBES as u64);
    }

    async fn a_limited_key_is_followed_by_the_next(&self, scene: &Scene) {
        let limited = [
            ("sim-status", "429"),
            ("sim-retry-after", "60"),
            ("sim-fault-times", "1"),
            ("sim-stream", "7"),
        ];
        whole(&scene.asks("limited", Http::H1, &[]).await);
        whole(&scene.asks("limited", Http::H2, &limited).await);
        whole(&scene.asks("limited", Http::H1, &[]).await);
        let [one, two] = ["Bearer one", "Bearer two"];
        assert_eq!(keys(&self.limited), [one, one, two, two]);
        scene.comes_to("limited", &[("ended completed", 3.0), ("retries status", 1.0)]).await;
    }

    async fn a_rotated_key_is_read_anew(&self, scene: &Scene) {
        whole(&scene.asks("rotated", Http::H1, &[]).await);
        std::fs::write(self.files.path().join("old"), "new").expect("a file");
        let once = [("sim-status", "401"), ("sim-fault-times", "1"), ("sim-stream", "7")];
        let refused = scene.asks("rotated", Http::H2, &once).await;
        let [old, new] = ["Bearer old", "Bearer new"];
        let mut sent = vec![old, old, new];
        let mut counted = vec![("ended completed", 3.0), ("retries credential", 1.0)];
        if keys(&self.rotated) == [old, new] {
            // The gateway has just looked at the file by itself, and there is no other key.
            assert_eq!(refused.status, 401);
            (sent, counted) = (vec![old, new], vec![("ended completed", 3.0)]);
        } else {
            whole(&refused);
        }
        whole(&scene.asks("rotated", Http::H1, &[]).await);
        sent.push(new);
        assert_eq!(keys(&self.rotated), sent);
        scene.comes_to("rotated", &counted).await;
    }

    async fn an_answer_may_come_before_ten_megabytes_are_read(&self, scene: &Scene) {
        let body = Bytes::from(STREAM.replace("[]", &format!("\"{}\"", "x".repeat(10 << 20))));
        let (path, early) = (format!("/early{CHAT}"), [("sim-fault", "early")]);
        let mut client = scene.client(Http::H2).await;
        let answer = client.ask("POST", &path, &early, body.clone()).await;
        assert_eq!(answer.status, 413, "{}", answer.text());
        assert_eq!(code_of(&answer.text()).as_deref(), Some("sim"));
        let answer = sent_while_read(scene, &path, &body).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("\"code\":\"sim\""), "{answer}");
        scene.comes_to("early", &[("ended completed", 2.0)]).await;
        assert_eq!(self.early.counts().requests, 2);
        assert!(self.early.requests().iter().all(|seen| !seen.body_complete));
    }
}

/// The keys that came, in order.
fn keys(sim: &Sim) -> Vec<String> {
    let key = |seen: tidegate::sim::Seen| seen.header("authorization").expect("a key").to_owned();
    sim.requests().into_iter().map(key).collect()
}

async fn all_down_is_told(scene: &Scene) {
    for http in [Http::H1, Http::H2] {
        let answer = scene.asks("all-down", http, &[]).await;
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert_eq!(code_of(&answer.text()).as_deref(), Some("upstream_connect"));
    }
    // Two rounds over both, with a pause between.
    let counted =
        [("ended upstream_error", 2.0), ("retries connect", 6.0), ("connects refused", 8.0)];
    scene.comes_to("all-down", &counted).await;
}

/// A client that goes on sending while it reads the answer.
async fn sent_while_read(scene: &Scene, path: &str, body: &Bytes) -> String {
    let tcp = soon(TcpStream::connect(scene.gateway.ready.listen[0])).await.expect("the gateway");
    let (mut from, mut to) = tcp.into_split();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: g\r\nsim-fault: early\r\ncontent-length: {length}\r\n\r\n"
    );
    let body = body.clone();
    let sending = tokio::spawn(async move {
        to.write_all(head.as_bytes()).await?;
        to.write_all(&body).await?;
        Ok::<_, std::io::Error>(to)
    });
    let mut answer = Vec::new();
    // The head, and a body that ends in a bracket.
    while !(answer.ends_with(b"}") && memchr::memmem::find(&answer, b"\r\n\r\n").is_some()) {
        let came = soon(from.read_buf(&mut answer)).await.expect("an answer, and no reset");
        assert!(came > 0, "it ended: {}", String::from_utf8_lossy(&answer));
    }
    sending.abort();
    String::from_utf8(answer).expect("UTF-8")
}
