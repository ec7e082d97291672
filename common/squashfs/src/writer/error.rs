//! Why the tables could not be written.

use std::io;

use crate::{codec::CodecError, writer::InodeIndex};

/// Says why [`crate::writer::write_tables`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output failed.
    #[error("cannot write the {what}")]
    Io {
        /// Which table.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The compressor failed.
    #[error("cannot compress the {what}")]
    Codec {
        /// Which table.
        what: &'static str,
        /// Why.
        source: CodecError,
    },
    /// No power of two from 4 KiB to 1 MiB.
    #[error("block size {size} is not a power of two between 4 KiB and 1 MiB")]
    BlockSize {
        /// The size asked for.
        size: u32,
    },
    /// More distinct uids and gids than a 16-bit count can say.
    #[error("image has more than 65,535 distinct user and group ids")]
    TooManyIds,
    /// A table or a count does not fit its field.
    #[error("{what} is too large for squashfs")]
    TooLarge {
        /// Which.
        what: &'static str,
    },
    /// An entry, or the root, names an inode that is not there.
    #[error("inode {index} does not exist")]
    NoSuchInode {
        /// Its place in the image's inodes.
        index: InodeIndex,
    },
    /// The root is not a directory.
    #[error("the root inode is not a directory")]
    RootNotDirectory,
    /// A directory is an entry of two directories, or of itself.
    #[error("directory {index} has more than one parent")]
    DirectoryLinkedTwice {
        /// Its place in the image's inodes.
        index: InodeIndex,
    },
    /// Names are not in order, or one occurs twice.
    #[error("entry \"{name}\" of directory {index} is not in its place")]
    UnsortedDirectory {
        /// The directory's place in the image's inodes.
        index: InodeIndex,
        /// The name, escaped.
        name: String,
    },
    /// Bits beyond the permissions.
    #[error("mode {mode:#o} of inode {index} holds more than permissions")]
    BadMode {
        /// The inode's place in the image's inodes.
        index: InodeIndex,
        /// The mode.
        mode: u16,
    },
    /// A symlink target that Linux cannot follow.
    #[error("symlink target of {len} bytes (1 to 4,095 can be stored)")]
    SymlinkTarget {
        /// The inode's place in the image's inodes.
        index: InodeIndex,
        /// Length of the target in bytes.
        len: usize,
    },
    /// A file's block list does not match its size.
    #[error("file {index} of {size} bytes has {found} blocks instead of {expected}")]
    BlockCount {
        /// The inode's place in the image's inodes.
        index: InodeIndex,
        /// Its size in bytes.
        size: u64,
        /// Blocks given.
        found: u64,
        /// Blocks that it must have.
        expected: u64,
    },
    /// A file's tail is in no fragment block, or beyond its end.
    #[error("tail of file {index} is not inside fragment block {fragment}")]
    BadFragment {
        /// The inode's place in the image's inodes.
        index: InodeIndex,
        /// The fragment block named.
        fragment: u32,
    },
    /// A block would be outside the data area.
    #[error("data of {what} ends at byte {end}, behind the data area ({data_end} bytes)")]
    OutOfDataArea {
        /// What owns it.
        what: &'static str,
        /// Where the data ends.
        end: u64,
        /// Where the data area ends.
        data_end: u64,
    },
    /// An inode names a set of xattrs that is not there.
    #[error("xattr set {set} does not exist")]
    NoSuchXattrSet {
        /// The set's number.
        set: u32,
    },
    /// An xattr outside `user.`, `trusted.` and `security.`, without a name
    /// behind the dot, longer than 255 bytes, or given twice.
    #[error("xattr \"{name}\" cannot be stored")]
    XattrName {
        /// The name, escaped.
        name: String,
    },
    /// More than 64 KiB.
    #[error("value of xattr \"{name}\" has {len} bytes (65,536 can be stored)")]
    XattrValue {
        /// The name, escaped.
        name: String,
        /// Length of the value in bytes.
        len: usize,
    },
}
