//! Who a client is: its address, and its tenant by API key.
//!
//! A key is hashed and looked up by its hash, and the hash is compared once more in constant time.
//! A missing, unknown, expired or disabled key get the same answer, and so many of them per address
//! and minute that none can be guessed. The door for other proofs (JWT, signed requests, client
//! certificates) is [`identify`]: a route asks for one by its `auth`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::admission::addresses::AddressKey;
use crate::admission::tenant::Tenant;
use crate::config::Auth;
use crate::error::{Failure, Kind, Limit};
use crate::gateway::Gateway;
use crate::gateway::plan::Plan;
use crate::gateway::route::Route;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Where SDKs put a key.
const KEY_HEADERS: [HeaderName; 3] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
];

/// A client as the limits see it.
pub struct Identity {
    /// Its address.
    pub address: AddressKey,
    /// Whose key it has; `None` where none is asked for.
    pub tenant: Option<Arc<Tenant>>,
}

/// A key that was just made.
pub struct NewKey {
    /// For the client.
    pub key: String,
    /// For the configuration: 64 hexadecimal digits.
    pub sha256: String,
}

/// Makes a key of 256 random bits. Its beginning tells what it is to whoever finds it in a log or a
/// repository, secret scanners included.
///
/// # Errors
/// The operating system gives no random bytes.
pub fn new_key() -> Result<NewKey, Unspecified> {
    let mut random = [0; 32];
    rand::fill(&mut random)?;
    let key = format!("tidegate-{}", hex(&random));
    let sha256 = hex(digest(&SHA256, key.as_bytes()).as_ref());
    Ok(NewKey { key, sha256 })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Says who sent `headers` to `route` over a connection with `peer`. A key that was taken is removed
/// from them, wherever it stands: it is not the upstream's.
///
/// # Errors
/// `Key` (401), `Forbidden` (403), or `FailedKeys` (429).
pub fn identify(
    gateway: &Gateway,
    plan: &Plan,
    route: &Route,
    headers: &mut HeaderMap,
    peer: IpAddr,
) -> Result<Identity, Failure> {
    let config = &plan.terms.config;
    let address = client_address(peer, headers, &config.server.trusted_proxies);
    let address = AddressKey::of(address);
    if route.auth == Auth::None {
        return Ok(Identity { address, tenant: None });
    }
    let (now, per_minute) = (gateway.ground.clock.now(), config.limits.failed_keys_per_minute);
    let addresses = &gateway.admission.addresses;
    if per_minute > 0 {
        addresses.may_try(address, per_minute, now).map_err(|wait| {
            let text = "too many requests without a valid API key came from this address";
            Failure::limited(Limit::FailedKeys, wait, text)
        })?;
    }
    let Some(tenant) = tenant_of(plan, headers) else {
        if per_minute > 0 {
            addresses.failed(address, per_minute, now);
        }
        let text =
            "no valid API key; send one as \"authorization: Bearer …\", x-api-key or api-key";
        return Err(Failure::new(Kind::Key, text));
    };
    if !route.tenants.is_empty() && !route.tenants.iter().any(|name| **name == *tenant.name) {
        let text = "this route is not open to the tenant of this key";
        return Err(Failure::new(Kind::Forbidden, text));
    }
    Ok(Identity { address, tenant: Some(tenant) })
}

fn tenant_of(plan: &Plan, headers: &mut HeaderMap) -> Option<Arc<Tenant>> {
    let (taken, tenant) = KEY_HEADERS.into_iter().find_map(|name| {
        let key = key_in(headers, &name)?;
        let sha256: [u8; 32] = digest(&SHA256, key).as_ref().try_into().ok()?;
        let known = plan.terms.key(&sha256)?;
        verify_slices_are_equal(&known.sha256, &sha256).ok()?;
        let over = known.expires.is_some_and(|at| wall_seconds() >= at);
        (!known.disabled && !over).then(|| (name, known.tenant.clone()))
    })?;
    // SDKs that are told a key twice send it twice.
    let value = headers.remove(&taken)?;
    let key = key_of(&taken, &value)?;
    for name in KEY_HEADERS {
        if headers.get_all(&name).iter().any(|other| key_of(&name, other) == Some(key)) {
            headers.remove(name);
        }
    }
    Some(tenant)
}

/// The key in the one field of this name.
fn key_in<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    key_of(name, values.next().filter(|_| values.next().is_none())?)
}

fn key_of<'h>(name: &HeaderName, value: &'h HeaderValue) -> Option<&'h [u8]> {
    let value = value.as_bytes();
    if name == header::AUTHORIZATION { bearer(value) } else { Some(value) }
}

/// What follows `Bearer`, in any case, and spaces (RFC 9110, 11.1 and 11.4).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

fn wall_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The client's address: the peer's, or what trusted proxies say. Each of them appends whom it got
/// the request from, so the list is read from the right, and the first that is not trusted itself is
/// the client; what stands left of it is hearsay.
fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut client = peer;
    if trusted.is_empty() {
        return client;
    }
    let lists: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(|v| v.as_bytes()).collect();
    let mut from_right = lists.iter().rev().flat_map(|list| list.rsplit(|b| *b == b','));
    while is_trusted(client) {
        // Who appended something else did not tell whom it had the request from: it is the client.
        let Some(next) = from_right.next().and_then(address) else { break };
        client = next;
    }
    client
}

/// An address, perhaps with a port, as proxies write it.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(ip, _)| ip);
    let parsed = bare.unwrap_or(text).parse::<IpAddr>().ok();
    let parsed = parsed.or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|a| a.ip()));
    parsed.map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(X_FORWARDED_FOR, value.parse().expect("a value"));
        }
        let trusted: Vec<_> = trusted.iter().map(|net| net.parse().expect("a net")).collect();
        client_address(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    #[test]
    fn forwarded_addresses_count_from_the_right_through_trusted_proxies() {
        let lan = &["10.0.0.0/8", "fd00::/8"];
        for (peer, forwarded, expected) in [
            ("1.2.3.4", &["9.9.9.9"][..], "1.2.3.4"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["9.9.9.9"], "9.9.9.9"),
            ("10.0.0.1", &["6.6.6.6, 9.9.9.9"], "9.9.9.9"),
            ("10.0.0.1", &["6.6.6.6, 9.9.9.9, 10.1.1.1"], "9.9.9.9"),
            ("10.0.0.1", &["6.6.6.6", "9.9.9.9,10.1.1.1"], "9.9.9.9"),
            ("10.0.0.1", &["10.2.2.2, 10.1.1.1"], "10.2.2.2"),
            ("10.0.0.1", &["9.9.9.9, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["9.9.9.9, 10.1.1.1, "], "10.0.0.1"),
            ("10.0.0.1", &["9.9.9.9:4711"], "9.9.9.9"),
            ("10.0.0.1", &["[2001:db8::7]:4711"], "2001:db8::7"),
            ("fd00::1", &["::ffff:9.9.9.9"], "9.9.9.9"),
        ] {
            assert_eq!(client(peer, forwarded, lan), expected, "{peer} {forwarded:?}");
        }
        assert_eq!(client("10.0.0.1", &["9.9.9.9"], &[]), "10.0.0.1", "nobody is trusted");
    }

    #[test]
    fn keys_are_made_with_their_hashes() {
        let (one, other) = (new_key().expect("a key"), new_key().expect("a key"));
        assert_ne!(one.key, other.key);
        assert!(one.key.starts_with("tidegate-") && one.key.len() == 9 + 64, "{}", one.key);
        assert_eq!(one.sha256, hex(digest(&SHA256, one.key.as_bytes()).as_ref()));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(digest(&SHA256, b"").as_ref()), empty);
    }

    #[test]
    fn a_bearer_is_known_in_any_case() {
        assert_eq!(bearer(b"Bearer k"), Some(&b"k"[..]));
        assert_eq!(bearer(b"bearer   k "), Some(&b"k"[..]));
        assert_eq!(bearer(b"Basic k"), None);
        assert_eq!(bearer(b"Bearer"), None);
        assert_eq!(bearer(b""), None);
    }
}
