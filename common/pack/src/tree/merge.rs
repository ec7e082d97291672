//! Applying the entries of one layer after the other.
//!
//! The tree comes out as if each layer were unpacked over the ones below it:
//! every entry in its turn, parents found through the symlinks that are there
//! at that moment. Whiteouts are the exception: they hide what lower layers
//! have made, wherever in their own layer they stand. So every name knows the
//! layer that made it, and directories the last layer that had something in
//! them.
//!
//! # Source
//! OCI image-spec, layer.md; the behaviour in all that it leaves open is that
//! of `umoci unpack` run by root.

use std::sync::Arc;

use sctl_common::{EntryName, Limits};

use crate::error::{MergeError, shown};
use crate::index::{Attributes, Index, PackIndex, What};
use crate::path;
use crate::tree::{Contents, NodeId, NodeKind, ROOT, Tree, lookup::WalkError};

/// Steps that the entries of one layer may take on paths and below opaque
/// directories: some for each entry, and these. Without a bound, every entry
/// could lead through a megabyte of symlinks.
const FREE_STEPS: u64 = 10_000_000;
const STEPS_PER_ENTRY: u64 = 64;

/// A layer being applied.
struct Layer<'t> {
    tree: &'t mut Tree,
    pack: Arc<Index>,
    /// Place of the pack in the stack.
    place: u32,
    /// Mark of this layer: its number, from 1.
    mark: u32,
    steps: u64,
    /// The directory of the last entry, its inode, and the number of removals
    /// when it was found.
    last: Option<(Vec<u8>, NodeId, u64)>,
}

impl Tree {
    /// Merges packs, the lowest layer first. The indexes are not needed
    /// afterwards; dropping them frees what the tree does not share.
    ///
    /// # Errors
    /// [`MergeError`] if a limit is passed, or an entry cannot be applied.
    pub fn merge(packs: &[PackIndex], limits: &Limits) -> Result<Self, MergeError> {
        if packs.len() as u64 > u64::from(limits.max_layers) {
            return Err(MergeError::Limit { what: "layers", max: u64::from(limits.max_layers) });
        }
        let tar_bytes = packs.iter().fold(0, |sum: u64, pack| sum.saturating_add(pack.tar_bytes()));
        if tar_bytes > limits.max_image_bytes {
            return Err(MergeError::Limit { what: "uncompressed bytes", max: limits.max_image_bytes });
        }
        let mut tree = Self::new(packs, limits);
        for (place, pack) in (0..).zip(packs) {
            let steps = FREE_STEPS.saturating_add(pack.entry_count().saturating_mul(STEPS_PER_ENTRY));
            Layer { tree: &mut tree, pack: pack.0.clone(), place, mark: place + 1, steps, last: None }.apply()?;
        }
        Ok(tree)
    }
}

impl Layer<'_> {
    fn apply(&mut self) -> Result<(), MergeError> {
        let pack = self.pack.clone();
        for entry in &pack.entries {
            let entry_path = pack.bytes(entry.path);
            match entry.what {
                What::Opaque => {
                    if let Some(directory) = self.existing_directory(entry_path, entry_path)? {
                        self.hide_lower_entries(directory, entry_path)?;
                    }
                }
                What::Whiteout => self.hide(entry_path)?,
                what => self.place_entry(entry_path, what)?,
            }
        }
        Ok(())
    }

    fn walk_error(&self, error: WalkError, path: &[u8]) -> MergeError {
        match error {
            WalkError::TooManySymlinks => MergeError::TooManySymlinks { layer: self.mark, path: shown(path) },
            WalkError::TooMuchWork => MergeError::TooMuchWork { layer: self.mark, path: shown(path) },
        }
    }

    /// The directory at `directory`, if there is one.
    fn existing_directory(&mut self, directory: &[u8], entry: &[u8]) -> Result<Option<NodeId>, MergeError> {
        let walk = self.tree.walk(directory, &mut self.steps).map_err(|error| self.walk_error(error, entry))?;
        Ok(walk.found().filter(|id| self.tree.directory(*id).is_some()))
    }

    /// The directory at `directory`; what is missing of it is made.
    fn parent(&mut self, directory: &[u8], entry: &[u8]) -> Result<NodeId, MergeError> {
        if let Some((path, id, removals)) = &self.last
            && path == directory
            && *removals == self.tree.removals
        {
            return Ok(*id);
        }
        let walk = self.tree.walk(directory, &mut self.steps).map_err(|error| self.walk_error(error, entry))?;
        let mut parent = walk.existing.last().copied().unwrap_or(ROOT);
        if self.tree.directory(parent).is_none() {
            return Err(MergeError::NotADirectory { layer: self.mark, path: shown(entry) });
        }
        for name in walk.missing {
            let name = self.name(&name, entry)?;
            parent = self.tree.create_directory(parent, name, self.mark)?;
        }
        let mut path = self.last.take().map(|last| last.0).unwrap_or_default();
        path.clear();
        path.extend_from_slice(directory);
        self.last = Some((path, parent, self.tree.removals));
        Ok(parent)
    }

    fn name(&self, name: &[u8], entry: &[u8]) -> Result<EntryName, MergeError> {
        EntryName::parse(name).map_err(|source| MergeError::BadName { layer: self.mark, path: shown(entry), source })
    }

    fn place_entry(&mut self, entry: &[u8], what: What) -> Result<(), MergeError> {
        if entry.is_empty() {
            // The index holds only directories with this path.
            if let What::Directory(attributes) = what {
                self.tree.describe(ROOT, &attributes, self.place);
            }
            return Ok(());
        }
        let (directory, name) = path::split(entry);
        let parent = self.parent(directory, entry)?;
        let name = self.name(name, entry)?;
        let existing = self.tree.child(parent, name.as_bytes());
        if let (What::Directory(attributes), Some(child)) = (what, existing)
            && self.tree.directory(child.node).is_some()
        {
            self.tree.describe(child.node, &attributes, self.place);
            self.touch(child.node);
            return Ok(());
        }
        if existing.is_some() {
            self.tree.remove(parent, name.as_bytes());
        }
        match what {
            What::Directory(attributes) => {
                let id = self.tree.create_directory(parent, name, self.mark)?;
                self.tree.describe(id, &attributes, self.place);
                self.touch(id);
                return Ok(());
            }
            What::File(attributes, content) => {
                let contents = match content {
                    Some(content) => Contents::Packed { pack: self.place, content },
                    None => Contents::Empty,
                };
                self.put(parent, name, NodeKind::File(contents), &attributes)?;
            }
            What::Symlink(attributes, target) => {
                let target = self.pack.bytes(target).into();
                // Linux gives every symlink this mode, whatever an archive says.
                let attributes = Attributes { mode: 0o777, ..attributes };
                self.put(parent, name, NodeKind::Symlink(target), &attributes)?;
            }
            What::Fifo(attributes) => self.put(parent, name, NodeKind::Fifo, &attributes)?,
            What::Device => self.put(parent, name, NodeKind::Device, &Attributes::default())?,
            What::HardLink(target) => {
                let pack = self.pack.clone();
                let node = self.link_target(pack.bytes(target), entry)?;
                self.tree.link(parent, name, node, self.mark)?;
            }
            What::Whiteout | What::Opaque => {}
        }
        self.touch(parent);
        Ok(())
    }

    fn put(
        &mut self,
        parent: NodeId,
        name: EntryName,
        kind: NodeKind,
        attributes: &Attributes,
    ) -> Result<(), MergeError> {
        let id = self.tree.create(kind)?;
        self.tree.describe(id, attributes, self.place);
        self.tree.link(parent, name, id, self.mark)
    }

    /// The inode that a hard link leads to; a symlink is linked to itself.
    fn link_target(&mut self, target: &[u8], entry: &[u8]) -> Result<NodeId, MergeError> {
        let (directory, name) = path::split(target);
        let node = match self.existing_directory(directory, entry)? {
            Some(directory) if !name.is_empty() => self.tree.child(directory, name).map(|child| child.node),
            found => found,
        };
        let (layer, path, target) = (self.mark, || shown(entry), || shown(target));
        match node {
            None => Err(MergeError::MissingLinkTarget { layer, path: path(), target: target() }),
            Some(id) if self.tree.directory(id).is_some() => {
                Err(MergeError::LinkToDirectory { layer, path: path(), target: target() })
            }
            Some(id) => Ok(id),
        }
    }

    /// Marks a directory and all above it as touched by this layer.
    fn touch(&mut self, mut id: NodeId) {
        while let Some(directory) = self.tree.directory_mut(id) {
            // Whatever is above a touched directory is touched as well.
            if directory.touched == self.mark {
                break;
            }
            directory.touched = self.mark;
            id = directory.parent;
        }
    }

    fn is_touched(&self, child: super::Child) -> bool {
        let touched = self.tree.directory(child.node).map_or(child.touched, |directory| directory.touched);
        touched == self.mark
    }

    /// Hides one lower entry: removes it, or, if this layer has touched it,
    /// what lower layers have left in it.
    fn hide(&mut self, entry: &[u8]) -> Result<(), MergeError> {
        let (directory, name) = path::split(entry);
        let Some(parent) = self.existing_directory(directory, entry)? else { return Ok(()) };
        let Some(child) = self.tree.child(parent, name) else { return Ok(()) };
        if !self.is_touched(child) {
            self.tree.remove(parent, name);
        } else if self.tree.directory(child.node).is_some() {
            self.hide_lower_entries(child.node, entry)?;
        }
        Ok(())
    }

    /// Removes everything below a directory that this layer has not touched.
    fn hide_lower_entries(&mut self, directory: NodeId, entry: &[u8]) -> Result<(), MergeError> {
        let mut waiting = vec![directory];
        while let Some(id) = waiting.pop() {
            let Some(directory) = self.tree.directory_mut(id) else { continue };
            let mut entries = std::mem::take(&mut directory.entries);
            let mut hidden = Vec::new();
            entries.retain(|name, child| {
                let keep = self.is_touched(*child);
                if !keep {
                    hidden.push((name.clone(), child.node));
                } else if self.tree.directory(child.node).is_some() {
                    waiting.push(child.node);
                }
                keep
            });
            let kept = entries.len() as u64;
            if let Some(directory) = self.tree.directory_mut(id) {
                directory.entries = entries;
            }
            if !hidden.is_empty() {
                self.tree.release(hidden);
            }
            // What is hidden was paid for when it was made.
            self.steps = self.steps.checked_sub(kept).ok_or_else(|| self.walk_error(WalkError::TooMuchWork, entry))?;
        }
        Ok(())
    }
}
