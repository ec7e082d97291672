//! The client: arguments, output, and containers in the caller's own
//! namespaces. It never has privileges of its own.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod config;
mod credentials;
mod daemon;
mod delivered;
mod failure;
mod flavour;
mod fuse;
mod options;
mod output;
mod runtime;
mod target;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use cli::{Environment, ParseError, Request, UsageError};
use commands::Context;
use failure::Failure;
use flavour::Invocation;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let invocation = Invocation::from_argv0(&args.next().unwrap_or_default());
    let args: Vec<OsString> = args.collect();
    let environment = Environment::of_process();
    output::init(output::NORMAL, true);
    match cli::parse(invocation, &args, &environment) {
        Ok(Request::Print(text)) => output::print(&text).map_or_else(|failure| tell(&failure), |()| ExitCode::SUCCESS),
        Ok(Request::Do(task)) => {
            output::init(task.threshold, task.colour);
            task.notes.iter().for_each(|(level, text)| output::message(*level, text));
            let context = Context { flavour: invocation.flavour, environment: &environment };
            commands::perform(&context, &task).map_or_else(|failure| tell(&failure), |()| ExitCode::SUCCESS)
        }
        Err(ParseError::Usage(error)) => {
            // Nobody is left to tell when stderr is gone.
            let _ = io::stderr().lock().write_all(error.text.as_bytes());
            ExitCode::from(UsageError::CODE)
        }
        Err(ParseError::Failure(failure)) => tell(&failure),
    }
}

/// Tells a failure and gives the exit code that goes with it.
fn tell(failure: &Failure) -> ExitCode {
    output::failure(failure);
    failure.exit_code()
}
