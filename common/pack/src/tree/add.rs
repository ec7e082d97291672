//! Adding to a merged tree what no layer holds.

use sctl_common::EntryName;

use crate::error::{MergeError, shown};
use crate::index::MAX_SYMLINK_LEN;
use crate::path;
use crate::tree::{Contents, NodeId, NodeKind, ROOT, Tree, lookup::WalkError};

/// What to do where something is already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// Whatever is there gives way, symlinks included; a directory that is to
    /// become a directory keeps its entries and gets the new mode.
    Replace,
    /// Whatever is there stays, symlinks included. So does whatever stands in
    /// the way of the path.
    Keep,
}

impl Tree {
    /// Adds a directory that belongs to root and has the time of the image;
    /// says whether it did.
    ///
    /// The path is taken from the root and leads through the symlinks of the
    /// tree; what is missing of its parents is made.
    ///
    /// # Errors
    /// [`MergeError`] if the path leads nowhere or a limit is passed.
    pub fn add_directory(&mut self, path: &[u8], mode: u16, rule: IfExists) -> Result<bool, MergeError> {
        self.add(path, mode, rule, None)
    }

    /// Adds a file with these contents; otherwise as [`Self::add_directory`].
    ///
    /// # Errors
    /// As [`Self::add_directory`].
    pub fn add_file(&mut self, path: &[u8], mode: u16, bytes: Vec<u8>, rule: IfExists) -> Result<bool, MergeError> {
        let contents = match bytes.len() {
            0 => Contents::Empty,
            _ => {
                let place = u32::try_from(self.additions.len());
                Contents::Added(place.map_err(|_| MergeError::Limit { what: "files", max: self.max_nodes })?)
            }
        };
        let is_added = self.add(path, mode, rule, Some(NodeKind::File(contents)))?;
        if is_added && contents != Contents::Empty {
            self.additions.push(bytes);
        }
        Ok(is_added)
    }

    /// Adds a symlink; otherwise as [`Self::add_directory`].
    ///
    /// # Errors
    /// As [`Self::add_directory`], and for targets that are empty or too long.
    pub fn add_symlink(&mut self, path: &[u8], target: &[u8], rule: IfExists) -> Result<bool, MergeError> {
        if target.is_empty() || target.len() > MAX_SYMLINK_LEN || target.contains(&0) {
            return Err(MergeError::BadSymlink { path: shown(path), target: shown(target) });
        }
        self.add(path, 0o777, rule, Some(NodeKind::Symlink(target.into())))
    }

    /// Adds a directory, or something else if `kind` says so.
    fn add(&mut self, raw_path: &[u8], mode: u16, rule: IfExists, kind: Option<NodeKind>) -> Result<bool, MergeError> {
        let mut clean = Vec::new();
        path::clean(raw_path, &mut clean);
        let (directory, name) = path::split(&clean);
        if clean.is_empty() {
            if kind.is_some() {
                return Err(MergeError::NotADirectory { layer: 0, path: "/".to_owned() });
            }
            if rule == IfExists::Replace {
                self.describe_addition(ROOT, mode);
            }
            return Ok(rule == IfExists::Replace);
        }
        let name = parse_name(name, &clean)?;
        let mut budget = u64::MAX;
        let walk = self.walk(directory, &mut budget).map_err(|error| match error {
            WalkError::TooManySymlinks | WalkError::TooMuchWork => {
                MergeError::TooManySymlinks { layer: 0, path: shown(&clean) }
            }
        });
        let walk = match walk {
            Err(_) if rule == IfExists::Keep => return Ok(false),
            walk => walk?,
        };
        let mut parent = walk.existing.last().copied().unwrap_or(ROOT);
        if self.directory(parent).is_none() {
            return match rule {
                IfExists::Keep => Ok(false),
                IfExists::Replace => Err(MergeError::NotADirectory { layer: 0, path: shown(&clean) }),
            };
        }
        for missing in walk.missing {
            let missing = parse_name(&missing, &clean)?;
            parent = self.create_directory(parent, missing, 0)?;
        }
        if let Some(child) = self.child(parent, name.as_bytes()) {
            let is_device = matches!(self.node(child.node).kind, NodeKind::Device);
            if rule == IfExists::Keep && !is_device {
                return Ok(false);
            }
            if kind.is_none() && self.directory(child.node).is_some() {
                self.describe_addition(child.node, mode);
                return Ok(true);
            }
            self.remove(parent, name.as_bytes());
        }
        let id = match kind {
            None => self.create_directory(parent, name, 0)?,
            Some(kind) => {
                let id = self.create(kind)?;
                self.link(parent, name, id, 0)?;
                id
            }
        };
        self.describe_addition(id, mode);
        Ok(true)
    }

    fn describe_addition(&mut self, id: NodeId, mode: u16) {
        let node = &mut self.nodes[id as usize];
        node.mode = mode & 0o7777;
        (node.uid, node.gid, node.mtime, node.xattrs) = (0, 0, None, None);
    }
}

fn parse_name(name: &[u8], path: &[u8]) -> Result<EntryName, MergeError> {
    EntryName::parse(name).map_err(|source| MergeError::BadName { layer: 0, path: shown(path), source })
}
