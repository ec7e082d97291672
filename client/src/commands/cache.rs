//! `cache list`, `cache info`, `cache clean`

use std::fmt::Write as _;

use sctl_proto::v1::{
    CacheCleanRequest, CacheEntry, CacheInfoReply, CacheInfoRequest, CacheListRequest, cache_entry::Kind,
    cache_info_reply::Usage, sctl_client::SctlClient,
};
use serde::Serialize;
use tonic::transport::Channel;

use super::{Context, users::Users};
use crate::{
    cli::{Settings, Task},
    daemon::{self, Daemon, connect, rpc_failure},
    failure::Failure,
    output::{self, Table, date_text, info, printable, prompt, size_text},
};

/// Calls the daemon once. `what` is told when that fails.
pub fn call<T>(
    context: &Context<'_>,
    what: &str,
    request: impl AsyncFnOnce(&mut SctlClient<Channel>) -> Result<T, tonic::Status>,
) -> Result<T, Failure> {
    let daemon = Daemon::choose(context.flavour, context.environment)?;
    let stream = daemon.stream()?;
    daemon::block_on(async {
        let mut client = connect(stream).await?;
        request(&mut client).await.map_err(|status| rpc_failure(what, &status))
    })
}

/// Lists what the cache holds.
///
/// # Errors
/// Those of the daemon, unknown types.
pub fn list(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let wanted = types(&task.settings)?;
    let reply = call(context, "Unable to list the cache", async |client| {
        client.cache_list(CacheListRequest {}).await.map(tonic::Response::into_inner)
    })?;
    let entries: Vec<&CacheEntry> = reply.entries.iter().filter(|entry| wanted.includes(entry.kind())).collect();
    output::print(&if task.settings.switch("json") {
        json(&ListJson { entries: entries.iter().map(|entry| EntryJson::of(entry)).collect() })
    } else {
        list_text(&entries, task.settings.switch("verbose"), reply.all_users)
    })
}

/// Types of entries that are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Types {
    images: bool,
    blobs: bool,
}

impl Types {
    const fn includes(self, kind: Kind) -> bool {
        match kind {
            Kind::Image => self.images,
            Kind::Pack | Kind::Blob => self.blobs,
            Kind::Unspecified => self.images && self.blobs,
        }
    }
}

fn types(settings: &Settings) -> Result<Types, Failure> {
    let mut types = Types { images: false, blobs: false };
    let mut any = false;
    for value in settings.values("type") {
        let value = value.to_string_lossy();
        for name in value.split(',').filter(|name| !name.is_empty()) {
            any = true;
            match name {
                "all" => types = Types { images: true, blobs: true },
                "oci-tmp" => types.images = true,
                "blob" => types.blobs = true,
                // Sources that nothing was ever pulled from.
                "library" | "shub" | "net" | "oras" | "ipfs" => {}
                _ => {
                    return Err(
                        Failure::new(format!("Invalid cache type {name:?}")).hint("known are oci-tmp, blob and all")
                    );
                }
            }
        }
    }
    Ok(if any { types } else { Types { images: true, blobs: true } })
}

/// With `all_users`, the list says also who may use what, and what is in use.
fn list_text(entries: &[&CacheEntry], verbose: bool, all_users: bool) -> String {
    let mut text = String::new();
    if verbose {
        let mut users = Users::default();
        let headings = ["NAME", "DATE CREATED", "SIZE", "TYPE", "IN USE", "USERS"];
        let shown = if all_users { headings.len() } else { 4 };
        let mut table = Table::new(&headings[..shown], &[24, 22, 16]);
        for entry in entries {
            let cells = [
                entry.name.chars().take(22).collect(),
                date_text(entry.created),
                size_text(entry.size),
                type_name(entry.kind()).to_owned(),
                if entry.mounted { "mounted".to_owned() } else { String::new() },
                users.list(entry.public, &entry.uids),
            ];
            table.row(cells.into_iter().take(shown));
        }
        text.push_str(&table.text());
        text.push('\n');
    }
    let sum = |images: bool| {
        let of_kind = entries.iter().filter(|entry| (entry.kind() == Kind::Image) == images);
        of_kind.fold((0, 0u64), |(count, size), entry| (count + 1, size.saturating_add(entry.size)))
    };
    let ((images, image_size), (blobs, blob_size)) = (sum(true), sum(false));
    write!(
        text,
        "There are {images} container file(s) using {} and {blobs} oci blob file(s) using {} of space\n\
         Total space used: {}\n",
        size_text(image_size),
        size_text(blob_size),
        size_text(image_size.saturating_add(blob_size))
    )
    .unwrap_or_default();
    text
}

const fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "oci-tmp",
        Kind::Pack | Kind::Blob => "blob",
        Kind::Unspecified => "unknown",
    }
}

/// Shows sizes and reuse.
///
/// # Errors
/// Those of the daemon.
pub fn info(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let reply = cache_info(context)?;
    output::print(&if task.settings.switch("json") { json(&InfoJson::of(&reply)) } else { info_text(&reply) })
}

fn cache_info(context: &Context<'_>) -> Result<CacheInfoReply, Failure> {
    call(context, "Unable to look at the cache", async |client| {
        client.cache_info(CacheInfoRequest {}).await.map(tonic::Response::into_inner)
    })
}

fn info_text(reply: &CacheInfoReply) -> String {
    let total = reply.image_bytes.saturating_add(reply.pack_bytes).saturating_add(reply.blob_bytes);
    let whose = if reply.user_mode { "of this user" } else { "of this host" };
    let counted = |count: u64, bytes: u64| format!("{count} using {}", size_text(bytes));
    let rows = [
        ("Cache", format!("{} ({whose})", printable(&reply.path))),
        ("Images", counted(reply.images, reply.image_bytes)),
        ("Layers", counted(reply.packs, reply.pack_bytes)),
        ("Blobs", counted(reply.blobs, reply.blob_bytes)),
        ("Total", size_text(total)),
        ("Free on disk", size_text(reply.free_bytes)),
        ("Shared by images", size_text(reply.shared_bytes)),
        ("Fetched so far", size_text(reply.fetched_bytes)),
        ("Saved by reuse", size_text(reply.reused_bytes)),
        ("Running jobs", reply.running_jobs.to_string()),
        ("Mounts", reply.mounts.to_string()),
        ("Leases", reply.leases.to_string()),
    ];
    // What others fetched, mount and lease is no caller's business.
    let is_shown = |name: &str| match name {
        "Fetched so far" | "Saved by reuse" => reply.all_users || reply.user_mode,
        "Mounts" | "Leases" => reply.all_users,
        _ => true,
    };
    let shown = rows.iter().filter(|(name, _)| is_shown(name));
    let mut text: String = shown.map(|(name, value)| format!("{:<18}{value}\n", format!("{name}:"))).collect();
    if reply.all_users && !reply.usage.is_empty() {
        let mut users = Users::default();
        let mut table = Table::new(&["USER", "IMAGES", "SIZE", "LAYERS", "SIZE"], &[18]);
        for usage in &reply.usage {
            table.row([
                users.holder(usage.uid),
                usage.images.to_string(),
                size_text(usage.image_bytes),
                usage.packs.to_string(),
                size_text(usage.pack_bytes),
            ]);
        }
        text.push('\n');
        text.push_str(&table.text());
    }
    text
}

/// Removes what nothing uses, after a question.
///
/// # Errors
/// Those of the daemon, answers that are neither yes nor no.
pub fn clean(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let dry_run = task.settings.switch("dry-run");
    let cache = cache_info(context)?;
    if dry_run {
        info!("User requested a dry run. Not actually deleting any data!");
    } else if !task.settings.switch("force") {
        let what = if cache.user_mode {
            "everything in your cache (containers from all sources and OCI blobs)"
        } else {
            "everything that nobody uses in the cache of this host (containers from all sources and OCI blobs)"
        };
        let question = format!(
            "This will delete {what}.\nHint: You can see exactly what would be deleted by canceling and using the \
             --dry-run option.\nDo you want to continue? [y/N] "
        );
        let answer = prompt::ask(&question)?.unwrap_or_default();
        if !prompt::yes_or_no(&answer, false)? {
            info!("Handle cleanup canceled");
            return Ok(());
        }
    }
    let reply = call(context, "Unable to clean the cache", async |client| {
        client.cache_clean(CacheCleanRequest { dry_run }).await.map(tonic::Response::into_inner)
    })?;
    for entry in &reply.removed {
        info!("Removing {} cache entry: {}", type_name(entry.kind()), printable(&entry.name));
    }
    if reply.removed.is_empty() {
        info!("No cached files to remove at {}", printable(&cache.path));
    } else {
        let verb = if dry_run { "Would free" } else { "Freed" };
        info!("{verb} {}", size_text(reply.freed_bytes));
    }
    Ok(())
}

#[derive(Serialize)]
struct ListJson<'a> {
    entries: Vec<EntryJson<'a>>,
}

#[derive(Serialize)]
struct EntryJson<'a> {
    kind: &'static str,
    name: &'a str,
    digest: &'a str,
    size_bytes: u64,
    created: i64,
    last_used: i64,
    used_by: u32,
    public: bool,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    uids: &'a [u32],
    #[serde(skip_serializing_if = "str::is_empty")]
    platform: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    image_key: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    references: &'a [String],
    pinned: bool,
    mounted: bool,
}

impl<'a> EntryJson<'a> {
    fn of(entry: &'a CacheEntry) -> Self {
        let kind = match entry.kind() {
            Kind::Image => "image",
            Kind::Pack => "pack",
            Kind::Blob => "blob",
            Kind::Unspecified => "unknown",
        };
        Self {
            kind,
            name: &entry.name,
            digest: &entry.digest,
            size_bytes: entry.size,
            created: entry.created,
            last_used: entry.last_used,
            used_by: entry.used_by,
            public: entry.public,
            uids: &entry.uids,
            platform: &entry.platform,
            image_key: &entry.image_key,
            references: &entry.references,
            pinned: entry.pinned,
            mounted: entry.mounted,
        }
    }
}

#[derive(Serialize)]
struct InfoJson<'a> {
    path: &'a str,
    user_mode: bool,
    images: u64,
    image_bytes: u64,
    packs: u64,
    pack_bytes: u64,
    blobs: u64,
    blob_bytes: u64,
    free_bytes: u64,
    shared_bytes: u64,
    fetched_bytes: u64,
    reused_bytes: u64,
    running_jobs: u64,
    mounts: u64,
    leases: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    usage: Vec<UsageJson>,
}

#[derive(Serialize)]
struct UsageJson {
    /// None is everybody.
    uid: Option<u32>,
    images: u64,
    image_bytes: u64,
    packs: u64,
    pack_bytes: u64,
}

impl<'a> InfoJson<'a> {
    fn of(reply: &'a CacheInfoReply) -> Self {
        Self {
            path: &reply.path,
            user_mode: reply.user_mode,
            images: reply.images,
            image_bytes: reply.image_bytes,
            packs: reply.packs,
            pack_bytes: reply.pack_bytes,
            blobs: reply.blobs,
            blob_bytes: reply.blob_bytes,
            free_bytes: reply.free_bytes,
            shared_bytes: reply.shared_bytes,
            fetched_bytes: reply.fetched_bytes,
            reused_bytes: reply.reused_bytes,
            running_jobs: reply.running_jobs,
            mounts: reply.mounts,
            leases: reply.leases,
            usage: reply.usage.iter().map(UsageJson::of).collect(),
        }
    }
}

impl UsageJson {
    const fn of(usage: &Usage) -> Self {
        let Usage { uid, images, image_bytes, packs, pack_bytes } = *usage;
        Self { uid, images, image_bytes, packs, pack_bytes }
    }
}

/// A result as JSON.
pub fn json<T: Serialize>(value: &T) -> String {
    format!("{}\n", sctl_sif::inspect::to_tabbed_json(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_look_as_they_always_did() {
        let image = CacheEntry {
            kind: Kind::Image.into(),
            name: "docker.io/godlovedc/lolcow:latest".to_owned(),
            size: 80 << 20,
            created: 951_827_696,
            ..CacheEntry::default()
        };
        let pack = CacheEntry { kind: Kind::Pack.into(), name: "sha256:ab".to_owned(), size: 1 << 30, ..image.clone() };
        let text = list_text(&[&image, &pack], true, false);
        assert_eq!(
            text,
            "NAME                    DATE CREATED          SIZE            TYPE\n\
             docker.io/godlovedc/lo  2000-02-29 12:34:56   80.00 MiB       oci-tmp\n\
             sha256:ab               2000-02-29 12:34:56   1.00 GiB        blob\n\n\
             There are 1 container file(s) using 80.00 MiB and 1 oci blob file(s) using 1.00 GiB of space\n\
             Total space used: 1.08 GiB\n"
        );
        assert!(list_text(&[], false, false).starts_with("There are 0 container file(s) using 0 B and 0 oci"));
    }

    #[test]
    fn administrators_see_who_uses_what() {
        let image = CacheEntry {
            kind: Kind::Image.into(),
            name: "docker.io/godlovedc/lolcow:latest".to_owned(),
            size: 80 << 20,
            created: 951_827_696,
            uids: vec![0, 4_000_000_000],
            mounted: true,
            ..CacheEntry::default()
        };
        let shared = CacheEntry { public: true, uids: Vec::new(), mounted: false, ..image.clone() };
        let text = list_text(&[&image, &shared], true, true);
        assert!(
            text.starts_with(
                "NAME                    DATE CREATED          SIZE            TYPE     IN USE   USERS\n\
                 docker.io/godlovedc/lo  2000-02-29 12:34:56   80.00 MiB       oci-tmp  mounted  root,4000000000\n\
                 docker.io/godlovedc/lo  2000-02-29 12:34:56   80.00 MiB       oci-tmp           everybody\n"
            ),
            "{text}"
        );
        let usage = |uid, images| Usage { uid, images, image_bytes: 80 << 20, packs: 3, pack_bytes: 1 << 30 };
        let reply = CacheInfoReply {
            path: "/c".to_owned(),
            mounts: 2,
            usage: vec![usage(None, 7), usage(Some(0), 1)],
            all_users: true,
            ..CacheInfoReply::default()
        };
        assert!(
            info_text(&reply).ends_with(
                "Mounts:           2\nLeases:           0\n\n\
                 USER              IMAGES  SIZE       LAYERS  SIZE\n\
                 everybody         7       80.00 MiB  3       1.00 GiB\n\
                 root              1       80.00 MiB  3       1.00 GiB\n"
            ),
            "{}",
            info_text(&reply)
        );
        let own = info_text(&CacheInfoReply { all_users: false, ..reply });
        assert!(own.ends_with("Running jobs:     0\n"), "{own}");
    }
}
