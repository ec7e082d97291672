//! The inode table.
//!
//! Every inode starts with type, permissions, index of the uid, index of the
//! gid (2 bytes each), time of change and inode number (4 each). Types 1 to 7
//! are the basic ones; the same plus 7 are extended: with xattrs, and where
//! the basic fields are too narrow.

use crate::{
    layout::NO_FRAGMENT,
    writer::{FileData, Inode, InodeIndex, InodeKind, Params, WriteError, directory::Listing},
};

/// What extended types add to the number of the basic one.
const EXTENDED: u16 = 7;

/// Fields of an inode that come from elsewhere than itself.
pub(super) struct Context<'a> {
    pub index: InodeIndex,
    pub number: u32,
    pub links: u32,
    pub uid_index: u16,
    pub gid_index: u16,
    /// Id of the xattrs, if there are any.
    pub xattr: Option<u32>,
    /// Of directories only: inode number of the parent.
    pub parent: u32,
    /// Of directories only: the listing, already written.
    pub listing: Option<&'a Listing>,
    /// Number of fragment blocks, and the end of the data area.
    pub fragment_count: usize,
    pub data_end: u64,
}

/// Type of the basic inode, which directories name.
pub(super) fn basic_type(kind: &InodeKind) -> u16 {
    match kind {
        InodeKind::Directory { .. } => 1,
        InodeKind::File(_) => 2,
        InodeKind::Symlink { .. } => 3,
        InodeKind::BlockDevice { .. } => 4,
        InodeKind::CharDevice { .. } => 5,
        InodeKind::Fifo => 6,
        InodeKind::Socket => 7,
    }
}

/// Appends the inode to `out`.
pub(super) fn encode(
    inode: &Inode,
    context: &Context<'_>,
    params: &Params,
    out: &mut Vec<u8>,
) -> Result<(), WriteError> {
    if inode.mode > 0o7777 {
        return Err(WriteError::BadMode { index: context.index, mode: inode.mode });
    }
    let header = |out: &mut Vec<u8>, is_extended: bool| {
        let number = basic_type(&inode.kind) + if is_extended { EXTENDED } else { 0 };
        for field in [number, inode.mode, context.uid_index, context.gid_index] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        put_u32s(out, &[inode.mtime, context.number]);
    };
    let xattr = context.xattr;
    match &inode.kind {
        InodeKind::Directory { .. } => {
            let listing = context.listing.ok_or(WriteError::NoSuchInode { index: context.index })?;
            let block = super::directory::table_block(listing.position.block, "directory table")?;
            match u16::try_from(listing.size) {
                Ok(size) if xattr.is_none() && listing.index_count == 0 => {
                    header(out, false);
                    put_u32s(out, &[block, context.links]);
                    out.extend_from_slice(&size.to_le_bytes());
                    out.extend_from_slice(&listing.position.offset.to_le_bytes());
                    put_u32s(out, &[context.parent]);
                }
                _ => {
                    header(out, true);
                    put_u32s(out, &[context.links, listing.size, block, context.parent]);
                    out.extend_from_slice(&listing.index_count.to_le_bytes());
                    out.extend_from_slice(&listing.position.offset.to_le_bytes());
                    put_u32s(out, &[xattr.unwrap_or(u32::MAX)]);
                    out.extend_from_slice(&listing.index);
                }
            }
        }
        InodeKind::File(file) => {
            check_file(file, context, params)?;
            let fragment = file.fragment.map_or([NO_FRAGMENT, 0], |fragment| [fragment.index, fragment.offset]);
            // A file of which nothing is stored in blocks starts nowhere.
            let start = if file.blocks.iter().all(|block| block.is_sparse()) { 0 } else { file.start };
            match (u32::try_from(start), u32::try_from(file.size)) {
                (Ok(start), Ok(size)) if xattr.is_none() && context.links == 1 && file.sparse_bytes == 0 => {
                    header(out, false);
                    put_u32s(out, &[start, fragment[0], fragment[1], size]);
                }
                _ => {
                    header(out, true);
                    for field in [start, file.size, file.sparse_bytes] {
                        out.extend_from_slice(&field.to_le_bytes());
                    }
                    put_u32s(out, &[context.links, fragment[0], fragment[1], xattr.unwrap_or(u32::MAX)]);
                }
            }
            out.extend(file.blocks.iter().flat_map(|block| block.word().to_le_bytes()));
        }
        InodeKind::Symlink { target } => {
            if target.is_empty() || target.len() > crate::layout::MAX_SYMLINK_LEN {
                return Err(WriteError::SymlinkTarget { index: context.index, len: target.len() });
            }
            header(out, xattr.is_some());
            put_u32s(out, &[context.links, target.len() as u32]);
            out.extend_from_slice(target);
            put_u32s(out, xattr.as_slice());
        }
        InodeKind::Fifo | InodeKind::Socket => {
            header(out, xattr.is_some());
            put_u32s(out, &[context.links]);
            put_u32s(out, xattr.as_slice());
        }
        InodeKind::CharDevice { rdev } | InodeKind::BlockDevice { rdev } => {
            header(out, xattr.is_some());
            put_u32s(out, &[context.links, *rdev]);
            put_u32s(out, xattr.as_slice());
        }
    }
    Ok(())
}

fn put_u32s(out: &mut Vec<u8>, fields: &[u32]) {
    out.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
}

/// A wrong block list would be read as other files' data, so it is checked.
fn check_file(file: &FileData, context: &Context<'_>, params: &Params) -> Result<(), WriteError> {
    let index = context.index;
    let block_size = u64::from(params.block_size);
    let tail = file.size % block_size;
    let expected = match file.fragment {
        Some(fragment) => {
            let is_inside = (fragment.index as usize) < context.fragment_count
                && u64::from(fragment.offset) + tail <= block_size
                && tail > 0;
            if !is_inside {
                return Err(WriteError::BadFragment { index, fragment: fragment.index });
            }
            file.size / block_size
        }
        None => file.size.div_ceil(block_size),
    };
    let found = file.blocks.len() as u64;
    if found != expected {
        return Err(WriteError::BlockCount { index, size: file.size, found, expected });
    }
    let stored: u64 = file.blocks.iter().map(|block| u64::from(block.stored_len())).sum();
    let end = file.start.saturating_add(stored);
    if stored > 0 && end > context.data_end {
        return Err(WriteError::OutOfDataArea { what: "a file", end, data_end: context.data_end });
    }
    Ok(())
}
