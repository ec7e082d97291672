//! Messages: levels, prefixes and colours.
//!
//! Everything here goes to stderr; results, tables and prompts are printed to
//! stdout by the commands themselves.

mod date;
pub mod progress;
pub mod prompt;
mod size;
mod table;

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, AtomicI8, Ordering},
};

pub use date::{date_text, duration_text};
pub use size::size_text;
pub use table::Table;

use crate::failure::{Failure, Severity};

/// Level of the messages that are shown, as the established tools number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i8)]
pub enum Level {
    /// Why the program ends.
    Fatal = -4,
    /// What went wrong.
    Error = -3,
    /// What is odd but not in the way.
    Warning = -2,
    /// What happens.
    Info = 1,
    /// Decisions that users may ask for.
    Verbose = 2,
    /// Everything else.
    Debug = 5,
}

/// `-s`
pub const SILENT: i8 = -3;
/// `-q`
pub const QUIET: i8 = -1;
/// Without any flag.
pub const NORMAL: i8 = 1;
/// `-v`
pub const VERBOSE: i8 = 4;
/// `-d`
pub const DEBUG: i8 = 5;

static THRESHOLD: AtomicI8 = AtomicI8::new(NORMAL);
static COLOUR: AtomicBool = AtomicBool::new(false);

/// Sets what is shown; `colour` is only a wish, which a terminal must grant.
pub fn init(threshold: i8, colour: bool) {
    THRESHOLD.store(threshold, Ordering::Relaxed);
    COLOUR.store(colour && io::stderr().is_terminal(), Ordering::Relaxed);
}

/// The number that decides what is shown.
pub fn threshold() -> i8 {
    THRESHOLD.load(Ordering::Relaxed)
}

/// Says whether messages of `level` are shown.
pub fn shows(level: Level) -> bool {
    level as i8 <= threshold()
}

/// Prints one message, with its prefix, if its level is shown.
pub fn message(level: Level, text: &dyn fmt::Display) {
    if shows(level) {
        // Nobody is left to tell when stderr is gone.
        let _ = io::stderr().lock().write_all(format!("{}{text}\n", prefix(level)).as_bytes());
    }
}

/// Tells a failure: the message, each cause on a line, the hint.
pub fn failure(failure: &Failure) {
    let level = match failure.severity {
        Severity::Fatal => Level::Fatal,
        Severity::Error => Level::Error,
        Severity::Silent => return,
    };
    let mut text = failure.message.clone();
    for cause in &failure.causes {
        for line in cause.lines() {
            text.push_str("\n  cause: ");
            text.push_str(&printable(line));
        }
    }
    if let Some(hint) = &failure.hint {
        text.push_str("\n  hint: ");
        text.push_str(hint);
    }
    message(level, &text);
}

/// Text of others (a registry, a daemon) without what a terminal would obey.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Prints a result to stdout.
///
/// # Errors
/// Results that cannot be written; a reader that has gone is none.
pub fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Prints the bytes of a result to stdout.
///
/// # Errors
/// As [`print`].
pub fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("Unable to write to standard output").source(&error))
        }
        _ => Ok(()),
    }
}

fn prefix(level: Level) -> String {
    let (name, colour) = match level {
        Level::Fatal => ("FATAL:", "\x1b[31m"),
        Level::Error => ("ERROR:", "\x1b[31m"),
        Level::Warning => ("WARNING:", "\x1b[33m"),
        Level::Info => ("INFO:", "\x1b[34m"),
        Level::Verbose => ("VERBOSE:", ""),
        Level::Debug => {
            let ids = format!("DEBUG   [U={},P={}]", rustix::process::geteuid().as_raw(), std::process::id());
            return format!("{ids:<30} ");
        }
    };
    if COLOUR.load(Ordering::Relaxed) && !colour.is_empty() {
        format!("{colour}{name:<8}\x1b[0m ")
    } else {
        format!("{name:<8} ")
    }
}

/// Prints an `INFO:` line.
macro_rules! info {
    ($($arg:tt)*) => { $crate::output::message($crate::output::Level::Info, &format_args!($($arg)*)) };
}
/// Prints a `WARNING:` line.
macro_rules! warning {
    ($($arg:tt)*) => { $crate::output::message($crate::output::Level::Warning, &format_args!($($arg)*)) };
}
/// Prints a `VERBOSE:` line.
macro_rules! verbose {
    ($($arg:tt)*) => { $crate::output::message($crate::output::Level::Verbose, &format_args!($($arg)*)) };
}
/// Prints a `DEBUG` line.
macro_rules! debug {
    ($($arg:tt)*) => { $crate::output::message($crate::output::Level::Debug, &format_args!($($arg)*)) };
}
pub(crate) use {debug, info, verbose, warning};
