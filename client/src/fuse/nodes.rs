//! Inodes that the kernel knows, by the number it knows them by.

use std::{
    collections::HashMap,
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use sctl_squashfs::reader::Inode;

/// Number of the root in FUSE.
pub const ROOT: u64 = 1;

/// The inodes that the kernel has looked up and not forgotten. The numbers
/// are those of the image, one higher; they fit into 32 bits, as programs of
/// 32-bit machines want it.
pub struct Nodes {
    root_number: u32,
    known: RwLock<HashMap<u64, Node>>,
}

struct Node {
    inode: Inode,
    lookups: u64,
}

impl Nodes {
    /// Knows the root only.
    pub fn new(root: Inode) -> Self {
        let root_number = root.number;
        let known = RwLock::new(HashMap::from([(ROOT, Node { inode: root, lookups: 0 })]));
        Self { root_number, known }
    }

    /// The kernel's number for the inode with this number in the image.
    pub fn id(&self, number: u32) -> u64 {
        match u64::from(number) + 1 {
            _ if number == self.root_number => ROOT,
            // Number 0, which no writer uses, gets the one that the root left.
            ROOT => u64::from(self.root_number) + 1,
            id => id,
        }
    }

    /// The inode that the kernel means.
    pub fn get(&self, id: u64) -> Option<Inode> {
        self.read().get(&id).map(|node| node.inode.clone())
    }

    /// Remembers that the kernel has looked this inode up once more, and tells
    /// its number; nothing if another inode of a damaged image has the same.
    pub fn look_up(&self, inode: Inode) -> Option<u64> {
        let id = self.id(inode.number);
        let mut known = self.write();
        let node = known.entry(id).or_insert_with(|| Node { inode: inode.clone(), lookups: 0 });
        if node.inode.reference != inode.reference {
            return None;
        }
        node.lookups += 1;
        Some(id)
    }

    /// Takes `count` look-ups back.
    pub fn forget(&self, id: u64, count: u64) {
        let mut known = self.write();
        if let Some(node) = known.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 && id != ROOT {
                known.remove(&id);
            }
        }
    }

    // Nothing that holds the lock can panic half-way, so what a poisoned one
    // guards is whole.
    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Node>> {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Node>> {
        self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use sctl_squashfs::reader::InodeRef;

    use super::*;

    fn inode(template: &Inode, number: u32, reference: u64) -> Inode {
        let mut inode = template.clone();
        inode.number = number;
        inode.reference = InodeRef::from_raw(reference);
        inode
    }

    fn some_inode() -> Inode {
        use sctl_squashfs::{reader::Reader, writer};
        let root = writer::Inode {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: None,
            kind: writer::InodeKind::Directory { entries: Vec::new() },
        };
        let image = writer::Image { inodes: vec![root], root: 0, ..Default::default() };
        let params =
            writer::Params { compression: sctl_common::Compression::default(), block_size: 131_072, mkfs_time: 0 };
        let start = writer::data_start(&params);
        let mut bytes = vec![0; start as usize];
        let superblock = writer::write_tables(&mut bytes, start, &image, &[], &params).unwrap();
        let head = superblock.encode();
        bytes[..head.len()].copy_from_slice(&head);
        let reader = Reader::open(bytes, 0, Default::default()).unwrap();
        reader.inode(reader.root()).unwrap()
    }

    #[test]
    fn numbers_are_distinct_and_the_root_is_one() {
        let nodes = Nodes::new(inode(&some_inode(), 7, 100));
        let ids: std::collections::HashSet<u64> = (0..20).map(|number| nodes.id(number)).collect();
        assert_eq!((nodes.id(7), ids.len()), (ROOT, 20));
        assert!(!ids.contains(&0), "0 means nothing to the kernel");
    }

    #[test]
    fn what_is_forgotten_is_gone_and_the_root_stays() {
        let template = some_inode();
        let nodes = Nodes::new(inode(&template, 1, 100));
        let id = nodes.look_up(inode(&template, 5, 200)).unwrap();
        assert_eq!(nodes.look_up(inode(&template, 5, 200)), Some(id));
        assert_eq!(nodes.look_up(inode(&template, 5, 300)), None, "two inodes with one number");
        nodes.forget(id, 1);
        assert!(nodes.get(id).is_some());
        nodes.forget(id, 1);
        assert!(nodes.get(id).is_none());
        nodes.forget(ROOT, 9);
        nodes.forget(99, 1);
        assert!(nodes.get(ROOT).is_some());
    }
}
