//! Clients that leave: whenever and however they do, the upstream's request is cancelled at once.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stage::client::{CHAT, STREAM};
use super::stage::{End, Http, Setup, Stage, soon};

/// How the client leaves.
#[derive(Clone, Copy, Debug)]
enum Way {
    H1Fin,
    H1Rst,
    H2Reset,
    H2Disconnect,
}

/// When it leaves.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The upstream has the request and says nothing.
    BeforeHead,
    /// The head is through, no event has come.
    AfterHead,
    /// Events come.
    MidStream,
}

const WAYS: [Way; 4] = [Way::H1Fin, Way::H1Rst, Way::H2Reset, Way::H2Disconnect];
/// The upstream must know by then.
const NOTICE: Duration = Duration::from_secs(1);

impl Moment {
    fn setup(self) -> &'static str {
        match self {
            Moment::BeforeHead | Moment::MidStream => "commit_after = \"off\"\nheartbeat = \"off\"",
            // Without heartbeats nothing is written, so nothing but its leaving tells of it.
            Moment::AfterHead => "commit_after = \"100ms\"\nheartbeat = \"off\"",
        }
    }

    fn fields(self) -> [(&'static str, &'static str); 2] {
        match self {
            Moment::BeforeHead => [("sim-first-byte", "1m"), ("sim-count", "3")],
            Moment::AfterHead => [("sim-first-event", "1m"), ("sim-count", "3")],
            Moment::MidStream => [("sim-interval", "50ms"), ("sim-count", "10000")],
        }
    }

    /// What the client waits for before it leaves.
    fn sign(self) -> Option<&'static str> {
        match self {
            Moment::BeforeHead => None,
            Moment::AfterHead => Some("text/event-stream"),
            Moment::MidStream => Some("\"seq\":3"),
        }
    }
}

/// A request that may be left; dropping it closes the client's connection.
enum Asking {
    H1(TcpStream),
    H2(
        h2::SendStream<Bytes>,
        Option<h2::RecvStream>,
        h2::client::ResponseFuture,
        tokio::task::AbortHandle,
    ),
}

async fn upstream_has_it(stage: &Stage) {
    let live = stage.sim.wait_for(|c| c.live == 1, NOTICE * 5).await;
    live.expect("the request at the upstream");
}

async fn ask_h1(stage: &Stage, moment: Moment) -> Asking {
    let tcp = TcpStream::connect(stage.gateway.ready.listen[0]).await;
    let mut tcp = tcp.expect("the gateway");
    let mut request = format!("POST {CHAT} HTTP/1.1\r\nhost: gateway\r\n");
    for (name, value) in moment.fields() {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n{STREAM}", STREAM.len());
    soon(tcp.write_all(request.as_bytes())).await.expect("a request");
    upstream_has_it(stage).await;
    let Some(sign) = moment.sign() else { return Asking::H1(tcp) };
    let mut came = Vec::new();
    while memchr::memmem::find(&came, sign.as_bytes()).is_none() {
        let n = soon(tcp.read_buf(&mut came)).await.expect("an open connection");
        assert!(n > 0, "{moment:?}: the answer ended: {}", String::from_utf8_lossy(&came));
    }
    Asking::H1(tcp)
}

async fn ask_h2(stage: &Stage, moment: Moment) -> Asking {
    let tcp = TcpStream::connect(stage.gateway.ready.listen[0]).await.expect("the gateway");
    let (sender, connection) = soon(h2::client::handshake(tcp)).await.expect("a handshake");
    let connection = tokio::spawn(async move { drop(connection.await) }).abort_handle();
    let mut request = Request::post(format!("http://gateway{CHAT}"));
    for (name, value) in moment.fields() {
        request = request.header(name, value);
    }
    let mut sender = soon(sender.ready()).await.expect("a ready connection");
    let request = request.body(()).expect("a request");
    let (mut response, mut stream) = sender.send_request(request, false).expect("a stream");
    stream.send_data(Bytes::from_static(STREAM.as_bytes()), true).expect("a body");
    upstream_has_it(stage).await;
    let Some(sign) = moment.sign() else {
        return Asking::H2(stream, None, response, connection);
    };
    let (head, mut body) = soon(&mut response).await.expect("a response").into_parts();
    let mut came = format!("{:?}", head.headers).into_bytes();
    while memchr::memmem::find(&came, sign.as_bytes()).is_none() {
        let piece = soon(body.data()).await.expect("more").expect("an open stream");
        came.extend_from_slice(&piece);
    }
    Asking::H2(stream, Some(body), response, connection)
}

/// Leaves; what is returned stays open until it is dropped.
async fn leave(asking: Asking, way: Way) -> Option<Asking> {
    match (asking, way) {
        (Asking::H1(mut tcp), Way::H1Fin) => {
            tcp.shutdown().await.expect("an open connection");
            Some(Asking::H1(tcp))
        }
        (Asking::H1(tcp), _) => {
            let at_once = Some(Duration::ZERO);
            socket2::SockRef::from(&tcp).set_linger(at_once).expect("an open connection");
            None
        }
        (Asking::H2(mut stream, body, response, connection), Way::H2Reset) => {
            stream.send_reset(h2::Reason::CANCEL);
            Some(Asking::H2(stream, body, response, connection))
        }
        (Asking::H2(_stream, _body, _response, connection), _) => {
            connection.abort();
            None
        }
    }
}

async fn every_way(moment: Moment, upstream_h2: bool) {
    // One permit: a leak of it would refuse the next request.
    let more = "[limits]\nstreams = 1".to_owned();
    let stream = moment.setup().to_owned();
    let stage = Stage::start(Setup { upstream_h2, stream, more, ..Setup::default() }).await;
    for (n, way) in (1_u32..).zip(WAYS) {
        let what = format!("{way:?} {moment:?} upstream h2 {upstream_h2}");
        let asking = match way {
            Way::H1Fin | Way::H1Rst => ask_h1(&stage, moment).await,
            Way::H2Reset | Way::H2Disconnect => ask_h2(&stage, moment).await,
        };
        let left = leave(asking, way).await;
        let noticed = stage.sim.wait_for(|c| c.cancelled == u64::from(n), NOTICE).await;
        noticed.unwrap_or_else(|counts| panic!("{what}: not cancelled in time, {counts:?}"));
        let over =
            |m: &super::stage::Metrics| m.ended("client_closed") == f64::from(n) && m.live() == 0.0;
        let metrics = stage.until(&what, over).await;
        assert_eq!(metrics.sum("tidegate_streams_ended_total"), f64::from(n), "{what}");
        drop(left);
    }
    let answer = stage.client(Http::H1).await.stream(&[("sim-count", "3")]).await;
    assert_eq!((answer.status, answer.end), (200, End::Clean), "{moment:?}");
    assert_eq!(stage.sim.counts().requests, WAYS.len() as u64 + 1, "{moment:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_before_the_head_cancels_the_upstream() {
    every_way(Moment::BeforeHead, false).await;
    every_way(Moment::BeforeHead, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_after_the_head_cancels_the_upstream() {
    every_way(Moment::AfterHead, false).await;
    every_way(Moment::AfterHead, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_in_mid_stream_cancels_the_upstream() {
    every_way(Moment::MidStream, false).await;
    every_way(Moment::MidStream, true).await;
}
