//! The format's numbered kinds: of objects, file systems, partitions and
//! processors. Numbers that are not known are kept, so that files of later
//! writers can be listed.

use std::fmt;

/// What a data object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// Definition file text.
    DefFile,
    /// Environment variables.
    EnvVars,
    /// Labels.
    Labels,
    /// A file system.
    Partition,
    /// A signature.
    Signature,
    /// A JSON document.
    GenericJson,
    /// Anything.
    Generic,
    /// A key or another cryptographic message.
    CryptoMessage,
    /// A software bill of materials.
    Sbom,
    /// The root index of an OCI image inside the SIF.
    OciRootIndex,
    /// A blob of an OCI image inside the SIF.
    OciBlob,
    /// A number that is not known.
    Other(i32),
}

impl DataType {
    /// From the number on disk.
    pub const fn from_raw(raw: i32) -> Self {
        match raw {
            0x4001 => Self::DefFile,
            0x4002 => Self::EnvVars,
            0x4003 => Self::Labels,
            0x4004 => Self::Partition,
            0x4005 => Self::Signature,
            0x4006 => Self::GenericJson,
            0x4007 => Self::Generic,
            0x4008 => Self::CryptoMessage,
            0x4009 => Self::Sbom,
            0x400A => Self::OciRootIndex,
            0x400B => Self::OciBlob,
            other => Self::Other(other),
        }
    }

    /// The number on disk.
    pub const fn raw(self) -> i32 {
        match self {
            Self::DefFile => 0x4001,
            Self::EnvVars => 0x4002,
            Self::Labels => 0x4003,
            Self::Partition => 0x4004,
            Self::Signature => 0x4005,
            Self::GenericJson => 0x4006,
            Self::Generic => 0x4007,
            Self::CryptoMessage => 0x4008,
            Self::Sbom => 0x4009,
            Self::OciRootIndex => 0x400A,
            Self::OciBlob => 0x400B,
            Self::Other(raw) => raw,
        }
    }
}

/// As `sif list` shows it.
impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DefFile => "Def.FILE",
            Self::EnvVars => "Env.Vars",
            Self::Labels => "JSON.Labels",
            Self::Partition => "FS",
            Self::Signature => "Signature",
            Self::GenericJson => "JSON.Generic",
            Self::Generic => "Generic/Raw",
            Self::CryptoMessage => "Cryptographic Message",
            Self::Sbom => "SBOM",
            Self::OciRootIndex => "OCI.RootIndex",
            Self::OciBlob => "OCI.Blob",
            Self::Other(_) => "Unknown data-type",
        })
    }
}

/// What file system a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FsType {
    /// squashfs.
    Squashfs,
    /// ext3.
    Ext3,
    /// An archive.
    Archive,
    /// Raw bytes.
    Raw,
    /// squashfs inside a LUKS2 volume.
    EncryptedSquashfs,
    /// squashfs of an encrypted squashfs.
    GocryptfsSquashfs,
    /// A number that is not known.
    Other(i32),
}

impl FsType {
    /// From the number on disk.
    pub const fn from_raw(raw: i32) -> Self {
        match raw {
            1 => Self::Squashfs,
            2 => Self::Ext3,
            3 => Self::Archive,
            4 => Self::Raw,
            5 => Self::EncryptedSquashfs,
            6 => Self::GocryptfsSquashfs,
            other => Self::Other(other),
        }
    }

    /// The number on disk.
    pub const fn raw(self) -> i32 {
        match self {
            Self::Squashfs => 1,
            Self::Ext3 => 2,
            Self::Archive => 3,
            Self::Raw => 4,
            Self::EncryptedSquashfs => 5,
            Self::GocryptfsSquashfs => 6,
            Self::Other(raw) => raw,
        }
    }
}

/// As `sif list` shows it.
impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Squashfs => "Squashfs",
            Self::Ext3 => "Ext3",
            Self::Archive => "Archive",
            Self::Raw => "Raw",
            Self::EncryptedSquashfs => "Encrypted squashfs",
            Self::GocryptfsSquashfs => "Gocryptfs squashfs",
            Self::Other(_) => "Unknown fs-type",
        })
    }
}

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitionKind {
    /// A root file system, but not the one to run.
    System,
    /// The root file system to run.
    Primary,
    /// Data.
    Data,
    /// A writable overlay.
    Overlay,
    /// A number that is not known.
    Other(i32),
}

impl PartitionKind {
    /// From the number on disk.
    pub const fn from_raw(raw: i32) -> Self {
        match raw {
            1 => Self::System,
            2 => Self::Primary,
            3 => Self::Data,
            4 => Self::Overlay,
            other => Self::Other(other),
        }
    }

    /// The number on disk.
    pub const fn raw(self) -> i32 {
        match self {
            Self::System => 1,
            Self::Primary => 2,
            Self::Data => 3,
            Self::Overlay => 4,
            Self::Other(raw) => raw,
        }
    }
}

/// As `sif list` shows it.
impl fmt::Display for PartitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Primary => "*System",
            Self::Data => "Data",
            Self::Overlay => "Overlay",
            Self::Other(_) => "Unknown part-type",
        })
    }
}

/// A processor architecture that the format can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Arch(u8);

/// Go's names, by the format's number; number 0 is no architecture.
const ARCHES: [&str; 14] = [
    "unknown", "386", "amd64", "arm", "arm64", "ppc64", "ppc64le", "mips", "mipsle", "mips64", "mips64le", "s390x",
    "riscv64", "loong64",
];

impl Arch {
    /// No architecture, or one that is not known.
    pub const UNKNOWN: Self = Self(0);

    /// From Go's name, such as `amd64`.
    pub fn from_name(name: &str) -> Option<Self> {
        let number = ARCHES.iter().skip(1).position(|known| *known == name)?;
        u8::try_from(number + 1).ok().map(Self)
    }

    /// From the class, byte order and machine of an ELF header.
    ///
    /// # Source
    /// The `e_machine` numbers of the System V ABI.
    pub fn from_elf(is_64_bit: bool, is_little_endian: bool, machine: u16) -> Option<Self> {
        Self::from_name(match (machine, is_64_bit, is_little_endian) {
            (3, false, true) => "386",
            (62, _, true) => "amd64",
            (40, false, _) => "arm",
            (183, true, true) => "arm64",
            (21, true, false) => "ppc64",
            (21, true, true) => "ppc64le",
            (8, false, false) => "mips",
            (8, false, true) => "mipsle",
            (8, true, false) => "mips64",
            (8, true, true) => "mips64le",
            (22, true, false) => "s390x",
            (243, true, true) => "riscv64",
            (258, true, true) => "loong64",
            _ => return None,
        })
    }

    /// Go's name, or `unknown`.
    pub fn name(self) -> &'static str {
        ARCHES.get(usize::from(self.0)).copied().unwrap_or(ARCHES[0])
    }

    pub(crate) fn from_raw(raw: [u8; 3]) -> Self {
        match raw {
            [tens @ b'0'..=b'9', ones @ b'0'..=b'9', 0] => {
                let number = (tens - b'0') * 10 + (ones - b'0');
                if usize::from(number) < ARCHES.len() { Self(number) } else { Self::UNKNOWN }
            }
            _ => Self::UNKNOWN,
        }
    }

    pub(crate) const fn raw(self) -> [u8; 3] {
        [b'0' + self.0 / 10, b'0' + self.0 % 10, 0]
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for raw in 0x4000..0x4010 {
            assert_eq!(DataType::from_raw(raw).raw(), raw);
        }
        for raw in -1..8 {
            assert_eq!(FsType::from_raw(raw).raw(), raw);
            assert_eq!(PartitionKind::from_raw(raw).raw(), raw);
        }
        for name in &ARCHES[1..] {
            let arch = Arch::from_name(name).unwrap();
            assert_eq!(Arch::from_raw(arch.raw()), arch);
            assert_eq!(arch.name(), *name);
        }
        assert_eq!(Arch::from_name("amd64").unwrap().raw(), *b"02\0");
        assert_eq!(Arch::from_name("loong64").unwrap().raw(), *b"13\0");
        assert_eq!(Arch::from_name("unknown"), None);
        assert_eq!(Arch::from_raw(*b"14\0"), Arch::UNKNOWN);
        assert_eq!(Arch::from_raw(*b"021"), Arch::UNKNOWN);
    }
}
