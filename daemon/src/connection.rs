//! Accepted connections, with who is at their other end.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use sctl_engine::Caller;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use crate::{Mode, activity::Connection, subordinate::Subordinates};

/// Decides who a peer is and whether it may talk to us at all.
#[derive(Debug)]
pub struct Admission {
    mode: Mode,
    admin_gid: Option<u32>,
    subordinates: Subordinates,
}

/// Says why a peer is sent away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionError {
    /// The kernel does not tell who it is.
    #[error("cannot read the peer's credentials")]
    Credentials {
        /// Why.
        source: io::Error,
    },
    /// A daemon in user mode serves one user.
    #[error("uid {uid} is not the user whom this daemon serves")]
    OtherUser {
        /// Who it is.
        uid: u32,
    },
}

impl Admission {
    /// Admits everybody in system mode and the owner in user mode. Members of
    /// `admin_gid` are administrators in system mode, as root is.
    pub fn new(mode: Mode, admin_gid: Option<u32>) -> Self {
        Self { mode, admin_gid, subordinates: Subordinates::of_host() }
    }

    /// Tells who is at the other end of `socket`.
    ///
    /// # Errors
    /// [`AdmissionError`] if the peer is not to be served.
    pub fn admit(&self, socket: impl AsFd) -> Result<Caller, AdmissionError> {
        let peer = sctl_sys::peer::credentials(&socket).map_err(|source| AdmissionError::Credentials { source })?;
        let (uid, gid) = (peer.uid, peer.gid);
        match self.mode {
            Mode::User { uid: owner } if owner == uid => Ok(Caller { uid, gid, account: uid, admin: true }),
            Mode::User { .. } => Err(AdmissionError::OtherUser { uid }),
            Mode::System => {
                let member = |gid| {
                    peer.gid == gid
                        // No answer means no membership: administrators are
                        // few, and root needs none.
                        || sctl_sys::peer::groups(&socket).is_ok_and(|groups| groups.contains(&gid))
                };
                let account = self.subordinates.account(uid);
                Ok(Caller { uid, gid, account, admin: uid == 0 || self.admin_gid.is_some_and(member) })
            }
        }
    }
}

/// Looks up the number of a group in `/etc/group`.
///
/// # Errors
/// If the file cannot be read. A group that is not in it is `None`.
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    let text = std::fs::read_to_string("/etc/group")?;
    Ok(text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    }))
}

/// Bytes that every client of HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE_LEN: usize = 24;

/// A gRPC connection that counts as activity and knows its caller.
#[derive(Debug)]
pub struct Accepted {
    stream: UnixStream,
    caller: Caller,
    /// Until the preface has come.
    opening: Option<Opening>,
    _counted: Connection,
}

/// A connection whose client has not said its first words.
#[derive(Debug)]
struct Opening {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Accepted {
    /// Wraps an accepted socket, which ends if its client does not begin within
    /// `patience`: who only connects would hold a place for ever.
    pub fn new(stream: UnixStream, caller: Caller, counted: Connection, patience: Duration) -> Self {
        let opening = Opening { missing: PREFACE_LEN, deadline: Box::pin(sleep(patience)) };
        Self { stream, caller, opening: Some(opening), _counted: counted }
    }
}

impl Connected for Accepted {
    type ConnectInfo = CallerInfo;

    fn connect_info(&self) -> CallerInfo {
        CallerInfo(self.caller)
    }
}

/// The caller, as requests carry it in their extensions.
#[derive(Debug, Clone, Copy)]
pub struct CallerInfo(pub Caller);

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(opening) = &mut self.opening {
            opening.missing = opening.missing.saturating_sub(buf.filled().len() - before);
            if opening.missing == 0 {
                self.opening = None;
            } else if polled.is_pending() && opening.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        polled
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_daemon_serves_its_owner_only() {
        let (left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let caller = Admission::new(Mode::User { uid }, None).admit(&left).unwrap();
        assert_eq!((caller.uid, caller.admin), (uid, true));
        let error = Admission::new(Mode::User { uid: uid + 1 }, None).admit(&left).unwrap_err();
        assert!(matches!(error, AdmissionError::OtherUser { .. }));
    }

    #[test]
    fn root_and_group_members_are_administrators_of_the_system() {
        let (left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
        let gid = rustix::process::getegid().as_raw();
        assert!(Admission::new(Mode::System, Some(gid)).admit(&left).unwrap().admin);
        let stranger = Admission::new(Mode::System, None).admit(&left).unwrap();
        assert_eq!(stranger.admin, rustix::process::geteuid().is_root());
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(group_id("no such group").unwrap(), None);
    }
}
