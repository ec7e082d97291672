//! What a file is, from its first bytes.

/// How many of the first bytes [`probe`] wants; shorter files are no images.
pub const PROBE_LEN: usize = 2048;

/// What kind of image a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A SIF.
    Sif,
    /// A bare squashfs, at this offset: images of old writers have the launch
    /// script in front.
    Squashfs {
        /// Where the superblock starts.
        offset: u64,
    },
    /// A bare ext3.
    Ext3 {
        /// Where the file system starts.
        offset: u64,
    },
}

/// Compressor that a squashfs superblock names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquashfsCompression(pub u16);

impl SquashfsCompression {
    /// Looks at the first bytes of a file system; `None` if it is no squashfs.
    pub fn probe(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..22)?;
        head.starts_with(b"hsqs").then(|| Self(u16::from_le_bytes([head[20], head[21]])))
    }

    /// The compressor's name, if the number is known.
    pub const fn name(self) -> Option<&'static str> {
        match self.0 {
            1 => Some("gzip"),
            2 => Some("lzma"),
            3 => Some("lzo"),
            4 => Some("xz"),
            5 => Some("lz4"),
            6 => Some("zstd"),
            _ => None,
        }
    }
}

/// Says what the file is whose first bytes are given, at best [`PROBE_LEN`].
pub fn probe(head: &[u8]) -> Option<Format> {
    if head.get(32..42) == Some(b"SIF_MAGIC\0") {
        return Some(Format::Sif);
    }
    // Old bare images may start with the 31 bytes of a launch script.
    let offsets: &[usize] = if head.starts_with(b"#!") { &[31] } else { &[0] };
    for &offset in offsets {
        let rest = head.get(offset..)?;
        if SquashfsCompression::probe(rest).is_some() {
            return Some(Format::Squashfs { offset: offset as u64 });
        }
        if rest.get(1080..1082) == Some(&[0x53, 0xef]) {
            return Some(Format::Ext3 { offset: offset as u64 });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_their_first_bytes() {
        let mut squashfs = vec![0; 96];
        squashfs[..4].copy_from_slice(b"hsqs");
        squashfs[20] = 6;
        assert_eq!(probe(&squashfs), Some(Format::Squashfs { offset: 0 }));
        assert_eq!(SquashfsCompression::probe(&squashfs).and_then(SquashfsCompression::name), Some("zstd"));
        let legacy = [crate::LAUNCH_SCRIPT, &squashfs].concat();
        assert_eq!(probe(&legacy), Some(Format::Squashfs { offset: 31 }));
        let mut ext3 = vec![0; PROBE_LEN];
        ext3[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(probe(&ext3), Some(Format::Ext3 { offset: 0 }));
        for len in 0..22 {
            assert_eq!(probe(&squashfs[..len]), None);
        }
        assert_eq!(probe(&[0; PROBE_LEN]), None);
    }
}
