//! Listings of directories: reading on from anywhere, and finding a name.

use std::ops::ControlFlow;

use sctl_common::EntryName;

use crate::{
    layout::{MAX_HEADER_ENTRIES, METADATA_BLOCK_SIZE},
    reader::{
        Directory, FileType, Inode, InodeRef, ReadAt, ReadError, Reader,
        metadata::{Cursor, MetadataPosition},
    },
};

/// Bits of a cookie that say how many entries of a header are done.
const COOKIE_ENTRY_BITS: u32 = 9;

/// One entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Its name: 1 to 255 bytes without slash and NUL, not `.` or `..`.
    pub name: &'a [u8],
    /// Where its inode is.
    pub inode: InodeRef,
    /// Inode number, as the directory has it.
    pub inode_number: u32,
    /// What it is, as the directory has it.
    pub file_type: FileType,
    /// Cookie with which reading goes on behind this entry; never 0.
    pub next: u64,
}

impl<R: ReadAt> Reader<R> {
    /// Gives the entries of a directory to `each`, in their order, without
    /// `.` and `..`, until it breaks off. Cookie 0 is the start; any other
    /// comes from [`DirEntry::next`].
    ///
    /// # Errors
    /// [`ReadError`] if `directory` is not one, or the image is damaged;
    /// entries in front of the damage have been given.
    pub fn read_dir(
        &self,
        directory: &Inode,
        cookie: u64,
        mut each: impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let directory = directory.directory()?;
        let Ok(header_at) = u32::try_from(cookie >> COOKIE_ENTRY_BITS) else { return Ok(()) };
        if header_at >= directory.listing_len {
            return Ok(());
        }
        let done = cookie as u32 & ((1 << COOKIE_ENTRY_BITS) - 1);
        self.listing_at(directory, |index_at, _| index_at <= header_at)?.skip_to(header_at)?.walk(done, &mut each)
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// [`ReadError`] if `directory` is not one, or the image is damaged.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<InodeRef>, ReadError> {
        let directory = directory.directory()?;
        if directory.listing_len == 0 || name.len() > EntryName::MAX_LEN {
            return Ok(None);
        }
        let mut found = None;
        let mut each = |entry: DirEntry<'_>| match entry.name.cmp(name) {
            std::cmp::Ordering::Less => ControlFlow::Continue(()),
            std::cmp::Ordering::Equal => {
                found = Some(entry.inode);
                ControlFlow::Break(())
            }
            // Listings are sorted.
            std::cmp::Ordering::Greater => ControlFlow::Break(()),
        };
        self.listing_at(directory, |_, first| first <= name)?.walk(0, &mut each)?;
        Ok(found)
    }

    /// A listing from the last header that the index has and `is_before`
    /// accepts, by its place in the listing and the name of its first entry;
    /// from the start if there is none.
    fn listing_at(
        &self,
        directory: &Directory,
        is_before: impl Fn(u32, &[u8]) -> bool,
    ) -> Result<Listing<'_, R>, ReadError> {
        let (mut at, mut block) = (0, directory.block);
        if directory.index_count > 0 {
            let mut cursor = self.cursor("inode table", directory.index, self.superblock.directory_table_start)?;
            let mut buf = [0; EntryName::MAX_LEN];
            for _ in 0..directory.index_count {
                let (entry_at, entry_block) = (cursor.read_u32()?, cursor.read_u32()?);
                let name_len = u64::from(cursor.read_u32()?) + 1;
                let name = read_name(&mut cursor, &mut buf, name_len)?;
                if entry_at >= directory.listing_len || !is_before(entry_at, name) {
                    break;
                }
                (at, block) = (entry_at, entry_block);
            }
        }
        // An index entry names the metadata block in which its header starts.
        let offset = (u64::from(directory.offset) + u64::from(at)) % METADATA_BLOCK_SIZE as u64;
        let offset = if at == 0 { directory.offset } else { offset as u16 };
        let start = self.superblock.directory_table_start;
        let position = MetadataPosition { block: start.saturating_add(u64::from(block)), offset };
        let cursor = self.cursor("directory table", position, self.superblock.bytes_used)?;
        Ok(Listing { cursor, at, len: directory.listing_len })
    }
}

/// A listing that is being read.
struct Listing<'a, R> {
    cursor: Cursor<'a, R>,
    /// Bytes of the listing that are behind the cursor, and all of them.
    at: u32,
    len: u32,
}

impl<R: ReadAt> Listing<'_, R> {
    fn skip_to(mut self, at: u32) -> Result<Self, ReadError> {
        self.cursor.skip(u64::from(at.saturating_sub(self.at)))?;
        self.at = self.at.max(at);
        Ok(self)
    }

    fn advance(&mut self, len: usize) -> Result<(), ReadError> {
        self.at = u32::try_from(len)
            .ok()
            .and_then(|len| self.at.checked_add(len))
            .filter(|at| *at <= self.len)
            .ok_or(ReadError::BadField { what: "length of a directory's listing", value: u64::from(self.len) })?;
        Ok(())
    }

    /// Reads headers and their entries, but leaves out the first `done` ones
    /// of the first header.
    fn walk(mut self, mut done: u32, each: &mut impl FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Result<(), ReadError> {
        let mut buf = [0; EntryName::MAX_LEN];
        while self.at < self.len {
            let header_at = self.at;
            self.advance(12)?;
            let (last, block, base) = (self.cursor.read_u32()?, self.cursor.read_u32()?, self.cursor.read_u32()?);
            if last as usize >= MAX_HEADER_ENTRIES {
                return Err(ReadError::BadField { what: "count of directory entries", value: u64::from(last) });
            }
            for entry in 0..=last {
                let fixed: [u8; 8] = self.cursor.read_array()?;
                let field = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
                let name_len = u64::from(field(6)) + 1;
                let name = read_name(&mut self.cursor, &mut buf, name_len)?;
                self.advance(8 + name.len())?;
                if entry < done {
                    continue;
                }
                let file_type = FileType::from_basic(field(4))
                    .ok_or(ReadError::BadField { what: "type of a directory entry", value: u64::from(field(4)) })?;
                if matches!(name, b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
                    return Err(ReadError::BadField { what: "name of a directory entry", value: name_len });
                }
                let next = if entry == last {
                    u64::from(self.at) << COOKIE_ENTRY_BITS
                } else {
                    u64::from(header_at) << COOKIE_ENTRY_BITS | u64::from(entry + 1)
                };
                let entry = DirEntry {
                    name,
                    inode: InodeRef::from_raw(u64::from(block) << 16 | u64::from(field(0))),
                    // A signed difference.
                    inode_number: base.wrapping_add_signed(i32::from(field(2).cast_signed())),
                    file_type,
                    next,
                };
                if each(entry).is_break() {
                    return Ok(());
                }
            }
            done = 0;
        }
        Ok(())
    }
}

/// Reads a name whose length comes from the image.
fn read_name<'b, R: ReadAt>(
    cursor: &mut Cursor<'_, R>,
    buf: &'b mut [u8; EntryName::MAX_LEN],
    len: u64,
) -> Result<&'b [u8], ReadError> {
    let name = usize::try_from(len)
        .ok()
        .and_then(|len| buf.get_mut(..len))
        .ok_or(ReadError::BadField { what: "length of a file name", value: len })?;
    cursor.read_exact(name)?;
    Ok(name)
}
