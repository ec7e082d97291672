//! Writes all tables, in the order in which they stand in the image.

use std::{
    collections::{HashMap, hash_map::Entry as MapEntry},
    io,
};

use sctl_common::Compression;

use crate::{
    layout::{
        CompressorId, FRAGMENT_ENTRY_LEN, NO_TABLE, NO_XATTR, SUPERBLOCK_LEN, Superblock, flags, is_valid_block_size,
    },
    writer::{
        FragmentEntry, Image, InodeIndex, InodeKind, Params, WriteError,
        directory::{Entry, Listing, write_listing},
        inode::{Context, basic_type, encode},
        metadata::{MetadataPosition, MetadataWriter, Positioned},
        plan::Plan,
        xattr::XattrTable,
    },
};

/// Marks an inode that is not yet written: no reference has all bits set.
const NOT_WRITTEN: u64 = u64::MAX;

/// Offset of the first data block from the superblock: behind it, and behind
/// the compressor's options where these are not its defaults.
pub fn data_start(params: &Params) -> u64 {
    (SUPERBLOCK_LEN + compressor_options(params.compression).len()) as u64
}

/// The [`data_start`] bytes at the start of the image: superblock and
/// compressor options.
pub fn encode_head(superblock: &Superblock, params: &Params) -> Vec<u8> {
    let mut head = superblock.encode().to_vec();
    head.extend_from_slice(&compressor_options(params.compression));
    head
}

/// Options as an uncompressed metadata block; nothing if all are those that
/// readers take for granted: gzip level 9, zstd level 15.
fn compressor_options(compression: Compression) -> Vec<u8> {
    let mut options = Vec::new();
    match compression {
        Compression::Gzip { level: 9 } | Compression::Zstd { level: 15 } => return Vec::new(),
        Compression::Gzip { level } => {
            options.extend_from_slice(&u32::from(level).to_le_bytes());
            // A window of 15 bits, and the default strategy alone.
            options.extend_from_slice(&15u16.to_le_bytes());
            options.extend_from_slice(&0u16.to_le_bytes());
        }
        Compression::Zstd { level } => options.extend_from_slice(&u32::from(level).to_le_bytes()),
    }
    let header = options.len() as u16 | crate::layout::METADATA_UNCOMPRESSED;
    [&header.to_le_bytes()[..], &options].concat()
}

/// Writes inode, directory, fragment, export, id and xattr tables.
///
/// `out` stands right behind the data area, `data_end` bytes from the
/// superblock. The tables are a function of the arguments alone. The returned
/// superblock says where everything is and how many bytes are used; it goes
/// to the start by way of [`encode_head`].
///
/// # Errors
/// [`WriteError`] if the image is not one that squashfs can hold, or `out`
/// fails.
pub fn write_tables<W: io::Write>(
    out: &mut W,
    data_end: u64,
    image: &Image,
    fragments: &[FragmentEntry],
    params: &Params,
) -> Result<Superblock, WriteError> {
    if !is_valid_block_size(params.block_size) {
        return Err(WriteError::BlockSize { size: params.block_size });
    }
    check_fragments(fragments, data_end)?;
    let fragment_count =
        u32::try_from(fragments.len()).map_err(|_| WriteError::TooLarge { what: "number of fragment blocks" })?;
    let compression = params.compression;
    let plan = Plan::of(image)?;
    let mut writer = InodeWriter {
        image,
        params,
        fragment_count: fragments.len(),
        data_end,
        inodes: MetadataWriter::new("inode table", compression, &mut *out)?,
        directories: MetadataWriter::new("directory table", compression, Vec::new())?,
        listings: HashMap::new(),
        references: vec![NOT_WRITTEN; image.inodes.len()],
        ids: IdTable::default(),
        xattrs: XattrTable::new(image, compression)?,
        scratch: Vec::new(),
        plan,
    };
    let root_inode = writer.write_tree()?;
    let InodeWriter { inodes, directories, references, ids, xattrs, plan, .. } = writer;

    let inode_table_start = data_end;
    let (_, inode_bytes, _) = inodes.finish()?;
    let mut out = Positioned { out, position: data_end + inode_bytes };
    let directory_table_start = out.position;
    let (directory_bytes, ..) = directories.finish()?;
    out.write("directory table", &directory_bytes)?;
    let fragment_table_start = match fragments {
        [] => NO_TABLE,
        _ => out.write_indexed_table("fragment table", compression, fragments.iter().map(encode_fragment))?,
    };
    let by_number = references_by_number(&plan, &references);
    let export_table_start =
        out.write_indexed_table("export table", compression, by_number.iter().map(|entry| entry.to_le_bytes()))?;
    let id_table_start =
        out.write_indexed_table("id table", compression, ids.ids.iter().map(|entry| entry.to_le_bytes()))?;
    let xattr_table_start = xattrs.finish(&mut out, compression)?;

    let flag_if = |flag, condition| if condition { flag } else { 0 };
    Ok(Superblock {
        inode_count: plan.inode_count,
        mkfs_time: params.mkfs_time,
        block_size: params.block_size,
        fragment_count,
        compressor: CompressorId::from(compression),
        flags: flags::EXPORTABLE
            | flags::DUPLICATES
            | flag_if(flags::NO_FRAGMENTS, fragments.is_empty())
            | flag_if(flags::NO_XATTRS, xattr_table_start == NO_TABLE)
            | flag_if(flags::COMPRESSOR_OPTIONS, !compressor_options(compression).is_empty()),
        // Checked when each id was added.
        id_count: ids.ids.len() as u16,
        root_inode,
        bytes_used: out.position,
        id_table_start,
        xattr_table_start,
        inode_table_start,
        directory_table_start,
        fragment_table_start,
        export_table_start,
    })
}

fn check_fragments(fragments: &[FragmentEntry], data_end: u64) -> Result<(), WriteError> {
    for fragment in fragments {
        let end = fragment.start.saturating_add(u64::from(fragment.size.stored_len()));
        if end > data_end || fragment.size.is_sparse() {
            return Err(WriteError::OutOfDataArea { what: "a fragment block", end, data_end });
        }
    }
    Ok(())
}

fn encode_fragment(fragment: &FragmentEntry) -> [u8; FRAGMENT_ENTRY_LEN] {
    let mut entry = [0; FRAGMENT_ENTRY_LEN];
    entry[..8].copy_from_slice(&fragment.start.to_le_bytes());
    entry[8..12].copy_from_slice(&fragment.size.word().to_le_bytes());
    entry
}

/// The export table: the reference of inode 1, of inode 2, …
fn references_by_number(plan: &Plan, references: &[u64]) -> Vec<u64> {
    let mut table = vec![0; plan.inode_count as usize];
    for (number, reference) in plan.numbers.iter().zip(references) {
        if let Some(entry) = number.checked_sub(1).and_then(|at| table.get_mut(at as usize)) {
            *entry = *reference;
        }
    }
    table
}

/// Distinct uids and gids, in the order of their first use.
#[derive(Default)]
struct IdTable {
    ids: Vec<u32>,
    indexes: HashMap<u32, u16>,
}

impl IdTable {
    fn index_of(&mut self, id: u32) -> Result<u16, WriteError> {
        match self.indexes.entry(id) {
            MapEntry::Occupied(known) => Ok(*known.get()),
            MapEntry::Vacant(new) => {
                // The count, one more than the last index, has 16 bits as well.
                let index = u16::try_from(self.ids.len())
                    .ok()
                    .filter(|index| *index < u16::MAX)
                    .ok_or(WriteError::TooManyIds)?;
                self.ids.push(id);
                Ok(*new.insert(index))
            }
        }
    }
}

struct InodeWriter<'a, W> {
    image: &'a Image,
    params: &'a Params,
    fragment_count: usize,
    data_end: u64,
    plan: Plan,
    inodes: MetadataWriter<W>,
    /// The directory table follows the inode table but grows with it, so it
    /// waits in memory, compressed.
    directories: MetadataWriter<Vec<u8>>,
    /// Listings written, of directories whose inode is not.
    listings: HashMap<InodeIndex, Listing>,
    references: Vec<u64>,
    ids: IdTable,
    xattrs: XattrTable<'a>,
    scratch: Vec<u8>,
}

impl<W: io::Write> InodeWriter<'_, W> {
    /// Writes everything below the root and the root; returns its reference.
    ///
    /// A directory's inode needs its listing, and the listing its entries'
    /// inodes. So each directory, the deepest first, writes the inodes of its
    /// entries side by side, and then its listing.
    fn write_tree(&mut self) -> Result<u64, WriteError> {
        let image = self.image;
        for directory in std::mem::take(&mut self.plan.directories).into_iter().rev() {
            let parent = self.plan.numbers[directory as usize];
            let InodeKind::Directory { entries } = &image.inodes[directory as usize].kind else { continue };
            for (_, child) in entries {
                if self.references[*child as usize] == NOT_WRITTEN {
                    self.write_inode(*child, parent)?;
                }
            }
            let entries = entries.iter().map(|(name, child)| {
                let reference = self.references[*child as usize];
                Entry {
                    name,
                    position: MetadataPosition { block: reference >> 16, offset: reference as u16 },
                    number: self.plan.numbers[*child as usize],
                    basic_type: basic_type(&image.inodes[*child as usize].kind),
                }
            });
            let listing = write_listing(&mut self.directories, entries)?;
            self.listings.insert(directory, listing);
        }
        // The root has no parent; by custom it names the first number that no
        // inode has.
        self.write_inode(image.root, self.plan.inode_count + 1)?;
        Ok(self.references[image.root as usize])
    }

    fn write_inode(&mut self, index: InodeIndex, parent: u32) -> Result<(), WriteError> {
        let image = self.image;
        let inode = &image.inodes[index as usize];
        let listing = self.listings.remove(&index);
        let xattr = self.xattrs.id_of(image, inode.xattrs)?;
        let context = Context {
            index,
            number: self.plan.numbers[index as usize],
            links: self.plan.links[index as usize],
            uid_index: self.ids.index_of(inode.uid)?,
            gid_index: self.ids.index_of(inode.gid)?,
            xattr: (xattr != NO_XATTR).then_some(xattr),
            parent,
            listing: listing.as_ref(),
            fragment_count: self.fragment_count,
            data_end: self.data_end,
        };
        self.scratch.clear();
        encode(inode, &context, self.params, &mut self.scratch)?;
        self.references[index as usize] = self.inodes.position().reference();
        self.inodes.write(&self.scratch)
    }
}
