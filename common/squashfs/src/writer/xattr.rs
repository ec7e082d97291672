//! The xattr tables.
//!
//! Each distinct set is a row of entries in the xattr table: type (2 bytes:
//! 0 `user.`, 1 `trusted.`, 2 `security.`), length of the name behind the
//! prefix (2), name, length of the value (4), value. The xattr id table says
//! of each set where it is (8), how many entries it has (4) and how many
//! bytes its full names, each with a NUL, and its values take (4).

use std::collections::{HashMap, hash_map::Entry};

use sctl_common::Compression;

use crate::{
    layout::{NO_TABLE, NO_XATTR, XATTR_ID_LEN, XATTR_PREFIXES},
    writer::{
        Image, WriteError, Xattr,
        metadata::{MetadataWriter, Positioned},
    },
};

/// Longest name and value that Linux takes.
const MAX_NAME_LEN: usize = 255;
const MAX_VALUE_LEN: usize = 65_536;

/// Sets that inodes have, in the order of their first use.
pub(super) struct XattrTable<'a> {
    /// Id of each set of the caller, once used.
    ids: Vec<Option<u32>>,
    /// Id of each distinct set, sorted by name.
    distinct: HashMap<Vec<&'a Xattr>, u32>,
    /// The id table.
    entries: Vec<[u8; XATTR_ID_LEN]>,
    table: MetadataWriter<Vec<u8>>,
}

impl<'a> XattrTable<'a> {
    pub fn new(image: &Image, compression: Compression) -> Result<Self, WriteError> {
        Ok(Self {
            ids: vec![None; image.xattr_sets.len()],
            distinct: HashMap::new(),
            entries: Vec::new(),
            table: MetadataWriter::new("xattr table", compression, Vec::new())?,
        })
    }

    /// The id that an inode with this set stores.
    pub fn id_of(&mut self, image: &'a Image, set: Option<u32>) -> Result<u32, WriteError> {
        let Some(set) = set else { return Ok(NO_XATTR) };
        let xattrs = image.xattr_sets.get(set as usize).ok_or(WriteError::NoSuchXattrSet { set })?;
        if xattrs.is_empty() {
            return Ok(NO_XATTR);
        }
        if let Some(id) = self.ids[set as usize] {
            return Ok(id);
        }
        let mut sorted: Vec<&Xattr> = xattrs.iter().collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(WriteError::XattrName { name: pair[0].name.escape_ascii().to_string() });
        }
        let id = match self.distinct.entry(sorted) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let entry = write_set(&mut self.table, new.key())?;
                let id = u32::try_from(self.entries.len())
                    .ok()
                    .filter(|id| *id != NO_XATTR)
                    .ok_or(WriteError::TooLarge { what: "number of xattr sets" })?;
                self.entries.push(entry);
                *new.insert(id)
            }
        };
        self.ids[set as usize] = Some(id);
        Ok(id)
    }

    /// Writes both tables; returns what the superblock says of them.
    pub fn finish<W: std::io::Write>(
        self,
        out: &mut Positioned<W>,
        compression: Compression,
    ) -> Result<u64, WriteError> {
        if self.entries.is_empty() {
            return Ok(NO_TABLE);
        }
        let table_start = out.position;
        let (bytes, ..) = self.table.finish()?;
        out.write("xattr table", &bytes)?;
        // Ids are 32 bits, so their number is, too.
        let count = self.entries.len() as u32;
        let index = out.write_entries("xattr id table", compression, self.entries.into_iter())?;
        let start = out.position;
        out.write("xattr id table", &table_start.to_le_bytes())?;
        out.write("xattr id table", &u64::from(count).to_le_bytes())?;
        out.write_index("xattr id table", &index)?;
        Ok(start)
    }
}

/// Writes one set, sorted by name; returns its entry of the id table.
fn write_set(table: &mut MetadataWriter<Vec<u8>>, set: &[&Xattr]) -> Result<[u8; XATTR_ID_LEN], WriteError> {
    let too_large = || WriteError::TooLarge { what: "set of xattrs" };
    let reference = table.position().reference();
    let mut size = 0usize;
    for Xattr { name, value } in set {
        let bad_name = || WriteError::XattrName { name: name.escape_ascii().to_string() };
        let (number, suffix) = (0u16..)
            .zip(XATTR_PREFIXES)
            .find_map(|(number, prefix)| Some((number, name.strip_prefix(prefix)?)))
            .filter(|(_, suffix)| !suffix.is_empty() && name.len() <= MAX_NAME_LEN && !suffix.contains(&0))
            .ok_or_else(bad_name)?;
        if value.len() > MAX_VALUE_LEN {
            return Err(WriteError::XattrValue { name: name.escape_ascii().to_string(), len: value.len() });
        }
        table.write(&number.to_le_bytes())?;
        table.write(&(suffix.len() as u16).to_le_bytes())?;
        table.write(suffix)?;
        table.write(&(value.len() as u32).to_le_bytes())?;
        table.write(value)?;
        size += name.len() + 1 + value.len();
    }
    let mut entry = [0; XATTR_ID_LEN];
    entry[..8].copy_from_slice(&reference.to_le_bytes());
    entry[8..12].copy_from_slice(&u32::try_from(set.len()).map_err(|_| too_large())?.to_le_bytes());
    entry[12..].copy_from_slice(&u32::try_from(size).map_err(|_| too_large())?.to_le_bytes());
    Ok(entry)
}
