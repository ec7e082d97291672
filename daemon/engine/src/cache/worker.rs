//! The thread that makes entries durable and writes the database.
//!
//! Nobody who pulls waits for an fsync. Entries carry the boot in which they
//! were published; once their bytes are on the disk their sidecar says so, and
//! until then a start in another boot distrusts them.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use sctl_sys::openat::open_beneath;

use super::{
    CacheError, EntryId, ImageMeta, Inner, PackMeta,
    database::StateFile,
    error::During,
    failpoint::failpoint,
    model::{FileKind, Meta, pack_stem},
    record::Load,
};

/// How long changes of the state may wait: they are many and dear to no one.
const STATE_DELAY: Duration = Duration::from_secs(15);

/// How long a daemon that ends waits for a sync that is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Tasks {
    /// When to wake up.
    due: Option<Instant>,
    unsynced: BTreeSet<(bool, String)>,
    stop: bool,
    stopped: bool,
    /// Rounds done, for those who wait for one.
    rounds: u64,
}

/// What the worker is to do.
#[derive(Debug)]
pub(super) struct Worker {
    tasks: Mutex<Tasks>,
    wake: Condvar,
    sync_delay: Duration,
}

impl Worker {
    pub(super) fn new(sync_delay: Duration) -> Self {
        Self { tasks: Mutex::default(), wake: Condvar::new(), sync_delay }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_within(&self, mut tasks: MutexGuard<'_, Tasks>, delay: Duration) {
        let due = Instant::now() + delay;
        if tasks.due.is_none_or(|known| due < known) {
            tasks.due = Some(due);
            self.wake.notify_all();
        }
    }

    /// Says that an entry has to be made durable.
    pub(super) fn unsynced(&self, kind: FileKind, stem: String) {
        let mut tasks = self.tasks();
        tasks.unsynced.insert((kind == FileKind::Image, stem));
        self.wake_within(tasks, self.sync_delay);
    }

    /// Says that the state has changed.
    pub(super) fn changed(&self) {
        self.wake_within(self.tasks(), STATE_DELAY);
    }

    /// Waits until everything that was told so far is done.
    pub(super) fn settle(&self) {
        let mut tasks = self.tasks();
        // The round that runs now may have begun before the last change.
        let target = tasks.rounds + 2;
        while tasks.rounds < target && !tasks.stopped {
            tasks.due = Some(Instant::now());
            self.wake.notify_all();
            tasks = self.wake.wait_timeout(tasks, Duration::from_millis(20)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the thread: the state is written once more, a sync under way may
    /// be left to the next start.
    pub(super) fn stop(&self, thread: JoinHandle<()>) {
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut tasks = self.tasks();
        tasks.stop = true;
        self.wake.notify_all();
        while !tasks.stopped && Instant::now() < deadline {
            tasks = self.wake.wait_timeout(tasks, Duration::from_millis(50)).unwrap_or_else(PoisonError::into_inner).0;
        }
        let stopped = tasks.stopped;
        drop(tasks);
        if stopped && thread.join().is_err() {
            tracing::error!("the cache's worker has panicked");
        }
    }

    /// Waits for the next round; `None` means to stop.
    fn next_round(&self) -> Option<BTreeSet<(bool, String)>> {
        let mut tasks = self.tasks();
        loop {
            if tasks.stop {
                return None;
            }
            let now = Instant::now();
            tasks = match tasks.due {
                Some(due) if due <= now => {
                    tasks.due = None;
                    return Some(std::mem::take(&mut tasks.unsynced));
                }
                Some(due) => self.wake.wait_timeout(tasks, due - now).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(tasks).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn end_round(&self, stopped: bool) {
        let mut tasks = self.tasks();
        tasks.rounds += 1;
        tasks.stopped |= stopped;
        self.wake.notify_all();
    }
}

/// Starts the thread.
pub(super) fn spawn(inner: Arc<Inner>, mut database: StateFile) -> Result<JoinHandle<()>, CacheError> {
    let run = move || {
        /// Tells those who wait, even if the thread panics.
        struct Stopped(Arc<Inner>);
        impl Drop for Stopped {
            fn drop(&mut self) {
                self.0.worker.end_round(true);
            }
        }
        let stopped = Stopped(inner);
        let inner = &stopped.0;
        while let Some(unsynced) = inner.worker.next_round() {
            inner.make_durable(&unsynced);
            inner.flush(&mut database);
            inner.worker.end_round(false);
        }
        inner.flush(&mut database);
        // Closed before anybody hears of the end, so that the next may open it.
        drop(database);
    };
    thread::Builder::new().name("cache-sync".to_owned()).spawn(run).during("start a thread")
}

impl Inner {
    /// Waits until the entries are on the disk, then says so in their sidecars.
    fn make_durable(&self, unsynced: &BTreeSet<(bool, String)>) {
        if unsynced.is_empty() {
            return;
        }
        let kind = |image: bool| if image { FileKind::Image } else { FileKind::Pack };
        let mut synced = Vec::new();
        for (image, stem) in unsynced {
            match self.sync_file(kind(*image), stem) {
                Ok(()) => synced.push((kind(*image), stem)),
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(entry = stem, %error, "cannot make a cache entry durable"),
            }
        }
        // The names are in the folders, which have to reach the disk as well.
        for dir in [&self.dirs.packs, &self.dirs.sif, &self.dirs.blobs, &self.dirs.oci, &self.dirs.root] {
            if let Err(error) = rustix::fs::fsync(dir) {
                tracing::warn!(%error, "cannot make the cache's folders durable");
                return;
            }
        }
        failpoint("sync.before_mark");
        for (kind, stem) in synced {
            let marked = match kind {
                FileKind::Pack => self.mark_durable::<PackMeta>(stem),
                FileKind::Image => self.mark_durable::<ImageMeta>(stem),
            };
            if let Err(error) = marked {
                tracing::warn!(entry = stem, %error, "cannot mark a cache entry durable");
            }
        }
        failpoint("sync.after_mark");
    }

    fn sync_file(&self, kind: FileKind, stem: &str) -> io::Result<()> {
        let name = format!("{stem}.{}", kind.extension());
        let file = open_beneath(self.dirs.of(kind), &name, OFlags::RDONLY, Mode::empty())?;
        Ok(rustix::fs::fsync(file)?)
    }

    fn mark_durable<M: Meta>(&self, stem: &str) -> Result<(), CacheError> {
        let publishing = self.publishing();
        if let Load::Ready(mut record, _) = self.load::<M>(stem)?
            && !record.durable
        {
            record.durable = true;
            // Synced before its rename: a loss of power must not replace a good
            // sidecar by an empty one.
            self.write_record(&record, true, &publishing)?;
            // That was no use of the entry.
            self.date_sidecar(&record.meta.id(), self.used_at(&record.meta.id(), record.dated));
        }
        Ok(())
    }

    /// Writes what has changed in memory.
    fn flush(&self, database: &mut StateFile) {
        let changes = self.state.take_changes();
        if changes.is_empty() {
            return;
        }
        for (id, used) in &changes.last_used {
            if let Some(used) = used {
                self.date_sidecar(id, *used);
            }
        }
        database.write(&changes);
    }

    /// Keeps the last use in the sidecar's own time too: that survives the
    /// database, and other hosts see it.
    fn date_sidecar(&self, id: &EntryId, used: i64) {
        let (kind, stem) = match id {
            EntryId::Blob(_) => return,
            EntryId::Pack { diff_id, profile_id } => (FileKind::Pack, pack_stem(diff_id, profile_id)),
            EntryId::Image(key) => (FileKind::Image, key.to_string()),
        };
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: used, tv_nsec: 0 },
        };
        let dir = self.dirs.of(kind);
        // Gone, or read-only: then only the database knows.
        let _ = rustix::fs::utimensat(dir, format!("{stem}.json"), &times, AtFlags::SYMLINK_NOFOLLOW);
    }
}
