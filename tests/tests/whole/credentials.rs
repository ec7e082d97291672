//! Where the credentials for a registry come from, and which of them count:
//! pulls from a real registry that knows one user and nobody else.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::termios::{LocalModes, tcgetattr};
use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    hub::TokenServer,
    image,
    programs::{Scratch, have_root, programs, stderr, stdout, wait_until},
    registry::{Demands, Registry},
};
use serde_json::{Value, json};

const NAME: &str = "alice";
/// With a colon, which also ends the name, a blank, and what shells expand.
const PASSWORD: &str = "wonder: $HOME land";

struct Place {
    registry: Registry,
    daemon: Daemon,
    user: User,
    scratch: Scratch,
}

impl Place {
    fn new() -> Self {
        let user = Some((NAME.to_owned(), PASSWORD.to_owned()));
        Self::with(Registry::start_with(&Demands { user, ..Demands::default() }))
    }

    fn with(registry: Registry) -> Self {
        let scratch = Scratch::new();
        debian::busybox().write_layout(&scratch.join("layout"), "t");
        let reference = registry.reference("team/private:1");
        image::push(&scratch.join("layout"), "t", &reference, Some(&format!("{NAME}:{PASSWORD}")));
        let place = Self { registry, daemon: Daemon::system(""), user: User::a(), scratch };
        place.user.folder(&place.scratch, "home");
        place
    }

    fn home(&self) -> PathBuf {
        self.scratch.join("home")
    }

    fn file(&self) -> PathBuf {
        self.scratch.join("out/x.sif")
    }

    fn uri(&self) -> String {
        format!("docker://{}", self.registry.reference("team/private:1"))
    }

    /// A file of the user's, below their home.
    fn write(&self, path: &str, content: &Value) -> PathBuf {
        let path = self.home().join(path);
        fs::create_dir_all(path.parent().expect("it has a parent")).expect("make the file's folder");
        fs::write(&path, content.to_string()).expect("write the file");
        path
    }

    /// A file with one entry, for this registry.
    fn write_auth(&self, path: &str, password: &str) -> PathBuf {
        self.write(path, &auths(&self.registry.host(), password))
    }

    /// A pull with `options`, in an environment with a home of its own.
    fn pulling(&self, options: &[&str]) -> Command {
        // Left by the one before, if any.
        let _ = fs::remove_file(self.file());
        let uri = self.uri();
        let arguments = [options, &["x.sif", &uri]].concat();
        let mut command = self.daemon.pulling(&self.user, &self.user.folder(&self.scratch, "out"), &arguments);
        command.env("HOME", self.home());
        command
    }

    fn assert_pulled(&self, name: &str, output: &Output) {
        assert!(output.status.success(), "{name}: {}{}", stdout(output), stderr(output));
        assert!(self.file().exists(), "{name}: there is no SIF");
        self.assert_secret(name, output);
    }

    /// Asserts that the registry did not know the caller. The image is in the
    /// cache by then, or not.
    fn assert_refused(&self, name: &str, output: &Output) {
        let text = stderr(output);
        assert_eq!(output.status.code(), Some(255), "{name}: {text}");
        assert!(text.contains(&format!("FATAL:   Unable to pull {}\n", self.uri())), "{name}: {text}");
        assert!(text.contains("unauthorized: authentication required"), "{name}: {text}");
        assert!(!self.file().exists(), "{name}: there is a SIF");
        self.assert_secret(name, output);
    }

    /// Asserts that the password is nowhere to be read.
    fn assert_secret(&self, name: &str, output: &Output) {
        let encoded = STANDARD.encode(format!("{NAME}:{PASSWORD}"));
        let shown = [stdout(output), stderr(output), self.daemon.log()].concat();
        assert!(!shown.contains(PASSWORD) && !shown.contains(&encoded), "{name}: the password is shown: {shown}");
    }
}

fn auths(key: &str, password: &str) -> Value {
    json!({"auths": {key: {"auth": STANDARD.encode(format!("{NAME}:{password}"))}}})
}

fn run(command: &mut Command) -> Output {
    command.output().expect("run sctl")
}

#[test]
fn privileged_dockers_own_file_is_read() {
    if !have_root("privileged_dockers_own_file_is_read") {
        return;
    }
    let place = Place::new();
    let host = place.registry.host();
    place.assert_refused("no file", &run(&mut place.pulling(&[])));
    // Right or wrong, in the order in which they count.
    let good = STANDARD.encode(format!("{NAME}:{PASSWORD}"));
    let bad = STANDARD.encode("alice:bad");
    let cases = [
        ("the host", json!({&host: {"auth": good}}), true),
        ("another host", json!({"registry.test.invalid": {"auth": good}}), false),
        ("another port", json!({"127.0.0.1:1": {"auth": good}, "127.0.0.1": {"auth": good}}), false),
        ("a URL", json!({format!("http://{host}/v2/"): {"auth": good}}), true),
        ("the repository first", json!({&host: {"auth": bad}, format!("{host}/team/private"): {"auth": good}}), true),
        ("its name space first", json!({&host: {"auth": good}, format!("{host}/team"): {"auth": bad}}), false),
        ("another repository's", json!({&host: {"auth": good}, format!("{host}/team/priv"): {"auth": bad}}), true),
        ("name and password apart", json!({&host: {"username": NAME, "password": PASSWORD}}), true),
        ("nothing in it", json!({&host: {}}), false),
    ];
    for (name, entries, is_right) in cases {
        place.write(".docker/config.json", &json!({"auths": entries}));
        let output = run(&mut place.pulling(&[]));
        if is_right { place.assert_pulled(name, &output) } else { place.assert_refused(name, &output) }
    }
    // Its own place, and that of the established tools before it.
    place.write_auth("elsewhere/config.json", PASSWORD);
    let output = run(place.pulling(&[]).env("DOCKER_CONFIG", place.home().join("elsewhere")));
    place.assert_pulled("DOCKER_CONFIG", &output);
    place.write_auth(".singularity/docker-config.json", PASSWORD);
    place.assert_pulled("docker-config.json", &run(&mut place.pulling(&[])));
    place.write_auth(".singularity/docker-config.json", "bad");
    place.write_auth(".docker/config.json", PASSWORD);
    place.assert_refused("docker-config.json, wrong", &run(&mut place.pulling(&[])));
    fs::write(place.home().join(".singularity/docker-config.json"), "{\"auths\": ").expect("write");
    let output = run(&mut place.pulling(&[]));
    place.assert_pulled("a broken file is passed over", &output);
    assert!(stderr(&output).contains("WARNING: Unable to use the authentication file "), "{}", stderr(&output));
}

#[test]
fn privileged_a_named_file_counts_instead_of_the_others() {
    if !have_root("privileged_a_named_file_counts_instead_of_the_others") {
        return;
    }
    let place = Place::new();
    let text = |path: &Path| path.to_str().expect("paths of tests are text").to_owned();
    let good = text(&place.write_auth("good.json", PASSWORD));
    let bad = text(&place.write_auth("bad.json", "bad"));
    let other = text(&place.write("other.json", &auths("registry.test.invalid", PASSWORD)));
    place.write_auth(".docker/config.json", "bad");
    place.assert_pulled("named", &run(&mut place.pulling(&["--authfile", &good])));
    place.assert_pulled("by a variable", &run(place.pulling(&[]).env("SINGULARITY_AUTH_FILE", &good)));
    let output = run(place.pulling(&["--authfile", &good]).env("SINGULARITY_AUTH_FILE", &bad));
    place.assert_pulled("the option before the variable", &output);
    place.write_auth(".docker/config.json", PASSWORD);
    place.assert_refused("wrong", &run(&mut place.pulling(&["--authfile", &bad])));
    place.assert_refused("about another registry", &run(&mut place.pulling(&["--authfile", &other])));
    for (name, path) in [("missing", place.home().join("none.json")), ("not ours to read", "/etc/shadow".into())] {
        let output = run(&mut place.pulling(&["--authfile", &text(&path)]));
        let message = format!("FATAL:   Unable to use the authentication file {}\n", path.display());
        assert_eq!(output.status.code(), Some(255), "{name}: {}", stderr(&output));
        assert!(stderr(&output).starts_with(&message), "{name}: {}", stderr(&output));
    }
}

#[test]
fn privileged_variables_count_before_files() {
    if !have_root("privileged_variables_count_before_files") {
        return;
    }
    let place = Place::new();
    let with = |options: &[&str], pairs: &[(&str, &str)]| run(place.pulling(options).envs(pairs.iter().copied()));
    let pair = |password| [("SINGULARITY_DOCKER_USERNAME", NAME), ("SINGULARITY_DOCKER_PASSWORD", password)];
    let authfile = |password| {
        place.write_auth(".docker/config.json", password);
        place.write_auth("auth.json", password).display().to_string()
    };
    let file = authfile("bad");
    place.assert_pulled("before ~/.docker", &with(&[], &pair(PASSWORD)));
    place.assert_pulled("before --authfile", &with(&["--authfile", &file], &pair(PASSWORD)));
    let apptainer = [("APPTAINER_DOCKER_USERNAME", NAME), ("APPTAINER_DOCKER_PASSWORD", PASSWORD)];
    place.assert_pulled("the other prefix", &with(&[], &apptainer));
    place.assert_pulled("no prefix", &with(&[], &[("DOCKER_USERNAME", NAME), ("DOCKER_PASSWORD", PASSWORD)]));
    let file = authfile(PASSWORD);
    place.assert_refused("wrong ones, before ~/.docker", &with(&[], &pair("bad")));
    place.assert_refused("wrong ones, before --authfile", &with(&["--authfile", &file], &pair("bad")));
    for half in pair("bad") {
        place.assert_pulled("one without the other is none", &with(&[], &[half]));
    }
}

#[test]
fn privileged_a_wrong_password_is_told() {
    if !have_root("privileged_a_wrong_password_is_told") {
        return;
    }
    // Asked for with every request.
    let place = Place::new();
    let wrong = |place: &Place| {
        run(place
            .pulling(&[])
            .env("SINGULARITY_DOCKER_USERNAME", NAME)
            .env("SINGULARITY_DOCKER_PASSWORD", "wrong word"))
    };
    let output = wrong(&place);
    place.assert_refused("Basic", &output);
    let repository = format!("{}/team/private", place.registry.host());
    let text = stderr(&output);
    assert_eq!(
        text,
        format!(
            "FATAL:   Unable to pull {}\n  \
             cause: Error reading manifest 1 in {repository}: unauthorized: authentication required\n  \
             hint: the image may not exist, or these credentials give no access to it\n",
            place.uri()
        )
    );

    // Asked for by a token server.
    let server = TokenServer::start(Some((NAME, PASSWORD)), Duration::from_secs(300));
    let token = Some((server.realm(), server.certificate().to_owned()));
    let place = Place::with(Registry::start_with(&Demands { token, ..Demands::default() }));
    let output = wrong(&place);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(255), "{text}");
    assert!(text.starts_with(&format!("FATAL:   Unable to pull {}\n", place.uri())), "{text}");
    assert!(text.contains("unable to retrieve auth token: invalid username/password: "), "{text}");
    assert!(text.contains("unauthorized: incorrect username or password"), "{text}");
    assert!(!text.contains("wrong word"), "{text}");
    assert!(!place.file().exists());
    place.write_auth(".docker/config.json", PASSWORD);
    place.assert_pulled("a token for the right password", &run(&mut place.pulling(&[])));
}

#[test]
fn privileged_a_login_is_asked_for_in_a_pipe() {
    if !have_root("privileged_a_login_is_asked_for_in_a_pipe") {
        return;
    }
    let place = Place::new();
    // What is typed counts before everything else.
    place.write_auth(".docker/config.json", "bad");
    let answer = |options: &[&str], answers: &str| {
        let mut command = place.pulling(&[options, &["--docker-login"]].concat());
        command.env("SINGULARITY_DOCKER_PASSWORD", "bad");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start sctl");
        // It may have ended without having read.
        let _ = child.stdin.take().expect("its input is a pipe").write_all(answers.as_bytes());
        child.wait_with_output().expect("wait for sctl")
    };
    let output = answer(&[], &format!("{NAME}\n{PASSWORD}\n"));
    place.assert_pulled("both", &output);
    assert_eq!(stdout(&output), "Enter Docker Username: Enter Docker Password: ");
    let output = answer(&["--docker-username", NAME], &format!("{PASSWORD}\n"));
    place.assert_pulled("the name is known", &output);
    assert_eq!(stdout(&output), "Enter Docker Password: ");
    place.assert_refused("wrong", &answer(&[], &format!("{NAME}\nbad\n")));
    for answers in ["", &format!("{NAME}\n")] {
        let output = answer(&[], answers);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(255), "{answers:?}: {text}");
        assert!(text.starts_with("FATAL:   Unable to read credentials\n"), "{answers:?}: {text}");
        assert!(!place.file().exists(), "{answers:?}");
    }
}

/// A command on a terminal of its own, which echoes what is typed unless the
/// command forbids it.
struct Terminal {
    script: Child,
    input: ChildStdin,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// Runs the line in a shell of `user`.
    fn start(user: &User, line: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = user.command("script");
        // Its input is no terminal, and it would echo nothing by itself.
        command.args(["--quiet", "--return", "--echo", "always", "--command"]);
        command.arg(format!("tty; {line}")).arg("/dev/null");
        change(&mut command);
        let mut script =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script runs (it is of util-linux)");
        let input = script.stdin.take().expect("its input is a pipe");
        let mut output = script.stdout.take().expect("its output is a pipe");
        let shown = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Self { script, input, shown }
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a question at the end of what is shown, and until its answer
    /// is echoed, or not; then types it.
    fn answer(&mut self, question: &str, is_echoed: bool, answer: &str) {
        wait_until(question, Duration::from_secs(20), || self.shown().ends_with(question));
        let shown = self.shown();
        let path = shown.lines().next().expect("the first line is the terminal's path").trim();
        let terminal = fs::File::open(path).expect("open the terminal");
        wait_until("the terminal is ready for the answer", Duration::from_secs(20), || {
            let modes = tcgetattr(&terminal).expect("ask for the terminal's modes").local_modes;
            modes.contains(LocalModes::ECHO) == is_echoed
        });
        self.input.write_all(format!("{answer}\n").as_bytes()).expect("type");
    }

    /// What was shown, once the command has ended.
    fn end(mut self) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("the command ends", Duration::from_secs(30), || {
            status = self.script.try_wait().expect("ask for the command's state");
            // Its last words come after its end.
            status.is_some() && Arc::strong_count(&self.shown) == 1
        });
        (status.expect("it has ended"), self.shown())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

#[test]
fn privileged_a_password_that_is_typed_is_not_shown() {
    if !have_root("privileged_a_password_that_is_typed_is_not_shown") {
        return;
    }
    let place = Place::new();
    let out = place.user.folder(&place.scratch, "out");
    let line = format!("{}/sctl pull --no-https --docker-login x.sif {}", programs().display(), place.uri());
    let mut terminal = Terminal::start(&place.user, &line, |command| {
        command.env("SCTL_SOCKET", place.daemon.socket()).env("HOME", place.home()).current_dir(&out);
    });
    terminal.answer("Enter Docker Username: ", true, NAME);
    terminal.answer("Enter Docker Password: ", false, PASSWORD);
    let (status, shown) = terminal.end();
    assert!(status.success(), "{status:?}: {shown}");
    assert!(place.file().exists());
    assert!(shown.contains(&format!("Enter Docker Username: {NAME}\r\nEnter Docker Password: \r\n")), "{shown:?}");
    assert!(!shown.contains("wonder"), "{shown:?}");
}

/// Writes a credential helper with this script into `folder`.
fn write_helper(folder: &Path, name: &str, script: &str) {
    let source = folder.join("source");
    fs::write(&source, format!("#!/bin/sh\n{script}\n")).expect("write a helper");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).expect("make it a program");
    // What this process has open for writing, even in a child of another
    // test's, nobody can execute.
    let copied = Command::new("cp").arg(&source).arg(folder.join(format!("docker-credential-{name}"))).status();
    assert!(copied.expect("cp runs").success());
}

#[test]
fn privileged_a_helper_is_asked_as_the_user() {
    if !have_root("privileged_a_helper_is_asked_as_the_user") {
        return;
    }
    let place = Place::new();
    let host = place.registry.host();
    let helpers = place.scratch.join("helpers");
    fs::create_dir(&helpers).expect("make the helpers' folder");
    let asked = place.home().join("asked");
    let note = r#"{ id -u; echo "$@"; cat; echo; } >> "$HOME/asked""#;
    let answer = json!({"ServerURL": host, "Username": NAME, "Secret": PASSWORD});
    write_helper(&helpers, "good", &format!("{note}\nprintf '%s' '{answer}'"));
    write_helper(&helpers, "none", &format!("{note}\necho 'credentials not found in native keychain'\nexit 1"));
    write_helper(&helpers, "locked", &format!("{note}\necho 'the keychain is locked'\nexit 1"));
    let pull = |options: &[&str]| {
        // Asked anew each time.
        let _ = fs::remove_file(&asked);
        let mut command = place.pulling(options);
        run(command.env("PATH", format!("{}:/usr/bin:/bin", helpers.display())))
    };
    let assert_asked = |name: &str| {
        let noted = fs::read_to_string(&asked).unwrap_or_else(|error| panic!("{name}: nobody was asked: {error}"));
        assert_eq!(noted, format!("{}\nget\n{host}\n", place.user.uid), "{name}");
    };
    let cases = [
        ("for this registry", json!({"credHelpers": {&host: "good"}}), true),
        ("for all", json!({"credsStore": "good"}), true),
        ("for all, with a mark in the file", json!({"auths": {&host: {}}, "credsStore": "good"}), true),
        ("before all others", json!({"credHelpers": {&host: "good"}, "credsStore": "none"}), true),
        ("that knows nothing", json!({"credHelpers": {&host: "none"}}), false),
        ("that fails", json!({"credHelpers": {&host: "locked"}}), false),
    ];
    for (name, config, is_right) in cases {
        place.write(".docker/config.json", &config);
        let output = pull(&[]);
        assert_asked(name);
        if is_right {
            place.assert_pulled(name, &output)
        } else {
            place.assert_refused(name, &output)
        }
        let warning = "WARNING: Unable to use docker-credential-locked: the keychain is locked";
        assert_eq!(stderr(&output).contains(warning), name == "that fails", "{name}: {}", stderr(&output));
    }
    // In a file that is named it counts as well; for another registry never.
    let named = place.write("named.json", &json!({"credHelpers": {&host: "good"}}));
    let named = named.to_str().expect("paths of tests are text");
    place.write(".docker/config.json", &json!({"credHelpers": {"registry.test.invalid": "good"}}));
    place.assert_pulled("named", &pull(&["--authfile", named]));
    assert_asked("named");
    place.assert_refused("of another registry", &pull(&[]));
    assert!(!asked.exists(), "a helper was asked about a registry that is not its own");
    // A helper that is not installed is told.
    place.write(".docker/config.json", &json!({"credHelpers": {&host: "missing"}}));
    let output = pull(&[]);
    place.assert_refused("missing", &output);
    assert!(stderr(&output).contains("WARNING: Unable to use docker-credential-missing: "), "{}", stderr(&output));
}
