//! Manifests, indexes, configs, and what a registry says beside them.

use std::{
    io::Write as _,
    net::TcpListener,
    time::{Duration, Instant},
};

use sctl_common::{Digest, ErrorKind};
use sctl_engine::registry::{Client, ClientOptions, Notice, Proxies, RegistryError};
use sctl_oci::{Config, media_type};
use sctl_tests::{
    hub::{At, Fault, Hub, Manners, Misdeed, Proxy},
    image::Image,
    layer::{Entry, Layer},
};
use serde_json::json;

use crate::{amd64, client, listening, options, reference, run, story};

fn small_image(architecture: &str) -> Image {
    let layer = Layer::new(&[Entry::dir("etc"), Entry::file("etc/hostname", architecture)]);
    Image { architecture: architecture.to_owned(), ..Image::new(vec![layer]) }
}

/// Stores an index over what the repository's tags name.
fn add_index(hub: &Hub, repository: &str, tag: &str, entries: &[(Digest, usize, serde_json::Value)]) -> Digest {
    let manifests: Vec<_> = entries
        .iter()
        .map(|(digest, size, platform)| {
            json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": size, "platform": platform})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}).to_string();
    hub.add_manifest(repository, Some(tag), media_type::OCI_INDEX, index.as_bytes())
}

#[test]
fn an_image_is_resolved_by_tag_and_by_digest() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    let digest = hub.seed(&small_image("amd64"), "lib/tool:1");
    for name in ["lib/tool:1".to_owned(), format!("lib/tool@{digest}"), format!("lib/tool:other@{digest}")] {
        let client = client(&hub, &name, options());
        let reference = reference(&hub.reference(&name));
        let resolved = run(client.resolve(&reference, &amd64())).unwrap_or_else(|e| panic!("{name}: {}", story(&e)));
        assert_eq!(resolved.raw.digest, digest);
        assert!(!resolved.is_platform_known());
        let config = run(client.fetch_small_blob(&resolved.manifest.config, 4 << 20)).expect("the config");
        let config = Config::parse(&config).expect("a good config");
        config.check_platform(&amd64()).expect("the platform fits");
        assert_eq!(config.diff_ids.len(), resolved.manifest.layers.len());
    }
    let accept =
        hub.log().iter().find(|seen| seen.path.contains("/manifests/")).unwrap().header("accept").unwrap().to_owned();
    assert_eq!(accept, media_type::ACCEPT.join(", "));
}

#[test]
fn indexes_lead_to_the_platform() {
    let hub = Hub::start(Manners::default());
    let arm = hub.seed(&small_image("arm64"), "tool:arm");
    let amd = hub.seed(&small_image("amd64"), "tool:amd");
    let probe = client(&hub, "tool", options());
    let size = |tag: &str| run(probe.resolve_manifest(&reference(&hub.reference(tag)))).unwrap().bytes.len();
    let (arm_size, amd_size) = (size("tool:arm"), size("tool:amd"));
    let entries = [
        (arm, arm_size, json!({"os": "linux", "architecture": "arm64"})),
        (amd, amd_size, json!({"os": "linux", "architecture": "amd64"})),
    ];
    let inner = add_index(&hub, "tool", "inner", &entries);
    let inner_size = size("tool:inner");
    let nested = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": media_type::OCI_INDEX, "digest": inner, "size": inner_size}],
    })
    .to_string();
    hub.add_manifest("tool", Some("nested"), media_type::OCI_INDEX, nested.as_bytes());
    for tag in ["tool:inner", "tool:nested"] {
        let resolved = run(probe.resolve(&reference(&hub.reference(tag)), &amd64())).expect(tag);
        assert_eq!(resolved.raw.digest, amd, "{tag}");
        assert!(resolved.is_platform_known());
        let other = run(probe.resolve(&reference(&hub.reference(tag)), &"arm64".parse().unwrap())).expect(tag);
        assert_eq!(other.raw.digest, arm, "{tag}");
        let error = run(probe.resolve(&reference(&hub.reference(tag)), &"s390x".parse().unwrap())).expect_err("none");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("no image found in image index for architecture \"s390x\""), "{error}");
    }
    // An entry with another size than it has.
    let wrong = [(amd, amd_size + 1, json!({"os": "linux", "architecture": "amd64"}))];
    add_index(&hub, "tool", "wrong", &wrong);
    let error = run(probe.resolve(&reference(&hub.reference("tool:wrong")), &amd64())).expect_err("wrong size");
    assert!(matches!(error, RegistryError::WrongSize { .. }), "{}", story(&error));
}

#[test]
fn an_index_without_a_floor_is_left() {
    // A chain of indexes, each naming the next.
    let hub = Hub::start(Manners::default());
    let mut below = (Digest::of(b"nothing"), 7);
    for _ in 0..20 {
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{"mediaType": media_type::OCI_INDEX, "digest": below.0, "size": below.1}],
        })
        .to_string();
        below = (hub.add_manifest("x", Some("deep"), media_type::OCI_INDEX, index.as_bytes()), index.len());
    }
    let error = run(client(&hub, "x", options()).resolve(&reference(&hub.reference("x:deep")), &amd64()))
        .expect_err("too deep");
    assert!(matches!(error, RegistryError::NestedIndexes { .. }), "{}", story(&error));
    assert!(hub.log().len() < 10, "{} requests", hub.log().len());
}

#[test]
fn bad_manifests_are_told() {
    let hub = Hub::start(Manners::default());
    let schema1 = r#"{"schemaVersion":1,"name":"x","tag":"old","fsLayers":[],"history":[]}"#;
    hub.add_manifest("x", Some("old"), media_type::DOCKER_SCHEMA1_SIGNED, schema1.as_bytes());
    hub.add_manifest("x", Some("junk"), media_type::OCI_MANIFEST, b"<html>");
    hub.add_manifest("x", Some("huge"), media_type::OCI_MANIFEST, &vec![b' '; (4 << 20) + 1]);
    hub.add_manifest("x", Some("void"), media_type::OCI_MANIFEST, b"");
    let cases = [
        ("x:old", ErrorKind::Unsupported, "schema 1"),
        ("x:junk", ErrorKind::Corrupt, "cannot be read"),
        ("x:huge", ErrorKind::LimitExceeded, "4194304 bytes"),
        ("x:void", ErrorKind::Corrupt, "no body"),
        ("x:none", ErrorKind::NotFound, "Error reading manifest none in"),
    ];
    for (name, kind, text) in cases {
        let client = client(&hub, name, options());
        let error = run(client.resolve(&reference(&hub.reference(name)), &amd64())).expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {}", story(&error));
        assert!(story(&error).contains(text), "{name}: {}", story(&error));
    }
}

#[test]
fn a_manifest_without_end_stops_at_the_limit() {
    let hub = Hub::start(Manners::default());
    hub.seed(&small_image("amd64"), "x:1");
    hub.misbehave(Fault::always(At::Manifest, Misdeed::Endless));
    let name = reference(&hub.reference("x:1"));
    let error = run(client(&hub, "x:1", options()).resolve_manifest(&name)).expect_err("endless");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{}", story(&error));
}

#[test]
fn a_manifest_that_is_not_its_digest_is_told() {
    let hub = Hub::start(Manners::default());
    let digest = hub.seed(&small_image("amd64"), "x:1");
    hub.misbehave(Fault::always(At::Manifest, Misdeed::WrongByte));
    let name = format!("x@{digest}");
    let error =
        run(client(&hub, &name, options()).resolve_manifest(&reference(&hub.reference(&name)))).expect_err("told");
    assert!(matches!(error, RegistryError::WrongDigest { expected, .. } if expected == digest), "{}", story(&error));
}

#[test]
fn manifests_survive_breaks_and_bad_days() {
    for misdeed in [
        Misdeed::BreakAfter(10),
        Misdeed::HangUp,
        Misdeed::status(502),
        Misdeed::retry_after(503, "0"),
        Misdeed::LengthOffBy(5),
        Misdeed::Silence(3),
    ] {
        let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
        let digest = hub.seed(&small_image("amd64"), "x:1");
        hub.misbehave(Fault::times(2, At::Manifest, misdeed.clone()));
        let raw = run(client(&hub, "x:1", options()).resolve_manifest(&reference(&hub.reference("x:1"))));
        let raw = raw.unwrap_or_else(|error| panic!("{misdeed:?}: {}", story(&error)));
        assert_eq!(raw.digest, digest);
    }
}

#[test]
fn limits_and_warnings_are_told_once() {
    let hub = Hub::start(Manners {
        warning: Some("this registry moves".into()),
        ..Manners::docker_hub(Duration::from_secs(300))
    });
    hub.seed(&small_image("amd64"), "x:1");
    let (options, heard) = listening(options());
    let client = client(&hub, "x:1", options);
    for _ in 0..2 {
        run(client.resolve_manifest(&reference(&hub.reference("x:1")))).expect("resolved");
    }
    let heard: Vec<String> = heard.lock().unwrap().iter().map(Notice::to_string).collect();
    let host = hub.host();
    assert_eq!(
        heard,
        [
            format!("{host} is used without TLS"),
            format!("{host}: 76 of 100 pulls left in 6 h (counted for 192.0.2.17)"),
            format!("{host} says: this registry moves"),
        ]
    );
}

#[test]
fn a_head_tells_the_digest_without_a_pull() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    let digest = hub.seed(&small_image("amd64"), "x:1");
    let client = client(&hub, "x:1", options());
    let head = run(client.head_manifest(&reference(&hub.reference("x:1")))).expect("asked").expect("told");
    assert_eq!(head.digest, digest);
    assert_eq!(head.media_type.as_deref(), Some(media_type::OCI_MANIFEST));
    let error = run(client.head_manifest(&reference(&hub.reference("x:2")))).expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    hub.misbehave(Fault::always(At::Manifest, Misdeed::status(405)));
    assert_eq!(run(client.head_manifest(&reference(&hub.reference("x:1")))).expect("no HEAD is no error"), None);
}

#[test]
fn what_is_no_registry_is_not_quoted() {
    let hub = Hub::start(Manners::default());
    let body = "<html>password of the intranet: hunter2</html>".to_owned();
    for status in [400, 401, 403, 404, 418, 429, 500] {
        hub.behave();
        hub.misbehave(Fault::always(At::Manifest, Misdeed::Status { status, headers: vec![], body: body.clone() }));
        let error = run(client(&hub, "x:1", options()).resolve_manifest(&reference(&hub.reference("x:1"))))
            .expect_err("no success");
        let story = story(&error);
        assert!(!story.contains("hunter2"), "{story}");
        if matches!(status, 401 | 403) {
            assert!(!story.contains("not exist") && !story.contains("unknown"), "{story}");
        }
    }
}

#[test]
fn hosts_that_are_not_there() {
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let cases = [
        (format!("127.0.0.1:{closed}/x"), "was refused"),
        ("registry.invalid/x".to_owned(), "cannot resolve the name registry.invalid"),
    ];
    for (name, text) in cases {
        let started = Instant::now();
        let name = reference(&name);
        let client = Client::new(&name, options()).expect("good settings");
        let error = run(client.resolve_manifest(&name)).expect_err("nobody there");
        assert!(error.to_string().contains(text), "{}", story(&error));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}

#[test]
fn a_server_that_speaks_something_else_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            // The client may have gone; that is its right.
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        }
    });
    let name = reference(&format!("127.0.0.1:{port}/x"));
    let error = run(Client::new(&name, options()).unwrap().resolve_manifest(&name)).expect_err("no registry");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", story(&error));
}

#[test]
fn proxies_are_used_but_not_for_this_machine() {
    // A name that only the proxy knows: plain HTTP by the proxy for it, after
    // the one for TLS led nowhere.
    let hub = Hub::start(Manners::default());
    let digest = hub.seed(&small_image("amd64"), "x:1");
    let proxy = Proxy::start(&hub.host());
    let proxies = Proxies {
        http: Some(proxy.url().replace("//", "//user:word@")),
        https: Some("127.0.0.1:1".to_owned()),
        no_proxy: String::new(),
    };
    let with = ClientOptions { proxies, insecure: true, ..options() };
    let name = reference("registry.invalid:5000/x:1");
    let client = Client::new(&name, with.clone()).expect("good settings");
    let raw = run(client.resolve_manifest(&name)).unwrap_or_else(|error| panic!("{}", story(&error)));
    assert_eq!(raw.digest, digest);
    let head = proxy.heads().concat();
    assert!(head.starts_with("GET http://registry.invalid:5000/v2/x/manifests/1 HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjp3b3jk\r\n"), "{head}");

    let name = reference(&hub.reference("x:1"));
    run(Client::new(&name, with).expect("good settings").resolve_manifest(&name)).expect("directly");
    assert_eq!(proxy.heads().len(), 1);
}
