//! Writing header, index and trailer of a pack.

use std::{collections::HashMap, io::Write};

use sctl_common::{Compression, DiffId, Profile};
use sctl_squashfs::{BlockSize, CompressorId};

use crate::index::{EntryKind, FORMAT_VERSION, HEADER_LEN, HEADER_MAGIC, TRAILER_LEN, TRAILER_MAGIC};
use crate::split::{ContentPlace, ContentRecord};

/// Compression of the index: it is small, and read whenever an image is made.
const INDEX_LEVEL: i32 = 1;

/// What the index says of most entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u32,
    /// Number of its xattr set.
    pub(crate) xattrs: Option<u32>,
}

/// Collects entries while the tar stream passes.
#[derive(Default)]
pub(crate) struct IndexBuilder {
    entries: Vec<u8>,
    entry_count: u64,
    xattr_sets: Vec<u8>,
    xattr_numbers: HashMap<Vec<u8>, u32>,
}

pub(crate) fn put_number(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn put_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    put_number(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

impl IndexBuilder {
    /// Number of the set with these xattrs, sorted by name.
    pub(crate) fn xattr_set(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<u32> {
        if xattrs.is_empty() {
            return None;
        }
        let mut set = Vec::new();
        put_number(&mut set, xattrs.len() as u64);
        for (name, value) in xattrs {
            put_bytes(&mut set, name);
            put_bytes(&mut set, value);
        }
        // Fewer than entries, whose number is limited.
        let next = self.xattr_numbers.len() as u32;
        let sets = &mut self.xattr_sets;
        Some(*self.xattr_numbers.entry(set).or_insert_with_key(|set| {
            sets.extend_from_slice(set);
            next
        }))
    }

    fn start(&mut self, kind: EntryKind, path: &[u8]) {
        self.entry_count += 1;
        self.entries.push(kind as u8);
        put_bytes(&mut self.entries, path);
    }

    fn attributes(&mut self, attributes: &Attributes) {
        let numbers = [u32::from(attributes.mode), attributes.uid, attributes.gid, attributes.mtime];
        for number in numbers {
            put_number(&mut self.entries, u64::from(number));
        }
        put_number(&mut self.entries, attributes.xattrs.map_or(0, |set| u64::from(set) + 1));
    }

    pub(crate) fn directory(&mut self, path: &[u8], attributes: &Attributes) {
        self.start(EntryKind::Directory, path);
        self.attributes(attributes);
    }

    pub(crate) fn file(&mut self, path: &[u8], attributes: &Attributes, content: Option<u32>) {
        self.start(EntryKind::File, path);
        self.attributes(attributes);
        put_number(&mut self.entries, content.map_or(0, |content| u64::from(content) + 1));
    }

    pub(crate) fn symlink(&mut self, path: &[u8], attributes: &Attributes, target: &[u8]) {
        self.start(EntryKind::Symlink, path);
        self.attributes(attributes);
        put_bytes(&mut self.entries, target);
    }

    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8]) {
        self.start(EntryKind::HardLink, path);
        put_bytes(&mut self.entries, target);
    }

    pub(crate) fn fifo(&mut self, path: &[u8], attributes: &Attributes) {
        self.start(EntryKind::Fifo, path);
        self.attributes(attributes);
    }

    pub(crate) fn device(&mut self, path: &[u8]) {
        self.start(EntryKind::Device, path);
    }

    pub(crate) fn whiteout(&mut self, path: &[u8]) {
        self.start(EntryKind::Whiteout, path);
    }

    pub(crate) fn opaque(&mut self, directory: &[u8]) {
        self.start(EntryKind::Opaque, directory);
    }

    pub(crate) fn entry_count(&self) -> u64 {
        self.entry_count
    }

    /// Index and trailer of a pack whose data ends at `offset`.
    pub(crate) fn finish(
        self,
        profile: &Profile,
        diff_id: &DiffId,
        blocks: &[BlockSize],
        contents: &[ContentRecord],
        offset: u64,
        tar_bytes: u64,
    ) -> std::io::Result<Vec<u8>> {
        let mut head = Vec::with_capacity(contents.len() * 8 + blocks.len() * 4 + 64);
        head.extend_from_slice(diff_id.digest().as_bytes());
        put_number(&mut head, blocks.len() as u64);
        for size in blocks {
            put_number(&mut head, u64::from(size.word()));
        }
        put_number(&mut head, contents.len() as u64);
        for content in contents {
            put_number(&mut head, content.size);
            match content.place {
                ContentPlace::Blocks { first } => put_number(&mut head, u64::from(first) << 1),
                ContentPlace::Fragment { block, offset } => {
                    put_number(&mut head, u64::from(block) << 1 | 1);
                    put_number(&mut head, u64::from(offset));
                }
            }
            put_number(&mut head, content.machine.map_or(0, |machine| u64::from(machine.to_code())));
        }
        let (mut xattr_count, mut entry_count) = (Vec::new(), Vec::new());
        put_number(&mut xattr_count, self.xattr_numbers.len() as u64);
        put_number(&mut entry_count, self.entry_count);
        // The parts are compressed where they are: put together first, they
        // would take that memory twice.
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), INDEX_LEVEL)?;
        let mut raw_len = 0;
        let digests = contents.iter().map(|content| &content.digest[..]);
        let tables = [&xattr_count[..], &self.xattr_sets, &entry_count, &self.entries];
        for part in std::iter::once(&head[..]).chain(digests).chain(tables) {
            raw_len += part.len() as u64;
            encoder.write_all(part)?;
        }
        let mut out = encoder.finish()?;
        let stored = out.len();
        for number in [offset, stored as u64, raw_len, tar_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let digest = index_digest(&write_header(profile), &out[..stored], &out[stored..]);
        out.extend_from_slice(digest.as_bytes());
        out.extend_from_slice(TRAILER_MAGIC);
        debug_assert_eq!(out.len() - stored, TRAILER_LEN);
        Ok(out)
    }
}

/// Digest that a pack's trailer holds.
pub(crate) fn index_digest(header: &[u8], stored_index: &[u8], numbers: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(header).update(stored_index).update(numbers).finalize()
}

/// The first bytes of a pack.
pub(crate) fn write_header(profile: &Profile) -> [u8; HEADER_LEN] {
    let level = match profile.compression {
        Compression::Gzip { level } | Compression::Zstd { level } => u16::from(level),
    };
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(HEADER_MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[12..14].copy_from_slice(&CompressorId::from(profile.compression).number().to_le_bytes());
    header[14..16].copy_from_slice(&level.to_le_bytes());
    header[16..20].copy_from_slice(&profile.block_size.to_le_bytes());
    header
}
