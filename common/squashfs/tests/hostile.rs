//! Damaged and hostile images: errors, never a panic, never much memory.

mod support;

use std::{
    fs, io,
    ops::ControlFlow,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use sctl_squashfs::reader::{InodeKind, ReadAt, Reader, ReaderOptions};
use support::{
    Builder, GZIP, ZSTD,
    dump::{dump_image, try_dump_image},
    noise, output, program,
};

const OPTIONS: ReaderOptions = ReaderOptions { cache_bytes: 64 << 10, metadata_cache_bytes: 64 << 10 };

/// A little of everything.
fn small_image(compression: sctl_common::Compression) -> Vec<u8> {
    let mut builder = Builder::new(compression, 4096);
    let file = builder.file(&noise(9000, 1), true);
    let plain = builder.file(&[noise(5000, 2), vec![0; 10_000]].concat(), false);
    let link = builder.symlink(b"file");
    builder.xattrs(file, &[("user.name", b"value"), ("security.x", b"y")]);
    let entries: Vec<_> = (0..40).map(|number| (format!("{number:0>250}"), link)).collect();
    let many = builder.directory(entries.iter().map(|(name, index)| (name.as_str(), *index)).collect());
    builder.xattrs(many, &[("trusted.name", b"")]);
    let device = builder.add(0o600, sctl_squashfs::writer::InodeKind::CharDevice { rdev: 259 });
    let root =
        builder.directory(vec![("file", file), ("plain", plain), ("link", link), ("many", many), ("dev", device)]);
    builder.finish(root)
}

/// Opens and walks whatever this is; the result does not matter.
fn walk(image: &[u8]) {
    let Ok(reader) = Reader::open(image, 0, OPTIONS) else { return };
    let mut waiting = vec![reader.root()];
    let mut seen = 0;
    let mut buf = vec![0; 10_000];
    while let Some(reference) = waiting.pop() {
        let Ok(inode) = reader.inode(reference) else { continue };
        match &inode.kind {
            InodeKind::Directory(_) => {
                let _ = reader.read_dir(&inode, 0, |entry| {
                    seen += 1;
                    waiting.push(entry.inode);
                    if seen > 300 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                let _ = reader.lookup(&inode, b"plain");
                let _ = reader.parent(&inode);
            }
            InodeKind::File(_) => {
                for at in [0, 4096, 8192, inode.size().saturating_sub(5000)] {
                    let _ = reader.read(&inode, at, &mut buf);
                }
            }
            InodeKind::Symlink(_) => drop(reader.read_link(&inode)),
            _ => {}
        }
        let _ = reader.xattrs(&inode);
        let _ = reader.inode_by_number(inode.number);
    }
}

#[test]
fn every_truncation_is_an_error() {
    for compression in [ZSTD, GZIP] {
        let image = small_image(compression);
        let reader = Reader::open(&image, 0, OPTIONS).unwrap();
        dump_image(&reader);
        let used = reader.superblock().bytes_used as usize;
        for len in 0..used {
            assert!(Reader::open(&image[..len], 0, OPTIONS).is_err(), "accepted {len} bytes");
        }
        // The same with a superblock that fits the rest.
        for len in 96..used {
            let mut short = image[..len].to_vec();
            short[40..48].copy_from_slice(&(len as u64).to_le_bytes());
            walk(&short);
        }
    }
}

#[test]
fn no_damaged_byte_of_the_metadata_panics() {
    let mut images = vec![small_image(ZSTD), small_image(GZIP)];
    if let Some(mksquashfs) = program("mksquashfs") {
        // Uncompressed metadata, so that damage reaches the fields.
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let whole = small_image(ZSTD);
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), noise(9000, 1)).unwrap();
        fs::write(root.join("plain"), &whole[..200]).unwrap();
        fs::create_dir(root.join("many")).unwrap();
        for number in 0..4 {
            std::os::unix::fs::symlink("target", root.join("many").join(format!("{number:0>25}"))).unwrap();
        }
        let flags = rustix::fs::XattrFlags::empty();
        let _ = rustix::fs::setxattr(root.join("file"), "user.x", &noise(100, 3), flags);
        let _ = rustix::fs::setxattr(root.join("plain"), "user.x", &noise(100, 3), flags);
        for compressor in ["gzip", "xz", "lz4"] {
            let image = folder.path().join(compressor);
            let options = ["-noappend", "-no-progress", "-b", "4096", "-noI", "-noId", "-noX", "-comp", compressor];
            output(Command::new(&mksquashfs).arg(&root).arg(&image).args(options));
            let reader_image = fs::read(&image).unwrap();
            dump_image(&Reader::open(&reader_image, 0, OPTIONS).unwrap());
            images.push(reader_image);
        }
    }
    for image in images {
        let superblock = Reader::open(&image, 0, OPTIONS).unwrap().superblock().clone();
        let (start, end) = (superblock.inode_table_start as usize, superblock.bytes_used as usize);
        for at in (0..96).chain(start..end) {
            for change in [0x01, 0x80, 0xff] {
                let mut damaged = image.clone();
                damaged[at] ^= change;
                walk(&damaged);
            }
        }
        for at in (96..start).step_by(7) {
            let mut damaged = image.clone();
            damaged[at] ^= 0x55;
            walk(&damaged);
        }
    }
}

/// Fails from call number `allowed` on.
struct Failing<'a> {
    bytes: &'a [u8],
    allowed: AtomicUsize,
}

impl ReadAt for Failing<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let left = self.allowed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match left {
            Ok(_) => self.bytes.read_exact_at(buf, offset),
            Err(_) => Err(io::Error::other("no more")),
        }
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

#[test]
fn a_source_that_fails_at_any_call_gives_an_error_and_recovers() {
    let image = small_image(ZSTD);
    let whole = dump_image(&Reader::open(&image, 0, OPTIONS).unwrap());
    for calls in 0.. {
        let source = Failing { bytes: &image, allowed: AtomicUsize::new(calls) };
        let Ok(reader) = Reader::open(&source, 0, OPTIONS) else { continue };
        let result = try_dump_image(&reader, usize::MAX);
        // Failures must not stay in the caches.
        source.allowed.store(usize::MAX, Ordering::Relaxed);
        assert_eq!(dump_image(&reader), whole, "after {calls} calls");
        if result.is_ok() {
            assert!(calls > 5);
            return;
        }
    }
}

#[test]
fn directories_that_contain_themselves_are_read_once_per_call() {
    // One directory inode, whose only entry is itself; metadata uncompressed.
    let mut builder = Builder::new(GZIP, 4096);
    let root = builder.directory(vec![]);
    let image = builder.finish(root);
    let mut changed = Reader::open(&image, 0, OPTIONS).unwrap().superblock().clone();
    let mut tables = Vec::new();
    let block = |bytes: &[u8]| [&(bytes.len() as u16 | 0x8000).to_le_bytes()[..], bytes].concat();
    let listing =
        [&[0; 4][..], &[0; 4], &1u32.to_le_bytes(), &[0; 4], &1u16.to_le_bytes(), &4u16.to_le_bytes(), b"inner"]
            .concat();
    let inode = [
        &1u16.to_le_bytes()[..],
        &0o755u16.to_le_bytes(),
        &[0; 8],
        &1u32.to_le_bytes(),
        &[0; 4],
        &3u32.to_le_bytes(),
        &(listing.len() as u16 + 3).to_le_bytes(),
        &[0; 2],
        &2u32.to_le_bytes(),
    ]
    .concat();
    tables.extend(block(&inode));
    changed.inode_table_start = 96;
    changed.directory_table_start = 96 + tables.len() as u64;
    tables.extend(block(&listing));
    let ids = 96 + tables.len() as u64;
    tables.extend(block(&[0; 4]));
    changed.id_table_start = 96 + tables.len() as u64;
    tables.extend(ids.to_le_bytes());
    changed.export_table_start = u64::MAX;
    changed.root_inode = 0;
    changed.inode_count = 1;
    changed.bytes_used = 96 + tables.len() as u64;
    let image = [&changed.encode()[..], &tables].concat();
    let reader = Reader::open(&image, 0, OPTIONS).unwrap();
    let root = reader.inode(reader.root()).unwrap();
    assert_eq!(reader.lookup(&root, b"inner").unwrap(), Some(reader.root()));
    assert_eq!(try_dump_image(&reader, 1000).unwrap().len(), 2);
}
