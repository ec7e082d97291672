//! The shell scripts of an image.
//!
//! Our own client runs an image without any of them. They are there for
//! other launchers, and for people who look into the image. They keep to what
//! every POSIX shell does alike, because it is the image's own, or the one
//! inside a launcher.

use sctl_oci::Launch;

use super::shell::{double_quoted, quoted, words};

/// Script with the variables of the image's config.
pub(super) const OCI_ENVIRONMENT: &str = ".singularity.d/env/10-docker2singularity.sh";
/// Script with variables that the image's author may add.
pub(super) const CUSTOM_ENVIRONMENT: &str = ".singularity.d/env/90-environment.sh";

pub(super) const CUSTOM_ENVIRONMENT_TEXT: &str = "\
#!/bin/sh
# Further variables of this image go here.
";

pub(super) const BASE: &str = "\
#!/bin/sh
# Sourced before everything else.
";

pub(super) const APPS_BASE: &str = r#"#!/bin/sh
# Where the apps of a Scientific Filesystem are, if the image has one.
if [ -d /scif/apps ]; then
    export SCIF_APPS="${SCIF_APPS:-/scif/apps}"
    export SCIF_DATA="${SCIF_DATA:-/scif/data}"
fi
"#;

pub(super) const APPS: &str = r#"#!/bin/sh
# Variables of the app that was asked for.
SCIF_APPNAME="${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}"
if [ -n "$SCIF_APPNAME" ] && [ -d "/scif/apps/$SCIF_APPNAME" ]; then
    export SCIF_APPNAME
    export SCIF_APPROOT="/scif/apps/$SCIF_APPNAME"
    export SCIF_APPDATA="/scif/data/$SCIF_APPNAME"
    if [ -d "$SCIF_APPROOT/bin" ]; then
        export PATH="$SCIF_APPROOT/bin:$PATH"
    fi
    if [ -d "$SCIF_APPROOT/lib" ]; then
        export LD_LIBRARY_PATH="$SCIF_APPROOT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    fi
    for SCIF_SCRIPT in "$SCIF_APPROOT"/scif/env/*.sh; do
        if [ -f "$SCIF_SCRIPT" ]; then
            . "$SCIF_SCRIPT"
        fi
    done
    unset SCIF_SCRIPT
else
    unset SCIF_APPNAME
fi
"#;

pub(super) const LAST: &str = r#"#!/bin/sh
# Libraries that the launcher brings from the host come after the image's own.
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
export PS1="Singularity> "
"#;

pub(super) const RUNTIME_VARIABLES: &str = r#"#!/bin/sh
# What the caller asked for PATH; launchers of 3.6 and later do this themselves.
if [ -n "${SING_USER_DEFINED_PATH:-}" ]; then
    export PATH="$SING_USER_DEFINED_PATH"
fi
if [ -n "${SING_USER_DEFINED_PREPEND_PATH:-}" ]; then
    export PATH="$SING_USER_DEFINED_PREPEND_PATH:$PATH"
fi
if [ -n "${SING_USER_DEFINED_APPEND_PATH:-}" ]; then
    export PATH="$PATH:$SING_USER_DEFINED_APPEND_PATH"
fi
unset SING_USER_DEFINED_PATH SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH
"#;

pub(super) const STARTSCRIPT: &str = "#!/bin/sh\n";

/// What every action does first.
const ACTION_HEAD: &str = r#"#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    if [ -f "$script" ]; then
        . "$script"
    fi
done
unset script
"#;

const ACTION_EXEC: &str = r#"exec "$@"
"#;

const ACTION_RUN: &str = r#"if [ -x /.singularity.d/runscript ]; then
    exec /.singularity.d/runscript "$@"
fi
echo "No runscript found in container, executing /bin/sh" >&2
exec /bin/sh "$@"
"#;

const ACTION_SHELL: &str = r#"if [ -n "${SINGULARITY_SHELL:-}" ] && [ -x "$SINGULARITY_SHELL" ]; then
    export SHELL="$SINGULARITY_SHELL"
    exec "$SHELL" "$@"
fi
if [ -x /bin/bash ]; then
    export SHELL=/bin/bash
    exec /bin/bash --norc "$@"
fi
export SHELL=/bin/sh
exec /bin/sh "$@"
"#;

const ACTION_START: &str = r#"if [ -x /.singularity.d/startscript ]; then
    exec /.singularity.d/startscript "$@"
fi
echo "No instance start script found in container" >&2
"#;

const ACTION_TEST: &str = r#"if [ -x /.singularity.d/test ]; then
    exec /.singularity.d/test "$@"
fi
echo "No test script found in container, exiting" >&2
"#;

/// Scripts below `actions`, which launchers before 3.7 execute.
pub(super) fn actions() -> [(&'static str, String); 5] {
    let with_head = |tail: &str| format!("{ACTION_HEAD}{tail}");
    [
        ("exec", with_head(ACTION_EXEC)),
        ("run", with_head(ACTION_RUN)),
        ("shell", with_head(ACTION_SHELL)),
        ("start", with_head(ACTION_START)),
        ("test", with_head(ACTION_TEST)),
    ]
}

/// The script that sets what the config has under `Env`.
///
/// A variable that is set already stays, but for `PATH`, as in every image of
/// this kind.
pub(super) fn environment(launch: &Launch) -> String {
    let mut text = String::from("#!/bin/sh\n# Variables of the image's config.\n");
    for (name, value) in &launch.env {
        let value = quoted(value);
        // A test and not ${NAME:-value}: shells disagree on quotes in there,
        // and some variables cannot be assigned to even with their own value.
        let guard = if name == "PATH" { String::new() } else { format!("[ -n \"${{{name}:-}}\" ] || ") };
        text.push_str(&format!("{guard}export {name}={value}\n"));
    }
    // A last line that does not set a variable must not fail the script.
    text.push_str(":\n");
    text
}

/// The script that runs ENTRYPOINT and CMD, or a shell if there is neither.
///
/// Arguments take the place of CMD and are passed on as they are.
pub(super) fn runscript(launch: &Launch) -> String {
    let Launch { entrypoint, cmd, .. } = launch;
    let shown = |items: &[String]| {
        let items: Vec<_> = items.iter().map(|item| double_quoted(item)).collect();
        quoted(&items.join(" "))
    };
    let mut text = format!(
        "#!/bin/sh\n\
         # Runs ENTRYPOINT and CMD of the image. Arguments replace CMD and are passed\n\
         # on exactly as given. These two are here to be read:\n\
         OCI_ENTRYPOINT={}\n\
         OCI_CMD={}\n",
        shown(entrypoint),
        shown(cmd)
    );
    // Launchers with a shell of their own look for this very line; they then
    // run the script themselves, and the image needs no shell.
    text.push_str("if false; then\neval \"set ${SINGULARITY_OCI_RUN}\"\nfi\n");
    let default = if cmd.is_empty() && entrypoint.is_empty() {
        "    if [ -x /bin/bash ]; then set -- /bin/bash; else set -- /bin/sh; fi\n".to_owned()
    } else if cmd.is_empty() {
        String::new()
    } else {
        format!("    set -- {}\n", words(cmd))
    };
    if !default.is_empty() {
        text.push_str(&format!("if [ $# -eq 0 ]; then\n{default}fi\n"));
    }
    if !entrypoint.is_empty() {
        text.push_str(&format!("set -- {} \"$@\"\n", words(entrypoint)));
    }
    // Some shells take options of `exec` from here, and no program starts so.
    text.push_str(
        "case \"$1\" in\n-*)\n    printf '%s: not found\\n' \"$1\" >&2\n    exit 127\n    ;;\nesac\nexec \"$@\"\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        os::unix::ffi::OsStrExt as _,
        process::{Command, Output},
    };

    use super::*;

    const SHELLS: [&str; 2] = ["dash", "bash"];

    /// Texts that break naive quoting.
    const TEXTS: [&str; 14] = [
        "",
        " ",
        "two  words",
        "'single'",
        "\"double\"",
        "$HOME ${HOME} $(id) `id` $$",
        "back\\slash \\\\ \\n \\",
        "line\nbreak\n",
        "}{ a}b ${x:-}",
        "*?[a]~#!&|;<>()",
        "-n",
        "--",
        "=",
        "ümlaut\t\u{1}\u{7f}",
    ];

    fn launch(entrypoint: &[&str], cmd: &[&str], env: &[(&str, &str)]) -> Launch {
        let owned = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Launch { entrypoint: owned(entrypoint), cmd: owned(cmd), env }
    }

    /// Runs `script` as a launcher would: from a file, with these arguments.
    fn run(shell: &str, script: &str, args: &[&str], env: &[(&str, &str)]) -> Option<Output> {
        let mut command = Command::new(shell);
        command.arg("-c").arg(script).arg("runscript").args(args);
        command.env_clear().env("PATH", "/usr/bin:/bin").envs(env.iter().copied());
        match command.output() {
            Ok(output) => Some(output),
            Err(_) => {
                eprintln!("SKIPPED: {shell} is not installed");
                None
            }
        }
    }

    /// Prints every argument with a NUL after it.
    const SHOW: [&str; 2] = ["/usr/bin/printf", "%s\\0"];

    fn shown(output: &Output) -> Vec<&OsStr> {
        let mut items: Vec<_> = output.stdout.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
        items.pop();
        items
    }

    #[test]
    fn runscript_passes_argv_exactly() {
        let with_cmd: Vec<&str> = SHOW.iter().chain(&TEXTS).copied().collect();
        let cases = [
            ("entrypoint alone", launch(&with_cmd, &[], &[]), vec![], TEXTS.to_vec()),
            ("entrypoint and arguments", launch(&SHOW, &[], &[]), TEXTS.to_vec(), TEXTS.to_vec()),
            ("cmd alone", launch(&[], &with_cmd, &[]), vec![], TEXTS.to_vec()),
            ("arguments replace cmd", launch(&[], &["x"], &[]), with_cmd.clone(), TEXTS.to_vec()),
            ("entrypoint and cmd", launch(&SHOW, &TEXTS, &[]), vec![], TEXTS.to_vec()),
            ("entrypoint, cmd, arguments", launch(&SHOW, &["x"], &[]), vec!["a b", ""], vec!["a b", ""]),
            ("neither, with arguments", launch(&[], &[], &[]), with_cmd.clone(), TEXTS.to_vec()),
        ];
        for shell in SHELLS {
            for (name, launch, args, expected) in &cases {
                let Some(output) = run(shell, &runscript(launch), args, &[]) else { continue };
                assert!(output.status.success(), "{shell}, {name}: {output:?}");
                let expected: Vec<&OsStr> = expected.iter().map(OsStr::new).collect();
                assert_eq!(shown(&output), expected, "{shell}, {name}");
            }
        }
    }

    #[test]
    fn runscript_shows_what_it_runs_in_the_known_form() {
        let text = runscript(&launch(&["/bin/sh", "-c", "fortune | cowsay | lolcat"], &[], &[]));
        assert!(text.contains("\nOCI_ENTRYPOINT='\"/bin/sh\" \"-c\" \"fortune | cowsay | lolcat\"'\n"), "{text}");
        assert!(text.contains("\nOCI_CMD=''\n"), "{text}");
        for shell in SHELLS {
            let script = runscript(&launch(&TEXTS, &[], &[]));
            let head: String =
                script.lines().take_while(|line| *line != "if false; then").map(|l| format!("{l}\n")).collect();
            let script = format!("{head}eval \"set -- $OCI_ENTRYPOINT\"\nexec /usr/bin/printf '%s\\0' \"$@\"\n");
            let Some(output) = run(shell, &script, &[], &[]) else { continue };
            assert_eq!(shown(&output), TEXTS.map(OsStr::new), "{shell}");
        }
    }

    #[test]
    fn an_image_with_neither_gives_a_shell() {
        for shell in SHELLS {
            let script = runscript(&launch(&[], &[], &[])).replace("exec \"$@\"", "echo \"$@\"");
            let Some(output) = run(shell, &script, &[], &[]) else { continue };
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(matches!(text.as_str(), "/bin/bash\n" | "/bin/sh\n"), "{shell}: {text}");
        }
    }

    #[test]
    fn an_option_is_not_taken_for_one_of_exec() {
        for shell in SHELLS {
            let script = runscript(&launch(&[], &["x"], &[]));
            let Some(output) = run(shell, &script, &["-c", "/bin/true"], &[]) else { continue };
            assert_eq!(output.status.code(), Some(127), "{shell}: {output:?}");
        }
    }

    #[test]
    fn environment_keeps_values_literal_and_callers_values() {
        let names: Vec<String> = (0..TEXTS.len()).map(|at| format!("V{at}")).collect();
        let mut env: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(TEXTS).collect();
        env.extend([("PATH", "/image/$bin"), ("KEPT", "image"), ("EMPTY", "image"), ("UID", "7"), ("PPID", "7")]);
        let script = environment(&launch(&[], &[], &env));
        for shell in SHELLS {
            let given = [("KEPT", "caller"), ("EMPTY", "")];
            // `set -eu` shows that nothing fails and nothing unset is read.
            let script = format!("set -eu\n{script}exec /usr/bin/env -0\n");
            let Some(output) = run(shell, &script, &[], &given) else { continue };
            assert!(output.status.success(), "{shell}: {output:?}");
            assert_eq!(output.stderr, b"", "{shell}");
            let text = String::from_utf8(output.stdout).unwrap();
            let found = |name: &str| {
                text.split('\0').find_map(|line| line.split_once('=').filter(|(n, _)| *n == name).map(|(_, v)| v))
            };
            for (name, value) in names.iter().zip(TEXTS) {
                assert_eq!(found(name), Some(value), "{shell}, {name}");
            }
            assert_eq!(found("PATH"), Some("/image/$bin"), "{shell}");
            assert_eq!(found("KEPT"), Some("caller"), "{shell}");
            assert_eq!(found("EMPTY"), Some("image"), "{shell}");
        }
    }

    #[test]
    fn fixed_scripts_are_accepted_by_every_shell() {
        let mut scripts = vec![BASE, CUSTOM_ENVIRONMENT_TEXT, APPS_BASE, APPS, LAST, RUNTIME_VARIABLES, STARTSCRIPT];
        let actions = actions();
        scripts.extend(actions.iter().map(|(_, text)| text.as_str()));
        for shell in SHELLS {
            for script in &scripts {
                let Ok(output) = Command::new(shell).args(["-n", "-c", script]).output() else { continue };
                assert!(output.status.success(), "{shell}: {script}\n{output:?}");
            }
            let all = format!(
                "set -eu\n{BASE}{APPS_BASE}{APPS}{LAST}{RUNTIME_VARIABLES}printf %s \"$LD_LIBRARY_PATH|$PATH\""
            );
            let given = [("LD_LIBRARY_PATH", "/a"), ("SING_USER_DEFINED_PREPEND_PATH", "/p")];
            let Some(output) = run(shell, &all, &[], &given) else { continue };
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text, "/a:/.singularity.d/libs|/p:/usr/bin:/bin", "{shell}");
        }
    }
}
