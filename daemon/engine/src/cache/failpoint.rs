//! Places where a test can have the process die.

/// Aborts the process if the environment asks for it here.
///
/// `SCTL_FAILPOINT=name` names the place; `name:3` lets it pass twice.
/// `SCTL_FAILPOINT_LOG=file` collects the names of all places that were
/// passed, so that a test can visit each. Only debug builds look: in a release
/// build this is nothing.
#[cfg(debug_assertions)]
pub fn failpoint(name: &str) {
    use std::{
        fs::OpenOptions,
        io::Write,
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
    };
    static WANTED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("SCTL_FAILPOINT").ok()?;
        Some(match text.rsplit_once(':') {
            Some((name, count)) => (name.to_owned(), AtomicU32::new(count.parse().unwrap_or(1))),
            None => (text, AtomicU32::new(1)),
        })
    });
    static LOG: OnceLock<Option<std::ffi::OsString>> = OnceLock::new();
    if let Some(path) = LOG.get_or_init(|| std::env::var_os("SCTL_FAILPOINT_LOG")) {
        let logged = OpenOptions::new().append(true).create(true).open(path);
        // A test that gets no log notices by itself.
        let _ = logged.and_then(|mut log| writeln!(log, "{name}"));
    }
    if let Some((place, left)) = wanted
        && place == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        // As abrupt as a crash can be: nothing is unwound, flushed or removed.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}

/// Does nothing: release builds have no failpoints.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn failpoint(_name: &str) {}

/// [`failpoint`] at one step of an operation that has several.
#[inline(always)]
pub(super) fn failpoint_at(operation: &str, step: &str) {
    if cfg!(debug_assertions) {
        failpoint(&format!("{operation}.{step}"));
    }
}
