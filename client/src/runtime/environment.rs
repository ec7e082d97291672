//! The container's environment.
//!
//! Four sources, the later ones stronger: what the host has and the image
//! leaves open; the image's own variables; what the caller injects (`*ENV_`
//! variables, then `--env` and its file); what the launcher itself has to
//! say. Values are literal: nothing is evaluated by a shell on the way.
//!
//! # Source
//! The project's reference runtime.md §7.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

use crate::{flavour::Flavour, output::warning};

/// Where programs are looked for if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where libraries of the host are put.
const LIBRARY_DIR: &str = "/.singularity.d/libs";

/// Prefixes of variables that are never passed on.
const PRIVATE_PREFIXES: [&str; 4] = ["APPTAINER_", "SINGULARITY_", "APPTAINERENV_", "SINGULARITYENV_"];

/// Variables that the launcher decides about, so that the host's value does
/// not reach the container by itself.
const DECIDED: [&str; 3] = ["HOME", "PATH", "LD_LIBRARY_PATH"];

/// What survives `--cleanenv`; the proxies in both cases.
const KEPT: [&str; 1] = ["TERM"];
const KEPT_PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy"];

/// Variables by name.
pub type Variables = BTreeMap<OsString, OsString>;

/// What the caller and the host bring along, sorted out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Variables of the host, for the image to override.
    pub host: Variables,
    /// Variables that override the image's.
    pub injected: Variables,
    /// Put in front of PATH.
    pub prepend_path: Option<OsString>,
    /// Put behind PATH.
    pub append_path: Option<OsString>,
    /// Put in front of `LD_LIBRARY_PATH`.
    pub prepend_library_path: Option<OsString>,
    /// Put behind `LD_LIBRARY_PATH`.
    pub append_library_path: Option<OsString>,
    /// The host's PATH.
    pub user_path: Option<OsString>,
}

impl Forwarded {
    /// Sorts the host's variables out. `explicit` are those of `--env` and its
    /// file.
    pub fn new(
        host: impl IntoIterator<Item = (OsString, OsString)>,
        explicit: &[(OsString, OsString)],
        cleanenv: bool,
        flavour: Flavour,
    ) -> Self {
        let host: Variables = host.into_iter().collect();
        let mut forwarded = Self { user_path: host.get(OsStr::new("PATH")).cloned(), ..Self::default() };
        // The weaker prefix first, so that the stronger one replaces it.
        for prefix in flavour.prefixes().iter().rev() {
            let prefix = format!("{}ENV_", prefix.trim_end_matches('_'));
            for (name, value) in &host {
                if let Some(inner) = name.as_bytes().strip_prefix(prefix.as_bytes()) {
                    forwarded.inject(OsStr::from_bytes(inner), value, Some(name));
                }
            }
        }
        for (name, value) in explicit {
            forwarded.inject(name, value, None);
        }
        for (name, value) in host {
            let private = PRIVATE_PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
            let decided = DECIDED.iter().any(|decided| name == *decided);
            if !private && !decided && is_name(&name) && (!cleanenv || survives_cleanenv(&name)) {
                forwarded.host.insert(name, value);
            }
        }
        if cleanenv {
            forwarded.host.insert("LANG".into(), "C".into());
        }
        forwarded
    }

    /// `variable` is the one that asks for it, if it is one.
    fn inject(&mut self, name: &OsStr, value: &OsStr, variable: Option<&OsStr>) {
        let slot = match name.to_str() {
            Some("PREPEND_PATH") => &mut self.prepend_path,
            Some("APPEND_PATH") => &mut self.append_path,
            Some("PREPEND_LD_LIBRARY_PATH") => &mut self.prepend_library_path,
            Some("APPEND_LD_LIBRARY_PATH") => &mut self.append_library_path,
            Some("HOME") => {
                let with = variable.map_or("--env".into(), OsStr::to_string_lossy);
                warning!("Overriding HOME environment variable with {with} is not permitted");
                return;
            }
            _ => {
                if is_name(name) {
                    self.injected.insert(name.to_owned(), value.to_owned());
                }
                return;
            }
        };
        *slot = Some(value.to_owned());
    }
}

fn survives_cleanenv(name: &OsStr) -> bool {
    let proxy = |name: &str| KEPT_PROXIES.iter().any(|kept| name == *kept || name == kept.to_ascii_uppercase());
    name.to_str().is_some_and(|name| KEPT.contains(&name) || proxy(name))
}

/// Whether a shell could have set a variable of this name.
pub fn is_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    bytes.first().is_some_and(letter)
        && bytes.iter().all(|byte| letter(byte) || byte.is_ascii_digit())
        && !bytes.starts_with(b"BASH_FUNC_")
}

/// What the launcher itself tells the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Wording.
    pub flavour: Flavour,
    /// `exec`, `run` or `shell`.
    pub command: &'static str,
    /// Absolute path of the image.
    pub image: PathBuf,
    /// Base name of the image.
    pub name: OsString,
    /// Destinations of the caller's binds.
    pub binds: Vec<PathBuf>,
    /// Home directory in the container.
    pub home: PathBuf,
}

impl Facts {
    /// The prompt of interactive shells.
    pub fn prompt(&self) -> String {
        format!("{}> ", self.flavour.title())
    }

    /// Variables that the launcher sets, whatever the image says.
    pub fn variables(&self, forwarded: &Forwarded) -> Variables {
        let mut set = Variables::new();
        let binds: Vec<&[u8]> = self.binds.iter().map(|path| path.as_os_str().as_bytes()).collect();
        let binds = OsString::from_vec(binds.join(&b','));
        for prefix in ["APPTAINER", "SINGULARITY"] {
            let mut twin = |name: &str, value: &OsStr| set.insert(format!("{prefix}_{name}").into(), value.to_owned());
            twin("CONTAINER", self.image.as_os_str());
            twin("NAME", &self.name);
            twin("BIND", &binds);
            twin("ENVIRONMENT", OsStr::new("/.singularity.d/env/91-environment.sh"));
            twin("COMMAND", OsStr::new(self.command));
        }
        if let Some(path) = &forwarded.user_path {
            set.insert("USER_PATH".into(), path.clone());
        }
        set.insert("HOME".into(), self.home.clone().into());
        if !forwarded.injected.contains_key(OsStr::new("PROMPT_COMMAND"))
            && !forwarded.injected.contains_key(OsStr::new("PS1"))
        {
            // Start files of distributions set a prompt of their own; this
            // puts ours back, once.
            let again = format!("PS1=\"{}\"; unset PROMPT_COMMAND", self.prompt());
            set.insert("PROMPT_COMMAND".into(), again.into());
        }
        set
    }
}

/// The whole environment of an image that needs no scripts: `image` are the
/// variables of its config.
pub fn compose<'a>(
    image: impl IntoIterator<Item = (&'a str, &'a str)>,
    forwarded: &Forwarded,
    facts: &Facts,
) -> Variables {
    let text = |text: &str| OsString::from(text);
    let mut set: Variables = image.into_iter().map(|(name, value)| (text(name), text(value))).collect();
    set.remove(OsStr::new("HOME"));
    let path = set.get(OsStr::new("PATH")).filter(|path| !path.is_empty()).cloned();
    set.insert("PATH".into(), complete_path(&path.unwrap_or_else(|| DEFAULT_PATH.into())));
    let libraries = set.remove(OsStr::new("LD_LIBRARY_PATH"));
    set.insert("LD_LIBRARY_PATH".into(), joined([libraries.as_deref(), Some(OsStr::new(LIBRARY_DIR))]));
    set.insert("PS1".into(), facts.prompt().into());
    set.extend(forwarded.injected.clone());
    let edit = |set: &mut Variables, name: &str, front: &Option<OsString>, back: &Option<OsString>| {
        if front.is_some() || back.is_some() {
            let middle = set.remove(OsStr::new(name));
            set.insert(name.into(), joined([front.as_deref(), middle.as_deref(), back.as_deref()]));
        }
    };
    edit(&mut set, "PATH", &forwarded.prepend_path, &forwarded.append_path);
    edit(&mut set, "LD_LIBRARY_PATH", &forwarded.prepend_library_path, &forwarded.append_library_path);
    for (name, value) in &forwarded.host {
        match set.get(name) {
            None => drop(set.insert(name.clone(), value.clone())),
            // The image wants it gone.
            Some(there) if there.is_empty() && !forwarded.injected.contains_key(name) => drop(set.remove(name)),
            Some(_) => {}
        }
    }
    set.extend(facts.variables(forwarded));
    set
}

/// Adds the directories of the default PATH that `path` lacks.
pub fn complete_path(path: &OsStr) -> OsString {
    let there: BTreeSet<&[u8]> = path.as_bytes().split(|&byte| byte == b':').collect();
    let lacking = DEFAULT_PATH.split(':').filter(|dir| !there.contains(dir.as_bytes()));
    let mut complete = path.to_owned();
    for dir in lacking {
        complete.push(":");
        complete.push(dir);
    }
    complete
}

/// The parts that are there and not empty, with colons between.
fn joined<const N: usize>(parts: [Option<&OsStr>; N]) -> OsString {
    let parts: Vec<&[u8]> =
        parts.into_iter().flatten().map(|part| part.as_bytes()).filter(|part| !part.is_empty()).collect();
    OsString::from_vec(parts.join(&b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    fn facts() -> Facts {
        Facts {
            flavour: Flavour::Apptainer,
            command: "exec",
            image: "/images/a.sif".into(),
            name: "a.sif".into(),
            binds: vec!["/data".into(), "/scratch".into()],
            home: "/home/alice".into(),
        }
    }

    fn environment(host: &[(&str, &str)], explicit: &[(&str, &str)], image: &[(&str, &str)]) -> Variables {
        let forwarded = Forwarded::new(owned(host), &owned(explicit), false, Flavour::Apptainer);
        compose(image.iter().copied(), &forwarded, &facts())
    }

    fn get<'a>(set: &'a Variables, name: &str) -> Option<&'a str> {
        set.get(OsStr::new(name)).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn the_image_wins_over_the_host_and_the_caller_over_both() {
        let host = [
            ("A", "host"),
            ("B", "host"),
            ("C", "host"),
            ("APPTAINERENV_C", "apptainer"),
            ("SINGULARITYENV_C", "singularity"),
            ("SINGULARITYENV_D", "singularity"),
            ("APPTAINERENV_E", "apptainer"),
        ];
        let set = environment(&host, &[("E", "option")], &[("B", "image"), ("C", "image"), ("E", "image")]);
        let found = ["A", "B", "C", "D", "E"].map(|name| get(&set, name));
        assert_eq!(found, [Some("host"), Some("image"), Some("apptainer"), Some("singularity"), Some("option")]);
        assert!(!set.keys().any(|name| name.as_bytes().windows(4).any(|part| part == b"ENV_")));
    }

    #[test]
    fn what_the_launcher_decides_never_comes_from_the_host() {
        let host = [
            ("HOME", "/elsewhere"),
            ("PATH", "/host/bin"),
            ("LD_LIBRARY_PATH", "/host/lib"),
            ("SINGULARITY_X", "1"),
            ("APPTAINERENV_HOME", "/injected"),
            ("BASH_FUNC_ls%%", "() { :; }"),
            ("not-a-name", "1"),
        ];
        let set = environment(&host, &[], &[]);
        assert_eq!(get(&set, "HOME"), Some("/home/alice"));
        assert_eq!(get(&set, "PATH"), Some(DEFAULT_PATH));
        assert_eq!(get(&set, "LD_LIBRARY_PATH"), Some("/.singularity.d/libs"));
        assert_eq!(get(&set, "USER_PATH"), Some("/host/bin"));
        for name in ["SINGULARITY_X", "BASH_FUNC_ls%%", "not-a-name"] {
            assert_eq!(get(&set, name), None, "{name}");
        }
    }

    #[test]
    fn path_is_completed_and_then_edited() {
        let set = environment(&[], &[], &[("PATH", "/opt/bin:/usr/bin")]);
        assert_eq!(get(&set, "PATH"), Some("/opt/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin"));
        let host = [
            ("SINGULARITYENV_PATH", "/only"),
            ("APPTAINERENV_PREPEND_PATH", "/first"),
            ("SINGULARITYENV_APPEND_PATH", "/last"),
        ];
        let set = environment(&host, &[], &[("PATH", "/opt/bin")]);
        assert_eq!(get(&set, "PATH"), Some("/first:/only:/last"));
    }

    #[test]
    fn empty_values_unset_the_hosts_unless_the_caller_asks() {
        let set = environment(&[("X", "host"), ("Y", "host")], &[("Y", "")], &[("X", "")]);
        assert_eq!(get(&set, "X"), None);
        assert_eq!(get(&set, "Y"), Some(""));
    }

    #[test]
    fn cleanenv_keeps_terminal_proxies_and_what_is_injected() {
        let host = owned(&[
            ("TERM", "xterm"),
            ("HTTPS_PROXY", "p"),
            ("no_proxy", "n"),
            ("EDITOR", "vi"),
            ("LANG", "de_DE"),
            ("APPTAINERENV_KEPT", "yes"),
        ]);
        let forwarded = Forwarded::new(host, &[], true, Flavour::Apptainer);
        let set = compose([], &forwarded, &facts());
        let found = ["TERM", "HTTPS_PROXY", "no_proxy", "EDITOR", "LANG", "KEPT"].map(|name| get(&set, name));
        assert_eq!(found, [Some("xterm"), Some("p"), Some("n"), None, Some("C"), Some("yes")]);
    }

    #[test]
    fn the_container_learns_what_it_is() {
        let set = environment(&[], &[], &[]);
        for (name, value) in [
            ("APPTAINER_CONTAINER", "/images/a.sif"),
            ("SINGULARITY_NAME", "a.sif"),
            ("SINGULARITY_BIND", "/data,/scratch"),
            ("APPTAINER_COMMAND", "exec"),
            ("PS1", "Apptainer> "),
            ("PROMPT_COMMAND", "PS1=\"Apptainer> \"; unset PROMPT_COMMAND"),
        ] {
            assert_eq!(get(&set, name), Some(value), "{name}");
        }
        let set = environment(&[], &[("PS1", "mine> ")], &[]);
        assert_eq!((get(&set, "PS1"), get(&set, "PROMPT_COMMAND")), (Some("mine> "), None));
    }
}
