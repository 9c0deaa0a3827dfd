//! `[[tenant]]`: who may stream, by API key, and how much of it.
//!
//! A key's SHA-256 stands in the file, never the key. Invariant: names are unique, and so are
//! hashes over all tenants, so that a key leads to exactly one tenant.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use toml::de::DeValue;
use toml::value::Datetime;

use super::read::{Place, Reading, Section, found};
use super::units::quoted;
use super::usage::MODEL_BYTES;

/// One tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Unique name for logs: 1 to 64 of letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Its keys.
    pub keys: Vec<Key>,
    /// None of its keys is taken.
    pub disabled: bool,
    /// Proxied requests in flight at once; `None` = as many as `limits.streams`.
    pub streams: Option<usize>,
    /// New proxied requests per second; `None` = no limit of its own.
    pub new_per_second: Option<u32>,
    /// Tokens per minute by model; `*` is any model without an entry of its own.
    pub tokens_per_minute: BTreeMap<String, u32>,
    /// Its share where requests queue, relative to other tenants'.
    pub weight: u32,
    /// Its class where requests queue.
    pub priority: Priority,
}

/// One API key of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
    /// Seconds since the epoch from which on it is refused.
    pub expires: Option<u64>,
    /// It is refused.
    pub disabled: bool,
}

/// Which requests go first where they queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// After the interactive ones, but with a share of its own.
    Batch,
}

impl Priority {
    const ALL: [(&'static str, Priority); 2] =
        [("interactive", Priority::Interactive), ("batch", Priority::Batch)];
}

const TENANTS: usize = 10_000;
const KEYS: usize = 1_000;
const MODELS: usize = 256;
const MANY: u64 = 10_000_000;
const TOKENS: RangeInclusive<u64> = 1..=4_000_000_000;

pub(super) fn read(r: &mut Reading<'_>, root: &Section<'_>) -> Vec<Tenant> {
    let sections = r.sections(root, "tenant");
    if sections.len() > TENANTS {
        let place = r.place("tenant");
        r.fault(&place, format!("there are more than {TENANTS}"));
    }
    let mut tenants: Vec<Tenant> = Vec::new();
    let mut taken = BTreeMap::new();
    for s in sections.iter().take(TENANTS) {
        let set = |r: &Reading<'_>, name: &str| r.field(s, name).is_some();
        let (streams, rate) = (set(r, "streams"), set(r, "new_per_second"));
        let tenant = Tenant {
            name: read_name(r, s, &tenants),
            keys: read_keys(r, s, &mut taken),
            disabled: r.flag(s, "disabled", false),
            streams: streams.then(|| r.number(s, "streams", 1..=MANY, 1)),
            new_per_second: rate.then(|| r.number(s, "new_per_second", 1..=MANY, 1)),
            tokens_per_minute: read_tokens(r, s),
            weight: r.number(s, "weight", 1..=1000, 1),
            priority: r.choice(s, "priority", &Priority::ALL, Priority::Interactive),
        };
        tenants.push(tenant);
    }
    tenants
}

fn read_name(r: &mut Reading<'_>, s: &Section<'_>, before: &[Tenant]) -> String {
    let Some((place, name)) = r.text(s, "name") else {
        if r.field(s, "name").is_none() {
            r.fault(&s.place.below("name"), "is missing; write name = \"…\"");
        }
        return String::new();
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        let text = format!(
            "{} cannot be a name; write 1 to 64 letters, digits, dots, hyphens or underscores",
            quoted(name)
        );
        r.fault(&place, text);
    }
    if let Some(n) = before.iter().position(|other| other.name == name) {
        let text = format!("the name {} is taken by tenant[{n}]; choose another", quoted(name));
        r.fault(&place, text);
    }
    name.to_owned()
}

fn read_keys(
    r: &mut Reading<'_>,
    tenant: &Section<'_>,
    taken: &mut BTreeMap<[u8; 32], String>,
) -> Vec<Key> {
    let sections = r.sections(tenant, "key");
    if sections.len() > KEYS {
        r.fault(&tenant.place.below("key"), format!("there are more than {KEYS}"));
    }
    let mut keys = Vec::new();
    for s in sections.iter().take(KEYS) {
        let expires = read_expiry(r, s);
        let disabled = r.flag(s, "disabled", false);
        let Some((place, sha256)) = read_hash(r, s) else { continue };
        if let Some(other) = taken.insert(sha256, place.key.clone()) {
            let text = format!("is the same key as {other}; a key belongs to one tenant");
            r.fault(&place, text);
        }
        keys.push(Key { sha256, expires, disabled });
    }
    keys
}

/// Never quotes what it found: somebody may have written the key itself.
fn read_hash(r: &mut Reading<'_>, s: &Section<'_>) -> Option<(Place, [u8; 32])> {
    let Some((place, text)) = r.text(s, "sha256") else {
        if r.field(s, "sha256").is_none() {
            let text = "is missing; `tidegate key` makes a key and prints it";
            r.fault(&s.place.below("sha256"), text);
        }
        return None;
    };
    let mut hash = [0; 32];
    let digit = |b: u8| char::from(b).to_digit(16).map(|digit| digit as u8);
    let bytes = text.as_bytes();
    let ok = bytes.len() == 64
        && bytes.chunks_exact(2).zip(&mut hash).all(|(pair, byte)| {
            let both = digit(pair[0]).zip(digit(pair[1]));
            both.is_some_and(|(high, low)| {
                *byte = high << 4 | low;
                true
            })
        });
    if !ok {
        let text = "must be 64 hexadecimal digits, the SHA-256 of the key; `tidegate key` prints \
                    both; never write the key itself into this file";
        r.fault(&place, text);
        return None;
    }
    Some((place, hash))
}

fn read_expiry(r: &mut Reading<'_>, s: &Section<'_>) -> Option<u64> {
    let (place, value) = r.field(s, "expires")?;
    let wanted = "must be a date such as 2027-01-31, or a time with its offset such as \
                  2027-01-31T18:00:00Z";
    let DeValue::Datetime(read) = value.get_ref() else {
        r.fault(&place, format!("{wanted}, without quotes; found {}", found(value.get_ref())));
        return None;
    };
    let seconds = epoch_seconds(read);
    if seconds.is_none() {
        r.fault(&place, wanted);
    }
    seconds
}

/// A date is its first second in UTC; a time needs its offset.
fn epoch_seconds(read: &Datetime) -> Option<u64> {
    use toml::value::Offset;
    let date = read.date?;
    // Days of the proleptic Gregorian calendar, counted from 1 March of year 0.
    let (year, month) = match date.month {
        1 | 2 => (i64::from(date.year) - 1, i64::from(date.month) + 9),
        month => (i64::from(date.year), i64::from(month) - 3),
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = year * 365 + leap_days + (month * 153 + 2) / 5 + i64::from(date.day) - 1 - 719_468;
    let within = match (read.time, read.offset) {
        (None, None) => 0,
        (Some(time), Some(offset)) => {
            let minutes = match offset {
                Offset::Z => 0,
                Offset::Custom { minutes } => i64::from(minutes),
            };
            i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 - minutes * 60
                + i64::from(time.second.unwrap_or(0))
        }
        _ => return None,
    };
    u64::try_from(days * 86_400 + within).ok()
}

fn read_tokens(r: &mut Reading<'_>, s: &Section<'_>) -> BTreeMap<String, u32> {
    let mut models = BTreeMap::new();
    for (place, model, tokens) in r.numbers(s, "tokens_per_minute", MODELS, TOKENS) {
        if model.is_empty() || model.len() > MODEL_BYTES {
            r.fault(&place, "is not the name of a model; write one, or \"*\" for all others");
        }
        models.insert(model, u32::try_from(tokens).unwrap_or(u32::MAX));
    }
    models
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_become_seconds_since_the_epoch() {
        for (text, seconds) in [
            ("1970-01-01", Some(0)),
            ("2000-03-01", Some(951_868_800)),
            ("2024-02-29", Some(1_709_164_800)),
            ("2027-01-31T18:00:00Z", Some(1_801_418_400)),
            ("2027-01-31T18:00:00+02:00", Some(1_801_411_200)),
            ("2027-01-31T18:00:00", None),
            ("18:00:00", None),
            ("1960-01-01", None),
        ] {
            let read: Datetime = text.parse().expect("a date");
            assert_eq!(epoch_seconds(&read), seconds, "{text}");
        }
    }

    #[test]
    fn a_day_is_a_day() {
        let day = |text: &str| epoch_seconds(&text.parse().expect("a date")).expect("since 1970");
        for (day_before, day_after) in [
            ("2023-02-28", "2023-03-01"),
            ("2024-02-29", "2024-03-01"),
            ("2100-02-28", "2100-03-01"),
            ("2026-12-31", "2027-01-01"),
        ] {
            assert_eq!(day(day_after) - day(day_before), 86_400, "{day_after}");
        }
    }
}
