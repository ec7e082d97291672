//! Limits, and what cannot be stored.

use sctl_common::{ErrorKind, Limits};
use sctl_pack::{PackError, PackIndex};

use crate::support::*;

#[track_caller]
fn refused(layer: Layer, limits: Limits, kind: ErrorKind, message: &str) {
    let error = pack(&layer.finish(), &sctl_pack::PackOptions { limits, ..options(2) }).unwrap_err();
    assert_eq!((error.kind(), &error.to_string()[..]), (kind, message));
}

#[test]
fn limits_are_kept_and_named() {
    let layer = || Layer::new().dir("one").file("two", &[1; 1000]).file("three", &[2; 1000]);
    let limits = Limits::default();
    let exceeded = ErrorKind::LimitExceeded;
    refused(
        layer(),
        Limits { max_entries: 2, ..limits },
        exceeded,
        "layer has more than 2 entries (reached at tar entry \"three\")",
    );
    refused(
        layer(),
        Limits { max_name_bytes: 7, ..limits },
        exceeded,
        "layer has more than 7 bytes of names (reached at tar entry \"three\")",
    );
    let error = pack(
        &layer().finish(),
        &sctl_pack::PackOptions { limits: Limits { max_layer_bytes: 4000, ..limits }, ..options(2) },
    )
    .unwrap_err();
    assert!(matches!(error, PackError::Limit { what: "uncompressed bytes", max: 4000, .. }), "{error}");
    let enough = Limits { max_entries: 3, max_name_bytes: 11, max_layer_bytes: 5632, ..limits };
    assert!(pack(&layer().finish(), &sctl_pack::PackOptions { limits: enough, ..options(2) }).is_ok());
}

#[test]
fn bombs_are_stopped_by_their_ratio() {
    let zeros = vec![0; 1 << 20];
    let header = Layer::new().entry(b'0', b"bomb", b"", 0o644, b"").finish();
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    use std::io::Write;
    bomb.write_all(&header).unwrap();
    for _ in 0..70 {
        bomb.write_all(&zeros).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let error = pack(&bomb, &options(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().starts_with("layer expands more than 500 times"), "{error}");
    let limits = Limits { max_ratio: 5000, ..Limits::default() };
    assert!(pack(&bomb, &sctl_pack::PackOptions { limits, ..options(2) }).is_ok());
}

#[test]
fn holes_count_as_bytes_of_files() {
    let mut header = [0; 512];
    header[..6].copy_from_slice(b"sparse");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(b"00000000000");
    header[156] = b'S';
    header[257..265].copy_from_slice(b"ustar  \0");
    // Eight exabytes, less one byte, of nothing.
    header[483..495].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let error = pack(&Layer::new().raw(&header).finish(), &options(2)).unwrap_err();
    assert!(matches!(error, PackError::Limit { what: "bytes of files", .. }), "{error}");
}

#[test]
fn a_file_of_five_gigabytes_is_sparse_and_cheap() {
    let mut header = [0; 512];
    header[..6].copy_from_slice(b"sparse");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(b"00000000004");
    header[156] = b'S';
    header[257..265].copy_from_slice(b"ustar  \0");
    header[386..397].copy_from_slice(b"50000000000");
    header[398..409].copy_from_slice(b"00000000004");
    header[483..494].copy_from_slice(b"50000000004");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut data = [0; 512];
    data[..4].copy_from_slice(b"tail");
    let packs = [Layer::new().raw(&header).raw(&data).pack()];
    let (image, _) = assemble_tree(&merge(&packs), &packs, 2);
    let reader = sctl_squashfs::reader::Reader::open(&image, 0, Default::default()).unwrap();
    let root = reader.inode(reader.root()).unwrap();
    let file = reader.inode(reader.lookup(&root, b"sparse").unwrap().unwrap()).unwrap();
    let tail_at = 0o50_000_000_000;
    assert_eq!(file.size(), tail_at + 4);
    let mut tail = [1; 6];
    assert_eq!(reader.read(&file, tail_at - 2, &mut tail).unwrap(), 6);
    assert_eq!(&tail, b"\0\0tail");
}

#[test]
fn what_cannot_be_stored_is_refused_by_name() {
    let long_link = "t".repeat(4096);
    let limits = Limits::default();
    refused(
        Layer::new().symlink("s", &long_link),
        limits,
        ErrorKind::Unsupported,
        "tar entry \"s\": target of a symlink of 4096 bytes is longer than 4095 bytes",
    );
    let long = "n".repeat(256);
    let error = pack(&Layer::new().file(&long, b"").finish(), &options(1)).unwrap_err();
    assert!(matches!(error, PackError::BadName { .. }) && error.kind() == ErrorKind::Unsupported, "{error}");
    let deep = "d/".repeat(3000);
    let error = pack(&Layer::new().file(&deep, b"").finish(), &options(1)).unwrap_err();
    assert!(matches!(error, PackError::TooLong { what: "path", .. }), "{error}");
    refused(Layer::new().file(".wh.", b""), limits, ErrorKind::Corrupt, "tar entry \".wh.\": whiteout of nothing");
    refused(
        Layer::new().symlink("./", "x"),
        limits,
        ErrorKind::Corrupt,
        "tar entry \"./\": malicious tar entry -- refusing to change type of root directory",
    );
}

#[test]
fn more_ids_than_squashfs_holds_are_refused() {
    let mut layer = Layer::new();
    for uid in 0..66_000 {
        let uid = uid.to_string();
        layer = layer.raw(&{
            let mut record = format!("00 uid={uid}\n").into_bytes();
            let len = format!("{:02}", record.len());
            record[..2].copy_from_slice(len.as_bytes());
            Layer::new().entry(b'x', b"pax", b"", 0, &record).finish()[..1024].to_vec()
        });
        layer = layer.file(&format!("f{uid}"), b"");
    }
    let packs = [layer.pack()];
    let tree = merge(&packs);
    let mut out = Memory { bytes: Vec::new(), packs: &packs, copies: 0 };
    let options = sctl_pack::AssembleOptions { profile: profile(), mkfs_time: 0, threads: threads(1) };
    let error = sctl_pack::assemble(&tree, &packs, &mut out, &options, &|_, _| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn limits_hold_for_packs_too() {
    let pack = Layer::new().file("a", &[1; 100]).file("b", &[2; 100]).pack();
    let read = |limits: Limits| PackIndex::read(&pack, &profile(), &limits);
    assert!(read(Limits::default()).is_ok());
    for limits in [
        Limits { max_entries: 1, ..Limits::default() },
        Limits { max_layer_bytes: 100, ..Limits::default() },
        Limits { max_entries: 1, max_name_bytes: 1, max_layer_bytes: 1, ..Limits::default() },
    ] {
        assert_eq!(read(limits).unwrap_err().kind(), ErrorKind::LimitExceeded);
    }
}
