//! What the fuzz targets share: packing, merging, assembling, reading back.

pub mod layers;

use std::{io, num::NonZeroUsize, ops::ControlFlow};

use sctl_common::{Compression, Limits, Profile};
use sctl_pack::{AssembleOptions, IfExists, ImageOutput, PackIndex, PackOptions, Tree, assemble, pack_layer};
use sctl_squashfs::reader::{InodeKind, Reader, ReaderOptions};

/// Small blocks and the fastest level.
pub fn profile() -> Profile {
    Profile { compression: Compression::Zstd { level: 1 }, block_size: 4096 }
}

/// Limits that keep a run short.
pub fn limits() -> Limits {
    Limits { max_entries: 10_000, max_layer_bytes: 64 << 20, max_name_bytes: 4 << 20, ..Limits::default() }
}

fn threads() -> NonZeroUsize {
    NonZeroUsize::MIN
}

/// An image in memory.
pub struct Memory<'a>(pub Vec<u8>, pub &'a [Vec<u8>]);

impl ImageOutput for Memory<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn copy_from_pack(&mut self, pack: usize, offset: u64, len: u64) -> io::Result<()> {
        let range = offset as usize..(offset + len) as usize;
        self.0.extend_from_slice(self.1[pack].get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Packs one layer.
pub fn pack(blob: &[u8]) -> Option<Vec<u8>> {
    let options = PackOptions { profile: profile(), limits: limits(), threads: threads() };
    let mut pack = Vec::new();
    pack_layer(blob, &mut pack, &options, &|_| ()).ok().map(|_| pack)
}

/// Bytes of a pack's header, and of its trailer.
const HEADER_LEN: usize = 32;
const TRAILER_LEN: usize = 72;

/// Takes a pack apart: header and data, and the raw index.
pub fn unwrap(pack: &[u8]) -> (&[u8], Vec<u8>) {
    let trailer = &pack[pack.len() - TRAILER_LEN..];
    let offset = u64::from_le_bytes(*trailer.first_chunk().expect("trailer is long enough")) as usize;
    let stored = &pack[offset..pack.len() - TRAILER_LEN];
    (&pack[..offset], zstd::stream::decode_all(stored).expect("own index can be decompressed"))
}

/// Puts a pack together, with lengths and digest that fit.
pub fn wrap(data: &[u8], raw: &[u8]) -> Vec<u8> {
    let stored = zstd::bulk::compress(raw, 1).expect("index can be compressed");
    let mut numbers = Vec::new();
    for number in [data.len(), stored.len(), raw.len(), 0] {
        numbers.extend_from_slice(&(number as u64).to_le_bytes());
    }
    let digest = blake3::Hasher::new().update(&data[..HEADER_LEN]).update(&stored).update(&numbers).finalize();
    [data, &stored, &numbers, digest.as_bytes(), b"sctlpend"].concat()
}

/// Merges a pack with itself and assembles, if it can be read at all.
pub fn use_pack(pack: Vec<u8>) {
    let Ok(index) = PackIndex::read(&pack, &profile(), &limits()) else { return };
    let Ok(mut tree) = Tree::merge(&[index.clone(), index], &limits()) else { return };
    let _ = tree.add_file(b"a/b/c", 0o644, b"added".to_vec(), IfExists::Keep);
    let _ = tree.machine();
    let _ = assemble_image(&tree, &[pack.clone(), pack]);
}

/// Packs layers; an image that comes of them must be readable in every part.
pub fn pack_and_read(blobs: &[&[u8]]) {
    let (mut packs, mut indexes) = (Vec::new(), Vec::new());
    for blob in blobs {
        let Some(pack) = pack(blob) else { return };
        indexes.push(PackIndex::read(&pack, &profile(), &limits()).expect("own pack can be read"));
        packs.push(pack);
    }
    let Ok(tree) = Tree::merge(&indexes, &limits()) else { return };
    let image = assemble_image(&tree, &packs).expect("own packs can be assembled");
    read_all(&image);
}

/// Assembles into memory.
pub fn assemble_image(tree: &Tree, packs: &[Vec<u8>]) -> Result<Vec<u8>, sctl_pack::AssembleError> {
    let mut out = Memory(Vec::new(), packs);
    let options = AssembleOptions { profile: profile(), mkfs_time: 0, threads: threads() };
    assemble(tree, packs, &mut out, &options, &|_, _| ())?;
    Ok(out.0)
}

/// Reads every inode, name, xattr and byte; large files only in part.
fn read_all(image: &Vec<u8>) {
    let reader = Reader::open(image, 0, ReaderOptions::default()).expect("own image can be opened");
    let mut waiting = vec![reader.root()];
    let mut buffer = vec![0; 64 << 10];
    while let Some(reference) = waiting.pop() {
        let inode = reader.inode(reference).expect("inode can be read");
        reader.xattrs(&inode).expect("xattrs can be read");
        match &inode.kind {
            InodeKind::Directory(_) => reader
                .read_dir(&inode, 0, |entry| {
                    waiting.push(entry.inode);
                    ControlFlow::Continue(())
                })
                .expect("directory can be read"),
            InodeKind::File(_) => {
                let (size, mut offset) = (inode.size(), 0);
                while offset < size.min(4 << 20) {
                    match reader.read(&inode, offset, &mut buffer).expect("file can be read") {
                        0 => panic!("file ends too early"),
                        n => offset += n as u64,
                    }
                }
                reader.read(&inode, size.saturating_sub(100), &mut buffer).expect("tail can be read");
            }
            InodeKind::Symlink(_) => {
                reader.read_link(&inode).expect("symlink can be read");
            }
            _ => {}
        }
    }
}
