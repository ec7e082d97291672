//! The engine as the daemon's front doors see it.
//!
//! Front doors turn wire types into these words and back; they know who is
//! calling from the socket and from nothing else.

use std::{fmt, fs::File, os::fd::OwnedFd, path::PathBuf};

use sctl_common::{Compression, Digest, Platform, Reference};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    Failure, JobInfo, UnmountTarget, UnmountedImage,
    cache::{CacheTotals, HeldLease, ImageKey},
    mount::MountInfo,
    registry::Credentials,
};

/// Who is calling, as the kernel told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user id when it connected.
    pub uid: u32,
    /// Effective group id when it connected.
    pub gid: u32,
    /// Whom the limits count it as: the owner of a subordinate id, else the
    /// user itself. It gives no right to anything.
    pub account: u32,
    /// May inspect and change everything.
    pub admin: bool,
}

#[cfg(test)]
impl Caller {
    /// An ordinary user, who counts as itself.
    pub(crate) fn user(uid: u32) -> Self {
        Self { uid, gid: uid, account: uid, admin: false }
    }
}

/// A pull that has been asked for.
#[derive(Debug, Clone)]
pub struct PullJob {
    /// What to pull.
    pub reference: Reference,
    /// For which platform.
    pub platform: Platform,
    /// What the caller can show to the registry.
    pub credentials: Credentials,
    /// Plain HTTP, or TLS without verification, is acceptable.
    pub insecure: bool,
    /// Compressor; none means the daemon's default.
    pub compression: Option<Compression>,
    /// Leave nothing in the cache.
    pub disable_cache: bool,
}

/// Which part of a pull has made progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Bytes of a blob have arrived.
    Fetch,
    /// Bytes of a layer's tar have been packed.
    Pack,
    /// Bytes of the image have been written.
    Assemble,
}

/// How much a line for the user matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeLevel {
    /// Degraded, went on.
    Warning,
    /// Worth a line.
    Info,
    /// Worth a line to those who asked for more.
    Verbose,
}

/// A line for the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// How much it matters.
    pub level: NoticeLevel,
    /// The line.
    pub text: String,
}

/// A layer as a resolved pull lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Its pack was in the cache: the blob will not be fetched.
    pub cached: bool,
}

/// One piece of news from a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// The reference has been resolved.
    Resolved {
        /// Digest of the platform's manifest.
        manifest: Digest,
        /// Canonical reference.
        reference: Reference,
        /// The layers, bottom first.
        layers: Vec<ResolvedLayer>,
        /// Digest of the config.
        config: Digest,
        /// Bytes of the config.
        config_size: u64,
        /// The finished image was in the cache: nothing will be fetched.
        image_cached: bool,
    },
    /// A stage has made progress.
    Progress {
        /// Which one.
        stage: Stage,
        /// Blob of the layer; none for the image itself.
        digest: Option<Digest>,
        /// Bytes so far.
        done_bytes: u64,
        /// Bytes altogether, if known.
        total_bytes: Option<u64>,
        /// The stage is over.
        finished: bool,
    },
    /// A line for the user.
    Notice(Notice),
    /// The pull has succeeded. Nothing follows.
    Done {
        /// Opens the SIF once.
        ticket: Ticket,
        /// Digest of the platform's manifest.
        manifest: Digest,
        /// Bytes of the SIF.
        size: u64,
        /// Bytes fetched for this answer.
        fetched_bytes: u64,
        /// Blob bytes that did not have to be fetched.
        reused_bytes: u64,
        /// Path of the SIF in the cache, for display.
        path: PathBuf,
        /// The image itself was in the cache.
        image_cached: bool,
        /// Names the image in the cache, if it is kept there.
        key: Option<ImageKey>,
    },
}

/// Opens one SIF once, for the uid that it was made for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub [u8; 16]);

impl fmt::Debug for Ticket {
    // A bearer right does not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

/// News of one pull; dropping it tells the engine that nobody waits any more.
pub type PullEvents = mpsc::Receiver<Result<PullEvent, Failure>>;

/// What mount.sock is asked to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenTarget {
    /// What a pull has just made.
    Ticket(Ticket),
    /// An image by name, if a lease of the caller covers it.
    Image {
        /// Which image.
        reference: Reference,
        /// For which platform.
        platform: Platform,
    },
    /// An image of which the caller holds an unchanged copy: no lease needed,
    /// but a right to it.
    Delivered {
        /// What the copy was pulled by.
        reference: Reference,
        /// For which platform.
        platform: Platform,
        /// Names it in the cache.
        key: ImageKey,
    },
}

/// What is to come with an open SIF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MountWish {
    /// Nothing.
    None,
    /// A mount whose superblock all users share; its ids are nobody's.
    Shared,
    /// A mount whose superblock is the caller's own; the image's id 0 is the
    /// caller.
    Private,
}

/// An open SIF, to be handed to the caller.
#[derive(Debug)]
pub struct Opened {
    /// Read-only descriptor.
    pub file: File,
    /// Digest of the platform's manifest.
    pub manifest: Digest,
    /// Canonical reference.
    pub reference: Reference,
    /// Path of the SIF in the cache, for display.
    pub path: PathBuf,
    /// Names the image in the cache, if it is kept there.
    pub key: Option<ImageKey>,
    /// A detached mount of the image, checked and locked.
    pub mount: Option<OwnedFd>,
    /// Why there is none although one was wished for; says nothing of others.
    pub no_mount: Option<String>,
}

impl Opened {
    /// A SIF and no mount.
    pub fn new(file: File, manifest: Digest, reference: Reference, path: PathBuf) -> Self {
        Self { file, manifest, reference, path, key: None, mount: None, no_mount: None }
    }
}

/// Kind of a cache entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKind {
    /// A finished SIF.
    Image,
    /// A packed layer.
    Pack,
    /// A manifest, config or kept layer blob.
    Blob,
}

/// One entry of the cache, as much of it as its reader may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// What it is.
    pub kind: EntryKind,
    /// Names an image.
    pub key: Option<ImageKey>,
    /// The newest reference of an image, digest of a pack or blob.
    pub name: String,
    /// All references of an image, the newest last; empty for readers who are
    /// no administrators.
    pub references: Vec<String>,
    /// Digest: of the manifest, the uncompressed layer or the blob.
    pub digest: String,
    /// Bytes on disk.
    pub size: u64,
    /// When it was made, Unix seconds.
    pub created: i64,
    /// When it was last used, Unix seconds.
    pub last_used: i64,
    /// Images that use it.
    pub used_by: u32,
    /// Everybody may use it.
    pub public: bool,
    /// Who else may use it; empty for readers who are no administrators.
    pub uids: Vec<u32>,
    /// Platform of an image.
    pub platform: Option<Platform>,
    /// Kept until it is unpinned.
    pub pinned: bool,
    /// The image is mounted; never for readers who are no administrators.
    pub mounted: bool,
}

/// Sizes and reuse of the cache, as much of it as its reader may see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheInfo {
    /// Where it is.
    pub path: PathBuf,
    /// Sizes and reuse.
    pub totals: CacheTotals,
    /// Kernel mounts that the daemon knows of; 0 for readers who are no
    /// administrators.
    pub mounts: u64,
    /// Leases that hold; 0 likewise.
    pub leases: u64,
    /// Job processes that run now; 0 likewise.
    pub running_jobs: u64,
}

/// What a clean removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheCleaned {
    /// The entries.
    pub removed: Vec<CacheEntry>,
    /// Their bytes.
    pub freed_bytes: u64,
}

/// Everything that front doors ask for.
///
/// The callers' identity has been established; what they may do is decided
/// here.
pub trait Engine: Send + Sync + 'static {
    /// Starts a pull, or joins an equal one.
    fn pull(&self, caller: Caller, job: PullJob) -> PullEvents;

    /// Opens a SIF for a caller, with a mount of it if one is wished for and
    /// can be had. `None` answers "not there", "no lease" and "not yours"
    /// alike.
    fn open(&self, caller: Caller, target: OpenTarget, wish: MountWish) -> impl Future<Output = Option<Opened>> + Send;

    /// Lists the entries that the caller may see.
    fn cache_list(&self, caller: Caller) -> impl Future<Output = Result<Vec<CacheEntry>, Failure>> + Send;

    /// Sums up what the caller may see.
    fn cache_info(&self, caller: Caller) -> impl Future<Output = Result<CacheInfo, Failure>> + Send;

    /// Removes what nothing uses; with `dry_run` only says what.
    fn cache_clean(&self, caller: Caller, dry_run: bool) -> impl Future<Output = Result<CacheCleaned, Failure>> + Send;

    /// Kernel mounts of this host. For administrators only, as the calls
    /// below: everybody else is [denied](sctl_common::ErrorKind::Denied).
    fn admin_mounts(&self, caller: Caller) -> impl Future<Output = Result<Vec<MountInfo>, Failure>> + Send;

    /// Leases that hold.
    fn admin_leases(&self, caller: Caller) -> impl Future<Output = Result<Vec<HeldLease>, Failure>> + Send;

    /// Job processes that run.
    fn admin_jobs(&self, caller: Caller) -> impl Future<Output = Result<Vec<JobInfo>, Failure>> + Send;

    /// Lets go of mounted images. Containers that run keep their mounts.
    fn admin_unmount(
        &self,
        caller: Caller,
        target: UnmountTarget,
    ) -> impl Future<Output = Result<Vec<UnmountedImage>, Failure>> + Send;

    /// How many pulls and jobs are under way.
    fn active(&self) -> usize;

    /// Takes no new work from now on, gives what runs until `deadline`, then
    /// ends it. Returns when nothing runs any more.
    fn shutdown(&self, deadline: std::time::Duration) -> impl Future<Output = ()> + Send;
}
