//! One layer to one pack.

use std::{
    io::{Read, Write},
    num::NonZeroUsize,
};

use sctl_common::{DiffId, Limits, Profile};
use sctl_squashfs::BlockSize;

use crate::error::{PackError, shown};
use crate::index::{Attributes, HEADER_LEN, IndexBuilder, MAX_SYMLINK_LEN, is_valid_profile, write_header};
use crate::inflate::Inflater;
use crate::path;
use crate::pipeline::{self, ChunkResult, Crew};
use crate::split::{BlockDigest, ContentRecord, Splitter, digest_large_contents};
use crate::tar::{Archive, Chunk, ChunkSource, Member, MemberKind, Stream};

/// Bytes of tar stream that one stage hands to the next at once: large enough
/// that handing over costs nothing, small enough to stay in a core's cache.
const CHUNK_LEN: usize = 256 << 10;

/// Whiteouts start with this; the rest is the hidden name.
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Hides all lower entries of its directory.
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// How a layer is to be packed.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// Compressor and block size.
    pub profile: Profile,
    /// What the layer may cost.
    pub limits: Limits,
    /// Processors to keep busy; the bytes of the pack do not depend on it.
    pub threads: NonZeroUsize,
}

/// What came of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackSummary {
    /// SHA-256 of the whole tar stream.
    pub diff_id: DiffId,
    /// Bytes of the blob.
    pub blob_bytes: u64,
    /// Bytes of the tar stream.
    pub tar_bytes: u64,
    /// Bytes of the pack.
    pub pack_bytes: u64,
    /// Tar entries.
    pub entries: u64,
    /// Device nodes among them, which images do not get.
    pub devices: u64,
}

/// Packs one layer: reads a blob (gzip, zstd or a plain tar stream), writes a
/// pack.
///
/// The blob is read to its end, and `progress` is told from time to time how
/// many bytes of the tar stream are done. The calling thread parses the tar
/// stream; it and its helpers share out reading and decompressing, compressing
/// and writing among them. The pack is written block by block, so `out` had
/// better be buffered. When one of them fails, all stop; a `blob` that is
/// blocked in a read is waited for.
///
/// # Errors
/// The first error that any stage met. What was written until then is no pack.
pub fn pack_layer<R, W>(
    blob: R,
    mut out: W,
    options: &PackOptions,
    progress: &dyn Fn(u64),
) -> Result<PackSummary, PackError>
where
    R: Read + Send,
    W: Write + Send,
{
    if !is_valid_profile(&options.profile) {
        return Err(PackError::BadProfile { profile: format!("{:?}", options.profile) });
    }
    write(&mut out, &write_header(&options.profile))?;
    let mut inflater = Inflater::new(blob);
    let mut blocks: Vec<BlockSize> = Vec::new();
    let mut digests: Vec<BlockDigest> = Vec::new();
    let mut offset = HEADER_LEN as u64;
    let mut packed = pipeline::run(
        &options.profile,
        options.threads.get(),
        |used| inflate(&mut inflater, used),
        |crew| TarPacker::new(crew, options, progress).run(),
        |number, block| {
            // Numbers that were left out are those of sparse blocks.
            blocks.resize(number as usize, BlockSize::SPARSE);
            blocks.push(block.size);
            digests.extend(block.digest.map(|digest| BlockDigest { number, digest }));
            offset += block.bytes.len() as u64;
            write(&mut out, block.bytes)
        },
    )?;
    digest_large_contents(&mut packed.contents, &digests, options.profile.block_size);
    drop(digests);
    blocks.resize(packed.block_count as usize, BlockSize::SPARSE);
    let entries = packed.index.entry_count();
    let tail = packed
        .index
        .finish(&options.profile, &packed.diff_id, &blocks, &packed.contents, offset, packed.tar_bytes)
        .map_err(|_| PackError::Broken { stage: "index" })?;
    write(&mut out, &tail)?;
    out.flush().map_err(|source| PackError::WritePack { source })?;
    Ok(PackSummary {
        diff_id: packed.diff_id,
        blob_bytes: packed.blob_bytes,
        tar_bytes: packed.tar_bytes,
        pack_bytes: offset + tail.len() as u64,
        entries,
        devices: packed.devices,
    })
}

fn write<W: Write>(out: &mut W, bytes: &[u8]) -> Result<(), PackError> {
    out.write_all(bytes).map_err(|source| PackError::WritePack { source })
}

/// The next chunk of the tar stream, in the buffer of one that was used.
fn inflate<R: Read>(inflater: &mut Inflater<R>, used: Chunk) -> ChunkResult {
    let mut buffer = used.buffer;
    if buffer.is_empty() {
        buffer = vec![0; CHUNK_LEN].into();
    }
    Ok(match inflater.fill(&mut buffer)? {
        0 => None,
        len => Some(Chunk { buffer, len, blob_bytes: inflater.blob_bytes() }),
    })
}

/// Chunks of the tar stream, as the crew brings them.
struct Chunks<'a> {
    crew: &'a dyn Crew,
    tar_bytes: u64,
    blob_bytes: u64,
    progress: &'a dyn Fn(u64),
}

impl ChunkSource for Chunks<'_> {
    fn next_chunk(&mut self, used: Chunk) -> Result<Option<Chunk>, PackError> {
        let chunk = self.crew.next_chunk(used)?;
        if let Some(chunk) = &chunk {
            self.tar_bytes += chunk.len as u64;
            self.blob_bytes = chunk.blob_bytes;
            (self.progress)(self.tar_bytes);
        }
        Ok(chunk)
    }
}

/// What is known once the tar stream has been read.
struct Packed {
    index: IndexBuilder,
    contents: Vec<ContentRecord>,
    block_count: u32,
    diff_id: DiffId,
    tar_bytes: u64,
    blob_bytes: u64,
    devices: u64,
}

/// Reads the tar stream, fills the index and sends contents to be compressed.
struct TarPacker<'a> {
    archive: Archive<Chunks<'a>>,
    splitter: Splitter<'a>,
    index: IndexBuilder,
    limits: &'a Limits,
    path: Vec<u8>,
    target: Vec<u8>,
    name_bytes: u64,
    file_bytes: u64,
    devices: u64,
}

impl<'a> TarPacker<'a> {
    fn new(crew: &'a dyn Crew, options: &'a PackOptions, progress: &'a dyn Fn(u64)) -> Self {
        let source = Chunks { crew, tar_bytes: 0, blob_bytes: 0, progress };
        Self {
            archive: Archive::new(Stream::new(source, &options.limits)),
            splitter: Splitter::new(crew, options.profile.block_size),
            index: IndexBuilder::default(),
            limits: &options.limits,
            path: Vec::new(),
            target: Vec::new(),
            name_bytes: 0,
            file_bytes: 0,
            devices: 0,
        }
    }

    fn run(mut self) -> Result<Packed, PackError> {
        while self.archive.next_member()? {
            self.check_limits()?;
            path::clean(&self.archive.member.name, &mut self.path);
            path::check(&self.path)?;
            self.add_entry()?;
        }
        let (contents, block_count) = self.splitter.finish_all()?;
        let (digest, tar_bytes, source) = self.archive.stream.finish()?;
        Ok(Packed {
            index: self.index,
            contents,
            block_count,
            diff_id: DiffId::new(digest),
            tar_bytes,
            blob_bytes: source.blob_bytes,
            devices: self.devices,
        })
    }

    fn check_limits(&mut self) -> Result<(), PackError> {
        let member = &self.archive.member;
        let xattr_bytes: usize = member.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.name_bytes += (member.name.len() + member.link.len() + xattr_bytes) as u64;
        // Also holes count: each block of them takes a number in the index.
        self.file_bytes = self.file_bytes.saturating_add(member.size);
        for (what, found, max) in [
            ("entries", self.index.entry_count() + 1, self.limits.max_entries),
            ("bytes of names", self.name_bytes, self.limits.max_name_bytes),
            ("bytes of files", self.file_bytes, self.limits.max_layer_bytes),
        ] {
            if found > max {
                return Err(PackError::Limit { what, max, entry: shown(&member.name) });
            }
        }
        Ok(())
    }

    fn add_entry(&mut self) -> Result<(), PackError> {
        let (directory, name) = path::split(&self.path);
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            if name == OPAQUE_NAME {
                self.index.opaque(directory);
                return Ok(());
            }
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(self.bad_entry("whiteout of nothing"));
            }
            let name_at = self.path.len() - name.len();
            self.path.drain(name_at..name_at + WHITEOUT_PREFIX.len());
            self.index.whiteout(&self.path);
            return Ok(());
        }
        let member = &self.archive.member;
        if self.path.is_empty() && member.kind != MemberKind::Directory {
            return Err(self.bad_entry("malicious tar entry -- refusing to change type of root directory"));
        }
        let attributes = attributes(member, &mut self.index);
        match member.kind {
            MemberKind::Directory => self.index.directory(&self.path, &attributes),
            MemberKind::File => {
                let size = member.size;
                let content = match size {
                    0 => None,
                    _ => {
                        self.splitter.begin(size)?;
                        self.archive.copy_contents(&mut self.splitter)?;
                        Some(self.splitter.finish()?)
                    }
                };
                self.index.file(&self.path, &attributes, content);
            }
            MemberKind::Symlink => {
                if member.link.is_empty() {
                    return Err(self.bad_entry("symlink without a target"));
                }
                if member.link.len() > MAX_SYMLINK_LEN {
                    let (found, max) = (member.link.len() as u64, MAX_SYMLINK_LEN as u64);
                    return Err(PackError::TooLong {
                        entry: shown(&self.path),
                        what: "target of a symlink",
                        found,
                        max,
                    });
                }
                self.index.symlink(&self.path, &attributes, &member.link);
            }
            MemberKind::HardLink => {
                path::clean(&member.link, &mut self.target);
                path::check(&self.target)?;
                self.index.hard_link(&self.path, &self.target);
            }
            MemberKind::Fifo => self.index.fifo(&self.path, &attributes),
            MemberKind::CharDevice | MemberKind::BlockDevice => {
                self.devices += 1;
                self.index.device(&self.path);
            }
        }
        Ok(())
    }

    fn bad_entry(&self, what: &'static str) -> PackError {
        PackError::BadEntry { entry: shown(&self.archive.member.name), what }
    }
}

fn attributes(member: &Member, index: &mut IndexBuilder) -> Attributes {
    Attributes {
        mode: member.mode,
        uid: member.uid,
        gid: member.gid,
        mtime: member.mtime,
        xattrs: index.xattr_set(&member.xattrs),
    }
}
