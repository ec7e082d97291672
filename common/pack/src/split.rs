//! File contents to squashfs blocks and fragments.
//!
//! Files smaller than a block go whole into fragment blocks, many to one;
//! larger files get blocks of their own, the tail too. Files of up to one
//! block that this layer has already had are dropped before they are
//! compressed, since all of it is at hand. Blocks of nothing but zeros are not
//! stored.
//!
//! Contents are known by a digest: small ones by the BLAKE3 of their bytes,
//! large ones by that of their blocks as they are stored. There are a few times
//! fewer of those, and they say the same: equal bytes give equal blocks, and
//! blocks can be decompressed.

use std::collections::HashMap;

use crate::elf::{ELF_PREFIX_LEN, ElfMachine};
use crate::error::PackError;
use crate::pipeline::{Block, Crew};
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
    /// Of large contents: known when all blocks are stored.
    pub(crate) digest: [u8; 32],
    pub(crate) place: ContentPlace,
    pub(crate) machine: Option<ElfMachine>,
}

/// The digest of a stored block of a large file.
pub(crate) struct BlockDigest {
    pub(crate) number: u32,
    pub(crate) digest: [u8; 32],
}

/// Gives large contents their digests; `blocks` are in the order of their
/// numbers.
pub(crate) fn digest_large_contents(contents: &mut [ContentRecord], blocks: &[BlockDigest], block_size: u32) {
    for content in contents {
        let ContentPlace::Blocks { first } = content.place else { continue };
        let count = content.size.div_ceil(u64::from(block_size.max(1)));
        let start = blocks.partition_point(|block| block.number < first);
        let own = blocks[start..].iter().take_while(|block| u64::from(block.number - first) < count);
        // Of blocks of a given length, the stored length tells whether they are
        // compressed. A block that is missing holds zeros. And the key keeps
        // these digests apart from those of small contents.
        let mut hasher = blake3::Hasher::new_derive_key("sctl 2026-11 digest of the blocks of a file");
        for block in own {
            hasher.update(&(block.number - first).to_le_bytes());
            hasher.update(&block.digest);
        }
        content.digest = *hasher.finalize().as_bytes();
    }
}

/// Cuts contents into blocks and sends them to be compressed.
pub(crate) struct Splitter<'a> {
    crew: &'a dyn Crew,
    block_size: usize,
    /// Number of the next block, stored or sparse.
    next_number: u32,
    contents: Vec<ContentRecord>,
    /// Contents of up to one block, by the BLAKE3 of their bytes.
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
    first_block: u32,
    machine: Option<ElfMachine>,
    /// Whether a small file goes to `spill`.
    spills: bool,
    /// Where a small file starts in the fragment.
    fragment_offset: usize,
}

impl<'a> Splitter<'a> {
    pub(crate) fn new(crew: &'a dyn Crew, block_size: u32) -> Self {
        Self {
            crew,
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
        file.first_block = self.next_number;
        file.machine = None;
        if self.is_small() {
            let fragment = match &self.fragment {
                Some(fragment) => fragment,
                None => self.fragment.insert(self.crew.take()?),
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
        let first = self.file.first_block;
        // A file of just one block is still here, unless it is all zeros.
        let digest = match self.block.take_if(|block| !block.input.is_empty()) {
            None => None,
            Some(block) => {
                let digest = *blake3::hash(&block.input).as_bytes();
                if let Some(known) = self.seen.get(&digest) {
                    self.block.insert(block).input.clear();
                    return Ok(*known);
                }
                self.send(block)?;
                Some(digest)
            }
        };
        let content = self.add_content([0; 32], ContentPlace::Blocks { first })?;
        self.seen.extend(digest.map(|digest| (digest, content)));
        Ok(content)
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
            let mut fragment = self.crew.take()?;
            fragment.input.extend_from_slice(&self.spill);
            self.fragment = Some(fragment);
        }
        // Smaller than a block, which is 1 MiB at most.
        let offset = if spills { 0 } else { start as u32 };
        let content = self.add_content(digest, ContentPlace::Fragment { block: 0, offset })?;
        self.seen.insert(digest, content);
        self.in_fragment.push(content);
        Ok(content)
    }

    fn add_content(&mut self, digest: [u8; 32], place: ContentPlace) -> Result<u32, PackError> {
        let number = u32::try_from(self.contents.len()).map_err(|_| PackError::TooLarge)?;
        let (size, machine) = (self.file.size, self.file.machine);
        self.contents.push(ContentRecord { size, digest, place, machine });
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
        Ok(self.crew.send(block, number)?)
    }

    /// Gives numbers to blocks; returns the first one.
    fn count_blocks(&mut self, count: u64) -> Result<u32, PackError> {
        let first = self.next_number;
        self.next_number =
            u64::from(first).checked_add(count).and_then(|next| next.try_into().ok()).ok_or(PackError::TooLarge)?;
        Ok(first)
    }

    /// Sends the current block of a large file, unless it is all zeros, or the
    /// file's only one, which may turn out to be known.
    fn end_block(&mut self) -> Result<(), PackError> {
        let Some(mut block) = self.block.take() else { return Ok(()) };
        let is_first = self.file.passed == 0;
        self.file.passed += block.input.len() as u64;
        if is_zero(&block.input) {
            block.input.clear();
            self.block = Some(block);
            self.count_blocks(1)?;
            return Ok(());
        }
        if is_first {
            self.file.machine = ElfMachine::parse(&block.input[..block.input.len().min(ELF_PREFIX_LEN)]);
        }
        block.wants_digest = true;
        if self.file.size == self.block_size as u64 {
            self.block = Some(block);
            return Ok(());
        }
        self.send(block)
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
            None => self.crew.take()?,
        };
        Ok(&mut self.block.insert(block).input)
    }
}

impl ContentSink for Splitter<'_> {
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
                self.file.passed += count * block_size;
                self.count_blocks(count)?;
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
