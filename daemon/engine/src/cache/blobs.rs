//! Blobs: bytes named by their digest, in the image layout.
//!
//! They have no sidecar: whoever reads one checks it against its name, so a
//! damaged blob is found when it is used.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
};

use sctl_common::Digest;
use sctl_sys::openat::open_trusted;

use super::{
    Cache, CacheError, EntryId, Inner, Sealed,
    dirs::{stat, unlink},
    error::During,
    failpoint::failpoint,
};

/// Manifests and configs have a few KiB; registries refuse more than 4 MiB.
/// Whatever is larger is a layer, which [`Cache::open_blob`] is for.
const MAX_READ_BYTES: u64 = 64 << 20;

impl Cache {
    /// Stores a manifest or a config.
    ///
    /// # Errors
    /// [`CacheError::DigestMismatch`]; [`CacheError::Io`].
    pub fn publish_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let found = Digest::of(bytes);
        if found != *digest {
            return Err(CacheError::DigestMismatch { expected: *digest, found });
        }
        if self.read_blob(digest)?.is_none() {
            let inner = &self.inner;
            let blobs = inner.dirs.blobs.as_fd();
            inner
                .dirs
                .write_file(&inner.id, blobs, &digest.hex(), bytes, false, || failpoint("publish_blob.written"))
                .during("write a blob")?;
            failpoint("publish_blob.after_rename");
        }
        self.touch(EntryId::Blob(*digest));
        Ok(())
    }

    /// Stores a layer blob that a job has written, and checked while its bytes
    /// passed.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn publish_blob_file(&self, sealed: Sealed, digest: &Digest) -> Result<(), CacheError> {
        let dirs = &self.inner.dirs;
        failpoint("publish_blob.written");
        rustix::fs::renameat(&dirs.tmp, sealed.temp_name(), &dirs.blobs, digest.hex()).during("publish a blob")?;
        failpoint("publish_blob.after_rename");
        drop(sealed.into_published());
        self.touch(EntryId::Blob(*digest));
        Ok(())
    }

    /// Reads a manifest or a config, and checks it against its digest; a
    /// damaged one is absent, and is removed.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        let Some((file, size_bytes)) = self.open_blob(digest)? else { return Ok(None) };
        if size_bytes > MAX_READ_BYTES {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
        file.take(MAX_READ_BYTES).read_to_end(&mut bytes).during("read a blob")?;
        if Digest::of(&bytes) != *digest {
            tracing::warn!(%digest, "damaged blob removed");
            self.inner.remove_blob(digest)?;
            return Ok(None);
        }
        self.touch(EntryId::Blob(*digest));
        Ok(Some(bytes))
    }

    /// Opens a blob of any size, with its length. Its bytes are not checked:
    /// the reader must do that while they pass.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, CacheError> {
        match open_trusted(&self.inner.dirs.blobs, &digest.hex()) {
            Ok((file, stat)) => Ok(Some((file, stat.st_size as u64))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%digest, %error, "blob that cannot be trusted removed");
                self.inner.remove_blob(digest)?;
                Ok(None)
            }
            // A symlink in the place of a blob.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                self.inner.remove_blob(digest)?;
                Ok(None)
            }
            Err(source) => Err(CacheError::Io { what: "open a blob", source }),
        }
    }

    /// Says whether a blob is there, without looking inside.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        stat(self.inner.dirs.blobs.as_fd(), &digest.hex()).is_ok_and(|found| found.is_some())
    }
}

impl Inner {
    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<(), CacheError> {
        unlink(self.dirs.blobs.as_fd(), &digest.hex()).during("remove a blob")
    }
}
