//! Copies between files that the kernel makes, without a way through memory
//! where the file system can share or move the bytes itself.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

use rustix::{
    fs::{copy_file_range, ioctl_ficlone},
    io::Errno,
};

/// Bytes per read where the kernel cannot copy by itself.
const CHUNK: usize = 256 << 10;

/// Bytes per `copy_file_range`, so that progress can be told and a signal be
/// heard in between.
const RANGE: u64 = 64 << 20;

/// Makes `target` share all bytes of `source` (a reflink).
///
/// Answers `false` where the file systems cannot; `target` is unchanged then.
///
/// # Errors
/// Those of `FICLONE` that mean more than "cannot", such as `ENOSPC`.
pub fn try_clone_file(source: impl AsFd, target: impl AsFd) -> io::Result<bool> {
    match ioctl_ficlone(target, source) {
        Ok(()) => Ok(true),
        Err(
            Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM | Errno::TXTBSY,
        ) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies `len` bytes from `source` at `source_offset` to `target` at
/// `target_offset`; neither file's own position moves.
///
/// # Errors
/// `UnexpectedEof` if `source` ends before `len` bytes; else the errors of the
/// system calls.
pub fn copy_range(
    source: &File,
    mut source_offset: u64,
    target: &File,
    mut target_offset: u64,
    len: u64,
) -> io::Result<()> {
    let mut left = len;
    while left > 0 {
        let want = left.min(RANGE) as usize;
        let copied = match copy_file_range(source, Some(&mut source_offset), target, Some(&mut target_offset), want) {
            // Some file systems answer 0 where they mean that they cannot; the
            // plain way below tells that from the end of the file.
            Ok(0) => return copy_plain(source, source_offset, target, target_offset, left),
            Ok(copied) => copied as u64,
            Err(Errno::INTR) => continue,
            Err(
                Errno::XDEV
                | Errno::INVAL
                | Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::PERM
                | Errno::TXTBSY
                | Errno::BADF
                | Errno::IO,
            ) => return copy_plain(source, source_offset, target, target_offset, left),
            Err(errno) => return Err(errno.into()),
        };
        left -= copied.min(left);
    }
    Ok(())
}

fn copy_plain(source: &File, mut from: u64, target: &File, mut to: u64, mut left: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
        source.read_exact_at(&mut buffer[..want], from)?;
        target.write_all_at(&buffer[..want], to)?;
        (from, to, left) = (from + want as u64, to + want as u64, left - want as u64);
    }
    Ok(())
}

/// Makes `target`, an empty file, a copy of the first `len` bytes of `source`:
/// a reflink where possible, else a copy; `progress` hears how many bytes stand.
///
/// # Errors
/// Those of [`try_clone_file`] and [`copy_range`].
pub fn copy_file(source: &File, target: &File, len: u64, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    // A clone takes the whole file, so it may be used for nothing less.
    if source.metadata()?.len() == len && try_clone_file(source, target)? {
        progress(len);
        return Ok(());
    }
    let mut done = 0;
    while done < len {
        let step = (len - done).min(RANGE / 8);
        copy_range(source, done, target, done, step)?;
        done += step;
        progress(done);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn ranges_arrive_where_they_should() {
        let (mut source, mut target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes = pattern(1 << 20);
        source.write_all(&bytes).unwrap();
        target.write_all(b"head").unwrap();
        copy_range(&source, 1000, &target, 4, 600_001).unwrap();
        let mut found = Vec::new();
        target.rewind().unwrap();
        target.read_to_end(&mut found).unwrap();
        assert_eq!(found.len(), 600_005);
        assert!(found[4..] == bytes[1000..601_001]);
        assert_eq!(copy_range(&source, 1 << 19, &target, 0, 1 << 20).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_plain_way_gives_the_same() {
        let (mut source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes = pattern(700_000);
        source.write_all(&bytes).unwrap();
        copy_plain(&source, 7, &target, 3, 600_000).unwrap();
        let mut found = vec![0; 600_000];
        target.read_exact_at(&mut found, 3).unwrap();
        assert!(found == bytes[7..600_007]);
    }

    #[test]
    fn whole_files_and_heads_are_copied_with_progress() {
        let (mut source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes = pattern(20 << 20);
        source.write_all(&bytes).unwrap();
        let mut told = Vec::new();
        copy_file(&source, &target, bytes.len() as u64, &mut |done| told.push(done)).unwrap();
        assert_eq!(told.last(), Some(&(bytes.len() as u64)));
        let mut found = vec![0; bytes.len()];
        target.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes);
        let head = tempfile::tempfile().unwrap();
        copy_file(&source, &head, 5, &mut |_| ()).unwrap();
        assert_eq!(head.metadata().unwrap().len(), 5);
    }
}
