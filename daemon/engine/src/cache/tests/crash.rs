//! A process that dies at any step leaves the old state or the new one.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
};

use super::*;

const ROOT: &str = "SCTL_TEST_CACHE_ROOT";
const HOST: &str = "SCTL_TEST_CACHE_HOST";

fn child(test: &str, root: &Path, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--test-threads=1"]).env(ROOT, root);
    command.env_remove("SCTL_FAILPOINT").envs(environment.iter().copied());
    command.stdout(std::process::Stdio::null());
    command
}

fn run(test: &str, root: &Path, environment: &[(&str, &str)]) -> ExitStatus {
    child(test, root, environment).status().unwrap()
}

/// Everything that has steps, once each.
fn life(root: &Path) {
    let cache = open(root);
    let layer = put_pack(&cache, b"layer", Grant::Uid(1));
    put_pack(&cache, b"layer", Grant::Public);
    cache.publish_blob(&Digest::of(b"kept"), b"kept").unwrap();
    cache.publish_blob_file(sealed(&cache, StageKind::Blob, b"layer blob"), &Digest::of(b"layer blob")).unwrap();
    let image = put_image(&cache, "one", &[&layer], Grant::Uid(1));
    cache.add_image_grant(&image.key, Grant::Public, Some("registry.example/tools/aligner:again")).unwrap();
    put_image(&cache, "one", &[&layer], Grant::Uid(2));
    cache.settle();
    let gone = put_image(&cache, "two", &[&layer], Grant::Public);
    cache.inner.remove(&EntryId::Image(gone.key)).unwrap();
    cache.collect(u64::MAX, &|id| matches!(id, EntryId::Image(_))).unwrap();
    put_pack(&cache, b"layer", Grant::Public);
}

#[test]
fn child_lives_a_life() {
    if let Ok(root) = std::env::var(ROOT) {
        life(Path::new(&root));
    }
}

const LIFE: &str = "cache::tests::crash::child_lives_a_life";

/// What a user can see.
fn answers(cache: &Cache) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let meta = pack_meta(b"layer");
    let pack = cache.find_pack(&meta.diff_id, PROFILE, 1).unwrap().map(|found| bytes_of(&found.file));
    let image = cache.find_image(&image_meta("one", &[]).key).unwrap().map(|found| bytes_of(&found.file));
    (pack, image)
}

#[test]
fn killed_at_every_step_the_cache_holds_the_whole_entry_or_nothing() {
    if !cfg!(debug_assertions) {
        eprintln!("SKIPPED: release builds have no failpoints");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let log = temp.path().join("log");
    let environment = [("SCTL_FAILPOINT_LOG", log.to_str().unwrap())];
    assert!(run(LIFE, &temp.path().join("whole"), &environment).success());
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for name in fs::read_to_string(&log).unwrap().lines() {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    for expected in [
        "open.after_sweep",
        "open.after_database",
        "open.after_layout",
        "open.after_recover",
        "seal.done",
        "publish_blob.written",
        "publish_blob.after_rename",
        "publish_pack.before_sidecar",
        "publish_pack.sidecar_written",
        "publish_pack.after_sidecar",
        "publish_pack.after_rename",
        "publish_pack.after_row",
        "publish_pack.after_merge",
        "publish_image.before_sidecar",
        "publish_image.sidecar_written",
        "publish_image.after_sidecar",
        "publish_image.after_rename",
        "publish_image.after_row",
        "publish_image.after_merge",
        "publish_image.after_index",
        "index.written",
        "amend.after_sidecar",
        "sync.before_mark",
        "sync.after_mark",
        "remove.after_file",
        "remove.after_sidecar",
    ] {
        assert!(counts.contains_key(expected), "{expected} was not passed");
    }
    let places: Vec<_> =
        counts.iter().flat_map(|(name, count)| (1..=*count).map(move |at| format!("{name}:{at}"))).collect();
    // They mostly wait for the disk, so they may wait together.
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let (places, temp) = (&places, temp.path());
            scope.spawn(move || {
                for place in places.iter().skip(lane).step_by(4) {
                    die_at(place, &temp.join(place));
                }
            });
        }
    });
}

/// Has a child die at `place` of its life, and looks at what is left.
fn die_at(place: &str, root: &Path) {
    let status = run(LIFE, root, &[("SCTL_FAILPOINT", place)]);
    assert_eq!(status.signal(), Some(9), "{place}: the child was not killed there");
    let cache = open(root);
    assert_sound(root);
    let (pack, image) = answers(&cache);
    assert!(pack.as_ref().is_none_or(|bytes| bytes == b"layer"), "{place}");
    assert!(image.as_ref().is_none_or(|bytes| bytes == b"one"), "{place}");
    match place {
        "publish_pack.before_sidecar:1" | "publish_pack.sidecar_written:1" | "publish_pack.after_sidecar:1" => {
            assert_eq!((pack, image), (None, None), "{place}");
        }
        "publish_pack.after_rename:1" | "publish_pack.after_row:1" => assert!(pack.is_some(), "{place}"),
        "publish_image.after_rename:1" | "sync.before_mark:1" | "sync.after_mark:1" => {
            assert!(pack.is_some() && image.is_some(), "{place}");
        }
        _ => {}
    }
    // And the next life meets no obstacle.
    drop(cache);
    life(root);
    let cache = open(root);
    assert_eq!(answers(&cache), (Some(b"layer".to_vec()), Some(b"one".to_vec())), "{place}");
    assert_sound(root);
}

#[test]
fn child_publishes_in_a_loop() {
    let (Ok(root), Ok(host)) = (std::env::var(ROOT), std::env::var(HOST)) else { return };
    let id = HostId { host, ..HostId::current() };
    let options = CacheOptions {
        host: Some(id),
        mode: CacheMode::User,
        sync_delay: Duration::from_millis(5),
        ..options(Path::new(&root))
    };
    let cache = Cache::open(options).unwrap();
    let grant = Grant::Uid(rustix::process::getpid().as_raw_nonzero().get() as u32);
    for round in 0..60 {
        let layer = put_pack(&cache, b"layer", grant);
        put_image(&cache, "one", &[&layer], grant);
        if round % 7 == 3 {
            cache.clean(Viewer::All, false, &|_| false).unwrap();
        }
        // Whatever the other one does: whole or nothing.
        let (pack, image) = answers(&cache);
        assert!(pack.is_none_or(|bytes| bytes == b"layer"));
        assert!(image.is_none_or(|bytes| bytes == b"one"));
    }
    let layer = put_pack(&cache, b"layer", Grant::Public);
    put_image(&cache, "one", &[&layer], Grant::Public);
}

#[test]
fn two_hosts_publish_and_clean_the_same_entries_at_once() {
    const LOOP: &str = "cache::tests::crash::child_publishes_in_a_loop";
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let mut children: Vec<_> =
        ["a", "b"].map(|host| child(LOOP, &root, &[(HOST, host)]).spawn().unwrap()).into_iter().collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let cache = Cache::open(CacheOptions { mode: CacheMode::User, ..options(&root) }).unwrap();
    assert_eq!(names_in(&root.join("tmp")), [""; 0]);
    // The last one to publish cleaned nothing afterwards.
    let (pack, image) = answers(&cache);
    assert_eq!((pack, image), (Some(b"layer".to_vec()), Some(b"one".to_vec())));
    assert_sound(&root);
}

#[test]
fn many_threads_publish_the_same_entries_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    std::thread::scope(|scope| {
        for uid in 0..8 {
            let cache = &cache;
            scope.spawn(move || {
                let layer = put_pack(cache, b"layer", Grant::Uid(uid));
                put_image(cache, "one", &[&layer], Grant::Uid(uid));
            });
        }
    });
    let entries = cache.list(Viewer::All).unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.uids == (0..8).collect::<Vec<_>>()).count(), 4);
    assert_sound(&root);
}
