//! Reading a pack's index, whoever wrote it.
//!
//! A pack may have been written by a job that a hostile layer had taken over,
//! so nothing in it is believed: every number is checked before it is used,
//! and limits bound what is allocated.

use std::{io::Read, sync::Arc};

use sctl_common::{Compression, DiffId, Digest, EntryName, Limits, Profile};
use sctl_squashfs::{BlockSize, CompressorId, reader::ReadAt, writer::Xattr};

use crate::elf::ElfMachine;
use crate::error::IndexError;
use crate::index::{
    Attributes, DIGEST_LEN, EntryKind, FORMAT_VERSION, HEADER_LEN, HEADER_MAGIC, TRAILER_LEN, TRAILER_MAGIC,
    encode::index_digest,
};
use crate::path::MAX_PATH_LEN;
use crate::tar::{MAX_XATTR_NAME_LEN, MAX_XATTR_VALUE_LEN};

/// Longest symlink target that squashfs and Linux hold.
pub(crate) const MAX_SYMLINK_LEN: usize = 4095;

/// Bytes of the raw index that one entry or content takes, its names aside:
/// generous, since it only bounds memory.
const MAX_BYTES_PER_ENTRY: u64 = 160;

/// Index of a pack, with everything in it checked. Clones share it.
#[derive(Clone)]
pub struct PackIndex(pub(crate) Arc<Index>);

/// What the index of a pack says.
pub(crate) struct Index {
    raw: Vec<u8>,
    diff_id: DiffId,
    pub(crate) tar_bytes: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) data: Arc<PackData>,
}

/// What is needed of a pack once its entries are merged.
pub(crate) struct PackData {
    pub(crate) profile: Profile,
    /// Size words of all blocks.
    pub(crate) blocks: Vec<BlockSize>,
    pub(crate) contents: Vec<Content>,
    pub(crate) xattr_sets: Vec<Vec<Xattr>>,
}

/// Bytes of the raw index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

/// Contents of a file.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) digest: [u8; DIGEST_LEN],
    /// Where its (first) block starts in the pack.
    pub(crate) start: u64,
    pub(crate) place: Place,
    pub(crate) machine: Option<ElfMachine>,
}

/// Where contents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Blocks of its own, and the bytes that they take in the pack.
    Blocks { first: u32, count: u32, stored: u64 },
    /// Part of a fragment block.
    Fragment { block: u32, offset: u32 },
}

/// One entry, in the order of the tar stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) path: Span,
    pub(crate) what: What,
}

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    Directory(Attributes),
    File(Attributes, Option<u32>),
    Symlink(Attributes, Span),
    HardLink(Span),
    Fifo(Attributes),
    Device,
    Whiteout,
    Opaque,
}

impl PackIndex {
    /// Reads and checks the index of a pack that was made for `expected`.
    ///
    /// # Errors
    /// [`IndexError`] if the pack cannot be read, was made differently, or
    /// does not make sense in any way.
    pub fn read<R: ReadAt + ?Sized>(source: &R, expected: &Profile, limits: &Limits) -> Result<Self, IndexError> {
        let read = |buffer: &mut [u8], offset| {
            source.read_exact_at(buffer, offset).map_err(|source| IndexError::Read { source })
        };
        let file_len = source.len();
        let Some(trailer_at) = file_len.checked_sub(TRAILER_LEN as u64).filter(|at| *at >= HEADER_LEN as u64) else {
            return Err(IndexError::NotAPack { what: "too short" });
        };
        let mut header = [0; HEADER_LEN];
        read(&mut header, 0)?;
        check_header(&header, expected)?;
        let mut trailer = [0; TRAILER_LEN];
        read(&mut trailer, trailer_at)?;
        let (numbers, digest) = (&trailer[..32], &trailer[32..64]);
        if &trailer[64..] != TRAILER_MAGIC {
            return Err(IndexError::NotAPack { what: "no trailer" });
        }
        let number = |i: usize| u64::from_le_bytes(*numbers.as_chunks().0.get(i).unwrap_or(&[0; 8]));
        let (offset, stored_len, raw_len, tar_bytes) = (number(0), number(1), number(2), number(3));
        if offset < HEADER_LEN as u64 || offset.checked_add(stored_len) != Some(trailer_at) {
            return Err(IndexError::NotAPack { what: "the index is not where the trailer says" });
        }
        let max = max_raw_len(expected, limits);
        for found in [raw_len, stored_len] {
            if found > max {
                return Err(IndexError::Limit { what: "bytes of index", found, max });
            }
        }
        let mut stored = vec![0; usize::try_from(stored_len).map_err(|_| IndexError::Digest)?];
        read(&mut stored, offset)?;
        if index_digest(&header, &stored, numbers).as_bytes() != digest {
            return Err(IndexError::Digest);
        }
        let raw = decompress(&stored, raw_len)?;
        drop(stored);
        let index = Parser { raw: &raw, position: 0, limits }.parse(expected, offset, tar_bytes)?;
        Ok(Self(Arc::new(Index { raw, ..index })))
    }

    /// Digest of the tar stream that was packed.
    pub fn diff_id(&self) -> &DiffId {
        &self.0.diff_id
    }

    /// Bytes of the tar stream that was packed.
    pub fn tar_bytes(&self) -> u64 {
        self.0.tar_bytes
    }

    /// Number of tar entries.
    pub fn entry_count(&self) -> u64 {
        self.0.entries.len() as u64
    }
}

impl Index {
    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        &self.raw[span.start as usize..][..span.len as usize]
    }
}

impl std::fmt::Debug for PackIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackIndex")
            .field("diff_id", &self.0.diff_id)
            .field("entries", &self.0.entries.len())
            .field("blocks", &self.0.data.blocks.len())
            .finish_non_exhaustive()
    }
}

fn check_header(header: &[u8; HEADER_LEN], expected: &Profile) -> Result<(), IndexError> {
    if &header[..8] != HEADER_MAGIC {
        return Err(IndexError::NotAPack { what: "no header" });
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
    if word(8) != FORMAT_VERSION {
        return Err(IndexError::Version { found: word(8), expected: FORMAT_VERSION });
    }
    if *header != crate::index::write_header(expected) {
        let compressor = CompressorId::from_number(half(12)).map_or("unknown".to_owned(), |id| id.to_string());
        let found = format!("{compressor}:{} with blocks of {} bytes", half(14), word(16));
        let expected = format!("{} with blocks of {} bytes", expected.compression, expected.block_size);
        return Err(IndexError::Profile { found, expected });
    }
    Ok(())
}

/// The longest raw index that the limits allow; spans count in 32 bits.
fn max_raw_len(profile: &Profile, limits: &Limits) -> u64 {
    let blocks = limits.max_layer_bytes / u64::from(profile.block_size.max(1)) + limits.max_entries;
    let names = limits.max_name_bytes.saturating_mul(2);
    let entries = limits.max_entries.saturating_mul(MAX_BYTES_PER_ENTRY);
    blocks.saturating_mul(5).saturating_add(names).saturating_add(entries).min(u64::from(u32::MAX))
}

fn decompress(stored: &[u8], raw_len: u64) -> Result<Vec<u8>, IndexError> {
    let bad = |_| IndexError::Corrupt { what: "damaged zstd frame", offset: 0 };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(bad)?.single_frame();
    // Grows with what arrives, so that a false length allocates nothing.
    let mut raw = Vec::new();
    decoder.by_ref().take(raw_len + 1).read_to_end(&mut raw).map_err(bad)?;
    if raw.len() as u64 != raw_len || !decoder.finish().is_empty() {
        return Err(IndexError::Corrupt { what: "wrong length", offset: raw.len() as u64 });
    }
    Ok(raw)
}

struct Parser<'a> {
    raw: &'a [u8],
    position: usize,
    limits: &'a Limits,
}

impl Parser<'_> {
    fn parse(mut self, profile: &Profile, data_end: u64, tar_bytes: u64) -> Result<Index, IndexError> {
        let diff_id = DiffId::new(Digest::from_sha256(self.digest()?));
        let blocks = self.blocks(profile)?;
        let contents = self.contents(profile, &blocks, data_end)?;
        let xattr_sets = self.xattr_sets()?;
        let entries = self.entries(contents.len(), xattr_sets.len())?;
        if self.position != self.raw.len() {
            return Err(self.corrupt("bytes behind the last entry"));
        }
        let data = Arc::new(PackData { profile: *profile, blocks, contents, xattr_sets });
        Ok(Index { raw: Vec::new(), diff_id, tar_bytes, entries, data })
    }

    fn corrupt(&self, what: &'static str) -> IndexError {
        IndexError::Corrupt { what, offset: self.position as u64 }
    }

    fn number(&mut self) -> Result<u64, IndexError> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = *self.raw.get(self.position).ok_or_else(|| self.corrupt("it ends too early"))?;
            self.position += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.corrupt("a number is too long"))
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, IndexError> {
        let number = self.number()?;
        T::try_from(number).map_err(|_| self.corrupt("a number is too large"))
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, least: usize) -> Result<usize, IndexError> {
        let count: usize = self.small()?;
        if count > (self.raw.len() - self.position) / least {
            return Err(self.corrupt("a count is too large"));
        }
        Ok(count)
    }

    fn span(&mut self, max: usize, what: &'static str) -> Result<Span, IndexError> {
        let len: usize = self.small()?;
        if len > max || len > self.raw.len() - self.position {
            return Err(self.corrupt(what));
        }
        // The raw index is shorter than 4 GiB.
        let span = Span { start: self.position as u32, len: len as u32 };
        self.position += len;
        Ok(span)
    }

    fn slice(&self, span: Span) -> &[u8] {
        &self.raw[span.start as usize..][..span.len as usize]
    }

    fn digest(&mut self) -> Result<[u8; DIGEST_LEN], IndexError> {
        let digest = *self.raw[self.position..].first_chunk().ok_or_else(|| self.corrupt("it ends too early"))?;
        self.position += DIGEST_LEN;
        Ok(digest)
    }

    fn blocks(&mut self, profile: &Profile) -> Result<Vec<BlockSize>, IndexError> {
        let count = self.count(1)?;
        let mut blocks = Vec::with_capacity(count);
        for _ in 0..count {
            let size = BlockSize::from_word(self.small()?).map_err(|_| self.corrupt("bad size of a block"))?;
            if size.stored_len() > profile.block_size {
                return Err(self.corrupt("a block is too large"));
            }
            blocks.push(size);
        }
        Ok(blocks)
    }

    fn contents(&mut self, profile: &Profile, blocks: &[BlockSize], data_end: u64) -> Result<Vec<Content>, IndexError> {
        // No overflow: fewer than 2^32 blocks of at most 1 MiB.
        let mut starts = Vec::with_capacity(blocks.len() + 1);
        let mut end = HEADER_LEN as u64;
        for size in blocks {
            starts.push(end);
            end += u64::from(size.stored_len());
        }
        starts.push(end);
        if end != data_end {
            return Err(self.corrupt("blocks do not fill the data area"));
        }
        let count = self.count(4 + DIGEST_LEN)?;
        if count as u64 > self.limits.max_entries {
            let (found, max) = (count as u64, self.limits.max_entries);
            return Err(IndexError::Limit { what: "contents", found, max });
        }
        let mut contents = Vec::with_capacity(count);
        let mut owned = vec![false; blocks.len()];
        // Fragment that is being filled, and up to where.
        let mut open: Option<(u32, u64)> = None;
        let mut bytes: u64 = 0;
        for _ in 0..count {
            let size = self.number()?;
            bytes = bytes.saturating_add(size);
            if bytes > self.limits.max_layer_bytes {
                let max = self.limits.max_layer_bytes;
                return Err(IndexError::Limit { what: "bytes of files", found: bytes, max });
            }
            let place = self.number()?;
            let first = u32::try_from(place >> 1).map_err(|_| self.corrupt("a number is too large"))?;
            let place = if place & 1 == 1 {
                let offset: u32 = self.small()?;
                self.fragment(profile, blocks, (first, offset, size), &mut open, &mut owned)?
            } else {
                self.own_blocks(profile, &starts, (first, size), &mut owned)?
            };
            let code: u32 = self.small()?;
            let machine = ElfMachine::from_code(code);
            if code != 0 && machine.is_none() {
                return Err(self.corrupt("bad code of an ELF machine"));
            }
            contents.push(Content { size, digest: [0; DIGEST_LEN], start: starts[first as usize], place, machine });
        }
        if owned.contains(&false) {
            return Err(self.corrupt("a block belongs to no file"));
        }
        for content in &mut contents {
            content.digest = self.digest()?;
        }
        Ok(contents)
    }

    /// Checks contents in a fragment block: they follow one another without
    /// gaps, so that nothing else is in that block.
    fn fragment(
        &self,
        profile: &Profile,
        blocks: &[BlockSize],
        (block, offset, size): (u32, u32, u64),
        open: &mut Option<(u32, u64)>,
        owned: &mut [bool],
    ) -> Result<Place, IndexError> {
        let end = match *open {
            Some((current, end)) if current == block => end,
            _ => {
                match (blocks.get(block as usize), owned.get_mut(block as usize)) {
                    (Some(size), Some(owned)) if !*owned && !size.is_sparse() => *owned = true,
                    _ => return Err(self.corrupt("bad place of a fragment")),
                }
                0
            }
        };
        if u64::from(offset) != end || size == 0 || size >= u64::from(profile.block_size) {
            return Err(self.corrupt("fragments do not follow one another"));
        }
        let end = end + size;
        if end > u64::from(profile.block_size) {
            return Err(self.corrupt("fragment is too large"));
        }
        *open = Some((block, end));
        Ok(Place::Fragment { block, offset })
    }

    fn own_blocks(
        &self,
        profile: &Profile,
        starts: &[u64],
        (first, size): (u32, u64),
        owned: &mut [bool],
    ) -> Result<Place, IndexError> {
        let count = size.div_ceil(u64::from(profile.block_size));
        let range = u32::try_from(count)
            .ok()
            .and_then(|count| Some((count, owned.get_mut(first as usize..first.checked_add(count)? as usize)?)));
        match range {
            Some((count, range)) if size >= u64::from(profile.block_size) && !range.contains(&true) => {
                range.fill(true);
                let stored = starts[(first + count) as usize] - starts[first as usize];
                Ok(Place::Blocks { first, count, stored })
            }
            _ => Err(self.corrupt("bad place of a file's blocks")),
        }
    }

    fn xattr_sets(&mut self) -> Result<Vec<Vec<Xattr>>, IndexError> {
        let count = self.count(1)?;
        let mut sets = Vec::with_capacity(count);
        for _ in 0..count {
            let mut set: Vec<Xattr> = Vec::new();
            for _ in 0..self.count(2)? {
                let name = self.span(MAX_XATTR_NAME_LEN, "name of an xattr is too long")?;
                let value = self.span(MAX_XATTR_VALUE_LEN, "value of an xattr is too long")?;
                let (name, value) = (self.slice(name).to_vec(), self.slice(value).to_vec());
                let is_known = [&b"user."[..], b"trusted.", b"security."]
                    .iter()
                    .any(|prefix| name.strip_prefix(*prefix).is_some_and(|rest| !rest.is_empty()));
                if !is_known || name.contains(&0) {
                    return Err(self.corrupt("bad name of an xattr"));
                }
                if set.last().is_some_and(|last| last.name >= name) {
                    return Err(self.corrupt("xattrs are not sorted"));
                }
                set.push(Xattr { name, value });
            }
            sets.push(set);
        }
        Ok(sets)
    }

    fn entries(&mut self, contents: usize, xattr_sets: usize) -> Result<Vec<Entry>, IndexError> {
        let count = self.count(2)?;
        if count as u64 > self.limits.max_entries {
            let (found, max) = (count as u64, self.limits.max_entries);
            return Err(IndexError::Limit { what: "entries", found, max });
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = self.number()?;
            let kind = EntryKind::from_number(kind).ok_or_else(|| self.corrupt("unknown type of entry"))?;
            let path = self.path()?;
            let is_root = path.len == 0;
            if is_root && !matches!(kind, EntryKind::Directory | EntryKind::Opaque) {
                return Err(self.corrupt("the root is no directory"));
            }
            let what = match kind {
                EntryKind::Directory => What::Directory(self.attributes(xattr_sets)?),
                EntryKind::File => {
                    let attributes = self.attributes(xattr_sets)?;
                    let content: u32 = self.small()?;
                    if content as usize > contents {
                        return Err(self.corrupt("no such contents"));
                    }
                    What::File(attributes, content.checked_sub(1))
                }
                EntryKind::Symlink => {
                    let attributes = self.attributes(xattr_sets)?;
                    let target = self.span(MAX_SYMLINK_LEN, "target of a symlink is too long")?;
                    if target.len == 0 || self.slice(target).contains(&0) {
                        return Err(self.corrupt("bad target of a symlink"));
                    }
                    What::Symlink(attributes, target)
                }
                EntryKind::HardLink => What::HardLink(self.path()?),
                EntryKind::Fifo => What::Fifo(self.attributes(xattr_sets)?),
                EntryKind::Device => What::Device,
                EntryKind::Whiteout => What::Whiteout,
                EntryKind::Opaque => What::Opaque,
            };
            entries.push(Entry { path, what });
        }
        Ok(entries)
    }

    /// A clean path: every part is a name.
    fn path(&mut self) -> Result<Span, IndexError> {
        let span = self.span(MAX_PATH_LEN, "path is too long")?;
        let is_name =
            |part: &[u8]| !matches!(part, b"" | b"." | b"..") && part.len() <= EntryName::MAX_LEN && !part.contains(&0);
        if span.len > 0 && !self.slice(span).split(|byte| *byte == b'/').all(is_name) {
            return Err(self.corrupt("bad path"));
        }
        Ok(span)
    }

    fn attributes(&mut self, xattr_sets: usize) -> Result<Attributes, IndexError> {
        let mode: u16 = self.small()?;
        let (uid, gid, mtime) = (self.small()?, self.small()?, self.small()?);
        let set: u32 = self.small()?;
        if mode > 0o7777 || set as usize > xattr_sets {
            return Err(self.corrupt("bad attributes"));
        }
        Ok(Attributes { mode, uid, gid, mtime, xattrs: set.checked_sub(1) })
    }
}

/// Profiles whose blocks a pack can hold.
pub(crate) fn is_valid_profile(profile: &Profile) -> bool {
    let level_is_known = match profile.compression {
        Compression::Gzip { level } => (1..=9).contains(&level),
        Compression::Zstd { level } => (1..=22).contains(&level),
    };
    level_is_known
        && profile.block_size.is_power_of_two()
        && (sctl_squashfs::MIN_BLOCK_SIZE..=sctl_squashfs::MAX_BLOCK_SIZE).contains(&profile.block_size)
}
