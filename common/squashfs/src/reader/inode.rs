//! Inodes: their fields, and reading them from the inode table.

use std::fmt;

use crate::{
    layout::{LISTING_SIZE_BIAS, MAX_SYMLINK_LEN, METADATA_BLOCK_SIZE, NO_FRAGMENT, NO_XATTR},
    reader::{
        ReadAt, ReadError, Reader,
        metadata::{Cursor, MetadataPosition},
    },
};

/// Says where an inode is: a number below 2⁴⁸, the same for all links of a
/// file, and never the same for two inodes of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeRef(u64);

impl InodeRef {
    /// Any number; reading the inode finds out what is there.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number.
    pub fn raw(self) -> u64 {
        self.0
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum FileType {
    Directory,
    File,
    Symlink,
    BlockDevice,
    CharDevice,
    Fifo,
    Socket,
}

impl FileType {
    /// The type of a basic inode, 1 to 7.
    pub(super) fn from_basic(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Directory,
            2 => Self::File,
            3 => Self::Symlink,
            4 => Self::BlockDevice,
            5 => Self::CharDevice,
            6 => Self::Fifo,
            7 => Self::Socket,
            _ => return None,
        })
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "directory",
            Self::File => "regular file",
            Self::Symlink => "symbolic link",
            Self::BlockDevice => "block device",
            Self::CharDevice => "character device",
            Self::Fifo => "named pipe",
            Self::Socket => "socket",
        })
    }
}

/// An inode as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Where it is.
    pub reference: InodeRef,
    /// Inode number.
    pub number: u32,
    /// Permission bits, within `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, seconds since 1970.
    pub mtime: u32,
    /// Links, as the image says.
    pub nlink: u32,
    /// What it is.
    pub kind: InodeKind,
    pub(super) xattr: u32,
}

/// What an inode is, with the fields of that kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InodeKind {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(File),
    /// A symbolic link.
    Symlink(Symlink),
    /// A block device.
    BlockDevice {
        /// Device number.
        rdev: u32,
    },
    /// A character device.
    CharDevice {
        /// Device number.
        rdev: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Where a directory's listing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Metadata block, from the start of the directory table, and offset.
    pub(super) block: u32,
    pub(super) offset: u16,
    /// Bytes of the listing as they are, without the three that only count.
    pub(super) listing_len: u32,
    pub(super) parent_number: u32,
    pub(super) index_count: u16,
    pub(super) index: MetadataPosition,
}

impl Directory {
    /// Inode number of the parent; of the root, that of nobody.
    pub fn parent_number(&self) -> u32 {
        self.parent_number
    }
}

/// Where a file's contents are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub(super) size: u64,
    pub(super) start: u64,
    pub(super) sparse_bytes: u64,
    /// Fragment block and offset in its contents.
    pub(super) fragment: Option<(u32, u32)>,
    pub(super) block_count: u64,
    /// The size words of the blocks.
    pub(super) blocks: MetadataPosition,
}

impl File {
    /// Bytes that sparse blocks stand for, as the image says.
    pub fn sparse_bytes(&self) -> u64 {
        self.sparse_bytes
    }
}

/// Where a link's target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symlink {
    pub(super) len: u32,
    pub(super) target: MetadataPosition,
}

impl Inode {
    /// What it is.
    pub fn file_type(&self) -> FileType {
        match self.kind {
            InodeKind::Directory(_) => FileType::Directory,
            InodeKind::File(_) => FileType::File,
            InodeKind::Symlink(_) => FileType::Symlink,
            InodeKind::BlockDevice { .. } => FileType::BlockDevice,
            InodeKind::CharDevice { .. } => FileType::CharDevice,
            InodeKind::Fifo => FileType::Fifo,
            InodeKind::Socket => FileType::Socket,
        }
    }

    /// Length in bytes: of a file's contents, of a link's target, of a
    /// directory's listing as Linux shows it; 0 for everything else.
    pub fn size(&self) -> u64 {
        match &self.kind {
            InodeKind::Directory(directory) => u64::from(directory.listing_len) + u64::from(LISTING_SIZE_BIAS),
            InodeKind::File(file) => file.size,
            InodeKind::Symlink(symlink) => u64::from(symlink.len),
            _ => 0,
        }
    }

    /// Device number; 0 for everything but devices.
    pub fn rdev(&self) -> u32 {
        match self.kind {
            InodeKind::BlockDevice { rdev } | InodeKind::CharDevice { rdev } => rdev,
            _ => 0,
        }
    }

    /// Whether it has xattrs.
    pub fn has_xattrs(&self) -> bool {
        self.xattr != NO_XATTR
    }
}

impl<R: ReadAt> Reader<R> {
    /// Reads an inode.
    ///
    /// # Errors
    /// [`ReadError`] if there is none, or its fields are not valid.
    pub fn inode(&self, reference: InodeRef) -> Result<Inode, ReadError> {
        let position = self.inode_position(reference)?;
        let mut cursor = self.cursor("inode table", position, self.superblock.directory_table_start)?;
        let number = cursor.read_u16()?;
        let (basic, is_extended) = if number > 7 { (number - 7, true) } else { (number, false) };
        let file_type = FileType::from_basic(basic)
            .ok_or(ReadError::BadField { what: "type of an inode", value: u64::from(number) })?;
        let mode = cursor.read_u16()? & 0o7777;
        let (uid, gid) = (self.id(cursor.read_u16()?)?, self.id(cursor.read_u16()?)?);
        let (mtime, number) = (cursor.read_u32()?, cursor.read_u32()?);
        let (nlink, xattr, kind) = match file_type {
            FileType::Directory => read_directory(&mut cursor, is_extended)?,
            FileType::File => self.read_file(&mut cursor, is_extended)?,
            FileType::Symlink => read_symlink(&mut cursor, is_extended)?,
            other => {
                let nlink = cursor.read_u32()?;
                let kind = match other {
                    FileType::BlockDevice => InodeKind::BlockDevice { rdev: cursor.read_u32()? },
                    FileType::CharDevice => InodeKind::CharDevice { rdev: cursor.read_u32()? },
                    FileType::Fifo => InodeKind::Fifo,
                    _ => InodeKind::Socket,
                };
                (nlink, read_xattr(&mut cursor, is_extended)?, kind)
            }
        };
        Ok(Inode { reference, number, mode, uid, gid, mtime, nlink, kind, xattr })
    }

    /// Reads where a symbolic link leads: 1 to 4,095 bytes.
    ///
    /// # Errors
    /// [`ReadError`] if `inode` is no symbolic link, or the image is damaged.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let InodeKind::Symlink(symlink) = &inode.kind else { return Err(inode.wrong_kind(FileType::Symlink)) };
        let end = self.superblock.directory_table_start;
        // Its length was checked when the inode was read.
        self.cursor("inode table", symlink.target, end)?.read_vec(symlink.len as usize)
    }

    fn id(&self, index: u16) -> Result<u32, ReadError> {
        self.ids
            .get(usize::from(index))
            .copied()
            .ok_or(ReadError::BadField { what: "index of an id", value: u64::from(index) })
    }

    fn read_file(&self, cursor: &mut Cursor<'_, R>, is_extended: bool) -> Result<(u32, u32, InodeKind), ReadError> {
        let (start, size, sparse_bytes, nlink, fragment, xattr);
        if is_extended {
            (start, size, sparse_bytes) = (cursor.read_u64()?, cursor.read_u64()?, cursor.read_u64()?);
            nlink = cursor.read_u32()?;
            fragment = (cursor.read_u32()?, cursor.read_u32()?);
            xattr = cursor.read_u32()?;
        } else {
            start = u64::from(cursor.read_u32()?);
            fragment = (cursor.read_u32()?, cursor.read_u32()?);
            size = u64::from(cursor.read_u32()?);
            (sparse_bytes, nlink, xattr) = (0, 1, NO_XATTR);
        }
        let bad_size = ReadError::BadField { what: "size of a file", value: size };
        if i64::try_from(size).is_err() {
            return Err(bad_size);
        }
        let fragment = (fragment.0 != NO_FRAGMENT).then_some(fragment);
        let block_size = u64::from(self.superblock.block_size);
        let block_count = if fragment.is_some() { size / block_size } else { size.div_ceil(block_size) };
        let blocks = cursor.position();
        // A metadata block takes three bytes at least, and its contents are
        // 8 KiB at most: more size words than that cannot follow.
        let room = (self.superblock.directory_table_start - blocks.block) / 3 + 1;
        if block_count > room.saturating_mul(METADATA_BLOCK_SIZE as u64 / 4) {
            return Err(bad_size);
        }
        let file = File { size, start, sparse_bytes, fragment, block_count, blocks };
        Ok((nlink, xattr, InodeKind::File(file)))
    }
}

fn read_directory<R: ReadAt>(
    cursor: &mut Cursor<'_, R>,
    is_extended: bool,
) -> Result<(u32, u32, InodeKind), ReadError> {
    let (nlink, size, block, parent_number, index_count, offset, xattr);
    if is_extended {
        (nlink, size, block, parent_number) =
            (cursor.read_u32()?, cursor.read_u32()?, cursor.read_u32()?, cursor.read_u32()?);
        (index_count, offset, xattr) = (cursor.read_u16()?, cursor.read_u16()?, cursor.read_u32()?);
    } else {
        (block, nlink) = (cursor.read_u32()?, cursor.read_u32()?);
        size = u32::from(cursor.read_u16()?);
        offset = cursor.read_u16()?;
        parent_number = cursor.read_u32()?;
        (index_count, xattr) = (0, NO_XATTR);
    }
    // Some writers say 0 instead of 3 for an empty directory.
    let listing_len = size.saturating_sub(LISTING_SIZE_BIAS);
    let index = cursor.position();
    let directory = Directory { block, offset, listing_len, parent_number, index_count, index };
    Ok((nlink, xattr, InodeKind::Directory(directory)))
}

fn read_symlink<R: ReadAt>(cursor: &mut Cursor<'_, R>, is_extended: bool) -> Result<(u32, u32, InodeKind), ReadError> {
    let (nlink, len) = (cursor.read_u32()?, cursor.read_u32()?);
    if len == 0 || len as usize > MAX_SYMLINK_LEN {
        return Err(ReadError::BadField { what: "length of a symlink target", value: u64::from(len) });
    }
    let target = cursor.position();
    cursor.skip(u64::from(len))?;
    Ok((nlink, read_xattr(cursor, is_extended)?, InodeKind::Symlink(Symlink { len, target })))
}

fn read_xattr<R: ReadAt>(cursor: &mut Cursor<'_, R>, is_extended: bool) -> Result<u32, ReadError> {
    if is_extended { cursor.read_u32() } else { Ok(NO_XATTR) }
}
