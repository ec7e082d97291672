//! What a SIF says about itself: the `/.singularity.d` tree inside, and the
//! data objects beside the file system.
//!
//! Everything here is a function of the image's origin, manifest digest and
//! config, and of the converter's version: no clock, no host, no user and no
//! tag go in, so the same image gives the same bytes everywhere.
//!
//! # Source
//! The project's references: runtime.md §10 (image content), sif.md §3 (what
//! a pull writes); design.md §4 (mount points) and §11 (exact argv).

mod labels;
mod scripts;
mod shell;
mod tree;

use std::collections::BTreeMap;

use sctl_common::{CONVERTER_VERSION, Digest, METADATA_VERSION};
use sctl_oci::Config;
use sctl_sif::{
    Arch, DataType, NewObject, Options, SifId, ZERO_TIME,
    inspect::{Attributes, INSPECT_METADATA, InspectMetadata, OCI_CONFIG},
};

pub use tree::{Addition, AdditionKind, Rule};

/// What the metadata is made from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// `registry/repository`, without a tag.
    pub origin: &'a str,
    /// Digest of the image's manifest.
    pub manifest: &'a Digest,
    /// The image's config.
    pub config: &'a Config,
    /// Architecture of the programs in the merged tree, in Go's words, if
    /// there are any.
    pub machine: Option<&'a str>,
}

impl Source<'_> {
    /// Architecture of the programs, else the one that the config claims.
    fn architecture(&self) -> Option<String> {
        self.machine.map(str::to_owned).or_else(|| self.config.architecture())
    }
}

/// All metadata of one SIF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// What to add to the merged tree, in this order.
    pub additions: Vec<Addition>,
    /// Text of the definition file.
    pub def_file: String,
    /// What `inspect` shows.
    pub inspect: InspectMetadata,
    /// The config's inner object, exactly as the registry gave it.
    pub oci_config: String,
    /// Architecture of the partition.
    pub arch: Arch,
    /// When the image was made, in Unix seconds, or [`ZERO_TIME`].
    pub created: i64,
}

impl Metadata {
    /// Makes the metadata of an image.
    pub fn new(source: &Source<'_>) -> Self {
        let Source { origin, manifest, config, .. } = *source;
        let from = format!("{origin}@{manifest}");
        let def_file = format!("bootstrap: docker\nfrom: {from}\n\n");
        let labels = labels::all(source);
        let runscript = scripts::runscript(&config.launch);
        let environment = scripts::environment(&config.launch);
        let inspect = InspectMetadata::new(Attributes {
            environment: BTreeMap::from([
                (format!("/{}", scripts::OCI_ENVIRONMENT), trimmed(&environment)),
                (format!("/{}", scripts::CUSTOM_ENVIRONMENT), trimmed(scripts::CUSTOM_ENVIRONMENT_TEXT)),
            ]),
            runscript: trimmed(&runscript),
            startscript: trimmed(scripts::STARTSCRIPT),
            deffile: trimmed(&def_file),
            labels: labels.clone(),
            ..Attributes::default()
        });
        let additions = tree::additions(tree::Texts {
            def_file: &def_file,
            labels: &sctl_sif::inspect::to_tabbed_json(&labels),
            runscript: &runscript,
            environment: &environment,
        });
        Self {
            additions,
            def_file,
            inspect,
            oci_config: config.inner.clone(),
            arch: source.architecture().as_deref().and_then(Arch::from_name).unwrap_or_default(),
            created: config.created.map_or(ZERO_TIME, sctl_oci::Timestamp::unix),
        }
    }

    /// Modification time of everything that is added and of the squashfs
    /// itself, which holds times from 1970 to 2106 only.
    pub fn squashfs_time(&self) -> u32 {
        // Clamped to the type's range just before.
        u32::try_from(self.created.clamp(0, i64::from(u32::MAX))).unwrap_or(0)
    }

    /// The data objects that come before the partition, in their order.
    pub fn objects(&self) -> Vec<(NewObject, Vec<u8>)> {
        vec![
            (NewObject::new(DataType::DefFile, ""), self.def_file.clone().into_bytes()),
            (NewObject::new(DataType::GenericJson, INSPECT_METADATA), self.inspect.to_json().into_bytes()),
            (NewObject::new(DataType::GenericJson, OCI_CONFIG), self.oci_config.clone().into_bytes()),
        ]
    }

    /// How the SIF is made: `key` is its [`ImageKey`](crate::cache::ImageKey).
    pub fn sif_options(&self, key: &Digest) -> Options {
        Options::new(SifId::derived(key), self.created)
    }
}

/// Names the program in an image's labels, by what decides about its output.
fn converter() -> String {
    format!("sctl-{CONVERTER_VERSION}.{METADATA_VERSION}")
}

/// As `inspect` keeps texts: without newlines at the end.
fn trimmed(text: &str) -> String {
    text.trim_end_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"architecture":"arm64","os":"linux","variant":"v8","created":"2021-08-02T14:09:36.5Z",
        "config":{"Env":["PATH=/bin","X=1"],"Cmd":["/bin/sh"], "Labels":{"a":"b","org.label-schema.build-date":"old"}},
        "rootfs":{"type":"layers","diff_ids":[]}}"#;

    fn metadata(config: &str, machine: Option<&str>) -> Metadata {
        let config = Config::parse(config.as_bytes()).unwrap();
        let manifest = Digest::of(b"manifest");
        Metadata::new(&Source { origin: "docker.io/library/alpine", manifest: &manifest, config: &config, machine })
    }

    #[test]
    fn metadata_names_the_digest_and_the_images_own_date() {
        let made = metadata(CONFIG, None);
        let from = format!("docker.io/library/alpine@{}", Digest::of(b"manifest"));
        assert_eq!(made.def_file, format!("bootstrap: docker\nfrom: {from}\n\n"));
        assert_eq!(
            made.oci_config,
            r#"{"Env":["PATH=/bin","X=1"],"Cmd":["/bin/sh"], "Labels":{"a":"b","org.label-schema.build-date":"old"}}"#
        );
        let attributes = &made.inspect.data.attributes;
        assert_eq!(attributes.deffile, format!("bootstrap: docker\nfrom: {from}"));
        let label = |name: &str| attributes.labels.get(name).map(String::as_str);
        assert_eq!(label("a"), Some("b"));
        assert_eq!(label("org.label-schema.build-date"), Some("Monday_2_August_2021_14:9:36_UTC"));
        assert_eq!(label("org.label-schema.build-arch"), Some("arm64"));
        assert_eq!(label("org.label-schema.schema-version"), Some("1.0"));
        assert_eq!(label("org.label-schema.usage.singularity.deffile.bootstrap"), Some("docker"));
        assert_eq!(label("org.label-schema.usage.singularity.deffile.from"), Some(from.as_str()));
        assert_eq!(made.arch.name(), "arm64");
        assert_eq!((made.created, made.squashfs_time()), (1_627_913_376, 1_627_913_376));
        assert_eq!(metadata(CONFIG, Some("amd64")).arch.name(), "amd64");
        let names: Vec<_> = made.objects().iter().map(|(object, _)| object.name.clone()).collect();
        assert_eq!(names, [&b""[..], b"inspect-metadata.json", b"oci-config.json"]);
        assert_eq!(made, metadata(CONFIG, None));
    }

    #[test]
    fn an_image_that_says_nothing_gets_no_invented_facts() {
        let made = metadata("{}", None);
        let labels = &made.inspect.data.attributes.labels;
        assert!(!labels.contains_key("org.label-schema.build-date"));
        assert!(!labels.contains_key("org.label-schema.build-arch"));
        assert_eq!((made.created, made.squashfs_time(), made.arch), (ZERO_TIME, 0, Arch::UNKNOWN));
        assert_eq!(made.oci_config, "{}");
    }
}
