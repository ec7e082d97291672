//! The new root directory while it is put together: finding places in it,
//! making those that are missing, and mounting on them.
//!
//! The image is untrusted. Every place is found inside the new root: symbolic
//! links, absolute ones included, are followed as if it were `/` already, and
//! what is mounted goes to the descriptor of the place found, never to a path.
//!
//! The root stays the image, read-only. A place that the image lacks is made
//! in a *shadow*: a directory of a tmpfs, mounted over the nearest parent that
//! exists, with that parent's entries bound back into it.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags},
    io::Errno,
};
use sctl_sys::mount::{self, MountAttributes};

/// Whether a symbolic link at the end of a path is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// To where it leads in the container.
    Follow,
    /// The link itself is the place. So a file of the host covers the image's
    /// name for it, and not whatever the name leads to.
    Cover,
}

/// What a place is, or has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Why something could not be placed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    #[error("destination {} doesn't exist in container", .0.display())]
    Missing(PathBuf),
    #[error("destination {} is a {} in the container, not a {}", .path.display(), name(*.found), name(*.wanted))]
    WrongKind { path: PathBuf, found: Kind, wanted: Kind },
    #[error("cannot add {} beside more than {MAX_SIBLINGS} other entries", .0.display())]
    TooManySiblings(PathBuf),
    #[error("too many symbolic links in {}", .0.display())]
    Loop(PathBuf),
    #[error("cannot make {} in the container", .path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot find {} in the container", .path.display())]
    Find { path: PathBuf, source: io::Error },
    #[error("cannot mount on {}", .path.display())]
    Mount { path: PathBuf, source: io::Error },
}

const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::File => "file",
    }
}

/// Most entries that are bound back beside a new mount point; the kernel's own
/// limit on mounts is 100,000.
const MAX_SIBLINGS: usize = 32_768;

/// How much of a directory is learned at once: some 200 entries over FUSE.
const LEARNED_BYTES: usize = 32 << 10;

/// Most symbolic links on the way to one place, as in the kernel.
const MAX_LINKS: usize = 40;

/// The new root and the tmpfs that backs what is added to it.
#[derive(Debug)]
pub struct NewRoot {
    root: OwnedFd,
    /// Mounts that show the image: the root, and the entries bound back.
    image: HashSet<u64>,
    session: OwnedFd,
    shadows: Vec<Shadow>,
    /// Mounts in which mount points may simply be made: ours, and those that
    /// the caller has chosen.
    own: Vec<u64>,
    directories: u32,
    writable: bool,
}

#[derive(Debug)]
struct Shadow {
    mount: OwnedFd,
    id: u64,
}

/// Where a path leads inside the new root.
#[derive(Debug)]
enum Found {
    /// To something.
    Here(OwnedFd, Kind),
    /// To nothing: `names` are missing below `parent`, which lies `depth`
    /// directories below the root.
    Missing { parent: OwnedFd, depth: usize, names: Vec<OsString> },
}

impl NewRoot {
    /// Takes over `root`, an attached mount of the image. `session` is the
    /// root of an attached tmpfs, outside of `root`. `writable` leaves shadows
    /// writable in the end.
    ///
    /// # Errors
    /// As `statx(2)`.
    pub fn new(root: OwnedFd, session: OwnedFd, writable: bool) -> io::Result<Self> {
        let image = HashSet::from([mount::mount_id(&root)?]);
        Ok(Self { root, image, session, shadows: Vec::new(), own: Vec::new(), directories: 0, writable })
    }

    /// Whether what is in it can be written in the end.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Makes a new empty directory in the session's tmpfs and returns it.
    ///
    /// # Errors
    /// As `mkdir(2)`; `StorageFull` if the tmpfs is.
    pub fn session_directory(&mut self, mode: u32) -> io::Result<OwnedFd> {
        let name = format!("{}", self.directories);
        self.directories += 1;
        rustix::fs::mkdirat(&self.session, &name, Mode::RWXU)?;
        let dir = open_at(&self.session, OsStr::new(&name), OFlags::DIRECTORY)?;
        // The umask has no say here.
        rustix::fs::chmodat(&self.session, &name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        Ok(dir)
    }

    /// Makes a new file with this content in the session's tmpfs and returns
    /// it as a detached mount.
    ///
    /// # Errors
    /// As `open(2)`, `write(2)` and `open_tree(2)`.
    pub fn session_file(&mut self, content: &[u8]) -> io::Result<OwnedFd> {
        let name = format!("{}", self.directories);
        self.directories += 1;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.session, &name, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o644))?;
        let mut file = std::fs::File::from(fd);
        io::Write::write_all(&mut file, content)?;
        mount::clone_tree(&self.session, &name, false)
    }

    /// Returns what `path` leads to, or nothing.
    ///
    /// # Errors
    /// [`PlaceError`] for everything but "does not exist".
    pub fn find(&self, path: &Path) -> Result<Option<OwnedFd>, PlaceError> {
        Ok(match self.walk(path, Links::Follow)? {
            Found::Here(fd, _) => Some(fd),
            Found::Missing { .. } => None,
        })
    }

    /// Reads the regular file that `path` leads to, up to `limit` bytes;
    /// nothing if there is none.
    ///
    /// # Errors
    /// As `openat2(2)` and `read(2)`; `FileTooLarge` past `limit`.
    pub fn read_file(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        // O_NONBLOCK: a hostile image may have a FIFO there.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let found = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        // One read for all of it, and one for the end.
        let size = u64::try_from(found.st_size).unwrap_or(0).min(limit);
        let mut content = Vec::with_capacity(size as usize + 32);
        let mut file = io::Read::take(std::fs::File::from(fd), limit + 1);
        io::Read::read_to_end(&mut file, &mut content)?;
        if content.len() as u64 > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Some(content))
    }

    /// Lets the kernel learn the first entries of a directory at once, where
    /// each by itself would be a question to the image's server.
    pub fn learn_entries(&self, path: &Path) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        // Without it everything works, a little later.
        if let Ok(dir) = opened {
            let mut buffer = Vec::with_capacity(LEARNED_BYTES);
            let _ = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut()).next();
        }
    }

    /// How deep the nearest existing parent of `path` lies below the root;
    /// nothing if `path` exists. Missing places must be made in ascending
    /// order of this, so that a shadow never hides one that was made before.
    ///
    /// # Errors
    /// [`PlaceError`] if that cannot be found out.
    pub fn depth_of_parent(&self, path: &Path, links: Links) -> Result<Option<usize>, PlaceError> {
        Ok(match self.walk(path, links)? {
            Found::Here(..) => None,
            Found::Missing { depth, .. } => Some(depth),
        })
    }

    /// Makes sure that a mount can be placed at `path`.
    ///
    /// # Errors
    /// [`PlaceError`]; `Missing` if that would need a change of a directory of
    /// the host.
    pub fn ensure(&mut self, path: &Path, kind: Kind, links: Links) -> Result<OwnedFd, PlaceError> {
        match self.walk(path, links)? {
            Found::Here(place, found) if found == kind => Ok(place),
            Found::Here(_, found) => Err(PlaceError::WrongKind { path: path.to_owned(), found, wanted: kind }),
            Found::Missing { parent, names, .. } => self.make(path, kind, parent, &names),
        }
    }

    /// Mounts the detached tree `tree` at `path`, which is made if need be.
    ///
    /// # Errors
    /// As [`NewRoot::ensure`]; `Mount` if the kernel refuses.
    pub fn place(&mut self, tree: &OwnedFd, path: &Path, kind: Kind, links: Links) -> Result<(), PlaceError> {
        let place = self.ensure(path, kind, links)?;
        match mount::attach(tree, place) {
            Ok(()) => Ok(()),
            // Not every kernel lets a link be covered.
            Err(_) if links == Links::Cover => self.place(tree, path, kind, Links::Follow),
            Err(source) => Err(PlaceError::Mount { path: path.to_owned(), source }),
        }
    }

    /// Says that mount points may be made in `mount`, which has been placed: it
    /// is a file system of ours, or one that the caller has chosen.
    ///
    /// # Errors
    /// As `statx(2)`.
    pub fn adopt(&mut self, mount: &OwnedFd) -> io::Result<()> {
        self.own.push(mount::mount_id(mount)?);
        Ok(())
    }

    /// Ends the assembly: shadows become read-only. Returns the root.
    ///
    /// # Errors
    /// As `mount_setattr(2)`.
    pub fn finish(self) -> io::Result<OwnedFd> {
        if !self.writable {
            for shadow in &self.shadows {
                mount::restrict(&shadow.mount, MountAttributes::READ_ONLY, false)?;
            }
        }
        Ok(self.root)
    }

    fn walk(&self, path: &Path, links: Links) -> Result<Found, PlaceError> {
        let fail = |errno: Errno| PlaceError::Find { path: path.to_owned(), source: errno.into() };
        // Nearly always the place exists: one call finds it.
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if links == Links::Cover {
            flags |= OFlags::NOFOLLOW;
        }
        match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(fd) => {
                let kind = kind_of(&fd).map_err(fail)?;
                return Ok(Found::Here(fd, kind));
            }
            Err(Errno::NOENT | Errno::ACCESS) => {}
            Err(Errno::LOOP) => return Err(PlaceError::Loop(path.to_owned())),
            Err(errno) => return Err(fail(errno)),
        }
        self.walk_slowly(path)
    }

    /// Walks component by component, to learn where the path stops to exist.
    /// Every step opens one name without following it, below a directory that
    /// was reached the same way, so no step leaves the new root.
    fn walk_slowly(&self, path: &Path) -> Result<Found, PlaceError> {
        let fail = |errno: Errno| PlaceError::Find { path: path.to_owned(), source: errno.into() };
        let root = self.root.try_clone().map_err(|source| PlaceError::Find { path: path.to_owned(), source })?;
        let mut stack = vec![root];
        let mut todo = steps(path);
        let mut links = 0;
        while let Some(step) = todo.pop() {
            let Step::Down(name) = step else {
                // `..` of the root is the root.
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            };
            // Never empty: only `Up` shortens it, and not to nothing.
            let parent = &stack[stack.len() - 1];
            let fd = match open_at(parent, &name, OFlags::NOFOLLOW) {
                Ok(fd) => fd,
                // In a directory that may not be entered everything is
                // missing, as far as anybody in the container can tell.
                Err(Errno::NOENT | Errno::ACCESS) => {
                    let depth = stack.len() - 1;
                    let parent = stack.swap_remove(depth);
                    let names = missing(name, todo);
                    if names.is_empty() {
                        // A link such as `gone/..`: its end is where it began,
                        // and a mount there would cover what is beside it.
                        return Err(PlaceError::Missing(path.to_owned()));
                    }
                    return Ok(Found::Missing { parent, depth, names });
                }
                Err(errno) => return Err(fail(errno)),
            };
            match FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(fail)?.st_mode) {
                FileType::Directory => stack.push(fd),
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(PlaceError::Loop(path.to_owned()));
                    }
                    let target = rustix::fs::readlinkat(&fd, c"", Vec::new()).map_err(fail)?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        stack.truncate(1);
                    }
                    todo.extend(steps(&target));
                }
                _ if todo.is_empty() => return Ok(Found::Here(fd, Kind::File)),
                _ => return Err(fail(Errno::NOTDIR)),
            }
        }
        let last = stack.swap_remove(stack.len() - 1);
        Ok(Found::Here(last, Kind::Directory))
    }

    fn make(&mut self, path: &Path, kind: Kind, parent: OwnedFd, names: &[OsString]) -> Result<OwnedFd, PlaceError> {
        let fail = |source| PlaceError::Make { path: path.to_owned(), source };
        let id = mount::mount_id(&parent).map_err(fail)?;
        if self.own.contains(&id) || self.shadows.iter().any(|shadow| shadow.id == id) {
            return make_below(&parent, names, kind).map_err(|errno| fail(errno.into()));
        }
        if !self.image.contains(&id) {
            // A directory of the host: it is not ours to change.
            return Err(PlaceError::Missing(path.to_owned()));
        }
        if self.writable
            && let Ok(place) = make_below(&parent, names, kind)
        {
            return Ok(place);
        }
        let shadow = self.add_shadow(path, &parent)?;
        make_below(&shadow, names, kind).map_err(|errno| fail(errno.into()))
    }

    /// Mounts a directory of our tmpfs over `original` that shows the same
    /// entries, and returns its root.
    fn add_shadow(&mut self, path: &Path, original: &OwnedFd) -> Result<OwnedFd, PlaceError> {
        let fail = |source| PlaceError::Make { path: path.to_owned(), source };
        let covers_root = same_place(original, &self.root).map_err(|errno| fail(errno.into()))?;
        let siblings = if may_enter(original) || covers_root {
            entries(original).map_err(|errno| fail(errno.into()))?
        } else {
            // Nobody in the container can reach what is in there, so nothing
            // is lost.
            Vec::new()
        };
        if siblings.len() > MAX_SIBLINGS {
            return Err(PlaceError::TooManySiblings(path.to_owned()));
        }
        let mode = rustix::fs::fstat(original).map_err(|errno| fail(errno.into()))?.st_mode & 0o7777;
        // Whoever may not enter the original would not get back out of here.
        let dir = self.session_directory(mode | 0o500).map_err(fail)?;
        let shadow = mount::clone_tree(&dir, c"", false).map_err(fail)?;
        mount::attach(&shadow, original).map_err(fail)?;
        for (name, file_type) in siblings {
            self.image.extend(restore(&shadow, original, &name, file_type).map_err(fail)?);
        }
        if covers_root {
            // A descriptor of the covered root would still lead below.
            self.root = shadow.try_clone().map_err(fail)?;
        }
        let root = shadow.try_clone().map_err(fail)?;
        self.shadows.push(Shadow { id: mount::mount_id(&shadow).map_err(fail)?, mount: shadow });
        Ok(root)
    }
}

/// Whether names in a directory can be looked up.
fn may_enter(dir: &OwnedFd) -> bool {
    rustix::fs::accessat(dir, c".", Access::EXISTS, AtFlags::EACCESS).is_ok()
}

/// Whether two descriptors show the same directory of the same mount.
fn same_place(left: &OwnedFd, right: &OwnedFd) -> Result<bool, Errno> {
    let of = |fd| {
        let found = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::MNT_ID)?;
        Ok::<_, Errno>((found.stx_ino, found.stx_mnt_id))
    };
    Ok(of(left)? == of(right)?)
}

/// Shows the entry `name` of `original` in `shadow`; tells the mount's id if
/// that took one.
fn restore(shadow: &OwnedFd, original: &OwnedFd, name: &OsStr, file_type: FileType) -> io::Result<Option<u64>> {
    match file_type {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(original, name, Vec::new())?;
            rustix::fs::symlinkat(&*target, shadow, name)?;
            return Ok(None);
        }
        FileType::Directory => rustix::fs::mkdirat(shadow, name, Mode::RWXU)?,
        _ => drop(rustix::fs::openat(
            shadow,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::RUSR,
        )?),
    }
    let tree = mount::clone_tree(original, name, false)?;
    let id = mount::mount_id(&tree)?;
    mount::attach(tree, open_at(shadow, name, OFlags::NOFOLLOW)?)?;
    Ok(Some(id))
}

/// Makes `names` below each other, the last one of `kind`, and opens it.
fn make_below(parent: &OwnedFd, names: &[OsString], kind: Kind) -> Result<OwnedFd, Errno> {
    let mut here = rustix::io::fcntl_dupfd_cloexec(parent, 3)?;
    for (index, name) in names.iter().enumerate() {
        if kind == Kind::Directory || index + 1 < names.len() {
            rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755))?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&here, name, flags, Mode::from_raw_mode(0o644))?);
        }
        here = open_at(&here, name, OFlags::NOFOLLOW)?;
    }
    Ok(here)
}

fn open_at(dir: &OwnedFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty())
}

/// Whether a descriptor shows a directory.
pub fn kind_of(fd: impl AsFd) -> Result<Kind, Errno> {
    let directory = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory;
    Ok(if directory { Kind::Directory } else { Kind::File })
}

fn entries(dir: &OwnedFd) -> Result<Vec<(OsString, FileType)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut found = Vec::new();
    for entry in Dir::new(rustix::fs::openat(dir, c".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let mut file_type = entry.file_type();
        if file_type == FileType::Unknown {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            file_type = FileType::from_raw_mode(stat.st_mode);
        }
        found.push((name.to_owned(), file_type));
        if found.len() > MAX_SIBLINGS {
            break;
        }
    }
    Ok(found)
}

#[derive(Debug)]
enum Step {
    Up,
    Down(OsString),
}

/// The steps of `path` in reverse order: the next one is popped.
fn steps(path: &Path) -> Vec<Step> {
    let mut steps: Vec<Step> = path
        .components()
        .filter_map(|component| match component {
            Component::ParentDir => Some(Step::Up),
            Component::Normal(name) => Some(Step::Down(name.to_owned())),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    steps.reverse();
    steps
}

/// The names to make: `name`, and what follows it.
fn missing(name: OsString, todo: Vec<Step>) -> Vec<OsString> {
    let mut names = vec![name];
    for step in todo.into_iter().rev() {
        match step {
            Step::Down(name) => names.push(name),
            // Up again out of what does not exist. Further up than where it
            // begins no sensible link leads.
            Step::Up => drop(names.pop()),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;

    /// A tree without mounts: enough for finding places.
    fn root(dir: &Path) -> NewRoot {
        let open = |path: &Path| rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        NewRoot::new(open(dir), open(dir), false).unwrap()
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        std::fs::write(dir.path().join("usr/file"), "content").unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
        link("usr/bin", "bin");
        link("/usr", "absolute");
        link("../../../../../../usr/bin", "above");
        link("/etc/passwd", "host");
        link("/missing/../dangling", "dangling");
        link("loop", "loop");
        dir
    }

    #[test]
    fn links_stay_inside() {
        let dir = tree();
        let root = root(dir.path());
        let inode = |path: &str| {
            let fd = root.find(Path::new(path)).unwrap().unwrap();
            let stat = rustix::fs::fstat(&fd).unwrap();
            (stat.st_dev, stat.st_ino)
        };
        for path in ["/bin", "/above", "/absolute/bin", "/absolute/../bin", "/../../usr/bin"] {
            assert_eq!(inode(path), inode("/usr/bin"), "{path}");
        }
        assert!(root.find(Path::new("/host")).unwrap().is_none(), "the host's file is not in the tree");
        assert!(matches!(root.find(Path::new("/loop")), Err(PlaceError::Loop(_))));
        assert!(root.find(Path::new("/usr/file/below")).is_err());
    }

    #[test]
    fn what_is_missing_is_told_with_its_parent() {
        let dir = tree();
        let root = root(dir.path());
        let cases: [(&str, &str, &[&str]); 6] = [
            ("/data/x/y", "", &["data", "x", "y"]),
            ("/bin/new", "usr/bin", &["new"]),
            ("/absolute/share/x", "usr", &["share", "x"]),
            ("/host", "", &["etc", "passwd"]),
            ("/dangling", "", &["dangling"]),
            ("/dangling/x", "", &["dangling", "x"]),
        ];
        for (path, parent, names) in cases {
            let Found::Missing { parent: found, names: missing, .. } =
                root.walk(Path::new(path), Links::Follow).unwrap()
            else {
                panic!("{path} exists");
            };
            let stat = rustix::fs::fstat(&found).unwrap();
            let wanted = rustix::fs::stat(dir.path().join(parent)).unwrap();
            assert_eq!((stat.st_dev, stat.st_ino), (wanted.st_dev, wanted.st_ino), "parent of {path}");
            assert_eq!(missing, names, "{path}");
        }
        std::os::unix::fs::symlink("none/..", dir.path().join("back")).unwrap();
        let back = root.walk(Path::new("/back"), Links::Follow);
        assert!(matches!(back, Err(PlaceError::Missing(_))), "a place that would cover its own parent");
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tree();
        let root = root(dir.path());
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(root.read_file(Path::new("/usr/file"), 10).unwrap().unwrap(), b"content");
        assert!(root.read_file(Path::new("/usr/file"), 3).is_err());
        for path in ["/fifo", "/usr", "/nothing", "/host"] {
            assert_eq!(root.read_file(Path::new(path), 10).unwrap(), None, "{path}");
        }
    }
}
