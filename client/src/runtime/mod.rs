//! Starts containers in the caller's own namespaces.
//!
//! One process does it all, and becomes the payload in the end, so that exit
//! code and signals pass by themselves:
//!
//! 1. look at the image and at who calls, while the host is still in view;
//! 2. new user namespace, with the caller's own ids and nobody else's;
//! 3. for a SIF that the daemon has not mounted, the FUSE server: a process of
//!    its own, outside of the namespaces that follow, which ends when the last
//!    of them does;
//! 4. new PID namespace, if asked for, and PID 1 in it;
//! 5. new mount namespace; the root is put together beside the old one;
//! 6. into the new root, no capabilities, no way to gain any, execute.
//!
//! Nothing here is privileged: what a caller could not do without this
//! program, the program cannot do either.

mod accounts;
mod devices;
mod environment;
mod identity;
mod image;
mod init;
mod mounts;
mod namespace;
mod overlay;
mod program;
pub mod request;
mod root;
mod script;

use std::{
    convert::Infallible,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    process::umask,
};
use sctl_sys::{
    caps,
    mount::{self, MountAttributes},
    ns::{self, Namespaces},
    proc,
};

use crate::{
    failure::{Failure, reason},
    fuse::{self, Partition},
    output::{verbose, warning},
};
use environment::{Facts, Forwarded};
use identity::Identity;
use image::{Image, RootSource};
use mounts::{Cwd, Host};
use program::Program;
use request::{Action, LaunchOptions, LaunchRequest};
use root::NewRoot;

/// Size of the tmpfs that holds what the image lacks, as users know it.
const SESSION_SIZE: &std::ffi::CStr = c"64m";

/// Starts a container and becomes its payload. The process must have a single
/// thread.
///
/// # Errors
/// A [`Failure`] if the payload could not be started. With a new PID namespace
/// this may be another process than the one that called.
pub fn launch(request: LaunchRequest) -> Result<Infallible, Failure> {
    let LaunchRequest { action, image, options } = request;
    let caller = Identity::of_process();
    let cwd = Cwd::of_process();
    mounts::check_sources(&options.binds)?;
    let image = Image::open(image)?;
    let forwarded = Forwarded::new(std::env::vars_os(), &options.env, options.cleanenv, options.flavour);
    let facts = Facts {
        flavour: options.flavour,
        command: match action {
            Action::Exec { .. } => "exec",
            Action::Run { .. } => "run",
            Action::Shell { .. } => "shell",
        },
        image: image.path.clone(),
        name: image.name.clone(),
        binds: mounts::destinations(&options.binds),
        home: mounts::home(&options, &caller),
    };

    namespace::enter_user(&caller)?;
    let origin = Origin::prepare(image.root, &options, &caller)?;
    let inside = if options.pid {
        namespace::enter_others(Namespaces::PID)?;
        Some(init::enter()?)
    } else {
        None
    };
    namespace::enter_others(
        Namespaces::MOUNT
            | Namespaces::IPC.when(options.ipc)
            | Namespaces::UTS.when(options.uts)
            | Namespaces::NET.when(options.net),
    )?;
    // While places are made, only the modes asked for count.
    let mask = umask(Mode::from_raw_mode(0o022));
    let Assembled { root, served } = assemble(origin, &options, &Host { caller: &caller, cwd: cwd.as_ref() })?;
    mount::pivot_into(&root, mount::Beside::Overmounted)
        .map_err(|error| Failure::new("Unable to change to the image's root").source(&error))?;
    drop(root);
    finish_namespaces(&options)?;
    let directory = start_directory(&options, cwd.as_ref(), &facts.home)?;
    if !options.no_umask {
        umask(mask);
    }
    caps::drop_all()
        .and_then(|()| caps::set_no_new_privs())
        .map_err(|error| Failure::new("Unable to give up privileges").source(&error))?;
    let mut program = Program::new(&action, image.launch.as_ref(), &forwarded, &facts)?;
    if let Some(inside) = inside {
        inside.become_payload(!options.no_init)?;
    }
    program.set_directory(&directory);
    proc::default_signal(libc::SIGPIPE)
        .map_err(|error| Failure::new("Unable to reset the SIGPIPE signal").source(&error))?;
    program.exec(served)
}

/// The image's root file system, as far as it can be prepared before the mount
/// namespace.
enum Origin {
    Directory(PathBuf),
    Fuse(fuse::Server),
    /// Mounted by the daemon.
    Mounted {
        mount: OwnedFd,
        /// To serve it over FUSE if that mount cannot be used.
        partition: Partition,
        server: fuse::ServerOptions,
    },
}

impl Origin {
    fn prepare(source: RootSource, options: &LaunchOptions, caller: &Identity) -> Result<Self, Failure> {
        // Only what belongs to somebody mapped can be changed in an overlay,
        // so what is the image's root's becomes the caller's.
        let server = fuse::ServerOptions { root_is: options.writable_tmpfs.then_some((caller.uid, caller.gid)) };
        Ok(match source {
            RootSource::Directory(path) => Self::Directory(path),
            RootSource::Mounted(mount, partition) => Self::Mounted { mount, partition, server },
            RootSource::Squashfs(partition) => {
                let mut server = fuse::Server::start(partition, server)?;
                if options.pid {
                    // What follows is another process.
                    server.settle()?;
                }
                Self::Fuse(server)
            }
        })
    }

    /// Attaches the image inside of `session`, the tmpfs over the old root.
    fn attach(self, session: OwnedFd) -> Result<Attached, Failure> {
        let unable = |error: io::Error| namespace::forbidden("Unable to mount the image", &error);
        let place = make_directory(&session, IMAGE).map_err(unable)?;
        let (image, served) = match self {
            Self::Mounted { mount, partition, server } => match mount::attach(&mount, &place) {
                Ok(()) => return Ok(Attached { image: mount, session, served: false }),
                Err(error) => {
                    verbose!("The image is served over FUSE: its mount cannot be used here: {}", reason(&error));
                    return serve_late(partition, server);
                }
            },
            Self::Fuse(server) => (server.mount()?, true),
            Self::Directory(path) => {
                let attributes = MountAttributes::READ_ONLY | MountAttributes::NO_SUID | MountAttributes::NO_DEV;
                let tree = image::clone_directory(&path)
                    .and_then(|tree| mount::restrict(&tree, attributes, true).map(|()| tree))
                    .map_err(|error| {
                        namespace::forbidden(&format!("Unable to mount the image {}", path.display()), &error)
                    })?;
                (tree, false)
            }
        };
        mount::attach(&image, place).map_err(unable)?;
        Ok(Attached { image, session, served })
    }
}

/// Serves the image over FUSE, now that the session's tmpfs is over the root
/// already. The server has to stay outside of the mount namespace whose end is
/// its own, so it gets the present one, and the container one more.
fn serve_late(partition: Partition, options: fuse::ServerOptions) -> Result<Attached, Failure> {
    let server = fuse::Server::start(partition, options)?;
    namespace::enter_others(Namespaces::MOUNT)?;
    let unable = |error: io::Error| namespace::forbidden("Unable to mount the image", &error);
    let open = |dir: &OwnedFd, name| rustix::fs::openat(dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    // This namespace has mounts of its own: `..` of the root is what covers it.
    let session = rustix::fs::open(c"/..", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| unable(errno.into()))?;
    let place = open(&session, IMAGE).map_err(|errno| unable(errno.into()))?;
    let image = server.mount()?;
    mount::attach(&image, place).map_err(unable)?;
    Ok(Attached { image, session, served: true })
}

/// Where the session's tmpfs has the image.
const IMAGE: &str = "image";

/// The image, in its place below the session's tmpfs.
struct Attached {
    image: OwnedFd,
    session: OwnedFd,
    /// Its files come from a FUSE server.
    served: bool,
}

/// The new root, ready to be entered.
struct Assembled {
    root: OwnedFd,
    /// As in [`Attached`].
    served: bool,
}

/// Puts the new root together. It is mounted inside of the session's tmpfs,
/// which is mounted over the old root.
fn assemble(origin: Origin, options: &LaunchOptions, host: &Host<'_>) -> Result<Assembled, Failure> {
    let fail = |what: &'static str| move |error: io::Error| namespace::forbidden(what, &error);
    mount::make_everything_slave().map_err(fail("Unable to separate mounts from the host's"))?;
    let quiet = MountAttributes::NO_SUID | MountAttributes::NO_DEV;
    let session = [(c"source", Some(c"sctl")), (c"size", Some(SESSION_SIZE)), (c"mode", Some(c"0755"))];
    let session = mount::new_filesystem(c"tmpfs", &session, quiet).map_err(fail("Unable to mount a tmpfs"))?;
    let mut host_roots = mounts::clone_host_roots(options).map_err(fail("Unable to mount the host's root"))?;
    mount::attach_over_root(&session).map_err(fail("Unable to mount a tmpfs"))?;
    let Attached { image, session, served } = origin.attach(session)?;
    let (root, writable) = match options.writable_tmpfs.then(|| overlay::over(&image, &session)) {
        None => (image, false),
        Some(Ok(overlay)) => (overlay, true),
        Some(Err(error)) => {
            warning!("Unable to make the container writable, it stays read-only: {error}");
            (image, false)
        }
    };
    let mut root = NewRoot::new(root, session, writable).map_err(fail("Unable to use the image"))?;
    if served {
        for directory in ["/", "/etc"] {
            root.learn_entries(Path::new(directory));
        }
    }
    mounts::mount_all(&mut root, options, host, &mut host_roots)?;
    let root = root.finish().map_err(fail("Unable to make the root read-only"))?;
    Ok(Assembled { root, served })
}

/// Makes a directory and opens it.
fn make_directory(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    Ok(rustix::fs::openat(parent, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn finish_namespaces(options: &LaunchOptions) -> Result<(), Failure> {
    if let Some(name) = &options.hostname {
        ns::set_hostname(name)
            .map_err(|error| Failure::new(format!("Unable to set the host name {name}")).source(&error))?;
    }
    if options.net {
        ns::bring_loopback_up()
            .map_err(|error| Failure::new("Unable to bring the loopback interface up").source(&error))?;
    }
    Ok(())
}

/// Changes to the directory that the payload starts in, and returns it.
fn start_directory(options: &LaunchOptions, cwd: Option<&Cwd>, home: &Path) -> Result<PathBuf, Failure> {
    let change = |path: &Path| rustix::process::chdir(path);
    if let Some(path) = &options.cwd {
        return change(path).map(|()| path.clone()).map_err(|errno| {
            Failure::new(format!("Unable to change to directory {} in container", path.display()))
                .source(&io::Error::from(errno))
        });
    }
    if options.contain {
        if change(home).is_ok() {
            return Ok(home.to_owned());
        }
    } else if let Some(cwd) = cwd {
        for path in [&cwd.logical, &cwd.physical] {
            if change(path).is_ok() {
                return Ok(path.clone());
            }
        }
    }
    let fallback = if change(home).is_ok() { home } else { Path::new("/") };
    warning!("Error changing the container working directory. Using '{}' instead", fallback.display());
    Ok(fallback.to_owned())
}
