//! A real registry (`docker-registry`), seeded by `skopeo`.

use std::{path::PathBuf, process::Command, time::Duration};

use sctl_common::{Digest, ErrorKind};
use sctl_engine::registry::{BlobSource, Client, ClientOptions, Credentials, Proxies, RegistryError, Secret};
use sctl_oci::Config;
use sctl_tests::{
    hub::{Proxy, TokenServer},
    image::{self, Image},
    layer::{Entry, Layer},
    programs::{Scratch, have_program},
    registry::{Demands, Registry},
};

use crate::{amd64, fetch, noise, options, reference, run, story};

fn test_image() -> Image {
    let lower = Layer::new(&[Entry::dir("etc"), Entry::file("etc/noise", noise(300_000))]);
    let upper = Layer::new(&[Entry::file("etc/hostname", "box")]);
    Image::new(vec![lower, upper])
}

/// Says whether all programs are there.
fn ready(test: &str) -> bool {
    ["docker-registry", "skopeo", "openssl", "htpasswd"].iter().all(|program| have_program(test, program))
}

/// Resolves and fetches all of an image.
async fn pull(name: &str, options: ClientOptions) -> Result<Digest, RegistryError> {
    let name = reference(name);
    let first = Client::new(&name, options.clone())?;
    let resolved = first.resolve(&name, &amd64()).await?;
    let config = first.fetch_small_blob(&resolved.manifest.config, 4 << 20).await?;
    let config = Config::parse(&config).expect("a good config");
    config.check_platform(&amd64())?;
    let layers = sctl_oci::layers(&resolved.manifest, &config, &sctl_common::Limits::default())?;
    // As the job of a layer does: another client, with the session.
    let second = Client::new(&name, ClientOptions { session: Some(first.session()), ..options })?;
    for layer in &layers {
        fetch(&second, BlobSource::from(layer)).await?;
    }
    Ok(resolved.raw.digest)
}

#[test]
fn everybody_may_pull_from_an_open_registry() {
    if !ready("everybody_may_pull_from_an_open_registry") {
        return;
    }
    let registry = Registry::start();
    let digest = registry.seed(&test_image(), "team/tool:1");
    assert_eq!(run(pull(&registry.reference("team/tool:1"), options())).expect("by tag"), digest);
    let by_digest = registry.reference(&format!("team/tool@{digest}"));
    assert_eq!(run(pull(&by_digest, options())).expect("by digest"), digest);
    let port = registry.host().replace("127.0.0.1", "localhost");
    run(pull(&format!("{port}/team/tool:1"), options())).expect("by name");
    let error = run(pull(&registry.reference("team/none:1"), options())).expect_err("none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        format!("Error reading manifest 1 in {}/team/none: manifest unknown: manifest unknown", registry.host())
    );
}

#[test]
fn cut_connections_are_resumed_at_a_real_registry() {
    if !ready("cut_connections_are_resumed_at_a_real_registry") {
        return;
    }
    let registry = Registry::start();
    let digest = registry.seed(&test_image(), "team/tool:1");
    // Whoever takes the proxy for the registry gets cut off three times.
    let proxy = Proxy::start_cutting(&registry.host(), 3, 100_000);
    let got = run(pull(&format!("{}/team/tool:1", proxy.host()), options()));
    assert_eq!(got.unwrap_or_else(|error| panic!("{}", story(&error))), digest);
    let cut = proxy.heads().iter().any(|head| head.to_ascii_lowercase().contains("range: bytes="));
    assert!(cut, "nothing was resumed: {:?}", proxy.heads());
}

#[test]
fn tls_goes_through_a_proxy() {
    if !ready("tls_goes_through_a_proxy") {
        return;
    }
    let certificates = Certificates::new();
    let tls = Some((certificates.path("server.pem"), certificates.path("server.key")));
    let registry = Registry::start_with(&Demands { tls, ..Demands::default() });
    let digest = registry.seed(&test_image(), "team/tool:1");
    let proxy = Proxy::start(&registry.host());
    let proxies = Proxies { https: Some(proxy.url()), ..Proxies::default() };
    let with = ClientOptions { proxies, extra_ca_pem: vec![certificates.pem("ca.pem")], ..options() };
    let got = run(pull("registry.invalid/team/tool:1", with.clone()));
    assert_eq!(got.unwrap_or_else(|error| panic!("{}", story(&error))), digest);
    assert!(proxy.heads()[0].starts_with("CONNECT registry.invalid:443 HTTP/1.1\r\n"), "{:?}", proxy.heads());
    // The name is checked, not the address.
    let error = run(pull("other.invalid/team/tool:1", with)).expect_err("another name");
    assert!(matches!(error, RegistryError::Certificate { .. }), "{}", story(&error));
}

#[test]
fn passwords_at_a_real_registry() {
    if !ready("passwords_at_a_real_registry") {
        return;
    }
    let registry = Registry::start_with(&Demands { user: Some(("ann".into(), "p:w".into())), ..Demands::default() });
    let scratch = Scratch::new();
    test_image().write_layout(scratch.path(), "seed");
    let name = registry.reference("team/tool:1");
    image::push(scratch.path(), "seed", &name, Some("ann:p:w"));
    let as_user = |password: &str| ClientOptions {
        credentials: Credentials::Basic { username: "ann".into(), password: Secret::new(password) },
        ..options()
    };
    run(pull(&name, as_user("p:w"))).expect("the right password");
    for options in [as_user("no"), options()] {
        let error = run(pull(&name, options)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(error.to_string().contains("unauthorized: authentication required"), "{error}");
    }
}

#[test]
fn tokens_at_a_real_registry() {
    if !ready("tokens_at_a_real_registry") {
        return;
    }
    let server = TokenServer::start(Some(("ann", "pw")), Duration::from_secs(2));
    let token = Some((server.realm(), server.certificate().to_owned()));
    let registry = Registry::start_with(&Demands { token, ..Demands::default() });
    let scratch = Scratch::new();
    test_image().write_layout(scratch.path(), "seed");
    let name = registry.reference("team/tool:1");
    image::push(scratch.path(), "seed", &name, Some("ann:pw"));
    let user = || ClientOptions {
        credentials: Credentials::Basic { username: "ann".into(), password: Secret::new("pw") },
        ..options()
    };
    run(pull(&name, user())).unwrap_or_else(|error| panic!("{}", story(&error)));
    // The token dies between two requests of one client.
    let client = Client::new(&reference(&name), user()).expect("good settings");
    run(async {
        client.resolve_manifest(&reference(&name)).await.expect("resolved");
        let before = server.log().len();
        tokio::time::sleep(Duration::from_millis(3200)).await;
        client.resolve_manifest(&reference(&name)).await.expect("renewed");
        assert_eq!(server.log().len(), before + 1);
    });
    let error = run(pull(&name, options())).expect_err("nobody");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(error.to_string().contains("denied: requested access to the resource is denied"), "{error}");
    let wrong = Credentials::Basic { username: "ann".into(), password: Secret::new("no") };
    let error = run(pull(&name, ClientOptions { credentials: wrong, ..options() })).expect_err("wrong");
    assert!(
        error.to_string().starts_with("unable to retrieve auth token: invalid username/password: unauthorized: "),
        "{error}"
    );
}

struct Certificates {
    scratch: Scratch,
}

impl Certificates {
    /// An authority, a server certificate by it, and a certificate that signs
    /// itself.
    fn new() -> Self {
        let scratch = Scratch::new();
        let run = |arguments: &str| {
            let output = Command::new("openssl")
                .args(arguments.split_ascii_whitespace())
                .current_dir(scratch.path())
                .output()
                .expect("openssl runs");
            assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        let names = "-addext subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.invalid";
        run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
        run(&format!("req {key} -keyout server.key -out server.csr -subj /CN=server {names}"));
        run(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy -out server.pem",
        );
        run(&format!("req -x509 {key} -keyout self.key -out self.pem -days 2 -subj /CN=self {names}"));
        Self { scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn pem(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("openssl wrote it")
    }
}

#[test]
fn private_authorities_are_trusted_when_named() {
    if !ready("private_authorities_are_trusted_when_named") {
        return;
    }
    let certificates = Certificates::new();
    for (certificate, authority) in [("server", "ca.pem"), ("self", "self.pem")] {
        let tls = (certificates.path(&format!("{certificate}.pem")), certificates.path(&format!("{certificate}.key")));
        let registry = Registry::start_with(&Demands { tls: Some(tls), ..Demands::default() });
        let digest = registry.seed(&test_image(), "team/tool:1");
        let name = registry.reference("team/tool:1");
        let trusting = ClientOptions { extra_ca_pem: vec![certificates.pem(authority)], ..options() };
        let got = run(pull(&name, trusting)).unwrap_or_else(|error| panic!("{certificate}: {}", story(&error)));
        assert_eq!(got, digest);
        let insecure = ClientOptions { insecure: true, ..options() };
        assert_eq!(run(pull(&name, insecure)).expect("any certificate will do"), digest);

        // Without either: refused, and not tried without TLS although the
        // registry is on loopback.
        let error = run(pull(&name, options())).expect_err("an unknown authority");
        assert!(matches!(error, RegistryError::Certificate { .. }), "{certificate}: {}", story(&error));
        // A certificate for another name.
        let other = ClientOptions { extra_ca_pem: vec![certificates.pem(authority)], ..options() };
        let by_other_name = name.replace("127.0.0.1", "127.0.0.2");
        let error = run(pull(&by_other_name, other)).expect_err("nobody listens there, or another name");
        assert!(
            matches!(error, RegistryError::Certificate { .. } | RegistryError::Refused { .. }),
            "{certificate}: {}",
            story(&error)
        );
    }
}

#[test]
fn plain_registries_elsewhere_are_told_and_reached_on_demand() {
    if !ready("plain_registries_elsewhere_are_told_and_reached_on_demand") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&test_image(), "team/tool:1");
    // A name that does not look local, sent to loopback by a proxy's help
    // would need one; the address of this machine outside 127/8 may not exist.
    // So the port is asked for by TLS only, as for any name elsewhere.
    let name = registry.reference("team/tool:1").replace("127.0.0.1", "0.0.0.0");
    let error = run(pull(&name, options())).expect_err("no TLS there");
    assert!(matches!(error, RegistryError::PlainHttp { .. }), "{}", story(&error));
    assert!(error.hint().expect("a hint").contains("--no-https"));
    run(pull(&name, ClientOptions { insecure: true, ..options() })).expect("on demand");
}
