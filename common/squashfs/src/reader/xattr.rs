//! Extended attributes.

use std::ops::ControlFlow;

use crate::{
    layout::{NO_TABLE, NO_XATTR, XATTR_ID_LEN, XATTR_OUT_OF_LINE, XATTR_PREFIXES},
    reader::{
        Inode, ReadAt, ReadError, Reader, Xattr,
        metadata::{Cursor, MetadataPosition},
    },
};

/// Bounds of Linux: bytes of a name, bytes of a value, and xattrs whose names
/// make a list of 64 KiB.
const MAX_NAME_LEN: usize = 255;
const MAX_VALUE_LEN: u32 = 64 << 10;
const MAX_COUNT: u32 = 16 << 10;

/// Bytes of one inode's xattrs that [`Reader::xattrs`] gathers.
const MAX_TOTAL_LEN: usize = 4 << 20;

impl<R: ReadAt> Reader<R> {
    /// Reads all xattrs of an inode, in the image's order.
    ///
    /// # Errors
    /// [`ReadError`] if the image is damaged, or they exceed 4 MiB.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ReadError> {
        let (mut xattrs, mut total) = (Vec::new(), 0);
        self.walk_xattrs(inode, |name, value| {
            let value = value.read()?;
            total += name.len() + value.len();
            if total > MAX_TOTAL_LEN {
                return Err(ReadError::BadField { what: "length of all xattrs", value: total as u64 });
            }
            xattrs.push(Xattr { name: name.to_vec(), value });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(xattrs)
    }

    /// Reads the value of one xattr by its full name.
    ///
    /// # Errors
    /// [`ReadError`] if the image is damaged.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        let mut found = None;
        self.walk_xattrs(inode, |candidate, value| {
            if candidate != name {
                return Ok(ControlFlow::Continue(()));
            }
            found = Some(value.read()?);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// Gives the full names of an inode's xattrs to `each`.
    ///
    /// # Errors
    /// [`ReadError`] if the image is damaged.
    pub fn xattr_names(&self, inode: &Inode, mut each: impl FnMut(&[u8])) -> Result<(), ReadError> {
        self.walk_xattrs(inode, |name, _| {
            each(name);
            Ok(ControlFlow::Continue(()))
        })
    }

    fn walk_xattrs(
        &self,
        inode: &Inode,
        mut each: impl FnMut(&[u8], Value<'_, '_, R>) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let index_start = self.superblock.xattr_table_start;
        if inode.xattr == NO_XATTR || index_start == NO_TABLE {
            return Ok(());
        }
        let mut head = [0; 16];
        self.read_source("xattr id table", index_start, &mut head)?;
        let [t0, t1, t2, t3, t4, t5, t6, t7, c0, c1, c2, c3, ..] = head;
        let table_start = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        if inode.xattr >= u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(ReadError::BadField { what: "index of an xattr set", value: u64::from(inode.xattr) });
        }
        let number = u64::from(inode.xattr);
        // The index follows the 16 bytes just read, which the bounds include.
        let mut entry =
            self.cursor_at_entry("xattr id table", index_start + head.len() as u64, number, XATTR_ID_LEN as u64)?;
        let (reference, count) = (entry.read_u64()?, entry.read_u32()?);
        if count > MAX_COUNT {
            return Err(ReadError::BadField { what: "number of xattrs", value: u64::from(count) });
        }
        let position = MetadataPosition::from_reference(table_start, reference)?;
        let mut cursor = self.cursor("xattr table", position, index_start)?;
        let mut name = Vec::with_capacity(MAX_NAME_LEN);
        for _ in 0..count {
            let (kind, suffix_len) = (cursor.read_u16()?, usize::from(cursor.read_u16()?));
            let prefix: &[u8] = XATTR_PREFIXES
                .get(usize::from(kind & !XATTR_OUT_OF_LINE))
                .copied()
                .ok_or(ReadError::BadField { what: "type of an xattr", value: u64::from(kind) })?;
            let len = prefix.len() + suffix_len;
            if len > MAX_NAME_LEN {
                return Err(ReadError::BadField { what: "length of an xattr's name", value: len as u64 });
            }
            name.clear();
            name.extend_from_slice(prefix);
            name.resize(len, 0);
            cursor.read_exact(&mut name[prefix.len()..])?;
            let value_len = cursor.read_u32()?;
            let after = cursor.position();
            let value = Value {
                reader: self,
                cursor: &mut cursor,
                len: value_len,
                out_of_line: (kind & XATTR_OUT_OF_LINE != 0).then_some((table_start, index_start)),
            };
            if each(&name, value)?.is_break() {
                return Ok(());
            }
            // A value that was not read has to be passed over; one that was,
            // moved the cursor already.
            if cursor.position() == after {
                cursor.skip(u64::from(value_len))?;
            }
        }
        Ok(())
    }
}

/// A value that may be read.
struct Value<'c, 'r, R> {
    reader: &'r Reader<R>,
    cursor: &'c mut Cursor<'r, R>,
    len: u32,
    /// Start and end of the xattr table, if the value is a reference to
    /// another value.
    out_of_line: Option<(u64, u64)>,
}

impl<R: ReadAt> Value<'_, '_, R> {
    fn read(self) -> Result<Vec<u8>, ReadError> {
        let Some((start, end)) = self.out_of_line else { return read_value(self.cursor, self.len) };
        if self.len != 8 {
            return Err(ReadError::BadField { what: "length of a reference to a value", value: u64::from(self.len) });
        }
        let position = MetadataPosition::from_reference(start, self.cursor.read_u64()?)?;
        let mut cursor = self.reader.cursor("xattr table", position, end)?;
        let len = cursor.read_u32()?;
        read_value(&mut cursor, len)
    }
}

fn read_value<R: ReadAt>(cursor: &mut Cursor<'_, R>, len: u32) -> Result<Vec<u8>, ReadError> {
    if len > MAX_VALUE_LEN {
        return Err(ReadError::BadField { what: "length of an xattr's value", value: u64::from(len) });
    }
    cursor.read_vec(len as usize)
}
