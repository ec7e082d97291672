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

mod check;
mod helper;
mod keeper;
mod place;
mod slots;
mod superblock;
mod table;
mod tag;

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use sctl_sys::{
    loopdev::{self, LoopControl, LoopDevice},
    mount,
    userns::{self, IdRange},
};
use tracing::{debug, error, info, warn};

use self::{
    check::Face,
    keeper::{AskError, Keeper},
    superblock::{Backing, MountError},
    table::{Held, Shown, Superblock, Table},
    tag::{Instance, Name, Owner},
};
pub use self::{helper::helper_main, slots::Slots};
use crate::{
    Caller, MountWish,
    cache::{ImageFile, ImageKey},
};

/// The one id that a shared superblock knows; whoever has it gets no mount.
const NOBODY: u32 = u32::MAX - 1;

/// Ids above this may be subordinate to users.
const SYSTEM_IDS: u32 = 1 << 16;

/// How often an attach starts again because its slot or the helper went away
/// under it.
const ATTEMPTS: usize = 3;

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
    #[error("the kernel does not map ids of mounts, and the image may have files of your user id")]
    SharedIds,
    /// A mount with the caller's ids needs the kernel to map them.
    #[error("the kernel does not map ids of mounts")]
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
    pub fn start(
        slots: Slots,
        options: MountOptions,
        path: &Path,
        root: impl std::os::fd::AsFd,
    ) -> Result<Self, Unavailable> {
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
            self.inner.release(&mut table, *number, true);
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
        self.inner.release_all(&mut table);
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

    /// Takes over the loop devices of this cache that are still in use.
    fn adopt(&self) {
        let numbers = match loopdev::bound_without_name() {
            Ok(numbers) => numbers,
            Err(error) => return warn!(%error, "cannot look for loop devices of an earlier daemon"),
        };
        let mut table = self.table();
        for number in numbers {
            let status = LoopDevice::open(number).and_then(|device| device.status());
            // It is somebody else's, or was freed meanwhile.
            let Ok(Some(status)) = status else { continue };
            let name = status.tag.as_ref().and_then(|tag| Name::from_tag(tag, &self.instance));
            if let Some(name) = name.filter(|_| status.is_ours) {
                info!(key = %name.key, loop_device = number, "still in use: taken over");
                table.superblocks.insert(number, Superblock::adopted(name, number, &status));
            }
        }
    }

    fn attach(&self, caller: Caller, image: &ImageFile, wish: MountWish) -> Result<Attached, NoMount> {
        let partition = image.meta.partition.ok_or_else(|| {
            NoMount::Unsuitable("it was made by a version that did not note where its file system is".to_owned())
        })?;
        let backing = Backing::of(&image.file, partition).map_err(|error| NoMount::Unsuitable(error.to_string()))?;
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let (held, shared) = {
                let mut table = self.table();
                self.ready(&mut table)?;
                let (owner, shown) = self.decide(caller, image, wish)?;
                let name = Name { key: image.meta.key, owner };
                match self.hold(&mut table, caller.uid, image, &backing, name, shown) {
                    // Now it is known, and decided differently.
                    Err(HoldError::NoIdmap) => continue,
                    Err(HoldError::No(reason)) => return Err(reason),
                    Ok(held) => (held, owner == Owner::Everybody),
                }
            };
            let mount = match self.keeper.clone_slot(held.slot, held.face.device) {
                Ok(mount) => mount,
                // Unmounted, or a new helper, since it was held.
                Err(AskError::Other) => {
                    last = "its mount went away".to_owned();
                    continue;
                }
                Err(AskError::Gone(error)) => {
                    last = format!("the mount helper failed: {error}");
                    continue;
                }
            };
            if let Err(mismatch) = check::check(mount.as_fd(), &held.face) {
                // It would be an attack, or a fault as bad as one.
                error!(
                    key = %image.meta.key,
                    slot = held.slot,
                    reason = %with_source(&mismatch),
                    "the mount helper gave something else than a locked mount: ended"
                );
                drop(mount);
                self.keeper.end("it gave something else than a locked mount");
                return Err(NoMount::Failed("the mount could not be locked".to_owned()));
            }
            debug!(caller.uid, key = %image.meta.key, slot = held.slot, "mount handed out");
            return Ok(Attached { mount, shared });
        }
        Err(NoMount::Failed(last))
    }

    /// Makes sure that a helper runs, with no slot filled before its birth.
    fn ready(&self, table: &mut Table) -> Result<(), NoMount> {
        if table.closed {
            return Err(NoMount::Unavailable("the daemon is stopping".to_owned()));
        }
        if self.keeper.is_running() {
            return Ok(());
        }
        self.release_all(table);
        self.keeper.start(&self.slots).map_err(NoMount::Unavailable)
    }

    /// Whose superblock it has to be, and with which ids.
    fn decide(&self, caller: Caller, image: &ImageFile, wish: MountWish) -> Result<(Owner, Shown), NoMount> {
        let own = Owner::User(caller.uid);
        let idmapped = self.idmapped.load(Ordering::Relaxed);
        if wish == MountWish::Private {
            if !idmapped {
                return Err(NoMount::NoIdmap);
            }
            return Ok((own, Shown::As { uid: caller.uid, gid: caller.gid }));
        }
        // A FIFO would be one pipe for all. On a superblock of its own the
        // caller may own what it likes, and write to the FIFOs, which ids that
        // are not mapped would forbid.
        if image.meta.special_files || !self.options.share {
            return Ok((own, Shown::Plain));
        }
        if idmapped {
            // The only ones to whom something might belong.
            if caller.uid == NOBODY || caller.gid == NOBODY {
                return Err(NoMount::SharedIds);
            }
            return Ok((Owner::Everybody, Shown::Nobody));
        }
        // Who owns an inode can keep everybody else from opening it.
        let Some(ids) = &image.meta.ids else { return Err(NoMount::SharedIds) };
        if ids.iter().any(|&id| id == caller.uid || id == caller.gid || id >= SYSTEM_IDS) {
            return Err(NoMount::SharedIds);
        }
        Ok((Owner::Everybody, Shown::Plain))
    }

    /// A mount in a slot, made if there is none, that stays as long as what
    /// is returned.
    fn hold(
        &self,
        table: &mut Table,
        uid: u32,
        image: &ImageFile,
        backing: &Backing,
        name: Name,
        shown: Shown,
    ) -> Result<Arc<Held>, HoldError> {
        let failed = |what: &str, error: &io::Error| {
            warn!(key = %name.key, %error, what, "cannot mount an image");
            HoldError::No(NoMount::Failed(format!("{what}: {error}")))
        };
        let known = table.find(&name, backing).map(|superblock| (superblock.number, superblock.held(shown)));
        let number = match known {
            Some((number, Some(held))) => {
                self.charge(table, uid, Some(number))?;
                table.note(number, uid, &image.meta.references);
                return Ok(held);
            }
            Some((number, None)) => Some(number),
            None => None,
        };
        let tag = name.to_tag(&self.instance).map_err(|error| failed("cannot name a loop device", &error))?;
        // Held open, it cannot be freed or become another's.
        let device = number.and_then(|number| {
            let device = LoopDevice::open(number).ok()?;
            backing.is_behind(&device, &tag).is_ok_and(|is| is).then_some(device)
        });
        if device.is_none()
            && let Some(number) = number
        {
            table.superblocks.remove(&number);
        }
        self.charge(table, uid, device.as_ref().map(LoopDevice::number))?;
        let slot = self.free_slot(table)?;
        let adopted = device.is_some();
        let device = match device {
            Some(device) => device,
            None => {
                let bound = backing.bind(&self.control, &image.file, &tag);
                bound.map_err(|error| failed("cannot make a loop device", &error))?
            }
        };
        let own;
        let ids = match shown {
            Shown::Plain => None,
            Shown::Nobody => self.nobody.as_ref().map(|nobody| nobody.as_fd()),
            Shown::As { uid, gid } => {
                own = userns::named(IdRange::one(0, uid), IdRange::one(0, gid))
                    .map_err(|error| failed("cannot map ids", &error))?;
                Some(own.as_fd())
            }
        };
        let mount = match superblock::mount(&device, ids) {
            Ok(mount) => mount,
            Err(MountError::Mount(error)) => return Err(failed("cannot mount the image", &error)),
            Err(MountError::Idmap(error)) => {
                warn!(%error, "the kernel does not map ids of mounts of squashfs");
                self.idmapped.store(false, Ordering::Relaxed);
                return Err(HoldError::NoIdmap);
            }
        };
        let face = Face::of(&mount).map_err(|error| failed("cannot inspect the mount", &error))?;
        if face.device != device.rdev() {
            return Err(failed("cannot mount the image", &io::Error::other("it is on another device")));
        }
        self.slots.fill(slot, &mount).map_err(|error| failed("cannot fill a slot", &error))?;
        table.take(slot);
        let held = Arc::new(Held { slot, face, _mount: mount });
        let superblock = table
            .superblocks
            .entry(device.number())
            .or_insert_with(|| Superblock::new(name, device.number(), *backing));
        superblock.mounts.push((shown, Arc::clone(&held)));
        debug!(key = %name.key, loop_device = device.number(), slot, adopted, "image mounted");
        table.note(device.number(), uid, &image.meta.references);
        Ok(held)
    }

    /// Refuses a user who keeps too many superblocks alive. `wanted` is the
    /// one that it asks for, if that is there.
    fn charge(&self, table: &mut Table, uid: u32, wanted: Option<u32>) -> Result<(), HoldError> {
        let limit = self.options.max_per_user;
        let charged = |table: &Table| -> Vec<u32> {
            let others = table.superblocks.values().filter(|one| Some(one.number) != wanted);
            others.filter(|one| one.users.contains(&uid)).map(|one| one.number).collect()
        };
        let numbers = charged(table);
        if numbers.len() < limit {
            return Ok(());
        }
        // Only what the user's containers hold counts, not what lingers here.
        for number in numbers {
            self.release(table, number, false);
        }
        if charged(table).len() < limit { Ok(()) } else { Err(HoldError::No(NoMount::TooManyOfUser { limit })) }
    }

    fn free_slot(&self, table: &mut Table) -> Result<u32, HoldError> {
        // Loop devices are as many as slots at most, so that clients cannot
        // take all that the kernel has.
        let is_full = |table: &Table| table.free.is_empty() || table.superblocks.len() >= self.slots.count() as usize;
        if is_full(table) {
            for number in table.least_recent() {
                self.release(table, number, false);
                if !is_full(table) {
                    break;
                }
            }
        }
        match table.free.last() {
            Some(&slot) if !is_full(table) => Ok(slot),
            _ => Err(HoldError::No(NoMount::TooMany)),
        }
    }

    /// Unmounts a superblock, unless it is being handed out and not `force`,
    /// and forgets it if it is gone.
    fn release(&self, table: &mut Table, number: u32, force: bool) {
        let Some(superblock) = table.superblocks.get_mut(&number) else { return };
        let (kept, released): (Vec<_>, Vec<_>) =
            superblock.mounts.drain(..).partition(|(_, held)| !force && Arc::strong_count(held) > 1);
        superblock.mounts = kept;
        let is_empty = superblock.mounts.is_empty();
        for (_, held) in released {
            match self.slots.clear(held.slot) {
                Ok(()) => table.free.push(held.slot),
                // It stays out of use.
                Err(error) => error!(slot = held.slot, %error, "cannot unmount an image"),
            }
        }
        if is_empty && !self.is_alive(number, table) {
            table.superblocks.remove(&number);
        }
    }

    fn release_all(&self, table: &mut Table) {
        let numbers: Vec<u32> = table.superblocks.keys().copied().collect();
        for number in numbers {
            self.release(table, number, true);
        }
    }

    /// Says whether a superblock that is unmounted here still exists.
    fn is_alive(&self, number: u32, table: &Table) -> bool {
        let Some(superblock) = table.superblocks.get(&number) else { return false };
        let Ok(tag) = superblock.name.to_tag(&self.instance) else { return false };
        // One that cannot be asked counts as alive: it is asked again.
        LoopDevice::open(number).and_then(|device| superblock.backing.is_behind(&device, &tag)).unwrap_or(true)
    }

    fn sweep(&self) {
        let mut table = self.table();
        if table.closed {
            return;
        }
        if !self.keeper.is_running() {
            self.release_all(&mut table);
            // Why not is known to the log, and told to who asks for a mount.
            let _ = self.keeper.start(&self.slots);
        }
        let idle = self.options.idle;
        let numbers: Vec<u32> =
            table.superblocks.values().filter(|one| one.is_idle(idle)).map(|one| one.number).collect();
        for number in numbers {
            self.release(&mut table, number, false);
        }
    }
}

/// Why a mount could not be held.
enum HoldError {
    /// Ids cannot be mapped, as has just turned out.
    NoIdmap,
    No(NoMount),
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
