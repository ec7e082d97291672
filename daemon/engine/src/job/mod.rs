//! Job processes: one step of a pull each, on untrusted bytes.
//!
//! The broker starts this very program again as `sctld job`, with a control
//! socket and the files that the step reads or writes as inherited
//! descriptors. In system mode it runs as a service user without capabilities.
//! A job can name nothing in the cache; it can only fill the descriptors that
//! it was given, and what it filled is published after it has ended.
//!
//! | step | network | reads | writes |
//! |---|---|---|---|
//! | resolve | yes | | |
//! | layer | yes | | a pack, perhaps the blob |
//! | assemble | no | packs | a SIF |
//!
//! Where a service manager looks after both, [`launcher`] starts the jobs.
//! [`process`] and [`protocol`] are the broker's side and the common tongue,
//! the rest is the job's.

mod assemble;
pub mod launcher;
mod layer;
pub(crate) mod process;
pub(crate) mod protocol;
mod report;
mod resolve;

use std::{
    any::Any,
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use rustix::net::{AddressFamily, SocketType, sockopt};

use self::{
    protocol::{Access, Report, Start},
    report::Reporter,
};
use crate::{
    Failure,
    registry::{ClientOptions, RegistryError},
};

/// Where the last panic happened and what it said.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// The whole life of a job process that was given `fds` descriptors.
///
/// Call it first in `main`: it takes over descriptors by number.
pub fn main(fds: usize) -> ExitCode {
    let refuse = |why: &str| {
        eprintln!("sctld job: {why}; this is started by the daemon, not by hand");
        ExitCode::FAILURE
    };
    let mut fds = match sctl_sys::spawn::take_inherited(fds) {
        Ok(fds) if !fds.is_empty() => fds,
        Ok(_) => return refuse("there are no descriptors"),
        Err(error) => return refuse(&error.to_string()),
    };
    let control = fds.remove(0);
    let is_control = sockopt::socket_domain(&control) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&control) == Ok(SocketType::STREAM);
    if !is_control {
        return refuse("descriptor 3 is no Unix stream socket");
    }
    // Other jobs have the same uid: none may look into this one, which may
    // hold a user's credentials.
    if let Err(error) = sctl_sys::spawn::forbid_tracing() {
        return refuse(&error.to_string());
    }
    std::panic::set_hook(Box::new(|info| {
        let mut panic = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        // The first one is the cause; others follow from it.
        panic.get_or_insert_with(|| info.to_string().replace('\n', " "));
        eprintln!("{info}");
    }));

    let control = UnixStream::from(control);
    let start = match protocol::read(&control) {
        Ok(start) => start,
        Err(error) => return refuse(&format!("there is no work: {error}")),
    };
    let reporter = match control.try_clone() {
        Ok(writer) => Reporter::new(writer),
        Err(error) => return refuse(&error.to_string()),
    };
    let done = match run(start, fds, &control, &reporter) {
        Ok(report) => reporter.send(&report),
        Err(failure) => reporter.send(&Report::Failed(failure)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is left to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(start: Start, fds: Vec<OwnedFd>, control: &UnixStream, reporter: &Reporter) -> Result<Report, Failure> {
    let files = fds.into_iter().map(File::from).collect();
    let (step, result) = match start {
        Start::Resolve(start) => ("resolving the reference", guarded(|| resolve::run(*start, control, reporter))),
        Start::Layer(start) => ("packing a layer", guarded(|| layer::run(*start, files, reporter))),
        Start::Assemble(start) => ("assembling the image", guarded(|| assemble::run(*start, files, reporter))),
    };
    result.unwrap_or_else(|payload| Err(panicked(step, payload.as_ref())))
}

fn guarded<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    // What the panic left half-done dies with this process.
    catch_unwind(AssertUnwindSafe(work))
}

/// The failure of a step that panicked.
fn panicked(step: &str, payload: &(dyn Any + Send)) -> Failure {
    let said = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let text = said.or_else(|| {
        payload.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| payload.downcast_ref().cloned())
    });
    let mut failure = Failure::internal(format!("sctl made a mistake while {step}"))
        .hint("this is a fault of sctl; please report it with the name of the image");
    failure.causes.extend(text);
    failure
}

/// Runs what needs the network.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the network", &error))
}

fn client_options(access: Access, reporter: &Reporter) -> ClientOptions {
    let reporter = reporter.clone();
    ClientOptions {
        credentials: access.credentials,
        session: access.session,
        insecure: access.insecure,
        proxies: access.proxies,
        extra_ca_pem: access.extra_ca_pem.into_iter().map(|pem| pem.0).collect(),
        max_manifest_bytes: access.max_manifest_bytes,
        notices: std::sync::Arc::new(move |notice| reporter.notice(&notice)),
        ..ClientOptions::default()
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let mut failure = Self::new(error.kind(), error.to_string());
        if let Some(source) = std::error::Error::source(&error) {
            // The kind is the error's own to tell.
            failure.causes = Self::internal("").because(source).causes;
        }
        failure.hint = error.hint().map(str::to_owned);
        failure.retry_after_seconds = error.retry_after().map(|delay| delay.as_secs());
        failure
    }
}
