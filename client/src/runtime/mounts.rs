//! What is mounted in the container besides the image, in which order.
//!
//! # Source
//! The project's references runtime.md §4 and §5.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt, io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, PermissionsExt as _},
        },
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::CWD;
use sctl_sys::mount::{self, MountAttributes};

use super::{
    accounts, devices,
    identity::Identity,
    request::{Bind, Home, LaunchOptions},
    root::{Kind, Links, NewRoot, PlaceError},
};
use crate::{
    failure::Failure,
    output::{verbose, warning},
};

/// Something to mount.
#[derive(Debug)]
struct Item {
    source: Source,
    destination: PathBuf,
    kind: Kind,
    need: Need,
    links: Links,
}

impl Item {
    /// A file that covers the image's own, or the link that is there.
    fn file(source: Source, destination: &str) -> Self {
        Self { source, destination: destination.into(), kind: Kind::File, need: Need::Wished, links: Links::Cover }
    }
}

/// Where a mount comes from.
#[derive(Debug)]
enum Source {
    /// A file or directory of the host, with all that is mounted beneath it.
    Host {
        path: PathBuf,
        read_only: bool,
        /// Devices can be opened and set-id programs stay what they are: for
        /// parts of the system that come as they are.
        unrestricted: bool,
        /// The caller has chosen it for this container, so mount points that
        /// are missing in it may be made.
        chosen: bool,
    },
    /// An empty directory of the session's tmpfs.
    Empty { mode: u32 },
    /// A file with this content.
    File(Vec<u8>),
    /// A minimal `/dev`.
    Devices(devices::Parts),
    /// A procfs of the new PID namespace.
    Proc,
    /// An mqueue or devpts goes with [`Source::Devices`]; this is the image's
    /// password or group file with the caller in it.
    Accounts(Database),
}

/// A generated file that starts from the image's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Database {
    Passwd,
    Group,
}

/// What happens if a mount fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// The container does not start.
    Required,
    /// A warning.
    Wished,
    /// A line at `-v`.
    Optional,
}

/// What about the host decides about mounts.
#[derive(Debug, Clone)]
pub struct Host<'a> {
    /// Who starts the container.
    pub caller: &'a Identity,
    /// Directory that the launcher was started in: the caller's own name for
    /// it, and the kernel's.
    pub cwd: Option<&'a Cwd>,
}

/// The directory that the launcher was started in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cwd {
    /// As the caller's shell calls it, with symbolic links.
    pub logical: PathBuf,
    /// Without symbolic links.
    pub physical: PathBuf,
    /// Device and inode.
    pub id: (u64, u64),
}

impl Cwd {
    /// Asks the kernel and the `PWD` variable; nothing if the directory has
    /// been removed or cannot be reached.
    pub fn of_process() -> Option<Self> {
        let here = std::fs::metadata(".").ok()?;
        let id = (here.dev(), here.ino());
        let is_here = |path: &PathBuf| {
            path.is_absolute() && std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == id)
        };
        let physical = std::env::current_dir().ok().filter(is_here)?;
        let logical = std::env::var_os("PWD").map(PathBuf::from).filter(is_here);
        Some(Self { logical: logical.unwrap_or_else(|| physical.clone()), physical, id })
    }
}

/// Directories that are never replaced by the host's, because programs live
/// there.
const SYSTEM_DIRECTORIES: [&str; 10] = ["/", "/etc", "/bin", "/mnt", "/usr", "/var", "/opt", "/sbin", "/lib", "/lib64"];

/// Longest passwd or group file of an image that is read.
const MAX_DATABASE: u64 = 8 << 20;

/// Home directory in the container.
pub fn home(options: &LaunchOptions, caller: &Identity) -> PathBuf {
    match &options.home {
        Home::Custom { destination, .. } => destination.clone(),
        Home::Default | Home::None => caller.home.clone(),
    }
}

/// Refuses binds whose source is not there, before anything is started.
///
/// # Errors
/// A [`Failure`] that names the source.
pub fn check_sources(binds: &[Bind]) -> Result<(), Failure> {
    for bind in binds {
        if let Err(error) = std::fs::metadata(&bind.source) {
            let source = bind.source.display();
            return Err(match error.kind() {
                io::ErrorKind::NotFound => Failure::new(format!("mount source {source} doesn't exist")),
                _ => Failure::new(format!("mount source {source} cannot be used")).source(&error),
            });
        }
        if bind.destination.components().all(|component| component == Component::RootDir) {
            let text = format!("mount destination {} is the container's root", bind.destination.display());
            return Err(Failure::new(text).hint("name a directory below it"));
        }
        if bind.source.starts_with("/dev") && bind.source != Path::new("/dev") && bind.destination != bind.source {
            return Err(Failure::new(format!("mount source {} is a device", bind.source.display()))
                .hint("devices can only be bound to the same path in the container"));
        }
    }
    Ok(())
}

/// The host's root, for each bind whose source it is. To be called before
/// anything is mounted over it, which would be part of it from then on.
///
/// # Errors
/// As `open_tree(2)`.
pub fn clone_host_roots(options: &LaunchOptions) -> io::Result<Vec<OwnedFd>> {
    let binds = options.binds.iter().chain(&options.site_binds);
    binds.filter(|bind| is_root(&bind.source)).map(|_| mount::clone_tree(CWD, "/", true)).collect()
}

fn is_root(path: &Path) -> bool {
    std::fs::canonicalize(path).is_ok_and(|path| path == Path::new("/"))
}

/// Mounts everything in `root`. `host_roots` are those of [`clone_host_roots`].
///
/// # Errors
/// A [`Failure`] for the first mount that is required and impossible.
pub fn mount_all(
    root: &mut NewRoot,
    options: &LaunchOptions,
    host: &Host<'_>,
    host_roots: &mut Vec<OwnedFd>,
) -> Result<(), Failure> {
    let mut items = plan(options, host)?;
    make_places(root, &mut items)?;
    for item in items {
        let (need, destination) = (item.need, item.destination.clone());
        let origin = item.source.to_string();
        match mount_one(root, item, host.caller, options, host_roots) {
            Ok(()) => {}
            Err(failure) if need == Need::Required => return Err(failure),
            Err(failure) => skip(need, &origin, &destination, &failure),
        }
    }
    mount_cwd(root, options, host);
    Ok(())
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { path, .. } => path.display().fmt(f),
            Self::Empty { .. } => f.write_str("an empty directory"),
            Self::File(_) => f.write_str("a generated file"),
            Self::Devices(_) => f.write_str("devices"),
            Self::Proc => f.write_str("proc"),
            Self::Accounts(Database::Passwd) => f.write_str("passwd"),
            Self::Accounts(Database::Group) => f.write_str("group"),
        }
    }
}

fn skip(need: Need, origin: &str, destination: &Path, why: &dyn fmt::Display) {
    let text = format!("Skipping mount of {origin} on {}: {why}", destination.display());
    match need {
        Need::Wished => warning!("{text}"),
        Need::Required | Need::Optional => verbose!("{text}"),
    }
}

fn plan(options: &LaunchOptions, host: &Host<'_>) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    system(&mut items, options);
    let hosts = Path::new("/etc/hosts");
    for bind in &options.site_binds {
        // What the host is called and what time it is there; the site's data
        // would be the contrary of an empty container.
        if options.contain && bind.destination != hosts && bind.destination != Path::new("/etc/localtime") {
            continue;
        }
        if bind.destination == hosts && items.iter().any(|item| item.destination == hosts) {
            continue;
        }
        match std::fs::metadata(&bind.source) {
            Ok(found) => {
                let item = bound(bind, kind_of(&found), Need::Optional);
                let links = if item.kind == Kind::File { Links::Cover } else { Links::Follow };
                items.push(Item { links, ..item });
            }
            Err(error) => verbose!("Skipping configured mount of {}: {error}", bind.source.display()),
        }
    }
    add_home(&mut items, options, host.caller)?;
    add_tmp(&mut items, options)?;
    for destination in &options.scratch {
        let source = match &options.workdir {
            Some(workdir) => {
                let inner = destination.strip_prefix("/").unwrap_or(destination);
                chosen_directory(work_directory(&workdir.join("scratch").join(inner), 0o700)?)
            }
            None => Source::Empty { mode: 0o755 },
        };
        items.push(Item {
            source,
            destination: destination.clone(),
            kind: Kind::Directory,
            need: Need::Required,
            links: Links::Follow,
        });
    }
    files(&mut items, options);
    let mut binds = distinct(&options.binds);
    binds.sort_by_key(|bind| bind.destination.components().count());
    for bind in binds {
        let found = std::fs::metadata(&bind.source).map_err(|error| {
            Failure::new(format!("mount source {} doesn't exist", bind.source.display())).source(&error)
        })?;
        items.push(bound(bind, kind_of(&found), Need::Required));
    }
    Ok(items)
}

/// The binds without those whose destination another one has already.
fn distinct(binds: &[Bind]) -> Vec<&Bind> {
    let mut seen = BTreeSet::new();
    let is_first = |bind: &&Bind| {
        let is_first = seen.insert(bind.destination.clone());
        if !is_first {
            let (source, destination) = (bind.source.display(), bind.destination.display());
            warning!(
                "While bind mounting '{source}:{destination}': destination {destination} is already in the mount \
                 point list"
            );
        }
        is_first
    };
    binds.iter().filter(is_first).collect()
}

fn kind_of(found: &std::fs::Metadata) -> Kind {
    if found.is_dir() { Kind::Directory } else { Kind::File }
}

fn bound(bind: &Bind, kind: Kind, need: Need) -> Item {
    let unrestricted = bind.source.starts_with("/dev");
    let (path, read_only) = (bind.source.clone(), bind.read_only);
    let source = Source::Host { path, read_only, unrestricted, chosen: need == Need::Required };
    Item { source, destination: bind.destination.clone(), kind, need, links: Links::Follow }
}

fn host_directory(path: impl Into<PathBuf>) -> Source {
    Source::Host { path: path.into(), read_only: false, unrestricted: false, chosen: false }
}

fn chosen_directory(path: impl Into<PathBuf>) -> Source {
    Source::Host { path: path.into(), read_only: false, unrestricted: false, chosen: true }
}

/// `/dev`, `/proc`, `/sys`, and hosts where there is no network.
fn system(items: &mut Vec<Item>, options: &LaunchOptions) {
    let as_is = |path: &str| Source::Host { path: path.into(), read_only: false, unrestricted: true, chosen: false };
    let mut directory = |source, destination: &str, need| {
        items.push(Item { source, destination: destination.into(), kind: Kind::Directory, need, links: Links::Follow });
    };
    if !options.no_mount.dev {
        if options.contain {
            let parts = devices::Parts { pts: !options.no_mount.devpts, mqueue: options.ipc };
            directory(Source::Devices(parts), "/dev", Need::Required);
        } else {
            directory(as_is("/dev"), "/dev", Need::Required);
        }
    }
    if !options.no_mount.proc {
        directory(if options.pid { Source::Proc } else { as_is("/proc") }, "/proc", Need::Required);
    }
    if !options.no_mount.sys {
        directory(as_is("/sys"), "/sys", Need::Wished);
    }
    if options.contain && options.net {
        let source = Source::File(b"127.0.0.1 localhost\n::1 localhost\n".to_vec());
        items.push(Item::file(source, "/etc/hosts"));
    }
}

fn add_home(items: &mut Vec<Item>, options: &LaunchOptions, caller: &Identity) -> Result<(), Failure> {
    if options.no_mount.home {
        return Ok(());
    }
    let item = |source, destination: &Path, need| Item {
        source,
        destination: destination.to_owned(),
        kind: Kind::Directory,
        need,
        links: Links::Follow,
    };
    match &options.home {
        Home::None => {}
        Home::Custom { source, destination } => {
            let found = std::fs::metadata(source).map_err(|error| {
                Failure::new(format!("Unable to use home directory {}", source.display())).source(&error)
            })?;
            if !found.is_dir() {
                return Err(Failure::new(format!("Home {} is no directory", source.display())));
            }
            items.push(item(chosen_directory(source), destination, Need::Required));
        }
        Home::Default if !caller.home.is_absolute() || caller.home == Path::new("/") => {
            warning!("Skipping impossible home directory mount to '{}'", caller.home.display());
        }
        Home::Default => {
            let source = if options.contain {
                match &options.workdir {
                    Some(workdir) => chosen_directory(work_directory(&workdir.join("home"), 0o700)?),
                    None => Source::Empty { mode: 0o700 },
                }
            } else if caller.home.is_dir() {
                host_directory(&caller.home)
            } else {
                Source::Empty { mode: 0o700 }
            };
            items.push(item(source, &caller.home, Need::Wished));
        }
    }
    Ok(())
}

fn add_tmp(items: &mut Vec<Item>, options: &LaunchOptions) -> Result<(), Failure> {
    if options.no_mount.tmp {
        return Ok(());
    }
    let id = |path: &str| {
        std::fs::metadata(path).ok().filter(|found| found.is_dir()).map(|found| (found.dev(), found.ino()))
    };
    let mut seen = None;
    for (path, name) in [("/tmp", "tmp"), ("/var/tmp", "var_tmp")] {
        let source = match (&options.workdir, options.contain) {
            (Some(workdir), true) => chosen_directory(work_directory(&workdir.join(name), 0o1777)?),
            (None, true) => Source::Empty { mode: 0o1777 },
            (_, false) => match id(path) {
                // Often one is a link to the other.
                None => continue,
                found if found == seen => continue,
                found => {
                    seen = found;
                    host_directory(path)
                }
            },
        };
        items.push(Item {
            source,
            destination: path.into(),
            kind: Kind::Directory,
            need: Need::Wished,
            links: Links::Follow,
        });
    }
    Ok(())
}

/// A directory below `--workdir`, made if need be.
fn work_directory(path: &Path, mode: u32) -> Result<PathBuf, Failure> {
    let fail =
        |error: io::Error| Failure::new(format!("Unable to make work directory {}", path.display())).source(&error);
    if !path.is_dir() {
        std::fs::create_dir_all(path).map_err(fail)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(fail)?;
    }
    Ok(path.to_owned())
}

/// Generated files, and the host's resolver.
fn files(items: &mut Vec<Item>, options: &LaunchOptions) {
    let mut file = |source, destination: &str| {
        items.push(Item::file(source, destination));
    };
    if !options.dns.is_empty() {
        let lines: String = options.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        file(Source::File(lines.into_bytes()), "/etc/resolv.conf");
    } else if Path::new("/etc/resolv.conf").is_file() {
        let source =
            Source::Host { path: "/etc/resolv.conf".into(), read_only: true, unrestricted: false, chosen: false };
        file(source, "/etc/resolv.conf");
    }
    if let Some(name) = &options.hostname {
        file(Source::File(format!("{name}\n").into_bytes()), "/etc/hostname");
    }
    file(Source::Accounts(Database::Passwd), "/etc/passwd");
    file(Source::Accounts(Database::Group), "/etc/group");
}

/// Makes the mount points that the image lacks, the shallowest first: each may
/// cover its parent with a copy, which must not hide another one. What lies
/// below the destination of another mount is left to that one.
fn make_places(root: &mut NewRoot, items: &mut Vec<Item>) -> Result<(), Failure> {
    let directories: Vec<PathBuf> =
        items.iter().filter(|item| item.kind == Kind::Directory).map(|item| item.destination.clone()).collect();
    let covered = |path: &Path| directories.iter().any(|dir| path != dir && path.starts_with(dir));
    let mut missing: Vec<(usize, PathBuf, Kind, Links)> = Vec::new();
    items.retain(|item| {
        if covered(&item.destination) {
            return true;
        }
        // What cannot be found now is told when it is mounted.
        let Ok(Some(depth)) = root.depth_of_parent(&item.destination, item.links) else { return true };
        match (&item.source, item.need) {
            // The image's own are changed; nothing is invented for others.
            (Source::Accounts(database), _) => {
                warning!("{} file doesn't exist in container, not updating", name_of(*database));
                false
            }
            // Not worth rebuilding the directory around it.
            (_, Need::Optional) if item.kind == Kind::File => {
                skip(item.need, &item.source.to_string(), &item.destination, &"not in the image");
                false
            }
            _ => {
                missing.push((depth, item.destination.clone(), item.kind, item.links));
                true
            }
        }
    });
    missing.sort_by_key(|(depth, ..)| *depth);
    for (_, path, kind, links) in missing {
        if let Err(error) = root.ensure(&path, kind, links) {
            // Told again, and judged, when it is mounted.
            verbose!("{}", Failure::new("No mount point").source(&error));
        }
    }
    Ok(())
}

const fn name_of(database: Database) -> &'static str {
    match database {
        Database::Passwd => "passwd",
        Database::Group => "group",
    }
}

fn mount_one(
    root: &mut NewRoot,
    item: Item,
    caller: &Identity,
    options: &LaunchOptions,
    host_roots: &mut Vec<OwnedFd>,
) -> Result<(), Failure> {
    let Item { source, destination, kind, links, .. } = item;
    let origin = source.to_string();
    let fail = |error: &dyn std::error::Error| {
        Failure::new(format!("Unable to mount {origin} on {} in container", destination.display())).source(error)
    };
    let own = matches!(source, Source::Empty { .. } | Source::Devices(_) | Source::Host { chosen: true, .. });
    let tree = make_tree(root, source, &home(options, caller), caller, host_roots).map_err(|error| fail(&error))?;
    let Some(tree) = tree else { return Ok(()) };
    root.place(&tree, &destination, kind, links).map_err(|error| match error {
        PlaceError::Missing(_) | PlaceError::WrongKind { .. } => fail(&error).hint(
            "mount points can be made in the image, and in directories that you bind, but not in others of the host",
        ),
        other => fail(&other),
    })?;
    if own {
        root.adopt(&tree).map_err(|error| fail(&error))?;
    }
    Ok(())
}

/// What is to be mounted, as a detached tree; nothing if there is no need.
fn make_tree(
    root: &mut NewRoot,
    source: Source,
    home: &Path,
    caller: &Identity,
    host_roots: &mut Vec<OwnedFd>,
) -> io::Result<Option<OwnedFd>> {
    let quiet = MountAttributes::NO_SUID | MountAttributes::NO_DEV;
    Ok(Some(match source {
        Source::Host { path, read_only, unrestricted, .. } => {
            let tree = match host_roots.pop_if(|_| is_root(&path)) {
                Some(tree) => tree,
                None => mount::clone_tree(CWD, &path, true)?,
            };
            let read_only = if read_only { MountAttributes::READ_ONLY } else { MountAttributes::NONE };
            let attributes = if unrestricted { read_only } else { quiet | read_only };
            if attributes != MountAttributes::NONE {
                mount::restrict(&tree, attributes, true)?;
            }
            tree
        }
        Source::Empty { mode } => {
            let dir = root.session_directory(mode)?;
            mount::clone_tree(&dir, c"", false)?
        }
        Source::File(content) => read_only_file(root, &content)?,
        Source::Devices(parts) => devices::minimal(root, parts)?,
        Source::Proc => {
            let attributes = quiet | MountAttributes::NO_EXEC;
            match mount::new_filesystem(c"proc", &[], attributes) {
                Ok(tree) => tree,
                Err(error) => {
                    // Inside of another container parts of /proc are covered,
                    // and the kernel then allows no fresh one.
                    warning!("Unable to mount a new /proc ({error}), using the one of the host");
                    mount::clone_tree(CWD, "/proc", true)?
                }
            }
        }
        Source::Accounts(database) => {
            let path = Path::new("/etc").join(name_of(database));
            let Some(image) = root.read_file(&path, MAX_DATABASE)? else {
                warning!("{} file doesn't exist in container, not updating", name_of(database));
                return Ok(None);
            };
            let content = match database {
                Database::Passwd => accounts::passwd(&image, caller, home.as_os_str()),
                Database::Group => accounts::group(&image, caller),
            };
            // Where all can be written, entry points add themselves here.
            if root.is_writable() { root.session_file(&content)? } else { read_only_file(root, &content)? }
        }
    }))
}

fn read_only_file(root: &mut NewRoot, content: &[u8]) -> io::Result<OwnedFd> {
    let tree = root.session_file(content)?;
    mount::restrict(&tree, MountAttributes::READ_ONLY, false)?;
    Ok(tree)
}

/// Mounts the directory that the launcher was started in, unless it is there
/// already or would hide the image's own.
fn mount_cwd(root: &mut NewRoot, options: &LaunchOptions, host: &Host<'_>) {
    let Some(cwd) = host.cwd else { return };
    if options.contain || options.no_mount.cwd {
        return;
    }
    let path = &cwd.physical;
    let system = SYSTEM_DIRECTORIES.iter().any(|dir| path == Path::new(dir))
        || ["/sys", "/proc", "/dev"].iter().any(|dir| path.starts_with(dir));
    if system {
        verbose!("Not mounting the current directory {}: it belongs to the system", path.display());
        return;
    }
    if [&cwd.logical, path].into_iter().any(|path| is_there(root, path, cwd.id)) {
        return;
    }
    let mounted = mount::clone_tree(CWD, ".", true).and_then(|tree| {
        mount::restrict(&tree, MountAttributes::NO_SUID | MountAttributes::NO_DEV, true)?;
        Ok(tree)
    });
    let result = match mounted {
        Ok(tree) => root
            .place(&tree, path, Kind::Directory, Links::Follow)
            .map_err(|error| Failure::new("no place").source(&error)),
        Err(error) => Err(Failure::new("no mount").source(&error)),
    };
    if let Err(failure) = result {
        verbose!("Not mounting the current directory {}: {failure}", path.display());
    }
}

/// Whether `path` in the new root is the very directory `id` of the host.
fn is_there(root: &NewRoot, path: &Path, id: (u64, u64)) -> bool {
    let Ok(Some(found)) = root.find(path) else { return false };
    rustix::fs::fstat(found).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == id)
}

/// Destinations of the caller's binds, for the `*_BIND` variables; those that
/// a list with commas cannot hold are left out.
pub fn destinations(binds: &[Bind]) -> Vec<PathBuf> {
    let fits = |path: &OsStr| !path.as_bytes().iter().any(|byte| b",:".contains(byte));
    binds.iter().map(|bind| bind.destination.clone()).filter(|path| fits(path.as_os_str())).collect()
}
