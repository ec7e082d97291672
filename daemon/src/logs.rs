//! Where events go: the journal, or lines on standard error.

use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use sctl_engine::audit;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::config::{LogConfig, LogFormat};

/// Decides which events are told, and can be replaced.
#[derive(Debug, Clone)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// Replaces the filter.
    pub fn set(&self, filter: EnvFilter) {
        // It fails only if there is no subscriber left, and then nobody logs.
        let _ = self.0.reload(filter);
    }
}

/// Understands a level or a filter. No level switches the audit off; a filter
/// that names it can.
///
/// # Errors
/// If it is neither.
pub fn parse_filter(text: &str) -> anyhow::Result<EnvFilter> {
    let wrong = || format!("log level {text:?} is neither a level nor a filter");
    let filter = EnvFilter::try_new(text).with_context(wrong)?;
    if text.contains(audit::TARGET) {
        return Ok(filter);
    }
    Ok(filter.add_directive(format!("{}=info", audit::TARGET).parse().with_context(wrong)?))
}

/// Starts logging for the whole process.
///
/// # Errors
/// If the filter cannot be parsed, or the journal was demanded and is not
/// there.
pub fn start(config: &LogConfig) -> anyhow::Result<Filter> {
    let (filter, handle) = reload::Layer::new(parse_filter(&config.level)?);
    let format = match config.format {
        LogFormat::Auto if stderr_is_the_journal() => LogFormat::Journal,
        LogFormat::Auto => LogFormat::Text,
        other => other,
    };
    let layer = match format {
        LogFormat::Journal => tracing_journald::layer()
            .context("cannot write to the journal")?
            .with_syslog_identifier("sctld".to_owned())
            // `caller.uid` becomes SCTL_CALLER_UID.
            .with_field_prefix(Some("SCTL".to_owned()))
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).boxed(),
        LogFormat::Text | LogFormat::Auto => {
            tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(layer).try_init().context("logging was started twice")?;
    Ok(Filter(handle))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_level_hides_the_audit_but_a_filter_may() {
        for (text, shown) in [("error", true), ("off", true), ("info,sctl_audit=off", false)] {
            let filter = parse_filter(text).unwrap();
            assert_eq!(filter.to_string().contains("sctl_audit=info"), shown, "{text}: {filter}");
        }
        assert!(parse_filter("loud,,=").is_err());
    }
}
