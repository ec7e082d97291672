//! The format of packs.
//!
//! | part | bytes | holds |
//! |---|---|---|
//! | header | 32 | magic `sctlpack`, format version (u32), compressor (u16), level (u16), block size (u32), zeros |
//! | data | | squashfs data and fragment blocks, one behind the other |
//! | index | | a zstd frame, see below |
//! | trailer | 72 | offset, stored and raw length of the index (u64 each), tar bytes (u64), BLAKE3, magic `sctlpend` |
//!
//! The BLAKE3 digest is over header, stored index and the trailer's numbers.
//! All numbers are little-endian. The raw index is a sequence of LEB128
//! numbers and bytes:
//!
//! 1. SHA-256 of the tar stream, 32 bytes;
//! 2. number of blocks, and of each its squashfs size word; 0 is a sparse
//!    block, which has no bytes;
//! 3. number of contents; of each: size, place × 2 + 1 if that is a fragment
//!    block and then the offset in it, otherwise the first of its own blocks,
//!    and the code of its ELF machine or 0; then 32 bytes of digest for each:
//!    BLAKE3 of its bytes if it is in a fragment block, else of the digests of
//!    its blocks as they are stored (see `split`);
//! 4. number of xattr sets; of each: number of xattrs, and of each its name
//!    and its value, both preceded by their length;
//! 5. number of entries, in the order of the tar stream; of each: type, clean
//!    path, and what its type demands (see [`EntryKind`]).
//!
//! Every block belongs to exactly one content, or to contents that fill it
//! without gaps; so what a block holds is known without decoding it.

mod decode;
mod encode;

pub use decode::PackIndex;
pub(crate) use decode::{Content, Index, MAX_SYMLINK_LEN, PackData, Place, What, is_valid_profile};
pub(crate) use encode::{Attributes, IndexBuilder, write_header};

/// Version of the format.
const FORMAT_VERSION: u32 = 1;

const HEADER_MAGIC: &[u8; 8] = b"sctlpack";
const TRAILER_MAGIC: &[u8; 8] = b"sctlpend";

/// Bytes before the first block.
pub(crate) const HEADER_LEN: usize = 32;

/// Bytes behind the index.
pub(crate) const TRAILER_LEN: usize = 72;

/// Length of content digests and of the diff_id.
const DIGEST_LEN: usize = 32;

/// Types of entries, by their number in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryKind {
    /// Attributes follow.
    Directory = 0,
    /// Attributes and the number of the content + 1 follow, 0 for none.
    File = 1,
    /// Attributes and the target follow.
    Symlink = 2,
    /// The clean path of the target follows.
    HardLink = 3,
    /// Attributes follow.
    Fifo = 4,
    /// A device node; images get none, but it hides what was there.
    Device = 5,
    /// The path of what is hidden in lower layers.
    Whiteout = 6,
    /// The path of the directory whose lower entries are hidden.
    Opaque = 7,
}

impl EntryKind {
    fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Directory,
            1 => Self::File,
            2 => Self::Symlink,
            3 => Self::HardLink,
            4 => Self::Fifo,
            5 => Self::Device,
            6 => Self::Whiteout,
            7 => Self::Opaque,
            _ => return None,
        })
    }
}
