//! A daemon that dies at any step of a mount leaves nothing that the kernel does
//! not clear away by itself, but for what clients hold.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use sctl_engine::MountWish;

use super::support::{Image, World, abuse, can_mount, options, user, wait_until};

const ROOT: &str = "SCTL_TEST_MOUNTS_ROOT";

/// Everything that has steps, once each, as another process.
#[test]
fn child_mounts_and_unmounts() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let mut world = World::of(&root);
    world.start(options(), 4).unwrap();
    let image = Image::read(&root, "crash");
    let caller = user("sctl-test-a");
    let shared = world.mounts().attach(caller, &image.open(), MountWish::Shared).unwrap();
    let private = world.mounts().attach(caller, &image.open(), MountWish::Private).unwrap();
    world.mounts().unmount(&image.meta.key);
    drop((shared, private));
    world.mounts().unmount(&image.meta.key);
}

fn run(root: &Path, environment: &[(&str, &Path)]) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::child_mounts_and_unmounts", "--test-threads=1"]).env(ROOT, root);
    command.env_remove("SCTL_FAILPOINT").envs(environment.iter().copied());
    command.stdout(std::process::Stdio::null()).status().unwrap()
}

#[test]
#[cfg(debug_assertions)]
fn privileged_the_daemon_may_be_killed_at_any_step() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    let image = world.image("crash", |_| {});
    image.write(world.dir());
    let caller = user("sctl-test-a");
    // One that a client holds through all of it.
    let held = world.mounts().attach(caller, &image.open(), MountWish::Shared).unwrap().mount;
    world.mounts = None;
    let log = world.dir().join("log");
    assert!(run(world.dir(), &[("SCTL_FAILPOINT_LOG", &log)]).success());
    let passed = fs::read_to_string(&log).unwrap();
    let mut seen = std::collections::BTreeMap::<&str, u32>::new();
    for place in passed.lines().filter(|place| place.starts_with("mount.")) {
        let count = seen.entry(place).or_default();
        *count += 1;
        let place = format!("{place}:{count}");
        let status = run(world.dir(), &[("SCTL_FAILPOINT", Path::new(&place))]);
        assert_eq!(status.signal(), Some(9), "{place}: {status}");
        // The helper dies with it, and with both their namespaces the mounts.
        wait_until(&place, || image.loop_devices().len() == 1);
    }
    for place in ["mount.bound", "mount.mounted", "mount.filled", "mount.cloned", "mount.checked", "mount.cleared"] {
        assert!(seen.contains_key(place), "{place} was not passed");
    }
    assert_eq!(abuse(&held, caller)["read a file"], "hello from crash");
    world.start(options(), 4).unwrap();
    assert!(world.mounts().list().iter().all(|info| info.adopted && info.key == image.meta.key));
    drop(held);
    wait_until("nothing is known of it", || {
        world.mounts().sweep();
        world.mounts().list().is_empty()
    });
    image.wait_freed();
}
