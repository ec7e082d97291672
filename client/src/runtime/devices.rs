//! The minimal `/dev` of a contained container.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::fs::{Mode, OFlags};
use sctl_sys::mount::{self, MountAttributes};

use super::root::NewRoot;
use crate::output::verbose;

/// Devices of the host that every program may expect.
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links that programs expect.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Size of `/dev/shm`.
const SHM_SIZE: &std::ffi::CStr = c"64m";

/// Parts of a minimal `/dev` that depend on options.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// Terminals of its own.
    pub pts: bool,
    /// POSIX message queues, in an IPC namespace of its own.
    pub mqueue: bool,
}

/// Makes a minimal `/dev` as a detached tree.
///
/// # Errors
/// As the calls that mount.
pub fn minimal(root: &mut NewRoot, parts: Parts) -> io::Result<OwnedFd> {
    let dir = root.session_directory(0o755)?;
    for node in NODES {
        let Ok(device) = mount::clone_tree(rustix::fs::CWD, Path::new("/dev").join(node), true) else {
            verbose!("The host has no /dev/{node}");
            continue;
        };
        mount::attach(device, file(&dir, node)?)?;
    }
    let nothing = MountAttributes::NO_SUID | MountAttributes::NO_EXEC;
    let size = (c"size", Some(SHM_SIZE));
    let shm = mount::new_filesystem(c"tmpfs", &[size, (c"mode", Some(c"1777"))], nothing | MountAttributes::NO_DEV)?;
    mount::attach(shm, directory(&dir, "shm")?)?;
    if parts.pts {
        let options = [(c"newinstance", None), (c"ptmxmode", Some(c"0666")), (c"mode", Some(c"0620"))];
        let pts = mount::new_filesystem(c"devpts", &options, nothing)?;
        mount::attach(pts, directory(&dir, "pts")?)?;
        rustix::fs::symlinkat("pts/ptmx", &dir, "ptmx")?;
    }
    if parts.mqueue {
        let mqueue = mount::new_filesystem(c"mqueue", &[], nothing | MountAttributes::NO_DEV)?;
        mount::attach(mqueue, directory(&dir, "mqueue")?)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dir, name)?;
    }
    if let Some(terminal) = terminal() {
        mount::attach(mount::clone_tree(rustix::fs::CWD, &terminal, true)?, file(&dir, "console")?)?;
    }
    mount::clone_tree(&dir, c"", false)
}

/// The terminal that the container is started from.
fn terminal() -> Option<std::ffi::CString> {
    let stdin = rustix::stdio::stdin();
    rustix::termios::isatty(stdin).then(|| rustix::termios::ttyname(stdin, Vec::new()).ok())?
}

fn directory(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
    open(dir, name)
}

fn file(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    drop(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))?);
    open(dir, name)
}

fn open(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}
