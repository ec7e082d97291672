//! Every length and every failure.

use std::{
    io::{self, Read, Write},
    sync::atomic::{AtomicUsize, Ordering},
};

use sctl_common::{ErrorKind, Limits, Profile};
use sctl_pack::{AssembleError, AssembleOptions, ImageOutput, IndexError, PackError, PackIndex, assemble, pack_layer};
use sctl_squashfs::reader::ReadAt;

use crate::support::*;

fn small_layer() -> Vec<u8> {
    Layer::new().file("a", &sample(1, 700)).xattr("user.x", b"1").dir("d").file("d/b", b"x").finish()
}

#[test]
fn every_truncation_of_a_tar_is_an_error_or_another_layer() {
    let layer = small_layer();
    let whole = pack(&layer, &options(1)).unwrap().1;
    // Where an entry, its padding or the end marker is complete the reference
    // takes the rest for granted; the digest still tells.
    for len in 0..layer.len() {
        match pack(&layer[..len], &options(1)) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}: {error}"),
            Ok((_, summary)) => assert_ne!(summary.diff_id, whole.diff_id, "{len}"),
        }
    }
}

#[test]
fn every_truncation_of_a_blob_is_an_error() {
    let layer = small_layer();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&layer).unwrap();
    for blob in [gzip.finish().unwrap(), zstd::bulk::compress(&layer, 3).unwrap()] {
        for len in 1..blob.len() {
            let error = pack(&blob[..len], &options(1)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}: {error}");
        }
    }
}

#[test]
fn every_truncation_and_every_change_of_a_pack_is_an_error() {
    let pack = pack(&small_layer(), &options(1)).unwrap().0;
    let read = |bytes: &[u8]| PackIndex::read(bytes, &profile(), &Limits::default());
    let data_end = read(&pack).map(|_| ()).map(|()| pack.len()).unwrap();
    for len in 0..data_end {
        assert!(read(&pack[..len]).is_err(), "accepted {len} bytes");
    }
    // Blocks are not covered by the index's digest; all else is.
    let index_at = u64::from_le_bytes(pack[pack.len() - 72..][..8].try_into().unwrap()) as usize;
    for at in (0..32).chain(index_at..pack.len()) {
        let mut changed = pack.clone();
        changed[at] ^= 0x10;
        assert!(read(&changed).is_err(), "accepted a change at {at}");
    }
    let other = Profile { block_size: 8192, ..profile() };
    let error = PackIndex::read(&pack, &other, &Limits::default()).unwrap_err();
    assert!(matches!(error, IndexError::Profile { .. }), "{error}");
}

/// Works for `n` calls, then fails or panics.
struct Failing<T> {
    inner: T,
    left: usize,
    panics: bool,
}

impl<T> Failing<T> {
    fn tick(&mut self) -> io::Result<()> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None if self.panics => panic!("as the test wants it"),
            None => return Err(io::Error::other("as the test wants it")),
        }
        Ok(())
    }
}

impl<R: Read> Read for Failing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.tick()?;
        let len = buf.len().min(20_000);
        self.inner.read(&mut buf[..len])
    }
}

impl<W: Write> Write for Failing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tick()?;
        self.inner.write(&bytes[..bytes.len().min(5_000)])
    }
    fn flush(&mut self) -> io::Result<()> {
        self.tick()
    }
}

fn long_layer() -> Vec<u8> {
    (0..60)
        .fold(Layer::new(), |layer, i| {
            layer.file(&format!("f{i}"), &sample(i, 20_000)).file(&format!("s{i}"), &sample(i, 900))
        })
        .finish()
}

#[test]
fn a_reader_that_fails_at_any_call_stops_everything() {
    let layer = long_layer();
    let mut left = 0;
    loop {
        let mut blob = Failing { inner: &layer[..], left, panics: false };
        let mut out = Vec::new();
        match pack_layer(&mut blob, &mut out, &options(2), &|_| ()) {
            Ok(_) => break,
            Err(error) => {
                assert!(matches!(error, PackError::ReadBlob { .. }), "{left}: {error}");
                assert!(PackIndex::read(&out, &profile(), &Limits::default()).is_err());
            }
        }
        left += 1;
    }
    assert!(left > 50);
}

#[test]
fn a_writer_that_fails_at_any_call_stops_everything() {
    let layer = long_layer();
    let mut left = 0;
    loop {
        let mut out = Failing { inner: Vec::new(), left, panics: false };
        match pack_layer(&layer[..], &mut out, &options(2), &|_| ()) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, PackError::WritePack { .. }), "{left}: {error}"),
        }
        left += 1;
    }
    assert!(left > 50);
}

#[test]
fn a_panicking_reader_is_an_error() {
    let layer = long_layer();
    for left in [0, 1, 7, 30] {
        let blob = Failing { inner: &layer[..], left, panics: true };
        let error = pack_layer(blob, io::sink(), &options(2), &|_| ()).unwrap_err();
        assert!(matches!(error, PackError::Broken { stage: "decompressing" }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
    let error = pack_layer(&layer[..], io::sink(), &options(2), &|done| assert!(done < 500_000)).unwrap_err();
    assert!(matches!(error, PackError::Broken { .. }), "{error}");
}

/// A pack that fails at the `n`th read, and an image at the `n`th call.
struct FailingPack<'a> {
    bytes: &'a Vec<u8>,
    left: &'a AtomicUsize,
}

fn countdown(left: &AtomicUsize) -> io::Result<()> {
    match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::other("as the test wants it")),
    }
}

impl ReadAt for FailingPack<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        countdown(self.left)?;
        self.bytes.read_exact_at(buf, offset)
    }
    fn len(&self) -> u64 {
        ReadAt::len(self.bytes)
    }
}

struct FailingImage<'a> {
    inner: Memory<'a>,
    left: &'a AtomicUsize,
}

impl ImageOutput for FailingImage<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        countdown(self.left)?;
        self.inner.write_all(bytes)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        countdown(self.left)?;
        self.inner.write_at(offset, bytes)
    }
    fn copy_from_pack(&mut self, pack: usize, offset: u64, len: u64) -> io::Result<()> {
        countdown(self.left)?;
        self.inner.copy_from_pack(pack, offset, len)
    }
}

#[test]
fn assembling_fails_cleanly_at_any_call() {
    let lower = (0..200).fold(Layer::new(), |layer, i| layer.file(&format!("f{i}"), &sample(i, 1500)));
    let lower = (0..10).fold(lower, |layer, i| layer.file(&format!("l{i}"), &sample(i, 9000)));
    let upper = (0..100).fold(Layer::new(), |layer, i| layer.file(&format!(".wh.f{}", i * 2), b""));
    let upper = upper.file(".wh.l3", b"");
    let packs = [lower.pack(), upper.pack()];
    let tree = merge(&packs);
    let options = AssembleOptions { profile: profile(), mkfs_time: 0, threads: threads(2) };
    let mut calls = 0;
    loop {
        let left = AtomicUsize::new(calls);
        let sources = packs.each_ref().map(|bytes| FailingPack { bytes, left: &left });
        let inner = Memory { bytes: Vec::new(), packs: &packs, copies: 0 };
        let mut out = FailingImage { inner, left: &left };
        match assemble(&tree, &sources, &mut out, &options, &|_, _| ()) {
            Ok(_) => break,
            Err(error) => {
                let expected = matches!(
                    error,
                    AssembleError::ReadPack { .. }
                        | AssembleError::Copy { .. }
                        | AssembleError::Write { .. }
                        | AssembleError::Tables { .. }
                );
                assert!(expected, "{calls}: {error}");
            }
        }
        calls += 1;
    }
    assert!(calls > 80, "{calls}");
}

#[test]
fn damaged_blocks_and_wrong_packs_are_told() {
    let lower = Layer::new().file("a", &sample(1, 500)).file("b", &sample(2, 500)).pack();
    let upper = Layer::new().file(".wh.a", b"").pack();
    let packs = [lower, upper];
    let tree = merge(&packs);
    let options = AssembleOptions { profile: profile(), mkfs_time: 0, threads: threads(2) };
    let try_with = |packs: &[Vec<u8>], options: &AssembleOptions| {
        let mut out = Memory { bytes: Vec::new(), packs, copies: 0 };
        assemble(&tree, packs, &mut out, options, &|_, _| ()).unwrap_err()
    };
    let mut damaged = packs.clone();
    damaged[0][40] ^= 0xff;
    let error = try_with(&damaged, &options);
    assert!(matches!(error, AssembleError::BadBlock { pack: 0, offset: 32, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = try_with(&packs[..1], &options);
    assert!(matches!(error, AssembleError::WrongPacks { expected: 2, found: 1 }), "{error}");
    let other = AssembleOptions { profile: Profile::default(), ..options };
    assert!(matches!(try_with(&packs, &other), AssembleError::WrongProfile { pack: 0 }));
}
