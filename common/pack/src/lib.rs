//! Tar streams to packs, packs to a tree, a tree to squashfs.
//!
//! A *pack* is what one layer becomes when its tar stream has passed once: an
//! index of its entries, and their contents already compressed as squashfs
//! blocks. A squashfs image is then assembled from a stack of packs without
//! compressing again: their indexes are merged to one tree ([`Tree`]), the
//! blocks that are still visible are copied, and new tables are written.
//!
//! | step | function |
//! |---|---|
//! | layer → pack | [`pack_layer`] |
//! | pack → index | [`PackIndex::read`] |
//! | indexes → tree | [`Tree::merge`] |
//! | tree → image | [`assemble()`] |
//!
//! Three things hold for everything here. The same input gives the same
//! bytes, whatever the number of threads. No byte of a file that is not in the
//! merged tree is in the image. Contents are never held in memory; only the
//! index is.
//!
//! What does not live here: paths of the host, the network, the clock, and
//! what the tables of squashfs look like. Bytes come from [`std::io::Read`]
//! and [`sctl_squashfs::reader::ReadAt`], and go to [`std::io::Write`].
#![forbid(unsafe_code)]

mod assemble;
mod elf;
mod error;
mod index;
mod inflate;
mod layer;
mod path;
mod pipeline;
mod split;
mod tar;
mod tree;

pub use assemble::{AssembleOptions, ImageOutput, ImageSummary, assemble};
pub use elf::ElfMachine;
pub use error::{AssembleError, IndexError, MergeError, PackError};
pub use index::PackIndex;
pub use layer::{PackOptions, PackSummary, pack_layer};
pub use tree::{FileKind, IfExists, Tree};
