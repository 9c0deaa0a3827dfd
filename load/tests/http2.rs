//! The same over HTTP/2, in the clear and over TLS: many streams on a connection, each checked.
//!
//! The server goes on when the tool has read an event, which the answers to its PINGs tell.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

mod stage;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, SendStream};
use rustls_pki_types::PrivatePkcs8KeyDer;
use stage::truth::{self, Reading};
use stage::{event, now_ns, run};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the server does with each stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Five events and the end mark.
    Good,
    /// Number 3 is missing.
    Lose,
    /// Numbers 2 to 4 in one DATA frame.
    Coalesce,
    /// RST_STREAM after three events.
    Reset,
    /// A clean end after three events.
    NoDone,
    /// The connection goes away after three events.
    Cut,
    /// 429.
    Busy,
    /// Event after event.
    Endless,
}

/// What the tool has read.
type Reads = Arc<Mutex<Vec<Reading>>>;

struct Server {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    reads: Reads,
    gone: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

fn serve(deed: Deed, tls: Option<TlsAcceptor>) -> Server {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU64::new(0));
    let reads = Reads::default();
    let gone = Arc::new(AtomicU64::new(u64::MAX));
    let (count, record, ends) = (Arc::clone(&connections), Arc::clone(&reads), Arc::clone(&gone));
    runtime.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tcp.set_nodelay(true).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let (reads, gone) = (Arc::clone(&record), Arc::clone(&ends));
            match tls.clone() {
                None => drop(tokio::spawn(connection(tcp, deed, reads, gone))),
                Some(tls) => drop(tokio::spawn(async move {
                    connection(tls.accept(tcp).await.unwrap(), deed, reads, gone).await;
                })),
            }
        }
    });
    Server { address, connections, reads, gone, _runtime: runtime }
}

async fn connection(
    io: impl AsyncRead + AsyncWrite + Unpin,
    deed: Deed,
    reads: Reads,
    gone: Arc<AtomicU64>,
) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    let pings = connection.ping_pong().unwrap();
    let teller = Arc::new(Teller { pings: tokio::sync::Mutex::new(pings), reads, gone });
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            next = connection.accept() => match next {
                Some(Ok((request, respond))) => {
                    streams.spawn(answer(request, respond, deed, Arc::clone(&teller)));
                }
                _ => return,
            },
            Some(_) = streams.join_next(), if deed == Deed::Cut => return,
        }
    }
}

/// Tells when the tool has read what was sent on a connection.
struct Teller {
    pings: tokio::sync::Mutex<PingPong>,
    reads: Reads,
    /// When the first stream was found to have gone.
    gone: Arc<AtomicU64>,
}

impl Teller {
    /// Returns when what was sent before has been read; false if the client has gone.
    ///
    /// The first PING may overtake the frame. The second's answer tells that the tool's connection
    /// has taken it, the third's that the stream, which has its turn after the connection, has too.
    async fn until_read(&self) -> bool {
        let mut pings = self.pings.lock().await;
        for _ in 0..3 {
            if pings.ping(Ping::opaque()).await.is_err() {
                return false;
            }
        }
        true
    }

    /// One DATA frame that is then read by itself; false if the client has gone.
    async fn frame(&self, send: &mut SendStream<Bytes>, text: String) -> bool {
        send.send_data(Bytes::from(text), false).is_ok() && self.until_read().await
    }

    /// One event, and a rest.
    async fn event(&self, send: &mut SendStream<Bytes>, stream: u64, number: u64) -> bool {
        let from = now_ns();
        let read = self.frame(send, event(stream, number)).await;
        if read {
            self.reads.lock().unwrap().push(Reading { stream, number, from, to: now_ns() });
        } else {
            self.gone.fetch_min(now_ns(), Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        read
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    deed: Deed,
    teller: Arc<Teller>,
) {
    let id: u64 = request.headers()["sim-stream"].to_str().unwrap().parse().unwrap();
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let status = if deed == Deed::Busy { 429 } else { 200 };
    let head = http::Response::builder().status(status).header("content-type", "text/event-stream");
    let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
    let numbers: &[u64] = match deed {
        Deed::Good => &[1, 2, 3, 4, 5],
        Deed::Lose => &[1, 2, 4, 5],
        Deed::Reset | Deed::NoDone | Deed::Cut => &[1, 2, 3],
        Deed::Busy | Deed::Coalesce | Deed::Endless => &[],
    };
    for &number in numbers {
        teller.event(&mut send, id, number).await;
    }
    match deed {
        Deed::Coalesce => {
            let three: String = (2..=4).map(|number| event(id, number)).collect();
            for text in [event(id, 1), three, event(id, 5)] {
                teller.frame(&mut send, text).await;
            }
            let _ = send.send_data(Bytes::from("data: [DONE]\n\n"), true);
        }
        Deed::Good | Deed::Lose => {
            let _ = send.send_data(Bytes::from("data: [DONE]\n\n"), true);
        }
        Deed::NoDone | Deed::Busy => drop(send.send_data(Bytes::new(), true)),
        Deed::Reset => send.send_reset(h2::Reason::INTERNAL_ERROR),
        // Its drop would reset the stream before the connection goes.
        Deed::Cut => std::mem::forget(send),
        Deed::Endless => {
            let mut number = 1;
            while teller.event(&mut send, id, number).await {
                number += 1;
            }
        }
    }
}

/// A run over HTTP/2 and its server.
fn load(deed: Deed, line: &str) -> (stage::Run, Server) {
    let server = serve(deed, None);
    (run(&format!("http://{}/v1/x", server.address), &format!("--http 2 {line}")), server)
}

impl Server {
    fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    fn reads(&self) -> Vec<Reading> {
        self.reads.lock().unwrap().clone()
    }
}

#[test]
fn streams_share_connections_as_told() {
    let (run, server) = load(Deed::Good, "-n 25 --per-connection 10 --count 5");
    assert_eq!((run.code, server.connections()), (0, 3), "{}", run.said);
    let reads = server.reads();
    run.only("ends", &[("done", 25)]);
    assert_eq!((run.at("/events/chunks"), run.at("/coalesced/chunks")), (125, 0));
    run.median_is("/latency_us/relay", &truth::delays(&reads, 0.0));
    run.median_is("/latency_us/interval", &truth::intervals(&reads));
    let (run, server) = load(Deed::Good, "-n 20 --per-connection 5 --count 5 --processes 2");
    assert_eq!((run.at("/ends/done"), server.connections()), (20, 4));
}

#[test]
fn faults_and_ends_are_caught() {
    let (run, _) = load(Deed::Lose, "-n 6 --count 5");
    run.only("sequence", &[("lost", 6)]);
    assert_eq!(run.code, 2);
    for (deed, end) in [(Deed::Reset, "reset"), (Deed::NoDone, "no_done"), (Deed::Cut, "cut")] {
        let (run, _) = load(deed, "-n 6 --per-connection 1");
        run.only("ends", &[(end, 6)]);
        run.only("sequence", &[]);
    }
    let (run, _) = load(Deed::Busy, "-n 4");
    run.only("failed", &[("status", 4)]);
    assert_eq!(run.json["statuses"], serde_json::json!({"429": 4}));
    let (run, _) = load(Deed::Coalesce, "-n 6 --count 5");
    assert_eq!((run.at("/coalesced/chunks"), run.code), (18, 0));
    assert_eq!(run.json["marked"], serde_json::json!(["coalesced"]));
}

#[test]
fn holds_aborts_and_lagging_readers_work_on_shared_connections() {
    let line = "-n 12 --stalled 3 --slow-readers 3 --read-rate 100 --hold 1s --interval 20ms";
    let (run, server) = load(Deed::Endless, line);
    assert_eq!((run.code, server.connections()), (0, 1));
    let mut reads = server.reads();
    run.only("ends", &[("aborted", 12)]);
    // The six streams that came after the lagging ones are measured.
    let mut ids: Vec<u64> = reads.iter().map(|read| read.stream).collect();
    ids.sort_unstable();
    ids.dedup();
    reads.retain(|read| ids[6..].contains(&read.stream));
    let window = run.json["rate"]["window_s"].as_f64().unwrap();
    let longest = (window * 1e9) as u64 + 1_000_000;
    let end = server.gone.load(Ordering::Relaxed).min(now_ns());
    let (fewest, most) = truth::in_a_window(&reads, 1_000_000_000, longest, end);
    let measured = run.at("/latency_us/relay/count");
    let allowed = fewest.saturating_sub(6)..=most + 6;
    assert!(allowed.contains(&measured), "{measured} of {allowed:?}");
    let (run, _) = load(Deed::Endless, "-n 10 --abort-share 1 --abort-within 300ms");
    run.only("ends", &[("aborted", 10)]);
    let (run, _) = load(Deed::Reset, "-n 4 --stalled 4 --hold 5s");
    run.only("ends", &[("reset", 4)]);
    assert_eq!(run.at("/streams/stalled_cut"), 4);
}

#[test]
fn tls_is_verified_against_the_given_ca() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let server = serve(Deed::Good, Some(TlsAcceptor::from(Arc::new(config))));
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let url = format!("https://{}/v1/x", server.address);
    let good = run(&url, &format!("--http 2 -n 5 --count 5 --ca {}", ca.display()));
    assert_eq!((good.code, good.at("/ends/done")), (0, 5), "{}", good.said);
    let any = run(&url, "--http 2 -n 5 --count 5 --insecure");
    assert_eq!(any.at("/ends/done"), 5);
    let none = run(&url, "--http 2 -n 5");
    none.only("failed", &[("handshake", 5)]);
}
