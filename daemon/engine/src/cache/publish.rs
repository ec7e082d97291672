//! How entries appear: sidecar first, then the file by rename, then the row.
//!
//! A process that dies at any step leaves the old state or the new one, and
//! nothing that the next start would not recognise as a leftover.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use sctl_common::{DiffId, Digest};

use super::{
    Cache, CacheError, EntryId, Grant, ImageKey, ImageMeta, Inner, PackMeta, Sealed,
    dirs::unlink,
    error::During,
    failpoint::failpoint_at,
    model::{Grants, Meta, RECORD_VERSION, Record, add_reference, check_profile, pack_stem},
    unix_now,
};

/// Files are compared in pieces of this many bytes.
const COMPARE_BUFFER: usize = 1 << 20;

/// An entry that now stands in the cache.
#[derive(Debug)]
pub struct Published {
    /// Open for reading.
    pub file: File,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// An equal entry stood there already; it was kept and given the grant.
    pub existed: bool,
}

impl Cache {
    /// Publishes a pack that was made with the rights that `grant` tells.
    ///
    /// A pack is a function of its name. Where one stands already its bytes are
    /// compared, so that a false one is found the next time somebody delivers
    /// the layer.
    ///
    /// # Errors
    /// [`CacheError::Differs`] if another one stood there: neither does then.
    /// [`CacheError::BadProfile`]; [`CacheError::Io`]. The old state stands then.
    pub fn publish_pack(&self, sealed: Sealed, meta: &PackMeta, grant: Grant) -> Result<Published, CacheError> {
        check_profile(&meta.profile_id)?;
        self.inner.publish(sealed, meta, grant)
    }

    /// Publishes a SIF, and names it in the image layout.
    ///
    /// `blobs` are the bytes of its manifest and config: they are stored again
    /// if a clean has removed them since the image was resolved.
    ///
    /// # Errors
    /// [`CacheError::Differs`] if another one stood there: neither does then.
    /// [`CacheError::Io`]. The old state stands then.
    pub fn publish_image(
        &self,
        sealed: Sealed,
        meta: &ImageMeta,
        grant: Grant,
        blobs: &[&[u8]],
    ) -> Result<Published, CacheError> {
        for bytes in blobs {
            self.publish_blob(&Digest::of(bytes), bytes)?;
        }
        let published = self.inner.publish(sealed, meta, grant)?;
        self.inner.rights.learn_of(meta, &Grants::of(grant));
        self.inner.name_in_index(meta);
        failpoint_at("publish_image", "after_index");
        Ok(published)
    }

    /// Adds a grant to a pack; `false` if there is no such pack.
    ///
    /// # Errors
    /// [`CacheError::Io`]. The old grants stand then.
    pub fn add_pack_grant(&self, diff_id: &DiffId, profile_id: &str, grant: Grant) -> Result<bool, CacheError> {
        check_profile(profile_id)?;
        self.inner.amend::<PackMeta>(&pack_stem(diff_id, profile_id), |record| record.grants.add(grant))
    }

    /// Adds a grant to an image, and the reference that led to it; `false` if
    /// there is no such image.
    ///
    /// # Errors
    /// [`CacheError::Io`]. The old grants stand then.
    pub fn add_image_grant(&self, key: &ImageKey, grant: Grant, reference: Option<&str>) -> Result<bool, CacheError> {
        let mut renamed = None;
        let mut learned = None;
        let found = self.inner.amend::<ImageMeta>(&key.to_string(), |record| {
            learned = Some(record.meta.clone());
            let granted = record.grants.add(grant);
            let named = reference.is_some_and(|reference| add_reference(&mut record.meta.references, reference));
            if named {
                renamed = Some(record.meta.clone());
            }
            granted | named
        })?;
        if let Some(meta) = learned {
            self.inner.rights.learn_of(&meta, &Grants::of(grant));
        }
        if let Some(meta) = renamed {
            self.inner.name_in_index(&meta);
        }
        Ok(found)
    }

    /// Pins an image, so that nothing but an unpinning makes it go; `false` if
    /// there is no such image.
    ///
    /// # Errors
    /// [`CacheError::Io`]. The old state stands then.
    pub fn set_pinned(&self, key: &ImageKey, pinned: bool) -> Result<bool, CacheError> {
        self.inner
            .amend::<ImageMeta>(&key.to_string(), |record| std::mem::replace(&mut record.pinned, pinned) != pinned)
    }
}

impl Inner {
    fn publish<M: Meta>(&self, sealed: Sealed, meta: &M, grant: Grant) -> Result<Published, CacheError> {
        let stem = meta.stem();
        let dir = self.dirs.of(M::KIND);
        let name = format!("{stem}.{}", M::KIND.extension());
        failpoint_at(M::PUBLISH, "before_sidecar");
        // Compared before the lock is taken: it may be gigabytes.
        let compared = self.load_ready::<M>(&stem)?.map(|(_, file)| (is_same(&file, &sealed), file));
        let publishing = self.publishing();
        if let Some((mut record, file)) = self.load_locked::<M>(&stem, &publishing)? {
            let same = match compared {
                Some((same, before)) if is_one_file(&before, &file)? => same?,
                _ => is_same(&file, &sealed)?,
            };
            if !same {
                self.remove_files(M::KIND, &stem, &publishing)?;
                self.state.forget(&meta.id());
                tracing::error!(kind = ?M::KIND, entry = stem, ?grant, "two deliveries of one entry differ: both removed");
                return Err(CacheError::Differs { what: M::KIND.word() });
            }
            let (granted, merged) = (record.grants.add(grant), record.meta.merge(meta));
            if granted || merged {
                self.write_record(&record, record.durable, &publishing)?;
            }
            failpoint_at(M::PUBLISH, "after_merge");
            self.state.touch(meta.id());
            return Ok(Published { file, size_bytes: record.size_bytes, existed: true });
        }
        // What stands there now is unsound. It goes before the new sidecar
        // comes: a crash in between must not marry the two.
        unlink(dir, &name).during("remove a cached file")?;
        let mut record = Record {
            version: RECORD_VERSION,
            size_bytes: sealed.size_bytes(),
            created: unix_now(),
            host: String::new(),
            boot_id: String::new(),
            durable: false,
            pinned: false,
            grants: Grants::of(grant),
            meta: meta.clone(),
            dated: 0,
        };
        self.stamp(&mut record);
        self.write_record(&record, false, &publishing)?;
        failpoint_at(M::PUBLISH, "after_sidecar");
        rustix::fs::renameat(&self.dirs.tmp, sealed.temp_name(), dir, name.as_str()).during("publish a file")?;
        failpoint_at(M::PUBLISH, "after_rename");
        drop(publishing);
        let size_bytes = sealed.size_bytes();
        let file = sealed.into_published();
        self.state.touch(meta.id());
        self.worker.unsynced(M::KIND, stem);
        failpoint_at(M::PUBLISH, "after_row");
        Ok(Published { file, size_bytes, existed: false })
    }

    /// Changes an entry's sidecar; `change` answers whether it did.
    fn amend<M: Meta>(&self, stem: &str, change: impl FnOnce(&mut Record<M>) -> bool) -> Result<bool, CacheError> {
        let publishing = self.publishing();
        let Some((mut record, _)) = self.load_locked::<M>(stem, &publishing)? else { return Ok(false) };
        if change(&mut record) {
            self.write_record(&record, record.durable, &publishing)?;
            failpoint_at("amend", "after_sidecar");
        }
        Ok(true)
    }

    /// Removes an entry and its row.
    pub(super) fn remove(&self, id: &EntryId) -> Result<(), CacheError> {
        match id {
            EntryId::Blob(digest) => self.remove_blob(digest)?,
            EntryId::Pack { diff_id, profile_id } => {
                let stem = pack_stem(diff_id, profile_id);
                self.remove_files(PackMeta::KIND, &stem, &self.publishing())?;
            }
            EntryId::Image(key) => {
                let publishing = self.publishing();
                self.rights.forget(key);
                self.remove_files(ImageMeta::KIND, &key.to_string(), &publishing)?;
            }
        }
        self.state.forget(id);
        Ok(())
    }
}

/// Says whether a file holds what has just been made.
fn is_same(file: &File, sealed: &Sealed) -> Result<bool, CacheError> {
    same_bytes(file, sealed.file()).during("compare an entry with what is in the cache")
}

fn same_bytes(one: &File, two: &File) -> io::Result<bool> {
    let len = one.metadata()?.len();
    if two.metadata()?.len() != len {
        return Ok(false);
    }
    let mut buffers = [vec![0; COMPARE_BUFFER], vec![0; COMPARE_BUFFER]];
    let mut offset = 0;
    while offset < len {
        // At most COMPARE_BUFFER, so it fits.
        let part = (len - offset).min(COMPARE_BUFFER as u64) as usize;
        for (file, buffer) in [one, two].into_iter().zip(&mut buffers) {
            file.read_exact_at(&mut buffer[..part], offset)?;
        }
        if buffers[0][..part] != buffers[1][..part] {
            return Ok(false);
        }
        offset += part as u64;
    }
    Ok(true)
}

fn is_one_file(one: &File, two: &File) -> Result<bool, CacheError> {
    let of = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).during("inspect a cached file");
    Ok(of(one)? == of(two)?)
}
