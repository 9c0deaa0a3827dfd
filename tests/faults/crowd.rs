//! Bystanders: good streams that run while something else goes wrong, with `FIRST_ID` and above as ids.

use tidegate::sim::{Behaviour, Kind, expected_body};
use tokio::task::JoinSet;

use super::stage::events::error_code;
use super::stage::{Answer, Client, End, Http, PATIENCE, Stage};

/// Streams of a usual crowd: half over HTTP/1.1, half over one HTTP/2 connection.
pub(crate) const CROWD: usize = 100;
/// Bystanders have ids from here on.
const FIRST_ID: u64 = 1000;

/// Streams that are running.
pub(crate) struct Crowd {
    running: JoinSet<(u64, Answer)>,
    /// Events of each.
    events: u32,
    /// The HTTP/2 connection they share, with room for more.
    pub(crate) shared: Client,
}

/// Another handle to the same HTTP/2 connection.
pub(crate) fn again(client: &Client) -> Client {
    match client {
        Client::H2(sender) => Client::H2(sender.clone()),
        Client::H1(..) => panic!("an HTTP/1.1 connection cannot be shared"),
    }
}

/// One short stream, after which the gateway knows how many streams an HTTP/2 upstream takes on a
/// connection; before that it opens several.
pub(crate) async fn warm_up(stage: &Stage) {
    let answer = stage.client(Http::H1).await.stream(&[("sim-count", "1")]).await;
    assert_eq!((answer.status, answer.end), (200, End::Clean));
}

fn whole(id: u64, events: u32) -> Vec<u8> {
    let behaviour = Behaviour { count: events, ..Behaviour::default() };
    expected_body(&behaviour, Kind::Chat, id, "tide-1", false)
}

impl Crowd {
    /// Starts [`CROWD`] streams and waits until the upstream has them all.
    pub(crate) async fn start(stage: &Stage) -> Crowd {
        Crowd::of(stage, CROWD, 12, "30ms").await
    }

    /// Starts so many streams of so many events, and waits until the upstream has them all.
    pub(crate) async fn of(
        stage: &Stage,
        size: usize,
        events: u32,
        interval: &'static str,
    ) -> Crowd {
        let before = stage.sim.counts().requests;
        let shared = stage.client(Http::H2).await;
        let mut running = JoinSet::new();
        for n in 0..size {
            let mut client = match n % 2 {
                0 => stage.client(Http::H1).await,
                _ => again(&shared),
            };
            let id = FIRST_ID + n as u64;
            running.spawn(async move {
                let text = id.to_string();
                let fields = [
                    ("sim-clock", "off"),
                    ("sim-stream", text.as_str()),
                    ("sim-count", &events.to_string()),
                    ("sim-interval", interval),
                ];
                (id, client.stream(&fields).await)
            });
        }
        let arrived = stage.sim.wait_for(|c| c.requests >= before + size as u64, PATIENCE).await;
        arrived.expect("every bystander's request at the upstream");
        Crowd { running, events, shared }
    }

    /// Every one of them gets all its bytes.
    pub(crate) async fn arrives(self, what: &str) {
        for (id, answer) in self.running.join_all().await {
            let text = answer.text();
            assert_eq!(
                text,
                String::from_utf8_lossy(&whole(id, self.events)),
                "{what}: bystander {id}"
            );
            assert_eq!((answer.status, answer.end), (200, End::Clean), "{what}: bystander {id}");
        }
    }

    /// Each gets all its bytes or an explicit error; returns how many got the error.
    pub(crate) async fn arrives_or_is_told(self, what: &str) -> usize {
        let mut told = 0;
        for (id, answer) in self.running.join_all().await {
            if answer.end == End::Clean {
                assert_eq!(answer.body, whole(id, self.events), "{what}: bystander {id}");
                continue;
            }
            told += 1;
            let same = answer
                .body
                .iter()
                .zip(whole(id, self.events))
                .take_while(|(a, b)| **a == *b)
                .count();
            // Both go on with `data: {"`; the error event begins where the last whole event ended.
            let events = answer.body[..same].windows(2).rposition(|w| w == b"\n\n");
            let tail = &answer.body[events.map_or(0, |n| n + 2)..];
            let code = error_code(tail);
            assert_eq!(code.as_deref(), Some("upstream_truncated"), "{what}: {}", answer.text());
        }
        told
    }
}
