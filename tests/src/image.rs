//! Makes OCI images: layers and a configuration, written as an image layout.

use std::{fs, path::Path, process::Command};

use sctl_common::Digest;
use serde_json::{Value, json};

use crate::layer::Layer;

/// An image to be: layers bottom-up and the inner `config` object.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers, the lowest first.
    pub layers: Vec<Layer>,
    /// `Env`, `Entrypoint`, `Cmd`, `Labels`, …
    pub config: Value,
    /// Architecture in Go's words.
    pub architecture: String,
}

impl Image {
    /// An amd64 image with an empty configuration.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers, config: json!({}), architecture: "amd64".to_owned() }
    }

    /// The same image with another inner configuration.
    pub fn config(self, config: Value) -> Self {
        Self { config, ..self }
    }

    /// Writes the image into the layout at `dir` under `tag`; the layout is
    /// made if there is none. Returns the manifest's digest.
    pub fn write_layout(&self, dir: &Path, tag: &str) -> Digest {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("make the layout's folders");
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(blobs.join(digest.hex()), bytes).expect("write a blob");
            digest
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let (bytes, media_type) = layer.blob();
                json!({"mediaType": media_type, "digest": put(&bytes), "size": bytes.len()})
            })
            .collect();
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| Digest::of(&layer.tar)).collect();
        let config = serde_json::to_vec(&json!({
            "created": "2021-02-03T04:05:06Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [],
        }))
        .expect("serialise the config");
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": put(&config),
                "size": config.len(),
            },
            "layers": layers,
        }))
        .expect("serialise the manifest");
        let digest = put(&manifest);
        fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).expect("write oci-layout");
        let index_path = dir.join("index.json");
        let mut index: Value = fs::read(&index_path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_else(|| json!({"schemaVersion": 2, "manifests": []}));
        let manifests = index["manifests"].as_array_mut().expect("the index holds a list");
        manifests.retain(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] != tag);
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }));
        fs::write(index_path, serde_json::to_vec(&index).expect("serialise the index")).expect("write the index");
        digest
    }
}

/// Pushes `layout:tag` with skopeo to `reference` (without `docker://`),
/// keeping every digest.
pub fn push(layout: &Path, tag: &str, reference: &str, credentials: Option<&str>) {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false"]);
    if let Some(credentials) = credentials {
        command.args(["--dest-creds", credentials]);
    }
    command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{reference}"));
    let output = command.output().expect("skopeo runs (tests/install.sh installs it)");
    assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
}

/// Unpacks `layout:tag` with umoci as root and returns the root file system's
/// path: the reference for what a stack of layers means.
pub fn umoci_unpack(layout: &Path, tag: &str, bundle: &Path) -> std::path::PathBuf {
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:{tag}", layout.display()))
        .arg(bundle)
        .output()
        .expect("umoci runs (tests/install.sh installs it)");
    assert!(output.status.success(), "umoci: {}", String::from_utf8_lossy(&output.stderr));
    bundle.join("rootfs")
}
