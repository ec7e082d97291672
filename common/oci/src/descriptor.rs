//! Descriptors: media type, digest and size of a blob.

use std::collections::BTreeMap;

use base64::Engine as _;
use sctl_common::{Digest, Platform};
use serde::Deserialize;

use crate::{
    ParseError,
    lenient::{null_default, string_map, text},
};

/// Names a blob: media type, digest, size, and perhaps where else it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// As written, perhaps with parameters, perhaps empty.
    pub media_type: String,
    /// Digest of the blob's bytes.
    pub digest: Digest,
    /// Bytes of the blob; fits a signed 64-bit offset.
    pub size: u64,
    /// Other places to get it from, for foreign layers.
    pub urls: Vec<String>,
    /// Type of the artifact that a manifest holds, or empty.
    pub artifact_type: String,
    /// What the blob runs on; in an index only.
    pub platform: Option<EntryPlatform>,
    /// Notes by whoever made it.
    pub annotations: BTreeMap<String, String>,
    /// The blob itself, if it came inside the descriptor; checked against
    /// size and digest.
    pub data: Option<Vec<u8>>,
}

/// The platform of an index's entry, in the words that it came with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct EntryPlatform {
    /// Operating system, such as `linux`.
    #[serde(default, deserialize_with = "text")]
    pub os: String,
    /// Architecture, such as `amd64`.
    #[serde(default, deserialize_with = "text")]
    pub architecture: String,
    /// Variant such as `v7`, or empty.
    #[serde(default, deserialize_with = "text")]
    pub variant: String,
}

impl EntryPlatform {
    /// Architecture and variant under their canonical names: `aarch64` is
    /// `arm64`, `armhf` is `arm` with variant `v7`.
    pub(crate) fn canonical(&self) -> (String, String) {
        match self.architecture.parse::<Platform>() {
            Ok(platform) => {
                let implied = platform.variant().unwrap_or_default();
                let variant = if self.variant.is_empty() { implied } else { &self.variant };
                (platform.architecture().to_owned(), variant.to_owned())
            }
            Err(_) => (self.architecture.clone(), self.variant.clone()),
        }
    }

    /// Says whether nothing can run there: build records are listed so.
    pub(crate) fn is_unknown(&self) -> bool {
        let unknown = |text: &str| text.is_empty() || text == "unknown";
        unknown(&self.os) && unknown(&self.architecture)
    }
}

impl std::fmt::Display for EntryPlatform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// A descriptor before its checks.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawDescriptor {
    #[serde(default, deserialize_with = "null_default")]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, deserialize_with = "null_default")]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "null_default")]
    artifact_type: String,
    #[serde(default)]
    platform: Option<EntryPlatform>,
    #[serde(default, deserialize_with = "string_map")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_default")]
    data: String,
}

impl RawDescriptor {
    /// Checks it; `what` says which one it is, for messages.
    pub(crate) fn check(self, what: impl Fn() -> String) -> Result<Descriptor, ParseError> {
        let digest = Digest::parse(&self.digest).map_err(|source| ParseError::Digest { what: what(), source })?;
        // Offsets in files are signed 64-bit numbers.
        let size =
            self.size.filter(|&size| i64::try_from(size).is_ok()).ok_or_else(|| ParseError::Size { what: what() })?;
        let data = match self.data.as_str() {
            "" => None,
            text => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .ok()
                    .filter(|bytes| u64::try_from(bytes.len()) == Ok(size) && Digest::of(bytes) == digest)
                    .ok_or_else(|| ParseError::EmbeddedData { what: what() })?;
                Some(bytes)
            }
        };
        Ok(Descriptor {
            media_type: self.media_type,
            digest,
            size,
            urls: self.urls,
            artifact_type: self.artifact_type,
            platform: self.platform,
            annotations: self.annotations,
            data,
        })
    }
}
