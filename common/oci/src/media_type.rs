//! Media types, and what a layer's type says.
//!
//! Types are compared without parameters (`; charset=utf-8`) and without
//! regard to case, as HTTP has it.

/// OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest, schema 1: refused.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker manifest, schema 1, signed: refused.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Prefix of OCI layers: followed by nothing, `+gzip` or `+zstd`.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Prefix of OCI layers that registries need not hold.
pub const OCI_FOREIGN_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// Prefix of Docker layers: followed by nothing, `.gzip` or `.zstd`.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Prefix of Docker layers that registries need not hold.
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// A SIF stored as an artifact.
pub const SIF_LAYER: &str = "application/vnd.sylabs.sif.layer.v1.sif";

/// What to send as `Accept` when asking for a manifest.
///
/// All four are needed: registries rewrite or hide what is not listed.
pub const ACCEPT: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

/// What a layer's media type says about it.
///
/// The compression named there is not kept: labels lie, so readers look at
/// the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A tar changeset in the registry.
    Tar,
    /// A tar changeset that may have to be fetched from the descriptor's URLs.
    ForeignTar,
    /// An encrypted changeset.
    Encrypted,
    /// Not a file system layer.
    Other,
}

/// The type alone, without parameters, in lower case.
pub fn essence(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Classifies a layer by its media type; an empty one counts as a tar, because
/// some old registries leave it out.
pub fn layer_kind(media_type: &str) -> LayerKind {
    let text = essence(media_type);
    if text.is_empty() {
        return LayerKind::Tar;
    }
    if text.ends_with("+encrypted") {
        return LayerKind::Encrypted;
    }
    let is = |prefix: &str, suffixes: &[&str]| text.strip_prefix(prefix).is_some_and(|rest| suffixes.contains(&rest));
    let oci = ["", "+gzip", "+zstd", ".gzip", ".zstd"];
    let docker = ["", ".gzip", ".zstd", ".gz", "+gzip", "+zstd"];
    if is(OCI_LAYER, &oci) || is(DOCKER_LAYER, &docker) {
        LayerKind::Tar
    } else if is(OCI_FOREIGN_LAYER, &oci) || is(DOCKER_FOREIGN_LAYER, &docker) {
        LayerKind::ForeignTar
    } else {
        LayerKind::Other
    }
}

/// Says whether a config of this type describes an image; an empty type may.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(essence(media_type).as_str(), "" | OCI_CONFIG | DOCKER_CONFIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_types_are_told_apart() {
        let cases = [
            ("application/vnd.oci.image.layer.v1.tar", LayerKind::Tar),
            ("application/vnd.oci.image.layer.v1.tar+gzip", LayerKind::Tar),
            ("application/vnd.oci.image.layer.v1.tar+zstd; x=y", LayerKind::Tar),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", LayerKind::Tar),
            ("Application/Vnd.Docker.Image.Rootfs.Diff.Tar", LayerKind::Tar),
            ("", LayerKind::Tar),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", LayerKind::ForeignTar),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", LayerKind::ForeignTar),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", LayerKind::Encrypted),
            ("application/vnd.oci.image.layer.v1.tarball", LayerKind::Other),
            ("application/vnd.in-toto+json", LayerKind::Other),
            (SIF_LAYER, LayerKind::Other),
        ];
        for (text, kind) in cases {
            assert_eq!(layer_kind(text), kind, "{text}");
        }
    }
}
