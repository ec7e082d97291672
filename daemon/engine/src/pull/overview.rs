//! What callers may see and change of the whole: the cache, and for
//! administrators mounts, leases and jobs.

use std::{collections::HashSet, sync::Arc};

use sctl_common::ErrorKind;

use super::Inner;
use crate::{
    CacheCleaned, CacheEntry, CacheInfo, Caller, EntryKind, Failure, JobInfo, UnmountTarget, UnmountedImage,
    audit::{self, Image},
    cache::{Cache, EntryId, EntryInfo, HeldLease, ImageKey, Viewer},
    mount::MountInfo,
};

/// Fewest hex digits by which an image is named.
const MIN_KEY: usize = 8;

impl Inner {
    pub(super) async fn cache_list(self: &Arc<Self>, caller: Caller) -> Result<Vec<CacheEntry>, Failure> {
        let _slot = self.list_slots.acquire(caller.account).await?;
        let entries = self.with_cache(move |cache| cache.list(viewer(caller))).await?;
        let mounted = match viewer(caller) {
            Viewer::All => keys(&self.all_mounts().await?),
            // What others use at the moment is theirs to know.
            Viewer::Uid(_) => HashSet::new(),
        };
        self.note_look(caller, "cache list");
        Ok(entries.into_iter().map(|info| entry(info, &mounted)).collect())
    }

    pub(super) async fn cache_info(self: &Arc<Self>, caller: Caller) -> Result<CacheInfo, Failure> {
        let _slot = self.list_slots.acquire(caller.account).await?;
        let (path, totals) =
            self.with_cache(move |cache| Ok((cache.path().to_owned(), cache.totals(viewer(caller))?))).await?;
        let mut info = CacheInfo { path, totals, ..CacheInfo::default() };
        if caller.admin {
            info.mounts = self.all_mounts().await?.len() as u64;
            info.leases = self.cache.leases().len() as u64;
            info.running_jobs = self.launcher.running() as u64;
        }
        self.note_look(caller, "cache info");
        Ok(info)
    }

    pub(super) async fn cache_clean(self: &Arc<Self>, caller: Caller, dry_run: bool) -> Result<CacheCleaned, Failure> {
        self.admins_only(caller, "cache clean", "clean the system's cache")?;
        let mounted = keys(&self.all_mounts().await?);
        let inner = Arc::clone(self);
        let clean = move |cache: &Cache| cache.clean(Viewer::All, dry_run, &|id| inner.in_use(id));
        let cleaned = self.with_cache(clean).await?;
        if !dry_run {
            let detail = format!("{} entries, {} bytes", cleaned.removed.len(), cleaned.freed_bytes);
            audit::admin(caller.uid, "cache clean", Image::default(), Some(&detail));
        }
        let removed = cleaned.removed.into_iter().map(|info| entry(info, &mounted)).collect();
        Ok(CacheCleaned { removed, freed_bytes: cleaned.freed_bytes })
    }

    pub(super) async fn admin_mounts(self: &Arc<Self>, caller: Caller) -> Result<Vec<MountInfo>, Failure> {
        self.admins_only(caller, "admin mounts", "see the mounts of this host")?;
        self.note_look(caller, "admin mounts");
        let mut mounts = self.all_mounts().await?;
        mounts.sort_by_key(|mount| (mount.since, mount.loop_device));
        Ok(mounts)
    }

    pub(super) async fn admin_leases(&self, caller: Caller) -> Result<Vec<HeldLease>, Failure> {
        self.admins_only(caller, "admin leases", "see the leases of this host")?;
        self.note_look(caller, "admin leases");
        Ok(self.cache.leases())
    }

    pub(super) async fn admin_jobs(&self, caller: Caller) -> Result<Vec<JobInfo>, Failure> {
        self.admins_only(caller, "admin jobs", "see the jobs of this host")?;
        self.note_look(caller, "admin jobs");
        Ok(self.roster.jobs())
    }

    pub(super) async fn admin_unmount(
        self: &Arc<Self>,
        caller: Caller,
        target: UnmountTarget,
    ) -> Result<Vec<UnmountedImage>, Failure> {
        self.admins_only(caller, "admin unmount", "unmount images of this host")?;
        let images = wanted(&self.all_mounts().await?, &target)?;
        let inner = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            images.into_iter().map(|image| inner.unmount(image)).collect::<Vec<_>>()
        });
        let unmounted = work.await.map_err(|error| Failure::internal("cannot unmount the image").because(&error))?;
        for image in &unmounted {
            let reference = image.references.last().map(String::as_str);
            let named = Image { reference, key: Some(&image.key), manifest: None };
            let detail = image.held_by_clients.then_some("held by clients");
            audit::admin(caller.uid, "admin unmount", named, detail);
        }
        Ok(unmounted)
    }

    /// Mounts, once nobody is changing them. Those that an earlier daemon made
    /// have their names from the cache.
    async fn all_mounts(self: &Arc<Self>) -> Result<Vec<MountInfo>, Failure> {
        let inner = Arc::clone(self);
        let list = move |cache: &Cache| {
            let mut mounts = inner.mounts();
            if mounts.iter().any(|mount| mount.references.is_empty()) {
                let entries = cache.list(Viewer::All)?;
                for mount in mounts.iter_mut().filter(|mount| mount.references.is_empty()) {
                    let own = entries.iter().find(|entry| entry.id == EntryId::Image(mount.key));
                    mount.references = own.map(|entry| entry.references.clone()).unwrap_or_default();
                }
            }
            Ok(mounts)
        };
        self.with_cache(list).await
    }

    /// Refuses everybody but administrators; `what` completes "only
    /// administrators may …".
    fn admins_only(&self, caller: Caller, act: &'static str, what: &str) -> Result<(), Failure> {
        if caller.admin {
            return Ok(());
        }
        audit::denial(caller.uid, act, Image::default(), "not an administrator");
        Err(Failure::new(ErrorKind::Denied, format!("only administrators may {what}"))
            .hint("ask a member of the administrators' group, or root"))
    }

    /// Notes that an administrator has looked at what belongs to others.
    fn note_look(&self, caller: Caller, act: &'static str) {
        if caller.admin && !self.options().user_mode {
            audit::admin(caller.uid, act, Image::default(), None);
        }
    }
}

/// The images that are mounted and meant.
fn wanted(mounts: &[MountInfo], target: &UnmountTarget) -> Result<Vec<UnmountedImage>, Failure> {
    let meant = |mount: &&MountInfo| match target {
        UnmountTarget::Reference(reference) => mount.references.contains(&reference.to_string()),
        UnmountTarget::Key(digits) => mount.key.to_string().starts_with(digits.as_str()),
    };
    let mut images: Vec<UnmountedImage> = Vec::new();
    for mount in mounts.iter().filter(meant) {
        if images.iter().all(|image| image.key != mount.key) {
            let (key, references) = (mount.key, mount.references.clone());
            images.push(UnmountedImage { key, references, held_by_clients: false });
        }
    }
    match target {
        UnmountTarget::Key(digits) if digits.len() < MIN_KEY => {
            Err(Failure::new(ErrorKind::InvalidInput, format!("a key has {MIN_KEY} digits or more")))
        }
        UnmountTarget::Key(digits) if images.len() > 1 => Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("the keys of {} mounted images begin with {digits}", images.len()),
        )
        .hint("give more digits of it")),
        _ if images.is_empty() => Err(Failure::new(ErrorKind::NotFound, "no such image is mounted")
            .hint("`sctl admin mounts` shows those that are")),
        _ => Ok(images),
    }
}

fn keys(mounts: &[MountInfo]) -> HashSet<ImageKey> {
    mounts.iter().map(|mount| mount.key).collect()
}

fn viewer(caller: Caller) -> Viewer {
    if caller.admin { Viewer::All } else { Viewer::Uid(caller.uid) }
}

fn entry(info: EntryInfo, mounted: &HashSet<ImageKey>) -> CacheEntry {
    let (kind, key) = match info.id {
        EntryId::Image(key) => (EntryKind::Image, Some(key)),
        EntryId::Pack { .. } => (EntryKind::Pack, None),
        EntryId::Blob(_) => (EntryKind::Blob, None),
    };
    CacheEntry {
        kind,
        key,
        name: info.name,
        references: info.references,
        digest: info.digest.to_string(),
        size: info.size_bytes,
        created: info.created,
        last_used: info.last_used.unwrap_or(0),
        used_by: info.used_by,
        public: info.public,
        uids: info.uids,
        platform: info.platform,
        pinned: info.pinned,
        mounted: key.is_some_and(|key| mounted.contains(&key)),
    }
}

#[cfg(test)]
mod tests {
    use sctl_common::{Digest, Reference};

    use super::*;

    fn mount(key: ImageKey, reference: &str, private_for: Option<u32>) -> MountInfo {
        MountInfo {
            key,
            references: vec!["registry.example/tool:old".to_owned(), reference.to_owned()],
            loop_device: 1,
            private_for,
            shared: private_for.is_none(),
            attached: 1,
            users: vec![1],
            since: 0,
            last_attach: None,
            held_by_clients: false,
            adopted: false,
        }
    }

    fn key(name: &str) -> ImageKey {
        ImageKey::new(name, &Digest::of(name.as_bytes()), "p")
    }

    #[test]
    fn an_image_is_found_by_any_of_its_names_and_by_its_key() {
        let (a, b) = (key("a"), key("b"));
        // One image may be mounted several times.
        let mounts = [mount(a, "docker.io/x/a:1", None), mount(a, "docker.io/x/a:1", Some(7)), mount(b, "b", None)];
        let find = |target: &UnmountTarget| {
            wanted(&mounts, target).map(|images| images.iter().map(|image| image.key).collect::<Vec<_>>())
        };
        let named = |name: &str| find(&UnmountTarget::Reference(Reference::parse(name).unwrap()));
        let digits = |digits: &str| find(&UnmountTarget::Key(digits.to_owned()));
        assert_eq!(named("x/a:1").unwrap(), [a]);
        assert_eq!(named("registry.example/tool:old").unwrap(), [a, b]);
        assert_eq!(digits(&b.to_string()).unwrap(), [b]);
        assert_eq!(digits(&b.to_string()[..MIN_KEY]).unwrap(), [b]);
        for (target, kind) in [
            (named("x/a:2"), ErrorKind::NotFound),
            (digits("00000000"), ErrorKind::NotFound),
            (digits(&b.to_string()[..MIN_KEY - 1]), ErrorKind::InvalidInput),
            (digits(""), ErrorKind::InvalidInput),
        ] {
            assert_eq!(target.unwrap_err().kind, kind);
        }
    }

    #[test]
    fn a_key_that_begins_several_is_refused() {
        let mut keys = Vec::new();
        for last in ["0", "1"] {
            keys.push(ImageKey::parse(&format!("{}{last}", "a".repeat(63))).unwrap());
        }
        let mounts = [mount(keys[0], "a", None), mount(keys[1], "b", None)];
        let failure = wanted(&mounts, &UnmountTarget::Key("a".repeat(12))).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::InvalidInput);
        assert!(failure.message.starts_with("the keys of 2 mounted images"), "{failure}");
        assert_eq!(wanted(&mounts, &UnmountTarget::Key(keys[1].to_string())).unwrap()[0].key, keys[1]);
    }
}
