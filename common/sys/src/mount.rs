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
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags},
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

/// A new file system whose contents are still being prepared.
#[derive(Debug)]
pub struct Fresh {
    context: OwnedFd,
    mount: OwnedFd,
}

impl Fresh {
    /// Makes it; the arguments are those of [`new_filesystem`].
    ///
    /// # Privileges
    /// # Errors
    /// As for [`new_filesystem`].
    pub fn new(kind: &CStr, options: &[(&CStr, Option<&CStr>)], attributes: MountAttributes) -> io::Result<Self> {
        let (context, mount) = make_filesystem(kind, options, attributes)?;
        Ok(Self { context, mount })
    }

    /// Makes the file system itself read-only, whatever mounts there will be
    /// of it, and returns its detached mount.
    ///
    /// # Errors
    /// As `fsconfig(2)`.
    pub fn freeze(self) -> io::Result<OwnedFd> {
        rustix::mount::fsconfig_set_flag(&self.context, c"ro")?;
        rustix::mount::fsconfig_reconfigure(&self.context)?;
        Ok(self.mount)
    }
}

impl AsFd for Fresh {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
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
    make_filesystem(kind, options, attributes).map(|(_, mount)| mount)
}

fn make_filesystem(
    kind: &CStr,
    options: &[(&CStr, Option<&CStr>)],
    attributes: MountAttributes,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, *key, *value)?,
            None => rustix::mount::fsconfig_set_flag(&context, *key)?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes.for_fsmount())?;
    Ok((context, mount))
}

/// Says whether the kernel can mount file systems of this kind; loads its
/// module if there is one.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// `ENODEV` if it cannot.
pub fn probe_filesystem(kind: &CStr) -> io::Result<()> {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok(())
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

/// Clones one mount, without those on it, as a detached one. An empty path
/// clones what `dir` itself shows, and that alone if it is a file.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// As `open_tree(2)`.
pub fn clone_one(dir: impl AsFd, path: impl Arg) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
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
    let request = libc::mount_attr { attr_set: attributes.0, ..NO_CHANGE };
    set_attributes(mount.as_fd(), &request, recursive)
}

/// Takes restrictions away from a mount.
///
/// # Privileges
/// As [`restrict`].
///
/// # Errors
/// `EPERM` if a namespace of more privileges has locked one of them;
/// otherwise as `mount_setattr(2)`.
pub fn relax(mount: impl AsFd, attributes: MountAttributes) -> io::Result<()> {
    let request = libc::mount_attr { attr_clr: attributes.0, ..NO_CHANGE };
    set_attributes(mount.as_fd(), &request, false)
}

/// How mounts and unmounts beneath a mount reach its copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// Both ways.
    Shared,
}

/// Sets the propagation of a mount.
///
/// # Privileges
/// As [`restrict`].
///
/// # Errors
/// As `mount_setattr(2)`.
pub fn set_propagation(mount: impl AsFd, propagation: Propagation) -> io::Result<()> {
    let propagation = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Shared => libc::MS_SHARED,
    };
    set_attributes(mount.as_fd(), &libc::mount_attr { propagation, ..NO_CHANGE }, false)
}

/// Shows the owners of files as `user_namespace` maps them: what is not mapped
/// belongs to nobody. The mount must be detached and never have been attached.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that the file system was mounted in.
///
/// # Errors
/// `EINVAL` if the file system or the kernel (before 5.12) cannot;
/// `EPERM` for a user namespace without a map.
pub fn idmap(mount: impl AsFd, user_namespace: impl AsFd) -> io::Result<()> {
    // A descriptor is not negative.
    let userns_fd = user_namespace.as_fd().as_raw_fd() as u64;
    let request = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, userns_fd, ..NO_CHANGE };
    set_attributes(mount.as_fd(), &request, false)
}

const NO_CHANGE: libc::mount_attr = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };

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

/// Detaches what is mounted on `path`, without following a last symbolic link.
/// It goes when its last user does.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// `EINVAL` if nothing is mounted there.
pub fn detach(path: impl Arg) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Says whether a descriptor shows the root of its mount.
///
/// # Errors
/// As `statx(2)`; `Unsupported` before Linux 5.8.
pub fn is_mount_root(fd: impl AsFd) -> io::Result<bool> {
    let found = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    let root = StatxAttributes::MOUNT_ROOT;
    if !found.stx_attributes_mask.contains(root) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel does not tell the roots of mounts"));
    }
    Ok(found.stx_attributes.contains(root))
}

/// Makes `root`, an attached mount, the root directory of this process and
/// detaches the old root with all beneath. Unlike [`pivot_into`] it never
/// settles for less.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// As `pivot_root(2)` and `umount(2)`.
pub fn pivot_alone(root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(c".", c".")?;
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
