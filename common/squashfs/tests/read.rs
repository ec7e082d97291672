//! Images of mksquashfs and tar2sqfs, as the reader reads them.

mod support;

use std::{
    fs,
    ops::ControlFlow,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::Command,
};

use sctl_squashfs::reader::{ReadError, Reader, ReaderOptions};
use support::{
    Builder, GZIP, ZSTD,
    dump::{Ignore, assert_same, dump_folder, dump_image},
    noise, output, program,
    tricky::tricky,
};

/// A folder with everything that an ordinary user can make.
fn make_folder(root: &Path) {
    let write = |path: &str, contents: &[u8]| fs::write(root.join(path), contents).unwrap();
    for folder in ["empty", "some/deeper/folder", "many", "long"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for (number, len) in [0, 1, 4095, 4096, 4097, 131_072, 131_073, 1 << 20, 3_000_001].into_iter().enumerate() {
        write(&format!("file{number}"), &noise(len, number as u64));
        write(&format!("zero{number}"), &vec![0; len]);
    }
    write("some/holes", &[vec![0; 300_000], noise(200_000, 77), vec![0; 500_000], noise(3, 78)].concat());
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len((300 << 20) + 17).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 200 << 20).unwrap();
    fs::hard_link(root.join("file4"), root.join("some/hard-link")).unwrap();
    std::os::unix::fs::symlink("some/hard-link", root.join("symlink")).unwrap();
    std::os::unix::fs::symlink("x".repeat(4000), root.join("long-symlink")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    drop(UnixListener::bind(root.join("socket")).unwrap());
    for number in 0..3000 {
        write(&format!("many/{number}-{}", "n".repeat(number % 50)), b"");
    }
    for number in 0..200 {
        write(&format!("long/{number:0>255}"), number.to_string().as_bytes());
    }
    fs::set_permissions(root.join("file2"), fs::Permissions::from_mode(0o4711)).unwrap();
    for (path, name, value) in [
        ("file1", "user.one", noise(10, 1)),
        ("file1", "user.two", noise(2000, 2)),
        // Equal long values are stored out of line.
        ("file3", "user.two", noise(2000, 2)),
        ("file5", "user.other", noise(2000, 2)),
        ("some", "user.folder", noise(70, 3)),
    ] {
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(root.join(path), name, &value, flags).is_err() {
            eprintln!("SKIPPED: no user xattrs on this file system");
        }
    }
    for path in ["file1", "some", "many", "symlink", ""] {
        let time = rustix::fs::Timespec { tv_sec: 1_234_567_890, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, root.join(path), &times, flags).unwrap();
    }
}

#[test]
fn images_of_mksquashfs_are_the_folder_they_were_made_of() {
    let Some(mksquashfs) = program("mksquashfs") else { return };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    make_folder(&root);
    let expected = dump_folder(&root);
    let variants: [&[&str]; 10] = [
        &["-comp", "gzip", "-Xcompression-level", "1"],
        &["-comp", "zstd", "-Xcompression-level", "1"],
        &["-comp", "zstd", "-Xcompression-level", "1", "-b", "4096", "-always-use-fragments"],
        &["-comp", "zstd", "-Xcompression-level", "1", "-b", "1M", "-no-exports", "-no-fragments"],
        &["-comp", "xz", "-Xbcj", "x86"],
        &["-comp", "xz", "-b", "64K", "-Xdict-size", "100%"],
        &["-comp", "lz4", "-no-fragments"],
        &["-comp", "lz4", "-Xhc", "-no-duplicates"],
        &["-comp", "gzip", "-noI", "-noId", "-noD", "-noF", "-noX"],
        &["-comp", "gzip", "-no-sparse", "-no-xattrs", "-no-tailends", "-Xcompression-level", "1"],
    ];
    for variant in variants {
        // Its zeros take mksquashfs seconds, so one variant has to do.
        let left_out: &[&str] = if variant.contains(&"1M") { &[] } else { &["-e", "sparse"] };
        let image = folder.path().join("image");
        output(
            Command::new(&mksquashfs)
                .args([root.as_os_str(), image.as_os_str()])
                .args(["-noappend", "-no-progress", "-processors", "2"])
                .args(variant)
                .args(left_out),
        );
        let reader = Reader::open(fs::read(&image).unwrap(), 0, ReaderOptions::default()).unwrap();
        let mut expected = expected.clone();
        if !left_out.is_empty() {
            expected.remove(&b"/sparse"[..]);
        }
        let xattrs = variant.contains(&"-no-xattrs");
        let own = dump_image(&reader);
        assert_same(&expected, &own, Ignore { inodes: true, directories: true, xattrs, ..Ignore::default() });
        let exportable = reader.inode_by_number(1).unwrap().is_some();
        assert_eq!(exportable, !variant.contains(&"-no-exports"), "{variant:?}");
        if exportable {
            for number in 1..=reader.superblock().inode_count {
                let reference = reader.inode_by_number(number).unwrap().unwrap();
                assert_eq!(reader.inode(reference).unwrap().number, number);
            }
        }
    }
}

#[test]
fn images_of_tar2sqfs_are_the_folder_they_were_made_of() {
    let (Some(tar2sqfs), Some(tar)) = (program("tar2sqfs"), program("tar")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    make_folder(&root);
    for path in ["sparse", "socket"] {
        fs::remove_file(root.join(path)).unwrap();
    }
    let archive = folder.path().join("tar");
    output(Command::new(tar).args(["--format=pax", "--xattrs", "-cf"]).arg(&archive).arg("-C").arg(&root).arg("."));
    for compressor in ["gzip", "xz", "lz4", "zstd"] {
        let image = folder.path().join(compressor);
        let status = Command::new(&tar2sqfs)
            .args(["-q", "-f", "-c", compressor])
            .arg(&image)
            .stdin(fs::File::open(&archive).unwrap())
            .status();
        assert!(status.unwrap().success(), "{compressor}");
        let reader = Reader::open(fs::read(&image).unwrap(), 0, ReaderOptions::default()).unwrap();
        let (mut expected, mut own) = (dump_folder(&root), dump_image(&reader));
        // It makes up the root's attributes.
        expected.remove(&b""[..]);
        own.remove(&b""[..]);
        assert_same(&expected, &own, Ignore { inodes: true, directories: true, ..Ignore::default() });
    }
}

#[test]
fn devices_have_their_numbers() {
    let Some(mksquashfs) = program("mksquashfs") else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("root")).unwrap();
    let image = folder.path().join("image");
    output(Command::new(mksquashfs).arg(folder.path().join("root")).arg(&image).args([
        "-noappend",
        "-no-progress",
        "-p",
        "null c 666 0 0 1 3",
        "-p",
        "disk b 660 7 70000 8 17",
    ]));
    let tree = dump_image(&Reader::open(fs::read(image).unwrap(), 0, ReaderOptions::default()).unwrap());
    let node = |path: &str| &tree[path.as_bytes()];
    assert_eq!((node("/null").kind, node("/null").rdev, node("/null").mode), ("char", 1 << 8 | 3, 0o666));
    assert_eq!((node("/disk").kind, node("/disk").rdev, node("/disk").gid), ("block", 8 << 8 | 17, 70_000));
}

#[test]
fn names_are_found_and_listings_resume_anywhere() {
    for block_size in [4096, 131_072] {
        let builder = tricky(ZSTD, block_size, 20_000);
        let root = builder.image.root;
        // In the middle of something else, as in a SIF.
        let image = [vec![7; 12_345], builder.finish(root)].concat();
        let reader = Reader::open(image, 12_345, ReaderOptions::default()).unwrap();
        let root = reader.inode(reader.root()).unwrap();
        for folder in ["many", "long-names", "inner"] {
            let directory = reader.inode(reader.lookup(&root, folder.as_bytes()).unwrap().unwrap()).unwrap();
            let mut all = Vec::new();
            reader
                .read_dir(&directory, 0, |entry| {
                    all.push((entry.name.to_vec(), entry.inode, entry.inode_number, entry.next));
                    ControlFlow::Continue(())
                })
                .unwrap();
            for (number, (name, inode, inode_number, next)) in all.iter().enumerate().step_by(7) {
                assert_eq!(reader.lookup(&directory, name).unwrap(), Some(*inode));
                assert_eq!(reader.inode(*inode).unwrap().number, *inode_number);
                for missing in [&name[..name.len() - 1], &[&name[..], b"\x01"].concat(), b"\xff"] {
                    let is_there = all.binary_search_by(|(other, ..)| other.as_slice().cmp(missing)).is_ok();
                    assert_eq!(reader.lookup(&directory, missing).unwrap().is_some(), is_there);
                }
                let mut following = None;
                reader
                    .read_dir(&directory, *next, |entry| {
                        following = Some(entry.name.to_vec());
                        ControlFlow::Break(())
                    })
                    .unwrap();
                assert_eq!(following.as_ref(), all.get(number + 1).map(|(name, ..)| name));
            }
            assert_eq!(reader.parent(&directory).unwrap(), Some(reader.root()));
        }
        assert_eq!(reader.lookup(&root, b"nothing").unwrap(), None);
        assert_eq!(reader.lookup(&root, b"").unwrap(), None);
        assert_eq!(reader.lookup(&root, &[b'n'; 300]).unwrap(), None);
        assert_eq!(reader.parent(&root).unwrap(), Some(reader.root()));
        let file = reader.inode(reader.lookup(&root, b"packed1").unwrap().unwrap()).unwrap();
        assert!(matches!(reader.lookup(&file, b"x"), Err(ReadError::WrongKind { .. })));
        assert!(matches!(reader.read(&root, 0, &mut [0]), Err(ReadError::WrongKind { .. })));
        assert!(matches!(reader.read_link(&file), Err(ReadError::WrongKind { .. })));
    }
}

#[test]
fn xattrs_are_found_by_name() {
    let builder = tricky(GZIP, 131_072, 1);
    let root = builder.image.root;
    let reader = Reader::open(builder.finish(root), 0, ReaderOptions::default()).unwrap();
    let root = reader.inode(reader.root()).unwrap();
    let inode = |name: &[u8]| reader.inode(reader.lookup(&root, name).unwrap().unwrap()).unwrap();
    assert!(inode(b"xa").has_xattrs() && !inode(b"packed1").has_xattrs());
    assert_eq!(reader.xattr(&inode(b"xa"), b"user.b").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(reader.xattr(&inode(b"xa"), b"user.a").unwrap().as_deref(), Some(&b"\0\xff\n"[..]));
    assert_eq!(reader.xattr(&inode(b"xa"), b"user.c").unwrap(), None);
    assert_eq!(reader.xattr(&inode(b"packed1"), b"user.c").unwrap(), None);
    let mut names = Vec::new();
    reader.xattr_names(&inode(b"long-x"), |name| names.push(name.to_vec())).unwrap();
    assert_eq!(names, [b"user.empty".to_vec(), [&b"user."[..], &[b'n'; 250]].concat()]);
}

#[test]
fn every_piece_of_a_file_is_the_same_from_every_thread_and_cache() {
    let block_size = 4096;
    let mut builder = Builder::new(ZSTD, block_size);
    // Long enough for checkpoints, with holes.
    let mut contents = noise(9_000_123, 5);
    contents[1_000_000..1_100_000].fill(0);
    let file = builder.file(&contents, true);
    let root = builder.directory(vec![("file", file)]);
    let image = builder.finish(root);
    for cache_bytes in [0, 20_000, 1 << 20] {
        let options = ReaderOptions { cache_bytes, metadata_cache_bytes: cache_bytes };
        let reader = Reader::open(&image, 0, options).unwrap();
        let root = reader.inode(reader.root()).unwrap();
        let file = reader.inode(reader.lookup(&root, b"file").unwrap().unwrap()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (reader, file, contents) = (&reader, &file, &contents);
                scope.spawn(move || {
                    let mut state = thread + 1;
                    for _ in 0..400 {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let at = (state >> 20) as usize % (contents.len() + 1000);
                        let mut buf = vec![9; (state >> 50) as usize];
                        let len = reader.read(file, at as u64, &mut buf).unwrap();
                        let expected = contents.get(at..).unwrap_or_default();
                        let expected = &expected[..expected.len().min(buf.len())];
                        assert!(buf[..len] == *expected, "{at} {len}");
                    }
                });
            }
        });
        assert_eq!(reader.read(&file, u64::MAX, &mut [0; 10]).unwrap(), 0);
    }
}

#[test]
fn what_is_not_supported_is_a_clear_error() {
    let Some(mksquashfs) = program("mksquashfs") else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), noise(100, 1)).unwrap();
    for compressor in ["lzo", "lzma"] {
        let image = folder.path().join(compressor);
        let made = Command::new(&mksquashfs)
            .arg(folder.path().join("file"))
            .arg(&image)
            .args(["-noappend", "-no-progress", "-comp", compressor])
            .output();
        if !made.unwrap().status.success() {
            eprintln!("SKIPPED: mksquashfs has no {compressor}");
            continue;
        }
        let error = Reader::open(fs::read(&image).unwrap(), 0, ReaderOptions::default()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, format!("squashfs images compressed with {compressor} are not supported"));
    }
    let error = Reader::open(b"not an image".repeat(100), 0, ReaderOptions::default()).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().starts_with("not a squashfs file system"));
}
