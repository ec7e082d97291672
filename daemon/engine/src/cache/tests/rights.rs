//! Who may use and see what, and whom the cache trusts.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use sctl_common::ErrorKind;

use super::*;

#[test]
fn a_pack_serves_only_those_who_earned_it() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let layer = put_pack(&cache, b"layer", Grant::Uid(7));
    let may = |uid| cache.find_pack(&layer.diff_id, PROFILE, uid).unwrap().is_some();
    assert!(may(7) && !may(8) && !may(0));
    // Another user has delivered the same bytes: the file is kept, the grant added.
    let mut meta = layer.clone();
    meta.blobs = vec![Digest::of(b"recompressed")];
    let published = cache.publish_pack(sealed(&cache, StageKind::Pack, b"layer"), &meta, Grant::Uid(8)).unwrap();
    assert!(published.existed && may(8) && !may(9));
    assert!(cache.add_pack_grant(&layer.diff_id, PROFILE, Grant::Public).unwrap());
    assert!(may(9));
    let found = cache.find_pack(&layer.diff_id, PROFILE, 9).unwrap().unwrap();
    assert_eq!(found.meta.blobs, [layer.blobs[0], meta.blobs[0]]);
    assert!(!cache.add_pack_grant(&pack_meta(b"none").diff_id, PROFILE, Grant::Public).unwrap());
    // Another profile is another pack.
    assert!(cache.find_pack(&layer.diff_id, "v1-gzip9-128k-zlibrs0.5", 7).unwrap().is_none());
    for bad in ["", "a/b", "..\0", "a b"] {
        assert_eq!(cache.find_pack(&layer.diff_id, bad, 7).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
    }
}

#[test]
fn a_false_pack_is_found_when_the_true_one_comes() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    for (first, second) in [(b"false".as_slice(), b"layer".as_slice()), (b"layer", b"layer and more")] {
        let meta = pack_meta(b"layer");
        cache.publish_pack(sealed(&cache, StageKind::Pack, first), &meta, Grant::Public).unwrap();
        let error = cache.publish_pack(sealed(&cache, StageKind::Pack, second), &meta, Grant::Uid(7)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(cache.find_pack(&meta.diff_id, PROFILE, 7).unwrap().is_none(), "neither can be trusted");
        assert_sound(&root);
    }
    // The third delivery stands, and equal ones after it.
    let layer = put_pack(&cache, b"layer", Grant::Uid(7));
    let other = PackMeta { origins: vec!["docker://other/place".to_owned()], ..layer.clone() };
    let published = cache.publish_pack(sealed(&cache, StageKind::Pack, b"layer"), &other, Grant::Uid(8)).unwrap();
    assert!(published.existed);
    let found = cache.find_pack(&layer.diff_id, PROFILE, 7).unwrap().unwrap();
    assert_eq!(found.meta.origins, [ORIGIN, "docker://other/place"], "whom to ask if it is false");
}

#[test]
fn a_copy_in_hand_opens_only_what_its_holder_has_earned() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let image = put_image(&cache, "secret", &[], Grant::Uid(7));
    let name = image.origin.split_once("://").map_or(image.origin.as_str(), |(_, name)| name).to_owned();
    let other_platform = if image.platform.to_string() == "linux/arm64" { "linux/amd64" } else { "linux/arm64" };
    let check = |cache: &Cache| {
        assert!(cache.may_use(7, &image.key, &name, &image.platform));
        assert!(!cache.may_use(8, &image.key, &name, &image.platform), "not earned");
        assert!(!cache.may_use(0, &image.key, &name, &image.platform), "root has to earn it too");
        assert!(!cache.may_use(7, &image.key, "registry.example/other", &image.platform), "another origin");
        assert!(!cache.may_use(7, &image.key, &name, &other_platform.parse().unwrap()), "another platform");
        assert!(!cache.may_use(7, &image_meta("none", &[]).key, &name, &image.platform), "not there");
    };
    check(&cache);
    drop(cache);
    // The next daemon knows it from the sidecars.
    let cache = open(&root);
    check(&cache);
    assert!(cache.add_image_grant(&image.key, Grant::Public, None).unwrap());
    assert!(cache.may_use(8, &image.key, &name, &image.platform));
    cache.inner.remove(&EntryId::Image(image.key)).unwrap();
    assert!(
        !cache.may_use(7, &image.key, &name, &image.platform) && !cache.may_use(8, &image.key, &name, &image.platform)
    );
}

#[test]
fn listings_tell_nothing_about_others() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let (shared, secret) = (put_pack(&cache, b"shared", Grant::Public), put_pack(&cache, b"secret", Grant::Uid(8)));
    let public = put_image(&cache, "public", &[&shared], Grant::Public);
    put_image(&cache, "private", &[&shared, &secret], Grant::Uid(8));
    cache.add_image_grant(&public.key, Grant::Uid(8), None).unwrap();
    let own = cache.list(Viewer::Uid(7)).unwrap();
    assert_eq!(own.len(), 4, "one image, one pack, manifest and config: {own:#?}");
    for entry in &own {
        assert!(entry.public && entry.uids.is_empty() && entry.last_used.is_none(), "{entry:?}");
        assert!(entry.used_by <= 1, "the private image counts: {entry:?}");
    }
    assert_eq!(cache.list(Viewer::Uid(8)).unwrap().len(), 8);
    let all = cache.list(Viewer::All).unwrap();
    assert_eq!(all.iter().find(|entry| entry.id == super::super::model::Meta::id(&shared)).unwrap().used_by, 2);
    let totals = cache.totals(Viewer::All).unwrap();
    assert_eq!((totals.images, totals.packs, totals.blobs), (2, 2, 4));
    assert_eq!((totals.image_bytes, totals.pack_bytes, totals.shared_bytes), (13, 12, 6));
    // What two may use counts for both.
    let usage = |grant, images, image_bytes| Usage { grant, images, image_bytes, packs: 1, pack_bytes: 6 };
    assert_eq!(totals.usage, [usage(Grant::Public, 1, 6), usage(Grant::Uid(8), 2, 13)]);
    cache.count(7, 9);
    let own = cache.totals(Viewer::Uid(7)).unwrap();
    assert_eq!((own.images, own.packs, own.blobs, own.shared_bytes), (1, 1, 2, 0));
    assert_eq!((own.fetched_bytes, own.reused_bytes, own.usage), (0, 0, Vec::new()), "figures of others");
}

#[test]
fn names_that_others_gave_an_image_are_theirs() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let meta = put_image(&cache, "image", &[&put_pack(&cache, b"a", Grant::Uid(7))], Grant::Uid(7));
    cache.add_image_grant(&meta.key, Grant::Uid(8), Some("registry.example/image:other")).unwrap();
    let references = |viewer| cache.list(viewer).unwrap()[0].references.clone();
    assert_eq!(references(Viewer::Uid(7)), [""; 0]);
    assert_eq!(references(Viewer::All).last().unwrap(), "registry.example/image:other");
}

#[test]
fn leases_belong_to_a_user_or_to_everybody() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let (key, manifest) = (image_meta("one", &[]).key, Digest::of(b"m"));
    let (host, other) = (Platform::host(), "s390x".parse().unwrap());
    cache.put_lease(Grant::Public, "r", &host, key, manifest, Duration::from_secs(60));
    assert!(cache.lease(7, "r", &host).is_some() && cache.lease(7, "r", &other).is_none());
    let own = ImageKey::new("own", &manifest, "p");
    cache.put_lease(Grant::Uid(7), "r", &host, own, manifest, Duration::from_secs(60));
    assert_eq!(cache.lease(7, "r", &host).unwrap().key, own);
    assert_eq!(cache.lease(8, "r", &host).unwrap().key, key);
}

#[test]
fn folders_are_closed_to_others_and_published_files_read_only() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("deep/cache");
    let cache = open(&root);
    let layer = put_pack(&cache, b"layer", Grant::Public);
    for folder in ["", "oci", "oci/blobs", "oci/blobs/sha256", "packs", "sif", "tmp"] {
        assert_eq!(fs::metadata(root.join(folder)).unwrap().mode() & 0o777, 0o700, "{folder:?}");
    }
    for name in names_in(&root.join("packs")) {
        assert_eq!(fs::metadata(root.join("packs").join(name)).unwrap().mode() & 0o777, 0o444);
    }
    let found = cache.find_pack(&layer.diff_id, PROFILE, 1).unwrap().unwrap();
    let flags = rustix::fs::fcntl_getfl(&found.file).unwrap();
    assert_eq!(flags & rustix::fs::OFlags::ACCMODE, rustix::fs::OFlags::RDONLY);
}

#[test]
fn a_root_that_others_may_write_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    for (part, mode) in [("", 0o770), ("", 0o707), ("packs", 0o777), ("oci/blobs", 0o720)] {
        let root = temp.path().join(format!("cache{mode:o}"));
        fs::create_dir_all(root.join(part)).unwrap();
        let path = root.join(part);
        // Not `create_dir` with a mode, which the umask would narrow.
        for ancestor in path.ancestors().take_while(|at| at.starts_with(&root)) {
            fs::set_permissions(ancestor, fs::Permissions::from_mode(0o700)).unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = Cache::open(options(&root)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{part:?} {mode:o}: {error}");
    }
}

#[test]
fn a_folder_of_the_cache_may_not_be_a_symlink() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    fs::create_dir_all(temp.path().join("elsewhere")).unwrap();
    fs::create_dir_all(&root).unwrap();
    std::os::unix::fs::symlink("../elsewhere", root.join("sif")).unwrap();
    assert!(Cache::open(options(&root)).is_err());
}

#[test]
fn privileged_a_root_that_another_user_owns_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to give a folder away");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(65534), None).unwrap();
    assert_eq!(Cache::open(options(&root)).unwrap_err().kind(), ErrorKind::Denied);
}

#[test]
fn one_daemon_per_cache() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let first = open(&root);
    assert_eq!(Cache::open(options(&root)).unwrap_err().kind(), ErrorKind::Unavailable);
    drop(first);
    open(&root);
}
