//! Manifest and config together: the layers of an image.

use sctl_common::{DiffId, Limits};

use crate::{
    Config, Descriptor, ImageError, Manifest,
    media_type::{LayerKind, is_image_config, layer_kind},
};

/// One layer: its blob and the digest of what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Whether the registry may send elsewhere for it (`descriptor.urls`).
    pub foreign: bool,
}

impl Manifest {
    /// Checks, before anything is fetched, that this is the manifest of a
    /// container image whose layers can be extracted.
    ///
    /// # Errors
    /// [`ImageError`]: artifacts, encrypted layers, too many layers.
    pub fn check(&self, limits: &Limits) -> Result<(), ImageError> {
        let (found, limit) = (self.layers.len(), limits.max_layers);
        if u32::try_from(found).map_or(true, |found| found > limit) {
            return Err(ImageError::TooManyLayers { found, limit });
        }
        let kinds: Vec<_> = self.layers.iter().map(|layer| layer_kind(&layer.media_type)).collect();
        // The layer's type tells more than the config's about what it is instead.
        if let Some(at) = kinds.iter().position(|kind| *kind == LayerKind::Other) {
            return Err(ImageError::NotAnImage { media_type: self.layers[at].media_type.clone() });
        }
        if let Some(at) = kinds.iter().position(|kind| *kind == LayerKind::Encrypted) {
            let media_type = self.layers[at].media_type.clone();
            return Err(ImageError::Encrypted { layer: at + 1, layers: found, media_type });
        }
        if !is_image_config(&self.config.media_type) || self.layers.is_empty() {
            let media_type = if self.artifact_type.is_empty() { &self.config.media_type } else { &self.artifact_type };
            return Err(ImageError::NotAnImage { media_type: media_type.clone() });
        }
        Ok(())
    }
}

/// Pairs a manifest's layers with its config's `diff_ids`, lowest layer first.
///
/// # Errors
/// [`ImageError`]: what [`Manifest::check`] refuses, and different counts.
pub fn layers(manifest: &Manifest, config: &Config, limits: &Limits) -> Result<Vec<Layer>, ImageError> {
    manifest.check(limits)?;
    if manifest.layers.len() != config.diff_ids.len() {
        return Err(ImageError::LayerCount { manifest: manifest.layers.len(), config: config.diff_ids.len() });
    }
    let pairs = manifest.layers.iter().zip(&config.diff_ids);
    Ok(pairs
        .map(|(descriptor, &diff_id)| Layer {
            foreign: layer_kind(&descriptor.media_type) == LayerKind::ForeignTar,
            descriptor: descriptor.clone(),
            diff_id,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use sctl_common::Digest;

    use super::*;
    use crate::{Document, media_type};

    fn manifest(config: &str, layers: &[&str]) -> Manifest {
        let descriptor = |media_type: &str, of: &str| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":1}}"#, Digest::of(of.as_bytes()))
        };
        let layers: Vec<_> = layers.iter().enumerate().map(|(at, text)| descriptor(text, &at.to_string())).collect();
        let text = format!(r#"{{"config":{},"layers":[{}]}}"#, descriptor(config, "c"), layers.join(","));
        match Document::parse(text.as_bytes(), None) {
            Ok(Document::Manifest(manifest)) => *manifest,
            other => panic!("{other:?}"),
        }
    }

    fn config(diff_ids: usize) -> Config {
        let ids: Vec<_> = (0..diff_ids).map(|at| format!(r#""{}""#, Digest::of(&[at as u8]))).collect();
        Config::parse(format!(r#"{{"rootfs":{{"diff_ids":[{}]}}}}"#, ids.join(",")).as_bytes()).unwrap()
    }

    #[test]
    fn layers_get_their_diff_ids_in_order() {
        let manifest =
            manifest(media_type::DOCKER_CONFIG, &["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", ""]);
        let layers = layers(&manifest, &config(2), &Limits::default()).unwrap();
        assert_eq!(layers.iter().map(|layer| layer.foreign).collect::<Vec<_>>(), [true, false]);
        assert_eq!(layers[1].diff_id, DiffId::new(Digest::of(&[1])));
        assert_eq!(layers[1].descriptor, manifest.layers[1]);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let tar = media_type::OCI_LAYER;
        let not = "no extractable OCI/Docker tar layers found in this image";
        let encrypted = format!("{tar}+gzip+encrypted");
        let cases = [
            (media_type::OCI_CONFIG, vec![], 0, not),
            ("application/vnd.cncf.helm.config.v1+json", vec![tar], 1, not),
            ("application/vnd.oci.empty.v1+json", vec![media_type::SIF_LAYER], 0, not),
            (media_type::OCI_CONFIG, vec![tar, "application/vnd.in-toto+json"], 2, not),
            (
                media_type::OCI_CONFIG,
                vec![tar, &encrypted],
                2,
                "layer 2 of 2 is encrypted, which is not supported \
                 (application/vnd.oci.image.layer.v1.tar+gzip+encrypted)",
            ),
            (media_type::OCI_CONFIG, vec![tar; 2], 3, "Inconsistent layer count: 2 in manifest, 3 in config"),
            (media_type::OCI_CONFIG, vec![tar; 4], 4, "the image has 4 layers, more than the limit of 3"),
        ];
        let limits = Limits { max_layers: 3, ..Limits::default() };
        for (config_type, layer_types, diff_ids, message) in cases {
            let error = layers(&manifest(config_type, &layer_types), &config(diff_ids), &limits).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let sif = manifest("application/vnd.sylabs.sif.config.v1+json", &[media_type::SIF_LAYER]);
        let hint = sif.check(&limits).unwrap_err().hint();
        assert!(hint.is_some_and(|hint| hint.contains("oras://")));
    }
}
