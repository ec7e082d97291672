//! What our loop devices carry, so that the next daemon knows them.
//!
//! ```text
//! sctl1 <s|p> <instance: 8> <image key: 43> <owner: 6>
//! ```
//!
//! without the spaces: 63 bytes, as many as fit. Key and owner are base64 for
//! names; the owner of a shared superblock is all ones, an id that no user can
//! have.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sctl_common::Digest;
use sctl_sys::loopdev::Tag;

use crate::cache::ImageKey;

const MAGIC: &str = "sctl1";

/// Names the cache that a daemon serves among the loop devices of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance(String);

impl Instance {
    /// Of the cache whose folder is this inode.
    pub(super) fn of(device: u64, inode: u64) -> Self {
        let digest = Digest::of(format!("sctl-instance:{device}:{inode}").as_bytes());
        Self(digest.hex()[..8].to_owned())
    }
}

/// Whose a superblock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Owner {
    /// All users'.
    Everybody,
    /// One uid's.
    User(u32),
}

/// Which superblock of which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub(super) key: ImageKey,
    pub(super) owner: Owner,
}

impl Name {
    /// As a loop device carries it.
    pub(super) fn to_tag(self, instance: &Instance) -> std::io::Result<Tag> {
        let (kind, owner) = match self.owner {
            Owner::Everybody => ('s', u32::MAX),
            Owner::User(uid) => ('p', uid),
        };
        let key = URL_SAFE_NO_PAD.encode(self.key.digest().as_bytes());
        let owner = URL_SAFE_NO_PAD.encode(owner.to_be_bytes());
        Tag::new(format!("{MAGIC}{kind}{}{key}{owner}", instance.0))
    }

    /// Reads what this instance wrote; `None` for everything else.
    pub(super) fn from_tag(tag: &Tag, instance: &Instance) -> Option<Self> {
        let rest = tag.as_str().strip_prefix(MAGIC)?;
        let kind = rest.chars().next()?;
        let rest = rest.get(1..)?.strip_prefix(&instance.0)?;
        let (key, owner) = (rest.get(..43)?, rest.get(43..)?);
        let key: [u8; 32] = URL_SAFE_NO_PAD.decode(key).ok()?.try_into().ok()?;
        let owner = u32::from_be_bytes(URL_SAFE_NO_PAD.decode(owner).ok()?.try_into().ok()?);
        let owner = match (kind, owner) {
            ('s', u32::MAX) => Owner::Everybody,
            ('p', uid) if uid != u32::MAX => Owner::User(uid),
            _ => return None,
        };
        Some(Self { key: ImageKey::of_digest(Digest::from_sha256(key)), owner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_by_the_same_instance_only() {
        let instance = Instance::of(1, 2);
        let key = ImageKey::new("docker://a/b", &Digest::of(b"m"), "p");
        for owner in [Owner::Everybody, Owner::User(0), Owner::User(4_294_967_294)] {
            let name = Name { key, owner };
            let tag = name.to_tag(&instance).unwrap();
            assert_eq!(tag.as_str().len(), 63);
            assert_eq!(Name::from_tag(&tag, &instance), Some(name));
            assert_eq!(Name::from_tag(&tag, &Instance::of(1, 3)), None);
        }
        let tag = Name { key, owner: Owner::Everybody }.to_tag(&instance).unwrap();
        for wrong in [tag.as_str()[..62].to_owned(), tag.as_str().replacen('s', "p", 2), "sctl1".to_owned()] {
            assert_eq!(Name::from_tag(&Tag::new(wrong.clone()).unwrap(), &instance), None, "{wrong}");
        }
    }
}
