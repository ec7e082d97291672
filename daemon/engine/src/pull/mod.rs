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
mod overview;
mod rate;
mod resolve;
mod roster;
mod run;
mod slots;
mod tickets;

use std::{
    sync::{
        Arc,
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
    roster::{Roster, Seat},
    slots::Slots,
    tickets::Tickets,
};
use crate::{
    CacheCleaned, CacheEntry, CacheInfo, Caller, Engine, Failure, JobInfo, MountWish, OpenTarget, Opened, PullEvents,
    PullJob, UnmountTarget, UnmountedImage,
    audit::{self, Image},
    cache::{Cache, CacheError, CacheMode, CacheOptions, Grant, HeldLease},
    job::{
        process::{Launcher, Starter},
        protocol::Access,
    },
    mount::{MountInfo, MountOptions, Mounts, Slots as MountSlots, Unavailable},
    registry::{Credentials, Session},
};

/// Resolve jobs at the same time; they mostly wait.
const RESOLVE_JOBS: usize = 16;

/// Assemble jobs at the same time; each holds a merged index in memory.
const ASSEMBLE_JOBS: usize = 2;

/// Listings at the same time, one of a user: each reads every sidecar.
const LISTS: usize = 2;

/// Images opened and mounted at the same time, and by one user: fewer than
/// the threads that may block.
const OPENS: (usize, usize) = (12, 8);

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
    /// For those who open images, so that one user's many requests do not
    /// keep others' waiting.
    open_slots: Slots,
    tickets: Tickets,
    delivered: Delivered,
    roster: Roster,
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
        let starter = options.job_socket.clone().map_or(Starter::Broker(identity), Starter::Launcher);
        let launcher =
            Launcher::new(starter).map_err(|error| Failure::io("cannot start the thread that starts jobs", &error))?;
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
                open_slots: Slots::limited(OPENS.0, OPENS.1),
                tickets: Tickets::default(),
                delivered: Delivered::default(),
                roster: Roster::default(),
                closing: AtomicBool::new(false),
                ending: watch::channel(false).0,
            }),
        })
    }
}

impl Inner {
    fn admit(&self, caller: Caller) -> Result<Seat, Failure> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(stopping());
        }
        let limit = self.options().max_pulls_per_user;
        self.roster.admit(caller, limit).ok_or_else(|| {
            Failure::new(ErrorKind::LimitExceeded, format!("{limit} pulls of yours are running"))
                .hint("wait until some are done")
        })
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

/// Notes that a registry refused a caller. Its own words stay out: it has seen
/// the caller's credentials and may repeat them.
fn note_denial(caller: Caller, job: &PullJob, failure: &Failure) {
    let reason = match failure.kind {
        ErrorKind::Denied => "the registry denies access",
        ErrorKind::Unauthenticated => "the registry wants credentials, or other ones",
        _ => return,
    };
    let reference = job.reference.to_string();
    audit::denial(caller.uid, "pull", Image { reference: Some(&reference), ..Image::default() }, reason);
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
        let seat = match self.inner.admit(caller) {
            Ok(seat) => seat,
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
            let mut informer = Informer::new(seat, events.clone());
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
            if let Err(failure) = &result {
                note_denial(caller, &job, failure);
            }
            // A caller who has left in the meantime is none of our worry.
            let _ = events.send(result).await;
        };
        tokio::spawn(work.instrument(span));
        receiver
    }

    async fn open(&self, caller: Caller, target: OpenTarget, wish: MountWish) -> Option<Opened> {
        self.inner.open(caller, target, wish).await
    }

    async fn cache_list(&self, caller: Caller) -> Result<Vec<CacheEntry>, Failure> {
        self.inner.cache_list(caller).await
    }

    async fn cache_info(&self, caller: Caller) -> Result<CacheInfo, Failure> {
        self.inner.cache_info(caller).await
    }

    async fn cache_clean(&self, caller: Caller, dry_run: bool) -> Result<CacheCleaned, Failure> {
        self.inner.cache_clean(caller, dry_run).await
    }

    async fn admin_mounts(&self, caller: Caller) -> Result<Vec<MountInfo>, Failure> {
        self.inner.admin_mounts(caller).await
    }

    async fn admin_leases(&self, caller: Caller) -> Result<Vec<HeldLease>, Failure> {
        self.inner.admin_leases(caller).await
    }

    async fn admin_jobs(&self, caller: Caller) -> Result<Vec<JobInfo>, Failure> {
        self.inner.admin_jobs(caller).await
    }

    async fn admin_unmount(&self, caller: Caller, target: UnmountTarget) -> Result<Vec<UnmountedImage>, Failure> {
        self.inner.admin_unmount(caller, target).await
    }

    fn active(&self) -> usize {
        self.inner.roster.pulling() + self.inner.launcher.running()
    }

    async fn shutdown(&self, deadline: Duration) {
        self.inner.closing.store(true, Ordering::SeqCst);
        let none_left = async {
            while self.inner.roster.pulling() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(deadline, none_left).await.is_err() {
            info!(pulls = self.inner.roster.pulling(), "deadline over: ending what runs");
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
        audit::flush();
    }
}
