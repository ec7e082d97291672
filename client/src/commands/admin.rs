//! `admin mounts`, `admin jobs`, `admin leases`, `admin unmount`

use sctl_common::Reference;
use sctl_proto::v1::{
    AdminJobsReply, AdminJobsRequest, AdminLeasesReply, AdminLeasesRequest, AdminMountsReply, AdminMountsRequest,
    AdminUnmountReply, AdminUnmountRequest,
    admin_jobs_reply::{Job, Work},
    admin_mounts_reply::Mount,
    admin_unmount_request::What,
};
use serde::Serialize;

use super::{
    Context,
    cache::{call, json},
    users::Users,
};
use crate::{
    cli::Task,
    failure::Failure,
    output::{self, Table, date_text, duration_text, info, printable, size_text},
};

/// Digits of a key that tell images apart for people.
const SHORT: usize = 12;

/// Shows the kernel mounts of this host.
///
/// # Errors
/// Those of the daemon.
pub fn mounts(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let reply = call(context, "Unable to list the mounts", async |client| {
        client.admin_mounts(AdminMountsRequest {}).await.map(tonic::Response::into_inner)
    })?;
    output::print(&if task.settings.switch("json") { mounts_json(&reply) } else { mounts_text(&reply) })
}

/// Shows the leases that hold.
///
/// # Errors
/// Those of the daemon.
pub fn leases(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let reply = call(context, "Unable to list the leases", async |client| {
        client.admin_leases(AdminLeasesRequest {}).await.map(tonic::Response::into_inner)
    })?;
    output::print(&if task.settings.switch("json") { leases_json(&reply) } else { leases_text(&reply) })
}

/// Shows the jobs that run.
///
/// # Errors
/// Those of the daemon.
pub fn jobs(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let reply = call(context, "Unable to list the jobs", async |client| {
        client.admin_jobs(AdminJobsRequest {}).await.map(tonic::Response::into_inner)
    })?;
    output::print(&if task.settings.switch("json") { jobs_json(&reply) } else { jobs_text(&reply) })
}

/// Makes the daemon let go of a mounted image.
///
/// # Errors
/// Those of the daemon; a name that is none.
pub fn unmount(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let text = task.args[0].to_string_lossy();
    let what = what(&text)?;
    let unable = format!("Unable to unmount {}", printable(&text));
    let reply = call(context, &unable, async |client| {
        client.admin_unmount(AdminUnmountRequest { what: Some(what) }).await.map(tonic::Response::into_inner)
    })?;
    unmounted_lines(&reply).iter().for_each(|line| info!("{line}"));
    Ok(())
}

/// A key is hex digits alone; an image of such a name is written with
/// `docker://`.
fn what(text: &str) -> Result<What, Failure> {
    let is_key = (8..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_key {
        return Ok(What::ImageKey(text.to_owned()));
    }
    let name = text.strip_prefix("docker://").unwrap_or(text);
    Reference::parse(name).map(|reference| What::Reference(reference.to_string())).map_err(|error| {
        Failure::new(format!("Unable to unmount {}", printable(text)))
            .source(&error)
            .hint("`sctl admin mounts` shows references and keys")
    })
}

fn unmounted_lines(reply: &AdminUnmountReply) -> Vec<String> {
    let line = |image: &sctl_proto::v1::admin_unmount_reply::Image| {
        let name = image.references.last().unwrap_or(&image.image_key);
        let rest = if image.held_by_clients { "; containers that run keep it until they end" } else { "" };
        format!("Unmounted {}{rest}", printable(name))
    };
    reply.images.iter().map(line).collect()
}

fn short(key: &str) -> String {
    key.chars().take(SHORT).collect()
}

fn mount_state(mount: &Mount) -> String {
    let state = if mount.held_by_clients { "held by containers" } else { "mounted" };
    if mount.adopted { format!("{state}, taken over") } else { state.to_owned() }
}

fn mounts_text(reply: &AdminMountsReply) -> String {
    let mut users = Users::default();
    let mut table = Table::new(&["KEY", "IMAGE", "DEVICE", "FOR", "HANDED OVER", "USERS", "SINCE", "STATE"], &[]);
    for mount in &reply.mounts {
        table.row([
            short(&mount.image_key),
            mount.references.last().cloned().unwrap_or_default(),
            mount.loop_device.clone(),
            users.holder(mount.private_for),
            mount.attached.to_string(),
            users.list(false, &mount.uids),
            date_text(mount.since),
            mount_state(mount),
        ]);
    }
    table.text()
}

fn leases_text(reply: &AdminLeasesReply) -> String {
    let mut users = Users::default();
    let mut table = Table::new(&["IMAGE", "PLATFORM", "MANIFEST", "HOLDER", "REMAINING"], &[]);
    for lease in &reply.leases {
        table.row([
            lease.reference.clone(),
            lease.platform.clone(),
            lease.manifest_digest.chars().take("sha256:".len() + SHORT).collect(),
            users.holder(lease.uid),
            duration_text(lease.remaining_seconds),
        ]);
    }
    table.text()
}

fn job_work(job: &Job) -> String {
    match job.work() {
        Work::Resolve => "resolving".to_owned(),
        Work::Layer => format!("layer {} of {}", job.layer, job.layers),
        Work::Assemble => "assembling".to_owned(),
        Work::Unspecified => "unknown".to_owned(),
    }
}

fn job_bytes(job: &Job) -> String {
    match (job.done_bytes, job.total_bytes) {
        (0, 0) => String::new(),
        (done, 0) => size_text(done),
        (done, total) => format!("{} of {}", size_text(done), size_text(total)),
    }
}

fn jobs_text(reply: &AdminJobsReply) -> String {
    let mut users = Users::default();
    let mut table = Table::new(&["PID", "WORK", "IMAGE", "USERS", "RUNNING", "BYTES"], &[]);
    for job in &reply.jobs {
        table.row([
            job.pid.to_string(),
            job_work(job),
            job.reference.clone(),
            users.list(false, &job.uids),
            duration_text(job.running_seconds),
            job_bytes(job),
        ]);
    }
    table.text()
}

fn mounts_json(reply: &AdminMountsReply) -> String {
    #[derive(Serialize)]
    struct Row<'a> {
        image_key: &'a str,
        references: &'a [String],
        loop_device: &'a str,
        private_for: Option<u32>,
        attached: u64,
        uids: &'a [u32],
        since: i64,
        last_attach: i64,
        held_by_clients: bool,
        adopted: bool,
    }
    #[derive(Serialize)]
    struct Rows<'a> {
        mounts: Vec<Row<'a>>,
    }
    let rows = reply.mounts.iter().map(|mount| Row {
        image_key: &mount.image_key,
        references: &mount.references,
        loop_device: &mount.loop_device,
        private_for: mount.private_for,
        attached: mount.attached,
        uids: &mount.uids,
        since: mount.since,
        last_attach: mount.last_attach,
        held_by_clients: mount.held_by_clients,
        adopted: mount.adopted,
    });
    json(&Rows { mounts: rows.collect() })
}

fn leases_json(reply: &AdminLeasesReply) -> String {
    #[derive(Serialize)]
    struct Row<'a> {
        /// None is everybody.
        uid: Option<u32>,
        reference: &'a str,
        platform: &'a str,
        manifest_digest: &'a str,
        image_key: &'a str,
        remaining_seconds: u64,
    }
    #[derive(Serialize)]
    struct Rows<'a> {
        leases: Vec<Row<'a>>,
    }
    let rows = reply.leases.iter().map(|lease| Row {
        uid: lease.uid,
        reference: &lease.reference,
        platform: &lease.platform,
        manifest_digest: &lease.manifest_digest,
        image_key: &lease.image_key,
        remaining_seconds: lease.remaining_seconds,
    });
    json(&Rows { leases: rows.collect() })
}

fn jobs_json(reply: &AdminJobsReply) -> String {
    #[derive(Serialize)]
    struct Row<'a> {
        pid: i32,
        work: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        layer: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        layers: Option<u32>,
        reference: &'a str,
        uids: &'a [u32],
        running_seconds: u64,
        done_bytes: u64,
        /// None if it is not known.
        total_bytes: Option<u64>,
    }
    #[derive(Serialize)]
    struct Rows<'a> {
        jobs: Vec<Row<'a>>,
    }
    let rows = reply.jobs.iter().map(|job| {
        let is_layer = job.work() == Work::Layer;
        Row {
            pid: job.pid,
            work: match job.work() {
                Work::Resolve => "resolve",
                Work::Layer => "layer",
                Work::Assemble => "assemble",
                Work::Unspecified => "unknown",
            },
            layer: is_layer.then_some(job.layer),
            layers: is_layer.then_some(job.layers),
            reference: &job.reference,
            uids: &job.uids,
            running_seconds: job.running_seconds,
            done_bytes: job.done_bytes,
            total_bytes: (job.total_bytes > 0).then_some(job.total_bytes),
        }
    });
    json(&Rows { jobs: rows.collect() })
}

#[cfg(test)]
mod tests {
    use sctl_proto::v1::{admin_leases_reply::Lease, admin_unmount_reply::Image};

    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn reference() -> String {
        "docker.io/library/ubuntu:latest".to_owned()
    }

    #[test]
    fn mounts_are_told_by_image_and_user() {
        let mount = Mount {
            image_key: KEY.to_owned(),
            references: vec![reference()],
            loop_device: "loop7".to_owned(),
            private_for: None,
            attached: 12,
            uids: vec![0, 4_000_000_000],
            since: 951_827_696,
            last_attach: 0,
            held_by_clients: false,
            adopted: false,
        };
        let kept = Mount {
            private_for: Some(0),
            references: Vec::new(),
            held_by_clients: true,
            adopted: true,
            ..mount.clone()
        };
        let reply = AdminMountsReply { mounts: vec![mount, kept] };
        assert_eq!(
            mounts_text(&reply),
            "KEY           IMAGE                            DEVICE  FOR        HANDED OVER  USERS            SINCE                STATE\n\
             001122334455  docker.io/library/ubuntu:latest  loop7   everybody  12           root,4000000000  2000-02-29 12:34:56  mounted\n\
             001122334455                                   loop7   root       12           root,4000000000  2000-02-29 12:34:56  held by containers, taken over\n"
        );
        let value: serde_json::Value = serde_json::from_str(&mounts_json(&reply)).unwrap();
        assert_eq!(value["mounts"][0]["image_key"], KEY);
        assert_eq!((&value["mounts"][0]["private_for"], &value["mounts"][1]["private_for"]), (&().into(), &0.into()));
    }

    #[test]
    fn leases_are_of_a_user_or_of_everybody() {
        let lease = |uid| Lease {
            uid,
            reference: reference(),
            platform: "linux/amd64".to_owned(),
            manifest_digest: format!("sha256:{KEY}"),
            image_key: KEY.to_owned(),
            remaining_seconds: 299,
        };
        let reply = AdminLeasesReply { leases: vec![lease(None), lease(Some(0))] };
        assert_eq!(
            leases_text(&reply),
            "IMAGE                            PLATFORM     MANIFEST             HOLDER     REMAINING\n\
             docker.io/library/ubuntu:latest  linux/amd64  sha256:001122334455  everybody  4m 59s\n\
             docker.io/library/ubuntu:latest  linux/amd64  sha256:001122334455  root       4m 59s\n"
        );
        let value: serde_json::Value = serde_json::from_str(&leases_json(&reply)).unwrap();
        assert_eq!((&value["leases"][0]["uid"], &value["leases"][1]["uid"]), (&().into(), &0.into()));
    }

    #[test]
    fn jobs_say_what_they_do() {
        let job = Job {
            pid: 4711,
            work: Work::Layer.into(),
            layer: 2,
            layers: 5,
            reference: reference(),
            uids: vec![0],
            running_seconds: 3,
            done_bytes: 12 << 20,
            total_bytes: 48 << 20,
        };
        let resolving =
            Job { work: Work::Resolve.into(), layer: 0, layers: 0, done_bytes: 0, total_bytes: 0, ..job.clone() };
        let reply = AdminJobsReply { jobs: vec![job, resolving] };
        assert_eq!(
            jobs_text(&reply),
            "PID   WORK          IMAGE                            USERS  RUNNING  BYTES\n\
             4711  layer 2 of 5  docker.io/library/ubuntu:latest  root   3s       12.00 MiB of 48.00 MiB\n\
             4711  resolving     docker.io/library/ubuntu:latest  root   3s\n"
        );
        let value: serde_json::Value = serde_json::from_str(&jobs_json(&reply)).unwrap();
        assert_eq!((&value["jobs"][0]["layers"], &value["jobs"][1]["work"]), (&5.into(), &"resolve".into()));
        assert!(value["jobs"][1].get("layer").is_none());
    }

    #[test]
    fn keys_are_hex_and_everything_else_is_a_name() {
        assert_eq!(what("00112233").unwrap(), What::ImageKey("00112233".to_owned()));
        for name in ["docker://ubuntu", "ubuntu", "docker.io/library/ubuntu:latest"] {
            assert_eq!(what(name).unwrap(), What::Reference(reference()), "{name}");
        }
        assert!(matches!(what("docker://00112233").unwrap(), What::Reference(_)));
        assert!(matches!(what("0011").unwrap(), What::Reference(_)), "too short for a key");
        assert_eq!(what("Not A Name").unwrap_err().message, "Unable to unmount Not A Name");
    }

    #[test]
    fn what_containers_keep_is_said() {
        let image = Image { image_key: KEY.to_owned(), references: vec![reference()], held_by_clients: true };
        let nameless = Image { references: Vec::new(), held_by_clients: false, ..image.clone() };
        assert_eq!(
            unmounted_lines(&AdminUnmountReply { images: vec![image, nameless] }),
            [
                "Unmounted docker.io/library/ubuntu:latest; containers that run keep it until they end".to_owned(),
                format!("Unmounted {KEY}"),
            ]
        );
    }
}
