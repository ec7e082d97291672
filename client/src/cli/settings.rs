//! What was set, on the command line or by a variable.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use clap::{ArgMatches, parser::ValueSource};

use super::flag::{Flag, Kind, Support};
use crate::{failure::Failure, flavour::Flavour, output::Level};

/// The environment that the program was started with.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The process's own.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// Value of a variable; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Value of a variable as UTF-8 text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(OsStr::to_str)
    }

    /// The level that a parent asks for.
    pub fn message_level(&self, flavour: Flavour) -> Option<i8> {
        flavour.prefixes().iter().find_map(|prefix| self.text(&format!("{prefix}MESSAGELEVEL"))?.trim().parse().ok())
    }

    /// Value of `PREFIX_KEY`, with what is to be said about its prefix.
    fn prefixed(&self, flavour: Flavour, key: &str, notes: &mut Vec<(Level, String)>) -> Option<(String, OsString)> {
        let [winner, other] = flavour.prefixes().map(|prefix| format!("{prefix}{key}"));
        match (self.get(&winner), self.get(&other)) {
            (Some(value), rival) => {
                if rival.is_some_and(|rival| rival != value) {
                    let text = format!("{other} and {winner} have different values, using the latter");
                    notes.push((Level::Warning, text));
                }
                Some((winner, value.to_owned()))
            }
            (None, Some(value)) => {
                if flavour == Flavour::Apptainer {
                    let text = format!("Environment variable {other} is set, but {winner} is preferred");
                    notes.push((Level::Info, text));
                }
                Some((other, value.to_owned()))
            }
            (None, None) => None,
        }
    }

    /// An environment for tests.
    #[cfg(test)]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    CommandLine,
    Variable(String),
}

#[derive(Debug, Clone)]
struct Setting {
    values: Vec<OsString>,
    origin: Origin,
}

/// Options that were set, by long name.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    set: BTreeMap<&'static str, Setting>,
    /// A switch with a value that is no truth value.
    bad: Option<String>,
}

impl Settings {
    pub(super) fn from_matches(matches: &ArgMatches, flags: &[&'static Flag]) -> Self {
        let mut settings = Self::default();
        for flag in flags {
            if matches.value_source(flag.long) != Some(ValueSource::CommandLine) {
                continue;
            }
            let values: Vec<OsString> =
                matches.get_many::<OsString>(flag.long).map(|values| values.cloned().collect()).unwrap_or_default();
            if flag.kind == Kind::Switch
                && let Some(value) = values.last()
                && truth(value).is_none()
            {
                let value = value.to_string_lossy();
                settings.bad =
                    Some(format!("invalid argument \"{value}\" for \"{}\" flag: not a boolean", flag.display()));
            }
            settings.set.insert(flag.long, Setting { values, origin: Origin::CommandLine });
        }
        settings
    }

    /// Takes what was set before the verb, where the verb did not set it.
    pub(super) fn inherit(&mut self, root: Self) {
        for (name, setting) in root.set {
            self.set.entry(name).or_insert(setting);
        }
    }

    pub(super) fn set_switch(&mut self, long: &'static str) {
        self.set.insert(long, Setting { values: vec!["true".into()], origin: Origin::CommandLine });
    }

    pub(super) fn bad_switch(&self) -> Option<String> {
        self.bad.clone()
    }

    /// Fills in from variables what the command line did not set; some add up.
    ///
    /// # Errors
    /// A variable of a switch that is no truth value.
    pub(super) fn add_environment(
        &mut self,
        flavour: Flavour,
        flags: &[&'static Flag],
        environment: &Environment,
        notes: &mut Vec<(Level, String)>,
    ) -> Result<(), Failure> {
        for flag in flags {
            if self.set.contains_key(flag.long) && !flag.adds_up {
                continue;
            }
            let mut found: Vec<(String, OsString)> = Vec::new();
            for key in flag.keys {
                // Unprefixed names rank between the two families for apptainer
                // and last otherwise: only the legacy family is older.
                let own = environment.prefixed(flavour, key, notes);
                let bare = flag.bare_keys.contains(key).then(|| environment.get(key)).flatten();
                let own_is_legacy =
                    own.as_ref().is_some_and(|(name, _)| *name != format!("{}{key}", flavour.prefixes()[0]));
                match (own, bare) {
                    (Some(_), Some(bare)) if own_is_legacy => found.push(((*key).to_owned(), bare.to_owned())),
                    (Some(own), _) => found.push(own),
                    (None, Some(bare)) => found.push(((*key).to_owned(), bare.to_owned())),
                    (None, None) => {}
                }
                if !found.is_empty() && !flag.adds_up {
                    break;
                }
            }
            let Some((name, _)) = found.first() else { continue };
            let name = name.clone();
            if flag.kind == Kind::Switch {
                let value = &found[0].1;
                match truth(value) {
                    Some(true) => {}
                    Some(false) => continue,
                    None => {
                        let value = value.to_string_lossy().into_owned();
                        return Err(Failure::new(format!("Invalid value {value:?} of environment variable {name}"))
                            .cause("expected 1, t, true, 0, f or false"));
                    }
                }
            }
            let values = found.into_iter().map(|(_, value)| value);
            match self.set.get_mut(flag.long) {
                Some(setting) => drop(setting.values.splice(0..0, values)),
                None => {
                    let setting = Setting { values: values.collect(), origin: Origin::Variable(name) };
                    self.set.insert(flag.long, setting);
                }
            }
        }
        Ok(())
    }

    /// Refuses options that the established tools have and this program lacks.
    ///
    /// # Errors
    /// Names the first one that was set, and how.
    pub(super) fn refuse_missing(&self, flags: &[&'static Flag]) -> Result<(), Failure> {
        for flag in flags.iter().filter(|flag| flag.support == Support::Missing) {
            let Some(setting) = self.set.get(flag.long) else { continue };
            if flag.kind == Kind::Switch && !self.switch(flag.long) {
                continue;
            }
            let failure = Failure::new(format!("The option {} is not supported yet", flag.display()));
            return Err(match &setting.origin {
                Origin::CommandLine => failure,
                Origin::Variable(name) => failure.cause(format!("the environment variable {name} sets it")),
            });
        }
        Ok(())
    }

    /// Says whether a switch is on.
    pub fn switch(&self, long: &str) -> bool {
        self.set.get(long).and_then(|setting| truth(setting.values.last()?)).unwrap_or(false)
    }

    /// Value of an option.
    pub fn value(&self, long: &str) -> Option<&OsStr> {
        self.set.get(long).and_then(|setting| setting.values.last()).map(OsString::as_os_str)
    }

    /// Value of an option as text.
    ///
    /// # Errors
    /// Values that are not UTF-8.
    pub fn text(&self, long: &str) -> Result<Option<&str>, Failure> {
        let Some(value) = self.value(long) else { return Ok(None) };
        value.to_str().map(Some).ok_or_else(|| {
            Failure::new(format!("Invalid value {:?} of the option --{long}", value.to_string_lossy()))
                .cause("it is not valid UTF-8")
        })
    }

    /// All values of a repeatable option: those of variables come first.
    pub fn values(&self, long: &str) -> &[OsString] {
        self.set.get(long).map_or(&[], |setting| &setting.values)
    }
}

/// Truth values as the established tools read them.
fn truth(value: &OsStr) -> Option<bool> {
    match value.to_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
