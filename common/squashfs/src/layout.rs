//! Sizes, constants and the superblock of squashfs 4.0.
//!
//! Everything is little-endian. The file system starts with the superblock:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `hsqs` |
//! | 4 | 4 | number of inodes |
//! | 8 | 4 | time of creation, seconds since 1970 |
//! | 12 | 4 | block size in bytes, a power of two from 4 KiB to 1 MiB |
//! | 16 | 4 | number of fragment blocks |
//! | 20 | 2 | compressor |
//! | 22 | 2 | log2 of the block size |
//! | 24 | 2 | flags |
//! | 26 | 2 | number of distinct uids and gids |
//! | 28 | 4 | version: major 4, minor 0 |
//! | 32 | 8 | reference of the root inode |
//! | 40 | 8 | bytes used by the file system |
//! | 48 | 8 | start of the id index |
//! | 56 | 8 | start of the xattr id index, or all ones |
//! | 64 | 8 | start of the inode table |
//! | 72 | 8 | start of the directory table |
//! | 80 | 8 | start of the fragment index, or all ones |
//! | 88 | 8 | start of the export index, or all ones |
//!
//! Compressor options may follow, then data and fragment blocks, then the
//! tables. All positions count from the superblock's first byte.
//!
//! # Source
//! Linux, `fs/squashfs/squashfs_fs.h`, and its `Documentation/filesystems/squashfs.rst`.

use std::fmt;

use sctl_common::Compression;

/// Bytes of the superblock.
pub const SUPERBLOCK_LEN: usize = 96;

/// Bytes that a metadata block holds before compression.
pub const METADATA_BLOCK_SIZE: usize = 8192;

/// Smallest data block in bytes.
pub const MIN_BLOCK_SIZE: u32 = 4 << 10;

/// Largest data block in bytes: the format's upper limit.
pub const MAX_BLOCK_SIZE: u32 = 1 << 20;

/// First four bytes of the superblock, as a number.
pub(crate) const MAGIC: u32 = 0x7371_7368;

/// Marks a table that is not there.
pub(crate) const NO_TABLE: u64 = u64::MAX;

/// Marks a file without a tail in a fragment block.
pub(crate) const NO_FRAGMENT: u32 = u32::MAX;

/// Marks an inode without xattrs.
pub(crate) const NO_XATTR: u32 = u32::MAX;

/// Bit of a metadata block's header that says "stored as it is".
pub(crate) const METADATA_UNCOMPRESSED: u16 = 1 << 15;

/// Entries behind one directory header.
pub(crate) const MAX_HEADER_ENTRIES: usize = 256;

/// Longest symlink target in bytes: a path with its NUL fills 4,096.
pub(crate) const MAX_SYMLINK_LEN: usize = 4095;

/// A directory's listing size counts three bytes that are not there, for
/// `.` and `..`.
pub(crate) const LISTING_SIZE_BIAS: u32 = 3;

/// Bytes of one entry of the fragment table, and of the xattr id table.
pub(crate) const FRAGMENT_ENTRY_LEN: usize = 16;
pub(crate) const XATTR_ID_LEN: usize = 16;

/// Xattr entries whose value is stored elsewhere carry this bit in the type.
pub(crate) const XATTR_OUT_OF_LINE: u16 = 0x100;

/// Name spaces of xattrs, by their number in the format.
pub(crate) const XATTR_PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Bits of the superblock's flags.
pub mod flags {
    /// No tails are packed into fragment blocks.
    pub const NO_FRAGMENTS: u16 = 0x0010;
    /// Equal files are stored once.
    pub const DUPLICATES: u16 = 0x0040;
    /// An export table leads from inode numbers to inodes.
    pub const EXPORTABLE: u16 = 0x0080;
    /// No inode has xattrs.
    pub const NO_XATTRS: u16 = 0x0200;
    /// Compressor options follow the superblock.
    pub const COMPRESSOR_OPTIONS: u16 = 0x0400;
}

/// Compressor of an image, by its number in the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CompressorId {
    /// zlib streams.
    Gzip = 1,
    /// Raw LZMA; never in mainline kernels, not decoded here.
    Lzma = 2,
    /// LZO; not decoded here.
    Lzo = 3,
    /// xz streams.
    Xz = 4,
    /// LZ4 blocks.
    Lz4 = 5,
    /// Zstandard frames.
    Zstd = 6,
}

impl CompressorId {
    /// The compressor with this number, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Gzip,
            2 => Self::Lzma,
            3 => Self::Lzo,
            4 => Self::Xz,
            5 => Self::Lz4,
            6 => Self::Zstd,
            _ => return None,
        })
    }

    /// Its number in the superblock.
    pub fn number(self) -> u16 {
        self as u16
    }
}

impl From<Compression> for CompressorId {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Gzip { .. } => Self::Gzip,
            Compression::Zstd { .. } => Self::Zstd,
        }
    }
}

impl fmt::Display for CompressorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Size word of a data or fragment block: how many bytes are stored, and
/// whether they are compressed. Zero is a sparse block, which stores nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlockSize(u32);

/// Says that a number is no size word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:#x} is not the size word of a block")]
pub struct BlockSizeError {
    /// The number.
    pub word: u32,
}

impl BlockSize {
    /// A block of zeros, of which nothing is stored.
    pub const SPARSE: Self = Self(0);

    pub(crate) const UNCOMPRESSED: u32 = 1 << 24;

    /// Checks a size word.
    ///
    /// # Errors
    /// [`BlockSizeError`] for unknown bits, for more than 1 MiB, and for an
    /// uncompressed block of no bytes.
    pub fn from_word(word: u32) -> Result<Self, BlockSizeError> {
        let len = word & !Self::UNCOMPRESSED;
        if len > MAX_BLOCK_SIZE || word == Self::UNCOMPRESSED {
            return Err(BlockSizeError { word });
        }
        Ok(Self(word))
    }

    /// Size word of `len` stored bytes: 1 to 1 MiB.
    ///
    /// # Errors
    /// [`BlockSizeError`] for any other length.
    pub fn stored(len: usize, compressed: bool) -> Result<Self, BlockSizeError> {
        let word = u32::try_from(len).unwrap_or(u32::MAX);
        if word == 0 || word > MAX_BLOCK_SIZE {
            return Err(BlockSizeError { word });
        }
        Ok(Self(if compressed { word } else { word | Self::UNCOMPRESSED }))
    }

    /// The number as it stands in the image.
    pub fn word(self) -> u32 {
        self.0
    }

    /// Bytes that the block takes in the image; 0 if it is sparse.
    pub fn stored_len(self) -> u32 {
        self.0 & !Self::UNCOMPRESSED
    }

    /// Whether the stored bytes have to be decompressed.
    pub fn is_compressed(self) -> bool {
        self.0 != 0 && self.0 & Self::UNCOMPRESSED == 0
    }

    /// Whether the block is all zeros and stored nowhere.
    pub fn is_sparse(self) -> bool {
        self.0 == 0
    }
}

/// The superblock, as the module's table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Number of inodes.
    pub inode_count: u32,
    /// Time of creation, seconds since 1970.
    pub mkfs_time: u32,
    /// Bytes of a data block.
    pub block_size: u32,
    /// Number of fragment blocks.
    pub fragment_count: u32,
    /// Compressor of data and metadata.
    pub compressor: CompressorId,
    /// See [`flags`].
    pub flags: u16,
    /// Number of distinct uids and gids.
    pub id_count: u16,
    /// Reference of the root inode: its metadata block's position in the
    /// inode table, shifted left by 16, and its offset therein.
    pub root_inode: u64,
    /// Bytes used by the file system, from the superblock on.
    pub bytes_used: u64,
    /// Start of the id index.
    pub id_table_start: u64,
    /// Start of the xattr id index, or all ones.
    pub xattr_table_start: u64,
    /// Start of the inode table.
    pub inode_table_start: u64,
    /// Start of the directory table.
    pub directory_table_start: u64,
    /// Start of the fragment index, or all ones.
    pub fragment_table_start: u64,
    /// Start of the export index, or all ones.
    pub export_table_start: u64,
}

/// Says why bytes are not a superblock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// The magic is another.
    #[error("not a squashfs file system (magic is {found:#010x})")]
    BadMagic {
        /// The first four bytes as a number.
        found: u32,
    },
    /// Not version 4.0.
    #[error("squashfs version {major}.{minor} is not supported (only 4.0 is)")]
    BadVersion {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// The block size is no power of two between 4 KiB and 1 MiB, or its
    /// logarithm names another.
    #[error("block size {size} with logarithm {log} is not valid")]
    BadBlockSize {
        /// Bytes of a block.
        size: u32,
        /// The logarithm beside it.
        log: u16,
    },
    /// The compressor's number is unknown.
    #[error("unknown compressor number {number}")]
    UnknownCompressor {
        /// The number.
        number: u16,
    },
}

impl Superblock {
    /// Reads the fields; positions are not checked here.
    ///
    /// # Errors
    /// [`SuperblockError`] if magic, version, block size or compressor are
    /// not those of squashfs 4.0.
    pub fn parse(bytes: &[u8; SUPERBLOCK_LEN]) -> Result<Self, SuperblockError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC {
            return Err(SuperblockError::BadMagic { found: u32_at(0) });
        }
        if (u16_at(28), u16_at(30)) != (4, 0) {
            return Err(SuperblockError::BadVersion { major: u16_at(28), minor: u16_at(30) });
        }
        let (block_size, log) = (u32_at(12), u16_at(22));
        if !is_valid_block_size(block_size) || block_size.trailing_zeros() != u32::from(log) {
            return Err(SuperblockError::BadBlockSize { size: block_size, log });
        }
        let compressor =
            CompressorId::from_number(u16_at(20)).ok_or(SuperblockError::UnknownCompressor { number: u16_at(20) })?;
        Ok(Self {
            inode_count: u32_at(4),
            mkfs_time: u32_at(8),
            block_size,
            fragment_count: u32_at(16),
            compressor,
            flags: u16_at(24),
            id_count: u16_at(26),
            root_inode: u64_at(32),
            bytes_used: u64_at(40),
            id_table_start: u64_at(48),
            xattr_table_start: u64_at(56),
            inode_table_start: u64_at(64),
            directory_table_start: u64_at(72),
            fragment_table_start: u64_at(80),
            export_table_start: u64_at(88),
        })
    }

    /// The bytes that stand at the start of the file system.
    pub fn encode(&self) -> [u8; SUPERBLOCK_LEN] {
        let mut bytes = [0; SUPERBLOCK_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&self.inode_count.to_le_bytes());
        put(&self.mkfs_time.to_le_bytes());
        put(&self.block_size.to_le_bytes());
        put(&self.fragment_count.to_le_bytes());
        put(&self.compressor.number().to_le_bytes());
        // At most 20, the logarithm of 1 MiB.
        put(&(self.block_size.trailing_zeros() as u16).to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.id_count.to_le_bytes());
        put(&4u16.to_le_bytes());
        put(&0u16.to_le_bytes());
        put(&self.root_inode.to_le_bytes());
        put(&self.bytes_used.to_le_bytes());
        put(&self.id_table_start.to_le_bytes());
        put(&self.xattr_table_start.to_le_bytes());
        put(&self.inode_table_start.to_le_bytes());
        put(&self.directory_table_start.to_le_bytes());
        put(&self.fragment_table_start.to_le_bytes());
        put(&self.export_table_start.to_le_bytes());
        bytes
    }
}

/// Whether the format allows data blocks of `size` bytes.
pub(crate) fn is_valid_block_size(size: u32) -> bool {
    size.is_power_of_two() && (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_words_outside_the_format_are_refused() {
        for good in [0, 1, 4096, 1 << 20, 1 << 24 | 1, 1 << 24 | 1 << 20] {
            assert_eq!(BlockSize::from_word(good).map(BlockSize::word), Ok(good));
        }
        for bad in [1 << 24, (1 << 20) + 1, 1 << 25, u32::MAX, 1 << 24 | ((1 << 20) + 1)] {
            assert!(BlockSize::from_word(bad).is_err(), "accepted {bad:#x}");
        }
        assert!(BlockSize::stored(0, true).is_err());
        assert!(BlockSize::stored((1 << 20) + 1, false).is_err());
        let raw = BlockSize::stored(100, false).unwrap();
        assert_eq!((raw.stored_len(), raw.is_compressed(), raw.is_sparse()), (100, false, false));
        assert!(BlockSize::SPARSE.is_sparse() && !BlockSize::SPARSE.is_compressed());
    }

    #[test]
    fn superblock_round_trips() {
        let superblock = Superblock {
            inode_count: 1,
            mkfs_time: 2,
            block_size: 128 << 10,
            fragment_count: 3,
            compressor: CompressorId::Zstd,
            flags: flags::EXPORTABLE,
            id_count: 4,
            root_inode: 5,
            bytes_used: 6,
            id_table_start: 7,
            xattr_table_start: NO_TABLE,
            inode_table_start: 8,
            directory_table_start: 9,
            fragment_table_start: 10,
            export_table_start: 11,
        };
        let mut bytes = superblock.encode();
        assert_eq!(Superblock::parse(&bytes), Ok(superblock));
        bytes[22] = 16;
        assert!(matches!(Superblock::parse(&bytes), Err(SuperblockError::BadBlockSize { .. })));
        bytes[0] = 0;
        assert!(matches!(Superblock::parse(&bytes), Err(SuperblockError::BadMagic { .. })));
    }
}
