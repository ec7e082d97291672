//! What cannot be copied, put together for the compressors.

use sctl_squashfs::{BlockDecompressor, CompressorId, reader::ReadAt};

use crate::assemble::{
    AssembleOptions,
    plan::{Plan, Source},
};
use crate::error::AssembleError;
use crate::pipeline::{Block, Crew};
use crate::tree::Tree;

/// Sends the new fragment blocks in their order, numbered from 0, then the
/// blocks of added files, numbered by file behind the fragments.
pub(super) fn feed<P: ReadAt>(
    tree: &Tree,
    plan: &Plan,
    packs: &[P],
    options: &AssembleOptions,
    crew: &dyn Crew,
) -> Result<(), AssembleError> {
    let block_size = options.profile.block_size as usize;
    let compressor = CompressorId::from(options.profile.compression);
    let mut decompressor = BlockDecompressor::new(compressor).map_err(|source| AssembleError::Codec { source })?;
    let (mut stored, mut contents) = (Vec::new(), Vec::new());
    let mut fragment: Option<(u32, Block)> = None;
    for gather in &plan.gathers {
        let bytes = match gather.source {
            Source::Addition(number) => &tree.additions[number as usize],
            Source::Pack { pack, start, size, len } => {
                stored.resize(size.stored_len() as usize, 0);
                packs[pack]
                    .read_exact_at(&mut stored, start)
                    .map_err(|source| AssembleError::ReadPack { pack, source })?;
                decompressor
                    .decompress(&stored, size, &mut contents, block_size)
                    .map_err(|source| AssembleError::BadBlock { pack, offset: start, source })?;
                if contents.len() != len as usize {
                    let (expected, found) = (u64::from(len), contents.len() as u64);
                    return Err(AssembleError::BlockLen { pack, offset: start, expected, found });
                }
                &contents
            }
        };
        for piece in &gather.pieces {
            let (target, mut block) = match fragment.take() {
                Some(current) if current.0 == piece.target => current,
                full => {
                    if let Some((number, block)) = full {
                        crew.send(block, number)?;
                    }
                    (piece.target, crew.take()?)
                }
            };
            block.input.extend_from_slice(&bytes[piece.offset as usize..][..piece.len as usize]);
            fragment = Some((target, block));
        }
    }
    if let Some((number, block)) = fragment {
        crew.send(block, number)?;
    }
    for (place, number) in (plan.new_fragments..).zip(&plan.added_files) {
        for bytes in tree.additions[*number as usize].chunks(block_size) {
            let mut block = crew.take()?;
            block.input.extend_from_slice(bytes);
            crew.send(block, place)?;
        }
    }
    Ok(())
}
