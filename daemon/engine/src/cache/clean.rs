//! How entries go: on request, or because the disk or a quota is full.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use super::{
    Cache, CacheError, EntryId, EntryInfo, Grant, Inner, Viewer,
    error::During,
    inventory::{Inventory, Uses},
    model::{Grants, Meta},
    unix_now,
};

/// Blobs that no image uses yet may belong to a pull that is under way, here
/// or on another host; collection leaves them alone for that long.
const UNUSED_BLOB_PATIENCE_SECONDS: i64 = 3600;

/// What a clean has removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// The entries.
    pub removed: Vec<EntryInfo>,
    /// Bytes of their files. Files that are still open go when they are closed.
    pub freed_bytes: u64,
}

/// Free and total bytes of the cache's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// For this process.
    pub free_bytes: u64,
    /// In all.
    pub total_bytes: u64,
}

/// Space that a job is going to fill; it counts as taken until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Reservation {
    /// Says how many bytes are still to come: what was written is counted by
    /// the file system already.
    pub fn set_remaining(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.inner.reserved.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Keeps entries from being removed for as long as it lives.
#[derive(Debug)]
pub struct Hold {
    inner: Arc<Inner>,
    ids: Vec<EntryId>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &self.ids {
            if let Some(count) = held.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    held.remove(id);
                }
            }
        }
    }
}

impl Cache {
    /// Keeps entries, there already or still to come, from being removed.
    pub fn hold(&self, ids: Vec<EntryId>) -> Hold {
        let mut held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &ids {
            *held.entry(id.clone()).or_default() += 1;
        }
        drop(held);
        Hold { inner: Arc::clone(&self.inner), ids }
    }

    /// Removes every entry that is neither pinned nor held nor `in_use`.
    ///
    /// With [`Viewer::Uid`] only what nobody but that user may use. What is
    /// being written stays; so do manifests and configs of images that stay.
    ///
    /// # Errors
    /// [`CacheError::Io`]; some entries may be gone then.
    pub fn clean(
        &self,
        viewer: Viewer,
        dry_run: bool,
        in_use: &dyn Fn(&EntryId) -> bool,
    ) -> Result<Cleaned, CacheError> {
        let inner = &self.inner;
        let inventory = inner.scan()?;
        let mut kept = Vec::new();
        let mut doomed = Vec::new();
        for record in &inventory.images {
            let id = record.meta.id();
            if record.pinned || inner.is_held(&id) || in_use(&id) || !owns(viewer, &record.grants) {
                kept.push(record);
            } else {
                doomed.push(id);
            }
        }
        let used = Uses::count(kept.into_iter());
        for record in &inventory.packs {
            let id = record.meta.id();
            if !(record.pinned || inner.is_held(&id) || in_use(&id) || !owns(viewer, &record.grants)) {
                doomed.push(id);
            }
        }
        // Blobs have no grants: with the last image that used one, it goes too.
        let before = Uses::count(inventory.images.iter());
        for blob in &inventory.blobs {
            let id = EntryId::Blob(blob.digest);
            // One that no image has used yet may belong to a pull under way, which
            // stores it again when it publishes its image.
            let orphan = before.of(&id) == 0;
            let unused = if orphan { viewer == Viewer::All } else { used.of(&id) == 0 };
            if unused && !inner.is_held(&id) && !in_use(&id) {
                doomed.push(id);
            }
        }
        inner.remove_all(&inventory, &doomed, dry_run)
    }

    /// Removes entries, those used longest ago first and blobs before packs
    /// before SIFs, until `bytes` are freed or nothing is left to remove.
    ///
    /// # Errors
    /// [`CacheError::Io`]; some entries may be gone then.
    pub fn collect(&self, bytes: u64, in_use: &dyn Fn(&EntryId) -> bool) -> Result<Cleaned, CacheError> {
        let inventory = self.inner.scan()?;
        let (doomed, _) = self.inner.plan(&inventory, bytes, in_use);
        self.inner.remove_all(&inventory, &doomed, false)
    }

    /// Makes sure that a job may write `need_bytes`: collects where that would
    /// leave too little of the disk or the quota, and refuses, removing
    /// nothing, where collecting would not be enough.
    ///
    /// # Errors
    /// [`CacheError::NoSpace`], [`CacheError::QuotaExceeded`], with the
    /// figures; [`CacheError::Io`].
    pub fn check_space(&self, need_bytes: u64, in_use: &dyn Fn(&EntryId) -> bool) -> Result<Reservation, CacheError> {
        let inner = &self.inner;
        let wanted = need_bytes.saturating_add(inner.reserved.load(Ordering::Relaxed));
        let mut missing = inner.missing_bytes(wanted, inner.space()?);
        if let Some(quota) = inner.quota_bytes {
            let used = inner.scan()?.total_bytes();
            missing = missing.max(used.saturating_add(wanted).saturating_sub(quota));
        }
        if missing > 0 {
            let inventory = inner.scan()?;
            let (doomed, gain) = inner.plan(&inventory, missing, in_use);
            // Whoever asks for more than there can be must not cost others
            // what they have.
            let enough = gain >= missing;
            let cleaned = if enough { inner.remove_all(&inventory, &doomed, false)? } else { Cleaned::default() };
            let space = inner.space()?;
            if inner.missing_bytes(wanted, space) > 0 {
                return Err(CacheError::NoSpace {
                    need_bytes,
                    free_bytes: space.free_bytes,
                    total_bytes: space.total_bytes,
                    min_free_percent: inner.min_free_percent.load(Ordering::Relaxed),
                });
            }
            // Of a collection that was not made, what it would have left.
            let freed_bytes = if enough { cleaned.freed_bytes } else { gain };
            let used_bytes = inventory.total_bytes().saturating_sub(freed_bytes);
            if let Some(quota_bytes) = inner.quota_bytes
                && used_bytes.saturating_add(wanted) > quota_bytes
            {
                return Err(CacheError::QuotaExceeded { need_bytes, used_bytes, quota_bytes });
            }
        }
        inner.reserved.fetch_add(need_bytes, Ordering::Relaxed);
        Ok(Reservation { inner: Arc::clone(inner), bytes: need_bytes })
    }

    /// Free and total bytes of the cache's file system.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn space(&self) -> Result<Space, CacheError> {
        self.inner.space()
    }
}

impl Inner {
    pub(super) fn space(&self) -> Result<Space, CacheError> {
        let stat = rustix::fs::fstatvfs(&self.dirs.root).during("measure the free space")?;
        // Available, not free: root's reserve is not there for a cache.
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn missing_bytes(&self, wanted: u64, space: Space) -> u64 {
        let percent = self.min_free_percent.load(Ordering::Relaxed);
        let must_stay = (u128::from(space.total_bytes) * u128::from(percent) / 100) as u64;
        must_stay.saturating_add(wanted).saturating_sub(space.free_bytes)
    }

    fn is_held(&self, id: &EntryId) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    /// What a collection of `bytes` would remove, in this order, and how many
    /// bytes that would free: it may be fewer.
    fn plan(&self, inventory: &Inventory, bytes: u64, in_use: &dyn Fn(&EntryId) -> bool) -> (Vec<EntryId>, u64) {
        let free = |id: &EntryId| !self.is_held(id) && !in_use(id);
        let documents: Vec<_> =
            inventory.images.iter().flat_map(|record| [record.meta.manifest, record.meta.config]).collect();
        let mut candidates: Vec<(u8, i64, EntryId, u64)> = Vec::new();
        for blob in inventory.blobs.iter().filter(|blob| !documents.contains(&blob.digest)) {
            let id = EntryId::Blob(blob.digest);
            let used = self.used_at(&id, blob.changed);
            if free(&id) && unix_now() - used.max(blob.changed) >= UNUSED_BLOB_PATIENCE_SECONDS {
                candidates.push((0, used, id, blob.size_bytes));
            }
        }
        for record in inventory.packs.iter().filter(|record| !record.pinned) {
            let id = record.meta.id();
            if free(&id) {
                candidates.push((1, self.used_at(&id, record.dated), id, record.size_bytes));
            }
        }
        for record in inventory.images.iter().filter(|record| !record.pinned) {
            let id = record.meta.id();
            if free(&id) {
                candidates.push((2, self.used_at(&id, record.dated), id, record.size_bytes));
            }
        }
        candidates.sort();
        let mut freed = 0u64;
        let mut doomed = Vec::new();
        for (_, _, id, size_bytes) in candidates {
            if freed >= bytes {
                break;
            }
            freed = freed.saturating_add(size_bytes);
            doomed.push(id);
        }
        // Manifests and configs go with the last image that has them.
        let before = Uses::count(inventory.images.iter());
        let after = Uses::count(inventory.images.iter().filter(|record| !doomed.contains(&record.meta.id())));
        for blob in &inventory.blobs {
            let id = EntryId::Blob(blob.digest);
            if before.of(&id) > 0 && after.of(&id) == 0 && free(&id) && !doomed.contains(&id) {
                freed = freed.saturating_add(blob.size_bytes);
                doomed.push(id);
            }
        }
        (doomed, freed)
    }

    fn remove_all(&self, inventory: &Inventory, doomed: &[EntryId], dry_run: bool) -> Result<Cleaned, CacheError> {
        let mut described: HashMap<EntryId, EntryInfo> =
            self.describe(inventory, Viewer::All).into_iter().map(|info| (info.id.clone(), info)).collect();
        let mut cleaned = Cleaned::default();
        let mut failed = None;
        for id in doomed {
            // A pull may have come for it since the plan was made.
            if self.is_held(id) {
                continue;
            }
            if !dry_run && let Err(error) = self.remove(id) {
                tracing::warn!(%id, %error, "cannot remove a cache entry");
                failed.get_or_insert(error);
                continue;
            }
            if let Some(info) = described.remove(id) {
                cleaned.freed_bytes = cleaned.freed_bytes.saturating_add(info.size_bytes);
                cleaned.removed.push(info);
            }
        }
        if !dry_run && doomed.iter().any(|id| matches!(id, EntryId::Image(_))) {
            self.rebuild_index(&self.scan()?.images)?;
        }
        if !dry_run {
            self.worker.changed();
        }
        failed.map_or(Ok(cleaned), Err)
    }
}

/// Says whether an entry is the viewer's alone to remove.
fn owns(viewer: Viewer, grants: &Grants) -> bool {
    match viewer {
        Viewer::All => true,
        Viewer::Uid(uid) => *grants == Grants::of(Grant::Uid(uid)),
    }
}
