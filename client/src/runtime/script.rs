//! The shell script that starts an image which brings scripts of its own.
//!
//! It sources `/.singularity.d/env/*.sh` in the shell of the image and then
//! starts the program. While those run, the host's variables must not be
//! there, so they travel as `SCTL_VALUE_n`, which the script unpacks at the
//! right moment: values never become part of the script's text.

use std::ffi::{OsStr, OsString};

use super::environment::{DEFAULT_PATH, Facts, Forwarded, Variables};

/// Shell that runs the script.
pub const SHELL: &str = "/bin/sh";

/// What the script starts in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The program and arguments that follow.
    Arguments,
    /// The image's runscript, with the arguments that follow.
    Runscript,
}

/// A script and the environment that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Text for `sh -c`.
    pub text: String,
    /// The environment that the shell starts with.
    pub env: Variables,
}

/// Prefix of the variables that carry values to the script.
const CARRIER: &str = "SCTL_VALUE_";

/// Variables that some shell lets nobody change; trying to ends the script.
const READ_ONLY: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

fn is_writable(name: &OsStr) -> bool {
    !READ_ONLY.iter().any(|read_only| name == *read_only)
}

struct Writer {
    text: String,
    env: Variables,
    count: usize,
}

impl Writer {
    /// Lets `value` travel, and returns the variable that carries it.
    fn carry(&mut self, value: &OsStr) -> String {
        let carrier = format!("{CARRIER}{}", self.count);
        self.count += 1;
        self.env.insert(carrier.clone().into(), value.to_owned());
        carrier
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn set(&mut self, name: &OsStr, value: &OsStr) {
        let carrier = self.carry(value);
        // Names are shell identifiers: nothing else gets this far.
        let name = name.to_string_lossy();
        self.line(&format!("export {name}=\"${carrier}\"; unset {carrier}"));
    }
}

/// Makes the script for an image with scripts.
pub fn make(forwarded: &Forwarded, facts: &Facts, target: Target) -> Script {
    let mut script = Writer { text: String::new(), env: Variables::new(), count: 0 };
    script.env.insert("PATH".into(), DEFAULT_PATH.into());
    script.env.insert("PS1".into(), facts.prompt().into());
    let own = facts.variables(forwarded);
    // Scripts of images ask for these.
    script.env.extend(own.clone());
    let inject = |script: &mut Writer| {
        for (name, value) in forwarded.injected.iter().filter(|(name, _)| is_writable(name)) {
            script.set(name, value);
        }
        for (name, front, back) in [
            ("PATH", &forwarded.prepend_path, &forwarded.append_path),
            ("LD_LIBRARY_PATH", &forwarded.prepend_library_path, &forwarded.append_library_path),
        ] {
            if let Some(front) = front {
                let carrier = script.carry(front);
                script.line(&format!("export {name}=\"${carrier}${{{name}:+:${name}}}\"; unset {carrier}"));
            }
            if let Some(back) = back {
                let carrier = script.carry(back);
                script.line(&format!("export {name}=\"${{{name}:+${name}:}}${carrier}\"; unset {carrier}"));
            }
        }
    };
    script.line("sctl_inject() {");
    script.line("sctl_inject() { :; }");
    inject(&mut script);
    script.line("}");
    script.line(SOURCE_SCRIPTS);
    script.line("sctl_inject");
    for (name, value) in forwarded.host.iter().filter(|(name, _)| is_writable(name)) {
        let carrier = script.carry(value);
        let name = name.to_string_lossy();
        script.line(&format!("if [ -z \"${{{name}+x}}\" ]; then export {name}=\"${carrier}\""));
        if !forwarded.injected.contains_key(OsStr::new(&*name)) {
            script.line(&format!("elif [ -z \"${name}\" ]; then unset {name}"));
        }
        script.line(&format!("fi; unset {carrier}"));
    }
    for (name, value) in &own {
        script.set(name, value);
    }
    script.line("unset -f sctl_inject");
    script.line(match target {
        Target::Arguments => RUN_ARGUMENTS,
        Target::Runscript => RUN_RUNSCRIPT,
    });
    Script { text: script.text, env: script.env }
}

/// Sources the image's scripts in the order of their names. The default PATH
/// completes the image's after the script with its config; what the caller
/// injects comes after 99-base.sh, whatever follows that.
const SOURCE_SCRIPTS: &str = r#"sctl_complete_path() {
    sctl_rest=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:
    while [ -n "$sctl_rest" ]; do
        sctl_dir="${sctl_rest%%:*}"
        sctl_rest="${sctl_rest#*:}"
        case ":$PATH:" in
        *":$sctl_dir:"*) ;;
        *) PATH="$PATH:$sctl_dir" ;;
        esac
    done
    export PATH
    unset sctl_rest sctl_dir
}
for sctl_script in /.singularity.d/env/*.sh; do
    [ -f "$sctl_script" ] || continue
    case "${sctl_script##*/}" in
    99-runtimevars.sh) continue ;;
    esac
    . "$sctl_script"
    case "${sctl_script##*/}" in
    10-docker2singularity.sh) sctl_complete_path ;;
    99-base.sh) sctl_inject ;;
    esac
done
unset sctl_script
unset -f sctl_complete_path"#;

/// A program that is not there is told as the launcher does for every image.
const RUN_ARGUMENTS: &str = r#"case "$1" in
*/*) ;;
*)
    if ! command -v -- "$1" >/dev/null 2>&1; then
        printf 'FATAL:   "%s": executable file not found in $PATH\n' "$1" >&2
        exit 255
    fi
    ;;
esac
exec "$@""#;

const RUN_RUNSCRIPT: &str = r#"if [ -x /.singularity.d/runscript ]; then
    exec /.singularity.d/runscript "$@"
fi
exec /bin/sh /.singularity.d/runscript "$@""#;

impl Script {
    /// The command line of the shell: the script, and what it gets as `$@`.
    pub fn argv(&self, arguments: &[OsString]) -> Vec<OsString> {
        let head = [SHELL.into(), "-c".into(), OsString::from(&self.text), SHELL.into()];
        head.into_iter().chain(arguments.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, process::Command};

    use super::*;
    use crate::flavour::Flavour;

    /// Runs the script on this machine with the image's scripts from `dir`.
    fn run(shell: &str, scripts: &[(&str, &str)], forwarded: &Forwarded) -> Option<BTreeMap<String, String>> {
        if Command::new(shell).arg("-c").arg(":").status().is_err() {
            eprintln!("SKIPPED: {shell} is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in scripts {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let facts = Facts {
            flavour: Flavour::Singularity,
            command: "exec",
            image: "/a.sif".into(),
            name: "a.sif".into(),
            binds: Vec::new(),
            home: "/home/alice".into(),
        };
        let script = make(forwarded, &facts, Target::Arguments);
        let text = script.text.replace("/.singularity.d/env", dir.path().to_str().unwrap());
        let output =
            Command::new(shell).args(["-c", &text, shell, "env", "-0"]).env_clear().envs(&script.env).output().unwrap();
        assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        Some(text.split('\0').filter_map(|pair| pair.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect())
    }

    fn forwarded(host: &[(&str, &str)], explicit: &[(&str, &str)]) -> Forwarded {
        let owned = |pairs: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
        };
        Forwarded::new(owned(host), &owned(explicit), false, Flavour::Singularity)
    }

    #[test]
    fn scripts_see_no_host_variable_and_win_over_them() {
        let scripts = [
            ("10-docker2singularity.sh", "export PATH=/opt/bin\nexport A=\"${A:-image}\"\n"),
            ("90-environment.sh", "export SEEN=\"${HOST:-nothing}\" B=custom\n"),
            ("99-base.sh", "export LD_LIBRARY_PATH=/.singularity.d/libs\n"),
        ];
        let nasty = "two\nlines 'quoted' \"$(id)\" `id` \\ $HOME";
        let host = [("A", "host"), ("B", "host"), ("HOST", nasty), ("SINGULARITYENV_PREPEND_PATH", "/first")];
        for shell in ["dash", "bash"] {
            let Some(env) = run(shell, &scripts, &forwarded(&host, &[("E", nasty)])) else { continue };
            let get = |name: &str| env.get(name).map(String::as_str);
            assert_eq!(get("A"), Some("image"), "{shell}");
            assert_eq!(get("B"), Some("custom"), "{shell}");
            assert_eq!(get("SEEN"), Some("nothing"), "{shell}");
            assert_eq!(get("HOST"), Some(nasty), "{shell}");
            assert_eq!(get("E"), Some(nasty), "{shell}");
            let path = "/first:/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
            assert_eq!(get("PATH"), Some(path), "{shell}");
            assert_eq!(get("HOME"), Some("/home/alice"), "{shell}");
            assert_eq!(get("LD_LIBRARY_PATH"), Some("/.singularity.d/libs"), "{shell}");
            assert!(!env.keys().any(|name| name.starts_with("SCTL_") || name.starts_with("sctl_")), "{shell}: {env:?}");
        }
    }

    #[test]
    fn variables_that_a_shell_owns_do_no_harm() {
        let host = [("UID", "5"), ("PPID", "6"), ("EUID", "7"), ("PWD", "/"), ("_", "x"), ("LAST", "yes")];
        for shell in ["dash", "bash"] {
            let Some(env) = run(shell, &[], &forwarded(&host, &[])) else { continue };
            assert_eq!(env.get("LAST").map(String::as_str), Some("yes"), "{shell}");
        }
    }
}
