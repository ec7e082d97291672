//! The caller's own copy of a SIF: checked before any work, written beside
//! its place, renamed into it.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::Access;
use sctl_sys::{copy, lease};

use crate::{
    failure::{Failure, reason},
    output::debug,
};

/// Longest file name of the usual file systems in bytes.
const NAME_MAX: usize = 255;

/// Bytes that are copied between two looks at signals.
const STEP: u64 = 16 << 20;

/// A place for a SIF that could be written when it was checked.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    overwrite: bool,
}

impl Target {
    /// Checks everything that can be known before the SIF exists.
    ///
    /// # Errors
    /// A file that is there and may not be overwritten, something that is no
    /// file, a directory that is missing or not writable.
    pub fn check(path: PathBuf, overwrite: bool) -> Result<Self, Failure> {
        let target = Self { path, overwrite };
        match std::fs::symlink_metadata(&target.path) {
            Ok(meta) if meta.is_dir() => {
                return Err(target.unable().cause("it is a directory").hint("name a file in it"));
            }
            Ok(_) if !overwrite => return Err(target.exists()),
            // Renaming over a device or a pipe would replace it.
            Ok(meta) if !meta.is_file() && !meta.is_symlink() => {
                return Err(target.unable().cause("it exists and is not a regular file"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(target.unable().cause(reason(&error))),
        }
        let name = target.path.file_name().map_or(0, |name| name.as_bytes().len());
        if name == 0 {
            return Err(target.unable().cause("it names no file"));
        }
        if name > NAME_MAX {
            return Err(target.unable().cause(format!("its name has {name} bytes, more than {NAME_MAX}")));
        }
        let directory = target.directory();
        let meta = std::fs::metadata(directory)
            .map_err(|error| target.unable().cause(format!("{}: {}", directory.display(), reason(&error))))?;
        if !meta.is_dir() {
            return Err(target.unable().cause(format!("{} is not a directory", directory.display())));
        }
        rustix::fs::accessat(
            rustix::fs::CWD,
            directory,
            Access::WRITE_OK | Access::EXEC_OK,
            rustix::fs::AtFlags::EACCESS,
        )
        .map_err(|errno| {
            let why = format!("the directory {} cannot be written: {}", directory.display(), reason(&errno.into()));
            target.unable().cause(why)
        })?;
        Ok(target)
    }

    /// Where the SIF goes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// Writes the copy and returns it, open. It appears complete or not at all;
    /// dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// Those of the file system; a file that has appeared meanwhile.
    pub async fn write(&self, source: &File) -> Result<File, Failure> {
        let failed = |error: io::Error| self.unable().cause(reason(&error));
        let len = source.metadata().map_err(failed)?.len();
        let temporary = tempfile::Builder::new()
            .prefix(".sctl-")
            .suffix(".tmp")
            .rand_bytes(12)
            // The umask takes its bits away, as for every new program.
            .permissions(Permissions::from_mode(0o777))
            .tempfile_in(self.directory())
            .map_err(failed)?;
        if copy::try_clone_file(source, temporary.as_file()).map_err(failed)? {
            debug!("{} shares its bytes with the cache", self.path.display());
        } else {
            let mut done = 0;
            while done < len {
                let step = (len - done).min(STEP);
                copy::copy_range(source, done, temporary.as_file(), done, step).map_err(failed)?;
                done += step;
                tokio::task::yield_now().await;
            }
        }
        // Local file systems tell a full disk at once; others only when asked.
        if lease::is_remote(temporary.as_file()) {
            temporary.as_file().sync_all().map_err(failed)?;
        }
        let renamed =
            if self.overwrite { temporary.persist(&self.path) } else { temporary.persist_noclobber(&self.path) };
        match renamed {
            Ok(file) => Ok(file),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists && !self.overwrite => Err(self.exists()),
            Err(error) => Err(failed(error.error)),
        }
    }

    fn exists(&self) -> Failure {
        Failure::new(format!("Image file already exists: \"{}\" - will not overwrite", self.path.display()))
    }

    fn unable(&self) -> Failure {
        Failure::new(format!("Unable to write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::block_on;

    fn source(dir: &Path) -> File {
        std::fs::write(dir.join("source"), vec![7; 100_000]).unwrap();
        File::open(dir.join("source")).unwrap()
    }

    #[test]
    fn an_existing_file_is_kept_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sif");
        std::fs::write(&path, "mine").unwrap();
        let failure = Target::check(path.clone(), false).unwrap_err();
        let text = format!("Image file already exists: \"{}\" - will not overwrite", path.display());
        assert_eq!(failure.message, text);
        let target = Target::check(path.clone(), true).unwrap();
        block_on(target.write(&source(dir.path()))).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 100_000]);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sif");
        let target = Target::check(path.clone(), false).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        let failure = block_on(target.write(&source(dir.path()))).unwrap_err();
        assert!(failure.message.starts_with("Image file already exists"), "{failure}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "source and theirs");
    }

    #[test]
    fn the_copy_is_executable_as_the_umask_allows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sif");
        let target = Target::check(path.clone(), false).unwrap();
        block_on(target.write(&source(dir.path()))).unwrap();
        let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        rustix::process::umask(umask);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o777 & !umask.as_raw_mode(), "{mode:o}");
    }

    #[test]
    fn impossible_places_are_told_before_any_work() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            (dir.path().to_owned(), "it is a directory"),
            (dir.path().join("none/x.sif"), "No such file or directory"),
            (dir.path().join("x".repeat(256)), "File name too long"),
            (PathBuf::from("/dev/null"), "not a regular file"),
            (PathBuf::from("/proc/self/x.sif"), "/proc/self"),
        ];
        for (path, why) in cases {
            let failure = Target::check(path.clone(), true).unwrap_err();
            assert!(failure.causes[0].contains(why), "{}: {failure}", path.display());
        }
    }
}
