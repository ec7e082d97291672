//! The caller's own record of copies that were delivered to them: which of
//! their files is which image of the host's cache.
//!
//! A copy that has not changed since need not be served over FUSE: the daemon
//! mounts its own file of the image instead, if the caller has a right to it.
//! A record is a claim of the caller's about a file of the caller's, and
//! unlocks nothing: so it is kept where only they can write, one small file
//! for each copy, named by its device and inode.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::{cli::Environment, daemon::DeliveredImage, failure::reason, output::debug};

/// Most copies that are remembered; the oldest records go first.
const MAX_RECORDS: usize = 256;

/// Bytes that are compared at once.
const COMPARED: usize = 1 << 20;

/// Longest record that is read.
const MAX_RECORD: u64 = 8 << 10;

/// What tells whether a file has been changed or replaced. Whoever writes to
/// it, or only touches or renames it, changes its ctime, which nobody can set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }

    fn file_name(&self) -> String {
        format!("{:x}-{:x}", self.device, self.inode)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    file: Stamp,
    reference: String,
    platform: String,
    image_key: String,
}

/// Remembers that `copy` is `image`. That this cannot be done costs speed
/// only.
pub fn remember(environment: &Environment, copy: &File, image: DeliveredImage) {
    if let Err(error) = folder(environment).and_then(|folder| write(&folder, copy, image)) {
        debug!("the delivery is not recorded: {}", reason(&error));
    }
}

/// What is known of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recalled {
    /// It has not been changed.
    Unchanged(DeliveredImage),
    /// It has been renamed, or its mode or owner has been changed: or it was
    /// written and its time put back. Its contents have to tell.
    Touched(DeliveredImage),
}

/// Why a copy is no copy any more.
pub const CHANGED: &str = "it has been changed since it was delivered";

/// Says which image `file` is a copy of.
///
/// # Errors
/// Why that is not known.
pub fn recall(environment: &Environment, file: &File) -> Result<Recalled, String> {
    let unknown = || "it is not known as a copy of an image of the cache".to_owned();
    let read = || {
        let folder = folder(environment)?;
        check_folder(&folder)?;
        read(&folder, &Stamp::of(&file.metadata()?))
    };
    match read() {
        Ok(Some(image)) => Ok(image),
        Ok(None) => Err(CHANGED.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
        Err(error) => {
            debug!("the record of deliveries is not used: {}", reason(&error));
            Err(unknown())
        }
    }
}

/// Where the records lie: below a directory that belongs to the caller.
fn folder(environment: &Environment) -> io::Result<PathBuf> {
    let other = |text: &str| io::Error::new(io::ErrorKind::PermissionDenied, text.to_owned());
    let own = rustix::process::geteuid().as_raw();
    // With borrowed privileges the environment is somebody else's.
    if rustix::process::getuid().as_raw() != own {
        return Err(other("this process runs with borrowed privileges"));
    }
    let variable = |name| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let (base, cache) = match (variable("XDG_CACHE_HOME"), variable("HOME")) {
        (Some(cache), _) => (cache.clone(), cache),
        (None, Some(home)) => (home.clone(), home.join(".cache")),
        (None, None) => return Err(other("HOME is not set")),
    };
    match std::fs::metadata(&base) {
        Ok(found) if found.uid() != own => Err(other("the home directory belongs to somebody else")),
        Ok(_) => Ok(cache.join("sctl/delivered")),
        Err(error) => Err(error),
    }
}

/// Others must neither write to the directory nor see what the caller runs.
fn check_folder(folder: &Path) -> io::Result<()> {
    let found = std::fs::metadata(folder)?;
    let private = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
    if private {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("{} is not a directory of the caller's with mode 700", folder.display()),
    ))
}

fn write(folder: &Path, copy: &File, image: DeliveredImage) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    check_folder(folder)?;
    let DeliveredImage { reference, platform, image_key } = image;
    let record = Record { file: Stamp::of(&copy.metadata()?), reference, platform, image_key };
    let mut temporary = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    temporary.write_all(&serde_json::to_vec(&record)?)?;
    temporary.persist(folder.join(record.file.file_name())).map_err(|error| error.error)?;
    prune(folder, MAX_RECORDS)
}

/// Whether two files have the same contents.
///
/// # Errors
/// As `pread(2)`.
pub fn same_contents(left: &File, right: &File) -> io::Result<bool> {
    let len = left.metadata()?.size();
    if right.metadata()?.size() != len {
        return Ok(false);
    }
    let (mut one, mut other) = (vec![0; COMPARED], vec![0; COMPARED]);
    let mut at = 0;
    while at < len {
        let now = usize::try_from(len - at).map_or(COMPARED, |left| left.min(COMPARED));
        left.read_exact_at(&mut one[..now], at)?;
        right.read_exact_at(&mut other[..now], at)?;
        if one[..now] != other[..now] {
            return Ok(false);
        }
        at += now as u64;
    }
    Ok(true)
}

/// `None` if there is a record of the file, but of another state of it.
fn read(folder: &Path, stamp: &Stamp) -> io::Result<Option<Recalled>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(folder.join(stamp.file_name()))?;
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the record is not the caller's own"));
    }
    let mut text = Vec::with_capacity(512);
    file.take(MAX_RECORD).read_to_end(&mut text)?;
    let Record { file, reference, platform, image_key } = serde_json::from_slice(&text)?;
    let image = DeliveredImage { reference, platform, image_key };
    Ok(if file == *stamp {
        Some(Recalled::Unchanged(image))
    } else if (Stamp { changed: file.changed, ..stamp.clone() }) == file {
        Some(Recalled::Touched(image))
    } else {
        None
    })
}

/// Removes the oldest records, so that `keep` are left.
fn prune(folder: &Path, keep: usize) -> io::Result<()> {
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // Another pull of the caller's may just have removed it.
        if let Ok(modified) = entry.metadata().and_then(|found| found.modified()) {
            found.push((modified, entry.path()));
        }
    }
    if found.len() > keep {
        found.sort_unstable();
        let excess = found.len() - keep;
        for (_, path) in found.drain(..excess) {
            // As above.
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;

    fn image() -> DeliveredImage {
        DeliveredImage { reference: "r.example/a:1".to_owned(), platform: String::new(), image_key: "0f".repeat(32) }
    }

    /// A home directory with a file that has been delivered.
    fn delivered() -> (tempfile::TempDir, Environment, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let environment = Environment::of(&[("HOME", home.path().to_str().unwrap())]);
        let path = home.path().join("a.sif");
        fs::write(&path, "content").unwrap();
        remember(&environment, &File::open(&path).unwrap(), image());
        (home, environment, path)
    }

    fn recalled(environment: &Environment, path: &Path) -> Result<Recalled, String> {
        recall(environment, &File::open(path).unwrap())
    }

    #[test]
    fn an_unchanged_copy_is_known() {
        let (home, environment, path) = delivered();
        fs::read(&path).unwrap();
        assert_eq!(recalled(&environment, &path), Ok(Recalled::Unchanged(image())));
        let folder = home.path().join(".cache/sctl/delivered");
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing temporary is left");
    }

    #[test]
    fn whatever_happens_to_the_copy_is_seen() {
        // Ctimes have the granularity of the kernel's clock tick.
        let later = || std::thread::sleep(Duration::from_millis(20));
        type Change = fn(&Path);
        let changes: [(&str, Change); 3] = [
            ("written in place", |path| File::options().write(true).open(path).unwrap().write_all(b"CONTENT").unwrap()),
            ("appended to", |path| File::options().append(true).open(path).unwrap().write_all(b"x").unwrap()),
            ("touched", |path| File::open(path).unwrap().set_modified(SystemTime::now()).unwrap()),
        ];
        let touches: [(&str, Change); 3] = [
            ("its mode changed", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap()),
            ("renamed", |path| {
                let elsewhere = path.with_extension("img");
                fs::rename(path, &elsewhere).unwrap();
                fs::rename(&elsewhere, path).unwrap();
            }),
            ("written, and its time put back", |path| {
                let time = fs::metadata(path).unwrap().modified().unwrap();
                let mut file = File::options().write(true).open(path).unwrap();
                file.write_all(b"CONTENT").unwrap();
                file.set_modified(time).unwrap();
            }),
        ];
        for (name, touch) in touches {
            let (_home, environment, path) = delivered();
            later();
            touch(&path);
            assert_eq!(recalled(&environment, &path), Ok(Recalled::Touched(image())), "{name}");
            remember(&environment, &File::open(&path).unwrap(), image());
            assert_eq!(recalled(&environment, &path), Ok(Recalled::Unchanged(image())), "{name}");
        }
        for (name, change) in changes {
            let (_home, environment, path) = delivered();
            later();
            change(&path);
            let why = recalled(&environment, &path).unwrap_err();
            assert_eq!(why, "it has been changed since it was delivered", "{name}");
        }
        let (home, environment, path) = delivered();
        let copy = home.path().join("copy.sif");
        fs::copy(&path, &copy).unwrap();
        assert!(recalled(&environment, &copy).unwrap_err().contains("not known"));
        later();
        fs::rename(&copy, &path).unwrap();
        assert!(recalled(&environment, &path).is_err(), "replaced");
    }

    #[test]
    fn contents_are_compared_to_the_last_byte() {
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file
        };
        for len in [0, 1, COMPARED - 1, COMPARED, COMPARED + 1] {
            let mut bytes = vec![7; len];
            let original = file(&bytes);
            assert!(same_contents(&original, &file(&bytes)).unwrap(), "{len}");
            assert!(!same_contents(&original, &file(&vec![7; len + 1])).unwrap(), "{len}");
            for at in [0, len / 2, len.wrapping_sub(1)].into_iter().filter(|&at| at < len) {
                bytes[at] = 8;
                assert!(!same_contents(&original, &file(&bytes)).unwrap(), "{len} {at}");
                bytes[at] = 7;
            }
        }
    }

    #[test]
    fn only_what_is_the_callers_own_is_read() {
        let (home, environment, path) = delivered();
        let folder = home.path().join(".cache/sctl/delivered");
        let record = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for (what, open, closed) in [(&folder, 0o750, 0o700), (&record, 0o620, 0o600)] {
            set(what, open);
            assert!(recalled(&environment, &path).is_err(), "{} with mode {open:o}", what.display());
            set(what, closed);
            assert!(recalled(&environment, &path).is_ok());
        }
        let elsewhere = home.path().join("record");
        fs::rename(&record, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &record).unwrap();
        assert!(recalled(&environment, &path).is_err(), "a link");
        fs::remove_file(&record).unwrap();
        fs::write(&record, "{").unwrap();
        assert!(recalled(&environment, &path).is_err(), "half a record");
        for variables in [&[][..], &[("HOME", "relative")], &[("HOME", "/nonexistent")]] {
            assert!(recalled(&Environment::of(variables), &path).is_err(), "{variables:?}");
        }
    }

    #[test]
    fn privileged_the_home_of_others_is_not_consulted() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to give a directory away");
            return;
        }
        let (home, environment, path) = delivered();
        std::os::unix::fs::chown(home.path(), Some(12345), None).unwrap();
        assert!(recalled(&environment, &path).is_err());
        remember(&environment, &File::open(home.path()).unwrap(), image());
        assert_eq!(fs::read_dir(home.path().join(".cache/sctl/delivered")).unwrap().count(), 1);
    }

    #[test]
    fn the_oldest_records_go_first() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..10 {
            let file = File::create(dir.path().join(number.to_string())).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number)).unwrap();
        }
        prune(dir.path(), 3).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["7", "8", "9"]);
    }
}
