//! Walks a whole image, with a bound.

use std::ops::ControlFlow;

use sctl_squashfs::reader::{InodeKind, Reader, ReaderOptions};

/// Small caches, so that blocks are dropped and decoded again.
const OPTIONS: ReaderOptions = ReaderOptions { cache_bytes: 300_000, metadata_cache_bytes: 50_000 };

/// Entries visited at most, and pieces read of one file.
const MAX_ENTRIES: usize = 200;
const MAX_PIECES: usize = 10;

/// Opens `image` and calls everything that a file system server would.
pub fn walk(image: &[u8]) {
    let Ok(reader) = Reader::open(image, 0, OPTIONS) else { return };
    let mut waiting = vec![reader.root()];
    let mut buf = vec![0; 150_000];
    let mut entries = 0;
    while let Some(reference) = waiting.pop() {
        let Ok(inode) = reader.inode(reference) else { continue };
        match &inode.kind {
            InodeKind::Directory(_) => {
                let mut names = Vec::new();
                let _ = reader.read_dir(&inode, 0, |entry| {
                    entries += 1;
                    waiting.push(entry.inode);
                    names.push((entry.name.to_vec(), entry.next));
                    if entries < MAX_ENTRIES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                });
                for (name, next) in names.iter().step_by(5) {
                    assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0));
                    let _ = reader.lookup(&inode, name);
                    let _ = reader.read_dir(&inode, *next, |_| ControlFlow::Break(()));
                }
                let _ = reader.lookup(&inode, b"m");
                let _ = reader.read_dir(&inode, inode.number.into(), |_| ControlFlow::Break(()));
                let _ = reader.parent(&inode);
            }
            InodeKind::File(_) => {
                let size = inode.size();
                for piece in 0..MAX_PIECES as u64 {
                    let at = size / MAX_PIECES as u64 * piece;
                    if let Ok(len) = reader.read(&inode, at, &mut buf) {
                        assert_eq!(len as u64, (size - at).min(buf.len() as u64));
                    }
                    let _ = reader.read(&inode, at + 1000, &mut buf[..100]);
                }
            }
            InodeKind::Symlink(_) => {
                if let Ok(target) = reader.read_link(&inode) {
                    assert!(!target.is_empty() && target.len() < 4096);
                }
            }
            _ => {}
        }
        let _ = reader.xattrs(&inode);
        let _ = reader.xattr(&inode, b"user.x");
        let _ = reader.inode_by_number(inode.number);
        if entries >= MAX_ENTRIES && waiting.len() > MAX_ENTRIES {
            waiting.truncate(MAX_ENTRIES);
        }
    }
}
