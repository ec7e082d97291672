//! Tests of the cache as a whole. Each works in a temporary folder; those
//! that kill a process re-execute this test binary.

mod clean;
mod crash;
mod layout;
mod recovery;
mod rights;
mod staging;

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use sctl_common::{DiffId, Digest, Platform};

use super::*;

pub(super) const PROFILE: &str = "v1-zstd3-128k-zstd1.5.7";
pub(super) const ORIGIN: &str = "docker://registry.example/tools/aligner";

/// Options whose worker does nothing unless asked.
pub(super) fn options(root: &Path) -> CacheOptions {
    // Root runs the system mode's stricter rules.
    let mode = if rustix::process::geteuid().is_root() { CacheMode::System } else { CacheMode::User };
    CacheOptions { sync_delay: Duration::from_secs(3600), min_free_percent: 0, ..CacheOptions::new(root, mode) }
}

pub(super) fn open(root: &Path) -> Cache {
    Cache::open(options(root)).unwrap()
}

pub(super) fn pack_meta(content: &[u8]) -> PackMeta {
    PackMeta {
        diff_id: DiffId::new(Digest::of(content)),
        profile_id: PROFILE.to_owned(),
        blobs: vec![Digest::of(&[content, b"blob"].concat())],
        tar_bytes: 10_240,
        origins: vec![ORIGIN.to_owned()],
    }
}

pub(super) fn image_meta(name: &str, packs: &[&PackMeta]) -> ImageMeta {
    let (manifest, config) = (manifest_of(name), config_of(name));
    ImageMeta {
        key: ImageKey::new(ORIGIN, &Digest::of(&manifest), PROFILE),
        origin: ORIGIN.to_owned(),
        references: vec![format!("registry.example/tools/aligner:{name}")],
        manifest: Digest::of(&manifest),
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        manifest_size_bytes: manifest.len() as u64,
        config: Digest::of(&config),
        platform: Platform::host(),
        profile_id: PROFILE.to_owned(),
        partition: None,
        special_files: false,
        ids: None,
        layers: packs
            .iter()
            .map(|pack| ImageLayer { digest: pack.blobs[0], diff_id: pack.diff_id, size_bytes: 5000 })
            .collect(),
    }
}

pub(super) fn manifest_of(name: &str) -> Vec<u8> {
    format!("{{\"manifest\":\"{name}\"}}").into_bytes()
}

pub(super) fn config_of(name: &str) -> Vec<u8> {
    format!("{{\"config\":\"{name}\"}}").into_bytes()
}

pub(super) fn sealed(cache: &Cache, kind: StageKind, bytes: &[u8]) -> Sealed {
    let staged = cache.stage(kind).unwrap();
    let mut file = staged.file();
    file.write_all(bytes).unwrap();
    staged.seal().unwrap()
}

/// Publishes a pack whose bytes are its content's.
pub(super) fn put_pack(cache: &Cache, content: &[u8], grant: Grant) -> PackMeta {
    let meta = pack_meta(content);
    cache.publish_pack(sealed(cache, StageKind::Pack, content), &meta, grant).unwrap();
    meta
}

/// Publishes an image whose bytes are its name's.
pub(super) fn put_image(cache: &Cache, name: &str, packs: &[&PackMeta], grant: Grant) -> ImageMeta {
    let meta = image_meta(name, packs);
    let blobs: [&[u8]; 2] = [&manifest_of(name), &config_of(name)];
    cache.publish_image(sealed(cache, StageKind::Image, name.as_bytes()), &meta, grant, &blobs).unwrap();
    meta
}

pub(super) fn bytes_of(mut file: &fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

pub(super) fn names_in(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// No half entry, no leftover, and a layout that other tools can read.
pub(super) fn assert_sound(root: &Path) {
    assert_eq!(names_in(&root.join("tmp")), [""; 0], "leftovers");
    for (folder, extension) in [("packs", "pack"), ("sif", "sif")] {
        let names = names_in(&root.join(folder));
        for name in &names {
            let (stem, found) = name.rsplit_once('.').unwrap();
            let twin = if found == "json" { extension } else { "json" };
            assert!(names.contains(&format!("{stem}.{twin}")), "{folder}/{name} is half an entry");
        }
    }
    for name in names_in(&root.join("oci/blobs/sha256")) {
        assert_eq!(Digest::of(&fs::read(root.join("oci/blobs/sha256").join(&name)).unwrap()).hex(), name);
    }
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(root.join("oci").join(name)).unwrap()).unwrap()
    };
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let images = names_in(&root.join("sif")).iter().filter(|name| name.ends_with(".sif")).count();
    let index = json("index.json");
    let named: std::collections::BTreeSet<_> =
        index["manifests"].as_array().unwrap().iter().map(|entry| entry["digest"].as_str().unwrap()).collect();
    assert_eq!(named.len(), images, "the layout names other images than there are");
}
