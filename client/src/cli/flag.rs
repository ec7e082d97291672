//! One option of a verb, as the tables of [`verbs`](super::verbs) list them.

/// How often an option counts and whether it takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `--x`, `--x=false`
    Switch,
    /// `--x VALUE`; the last one counts. Holds the value's name in help texts.
    Value(&'static str),
    /// `--x VALUE`, repeatable; what a comma means is the reader's business.
    Many(&'static str),
}

/// What giving the option leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It does what its help says.
    Full,
    /// It is accepted because what it asks for is always so here.
    Harmless,
    /// A clear error names it.
    Missing,
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Name after the two dashes.
    pub long: &'static str,
    /// Letter after one dash.
    pub short: Option<char>,
    /// Other long names.
    pub aliases: &'static [&'static str],
    /// Whether it takes a value.
    pub kind: Kind,
    /// Names of its variables without `SINGULARITY_` or `APPTAINER_`.
    pub keys: &'static [&'static str],
    /// Names of its variables that count without a prefix, too.
    pub bare_keys: &'static [&'static str],
    /// Variables and command line add up instead of the latter winning.
    pub adds_up: bool,
    /// Text for `--help`.
    pub help: &'static str,
    /// Not shown in help texts.
    pub hidden: bool,
    /// What giving it leads to.
    pub support: Support,
}

impl Flag {
    const fn new(long: &'static str, kind: Kind, help: &'static str) -> Self {
        Self {
            long,
            short: None,
            aliases: &[],
            kind,
            keys: &[],
            bare_keys: &[],
            adds_up: false,
            help,
            hidden: false,
            support: Support::Full,
        }
    }

    /// An option without a value.
    pub const fn switch(long: &'static str, help: &'static str) -> Self {
        Self::new(long, Kind::Switch, help)
    }

    /// An option with one value.
    pub const fn value(long: &'static str, name: &'static str, help: &'static str) -> Self {
        Self::new(long, Kind::Value(name), help)
    }

    /// An option with a value that may be given several times.
    pub const fn many(long: &'static str, name: &'static str, help: &'static str) -> Self {
        Self::new(long, Kind::Many(name), help)
    }

    /// Gives it a letter.
    pub const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// Gives it variables.
    pub const fn keys(mut self, keys: &'static [&'static str]) -> Self {
        self.keys = keys;
        self
    }

    /// Gives it variables that count without a prefix, too.
    pub const fn bare_keys(mut self, keys: &'static [&'static str]) -> Self {
        self.bare_keys = keys;
        self
    }

    /// Gives it other names.
    pub const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// Lets variables and command line add up.
    pub const fn adds_up(mut self) -> Self {
        self.adds_up = true;
        self
    }

    /// Keeps it out of help texts.
    pub const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// Accepts it without any effect.
    pub const fn harmless(mut self) -> Self {
        self.support = Support::Harmless;
        self
    }

    /// Refuses it by name. It is kept out of help texts.
    pub const fn missing(mut self) -> Self {
        self.support = Support::Missing;
        self.hidden = true;
        self
    }

    /// Says whether the next argument belongs to the option.
    pub const fn takes_value(&self) -> bool {
        !matches!(self.kind, Kind::Switch)
    }

    /// How usage errors name it: `-F, --force` or `--name`.
    pub fn display(&self) -> String {
        match self.short {
            Some(letter) => format!("-{letter}, --{}", self.long),
            None => format!("--{}", self.long),
        }
    }
}
