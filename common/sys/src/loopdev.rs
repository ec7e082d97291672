//! Loop devices: a range of a file as a read-only block device.
//!
//! A device made here frees itself when nobody has it open or mounted any more
//! (autoclear), so that nothing is left behind by a process that dies.
//!
//! Needs Linux 5.8 (`LOOP_CONFIGURE`).
//!
//! # Source
//! `<linux/loop.h>`, loop(4).

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::PathBuf,
};

use crate::mount::{MountAttributes, clone_one, restrict};

const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Bytes of a tag, with the NUL that ends it.
const NAME_LEN: usize = 64;

/// Between "this number is free" and its use somebody else may take it; so
/// may udev, for a moment.
const ATTEMPTS: u32 = 200;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME_LEN],
    crypt_name: [u8; NAME_LEN],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

impl LoopInfo {
    const ZERO: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; NAME_LEN],
        crypt_name: [0; NAME_LEN],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// A text of up to 63 bytes that a device carries; only root can read it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(String);

impl Tag {
    /// Makes a tag of printable ASCII.
    ///
    /// # Errors
    /// `InvalidInput` for other characters, none, or more than 63.
    pub fn new(text: impl Into<String>) -> io::Result<Self> {
        let text = text.into();
        if text.is_empty() || text.len() >= NAME_LEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a tag of a loop device"));
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the kernel says about a device that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Device number of the file system that the backing file is on.
    pub device: u64,
    /// Inode of the backing file.
    pub inode: u64,
    /// First byte in the backing file.
    pub offset: u64,
    /// Bytes of the device.
    pub len: u64,
    /// It is read-only and frees itself.
    pub is_ours: bool,
    /// The tag; `None` if it is not one of [`Tag`]'s texts.
    pub tag: Option<Tag>,
}

/// An open loop device. It keeps what it is bound to while this exists.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    number: u32,
    rdev: u64,
}

impl LoopDevice {
    /// Opens `/dev/loopNUMBER`, bound or not.
    ///
    /// # Privileges
    /// Root, or whoever may read block devices.
    ///
    /// # Errors
    /// As `open(2)`; `InvalidData` if it is no block device.
    pub fn open(number: u32) -> io::Result<Self> {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW;
        let path = format!("/dev/loop{number}");
        let file = File::from(rustix::fs::open(&*path, flags, rustix::fs::Mode::empty())?);
        let stat = file.metadata()?;
        if !stat.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is no block device")));
        }
        let rdev = stat.rdev();
        Ok(Self { file, number, rdev })
    }

    /// Its number, as in `/dev/loop0`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its device number: `st_dev` of a file system that is mounted from it.
    pub fn rdev(&self) -> u64 {
        self.rdev
    }

    /// What it is bound to; `None` if to nothing.
    ///
    /// # Errors
    /// As `ioctl(2)`; `InvalidData` if the node does not belong to its number.
    pub fn status(&self) -> io::Result<Option<Status>> {
        let mut info = LoopInfo::ZERO;
        // SAFETY: LOOP_GET_STATUS64 writes one `loop_info64`, whose layout
        // `LoopInfo` has (its size is asserted above), to a live local.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) };
        }
        if info.number != self.number {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the loop device has another number"));
        }
        let end = info.file_name.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
        let tag = std::str::from_utf8(&info.file_name[..end]).ok().and_then(|text| Tag::new(text).ok());
        let wanted = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
        Ok(Some(Status {
            device: info.device,
            inode: info.inode,
            offset: info.offset,
            len: info.size_limit,
            is_ours: info.flags & wanted == wanted,
            tag,
        }))
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes loop devices.
#[derive(Debug)]
pub struct LoopControl(File);

impl LoopControl {
    /// Opens `/dev/loop-control`.
    ///
    /// # Privileges
    /// Root, or whoever may open that device.
    ///
    /// # Errors
    /// `NotFound` where the kernel has no loop devices, `PermissionDenied`.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::options().read(true).write(true).open("/dev/loop-control")?))
    }

    /// Binds a free device to `len` bytes of `backing` from `offset` on:
    /// read-only, and freed when it is used no more.
    ///
    /// `backing` should come from [`reopen_nameless`]: everybody may read its
    /// path in sysfs.
    ///
    /// # Privileges
    /// Root, or whoever may open these devices.
    ///
    /// # Errors
    /// `ENOTTY` or `EINVAL` before Linux 5.8; `EBUSY` if others take every
    /// device that is free.
    pub fn bind(&self, backing: &File, offset: u64, len: u64, tag: &Tag) -> io::Result<LoopDevice> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_bind(backing, offset, len, tag) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < ATTEMPTS => {
                    if attempt > 10 {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                }
                result => return result,
            }
        }
    }

    fn try_bind(&self, backing: &File, offset: u64, len: u64, tag: &Tag) -> io::Result<LoopDevice> {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
        let number = unsafe { libc::ioctl(self.0.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        let number = u32::try_from(number).map_err(|_| io::Error::last_os_error())?;
        let device = LoopDevice::open(number)?;
        let mut info =
            LoopInfo { offset, size_limit: len, flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR, ..LoopInfo::ZERO };
        info.file_name[..tag.0.len()].copy_from_slice(tag.0.as_bytes());
        // A descriptor is not negative.
        let fd = backing.as_raw_fd() as u32;
        let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
        // SAFETY: LOOP_CONFIGURE reads one `loop_config`, whose layout
        // `LoopConfig` has (its size is asserted above), from a live local; it
        // takes a reference of its own to the open file behind `fd`.
        let result = unsafe { libc::ioctl(device.file.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
        if result == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
    }
}

/// Opens a file again, for reading, so that the kernel knows no path of it:
/// through a mount of the file itself, whose root it is.
///
/// # Privileges
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// # Errors
/// As `open_tree(2)`; `NotFound` without `/proc`.
pub fn reopen_nameless(file: impl AsFd) -> io::Result<File> {
    let alone: OwnedFd = clone_one(file, c"")?;
    restrict(&alone, MountAttributes::READ_ONLY, false)?;
    File::open(format!("/proc/self/fd/{}", alone.as_raw_fd()))
}

/// Numbers of all devices that are bound to a file without a name, as those
/// from [`reopen_nameless`] are.
///
/// # Errors
/// If sysfs cannot be read.
pub fn bound_without_name() -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else { continue };
        // It may have been freed meanwhile; and others' are none of ours.
        if fs::read(backing_file(number)).is_ok_and(|path| path == b"/\n") {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Where sysfs tells everybody the path of a device's backing file.
pub fn backing_file(number: u32) -> PathBuf {
    format!("/sys/block/loop{number}/loop/backing_file").into()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn tags_are_short_and_plain() {
        assert!(Tag::new("x".repeat(63)).is_ok());
        for wrong in [String::new(), "x".repeat(64), "a b".to_owned(), "a\0".to_owned(), "\u{e9}".to_owned()] {
            assert!(Tag::new(wrong.clone()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn privileged_a_device_shows_its_range_no_path_and_goes_with_its_last_user() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root for loop devices");
            return;
        }
        let mut backing = tempfile::NamedTempFile::new().unwrap();
        for part in 0..4u8 {
            backing.write_all(&[part; 4096]).unwrap();
        }
        let control = match LoopControl::open() {
            Ok(control) => control,
            Err(error) => {
                eprintln!("SKIPPED: there are no loop devices here: {error}");
                return;
            }
        };
        let reader = File::open(backing.path()).unwrap();
        let stat = reader.metadata().unwrap();
        let tag = Tag::new("sctl-test").unwrap();
        let device = control.bind(&reopen_nameless(&reader).unwrap(), 4096, 8192, &tag).unwrap();
        let expected =
            Status { device: stat.dev(), inode: stat.ino(), offset: 4096, len: 8192, is_ours: true, tag: Some(tag) };
        assert_eq!(device.status().unwrap(), Some(expected));
        assert_eq!(fs::read_to_string(backing_file(device.number())).unwrap(), "/\n", "everybody reads this");
        assert!(bound_without_name().unwrap().contains(&device.number()));
        let mut bytes = Vec::new();
        (&device.file).read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() == 8192 && bytes[0] == 1 && bytes[8191] == 2);
        let number = device.number();
        assert!(
            File::options()
                .write(true)
                .open(format!("/dev/loop{number}"))
                .and_then(|mut w| w.write_all(&[0; 512]))
                .is_err()
        );
        drop(device);
        // A child that another test has forked keeps every descriptor until it
        // executes its program, so the last user may be one of those.
        let deadline = Instant::now() + Duration::from_secs(10);
        while LoopDevice::open(number).unwrap().status().unwrap().is_some_and(|left| left.inode == stat.ino()) {
            assert!(Instant::now() < deadline, "it frees itself");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
