//! What squashfs cannot hold is a clear error of the writer.

mod support;

use std::io;

use sctl_common::EntryName;
use sctl_squashfs::{
    BlockSize, flags,
    reader::{Reader, ReaderOptions},
    writer::{FileData, FragmentEntry, FragmentRef, Image, Inode, InodeKind, Params, WriteError, Xattr, write_tables},
};
use support::{Builder, ZSTD, dump::dump_image};

const PARAMS: Params = Params { compression: ZSTD, block_size: 4096, mkfs_time: 0 };
const DATA_END: u64 = 10_000;

fn inode(kind: InodeKind) -> Inode {
    Inode { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: None, kind }
}

fn name(text: &str) -> EntryName {
    EntryName::parse(text.as_bytes()).unwrap()
}

/// Inode 0 is the root, with inode 1 as its entry `a`.
fn image_of(kind: InodeKind) -> Image {
    let root = inode(InodeKind::Directory { entries: vec![(name("a"), 1)] });
    Image { inodes: vec![root, inode(kind)], root: 0, xattr_sets: Vec::new() }
}

fn error_of(image: &Image) -> WriteError {
    let fragments = [FragmentEntry { start: 200, size: BlockSize::stored(100, true).unwrap() }];
    write_tables(&mut io::sink(), DATA_END, image, &fragments, &PARAMS).expect_err("should be refused")
}

#[test]
fn trees_that_are_none_are_refused() {
    let directory = |entries: &[(&str, u32)]| InodeKind::Directory {
        entries: entries.iter().map(|(text, index)| (name(text), *index)).collect(),
    };
    let mut image = image_of(directory(&[("again", 0)]));
    assert!(matches!(error_of(&image), WriteError::DirectoryLinkedTwice { index: 0 }));
    image.inodes[1].kind = directory(&[("self", 1)]);
    assert!(matches!(error_of(&image), WriteError::DirectoryLinkedTwice { index: 1 }));
    image.inodes[0].kind = directory(&[("a", 1), ("b", 1)]);
    image.inodes[1].kind = directory(&[]);
    assert!(matches!(error_of(&image), WriteError::DirectoryLinkedTwice { index: 1 }));
    image.inodes[0].kind = directory(&[("b", 1), ("a", 1)]);
    assert!(matches!(error_of(&image), WriteError::UnsortedDirectory { index: 0, .. }));
    image.inodes[1].kind = InodeKind::Fifo;
    image.inodes[0].kind = directory(&[("a", 1), ("a", 1)]);
    assert!(matches!(error_of(&image), WriteError::UnsortedDirectory { index: 0, .. }));
    image.inodes[0].kind = directory(&[("a", 2)]);
    assert!(matches!(error_of(&image), WriteError::NoSuchInode { index: 2 }));
    image.root = 1;
    assert!(matches!(error_of(&image), WriteError::RootNotDirectory));
    image.root = 7;
    assert!(matches!(error_of(&image), WriteError::NoSuchInode { index: 7 }));
    image.root = 0;
    image.inodes[0].kind = directory(&[("a", 1)]);
    image.inodes[1].mode = 0o100_644;
    assert!(matches!(error_of(&image), WriteError::BadMode { index: 1, .. }));
}

#[test]
fn files_whose_blocks_do_not_fit_are_refused() {
    let block = BlockSize::stored(1000, true).unwrap();
    let file = |size, blocks: &[BlockSize], fragment: Option<(u32, u32)>, start| {
        let fragment = fragment.map(|(index, offset)| FragmentRef { index, offset });
        image_of(InodeKind::File(FileData { size, start, blocks: blocks.into(), fragment, sparse_bytes: 0 }))
    };
    for image in [
        file(1, &[], None, 96),
        file(0, &[block], None, 96),
        file(4097, &[block], None, 96),
        file(4097, &[block, block], Some((0, 0)), 96),
    ] {
        assert!(matches!(error_of(&image), WriteError::BlockCount { index: 1, .. }), "{image:?}");
    }
    for image in
        [file(10, &[], Some((1, 0)), 96), file(10, &[], Some((0, 4087)), 96), file(4096, &[block], Some((0, 0)), 96)]
    {
        assert!(matches!(error_of(&image), WriteError::BadFragment { index: 1, .. }), "{image:?}");
    }
    for start in [DATA_END - 999, u64::MAX] {
        let error = error_of(&file(4096, &[block], None, start));
        assert!(matches!(error, WriteError::OutOfDataArea { .. }));
    }
    let fragments = [FragmentEntry { start: DATA_END, size: block }];
    let result = write_tables(&mut io::sink(), DATA_END, &image_of(InodeKind::Fifo), &fragments, &PARAMS);
    assert!(matches!(result, Err(WriteError::OutOfDataArea { .. })));
    let result = write_tables(
        &mut io::sink(),
        DATA_END,
        &image_of(InodeKind::Fifo),
        &[],
        &Params { block_size: 5000, ..PARAMS },
    );
    assert!(matches!(result, Err(WriteError::BlockSize { size: 5000 })));
}

#[test]
fn symlinks_and_xattrs_beyond_the_format_are_refused() {
    for len in [0, 4096] {
        let image = image_of(InodeKind::Symlink { target: vec![b'x'; len].into() });
        assert!(matches!(error_of(&image), WriteError::SymlinkTarget { index: 1, .. }), "{len}");
    }
    let with_xattrs = |xattrs: &[(&str, usize)]| {
        let mut image = image_of(InodeKind::Socket);
        image.inodes[1].xattrs = Some(0);
        let xattr = |(name, len): &(&str, usize)| Xattr { name: (*name).into(), value: vec![0; *len] };
        image.xattr_sets.push(xattrs.iter().map(xattr).collect());
        image
    };
    let long = format!("user.{}", "x".repeat(251));
    for bad in ["system.posix_acl_access", "user.", "user", "", "btrfs.x", "user.a\0b", &long] {
        assert!(matches!(error_of(&with_xattrs(&[(bad, 1)])), WriteError::XattrName { .. }), "{bad}");
    }
    assert!(matches!(error_of(&with_xattrs(&[("user.a", 1), ("user.a", 2)])), WriteError::XattrName { .. }));
    assert!(matches!(error_of(&with_xattrs(&[("user.a", 65_537)])), WriteError::XattrValue { len: 65_537, .. }));
    let mut image = with_xattrs(&[]);
    image.inodes[1].xattrs = Some(1);
    assert!(matches!(error_of(&image), WriteError::NoSuchXattrSet { set: 1 }));
}

#[test]
fn more_ids_than_16_bits_count_are_refused() {
    for (ids, is_fine) in [(65_535u32, true), (65_536, false)] {
        let mut builder = Builder::new(ZSTD, 4096);
        let names: Vec<_> = (0..ids).map(|number| format!("{number:05}")).collect();
        let entries = names.iter().zip(0..).map(|(text, number)| {
            let index = builder.add(0o644, InodeKind::Fifo);
            builder.inode(index).uid = number + 100_000;
            builder.inode(index).gid = 100_000;
            (text.as_str(), index)
        });
        let entries = entries.collect();
        let root = builder.directory(entries);
        (builder.inode(root).uid, builder.inode(root).gid) = (100_000, 100_000);
        builder.image.root = root;
        if is_fine {
            let reader = Reader::open(builder.finish(root), 0, ReaderOptions::default()).unwrap();
            assert_eq!(dump_image(&reader)[&b"/65534"[..]].uid, 165_534);
        } else {
            let result = write_tables(&mut io::sink(), DATA_END, &builder.image, &[], &PARAMS);
            let error = result.expect_err("should be refused");
            assert_eq!(error.to_string(), "image has more than 65,535 distinct user and group ids");
        }
    }
}

#[test]
fn output_that_fails_at_any_byte_is_an_error() {
    struct Limited(usize);
    impl io::Write for Limited {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut image = image_of(InodeKind::Fifo);
    image.inodes[1].xattrs = Some(0);
    image.xattr_sets.push(vec![Xattr { name: b"user.x".into(), value: b"y".into() }]);
    let superblock = write_tables(&mut io::sink(), DATA_END, &image, &[], &PARAMS).unwrap();
    let len = (superblock.bytes_used - DATA_END) as usize;
    for room in 0..len {
        let result = write_tables(&mut Limited(room), DATA_END, &image, &[], &PARAMS);
        assert!(matches!(result, Err(WriteError::Io { .. })), "{room}");
    }
    assert_eq!(write_tables(&mut Limited(len), DATA_END, &image, &[], &PARAMS).unwrap(), superblock);
}

#[test]
fn inodes_that_nothing_leads_to_are_left_out_and_flags_say_what_there_is() {
    let mut image = image_of(InodeKind::Fifo);
    image.inodes.push(inode(InodeKind::Symlink { target: [].into() }));
    image.inodes[1].xattrs = Some(0);
    image.xattr_sets.push(Vec::new());
    let superblock = write_tables(&mut io::sink(), DATA_END, &image, &[], &PARAMS).unwrap();
    assert_eq!(superblock.inode_count, 2);
    let expected =
        flags::EXPORTABLE | flags::DUPLICATES | flags::NO_FRAGMENTS | flags::NO_XATTRS | flags::COMPRESSOR_OPTIONS;
    assert_eq!((superblock.flags, superblock.xattr_table_start), (expected, u64::MAX));
    assert_eq!((superblock.fragment_count, superblock.fragment_table_start), (0, u64::MAX));
    let fragments = [FragmentEntry { start: 200, size: BlockSize::stored(100, true).unwrap() }];
    image.xattr_sets[0].push(Xattr { name: b"user.x".into(), value: b"y".into() });
    let params = Params { compression: support::GZIP, ..PARAMS };
    let superblock = write_tables(&mut io::sink(), DATA_END, &image, &fragments, &params).unwrap();
    assert_eq!(superblock.flags, flags::EXPORTABLE | flags::DUPLICATES);
    assert_eq!(superblock.fragment_count, 1);
}
