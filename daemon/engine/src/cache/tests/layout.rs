//! Established tools read the image layout.

use std::process::Command;

use super::*;

#[test]
fn skopeo_reads_the_layout_by_reference() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cache");
    let cache = open(&root);
    // An empty tar archive.
    let layer = [0u8; 1024];
    let diff_id = Digest::of(&layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{diff_id}","size":1024}}]}}"#,
        Digest::of(config.as_bytes()),
        config.len()
    );
    let meta = ImageMeta {
        manifest: Digest::of(manifest.as_bytes()),
        manifest_size_bytes: manifest.len() as u64,
        config: Digest::of(config.as_bytes()),
        references: vec!["registry.example/tools/aligner:2.1".to_owned()],
        ..image_meta("one", &[])
    };
    cache.publish_blob_file(sealed(&cache, StageKind::Blob, &layer), &diff_id).unwrap();
    let sif = sealed(&cache, StageKind::Image, b"sif");
    cache.publish_image(sif, &meta, Grant::Public, &[manifest.as_bytes(), config.as_bytes()]).unwrap();
    cache.add_image_grant(&meta.key, Grant::Public, Some("registry.example/tools/aligner:latest")).unwrap();
    put_image(&cache, "another", &[], Grant::Public);
    for tag in ["2.1", "latest"] {
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy"])
            .arg(format!("oci:{}:registry.example/tools/aligner:{tag}", root.join("oci").display()))
            .arg(format!("dir:{}", temp.path().join(tag).display()))
            .output()
            .unwrap();
        assert!(copied.status.success(), "{tag}: {}", String::from_utf8_lossy(&copied.stderr));
        assert_eq!(fs::read(temp.path().join(tag).join("manifest.json")).unwrap(), manifest.as_bytes());
    }
}
