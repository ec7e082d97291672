//! Finds the programs under test and gives every test a folder of its own.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Folder that holds `sctl` and `sctld`, beside the test's own program.
fn built() -> PathBuf {
    let own = env::current_exe().expect("the test knows its own path");
    let folder = own.parent().expect("a program lies in a folder");
    let folder = if folder.ends_with("deps") { folder.parent().expect("deps lies in a folder") } else { folder };
    assert!(
        folder.join("sctl").exists() && folder.join("sctld").exists(),
        "sctl and sctld are not built: run `cargo build --workspace --bins` with the same profile first"
    );
    folder.to_owned()
}

/// Folders of the programs are named so, with the pid of their process.
const FOLDER: &str = "sctl-programs-";

/// Removes the folders of processes that have ended: nothing runs at the end of
/// a test process that could.
fn sweep() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(FOLDER)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another test process may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Copies of the programs that every user can run, with all their names.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let built = built();
        sweep();
        let folder = env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
        fs::create_dir_all(&folder).expect("make the programs' folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("open the programs' folder");
        for name in ["sctl", "sctld"] {
            // Not by this process: a child of another test could still hold the
            // copy open for writing, and then it cannot be executed.
            let copied = std::process::Command::new("cp").arg(built.join(name)).arg(&folder).status();
            assert!(copied.is_ok_and(|status| status.success()), "cannot copy {name}");
        }
        for name in ["singularity", "apptainer", "run-singularity"] {
            // A name left by an earlier process of the same pid is as good.
            let _ = std::os::unix::fs::symlink("sctl", folder.join(name));
        }
        folder
    })
}

/// A folder that is removed at the end; every user may enter it.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// Makes a folder below the system's temporary folder.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sctl-test-").tempdir().expect("make a scratch folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open the scratch folder");
        Self(folder)
    }

    /// Makes a folder whose whole path is root's alone, as kernel mounts of
    /// what is in it demand.
    pub fn of_root() -> Self {
        let folder = tempfile::Builder::new().prefix("sctl-test-").tempdir_in("/var/lib");
        let folder = folder.expect("make a scratch folder of root's");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open the scratch folder");
        Self(folder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path below it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Says whether the test runs as root; prints a loud line if not.
pub fn have_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root");
    }
    root
}

/// Says whether `program` is there; prints a loud line if not.
pub fn have_program(test: &str, program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED {test}: {program} is not installed");
    }
    found
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output of a program that has to succeed.
///
/// # Panics
/// If it did not, with all that it said.
pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{:?}\n{}{}", output.status, stdout(output), stderr(output));
    stdout(output)
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not hold within `deadline`; `what` names it.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
