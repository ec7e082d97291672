//! What users, false helpers and images may not do.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use sctl_engine::{MountWish, mount::NoMount};

use super::support::{World, abuse, can_mount, example, install, options, user};

const EPERM: &str = "errno 1";
const EACCES: &str = "errno 13";
const EROFS: &str = "errno 30";

fn nothing(_: &Path) {}

#[test]
fn privileged_what_restricts_a_mount_stays_whatever_its_receiver_tries() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("flags", |root| {
        // The converter leaves them out; this one did not.
        let (mode, device) = (rustix::fs::Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3));
        let folder = fs::File::open(root).unwrap();
        rustix::fs::mknodat(&folder, "null", rustix::fs::FileType::CharacterDevice, mode, device).unwrap();
        fs::set_permissions(root.join("null"), fs::Permissions::from_mode(0o666)).unwrap();
    });
    for name in ["sctl-test-a", "sctl-test-b"] {
        let attached = world.mounts().attach(user(name), &image.open(), MountWish::Shared).unwrap();
        assert!(attached.shared);
        let said = abuse(&attached.mount, user(name));
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
                ("read a file", "hello from flags"),
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
        assert_eq!(said, expected, "{name}");
    }
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
