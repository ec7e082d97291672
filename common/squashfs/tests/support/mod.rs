//! Builds small images with the package's own writer, in memory.
#![allow(dead_code, reason = "each test binary uses another part")]

pub mod dump;
pub mod tricky;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use sctl_common::{Compression, EntryName};
use sctl_squashfs::{
    BlockCompressor, BlockSize,
    writer::{
        FileData, FragmentEntry, FragmentRef, Image, Inode, InodeIndex, InodeKind, Params, Xattr, data_start,
        encode_head, write_tables,
    },
};

pub const ZSTD: Compression = Compression::Zstd { level: 3 };
pub const GZIP: Compression = Compression::Gzip { level: 9 };

/// An image being built.
pub struct Builder {
    pub image: Image,
    pub params: Params,
    pub out: Vec<u8>,
    pub fragments: Vec<FragmentEntry>,
    compressor: BlockCompressor,
    tails: Vec<u8>,
}

impl Builder {
    pub fn new(compression: Compression, block_size: u32) -> Self {
        let params = Params { compression, block_size, mkfs_time: 1_600_000_000 };
        Self {
            image: Image::default(),
            params,
            out: vec![0; data_start(&params) as usize],
            fragments: Vec::new(),
            compressor: BlockCompressor::new(compression).unwrap(),
            tails: Vec::new(),
        }
    }

    pub fn add(&mut self, mode: u16, kind: InodeKind) -> InodeIndex {
        self.image.inodes.push(Inode { mode, uid: 0, gid: 0, mtime: 1_500_000_000, xattrs: None, kind });
        self.image.inodes.len() as u32 - 1
    }

    pub fn inode(&mut self, index: InodeIndex) -> &mut Inode {
        &mut self.image.inodes[index as usize]
    }

    pub fn xattrs(&mut self, index: InodeIndex, xattrs: &[(&str, &[u8])]) {
        let set = xattrs.iter().map(|(name, value)| Xattr { name: (*name).into(), value: value.to_vec() }).collect();
        self.image.xattr_sets.push(set);
        self.inode(index).xattrs = Some(self.image.xattr_sets.len() as u32 - 1);
    }

    fn block(&mut self, contents: &[u8]) -> BlockSize {
        if contents.iter().all(|byte| *byte == 0) {
            return BlockSize::SPARSE;
        }
        let mut stored = Vec::new();
        let size = self.compressor.compress(contents, &mut stored).unwrap();
        self.out.extend_from_slice(&stored);
        size
    }

    fn flush_tails(&mut self) {
        if !self.tails.is_empty() {
            let tails = std::mem::take(&mut self.tails);
            let start = self.out.len() as u64;
            let mut stored = Vec::new();
            let size = self.compressor.compress(&tails, &mut stored).unwrap();
            self.out.extend_from_slice(&stored);
            self.fragments.push(FragmentEntry { start, size });
        }
    }

    /// A file; `tail_in_fragment` puts what follows the last full block into
    /// a fragment block.
    pub fn file(&mut self, contents: &[u8], tail_in_fragment: bool) -> InodeIndex {
        let block_size = self.params.block_size as usize;
        let tail = if tail_in_fragment { contents.len() % block_size } else { 0 };
        let (blocks, tail) = contents.split_at(contents.len() - tail);
        let start = self.out.len() as u64;
        let mut data = FileData { size: contents.len() as u64, start, ..FileData::default() };
        let mut sizes = Vec::new();
        for block in blocks.chunks(block_size) {
            let size = self.block(block);
            if size.is_sparse() {
                data.sparse_bytes += block.len() as u64;
            }
            sizes.push(size);
        }
        data.blocks = sizes.into();
        if !tail.is_empty() {
            if self.tails.len() + tail.len() > block_size {
                self.flush_tails();
            }
            data.fragment = Some(FragmentRef { index: self.fragments.len() as u32, offset: self.tails.len() as u32 });
            self.tails.extend_from_slice(tail);
        }
        self.add(0o644, InodeKind::File(data))
    }

    /// A file of `size` bytes, zero but for `contents` at `at`, a multiple of
    /// the block size.
    pub fn sparse_file(&mut self, size: u64, at: u64, contents: &[u8]) -> InodeIndex {
        let block_size = u64::from(self.params.block_size);
        let start = self.out.len() as u64;
        let mut sizes = vec![BlockSize::SPARSE; size.div_ceil(block_size) as usize];
        let first = (at / block_size) as usize;
        let mut stored = 0;
        for (number, chunk) in contents.chunks(block_size as usize).enumerate() {
            let mut block = chunk.to_vec();
            let here = (at + number as u64 * block_size).min(size);
            block.resize(block_size.min(size - here) as usize, 0);
            sizes[first + number] = self.block(&block);
            stored += block.len() as u64;
        }
        let data = FileData { size, start, blocks: sizes.into(), fragment: None, sparse_bytes: size - stored };
        self.add(0o600, InodeKind::File(data))
    }

    pub fn symlink(&mut self, target: &[u8]) -> InodeIndex {
        self.add(0o777, InodeKind::Symlink { target: target.into() })
    }

    pub fn directory(&mut self, entries: Vec<(&str, InodeIndex)>) -> InodeIndex {
        let mut entries: Vec<_> =
            entries.into_iter().map(|(name, index)| (EntryName::parse(name.as_bytes()).unwrap(), index)).collect();
        entries.sort();
        self.add(0o755, InodeKind::Directory { entries })
    }

    /// The whole image, padded to 4,096 bytes.
    pub fn finish(mut self, root: InodeIndex) -> Vec<u8> {
        self.flush_tails();
        self.image.root = root;
        let mut tables = Vec::new();
        let data_end = self.out.len() as u64;
        let superblock =
            write_tables(&mut tables, data_end, &self.image, &self.fragments, &self.params).expect("tables");
        self.out.extend_from_slice(&tables);
        assert_eq!(superblock.bytes_used, self.out.len() as u64);
        let head = encode_head(&superblock, &self.params);
        self.out[..head.len()].copy_from_slice(&head);
        self.out.resize(self.out.len().next_multiple_of(4096), 0);
        self.out
    }
}

/// Bytes that compress a little; the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[(state >> 20) as usize % 64]
    })
    .take(len)
    .collect()
}

/// Where a program is; a loud note if it is not installed.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: {name} is not installed");
    }
    found
}

/// Whether this process may mount file systems; a loud note if not.
pub fn is_root() -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
        && Path::new("/dev/loop-control").exists();
    if !is_root {
        eprintln!("SKIPPED: mounting needs root and loop devices");
    }
    is_root
}

/// Runs a program to its end and returns what it printed.
pub fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed ({}):\n{stderr}", output.status);
    output.stdout
}

/// An image mounted by the kernel, until it is dropped.
pub struct Mount(PathBuf);

impl Mount {
    pub fn new(image: &Path, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        output(Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).arg(image).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Best effort: the test has its result already.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
