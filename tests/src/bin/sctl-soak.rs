//! Starts and kills without end, and then looks for what was left behind.
//!
//! `sctl-soak [CYCLES [KILLS]]`: so many starts by two users of two images
//! through one root daemon (10,000), among them so many kills of clients, of
//! the mount helper and of the daemon itself (1,000). Afterwards no loop
//! device, mount, process, descriptor or temporary file may be left: with the
//! daemon alive and idle, after it has stopped, and after `kill -9` and a new
//! start. Needs root.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    programs::{have_root, stderr},
    registry::Registry,
};

/// Users' shells that start containers at the same time.
const LANES: u64 = 8;

/// The daemon unmounts what nobody has asked for that long.
const MOUNTS: &str = "idle_seconds = 1";

/// Outlasts the whole run.
const CONFIG: &str = "lease_seconds = 864000";

fn main() -> ExitCode {
    if !have_root("the soak") {
        return ExitCode::FAILURE;
    }
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("arguments are numbers"));
    let cycles = arguments.next().unwrap_or(10_000);
    let kills = arguments.next().unwrap_or(1_000).max(1);
    let registry = Registry::start();
    let images = [("busybox", debian::busybox()), ("base", debian::base())];
    let uris: Vec<String> = images
        .iter()
        .map(|(name, image)| {
            registry.seed(image, &format!("{name}:1"));
            format!("docker://{}", registry.reference(&format!("{name}:1")))
        })
        .collect();
    let users = [User::a(), User::b()];
    let before = Traces::of_host();
    let mut daemon = Daemon::with_mounts(CONFIG, MOUNTS);
    for user in &users {
        for uri in &uris {
            pull(&daemon, user, uri);
        }
    }
    settle(&daemon, &before);
    let at_rest = Holdings::of(&daemon);
    println!("at rest: {at_rest:?}");

    // In ten parts, each of which ends with the daemon's own end.
    let start = Instant::now();
    let mut tally = Tally::default();
    for part in 0..10 {
        cycle(&daemon, &users, &uris, cycles / 10, kills / 10, &mut tally);
        settle(&daemon, &before);
        let now = Holdings::of(&daemon);
        assert!(now.is_no_more_than(&at_rest), "part {part}: more than at rest: {now:?}\n{}", daemon.log());
        assert_eq!(daemon.leftovers(), Vec::<String>::new(), "temporary files");
        daemon = if part % 2 == 0 {
            let folder = daemon.kill();
            Daemon::with_mounts_in(folder, CONFIG, MOUNTS, &[])
        } else {
            let folder = daemon.stop();
            before.wait_for("the daemon has stopped");
            Daemon::with_mounts_in(folder, CONFIG, MOUNTS, &[])
        };
        println!("part {} of 10: {tally:?}, {:.0} s", part + 1, start.elapsed().as_secs_f64());
    }
    let folder = daemon.kill();
    before.wait_for("the daemon was killed");
    drop(folder);
    println!("1 passed, 0 failed");
    ExitCode::SUCCESS
}

#[derive(Debug, Default)]
struct Tally {
    started: u64,
    clients_killed: u64,
    helpers_killed: u64,
    failed_near_a_kill: u64,
}

fn pull(daemon: &Daemon, user: &User, uri: &str) {
    let output = daemon.sctl(user).args(["exec", "--no-https", uri, "/bin/true"]).output().expect("sctl runs");
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Starts containers in lanes; now and then a client, or the helper, is killed
/// at a moment that nobody has chosen.
fn cycle(daemon: &Daemon, users: &[User; 2], uris: &[String], cycles: u64, kills: u64, tally: &mut Tally) {
    let (started, clients, helpers, failed) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let every = (cycles / kills.max(1)).max(1);
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (started, clients, helpers, failed) = (&started, &clients, &helpers, &failed);
            scope.spawn(move || {
                for number in (lane..cycles).step_by(LANES as usize) {
                    let user = &users[(number / 2) as usize % 2];
                    let uri = &uris[number as usize % 2];
                    let mut command = daemon.sctl(user);
                    command.args(["exec", uri, "/bin/true"]).stdout(Stdio::null()).stderr(Stdio::piped());
                    started.fetch_add(1, Ordering::Relaxed);
                    if number % every != 0 {
                        let output = command.output().expect("sctl runs");
                        if !output.status.success() {
                            // Only where the helper was ended under it; the
                            // client goes on over FUSE even then.
                            failed.fetch_add(1, Ordering::Relaxed);
                            eprintln!("start {number}: {}", stderr(&output));
                        }
                        continue;
                    }
                    // Spreads the moments over a start's whole length.
                    let dice = (number as u32).wrapping_mul(2_654_435_761);
                    let mut child = command.spawn().expect("sctl starts");
                    std::thread::sleep(Duration::from_micros(u64::from(dice % 6000)));
                    if (number / every) % 4 == 3 {
                        helpers.fetch_add(1, Ordering::Relaxed);
                        kill_helper(daemon.pid());
                    } else {
                        clients.fetch_add(1, Ordering::Relaxed);
                        // It may have ended by itself.
                        let _ = child.kill();
                    }
                    child.wait().expect("reap sctl");
                }
            });
        }
    });
    tally.started += started.into_inner();
    tally.clients_killed += clients.into_inner();
    tally.helpers_killed += helpers.into_inner();
    tally.failed_near_a_kill += failed.into_inner();
    assert_eq!(tally.failed_near_a_kill, 0, "starts failed");
}

/// Children of a process, by the words of their command line.
fn children(parent: u32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Any of them may end while it is looked at.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        if status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|rest| rest.trim() == parent.to_string())) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

fn kill_helper(daemon: u32) {
    let helper = children(daemon).into_iter().find(|(_, line)| line.contains("mount-helper"));
    if let Some(pid) = helper.and_then(|(pid, _)| rustix::process::Pid::from_raw(pid)) {
        // It may just have been killed by another lane.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// What a daemon holds.
#[derive(Debug)]
struct Holdings {
    descriptors: usize,
    mounts: usize,
    children: usize,
}

impl Holdings {
    fn of(daemon: &Daemon) -> Self {
        let proc = Path::new("/proc").join(daemon.pid().to_string());
        Self {
            descriptors: fs::read_dir(proc.join("fd")).expect("read the daemon's descriptors").count(),
            mounts: fs::read_to_string(proc.join("mountinfo")).expect("read the daemon's mounts").lines().count(),
            children: children(daemon.pid()).len(),
        }
    }

    fn is_no_more_than(&self, other: &Self) -> bool {
        // A descriptor of the database may come and go.
        self.descriptors <= other.descriptors + 2 && self.mounts <= other.mounts && self.children <= other.children
    }
}

/// Waits until the daemon has let go of what nobody uses.
fn settle(daemon: &Daemon, before: &Traces) {
    before.wait_for_loops("the daemon is idle");
    let deadline = Instant::now() + Duration::from_secs(20);
    while children(daemon.pid()).iter().any(|(_, line)| !line.contains("mount-helper")) {
        assert!(Instant::now() < deadline, "jobs are left: {:?}", children(daemon.pid()));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a host shows of containers and daemons.
#[derive(Debug)]
struct Traces {
    loops: BTreeSet<String>,
    processes: BTreeSet<i32>,
}

impl Traces {
    fn of_host() -> Self {
        let loops = fs::read_dir("/sys/block").expect("read /sys/block").flatten();
        let loops = loops.filter(|entry| entry.path().join("loop/backing_file").exists());
        let loops = loops.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let output = Command::new("pgrep").args(["-x", "sctl|sctld|true"]).output().expect("pgrep runs");
        let processes = String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect();
        Self { loops, processes }
    }

    fn wait_for_loops(&self, when: &str) {
        self.wait(when, |now| now.loops.difference(&self.loops).cloned().collect());
    }

    /// Waits until nothing is left that was not there before.
    fn wait_for(&self, when: &str) {
        self.wait(when, |now| {
            let loops = now.loops.difference(&self.loops).cloned();
            let processes = now.processes.difference(&self.processes).map(|pid| format!("process {pid}"));
            loops.chain(processes).collect()
        });
    }

    fn wait(&self, when: &str, left: impl Fn(&Self) -> Vec<String>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = left(&Self::of_host());
            if now.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left when {when}: {now:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
