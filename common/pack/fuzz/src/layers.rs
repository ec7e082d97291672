//! Layers with all kinds of entries, made of few names so that they meet.

use arbitrary::Arbitrary;

/// What an entry is.
#[derive(Arbitrary, Debug)]
pub enum Kind {
    File { len: u16, seed: u8 },
    Sparse { hole: u32, seed: u8 },
    Directory,
    Symlink { target: Path },
    HardLink { target: Path },
    Fifo,
    Device,
    Whiteout,
    Opaque,
    Raw { typeflag: u8, size: u16 },
}

/// Few names, so that entries meet.
#[derive(Arbitrary, Debug)]
pub struct Path {
    parts: [u8; 4],
    prefix: u8,
}

/// One entry of a layer.
#[derive(Arbitrary, Debug)]
pub struct Entry {
    path: Path,
    kind: Kind,
    mode: u16,
    xattr: Option<u8>,
}

fn text(path: &Path) -> Vec<u8> {
    let mut out = match path.prefix % 8 {
        0 => b"/".to_vec(),
        1 => b"./".to_vec(),
        2 => b"../".to_vec(),
        _ => Vec::new(),
    };
    for part in path.parts {
        match part % 16 {
            0..=7 => out.extend_from_slice(&[b'a' + part % 4, b'/']),
            8 => out.extend_from_slice(b"../"),
            _ => {}
        }
    }
    out.push(b'm' + path.parts[0] / 16 % 4);
    out
}

fn record(out: &mut Vec<u8>, name: &[u8], typeflag: u8, link: &[u8], mode: u16, data: &[u8], real: Option<u64>) {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..107].copy_from_slice(format!("{:07o}", mode & 0o7777).as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[156] = typeflag;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..265].copy_from_slice(b"ustar  \0");
    if let Some(real) = real {
        let offset = real - data.len() as u64;
        header[386..397].copy_from_slice(format!("{offset:011o}").as_bytes());
        header[398..409].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[483..494].copy_from_slice(format!("{real:011o}").as_bytes());
    }
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn add(out: &mut Vec<u8>, entry: &Entry) {
    let path = text(&entry.path);
    if let Some(xattr) = entry.xattr {
        let record_text = format!("25 SCHILY.xattr.user.{}={}\n", char::from(b'a' + xattr % 3), xattr % 2);
        record(out, b"pax", b'x', b"", 0o644, record_text.as_bytes(), None);
    }
    let bytes = |len: usize, seed: u8| -> Vec<u8> { (0..len).map(|i| seed.wrapping_mul(i as u8 | 1) / 3).collect() };
    let in_directory = |name: &[u8]| [&path[..path.len() - 1], name].concat();
    let mode = entry.mode;
    match &entry.kind {
        Kind::File { len, seed } => record(out, &path, b'0', b"", mode, &bytes(usize::from(*len), *seed), None),
        Kind::Sparse { hole, seed } => {
            let data = bytes(usize::from(*seed), *seed);
            record(out, &path, b'S', b"", mode, &data, Some(u64::from(*hole % (8 << 20)) + data.len() as u64));
        }
        Kind::Directory => record(out, &path, b'5', b"", mode, b"", None),
        Kind::Symlink { target } => record(out, &path, b'2', &text(target), mode, b"", None),
        Kind::HardLink { target } => record(out, &path, b'1', &text(target), mode, b"", None),
        Kind::Fifo => record(out, &path, b'6', b"", mode, b"", None),
        Kind::Device => record(out, &path, b'3', b"", mode, b"", None),
        Kind::Whiteout => {
            record(out, &in_directory(&[b".wh.", &path[path.len() - 1..]].concat()), b'0', b"", 0, b"", None)
        }
        Kind::Opaque => record(out, &in_directory(b".wh..wh..opq"), b'0', b"", 0, b"", None),
        Kind::Raw { typeflag, size } => {
            record(out, &path, *typeflag, b"", mode, &bytes(usize::from(*size) % 2048, 7), None)
        }
    }
}

/// The tar stream of a layer, without its end marker.
pub fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut layer = Vec::new();
    entries.iter().take(60).for_each(|entry| add(&mut layer, entry));
    layer
}
