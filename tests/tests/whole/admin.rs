//! What administrators of one root daemon see and do, and that nobody else
//! does; and the log of it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Output, Stdio},
    time::Duration,
};

use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    hub::{At, Fault, Hub, Manners, Misdeed},
    image::Image,
    layer::{BlobCompression, Entry, Layer},
    programs::{Scratch, have_root, stderr, stdout, succeeded, wait_until},
    registry::Registry,
};
use serde_json::Value;

fn sctl(daemon: &Daemon, user: &User, arguments: &[&str]) -> Output {
    daemon.sctl(user).args(arguments).output().expect("run sctl")
}

fn json(daemon: &Daemon, user: &User, arguments: &[&str]) -> Value {
    let text = succeeded(&sctl(daemon, user, &[arguments, &["--json"]].concat()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

/// The columns of the one row in which `word` occurs.
fn row(table: &str, word: &str) -> Vec<String> {
    let rows: Vec<&str> = table.lines().filter(|line| line.contains(word)).collect();
    let [row] = rows[..] else { panic!("{} rows with {word}:\n{table}", rows.len()) };
    row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

/// A container that says something, hears a line, and says something again.
struct Container {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Container {
    fn start(daemon: &Daemon, user: &User, uri: &str) -> Self {
        let script = "echo begun; read line; ls /bin/sh";
        let mut child = daemon
            .sctl(user)
            .args(["exec", "--no-https", uri, "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start sctl");
        let input = child.stdin.take().expect("its input is a pipe");
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let mut container = Self { child, input, output };
        assert_eq!(container.line(), "begun\n");
        container
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read the container's output");
        line
    }

    /// Lets it go on, and end; answers what it says.
    fn end(mut self) -> String {
        self.input.write_all(b"go on\n").expect("write to the container");
        let line = self.line();
        self.child.wait().expect("wait for the container");
        line
    }
}

#[test]
fn privileged_only_administrators_see_what_others_have() {
    if !have_root("privileged_only_administrators_see_what_others_have") {
        return;
    }
    // With credentials: what anonymous ones earn is everybody's.
    let hub = Hub::start(Manners::private("alice", "wonder land"));
    hub.seed(&debian::busybox(), "private/secret-tool:1");
    let daemon = Daemon::system("");
    let scratch = Scratch::new();
    let (alice, bob, admin) = (User::a(), User::b(), User::admin());
    let reference = hub.reference("private/secret-tool:1");
    let uri = format!("docker://{reference}");
    let mut pull = daemon.pulling(&alice, &alice.folder(&scratch, "alice"), &[&uri]);
    pull.env("SINGULARITY_DOCKER_USERNAME", "alice").env("SINGULARITY_DOCKER_PASSWORD", "wonder land");
    succeeded(&pull.output().expect("run sctl"));

    for arguments in [&["mounts"][..], &["jobs"], &["leases", "--json"], &["unmount", &uri], &["unmount", "00112233"]] {
        let refused = sctl(&daemon, &bob, &[&["admin"], arguments].concat());
        assert_eq!(refused.status.code(), Some(255), "{arguments:?}: {}", stderr(&refused));
        let text = stderr(&refused);
        assert!(text.contains("  cause: only administrators may "), "{arguments:?}: {text}");
        assert!(text.contains("  hint: ask a member of the administrators' group, or root\n"), "{arguments:?}: {text}");
        assert!(stdout(&refused).is_empty(), "{}", stdout(&refused));
    }
    // The owner of the image is no administrator either.
    assert_eq!(sctl(&daemon, &alice, &["admin", "leases"]).status.code(), Some(255));

    // What bob sees is what he would see of an empty cache.
    let empty = Daemon::system("");
    assert_eq!(json(&daemon, &bob, &["cache", "list"]), json(&empty, &bob, &["cache", "list"]));
    let text = succeeded(&sctl(&daemon, &bob, &["cache", "list", "-v"]));
    assert_eq!(text, succeeded(&sctl(&empty, &bob, &["cache", "list", "-v"])));
    assert!(!text.contains("USERS"), "{text}");
    let info = |daemon: &Daemon| {
        let mut info = json(daemon, &bob, &["cache", "info"]);
        let fields = info.as_object_mut().expect("an object");
        assert!(fields.remove("path").is_some() && fields.remove("free_bytes").is_some());
        info
    };
    assert_eq!(info(&daemon), info(&empty));
    let text = succeeded(&sctl(&daemon, &bob, &["cache", "info"]));
    assert!(!text.contains("secret") && !text.contains(alice.name) && !text.contains("Leases"), "{text}");

    for who in [&admin, &User::named("root")] {
        let list = json(&daemon, who, &["cache", "list", "--type", "oci-tmp"]);
        let entries = list["entries"].as_array().expect("entries");
        let [entry] = &entries[..] else { panic!("{list}") };
        assert_eq!((&entry["uids"], &entry["public"]), (&vec![alice.uid].into(), &false.into()), "{list}");
        assert_eq!(entry["references"], Value::from(vec![reference.clone()]));
        let key = entry["image_key"].as_str().expect("a key");
        let table = succeeded(&sctl(&daemon, who, &["cache", "list", "-v", "--type", "oci-tmp"]));
        assert_eq!(row(&table, "oci-tmp").last().map(String::as_str), Some(alice.name), "{table}");

        let info = json(&daemon, who, &["cache", "info"]);
        let usage = info["usage"].as_array().expect("sums by user");
        let of_alice = usage.iter().find(|usage| usage["uid"] == alice.uid).expect("alice has something");
        assert_eq!((&of_alice["images"], &of_alice["image_bytes"]), (&1.into(), &entry["size_bytes"]), "{info}");
        assert!(usage.iter().all(|usage| usage["uid"] != bob.uid), "{info}");
        assert_eq!(info["leases"], 1, "{info}");
        let text = succeeded(&sctl(&daemon, who, &["cache", "info"]));
        assert_eq!(row(&text, alice.name)[1], "1", "{text}");

        let leases = json(&daemon, who, &["admin", "leases"]);
        let lease = &leases["leases"][0];
        assert_eq!((&lease["uid"], &lease["image_key"]), (&alice.uid.into(), &key.into()), "{leases}");
        assert_eq!((&lease["reference"], &lease["manifest_digest"]), (&reference.as_str().into(), &entry["digest"]));
        assert!((1..=300).contains(&lease["remaining_seconds"].as_u64().expect("seconds")), "{leases}");
        let table = succeeded(&sctl(&daemon, who, &["admin", "leases"]));
        assert!(table.starts_with("IMAGE "), "{table}");
        assert_eq!(row(&table, &reference)[3], alice.name, "{table}");

        assert_eq!(json(&daemon, who, &["admin", "jobs"]), serde_json::json!({ "jobs": [] }));
        assert_eq!(succeeded(&sctl(&daemon, who, &["admin", "jobs"])).lines().count(), 1, "a heading");
        let nothing = sctl(&daemon, who, &["admin", "unmount", "00112233"]);
        assert_eq!(nothing.status.code(), Some(255), "{}", stderr(&nothing));
        assert!(stderr(&nothing).contains("  cause: no such image is mounted\n"), "{}", stderr(&nothing));
    }
}

#[test]
fn privileged_an_unmounted_image_stays_with_who_runs_it() {
    if !have_root("privileged_an_unmounted_image_stays_with_who_runs_it") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let daemon = Daemon::with_mounts("", "idle_seconds = 600\n");
    let (alice, admin) = (User::a(), User::admin());
    let reference = registry.reference("busybox:1");
    let uri = format!("docker://{reference}");
    let container = Container::start(&daemon, &alice, &uri);

    let mounts = json(&daemon, &admin, &["admin", "mounts"]);
    let mount = &mounts["mounts"][0];
    assert_eq!(mount["references"], Value::from(vec![reference.clone()]), "{mounts}");
    assert_eq!((&mount["uids"], &mount["attached"]), (&vec![alice.uid].into(), &1.into()), "{mounts}");
    assert_eq!((&mount["private_for"], &mount["held_by_clients"]), (&Value::Null, &false.into()), "{mounts}");
    let device = mount["loop_device"].as_str().expect("a device").to_owned();
    assert!(std::path::Path::new("/sys/block").join(&device).join("loop").exists(), "{device} is not in use");
    let key = mount["image_key"].as_str().expect("a key").to_owned();
    let table = succeeded(&sctl(&daemon, &admin, &["admin", "mounts"]));
    let cells = row(&table, &reference);
    assert_eq!((cells[0].as_str(), cells[3].as_str(), cells[7].as_str()), (&key[..12], "everybody", "mounted"));
    let table = succeeded(&sctl(&daemon, &admin, &["cache", "list", "-v", "--type", "oci-tmp"]));
    assert!(row(&table, "oci-tmp").contains(&"mounted".to_owned()), "{table}");
    let own = json(&daemon, &alice, &["cache", "list", "--type", "oci-tmp"]);
    assert_eq!(own["entries"][0]["mounted"], false, "who uses it is for administrators: {own}");
    // A mounted image is in use: cleaning leaves it alone.
    let cleaned = sctl(&daemon, &admin, &["cache", "clean", "--force"]);
    assert!(!stderr(&cleaned).contains("oci-tmp"), "{}", stderr(&cleaned));

    let unmounted = sctl(&daemon, &admin, &["admin", "unmount", &key[..12]]);
    succeeded(&unmounted);
    let line = format!("INFO:    Unmounted {reference}; containers that run keep it until they end\n");
    assert_eq!(stderr(&unmounted), line);
    let mounts = json(&daemon, &admin, &["admin", "mounts"]);
    assert_eq!(mounts["mounts"][0]["held_by_clients"], true, "{mounts}");
    let table = succeeded(&sctl(&daemon, &admin, &["admin", "mounts"]));
    assert_eq!(row(&table, &reference)[7], "held by containers", "{table}");
    assert_eq!(container.end(), "/bin/sh\n", "the container lost its root");
    wait_until("the device is free", Duration::from_secs(20), || {
        !std::path::Path::new("/sys/block").join(&device).join("loop").exists()
    });

    // By name, and with nobody who holds it.
    let exec = || sctl(&daemon, &alice, &["exec", "--no-https", &uri, "true"]);
    succeeded(&exec());
    let unmounted = sctl(&daemon, &admin, &["admin", "unmount", &uri]);
    succeeded(&unmounted);
    assert_eq!(stderr(&unmounted), format!("INFO:    Unmounted {reference}\n"));
    assert_eq!(json(&daemon, &admin, &["admin", "mounts"]), serde_json::json!({ "mounts": [] }));
    let again = sctl(&daemon, &admin, &["admin", "unmount", &uri]);
    assert!(stderr(&again).contains("no such image is mounted"), "{}", stderr(&again));
    succeeded(&exec());
}

#[test]
fn privileged_a_mount_that_was_taken_over_keeps_its_name() {
    if !have_root("privileged_a_mount_that_was_taken_over_keeps_its_name") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let reference = registry.reference("busybox:1");
    let (alice, admin) = (User::a(), User::admin());
    let daemon = Daemon::with_mounts("", "");
    let container = Container::start(&daemon, &alice, &format!("docker://{reference}"));
    let daemon = Daemon::with_mounts_in(daemon.kill(), "", "", &[]);
    let mounts = json(&daemon, &admin, &["admin", "mounts"]);
    let mount = &mounts["mounts"][0];
    assert_eq!((&mount["adopted"], &mount["held_by_clients"]), (&true.into(), &true.into()), "{mounts}");
    assert_eq!(mount["references"], Value::from(vec![reference.clone()]), "{mounts}");
    let table = succeeded(&sctl(&daemon, &admin, &["admin", "mounts"]));
    assert!(row(&table, &reference).contains(&"held by containers, taken over".to_owned()), "{table}");
    let unmounted = sctl(&daemon, &admin, &["admin", "unmount", &reference]);
    succeeded(&unmounted);
    assert!(stderr(&unmounted).ends_with("; containers that run keep it until they end\n"), "{}", stderr(&unmounted));
    assert_eq!(container.end(), "/bin/sh\n", "the container lost its root");
}

#[test]
fn privileged_a_job_is_shown_with_all_who_wait_for_it() {
    if !have_root("privileged_a_job_is_shown_with_all_who_wait_for_it") {
        return;
    }
    let hub = Hub::start(Manners::default());
    let layer = |name: &str| Layer::new(&[Entry::file(name, vec![7; 4 << 20])]).stored(BlobCompression::None);
    hub.seed(&Image::new(vec![layer("one"), layer("two")]), "slow/image:1");
    hub.misbehave(Fault::always(At::Blob, Misdeed::Slow { piece: 64 << 10, pause: Duration::from_millis(150) }));
    let reference = hub.reference("slow/image:1");
    let uri = format!("docker://{reference}");
    let daemon = Daemon::system("");
    let scratch = Scratch::new();
    let (alice, bob, admin) = (User::a(), User::b(), User::admin());
    let start = |user: &User, name: &str| {
        let mut command = daemon.pulling(user, &user.folder(&scratch, name), &["x.sif", &uri]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start sctl")
    };
    let mut first = start(&alice, "alice");
    let layers = || -> Vec<Value> {
        let jobs = json(&daemon, &admin, &["admin", "jobs"]);
        let jobs = jobs["jobs"].as_array().expect("jobs").clone();
        jobs.into_iter().filter(|job| job["work"] == "layer").collect()
    };
    wait_until("two layers are fetched", Duration::from_secs(20), || {
        let layers = layers();
        layers.len() == 2 && layers.iter().all(|job| job["done_bytes"].as_u64() > Some(0))
    });
    let mut jobs = layers();
    jobs.sort_by_key(|job| job["layer"].as_u64());
    for (job, number) in jobs.iter().zip(1..) {
        assert_eq!((&job["layer"], &job["layers"]), (&number.into(), &2.into()), "{job}");
        assert_eq!((&job["reference"], &job["uids"]), (&reference.as_str().into(), &vec![alice.uid].into()), "{job}");
        let (done, total) = (job["done_bytes"].as_u64(), job["total_bytes"].as_u64());
        assert!(done < total && total > Some(4 << 20), "{job}");
        let name = std::fs::read_to_string(format!("/proc/{}/cmdline", job["pid"])).expect("the job runs");
        assert!(name.starts_with("sctld\0job\0"), "{name:?}");
    }
    let mut second = start(&bob, "bob");
    wait_until("both wait for each layer", Duration::from_secs(10), || {
        layers().iter().all(|job| job["uids"] == Value::from(vec![alice.uid, bob.uid]))
    });
    let table = succeeded(&sctl(&daemon, &admin, &["admin", "jobs"]));
    let cells = row(&table, "layer 2 of 2");
    assert_eq!((cells[2].as_str(), cells[3].as_str()), (reference.as_str(), "sctl-test-a,sctl-test-b"), "{table}");
    assert!(cells[5].contains(" MiB of 4.00 MiB") || cells[5].contains(" KiB of 4.00 MiB"), "{table}");
    // One leaves, and the work is the other's alone.
    first.kill().expect("kill the first client");
    first.wait().expect("reap the first client");
    wait_until("the one who left is not shown", Duration::from_secs(10), || {
        let layers = layers();
        layers.len() == 2 && layers.iter().all(|job| job["uids"] == Value::from(vec![bob.uid]))
    });
    second.kill().expect("kill the second client");
    second.wait().expect("reap the second client");
    wait_until("nothing runs", Duration::from_secs(10), || {
        json(&daemon, &admin, &["admin", "jobs"]) == serde_json::json!({ "jobs": [] })
    });
}

/// The audit events of a daemon that logs JSON: their fields, in order.
fn events(daemon: &Daemon) -> Vec<Value> {
    let lines = daemon.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "sctl_audit").map(|mut line| line["fields"].take()).collect()
}

#[test]
fn privileged_every_grant_denial_and_act_is_logged() {
    if !have_root("privileged_every_grant_denial_and_act_is_logged") {
        return;
    }
    let hub = Hub::start(Manners::private("alice", "wonder land"));
    let digest = hub.seed(&debian::busybox(), "private/tool:1");
    let reference = hub.reference("private/tool:1");
    let uri = format!("docker://{reference}");
    let scratch = Scratch::new();
    let (alice, bob, admin) = (User::a(), User::b(), User::admin());
    // Of everything else only errors are told.
    let log = "[log]\nformat = \"json\"\nlevel = \"error\"\n";
    let daemon = Daemon::with_mounts(log, "idle_seconds = 600\n");
    let pull = |user: &User, name: &str, password: &str| {
        let mut command = daemon.pulling(user, &user.folder(&scratch, name), &["--force", "x.sif", &uri]);
        command.env("SINGULARITY_DOCKER_USERNAME", "alice").env("SINGULARITY_DOCKER_PASSWORD", password);
        command.output().expect("run sctl")
    };
    succeeded(&pull(&alice, "alice", "wonder land"));
    assert!(!pull(&bob, "bob", "looking glass").status.success());
    succeeded(&sctl(&daemon, &alice, &["exec", "--no-https", &uri, "true"]));
    assert!(!sctl(&daemon, &bob, &["exec", "--no-https", &uri, "true"]).status.success());
    assert!(!sctl(&daemon, &bob, &["admin", "mounts"]).status.success());
    assert!(!sctl(&daemon, &bob, &["cache", "clean", "--force"]).status.success());
    succeeded(&sctl(&daemon, &admin, &["admin", "leases"]));
    succeeded(&sctl(&daemon, &admin, &["admin", "unmount", &uri]));
    succeeded(&sctl(&daemon, &admin, &["cache", "clean", "--force"]));

    let events = events(&daemon);
    let find = |event: &str, uid: Option<u32>, act: Option<&str>, reason: Option<&str>| -> Value {
        let found: Vec<&Value> = events
            .iter()
            .filter(|fields| {
                let text = |name: &str| fields[name].as_str();
                text("event") == Some(event)
                    && fields["uid"].as_u64() == uid.map(u64::from)
                    && text("act") == act
                    && (reason.is_none() || text("reason") == reason)
            })
            .collect();
        let [found] = found[..] else { panic!("{} events {event} {uid:?} {act:?} in {events:#?}", found.len()) };
        assert_eq!(found["count"], 1, "{found}");
        found.clone()
    };
    let granted = find("grant", Some(alice.uid), None, Some("registry"));
    assert_eq!((&granted["reference"], &granted["manifest"]), (&reference.as_str().into(), &digest.to_string().into()));
    let key = granted["key"].as_str().expect("a key").to_owned();
    let leased = find("grant", Some(alice.uid), None, Some("lease"));
    assert_eq!((&leased["reference"], &leased["key"]), (&granted["reference"], &granted["key"]));
    let refused = "the registry wants credentials, or other ones";
    assert_eq!(find("denial", Some(bob.uid), Some("pull"), Some(refused))["reference"], granted["reference"]);
    assert_eq!(find("denial", Some(bob.uid), Some("open"), None)["reference"], granted["reference"]);
    for act in ["admin mounts", "cache clean"] {
        find("denial", Some(bob.uid), Some(act), Some("not an administrator"));
    }
    let mounted = find("mount", Some(alice.uid), Some("shared"), None);
    assert_eq!((&mounted["reference"], &mounted["key"]), (&granted["reference"], &granted["key"]));
    assert_eq!(find("unmount", None, None, Some("administrator"))["key"], granted["key"]);
    assert_eq!(find("admin", Some(admin.uid), Some("admin unmount"), None)["key"], key.as_str());
    find("admin", Some(admin.uid), Some("admin leases"), None);
    find("admin", Some(admin.uid), Some("cache clean"), None);
    let log = daemon.log();
    for secret in ["wonder land", "looking glass", "Bearer", "Basic "] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
    assert!(log.lines().all(|line| line.contains("sctl_audit") || line.contains("ERROR")), "{log}");

    // Acts that are done again are counted, and none is lost when it ends.
    for _ in 0..3 {
        assert!(!sctl(&daemon, &bob, &["admin", "mounts"]).status.success());
    }
    let folder = daemon.stop();
    let log = std::fs::read_to_string(folder.join("sctld.log")).expect("read the log");
    let last = log.lines().rfind(|line| line.contains("admin mounts")).expect("an event");
    let last: Value = serde_json::from_str(last).expect("it is JSON");
    assert_eq!((&last["fields"]["event"], &last["fields"]["count"]), (&"denial".into(), &3.into()), "{log}");

    let daemon = Daemon::system("[log]\nformat = \"json\"\nlevel = \"info,sctl_audit=off\"\n");
    assert!(!sctl(&daemon, &bob, &["admin", "mounts"]).status.success());
    assert_eq!(self::events(&daemon), Vec::<Value>::new(), "an administrator has switched it off");
}
