//! The command line: which verb, which options, which arguments.
//!
//! Options come from tables ([`verbs`]); clap parses them, and this module
//! adds what clap has no words for: options of `exec`, `run` and `shell` end
//! at the image, every option has environment variables, and errors read as
//! those of the established tools.

mod command;
mod flag;
pub mod manual;
mod settings;
mod usage;
mod verbs;

use std::ffi::OsString;

pub use command::tree;
pub use settings::{Environment, Settings};
pub use usage::{UsageError, help_text};
pub use verbs::{Action, VERBS, Verb};

use crate::{
    failure::Failure,
    flavour::{Flavour, Invocation},
    output,
};

/// What the program is to do.
#[derive(Debug)]
pub enum Request {
    /// Print this to stdout.
    Print(String),
    /// Do this.
    Do(Task),
}

/// One verb with everything that it was given.
#[derive(Debug)]
pub struct Task {
    /// Which verb.
    pub action: Action,
    /// Its options.
    pub settings: Settings,
    /// Its arguments; the image comes first for `exec`, `run` and `shell`.
    pub args: Vec<OsString>,
    /// Messages that the reading of variables left, told once levels are set.
    pub notes: Vec<(output::Level, String)>,
    /// Level of messages.
    pub threshold: i8,
    /// Colours are not unwanted.
    pub colour: bool,
}

/// Why there is nothing to do.
#[derive(Debug)]
pub enum ParseError {
    /// The command line is wrong.
    Usage(UsageError),
    /// It is right, but a value or a variable in it is not.
    Failure(Failure),
}

impl From<UsageError> for ParseError {
    fn from(error: UsageError) -> Self {
        Self::Usage(error)
    }
}

impl From<Failure> for ParseError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Understands a command line; `args` do not hold argv\[0\].
///
/// # Errors
/// [`ParseError`] holds the text to show.
pub fn parse(invocation: Invocation, args: &[OsString], environment: &Environment) -> Result<Request, ParseError> {
    let flavour = invocation.flavour;
    if invocation.run_script {
        return run_script(flavour, args, environment);
    }
    // Before the verb.
    let verb_at = command::first_operand(args, None);
    let root_args = &args[..verb_at.unwrap_or(args.len())];
    let root = parse_flags(flavour, None, root_args)?;
    if root.help {
        return Ok(Request::Print(help_text(flavour, &[])));
    }
    if root.settings.switch("version") {
        return Ok(Request::Print(version_line(flavour)));
    }
    let Some(mut at) = verb_at else {
        return Err(UsageError::no_verb(flavour, &[]).into());
    };
    // The verb, and the verb below it.
    let mut path: Vec<&'static Verb> = Vec::new();
    let mut verbs = VERBS;
    let verb = loop {
        let Some(word) = args.get(at) else {
            return Err(UsageError::no_verb(flavour, &path).into());
        };
        let word = word.to_string_lossy();
        at += 1;
        let Some(verb) = verbs.iter().find(|verb| verb.name == word) else {
            if let Some(group) = path.last()
                && word.starts_with('-')
            {
                // `cache --help`
                if parse_flags(flavour, Some(group), &args[at - 1..at])?.help {
                    return Ok(Request::Print(help_text(flavour, &path)));
                }
                continue;
            }
            return Err(UsageError::unknown_verb(flavour, &path, &word).into());
        };
        path.push(verb);
        if verb.verbs.is_empty() {
            break verb;
        }
        verbs = verb.verbs;
    };
    let rest = &args[at..];
    let (head, tail): (&[OsString], &[OsString]) = if verb.stops_at_image {
        match command::first_operand(rest, Some(verb)) {
            Some(image) => rest.split_at(image),
            None => (rest, &[]),
        }
    } else {
        (rest, &[])
    };
    let parsed = parse_flags(flavour, Some(verb), head)?;
    if parsed.help {
        return Ok(Request::Print(help_text(flavour, &path)));
    }
    let mut operands = parsed.operands;
    operands.extend_from_slice(tail);
    if let Some(message) = usage::wrong_count(verb.args, operands.len()) {
        return Err(UsageError::arguments(flavour, &path, &message).into());
    }
    if verb.action == Action::Help {
        return help_for(flavour, &operands);
    }
    if verb.action == Action::Version {
        return Ok(Request::Print(format!("{}\n", flavour.version())));
    }
    let mut settings = parsed.settings;
    settings.inherit(root.settings);
    finish(flavour, verb, settings, operands, environment)
}

/// `run-singularity IMAGE [ARGS]`: a quiet `run`.
fn run_script(flavour: Flavour, args: &[OsString], environment: &Environment) -> Result<Request, ParseError> {
    let verb = VERBS.iter().find(|verb| verb.action == Action::Run);
    let verb = verb.ok_or_else(|| Failure::new("run is not known"))?;
    if args.is_empty() {
        let message = "requires at least 1 arg(s), only received 0";
        return Err(UsageError::arguments(flavour, &[verb], message).into());
    }
    let mut settings = Settings::default();
    settings.set_switch("quiet");
    finish(flavour, verb, settings, args.to_vec(), environment)
}

/// Adds variables, sets the level, refuses what is missing.
fn finish(
    flavour: Flavour,
    verb: &'static Verb,
    mut settings: Settings,
    args: Vec<OsString>,
    environment: &Environment,
) -> Result<Request, ParseError> {
    let mut notes = Vec::new();
    let mut flags: Vec<&'static flag::Flag> = command::flags_of(Some(verb)).into_iter().map(|(flag, _)| flag).collect();
    flags.extend(verbs::ROOT);
    settings.add_environment(flavour, &flags, environment, &mut notes)?;
    if let Some(message) = settings.bad_switch() {
        return Err(UsageError::flag(flavour, Some(verb), &message).into());
    }
    let threshold = if settings.switch("debug") {
        output::DEBUG
    } else if settings.switch("verbose") {
        output::VERBOSE
    } else if settings.switch("silent") {
        output::SILENT
    } else if settings.switch("quiet") {
        output::QUIET
    } else {
        environment.message_level(flavour).unwrap_or(output::NORMAL)
    };
    settings.refuse_missing(&flags)?;
    let colour = !settings.switch("nocolor");
    Ok(Request::Do(Task { action: verb.action, settings, args, notes, threshold, colour }))
}

fn help_for(flavour: Flavour, words: &[OsString]) -> Result<Request, ParseError> {
    let mut path: Vec<&'static Verb> = Vec::new();
    let mut verbs = VERBS;
    for word in words {
        let word = word.to_string_lossy();
        let Some(verb) = verbs.iter().find(|verb| verb.name == word) else {
            return Err(UsageError::unknown_verb(flavour, &path, &word).into());
        };
        path.push(verb);
        verbs = verb.verbs;
    }
    Ok(Request::Print(help_text(flavour, &path)))
}

fn version_line(flavour: Flavour) -> String {
    format!("{} version {}\n", flavour.program(), flavour.version())
}

/// What clap found in the options of one level.
struct Flags {
    settings: Settings,
    operands: Vec<OsString>,
    help: bool,
}

fn parse_flags(flavour: Flavour, verb: Option<&'static Verb>, args: &[OsString]) -> Result<Flags, ParseError> {
    let flags: Vec<&'static flag::Flag> = command::flags_of(verb).into_iter().map(|(flag, _)| flag).collect();
    let matches = match command::parser(verb, verb.is_some()).try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            let texts: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
            let message = usage::flag_message(&error, &flags, &texts);
            return Err(UsageError::flag(flavour, verb, &message).into());
        }
    };
    let settings = Settings::from_matches(&matches, &flags);
    if let Some(message) = settings.bad_switch() {
        return Err(UsageError::flag(flavour, verb, &message).into());
    }
    let operands = if verb.is_some() {
        matches.get_many::<OsString>(command::OPERANDS).map(|values| values.cloned().collect()).unwrap_or_default()
    } else {
        Vec::new()
    };
    Ok(Flags { settings, operands, help: matches.get_flag(command::HELP) })
}

#[cfg(test)]
mod tests;
