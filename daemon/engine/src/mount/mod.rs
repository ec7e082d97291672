//! Kernel mounts of images, handed to users as descriptors.
//!
//! ```text
//! broker ── loop device ── squashfs ── slot ─ ─ ─ propagation ─ ─ ─ helper
//!        ◀──────────────── locked clone ────────────────────────────┘
//!        ── checked by descriptor ──▶ client
//! ```
//!
//! One superblock per image serves everybody ([`tag::Owner::Everybody`]) where
//! that is harmless: its files belong to nobody. Otherwise a user has one for
//! itself. A superblock is unmounted when nobody has asked for it for a while;
//! it lives on as long as clients hold clones, and is taken up again when
//! somebody asks, also by the next daemon.
//!
//! A mount is a bearer right until it is attached, so nothing here is done
//! before the caller's right to the image has been established.

mod attach;
mod check;
mod helper;
mod keeper;
mod place;
mod release;
mod slots;
mod superblock;
mod table;
mod tag;

use std::{
    ffi::OsString,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use sctl_sys::{
    loopdev::LoopControl,
    mount,
    userns::{self, IdRange},
};
use tracing::warn;

pub use self::{helper::helper_main, slots::Slots};
use self::{
    keeper::Keeper,
    release::Why,
    table::{Superblock, Table},
    tag::Instance,
};
use crate::{
    Caller, MountWish,
    cache::{ImageFile, ImageKey},
};

/// The one id that a shared superblock knows; whoever has it gets no mount.
const NOBODY: u32 = u32::MAX - 1;

/// Ids above this may be subordinate to users.
const SYSTEM_IDS: u32 = 1 << 16;

/// Service user of the mount helper. No job has it, nor anybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelperUser {
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

/// How mounts are made.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Users share superblocks where that is harmless.
    pub share: bool,
    /// Mounts map ids, if the kernel can.
    pub idmapped: bool,
    /// Unmount what nobody has asked for so long.
    pub idle: Duration,
    /// Loop devices that one user may keep alive.
    pub max_per_user: usize,
    /// Whom the helper runs as.
    pub helper: HelperUser,
    /// The daemon's program, whose `mount-helper` is the helper.
    pub program: OsString,
}

/// Why there are no kernel mounts at all; for the log and for `-v`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Why a caller gets no mount of an image that it may have. Says nothing of
/// others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoMount {
    /// There are none on this host.
    #[error("{0}")]
    Unavailable(String),
    /// The image's file is not one that can be mounted.
    #[error("this image cannot be mounted: {0}")]
    Unsuitable(String),
    /// The caller could be the owner of files that others use too.
    #[error("mounts of this host do not map ids, and the image may have files of your user id")]
    SharedIds,
    /// A mount with the caller's ids needs the kernel to map them.
    #[error("mounts of this host do not map ids")]
    NoIdmap,
    /// The caller keeps too many loop devices alive.
    #[error("containers of yours keep {limit} images mounted, which is the limit")]
    TooManyOfUser {
        /// The limit.
        limit: usize,
    },
    /// All slots are taken.
    #[error("too many images are mounted on this host")]
    TooMany,
    /// The kernel or the helper failed.
    #[error("{0}")]
    Failed(String),
}

/// A mount for one caller.
#[derive(Debug)]
pub struct Attached {
    /// Locked and detached.
    pub mount: OwnedFd,
    /// Its superblock is everybody's.
    pub shared: bool,
}

/// One superblock, for administrators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// The image.
    pub key: ImageKey,
    /// Names that led to it; none for one that was taken over from an earlier
    /// daemon and not asked for since.
    pub references: Vec<String>,
    /// Number of its loop device.
    pub loop_device: u32,
    /// The one user that it is for.
    pub private_for: Option<u32>,
    /// Everybody who may use the image shares it.
    pub shared: bool,
    /// Clones handed out.
    pub attached: u64,
    /// Who got one.
    pub users: Vec<u32>,
    /// When it was made or taken over, Unix seconds.
    pub since: i64,
    /// When somebody last asked for it, Unix seconds.
    pub last_attach: Option<i64>,
    /// The broker has unmounted it, and clients have not.
    pub held_by_clients: bool,
    /// An earlier daemon made it.
    pub adopted: bool,
}

/// What an unmount left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unmounted {
    /// Superblocks that the broker has let go of.
    pub released: usize,
    /// Those of them that clients keep alive.
    pub held_by_clients: usize,
}

/// The mounts of one broker.
#[derive(Debug)]
pub struct Mounts {
    inner: Arc<Inner>,
    /// Dropped to end the sweeper.
    sweeping: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct Inner {
    options: MountOptions,
    slots: Slots,
    instance: Instance,
    control: LoopControl,
    keeper: Keeper,
    /// Maps [`NOBODY`] only.
    nobody: Option<OwnedFd>,
    idmapped: AtomicBool,
    table: Mutex<Table>,
}

impl Mounts {
    /// Gets ready to mount images of the cache at `path`, opened as `root`,
    /// and takes over what clients of an earlier daemon still hold.
    ///
    /// # Privileges
    /// Root's: mounts, loop devices, and a child of another uid.
    ///
    /// # Errors
    /// [`Unavailable`]; everybody falls back to FUSE then.
    pub fn start(slots: Slots, options: MountOptions, path: &Path, root: impl AsFd) -> Result<Self, Unavailable> {
        let unavailable = |what: &str, error: &dyn std::fmt::Display| Unavailable(format!("{what}: {error}"));
        place::check_place(path, &root).map_err(Unavailable)?;
        mount::probe_filesystem(c"squashfs")
            .map_err(|error| unavailable("the kernel cannot mount squashfs", &error))?;
        let control = LoopControl::open().map_err(|error| unavailable("there are no loop devices", &error))?;
        let stat = rustix::fs::fstat(&root).map_err(|errno| unavailable("cannot inspect the cache", &errno))?;
        let nobody = if options.idmapped {
            let ids = IdRange::one(NOBODY, NOBODY);
            userns::named(ids, ids).inspect_err(|error| warn!(%error, "cannot map ids of mounts")).ok()
        } else {
            None
        };
        let keeper = Keeper::new(options.program.clone(), options.helper)
            .map_err(|error| unavailable("cannot start the thread that keeps the mount helper", &error))?;
        let inner = Arc::new(Inner {
            idmapped: AtomicBool::new(nobody.is_some()),
            table: Mutex::new(Table::new(slots.count())),
            instance: Instance::of(stat.st_dev, stat.st_ino),
            slots,
            options,
            control,
            keeper,
            nobody,
        });
        inner.adopt();
        // One that cannot be started now is tried again when it is needed.
        let _ = inner.keeper.start(&inner.slots);
        let (stop, stopped) = mpsc::channel::<()>();
        let sweeper = Arc::clone(&inner);
        let pause = (inner.options.idle / 4).clamp(Duration::from_millis(200), Duration::from_secs(5));
        let thread = std::thread::Builder::new().name("mount-sweeper".to_owned()).spawn(move || {
            while stopped.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                sweeper.sweep();
            }
        });
        let thread = thread.map_err(|error| unavailable("cannot start the thread that unmounts", &error))?;
        Ok(Self { inner, sweeping: Some((stop, thread)) })
    }

    /// A locked, detached mount of an image that `caller` has a right to.
    ///
    /// # Errors
    /// [`NoMount`]: the caller has to do without.
    pub fn attach(&self, caller: Caller, image: &ImageFile, wish: MountWish) -> Result<Attached, NoMount> {
        self.inner.attach(caller, image, wish)
    }

    /// Says whether an image is mounted, by the broker or by clients.
    pub fn in_use(&self, key: &ImageKey) -> bool {
        self.inner.table().superblocks.values().any(|superblock| superblock.name.key == *key)
    }

    /// All superblocks.
    pub fn list(&self) -> Vec<MountInfo> {
        self.inner.table().superblocks.values().map(Superblock::info).collect()
    }

    /// Lets go of an image at once. Containers that run keep it.
    pub fn unmount(&self, key: &ImageKey) -> Unmounted {
        let mut table = self.inner.table();
        let numbers: Vec<u32> =
            table.superblocks.values().filter(|one| one.name.key == *key).map(|one| one.number).collect();
        for number in &numbers {
            self.inner.release(&mut table, *number, Why::Administrator);
        }
        let held = numbers.iter().filter(|number| table.superblocks.contains_key(number)).count();
        Unmounted { released: numbers.len(), held_by_clients: held }
    }

    /// Unmounts what has been idle, forgets what clients have let go of, and
    /// looks after the helper. Runs by itself every few seconds.
    pub fn sweep(&self) {
        self.inner.sweep();
    }

    /// Process id of the helper, if one runs.
    pub fn helper_pid(&self) -> Option<i32> {
        self.inner.keeper.pid()
    }

    /// Unmounts everything and ends the helper. Clients keep what they have.
    pub fn stop(&self) {
        let mut table = self.inner.table();
        table.closed = true;
        self.inner.release_all(&mut table, Why::Stopping);
        self.inner.keeper.stop();
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        self.stop();
        if let Some((stop, thread)) = self.sweeping.take() {
            drop(stop);
            // A panic of its was told when it happened.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        // What is mounted is for the kernel to tell; entries change as a whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
