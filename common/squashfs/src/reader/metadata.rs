//! Metadata blocks, and reading across them.

use std::sync::Arc;

use crate::{
    layout::{METADATA_BLOCK_SIZE, METADATA_UNCOMPRESSED},
    reader::{ReadAt, ReadError, Reader},
};

/// Entries of 16 bytes and of 8 bytes in one metadata block.
pub(super) const ENTRIES_OF_16: u64 = METADATA_BLOCK_SIZE as u64 / 16;
pub(super) const ENTRIES_OF_8: u64 = METADATA_BLOCK_SIZE as u64 / 8;

/// A decoded metadata block.
pub(super) struct MetadataBlock {
    /// At least one byte, at most 8,192.
    contents: Vec<u8>,
    /// First byte behind it, where the next one may be.
    next: u64,
}

/// A place in a table, from the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MetadataPosition {
    pub block: u64,
    pub offset: u16,
}

impl MetadataPosition {
    /// What a 64-bit reference into the table from `table_start` on names.
    pub fn from_reference(table_start: u64, reference: u64) -> Result<Self, ReadError> {
        let block = table_start
            .checked_add(reference >> 16)
            .ok_or(ReadError::BadField { what: "reference to metadata", value: reference })?;
        Ok(Self { block, offset: reference as u16 })
    }
}

/// Reads a table's stream from some place on. It only ever goes forward, and
/// no further than the end of the table, so no loop on it is endless.
pub(super) struct Cursor<'a, R> {
    reader: &'a Reader<R>,
    what: &'static str,
    /// No metadata block of the table starts here or behind.
    table_end: u64,
    block_start: u64,
    block: Arc<MetadataBlock>,
    at: usize,
}

impl<R: ReadAt> Reader<R> {
    /// A cursor at `position` of a table that ends at `table_end`.
    pub(super) fn cursor(
        &self,
        what: &'static str,
        position: MetadataPosition,
        table_end: u64,
    ) -> Result<Cursor<'_, R>, ReadError> {
        let block = self.metadata_block(what, position.block, table_end)?;
        let at = usize::from(position.offset);
        // Right behind the last byte is where a stream goes on in the next block.
        if at > block.contents.len() {
            return Err(ReadError::BadField { what: "offset in a metadata block", value: at as u64 });
        }
        Ok(Cursor { reader: self, what, table_end, block_start: position.block, block, at })
    }

    /// A cursor at entry `number` of a table of fixed-size entries whose
    /// index starts at `index_start`. The caller has checked the number.
    pub(super) fn cursor_at_entry(
        &self,
        what: &'static str,
        index_start: u64,
        number: u64,
        entry_len: u64,
    ) -> Result<Cursor<'_, R>, ReadError> {
        let byte = number * entry_len;
        let mut position = [0; 8];
        let at = index_start.saturating_add(byte / METADATA_BLOCK_SIZE as u64 * 8);
        self.read_source(what, at, &mut position)?;
        let block = u64::from_le_bytes(position);
        let offset = (byte % METADATA_BLOCK_SIZE as u64) as u16;
        self.cursor(what, MetadataPosition { block, offset }, index_start)
    }

    fn metadata_block(&self, what: &'static str, start: u64, table_end: u64) -> Result<Arc<MetadataBlock>, ReadError> {
        let image_len = self.superblock.bytes_used;
        if start >= table_end.min(image_len) {
            return Err(ReadError::OutOfBounds { what, end: start, image_len: table_end.min(image_len) });
        }
        self.metadata.get_or_decode(start, METADATA_BLOCK_SIZE, || self.decode_metadata(what, start))
    }

    fn decode_metadata(&self, what: &'static str, start: u64) -> Result<MetadataBlock, ReadError> {
        // One read for header and contents, of which there may be less.
        let mut bytes = [0; METADATA_BLOCK_SIZE + 2];
        let available = (self.superblock.bytes_used - start).min(bytes.len() as u64) as usize;
        let bytes = &mut bytes[..available];
        self.read_source(what, start, bytes)?;
        let (header, stored) = bytes.split_first_chunk::<2>().ok_or(ReadError::OutOfBounds {
            what,
            end: start.saturating_add(2),
            image_len: self.superblock.bytes_used,
        })?;
        let header = u16::from_le_bytes(*header);
        let len = usize::from(header & !METADATA_UNCOMPRESSED);
        let stored = stored
            .get(..len)
            .filter(|stored| !stored.is_empty())
            .ok_or(ReadError::BadField { what: "size of a metadata block", value: u64::from(header) })?;
        let next = start + 2 + len as u64;
        let contents = if header & METADATA_UNCOMPRESSED != 0 {
            stored.to_vec()
        } else {
            let mut contents = vec![0; METADATA_BLOCK_SIZE];
            let len = self
                .with_decoder(|decoder| decoder.decompressor.decode_into(stored, &mut contents))?
                .map_err(|source| ReadError::BadBlock { what, offset: start, source })?;
            contents.truncate(len);
            contents
        };
        match contents.is_empty() {
            true => Err(ReadError::BadField { what: "contents of a metadata block", value: 0 }),
            false => Ok(MetadataBlock { contents, next }),
        }
    }
}

impl<R: ReadAt> Cursor<'_, R> {
    /// Where the next byte is.
    pub fn position(&self) -> MetadataPosition {
        // At most 8,192.
        MetadataPosition { block: self.block_start, offset: self.at as u16 }
    }

    /// What is left of this block; of the next one if nothing is.
    fn rest(&mut self) -> Result<&[u8], ReadError> {
        if self.at == self.block.contents.len() {
            let start = self.block.next;
            self.block = self.reader.metadata_block(self.what, start, self.table_end)?;
            self.block_start = start;
            self.at = 0;
        }
        Ok(&self.block.contents[self.at..])
    }

    pub fn read_exact(&mut self, mut buf: &mut [u8]) -> Result<(), ReadError> {
        while !buf.is_empty() {
            let rest = self.rest()?;
            let len = rest.len().min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            now.copy_from_slice(&rest[..len]);
            self.at += len;
            buf = later;
        }
        Ok(())
    }

    /// Reads `len` bytes; the caller has checked that this is not too much.
    pub fn read_vec(&mut self, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn skip(&mut self, mut len: u64) -> Result<(), ReadError> {
        while len > 0 {
            let now = (self.rest()?.len() as u64).min(len);
            self.at += now as usize;
            len -= now;
        }
        Ok(())
    }

    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let mut bytes = [0; N];
        match self.block.contents.get(self.at..self.at + N) {
            Some(here) => {
                bytes.copy_from_slice(here);
                self.at += N;
            }
            None => self.read_exact(&mut bytes)?,
        }
        Ok(bytes)
    }

    pub fn read_u16(&mut self) -> Result<u16, ReadError> {
        Ok(u16::from_le_bytes(self.read_array()?))
    }

    pub fn read_u32(&mut self) -> Result<u32, ReadError> {
        Ok(u32::from_le_bytes(self.read_array()?))
    }

    pub fn read_u64(&mut self) -> Result<u64, ReadError> {
        Ok(u64::from_le_bytes(self.read_array()?))
    }
}
