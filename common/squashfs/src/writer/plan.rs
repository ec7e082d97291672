//! Numbers and link counts, before anything is written.

use crate::writer::{Image, InodeIndex, InodeKind, WriteError};

/// What has to be known before the first inode is written.
pub(super) struct Plan {
    /// Number of each inode, from 1; 0 if no directory leads to it.
    pub numbers: Vec<u32>,
    /// Links of each inode: names, or for directories 2 + subdirectories.
    pub links: Vec<u32>,
    /// All directories, each before those below it.
    pub directories: Vec<InodeIndex>,
    /// Number of inodes that get written.
    pub inode_count: u32,
}

impl Plan {
    /// Walks the tree from the root.
    ///
    /// The entries of a directory get consecutive numbers as far as they have
    /// none yet, because a directory stores them as 16-bit differences.
    pub fn of(image: &Image) -> Result<Self, WriteError> {
        let mut plan = Self {
            numbers: vec![0; image.inodes.len()],
            links: vec![0; image.inodes.len()],
            directories: Vec::new(),
            inode_count: 0,
        };
        entries_of(image, image.root)?.ok_or(WriteError::RootNotDirectory)?;
        plan.number(image.root)?;
        plan.links[image.root as usize] = 2;
        let mut waiting = vec![image.root];
        while let Some(directory) = waiting.pop() {
            plan.directories.push(directory);
            let first_new = waiting.len();
            for (_, child) in entries_of(image, directory)?.unwrap_or_default() {
                let is_new = match plan.numbers.get(*child as usize) {
                    None => return Err(WriteError::NoSuchInode { index: *child }),
                    Some(number) => *number == 0,
                };
                if is_new {
                    plan.number(*child)?;
                }
                let too_large = WriteError::TooLarge { what: "number of links" };
                if matches!(image.inodes[*child as usize].kind, InodeKind::Directory { .. }) {
                    if !is_new {
                        return Err(WriteError::DirectoryLinkedTwice { index: *child });
                    }
                    plan.links[*child as usize] = 2;
                    let links = &mut plan.links[directory as usize];
                    *links = links.checked_add(1).ok_or(too_large)?;
                    waiting.push(*child);
                } else {
                    let links = &mut plan.links[*child as usize];
                    *links = links.checked_add(1).ok_or(too_large)?;
                }
            }
            // The first subdirectory is to be taken from the stack first.
            waiting[first_new..].reverse();
        }
        Ok(plan)
    }

    fn number(&mut self, index: InodeIndex) -> Result<(), WriteError> {
        // One number is left over for the root's parent, which does not exist.
        if self.inode_count >= u32::MAX - 1 {
            return Err(WriteError::TooLarge { what: "number of inodes" });
        }
        self.inode_count += 1;
        self.numbers[index as usize] = self.inode_count;
        Ok(())
    }
}

type Entries = [(sctl_common::EntryName, InodeIndex)];

/// Entries of `index` if it is a directory, checked to be in order.
fn entries_of(image: &Image, index: InodeIndex) -> Result<Option<&Entries>, WriteError> {
    let inode = image.inodes.get(index as usize).ok_or(WriteError::NoSuchInode { index })?;
    let InodeKind::Directory { entries } = &inode.kind else { return Ok(None) };
    match entries.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
        Some(pair) => Err(WriteError::UnsortedDirectory { index, name: pair[1].0.to_string() }),
        None => Ok(Some(entries)),
    }
}
