//! Descriptors: where a data object is and what it is.

use std::fmt;

use crate::{Arch, DataType, FsType, PartitionKind, ReadError, header::field};

pub(crate) const DESCRIPTOR_LEN: usize = 585;
pub(crate) const NAME_LEN: usize = 128;
pub(crate) const EXTRA_LEN: usize = 384;
pub(crate) const EXTRA_AT: usize = 201;
const GROUP_MASK: u32 = 0xF000_0000;
const _: () = assert!(EXTRA_AT + EXTRA_LEN == DESCRIPTOR_LEN);

/// What a data object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    /// Nothing.
    #[default]
    None,
    /// Another object, by id.
    Object(u32),
    /// All objects of a group.
    Group(u32),
}

impl Link {
    pub(crate) const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::None,
            raw if raw & GROUP_MASK == GROUP_MASK => Self::Group(raw & !GROUP_MASK),
            raw => Self::Object(raw),
        }
    }

    pub(crate) const fn raw(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Object(id) => id,
            Self::Group(group) => group | GROUP_MASK,
        }
    }
}

/// As `sif info` shows it: `NONE`, `4`, `1 (G)`.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("NONE"),
            Self::Object(id) => write!(f, "{id}"),
            Self::Group(group) => write!(f, "{group} (G)"),
        }
    }
}

/// What a partition's descriptor says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Its file system.
    pub fs: FsType,
    /// What it is for.
    pub kind: PartitionKind,
    /// What its programs run on.
    pub arch: Arch,
}

/// Locates a data object; all its bytes are in the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub(crate) raw: Box<[u8; DESCRIPTOR_LEN]>,
    offset: u64,
    size: u64,
}

impl Descriptor {
    /// Decodes entry `index` of the table; `None` if it is not used.
    pub(crate) fn decode(raw: &[u8; DESCRIPTOR_LEN], index: u64, file_len: u64) -> Result<Option<Self>, ReadError> {
        if raw[4] == 0 {
            return Ok(None);
        }
        let bad = |field, value| ReadError::BadDescriptor { index, field, value };
        let number = |at: usize, name: &'static str| {
            let value = i64::from_le_bytes(field(raw, at));
            u64::try_from(value).map_err(|_| bad(name, value))
        };
        let (offset, size) = (number(17, "offset")?, number(25, "size")?);
        number(33, "size with padding")?;
        let descriptor = Self { raw: Box::new(*raw), offset, size };
        if descriptor.id() == 0 {
            return Err(bad("id", 0));
        }
        let group = u32::from_le_bytes(field(raw, 9));
        if group & GROUP_MASK != GROUP_MASK {
            return Err(bad("group", i64::from(group)));
        }
        // Both are below 2⁶³, so the sum cannot overflow.
        let end = offset + size;
        if end > file_len {
            return Err(ReadError::OutOfBounds { id: descriptor.id(), end, file_len });
        }
        Ok(Some(descriptor))
    }

    /// What the object is.
    pub fn data_type(&self) -> DataType {
        DataType::from_raw(i32::from_le_bytes(field(&*self.raw, 0)))
    }

    /// Id of the object, from 1.
    pub fn id(&self) -> u32 {
        u32::from_le_bytes(field(&*self.raw, 5))
    }

    /// Group of the object, if it is in one.
    pub fn group(&self) -> Option<u32> {
        let group = u32::from_le_bytes(field(&*self.raw, 9)) & !GROUP_MASK;
        (group != 0).then_some(group)
    }

    /// What the object belongs to.
    pub fn link(&self) -> Link {
        Link::from_raw(u32::from_le_bytes(field(&*self.raw, 13)))
    }

    /// First byte of the object in the file.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the object.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// First byte after the object.
    pub const fn end(&self) -> u64 {
        self.offset + self.size
    }

    /// Unix seconds, or [`crate::ZERO_TIME`].
    pub fn created(&self) -> i64 {
        i64::from_le_bytes(field(&*self.raw, 41))
    }

    /// Unix seconds, or [`crate::ZERO_TIME`].
    pub fn modified(&self) -> i64 {
        i64::from_le_bytes(field(&*self.raw, 49))
    }

    /// Name of the object as bytes, perhaps empty.
    pub fn name(&self) -> &[u8] {
        let name = &self.raw[73..73 + NAME_LEN];
        name.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// What else the descriptor says; its meaning depends on the type.
    pub fn extra(&self) -> &[u8] {
        &self.raw[EXTRA_AT..]
    }

    /// The entry exactly as it is in the file, which is what signatures cover.
    pub fn raw(&self) -> &[u8; DESCRIPTOR_LEN] {
        &self.raw
    }

    /// What is said about a partition, if this is one.
    pub fn partition(&self) -> Option<Partition> {
        let extra = self.extra();
        (self.data_type() == DataType::Partition).then(|| Partition {
            fs: FsType::from_raw(i32::from_le_bytes(field(extra, 0))),
            kind: PartitionKind::from_raw(i32::from_le_bytes(field(extra, 4))),
            arch: Arch::from_raw(field(extra, 8)),
        })
    }

    /// Says whether this is the partition to run.
    pub fn is_primary(&self) -> bool {
        self.partition().is_some_and(|partition| partition.kind == PartitionKind::Primary)
    }

    /// The type with its particulars, as `sif list` shows it, such as
    /// `FS (Squashfs/*System/amd64)`.
    pub fn type_label(&self) -> String {
        let number = |at: usize| i32::from_le_bytes(field(self.extra(), at));
        let name = |names: &[&'static str], number: i32, unknown: &'static str| {
            usize::try_from(number)
                .ok()
                .and_then(|number| number.checked_sub(1))
                .and_then(|at| names.get(at).copied())
                .unwrap_or(unknown)
        };
        let data_type = self.data_type();
        match data_type {
            DataType::Partition => match self.partition() {
                Some(Partition { fs, kind, arch }) => format!("{data_type} ({fs}/{kind}/{arch})"),
                None => data_type.to_string(),
            },
            DataType::Signature => {
                let hashes = ["SHA-256", "SHA-384", "SHA-512", "BLAKE2s-256", "BLAKE2b-256"];
                format!("{data_type} ({})", name(&hashes, number(0), "Unknown hash-type"))
            }
            DataType::CryptoMessage => {
                let format = name(&["OpenPGP", "PEM"], number(0), "Unknown format-type");
                let message = match number(4) {
                    0x100 => "Clear Signature",
                    0x200 => "RSA-OAEP",
                    _ => "Unknown message-type",
                };
                format!("{data_type} ({format}/{message})")
            }
            DataType::Sbom => {
                let formats = [
                    "cyclonedx-json",
                    "cyclonedx-xml",
                    "github-json",
                    "spdx-json",
                    "spdx-rdf",
                    "spdx-tag-value",
                    "spdx-yaml",
                    "syft-json",
                ];
                format!("{data_type} ({})", name(&formats, number(0), "unknown"))
            }
            _ => data_type.to_string(),
        }
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptor")
            .field("id", &self.id())
            .field("type", &self.type_label())
            .field("group", &self.group())
            .field("link", &self.link())
            .field("offset", &self.offset)
            .field("size", &self.size)
            .field("name", &self.name().escape_ascii().to_string())
            .finish()
    }
}

/// Everything that goes into a table entry.
pub(crate) struct Fields<'a> {
    pub data_type: DataType,
    pub id: u32,
    pub group: u32,
    pub link: Link,
    pub offset: u64,
    pub size: u64,
    pub padded_size: u64,
    pub created: i64,
    pub modified: i64,
    pub name: &'a [u8],
    pub extra: &'a [u8],
}

impl Fields<'_> {
    /// # Panics
    /// If name or extra are too long, which the builder has checked.
    pub(crate) fn encode(&self) -> [u8; DESCRIPTOR_LEN] {
        let mut out = [0; DESCRIPTOR_LEN];
        out[..4].copy_from_slice(&self.data_type.raw().to_le_bytes());
        out[4] = 1;
        out[5..9].copy_from_slice(&self.id.to_le_bytes());
        out[9..13].copy_from_slice(&(self.group | GROUP_MASK).to_le_bytes());
        out[13..17].copy_from_slice(&self.link.raw().to_le_bytes());
        out[17..25].copy_from_slice(&self.offset.to_le_bytes());
        out[25..33].copy_from_slice(&self.size.to_le_bytes());
        out[33..41].copy_from_slice(&self.padded_size.to_le_bytes());
        out[41..49].copy_from_slice(&self.created.to_le_bytes());
        out[49..57].copy_from_slice(&self.modified.to_le_bytes());
        out[73..73 + self.name.len()].copy_from_slice(self.name);
        out[EXTRA_AT..EXTRA_AT + self.extra.len()].copy_from_slice(self.extra);
        out
    }
}
