//! Read leases: the kernel's word that nobody has a file open for writing.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// asm-generic/fcntl.h; the libc crate does not name it.
const F_SETSIG: libc::c_int = 10;

/// What a read lease says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// No descriptor and no mapping can write the file any more.
    None,
    /// Somebody still has it open for writing, or mapped so.
    Left,
    /// The file system grants no leases, so nothing is known.
    Unknown,
}

/// Asks the kernel whether anybody can still write `file`.
///
/// `file` must be open for reading only, and must belong to the caller; a
/// writable descriptor of one's own counts as a writer too. The lease is given
/// back before this returns.
///
/// # Errors
/// Those of fcntl(2), but for the ones that [`Writers`] expresses.
///
/// # Source
/// fcntl(2), "Leases": a read lease can be placed only on a file that is open
/// read-only and that no one has open for writing (`EAGAIN`).
pub fn check_writers(file: impl AsFd) -> io::Result<Writers> {
    let fd = file.as_fd().as_raw_fd();
    // A lease that is broken in the moment we hold it sends a signal; SIGIO, the
    // default, would end the process, and SIGURG is ignored unless asked for.
    // SAFETY: F_SETSIG takes an integer and touches no memory; `fd` is open,
    // because `file` is borrowed for this whole function.
    if unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETLEASE takes an integer and touches no memory; `fd` is open,
    // because `file` is borrowed for this whole function.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // NFS answers EAGAIN for every file that the server has not delegated.
            Some(libc::EAGAIN) if !is_remote(&file) => Ok(Writers::Left),
            Some(libc::EAGAIN | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOLCK) => Ok(Writers::Unknown),
            _ => Err(error),
        };
    }
    // SAFETY: as for the call above.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Writers::None)
}

/// Says whether other machines may write the file system behind `file` too.
///
/// False if that cannot be found out.
pub fn is_remote(file: impl AsFd) -> bool {
    // linux/magic.h, and the file systems' own headers.
    const NFS: u32 = 0x6969;
    const SMB: u32 = 0x517b;
    const CIFS: u32 = 0xff53_4d42;
    const SMB2: u32 = 0xfe53_4d42;
    const AFS: u32 = 0x5346_414f;
    const KAFS: u32 = 0x6b41_4653;
    const CEPH: u32 = 0x00c3_6400;
    const V9FS: u32 = 0x0102_1997;
    const LUSTRE: u32 = 0x0bd0_0bd0;
    const GPFS: u32 = 0x4750_4653;
    const BEEGFS: u32 = 0x1983_0326;
    const FUSE: u32 = 0x6573_5546;
    // The field's type differs between architectures; the magic has 32 bits.
    let kind = match rustix::fs::fstatfs(file) {
        Ok(stat) => stat.f_type as u32,
        Err(_) => return false,
    };
    [NFS, SMB, CIFS, SMB2, AFS, KAFS, CEPH, V9FS, LUSTRE, GPFS, BEEGFS, FUSE].contains(&kind)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use super::*;

    #[test]
    fn a_descriptor_open_for_writing_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        if check_writers(&reader).unwrap() == Writers::Unknown {
            eprintln!("SKIPPED: the temporary folder's file system has no leases");
            return;
        }
        assert_eq!(check_writers(&reader).unwrap(), Writers::Left);
        let second = writer.try_clone().unwrap();
        drop(writer);
        assert_eq!(check_writers(&reader).unwrap(), Writers::Left);
        drop(second);
        assert_eq!(check_writers(&reader).unwrap(), Writers::None);
        // The lease was given back: opening for writing neither waits nor kills.
        drop(OpenOptions::new().write(true).open(&path).unwrap());
        assert_eq!(check_writers(&reader).unwrap(), Writers::None);
    }
}
