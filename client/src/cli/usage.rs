//! Usage errors and help texts, in the wording that scripts know.

use std::fmt::Write as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{
    command,
    flag::Flag,
    verbs::{Args, VERBS, Verb},
};
use crate::{failure::USAGE, flavour::Flavour};

/// A command line that cannot be understood: the whole text for stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError {
    /// Everything that is printed.
    pub text: String,
}

impl UsageError {
    /// Exit code of every usage error.
    pub const CODE: u8 = USAGE;

    /// A flag is wrong: the error, then the options of the verb.
    pub fn flag(flavour: Flavour, verb: Option<&Verb>, message: &str) -> Self {
        let name = verb.map_or(flavour.program(), |verb| verb.name);
        let options = command::options_text(verb);
        Self {
            text: format!(
                "Error for command \"{name}\": {message}\n\nOptions for {name} command:\n\n{options}\n{}",
                root_hint(flavour)
            ),
        }
    }

    /// The number of arguments is wrong: the error, then the usage line.
    pub fn arguments(flavour: Flavour, path: &[&'static Verb], message: &str) -> Self {
        let name = path.last().map_or(flavour.program(), |verb| verb.name);
        Self {
            text: format!(
                "Error for command \"{name}\": {message}\n\n{}\n{}",
                usage_text(flavour, path),
                root_hint(flavour)
            ),
        }
    }

    /// There is no such verb.
    pub fn unknown_verb(flavour: Flavour, path: &[&'static Verb], word: &str) -> Self {
        let mut program = flavour.program().to_owned();
        for verb in path {
            program.push(' ');
            program.push_str(verb.name);
        }
        let mut text = format!("Error: unknown command \"{word}\" for \"{program}\"\n");
        let verbs = path.last().map_or(VERBS, |verb| verb.verbs);
        let near: Vec<&str> = verbs.iter().map(|verb| verb.name).filter(|name| distance(name, word) <= 2).collect();
        if !near.is_empty() {
            text.push_str("\nDid you mean this?\n");
            near.iter().for_each(|name| text.push_str(&format!("\t{name}\n")));
        }
        write!(text, "\n{}", root_hint(flavour)).unwrap_or_default();
        Self { text }
    }

    /// A verb is missing: usage and hint.
    pub fn no_verb(flavour: Flavour, path: &[&'static Verb]) -> Self {
        Self { text: format!("{}\n{}", usage_text(flavour, path), root_hint(flavour)) }
    }
}

/// The line that ends every usage error.
fn root_hint(flavour: Flavour) -> String {
    format!("Run '{} --help' for more detailed usage information.\n", flavour.program())
}

/// `Usage:` and the line of a verb.
pub fn usage_text(flavour: Flavour, path: &[&'static Verb]) -> String {
    let mut text = format!("Usage:\n  {} [global options...]", flavour.program());
    for verb in path {
        write!(text, " {}", verb.name).unwrap_or_default();
    }
    let tail = path.last().map_or("<command>", |verb| verb.usage);
    if !tail.is_empty() {
        write!(text, " {tail}").unwrap_or_default();
    }
    text.push('\n');
    text
}

/// The text of `--help` for a verb, or for the program if `path` is empty.
pub fn help_text(flavour: Flavour, path: &[&'static Verb]) -> String {
    let verb = path.last().copied();
    let mut text = match verb {
        Some(verb) => format!("{}\n\n{}", verb.about, usage_text(flavour, path)),
        None => format!(
            "Containers from registries and image files, without privileges\n\n{}\nDescription:\n  \
             Images are pulled, converted and kept by a daemon, once for everybody;\n  \
             containers run in namespaces of your own.\n",
            usage_text(flavour, path)
        ),
    };
    write!(text, "\nOptions:\n{}", command::options_text(verb)).unwrap_or_default();
    let verbs = verb.map_or(VERBS, |verb| verb.verbs);
    if !verbs.is_empty() {
        text.push_str("\nAvailable Commands:\n");
        for verb in verbs {
            writeln!(text, "  {:<11} {}", verb.name, verb.about).unwrap_or_default();
        }
    }
    let examples = verb.map_or("  $ {program} help <command>\n  $ {program} help exec\n", |verb| verb.examples);
    if !examples.is_empty() {
        write!(text, "\nExamples:\n{}", examples.replace("{program}", flavour.program())).unwrap_or_default();
    }
    text
}

/// What a wrong number of arguments is called, if it is wrong.
pub fn wrong_count(args: Args, found: usize) -> Option<String> {
    match args {
        Args::Exactly(n) if found != n => Some(format!("accepts {n} arg(s), received {found}")),
        Args::AtLeast(n) if found < n => Some(format!("requires at least {n} arg(s), only received {found}")),
        Args::Between(from, to) if !(from..=to).contains(&found) => {
            Some(format!("accepts between {from} and {to} arg(s), received {found}"))
        }
        _ => None,
    }
}

/// Puts what clap found into the words that scripts know.
pub fn flag_message(error: &clap::Error, flags: &[&'static Flag], args: &[String]) -> String {
    let invalid = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    match error.kind() {
        ErrorKind::UnknownArgument => match invalid.strip_prefix("--") {
            Some(name) => format!("unknown flag: --{}", name.split('=').next().unwrap_or(name)),
            None => {
                let letter = invalid.chars().nth(1).unwrap_or('-');
                let cluster = args
                    .iter()
                    .find(|arg| arg.starts_with('-') && !arg.starts_with("--") && arg.contains(letter))
                    .unwrap_or(&invalid);
                format!("unknown shorthand flag: '{letter}' in {cluster}")
            }
        },
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::NoEquals => {
            let long = invalid.trim_start_matches("--").split([' ', '=', '[']).next().unwrap_or_default().to_owned();
            let last = args.last().map(String::as_str).unwrap_or_default();
            match flags.iter().find(|flag| flag.long == long).and_then(|flag| flag.short) {
                Some(letter) if last.starts_with('-') && !last.starts_with("--") => {
                    format!("flag needs an argument: '{letter}' in {last}")
                }
                _ => format!("flag needs an argument: --{long}"),
            }
        }
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}

/// Number of single-letter edits between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, n) in [("pull", "pull", 0), ("pull", "pul", 1), ("exec", "exce", 2), ("run", "", 3)] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn counts_have_the_known_wording() {
        assert_eq!(wrong_count(Args::Between(1, 2), 0).unwrap(), "accepts between 1 and 2 arg(s), received 0");
        assert_eq!(wrong_count(Args::Exactly(1), 2).unwrap(), "accepts 1 arg(s), received 2");
        assert_eq!(wrong_count(Args::AtLeast(2), 1).unwrap(), "requires at least 2 arg(s), only received 1");
        assert_eq!(wrong_count(Args::AtLeast(0), 9), None);
    }
}
