//! Which of the valid names a mistyped one was most likely meant to be.
//!
//! Optimal string alignment distance on case-folded names, `-` counting as `_`. Cost: the product
//! of the lengths, and names longer than 64 bytes are not compared at all.

/// The candidate closest to `name`, if one is close enough to be worth suggesting: at most one
/// edit per three characters, and one edit for short names.
pub(super) fn nearest<'c>(
    name: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let wanted = fold(name)?;
    let allowed = (wanted.len() / 3).max(1);
    candidates
        .into_iter()
        .filter_map(|candidate| Some((distance(&wanted, &fold(candidate)?), candidate)))
        .filter(|(edits, candidate)| *edits <= allowed && *edits < candidate.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

fn fold(name: &str) -> Option<Vec<u8>> {
    let bytes = name.bytes().map(|b| if b == b'-' { b'_' } else { b.to_ascii_lowercase() });
    (name.len() <= 64).then(|| bytes.collect())
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substitute = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substitute.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("idle", "idle", 0),
            ("idel", "idle", 1),
            ("idl", "idle", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), edits, "{a} {b}");
            assert_eq!(distance(b.as_bytes(), a.as_bytes()), edits, "{b} {a}");
        }
    }

    #[test]
    fn suggests_only_what_is_close() {
        let names = ["heartbeat", "commit_after", "idle", "url"];
        assert_eq!(nearest("heartbaet", names), Some("heartbeat"));
        assert_eq!(nearest("Commit-After", names), Some("commit_after"));
        assert_eq!(nearest("ilde", names), Some("idle"));
        assert_eq!(nearest("timeout", names), None);
        assert_eq!(nearest("x", names), None);
        assert_eq!(nearest(&"heartbeat".repeat(20), names), None);
    }
}
