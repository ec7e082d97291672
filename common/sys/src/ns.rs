//! Namespaces of the calling process and the ids that it has in them.

use std::{io, ops::BitOr};

/// A set of kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces(libc::c_int);

impl Namespaces {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// User and group ids, capabilities.
    pub const USER: Self = Self(libc::CLONE_NEWUSER);
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS);
    /// Process ids; takes effect for children only.
    pub const PID: Self = Self(libc::CLONE_NEWPID);
    /// System V IPC and POSIX message queues.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC);
    /// Host name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS);
    /// Network devices, addresses, ports.
    pub const NET: Self = Self(libc::CLONE_NEWNET);

    /// This set if `condition` holds, the empty one otherwise.
    #[must_use]
    pub const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }

    /// True if `other` is part of this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Namespaces {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Moves the calling process into new namespaces.
///
/// # Privileges
/// None for `USER`. Any other kind on its own needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `EINVAL` if `USER` is set and the process has more than one thread;
/// `ENOSPC` if a limit such as `user.max_user_namespaces` is reached; `EPERM`
/// if a security module forbids it.
pub fn unshare(ns: Namespaces) -> io::Result<()> {
    // SAFETY: unshare(2) takes an integer and touches no memory. `Namespaces`
    // holds CLONE_NEW* bits only, so CLONE_FILES cannot split the table of
    // descriptors between threads that both believe to own one.
    match unsafe { libc::unshare(ns.0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps one user id and one group id into the user namespace that the caller
/// has just entered: `inside` there is `outside` in the parent namespace.
///
/// # Privileges
/// `outside` must be the caller's own effective ids.
///
/// # Errors
/// Those of writing to the files below `/proc/self`; the message names the
/// file.
pub fn map_single_ids(inside: (u32, u32), outside: (u32, u32)) -> io::Result<()> {
    // Without privileges the kernel accepts gid_map only after setgroups is
    // denied, so the order of these writes matters (user_namespaces(7)).
    write_map("/proc/self/setgroups", "deny")?;
    write_map("/proc/self/uid_map", &format!("{} {} 1", inside.0, outside.0))?;
    write_map("/proc/self/gid_map", &format!("{} {} 1", inside.1, outside.1))
}

fn write_map(path: &'static str, text: &str) -> io::Result<()> {
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        // The kernel takes a map in one write only.
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|source| io::Error::new(source.kind(), format!("cannot write {path}: {source}")))
}

/// Sets the host name of the current UTS namespace.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the UTS namespace.
///
/// # Errors
/// `EINVAL` for a name over 64 bytes.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Brings the loopback interface of the current network namespace up.
///
/// # Privileges
/// `CAP_NET_ADMIN` in the user namespace that owns the network namespace.
///
/// # Errors
/// As `socket(2)` and the `SIOCSIFFLAGS` ioctl.
pub fn bring_loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `ifreq` is plain old data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq` at the address given, which is a
    // live local with a NUL-terminated name and the flags member set.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_kinds_add_up() {
        let set = Namespaces::USER | Namespaces::MOUNT.when(true) | Namespaces::NET.when(false);
        assert!(set.contains(Namespaces::USER) && set.contains(Namespaces::MOUNT));
        assert!(!set.contains(Namespaces::NET) && !set.contains(Namespaces::PID));
    }

    #[test]
    fn a_process_with_threads_may_not_enter_a_user_namespace() {
        // The test harness runs every test in a thread of its own.
        let error = unshare(Namespaces::USER).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
