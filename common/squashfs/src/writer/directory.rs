//! The directory table.
//!
//! A listing is a row of headers, each followed by 1 to 256 entries whose
//! inodes lie in one metadata block of the inode table:
//!
//! | header: bytes | field |
//! |---|---|
//! | 4 | number of entries, minus 1 |
//! | 4 | metadata block of the inodes, from the inode table's start |
//! | 4 | inode number that the entries' differences refer to |
//!
//! | entry: bytes | field |
//! |---|---|
//! | 2 | offset of the inode in its metadata block |
//! | 2 | inode number, as a signed difference to the header's |
//! | 2 | type, of the basic inode |
//! | 2 | length of the name, minus 1 |
//! | … | name |
//!
//! Listings of more than one metadata block have an index in their inode:
//! for each further block the first header that starts in it, with the name
//! of its first entry.

use sctl_common::EntryName;

use crate::{
    layout::{LISTING_SIZE_BIAS, MAX_HEADER_ENTRIES, METADATA_BLOCK_SIZE},
    writer::{
        WriteError,
        metadata::{MetadataPosition, MetadataWriter},
    },
};

/// One entry, as the listing needs it.
pub(super) struct Entry<'a> {
    pub name: &'a EntryName,
    pub position: MetadataPosition,
    pub number: u32,
    pub basic_type: u16,
}

/// Where a listing went.
pub(super) struct Listing {
    pub position: MetadataPosition,
    /// Bytes of the listing, plus 3.
    pub size: u32,
    /// Bytes of index entries as they follow the inode, and their count.
    pub index: Vec<u8>,
    pub index_count: u16,
}

/// A header whose entries are being gathered.
struct Run {
    block: u64,
    base_number: u32,
    count: u32,
    entries: Vec<u8>,
}

struct IndexEntry<'a> {
    offset: u32,
    block_number: usize,
    name: &'a EntryName,
}

/// Writes the listing of one directory.
pub(super) fn write_listing<'a>(
    table: &mut MetadataWriter<Vec<u8>>,
    entries: impl Iterator<Item = Entry<'a>> + Clone,
) -> Result<Listing, WriteError> {
    let too_large = || WriteError::TooLarge { what: "listing of a directory" };
    let position = table.position();
    let first_block = table.block_number();
    let needs_index = entries.clone().map(|entry| 8 + entry.name.as_bytes().len()).sum::<usize>() > METADATA_BLOCK_SIZE;
    let mut index: Vec<IndexEntry<'a>> = Vec::new();
    let mut indexed_block = first_block;
    // Bytes of the listing up to the run, and of the run.
    let mut len = 0usize;
    let mut run = Run { block: 0, base_number: 0, count: 0, entries: Vec::new() };
    for entry in entries {
        let at = len + run.len();
        let block_number = first_block + (usize::from(position.offset) + at) / METADATA_BLOCK_SIZE;
        // The index is 16 bits long; what it does not reach is found by reading on.
        let starts_block = needs_index && block_number > indexed_block && index.len() < usize::from(u16::MAX);
        if run.count > 0 && (starts_block || !run.takes(&entry)) {
            len = at;
            run.flush(table)?;
        }
        if starts_block {
            let offset = u32::try_from(at).map_err(|_| too_large())?;
            index.push(IndexEntry { offset, block_number, name: entry.name });
            indexed_block = block_number;
        }
        run.push(&entry);
    }
    len += run.len();
    run.flush(table)?;
    let size = u32::try_from(len).ok().and_then(|len| len.checked_add(LISTING_SIZE_BIAS)).ok_or_else(too_large)?;
    Ok(Listing { position, size, index_count: index.len() as u16, index: encode_index(table, &index)? })
}

fn encode_index(table: &MetadataWriter<Vec<u8>>, index: &[IndexEntry<'_>]) -> Result<Vec<u8>, WriteError> {
    let mut bytes = Vec::new();
    for entry in index {
        let block = table_block(table.block_start(entry.block_number), "directory table")?;
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&block.to_le_bytes());
        let name = entry.name.as_bytes();
        // A name has 1 to 255 bytes.
        bytes.extend_from_slice(&(name.len() as u32 - 1).to_le_bytes());
        bytes.extend_from_slice(name);
    }
    Ok(bytes)
}

/// A metadata block's position in a table, in the 32 bits that directories
/// have for it.
pub(super) fn table_block(block: u64, what: &'static str) -> Result<u32, WriteError> {
    u32::try_from(block).map_err(|_| WriteError::TooLarge { what })
}

impl Run {
    /// Bytes of the header and its entries.
    fn len(&self) -> usize {
        if self.count == 0 { 0 } else { 12 + self.entries.len() }
    }

    fn difference(&self, entry: &Entry<'_>) -> Option<i16> {
        i16::try_from(i64::from(entry.number) - i64::from(self.base_number)).ok()
    }

    fn takes(&self, entry: &Entry<'_>) -> bool {
        (self.count as usize) < MAX_HEADER_ENTRIES
            && self.block == entry.position.block
            && self.difference(entry).is_some()
    }

    fn push(&mut self, entry: &Entry<'_>) {
        if self.count == 0 {
            self.block = entry.position.block;
            self.base_number = entry.number;
        }
        self.count += 1;
        // Either the base itself, or checked by `takes`.
        let difference = self.difference(entry).unwrap_or(0);
        let name = entry.name.as_bytes();
        self.entries.extend_from_slice(&entry.position.offset.to_le_bytes());
        self.entries.extend_from_slice(&difference.to_le_bytes());
        self.entries.extend_from_slice(&entry.basic_type.to_le_bytes());
        self.entries.extend_from_slice(&(name.len() as u16 - 1).to_le_bytes());
        self.entries.extend_from_slice(name);
    }

    fn flush(&mut self, table: &mut MetadataWriter<Vec<u8>>) -> Result<(), WriteError> {
        if self.count == 0 {
            return Ok(());
        }
        let block = table_block(self.block, "inode table")?;
        table.write(&(self.count - 1).to_le_bytes())?;
        table.write(&block.to_le_bytes())?;
        table.write(&self.base_number.to_le_bytes())?;
        table.write(&self.entries)?;
        self.count = 0;
        self.entries.clear();
        Ok(())
    }
}
