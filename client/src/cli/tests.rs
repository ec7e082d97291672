//! Command lines and what becomes of them.

use super::*;

fn request(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Request, ParseError> {
    let args: Vec<OsString> = args.iter().map(Into::into).collect();
    parse(Invocation::from_argv0(program.as_ref()), &args, &Environment::of(env))
}

fn task(args: &[&str], env: &[(&str, &str)]) -> Task {
    match request("apptainer", args, env) {
        Ok(Request::Do(task)) => task,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn usage_error(args: &[&str]) -> String {
    match request("apptainer", args, &[]) {
        Err(ParseError::Usage(error)) => error.text,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn failure(args: &[&str], env: &[(&str, &str)]) -> Failure {
    match request("apptainer", args, env) {
        Err(ParseError::Failure(failure)) => failure,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn printed(program: &str, args: &[&str]) -> String {
    match request(program, args, &[]) {
        Ok(Request::Print(text)) => text,
        other => panic!("{args:?}: {other:?}"),
    }
}

#[test]
fn global_options_stand_before_or_after_the_verb() {
    for (args, threshold) in [
        (&["-d", "pull", "docker://x"][..], output::DEBUG),
        (&["pull", "-d", "docker://x"], output::DEBUG),
        (&["pull", "docker://x", "--debug"], output::DEBUG),
        (&["--verbose", "exec", "i", "c"], output::VERBOSE),
        (&["exec", "-v", "i", "c"], output::VERBOSE),
        (&["exec", "i", "c", "-v"], output::NORMAL),
        (&["-q", "run", "i"], output::QUIET),
        (&["run", "-s", "i"], output::SILENT),
        (&["run", "--quiet=false", "i"], output::NORMAL),
        (&["inspect", "-d", "i"], output::NORMAL),
        (&["-d", "inspect", "i"], output::DEBUG),
    ] {
        assert_eq!(task(args, &[]).threshold, threshold, "{args:?}");
    }
}

#[test]
fn everything_behind_the_image_belongs_to_the_container() {
    let task = task(&["exec", "-ceB", "/a", "--pwd=/x", "i.sif", "ls", "--bind", "-c", "--", "-h"], &[]);
    assert_eq!(task.args, ["i.sif", "ls", "--bind", "-c", "--", "-h"]);
    assert!(task.settings.switch("contain") && task.settings.switch("cleanenv"));
    assert_eq!(task.settings.values("bind"), ["/a"]);
    assert_eq!(task.settings.value("cwd").unwrap(), "/x");
    let ended = self::task(&["run", "--", "i.sif", "--x"], &[]);
    assert_eq!(ended.args, ["i.sif", "--x"]);
}

#[test]
fn options_of_other_verbs_stand_anywhere() {
    let task = task(&["pull", "a.sif", "--force", "docker://x", "--dir", "/d"], &[]);
    assert_eq!(task.args, ["a.sif", "docker://x"]);
    assert!(task.settings.switch("force"));
    assert_eq!(task.settings.value("dir").unwrap(), "/d");
}

#[test]
fn the_last_of_several_values_counts_unless_they_collect() {
    let task = task(&["run", "-H", "/a", "--home", "/b", "-B", "/1", "-B", "/2", "i"], &[]);
    assert_eq!(task.settings.value("home").unwrap(), "/b");
    assert_eq!(task.settings.values("bind"), ["/1", "/2"]);
}

#[test]
fn usage_errors_have_the_known_wording() {
    for (args, first) in [
        (
            &["pull"][..],
            "Error for command \"pull\": accepts between 1 and 2 arg(s), received 0\n\nUsage:\n  apptainer",
        ),
        (&["pull", "a", "b", "c"], "Error for command \"pull\": accepts between 1 and 2 arg(s), received 3\n\nUsage:"),
        (&["exec", "i"], "Error for command \"exec\": requires at least 2 arg(s), only received 1\n\nUsage:"),
        (&["inspect"], "Error for command \"inspect\": accepts 1 arg(s), received 0\n\nUsage:"),
        (&["pull", "--foo", "x"], "Error for command \"pull\": unknown flag: --foo\n\nOptions for pull command:\n"),
        (&["pull", "--foo=1", "x"], "Error for command \"pull\": unknown flag: --foo\n\nOptions for pull command:\n"),
        (&["exec", "-cZe", "i", "c"], "Error for command \"exec\": unknown shorthand flag: 'Z' in -cZe\n"),
        (&["pull", "--name"], "Error for command \"pull\": flag needs an argument: --name\n"),
        (&["exec", "-B"], "Error for command \"exec\": flag needs an argument: 'B' in -B\n"),
        (&["pull", "--force=x", "y"], "Error for command \"pull\": invalid argument \"x\" for \"-F, --force\" flag"),
        (&["x"], "Error: unknown command \"x\" for \"apptainer\"\n"),
        (&["pul"], "Error: unknown command \"pul\" for \"apptainer\"\n\nDid you mean this?\n\tpull\n"),
        (&["cache", "x"], "Error: unknown command \"x\" for \"apptainer cache\"\n"),
        (&["--foo"], "Error for command \"apptainer\": unknown flag: --foo\n"),
        (&[], "Usage:\n  apptainer [global options...] <command>\n"),
        (&["cache"], "Usage:\n  apptainer [global options...] cache <verb>\n"),
    ] {
        let text = usage_error(args);
        assert!(text.starts_with(first), "{args:?}:\n{text}");
        assert!(text.ends_with("Run 'apptainer --help' for more detailed usage information.\n"), "{args:?}:\n{text}");
    }
}

#[test]
fn versions_follow_the_name() {
    let own = env!("CARGO_PKG_VERSION");
    for (program, version) in [
        ("apptainer", format!("1.3.6+sctl{own}")),
        ("singularity", format!("3.11.5+sctl{own}")),
        ("sctl", own.to_owned()),
    ] {
        assert_eq!(printed(program, &["--version"]), format!("{program} version {version}\n"));
        assert_eq!(printed(program, &["version"]), format!("{version}\n"));
    }
}

#[test]
fn help_is_everywhere() {
    assert!(printed("sctl", &["--help"]).contains("Available Commands:"));
    assert!(printed("sctl", &["help", "cache", "list"]).contains("cache list [list options...]"));
    assert!(printed("sctl", &["cache", "-h"]).contains("clean"));
    let text = printed("singularity", &["exec", "--help"]);
    assert!(text.contains("Usage:\n  singularity [global options...] exec [exec options...] <container> <command>"));
    assert!(text.contains("-B, --bind SPEC"), "{text}");
    assert!(!text.contains("overlay"), "what is missing is not offered:\n{text}");
}

#[test]
fn variables_set_options_and_the_command_line_wins() {
    let of = |env: &[(&str, &str)]| task(&["exec", "-H", "/cli", "-B", "/c", "i", "c"], env);
    let set = of(&[("APPTAINER_HOME", "/env"), ("SINGULARITY_CONTAIN", "1"), ("APPTAINER_BIND", "/a,/b")]);
    assert_eq!(set.settings.value("home").unwrap(), "/cli");
    assert!(set.settings.switch("contain"));
    assert_eq!(set.settings.values("bind"), ["/a,/b", "/c"], "binds add up");
    assert_eq!(
        set.notes,
        [(
            output::Level::Info,
            "Environment variable SINGULARITY_CONTAIN is set, but APPTAINER_CONTAIN is preferred".to_owned()
        )]
    );
    let both = of(&[("APPTAINER_WORKDIR", "/a"), ("SINGULARITY_WORKDIR", "/b")]);
    assert_eq!(both.settings.value("workdir").unwrap(), "/a");
    assert_eq!(
        both.notes,
        [(
            output::Level::Warning,
            "SINGULARITY_WORKDIR and APPTAINER_WORKDIR have different values, using the latter".to_owned()
        )]
    );
    assert!(!of(&[("APPTAINER_PID", "")]).settings.switch("pid"), "blank is unset");
    assert!(!of(&[("APPTAINER_PID", "false")]).settings.switch("pid"));
    let bad = failure(&["exec", "i", "c"], &[("APPTAINER_PID", "maybe")]);
    assert!(bad.message.contains("APPTAINER_PID"), "{bad}");
}

#[test]
fn singularity_prefers_its_own_variables() {
    let env = [("APPTAINER_WORKDIR", "/a"), ("SINGULARITY_WORKDIR", "/b")];
    let Ok(Request::Do(task)) = request("singularity", &["run", "i"], &env) else { panic!() };
    assert_eq!(task.settings.value("workdir").unwrap(), "/b");
}

#[test]
fn credentials_are_read_without_prefix_too() {
    for (env, expected) in [
        (&[("DOCKER_USERNAME", "bare")][..], "bare"),
        (&[("DOCKER_USERNAME", "bare"), ("APPTAINER_DOCKER_USERNAME", "own")], "own"),
        (&[("DOCKER_USERNAME", "bare"), ("SINGULARITY_DOCKER_USERNAME", "old")], "bare"),
        (&[("SINGULARITY_DOCKER_USERNAME", "old")], "old"),
    ] {
        let task = task(&["pull", "docker://x"], env);
        assert_eq!(task.settings.value("docker-username").unwrap(), expected, "{env:?}");
    }
}

#[test]
fn missing_options_are_named() {
    let text = failure(&["exec", "--overlay", "x", "i", "c"], &[]).message;
    assert_eq!(text, "The option -o, --overlay is not supported yet");
    let by_variable = failure(&["run", "i"], &[("SINGULARITY_FAKEROOT", "1")]);
    assert_eq!(by_variable.causes, ["the environment variable SINGULARITY_FAKEROOT sets it"]);
    assert!(task(&["exec", "--fakeroot=false", "-u", "--no-eval", "i", "c"], &[]).args.len() == 2);
}

#[test]
fn a_script_runs_quietly_with_all_its_arguments() {
    let Ok(Request::Do(task)) = request("/usr/bin/run-singularity", &["./x.sif", "-d", "--help"], &[]) else {
        panic!()
    };
    assert_eq!((task.action, task.threshold), (Action::Run, output::QUIET));
    assert_eq!(task.args, ["./x.sif", "-d", "--help"]);
}

#[test]
fn parents_set_the_level() {
    assert_eq!(task(&["run", "i"], &[("SINGULARITY_MESSAGELEVEL", "4")]).threshold, output::VERBOSE);
    assert_eq!(task(&["-q", "run", "i"], &[("SINGULARITY_MESSAGELEVEL", "4")]).threshold, output::QUIET);
}
