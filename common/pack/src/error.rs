//! What can go wrong, one enum for each operation.

use std::io;

use sctl_common::{EntryNameError, ErrorKind};
use sctl_squashfs::{CodecError, writer::WriteError};

use crate::pipeline::PipelineError;

/// Bytes of a name that a message shows at most.
const SHOWN_NAME: usize = 120;

/// Name of a tar entry as messages show it: escaped, and cut when long.
pub(crate) fn shown(name: &[u8]) -> String {
    if name.len() <= SHOWN_NAME {
        return name.escape_ascii().to_string();
    }
    format!("{}… ({} bytes)", name[..SHOWN_NAME].escape_ascii(), name.len())
}

/// Says why a layer could not be packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The blob's reader failed.
    #[error("cannot read the layer")]
    ReadBlob {
        /// What it said.
        source: io::Error,
    },
    /// The pack's writer failed.
    #[error("cannot write the pack")]
    WritePack {
        /// What it said.
        source: io::Error,
    },
    /// The layer is compressed with something else than gzip or zstd.
    #[error("layers compressed with {name} are not supported")]
    UnsupportedCompression {
        /// Which compression.
        name: &'static str,
    },
    /// The gzip stream is damaged.
    #[error("layer is not valid gzip: {what} (at byte {blob_offset} of the blob)")]
    BadGzip {
        /// What is wrong.
        what: &'static str,
        /// Where in the blob.
        blob_offset: u64,
    },
    /// The zstd stream is damaged, or needs too much memory.
    #[error("layer is not valid zstd")]
    Zstd {
        /// What the library said.
        source: io::Error,
    },
    /// The compressed stream ends too early.
    #[error("layer ends in the middle of its {format} stream (after {blob_bytes} bytes)")]
    TruncatedBlob {
        /// Which compression.
        format: &'static str,
        /// Bytes of the blob.
        blob_bytes: u64,
    },
    /// The tar stream ends in the middle of an entry.
    #[error("tar stream ends in the middle of {what} (after {tar_offset} bytes)")]
    TruncatedTar {
        /// Of what.
        what: &'static str,
        /// Bytes of the tar stream.
        tar_offset: u64,
    },
    /// A tar header makes no sense.
    #[error("bad tar header at byte {tar_offset}: {what}")]
    BadTar {
        /// What is wrong.
        what: &'static str,
        /// Where in the tar stream the header starts.
        tar_offset: u64,
    },
    /// An entry cannot be stored, or makes no sense.
    #[error("tar entry {entry:?}: {what}")]
    BadEntry {
        /// Its name, escaped.
        entry: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A name of an entry cannot be stored.
    #[error("tar entry {entry:?} cannot be stored")]
    BadName {
        /// The whole path, escaped.
        entry: String,
        /// What is wrong with it.
        source: EntryNameError,
    },
    /// An entry has a type that nobody knows.
    #[error("tar entry {entry:?} has unknown type {typeflag:?}")]
    UnknownType {
        /// Its name, escaped.
        entry: String,
        /// The byte in its header, as a character.
        typeflag: char,
    },
    /// Something of an entry is larger than what can be stored.
    #[error("tar entry {entry:?}: {what} of {found} bytes is longer than {max} bytes")]
    TooLong {
        /// Its name, escaped.
        entry: String,
        /// What is too long.
        what: &'static str,
        /// Its length.
        found: u64,
        /// What it may have.
        max: u64,
    },
    /// A configured limit was passed.
    #[error("layer has more than {max} {what} (reached at tar entry {entry:?})")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The limit.
        max: u64,
        /// The entry at which it was passed, escaped.
        entry: String,
    },
    /// The layer grows more than the limit allows.
    #[error(
        "layer expands more than {max_ratio} times ({blob_bytes} bytes have become {tar_bytes}, reached at tar entry \
         {entry:?})"
    )]
    Ratio {
        /// The limit.
        max_ratio: u32,
        /// Bytes of the blob so far.
        blob_bytes: u64,
        /// Bytes of the tar stream so far.
        tar_bytes: u64,
        /// The entry at which it was passed, escaped.
        entry: String,
    },
    /// The pack would have more blocks than its numbers can count.
    #[error("layer has more data than a pack can hold")]
    TooLarge,
    /// The profile is none that squashfs knows.
    #[error("no such profile: {profile}")]
    BadProfile {
        /// As it was given.
        profile: String,
    },
    /// A block could not be compressed.
    #[error("cannot compress a block of the layer")]
    Compress {
        /// What the codec said.
        source: CodecError,
    },
    /// A part of the converter broke.
    #[error("the converter's {stage} stage failed unexpectedly")]
    Broken {
        /// Which part.
        stage: &'static str,
    },
}

impl PackError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::ReadBlob { source } => io_kind(source, ErrorKind::Unavailable),
            Self::WritePack { source } => io_kind(source, ErrorKind::Internal),
            Self::UnsupportedCompression { .. } | Self::TooLong { .. } | Self::BadName { .. } => ErrorKind::Unsupported,
            Self::BadGzip { .. }
            | Self::Zstd { .. }
            | Self::TruncatedBlob { .. }
            | Self::TruncatedTar { .. }
            | Self::BadTar { .. }
            | Self::BadEntry { .. }
            | Self::UnknownType { .. } => ErrorKind::Corrupt,
            Self::Limit { .. } | Self::Ratio { .. } | Self::TooLarge => ErrorKind::LimitExceeded,
            Self::BadProfile { .. } => ErrorKind::InvalidInput,
            Self::Compress { .. } | Self::Broken { .. } => ErrorKind::Internal,
        }
    }
}

/// Kind of an I/O error: no space is told apart, the rest is `other`.
fn io_kind(error: &io::Error, other: ErrorKind) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorKind::NoSpace,
        _ => other,
    }
}

/// Says why a pack's index cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The pack cannot be read.
    #[error("cannot read the pack")]
    Read {
        /// What was said.
        source: io::Error,
    },
    /// The file is no pack, or was cut short.
    #[error("not a pack, or cut short: {what}")]
    NotAPack {
        /// What is wrong.
        what: &'static str,
    },
    /// The pack was made by another version of the converter.
    #[error("pack has format {found}, this program reads {expected}")]
    Version {
        /// What is there.
        found: u32,
        /// What is understood.
        expected: u32,
    },
    /// The pack was made with another compressor, level or block size.
    #[error("pack was made for profile {found}, not for {expected}")]
    Profile {
        /// What is there.
        found: String,
        /// What is wanted.
        expected: String,
    },
    /// The index does not have the digest that the pack says.
    #[error("pack's index is damaged")]
    Digest,
    /// The index contradicts itself.
    #[error("pack's index makes no sense: {what} (at byte {offset} of the index)")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Where, in the uncompressed index.
        offset: u64,
    },
    /// A configured limit was passed.
    #[error("pack has {found} {what}, more than {max}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// The limit.
        max: u64,
    },
}

impl IndexError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source } => match source.kind() {
                io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
                _ => ErrorKind::Internal,
            },
            Self::NotAPack { .. } | Self::Digest | Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Version { .. } | Self::Profile { .. } => ErrorKind::InvalidInput,
            Self::Limit { .. } => ErrorKind::LimitExceeded,
        }
    }
}

/// Says why layers could not be merged, or something not be added.
///
/// Layers are counted from 1, the lowest; 0 stands for what is added to them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A configured limit was passed.
    #[error("image has more than {max} {what}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// An entry is to be inside something that is no directory.
    #[error("layer {layer}: {path:?} is below something that is no directory")]
    NotADirectory {
        /// The layer's number.
        layer: u32,
        /// The entry, escaped.
        path: String,
    },
    /// Symlinks lead in a circle, or nearly so.
    #[error("layer {layer}: {path:?} leads through too many symlinks")]
    TooManySymlinks {
        /// The layer's number.
        layer: u32,
        /// The entry, escaped.
        path: String,
    },
    /// Symlinks and opaque directories make a layer a burden.
    #[error("layer {layer}: applying it takes too many steps (given up at {path:?})")]
    TooMuchWork {
        /// The layer's number.
        layer: u32,
        /// The entry at which it was given up, escaped.
        path: String,
    },
    /// A hard link leads to nothing.
    #[error("layer {layer}: hard link {path:?} leads to {target:?}, which does not exist")]
    MissingLinkTarget {
        /// The layer's number.
        layer: u32,
        /// The entry, escaped.
        path: String,
        /// What it leads to, escaped.
        target: String,
    },
    /// A hard link leads to a directory.
    #[error("layer {layer}: hard link {path:?} leads to {target:?}, which is a directory")]
    LinkToDirectory {
        /// The layer's number.
        layer: u32,
        /// The entry, escaped.
        path: String,
        /// What it leads to, escaped.
        target: String,
    },
    /// Directories are too deep for any path to reach them.
    #[error("directories are more than {max} deep")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// A name cannot be stored.
    #[error("layer {layer}: {path:?} cannot be stored")]
    BadName {
        /// The layer's number.
        layer: u32,
        /// The entry, escaped.
        path: String,
        /// What is wrong.
        source: EntryNameError,
    },
    /// A symlink's target is empty, too long, or holds a NUL.
    #[error("symlink {path:?} cannot lead to {target:?}")]
    BadSymlink {
        /// The symlink, escaped.
        path: String,
        /// Its target, escaped.
        target: String,
    },
}

impl MergeError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Limit { .. } | Self::TooMuchWork { .. } => ErrorKind::LimitExceeded,
            Self::TooDeep { .. } | Self::BadName { .. } => ErrorKind::Unsupported,
            Self::NotADirectory { .. }
            | Self::TooManySymlinks { .. }
            | Self::MissingLinkTarget { .. }
            | Self::LinkToDirectory { .. }
            | Self::BadSymlink { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Says why an image could not be written. Packs are counted from 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssembleError {
    /// Not the packs that the tree was merged from.
    #[error("tree was merged from {expected} packs, not from {found}")]
    WrongPacks {
        /// How many there must be.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// A pack was made for another profile than the image.
    #[error("pack {pack} was made for another profile")]
    WrongProfile {
        /// Which pack.
        pack: usize,
    },
    /// A pack cannot be read.
    #[error("cannot read pack {pack}")]
    ReadPack {
        /// Which pack.
        pack: usize,
        /// What was said.
        source: io::Error,
    },
    /// Blocks cannot be copied from a pack to the image.
    #[error("cannot copy from pack {pack} to the image")]
    Copy {
        /// Which pack.
        pack: usize,
        /// What was said.
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("cannot write the image")]
    Write {
        /// What was said.
        source: io::Error,
    },
    /// The codec cannot be set up, or cannot compress.
    #[error("cannot compress a block of the image")]
    Codec {
        /// What it said.
        source: CodecError,
    },
    /// A block of a pack is damaged.
    #[error("block at byte {offset} of pack {pack} is damaged")]
    BadBlock {
        /// Which pack.
        pack: usize,
        /// Where in it.
        offset: u64,
        /// What the codec said.
        source: CodecError,
    },
    /// A block of a pack holds more or less than its index says.
    #[error("block at byte {offset} of pack {pack} holds {found} bytes instead of {expected}")]
    BlockLen {
        /// Which pack.
        pack: usize,
        /// Where in it.
        offset: u64,
        /// Bytes that it must hold.
        expected: u64,
        /// Bytes that it holds.
        found: u64,
    },
    /// The tables could not be written.
    #[error("cannot write the image's tables")]
    Tables {
        /// What was said.
        source: WriteError,
    },
    /// Something does not fit the format.
    #[error("{what} is too large for squashfs")]
    TooLarge {
        /// What.
        what: &'static str,
    },
    /// A part of the converter broke.
    #[error("the converter's {stage} stage failed unexpectedly")]
    Broken {
        /// Which part.
        stage: &'static str,
    },
}

impl AssembleError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::ReadPack { source, .. } | Self::Copy { source, .. } => match source.kind() {
                io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
                _ => io_kind(source, ErrorKind::Internal),
            },
            Self::Write { source } | Self::Tables { source: WriteError::Io { source, .. } } => {
                io_kind(source, ErrorKind::Internal)
            }
            Self::BadBlock { .. } | Self::BlockLen { .. } => ErrorKind::Corrupt,
            Self::Tables { source: WriteError::TooManyIds | WriteError::TooLarge { .. } } | Self::TooLarge { .. } => {
                ErrorKind::Unsupported
            }
            Self::WrongPacks { .. }
            | Self::WrongProfile { .. }
            | Self::Codec { .. }
            | Self::Tables { .. }
            | Self::Broken { .. } => ErrorKind::Internal,
        }
    }
}

impl From<PipelineError> for PackError {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Codec(source) => Self::Compress { source },
            PipelineError::Panicked(stage) => Self::Broken { stage },
            // The stage that stopped first has an error of its own, which wins.
            PipelineError::Stopped => Self::Broken { stage: "compressing" },
        }
    }
}

impl From<PipelineError> for AssembleError {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Codec(source) => Self::Codec { source },
            PipelineError::Panicked(stage) => Self::Broken { stage },
            // As above.
            PipelineError::Stopped => Self::Broken { stage: "compressing" },
        }
    }
}
