//! An upstream's address, taken apart once so that nothing parses it per request.
//!
//! Refuses whatever could hide a credential or an attack in an address: user information, query,
//! fragment, dot segments, other schemes. Invariant: no error made here quotes the URL, because
//! what is wrong with it may be a password inside.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Cleartext.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port that a URL of this scheme means when it names none.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Cleartext or TLS.
    pub scheme: Scheme,
    /// Host name in lower case, or an IP address without brackets.
    pub host: String,
    /// Port, never 0.
    pub port: u16,
    /// For the Host header and `:authority`: port left out if it is the scheme's, IPv6 bracketed.
    pub authority: String,
    /// Replaces a route's literal prefix; `None` for `/` or nothing. Starts with `/` and does not
    /// end with one.
    pub base_path: Option<String>,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base_path = self.base_path.as_deref().unwrap_or_default();
        write!(f, "{}://{}{base_path}", self.scheme.as_str(), self.authority)
    }
}

impl Url {
    /// True if the host can only be this machine: `localhost` or a loopback address.
    pub fn is_loopback(&self) -> bool {
        let v4 = self.host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
        let v6 = self.host.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback());
        v4 || v6 || self.host == "localhost" || self.host.ends_with(".localhost")
    }
}

/// Takes a URL apart; the error says what to write.
pub(super) fn parse(text: &str) -> Result<Url, String> {
    let (scheme, rest) = split_scheme(text)?;
    if text.bytes().any(|b| !b.is_ascii_graphic()) {
        return Err("holds spaces or characters outside ASCII; write internationalized host \
                    names as xn--…"
            .to_owned());
    }
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(end) => rest.split_at(end),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err(
            "must not hold user information; write credential = { env = \"…\" } instead".to_owned()
        );
    }
    if path.contains('?') {
        return Err("must not hold a query; write query = { name = \"value\" } instead".to_owned());
    }
    if path.contains('#') {
        return Err("must not hold a fragment; remove it from the # on".to_owned());
    }
    let (host, port) = split_port(authority)?;
    let (host, bracketed) = read_host(host)?;
    let port = match port {
        Some(port) => port,
        None => scheme.default_port(),
    };
    let mut authority = if bracketed { format!("[{host}]") } else { host.clone() };
    if port != scheme.default_port() {
        authority = format!("{authority}:{port}");
    }
    Ok(Url { scheme, host, port, authority, base_path: read_path(path)? })
}

fn split_scheme(text: &str) -> Result<(Scheme, &str), String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("has no scheme; write \"https://…\"".to_owned());
    };
    if scheme.eq_ignore_ascii_case("https") {
        Ok((Scheme::Https, rest))
    } else if scheme.eq_ignore_ascii_case("http") {
        Ok((Scheme::Http, rest))
    } else {
        Err("has a scheme other than https and http; write \"https://…\"".to_owned())
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), String> {
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = authority[after_bracket..].find(':').map(|at| at + after_bracket) else {
        return Ok((authority, None));
    };
    let digits = &authority[colon + 1..];
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse::<u16>() {
        Ok(port) if plain && port != 0 => Ok((&authority[..colon], Some(port))),
        _ => Err("has no valid port after the colon; write 1 to 65535, and IPv6 addresses in \
                  brackets"
            .to_owned()),
    }
}

/// The host in lower case, and whether it goes in brackets.
fn read_host(host: &str) -> Result<(String, bool), String> {
    if let Some(inside) = host.strip_prefix('[') {
        let address = inside.strip_suffix(']').and_then(|inside| inside.parse::<Ipv6Addr>().ok());
        return match address {
            Some(address) => Ok((address.to_string(), true)),
            None => Err("has something other than an IPv6 address in brackets".to_owned()),
        };
    }
    if host.is_empty() {
        return Err("has no host; write \"https://host\"".to_owned());
    }
    let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(letters);
    if host.len() > 253 || !host.split('.').all(label) {
        return Err("has an invalid host name; labels are letters, digits and hyphens".to_owned());
    }
    // The WHATWG rule: a last label of digits makes it an IPv4 address, or a mistyped one.
    let last = host.rsplit('.').next().unwrap_or(host);
    if last.bytes().all(|b| b.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_err() {
        return Err("has an invalid IPv4 address".to_owned());
    }
    Ok((host.to_ascii_lowercase(), false))
}

fn read_path(path: &str) -> Result<Option<String>, String> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(None);
    }
    if let Err(reason) = check_path(path) {
        return Err(format!("has a path that {reason}"));
    }
    Ok(Some(path.to_owned()))
}

/// Checks a path against RFC 3986, section 3.3, and against what proxies disagree about: empty
/// segments and dot segments.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    let bytes = path.as_bytes();
    for (n, b) in bytes.iter().enumerate() {
        let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        match b {
            b'%' if hex(n + 1) && hex(n + 2) => {}
            b'%' => return Err("has a % without two hex digits".to_owned()),
            b if b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(b) => {}
            _ => return Err("holds a character that a path cannot have".to_owned()),
        }
    }
    let inner = path.strip_prefix('/').unwrap_or(path);
    let mut segments = inner.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err("has an empty segment; write one slash".to_owned());
        }
        let decoded = segment.replace("%2e", ".").replace("%2E", ".");
        if decoded == "." || decoded == ".." {
            return Err("has a dot segment; write the path it leads to".to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> (Scheme, String, u16, String, Option<String>) {
        let url = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        (url.scheme, url.host, url.port, url.authority, url.base_path)
    }

    #[test]
    fn urls_are_taken_apart() {
        use Scheme::{Http, Https};
        for (text, scheme, host, port, authority, base_path) in [
            ("https://api.openai.com", Https, "api.openai.com", 443, "api.openai.com", None),
            ("https://api.openai.com/", Https, "api.openai.com", 443, "api.openai.com", None),
            ("HTTPS://API.Example:443", Https, "api.example", 443, "api.example", None),
            ("http://h:443/v1", Http, "h", 443, "h:443", Some("/v1")),
            ("http://h:80/openai/v1/", Http, "h", 80, "h", Some("/openai/v1")),
            ("http://10.0.0.1:8000", Http, "10.0.0.1", 8000, "10.0.0.1:8000", None),
            ("http://[::1]:8000/a", Http, "::1", 8000, "[::1]:8000", Some("/a")),
            ("https://[2001:DB8::1]", Https, "2001:db8::1", 443, "[2001:db8::1]", None),
            ("http://my_service/a%20b", Http, "my_service", 80, "my_service", Some("/a%20b")),
        ] {
            let expected =
                (scheme, host.to_owned(), port, authority.to_owned(), base_path.map(str::to_owned));
            assert_eq!(taken(text), expected, "{text}");
        }
    }

    #[test]
    fn shown_as_it_is_used() {
        let shown = |text| parse(text).unwrap().to_string();
        assert_eq!(shown("HTTPS://H:443/v1/"), "https://h/v1");
        assert_eq!(shown("http://[::1]:81"), "http://[::1]:81");
    }

    #[test]
    fn loopback_is_known() {
        for (text, loopback) in [
            ("http://localhost:1", true),
            ("http://127.9.0.1", true),
            ("http://[::1]", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(parse(text).unwrap().is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn refused_without_being_quoted() {
        for (text, reason) in [
            ("api.openai.com", "no scheme"),
            ("", "no scheme"),
            ("ftp://canary", "scheme other"),
            ("wss://canary", "scheme other"),
            ("https://user:canary@h", "user information"),
            ("https://canary@h", "user information"),
            ("https://h?key=canary", "query"),
            ("https://h/v1?key=canary", "query"),
            ("https://h/#canary", "fragment"),
            ("https://", "no host"),
            ("https:///v1", "no host"),
            ("https://:443", "no host"),
            ("https://h:", "port"),
            ("https://h:0", "port"),
            ("https://h:+1", "port"),
            ("https://h:65536", "port"),
            ("https://h:canary", "port"),
            ("https://::1", "brackets"),
            ("https://[canary]", "IPv6"),
            ("https://[::1", "port"),
            ("https://[fe80::1%eth0]", "IPv6"),
            ("https://a..b", "host name"),
            ("https://h.", "host name"),
            ("https://ca*nary", "host name"),
            ("https://300.1.1.1", "IPv4"),
            ("https://1.2.3", "IPv4"),
            ("https://b\u{fc}cher.example", "xn--"),
            ("https://h/a b", "spaces"),
            ("https://h/a\nb", "spaces"),
            ("https://h//canary", "empty segment"),
            ("https://h/a/../canary", "dot segment"),
            ("https://h/a/%2E%2e/canary", "dot segment"),
            ("https://h/a%2", "hex digits"),
            ("https://h/{canary}", "cannot have"),
            ("https://h/a\\canary", "cannot have"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("canary"), "{text}: {error}");
        }
    }
}
