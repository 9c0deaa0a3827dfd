//! An upstream's API key: where it comes from, and the header that carries it.
//!
//! The file of the configuration names the place of a key, never the key. Invariant: the key is in
//! no Debug output and no message; names that look like a key themselves are left out as well.

use std::path::PathBuf;

use http::header::{self, HeaderName, HeaderValue};

use super::files;
use super::headers::{self, Use};
use super::read::{Place, Reading, Section};
use super::units::quoted;

/// A credential that is added to every request of an upstream, resolved when loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The header that carries it.
    pub header: HeaderName,
    /// The whole header value, scheme included; marked sensitive.
    pub value: HeaderValue,
    /// Word before the key; empty for the bare key.
    pub scheme: String,
    /// Where it was read from.
    pub source: CredentialSource,
}

impl Credential {
    /// The header value as it would be read now; only files can have changed.
    ///
    /// # Errors
    /// What is wrong with the file, without any of its content.
    pub fn reread(&self) -> Result<HeaderValue, String> {
        let CredentialSource::File(path) = &self.source else { return Ok(self.value.clone()) };
        let secret = files::bytes(path, files::CREDENTIAL_BYTES)?;
        header_value(&secret, &self.scheme)
    }
}

/// Where a credential comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// The environment variable of this name.
    Env(String),
    /// The file of this path, surrounding white space removed.
    File(PathBuf),
}

/// Reads `credential` of an upstream, a table or several; without those that are faulty.
pub(super) fn read(r: &mut Reading<'_>, upstream: &Section<'_>) -> Vec<Credential> {
    let Some((place, value)) = r.field(upstream, "credential") else { return Vec::new() };
    if value.get_ref().is_str() {
        r.fault(
            &place,
            "must be a table such as { env = \"OPENAI_API_KEY\" } or { file = \"…\" }; \
             never write the key itself into this file",
        );
        return Vec::new();
    }
    let sections = match value.get_ref().is_array() {
        true => r.sections(upstream, "credential"),
        false => vec![r.section(upstream, "credential")],
    };
    if sections.len() > MOST {
        r.fault(&place, format!("there are more than {MOST}"));
    }
    sections.iter().take(MOST).filter_map(|section| read_one(r, section)).collect()
}

fn read_one(r: &mut Reading<'_>, s: &Section<'_>) -> Option<Credential> {
    if !s.present() {
        return None;
    }
    let header = read_header(r, s);
    let scheme = read_scheme(r, s, &header);
    let (place, source, secret) = read_secret(r, s)?;
    let scheme = scheme?;
    match header_value(&secret, &scheme) {
        Ok(value) => Some(Credential { header, value, scheme, source }),
        Err(reason) => {
            r.fault(&place, reason);
            None
        }
    }
}

/// Most keys of one upstream.
const MOST: usize = 64;

fn read_header(r: &mut Reading<'_>, s: &Section<'_>) -> HeaderName {
    match r.text(s, "header") {
        Some((place, text)) => {
            headers::name(r, &place, text, Use::Credential).unwrap_or(header::AUTHORIZATION)
        }
        None => header::AUTHORIZATION,
    }
}

/// `Bearer` belongs to `authorization`; headers such as `x-api-key` carry the bare key.
fn read_scheme(r: &mut Reading<'_>, s: &Section<'_>, header: &HeaderName) -> Option<String> {
    let default = if *header == header::AUTHORIZATION { "Bearer" } else { "" };
    if r.field(s, "scheme").is_none() {
        return Some(default.to_owned());
    }
    let (place, text) = r.text(s, "scheme")?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.len() > 32 || !text.bytes().all(token) {
        r.fault(&place, "must be one word such as \"Bearer\", or \"\" for the bare key");
        return None;
    }
    Some(text.to_owned())
}

fn read_secret(r: &mut Reading<'_>, s: &Section<'_>) -> Option<(Place, CredentialSource, Vec<u8>)> {
    let set = |r: &Reading<'_>, name: &str| r.field(s, name).is_some();
    match (set(r, "env"), set(r, "file")) {
        (true, true) => r.fault(&s.place, "has both env and file; keep one"),
        (false, false) => r.fault(&s.place, "needs env = \"VARIABLE\" or file = \"path\""),
        _ => {}
    }
    let from_env = r.text(s, "env");
    let from_file = r.path(s, "file");
    if let Some((place, name)) = from_env {
        let secret = read_variable(r, &place, name)?;
        return Some((place, CredentialSource::Env(name.to_owned()), secret));
    }
    let (place, path) = from_file?;
    match files::bytes(&path, files::CREDENTIAL_BYTES) {
        Ok(secret) => Some((place, CredentialSource::File(path), secret)),
        Err(reason) => {
            r.fault(&place, format!("{} {reason}", quoted(&path.display().to_string())));
            None
        }
    }
}

fn read_variable(r: &mut Reading<'_>, place: &Place, name: &str) -> Option<Vec<u8>> {
    let first = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !name.bytes().next().is_some_and(first) || !name.bytes().all(rest) {
        r.fault(
            place,
            "is not the name of a variable (letters, digits and _); write the variable's name, \
             never the key itself",
        );
        return None;
    }
    if let Some(value) = r.variable(name) {
        return Some(value.into_encoded_bytes());
    }
    let shown = if looks_like_key(name) { "of this name" } else { name };
    r.fault(
        place,
        format!(
            "the environment variable {shown} is not set; set it (systemd: EnvironmentFile=), or \
             leave credential out to forward the client's own"
        ),
    );
    None
}

/// Some providers' keys would pass for a variable's name; those are long and mix everything.
fn looks_like_key(name: &str) -> bool {
    let any = |test: fn(&u8) -> bool| name.bytes().any(|b| test(&b));
    name.len() >= 32 && any(u8::is_ascii_lowercase) && any(u8::is_ascii_digit)
}

/// The header's value, or what is wrong with the secret, without any of it.
fn header_value(secret: &[u8], scheme: &str) -> Result<HeaderValue, String> {
    let secret = secret.trim_ascii();
    if secret.is_empty() {
        return Err("leads to an empty credential".to_owned());
    }
    if !secret.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
        return Err("leads to a credential with a line break or other characters that a header \
                    cannot carry; keep exactly one key there"
            .to_owned());
    }
    let doubled = secret.get(..scheme.len()).is_some_and(|start| {
        start.eq_ignore_ascii_case(scheme.as_bytes()) && secret.get(scheme.len()) == Some(&b' ')
    });
    if doubled && !scheme.is_empty() {
        return Err(format!(
            "leads to a credential that already starts with {scheme:?}; keep the key alone there, \
             or write scheme = \"\""
        ));
    }
    let space = if scheme.is_empty() { "" } else { " " };
    let whole = [scheme.as_bytes(), space.as_bytes(), secret].concat();
    let mut value = HeaderValue::from_bytes(&whole).expect("visible ASCII and spaces only");
    value.set_sensitive(true);
    Ok(value)
}
