//! A host with systemd: the package installed, used, watched, and removed.
//!
//! One machine lives through all of it, in the order of an administrator's
//! year.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use sctl_tests::{
    debian,
    machine::{self, Machine},
    programs::{Scratch, have_root, programs, stderr, stdout, wait_until},
    registry::Registry,
};

const SYSTEM_UNITS: [&str; 4] = ["sctld.service", "sctld.socket", "sctld-jobs.service", "sctld-jobs.socket"];

#[test]
fn privileged_a_host_with_systemd_installs_runs_and_removes_it() {
    let test = "privileged_a_host_with_systemd_installs_runs_and_removes_it";
    if !have_root(test) {
        return;
    }
    let Some(root) = machine::root() else {
        eprintln!("SKIPPED {test}: there is no root file system with systemd: run tests/install.sh");
        return;
    };
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let scratch = Scratch::new();
    package(scratch.path());
    let machine = Machine::boot(&root, scratch.path());
    machine.sh("useradd -m alice; useradd -m bob");
    let host = Host { machine, uri: format!("docker://{}", registry.reference("busybox:1")) };

    let before = host.files();
    host.machine.sh("dpkg -i /srv/*.deb");
    installed(&host);
    hardened(&host);
    activated_by_the_first_command(&host);
    reloaded(&host);
    restarted_under_a_running_container(&host);
    restarted_by_the_watchdog(&host);
    stopped_with_a_job_running(&host);
    upgraded(&host);
    served_by_the_users_own_manager(&host);
    removed(&host, &before);
}

/// Makes the package from the programs under test.
fn package(folder: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/deb/build.sh");
    // They need not become small.
    let output = Command::new("bash")
        .arg(script)
        .args(["--compression".as_ref(), "none".as_ref(), "--binaries".as_ref(), programs().as_os_str()])
        .args(["--output".as_ref(), folder.as_os_str()])
        .output()
        .expect("bash runs");
    assert!(output.status.success(), "{}", stderr(&output));
}

/// The machine, and an image that it can reach.
struct Host {
    machine: Machine,
    uri: String,
}

impl Host {
    fn sctl(&self, user: &str, arguments: &[&str]) -> Output {
        self.machine.user(user, "sctl").args(arguments).output().expect("nsenter runs")
    }

    /// What a program prints in a container of `user`.
    fn exec(&self, user: &str, arguments: &[&str]) -> String {
        self.exec_with(user, &[], arguments)
    }

    fn exec_with(&self, user: &str, options: &[&str], arguments: &[&str]) -> String {
        let all = [&["-v", "exec", "--no-https"], options, &[&*self.uri], arguments].concat();
        let output = self.sctl(user, &all);
        assert!(output.status.success(), "{arguments:?}: {:?}\n{}", output.status, stderr(&output));
        stdout(&output)
    }

    fn daemon(&self) -> String {
        self.machine.property("sctld.service", "MainPID")
    }

    /// Loop devices that are attached to images of the cache.
    fn loop_devices(&self) -> Vec<String> {
        let images = "find /var/cache/sctl -name '*.sif' -exec stat -c '%i %Hd:%Ld' {} +";
        let images = self.machine.sh(images);
        let images: BTreeSet<&str> = images.lines().collect();
        // Names of backing files tell nothing: they are kept from other users.
        let devices = self.machine.sh("losetup -l -n -O NAME,BACK-INO,BACK-MAJ:MIN");
        let is_ours = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.len() == 3 && images.contains(&*fields[1..].join(" "))
        };
        devices.lines().filter(is_ours).map(str::to_owned).collect()
    }

    /// Every file but those that any host writes all the time.
    fn files(&self) -> BTreeSet<String> {
        let found = self.machine.sh(
            "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run/systemd -o \
             -path /run/log -o -path /run/credentials -o -path /srv -o -path /var/log -o -path /var/lib/dpkg -o \
             -path /var/cache/man -o -path /var/lib/systemd -o -path /var/tmp -o -path /run/user \\) -prune \
             -o -print; find /run/sctl /var/lib/systemd/deb-systemd-helper-* 2>/dev/null || true",
        );
        // What user tools keep as a copy of their files, and locks.
        found.lines().filter(|path| !path.ends_with('-') && !path.ends_with(".lock")).map(str::to_owned).collect()
    }
}

fn installed(host: &Host) {
    let machine = &host.machine;
    assert_eq!(machine.property("sctld.socket", "ActiveState"), "active");
    assert_eq!(machine.property("sctld.service", "ActiveState"), "inactive", "nobody has asked for it");
    assert_eq!(machine.sh("systemctl is-enabled sctld.socket"), "enabled\n");
    assert_eq!(machine.sh("stat -c '%a %U' /usr/bin/sctl /usr/bin/sctld"), "755 root\n711 root\n");
    assert_eq!(machine.sh("stat -c '%a %U' /run/sctl/*.sock | sort"), "666 root\n666 root\n");
    assert_eq!(machine.sh("stat -c '%a %U' /var/cache/sctl"), "700 root\n");
    assert_eq!(
        machine.sh("id -nG sctl-mount; id -nG sctl; getent group sctl-admin | cut -d: -f1"),
        "sctl-mount\nsctl\nsctl-admin\n"
    );
    for (name, like) in [("singularity", "3.11.5"), ("apptainer", "1.3.6")] {
        let version = format!("{name} version {like}+sctl{}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(machine.sh(&format!("{name} --version")), version);
    }
    for page in ["1 sctl", "1 singularity", "5 sctl.toml", "5 sctld.toml", "8 sctld"] {
        let warnings = machine.sh(&format!("MANWIDTH=100 man --warnings {page} 2>&1 >/dev/null"));
        assert_eq!(warnings, "", "man {page}");
    }
    // bash fills in what was begun.
    let completed = machine
        .command("bash")
        .args([
            "-c",
            ". /usr/share/bash-completion/completions/apptainer; \
         COMP_WORDS=(apptainer ex) COMP_CWORD=1; _apptainer apptainer ex apptainer; echo \"${COMPREPLY[*]}\"",
        ])
        .output();
    assert_eq!(stdout(&completed.expect("nsenter runs")), "exec\n");
    let output = machine.try_sh("sctld --check && sctl --config /etc/sctl/sctl.toml version");
    assert!(output.status.success(), "the configuration that comes along: {}", stderr(&output));
}

fn hardened(host: &Host) {
    let machine = &host.machine;
    for unit in SYSTEM_UNITS {
        assert_eq!(machine.sh(&format!("systemd-analyze verify {unit} 2>&1")), "", "{unit}");
    }
    for unit in ["sctld.service", "sctld.socket"] {
        let said = machine
            .sh(&format!("XDG_RUNTIME_DIR=/run systemd-analyze --user verify /usr/lib/systemd/user/{unit} 2>&1"));
        assert_eq!(said, "", "{unit} of users");
    }
    let system = "/usr/lib/systemd/system";
    for (arguments, limit) in [
        ("sctld.service", 2.5),
        ("sctld-jobs.service", 1.5),
        (&*format!("--offline=yes {system}/sctld.service"), 2.5),
        ("--offline=yes /usr/lib/systemd/user/sctld.service", 2.5),
    ] {
        let told = machine.sh(&format!("systemd-analyze security --no-pager {arguments}"));
        let line =
            told.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{told}"));
        let level: f32 = line.split_whitespace().find_map(|word| word.parse().ok()).expect("a number");
        println!("systemd-analyze security {arguments}: {level}");
        assert!(level <= limit, "{line}\n{told}");
    }
}

fn activated_by_the_first_command(host: &Host) {
    let machine = &host.machine;
    assert_eq!(host.exec("alice", &["echo", "hello"]), "hello\n");
    assert_eq!(host.exec("bob", &["id", "-u"]), machine.sh("id -u bob"));
    let service = ["ActiveState", "SubState"].map(|name| machine.property("sctld.service", name));
    assert_eq!(service, ["active", "running"]);
    assert!(machine.property("sctld.service", "StatusText").starts_with("ready"));

    // The kernel's mount, wherever this machine can have one.
    let mounts = host.exec("alice", &["cat", "/proc/self/mountinfo"]);
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_else(|| panic!("{mounts}"));
    if Path::new("/dev/loop-control").exists() {
        assert!(
            root.contains(" - squashfs "),
            "{root}\n{}",
            stderr(&host.sctl("alice", &["-v", "exec", &host.uri, "true"]))
        );
        assert!(
            ["ro", "nosuid", "nodev"].iter().all(|flag| root.split(' ').nth(5).unwrap_or_default().contains(flag)),
            "{root}"
        );
        assert_eq!(host.loop_devices().len(), 1, "one for both users");
        // One of its own, for what it writes.
        let written = host.exec_with(
            "alice",
            &["--writable-tmpfs"],
            &["sh", "-c", "echo new >/etc/new; cat /etc/new /proc/self/mountinfo"],
        );
        assert!(written.starts_with("new\n") && written.contains(" - overlay "), "{written}");
        assert_eq!(host.loop_devices().len(), 2, "and alice's own");
    } else {
        eprintln!("no loop devices here: the machine tests FUSE only");
        assert!(root.contains(" - fuse"), "{root}");
    }

    // What the units promise, as the kernel sees it. Capabilities: SETGID,
    // SETUID, SYS_ADMIN.
    let daemon = host.daemon();
    let status = machine.sh(&format!("cat /proc/{daemon}/status"));
    for (name, value) in
        [("CapBnd", "00000000002000c0"), ("CapPrm", "00000000002000c0"), ("NoNewPrivs", "1"), ("Seccomp", "2")]
    {
        assert!(status.lines().any(|line| line == format!("{name}:\t{value}")), "{name}: {status}");
    }
    let own =
        |what: &str| machine.sh(&format!("readlink /proc/{daemon}/ns/{what} /proc/1/ns/{what} | sort -u | wc -l"));
    assert_eq!(["net", "mnt"].map(own), ["2\n", "2\n"], "a network and mounts of its own");
    let launcher = machine.property("sctld-jobs.service", "MainPID");
    let status = machine.sh(&format!("cat /proc/{launcher}/status"));
    for (name, value) in [("CapBnd", "0000000000000000"), ("CapPrm", "0000000000000000"), ("NoNewPrivs", "1")] {
        assert!(status.lines().any(|line| line == format!("{name}:\t{value}")), "{name}: {status}");
    }
    assert_eq!(
        machine.sh(&format!("stat -c %U /proc/{launcher}/task; ps -o user= -p {launcher}")).lines().last(),
        Some("sctl")
    );
    let inside = format!("nsenter -m -t {launcher} ls");
    assert!(machine.try_sh(&format!("{inside} /usr/bin/sctl")).status.success());
    for hidden in ["/run/sctl/sctl.sock", "/var/cache/sctl/oci", "/etc/sctl/sctld.toml"] {
        assert!(!machine.try_sh(&format!("{inside} {hidden}")).status.success(), "jobs see {hidden}");
    }
    // Of all devices the daemon has loop devices, and jobs have none.
    for (unit, node, opens) in [
        ("sctld.service", "/dev/null", true),
        ("sctld.service", "/dev/fuse", false),
        ("sctld-jobs.service", "/dev/null", true),
        ("sctld-jobs.service", "/dev/fuse", false),
        ("user.slice", "/dev/fuse", true),
    ] {
        let group = machine.property(unit, "ControlGroup");
        let open = format!("echo $$ >/sys/fs/cgroup{group}/cgroup.procs && exec 3<>{node}");
        assert_eq!(machine.try_sh(&open).status.success(), opens, "{unit} {node}");
    }
    // Events are found by their fields.
    let uid = machine.sh("id -u alice");
    assert!(
        machine.journal(&format!("-u sctld SCTL_UID={}", uid.trim())).contains("granted"),
        "no audit event of alice"
    );
    assert!(machine.journal("-t sctld TARGET=sctl_audit SCTL_EVENT=grant").lines().count() >= 2);
    // Neither user can ask for jobs.
    let output = machine
        .user("alice", "perl")
        .args([
            "-MSocket",
            "-e",
            "socket(S, AF_UNIX, SOCK_SEQPACKET, 0); \
         connect(S, sockaddr_un('/run/sctl/jobs.sock')) or die \"$!\\n\"",
        ])
        .output()
        .expect("nsenter runs");
    assert_eq!(stderr(&output), "Permission denied\n");
}

fn reloaded(host: &Host) {
    let machine = &host.machine;
    let before = host.daemon();
    machine.sh("echo 'lease_seconds = 77' >>/etc/sctl/sctld.toml; systemctl reload sctld");
    wait_until("the reload is logged", Duration::from_secs(5), || {
        machine.journal("-u sctld SCTL_CHANGED=lease_seconds").contains("configuration reloaded")
    });
    assert_eq!(machine.property("sctld.service", "ActiveState"), "active");
    machine.sh("echo 'speed = 1' >>/etc/sctl/sctld.toml");
    assert!(!machine.try_sh("systemctl reload sctld").status.success(), "a file that cannot be used");
    let told = machine.journal("-u sctld -n 20");
    assert!(told.contains("sctld.toml, line ") && told.contains("unknown field `speed`"), "{told}");
    // The signal alone is as harmless.
    machine.sh("systemctl kill -s HUP --kill-who=main sctld");
    wait_until("the log says why", Duration::from_secs(5), || {
        machine.journal("-u sctld").contains("the old one stays in force")
    });
    assert!(machine.property("sctld.service", "StatusText").contains("unknown field `speed`"));
    assert_eq!(host.exec("alice", &["echo", "still"]), "still\n");
    machine.sh("sed -i '/^speed/d' /etc/sctl/sctld.toml; systemctl reload sctld");
    assert_eq!(host.daemon(), before, "it has never been restarted");
}

fn restarted_under_a_running_container(host: &Host) {
    let machine = &host.machine;
    let mut container = machine.user("bob", "sctl");
    container.args(["exec", "--no-https", &host.uri, "sh", "-c", "echo up; cat; cat /etc/passwd"]);
    let mut container = container.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nsenter runs");
    let mut out = std::io::BufReader::new(container.stdout.take().expect("its output is a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).expect("the container says something");
    assert_eq!(line, "up\n");
    let before = host.daemon();
    // Whoever calls meanwhile waits.
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            for n in 0..20 {
                assert_eq!(host.exec("alice", &["echo", &n.to_string()]), format!("{n}\n"));
            }
        });
        for _ in 0..3 {
            machine.sh("systemctl restart sctld");
        }
        caller.join().expect("every call was answered");
    });
    assert_ne!(host.daemon(), before);
    drop(container.stdin.take());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).expect("read the container's output");
    assert!(rest.contains("root:x:0:0"), "the image of a running container went with the daemon: {rest:?}");
    assert!(container.wait().expect("wait for the container").success());
}

fn restarted_by_the_watchdog(host: &Host) {
    let machine = &host.machine;
    machine.sh("mkdir -p /run/systemd/system/sctld.service.d; printf '[Service]\\nWatchdogSec=5s\\n' \
         >/run/systemd/system/sctld.service.d/short.conf; systemctl daemon-reload; systemctl restart sctld");
    // Long enough to die of silence if it did not ping.
    std::thread::sleep(Duration::from_secs(6));
    let stuck = host.daemon();
    assert_eq!(machine.property("sctld.service", "NRestarts"), "0");
    machine.sh(&format!("kill -STOP {stuck}"));
    wait_until("systemd starts another one", Duration::from_secs(20), || {
        let now = host.daemon();
        now != stuck && now != "0" && machine.property("sctld.service", "ActiveState") == "active"
    });
    assert_eq!(machine.property("sctld.service", "NRestarts"), "1");
    assert!(machine.journal("-u sctld").contains("Watchdog timeout"));
    assert!(!machine.try_sh(&format!("kill -0 {stuck}")).status.success(), "the stuck one is left");
    assert_eq!(host.exec("alice", &["echo", "again"]), "again\n");
    machine.sh("rm -r /run/systemd/system/sctld.service.d; systemctl daemon-reload; systemctl restart sctld");
}

fn stopped_with_a_job_running(host: &Host) {
    let machine = &host.machine;
    // A registry that never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
    let image = format!("docker://{}/image", silent.local_addr().expect("it is bound"));
    machine.sh("echo 'shutdown_seconds = 1' >>/etc/sctl/sctld.toml; systemctl restart sctld");
    let mut pull = machine.user("alice", "sctl");
    pull.args(["pull", "--no-https", &image]).stderr(Stdio::piped());
    let pull = pull.spawn().expect("nsenter runs");
    let jobs = || machine.try_sh("pgrep -u sctl -f '^sctld job'");
    wait_until("the job runs", Duration::from_secs(10), || jobs().status.success());
    machine.sh("systemctl stop sctld.service 2>&1");
    assert!(!jobs().status.success(), "a job is left: {}", stdout(&jobs()));
    assert_eq!(machine.property("sctld.service", "Result"), "success");
    let output = pull.wait_with_output().expect("wait for the pull");
    assert!(!output.status.success() && stderr(&output).contains("the daemon was stopped"), "{}", stderr(&output));
    assert_eq!(machine.sh("find /var/cache/sctl/tmp -type f"), "", "a half-made file is left");
    // The sockets are still there, and start it again.
    assert_eq!(host.exec("bob", &["echo", "back"]), "back\n");
}

fn upgraded(host: &Host) {
    let machine = &host.machine;
    let before = host.daemon();
    machine.sh("dpkg -i /srv/*.deb");
    assert_ne!(host.daemon(), before, "the new version has taken over");
    assert!(machine.sh("cat /etc/sctl/sctld.toml").contains("lease_seconds = 77"), "what was configured stays");
    assert_eq!(host.exec("alice", &["echo", "newer"]), "newer\n");
}

fn served_by_the_users_own_manager(host: &Host) {
    let machine = &host.machine;
    let uid = machine.sh("id -u bob").trim().to_owned();
    machine.sh(&format!("loginctl enable-linger bob; systemctl start user@{uid}"));
    let runtime = format!("XDG_RUNTIME_DIR=/run/user/{uid}");
    let as_bob = |program: &str, arguments: &[&str]| {
        let mut command = machine.user("bob", "env");
        command.args([&runtime, &format!("SCTL_SOCKET=/run/user/{uid}/sctl/sctl.sock"), program]).args(arguments);
        let output = command.output().expect("nsenter runs");
        let journal = || machine.journal(&format!("_UID={uid} -n 30"));
        assert!(output.status.success(), "{program} {arguments:?}: {}\n{}", stderr(&output), journal());
        stdout(&output)
    };
    as_bob("systemctl", &["--user", "start", "sctld.socket"]);
    assert_eq!(as_bob("sctl", &["exec", "--no-https", &host.uri, "echo", "mine"]), "mine\n");
    let told = as_bob("systemctl", &["--user", "show", "-p", "ActiveState", "-p", "MainPID", "sctld.service"]);
    assert!(told.contains("ActiveState=active"), "{told}");
    assert!(machine.sh("ls /home/bob/.cache/sctl").contains("sif"), "the cache is bob's own");
    as_bob("systemctl", &["--user", "reload", "sctld.service"]);
    as_bob("systemctl", &["--user", "stop", "sctld.socket", "sctld.service"]);
    machine.sh(&format!(
        "loginctl disable-linger bob; systemctl stop user@{uid}; rm -r /home/bob/.cache /home/bob/.config || true"
    ));
}

fn removed(host: &Host, before: &BTreeSet<String>) {
    let machine = &host.machine;
    let left = |after: &BTreeSet<String>| -> Vec<String> {
        after.difference(before).filter(|path| !path.starts_with("/var/cache/sctl/")).cloned().collect()
    };
    machine.sh("dpkg -r sctl");
    // Configuration stays until the purge, and that the socket was enabled is
    // part of it.
    let is_kept = |path: &String| {
        ["/etc/sctl", "/var/cache/sctl"].iter().any(|kept| path.starts_with(kept))
            || ["deb-systemd-helper", "sockets.target.wants"].iter().any(|kept| path.contains(kept))
    };
    let after = left(&host.files());
    assert!(after.iter().all(is_kept), "{after:?}");
    assert!(!machine.try_sh("pgrep -x sctld").status.success(), "a process is left");
    assert_eq!(host.loop_devices(), [""; 0], "a loop device is left");
    let told = machine.sh("dpkg -P sctl 2>&1");
    assert!(told.contains("rm -r /var/cache/sctl"), "{told}");
    assert_eq!(left(&host.files()), ["/var/cache/sctl"], "nothing but the cache");
    assert_eq!(stdout(&machine.try_sh("getent passwd sctl sctl-mount || getent group sctl sctl-mount sctl-admin")), "");
    assert_eq!(before.difference(&host.files()).collect::<Vec<_>>(), [""; 0], "it took something of others along");
    let images = machine.sh("find /var/cache/sctl -name '*.sif' | wc -l");
    assert_ne!(images.trim(), "0");
    assert_eq!(machine.sh("systemctl --failed --no-legend"), "");
}
