//! One layer to one pack.

use std::{
    io::{Read, Write},
    num::NonZeroUsize,
    thread,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use sctl_common::{DiffId, Limits, Profile};
use sctl_squashfs::BlockSize;

use crate::error::{PackError, shown};
use crate::index::{Attributes, HEADER_LEN, IndexBuilder, MAX_SYMLINK_LEN, is_valid_profile, write_header};
use crate::inflate::Inflater;
use crate::path;
use crate::pipeline::{self, Feeder};
use crate::split::{ContentRecord, Splitter};
use crate::tar::{Archive, Chunk, ChunkSource, Member, MemberKind, Stream};

/// Bytes of tar stream that one stage hands to the next at once: large enough
/// that handing over costs nothing, small enough to stay in a core's cache.
const CHUNK_LEN: usize = 256 << 10;

/// Chunks between inflating and reading the tar stream.
const CHUNKS: usize = 4;

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
/// many bytes of the tar stream are done. Reading, decompressing, parsing and
/// compressing run on threads of their own; the pack is written by the calling
/// thread, block by block, so `out` had better be buffered. When one of them
/// fails, all stop; a `blob` that is blocked in a read is waited for.
///
/// # Errors
/// The first error that any stage met. What was written until then is no pack.
pub fn pack_layer<R, W>(
    blob: R,
    mut out: W,
    options: &PackOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<PackSummary, PackError>
where
    R: Read + Send,
    W: Write + Send,
{
    if !is_valid_profile(&options.profile) {
        return Err(PackError::BadProfile { profile: format!("{:?}", options.profile) });
    }
    write(&mut out, &write_header(&options.profile))?;
    thread::scope(|scope| {
        let (free_in, free_out) = bounded(CHUNKS);
        let (chunks_in, chunks_out) = bounded(CHUNKS);
        let inflating = thread::Builder::new()
            .name("inflate".to_owned())
            .spawn_scoped(scope, move || inflate(blob, &free_out, &chunks_in))
            .map_err(|_| PackError::Broken { stage: "decompressing" })?;
        let source = Chunks { free: free_in, chunks: chunks_out, allocated: 0, tar_bytes: 0, blob_bytes: 0, progress };

        let mut blocks: Vec<BlockSize> = Vec::new();
        let mut offset = HEADER_LEN as u64;
        let packed = pipeline::run(
            &options.profile,
            // What feeds the compressors keeps a processor busy. More threads
            // than processors would take turns, and at each turn a compressor
            // loses the tables that it had in its core's cache.
            options.threads.get() - 1,
            |feeder| TarPacker::new(source, feeder, options).run(),
            |number, size, bytes| {
                // Numbers that were left out are those of sparse blocks.
                blocks.resize(number as usize, BlockSize::SPARSE);
                blocks.push(size);
                offset += bytes.len() as u64;
                write(&mut out, bytes)
            },
        );
        // Its channels are closed by now, so it ends after its current read.
        let inflated = inflating.join();
        let packed = packed?;
        if inflated.is_err() {
            return Err(PackError::Broken { stage: "decompressing" });
        }
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
    })
}

fn write<W: Write>(out: &mut W, bytes: &[u8]) -> Result<(), PackError> {
    out.write_all(bytes).map_err(|source| PackError::WritePack { source })
}

/// What the inflating thread sends: a chunk, or `None` at the end.
type Message = Result<Option<Chunk>, PackError>;

fn inflate<R: Read>(blob: R, free: &Receiver<Box<[u8]>>, chunks: &Sender<Message>) {
    let mut inflater = Inflater::new(blob);
    while let Ok(mut buffer) = free.recv() {
        let message = match inflater.fill(&mut buffer) {
            Ok(len) => Ok(Some(Chunk { buffer, len, blob_bytes: inflater.blob_bytes() })),
            Err(error) => Err(error),
        };
        let is_last = !matches!(&message, Ok(Some(chunk)) if chunk.len == chunk.buffer.len());
        let is_end = message.is_ok() && is_last;
        // A closed channel means that the reader has stopped; it knows why.
        if chunks.send(message).is_err() || is_last {
            if is_end {
                let _ = chunks.send(Ok(None));
            }
            return;
        }
    }
}

/// The reader's end of the channels to the inflating thread.
struct Chunks<'a> {
    free: Sender<Box<[u8]>>,
    chunks: Receiver<Message>,
    allocated: usize,
    tar_bytes: u64,
    blob_bytes: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl ChunkSource for Chunks<'_> {
    fn next_chunk(&mut self, used: Chunk) -> Result<Option<Chunk>, PackError> {
        if !used.buffer.is_empty() {
            // The other side may be done already, and needs it no more.
            let _ = self.free.send(used.buffer);
        }
        while self.allocated < CHUNKS {
            self.allocated += 1;
            let _ = self.free.send(vec![0; CHUNK_LEN].into());
        }
        let chunk = self.chunks.recv().map_err(|_| PackError::Broken { stage: "decompressing" })??;
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
    splitter: Splitter,
    index: IndexBuilder,
    limits: &'a Limits,
    path: Vec<u8>,
    target: Vec<u8>,
    name_bytes: u64,
    file_bytes: u64,
    devices: u64,
}

impl<'a> TarPacker<'a> {
    fn new(source: Chunks<'a>, feeder: Feeder, options: &'a PackOptions) -> Self {
        Self {
            archive: Archive::new(Stream::new(source, &options.limits)),
            splitter: Splitter::new(feeder, options.profile.block_size),
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
