//! `[cors]`: which web pages may use the gateway from a browser.

use std::time::Duration;

use super::read::{Reading, Section};
use super::units::quoted;

/// Answers to browsers; without origins there are none, and pages of other origins get nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Origins such as `https://app.example`, lower case.
    pub origins: Vec<String>,
    /// Any origin: `origins = ["*"]`.
    pub any: bool,
    /// How long a browser may keep the answer to its preflight.
    pub max_age: Duration,
}

impl Default for Cors {
    fn default() -> Self {
        Cors { origins: Vec::new(), any: false, max_age: Duration::from_secs(600) }
    }
}

const ORIGINS: usize = 1024;
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn read(r: &mut Reading<'_>, root: &Section<'_>) -> Cors {
    let d = Cors::default();
    let s = r.section(root, "cors");
    let mut cors =
        Cors { max_age: r.duration(&s, "max_age", &(Duration::ZERO..=DAY), d.max_age), ..d };
    for (place, text) in r.texts(&s, "origins", ORIGINS).unwrap_or_default() {
        if text == "*" {
            cors.any = true;
            continue;
        }
        match check(text) {
            Ok(()) => cors.origins.push(text.to_ascii_lowercase()),
            Err(reason) => r.fault(&place, format!("{} {reason}", quoted(text))),
        }
    }
    cors
}

/// An origin is scheme, host and a port that is not the scheme's own (RFC 6454, 6.2).
fn check(text: &str) -> Result<(), &'static str> {
    let lower = text.to_ascii_lowercase();
    let rest = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err("is no origin; write \"https://app.example\" or \"*\"");
    };
    if rest.contains(['/', '?', '#', '@']) {
        return Err("has more than scheme, host and port; an origin ends there");
    }
    let uri: http::Uri =
        lower.parse().map_err(|_| "is no origin; write \"https://app.example\"")?;
    let usual = if lower.starts_with("https") { 443 } else { 80 };
    match uri.authority() {
        Some(authority) if authority.port_u16() == Some(usual) => {
            Err("names its scheme's own port, which browsers leave out; leave it out")
        }
        Some(authority) if !authority.host().is_empty() && !authority.host().contains('*') => {
            Ok(())
        }
        _ => Err("has no host, or a pattern for one; list each origin, or write \"*\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_host_and_port() {
        for good in ["https://a.example", "http://localhost:3000", "https://[::1]:8443"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "a.example",
            "https://a.example/",
            "https://a.example:443",
            "http://a:80",
            "https://*.example",
            "https://",
            "ftp://a",
            "https://a b",
            "https://u@h",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
