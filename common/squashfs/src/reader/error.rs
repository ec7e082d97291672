//! Why an image could not be read.

use std::io;

use crate::{
    codec::CodecError,
    layout::{BlockSizeError, SuperblockError},
    reader::FileType,
};

/// Says why reading failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The source failed.
    #[error("cannot read the {what} at byte {offset}")]
    Io {
        /// What was to be read.
        what: &'static str,
        /// Where, from the superblock.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// Not squashfs 4.0.
    #[error("bad superblock")]
    Superblock {
        /// Why.
        source: SuperblockError,
    },
    /// The image's compressor is one that is not decoded here.
    #[error("cannot decode the image")]
    Codec {
        /// Why.
        source: CodecError,
    },
    /// Something lies outside the image.
    #[error("{what} ends at byte {end}, past the end of the image ({image_len} bytes)")]
    OutOfBounds {
        /// What.
        what: &'static str,
        /// Where it ends.
        end: u64,
        /// Where the image ends.
        image_len: u64,
    },
    /// Stored bytes do not decode.
    #[error("{what} at byte {offset} is damaged")]
    BadBlock {
        /// What they are.
        what: &'static str,
        /// Where they are, from the superblock.
        offset: u64,
        /// Why.
        source: CodecError,
    },
    /// The size word of a block has unknown bits, or too much length.
    #[error("bad size of a block")]
    BadBlockSize {
        /// Why.
        source: BlockSizeError,
    },
    /// A field has a value that it cannot have.
    #[error("{what} is not valid ({value:#x})")]
    BadField {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The inode is of another kind than the call is for.
    #[error("inode {number} is a {found}, not a {expected}")]
    WrongKind {
        /// Inode number.
        number: u32,
        /// What it is.
        found: FileType,
        /// What it should be.
        expected: FileType,
    },
}
