//! Step two, for each layer: fetch, check and pack it in one go.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write as _},
    num::NonZeroUsize,
    thread,
};

use sctl_common::ErrorKind;
use sctl_pack::{PackError, PackOptions, PackSummary, pack_layer};

use super::{
    client_options,
    protocol::{LayerStart, Report},
    report::Reporter,
    runtime,
};
use crate::{
    Failure, NoticeLevel, Stage,
    registry::{BlobReader, Client, DEFAULT_PIPE_BYTES, RegistryError},
};

/// Packs are written in pieces of this many bytes: fewer calls than blocks.
const WRITE_BUFFER: usize = 1 << 20;

pub(super) fn run(start: LayerStart, files: Vec<File>, reporter: &Reporter) -> Result<Report, Failure> {
    let LayerStart { reference, access, source, diff_id, profile, limits, threads, keep_blob } = start;
    let mut files = files.into_iter();
    let missing = || Failure::internal("the job was not given all its files");
    let pack = files.next().ok_or_else(missing)?;
    let copy = if keep_blob { Some(files.next().ok_or_else(missing)?) } else { None };

    let size = source.size;
    let client = Client::new(&reference, client_options(access, reporter))?;
    let fetched = reporter.progress(Stage::Fetch, Some(size));
    let (reader, transfer) =
        client.fetch_blob(source).into_reader(DEFAULT_PIPE_BYTES, move |received| fetched.update(received));
    let runtime = runtime()?;
    let packed = reporter.progress(Stage::Pack, None);
    let options = PackOptions { profile, limits, threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN) };

    let (packing, transferred) = thread::scope(|scope| {
        let network = thread::Builder::new()
            .name("network".to_owned())
            .spawn_scoped(scope, move || runtime.block_on(transfer))
            .map_err(|error| Failure::io("cannot start a thread", &error))?;
        let packing = pack_blob(reader, copy, pack, &options, &|tar_bytes| packed.update(tar_bytes));
        // Its reader is gone, so it ends, if it has not.
        let transferred = network.join();
        Ok::<_, Failure>((packing, transferred))
    })?;
    let Ok(transferred) = transferred else {
        return Err(Failure::internal("the thread that fetches the layer panicked"));
    };
    let summary = match (packing, transferred) {
        (Ok(summary), Ok(_)) => summary,
        // The reader went first: its error is the cause.
        (Err(failure), Ok(_) | Err(RegistryError::Cancelled)) => return Err(failure),
        (_, Err(error)) => return Err(error.into()),
    };
    if summary.diff_id != diff_id {
        let mut failure = Failure::new(ErrorKind::Corrupt, "the uncompressed layer does not match the image's config");
        failure.causes.push(format!("expected diff_id {diff_id}, got {}", summary.diff_id));
        return Err(failure.hint("the image is damaged or was tampered with; tell its owner"));
    }
    if summary.devices > 0 {
        let text = format!("{} device node(s) of a layer are left out", summary.devices);
        reporter.tell(NoticeLevel::Verbose, text);
    }
    Ok(Report::Packed { fetched_bytes: size, tar_bytes: summary.tar_bytes, pack_bytes: summary.pack_bytes })
}

/// Packs what `reader` brings.
fn pack_blob(
    mut reader: BlobReader,
    copy: Option<File>,
    pack: File,
    options: &PackOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<PackSummary, Failure> {
    let mut out = BufWriter::with_capacity(WRITE_BUFFER, pack);
    let result = match copy {
        None => pack_layer(&mut reader, &mut out, options, progress),
        Some(copy) => {
            let mut tee = Tee { reader: &mut reader, copy: BufWriter::with_capacity(WRITE_BUFFER, copy) };
            let result = pack_layer(&mut tee, &mut out, options, progress);
            tee.copy.flush().map_err(|error| Failure::io("cannot write the blob", &error))?;
            result
        }
    };
    match result {
        Ok(summary) => {
            out.flush().map_err(|error| Failure::io("cannot write the pack", &error))?;
            Ok(summary)
        }
        Err(error) => {
            // Bytes that cannot be unpacked may just not be the right ones:
            // only at the end of the blob its digest tells. Then the transfer
            // ends with that error, which says more.
            if error.kind() == ErrorKind::Corrupt {
                let _ = io::copy(&mut reader, &mut io::sink());
            }
            Err(failure(&error))
        }
    }
}

fn failure(error: &PackError) -> Failure {
    let mut failure = Failure::internal("the layer cannot be packed").because(error);
    // A full disk was found among the causes.
    if failure.kind != ErrorKind::NoSpace {
        failure.kind = error.kind();
    }
    failure
}

/// Reads, and writes what was read to a file.
struct Tee<'a> {
    reader: &'a mut BlobReader,
    copy: BufWriter<File>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(buffer)?;
        self.copy.write_all(&buffer[..len])?;
        Ok(len)
    }
}
