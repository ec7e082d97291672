//! The merged tree of a stack of layers.
//!
//! Names and inodes are apart, as in a file system: hard links are names of
//! one inode, across layers too, and replacing one name leaves the others.
//! Contents stay where they are; the tree only knows in which pack.

mod add;
mod lookup;
mod merge;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sctl_common::{EntryName, Limits};

pub use add::IfExists;
pub use lookup::FileKind;

use crate::error::MergeError;
use crate::index::{Attributes, PackData, PackIndex};

/// Place of an inode in [`Tree::nodes`].
pub(crate) type NodeId = u32;

/// The root directory.
pub(crate) const ROOT: NodeId = 0;

/// Directories below one another at most: a path to deeper ones could not be
/// given to the kernel.
const MAX_DEPTH: usize = 2047;

/// Mode of directories that no layer describes.
const IMPLICIT_MODE: u16 = 0o755;

/// The tree that a stack of packs makes, with what was added to it.
pub struct Tree {
    pub(crate) packs: Vec<Arc<PackData>>,
    nodes: Vec<Node>,
    /// Nodes that are not in use.
    free: Vec<NodeId>,
    /// Bytes of all names and symlink targets.
    name_bytes: u64,
    /// Contents of added files.
    pub(crate) additions: Vec<Vec<u8>>,
    max_nodes: u64,
    max_name_bytes: u64,
    /// Raised whenever something is removed: what was resolved before may be
    /// gone.
    removals: u64,
}

/// An inode.
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None` is the time of the image.
    pub(crate) mtime: Option<u32>,
    /// Pack and number therein.
    pub(crate) xattrs: Option<(u32, u32)>,
    /// Names of it.
    links: u32,
}

/// What an inode is.
pub(crate) enum NodeKind {
    Directory(Box<Directory>),
    File(Contents),
    Symlink(Box<[u8]>),
    Fifo,
    /// A device node, which images do not get.
    Device,
    /// Not in use.
    Free,
}

pub(crate) struct Directory {
    pub(crate) entries: BTreeMap<EntryName, Child>,
    parent: NodeId,
    depth: u32,
    /// The layer that last had an entry for it or for something below it.
    touched: u32,
}

/// What a name leads to.
#[derive(Clone, Copy)]
pub(crate) struct Child {
    pub(crate) node: NodeId,
    /// The layer that made this name; not kept for directories.
    touched: u32,
}

/// Where the contents of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    Empty,
    Packed { pack: u32, content: u32 },
    Added(u32),
}

impl Tree {
    fn new(packs: &[PackIndex], limits: &Limits) -> Self {
        let root = Node {
            kind: NodeKind::Directory(Box::new(Directory {
                entries: BTreeMap::new(),
                parent: ROOT,
                depth: 0,
                touched: 0,
            })),
            mode: IMPLICIT_MODE,
            uid: 0,
            gid: 0,
            mtime: None,
            xattrs: None,
            links: 1,
        };
        Self {
            packs: packs.iter().map(|pack| pack.0.data.clone()).collect(),
            nodes: vec![root],
            free: Vec::new(),
            name_bytes: 0,
            additions: Vec::new(),
            max_nodes: limits.max_entries.min(u64::from(u32::MAX) - 2),
            max_name_bytes: limits.max_name_bytes,
            removals: 0,
        }
    }

    /// Inodes in the tree, those of device nodes included.
    pub fn inode_count(&self) -> u64 {
        (self.nodes.len() - self.free.len()) as u64
    }

    /// Device nodes in the tree, which an image does not get.
    pub fn device_count(&self) -> u64 {
        self.nodes.iter().filter(|node| matches!(node.kind, NodeKind::Device)).count() as u64
    }

    /// FIFOs in the tree.
    pub fn fifo_count(&self) -> u64 {
        self.nodes.iter().filter(|node| matches!(node.kind, NodeKind::Fifo)).count() as u64
    }

    /// User and group ids of everything that an image gets.
    pub fn ids(&self) -> BTreeSet<u32> {
        let owned = self.nodes.iter().filter(|node| !matches!(node.kind, NodeKind::Device | NodeKind::Free));
        owned.flat_map(|node| [node.uid, node.gid]).collect()
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// All inodes that are in the tree, in no particular order.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub(crate) fn node_slots(&self) -> usize {
        self.nodes.len()
    }

    fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.nodes[id as usize].kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.nodes[id as usize].kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<Child> {
        self.directory(directory)?.entries.get(name).copied()
    }

    /// Makes an inode that has no name yet.
    fn create(&mut self, kind: NodeKind) -> Result<NodeId, MergeError> {
        if self.inode_count() >= self.max_nodes {
            return Err(MergeError::Limit { what: "files", max: self.max_nodes });
        }
        if let NodeKind::Symlink(target) = &kind {
            self.name_bytes += target.len() as u64;
        }
        let node = Node { kind, mode: IMPLICIT_MODE, uid: 0, gid: 0, mtime: None, xattrs: None, links: 0 };
        Ok(match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                // Fewer than the limit, which fits 32 bits.
                self.nodes.push(node);
                (self.nodes.len() - 1) as NodeId
            }
        })
    }

    /// Makes an empty directory below `parent`, with the attributes that
    /// mkdir(2) by root gives it: below a directory with the setgid bit, its
    /// group and that bit.
    fn create_directory(&mut self, parent: NodeId, name: EntryName, layer: u32) -> Result<NodeId, MergeError> {
        const SETGID: u16 = 0o2000;
        let depth = self.directory(parent).map_or(0, |parent| parent.depth) + 1;
        if depth as usize > MAX_DEPTH {
            return Err(MergeError::TooDeep { max: MAX_DEPTH });
        }
        let directory = Directory { entries: BTreeMap::new(), parent, depth, touched: 0 };
        let id = self.create(NodeKind::Directory(Box::new(directory)))?;
        let Node { mode, gid, .. } = self.nodes[parent as usize];
        if mode & SETGID != 0 {
            let node = &mut self.nodes[id as usize];
            node.gid = gid;
            node.mode |= SETGID;
        }
        self.link(parent, name, id, layer)?;
        Ok(id)
    }

    /// Gives an inode a name that is not taken.
    fn link(&mut self, directory: NodeId, name: EntryName, node: NodeId, layer: u32) -> Result<(), MergeError> {
        self.name_bytes += name.as_bytes().len() as u64;
        if self.name_bytes > self.max_name_bytes {
            return Err(MergeError::Limit { what: "bytes of names", max: self.max_name_bytes });
        }
        self.nodes[node as usize].links += 1;
        if let Some(directory) = self.directory_mut(directory) {
            directory.entries.insert(name, Child { node, touched: layer });
        }
        Ok(())
    }

    /// Removes a name, and everything below it if it is a directory.
    fn remove(&mut self, directory: NodeId, name: &[u8]) {
        let removed = self.directory_mut(directory).and_then(|directory| directory.entries.remove_entry(name));
        if let Some((name, child)) = removed {
            self.release(vec![(name, child.node)]);
        }
    }

    /// Drops names that are in no directory any more.
    fn release(&mut self, mut names: Vec<(EntryName, NodeId)>) {
        self.removals += 1;
        while let Some((name, id)) = names.pop() {
            self.name_bytes -= name.as_bytes().len() as u64;
            let node = &mut self.nodes[id as usize];
            node.links -= 1;
            if node.links > 0 {
                continue;
            }
            match std::mem::replace(&mut node.kind, NodeKind::Free) {
                NodeKind::Directory(directory) => {
                    names.extend(directory.entries.into_iter().map(|(name, child)| (name, child.node)));
                }
                NodeKind::Symlink(target) => self.name_bytes -= target.len() as u64,
                _ => {}
            }
            self.free.push(id);
        }
    }

    /// Sets everything but the kind of an inode.
    fn describe(&mut self, id: NodeId, attributes: &Attributes, pack: u32) {
        let node = &mut self.nodes[id as usize];
        node.mode = attributes.mode;
        node.uid = attributes.uid;
        node.gid = attributes.gid;
        node.mtime = Some(attributes.mtime);
        node.xattrs = attributes.xattrs.map(|set| (pack, set));
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("packs", &self.packs.len()).field("inodes", &self.inode_count()).finish()
    }
}

#[cfg(test)]
mod tests;
