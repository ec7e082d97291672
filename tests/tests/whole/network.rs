//! What stands between the daemon and a registry: certificates and proxies;
//! and what it keeps on disk of what it fetched.

use std::{fs, path::Path, process::Command};

use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    hub::Proxy,
    image,
    programs::{Scratch, have_root, stderr, stdout},
    registry::{Demands, Registry},
};

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().expect("openssl runs");
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn privileged_a_private_authority_is_trusted_only_if_configured() {
    if !have_root("privileged_a_private_authority_is_trusted_only_if_configured") {
        return;
    }
    let scratch = Scratch::new();
    let folder = scratch.path();
    openssl(
        folder,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ],
    );
    openssl(
        folder,
        &["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=registry", "-keyout", "key.pem", "-out", "request.pem"],
    );
    fs::write(scratch.join("names"), "subjectAltName=IP:127.0.0.1\n").expect("write the names");
    openssl(
        folder,
        &[
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "1",
            "-extfile",
            "names",
            "-out",
            "cert.pem",
        ],
    );
    let registry = Registry::start_with(&Demands {
        tls: Some((scratch.join("cert.pem"), scratch.join("key.pem"))),
        ..Demands::default()
    });
    registry.seed(&debian::busybox(), "busybox:1");
    let user = User::a();
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let out = user.folder(&scratch, "out");
    let pull = |daemon: &Daemon| {
        daemon.sctl(&user).current_dir(&out).args(["pull", "--force", "x.sif", &uri]).output().expect("run sctl")
    };
    let refused = pull(&Daemon::system(""));
    assert_eq!(refused.status.code(), Some(255));
    assert!(stderr(&refused).to_lowercase().contains("certificate"), "{}", stderr(&refused));
    assert!(!out.join("x.sif").exists());
    let daemon = Daemon::system(&format!("ca_files = [\"{}\"]\n", scratch.join("ca.pem").display()));
    let pulled = pull(&daemon);
    assert!(pulled.status.success(), "{}", stderr(&pulled));
}

#[test]
fn privileged_the_configured_proxy_is_used() {
    if !have_root("privileged_the_configured_proxy_is_used") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let proxy = Proxy::start(&registry.host());
    let daemon = Daemon::system(&format!("[proxy]\nhttp = \"{0}\"\nhttps = \"{0}\"\n", proxy.url()));
    let scratch = Scratch::new();
    let user = User::a();
    // A name that only the proxy can reach.
    let uri = "docker://registry.test.invalid/busybox:1";
    let output = daemon.pull(&user, &user.folder(&scratch, "out"), &[uri]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!proxy.heads().is_empty(), "nothing went through the proxy");
}

#[test]
fn privileged_kept_blobs_make_a_layout_that_others_read() {
    if !have_root("privileged_kept_blobs_make_a_layout_that_others_read") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::layered(), "layered:1");
    let daemon = Daemon::system("keep_blobs = true\n");
    let scratch = Scratch::new();
    let user = User::a();
    let uri = format!("docker://{}", registry.reference("layered:1"));
    let output = daemon.pull(&user, &user.folder(&scratch, "out"), &[&uri]);
    assert!(output.status.success(), "{}", stderr(&output));
    let layout = daemon.cache().join("oci");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).expect("read the index")).expect("it is JSON");
    let manifest = &index["manifests"][0];
    let name = manifest["annotations"]["org.opencontainers.image.ref.name"].as_str();
    let digest = manifest["digest"].as_str().expect("an entry has a digest");
    // By name if it has one; every blob is there either way.
    let bytes = fs::read(layout.join("blobs").join(digest.replace(':', "/"))).expect("read the manifest");
    let parsed: serde_json::Value = serde_json::from_slice(&bytes).expect("it is JSON");
    for layer in parsed["layers"].as_array().expect("layers") {
        let digest = layer["digest"].as_str().expect("a digest");
        let blob = fs::read(layout.join("blobs").join(digest.replace(':', "/"))).expect("the blob was kept");
        assert_eq!(sctl_common::Digest::of(&blob).to_string(), digest);
    }
    if let Some(name) = name {
        let rootfs = image::umoci_unpack(&layout, name, &scratch.join("bundle"));
        assert_eq!(fs::read_to_string(rootfs.join("etc/motd")).expect("read"), "replaced\n");
    }
}

#[test]
fn privileged_the_cache_is_shown_and_cleaned_by_those_who_may() {
    if !have_root("privileged_the_cache_is_shown_and_cleaned_by_those_who_may") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let daemon = Daemon::system("");
    let scratch = Scratch::new();
    let user = User::a();
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let pull = || daemon.pull(&user, &user.folder(&scratch, "out"), &["--force", &uri]);
    assert!(pull().status.success());
    let info = daemon.sctl(&user).args(["cache", "info", "--json"]).output().expect("run sctl");
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("it is JSON");
    assert!(info.is_object(), "{info}");
    let list = daemon.sctl(&user).args(["cache", "list", "-v"]).output().expect("run sctl");
    assert!(stdout(&list).contains("container file(s) using"), "{}", stdout(&list));
    let refused = daemon.sctl(&user).args(["cache", "clean", "--force"]).output().expect("run sctl");
    assert_eq!(refused.status.code(), Some(255), "{}", stderr(&refused));
    let root = User::named("root");
    let dry = daemon.sctl(&root).args(["cache", "clean", "--dry-run"]).output().expect("run sctl");
    assert!(dry.status.success(), "{}", stderr(&dry));
    assert_eq!(fs::read_dir(daemon.cache().join("sif")).expect("read sif").count(), 2, "the SIF and its record");
    let cleaned = daemon.sctl(&root).args(["cache", "clean", "--force"]).output().expect("run sctl");
    assert!(cleaned.status.success(), "{}", stderr(&cleaned));
    for folder in ["sif", "packs"] {
        assert_eq!(fs::read_dir(daemon.cache().join(folder)).expect("read a folder").count(), 0, "{folder}");
    }
    assert!(pull().status.success());
}
