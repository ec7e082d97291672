//! Poses as the mount helper and answers wrongly, in a way that its own file
//! name tells. The tests of kernel mounts have the daemon start it.

use std::{ffi::OsStr, io, os::fd::AsFd as _, os::unix::ffi::OsStrExt as _, path::PathBuf};

use rustix::fs::{Mode, OFlags};
use sctl_sys::{
    mount,
    ns::{self, Namespaces},
    proc::{self, Fork},
    scm,
};

fn main() -> io::Result<()> {
    let name = std::env::current_exe()?;
    let how = name.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
    let control = sctl_sys::spawn::take_inherited(1)?.remove(0);
    if how == "first" {
        // Its clones are locked as they should be; they are of another image.
        ns::unshare(Namespaces::USER | Namespaces::MOUNT)?;
        scm::send(&control, b"U", &[])?;
        let mut buffer = [0; 4200];
        let len = scm::recv(&control, &mut buffer)?.len;
        scm::send(&control, b"R", &[])?;
        return answer(&control, &how, std::path::Path::new(OsStr::from_bytes(&buffer[9..len])));
    }
    let (words, told) = scm::pair(scm::Blocking::Yes)?;
    // The child stays root in the daemon's own namespaces, or leaves them
    // without propagation: just what a helper must not be.
    if proc::fork()? == Fork::Child {
        drop(told);
        let mut buffer = [0; 4200];
        let len = scm::recv(&words, &mut buffer)?.len;
        let slots = PathBuf::from(OsStr::from_bytes(&buffer[..len]));
        if how == "bare" {
            ns::unshare(Namespaces::MOUNT)?;
            rustix::mount::mount_change(
                "/",
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
            )?;
        }
        scm::send(&words, b"r", &[])?;
        return answer(&control, &how, &slots);
    }
    drop(words);
    ns::unshare(Namespaces::USER | Namespaces::MOUNT)?;
    scm::send(&control, b"U", &[])?;
    let mut buffer = [0; 4200];
    let len = scm::recv(&control, &mut buffer)?.len;
    scm::send(&told, &buffer[9..len], &[])?;
    scm::recv(&told, &mut [0])?;
    scm::send(&control, b"R", &[])?;
    drop(control);
    // The daemon watches this process; its end would end the game early.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    loop {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

fn answer(control: &std::os::fd::OwnedFd, how: &str, slots: &std::path::Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = |path: &std::path::Path| rustix::fs::open(path, flags, Mode::empty());
    let clone = |path: &std::path::Path| mount::clone_one(open(path)?, c"");
    let mut request = [0; 16];
    loop {
        if scm::recv(control, &mut request)?.len != 12 {
            return Ok(());
        }
        let slot = slots.join(u32::from_le_bytes([request[0], request[1], request[2], request[3]]).to_string());
        match how {
            "unlocked" | "bare" => scm::send(control, &[0], &[clone(&slot)?.as_fd()])?,
            "first" => scm::send(control, &[0], &[clone(&slots.join("0"))?.as_fd()])?,
            "host" => scm::send(control, &[0], &[clone("/etc".as_ref())?.as_fd()])?,
            "file" => scm::send(control, &[0], &[std::fs::File::open("/etc/passwd")?.as_fd()])?,
            "two" => scm::send(control, &[0], &[clone(&slot)?.as_fd(), clone("/etc".as_ref())?.as_fd()])?,
            "none" => scm::send(control, &[0], &[])?,
            _ => {}
        }
    }
}
