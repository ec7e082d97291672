//! Sidecars: what is written beside a file, and whether both are sound.
//!
//! A sidecar is published before its file and removed after it, so a file
//! that has a name also has a description. Everything else that can be found
//! here is the trace of a crash or of damage, and counts as absent.

use std::{
    fs::File,
    io::{self, Read},
    sync::MutexGuard,
    time::Duration,
};

use rustix::io::Errno;
use sctl_sys::openat::open_trusted;

use super::{
    CacheError, CacheMode, Inner,
    dirs::{stat, unlink},
    error::During,
    failpoint::{failpoint, failpoint_at},
    model::{FileKind, Meta, RECORD_VERSION, Record},
    unix_now,
};

/// No sidecar of ours comes near; a larger file is damage.
const MAX_SIDECAR_BYTES: u64 = 16 << 20;

/// Another host may be between a sidecar and its file. An hour is far more
/// than that takes and covers clocks that disagree.
const OTHER_HOSTS_PATIENCE: Duration = Duration::from_secs(3600);

/// A sound entry: its sidecar, and its file open for reading.
pub(super) type Entry<M> = (Box<Record<M>>, File);

/// What stands under a name.
pub(super) enum Load<M> {
    /// Nothing.
    Absent,
    /// A sidecar of a later version: not ours to read, nor to remove.
    Newer,
    /// Only half of it, or damaged; `removable` if no living writer can be at it.
    Broken { why: String, removable: bool },
    /// A loss of power may have undone it.
    Unverified(Box<Record<M>>, File),
    /// Sound.
    Ready(Box<Record<M>>, File),
}

impl Inner {
    /// Reads the sidecar and opens the file of an entry.
    pub(super) fn load<M: Meta>(&self, stem: &str) -> Result<Load<M>, CacheError> {
        let dir = self.dirs.of(M::KIND);
        let sidecar = format!("{stem}.json");
        let (text, dated) = match open_trusted(dir, &sidecar) {
            Ok((file, stat)) => {
                let mut text = Vec::new();
                file.take(MAX_SIDECAR_BYTES).read_to_end(&mut text).during("read a sidecar")?;
                (text, stat.st_mtime)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Load::Absent),
            Err(error) => return Ok(Load::Broken { why: damage(error, "read a sidecar")?, removable: true }),
        };
        let age = age_of(dated);
        let record = match parse::<M>(&text) {
            Ok(record) => Record { dated, ..record },
            Err(ParseError::Newer) => return Ok(Load::Newer),
            Err(ParseError::Damaged(why)) => return Ok(self.broken(why, None, age)),
        };
        if record.meta.stem() != stem {
            return Ok(self.broken("the sidecar describes another entry".to_owned(), None, age));
        }
        let (file, stat) = match open_trusted(dir, &format!("{stem}.{}", M::KIND.extension())) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(self.broken("the file is missing".to_owned(), Some(&record.host), age));
            }
            Err(error) => return Ok(Load::Broken { why: damage(error, "open a cached file")?, removable: true }),
        };
        let found = stat.st_size as u64;
        if found != record.size_bytes {
            let why = format!("the file has {found} bytes instead of {}", record.size_bytes);
            return Ok(self.broken(why, Some(&record.host), age));
        }
        if !record.durable && record.host == self.id.host && record.boot_id != self.id.boot_id {
            return Ok(Load::Unverified(Box::new(record), file));
        }
        Ok(Load::Ready(Box::new(record), file))
    }

    fn broken<M>(&self, why: String, host: Option<&str>, age: Duration) -> Load<M> {
        let removable = self.mode == CacheMode::System
            || host.is_some_and(|host| host == self.id.host)
            || age > OTHER_HOSTS_PATIENCE;
        Load::Broken { why, removable }
    }

    /// Loads an entry for use: what is not sound is absent, and is removed.
    pub(super) fn load_ready<M: Meta>(&self, stem: &str) -> Result<Option<Entry<M>>, CacheError> {
        match self.load::<M>(stem)? {
            Load::Ready(record, file) => Ok(Some((record, file))),
            Load::Absent | Load::Newer | Load::Broken { removable: false, .. } => Ok(None),
            Load::Broken { .. } | Load::Unverified(..) => {
                // Between the look and the lock somebody here may have published it.
                let publishing = self.publishing();
                self.load_locked(stem, &publishing)
            }
        }
    }

    /// [`Inner::load_ready`] for those who hold the lock already.
    pub(super) fn load_locked<M: Meta>(
        &self,
        stem: &str,
        publishing: &MutexGuard<'_, ()>,
    ) -> Result<Option<Entry<M>>, CacheError> {
        match self.load::<M>(stem)? {
            Load::Ready(record, file) => Ok(Some((record, file))),
            Load::Absent | Load::Newer => Ok(None),
            Load::Unverified(record, file) => {
                if self.is_verified(&record, &file) {
                    return Ok(Some((self.restamp(*record, publishing)?, file)));
                }
                self.remove_damaged::<M>(stem, "lost power before it was durable", publishing);
                Ok(None)
            }
            Load::Broken { why, removable } => {
                if removable {
                    self.remove_damaged::<M>(stem, &why, publishing);
                }
                Ok(None)
            }
        }
    }

    fn remove_damaged<M: Meta>(&self, stem: &str, why: &str, publishing: &MutexGuard<'_, ()>) {
        tracing::warn!(kind = ?M::KIND, entry = stem, why, "damaged cache entry removed");
        if let Err(error) = self.remove_files(M::KIND, stem, publishing) {
            tracing::warn!(kind = ?M::KIND, entry = stem, %error, "cannot remove a damaged cache entry");
        }
    }

    /// Says of a verified entry that it lives in this boot; a sync follows.
    fn restamp<M: Meta>(
        &self,
        mut record: Record<M>,
        publishing: &MutexGuard<'_, ()>,
    ) -> Result<Box<Record<M>>, CacheError> {
        self.stamp(&mut record);
        self.write_record(&record, false, publishing)?;
        self.worker.unsynced(M::KIND, record.meta.stem());
        Ok(Box::new(record))
    }

    fn is_verified<M: Meta>(&self, record: &Record<M>, file: &File) -> bool {
        let Some(verify) = &self.verify else { return false };
        verify(super::Unverified { id: &record.meta.id(), file, size_bytes: record.size_bytes })
    }

    pub(super) fn stamp<M>(&self, record: &mut Record<M>) {
        record.host.clone_from(&self.id.host);
        record.boot_id.clone_from(&self.id.boot_id);
        record.durable = false;
    }

    /// Replaces an entry's sidecar.
    pub(super) fn write_record<M: Meta>(
        &self,
        record: &Record<M>,
        sync: bool,
        _publishing: &MutexGuard<'_, ()>,
    ) -> Result<(), CacheError> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| CacheError::Io { what: "write a sidecar", source: error.into() })?;
        let name = format!("{}.json", record.meta.stem());
        self.dirs
            .write_file(&self.id, self.dirs.of(M::KIND), &name, &text, sync, || {
                failpoint_at(M::PUBLISH, "sidecar_written");
            })
            .during("write a sidecar")
    }

    /// Removes an entry: the file first, because a file without description
    /// would have to be taken for damage.
    pub(super) fn remove_files(
        &self,
        kind: FileKind,
        stem: &str,
        _publishing: &MutexGuard<'_, ()>,
    ) -> Result<(), CacheError> {
        let dir = self.dirs.of(kind);
        unlink(dir, &format!("{stem}.{}", kind.extension())).during("remove a cached file")?;
        failpoint("remove.after_file");
        unlink(dir, &format!("{stem}.json")).during("remove a sidecar")?;
        failpoint("remove.after_sidecar");
        Ok(())
    }

    /// Says whether a file without sidecar may be removed.
    pub(super) fn is_orphan_removable(&self, kind: FileKind, name: &str) -> Result<bool, CacheError> {
        let found = stat(self.dirs.of(kind), name).during("inspect a cached file")?;
        // Its own times are of little use: a copied cache may hold old ones. The
        // change time is when it got its name.
        Ok(found.is_some_and(|stat| self.mode == CacheMode::System || age_of(stat.st_ctime) > OTHER_HOSTS_PATIENCE))
    }
}

enum ParseError {
    Newer,
    Damaged(String),
}

fn parse<M: Meta>(text: &[u8]) -> Result<Record<M>, ParseError> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let damaged = |error: serde_json::Error| ParseError::Damaged(format!("the sidecar cannot be read: {error}"));
    let Version { version } = serde_json::from_slice(text).map_err(damaged)?;
    if version > RECORD_VERSION {
        return Err(ParseError::Newer);
    }
    serde_json::from_slice(text).map_err(damaged)
}

/// Tells damage from failures that say nothing about the entry, such as too
/// many open files: those must not cost anybody a cache entry. What is left
/// (symlinks, folders, files that others may write) no writer of ours makes.
fn damage(error: io::Error, what: &'static str) -> Result<String, CacheError> {
    let raw = error.raw_os_error().map(Errno::from_raw_os_error);
    match raw {
        Some(Errno::LOOP | Errno::NXIO | Errno::NOTDIR | Errno::ACCESS) => Ok(error.to_string()),
        None if error.kind() == io::ErrorKind::InvalidData => Ok(error.to_string()),
        _ => Err(CacheError::Io { what, source: error }),
    }
}

fn age_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(unix_now() - seconds).unwrap_or(0))
}
