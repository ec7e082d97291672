//! Property: whatever tree the writer accepts, the reader finds in the image.
#![no_main]

use std::{collections::BTreeMap, ops::ControlFlow};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sctl_common::{Compression, EntryName};
use sctl_squashfs::{
    BlockSize,
    reader::{self, Reader, ReaderOptions},
    writer::{FileData, Image, Inode, InodeIndex, InodeKind, Params, Xattr, data_start, encode_head, write_tables},
};

#[derive(Debug, Arbitrary)]
struct Input {
    gzip: bool,
    nodes: Vec<Node>,
    xattrs: Vec<Vec<(u8, Vec<u8>, Vec<u8>)>>,
}

/// An inode, and the names that it has, each in an earlier directory.
#[derive(Debug, Arbitrary)]
struct Node {
    mode: u16,
    ids: (u32, u32),
    mtime: u32,
    xattrs: Option<u8>,
    kind: Kind,
    names: Vec<(u8, Vec<u8>)>,
    /// Gives the first name as many times as this, with a number behind it.
    copies: u16,
}

#[derive(Debug, Arbitrary)]
enum Kind {
    Directory,
    /// Holes only, so that there is no data area.
    Sparse {
        size: u32,
        start: u64,
    },
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Char(u32),
    Block(u32),
}

fn inode_kind(kind: &Kind) -> InodeKind {
    match kind {
        Kind::Directory => InodeKind::Directory { entries: Vec::new() },
        Kind::Sparse { size, start } => {
            let size = u64::from(size % (64 << 20));
            let blocks = vec![BlockSize::SPARSE; size.div_ceil(4096) as usize].into();
            InodeKind::File(FileData { size, start: *start, blocks, fragment: None, sparse_bytes: size })
        }
        Kind::Symlink(target) => InodeKind::Symlink { target: target.clone().into() },
        Kind::Fifo => InodeKind::Fifo,
        Kind::Socket => InodeKind::Socket,
        Kind::Char(rdev) => InodeKind::CharDevice { rdev: *rdev },
        Kind::Block(rdev) => InodeKind::BlockDevice { rdev: *rdev },
    }
}

/// The image, and the entries of each directory.
fn build(input: &Input) -> (Image, BTreeMap<InodeIndex, BTreeMap<EntryName, InodeIndex>>) {
    let root = Inode {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        xattrs: None,
        kind: InodeKind::Directory { entries: Vec::new() },
    };
    let mut image = Image { inodes: vec![root], root: 0, xattr_sets: Vec::new() };
    for set in &input.xattrs {
        let prefixes = ["user.", "trusted.", "security."];
        let name = |(prefix, name, value): &(u8, Vec<u8>, Vec<u8>)| Xattr {
            name: [prefixes[usize::from(*prefix) % 3].as_bytes(), name].concat(),
            value: value.clone(),
        };
        image.xattr_sets.push(set.iter().map(name).collect());
    }
    let mut directories = BTreeMap::from([(0, BTreeMap::new())]);
    for node in &input.nodes {
        let index = image.inodes.len() as u32;
        let is_directory = matches!(node.kind, Kind::Directory);
        let mut names = Vec::new();
        for (parent, bytes) in &node.names {
            let parent = *directories.keys().nth(usize::from(*parent) % directories.len()).expect("the root is one");
            let count = if is_directory { 0 } else { node.copies % 2000 };
            for copy in 0..=count {
                let suffix = if copy > 0 { copy.to_string() } else { String::new() };
                names.extend(EntryName::parse(&[bytes, suffix.as_bytes()].concat()).map(|name| (parent, name)));
            }
        }
        if is_directory {
            names.truncate(1);
        }
        names.retain(|(parent, name)| !directories[parent].contains_key(name));
        for (parent, name) in names {
            directories.get_mut(&parent).expect("chosen from it").insert(name, index);
        }
        let mode = node.mode & 0o7777;
        let xattrs = node.xattrs.map(u32::from);
        let kind = inode_kind(&node.kind);
        image.inodes.push(Inode { mode, uid: node.ids.0, gid: node.ids.1, mtime: node.mtime, xattrs, kind });
        if is_directory {
            directories.insert(index, BTreeMap::new());
        }
    }
    for (index, entries) in &directories {
        let sorted = entries.iter().map(|(name, index)| (name.clone(), *index)).collect();
        image.inodes[*index as usize].kind = InodeKind::Directory { entries: sorted };
    }
    (image, directories)
}

fuzz_target!(|input: Input| {
    let (image, directories) = build(&input);
    let compression = if input.gzip { Compression::Gzip { level: 1 } } else { Compression::Zstd { level: 1 } };
    let params = Params { compression, block_size: 4096, mkfs_time: 7 };
    let mut bytes = vec![0; data_start(&params) as usize];
    let data_end = bytes.len() as u64;
    let Ok(superblock) = write_tables(&mut bytes, data_end, &image, &[], &params) else { return };
    let head = encode_head(&superblock, &params);
    bytes[..head.len()].copy_from_slice(&head);

    let reader = Reader::open(&bytes, 0, ReaderOptions::default()).expect("opens");
    let mut waiting = vec![(image.root, reader.root())];
    let mut numbers = BTreeMap::new();
    let mut names = BTreeMap::<InodeIndex, u32>::new();
    while let Some((index, reference)) = waiting.pop() {
        let (written, read) = (&image.inodes[index as usize], reader.inode(reference).expect("an inode"));
        if numbers.insert(index, read.number).is_some_and(|number| {
            assert_eq!(number, read.number);
            true
        }) {
            continue;
        }
        assert_eq!(reader.inode_by_number(read.number).expect("exported"), Some(reference));
        assert_eq!(
            (written.mode, written.uid, written.gid, written.mtime),
            (read.mode, read.uid, read.gid, read.mtime)
        );
        let mut xattrs = written.xattrs.map(|set| image.xattr_sets[set as usize].clone()).unwrap_or_default();
        xattrs.sort();
        assert_eq!(reader.xattrs(&read).expect("xattrs"), xattrs);
        match (&written.kind, &read.kind) {
            (InodeKind::Directory { .. }, reader::InodeKind::Directory(_)) => {
                let mut expected = directories[&index].iter();
                let mut cookie = 0;
                // In pieces, so that every cookie is used.
                loop {
                    let mut given = 0;
                    reader
                        .read_dir(&read, cookie, |entry| {
                            let (name, child) = expected.next().expect("no more entries");
                            assert_eq!(name.as_bytes(), entry.name);
                            *names.entry(*child).or_default() += 1;
                            waiting.push((*child, entry.inode));
                            (cookie, given) = (entry.next, given + 1);
                            if given == 37 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                        })
                        .expect("a listing");
                    if given < 37 {
                        break;
                    }
                }
                assert!(expected.next().is_none());
                for name in directories[&index].keys().step_by(11) {
                    assert!(reader.lookup(&read, name.as_bytes()).expect("a listing").is_some());
                }
            }
            (InodeKind::File(file), reader::InodeKind::File(_)) => {
                assert_eq!(file.size, read.size());
                let mut buf = [1; 100];
                let len = reader.read(&read, file.size / 2, &mut buf).expect("zeros");
                assert!(buf[..len].iter().all(|byte| *byte == 0) && len as u64 == 100.min(file.size.div_ceil(2)));
            }
            (InodeKind::Symlink { target }, reader::InodeKind::Symlink(_)) => {
                assert_eq!(reader.read_link(&read).expect("a target"), target[..]);
            }
            (InodeKind::CharDevice { rdev }, reader::InodeKind::CharDevice { rdev: found })
            | (InodeKind::BlockDevice { rdev }, reader::InodeKind::BlockDevice { rdev: found }) => {
                assert_eq!(rdev, found);
            }
            (InodeKind::Fifo, reader::InodeKind::Fifo) | (InodeKind::Socket, reader::InodeKind::Socket) => {}
            (written, read) => panic!("{written:?} became {read:?}"),
        }
    }
    assert_eq!(numbers.len() as u32, superblock.inode_count);
    for (index, count) in names {
        if let Some(number) = numbers.get(&index).filter(|_| !directories.contains_key(&index)) {
            let reference = reader.inode_by_number(*number).expect("exported").expect("a number in use");
            assert_eq!(reader.inode(reference).expect("an inode").nlink, count);
        }
    }
});
