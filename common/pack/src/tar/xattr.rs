//! Extended attributes, as pax headers carry them.

use base64::Engine as _;

use crate::error::{PackError, shown};
use crate::tar::Member;

/// Longest name and value of an xattr: the kernel's `XATTR_NAME_MAX` and
/// `XATTR_SIZE_MAX`.
pub(crate) const MAX_XATTR_NAME_LEN: usize = 255;
pub(crate) const MAX_XATTR_VALUE_LEN: usize = 64 << 10;

/// Raw name and value, and whether the value is base64.
pub(crate) type RawXattr<'a> = (&'a [u8], &'a [u8], bool);

/// Decodes the xattrs that an image keeps into the member, sorted.
pub(crate) fn collect(raw: &[RawXattr<'_>], member: &mut Member) -> Result<(), PackError> {
    /// The kernel's `XATTR_LIST_MAX`: bytes of all names, each with its NUL.
    const MAX_LIST_LEN: usize = 64 << 10;
    let too_long = |what, found: usize, max: usize| {
        Err(PackError::TooLong { entry: shown(&member.name), what, found: found as u64, max: max as u64 })
    };
    member.xattrs.clear();
    // libarchive writes both forms; the raw one needs no decoding and wins.
    for (name, value, _) in raw.iter().filter(|(.., is_base64)| *is_base64) {
        let name = percent_decode(name);
        let value: Vec<u8> = value.iter().copied().filter(|byte| *byte != b'=').collect();
        let Ok(value) = base64::engine::general_purpose::STANDARD_NO_PAD.decode(&value) else {
            let what = "value of an xattr is not base64";
            return Err(PackError::BadEntry { entry: shown(&member.name), what });
        };
        member.xattrs.push((name, value));
    }
    let plain = raw.iter().filter(|(.., is_base64)| !*is_base64);
    member.xattrs.extend(plain.map(|(name, value, _)| (name.to_vec(), value.to_vec())));
    member.xattrs.retain(|(name, _)| keeps_xattr(name));
    // Of equal names the last one counts: it comes first once they are reversed
    // and sorted with their order kept.
    member.xattrs.reverse();
    member.xattrs.sort_by(|a, b| a.0.cmp(&b.0));
    member.xattrs.dedup_by(|later, first| later.0 == first.0);
    member.xattrs.retain(|(_, value)| !value.is_empty());
    let mut list_len = 0;
    for (name, value) in &member.xattrs {
        if name.len() > MAX_XATTR_NAME_LEN {
            return too_long("name of an xattr", name.len(), MAX_XATTR_NAME_LEN);
        }
        if value.len() > MAX_XATTR_VALUE_LEN {
            return too_long("value of an xattr", value.len(), MAX_XATTR_VALUE_LEN);
        }
        if name.contains(&0) {
            return Err(PackError::BadEntry { entry: shown(&member.name), what: "NUL in the name of an xattr" });
        }
        list_len += name.len() + 1;
    }
    if list_len > MAX_LIST_LEN {
        return too_long("list of its xattrs", list_len, MAX_LIST_LEN);
    }
    Ok(())
}

/// Whether an xattr goes into the image: only these name spaces can be
/// stored, labels of the host that packed mean nothing elsewhere, and marks of
/// overlay would change what the tree means.
fn keeps_xattr(name: &[u8]) -> bool {
    let Some(dot) = name.iter().position(|byte| *byte == b'.') else { return false };
    let (space, rest) = (&name[..dot], &name[dot + 1..]);
    matches!(space, b"user" | b"trusted" | b"security")
        && !rest.is_empty()
        && !rest.starts_with(b"overlay.")
        && name != b"security.selinux"
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let hex = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let ([high, low, behind @ ..], b'%') = (tail, *first)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = behind;
        } else {
            out.push(*first);
        }
    }
    out
}
