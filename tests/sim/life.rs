//! Connections and streams over time: cancels, counts, many at once, TLS, start and stop.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tidegate::sim::{Behaviour, Counts, Kind, Options, Sim, Tls, expected_body, make_certificate};
use tokio::net::TcpStream;

use crate::client::*;

const SECOND: Duration = Duration::from_secs(1);

/// A stream that would go on for days.
fn endless() -> Behaviour {
    Behaviour { interval: Duration::from_secs(3600), ..quick(100) }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_at_once() {
    let sim = start(endless()).await;
    let mut client = Client::connect(sim.addr()).await;
    client.send(&post(CHAT, &[], STREAM)).await;
    client.until(b"\n\n").await.unwrap();
    drop(client);
    sim.wait_for(|c| c.cancelled == 1 && c.live == 0, SECOND).await.unwrap();

    let h2 = connect2(sim.addr()).await;
    let mut ready = soon(h2.ready()).await.unwrap();
    let (response, mut stream) = ready.send_request(post2(CHAT, &[]), false).unwrap();
    stream.send_data(Bytes::from(STREAM), true).unwrap();
    let body = soon(response).await.unwrap().into_body();
    drop((stream, body));
    sim.wait_for(|c| c.cancelled == 2 && c.live == 0, SECOND).await.unwrap();
}

/// Nothing is left to be sent then, so nothing was cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_after_the_last_byte_of_a_known_length_has_not_left() {
    let sim = start(quick(1)).await;
    for n in 1..=500 {
        let mut client = Client::connect(sim.addr()).await;
        // Byte by byte: the client's turn comes between the last byte and the end.
        let reply = client.ask(&post("/v1/echo", &[("sim-split", "byte")], "{}")).await;
        assert_eq!(reply.status(), 200);
        drop(client);
        sim.wait_for(|c| c.live == 0 && c.requests == n, SECOND).await.unwrap();
    }
    assert_eq!((sim.counts().completed, sim.counts().cancelled), (500, 0));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_or_without_reading_is_noticed() {
    let sim = start(endless()).await;
    let mut client = Client::connect(sim.addr()).await;
    client.send(&post(CHAT, &[("sim-first-byte", "1h")], STREAM)).await;
    sim.wait_for(|c| c.live == 1, SECOND).await.unwrap();
    drop(client);
    sim.wait_for(|c| c.cancelled == 1 && c.live == 0, SECOND).await.unwrap();

    // 100 events of 1 MiB do not fit into any socket buffer: the writer waits when we leave.
    let fields = [("sim-interval", "0"), ("sim-size", "1MiB")];
    let mut client = Client::connect(sim.addr()).await;
    client.send(&post(CHAT, &fields, STREAM)).await;
    client.until(b"\"role\":").await.unwrap();
    drop(client);
    sim.wait_for(|c| c.cancelled == 2 && c.live == 0, SECOND).await.unwrap();

    let tcp = TcpStream::connect(sim.addr()).await.unwrap();
    let (h2, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut ready = soon(h2.ready()).await.unwrap();
    let (response, mut stream) = ready.send_request(post2(CHAT, &fields), false).unwrap();
    stream.send_data(Bytes::from(STREAM), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    soon(poll_fn(|cx| body.poll_data(cx))).await.unwrap().unwrap();
    connection.abort();
    sim.wait_for(|c| c.cancelled == 3 && c.connections_live == 0, SECOND).await.unwrap();
}

#[tokio::test]
async fn a_body_that_never_ends_is_a_cancel() {
    let sim = start(quick(1)).await;
    let mut client = Client::connect(sim.addr()).await;
    client.send(b"POST /v1/files HTTP/1.1\r\nhost: sim\r\ncontent-length: 9\r\n\r\nabc").await;
    sim.wait_for(|c| c.live == 1, SECOND).await.unwrap();
    drop(client);
    sim.wait_for(|c| c.cancelled == 1 && c.live == 0, SECOND).await.unwrap();
    let seen = &sim.requests()[0];
    assert!(!seen.body_complete && seen.body_length == 3);
}

#[tokio::test]
async fn counts_are_served_and_zeroed_without_counting_themselves() {
    let sim = start(quick(1)).await;
    let mut client = Client::connect(sim.addr()).await;
    client.ask(&post(CHAT, &[], STREAM)).await;
    sim.wait_for(|c| c.completed == 1, SECOND).await.unwrap();
    let counts = client.ask(&get("/sim/counts")).await.json();
    assert_eq!((&counts["requests"], &counts["completed"]), (&1.into(), &1.into()));
    assert_eq!((&counts["connections_live"], &counts["live"]), (&1.into(), &0.into()));
    client.ask(&get("/sim/reset")).await;
    let left = Counts { connections_live: 1, ..Counts::default() };
    assert_eq!(sim.counts(), left);
    assert!(sim.requests().is_empty());
    client.ask(&get("/v1/models")).await;
    sim.reset();
    assert_eq!(sim.counts().requests, 0);
}

#[tokio::test]
async fn defaults_can_change_while_it_runs() {
    let sim = start(quick(1)).await;
    sim.set_defaults(Behaviour { status: Some(503), ..quick(1) });
    assert_eq!(ask(&sim, &post(CHAT, &[], STREAM)).await.status(), 503);
    sim.set_defaults(quick(1));
    assert_eq!(ask(&sim, &post(CHAT, &[], STREAM)).await.status(), 200);
}

#[tokio::test]
async fn two_thousand_streams_at_once_on_either_protocol() {
    const STREAMS: u32 = 2000;
    let sim = start(endless()).await;
    let start = Instant::now();
    let mut clients = Vec::new();
    for id in 0..STREAMS {
        let mut client = Client::connect(sim.addr()).await;
        let id = id.to_string();
        client
            .send(&post(
                CHAT,
                &[("sim-interval", "100ms"), ("sim-count", "3"), ("sim-stream", &id)],
                STREAM,
            ))
            .await;
        clients.push((id, client));
    }
    sim.wait_for(|c| c.requests == u64::from(STREAMS), Duration::from_secs(20)).await.unwrap();
    for (id, client) in &mut clients {
        let id: u64 = id.parse().unwrap();
        assert_eq!(client.reply().await.body, expected_body(&quick(3), Kind::Chat, id, "m", false));
    }
    let count = sim.counts();
    assert_eq!((count.completed, count.connections), (STREAMS.into(), STREAMS.into()));
    drop(clients);

    let h2 = connect2(sim.addr()).await;
    let fields = [("sim-interval", "100ms"), ("sim-count", "3")];
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (h2, request) = (h2.clone(), post2(CHAT, &fields));
            tokio::spawn(async move { ask2(&h2, request, STREAM).await.body })
        })
        .collect();
    let expected = expected_body(&quick(3), Kind::Chat, 7, "m", false);
    for stream in streams {
        assert_eq!(stream.await.unwrap(), expected);
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn tls_offers_both_protocols_under_its_own_ca() {
    let certificate = make_certificate(&["localhost", "127.0.0.1", "::1"]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.ca_pem.as_bytes()).unwrap()).unwrap();
    let options =
        Options { defaults: quick(3), tls: Some(Tls { certificate }), ..Options::default() };
    let sim = Sim::start("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let expected = expected_body(&quick(3), Kind::Chat, 7, "m", false);
    for (alpn, name) in [(&b"h2"[..], "localhost"), (b"http/1.1", "127.0.0.1"), (b"", "::1")] {
        let mut config = config.clone();
        if !alpn.is_empty() {
            config.alpn_protocols = vec![alpn.to_vec()];
        }
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tcp = TcpStream::connect(sim.addr()).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        let mut tls = soon(connector.connect(name, tcp)).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol().unwrap_or(b""), alpn);
        if alpn == b"h2" {
            let (h2, connection) = soon(h2::client::handshake(tls)).await.unwrap();
            tokio::spawn(connection);
            assert_eq!(ask2(&h2, post2(CHAT, &[]), STREAM).await.body, expected);
        } else {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let request =
                post(CHAT, &[("connection", "close"), ("sim-fault", "eof-delimited")], STREAM);
            soon(tls.write_all(&request)).await.unwrap();
            let mut bytes = Vec::new();
            // rustls fails this read where close_notify is missing.
            soon(tls.read_to_end(&mut bytes)).await.unwrap();
            assert!(bytes.ends_with(&expected));
        }
    }
}

#[tokio::test]
async fn protocols_can_be_switched_off() {
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let defaults = quick(1);
    let h1_only = Options { h2: false, defaults: defaults.clone(), ..Options::default() };
    let sim = Sim::start(listen, h1_only).await.unwrap();
    assert_eq!(ask(&sim, &get("/v1/models")).await.status(), 200);
    assert_eq!(ask(&sim, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.status(), 400);

    let h2_only = Options { h1: false, h2_max_streams: Some(3), defaults, ..Options::default() };
    let sim = Sim::start(listen, h2_only).await.unwrap();
    let h2 = connect2(sim.addr()).await;
    assert_eq!(ask2(&h2, post2(CHAT, &[]), STREAM).await.status.unwrap(), 200);
    assert_eq!(h2.current_max_send_streams(), 3);
    let reply = ask(&sim, &get("/v1/models")).await;
    assert!(reply.head.is_empty());

    let neither = Options { h1: false, h2: false, ..Options::default() };
    assert!(Sim::start(listen, neither).await.is_err());
}

#[tokio::test]
async fn a_slow_accept_delays_the_first_answer_only() {
    let options = Options {
        slow_accept: Duration::from_millis(150),
        defaults: quick(1),
        ..Options::default()
    };
    let sim = Sim::start("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
    let start = Instant::now();
    let mut client = Client::connect(sim.addr()).await;
    client.ask(&get("/v1/models")).await;
    assert!(start.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn dropping_it_ends_every_connection_and_the_listener() {
    let sim = start(endless()).await;
    let addr = sim.addr();
    let mut client = Client::connect(addr).await;
    client.send(&post(CHAT, &[], STREAM)).await;
    client.until(b"\n\n").await.unwrap();
    let h2 = connect2(addr).await;
    let mut ready = soon(h2.ready()).await.unwrap();
    let (response, _stream) = ready.send_request(post2(CHAT, &[]), false).unwrap();
    sim.wait_for(|c| c.live == 2, SECOND).await.unwrap();
    drop(sim);
    assert!(client.until(b"[DONE]").await.is_err());
    assert!(soon(response).await.is_err());
    assert!(TcpStream::connect(addr).await.is_err());
}

#[test]
fn it_runs_on_a_local_runtime_and_is_send() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let sim = send(send(start(quick(2))).await);
        let reply = ask(&sim, &post(CHAT, &[], STREAM)).await;
        assert_eq!(reply.body, expected_body(&quick(2), Kind::Chat, 7, "m", false));
        let h2 = connect2(sim.addr()).await;
        assert_eq!(ask2(&h2, post2(CHAT, &[]), STREAM).await.body, reply.body);
    });
}
