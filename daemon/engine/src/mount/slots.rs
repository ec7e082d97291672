//! Where the broker mounts images: numbered directories of an empty tmpfs, in
//! a mount namespace that only the broker and its children see.

use std::{
    ffi::CString,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use sctl_sys::{
    mount::{self, Fresh, MountAttributes, Propagation},
    ns::{self, Namespaces},
    openat::check_directory,
};

/// Mount points that were prepared before the broker had threads.
///
/// The tmpfs is read-only as a whole, and shared: what is mounted here reaches
/// the mount helper, whose copy is a slave of it.
#[derive(Debug)]
pub struct Slots {
    root: OwnedFd,
    path: PathBuf,
    device: u64,
    count: u32,
}

impl Slots {
    /// Moves the calling thread, and all that it will start, into a mount
    /// namespace of its own with `count` slots at `path`.
    ///
    /// Call it before there are other threads: they would stay outside.
    ///
    /// # Privileges
    /// `CAP_SYS_ADMIN`; root, to own the slots.
    ///
    /// # Errors
    /// What could not be done. The namespace may have been left by then, which
    /// harms nothing.
    pub fn prepare(path: &Path, count: u32, helper_gid: u32) -> io::Result<Self> {
        let during = |what: &'static str| {
            move |error: io::Error| io::Error::new(error.kind(), format!("cannot {what}: {error}"))
        };
        ns::unshare(Namespaces::MOUNT).map_err(during("enter a mount namespace"))?;
        mount::make_everything_slave().map_err(during("keep mounts from the host"))?;
        if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
            DirBuilder::new().recursive(true).create(parent).map_err(during("create a directory"))?;
            // The process's umask has taken bits away, and clients look for
            // sockets in there.
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).map_err(during("open a directory"))?;
        }
        match DirBuilder::new().mode(0o711).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(during("create the directory of the slots"))?,
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || -> io::Result<OwnedFd> { Ok(rustix::fs::open(path, flags, Mode::empty())?) };
        let place = open().map_err(during("open the directory of the slots"))?;
        check_directory(&place).map_err(|error| during("use the directory of the slots")(io::Error::other(error)))?;

        let failed = during("make the slots");
        let text = |text: String| CString::new(text).map_err(io::Error::other);
        let (inodes, gid) = (text(format!("{}", u64::from(count) + 8))?, text(helper_gid.to_string())?);
        let options = [
            (c"mode", Some(c"0710")),
            (c"gid", Some(gid.as_c_str())),
            (c"size", Some(c"64k")),
            (c"nr_inodes", Some(inodes.as_c_str())),
        ];
        let attributes = MountAttributes::NO_SUID | MountAttributes::NO_DEV | MountAttributes::NO_EXEC;
        let root = (|| {
            let tmpfs = Fresh::new(c"tmpfs", &options, attributes)?;
            for slot in 0..count {
                // Nobody has any business in a slot where nothing is mounted.
                rustix::fs::mkdirat(&tmpfs, slot.to_string(), Mode::empty())?;
            }
            let root = tmpfs.freeze()?;
            mount::attach(&root, &place)?;
            mount::set_propagation(&root, Propagation::Shared)?;
            Ok(root)
        })()
        .map_err(failed)?;
        let device = rustix::fs::fstat(&root)?.st_dev;
        Ok(Self { root, path: path.to_owned(), device, count })
    }

    /// Where they are, as this mount namespace sees it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// `st_dev` of the tmpfs.
    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Mounts a detached mount on an empty slot.
    pub(super) fn fill(&self, slot: u32, mount: impl AsFd) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(&self.root, slot.to_string(), flags, Mode::empty())?;
        if rustix::fs::fstat(&place)?.st_dev != self.device {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("slot {slot} is not empty")));
        }
        mount::attach(mount, place)
    }

    /// Unmounts what is on a slot, here and in the helper.
    pub(super) fn clear(&self, slot: u32) -> io::Result<()> {
        mount::detach(format!("/proc/self/fd/{}/{slot}", self.root.as_raw_fd()))
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // The namespace ends with the process; this is for those who go on.
        // What cannot be undone here is undone then.
        let _ = mount::detach(&self.path);
        let _ = fs::remove_dir(&self.path);
    }
}
