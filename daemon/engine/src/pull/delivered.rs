//! Configs that registries have delivered lately.
//!
//! Until an image is in the cache, each pull of it needs its config. Whoever
//! resolves a manifest that has been resolved at the same origin a moment ago
//! is given the config from here instead of fetching it again. That unlocks
//! nothing: the caller's own credentials have just answered for the manifest,
//! and the config is the one that came with this very manifest from there.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sctl_common::Digest;

/// A pull that takes longer fetches its few KiB again.
const LIFETIME: Duration = Duration::from_secs(600);

/// All of them together; configs have a few KiB.
const MAX_BYTES: usize = 16 << 20;

/// How many of them, however small they are.
const MAX_COUNT: usize = 1024;

/// Where a config came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) origin: String,
    pub(super) manifest: Digest,
    pub(super) config: Digest,
}

#[derive(Debug)]
struct Entry {
    source: Source,
    bytes: Arc<[u8]>,
    until: Instant,
}

/// The configs, the newest last.
#[derive(Debug, Default)]
pub(super) struct Delivered(Mutex<VecDeque<Entry>>);

impl Delivered {
    /// Remembers a config. Its bytes have been checked against its digest.
    pub(super) fn remember(&self, source: Source, bytes: &[u8]) {
        // What stands in the list is whole at any moment.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        entries.retain(|entry| entry.until > now && entry.source != source);
        if bytes.len() > MAX_BYTES {
            return;
        }
        let mut total: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
        while total + bytes.len() > MAX_BYTES || entries.len() >= MAX_COUNT {
            let Some(oldest) = entries.pop_front() else { break };
            total -= oldest.bytes.len();
        }
        entries.push_back(Entry { source, bytes: bytes.into(), until: now + LIFETIME });
    }

    /// The config that came from there, if it has not been forgotten.
    pub(super) fn find(&self, source: &Source) -> Option<Arc<[u8]>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let found = entries.iter().find(|entry| entry.source == *source && entry.until > now);
        found.map(|entry| Arc::clone(&entry.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(origin: &str, manifest: &[u8], config: &[u8]) -> Source {
        Source { origin: origin.to_owned(), manifest: Digest::of(manifest), config: Digest::of(config) }
    }

    #[test]
    fn a_config_serves_its_own_manifest_and_origin_only() {
        let delivered = Delivered::default();
        delivered.remember(source("o", b"m", b"config"), b"config");
        assert_eq!(delivered.find(&source("o", b"m", b"config")).as_deref(), Some(b"config".as_slice()));
        for (origin, manifest, config) in [("p", "m", "config"), ("o", "n", "config"), ("o", "m", "other")] {
            let other = source(origin, manifest.as_bytes(), config.as_bytes());
            assert!(delivered.find(&other).is_none(), "{other:?}");
        }
        delivered.0.lock().unwrap()[0].until = Instant::now();
        assert!(delivered.find(&source("o", b"m", b"config")).is_none(), "too old");
    }

    #[test]
    fn the_oldest_make_room() {
        let delivered = Delivered::default();
        let large = vec![0; MAX_BYTES / 2];
        for n in 0..3u8 {
            delivered.remember(source("o", &[n], b"c"), &large);
        }
        assert!(delivered.find(&source("o", &[0], b"c")).is_none());
        assert!((1..3).all(|n| delivered.find(&source("o", &[n], b"c")).is_some()));
        delivered.remember(source("o", &[9], b"c"), &vec![0; MAX_BYTES + 1]);
        assert!(delivered.find(&source("o", &[9], b"c")).is_none(), "larger than all together may be");
        for n in 0..2 * MAX_COUNT {
            delivered.remember(source("o", &n.to_le_bytes(), b"c"), b"c");
        }
        assert_eq!(delivered.0.lock().unwrap().len(), MAX_COUNT);
    }
}
