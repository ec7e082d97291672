//! What each verb does.

mod admin;
mod build;
mod cache;
mod container;
mod inspect;
mod order;
mod pull;
mod users;

use std::future::Future;

use crate::{
    cli::{self, Action, Environment, Task},
    config::Config,
    failure::{Failure, reason},
    flavour::Flavour,
    output,
};

/// What every verb may look at.
#[derive(Debug)]
pub struct Context<'a> {
    /// Wording and variables.
    pub flavour: Flavour,
    /// The process's environment.
    pub environment: &'a Environment,
}

/// Does what the command line asks for. Containers replace this process and
/// do not return.
///
/// # Errors
/// What is to be told and the exit code.
pub fn perform(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let config = || Config::load(task.settings.value("config"));
    match task.action {
        Action::Pull => pull::pull(context, task),
        Action::Build => build::build(context, task),
        Action::Exec | Action::Run | Action::Shell => container::start(context, task, &config()?),
        Action::Inspect => inspect::inspect(task),
        Action::CacheList => cache::list(context, task),
        Action::CacheInfo => cache::info(context, task),
        Action::CacheClean => cache::clean(context, task),
        Action::AdminMounts => admin::mounts(context, task),
        Action::AdminJobs => admin::jobs(context, task),
        Action::AdminLeases => admin::leases(context, task),
        Action::AdminUnmount => admin::unmount(context, task),
        Action::Completion => completion(context, task),
        Action::Manual => manual(task),
        // Groups, help and version end in the parser.
        Action::Group | Action::Help | Action::Version => Ok(()),
    }
}

fn completion(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let name = task.args[0].to_string_lossy();
    let shell: clap_complete::Shell = name.parse().map_err(|_| {
        Failure::error(format!("unknown shell \"{name}\"")).hint("known are bash, zsh, fish, powershell and elvish")
    })?;
    let program = context.flavour.program();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::tree(program), program, &mut script);
    output::print_bytes(&script)
}

fn manual(task: &Task) -> Result<(), Failure> {
    let name = task.args.first().map_or("sctl".into(), |name| name.to_string_lossy());
    let page = cli::manual::page(&name).ok_or_else(|| {
        let known: Vec<&str> = cli::manual::pages().collect();
        Failure::error(format!("unknown page \"{name}\"")).hint(format!("known are {}", known.join(", ")))
    })?;
    output::print(&page)
}

/// Runs `work` until a signal asks to stop; what it holds is dropped then.
///
/// # Errors
/// Those of `work`, or the interruption.
async fn until_interrupted<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| Failure::new("Unable to listen to signals").cause(reason(&error)));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let number = tokio::select! {
        result = work => return result,
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    };
    let mut failure = Failure::error("Interrupted");
    failure.code = 128 + number;
    Err(failure)
}
