//! What the files do not tell: last use, leases, counters.
//!
//! Memory holds all of it while the daemon runs, so that no request waits for
//! a disk; the worker writes changes to the database. Losing the last seconds,
//! or the whole database, costs nothing that a pull would not bring again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sctl_common::{Digest, Platform};
use serde::{Deserialize, Serialize};

use super::{EntryId, Grant, HeldLease, ImageKey, Lease, unix_now};

/// Whose lease, for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct LeaseName {
    grant: Grant,
    reference: String,
    platform: Platform,
}

/// A lease as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LeaseRow {
    key: ImageKey,
    manifest: Digest,
    /// Time since boot, in milliseconds: a clock that nobody can set.
    expires_ms: u64,
    /// The boot that this time counts from.
    boot_id: String,
}

impl LeaseRow {
    /// The lease as it is `now`, if it still holds.
    fn lease(&self, now: u64) -> Option<Lease> {
        let left = self.expires_ms.checked_sub(now).filter(|&left| left > 0)?;
        Some(Lease { key: self.key, manifest: self.manifest, remaining: Duration::from_millis(left) })
    }
}

/// Rows as the database keeps them.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) last_used: BTreeMap<String, i64>,
    pub(super) leases: Vec<(LeaseName, LeaseRow)>,
    pub(super) fetched_bytes: u64,
    pub(super) reused_bytes: u64,
}

/// What has changed since the last flush.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// `None`: the entry is gone.
    pub(super) last_used: Vec<(EntryId, Option<i64>)>,
    pub(super) leases: Option<Vec<(LeaseName, LeaseRow)>>,
    pub(super) counters: Option<(u64, u64)>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.last_used.is_empty() && self.leases.is_none() && self.counters.is_none()
    }
}

#[derive(Debug, Default)]
struct Tables {
    last_used: HashMap<EntryId, i64>,
    changed: HashSet<EntryId>,
    leases: HashMap<LeaseName, LeaseRow>,
    leases_changed: bool,
    fetched_bytes: u64,
    reused_bytes: u64,
    counters_changed: bool,
}

/// The tables in memory.
#[derive(Debug)]
pub(super) struct State {
    tables: Mutex<Tables>,
    boot_id: String,
}

impl State {
    /// Takes over what the database held, but for the entries' rows.
    pub(super) fn new(rows: Rows, boot_id: &str) -> Self {
        let now = uptime_ms();
        let leases = rows.leases.into_iter().filter(|(_, row)| row.boot_id == boot_id && row.expires_ms > now);
        let tables = Tables {
            leases: leases.collect(),
            fetched_bytes: rows.fetched_bytes,
            reused_bytes: rows.reused_bytes,
            ..Tables::default()
        };
        Self { tables: Mutex::new(tables), boot_id: boot_id.to_owned() }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // The tables hold no invariant that a panic could break.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the tables can be had.
    pub(super) fn answer(&self) {
        drop(self.tables());
    }

    /// Says that an entry has been used now.
    pub(super) fn touch(&self, id: EntryId) {
        let mut tables = self.tables();
        if tables.last_used.insert(id.clone(), unix_now()) != Some(unix_now()) {
            tables.changed.insert(id);
        }
    }

    /// Says when an entry was used last, as files or database know.
    pub(super) fn restore(&self, id: EntryId, last_used: i64) {
        // A clock that once ran ahead must not keep an entry for ever.
        self.tables().last_used.insert(id, last_used.min(unix_now()));
    }

    pub(super) fn forget(&self, id: &EntryId) {
        let mut tables = self.tables();
        tables.last_used.remove(id);
        tables.changed.insert(id.clone());
    }

    pub(super) fn last_used(&self, id: &EntryId) -> Option<i64> {
        self.tables().last_used.get(id).copied()
    }

    pub(super) fn put_lease(
        &self,
        grant: Grant,
        reference: &str,
        platform: &Platform,
        key: ImageKey,
        manifest: Digest,
        duration: Duration,
    ) {
        let name = LeaseName { grant, reference: reference.to_owned(), platform: platform.clone() };
        let now = uptime_ms();
        let expires_ms = now.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let row = LeaseRow { key, manifest, expires_ms, boot_id: self.boot_id.clone() };
        let mut tables = self.tables();
        tables.leases.retain(|_, row| row.expires_ms > now);
        tables.leases.insert(name, row);
        tables.leases_changed = true;
    }

    pub(super) fn lease(&self, grant: Grant, reference: &str, platform: &Platform) -> Option<Lease> {
        let name = LeaseName { grant, reference: reference.to_owned(), platform: platform.clone() };
        let tables = self.tables();
        let row = tables.leases.get(&name)?;
        row.lease(uptime_ms())
    }

    pub(super) fn leases(&self) -> Vec<HeldLease> {
        let now = uptime_ms();
        let held = |(name, row): (&LeaseName, &LeaseRow)| {
            let (reference, platform) = (name.reference.clone(), name.platform.clone());
            Some(HeldLease { grant: name.grant, reference, platform, lease: row.lease(now)? })
        };
        let mut held: Vec<_> = self.tables().leases.iter().filter_map(held).collect();
        held.sort_by(|a, b| (&a.reference, a.grant, &a.platform).cmp(&(&b.reference, b.grant, &b.platform)));
        held
    }

    pub(super) fn remove_lease(&self, grant: Grant, reference: &str, platform: &Platform) {
        let name = LeaseName { grant, reference: reference.to_owned(), platform: platform.clone() };
        let mut tables = self.tables();
        if tables.leases.remove(&name).is_some() {
            tables.leases_changed = true;
        }
    }

    pub(super) fn count(&self, fetched_bytes: u64, reused_bytes: u64) {
        let mut tables = self.tables();
        tables.fetched_bytes = tables.fetched_bytes.saturating_add(fetched_bytes);
        tables.reused_bytes = tables.reused_bytes.saturating_add(reused_bytes);
        tables.counters_changed = true;
    }

    /// Bytes fetched, and bytes that did not have to be.
    pub(super) fn counters(&self) -> (u64, u64) {
        let tables = self.tables();
        (tables.fetched_bytes, tables.reused_bytes)
    }

    /// Takes what has changed.
    pub(super) fn take_changes(&self) -> Changes {
        let mut tables = self.tables();
        let changed = std::mem::take(&mut tables.changed);
        let last_used = changed.into_iter().map(|id| {
            let used = tables.last_used.get(&id).copied();
            (id, used)
        });
        let last_used = last_used.collect();
        let now = uptime_ms();
        let leases = std::mem::take(&mut tables.leases_changed).then(|| {
            tables.leases.retain(|_, row| row.expires_ms > now);
            tables.leases.iter().map(|(name, row)| (name.clone(), row.clone())).collect()
        });
        let counters =
            std::mem::take(&mut tables.counters_changed).then_some((tables.fetched_bytes, tables.reused_bytes));
        Changes { last_used, leases, counters }
    }
}

/// Milliseconds since boot, suspended time included.
fn uptime_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Since boot, so never negative.
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_end_and_do_not_outlive_a_boot() {
        let state = State::new(Rows::default(), "boot");
        let (key, manifest) = (ImageKey::new("o", &Digest::of(b"m"), "p"), Digest::of(b"m"));
        let platform = Platform::host();
        state.put_lease(Grant::Public, "r", &platform, key, manifest, Duration::from_secs(60));
        state.put_lease(Grant::Uid(1), "r", &platform, key, manifest, Duration::ZERO);
        let lease = state.lease(Grant::Public, "r", &platform).unwrap();
        assert!(lease.key == key && lease.remaining <= Duration::from_secs(60));
        assert_eq!(state.lease(Grant::Uid(1), "r", &platform), None, "ended at once");
        assert_eq!(state.lease(Grant::Public, "other", &platform), None);
        let held = state.leases();
        assert_eq!((held.len(), held[0].grant, held[0].reference.as_str()), (1, Grant::Public, "r"));
        let leases = state.take_changes().leases.unwrap();
        assert_eq!(leases.len(), 1);
        let again = |boot| State::new(Rows { leases: leases.clone(), ..Rows::default() }, boot);
        assert!(again("boot").lease(Grant::Public, "r", &platform).is_some());
        assert!(again("next").lease(Grant::Public, "r", &platform).is_none());
    }
}
