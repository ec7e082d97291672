//! What a registry says beside its answers.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};

use super::{body::clean_text, error::Subject};

/// Something that the user may want to know although nothing failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Notice {
    /// The registry counts pulls, and this is how many are left.
    RateLimit {
        /// The registry's name.
        registry: String,
        /// Pulls allowed in the window.
        limit: u64,
        /// Pulls left.
        remaining: u64,
        /// Length of the window, if told.
        window_seconds: Option<u64>,
        /// Whom the registry counts: an address or a user, if told.
        source: Option<String>,
    },
    /// A `Warning: 299` header: a message of the registry's owner.
    Warning {
        /// The registry's name.
        registry: String,
        /// The message.
        text: String,
    },
    /// A try failed and another follows.
    Retry {
        /// What is being fetched.
        what: String,
        /// Why the last try failed.
        reason: String,
        /// Wait before the next one.
        delay: Duration,
    },
    /// The registry is spoken to without TLS.
    PlainHttp {
        /// The registry's name.
        registry: String,
    },
}

impl Notice {
    /// Whether the user should see it unasked; the rest is for `-v`.
    pub const fn is_warning(&self) -> bool {
        match self {
            Self::RateLimit { limit, remaining, .. } => *remaining * 10 <= *limit,
            Self::Warning { .. } => true,
            Self::Retry { .. } | Self::PlainHttp { .. } => false,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RateLimit { registry, limit, remaining, window_seconds, source } => {
                write!(f, "{registry}: {remaining} of {limit} pulls left")?;
                match window_seconds {
                    Some(seconds) if *seconds >= 3600 && seconds % 3600 == 0 => write!(f, " in {} h", seconds / 3600)?,
                    Some(seconds) => write!(f, " in {seconds} s")?,
                    None => {}
                }
                source.as_ref().map_or(Ok(()), |source| write!(f, " (counted for {source})"))
            }
            Self::Warning { registry, text } => write!(f, "{registry} says: {text}"),
            Self::Retry { what, reason, delay } => {
                write!(f, "{what}: {reason}; next try in {:.1} s", delay.as_secs_f32())
            }
            Self::PlainHttp { registry } => write!(f, "{registry} is used without TLS"),
        }
    }
}

/// Where notices go.
pub type NoticeSink = Arc<dyn Fn(Notice) + Send + Sync>;

/// Tells each notice once.
pub(crate) struct Notices {
    sink: NoticeSink,
    registry: String,
    told: Mutex<BTreeSet<String>>,
}

/// Different warnings past this many are a flood.
const MAX_TOLD: usize = 16;

impl Notices {
    pub(crate) fn new(sink: NoticeSink, registry: String) -> Self {
        Self { sink, registry, told: Mutex::default() }
    }

    pub(crate) fn retry(&self, subject: &Subject, reason: &dyn fmt::Display, delay: Duration) {
        // A single line, whatever the reason looks like.
        let reason = reason.to_string().replace('\n', "; ");
        (self.sink)(Notice::Retry { what: subject.to_string(), reason, delay });
    }

    pub(crate) fn plain_http(&self) {
        self.once("plain http".to_owned(), || Notice::PlainHttp { registry: self.registry.clone() });
    }

    /// Looks for what a reply's headers say.
    pub(crate) fn look_at(&self, headers: &HeaderMap) {
        if let Some(notice) = self.rate_limit(headers) {
            self.once("rate limit".to_owned(), || notice);
        }
        for field in headers.get_all("warning") {
            if let Some(text) = field.to_str().ok().and_then(parse_warning) {
                self.once(format!("warning {text}"), || Notice::Warning { registry: self.registry.clone(), text });
            }
        }
    }

    fn once(&self, key: String, make: impl FnOnce() -> Notice) {
        let is_new = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.len() < MAX_TOLD && told.insert(key)
        };
        if is_new {
            (self.sink)(make());
        }
    }

    fn rate_limit(&self, headers: &HeaderMap) -> Option<Notice> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (limit, window_seconds) = parse_quota(text("ratelimit-limit")?)?;
        let (remaining, _) = parse_quota(text("ratelimit-remaining")?)?;
        let source = text("docker-ratelimit-source").map(|source| clean_text(source, 64));
        Some(Notice::RateLimit { registry: self.registry.clone(), limit, remaining, window_seconds, source })
    }
}

/// `100;w=21600`: a count, and the window in seconds.
fn parse_quota(value: &str) -> Option<(u64, Option<u64>)> {
    let mut parts = value.split(';').map(str::trim);
    let count = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")).and_then(|seconds| seconds.parse().ok());
    Some((count, window))
}

/// `299 - "text"` or `299 agent "text" "date"`.
fn parse_warning(value: &str) -> Option<String> {
    let rest = value.trim().strip_prefix("299 ")?;
    let (_, quoted) = rest.split_once('"')?;
    let mut text = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    let text = clean_text(&text, 512);
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(fields: &[(&'static str, &str)]) -> Vec<Notice> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let seen = Arc::clone(&seen);
            Arc::new(move |notice| seen.lock().unwrap().push(notice))
        };
        let notices = Notices::new(sink, "docker.io".into());
        let headers: HeaderMap =
            fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        notices.look_at(&headers);
        notices.look_at(&headers);
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn rate_limits_are_told_once() {
        let told = collect(&[
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "20;w=21600"),
            ("docker-ratelimit-source", "192.0.2.1"),
        ]);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].to_string(), "docker.io: 20 of 100 pulls left in 6 h (counted for 192.0.2.1)");
        assert!(!told[0].is_warning());
        assert!(collect(&[("ratelimit-limit", "many"), ("ratelimit-remaining", "3")]).is_empty());
    }

    #[test]
    fn warnings_are_told_once() {
        let told = collect(&[("warning", "299 - \"this registry moves \\\"soon\\\"\"")]);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].to_string(), "docker.io says: this registry moves \"soon\"");
        for junk in ["110 - \"stale\"", "299 -", "299 - \"open", "299 - \"\""] {
            assert!(collect(&[("warning", junk)]).is_empty(), "{junk}");
        }
    }
}
