//! The id of a SIF.

use std::fmt;

use sctl_common::Digest;

/// The 16 bytes that tell one SIF from another, shown as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SifId([u8; 16]);

impl SifId {
    /// All zero: the id of files that are the same wherever they are made.
    pub const NIL: Self = Self([0; 16]);

    /// Wraps the bytes, in the order in which the text shows them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The id that belongs to everything that `digest` was computed over.
    ///
    /// # Source
    /// RFC 9562, version 8: the bits are the maker's own, but for version and
    /// variant.
    pub fn derived(digest: &Digest) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_bytes()[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Says whether all bytes are zero.
    pub fn is_nil(&self) -> bool {
        *self == Self::NIL
    }
}

impl fmt::Display for SifId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SifId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
