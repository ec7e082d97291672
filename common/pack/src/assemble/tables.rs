//! The tree as the writer of the tables wants it.

use std::collections::HashMap;

use sctl_squashfs::{
    BlockSize,
    writer::{FileData, FragmentRef, Image, Inode, InodeKind},
};

use crate::assemble::{
    DataArea,
    plan::{Location, Plan},
};
use crate::error::AssembleError;
use crate::index::Place;
use crate::tree::{Contents, NodeId, NodeKind, ROOT, Tree};

/// Marks a node that is not in the image.
const ABSENT: u32 = u32::MAX;

/// Describes every inode, numbered in the order of paths.
pub(super) fn image(
    tree: &Tree,
    plan: &Plan,
    data: &DataArea,
    block_size: u32,
    mkfs_time: u32,
) -> Result<Image, AssembleError> {
    let (order, numbers) = number_nodes(tree);
    let mut image = Image::default();
    image.inodes.reserve_exact(order.len());
    let mut xattr_sets = HashMap::new();
    for id in order {
        let node = tree.node(id);
        let kind = match &node.kind {
            NodeKind::Directory(directory) => {
                let entries = directory.entries.iter().filter_map(|(name, child)| {
                    let number = numbers[child.node as usize];
                    (number != ABSENT).then(|| (name.clone(), number))
                });
                InodeKind::Directory { entries: entries.collect() }
            }
            NodeKind::File(contents) => InodeKind::File(file_data(tree, plan, data, *contents, block_size)?),
            NodeKind::Symlink(target) => InodeKind::Symlink { target: target.clone() },
            NodeKind::Fifo => InodeKind::Fifo,
            NodeKind::Device | NodeKind::Free => continue,
        };
        let xattrs = node.xattrs.map(|(pack, set)| {
            *xattr_sets.entry((pack, set)).or_insert_with(|| {
                image.xattr_sets.push(tree.packs[pack as usize].xattr_sets[set as usize].clone());
                // Fewer than inodes.
                image.xattr_sets.len() as u32 - 1
            })
        });
        image.inodes.push(Inode {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime.unwrap_or(mkfs_time),
            xattrs,
            kind,
        });
    }
    Ok(image)
}

/// All nodes but devices in the order of paths, and the number of each.
fn number_nodes(tree: &Tree) -> (Vec<NodeId>, Vec<u32>) {
    let mut numbers = vec![ABSENT; tree.node_slots()];
    let mut order = Vec::new();
    let mut waiting = vec![ROOT];
    while let Some(id) = waiting.pop() {
        let node = tree.node(id);
        if numbers[id as usize] != ABSENT || matches!(node.kind, NodeKind::Device | NodeKind::Free) {
            continue;
        }
        // Their number is limited to less than 2^32.
        numbers[id as usize] = order.len() as u32;
        order.push(id);
        if let NodeKind::Directory(directory) = &node.kind {
            waiting.extend(directory.entries.values().rev().map(|child| child.node));
        }
    }
    (order, numbers)
}

fn file_data(
    tree: &Tree,
    plan: &Plan,
    data: &DataArea,
    contents: Contents,
    block_size: u32,
) -> Result<FileData, AssembleError> {
    let size = match contents {
        Contents::Empty => return Ok(FileData::default()),
        Contents::Packed { pack, content } => tree.packs[pack as usize].contents[content as usize].size,
        Contents::Added(number) => tree.additions[number as usize].len() as u64,
    };
    let (start, blocks): (u64, &[BlockSize]) = match plan.location(contents) {
        Location::Fragment { index, offset } => {
            let fragment = Some(FragmentRef { index, offset });
            return Ok(FileData { size, fragment, ..FileData::default() });
        }
        Location::Blocks { pack, content, start } => {
            let index = &tree.packs[pack as usize];
            match index.contents[content as usize].place {
                Place::Blocks { first, count, .. } => (start, &index.blocks[first as usize..][..count as usize]),
                Place::Fragment { .. } => return Err(AssembleError::Broken { stage: "planning" }),
            }
        }
        Location::Added { place } => {
            let file = &data.added[place as usize];
            (file.start, &file.blocks)
        }
        Location::Dead | Location::Live => return Err(AssembleError::Broken { stage: "planning" }),
    };
    let mut sparse_bytes = 0;
    for (place, block) in (0..).zip(blocks) {
        if block.is_sparse() {
            sparse_bytes += (size - place * u64::from(block_size)).min(u64::from(block_size));
        }
    }
    Ok(FileData { size, start, blocks: blocks.into(), fragment: None, sparse_bytes })
}
