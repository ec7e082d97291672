//! Runs `sctld` and `sctl` the way hosts and users run them.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::programs::{Scratch, programs, wait_until};

/// A user of this host that the tests may become.
#[derive(Clone, Debug)]
pub struct User {
    /// Name in /etc/passwd.
    pub name: &'static str,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
}

impl User {
    /// Looks `name` up in /etc/passwd.
    ///
    /// # Panics
    /// If there is no such user: `tests/install.sh` makes them.
    pub fn named(name: &'static str) -> Self {
        let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        let fields: Vec<&str> = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields[0] == name)
            .unwrap_or_else(|| panic!("no user {name}: run tests/install.sh"));
        let number = |text: &str| text.parse().expect("ids are numbers");
        Self { name, uid: number(fields[2]), gid: number(fields[3]), home: PathBuf::from(fields[5]) }
    }

    /// The first test user.
    pub fn a() -> Self {
        Self::named("sctl-test-a")
    }

    /// The second test user.
    pub fn b() -> Self {
        Self::named("sctl-test-b")
    }

    /// A member of the group of administrators.
    pub fn admin() -> Self {
        Self::named("sctl-test-admin")
    }

    /// A command that runs as this user, with a login's groups and environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // Not by the standard library, which would fork and so copy the page
        // tables of a benchmark that holds gigabytes, on the command's time.
        let mut command = Command::new("/usr/bin/setpriv");
        command
            .args(["--reuid", &self.uid.to_string(), "--regid", &self.gid.to_string(), "--init-groups", "--"])
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.home)
            .env("USER", self.name)
            .env("LANG", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// A folder that belongs to this user.
    pub fn folder(&self, scratch: &Scratch, name: &str) -> PathBuf {
        let path = scratch.join(name);
        fs::create_dir_all(&path).expect("make a user's folder");
        std::os::unix::fs::chown(&path, Some(self.uid), Some(self.gid)).expect("give the folder away");
        path
    }
}

/// A running daemon in system mode with a cache of its own.
pub struct Daemon {
    child: Child,
    folder: Scratch,
    log: PathBuf,
}

impl Daemon {
    /// Starts `sctld` as root with the given lines of configuration.
    pub fn system(config: &str) -> Self {
        Self::system_in(Scratch::new(), config, &[])
    }

    /// Starts `sctld` as root where it can hand out kernel mounts; `mount` are
    /// further lines of the section `[mount]`, which ends the configuration.
    pub fn with_mounts(config: &str, mount: &str) -> Self {
        Self::with_mounts_in(Scratch::of_root(), config, mount, &[])
    }

    /// The same in `folder`, made by [`Scratch::of_root`]; it may hold a cache
    /// already.
    pub fn with_mounts_in(folder: Scratch, config: &str, mount: &str, env: &[(&str, &str)]) -> Self {
        let slots = folder.join("slots");
        let config = format!("{config}\n[mount]\nslots_dir = {:?}\n{mount}\n", slots.display().to_string());
        Self::system_in(folder, &config, env)
    }

    /// Starts `sctld` as root in `folder`, which may hold a cache already.
    pub fn system_in(folder: Scratch, config: &str, env: &[(&str, &str)]) -> Self {
        Self::try_system_in(folder, config, env).unwrap_or_else(|(_, log)| panic!("sctld ended at its start\n{log}"))
    }

    /// The same; if the daemon ends before it is ready, its folder and log
    /// come back.
    ///
    /// # Errors
    /// The folder and the log of a daemon that ended.
    pub fn try_system_in(folder: Scratch, config: &str, env: &[(&str, &str)]) -> Result<Self, (Scratch, String)> {
        fs::write(folder.join("sctld.toml"), config).expect("write the configuration");
        let log = folder.join("sctld.log");
        let child = spawn(&folder, &log, env);
        let mut daemon = Self { child, folder, log };
        if daemon.becomes_ready() {
            return Ok(daemon);
        }
        let log = daemon.log();
        Err((std::mem::take(&mut daemon.folder), log))
    }

    /// Waits until it answers; false if it ends instead.
    fn becomes_ready(&mut self) -> bool {
        let socket = self.socket();
        let mut died = None;
        wait_until("the daemon answers", Duration::from_secs(20), || {
            died = self.child.try_wait().expect("ask for the daemon's state");
            died.is_some() || (UnixStream::connect(&socket).is_ok() && self.folder.join("mount.sock").exists())
        });
        died.is_none()
    }

    /// Files that stay in its cache's temporary folder; what it is writing at
    /// this moment is given two seconds to go.
    pub fn leftovers(&self) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let entries = fs::read_dir(self.cache().join("tmp")).expect("read tmp").flatten();
            let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            if names.is_empty() || Instant::now() > deadline {
                return names;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("sctl.sock")
    }

    /// Its cache.
    pub fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without warning, as a crash would; the cache stays.
    pub fn kill(mut self) -> Scratch {
        self.child.kill().expect("kill the daemon");
        self.child.wait().expect("reap the daemon");
        std::mem::take(&mut self.folder)
    }

    /// Asks it to end and waits; the cache stays.
    pub fn stop(mut self) -> Scratch {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)
            .expect("signal the daemon");
        let mut status = None;
        wait_until("the daemon ends", Duration::from_secs(20), || {
            status = self.child.try_wait().expect("ask for the daemon's state");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "sctld: {status:?}\n{}", self.log());
        std::mem::take(&mut self.folder)
    }

    /// Waits until it has ended by itself.
    pub fn wait_ended(&mut self, deadline: Duration) -> std::process::ExitStatus {
        let mut status = None;
        wait_until("the daemon ends by itself", deadline, || {
            status = self.child.try_wait().expect("ask for the daemon's state");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// `sctl` as `user`, talking to this daemon.
    pub fn sctl(&self, user: &User) -> Command {
        let mut command = user.command(programs().join("sctl"));
        command.env("SCTL_SOCKET", self.socket());
        command
    }

    /// `sctl pull` as `user` in `folder` from a registry on loopback, with
    /// further options and operands.
    pub fn pulling(&self, user: &User, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = self.sctl(user);
        command.current_dir(folder).args(["pull", "--no-https"]).args(arguments);
        command
    }

    /// What such a pull says when it has ended.
    pub fn pull(&self, user: &User, folder: &Path, arguments: &[&str]) -> Output {
        self.pulling(user, folder, arguments).output().expect("run sctl")
    }
}

fn spawn(folder: &Scratch, log: &Path, env: &[(&str, &str)]) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("open the daemon's log");
    let mut command = Command::new(programs().join("sctld"));
    command
        .arg("--config")
        .arg(folder.join("sctld.toml"))
        .arg("--socket")
        .arg(folder.join("sctl.sock"))
        .arg("--mount-socket")
        .arg(folder.join("mount.sock"))
        .arg("--cache-dir")
        .arg(folder.join("cache"))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("RUST_BACKTRACE", "1")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log);
    command.spawn().expect("start sctld")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of sctld ---\n{}", self.log());
        }
    }
}

/// An environment for a user daemon that the client starts by itself: a home
/// and a runtime folder that belong to `user` and end with this value.
pub struct UserHome {
    /// Who it belongs to.
    pub user: User,
    folder: Scratch,
}

impl UserHome {
    /// Makes the folders.
    pub fn new(user: User) -> Self {
        let folder = Scratch::new();
        for name in ["home", "run"] {
            let path = user.folder(&folder, name);
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("close a user's folder");
        }
        Self { user, folder }
    }

    /// Home directory.
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// `XDG_RUNTIME_DIR`
    pub fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// `sctl` as the user, with no daemon named.
    pub fn sctl(&self) -> Command {
        let mut command = self.user.command(programs().join("sctl"));
        command.env("HOME", self.home()).env("XDG_RUNTIME_DIR", self.run()).current_dir(self.home());
        command
    }

    /// Pids of this user's daemons.
    pub fn daemons(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(command_line) = fs::read(entry.path().join("cmdline")) else { continue };
            let text = String::from_utf8_lossy(&command_line).into_owned();
            let run = self.run();
            if text.contains("sctld\0--user") && text.contains(run.to_str().expect("paths of tests are text")) {
                pids.push(pid);
            }
        }
        pids
    }

    /// Ends this user's daemons.
    pub fn stop_daemons(&self) {
        for pid in self.daemons() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // It may end by itself between the look and the signal.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        wait_until("the user's daemons end", Duration::from_secs(20), || self.daemons().is_empty());
    }
}

impl Drop for UserHome {
    fn drop(&mut self) {
        self.stop_daemons();
    }
}
