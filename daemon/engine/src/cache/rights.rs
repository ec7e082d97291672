//! Who has earned which image, in memory.
//!
//! Sidecars say the same and have the last word. This copy lets a broker
//! refuse without a look at the disk, so that "not there" and "not yours" take
//! the same time: only entries of the caller's own, or of everybody, are ever
//! looked at.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sctl_common::Platform;

use super::{Cache, Grant, Grants, ImageKey, ImageMeta, model::Record};

/// What an image is asked for by.
#[derive(Debug)]
struct Origin {
    /// `registry/repository`.
    name: String,
    platform: Platform,
}

/// Images by who may use them.
#[derive(Debug, Default)]
pub(super) struct Rights(Mutex<HashMap<(Grant, ImageKey), Arc<Origin>>>);

impl Rights {
    fn earned(&self) -> MutexGuard<'_, HashMap<(Grant, ImageKey), Arc<Origin>>> {
        // Each entry stands for itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes all that an image's sidecar says.
    pub(super) fn learn(&self, record: &Record<ImageMeta>) {
        self.learn_of(&record.meta, &record.grants);
    }

    pub(super) fn learn_of(&self, meta: &ImageMeta, grants: &Grants) {
        let name = meta.origin.split_once("://").map_or(meta.origin.as_str(), |(_, name)| name);
        let origin = Arc::new(Origin { name: name.to_owned(), platform: meta.platform.clone() });
        let public = grants.is_public().then_some(Grant::Public);
        let mut earned = self.earned();
        for grant in grants.uids().map(Grant::Uid).chain(public) {
            earned.insert((grant, meta.key), Arc::clone(&origin));
        }
    }

    /// Forgets an image that has left the cache.
    pub(super) fn forget(&self, key: &ImageKey) {
        self.earned().retain(|(_, known), _| known != key);
    }

    fn allow(&self, uid: u32, key: &ImageKey, name: &str, platform: &Platform) -> bool {
        let earned = self.earned();
        // Both are always looked up.
        let own = earned.get(&(Grant::Uid(uid), *key));
        let public = earned.get(&(Grant::Public, *key));
        own.or(public).is_some_and(|origin| origin.name == name && origin.platform == *platform)
    }
}

impl Cache {
    /// Says whether `uid` has earned the image `key` of the repository `name`
    /// (`registry/repository`), for `platform`. No file is touched.
    ///
    /// Of images that another host has added to a shared cache this knows
    /// nothing.
    pub fn may_use(&self, uid: u32, key: &ImageKey, name: &str, platform: &Platform) -> bool {
        self.inner.rights.allow(uid, key, name, platform)
    }
}
