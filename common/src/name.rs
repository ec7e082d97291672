//! File names inside images: bytes, checked once.

use std::fmt;

/// A file name inside an image: non-empty, no `/`, no NUL, not `.` or `..`,
/// at most 255 bytes. Holding one means that the checks have been made.
///
/// Ordered as unsigned bytes, as squashfs demands of its directories.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName(Box<[u8]>);

/// Says why bytes are not a file name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryNameError {
    /// There is nothing, or `.` or `..`.
    #[error("file name {name:?} names no file")]
    NotAName {
        /// The bytes, escaped.
        name: String,
    },
    /// It holds a slash or a NUL.
    #[error("file name {name:?} holds a slash or a NUL byte")]
    BadByte {
        /// The bytes, escaped.
        name: String,
    },
    /// It is longer than 255 bytes.
    #[error("file name of {len} bytes is longer than 255 bytes: {name:?}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The first bytes, escaped.
        name: String,
    },
}

impl EntryName {
    /// Longest name in bytes, in Linux and in squashfs alike.
    pub const MAX_LEN: usize = 255;

    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`EntryNameError`] says which rule is broken.
    pub fn parse(bytes: &[u8]) -> Result<Self, EntryNameError> {
        let shown = || bytes[..bytes.len().min(64)].escape_ascii().to_string();
        if bytes.is_empty() || bytes == b"." || bytes == b".." {
            return Err(EntryNameError::NotAName { name: shown() });
        }
        if bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(EntryNameError::BadByte { name: shown() });
        }
        if bytes.len() > Self::MAX_LEN {
            return Err(EntryNameError::TooLong { len: bytes.len(), name: shown() });
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for EntryName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bytes_with_few_rules() {
        for good in [&b"a"[..], b"...", b"a b", b"\xff\n", &[b'x'; 255]] {
            assert!(EntryName::parse(good).is_ok(), "refused {good:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(EntryName::parse(bad).is_err(), "accepted {bad:?}");
        }
    }
}
