//! What one run of the daemon goes by: mode, paths, configuration.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand};

use crate::{Config, ConfigError};

/// Pulls container images, converts them to SIF and keeps them for all users
/// of this host (system mode) or for one (user mode).
#[derive(Debug, Clone, Parser)]
#[command(name = "sctld", version, about, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// Serve the user who starts it, even if that is root
    #[arg(long)]
    pub user: bool,
    /// Configuration file [default: /etc/sctl/sctld.toml, ~/.config/sctl/sctld.toml with --user]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Socket of the gRPC service [default: /run/sctl/sctl.sock, $XDG_RUNTIME_DIR/sctl/sctl.sock with --user]
    #[arg(long, value_name = "PATH", env = "SCTL_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Socket that hands out images [default: mount.sock beside the other]
    #[arg(long, value_name = "PATH", env = "SCTL_MOUNT_SOCKET")]
    pub mount_socket: Option<PathBuf>,
    /// Directory of the cache [default: /var/cache/sctl, ~/.cache/sctl with --user]
    #[arg(long, value_name = "PATH")]
    pub cache_dir: Option<PathBuf>,
    /// Let the launcher that listens here start jobs (system mode) [default: they are started here]
    #[arg(long, value_name = "PATH")]
    pub job_socket: Option<PathBuf>,
    /// Read the configuration, tell what is wrong with it, and leave
    #[arg(long)]
    pub check: bool,
    /// Internal.
    #[command(subcommand)]
    pub command: Option<Internal>,
}

/// What this program does besides serving, mostly as a process that the daemon
/// starts itself.
#[derive(Debug, Clone, Subcommand)]
pub enum Internal {
    /// One step of a pull; speaks to the daemon over descriptor 3
    #[command(hide = true)]
    Job {
        /// How many descriptors it was given
        fds: usize,
    },
    /// Starts jobs for a daemon that has no network; listens on descriptor 3
    #[command(hide = true)]
    Launcher,
    /// Prints a page of the manual: sctld (if none is named) or sctld.toml
    #[command(hide = true)]
    Man {
        /// Name of the page
        #[arg(default_value = "sctld")]
        page: String,
    },
    /// Locks mounts; speaks to the daemon over descriptor 3
    #[command(hide = true)]
    MountHelper,
}

/// Whom the daemon serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everybody on the host.
    System,
    /// The user who started it.
    User {
        /// That user.
        uid: u32,
    },
}

impl Mode {
    /// True in user mode.
    pub const fn is_user(self) -> bool {
        matches!(self, Self::User { .. })
    }
}

/// What one run of the daemon goes by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whom it serves.
    pub mode: Mode,
    /// Directory of the cache.
    pub cache_dir: PathBuf,
    /// Socket of the gRPC service.
    pub socket: PathBuf,
    /// Socket that hands out images.
    pub mount_socket: PathBuf,
    /// Socket of the launcher of jobs, if there is one.
    pub job_socket: Option<PathBuf>,
    /// The directory of the sockets is the daemon's own default: it is made,
    /// and in user mode its owner and mode are checked.
    pub own_socket_dir: bool,
    /// Leave after that long without work.
    pub idle: Option<Duration>,
    /// The rest of the configuration.
    pub config: Config,
}

/// Says why the daemon does not know how to run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The configuration file is wrong.
    #[error("the configuration cannot be used")]
    Config {
        /// Why.
        source: ConfigError,
    },
    /// `HOME` is needed and not set to an absolute path.
    #[error("HOME is not set, so there is no default for the {what}; name one")]
    NoHome {
        /// What needs it.
        what: &'static str,
    },
    /// A path on the command line is relative.
    #[error("{what} {path} is not an absolute path", path = path.display())]
    Relative {
        /// Which path.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A socket's path does not fit into an address.
    #[error("the socket cannot have this path")]
    SocketPath {
        /// The path and its length.
        source: std::io::Error,
    },
}

impl Settings {
    /// Puts arguments, environment, configuration file and defaults together,
    /// in this order of weight.
    ///
    /// # Errors
    /// [`SettingsError`] says what is missing or wrong.
    pub fn resolve(arguments: &Arguments) -> Result<Self, SettingsError> {
        let uid = rustix::process::geteuid();
        let mode = if uid.is_root() && !arguments.user { Mode::System } else { Mode::User { uid: uid.as_raw() } };
        Self::resolve_with(arguments, mode, |name| env::var_os(name))
    }

    fn resolve_with(
        arguments: &Arguments,
        mode: Mode,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, SettingsError> {
        let absolute = |what, path: &Path| {
            if path.is_absolute() {
                Ok(path.to_owned())
            } else {
                Err(SettingsError::Relative { what, path: path.to_owned() })
            }
        };
        let home = |what| {
            variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute()).ok_or(SettingsError::NoHome { what })
        };

        let config_error = |source| SettingsError::Config { source };
        let config = match &arguments.config {
            Some(path) => Config::read(path).map_err(config_error)?,
            None => {
                let default = match mode {
                    Mode::System => Some(PathBuf::from("/etc/sctl/sctld.toml")),
                    Mode::User { .. } => home("configuration").ok().map(|home| home.join(".config/sctl/sctld.toml")),
                };
                match default.map(|path| Config::read(&path)) {
                    None => Config::default(),
                    Some(Err(ConfigError::Read { source, .. })) if source.kind() == std::io::ErrorKind::NotFound => {
                        Config::default()
                    }
                    Some(read) => read.map_err(config_error)?,
                }
            }
        };

        let cache_dir = match (&arguments.cache_dir, &config.cache_dir, mode) {
            (Some(dir), _, _) => absolute("cache directory", dir)?,
            (None, Some(dir), _) => dir.clone(),
            (None, None, Mode::System) => PathBuf::from("/var/cache/sctl"),
            (None, None, Mode::User { .. }) => home("cache")?.join(".cache/sctl"),
        };
        let (socket, own_socket_dir) = match (&arguments.socket, mode) {
            (Some(path), _) => (absolute("socket", path)?, false),
            (None, Mode::System) => (PathBuf::from("/run/sctl/sctl.sock"), true),
            (None, Mode::User { uid }) => {
                let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
                let dir =
                    runtime.map_or_else(|| PathBuf::from(format!("/tmp/sctl-{uid}")), |runtime| runtime.join("sctl"));
                (dir.join("sctl.sock"), true)
            }
        };
        let mount_socket = match &arguments.mount_socket {
            Some(path) => absolute("mount socket", path)?,
            None => socket.with_file_name("mount.sock"),
        };
        let job_socket = arguments.job_socket.as_ref().map(|path| absolute("job socket", path)).transpose()?;
        for path in [&socket, &mount_socket].into_iter().chain(&job_socket) {
            sctl_sys::scm::check_socket_path(path).map_err(|source| SettingsError::SocketPath { source })?;
        }
        let idle_seconds = config.idle_seconds.unwrap_or(match mode {
            Mode::System => 0,
            Mode::User { .. } => 30,
        });
        let idle = (idle_seconds > 0).then(|| Duration::from_secs(idle_seconds));
        Ok(Self { mode, cache_dir, socket, mount_socket, job_socket, own_socket_dir, idle, config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(list: &[&str]) -> Arguments {
        Arguments::try_parse_from([&["sctld"], list].concat()).unwrap()
    }

    fn resolve(list: &[&str], mode: Mode, home: Option<&str>, runtime: Option<&str>) -> Result<Settings, String> {
        Settings::resolve_with(&arguments(list), mode, |name| match name {
            "HOME" => home.map(OsString::from),
            "XDG_RUNTIME_DIR" => runtime.map(OsString::from),
            _ => None,
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_depend_on_the_mode() {
        let user = Mode::User { uid: 7 };
        let settings = resolve(&[], user, Some("/home/u"), Some("/run/user/7")).unwrap();
        assert_eq!(settings.cache_dir, Path::new("/home/u/.cache/sctl"));
        assert_eq!(settings.socket, Path::new("/run/user/7/sctl/sctl.sock"));
        assert_eq!(settings.mount_socket, Path::new("/run/user/7/sctl/mount.sock"));
        assert_eq!(settings.idle, Some(Duration::from_secs(30)));
        let settings = resolve(&[], user, Some("/home/u"), None).unwrap();
        assert_eq!(settings.socket, Path::new("/tmp/sctl-7/sctl.sock"));
    }

    #[test]
    fn arguments_win_and_the_mount_socket_follows() {
        let list = ["--socket", "/s/a.sock", "--cache-dir", "/c"];
        let settings = resolve(&list, Mode::User { uid: 7 }, None, None).unwrap();
        assert_eq!(settings.mount_socket, Path::new("/s/mount.sock"));
        assert_eq!((settings.cache_dir.as_path(), settings.own_socket_dir), (Path::new("/c"), false));
    }

    #[test]
    fn what_is_missing_is_named() {
        let user = Mode::User { uid: 7 };
        assert!(resolve(&[], user, None, None).unwrap_err().contains("HOME"));
        assert!(resolve(&["--cache-dir", "c"], user, None, None).unwrap_err().contains("not an absolute path"));
        let long = format!("/{}", "x".repeat(110));
        assert!(resolve(&["--socket", &long, "--cache-dir", "/c"], user, None, None).is_err());
    }
}
