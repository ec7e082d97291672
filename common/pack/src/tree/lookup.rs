//! Finding things in the tree, through symlinks that never leave it.

use std::borrow::Cow;

use crate::elf::ElfMachine;
use crate::tree::{Contents, NodeId, NodeKind, ROOT, Tree};

/// Symlinks that one path may lead through, as in the reference.
const MAX_SYMLINKS: u32 = 255;

/// Bytes that are copied in about the time of a step.
const BYTES_PER_STEP: u64 = 64;

/// What something in the tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
}

/// Where a path leads.
pub(super) struct Walk {
    /// What exists of it, from the root on; only the last one may be something
    /// else than a directory.
    pub(super) existing: Vec<NodeId>,
    /// Names below that do not exist.
    pub(super) missing: Vec<Vec<u8>>,
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WalkError {
    TooManySymlinks,
    /// Following symlinks has cost too much altogether.
    TooMuchWork,
}

impl Walk {
    /// The last thing, if all of the path exists.
    pub(super) fn found(&self) -> Option<NodeId> {
        self.existing.last().copied().filter(|_| self.missing.is_empty())
    }
}

impl Tree {
    /// Follows a path and every symlink on it, the last part's too.
    ///
    /// Names that do not exist are taken as they are, and `..` takes them back
    /// again. `budget` is lessened by every step.
    pub(super) fn walk(&self, path: &[u8], budget: &mut u64) -> Result<Walk, WalkError> {
        let mut walk = Walk { existing: vec![ROOT], missing: Vec::new() };
        let mut rest = Cow::Borrowed(path);
        let (mut position, mut symlinks) = (0, 0);
        while position < rest.len() {
            *budget = budget.checked_sub(1).ok_or(WalkError::TooMuchWork)?;
            let behind = &rest[position..];
            let len = behind.iter().position(|byte| *byte == b'/').unwrap_or(behind.len());
            let part = &behind[..len];
            position += len + 1;
            match part {
                b"" | b"." => continue,
                b".." => {
                    if walk.missing.pop().is_none() && walk.existing.len() > 1 {
                        walk.existing.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let child = match walk.found() {
                Some(directory) => self.child(directory, part),
                None => None,
            };
            let Some(child) = child else {
                walk.missing.push(part.to_vec());
                continue;
            };
            let NodeKind::Symlink(target) = &self.node(child.node).kind else {
                walk.existing.push(child.node);
                continue;
            };
            symlinks += 1;
            if symlinks > MAX_SYMLINKS {
                return Err(WalkError::TooManySymlinks);
            }
            if target.starts_with(b"/") {
                walk.existing.truncate(1);
            }
            let behind = rest.get(position..).unwrap_or_default();
            let copied = (target.len() + behind.len()) as u64 / BYTES_PER_STEP;
            *budget = budget.checked_sub(copied).ok_or(WalkError::TooMuchWork)?;
            rest = Cow::Owned([target, &b"/"[..], behind].concat());
            position = 0;
        }
        Ok(walk)
    }

    /// The inode at `path`; a symlink at its end is followed only on request.
    fn find(&self, path: &[u8], follow: bool) -> Option<NodeId> {
        let mut clean = Vec::new();
        crate::path::clean(path, &mut clean);
        let mut budget = u64::MAX;
        if follow {
            return self.walk(&clean, &mut budget).ok()?.found();
        }
        if clean.is_empty() {
            return Some(ROOT);
        }
        let (directory, name) = crate::path::split(&clean);
        let directory = self.walk(directory, &mut budget).ok()?.found()?;
        self.child(directory, name).map(|child| child.node)
    }

    fn kind_of(&self, id: NodeId) -> Option<FileKind> {
        Some(match self.node(id).kind {
            NodeKind::Directory(_) => FileKind::Directory,
            NodeKind::File(_) => FileKind::File,
            NodeKind::Symlink(_) => FileKind::Symlink,
            NodeKind::Fifo => FileKind::Fifo,
            NodeKind::Device | NodeKind::Free => return None,
        })
    }

    /// Whether there is anything at `path`; symlinks are followed on the way,
    /// but not at its end, so a dangling one counts.
    pub fn contains(&self, path: &[u8]) -> bool {
        self.kind(path).is_some()
    }

    /// What is at `path` itself. Device nodes count as nothing.
    pub fn kind(&self, path: &[u8]) -> Option<FileKind> {
        self.find(path, false).and_then(|id| self.kind_of(id))
    }

    /// What `path` leads to, through a symlink at its end too.
    pub fn kind_followed(&self, path: &[u8]) -> Option<FileKind> {
        self.find(path, true).and_then(|id| self.kind_of(id))
    }

    /// Architecture of the image's programs: that of `/bin/sh`, else that of
    /// the first executable file, by the order of paths.
    pub fn machine(&self) -> Option<ElfMachine> {
        if let Some(machine) = self.find(b"bin/sh", true).and_then(|id| self.machine_of(id)) {
            return Some(machine);
        }
        let mut waiting = vec![ROOT];
        while let Some(id) = waiting.pop() {
            match self.directory(id) {
                Some(directory) => waiting.extend(directory.entries.values().rev().map(|child| child.node)),
                None => {
                    if self.node(id).mode & 0o111 != 0
                        && let Some(machine) = self.machine_of(id)
                    {
                        return Some(machine);
                    }
                }
            }
        }
        None
    }

    fn machine_of(&self, id: NodeId) -> Option<ElfMachine> {
        match self.node(id).kind {
            NodeKind::File(Contents::Packed { pack, content }) => {
                self.packs[pack as usize].contents[content as usize].machine
            }
            _ => None,
        }
    }
}
