//! Names that the program is called by, and what they change.

use std::ffi::OsStr;

/// Whose wording the program speaks and whose variables win: decided by the
/// name that it was called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// `sctl`: both families of variables count alike, `SINGULARITY_` last.
    #[default]
    Sctl,
    /// `singularity`.
    Singularity,
    /// `apptainer`.
    Apptainer,
}

/// How the program was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invocation {
    /// Wording and variables.
    pub flavour: Flavour,
    /// Called as `run-singularity IMAGE [ARGS]`, by the first line of a SIF.
    pub run_script: bool,
}

impl Invocation {
    /// Decides by the last component of argv\[0\].
    pub fn from_argv0(argv0: &OsStr) -> Self {
        let name = std::path::Path::new(argv0).file_name().unwrap_or(argv0);
        let (flavour, run_script) = match name.to_str() {
            Some("singularity") => (Flavour::Singularity, false),
            Some("apptainer") => (Flavour::Apptainer, false),
            Some("run-singularity") => (Flavour::Singularity, true),
            _ => (Flavour::Sctl, false),
        };
        Self { flavour, run_script }
    }
}

impl Flavour {
    /// Name of the program in usage texts.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Sctl => "sctl",
            Self::Singularity => "singularity",
            Self::Apptainer => "apptainer",
        }
    }

    /// The version that `--version` tells. Scripts and workflow engines decide
    /// by it what they may ask for (below 2.4.1 or 3.4 they do without, or
    /// refuse), so under other systems' names it is that of the release whose
    /// commands and behaviour are offered here, and our own behind it.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Sctl => env!("CARGO_PKG_VERSION"),
            Self::Singularity => concat!("3.11.5+sctl", env!("CARGO_PKG_VERSION")),
            Self::Apptainer => concat!("1.3.6+sctl", env!("CARGO_PKG_VERSION")),
        }
    }

    /// Name of the product in prompts.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Sctl | Self::Singularity => "Singularity",
            Self::Apptainer => "Apptainer",
        }
    }

    /// Prefixes of option variables, the winning one first.
    pub const fn prefixes(self) -> [&'static str; 2] {
        match self {
            Self::Apptainer | Self::Sctl => ["APPTAINER_", "SINGULARITY_"],
            Self::Singularity => ["SINGULARITY_", "APPTAINER_"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        let of = |name: &str| Invocation::from_argv0(OsStr::new(name));
        assert_eq!(of("/usr/bin/apptainer").flavour, Flavour::Apptainer);
        assert_eq!(of("singularity").flavour, Flavour::Singularity);
        assert_eq!(of("./sctl").flavour, Flavour::Sctl);
        assert!(of("run-singularity").run_script);
        assert!(!of("singularity").run_script);
    }
}
