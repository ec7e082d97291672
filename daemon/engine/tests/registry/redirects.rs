//! Where a registry may send us.

use std::time::Duration;

use sctl_common::ErrorKind;
use sctl_engine::registry::RegistryError;
use sctl_tests::hub::{At, Fault, Hub, Manners, Misdeed, Part};

use crate::{client, fetch, noise, options, run, source, story};

fn fetch_with(misdeed: Misdeed) -> (Hub, RegistryError) {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    let digest = hub.add_blob(noise(1000));
    hub.misbehave(Fault::always(At::BlobApi, misdeed));
    let error = run(fetch(&client(&hub, "a/b", options()), source(digest, 1000))).expect_err("not followed");
    (hub, error)
}

#[test]
fn circles_are_left() {
    let (hub, error) = fetch_with(Misdeed::RedirectToItself);
    assert!(matches!(error, RegistryError::BadRedirect { .. }), "{}", story(&error));
    assert!(hub.seen(Part::Api, "/blobs/").len() <= 12);
}

#[test]
fn link_local_addresses_and_other_schemes_are_refused() {
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://224.0.0.1/",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
    ] {
        let (_hub, error) = fetch_with(Misdeed::RedirectTo(url.into()));
        assert!(matches!(error, RegistryError::RefusedTarget { .. }), "{url}: {}", story(&error));
        assert_eq!(error.kind(), ErrorKind::Denied);
    }
}

#[test]
fn a_redirect_to_nowhere_is_told() {
    let (_hub, error) = fetch_with(Misdeed::Status { status: 302, headers: vec![], body: String::new() });
    assert!(matches!(error, RegistryError::BadRedirect { .. }), "{}", story(&error));
}

#[test]
fn passwords_in_a_redirects_url_are_not_used() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    let digest = hub.add_blob(noise(1000));
    let url = format!("http://user:word@{}/store/{}", hub.host_of(Part::Store), digest.hex());
    hub.misbehave(Fault::always(At::BlobApi, Misdeed::RedirectTo(url)));
    run(fetch(&client(&hub, "a/b", options()), source(digest, 1000))).expect("fetched without them");
    assert!(!hub.seen(Part::Store, "")[0].is_authorised());
}

#[test]
fn what_another_server_says_is_not_quoted() {
    let (_hub, error) = {
        let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
        let digest = hub.add_blob(noise(1000));
        let body = r#"{"errors":[{"code":"SECRET","message":"hunter2"}]}"#.to_owned();
        hub.misbehave(Fault::always(At::Blob, Misdeed::Status { status: 418, headers: vec![], body }));
        let error = run(fetch(&client(&hub, "a/b", options()), source(digest, 1000))).expect_err("no blob");
        (hub, error)
    };
    assert!(matches!(error, RegistryError::Status { status: 418, elsewhere: true, .. }), "{}", story(&error));
    assert!(!story(&error).contains("hunter2"));
}
