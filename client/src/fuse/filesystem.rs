//! Answers the kernel's questions about a squashfs.
//!
//! An image never changes, so every answer holds for ever: entries, missing
//! entries, attributes, link targets, contents and listings stay in the
//! kernel's caches, and files are opened without asking.

use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    ops::ControlFlow,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, SystemTime},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use sctl_squashfs::reader::{self, DirEntry, Inode, InodeKind, ReadAt, ReadError, Reader};

use super::{
    ServerOptions,
    nodes::{Nodes, ROOT},
};

/// How long the kernel may keep an answer: longer than any container runs.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Block size that files are shown with; what is read at once is the kernel's
/// business, which knows pages only.
const SHOWN_BLOCK_SIZE: u32 = 4096;

/// What the kernel is asked for, if it can do it.
const WANTED: [InitFlags; 6] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_NO_OPEN_SUPPORT,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
];

/// Requests of the kernel's readahead that may wait at once.
const MAX_BACKGROUND: u16 = 64;

/// A squashfs as the kernel sees it.
pub struct SquashfsServer<R> {
    reader: Reader<R>,
    nodes: Nodes,
    options: ServerOptions,
    /// Some file has extended attributes; if none has, the kernel is told once
    /// and never asks again.
    has_xattrs: bool,
}

thread_local! {
    /// Where contents are decoded to. A fresh one for each answer would cost
    /// more than many an answer itself.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<R: ReadAt> SquashfsServer<R> {
    /// Serves an image whose root directory can be read.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot.
    pub fn new(reader: Reader<R>, options: ServerOptions) -> Result<Self, ReadError> {
        let nodes = Nodes::new(reader.inode(reader.root())?);
        let has_xattrs = reader.superblock().xattr_table_start != u64::MAX;
        Ok(Self { reader, nodes, options, has_xattrs })
    }

    fn inode(&self, id: INodeNo) -> Result<Inode, Errno> {
        self.nodes.get(id.0).ok_or(Errno::ESTALE)
    }

    fn attributes(&self, inode: &Inode) -> FileAttr {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(inode.mtime));
        let owner = |id: u32, root: Option<u32>| if id == 0 { root.unwrap_or(0) } else { id };
        let size = inode.size();
        FileAttr {
            ino: INodeNo(self.nodes.id(inode.number)),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: file_type(inode.file_type()),
            perm: inode.mode,
            nlink: inode.nlink,
            uid: owner(inode.uid, self.options.root_is.map(|(uid, _)| uid)),
            gid: owner(inode.gid, self.options.root_is.map(|(_, gid)| gid)),
            rdev: inode.rdev(),
            blksize: SHOWN_BLOCK_SIZE,
            flags: 0,
        }
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Option<FileAttr>, Errno> {
        let parent = self.inode(parent)?;
        let Some(reference) = self.reader.lookup(&parent, name.as_bytes()).map_err(damaged)? else { return Ok(None) };
        let inode = self.reader.inode(reference).map_err(damaged)?;
        let attributes = self.attributes(&inode);
        self.nodes.look_up(inode).ok_or(Errno::EIO)?;
        Ok(Some(attributes))
    }

    /// Gives the entries of a directory from `offset` on to `each`, with the
    /// offset behind each, until it says that there is no more room.
    fn list(
        &self,
        directory: &Inode,
        offset: u64,
        mut each: impl FnMut(Entry<'_>, u64) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        if offset == 0 && each(Entry::Dot, BEHIND_DOT).is_break() {
            return Ok(());
        }
        if offset <= BEHIND_DOT && each(Entry::DotDot, BEHIND_DOT_DOT).is_break() {
            return Ok(());
        }
        let cookie = offset.saturating_sub(BEHIND_DOT_DOT);
        self.reader
            .read_dir(directory, cookie, |entry| each(Entry::Named(entry), entry.next.saturating_add(BEHIND_DOT_DOT)))
            .map_err(damaged)
    }
}

/// Offsets behind the two entries that a squashfs does not store; those of
/// stored entries follow.
const BEHIND_DOT: u64 = 1;
const BEHIND_DOT_DOT: u64 = 2;

/// An entry of a listing.
enum Entry<'a> {
    Dot,
    DotDot,
    Named(DirEntry<'a>),
}

fn file_type(kind: reader::FileType) -> FileType {
    match kind {
        reader::FileType::Directory => FileType::Directory,
        reader::FileType::File => FileType::RegularFile,
        reader::FileType::Symlink => FileType::Symlink,
        reader::FileType::BlockDevice => FileType::BlockDevice,
        reader::FileType::CharDevice => FileType::CharDevice,
        reader::FileType::Fifo => FileType::NamedPipe,
        reader::FileType::Socket => FileType::Socket,
    }
}

/// Whatever is wrong with the image, programs see an I/O error.
fn damaged(_: ReadError) -> Errno {
    Errno::EIO
}

impl<R: ReadAt + 'static> Filesystem for SquashfsServer<R> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            // What an old kernel lacks costs speed only.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(Some(attributes)) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            Ok(None) => {
                // Number 0 says that there is none, and that this may be kept.
                let nothing = match self.inode(parent) {
                    Ok(parent) => FileAttr { ino: INodeNo(0), ..self.attributes(&parent) },
                    Err(errno) => return reply.error(errno),
                };
                reply.entry(&FOR_EVER, &nothing, Generation(0));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, id: INodeNo, count: u64) {
        self.nodes.forget(id.0, count);
    }

    fn getattr(&self, _: &Request, id: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inode(id) {
            Ok(inode) => reply.attr(&FOR_EVER, &self.attributes(&inode)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, id: INodeNo, reply: ReplyData) {
        match self.inode(id).and_then(|inode| self.reader.read_link(&inode).map_err(damaged)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The kernel then opens and closes files by itself, and keeps what it
        // has read.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // As for `open`.
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // There is nothing to write, ever.
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        id: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let inode = match self.inode(id) {
            Ok(inode) => inode,
            Err(errno) => return reply.error(errno),
        };
        // Asked for by pages, the last one passes the end.
        let size = u64::from(size).min(inode.size().saturating_sub(offset)) as usize;
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.reader.read(&inode, offset, &mut buffer[..size]) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(error) => reply.error(damaged(error)),
            }
        });
    }

    fn readdir(&self, _: &Request, id: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.inode(id).and_then(|directory| {
            self.list(&directory, offset, |entry, next| {
                let full = match entry {
                    Entry::Dot => reply.add(id, next, FileType::Directory, "."),
                    Entry::DotDot => reply.add(self.parent_number(&directory), next, FileType::Directory, ".."),
                    Entry::Named(entry) => {
                        let number = INodeNo(self.nodes.id(entry.inode_number));
                        reply.add(number, next, file_type(entry.file_type), OsStr::from_bytes(entry.name))
                    }
                };
                if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, _: &Request, id: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.inode(id).and_then(|directory| {
            self.list(&directory, offset, |entry, next| {
                let mut add = |name: &OsStr, attributes: &FileAttr| {
                    reply.add(attributes.ino, next, name, &FOR_EVER, attributes, Generation(0))
                };
                let full = match entry {
                    // The kernel takes the numbers of these two and no more.
                    Entry::Dot => add(OsStr::new("."), &self.attributes(&directory)),
                    Entry::DotDot => {
                        let ino = self.parent_number(&directory);
                        add(OsStr::new(".."), &FileAttr { ino, ..self.attributes(&directory) })
                    }
                    Entry::Named(entry) => {
                        // One damaged inode must not hide its siblings: it is
                        // left out, and looking it up tells.
                        let Ok(inode) = self.reader.inode(entry.inode) else { return ControlFlow::Continue(()) };
                        let attributes = self.attributes(&inode);
                        let Some(id) = self.nodes.look_up(inode) else { return ControlFlow::Continue(()) };
                        let full = add(OsStr::from_bytes(entry.name), &attributes);
                        if full {
                            self.nodes.forget(id, 1);
                        }
                        full
                    }
                };
                if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let superblock = self.reader.superblock();
        let blocks = superblock.bytes_used.div_ceil(u64::from(superblock.block_size));
        let (inodes, block_size) = (u64::from(superblock.inode_count), superblock.block_size);
        reply.statfs(blocks, 0, 0, inodes, 0, block_size, 255, block_size);
    }

    fn getxattr(&self, _: &Request, id: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.has_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let value = self.inode(id).and_then(|inode| {
            if !inode.has_xattrs() || is_hidden(name.as_bytes()) {
                return Ok(None);
            }
            self.reader.xattr(&inode, name.as_bytes()).map_err(damaged)
        });
        match value {
            Ok(Some(value)) => answer(reply, &value, size),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _: &Request, id: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.has_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let mut names = Vec::new();
        let listed = self.inode(id).and_then(|inode| {
            if !inode.has_xattrs() {
                return Ok(());
            }
            let each = |name: &[u8]| {
                if !is_hidden(name) {
                    names.extend_from_slice(name);
                    names.push(0);
                }
            };
            self.reader.xattr_names(&inode, each).map_err(damaged)
        });
        match listed {
            Ok(()) => answer(reply, &names, size),
            Err(errno) => reply.error(errno),
        }
    }
}

impl<R: ReadAt> SquashfsServer<R> {
    /// Number that a directory shows for `..`.
    fn parent_number(&self, directory: &Inode) -> INodeNo {
        match &directory.kind {
            InodeKind::Directory(fields) if self.nodes.id(directory.number) != ROOT => {
                INodeNo(self.nodes.id(fields.parent_number()))
            }
            _ => INodeNo(ROOT),
        }
    }
}

/// Names that only the privileged may see, and nobody in a container is.
fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(b"trusted.")
}

/// `size` is the caller's buffer; 0 asks how large it has to be.
fn answer(reply: ReplyXattr, value: &[u8], size: u32) {
    match (u32::try_from(value.len()), size) {
        (Err(_), _) => reply.error(Errno::E2BIG),
        (Ok(len), 0) => reply.size(len),
        (Ok(len), size) if len > size => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
