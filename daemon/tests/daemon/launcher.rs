//! Jobs that a launcher starts for a daemon.

use std::{ffi::OsStr, os::fd::AsFd as _, path::Path, process::Command};

use rustix::process::{Pid, Signal, kill_process};
use sctl_common::ErrorKind;
use sctl_sys::{scm, spawn};

use super::{
    fake::{client, wait_until},
    jobs::{Silent, failing_of, job_of, jobs_of},
    program::{Daemon, SCTLD},
};

/// A launcher that listens in a folder, as a service manager starts it.
struct Launcher(spawn::Process);

impl Launcher {
    fn start(dir: &Path) -> Self {
        let listener = scm::listen(&dir.join("jobs.sock"), 16, scm::Blocking::Yes).unwrap();
        let script = format!("export LISTEN_FDS=1 LISTEN_PID=$$; exec {SCTLD} launcher");
        let args = ["sh", "-c", &script].map(OsStr::new);
        let process = spawn::spawn(&spawn::Command {
            program: OsStr::new("/bin/sh"),
            args: &args,
            env: &[],
            fds: &[listener.as_fd()],
            stderr: None,
            identity: None,
            powers: spawn::Powers::None,
        });
        Self(process.unwrap())
    }

    fn id(&self) -> u32 {
        self.0.id() as u32
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A launcher, and a daemon that uses it.
fn both() -> (Launcher, Daemon) {
    let dir = tempfile::tempdir().unwrap();
    let launcher = Launcher::start(dir.path());
    (launcher, daemon(dir))
}

fn daemon(dir: tempfile::TempDir) -> Daemon {
    let socket = dir.path().join("jobs.sock");
    let arguments = ["--user", "--job-socket", socket.to_str().unwrap()];
    Daemon::start_in(dir, "shutdown_seconds = 1\n", &arguments, &[])
}

#[test]
fn its_jobs_fail_in_the_same_words() {
    let ((launcher, daemon), registry) = (both(), Silent::new());
    let failure = failing_of(&daemon, launcher.id(), &registry, |pid| {
        assert_eq!(jobs_of(daemon.child.id()), [0; 0], "the daemon starts none");
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    });
    assert_eq!(failure.kind, ErrorKind::Internal);
    assert_eq!(failure.message, "the job that resolves the reference ended with signal 9 (killed)");
    let failure = failing_of(&daemon, launcher.id(), &registry, |_| daemon.signal(Signal::TERM));
    assert_eq!(failure.kind, ErrorKind::Cancelled, "{}", failure.message);
    wait_until("the job has ended", || jobs_of(launcher.id()).is_empty());
}

#[test]
fn jobs_end_with_their_callers_and_with_the_daemon() {
    let ((launcher, mut old), registry) = (both(), Silent::new());
    let pull = |daemon: &Daemon| {
        let (runtime, mut client) = client(&daemon.socket());
        let stream = runtime.block_on(client.pull(registry.request())).unwrap();
        (stream, client, runtime, job_of(launcher.id()))
    };
    drop(pull(&old));
    wait_until("the caller's job has ended", || jobs_of(launcher.id()).is_empty());
    let waiting = pull(&old);
    old.child.kill().unwrap();
    old.child.wait().unwrap();
    wait_until("the daemon's job has ended", || jobs_of(launcher.id()).is_empty());
    drop(waiting);
    // The launcher serves the next one.
    let dir = std::mem::replace(&mut old.dir, tempfile::tempdir().unwrap());
    let new = daemon(dir);
    drop(pull(&new));
}

#[test]
fn a_launcher_that_dies_takes_its_jobs_along_and_pulls_say_so() {
    let ((mut launcher, daemon), registry) = (both(), Silent::new());
    let mut job = 0;
    let id = launcher.id();
    let failure = failing_of(&daemon, id, &registry, |pid| {
        job = pid;
        launcher.0.kill().unwrap();
        launcher.0.wait().unwrap();
    });
    assert!(failure.causes.iter().any(|cause| cause.contains("launcher of jobs has gone")), "{failure:?}");
    wait_until("its job has ended", || !std::fs::exists(format!("/proc/{job}/exe")).unwrap());
}

#[test]
fn privileged_nobody_but_root_and_its_user_may_ask() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to become somebody else");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _launcher = Launcher::start(dir.path());
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    // What keeps others away, gone: the second guard is the launcher's own.
    open(dir.path(), 0o755);
    open(&dir.path().join("jobs.sock"), 0o666);
    let script = "socket(S, AF_UNIX, SOCK_SEQPACKET, 0) and connect(S, sockaddr_un($ARGV[0])) or die $!; \
                  recv(S, $answer, 1024, 0); print $answer";
    let ask = |uid: u32| {
        let mut perl = Command::new("perl");
        std::os::unix::process::CommandExt::uid(&mut perl, uid);
        let output = perl.args(["-MSocket", "-e", script]).arg(dir.path().join("jobs.sock")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask(65_534), "Euser 65534 may not start jobs");
}
