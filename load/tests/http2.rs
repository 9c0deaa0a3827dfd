//! The same over HTTP/2, in the clear and over TLS: many streams on a connection, each checked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

mod stage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use rustls_pki_types::PrivatePkcs8KeyDer;
use stage::{event, in_quiet, run};
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

struct Server {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

fn serve(deed: Deed, tls: Option<TlsAcceptor>) -> Server {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&connections);
    runtime.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tcp.set_nodelay(true).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            match tls.clone() {
                None => drop(tokio::spawn(connection(tcp, deed))),
                Some(tls) => drop(tokio::spawn(async move {
                    connection(tls.accept(tcp).await.unwrap(), deed).await;
                })),
            }
        }
    });
    Server { address, connections, _runtime: runtime }
}

async fn connection(io: impl AsyncRead + AsyncWrite + Unpin, deed: Deed) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            next = connection.accept() => match next {
                Some(Ok((request, respond))) => drop(streams.spawn(answer(request, respond, deed))),
                _ => return,
            },
            Some(_) = streams.join_next(), if deed == Deed::Cut => return,
        }
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    deed: Deed,
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
        Deed::Good | Deed::Coalesce => &[1, 2, 3, 4, 5],
        Deed::Lose => &[1, 2, 4, 5],
        Deed::Reset | Deed::NoDone | Deed::Cut => &[1, 2, 3],
        Deed::Busy => &[],
        Deed::Endless => &[],
    };
    if deed == Deed::Endless {
        let mut number = 1;
        while put(&mut send, event(id, number)).await {
            number += 1;
        }
        return;
    }
    if deed == Deed::Coalesce {
        let three: String = (2..=4).map(|number| event(id, number)).collect();
        for text in [event(id, 1), three, event(id, 5)] {
            put(&mut send, text).await;
        }
    } else {
        for &number in numbers {
            put(&mut send, event(id, number)).await;
        }
    }
    match deed {
        Deed::Good | Deed::Lose | Deed::Coalesce => {
            let _ = send.send_data(Bytes::from("data: [DONE]\n\n"), true);
        }
        Deed::NoDone | Deed::Busy => drop(send.send_data(Bytes::new(), true)),
        Deed::Reset => send.send_reset(h2::Reason::INTERNAL_ERROR),
        // Its drop would reset the stream before the connection goes.
        Deed::Cut => std::mem::forget(send),
        Deed::Endless => {}
    }
}

/// One DATA frame, then a rest; false if the client has gone.
async fn put(send: &mut SendStream<Bytes>, text: String) -> bool {
    let sent = send.send_data(Bytes::from(text), false).is_ok();
    tokio::time::sleep(Duration::from_millis(20)).await;
    sent
}

fn load(deed: Deed, line: &str) -> (stage::Run, u64) {
    let server = serve(deed, None);
    let run = run(&format!("http://{}/v1/x", server.address), &format!("--http 2 {line}"));
    (run, server.connections.load(Ordering::Relaxed))
}

#[test]
fn streams_share_connections_as_told() {
    in_quiet(|| {
        let (run, connections) = load(Deed::Good, "-n 25 --per-connection 10 --count 5");
        assert_eq!((run.code, connections), (0, 3), "{}", run.said);
        run.only("ends", &[("done", 25)]);
        assert_eq!(run.at("/events/chunks"), 125);
        assert_eq!(run.at("/latency_us/relay/count"), 125);
        let interval = run.at("/latency_us/interval/p50");
        assert!((19_000..26_000).contains(&interval), "{interval}");
        let (run, connections) =
            load(Deed::Good, "-n 20 --per-connection 5 --count 5 --processes 2");
        assert_eq!((run.at("/ends/done"), connections), (20, 4));
    });
}

#[test]
fn faults_and_ends_are_caught() {
    in_quiet(|| {
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
    });
}

#[test]
fn holds_aborts_and_lagging_readers_work_on_shared_connections() {
    in_quiet(|| {
        let line = "-n 12 --stalled 3 --slow-readers 3 --read-rate 100 --hold 1s --interval 20ms";
        let (run, connections) = load(Deed::Endless, line);
        assert_eq!((run.code, connections), (0, 1));
        run.only("ends", &[("aborted", 12)]);
        // Six streams of 50 events per second are measured.
        let measured = run.at("/latency_us/relay/count");
        assert!((240..=330).contains(&measured), "{measured}");
        let (run, _) = load(Deed::Endless, "-n 10 --abort-share 1 --abort-within 300ms");
        run.only("ends", &[("aborted", 10)]);
        let (run, _) = load(Deed::Reset, "-n 4 --stalled 4 --hold 5s");
        run.only("ends", &[("reset", 4)]);
        assert_eq!(run.at("/streams/stalled_cut"), 4);
    });
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
