//! Looks into SIF files without the code under test.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::programs::Scratch;

/// Offset and size in bytes of the first partition of the SIF at `path`.
pub fn partition(path: &Path) -> (u64, u64) {
    let bytes = fs::read(path).expect("read the SIF");
    assert_eq!(&bytes[32..42], b"SIF_MAGIC\0", "{} is no SIF", path.display());
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (total, table) = (number(88) as usize, number(96) as usize);
    for index in 0..total {
        let at = table + 585 * index;
        let kind = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if kind == 0x4004 && bytes[at + 4] != 0 {
            return (number(at + 17), number(at + 25));
        }
    }
    panic!("{} holds no partition", path.display());
}

/// A SIF's file system, mounted by the kernel; unmounted with this value.
pub struct Mounted {
    folder: Scratch,
}

impl Mounted {
    /// Mounts the partition of the SIF at `path` (needs root).
    pub fn new(path: &Path) -> Self {
        let (offset, size) = partition(path);
        let folder = Scratch::new();
        let output = Command::new("mount")
            .args(["-t", "squashfs", "-o", &format!("loop,ro,offset={offset},sizelimit={size}")])
            .args([path, folder.path()])
            .output()
            .expect("mount runs");
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.folder.path().display());
        }
    }
}

/// A SIF's file system, served by squashfuse_ll; unmounted with this value.
pub struct Squashfuse {
    folder: Scratch,
}

impl Squashfuse {
    /// Has it serve the partition of the SIF at `path`.
    pub fn new(path: &Path) -> Self {
        let (offset, _) = partition(path);
        let folder = Scratch::new();
        let output = Command::new("squashfuse_ll")
            .args(["-o", &format!("offset={offset}")])
            .args([path, folder.path()])
            .output()
            .expect("squashfuse_ll runs (tests/install.sh installs it)");
        assert!(output.status.success(), "squashfuse_ll: {}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Squashfuse {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.folder.path().display());
        }
    }
}

/// Unpacks the SIF's file system with unsquashfs into `target`.
pub fn unsquash(path: &Path, target: &Path) {
    let (offset, _) = partition(path);
    let output = Command::new("unsquashfs")
        .args(["-quiet", "-no-progress", "-offset", &offset.to_string(), "-dest"])
        .args([target, path])
        .output()
        .expect("unsquashfs runs (tests/install.sh installs it)");
    assert!(output.status.success(), "unsquashfs: {}", String::from_utf8_lossy(&output.stderr));
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaints.is_empty(), "unsquashfs complains: {complaints}");
}

/// Path of the SIF tool of others, if `tests/install.sh` could build it.
pub fn siftool(test: &str) -> Option<PathBuf> {
    let state =
        std::env::var_os("SCTL_TEST_STATE").map_or_else(|| PathBuf::from("/var/cache/sctl-tests"), PathBuf::from);
    let path = state.join("bin/siftool");
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED part of {test}: siftool is not there (no Go on this machine)");
    None
}

/// Every byte of every data and fragment block of the SIF's file system is
/// in what this returns: the plain bytes of all zstd frames and zlib streams
/// found at any offset, and the file itself.
pub fn every_decompressed_byte(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).expect("read the SIF");
    let mut all = bytes.clone();
    for at in 0..bytes.len().saturating_sub(4) {
        if bytes[at..at + 4] == [0x28, 0xb5, 0x2f, 0xfd] {
            let mut out = Vec::new();
            // Most offsets start no valid frame: what came out until the
            // decoder noticed counts all the same.
            if let Ok(decoder) = zstd::Decoder::with_buffer(&bytes[at..]) {
                let _ = decoder.single_frame().take(2 << 20).read_to_end(&mut out);
            }
            all.extend_from_slice(&out);
        } else if bytes[at] == 0x78 && u16::from_be_bytes([bytes[at], bytes[at + 1]]).is_multiple_of(31) {
            let mut out = Vec::new();
            let decoder = flate2::read::ZlibDecoder::new(&bytes[at..]);
            let _ = decoder.take(2 << 20).read_to_end(&mut out);
            all.extend_from_slice(&out);
        }
    }
    all
}
