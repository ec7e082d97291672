//! The program as scripts see it: texts, streams and exit codes.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// A home of its own, an empty environment, and no way to any daemon.
struct Sandbox {
    directory: TempDir,
}

impl Sandbox {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("HOME", self.path())
            .env("SCTL_SOCKET", self.path().join("none.sock"))
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_sctl")).args(args).output().unwrap()
    }

    fn named(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        symlink(env!("CARGO_BIN_EXE_sctl"), &path).unwrap();
        path
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, text: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    assert_eq!(stderr(output), text);
    assert_eq!(stdout(output), "");
}

#[test]
fn usage_errors_end_with_1() {
    let sandbox = Sandbox::new();
    assert_fails(
        &sandbox.run(&["pull"]),
        1,
        "Error for command \"pull\": accepts between 1 and 2 arg(s), received 0\n\n\
         Usage:\n  sctl [global options...] pull [pull options...] [output file] <URI>\n\n\
         Run 'sctl --help' for more detailed usage information.\n",
    );
    assert_fails(
        &sandbox.run(&["frobnicate"]),
        1,
        "Error: unknown command \"frobnicate\" for \"sctl\"\n\n\
         Run 'sctl --help' for more detailed usage information.\n",
    );
    assert_fails(
        &sandbox.run(&[]),
        1,
        "Usage:\n  sctl [global options...] <command>\n\nRun 'sctl --help' for more detailed usage information.\n",
    );
    let bad = sandbox.run(&["cache", "info", "--foo"]);
    assert_fails(
        &bad,
        1,
        "Error for command \"info\": unknown flag: --foo\n\nOptions for info command:\n\n\
         \x20 -d, --debug    print debugging information (highest verbosity)\n\
         \x20 -h, --help     show this help\n\
         \x20 -j, --json     print JSON\n\
         \x20     --nocolor  print without color output\n\
         \x20 -q, --quiet    suppress normal output\n\
         \x20 -s, --silent   only print errors\n\
         \x20 -v, --verbose  print additional information\n\n\
         Run 'sctl --help' for more detailed usage information.\n",
    );
}

#[test]
fn versions_go_to_stdout() {
    let sandbox = Sandbox::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(stdout(&sandbox.run(&["version"])), format!("{version}\n"));
    for (name, like) in [("singularity", "3.11.5"), ("apptainer", "1.3.6")] {
        let program = sandbox.named(name);
        let output = sandbox.command(program.to_str().unwrap()).arg("--version").output().unwrap();
        assert_eq!(stdout(&output), format!("{name} version {like}+sctl{version}\n"));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn failures_end_with_255_and_tell_causes() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path().join("junk.sif"), vec![b'x'; 4096]).unwrap();
    fs::write(sandbox.path().join("lolcow_latest.sif"), "mine").unwrap();
    // Containers ask the other socket first, beside the one that is named.
    let [silent, silent_mount] = ["none.sock", "mount.sock"].map(|name| {
        format!(
            "FATAL:   Unable to reach the image daemon at {}\n  cause: No such file or directory\n  \
             hint: SCTL_SOCKET names this socket; unset it to use the default daemon\n",
            sandbox.path().join(name).display()
        )
    });
    for (args, text) in [
        (
            &["pull", "docker://godlovedc/lolcow"][..],
            "FATAL:   Image file already exists: \"lolcow_latest.sif\" - will not overwrite\n",
        ),
        (
            &["pull", "no/such/dir/x.sif", "docker://godlovedc/lolcow"],
            "FATAL:   Unable to write no/such/dir/x.sif\n  cause: no/such/dir: No such file or directory\n",
        ),
        (
            &["pull", "lolcow"],
            "FATAL:   No transport type URI supplied\n  hint: for an image of a registry, write docker://lolcow\n",
        ),
        (
            &["pull", "foo://lolcow"],
            "FATAL:   Unsupported transport type: foo\n  hint: only docker:// is supported yet\n",
        ),
        (
            &["pull", "docker://Lolcow"],
            "FATAL:   Bad URI docker://Lolcow\n  cause: invalid reference format: repository name must be lowercase\n",
        ),
        (
            &["pull", "--arch", "vax", "docker://x"],
            "FATAL:   \"vax\" names no platform (expected an architecture such as amd64, arm64 or arm/v7)\n",
        ),
        (
            &["pull", "--authfile", "none.json", "docker://x"],
            "FATAL:   Unable to use the authentication file none.json\n  cause: No such file or directory\n",
        ),
        (&["pull", "docker://x"], &silent),
        (&["exec", "docker://x", "true"], &silent_mount),
        (&["cache", "list"], &silent),
        (&["exec", "--overlay", "o.img", "x.sif", "true"], "FATAL:   The option -o, --overlay is not supported yet\n"),
        (&["exec", "none.sif", "true"], "FATAL:   Could not open image none.sif\n  cause: No such file or directory\n"),
        (&["inspect", "none.sif"], "FATAL:   Failed to open image none.sif\n  cause: No such file or directory\n"),
        (&["inspect", "junk.sif"], "FATAL:   Failed to open image junk.sif\n  cause: it is no container image\n"),
        (
            &["exec", "instance://x", "true"],
            "FATAL:   Unable to join instance://x\n  cause: instances are not supported yet\n",
        ),
        (
            &["exec", "-B", "/a:/b:zz", "x.sif", "true"],
            "FATAL:   while parsing bind path \"/a:/b:zz\"\n  cause: zz is not a valid bind option\n",
        ),
    ] {
        assert_fails(&sandbox.run(args), 255, text);
    }
    assert_eq!(fs::read_to_string(sandbox.path().join("lolcow_latest.sif")).unwrap(), "mine");
}

#[test]
fn a_silent_program_tells_errors_only() {
    let sandbox = Sandbox::new();
    let run =
        |args: &[&str]| sandbox.command(env!("CARGO_BIN_EXE_sctl")).env("SINGULARITY_PID", "1").args(args).output();
    let quiet = run(&["-q", "exec", "--no-mount", "what", "none.sif", "true"]).unwrap();
    assert!(stderr(&quiet).starts_with("WARNING: Ignoring unknown mount type 'what'\nFATAL:   Could not open"));
    let silent = run(&["-s", "exec", "--no-mount", "what", "none.sif", "true"]).unwrap();
    assert!(stderr(&silent).starts_with("FATAL:   Could not open"), "{}", stderr(&silent));
}

#[test]
fn an_existing_build_target_is_asked_about() {
    let sandbox = Sandbox::new();
    let target = sandbox.path().join("x.sif");
    fs::write(&target, "mine").unwrap();
    let question = "Build target already exists. Do you want to overwrite? [N/y] ";
    let unattended = sandbox.run(&["build", "x.sif", "docker://x"]);
    assert_eq!(unattended.status.code(), Some(255));
    assert_eq!(stdout(&unattended), format!("{question}\n"));
    assert_eq!(
        stderr(&unattended),
        "FATAL:   While checking build target: build target 'x.sif' already exists. \
         Use --force if you want to overwrite it\n"
    );
    for (answer, text) in [("n\n", "FATAL:   Stopping build.\n"), ("\n", "FATAL:   Stopping build.\n")] {
        fs::write(sandbox.path().join("answer"), answer).unwrap();
        let stdin = fs::File::open(sandbox.path().join("answer")).unwrap();
        let args = ["build", "x.sif", "docker://x"];
        let output = sandbox.command(env!("CARGO_BIN_EXE_sctl")).args(args).stdin(stdin).output().unwrap();
        assert_eq!((stdout(&output), stderr(&output)), (question, text));
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
}

#[test]
fn directories_are_inspected() {
    let sandbox = Sandbox::new();
    let home = sandbox.path().join("image/.singularity.d");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("labels.json"), "{\"b\":\"2\",\"a\":\"1\"}").unwrap();
    fs::write(home.join("runscript"), "#!/bin/sh\nexec true\n").unwrap();
    assert_eq!(stdout(&sandbox.run(&["inspect", "image"])), "a: 1\nb: 2\n");
    assert_eq!(stdout(&sandbox.run(&["inspect", "-r", "image"])), "#!/bin/sh\nexec true\n");
    assert_eq!(
        stdout(&sandbox.run(&["inspect", "--json", "--labels", "image"])),
        "{\n\t\"data\": {\n\t\t\"attributes\": {\n\t\t\t\"labels\": {\n\t\t\t\t\"a\": \"1\",\n\t\t\t\t\"b\": \"2\"\n\t\t\t}\n\t\t}\n\t},\n\t\"type\": \"container\"\n}\n"
    );
}

#[test]
fn completion_scripts_name_the_program() {
    let sandbox = Sandbox::new();
    assert!(stdout(&sandbox.run(&["completion", "bash"])).contains("_sctl()"));
    assert_eq!(sandbox.run(&["completion", "tcsh"]).status.code(), Some(1));
}

#[test]
fn a_daemon_that_speaks_nonsense_is_told() {
    let sandbox = Sandbox::new();
    let socket = sandbox.path().join("d.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let output = sandbox
        .command(env!("CARGO_BIN_EXE_sctl"))
        .env("SCTL_SOCKET", &socket)
        .args(["cache", "info"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(stderr(&output).starts_with("FATAL:   Unable to "), "{}", stderr(&output));
}

#[test]
fn a_private_daemon_that_ends_at_once_is_told_with_its_last_words() {
    if Path::new("/run/sctl/sctl.sock").exists() {
        eprintln!("SKIPPED: a daemon is installed on this host");
        return;
    }
    let sandbox = Sandbox::new();
    // Beside a copy of the program lies another sctld.
    let bin = sandbox.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\necho $* >&2\n/bin/ls -l /proc/self/fd >&2\n/usr/bin/env >&2\nexit 3\n";
    fs::write(bin.join("script"), script).unwrap();
    fs::set_permissions(bin.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    // Not copied by this process: a child of another test could still hold what
    // was written, and then it cannot be executed.
    for (from, to) in [(env!("CARGO_BIN_EXE_sctl").into(), "sctl"), (bin.join("script"), "sctld")] {
        assert!(std::process::Command::new("cp").arg(&from).arg(bin.join(to)).status().unwrap().success());
    }
    let output = sandbox
        .command(bin.join("sctl").to_str().unwrap())
        .env_remove("SCTL_SOCKET")
        .env("XDG_RUNTIME_DIR", sandbox.path())
        .env("SINGULARITY_DOCKER_PASSWORD", "secret")
        .args(["cache", "info"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    let text = stderr(&output);
    assert!(text.starts_with("FATAL:   Unable to start the image daemon\n  cause: it ended at once\n"), "{text}");
    assert!(!text.contains("secret"), "{text}");
    // Its home is not that of the account, so neither is its daemon.
    let files = fs::read_dir(sandbox.path().join("sctl")).unwrap().flatten().map(|file| file.path());
    let log = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "log")).unwrap();
    let socket = log.with_extension("sock");
    let log = fs::read_to_string(log).unwrap();
    assert!(log.starts_with(&format!("--user --socket {}", socket.display())), "{log}");
    assert!(log.contains(&format!("HOME={}", sandbox.path().display())), "{log}");
    let mode = fs::metadata(sandbox.path().join("sctl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
