//! What files hold, and what an image must not hold.

use sctl_common::{Compression, Limits, Profile};
use sctl_pack::{IfExists, PackOptions, Tree};
use sctl_squashfs::{BlockDecompressor, CompressorId};

use crate::support::*;

#[test]
fn files_of_every_length_around_blocks_come_back() {
    let mut layer = Layer::new();
    let lengths = [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1, 10 * BLOCK + 17];
    for (seed, len) in lengths.into_iter().enumerate() {
        layer = layer.file(&format!("f{len}"), &sample(seed as u64, len));
    }
    let files = read(&image([layer]));
    for (seed, len) in lengths.into_iter().enumerate() {
        assert!(contents(&files, &format!("f{len}")) == sample(seed as u64, len), "{len}");
    }
    let found = &files["f100"];
    assert_eq!((found.mode, found.uid, found.gid, found.mtime), (0o644, 1000, 100, 0o13_000_000_000));
}

#[test]
fn zeros_are_sparse_wherever_they_are() {
    let zeros = vec![0; 3 * BLOCK];
    let cases = [
        ("all", zeros.clone()),
        ("one", vec![0; BLOCK]),
        ("small", vec![0; 100]),
        ("odd", vec![0; BLOCK + 100]),
        ("head", [&zeros[..], &sample(1, BLOCK + 5)].concat()),
        ("middle", [&sample(2, BLOCK)[..], &zeros, &sample(3, BLOCK)].concat()),
        ("tail", [&sample(4, BLOCK)[..], &zeros, &[0; 10]].concat()),
    ];
    let layer = cases.iter().fold(Layer::new(), |layer, (name, bytes)| layer.file(name, bytes));
    let packs = [layer.pack()];
    let (bytes, summary) = assemble_tree(&merge(&packs), &packs, 2);
    let files = read(&bytes);
    for (name, expected) in &cases {
        assert!(contents(&files, name) == expected, "{name}");
    }
    assert!(summary.copied_bytes < 5 * BLOCK as u64, "{summary:?}");
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let layer = |offset: u64| {
        (0..300u64)
            .fold(Layer::new(), |layer, i| {
                let seed = i % 250 + offset;
                let len = (seed * seed * 7) as usize % (3 * BLOCK);
                layer.file(&format!("d{}/f{}", i % 7, i + offset), &sample(seed, len))
            })
            .finish()
    };
    // The last layer takes a small file out of its fragment block.
    let layers = [layer(0), layer(100), Layer::new().file("d4/.wh.f60", b"").finish()];
    let mut expected = None;
    for count in [1, 2, 4, 9] {
        let packs: Vec<_> = layers.iter().map(|layer| pack(layer, &options(count)).unwrap().0).collect();
        let (bytes, summary) = assemble_tree(&merge(&packs), &packs, count);
        assert!(summary.rewritten_bytes > 0 && summary.copied_bytes > 0, "{summary:?}");
        assert!(*expected.get_or_insert_with(|| (packs.clone(), bytes.clone())) == (packs, bytes), "{count} threads");
    }
}

#[test]
fn compressed_layers_give_the_same_pack_as_plain_ones() {
    use std::io::Write;
    let layer = Layer::new().file("a", &sample(1, 50_000)).file("b", b"x").finish();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&layer).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::bulk::compress(&layer, 3).unwrap();
    let (plain, summary) = pack(&layer, &options(2)).unwrap();
    for blob in [gzip, zstd] {
        let (packed, other) = pack(&blob, &options(2)).unwrap();
        assert!(packed == plain);
        assert_eq!((other.diff_id, other.blob_bytes), (summary.diff_id, blob.len() as u64));
    }
    assert_eq!(summary.diff_id.digest(), &sctl_common::Digest::of(&layer));
}

#[test]
fn the_diff_id_covers_what_follows_the_end_marker() {
    let mut layer = Layer::new().file("a", b"x").finish();
    layer.extend_from_slice(&sample(1, 1_000_000));
    let (_, summary) = pack(&layer, &options(2)).unwrap();
    assert_eq!(summary.diff_id.digest(), &sctl_common::Digest::of(&layer));
    assert_eq!((summary.tar_bytes, summary.entries), (layer.len() as u64, 1));
}

/// Whether `needle` is in the image, as it is or in anything that decodes
/// anywhere in it.
fn holds(image: &[u8], needle: &[u8]) -> bool {
    let is_in = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let mut decompressor = BlockDecompressor::new(CompressorId::Zstd).unwrap();
    let mut out = vec![0; 1 << 20];
    let frames = (0..image.len().saturating_sub(4)).filter(|at| image[*at..].starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let decoded = frames.filter_map(|at| {
        let len = zstd::zstd_safe::find_frame_compressed_size(&image[at..]).ok()?;
        let len = decompressor.decode_into(&image[at..at + len], &mut out).ok()?;
        Some(out[..len].to_vec())
    });
    is_in(image) || decoded.into_iter().any(|bytes| is_in(&bytes))
}

#[test]
fn nothing_deleted_remains() {
    const SECRET: &[u8] = b"correct horse battery staple";
    let secret_of = |len: usize| {
        let mut bytes = sample(9, len);
        bytes[len / 2..][..SECRET.len()].copy_from_slice(SECRET);
        bytes
    };
    for len in [100, BLOCK, 5 * BLOCK + 100] {
        let lower = || {
            let layer = (0..40).fold(Layer::new(), |layer, i| layer.file(&format!("k/a{i}"), &sample(i, 300)));
            let layer = layer.file("d/secret", &secret_of(len)).symlink("l", "d");
            (0..40).fold(layer, |layer, i| layer.file(&format!("k/b{i}"), &sample(100 + i, 300)))
        };
        assert!(holds(&image([lower()]), SECRET), "the search finds it where it is");
        assert!(holds(&lower().pack(), SECRET));
        let uppers = [
            ("deleted", Layer::new().file("d/.wh.secret", b"")),
            ("deleted with its directory", Layer::new().file(".wh.d", b"")),
            ("opaque", Layer::new().file("d/.wh..wh..opq", b"")),
            ("replaced", Layer::new().file("d/secret", b"public")),
            ("replaced by a directory", Layer::new().dir("d/secret")),
            ("replaced by a symlink", Layer::new().symlink("d", "k")),
            ("deleted through a symlink", Layer::new().file("l/.wh.secret", b"")),
        ];
        for (name, upper) in uppers {
            let image = image([lower(), upper]);
            assert!(!holds(&image, SECRET), "{name}, {len} bytes");
            let files = read(&image);
            for i in 0..40 {
                assert!(contents(&files, &format!("k/a{i}")) == sample(i, 300), "{name} {i}");
                assert!(contents(&files, &format!("k/b{i}")) == sample(100 + i, 300), "{name} {i}");
            }
        }
        let same_layer = lower().file("d/secret", b"public");
        assert!(!holds(&image([same_layer]), SECRET), "replaced in its own layer, {len} bytes");
        let linked = [lower(), Layer::new().hard_link("h", "d/secret"), Layer::new().file("d/.wh.secret", b"")];
        assert!(holds(&image(linked), SECRET), "a hard link keeps it");
    }
}

#[test]
fn equal_contents_are_stored_once_across_layers() {
    for len in [200, BLOCK, 20 * BLOCK + 7] {
        let bytes = sample(5, len);
        let one = image([Layer::new().file("a", &bytes)]);
        let lower = Layer::new().file("a", &bytes).file("b", &bytes);
        let upper = Layer::new().file("c", &bytes).file("other", &sample(6, 50));
        let packs = [lower.pack(), upper.pack()];
        let (three, summary) = assemble_tree(&merge(&packs), &packs, 2);
        assert!(three.len() <= one.len() + BLOCK, "{len}: {} and {}", one.len(), three.len());
        assert!(summary.duplicate_bytes >= len as u64);
        let files = read(&three);
        for name in ["a", "b", "c"] {
            assert!(contents(&files, name) == bytes, "{len} {name}");
        }
        assert_eq!(contents(&files, "other"), sample(6, 50));
    }
}

#[test]
fn small_duplicates_are_dropped_before_they_are_compressed() {
    let layer = (0..500).fold(Layer::new(), |layer, i| layer.file(&format!("f{i}"), &sample(i % 2, BLOCK - 1000)));
    let single = Layer::new().file("a", &sample(0, BLOCK - 1000)).file("b", &sample(1, BLOCK - 1000)).pack();
    let pack = layer.pack();
    assert!(pack.len() < single.len() + 10_000, "{} and {}", pack.len(), single.len());
    let blocks = (0..50).fold(Layer::new(), |layer, i| layer.file(&format!("f{i}"), &sample(0, BLOCK))).pack();
    assert!(blocks.len() < 2 * BLOCK, "{}", blocks.len());
}

#[test]
fn neighbours_are_copied_in_one_go() {
    let layer = (0..200).fold(Layer::new(), |layer, i| layer.file(&format!("f{i}"), &sample(i, 3 * BLOCK)));
    let packs = [layer.pack()];
    let tree = merge(&packs);
    let mut out = Memory { bytes: Vec::new(), packs: &packs, copies: 0 };
    let options = sctl_pack::AssembleOptions { profile: profile(), mkfs_time: 0, threads: threads(1) };
    sctl_pack::assemble(&tree, &packs, &mut out, &options, &|_, _| ()).unwrap();
    assert_eq!(out.copies, 1);
}

#[test]
fn additions_are_stored_like_everything_else() {
    let packs = [Layer::new().file("a", b"shared bytes").file("etc/hosts", b"127.0.0.1").pack()];
    let mut tree = merge(&packs);
    let large = sample(3, 5 * BLOCK + 1);
    tree.add_directory(b".singularity.d", 0o755, IfExists::Replace).unwrap();
    tree.add_file(b".singularity.d/run", 0o755, b"#!/bin/sh\n".to_vec(), IfExists::Replace).unwrap();
    tree.add_file(b"large", 0o644, large.clone(), IfExists::Replace).unwrap();
    tree.add_file(b"large2", 0o644, large.clone(), IfExists::Replace).unwrap();
    tree.add_file(b"block", 0o644, sample(4, BLOCK), IfExists::Replace).unwrap();
    tree.add_file(b"same", 0o644, b"shared bytes".to_vec(), IfExists::Replace).unwrap();
    tree.add_file(b"zeros", 0o644, vec![0; 2 * BLOCK], IfExists::Replace).unwrap();
    tree.add_file(b"gone", 0o644, b"replaced secret".to_vec(), IfExists::Replace).unwrap();
    tree.add_file(b"gone", 0o644, b"".to_vec(), IfExists::Replace).unwrap();
    tree.add_symlink(b"run", b".singularity.d/run", IfExists::Keep).unwrap();
    assert!(!tree.add_file(b"etc/hosts", 0o644, Vec::new(), IfExists::Keep).unwrap());
    let (image, _) = assemble_tree(&tree, &packs, 2);
    let files = read(&image);
    assert_eq!(contents(&files, ".singularity.d/run"), b"#!/bin/sh\n");
    assert!(contents(&files, "large") == large && contents(&files, "large2") == large);
    assert!(contents(&files, "block") == sample(4, BLOCK));
    assert_eq!(contents(&files, "same"), b"shared bytes");
    assert_eq!(contents(&files, "zeros"), vec![0; 2 * BLOCK]);
    assert_eq!(contents(&files, "etc/hosts"), b"127.0.0.1");
    assert_eq!(files["run"].what, What::Symlink(b".singularity.d/run".to_vec()));
    assert!(!holds(&image, b"replaced secret"));
    let run = &files[".singularity.d/run"];
    assert_eq!((run.mode, run.uid, run.gid, run.mtime), (0o755, 0, 0, MKFS_TIME));
}

#[test]
fn every_profile_gives_a_readable_image() {
    for (compression, block_size) in [
        (Compression::Gzip { level: 1 }, 8192),
        (Compression::Gzip { level: 9 }, 131_072),
        (Compression::Zstd { level: 1 }, 131_072),
        (Compression::Zstd { level: 15 }, 1 << 20),
    ] {
        let profile = Profile { compression, block_size };
        let pack_options = PackOptions { profile, limits: Limits::default(), threads: threads(2) };
        let layers = [
            Layer::new().file("a", &sample(1, 300_000)).file("b", &sample(2, 300)).file("c", b"dead").finish(),
            Layer::new().file(".wh.c", b"").finish(),
        ];
        let packs = layers.map(|layer| pack(&layer, &pack_options).unwrap().0);
        let indexes =
            packs.each_ref().map(|pack| sctl_pack::PackIndex::read(pack, &profile, &Limits::default()).unwrap());
        let tree = Tree::merge(&indexes, &Limits::default()).unwrap();
        let mut out = Memory { bytes: Vec::new(), packs: &packs, copies: 0 };
        let options = sctl_pack::AssembleOptions { profile, mkfs_time: 0, threads: threads(2) };
        sctl_pack::assemble(&tree, &packs, &mut out, &options, &|_, _| ()).unwrap();
        let files = read(&out.bytes);
        assert!(contents(&files, "a") == sample(1, 300_000) && contents(&files, "b") == sample(2, 300), "{profile:?}");
        assert!(!files.contains_key("c"));
    }
}
