//! Writes the tables of an image behind its data area.
//!
//! The caller lays out the image like this and does everything but the
//! tables itself:
//!
//! 1. [`data_start`] bytes are left free at the start;
//! 2. data blocks and fragment blocks follow, in any order, without gaps or
//!    padding that the format would ask for;
//! 3. [`write_tables`] appends inode, directory, fragment, export, id and
//!    xattr tables and returns the superblock;
//! 4. [`encode_head`] gives the [`data_start`] bytes that belong at the start;
//! 5. the file is padded to 4,096 bytes, if a loop device is to take it.

mod directory;
mod error;
mod image;
mod inode;
mod metadata;
mod plan;
mod tables;
mod xattr;

pub use error::WriteError;
pub use image::{FileData, FragmentEntry, FragmentRef, Image, Inode, InodeIndex, InodeKind, Params, Xattr};
pub use tables::{data_start, encode_head, write_tables};
