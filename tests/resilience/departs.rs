//! Clients that leave while their request is not answered yet: while its connection is made, while
//! TLS is, while the upstream thinks, while it queues. Nothing of theirs is left.

use std::net::TcpListener;

use tidegate::sim::{Behaviour, Sim};

use crate::connects::{BlackHole, silent, whole};
use crate::endpoints::sim;
use crate::scene::{Place, Scene, clear};
use crate::stage::client::{CHAT, STREAM, Started};
use crate::stage::{Client, Http, PATIENCE};

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// FIN.
    H1,
    /// RST_STREAM, and its connection stays.
    H2,
}

const WAYS: [Way; 2] = [Way::H1, Way::H2];

/// Where they wait.
pub(crate) struct Departs {
    hole: BlackHole,
    silent: TcpListener,
    thinks: Sim,
    queues: Sim,
}

impl Departs {
    pub(crate) async fn new(h2: bool) -> Departs {
        Departs {
            hole: BlackHole::new().await,
            silent: silent(),
            thinks: sim(Behaviour::default(), h2).await,
            queues: sim(Behaviour::default(), h2).await,
        }
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let silent = self.silent.local_addr().expect("an address");
        // So long that the client is gone before it is over, and the dial not long after.
        let connect = "connect = \"5s\"";
        let (hole, tls) = ([clear(self.hole.addr())], [format!("https://{silent}")]);
        vec![
            Place::new("in-connect-h1", &hole, connect),
            Place::new("in-connect-h2", &hole, connect),
            Place::new("in-tls-h1", &tls, connect),
            Place::new("in-tls-h2", &tls, connect),
            Place::new("in-thought", &[clear(self.thinks.addr())], ""),
            Place::new(
                "in-queue",
                &[clear(self.queues.addr())],
                "max_streams = 1\nqueue_wait = \"1m\"",
            ),
        ]
    }

    pub(crate) async fn met(&self, scene: &Scene) {
        tokio::join!(
            leaves_the_dial(scene, "in-connect-h1", Way::H1, "connects timeout"),
            leaves_the_dial(scene, "in-connect-h2", Way::H2, "connects timeout"),
            leaves_the_dial(scene, "in-tls-h1", Way::H1, "connects tls_timeout"),
            leaves_the_dial(scene, "in-tls-h2", Way::H2, "connects tls_timeout"),
            self.leaves_the_wait(scene),
            self.leaves_the_queue(scene),
        );
    }

    /// The upstream has the request, and is told that nobody waits any more.
    async fn leaves_the_wait(&self, scene: &Scene) {
        for (n, way) in (1..).zip(WAYS) {
            let mut client = client(scene, way).await;
            let fields = [("sim-fault", "stall-head")];
            let path = format!("/in-thought{CHAT}");
            let started = client.start("POST", &path, &fields, STREAM).await;
            let asked = self.thinks.wait_for(|c| c.requests == n && c.live == 1, PATIENCE).await;
            asked.expect("the request at the upstream");
            leave(started);
            let stays = stays(client, way);
            let left = self.thinks.wait_for(|c| c.cancelled == n, PATIENCE).await;
            left.unwrap_or_else(|counts| panic!("{way:?}: not cancelled, {counts:?}"));
            scene.comes_to("in-thought", &[("ended client_closed", 1.0)]).await;
            drop(stays);
        }
        assert_eq!(self.thinks.counts().requests, WAYS.len() as u64);
    }

    /// The upstream never hears of it, and the place goes to who is next.
    async fn leaves_the_queue(&self, scene: &Scene) {
        let (path, depth) =
            (format!("/in-queue{CHAT}"), "tidegate_queue_depth{upstream=\"in-queue\"}");
        for way in WAYS {
            let mut holder = scene.client(Http::H1).await;
            let fields = [("sim-count", "1000"), ("sim-interval", "100ms")];
            let mut held = holder.start("POST", &path, &fields, STREAM).await.head().await;
            held.until("data:").await;
            let mut client = client(scene, way).await;
            let started = client.start("POST", &path, &[], STREAM).await;
            scene.until("it queues", |m| m.get(depth) == 1.0).await;
            leave(started);
            let stays = stays(client, way);
            scene.until("it has left", |m| m.get(depth) == 0.0).await;
            drop(held);
            drop(holder);
            whole(&scene.asks("in-queue", Http::H1, &[]).await);
            let counted = [("ended client_closed", 2.0), ("ended completed", 1.0)];
            scene.comes_to("in-queue", &counted).await;
            drop(stays);
        }
        assert_eq!(self.queues.counts().requests, 2 * WAYS.len() as u64, "who left was not sent");
    }
}

async fn client(scene: &Scene, way: Way) -> Client {
    scene.client(if matches!(way, Way::H1) { Http::H1 } else { Http::H2 }).await
}

/// Its connection, if that is not what tells of its leaving.
fn stays(client: Client, way: Way) -> Option<Client> {
    match way {
        Way::H1 => None,
        Way::H2 => Some(client),
    }
}

/// Over HTTP/2 by RST_STREAM; over HTTP/1.1 the connection's end, which follows, is the sign.
fn leave(mut started: Started<'_>) {
    if let Started::H2(_, stream) = &mut started {
        stream.send_reset(h2::Reason::CANCEL);
    }
}

/// Its request's record ends at once; the dial goes on for others who may wait for it, up to
/// `connect`, and nothing is tried again.
async fn leaves_the_dial(scene: &Scene, place: &'static str, way: Way, result: &str) {
    let series =
        format!("tidegate_upstream_connections{{upstream=\"{place}\",state=\"connecting\"}}");
    let path = format!("/{place}{CHAT}");
    let mut client = client(scene, way).await;
    let started = client.start("POST", &path, &[], STREAM).await;
    scene.until("it is dialled", |m| m.get(&series) == 1.0).await;
    leave(started);
    let stays = stays(client, way);
    let live = format!("tidegate_streams_live{{route=\"/{place}/v1/{{*rest}}\"");
    scene.until(&format!("{place}: it has left"), |m| m.sum(&live) == 0.0).await;
    scene.until(&format!("{place}: the dial ends"), |m| m.get(&series) == 0.0).await;
    scene.comes_to(place, &[("ended client_closed", 1.0), (result, 1.0)]).await;
    drop(stays);
}
