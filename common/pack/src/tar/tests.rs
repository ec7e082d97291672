use std::collections::VecDeque;

use sctl_common::Limits;

use super::*;
use crate::tar::Chunk;

/// Gives a stream in chunks of a fixed length.
struct Chunks(VecDeque<Vec<u8>>);

impl ChunkSource for Chunks {
    fn next_chunk(&mut self, _: Chunk) -> Result<Option<Chunk>, PackError> {
        let next = self.0.pop_front();
        Ok(next.map(|bytes| Chunk { len: bytes.len(), blob_bytes: bytes.len() as u64, buffer: bytes.into() }))
    }
}

/// Collects contents.
#[derive(Default)]
struct Collect(Vec<u8>);

impl ContentSink for Collect {
    fn data(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
    fn zeros(&mut self, len: u64) -> Result<(), PackError> {
        self.0.resize(self.0.len() + len as usize, 0);
        Ok(())
    }
}

fn read_in(stream: &[u8], chunk: usize) -> Result<Vec<(Member, Vec<u8>)>, PackError> {
    let chunks = Chunks(stream.chunks(chunk).map(<[u8]>::to_vec).collect());
    let mut archive = Archive::new(Stream::new(chunks, &Limits::default()));
    let mut members = Vec::new();
    while archive.next_member()? {
        let mut contents = Collect::default();
        archive.copy_contents(&mut contents)?;
        assert_eq!(contents.0.len() as u64, archive.member.size);
        members.push((std::mem::take(&mut archive.member), contents.0));
    }
    let (digest, len, _) = archive.stream.finish()?;
    assert_eq!((digest, len), (sctl_common::Digest::of(stream), stream.len() as u64));
    Ok(members)
}

fn read(stream: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, PackError> {
    read_in(stream, 1000)
}

#[track_caller]
fn only(stream: &[u8]) -> (Member, Vec<u8>) {
    let mut members = read(stream).unwrap();
    assert_eq!(members.len(), 1);
    members.remove(0)
}

/// A raw header with its checksum, and contents padded to records.
fn entry(name: &str, typeflag: u8, data: &[u8], change: impl FnOnce(&mut [u8; RECORD_LEN])) -> Vec<u8> {
    let mut header = [0; RECORD_LEN];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000001750");
    header[156] = typeflag;
    header[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut header);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(RECORD_LEN), 0);
    bytes
}

fn pax(typeflag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        data.extend_from_slice(format!("{len} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    entry("pax", typeflag, &data, |_| ())
}

fn gnu(header: &mut [u8; RECORD_LEN]) {
    header[257..265].copy_from_slice(b"ustar  \0");
}

const END: [u8; 1024] = [0; 1024];

#[test]
fn types_and_fields_are_read() {
    let set = |at: usize, text: &'static [u8]| {
        move |header: &mut [u8; RECORD_LEN]| header[at..at + text.len()].copy_from_slice(text)
    };
    let cases: [(&str, Vec<u8>, MemberKind); 11] = [
        ("file", entry("f", b'0', b"abc", |_| ()), MemberKind::File),
        ("old file", entry("f", 0, b"abc", |_| ()), MemberKind::File),
        ("old directory", entry("d/", 0, b"", |_| ()), MemberKind::Directory),
        ("file with a slash", entry("d/", b'0', b"abc", |_| ()), MemberKind::File),
        ("contiguous", entry("f", b'7', b"abc", |_| ()), MemberKind::File),
        ("directory", entry("d", b'5', b"", |_| ()), MemberKind::Directory),
        ("symlink", entry("l", b'2', b"", set(157, b"target")), MemberKind::Symlink),
        ("hard link", entry("l", b'1', b"", set(157, b"target")), MemberKind::HardLink),
        ("fifo", entry("p", b'6', b"", |_| ()), MemberKind::Fifo),
        ("character", entry("c", b'3', b"", set(329, b"0000001\x000000003")), MemberKind::CharDevice),
        ("block", entry("b", b'4', b"", |_| ()), MemberKind::BlockDevice),
    ];
    for (name, bytes, kind) in cases {
        let (member, contents) = only(&[&bytes[..], &END].concat());
        assert_eq!(member.kind, kind, "{name}");
        assert_eq!((member.mode, member.mtime), (0o644, 0o1750), "{name}");
        assert_eq!(contents, if kind == MemberKind::File && bytes.len() > 512 { &b"abc"[..] } else { b"" }, "{name}");
        if matches!(kind, MemberKind::Symlink | MemberKind::HardLink) {
            assert_eq!(member.link, b"target");
        }
        if kind == MemberKind::CharDevice {
            assert_eq!(member.device, (1, 3));
        }
    }
    for typeflag in [b'D', b'V', b'M', b'N', b'A', 0xff] {
        let result = read(&entry("e", typeflag, b"", |_| ()));
        assert!(matches!(result, Err(PackError::UnknownType { .. })), "{typeflag}");
    }
}

#[test]
fn sizes_of_members_without_contents_mean_nothing() {
    // Some writers give hard links the size of their target.
    let link = entry("l", b'1', b"", |header| header[124..135].copy_from_slice(b"00000001000"));
    let members = read(&[&link[..], &entry("f", b'0', b"x", |_| ()), &END].concat()).unwrap();
    assert_eq!(members.len(), 2);
    assert_eq!(members[0].0.size, 0);
}

#[test]
fn names_come_from_prefix_long_name_or_pax() {
    let prefix = entry("name", b'0', b"", |header| header[345..351].copy_from_slice(b"prefix"));
    assert_eq!(only(&prefix).0.name, b"prefix/name");
    let long = "x".repeat(300);
    let long_name = entry("././@LongLink", b'L', format!("{long}\0").as_bytes(), gnu);
    let long_link = entry("././@LongLink", b'K', format!("{long}/t\0").as_bytes(), gnu);
    let symlink = entry("short", b'2', b"", gnu);
    let pax_name = pax(b'x', &[("path", b"from/pax"), ("linkpath", b"to/pax")]);
    let (member, _) = only(&[&long_name[..], &long_link, &symlink].concat());
    assert_eq!((member.name, member.link), (long.clone().into_bytes(), format!("{long}/t").into_bytes()));
    let (member, _) = only(&[&pax_name[..], &symlink].concat());
    assert_eq!((&member.name[..], &member.link[..]), (&b"from/pax"[..], &b"to/pax"[..]));
    let (member, _) = only(&[&long_name[..], &pax_name, &symlink].concat());
    assert_eq!(member.name, long.as_bytes(), "a long name wins over pax");
    // Extensions hold for one member only.
    let members = read(&[&pax_name[..], &symlink, &symlink].concat()).unwrap();
    assert_eq!(members[1].0.name, b"short");
}

#[test]
fn pax_records_override_and_global_ones_are_ignored() {
    let file = entry("f", b'0', b"abcd", |_| ());
    let records: [(&str, &[u8]); 6] = [
        ("uid", b"3000000000"),
        ("gid", b"70000"),
        ("mtime", b"-1.5"),
        ("mtime", b"1700000000.9"),
        ("size", b"3"),
        ("path", b""),
    ];
    let (member, contents) = only(&[&pax(b'x', &records)[..], &file].concat());
    assert_eq!((member.uid, member.gid, member.mtime), (3_000_000_000, 70_000, 1_700_000_000));
    assert_eq!((&contents[..], &member.name[..]), (&b"abc"[..], &b"f"[..]));
    let (member, _) = only(&[&pax(b'g', &[("uid", b"5"), ("path", b"g")])[..], &file].concat());
    assert_eq!((member.uid, &member.name[..]), (0, &b"f"[..]));
    for (key, value) in [("uid", &b"x"[..]), ("size", b"-1"), ("mtime", b"now"), ("path", b"a\0b")] {
        assert!(read(&[&pax(b'x', &[(key, value)])[..], &file].concat()).is_err(), "accepted {key}");
    }
}

#[test]
fn times_and_owners_are_fitted() {
    let with = |at: usize, field: &'static [u8]| {
        only(&entry("f", b'0', b"", |header| header[at..at + field.len()].copy_from_slice(field))).0
    };
    assert_eq!(with(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb").mtime, 0, "before 1970");
    assert_eq!(with(136, b"\x80\0\0\0\0\0\0\x01\0\0\0\0").mtime, u32::MAX, "after 2106");
    assert_eq!(with(108, b"\x80\0\0\0\x00\x01\x11\x70").uid, 70_000);
    assert_eq!(with(108, b"\xff\xff\xff\xff\xff\xff\xff\xff").uid, 0, "-1 leaves the owner alone");
    assert_eq!(with(116, b"\xff\xff\xff\xff\xff\xff\xff\xfe").gid, u32::MAX - 1);
    assert_eq!(with(100, b"0107755\0").mode, 0o7755);
}

#[test]
fn xattrs_are_decoded_and_filtered() {
    let file = entry("f", b'0', b"", |_| ());
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let records: [(&str, &[u8]); 12] = [
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.user.z", b"old"),
        ("SCHILY.xattr.user.z", b"new\nline"),
        ("LIBARCHIVE.xattr.user.z", b"AAAA"),
        ("LIBARCHIVE.xattr.user.a%20b", b"aGk="),
        ("SCHILY.xattr.user.empty", b""),
        ("SCHILY.xattr.security.selinux", b"x"),
        ("SCHILY.xattr.system.posix_acl_access", b"x"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.com.apple.provenance", b"y"),
        ("SCHILY.xattr.user.", b"y"),
    ];
    let (member, _) = only(&[&pax(b'x', &records)[..], &file].concat());
    let expected: [(&[u8], &[u8]); 3] =
        [(b"security.capability", capability), (b"user.a b", b"hi"), (b"user.z", b"new\nline")];
    assert!(member.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).eq(expected), "{:?}", member.xattrs);
    let long = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    assert!(matches!(
        read(&[&pax(b'x', &[(&long, b"v")])[..], &file].concat()),
        Err(PackError::TooLong { found: 256, max: 255, .. })
    ));
    let large = vec![0; (64 << 10) + 1];
    assert!(read(&[&pax(b'x', &[("SCHILY.xattr.user.v", &large)])[..], &file].concat()).is_err());
    assert!(read(&[&pax(b'x', &[("LIBARCHIVE.xattr.user.v", b"!")])[..], &file].concat()).is_err());
}

/// "head", a hole up to 10,000, "middle", a hole up to 20,000.
fn expand() -> Vec<u8> {
    let mut bytes = b"head".to_vec();
    bytes.resize(10_000, 0);
    bytes.extend_from_slice(b"middle");
    bytes.resize(20_000, 0);
    bytes
}

#[test]
fn sparse_files_of_all_formats_are_expanded() {
    let data = b"headmiddle";
    let fields = |header: &mut [u8]| {
        for (at, number) in [(0, 0), (12, 4), (24, 10_000), (36, 6)] {
            header[at..at + 11].copy_from_slice(format!("{number:011o}").as_bytes());
        }
    };
    let old = entry("f", b'S', data, |header| {
        gnu(header);
        fields(&mut header[386..]);
        header[483..494].copy_from_slice(format!("{:011o}", 20_000).as_bytes());
    });
    let extended = {
        let mut bytes = entry("f", b'S', b"", |header| {
            gnu(header);
            header[124..135].copy_from_slice(b"00000000012");
            header[482] = 1;
            header[483..494].copy_from_slice(format!("{:011o}", 20_000).as_bytes());
        });
        let mut record = [0; RECORD_LEN];
        fields(&mut record);
        bytes.extend_from_slice(&record);
        bytes.extend_from_slice(&entry("", 0, data, |_| ())[512..]);
        bytes
    };
    let plain = entry("f", b'0', data, |_| ());
    let format_0_0 = pax(
        b'x',
        &[
            ("GNU.sparse.size", b"20000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"4"),
            ("GNU.sparse.offset", b"10000"),
            ("GNU.sparse.numbytes", b"6"),
        ],
    );
    let format_0_1 = pax(
        b'x',
        &[
            ("GNU.sparse.size", b"20000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", b"0,4,10000,6"),
            ("GNU.sparse.name", b"f"),
        ],
    );
    let format_1_0 = pax(
        b'x',
        &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"20000"),
            ("GNU.sparse.name", b"f"),
        ],
    );
    let mut mapped = b"2\n0\n4\n10000\n6\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend_from_slice(data);
    let with_map = entry("./GNUSparseFile.1/f", b'0', &mapped, |_| ());
    let cases = [
        ("old", old),
        ("old, extended", extended),
        ("0.0", [&format_0_0[..], &plain].concat()),
        ("0.1", [&format_0_1[..], &plain].concat()),
        ("1.0", [&format_1_0[..], &with_map].concat()),
    ];
    for (name, stream) in &cases {
        let (member, contents) = only(&[&stream[..], &END].concat());
        assert_eq!(member.name, b"f", "{name}");
        assert!(contents == expand(), "{name}");
        for len in 0..stream.len() - 502 {
            assert!(len == 0 || read(&stream[..len]).is_err(), "{name}: accepted {len} bytes");
        }
    }
    let unknown = pax(b'x', &[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]);
    assert!(read(&[&unknown[..], &plain].concat()).is_err());
    let on_link = [&format_0_1[..], &entry("l", b'1', b"", |_| ())].concat();
    assert!(read(&on_link).is_err());
}

#[test]
fn ends_are_judged_as_the_reference_does() {
    let file = entry("f", b'0', b"abc", |_| ());
    let ok = |stream: &[u8]| read(stream).map(|members| members.len());
    assert_eq!(ok(b"").unwrap(), 0, "no bytes at all");
    assert_eq!(ok(&END).unwrap(), 0, "end marker alone");
    assert_eq!(ok(&file).unwrap(), 1, "no end marker");
    assert_eq!(ok(&file[..600]).unwrap(), 1, "no padding");
    assert_eq!(ok(&[&file[..], &END[..512]].concat()).unwrap(), 1, "half an end marker");
    assert_eq!(ok(&[&file[..], &END, b"anything", &file].concat()).unwrap(), 1, "bytes behind the end marker");
    assert!(ok(&file[..514]).is_err(), "contents cut");
    assert!(ok(&file[..300]).is_err(), "header cut");
    assert!(ok(&[&file[..], &END[..300]].concat()).is_err(), "a piece of the end marker");
    assert!(ok(&[&file[..], &END[..512], &file].concat()).is_err(), "a single zero record");
    let extension = pax(b'x', &[("path", b"g")]);
    assert!(ok(&[&file[..], &extension].concat()).is_err(), "extension without a member");
    assert!(ok(&[&file[..], &extension, &END].concat()).is_err(), "extension in front of the end");
    let mut damaged = file.clone();
    damaged[3] ^= 1;
    assert!(matches!(read(&damaged), Err(PackError::BadTar { what: "wrong checksum", .. })));
}

#[test]
fn numbers_of_every_header_are_checked() {
    let spoil = |typeflag: u8, at: usize| {
        let header = entry("e", typeflag, b"", |header| header[at] = b'/');
        read(&[&header[..], &entry("f", b'0', b"", |_| ())].concat())
    };
    for at in [100, 108, 116, 124, 136, 329, 337] {
        for typeflag in *b"0125xgL" {
            assert!(
                matches!(spoil(typeflag, at), Err(PackError::BadTar { what: "bad number", .. })),
                "{typeflag} {at}"
            );
        }
    }
}

#[test]
fn extensions_are_bounded_before_they_are_read() {
    for typeflag in [b'x', b'g', b'L', b'K'] {
        let header = entry("e", typeflag, b"", |header| header[124..135].copy_from_slice(b"77777777777"));
        assert!(matches!(read(&header), Err(PackError::BadTar { .. })), "{typeflag}");
    }
}

#[test]
fn any_chunking_gives_the_same() {
    let stream = [
        &pax(b'x', &[("path", b"some/long/path"), ("SCHILY.xattr.user.a", b"1")])[..],
        &entry("f", b'0', &[7; 3000], |_| ()),
        &entry("g", b'0', &[8; 512], |_| ()),
        &END,
    ]
    .concat();
    let expected = format!("{:?}", read(&stream).unwrap());
    for chunk in [1, 3, 511, 512, 513, 100_000] {
        assert_eq!(format!("{:?}", read_in(&stream, chunk).unwrap()), expected, "{chunk}");
    }
}

#[test]
fn agrees_with_another_reader() {
    let mut builder = ::tar::Builder::new(Vec::new());
    for i in 0..200u64 {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(i * 37);
        header.set_mode(0o600 + i as u32 % 8);
        header.set_uid(i * 100_000);
        header.set_mtime(i << 20);
        let path = format!("d/{}/{i}", "d".repeat(i as usize));
        builder.append_data(&mut header, path, &vec![i as u8; (i * 37) as usize][..]).unwrap();
    }
    let stream = builder.into_inner().unwrap();
    let members = read(&stream).unwrap();
    let mut theirs = ::tar::Archive::new(&stream[..]);
    let mut count = 0;
    for ((member, contents), entry) in members.iter().zip(theirs.entries().unwrap()) {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        assert_eq!((&member.name[..], contents), (&*entry.path_bytes(), &bytes));
        assert_eq!(u64::from(member.uid), entry.header().uid().unwrap());
        assert_eq!(u64::from(member.mtime), entry.header().mtime().unwrap());
        assert_eq!(u32::from(member.mode), entry.header().mode().unwrap());
        count += 1;
    }
    assert_eq!(count, 200);
}
