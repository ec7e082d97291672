//! The daemon as the client sees it: which one, how to reach it, what to ask.
//!
//! The client is synchronous. What speaks gRPC runs on a current-thread
//! runtime that [`block_on`] makes and drops, because a process with two
//! threads may not enter a new user namespace.

mod choose;
mod images;
mod pull;
mod rpc;
mod start;

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

pub use choose::{Choice, Kind};
pub use images::{DeliveredImage, OpenedSif, Wish};
pub use pull::{Order, Reporter};
pub use rpc::{block_on, connect, rpc_failure};
use sctl_sys::{peer, scm};

use self::choose::{Identity, SYSTEM_SOCKET};
use crate::{
    cli::Environment,
    failure::{Failure, reason},
    flavour::Flavour,
};

/// The daemon that answers this caller.
#[derive(Debug)]
pub struct Daemon<'a> {
    choice: Choice,
    environment: &'a Environment,
}

impl<'a> Daemon<'a> {
    /// Chooses the daemon; nothing is connected yet.
    ///
    /// # Errors
    /// Socket paths that cannot be used.
    pub fn choose(flavour: Flavour, environment: &'a Environment) -> Result<Self, Failure> {
        let choice = choose::choose(environment, flavour, Identity::of_process(), Path::new(SYSTEM_SOCKET))?;
        Ok(Self { choice: running(choice), environment })
    }

    /// The same, unless it would be the caller's own, which mounts nothing: then
    /// neither its cache nor its sockets are looked at.
    pub fn choose_to_mount(flavour: Flavour, environment: &'a Environment) -> Option<Self> {
        match choose::kind(environment, Identity::of_process(), Path::new(SYSTEM_SOCKET)) {
            Kind::User => None,
            // A socket that cannot be used matters to those only who need it.
            Kind::Explicit | Kind::System => Self::choose(flavour, environment).ok(),
        }
    }

    /// Why this daemon.
    pub fn kind(&self) -> Kind {
        self.choice.kind
    }

    /// Connects to the gRPC socket and checks who is there.
    ///
    /// # Errors
    /// A daemon that does not answer, cannot be started or is not trusted.
    pub fn stream(&self) -> Result<UnixStream, Failure> {
        self.connect(&self.choice.socket, |path| {
            // Says the length that is wrong, where std does not.
            scm::check_socket_path(path)?;
            UnixStream::connect(path)
        })
    }

    /// Connects to mount.sock and checks who is there. Nothing on the socket
    /// waits longer than `patience`.
    ///
    /// # Errors
    /// As [`Daemon::stream`].
    pub fn packets(&self, patience: Duration) -> Result<OwnedFd, Failure> {
        self.connect(&self.choice.mount_socket, |path| scm::connect_within(path, patience))
    }

    fn connect<T: AsFd>(&self, path: &Path, open: impl Fn(&Path) -> io::Result<T>) -> Result<T, Failure> {
        if self.choice.kind == Kind::User
            && let Some(directory) = path.parent()
            && directory.symlink_metadata().is_ok()
        {
            // In a directory of somebody else's, the socket may be a link to
            // one of root's daemons: trusted by its peer, but not ours.
            start::check(directory)?;
        }
        let socket = match open(path) {
            Ok(socket) => socket,
            Err(error) if self.choice.kind == Kind::User && is_absence(&error) => {
                // Both sockets appear together, but a daemon that answers on
                // one only is not ready.
                let answers = || {
                    UnixStream::connect(&self.choice.socket).is_ok() && scm::connect(&self.choice.mount_socket).is_ok()
                };
                start::ensure(&self.choice, self.environment, &answers)?;
                open(path).map_err(|error| self.silent(path, &error))?
            }
            Err(error) => return Err(self.silent(path, &error)),
        };
        check_peer(&socket, path)?;
        Ok(socket)
    }

    /// A daemon that does not answer. There is no other way to go on, because
    /// a second daemon would have a cache and rules of its own.
    fn silent(&self, path: &Path, error: &io::Error) -> Failure {
        let failure = Failure::new(format!("Unable to reach the image daemon at {}", path.display()));
        let failure = match error.kind() {
            io::ErrorKind::WouldBlock => failure.cause("it accepts no connection"),
            _ => failure.cause(reason(error)),
        };
        match self.choice.kind {
            Kind::Explicit => failure.hint("SCTL_SOCKET names this socket; unset it to use the default daemon"),
            Kind::System => failure
                .hint("it is installed on this host: see `systemctl status sctld.socket`, or tell its administrator"),
            Kind::User => failure.hint("try again; `-d` shows more"),
        }
    }
}

/// Where a daemon of the caller's own uses that cache already: two would shut
/// each other out.
fn running(choice: Choice) -> Choice {
    let answers = |choice: &Choice| UnixStream::connect(&choice.socket).is_ok();
    let Some(record) = choice.record.as_ref().filter(|_| !answers(&choice)) else { return choice };
    // Gone with its daemon, usually.
    let Ok(socket) = std::fs::read_link(record) else { return choice };
    let directory = socket.parent().filter(|directory| start::check(directory).is_ok());
    directory.map(|directory| choice.moved_to(directory)).filter(answers).unwrap_or(choice)
}

/// Says whether nobody listens, as opposed to somebody who cannot be reached.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Nothing private goes to a daemon that is neither root's nor the caller's.
fn check_peer(socket: &impl AsFd, path: &Path) -> Result<(), Failure> {
    let distrust = |why: String| {
        Failure::new(format!("The daemon at {} cannot be trusted", path.display()))
            .cause(why)
            .hint("remove the socket if it is yours, or tell the administrator of this host")
    };
    let credentials = peer::credentials(socket).map_err(|error| distrust(reason(&error)))?;
    let own = rustix::process::geteuid().as_raw();
    if is_trusted(credentials.uid, own) {
        Ok(())
    } else {
        Err(distrust(format!("it runs as uid {}, which is neither root nor you (uid {own})", credentials.uid)))
    }
}

const fn is_trusted(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_caller_are_trusted() {
        for (peer, own, trusted) in [(0, 5, true), (5, 5, true), (6, 5, false), (5, 0, false), (65534, 5, false)] {
            assert_eq!(is_trusted(peer, own), trusted, "{peer} {own}");
        }
        let (left, _right) = UnixStream::pair().unwrap();
        check_peer(&left, Path::new("/x")).unwrap();
    }

    #[test]
    fn a_named_daemon_that_is_silent_is_an_error_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("a.sock");
        let environment = Environment::of(&[("SCTL_SOCKET", socket.to_str().unwrap())]);
        let daemon = Daemon::choose(Flavour::Sctl, &environment).unwrap();
        let failure = daemon.stream().unwrap_err();
        assert!(failure.message.starts_with("Unable to reach the image daemon at "), "{failure}");
        assert_eq!(failure.causes, ["No such file or directory"]);
        assert!(failure.hint.unwrap().contains("SCTL_SOCKET"));
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert_eq!(daemon.stream().unwrap_err().causes, ["Connection refused"]);
    }
}
