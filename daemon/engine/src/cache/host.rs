//! Which host, boot and process this is, and whether another one is dead.
//!
//! Temporary names carry all of it: `<host>-<bootid8>-<pid>-<starttime>-<n>.<ext>`.
//! Several hosts may share one cache over a network file system, so a name
//! alone must tell whether its writer can still be alive.

use std::fs;

use sctl_common::Digest;

/// The host and its current boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostId {
    /// Host name and eight digits that tell hosts of one name apart; letters,
    /// digits, `.`, `_` and `-` only.
    pub host: String,
    /// The kernel's random id of this boot.
    pub boot_id: String,
}

impl HostId {
    /// Asks the kernel.
    pub fn current() -> Self {
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // Cloned machines and fresh ones ("localhost") often share a name.
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let tag = &Digest::of(machine.trim().as_bytes()).hex()[..8];
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { host: format!("{}.{tag}", sanitize(&node)), boot_id: boot_id.trim().to_owned() }
    }

    /// First eight characters of the boot id.
    pub(super) fn boot8(&self) -> &str {
        self.boot_id.get(..8).unwrap_or("00000000")
    }
}

fn sanitize(node: &str) -> String {
    let text: String =
        node.chars().take(64).map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
    // A leading dot would hide the file.
    if text.is_empty() || text.starts_with('.') { format!("_{text}") } else { text }
}

/// The parts of a temporary file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TempName {
    pub(super) host: String,
    pub(super) boot8: String,
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) number: u64,
    pub(super) extension: String,
}

impl TempName {
    /// Makes a name that this process has not used before.
    pub(super) fn fresh(id: &HostId, extension: &str) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let pid = std::process::id();
        Self {
            host: id.host.clone(),
            boot8: id.boot8().to_owned(),
            pid,
            start_time: start_time(pid).unwrap_or(0),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            extension: extension.to_owned(),
        }
    }

    /// Parses a file name; `None` if we never make such a one.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (stem, extension) = name.rsplit_once('.')?;
        // From the right, because host names hold `-` themselves.
        let mut parts = stem.rsplitn(5, '-');
        let number = parts.next()?.parse().ok()?;
        let start_time = parts.next()?.parse().ok()?;
        let pid = parts.next()?.parse().ok()?;
        let boot8 = parts.next()?.to_owned();
        let host = parts.next()?.to_owned();
        let hex = boot8.len() == 8 && boot8.bytes().all(|b| b.is_ascii_hexdigit());
        let known = ["pack", "sif", "blob", "json"].contains(&extension);
        (hex && known && !host.is_empty()).then(|| Self {
            host,
            boot8,
            pid,
            start_time,
            number,
            extension: extension.to_owned(),
        })
    }

    /// Says whether its writer is provably dead: it lived in another boot of
    /// this host, or no process of that number and start exists now.
    ///
    /// `one_host` says that no other host can reach the file system, so that a
    /// name from before the host was renamed counts as its own.
    pub(super) fn is_dead(&self, id: &HostId, one_host: bool) -> bool {
        if self.host != id.host && !one_host {
            return false;
        }
        if self.boot8 != id.boot8() {
            // An unknown boot id proves nothing.
            return !id.boot_id.is_empty();
        }
        if !fs::exists("/proc/self/stat").unwrap_or(false) {
            return false;
        }
        start_time(self.pid) != Some(self.start_time)
    }
}

impl std::fmt::Display for TempName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, boot8, pid, start_time, number, extension } = self;
        write!(f, "{host}-{boot8}-{pid}-{start_time}-{number}.{extension}")
    }
}

/// When a process started, in clock ticks since boot; `None` if there is none.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold
    // anything; start time is the 20th after it (proc_pid_stat(5)).
    let after = stat.iter().rposition(|&byte| byte == b')')? + 1;
    std::str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(host: &str, boot: &str) -> HostId {
        HostId { host: host.to_owned(), boot_id: format!("{boot}-1111-2222-3333-444444444444") }
    }

    #[test]
    fn names_round_trip_whatever_the_host_is_called() {
        for host in ["a", "node-17.cluster.12345678", "x-1-2-3-4"] {
            let name = TempName::fresh(&id(host, "0123abcd"), "pack");
            assert_eq!(TempName::parse(&name.to_string()), Some(name), "{host}");
        }
        for foreign in ["", "x.pack", "notes.txt", "a-0123abcd-1-2-3", "a-0123abcd-1-2-3.txt", "a-zzzzzzzz-1-2-3.pack"]
        {
            assert_eq!(TempName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn only_the_provably_dead_are_dead() {
        let here = id("here", "0123abcd");
        let mine = TempName::fresh(&here, "pack");
        let with = |change: &dyn Fn(&mut TempName)| {
            let mut name = mine.clone();
            change(&mut name);
            name
        };
        assert!(!mine.is_dead(&here, false), "the living process itself");
        assert!(with(&|n| n.start_time += 1).is_dead(&here, false), "pid used again");
        assert!(with(&|n| n.pid = 0x7fff_ffff).is_dead(&here, false), "no such pid");
        assert!(with(&|n| n.boot8 = "ffffffff".into()).is_dead(&here, false), "other boot");
        let elsewhere = with(&|n| (n.host, n.boot8) = ("there".into(), "ffffffff".into()));
        assert!(!elsewhere.is_dead(&here, false), "another host's");
        assert!(elsewhere.is_dead(&here, true), "this host's former name");
    }

    #[test]
    fn host_names_are_made_safe_for_file_names() {
        for (node, safe) in [("a/../b", "a_.._b"), ("", "_"), (".hidden", "_.hidden"), ("ü", "_")] {
            assert_eq!(sanitize(node), safe);
        }
        assert!(!HostId::current().boot_id.is_empty());
    }
}
