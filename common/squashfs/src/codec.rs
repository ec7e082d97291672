//! Compressors of data, fragment and metadata blocks.
//!
//! Blocks are small and compressed one by one, so everything goes from slice
//! to slice, and what a codec has allocated is used again for the next block.
//! Compressing a block gives the same bytes whatever went through the
//! compressor before it.

use std::io;

use liblzma::stream::{Action, Status as XzStatus, Stream as XzStream};
use sctl_common::Compression;

use crate::layout::{BlockSize, BlockSizeError, CompressorId};

/// Memory that decoding one xz block may take. The largest dictionary that
/// makes sense is one block, 1 MiB; the rest is the decoder's own.
const XZ_MEMORY_LIMIT: u64 = 16 << 20;

/// Version of zlib-rs that compresses; `Cargo.lock` pins it, and a test holds
/// the two together.
const ZLIB_RS_VERSION: &str = "0.6.8";

/// Says why a block could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The codec has no memory, or refuses the level.
    #[error("cannot set up the {compressor} codec")]
    Setup {
        /// Which codec.
        compressor: CompressorId,
        /// What it said.
        source: io::Error,
    },
    /// Blocks of this compressor are not decoded here.
    #[error("squashfs images compressed with {compressor} are not supported")]
    Unsupported {
        /// Which codec.
        compressor: CompressorId,
    },
    /// Compressing failed for another reason than the block's contents.
    #[error("cannot compress a block with {compressor}")]
    Compress {
        /// Which codec.
        compressor: CompressorId,
        /// What it said.
        source: io::Error,
    },
    /// The block to compress is empty or larger than 1 MiB.
    #[error("a block of {len} bytes cannot be stored")]
    BlockLen {
        /// Its length in bytes.
        len: usize,
        /// The size word that it would need.
        source: BlockSizeError,
    },
    /// The stored bytes are damaged, or hold more than a block may.
    #[error("{compressor} data of {stored_len} bytes does not decode into {max_len} bytes or less")]
    Corrupt {
        /// Which codec.
        compressor: CompressorId,
        /// Bytes that were to be decoded.
        stored_len: usize,
        /// Bytes that they may give.
        max_len: usize,
    },
    /// An uncompressed block does not have the bytes that its size word says.
    #[error("uncompressed block has {found} bytes instead of {expected}, or more than {max_len}")]
    StoredLen {
        /// Bytes that the size word says.
        expected: usize,
        /// Bytes that are there.
        found: usize,
        /// Bytes that the block may have.
        max_len: usize,
    },
}

/// Name and version of the library that compresses, such as `zstd1.5.7`: with
/// another version the same block may give other bytes.
pub fn codec_id(compression: Compression) -> String {
    match compression {
        Compression::Gzip { .. } => format!("zlibrs{ZLIB_RS_VERSION}"),
        Compression::Zstd { .. } => format!("zstd{}", zstd::zstd_safe::version_string()),
    }
}

enum Encoder {
    Gzip(flate2::Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

/// Compresses blocks, one after the other. Make one for each thread.
pub struct BlockCompressor {
    encoder: Encoder,
}

impl BlockCompressor {
    /// Allocates the codec.
    ///
    /// # Errors
    /// [`CodecError::Setup`] if the codec refuses the level.
    pub fn new(compression: Compression) -> Result<Self, CodecError> {
        let encoder = match compression {
            Compression::Gzip { level } if (1..=9).contains(&level) => {
                Encoder::Gzip(flate2::Compress::new(flate2::Compression::new(u32::from(level)), true))
            }
            Compression::Gzip { .. } => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "level is not between 1 and 9");
                return Err(CodecError::Setup { compressor: CompressorId::Gzip, source });
            }
            Compression::Zstd { level } => Encoder::Zstd(
                zstd::bulk::Compressor::new(i32::from(level))
                    .map_err(|source| CodecError::Setup { compressor: CompressorId::Zstd, source })?,
            ),
        };
        Ok(Self { encoder })
    }

    /// Compresses `block` (1 byte to 1 MiB) into `out`, which afterwards holds
    /// the bytes to store and nothing else: the block itself if compression
    /// does not make it smaller.
    ///
    /// # Errors
    /// [`CodecError::BlockLen`] for other lengths, [`CodecError::Compress`] if
    /// the codec fails.
    pub fn compress(&mut self, block: &[u8], out: &mut Vec<u8>) -> Result<BlockSize, CodecError> {
        let len_error = |source| CodecError::BlockLen { len: block.len(), source };
        let raw = BlockSize::stored(block.len(), false).map_err(len_error)?;
        match self.encode(block, out)? {
            Some(len) if len < block.len() => {
                out.truncate(len);
                BlockSize::stored(len, true).map_err(len_error)
            }
            _ => {
                out.clear();
                out.extend_from_slice(block);
                Ok(raw)
            }
        }
    }

    /// Bytes written at the start of `out`, or `None` if they did not fit.
    fn encode(&mut self, block: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, CodecError> {
        match &mut self.encoder {
            Encoder::Gzip(encoder) => {
                // The room is a function of the block's length alone, so that
                // what an earlier block left in `out` cannot matter.
                out.resize(block.len(), 0);
                encoder.reset();
                let status = encoder
                    .compress(block, out, flate2::FlushCompress::Finish)
                    .map_err(|error| CodecError::Compress { compressor: CompressorId::Gzip, source: error.into() })?;
                // At most the length of `out`.
                Ok((status == flate2::Status::StreamEnd).then_some(encoder.total_out() as usize))
            }
            Encoder::Zstd(encoder) => {
                out.clear();
                out.reserve(zstd::zstd_safe::compress_bound(block.len()));
                encoder
                    .compress_to_buffer(block, out)
                    .map(Some)
                    .map_err(|source| CodecError::Compress { compressor: CompressorId::Zstd, source })
            }
        }
    }
}

enum Decoder {
    Gzip(flate2::Decompress),
    Xz,
    Lz4,
    Zstd(zstd::bulk::Decompressor<'static>),
}

/// Decompresses blocks, one after the other. Make one for each thread.
pub struct BlockDecompressor {
    compressor: CompressorId,
    decoder: Decoder,
}

impl BlockDecompressor {
    /// Allocates the codec.
    ///
    /// # Errors
    /// [`CodecError::Unsupported`] for lzma and lzo.
    pub fn new(compressor: CompressorId) -> Result<Self, CodecError> {
        let decoder = match compressor {
            CompressorId::Gzip => Decoder::Gzip(flate2::Decompress::new(true)),
            CompressorId::Xz => Decoder::Xz,
            CompressorId::Lz4 => Decoder::Lz4,
            CompressorId::Zstd => Decoder::Zstd(
                zstd::bulk::Decompressor::new().map_err(|source| CodecError::Setup { compressor, source })?,
            ),
            CompressorId::Lzma | CompressorId::Lzo => return Err(CodecError::Unsupported { compressor }),
        };
        Ok(Self { compressor, decoder })
    }

    /// Decodes a stored block into `out`, which afterwards holds its contents
    /// and nothing else: `max_len` bytes at most, and zeros of that length for
    /// a sparse block.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] or [`CodecError::StoredLen`] if the bytes are
    /// not such a block.
    pub fn decompress(
        &mut self,
        stored: &[u8],
        size: BlockSize,
        out: &mut Vec<u8>,
        max_len: usize,
    ) -> Result<(), CodecError> {
        if size.is_sparse() {
            out.clear();
            out.resize(max_len, 0);
            return Ok(());
        }
        if size.is_compressed() {
            out.resize(max_len, 0);
            let len = self.decode_into(stored, out)?;
            out.truncate(len);
            return Ok(());
        }
        let expected = size.stored_len() as usize;
        if stored.len() != expected || expected > max_len {
            return Err(CodecError::StoredLen { expected, found: stored.len(), max_len });
        }
        out.clear();
        out.extend_from_slice(stored);
        Ok(())
    }

    /// Decodes compressed bytes into `out` and says how many bytes of it they
    /// filled.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] if they are damaged or do not fit.
    pub fn decode_into(&mut self, stored: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        let compressor = self.compressor;
        let corrupt = CodecError::Corrupt { compressor, stored_len: stored.len(), max_len: out.len() };
        match &mut self.decoder {
            Decoder::Gzip(decoder) => {
                decoder.reset(true);
                match decoder.decompress(stored, out, flate2::FlushDecompress::Finish) {
                    Ok(flate2::Status::StreamEnd) => Ok(decoder.total_out() as usize),
                    _ => Err(corrupt),
                }
            }
            Decoder::Xz => decode_xz(stored, out).ok_or(corrupt),
            Decoder::Lz4 => lz4_flex::block::decompress_into(stored, out).map_err(|_| corrupt),
            Decoder::Zstd(decoder) => decoder.decompress_to_buffer(stored, out).map_err(|_| corrupt),
        }
    }
}

/// Decodes one xz stream; `None` if it is damaged or does not fit.
fn decode_xz(stored: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut stream = XzStream::new_stream_decoder(XZ_MEMORY_LIMIT, 0).ok()?;
    loop {
        let before = (stream.total_in(), stream.total_out());
        let input = stored.get(usize::try_from(before.0).ok()?..)?;
        let output = out.get_mut(usize::try_from(before.1).ok()?..)?;
        match stream.process(input, output, Action::Finish).ok()? {
            XzStatus::StreamEnd => return usize::try_from(stream.total_out()).ok(),
            _ if (stream.total_in(), stream.total_out()) == before => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text-like, repetitive and random stretches, from a small generator.
    fn sample(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match state % 4 {
                0 => bytes.extend_from_slice(&state.to_le_bytes()),
                1 => bytes.extend_from_slice(b"the quick brown "),
                _ => bytes.extend((0..state % 29).map(|n| b'a' + (n * (state >> 60)) as u8 % 26)),
            }
        }
        bytes.truncate(len);
        bytes
    }

    const COMPRESSIONS: [Compression; 5] = [
        Compression::Gzip { level: 1 },
        Compression::Gzip { level: 9 },
        Compression::Zstd { level: 1 },
        Compression::Zstd { level: 3 },
        Compression::Zstd { level: 9 },
    ];

    #[test]
    fn blocks_round_trip_and_a_used_compressor_gives_the_bytes_of_a_new_one() {
        for compression in COMPRESSIONS {
            let mut used = BlockCompressor::new(compression).unwrap();
            let mut decompressor = BlockDecompressor::new(compression.into()).unwrap();
            let (mut out, mut fresh, mut back) = (Vec::new(), Vec::new(), Vec::new());
            for (seed, len) in [131_072, 1, 8192, 4096, 1 << 20, 65_537, 8192, 300].into_iter().enumerate() {
                let block = sample(len, seed as u64 + 7);
                let size = used.compress(&block, &mut out).unwrap();
                let again = BlockCompressor::new(compression).unwrap().compress(&block, &mut fresh).unwrap();
                assert_eq!((size, &out), (again, &fresh), "{compression} {len}");
                assert_eq!(size.stored_len() as usize, out.len());
                decompressor.decompress(&out, size, &mut back, len).unwrap();
                assert!(back == block, "{compression} {len}");
                if size.is_compressed() {
                    assert!(decompressor.decompress(&out, size, &mut back, len - 1).is_err(), "{compression} {len}");
                    let short = &out[..out.len() / 2];
                    assert!(decompressor.decompress(short, size, &mut back, len).is_err(), "{compression} {len}");
                }
            }
        }
    }

    #[test]
    fn incompressible_blocks_are_stored_raw_and_empty_ones_refused() {
        let mut state = 1u64;
        let block: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .take(10_000)
        .collect();
        for compression in COMPRESSIONS {
            let mut compressor = BlockCompressor::new(compression).unwrap();
            let mut out = Vec::new();
            let size = compressor.compress(&block, &mut out).unwrap();
            assert!(!size.is_compressed() && out == block, "{compression}");
            assert!(matches!(compressor.compress(&[], &mut out), Err(CodecError::BlockLen { len: 0, .. })));
            assert!(compressor.compress(&vec![0; (1 << 20) + 1], &mut out).is_err());
        }
    }

    #[test]
    fn codec_versions_are_those_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        let expected = format!("name = \"zlib-rs\"\nversion = \"{ZLIB_RS_VERSION}\"\n");
        assert!(lock.contains(&expected), "zlib-rs was updated: change ZLIB_RS_VERSION, and with it all profiles");
        assert_eq!(codec_id(Compression::Gzip { level: 9 }), format!("zlibrs{ZLIB_RS_VERSION}"));
        assert!(codec_id(Compression::Zstd { level: 3 }).starts_with("zstd1."));
    }

    #[test]
    fn compressors_without_a_decoder_are_a_clear_error() {
        for compressor in [CompressorId::Lzma, CompressorId::Lzo] {
            assert!(matches!(BlockDecompressor::new(compressor), Err(CodecError::Unsupported { .. })));
        }
    }
}
