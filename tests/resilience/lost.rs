//! A connection that goes with a hundred streams on it: over HTTP/2 each of them is told, over
//! HTTP/1.1, where each has its own, only the one whose connection it was.

use std::sync::Arc;

use tidegate::sim::{Behaviour, Sim};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connects::whole;
use crate::endpoints::sim;
use crate::scene::{Place, Scene, arrived, began, clear};
use crate::stage::client::{CHAT, STREAM};
use crate::stage::events::error_code;
use crate::stage::{Client, End, Http, soon};

/// Streams on the connection.
const STREAMS: u64 = 100;

/// The upstreams: one that drops the connection, one that asks for calm and closes it.
pub(crate) struct Lost([(&'static str, &'static str, Sim); 2]);

impl Lost {
    pub(crate) async fn new(h2: bool) -> Lost {
        let (lost, calm) =
            (sim(Behaviour::default(), h2).await, sim(Behaviour::default(), h2).await);
        Lost([("lost", "conn", lost), ("calm", "calm-away", calm)])
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let place =
            |(name, _, sim): &(&'static str, _, Sim)| Place::new(name, &[clear(sim.addr())], "");
        self.0.iter().map(place).collect()
    }

    pub(crate) async fn met(&self, scene: &Arc<Scene>) {
        let [(lost, conn, one), (calm, away, other)] = &self.0;
        tokio::join!(goes(scene, lost, conn, one), goes(scene, calm, away, other));
    }
}

async fn goes(scene: &Arc<Scene>, place: &'static str, fault: &'static str, sim: &Sim) {
    let Client::H2(sender) = scene.client(Http::H2).await else { panic!("HTTP/2") };
    let path = format!("/{place}{CHAT}");
    let mut client = Client::H2(sender.clone());
    // Before it has seen the upstream's SETTINGS the gateway would open several connections.
    whole(&client.ask("POST", &path, &[], STREAM).await);
    let (begun, mut begins) = mpsc::channel(STREAMS as usize);
    let mut streams = JoinSet::new();
    for id in 1..=STREAMS {
        let (client, path, begun) = (Client::H2(sender.clone()), path.clone(), begun.clone());
        streams.spawn(async move { streams_on(client, &path, id, begun).await });
    }
    for _ in 0..STREAMS {
        soon(begins.recv()).await.expect("a first event");
    }
    let connections = sim.counts().connections;
    assert_eq!(connections, if scene.h2 { 1 } else { STREAMS }, "{place}: on one connection");
    let fields = [("sim-fault", fault), ("sim-interval", "10ms")];
    let struck = client.ask("POST", &path, &fields, STREAM).await;
    assert_eq!((struck.status, struck.end), (200, End::Cut), "{place}: {}", struck.text());
    // A new connection serves who comes then.
    whole(&client.ask("POST", &path, &[], STREAM).await);
    sim.hurry();
    let told = streams.join_all().await.into_iter().filter(|told| *told).count();
    assert_eq!(told as u64, if scene.h2 { STREAMS } else { 0 }, "{place}: told");
    let well = (STREAMS + 2 - told as u64) as f64;
    let counted = [("ended completed", well), ("ended upstream_truncated", told as f64 + 1.0)];
    scene.comes_to(place, &counted).await;
    assert_eq!(sim.counts().requests, STREAMS + 3, "{place}: no request twice");
}

/// One of the streams; whether it was told that it broke off. It has every byte up to then, or to the
/// end.
async fn streams_on(mut client: Client, path: &str, id: u64, begun: mpsc::Sender<()>) -> bool {
    let text = id.to_string();
    let fields = [
        ("sim-clock", "off"),
        ("sim-stream", text.as_str()),
        ("sim-count", "1000000"),
        ("sim-interval", "100ms"),
    ];
    let mut live = client.start("POST", path, &fields, STREAM).await.head().await;
    live.until("\n\n").await;
    begun.send(()).await.expect("the row waits for it");
    let answer = live.rest().await;
    if answer.end == End::Clean {
        arrived(id, &answer);
        return false;
    }
    let text = answer.text();
    let at = text.rfind("data: {\"error\"").expect("an error event");
    let (came, error) = text.split_at(at);
    assert!(began(id, came), "{id}: {text}");
    assert_eq!(error_code(error.as_bytes()).as_deref(), Some("upstream_truncated"), "{id}");
    true
}
