//! How a broker works: settings that come from the daemon's configuration.

use std::{io, path::PathBuf, time::Duration};

use sctl_common::{Compression, Limits};

use crate::{Failure, job::protocol::Base64, registry::Proxies};

/// How jobs reach registries: the daemon's settings, never a request's.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Proxies.
    pub proxies: Proxies,
    /// Certificates (PEM) that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
}

/// The service user that jobs run as in system mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobUser {
    /// Its user id, never 0.
    pub uid: u32,
    /// Its group id, never 0.
    pub gid: u32,
}

impl JobUser {
    /// Looks `name` up in `/etc/passwd`, where service users are.
    ///
    /// # Errors
    /// If there is no such user, or if it is root.
    pub fn lookup(name: &str) -> io::Result<Self> {
        Self::find(&std::fs::read_to_string("/etc/passwd")?, name)
    }

    fn find(passwd: &str, name: &str) -> io::Result<Self> {
        let found = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            match fields[..] {
                [user, _, uid, gid, ..] if user == name => Some((uid.parse().ok()?, gid.parse().ok()?)),
                _ => None,
            }
        });
        match found {
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("user {name:?} does not exist"))),
            Some((0, _) | (_, 0)) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, format!("user {name:?} has root's uid or gid")))
            }
            Some((uid, gid)) => Ok(Self { uid, gid }),
        }
    }
}

/// How a broker works.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Directory of the cache.
    pub cache_dir: PathBuf,
    /// Serves one user only.
    pub user_mode: bool,
    /// Compressor of images that name none.
    pub compression: Compression,
    /// Bytes of a squashfs block.
    pub block_size: u32,
    /// Keep layer blobs after they were packed.
    pub keep_blobs: bool,
    /// A pull that would leave less of the disk free is refused.
    pub min_free_percent: u8,
    /// How long an image is used without asking its registry again.
    pub lease: Duration,
    /// Layers that are fetched and packed at the same time.
    pub max_layer_jobs: usize,
    /// Pulls of one user at the same time.
    pub max_pulls_per_user: usize,
    /// A layer that comes more slowly over minutes is given up, so that its
    /// place is free for others; 0 means never.
    pub min_bytes_per_second: u64,
    /// Compressor threads of one job; 0 means one for each core.
    pub threads: usize,
    /// Hard limits on images.
    pub limits: Limits,
    /// Whom jobs run as; none means as the broker itself, or as the launcher.
    pub job_user: Option<JobUser>,
    /// Socket of a launcher that starts the jobs ([`crate::job::launcher`]);
    /// none means that the broker does.
    pub job_socket: Option<PathBuf>,
    /// How jobs reach registries.
    pub network: Network,
}

impl BrokerOptions {
    /// Says whether a broker could work with these options, as far as they
    /// tell without opening the cache.
    ///
    /// # Errors
    /// If a certificate file cannot be read.
    pub fn check(&self) -> Result<(), Failure> {
        self.read_ca_files().map(drop)
    }

    /// Contents of [`Network::ca_files`].
    pub(super) fn read_ca_files(&self) -> Result<Vec<Base64>, Failure> {
        let read = |path: &PathBuf| match std::fs::read(path) {
            Ok(pem) => Ok(Base64(pem)),
            Err(error) => Err(Failure::io(format!("cannot read the certificates in {}", path.display()), &error)),
        };
        self.network.ca_files.iter().map(read).collect()
    }

    /// Compressor threads of one job.
    pub(crate) fn job_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_never_run_as_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\nsctl:x:990:980::/:/bin/false\ntoor:x:7:0::/:/bin/sh\nbroken:x:a:b\n";
        assert_eq!(JobUser::find(passwd, "sctl").unwrap(), JobUser { uid: 990, gid: 980 });
        for name in ["root", "toor", "broken", "nobody", ""] {
            assert!(JobUser::find(passwd, name).is_err(), "accepted {name:?}");
        }
    }
}
