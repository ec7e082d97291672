//! What the container runs from, and what is known of it without running it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Seek as _,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::{Path, PathBuf},
};

use sctl_oci::Launch;
use sctl_sif::{Arch, Format, FsType, PROBE_LEN, SifFile};

use super::request::ImageSource;
use crate::{failure::Failure, fuse::Partition};

/// An image that has been looked at.
#[derive(Debug)]
pub struct Image {
    /// Absolute path, for the `*_CONTAINER` variables.
    pub path: PathBuf,
    /// Base name, for the `*_NAME` variables and messages.
    pub name: OsString,
    /// Where the root file system is.
    pub root: RootSource,
    /// What an image of our own making says about its program and
    /// environment; such an image needs no script and no shell.
    pub launch: Option<Launch>,
}

/// Where the root file system is.
#[derive(Debug)]
pub enum RootSource {
    /// In a file, as squashfs.
    Squashfs(Partition),
    /// The same, mounted by the daemon and detached.
    Mounted(OwnedFd, Partition),
    /// In a directory of the host.
    Directory(PathBuf),
}

impl Image {
    /// Looks at what is to be run.
    ///
    /// # Errors
    /// A [`Failure`] that names the image and says what is wrong with it.
    pub fn open(source: ImageSource) -> Result<Self, Failure> {
        match source {
            ImageSource::Directory { path } => {
                let fail = |error: &dyn std::error::Error| {
                    Failure::new(format!("Unable to open image {}", path.display())).source(error)
                };
                let found = std::fs::metadata(&path).map_err(|error| fail(&error))?;
                if !found.is_dir() {
                    return Err(Failure::new(format!("Image {} is no directory", path.display())));
                }
                let name = path.file_name().unwrap_or(OsStr::new("/")).to_owned();
                Ok(Self { name, root: RootSource::Directory(path.clone()), path, launch: None })
            }
            ImageSource::Sif { file, path, name, mount } => {
                let (partition, launch) = open_file(file).map_err(|mut failure| {
                    failure.message = format!("Unable to open image {}: {}", path.display(), failure.message);
                    failure
                })?;
                let root = match mount {
                    Some(mount) => RootSource::Mounted(mount, partition),
                    None => RootSource::Squashfs(partition),
                };
                Ok(Self { path, name, root, launch })
            }
        }
    }
}

fn open_file(mut file: File) -> Result<(Partition, Option<Launch>), Failure> {
    let mut head = vec![0; PROBE_LEN];
    let len = read_head(&file, &mut head).map_err(|error| Failure::new("cannot read it").source(&error))?;
    head.truncate(len);
    match sctl_sif::probe(&head) {
        Some(Format::Sif) => {}
        Some(Format::Squashfs { offset }) => {
            let end = file.seek(std::io::SeekFrom::End(0)).map_err(|error| Failure::new("no size").source(&error))?;
            return Ok((Partition::new(file, offset, end.saturating_sub(offset)), None));
        }
        Some(Format::Ext3 { .. }) => {
            return Err(Failure::new("ext3 images are not supported")
                .hint("convert it on a machine that can mount it, for example with `singularity build`"));
        }
        None => return Err(Failure::new("image format not recognized")),
    }
    let sif = SifFile::read(&mut file).map_err(|error| Failure::new("not a valid SIF file").source(&error))?;
    let Some(descriptor) = sif.primary_partition() else {
        return Err(Failure::new("no root file system in it").hint("a SIF needs a primary system partition to be run"));
    };
    let partition = descriptor.partition();
    match partition.as_ref().map(|partition| partition.fs) {
        Some(FsType::Squashfs) => {}
        Some(fs @ (FsType::EncryptedSquashfs | FsType::GocryptfsSquashfs)) => {
            return Err(Failure::new(format!("its root file system is encrypted ({fs}), which is not supported")));
        }
        Some(fs) => return Err(Failure::new(format!("its root file system is of type {fs}, which is not supported"))),
        None => return Err(Failure::new("its root file system has no type")),
    }
    if let Some(arch) = partition.map(|partition| partition.arch) {
        check_arch(arch)?;
    }
    let (offset, size) = (descriptor.offset(), descriptor.size());
    let launch = own_launch(&sif, &mut file);
    Ok((Partition::new(file, offset, size), launch))
}

fn read_head(file: &File, head: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < head.len() {
        match file.read_at(&mut head[len..], len as u64)? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// Where the kernel registers interpreters for programs of other machines.
const BINFMT_MISC: &str = "/proc/sys/fs/binfmt_misc";

/// Refuses an image for another machine, unless the kernel has been taught to
/// run programs of others.
fn check_arch(arch: Arch) -> Result<(), Failure> {
    let host = host_arch();
    let emulated = || {
        std::fs::read_dir(BINFMT_MISC)
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().as_bytes().starts_with(b"qemu-")))
    };
    if arch == Arch::UNKNOWN || arch.name() == host || runs_on(arch.name(), host) || emulated() {
        return Ok(());
    }
    Err(Failure::new(format!("image targets '{}', cannot run on '{host}'", arch.name())))
}

/// Go's name of this machine.
pub fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// Whether a 64-bit machine also runs the programs of its 32-bit ancestor.
fn runs_on(image: &str, host: &str) -> bool {
    matches!((image, host), ("386", "amd64") | ("arm", "arm64"))
}

/// Label that names the program that made an image.
const MAKER_LABEL: &str = "org.label-schema.usage.singularity.version";

/// Program and environment of an image that was converted by this product and
/// not changed since; nothing for every other one, and for one whose metadata
/// cannot be read: its scripts say the same.
fn own_launch(sif: &SifFile, file: &mut File) -> Option<Launch> {
    let attributes = sif.inspect_metadata(file).ok()??.data.attributes;
    let maker = attributes.labels.get(MAKER_LABEL)?;
    // An image that others have derived from ours keeps the label, but has
    // another definition and may have other scripts.
    let definition = sif.def_file(file).ok()??;
    let plain = definition.starts_with(b"bootstrap: docker\nfrom: ")
        && definition.trim_ascii_end() == attributes.deffile.trim_end().as_bytes()
        && definition.trim_ascii_end().iter().filter(|&&byte| byte == b'\n').count() == 1;
    if !maker.starts_with("sctl-") || !plain {
        return None;
    }
    Launch::parse(&sif.oci_config(file).ok()??).ok()
}

/// Makes a bind of the image's directory as a detached tree.
///
/// # Errors
/// As `open_tree(2)`.
pub fn clone_directory(path: &Path) -> std::io::Result<OwnedFd> {
    sctl_sys::mount::clone_tree(rustix::fs::CWD, path, true)
}
