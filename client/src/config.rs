//! The client's configuration: what a site wants in every container.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::failure::{Failure, reason};

/// Where a site puts it.
const SITE_FILE: &str = "/etc/sctl/sctl.toml";

/// Contents of `sctl.toml`. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Binds of every container, `source[:destination[:ro]]`; those that do
    /// not exist on this host or in the image are left out.
    pub bind_paths: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { bind_paths: vec!["/etc/localtime".to_owned(), "/etc/hosts".to_owned()] }
    }
}

impl Config {
    /// Reads the file that `--config` names, or the site's if there is one.
    ///
    /// # Errors
    /// A named file that is missing; one that cannot be read or understood.
    pub fn load(named: Option<&OsStr>) -> Result<Self, Failure> {
        let path = named.map_or_else(|| PathBuf::from(SITE_FILE), PathBuf::from);
        let unable = || Failure::new(format!("Unable to use the configuration file {}", path.display()));
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(unable().cause(reason(&error))),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Failure> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Failure::new(format!("Unable to use the configuration file {}", path.display()))
                .cause(format!("line {line}: {}", error.message()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let path = Path::new("/x/sctl.toml");
        let good = Config::parse("bind_paths = [\"/data:/data:ro\"]\n", path).unwrap();
        assert_eq!(good.bind_paths, ["/data:/data:ro"]);
        assert_eq!(Config::parse("", path).unwrap(), Config::default());
        let failure = Config::parse("# x\n\nbind_path = []\n", path).unwrap_err();
        assert!(failure.causes[0].starts_with("line 3: unknown field `bind_path`"), "{failure}");
    }
}
