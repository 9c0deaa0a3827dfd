//! Secrets that are known when seen, and the search for them.

use aws_lc_rs::rand;

/// A secret with a name.
#[derive(Clone)]
pub(crate) struct Canary {
    pub(crate) name: &'static str,
    pub(crate) text: String,
}

/// Bytes of a secret that give it away: whoever knows as many knows where it came from.
const PIECE: usize = 10;

impl Canary {
    /// A new one, like a provider's key.
    pub(crate) fn new(name: &'static str) -> Canary {
        let mut random = [0; 20];
        rand::fill(&mut random).expect("randomness");
        let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Canary { name, text }
    }

    /// As clients and upstreams write it.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.text)
    }

    /// Whether any piece of it is in `heard`.
    fn is_in(&self, heard: &[u8]) -> bool {
        let mut pieces = self.text.as_bytes().windows(PIECE);
        pieces.any(|piece| memchr::memmem::find(heard, piece).is_some())
    }
}

/// The names of the secrets of which a piece is in `heard`.
pub(crate) fn found(secrets: &[Canary], heard: &[u8]) -> Vec<&'static str> {
    secrets.iter().filter(|secret| secret.is_in(heard)).map(|secret| secret.name).collect()
}

/// Asserts that none of `secrets` is in what `who` was told.
#[track_caller]
pub(crate) fn assert_none(secrets: &[Canary], who: &str, heard: impl AsRef<[u8]>) {
    let heard = heard.as_ref();
    let found = found(secrets, heard);
    assert!(found.is_empty(), "{who} was told {found:?}: {}", String::from_utf8_lossy(heard));
}

#[test]
fn a_planted_leak_is_found_whole_or_in_part() {
    let (one, two) = (Canary::new("one"), Canary::new("two"));
    let secrets = [one.clone(), two.clone()];
    assert_eq!(found(&secrets, b"nothing of it"), [""; 0]);
    assert_eq!(found(&secrets, one.bearer().as_bytes()), ["one"]);
    // The beginning, as logs like to show it; the end; something of the middle.
    for at in [0, 30, 7] {
        let piece = format!("key {}… refused", &two.text[at..at + PIECE]);
        assert_eq!(found(&secrets, piece.as_bytes()), ["two"], "{piece}");
    }
}

#[test]
#[should_panic(expected = "somebody was told [\"one\"]")]
fn a_planted_leak_fails_its_test() {
    let one = Canary::new("one");
    assert_none(std::slice::from_ref(&one), "somebody", one.bearer());
}
