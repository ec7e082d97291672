//! `cache list`, `cache info`, `cache clean`

use std::fmt::Write as _;

use sctl_proto::v1::{
    CacheCleanRequest, CacheEntry, CacheInfoReply, CacheInfoRequest, CacheListRequest, cache_entry::Kind,
    sctl_client::SctlClient,
};
use serde::Serialize;
use tonic::transport::Channel;

use super::Context;
use crate::{
    cli::{Settings, Task},
    daemon::{self, Daemon, connect, rpc_failure},
    failure::Failure,
    output::{self, info, printable, prompt, size_text},
};

/// Calls the daemon once.
fn call<T>(
    context: &Context<'_>,
    what: &str,
    request: impl AsyncFnOnce(&mut SctlClient<Channel>) -> Result<T, tonic::Status>,
) -> Result<T, Failure> {
    let daemon = Daemon::choose(context.environment)?;
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
        list_text(&entries, task.settings.switch("verbose"))
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

fn list_text(entries: &[&CacheEntry], verbose: bool) -> String {
    let mut text = String::new();
    if verbose {
        let mut row = |name: &str, date: &str, size: &str, kind: &str| {
            let line = format!("{name:<24}{date:<22}{size:<16}{kind}");
            writeln!(text, "{}", line.trim_end()).unwrap_or_default();
        };
        row("NAME", "DATE CREATED", "SIZE", "TYPE");
        for entry in entries {
            let name: String = printable(&entry.name).chars().take(22).collect();
            row(&name, &date_text(entry.created), &size_text(entry.size), type_name(entry.kind()));
        }
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
    ];
    rows.iter().map(|(name, value)| format!("{:<18}{value}\n", format!("{name}:"))).collect()
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
        }
    }
}

fn json<T: Serialize>(value: &T) -> String {
    format!("{}\n", sctl_sif::inspect::to_tabbed_json(value))
}

/// `2006-01-02 15:04:05`, in UTC.
fn date_text(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, so that leap days end the year; 146,097 days are
    // 400 years.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_827_696, "2000-02-29 12:34:56"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (4_102_444_800, "2100-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(date_text(seconds), text, "{seconds}");
        }
    }

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
        let text = list_text(&[&image, &pack], true);
        assert_eq!(
            text,
            "NAME                    DATE CREATED          SIZE            TYPE\n\
             docker.io/godlovedc/lo  2000-02-29 12:34:56   80.00 MiB       oci-tmp\n\
             sha256:ab               2000-02-29 12:34:56   1.00 GiB        blob\n\n\
             There are 1 container file(s) using 80.00 MiB and 1 oci blob file(s) using 1.00 GiB of space\n\
             Total space used: 1.08 GiB\n"
        );
        assert!(list_text(&[], false).starts_with("There are 0 container file(s) using 0 B and 0 oci"));
    }
}
