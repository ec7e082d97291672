//! The mount helper: the process that makes locked clones of mounts.
//!
//! A clone that is taken in a mount namespace that *another* user namespace
//! owns can never lose what restricts it. So this process lives in a user
//! namespace of its own, owned by root, and its only directory is a slave copy
//! of the broker's slots: what the broker mounts there arrives here, locked,
//! and what it unmounts vanishes.
//!
//! One packet each way over descriptor 3:
//!
//! ```text
//! helper  'U'                          it has left for its namespaces
//! broker  'M' device:8 path            it has an id there; where the slots are
//! helper  'R' | 'E' text               it is ready, or why not
//! broker  slot:4 device:8              wants a clone of that slot, on that device
//! helper  0 + descriptor | 1 | 2 errno:4   here; not that device; it failed
//! ```

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    process::ExitCode,
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketType, sockopt},
    process::{Gid, Signal, Uid},
};
use sctl_sys::{
    caps,
    mount::{self, Propagation},
    ns::{self, Namespaces},
    scm, spawn,
};

use crate::cache::failpoint;

pub(super) const UNSHARED: u8 = b'U';
pub(super) const MAPPED: u8 = b'M';
pub(super) const READY: u8 = b'R';
pub(super) const FAILED: u8 = b'E';

pub(super) const CLONED: u8 = 0;
pub(super) const OTHER_DEVICE: u8 = 1;
pub(super) const NO_CLONE: u8 = 2;

/// Longest packet: a path and a little more.
pub(super) const MAX_PACKET: usize = 4096 + 16;

/// `TMPFS_MAGIC` of `<linux/magic.h>`.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The whole life of the helper process.
///
/// Call it first in `main`: it takes over a descriptor by number.
///
/// # Privileges
/// Started as root; it keeps nothing of that.
pub fn helper_main() -> ExitCode {
    let refuse = |why: &str| {
        eprintln!("sctld mount-helper: {why}; this is started by the daemon, not by hand");
        ExitCode::FAILURE
    };
    let control = match spawn::take_inherited(1) {
        Ok(mut fds) if fds.len() == 1 => fds.remove(0),
        Ok(_) => return refuse("there is no descriptor"),
        Err(error) => return refuse(&error.to_string()),
    };
    let is_control = sockopt::socket_domain(&control) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&control) == Ok(SocketType::SEQPACKET);
    if !is_control {
        return refuse("descriptor 3 is no Unix packet socket");
    }
    let served = move_in(&control).and_then(|root| {
        scm::send(&control, &[READY], &[])?;
        failpoint("helper.ready");
        serve(&control, &root)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut message = vec![FAILED];
            message.extend_from_slice(error.to_string().as_bytes());
            message.truncate(MAX_PACKET);
            // Nobody may be left to tell.
            let _ = scm::send(&control, &message, &[]);
            ExitCode::FAILURE
        }
    }
}

fn during(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("the mount helper cannot {what}: {error}"))
}

/// Gives up everything but the slots; answers their directory, which is `/`
/// by then.
fn move_in(control: &OwnedFd) -> io::Result<OwnedFd> {
    // The signal that ends it with its parent is set now, and until the change
    // of ids: so this is the broker, or there is no helper any more.
    let parent = rustix::process::getppid();
    rustix::thread::set_thread_groups(&[]).map_err(|errno| during("give up its groups")(errno.into()))?;
    failpoint("helper.started");
    // Still as root, so that root owns the user namespace: a process of the
    // owner's uid could trace its way in.
    ns::unshare(Namespaces::USER | Namespaces::MOUNT).map_err(during("enter its namespaces"))?;
    failpoint("helper.unshared");
    scm::send(control, &[UNSHARED], &[])?;
    let mut buffer = [0; MAX_PACKET];
    let received = scm::recv(control, &mut buffer)?;
    let (device, path) = match &buffer[..received.len] {
        [MAPPED, rest @ ..] if !received.truncated && received.fds.is_empty() => {
            let (device, path) = rest.split_first_chunk::<8>().ok_or(io::ErrorKind::InvalidData)?;
            (u64::from_le_bytes(*device), Path::new(OsStr::from_bytes(path)))
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    failpoint("helper.mapped");
    // While it can still walk there: its new id may not be let through.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let slots = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| during("find the slots")(errno.into()))?;

    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|errno| during("change its group")(errno.into()))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|errno| during("change its user")(errno.into()))?;
    spawn::forbid_tracing()?;
    // After the last change of ids, which clears it; and the parent may have
    // gone in between.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != parent {
        return Err(io::Error::other("the daemon has gone"));
    }
    failpoint("helper.changed");

    // The mount of the slots is locked to what it is mounted on; a copy of it
    // on top of itself is not, and can become the root.
    let copy = mount::clone_tree(&slots, c"", false).map_err(during("copy the slots"))?;
    mount::attach(&copy, &slots).map_err(during("attach the copy of the slots"))?;
    mount::pivot_alone(&copy).map_err(during("leave the host's files"))?;
    drop((slots, copy));
    caps::keep_mount_administration().map_err(during("give up its capabilities"))?;
    let root = rustix::fs::open("/", flags, Mode::empty())?;
    // Nothing is left open that leads elsewhere, not even a device.
    rustix::stdio::dup2_stdin(&root)?;
    rustix::stdio::dup2_stdout(&root)?;
    rustix::stdio::dup2_stderr(&root)?;
    prove(&root, device)?;
    failpoint("helper.moved");
    Ok(root)
}

/// Makes sure that the slots are all that there is.
fn prove(root: &OwnedFd, device: u64) -> io::Result<()> {
    let own = rustix::fs::fstat(root)?;
    let above = rustix::fs::statat(root, "..", rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    let is_alone = rustix::fs::fstatfs(root)?.f_type as u64 == TMPFS_MAGIC
        && own.st_dev == device
        && (above.st_dev, above.st_ino) == (own.st_dev, own.st_ino)
        && mount::is_mount_root(root)?;
    if is_alone { Ok(()) } else { Err(io::Error::other("the mount helper's root is not the slots")) }
}

/// Answers until the broker closes its end.
fn serve(control: &OwnedFd, root: &OwnedFd) -> io::Result<()> {
    let mut request = [0; 13];
    loop {
        let received = scm::recv(control, &mut request)?;
        if received.len == 0 {
            return Ok(());
        }
        if received.len != 12 || received.truncated || !received.fds.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let slot = u32::from_le_bytes([request[0], request[1], request[2], request[3]]);
        let mut device = [0; 8];
        device.copy_from_slice(&request[4..12]);
        failpoint("helper.asked");
        match clone(root, slot, u64::from_le_bytes(device)) {
            Ok(Some(mount)) => scm::send(control, &[CLONED], &[mount.as_fd()])?,
            Ok(None) => scm::send(control, &[OTHER_DEVICE], &[])?,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0).to_le_bytes();
                scm::send(control, &[&[NO_CLONE], &errno[..]].concat(), &[])?;
            }
        }
        failpoint("helper.answered");
    }
}

/// A clone of what is mounted on a slot; `None` if that is something else.
fn clone(root: &OwnedFd, slot: u32, device: u64) -> io::Result<Option<OwnedFd>> {
    let mount = mount::clone_one(root, slot.to_string())?;
    if rustix::fs::fstat(&mount)?.st_dev != device {
        return Ok(None);
    }
    // It would follow the broker's unmounts in its receiver's namespace.
    mount::set_propagation(&mount, Propagation::Private)?;
    Ok(Some(mount))
}
