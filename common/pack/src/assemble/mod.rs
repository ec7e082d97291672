//! A tree to a squashfs image.
//!
//! The data area comes first: runs of blocks that are still visible, copied
//! from the packs as they are, then fragment blocks that had to be made anew.
//! A fragment block is copied only if every file in it is in the tree and not
//! already stored elsewhere; otherwise what lives of it moves to a new one, so
//! that nothing deleted is carried along. Tables follow.

mod gather;
mod plan;
mod tables;

use std::{
    io::{self, Write},
    num::NonZeroUsize,
};

use sctl_common::Profile;
use sctl_squashfs::{
    BlockSize,
    reader::ReadAt,
    writer::{self, FragmentEntry, Params},
};

use crate::error::AssembleError;
use crate::pipeline::{self, Stored};
use crate::tree::Tree;
use plan::Plan;

/// The image is padded to this, so that a loop device can take all of it.
const IMAGE_ALIGNMENT: u64 = 4096;

/// Bytes copied in one call at most, so that progress can be told.
const COPY_LEN: u64 = 64 << 20;

/// Buffer for the tables, which come in small pieces.
const TABLE_BUFFER_LEN: usize = 256 << 10;

/// Where an image is written to, in order but for its first bytes.
///
/// Offsets count from the superblock's place.
pub trait ImageOutput {
    /// Appends bytes.
    ///
    /// # Errors
    /// Whatever the output says.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Overwrites bytes that were appended before.
    ///
    /// # Errors
    /// Whatever the output says.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Appends `len` bytes of a pack, from its byte `offset` on.
    ///
    /// # Errors
    /// Whatever pack or output say; `UnexpectedEof` if the pack is too short.
    fn copy_from_pack(&mut self, pack: usize, offset: u64, len: u64) -> io::Result<()>;
}

/// How an image is to be made.
#[derive(Debug, Clone, Copy)]
pub struct AssembleOptions {
    /// Compressor and block size, those of the packs.
    pub profile: Profile,
    /// Time of the image, and of what no layer dates: seconds since 1970.
    pub mkfs_time: u32,
    /// Threads that compress; the bytes do not depend on it.
    pub threads: NonZeroUsize,
}

/// What came of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// Bytes that the file system uses.
    pub bytes_used: u64,
    /// Bytes written, with the padding behind it.
    pub image_bytes: u64,
    /// Inodes in it.
    pub inodes: u32,
    /// Bytes copied from packs as they were.
    pub copied_bytes: u64,
    /// Bytes of contents that were compressed anew.
    pub rewritten_bytes: u64,
    /// Bytes of contents that were left out since they are there already.
    pub duplicate_bytes: u64,
    /// Device nodes that were left out.
    pub devices: u64,
}

/// Writes the image of a tree; `packs` are those that it was merged from, in
/// their order.
///
/// `progress` is told how many bytes of the data area's source are done, and
/// of how many. The output is a function of tree, profile and time alone.
///
/// # Errors
/// [`AssembleError`] if packs cannot be read, the output fails, or squashfs
/// cannot hold the tree. What was written until then is no image.
pub fn assemble<P, O>(
    tree: &Tree,
    packs: &[P],
    out: &mut O,
    options: &AssembleOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<ImageSummary, AssembleError>
where
    P: ReadAt,
    O: ImageOutput + Send,
{
    if packs.len() != tree.packs.len() {
        return Err(AssembleError::WrongPacks { expected: tree.packs.len(), found: packs.len() });
    }
    if let Some(pack) = tree.packs.iter().position(|pack| pack.profile != options.profile) {
        return Err(AssembleError::WrongProfile { pack });
    }
    let write_error = |source| AssembleError::Write { source };
    let params = Params {
        compression: options.profile.compression,
        block_size: options.profile.block_size,
        mkfs_time: options.mkfs_time,
    };
    let data_start = writer::data_start(&params);
    // A handful of bytes, known to the writer.
    out.write_all(&vec![0; data_start as usize]).map_err(write_error)?;

    let plan = Plan::of(tree, data_start, options.profile.block_size)?;
    let total = (plan.copied_end - data_start) + plan.rewritten_bytes;
    let data = write_data(tree, &plan, packs, out, options, &|done| progress(done, total))?;
    let image = tables::image(tree, &plan, &data, params.block_size, params.mkfs_time)?;
    let mut table_output = io::BufWriter::with_capacity(TABLE_BUFFER_LEN, Appender(out));
    let superblock = writer::write_tables(&mut table_output, data.end, &image, &data.fragments, &params)
        .map_err(|source| AssembleError::Tables { source })?;
    table_output.flush().map_err(write_error)?;
    drop(table_output);
    let image_bytes = superblock.bytes_used.next_multiple_of(IMAGE_ALIGNMENT);
    // Less than 4,096 bytes.
    out.write_all(&vec![0; (image_bytes - superblock.bytes_used) as usize]).map_err(write_error)?;
    out.write_at(0, &writer::encode_head(&superblock, &params)).map_err(write_error)?;
    Ok(ImageSummary {
        bytes_used: superblock.bytes_used,
        image_bytes,
        inodes: superblock.inode_count,
        copied_bytes: plan.copied_end - data_start,
        rewritten_bytes: plan.rewritten_bytes,
        duplicate_bytes: plan.duplicate_bytes,
        devices: tree.device_count(),
    })
}

struct Appender<'a, O>(&'a mut O);

impl<O: ImageOutput> Write for Appender<'_, O> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is known of the data area once it is written.
#[derive(Default)]
struct DataArea {
    end: u64,
    fragments: Vec<FragmentEntry>,
    added: Vec<AddedFile>,
}

/// An added file with blocks of its own.
struct AddedFile {
    start: u64,
    blocks: Vec<BlockSize>,
}

/// Copies what can be copied and compresses the rest meanwhile.
fn write_data<P, O>(
    tree: &Tree,
    plan: &Plan,
    packs: &[P],
    out: &mut O,
    options: &AssembleOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<DataArea, AssembleError>
where
    P: ReadAt,
    O: ImageOutput + Send,
{
    let mut data = DataArea { end: plan.copied_end, fragments: plan.copied_fragments.clone(), added: Vec::new() };
    let copied: u64 = plan.runs.iter().map(|run| run.len).sum();
    let copy = |out: &mut O| -> Result<(), AssembleError> {
        let mut copied = 0;
        for run in &plan.runs {
            let mut done = 0;
            while done < run.len {
                let len = (run.len - done).min(COPY_LEN);
                out.copy_from_pack(run.pack, run.offset + done, len)
                    .map_err(|source| AssembleError::Copy { pack: run.pack, source })?;
                done += len;
                copied += len;
                progress(copied);
            }
        }
        Ok(())
    };
    if plan.gathers.is_empty() && plan.added_files.is_empty() {
        copy(out)?;
        return Ok(data);
    }
    // Threads get going while this one copies.
    let mut is_copied = false;
    let append = |number: u32, block: Stored<'_>| -> Result<(), AssembleError> {
        if !is_copied {
            copy(out)?;
            is_copied = true;
        }
        let entry = FragmentEntry { start: data.end, size: block.size };
        match number.checked_sub(plan.new_fragments) {
            None => data.fragments.push(entry),
            Some(file) => {
                if data.added.len() <= file as usize {
                    data.added.push(AddedFile { start: entry.start, blocks: Vec::new() });
                }
                if let Some(file) = data.added.last_mut() {
                    file.blocks.push(block.size);
                }
            }
        }
        data.end += block.bytes.len() as u64;
        out.write_all(block.bytes).map_err(|source| AssembleError::Write { source })
    };
    pipeline::run(
        &options.profile,
        options.threads.get(),
        pipeline::no_chunks,
        |crew| gather::feed(tree, plan, packs, options, crew),
        append,
    )?;
    progress(copied + plan.rewritten_bytes);
    Ok(data)
}
