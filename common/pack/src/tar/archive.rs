//! Members of a tar stream, with their extensions applied.

use crate::error::{PackError, shown};
use crate::tar::{
    ChunkSource, MAX_EXTENSION_LEN, RECORD_LEN, Stream,
    header::{BadNumber, Dialect, Header, until_nul},
    pax,
    sparse::{Extent, MapReader, SparseMap},
    xattr::{self, RawXattr},
};

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum MemberKind {
    #[default]
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    CharDevice,
    BlockDevice,
}

/// One member, as its headers describe it.
#[derive(Debug, Default)]
pub(crate) struct Member {
    pub(crate) kind: MemberKind,
    /// Raw name, as the stream has it.
    pub(crate) name: Vec<u8>,
    /// Raw target of a link.
    pub(crate) link: Vec<u8>,
    /// Permission bits, within `0o7777`.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970, clamped to what the format holds.
    pub(crate) mtime: u32,
    /// Length of the contents, holes included.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    /// Names and values, sorted by name, each name once.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Takes the contents of a file, piece by piece.
pub(crate) trait ContentSink {
    fn data(&mut self, bytes: &[u8]) -> Result<(), PackError>;
    fn zeros(&mut self, len: u64) -> Result<(), PackError>;
}

/// Reads members one after the other.
pub(crate) struct Archive<S> {
    pub(crate) stream: Stream<S>,
    /// The member that [`Self::next_member`] has found.
    pub(crate) member: Member,
    /// Bytes of the member's contents that are still in the stream.
    stored: u64,
    /// Bytes behind them, up to the next record.
    padding: u64,
    extents: Option<Vec<Extent>>,
    extended: Vec<u8>,
    has_extended: bool,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl<S: ChunkSource> Archive<S> {
    pub(crate) fn new(stream: Stream<S>) -> Self {
        Self {
            stream,
            member: Member::default(),
            stored: 0,
            padding: 0,
            extents: None,
            extended: Vec::new(),
            has_extended: false,
            long_name: Vec::new(),
            long_link: Vec::new(),
        }
    }

    /// Finds the next member; `false` at the end of the archive.
    pub(crate) fn next_member(&mut self) -> Result<bool, PackError> {
        self.forget_extensions();
        loop {
            if self.stream.skip(self.stored)? < self.stored {
                return Err(self.stream.truncated("a file"));
            }
            // A stream may end in the padding of its last member: nothing is lost.
            if self.stream.skip(self.padding)? < self.padding {
                return self.end();
            }
            (self.stored, self.padding) = (0, 0);
            let offset = self.stream.offset();
            let mut record = [0; RECORD_LEN];
            match self.stream.read_full(&mut record)? {
                RECORD_LEN => {}
                0 => return self.end(),
                _ => return Err(self.stream.truncated("a header")),
            }
            let header = Header(&record);
            if header.is_zero() {
                let mut second = [0; RECORD_LEN];
                return match self.stream.read_full(&mut second)? {
                    0 => self.end(),
                    RECORD_LEN if Header(&second).is_zero() => self.end(),
                    RECORD_LEN => Err(PackError::BadTar { what: "a single zero record", tar_offset: offset }),
                    _ => Err(self.stream.truncated("its end marker")),
                };
            }
            let Some(dialect) = header.dialect() else {
                return Err(PackError::BadTar { what: "wrong checksum", tar_offset: offset });
            };
            let bad_number = |_: BadNumber| PackError::BadTar { what: "bad number", tar_offset: offset };
            header.check_numbers(dialect).map_err(bad_number)?;
            match header.typeflag() {
                b'x' => {
                    let mut extended = std::mem::take(&mut self.extended);
                    self.read_extension(header.size().map_err(bad_number)?, offset, &mut extended)?;
                    self.extended = extended;
                    self.has_extended = true;
                    check_records(&self.extended, offset)?;
                }
                b'g' => {
                    let mut global = Vec::new();
                    self.read_extension(header.size().map_err(bad_number)?, offset, &mut global)?;
                    check_records(&global, offset)?;
                    self.forget_extensions();
                }
                b'L' | b'K' => {
                    let mut text = Vec::new();
                    self.read_extension(header.size().map_err(bad_number)?, offset, &mut text)?;
                    text.truncate(until_nul(&text).len());
                    *(if header.typeflag() == b'L' { &mut self.long_name } else { &mut self.long_link }) = text;
                }
                _ => {
                    self.describe(&header, dialect, offset)?;
                    return Ok(true);
                }
            }
        }
    }

    fn forget_extensions(&mut self) {
        self.has_extended = false;
        self.long_name.clear();
        self.long_link.clear();
    }

    fn end(&mut self) -> Result<bool, PackError> {
        (self.stored, self.padding) = (0, 0);
        if self.has_extended || !self.long_name.is_empty() || !self.long_link.is_empty() {
            return Err(self.stream.truncated("an entry: its header is missing"));
        }
        Ok(false)
    }

    fn read_extension(&mut self, size: i64, offset: u64, into: &mut Vec<u8>) -> Result<(), PackError> {
        let size = u64::try_from(size).map_err(|_| PackError::BadTar { what: "negative size", tar_offset: offset })?;
        if size > MAX_EXTENSION_LEN {
            let what = "extended header or long name of more than 1 MiB";
            return Err(PackError::BadTar { what, tar_offset: offset });
        }
        // At most 1 MiB.
        into.resize(size as usize, 0);
        if self.stream.read_full(into)? < into.len() {
            return Err(self.stream.truncated("an extended header"));
        }
        self.padding = padding_behind(size);
        Ok(())
    }

    /// Fills in the member from its header and what preceded it.
    fn describe(&mut self, header: &Header<'_>, dialect: Dialect, offset: u64) -> Result<(), PackError> {
        let bad_number = |_: BadNumber| PackError::BadTar { what: "bad number", tar_offset: offset };
        let bad_record = || PackError::BadTar { what: "bad pax record", tar_offset: offset };
        let extended = if self.has_extended { std::mem::take(&mut self.extended) } else { Vec::new() };
        let pax = Extended::parse(&extended).ok_or_else(bad_record)?;
        let member = &mut self.member;

        member.name.clear();
        let prefix = header.prefix(dialect);
        if !prefix.is_empty() {
            member.name.extend_from_slice(prefix);
            member.name.push(b'/');
        }
        member.name.extend_from_slice(header.name());
        member.link.clear();
        member.link.extend_from_slice(header.link());
        for (value, into, long) in
            [(pax.path, &mut member.name, &self.long_name), (pax.linkpath, &mut member.link, &self.long_link)]
        {
            let value = if long.is_empty() { value } else { Some(&long[..]) };
            if let Some(value) = value {
                into.clear();
                into.extend_from_slice(value);
            }
        }
        self.stream.current.clone_from(&member.name);

        let number = |value: Option<&[u8]>, field: Result<i64, BadNumber>| {
            let field = field.map_err(bad_number)?;
            value.map_or(Ok(field), |value| pax::parse_decimal(value).ok_or_else(bad_record))
        };
        member.uid = owner(number(pax.uid, header.uid())?);
        member.gid = owner(number(pax.gid, header.gid())?);
        let mtime = header.mtime().map_err(bad_number)?;
        let mtime = pax.mtime.map_or(Some(mtime), pax::parse_time).ok_or_else(bad_record)?;
        member.mtime = mtime.clamp(0, i64::from(u32::MAX)) as u32;
        member.mode = (header.mode().map_err(bad_number)? & 0o7777) as u16;
        let size = number(pax.size, header.size())?;
        let size = u64::try_from(size).map_err(|_| PackError::BadTar { what: "negative size", tar_offset: offset })?;
        member.kind = kind(header.typeflag(), &member.name)?;
        member.device = match member.kind {
            MemberKind::CharDevice | MemberKind::BlockDevice if dialect != Dialect::V7 => {
                let (major, minor) = header.device().map_err(bad_number)?;
                // Truncated as device numbers are.
                (major as u32, minor as u32)
            }
            _ => (0, 0),
        };
        xattr::collect(&pax.xattrs, member)?;

        // Only files have contents, whatever the size field of others says.
        let is_file = member.kind == MemberKind::File;
        member.size = if is_file { size } else { 0 };
        (self.stored, self.padding) = (member.size, padding_behind(member.size));
        self.extents = None;
        if header.typeflag() == b'S' {
            self.read_gnu_map(header, dialect, offset)?;
        } else if pax.is_sparse() {
            if !is_file {
                return Err(PackError::BadTar { what: "sparse map on something that is no file", tar_offset: offset });
            }
            self.read_pax_map(&pax, offset)?;
        }
        drop(pax);
        if self.has_extended {
            self.extended = extended;
        }
        Ok(())
    }

    fn read_gnu_map(&mut self, header: &Header<'_>, dialect: Dialect, offset: u64) -> Result<(), PackError> {
        let bad = |what| PackError::BadTar { what, tar_offset: offset };
        if dialect != Dialect::Gnu {
            return Err(bad("sparse file of another format than GNU's"));
        }
        let real = header.sparse_size().ok().and_then(|size| u64::try_from(size).ok());
        self.member.size = real.ok_or_else(|| bad("bad size of a sparse file"))?;
        let mut map = SparseMap::default();
        let (extents, mut more) = header.sparse_extents();
        map.push_gnu(extents).map_err(bad)?;
        while more {
            let record = self.stream.read_record("a sparse map")?;
            map.push_gnu(&record[..21 * 24]).map_err(bad)?;
            more = record[504] != 0;
        }
        self.extents = Some(map.finish(self.member.size, self.stored).map_err(bad)?);
        Ok(())
    }

    fn read_pax_map(&mut self, pax: &Extended<'_>, offset: u64) -> Result<(), PackError> {
        let bad = |what| PackError::BadTar { what, tar_offset: offset };
        if let Some(name) = pax.sparse_name {
            self.member.name.clear();
            self.member.name.extend_from_slice(name);
            self.stream.current.clone_from(&self.member.name);
        }
        if let Some(size) = pax.sparse_size {
            let size = pax::parse_decimal(size).and_then(|size| u64::try_from(size).ok());
            self.member.size = size.ok_or_else(|| bad("bad size of a sparse file"))?;
        }
        let map = match (pax.sparse_major, pax.sparse_minor) {
            (Some(b"1"), Some(b"0")) => {
                let mut reader = MapReader::default();
                loop {
                    self.stored = self
                        .stored
                        .checked_sub(RECORD_LEN as u64)
                        .ok_or_else(|| bad("sparse map is longer than what is stored"))?;
                    let record = self.stream.read_record("a sparse map")?;
                    if reader.push_record(&record).map_err(bad)? {
                        break reader.finish();
                    }
                }
            }
            (Some(b"0"), Some(b"0" | b"1")) | (None, None) => {
                let mut map = SparseMap::default();
                let list =
                    if pax.sparse_list.is_empty() { pax.sparse_map.unwrap_or_default() } else { &pax.sparse_list };
                map.push_list(list, pax.sparse_count.unwrap_or_default()).map_err(bad)?;
                map
            }
            _ => return Err(bad("unknown version of sparse files")),
        };
        self.extents = Some(map.finish(self.member.size, self.stored).map_err(bad)?);
        Ok(())
    }

    /// Gives the contents of the member to `sink`.
    pub(crate) fn copy_contents(&mut self, sink: &mut impl ContentSink) -> Result<(), PackError> {
        let Some(extents) = self.extents.take() else {
            let stored = self.stored;
            return self.copy_stored(stored, sink);
        };
        let mut position = 0;
        for extent in extents {
            sink.zeros(extent.offset - position)?;
            self.copy_stored(extent.len, sink)?;
            position = extent.offset + extent.len;
        }
        sink.zeros(self.member.size - position)
    }

    fn copy_stored(&mut self, len: u64, sink: &mut impl ContentSink) -> Result<(), PackError> {
        let mut left = len;
        while left > 0 {
            let bytes = self.stream.available()?;
            if bytes.is_empty() {
                return Err(self.stream.truncated("a file"));
            }
            let n = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            sink.data(&bytes[..n])?;
            self.stream.consume(n);
            left -= n as u64;
            self.stored -= n as u64;
        }
        Ok(())
    }
}

/// Bytes between contents of this length and the next record.
fn padding_behind(size: u64) -> u64 {
    size.wrapping_neg() % RECORD_LEN as u64
}

fn check_records(mut bytes: &[u8], offset: u64) -> Result<(), PackError> {
    while !bytes.is_empty() {
        let bad = || PackError::BadTar { what: "bad pax record", tar_offset: offset };
        (_, bytes) = pax::next_record(bytes).ok_or_else(bad)?;
    }
    Ok(())
}

/// An owner's id as chown(2) would take it: 32 bits, and −1 changes nothing,
/// which leaves a new file with root.
fn owner(id: i64) -> u32 {
    match id as u32 {
        u32::MAX => 0,
        id => id,
    }
}

fn kind(typeflag: u8, name: &[u8]) -> Result<MemberKind, PackError> {
    Ok(match typeflag {
        // Archives from before there was a type for directories.
        0 if name.ends_with(b"/") => MemberKind::Directory,
        // 7 is a file that asks for contiguous space.
        0 | b'0' | b'7' | b'S' => MemberKind::File,
        b'1' => MemberKind::HardLink,
        b'2' => MemberKind::Symlink,
        b'3' => MemberKind::CharDevice,
        b'4' => MemberKind::BlockDevice,
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        other => return Err(PackError::UnknownType { entry: shown(name), typeflag: char::from(other) }),
    })
}

/// Records of an extended header that matter here. Of equal keys the last one
/// counts, and an empty value counts as none.
#[derive(Default)]
struct Extended<'a> {
    path: Option<&'a [u8]>,
    linkpath: Option<&'a [u8]>,
    uid: Option<&'a [u8]>,
    gid: Option<&'a [u8]>,
    mtime: Option<&'a [u8]>,
    size: Option<&'a [u8]>,
    sparse_major: Option<&'a [u8]>,
    sparse_minor: Option<&'a [u8]>,
    sparse_name: Option<&'a [u8]>,
    sparse_size: Option<&'a [u8]>,
    sparse_real_size: Option<&'a [u8]>,
    sparse_count: Option<&'a [u8]>,
    sparse_map: Option<&'a [u8]>,
    /// Offsets and lengths of format 0.0, joined by commas.
    sparse_list: Vec<u8>,
    xattrs: Vec<RawXattr<'a>>,
}

impl<'a> Extended<'a> {
    fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let mut this = Self::default();
        let mut wants_offset = true;
        while !bytes.is_empty() {
            let ((key, value), rest) = pax::next_record(bytes)?;
            bytes = rest;
            let some = (!value.is_empty()).then_some(value);
            match key {
                b"path" => this.path = some,
                b"linkpath" => this.linkpath = some,
                b"uid" => this.uid = some,
                b"gid" => this.gid = some,
                b"mtime" => this.mtime = some,
                b"size" => this.size = some,
                b"GNU.sparse.major" => this.sparse_major = some,
                b"GNU.sparse.minor" => this.sparse_minor = some,
                b"GNU.sparse.name" => this.sparse_name = some,
                b"GNU.sparse.size" => this.sparse_size = some,
                b"GNU.sparse.realsize" => this.sparse_real_size = some,
                b"GNU.sparse.numblocks" => this.sparse_count = some,
                b"GNU.sparse.map" => this.sparse_map = some,
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    if wants_offset != (key == b"GNU.sparse.offset") || value.contains(&b',') {
                        return None;
                    }
                    wants_offset = !wants_offset;
                    if !this.sparse_list.is_empty() {
                        this.sparse_list.push(b',');
                    }
                    this.sparse_list.extend_from_slice(value);
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        this.xattrs.push((name, value, false));
                    } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                        this.xattrs.push((name, value, true));
                    }
                }
            }
        }
        this.sparse_size = this.sparse_size.or(this.sparse_real_size);
        Some(this)
    }

    fn is_sparse(&self) -> bool {
        self.sparse_major.is_some()
            || self.sparse_minor.is_some()
            || self.sparse_map.is_some()
            || !self.sparse_list.is_empty()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
