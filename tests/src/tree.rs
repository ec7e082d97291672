//! Reads a directory tree as root, for comparison with another.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
};

use sctl_common::Sha256;

/// What an entry is, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file: size in bytes and SHA-256 of its content.
    File(u64, String),
    /// A symbolic link: its target, escaped.
    Symlink(String),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A device node.
    Device,
}

/// One entry as the comparison sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits; 0 for symbolic links, whose mode means nothing.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds; 0 for directories.
    pub mtime: i64,
    /// Extended attributes: name and escaped value.
    pub xattrs: BTreeMap<String, String>,
    /// First path (in order) of all that are the same file.
    pub first_link: String,
}

/// Every entry below a root, by escaped path; the root itself is `.`.
pub type Tree = BTreeMap<String, Entry>;

/// Reads the tree at `root`.
///
/// Times outside what squashfs holds are clamped, `system.*`, `trusted.*`
/// overlay and SELinux attributes and device nodes are left out: the format
/// or the product leaves them out by design.
pub fn read(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut links = BTreeMap::new();
    walk(root, b".", &mut tree, &mut links)?;
    Ok(tree)
}

fn walk(path: &Path, name: &[u8], tree: &mut Tree, links: &mut BTreeMap<(u64, u64), String>) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let escaped = name.escape_ascii().to_string();
    let file_type = meta.file_type();
    let kind = if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Symlink(fs::read_link(path)?.as_os_str().as_bytes().escape_ascii().to_string())
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else if file_type.is_socket() {
        Kind::Socket
    } else if file_type.is_file() {
        Kind::File(meta.size(), digest(path)?)
    } else {
        return Ok(());
    };
    let is_dir = kind == Kind::Directory;
    let mode = if file_type.is_symlink() { 0 } else { meta.mode() & 0o7777 };
    let first_link = if is_dir {
        escaped.clone()
    } else {
        links.entry((meta.dev(), meta.ino())).or_insert_with(|| escaped.clone()).clone()
    };
    tree.insert(
        escaped,
        Entry {
            kind,
            mode,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: if is_dir { 0 } else { meta.mtime().clamp(0, i64::from(u32::MAX)) },
            xattrs: xattrs(path)?,
            first_link,
        },
    );
    if is_dir {
        let mut names: Vec<_> =
            fs::read_dir(path)?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for child in names {
            let child_name = [name, b"/", child.as_bytes()].concat();
            walk(&path.join(&child), &child_name, tree, links)?;
        }
    }
    Ok(())
}

fn digest(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut file = fs::File::open(path)?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sha.finish().hex()),
            n => sha.update(&buffer[..n]),
        }
    }
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut list = vec![0u8; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut list) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut found = BTreeMap::new();
    for name in list[..len].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let text = String::from_utf8_lossy(name).into_owned();
        if text.starts_with("system.") || text.starts_with("security.selinux") || text.contains(".overlay.") {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
        found.insert(text, value[..len].escape_ascii().to_string());
    }
    Ok(found)
}

/// Differences between two trees, one line each; `ignore` names paths (and
/// everything below them) that do not count.
pub fn differences(ours: &Tree, theirs: &Tree, ignore: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, entry) in theirs {
        if ignore(path) {
            continue;
        }
        match ours.get(path) {
            None => lines.push(format!("{path}: missing, expected {entry:?}")),
            Some(found) if found != entry => lines.push(format!("{path}: found {found:?}\n    expected {entry:?}")),
            Some(_) => {}
        }
    }
    for (path, entry) in ours {
        if !ignore(path) && !theirs.contains_key(path) {
            lines.push(format!("{path}: not expected, found {entry:?}"));
        }
    }
    lines
}
