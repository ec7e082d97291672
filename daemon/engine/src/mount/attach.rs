//! The way of a mount to a caller: whose superblock, made or found, cloned by
//! the helper, checked.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering},
};

use sctl_sys::{
    loopdev::LoopDevice,
    userns::{self, IdRange},
};
use tracing::{debug, error, warn};

use super::{
    Attached, Inner, NOBODY, NoMount, SYSTEM_IDS,
    check::{self, Face},
    keeper::AskError,
    release::Why,
    superblock::{self, Backing, MountError},
    table::{Held, Shown, Superblock, Table},
    tag::{Name, Owner},
};
use crate::{
    Caller, MountWish,
    cache::{ImageFile, failpoint},
};

/// How often an attach starts again because its slot or the helper went away
/// under it.
const ATTEMPTS: usize = 3;

impl Inner {
    pub(super) fn attach(&self, caller: Caller, image: &ImageFile, wish: MountWish) -> Result<Attached, NoMount> {
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
                match self.hold(&mut table, caller, image, &backing, name, shown) {
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
            failpoint("mount.cloned");
            // Whatever the table says: a caller gets the image that was asked
            // for, or none.
            if held.name.key != image.meta.key || held.backing != backing {
                error!(key = %image.meta.key, held = %held.name.key, "a mount of another image was found");
                return Err(NoMount::Failed("the mount is of another image".to_owned()));
            }
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
            failpoint("mount.checked");
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
        self.release_all(table, Why::Helper);
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
        caller: Caller,
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
                self.charge(table, caller.account, Some(number))?;
                table.note(number, caller, &image.meta.references);
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
        self.charge(table, caller.account, device.as_ref().map(LoopDevice::number))?;
        if let Some(device) = &device {
            self.release_oldest(table, device.number());
        }
        let slot = self.free_slot(table)?;
        let adopted = device.is_some();
        let device = match device {
            Some(device) => device,
            None => {
                let bound = backing.bind(&self.control, &image.file, &tag);
                bound.map_err(|error| failed("cannot make a loop device", &error))?
            }
        };
        failpoint("mount.bound");
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
        failpoint("mount.mounted");
        self.slots.fill(slot, &mount).map_err(|error| failed("cannot fill a slot", &error))?;
        failpoint("mount.filled");
        table.take(slot);
        let held = Arc::new(Held { slot, face, name, backing: *backing, _mount: mount });
        let fresh = || Superblock::new(name, device.number(), *backing);
        if !adopted {
            // A number that was free until now. What the table has under it is
            // of an image whose device clients have let go of since.
            table.superblocks.insert(device.number(), fresh());
        }
        let superblock = table.superblocks.entry(device.number()).or_insert_with(fresh);
        superblock.mounts.push((shown, Arc::clone(&held)));
        debug!(key = %name.key, loop_device = device.number(), slot, adopted, "image mounted");
        table.note(device.number(), caller, &image.meta.references);
        Ok(held)
    }

    /// Refuses a user who keeps too many superblocks alive. `wanted` is the
    /// one that it asks for, if that is there.
    fn charge(&self, table: &mut Table, account: u32, wanted: Option<u32>) -> Result<(), HoldError> {
        let limit = self.options.max_per_user;
        let charged = |table: &Table| -> Vec<u32> {
            let others = table.superblocks.values().filter(|one| Some(one.number) != wanted);
            others.filter(|one| one.users.values().any(|&charged| charged == account)).map(|one| one.number).collect()
        };
        let numbers = charged(table);
        if numbers.len() < limit {
            return Ok(());
        }
        // Only what the user's containers hold counts, not what lingers here.
        for number in numbers {
            self.release(table, number, Why::Limit);
        }
        if charged(table).len() < limit { Ok(()) } else { Err(HoldError::No(NoMount::TooManyOfUser { limit })) }
    }

    fn free_slot(&self, table: &mut Table) -> Result<u32, HoldError> {
        // Loop devices are as many as slots at most, so that clients cannot
        // take all that the kernel has.
        let is_full = |table: &Table| table.free.is_empty() || table.superblocks.len() >= self.slots.count() as usize;
        if is_full(table) {
            for number in table.least_recent() {
                self.release(table, number, Why::Room);
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
