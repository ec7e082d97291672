//! What is mounted, where, and for whom.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use sctl_sys::loopdev::Status;

use super::{
    MountInfo,
    check::Face,
    superblock::Backing,
    tag::{Name, Owner},
};
use crate::{Caller, cache::Partition};

/// Which ids a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// Nobody's.
    Nobody,
    /// The image's own.
    Plain,
    /// The image's id 0 as these, the others as nobody's.
    As { uid: u32, gid: u32 },
}

/// A mount in a slot. The descriptor keeps the superblock, and with it the
/// device number that a clone is checked against.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slot: u32,
    pub(super) face: Face,
    /// What it was made for.
    pub(super) name: Name,
    pub(super) backing: Backing,
    pub(super) _mount: OwnedFd,
}

/// A superblock that lives, mounted here or held by clients only.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) name: Name,
    /// Of its loop device.
    pub(super) number: u32,
    pub(super) backing: Backing,
    pub(super) mounts: Vec<(Shown, Arc<Held>)>,
    /// Who got clones of it, and may hold them; with whom limits count them as.
    pub(super) users: BTreeMap<u32, u32>,
    references: Vec<String>,
    attached: u64,
    since: i64,
    last_attach: Option<(Instant, i64)>,
    adopted: bool,
}

impl Superblock {
    /// The newest name that led to the image.
    pub(super) fn reference(&self) -> Option<&str> {
        self.references.last().map(String::as_str)
    }

    pub(super) fn new(name: Name, number: u32, backing: Backing) -> Self {
        Self {
            name,
            number,
            backing,
            mounts: Vec::new(),
            users: BTreeMap::new(),
            references: Vec::new(),
            attached: 0,
            since: unix_now(),
            last_attach: None,
            adopted: false,
        }
    }

    /// One that an earlier daemon made. Whom it was shared with is not known
    /// any more.
    pub(super) fn adopted(name: Name, number: u32, status: &Status) -> Self {
        let partition = Partition { offset: status.offset, len: status.len };
        let backing = Backing { device: status.device, inode: status.inode, partition };
        let users = match name.owner {
            Owner::Everybody => BTreeMap::new(),
            Owner::User(uid) => BTreeMap::from([(uid, uid)]),
        };
        Self { users, adopted: true, ..Self::new(name, number, backing) }
    }

    /// The mount with these ids.
    pub(super) fn held(&self, shown: Shown) -> Option<Arc<Held>> {
        self.mounts.iter().find(|(found, _)| *found == shown).map(|(_, held)| Arc::clone(held))
    }

    /// Says whether nobody has asked for it for so long.
    pub(super) fn is_idle(&self, limit: Duration) -> bool {
        self.last_attach.is_none_or(|(last, _)| last.elapsed() >= limit)
    }

    pub(super) fn info(&self) -> MountInfo {
        MountInfo {
            key: self.name.key,
            references: self.references.clone(),
            loop_device: self.number,
            private_for: match self.name.owner {
                Owner::Everybody => None,
                Owner::User(uid) => Some(uid),
            },
            shared: self.name.owner == Owner::Everybody,
            attached: self.attached,
            users: self.users.keys().copied().collect(),
            since: self.since,
            last_attach: self.last_attach.map(|(_, unix)| unix),
            held_by_clients: self.mounts.is_empty(),
            adopted: self.adopted,
        }
    }
}

/// All superblocks by the number of their loop device, and the free slots.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) superblocks: BTreeMap<u32, Superblock>,
    pub(super) free: Vec<u32>,
    /// Nothing is mounted any more.
    pub(super) closed: bool,
}

impl Table {
    pub(super) fn new(slots: u32) -> Self {
        Self { superblocks: BTreeMap::new(), free: (0..slots).rev().collect(), closed: false }
    }

    pub(super) fn find(&self, name: &Name, backing: &Backing) -> Option<&Superblock> {
        self.superblocks.values().find(|one| one.name == *name && one.backing == *backing)
    }

    /// Takes a slot that was found free.
    pub(super) fn take(&mut self, slot: u32) {
        self.free.retain(|&free| free != slot);
    }

    /// Notes that a clone is going to `caller`.
    pub(super) fn note(&mut self, number: u32, caller: Caller, references: &[String]) {
        let Some(superblock) = self.superblocks.get_mut(&number) else { return };
        superblock.users.insert(caller.uid, caller.account);
        superblock.attached += 1;
        superblock.last_attach = Some((Instant::now(), unix_now()));
        if superblock.references != references {
            superblock.references = references.to_vec();
        }
    }

    /// Loop devices, those first that nobody has asked for the longest.
    pub(super) fn least_recent(&self) -> Vec<u32> {
        let mut all: Vec<_> = self.superblocks.values().map(|one| (one.last_attach, one.number)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, number)| number).collect()
    }
}

/// Seconds since 1970.
fn unix_now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
