//! What goes, in which order, and what stays.

use sctl_common::ErrorKind;

use super::{super::model::Meta, *};

const NOTHING: &dyn Fn(&EntryId) -> bool = &|_| false;

/// Makes an entry look used that many seconds ago.
fn age(cache: &Cache, id: EntryId, seconds: i64) {
    let (kind, stem) = match &id {
        EntryId::Blob(digest) => ("oci/blobs/sha256", digest.hex()),
        EntryId::Pack { diff_id, profile_id } => ("packs", format!("{}-{profile_id}.json", diff_id.digest().hex())),
        EntryId::Image(key) => ("sif", format!("{key}.json")),
    };
    let used = unix_now() - seconds;
    let file = fs::File::open(cache.path().join(kind).join(stem)).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(used as u64)).unwrap();
    cache.inner.state.restore(id, used);
}

fn kinds(cleaned: &Cleaned) -> String {
    let letter = |entry: &EntryInfo| match entry.id {
        EntryId::Blob(_) => 'b',
        EntryId::Pack { .. } => 'p',
        EntryId::Image(_) => 'i',
    };
    cleaned.removed.iter().map(letter).collect()
}

#[test]
fn a_clean_takes_everything_that_nothing_needs() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let layer = put_pack(&cache, b"layer", Grant::Public);
    let [pinned, used, held] = ["pinned", "used", "held"].map(|name| put_image(&cache, name, &[&layer], Grant::Public));
    let gone = put_image(&cache, "gone", &[&layer], Grant::Public);
    assert!(cache.set_pinned(&pinned.key, true).unwrap());
    let hold = cache.hold(vec![held.id(), held.id()]);
    let in_use = |id: &EntryId| *id == used.id();
    let before = names_in(&root.join("sif"));
    let planned = cache.clean(Viewer::All, true, &in_use).unwrap();
    assert_eq!(names_in(&root.join("sif")), before, "a dry run removes nothing");
    let cleaned = cache.clean(Viewer::All, false, &in_use).unwrap();
    assert_eq!(cleaned, planned);
    assert_eq!(kinds(&cleaned), "ipbb", "an image, the pack, its manifest and config");
    assert_eq!(cleaned.freed_bytes, (4 + 5 + manifest_of("gone").len() + config_of("gone").len()) as u64);
    assert!(cache.find_image(&gone.key).unwrap().is_none());
    for image in [&pinned, &used, &held] {
        assert!(cache.find_image(&image.key).unwrap().is_some());
        assert!(cache.read_blob(&image.manifest).unwrap().is_some());
    }
    assert_sound(&root);
    drop(hold);
    assert!(cache.set_pinned(&pinned.key, false).unwrap());
    cache.clean(Viewer::All, false, NOTHING).unwrap();
    assert_eq!(cache.list(Viewer::All).unwrap(), []);
    assert_eq!(cache.clean(Viewer::All, false, NOTHING).unwrap(), Cleaned::default(), "again, harmlessly");
    assert_sound(&root);
}

#[test]
fn a_user_cleans_only_what_is_nobody_elses() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let own = put_image(&cache, "own", &[], Grant::Uid(7));
    put_image(&cache, "public", &[], Grant::Public);
    put_image(&cache, "other", &[], Grant::Uid(8));
    let both = put_image(&cache, "both", &[], Grant::Uid(7));
    cache.add_image_grant(&both.key, Grant::Uid(8), None).unwrap();
    let cleaned = cache.clean(Viewer::Uid(7), false, NOTHING).unwrap();
    assert_eq!(cleaned.removed.iter().map(|entry| entry.digest).collect::<Vec<_>>()[0], own.manifest);
    assert_eq!(kinds(&cleaned), "ibb");
    assert_eq!(cache.list(Viewer::All).unwrap().len(), 9);
}

#[test]
fn an_open_file_outlives_its_entry() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let image = put_image(&cache, "one", &[], Grant::Public);
    let found = cache.find_image(&image.key).unwrap().unwrap();
    cache.clean(Viewer::All, false, NOTHING).unwrap();
    assert_eq!(bytes_of(&found.file), b"one");
}

#[test]
fn collection_takes_blobs_then_packs_then_images_the_oldest_first() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let [old, new] = [b"old", b"new"].map(|content| put_pack(&cache, content, Grant::Public));
    let [first, second] = ["one", "two"].map(|name| put_image(&cache, name, &[&old, &new], Grant::Public));
    // A layer blob that was kept, last used long ago.
    cache.publish_blob_file(sealed(&cache, StageKind::Blob, b"kept"), &old.blobs[0]).unwrap();
    age(&cache, EntryId::Blob(old.blobs[0]), 9000);
    for (id, seconds) in [(old.id(), 500), (new.id(), 400), (first.id(), 90), (second.id(), 900)] {
        age(&cache, id, seconds);
    }
    let steps: Vec<String> =
        (0..6).map(|_| cache.collect(1, NOTHING).unwrap()).map(|cleaned| kinds(&cleaned)).collect();
    assert_eq!(steps, ["b", "p", "p", "ibb", "ibb", ""]);
    assert_sound(&root);
    let [old, new] = [b"old", b"new"].map(|content| put_pack(&cache, content, Grant::Public));
    age(&cache, old.id(), 500);
    let cleaned = cache.collect(1, NOTHING).unwrap();
    assert_eq!(cleaned.removed[0].id, old.id());
    assert!(cache.collect(1, &|id| *id == new.id()).unwrap().removed.is_empty(), "in use");
}

#[test]
fn too_little_space_is_refused_with_figures() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    drop(cache.check_space(1, NOTHING).unwrap());
    let error = cache.check_space(u64::MAX / 2, NOTHING).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains(&(u64::MAX / 2).to_string()), "{error}");
    drop(cache);
    let full = Cache::open(CacheOptions { min_free_percent: 100, ..options(&root) }).unwrap();
    put_pack(&full, b"layer", Grant::Public);
    let error = full.check_space(1, NOTHING).unwrap_err();
    assert!(error.to_string().contains("100% must stay free"), "{error}");
    assert_eq!(full.totals(Viewer::All).unwrap().packs, 1, "nothing goes where it would not help");
}

#[test]
fn who_asks_for_more_than_there_can_be_costs_nobody_anything() {
    let temp = tempfile::tempdir().unwrap();
    let options = CacheOptions { quota_bytes: Some(1000), ..options(&temp.path().join("cache")) };
    let cache = Cache::open(options).unwrap();
    let layer = put_pack(&cache, &[1u8; 400], Grant::Public);
    let image = put_image(&cache, "one", &[&layer], Grant::Public);
    let before = cache.list(Viewer::All).unwrap();
    let error = cache.check_space(1 << 62, NOTHING).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let error = cache.check_space(1001, NOTHING).unwrap_err();
    assert!(matches!(error, CacheError::QuotaExceeded { need_bytes: 1001, used_bytes: 0, .. }), "{error}");
    assert_eq!(cache.list(Viewer::All).unwrap(), before);
    assert!(cache.find_image(&image.key).unwrap().is_some());
    drop(cache.check_space(1000, NOTHING).unwrap());
    assert_eq!(cache.list(Viewer::All).unwrap(), [], "all of it, and not a byte more");
}

#[test]
fn a_quota_makes_room_and_counts_running_jobs() {
    let temp = tempfile::tempdir().unwrap();
    let options = CacheOptions { quota_bytes: Some(1000), ..options(&temp.path().join("cache")) };
    let cache = Cache::open(options).unwrap();
    let [old, new] = [[1u8; 400], [2u8; 400]].map(|content| put_pack(&cache, &content, Grant::Public));
    age(&cache, old.id(), 100);
    let mut running = cache.check_space(150, NOTHING).unwrap();
    assert_eq!(cache.totals(Viewer::All).unwrap().packs, 2);
    let second = cache.check_space(200, NOTHING).unwrap();
    assert!(cache.find_pack(&old.diff_id, PROFILE, 1).unwrap().is_none(), "the older one made room");
    assert!(cache.find_pack(&new.diff_id, PROFILE, 1).unwrap().is_some());
    let error = cache.check_space(300, &|_| true).unwrap_err();
    assert!(matches!(error, CacheError::QuotaExceeded { used_bytes: 400, .. }), "{error}");
    running.set_remaining(0);
    drop(second);
    drop(cache.check_space(300, &|_| true).unwrap());
}

#[test]
fn uses_on_other_hosts_count_too() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let user = |host: &str| {
        let host = HostId { host: host.to_owned(), ..HostId::current() };
        Cache::open(CacheOptions { mode: CacheMode::User, host: Some(host), ..options(&root) }).unwrap()
    };
    let ours = user("ours");
    let [first, second] = [b"one", b"two"].map(|content| put_pack(&ours, content, Grant::Public));
    for (id, seconds) in [(first.id(), 900), (second.id(), 800)] {
        age(&ours, id, seconds);
    }
    let theirs = user("theirs");
    theirs.find_pack(&first.diff_id, PROFILE, 1).unwrap().unwrap();
    theirs.settle();
    assert_eq!(ours.collect(1, NOTHING).unwrap().removed[0].id, second.id());
}

#[test]
fn an_entry_that_is_held_after_the_plan_was_made_stays() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let layer = put_pack(&cache, b"layer", Grant::Public);
    let holds = std::cell::RefCell::new(Vec::new());
    // The pull comes in the very moment in which the cache is being looked at.
    let in_use = |id: &EntryId| {
        holds.borrow_mut().push(cache.hold(vec![id.clone()]));
        false
    };
    assert_eq!(cache.clean(Viewer::All, false, &in_use).unwrap(), Cleaned::default());
    assert!(cache.find_pack(&layer.diff_id, PROFILE, 1).unwrap().is_some());
}

const DISK: &str = "SCTL_TEST_FULL_DISK";

#[test]
fn child_fills_the_disk() {
    let Ok(root) = std::env::var(DISK) else { return };
    let cache = open(Path::new(&root));
    let layer = put_pack(&cache, b"layer", Grant::Public);
    let staged = cache.stage(StageKind::Pack).unwrap();
    let error = std::iter::repeat_n(&[7u8; 4096], 10_000).find_map(|page| staged.file().write_all(page).err());
    assert_eq!(error.unwrap().kind(), std::io::ErrorKind::StorageFull);
    // The file of a job that did not notice: its sidecar finds no room.
    let error = cache.publish_pack(staged.seal().unwrap(), &pack_meta(b"large"), Grant::Public).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(names_in(&Path::new(&root).join("tmp")), [""; 0]);
    assert!(cache.find_pack(&layer.diff_id, PROFILE, 1).unwrap().is_some());
    assert!(cache.find_pack(&pack_meta(b"large").diff_id, PROFILE, 1).unwrap().is_none());
    cache.settle();
    put_pack(&cache, b"small", Grant::Public);
    assert_sound(Path::new(&root));
}

#[test]
fn privileged_a_full_disk_leaves_the_old_state() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to mount a small file system");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o size=4m none \"$1\" && exec \"$0\" --exact cache::tests::clean::child_fills_the_disk";
    let status = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(temp.path())
        .env(DISK, temp.path().join("cache"))
        .status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(error) => eprintln!("SKIPPED: cannot run unshare: {error}"),
    }
}
