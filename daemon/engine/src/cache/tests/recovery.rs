//! Lost power, lost databases, damaged and foreign files.

use super::*;

fn next_boot(root: &Path) -> CacheOptions {
    let host = HostId { boot_id: "ffffffff-0000-0000-0000-000000000000".to_owned(), ..HostId::current() };
    CacheOptions { host: Some(host), ..options(root) }
}

fn visible(cache: &Cache) -> Vec<EntryInfo> {
    cache.list(Viewer::All).unwrap()
}

#[test]
fn entries_of_another_boot_are_kept_only_if_durable_or_verified() {
    type Judge = Option<fn(Unverified<'_>) -> bool>;
    let yes: Judge = Some(|entry| bytes_of(entry.file).len() as u64 == entry.size_bytes);
    let no: Judge = Some(|_| false);
    for (name, settled, judge, kept) in [
        ("durable", true, no, true),
        ("durable, nobody asked", true, None, true),
        ("not durable, verified", false, yes, true),
        ("not durable, refused", false, no, false),
        ("not durable, nobody asked", false, None, false),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("cache");
        let cache = open(&root);
        let layer = put_pack(&cache, b"layer", Grant::Public);
        let image = put_image(&cache, "one", &[&layer], Grant::Public);
        if settled {
            cache.settle();
        }
        drop(cache);
        let verify = judge.map(|judge| Arc::new(judge) as Arc<Verify>);
        let cache = Cache::open(CacheOptions { verify, ..next_boot(&root) }).unwrap();
        assert_eq!(cache.find_pack(&layer.diff_id, PROFILE, 1).unwrap().is_some(), kept, "{name}");
        assert_eq!(cache.find_image(&image.key).unwrap().is_some(), kept, "{name}");
        assert_sound(&root);
    }
}

#[test]
fn a_restart_in_the_same_boot_makes_durable_what_the_last_one_did_not() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let layer = put_pack(&open(&root), b"layer", Grant::Public);
    open(&root).settle();
    let cache = Cache::open(next_boot(&root)).unwrap();
    assert!(cache.find_pack(&layer.diff_id, PROFILE, 1).unwrap().is_some());
}

#[test]
fn entries_of_other_hosts_outlive_a_reboot_of_ours() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let user = |host: &str, boot: &str| CacheOptions {
        mode: CacheMode::User,
        host: Some(HostId { host: host.to_owned(), boot_id: boot.to_owned() }),
        ..options(&root)
    };
    let theirs = Cache::open(user("theirs", "11111111-x")).unwrap();
    let layer = put_pack(&theirs, b"layer", Grant::Public);
    let ours = Cache::open(user("ours", "22222222-x")).unwrap();
    assert!(ours.find_pack(&layer.diff_id, PROFILE, 1).unwrap().is_some(), "both are open at once");
    drop(ours);
    let ours = Cache::open(user("ours", "33333333-x")).unwrap();
    assert!(ours.find_pack(&layer.diff_id, PROFILE, 1).unwrap().is_some());
}

#[test]
fn a_lost_or_damaged_database_changes_no_answer() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let layer = put_pack(&cache, b"layer", Grant::Uid(7));
    let image = put_image(&cache, "one", &[&layer], Grant::Public);
    cache.count(100, 50);
    cache.settle();
    let before = visible(&cache);
    drop(cache);
    let database = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("state"))
        .unwrap();
    let whole = fs::read(&database).unwrap();
    let mut cases: Vec<(String, Option<Vec<u8>>)> = vec![
        ("lost".into(), None),
        ("empty".into(), Some(Vec::new())),
        ("text".into(), Some(b"not a database at all".to_vec())),
        ("zeros".into(), Some(vec![0; whole.len()])),
        ("good magic, then zeros".into(), Some([&whole[..64], &vec![0; whole.len() - 64]].concat())),
    ];
    for len in [1, 9, 100, 4095, 4096, 8192, whole.len() / 2, whole.len() - 1] {
        cases.push((format!("cut to {len}"), Some(whole[..len].to_vec())));
    }
    for at in (0..whole.len()).step_by(whole.len() / 61 + 1) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        cases.push((format!("byte {at} flipped"), Some(bytes)));
    }
    for (name, bytes) in cases {
        match bytes {
            Some(bytes) => fs::write(&database, bytes).unwrap(),
            None => fs::remove_file(&database).unwrap(),
        }
        let cache = open(&root);
        assert_eq!(visible(&cache), before, "{name}");
        assert!(cache.find_image(&image.key).unwrap().is_some(), "{name}");
        cache.count(1, 1);
        cache.settle();
        let counted = cache.totals(Viewer::All).unwrap().fetched_bytes;
        drop(cache);
        assert_eq!(open(&root).totals(Viewer::All).unwrap().fetched_bytes, counted, "{name}: a good one follows");
        // The visit has changed the last use.
        for entry in &before {
            let id = entry.id.to_string();
            let Some((kind, stem)) = id.split_once('/') else { unreachable!("{id}") };
            let folder = match kind {
                "pack" => "packs",
                "image" => "sif",
                _ => continue,
            };
            let sidecar = fs::File::open(root.join(folder).join(format!("{stem}.json"))).unwrap();
            let used = Duration::from_secs(entry.last_used.unwrap() as u64);
            sidecar.set_modified(SystemTime::UNIX_EPOCH + used).unwrap();
        }
    }
}

#[test]
fn a_database_of_another_version_is_begun_anew() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    cache.count(5, 5);
    drop(cache);
    let name = names_in(&root).into_iter().find(|name| name.starts_with("state")).unwrap();
    {
        let database = redb::Database::open(root.join(&name)).unwrap();
        let transaction = database.begin_write().unwrap();
        let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
        transaction.open_table(table).unwrap().insert("schema", 999).unwrap();
        transaction.commit().unwrap();
    }
    let cache = open(&root);
    assert_eq!(cache.totals(Viewer::All).unwrap().fetched_bytes, 0);
    assert!(names_in(&root).contains(&format!("{name}.damaged")));
}

#[test]
fn counters_leases_and_last_use_survive_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let image = put_image(&cache, "one", &[], Grant::Public);
    cache.count(100, 50);
    let platform = Platform::host();
    cache.put_lease(Grant::Uid(7), "r", &platform, image.key, image.manifest, Duration::from_secs(60));
    drop(cache);
    let cache = open(&root);
    let totals = cache.totals(Viewer::All).unwrap();
    assert_eq!((totals.fetched_bytes, totals.reused_bytes), (100, 50));
    assert_eq!(cache.lease(7, "r", &platform).unwrap().key, image.key);
    assert_eq!(cache.lease(8, "r", &platform), None);
    cache.remove_lease(Grant::Uid(7), "r", &platform);
    assert_eq!(cache.lease(7, "r", &platform), None);
}

#[test]
fn damaged_entries_are_absent_and_go() {
    let temp = tempfile::tempdir().unwrap();
    for running in [false, true] {
        for (number, case) in [
            "empty sidecar",
            "cut sidecar",
            "text as sidecar",
            "sidecar of another entry",
            "symlink as sidecar",
            "folder as sidecar",
            "lost sidecar",
            "lost file",
            "cut file",
            "grown file",
            "symlink as file",
            "folder as file",
            "file that others may write",
        ]
        .into_iter()
        .enumerate()
        {
            let root = temp.path().join(format!("{running}{number}"));
            let mut cache = open(&root);
            let (layer, other) = (put_pack(&cache, b"layer", Grant::Public), put_pack(&cache, b"x", Grant::Public));
            cache.settle();
            let path = |meta: &PackMeta, extension: &str| {
                root.join("packs").join(format!("{}-{PROFILE}.{extension}", meta.diff_id.digest().hex()))
            };
            let (file, sidecar) = (path(&layer, "pack"), path(&layer, "json"));
            let text = fs::read(&sidecar).unwrap();
            let replace = |path: &Path, bytes: &[u8]| {
                fs::remove_file(path).unwrap();
                fs::write(path, bytes).unwrap();
            };
            match case {
                "empty sidecar" => replace(&sidecar, b""),
                "cut sidecar" => replace(&sidecar, &text[..text.len() - 3]),
                "text as sidecar" => replace(&sidecar, b"hello"),
                "sidecar of another entry" => replace(&sidecar, &fs::read(path(&other, "json")).unwrap()),
                "symlink as sidecar" => {
                    fs::rename(&sidecar, root.join("packs/aside")).unwrap();
                    std::os::unix::fs::symlink("aside", &sidecar).unwrap();
                }
                "folder as sidecar" => {
                    fs::remove_file(&sidecar).unwrap();
                    fs::create_dir_all(sidecar.join("full")).unwrap();
                }
                "lost sidecar" => fs::remove_file(&sidecar).unwrap(),
                "lost file" => fs::remove_file(&file).unwrap(),
                "cut file" => replace(&file, b"laye"),
                "grown file" => replace(&file, b"layer+"),
                "symlink as file" => {
                    fs::rename(&file, root.join("packs/aside")).unwrap();
                    std::os::unix::fs::symlink("aside", &file).unwrap();
                }
                "folder as file" => {
                    fs::remove_file(&file).unwrap();
                    fs::create_dir_all(file.join("full")).unwrap();
                }
                "file that others may write" => {
                    use std::os::unix::fs::PermissionsExt;
                    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
                }
                _ => unreachable!("{case}"),
            }
            if !running {
                drop(cache);
                cache = open(&root);
            }
            assert!(cache.find_pack(&layer.diff_id, PROFILE, 1).unwrap().is_none(), "{case}, running: {running}");
            assert!(cache.find_pack(&other.diff_id, PROFILE, 1).unwrap().is_some(), "{case}: the neighbour");
            put_pack(&cache, b"layer", Grant::Public);
            let again = cache.find_pack(&layer.diff_id, PROFILE, 1).unwrap();
            assert_eq!(bytes_of(&again.expect(case).file), b"layer", "{case}, running: {running}");
        }
    }
}

#[test]
fn foreign_files_are_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    drop(open(&root));
    let foreign = [
        "packs/README",
        "packs/notes.json",
        "packs/x.pack",
        "sif/mine.sif",
        "tmp/important",
        "tmp/elsewhere-0123abcd-1-2-3.pack",
        "oci/blobs/sha256/short",
        "other",
    ];
    for name in foreign {
        // A name of another host is dead only where no other host can come.
        if name.contains("elsewhere") && options(&root).mode == CacheMode::System {
            continue;
        }
        fs::write(root.join(name), "mine").unwrap();
    }
    fs::create_dir(root.join("sif/folder")).unwrap();
    let cache = open(&root);
    put_image(&cache, "one", &[], Grant::Public);
    assert_eq!(cache.list(Viewer::All).unwrap().len(), 3);
    cache.clean(Viewer::All, false, &|_| false).unwrap();
    drop(cache);
    drop(open(&root));
    for name in foreign {
        assert!(root.join(name).exists() || name.contains("elsewhere"), "{name} is gone");
    }
}

#[test]
fn sidecars_of_a_later_version_are_neither_read_nor_removed() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let layer = put_pack(&cache, b"layer", Grant::Public);
    let sidecar = root.join("packs").join(format!("{}-{PROFILE}.json", layer.diff_id.digest().hex()));
    let text = fs::read_to_string(&sidecar).unwrap().replacen("\"version\": 1", "\"version\": 2", 1);
    fs::remove_file(&sidecar).unwrap();
    fs::write(&sidecar, text).unwrap();
    assert!(cache.find_pack(&layer.diff_id, PROFILE, 1).unwrap().is_none());
    drop(cache);
    drop(open(&root));
    assert!(sidecar.exists());
}
