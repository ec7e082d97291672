//! Which caches may be mounted from.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use rustix::fs::{Mode, OFlags};
use sctl_sys::{lease::is_remote, openat::check_directory};

/// Makes sure that nobody but root can change what is behind `path`: each
/// folder of it belongs to root and is not for others to write, and the file
/// system is a local one. `root` is the cache as it was opened.
///
/// # Errors
/// What is not so, for a log.
pub(super) fn check_place(path: &Path, root: impl AsFd) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot inspect {}: {error}", path.display());
    // Symbolic links on the way lie in folders that are looked at as well.
    for path in [path, &path.canonicalize().map_err(|error| failed(&error))?] {
        let mut here: OwnedFd = rustix::fs::open("/", flags(), Mode::empty()).map_err(|errno| failed(&errno))?;
        for part in path.components() {
            check_directory(&here)
                .map_err(|error| format!("a folder on the way to {} is not root's alone: {error}", path.display()))?;
            if rustix::fs::fstat(&here).map_err(|errno| failed(&errno))?.st_uid != 0 {
                return Err(format!("a folder on the way to {} does not belong to root", path.display()));
            }
            if let Component::Normal(name) = part {
                here = rustix::fs::openat(&here, name, flags(), Mode::empty()).map_err(|errno| failed(&errno))?;
            }
        }
        let id = |fd: &dyn Fn() -> rustix::io::Result<rustix::fs::Stat>| fd().map(|stat| (stat.st_dev, stat.st_ino));
        let found = id(&|| rustix::fs::fstat(&here)).map_err(|errno| failed(&errno))?;
        let opened = id(&|| rustix::fs::fstat(&root)).map_err(|errno| failed(&errno))?;
        if found != opened {
            return Err(format!("{} is not the cache that is open", path.display()));
        }
    }
    check_directory(&root).map_err(|error| format!("the cache is not root's alone: {error}"))?;
    if is_remote(&root) {
        return Err("the cache is on a file system that other machines may write".to_owned());
    }
    Ok(())
}

fn flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, Permissions},
        os::unix::fs::PermissionsExt as _,
    };

    use super::*;

    fn check(path: &Path) -> Result<(), String> {
        check_place(path, File::open(path).unwrap())
    }

    #[test]
    fn privileged_each_folder_on_the_way_counts() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to own folders for");
            return;
        }
        let base = tempfile::tempdir_in("/var/lib").unwrap();
        let cache = base.path().join("a/cache");
        fs::create_dir_all(&cache).unwrap();
        for folder in [base.path(), &base.path().join("a"), &cache] {
            fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        }
        check(&cache).unwrap();
        for (mode, fine) in [(0o775, false), (0o757, false), (0o1777, false), (0o711, true)] {
            fs::set_permissions(base.path().join("a"), Permissions::from_mode(mode)).unwrap();
            assert_eq!(check(&cache).is_ok(), fine, "{mode:o}");
        }
        std::os::unix::fs::chown(base.path().join("a"), Some(1), None).unwrap();
        assert!(check(&cache).unwrap_err().contains("uid 1"));
        std::os::unix::fs::chown(base.path().join("a"), Some(0), None).unwrap();
        // A way round through a link does not hide what the link is in.
        let open = tempfile::tempdir_in("/var/lib").unwrap();
        fs::set_permissions(open.path(), Permissions::from_mode(0o777)).unwrap();
        std::os::unix::fs::symlink(&cache, open.path().join("link")).unwrap();
        assert!(check(&open.path().join("link")).is_err());
        let other = File::open(base.path()).unwrap();
        assert!(check_place(&cache, other).is_err(), "another folder than the one that is open");
    }
}
