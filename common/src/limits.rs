//! Hard limits on what an untrusted image may cost.

use serde::{Deserialize, Serialize};

/// Hard limits of one conversion; passing one is a clear error, never a
/// slow death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Layers of one image.
    pub max_layers: u32,
    /// Tar entries of one layer, and inodes of one merged tree.
    pub max_entries: u64,
    /// Sum of the bytes of all paths, link targets and xattrs of one layer,
    /// and of one merged tree.
    pub max_name_bytes: u64,
    /// Bytes of one layer's uncompressed tar.
    pub max_layer_bytes: u64,
    /// Bytes of all uncompressed tars of one image.
    pub max_image_bytes: u64,
    /// Uncompressed over compressed size of one layer, checked once the
    /// layer has given 64 MiB.
    pub max_ratio: u32,
    /// Bytes of one manifest, index or config.
    pub max_manifest_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_layers: 512,
            max_entries: 5_000_000,
            max_name_bytes: 512 << 20,
            max_layer_bytes: 256 << 30,
            max_image_bytes: 512 << 30,
            max_ratio: 500,
            max_manifest_bytes: 4 << 20,
        }
    }
}
