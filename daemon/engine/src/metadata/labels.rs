//! Labels: the image's own, and what the conversion knows.

use std::collections::BTreeMap;

use super::{Source, converter};

const SCHEMA: &str = "org.label-schema";
const OCI: &str = "org.opencontainers.image";

/// All labels of an image.
///
/// Those of the label schema describe this file, so they replace ones that
/// came with the image; of the others the image's own stay.
pub(super) fn all(source: &Source<'_>) -> BTreeMap<String, String> {
    let Source { origin, manifest, config, .. } = *source;
    let mut labels = config.labels.clone();
    let mut set = |name: &str, value: Option<String>| {
        let name = format!("{SCHEMA}.{name}");
        match value {
            Some(value) => labels.insert(name, value),
            None => labels.remove(&name),
        };
    };
    let architecture = source.architecture();
    set("schema-version", Some("1.0".to_owned()));
    set("build-date", config.created.map(sctl_oci::Timestamp::label));
    set("build-arch", architecture.clone());
    set("usage.singularity.version", Some(converter()));
    set("usage.singularity.deffile.bootstrap", Some("docker".to_owned()));
    set("usage.singularity.deffile.from", Some(format!("{origin}@{manifest}")));
    let variant = Some(config.platform.variant.as_str()).filter(|variant| !variant.is_empty());
    let facts = [
        ("created", config.created.map(sctl_oci::Timestamp::rfc3339)),
        ("architecture", architecture),
        ("variant", variant.map(str::to_owned)),
        ("base.name", Some(origin.to_owned())),
        ("base.digest", Some(manifest.to_string())),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            labels.entry(format!("{OCI}.{name}")).or_insert(value);
        }
    }
    labels
}
