//! What the writer writes, as others read it: the kernel, unsquashfs,
//! sqfs2tar, and this package's own reader.

mod support;

use std::{collections::BTreeMap, fs, os::unix::fs::FileExt, process::Command};

use sctl_squashfs::{
    BlockCompressor,
    reader::{ReadAt, Reader, ReaderOptions},
    writer::{FileData, FragmentEntry, FragmentRef, InodeKind, encode_head, write_tables},
};
use support::{
    Builder, GZIP, Mount, ZSTD,
    dump::{Ignore, assert_same, dump_folder, dump_image},
    is_root, noise, output, program,
    tricky::{modest, tricky},
};

/// Entries of the large directory.
const MANY: usize = 70_000;

fn tricky_image(compression: sctl_common::Compression, block_size: u32, many: usize) -> Vec<u8> {
    let builder = tricky(compression, block_size, many);
    let root = builder.image.root;
    builder.finish(root)
}

#[test]
fn own_reader_finds_everything_that_was_written() {
    let image = tricky_image(ZSTD, 4096, MANY);
    assert_eq!(image, tricky_image(ZSTD, 4096, MANY), "the same input gives the same bytes");
    let reader = Reader::open(&image, 0, ReaderOptions::default()).unwrap();
    let tree = dump_image(&reader);
    let node = |path: &str| tree.get(path.as_bytes()).unwrap_or_else(|| panic!("{path} is missing"));
    assert_eq!(tree.keys().filter(|path| path.starts_with(b"/many/")).count(), MANY);
    assert_eq!(node("").mode, 0o711);
    assert_eq!(node("").nlink, 2 + 5);
    assert_eq!(node("/packed3").uid, 70_003);
    assert_eq!(node("/plain3").gid, u32::MAX - 1);
    assert_eq!(node("/packed6").contents, node("/plain6").contents);
    assert_eq!(node("/large-sparse").size, (6 << 30) + 123);
    assert_eq!(node("/long-link").size, 4095);
    assert_eq!((node("/link").nlink, node("/link").inode), (2, node("/link2").inode));
    assert_eq!(node("/inner/shared").inode, node("/shared3").inode);
    assert_eq!(node("/inner/shared").nlink, 3 + (MANY as u64 / 100) * 24);
    assert_eq!(node("/xa").xattrs, node("/xb").xattrs);
    assert_eq!(node("/cap").xattrs[&b"security.capability"[..]].len(), 20);
    assert_eq!(node("/inner").xattrs[&b"user.on-a"[..]], b"directory");
    assert_eq!(node(&format!("/deep{}", "/d".repeat(200))).kind, "directory");
    assert_eq!(reader.superblock().inode_count as usize, {
        let numbers: std::collections::BTreeSet<_> = tree.values().map(|node| node.inode).collect();
        assert_eq!(numbers.first().copied().zip(numbers.last().copied()), Some((1, numbers.len() as u64)));
        numbers.len()
    });
}

#[test]
fn privileged_kernel_reads_the_tricky_image_as_the_reader_does() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (compression, block_size, many) in [(ZSTD, 4096, MANY), (GZIP, 131_072, 500), (ZSTD, 1 << 20, 1)] {
        let image = tricky_image(compression, block_size, many);
        let path = folder.path().join("image");
        fs::write(&path, &image).unwrap();
        let own = dump_image(&Reader::open(image, 0, ReaderOptions::default()).unwrap());
        let mount = Mount::new(&path, &folder.path().join("mnt"));
        assert_same(&dump_folder(&folder.path().join("mnt")), &own, Ignore::default());
        // Names, also such as are not there, through the directory index.
        let listed = folder.path().join("mnt/many");
        for number in (0..many).step_by(997) {
            assert!(listed.join(format!("entry-{number:05}-{}", "x".repeat(number % 13))).symlink_metadata().is_ok());
            assert!(listed.join(format!("entry-{number:05}+")).symlink_metadata().is_err());
        }
        drop(mount);
    }
}

/// So many ids, xattr sets, and fragment blocks that each of their tables
/// takes several metadata blocks.
fn wide_image(compression: sctl_common::Compression) -> Vec<u8> {
    let mut builder = Builder::new(compression, 4096);
    let names: Vec<_> = (0..3000u32).map(|number| format!("{number}")).collect();
    let entries = (0..3000u32).zip(&names).map(|(number, name)| {
        let index = builder.file(&noise(2100, u64::from(number)), true);
        builder.inode(index).uid = number * 71;
        builder.inode(index).gid = number * 73 + 1;
        let value = (number % 1200).to_string();
        builder.xattrs(index, &[("user.number", value.as_bytes()), ("security.x", b"y")]);
        (name.as_str(), index)
    });
    let entries = entries.collect();
    let root = builder.directory(entries);
    builder.finish(root)
}

#[test]
fn privileged_kernel_and_unsquashfs_read_tables_of_many_blocks() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for compression in [ZSTD, GZIP] {
        let image = wide_image(compression);
        let path = folder.path().join("image");
        fs::write(&path, &image).unwrap();
        let reader = Reader::open(image, 0, ReaderOptions::default()).unwrap();
        assert!(reader.superblock().fragment_count == 3000 && reader.superblock().id_count > 5000);
        let own = dump_image(&reader);
        let mount = Mount::new(&path, &folder.path().join("mnt"));
        assert_same(&dump_folder(&folder.path().join("mnt")), &own, Ignore::default());
        drop(mount);
        if let Some(unsquashfs) = program("unsquashfs") {
            let unpacked = folder.path().join(format!("{compression}"));
            output(Command::new(unsquashfs).args(["-no-progress", "-d"]).arg(&unpacked).arg(&path));
            let ignore = Ignore { inodes: true, directories: true, ..Ignore::default() };
            assert_same(&dump_folder(&unpacked), &own, ignore);
        }
    }
}

/// A file on disk as the reader's source.
struct OnDisk(fs::File);

impl ReadAt for OnDisk {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn len(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
}

#[test]
fn privileged_kernel_reads_data_and_tables_beyond_4_gib() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let image = fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let mut builder = Builder::new(ZSTD, 131_072);
    let (contents, tail) = (noise(131_072, 1), noise(1000, 2));
    let mut stored = Vec::new();
    let mut compressor = BlockCompressor::new(ZSTD).unwrap();
    let start = 5 << 30;
    let block = compressor.compress(&contents, &mut stored).unwrap();
    image.write_all_at(&stored, start).unwrap();
    let fragment_start = start + stored.len() as u64;
    let fragment = compressor.compress(&tail, &mut stored).unwrap();
    image.write_all_at(&stored, fragment_start).unwrap();
    let data_end = fragment_start + stored.len() as u64;
    let data = FileData {
        size: 132_072,
        start,
        blocks: [block].into(),
        fragment: Some(FragmentRef { index: 0, offset: 0 }),
        sparse_bytes: 0,
    };
    let file = builder.add(0o644, InodeKind::File(data));
    builder.image.root = builder.directory(vec![("file", file)]);
    let mut tables = Vec::new();
    let fragments = [FragmentEntry { start: fragment_start, size: fragment }];
    let superblock = write_tables(&mut tables, data_end, &builder.image, &fragments, &builder.params).unwrap();
    image.write_all_at(&tables, data_end).unwrap();
    image.write_all_at(&encode_head(&superblock, &builder.params), 0).unwrap();
    image.set_len(superblock.bytes_used.next_multiple_of(4096)).unwrap();
    let reader = Reader::open(OnDisk(image), 0, ReaderOptions::default()).unwrap();
    let own = dump_image(&reader);
    let inode = reader.inode(reader.lookup(&reader.inode(reader.root()).unwrap(), b"file").unwrap().unwrap()).unwrap();
    let mut buf = vec![0; 140_000];
    assert_eq!(reader.read(&inode, 0, &mut buf).unwrap(), 132_072);
    assert!(buf[..132_072] == [contents, tail].concat());
    if is_root() {
        let _mount = Mount::new(&path, &folder.path().join("mnt"));
        assert_same(&dump_folder(&folder.path().join("mnt")), &own, Ignore::default());
    }
}

#[test]
fn privileged_unsquashfs_unpacks_what_was_written() {
    let Some(unsquashfs) = program("unsquashfs").filter(|_| is_root()) else { return };
    let folder = tempfile::tempdir().unwrap();
    for compression in [ZSTD, GZIP] {
        let builder = modest(compression, 65_536, 2000);
        let root = builder.image.root;
        let image = builder.finish(root);
        let (path, unpacked) = (folder.path().join("image"), folder.path().join(format!("{compression}")));
        fs::write(&path, &image).unwrap();
        output(Command::new(unsquashfs.as_path()).args(["-no-progress", "-d"]).arg(&unpacked).arg(&path));
        let own = dump_image(&Reader::open(image, 0, ReaderOptions::default()).unwrap());
        let ignore = Ignore { inodes: true, directories: true, ..Ignore::default() };
        assert_same(&dump_folder(&unpacked), &own, ignore);
    }
}

#[test]
fn unsquashfs_and_sqfs2tar_list_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let image = tricky_image(ZSTD, 131_072, 2000);
    fs::write(&path, &image).unwrap();
    let own = dump_image(&Reader::open(image, 0, ReaderOptions::default()).unwrap());
    if let Some(unsquashfs) = program("unsquashfs") {
        let listing = output(Command::new(unsquashfs).args(["-lln", "-UTC", "-d", ""]).arg(&path));
        let mut listed = BTreeMap::new();
        for line in String::from_utf8(listing).unwrap().lines() {
            let mut fields = line.split_whitespace();
            let (Some(mode), Some(owner)) = (fields.next(), fields.next()) else { continue };
            let Some(name) = line.split_once("02:40 ").map(|(_, name)| name) else { continue };
            let name = name.split(" -> ").next().unwrap().trim_end_matches('/');
            listed.insert(name.as_bytes().to_vec(), format!("{} {owner}", &mode[..1]));
        }
        let expected: BTreeMap<_, _> = own
            .iter()
            .map(|(path, node)| {
                let kind = match node.kind {
                    "directory" => 'd',
                    "symlink" => 'l',
                    "fifo" => 'p',
                    "socket" => 's',
                    "char" => 'c',
                    "block" => 'b',
                    _ => '-',
                };
                (path.clone(), format!("{kind} {}/{}", node.uid, node.gid))
            })
            .collect();
        assert_eq!(listed.len(), expected.len());
        assert!(listed == expected, "unsquashfs lists something else");
    }
    if let Some(sqfs2tar) = program("sqfs2tar") {
        let builder = modest(GZIP, 131_072, 2000);
        let root = builder.image.root;
        fs::write(&path, builder.finish(root)).unwrap();
        let tar = output(Command::new(sqfs2tar).arg(&path));
        assert!(tar.len() > 2000 * 512);
    }
}

#[test]
fn an_empty_root_is_an_image() {
    for compression in [ZSTD, GZIP, sctl_common::Compression::Gzip { level: 1 }] {
        let mut builder = Builder::new(compression, 131_072);
        let root = builder.directory(vec![]);
        let image = builder.finish(root);
        let reader = Reader::open(&image, 0, ReaderOptions::default()).unwrap();
        assert_eq!((dump_image(&reader).len(), reader.superblock().fragment_table_start), (1, u64::MAX));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, &image).unwrap();
        if let Some(unsquashfs) = program("unsquashfs") {
            output(Command::new(unsquashfs).arg("-lls").arg(&path));
        }
        if let Some(sqfs2tar) = program("sqfs2tar") {
            output(Command::new(sqfs2tar).arg(&path));
        }
    }
}
