//! Files of an image that is not running: in a directory, or in a squashfs.

use std::{
    fs::File,
    io::{self, Read as _},
    ops::ControlFlow,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::Path,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sctl_squashfs::reader::{Inode, InodeKind, ReadAt, Reader, ReaderOptions};

use crate::failure::{Failure, reason};

/// Largest file that is shown.
const MAX_FILE: u64 = 16 << 20;

/// Most names of one directory that are looked at.
const MAX_NAMES: usize = 4096;

/// Reads files of an image by their path without a leading slash.
pub trait ImageFiles {
    /// Bytes of a regular file; `None` if there is none.
    ///
    /// # Errors
    /// A damaged image, a file that cannot be read.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Failure>;

    /// Names in a directory, in no order; none if it is not there.
    ///
    /// # Errors
    /// As for [`ImageFiles::read`].
    fn list(&self, path: &str) -> Result<Vec<String>, Failure>;
}

/// A directory that is a root file system.
pub struct Directory(OwnedFd);

impl Directory {
    /// Opens it.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Opens below it: links lead nowhere else, and pipes do not hang.
    fn open_in(&self, path: &str, flags: OFlags) -> Result<Option<File>, Failure> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => Ok(None),
            Err(errno) => Err(unreadable(path).cause(reason(&errno.into()))),
        }
    }
}

impl ImageFiles for Directory {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Failure> {
        let Some(file) = self.open_in(path, OFlags::empty())? else { return Ok(None) };
        let failed = |error: io::Error| unreadable(path).cause(reason(&error));
        if !file.metadata().map_err(failed)?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(unreadable(path).cause("it is too large"));
        }
        Ok(Some(bytes))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, Failure> {
        let Some(directory) = self.open_in(path, OFlags::DIRECTORY)? else { return Ok(Vec::new()) };
        let failed = |errno: rustix::io::Errno| unreadable(path).cause(reason(&errno.into()));
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory).map_err(failed)?.take(MAX_NAMES) {
            if let Ok(name) = entry.map_err(failed)?.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// A squashfs in a file.
pub struct Squashfs(Reader<Bytes>);

/// The bytes of a file up to the end of a partition.
pub struct Bytes {
    file: File,
    end: u64,
}

impl ReadAt for Bytes {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn len(&self) -> u64 {
        self.end
    }
}

impl Squashfs {
    /// Opens the file system between two offsets of `file`.
    ///
    /// # Errors
    /// If it is no squashfs that can be read.
    pub fn open(file: File, start: u64, end: u64) -> Result<Self, Failure> {
        let options = ReaderOptions { cache_bytes: 2 << 20, metadata_cache_bytes: 2 << 20 };
        Reader::open(Bytes { file, end }, start, options)
            .map(Self)
            .map_err(|error| Failure::new("its file system cannot be read").source(&error))
    }

    /// Finds a path; links on the way are not followed, because the files that
    /// are looked for are never behind one.
    fn find(&self, path: &str) -> Result<Option<Inode>, Failure> {
        let failed = |error| unreadable(path).source(&error);
        let mut inode = self.0.inode(self.0.root()).map_err(failed)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if !matches!(inode.kind, InodeKind::Directory(_)) {
                return Ok(None);
            }
            let Some(found) = self.0.lookup(&inode, name.as_bytes()).map_err(failed)? else { return Ok(None) };
            inode = self.0.inode(found).map_err(failed)?;
        }
        Ok(Some(inode))
    }
}

impl ImageFiles for Squashfs {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Failure> {
        let Some(inode) = self.find(path)? else { return Ok(None) };
        if !matches!(inode.kind, InodeKind::File(_)) {
            return Ok(None);
        }
        let size = inode.size();
        let len = usize::try_from(size)
            .ok()
            .filter(|_| size <= MAX_FILE)
            .ok_or_else(|| unreadable(path).cause("it is too large"))?;
        let mut bytes = vec![0; len];
        let count = self.0.read(&inode, 0, &mut bytes).map_err(|error| unreadable(path).source(&error))?;
        bytes.truncate(count);
        Ok(Some(bytes))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, Failure> {
        let Some(inode) = self.find(path)? else { return Ok(Vec::new()) };
        if !matches!(inode.kind, InodeKind::Directory(_)) {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        self.0
            .read_dir(&inode, 0, |entry| {
                names.extend(std::str::from_utf8(entry.name).ok().map(str::to_owned));
                if names.len() < MAX_NAMES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .map_err(|error| unreadable(path).source(&error))?;
        Ok(names)
    }
}

fn unreadable(path: &str) -> Failure {
    Failure::new(format!("/{} cannot be read", Path::new(path).as_os_str().as_bytes().escape_ascii()))
}
