//! The manual pages: prose from `docs/`, options from the argument parser,
//! keys of the configuration from `docs/configuration.md`.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::{Arguments, reload};

/// Names of the pages, and their templates.
const PAGES: [(&str, &str); 2] =
    [("sctld", include_str!("../docs/sctld.8")), ("sctld.toml", include_str!("../docs/sctld.toml.5"))];

/// Where all keys are described.
const CONFIGURATION: &str = include_str!("../docs/configuration.md");

/// A page as man(1) reads it; `None` if there is none of that name.
pub fn page(name: &str) -> Option<String> {
    let (_, template) = PAGES.iter().find(|(known, _)| *known == name)?;
    let mut page = String::new();
    for line in template.lines() {
        match line {
            "@OPTIONS@" => options(&mut page),
            "@KEYS@" => keys(&mut page),
            line => {
                page.push_str(&line.replace("@VERSION@", env!("CARGO_PKG_VERSION")));
                page.push('\n');
            }
        }
    }
    Some(page)
}

fn options(page: &mut String) {
    let mut command = Arguments::command();
    command.build();
    let mut options: Vec<_> =
        command.get_arguments().filter(|option| !option.is_hide_set() && option.get_long().is_some()).collect();
    options.sort_by_key(|option| option.get_long());
    for option in options {
        let letter = option.get_short().map(|letter| format!("\\fB\\-{letter}\\fR, ")).unwrap_or_default();
        let long = escaped(option.get_long().unwrap_or_default());
        let takes_value = option.get_action().takes_values();
        let value = option.get_value_names().filter(|_| takes_value).and_then(|names| names.first());
        let value = value.map(|name| format!(" \\fI{}\\fR", escaped(name))).unwrap_or_default();
        let help = option.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(page, ".TP\n{letter}\\fB\\-\\-{long}\\fR{value}\n{}", text(&help));
        if let Some(variable) = option.get_env().and_then(|name| name.to_str()) {
            let _ = writeln!(page, "(variable: {})", escaped(variable));
        }
    }
}

/// One line of the table of keys.
struct Row<'a> {
    /// The section, if it is in one.
    section: Option<&'a str>,
    keys: Vec<&'a str>,
    default: &'a str,
    meaning: &'a str,
}

impl Row<'_> {
    /// `section.key`
    fn names(&self) -> impl Iterator<Item = String> {
        let prefix = self.section.map(|section| format!("{section}.")).unwrap_or_default();
        self.keys.iter().map(move |key| format!("{prefix}{key}"))
    }
}

/// The daemon's keys, as the table lists them.
fn rows() -> Vec<Row<'static>> {
    let section = CONFIGURATION.split("\n## ").find(|section| section.starts_with("The daemon")).unwrap_or_default();
    let mut rows = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [names, default, meaning] = cells[..] else { continue };
        let mut keys: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        let section = keys.first().and_then(|first| first.strip_prefix('[')).and_then(|name| name.strip_suffix(']'));
        if section.is_some() {
            keys.remove(0);
        }
        rows.push(Row { section, keys, default, meaning });
    }
    rows
}

fn keys(page: &mut String) {
    let mut section = None;
    for row in rows() {
        if row.section != section {
            section = row.section;
            let _ = writeln!(page, ".SS [{}]", section.unwrap_or_default());
        }
        let names: Vec<String> = row.keys.iter().map(|key| format!("\\fB{}\\fR", escaped(key))).collect();
        let restart = if row.names().all(|name| reload::counts_at_once(&name)) { "" } else { " (\\fIrestart\\fR)" };
        let (default, meaning) = (spans(row.default), spans(row.meaning));
        let _ = writeln!(page, ".TP\n{}{restart}\n{meaning}. Default: {default}.", names.join(", "));
    }
}

/// Markdown's code spans as bold words, its links as their text.
fn spans(markdown: &str) -> String {
    let mut markdown = markdown.to_owned();
    while let Some(middle) = markdown.find("](")
        && let Some(start) = markdown[..middle].rfind('[')
        && let Some(end) = markdown[middle..].find(')')
    {
        markdown.replace_range(middle..=middle + end, "");
        markdown.remove(start);
    }
    let parts = markdown.split('`').enumerate();
    let text: String = parts
        .map(|(at, part)| if at % 2 == 1 { format!("\\fB{}\\fR", escaped(part)) } else { escaped(part) })
        .collect();
    text.trim_end_matches('.').to_owned()
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
    use std::collections::BTreeSet;

    use super::*;
    use crate::Config;

    /// Every key that the parser knows, asked from the parser: an unknown key
    /// is answered with those that there are.
    fn known() -> BTreeSet<String> {
        let ask = |section: &str| {
            let text = if section.is_empty() { "x-x = 1".to_owned() } else { format!("[{section}]\nx-x = 1") };
            let error = toml::from_str::<Config>(&text).unwrap_err();
            error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect::<Vec<_>>()
        };
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        let mut known = BTreeSet::new();
        for key in ask("") {
            if defaults.get(&key).is_some_and(toml::Value::is_table) {
                known.extend(ask(&key).into_iter().map(|inner| format!("{key}.{inner}")));
            } else {
                known.insert(key);
            }
        }
        known
    }

    #[test]
    fn every_key_is_described_and_no_other() {
        let described: BTreeSet<String> = rows().iter().flat_map(Row::names).collect();
        let known = known();
        assert!(known.contains("lease_seconds") && known.contains("limits.max_layers"), "{known:?}");
        assert_eq!(described, known);
    }

    #[test]
    fn defaults_are_told_as_they_are() {
        let defaults = reload::values(&Config::default());
        let mut compared = 0;
        for row in rows() {
            let code = row.default.strip_prefix('`').and_then(|default| default.strip_suffix('`'));
            let Some(code) = code.filter(|code| !code.contains('`')) else { continue };
            let told: toml::Table = toml::from_str(&format!("x = {code}")).unwrap();
            for name in row.names() {
                assert_eq!(defaults.get(&name), told.get("x"), "{name}");
                compared += 1;
            }
        }
        assert!(compared > 20, "only {compared} of them are plain values");
    }

    #[test]
    fn what_needs_a_restart_is_told() {
        let sentence =
            CONFIGURATION.split("but for ").nth(1).and_then(|rest| rest.split("those count").next()).unwrap();
        let told: BTreeSet<String> = sentence.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let needed = known().into_iter().filter(|key| !reload::counts_at_once(key));
        let needed: BTreeSet<String> = needed
            .map(|key| match key.split_once('.') {
                // All of its keys.
                Some(("mount", _)) => "[mount]".to_owned(),
                Some((section, key)) => format!("[{section}] {key}"),
                None => key,
            })
            .collect();
        assert_eq!(told, needed);
        assert!(!known().iter().any(|key| key.starts_with("mount.") && reload::counts_at_once(key)));
    }

    #[test]
    fn code_is_bold_and_links_are_their_text() {
        assert_eq!(spans("the [audit](a.md) of `x-y`, [and](b)"), "the audit of \\fBx\\-y\\fR, and");
    }

    #[test]
    fn pages_are_whole() {
        let (daemon, file) = (page("sctld").unwrap(), page("sctld.toml").unwrap());
        for page in [&daemon, &file] {
            assert!(!page.contains("@VERSION@") && !page.lines().any(|line| line.starts_with('@')));
        }
        for option in ["user", "config", "socket", "mount\\-socket", "cache\\-dir", "job\\-socket", "check", "version"]
        {
            assert!(daemon.contains(&format!("\\fB\\-\\-{option}\\fR")), "--{option}");
        }
        assert!(!file.contains("]("), "a link of another kind of text");
        assert!(file.contains("\n\\fBlease_seconds\\fR\n"), "counts at once");
        assert!(file.contains("\n\\fBcache_dir\\fR (\\fIrestart\\fR)\n"));
        assert!(page("no such page").is_none());
    }
}
