//! The daemon's two sockets: made here or inherited from the service manager.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode as FileMode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};

use crate::{Mode, Settings};

/// Connections that the kernel keeps waiting for us.
const BACKLOG: i32 = 512;

/// How long a new daemon waits for one that is leaving.
const LEAVING: Duration = Duration::from_secs(5);

/// Says why the daemon has no sockets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Something could not be made or opened.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another daemon serves this socket.
    #[error("another daemon serves {path}", path = path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something that is no socket.
    #[error("{path} exists and is no socket", path = path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Others could replace the socket.
    #[error("directory {path} is not private: {reason}", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The service manager handed over something unexpected.
    #[error("the service manager passed {reason}")]
    Activation {
        /// What it passed.
        reason: String,
    },
}

/// The listening sockets, and what removes them again.
#[derive(Debug)]
pub struct Sockets {
    /// Stream socket of the gRPC service, non-blocking.
    pub grpc: OwnedFd,
    /// Packet socket that hands out images, non-blocking.
    pub mount: OwnedFd,
    /// Set if we made them: then we also remove them.
    owned: Option<Owned>,
}

#[derive(Debug)]
struct Owned {
    grpc: PathBuf,
    mount: PathBuf,
    mode: u32,
    /// Held as long as we serve: who holds it may replace the sockets.
    _lock: File,
}

impl Sockets {
    /// Takes the sockets that the service manager passed (`inherited`), or
    /// makes them.
    ///
    /// # Errors
    /// [`SocketError`]; notably [`SocketError::InUse`] if somebody answers.
    pub fn open(settings: &Settings, inherited: Vec<OwnedFd>) -> Result<Self, SocketError> {
        if inherited.is_empty() { Self::make(settings) } else { Self::adopt(inherited) }
    }

    /// True if the service manager made the sockets and listens on.
    pub fn are_inherited(&self) -> bool {
        self.owned.is_none()
    }

    fn adopt(inherited: Vec<OwnedFd>) -> Result<Self, SocketError> {
        let (mut grpc, mut mount) = (None, None);
        for fd in inherited {
            let wrong = |reason: &str| SocketError::Activation { reason: reason.to_owned() };
            let family = sockopt::socket_domain(&fd).map_err(|_| wrong("a descriptor that is no socket"))?;
            let kind = sockopt::socket_type(&fd).map_err(|_| wrong("a descriptor that is no socket"))?;
            let listens = sockopt::socket_acceptconn(&fd).unwrap_or(false);
            if family != AddressFamily::UNIX || !listens {
                return Err(wrong("a socket that is no listening Unix socket"));
            }
            rustix::io::ioctl_fionbio(&fd, true).map_err(|errno| wrong(&format!("a socket that fails: {errno}")))?;
            let slot = match kind {
                SocketType::STREAM => &mut grpc,
                SocketType::SEQPACKET => &mut mount,
                _ => return Err(wrong("a socket of neither type stream nor seqpacket")),
            };
            if slot.replace(fd).is_some() {
                return Err(wrong("two sockets of the same type"));
            }
        }
        match (grpc, mount) {
            (Some(grpc), Some(mount)) => {
                for socket in [&grpc, &mount] {
                    refuse_descriptors(socket)
                        .map_err(|error| SocketError::Activation { reason: format!("a socket that fails: {error}") })?;
                }
                Ok(Self { grpc, mount, owned: None })
            }
            _ => Err(SocketError::Activation {
                reason: "one socket, but a stream and a seqpacket socket are needed".to_owned(),
            }),
        }
    }

    fn make(settings: &Settings) -> Result<Self, SocketError> {
        for path in [&settings.socket, &settings.mount_socket] {
            prepare_directory(path, settings)?;
        }
        let lock = take_lock(&settings.socket)?;
        let mode = match settings.mode {
            Mode::System => 0o666,
            Mode::User { .. } => 0o600,
        };
        let owned = Owned { grpc: settings.socket.clone(), mount: settings.mount_socket.clone(), mode, _lock: lock };
        let (grpc, mount) = bind_both(&owned)?;
        Ok(Self { grpc, mount, owned: Some(owned) })
    }

    /// Makes new sockets at the same paths, after [`Sockets::close`] found
    /// that somebody still wants us.
    ///
    /// # Errors
    /// As [`Sockets::open`].
    pub fn reopen(&mut self) -> Result<(), SocketError> {
        if let Some(owned) = &self.owned {
            (self.grpc, self.mount) = bind_both(owned)?;
        }
        Ok(())
    }

    /// Lets nobody connect any more; those who have can still be accepted.
    /// Does nothing to inherited sockets: the service manager's next daemon
    /// serves whoever waits on them.
    pub fn close(&self) {
        if self.owned.is_some() {
            for socket in [&self.grpc, &self.mount] {
                // For a listening Unix socket it means that connect(2) is
                // refused. If it failed, a client would merely see a daemon
                // that leaves.
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
            }
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Some(owned) = &self.owned {
            // A left-over file does no harm: nobody answers on it, so the
            // next daemon replaces it.
            let _ = fs::remove_file(&owned.grpc);
            let _ = fs::remove_file(&owned.mount);
        }
    }
}

fn prepare_directory(socket: &Path, settings: &Settings) -> Result<(), SocketError> {
    let Some(dir) = socket.parent() else { return Ok(()) };
    let io = |what| move |source| SocketError::Io { what, path: dir.to_owned(), source };
    let mode = if settings.mode.is_user() { 0o700 } else { 0o755 };
    match fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => {
            // The process's umask may have taken bits away.
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(dir, permissions).map_err(io("set the mode of"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io("make directory")(error)),
    }
    let Mode::User { uid } = settings.mode else { return Ok(()) };
    if !settings.own_socket_dir {
        return Ok(());
    }
    // Under /tmp anybody could have made it first.
    let meta = fs::symlink_metadata(dir).map_err(io("inspect"))?;
    let reason = if !meta.is_dir() {
        "it is no directory".to_owned()
    } else if meta.uid() != uid {
        format!("it belongs to uid {}", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        format!("its mode is {:03o}, not 700", meta.mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(SocketError::Directory { path: dir.to_owned(), reason })
}

/// Takes the right to serve `socket`. A daemon that is just leaving is waited
/// for; one that answers is an error at once.
fn take_lock(socket: &Path) -> Result<File, SocketError> {
    let path = socket.with_extension("lock");
    let io = |what| {
        let path = path.clone();
        move |errno: rustix::io::Errno| SocketError::Io { what, path, source: errno.into() }
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::open(&path, flags, FileMode::from_raw_mode(0o600)).map_err(io("open"))?;
    let give_up = Instant::now() + LEAVING;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock.into()),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(io("lock")(errno)),
        }
        if Instant::now() >= give_up || UnixStream::connect(socket).is_ok() {
            return Err(SocketError::InUse { path: socket.to_owned() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn bind_both(owned: &Owned) -> Result<(OwnedFd, OwnedFd), SocketError> {
    let grpc = bind(&owned.grpc, SocketType::STREAM, owned.mode)?;
    let mount = bind(&owned.mount, SocketType::SEQPACKET, owned.mode)?;
    Ok((grpc, mount))
}

/// Nobody has a descriptor to send to the daemon. Where the kernel cannot refuse
/// them, those that come are closed, which may take as long as its sender likes.
fn refuse_descriptors(socket: &OwnedFd) -> io::Result<()> {
    if !sctl_sys::scm::refuse_descriptors(socket)? {
        tracing::debug!("the kernel does not refuse descriptors that clients send (Linux 6.16 does)");
    }
    Ok(())
}

/// Binds a listening socket at `path`, which may hold a socket that nobody
/// answers on. The caller holds the lock.
fn bind(path: &Path, kind: SocketType, mode: u32) -> Result<OwnedFd, SocketError> {
    let io = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None);
    let address = SocketAddrUnix::new(path).map_err(|errno| io("use socket path")(errno.into()))?;
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Ok(_) => {
            let probe = make().map_err(|errno| io("make a socket for")(errno.into()))?;
            match rustix::net::connect(&probe, &address) {
                // Also with a full backlog somebody is there.
                Ok(()) | Err(rustix::io::Errno::AGAIN) => {
                    return Err(SocketError::InUse { path: path.to_owned() });
                }
                Err(_) => fs::remove_file(path).map_err(io("remove stale socket"))?,
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("inspect")(error)),
    }
    let socket = make().map_err(|errno| io("make a socket for")(errno.into()))?;
    rustix::net::bind(&socket, &address).map_err(|errno| io("bind")(errno.into()))?;
    // Before listen(2), so that nobody who may connect is refused meanwhile.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(io("set the mode of"))?;
    refuse_descriptors(&socket).map_err(io("guard"))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| io("listen on")(errno.into()))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Config;

    fn settings(dir: &Path, own: bool) -> Settings {
        Settings {
            mode: Mode::User { uid: rustix::process::geteuid().as_raw() },
            cache_dir: dir.join("cache"),
            socket: dir.join("sctl.sock"),
            mount_socket: dir.join("mount.sock"),
            job_socket: None,
            own_socket_dir: own,
            idle: None,
            config: Config::default(),
        }
    }

    #[test]
    fn sockets_are_private_and_go_with_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), false);
        let sockets = Sockets::open(&settings, Vec::new()).unwrap();
        for path in [&settings.socket, &settings.mount_socket] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(matches!(Sockets::open(&settings, Vec::new()), Err(SocketError::InUse { .. })), "somebody answers");
        drop(sockets);
        assert!(!settings.socket.exists() && !settings.mount_socket.exists());
    }

    #[test]
    fn stale_sockets_are_replaced_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), false);
        drop(std::os::unix::net::UnixListener::bind(&settings.socket).unwrap());
        assert!(settings.socket.exists());
        drop(Sockets::open(&settings, Vec::new()).unwrap());
        fs::write(&settings.socket, "precious").unwrap();
        assert!(matches!(Sockets::open(&settings, Vec::new()), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&settings.socket).unwrap(), "precious");
    }

    #[test]
    fn closing_refuses_and_reopening_serves_again() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), false);
        let mut sockets = Sockets::open(&settings, Vec::new()).unwrap();
        let waiting = UnixStream::connect(&settings.socket).unwrap();
        sockets.close();
        assert!(UnixStream::connect(&settings.socket).is_err());
        sctl_sys::scm::accept(&sockets.grpc, sctl_sys::scm::Blocking::No).expect("who came before is not lost");
        drop(waiting);
        sockets.reopen().unwrap();
        UnixStream::connect(&settings.socket).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(&dir.path().join("sctl"), true);
        drop(Sockets::open(&settings, Vec::new()).unwrap());
        fs::set_permissions(dir.path().join("sctl"), PermissionsExt::from_mode(0o770)).unwrap();
        let error = Sockets::open(&settings, Vec::new()).unwrap_err();
        assert!(error.to_string().contains("mode is 770"), "{error}");
    }

    #[test]
    fn inherited_sockets_are_told_apart_by_type() {
        let dir = tempfile::tempdir().unwrap();
        let stream = bind(&dir.path().join("a"), SocketType::STREAM, 0o600).unwrap();
        let packet = bind(&dir.path().join("b"), SocketType::SEQPACKET, 0o600).unwrap();
        let sockets = Sockets::adopt(vec![packet, stream]).unwrap();
        assert_eq!(sockopt::socket_type(&sockets.grpc).unwrap(), SocketType::STREAM);
        assert!(sockets.are_inherited());
        let alone = bind(&dir.path().join("c"), SocketType::STREAM, 0o600).unwrap();
        assert!(Sockets::adopt(vec![alone]).is_err());
        assert!(Sockets::adopt(vec![File::open("/dev/null").unwrap().into()]).is_err());
    }
}
