//! Reads the header and the descriptors of a SIF, and small objects.

use std::io::{BufReader, Read, Seek, SeekFrom};

use crate::{
    DataType, Descriptor, Header, ReadError,
    builder::MAX_CAPACITY,
    descriptor::DESCRIPTOR_LEN,
    header::HEADER_LEN,
    inspect::{INSPECT_METADATA, InspectMetadata, OCI_CONFIG},
};

/// Longest object that is read into memory as text or JSON.
pub const MAX_METADATA_BYTES: u64 = 16 << 20;

/// Bytes read at once from the descriptor table.
const TABLE_BUFFER: usize = 32 << 10;

/// Header and descriptors of a SIF, checked against the file's length and
/// against each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SifFile {
    header: Header,
    descriptors: Vec<Descriptor>,
}

impl SifFile {
    /// Reads header and descriptor table.
    ///
    /// Whatever the file holds, this takes memory for its used descriptors
    /// only, and every object that it returns lies inside the file, apart
    /// from header, table and all other objects.
    ///
    /// # Errors
    /// [`ReadError`] says what is wrong with the file.
    pub fn read<F: Read + Seek>(file: &mut F) -> Result<Self, ReadError> {
        let io = |what| move |source| ReadError::Io { what, source };
        let file_len = file.seek(SeekFrom::End(0)).map_err(io("the length of the SIF"))?;
        if file_len < HEADER_LEN as u64 {
            return Err(ReadError::Truncated { what: "the SIF header", end: HEADER_LEN as u64, file_len });
        }
        let mut bytes = [0; HEADER_LEN];
        read_at(file, 0, &mut bytes).map_err(io("the SIF header"))?;
        let header = Header::decode(&bytes)?;
        let total = header.descriptors_total;
        if total > u64::from(MAX_CAPACITY) {
            return Err(ReadError::TooManyDescriptors { found: total, limit: u64::from(MAX_CAPACITY) });
        }
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        if header.table_offset < HEADER_LEN as u64 {
            return Err(ReadError::BadHeader { field: "descriptor table offset", value: signed(header.table_offset) });
        }
        // Bounded by the capacity's limit, and both below 2⁶³.
        let table_end = header.table_offset + total * DESCRIPTOR_LEN as u64;
        if table_end > file_len {
            return Err(ReadError::Truncated { what: "the descriptor table", end: table_end, file_len });
        }
        file.seek(SeekFrom::Start(header.table_offset)).map_err(io("the descriptor table"))?;
        let mut descriptors: Vec<Descriptor> = Vec::new();
        let mut raw = [0; DESCRIPTOR_LEN];
        // The usual table fits, so it costs one call.
        let mut table = BufReader::with_capacity(TABLE_BUFFER, &mut *file);
        for index in 0..total {
            table.read_exact(&mut raw).map_err(io("the descriptor table"))?;
            descriptors.extend(Descriptor::decode(&raw, index, file_len)?);
        }
        check_apart(&descriptors, header.table_offset..table_end)?;
        let mut primaries = descriptors.iter().filter(|descriptor| descriptor.is_primary());
        if let (Some(first), Some(second)) = (primaries.next(), primaries.next()) {
            return Err(ReadError::TwoPrimaries { first: first.id(), second: second.id() });
        }
        Ok(Self { header, descriptors })
    }

    /// The header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The used descriptors, in the table's order.
    pub fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    /// The object with this id.
    pub fn by_id(&self, id: u32) -> Option<&Descriptor> {
        self.descriptors.iter().find(|descriptor| descriptor.id() == id)
    }

    /// The first object of this type and name.
    pub fn by_name(&self, data_type: DataType, name: &str) -> Option<&Descriptor> {
        self.of_type(data_type).find(|descriptor| descriptor.name() == name.as_bytes())
    }

    /// All objects of this type, in the table's order.
    pub fn of_type(&self, data_type: DataType) -> impl Iterator<Item = &Descriptor> {
        self.descriptors.iter().filter(move |descriptor| descriptor.data_type() == data_type)
    }

    /// The partition to run.
    pub fn primary_partition(&self) -> Option<&Descriptor> {
        self.descriptors.iter().find(|descriptor| descriptor.is_primary())
    }

    /// Reads a whole object, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// [`ReadError::ObjectTooLarge`] or [`ReadError::Io`].
    pub fn read_object<F: Read + Seek>(
        &self,
        file: &mut F,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, ReadError> {
        let (id, size) = (descriptor.id(), descriptor.size());
        let too_large = ReadError::ObjectTooLarge { id, size, limit };
        let Some(len) = usize::try_from(size).ok().filter(|_| size <= limit) else { return Err(too_large) };
        let mut bytes = vec![0; len];
        read_at(file, descriptor.offset(), &mut bytes)
            .map_err(|source| ReadError::Io { what: "a data object of the SIF", source })?;
        Ok(bytes)
    }

    /// What `inspect` shows, if the file was made with it; files of writers
    /// before 3.7 were not.
    ///
    /// # Errors
    /// As [`SifFile::read_object`], and [`ReadError::Json`].
    pub fn inspect_metadata<F: Read + Seek>(&self, file: &mut F) -> Result<Option<InspectMetadata>, ReadError> {
        let Some(descriptor) = self.by_name(DataType::GenericJson, INSPECT_METADATA) else { return Ok(None) };
        let bytes = self.read_object(file, descriptor, MAX_METADATA_BYTES)?;
        InspectMetadata::parse(&bytes).map(Some).map_err(|source| ReadError::Json { id: descriptor.id(), source })
    }

    /// The `config` object of the OCI image that the file was made from.
    ///
    /// # Errors
    /// As [`SifFile::read_object`].
    pub fn oci_config<F: Read + Seek>(&self, file: &mut F) -> Result<Option<Vec<u8>>, ReadError> {
        self.by_name(DataType::GenericJson, OCI_CONFIG)
            .map(|descriptor| self.read_object(file, descriptor, MAX_METADATA_BYTES))
            .transpose()
    }

    /// The definition file's text as bytes.
    ///
    /// # Errors
    /// As [`SifFile::read_object`].
    pub fn def_file<F: Read + Seek>(&self, file: &mut F) -> Result<Option<Vec<u8>>, ReadError> {
        self.of_type(DataType::DefFile)
            .next()
            .map(|descriptor| self.read_object(file, descriptor, MAX_METADATA_BYTES))
            .transpose()
    }
}

fn read_at<F: Read + Seek>(file: &mut F, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

/// Checks that ids are unique and that no two things share bytes.
fn check_apart(descriptors: &[Descriptor], table: std::ops::Range<u64>) -> Result<(), ReadError> {
    let mut ids: Vec<u32> = descriptors.iter().map(Descriptor::id).collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ReadError::DuplicateId { id: pair[0] });
    }
    let mut by_offset: Vec<&Descriptor> = descriptors.iter().filter(|descriptor| descriptor.size() > 0).collect();
    by_offset.sort_unstable_by_key(|descriptor| descriptor.offset());
    for descriptor in &by_offset {
        let hits = |start: u64, end: u64| descriptor.offset() < end && start < descriptor.end();
        let other = if hits(0, HEADER_LEN as u64) {
            "the SIF header"
        } else if hits(table.start, table.end) {
            "the descriptor table"
        } else {
            continue;
        };
        return Err(ReadError::Overlap { id: descriptor.id(), other: other.to_owned() });
    }
    match by_offset.windows(2).find(|pair| pair[0].end() > pair[1].offset()) {
        Some(pair) => Err(ReadError::Overlap { id: pair[1].id(), other: format!("data object {}", pair[0].id()) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor};

    use super::*;
    use crate::{FsType, Link, Partition, PartitionKind, builder::tests::pulled_sif};

    /// Where descriptor `index` starts.
    fn entry(index: usize) -> usize {
        4096 + index * DESCRIPTOR_LEN
    }

    fn read(file: &[u8]) -> Result<SifFile, ReadError> {
        SifFile::read(&mut Cursor::new(file))
    }

    #[test]
    fn a_pulled_file_is_read_back() {
        let file = pulled_sif();
        let sif = read(&file).unwrap();
        assert!(sif.header().is_deterministic());
        assert_eq!(sif.header().arch.name(), "amd64");
        assert_eq!(sif.header().descriptors_free, 45);
        let primary = sif.primary_partition().unwrap();
        let partition = primary.partition().unwrap();
        assert!(matches!(partition, Partition { fs: FsType::Squashfs, kind: PartitionKind::Primary, .. }));
        assert_eq!((primary.id(), primary.offset(), primary.size()), (3, 32_768, 4096));
        assert_eq!((primary.group(), primary.link()), (Some(1), Link::None));
        let labels: Vec<_> = sif.descriptors().iter().map(Descriptor::type_label).collect();
        assert_eq!(labels, ["Def.FILE", "JSON.Generic", "FS (Squashfs/*System/amd64)"]);
        let mut file = Cursor::new(&file);
        assert_eq!(sif.def_file(&mut file).unwrap().unwrap(), b"bootstrap: docker\nfrom: alpine\n\n");
        let metadata = sif.inspect_metadata(&mut file).unwrap().unwrap();
        assert_eq!(metadata.data, crate::inspect::InspectData::default());
        assert_eq!(sif.oci_config(&mut file).unwrap(), None);
        let error = sif.read_object(&mut file, sif.primary_partition().unwrap(), 4095);
        assert!(matches!(error, Err(ReadError::ObjectTooLarge { id: 3, size: 4096, limit: 4095 })));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = pulled_sif();
        for len in 0..file.len() {
            assert!(read(&file[..len]).is_err(), "accepted {len} bytes");
        }
    }

    #[test]
    fn files_of_old_writers_are_read() {
        // Table in its place, data from 32,768, everything aligned.
        let mut file = pulled_sif();
        file.resize(40_960, 0);
        let data = file[32_176..32_210].to_vec();
        file[112..120].copy_from_slice(&32_768i64.to_le_bytes());
        file[32_768..36_864].fill(0);
        for (index, (offset, size)) in [(32_768, 32), (36_000, 2), (36_864, 4096)].into_iter().enumerate() {
            let at = entry(index);
            file[at + 17..at + 25].copy_from_slice(&i64::to_le_bytes(offset));
            file[at + 25..at + 33].copy_from_slice(&i64::to_le_bytes(size));
        }
        file[32_768..32_800].copy_from_slice(&data[..32]);
        let sif = read(&file).unwrap();
        assert_eq!(sif.primary_partition().unwrap().offset(), 36_864);
        assert!(sif.def_file(&mut Cursor::new(&file)).unwrap().unwrap().starts_with(b"bootstrap"));
    }

    #[test]
    fn hostile_fields_are_refused() {
        let (first, last) = (entry(0), entry(2));
        let i64s = |value: i64| value.to_le_bytes().to_vec();
        let u32s = |value: u32| value.to_le_bytes().to_vec();
        let cases = [
            ("magic", 32, b"X".to_vec()),
            ("version", 42, b"02".to_vec()),
            ("negative free", 80, i64s(-1)),
            ("negative total", 88, i64s(-1)),
            ("huge total", 88, i64s(i64::MAX)),
            ("total past the end", 88, i64s(65_536)),
            ("negative table offset", 96, i64s(-4096)),
            ("table in the header", 96, i64s(64)),
            ("table past the end", 96, i64s(i64::MAX)),
            ("negative table size", 104, i64s(-1)),
            ("negative data offset", 112, i64s(-1)),
            ("negative data size", 120, i64s(i64::MIN)),
            ("id 0", first + 5, u32s(0)),
            ("id of another", first + 5, u32s(2)),
            ("group without its mark", first + 9, u32s(1)),
            ("negative offset", first + 17, i64s(-1)),
            ("offset past the end", first + 17, i64s(1 << 40)),
            ("sum that overflows", first + 17, i64s(i64::MAX)),
            ("negative size", first + 25, i64s(-1)),
            ("size past the end", first + 25, i64s(i64::MAX)),
            ("negative padded size", first + 33, i64s(-1)),
            ("inside the header", first + 17, i64s(100)),
            ("inside the table", first + 17, i64s(5000)),
            ("on another object", first + 17, i64s(32_177)),
            ("on the partition", first + 17, i64s(33_000)),
            ("partition past the end", last + 17, i64s(32_769)),
        ];
        for (name, at, bytes) in cases {
            let mut file = pulled_sif();
            file[at..at + bytes.len()].copy_from_slice(&bytes);
            assert!(read(&file).is_err(), "accepted: {name}");
        }
        let mut two = pulled_sif();
        let partition = two[last..last + DESCRIPTOR_LEN].to_vec();
        let at = entry(3);
        two[at..at + DESCRIPTOR_LEN].copy_from_slice(&partition);
        two[at + 5..at + 9].copy_from_slice(&4u32.to_le_bytes());
        two[at + 25..at + 33].copy_from_slice(&0i64.to_le_bytes());
        assert!(matches!(read(&two), Err(ReadError::TwoPrimaries { first: 3, second: 4 })));
    }

    #[test]
    fn unknown_numbers_are_listed_as_such() {
        let mut file = pulled_sif();
        file[entry(0)..entry(0) + 4].copy_from_slice(&0x4fff_i32.to_le_bytes());
        let extra = entry(2) + crate::descriptor::EXTRA_AT;
        file[extra..extra + 11].copy_from_slice(b"\x09\0\0\0\x09\0\0\x0099\0");
        let sif = read(&file).unwrap();
        assert_eq!(sif.primary_partition(), None);
        let labels: Vec<_> = sif.descriptors().iter().map(Descriptor::type_label).collect();
        assert_eq!(labels[0], "Unknown data-type");
        assert_eq!(labels[2], "FS (Unknown fs-type/Unknown part-type/unknown)");
    }

    /// Fails at call `left`.
    struct Failing<'a> {
        inner: Cursor<&'a [u8]>,
        left: u32,
    }

    impl Failing<'_> {
        fn step(&mut self) -> io::Result<()> {
            self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("no more"))?;
            Ok(())
        }
    }

    impl Read for Failing<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.step()?;
            self.inner.read(out)
        }
    }

    impl Seek for Failing<'_> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.step()?;
            self.inner.seek(to)
        }
    }

    #[test]
    fn a_failing_file_is_an_error_at_every_call() {
        let file = pulled_sif();
        let calls = (0..).find(|&left| SifFile::read(&mut Failing { inner: Cursor::new(&file), left }).is_ok());
        // Length; header; table.
        assert_eq!(calls, Some(1 + 2 + 2));
    }
}
