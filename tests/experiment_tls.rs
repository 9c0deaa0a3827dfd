//! What a TLS client's idle connection costs in memory, and what tokio-rustls would cost instead:
//! measured, so that the decision in docs/ARCHITECTURE.md can be made again when rustls,
//! tokio-rustls or aws-lc change.
//!
//! Each way opens many connections over pipes in memory, exchanges a request and some events, and
//! polls for more, as a gateway does that watches for its client's departure. Then all server ends
//! are dropped while the clients' stay: what that gives back is what they held. C's heap is counted
//! too: aws-lc keeps its keys there, whatever Rust's allocator is.
//! `cargo test --test experiment_tls -- --nocapture` prints the figures.
#![cfg(target_env = "gnu")]

mod stage;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, ServerConnection};
use rustls::{CipherSuite, ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use rustls_pki_types::ServerName;
use stage::alloc::{self, Counting};
use tidegate::config::Tls;
use tidegate::server::tls::server_config;
use tidegate::server::tls_stream::{Acceptor, TlsStream};
use tidegate::{sim, upstream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is live at one moment.
#[derive(Clone, Copy)]
struct Reading {
    /// Asked for by Rust on this thread.
    rust: i64,
    /// glibc's blocks, Rust's and C's, with what it adds to each.
    all: i64,
}

fn read() -> Reading {
    Reading { rust: alloc::thread().live_bytes, all: glibc::live_bytes() }
}

/// The only report of what C code holds.
mod glibc {
    #[repr(C)]
    struct Mallinfo2 {
        before: [usize; 7],
        /// Bytes in blocks that are not free.
        uordblks: usize,
        after: [usize; 2],
    }

    #[allow(unsafe_code, reason = "a C function has to be declared")]
    mod declared {
        unsafe extern "C" {
            // SAFETY: takes nothing, locks what it reads; the struct is that of malloc.h.
            pub(super) safe fn mallinfo2() -> super::Mallinfo2;
        }
    }

    pub(super) fn live_bytes() -> i64 {
        declared::mallinfo2().uordblks as i64
    }
}

/// What rustls' `read_tls` makes room for before every read.
const READ_BUFFER: f64 = 4096.0;
/// Two directions of AES-256 with the tables of GCM; less would mean that C's heap is not seen.
const LEAST_KEYS: f64 = 512.0;
/// What a connection may hold.
const UNBUFFERED_MOST: f64 = 4000.0;
const CONNECTIONS: usize = 200;
/// Fills the session cache of a configuration: it holds 256, and each client leaves two.
const WARM_UP: usize = 130;
const REQUEST: &[u8] = &[b'q'; 2000];
const EVENT: &[u8] = &[b'e'; 240];
const EVENTS: usize = 5;

/// C's heap is the whole process's: one measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(Duration::from_secs(120), future).await })
        .expect("the experiment is done within two minutes")
}

/// The project's own listener configuration, and clients that trust its certificate.
struct Ends {
    server: ServerConfig,
    client: ClientConfig,
    _files: tempfile::TempDir,
}

impl Ends {
    fn new() -> Ends {
        let made = sim::make_certificate(&["localhost"]).expect("a certificate");
        let files = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| -> PathBuf {
            let path = files.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let ca = write("ca.pem", &made.ca_pem);
        let (cert, key) = (write("chain.pem", &made.chain_pem), write("key.pem", &made.key_pem));
        let server = server_config(&Tls { cert, key, client_ca: None }).expect("usable files");
        let roots = RootCertStore::empty();
        let client = upstream::tls::ClientTls::new(&roots, Some(&ca), None);
        let client = client.expect("a usable file").config.clone();
        let (server, mut client) = (Arc::unwrap_or_clone(server), Arc::unwrap_or_clone(client));
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ends { server, client, _files: files }
    }

    /// A client that has never been here.
    fn new_client(&self) -> ClientConfig {
        let mut client = self.client.clone();
        client.resumption = Resumption::in_memory_sessions(4);
        client
    }
}

type Client = tokio_rustls::client::TlsStream<DuplexStream>;

async fn connect(io: DuplexStream, config: ClientConfig) -> io::Result<Client> {
    let name = ServerName::try_from("localhost").expect("a DNS name");
    TlsConnector::from(Arc::new(config)).connect(name, io).await
}

/// A request and the first events, then the server looks whether its client is still there.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(server: &mut S, client: &mut Client) {
    let asking = async {
        client.write_all(REQUEST).await.expect("a connection");
        client.flush().await.expect("a connection");
        let mut events = vec![0; EVENTS * EVENT.len()];
        client.read_exact(&mut events).await.expect("all events");
        assert!(events.chunks(EVENT.len()).all(|event| event == EVENT), "the events");
    };
    let answering = async {
        let mut request = vec![0; REQUEST.len()];
        server.read_exact(&mut request).await.expect("the request");
        assert!(request == REQUEST, "the request");
        for _ in 0..EVENTS {
            server.write_all(EVENT).await.expect("a connection");
            server.flush().await.expect("a connection");
        }
    };
    tokio::join!(asking, answering);
    let mut more = [0; 64];
    let polled = Pin::new(server)
        .poll_read(&mut Context::from_waker(Waker::noop()), &mut ReadBuf::new(&mut more));
    assert!(polled.is_pending(), "nothing more has come");
}

/// What one connection holds, in bytes.
struct Held {
    all: f64,
    /// What Rust asked for; the rest is C's, and what glibc adds to every block.
    rust: f64,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Held { all, rust } = self;
        write!(f, "{all:>6.0} B = {rust:.0} Rust + {:.0} C and glibc", all - rust)
    }
}

/// One way: `accept` makes a server's end, `client` the configuration of a new client.
async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
    accept: impl AsyncFn(DuplexStream) -> io::Result<S>,
    client: impl Fn() -> ClientConfig,
    handshake: HandshakeKind,
) -> Held {
    let open = async || {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (server, client) = tokio::join!(accept(near), connect(far, client()));
        let (mut server, mut client) = (Box::new(server.expect("a server")), client.expect("one"));
        exchange(&mut *server, &mut client).await;
        (server, client)
    };
    // Whatever is made once or cached with a bound is made and full before anything is counted.
    for _ in 0..WARM_UP {
        open().await;
    }
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let (server, client) = open().await;
        assert_eq!(client.get_ref().1.handshake_kind(), Some(handshake));
        servers.push(server);
        clients.push(client);
    }
    let before = read();
    servers.clear();
    let after = read();
    let each = |before: i64, after: i64| (before - after) as f64 / CONNECTIONS as f64;
    Held { all: each(before.all, after.all), rust: each(before.rust, after.rust) }
}

/// tokio-rustls as the gateway uses it, `set` on each connection before its handshake.
async fn buffered(ends: &Ends, set: fn(&mut ServerConnection)) -> Held {
    let acceptor = TlsAcceptor::from(Arc::new(ends.server.clone()));
    let accept = async |io| acceptor.accept_with(io, set).await;
    hold(accept, || ends.new_client(), HandshakeKind::Full).await
}

/// The same with clients that have been here before.
async fn resumed(ends: &Ends) -> Held {
    let acceptor = TlsAcceptor::from(Arc::new(ends.server.clone()));
    hold(async |io| acceptor.accept(io).await, || ends.client.clone(), HandshakeKind::Resumed).await
}

/// As the gateway does it.
async fn unbuffered(ends: &Ends) -> Held {
    let acceptor = Acceptor::new(Arc::new(ends.server.clone()));
    hold(async |io| acceptor.accept(io).await, || ends.new_client(), HandshakeKind::Full).await
}

/// What a configuration's session cache holds in all, once it is full.
async fn session_cache() -> i64 {
    let mut ends = Ends::new();
    buffered(&ends, |_| ()).await;
    let before = read();
    ends.server.session_storage = Arc::new(NoServerSessionStorage {});
    before.all - read().all
}

async fn changed(change: impl FnOnce(&mut ServerConfig)) -> Held {
    let mut ends = Ends::new();
    change(&mut ends.server);
    buffered(&ends, |_| ()).await
}

fn only_suite(config: &mut ServerConfig, suite: CipherSuite) {
    let mut provider = upstream::tls::provider();
    Arc::make_mut(&mut provider).cipher_suites.retain(|offered| offered.suite() == suite);
    let versions = if suite.as_str().is_some_and(|name| name.starts_with("TLS13_")) {
        &rustls::version::TLS13
    } else {
        &rustls::version::TLS12
    };
    let certificates = config.cert_resolver.clone();
    *config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[versions])
        .expect("a suite of this version")
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
}

fn print(what: &str, held: &Held) {
    eprintln!("  {what:<36} {held}");
}

#[test]
fn an_idle_tls_connection_does_without_a_read_buffer() {
    let _alone = ALONE.lock();
    run(async {
        let ends = Ends::new();
        let as_is = buffered(&ends, |_| ()).await;
        let unbuffered = unbuffered(&ends).await;
        eprintln!("the server's end of an idle connection:");
        print("tokio-rustls", &as_is);
        let fixed = size_of::<tokio_rustls::server::TlsStream<DuplexStream>>();
        eprintln!("    of it the TlsStream {fixed} B, the read buffer {READ_BUFFER} B");
        print("the gateway's own TlsStream", &unbuffered);
        eprintln!("    of it the TlsStream {} B", size_of::<TlsStream<DuplexStream>>());
        eprintln!("tokio-rustls with one thing changed:");
        print(
            "set_buffer_limit 4096",
            &buffered(&ends, |tls| tls.set_buffer_limit(Some(4096))).await,
        );
        print("max_fragment_size 1024", &changed(|c| c.max_fragment_size = Some(1024)).await);
        print("send_tls13_tickets 0", &changed(|c| c.send_tls13_tickets = 0).await);
        let none = Arc::new(NoServerSessionStorage {});
        print("NoServerSessionStorage", &changed(|c| c.session_storage = none).await);
        print("a resumed session", &resumed(&ends).await);
        for suite in [
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        ] {
            let name = suite.as_str().expect("a known suite");
            print(name, &changed(|c| only_suite(c, suite)).await);
        }
        eprintln!("a full session cache, in all: {} B", session_cache().await);

        let saved = as_is.all - unbuffered.all;
        assert!((0.9..1.1).contains(&(saved / READ_BUFFER)), "not the read buffer: {saved} B");
        assert!(unbuffered.all < UNBUFFERED_MOST, "{unbuffered}");
        assert!(
            unbuffered.all - unbuffered.rust > LEAST_KEYS,
            "keys are not counted: {unbuffered}"
        );
    });
}
