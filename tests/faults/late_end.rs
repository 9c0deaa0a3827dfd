//! An HTTP/2 upstream whose answer of known length is all there before the frame that ends it.

use bytes::Bytes;
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
