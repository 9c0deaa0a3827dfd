//! What the simulator accepts, refuses and records of requests.

use std::future::poll_fn;

use bytes::Bytes;
use tidegate::sim::{Behaviour, Kind, Options, Sim, expected_body};

use crate::client::*;

#[tokio::test]
async fn requests_are_recorded_as_they_came() {
    let sim = start(quick(1)).await;
    let mut client = Client::connect(sim.addr()).await;
    client.ask(&post("/v1/x?a=b", &[("X-Case", "Value")], "hello")).await;
    client.ask(&post("/v1/y", &[], &"z".repeat(5000))).await;
    let h2 = connect2(sim.addr()).await;
    ask2(&h2, post2("/v1/z", &[]), "").await;
    let seen = sim.requests();
    assert_eq!(seen.len(), 3);
    assert_eq!((seen[0].method.as_str(), seen[0].path_and_query.as_str()), ("POST", "/v1/x?a=b"));
    assert_eq!((seen[0].header("x-case"), seen[0].version), (Some("Value"), "HTTP/1.1"));
    assert_eq!((seen[0].body_length, seen[0].body_prefix.as_slice()), (5, b"hello".as_slice()));
    assert_eq!((seen[1].body_length, seen[1].body_prefix.len()), (5000, 4096));
    assert_eq!((seen[2].version, seen[2].header(":authority")), ("HTTP/2", Some("sim")));
    assert_eq!(seen.iter().map(|s| s.connection).collect::<Vec<_>>(), [1, 1, 2]);
    assert!(seen.iter().all(|s| s.body_complete));
    for _ in 0..70 {
        client.ask(&get("/v1/models")).await;
    }
    assert_eq!(sim.requests().len(), 64);
}

#[tokio::test]
async fn chunked_bodies_are_read_at_every_cut() {
    let sim = start(quick(1)).await;
    let request = b"POST /v1/files HTTP/1.1\r\nhost: sim\r\ntransfer-encoding: chunked\r\n\r\n\
        5;x=y\r\nhello\r\n0A\r\n, world!!!\r\n0\r\nx-trailer: 1\r\n\r\n";
    let mut client = Client::connect(sim.addr()).await;
    for cut in 1..request.len() {
        client.send(&request[..cut]).await;
        tokio::task::yield_now().await;
        let reply = client.ask(&request[cut..]).await;
        assert_eq!(reply.json()["body_bytes"], 15, "cut at {cut}");
    }
    assert_eq!(sim.requests()[0].body_prefix, b"hello, world!!!");
    assert_eq!(sim.counts().connections, 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let sim = start(quick(4)).await;
    let mut all = post(CHAT, &[("sim-interval", "5ms")], STREAM);
    all.extend(get("/v1/models"));
    all.extend(post("/v1/files", &[], "abc"));
    let mut client = Client::connect(sim.addr()).await;
    client.send(&all).await;
    let stream = soon(client.reply()).await;
    assert_eq!(stream.body, expected_body(&quick(4), Kind::Chat, 7, "m", false));
    assert_eq!(soon(client.reply()).await.json()["object"], "list");
    assert_eq!(soon(client.reply()).await.json()["body_bytes"], 3);
}

#[tokio::test]
async fn a_large_body_is_counted_on_both_protocols() {
    const LENGTH: usize = 12 << 20;
    let sim = start(quick(1)).await;
    let mut client = Client::connect(sim.addr()).await;
    let head = format!("POST /v1/files HTTP/1.1\r\nhost: sim\r\ncontent-length: {LENGTH}\r\n\r\n");
    client.send(head.as_bytes()).await;
    let reply = client.ask(&vec![b'x'; LENGTH]).await;
    assert_eq!(reply.json()["body_bytes"], LENGTH);
    let h2 = connect2(sim.addr()).await;
    let mut ready = soon(h2.ready()).await.unwrap();
    let (response, mut stream) = ready.send_request(post2("/v1/files", &[]), false).unwrap();
    // h2 queues what the windows do not take yet.
    stream.send_data(Bytes::from(vec![b'x'; LENGTH]), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    let data = soon(poll_fn(|cx| body.poll_data(cx))).await.unwrap().unwrap();
    let echo: serde_json::Value = serde_json::from_slice(&data).unwrap();
    assert_eq!(echo["body_bytes"], LENGTH);
    assert_eq!(echo["body_fnv1a64"], reply.json()["body_fnv1a64"]);
}

#[tokio::test]
async fn expect_continue_is_answered_before_the_body() {
    let sim = start(quick(1)).await;
    let mut client = Client::connect(sim.addr()).await;
    let head = b"POST /v1/files HTTP/1.1\r\nhost: sim\r\nexpect: 100-continue\r\n\
        content-length: 3\r\n\r\n";
    client.send(head).await;
    assert_eq!(client.head().await.unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.ask(b"abc").await.json()["body_bytes"], 3);
    // A client that did not wait gets no interim answer.
    let both = [head.as_slice(), b"abc"].concat();
    assert_eq!(client.ask(&both).await.json()["body_bytes"], 3);
}

#[tokio::test]
async fn malformed_requests_are_refused_and_counted() {
    let sim = start(quick(1)).await;
    let bad: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\nhost: sim\n\n",
        b"POST / HTTP/1.1\r\nhost: s\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    ];
    for request in bad {
        let mut client = Client::connect(sim.addr()).await;
        let reply = client.ask(request).await;
        assert_eq!((reply.status(), reply.field("connection")), (400, Some("close")));
        assert_eq!(client.until(b"x").await, Err(Ended::Closed { complete: false }));
    }
    let counts = sim.counts();
    assert_eq!((counts.malformed, counts.requests, counts.live), (4, 1, 0));
}

#[tokio::test]
async fn old_and_closing_clients_get_a_close() {
    let sim = start(quick(2)).await;
    let expected = expected_body(&quick(2), Kind::Chat, 7, "m", false);
    let old = format!("POST {CHAT} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{STREAM}", STREAM.len());
    let reply = ask(&sim, old.as_bytes()).await;
    assert!(
        reply.head.starts_with("HTTP/1.0 200 OK") && reply.field("transfer-encoding").is_none()
    );
    assert_eq!((reply.body, reply.ended), (expected.clone(), Ended::Closed { complete: true }));
    let mut client = Client::connect(sim.addr()).await;
    let reply = client.ask(&post(CHAT, &[("connection", "close")], STREAM)).await;
    assert_eq!((reply.body, reply.ended), (expected, Ended::Framed(String::new())));
    assert_eq!(client.until(b"x").await, Err(Ended::Closed { complete: false }));
}

#[tokio::test]
async fn a_window_bounds_what_a_slow_reader_takes() {
    let options = Options {
        defaults: Behaviour { read_delay: std::time::Duration::from_secs(3600), ..quick(1) },
        window: Some(1000),
        ..Options::default()
    };
    let sim = Sim::start("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
    let h2 = connect2(sim.addr()).await;
    // The window comes with the settings, which an answer proves to have arrived.
    ask2(&h2, post2("/sim/counts", &[]), "").await;
    let mut ready = soon(h2.ready()).await.unwrap();
    let (_response, mut stream) = ready.send_request(post2("/v1/files", &[]), false).unwrap();
    stream.reserve_capacity(100_000);
    let room = soon(poll_fn(|cx| stream.poll_capacity(cx))).await.unwrap().unwrap();
    assert_eq!(room, 1000);
}
