//! squashfs 4.0: tables, blocks, reader, writer.
//!
//! Here live the layout of the format ([`Superblock`], [`BlockSize`]), the
//! compressors of its blocks ([`BlockCompressor`], [`BlockDecompressor`]), a
//! writer of everything that follows the data area ([`writer`]) and a reader
//! that is safe on hostile images ([`reader`]).
//!
//! What does not live here: files, directories and paths of the host,
//! threads, tar, SIF. Nothing here opens anything; the reader gets its bytes
//! through [`reader::ReadAt`], the writer gives them to an [`std::io::Write`].
#![forbid(unsafe_code)]

mod codec;
mod layout;
pub mod reader;
pub mod writer;

pub use codec::{BlockCompressor, BlockDecompressor, CodecError, codec_id};
pub use layout::{
    BlockSize, BlockSizeError, CompressorId, MAX_BLOCK_SIZE, METADATA_BLOCK_SIZE, MIN_BLOCK_SIZE, SUPERBLOCK_LEN,
    Superblock, SuperblockError, flags,
};
