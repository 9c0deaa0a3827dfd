//! Names to addresses: asked again after a while, remembered when nobody answers.
//!
//! The operating system's resolver is asked (`getaddrinfo`), which tells no time to live; so an
//! answer counts for the upstream's `resolve`. When the resolver fails, the last good answer goes on
//! counting, and it is asked again at the next connection. Each connection begins with the next of
//! the addresses, so that all are used; which family comes first is left as the system says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Knows the addresses of hosts: an answer, or `None` for a host that the system is to be asked for.
pub type Resolver = fn(&str, u16) -> Option<io::Result<Vec<SocketAddr>>>;

static RESOLVER: OnceLock<Resolver> = OnceLock::new();

/// Asks `resolver` before the system from now on, in the whole process; only the first call counts.
/// For tests, which have no other way to let a name move or vanish.
pub fn ask_first(resolver: Resolver) {
    RESOLVER.get_or_init(|| resolver);
}

/// The addresses of one host, as all workers know them.
#[derive(Debug)]
pub struct Addresses {
    host: String,
    port: u16,
    interval: Duration,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// The last good answer, and when it came.
    answer: Option<(Vec<SocketAddr>, Instant)>,
    /// How many connections have asked.
    turn: usize,
}

impl Addresses {
    /// Of a host that nobody has asked for yet.
    pub fn new(host: &str, port: u16, interval: Duration) -> Addresses {
        Addresses { host: host.to_owned(), port, interval, last: Mutex::default() }
    }

    /// The addresses for one more connection, in the order in which to try them; never empty.
    ///
    /// # Errors
    /// The name does not resolve, and never has.
    pub async fn next(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![(address, self.port).into()]);
        }
        if let Some(fresh) = self.fresh(Instant::now()) {
            return Ok(fresh);
        }
        if let Some(found) = RESOLVER.get().and_then(|ask| ask(&self.host, self.port)) {
            return self.answered(found);
        }
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        self.answered(found.map(Iterator::collect))
    }

    /// What need not be asked for again at `now`.
    fn fresh(&self, now: Instant) -> Option<Vec<SocketAddr>> {
        self.turned(|since| now.duration_since(since) < self.interval)
    }

    /// Takes the resolver's answer; what counts from now on.
    fn answered(&self, found: io::Result<Vec<SocketAddr>>) -> io::Result<Vec<SocketAddr>> {
        let failure = match found {
            Ok(found) if !found.is_empty() => {
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                last.answer = Some((found, Instant::now()));
                None
            }
            Ok(_) => Some(io::Error::other("the name has no addresses")),
            Err(error) => Some(error),
        };
        match (self.turned(|_| true), failure) {
            (Some(addresses), None) => Ok(addresses),
            (Some(addresses), Some(error)) => {
                tracing::warn!(host = self.host, %error, "the name does not resolve now; its last addresses are used");
                Ok(addresses)
            }
            (None, failure) => Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
        }
    }

    /// The last good answer if it is `good`, turned so that another address comes first.
    fn turned(&self, good: impl Fn(Instant) -> bool) -> Option<Vec<SocketAddr>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut addresses, since) = last.answer.clone()?;
        if !good(since) {
            return None;
        }
        let first = addresses[0].is_ipv4();
        let same = addresses.iter().take_while(|address| address.is_ipv4() == first).count();
        addresses[..same].rotate_left(last.turn % same);
        last.turn = last.turn.wrapping_add(1);
        Some(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn of(interval: Duration) -> Addresses {
        Addresses::new("up.example", 80, interval)
    }

    #[test]
    fn every_address_comes_first_in_its_turn_within_its_family() {
        let of = of(Duration::from_secs(60));
        let all = addresses(&["[::1]:80", "[::2]:80", "10.0.0.1:80", "10.0.0.2:80"]);
        let first = of.answered(Ok(all.clone())).expect("addresses");
        assert_eq!(first, all);
        let second = of.turned(|_| true).expect("addresses");
        assert_eq!(second, addresses(&["[::2]:80", "[::1]:80", "10.0.0.1:80", "10.0.0.2:80"]));
        assert_eq!(of.turned(|_| true).expect("addresses"), all);
    }

    #[test]
    fn the_last_good_answer_counts_while_the_resolver_fails() {
        let of = of(Duration::ZERO);
        let down = || Err(io::Error::other("the resolver is down"));
        assert!(of.answered(down()).is_err());
        assert!(of.answered(Ok(Vec::new())).is_err());
        let known = addresses(&["10.0.0.1:80"]);
        assert_eq!(of.answered(Ok(known.clone())).expect("addresses"), known);
        assert_eq!(of.answered(down()).expect("the last ones"), known);
        assert_eq!(of.answered(Ok(Vec::new())).expect("the last ones"), known);
        let moved = addresses(&["10.0.0.2:80"]);
        assert_eq!(of.answered(Ok(moved.clone())).expect("the new ones"), moved);
    }

    #[tokio::test]
    async fn the_resolver_is_asked_again_only_after_the_interval() {
        let of = of(Duration::from_secs(30));
        let known = addresses(&["10.0.0.1:80"]);
        of.answered(Ok(known.clone())).expect("addresses");
        let now = Instant::now();
        // A name that does not exist is not looked up here.
        assert_eq!(of.next().await.expect("fresh"), known);
        assert_eq!(of.fresh(now + Duration::from_secs(29)), Some(known));
        assert_eq!(of.fresh(now + Duration::from_secs(30)), None);
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver() {
        let of = Addresses::new("::1", 443, Duration::ZERO);
        assert_eq!(of.next().await.expect("itself"), addresses(&["[::1]:443"]));
    }
}
