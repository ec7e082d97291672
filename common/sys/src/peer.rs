//! Who is at the other end of a Unix socket.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// The peer of a connected socket as it was when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id in the reader's pid namespace; 0 if it has none there.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Reads `SO_PEERCRED`.
///
/// # Errors
/// As `getsockopt(2)`.
pub fn credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    // Not rustix's reader: its Pid type cannot hold the 0 of a peer in
    // another pid namespace.
    let mut cred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `len` bytes to `cred`, which is a
    // live `ucred` of exactly that size, and updates `len`, a live integer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if len as usize != size_of::<libc::ucred>() {
        return Err(io::Error::other("SO_PEERCRED has another size than expected"));
    }
    Ok(PeerCredentials { pid: cred.pid, uid: cred.uid, gid: cred.gid })
}

/// `SO_PEERPIDFD` of `<asm-generic/socket.h>`, which libc does not name yet.
const SO_PEERPIDFD: libc::c_int = 77;

/// Opens a pidfd of the peer, which names the process even after its pid was
/// given to another one. `None` where the kernel (before 6.5) cannot, or the
/// peer has ended.
///
/// # Errors
/// As `getsockopt(2)`, but for what gives `None`.
pub fn pidfd(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `len` bytes to `fd`, a live
    // integer of exactly that size, and updates `len`, a live integer.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut len)
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOPROTOOPT | libc::ESRCH | libc::ENODATA | libc::EINVAL) => Ok(None),
            _ => Err(error),
        };
    }
    if fd < 0 {
        return Ok(None);
    }
    // SAFETY: a successful SO_PEERPIDFD makes a new descriptor in this process
    // that nobody else knows.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Reads the peer's supplementary groups (`SO_PEERGROUPS`), as they were when
/// it connected.
///
/// # Errors
/// As `getsockopt(2)`.
pub fn groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut len = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: getsockopt(2) writes at most `len` bytes to the vector's
        // buffer, which is exactly that large, and updates `len`, a live
        // integer.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let needed = len as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel tells the size that it needs; 65,536 groups is its limit.
        if error.raw_os_error() == Some(libc::ERANGE) && needed > groups.len() && needed <= 65_536 {
            groups.resize(needed, 0);
        } else {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (left, _right) = UnixStream::pair().unwrap();
        let peer = credentials(&left).unwrap();
        assert_eq!(peer.pid as u32, std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        let mut own: Vec<u32> = rustix::process::getgroups().unwrap().into_iter().map(|gid| gid.as_raw()).collect();
        let mut seen = groups(&left).unwrap();
        own.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, own);
    }

    #[test]
    fn a_pidfd_names_this_process_where_the_kernel_can() {
        let (left, _right) = UnixStream::pair().unwrap();
        let Some(fd) = pidfd(&left).unwrap() else {
            eprintln!("SKIPPED: no SO_PEERPIDFD on this kernel");
            return;
        };
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        assert!(info.contains(&format!("Pid:\t{}", std::process::id())), "{info}");
    }
}
