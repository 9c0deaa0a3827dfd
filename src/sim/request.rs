//! One request as both protocols hand it over, and what its body was.
//!
//! Owns the reading of targets and `sim-*` overrides. Refuses nothing itself: bad overrides become
//! an `Err` text that the answer carries. Invariant: a body is counted and hashed whole but kept
//! only as far as its endpoint needs it. Cost: the field lines, freed before the answer streams.

use super::answer::Endpoint;
use super::counts::Seen;
use super::options::Behaviour;

/// Body bytes kept for endpoints that read their JSON; a larger one is answered 413.
const JSON_MAX: usize = 32 * 1024 * 1024;
/// Body bytes kept of every other request.
const PREFIX_MAX: usize = 4096;

/// A request without its body.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query as sent.
    pub(super) target: String,
    /// Field lines in order; names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) version: &'static str,
    pub(super) connection: u64,
}

impl Request {
    pub(super) fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target.as_str(), |(path, _)| path)
    }

    pub(super) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// Whether a comma-separated field holds `token`, letter case aside.
    pub(super) fn has_token(&self, name: &str, token: &str) -> bool {
        let values = self.headers.iter().filter(|(n, _)| n == name);
        values.flat_map(|(_, v)| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(token))
    }

    /// `defaults` with this request's overrides: the query first, then the header fields.
    pub(super) fn behaviour(&self, defaults: &Behaviour) -> Result<Behaviour, String> {
        let mut behaviour = defaults.clone();
        let pairs = self.query().split('&').filter_map(|pair| pair.split_once('='));
        for (name, value) in pairs.filter(|(name, _)| name.starts_with("sim-")) {
            behaviour.apply(name, value)?;
        }
        for (name, value) in self.headers.iter().filter(|(name, _)| name.starts_with("sim-")) {
            behaviour.apply(name, value)?;
        }
        Ok(behaviour)
    }
}

/// A request body on its way in.
#[derive(Debug)]
pub(super) struct Intake {
    kept: Vec<u8>,
    keep: usize,
    length: u64,
    fnv1a64: u64,
}

impl Intake {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        let keep = if endpoint.reads_json() { JSON_MAX } else { PREFIX_MAX };
        Self { kept: Vec::new(), keep, length: 0, fnv1a64: 0xcbf2_9ce4_8422_2325 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        for &byte in bytes {
            self.fnv1a64 = (self.fnv1a64 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        let room = self.keep - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn fnv1a64(&self) -> u64 {
        self.fnv1a64
    }

    /// The whole body, unless it was larger than is kept.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        (self.length == self.kept.len() as u64).then_some(&self.kept)
    }

    /// The record of a request whose body came to its end, or did not.
    pub(super) fn seen(&self, request: &Request, body_complete: bool) -> Seen {
        Seen {
            method: request.method.clone(),
            path_and_query: request.target.clone(),
            headers: request.headers.clone(),
            version: request.version,
            connection: request.connection,
            body_length: self.length,
            body_prefix: self.kept[..self.kept.len().min(PREFIX_MAX)].to_vec(),
            body_fnv1a64: self.fnv1a64,
            body_complete,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, headers: &[(&str, &str)]) -> Request {
        Request {
            method: "POST".to_owned(),
            target: target.to_owned(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            version: "HTTP/1.1",
            connection: 1,
        }
    }

    #[test]
    fn headers_override_the_query_and_both_the_defaults() {
        let request = request("/v1/x?a=b&sim-count=3&sim-size=4", &[("sim-count", "9")]);
        assert_eq!((request.path(), request.query()), ("/v1/x", "a=b&sim-count=3&sim-size=4"));
        let behaviour = request.behaviour(&Behaviour::default()).unwrap();
        assert_eq!((behaviour.count, behaviour.size), (9, 4));
    }

    #[test]
    fn tokens_are_found_across_lines_and_commas() {
        let request = request("/", &[("connection", "x, Close"), ("connection", "te")]);
        assert!(request.has_token("connection", "close") && request.has_token("connection", "te"));
        assert!(!request.has_token("connection", "clos"));
    }

    #[test]
    fn a_body_is_hashed_whole_and_kept_in_part() {
        let mut intake = Intake::new(Endpoint::Echo);
        for byte in b"a" {
            intake.push(&[*byte]);
        }
        assert_eq!(intake.fnv1a64(), 0xaf63_dc4c_8601_ec8c);
        intake.push(&[b'x'; 5000]);
        assert_eq!((intake.length(), intake.whole()), (5001, None));
        assert_eq!(intake.seen(&request("/", &[]), true).body_prefix.len(), PREFIX_MAX);
    }
}
