//! Starts of containers from the host's cache: kernel mounts handed over by
//! the daemon, against `bwrap` on a directory and against a direct mount.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Barrier,
    time::{Duration, Instant},
};

use prost::Message as _;
use sctl_proto::v1::{ImageRequest, MountWish, OpenReply, OpenRequest, open_request::What};
use sctl_sys::scm;
use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    image::Image,
    programs::{Scratch, programs, stderr},
    registry::Registry,
    sif,
};

use crate::run::{Report, Subject, median};

/// Starts in a row that are timed together: a shell's loop, so that neither
/// this process nor the change of user is on anybody's time.
const STARTS: u32 = 50;

/// Rounds of each comparison; the median counts.
const ROUNDS: usize = 7;

/// Containers at the same time.
const IN_FLIGHT: u32 = 50;

/// An image in the cache of a daemon that hands out mounts, and the same tree
/// as a directory.
struct Stage {
    daemon: Daemon,
    user: User,
    uri: String,
    reference: String,
    scratch: Scratch,
    root: PathBuf,
    _registry: Registry,
}

impl Stage {
    fn new(name: &'static str, image: Image) -> Self {
        let registry = Registry::start();
        let user = User::a();
        let reference = Subject::new(name, image).seed(&registry);
        let uri = format!("docker://{reference}");
        // Whatever a lease lasts, it must outlast this.
        let daemon = Daemon::with_mounts("lease_seconds = 86400", "");
        let scratch = Scratch::new();
        let own = user.folder(&scratch, "own").join("x.sif");
        run(daemon.sctl(&user).args(["pull", "--no-https"]).arg(&own).arg(&uri));
        let root = scratch.join("root");
        sif::unsquash(&own, &root);
        let stage = Self { daemon, user, uri, reference, scratch, root, _registry: registry };
        let shown = stage.daemon.sctl(&stage.user).args(["exec", &stage.uri, "cat", "/proc/self/mountinfo"]).output();
        let shown = String::from_utf8_lossy(&shown.expect("the command runs").stdout).into_owned();
        let is_mounted = shown.lines().any(|line| line.contains(" / ro,nosuid,nodev") && line.contains(" - squashfs "));
        assert!(is_mounted, "the root is no kernel mount:\n{shown}\n{}", stage.daemon.log());
        stage
    }

    fn ours(&self) -> String {
        format!("{} exec {}", programs().join("sctl").display(), self.uri)
    }

    /// The mounts that a container of ours has by default.
    fn theirs(&self, root: &Path) -> String {
        let mut line = format!(
            "bwrap --die-with-parent --unshare-user --ro-bind {} / --dev-bind /dev /dev --proc /proc --ro-bind /sys /sys --bind /tmp /tmp \
             --bind /var/tmp /var/tmp --tmpfs /home --bind {home} {home}",
            root.display(),
            home = self.user.home.display()
        );
        for file in ["/etc/passwd", "/etc/group", "/etc/hosts", "/etc/resolv.conf"] {
            let target = fs::canonicalize(file);
            if let (Ok(target), true) = (target, root.join(&file[1..]).exists()) {
                line.push_str(&format!(" --ro-bind {} {file}", target.display()));
            }
        }
        line
    }

    /// A shell of the user with the daemon in its environment.
    fn shell(&self, script: &str) -> Command {
        let mut command = self.user.command("/bin/sh");
        command.env("SCTL_SOCKET", self.daemon.socket()).args(["-c", script]);
        command
    }
}

fn run(command: &mut Command) -> Duration {
    let start = Instant::now();
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    start.elapsed()
}

/// Everything about starts.
pub fn start(report: &mut Report) {
    let stage = Stage::new("start", debian::base());
    one_after_the_other(&stage, report);
    in_flight(&stage, report);
    memory(&stage);
    warm(&stage, report, &[("find /", "find / -xdev >/dev/null 2>&1 || true")]);
    attach(&stage);
    drop(stage);
    let numpy = ("python3 -c 'import numpy'", "python3 -c 'import numpy'");
    warm(&Stage::new("numpy", debian::numpy()), report, &[numpy]);
}

fn one_after_the_other(stage: &Stage, report: &mut Report) {
    let in_a_row =
        |line: &str| format!("i=0; while [ $i -lt {STARTS} ]; do {line} /bin/true || exit 1; i=$((i+1)); done");
    let (ours, theirs) = (in_a_row(&stage.ours()), in_a_row(&stage.theirs(&stage.root)));
    let (mut own, mut other) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        own.push(run(&mut stage.shell(&ours)) / STARTS);
        other.push(run(&mut stage.shell(&theirs)) / STARTS);
    }
    let (own, other) = (median(own), median(other));
    println!("start from the cache {:.2} ms, bwrap with the same mounts {:.2} ms", own * 1e3, other * 1e3);
    report.at_most("exec of a cached image / bwrap with the same mounts", own / other, 2.0);
}

fn in_flight(stage: &Stage, report: &mut Report) {
    let starts = IN_FLIGHT * 10;
    let many = |line: &str| format!("seq {starts} | xargs -P {IN_FLIGHT} -I{{}} {line} /bin/true");
    let (ours, theirs) = (many(&stage.ours()), many(&stage.theirs(&stage.root)));
    let (mut own, mut other) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        own.push(run(&mut stage.shell(&ours)) / starts);
        other.push(run(&mut stage.shell(&theirs)) / starts);
    }
    let (own, other) = (1.0 / median(own), 1.0 / median(other));
    println!("{IN_FLIGHT} in flight: {own:.0} starts/s, bwrap {other:.0} starts/s");
    report.at_least(&format!("starts/s with {IN_FLIGHT} in flight / bwrap's"), own / other, 0.5);
}

/// Kibibytes that programs could still get.
fn available() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("MemAvailable");
    line.trim().trim_end_matches(" kB").parse().expect("kibibytes")
}

fn memory(stage: &Stage) {
    let held = |line: &str| {
        let before = available();
        let children: Vec<Child> = (0..IN_FLIGHT)
            .map(|_| {
                let mut command = stage.shell(&format!("exec {line} /bin/sleep 60"));
                command.stdout(Stdio::null()).spawn().expect("the command starts")
            })
            .collect();
        std::thread::sleep(Duration::from_secs(2));
        let taken = before - available();
        for mut child in children {
            child.kill().expect("end a container");
            child.wait().expect("reap a container");
        }
        taken / i64::from(IN_FLIGHT)
    };
    let (ours, theirs) = (held(&stage.ours()), held(&stage.theirs(&stage.root)));
    println!(
        "memory of a running container: {ours} KiB, of bwrap's {theirs} KiB (of {IN_FLIGHT} each, kernel included)"
    );
}

/// Work in a container whose files have been read before, against the same
/// squashfs mounted directly.
fn warm(stage: &Stage, report: &mut Report, all: &[(&str, &str)]) {
    let image = stage.scratch.join("own/x.sif");
    let (offset, _) = sif::partition(&image);
    let direct = stage.scratch.join("direct");
    fs::create_dir(&direct).expect("make a mount point");
    fs::set_permissions(&direct, fs::Permissions::from_mode(0o755)).expect("open the mount point");
    run(Command::new("mount").args(["-o", &format!("ro,loop,offset={offset}")]).arg(&image).arg(&direct));
    for (name, work) in all {
        let line = |start: &str| {
            format!(
                "{start} /bin/sh -c {}",
                shell_word(&format!("i=0; while [ $i -lt 10 ]; do {work} || exit 1; i=$((i+1)); done"))
            )
        };
        let (ours, theirs) = (line(&stage.ours()), line(&stage.theirs(&direct)));
        let (mut own, mut other) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            own.push(run(&mut stage.shell(&ours)));
            other.push(run(&mut stage.shell(&theirs)));
        }
        report.at_most(&format!("warm {name} / on a direct kernel mount"), median(own) / median(other), 1.1);
    }
    run(Command::new("umount").arg(&direct));
}

fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// One exchange on mount.sock, up to the mount in hand.
fn exchange(socket: &OwnedFd, request: &[u8], buffer: &mut [u8]) -> (OpenReply, Vec<OwnedFd>) {
    scm::send(socket, request, &[]).expect("ask for a mount");
    let received = scm::recv(socket, buffer).expect("get an answer");
    (OpenReply::decode(&buffer[..received.len]).expect("the answer is one"), received.fds)
}

fn attach(stage: &Stage) {
    const CLIENTS: usize = 64;
    const EACH: usize = 50;
    // This process asks as root, who needs a right of its own.
    let mut pull = Command::new(programs().join("sctl"));
    pull.env("SCTL_SOCKET", stage.daemon.socket()).args(["exec", "--no-https", &stage.uri, "/bin/true"]);
    run(&mut pull);
    let socket = stage.daemon.socket().with_file_name("mount.sock");
    let image = ImageRequest { reference: stage.reference.clone(), platform: String::new() };
    let mut request = OpenRequest { what: Some(What::Image(image)), ..OpenRequest::default() };
    request.set_mount(MountWish::Shared);
    let request = request.encode_to_vec();
    for clients in [1, CLIENTS] {
        // The daemon notices the ends of the last ones.
        std::thread::sleep(Duration::from_millis(200));
        let barrier = Barrier::new(clients);
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|_| {
                    scope.spawn(|| {
                        let mut buffer = vec![0; 64 << 10];
                        // One each: as many as a user may have.
                        let socket = scm::connect(&socket).expect("connect to mount.sock");
                        barrier.wait();
                        (0..EACH)
                            .map(|_| {
                                let start = Instant::now();
                                let (reply, fds) = exchange(&socket, &request, &mut buffer);
                                assert!(reply.mounted && fds.len() == 2, "{reply:?}");
                                start.elapsed()
                            })
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
        });
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!(
            "attach with {clients} clients: p50 {:.2} ms, p99 {:.2} ms, worst {:.2} ms",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}
