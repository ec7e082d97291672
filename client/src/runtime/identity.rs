//! Who starts the container: ids, account, groups.
//!
//! `/etc/passwd` and `/etc/group` are read first, because that is fast; only
//! who is not found there is asked from the system's other databases.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

use sctl_sys::proc::{self, Account};

use crate::output::warning;

/// The caller, as the container will know them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Login name.
    pub name: Vec<u8>,
    /// Full name and more.
    pub gecos: Vec<u8>,
    /// Home directory on the host.
    pub home: PathBuf,
    /// Login shell.
    pub shell: Vec<u8>,
    /// Every group of the caller, the effective one first.
    pub groups: Vec<Group>,
}

/// A group of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its id.
    pub gid: u32,
    /// Its name.
    pub name: Vec<u8>,
}

impl Identity {
    /// Finds out who runs this process.
    pub fn of_process() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let account = find_account(uid).unwrap_or_else(|| nameless(uid));
        let mut gids = vec![gid];
        for other in rustix::process::getgroups().unwrap_or_default() {
            if !gids.contains(&other.as_raw()) {
                gids.push(other.as_raw());
            }
        }
        Self {
            uid,
            gid,
            name: account.name,
            gecos: account.gecos,
            home: PathBuf::from(OsString::from_vec(account.home)),
            shell: account.shell,
            groups: find_groups(&gids),
        }
    }
}

fn find_account(uid: u32) -> Option<Account> {
    let file = std::fs::read("/etc/passwd").unwrap_or_default();
    let local = file.split(|&byte| byte == b'\n').find_map(|line| account_of_line(line, uid));
    local.or_else(|| {
        proc::account(uid).unwrap_or_else(|error| {
            warning!("Cannot look up user {uid}: {error}");
            None
        })
    })
}

/// The record in `line`, if it is that of `uid`.
fn account_of_line(line: &[u8], uid: u32) -> Option<Account> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
    let [name, _, number, _, gecos, home, shell] = fields[..] else { return None };
    if name.is_empty() || parse_id(number) != Some(uid) {
        return None;
    }
    Some(Account { name: name.to_vec(), gecos: gecos.to_vec(), home: home.to_vec(), shell: shell.to_vec() })
}

/// What is known of somebody without an account: batch nodes may lack it.
fn nameless(uid: u32) -> Account {
    let fits = |name: &OsString| {
        !name.is_empty()
            && name.as_bytes().iter().all(|&byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !name.as_bytes().starts_with(b"-")
    };
    let name = std::env::var_os("USER").filter(fits).map_or_else(|| uid.to_string().into_bytes(), OsString::into_vec);
    let home = std::env::var_os("HOME").filter(|home| home.as_bytes().starts_with(b"/"));
    Account {
        name,
        gecos: Vec::new(),
        home: home.map_or_else(|| b"/".to_vec(), OsString::into_vec),
        shell: b"/bin/sh".to_vec(),
    }
}

fn find_groups(gids: &[u32]) -> Vec<Group> {
    let file = std::fs::read("/etc/group").unwrap_or_default();
    let local = |gid: u32| {
        file.split(|&byte| byte == b'\n').find_map(|line| {
            let mut fields = line.split(|&byte| byte == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            (parse_id(fields.nth(1)?) == Some(gid)).then(|| name.to_vec())
        })
    };
    gids.iter()
        .filter_map(|&gid| {
            let name = local(gid).or_else(|| proc::group_name(gid).ok().flatten())?;
            Some(Group { gid, name })
        })
        .collect()
}

/// Reads a decimal id.
pub fn parse_id(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_by_its_number_only() {
        let line = b"alice:x:1000:100:Alice,,,:/home/alice:/bin/zsh";
        let account = account_of_line(line, 1000).unwrap();
        assert_eq!((account.name.as_slice(), account.home.as_slice()), (&b"alice"[..], &b"/home/alice"[..]));
        assert_eq!(account_of_line(line, 100), None);
        for broken in [&b""[..], b"alice", b"alice:x:1000:100:Alice:/home/alice", b":x:1000:1:::", b"+::::::"] {
            assert_eq!(account_of_line(broken, 1000), None);
        }
    }

    #[test]
    fn this_process_has_a_group() {
        let identity = Identity::of_process();
        assert_eq!(identity.groups.first().map(|group| group.gid), Some(identity.gid));
    }
}
