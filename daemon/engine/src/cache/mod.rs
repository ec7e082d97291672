//! The cache: blobs, packs and SIFs on disk, and who may use them.
//!
//! Files are the truth. Each pack and SIF has a sidecar that says what it is
//! and who has earned it; both appear and go one by one and by rename, so that
//! a process may die at any instant, and several hosts may share a user's
//! cache. The database beside them only remembers what files do not tell well
//! (last use, leases, counters) and can be lost at any time.
//!
//! Everything here is synchronous and may be called from any thread. No path
//! from outside is ever opened but the root: files are found beneath folders
//! that were opened at the start, and are checked by descriptor.

mod blobs;
mod clean;
mod database;
mod dirs;
mod error;
mod failpoint;
mod host;
mod index;
mod inventory;
mod lookup;
mod model;
mod publish;
mod record;
mod recover;
mod rights;
mod stage;
mod state;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use error::During;

pub use clean::{Cleaned, Hold, Reservation, Space};
pub use error::CacheError;
pub use failpoint::failpoint;
pub use host::HostId;
pub use inventory::{CacheTotals, EntryInfo, Usage, Viewer};
pub use lookup::{HeldLease, ImageFile, Lease, PackFile};
pub(crate) use model::INSECURE_SCHEME;
pub use model::{EntryId, FileKind, Grant, Grants, ImageKey, ImageLayer, ImageMeta, PackMeta, Partition};
pub use publish::Published;
pub use stage::{Sealed, StageKind, Staged};

/// Whom a cache serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// All users of one host, by a root daemon.
    System,
    /// One user, on as many hosts as share the user's home.
    User,
}

/// An entry that a loss of power may have undone, for [`CacheOptions::verify`].
#[derive(Debug)]
pub struct Unverified<'a> {
    /// Names it.
    pub id: &'a EntryId,
    /// Open for reading.
    pub file: &'a File,
    /// Bytes of the file, as they should be and are.
    pub size_bytes: u64,
}

/// Says whether the bytes of an entry are what they should be.
pub type Verify = dyn Fn(Unverified<'_>) -> bool + Send + Sync;

/// How a cache is opened.
#[derive(Clone)]
pub struct CacheOptions {
    /// The cache's folder; it is created where it is missing.
    pub root: PathBuf,
    /// Whom it serves.
    pub mode: CacheMode,
    /// Share of the disk that jobs must leave free.
    pub min_free_percent: u8,
    /// Upper limit of all entries together.
    pub quota_bytes: Option<u64>,
    /// Layer blobs are kept when they have been packed.
    pub keep_blobs: bool,
    /// How long a published entry waits for company before it is synced.
    pub sync_delay: Duration,
    /// Judges packs and images that were published shortly before a loss of
    /// power. Their length is right at least; their contents may be stale, so
    /// that a judge who does not read them all can be wrong. Without one such
    /// entries are dropped, which costs one pull.
    pub verify: Option<Arc<Verify>>,
    /// The host, if it is not the one that the kernel tells.
    pub host: Option<HostId>,
}

impl CacheOptions {
    /// The defaults: 10% stay free, no quota, no blobs kept.
    pub fn new(root: impl Into<PathBuf>, mode: CacheMode) -> Self {
        Self {
            root: root.into(),
            mode,
            min_free_percent: 10,
            quota_bytes: None,
            keep_blobs: false,
            sync_delay: Duration::from_secs(3),
            verify: None,
            host: None,
        }
    }
}

impl fmt::Debug for CacheOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheOptions").field("root", &self.root).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// An open cache.
#[derive(Debug)]
pub struct Cache {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    dirs: dirs::Dirs,
    id: HostId,
    mode: CacheMode,
    min_free_percent: AtomicU8,
    quota_bytes: Option<u64>,
    keep_blobs: AtomicBool,
    verify: Option<Arc<Verify>>,
    /// Held while sidecars change.
    publishing: Mutex<()>,
    held: Mutex<HashMap<EntryId, usize>>,
    /// Bytes that running jobs are still going to write.
    reserved: AtomicU64,
    state: state::State,
    rights: rights::Rights,
    worker: worker::Worker,
    _lock: File,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens a cache and brings it into order: sweeps what dead writers left,
    /// removes halves of entries, verifies or drops what a loss of power may
    /// have undone, and rebuilds a database that is lost or damaged.
    ///
    /// # Errors
    /// [`CacheError::Untrusted`] if others may write the folder;
    /// [`CacheError::InUse`]; [`CacheError::NoLeases`]; [`CacheError::Io`].
    pub fn open(options: CacheOptions) -> Result<Self, CacheError> {
        let dirs = dirs::Dirs::open(&options.root, options.mode)?;
        let id = options.host.unwrap_or_else(HostId::current);
        let (lock_name, database_name) = match options.mode {
            CacheMode::System => ("lock".to_owned(), "state.db".to_owned()),
            CacheMode::User => (format!("lock-{}", id.host), format!("state-{}.db", id.host)),
        };
        let lock = dirs.lock(&lock_name)?;
        dirs.sweep(&id, options.mode)?;
        failpoint("open.after_sweep");
        let folder = dirs.root.try_clone().during("duplicate a descriptor")?;
        // A user's daemon is started by a command that waits for it.
        let thorough = options.mode == CacheMode::System;
        let (database, mut rows) = database::StateFile::open(folder, database_name, thorough);
        failpoint("open.after_database");
        let last_used = std::mem::take(&mut rows.last_used);
        let inner = Arc::new(Inner {
            state: state::State::new(rows, &id.boot_id),
            rights: rights::Rights::default(),
            worker: worker::Worker::new(options.sync_delay),
            dirs,
            id,
            mode: options.mode,
            min_free_percent: AtomicU8::new(options.min_free_percent.min(100)),
            quota_bytes: options.quota_bytes,
            keep_blobs: AtomicBool::new(options.keep_blobs),
            verify: options.verify,
            publishing: Mutex::new(()),
            held: Mutex::default(),
            reserved: AtomicU64::new(0),
            _lock: lock,
        });
        inner.write_layout()?;
        failpoint("open.after_layout");
        inner.recover(&last_used)?;
        failpoint("open.after_recover");
        let mut cache = Self { inner, thread: None };
        if options.mode == CacheMode::System {
            cache.probe_leases()?;
        }
        cache.thread = Some(worker::spawn(Arc::clone(&cache.inner), database)?);
        Ok(cache)
    }

    /// The cache's folder, for display only.
    pub fn path(&self) -> &Path {
        &self.inner.dirs.path
    }

    /// The cache's folder, for inspection.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.inner.dirs.root.as_fd()
    }

    /// Whom it serves.
    pub fn mode(&self) -> CacheMode {
        self.inner.mode
    }

    /// Says whether layer blobs are to be kept when they have been packed.
    pub fn keep_blobs(&self) -> bool {
        self.inner.keep_blobs.load(Ordering::Relaxed)
    }

    /// Changes what must stay free of the disk, and whether layer blobs are
    /// kept; what is there already stays.
    pub fn adjust(&self, min_free_percent: u8, keep_blobs: bool) {
        self.inner.min_free_percent.store(min_free_percent.min(100), Ordering::Relaxed);
        self.inner.keep_blobs.store(keep_blobs, Ordering::Relaxed);
    }

    /// Returns when everything that others wait for could be had: a daemon
    /// in which that takes for ever is stuck.
    pub fn answer(&self) {
        drop(self.inner.publishing());
        drop(self.inner.held.lock().unwrap_or_else(PoisonError::into_inner));
        self.inner.state.answer();
    }

    /// Waits until all entries published so far are durable and the database
    /// is written. Nobody needs to, but who is about to pull the plug.
    pub fn settle(&self) {
        self.inner.worker.settle();
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.inner.worker.stop(thread);
        }
    }
}

impl Inner {
    fn publishing(&self) -> MutexGuard<'_, ()> {
        // The files are the state, and every step of theirs is atomic.
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
fn unix_now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
