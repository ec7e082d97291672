//! What can be wrong with an image's documents.

use sctl_common::{DigestError, ErrorKind};

/// Says why bytes are not an index, a manifest or a config.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Not JSON, or JSON of another shape.
    #[error("the {what} cannot be read")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A digest is malformed.
    #[error("the {what} names a digest that cannot be used")]
    Digest {
        /// Which descriptor, such as `layer 3`.
        what: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// A descriptor without a size, or with one that no file can have.
    #[error("the {what} has no usable size")]
    Size {
        /// Which descriptor.
        what: String,
    },
    /// The content inside a descriptor is not what the descriptor says.
    #[error("the content embedded in the descriptor of the {what} does not match its digest or size")]
    EmbeddedData {
        /// Which descriptor.
        what: String,
    },
    /// Docker's first manifest format.
    #[error(
        "the image has a Docker schema 1 manifest, which is obsolete and not supported; its owner must push it again with a current tool"
    )]
    Schema1,
    /// Some other number.
    #[error("schema version {found} is not supported (expected 2)")]
    SchemaVersion {
        /// The number found.
        found: u64,
    },
    /// The document says one thing, its envelope or members another.
    #[error("the document is ambiguous: it claims to be {claimed} but looks like {found}")]
    Ambiguous {
        /// What the media type says.
        claimed: String,
        /// What the other sign says.
        found: String,
    },
    /// Valid JSON, but neither an index nor a manifest.
    #[error("the document is neither an image index nor an image manifest (media type {media_type:?})")]
    UnknownDocument {
        /// Its media type, perhaps empty.
        media_type: String,
    },
    /// A value that no argv can hold.
    #[error("the config's {what} holds a NUL byte")]
    Nul {
        /// Which member.
        what: &'static str,
    },
    /// `rootfs.type` is not `layers`.
    #[error("the config's root file system has type {found:?} (expected \"layers\")")]
    RootfsType {
        /// The type found.
        found: String,
    },
    /// More entries than anyone needs.
    #[error("the {what} has {found} entries, more than the limit of {limit}")]
    TooMany {
        /// Which document.
        what: &'static str,
        /// How many it has.
        found: usize,
        /// How many it may have.
        limit: usize,
    },
}

impl ParseError {
    /// What kind of failure this is.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Schema1 | Self::SchemaVersion { .. } | Self::UnknownDocument { .. } | Self::RootfsType { .. } => {
                ErrorKind::Unsupported
            }
            Self::TooMany { .. } => ErrorKind::LimitExceeded,
            Self::Digest { source: DigestError::UnsupportedAlgorithm { .. }, .. } => ErrorKind::Unsupported,
            Self::Json { .. }
            | Self::Digest { .. }
            | Self::Size { .. }
            | Self::EmbeddedData { .. }
            | Self::Ambiguous { .. }
            | Self::Nul { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Says why a platform cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// No entry of the index fits.
    #[error(
        "no image found in image index for architecture \"{architecture}\", variant \"{variant}\", OS \"{os}\"{}",
        offers(available)
    )]
    NoMatch {
        /// Architecture asked for.
        architecture: String,
        /// Variant asked for, perhaps empty.
        variant: String,
        /// Operating system asked for.
        os: String,
        /// What the index offers.
        available: Vec<String>,
    },
    /// The only image there is was made for another platform.
    #[error("image ({found}) does not satisfy required platform ({required})")]
    Mismatch {
        /// The image's platform.
        found: String,
        /// The platform asked for.
        required: String,
    },
}

fn offers(available: &[String]) -> String {
    if available.is_empty() { String::new() } else { format!(" (it offers {})", available.join(", ")) }
}

impl SelectError {
    /// What kind of failure this is.
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::NotFound
    }
}

/// Says why a manifest and its config do not make an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// An artifact: a chart, a signature, a SIF, an attestation.
    #[error("no extractable OCI/Docker tar layers found in this image")]
    NotAnImage {
        /// The media type that says so.
        media_type: String,
    },
    /// A layer is encrypted.
    #[error("layer {layer} of {layers} is encrypted, which is not supported ({media_type})")]
    Encrypted {
        /// Which layer, from 1.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// Its media type.
        media_type: String,
    },
    /// The counts disagree.
    #[error("Inconsistent layer count: {manifest} in manifest, {config} in config")]
    LayerCount {
        /// Layers of the manifest.
        manifest: usize,
        /// `diff_ids` of the config.
        config: usize,
    },
    /// More layers than the limit.
    #[error("the image has {found} layers, more than the limit of {limit}")]
    TooManyLayers {
        /// Layers found.
        found: usize,
        /// Layers allowed.
        limit: u32,
    },
}

impl ImageError {
    /// What kind of failure this is.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAnImage { .. } | Self::Encrypted { .. } => ErrorKind::Unsupported,
            Self::LayerCount { .. } => ErrorKind::Corrupt,
            Self::TooManyLayers { .. } => ErrorKind::LimitExceeded,
        }
    }

    /// What the user can do, where something can be done.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotAnImage { media_type } if media_type.contains("sif.layer") => {
                Some("it holds a SIF as an artifact; try changing the protocol to oras://")
            }
            Self::NotAnImage { .. } => Some("it is an artifact, not a container image"),
            Self::Encrypted { .. } | Self::LayerCount { .. } | Self::TooManyLayers { .. } => None,
        }
    }
}
