//! What becomes of a wish where the best answer cannot be given.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use sctl_engine::{
    MountWish,
    mount::{MountOptions, NoMount, Slots, Unavailable},
};

use super::support::{World, abuse, can_mount, options, user};

fn nothing(_: &Path) {}

fn device(mount: &std::os::fd::OwnedFd) -> u64 {
    std::fs::File::from(mount.try_clone().unwrap()).metadata().unwrap().dev()
}

#[test]
fn privileged_without_id_maps_only_those_share_who_own_nothing() {
    if !can_mount() {
        return;
    }
    let world = World::new(MountOptions { idmapped: false, ..options() });
    let image = world.image("plain", nothing);
    let (a, b) = (user("sctl-test-a"), user("sctl-test-b"));
    let attach = |caller, image: &super::support::Image, wish| world.mounts().attach(caller, &image.open(), wish);
    assert_eq!(attach(a, &image, MountWish::Shared).unwrap_err(), NoMount::SharedIds, "a file has its id");
    assert_eq!(attach(b, &image, MountWish::Private).unwrap_err(), NoMount::NoIdmap);
    let said = abuse(&attach(b, &image, MountWish::Shared).unwrap().mount, b);
    assert_eq!((said["lease hello"].as_str(), said["lease of-test-a"].as_str()), ("errno 13", "errno 13"));
    // The group counts as well, and a list that is not there.
    let group = sctl_engine::Caller { gid: a.gid, ..b };
    assert_eq!(attach(group, &image, MountWish::Shared).unwrap_err(), NoMount::SharedIds);
    let mut unknown = image.open();
    unknown.meta.ids = None;
    assert_eq!(world.mounts().attach(b, &unknown, MountWish::Shared).unwrap_err(), NoMount::SharedIds);
    unknown.meta.ids = Some(vec![0, 100_000]);
    assert_eq!(world.mounts().attach(b, &unknown, MountWish::Shared).unwrap_err(), NoMount::SharedIds, "subordinate");
}

#[test]
fn privileged_images_with_fifos_are_not_shared() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("fifo", |root| {
        let folder = std::fs::File::open(root).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(&folder, "pipe", rustix::fs::FileType::Fifo, mode, 0).unwrap();
        rustix::fs::chmodat(&folder, "pipe", mode, rustix::fs::AtFlags::empty()).unwrap();
    });
    let attach = |name: &str| world.mounts().attach(user(name), &image.open(), MountWish::Shared).unwrap();
    let (a, again, b) = (attach("sctl-test-a"), attach("sctl-test-a"), attach("sctl-test-b"));
    assert_eq!(device(&a.mount), device(&again.mount), "one user's");
    assert_ne!(device(&a.mount), device(&b.mount));
    assert!(!a.shared && !b.shared);
    assert_eq!(abuse(&a.mount, user("sctl-test-a"))["open a FIFO"], "done");
}

#[test]
fn privileged_switched_off_sharing_gives_each_user_its_own() {
    if !can_mount() {
        return;
    }
    let world = World::new(MountOptions { share: false, ..options() });
    let image = world.image("own", nothing);
    let attach = |name: &str| world.mounts().attach(user(name), &image.open(), MountWish::Shared).unwrap();
    let (a, b) = (attach("sctl-test-a"), attach("sctl-test-b"));
    assert_ne!(device(&a.mount), device(&b.mount));
    // What belongs to one of them keeps nobody else out.
    assert_eq!(abuse(&a.mount, user("sctl-test-a"))["lease of-test-a"], "done");
    assert_eq!(abuse(&b.mount, user("sctl-test-b"))["lease of-test-a"], "errno 13");
}

#[test]
fn privileged_a_private_mount_shows_image_root_as_its_caller() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("private", nothing);
    for name in ["sctl-test-a", "sctl-test-b"] {
        let caller = user(name);
        let attached = world.mounts().attach(caller, &image.open(), MountWish::Private).unwrap();
        assert!(!attached.shared);
        // Its receiver is 0 in its own namespace.
        let said = abuse(&attached.mount, caller);
        assert_eq!(said["who owns image root's file"], "0");
        assert_eq!(said["who owns the file with this user's id"], "65534");
        assert_eq!(said["detached, clear read-only"], "errno 1");
        let info = world.mounts().list();
        assert!(info.iter().any(|info| info.private_for == Some(caller.uid) && !info.shared), "{info:?}");
    }
    // Another group of the same user, another map of the same superblock.
    let a = user("sctl-test-a");
    let other = sctl_engine::Caller { gid: user("sctl-test-b").gid, ..a };
    let one = world.mounts().attach(a, &image.open(), MountWish::Private).unwrap();
    let two = world.mounts().attach(other, &image.open(), MountWish::Private).unwrap();
    assert_eq!(device(&one.mount), device(&two.mount));
    let gid = |mount: &std::os::fd::OwnedFd| rustix::fs::fstat(mount).unwrap().st_gid;
    assert_eq!((gid(&one.mount), gid(&two.mount)), (a.gid, other.gid));
}

#[test]
fn privileged_a_helper_that_cannot_start_is_a_reason_and_no_hang() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    let image = world.image("none", nothing);
    world.start(MountOptions { program: "/bin/false".into(), ..options() }, 4).unwrap();
    for _ in 0..3 {
        let refused = world.mounts().attach(user("sctl-test-a"), &image.open(), MountWish::Shared).unwrap_err();
        assert!(matches!(&refused, NoMount::Unavailable(reason) if reason.contains("helper")), "{refused}");
    }
    image.wait_freed();
}

#[test]
fn privileged_a_cache_that_others_could_change_is_not_mounted_from() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(world.dir(), open).unwrap();
    let Unavailable(reason) = world.start(options(), 4).unwrap_err();
    assert!(reason.contains("others may write"), "{reason}");
}

#[test]
fn privileged_without_the_capability_there_is_no_place_to_mount_at() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir_in("/var/lib").unwrap();
    // Of this thread alone.
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective.remove(rustix::thread::CapabilitySet::SYS_ADMIN);
    rustix::thread::set_capabilities(None, sets).unwrap();
    let error = Slots::prepare(&dir.path().join("slots"), 4, options().helper.gid).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().starts_with("cannot enter a mount namespace"), "{error}");
}

#[test]
fn privileged_without_loop_devices_there_are_no_mounts() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    // In the mount namespace of this thread, so nobody else misses them.
    rustix::mount::mount_bind(world.dir(), "/dev").unwrap();
    let Unavailable(reason) = world.start(options(), 4).unwrap_err();
    assert!(reason.starts_with("there are no loop devices"), "{reason}");
}
