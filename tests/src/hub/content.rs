//! What the registry holds.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use sctl_common::Digest;
use serde_json::Value;

/// Bytes in memory or in a file.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    Memory(Arc<[u8]>),
    File { path: PathBuf, len: u64 },
}

/// Media type and bytes.
type StoredManifest = (String, Arc<[u8]>);

/// Manifests by repository, blobs for all of them.
#[derive(Debug, Default)]
pub(crate) struct Content {
    blobs: BTreeMap<Digest, Blob>,
    /// By repository and digest.
    manifests: BTreeMap<(String, Digest), StoredManifest>,
    tags: BTreeMap<(String, String), Digest>,
}

impl Blob {
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self::Memory(bytes.into())
    }

    pub(crate) fn from_file(path: &Path) -> Self {
        let len = fs::metadata(path).expect("the blob's file is there").len();
        Self::File { path: path.to_owned(), len }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// A reader that begins at byte `from`.
    pub(crate) fn reader(&self, from: u64) -> Box<dyn Read + '_> {
        match self {
            Self::Memory(bytes) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
                Box::new(&bytes[from..])
            }
            Self::File { path, .. } => {
                let mut file = File::open(path).expect("the blob's file opens");
                file.seek(SeekFrom::Start(from)).expect("the blob's file seeks");
                Box::new(file)
            }
        }
    }
}

impl Content {
    pub(crate) fn add_blob(&mut self, blob: Blob) -> Digest {
        let Blob::Memory(bytes) = &blob else { panic!("files come with their digest") };
        let digest = Digest::of(bytes);
        self.blobs.insert(digest, blob);
        digest
    }

    pub(crate) fn add_blob_as(&mut self, digest: Digest, blob: Blob) {
        self.blobs.insert(digest, blob);
    }

    pub(crate) fn add_manifest(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Digest {
        let digest = Digest::of(bytes);
        self.manifests.insert((repository.to_owned(), digest), (media_type.to_owned(), bytes.into()));
        if let Some(tag) = tag {
            self.tags.insert((repository.to_owned(), tag.to_owned()), digest);
        }
        digest
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Option<Blob> {
        self.blobs.get(digest).cloned()
    }

    /// Digest, media type and bytes of what a tag or digest names.
    pub(crate) fn manifest(&self, repository: &str, id: &str) -> Option<(Digest, String, Arc<[u8]>)> {
        let digest = match Digest::parse(id) {
            Ok(digest) => digest,
            Err(_) => *self.tags.get(&(repository.to_owned(), id.to_owned()))?,
        };
        let (media_type, bytes) = self.manifests.get(&(repository.to_owned(), digest))?;
        Some((digest, media_type.clone(), Arc::clone(bytes)))
    }

    pub(crate) fn push_layout(&mut self, layout: &Path, tag: &str, name_and_tag: &str) -> Digest {
        let (repository, new_tag) = name_and_tag.rsplit_once(':').unwrap_or((name_and_tag, "latest"));
        let index: Value = read_json(&fs::read(layout.join("index.json")).expect("the layout has an index.json"));
        let entry = index["manifests"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == tag)
            .unwrap_or_else(|| panic!("the layout has no tag {tag}"));
        self.push_entry(layout, entry, repository, Some(new_tag))
    }

    fn push_entry(&mut self, layout: &Path, entry: &Value, repository: &str, tag: Option<&str>) -> Digest {
        let media_type = entry["mediaType"].as_str().expect("a descriptor has a media type");
        let bytes = read_blob(layout, entry);
        let document = read_json(&bytes);
        for manifest in document["manifests"].as_array().into_iter().flatten() {
            self.push_entry(layout, manifest, repository, None);
        }
        let layers = document["layers"].as_array().into_iter().flatten();
        for descriptor in layers.chain(document.get("config")) {
            self.add_blob(Blob::from_bytes(read_blob(layout, descriptor)));
        }
        self.add_manifest(repository, tag, media_type, &bytes)
    }
}

fn read_blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest: Digest =
        descriptor["digest"].as_str().and_then(|text| text.parse().ok()).expect("a descriptor has a digest");
    let path = layout.join("blobs/sha256").join(digest.hex());
    fs::read(&path).unwrap_or_else(|error| panic!("the layout misses {digest}: {error}"))
}

fn read_json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("the layout's documents are JSON")
}
