//! Step one: from a reference to a manifest, a config and a list of layers.

use std::os::unix::net::UnixStream;

use sctl_common::Reference;
use sctl_oci::Config;

use super::{
    client_options,
    protocol::{self, Answer, Base64, LayerPlan, ManifestBytes, Report, ResolveStart},
    report::Reporter,
    runtime,
};
use crate::{
    Failure,
    registry::{BlobSource, Client, RegistryError},
};

pub(super) fn run(start: ResolveStart, control: &UnixStream, reporter: &Reporter) -> Result<Report, Failure> {
    let ResolveStart { reference, platform, access, limits } = start;
    let client = Client::new(&reference, client_options(access, reporter))?;
    runtime()?.block_on(async {
        let resolved = client.resolve(&reference, &platform).await?;
        let manifest = &resolved.manifest;
        manifest.check(&limits).map_err(RegistryError::from)?;
        let platform_known = resolved.is_platform_known();
        let report = Report::Manifest {
            manifest: ManifestBytes {
                digest: resolved.raw.digest,
                media_type: manifest.media_type.clone(),
                bytes: Base64(resolved.raw.bytes),
            },
            config: manifest.config.digest,
            config_size: manifest.config.size,
            layers: manifest.layers.iter().map(|layer| (layer.digest, layer.size)).collect(),
            platform_known,
        };
        let broker = |error: &std::io::Error| Failure::io("the broker does not answer", error);
        reporter.send(&report).map_err(|error| broker(&error))?;
        let answer: Answer = protocol::read(control).map_err(|error| broker(&error))?;
        if answer.known {
            return Ok(Report::Known);
        }

        let bytes = match answer.config {
            Some(config) => config.0,
            None => client.fetch_small_blob(&manifest.config, limits.max_manifest_bytes).await?,
        };
        let config = Config::parse(&bytes).map_err(|source| content(&reference, source))?;
        if !platform_known {
            config.check_platform(&platform).map_err(RegistryError::from)?;
        }
        let layers = sctl_oci::layers(manifest, &config, &limits).map_err(RegistryError::from)?;
        let layers =
            layers.iter().map(|layer| LayerPlan { source: BlobSource::from(layer), diff_id: layer.diff_id }).collect();
        Ok(Report::Resolved { config: Base64(bytes), layers, session: client.session() })
    })
}

fn content(reference: &Reference, error: sctl_oci::ParseError) -> Failure {
    Failure::new(error.kind(), format!("the config of {reference} cannot be used")).because(&error)
}
