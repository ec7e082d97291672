//! Pulls from a real registry through one root daemon, by two users.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use sctl_common::Digest;
use sctl_tests::{
    corpus::pseudo_random,
    daemon::{Daemon, User},
    debian,
    hub::{At, Fault, Gate, Hub, Manners, Misdeed},
    image::Image,
    layer::{BlobCompression, Entry, Layer},
    programs::{Scratch, have_root, stderr, stdout, wait_until},
    registry::{Demands, Registry},
    sif::every_decompressed_byte,
};

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{:?}\n{}{}", output.status, stdout(output), stderr(output));
}

#[test]
fn privileged_two_users_share_one_cache() {
    if !have_root("privileged_two_users_share_one_cache") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::base(), "debian:12");
    registry.seed(&debian::layered(), "layered:1");
    let daemon = Daemon::system("");
    let scratch = Scratch::new();
    let (alice, bob) = (User::a(), User::b());
    let uri = format!("docker://{}", registry.reference("layered:1"));

    let first = alice.folder(&scratch, "alice");
    let output = daemon.pull(&alice, &first, &[&uri]);
    succeeded(&output);
    let text = stderr(&output);
    assert_eq!(text.matches("Copying blob sha256:").count(), 3, "{text}");
    assert!(text.contains("INFO:    Build complete: layered_1.sif"), "{text}");
    let sif = first.join("layered_1.sif");
    let meta = fs::metadata(&sif).expect("the SIF is there");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (alice.uid, alice.gid, 0o755));
    assert_eq!(fs::read_dir(&first).expect("read the folder").count(), 1, "something was left beside the SIF");

    registry.clear_log();
    let second = bob.folder(&scratch, "bob");
    let output = daemon.pull(&bob, &second, &[&uri]);
    succeeded(&output);
    assert_eq!(registry.blob_gets(), Vec::<String>::new(), "a cached image was fetched again");
    let text = stderr(&output);
    assert_eq!(text.matches("Skipping fetch of repeat blob sha256:").count(), 3, "{text}");
    assert_eq!(fs::read(&sif).expect("read"), fs::read(second.join("layered_1.sif")).expect("read"));

    // The base is a layer of the image above: nothing to fetch but its config.
    registry.clear_log();
    let base = format!("docker://{}", registry.reference("debian:12"));
    let output = daemon.pull(&bob, &second, &[&base]);
    succeeded(&output);
    assert!(registry.blob_gets().len() <= 1, "{:?}", registry.blob_gets());

    for user in [&alice, &bob] {
        let run = |arguments: &[&str]| daemon.sctl(user).args(arguments).output().expect("run sctl");
        let output = run(&["exec", "--no-https", &uri, "cat", "/opt/hidden/new"]);
        succeeded(&output);
        assert_eq!(stdout(&output), "new");
        let output = run(&["run", "--no-https", &uri]);
        succeeded(&output);
        assert_eq!(stdout(&output), "replaced\n");
        let output = run(&["exec", "--no-https", &uri, "id", "-u"]);
        assert_eq!(stdout(&output).trim(), user.uid.to_string());
        let output = run(&["exec", "--no-https", &uri, "ls", "/opt/data"]);
        assert_eq!(stdout(&output), "keep\nreplaced\n");
    }
}

#[test]
fn privileged_exec_inside_a_lease_contacts_no_registry() {
    if !have_root("privileged_exec_inside_a_lease_contacts_no_registry") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let daemon = Daemon::system("");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let exec = || {
        daemon.sctl(&User::a()).args(["exec", "--no-https", &uri, "echo", "hello there"]).output().expect("run sctl")
    };
    let first = exec();
    succeeded(&first);
    assert_eq!(stdout(&first), "hello there\n");
    drop(registry);
    let second = exec();
    succeeded(&second);
    assert_eq!(stdout(&second), "hello there\n");
    assert_eq!(stderr(&second), "INFO:    Using cached SIF image\n");
    // The lease is this user's own.
    let other = daemon.sctl(&User::b()).args(["exec", "--no-https", &uri, "true"]).output().expect("run sctl");
    assert_eq!(other.status.code(), Some(255), "{}", stderr(&other));
}

#[test]
fn privileged_sixteen_clients_share_one_conversion() {
    if !have_root("privileged_sixteen_clients_share_one_conversion") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::layered(), "layered:1");
    let daemon = Daemon::system("");
    let scratch = Scratch::new();
    let users = [User::a(), User::b()];
    let uri = format!("docker://{}", registry.reference("layered:1"));
    let clients: Vec<_> = (0..16)
        .map(|n| {
            let user = &users[n % 2];
            let folder = user.folder(&scratch, &format!("client{n}"));
            let child = daemon
                .pulling(user, &folder, &[&uri])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("start sctl");
            (folder, child)
        })
        .collect();
    let mut digests = Vec::new();
    for (folder, child) in clients {
        succeeded(&child.wait_with_output().expect("wait for sctl"));
        digests.push(sctl_common::Digest::of(&fs::read(folder.join("layered_1.sif")).expect("read the SIF")));
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "sixteen pulls gave different files");
    let mut gets = registry.blob_gets();
    let all = gets.len();
    gets.sort();
    gets.dedup();
    assert_eq!((gets.len(), all), (4, 4), "three layers and a config, each fetched once");
}

#[test]
fn privileged_same_bytes_whatever_the_cores_and_the_name() {
    if !have_root("privileged_same_bytes_whatever_the_cores_and_the_name") {
        return;
    }
    let registry = Registry::start();
    let digest = registry.seed(&debian::layered(), "layered:1");
    let scratch = Scratch::new();
    let user = User::a();
    let out = user.folder(&scratch, "out");
    let mut files = Vec::new();
    for (n, name) in ["layered:1".to_owned(), format!("layered@{digest}")].iter().enumerate() {
        let daemon = Daemon::system("");
        if n == 1 {
            // Jobs inherit the daemon's one core.
            let pid = daemon.pid().to_string();
            succeeded(&Command::new("taskset").args(["-a", "-p", "-c", "0", &pid]).output().expect("run taskset"));
        }
        let sif = format!("{n}.sif");
        let uri = format!("docker://{}", registry.reference(name));
        succeeded(&daemon.pull(&user, &out, &[&sif, &uri]));
        files.push(fs::read(out.join(&sif)).expect("read the SIF"));
    }
    assert!(files[0] == files[1], "the two SIFs differ");
}

#[test]
fn privileged_nothing_deleted_remains() {
    if !have_root("privileged_nothing_deleted_remains") {
        return;
    }
    let secrets = [debian::SECRET_DELETED, debian::SECRET_REPLACED, debian::SECRET_HIDDEN];
    // The small image alone: a search of every offset takes its time.
    let mut image = debian::layered();
    image.layers.remove(0);
    image.layers.insert(0, debian::busybox().layers.remove(0));
    let registry = Registry::start();
    registry.seed(&image, "secrets:1");
    for compression in ["zstd", "gzip:6"] {
        let daemon = Daemon::system(&format!("compression = \"{compression}\"\n"));
        let scratch = Scratch::new();
        let user = User::a();
        let out = user.folder(&scratch, "out");
        let uri = format!("docker://{}", registry.reference("secrets:1"));
        succeeded(&daemon.pull(&user, &out, &["x.sif", &uri]));
        let bytes = every_decompressed_byte(&out.join("x.sif"));
        let found = |needle: &str| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        assert!(found("keep me"), "{compression}: the search does not see what is there");
        for secret in secrets {
            assert!(!found(&secret[..24]), "{compression}: {secret} is still in the SIF");
        }
    }
}

#[test]
fn privileged_size_is_that_of_mksquashfs() {
    if !have_root("privileged_size_is_that_of_mksquashfs") {
        return;
    }
    let registry = Registry::start();
    let daemon = Daemon::system("");
    let scratch = Scratch::new();
    let user = User::a();
    let out = user.folder(&scratch, "out");
    for (name, image) in [("one", debian::base()), ("three", debian::layered())] {
        let layout = scratch.join(&format!("layout-{name}"));
        image.write_layout(&layout, "t");
        registry.push(&layout, "t", &format!("{name}:1"));
        let rootfs = sctl_tests::image::umoci_unpack(&layout, "t", &scratch.join(&format!("bundle-{name}")));
        let theirs = scratch.join(&format!("{name}.squashfs"));
        let made = Command::new("mksquashfs")
            .args([&rootfs, &theirs])
            .args(["-comp", "zstd", "-Xcompression-level", "3", "-noappend", "-no-progress", "-quiet"])
            .output()
            .expect("mksquashfs runs");
        succeeded(&made);
        let sif = format!("{name}.sif");
        let uri = format!("docker://{}", registry.reference(&format!("{name}:1")));
        succeeded(&daemon.pull(&user, &out, &[&sif, &uri]));
        let (ours, theirs) =
            (fs::metadata(out.join(&sif)).expect("our file").len(), fs::metadata(&theirs).expect("their file").len());
        let ratio = ours as f64 / theirs as f64;
        eprintln!("{name}: {ours} bytes, mksquashfs {theirs}: ratio {ratio:.4}");
        assert!(ratio <= 1.02, "{name}: {ours} bytes are {ratio:.4} of mksquashfs's {theirs}");
    }
}

#[test]
fn privileged_private_images_stay_private() {
    if !have_root("privileged_private_images_stay_private") {
        return;
    }
    let registry = Registry::start_with(&Demands {
        user: Some(("alice".to_owned(), "wonder land".to_owned())),
        ..Demands::default()
    });
    let scratch = Scratch::new();
    let image = Image::new(vec![Layer::new(&[Entry::file("private", "private bytes")])]);
    image.write_layout(&scratch.join("layout"), "t");
    sctl_tests::image::push(&scratch.join("layout"), "t", &registry.reference("private:1"), Some("alice:wonder land"));
    let daemon = Daemon::system("");
    let (alice, bob) = (User::a(), User::b());
    let uri = format!("docker://{}", registry.reference("private:1"));
    let pull = |user: &User, folder: &str, login: bool| {
        let folder = user.folder(&scratch, folder);
        let mut command = daemon.pulling(user, &folder, &[&uri]);
        if login {
            command.env("SINGULARITY_DOCKER_USERNAME", "alice").env("SINGULARITY_DOCKER_PASSWORD", "wonder land");
        }
        command.output().expect("run sctl")
    };
    succeeded(&pull(&alice, "alice", true));
    for (user, folder) in [(&bob, "bob"), (&alice, "alice-anonymous")] {
        let refused = pull(user, folder, false);
        assert_eq!(refused.status.code(), Some(255));
        let text = stderr(&refused);
        assert!(text.starts_with("FATAL:   "), "{text}");
        assert!(!text.contains("private bytes") && !text.contains("wonder"), "{text}");
        assert_eq!(fs::read_dir(scratch.join(folder)).expect("read the folder").count(), 0);
    }
    // Another registry that names the same blobs gets nothing out of the cache.
    let claims = Registry::start();
    claims.seed(&image, "claimed:1");
    claims.clear_log();
    let claimed = format!("docker://{}", claims.reference("claimed:1"));
    let output = daemon.pull(&bob, &bob.folder(&scratch, "bob2"), &[&claimed]);
    succeeded(&output);
    assert_eq!(claims.blob_gets().len(), 2, "the layer had to be delivered by the other registry");
    // The cache says nothing of it to others.
    let list = daemon.sctl(&bob).args(["cache", "list", "-v"]).output().expect("run sctl");
    assert!(!stdout(&list).contains("private"), "{}", stdout(&list));
}

#[test]
fn privileged_an_existing_file_is_kept() {
    if !have_root("privileged_an_existing_file_is_kept") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let daemon = Daemon::system("");
    let scratch = Scratch::new();
    let user = User::a();
    let folder = user.folder(&scratch, "out");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    fs::write(folder.join("busybox_1.sif"), "mine").expect("write");
    let pull = |arguments: &[&str]| daemon.pull(&user, &folder, arguments);
    registry.clear_log();
    let refused = pull(&[&uri]);
    assert_eq!(refused.status.code(), Some(255));
    let text = stderr(&refused);
    assert!(text.contains("FATAL:   Image file already exists: \"busybox_1.sif\" - will not overwrite"), "{text}");
    assert_eq!(fs::read(folder.join("busybox_1.sif")).expect("read"), b"mine");
    // A file of root in the user's own folder may be replaced, as by mv.
    succeeded(&pull(&["--force", &uri]));
    assert_ne!(fs::read(folder.join("busybox_1.sif")).expect("read"), b"mine");
    succeeded(&pull(&["--name", "other.sif", &uri]));
    succeeded(&pull(&["named.sif", &uri]));
    fs::create_dir(folder.join("sub")).expect("make a folder");
    std::os::unix::fs::chown(folder.join("sub"), Some(user.uid), Some(user.gid)).expect("give it away");
    succeeded(&pull(&["--dir", "sub", &uri]));
    for name in ["other.sif", "named.sif", "sub/busybox_1.sif"] {
        assert!(folder.join(name).exists(), "{name} is missing");
    }
}

/// Folders of a cache that hold what images are made of, and the images.
const KEEPING: [&str; 3] = ["packs", "sif", "oci/blobs/sha256"];

/// Everything that a daemon's cache holds of images, by path.
fn kept(daemon: &Daemon) -> Vec<String> {
    let mut names = Vec::new();
    for folder in KEEPING {
        // A daemon that has only just begun may not have made it.
        let entries = fs::read_dir(daemon.cache().join(folder)).into_iter().flatten().flatten();
        names.extend(entries.map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy())));
    }
    names.sort();
    names
}

#[test]
fn privileged_a_pull_without_the_cache_leaves_nothing_there() {
    if !have_root("privileged_a_pull_without_the_cache_leaves_nothing_there") {
        return;
    }
    let registry = Registry::start();
    let image = debian::busybox();
    registry.seed(&image, "busybox:1");
    let layer = Digest::of(&image.layers[0].blob().0).to_string();
    // Where even blobs would be kept.
    let daemon = Daemon::system("keep_blobs = true\n");
    let scratch = Scratch::new();
    let user = User::a();
    let out = user.folder(&scratch, "out");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let nothing = |what: &str| {
        assert_eq!(kept(&daemon), Vec::<String>::new(), "{what}");
        assert_eq!(daemon.leftovers(), Vec::<String>::new(), "{what}");
        let list = daemon.sctl(&user).args(["cache", "list", "-v"]).output().expect("run sctl");
        succeeded(&list);
        assert!(!stdout(&list).contains("busybox"), "{what}: {}", stdout(&list));
    };
    succeeded(&daemon.pull(&user, &out, &["--disable-cache", "uncached.sif", &uri]));
    nothing("by its option");
    let mut command = daemon.pulling(&user, &out, &["variable.sif", &uri]);
    succeeded(&command.env("SINGULARITY_DISABLE_CACHE", "1").output().expect("run sctl"));
    nothing("by its variable");
    let output = daemon.sctl(&user).args(["exec", "--no-https", "--disable-cache", &uri, "echo", "run"]).output();
    let output = output.expect("run sctl");
    succeeded(&output);
    assert_eq!(stdout(&output), "run\n");
    nothing("run at once");

    registry.clear_log();
    succeeded(&daemon.pull(&user, &out, &["cached.sif", &uri]));
    // A config may still be in the daemon's memory; a layer is nowhere.
    let again = registry.blob_gets().iter().filter(|path| path.ends_with(&layer)).count();
    assert_eq!(again, 1, "the layer was to be fetched again");
    let held = kept(&daemon);
    for folder in KEEPING {
        assert!(held.iter().any(|name| name.starts_with(folder)), "nothing in {folder}, where it was to be: {held:?}");
    }
    let expected = fs::read(out.join("cached.sif")).expect("read the SIF");
    for name in ["uncached.sif", "variable.sif"] {
        assert!(fs::read(out.join(name)).expect("read the SIF") == expected, "{name}: other bytes");
    }
    // What is there by then is used, and nothing is added.
    registry.clear_log();
    succeeded(&daemon.pull(&user, &out, &["--disable-cache", "again.sif", &uri]));
    assert_eq!(registry.blob_gets(), Vec::<String>::new());
    assert_eq!(kept(&daemon), held);
}

#[test]
fn privileged_a_language_runtime_runs_for_two_users_at_once() {
    if !have_root("privileged_a_language_runtime_runs_for_two_users_at_once") {
        return;
    }
    let mut image = debian::with_runtime();
    // Made sooner than gzip, and this is not about gzip.
    image.layers = image.layers.into_iter().map(|layer| layer.stored(BlobCompression::None)).collect();
    let registry = Registry::start();
    registry.seed(&image, "runtime:1");
    let daemon = Daemon::system("");
    let uri = format!("docker://{}", registry.reference("runtime:1"));
    let host = Command::new("rustc").arg("--version").output().expect("rustc runs");
    let users = [User::a(), User::b()];
    let start = |user: &User, verb: &str, command: &[&str]| {
        let mut client = daemon.sctl(user);
        client.args([verb, "--no-https", &uri]).args(command).stdout(Stdio::piped()).stderr(Stdio::piped());
        client.spawn().expect("start sctl")
    };
    // The one says it, for the other it is what the image runs.
    let clients = [start(&users[0], "exec", &["rustc", "--version"]), start(&users[1], "run", &[])];
    for client in clients {
        let output = client.wait_with_output().expect("wait for sctl");
        succeeded(&output);
        assert_eq!(stdout(&output), stdout(&host));
    }
    // From the cache by now, and with more of the runtime than a version takes.
    for user in &users {
        let output = start(user, "exec", &["rustc", "--print", "target-list"]).wait_with_output();
        let output = output.expect("wait for sctl");
        succeeded(&output);
        assert!(stdout(&output).lines().any(|line| line == "x86_64-unknown-linux-gnu"), "{}", stdout(&output));
    }
    let mut gets = registry.blob_gets();
    let all = gets.len();
    gets.sort();
    gets.dedup();
    assert_eq!((gets.len(), all), (3, 3), "two layers and a config, each fetched once");
    let sifs = kept(&daemon).into_iter().filter(|name| name.ends_with(".sif")).count();
    assert_eq!(sifs, 1, "{:?}", kept(&daemon));
    assert_eq!(daemon.log().matches("image made").count(), 1, "{}", daemon.log());
}

#[test]
fn privileged_same_bytes_whatever_the_order_of_arrival() {
    if !have_root("privileged_same_bytes_whatever_the_order_of_arrival") {
        return;
    }
    // Each layer holds files that another has, too, large ones and small ones,
    // and the upper ones take something away: who comes first must not decide
    // whose copy is kept.
    let (large, small) = (pseudo_random(400_000, 1), pseudo_random(5_000, 2));
    let layers = vec![
        Layer::new(&[
            Entry::dir("lower"),
            Entry::file("lower/large", &large),
            Entry::file("lower/small", &small),
            Entry::file("lower/own", pseudo_random(150_000, 3)),
            Entry::file("lower/deleted", pseudo_random(3_000, 4)),
        ]),
        Layer::new(&[
            Entry::dir("middle"),
            Entry::file("middle/large", &large),
            Entry::file("middle/small", &small),
            Entry::file("middle/own", pseudo_random(150_000, 5)),
            Entry::whiteout("lower/large"),
            Entry::file("lower/small", "replaced"),
        ]),
        Layer::new(&[
            Entry::dir("upper"),
            Entry::file("upper/large", &large),
            Entry::file("upper/small", &small),
            Entry::whiteout("lower/deleted"),
            Entry::hardlink("upper/link", "middle/own"),
        ]),
    ];
    let layers: Vec<Layer> = layers.into_iter().map(|layer| layer.stored(BlobCompression::None)).collect();
    let digests: Vec<Digest> = layers.iter().map(|layer| Digest::of(&layer.tar)).collect();
    let hub = Hub::start(Manners::default());
    hub.seed(&Image::new(layers), "image:1");
    let uri = format!("docker://{}", hub.reference("image:1"));
    let scratch = Scratch::new();
    let user = User::a();
    let out = user.folder(&scratch, "out");
    let mut files = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        // All three on their way at the same time.
        let daemon = Daemon::system("max_layer_jobs = 3\n");
        hub.behave();
        let gates: [Gate; 3] = Default::default();
        for (digest, gate) in digests.iter().zip(&gates) {
            hub.misbehave(Fault::always(At::BlobOf(*digest), Misdeed::Held(gate.clone())));
        }
        let client = daemon
            .pulling(&user, &out, &["--force", "x.sif", &uri])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start sctl");
        let mut arrived = Vec::new();
        for at in order {
            gates[at].open();
            wait_until("the next layer is packed", Duration::from_secs(20), || {
                let packs = kept(&daemon).into_iter().filter(|name| name.ends_with(".pack"));
                let new = packs.filter(|name| !arrived.contains(name)).collect::<Vec<_>>();
                arrived.extend(new.clone());
                !new.is_empty()
            });
            let last = arrived.last().expect("it has arrived");
            assert!(last.contains(&digests[at].hex()), "{order:?}: {arrived:?} although layer {at} was let go");
        }
        assert_eq!(arrived.len(), 3, "{order:?}");
        succeeded(&client.wait_with_output().expect("wait for sctl"));
        files.push(fs::read(out.join("x.sif")).expect("read the SIF"));
    }
    for (n, file) in files.iter().enumerate() {
        assert!(*file == files[0], "order {n}: other bytes than in order 0");
    }
}
