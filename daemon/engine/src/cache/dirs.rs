//! The cache's folders, opened once and checked by descriptor.
//!
//! ```text
//! oci/            OCI image layout: oci-layout, index.json, blobs/sha256/<hex>
//! packs/          <diff_id>-<profile>.pack, each with its .json
//! sif/            <key>.sif, each with its .json
//! tmp/            what is being written; published by rename
//! state.db        what the files do not tell (user mode: state-<host>.db)
//! lock            held by the daemon that has the cache open (user mode: lock-<host>)
//! socket-<host>   user mode: link to that daemon's socket, for clients
//! ```

use std::{
    fs::{DirBuilder, File},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, Stat},
    io::Errno,
};
use sctl_sys::{
    lease::is_remote,
    openat::{UntrustedError, check_directory, check_file, open_beneath},
};

use super::{
    CacheError, CacheMode,
    error::During,
    host::{HostId, TempName},
    model::FileKind,
};

/// How long a daemon that was just killed may still hold the lock: children
/// that it was forking at that moment have it open too, until they exec.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Open folders of a cache.
#[derive(Debug)]
pub(super) struct Dirs {
    pub(super) root: OwnedFd,
    pub(super) oci: OwnedFd,
    pub(super) blobs: OwnedFd,
    pub(super) packs: OwnedFd,
    pub(super) sif: OwnedFd,
    pub(super) tmp: OwnedFd,
    /// For display only: nothing is opened by it.
    pub(super) path: PathBuf,
    /// Another machine may write the file system too.
    pub(super) remote: bool,
}

impl Dirs {
    /// Creates what is missing and checks what is there.
    pub(super) fn open(path: &Path, mode: CacheMode) -> Result<Self, CacheError> {
        let root = open_root(path, mode)?;
        let oci = subdir(root.as_fd(), "oci")?;
        let blobs = subdir(subdir(oci.as_fd(), "blobs")?.as_fd(), "sha256")?;
        let packs = subdir(root.as_fd(), "packs")?;
        let sif = subdir(root.as_fd(), "sif")?;
        let tmp = subdir(root.as_fd(), "tmp")?;
        let remote = is_remote(&root);
        Ok(Self { root, oci, blobs, packs, sif, tmp, path: path.to_owned(), remote })
    }

    /// The folder of a kind.
    pub(super) fn of(&self, kind: FileKind) -> BorrowedFd<'_> {
        match kind {
            FileKind::Pack => self.packs.as_fd(),
            FileKind::Image => self.sif.as_fd(),
        }
    }

    /// Takes the lock that one daemon per cache (and host) holds.
    pub(super) fn lock(&self, name: &str) -> Result<File, CacheError> {
        let flags = OFlags::RDWR | OFlags::CREATE;
        let lock = File::from(open_beneath(&self.root, name, flags, Mode::RUSR | Mode::WUSR).during("open the lock")?);
        check_file(&lock).map_err(|source| CacheError::Untrusted { what: "its lock", source })?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Err(Errno::WOULDBLOCK) => return Err(CacheError::InUse),
                // Some network file systems have no locks. The daemon's socket
                // keeps a second one of this host away, and files are published
                // one by one, so the lock is only the second line.
                Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) if self.remote => {
                    tracing::debug!("the cache's file system has no locks");
                    return Ok(lock);
                }
                Err(errno) => return Err(CacheError::Io { what: "lock the cache", source: errno.into() }),
            }
        }
    }

    /// Creates an empty file in `tmp/`: 0600, open for reading and writing.
    pub(super) fn create_temp(&self, id: &HostId, extension: &str) -> io::Result<(File, String)> {
        loop {
            let name = TempName::fresh(id, extension).to_string();
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            match open_beneath(&self.tmp, &name, flags, Mode::RUSR | Mode::WUSR) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return Ok((File::from(other?), name)),
            }
        }
    }

    /// Makes `name` in `target` hold `bytes`, all at once.
    ///
    /// `sync` waits until the bytes are on the disk before they get the name.
    pub(super) fn write_file(
        &self,
        id: &HostId,
        target: BorrowedFd<'_>,
        name: &str,
        bytes: &[u8],
        sync: bool,
        before_rename: impl FnOnce(),
    ) -> io::Result<()> {
        let (mut file, temp) = self.create_temp(id, "json")?;
        let written = (|| {
            file.write_all(bytes)?;
            // Readable for the owner even where root wrote it; the folders are closed to all others.
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
            if sync {
                file.sync_all()?;
            }
            before_rename();
            Ok(rustix::fs::renameat(&self.tmp, temp.as_str(), target, name)?)
        })();
        if written.is_err() {
            // The write's own error is the one to tell; a leftover is swept later.
            let _ = self.unlink_temp(&temp);
        }
        written
    }

    /// Removes a file of `tmp/`; one that is gone already is fine.
    pub(super) fn unlink_temp(&self, name: &str) -> io::Result<()> {
        unlink(self.tmp.as_fd(), name)
    }

    /// Removes from `tmp/` what provably dead writers left there.
    pub(super) fn sweep(&self, id: &HostId, mode: CacheMode) -> Result<(), CacheError> {
        // A local system cache has one host, whatever that was called before.
        let one_host = mode == CacheMode::System && !self.remote;
        for name in names(self.tmp.as_fd()).during("list temporary files")? {
            let Some(temp) = TempName::parse(&name) else { continue };
            if temp.is_dead(id, one_host) {
                tracing::debug!(name, "leftover removed");
                if let Err(error) = self.unlink_temp(&name) {
                    tracing::warn!(name, %error, "cannot remove a leftover");
                }
            }
        }
        Ok(())
    }
}

/// Removes a file; one that is gone already is fine. Something that is no file
/// is moved aside, so that it blocks its name no longer.
pub(super) fn unlink(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(()),
            Err(_) => Ok(rustix::fs::renameat(dir, name, dir, format!("{name}.foreign"))?),
        },
        Err(errno) => Err(errno.into()),
    }
}

/// Attributes of a file, not following a symlink; `None` if there is none.
pub(super) fn stat(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Names in a folder that are UTF-8, as all of ours are, without `.` and `..`.
pub(super) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn open_root(path: &Path, mode: CacheMode) -> Result<OwnedFd, CacheError> {
    if !path.exists() {
        if let Some(parent) = path.parent() {
            // Folders on the way to a system cache are other services' too.
            let mode = if mode == CacheMode::System { 0o755 } else { 0o700 };
            let made = DirBuilder::new().recursive(true).mode(mode).create(parent);
            made.during("create the folder above the cache")?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.during("create the cache's folder")?,
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).during("open the cache's folder")?;
    close_to_others(root.as_fd(), "its folder", mode == CacheMode::System)?;
    Ok(root)
}

fn subdir(parent: BorrowedFd<'_>, name: &'static str) -> Result<OwnedFd, CacheError> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(CacheError::Io { what: "create a folder of the cache", source: errno.into() }),
    }
    let dir = open_beneath(parent, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        .during("open a folder of the cache")?;
    close_to_others(dir.as_fd(), "a folder of it", true)?;
    Ok(dir)
}

/// Refuses a folder that others own or may write; one that they may list is
/// closed to them if `private` says so.
fn close_to_others(dir: BorrowedFd<'_>, what: &'static str, private: bool) -> Result<(), CacheError> {
    let stat = check_directory(dir).map_err(|source| CacheError::Untrusted { what, source })?;
    // Root's folder is beyond doubt, but of no use to a daemon that cannot write it.
    let own = stat.st_uid == rustix::process::geteuid().as_raw();
    if !own && private {
        return Err(CacheError::Untrusted { what, source: UntrustedError::ForeignOwner { uid: stat.st_uid } });
    }
    if private && stat.st_mode & 0o077 != 0 {
        rustix::fs::fchmod(dir, Mode::RWXU).during("close a folder of the cache to others")?;
    }
    Ok(())
}
