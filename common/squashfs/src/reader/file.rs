//! Contents of files.
//!
//! A file's blocks follow one another, so the place of a block is the sum of
//! the stored sizes in front of it. Long files have checkpoints on the way,
//! found while reading and kept for the next call.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    layout::{BlockSize, FRAGMENT_ENTRY_LEN},
    reader::{
        File, FileType, Inode, InodeKind, InodeRef, ReadAt, ReadError, Reader,
        metadata::{Cursor, MetadataPosition},
    },
};

/// Blocks from one checkpoint to the next: 128 MiB of the usual size.
const CHECKPOINT_BLOCKS: u64 = 1024;

/// Size words read at once on the way.
const PASS_BLOCKS: u64 = 256;

/// Bounds of what is kept: files, and checkpoints of one file.
const MAX_FILES: usize = 64;
const MAX_CHECKPOINTS: usize = 16 << 10;

/// State of a walk in front of block `n * CHECKPOINT_BLOCKS`, for n from 1.
#[derive(Clone, Copy)]
struct Checkpoint {
    words: MetadataPosition,
    data: u64,
}

/// Checkpoints of the long files read last.
#[derive(Default)]
pub(super) struct Checkpoints(Mutex<HashMap<InodeRef, Vec<Checkpoint>>>);

impl Checkpoints {
    /// The last one known at or in front of `block`, and its number.
    fn before(&self, file: InodeRef, block: u64) -> Option<(u64, Checkpoint)> {
        let wanted = block / CHECKPOINT_BLOCKS;
        if wanted == 0 {
            return None;
        }
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = files.get(&file)?;
        let number = wanted.min(known.len() as u64);
        let checkpoint = known.get(usize::try_from(number.checked_sub(1)?).ok()?)?;
        Some((number, *checkpoint))
    }

    fn add(&self, file: InodeRef, number: u64, checkpoint: Checkpoint) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= MAX_FILES && !files.contains_key(&file) {
            files.clear();
        }
        let known = files.entry(file).or_default();
        if known.len() < MAX_CHECKPOINTS && known.len() as u64 + 1 == number {
            known.push(checkpoint);
        }
    }
}

/// Walks along a file's blocks.
struct Blocks<'a, R> {
    reader: &'a Reader<R>,
    file: InodeRef,
    words: Cursor<'a, R>,
    next: u64,
    data: u64,
}

impl<'a, R: ReadAt> Blocks<'a, R> {
    /// Stands in front of `block`, which the file has.
    fn seek(reader: &'a Reader<R>, inode: InodeRef, file: &File, block: u64) -> Result<Self, ReadError> {
        let (number, from) =
            reader.checkpoints.before(inode, block).unwrap_or((0, Checkpoint { words: file.blocks, data: file.start }));
        let words = reader.cursor("inode table", from.words, reader.superblock.directory_table_start)?;
        let mut blocks = Self { reader, file: inode, words, next: number * CHECKPOINT_BLOCKS, data: from.data };
        while blocks.next < block {
            blocks.pass(block - blocks.next)?;
        }
        Ok(blocks)
    }

    /// Passes over `count` blocks, or less if there is a reason to stop.
    fn pass(&mut self, count: u64) -> Result<(), ReadError> {
        self.keep_checkpoint();
        let mut bytes = [0; 4 * PASS_BLOCKS as usize];
        let until_checkpoint = CHECKPOINT_BLOCKS - self.next % CHECKPOINT_BLOCKS;
        let count = count.min(PASS_BLOCKS).min(until_checkpoint);
        let bytes = &mut bytes[..4 * count as usize];
        self.words.read_exact(bytes)?;
        // Sizes matter only by their sum here, so they are checked together.
        let (mut sum, mut largest) = (0, 0);
        for word in bytes.as_chunks().0 {
            let len = u32::from_le_bytes(*word) & !BlockSize::UNCOMPRESSED;
            sum += u64::from(len);
            largest = largest.max(len);
        }
        self.reader.block_size_of(largest)?;
        self.data = self.data.saturating_add(sum);
        self.next += count;
        Ok(())
    }

    fn keep_checkpoint(&self) {
        if self.next > 0 && self.next.is_multiple_of(CHECKPOINT_BLOCKS) {
            let checkpoint = Checkpoint { words: self.words.position(), data: self.data };
            self.reader.checkpoints.add(self.file, self.next / CHECKPOINT_BLOCKS, checkpoint);
        }
    }

    /// Start and size of the next block.
    fn step(&mut self) -> Result<(u64, BlockSize), ReadError> {
        self.keep_checkpoint();
        let size = self.reader.block_size_of(self.words.read_u32()?)?;
        let start = self.data;
        // Beyond the image nothing can be read, so there is no need to be exact.
        self.data = start.saturating_add(u64::from(size.stored_len()));
        self.next += 1;
        Ok((start, size))
    }
}

impl<R: ReadAt> Reader<R> {
    /// Reads a file's bytes from `offset` on; returns how many there were:
    /// less than `buf` takes only at the end of the file.
    ///
    /// Blocks that `buf` takes whole are decoded right into it.
    ///
    /// # Errors
    /// [`ReadError`] if `inode` is no regular file, or the image is damaged.
    pub fn read(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let InodeKind::File(file) = &inode.kind else { return Err(inode.wrong_kind(FileType::File)) };
        // At most the length of `buf`.
        let wanted = file.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let block_size = u64::from(self.superblock.block_size);
        let mut blocks: Option<Blocks<'_, R>> = None;
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (number, within) = (at / block_size, (at % block_size) as usize);
            let block_len = (file.size - number * block_size).min(block_size) as usize;
            let len = (block_len - within).min(wanted - done);
            let out = &mut buf[done..done + len];
            if number < file.block_count {
                let blocks = match &mut blocks {
                    Some(blocks) => blocks,
                    none => none.insert(Blocks::seek(self, inode.reference, file, number)?),
                };
                let (start, size) = blocks.step()?;
                self.read_block(start, size, within, block_len, out)?;
            } else {
                self.read_tail(file, within, block_len, out)?;
            }
            done += len;
        }
        Ok(wanted)
    }

    /// Bytes of a data block of `block_len` bytes, from `within` on.
    fn read_block(
        &self,
        start: u64,
        size: BlockSize,
        within: usize,
        block_len: usize,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        if size.is_sparse() {
            out.fill(0);
            return Ok(());
        }
        let what = "data block";
        let key = (start, size.word());
        let bad_len = |len: usize| ReadError::BadField { what: "length of a data block", value: len as u64 };
        let block = match self.data.get(key) {
            Some(block) => block,
            None if out.len() == block_len => {
                let len = self.decode_data(what, start, size, out)?;
                return if len == block_len { Ok(()) } else { Err(bad_len(len)) };
            }
            None => self.decoded_block(what, start, size)?,
        };
        let block = block.as_slice();
        if block.len() != block_len {
            return Err(bad_len(block.len()));
        }
        out.copy_from_slice(&block[within..within + out.len()]);
        Ok(())
    }

    /// Bytes of the tail that a fragment block holds, from `within` on.
    fn read_tail(&self, file: &File, within: usize, tail_len: usize, out: &mut [u8]) -> Result<(), ReadError> {
        let bad = |value: u32| ReadError::BadField { what: "place of a file's tail", value: u64::from(value) };
        let (index, offset) = file.fragment.ok_or(bad(u32::MAX))?;
        if index >= self.superblock.fragment_count {
            return Err(bad(index));
        }
        let mut cursor = self.cursor_at_entry(
            "fragment table",
            self.superblock.fragment_table_start,
            u64::from(index),
            FRAGMENT_ENTRY_LEN as u64,
        )?;
        let (start, size) = (cursor.read_u64()?, self.block_size_of(cursor.read_u32()?)?);
        if size.is_sparse() {
            return Err(bad(index));
        }
        let block = self.decoded_block("fragment block", start, size)?;
        let tail = usize::try_from(offset)
            .ok()
            .and_then(|offset| block.get(offset..offset.checked_add(tail_len)?))
            .ok_or(bad(offset))?;
        out.copy_from_slice(&tail[within..within + out.len()]);
        Ok(())
    }

    fn decoded_block(&self, what: &'static str, start: u64, size: BlockSize) -> Result<Arc<Vec<u8>>, ReadError> {
        let max_len = self.superblock.block_size as usize;
        self.data.get_or_decode((start, size.word()), max_len, || {
            let mut block = vec![0; max_len];
            let len = self.decode_data(what, start, size, &mut block)?;
            block.truncate(len);
            Ok(block)
        })
    }
}
