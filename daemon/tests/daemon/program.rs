//! `sctld` as a program: arguments, configuration, sockets, signals.

use std::{
    ffi::OsStr,
    fs,
    io::Read as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sctl_proto::v1;
use sctl_sys::spawn;

use super::fake::{client, wait_until};

/// The program under test.
pub const SCTLD: &str = env!("CARGO_BIN_EXE_sctld");

/// A user daemon in a folder of its own.
pub struct Daemon {
    pub dir: tempfile::TempDir,
    pub child: Child,
}

impl Daemon {
    /// Starts it with these lines of configuration, and waits until it answers.
    pub fn start(config: &str) -> Self {
        Self::start_with(config, &["--user"])
    }

    /// The same with other arguments.
    pub fn start_with(config: &str, arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), config, arguments, &[])
    }

    /// The same in a given folder, with variables.
    pub fn start_in(dir: tempfile::TempDir, config: &str, arguments: &[&str], env: &[(&str, &Path)]) -> Self {
        fs::write(dir.path().join("sctld.toml"), config).unwrap();
        let mut command = command(dir.path());
        let child = command.args(arguments).envs(env.iter().copied()).stderr(Stdio::piped()).spawn().unwrap();
        let mut daemon = Self { dir, child };
        let socket = daemon.socket();
        wait_until("the daemon answers", || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("{status}: {}", daemon.log());
            }
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        daemon
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sctl.sock")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; its status and how long it took.
    pub fn ended(&mut self) -> (std::process::ExitStatus, Duration) {
        let started = Instant::now();
        let mut status = None;
        wait_until("the daemon ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        (status.unwrap(), started.elapsed())
    }

    /// What it logged, once it has ended.
    pub fn log(&mut self) -> String {
        let mut log = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut log).unwrap();
        }
        log
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(SCTLD);
    command
        .args(["--config".as_ref(), dir.join("sctld.toml").as_os_str()])
        .args(["--socket".as_ref(), dir.join("sctl.sock").as_os_str()])
        .args(["--cache-dir".as_ref(), dir.join("cache").as_os_str()])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// What a daemon says to a configuration that it cannot use.
pub fn fails(config: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("sctld.toml"), config).unwrap();
    let output = command(dir.path()).arg("--user").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    output
}

#[test]
fn configuration_errors_name_file_and_line() {
    let output = fails("keep_blobs = true\n\nspeed = \"high\"\n");
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "FATAL:   the configuration cannot be used");
    assert!(
        lines[1].starts_with("  cause: /") && lines[1].contains("sctld.toml, line 3: unknown field `speed`"),
        "{text}"
    );
}

#[test]
fn sigterm_and_sigint_end_it_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start("");
        let (runtime, mut client) = client(&daemon.socket());
        let version = runtime.block_on(client.version(v1::VersionRequest {})).unwrap().into_inner();
        assert_eq!(version.pid, daemon.child.id());
        daemon.signal(signal);
        let (status, took) = daemon.ended();
        assert!(status.success(), "{signal:?}: {status}: {}", daemon.log());
        assert!(took < Duration::from_secs(5), "{signal:?}: an idle connection held it for {took:?}");
        assert!(!daemon.socket().exists(), "{signal:?}: the socket is left");
    }
}

#[test]
fn a_second_daemon_is_refused_and_a_stale_socket_is_replaced() {
    let mut first = Daemon::start("");
    let output = command(first.dir.path()).arg("--user").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.starts_with("FATAL:   another daemon serves /"), "{text}");
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(first.socket().exists(), "killed, it could not remove it");
    let mut second = command(first.dir.path()).arg("--user").stderr(Stdio::null()).spawn().unwrap();
    wait_until("the next one answers", || std::os::unix::net::UnixStream::connect(first.socket()).is_ok());
    second.kill().unwrap();
    second.wait().unwrap();
}

#[test]
fn it_leaves_when_nobody_needs_it() {
    let mut daemon = Daemon::start("idle_seconds = 1\n");
    let (status, _) = daemon.ended();
    assert!(status.success());
    let log = daemon.log();
    assert!(log.contains("nobody needs this daemon"), "{log}");
    assert!(!daemon.socket().exists());
}

#[test]
fn sockets_of_a_service_manager_are_used_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("sctld.toml"), "idle_seconds = 1\n").unwrap();
    let socket = dir.path().join("sctl.sock");
    let stream = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let packet = sctl_sys::scm::listen(&dir.path().join("mount.sock"), 8, sctl_sys::scm::Blocking::Yes).unwrap();
    // The variables name the process, so it has to set them itself.
    let script = format!(
        "export LISTEN_FDS=2 LISTEN_PID=$$; exec {SCTLD} --user --config {d}/sctld.toml --socket {d}/sctl.sock \
         --cache-dir {d}/cache",
        d = dir.path().display()
    );
    let args = ["sh", "-c", &script].map(OsStr::new);
    let mut process = spawn::spawn(&spawn::Command {
        program: OsStr::new("/bin/sh"),
        args: &args,
        env: &[],
        fds: &[stream.as_fd(), packet.as_fd()],
        stderr: None,
        identity: None,
        powers: spawn::Powers::None,
    })
    .unwrap();
    let (runtime, mut client) = client(&socket);
    let version = runtime.block_on(client.version(v1::VersionRequest {})).unwrap().into_inner();
    assert_eq!(version.pid, process.id() as u32);
    drop((runtime, client));
    assert!(process.wait().unwrap().is_success(), "it leaves when it is idle");
    assert!(socket.exists(), "the socket belongs to the service manager");
    std::os::unix::net::UnixStream::connect(&socket).expect("whoever comes now waits for the next daemon");
}

#[test]
fn jobs_are_not_started_by_hand() {
    for fds in ["0", "1", "x"] {
        let output = Command::new(SCTLD).args(["job", fds]).stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "job {fds}");
        assert!(!output.stderr.is_empty(), "job {fds} says nothing");
    }
}

#[test]
fn relative_paths_are_refused() {
    let output = Command::new(SCTLD).args(["--user", "--socket", "here.sock"]).env_clear().output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("FATAL:") && !output.status.success(), "{text}");
}
