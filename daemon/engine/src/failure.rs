//! What the engine tells a caller when something went wrong.

use std::{error::Error, fmt, io};

use sctl_common::ErrorKind;
use serde::{Deserialize, Serialize};

/// A failure as callers see it: what failed, why, and what they can do.
///
/// It crosses the border between a job process and the broker, so it holds
/// texts and not the errors themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// What failed.
    pub message: String,
    /// Why, from the outermost cause to the root.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What the user can do, if there is something.
    #[serde(default)]
    pub hint: Option<String>,
    /// A registry asked to wait that many seconds.
    #[serde(default)]
    pub retry_after_seconds: Option<u64>,
}

impl Failure {
    /// A failure without causes.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new(), hint: None, retry_after_seconds: None }
    }

    /// A failure of the program or the machine.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Takes the texts of `error` and of all its sources as causes. A full
    /// disk anywhere among them makes the kind [`ErrorKind::NoSpace`].
    #[must_use]
    pub fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(io) = error.downcast_ref::<io::Error>()
                && is_no_space(io)
            {
                self.kind = ErrorKind::NoSpace;
                self.hint.get_or_insert_with(|| MAKE_ROOM.to_owned());
            }
            let text = error.to_string();
            // Some errors repeat their source's text.
            if self.causes.last().is_none_or(|last| !last.ends_with(&text)) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// As much of it as may be shown and kept when it comes from a process that
    /// is not trusted to be brief, or to keep to text.
    #[must_use]
    pub(crate) fn tamed(mut self) -> Self {
        /// Longest text in characters.
        const MAX_TEXT: usize = 1000;
        const MAX_CAUSES: usize = 16;
        let tame = |text: &mut String| *text = text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
        self.causes.truncate(MAX_CAUSES);
        self.causes.iter_mut().chain([&mut self.message]).chain(&mut self.hint).for_each(tame);
        self
    }

    /// Takes another failure as the cause, with its kind, hint and delay.
    #[must_use]
    pub fn caused_by(mut self, cause: Self) -> Self {
        self.kind = cause.kind;
        self.causes.push(cause.message);
        self.causes.extend(cause.causes);
        self.hint = self.hint.or(cause.hint);
        self.retry_after_seconds = self.retry_after_seconds.or(cause.retry_after_seconds);
        self
    }

    /// Says what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what was being done when `error` came.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::internal(what.to_string()).because(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl Error for Failure {}

/// What helps against a full cache.
pub(crate) const MAKE_ROOM: &str = "make room on the disk of the cache, for instance with `sctl cache clean`";

/// True if the file system, a quota or a file size limit has run out.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write the pack")]
    struct Outer {
        source: io::Error,
    }

    #[test]
    fn a_full_disk_is_found_below_other_errors() {
        let error = Outer { source: io::Error::from(io::ErrorKind::StorageFull) };
        let failure = Failure::internal("layer 1 failed").because(&error);
        assert_eq!(failure.kind, ErrorKind::NoSpace);
        assert_eq!(failure.causes.len(), 2);
        assert_eq!(failure.causes[0], "cannot write the pack");
    }

    #[test]
    fn what_a_job_says_is_cut_and_cleaned() {
        let mut failure = Failure::internal("\x1b[2Jcannot\n\0 go on").hint("h".repeat(5000));
        failure.causes = vec!["c\u{9b}".repeat(5000); 5000];
        let tamed = failure.tamed();
        assert_eq!(tamed.message, "[2Jcannot go on");
        assert_eq!(tamed.hint.unwrap().len(), 1000);
        assert_eq!((tamed.causes.len(), tamed.causes[0].as_str()), (16, "c".repeat(1000).as_str()));
    }

    #[test]
    fn a_cause_gives_its_kind_and_hint() {
        let mut cause = Failure::new(ErrorKind::RateLimited, "too many requests").hint("log in");
        cause.retry_after_seconds = Some(7);
        let failure = Failure::internal("cannot pull").caused_by(cause);
        assert_eq!(failure.kind, ErrorKind::RateLimited);
        assert_eq!(failure.causes, ["too many requests"]);
        assert_eq!((failure.hint.as_deref(), failure.retry_after_seconds), (Some("log in"), Some(7)));
    }
}
