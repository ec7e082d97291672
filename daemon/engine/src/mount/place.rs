//! Which caches may be mounted from.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags};
use sctl_sys::{lease::is_remote, openat::check_directory};

/// Makes sure that nobody but root can change what is behind `path`: each
/// folder of it belongs to root and is not for others to write, and the file
/// system is a local one. `root` is the cache as it was opened.
///
/// # Errors
/// What is not so, for a log.
pub(super) fn check_place(path: &Path, root: impl AsFd) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot inspect {}: {error}", path.display());
    let open = |dir: Option<&OwnedFd>, name: &OsStr| {
        let opened = match dir {
            Some(dir) => rustix::fs::openat(dir, name, flags(), Mode::empty()),
            None => rustix::fs::open(name, flags(), Mode::empty()),
        };
        opened.map_err(|errno| failed(&errno))
    };
    let stat = |fd: &dyn AsFd| rustix::fs::fstat(fd.as_fd()).map_err(|errno| failed(&errno));
    let slash = OsStr::new("/");
    let mut here = open(None, slash)?;
    // Where symbolic links lead is walked, too: each folder that is passed,
    // also between two links, decides where the cache is.
    let mut todo: Vec<OsString> = steps(path);
    let mut links = 0;
    while let Some(name) = todo.pop() {
        check_directory(&here)
            .map_err(|error| format!("a folder on the way to {} is not root's alone: {error}", path.display()))?;
        if stat(&here)?.st_uid != 0 {
            return Err(format!("a folder on the way to {} does not belong to root", path.display()));
        }
        let next = open(Some(&here), &name)?;
        match FileType::from_raw_mode(stat(&next)?.st_mode) {
            FileType::Directory => here = next,
            FileType::Symlink if links < MAX_LINKS => {
                links += 1;
                let target = rustix::fs::readlinkat(&next, c"", Vec::new()).map_err(|errno| failed(&errno))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    here = open(None, slash)?;
                }
                todo.extend(steps(&target));
            }
            _ => return Err(failed(&"it leads through something else than folders")),
        }
    }
    let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    if id(stat(&here)?) != id(stat(&root)?) {
        return Err(format!("{} is not the cache that is open", path.display()));
    }
    check_directory(&root).map_err(|error| format!("the cache is not root's alone: {error}"))?;
    if is_remote(&root) {
        return Err("the cache is on a file system that other machines may write".to_owned());
    }
    Ok(())
}

/// Most symbolic links on the way, as in the kernel.
const MAX_LINKS: u32 = 40;

fn flags() -> OFlags {
    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// The names of a path in reverse order: the next one is popped.
fn steps(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    let mut steps: Vec<OsString> = path.components().filter_map(name).collect();
    steps.reverse();
    steps
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
        // Nor does one between two links.
        std::os::unix::fs::symlink(open.path().join("link"), base.path().join("first")).unwrap();
        assert!(check(&base.path().join("first")).is_err());
        std::os::unix::fs::symlink("../a/../first-of-all", base.path().join("a/relative")).unwrap();
        std::os::unix::fs::symlink("a/cache", base.path().join("first-of-all")).unwrap();
        check(&base.path().join("a/relative")).unwrap();
        std::os::unix::fs::symlink("loop", base.path().join("loop")).unwrap();
        assert!(check_place(&base.path().join("loop"), File::open(&cache).unwrap()).is_err(), "for ever");
        let other = File::open(base.path()).unwrap();
        assert!(check_place(&cache, other).is_err(), "another folder than the one that is open");
    }
}
