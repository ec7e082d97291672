//! Packs layers, assembles them to an image, and tells where the time went.
//!
//! `cargo run --release -p sctl-pack --example pack -- [--threads N]
//! [--compression zstd:3] [--block-size BYTES] [--out IMAGE] [--floor] LAYER...`
//!
//! The blobs' own SHA-256 is computed as well, as whoever fetches them does.
//! Packs are written beside the image and removed again. CPU times are those
//! of the threads, as sampled every few milliseconds. `--floor` first does for
//! each gzip layer what cannot be left out, one after the other and nothing
//! else: that is what packing is to be compared with.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use sctl_common::{Limits, Profile, Sha256};
use sctl_pack::{AssembleOptions, ImageOutput, PackIndex, PackOptions, Tree, assemble, pack_layer};
use sctl_squashfs::{BlockCompressor, reader::ReadAt};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// A file that is read at offsets.
struct Source(File);

impl ReadAt for Source {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(&self.0, buf, offset)
    }

    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
}

/// An image file.
struct Output<'a> {
    file: File,
    packs: &'a [Source],
}

impl ImageOutput for Output<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn copy_from_pack(&mut self, pack: usize, mut offset: u64, mut len: u64) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        while len > 0 {
            let n = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            FileExt::read_exact_at(&self.packs[pack].0, &mut buffer[..n], offset)?;
            self.file.write_all(&buffer[..n])?;
            offset += n as u64;
            len -= n as u64;
        }
        Ok(())
    }
}

/// Hashes what is read.
struct Hashing(File, Sha256);

impl Read for Hashing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buf)?;
        self.1.update(&buf[..n]);
        Ok(n)
    }
}

/// CPU seconds by thread name, the sampling thread's among the caller's.
fn sample(times: &mut BTreeMap<u32, (String, f64)>) -> Result<()> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        let (Ok(id), path) = (task.file_name().to_string_lossy().parse(), task.path()) else { continue };
        // A thread may end between the two reads.
        let (Ok(name), Ok(stat)) = (fs::read_to_string(path.join("comm")), fs::read_to_string(path.join("schedstat")))
        else {
            continue;
        };
        let nanoseconds: f64 = stat.split(' ').next().unwrap_or("0").parse()?;
        times.insert(id, (name.trim().to_owned(), nanoseconds / 1e9));
    }
    Ok(())
}

fn measured<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (done, start) = (AtomicBool::new(false), Instant::now());
    let mut before = BTreeMap::new();
    sample(&mut before)?;
    let (result, times) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut times = BTreeMap::new();
            while !done.load(Ordering::Relaxed) {
                let _ = sample(&mut times);
                std::thread::sleep(Duration::from_millis(3));
            }
            times
        });
        let result = work();
        let mut times = BTreeMap::new();
        let _ = sample(&mut times);
        done.store(true, Ordering::Relaxed);
        let mut all = sampler.join().unwrap_or_default();
        all.extend(times);
        (result, all)
    });
    let wall = start.elapsed().as_secs_f64();
    let mut by_name: BTreeMap<String, f64> = BTreeMap::new();
    for (id, (thread, seconds)) in times {
        let earlier = before.get(&id).map_or(0.0, |before| before.1);
        *by_name.entry(thread).or_default() += seconds - earlier;
    }
    let total: f64 = by_name.values().sum();
    let stages: Vec<_> = by_name.iter().map(|(name, seconds)| format!("{name} {seconds:.2}")).collect();
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().trim();
    println!("{name}: wall {wall:.3} s, CPU {total:.2} s ({}), peak memory {peak}", stages.join(", "));
    result
}

/// CPU seconds of this thread.
fn thread_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split(' ').next().unwrap_or("0").parse::<f64>()? / 1e9)
}

/// Hashes, inflates, hashes, compresses and writes on one thread, each as
/// fast as it goes. The tar stream is cut into blocks as it is, which stands
/// for its files' contents.
fn floor(layer: &str, profile: &Profile, out: &str) -> Result<()> {
    const PART: usize = 8 << 20;
    let mut blob = File::open(layer)?;
    let (names, mut seconds) = (["read, sha256", "inflate", "sha256", "blake3", "compress", "write"], [0.0; 6]);
    let mut before = thread_seconds()?;
    let mut lap = |stage: usize| -> Result<()> {
        let now = thread_seconds()?;
        seconds[stage] += now - before;
        before = now;
        Ok(())
    };
    let mut bytes = Vec::new();
    blob.read_to_end(&mut bytes)?;
    sctl_common::Digest::of(&bytes);
    lap(0)?;
    let mut decoder = flate2::bufread::MultiGzDecoder::new(&bytes[..]);
    let mut compressor = BlockCompressor::new(profile.compression)?;
    let (mut hash, mut content_hash) = (Sha256::new(), blake3::Hasher::new());
    let (mut part, mut compressed, mut image) = (vec![0; PART], Vec::new(), Vec::new());
    let mut file = File::create(out)?;
    loop {
        let mut filled = 0;
        while filled < PART {
            match decoder.read(&mut part[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        lap(1)?;
        hash.update(&part[..filled]);
        lap(2)?;
        content_hash.update(&part[..filled]);
        lap(3)?;
        for block in part[..filled].chunks(profile.block_size as usize) {
            compressor.compress(block, &mut compressed)?;
            image.extend_from_slice(&compressed);
        }
        lap(4)?;
        file.write_all(&image)?;
        image.clear();
        lap(5)?;
        if filled < PART {
            break;
        }
    }
    let stages: Vec<_> = names.iter().zip(seconds).map(|(name, seconds)| format!("{name} {seconds:.2}")).collect();
    println!("{layer}: floor {:.2} s ({})", seconds.iter().sum::<f64>(), stages.join(", "));
    Ok(())
}

fn main() -> Result<()> {
    let mut threads = std::thread::available_parallelism()?;
    let (mut profile, mut out, mut layers) = (Profile::default(), "image.squashfs".to_owned(), Vec::new());
    let mut with_floor = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match &argument[..] {
            "--threads" => threads = value()?.parse::<NonZeroUsize>()?,
            "--compression" => profile.compression = value()?.parse()?,
            "--block-size" => profile.block_size = value()?.parse()?,
            "--out" => out = value()?,
            "--floor" => with_floor = true,
            _ => layers.push(argument),
        }
    }
    let limits = Limits::default();
    let options = PackOptions { profile, limits, threads };
    let (mut packs, mut indexes) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let path = format!("{out}.{number}.pack");
        if with_floor {
            floor(layer, &profile, &path)?;
            fs::remove_file(&path)?;
        }
        let mut blob = Hashing(File::open(layer)?, Sha256::new());
        let file = io::BufWriter::with_capacity(1 << 20, File::create_new(&path)?);
        let summary = measured(layer, || Ok(pack_layer(&mut blob, file, &options, &|_| ())?))?;
        println!("  {summary:?}");
        let source = Source(File::open(&path)?);
        fs::remove_file(&path)?;
        indexes.push(measured("  index", || Ok(PackIndex::read(&source, &profile, &limits)?))?);
        packs.push(source);
    }
    let tree = measured("merge", || Ok(Tree::merge(&indexes, &limits)?))?;
    drop(indexes);
    println!("  {tree:?}, programs for {:?}", tree.machine().and_then(|machine| machine.architecture()));
    let mut output = Output { file: File::create(&out)?, packs: &packs };
    let options = AssembleOptions { profile, mkfs_time: 0, threads };
    let summary = measured("assemble", || Ok(assemble(&tree, &packs, &mut output, &options, &|_, _| ())?))?;
    println!("  {summary:?}");
    Ok(())
}
