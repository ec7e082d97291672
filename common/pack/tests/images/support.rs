//! Making layers, packing and assembling them in memory, reading images back.

use std::{collections::BTreeMap, io, num::NonZeroUsize, ops::ControlFlow};

use sctl_common::{Compression, Limits, Profile};
use sctl_pack::{
    AssembleOptions, ImageOutput, ImageSummary, PackError, PackIndex, PackOptions, PackSummary, Tree, assemble,
    pack_layer,
};
use sctl_squashfs::reader::{InodeKind, InodeRef, Reader, ReaderOptions, Xattr};

/// Small blocks, so that small tests have many.
pub const BLOCK: usize = 4096;

pub const MKFS_TIME: u32 = 1_234_567;

pub fn profile() -> Profile {
    Profile { compression: Compression::default(), block_size: BLOCK as u32 }
}

pub fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).expect("at least one")
}

pub fn options(count: usize) -> PackOptions {
    PackOptions { profile: profile(), limits: Limits::default(), threads: threads(count) }
}

/// A tar stream that is being written, header by header.
#[derive(Default, Clone)]
pub struct Layer {
    bytes: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds any entry; `name` and `link` go to a pax header if they must.
    pub fn entry(mut self, typeflag: u8, name: &[u8], link: &[u8], mode: u32, data: &[u8]) -> Self {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (key, value) in std::mem::take(&mut self.xattrs) {
            records.push((format!("SCHILY.xattr.{key}").into_bytes(), value));
        }
        for (key, value) in [(&b"path"[..], name), (b"linkpath", link)] {
            if value.len() > 100 {
                records.push((key.to_vec(), value.to_vec()));
            }
        }
        if !records.is_empty() {
            let mut data = Vec::new();
            for (key, value) in records {
                let rest = key.len() + value.len() + 3;
                let mut len = rest + 1;
                while len != rest + len.to_string().len() {
                    len = rest + len.to_string().len();
                }
                data.extend_from_slice(&[len.to_string().as_bytes(), b" ", &key, b"=", &value, b"\n"].concat());
            }
            self.record(b'x', b"pax", b"", 0o644, &data);
        }
        self.record(typeflag, name, link, mode, data);
        self
    }

    fn record(&mut self, typeflag: u8, name: &[u8], link: &[u8], mode: u32, data: &[u8]) {
        let mut header = [0; 512];
        let cut = |text: &[u8]| text[..text.len().min(100)].to_vec();
        header[..cut(name).len()].copy_from_slice(&cut(name));
        header[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        header[108..115].copy_from_slice(b"0001750");
        header[116..123].copy_from_slice(b"0000144");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[136..147].copy_from_slice(b"13000000000");
        header[156] = typeflag;
        header[157..157 + cut(link).len()].copy_from_slice(&cut(link));
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    /// Gives the next entry an xattr.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.to_owned(), value.to_vec()));
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name.as_bytes(), b"", 0o644, data)
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", 0o755, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), target.as_bytes(), 0o777, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), target.as_bytes(), 0o644, b"")
    }

    /// Ready-made records.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The stream, with its end marker.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    pub fn pack(self) -> Vec<u8> {
        pack(&self.finish(), &options(2)).expect("layer can be packed").0
    }
}

pub fn pack(blob: &[u8], options: &PackOptions) -> Result<(Vec<u8>, PackSummary), PackError> {
    let mut out = Vec::new();
    let summary = pack_layer(blob, &mut out, options, &|_| ())?;
    assert_eq!(summary.pack_bytes, out.len() as u64);
    Ok((out, summary))
}

pub fn index(pack: &Vec<u8>) -> PackIndex {
    PackIndex::read(pack, &profile(), &Limits::default()).expect("pack can be read")
}

pub fn merge(packs: &[Vec<u8>]) -> Tree {
    let indexes: Vec<_> = packs.iter().map(index).collect();
    Tree::merge(&indexes, &Limits::default()).expect("layers can be merged")
}

/// An image in memory.
pub struct Memory<'a> {
    pub bytes: Vec<u8>,
    pub packs: &'a [Vec<u8>],
    /// Calls of `copy_from_pack`.
    pub copies: usize,
}

impl ImageOutput for Memory<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn copy_from_pack(&mut self, pack: usize, offset: u64, len: u64) -> io::Result<()> {
        let range = offset as usize..(offset + len) as usize;
        let bytes = self.packs[pack].get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.bytes.extend_from_slice(bytes);
        self.copies += 1;
        Ok(())
    }
}

pub fn assemble_tree(tree: &Tree, packs: &[Vec<u8>], count: usize) -> (Vec<u8>, ImageSummary) {
    let mut out = Memory { bytes: Vec::new(), packs, copies: 0 };
    let options = AssembleOptions { profile: profile(), mkfs_time: MKFS_TIME, threads: threads(count) };
    let summary = assemble(tree, packs, &mut out, &options, &|_, _| ()).expect("tree can be assembled");
    assert_eq!(summary.image_bytes, out.bytes.len() as u64);
    (out.bytes, summary)
}

pub fn image(layers: impl IntoIterator<Item = Layer>) -> Vec<u8> {
    let packs: Vec<_> = layers.into_iter().map(Layer::pack).collect();
    assemble_tree(&merge(&packs), &packs, 2).0
}

/// What was found at a path of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u32,
    pub nlink: u32,
    pub inode: u32,
    pub xattrs: Vec<Xattr>,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
}

pub type Files = BTreeMap<String, Found>;

/// Reads everything in an image; paths are escaped, the root is empty.
pub fn read(image: &Vec<u8>) -> Files {
    let reader = Reader::open(image, 0, ReaderOptions::default()).expect("image can be opened");
    let mut files = Files::new();
    let mut waiting = vec![(String::new(), reader.root())];
    while let Some((path, reference)) = waiting.pop() {
        let inode = reader.inode(reference).expect("inode can be read");
        let what = match &inode.kind {
            InodeKind::Directory(_) => {
                let mut entries: Vec<(Vec<u8>, InodeRef)> = Vec::new();
                reader
                    .read_dir(&inode, 0, |entry| {
                        entries.push((entry.name.to_vec(), entry.inode));
                        ControlFlow::Continue(())
                    })
                    .expect("directory can be read");
                let slash = if path.is_empty() { "" } else { "/" };
                for (name, reference) in entries {
                    waiting.push((format!("{path}{slash}{}", name.escape_ascii()), reference));
                }
                What::Dir
            }
            InodeKind::File(_) => {
                let mut bytes = vec![0xee; inode.size() as usize];
                let mut done = 0;
                while done < bytes.len() {
                    match reader.read(&inode, done as u64, &mut bytes[done..]).expect("file can be read") {
                        0 => panic!("file ends at {done}"),
                        n => done += n,
                    }
                }
                What::File(bytes)
            }
            InodeKind::Symlink(_) => What::Symlink(reader.read_link(&inode).expect("symlink can be read")),
            InodeKind::Fifo => What::Fifo,
            other => panic!("{path}: {other:?}"),
        };
        let mut xattrs = reader.xattrs(&inode).expect("xattrs can be read");
        xattrs.sort();
        let (mode, uid, gid, mtime, nlink) = (inode.mode, inode.uid, inode.gid, inode.mtime, inode.nlink);
        let found = Found { mode, uid, gid, mtime, nlink, inode: inode.number, xattrs, what };
        files.insert(path, found);
    }
    files
}

/// Contents of a file in an image.
#[track_caller]
pub fn contents<'f>(files: &'f Files, path: &str) -> &'f [u8] {
    match &files[path].what {
        What::File(bytes) => bytes,
        other => panic!("{path} is {other:?}"),
    }
}

/// Bytes that compress somewhat, different for each seed.
pub fn sample(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(b"and text");
    }
    bytes.truncate(len);
    bytes
}
