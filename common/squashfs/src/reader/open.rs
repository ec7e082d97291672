//! Opening an image, and what all parts of the reader share.

use std::sync::{Mutex, PoisonError};

use crate::{
    codec::{BlockDecompressor, CodecError},
    layout::{BlockSize, METADATA_BLOCK_SIZE, NO_TABLE, SUPERBLOCK_LEN, Superblock},
    reader::{
        Inode, InodeKind, InodeRef, ReadAt, ReadError,
        cache::BlockCache,
        file::Checkpoints,
        metadata::{ENTRIES_OF_8, ENTRIES_OF_16, MetadataBlock, MetadataPosition},
    },
};

/// Decoders kept for the next call; more threads than that make their own.
const MAX_IDLE_DECODERS: usize = 64;

/// How much memory a [`Reader`] may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderOptions {
    /// Bytes of decoded data and fragment blocks; one block at least is kept.
    pub cache_bytes: usize,
    /// Bytes of decoded metadata.
    pub metadata_cache_bytes: usize,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, metadata_cache_bytes: 8 << 20 }
    }
}

/// Decodes one image.
pub struct Reader<R> {
    source: R,
    base: u64,
    pub(super) superblock: Superblock,
    pub(super) ids: Vec<u32>,
    pub(super) data: BlockCache<(u64, u32), Vec<u8>>,
    pub(super) metadata: BlockCache<u64, MetadataBlock>,
    pub(super) checkpoints: Checkpoints,
    decoders: Mutex<Vec<Decoder>>,
}

/// What one thread needs to decode a block.
pub(super) struct Decoder {
    pub decompressor: BlockDecompressor,
    /// Room for the stored bytes.
    pub stored: Vec<u8>,
}

impl<R: ReadAt> Reader<R> {
    /// Opens the image whose superblock is `base` bytes into the source, and
    /// checks superblock, tables' places, ids and root directory.
    ///
    /// # Errors
    /// [`ReadError`] if one of them is not valid, or the image is longer than
    /// the source.
    pub fn open(source: R, base: u64, options: ReaderOptions) -> Result<Self, ReadError> {
        let mut bytes = [0; SUPERBLOCK_LEN];
        let available = source.len().saturating_sub(base);
        if available < SUPERBLOCK_LEN as u64 {
            let end = SUPERBLOCK_LEN as u64;
            return Err(ReadError::OutOfBounds { what: "superblock", end, image_len: available });
        }
        source.read_exact_at(&mut bytes, base).map_err(|source| ReadError::Io {
            what: "superblock",
            offset: 0,
            source,
        })?;
        let superblock = Superblock::parse(&bytes).map_err(|source| ReadError::Superblock { source })?;
        if superblock.bytes_used > available {
            return Err(ReadError::OutOfBounds {
                what: "file system",
                end: superblock.bytes_used,
                image_len: available,
            });
        }
        check_tables(&superblock)?;
        let decompressor =
            BlockDecompressor::new(superblock.compressor).map_err(|source| ReadError::Codec { source })?;
        let mut reader = Self {
            source,
            base,
            superblock,
            ids: Vec::new(),
            data: BlockCache::new(options.cache_bytes),
            metadata: BlockCache::new(options.metadata_cache_bytes),
            checkpoints: Checkpoints::default(),
            decoders: Mutex::new(vec![Decoder { decompressor, stored: Vec::new() }]),
        };
        reader.ids = reader.read_ids()?;
        let root = reader.inode(reader.root())?;
        root.directory()?;
        Ok(reader)
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Where the bytes come from.
    pub fn source(&self) -> &R {
        &self.source
    }

    /// The root directory.
    pub fn root(&self) -> InodeRef {
        InodeRef::from_raw(self.superblock.root_inode)
    }

    /// The inode with this number, if the image has an export table that
    /// holds it.
    ///
    /// # Errors
    /// [`ReadError`] if the table is damaged.
    pub fn inode_by_number(&self, number: u32) -> Result<Option<InodeRef>, ReadError> {
        let start = self.superblock.export_table_start;
        if start == NO_TABLE || number == 0 || number > self.superblock.inode_count {
            return Ok(None);
        }
        let mut cursor = self.cursor_at_entry("export table", start, u64::from(number) - 1, 8)?;
        Ok(Some(InodeRef::from_raw(cursor.read_u64()?)))
    }

    /// Reads the parent of a directory; the root is its own.
    ///
    /// # Errors
    /// [`ReadError`] if `directory` is not one, or tables are damaged.
    pub fn parent(&self, directory: &Inode) -> Result<Option<InodeRef>, ReadError> {
        let number = directory.directory()?.parent_number();
        if directory.reference == self.root() {
            return Ok(Some(self.root()));
        }
        self.inode_by_number(number)
    }

    fn read_ids(&self) -> Result<Vec<u32>, ReadError> {
        let count = usize::from(self.superblock.id_count);
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let number = ids.len() as u64;
            let mut cursor = self.cursor_at_entry("id table", self.superblock.id_table_start, number, 4)?;
            for _ in 0..(count - ids.len()).min(METADATA_BLOCK_SIZE / 4) {
                ids.push(cursor.read_u32()?);
            }
        }
        Ok(ids)
    }

    /// Reads stored bytes; `offset` counts from the superblock.
    pub(super) fn read_source(&self, what: &'static str, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let image_len = self.superblock.bytes_used;
        let end = offset.saturating_add(buf.len() as u64);
        if end > image_len {
            return Err(ReadError::OutOfBounds { what, end, image_len });
        }
        // The sum cannot overflow: the image lies within the source.
        self.source.read_exact_at(buf, self.base + offset).map_err(|source| ReadError::Io { what, offset, source })
    }

    /// Lends a decoder that no other thread uses.
    pub(super) fn with_decoder<T>(&self, work: impl FnOnce(&mut Decoder) -> T) -> Result<T, ReadError> {
        let idle = self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = match idle {
            Some(decoder) => decoder,
            None => Decoder {
                decompressor: BlockDecompressor::new(self.superblock.compressor)
                    .map_err(|source: CodecError| ReadError::Codec { source })?,
                stored: Vec::new(),
            },
        };
        let result = work(&mut decoder);
        let mut idle = self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_DECODERS {
            idle.push(decoder);
        }
        Ok(result)
    }

    /// Decodes a data or fragment block into `out`; returns the bytes that it
    /// holds. `size` is not that of a sparse block.
    pub(super) fn decode_data(
        &self,
        what: &'static str,
        start: u64,
        size: BlockSize,
        out: &mut [u8],
    ) -> Result<usize, ReadError> {
        let stored_len = size.stored_len() as usize;
        if !size.is_compressed() {
            let out = out
                .get_mut(..stored_len)
                .ok_or(ReadError::BadField { what: "length of an uncompressed block", value: stored_len as u64 })?;
            self.read_source(what, start, out)?;
            return Ok(stored_len);
        }
        self.with_decoder(|decoder| {
            decoder.stored.resize(stored_len, 0);
            self.read_source(what, start, &mut decoder.stored)?;
            decoder.decompressor.decode_into(&decoder.stored, out).map_err(|source| ReadError::BadBlock {
                what,
                offset: start,
                source,
            })
        })?
    }

    /// A checked block size: no block stores more than it holds.
    pub(super) fn block_size_of(&self, word: u32) -> Result<BlockSize, ReadError> {
        let size = BlockSize::from_word(word).map_err(|source| ReadError::BadBlockSize { source })?;
        if size.stored_len() > self.superblock.block_size {
            return Err(ReadError::BadField { what: "stored size of a block", value: u64::from(word) });
        }
        Ok(size)
    }

    /// The place of an inode in its table.
    pub(super) fn inode_position(&self, reference: InodeRef) -> Result<MetadataPosition, ReadError> {
        MetadataPosition::from_reference(self.superblock.inode_table_start, reference.raw())
    }
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("base", &self.base).field("superblock", &self.superblock).finish_non_exhaustive()
    }
}

/// Checks that every table can be where the superblock says.
fn check_tables(superblock: &Superblock) -> Result<(), ReadError> {
    let image_len = superblock.bytes_used;
    let within = |what, start: u64, len: u64| match start.checked_add(len) {
        Some(end) if end <= image_len && start >= SUPERBLOCK_LEN as u64 => Ok(()),
        end => Err(ReadError::OutOfBounds { what, end: end.unwrap_or(u64::MAX), image_len }),
    };
    let index_len = |count: u32, per_block: u64| u64::from(count).div_ceil(per_block) * 8;
    within("inode table", superblock.inode_table_start, 1)?;
    within("directory table", superblock.directory_table_start, 0)?;
    if superblock.inode_table_start >= superblock.directory_table_start {
        return Err(ReadError::BadField {
            what: "start of the directory table",
            value: superblock.directory_table_start,
        });
    }
    if superblock.id_count == 0 {
        return Err(ReadError::BadField { what: "number of ids", value: 0 });
    }
    let ids = index_len(u32::from(superblock.id_count), METADATA_BLOCK_SIZE as u64 / 4);
    within("id table", superblock.id_table_start, ids)?;
    if superblock.fragment_count > 0 {
        let len = index_len(superblock.fragment_count, ENTRIES_OF_16);
        within("fragment table", superblock.fragment_table_start, len)?;
    }
    if superblock.export_table_start != NO_TABLE {
        within("export table", superblock.export_table_start, index_len(superblock.inode_count, ENTRIES_OF_8))?;
    }
    if superblock.xattr_table_start != NO_TABLE {
        within("xattr id table", superblock.xattr_table_start, 16)?;
    }
    Ok(())
}

impl Inode {
    pub(super) fn wrong_kind(&self, expected: crate::reader::FileType) -> ReadError {
        ReadError::WrongKind { number: self.number, found: self.file_type(), expected }
    }

    pub(super) fn directory(&self) -> Result<&crate::reader::Directory, ReadError> {
        match &self.kind {
            InodeKind::Directory(directory) => Ok(directory),
            _ => Err(self.wrong_kind(crate::reader::FileType::Directory)),
        }
    }
}
