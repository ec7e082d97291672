//! The configuration file: TOML, every key with a default, unknown keys
//! refused with file and line.

use std::{
    io,
    path::{Path, PathBuf},
};

use sctl_common::{Compression, Limits, Profile};
use serde::{Deserialize, Serialize};

/// Contents of `sctld.toml`.
///
/// Keys that depend on the mode are optional here; [`crate::Settings`] knows
/// their defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the cache is. System mode: `/var/cache/sctl`; user mode:
    /// `~/.cache/sctl`.
    pub cache_dir: Option<PathBuf>,
    /// Compressor of new images: `zstd[:1-22]` or `gzip[:1-9]`.
    pub compression: Compression,
    /// Bytes of a squashfs block: a power of two from 4096 to 1048576.
    pub block_size: u32,
    /// Keep layer blobs after they were packed.
    pub keep_blobs: bool,
    /// A job that would leave less of the disk free is refused.
    pub min_free_percent: u8,
    /// How long `exec`, `run` and `shell` use an image without asking its
    /// registry again.
    pub lease_seconds: u64,
    /// Layers that are fetched and packed at the same time, of all pulls
    /// together.
    pub max_layer_jobs: usize,
    /// Pulls of one user at the same time.
    pub max_pulls_per_user: usize,
    /// A layer that comes more slowly than this over five minutes is given
    /// up; 0 means never.
    pub min_bytes_per_second: u64,
    /// Compressor threads of one job; 0 means one for each core.
    pub threads: usize,
    /// User that jobs run as in system mode.
    pub job_user: String,
    /// Members may inspect and change the whole cache in system mode.
    pub admin_group: String,
    /// Leave after that many seconds without work; 0 means never. System
    /// mode: 0; user mode: 30.
    pub idle_seconds: Option<u64>,
    /// How long running jobs may go on after a request to stop.
    pub shutdown_seconds: u64,
    /// Certificates (PEM) of registries that the system does not know.
    pub ca_files: Vec<PathBuf>,
    /// Proxies; the daemon's environment counts where one is not set.
    pub proxy: ProxyConfig,
    /// Hard limits on images.
    pub limits: Limits,
    /// Kernel mounts, in system mode.
    pub mount: MountConfig,
    /// Log output.
    pub log: LogConfig,
}

/// Section `[mount]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountConfig {
    /// Hand out kernel mounts of images where that is possible.
    pub enabled: bool,
    /// Users share one mount of an image where that is harmless.
    pub share: bool,
    /// Map ids of mounts where the kernel can.
    pub idmapped: bool,
    /// Unmount an image that nobody has asked for so long.
    pub idle_seconds: u64,
    /// Images that the containers of one user may keep mounted.
    pub max_per_user: usize,
    /// Images that may be mounted at the same time.
    pub max: u32,
    /// User that the mount helper runs as.
    pub helper_user: String,
    /// Where images are mounted, in a mount namespace of the daemon's own.
    pub slots_dir: PathBuf,
}

/// Section `[proxy]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// For `http` URLs.
    pub http: Option<String>,
    /// For `https` URLs.
    pub https: Option<String>,
    /// Hosts that are reached directly, separated by commas.
    pub no_proxy: Option<String>,
}

/// Section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Where to and how.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as
    /// `info,sctl_engine=debug`.
    pub level: String,
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// To the journal if it is there, else text.
    Auto,
    /// To the journal.
    Journal,
    /// Lines on standard error.
    Text,
    /// JSON objects on standard error.
    Json,
}

impl Default for MountConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            share: true,
            idmapped: true,
            idle_seconds: 60,
            max_per_user: 64,
            max: 256,
            helper_user: "sctl-mount".to_owned(),
            slots_dir: PathBuf::from("/run/sctl/slots"),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".to_owned() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_dir: None,
            compression: Compression::DEFAULT,
            block_size: Profile::DEFAULT_BLOCK_SIZE,
            keep_blobs: false,
            min_free_percent: 10,
            lease_seconds: 300,
            max_layer_jobs: 4,
            max_pulls_per_user: 64,
            min_bytes_per_second: 64 << 10,
            threads: 0,
            job_user: "sctl".to_owned(),
            admin_group: "sctl-admin".to_owned(),
            idle_seconds: None,
            shutdown_seconds: 10,
            ca_files: Vec::new(),
            proxy: ProxyConfig::default(),
            limits: Limits::default(),
            mount: MountConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// Says why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text breaks TOML's grammar, or a key is unknown or has a value of
    /// the wrong type.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A value is out of its range.
    #[error("{path}, line {line}: {key} = {value}: {reason}", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        reason: &'static str,
    },
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and, where there is one, the line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Parses `text`, which came from `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            // One line: the message of some errors goes on with a list.
            reason: error.message().replace('\n', " "),
        })?;
        let wrong = |key: &'static str, value: String, reason| {
            let at = text.lines().position(|line| line.trim_start().starts_with(key)).unwrap_or(0);
            Err(ConfigError::Value { path: path.to_owned(), line: at + 1, key, value, reason })
        };
        if !config.block_size.is_power_of_two() || !(4096..=1 << 20).contains(&config.block_size) {
            return wrong("block_size", config.block_size.to_string(), "must be a power of two from 4096 to 1048576");
        }
        if config.min_free_percent > 90 {
            return wrong("min_free_percent", config.min_free_percent.to_string(), "must be 0 to 90");
        }
        if config.max_layer_jobs == 0 || config.max_layer_jobs > 64 {
            return wrong("max_layer_jobs", config.max_layer_jobs.to_string(), "must be 1 to 64");
        }
        if config.max_pulls_per_user == 0 {
            return wrong("max_pulls_per_user", "0".to_owned(), "must be 1 or more");
        }
        if config.threads > 256 {
            return wrong("threads", config.threads.to_string(), "must be 0 to 256");
        }
        if config.cache_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            return wrong("cache_dir", "a relative path".to_owned(), "must be absolute");
        }
        if let Some(file) = config.ca_files.iter().find(|file| !file.is_absolute()) {
            return wrong("ca_files", file.display().to_string(), "must hold absolute paths");
        }
        if config.mount.max_per_user == 0 {
            return wrong("max_per_user", "0".to_owned(), "must be 1 or more");
        }
        if config.mount.max == 0 || config.mount.max > 4096 {
            return wrong("max ", config.mount.max.to_string(), "must be 1 to 4096");
        }
        if !config.mount.slots_dir.is_absolute() {
            return wrong("slots_dir", config.mount.slots_dir.display().to_string(), "must be absolute");
        }
        // Manifest and config travel to the broker in one message.
        if config.limits.max_manifest_bytes > 8 << 20 {
            return wrong("max_manifest_bytes", config.limits.max_manifest_bytes.to_string(), "must be 8 MiB at most");
        }
        Ok(config)
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("/etc/sctl/sctld.toml")).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        assert_eq!(Config::parse("", Path::new("x")).unwrap(), Config::default());
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
cache_dir = "/srv/cache"
compression = "gzip:6"
block_size = 1048576
keep_blobs = true
min_free_percent = 5
lease_seconds = 60
max_layer_jobs = 2
max_pulls_per_user = 3
threads = 1
job_user = "nobody"
admin_group = "wheel"
idle_seconds = 5
shutdown_seconds = 1
ca_files = ["/etc/ca.pem"]
[proxy]
http = "http://proxy:3128"
https = "http://proxy:3128"
no_proxy = "localhost"
[limits]
max_layers = 7
[mount]
enabled = false
share = false
idmapped = false
idle_seconds = 5
max_per_user = 2
max = 9
helper_user = "nobody"
slots_dir = "/run/slots"
[log]
format = "json"
level = "debug"
"#;
        let config = Config::parse(text, Path::new("x")).unwrap();
        assert_eq!(config.compression, Compression::Gzip { level: 6 });
        assert_eq!((config.limits.max_layers, config.limits.max_ratio), (7, Limits::default().max_ratio));
        assert_eq!((config.mount.max, config.mount.slots_dir.as_path()), (9, Path::new("/run/slots")));
        assert_eq!((config.log.format, config.idle_seconds), (LogFormat::Json, Some(5)));
    }

    #[test]
    fn errors_name_file_and_line() {
        let cases = [
            ("keep_blobs = true\ncolour = \"red\"\n", 2, "unknown field `colour`"),
            ("\n\n[limits]\nmax_colours = 1\n", 4, "unknown field `max_colours`"),
            ("[log]\nlevel = 3\n", 2, "invalid type"),
            ("a = \n", 1, ""),
            ("compression = \"xz\"\n", 1, "unknown compression \"xz\""),
            ("keep_blobs = true\nblock_size = 5000\n", 2, "power of two"),
            ("cache_dir = \"relative\"\n", 1, "must be absolute"),
            ("[limits]\nmax_manifest_bytes = 99999999\n", 2, "8 MiB"),
            ("max_layer_jobs = 0\n", 1, "1 to 64"),
            ("[mount]\nmax_per_user = 0\n", 2, "1 or more"),
            ("[mount]\nmax_per_user = 1\nmax = 5000\n", 3, "1 to 4096"),
            ("[mount]\nslots_dir = \"run\"\n", 2, "must be absolute"),
        ];
        for (text, line, part) in cases {
            let message = error(text);
            assert!(message.starts_with(&format!("/etc/sctl/sctld.toml, line {line}: ")), "{text:?}: {message}");
            assert!(message.contains(part), "{text:?}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
