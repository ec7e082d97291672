//! What an image holds, as the caller describes it.

use sctl_common::{Compression, EntryName};

use crate::layout::BlockSize;

/// Place of an inode in [`Image::inodes`].
pub type InodeIndex = u32;

/// Everything that the tables say.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// All inodes, in any order. Those that no directory leads to from the
    /// root are left out.
    pub inodes: Vec<Inode>,
    /// The root directory.
    pub root: InodeIndex,
    /// Sets of xattrs, which inodes name by their place here. Equal sets are
    /// stored once.
    pub xattr_sets: Vec<Vec<Xattr>>,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xattr {
    /// Full name: `user.x`, `trusted.x` or `security.x`.
    pub name: Vec<u8>,
    /// Any bytes, up to 64 KiB.
    pub value: Vec<u8>,
}

/// A file of any kind. Its number of links is counted by the writer.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Permission bits, within `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, seconds since 1970.
    pub mtime: u32,
    /// Place in [`Image::xattr_sets`].
    pub xattrs: Option<u32>,
    /// What it is.
    pub kind: InodeKind,
}

/// What an inode is, with the fields of that kind.
#[derive(Debug, Clone)]
pub enum InodeKind {
    /// A directory.
    Directory {
        /// Its entries, sorted by name, each name once. A directory may be
        /// the entry of one directory only.
        entries: Vec<(EntryName, InodeIndex)>,
    },
    /// A regular file.
    File(FileData),
    /// A symbolic link.
    Symlink {
        /// Where it leads: 1 to 4,095 bytes.
        target: Box<[u8]>,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice {
        /// Device number, as `(minor & 0xff) | major << 8 | (minor & !0xff) << 12`.
        rdev: u32,
    },
    /// A block device.
    BlockDevice {
        /// Device number, as that of a character device.
        rdev: u32,
    },
}

/// Where a regular file's contents are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileData {
    /// Length in bytes.
    pub size: u64,
    /// First byte of its first block, from the superblock. The other blocks
    /// follow it without gaps.
    pub start: u64,
    /// Size words of its blocks: one for each full block, and one more for
    /// the tail unless that is in a fragment block.
    pub blocks: Box<[BlockSize]>,
    /// Where the tail is, if it is in a fragment block.
    pub fragment: Option<FragmentRef>,
    /// Bytes of the file that its sparse blocks stand for.
    pub sparse_bytes: u64,
}

/// Place of a tail in the fragment blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentRef {
    /// Which fragment block.
    pub index: u32,
    /// Offset of the tail in that block's contents.
    pub offset: u32,
}

/// Where a fragment block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentEntry {
    /// Its first byte, from the superblock.
    pub start: u64,
    /// Its size word.
    pub size: BlockSize,
}

/// How the image was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// Compressor of the data and of the tables.
    pub compression: Compression,
    /// Bytes of a data block: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Time of creation, seconds since 1970.
    pub mkfs_time: u32,
}
