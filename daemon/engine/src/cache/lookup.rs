//! How entries are found.

use std::{fs::File, path::PathBuf, time::Duration};

use sctl_common::{DiffId, Digest, Platform};

use super::{
    Cache, CacheError, EntryId, Grant, Grants, ImageKey, ImageMeta, PackMeta,
    model::{check_profile, pack_stem},
};

/// A pack that the caller may use.
#[derive(Debug)]
pub struct PackFile {
    /// Open for reading.
    pub file: File,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// What it holds.
    pub meta: PackMeta,
}

/// A finished SIF.
#[derive(Debug)]
pub struct ImageFile {
    /// Open for reading.
    pub file: File,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// What it was made from.
    pub meta: ImageMeta,
    /// Who has earned it.
    pub grants: Grants,
}

/// A right to an image that need not be asked for again until it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The image; it may be gone from the cache.
    pub key: ImageKey,
    /// Of the platform's manifest.
    pub manifest: Digest,
    /// How long it still holds.
    pub remaining: Duration,
}

/// A lease, and whose it is for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// Who holds it.
    pub grant: Grant,
    /// The canonical reference that it is for.
    pub reference: String,
    /// For which platform.
    pub platform: Platform,
    /// What it gives.
    pub lease: Lease,
}

impl Cache {
    /// Finds a pack that `uid` may use. One that is not there and one that is
    /// not the caller's look the same.
    ///
    /// # Errors
    /// [`CacheError::BadProfile`]; [`CacheError::Io`].
    pub fn find_pack(&self, diff_id: &DiffId, profile_id: &str, uid: u32) -> Result<Option<PackFile>, CacheError> {
        check_profile(profile_id)?;
        let found = self.inner.load_ready::<PackMeta>(&pack_stem(diff_id, profile_id))?;
        Ok(found.filter(|(record, _)| record.grants.allow(uid)).map(|(record, file)| {
            self.touch(EntryId::Pack { diff_id: *diff_id, profile_id: profile_id.to_owned() });
            PackFile { file, size_bytes: record.size_bytes, meta: record.meta }
        }))
    }

    /// Finds an image. The caller's right is the broker's to know: it comes
    /// from a lease, or from having resolved just this manifest at its origin.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn find_image(&self, key: &ImageKey) -> Result<Option<ImageFile>, CacheError> {
        let found = self.inner.load_ready::<ImageMeta>(&key.to_string())?;
        Ok(found.map(|(record, file)| {
            self.touch(EntryId::Image(*key));
            ImageFile { file, size_bytes: record.size_bytes, meta: record.meta, grants: record.grants }
        }))
    }

    /// Path of an image's file, for display only.
    pub fn image_path(&self, key: &ImageKey) -> PathBuf {
        self.inner.dirs.path.join("sif").join(format!("{key}.sif"))
    }

    /// Says that an entry has been used now.
    pub fn touch(&self, id: EntryId) {
        self.inner.state.touch(id);
        self.inner.worker.changed();
    }

    /// Remembers that a holder of `grant` has earned the image that `reference`
    /// names now, for `duration` from now.
    pub fn put_lease(
        &self,
        grant: Grant,
        reference: &str,
        platform: &Platform,
        key: ImageKey,
        manifest: Digest,
        duration: Duration,
    ) {
        self.inner.state.put_lease(grant, reference, platform, key, manifest, duration);
        self.inner.worker.changed();
    }

    /// The lease that lets `uid` use `reference`: its own, else everybody's.
    pub fn lease(&self, uid: u32, reference: &str, platform: &Platform) -> Option<Lease> {
        let of = |grant| self.inner.state.lease(grant, reference, platform);
        of(Grant::Uid(uid)).or_else(|| of(Grant::Public))
    }

    /// All leases that hold: by reference, then by holder. They are about
    /// everybody: who may see them is the caller's decision.
    pub fn leases(&self) -> Vec<HeldLease> {
        self.inner.state.leases()
    }

    /// Ends a lease, such as when the registry refused its holder.
    pub fn remove_lease(&self, grant: Grant, reference: &str, platform: &Platform) {
        self.inner.state.remove_lease(grant, reference, platform);
        self.inner.worker.changed();
    }

    /// Counts bytes that a pull fetched, and blob bytes that it need not fetch.
    pub fn count(&self, fetched_bytes: u64, reused_bytes: u64) {
        self.inner.state.count(fetched_bytes, reused_bytes);
        self.inner.worker.changed();
    }
}
