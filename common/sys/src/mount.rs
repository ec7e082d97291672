//! Mounts as descriptors: made detached, attached where a descriptor says.
//!
//! No function here takes the path of a mount point inside a tree that
//! somebody else controls: whoever places a mount opens the place first (with
//! `openat2` and the right `RESOLVE_` flags) and hands over the descriptor, so
//! that no symbolic link can lead elsewhere in between.
//!
//! Needs Linux 5.12 (`mount_setattr`).

use std::{
    ffi::CStr,
    io,
    ops::BitOr,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, CWD, StatxFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    },
    path::Arg,
};

/// Attributes of a mount that restrict it; setting one never needs more than
/// owning the mount namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountAttributes(u64);

impl MountAttributes {
    /// No restriction.
    pub const NONE: Self = Self(0);
    /// Nothing can be written through it.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// Set-id bits and file capabilities do not count.
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// Device nodes cannot be opened.
    pub const NO_DEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// Nothing can be executed.
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);

    fn for_fsmount(self) -> MountAttrFlags {
        // All bits of this type lie in the low 32 that fsmount(2) takes.
        MountAttrFlags::from_bits_retain(self.0 as u32)
    }
}

impl BitOr for MountAttributes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Keeps mounts made from here on from reaching other mount namespaces, while
/// unmounts on the host still reach this one.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// As `mount(2)`.
pub fn make_everything_slave() -> io::Result<()> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

/// Makes a new file system instance of `kind` and returns it as a detached
/// mount. `options` are keys with a value, or flags with none.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace, and a
/// kind that the kernel allows there.
///
/// # Errors
/// `ENODEV` for an unknown kind, `EPERM`, `EINVAL` for an option.
pub fn new_filesystem(
    kind: &CStr,
    options: &[(&CStr, Option<&CStr>)],
    attributes: MountAttributes,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, *key, *value)?,
            None => rustix::mount::fsconfig_set_flag(&context, *key)?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes.for_fsmount())?)
}

/// Clones the mount tree at `path` below `dir`, with all mounts beneath it, as
/// a detached tree. The last component may be a symbolic link only if
/// `follow`. An empty path clones what `dir` itself shows.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// As `open_tree(2)`.
pub fn clone_tree(dir: impl AsFd, path: impl Arg, follow: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        // Mounts that came from a more privileged namespace are locked to
        // each other: without their children they cannot be cloned.
        | OpenTreeFlags::AT_RECURSIVE;
    if !follow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// Attaches the detached tree `mount` on what `place` shows.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// `ENOTDIR` if one is a directory and the other is not.
pub fn attach(mount: impl AsFd, place: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", place, c"", flags)?)
}

/// Attaches the detached tree `mount` over the caller's root directory. Paths
/// still start at the old root; the new one is reached through `mount`.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// As `move_mount(2)`.
pub fn attach_over_root(mount: impl AsFd) -> io::Result<()> {
    Ok(rustix::mount::move_mount(mount, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Adds restrictions to a mount, or to all of a tree.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace, if the
/// mount is attached.
///
/// # Errors
/// As `mount_setattr(2)`; `ENOSYS` before Linux 5.12.
pub fn restrict(mount: impl AsFd, attributes: MountAttributes, recursive: bool) -> io::Result<()> {
    let request = libc::mount_attr { attr_set: attributes.0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_attributes(mount.as_fd(), &request, recursive)
}

fn set_attributes(mount: BorrowedFd<'_>, request: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: mount_setattr(2) reads a NUL-terminated path (a constant) and
    // exactly `size` bytes at the address of `request`, which is a live
    // `mount_attr` of that size; it writes nothing. The descriptor is borrowed
    // for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(request),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What lies over the old root when a process leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nothing: the new root is mounted somewhere below it.
    Nothing,
    /// One mount made with [`attach_over_root`], with the new root inside.
    Overmounted,
}

/// Makes `root`, an attached mount, the root directory of this process and
/// detaches the old root with all beneath and over it.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// As `pivot_root(2)` and `umount(2)`.
pub fn pivot_into(root: impl AsFd, beside: Beside) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // With both arguments ".", the old root ends up mounted over the new one,
    // from where it is detached: no directory for it is needed
    // (pivot_root(2), NOTES).
    match rustix::process::pivot_root(c".", c".") {
        Ok(()) => {}
        // The kernel's initial root, which machines without a disk may run
        // on, cannot be exchanged, only left.
        Err(rustix::io::Errno::INVAL) => {
            rustix::process::chroot(c".")?;
            return Ok(rustix::process::chdir(c"/")?);
        }
        Err(errno) => return Err(errno.into()),
    }
    // An unmount takes what is on top: first what lies over the old root,
    // then the old root itself.
    if beside == Beside::Overmounted {
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    }
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir(c"/")?)
}

/// Identifies the mount that a descriptor belongs to, within this boot.
///
/// # Errors
/// As `statx(2)`; `Unsupported` before Linux 5.8.
pub fn mount_id(fd: impl AsFd) -> io::Result<u64> {
    let found = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel does not tell mount ids"));
    }
    Ok(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_apart() {
        let root = std::fs::File::open("/").unwrap();
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(mount_id(&root).unwrap(), mount_id(std::fs::File::open("/").unwrap()).unwrap());
        assert_ne!(mount_id(&root).unwrap(), mount_id(&proc).unwrap());
    }

    #[test]
    fn restricting_what_is_no_mount_is_an_error() {
        let dir = std::fs::File::open("/proc/self").unwrap();
        assert!(restrict(&dir, MountAttributes::READ_ONLY, false).is_err());
    }
}
