//! Where events go: the journal, or lines on standard error.

use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{LogConfig, LogFormat};

/// Starts logging for the whole process.
///
/// # Errors
/// If the filter cannot be parsed, or the journal was demanded and is not
/// there.
pub fn start(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.level)
        .with_context(|| format!("log level {:?} is neither a level nor a filter", config.level))?;
    let format = match config.format {
        LogFormat::Auto if stderr_is_the_journal() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Text,
        other => other,
    };
    let layer = match format {
        LogFormat::Journald => tracing_journald::layer()
            .context("cannot write to the journal")?
            .with_syslog_identifier("sctld".to_owned())
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).boxed(),
        LogFormat::Text | LogFormat::Auto => {
            tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry().with(layer).with(filter).try_init().context("logging was started twice")
}

/// `JOURNAL_STREAM` names the device and inode of the stream that the service
/// manager connected; it is inherited by processes whose output was redirected
/// since, so it must be compared (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Some((device, inode)) = std::env::var("JOURNAL_STREAM")
        .ok()
        .and_then(|text| text.split_once(':').map(|(d, i)| (d.to_owned(), i.to_owned())))
    else {
        return false;
    };
    let Ok(meta) = std::fs::metadata("/proc/self/fd/2") else { return false };
    device == meta.dev().to_string() && inode == meta.ino().to_string()
}
