//! Jobs of the real daemon, with a registry that never answers.

use std::{
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sctl_common::ErrorKind;
use sctl_proto::{FailureDetail, from_status, v1};

use super::{
    fake::{client, wait_until},
    program::Daemon,
};

/// A registry that accepts connections and says nothing.
pub struct Silent(TcpListener);

impl Silent {
    pub fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub fn request(&self) -> v1::PullRequest {
        let reference = format!("{}/image", self.0.local_addr().unwrap());
        v1::PullRequest { reference, ..Default::default() }
    }
}

/// The daemon's only job, once there is one.
fn job(daemon: &Daemon) -> u32 {
    job_of(daemon.child.id())
}

/// The only job that is a child of `parent`, once there is one.
pub fn job_of(parent: u32) -> u32 {
    let mut found = None;
    wait_until("a job runs", || {
        found = jobs_of(parent).into_iter().next();
        found.is_some()
    });
    found.unwrap()
}

fn jobs(daemon: &Daemon) -> Vec<u32> {
    jobs_of(daemon.child.id())
}

/// Jobs that are children of `parent`.
pub fn jobs_of(own: u32) -> Vec<u32> {
    let mut jobs = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let Ok(pid) = entry.unwrap().file_name().to_string_lossy().parse::<u32>() else { continue };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is_child = status.lines().any(|line| line == format!("PPid:\t{own}"));
        // Between fork and exec it is not yet what it will be.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if is_child && command.starts_with(b"sctld\0job\0") {
            jobs.push(pid);
        }
    }
    jobs
}

/// Starts a pull, lets `meanwhile` look at the job, and returns how it fails.
fn failing(daemon: &Daemon, registry: &Silent, meanwhile: impl FnOnce(u32)) -> FailureDetail {
    failing_of(daemon, daemon.child.id(), registry, meanwhile)
}

/// The same with jobs that are children of `parent`.
pub fn failing_of(daemon: &Daemon, parent: u32, registry: &Silent, meanwhile: impl FnOnce(u32)) -> FailureDetail {
    let (runtime, mut client) = client(&daemon.socket());
    let mut stream = runtime.block_on(client.pull(registry.request())).unwrap().into_inner();
    meanwhile(job_of(parent));
    loop {
        match runtime.block_on(stream.message()) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the pull ended well"),
            Err(status) => return from_status(&status),
        }
    }
}

#[test]
fn a_killed_job_is_a_failure_that_names_its_step() {
    let (daemon, registry) = (Daemon::start(""), Silent::new());
    let failure = failing(&daemon, &registry, |pid| {
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    });
    assert_eq!(failure.kind, ErrorKind::Internal);
    assert_eq!(failure.message, "the job that resolves the reference ended with signal 9 (killed)");
    assert!(!failure.hint.is_empty());
    assert!(jobs(&daemon).is_empty());
}

#[test]
fn the_last_caller_to_leave_ends_the_job() {
    let (daemon, registry) = (Daemon::start(""), Silent::new());
    let (runtime, mut first) = client(&daemon.socket());
    let one = runtime.block_on(first.pull(registry.request())).unwrap();
    let pid = job(&daemon);
    let (other_runtime, mut second) = client(&daemon.socket());
    let two = other_runtime.block_on(second.pull(registry.request())).unwrap();
    drop((one, first, runtime));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(jobs(&daemon), [pid], "one job for both, and one of them still waits");
    drop((two, second, other_runtime));
    wait_until("the job has ended", || jobs(&daemon).is_empty());
    let left = fs::read_dir(daemon.dir.path().join("cache/tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing is left behind");
}

#[test]
fn stopping_ends_jobs_after_their_deadline() {
    let (mut daemon, registry) = (Daemon::start("shutdown_seconds = 1\n"), Silent::new());
    let started = Instant::now();
    let failure = failing(&daemon, &registry, |_| daemon.signal(Signal::TERM));
    assert_eq!(failure.kind, ErrorKind::Cancelled, "{}", failure.message);
    assert!(started.elapsed() >= Duration::from_secs(1), "it had its deadline");
    let (status, took) = daemon.ended();
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    assert!(jobs(&daemon).is_empty());
}

#[test]
fn jobs_die_with_the_daemon() {
    let (mut daemon, registry) = (Daemon::start(""), Silent::new());
    let (runtime, mut client) = client(&daemon.socket());
    let stream = runtime.block_on(client.pull(registry.request())).unwrap();
    let pid = job(&daemon);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    wait_until("the job has ended", || !fs::exists(format!("/proc/{pid}/exe")).unwrap());
    drop(stream);
}

#[test]
fn privileged_jobs_run_without_any_power() {
    let is_user = fs::read_to_string("/etc/passwd").unwrap().lines().any(|line| line.starts_with("nobody:"));
    if !rustix::process::geteuid().is_root() || !is_user {
        eprintln!("SKIPPED: needs root, who alone can start jobs as another user");
        return;
    }
    let config = "job_user = \"nobody\"\nshutdown_seconds = 0\n";
    let (daemon, registry) = (Daemon::start_with(config, &[]), Silent::new());
    failing(&daemon, &registry, |pid| {
        // Its first act, before it is told anything; it may just have started.
        let owner = || std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/mem")).unwrap());
        wait_until("others of its uid cannot look into it", || owner() == 0);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(field("Uid:"), "65534 65534 65534 65534");
        assert_eq!(field("Gid:"), "65534 65534 65534 65534");
        assert_eq!(field("Groups:"), "");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        // Nothing of the daemon's but the control socket and standard error.
        let mut open: Vec<String> = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
            open.push(target.display().to_string());
        }
        assert!(!open.iter().any(|target| target.contains("cache")), "{open:?}");
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert_eq!(environment, b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1\0", "nothing of the daemon's");
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    });
}
