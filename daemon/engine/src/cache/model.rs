//! The words of the cache: entries, their names, rights and descriptions.

use std::{collections::BTreeSet, fmt};

use sctl_common::{DiffId, Digest, METADATA_VERSION, Platform};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::CacheError;

/// Who may use an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// Everybody: anonymous credentials earned it.
    Public,
    /// One user: this uid's credentials earned it.
    Uid(u32),
}

/// All grants of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grants(BTreeSet<Grant>);

impl Grants {
    /// One grant.
    pub fn of(grant: Grant) -> Self {
        Self(BTreeSet::from([grant]))
    }

    /// Says whether `uid` may use the entry.
    pub fn allow(&self, uid: u32) -> bool {
        self.is_public() || self.0.contains(&Grant::Uid(uid))
    }

    /// Says whether everybody may.
    pub fn is_public(&self) -> bool {
        self.0.contains(&Grant::Public)
    }

    /// All of them: everybody's first, then users' by uid.
    pub fn iter(&self) -> impl Iterator<Item = Grant> {
        self.0.iter().copied()
    }

    /// The users who earned a grant of their own, ascending.
    pub fn uids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().filter_map(|grant| match grant {
            Grant::Public => None,
            Grant::Uid(uid) => Some(*uid),
        })
    }

    /// Adds one; answers whether it is new.
    pub(super) fn add(&mut self, grant: Grant) -> bool {
        self.0.insert(grant)
    }
}

/// Names an image in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageKey(Digest);

impl ImageKey {
    /// Digest of everything that the SIF's bytes depend on: where the image
    /// comes from (its origin, as the metadata names it), the manifest, the
    /// profile, and the version of the metadata.
    pub fn new(origin: &str, manifest: &Digest, profile_id: &str) -> Self {
        // Lengths first, so that no two lists of parts give the same bytes.
        let text = format!(
            "sctl-image:{METADATA_VERSION}\n{}:{origin}\n{manifest}\n{}:{profile_id}\n",
            origin.len(),
            profile_id.len()
        );
        Self(Digest::of(text.as_bytes()))
    }

    /// Reads what [`Display`](fmt::Display) writes: 64 lower-case hex digits.
    pub fn parse(hex: &str) -> Option<Self> {
        format!("sha256:{hex}").parse().ok().map(Self)
    }

    /// The key whose digest this is.
    pub(crate) const fn of_digest(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest itself.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.hex())
    }
}

/// Names an entry of any kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryId {
    /// A manifest, config or kept layer blob.
    Blob(Digest),
    /// A packed layer.
    Pack {
        /// Of the layer.
        diff_id: DiffId,
        /// Name of the profile that it was packed with.
        profile_id: String,
    },
    /// A finished SIF.
    Image(ImageKey),
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "blob/{}", digest.hex()),
            Self::Pack { diff_id, profile_id } => write!(f, "pack/{}-{profile_id}", diff_id.digest().hex()),
            Self::Image(key) => write!(f, "image/{key}"),
        }
    }
}

/// Describes a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackMeta {
    /// Of the layer.
    pub diff_id: DiffId,
    /// Name of the profile: letters, digits, `.`, `_`, `-`.
    pub profile_id: String,
    /// Digests under which registries delivered the layer.
    pub blobs: Vec<Digest>,
    /// Bytes of the uncompressed tar.
    pub tar_bytes: u64,
    /// Where it was delivered from, the first ones; should it turn out to be
    /// false, these are whom to ask.
    #[serde(default)]
    pub origins: Vec<String>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// Of the blob.
    pub digest: Digest,
    /// Of the uncompressed tar.
    pub diff_id: DiffId,
    /// Bytes of the blob.
    pub size_bytes: u64,
}

/// Where the root file system of an image lies in its SIF, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// From the start of the file: a multiple of 4,096.
    pub offset: u64,
    /// With the padding behind it: a multiple of 4,096.
    pub len: u64,
}

/// Scheme of the origin of images that came over a line that nobody vouches
/// for, under a name that belongs to somebody.
pub(crate) const INSECURE_SCHEME: &str = "docker-insecure";

/// Describes an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMeta {
    /// See [`ImageKey::new`].
    pub key: ImageKey,
    /// Where the image comes from: scheme, registry, repository.
    pub origin: String,
    /// Names that led here, the newest last.
    pub references: Vec<String>,
    /// Of the platform's manifest.
    pub manifest: Digest,
    /// The manifest's media type.
    pub manifest_media_type: String,
    /// Bytes of the manifest.
    pub manifest_size_bytes: u64,
    /// Of the config.
    pub config: Digest,
    /// What the image runs on.
    pub platform: Platform,
    /// Name of the profile that its packs have.
    pub profile_id: String,
    /// From the lowest up.
    pub layers: Vec<ImageLayer>,
    /// What a kernel mount needs to know; none for images of versions that
    /// did not note it.
    #[serde(default)]
    pub partition: Option<Partition>,
    /// It has FIFOs: users who share its inodes would share them.
    #[serde(default)]
    pub special_files: bool,
    /// All user and group ids of its files, ascending; none if they are too
    /// many to list, or were not noted.
    #[serde(default)]
    pub ids: Option<Vec<u32>>,
}

/// What is written beside a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record<M> {
    /// Of this format.
    pub(super) version: u32,
    /// Of the file beside.
    pub(super) size_bytes: u64,
    /// Unix seconds.
    pub(super) created: i64,
    /// Which host published it…
    pub(super) host: String,
    /// …in which boot.
    pub(super) boot_id: String,
    /// A sync has ended since, so a loss of power cannot undo it.
    pub(super) durable: bool,
    /// Garbage collection must keep it.
    #[serde(default)]
    pub(super) pinned: bool,
    pub(super) grants: Grants,
    pub(super) meta: M,
    /// The sidecar's own time, Unix seconds: the last use that any host noted.
    #[serde(skip)]
    pub(super) dated: i64,
}

/// Version of [`Record`].
pub(super) const RECORD_VERSION: u32 = 1;

/// The kinds of entries that have a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// In `packs/`.
    Pack,
    /// In `sif/`.
    Image,
}

impl FileKind {
    pub(super) const fn extension(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Image => "sif",
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Image => "SIF",
        }
    }
}

/// A description that a sidecar holds.
pub(super) trait Meta: Serialize + DeserializeOwned + Clone {
    const KIND: FileKind;
    /// Names the failpoints of publishing.
    const PUBLISH: &'static str;
    /// File name without extension.
    fn stem(&self) -> String;
    fn id(&self) -> EntryId;
    /// Takes what `newer` knows and this does not; answers whether it was anything.
    fn merge(&mut self, newer: &Self) -> bool;
}

impl ImageMeta {
    /// Says whether the image may stand for its references before everybody.
    pub(super) fn owns_its_names(&self) -> bool {
        self.origin.split("://").next() != Some(INSECURE_SCHEME)
    }
}

impl Meta for PackMeta {
    const KIND: FileKind = FileKind::Pack;
    const PUBLISH: &'static str = "publish_pack";

    fn stem(&self) -> String {
        pack_stem(&self.diff_id, &self.profile_id)
    }

    fn id(&self) -> EntryId {
        EntryId::Pack { diff_id: self.diff_id, profile_id: self.profile_id.clone() }
    }

    fn merge(&mut self, newer: &Self) -> bool {
        /// A base layer comes from hundreds of repositories.
        const MAX_ORIGINS: usize = 32;
        let before = (self.blobs.len(), self.origins.len());
        for blob in &newer.blobs {
            if !self.blobs.contains(blob) {
                self.blobs.push(*blob);
            }
        }
        for origin in &newer.origins {
            if self.origins.len() < MAX_ORIGINS && !self.origins.contains(origin) {
                self.origins.push(origin.clone());
            }
        }
        (self.blobs.len(), self.origins.len()) != before
    }
}

impl Meta for ImageMeta {
    const KIND: FileKind = FileKind::Image;
    const PUBLISH: &'static str = "publish_image";

    fn stem(&self) -> String {
        self.key.to_string()
    }

    fn id(&self) -> EntryId {
        EntryId::Image(self.key)
    }

    fn merge(&mut self, newer: &Self) -> bool {
        newer
            .references
            .iter()
            .fold(false, |changed, reference| add_reference(&mut self.references, reference) | changed)
    }
}

/// Makes `reference` the newest; answers whether that changes anything.
pub(super) fn add_reference(references: &mut Vec<String>, reference: &str) -> bool {
    /// An image that hundreds of tags led to is still listed under enough of them.
    const MAX: usize = 32;
    if references.last().is_some_and(|last| last == reference) {
        return false;
    }
    references.retain(|known| known != reference);
    references.push(reference.to_owned());
    let excess = references.len().saturating_sub(MAX);
    references.drain(..excess);
    true
}

pub(super) fn pack_stem(diff_id: &DiffId, profile_id: &str) -> String {
    format!("{}-{profile_id}", diff_id.digest().hex())
}

/// Refuses profile names that would not be one harmless part of a file name.
pub(super) fn check_profile(profile_id: &str) -> Result<(), CacheError> {
    let fine = (1..=100).contains(&profile_id.len())
        && profile_id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if fine { Ok(()) } else { Err(CacheError::BadProfile { name: profile_id.chars().take(100).collect() }) }
}

/// Says whether a file name without extension is one that we make.
pub(super) fn is_stem(kind: FileKind, stem: &str) -> bool {
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match kind {
        FileKind::Image => hex(stem),
        FileKind::Pack => {
            stem.split_once('-').is_some_and(|(digest, profile_id)| hex(digest) && check_profile(profile_id).is_ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_all_its_parts() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let keys = [
            ImageKey::new("h/r", &a, "v1-zstd3-128k"),
            ImageKey::new("h/s", &a, "v1-zstd3-128k"),
            ImageKey::new("h/r", &b, "v1-zstd3-128k"),
            ImageKey::new("h/r", &a, "v1-gzip9-128k"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "key {at} occurs twice");
        }
    }

    #[test]
    fn keys_differ_whenever_a_part_does() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let keys = [
            ImageKey::new("docker://a/b", &one, "p"),
            ImageKey::new("docker://a/c", &one, "p"),
            ImageKey::new("docker://a/b", &two, "p"),
            ImageKey::new("docker://a/b", &one, "q"),
            ImageKey::new(&format!("docker://a/b\n{one}"), &one, "p"),
        ];
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let key = ImageKey::new("h/r", &Digest::of(b"a"), "p");
        assert_eq!(ImageKey::parse(&key.to_string()), Some(key));
        for wrong in ["", "00", &key.to_string().to_uppercase(), &format!("{key}0"), &format!("sha256:{key}")] {
            assert_eq!(ImageKey::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn grants_allow_whom_they_name() {
        let mut grants = Grants::of(Grant::Uid(7));
        assert!(grants.allow(7) && !grants.allow(8) && !grants.allow(0));
        assert!(grants.add(Grant::Public) && !grants.add(Grant::Public));
        assert!(grants.allow(8));
        assert_eq!(grants.uids().collect::<Vec<_>>(), [7]);
        let text = serde_json::to_string(&grants).unwrap();
        assert_eq!(text, r#"["public",{"uid":7}]"#);
        assert_eq!(serde_json::from_str::<Grants>(&text).unwrap(), grants);
    }

    #[test]
    fn references_keep_the_newest_last_and_stay_few() {
        let mut references = vec!["a".to_owned(), "b".to_owned()];
        assert!(add_reference(&mut references, "a"));
        assert!(!add_reference(&mut references, "a"));
        assert_eq!(references, ["b", "a"]);
        for n in 0..100 {
            add_reference(&mut references, &format!("r{n}"));
        }
        assert_eq!((references.len(), references.last().unwrap().as_str()), (32, "r99"));
    }

    #[test]
    fn only_our_own_names_count_as_stems() {
        let hex = Digest::of(b"").hex();
        assert!(is_stem(FileKind::Image, &hex) && is_stem(FileKind::Pack, &format!("{hex}-v1-zstd3-128k-zstd1.5.7")));
        for (kind, stem) in [
            (FileKind::Image, "readme".to_owned()),
            (FileKind::Image, hex.to_uppercase()),
            (FileKind::Pack, hex.clone()),
            (FileKind::Pack, format!("{hex}-")),
            (FileKind::Pack, format!("{hex}-a b")),
        ] {
            assert!(!is_stem(kind, &stem), "{stem}");
        }
    }
}
