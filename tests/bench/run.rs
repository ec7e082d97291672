//! The benchmarks themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    image::Image,
    layer::Layer,
    programs::{Scratch, stderr},
    registry::Registry,
    sif,
};

use crate::stage;

/// Rounds of each comparison; the median counts.
const ROUNDS: usize = 5;

/// Results with their targets, printed together at the end.
#[derive(Default)]
pub struct Report(Vec<(String, f64, String, bool)>);

impl Report {
    pub fn at_most(&mut self, what: &str, ratio: f64, target: f64) {
        println!("{what}: {ratio:.3}");
        self.0.push((what.to_owned(), ratio, format!("≤ {target}"), ratio <= target));
    }

    pub fn at_least(&mut self, what: &str, ratio: f64, target: f64) {
        println!("{what}: {ratio:.3}");
        self.0.push((what.to_owned(), ratio, format!("≥ {target}"), ratio >= target));
    }

    /// Prints every figure beside its target.
    pub fn print(&self) {
        println!("\n== ratios ==");
        for (what, ratio, target, met) in &self.0 {
            println!("{:>8.3}  {target:<8} {}  {what}", ratio, if *met { "met   " } else { "MISSED" });
        }
    }
}

pub fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

fn time(command: &mut Command) -> Duration {
    // What was written before must not be written back on this one's time.
    rustix::fs::sync();
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("the command runs");
    let elapsed = start.elapsed();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    elapsed
}

/// The Rust compiler's whole folder: more than a gigabyte of real files.
fn big() -> Image {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc runs");
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).expect("paths are text").trim());
    let mut tar = debian::tar_of(&sysroot, &["--owner=0", "--group=0", "."]);
    // Programs of this host as well, until there is a gigabyte.
    if tar.len() < 1 << 30 {
        let more = debian::tar_of(Path::new("/usr"), &["lib"]);
        tar.truncate(tar.len() - 1024);
        tar.extend_from_slice(&more);
    }
    let mut image = debian::base();
    image.layers = vec![Layer::from_tar(tar)];
    image
}

pub struct Subject {
    name: &'static str,
    image: Image,
    layout: Scratch,
}

impl Subject {
    pub fn new(name: &'static str, image: Image) -> Self {
        let layout = Scratch::new();
        image.write_layout(layout.path(), "t");
        Self { name, image, layout }
    }

    pub fn seed(&self, registry: &Registry) -> String {
        registry.push(self.layout.path(), "t", &format!("{}:1", self.name));
        registry.reference(&format!("{}:1", self.name))
    }

    fn blobs(&self) -> Vec<(String, Vec<u8>)> {
        self.image
            .layers
            .iter()
            .map(|layer| {
                let (bytes, _) = layer.blob();
                (sctl_common::Digest::of(&bytes).to_string(), bytes)
            })
            .collect()
    }
}

fn cold_pull(user: &User, reference: &str, scratch: &Scratch) -> (Duration, Daemon) {
    let daemon = Daemon::system("");
    let out = user.folder(scratch, "out").join("x.sif");
    // Left by the round before, if any.
    let _ = fs::remove_file(&out);
    let elapsed = time(daemon.sctl(user).args(["pull", "--no-https"]).arg(&out).arg(format!("docker://{reference}")));
    (elapsed, daemon)
}

/// Cold and repeated pulls against the floor and against the peers.
pub fn pull(report: &mut Report) {
    let registry = Registry::start();
    let user = User::a();
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    for subject in [
        Subject::new("one-layer", debian::base()),
        Subject::new("two-layers", debian::with_runtime()),
        Subject::new("gigabyte", big()),
    ] {
        let name = subject.name;
        let rounds = if name == "gigabyte" { 3 } else { ROUNDS };
        let reference = subject.seed(&registry);
        let blobs = subject.blobs();
        let scratch = Scratch::new();
        let (mut floors, mut busy_floors) = (vec![], vec![]);
        let (mut ours, mut repeated, mut classic, mut direct) = (vec![], vec![], vec![], vec![]);
        for round in 0..rounds {
            let stages = stage::measure(&registry.host(), name, &blobs, scratch.path());
            let sum: Duration = stages.iter().map(|stage| stage.cpu).sum();
            floors.push(sum.div_f64(cores));
            busy_floors.push(busy_floor(&registry, name, &blobs, &scratch, cores));
            if round == 0 {
                println!("\n== stages of {name} (one thread) ==");
                for stage in &stages {
                    let rate = stage.bytes as f64 / stage.cpu.as_secs_f64().max(1e-9) / 1e6;
                    let peer =
                        stage.peer.map_or(String::new(), |(peer, rate)| format!("   {peer} {:.0} MB/s", rate / 1e6));
                    println!("{:>20} {:>7.3} s {rate:>7.0} MB/s{peer}", stage.name, stage.cpu.as_secs_f64());
                }
            }
            let (elapsed, daemon) = cold_pull(&user, &reference, &scratch);
            ours.push(elapsed);
            let again = user.folder(&scratch, "out").join("again.sif");
            repeated.push(time(
                daemon
                    .sctl(&user)
                    .args(["pull", "--no-https", "--force"])
                    .arg(&again)
                    .arg(format!("docker://{reference}")),
            ));
            drop(daemon);
            if blobs.len() == 1 {
                let url = format!("http://{}/v2/{name}/blobs/{}", registry.host(), blobs[0].0);
                let target = scratch.join("tar2sqfs.squashfs");
                let line =
                    format!("curl -s {url} | igzip -dc | tar2sqfs -q -f -c zstd -X level=3 {}", target.display());
                direct.push(time(Command::new("sh").args(["-c", &line])));
            }
            if round == 0 || name != "gigabyte" {
                classic.push(classic_way(&reference, &scratch));
            }
        }
        let (floor, busy_floor, ours) = (median(floors), median(busy_floors), median(ours));
        println!("{name}: floor {floor:.3} s, with all cores busy {busy_floor:.3} s, cold pull {ours:.3} s");
        report.at_most(&format!("cold pull of {name} / floor"), ours / floor, 1.25);
        report.at_most(&format!("cold pull of {name} / floor with all cores busy"), ours / busy_floor, 1.25);
        if !direct.is_empty() {
            report.at_most(&format!("cold pull of {name} / igzip | tar2sqfs"), ours / median(direct), 1.0);
        }
        report.at_least(&format!("skopeo + umoci + mksquashfs / cold pull of {name}"), median(classic) / ours, 4.5);
        report.at_most(&format!("repeated pull of {name} / cold"), median(repeated) / ours, 0.15);
    }
}

/// The floor where every core does the stages at the same time: cores that
/// share a core's units (hyper-threads) are slower together than alone, so
/// no program on all of them reaches the floor that one of them shows.
fn busy_floor(registry: &Registry, name: &str, blobs: &[(String, Vec<u8>)], scratch: &Scratch, cores: f64) -> Duration {
    let sums: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores as usize)
            .map(|n| {
                let folder = scratch.join(&format!("busy{n}"));
                scope.spawn(move || {
                    fs::create_dir_all(&folder).expect("make a folder for a core");
                    let stages = stage::measure(&registry.host(), name, blobs, &folder);
                    stages.iter().map(|stage| stage.cpu).sum::<Duration>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a core's stages")).collect()
    });
    sums.iter().sum::<Duration>().div_f64(cores * sums.len() as f64)
}

fn classic_way(reference: &str, scratch: &Scratch) -> Duration {
    let folder = scratch.join("classic");
    let line = format!(
        "rm -rf {0} && mkdir {0} && skopeo copy -q --insecure-policy --src-tls-verify=false docker://{reference} oci:{0}/oci:t \
         && umoci unpack --image {0}/oci:t {0}/bundle && mksquashfs {0}/bundle/rootfs {0}/x.squashfs -comp zstd \
         -Xcompression-level 3 -noappend -no-progress -quiet",
        folder.display()
    );
    let elapsed = time(Command::new("sh").args(["-c", &line]));
    fs::remove_dir_all(&folder).expect("remove the classic way's files");
    elapsed
}

/// A second image on a cached base costs its own layers only.
pub fn second_image(report: &mut Report) {
    let registry = Registry::start();
    let user = User::a();
    let scratch = Scratch::new();
    let base = Subject::new("base", debian::base()).seed(&registry);
    let upper = Subject::new("upper", debian::with_runtime()).seed(&registry);
    let (mut cold_base, mut cold_upper, mut second, mut copies) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        drop({
            let (elapsed, daemon) = cold_pull(&user, &upper, &scratch);
            cold_upper.push(elapsed);
            daemon
        });
        let sif = scratch.join("out/x.sif");
        let copied = scratch.join("copied.sif");
        let start = Instant::now();
        fs::copy(&sif, &copied).expect("copy the SIF");
        copies.push(start.elapsed());
        let (elapsed, daemon) = cold_pull(&user, &base, &scratch);
        cold_base.push(elapsed);
        let out = scratch.join("out/second.sif");
        second.push(time(
            daemon.sctl(&user).args(["pull", "--no-https", "--force"]).arg(&out).arg(format!("docker://{upper}")),
        ));
    }
    let allowed = (median(cold_upper) - median(cold_base)) * 1.15 + median(copies);
    report.at_most("second image on a cached base / (1.15 × (cold − base's) + a copy)", median(second) / allowed, 1.0);
}

/// Anonymous memory of all daemon processes together, in bytes.
fn anonymous_memory(daemon: u32) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        };
        let own = entry.file_name().to_str().and_then(|name| name.parse().ok()) == Some(daemon);
        if own || field("PPid:") == Some(u64::from(daemon)) {
            total += field("RssAnon:").unwrap_or(0) << 10;
        }
    }
    total
}

/// Memory does not grow with the image.
pub fn memory(report: &mut Report) {
    let registry = Registry::start();
    let user = User::a();
    let big = big();
    // Four gigabytes: the same files four times, each time with other bytes, so
    // that nothing is a duplicate. In one layer, as the other image is: layers
    // are packed side by side, and each of them takes as much.
    let mut four = Vec::new();
    for n in 0..4u8 {
        let mut quarter = big.layers[0].tar.clone();
        disturb(&mut quarter, n);
        let end = quarter.iter().rposition(|&byte| byte != 0).map_or(0, |last| (last + 1).next_multiple_of(512));
        four.extend_from_slice(&quarter[..end]);
    }
    four.extend_from_slice(&[0; 1024]);
    let mut peaks = Vec::new();
    for (name, image) in [("one-gigabyte", big), ("four-gigabytes", Image::new(vec![Layer::from_tar(four)]))] {
        let reference = Subject::new(name, image).seed(&registry);
        let daemon = Daemon::system("");
        let scratch = Scratch::new();
        let out = user.folder(&scratch, "out").join("x.sif");
        let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    peak.fetch_max(anonymous_memory(daemon.pid()), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            time(daemon.sctl(&user).args(["pull", "--no-https"]).arg(&out).arg(format!("docker://{reference}")));
            done.store(true, Ordering::Relaxed);
        });
        let mebibytes = peak.load(Ordering::Relaxed) as f64 / f64::from(1 << 20);
        println!("{name}: {mebibytes:.0} MiB of anonymous memory at the peak");
        report.at_most(&format!("anonymous memory for {name} / 256 MiB"), mebibytes / 256.0, 1.0);
        peaks.push(mebibytes);
    }
    report.at_most("four gigabytes' memory / one gigabyte's", peaks[1] / peaks[0], 1.25);
}

/// Changes every file's content a little, so that equal files of two layers
/// are no duplicates; headers stay as they are.
fn disturb(tar: &mut [u8], salt: u8) {
    let mut at = 0;
    while at + 512 <= tar.len() && tar[at] != 0 {
        let text = String::from_utf8_lossy(&tar[at + 124..at + 135]).into_owned();
        let size = usize::from_str_radix(text.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        let regular = tar[at + 156] == b'0';
        at += 512;
        if regular {
            for offset in (0..size).step_by(4096) {
                tar[at + offset] ^= salt.wrapping_mul(37);
            }
        }
        at += size.next_multiple_of(512);
    }
}

fn own_sif(scratch: &Scratch, user: &User) -> PathBuf {
    let registry = Registry::start();
    let reference = Subject::new("image", debian::base()).seed(&registry);
    let (_, daemon) = cold_pull(user, &reference, scratch);
    drop(daemon);
    scratch.join("out/x.sif")
}

/// Starts of a user's own SIF over FUSE against `bwrap` on a directory.
pub fn exec(report: &mut Report) {
    let user = User::a();
    let scratch = Scratch::new();
    let image = own_sif(&scratch, &user);
    let tree = user.folder(&scratch, "tree");
    sif::unsquash(&image, &tree.join("root"));
    let root = tree.join("root");
    let programs = sctl_tests::programs::programs();
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..60 {
        ours.push(time(user.command(programs.join("sctl")).arg("exec").arg(&image).arg("/bin/true")));
        theirs.push(time(user.command("bwrap").args(["--ro-bind"]).arg(&root).args([
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "/bin/true",
        ])));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("exec over FUSE {:.1} ms, bwrap {:.1} ms", ours * 1e3, theirs * 1e3);
    report.at_most("exec of an own SIF over FUSE / bwrap", ours / theirs, 4.0);
}

/// Reads through our FUSE server against `squashfuse_ll`.
pub fn read(report: &mut Report) {
    let user = User::a();
    let scratch = Scratch::new();
    let image = own_sif(&scratch, &user);
    let (offset, size) = sif::partition(&image);
    let squashfs = scratch.join("x.squashfs");
    let bytes = fs::read(&image).expect("read the SIF");
    fs::write(&squashfs, &bytes[offset as usize..(offset + size) as usize]).expect("write the partition");
    let line = "find /usr /etc /var -xdev -type f -print0 | xargs -0 cat > /dev/null";
    let programs = sctl_tests::programs::programs();
    let tree = scratch.join("mounted");
    fs::create_dir_all(&tree).expect("make the mount point");
    std::os::unix::fs::chown(&tree, Some(user.uid), Some(user.gid)).expect("give the mount point away");
    // Each in a container of its own, twice: the second pass is warm.
    let script = format!("s=$(date +%s%N); {line}; m=$(date +%s%N); {line}; e=$(date +%s%N); echo $((m-s)) $((e-m))");
    let seconds = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().expect("the command runs");
        assert!(output.status.success(), "{command:?}: {}", stderr(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut numbers = text.split_whitespace().map(|n| Duration::from_nanos(n.parse().expect("nanoseconds")));
        (numbers.next().expect("two times"), numbers.next().expect("two times"))
    };
    let (mut ours, mut theirs) = ((vec![], vec![]), (vec![], vec![]));
    for _ in 0..ROUNDS {
        let (cold, warm) =
            seconds(user.command(programs.join("sctl")).arg("exec").arg(&image).args(["/bin/sh", "-c", &script]));
        ours.0.push(cold);
        ours.1.push(warm);
        // In a user namespace of its own, as the tool is used without setuid.
        let inner = format!(
            "squashfuse_ll {0} {1} && bwrap --ro-bind {1} / --proc /proc --dev /dev /bin/sh -c '{script}'; fusermount3 -u {1} 2>/dev/null || umount {1}",
            squashfs.display(),
            tree.display()
        );
        let (cold, warm) = seconds(user.command("unshare").args(["-Urm", "sh", "-c", &inner]));
        theirs.0.push(cold);
        theirs.1.push(warm);
    }
    report.at_most("first read of all files / squashfuse_ll", median(ours.0) / median(theirs.0), 1.0);
    report.at_most("second read of all files / squashfuse_ll", median(ours.1) / median(theirs.1), 1.0);
}
