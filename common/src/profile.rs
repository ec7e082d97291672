//! How layers are packed: everything that the bytes of a pack depend on
//! besides the layer itself.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Version of the conversion: raise it whenever the same input gives other
/// bytes (of a pack, or of the tables of a SIF).
pub const CONVERTER_VERSION: u32 = 1;

/// Version of the `/.singularity.d` tree and of the SIF's data objects.
pub const METADATA_VERSION: u32 = 2;

/// Compressor of squashfs blocks, with its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// zlib streams, as squashfs calls gzip; level 1 to 9.
    Gzip {
        /// 1 (fast) to 9 (small).
        level: u8,
    },
    /// Zstandard frames; level 1 to 22.
    Zstd {
        /// 1 (fast) to 22 (small).
        level: u8,
    },
}

/// Says why a text names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression {text:?} (expected gzip[:1-9] or zstd[:1-22])")]
pub struct ProfileError {
    /// The text as given.
    pub text: String,
}

impl Compression {
    /// zstd level 3: read by Apptainer, by kernels since 4.14 and by
    /// squashfuse, and 13 times faster to make than gzip.
    pub const DEFAULT: Self = Self::Zstd { level: 3 };
}

impl Default for Compression {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl FromStr for Compression {
    type Err = ProfileError;

    /// Parses `gzip`, `zstd`, `gzip:LEVEL` or `zstd:LEVEL`.
    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let error = || ProfileError { text: text.to_owned() };
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<u8>().map_err(|_| error())?)),
            None => (text, None),
        };
        match (name, level) {
            ("gzip", None) => Ok(Self::Gzip { level: 9 }),
            ("gzip", Some(level @ 1..=9)) => Ok(Self::Gzip { level }),
            ("zstd", None) => Ok(Self::DEFAULT),
            ("zstd", Some(level @ 1..=22)) => Ok(Self::Zstd { level }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gzip { level } => write!(f, "gzip:{level}"),
            Self::Zstd { level } => write!(f, "zstd:{level}"),
        }
    }
}

impl Serialize for Compression {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything that a pack's bytes depend on besides the layer's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Profile {
    /// Compressor and level.
    pub compression: Compression,
    /// Bytes of a squashfs data block: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
}

impl Profile {
    /// 128 KiB, as mksquashfs has by default.
    pub const DEFAULT_BLOCK_SIZE: u32 = 128 << 10;

    /// Text that names the profile in file names and cache keys, such as
    /// `v1-zstd3-128k`; `codec` is the version of the compressor's library.
    pub fn id(&self, codec: &str) -> String {
        let (name, level) = match self.compression {
            Compression::Gzip { level } => ("gzip", level),
            Compression::Zstd { level } => ("zstd", level),
        };
        format!("v{CONVERTER_VERSION}-{name}{level}-{}k-{codec}", self.block_size >> 10)
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self { compression: Compression::DEFAULT, block_size: Self::DEFAULT_BLOCK_SIZE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_text_round_trips_and_bad_levels_are_refused() {
        for text in ["gzip:9", "gzip:1", "zstd:3", "zstd:22"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd { level: 3 }));
        assert_eq!("gzip".parse(), Ok(Compression::Gzip { level: 9 }));
        for bad in ["", "xz", "zstd:0", "zstd:23", "gzip:10", "gzip:", "zstd:3:1"] {
            assert!(bad.parse::<Compression>().is_err(), "accepted {bad:?}");
        }
    }
}
