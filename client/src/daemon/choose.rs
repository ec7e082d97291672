//! Which daemon answers: the rules, without any connection.

use std::{
    io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use sctl_common::Digest;
use sctl_sys::{proc, scm::MAX_SOCKET_PATH};

use crate::{
    cli::Environment,
    failure::{Failure, reason},
    flavour::Flavour,
    output::{verbose, warning},
};

/// The longest name of a socket in a directory of the caller's.
const LONGEST_NAME: &str = "/mount-01234567.sock";

/// Socket of a daemon that serves the whole host.
pub const SYSTEM_SOCKET: &str = "/run/sctl/sctl.sock";

/// Why a daemon is the one to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `SCTL_SOCKET` names it.
    Explicit,
    /// It is installed on this host.
    System,
    /// There is no other: one of the caller's own, started when needed.
    User,
}

/// The daemon to talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Why this one.
    pub kind: Kind,
    /// Its gRPC socket.
    pub socket: PathBuf,
    /// Its socket that hands out images.
    pub mount_socket: PathBuf,
    /// A link in the cache to the socket of the caller's own daemon that uses
    /// it. It may have been started with another environment (a batch job's,
    /// say) and so listen elsewhere.
    pub record: Option<PathBuf>,
    /// Directory of the caller's for a cache among the host's temporary files,
    /// because the usual place cannot be written.
    pub temporary: Option<PathBuf>,
    /// Where a daemon of the caller's own keeps its cache, if not at the usual
    /// place.
    pub cache_dir: Option<PathBuf>,
}

impl Choice {
    /// The same in another directory.
    pub fn moved_to(&self, directory: &Path) -> Self {
        let moved = |path: &Path| directory.join(path.file_name().unwrap_or_default());
        Self { socket: moved(&self.socket), mount_socket: moved(&self.mount_socket), ..self.clone() }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
}

impl Identity {
    /// Of this process.
    pub fn of_process() -> Self {
        Self { uid: rustix::process::getuid().as_raw(), euid: rustix::process::geteuid().as_raw() }
    }
}

/// A variable of the caller's own: with borrowed privileges the environment is
/// somebody else's.
fn own_variable(environment: &Environment, who: Identity, name: &str) -> Option<PathBuf> {
    if who.uid == who.euid { environment.get(name).map(PathBuf::from) } else { None }
}

/// Tells why a daemon would be the one, and looks at nothing else.
pub fn kind(environment: &Environment, who: Identity, system_socket: &Path) -> Kind {
    match own_variable(environment, who, "SCTL_SOCKET") {
        Some(_) => Kind::Explicit,
        None if is_installed(system_socket) => Kind::System,
        None => Kind::User,
    }
}

/// Chooses the daemon.
///
/// # Errors
/// Socket paths that do not fit into an address.
pub fn choose(
    environment: &Environment,
    flavour: Flavour,
    who: Identity,
    system_socket: &Path,
) -> Result<Choice, Failure> {
    let variable = |name: &str| own_variable(environment, who, name);
    let cache_parent = flavour.prefixes().iter().find_map(|prefix| variable(&format!("{prefix}CACHEDIR")));
    let kind = kind(environment, who, system_socket);
    let socket = match (kind, variable("SCTL_SOCKET")) {
        (Kind::Explicit, Some(socket)) => absolute(socket)?,
        (Kind::System, _) => system_socket.to_owned(),
        _ => user_directory(environment, who.euid).join("sctl.sock"),
    };
    let home = environment.get("HOME").map(PathBuf::from).filter(|home| kind == Kind::User && home.is_absolute());
    let usual = home.as_ref().map(|home| home.join(".cache/sctl"));
    let unwritable = usual.as_ref().filter(|usual| cache_parent.is_none() && !can_be_written(usual));
    let temporary = unwritable.map(|usual| {
        warning!("Cache disabled - cache location {} is not writable.", usual.display());
        without_runtime_directory(environment, who.euid, Path::new("/tmp"))
    });
    let cache_dir = match (cache_parent, kind) {
        (None, Kind::User) => temporary.as_ref().map(|directory| directory.join("cache")),
        (Some(parent), Kind::User) => Some(absolute(parent)?.join("cache/sctl")),
        (Some(parent), Kind::System | Kind::Explicit) => {
            verbose!("The cache is the daemon's own: {} is not used", parent.display());
            None
        }
        (None, _) => None,
    };
    let record = cache_dir.as_ref().or(usual.as_ref()).map(|cache| cache.join(proc::socket_record()));
    // Each cache has a daemon of its own, that of a borrowed home too.
    let other = cache_dir.clone().or_else(|| usual.filter(|_| home.is_some_and(|home| is_borrowed(&home, who.euid))));
    let named = |name: &str| match &other {
        Some(path) => format!("{name}-{}.sock", short_digest(path)),
        None => format!("{name}.sock"),
    };
    let socket = if other.is_some() { socket.with_file_name(named("sctl")) } else { socket };
    let mount_socket = match variable("SCTL_MOUNT_SOCKET") {
        Some(path) if kind == Kind::Explicit => absolute(path)?,
        _ => socket.with_file_name(named("mount")),
    };
    for path in [&socket, &mount_socket] {
        let len = path.as_os_str().as_bytes().len();
        if len > MAX_SOCKET_PATH {
            return Err(Failure::new(format!("Unable to use the socket {}", path.display()))
                .cause(format!("its path has {len} bytes, more than {MAX_SOCKET_PATH}")));
        }
    }
    Ok(Choice { kind, socket, mount_socket, record, temporary, cache_dir })
}

fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path)
        .map_err(|error| Failure::new(format!("Unable to use the socket {}", path.display())).cause(reason(&error)))
}

/// Whether a cache can be at `path`: whether the caller may write to it, or to
/// the nearest directory above it that exists.
fn can_be_written(path: &Path) -> bool {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let exists = |path: &&Path| path.symlink_metadata().is_ok();
    let nearest = path.ancestors().find(exists);
    nearest.is_some_and(|path| accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok())
}

/// Whether `home` is another directory than the one that the user's account
/// names.
fn is_borrowed(home: &Path, uid: u32) -> bool {
    proc::account(uid).is_ok_and(|account| account.is_some_and(|account| account.home != home.as_os_str().as_bytes()))
}

/// Enough of a path's digest to tell a user's few caches apart.
fn short_digest(path: &Path) -> String {
    Digest::of(path.as_os_str().as_bytes()).as_bytes().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Only a clear "not there" means that no daemon is installed: one that may
/// not be looked at is there.
fn is_installed(socket: &Path) -> bool {
    match std::fs::symlink_metadata(socket) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

/// Directory of the sockets of a user's own daemon.
fn user_directory(environment: &Environment, uid: u32) -> PathBuf {
    let fallback = without_runtime_directory(environment, uid, Path::new("/tmp"));
    let Some(runtime) = environment.get("XDG_RUNTIME_DIR").map(PathBuf::from) else { return fallback };
    // After `su` the variable often names the directory of somebody else.
    let own = std::fs::metadata(&runtime).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
    let directory = runtime.join("sctl");
    let fits = directory.as_os_str().as_bytes().len() + LONGEST_NAME.len() <= MAX_SOCKET_PATH;
    if runtime.is_absolute() && own && fits { directory } else { fallback }
}

/// Where the sockets lie on hosts that give their users no runtime directory:
/// `/tmp/sctl-UID`, unless somebody else sits there, which would otherwise keep
/// this user out for ever; then in the home directory, by host.
fn without_runtime_directory(environment: &Environment, uid: u32, tmp: &Path) -> PathBuf {
    let usual = tmp.join(format!("sctl-{uid}"));
    let taken = std::fs::symlink_metadata(&usual).is_ok_and(|meta| meta.uid() != uid);
    let Some(home) = environment.get("HOME").map(PathBuf::from).filter(|home| taken && home.is_absolute()) else {
        return usual;
    };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let own = home.join(format!(".sctl-{host}"));
    if own.as_os_str().as_bytes().len() + LONGEST_NAME.len() <= MAX_SOCKET_PATH { own } else { usual }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_squatter_in_tmp_keeps_nobody_out() {
        let tmp = tempfile::tempdir().unwrap();
        let uid = own().euid;
        let environment = Environment::of(&[("HOME", "/home/x")]);
        let usual = tmp.path().join(format!("sctl-{uid}"));
        assert_eq!(without_runtime_directory(&environment, uid, tmp.path()), usual);
        std::fs::create_dir(&usual).unwrap();
        assert_eq!(without_runtime_directory(&environment, uid, tmp.path()), usual);
        // Another uid finds its place taken by this one.
        let other = tmp.path().join(format!("sctl-{}", uid + 1));
        std::fs::create_dir(&other).unwrap();
        let chosen = without_runtime_directory(&environment, uid + 1, tmp.path());
        assert!(chosen.starts_with("/home/x"), "{}", chosen.display());
        assert_eq!(without_runtime_directory(&Environment::default(), uid + 1, tmp.path()), other);
    }

    const NOWHERE: &str = "/nonexistent/sctl.sock";

    fn own() -> Identity {
        Identity::of_process()
    }

    #[test]
    fn an_explicit_socket_wins_over_an_installed_one() {
        let dir = tempfile::tempdir().unwrap();
        let installed = dir.path().join("sctl.sock");
        std::fs::write(&installed, "").unwrap();
        let environment = Environment::of(&[("SCTL_SOCKET", "/x/a.sock")]);
        let choice = choose(&environment, Flavour::Sctl, own(), &installed).unwrap();
        assert_eq!((choice.kind, choice.socket.as_path()), (Kind::Explicit, Path::new("/x/a.sock")));
        assert_eq!(choice.mount_socket, Path::new("/x/mount.sock"));
        let borrowed = Identity { uid: own().uid + 1, euid: own().euid };
        assert_eq!(choose(&environment, Flavour::Sctl, borrowed, &installed).unwrap().kind, Kind::System);
        assert_eq!(choose(&environment, Flavour::Sctl, borrowed, Path::new(NOWHERE)).unwrap().kind, Kind::User);
    }

    #[test]
    fn the_runtime_directory_must_be_the_callers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let environment = Environment::of(&[("XDG_RUNTIME_DIR", path)]);
        let choice = choose(&environment, Flavour::Sctl, own(), Path::new(NOWHERE)).unwrap();
        assert_eq!(choice.socket, dir.path().join("sctl/sctl.sock"));
        let other = Identity { uid: own().uid + 1, euid: own().uid + 1 };
        let fallback = format!("/tmp/sctl-{}/sctl.sock", own().uid + 1);
        assert_eq!(
            choose(&environment, Flavour::Sctl, other, Path::new(NOWHERE)).unwrap().socket,
            Path::new(&fallback)
        );
        let none = choose(&Environment::default(), Flavour::Sctl, other, Path::new(NOWHERE)).unwrap();
        assert_eq!(none.socket, Path::new(&fallback));
    }

    #[test]
    fn paths_that_no_address_can_hold_are_refused_by_name() {
        let long = format!("/{}", "x".repeat(107));
        let environment = Environment::of(&[("SCTL_SOCKET", &long)]);
        let failure = choose(&environment, Flavour::Sctl, own(), Path::new(NOWHERE)).unwrap_err();
        assert!(failure.message.contains("xxx") && failure.causes[0].contains("108 bytes"), "{failure}");
    }

    #[test]
    fn another_cache_has_a_daemon_of_its_own() {
        let of = |pairs: &[(&str, &str)], flavour| {
            choose(&Environment::of(pairs), flavour, own(), Path::new(NOWHERE)).unwrap()
        };
        let usual = of(&[], Flavour::Singularity);
        assert_eq!(usual.cache_dir, None);
        let both = [("SINGULARITY_CACHEDIR", "/scratch/s"), ("APPTAINER_CACHEDIR", "/scratch/a")];
        let (s, a) = (of(&both, Flavour::Singularity), of(&both, Flavour::Apptainer));
        assert_eq!(s.cache_dir.as_deref(), Some(Path::new("/scratch/s/cache/sctl")));
        assert_eq!(a.cache_dir.as_deref(), Some(Path::new("/scratch/a/cache/sctl")));
        let sockets = [&usual, &s, &a].map(|choice| [choice.socket.clone(), choice.mount_socket.clone()]);
        let different: std::collections::BTreeSet<_> = sockets.as_flattened().iter().collect();
        assert_eq!(different.len(), 6, "{sockets:?}");
        assert!(sockets.as_flattened().iter().all(|path| path.parent() == usual.socket.parent()));
        // The daemon of the host has its own, and so has one that is named.
        let explicit = of(&[("SINGULARITY_CACHEDIR", "/scratch/s"), ("SCTL_SOCKET", "/x/a.sock")], Flavour::Sctl);
        assert_eq!((explicit.cache_dir, explicit.socket.as_path()), (None, Path::new("/x/a.sock")));
        let borrowed = Identity { uid: own().uid + 1, euid: own().euid };
        let choice = choose(&Environment::of(&both), Flavour::Sctl, borrowed, Path::new(NOWHERE)).unwrap();
        assert_eq!(choice.cache_dir, None);
    }

    #[test]
    fn a_home_that_cannot_be_written_has_its_cache_elsewhere() {
        let home = tempfile::tempdir().unwrap();
        let of = |home: &Path| {
            let environment = Environment::of(&[("HOME", home.to_str().unwrap())]);
            choose(&environment, Flavour::Sctl, own(), Path::new(NOWHERE)).unwrap()
        };
        assert_eq!((of(home.path()).temporary, of(home.path()).cache_dir), (None, None));
        // /proc takes no directories, whoever asks; nor does a missing root.
        assert!(can_be_written(&home.path().join("a/b/c")) && !can_be_written(Path::new("/proc/1/x/y")));
    }
}
