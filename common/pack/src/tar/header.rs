//! Fields of a tar header.

use crate::tar::RECORD_LEN;

/// Which dialect a header is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    V7,
    Ustar,
    Gnu,
    Star,
}

/// A header as it was read; the fields are parsed when asked for.
pub(crate) struct Header<'a>(pub(crate) &'a [u8; RECORD_LEN]);

/// A field that holds no number, or one that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadNumber;

impl<'a> Header<'a> {
    fn field(&self, at: usize, len: usize) -> &'a [u8] {
        &self.0[at..at + len]
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// The dialect, or `None` if the checksum is wrong.
    pub(crate) fn dialect(&self) -> Option<Dialect> {
        let expected = parse_octal(self.field(148, 8)).ok()?;
        // Old writers summed signed bytes.
        let (mut unsigned, mut signed) = (8 * i64::from(b' '), 8 * i64::from(b' '));
        for byte in self.0[..148].iter().chain(&self.0[156..]) {
            unsigned += i64::from(*byte);
            signed += i64::from(byte.cast_signed());
        }
        if expected != unsigned && expected != signed {
            return None;
        }
        Some(match self.field(257, 6) {
            b"ustar\0" if self.field(508, 4) == b"tar\0" => Dialect::Star,
            b"ustar\0" => Dialect::Ustar,
            b"ustar " if self.field(263, 2) == b" \0" => Dialect::Gnu,
            _ => Dialect::V7,
        })
    }

    pub(crate) fn name(&self) -> &'a [u8] {
        until_nul(self.field(0, 100))
    }

    pub(crate) fn mode(&self) -> Result<i64, BadNumber> {
        parse_numeric(self.field(100, 8))
    }

    pub(crate) fn uid(&self) -> Result<i64, BadNumber> {
        parse_numeric(self.field(108, 8))
    }

    pub(crate) fn gid(&self) -> Result<i64, BadNumber> {
        parse_numeric(self.field(116, 8))
    }

    pub(crate) fn size(&self) -> Result<i64, BadNumber> {
        parse_numeric(self.field(124, 12))
    }

    pub(crate) fn mtime(&self) -> Result<i64, BadNumber> {
        parse_numeric(self.field(136, 12))
    }

    pub(crate) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn link(&self) -> &'a [u8] {
        until_nul(self.field(157, 100))
    }

    pub(crate) fn device(&self) -> Result<(i64, i64), BadNumber> {
        Ok((parse_numeric(self.field(329, 8))?, parse_numeric(self.field(337, 8))?))
    }

    /// Checks the numbers of every kind of header, used or not, since the
    /// reference does.
    pub(crate) fn check_numbers(&self, dialect: Dialect) -> Result<(), BadNumber> {
        self.mode()?;
        self.uid()?;
        self.gid()?;
        self.size()?;
        self.mtime()?;
        if dialect != Dialect::V7 {
            self.device()?;
        }
        if dialect == Dialect::Star {
            // Times of access and change.
            parse_numeric(self.field(476, 12))?;
            parse_numeric(self.field(488, 12))?;
        }
        Ok(())
    }

    /// What precedes the name, with a slash between the two.
    pub(crate) fn prefix(&self, dialect: Dialect) -> &'a [u8] {
        match dialect {
            Dialect::V7 => &[],
            Dialect::Ustar => until_nul(self.field(345, 155)),
            Dialect::Star => until_nul(self.field(345, 131)),
            // GNU has access and change time here. Some writers put a prefix
            // nevertheless; it shows by not being two numbers.
            Dialect::Gnu => {
                let is_time = |at| self.0[at] == 0 || parse_numeric(self.field(at, 12)).is_ok();
                let prefix = until_nul(self.field(345, 155));
                if (is_time(345) && is_time(357)) || !prefix.is_ascii() { &[] } else { prefix }
            }
        }
    }

    /// Real size of an old GNU sparse file.
    pub(crate) fn sparse_size(&self) -> Result<i64, BadNumber> {
        parse_numeric(self.field(483, 12))
    }

    /// Extents of an old GNU sparse file, and whether more follow.
    pub(crate) fn sparse_extents(&self) -> (&'a [u8], bool) {
        (self.field(386, 4 * 24), self.0[482] != 0)
    }
}

pub(crate) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// Parses a number in octal, or in base 256 if the first bit is set.
pub(crate) fn parse_numeric(field: &[u8]) -> Result<i64, BadNumber> {
    let Some(&first) = field.first() else { return Ok(0) };
    if first & 0x80 == 0 {
        return parse_octal(field);
    }
    // Two's complement, big-endian; the second bit is the sign.
    let negative = first & 0x40 != 0;
    let mut value: u64 = 0;
    for (i, byte) in field.iter().enumerate() {
        let byte = if negative { !byte } else { *byte };
        let byte = if i == 0 { byte & 0x7f } else { byte };
        if value >> 56 != 0 {
            return Err(BadNumber);
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| BadNumber)?;
    Ok(if negative { !value } else { value })
}

/// Parses octal digits between spaces and NULs; nothing is zero.
pub(crate) fn parse_octal(field: &[u8]) -> Result<i64, BadNumber> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_padding(byte)) else { return Ok(0) };
    let end = field.iter().rposition(|byte| !is_padding(byte)).map_or(start, |last| last + 1);
    let mut value: u64 = 0;
    for digit in until_nul(&field[start..end]) {
        if !matches!(digit, b'0'..=b'7') || value >> 61 != 0 {
            return Err(BadNumber);
        }
        value = value << 3 | u64::from(digit - b'0');
    }
    i64::try_from(value).map_err(|_| BadNumber)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let cases: [(&[u8], Result<i64, BadNumber>); 14] = [
            (b"0000644\0", Ok(0o644)),
            (b"  644 \0\0", Ok(0o644)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"        ", Ok(0)),
            (b"77777777777\0", Ok(0o77_777_777_777)),
            (b"12\x003", Ok(0o12)),
            (b"12a", Err(BadNumber)),
            (b"8", Err(BadNumber)),
            (b"-1", Err(BadNumber)),
            (b"\x80\0\0\0\0\x01\0\0", Ok(65_536)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", Err(BadNumber)),
        ];
        for (field, expected) in cases {
            assert_eq!(parse_numeric(field), expected, "{:?}", field.escape_ascii().to_string());
        }
    }
}
