//! Metadata blocks, and the two-level tables made of them.
//!
//! A table is a byte stream cut into pieces of 8,192 bytes, each compressed
//! by itself behind a 16-bit header: bytes stored, and bit 15 if they are not
//! compressed. Tables of fixed-size entries are followed by an index, the
//! 64-bit position of each of their metadata blocks.

use std::io;

use sctl_common::Compression;

use crate::{
    codec::BlockCompressor,
    layout::{METADATA_BLOCK_SIZE, METADATA_UNCOMPRESSED},
    writer::WriteError,
};

/// Place of a byte in a table: the metadata block's first byte, counted from
/// the table's, and the offset in the block's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MetadataPosition {
    pub block: u64,
    pub offset: u16,
}

impl MetadataPosition {
    /// The two as one number, as inodes and xattrs are referred to.
    pub fn reference(self) -> u64 {
        self.block << 16 | u64::from(self.offset)
    }
}

/// Writes a table's stream.
pub(super) struct MetadataWriter<W> {
    what: &'static str,
    out: W,
    compressor: BlockCompressor,
    /// Contents of the block being filled: less than a full block.
    pending: Vec<u8>,
    stored: Vec<u8>,
    written: u64,
    /// First byte of each block already written.
    block_starts: Vec<u64>,
}

impl<W: io::Write> MetadataWriter<W> {
    /// `what` names the table in errors.
    pub fn new(what: &'static str, compression: Compression, out: W) -> Result<Self, WriteError> {
        Ok(Self {
            what,
            out,
            compressor: BlockCompressor::new(compression).map_err(|source| WriteError::Codec { what, source })?,
            pending: Vec::with_capacity(METADATA_BLOCK_SIZE),
            stored: Vec::new(),
            written: 0,
            block_starts: Vec::new(),
        })
    }

    /// Where the next byte goes.
    pub fn position(&self) -> MetadataPosition {
        // A full block is written at once, so the offset is below 8,192.
        MetadataPosition { block: self.written, offset: self.pending.len() as u16 }
    }

    /// Number of the block that the next byte goes to.
    pub fn block_number(&self) -> usize {
        self.block_starts.len()
    }

    /// First byte of a block that is written or being filled.
    pub fn block_start(&self, number: usize) -> u64 {
        self.block_starts.get(number).copied().unwrap_or(self.written)
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(METADATA_BLOCK_SIZE - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == METADATA_BLOCK_SIZE {
                self.flush_block()?;
            }
        }
        Ok(())
    }

    fn flush_block(&mut self) -> Result<(), WriteError> {
        let what = self.what;
        let size = self
            .compressor
            .compress(&self.pending, &mut self.stored)
            .map_err(|source| WriteError::Codec { what, source })?;
        // At most 8,192, so the top bit is free.
        let header = size.stored_len() as u16 | if size.is_compressed() { 0 } else { METADATA_UNCOMPRESSED };
        let io_error = |source| WriteError::Io { what, source };
        self.out.write_all(&header.to_le_bytes()).map_err(io_error)?;
        self.out.write_all(&self.stored).map_err(io_error)?;
        self.block_starts.push(self.written);
        self.written += 2 + self.stored.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes the last block; returns the output, the bytes written and the
    /// first byte of each block.
    pub fn finish(mut self) -> Result<(W, u64, Vec<u64>), WriteError> {
        if !self.pending.is_empty() {
            self.flush_block()?;
        }
        Ok((self.out, self.written, self.block_starts))
    }
}

/// Output that knows its position from the superblock.
pub(super) struct Positioned<W> {
    pub out: W,
    pub position: u64,
}

impl<W: io::Write> Positioned<W> {
    pub fn write(&mut self, what: &'static str, bytes: &[u8]) -> Result<(), WriteError> {
        self.out.write_all(bytes).map_err(|source| WriteError::Io { what, source })?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Writes a table of fixed-size entries without its index; returns the
    /// index: the absolute position of each metadata block.
    pub fn write_entries<const N: usize>(
        &mut self,
        what: &'static str,
        compression: Compression,
        entries: impl Iterator<Item = [u8; N]>,
    ) -> Result<Vec<u64>, WriteError> {
        let mut table = MetadataWriter::new(what, compression, &mut self.out)?;
        for entry in entries {
            table.write(&entry)?;
        }
        let (_, len, block_starts) = table.finish()?;
        let start = self.position;
        self.position += len;
        Ok(block_starts.into_iter().map(|block| start + block).collect())
    }

    /// Writes a table of fixed-size entries and its index; returns where the
    /// index starts.
    pub fn write_indexed_table<const N: usize>(
        &mut self,
        what: &'static str,
        compression: Compression,
        entries: impl Iterator<Item = [u8; N]>,
    ) -> Result<u64, WriteError> {
        let index = self.write_entries(what, compression, entries)?;
        let start = self.position;
        self.write_index(what, &index)?;
        Ok(start)
    }

    pub fn write_index(&mut self, what: &'static str, index: &[u64]) -> Result<(), WriteError> {
        let bytes: Vec<u8> = index.iter().flat_map(|position| position.to_le_bytes()).collect();
        self.write(what, &bytes)
    }
}
