//! The broker's half of a pull: who may have what, what is there already,
//! which jobs to start, and when to stop them.
//!
//! ```text
//! pull ── resolve (one job per reference and credentials)
//!      └─ image (one per key) ── layer (one job per pack, origin and grant) × n
//!                             └─ assemble (one job)
//! ```
//!
//! Each box is a flight ([`flight`]): equal requests share it, the last one
//! who leaves ends it. A finished layer is published on its own, so it stays
//! when the image fails.

mod board;
mod delivered;
mod flight;
mod image;
mod layer;
mod live;
mod open;
mod options;
mod rate;
mod resolve;
mod run;
mod slots;
mod tickets;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sctl_common::{ErrorKind, Profile};
use sctl_sys::spawn::Identity;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::{Instrument as _, info, info_span, warn};

pub use self::options::{BrokerOptions, JobUser, Network};
use self::{
    board::{Board, Informer},
    delivered::Delivered,
    flight::Flights,
    live::Live,
    slots::Slots,
    tickets::Tickets,
};
use crate::{
    CacheCleaned, CacheEntry, CacheInfo, Caller, Engine, EntryKind, Failure, MountWish, OpenTarget, Opened, PullEvents,
    PullJob,
    cache::{Cache, CacheError, CacheMode, CacheOptions, EntryId, EntryInfo, Grant, Viewer},
    job::{process::Launcher, protocol::Access},
    mount::{MountOptions, Mounts, Slots as MountSlots, Unavailable},
    registry::{Credentials, Session},
};

/// Resolve jobs at the same time; they mostly wait.
const RESOLVE_JOBS: usize = 16;

/// Assemble jobs at the same time; each holds a merged index in memory.
const ASSEMBLE_JOBS: usize = 2;

/// Listings at the same time, one of a user: each reads every sidecar.
const LISTS: usize = 2;

/// Events that wait for a slow client before its pull waits as well.
const EVENTS: usize = 64;

/// How long a new broker waits for one that is leaving the same cache.
const LEAVING: Duration = Duration::from_secs(5);

/// How long jobs that were ended may take to be gone.
const ENDING: Duration = Duration::from_secs(3);

/// The engine itself: cache, rights, jobs.
#[derive(Debug)]
pub struct Broker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    live: Live,
    cache: Cache,
    launcher: Launcher,
    resolves: Arc<Flights<resolve::Key, Board, Arc<resolve::Resolution>>>,
    images: Arc<Flights<image::Key, Board, Arc<image::Made>>>,
    layers: Arc<Flights<layer::Key, Board, Arc<layer::Done>>>,
    resolve_slots: Slots,
    layer_slots: Slots,
    assemble_slots: Slots,
    /// For those who list the cache.
    list_slots: Slots,
    tickets: Tickets,
    delivered: Delivered,
    /// Pulls under way, by user.
    pulls: Mutex<HashMap<u32, usize>>,
    mounts: Result<Mounts, Unavailable>,
    /// No new work.
    closing: AtomicBool,
    /// Running work is to end now.
    ending: watch::Sender<bool>,
}

impl Broker {
    /// Opens the cache and gets ready to start jobs, and to mount images in
    /// the slots of `mounts` if there are any.
    ///
    /// # Privileges
    /// With a job user: root's, to start processes as that user. With slots:
    /// root's, to mount.
    ///
    /// # Errors
    /// If the cache or a certificate file cannot be used.
    pub fn open(
        options: BrokerOptions,
        mounts: Result<(MountSlots, MountOptions), Unavailable>,
    ) -> Result<Self, Failure> {
        let live = Live::new(options.clone())?;
        let mode = if options.user_mode { CacheMode::User } else { CacheMode::System };
        let cache_options = CacheOptions {
            min_free_percent: options.min_free_percent,
            keep_blobs: options.keep_blobs,
            ..CacheOptions::new(&options.cache_dir, mode)
        };
        let give_up = Instant::now() + LEAVING;
        let cache = loop {
            match Cache::open(cache_options.clone()) {
                // A daemon that has just closed its sockets needs a moment
                // to be gone.
                Err(CacheError::InUse) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(20)),
                result => break result?,
            }
        };
        let identity = options.job_user.map(|user| Identity { uid: user.uid, gid: user.gid });
        let launcher =
            Launcher::new(identity).map_err(|error| Failure::io("cannot start the thread that starts jobs", &error))?;
        let mounts =
            mounts.and_then(|(slots, options)| Mounts::start(slots, options, &cache_options.root, cache.root()));
        if let Err(reason) = &mounts
            && !options.user_mode
        {
            warn!(%reason, "no kernel mounts: containers use FUSE");
        }
        Ok(Self {
            inner: Arc::new(Inner {
                live,
                cache,
                mounts,
                launcher,
                resolves: Arc::default(),
                images: Arc::default(),
                layers: Arc::default(),
                resolve_slots: Slots::new(RESOLVE_JOBS),
                layer_slots: Slots::new(options.max_layer_jobs.max(1)),
                assemble_slots: Slots::new(ASSEMBLE_JOBS),
                list_slots: Slots::limited(LISTS, 1),
                tickets: Tickets::default(),
                delivered: Delivered::default(),
                pulls: Mutex::default(),
                closing: AtomicBool::new(false),
                ending: watch::channel(false).0,
            }),
        })
    }
}

/// A pull that counts as work of its user.
struct Counted {
    inner: Arc<Inner>,
    uid: u32,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut pulls = self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pulls.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                pulls.remove(&self.uid);
            }
        }
    }
}

impl Inner {
    fn admit(self: &Arc<Self>, caller: Caller) -> Result<Counted, Failure> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(stopping());
        }
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = pulls.entry(caller.uid).or_default();
        let limit = self.options().max_pulls_per_user;
        if *count >= limit {
            return Err(Failure::new(ErrorKind::LimitExceeded, format!("{limit} pulls of yours are running"))
                .hint("wait until some are done"));
        }
        *count += 1;
        Ok(Counted { inner: Arc::clone(self), uid: caller.uid })
    }

    fn pulling(&self) -> usize {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Runs work on the cache where it may block.
    async fn with_cache<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Cache) -> Result<T, CacheError> + Send + 'static,
    ) -> Result<T, Failure> {
        let inner = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&inner.cache)).await {
            Ok(result) => Ok(result?),
            Err(error) => Err(Failure::internal("work on the cache failed").because(&error)),
        }
    }

    fn access(&self, credentials: &Credentials, session: Option<Session>, insecure: bool) -> Access {
        let live = self.live.get();
        Access {
            credentials: credentials.clone(),
            session,
            insecure,
            proxies: live.options.network.proxies.clone(),
            extra_ca_pem: live.ca_pem.clone(),
            max_manifest_bytes: live.options.limits.max_manifest_bytes,
        }
    }

    fn profile(&self, job: &PullJob) -> Profile {
        let options = self.options();
        Profile { compression: job.compression.unwrap_or(options.compression), block_size: options.block_size }
    }
}

/// Under which right a caller with these credentials gets bytes.
fn grant_of(caller: Caller, credentials: &Credentials) -> Grant {
    if credentials.is_anonymous() { Grant::Public } else { Grant::Uid(caller.uid) }
}

fn stopping() -> Failure {
    Failure::new(ErrorKind::Unavailable, "the daemon is stopping").hint("try again in a moment")
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        let mut failure = Self::new(error.kind(), error.to_string());
        if let Some(source) = std::error::Error::source(&error) {
            failure.causes = Self::internal("").because(source).causes;
        }
        match failure.kind {
            ErrorKind::NoSpace => failure.hint(crate::failure::MAKE_ROOM),
            _ => failure,
        }
    }
}

impl Engine for Broker {
    fn pull(&self, caller: Caller, job: PullJob) -> PullEvents {
        let (events, receiver) = mpsc::channel(EVENTS);
        let counted = match self.inner.admit(caller) {
            Ok(counted) => counted,
            Err(failure) => {
                // The channel is new, so there is room.
                let _ = events.try_send(Err(failure));
                return receiver;
            }
        };
        let span = info_span!("pull", caller.uid, reference = %job.reference);
        let inner = Arc::clone(&self.inner);
        let mut ending = self.inner.ending.subscribe();
        let work = async move {
            let _counted = counted;
            let mut informer = Informer::new(events.clone());
            let result = tokio::select! {
                result = run::run(&inner, caller, &job, &mut informer) => result,
                // The caller has left: so do we, from every flight.
                () = events.closed() => {
                    info!("caller left");
                    return;
                }
                // An error means that the broker is gone.
                _ = ending.wait_for(|ending| *ending) => {
                    Err(Failure::new(ErrorKind::Cancelled, "the daemon was stopped").hint("try again"))
                }
            };
            // A caller who has left in the meantime is none of our worry.
            let _ = match result {
                Ok(done) => events.send(Ok(done)).await,
                Err(failure) => events.send(Err(failure)).await,
            };
        };
        tokio::spawn(work.instrument(span));
        receiver
    }

    async fn open(&self, caller: Caller, target: OpenTarget, wish: MountWish) -> Option<Opened> {
        self.inner.open(caller, target, wish).await
    }

    async fn cache_list(&self, caller: Caller) -> Result<Vec<CacheEntry>, Failure> {
        let _slot = self.inner.list_slots.acquire(caller.uid).await?;
        let entries = self.inner.with_cache(move |cache| cache.list(viewer(caller))).await?;
        Ok(entries.into_iter().map(entry).collect())
    }

    async fn cache_info(&self, caller: Caller) -> Result<CacheInfo, Failure> {
        let _slot = self.inner.list_slots.acquire(caller.uid).await?;
        let running_jobs = if caller.admin { self.inner.launcher.running() as u64 } else { 0 };
        let info = self.inner.with_cache(move |cache| {
            let path = cache.path().to_owned();
            if caller.admin {
                let totals = cache.totals()?;
                return Ok(CacheInfo {
                    path,
                    images: totals.images,
                    image_bytes: totals.image_bytes,
                    packs: totals.packs,
                    pack_bytes: totals.pack_bytes,
                    blobs: totals.blobs,
                    blob_bytes: totals.blob_bytes,
                    free_bytes: totals.free_bytes,
                    shared_bytes: totals.shared_bytes,
                    fetched_bytes: totals.fetched_bytes,
                    reused_bytes: totals.reused_bytes,
                    running_jobs: 0,
                });
            }
            // What others have is theirs: only what this caller may use counts.
            let mut info = CacheInfo { path, free_bytes: cache.space()?.free_bytes, ..CacheInfo::default() };
            for entry in cache.list(viewer(caller))? {
                let (count, bytes) = match entry.id {
                    EntryId::Image(_) => (&mut info.images, &mut info.image_bytes),
                    EntryId::Pack { .. } => {
                        let again = u64::from(entry.used_by.saturating_sub(1));
                        info.shared_bytes += entry.size_bytes.saturating_mul(again);
                        (&mut info.packs, &mut info.pack_bytes)
                    }
                    EntryId::Blob(_) => (&mut info.blobs, &mut info.blob_bytes),
                };
                *count += 1;
                *bytes += entry.size_bytes;
            }
            Ok(info)
        });
        Ok(CacheInfo { running_jobs, ..info.await? })
    }

    async fn cache_clean(&self, caller: Caller, dry_run: bool) -> Result<CacheCleaned, Failure> {
        if !caller.admin {
            return Err(Failure::new(ErrorKind::Denied, "only administrators may clean the system's cache")
                .hint("ask a member of the administrators' group, or root"));
        }
        let inner = Arc::clone(&self.inner);
        let clean = move |cache: &Cache| cache.clean(Viewer::All, dry_run, &|id| inner.in_use(id));
        let cleaned = self.inner.with_cache(clean).await?;
        Ok(CacheCleaned { removed: cleaned.removed.into_iter().map(entry).collect(), freed_bytes: cleaned.freed_bytes })
    }

    fn active(&self) -> usize {
        self.inner.pulling() + self.inner.launcher.running()
    }

    async fn shutdown(&self, deadline: Duration) {
        self.inner.closing.store(true, Ordering::SeqCst);
        let none_left = async {
            while self.inner.pulling() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(deadline, none_left).await.is_err() {
            info!(pulls = self.inner.pulling(), "deadline over: ending what runs");
        }
        self.inner.ending.send_replace(true);
        let gone = async {
            while self.active() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(ENDING, gone).await.is_err() {
            warn!(jobs = self.inner.launcher.running(), "some jobs have not ended yet");
        }
        let inner = Arc::clone(&self.inner);
        let last = move || {
            inner.tickets.expire_all();
            if let Ok(mounts) = &inner.mounts {
                mounts.stop();
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(last).await {
            warn!(%error, "cannot close what was handed out");
        }
    }
}

fn viewer(caller: Caller) -> Viewer {
    if caller.admin { Viewer::All } else { Viewer::Uid(caller.uid) }
}

fn entry(info: EntryInfo) -> CacheEntry {
    CacheEntry {
        kind: match info.id {
            EntryId::Image(_) => EntryKind::Image,
            EntryId::Pack { .. } => EntryKind::Pack,
            EntryId::Blob(_) => EntryKind::Blob,
        },
        name: info.name,
        digest: info.digest.to_string(),
        size: info.size_bytes,
        created: info.created,
        last_used: info.last_used.unwrap_or(0),
        used_by: info.used_by,
        public: info.public,
        uids: info.uids,
        platform: info.platform,
    }
}
