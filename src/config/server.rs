//! `[server]`, `[server.tls]` and `[admin]`: where the gateway listens.
//!
//! Refuses addresses that cannot all be bound. Certificates and keys are checked to be readable
//! PEM; whether they fit each other is for rustls to say when the listener is made.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::files;
use super::read::{Place, Reading, Section};
use super::units::quoted;

/// The data side: what clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Addresses to listen on; at least one, no two equal. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Worker threads; 0 = one per core.
    pub workers: usize,
    /// How long streams may go on once a drain has begun. Zero ends them at once.
    pub drain_deadline: Duration,
    /// HTTP/2 streams that one client connection may have open.
    pub h2_max_streams: u32,
    /// Peers whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
    /// TLS on every address of `listen`; cleartext if absent.
    pub tls: Option<Tls>,
}

impl Default for Server {
    fn default() -> Self {
        Server {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))],
            workers: 0,
            drain_deadline: Duration::from_secs(600),
            h2_max_streams: 100,
            trusted_proxies: Vec::new(),
            tls: None,
        }
    }
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM certificate chain, leaf first.
    pub cert: PathBuf,
    /// PEM private key of the leaf.
    pub key: PathBuf,
    /// PEM roots; if set, clients must present a certificate that one of them has signed.
    pub client_ca: Option<PathBuf>,
}

/// The admin side: metrics, health, drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Address of the admin listener. Port 0 takes a free one.
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)) }
    }
}

const LISTENERS: usize = 64;
const PROXIES: usize = 1024;

pub(super) fn read(r: &mut Reading<'_>, root: &Section<'_>) -> (Server, Admin) {
    let default = Server::default();
    let s = r.section(root, "server");
    let server = Server {
        listen: read_listen(r, &s, default.listen),
        workers: r.number(&s, "workers", 0..=1024, default.workers),
        drain_deadline: r.duration(
            &s,
            "drain_deadline",
            &(Duration::ZERO..=super::LONGEST),
            default.drain_deadline,
        ),
        h2_max_streams: r.number(&s, "h2_max_streams", 1..=65_535, default.h2_max_streams),
        trusted_proxies: read_proxies(r, &s),
        tls: read_tls(r, &s),
    };

    let a = r.section(root, "admin");
    let mut admin = Admin::default();
    if let Some((place, text)) = r.text(&a, "listen")
        && let Some(address) = read_address(r, &place, text)
    {
        admin.listen = address;
    }
    refuse_clash(r, &server, &admin);
    (server, admin)
}

fn read_listen(r: &mut Reading<'_>, s: &Section<'_>, default: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(texts) = r.texts(s, "listen", LISTENERS) else { return default };
    let mut listen: Vec<SocketAddr> = Vec::new();
    for (place, text) in texts {
        let Some(address) = read_address(r, &place, text) else { continue };
        if address.port() != 0 && listen.contains(&address) {
            r.fault(&place, format!("{address} is listed twice; remove one"));
        } else {
            listen.push(address);
        }
    }
    if r.lacks(s, "listen") {
        let place = r.place("server.listen");
        r.fault(&place, "is empty; write at least one address, such as \"127.0.0.1:8080\"");
    }
    listen
}

fn read_address(r: &mut Reading<'_>, place: &Place, text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let hint = match text.rsplit_once(':') {
        Some(("", port)) if port.parse::<u16>().is_ok() => {
            format!("write \"0.0.0.0:{port}\" for every interface, or \"127.0.0.1:{port}\"")
        }
        Some(("localhost", port)) if port.parse::<u16>().is_ok() => {
            format!("names are not looked up; write \"127.0.0.1:{port}\"")
        }
        _ => "write an IP address and a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\""
            .to_owned(),
    };
    r.fault(place, format!("{} is not a socket address; {hint}", quoted(text)));
    None
}

fn read_proxies(r: &mut Reading<'_>, s: &Section<'_>) -> Vec<IpNet> {
    let mut proxies = Vec::new();
    for (place, text) in r.texts(s, "trusted_proxies", PROXIES).unwrap_or_default() {
        match text.parse::<IpNet>() {
            Ok(net) if net.trunc() == net => proxies.push(net),
            Ok(net) => r.fault(
                &place,
                format!(
                    "{} has bits set after its prefix; write \"{}\"",
                    quoted(text),
                    net.trunc()
                ),
            ),
            Err(_) => {
                let hint = match text.parse::<std::net::IpAddr>() {
                    Ok(address) => format!("\"{}\"", IpNet::from(address)),
                    Err(_) => "an address and a prefix length, such as \"10.0.0.0/8\"".to_owned(),
                };
                r.fault(&place, format!("{} is not a CIDR block; write {hint}", quoted(text)));
            }
        }
    }
    proxies
}

fn read_tls(r: &mut Reading<'_>, server: &Section<'_>) -> Option<Tls> {
    let s = r.section(server, "tls");
    if !s.present() {
        return None;
    }
    let mut file = |name: &str, required: bool, check: fn(&std::path::Path) -> _| {
        let Some((place, path)) = r.path(&s, name) else {
            if required && r.field(&s, name).is_none() {
                let place = s.place.below(name);
                r.fault(&place, "is missing; TLS needs both cert and key, as PEM files");
            }
            return None;
        };
        if let Err(reason) = check(&path) {
            let reason: String = reason;
            r.fault(&place, format!("{} {reason}", quoted(&path.display().to_string())));
        }
        Some(path)
    };
    let cert = file("cert", true, files::certificates);
    let key = file("key", true, files::private_key);
    let client_ca = file("client_ca", false, files::certificates);
    Some(Tls { cert: cert?, key: key?, client_ca })
}

/// Data listeners share their port between workers, so the system would not refuse a second use
/// of it by another data listener; the admin listener does not, and would fail to bind.
fn refuse_clash(r: &mut Reading<'_>, server: &Server, admin: &Admin) {
    let a = admin.listen;
    let clash = server.listen.iter().find(|s| {
        let any = s.ip().is_unspecified() || a.ip().is_unspecified();
        s.port() != 0 && s.port() == a.port() && (s.ip() == a.ip() || any)
    });
    if let Some(address) = clash {
        let place = r.place("admin.listen");
        r.fault(&place, format!("{a} clashes with {address} of server.listen; use another port"));
    }
}
