//! How superblocks come, are shared, and go.

use std::{os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use sctl_engine::{
    MountWish,
    mount::{MountOptions, NoMount},
};

use super::support::{World, abuse, can_mount, helper_that_dies_at, options, user, wait_until};

fn nothing(_: &Path) {}

fn device(mount: &std::os::fd::OwnedFd) -> u64 {
    std::fs::File::from(mount.try_clone().unwrap()).metadata().unwrap().dev()
}

#[test]
fn privileged_users_share_one_device() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let (one, two) = (world.image("one", nothing), world.image("two", nothing));
    let a = world.mounts().attach(user("sctl-test-a"), &one.open(), MountWish::Shared).unwrap().mount;
    let b = world.mounts().attach(user("sctl-test-b"), &one.open(), MountWish::Shared).unwrap().mount;
    let other = world.mounts().attach(user("sctl-test-b"), &two.open(), MountWish::Shared).unwrap().mount;
    assert_eq!(device(&a), device(&b));
    assert_ne!(device(&a), device(&other));
    assert_eq!((one.loop_devices().len(), two.loop_devices().len()), (1, 1));
    let list = world.mounts().list();
    let info = list.iter().find(|info| info.key == one.meta.key).unwrap();
    assert!(info.shared && !info.held_by_clients && !info.adopted && info.private_for.is_none());
    let mut users = vec![user("sctl-test-a").uid, user("sctl-test-b").uid];
    users.sort_unstable();
    assert_eq!((info.attached, &info.users, &info.references), (2, &users, &one.meta.references));
    assert!(world.mounts().in_use(&one.meta.key));
}

#[test]
fn privileged_an_idle_image_is_unmounted_and_its_device_freed() {
    if !can_mount() {
        return;
    }
    let world = World::new(MountOptions { idle: Duration::from_millis(500), ..options() });
    let image = world.image("idle", nothing);
    let mount = world.mounts().attach(user("sctl-test-a"), &image.open(), MountWish::Shared).unwrap().mount;
    wait_until("the broker lets go", || world.mounts().list().iter().all(|info| info.held_by_clients));
    // The client's mount holds it, and works.
    assert_eq!(image.loop_devices().len(), 1);
    assert!(world.mounts().in_use(&image.meta.key));
    assert_eq!(abuse(&mount, user("sctl-test-a"))["read a file"], "hello from idle");
    // Asked for again, it is the same one.
    let again = world.mounts().attach(user("sctl-test-b"), &image.open(), MountWish::Shared).unwrap().mount;
    assert_eq!(device(&mount), device(&again));
    drop((mount, again));
    wait_until("it is forgotten", || !world.mounts().in_use(&image.meta.key));
    image.wait_freed();
}

#[test]
fn privileged_a_loop_device_that_is_used_again_shows_the_new_image_only() {
    if !can_mount() {
        return;
    }
    // Long enough that nothing is swept meanwhile.
    let world = World::new(MountOptions { idle: Duration::from_secs(3600), ..options() });
    let (first, second) = (world.image("first", nothing), world.image("second", nothing));
    let (a, b) = (user("sctl-test-a"), user("sctl-test-b"));
    let mut reused = false;
    // Other tests take loop devices as well, so the number may go to them.
    for _ in 0..20 {
        let mount = world.mounts().attach(a, &first.open(), MountWish::Shared).unwrap().mount;
        let numbers = first.loop_devices();
        // The broker lets go, the client does not: the table still knows it.
        world.mounts().unmount(&first.meta.key);
        assert!(world.mounts().in_use(&first.meta.key));
        drop(mount);
        first.wait_freed();
        let other = world.mounts().attach(b, &second.open(), MountWish::Shared).unwrap().mount;
        let is_reused = second.loop_devices() == numbers;
        let again = world.mounts().attach(a, &first.open(), MountWish::Shared).unwrap().mount;
        assert_eq!(abuse(&again, a)["read a file"], "hello from first");
        assert_eq!(abuse(&other, b)["read a file"], "hello from second");
        let keys: Vec<_> =
            world.mounts().list().iter().filter(|info| !info.held_by_clients).map(|info| info.key).collect();
        assert!(keys.contains(&first.meta.key) && keys.contains(&second.meta.key), "{keys:?}");
        drop((other, again));
        world.mounts().unmount(&first.meta.key);
        world.mounts().unmount(&second.meta.key);
        first.wait_freed();
        second.wait_freed();
        reused |= is_reused;
        if reused {
            break;
        }
    }
    assert!(reused, "no number was used again");
}

#[test]
fn privileged_the_next_daemon_takes_over_what_clients_hold() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    let (held, left) = (world.image("held", nothing), world.image("left", nothing));
    let caller = user("sctl-test-a");
    let mount = world.mounts().attach(caller, &held.open(), MountWish::Shared).unwrap().mount;
    let own = world.mounts().attach(caller, &held.open(), MountWish::Private).unwrap().mount;
    drop(world.mounts().attach(caller, &left.open(), MountWish::Shared).unwrap());
    world.mounts = None;
    left.wait_freed();
    world.start(options(), 16).unwrap();
    let list = world.mounts().list();
    assert_eq!(list.len(), 2, "{list:?}");
    assert!(list.iter().all(|info| info.adopted && info.held_by_clients && info.key == held.meta.key));
    let mut owners: Vec<_> = list.iter().map(|info| info.private_for).collect();
    owners.sort_unstable();
    assert_eq!(owners, [None, Some(caller.uid)]);
    let again = world.mounts().attach(user("sctl-test-b"), &held.open(), MountWish::Shared).unwrap().mount;
    assert_eq!(device(&mount), device(&again));
    let own_again = world.mounts().attach(caller, &held.open(), MountWish::Private).unwrap().mount;
    assert_eq!(device(&own), device(&own_again));
    // Never somebody else's private one.
    let others = world.mounts().attach(user("sctl-test-b"), &held.open(), MountWish::Private).unwrap().mount;
    assert!(![device(&own), device(&mount)].contains(&device(&others)));
    assert_eq!(held.loop_devices().len(), 3);
}

#[test]
fn privileged_an_image_that_was_made_again_is_not_mistaken_for_the_old_one() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let old = world.image("again", nothing);
    let caller = user("sctl-test-a");
    let before = world.mounts().attach(caller, &old.open(), MountWish::Shared).unwrap().mount;
    std::fs::remove_file(&old.path).unwrap();
    let new = world.image("again", |root| std::fs::write(root.join("hello"), "changed").unwrap());
    let after = world.mounts().attach(caller, &new.open(), MountWish::Shared).unwrap().mount;
    assert_ne!(device(&before), device(&after));
    assert_eq!(abuse(&after, caller)["read a file"], "changed");
}

#[test]
fn privileged_users_and_hosts_have_so_many_devices() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(options());
    world.start(MountOptions { max_per_user: 2, ..options() }, 3).unwrap();
    let images: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| world.image(name, nothing)).collect();
    let attach = |image: usize, name: &str| world.mounts().attach(user(name), &images[image].open(), MountWish::Shared);
    // A child that another test has just forked holds every descriptor of this
    // process until it runs its program: what was dropped is free soon.
    let soon = |image: usize, name: &str| {
        let mut attached = None;
        wait_until("what nobody holds does not count", || {
            attached = attach(image, name).ok();
            attached.is_some()
        });
        attached
    };
    for image in 0..4 {
        drop(soon(image, "sctl-test-a"));
    }
    let held = (soon(0, "sctl-test-a"), soon(1, "sctl-test-a"));
    assert_eq!(attach(2, "sctl-test-a").unwrap_err(), NoMount::TooManyOfUser { limit: 2 });
    // Nor by a subordinate id of theirs.
    let subordinate = sctl_engine::Caller { uid: 100_000, gid: 100_000, ..user("sctl-test-a") };
    let attached = world.mounts().attach(subordinate, &images[2].open(), MountWish::Shared);
    assert_eq!(attached.unwrap_err(), NoMount::TooManyOfUser { limit: 2 });
    attach(1, "sctl-test-a").unwrap();
    // Others may, until the host's limit.
    let third = soon(2, "sctl-test-b");
    assert_eq!(attach(3, "sctl-test-b").unwrap_err(), NoMount::TooMany);
    drop(held);
    drop(soon(2, "sctl-test-a"));
    drop(soon(3, "sctl-test-b"));
    drop(third);
}

#[test]
fn privileged_one_image_of_a_user_takes_few_slots_whatever_its_groups() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("groups", nothing);
    let caller = user("sctl-test-a");
    let mounted = || {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(" - squashfs ")).count()
    };
    let before = mounted();
    let mut held = Vec::new();
    for gid in 5000..5010 {
        let caller = sctl_engine::Caller { gid, ..caller };
        held.push(world.mounts().attach(caller, &image.open(), MountWish::Private).unwrap());
        assert!(mounted() - before <= 4, "{} slots", mounted() - before);
    }
    assert_eq!(mounted() - before, 4);
}

#[test]
fn privileged_a_dead_helper_is_replaced() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("helper", nothing);
    let caller = user("sctl-test-a");
    let before = world.mounts().attach(caller, &image.open(), MountWish::Shared).unwrap().mount;
    for _ in 0..3 {
        let helper = world.mounts().helper_pid().unwrap();
        sctl_sys::proc::kill(rustix::process::Pid::from_raw(helper).unwrap(), 9).unwrap();
        wait_until("another helper", || world.mounts().attach(caller, &image.open(), MountWish::Shared).is_ok());
        assert_ne!(world.mounts().helper_pid(), Some(helper));
    }
    assert_eq!(abuse(&before, caller)["read a file"], "hello from helper");
    drop(before);
    world.mounts().unmount(&image.meta.key);
    image.wait_freed();
}

#[test]
#[cfg(debug_assertions)]
fn privileged_a_helper_may_die_at_any_step() {
    if !can_mount() {
        return;
    }
    for place in ["started", "unshared", "mapped", "changed", "moved", "ready", "asked", "answered"] {
        let mut world = World::new(options());
        let image = world.image(place, nothing);
        let program = helper_that_dies_at(world.dir(), &format!("helper.{place}"));
        world.start(MountOptions { program, ..options() }, 4).unwrap();
        let caller = user("sctl-test-a");
        let mut gone = 0;
        for _ in 0..3 {
            match world.mounts().attach(caller, &image.open(), MountWish::Shared) {
                // It had answered by then.
                Ok(attached) => assert_eq!(abuse(&attached.mount, caller)["nested, clear nodev"], "errno 1"),
                Err(NoMount::Failed(_) | NoMount::Unavailable(_)) => gone += 1,
                Err(other) => panic!("{place}: {other}"),
            }
        }
        assert!(gone > 0 || place == "answered", "{place}: it lives");
        // The next daemon has a better one.
        world.start(options(), 4).unwrap();
        world.mounts().attach(caller, &image.open(), MountWish::Shared).unwrap();
        drop(world);
        image.wait_freed();
    }
}

#[test]
fn privileged_nothing_is_left_after_the_end() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("end", nothing);
    drop(world.mounts().attach(user("sctl-test-a"), &image.open(), MountWish::Shared).unwrap());
    let helper = world.mounts().helper_pid().unwrap();
    world.mounts().stop();
    assert!(matches!(
        world.mounts().attach(user("sctl-test-a"), &image.open(), MountWish::Shared),
        Err(NoMount::Unavailable(_))
    ));
    assert!(!Path::new(&format!("/proc/{helper}")).exists());
    image.wait_freed();
}

#[test]
fn privileged_an_administrator_can_let_go_of_an_image() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let image = world.image("unmounted", nothing);
    let caller = user("sctl-test-a");
    let mount = world.mounts().attach(caller, &image.open(), MountWish::Shared).unwrap().mount;
    let left = world.mounts().unmount(&image.meta.key);
    assert_eq!((left.released, left.held_by_clients), (1, 1));
    assert_eq!(abuse(&mount, caller)["read a file"], "hello from unmounted");
    drop(mount);
    wait_until("nobody holds it", || world.mounts().unmount(&image.meta.key).held_by_clients == 0);
    image.wait_freed();
}

#[test]
fn privileged_many_clients_at_once() {
    if !can_mount() {
        return;
    }
    let world = World::new(options());
    let images: Vec<_> = ["m1", "m2", "m3"].iter().map(|name| world.image(name, nothing)).collect();
    let (caller, mounts) = (user("sctl-test-a"), world.mounts());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let images = &images;
            scope.spawn(move || {
                for round in 0..50 {
                    let image = &images[(thread + round) % images.len()];
                    if thread == 0 && round % 10 == 0 {
                        mounts.unmount(&image.meta.key);
                    }
                    mounts.attach(caller, &image.open(), MountWish::Shared).unwrap();
                }
            });
        }
    });
    assert!(images.iter().all(|image| image.loop_devices().len() <= 1));
}
