//! Files on their way into the cache.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};
use sctl_sys::{
    lease::{Writers, check_writers},
    openat::{check_file, open_beneath},
};

use super::{Cache, CacheError, CacheMode, Inner, error::During, failpoint::failpoint};

/// How long a process that is between fork and exec may seem to be a writer:
/// it holds every descriptor of its parent until then.
const WRITER_PATIENCE: Duration = Duration::from_secs(2);

/// What is going to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageKind {
    /// A packed layer.
    Pack,
    /// A SIF.
    Image,
    /// A layer blob that is kept.
    Blob,
}

impl StageKind {
    const fn extension(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Image => "sif",
            Self::Blob => "blob",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Image => "SIF",
            Self::Blob => "blob",
        }
    }
}

/// A name in `tmp/` that goes away unless it is published.
#[derive(Debug)]
struct Temp {
    inner: Arc<Inner>,
    name: String,
    published: bool,
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = self.inner.dirs.unlink_temp(&self.name)
        {
            tracing::warn!(name = self.name, %error, "cannot remove a temporary file");
        }
    }
}

/// An empty file in `tmp/` for a job to write; dropping it removes it.
///
/// It belongs to the daemon (0600), so that a job of another uid can write it
/// through the descriptor it was given and can never open it again.
#[derive(Debug)]
pub struct Staged {
    file: File,
    kind: StageKind,
    temp: Temp,
}

/// A finished file in `tmp/` that nobody can write any more; dropping it
/// removes it.
#[derive(Debug)]
pub struct Sealed {
    file: File,
    size_bytes: u64,
    temp: Temp,
}

impl Cache {
    /// Creates an empty file for a job to write.
    ///
    /// # Errors
    /// [`CacheError::Io`] if there is no space or no right.
    pub fn stage(&self, kind: StageKind) -> Result<Staged, CacheError> {
        let (file, name) =
            self.inner.dirs.create_temp(&self.inner.id, kind.extension()).during("create a temporary file")?;
        Ok(Staged { file, kind, temp: Temp { inner: Arc::clone(&self.inner), name, published: false } })
    }

    /// Finds out once whether sealing can work at all here.
    pub(super) fn probe_leases(&self) -> Result<(), CacheError> {
        self.stage(StageKind::Blob)?.seal().map(drop)
    }
}

impl Staged {
    /// The file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another descriptor of the file, for the job.
    ///
    /// # Errors
    /// [`CacheError::Io`] if no more descriptors can be had.
    pub fn writer(&self) -> Result<OwnedFd, CacheError> {
        Ok(self.file.try_clone().during("duplicate a descriptor")?.into())
    }

    /// Ends the writing, after the job has ended: the file becomes read-only,
    /// and the kernel is asked whether anybody can still write it.
    ///
    /// # Errors
    /// [`CacheError::WriterLeft`] if somebody can; [`CacheError::NoLeases`] if
    /// the file system of a system cache cannot tell. The file is gone then.
    pub fn seal(self) -> Result<Sealed, CacheError> {
        let Self { file, kind, temp } = self;
        let inner = &temp.inner;
        // First the mode and then the lease: from here on nobody but the owner
        // can open it again for writing, so the lease's word stays true.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444)).during("make a file read-only")?;
        let reader = File::from(
            open_beneath(&inner.dirs.tmp, &temp.name, OFlags::RDONLY, Mode::empty()).during("reopen a written file")?,
        );
        let stat = check_file(&reader).map_err(|source| CacheError::Untrusted { what: "a temporary file", source })?;
        let written = file.metadata().during("inspect a written file")?;
        if (written.dev(), written.ino()) != (reader.metadata().during("inspect a written file")?.dev(), stat.st_ino) {
            let source = io::Error::other("the temporary file was replaced");
            return Err(CacheError::Io { what: "reopen a written file", source });
        }
        drop(file);
        inner.refuse_writers(&reader, kind.word())?;
        failpoint("seal.done");
        let size_bytes = reader.metadata().during("inspect a written file")?.len();
        Ok(Sealed { file: reader, size_bytes, temp })
    }
}

impl Sealed {
    /// The file, open for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of the file.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Gives up the name and keeps the file for as long as it is open.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Name in `tmp/`.
    pub(super) fn temp_name(&self) -> &str {
        &self.temp.name
    }

    /// Says that the file was renamed, so that nothing must be removed.
    pub(super) fn into_published(mut self) -> File {
        self.temp.published = true;
        self.file
    }
}

impl Inner {
    fn refuse_writers(&self, reader: &File, what: &'static str) -> Result<(), CacheError> {
        let deadline = Instant::now() + WRITER_PATIENCE;
        let mut pause = Duration::from_millis(1);
        loop {
            match check_writers(reader).during("take a lease on a written file")? {
                Writers::None => return Ok(()),
                Writers::Left if Instant::now() < deadline => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Writers::Left => return Err(CacheError::WriterLeft { what }),
                Writers::Unknown if self.mode == CacheMode::System => return Err(CacheError::NoLeases),
                Writers::Unknown => {
                    // A user's jobs run as the user, who could write it anyway.
                    tracing::debug!("the cache's file system grants no leases");
                    return Ok(());
                }
            }
        }
    }
}
