//! What broker and job say to each other.
//!
//! # Layout
//! Over a Unix stream socket, in both directions: a length (`u32`, little
//! endian, at most [`MAX_FRAME`]) and that many bytes of JSON. The broker
//! opens with one [`Start`]; the job answers with any number of [`Report`]s,
//! the last of which ends it. Only [`Report::Manifest`] is answered, with an
//! [`Answer`].
//!
//! Descriptors are inherited: 3 is the socket, the rest follow in the order
//! that each start message tells.

use std::io::{self, Read, Write};

use sctl_common::{DiffId, Digest, Limits, Platform, Profile, Reference};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Failure, Notice, Stage,
    cache::{ImageKey, Partition},
    registry::{BlobSource, Credentials, Proxies, Session},
};

/// Largest frame in bytes: manifest and config of 8 MiB each, in base64.
pub(crate) const MAX_FRAME: usize = 32 << 20;

/// Bytes that travel as base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        base64::engine::general_purpose::STANDARD
            .decode(text.as_bytes())
            .map(Self)
            .map_err(|_| serde::de::Error::custom("bad base64"))
    }
}

/// How a job reaches one registry for one caller.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Access {
    pub(crate) credentials: Credentials,
    /// What an earlier job of the same caller learnt.
    pub(crate) session: Option<Session>,
    pub(crate) insecure: bool,
    pub(crate) proxies: Proxies,
    /// Contents of PEM files.
    pub(crate) extra_ca_pem: Vec<Base64>,
    pub(crate) max_manifest_bytes: u64,
}

/// What a job is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Start {
    /// Find the manifest of a reference.
    Resolve(Box<ResolveStart>),
    /// Fetch a layer and pack it.
    Layer(Box<LayerStart>),
    /// Make a SIF of packs.
    Assemble(Box<AssembleStart>),
}

/// No further descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ResolveStart {
    pub(crate) reference: Reference,
    pub(crate) platform: Platform,
    pub(crate) access: Access,
    pub(crate) limits: Limits,
}

/// Descriptors: the pack, write-only; then, if `keep_blob`, the blob.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LayerStart {
    pub(crate) reference: Reference,
    pub(crate) access: Access,
    pub(crate) source: BlobSource,
    /// What the uncompressed tar must be.
    pub(crate) diff_id: DiffId,
    pub(crate) profile: Profile,
    pub(crate) limits: Limits,
    /// Compressor threads.
    pub(crate) threads: usize,
    pub(crate) keep_blob: bool,
}

/// Descriptors: the SIF; then the packs, from the lowest layer up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AssembleStart {
    /// `registry/repository`.
    pub(crate) origin: String,
    pub(crate) key: ImageKey,
    pub(crate) manifest: Digest,
    pub(crate) config: Base64,
    pub(crate) profile: Profile,
    pub(crate) limits: Limits,
    /// Compressor threads.
    pub(crate) threads: usize,
}

/// A manifest as a registry served it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestBytes {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Base64,
}

/// A layer as manifest and config together describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerPlan {
    pub(crate) source: BlobSource,
    pub(crate) diff_id: DiffId,
}

/// What a job has to say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The reference leads to this manifest. Answered by [`Answer`].
    Manifest {
        manifest: ManifestBytes,
        config: Digest,
        config_size: u64,
        /// Blob and size of each layer, from the lowest up.
        layers: Vec<(Digest, u64)>,
        /// An index vouched for the platform.
        platform_known: bool,
    },
    /// Ends a resolve job whose image was not known.
    Resolved { config: Base64, layers: Vec<LayerPlan>, session: Session },
    /// Ends a resolve job whose image was known.
    Known,
    /// A stage has made progress.
    Progress { stage: Stage, done_bytes: u64, total_bytes: Option<u64> },
    /// A line for the user.
    Notice(Notice),
    /// Ends a layer job: the pack is complete, blob and tar were what they
    /// had to be.
    Packed { fetched_bytes: u64, tar_bytes: u64, pack_bytes: u64 },
    /// Ends an assemble job: the SIF is complete.
    Assembled {
        size: u64,
        partition: Partition,
        special_files: bool,
        /// None if they are too many.
        ids: Option<Vec<u32>>,
    },
    /// Ends any job that failed.
    Failed(Failure),
}

/// The broker's answer to [`Report::Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The image is in the cache: there is nothing more to fetch.
    pub(crate) known: bool,
    /// The config, if this manifest's origin has delivered it a moment ago.
    pub(crate) config: Option<Base64>,
}

/// Encodes one frame.
pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let len = frame.len() - 4;
    if len > MAX_FRAME {
        return Err(io::Error::other(format!("a message of {len} bytes is too long")));
    }
    // MAX_FRAME fits.
    frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(frame)
}

/// Reads the length of a frame.
pub(crate) fn frame_len(head: [u8; 4]) -> io::Result<usize> {
    let len = u32::from_le_bytes(head) as usize;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {len} bytes is too long")));
    }
    Ok(len)
}

/// Decodes the body of a frame.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes one frame.
pub(crate) fn write<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// Reads one frame.
pub(crate) fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let mut body = vec![0; frame_len(head)?];
    from.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let digest = Digest::of(b"x");
        let report = Report::Manifest {
            manifest: ManifestBytes {
                digest,
                media_type: "application/json".to_owned(),
                bytes: Base64(vec![0, 255, 10]),
            },
            config: digest,
            config_size: 7,
            layers: vec![(digest, 9)],
            platform_known: true,
        };
        let mut bytes = Vec::new();
        write(&mut bytes, &report).unwrap();
        write(&mut bytes, &Answer { known: true, config: None }).unwrap();
        let mut from = bytes.as_slice();
        match read::<Report>(&mut from).unwrap() {
            Report::Manifest { manifest, layers, .. } => {
                assert_eq!(manifest.bytes.0, [0, 255, 10]);
                assert_eq!(layers, [(digest, 9)]);
            }
            other => panic!("{other:?}"),
        }
        assert!(read::<Answer>(&mut from).unwrap().known);
        assert_eq!(read::<Answer>(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn lengths_are_checked_before_they_allocate() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        assert_eq!(read::<Answer>(bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(read::<Answer>(&b"\x02\0\0\0[]"[..]).is_err(), "well framed, but no answer");
    }
}
