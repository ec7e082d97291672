//! Makes a new SIF around a partition that is written in place.
//!
//! The builder does no I/O. Small objects are given to it whole; for a
//! partition it says where the bytes must go and is told the size when they
//! are there. What remains to be written comes out at the end.

use sctl_common::Digest;

use crate::{
    Arch, DataType, FsType, Header, LAUNCH_SCRIPT, Link, PartitionKind, SifId, WriteError, ZERO_TIME,
    descriptor::{DESCRIPTOR_LEN, Fields, NAME_LEN},
    header::{LAUNCH_LEN, TABLE_OFFSET},
};

/// Partitions start at multiples of this, so that they can be mapped.
const PARTITION_ALIGNMENT: u64 = 4096;

/// Capacities above this serve nobody; the reader refuses them too.
pub(crate) const MAX_CAPACITY: u32 = 65_536;

/// How a new SIF is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// First line of the file, at most 31 bytes, or nothing.
    pub launch_script: Vec<u8>,
    /// Id of the file.
    pub id: SifId,
    /// Creation and modification time of the file and all its objects: Unix
    /// seconds, or [`ZERO_TIME`].
    pub time: i64,
    /// Entries of the descriptor table.
    pub capacity: u32,
}

impl Options {
    /// Entries of the descriptor table that every writer makes.
    pub const DEFAULT_CAPACITY: u32 = 48;

    /// A file that starts itself, with this id and time.
    pub fn new(id: SifId, time: i64) -> Self {
        Self { launch_script: LAUNCH_SCRIPT.to_vec(), id, time, capacity: Self::DEFAULT_CAPACITY }
    }

    /// A file without id and time.
    pub fn deterministic() -> Self {
        Self::new(SifId::NIL, ZERO_TIME)
    }
}

/// What a descriptor holds besides the common fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Extra {
    /// Nothing.
    #[default]
    None,
    /// Hash number and fingerprint of the signing key (zeros for none).
    Signature {
        /// 1 for SHA-256.
        hash: i32,
        /// The 20 bytes of the primary key's fingerprint.
        fingerprint: Option<[u8; 20]>,
    },
    /// Format and kind of a cryptographic message.
    CryptoMessage {
        /// 1 OpenPGP, 2 PEM.
        format: i32,
        /// 0x100 clear signature, 0x200 RSA-OAEP.
        message: i32,
    },
    /// Number of a bill of materials' format.
    Sbom(i32),
    /// Digest of an OCI index or blob.
    Digest(Digest),
}

impl Extra {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Signature { hash, fingerprint } => {
                [&hash.to_le_bytes()[..], &fingerprint.unwrap_or_default()[..]].concat()
            }
            Self::CryptoMessage { format, message } => [format.to_le_bytes(), message.to_le_bytes()].concat(),
            Self::Sbom(format) => format.to_le_bytes().to_vec(),
            Self::Digest(digest) => digest.to_string().into_bytes(),
        }
    }
}

/// A data object to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewObject {
    /// What it is; partitions have their own calls.
    pub data_type: DataType,
    /// Name, at most 128 bytes, perhaps empty.
    pub name: Vec<u8>,
    /// Group, or 0 for none.
    pub group: u32,
    /// What it belongs to.
    pub link: Link,
    /// What else its type needs.
    pub extra: Extra,
}

impl NewObject {
    /// An object of group 1 that belongs to nothing.
    pub fn new(data_type: DataType, name: &str) -> Self {
        Self { data_type, name: name.as_bytes().to_vec(), group: 1, link: Link::None, extra: Extra::None }
    }
}

/// A partition whose bytes are being written.
#[derive(Debug)]
#[must_use = "a partition that was started has to be finished"]
pub struct PartitionSlot {
    object: NewObject,
    fs: FsType,
    kind: PartitionKind,
    /// Where its first byte goes in the file: a multiple of 4,096.
    pub offset: u64,
}

/// Bytes and where they go in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// From the start of the file.
    pub offset: u64,
    /// What to write there.
    pub bytes: Vec<u8>,
}

/// Everything of a finished SIF but the bytes of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// What to write, in ascending order; partitions lie between the pieces.
    pub pieces: Vec<Piece>,
    /// Length of the file.
    pub file_size: u64,
}

struct Placed {
    object: NewObject,
    extra: Vec<u8>,
    offset: u64,
    size: u64,
    padded_size: u64,
    /// `None` for a partition, whose bytes the caller has written.
    data: Option<Vec<u8>>,
}

/// Makes a new SIF.
pub struct Builder {
    options: Options,
    placed: Vec<Placed>,
    arch: Arch,
    has_primary: bool,
    is_open: bool,
    end: u64,
}

impl Builder {
    /// Starts an empty file.
    ///
    /// # Errors
    /// [`WriteError`] if launch script or capacity are out of range.
    pub fn new(options: Options) -> Result<Self, WriteError> {
        // The field ends with a NUL.
        if options.launch_script.len() >= LAUNCH_LEN {
            return Err(WriteError::LaunchScript { len: options.launch_script.len() });
        }
        if options.capacity == 0 || options.capacity > MAX_CAPACITY {
            return Err(WriteError::BadCapacity { capacity: options.capacity });
        }
        let end = TABLE_OFFSET + u64::from(options.capacity) * DESCRIPTOR_LEN as u64;
        Ok(Self { options, placed: Vec::new(), arch: Arch::UNKNOWN, has_primary: false, is_open: false, end })
    }

    /// Adds a small object after the others and returns its id.
    ///
    /// # Errors
    /// [`WriteError`] if name or group are out of range, the table is full,
    /// or a partition is open.
    pub fn add(&mut self, object: NewObject, data: Vec<u8>) -> Result<u32, WriteError> {
        self.check(&object)?;
        let extra = object.extra.encode();
        let offset = self.end;
        let size = u64::try_from(data.len()).map_err(|_| WriteError::TooLarge)?;
        self.place(Placed { object, extra, offset, size, padded_size: size, data: Some(data) })
    }

    /// Says where a partition goes; nothing else can be added until
    /// [`Builder::finish_partition`].
    ///
    /// # Errors
    /// [`WriteError`] as for [`Builder::add`], and if there is a primary
    /// partition already.
    pub fn start_partition(&mut self, fs: FsType, kind: PartitionKind) -> Result<PartitionSlot, WriteError> {
        let object = NewObject::new(DataType::Partition, "");
        self.check(&object)?;
        if kind == PartitionKind::Primary && self.has_primary {
            return Err(WriteError::SecondPrimary);
        }
        let offset = self.end.checked_next_multiple_of(PARTITION_ALIGNMENT).ok_or(WriteError::TooLarge)?;
        self.is_open = true;
        Ok(PartitionSlot { object, fs, kind, offset })
    }

    /// Records that a partition's `size` bytes are in their place, and
    /// returns its id.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] past the format's offsets.
    pub fn finish_partition(&mut self, slot: PartitionSlot, size: u64, arch: Arch) -> Result<u32, WriteError> {
        let PartitionSlot { object, fs, kind, offset } = slot;
        self.is_open = false;
        if kind == PartitionKind::Primary {
            self.has_primary = true;
            self.arch = arch;
        }
        let extra = [&fs.raw().to_le_bytes()[..], &kind.raw().to_le_bytes(), &arch.raw()].concat();
        let padded_size = size.checked_add(offset - self.end).ok_or(WriteError::TooLarge)?;
        self.place(Placed { object, extra, offset, size, padded_size, data: None })
    }

    fn check(&self, object: &NewObject) -> Result<(), WriteError> {
        if self.is_open {
            return Err(WriteError::PartitionOpen);
        }
        if object.name.len() > NAME_LEN {
            return Err(WriteError::Name { len: object.name.len() });
        }
        if object.group >= 0x1000_0000 {
            return Err(WriteError::Group { group: object.group });
        }
        if self.placed.len() >= self.options.capacity as usize {
            return Err(WriteError::Full { capacity: self.options.capacity });
        }
        Ok(())
    }

    fn place(&mut self, placed: Placed) -> Result<u32, WriteError> {
        let end = placed.offset.checked_add(placed.size).filter(|&end| i64::try_from(end).is_ok());
        self.end = end.ok_or(WriteError::TooLarge)?;
        self.placed.push(placed);
        // At most the capacity, which is far below.
        Ok(u32::try_from(self.placed.len()).unwrap_or(u32::MAX))
    }

    /// Gives out everything but the partitions' bytes.
    ///
    /// # Errors
    /// [`WriteError::PartitionOpen`] if a partition was not finished.
    pub fn finish(self) -> Result<Layout, WriteError> {
        if self.is_open {
            return Err(WriteError::PartitionOpen);
        }
        let Options { launch_script, id, time, capacity } = self.options;
        let table_size = u64::from(capacity) * DESCRIPTOR_LEN as u64;
        let data_offset = TABLE_OFFSET + table_size;
        let mut launch = [0; LAUNCH_LEN];
        launch[..launch_script.len()].copy_from_slice(&launch_script);
        let header = Header {
            launch_script: launch,
            arch: self.arch,
            id,
            created: time,
            modified: time,
            descriptors_free: u64::from(capacity) - self.placed.len() as u64,
            descriptors_total: u64::from(capacity),
            table_offset: TABLE_OFFSET,
            table_size,
            data_offset,
            data_size: self.end - data_offset,
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize(TABLE_OFFSET as usize, 0);
        for (placed, id) in self.placed.iter().zip(1..) {
            let Placed { object, extra, offset, size, padded_size, .. } = placed;
            let fields = Fields {
                data_type: object.data_type,
                id,
                group: object.group,
                link: object.link,
                offset: *offset,
                size: *size,
                padded_size: *padded_size,
                created: time,
                modified: time,
                name: &object.name,
                extra,
            };
            bytes.extend_from_slice(&fields.encode());
        }
        // At most 65,536 entries of 585 bytes.
        bytes.resize(data_offset as usize, 0);
        let mut pieces = Vec::new();
        let mut start = 0;
        for placed in self.placed {
            match placed.data {
                Some(data) => bytes.extend_from_slice(&data),
                None => {
                    // Less than one alignment.
                    let padding = (placed.padded_size - placed.size) as usize;
                    bytes.resize(bytes.len() + padding, 0);
                    pieces.push(Piece { offset: start, bytes: std::mem::take(&mut bytes) });
                    start = placed.offset + placed.size;
                }
            }
        }
        if !bytes.is_empty() {
            pieces.push(Piece { offset: start, bytes });
        }
        Ok(Layout { pieces, file_size: self.end })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The file with `partitions` (offset, bytes) written where they belong.
    pub(crate) fn assemble(layout: &Layout, partitions: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut file = vec![0; usize::try_from(layout.file_size).unwrap()];
        let pieces = layout.pieces.iter().map(|piece| (piece.offset, &piece.bytes));
        for (offset, bytes) in pieces.chain(partitions.iter().map(|(offset, bytes)| (*offset, bytes))) {
            let start = usize::try_from(offset).unwrap();
            file[start..start + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    fn empty() -> Options {
        Options { launch_script: Vec::new(), ..Options::deterministic() }
    }

    /// A SIF as a pull makes it: definition, metadata, partition.
    pub(crate) fn pulled_sif() -> Vec<u8> {
        let mut builder = Builder::new(Options::deterministic()).unwrap();
        let text = b"bootstrap: docker\nfrom: alpine\n\n";
        builder.add(NewObject::new(DataType::DefFile, ""), text.to_vec()).unwrap();
        builder.add(NewObject::new(DataType::GenericJson, "inspect-metadata.json"), b"{}".to_vec()).unwrap();
        let slot = builder.start_partition(FsType::Squashfs, PartitionKind::Primary).unwrap();
        let offset = slot.offset;
        builder.finish_partition(slot, 4096, Arch::from_name("amd64").unwrap()).unwrap();
        assemble(&builder.finish().unwrap(), &[(offset, vec![0x5A; 4096])])
    }

    #[test]
    fn files_equal_those_of_the_established_writer() {
        let one = |options: Options, object: NewObject, data: &[u8]| {
            let mut builder = Builder::new(options).unwrap();
            builder.add(object, data.to_vec()).unwrap();
            assemble(&builder.finish().unwrap(), &[])
        };
        let bare = |options: Options| assemble(&Builder::new(options).unwrap().finish().unwrap(), &[]);
        let id = [0x3f, 0xa8, 0x02, 0xcc, 0x35, 0x8b, 0x45, 0xe3, 0xbc, 0xc0, 0x69, 0xdc, 0x7a, 0x45, 0xf9, 0xf8];
        let json = NewObject::new(DataType::GenericJson, "data.json");
        let mut message = NewObject::new(DataType::CryptoMessage, "");
        message.extra = Extra::CryptoMessage { format: 1, message: 0x100 };
        let cases = [
            ("T1", bare(empty()), "1987d6041b278a3a87810475ce3bbe5416bc0301471c29c1e2f020579a61f815"),
            (
                "T2",
                bare(Options { id: SifId::from_bytes(id), ..empty() }),
                "e69ae87e8234646a5cea26af912dbdf40e28b8ac4917f591eb66f94af3073b6e",
            ),
            ("T3", bare(Options::deterministic()), "d6d174dbb5bbe32a1a4b77eab0d565912633489afc01b6467ec59b832464bc89"),
            (
                "T4",
                one(empty(), json.clone(), b"{}"),
                "710a9262f63f5fbde75973110767922d42fdf26673ed19c6093b44da0fcbbef9",
            ),
            (
                "T5",
                one(Options { time: 1_593_475_316, ..empty() }, json, b"{}"),
                "848041a0fab06236b18b55b4bf1f9df4763033b0494f80bcb566e1ba03476140",
            ),
            (
                "T6",
                one(empty(), message, &[0xfe, 0xfe, 0xf0, 0xf0]),
                "da3d848c3b6fe26ee6340cdc731865c9d273a233cddb62794aecd132bfea71a4",
            ),
            ("T7", pulled_sif(), "84f8a8cd3cd5ce5b126f46bb8f970117bd7fd30f3bb5f9248cf1659e2a87c61f"),
        ];
        for (name, file, sha256) in cases {
            assert_eq!(Digest::of(&file).hex(), sha256, "{name} ({} bytes)", file.len());
        }
    }

    #[test]
    fn objects_after_a_partition_follow_it_without_padding() {
        let mut builder = Builder::new(empty()).unwrap();
        let slot = builder.start_partition(FsType::Squashfs, PartitionKind::Primary).unwrap();
        assert_eq!(slot.offset, 32_768);
        assert_eq!(builder.add(NewObject::new(DataType::Generic, ""), vec![1]), Err(WriteError::PartitionOpen));
        builder.finish_partition(slot, 5, Arch::UNKNOWN).unwrap();
        assert_eq!(builder.add(NewObject::new(DataType::Generic, "x"), vec![7; 3]), Ok(2));
        assert!(matches!(
            builder.start_partition(FsType::Squashfs, PartitionKind::Primary),
            Err(WriteError::SecondPrimary)
        ));
        let slot = builder.start_partition(FsType::Ext3, PartitionKind::Overlay).unwrap();
        assert_eq!(slot.offset, 36_864);
        builder.finish_partition(slot, 10, Arch::UNKNOWN).unwrap();
        let layout = builder.finish().unwrap();
        assert_eq!(layout.file_size, 36_874);
        let file = assemble(&layout, &[(32_768, vec![b'p'; 5]), (36_864, vec![b'q'; 10])]);
        assert_eq!(&file[32_768..32_777], b"ppppp\x07\x07\x07\0");
        let sif = crate::SifFile::read(&mut std::io::Cursor::new(&file)).unwrap();
        let places: Vec<_> = sif.descriptors().iter().map(|d| (d.id(), d.offset(), d.size())).collect();
        assert_eq!(places, [(1, 32_768, 5), (2, 32_773, 3), (3, 36_864, 10)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let options = |len, capacity| Options { launch_script: vec![b'x'; len], capacity, ..empty() };
        assert!(matches!(Builder::new(options(32, 48)), Err(WriteError::LaunchScript { len: 32 })));
        assert!(matches!(Builder::new(options(31, 0)), Err(WriteError::BadCapacity { .. })));
        let mut builder = Builder::new(options(31, 1)).unwrap();
        let long = NewObject::new(DataType::Generic, &"n".repeat(129));
        assert_eq!(builder.add(long, Vec::new()), Err(WriteError::Name { len: 129 }));
        let group = NewObject { group: 1 << 28, ..NewObject::new(DataType::Generic, "") };
        assert_eq!(builder.add(group, Vec::new()), Err(WriteError::Group { group: 1 << 28 }));
        assert_eq!(builder.add(NewObject::new(DataType::Generic, &"n".repeat(128)), Vec::new()), Ok(1));
        let more = NewObject::new(DataType::Generic, "");
        assert_eq!(builder.add(more, Vec::new()), Err(WriteError::Full { capacity: 1 }));
        let mut open = Builder::new(empty()).unwrap();
        let slot = open.start_partition(FsType::Squashfs, PartitionKind::Data).unwrap();
        assert_eq!(open.finish_partition(slot, u64::MAX, Arch::UNKNOWN), Err(WriteError::TooLarge));
    }
}
