//! A place to mount images at, and images.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Read as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use sctl_common::{Digest, Platform};
use sctl_engine::{
    Caller, JobUser,
    cache::{Grant, Grants, ImageFile, ImageKey, ImageMeta, Partition},
    mount::{HelperUser, MountOptions, Mounts, Slots, Unavailable},
};
use sctl_sys::{
    loopdev,
    spawn::{self, Identity, Powers},
};

/// Where the partition lies in the files made here.
pub const OFFSET: u64 = 8192;

/// Says whether tests with mounts can run, and if not, why.
pub fn can_mount() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        Some("root, who alone mounts")
    } else if JobUser::lookup("sctl-mount").is_err() {
        Some("the user sctl-mount (tests/install.sh)")
    } else if loopdev::LoopControl::open().is_err() {
        Some("loop devices")
    } else if Command::new("mksquashfs").arg("-version").output().is_err() {
        Some("mksquashfs")
    } else {
        None
    };
    if let Some(missing) = missing {
        eprintln!("SKIPPED: needs {missing}");
    }
    missing.is_none()
}

/// A user of the tests.
pub fn user(name: &str) -> Caller {
    let user = JobUser::lookup(name).unwrap();
    Caller { uid: user.uid, gid: user.gid, account: user.uid, admin: false }
}

/// A folder for a cache, and mounts from it. Lives in a mount namespace of its
/// test's thread.
pub struct World {
    pub mounts: Option<Mounts>,
    path: PathBuf,
    /// Removes the folder, if it is this one's.
    _dir: Option<tempfile::TempDir>,
}

/// The options of a daemon without configuration, but for a shorter patience.
pub fn options() -> MountOptions {
    let helper = JobUser::lookup("sctl-mount").unwrap();
    MountOptions {
        share: true,
        idmapped: true,
        idle: Duration::from_secs(60),
        max_per_user: 64,
        helper: HelperUser { uid: helper.uid, gid: helper.gid },
        program: env!("CARGO_BIN_EXE_sctld").into(),
    }
}

impl World {
    pub fn new(options: MountOptions) -> Self {
        let dir = tempfile::tempdir_in("/var/lib").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let mut world = Self { mounts: None, path: dir.path().to_owned(), _dir: Some(dir) };
        world.start(options, 16).unwrap();
        world
    }

    /// One whose folder another process has made.
    pub fn of(path: &Path) -> Self {
        Self { mounts: None, path: path.to_owned(), _dir: None }
    }

    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// Starts as another daemon would that serves the same cache.
    pub fn start(&mut self, options: MountOptions, slots: u32) -> Result<(), Unavailable> {
        self.mounts = None;
        let slots = Slots::prepare(&self.dir().join("slots"), slots, options.helper.gid).unwrap();
        self.mounts = Some(Mounts::start(slots, options, self.dir(), File::open(self.dir()).unwrap())?);
        Ok(())
    }

    pub fn mounts(&self) -> &Mounts {
        self.mounts.as_ref().unwrap()
    }

    /// An image whose tree `fill` makes.
    pub fn image(&self, name: &str, fill: impl FnOnce(&Path)) -> Image {
        let root = self.dir().join(format!("{name}.root"));
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.join("hello"), format!("hello from {name}\n")).unwrap();
        fs::write(root.join("of-test-a"), "mine?\n").unwrap();
        let a = user("sctl-test-a");
        std::os::unix::fs::chown(root.join("of-test-a"), Some(a.uid), Some(a.gid)).unwrap();
        fill(&root);
        let squashfs = self.dir().join(format!("{name}.squashfs"));
        let made = Command::new("mksquashfs").args([&root, &squashfs]).args(["-noappend", "-quiet"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut bytes = fs::read(&squashfs).unwrap();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let path = self.dir().join(format!("{name}.sif"));
        let file = File::create(&path).unwrap();
        file.write_all_at(&bytes, OFFSET).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        let (mut ids, mut special_files) = (std::collections::BTreeSet::new(), false);
        for entry in fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().metadata().unwrap()) {
            ids.extend([entry.uid(), entry.gid()]);
            special_files |= entry.file_type().is_fifo() || entry.file_type().is_socket();
        }
        fs::remove_dir_all(&root).unwrap();
        let manifest = Digest::of(name.as_bytes());
        let meta = ImageMeta {
            key: ImageKey::new("docker://test/image", &manifest, "p"),
            origin: "docker://test/image".to_owned(),
            references: vec![format!("test/image:{name}")],
            manifest,
            manifest_media_type: String::new(),
            manifest_size_bytes: 0,
            config: manifest,
            platform: Platform::host(),
            profile_id: "p".to_owned(),
            partition: Some(Partition { offset: OFFSET, len: bytes.len() as u64 }),
            special_files,
            ids: Some(ids.into_iter().collect()),
            layers: Vec::new(),
        };
        let stat = file.metadata().unwrap();
        Image { path, meta, inode: (stat.dev(), stat.ino()) }
    }
}

/// A file that could be in a cache.
pub struct Image {
    pub path: PathBuf,
    pub meta: ImageMeta,
    inode: (u64, u64),
}

impl Image {
    /// Notes what a process needs to know for [`Image::read`].
    pub fn write(&self, dir: &Path) {
        let text = serde_json::to_vec(&self.meta).unwrap();
        fs::write(dir.join(self.path.with_extension("json").file_name().unwrap()), text).unwrap();
    }

    /// The image of this name that another process has made.
    pub fn read(dir: &Path, name: &str) -> Self {
        let path = dir.join(format!("{name}.sif"));
        let meta = serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
        let stat = fs::metadata(&path).unwrap();
        Self { path, meta, inode: (stat.dev(), stat.ino()) }
    }

    pub fn open(&self) -> ImageFile {
        self.open_at(&self.path)
    }

    /// What is at `path`, as if it were this image.
    pub fn open_at(&self, path: &Path) -> ImageFile {
        let file = File::open(path).unwrap();
        let size_bytes = file.metadata().unwrap().len();
        ImageFile { file, size_bytes, meta: self.meta.clone(), grants: Grants::of(Grant::Public) }
    }

    /// Waits until no device is bound to it: other tests look at all devices
    /// of the host, and keep each for that moment.
    pub fn wait_freed(&self) {
        wait_until("the loop device is freed", || self.loop_devices().is_empty());
    }

    /// Loop devices that are bound to this very file.
    pub fn loop_devices(&self) -> Vec<u32> {
        let mut numbers = loopdev::bound_without_name().unwrap();
        numbers.retain(|&number| {
            let status = loopdev::LoopDevice::open(number).and_then(|device| device.status());
            status.is_ok_and(|status| status.is_some_and(|s| (s.device, s.inode) == self.inode))
        });
        numbers
    }
}

/// A program of `examples/`, where every user can run it: the folder that it
/// was built in may be closed to them.
pub fn example(name: &str) -> PathBuf {
    static OPEN: OnceLock<tempfile::TempDir> = OnceLock::new();
    static COPYING: Mutex<()> = Mutex::new(());
    let open = OPEN.get_or_init(|| {
        let open = tempfile::tempdir().unwrap();
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
        open
    });
    let copy = open.path().join(name);
    let _alone = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
    if !copy.exists() {
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        let path = path.with_file_name("examples").join(name);
        assert!(path.exists(), "{name} is not built: cargo build -p sctld --examples");
        install(&path, &copy);
    }
    copy
}

/// Copies a program. Not by this process: a child of another test could still
/// hold the copy open for writing, and then it cannot be executed.
pub fn install(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").args([from, to]).status().unwrap().success());
}

/// Lets `caller` try everything on a mount, and answers what came of each try.
pub fn abuse(mount: &OwnedFd, caller: Caller) -> BTreeMap<String, String> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let program = example("abuse_mount");
    let args = [OsStr::new("abuse_mount")];
    let mut process = spawn::spawn(&spawn::Command {
        program: program.as_os_str(),
        args: &args,
        env: &[],
        fds: &[mount.as_fd()],
        stderr: Some(writer.as_fd()),
        identity: Some(Identity { uid: caller.uid, gid: caller.gid }),
        powers: Powers::None,
    })
    .unwrap();
    drop(writer);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(process.wait().unwrap().is_success(), "{said}");
    results(&said)
}

/// The same for a process that programs may give powers, as a login's may.
pub fn abuse_from_a_login(mount: &OwnedFd, caller: Caller) -> BTreeMap<String, String> {
    let output = Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" 3<&0 </dev/null"])
        .arg(example("abuse_mount"))
        .stdin(mount.try_clone().unwrap())
        .uid(caller.uid)
        .gid(caller.gid)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    results(&said)
}

fn results(said: &str) -> BTreeMap<String, String> {
    said.lines()
        .map(|line| {
            let (what, result) = line.split_once(": ").unwrap_or_else(|| panic!("{said}"));
            (what.to_owned(), result.to_owned())
        })
        .collect()
}

/// A script that starts the real helper with a failpoint.
pub fn helper_that_dies_at(dir: &Path, place: &str) -> OsString {
    let (text, path) = (dir.join(format!("text-{place}")), dir.join(format!("helper-{place}")));
    let sctld = env!("CARGO_BIN_EXE_sctld");
    fs::write(&text, format!("#!/bin/sh\nSCTL_FAILPOINT={place} exec {sctld} \"$@\"\n")).unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
    install(&text, &path);
    path.into()
}

/// Waits for a condition, up to ten seconds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
