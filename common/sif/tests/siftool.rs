//! The established tool reads what we write, and we read what it writes.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Output},
};

use sctl_common::Digest;
use sctl_sif::{Arch, Builder, DataType, FsType, NewObject, Options, PartitionKind, SifFile, SifId};

/// Runs `siftool`, or says loudly that it is not there.
fn siftool(args: &[&str], file: &Path) -> Option<Output> {
    // Where `tests/install.sh` puts it, unless the system has one.
    let state = std::env::var_os("SCTL_TEST_STATE").unwrap_or_else(|| "/var/cache/sctl-tests".into());
    let built = Path::new(&state).join("bin/siftool");
    let program = if built.exists() { built.as_path() } else { Path::new("siftool") };
    let Ok(output) = Command::new(program).args(args).arg(file).output() else {
        eprintln!("SKIPPED: siftool is not installed");
        return None;
    };
    assert!(output.status.success(), "siftool {args:?}: {output:?}");
    Some(output)
}

fn write_sif(path: &Path) {
    let mut builder = Builder::new(Options::new(SifId::derived(&Digest::of(b"x")), 1_627_913_376)).unwrap();
    builder.add(NewObject::new(DataType::DefFile, ""), b"bootstrap: docker\nfrom: x\n\n".to_vec()).unwrap();
    builder.add(NewObject::new(DataType::GenericJson, "oci-config.json"), b"{}".to_vec()).unwrap();
    let slot = builder.start_partition(FsType::Squashfs, PartitionKind::Primary).unwrap();
    let file = File::create(path).unwrap();
    file.write_all_at(&[0x5A; 8192], slot.offset).unwrap();
    builder.finish_partition(slot, 8192, Arch::from_name("arm64").unwrap()).unwrap();
    for piece in builder.finish().unwrap().pieces {
        file.write_all_at(&piece.bytes, piece.offset).unwrap();
    }
}

#[test]
fn siftool_reads_our_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ours.sif");
    write_sif(&path);
    let Some(header) = siftool(&["header"], &path) else { return };
    let header = String::from_utf8(header.stdout).unwrap();
    for line in [
        "Primary Architecture: arm64",
        "ID:                   2d711642-b726-8044-8162-7ca9fbac32f5",
        "Created At:           2021-08-02 14:09:36 +0000 UTC",
        "Descriptors Free:     45",
    ] {
        assert!(header.lines().any(|found| found == line), "{line} is not in:\n{header}");
    }
    let list = String::from_utf8(siftool(&["list"], &path).unwrap().stdout).unwrap();
    let sif = SifFile::read(&mut File::open(&path).unwrap()).unwrap();
    for descriptor in sif.descriptors() {
        let place = format!("|{}-{}", descriptor.offset(), descriptor.end());
        let row = list.lines().find(|row| row.starts_with(&format!("{} ", descriptor.id()))).unwrap();
        assert!(row.contains(&place) && row.ends_with(&format!("|{}", descriptor.type_label())), "{row}");
    }
    assert_eq!(siftool(&["dump", "3"], &path).unwrap().stdout, vec![0x5A; 8192]);
}

#[test]
fn we_read_files_that_siftool_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, extra) = (folder.path().join("changed.sif"), folder.path().join("extra.txt"));
    write_sif(&path);
    File::create(&extra).unwrap().write_all(b"hello").unwrap();
    let add = ["add", "--datatype", "7", "--groupid", "1", "--filename", "extra.txt", path.to_str().unwrap()];
    if siftool(&add, &extra).is_none() {
        return;
    }
    siftool(&["del", "2"], &path).unwrap();
    let mut file = File::open(&path).unwrap();
    let sif = SifFile::read(&mut file).unwrap();
    assert_eq!(sif.descriptors().iter().map(|descriptor| descriptor.id()).collect::<Vec<_>>(), [1, 3, 4]);
    let added = sif.by_name(DataType::Generic, "extra.txt").unwrap();
    assert_eq!(sif.read_object(&mut file, added, 100).unwrap(), b"hello");
}
