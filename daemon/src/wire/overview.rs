//! The cache, mounts, leases and jobs, as callers see them.

use sctl_common::{ErrorKind, Reference};
use sctl_engine::{
    CacheCleaned, CacheEntry, CacheInfo, EntryKind, Failure, JobInfo, JobWork, UnmountTarget, UnmountedImage,
    cache::{Grant, HeldLease, Usage},
    mount::MountInfo,
};
use sctl_proto::v1;

use super::{bad_field, display_path};

fn cache_entry(entry: CacheEntry) -> v1::CacheEntry {
    use v1::cache_entry::Kind;
    v1::CacheEntry {
        kind: match entry.kind {
            EntryKind::Image => Kind::Image,
            EntryKind::Pack => Kind::Pack,
            EntryKind::Blob => Kind::Blob,
        }
        .into(),
        name: entry.name,
        digest: entry.digest,
        size: entry.size,
        created: entry.created,
        last_used: entry.last_used,
        used_by: entry.used_by,
        public: entry.public,
        uids: entry.uids,
        platform: entry.platform.map(|platform| platform.to_string()).unwrap_or_default(),
        image_key: entry.key.map(|key| key.to_string()).unwrap_or_default(),
        references: entry.references,
        pinned: entry.pinned,
        mounted: entry.mounted,
    }
}

/// A listing.
pub fn cache_list(entries: Vec<CacheEntry>, all_users: bool) -> v1::CacheListReply {
    v1::CacheListReply { entries: entries.into_iter().map(cache_entry).collect(), all_users }
}

/// Whom a right is for; none means everybody.
const fn uid_of(grant: Grant) -> Option<u32> {
    match grant {
        Grant::Public => None,
        Grant::Uid(uid) => Some(uid),
    }
}

/// A summary.
pub fn cache_info(info: CacheInfo, user_mode: bool, all_users: bool) -> v1::CacheInfoReply {
    let CacheInfo { path, totals, mounts, leases, running_jobs } = info;
    let usage = |usage: Usage| v1::cache_info_reply::Usage {
        uid: uid_of(usage.grant),
        images: usage.images,
        image_bytes: usage.image_bytes,
        packs: usage.packs,
        pack_bytes: usage.pack_bytes,
    };
    v1::CacheInfoReply {
        path: display_path(&path),
        user_mode,
        images: totals.images,
        image_bytes: totals.image_bytes,
        packs: totals.packs,
        pack_bytes: totals.pack_bytes,
        blobs: totals.blobs,
        blob_bytes: totals.blob_bytes,
        free_bytes: totals.free_bytes,
        shared_bytes: totals.shared_bytes,
        fetched_bytes: totals.fetched_bytes,
        reused_bytes: totals.reused_bytes,
        running_jobs,
        mounts,
        leases,
        usage: totals.usage.into_iter().map(usage).collect(),
        all_users,
    }
}

/// What a clean did.
pub fn cache_cleaned(cleaned: CacheCleaned) -> v1::CacheCleanReply {
    v1::CacheCleanReply {
        removed: cleaned.removed.into_iter().map(cache_entry).collect(),
        freed_bytes: cleaned.freed_bytes,
    }
}

/// Mounts.
pub fn admin_mounts(mounts: Vec<MountInfo>) -> v1::AdminMountsReply {
    let mount = |mount: MountInfo| v1::admin_mounts_reply::Mount {
        image_key: mount.key.to_string(),
        references: mount.references,
        loop_device: format!("loop{}", mount.loop_device),
        private_for: mount.private_for,
        attached: mount.attached,
        uids: mount.users,
        since: mount.since,
        last_attach: mount.last_attach.unwrap_or(0),
        held_by_clients: mount.held_by_clients,
        adopted: mount.adopted,
    };
    v1::AdminMountsReply { mounts: mounts.into_iter().map(mount).collect() }
}

/// Leases.
pub fn admin_leases(leases: Vec<HeldLease>) -> v1::AdminLeasesReply {
    let lease = |held: HeldLease| v1::admin_leases_reply::Lease {
        uid: uid_of(held.grant),
        reference: held.reference,
        platform: held.platform.to_string(),
        manifest_digest: held.lease.manifest.to_string(),
        image_key: held.lease.key.to_string(),
        remaining_seconds: held.lease.remaining.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX),
    };
    v1::AdminLeasesReply { leases: leases.into_iter().map(lease).collect() }
}

/// Jobs.
pub fn admin_jobs(jobs: Vec<JobInfo>) -> v1::AdminJobsReply {
    use v1::admin_jobs_reply::Work;
    // Images have a few hundred layers at most.
    let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let job = |job: JobInfo| {
        let (work, layer, layers) = match job.work {
            JobWork::Resolve => (Work::Resolve, 0, 0),
            JobWork::Layer { number, count } => (Work::Layer, small(number), small(count)),
            JobWork::Assemble => (Work::Assemble, 0, 0),
        };
        v1::admin_jobs_reply::Job {
            pid: job.pid,
            work: work.into(),
            layer,
            layers,
            reference: job.reference.to_string(),
            uids: job.uids,
            running_seconds: job.running.as_secs(),
            done_bytes: job.done_bytes,
            total_bytes: job.total_bytes.unwrap_or(0),
        }
    };
    v1::AdminJobsReply { jobs: jobs.into_iter().map(job).collect() }
}

/// Checks what is to be unmounted.
///
/// # Errors
/// An `InvalidInput` failure that names the field.
pub fn unmount_target(request: v1::AdminUnmountRequest) -> Result<UnmountTarget, Failure> {
    use v1::admin_unmount_request::What;
    match request.what {
        Some(What::Reference(text)) => {
            Reference::parse(&text).map(UnmountTarget::Reference).map_err(|error| bad_field("reference", error))
        }
        Some(What::ImageKey(digits))
            if digits.len() <= 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) =>
        {
            Ok(UnmountTarget::Key(digits))
        }
        Some(What::ImageKey(_)) => {
            Err(Failure::new(ErrorKind::InvalidInput, "image_key has other characters than 64 hex digits at most"))
        }
        None => Err(Failure::new(ErrorKind::InvalidInput, "the request does not say what to unmount")),
    }
}

/// What was unmounted.
pub fn admin_unmounted(images: Vec<UnmountedImage>) -> v1::AdminUnmountReply {
    let image = |image: UnmountedImage| v1::admin_unmount_reply::Image {
        image_key: image.key.to_string(),
        references: image.references,
        held_by_clients: image.held_by_clients,
    };
    v1::AdminUnmountReply { images: images.into_iter().map(image).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_unmount_is_a_reference_or_hex_digits() {
        use v1::admin_unmount_request::What;
        let target = |what| unmount_target(v1::AdminUnmountRequest { what });
        let reference = |text: &str| target(Some(What::Reference(text.to_owned())));
        let key = |text: &str| target(Some(What::ImageKey(text.to_owned())));
        assert_eq!(reference("ubuntu").unwrap(), UnmountTarget::Reference(Reference::parse("ubuntu").unwrap()));
        assert_eq!(key("00ff00ff").unwrap(), UnmountTarget::Key("00ff00ff".to_owned()));
        for wrong in [reference("Ubuntu"), key("00FF00FF"), key("../x"), key(&"0".repeat(65)), target(None)] {
            assert_eq!(wrong.unwrap_err().kind, ErrorKind::InvalidInput);
        }
    }
}
