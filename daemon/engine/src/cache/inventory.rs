//! What is in the cache, as users and administrators may see it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::AsFd,
};

use rustix::fs::FileType;
use sctl_common::{Digest, Platform};

use super::{
    Cache, CacheError, EntryId, Grant, Grants, ImageMeta, Inner, PackMeta,
    dirs::{names, stat},
    error::During,
    model::{FileKind, Meta, Record, is_stem},
    record::Load,
    unix_now,
};

/// Whose view of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// An administrator's, or the only user's: everything.
    All,
    /// One user's: what that user may use, and nothing about anybody else.
    Uid(u32),
}

impl Viewer {
    fn sees(self, grants: &Grants) -> bool {
        match self {
            Self::All => true,
            Self::Uid(uid) => grants.allow(uid),
        }
    }
}

/// An entry, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryInfo {
    /// Names it.
    pub id: EntryId,
    /// The newest reference of an image; the digest of a pack or blob.
    pub name: String,
    /// All references that led to an image, the newest last; empty where they
    /// would tell about other users.
    pub references: Vec<String>,
    /// Manifest of an image, diff_id of a pack, digest of a blob.
    pub digest: Digest,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Unix seconds.
    pub created: i64,
    /// Unix seconds; `None` where it would tell about other users.
    pub last_used: Option<i64>,
    /// Images (that the viewer sees) that use this pack or blob.
    pub used_by: u32,
    /// Everybody may use it.
    pub public: bool,
    /// Who else may, as far as the viewer may know.
    pub uids: Vec<u32>,
    /// Of an image.
    pub platform: Option<Platform>,
    /// Kept until it is unpinned.
    pub pinned: bool,
}

/// What one holder of grants may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The holder.
    pub grant: Grant,
    /// Finished SIFs. One that several may use counts for each of them.
    pub images: u64,
    /// Bytes of them.
    pub image_bytes: u64,
    /// Packed layers.
    pub packs: u64,
    /// Bytes of them.
    pub pack_bytes: u64,
}

/// Sizes and reuse of the cache, as far as a viewer sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheTotals {
    /// Finished SIFs.
    pub images: u64,
    /// Bytes of them.
    pub image_bytes: u64,
    /// Packed layers.
    pub packs: u64,
    /// Bytes of them.
    pub pack_bytes: u64,
    /// Manifests, configs, kept layers.
    pub blobs: u64,
    /// Bytes of them.
    pub blob_bytes: u64,
    /// Free on the file system.
    pub free_bytes: u64,
    /// Pack bytes that would be stored again if images did not share.
    pub shared_bytes: u64,
    /// Fetched since the database was made; 0 where it would tell about other
    /// users.
    pub fetched_bytes: u64,
    /// Blob bytes that reuse saved since then; 0 like the former.
    pub reused_bytes: u64,
    /// By holder of grants: everybody first, then users by uid; empty where it
    /// would tell about other users.
    pub usage: Vec<Usage>,
}

/// Everything that is there.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) images: Vec<Record<ImageMeta>>,
    pub(super) packs: Vec<Record<PackMeta>>,
    pub(super) blobs: Vec<Blob>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) changed: i64,
}

/// How often each pack and blob is used.
#[derive(Debug, Default)]
pub(super) struct Uses(HashMap<EntryId, u32>);

impl Uses {
    pub(super) fn of(&self, id: &EntryId) -> u32 {
        self.0.get(id).copied().unwrap_or(0)
    }

    pub(super) fn count<'a>(images: impl Iterator<Item = &'a Record<ImageMeta>>) -> Self {
        let mut uses = Self::default();
        for record in images {
            let meta = &record.meta;
            let mut ids = HashSet::from([EntryId::Blob(meta.manifest), EntryId::Blob(meta.config)]);
            for layer in &meta.layers {
                ids.insert(EntryId::Blob(layer.digest));
                ids.insert(EntryId::Pack { diff_id: layer.diff_id, profile_id: meta.profile_id.clone() });
            }
            for id in ids {
                *uses.0.entry(id).or_default() += 1;
            }
        }
        uses
    }
}

impl Inventory {
    pub(super) fn total_bytes(&self) -> u64 {
        self.images.iter().map(|record| record.size_bytes).sum::<u64>()
            + self.packs.iter().map(|record| record.size_bytes).sum::<u64>()
            + self.blobs.iter().map(|blob| blob.size_bytes).sum::<u64>()
    }
}

impl Cache {
    /// Entries that the viewer may see: images, then packs, then blobs, each
    /// with the one used last first.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn list(&self, viewer: Viewer) -> Result<Vec<EntryInfo>, CacheError> {
        Ok(self.inner.describe(&self.inner.scan()?, viewer))
    }

    /// Sizes and reuse of what the viewer may see.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn totals(&self, viewer: Viewer) -> Result<CacheTotals, CacheError> {
        let inventory = self.inner.scan()?;
        let mut totals = CacheTotals { free_bytes: self.inner.space()?.free_bytes, ..CacheTotals::default() };
        for entry in self.inner.describe(&inventory, viewer) {
            let (count, bytes) = match entry.id {
                EntryId::Image(_) => (&mut totals.images, &mut totals.image_bytes),
                EntryId::Pack { .. } => {
                    let again = u64::from(entry.used_by.saturating_sub(1));
                    totals.shared_bytes += entry.size_bytes.saturating_mul(again);
                    (&mut totals.packs, &mut totals.pack_bytes)
                }
                EntryId::Blob(_) => (&mut totals.blobs, &mut totals.blob_bytes),
            };
            *count += 1;
            *bytes += entry.size_bytes;
        }
        // What others have, fetched and saved is theirs to know.
        if viewer == Viewer::All {
            (totals.fetched_bytes, totals.reused_bytes) = self.inner.state.counters();
            totals.usage = usage(&inventory);
        }
        Ok(totals)
    }
}

impl Inner {
    /// Reads all sidecars. Files are the truth: another host may have changed
    /// them since we looked last.
    pub(super) fn scan(&self) -> Result<Inventory, CacheError> {
        Ok(Inventory { images: self.scan_kind()?, packs: self.scan_kind()?, blobs: self.scan_blobs()? })
    }

    pub(super) fn scan_kind<M: Meta>(&self) -> Result<Vec<Record<M>>, CacheError> {
        let mut records = Vec::new();
        for stem in self.stems(M::KIND)? {
            if let Load::Ready(record, _) = self.load::<M>(&stem)? {
                records.push(*record);
            }
        }
        Ok(records)
    }

    /// Names that have a sidecar.
    pub(super) fn stems(&self, kind: FileKind) -> Result<Vec<String>, CacheError> {
        let names = names(self.dirs.of(kind)).during("list the cache")?;
        let stems = names.into_iter().filter_map(|name| name.strip_suffix(".json").map(str::to_owned));
        Ok(stems.filter(|stem| is_stem(kind, stem)).collect())
    }

    pub(super) fn scan_blobs(&self) -> Result<Vec<Blob>, CacheError> {
        let dir = self.dirs.blobs.as_fd();
        let mut blobs = Vec::new();
        for name in names(dir).during("list blobs")? {
            let Ok(digest) = Digest::parse(&format!("sha256:{name}")) else { continue };
            // Removed since the folder was read.
            let Some(stat) = stat(dir, &name).during("inspect a blob")? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                blobs.push(Blob { digest, size_bytes: stat.st_size as u64, changed: stat.st_mtime });
            }
        }
        Ok(blobs)
    }

    pub(super) fn describe(&self, inventory: &Inventory, viewer: Viewer) -> Vec<EntryInfo> {
        let seen: Vec<_> = inventory.images.iter().filter(|record| viewer.sees(&record.grants)).collect();
        let uses = Uses::count(seen.iter().copied());
        let mut entries: Vec<_> = seen.iter().map(|record| self.describe_image(record, viewer)).collect();
        let packs = inventory.packs.iter().filter(|record| viewer.sees(&record.grants));
        entries.extend(packs.map(|record| self.describe_pack(record, &uses, viewer)));
        // A blob has no grants of its own: who sees an image sees its blobs.
        let blob_grants = blob_grants(&seen);
        for blob in &inventory.blobs {
            let id = EntryId::Blob(blob.digest);
            let grants = blob_grants.get(&blob.digest);
            if grants.is_none() && viewer != Viewer::All {
                continue;
            }
            let info = EntryInfo {
                name: blob.digest.to_string(),
                references: Vec::new(),
                digest: blob.digest,
                size_bytes: blob.size_bytes,
                created: blob.changed,
                last_used: self.last_used(&id, blob.changed, viewer),
                used_by: uses.of(&id),
                public: grants.is_some_and(|grants| grants.iter().any(|grants| grants.is_public())),
                uids: uids(grants.into_iter().flatten().copied(), viewer),
                platform: None,
                pinned: false,
                id,
            };
            entries.push(info);
        }
        let order = |id: &EntryId| match id {
            EntryId::Image(_) => 0,
            EntryId::Pack { .. } => 1,
            EntryId::Blob(_) => 2,
        };
        entries.sort_by(|a, b| {
            (order(&a.id), b.last_used, b.created, &a.id).cmp(&(order(&b.id), a.last_used, a.created, &b.id))
        });
        entries
    }

    fn describe_image(&self, record: &Record<ImageMeta>, viewer: Viewer) -> EntryInfo {
        let meta = &record.meta;
        EntryInfo {
            id: meta.id(),
            name: meta.references.last().cloned().unwrap_or_else(|| format!("{}@{}", meta.origin, meta.manifest)),
            // Tags by which others asked for it are theirs.
            references: if viewer == Viewer::All { meta.references.clone() } else { Vec::new() },
            digest: meta.manifest,
            size_bytes: record.size_bytes,
            created: record.created,
            last_used: self.last_used(&meta.id(), record.dated, viewer),
            used_by: 0,
            public: record.grants.is_public(),
            uids: uids([&record.grants].into_iter(), viewer),
            platform: Some(meta.platform.clone()),
            pinned: record.pinned,
        }
    }

    fn describe_pack(&self, record: &Record<PackMeta>, uses: &Uses, viewer: Viewer) -> EntryInfo {
        let id = record.meta.id();
        let digest = *record.meta.diff_id.digest();
        EntryInfo {
            name: digest.to_string(),
            references: Vec::new(),
            digest,
            size_bytes: record.size_bytes,
            created: record.created,
            last_used: self.last_used(&id, record.dated, viewer),
            used_by: uses.of(&id),
            public: record.grants.is_public(),
            uids: uids([&record.grants].into_iter(), viewer),
            platform: None,
            pinned: record.pinned,
            id,
        }
    }

    fn last_used(&self, id: &EntryId, dated: i64, viewer: Viewer) -> Option<i64> {
        // When others used a shared entry is theirs to know.
        (viewer == Viewer::All).then(|| self.used_at(id, dated))
    }

    /// When an entry was used last, as far as this host or, by the date of its
    /// file, any other one knows.
    pub(super) fn used_at(&self, id: &EntryId, dated: i64) -> i64 {
        // A clock that once ran ahead must not keep an entry for ever.
        self.state.last_used(id).unwrap_or(0).max(dated.min(unix_now()))
    }
}

fn usage(inventory: &Inventory) -> Vec<Usage> {
    let mut by_grant: BTreeMap<Grant, Usage> = BTreeMap::new();
    let none = |grant| Usage { grant, images: 0, image_bytes: 0, packs: 0, pack_bytes: 0 };
    for record in &inventory.images {
        for grant in record.grants.iter() {
            let usage = by_grant.entry(grant).or_insert(none(grant));
            usage.images += 1;
            usage.image_bytes += record.size_bytes;
        }
    }
    for record in &inventory.packs {
        for grant in record.grants.iter() {
            let usage = by_grant.entry(grant).or_insert(none(grant));
            usage.packs += 1;
            usage.pack_bytes += record.size_bytes;
        }
    }
    by_grant.into_values().collect()
}

fn blob_grants<'a>(images: &[&'a Record<ImageMeta>]) -> HashMap<Digest, Vec<&'a Grants>> {
    let mut map: HashMap<Digest, Vec<&Grants>> = HashMap::new();
    for record in images {
        let meta = &record.meta;
        let layers = meta.layers.iter().map(|layer| layer.digest);
        for digest in [meta.manifest, meta.config].into_iter().chain(layers) {
            map.entry(digest).or_default().push(&record.grants);
        }
    }
    map
}

fn uids<'a>(grants: impl Iterator<Item = &'a Grants>, viewer: Viewer) -> Vec<u32> {
    let mut uids: Vec<u32> = grants.flat_map(Grants::uids).collect();
    if let Viewer::Uid(own) = viewer {
        uids.retain(|&uid| uid == own);
    }
    uids.sort_unstable();
    uids.dedup();
    uids
}
