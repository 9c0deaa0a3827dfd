//! Ends that come late: after the last byte of a known length, or, unclean, long after the bytes
//! before them have reached the client.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::stage::{End, Http, Setup, Stage, soon};

const BODY: &str = r#"{"object":"list","data":[]}"#;

/// Answers one request, and ends the answer only when told; gives whether it was reset by then.
async fn upstream(listener: TcpListener, go_on: oneshot::Receiver<()>) -> bool {
    let (tcp, _) = listener.accept().await.expect("the gateway");
    let mut connection = h2::server::handshake(tcp).await.expect("a handshake");
    let (_request, mut respond) = connection.accept().await.expect("one").expect("a request");
    let head = http::Response::builder()
        .header("content-type", "application/json")
        .header("content-length", BODY.len());
    let mut stream = respond.send_response(head.body(()).expect("a head"), false).expect("sent");
    stream.send_data(Bytes::from_static(BODY.as_bytes()), false).expect("sent");
    tokio::select! {
        _ = connection.accept() => panic!("nothing more is asked"),
        told = go_on => told.expect("told"),
    }
    let reset = std::future::poll_fn(|cx| std::task::Poll::Ready(stream.poll_reset(cx).is_ready()));
    let reset = reset.await;
    if !reset {
        stream.send_data(Bytes::new(), true).expect("sent");
    }
    drop(stream);
    reset
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_known_length_is_complete_with_its_last_byte() {
    for http in [Http::H1, Http::H2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let more = format!(
            "[[upstream]]\nname = \"late\"\nurls = [\"http://127.0.0.1:{port}\"]\nhttp = \"2\"\n\
             [[route]]\npath = \"/late/{{*rest}}\"\nupstream = \"late\"\n"
        );
        let stage = Stage::start(Setup { more, ..Setup::default() }).await;
        let (tell, told) = oneshot::channel();
        let upstream = tokio::spawn(upstream(listener, told));
        let answer = stage.client(http).await.ask("GET", "/late/models", &[], "").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, BODY), "{http:?}");
        assert_eq!(answer.end, End::Clean, "{http:?}");
        let ended = "tidegate_streams_ended_total{upstream=\"late\",reason=\"completed\"}";
        stage.until("completed", |m| m.get(ended) == 1.0 && m.live() == 0.0).await;
        tell.send(()).expect("the upstream waits");
        assert!(!soon(upstream).await.expect("no panic"), "{http:?}: cancelled what was wanted");
    }
}

/// Answers one request with `head` and `sent`, and breaks off when told.
async fn breaks_off(
    listener: TcpListener,
    head: &'static str,
    sent: &'static str,
    go_on: oneshot::Receiver<()>,
) {
    let (mut tcp, _) = listener.accept().await.expect("the gateway");
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert!(tcp.read_buf(&mut request).await.expect("a request") > 0);
    }
    let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{sent}");
    tcp.write_all(answer.as_bytes()).await.expect("the gateway takes it");
    go_on.await.expect("told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_breaks_off_after_all_was_flushed_is_seen_at_once() {
    let json = ("content-type: application/json\r\ncontent-length: 1000", "{\"object\":\"list\"");
    let own_error = (
        "content-type: text/event-stream\r\nconnection: close",
        "data: {\"a\":1}\n\ndata: {\"error\":{\"message\":\"their own\"}}\n\n",
    );
    for (head, sent) in [json, own_error] {
        for http in [Http::H1, Http::H2] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = listener.local_addr().expect("bound").port();
            let more = format!(
                "[[upstream]]\nname = \"late\"\nurls = [\"http://127.0.0.1:{port}\"]\n\
                 [[route]]\npath = \"/late/{{*rest}}\"\nupstream = \"late\"\nfamily = \"openai\"\n"
            );
            // So long that the cut cannot be taken for that of a client that stalls.
            let stream = "client_stall = \"1h\"".to_owned();
            let stage = Stage::start(Setup { more, stream, ..Setup::default() }).await;
            let (tell, told) = oneshot::channel();
            let upstream = tokio::spawn(breaks_off(listener, head, sent, told));
            let mut client = stage.client(http).await;
            let mut live = soon(client.start("GET", "/late/x", &[], "").await.head()).await;
            live.until(sent).await;
            tell.send(()).expect("the upstream waits");
            let began = Instant::now();
            let answer = live.rest().await;
            assert_eq!((answer.text().as_str(), &answer.end), (sent, &End::Cut), "{http:?}");
            assert!(began.elapsed() < Duration::from_secs(5), "{http:?}: {:?}", began.elapsed());
            soon(upstream).await.expect("no panic");
        }
    }
}
