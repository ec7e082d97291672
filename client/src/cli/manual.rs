//! The manual pages: prose from `docs/`, commands and options from the tables.

use std::fmt::Write as _;

use super::{
    flag::{Flag, Kind, Support},
    verbs::{GLOBAL, ROOT, VERBS, Verb},
};

/// Names of the pages, and their templates.
const PAGES: [(&str, &str); 2] =
    [("sctl", include_str!("../../docs/sctl.1")), ("sctl.toml", include_str!("../../docs/sctl.toml.5"))];

/// Names of the pages.
pub fn pages() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|(name, _)| *name)
}

/// A page as man(1) reads it; `None` if there is none of that name.
pub fn page(name: &str) -> Option<String> {
    let (_, template) = PAGES.iter().find(|(known, _)| *known == name)?;
    let mut page = String::new();
    for line in template.lines() {
        match line {
            "@COMMANDS@" => commands(&mut page, VERBS, "sctl"),
            "@GLOBAL@" => {
                let mut flags: Vec<&Flag> = ROOT.iter().chain(GLOBAL).collect();
                flags.sort_by_key(|flag| flag.long);
                flags.into_iter().for_each(|flag| option(&mut page, flag));
            }
            "@OPTIONS@" => options(&mut page),
            line => {
                page.push_str(&line.replace("@VERSION@", env!("CARGO_PKG_VERSION")));
                page.push('\n');
            }
        }
    }
    Some(page)
}

fn commands(page: &mut String, verbs: &'static [Verb], before: &str) {
    for verb in verbs {
        let name = format!("{before} {}", verb.name);
        if !verb.verbs.is_empty() {
            commands(page, verb.verbs, &name);
            continue;
        }
        let usage = verb.usage.replace(&format!("{} options", verb.name), "options");
        let usage = if usage.is_empty() { String::new() } else { format!(" \\fI{}\\fR", escaped(&usage)) };
        let _ = writeln!(page, ".TP\n\\fB{}\\fR{usage}\n{}", escaped(&name), text(verb.about));
    }
}

/// Options in the groups that verbs share, under the names of those verbs.
fn options(page: &mut String) {
    let mut groups: Vec<(Vec<&'static Flag>, Vec<String>)> = Vec::new();
    fn collect(groups: &mut Vec<(Vec<&'static Flag>, Vec<String>)>, verbs: &'static [Verb], before: &str) {
        for verb in verbs {
            let name = format!("{before}{}", verb.name);
            collect(groups, verb.verbs, &format!("{name} "));
            for group in verb.flags {
                let mut flags: Vec<&'static Flag> = group.iter().filter(|flag| !flag.hidden).collect();
                flags.sort_by_key(|flag| flag.long);
                let same = |other: &Vec<&'static Flag>| {
                    other.len() == flags.len()
                        && other.iter().zip(&flags).all(|(a, b)| (a.long, a.short, a.help) == (b.long, b.short, b.help))
                };
                match groups.iter_mut().find(|(other, _)| same(other)) {
                    Some((_, names)) => names.push(name.clone()),
                    None if flags.is_empty() => {}
                    None => groups.push((flags, vec![name.clone()])),
                }
            }
        }
    }
    collect(&mut groups, VERBS, "");
    // Groups of the same verbs become one section.
    let mut sections: Vec<(Vec<&'static Flag>, Vec<String>)> = Vec::new();
    for (flags, names) in groups {
        match sections.iter_mut().find(|(_, other)| *other == names) {
            Some((all, _)) => all.extend(flags),
            None => sections.push((flags, names)),
        }
    }
    for (mut flags, names) in sections {
        flags.sort_by_key(|flag| flag.long);
        let list = match names.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
            None => continue,
        };
        let _ = writeln!(page, ".SH OPTIONS OF {}", escaped(&list.to_uppercase()));
        flags.into_iter().for_each(|flag| option(page, flag));
    }
}

fn option(page: &mut String, flag: &Flag) {
    let value = match flag.kind {
        Kind::Switch => String::new(),
        Kind::Value(name) | Kind::Many(name) => format!(" \\fI{}\\fR", escaped(name)),
    };
    let letter = flag.short.map(|letter| format!("\\fB\\-{letter}\\fR, ")).unwrap_or_default();
    let _ = writeln!(page, ".TP\n{letter}\\fB\\-\\-{}\\fR{value}\n{}", escaped(flag.long), text(flag.help));
    if flag.support == Support::Full && !flag.keys.is_empty() {
        let plural = if flag.keys.len() == 1 { "" } else { "s" };
        let _ = writeln!(page, "(variable{plural}: {})", escaped(&flag.keys.join(", ")));
    }
}

/// Text that man(1) shows as it is.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// A paragraph: its first character must not look like a request.
fn text(text: &str) -> String {
    let text = escaped(text);
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command::flags_of;

    #[test]
    fn every_command_and_option_is_in_the_manual() {
        let page = page("sctl").unwrap();
        assert!(!page.lines().any(|line| line.starts_with('@')), "a mark is left");
        fn check(page: &str, verbs: &'static [Verb], before: &str) {
            for verb in verbs {
                let name = format!("{before} {}", verb.name);
                check(page, verb.verbs, &name);
                assert!(!verb.verbs.is_empty() || page.contains(&format!("\\fB{}\\fR", escaped(&name))), "{name}");
                for (flag, _) in flags_of(Some(verb)).into_iter().filter(|(flag, _)| !flag.hidden) {
                    assert!(page.contains(&format!("\\-\\-{}\\fR", escaped(flag.long))), "{name} --{}", flag.long);
                }
            }
        }
        check(&page, VERBS, "sctl");
        let hidden = VERBS.iter().flat_map(Verb::own_flags).find(|flag| flag.hidden).unwrap();
        assert!(!page.contains(&format!("\\-\\-{}\\fR", escaped(hidden.long))), "{} is shown", hidden.long);
    }

    #[test]
    fn every_key_of_the_configuration_is_in_the_manual() {
        // An unknown key is answered with those that there are.
        let error = toml::from_str::<crate::config::Config>("no_such_key = 1\n").unwrap_err();
        let keys: Vec<&str> = error.message().split('`').skip(3).step_by(2).collect();
        let page = page("sctl.toml").unwrap();
        assert!(!keys.is_empty(), "{error}");
        for key in keys {
            assert!(page.lines().any(|line| line.starts_with(&format!(".BR {key} "))), "{key} is not described");
        }
    }

    #[test]
    fn nothing_in_a_text_is_taken_for_a_request() {
        assert_eq!(text(".a-b\\c"), "\\&.a\\-b\\ec");
        assert_eq!(page("no such page"), None);
    }
}
