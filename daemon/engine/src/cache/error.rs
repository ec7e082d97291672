//! What can go wrong in the cache.

use std::io;

use sctl_common::{Digest, ErrorKind};
use sctl_sys::openat::UntrustedError;

/// Says what the cache could not do, and why.
///
/// No text holds a path, a reference or a digest that the caller did not name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The cache's folder, or something in it, may be changed by others.
    #[error("the cache cannot be trusted: {what}")]
    Untrusted {
        /// Which part of the cache.
        what: &'static str,
        /// What is wrong with it.
        source: UntrustedError,
    },
    /// Another daemon of this host has the cache open.
    #[error("another daemon uses this cache")]
    InUse,
    /// Too little of the disk would stay free.
    #[error(
        "not enough space for the cache: {need_bytes} bytes are needed and {free_bytes} of {total_bytes} are free, \
         of which {min_free_percent}% must stay free"
    )]
    NoSpace {
        /// Bytes that the job was expected to write.
        need_bytes: u64,
        /// Bytes free on the cache's file system.
        free_bytes: u64,
        /// Size of the cache's file system.
        total_bytes: u64,
        /// Share of it that must stay free.
        min_free_percent: u8,
    },
    /// The cache would grow past its quota.
    #[error("the cache's quota is used up: {need_bytes} bytes are needed, {used_bytes} of {quota_bytes} are in use")]
    QuotaExceeded {
        /// Bytes that the job was expected to write.
        need_bytes: u64,
        /// Bytes that cannot be given up.
        used_bytes: u64,
        /// Upper limit.
        quota_bytes: u64,
    },
    /// A process can still write a file that was to be published.
    #[error("a leftover writer still has the {what} open")]
    WriterLeft {
        /// What kind of file it is.
        what: &'static str,
    },
    /// The file system cannot tell whether a file has writers.
    #[error("the cache's file system grants no leases, which a system cache needs")]
    NoLeases,
    /// Bytes do not have the digest that they should.
    #[error("blob does not match its digest: expected {expected}, got {found}")]
    DigestMismatch {
        /// The digest asked for.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// What was made differs from what has the same name in the cache.
    #[error(
        "the {what} differs from the one in the cache, although both must be equal; which of them is wrong cannot be \
         told, so both were removed"
    )]
    Differs {
        /// What kind of file it is.
        what: &'static str,
    },
    /// A profile's name cannot be part of a file name.
    #[error("bad profile name {name:?}")]
    BadProfile {
        /// The name as given.
        name: String,
    },
    /// A system call failed.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl CacheError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Untrusted { .. } => ErrorKind::Denied,
            Self::InUse => ErrorKind::Unavailable,
            Self::NoSpace { .. } | Self::QuotaExceeded { .. } => ErrorKind::NoSpace,
            Self::WriterLeft { .. } => ErrorKind::Internal,
            Self::NoLeases => ErrorKind::Unsupported,
            Self::DigestMismatch { .. } | Self::Differs { .. } => ErrorKind::Corrupt,
            Self::BadProfile { .. } => ErrorKind::InvalidInput,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    ErrorKind::NoSpace
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
                _ => ErrorKind::Internal,
            },
        }
    }
}

/// Says what was being done when a system call failed.
pub(super) trait During<T> {
    /// Wraps the error as [`CacheError::Io`].
    fn during(self, what: &'static str) -> Result<T, CacheError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, what: &'static str) -> Result<T, CacheError> {
        self.map_err(|source| CacheError::Io { what, source })
    }
}

impl<T> During<T> for rustix::io::Result<T> {
    fn during(self, what: &'static str) -> Result<T, CacheError> {
        self.map_err(|errno| CacheError::Io { what, source: errno.into() })
    }
}
