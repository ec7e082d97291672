//! A Debian root file system that systemd-nspawn boots: a host of its own with
//! systemd as its first process, and the network of the host.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    debian::state,
    programs::{Scratch, stderr, stdout, wait_until},
};

/// Loop devices that a machine can open: the kernel's numbers are the host's.
const LOOP_DEVICES: u32 = 256;

/// A booted machine. What is changed in it is gone with this value.
pub struct Machine {
    nspawn: Child,
    /// Its first process, as the host numbers it.
    leader: u32,
    log: PathBuf,
    _scratch: Scratch,
}

/// The root file system that machines are booted from, if
/// `tests/install.sh` could make one.
pub fn root() -> Option<PathBuf> {
    let root = state().join("systemd");
    root.join("usr/lib/systemd/systemd").exists().then_some(root)
}

impl Machine {
    /// Boots a machine that finds `shared` as `/srv`, read-only.
    pub fn boot(root: &Path, shared: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("sctl-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let scratch = Scratch::new();
        let log = scratch.join("nspawn.log");
        let file = fs::File::create(&log).expect("make the machine's log");
        let mut command = Command::new("systemd-nspawn");
        command
            .arg(format!("--directory={}", root.display()))
            .arg(format!("--machine={name}"))
            .arg(format!("--bind-ro={}:/srv", shared.display()))
            // The root stays as it is; every machine starts from the same.
            .arg("--volatile=overlay")
            // This host may have no systemd of its own to register with.
            .args(["--boot", "--keep-unit", "--register=no", "--console=pipe", "--link-journal=no"])
            .args(["--resolv-conf=off", "--timezone=off", "--bind=/dev/fuse"])
            // Lists of devices that services may use are programs for the
            // kernel, attached to control groups of the newer kind.
            .arg("--system-call-filter=bpf")
            // Services with a network of their own need their loopback up.
            .arg("--capability=CAP_NET_ADMIN")
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the log"))
            .stderr(file);
        if Path::new("/dev/loop-control").exists() {
            command.arg("--bind=/dev/loop-control");
        }
        // Ctrl-C at the tests' terminal is not for it.
        let nspawn = command.process_group(0).spawn().expect("systemd-nspawn runs (tests/install.sh installs it)");
        let mut machine = Self { nspawn, leader: 0, log, _scratch: scratch };
        wait_until("systemd runs in the machine", Duration::from_secs(20), || {
            if let Some(status) = machine.nspawn.try_wait().expect("ask for nspawn's state") {
                panic!("systemd-nspawn: {status}\n{}", machine.log());
            }
            machine.leader = machine.find_leader().unwrap_or(0);
            machine.leader != 0
        });
        wait_until("the machine has booted", Duration::from_secs(30), || {
            let output = machine.command("systemctl").arg("is-system-running").output().expect("nsenter runs");
            stdout(&output).trim() == "running"
        });
        machine.sh(&format!("for n in $(seq 0 {}); do mknod -m 660 /dev/loop$n b 7 $n; done", LOOP_DEVICES - 1));
        machine
    }

    /// nspawn's child whose program is systemd.
    fn find_leader(&self) -> Option<u32> {
        fs::read_dir("/proc").expect("read /proc").flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let found = field("Name:") == Some("systemd") && field("PPid:") == Some(&self.nspawn.id().to_string());
            found.then_some(pid)
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A program as the machine's root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--target", &self.leader.to_string(), program])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// A program as one of the machine's users, in that user's home.
    pub fn user(&self, name: &str, program: &str) -> Command {
        let mut command = self.command("runuser");
        command.args(["-u", name, "--", "env", "-C"]).arg(format!("/home/{name}"));
        command.arg(format!("HOME=/home/{name}")).arg(program);
        command
    }

    /// What a shell of the machine's root prints.
    ///
    /// # Panics
    /// If the script fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(output.status.success(), "{script}: {:?}\n{}{}", output.status, stdout(&output), stderr(&output));
        stdout(&output)
    }

    /// The same for a script that may fail.
    pub fn try_sh(&self, script: &str) -> Output {
        self.command("sh").args(["-ec", script]).output().expect("nsenter runs")
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show --value -p {name} {unit}")).trim().to_owned()
    }

    /// What the journal holds that fits, a line of text for each entry.
    pub fn journal(&self, matches: &str) -> String {
        self.sh(&format!("journalctl --sync && journalctl -q -o cat {matches}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.leader != 0 {
            let journal = self.try_sh("journalctl -q -o short-monotonic -b --no-hostname | tail -n 80");
            eprintln!("--- journal of the machine ---\n{}", stdout(&journal));
        }
        let _ = self.try_sh("systemctl --no-block poweroff");
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(self.nspawn.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The first process takes the others along.
        if let Some(leader) = Pid::from_raw(self.leader as i32) {
            let _ = kill_process(leader, Signal::KILL);
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}
