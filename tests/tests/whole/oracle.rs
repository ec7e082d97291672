//! The tree inside our SIF is the tree that umoci unpacks, for every image of
//! the corpus; and the tools of others read our files without complaint.

use std::process::Command;

use sctl_tests::{
    corpus::{self, Case},
    daemon::{Daemon, User},
    image::{self, Image},
    layer::BlobCompression,
    programs::{Scratch, have_program, have_root, stderr},
    registry::Registry,
    sif::{Mounted, Squashfuse, siftool, unsquash},
    tree,
};

/// Says whether `path` is what the converter adds to every image.
fn is_ours(path: &str) -> bool {
    const ADDED: [&str; 18] = [
        "./.singularity.d",
        "./.run",
        "./.exec",
        "./.shell",
        "./.test",
        "./singularity",
        "./environment",
        "./dev",
        "./proc",
        "./sys",
        "./tmp",
        "./var",
        "./root",
        "./home",
        "./run",
        "./etc",
        "./var/tmp",
        "./etc/hosts",
    ];
    ADDED.contains(&path) || path == "./etc/resolv.conf" || path.starts_with("./.singularity.d/")
}

#[test]
fn privileged_corpus_equals_what_umoci_unpacks() {
    if !have_root("privileged_corpus_equals_what_umoci_unpacks") {
        return;
    }
    let registry = Registry::start();
    let daemon = Daemon::system("");
    let user = User::a();
    let scratch = Scratch::new();
    let out = user.folder(&scratch, "out");
    let cases = corpus::cases();
    assert!(cases.len() >= 60, "the corpus holds {} images", cases.len());
    let mut failures = Vec::new();
    let mut checked = 0;
    for case in cases {
        let name = case.name;
        let layout = scratch.join(&format!("layout-{name}"));
        Image::new(case.layers.clone()).write_layout(&layout, "t");
        // umoci knows no zstd: it unpacks the same tars, stored as gzip.
        let plain = case.layers.into_iter().map(|layer| layer.stored(BlobCompression::Gzip)).collect();
        Image::new(plain).write_layout(&layout, "reference");
        let rootfs = image::umoci_unpack(&layout, "reference", &scratch.join(&format!("bundle-{name}")));
        let expected = tree::read(&rootfs).expect("read umoci's tree");
        registry.push(&layout, "t", &format!("corpus/{name}:t"));
        let sif = out.join(format!("{name}.sif"));
        let pulled = daemon
            .sctl(&user)
            .args(["pull", "--no-https"])
            .arg(&sif)
            .arg(format!("docker://{}", registry.reference(&format!("corpus/{name}:t"))))
            .output()
            .expect("run sctl");
        if !pulled.status.success() {
            failures.push(format!("{name}: pull: {}", stderr(&pulled)));
            continue;
        }
        let mounted = Mounted::new(&sif);
        let ours = tree::read(mounted.path()).expect("read our tree");
        for line in tree::differences(&ours, &expected, is_ours) {
            failures.push(format!("{name}: kernel: {line}"));
        }
        drop(mounted);
        let unsquashed = scratch.join(&format!("unsquashed-{name}"));
        unsquash(&sif, &unsquashed);
        let ours = tree::read(&unsquashed).expect("read unsquashfs's tree");
        for line in tree::differences(&ours, &expected, is_ours) {
            failures.push(format!("{name}: unsquashfs: {line}"));
        }
        if let Some(siftool) = siftool("privileged_corpus_equals_what_umoci_unpacks") {
            let listed = Command::new(&siftool).arg("list").arg(&sif).output().expect("siftool runs");
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            if !listed.status.success() || !text.contains("FS (Squashfs/*System/") {
                failures.push(format!("{name}: siftool: {text}{}", stderr(&listed)));
            }
        }
        checked += 1;
    }
    eprintln!("{checked} images compared");
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

/// The tree with one name for two spaces of attributes, which squashfuse 0.1
/// takes for each other in every image.
fn alike(mut tree: tree::Tree) -> tree::Tree {
    for entry in tree.values_mut() {
        let renamed = std::mem::take(&mut entry.xattrs).into_iter();
        entry.xattrs = renamed.map(|(name, value)| (name.replace("trusted.", "security."), value)).collect();
    }
    tree
}

#[test]
fn privileged_squashfuse_reads_what_umoci_unpacks() {
    const TEST: &str = "privileged_squashfuse_reads_what_umoci_unpacks";
    if !have_root(TEST) || !have_program(TEST, "squashfuse_ll") {
        return;
    }
    // Names, blocks, holes, fragments, links, attributes, long directories;
    // and layers on top of each other.
    const CASES: [&str; 10] = [
        "names-not-utf8",
        "types",
        "owners",
        "modes",
        "xattrs",
        "sizes",
        "zeros",
        "duplicates-across",
        "many-small",
        "hardlink-to-lower",
    ];
    let registry = Registry::start();
    let user = User::a();
    let scratch = Scratch::new();
    let out = user.folder(&scratch, "out");
    let cases: Vec<_> = corpus::cases().into_iter().filter(|case| CASES.contains(&case.name)).collect();
    assert_eq!(cases.len(), CASES.len(), "the corpus lacks some");
    let daemons = ["zstd", "gzip"]
        .map(|compression| (compression, Daemon::system(&format!("compression = \"{compression}\"\n"))));
    let mut failures = Vec::new();
    for Case { name, layers } in cases {
        let layout = scratch.join(&format!("layout-{name}"));
        Image::new(layers).write_layout(&layout, "t");
        let rootfs = image::umoci_unpack(&layout, "t", &scratch.join(&format!("bundle-{name}")));
        let expected = alike(tree::read(&rootfs).expect("read umoci's tree"));
        registry.push(&layout, "t", &format!("corpus/{name}:t"));
        let uri = format!("docker://{}", registry.reference(&format!("corpus/{name}:t")));
        for (compression, daemon) in &daemons {
            let sif = format!("{name}-{compression}.sif");
            let pulled = daemon.pull(&user, &out, &[&sif, &uri]);
            assert!(pulled.status.success(), "{name}: {}", stderr(&pulled));
            let served = Squashfuse::new(&out.join(&sif));
            let found = alike(tree::read(served.path()).expect("read squashfuse's tree"));
            for line in tree::differences(&found, &expected, is_ours) {
                failures.push(format!("{name}, {compression}: {line}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}
