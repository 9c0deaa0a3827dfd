//! The keys of one upstream: which one a request goes with, and what becomes of one that is refused.
//!
//! One key is used until the upstream says that it has had its share (429); then the next one is,
//! and the first rests as long as the upstream asks. If all rest, the one that may go on first is
//! used. A key that the upstream does not know (401) is read again, once for each time it is
//! refused; and files are looked at now and then, so that a rotated key needs no reload.
//!
//! All workers share the keys of an upstream. No key is in any Debug output or message.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::clock::Moment;
use crate::config::{Credential, CredentialSource};
use crate::limits;

/// See the module.
pub struct Keys {
    list: Box<[Key]>,
    current: AtomicUsize,
    /// When the files were last looked at, nanoseconds of the clock.
    looked: AtomicU64,
}

struct Key {
    configured: Credential,
    value: Mutex<HeaderValue>,
    /// Until when it rests, nanoseconds of the clock.
    rests: AtomicU64,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.list.len())
    }
}

impl Keys {
    /// Those of the configuration.
    pub fn new(configured: &[Credential]) -> Keys {
        let key = |credential: &Credential| Key {
            configured: credential.clone(),
            value: Mutex::new(credential.value.clone()),
            rests: AtomicU64::new(0),
        };
        let list = configured.iter().map(key).collect();
        Keys { list, current: AtomicUsize::new(0), looked: AtomicU64::new(0) }
    }

    /// Whether the client's own credential is passed on instead.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Puts the key of one attempt into its headers, instead of another one's; returns which it is.
    pub fn put(&self, headers: &mut HeaderMap, now: Moment) -> Option<usize> {
        let rests = |index: usize| self.list[index].rests.load(Relaxed);
        let current = self.current.load(Relaxed);
        let count = self.list.len();
        let turn = (0..count).map(|step| (current + step) % count);
        // The first in turn that does not rest, else the one that rests the shortest.
        let index = turn.min_by_key(|index| rests(*index).saturating_sub(now.nanos()))?;
        if index != current {
            self.current.store(index, Relaxed);
        }
        for key in &self.list {
            headers.remove(&key.configured.header);
        }
        let key = &self.list[index];
        headers.insert(self.header(index).clone(), key.value().clone());
        Some(index)
    }

    fn header(&self, index: usize) -> &HeaderName {
        &self.list[index].configured.header
    }

    /// The key `index` has had its share; it may go on after `wait`. Whether another one may now.
    pub fn limited(&self, index: usize, wait: Option<Duration>, now: Moment) -> bool {
        let wait = wait.unwrap_or(limits::KEY_REST).min(limits::KEY_REST_MAX);
        self.list[index].rests.store(now.after(wait).nanos(), Relaxed);
        self.list.iter().any(|key| key.rests.load(Relaxed) <= now.nanos())
    }

    /// The upstream does not know the key `index` as it stands in `sent`, the headers of the attempt:
    /// reads it again. Whether it is another one now, whoever has read that first.
    pub async fn refused(self: &Arc<Keys>, index: usize, sent: &HeaderMap) -> bool {
        let keys = self.clone();
        // A file may lie on a disk that does not answer.
        let read = tokio::task::spawn_blocking(move || keys.list[index].reread());
        // What went wrong there changes nothing about what is known.
        let _ = read.await;
        sent.get(self.header(index)) != Some(&self.list[index].value())
    }

    /// Looks at the files, if that was not done for a while.
    pub fn look(self: &Arc<Keys>, now: Moment) {
        let looked = self.looked.load(Relaxed);
        let due = now.nanos().saturating_sub(looked) >= limits::KEY_LOOK.as_nanos() as u64;
        let files = |key: &Key| matches!(key.configured.source, CredentialSource::File(_));
        if !due || !self.list.iter().any(files) {
            return;
        }
        // One of the workers that come here at once.
        if self.looked.compare_exchange(looked, now.nanos(), Relaxed, Relaxed).is_ok() {
            let keys = self.clone();
            tokio::task::spawn_blocking(move || {
                for key in &keys.list {
                    key.reread();
                }
            });
        }
    }
}

impl Key {
    fn value(&self) -> HeaderValue {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads it again. One that cannot be read stays as it was.
    fn reread(&self) {
        match self.configured.reread() {
            Ok(value) => {
                let mut known = self.value.lock().unwrap_or_else(PoisonError::into_inner);
                if *known != value {
                    tracing::info!(source = ?self.configured.source, "a key was read anew");
                    *known = value;
                    self.rests.store(0, Relaxed);
                }
            }
            Err(reason) => {
                let source = &self.configured.source;
                tracing::warn!(?source, reason, "a key cannot be read now; the one known is used");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn credential(source: CredentialSource, value: &str) -> Credential {
        Credential {
            header: http::header::AUTHORIZATION,
            value: HeaderValue::from_str(value).expect("a value"),
            scheme: String::new(),
            source,
        }
    }

    fn keys(values: &[&str]) -> Keys {
        let of = |value: &&str| credential(CredentialSource::Env("KEY".to_owned()), value);
        Keys::new(&values.iter().map(of).collect::<Vec<_>>())
    }

    fn at(seconds: u64) -> Moment {
        Moment::default().after(Duration::from_secs(seconds))
    }

    fn used(keys: &Keys, now: u64) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, HeaderValue::from_static("client's"));
        keys.put(&mut headers, at(now)).expect("one");
        assert_eq!(headers.len(), 1);
        headers["authorization"].to_str().expect("ASCII").to_owned()
    }

    #[test]
    fn a_limited_key_rests_and_the_next_one_is_used_until_it_is_limited() {
        let keys = keys(&["a", "b"]);
        assert_eq!([used(&keys, 0), used(&keys, 0)], ["a", "a"]);
        assert!(keys.limited(0, Some(Duration::from_secs(20)), at(1)));
        assert_eq!([used(&keys, 1), used(&keys, 30)], ["b", "b"], "no need to go back");
        assert!(keys.limited(1, Some(Duration::from_secs(20)), at(30)));
        assert_eq!(used(&keys, 30), "a");
        assert!(!keys.limited(0, Some(Duration::from_secs(60)), at(31)));
        assert_eq!(used(&keys, 32), "b", "all rest, this one not as long");
    }

    #[test]
    fn without_keys_the_clients_own_stays() {
        let keys = keys(&[]);
        let mut headers = HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, HeaderValue::from_static("client's"));
        assert!(keys.is_empty() && keys.put(&mut headers, at(0)).is_none());
        assert_eq!(headers.len(), 1);
    }

    #[tokio::test]
    async fn a_refused_key_is_read_again_and_a_broken_file_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let write = |text: &str| std::fs::write(&path, text).expect("a file");
        write("one");
        let file = |path: &Path| credential(CredentialSource::File(path.to_owned()), "one");
        let keys = Arc::new(Keys::new(&[file(&path)]));
        let sent = |key: &'static str| {
            HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static(key))])
        };
        assert!(!keys.refused(0, &sent("one")).await, "it is the same");
        write("two\n");
        assert!(keys.refused(0, &sent("one")).await);
        assert_eq!(used(&keys, 0), "two");
        write("");
        assert!(!keys.refused(0, &sent("two")).await);
        assert_eq!(used(&keys, 0), "two");
        assert!(!format!("{keys:?}").contains("two"));
    }

    #[tokio::test]
    async fn a_key_that_was_read_anew_while_the_old_one_was_on_its_way_is_another_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        std::fs::write(&path, "new").expect("a file");
        let keys = Arc::new(Keys::new(&[credential(CredentialSource::File(path), "old")]));
        let mut sent = HeaderMap::new();
        keys.put(&mut sent, at(0)).expect("one");
        // As when the files are looked at, or by another request that was refused.
        keys.list[0].reread();
        assert!(keys.refused(0, &sent).await, "the old one was refused");
        keys.put(&mut sent, at(0)).expect("one");
        assert!(!keys.refused(0, &sent).await, "now it is the new one");
    }
}
