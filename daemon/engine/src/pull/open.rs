//! What mount.sock asks for: an open SIF, and a mount of it.

use std::sync::Arc;

use tracing::warn;

use super::Inner;
use crate::{
    Caller, Failure, MountWish, OpenTarget, Opened, UnmountedImage,
    audit::{self, Basis, Sharing},
    cache::{CacheError, EntryId, ImageFile, ImageKey},
    mount::MountInfo,
};

/// A right that has been established, and to what.
struct Granted {
    key: ImageKey,
    /// Canonical.
    reference: sctl_common::Reference,
    basis: Basis,
}

impl Inner {
    /// Finds and opens what a caller has a right to.
    ///
    /// Rights are looked up in memory, and no file is touched before one is
    /// found: so "no right" and "no such image" take the same time.
    pub(super) async fn open(self: &Arc<Self>, caller: Caller, target: OpenTarget, wish: MountWish) -> Option<Opened> {
        let name = match &target {
            OpenTarget::Ticket(_) => None,
            OpenTarget::Image { reference, .. } | OpenTarget::Delivered { reference, .. } => {
                Some(reference.to_string())
            }
        };
        let found = match target {
            OpenTarget::Ticket(ticket) => match self.tickets.redeem(caller.uid, &ticket) {
                Some(opened) => self.mount_opened(caller, opened, wish).await,
                None => None,
            },
            target => match self.right(caller, target) {
                Some(granted) => self.open_granted(caller, granted, wish).await,
                None => None,
            },
        };
        if found.is_none() {
            let image = audit::Image { reference: name.as_deref(), ..audit::Image::default() };
            audit::denial(caller.uid, "open", image, "no right, or not in the cache");
        }
        found
    }

    fn right(&self, caller: Caller, target: OpenTarget) -> Option<Granted> {
        match target {
            OpenTarget::Ticket(_) => None,
            OpenTarget::Image { reference, platform } => {
                let lease = self.cache.lease(caller.uid, &reference.to_string(), &platform)?;
                Some(Granted { key: lease.key, reference, basis: Basis::Lease })
            }
            OpenTarget::Delivered { reference, platform, key } => self
                .cache
                .may_use(caller.uid, &key, &reference.name(), &platform)
                .then_some(Granted { key, reference, basis: Basis::Delivered }),
        }
    }

    async fn open_granted(self: &Arc<Self>, caller: Caller, granted: Granted, wish: MountWish) -> Option<Opened> {
        let _slot = self.open_slots.acquire(caller.account).await.ok()?;
        let inner = Arc::clone(self);
        let open = move || -> Result<Option<Opened>, CacheError> {
            let Granted { key, reference, basis } = granted;
            let Some(image) = inner.cache.find_image(&key)? else { return Ok(None) };
            // A lease is a right by itself; here the sidecar has the last word.
            if basis == Basis::Delivered && !image.grants.allow(caller.uid) {
                return Ok(None);
            }
            let file = image.file.try_clone();
            let file = file.map_err(|source| CacheError::Io { what: "duplicate a descriptor", source })?;
            let mut opened = Opened::new(file, image.meta.manifest, reference, inner.cache.image_path(&key));
            opened.key = Some(key);
            let name = opened.reference.to_string();
            let named = audit::Image { reference: Some(&name), manifest: Some(&opened.manifest), key: Some(&key) };
            audit::grant(caller.uid, named, basis);
            inner.mount(caller, &image, &mut opened, wish);
            Ok(Some(opened))
        };
        match tokio::task::spawn_blocking(open).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                warn!(caller.uid, error = %Failure::from(error), "cannot open an image");
                None
            }
            Err(error) => {
                warn!(caller.uid, %error, "cannot open an image");
                None
            }
        }
    }

    /// Adds a mount to what a ticket was for.
    async fn mount_opened(self: &Arc<Self>, caller: Caller, mut opened: Opened, wish: MountWish) -> Option<Opened> {
        if wish == MountWish::None {
            return Some(opened);
        }
        let Some(key) = opened.key else {
            opened.no_mount = Some("the image is not kept in the cache".to_owned());
            return Some(opened);
        };
        let _slot = self.open_slots.acquire(caller.account).await.ok()?;
        let inner = Arc::clone(self);
        let mount = move || {
            match inner.cache.find_image(&key) {
                Ok(Some(image)) => inner.mount(caller, &image, &mut opened, wish),
                Ok(None) => opened.no_mount = Some("the image has left the cache".to_owned()),
                Err(error) => {
                    warn!(caller.uid, error = %Failure::from(error), "cannot open an image");
                    opened.no_mount = Some("the image cannot be opened".to_owned());
                }
            }
            opened
        };
        tokio::task::spawn_blocking(mount)
            .await
            .inspect_err(|error| warn!(caller.uid, %error, "cannot mount an image"))
            .ok()
    }

    /// Adds a mount if one is wished for; whoever calls this has established
    /// the caller's right.
    fn mount(&self, caller: Caller, image: &ImageFile, opened: &mut Opened, wish: MountWish) {
        if wish == MountWish::None {
            return;
        }
        let mounts = match &self.mounts {
            Ok(mounts) => mounts,
            Err(unavailable) => return opened.no_mount = Some(unavailable.to_string()),
        };
        match mounts.attach(caller, image, wish) {
            Ok(attached) => {
                let name = opened.reference.to_string();
                let key = &image.meta.key;
                let named = audit::Image { reference: Some(&name), manifest: Some(&opened.manifest), key: Some(key) };
                let sharing = if attached.shared { Sharing::Shared } else { Sharing::Private };
                audit::mount(caller.uid, named, sharing);
                opened.mount = Some(attached.mount);
            }
            Err(reason) => opened.no_mount = Some(reason.to_string()),
        }
    }

    /// Says whether an entry must stay because it is mounted.
    pub(super) fn in_use(&self, id: &EntryId) -> bool {
        match (id, &self.mounts) {
            (EntryId::Image(key), Ok(mounts)) => mounts.in_use(key),
            _ => false,
        }
    }

    /// All mounts that this broker knows of.
    pub(super) fn mounts(&self) -> Vec<MountInfo> {
        self.mounts.as_ref().map(crate::mount::Mounts::list).unwrap_or_default()
    }

    /// Lets go of an image. Blocks while the kernel does so.
    pub(super) fn unmount(&self, image: UnmountedImage) -> UnmountedImage {
        let left = self.mounts.as_ref().map(|mounts| mounts.unmount(&image.key)).unwrap_or_default();
        UnmountedImage { held_by_clients: left.held_by_clients > 0, ..image }
    }
}
