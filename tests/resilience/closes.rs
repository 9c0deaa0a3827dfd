//! Upstreams that close a connection between two requests, without having said so before.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::scene::{Place, Scene, clear};
use crate::stage::client::{CHAT, STREAM};
use crate::stage::events::code_of;
use crate::stage::{Answer, Http, soon};

/// The upstreams, played by hand. Each answers the first request on a connection.
pub(crate) struct Closes {
    /// Then it closes.
    behind: TcpListener,
    /// Then it takes another request, and closes instead of answering.
    upon: TcpListener,
}

/// What an upstream has seen.
#[derive(Clone)]
struct Seen {
    requests: watch::Sender<usize>,
    closed: watch::Sender<usize>,
}

impl Closes {
    pub(crate) async fn new() -> Closes {
        let listener = async || TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Closes { behind: listener().await, upon: listener().await }
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let at = |listener: &TcpListener| clear(listener.local_addr().expect("an address"));
        vec![
            Place::new("closes-behind", &[at(&self.behind)], ""),
            Place::new("closes-upon", &[at(&self.upon)], ""),
        ]
    }

    pub(crate) async fn met(&self, scene: &Scene) {
        tokio::join!(self.closed_before_use(scene), self.closed_upon_use(scene));
    }

    /// The close is there before the next request is: another connection is taken.
    async fn closed_before_use(&self, scene: &Scene) {
        const REQUESTS: usize = 40;
        played(&self.behind, scene.h2, false, async |seen| {
            let mut client = scene.client(Http::H1).await;
            for n in 1..=REQUESTS {
                let answer = client.ask("POST", "/closes-behind/v1/x", &[], "{}").await;
                assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{n}");
                let mut closed = seen.closed.subscribe();
                soon(closed.wait_for(|closed| *closed == n)).await.expect("it closes");
            }
            assert_eq!(*seen.requests.borrow(), REQUESTS, "none was sent twice");
        })
        .await;
        scene.comes_to("closes-behind", &[("ended completed", REQUESTS as f64)]).await;
    }

    /// The request is on its way already, and may have run: its client is told, and it is not sent
    /// again.
    async fn closed_upon_use(&self, scene: &Scene) {
        played(&self.upon, scene.h2, true, async |seen| {
            for (n, http) in (1..).zip([Http::H1, Http::H2]) {
                // One worker serves both, and so uses the connection again.
                let mut client = scene.client(http).await;
                let first = client.ask("POST", "/closes-upon/v1/x", &[], "{}").await;
                assert_eq!((first.status, first.text().as_str()), (200, "ok"), "{http:?}");
                let path = format!("/closes-upon{CHAT}");
                let second: Answer = client.ask("POST", &path, &[], STREAM).await;
                assert_eq!(second.status, 502, "{http:?}: {}", second.text());
                assert_eq!(code_of(&second.text()).as_deref(), Some("upstream_gone"), "{http:?}");
                assert_eq!(*seen.requests.borrow(), 2 * n, "{http:?}: none was sent twice");
            }
        })
        .await;
        let counted = [("ended completed", 2.0), ("ended upstream_error", 2.0)];
        scene.comes_to("closes-upon", &counted).await;
    }
}

/// Plays the upstream at `listener` while `asking` asks.
async fn played(listener: &TcpListener, h2: bool, upon: bool, asking: impl AsyncFnOnce(Seen)) {
    let seen = Seen { requests: watch::Sender::new(0), closed: watch::Sender::new(0) };
    let serving = async {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            match h2 {
                true => connections.spawn(serves_h2(socket, upon, seen.clone())),
                false => connections.spawn(serves_h1(socket, upon, seen.clone())),
            };
        }
    };
    tokio::select! {
        () = asking(seen.clone()) => {}
        () = serving => unreachable!("it serves for ever"),
    }
}

async fn serves_h1(mut socket: TcpStream, upon: bool, seen: Seen) {
    h1_request(&mut socket).await;
    seen.requests.send_modify(|n| *n += 1);
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    socket.write_all(answer).await.expect("an open connection");
    if upon {
        h1_request(&mut socket).await;
        seen.requests.send_modify(|n| *n += 1);
    }
    socket.shutdown().await.expect("an open connection");
    seen.closed.send_modify(|n| *n += 1);
}

/// A head, and a body that ends in a bracket.
async fn h1_request(socket: &mut TcpStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        let came = socket.read_buf(&mut request).await.expect("an open connection");
        assert!(came > 0, "no request: {}", String::from_utf8_lossy(&request));
    }
}

/// The same; here GOAWAY comes with the end of the answer.
async fn serves_h2(socket: TcpStream, upon: bool, seen: Seen) {
    let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
    let (_, mut respond) = connection.accept().await.expect("a stream").expect("HTTP/2");
    seen.requests.send_modify(|n| *n += 1);
    let head = http::Response::new(());
    let mut stream = respond.send_response(head, false).expect("a stream");
    stream.send_data(Bytes::from_static(b"ok"), true).expect("a stream");
    drop((respond, stream));
    if upon {
        let another = connection.accept().await.expect("another stream");
        seen.requests.send_modify(|n| *n += 1);
        // Before the stream: otherwise h2 would reset it.
        drop(connection);
        drop(another);
    } else {
        connection.graceful_shutdown();
        while let Some(Ok(_)) = connection.accept().await {
            seen.requests.send_modify(|n| *n += 1);
        }
    }
    seen.closed.send_modify(|n| *n += 1);
}
