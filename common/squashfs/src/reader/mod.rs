//! Reads images, its own and others', trusted or not.
//!
//! A [`Reader`] may be used by several threads at once: they decode side by
//! side, and share a cache of decoded blocks with a fixed budget. Nothing in
//! an image makes it panic, allocate without bound, or loop; only directories
//! that contain each other are the caller's to notice, as the reader follows
//! no path.

mod cache;
mod directory;
mod error;
mod file;
mod inode;
mod metadata;
mod open;
mod source;
mod xattr;

pub use crate::writer::Xattr;
pub use directory::DirEntry;
pub use error::ReadError;
pub use inode::{Directory, File, FileType, Inode, InodeKind, InodeRef, Symlink};
pub use open::{Reader, ReaderOptions};
pub use source::ReadAt;
