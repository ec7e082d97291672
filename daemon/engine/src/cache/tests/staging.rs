//! Files on their way: who may write them, and until when.

use std::{os::unix::fs::MetadataExt, time::Instant};

use sctl_common::ErrorKind;

use super::*;

#[test]
fn what_is_not_published_goes() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let staged = cache.stage(StageKind::Pack).unwrap();
    assert_eq!(staged.file().metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(names_in(&root.join("tmp")).len(), 1);
    drop(staged);
    let kept = sealed(&cache, StageKind::Image, b"no entry").into_file();
    assert_eq!(names_in(&root.join("tmp")), [""; 0]);
    assert_eq!(bytes_of(&kept), b"no entry", "the file lives while it is open");
}

#[test]
fn a_leftover_writer_keeps_a_file_from_being_published() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let staged = cache.stage(StageKind::Pack).unwrap();
    let writer = staged.writer().unwrap();
    let error = staged.seal().unwrap_err();
    assert!(matches!(error, CacheError::WriterLeft { what: "pack" }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(names_in(&root.join("tmp")), [""; 0]);
    drop(writer);
}

#[test]
fn a_writer_that_is_just_going_is_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let staged = cache.stage(StageKind::Pack).unwrap();
    let writer = staged.writer().unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(150));
            drop(writer);
        });
        staged.seal().unwrap();
    });
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[test]
fn a_staged_file_survives_a_clean_and_a_collection() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let staged = cache.stage(StageKind::Pack).unwrap();
    staged.file().write_all(b"layer").unwrap();
    cache.clean(Viewer::All, false, &|_| false).unwrap();
    cache.collect(u64::MAX, &|_| false).unwrap();
    let meta = pack_meta(b"layer");
    cache.publish_pack(staged.seal().unwrap(), &meta, Grant::Public).unwrap();
    assert!(cache.find_pack(&meta.diff_id, PROFILE, 1).unwrap().is_some());
}

#[test]
fn blobs_are_checked_on_their_way_in_and_out() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    let digest = Digest::of(b"manifest");
    let error = cache.publish_blob(&digest, b"other").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(cache.read_blob(&digest).unwrap(), None);
    cache.publish_blob(&digest, b"manifest").unwrap();
    assert_eq!(cache.read_blob(&digest).unwrap().as_deref(), Some(&b"manifest"[..]));
    let path = root.join("oci/blobs/sha256").join(digest.hex());
    fs::remove_file(&path).unwrap();
    fs::write(&path, "manifesT").unwrap();
    assert_eq!(cache.read_blob(&digest).unwrap(), None);
    assert!(!path.exists(), "the damaged blob is gone");
    cache.publish_blob(&digest, b"manifest").unwrap();
    assert!(cache.has_blob(&digest));
}

#[test]
fn privileged_a_job_of_another_uid_can_write_its_descriptor_but_never_open_it_again() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to run a process as another user");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&temp.path().join("cache"));
    let staged = cache.stage(StageKind::Pack).unwrap();
    let status = std::process::Command::new("/bin/sh")
        .args(["-c", "printf layer >&0 && ! printf more >>/proc/self/fd/0"])
        .stdin(staged.writer().unwrap())
        .stderr(std::process::Stdio::null())
        .uid(65534)
        .gid(65534)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(bytes_of(staged.seal().unwrap().file()), b"layer");
}
