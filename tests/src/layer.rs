//! Makes layers: tar streams, byte by byte where it matters.
//!
//! Every form that a registry may hold can be written, the wrong ones too, so
//! headers are made here and not by a library that would refuse.

use std::{collections::BTreeMap, io::Write as _};

/// Time that entries carry unless they say otherwise.
pub const MTIME: u64 = 1_600_000_000;

/// One tar entry.
#[derive(Clone, Debug)]
pub struct Entry {
    name: Vec<u8>,
    typeflag: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: i64,
    link: Vec<u8>,
    data: Vec<u8>,
    device: (u32, u32),
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
    style: Style,
}

/// How names and numbers that do not fit a plain header are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// PAX records (what Go and Docker write).
    Pax,
    /// GNU long names and base-256 numbers.
    Gnu,
    /// Plain ustar with its prefix field; what does not fit is an error.
    Ustar,
}

impl Entry {
    fn new(name: impl AsRef<[u8]>, typeflag: u8, mode: u32) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            typeflag,
            mode,
            uid: 0,
            gid: 0,
            mtime: MTIME as i64,
            link: Vec::new(),
            data: Vec::new(),
            device: (0, 0),
            pax: BTreeMap::new(),
            style: Style::Pax,
        }
    }

    /// A directory; its name ends in a slash, as tar writes it.
    pub fn dir(name: impl AsRef<[u8]>) -> Self {
        let mut name = name.as_ref().to_vec();
        if !name.ends_with(b"/") {
            name.push(b'/');
        }
        Self::new(name, b'5', 0o755)
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self { data: data.as_ref().to_vec(), ..Self::new(name, b'0', 0o644) }
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(name, b'2', 0o777) }
    }

    /// A hard link to another name of the image.
    pub fn hardlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(name, b'1', 0o644) }
    }

    /// A FIFO.
    pub fn fifo(name: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'6', 0o644)
    }

    /// A character device.
    pub fn char_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(name, b'3', 0o666) }
    }

    /// A whiteout of the lower entry `path`.
    pub fn whiteout(path: &str) -> Self {
        let name = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        Self::file(name, b"")
    }

    /// An opaque whiteout of the folder `path`.
    pub fn opaque(path: &str) -> Self {
        Self::file(format!("{path}/.wh..wh..opq"), b"")
    }

    /// An entry with any type flag.
    pub fn raw(name: impl AsRef<[u8]>, typeflag: u8, data: impl AsRef<[u8]>) -> Self {
        Self { data: data.as_ref().to_vec(), ..Self::new(name, typeflag, 0o644) }
    }

    /// Sets the permission bits.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Sets owner and group.
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    /// Sets the modification time in Unix seconds.
    pub fn mtime(self, mtime: i64) -> Self {
        Self { mtime, ..self }
    }

    /// Adds an extended attribute.
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.insert(format!("SCHILY.xattr.{name}").into_bytes(), value.as_ref().to_vec());
        self
    }

    /// Adds a raw PAX record.
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.insert(key.as_bytes().to_vec(), value.as_ref().to_vec());
        self
    }

    /// Chooses how long names and large numbers are written.
    pub fn style(self, style: Style) -> Self {
        Self { style, ..self }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut pax = self.pax.clone();
        let mut prefix: &[u8] = b"";
        let mut name: &[u8] = &self.name;
        let mut link: &[u8] = &self.link;
        let split;
        match self.style {
            Style::Pax => {
                if name.len() > 100 {
                    pax.insert(b"path".to_vec(), name.to_vec());
                    name = &name[..100];
                }
                if link.len() > 100 {
                    pax.insert(b"linkpath".to_vec(), link.to_vec());
                    link = &link[..100];
                }
                for (key, value) in [("uid", self.uid), ("gid", self.gid)] {
                    if value >= 1 << 21 {
                        pax.insert(key.as_bytes().to_vec(), value.to_string().into_bytes());
                    }
                }
                if self.mtime < 0 || self.mtime >= 1 << 33 {
                    pax.insert(b"mtime".to_vec(), self.mtime.to_string().into_bytes());
                }
            }
            Style::Gnu => {
                for (flag, text) in [(b'K', &mut link), (b'L', &mut name)] {
                    if text.len() > 100 {
                        let mut long = text.to_vec();
                        long.push(0);
                        header(out, b"././@LongLink", b"", flag, 0, 0, 0, 0, b"", (0, 0), long.len() as u64, true);
                        padded(out, &long);
                        *text = &text[..100];
                    }
                }
            }
            Style::Ustar => {
                if name.len() > 100 {
                    let slash = (0..name.len().min(156))
                        .rev()
                        .find(|&at| name[at] == b'/' && name.len() - at - 1 <= 100)
                        .expect("the name fits ustar");
                    split = self.name.split_at(slash);
                    (prefix, name) = (split.0, &split.1[1..]);
                }
            }
        }
        if !pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &pax {
                pax_record(&mut records, key, value);
            }
            header(out, b"PaxHeaders/x", b"", b'x', 0o644, 0, 0, 0, b"", (0, 0), records.len() as u64, false);
            padded(out, &records);
        }
        let gnu = self.style == Style::Gnu;
        let mtime = if gnu { self.mtime } else { self.mtime.clamp(0, (1 << 33) - 1) };
        let small = |id: u64| if gnu || id < 1 << 21 { id } else { 0 };
        header(
            out,
            name,
            prefix,
            self.typeflag,
            self.mode,
            small(self.uid),
            small(self.gid),
            mtime,
            link,
            self.device,
            self.data.len() as u64,
            gnu,
        );
        padded(out, &self.data);
    }
}

fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut len = body + body.to_string().len();
    if len.to_string().len() != (len - body) {
        len = body + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn padded(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn number(field: &mut [u8], value: i64) {
    let digits = field.len() - 1;
    if value >= 0 && (value as u64) < 1u64 << (3 * digits).min(62) {
        let text = format!("{value:0digits$o}");
        field[..digits].copy_from_slice(text.as_bytes());
    } else {
        // GNU's base-256 form: the sign in the first byte, big-endian.
        let bytes = i128::from(value).to_be_bytes();
        let len = field.len();
        field.copy_from_slice(&bytes[16 - len..]);
        field[0] |= 0x80;
    }
}

#[expect(clippy::too_many_arguments, reason = "one argument for each field of the header")]
fn header(
    out: &mut Vec<u8>,
    name: &[u8],
    prefix: &[u8],
    typeflag: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: i64,
    link: &[u8],
    device: (u32, u32),
    size: u64,
    gnu: bool,
) {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name);
    number(&mut block[100..108], i64::from(mode));
    number(&mut block[108..116], uid as i64);
    number(&mut block[116..124], gid as i64);
    number(&mut block[124..136], size as i64);
    number(&mut block[136..148], mtime);
    block[156] = typeflag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(if gnu { b"ustar  \0" } else { b"ustar\x0000" });
    number(&mut block[329..337], i64::from(device.0));
    number(&mut block[337..345], i64::from(device.1));
    block[345..345 + prefix.len()].copy_from_slice(prefix);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&block);
}

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobCompression {
    /// A plain tar.
    None,
    /// One gzip member.
    Gzip,
    /// Several gzip members, as some tools write them.
    GzipMembers,
    /// One zstd frame.
    Zstd,
    /// Several zstd frames.
    ZstdFrames,
}

/// One layer: its tar, and how the blob is compressed.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The uncompressed tar.
    pub tar: Vec<u8>,
    /// How the blob is stored.
    pub compression: BlobCompression,
}

impl Layer {
    /// A gzip layer of `entries`.
    pub fn new(entries: &[Entry]) -> Self {
        let mut tar = Vec::new();
        for entry in entries {
            entry.write(&mut tar);
        }
        tar.resize(tar.len() + 1024, 0);
        Self { tar, compression: BlobCompression::Gzip }
    }

    /// A gzip layer of a tar made elsewhere.
    pub fn from_tar(tar: Vec<u8>) -> Self {
        Self { tar, compression: BlobCompression::Gzip }
    }

    /// The same layer, stored otherwise.
    pub fn stored(self, compression: BlobCompression) -> Self {
        Self { compression, ..self }
    }

    /// The blob's bytes and its OCI media type.
    pub fn blob(&self) -> (Vec<u8>, &'static str) {
        let gzip = |data: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(4));
            encoder.write_all(data).and_then(|()| encoder.finish()).expect("a Vec takes every byte")
        };
        let zstd = |data: &[u8]| zstd::encode_all(data, 3).expect("a Vec takes every byte");
        let middle = self.tar.len() / 2;
        let (first, second) = self.tar.split_at(middle);
        match self.compression {
            BlobCompression::None => (self.tar.clone(), "application/vnd.oci.image.layer.v1.tar"),
            BlobCompression::Gzip => (gzip(&self.tar), "application/vnd.oci.image.layer.v1.tar+gzip"),
            BlobCompression::GzipMembers => {
                ([gzip(first), gzip(second)].concat(), "application/vnd.oci.image.layer.v1.tar+gzip")
            }
            BlobCompression::Zstd => (zstd(&self.tar), "application/vnd.oci.image.layer.v1.tar+zstd"),
            BlobCompression::ZstdFrames => {
                ([zstd(first), zstd(second)].concat(), "application/vnd.oci.image.layer.v1.tar+zstd")
            }
        }
    }
}
