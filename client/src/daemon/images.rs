//! mount.sock: opens a SIF of the cache with one message each way.

use std::{fs::File, os::fd::OwnedFd, path::PathBuf, time::Duration};

use prost::Message as _;
use sctl_proto::{
    MAX_OPEN_MESSAGE,
    v1::{ImageRequest, OpenReply, OpenRequest, open_reply::Status, open_request::What},
};
use sctl_sys::scm;

use super::Daemon;
use crate::{
    failure::{Failure, reason},
    output::debug,
};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A SIF of the cache, open for reading.
#[derive(Debug)]
pub struct OpenedSif {
    /// The file.
    pub file: File,
    /// Where it lies, for display and for variables of the container.
    pub path: PathBuf,
}

impl Daemon<'_> {
    /// Opens an image for which the caller holds a lease: no registry is asked.
    /// `None` means that it has to be pulled.
    ///
    /// # Errors
    /// A daemon that cannot be reached or breaks the protocol.
    pub fn open_leased(&self, reference: &str, platform: &str) -> Result<Option<OpenedSif>, Failure> {
        let image = ImageRequest { reference: reference.to_owned(), platform: platform.to_owned() };
        self.open(What::Image(image))
    }

    /// Opens what a pull handed out a ticket for.
    ///
    /// # Errors
    /// As [`Daemon::open_leased`], and a ticket that is used or too old.
    pub fn open_ticket(&self, ticket: Vec<u8>) -> Result<OpenedSif, Failure> {
        self.open(What::Ticket(ticket))?
            .ok_or_else(|| unable().cause("the daemon no longer knows what it has pulled").hint("try again"))
    }

    fn open(&self, what: What) -> Result<Option<OpenedSif>, Failure> {
        let socket = self.packets()?;
        let failed = |error: std::io::Error| unable().cause(reason(&error));
        scm::set_timeout(&socket, PATIENCE).map_err(failed)?;
        let request = OpenRequest { what: Some(what), ..OpenRequest::default() }.encode_to_vec();
        if request.len() > MAX_OPEN_MESSAGE {
            return Err(unable().cause("the reference is too long"));
        }
        scm::send(&socket, &request, &[]).map_err(failed)?;
        let mut buffer = vec![0; MAX_OPEN_MESSAGE + 1];
        let received = scm::recv(&socket, &mut buffer).map_err(failed)?;
        if received.len == 0 && received.fds.is_empty() {
            return Err(unable().cause("the daemon closed the connection"));
        }
        if received.truncated || received.len > MAX_OPEN_MESSAGE {
            return Err(unable().cause("the daemon sent a message that is too long"));
        }
        let reply = OpenReply::decode(&buffer[..received.len]).map_err(|error| unable().source(&error))?;
        match reply.status() {
            Status::Sif => {
                let file = checked(received.fds)?;
                debug!("opened {} at {}", reply.reference, reply.path);
                Ok(Some(OpenedSif { file, path: PathBuf::from(reply.path) }))
            }
            Status::NotAvailable => Ok(None),
            Status::Busy => Err(unable().cause("too many requests of yours are in flight").hint("try again")),
            Status::BadRequest => Err(unable()
                .cause("the daemon did not understand the request")
                .hint("client and daemon may be of different versions")),
            Status::Unspecified => Err(unable().cause("the daemon sent an unknown answer")),
        }
    }
}

/// Takes the one descriptor of an answer: a regular file, open for reading only.
fn checked(fds: Vec<OwnedFd>) -> Result<File, Failure> {
    let [fd] = <[OwnedFd; 1]>::try_from(fds)
        .map_err(|fds| unable().cause(format!("the daemon sent {} descriptors instead of one", fds.len())))?;
    let file = File::from(fd);
    let regular = file.metadata().is_ok_and(|meta| meta.is_file());
    let read_only = rustix::fs::fcntl_getfl(&file)
        .is_ok_and(|flags| flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::RDONLY);
    if regular && read_only {
        Ok(file)
    } else {
        Err(unable().cause("the daemon sent something else than a file open for reading"))
    }
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
        checked(vec![readable()]).unwrap();
        assert!(checked(vec![]).is_err());
        assert!(checked(vec![readable(), readable()]).is_err());
        assert!(checked(vec![File::options().write(true).open(&path).unwrap().into()]).is_err());
        assert!(checked(vec![File::open(dir.path()).unwrap().into()]).is_err());
    }
}
