//! What the command line asks the launcher for.
//!
//! Everything here has been parsed and resolved: `--containall` has become its
//! parts, environment variables of options have been read, relative paths of
//! the host are absolute.

use std::{ffi::OsString, fs::File, os::fd::OwnedFd, path::PathBuf};

use crate::flavour::Flavour;

/// One container to start.
#[derive(Debug)]
pub struct LaunchRequest {
    /// What runs in it.
    pub action: Action,
    /// What it runs from.
    pub image: ImageSource,
    /// How it is set up.
    pub options: LaunchOptions,
}

/// What runs in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// This program with exactly these arguments; never empty.
    Exec {
        /// Program and arguments.
        argv: Vec<OsString>,
    },
    /// The image's own program.
    Run {
        /// What follows the image on the command line.
        args: Vec<OsString>,
    },
    /// An interactive shell.
    Shell {
        /// `--shell`.
        shell: Option<OsString>,
    },
}

/// What the container runs from.
#[derive(Debug)]
pub enum ImageSource {
    /// A SIF, opened as the caller or handed over by the daemon.
    Sif {
        /// Open for reading.
        file: File,
        /// Absolute path for the `*_CONTAINER` variables.
        path: PathBuf,
        /// Base name for the `*_NAME` variables and the prompt.
        name: OsString,
        /// Its file system as the daemon mounted it, detached; without one it
        /// is served over FUSE.
        mount: Option<OwnedFd>,
    },
    /// A directory that is a root file system; absolute.
    Directory {
        /// Absolute path.
        path: PathBuf,
    },
}

/// How the container is set up.
#[derive(Debug, Clone, Default)]
pub struct LaunchOptions {
    /// Whose wording and variables win.
    pub flavour: Flavour,
    /// `--bind`, `--mount` and their variables, in order.
    pub binds: Vec<Bind>,
    /// Binds that the site configures; failing ones are skipped with a
    /// warning at `-v`. They stay under `--contain`.
    pub site_binds: Vec<Bind>,
    /// Minimal `/dev`, empty `/tmp`, `/var/tmp` and home, no `$PWD`.
    pub contain: bool,
    /// Drops the host's environment.
    pub cleanenv: bool,
    /// `--env` and `--env-file`, resolved: literal values, the last of a name
    /// wins. They win over `*ENV_` variables, which the launcher reads.
    pub env: Vec<(OsString, OsString)>,
    /// Where home comes from and goes to.
    pub home: Home,
    /// Default mounts that are left out.
    pub no_mount: NoMount,
    /// `--cwd` or `--pwd`, as the container sees it.
    pub cwd: Option<PathBuf>,
    /// Host directory that backs tmp, var_tmp, home and scratch; absolute.
    pub workdir: Option<PathBuf>,
    /// Empty writable directories, absolute inside.
    pub scratch: Vec<PathBuf>,
    /// Throw-away writes over the whole image.
    pub writable_tmpfs: bool,
    /// umask 0022 instead of the caller's.
    pub no_umask: bool,
    /// New PID namespace.
    pub pid: bool,
    /// No PID 1 of ours in a new PID namespace.
    pub no_init: bool,
    /// New IPC namespace.
    pub ipc: bool,
    /// New UTS namespace.
    pub uts: bool,
    /// Name in the UTS namespace; set only with `uts`.
    pub hostname: Option<String>,
    /// New network namespace with a loopback interface only.
    pub net: bool,
    /// Servers of a generated `/etc/resolv.conf`; empty keeps the host's.
    pub dns: Vec<String>,
}

/// One bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host; absolute.
    pub source: PathBuf,
    /// In the container; absolute.
    pub destination: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Home directory of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Home {
    /// The caller's, from the password database; empty under `contain`.
    #[default]
    Default,
    /// `--home SOURCE[:DESTINATION]`: bound even under `contain`.
    Custom {
        /// On the host; absolute.
        source: PathBuf,
        /// In the container; absolute.
        destination: PathBuf,
    },
    /// `--no-home`: not mounted.
    None,
}

/// Default mounts that `--no-mount` leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoMount {
    /// `/proc`
    pub proc: bool,
    /// `/sys`
    pub sys: bool,
    /// `/dev`
    pub dev: bool,
    /// `/dev/pts` of a minimal `/dev`.
    pub devpts: bool,
    /// The home directory.
    pub home: bool,
    /// `/tmp` and `/var/tmp`.
    pub tmp: bool,
    /// The current directory.
    pub cwd: bool,
}
