//! An image with everything in it that a reader may stumble over.

use sctl_common::Compression;
use sctl_squashfs::writer::{FileData, InodeKind};

use super::{Builder, noise};

/// All inode types, basic and extended; a directory of `many` entries; names
/// of 255 bytes; a sparse file of more than 4 GiB; fragments; hard links;
/// ids beyond 16 bits; empty things.
pub fn tricky(compression: Compression, block_size: u32, many: usize) -> Builder {
    let mut builder = Builder::new(compression, block_size);
    let block = block_size as usize;
    let mut entries: Vec<(String, u32)> = Vec::new();

    // Files around the block size, tail in a fragment and not.
    for (number, len) in [0, 1, block - 1, block, block + 1, 3 * block, 3 * block + 77].into_iter().enumerate() {
        let contents = noise(len, number as u64);
        let packed = builder.file(&contents, true);
        let plain = builder.file(&contents, false);
        builder.inode(packed).uid = 70_000 + number as u32;
        builder.inode(plain).gid = u32::MAX - 1;
        entries.push((format!("packed{number}"), packed));
        entries.push((format!("plain{number}"), plain));
    }
    // Holes in front, in between, and at the end; nothing but a hole.
    let holes = [&vec![0; block][..], &noise(block, 9), &vec![0; 2 * block], &noise(5, 9)].concat();
    entries.push(("holes".into(), builder.file(&holes, true)));
    entries.push(("hole".into(), builder.file(&vec![0; 2 * block + 1], false)));
    entries.push(("large-sparse".into(), builder.sparse_file((6 << 30) + 123, 5 << 30, &noise(3 * block + 1, 10))));

    let link = builder.symlink(b"packed1");
    let long_link = builder.symlink(&[b'l'; 4095]);
    entries.extend([("link".into(), link), ("link2".into(), link), ("long-link".into(), long_link)]);
    let special = [
        ("fifo", InodeKind::Fifo),
        ("socket", InodeKind::Socket),
        ("char", InodeKind::CharDevice { rdev: 1 << 8 | 3 }),
        ("block", InodeKind::BlockDevice { rdev: 7 << 8 | 200 }),
    ];
    for (name, kind) in special {
        entries.push((name.into(), builder.add(0o640, kind.clone())));
        let extended = builder.add(0o604, kind);
        builder.xattrs(extended, &[("trusted.on-a", name.as_bytes())]);
        entries.push((format!("{name}-x"), extended));
    }
    let link_x = builder.symlink(b"../elsewhere");
    builder.xattrs(link_x, &[("trusted.t", b"of a link")]);
    entries.push(("link-x".into(), link_x));

    // Equal xattr sets in another order; long and binary values; a capability.
    let set = builder.file(&noise(300, 11), true);
    builder.xattrs(set, &[("user.b", b"2"), ("user.a", b"\0\xff\n")]);
    let same = builder.file(&noise(300, 12), true);
    builder.xattrs(same, &[("user.a", b"\0\xff\n"), ("user.b", b"2")]);
    let capability = builder.file(&noise(300, 13), true);
    let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    builder.xattrs(capability, &[("security.capability", &value)]);
    builder.inode(capability).mode = 0o6755;
    let long = builder.file(b"", false);
    let long_name = format!("user.{}", "n".repeat(250));
    builder.xattrs(long, &[(&long_name, &noise(20_000, 14)), ("user.empty", b"")]);
    entries.extend([("xa".into(), set), ("xb".into(), same), ("cap".into(), capability), ("long-x".into(), long)]);

    // A hard link in another directory, of a file with a tail.
    let shared = builder.file(&noise(block + 10, 15), true);
    let empty = builder.directory(vec![]);
    let inner = builder.directory(vec![("shared", shared), ("shared2", shared), ("empty", empty)]);
    builder.xattrs(inner, &[("user.on-a", b"directory")]);
    builder.inode(inner).mode = 0o1777;
    entries.extend([("inner".into(), inner), ("shared3".into(), shared)]);
    entries.push(("n".repeat(255), builder.directory(vec![(&"m".repeat(255), set)])));

    // Many entries: files, links and directories, one file under many names.
    let many: Vec<_> = (0..many)
        .map(|number| {
            let index = match number % 100 {
                0 => builder.directory(vec![]),
                n if n % 2 == 1 => builder.symlink(format!("target{number}").as_bytes()),
                n if n < 50 => shared,
                _ => builder.add(0o644, InodeKind::File(FileData::default())),
            };
            (format!("entry-{number:05}-{}", "x".repeat(number % 13)), index)
        })
        .collect();
    let many = builder.directory(many.iter().map(|(name, index)| (name.as_str(), *index)).collect());
    let long_names: Vec<_> = (0..1000).map(|number| format!("{number:0>255}")).collect();
    let long_names = builder.directory(long_names.iter().map(|name| (name.as_str(), set)).collect());
    entries.extend([("many".into(), many), ("long-names".into(), long_names)]);

    // Deep.
    let mut deep = builder.directory(vec![]);
    for _ in 0..200 {
        deep = builder.directory(vec![("d", deep)]);
    }
    entries.push(("deep".into(), deep));

    let root = builder.directory(entries.iter().map(|(name, index)| (name.as_str(), *index)).collect());
    builder.inode(root).mode = 0o711;
    builder.image.root = root;
    builder
}

/// The same without what tar files and small disks cannot hold: gigabytes of
/// zeros, sockets, large xattrs.
pub fn modest(compression: Compression, block_size: u32, many: usize) -> Builder {
    let mut builder = tricky(compression, block_size, many);
    let root = builder.image.root;
    if let InodeKind::Directory { entries } = &mut builder.inode(root).kind {
        entries.retain(|(name, _)| !matches!(name.as_bytes(), b"large-sparse" | b"long-x" | b"socket" | b"socket-x"));
    }
    builder
}
