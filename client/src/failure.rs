//! A failure as the user sees it: what failed, why, and what to do.

use std::{error::Error, fmt, io, process::ExitCode};

/// Exit code of every `FATAL`.
pub const FATAL: u8 = 255;
/// Exit code of usage errors and of refused prompts.
pub const USAGE: u8 = 1;

/// How loudly a failure is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// `FATAL:`, the common case.
    Fatal,
    /// `ERROR:`, where the established tools say so.
    Error,
    /// Nothing is printed: the text has already been shown.
    Silent,
}

/// A failure that ends the program: message, causes, hint, exit code.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What failed; may hold several lines.
    pub message: String,
    /// Why, from the outermost cause to the root.
    pub causes: Vec<String>,
    /// What the user can do.
    pub hint: Option<String>,
    /// Status that the process ends with.
    pub code: u8,
    /// Prefix of the message.
    pub severity: Severity,
}

impl Failure {
    /// A `FATAL` that ends with 255.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), hint: None, code: FATAL, severity: Severity::Fatal }
    }

    /// An `ERROR` that ends with 1.
    pub fn error(message: impl Into<String>) -> Self {
        Self { code: USAGE, severity: Severity::Error, ..Self::new(message) }
    }

    /// Ends the program with `code` and prints nothing more.
    pub fn silent(code: u8) -> Self {
        Self { code, severity: Severity::Silent, ..Self::new("") }
    }

    /// Adds one line of cause.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(without_number(&cause.to_string()).to_owned());
        self
    }

    /// Adds an error and all its sources as causes.
    #[must_use]
    pub fn source(mut self, error: &dyn Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = without_number(&error.to_string()).to_owned();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Says what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Status that the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

/// Text of a system error without its number, as other programs print it.
pub fn reason(error: &io::Error) -> String {
    without_number(&error.to_string()).to_owned()
}

/// Takes away what the standard library adds to the system's own words.
fn without_number(text: &str) -> &str {
    let number = text.strip_suffix(')').and_then(|text| text.rsplit_once(" (os error "));
    match number {
        Some((words, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => words,
        _ => text,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once_and_in_plain_words() {
        let missing = io::Error::from_raw_os_error(2);
        assert_eq!(reason(&missing), "No such file or directory");
        assert_eq!(reason(&io::Error::other("odd (os error x)")), "odd (os error x)");
        let failure = Failure::new("a").source(&missing).source(&missing);
        assert_eq!(failure.causes, ["No such file or directory"]);
        assert_eq!(failure.to_string(), "a: No such file or directory");
    }
}
