//! Bad input: a clear error that names what is wrong, exit 255, and nothing
//! left behind.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::Duration,
};

use sctl_common::Digest;
use sctl_tests::{
    corpus::pseudo_random,
    daemon::{Daemon, User},
    debian,
    hub::{Hub, Manners, Part},
    image::Image,
    layer::{BlobCompression, Entry, Layer},
    programs::{Scratch, have_root, programs, stderr, stdout, wait_until},
    registry::{Demands, Registry, free_port},
};
use serde_json::{Value, json};

struct Place {
    daemon: Daemon,
    user: User,
    scratch: Scratch,
}

impl Place {
    fn new(config: &str) -> Self {
        Self { daemon: Daemon::system(config), user: User::a(), scratch: Scratch::new() }
    }

    fn out(&self) -> PathBuf {
        self.user.folder(&self.scratch, "out")
    }

    fn pull(&self, uri: &str) -> Output {
        self.daemon.pull(&self.user, &self.out(), &["x.sif", uri])
    }

    /// Asserts that `output` failed clearly, saying all of `words`, and that
    /// neither the user's folder nor the cache's temporary folder holds a file.
    fn assert_failed(&self, name: &str, output: &Output, words: &[&str]) {
        let text = stderr(output);
        assert_eq!(output.status.code(), Some(255), "{name}: {}{text}", stdout(output));
        assert!(text.contains("FATAL:   "), "{name}: {text}");
        let lower = text.to_lowercase();
        for word in words {
            assert!(lower.contains(&word.to_lowercase()), "{name}: {word:?} is not in: {text}");
        }
        assert!(!lower.contains("panicked"), "{name}: {text}");
        assert_eq!(fs::read_dir(self.out()).expect("read the folder").count(), 0, "{name}: left in the user's folder");
        assert_eq!(self.daemon.leftovers(), Vec::<String>::new(), "{name}: left in the cache");
    }
}

#[test]
fn privileged_registries_that_fail_are_told_clearly() {
    if !have_root("privileged_registries_that_fail_are_told_clearly") {
        return;
    }
    let place = Place::new("");
    let registry = Registry::start();
    let private = Registry::start_with(&Demands { user: Some(("u".to_owned(), "p".to_owned())), ..Demands::default() });
    registry.seed(&debian::busybox(), "busybox:1");
    let mut arm = debian::busybox();
    arm.architecture = "arm64".to_owned();
    registry.seed(&arm, "arm:1");
    let closed = free_port();
    let cases = [
        ("unknown host", "docker://no-such-host.invalid/x".to_owned(), &["no-such-host.invalid"][..]),
        ("refused connection", format!("docker://127.0.0.1:{closed}/x"), &["refused"][..]),
        ("missing tag", format!("docker://{}", registry.reference("busybox:none")), &["manifest unknown"][..]),
        ("missing repository", format!("docker://{}", registry.reference("nothing:1")), &["unknown"][..]),
        ("credentials wanted", format!("docker://{}", private.reference("x:1")), &["authentication required"][..]),
        ("other platform", format!("docker://{}", registry.reference("arm:1")), &["arm64", "amd64"][..]),
        ("unknown scheme", "nonsense://x".to_owned(), &["Unsupported transport type: nonsense"][..]),
        ("bad reference", "docker://lower/UPPER".to_owned(), &["invalid reference format"][..]),
        ("bad digest", "docker://a@sha256:123".to_owned(), &["invalid reference format"][..]),
        ("no scheme", "just-a-name".to_owned(), &["No transport type URI supplied"][..]),
    ];
    for (name, uri, words) in cases {
        place.assert_failed(name, &place.pull(&uri), words);
    }
}

#[test]
fn privileged_tls_to_a_plain_port_is_told_clearly() {
    if !have_root("privileged_tls_to_a_plain_port_is_told_clearly") {
        return;
    }
    let place = Place::new("");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
    let port = listener.local_addr().expect("it has an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(16) {
            let Ok(mut stream) = stream else { return };
            let mut buffer = [0; 512];
            // What the client says does not matter: the answer is no TLS.
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(b"this is not TLS at all\r\n\r\n");
        }
    });
    let mut command = place.daemon.sctl(&place.user);
    let output = command
        .current_dir(place.out())
        .args(["pull", "x.sif", &format!("docker://127.0.0.1:{port}/x")])
        .output()
        .expect("run sctl");
    place.assert_failed("TLS to a plain port", &output, &["127.0.0.1"]);
}

#[test]
fn privileged_damaged_images_are_refused() {
    if !have_root("privileged_damaged_images_are_refused") {
        return;
    }
    let place = Place::new("[limits]\nmax_entries = 2000\nmax_layers = 8\nmax_layer_bytes = 67108864\n");
    let registry = Registry::start();
    let gzip = |entries: &[Entry]| Layer::new(entries);
    let mut truncated_tar = gzip(&[Entry::file("x", vec![7; 4000])]);
    truncated_tar.tar.truncate(2048);
    let plain_zero = Layer::from_tar(vec![0; 80 << 20]);
    let cases: Vec<(&str, Vec<Layer>, &[&str])> = vec![
        (
            "too many entries",
            vec![gzip(&(0..3000).map(|n| Entry::file(format!("f{n}"), "")).collect::<Vec<_>>())],
            &["2000"],
        ),
        ("too many layers", (0..9).map(|n| gzip(&[Entry::file(format!("f{n}"), "x")])).collect(), &["layers", "8"]),
        ("too many bytes", vec![plain_zero], &["67108864"]),
        ("truncated tar", vec![truncated_tar], &["layer 1 of 1"]),
        ("junk instead of a tar", vec![Layer::from_tar(vec![b'j'; 4096])], &["layer 1 of 1"]),
        ("unknown type", vec![gzip(&[Entry::raw("x", b'Q', "")])], &["x"]),
        ("link to nowhere", vec![gzip(&[Entry::hardlink("x", "missing")])], &["missing"]),
        ("file as root", vec![gzip(&[Entry::file("./", "x")])], &["root directory"]),
        ("long link", vec![gzip(&[Entry::symlink("l", "t".repeat(5000))])], &["4095"]),
        ("bare whiteout", vec![gzip(&[Entry::file(".wh.", "")])], &[".wh."]),
    ];
    for (name, layers, words) in cases {
        let repository = name.replace(' ', "-");
        registry.seed(&Image::new(layers), &format!("{repository}:1"));
        let output = place.pull(&format!("docker://{}", registry.reference(&format!("{repository}:1"))));
        place.assert_failed(name, &output, words);
    }
    // Stored without compression, a broken tar is found as well.
    let mut plain = gzip(&[Entry::file("x", vec![7; 4000])]).stored(BlobCompression::None);
    plain.tar.truncate(3000);
    registry.seed(&Image::new(vec![plain]), "plain:1");
    let output = place.pull(&format!("docker://{}", registry.reference("plain:1")));
    place.assert_failed("truncated plain tar", &output, &["layer 1 of 1"]);
    // The daemon serves on.
    registry.seed(&debian::busybox(), "busybox:1");
    let output = place.pull(&format!("docker://{}", registry.reference("busybox:1")));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn privileged_a_full_disk_is_told_with_the_figure() {
    if !have_root("privileged_a_full_disk_is_told_with_the_figure") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::base(), "debian:1");
    let folder = Scratch::new();
    fs::create_dir(folder.join("cache")).expect("make the cache's folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=40m,mode=700", "tmpfs"])
        .arg(folder.join("cache"))
        .status()
        .expect("mount runs");
    assert!(mounted.success());
    let daemon = Daemon::system_in(folder, "", &[]);
    let place = Place { daemon, user: User::a(), scratch: Scratch::new() };
    let output = place.pull(&format!("docker://{}", registry.reference("debian:1")));
    place.assert_failed("full disk", &output, &["space"]);
    let folder = place.daemon.stop();
    let daemon = Daemon::system_in(folder, "min_free_percent = 0\n", &[]);
    let place = Place { daemon, user: User::a(), scratch: Scratch::new() };
    let output = place.pull(&format!("docker://{}", registry.reference("debian:1")));
    place.assert_failed("disk that runs full", &output, &["space"]);
    let folder = place.daemon.stop();
    assert!(Command::new("umount").arg(folder.join("cache")).status().expect("umount runs").success());
}

#[test]
fn privileged_an_unwritable_target_is_told_before_any_network() {
    if !have_root("privileged_an_unwritable_target_is_told_before_any_network") {
        return;
    }
    let place = Place::new("");
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    registry.clear_log();
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    for target in ["/proc/x.sif", "/root/x.sif", "/nowhere/x.sif"] {
        let output = place.daemon.pull(&place.user, Path::new("/"), &[target, &uri]);
        place.assert_failed(target, &output, &[target.rsplit_once('/').expect("absolute").0]);
    }
    assert_eq!(registry.blob_gets(), Vec::<String>::new());
}

#[test]
fn privileged_files_that_are_no_images_are_refused() {
    if !have_root("privileged_files_that_are_no_images_are_refused") {
        return;
    }
    let place = Place::new("");
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let good = place.pull(&format!("docker://{}", registry.reference("busybox:1")));
    assert!(good.status.success(), "{}", stderr(&good));
    let bytes = fs::read(place.out().join("x.sif")).expect("read the SIF");
    fs::remove_file(place.out().join("x.sif")).expect("remove the SIF");
    let (offset, _) = {
        let path = place.scratch.join("good.sif");
        fs::write(&path, &bytes).expect("write a SIF");
        sctl_tests::sif::partition(&path)
    };
    let damaged = |at: usize, with: &[u8]| {
        let mut copy = bytes.clone();
        copy[at..at + with.len()].copy_from_slice(with);
        copy
    };
    let offset = offset as usize;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("junk", vec![b'j'; 100_000]),
        ("empty", vec![]),
        ("truncated header", bytes[..100].to_vec()),
        ("truncated table", bytes[..5000].to_vec()),
        ("truncated partition", bytes[..offset + 2000].to_vec()),
        ("wild descriptor table", damaged(96, &u64::MAX.to_le_bytes())),
        ("wild descriptor count", damaged(88, &(u64::MAX / 2).to_le_bytes())),
        ("other version", damaged(42, b"02\0")),
        ("no superblock", damaged(offset, b"\0\0\0\0")),
        ("wild inode table", damaged(offset + 64, &u64::MAX.to_le_bytes())),
        ("wild directory table", damaged(offset + 72, &(u64::MAX >> 1).to_le_bytes())),
        ("wild root inode", damaged(offset + 32, &0x7fff_ffff_0000u64.to_le_bytes())),
        ("wild fragment table", damaged(offset + 80, &(1u64 << 40).to_le_bytes())),
        ("wild block size", damaged(offset + 12, &u32::MAX.to_le_bytes())),
    ];
    for (name, content) in cases {
        let path = place.scratch.join("bad.sif");
        fs::write(&path, content).expect("write the bad file");
        for arguments in [&["exec"][..], &["run"][..]] {
            let output =
                place.daemon.sctl(&place.user).args(arguments).arg(&path).arg("true").output().expect("run sctl");
            place.assert_failed(name, &output, &[]);
        }
    }
    let output = place.daemon.sctl(&place.user).arg("exec").arg(place.scratch.join("none.sif")).arg("true").output();
    place.assert_failed("missing file", &output.expect("run sctl"), &["none.sif"]);
    let output =
        place.daemon.sctl(&place.user).arg("exec").arg(place.scratch.join("good.sif")).arg("no-such-program").output();
    place.assert_failed(
        "missing program",
        &output.expect("run sctl"),
        &["\"no-such-program\": executable file not found in $PATH"],
    );
}

/// Another user's program on a socket: it takes every connection, writes a C
/// for each and an E for each end, and between them what it hears first. Who
/// speaks is left, and does not wait for an answer.
const FOREIGN: &str = r"
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if sys.argv[2] == 'packets' else socket.SOCK_STREAM)
s.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
s.listen(5)
while True:
    c, _ = s.accept()
    os.write(1, b'C')
    os.write(1, c.recv(4096) + b'E')
    c.close()
";

#[test]
fn privileged_a_foreign_daemon_gets_nothing() {
    if !have_root("privileged_a_foreign_daemon_gets_nothing") {
        return;
    }
    let scratch = Scratch::new();
    let (alice, bob) = (User::a(), User::b());
    let folder = bob.folder(&scratch, "bob");
    let foreign = [("stream", "sctl.sock"), ("packets", "mount.sock")].map(|(kind, name)| {
        let (socket, heard) = (folder.join(name), scratch.join(kind));
        let child = bob
            .command("python3")
            .args(["-c", FOREIGN])
            .args([&socket, &PathBuf::from(kind)])
            .stdout(fs::File::create(&heard).expect("make a file for what is heard"))
            .spawn()
            .expect("start a foreign daemon");
        (Ended(child), socket, heard)
    });
    for (_, socket, _) in &foreign {
        wait_until("the foreign daemons listen", Duration::from_secs(10), || {
            socket.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o777 == 0o666)
        });
    }
    // The one asks for a pull, the other first for a mount.
    for (arguments, (_, socket, heard)) in [["pull", "x.sif"], ["exec", ""]].iter().zip(&foreign) {
        let mut command = alice.command(programs().join("sctl"));
        command
            .env("SCTL_SOCKET", &foreign[0].1)
            .env("SINGULARITY_DOCKER_USERNAME", "name")
            .env("SINGULARITY_DOCKER_PASSWORD", "secret-password")
            .arg(arguments[0])
            .args(Some(arguments[1]).filter(|out| !out.is_empty()))
            .args(["docker://127.0.0.1:1/x"])
            .args(Some("true").filter(|_| arguments[0] == "exec"))
            .current_dir(alice.folder(&scratch, "alice"));
        let output = command.output().expect("run sctl");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(255), "{arguments:?}: {text}");
        let first = format!("FATAL:   The daemon at {} cannot be trusted\n", socket.display());
        let cause = format!("  cause: it runs as uid {}, which is neither root nor you (uid {})", bob.uid, alice.uid);
        assert!(text.starts_with(&first) && text.contains(&cause), "{arguments:?}: {text}");
        // All that was sent to it has been heard once it notices the end.
        let said = || fs::read_to_string(heard).expect("read what was heard");
        wait_until("the foreign daemon notices the end", Duration::from_secs(10), || said().ends_with('E'));
        assert_eq!(said(), "CE", "{arguments:?}: the client spoke to a foreign daemon");
    }
}

/// A process that ends with this value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets `tag` name an image whose only layer is `blob`, whatever that holds.
fn add_image(hub: &Hub, tag: &str, media_type: &str, blob: &[u8], diff_id: Digest) {
    let text = |value: Value| value.to_string().into_bytes();
    let rootfs = json!({"type": "layers", "diff_ids": [diff_id]});
    let config = text(json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}));
    let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": hub.add_blob(bytes), "size": bytes.len()});
    let manifest = text(json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor(media_type, blob)],
    }));
    hub.add_manifest("x", Some(tag), MANIFEST, &manifest);
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn privileged_a_layer_that_was_stored_cut_short_is_told() {
    if !have_root("privileged_a_layer_that_was_stored_cut_short_is_told") {
        return;
    }
    let place = Place::new("");
    let hub = Hub::start(Manners::default());
    let layer = Layer::new(&[Entry::file("x", pseudo_random(300_000, 5)), Entry::file("y", "y")]);
    let diff_id = Digest::of(&layer.tar);
    for (compression, format) in [(BlobCompression::Gzip, "gzip"), (BlobCompression::Zstd, "zstd")] {
        let (blob, media_type) = layer.clone().stored(compression).blob();
        // The digest is that of what is there, so the download is in order.
        let cuts = [
            ("whole", blob.len()),
            ("one byte less", blob.len() - 1),
            ("no trailer", blob.len() - 8),
            ("half", blob.len() / 2),
            ("header alone", 6),
        ];
        for (cut, len) in cuts {
            let (name, tag) = (format!("{compression:?}, {cut}"), format!("{compression:?}-{len}"));
            add_image(&hub, &tag, media_type, &blob[..len], diff_id);
            let output = place.pull(&format!("docker://{}", hub.reference(&format!("x:{tag}"))));
            if len < blob.len() {
                place.assert_failed(&name, &output, &["layer 1 of 1", "in the middle of its", format]);
            } else {
                assert!(output.status.success(), "{name}: {}", stderr(&output));
                fs::remove_file(place.out().join("x.sif")).expect("remove the SIF");
                // Or the pack of the whole one would stand for every other.
                let root = User::named("root");
                let cleaned = place.daemon.sctl(&root).args(["cache", "clean", "--force"]).output();
                assert!(cleaned.expect("run sctl").status.success());
            }
        }
    }
}

#[test]
fn privileged_manifests_of_the_first_schema_are_told() {
    if !have_root("privileged_manifests_of_the_first_schema_are_told") {
        return;
    }
    let place = Place::new("");
    let hub = Hub::start(Manners::default());
    let layer = hub.add_blob(Layer::new(&[Entry::file("x", "x")]).blob().0);
    let manifest = json!({
        "schemaVersion": 1,
        "name": "x",
        "tag": "old",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": layer}],
        "history": [{"v1Compatibility": "{\"id\":\"0\"}"}],
    })
    .to_string();
    for media_type in [
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        // As old registries say of everything.
        "application/json",
    ] {
        hub.add_manifest("x", Some("old"), media_type, manifest.as_bytes());
        let uri = format!("docker://{}", hub.reference("x:old"));
        place.assert_failed(media_type, &place.pull(&uri), &[&uri, "schema 1", "not supported"]);
    }
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 0, "layers of an image that is refused were fetched");
}
