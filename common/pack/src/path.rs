//! Paths inside images: bytes, cleaned without looking at any tree.

use sctl_common::EntryName;

use crate::error::{PackError, shown};

/// Longest path in bytes: what fits the kernel's `PATH_MAX` with its NUL. It
/// bounds the depth of directories as well.
pub(crate) const MAX_PATH_LEN: usize = 4095;

/// Resolves `.`, `..` and slashes as if the path began at the root and held no
/// symlinks; the root itself becomes empty.
///
/// That is how the reference treats names in archives: `a/../b` is `b` even if
/// `a` is a symlink, and nothing leads above the root.
pub(crate) fn clean(raw: &[u8], into: &mut Vec<u8>) {
    into.clear();
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let parent = into.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                into.truncate(parent);
            }
            _ => {
                if !into.is_empty() {
                    into.push(b'/');
                }
                into.extend_from_slice(part);
            }
        }
    }
}

/// Checks that every part of a clean path can be stored.
pub(crate) fn check(path: &[u8]) -> Result<(), PackError> {
    if path.len() > MAX_PATH_LEN {
        let (found, max) = (path.len() as u64, MAX_PATH_LEN as u64);
        return Err(PackError::TooLong { entry: shown(path), what: "path", found, max });
    }
    // Only the length can be wrong: slashes separate, and names end at a NUL.
    if path.split(|byte| *byte == b'/').any(|part| part.len() > EntryName::MAX_LEN || part.contains(&0)) {
        for part in path.split(|byte| *byte == b'/') {
            EntryName::parse(part).map_err(|source| PackError::BadName { entry: shown(path), source })?;
        }
    }
    Ok(())
}

/// Splits a clean path into its directory and its last part.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_inside_the_root() {
        for (raw, expected) in [
            ("", ""),
            ("/", ""),
            ("./", ""),
            ("..", ""),
            ("a", "a"),
            ("./a//b/", "a/b"),
            ("/a/./b", "a/b"),
            ("a/../b", "b"),
            ("../../a/..", ""),
            ("a/b/../../../c", "c"),
            ("...", "..."),
            ("a/..b", "a/..b"),
        ] {
            let mut clean_path = b"old".to_vec();
            clean(raw.as_bytes(), &mut clean_path);
            assert_eq!(clean_path, expected.as_bytes(), "{raw:?}");
        }
    }

    #[test]
    fn long_names_and_paths_are_refused() {
        assert!(check(&[b'n'; 255]).is_ok());
        assert!(matches!(check(&[b'n'; 256]), Err(PackError::BadName { .. })));
        assert!(check(&b"n/".repeat(2047)[..4093]).is_ok());
        assert!(matches!(check(&b"nn/".repeat(1400)), Err(PackError::TooLong { .. })));
    }
}
