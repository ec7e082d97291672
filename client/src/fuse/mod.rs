//! Serves a squashfs over FUSE in the caller's own namespaces.
//!
//! The server is a process of its own. It is started after the user namespace
//! and before the mount namespace of the container: so it sits outside of the
//! container, and the mount dies with the last process inside. Then the
//! server's reads fail, and it ends. It keeps nothing of its caller's: no
//! terminal, no standard stream, no working directory, no capability.
//!
//! The launcher holds the other end of a socket until the image is mounted:
//! if it dies before, the server ends too.

mod filesystem;
mod nodes;

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::FileExt as _, net::UnixStream},
    },
};

use fuser::{Config, Session, SessionACL};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    process::{DumpableBehavior, Pid, WaitOptions},
};
use sctl_squashfs::reader::{ReadAt, Reader, ReaderOptions};
use sctl_sys::{
    caps,
    mount::{self, MountAttributes},
    proc::{self, Fork},
};

use crate::failure::Failure;
use filesystem::SquashfsServer;

/// Decoded blocks that a server keeps.
const CACHE: ReaderOptions = ReaderOptions { cache_bytes: 64 << 20, metadata_cache_bytes: 16 << 20 };

/// Most threads that answer the kernel.
const MAX_THREADS: usize = 4;

/// Signals that are meant for the payload: keys of a terminal, its hanging up,
/// and a batch system's notice that time is short. The payload may go on
/// after them, and needs its files.
const NOT_OURS: [libc::c_int; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGTSTP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
];

/// A part of an open file that holds a squashfs.
#[derive(Debug)]
pub struct Partition {
    file: File,
    offset: u64,
    len: u64,
}

impl Partition {
    /// `len` bytes of `file` from `offset` on.
    pub fn new(file: File, offset: u64, len: u64) -> Self {
        Self { file, offset, len }
    }
}

impl ReadAt for Partition {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let inside = offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.len);
        let start = self.offset.checked_add(offset).filter(|_| inside).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.read_exact_at(buf, start)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// How files are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerOptions {
    /// User and group that uid 0 and gid 0 of the image are shown as.
    pub root_is: Option<(u32, u32)>,
}

/// A server that waits for its mount.
#[derive(Debug)]
pub struct Server {
    device: OwnedFd,
    control: UnixStream,
    /// The process that started the server and ends at once.
    starter: Option<Pid>,
}

/// What the server says when it has opened the image.
const READY: u8 = 0;

impl Server {
    /// Starts the server. The calling process must have a single thread, and
    /// be in the user namespace that will own the mount.
    ///
    /// # Errors
    /// A [`Failure`] that says what is missing.
    pub fn start(partition: Partition, options: ServerOptions) -> Result<Self, Failure> {
        let device = open_device()?;
        let fail = |error: io::Error| Failure::new("Unable to start the FUSE server").source(&error);
        let (control, theirs) = UnixStream::pair().map_err(fail)?;
        match proc::fork().map_err(fail)? {
            Fork::Child => {
                // Forked twice, so that the payload has no child that it does
                // not know of.
                let code = match proc::fork() {
                    Ok(Fork::Child) => {
                        drop(control);
                        serve(partition, options, device, theirs)
                    }
                    Ok(Fork::Parent(_)) => 0,
                    Err(_) => 1,
                };
                proc::exit_now(code)
            }
            Fork::Parent(starter) => Ok(Self { device, control, starter: Some(starter) }),
        }
    }

    /// Waits for the process that started the server; only its parent can.
    ///
    /// # Errors
    /// A [`Failure`] if there is no server.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let fail = |error: io::Error| Failure::new("Unable to start the FUSE server").source(&error);
        let Some(starter) = self.starter.take() else { return Ok(()) };
        loop {
            return match rustix::process::waitpid(Some(starter), WaitOptions::empty()) {
                Err(Errno::INTR) => continue,
                Err(errno) => Err(fail(errno.into())),
                Ok(Some((_, status))) if status.exit_status() == Some(0) => Ok(()),
                Ok(_) => Err(fail(io::Error::other("cannot duplicate the process"))),
            };
        }
    }

    /// Mounts what the server serves, detached. The mount namespace must be
    /// the container's.
    ///
    /// # Errors
    /// A [`Failure`] if the kernel refuses, or the image is damaged.
    pub fn mount(mut self) -> Result<OwnedFd, Failure> {
        // Long ended by now, so this does not wait.
        self.settle()?;
        let Self { device, mut control, .. } = self;
        let number = |number: u32| CString::new(number.to_string()).unwrap_or_default();
        let uid = number(rustix::process::getuid().as_raw());
        let gid = number(rustix::process::getgid().as_raw());
        let fd = CString::new(device.as_raw_fd().to_string()).unwrap_or_default();
        let options = [
            (c"source", Some(c"sctl")),
            (c"fd", Some(fd.as_c_str())),
            (c"rootmode", Some(c"40000")),
            (c"user_id", Some(uid.as_c_str())),
            (c"group_id", Some(gid.as_c_str())),
            // The kernel checks modes by itself, from the attributes it has.
            (c"default_permissions", None),
            // Namespaces that the payload makes of its own may read, too.
            (c"allow_other", None),
            (c"ro", None),
        ];
        let attributes = MountAttributes::READ_ONLY | MountAttributes::NO_SUID | MountAttributes::NO_DEV;
        let mount = mount::new_filesystem(c"fuse", &options, attributes).map_err(|error| {
            let failure = Failure::new("Unable to mount the image over FUSE").source(&error);
            match error.raw_os_error() {
                Some(libc::ENODEV) => failure.hint("the kernel has no FUSE: load its module with `modprobe fuse`"),
                _ => failure,
            }
        })?;
        let mut state = [0];
        let exchange = control.write_all(&[READY]).and_then(|()| control.read_exact(&mut state));
        let damaged = match exchange {
            Ok(()) if state == [READY] => return Ok(mount),
            Ok(()) => true,
            Err(_) => false,
        };
        let mut text = Vec::new();
        let rest = control.read_to_end(&mut text);
        Err(if damaged {
            Failure::new("Unable to mount the image: it is damaged").cause(String::from_utf8_lossy(&text))
        } else {
            let failure = Failure::new("Unable to mount the image: its FUSE server has ended");
            match exchange.and(rest.map(drop)) {
                Err(error) => failure.source(&error),
                Ok(()) => failure,
            }
        })
    }
}

fn open_device() -> Result<OwnedFd, Failure> {
    const HINT: &str = "SIF files are mounted over FUSE: an administrator has to load the module (`modprobe fuse`), \
                        and let everybody open /dev/fuse (mode 0666); an unpacked directory runs without it";
    rustix::fs::open(c"/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::new("Unable to open /dev/fuse").source(&io::Error::from(errno)).hint(HINT))
}

/// The life of the server process; returns its exit code.
fn serve(partition: Partition, options: ServerOptions, device: OwnedFd, mut control: UnixStream) -> libc::c_int {
    let keep = [partition.file.as_raw_fd(), device.as_raw_fd(), control.as_raw_fd()];
    let result = proc::become_server(&keep, || {
        let code = match prepare() {
            Ok(()) => answer(partition, options, device, control),
            Err(error) => {
                // If even that fails, the launcher sees the end of the socket.
                let _ = write!(control, "\x01cannot leave the caller: {error}");
                1
            }
        };
        proc::exit_now(code)
    });
    // Only reached if it could not leave its caller; there is nothing to undo.
    match result {
        Ok(never) => match never {},
        Err(_) => 1,
    }
}

/// Gives up what a server does not need. It parses the image's bytes, which
/// nobody has checked.
fn prepare() -> io::Result<()> {
    proc::ignore_signals(&NOT_OURS)?;
    caps::drop_all()?;
    caps::set_no_new_privs()?;
    rustix::thread::set_name(c"sctl-fuse")?;
    // What runs in the container has the same uid; it has no business here.
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Opens the image, waits for the mount, and answers until it is gone.
fn answer(partition: Partition, options: ServerOptions, device: OwnedFd, mut control: UnixStream) -> libc::c_int {
    let opened = Reader::open(partition, 0, CACHE).and_then(|reader| SquashfsServer::new(reader, options));
    let server = match opened {
        Ok(server) => server,
        Err(error) => {
            // If that fails, the launcher has gone.
            let _ = write!(control, "\x01{}", chain(&error));
            return 1;
        }
    };
    let mut mounted = [0];
    if control.write_all(&[READY]).is_err() || control.read_exact(&mut mounted).is_err() {
        return 1;
    }
    drop(control);
    let mut config = Config::default();
    config.n_threads = Some(processors().clamp(2, MAX_THREADS));
    config.acl = SessionACL::All;
    let served = Session::from_fd(server, device, SessionACL::All, config).and_then(Session::run);
    libc::c_int::from(served.is_err())
}

/// Processors that this process may use. The standard library would look
/// through cgroups as well, which takes longer than starting a thread too many.
fn processors() -> usize {
    let count = |set: rustix::thread::CpuSet| usize::try_from(set.count()).unwrap_or(1);
    rustix::thread::sched_getaffinity(None).map_or(1, count)
}

/// An error and its sources as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
