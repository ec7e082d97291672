//! Real images: a Debian root file system, a language runtime on top of it,
//! and a layer that deletes, replaces and hides.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::json;

use crate::{
    image::Image,
    layer::{Entry, Layer},
};

/// A secret that a lower layer holds and an upper one deletes.
pub const SECRET_DELETED: &str = "TOP-SECRET-that-was-deleted-0f7b";
/// A secret that a lower layer holds and an upper one replaces.
pub const SECRET_REPLACED: &str = "TOP-SECRET-that-was-replaced-91ac";
/// A secret that a lower layer holds below a folder made opaque.
pub const SECRET_HIDDEN: &str = "TOP-SECRET-that-was-hidden-55d3";

/// Where `tests/install.sh` keeps what it made.
pub fn state() -> PathBuf {
    env::var_os("SCTL_TEST_STATE").map_or_else(|| PathBuf::from("/var/cache/sctl-tests"), PathBuf::from)
}

/// Packs `folder` as a tar with GNU tar, the way image builders do.
pub fn tar_of(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["--create", "--format=pax", "--sort=name", "--numeric-owner", "--xattrs", "--one-file-system", "-C"])
        .arg(folder)
        .args(arguments)
        .output()
        .expect("tar runs");
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The Debian root file system as a tar.
pub fn base_tar() -> &'static [u8] {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    TAR.get_or_init(|| root_tar("debian"))
}

fn root_tar(name: &str) -> Vec<u8> {
    let folder = state().join(name);
    assert!(folder.join("bin").exists(), "no Debian root file system {name}: run tests/install.sh");
    tar_of(&folder, &["."])
}

/// The Rust compiler that builds this project, as a tar below
/// `usr/local/rust`: a large language runtime that every machine which runs
/// the tests has.
pub fn runtime_tar() -> &'static [u8] {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    TAR.get_or_init(|| {
        let output = Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc runs");
        let sysroot = PathBuf::from(String::from_utf8(output.stdout).expect("paths are text").trim());
        let libraries: Vec<String> = fs::read_dir(sysroot.join("lib"))
            .expect("the compiler has libraries")
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.contains(".so"))
            .map(|name| format!("lib/{name}"))
            .collect();
        let mut arguments = vec!["--transform=s,^,usr/local/rust/,", "--owner=0", "--group=0", "bin/rustc"];
        arguments.extend(libraries.iter().map(String::as_str));
        tar_of(&sysroot, &arguments)
    })
}

/// Debian alone: one layer.
pub fn base() -> Image {
    Image::new(vec![Layer::from_tar(base_tar().to_vec())])
        .config(json!({"Cmd": ["/bin/bash"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "BASE=debian"]}))
}

/// Debian with Python and numpy: one layer, for benchmarks.
pub fn numpy() -> Image {
    Image::new(vec![Layer::from_tar(root_tar("numpy"))])
        .config(json!({"Cmd": ["/usr/bin/python3"], "Env": ["PATH=/usr/bin:/bin"]}))
}

/// Debian, then small files with secrets, then a layer that deletes, replaces
/// and makes opaque: three layers.
pub fn layered() -> Image {
    let mut image = base();
    image.layers.push(Layer::new(&[
        Entry::dir("opt"),
        Entry::dir("opt/data"),
        Entry::file("opt/data/keep", "keep me"),
        Entry::file("opt/data/deleted", SECRET_DELETED),
        Entry::file("opt/data/deleted-large", SECRET_DELETED.repeat(20_000)),
        Entry::file("opt/data/replaced", SECRET_REPLACED),
        Entry::dir("opt/hidden"),
        Entry::file("opt/hidden/one", SECRET_HIDDEN),
        Entry::file("opt/hidden/large", SECRET_HIDDEN.repeat(20_000)),
    ]));
    image.layers.push(Layer::new(&[
        Entry::whiteout("opt/data/deleted"),
        Entry::whiteout("opt/data/deleted-large"),
        Entry::file("opt/data/replaced", "nothing to see"),
        Entry::dir("opt/hidden"),
        Entry::opaque("opt/hidden"),
        Entry::file("opt/hidden/new", "new"),
        Entry::whiteout("usr/share/doc"),
        Entry::file("etc/motd", "replaced\n"),
    ]));
    image
        .config(json!({"Entrypoint": ["/bin/cat"], "Cmd": ["/etc/motd"], "Env": ["PATH=/usr/bin:/bin", "LAYERED=yes"]}))
}

/// Debian and the Rust compiler: two layers, the second one large.
pub fn with_runtime() -> Image {
    let mut image = base();
    image.layers.push(Layer::from_tar(runtime_tar().to_vec()));
    image.config(json!({
        "Entrypoint": ["rustc"],
        "Cmd": ["--version"],
        "Env": ["PATH=/usr/local/rust/bin:/usr/bin:/bin"],
    }))
}

/// A tiny image whose only program is a static busybox.
pub fn busybox() -> Image {
    let program = fs::read("/bin/busybox").expect("read busybox (tests/install.sh installs it)");
    let mut entries = vec![Entry::dir("bin"), Entry::file("bin/busybox", program).mode(0o755)];
    for name in ["sh", "cat", "echo", "ls", "id", "env", "true", "false", "sleep", "kill", "printf", "touch", "pwd"] {
        entries.push(Entry::symlink(format!("bin/{name}"), "busybox"));
    }
    entries.extend([
        Entry::dir("etc"),
        Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Entry::file("etc/group", "root:x:0:\n"),
    ]);
    Image::new(vec![Layer::new(&entries)])
        .config(json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "FROM_IMAGE=busybox"]}))
}
