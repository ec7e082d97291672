//! Reading tar streams, judged as the Go library judges them.
//!
//! Nearly every layer is written and read by Go's `archive/tar`, and an image
//! that means one thing there and another here would be a hole; so where
//! readers differ, this one does as that one does: which entries carry data,
//! which of several names wins, when a stream may end. Global pax headers are
//! checked and then ignored, as container engines do. Contents are handed on
//! as slices of the incoming chunks, and no allocation depends on a number in
//! the stream.
//!
//! | offset | bytes | field of a header |
//! |---|---|---|
//! | 0 | 100 | name |
//! | 100 | 8 | mode, octal or base-256, as all numbers |
//! | 108, 116 | 8, 8 | uid, gid |
//! | 124 | 12 | size |
//! | 136 | 12 | mtime |
//! | 148 | 8 | sum of all header bytes, these 8 taken as spaces |
//! | 156 | 1 | type |
//! | 157 | 100 | link target |
//! | 257 | 8 | magic: `ustar\0` and version, or `ustar  \0` (GNU) |
//! | 329, 337 | 8, 8 | device major, minor |
//! | 345 | 155 | ustar: what precedes the name; 131 bytes in star's format |
//! | 386 | 97 | GNU: four sparse extents, flag for more, real size |
//! | 508 | 4 | star: `tar\0` |
//!
//! # Source
//! POSIX.1-2017, pax; GNU tar manual, appendix D; Go, `archive/tar`.

mod archive;
mod header;
mod pax;
mod sparse;
mod stream;
mod xattr;

pub(crate) use archive::{Archive, ContentSink, Member, MemberKind};
pub(crate) use stream::{Chunk, ChunkSource, Stream};
pub(crate) use xattr::{MAX_XATTR_NAME_LEN, MAX_XATTR_VALUE_LEN};

/// Bytes of a record: headers, and what contents are padded to.
pub(crate) const RECORD_LEN: usize = 512;

/// Most bytes that an extended header or a long name may have.
pub(crate) const MAX_EXTENSION_LEN: u64 = 1 << 20;
