//! `oci-layout` and `index.json`: what makes `oci/` an image layout that other
//! tools can read.
//!
//! # Source
//! OCI image-spec, image-layout.md.

use std::{
    collections::HashSet,
    io::{self, Read},
    os::fd::AsFd,
};

use sctl_common::Digest;
use sctl_sys::openat::open_trusted;
use serde::{Deserialize, Serialize};

use super::{CacheError, ImageMeta, Inner, error::During, model::Record};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const MAX_INDEX_BYTES: u64 = 64 << 20;
const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Platform,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    annotations: Annotations,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Annotations {
    #[serde(rename = "org.opencontainers.image.ref.name", default, skip_serializing_if = "Option::is_none")]
    ref_name: Option<String>,
}

impl Annotations {
    fn is_empty(&self) -> bool {
        self.ref_name.is_none()
    }
}

impl Index {
    fn empty() -> Self {
        Self { schema_version: 2, media_type: INDEX_MEDIA_TYPE.to_owned(), manifests: Vec::new() }
    }

    /// Adds an image under all its references. A name belongs to the image
    /// that got it last; the other one stays, unnamed, and so does one for
    /// whose names nobody vouches.
    fn add(&mut self, image: &ImageMeta) {
        let references: &[String] = if image.owns_its_names() { &image.references } else { &[] };
        for entry in &mut self.manifests {
            let taken = entry.annotations.ref_name.as_ref().is_some_and(|name| references.contains(name));
            if taken {
                entry.annotations.ref_name = None;
            }
        }
        let entry = |ref_name: Option<String>| Entry {
            media_type: image.manifest_media_type.clone(),
            digest: image.manifest,
            size: image.manifest_size_bytes,
            platform: Platform {
                architecture: image.platform.architecture().to_owned(),
                os: image.platform.os().to_owned(),
                variant: image.platform.variant().map(str::to_owned),
            },
            annotations: Annotations { ref_name },
        };
        self.manifests.extend(references.iter().map(|reference| entry(Some(reference.clone()))));
        self.manifests.push(entry(None));
        // An unnamed entry is of use only where no named one has its digest.
        let named: HashSet<Digest> =
            self.manifests.iter().filter(|entry| !entry.annotations.is_empty()).map(|entry| entry.digest).collect();
        let mut unnamed = HashSet::new();
        self.manifests.retain(|entry| {
            !entry.annotations.is_empty() || (!named.contains(&entry.digest) && unnamed.insert(entry.digest))
        });
    }
}

impl Inner {
    /// Makes the layout name an image. That is no condition for the image to
    /// be found, so a failure is told to the log only; the next start mends it.
    pub(super) fn name_in_index(&self, image: &ImageMeta) {
        let named = {
            let _publishing = self.publishing();
            self.read_index().map(|mut index| {
                let before = index.clone();
                index.add(image);
                if index == before { Ok(()) } else { self.write_index(&index) }
            })
        };
        // An index that cannot be read is made anew from what there is.
        let named = named.unwrap_or_else(|| self.rebuild_index(&self.scan_kind()?));
        if let Err(error) = named {
            tracing::warn!(%error, "cannot name an image in the layout's index");
        }
    }

    /// Makes the layout name exactly these images, and writes only what differs.
    pub(super) fn rebuild_index(&self, images: &[Record<ImageMeta>]) -> Result<(), CacheError> {
        let mut images: Vec<_> = images.iter().collect();
        images.sort_by_key(|record| (record.created, record.meta.key));
        let mut index = Index::empty();
        for record in images {
            index.add(&record.meta);
        }
        let publishing = self.publishing();
        let sorted = |index: &Index| {
            let mut entries: Vec<_> =
                index.manifests.iter().map(|entry| (entry.digest, entry.annotations.ref_name.clone())).collect();
            entries.sort();
            entries
        };
        // The order may differ, because uses came in another one than images.
        if self.read_index().is_none_or(|found| sorted(&found) != sorted(&index)) {
            self.write_index(&index)?;
        }
        drop(publishing);
        Ok(())
    }

    /// Writes `oci-layout` where it is not there as it should be.
    pub(super) fn write_layout(&self) -> Result<(), CacheError> {
        if read(self.dirs.oci.as_fd(), "oci-layout").is_none_or(|found| found != LAYOUT) {
            self.dirs
                .write_file(&self.id, self.dirs.oci.as_fd(), "oci-layout", LAYOUT, false, || ())
                .during("write the image layout")?;
        }
        Ok(())
    }

    fn read_index(&self) -> Option<Index> {
        serde_json::from_slice(&read(self.dirs.oci.as_fd(), "index.json")?).ok()
    }

    fn write_index(&self, index: &Index) -> Result<(), CacheError> {
        let text = serde_json::to_vec_pretty(index)
            .map_err(|error| CacheError::Io { what: "write the layout's index", source: error.into() })?;
        self.dirs
            .write_file(&self.id, self.dirs.oci.as_fd(), "index.json", &text, false, || {
                super::failpoint::failpoint("index.written");
            })
            .during("write the layout's index")
    }
}

fn read(dir: impl AsFd, name: &str) -> Option<Vec<u8>> {
    let (file, _) = open_trusted(dir, name).ok()?;
    let mut text = Vec::new();
    let read: io::Result<usize> = file.take(MAX_INDEX_BYTES).read_to_end(&mut text);
    read.ok().map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::ImageKey;

    fn image(content: &str, references: &[&str]) -> ImageMeta {
        let manifest = Digest::of(content.as_bytes());
        ImageMeta {
            key: ImageKey::new("o", &manifest, "p"),
            origin: "o".to_owned(),
            references: references.iter().map(|name| (*name).to_owned()).collect(),
            manifest,
            manifest_media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            manifest_size_bytes: 7,
            config: Digest::of(b"config"),
            platform: "arm/v7".parse().unwrap(),
            profile_id: "p".to_owned(),
            partition: None,
            special_files: false,
            ids: None,
            layers: Vec::new(),
        }
    }

    fn names(index: &Index) -> Vec<(Digest, Option<&str>)> {
        index.manifests.iter().map(|entry| (entry.digest, entry.annotations.ref_name.as_deref())).collect()
    }

    #[test]
    fn a_name_belongs_to_the_image_that_got_it_last() {
        let (old, new) = (image("old", &["r:1", "r:latest"]), image("new", &["r:latest"]));
        let mut index = Index::empty();
        index.add(&old);
        index.add(&new);
        assert_eq!(names(&index), [(old.manifest, Some("r:1")), (new.manifest, Some("r:latest"))]);
        index.add(&new);
        assert_eq!(index.manifests.len(), 2, "adding twice changes nothing");
        index.add(&image("third", &["r:1"]));
        assert!(names(&index).contains(&(old.manifest, None)), "the nameless one stays");
        let nameless = image("old", &[]);
        let before = index.clone();
        index.add(&nameless);
        assert_eq!(names(&index).len(), names(&before).len());
    }

    #[test]
    fn nobody_takes_a_name_over_a_line_that_nobody_vouches_for() {
        let (real, mut fake) = (image("real", &["r:latest"]), image("fake", &["r:latest"]));
        fake.origin = "docker-insecure://r".to_owned();
        let mut index = Index::empty();
        index.add(&real);
        index.add(&fake);
        assert_eq!(names(&index), [(real.manifest, Some("r:latest")), (fake.manifest, None)]);
    }

    #[test]
    fn the_text_is_what_the_specification_asks_for() {
        let mut index = Index::empty();
        index.add(&image("m", &["docker.io/library/debian:12"]));
        let value = serde_json::to_value(&index).unwrap();
        assert_eq!(value["schemaVersion"], 2);
        let entry = &value["manifests"][0];
        assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "docker.io/library/debian:12");
        assert_eq!((&entry["platform"]["os"], &entry["platform"]["variant"]), (&"linux".into(), &"v7".into()));
        assert_eq!((&entry["size"], entry["digest"].as_str().unwrap().len()), (&7.into(), 71));
    }
}
