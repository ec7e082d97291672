//! What the broker makes sure of before a mount leaves it.
//!
//! Everything is looked at through the very descriptor that is going to be
//! sent, and nothing that the helper says counts.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use sctl_sys::mount::{self, MountAttributes};

/// `SQUASHFS_MAGIC` of `<linux/magic.h>`.
const SQUASHFS_MAGIC: u64 = 0x7371_7368;

/// What the root directory of a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Face {
    /// Of the superblock.
    pub(super) device: u64,
    inode: u64,
    mode: u32,
    /// As the mount's own map of ids shows them.
    uid: u32,
    gid: u32,
}

impl Face {
    /// Looks at a mount.
    pub(super) fn of(mount: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(mount)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino, mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid })
    }
}

/// Why a mount must not leave.
#[derive(Debug, thiserror::Error)]
pub(super) enum Mismatch {
    #[error("it is not a mount of squashfs but of {magic:#x}")]
    OtherFilesystem { magic: u64 },
    #[error("it is not the root of a mount")]
    NoRoot,
    #[error("it shows {found:?} instead of {expected:?}")]
    OtherFace { expected: Box<Face>, found: Box<Face> },
    #[error("it is not {flag}")]
    Missing { flag: &'static str },
    #[error("{flag} could be taken away")]
    Unlocked { flag: &'static str },
    #[error("whether {flag} is locked cannot be found out")]
    Unclear { flag: &'static str, source: io::Error },
    #[error("it cannot be inspected")]
    Io { source: io::Error },
}

/// Makes sure that `mount` is a locked clone of the mount that showed
/// `expected`, which the broker still holds: else another file system could
/// have its device number by now.
pub(super) fn check(mount: BorrowedFd<'_>, expected: &Face) -> Result<(), Mismatch> {
    let failed = |source| Mismatch::Io { source };
    let statfs = rustix::fs::fstatfs(mount).map_err(|errno| failed(errno.into()))?;
    // The field's type differs between architectures; the magic has 32 bits.
    let magic = statfs.f_type as u64;
    if magic != SQUASHFS_MAGIC {
        return Err(Mismatch::OtherFilesystem { magic });
    }
    if !mount::is_mount_root(mount).map_err(failed)? {
        return Err(Mismatch::NoRoot);
    }
    let found = Face::of(mount).map_err(failed)?;
    if found != *expected {
        return Err(Mismatch::OtherFace { expected: Box::new(*expected), found: Box::new(found) });
    }
    let shown = rustix::fs::fstatvfs(mount).map_err(|errno| failed(errno.into()))?.f_flag;
    let flags = [
        ("read-only", MountAttributes::READ_ONLY, rustix::fs::StatVfsMountFlags::RDONLY),
        ("nosuid", MountAttributes::NO_SUID, rustix::fs::StatVfsMountFlags::NOSUID),
        ("nodev", MountAttributes::NO_DEV, rustix::fs::StatVfsMountFlags::NODEV),
    ];
    for (flag, attribute, bit) in flags {
        if !shown.contains(bit) {
            return Err(Mismatch::Missing { flag });
        }
        // That a flag is locked shows in nothing but an attempt; a missing
        // read-only neither, since the superblock's own looks the same.
        match mount::relax(mount, attribute) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) => {}
            Ok(()) => return Err(Mismatch::Unlocked { flag }),
            Err(source) => return Err(Mismatch::Unclear { flag, source }),
        }
    }
    Ok(())
}
