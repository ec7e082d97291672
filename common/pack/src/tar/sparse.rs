//! Maps of sparse files: which ranges of a file the stream holds.

use crate::tar::{RECORD_LEN, header, pax};

/// Extents that one file may have; each takes 16 bytes of memory.
const MAX_EXTENTS: usize = 1 << 20;

/// A range of a file whose bytes are in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What the map of a file looks like while it is read.
#[derive(Debug, Default)]
pub(crate) struct SparseMap(Vec<Extent>);

/// What is wrong with a map.
pub(crate) type MapError = &'static str;

impl SparseMap {
    /// Adds an extent; they come in order and do not overlap.
    pub(crate) fn push(&mut self, offset: i64, len: i64) -> Result<(), MapError> {
        let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else {
            return Err("negative number in a sparse map");
        };
        if self.0.len() == MAX_EXTENTS {
            return Err("sparse map has more than 1,048,576 extents");
        }
        if self.0.last().is_some_and(|last| last.offset + last.len > offset) {
            return Err("sparse map is not in order");
        }
        if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err("number in a sparse map is too large");
        }
        self.0.push(Extent { offset, len });
        Ok(())
    }

    /// The extents, once they were checked against the file: `size` bytes, of
    /// which `stored` are in the stream.
    pub(crate) fn finish(self, size: u64, stored: u64) -> Result<Vec<Extent>, MapError> {
        if self.0.last().is_some_and(|last| last.offset + last.len > size) {
            return Err("sparse map leads past the end of the file");
        }
        // No overflow: they do not overlap and end within `size`.
        if self.0.iter().map(|extent| extent.len).sum::<u64>() != stored {
            return Err("sparse map does not fit the stored size");
        }
        Ok(self.0)
    }

    /// Adds the extents of an old GNU header: pairs of 12-byte numbers.
    pub(crate) fn push_gnu(&mut self, fields: &[u8]) -> Result<(), MapError> {
        for pair in fields.chunks_exact(24) {
            if pair[0] == 0 {
                break;
            }
            match (header::parse_numeric(&pair[..12]), header::parse_numeric(&pair[12..])) {
                (Ok(offset), Ok(len)) => self.push(offset, len)?,
                _ => return Err("bad number in a sparse map"),
            }
        }
        Ok(())
    }

    /// Adds the extents of pax formats 0.0 and 0.1: decimal numbers, here
    /// joined by commas.
    pub(crate) fn push_list(&mut self, text: &[u8], count: &[u8]) -> Result<(), MapError> {
        let count = pax::parse_decimal(count).ok_or("bad number of extents")?;
        let mut numbers = text.split(|byte| *byte == b',').filter(|_| !text.is_empty()).map(pax::parse_decimal);
        let before = self.0.len();
        while let Some(offset) = numbers.next() {
            match (offset, numbers.next()) {
                (Some(offset), Some(Some(len))) => self.push(offset, len)?,
                _ => return Err("bad number in a sparse map"),
            }
        }
        if u64::try_from(count) != Ok((self.0.len() - before) as u64) {
            return Err("wrong number of extents");
        }
        Ok(())
    }
}

/// Reads the map that pax format 1.0 puts in front of the contents: decimal
/// numbers on lines, their count first, padded to whole records.
#[derive(Debug, Default)]
pub(crate) struct MapReader {
    map: SparseMap,
    number: Vec<u8>,
    left: Option<u64>,
    offset: Option<i64>,
}

impl MapReader {
    /// Takes one record; `true` once the map is complete.
    pub(crate) fn push_record(&mut self, record: &[u8; RECORD_LEN]) -> Result<bool, MapError> {
        /// Digits that a number may have.
        const MAX_DIGITS: usize = 20;
        for byte in record {
            if *byte != b'\n' {
                if self.number.len() == MAX_DIGITS {
                    return Err("bad number in a sparse map");
                }
                self.number.push(*byte);
                continue;
            }
            let number = pax::parse_decimal(&self.number).ok_or("bad number in a sparse map")?;
            self.number.clear();
            match (&mut self.left, self.offset.take()) {
                (None, _) => self.left = Some(u64::try_from(number).map_err(|_| "bad number of extents")?),
                (Some(_), None) => self.offset = Some(number),
                (Some(left), Some(offset)) => {
                    self.map.push(offset, number)?;
                    *left -= 1;
                }
            }
            if self.left == Some(0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn finish(self) -> SparseMap {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_must_be_in_order_and_fit() {
        let map = |extents: &[(i64, i64)]| {
            let mut map = SparseMap::default();
            extents.iter().try_for_each(|(offset, len)| map.push(*offset, *len)).map(|()| map)
        };
        assert!(map(&[(0, 5), (5, 5), (20, 0)]).unwrap().finish(20, 10).is_ok());
        assert!(map(&[]).unwrap().finish(20, 0).is_ok());
        assert!(map(&[(0, 5), (4, 5)]).is_err(), "overlap");
        assert!(map(&[(-1, 5)]).is_err(), "negative");
        assert!(map(&[(i64::MAX, 5)]).is_err(), "too large");
        assert!(map(&[(0, 5)]).unwrap().finish(4, 5).is_err(), "past the end");
        assert!(map(&[(0, 5)]).unwrap().finish(5, 4).is_err(), "not stored");
    }

    #[test]
    fn lists_are_pairs() {
        let list = |text: &[u8], count: &[u8]| SparseMap::default().push_list(text, count);
        assert!(list(b"0,5,10,5", b"2").is_ok());
        assert!(list(b"", b"0").is_ok());
        for (text, count) in [("0,5,10", "2"), ("0,5", "2"), ("0,x", "1"), (",", "1"), ("0,5", "")] {
            assert!(list(text.as_bytes(), count.as_bytes()).is_err(), "{text:?} {count:?}");
        }
    }

    #[test]
    fn lines_may_cross_records() {
        let mut text: Vec<u8> = b"100\n".to_vec();
        for i in 0..100u32 {
            text.extend_from_slice(format!("{}\n{}\n", i * 10_000, 7).as_bytes());
        }
        text.resize(text.len().next_multiple_of(RECORD_LEN), 0);
        let mut reader = MapReader::default();
        let records: Vec<_> = text.as_chunks().0.to_vec();
        for (i, record) in records.iter().enumerate() {
            assert_eq!(reader.push_record(record), Ok(i + 1 == records.len()));
        }
        assert_eq!(reader.finish().finish(1_000_000, 700).unwrap().len(), 100);
    }
}
