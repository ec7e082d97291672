//! Step three: packs, and what the image says about itself, to a SIF.

use std::{
    fs::File,
    io,
    num::NonZeroUsize,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use sctl_common::ErrorKind;
use sctl_oci::Config;
use sctl_pack::{AssembleOptions, IfExists, ImageOutput, PackIndex, Tree, assemble};
use sctl_sif::{Builder, FsType, PartitionKind};
use sctl_squashfs::reader::ReadAt;
use sctl_sys::copy::copy_range;

use super::{
    protocol::{AssembleStart, Report},
    report::Reporter,
};
use crate::{
    Failure, NoticeLevel, Stage,
    cache::Partition,
    metadata::{Addition, AdditionKind, Metadata, Rule, Source},
};

/// Small pieces are gathered to writes of this many bytes.
const BUFFER: usize = 1 << 20;

/// The partition ends at a multiple of this: a loop device needs 4,096, and
/// everybody on the host can read how large the device is.
const PARTITION_ALIGNMENT: u64 = 1 << 20;

/// Ids that are worth listing; images have a few dozen at most.
const MAX_IDS: usize = 4096;

/// Runs shorter than this go through the buffer: a system call of their own
/// would cost more than copying them.
const SHORT_RUN: u64 = 128 << 10;

pub(super) fn run(start: AssembleStart, files: Vec<File>, reporter: &Reporter) -> Result<Report, Failure> {
    let AssembleStart { origin, key, manifest, config, profile, limits, threads } = start;
    let mut files = files.into_iter();
    let sif = files.next().ok_or_else(|| Failure::internal("the job was not given all its files"))?;
    let packs = files.map(Pack::new).collect::<io::Result<Vec<_>>>();
    let packs = packs.map_err(|error| Failure::io("cannot inspect a pack", &error))?;
    let config =
        Config::parse(&config.0).map_err(|error| because("the image's config cannot be used", error.kind(), &error))?;

    let mut indexes = Vec::with_capacity(packs.len());
    for (pack, number) in packs.iter().zip(1..) {
        let index = PackIndex::read(pack, &profile, &limits)
            .map_err(|error| because(&format!("the pack of layer {number} cannot be used"), error.kind(), &error))?;
        indexes.push(index);
    }
    let mut tree = Tree::merge(&indexes, &limits)
        .map_err(|error| because("the layers cannot be applied to each other", error.kind(), &error))?;
    drop(indexes);

    let machine = tree.machine().and_then(|machine| machine.architecture());
    let metadata = Metadata::new(&Source { origin: &origin, manifest: &manifest, config: &config, machine });
    for addition in &metadata.additions {
        add(&mut tree, addition)
            .map_err(|error| because("the image's metadata cannot be added", error.kind(), &error))?;
    }

    let sif_error = |error: sctl_sif::WriteError| because("the SIF cannot be laid out", ErrorKind::Internal, &error);
    let mut builder = Builder::new(metadata.sif_options(key.digest())).map_err(sif_error)?;
    for (object, data) in metadata.objects() {
        builder.add(object, data).map_err(sif_error)?;
    }
    let slot = builder.start_partition(FsType::Squashfs, PartitionKind::Primary).map_err(sif_error)?;

    let mut output = Output::new(&sif, slot.offset, &packs);
    let options = AssembleOptions {
        profile,
        mkfs_time: metadata.squashfs_time(),
        threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
    };
    let progress = reporter.progress(Stage::Assemble, None);
    let summary = assemble(&tree, &packs, &mut output, &options, &|done, total| progress.update_of(done, total))
        .map_err(|error| because("the file system cannot be written", error.kind(), &error))?;
    let written = |error: &io::Error| Failure::io("cannot write the SIF", error);
    output.flush().map_err(|error| written(&error))?;

    let offset = slot.offset;
    let len = summary.image_bytes.next_multiple_of(PARTITION_ALIGNMENT);
    builder.finish_partition(slot, len, metadata.arch).map_err(sif_error)?;
    let layout = builder.finish().map_err(sif_error)?;
    for piece in &layout.pieces {
        sif.write_all_at(&piece.bytes, piece.offset).map_err(|error| written(&error))?;
    }
    // The padding is a hole: it costs nothing on the disk.
    sif.set_len(layout.file_size).map_err(|error| written(&error))?;
    if summary.devices > 0 {
        let text = format!("{} device node(s) of the image are left out", summary.devices);
        reporter.tell(NoticeLevel::Verbose, text);
    }
    let ids = tree.ids();
    Ok(Report::Assembled {
        size: layout.file_size,
        partition: Partition { offset, len },
        special_files: tree.fifo_count() > 0,
        ids: (ids.len() <= MAX_IDS).then(|| ids.into_iter().collect()),
    })
}

/// A failure with all its causes; a full disk among them is what counts.
fn because(what: &str, kind: ErrorKind, error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut failure = Failure::new(kind, what);
    failure = failure.because(error);
    failure
}

fn add(tree: &mut Tree, addition: &Addition) -> Result<(), sctl_pack::MergeError> {
    let path = addition.path.as_bytes();
    let rule = match addition.rule {
        Rule::Always => IfExists::Replace,
        Rule::IfAbsent => IfExists::Keep,
    };
    match &addition.kind {
        AdditionKind::Directory => tree.add_directory(path, addition.mode, rule)?,
        AdditionKind::File(bytes) => tree.add_file(path, addition.mode, bytes.clone(), rule)?,
        AdditionKind::Symlink(target) => tree.add_symlink(path, target.as_bytes(), rule)?,
    };
    Ok(())
}

/// A pack that the broker passed.
struct Pack {
    file: File,
    len: u64,
}

impl Pack {
    fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.size();
        Ok(Self { file, len })
    }
}

impl ReadAt for Pack {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// The partition inside the SIF that is being written.
struct Output<'a> {
    sif: &'a File,
    packs: &'a [Pack],
    /// Where the partition starts in the SIF.
    start: u64,
    /// Bytes of the partition that are in the file.
    flushed: u64,
    /// The bytes behind them.
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    fn new(sif: &'a File, start: u64, packs: &'a [Pack]) -> Self {
        Self { sif, packs, start, flushed: 0, buffer: Vec::with_capacity(BUFFER) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sif.write_all_at(&self.buffer, self.start + self.flushed)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn make_room(&mut self, len: usize) -> io::Result<()> {
        if self.buffer.len() + len > BUFFER { self.flush() } else { Ok(()) }
    }
}

impl ImageOutput for Output<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.make_room(bytes.len())?;
        if bytes.len() >= BUFFER {
            self.sif.write_all_at(bytes, self.start + self.flushed)?;
            self.flushed += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.sif.write_all_at(bytes, self.start + offset)
    }

    fn copy_from_pack(&mut self, pack: usize, offset: u64, len: u64) -> io::Result<()> {
        let pack = self.packs.get(pack).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if len >= SHORT_RUN {
            self.flush()?;
            copy_range(&pack.file, offset, self.sif, self.start + self.flushed, len)?;
            self.flushed += len;
            return Ok(());
        }
        // Below SHORT_RUN, which is below BUFFER.
        let len = len as usize;
        self.make_room(len)?;
        let at = self.buffer.len();
        self.buffer.resize(at + len, 0);
        pack.file.read_exact_at(&mut self.buffer[at..], offset)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn short_and_long_pieces_land_in_order() {
        let mut pack = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..600_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        pack.write_all(&bytes).unwrap();
        let packs = [Pack::new(pack).unwrap()];
        let mut sif = tempfile::tempfile().unwrap();
        let mut expected = vec![0; 4096];
        let mut output = Output::new(&sif, 4096, &packs);
        for part in [vec![1; 96], vec![2; BUFFER + 5]] {
            output.write_all(&part).unwrap();
            expected.extend_from_slice(&part);
        }
        for (offset, len) in [(0, 10), (7, 300_000), (500, SHORT_RUN - 1), (100_000, 500_000), (1, 1)] {
            output.copy_from_pack(0, offset, len).unwrap();
            expected.extend_from_slice(&bytes[offset as usize..][..len as usize]);
        }
        output.write_at(3, b"head").unwrap();
        expected[4096 + 3..][..4].copy_from_slice(b"head");
        assert!(output.copy_from_pack(0, 599_999, 2).is_err(), "past its end");
        output.buffer.truncate(0);
        output.flush().unwrap();
        let mut got = Vec::new();
        sif.rewind().unwrap();
        sif.read_to_end(&mut got).unwrap();
        assert!(got == expected, "{} and {} bytes", got.len(), expected.len());
    }
}
