//! `SOCK_SEQPACKET` sockets that pass descriptors (`SCM_RIGHTS`).
//!
//! One message is one packet: a length limit is enforced by the kernel's own
//! truncation flag, and a packet never mixes with the next one. Descriptors
//! that arrive are close-on-exec from the first instant; those that a caller
//! of [`recv`] does not want are closed when [`Received`] is dropped.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    },
};

/// Longest path of a Unix socket in bytes: `sun_path` holds 108 with its NUL.
pub const MAX_SOCKET_PATH: usize = 107;

/// Most descriptors that one [`recv`] accepts; the kernel closes the rest.
const MAX_FDS: usize = 8;

/// Most descriptors that one [`send`] takes.
const MAX_SENT: usize = 2;

/// One packet as it arrived.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 when the peer has gone.
    pub len: usize,
    /// The packet was longer than the buffer, or carried more descriptors
    /// than are accepted: what is here is not the whole message.
    pub truncated: bool,
    /// Descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Says how a socket made here behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// Calls wait.
    Yes,
    /// Calls answer `WouldBlock`.
    No,
}

fn flags(blocking: Blocking) -> SocketFlags {
    match blocking {
        Blocking::Yes => SocketFlags::CLOEXEC,
        Blocking::No => SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    }
}

/// Checks that `path` fits into a socket address.
///
/// # Errors
/// `InvalidInput` naming the path and its length.
pub fn check_socket_path(path: &Path) -> io::Result<()> {
    let len = path.as_os_str().as_bytes().len();
    if len > MAX_SOCKET_PATH {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("socket path {} has {len} bytes, more than {MAX_SOCKET_PATH}", path.display()),
        ));
    }
    Ok(())
}

/// Listens for packets at `path`, which must not exist.
///
/// # Errors
/// `InvalidInput` for a path that is too long, `AddrInUse` if it exists.
pub fn listen(path: &Path, backlog: i32, blocking: Blocking) -> io::Result<OwnedFd> {
    check_socket_path(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags(blocking), None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Accepts one connection.
///
/// # Errors
/// As `accept4(2)`; `WouldBlock` if the listener does not block and nobody
/// waits.
pub fn accept(listener: impl AsFd, blocking: Blocking) -> io::Result<OwnedFd> {
    loop {
        match rustix::net::accept_with(&listener, flags(blocking)) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Connects to a listener at `path`.
///
/// # Errors
/// As `connect(2)`: `NotFound`, `ConnectionRefused`, `PermissionDenied`.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    check_socket_path(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Connects as [`connect`], and limits how long that, [`recv`] and [`send`]
/// wait: a listener whose queue is full would keep its callers for ever.
///
/// # Errors
/// As [`connect`]; `WouldBlock` when the time is up.
pub fn connect_within(path: &Path, timeout: std::time::Duration) -> io::Result<OwnedFd> {
    check_socket_path(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_timeout(&socket, timeout)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Two connected packet sockets.
///
/// # Errors
/// As `socketpair(2)`.
pub fn pair(blocking: Blocking) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags(blocking), None)?)
}

/// Limits how long [`recv`] and [`send`] wait on a blocking socket.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_timeout(socket: impl AsFd, timeout: std::time::Duration) -> io::Result<()> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    Ok(())
}

/// Receives one packet into `buffer`.
///
/// # Errors
/// As `recvmsg(2)`. A packet that does not fit is no error here: look at
/// [`Received::truncated`].
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (len, truncated) = receive(&socket, buffer, &mut control)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    Ok(Received { len, truncated, fds })
}

/// One packet: its length, and whether anything of it was cut off.
fn receive(socket: &impl AsFd, buffer: &mut [u8], control: &mut RecvAncillaryBuffer<'_>) -> io::Result<(usize, bool)> {
    let message = loop {
        let iov = &mut [io::IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(socket, iov, control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let truncated = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok((message.bytes.min(buffer.len()), truncated))
}

/// Receives one packet from somebody who has no descriptor to send: those that
/// come all the same are never installed here, and [`Received::truncated`]
/// tells of them.
///
/// Closing a stranger's file can wait for a server of theirs for ever, when
/// that is what its `flush` does.
///
/// # Errors
/// As [`recv`].
pub fn recv_bytes(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let (len, truncated) = receive(&socket, buffer, &mut RecvAncillaryBuffer::default())?;
    Ok(Received { len, truncated, fds: Vec::new() })
}

/// Makes the kernel refuse descriptors that are sent to `socket`, with `EPERM`
/// for the sender. On a listening socket it holds for all that are accepted
/// from then on. Answers whether the kernel can (Linux 6.16 and later).
///
/// A descriptor that has arrived is closed by its receiver, and closing can
/// take as long as the sender likes: a FUSE server that does not answer, a TCP
/// socket that lingers.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn refuse_descriptors(socket: impl AsFd) -> io::Result<bool> {
    /// `SO_PASSRIGHTS` of `<asm-generic/socket.h>`.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let off: libc::c_int = 0;
    // SAFETY: setsockopt(2) reads as many bytes as said from a live local.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        error => Err(error),
    }
}

/// Sends one packet with `fds`, two at most.
///
/// # Errors
/// As `sendmsg(2)`; `BrokenPipe` (never a signal) if the peer has gone;
/// `InvalidInput` for more descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The buffer may have room for more than it was measured for.
    if fds.len() > MAX_SENT || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
    }
    loop {
        let iov = &[io::IoSlice::new(bytes)];
        match rustix::net::sendmsg(&socket, iov, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(sent) => return Err(io::Error::other(format!("sent {sent} of {} bytes of a packet", bytes.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        path::PathBuf,
    };

    use super::*;

    #[test]
    fn a_packet_and_its_descriptor_arrive_together() {
        let (left, right) = pair(Blocking::Yes).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&left, b"take this", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut buffer = [0; 64];
        let received = recv(&right, &mut buffer).unwrap();
        assert_eq!((&buffer[..received.len], received.truncated), (&b"take this"[..], false));
        let [fd] = <[OwnedFd; 1]>::try_from(received.fds).unwrap();
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "arrives close-on-exec");
        std::fs::File::from(fd).write_all(b"x").unwrap();
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"x");
    }

    #[test]
    fn oversized_packets_are_told() {
        let (left, right) = pair(Blocking::Yes).unwrap();
        send(&left, &[7; 100], &[]).unwrap();
        send(&left, &[8; 10], &[]).unwrap();
        let mut buffer = [0; 16];
        let first = recv(&right, &mut buffer).unwrap();
        assert!(first.truncated);
        let second = recv(&right, &mut buffer).unwrap();
        assert_eq!((second.len, second.truncated, buffer[0]), (10, false, 8));
        drop(left);
        assert_eq!(recv(&right, &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn descriptors_nobody_takes_are_closed() {
        let (left, right) = pair(Blocking::Yes).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&left, b"!", &[writer.as_fd()]).unwrap();
        drop(writer);
        drop(recv(&right, &mut [0; 4]).unwrap());
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "the last write end is gone");
    }

    #[test]
    fn two_descriptors_arrive_in_their_order_and_three_are_not_sent() {
        let (left, right) = pair(Blocking::Yes).unwrap();
        let (file, folder) = (std::fs::File::open("/dev/null").unwrap(), std::fs::File::open("/").unwrap());
        send(&left, b"x", &[file.as_fd(), folder.as_fd()]).unwrap();
        let fds = recv(&right, &mut [0; 4]).unwrap().fds;
        let folders: Vec<bool> =
            fds.into_iter().map(|fd| std::fs::File::from(fd).metadata().unwrap().is_dir()).collect();
        assert_eq!(folders, [false, true]);
        let error = send(&left, b"x", &[file.as_fd(); 3]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_gone_peer_is_an_error_and_not_a_signal() {
        let (left, right) = pair(Blocking::Yes).unwrap();
        drop(right);
        assert_eq!(send(&left, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_listener_that_accepts_nobody_keeps_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = listen(&path, 0, Blocking::Yes).unwrap();
        let timeout = std::time::Duration::from_millis(50);
        let waiting: Vec<_> = (0..3).map(|_| connect_within(&path, timeout)).collect();
        assert!(waiting[0].is_ok());
        assert_eq!(waiting[2].as_ref().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let error = recv(waiting[0].as_ref().unwrap(), &mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "nor does one that is silent");
    }

    #[test]
    fn long_paths_are_refused_by_name() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
        let error = connect(&path).unwrap_err();
        assert!(error.to_string().contains("108 bytes"), "{error}");
        assert!(check_socket_path(Path::new(&format!("/tmp/{}", "x".repeat(102)))).is_ok());
    }
}
