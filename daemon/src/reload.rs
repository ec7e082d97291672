//! Another configuration while the daemon runs: what has changed, and which of
//! it counts at once.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{error, info, warn};

use crate::{Arguments, Config, Settings, logs};

/// Keys that count from the reload on, and sections all of whose keys do.
/// Everything else needs a restart, so that a new key is safe here until
/// somebody has thought about it.
const AT_ONCE: &[&str] = &[
    "compression",
    "block_size",
    "keep_blobs",
    "min_free_percent",
    "lease_seconds",
    "max_layer_jobs",
    "max_pulls_per_user",
    "min_bytes_per_second",
    "threads",
    "ca_files",
    "proxy",
    "limits",
    "log.level",
];

/// The value of every key; `section.key` names those in a section.
pub(crate) type Values = BTreeMap<String, toml::Value>;

pub(crate) fn values(config: &Config) -> Values {
    fn add(prefix: &str, table: toml::Table, all: &mut Values) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => add(&format!("{prefix}{key}."), inner, all),
                value => {
                    all.insert(format!("{prefix}{key}"), value);
                }
            }
        }
    }
    let mut all = Values::new();
    // It cannot fail: everything came from TOML, or is a default.
    add("", toml::Table::try_from(config).unwrap_or_default(), &mut all);
    all
}

/// Says whether a changed key counts from a reload on.
pub(crate) fn counts_at_once(key: &str) -> bool {
    AT_ONCE.contains(&key) || key.split_once('.').is_some_and(|(section, _)| AT_ONCE.contains(&section))
}

/// Puts `new` in force as far as it counts at once. Answers the keys that have
/// changed, and those that would have with a restart.
fn adopt(in_force: &mut Values, new: &Values) -> (Vec<String>, Vec<String>) {
    let keys: BTreeSet<String> = in_force.keys().chain(new.keys()).cloned().collect();
    let changed = keys.into_iter().filter(|key| in_force.get(key) != new.get(key));
    let (at_once, later): (Vec<_>, Vec<_>) = changed.partition(|key| counts_at_once(key));
    for key in &at_once {
        match new.get(key) {
            Some(value) => in_force.insert(key.clone(), value.clone()),
            None => in_force.remove(key),
        };
    }
    (at_once, later)
}

/// Reads the configuration again when asked to.
#[derive(Debug)]
pub struct Reloader {
    arguments: Arguments,
    in_force: Values,
    filter: logs::Filter,
}

impl Reloader {
    /// Starts from what is in force.
    pub fn new(arguments: Arguments, config: &Config, filter: logs::Filter) -> Self {
        Self { arguments, in_force: values(config), filter }
    }

    /// Reads the configuration and lets `apply` put it in force. If the file
    /// or `apply` fails, everything stays as it was; the log says why.
    ///
    /// # Errors
    /// What the log says, for the service manager's status line.
    pub fn reload(&mut self, apply: impl FnOnce(&Settings) -> anyhow::Result<()>) -> Result<(), String> {
        let failed = |error: anyhow::Error| {
            let error = format!("{error:#}");
            error!(error, "the configuration was not reloaded: the old one stays in force");
            error
        };
        let settings = Settings::resolve(&self.arguments).map_err(|error| failed(error.into()))?;
        let filter = logs::parse_filter(&settings.config.log.level).map_err(failed)?;
        apply(&settings).map_err(failed)?;
        self.filter.set(filter);
        let (changed, later) = adopt(&mut self.in_force, &values(&settings.config));
        info!(changed = changed.join(", "), "configuration reloaded");
        if !later.is_empty() {
            warn!(keys = later.join(", "), "changed in the configuration, but counts only after a restart");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Values {
        values(&Config::parse(text, Path::new("sctld.toml")).unwrap())
    }

    #[test]
    fn what_counts_at_once_names_real_keys() {
        // One that has no default is not among the values.
        let text = "[proxy]\nhttp = \"http://proxy:3128\"\n";
        let known = config(text);
        for key in AT_ONCE {
            let section = format!("{key}.");
            assert!(known.keys().any(|known| known == key || known.starts_with(&section)), "{key} is no key");
        }
    }

    #[test]
    fn a_change_counts_at_once_or_is_told_until_the_restart() {
        let mut in_force = config("lease_seconds = 60\n[proxy]\nhttp = \"http://a:1\"\n");
        let new =
            config("cache_dir = \"/srv\"\n[limits]\nmax_layers = 7\n[log]\nformat = \"json\"\nlevel = \"debug\"\n");
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let restart = names(&["cache_dir", "log.format"]);
        let changed = names(&["lease_seconds", "limits.max_layers", "log.level", "proxy.http"]);
        assert_eq!(adopt(&mut in_force, &new), (changed, restart.clone()));
        assert_eq!(adopt(&mut in_force, &new), (Vec::new(), restart), "still not in force");
        let back = config("[limits]\nmax_layers = 7\n[log]\nlevel = \"debug\"\n");
        assert_eq!(adopt(&mut in_force, &back), (Vec::new(), Vec::new()));
    }
}
