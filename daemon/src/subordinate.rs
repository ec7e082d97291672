//! Subordinate user ids: whose they are.
//!
//! Whoever has subordinate ids can call as any of them, tens of thousands of
//! users in one. Limits count all of them as their owner.
//!
//! # Source
//! subuid(5). Ids that a directory service hands out are not in that file; they
//! count for themselves.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use tracing::warn;

/// Owners of subordinate ids, as the host's files tell; read again when those
/// change.
#[derive(Debug)]
pub struct Subordinates {
    subuid: PathBuf,
    passwd: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    stamps: [Stamp; 2],
    /// By first id.
    ranges: Vec<Range>,
}

/// Tells one version of a file from the next; none where there is no file.
type Stamp = Option<(u64, u64, i64, i64)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    last: u32,
    owner: u32,
}

impl Subordinates {
    /// Those of this host.
    pub fn of_host() -> Self {
        Self::new("/etc/subuid".into(), "/etc/passwd".into())
    }

    fn new(subuid: PathBuf, passwd: PathBuf) -> Self {
        Self { subuid, passwd, known: Mutex::default() }
    }

    /// Whom the limits count `uid` as: the user whose subordinate id it is,
    /// else itself.
    pub fn account(&self, uid: u32) -> u32 {
        // Only whole lists are put in its place.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = [&self.subuid, &self.passwd]
            .map(|path| fs::metadata(path).ok().map(|meta| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec())));
        if stamps != known.stamps {
            let read = |path| match fs::read_to_string(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    warn!(?path, %error, "cannot tell whose subordinate ids are");
                    String::new()
                }
                text => text.unwrap_or_default(),
            };
            let ranges = ranges(&read(&self.subuid), &read(&self.passwd));
            *known = Known { stamps, ranges };
        }
        let behind = known.ranges.partition_point(|range| range.first <= uid);
        let found = known.ranges[..behind].last().filter(|range| uid <= range.last);
        found.map_or(uid, |range| range.owner)
    }
}

/// The ranges of a file like `/etc/subuid`. Owners are named by name or number;
/// one whose name is not in `passwd` goes by the first id of its first range.
fn ranges(subuid: &str, passwd: &str) -> Vec<Range> {
    let uids = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?);
        Some((name, uid.parse().ok()?))
    });
    let mut uids: std::collections::HashMap<&str, u32> = uids.collect();
    let parsed = subuid.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (owner, first, count) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse::<u32>().ok()?);
        // Not root's, whatever the file says: root is nobody's subordinate.
        let last = u32::checked_add(first, count.checked_sub(1)?)?;
        if owner.is_empty() || first == 0 {
            return None;
        }
        let owner = match uids.get(owner) {
            Some(&uid) => uid,
            None => *uids.entry(owner).or_insert(owner.parse().unwrap_or(first)),
        };
        Some(Range { first, last, owner })
    });
    let mut ranges: Vec<Range> = parsed.collect();
    ranges.sort_by_key(|range| range.first);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbad\nbob:x:no:1::/:/bin/sh\n";

    #[test]
    fn subordinate_ids_count_as_their_owner() {
        let subuid = "# comment\nann:100000:65536\n1001:165536:65536\nldap:300000:10\n\nldap:400000:10\nann:500000:1\n\
                      junk\nann:x:5\nann:1:x\nann:600000:0\nann:4294967295:2\nann:0:5\n:700000:5\n";
        let dir = tempfile::tempdir().unwrap();
        let (subuid_path, passwd_path) = (dir.path().join("subuid"), dir.path().join("passwd"));
        fs::write(&subuid_path, subuid).unwrap();
        fs::write(&passwd_path, PASSWD).unwrap();
        let known = Subordinates::new(subuid_path.clone(), passwd_path);
        for (uid, account) in [
            (0, 0),
            (1, 1),
            (1000, 1000),
            (99_999, 99_999),
            (100_000, 1000),
            (165_535, 1000),
            (165_536, 1001),
            (231_071, 1001),
            (231_072, 231_072),
            (300_009, 300_000),
            (400_000, 300_000),
            (500_000, 1000),
            (500_001, 500_001),
            (600_000, 600_000),
            (700_000, 700_000),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(known.account(uid), account, "{uid}");
        }
        fs::write(&subuid_path, "ann:231072:1\n").unwrap();
        assert_eq!((known.account(231_072), known.account(100_000)), (1000, 100_000), "read again");
        fs::remove_file(&subuid_path).unwrap();
        assert_eq!(known.account(231_072), 231_072, "no file, no subordinate ids");
    }
}
