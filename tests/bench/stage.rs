//! The floor: CPU time of the stages that a cold pull cannot do without, on
//! the same data, one after the other on one thread.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use sctl_common::Sha256;

/// CPU time of one stage, and the bytes that went into it.
pub struct Stage {
    /// What it does.
    pub name: &'static str,
    /// CPU time of this thread.
    pub cpu: Duration,
    /// Bytes in, for the rate.
    pub bytes: u64,
    /// The same work by an established tool: its name and bytes per second.
    pub peer: Option<(&'static str, f64)>,
}

fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = thread_cpu();
    let result = work();
    (result, thread_cpu() - before)
}

fn command_rate(mut command: Command, bytes: u64) -> f64 {
    let start = Instant::now();
    let output = command.output().expect("the peer runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bytes as f64 / start.elapsed().as_secs_f64()
}

/// Measures every stage for the gzip layers served at `host` under
/// `repository`; `scratch` takes the writes.
pub fn measure(host: &str, repository: &str, layers: &[(String, Vec<u8>)], scratch: &Path) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    let mut add = |name, cpu, bytes: u64, peer| match stages.iter_mut().find(|stage| stage.name == name) {
        Some(stage) => {
            stage.cpu += cpu;
            stage.bytes += bytes;
        }
        None => stages.push(Stage { name, cpu, bytes, peer }),
    };
    for (digest, blob) in layers {
        let blob_len = blob.len() as u64;
        let (received, cpu) = timed(|| receive(host, &format!("/v2/{repository}/blobs/{digest}")));
        assert!(received >= blob_len, "the registry sent {received} of {blob_len} bytes");
        add("HTTP receive", cpu, blob_len, None);

        let path = scratch.join("blob.gz");
        fs::write(&path, blob).expect("write the blob");
        let sha = |bytes: &[u8]| {
            let mut sha = Sha256::new();
            bytes.chunks(256 << 10).for_each(|chunk| sha.update(chunk));
            sha.finish()
        };
        let (_, cpu) = timed(|| sha(blob));
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256"]).arg(&path);
        add("sha256 of the blob", cpu, blob_len, Some(("openssl", command_rate(openssl, blob_len))));

        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar).expect("the layer is gzip");
        let tar_len = tar.len() as u64;
        let (_, cpu) = timed(|| {
            let mut decoder = flate2::bufread::MultiGzDecoder::new(&blob[..]);
            let mut buffer = vec![0u8; 256 << 10];
            while decoder.read(&mut buffer).expect("the layer is gzip") > 0 {}
        });
        let mut igzip = Command::new("sh");
        igzip.arg("-c").arg(format!("igzip -dc < {} > /dev/null", path.display()));
        add("gunzip", cpu, tar_len, Some(("igzip", command_rate(igzip, tar_len))));

        let (_, cpu) = timed(|| sha(&tar));
        add("sha256 of the tar", cpu, tar_len, None);

        let mut contents = Vec::new();
        let (_, cpu) = timed(|| {
            let mut archive = tar::Archive::new(&tar[..]);
            let mut sink = vec![0u8; 128 << 10];
            for entry in archive.entries().expect("the layer is a tar") {
                let mut entry = entry.expect("the layer is a tar");
                while entry.read(&mut sink).expect("the layer is a tar") > 0 {}
            }
        });
        add("tar", cpu, tar_len, None);
        for entry in tar::Archive::new(&tar[..]).entries().expect("the layer is a tar") {
            entry.expect("the layer is a tar").read_to_end(&mut contents).expect("the layer is a tar");
        }
        drop(tar);

        let mut stored = 0u64;
        let (_, cpu) = timed(|| {
            let mut compressor = zstd::bulk::Compressor::new(3).expect("zstd starts");
            let mut out = vec![0u8; 256 << 10];
            for block in contents.chunks(128 << 10) {
                stored += compressor.compress_to_buffer(block, &mut out).expect("the buffer is large enough") as u64;
            }
        });
        let sample = scratch.join("contents");
        fs::write(&sample, &contents).expect("write the contents");
        let mut bench = Command::new("zstd");
        bench.args(["-q", "-b3", "-i1", "-B128KiB"]).arg(&sample);
        let output = bench.output().expect("zstd runs");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let rate = text.split(',').find_map(|part| {
            let (before, _) = part.split_once("MB/s")?;
            before.split_whitespace().next_back()?.parse::<f64>().ok()
        });
        add("zstd-3", cpu, contents.len() as u64, rate.map(|rate| ("zstd -b3", rate * 1e6)));

        let data = &contents[..(stored as usize).min(contents.len())];
        for name in ["write of the pack", "write of the SIF", "write of the copy"] {
            let (_, cpu) = timed(|| {
                let mut file = fs::File::create(scratch.join("written")).expect("create a file");
                data.chunks(1 << 20).for_each(|chunk| file.write_all(chunk).expect("write"));
            });
            add(name, cpu, stored, None);
        }
    }
    for name in ["written", "contents", "blob.gz"] {
        fs::remove_file(scratch.join(name)).expect("remove a scratch file");
    }
    stages
}

/// GETs `path` over plain HTTP and counts the bytes of head and body.
fn receive(host: &str, path: &str) -> u64 {
    let mut stream = TcpStream::connect(host).expect("connect to the registry");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("send the request");
    let mut buffer = vec![0u8; 256 << 10];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).expect("read the answer") {
            0 => return total,
            n => total += n as u64,
        }
    }
}
