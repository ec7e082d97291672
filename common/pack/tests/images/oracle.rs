//! Established tools read what we write, and unpack layers as we do.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::support::*;

/// Runs a tool; `None`, loudly, where it is missing.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: {program} cannot be run: {error}");
            None
        }
    }
}

fn write_image(image: &[u8]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.squashfs");
    fs::write(&path, image).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

/// Many directories, files of many lengths, links, an upper layer.
fn mixed() -> Vec<Layer> {
    let mut lower = Layer::new();
    for i in 0..400u64 {
        lower = lower.file(&format!("d{}/sub/f{i}", i % 20), &sample(i % 300, (i * i) as usize % 9000));
    }
    lower = lower.symlink("link", "d1").hard_link("hard", "d1/sub/f1").xattr("user.a", b"b").file("x", b"x");
    lower = lower.entry(b'6', b"fifo", b"", 0o600, b"").file("zeros", &vec![0; 50_000]);
    vec![lower, Layer::new().file(".wh.d3", b"").file("d4/.wh..wh..opq", b"").file("d4/new", &sample(1, 5000))]
}

#[test]
fn unsquashfs_reads_every_byte() {
    let image = image(mixed());
    let (folder, path) = write_image(&image);
    let target = folder.path().join("out");
    let arguments = ["-no-progress", "-no-xattrs", "-d", target.to_str().unwrap(), &path];
    let Some(output) = run("unsquashfs", &arguments) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = read(&image);
    for (name, found) in &files {
        let path = target.join(name);
        let metadata = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        match &found.what {
            What::Dir => assert!(metadata.is_dir(), "{name}"),
            What::File(bytes) => assert!(fs::read(&path).unwrap() == *bytes, "{name}"),
            What::Symlink(link) => assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_encoded_bytes(), link),
            What::Fifo => assert!(!metadata.is_file(), "{name}"),
        }
    }
    let count = |root: &Path| run("find", &[root.to_str().unwrap(), "-printf", "x"]).unwrap().stdout.len();
    assert_eq!(count(&target), files.len());
}

#[test]
fn images_are_about_as_large_as_those_of_mksquashfs() {
    // Files that are distinct, since mksquashfs would find duplicates as well.
    let layers = || {
        (0..3u64).map(|number| {
            (0..150).fold(Layer::new(), |layer, i| {
                let seed = number * 1000 + i;
                layer.file(&format!("l{number}/f{i}"), &sample(seed, 300 + (seed * seed) as usize % 70_000))
            })
        })
    };
    let image = image(layers());
    let (folder, path) = write_image(&image);
    let (target, theirs) = (folder.path().join("out"), folder.path().join("theirs"));
    let (target, theirs) = (target.to_str().unwrap(), theirs.to_str().unwrap());
    let Some(output) = run("unsquashfs", &["-no-progress", "-d", target, &path]) else { return };
    assert!(output.status.success());
    let block = BLOCK.to_string();
    let arguments =
        [target, theirs, "-comp", "zstd", "-Xcompression-level", "3", "-b", &block, "-noappend", "-no-progress"];
    let Some(output) = run("mksquashfs", &arguments) else { return };
    assert!(output.status.success());
    let their_len = fs::metadata(theirs).unwrap().len();
    assert!(image.len() as u64 * 100 <= their_len * 102, "{} and {their_len}", image.len());
}
