//! Upstreams that no connection leads to, and names whose addresses vanish or change.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tidegate::sim::{Behaviour, Certificate, Options, Sim, make_certificate};
use tidegate::upstream::resolve;
use tokio::net::TcpStream;

use crate::endpoints::sim;
use crate::scene::{Place, Scene, clear};
use crate::stage::client::{CHAT, STREAM};
use crate::stage::events::code_of;
use crate::stage::{Answer, End, Http};

/// What stands, or does not, at the places of this file.
pub(crate) struct Connects {
    refuses: Refusing,
    hole: BlackHole,
    silent: TcpListener,
    /// One with a certificate for `localhost`, one whose certificate has expired.
    secured: Sim,
    expired: Sim,
    /// Where a detour leads to.
    good: Sim,
    /// What a name leads to that cannot be resolved any more.
    known: Sim,
    /// What another name leads to first, and then.
    before: Sim,
    after: Sim,
    files: tempfile::TempDir,
}

/// A port that is taken, so that nobody else gets it, and where nobody listens.
pub(crate) struct Refusing(socket2::Socket);

impl Refusing {
    pub(crate) fn new() -> Refusing {
        Refusing(bound())
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        address(&self.0)
    }
}

/// A listener whose queue is full: it drops whoever comes, and answers nobody.
pub(crate) struct BlackHole(socket2::Socket, #[allow(dead_code, reason = "fills it")] TcpStream);

impl BlackHole {
    pub(crate) async fn new() -> BlackHole {
        let socket = bound();
        socket.listen(0).expect("listening");
        let fills = TcpStream::connect(address(&socket)).await.expect("the only place");
        BlackHole(socket, fills)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        address(&self.0)
    }
}

fn bound() -> socket2::Socket {
    let tcp = Some(socket2::Protocol::TCP);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, tcp);
    let socket = socket.expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket
}

fn address(socket: &socket2::Socket) -> SocketAddr {
    socket.local_addr().expect("an address").as_socket().expect("an IP address")
}

/// Takes connections and never says a word.
pub(crate) fn silent() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port")
}

async fn secured(certificate: Certificate, h2: bool) -> Sim {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let tls = Some(certificate.into());
    let options = Options { tls, h1: !h2, h2, ..Options::default() };
    Sim::start(any, options).await.expect("a simulated upstream")
}

/// For `localhost`, and no longer valid.
fn expired() -> Certificate {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_pem = ca.self_signed(&ca_key).expect("a certificate").pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().expect("a key");
    let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.not_before = date_time_ymd(2019, 1, 1);
    leaf.not_after = date_time_ymd(2020, 1, 1);
    let chain_pem = leaf.signed_by(&key, &issuer).expect("a certificate").pem();
    Certificate { ca_pem, chain_pem, key_pem: key.serialize_pem() }
}

/// What names lead to; a name without addresses cannot be resolved.
static NAMES: Mutex<BTreeMap<String, Vec<SocketAddr>>> = Mutex::new(BTreeMap::new());

fn leads(name: &str, to: &[&Sim]) {
    let to = to.iter().map(|sim| sim.addr()).collect();
    NAMES.lock().expect("no panic").insert(name.to_owned(), to);
}

fn resolver(name: &str, _: u16) -> Option<io::Result<Vec<SocketAddr>>> {
    let known = NAMES.lock().expect("no panic").get(name).cloned()?;
    let none = known.is_empty().then(|| io::Error::other("the resolver is down"));
    Some(none.map_or(Ok(known), Err))
}

/// A name of this run; the table of names serves both.
fn name(word: &str, h2: bool) -> String {
    format!("{word}-h{}.test", if h2 { 2 } else { 1 })
}

impl Connects {
    pub(crate) async fn new(h2: bool) -> Connects {
        resolve::ask_first(resolver);
        let files = tempfile::tempdir().expect("a folder");
        let of = make_certificate(&["localhost"]).expect("a certificate");
        let old = expired();
        std::fs::write(files.path().join("ca"), &of.ca_pem).expect("a file");
        std::fs::write(files.path().join("old"), &old.ca_pem).expect("a file");
        Connects {
            refuses: Refusing::new(),
            hole: BlackHole::new().await,
            silent: silent(),
            secured: secured(of, h2).await,
            expired: secured(old, h2).await,
            good: sim(Behaviour::default(), h2).await,
            known: sim(Behaviour::default(), h2).await,
            before: sim(Behaviour::default(), h2).await,
            after: sim(Behaviour::default(), h2).await,
            files,
        }
    }

    pub(crate) fn places(&self, h2: bool) -> Vec<Place> {
        let secret = |addr: SocketAddr| format!("https://{addr}");
        let at = |sim: &Sim, host: &str| format!("https://{host}:{}", sim.addr().port());
        let ca = |file: &str| format!("ca = {:?}", self.files.path().join(file));
        let silent = self.silent.local_addr().expect("an address");
        let soon = "connect = \"1s\"";
        let named = |word: &str| [format!("http://{}:80", name(word, h2))];
        leads(&name("fails", h2), &[&self.known]);
        leads(&name("moves", h2), &[&self.before]);
        leads(&name("unknown", h2), &[]);
        let holes = [clear(self.hole.addr()), clear(self.good.addr())];
        vec![
            Place::new("refused", &[clear(self.refuses.addr())], ""),
            Place::new("hole", &[clear(self.hole.addr())], soon),
            Place::new("detour", &holes, soon),
            Place::new("slow-tls", &[secret(silent)], soon),
            Place::new("wrong-name", &[at(&self.secured, "127.0.0.1")], &ca("ca")),
            Place::new("expired", &[at(&self.expired, "localhost")], &ca("old")),
            Place::new("untrusted", &[at(&self.secured, "localhost")], ""),
            Place::new("trusted", &[at(&self.secured, "localhost")], &ca("ca")),
            Place::new("unknown", &named("unknown"), ""),
            Place::new("fails", &named("fails"), "resolve = \"1ms\""),
            Place::new("moves", &named("moves"), "resolve = \"1ms\""),
        ]
    }

    /// All of them, one after the other at each place.
    pub(crate) async fn met(&self, scene: &Scene) {
        let tls = "upstream_tls";
        // Twice for each of two requests: one more attempt, since nothing was sent.
        let twice =
            |connects| [("ended upstream_error", 2.0), ("retries connect", 2.0), (connects, 4.0)];
        let late =
            |connects| [("ended upstream_timeout", 2.0), ("retries connect", 2.0), (connects, 4.0)];
        let (refused, wrong, dns) =
            (twice("connects refused"), twice("connects tls"), twice("connects dns"));
        let (hole, slow) = (late("connects timeout"), late("connects tls_timeout"));
        tokio::join!(
            unreached(scene, "refused", 502, "upstream_connect", "refused", &refused),
            unreached(scene, "hole", 504, "upstream_connect_timeout", "connect = 1s", &hole),
            unreached(scene, "slow-tls", 504, "upstream_tls_timeout", "connect = 1s", &slow),
            unreached(scene, "wrong-name", 502, tls, "not valid for name", &wrong),
            unreached(scene, "expired", 502, tls, "expired", &wrong),
            unreached(scene, "untrusted", 502, tls, "UnknownIssuer", &wrong),
            unreached(scene, "unknown", 502, "upstream_dns", "resolver is down", &dns),
            self.a_good_endpoint_behind_a_hole_is_reached(scene),
            self.a_name_that_fails_keeps_its_addresses(scene),
            self.a_name_that_moves_is_followed(scene),
        );
        assert_eq!(self.expired.counts().requests, 0, "sent to whom it was not meant for");
        assert_eq!(self.secured.counts().requests, 0, "sent to whom it was not meant for");
        // And the same certificate serves who trusts it and names it.
        whole(&scene.asks("trusted", Http::H1, &[]).await);
        scene.comes_to("trusted", &[("ended completed", 1.0)]).await;
        assert_eq!(self.secured.counts().requests, 1);
    }

    async fn a_good_endpoint_behind_a_hole_is_reached(&self, scene: &Scene) {
        for http in [Http::H1, Http::H2] {
            whole(&scene.asks("detour", http, &[]).await);
        }
        let counted =
            [("ended completed", 2.0), ("retries connect", 2.0), ("connects timeout", 2.0)];
        scene.comes_to("detour", &counted).await;
        assert_eq!(self.good.counts().requests, 2);
    }

    async fn a_name_that_fails_keeps_its_addresses(&self, scene: &Scene) {
        // The upstream ends each connection, so that the next request needs another one.
        let last = [("sim-fault", "goaway")];
        whole(&scene.asks("fails", Http::H1, &last).await);
        leads(&name("fails", scene.h2), &[]);
        for http in [Http::H1, Http::H2] {
            whole(&scene.asks("fails", http, &last).await);
        }
        scene.comes_to("fails", &[("ended completed", 3.0)]).await;
        let counts = self.known.counts();
        assert_eq!(counts.requests, 3);
        assert!(counts.connections >= 3, "the name was asked for each: {counts:?}");
    }

    async fn a_name_that_moves_is_followed(&self, scene: &Scene) {
        let host = name("moves", scene.h2);
        let last = [("sim-fault", "goaway")];
        let goes_on = [("sim-count", "10"), ("sim-interval", "200ms"), ("sim-fault-after", "1")];
        let long = [&goes_on, &last[..]].concat();
        let mut client = scene.client(Http::H1).await;
        let path = format!("/moves{CHAT}");
        let mut stays = client.start("POST", &path, &long, STREAM).await.head().await;
        // The upstream has said that the connection takes no further stream.
        stays.until("\"seq\":2").await;
        leads(&host, &[&self.after]);
        for http in [Http::H1, Http::H2] {
            whole(&scene.asks("moves", http, &last).await);
        }
        assert_eq!(self.after.counts().requests, 2, "who comes later goes where it is now");
        whole(&stays.rest().await);
        // Both, from now on: each is the first in its turn.
        leads(&host, &[&self.before, &self.after]);
        for _ in 0..4 {
            whole(&scene.asks("moves", Http::H1, &last).await);
        }
        let asked = [self.before.counts().requests, self.after.counts().requests];
        assert_eq!(asked, [1 + 2, 2 + 2], "half of them to each");
        scene.comes_to("moves", &[("ended completed", 7.0)]).await;
    }
}

pub(crate) fn whole(answer: &Answer) {
    let text = answer.text();
    assert_eq!((answer.status, answer.end), (200, End::Clean), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

/// An HTTP/1.1 and an HTTP/2 client are told `code`, with `word` in the message.
async fn unreached(
    scene: &Scene,
    place: &'static str,
    status: u16,
    code: &str,
    word: &str,
    counted: &[(&str, f64)],
) {
    for http in [Http::H1, Http::H2] {
        let answer = scene.asks(place, http, &[]).await;
        let text = answer.text();
        assert_eq!((answer.status, answer.end), (status, End::Clean), "{place}: {text}");
        assert_eq!(code_of(&text).as_deref(), Some(code), "{place}: {text}");
        assert!(text.contains(word), "{place}: {word:?} is not in {text}");
    }
    scene.comes_to(place, counted).await;
}
