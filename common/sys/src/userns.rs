//! User namespaces of others: made to be named by descriptor, or mapped from
//! outside.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
};

use crate::proc::SignalSet;

/// One range of ids: `count` ids from `inside` on are `outside` and following
/// in the parent namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// First id in the namespace.
    pub inside: u32,
    /// First id in the parent namespace.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// One id.
    pub const fn one(inside: u32, outside: u32) -> Self {
        Self { inside, outside, count: 1 }
    }
}

impl std::fmt::Display for IdRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// Gives the user namespace of a child its maps, once and for ever: no groups
/// can be set there, and only these ids exist.
///
/// `pid` must be a child that has not been waited for, so that its number
/// cannot have become another's.
///
/// # Privileges
/// `CAP_SETUID` and `CAP_SETGID` in the parent namespace, and being root or
/// the namespace's creator.
///
/// # Errors
/// The message names the file.
pub fn map_child(pid: i32, users: IdRange, groups: IdRange) -> io::Result<()> {
    write_file(pid, "setgroups", "deny")?;
    write_file(pid, "gid_map", &groups.to_string())?;
    write_file(pid, "uid_map", &users.to_string())
}

fn write_file(pid: i32, name: &str, text: &str) -> io::Result<()> {
    let path = format!("/proc/{pid}/{name}");
    // The kernel takes a map in one write only.
    let written = File::options().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| io::Error::new(source.kind(), format!("cannot write {name} of a child: {source}")))
}

/// Makes a user namespace that no process is in, for
/// [`idmap`](crate::mount::idmap).
///
/// # Privileges
/// `CAP_SETUID` and `CAP_SETGID`.
///
/// # Errors
/// `ENOSPC` if a limit such as `user.max_user_namespaces` is reached; those of
/// [`map_child`].
pub fn named(users: IdRange, groups: IdRange) -> io::Result<OwnedFd> {
    let (mut reader, writer) = io::pipe()?;
    let report = writer.as_raw_fd();
    // No handler of the parent may run in the child: it would write to pipes
    // that both share.
    let before = SignalSet::all_but(&[]).block()?;
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: the child of this process, which may have other threads, makes
    // plain system calls only, on integers and live locals: it allocates
    // nothing, takes no lock, and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as said above.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            // The parent may have gone before; then nobody would ever end this.
            if libc::getppid() != parent {
                libc::_exit(1);
            }
            // It waits for its end, and needs nothing that the parent has open.
            libc::syscall(libc::SYS_close_range, 0, report - 1, 0);
            libc::syscall(libc::SYS_close_range, report + 1, libc::c_uint::MAX, 0);
            let mut errno = 0i32;
            if libc::unshare(libc::CLONE_NEWUSER) != 0 {
                errno = *libc::__errno_location();
            }
            let bytes = errno.to_ne_bytes();
            libc::write(report, bytes.as_ptr().cast(), bytes.len());
            // Until it is ended.
            if errno == 0 {
                loop {
                    libc::pause();
                }
            }
            libc::_exit(0)
        }
    }
    let forked = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    before.set_as_mask()?;
    let pid = forked?;
    drop(writer);
    let made = (|| {
        let mut errno = [0; 4];
        reader.read_exact(&mut errno)?;
        match i32::from_ne_bytes(errno) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        map_child(pid, users, groups)?;
        Ok(OwnedFd::from(File::open(format!("/proc/{pid}/ns/user"))?))
    })();
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // It is a child that nobody else waits for: neither can fail in a way
        // that leaves it running.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        while matches!(
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()),
            Err(rustix::io::Errno::INTR)
        ) {}
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_a_namespace_outlives_the_process_that_it_was_made_with() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to map ids of others");
            return;
        }
        let namespace = named(IdRange::one(0, 12_345), IdRange::one(0, 54_321)).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
        assert!(link.to_string_lossy().starts_with("user:["), "{}", link.display());
        assert_ne!(link, std::fs::read_link("/proc/self/ns/user").unwrap());
        assert!(named(IdRange { inside: 0, outside: 0, count: 0 }, IdRange::one(0, 0)).is_err());
    }
}
