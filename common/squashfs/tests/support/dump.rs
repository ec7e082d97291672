//! What a tree holds, as text: of an image, and of a folder.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fmt::Write as _,
    fs,
    ops::ControlFlow,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::Path,
};

use sctl_squashfs::reader::{FileType, InodeKind, ReadAt, ReadError, Reader};

/// Everything about one path that both sides can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: &'static str,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub nlink: u64,
    pub size: u64,
    pub rdev: u64,
    pub inode: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Target of a link; digest of contents.
    pub contents: String,
}

pub type Tree = BTreeMap<Vec<u8>, Node>;

/// Calls `read` so often that long files are sampled and short ones read
/// whole, in pieces of odd lengths; makes a digest of what comes.
fn digest(size: u64, mut read: impl FnMut(u64, &mut [u8])) -> String {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    let step = if size > 32 << 20 { 97 << 20 } else { 0 };
    let (mut at, mut piece, mut buf) = (0, 10_007, vec![0; size.min(300_000) as usize]);
    while at < size {
        let len = (size - at).min(piece) as usize;
        read(at, &mut buf[..len]);
        for byte in &buf[..len] {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        at += len as u64 + step;
        piece = piece * 7 % 299_993 + 1;
    }
    format!("{state:016x}")
}

/// All of an image, by path; at most `max` entries, and no directory twice.
///
/// # Errors
/// The first error of the reader.
pub fn try_dump_image<R: ReadAt>(reader: &Reader<R>, max: usize) -> Result<Tree, ReadError> {
    let mut tree = Tree::new();
    let mut seen = HashSet::new();
    let mut waiting = vec![(Vec::new(), reader.root())];
    let mut listed = 0;
    while let Some((path, reference)) = waiting.pop() {
        if tree.len() >= max {
            break;
        }
        let inode = reader.inode(reference)?;
        let mut failure = None;
        let (kind, contents) = match &inode.kind {
            InodeKind::Directory(_) => {
                if seen.insert(reference) {
                    reader.read_dir(&inode, 0, |entry| {
                        let child = [&path[..], b"/", entry.name].concat();
                        waiting.push((child, entry.inode));
                        listed += 1;
                        if listed >= max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })?;
                }
                ("directory", String::new())
            }
            InodeKind::File(_) => {
                let contents = digest(inode.size(), |at, buf| {
                    if failure.is_none() {
                        match reader.read(&inode, at, buf) {
                            Ok(len) => assert_eq!(len, buf.len()),
                            Err(error) => failure = Some(error),
                        }
                    }
                });
                ("file", contents)
            }
            InodeKind::Symlink(_) => ("symlink", reader.read_link(&inode)?.escape_ascii().to_string()),
            InodeKind::BlockDevice { .. } => ("block", String::new()),
            InodeKind::CharDevice { .. } => ("char", String::new()),
            InodeKind::Fifo => ("fifo", String::new()),
            InodeKind::Socket => ("socket", String::new()),
        };
        if let Some(error) = failure {
            return Err(error);
        }
        let xattrs = reader.xattrs(&inode)?.into_iter().map(|xattr| (xattr.name, xattr.value)).collect();
        let rdev = u64::from(inode.rdev());
        let node = Node {
            kind,
            mode: u32::from(inode.mode),
            uid: inode.uid,
            gid: inode.gid,
            mtime: i64::from(inode.mtime),
            nlink: u64::from(inode.nlink),
            size: inode.size(),
            // As Linux's makedev has it for small numbers.
            rdev: rdev & 0xff | (rdev >> 8 & 0xfff) << 8,
            inode: u64::from(inode.number),
            xattrs,
            contents,
        };
        tree.insert(path, node);
    }
    Ok(tree)
}

/// All of an image that is sound.
pub fn dump_image<R: ReadAt>(reader: &Reader<R>) -> Tree {
    let tree = try_dump_image(reader, usize::MAX).expect("a sound image");
    assert_eq!(reader.inode(reader.root()).unwrap().file_type(), FileType::Directory);
    tree
}

/// All of a folder, links not followed.
pub fn dump_folder(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let full = root.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(&path)));
        let metadata = fs::symlink_metadata(&full).unwrap();
        let file_type = metadata.file_type();
        let (kind, contents) = if file_type.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                waiting.push([&path[..], b"/", entry.unwrap().file_name().as_bytes()].concat());
            }
            ("directory", String::new())
        } else if file_type.is_symlink() {
            ("symlink", fs::read_link(&full).unwrap().as_os_str().as_bytes().escape_ascii().to_string())
        } else if file_type.is_file() {
            let file = fs::File::open(&full).unwrap();
            ("file", digest(metadata.len(), |at, buf| file.read_exact_at(buf, at).unwrap()))
        } else if file_type.is_block_device() {
            ("block", String::new())
        } else if file_type.is_char_device() {
            ("char", String::new())
        } else if file_type.is_fifo() {
            ("fifo", String::new())
        } else {
            ("socket", String::new())
        };
        let node = Node {
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: metadata.mtime(),
            nlink: metadata.nlink(),
            size: metadata.len(),
            rdev: metadata.rdev(),
            inode: metadata.ino(),
            xattrs: folder_xattrs(&full),
            contents,
        };
        tree.insert(path, node);
    }
    tree
}

fn folder_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut xattrs = BTreeMap::new();
    let mut names = [0; 8192];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        if let Ok(len) = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            value.truncate(len);
            xattrs.insert(name.to_vec(), value);
        }
    }
    xattrs
}

/// What to leave out of a comparison, because the other side cannot say it.
#[derive(Default, Clone, Copy)]
pub struct Ignore {
    pub inodes: bool,
    pub owners: bool,
    /// Sizes and links of directories: other file systems count differently.
    pub directories: bool,
    pub xattrs: bool,
    pub nlinks: bool,
}

/// Fails with the first differences.
pub fn assert_same(left: &Tree, right: &Tree, ignore: Ignore) {
    let adjust = |node: &Node| {
        let mut node = node.clone();
        if ignore.inodes {
            node.inode = 0;
        }
        if ignore.owners {
            (node.uid, node.gid) = (0, 0);
        }
        if ignore.directories && node.kind == "directory" {
            (node.size, node.nlink) = (0, 0);
        }
        if ignore.xattrs {
            node.xattrs.clear();
        }
        if ignore.nlinks {
            node.nlink = 0;
        }
        node
    };
    let mut report = String::new();
    let paths: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let different =
        paths.into_iter().filter(|path| left.get(*path).map(adjust) != right.get(*path).map(adjust)).take(5);
    for path in different {
        let _ = writeln!(
            report,
            "{}:\n  {:?}\n  {:?}",
            path.escape_ascii(),
            left.get(path).map(adjust),
            right.get(path).map(adjust)
        );
    }
    assert!(report.is_empty(), "trees differ:\n{report}");
}
