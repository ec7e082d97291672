//! mount.sock: opens a SIF of the cache, and a mount of it, with one message
//! each way.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use prost::Message as _;
use rustix::fs::StatVfsMountFlags;
use sctl_proto::{
    MAX_OPEN_MESSAGE,
    v1::{DeliveredRequest, ImageRequest, MountWish, OpenReply, OpenRequest, open_reply::Status, open_request::What},
};
use sctl_sys::{mount, scm};

use super::{Daemon, Kind};
use crate::{
    failure::{Failure, reason},
    output::debug,
};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long it may take where there is another way to go on.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);

/// `SQUASHFS_MAGIC` of `<linux/magic.h>`.
const SQUASHFS_MAGIC: u64 = 0x7371_7368;

/// What to ask for besides the SIF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    SifOnly,
    /// A read-only mount.
    Mount,
    /// A mount that an overlay can make writable: the image's root is the
    /// caller.
    WritableMount,
}

impl From<Wish> for MountWish {
    fn from(wish: Wish) -> Self {
        match wish {
            Wish::SifOnly => Self::Unspecified,
            Wish::Mount => Self::Shared,
            Wish::WritableMount => Self::Private,
        }
    }
}

/// A SIF of the cache, open for reading.
#[derive(Debug)]
pub struct OpenedSif {
    /// The file.
    pub file: File,
    /// Where it lies, for display and for variables of the container.
    pub path: PathBuf,
    /// Its file system as a detached mount, or why there is none; nothing if
    /// none was wished for.
    pub mount: Option<Result<OwnedFd, String>>,
}

/// A copy of an image of the cache that the caller got earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredImage {
    /// Reference that it was pulled by.
    pub reference: String,
    /// Platform that was asked for; empty means the daemon's own.
    pub platform: String,
    /// Names the image in the cache.
    pub image_key: String,
}

impl Daemon<'_> {
    /// Opens an image for which the caller holds a lease: no registry is asked.
    /// `None` means that it has to be pulled.
    ///
    /// # Errors
    /// A daemon that cannot be reached or breaks the protocol.
    pub fn open_leased(&self, reference: &str, platform: &str, wish: Wish) -> Result<Option<OpenedSif>, Failure> {
        let image = ImageRequest { reference: reference.to_owned(), platform: platform.to_owned() };
        exchange(&self.packets(PATIENCE)?, What::Image(image), wish)
    }

    /// Opens what a pull handed out a ticket for.
    ///
    /// # Errors
    /// As [`Daemon::open_leased`], and a ticket that is used or too old.
    pub fn open_ticket(&self, ticket: Vec<u8>, wish: Wish) -> Result<OpenedSif, Failure> {
        exchange(&self.packets(PATIENCE)?, What::Ticket(ticket), wish)?
            .ok_or_else(|| unable().cause("the daemon no longer knows what it has pulled").hint("try again"))
    }

    /// Opens the cache's own file of an image that the caller has a copy of.
    /// Only a daemon of the whole host can give it a mount, so no other is
    /// asked, and none is started.
    ///
    /// # Errors
    /// Why the caller's copy has to do.
    pub fn open_delivered(&self, image: DeliveredImage, wish: Wish) -> Result<OpenedSif, String> {
        if self.kind() == Kind::User {
            return Err("only a daemon of the whole host mounts images".to_owned());
        }
        let DeliveredImage { reference, platform, image_key } = image;
        let what = What::Delivered(DeliveredRequest { reference, platform, image_key });
        match self.packets(SHORT_PATIENCE).and_then(|socket| exchange(&socket, what, wish)) {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) => Err("the image is not in the cache, or not yours to use".to_owned()),
            Err(failure) => Err(failure.to_string()),
        }
    }
}

fn exchange(socket: &OwnedFd, what: What, wish: Wish) -> Result<Option<OpenedSif>, Failure> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => unable().cause("the daemon does not answer").hint("try again"),
        io::ErrorKind::ConnectionReset => unable().cause("the daemon closed the connection").hint("try again"),
        _ => unable().cause(reason(&error)),
    };
    let request = OpenRequest { what: Some(what), mount: MountWish::from(wish).into() }.encode_to_vec();
    if request.len() > MAX_OPEN_MESSAGE {
        return Err(unable().cause("the reference is too long"));
    }
    match scm::send(socket, &request, &[]) {
        // A daemon that is too busy says so, and leaves before it is asked.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
        _ => {}
    }
    let mut buffer = [0; MAX_OPEN_MESSAGE + 1];
    let received = scm::recv(socket, &mut buffer).map_err(failed)?;
    if received.len == 0 && received.fds.is_empty() {
        return Err(unable().cause("the daemon closed the connection"));
    }
    if received.truncated || received.len > MAX_OPEN_MESSAGE {
        return Err(unable().cause("the daemon sent a message that is too long"));
    }
    let reply = OpenReply::decode(&buffer[..received.len]).map_err(|error| unable().source(&error))?;
    match reply.status() {
        Status::Sif => {
            let (file, mounted) = checked(received.fds, reply.mounted)?;
            debug!("opened {} at {}", reply.reference, reply.path);
            let mount = (wish != Wish::SifOnly).then(|| mounted.ok_or_else(|| why_not(reply.no_mount)));
            Ok(Some(OpenedSif { file, path: PathBuf::from(reply.path), mount }))
        }
        Status::NotAvailable => Ok(None),
        Status::Busy => Err(unable().cause("too many requests of yours are in flight").hint("try again")),
        Status::BadRequest => Err(unable()
            .cause("the daemon did not understand the request")
            .hint("client and daemon may be of different versions")),
        Status::Unspecified => Err(unable().cause("the daemon sent an unknown answer")),
    }
}

/// A daemon of an older version knows of no mounts and gives no reason.
fn why_not(reason: String) -> String {
    if reason.is_empty() { "the daemon mounts no images".to_owned() } else { reason }
}

/// Takes the descriptors of an answer: a regular file, open for reading only,
/// and a mount if the answer says so.
fn checked(fds: Vec<OwnedFd>, mounted: bool) -> Result<(File, Option<OwnedFd>), Failure> {
    let (sent, promised) = (fds.len(), 1 + usize::from(mounted));
    let mut fds = fds.into_iter();
    let (Some(fd), true) = (fds.next(), sent == promised) else {
        return Err(unable().cause(format!("the daemon sent {sent} descriptors instead of {promised}")));
    };
    let file = File::from(fd);
    let regular = file.metadata().is_ok_and(|meta| meta.is_file());
    let read_only = rustix::fs::fcntl_getfl(&file)
        .is_ok_and(|flags| flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::RDONLY);
    if !regular || !read_only {
        return Err(unable().cause("the daemon sent something else than a file open for reading"));
    }
    let mount = fds.next();
    match mount.as_ref().map(is_image_mount) {
        Some(false) => Err(unable().cause("the daemon sent something else than a read-only mount of an image")),
        Some(true) | None => Ok((file, mount)),
    }
}

/// Whether this is a mount as the daemon promises it. It is not trusted any
/// further for that: what runs in it has no privileges to lose.
fn is_image_mount(mount: impl AsFd) -> bool {
    // The type's own type differs between architectures; the magic has 32 bits.
    let is_squashfs = rustix::fs::fstatfs(&mount).is_ok_and(|found| found.f_type as u64 == SQUASHFS_MAGIC);
    let restricted = StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    let is_restricted = rustix::fs::fstatvfs(&mount).is_ok_and(|found| found.f_flag.contains(restricted));
    is_squashfs && is_restricted && mount::is_mount_root(&mount).unwrap_or(false)
}

fn unable() -> Failure {
    Failure::new("Unable to open the image in the cache")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_file_open_for_reading_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "x").unwrap();
        let readable = || OwnedFd::from(File::open(&path).unwrap());
        assert!(checked(vec![readable()], false).unwrap().1.is_none());
        assert!(checked(vec![], false).is_err());
        assert!(checked(vec![readable(), readable()], false).is_err());
        assert!(checked(vec![readable()], true).is_err());
        assert!(checked(vec![File::options().write(true).open(&path).unwrap().into()], false).is_err());
        assert!(checked(vec![File::open(dir.path()).unwrap().into()], false).is_err());
    }

    #[test]
    fn what_is_no_mount_of_an_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "x").unwrap();
        // A directory of the host, the root of a mount of the host, a file.
        for second in [dir.path(), std::path::Path::new("/proc"), &path] {
            let fds = vec![File::open(&path).unwrap().into(), File::open(second).unwrap().into()];
            let failure = checked(fds, true).unwrap_err();
            assert!(failure.causes[0].contains("read-only mount of an image"), "{}: {failure}", second.display());
        }
    }

    #[test]
    fn a_daemon_without_words_is_quoted_so() {
        assert_eq!(why_not("no loop devices".to_owned()), "no loop devices");
        assert_eq!(why_not(String::new()), "the daemon mounts no images");
    }
}
