//! The verbs as clap knows them.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command, builder::OsStringValueParser};

use super::{
    flag::{Flag, Kind},
    verbs::{GLOBAL, ROOT, VERBS, Verb},
};

/// Name of clap's argument that collects what is no option.
pub const OPERANDS: &str = "<operands>";
/// Name of clap's `--help`.
pub const HELP: &str = "help";

/// Options that count for a verb: its own, and the global ones with those
/// letters that the verb does not use itself. `None` stands for the program.
pub fn flags_of(verb: Option<&Verb>) -> Vec<(&'static Flag, Option<char>)> {
    let own: Vec<&'static Flag> = match verb {
        Some(verb) => verb.own_flags().collect(),
        None => ROOT.iter().collect(),
    };
    let mut flags: Vec<_> = own.iter().map(|flag| (*flag, flag.short)).collect();
    for flag in GLOBAL {
        if own.iter().all(|other| other.long != flag.long) {
            let taken = own.iter().any(|other| other.short == flag.short);
            flags.push((flag, flag.short.filter(|_| !taken)));
        }
    }
    flags
}

/// The parser of one verb, or of what stands before the verb.
pub fn parser(verb: Option<&Verb>, operands: bool) -> Command {
    let mut command = Command::new(verb.map_or("sctl", |verb| verb.name))
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args_override_self(true)
        .arg(Arg::new(HELP).long("help").short('h').action(ArgAction::SetTrue).help("show this help"));
    for (flag, short) in flags_of(verb) {
        command = command.arg(argument(flag, short));
    }
    if operands {
        let parser = OsStringValueParser::new();
        command = command.arg(Arg::new(OPERANDS).num_args(0..).value_parser(parser).hide(true));
    }
    command
}

fn argument(flag: &'static Flag, short: Option<char>) -> Arg {
    let mut arg = Arg::new(flag.long)
        .long(flag.long)
        .aliases(flag.aliases)
        .help(flag.help)
        .hide(flag.hidden)
        .value_parser(OsStringValueParser::new());
    if let Some(letter) = short {
        arg = arg.short(letter);
    }
    match flag.kind {
        // `--force=false` is a habit of the established tools.
        Kind::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .hide_possible_values(true)
            .value_name("BOOL"),
        Kind::Value(name) => arg.action(ArgAction::Set).allow_hyphen_values(true).value_name(name),
        Kind::Many(name) => arg.action(ArgAction::Append).num_args(1).allow_hyphen_values(true).value_name(name),
    }
}

/// The list of a verb's options, as help texts show it.
pub fn options_text(verb: Option<&Verb>) -> String {
    let mut rows: Vec<(String, &str)> = flags_of(verb)
        .into_iter()
        .filter(|(flag, _)| !flag.hidden)
        .map(|(flag, short)| {
            let letter = short.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
            let value = match flag.kind {
                Kind::Switch => String::new(),
                Kind::Value(name) | Kind::Many(name) => format!(" {name}"),
            };
            (format!("  {letter}--{}{value}", flag.long), flag.help)
        })
        .collect();
    rows.push(("  -h, --help".to_owned(), "show this help"));
    rows.sort_by(|a, b| a.0[6..].cmp(&b.0[6..]));
    let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0).min(40);
    rows.iter().map(|(left, help)| format!("{left:<width$}  {help}\n")).collect()
}

/// Position of the first argument that is no option, as `flags` define what
/// takes a value. What follows `--` is never an option.
pub fn first_operand(args: &[OsString], verb: Option<&Verb>) -> Option<usize> {
    let flags = flags_of(verb);
    let long_takes = |name: &str| {
        flags.iter().any(|(flag, _)| flag.takes_value() && (flag.long == name || flag.aliases.contains(&name)))
    };
    let short_takes = |letter: char| flags.iter().any(|(flag, short)| flag.takes_value() && *short == Some(letter));
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        let text = arg.to_string_lossy();
        if text == "--" {
            return (at + 1 < args.len()).then_some(at + 1);
        } else if let Some(name) = text.strip_prefix("--") {
            if long_takes(name) {
                at += 1;
            }
        } else if text.len() > 1 && text.starts_with('-') {
            let cluster: Vec<char> = text.chars().skip(1).collect();
            if let Some(position) = cluster.iter().position(|&letter| letter == '=' || short_takes(letter))
                && position + 1 == cluster.len()
                && cluster[position] != '='
            {
                at += 1;
            }
        } else {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Everything as one clap command: for completion scripts.
pub fn tree(program: &'static str) -> Command {
    fn add(mut command: Command, verbs: &'static [Verb]) -> Command {
        for verb in verbs {
            let mut sub = Command::new(verb.name).about(verb.about).disable_help_flag(true);
            for (flag, short) in flags_of(Some(verb)) {
                let arg = argument(flag, short);
                // Completion offers `--force`, not `--force=`.
                let arg = match flag.kind {
                    Kind::Switch => Arg::new(flag.long).long(flag.long).action(ArgAction::SetTrue).help(flag.help),
                    Kind::Value(_) | Kind::Many(_) => arg,
                };
                sub = sub.arg(if flag.hidden { arg.hide(true) } else { arg });
            }
            if verb.verbs.is_empty() && verb.args != super::verbs::Args::Exactly(0) {
                sub = sub.arg(Arg::new(OPERANDS).num_args(0..).value_hint(clap::ValueHint::FilePath));
            }
            command = command.subcommand(add(sub, verb.verbs));
        }
        command
    }
    let root = Command::new(program).disable_help_subcommand(true).version(env!("CARGO_PKG_VERSION"));
    add(root, VERBS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verb(name: &str) -> &'static Verb {
        VERBS.iter().find(|verb| verb.name == name).unwrap()
    }

    fn os(args: &[&str]) -> Vec<OsString> {
        args.iter().map(Into::into).collect()
    }

    #[test]
    fn the_tables_are_sound() {
        fn check(verbs: &'static [Verb]) {
            for verb in verbs {
                parser(Some(verb), true).debug_assert();
                check(verb.verbs);
            }
        }
        parser(None, false).debug_assert();
        check(VERBS);
        tree("sctl").debug_assert();
    }

    #[test]
    fn options_end_at_the_image() {
        let exec = Some(verb("exec"));
        let cases: [(&[&str], Option<usize>); 12] = [
            (&["x.sif", "ls", "-l"], Some(0)),
            (&["-c", "x.sif"], Some(1)),
            (&["-ce", "--bind", "/a", "x.sif", "--bind"], Some(3)),
            (&["--bind=/a", "x.sif"], Some(1)),
            (&["-B", "/a", "-B/b", "x.sif"], Some(3)),
            (&["-cB", "/a", "x.sif"], Some(2)),
            (&["-cB/a", "x.sif"], Some(1)),
            (&["--pwd", "/a", "x.sif"], Some(2)),
            (&["--", "-x.sif"], Some(1)),
            (&["--"], None),
            (&["--unknown", "x.sif"], Some(1)),
            (&["-"], Some(0)),
        ];
        for (args, at) in cases {
            assert_eq!(first_operand(&os(args), exec), at, "{args:?}");
        }
    }
}
