//! What users, false helpers and images may not do.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, RenameFlags},
    process::{Gid, Uid},
};
use sctl_engine::{
    Caller, MountWish,
    cache::{Cache, CacheError, CacheMode, CacheOptions},
    mount::{MountOptions, Mounts, NoMount, Slots, Unavailable},
};
use sctl_sys::mount::{self, MountAttributes};

use super::support::{Image, OFFSET, World, abuse, abuse_from_a_login, can_mount, example, install, options, user};

const EPERM: &str = "errno 1";
const EACCES: &str = "errno 13";
const EROFS: &str = "errno 30";

fn nothing(_: &Path) {}

/// An image with a device node: the converter leaves them out, this one did not.
fn image_with_device(world: &World, name: &str) -> Image {
    world.image(name, |root| {
        let (mode, device) = (rustix::fs::Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3));
        let folder = fs::File::open(root).unwrap();
        rustix::fs::mknodat(&folder, "null", rustix::fs::FileType::CharacterDevice, mode, device).unwrap();
        fs::set_permissions(root.join("null"), fs::Permissions::from_mode(0o666)).unwrap();
    })
}

/// What comes of everything that a receiver of a shared mount of such an image
/// tries.
fn nothing_but_reading(name: &str) -> BTreeMap<String, String> {
    let read = format!("hello from {name}");
    let mut expected = BTreeMap::from(
        [
            ("attach it in a second namespace", "errno 22"),
            ("remount without read-only", EPERM),
            ("remount without nosuid", EPERM),
            ("remount without nodev", EPERM),
            ("reconfigure the superblock", EPERM),
            ("bind, remount without read-only", EPERM),
            ("nested, remount without read-only", EPERM),
            ("nested, unmount what was mounted above", "errno 22"),
            ("read a file", &read),
            ("who owns image root's file", "65534"),
            ("who owns the file with this user's id", "65534"),
            ("create a file", EROFS),
            ("write a file", EROFS),
            ("lease hello", EACCES),
            ("lease of-test-a", EACCES),
            ("unlink a file", EROFS),
            ("open a device", EACCES),
            ("give it ids of one's own", EPERM),
            ("what is above it", "this user's own folder"),
        ]
        .map(|(what, result)| (what.to_owned(), result.to_owned())),
    );
    for when in ["detached", "attached", "a clone of it", "nested"] {
        for flag in ["read-only", "nosuid", "nodev"] {
            expected.insert(format!("{when}, clear {flag}"), EPERM.to_owned());
        }
    }
    expected
}

#[test]
fn privileged_what_restricts_a_mount_stays_whatever_its_receiver_tries() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = image_with_device(&world, "flags");
    for name in ["sctl-test-a", "sctl-test-b"] {
        let attached = world.mounts().attach(user(name), &image.open(), MountWish::Shared).unwrap();
        assert!(attached.shared);
        assert_eq!(abuse(&attached.mount, user(name)), nothing_but_reading("flags"), "{name}");
    }
}

#[test]
fn privileged_a_mount_outlives_its_right_restricted_as_ever_and_is_attached_once() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    let image = image_with_device(&world, "passed");
    let attached = world.mounts().attach(user("sctl-test-a"), &image.open(), MountWish::Shared).unwrap();
    // Nothing is left of what it came from, but for the device that it holds.
    world.mounts().unmount(&image.meta.key);
    fs::remove_file(&image.path).unwrap();
    world.mounts = None;
    // Not even root takes from it what restricts it.
    for flag in [MountAttributes::READ_ONLY, MountAttributes::NO_SUID, MountAttributes::NO_DEV] {
        let error = mount::relax(&attached.mount, flag).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{flag:?}");
    }
    // Whoever it was passed to can do with it what its receiver could.
    assert_eq!(abuse(&attached.mount, user("sctl-test-b")), nothing_but_reading("passed"));
    // And nobody attaches it again, root included.
    let place = tempfile::tempdir().unwrap();
    let again = mount::attach(&attached.mount, fs::File::open(place.path()).unwrap()).unwrap_err();
    assert_eq!(again.raw_os_error(), Some(rustix::io::Errno::INVAL.raw_os_error()), "{again}");
    drop(attached);
    image.wait_freed();
}

/// `security.capability` of version 2: `CAP_DAC_OVERRIDE`, `CAP_SETUID` and
/// `CAP_SYS_ADMIN`, permitted, and effective from the start.
const CAPABLE: [u8; 20] = [1, 0, 0, 2, 0x82, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Where something is mounted for the time of a test, and nothing but that
/// something decides who may enter.
struct Place(tempfile::TempDir);

impl Place {
    fn new(mount: impl FnOnce(&Path)) -> Self {
        let place = tempfile::tempdir_in("/var/lib").unwrap();
        mount(place.path());
        Self(place)
    }

    /// What a program of it finds out about the process that `caller` runs it in.
    fn run(&self, program: &str, caller: Caller) -> String {
        let output = std::process::Command::new(self.0.path().join(program))
            .args(["-E", "^(Uid|Gid|CapPrm|CapEff):", "/proc/self/status"])
            .uid(caller.uid)
            .gid(caller.gid)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Without it the folder stays, and nothing else.
        let _ = mount::detach(self.0.path());
    }
}

#[test]
fn privileged_setuid_programs_and_file_capabilities_give_nothing() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    let image = world.image("powers", |root| {
        for name in ["setuid", "capable"] {
            fs::copy("/bin/grep", root.join(name)).unwrap();
        }
        fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
        let flags = rustix::fs::XattrFlags::CREATE;
        rustix::fs::setxattr(root.join("capable"), "security.capability", &CAPABLE, flags).unwrap();
    });
    // Not the one to whom a file belongs: where ids are not mapped there would
    // be no mount.
    let caller = user("sctl-test-b");
    let (uid, gid) = (caller.uid, caller.gid);
    let none = "0".repeat(16);
    let powerless = format!("Uid: {uid} {uid} {uid} {uid} Gid: {gid} {gid} {gid} {gid} CapPrm: {none} CapEff: {none}");

    // They are what they should be: from a mount of anybody else's they give
    // all that they promise.
    let bare = Place::new(|place| {
        let options = format!("loop,ro,offset={OFFSET}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "squashfs", "-o", &options])
            .args([&image.path, place])
            .status()
            .unwrap();
        assert!(mounted.success());
    });
    let said = bare.run("setuid", caller);
    assert!(said.starts_with(&format!("Uid: {uid} 0 0 0 Gid: {gid} 0 0 0 ")), "{said}");
    assert!(!said.ends_with(&none), "{said}");
    assert!(bare.run("capable", caller).ends_with("CapPrm: 0000000000200082 CapEff: 0000000000200082"));
    drop(bare);

    for (idmapped, wish) in [(true, MountWish::Shared), (false, MountWish::Shared), (true, MountWish::Private)] {
        world.start(MountOptions { idmapped, ..options() }, 4).unwrap();
        let attach = || world.mounts().attach(caller, &image.open(), wish).unwrap().mount;
        let mount = attach();
        // Where nothing but the mount keeps them from it: in the host's own
        // user namespace.
        let place = Place::new(|place| mount::attach(&mount, fs::File::open(place).unwrap()).unwrap());
        for program in ["setuid", "capable"] {
            assert_eq!(place.run(program, caller), powerless, "{program}, mapped {idmapped}, {wish:?}");
        }
        drop(place);
        // Where a receiver can attach it: in a user namespace below one in
        // which it is root.
        let said = abuse_from_a_login(&attach(), caller);
        for program in ["setuid", "capable"] {
            let powerless = format!("Uid: 1 1 1 1 Gid: 1 1 1 1 CapPrm: {none} CapEff: {none}");
            assert_eq!(said[&format!("run {program}")], powerless, "{program}, mapped {idmapped}, {wish:?}");
        }
    }
}

/// Keeps exchanging two names of a folder, as its owner, until this is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Swapper {
    fn start(folder: &Path, names: [&'static str; 2], owner: Caller) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (folder, stopped) = (folder.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let folder = fs::File::open(folder).unwrap();
            let mut swaps = 0;
            while !stopped.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&folder, names[0], &folder, names[1], RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
                if swaps % 64 == 0 {
                    std::thread::yield_now();
                }
            }
            swaps
        });
        Self { stop, thread: Some(thread) }
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn privileged_a_file_that_is_swapped_is_the_true_one_or_none() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let attacker = user("sctl-test-a");
    let (real, theirs) = (world.image("real", nothing), world.image("theirs", nothing));
    let folder = tempfile::tempdir().unwrap();
    // One that they like, under each of the names in turn.
    fs::copy(&theirs.path, folder.path().join("own")).unwrap();
    fs::set_permissions(folder.path().join("own"), fs::Permissions::from_mode(0o444)).unwrap();
    std::os::unix::fs::symlink(&real.path, folder.path().join("image")).unwrap();
    for path in [folder.path(), &folder.path().join("own")] {
        std::os::unix::fs::chown(path, Some(attacker.uid), Some(attacker.gid)).unwrap();
    }
    let swapper = Swapper::start(folder.path(), ["image", "own"], attacker);
    let caller = user("sctl-test-b");
    let (mut mounted, mut refused) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while mounted < 200 || refused < 200 {
        assert!(Instant::now() < deadline, "{mounted} mounted, {refused} refused");
        // As somebody would who trusts the name: the path leads anywhere.
        let image = real.open_at(&folder.path().join("image"));
        match world.mounts().attach(caller, &image, MountWish::Shared) {
            Ok(attached) => {
                let file = rustix::fs::openat(&attached.mount, "hello", OFlags::RDONLY, Mode::empty()).unwrap();
                let mut text = String::new();
                fs::File::from(file).read_to_string(&mut text).unwrap();
                assert_eq!(text, "hello from real\n");
                mounted += 1;
            }
            Err(NoMount::Unsuitable(reason)) => {
                assert!(reason.contains("belongs to uid"), "{reason}");
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(swapper.stop() > 1000);
}

#[test]
fn privileged_a_cache_that_is_swapped_is_roots_or_none_and_never_mounted_from() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    world.mounts = None;
    let attacker = user("sctl-test-a");
    // Root's cache, and a folder of the attacker's on the way to it, in which
    // the cache's name is a link to it or a folder just like it; in memory, where names change faster than a path is walked twice.
    let memory = mount::new_filesystem(c"tmpfs", &[(c"mode", Some(c"0755"))], MountAttributes::NONE).unwrap();
    let base = Place::new(|place| mount::attach(&memory, fs::File::open(place).unwrap()).unwrap());
    let (real, theirs) = (base.0.path().join("real"), base.0.path().join("theirs"));
    let open = |path: &Path| Cache::open(CacheOptions::new(path, CacheMode::System));
    open(&real).unwrap();
    let identity = |dir: rustix::fs::Stat| (dir.st_dev, dir.st_ino);
    let true_one = identity(rustix::fs::stat(&real).unwrap());
    for dir in [&theirs, &theirs.join("other")] {
        fs::create_dir(dir).unwrap();
        std::os::unix::fs::chown(dir, Some(attacker.uid), Some(attacker.gid)).unwrap();
    }
    fs::set_permissions(theirs.join("other"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&real, theirs.join("cache")).unwrap();
    let swapper = Swapper::start(&theirs, ["cache", "other"], attacker);
    let path = theirs.join("cache");
    let (mut opened, mut refused) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while opened < 200 || refused < 200 {
        assert!(Instant::now() < deadline, "{opened} opened, {refused} refused");
        let root = match open(&path) {
            Ok(cache) => {
                assert_eq!(identity(rustix::fs::fstat(cache.root()).unwrap()), true_one);
                opened += 1;
                cache.root().try_clone_to_owned().unwrap()
            }
            Err(error) => {
                assert!(matches!(error, CacheError::Untrusted { .. }), "{error}");
                refused += 1;
                // What it would be without that.
                fs::File::open(&path).unwrap().into()
            }
        };
        let slots = Slots::prepare(&world.dir().join("slots"), 4, options().helper.gid).unwrap();
        let Unavailable(reason) = Mounts::start(slots, options(), &path, root).unwrap_err();
        assert!(reason.contains(&format!("belongs to uid {}", attacker.uid)), "{reason}");
    }
    assert!(swapper.stop() > 1000);
    let own = [path, theirs.join("other")].into_iter().find(|path| !path.is_symlink()).unwrap();
    assert_eq!(fs::read_dir(own).unwrap().count(), 0, "something was made in the attacker's folder");
}

#[test]
fn privileged_the_pid_of_a_helper_is_nobody_elses_as_long_as_the_broker_knows_it() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("pid", nothing);
    let caller = user("sctl-test-a");
    let pid = world.mounts().helper_pid().unwrap();
    let exists = || Path::new(&format!("/proc/{pid}")).exists();
    sctl_sys::proc::kill(rustix::process::Pid::from_raw(pid).unwrap(), 9).unwrap();
    for _ in 0..100 {
        // In this order: the broker forgets it first.
        let exists = exists();
        assert!(exists || world.mounts().helper_pid() != Some(pid), "another process could have its number");
        std::thread::sleep(Duration::from_millis(2));
    }
    world.mounts().attach(caller, &image.open(), MountWish::Shared).unwrap();
    assert_ne!(world.mounts().helper_pid(), Some(pid));
    assert!(!exists(), "it has been waited for");
}

#[test]
fn privileged_a_helper_that_gives_something_else_is_ended_and_nobody_gets_it() {
    if !can_mount() {
        return;
    }
    for wrong in ["unlocked", "bare", "host", "file", "two", "none", "silent"] {
        let world = World::new(options());
        let image = world.image("false", nothing);
        let program = world.dir().join(wrong);
        install(&example("false_helper"), &program);
        let mut world = world;
        world.start(sctl_engine::mount::MountOptions { program: program.into(), ..options() }, 4).unwrap();
        let helper = world.mounts().helper_pid().unwrap();
        let caller = user("sctl-test-a");
        let refused = world.mounts().attach(caller, &image.open(), MountWish::Shared).unwrap_err();
        assert!(matches!(refused, NoMount::Failed(_) | NoMount::Unavailable(_)), "{wrong}: {refused}");
        assert!(!Path::new(&format!("/proc/{helper}")).exists(), "{wrong}: the helper lives");
        drop(world);
        image.wait_freed();
    }
}

#[test]
fn privileged_a_locked_mount_of_another_image_is_not_handed_out() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    let (first, second) = (world.image("first", nothing), world.image("second", nothing));
    let program = world.dir().join("first");
    install(&example("false_helper"), &program);
    world.start(sctl_engine::mount::MountOptions { program: program.into(), ..options() }, 4).unwrap();
    let caller = user("sctl-test-a");
    let right = world.mounts().attach(caller, &first.open(), MountWish::Shared).unwrap();
    assert_eq!(abuse(&right.mount, caller)["read a file"], "hello from first");
    let helper = world.mounts().helper_pid().unwrap();
    let refused = world.mounts().attach(caller, &second.open(), MountWish::Shared).unwrap_err();
    assert!(matches!(refused, NoMount::Failed(_)), "{refused}");
    assert!(!Path::new(&format!("/proc/{helper}")).exists(), "the helper lives");
}

#[test]
fn privileged_what_everybody_can_read_of_a_device_names_nothing() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("sysfs", nothing);
    let _mount = world.mounts().attach(user("sctl-test-a"), &image.open(), MountWish::Shared).unwrap();
    let [number] = image.loop_devices()[..] else { panic!("one loop device") };
    let folder = format!("/sys/block/loop{number}");
    let backing = fs::read_to_string(format!("{folder}/loop/backing_file")).unwrap();
    assert_eq!(backing, "/\n");
    let mode = fs::metadata(format!("/dev/loop{number}")).unwrap().mode();
    assert_eq!(mode & 0o007, 0, "its tag and bytes are root's");
    assert_eq!(fs::read_to_string(format!("{folder}/ro")).unwrap(), "1\n");
    let sectors: u64 = fs::read_to_string(format!("{folder}/size")).unwrap().trim().parse().unwrap();
    assert_eq!(sectors * 512, image.meta.partition.unwrap().len);
}

#[test]
fn privileged_the_helper_holds_nothing_of_the_host() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let pid = world.mounts().helper_pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    let (uid, gid) = (options().helper.uid, options().helper.gid);
    assert_eq!(field("Uid:"), [uid.to_string(), uid.to_string(), uid.to_string(), uid.to_string()].join(" "));
    assert_eq!(field("Gid:"), [gid.to_string(), gid.to_string(), gid.to_string(), gid.to_string()].join(" "));
    assert_eq!((field("Groups:").as_str(), field("NoNewPrivs:").as_str(), field("Threads:").as_str()), ("", "1", "1"));
    // CAP_SYS_ADMIN, in its own user namespace.
    let admin = format!("{:016x}", 1u64 << 21);
    assert_eq!((field("CapPrm:"), field("CapEff:")), (admin.clone(), admin));
    for empty in ["CapInh:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(empty), "0".repeat(16), "{empty}");
    }
    let namespace = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["user", "mnt"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("thread-self", kind), "{kind}");
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "its root and nothing else:\n{mounts}");
    let superblock = mounts.trim_end().split(" - ").nth(1).unwrap();
    assert!(
        superblock.starts_with("tmpfs ") && superblock.contains(" ro,"),
        "nobody writes it, not even root: {mounts}"
    );
    let fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(fds.iter().all(|fd| fd == "/" || fd.starts_with("socket:")), "{fds:?}");
    assert_eq!(fds.iter().filter(|fd| fd.starts_with("socket:")).count(), 1, "{fds:?}");
    // Not for others of its uid to trace, nor to signal from jobs.
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "not dumpable");
}

#[test]
fn privileged_a_false_partition_is_not_mounted() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("false-partition", nothing);
    let good = image.meta.partition.unwrap();
    let caller = user("sctl-test-a");
    for (offset, len) in [
        (good.offset + 512, good.len),
        (good.offset, good.len + 4096),
        (good.offset, 0),
        (u64::MAX - 4095, 4096),
        (good.offset, good.len - 1),
        (0, good.len),
    ] {
        let mut file = image.open();
        file.meta.partition = Some(sctl_engine::cache::Partition { offset, len });
        assert!(world.mounts().attach(caller, &file, MountWish::Shared).is_err(), "{offset} {len}");
    }
    let mut file = image.open();
    file.meta.partition = None;
    assert!(matches!(world.mounts().attach(caller, &file, MountWish::Shared), Err(NoMount::Unsuitable(_))));
    // Nor is a file that somebody else could change.
    for (mode, owner) in [(0o464, 0), (0o446, 0), (0o444, caller.uid)] {
        std::os::unix::fs::chown(&image.path, Some(owner), None).unwrap();
        fs::set_permissions(&image.path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        assert!(world.mounts().attach(caller, &image.open(), MountWish::Shared).is_err(), "{mode:o} {owner}");
    }
    image.wait_freed();
}
