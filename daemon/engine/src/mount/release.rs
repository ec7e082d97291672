//! How superblocks are found again, let go of and forgotten.

use std::sync::Arc;

use sctl_sys::loopdev::{self, LoopDevice};
use tracing::{error, info, warn};

use super::{
    Inner,
    table::{Superblock, Table},
    tag::Name,
};
use crate::{audit, cache::failpoint};

/// Mounts of one superblock at a time: of a private one there could be one for
/// each group of its user.
const MAX_MOUNTS: usize = 4;

impl Inner {
    /// Takes over the loop devices of this cache that are still in use.
    pub(super) fn adopt(&self) {
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

    /// Unmounts a superblock, unless it is being handed out and need not go,
    /// and forgets it if it is gone.
    pub(super) fn release(&self, table: &mut Table, number: u32, why: Why) {
        let Some(superblock) = table.superblocks.get_mut(&number) else { return };
        let (kept, released): (Vec<_>, Vec<_>) =
            superblock.mounts.drain(..).partition(|(_, held)| !why.is_pressing() && Arc::strong_count(held) > 1);
        superblock.mounts = kept;
        let is_empty = superblock.mounts.is_empty();
        if is_empty && !released.is_empty() {
            let (reference, key) = (superblock.reference(), Some(&superblock.name.key));
            audit::unmount(audit::Image { reference, manifest: None, key }, why.word());
        }
        for (_, held) in released {
            self.clear(table, held.slot);
        }
        failpoint("mount.cleared");
        if is_empty && !self.is_alive(number, table) {
            table.superblocks.remove(&number);
        }
    }

    /// Makes room for one more mount of a superblock that has as many as it may.
    /// Those that are being handed out stay: they are few.
    pub(super) fn release_oldest(&self, table: &mut Table, number: u32) {
        let Some(superblock) = table.superblocks.get_mut(&number) else { return };
        if superblock.mounts.len() < MAX_MOUNTS {
            return;
        }
        let oldest = superblock.mounts.iter().position(|(_, held)| Arc::strong_count(held) == 1);
        if let Some(at) = oldest {
            let (_, held) = superblock.mounts.remove(at);
            self.clear(table, held.slot);
        }
    }

    fn clear(&self, table: &mut Table, slot: u32) {
        match self.slots.clear(slot) {
            Ok(()) => table.free.push(slot),
            // It stays out of use.
            Err(error) => error!(slot, %error, "cannot unmount an image"),
        }
    }

    pub(super) fn release_all(&self, table: &mut Table, why: Why) {
        let numbers: Vec<u32> = table.superblocks.keys().copied().collect();
        for number in numbers {
            self.release(table, number, why);
        }
    }

    /// Says whether a superblock that is unmounted here still exists.
    pub(super) fn is_alive(&self, number: u32, table: &Table) -> bool {
        let Some(superblock) = table.superblocks.get(&number) else { return false };
        let Ok(tag) = superblock.name.to_tag(&self.instance) else { return false };
        // One that cannot be asked counts as alive: it is asked again.
        LoopDevice::open(number).and_then(|device| superblock.backing.is_behind(&device, &tag)).unwrap_or(true)
    }

    pub(super) fn sweep(&self) {
        let mut table = self.table();
        if table.closed {
            return;
        }
        if !self.keeper.is_running() {
            self.release_all(&mut table, Why::Helper);
            // Why not is known to the log, and told to who asks for a mount.
            let _ = self.keeper.start(&self.slots);
        }
        let idle = self.options.idle;
        let numbers: Vec<u32> =
            table.superblocks.values().filter(|one| one.is_idle(idle)).map(|one| one.number).collect();
        for number in numbers {
            self.release(&mut table, number, Why::Idle);
        }
    }
}

/// Why a superblock is unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Nobody has asked for it for a while.
    Idle,
    /// Its user is at the limit.
    Limit,
    /// All slots are taken.
    Room,
    /// A new helper must see it mounted after its birth.
    Helper,
    /// An administrator wishes it.
    Administrator,
    /// The daemon ends.
    Stopping,
}

impl Why {
    /// It goes even while it is being handed out.
    const fn is_pressing(self) -> bool {
        matches!(self, Self::Helper | Self::Administrator | Self::Stopping)
    }

    /// The word for the audit log.
    const fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Limit => "user's limit",
            Self::Room => "room for others",
            Self::Helper => "new helper",
            Self::Administrator => "administrator",
            Self::Stopping => "stopping",
        }
    }
}
