//! Opening files beneath a folder, and checking what was opened.
//!
//! A check made on a path can be outrun by whoever owns a folder on the way;
//! one made on the descriptor cannot. So a file is opened first, without
//! following any symlink, and then judged by what `fstat` says about it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2},
    io::Errno,
};

/// Says why an opened file may not be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UntrustedError {
    /// It is a folder, a FIFO, a device.
    #[error("it is not a regular file")]
    NotRegular,
    /// It is not a folder.
    #[error("it is not a folder")]
    NotDirectory,
    /// Neither root nor this process owns it.
    #[error("it belongs to uid {uid}")]
    ForeignOwner {
        /// The owner found.
        uid: u32,
    },
    /// Its group or everybody may write it.
    #[error("others may write it (mode {mode:03o})")]
    WritableByOthers {
        /// Permission bits found.
        mode: u32,
    },
    /// `fstat` failed.
    #[error("cannot read its attributes")]
    Io(#[source] io::Error),
}

/// Opens `name` beneath `dir`; neither `..` nor a symlink leads anywhere.
///
/// The descriptor is close-on-exec, and opening a FIFO does not wait.
/// On kernels (or under seccomp filters) without `openat2`, names of one
/// component are opened with `O_NOFOLLOW`, which says the same for them.
///
/// # Errors
/// Those of openat2(2); `ELOOP` for a symlink, `EXDEV` for a way out.
pub fn open_beneath(dir: impl AsFd, name: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        tries += 1;
        match openat2(&dir, name, flags, mode, resolve) {
            // EAGAIN: something was renamed while the kernel looked, which says
            // nothing about this name; or somebody holds a lease on the file, so
            // that trying for ever could hang.
            Err(Errno::INTR | Errno::AGAIN) if tries < 100 => std::thread::yield_now(),
            Err(Errno::NOSYS | Errno::PERM) if is_one_component(name) => {
                return Ok(openat(&dir, name, flags, mode)?);
            }
            other => return Ok(other?),
        }
    }
}

fn is_one_component(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

/// Opens `name` beneath `dir` for reading and checks it with [`check_file`].
///
/// # Errors
/// Those of [`open_beneath`]; `InvalidData`, with an [`UntrustedError`]
/// inside, for a file that may not be trusted.
pub fn open_trusted(dir: impl AsFd, name: &str) -> io::Result<(File, Stat)> {
    let file = File::from(open_beneath(dir, name, OFlags::RDONLY, Mode::empty())?);
    match check_file(&file) {
        Ok(stat) => Ok((file, stat)),
        Err(UntrustedError::Io(error)) => Err(error),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// Checks that an opened file is a regular one, belongs to root or to this
/// process, and that nobody else may write it.
///
/// # Errors
/// [`UntrustedError`] says which of these does not hold.
pub fn check_file(file: impl AsFd) -> Result<Stat, UntrustedError> {
    let stat = fstat(file).map_err(|errno| UntrustedError::Io(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(UntrustedError::NotRegular);
    }
    check_owner(&stat)?;
    Ok(stat)
}

/// Checks that an opened folder belongs to root or to this process, and that
/// nobody else may write it.
///
/// # Errors
/// [`UntrustedError`] says which of these does not hold.
pub fn check_directory(dir: impl AsFd) -> Result<Stat, UntrustedError> {
    let stat = fstat(dir).map_err(|errno| UntrustedError::Io(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(UntrustedError::NotDirectory);
    }
    check_owner(&stat)?;
    Ok(stat)
}

fn check_owner(stat: &Stat) -> Result<(), UntrustedError> {
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(UntrustedError::ForeignOwner { uid: stat.st_uid });
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(UntrustedError::WritableByOthers { mode: stat.st_mode & 0o777 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn nothing_outside_and_no_symlink_is_opened() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("in")).unwrap();
        fs::write(temp.path().join("outside"), "x").unwrap();
        fs::write(temp.path().join("in/file"), "x").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("in/link")).unwrap();
        std::os::unix::fs::symlink("../outside", temp.path().join("in/way-out")).unwrap();
        let dir = File::open(temp.path().join("in")).unwrap();
        assert!(open_trusted(&dir, "file").is_ok());
        for name in ["link", "way-out", "../outside", "/etc/passwd", "", "."] {
            assert!(open_trusted(&dir, name).is_err(), "opened {name:?}");
        }
    }

    #[test]
    fn files_that_others_may_write_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = File::open(temp.path()).unwrap();
        let path = temp.path().join("file");
        fs::write(&path, "x").unwrap();
        for (mode, accepted) in [(0o444, true), (0o644, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(open_trusted(&dir, "file").is_ok(), accepted, "{mode:o}");
        }
        fs::create_dir(temp.path().join("folder")).unwrap();
        assert!(open_trusted(&dir, "folder").is_err());
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_a_writer() {
        let temp = tempfile::tempdir().unwrap();
        let dir = File::open(temp.path()).unwrap();
        rustix::fs::mknodat(&dir, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(open_trusted(&dir, "fifo").is_err());
    }

    #[test]
    fn privileged_files_of_others_are_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to give a file away");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        fs::write(&path, "x").unwrap();
        std::os::unix::fs::chown(&path, Some(1), Some(1)).unwrap();
        assert!(open_trusted(File::open(temp.path()).unwrap(), "file").is_err());
    }
}
