//! A SIF's partition as a loop device, and that as a mount.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use sctl_sys::{
    loopdev::{LoopControl, LoopDevice, Tag, reopen_nameless},
    mount::{self, MountAttributes},
    openat::check_file,
};

use crate::cache::Partition;

/// Bytes that the partition's ends are aligned to: a loop device of another
/// length would lose the last block.
const ALIGNMENT: u64 = 4096;

/// An inode, and what of it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) partition: Partition,
}

impl Backing {
    /// Checks a SIF of the cache by descriptor.
    pub(super) fn of(file: &File, partition: Partition) -> io::Result<Self> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        let stat = check_file(file).map_err(|error| invalid(&error.to_string()))?;
        if stat.st_uid != 0 {
            return Err(invalid("it does not belong to root"));
        }
        // What a job said of it is held against the file.
        let Partition { offset, len } = partition;
        let is_aligned = offset % ALIGNMENT == 0 && len % ALIGNMENT == 0;
        let end = offset.checked_add(len).ok_or_else(|| invalid("its partition has no end"))?;
        if len == 0 || !is_aligned || end > file.metadata()?.size() {
            return Err(invalid("its partition does not fit a loop device"));
        }
        Ok(Self { device: stat.st_dev, inode: stat.st_ino, partition })
    }

    /// Says whether a device is bound to just this, under this tag.
    pub(super) fn is_behind(&self, device: &LoopDevice, tag: &Tag) -> io::Result<bool> {
        Ok(device.status()?.is_some_and(|status| {
            status.is_ours
                && status.tag.as_ref() == Some(tag)
                && (status.device, status.inode) == (self.device, self.inode)
                && (status.offset, status.len) == (self.partition.offset, self.partition.len)
        }))
    }

    /// Binds a new device.
    pub(super) fn bind(&self, control: &LoopControl, file: &File, tag: &Tag) -> io::Result<LoopDevice> {
        let nameless = reopen_nameless(file)?;
        let device = control.bind(&nameless, self.partition.offset, self.partition.len, tag)?;
        if self.is_behind(&device, tag)? {
            Ok(device)
        } else {
            Err(io::Error::other("the loop device is bound to something else"))
        }
    }
}

/// Mounts what is on `device`, with ids as `ids` maps them, detached. Where
/// that device is mounted already, the superblock is the same.
pub(super) fn mount(device: &LoopDevice, ids: Option<BorrowedFd<'_>>) -> Result<OwnedFd, MountError> {
    // The open device itself, and not what has its name by now.
    let source = CString::new(format!("/proc/self/fd/{}", device.as_fd().as_raw_fd()))
        .map_err(|error| MountError::Mount(error.into()))?;
    let options = [(c"source", Some(source.as_c_str())), (c"ro", None)];
    let attributes = MountAttributes::READ_ONLY | MountAttributes::NO_SUID | MountAttributes::NO_DEV;
    let mounted = mount::new_filesystem(c"squashfs", &options, attributes).map_err(MountError::Mount)?;
    if let Some(ids) = ids {
        mount::idmap(&mounted, ids).map_err(MountError::Idmap)?;
    }
    Ok(mounted)
}

/// What of mounting failed.
#[derive(Debug)]
pub(super) enum MountError {
    Mount(io::Error),
    Idmap(io::Error),
}
