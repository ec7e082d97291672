//! File contents to squashfs blocks and fragments.
//!
//! Files smaller than a block go whole into fragment blocks, many to one;
//! larger files get blocks of their own, the tail too. Files of up to one
//! block that this layer has already had are dropped before they are
//! compressed, since their digest is known in time. Blocks of nothing but
//! zeros are not stored.

use std::collections::HashMap;

use crate::elf::{ELF_PREFIX_LEN, ElfMachine};
use crate::error::PackError;
use crate::pipeline::{Block, Feeder};
use crate::tar::ContentSink;

/// Where the contents of a file are in the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentPlace {
    /// In blocks of its own, from this one on.
    Blocks { first: u32 },
    /// In a fragment block.
    Fragment { block: u32, offset: u32 },
}

/// What is known of the contents of a file, or of several equal ones.
#[derive(Debug, Clone)]
pub(crate) struct ContentRecord {
    pub(crate) size: u64,
    pub(crate) digest: [u8; 32],
    pub(crate) place: ContentPlace,
    pub(crate) machine: Option<ElfMachine>,
}

/// Cuts contents into blocks and sends them to be compressed.
pub(crate) struct Splitter {
    feeder: Feeder,
    block_size: usize,
    /// Number of the next block, stored or sparse.
    next_number: u32,
    contents: Vec<ContentRecord>,
    /// Contents of up to one block, by digest.
    seen: HashMap<[u8; 32], u32>,
    fragment: Option<Block>,
    /// Contents in the fragment, whose block has no number yet.
    in_fragment: Vec<u32>,
    /// A small file that does not fit the fragment any more.
    spill: Vec<u8>,
    /// The block of a large file that is being filled.
    block: Option<Block>,
    file: File,
}

/// The file whose contents are arriving.
#[derive(Default)]
struct File {
    size: u64,
    /// Bytes of it that went before the current block.
    passed: u64,
    hasher: blake3::Hasher,
    /// Runs of zero blocks: index of the first, and number.
    zero_runs: Vec<(u64, u64)>,
    first_block: u32,
    machine: Option<ElfMachine>,
    /// Whether a small file goes to `spill`.
    spills: bool,
    /// Where a small file starts in the fragment.
    fragment_offset: usize,
}

impl Splitter {
    pub(crate) fn new(feeder: Feeder, block_size: u32) -> Self {
        Self {
            feeder,
            block_size: block_size as usize,
            next_number: 0,
            contents: Vec::new(),
            seen: HashMap::new(),
            fragment: None,
            in_fragment: Vec::new(),
            spill: Vec::new(),
            block: None,
            file: File::default(),
        }
    }

    /// Starts a file of `size` bytes, which must not be 0.
    pub(crate) fn begin(&mut self, size: u64) -> Result<(), PackError> {
        let file = &mut self.file;
        file.size = size;
        file.passed = 0;
        file.hasher.reset();
        file.zero_runs.clear();
        file.first_block = self.next_number;
        file.machine = None;
        if self.is_small() {
            let fragment = match &self.fragment {
                Some(fragment) => fragment,
                None => self.fragment.insert(self.feeder.take()?),
            };
            self.file.fragment_offset = fragment.input.len();
            self.file.spills = fragment.input.len() as u64 + size > self.block_size as u64;
            self.spill.clear();
        }
        Ok(())
    }

    fn is_small(&self) -> bool {
        self.file.size < self.block_size as u64
    }

    /// Ends the file; gives the number of its contents.
    pub(crate) fn finish(&mut self) -> Result<u32, PackError> {
        if self.is_small() {
            return self.finish_small();
        }
        if self.file.passed < self.file.size {
            self.end_block()?;
        }
        let digest = self.large_digest();
        if self.file.size == self.block_size as u64 {
            if let Some(known) = self.seen.get(&digest) {
                if let Some(block) = &mut self.block {
                    block.input.clear();
                }
                self.next_number = self.file.first_block;
                return Ok(*known);
            }
            if let Some(block) = self.block.take_if(|block| !block.input.is_empty()) {
                self.send(block)?;
            }
        }
        let first = self.file.first_block;
        self.add_content(digest, ContentPlace::Blocks { first })
    }

    fn finish_small(&mut self) -> Result<u32, PackError> {
        let (start, spills) = (self.file.fragment_offset, self.file.spills);
        let bytes = match &self.fragment {
            Some(fragment) if !spills => &fragment.input[start..],
            _ => &self.spill[..],
        };
        let digest = *blake3::hash(bytes).as_bytes();
        self.file.machine = ElfMachine::parse(&bytes[..bytes.len().min(ELF_PREFIX_LEN)]);
        if let Some(known) = self.seen.get(&digest) {
            if let Some(fragment) = &mut self.fragment {
                fragment.input.truncate(start);
            }
            return Ok(*known);
        }
        if spills {
            self.flush_fragment()?;
            let mut fragment = self.feeder.take()?;
            fragment.input.extend_from_slice(&self.spill);
            self.fragment = Some(fragment);
        }
        // Smaller than a block, which is 1 MiB at most.
        let offset = if spills { 0 } else { start as u32 };
        let content = self.add_content(digest, ContentPlace::Fragment { block: 0, offset })?;
        self.in_fragment.push(content);
        Ok(content)
    }

    fn add_content(&mut self, digest: [u8; 32], place: ContentPlace) -> Result<u32, PackError> {
        let number = u32::try_from(self.contents.len()).map_err(|_| PackError::TooLarge)?;
        let (size, machine) = (self.file.size, self.file.machine);
        self.contents.push(ContentRecord { size, digest, place, machine });
        if size <= self.block_size as u64 {
            self.seen.insert(digest, number);
        }
        Ok(number)
    }

    fn flush_fragment(&mut self) -> Result<(), PackError> {
        let Some(fragment) = self.fragment.take_if(|fragment| !fragment.input.is_empty()) else { return Ok(()) };
        let number = self.next_number;
        for content in self.in_fragment.drain(..) {
            if let ContentPlace::Fragment { block, .. } = &mut self.contents[content as usize].place {
                *block = number;
            }
        }
        self.send(fragment)
    }

    fn send(&mut self, block: Block) -> Result<(), PackError> {
        let number = self.count_blocks(1)?;
        Ok(self.feeder.send(block, number)?)
    }

    /// Gives numbers to blocks; returns the first one.
    fn count_blocks(&mut self, count: u64) -> Result<u32, PackError> {
        let first = self.next_number;
        self.next_number =
            u64::from(first).checked_add(count).and_then(|next| next.try_into().ok()).ok_or(PackError::TooLarge)?;
        Ok(first)
    }

    /// Hashes the current block of a large file and sends it, unless it is all
    /// zeros, or the file's only one, which may turn out to be known.
    fn end_block(&mut self) -> Result<(), PackError> {
        let Some(mut block) = self.block.take() else { return Ok(()) };
        let file = &mut self.file;
        let index = file.passed / self.block_size as u64;
        file.passed += block.input.len() as u64;
        if is_zero(&block.input) {
            block.input.clear();
            self.block = Some(block);
            return self.add_zero_blocks(index, 1);
        }
        if index == 0 {
            file.machine = ElfMachine::parse(&block.input[..block.input.len().min(ELF_PREFIX_LEN)]);
        }
        file.hasher.update(&block.input);
        if file.size == self.block_size as u64 {
            self.block = Some(block);
            return Ok(());
        }
        self.send(block)
    }

    fn add_zero_blocks(&mut self, index: u64, count: u64) -> Result<(), PackError> {
        self.count_blocks(count)?;
        match self.file.zero_runs.last_mut() {
            Some((first, run)) if *first + *run == index => *run += count,
            _ => self.file.zero_runs.push((index, count)),
        }
        Ok(())
    }

    /// BLAKE3 of the contents; with zero blocks, which are not read, of what
    /// remains and of where they were. The two cannot be confused.
    fn large_digest(&self) -> [u8; 32] {
        let digest = self.file.hasher.finalize();
        if self.file.zero_runs.is_empty() {
            return *digest.as_bytes();
        }
        let mut hasher = blake3::Hasher::new_derive_key("sctl 2026-11 digest of a file with zero blocks");
        hasher.update(digest.as_bytes());
        for (first, count) in &self.file.zero_runs {
            hasher.update(&first.to_le_bytes());
            hasher.update(&count.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// Sends what is left; gives all contents and the number of blocks.
    pub(crate) fn finish_all(mut self) -> Result<(Vec<ContentRecord>, u32), PackError> {
        self.flush_fragment()?;
        Ok((self.contents, self.next_number))
    }

    /// The buffer of a large file's current block.
    fn block(&mut self) -> Result<&mut Vec<u8>, PackError> {
        let block = match self.block.take() {
            Some(block) => block,
            None => self.feeder.take()?,
        };
        Ok(&mut self.block.insert(block).input)
    }
}

impl ContentSink for Splitter {
    fn data(&mut self, mut bytes: &[u8]) -> Result<(), PackError> {
        if self.is_small() {
            match &mut self.fragment {
                Some(fragment) if !self.file.spills => fragment.input.extend_from_slice(bytes),
                _ => self.spill.extend_from_slice(bytes),
            }
            return Ok(());
        }
        while !bytes.is_empty() {
            let block_size = self.block_size;
            let block = self.block()?;
            let (now, later) = bytes.split_at(bytes.len().min(block_size - block.len()));
            block.extend_from_slice(now);
            bytes = later;
            if block.len() == block_size {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, len: u64) -> Result<(), PackError> {
        if self.is_small() {
            let buffer = match &mut self.fragment {
                Some(fragment) if !self.file.spills => &mut fragment.input,
                _ => &mut self.spill,
            };
            // Not more than the file, which is smaller than a block.
            buffer.resize(buffer.len() + len as usize, 0);
            return Ok(());
        }
        let block_size = self.block_size as u64;
        let mut left = len;
        while left > 0 {
            let filled = self.block.as_ref().map_or(0, |block| block.input.len()) as u64;
            if filled == 0 && left >= block_size {
                let count = left / block_size;
                let index = self.file.passed / block_size;
                self.file.passed += count * block_size;
                self.add_zero_blocks(index, count)?;
                left %= block_size;
            } else {
                let n = left.min(block_size - filled);
                let block = self.block()?;
                block.resize((filled + n) as usize, 0);
                if filled + n == block_size {
                    self.end_block()?;
                }
                left -= n;
            }
        }
        Ok(())
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // Nearly every other block ends the question here.
    let (head, tail) = bytes.split_at(bytes.len().min(64));
    head.iter().all(|byte| *byte == 0) && (tail.is_empty() || (tail[0] == 0 && tail[1..] == tail[..tail.len() - 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_told_from_nearly_zero() {
        for len in [1, 63, 64, 65, 66, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len}");
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{len} {at}");
                bytes[at] = 0;
            }
        }
    }
}
