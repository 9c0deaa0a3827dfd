//! Request bodies that are too large or too slow.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::time::Instant;

use super::stage::{self, Client, Http, Setup, Stage, soon};
use super::{nothing_left, refused};

const BODY: &str = "tidegate_rejections_total{limit=\"body\"}";

async fn with_limits(limits: &str, upstream_h2: bool) -> Stage {
    let more = format!("[limits]\n{limits}");
    Stage::start(Setup { more, upstream_h2, ..Setup::default() }).await
}

/// Sends `pieces` with a pause before each, and never the end; the answer's status and code.
async fn unended(client: &mut Client, length: Option<u64>, pieces: &[&[u8]]) -> (u16, String) {
    let length = length.map_or(String::new(), |length| length.to_string());
    match client {
        Client::H1(..) => {
            let framing = match length.as_str() {
                "" => "transfer-encoding: chunked\r\n".to_owned(),
                length => format!("content-length: {length}\r\n"),
            };
            client.raw(format!("POST /v1/x HTTP/1.1\r\nhost: g\r\n{framing}\r\n").as_bytes()).await;
            for piece in pieces {
                let size = format!("{:x}\r\n", piece.len());
                let chunk = [size.as_bytes(), piece, b"\r\n"].concat();
                client.raw(if length.is_empty() { &chunk } else { piece }).await;
            }
            let answer = client.answer().await;
            assert_eq!(answer.header("connection"), Some("close"));
            assert_eq!(client.remains().await, b"");
            (answer.status, stage::events::code_of(&answer.text()).expect("our error"))
        }
        Client::H2(sender) => {
            let mut request = Request::post("http://g/v1/x");
            if !length.is_empty() {
                request = request.header("content-length", length);
            }
            let mut sender = soon(sender.clone().ready()).await.expect("a ready connection");
            let (answer, mut stream) =
                sender.send_request(request.body(()).expect("valid"), false).expect("sent");
            for piece in pieces {
                // A stream that was answered meanwhile takes nothing.
                let _ = stream.send_data(Bytes::copy_from_slice(piece), false);
            }
            let (head, mut body) = soon(answer).await.expect("an answer").into_parts();
            let mut text = Vec::new();
            while let Some(Ok(piece)) = soon(body.data()).await {
                text.extend_from_slice(&piece);
            }
            let text = String::from_utf8(text).expect("JSON");
            (head.status.as_u16(), stage::events::code_of(&text).expect("our error"))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_says_it_is_too_large_is_refused_unread() {
    for http in [Http::H1, Http::H2] {
        let stage = with_limits("body = \"1KiB\"", false).await;
        let mut client = stage.client(http).await;
        let told = unended(&mut client, Some(1025), &[]).await;
        assert_eq!(told, (413, "body_too_large".to_owned()), "{http:?}");
        let counts = stage.sim.counts();
        assert_eq!((counts.connections, counts.requests), (0, 0), "{http:?}");
        assert_eq!(nothing_left(&stage).await.get(BODY), 1.0);
        let exactly = vec![b'x'; 1024];
        let answer = stage.client(http).await.ask("POST", "/v1/echo", &[], exactly).await;
        assert_eq!(answer.status, 200, "{http:?}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_turns_out_too_large_early_never_reaches_the_upstream() {
    for http in [Http::H1, Http::H2] {
        let stage = with_limits("body = \"1KiB\"", false).await;
        let mut client = stage.client(http).await;
        let told = unended(&mut client, None, &[&[b'x'; 1000], &[b'y'; 25]]).await;
        assert_eq!(told, (413, "body_too_large".to_owned()), "{http:?}");
        let counts = stage.sim.counts();
        assert_eq!((counts.connections, counts.requests), (0, 0), "{http:?}");
        nothing_left(&stage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_turns_out_too_large_late_is_never_a_whole_one_upstream() {
    for upstream_h2 in [false, true] {
        for http in [Http::H1, Http::H2] {
            let what = format!("{http:?} upstream h2 {upstream_h2}");
            let stage = with_limits("body = \"100KiB\"", upstream_h2).await;
            let mut client = stage.client(http).await;
            let told = unended(&mut client, None, &[[b'x'; 30_000].as_slice(); 4]).await;
            assert_eq!(told, (413, "body_too_large".to_owned()), "{what}");
            let given_up = stage.sim.wait_for(|c| c.live == 0, stage::PATIENCE).await;
            given_up.unwrap_or_else(|counts| panic!("{what}: {counts:?}"));
            assert_eq!(stage.sim.counts().completed, 0, "{what}");
            assert!(stage.sim.requests().iter().all(|seen| !seen.body_complete), "{what}");
            assert_eq!(nothing_left(&stage).await.get(BODY), 1.0, "{what}");
        }
    }
}

/// Sends a byte every 50 ms until something comes; the answer's status and how long that took.
async fn drips(client: &mut Client) -> (u16, Duration) {
    let begun = Instant::now();
    let pause = Duration::from_millis(50);
    match client {
        Client::H1(..) => {
            client.raw(b"POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: 60000\r\n\r\n").await;
            let Client::H1(socket, ahead) = client else { panic!("HTTP/1.1") };
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut every = tokio::time::interval(pause);
            loop {
                tokio::select! {
                    read = socket.read_buf(ahead) => break assert!(read.expect("an answer") > 0),
                    _ = every.tick() => socket.write_all(b"y").await.expect("open"),
                }
            }
            (client.answer().await.status, begun.elapsed())
        }
        Client::H2(sender) => {
            let request = Request::post("http://g/v1/x").body(()).expect("valid");
            let mut sender = soon(sender.clone().ready()).await.expect("a ready connection");
            let (mut answer, mut stream) = sender.send_request(request, false).expect("sent");
            let mut every = tokio::time::interval(pause);
            loop {
                tokio::select! {
                    answer = &mut answer => {
                        let status = answer.expect("an answer").status().as_u16();
                        return (status, begun.elapsed());
                    }
                    _ = every.tick() => {
                        let _ = stream.send_data(Bytes::from_static(b"y"), false);
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_takes_too_long_is_refused_with_408() {
    let least = Duration::from_secs(1) - Duration::from_millis(200);
    for http in [Http::H1, Http::H2] {
        let stage = with_limits("body_time = \"1s\"\nbody_rate = \"0B\"", false).await;
        let mut client = stage.client(http).await;
        let (status, took) = soon(Box::pin(drips(&mut client))).await;
        assert_eq!(status, 408, "{http:?}");
        assert!(took > least && took < Duration::from_secs(4), "{http:?}: {took:?}");
        assert_eq!(stage.sim.counts().connections, 0, "{http:?}");
        assert_eq!(nothing_left(&stage).await.get(BODY), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_comes_too_slowly_is_refused_with_408() {
    let grace = tidegate::limits::BODY_RATE_GRACE;
    let slow = async |http: Http| {
        let stage = with_limits("body_rate = \"256B\"", false).await;
        let mut client = stage.client(http).await;
        let (status, took) = soon(Box::pin(drips(&mut client))).await;
        assert_eq!(status, 408, "{http:?}");
        assert!(took + Duration::from_millis(200) > grace, "{http:?}: {took:?}");
        assert!(took < grace * 2, "{http:?}: {took:?}");
        assert_eq!(stage.sim.counts().connections, 0, "{http:?}");
        nothing_left(&stage).await;
    };
    tokio::join!(slow(Http::H1), slow(Http::H2));
}

/// The upstream takes nothing of a large body for longer than the client has for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_not_blamed_for_an_upstream_that_does_not_read() {
    for upstream_h2 in [false, true] {
        let stage = with_limits("body_time = \"1s\"", upstream_h2).await;
        let mut client = stage.client(Http::H1).await;
        let body = vec![b'x'; 16 << 20];
        let fields = [("sim-read-delay", "3s")];
        let answer = client.ask("POST", "/v1/echo", &fields, body).await;
        assert_eq!(answer.status, 200, "upstream h2 {upstream_h2}: {}", answer.text());
        assert_eq!(stage.sim.requests()[0].body_length, 16 << 20);
        nothing_left(&stage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_on_sending_still_hears_that_it_is_too_much() {
    let stage = with_limits("body = \"1MiB\"", false).await;
    let mut client = stage.client(Http::H1).await;
    let answer = client.ask("POST", "/v1/x", &[], vec![b'x'; (1 << 20) + 100_000]).await;
    refused(&answer, 413, "body_too_large");
    assert_eq!(stage.sim.counts().requests, 0);
    nothing_left(&stage).await;
}
