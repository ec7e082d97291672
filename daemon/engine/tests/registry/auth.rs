//! Who the caller is: passwords, tokens, renewals, hand-over.

use std::time::Duration;

use sctl_common::ErrorKind;
use sctl_engine::registry::{ClientOptions, Credentials, RegistryError, Secret, Session};
use sctl_tests::{
    hub::{At, Fault, Hub, Login, Manners, Misdeed, Part},
    image::Image,
    layer::{Entry, Layer},
};

use crate::{client, fetch, noise, options, reference, run, source, story};

fn image() -> Image {
    Image::new(vec![Layer::new(&[Entry::file("x", "y")])])
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic { username: user.into(), password: Secret::new(password) }
}

fn as_user(credentials: Credentials) -> ClientOptions {
    ClientOptions { credentials, ..options() }
}

fn try_manifest(hub: &Hub, options: ClientOptions) -> Result<(), RegistryError> {
    run(client(hub, "team/x:1", options).resolve_manifest(&reference(&hub.reference("team/x:1")))).map(|_| ())
}

#[test]
fn public_images_cost_one_token() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    hub.seed(&image(), "team/x:1");
    let bytes = noise(1000);
    let digest = hub.add_blob(bytes.clone());
    let client = client(&hub, "team/x:1", options());
    run(async {
        client.resolve_manifest(&reference(&hub.reference("team/x:1"))).await.expect("resolved");
        fetch(&client, source(digest, 1000)).await.expect("fetched");
    });
    let tokens = hub.seen(Part::Auth, "/token");
    assert_eq!(tokens.len(), 1);
    assert!(!tokens[0].is_authorised());
    // The realm's own query stays, and our scope comes first.
    assert!(tokens[0].query.starts_with("tenant=1&service=registry.test&scope=repository%3Ateam%2Fx%3Apull"));
    let store = hub.seen(Part::Store, "");
    assert!(!store[0].is_authorised(), "the object store saw our token");
    assert_eq!(hub.seen(Part::Api, "").len(), 3, "challenge, manifest, blob");
}

#[test]
fn private_images_need_the_right_password() {
    let hub = Hub::start(Manners::private("ann", "wonder:land"));
    hub.seed(&image(), "team/x:1");
    try_manifest(&hub, as_user(basic("ann", "wonder:land"))).expect("the right one");
    assert!(hub.seen(Part::Auth, "/token")[0].query.contains("account=ann"));

    let error = try_manifest(&hub, as_user(basic("ann", "wrong"))).expect_err("the wrong one");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert_eq!(
        error.to_string(),
        "unable to retrieve auth token: invalid username/password: incorrect username or password"
    );

    let error = try_manifest(&hub, options()).expect_err("nobody");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert_eq!(
        error.to_string(),
        format!(
            "Error reading manifest 1 in {}/team/x: errors:\n\
             denied: requested access to the resource is denied\n\
             unauthorized: authentication required",
            hub.host()
        )
    );
    for error in [error.to_string(), story(&error)] {
        assert!(!error.contains("exist"), "{error}");
    }
}

#[test]
fn passwords_go_with_every_request_where_they_must() {
    let login = Login::Basic { user: "ann".into(), password: "pw".into() };
    let hub = Hub::start(Manners { login, redirects_blobs: true, ..Manners::default() });
    hub.seed(&image(), "team/x:1");
    let digest = hub.add_blob(noise(1000));
    let client = client(&hub, "team/x:1", as_user(basic("ann", "pw")));
    run(async {
        client.resolve_manifest(&reference(&hub.reference("team/x:1"))).await.expect("resolved");
        fetch(&client, source(digest, 1000)).await.expect("fetched");
    });
    assert_eq!(hub.seen(Part::Api, "").iter().filter(|seen| seen.status == 401).count(), 1);
    assert!(!hub.seen(Part::Store, "")[0].is_authorised());

    for credentials in [basic("ann", "no"), Credentials::Anonymous, Credentials::RegistryToken(Secret::new("t"))] {
        hub.clear_log();
        let error = try_manifest(&hub, as_user(credentials)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(error.to_string().contains("unauthorized: authentication required"), "{error}");
        assert!(hub.log().len() <= 2, "{} requests", hub.log().len());
    }
}

#[test]
fn tokens_that_die_in_mid_pull_are_renewed() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    let bytes = noise(4 << 20);
    let digest = hub.add_blob(bytes.clone());
    // The first body breaks; before the rest is asked for, all tokens die.
    hub.misbehave(Fault::times(1, At::Blob, Misdeed::BreakAfter(3 << 20)));
    let client = client(&hub, "team/x", options());
    let got = run(async {
        let mut stream = client.fetch_blob(source(digest, bytes.len()));
        let mut got = Vec::new();
        while let Some(chunk) = stream.next().await.expect("renewed") {
            if got.is_empty() {
                hub.expire_tokens();
            }
            got.extend_from_slice(&chunk);
        }
        got
    });
    assert!(got == bytes);
    assert_eq!(hub.seen(Part::Auth, "/token").len(), 2);
    let statuses: Vec<u16> = hub.seen(Part::Api, "/blobs/").iter().map(|seen| seen.status).collect();
    assert_eq!(statuses, [401, 307, 401, 307]);
}

#[test]
fn tokens_of_a_second_carry_a_whole_pull() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(1)));
    hub.seed(&image(), "team/x:1");
    let bytes = noise(1 << 20);
    let digest = hub.add_blob(bytes.clone());
    let client = client(&hub, "team/x:1", options());
    run(async {
        for _ in 0..3 {
            client.resolve_manifest(&reference(&hub.reference("team/x:1"))).await.expect("resolved");
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert!(fetch(&client, source(digest, bytes.len())).await.expect("fetched") == bytes);
        }
    });
    assert!(hub.seen(Part::Auth, "/token").len() >= 2);
}

#[test]
fn a_token_is_renewed_once_per_request() {
    let hub = Hub::start(Manners::docker_hub(Duration::ZERO));
    hub.seed(&image(), "team/x:1");
    let error = try_manifest(&hub, options()).expect_err("tokens are born dead");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert_eq!(hub.seen(Part::Auth, "/token").len(), 1);
    assert_eq!(hub.seen(Part::Api, "").len(), 2);
}

#[test]
fn refresh_tokens_are_posted_and_shown_the_old_way_where_they_must() {
    for knows_post in [true, false] {
        let login = Login::Token {
            user: Some(("ann".into(), "pw".into())),
            identity_token: Some("refresh+me".into()),
            knows_post,
            life: Duration::from_secs(300),
            told_life: None,
        };
        let hub = Hub::start(Manners { login, ..Manners::default() });
        hub.seed(&image(), "team/x:1");
        let token = |text: &str| Credentials::IdentityToken { username: None, token: Secret::new(text) };
        try_manifest(&hub, as_user(token("refresh+me"))).expect("known");
        let methods: Vec<String> = hub.seen(Part::Auth, "/token").into_iter().map(|seen| seen.method).collect();
        assert_eq!(methods, if knows_post { vec!["POST"] } else { vec!["POST", "GET"] });
        let error = try_manifest(&hub, as_user(token("other"))).expect_err("unknown");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{}", story(&error));
        assert!(!story(&error).contains("other"));
    }
}

#[test]
fn a_ready_token_is_used_as_it_is() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    hub.seed(&image(), "team/x:1");
    // The first client's token, which the fake numbers.
    try_manifest(&hub, options()).expect("a token was given out");
    hub.clear_log();
    try_manifest(&hub, as_user(Credentials::RegistryToken(Secret::new("token-1")))).expect("good");
    assert!(hub.seen(Part::Auth, "").is_empty());
    let error = try_manifest(&hub, as_user(Credentials::RegistryToken(Secret::new("stale")))).expect_err("bad");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(hub.seen(Part::Auth, "").is_empty());
}

#[test]
fn a_challenge_told_at_the_base_only_is_found() {
    let hub = Hub::start(Manners { hides_challenge: true, ..Manners::docker_hub(Duration::from_secs(300)) });
    hub.seed(&image(), "team/x:1");
    let client = client(&hub, "team/x:1", options());
    let name = reference(&hub.reference("team/x:1"));
    run(async {
        client.resolve_manifest(&name).await.expect("resolved");
        hub.expire_tokens();
        client.resolve_manifest(&name).await.expect("renewed with the challenge of before");
    });
    assert_eq!(hub.log().iter().filter(|seen| seen.path == "/v2/").count(), 1);
}

#[test]
fn a_session_saves_the_next_process_the_dance() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    hub.seed(&image(), "team/x:1");
    let digest = hub.add_blob(noise(1000));
    let first = client(&hub, "team/x:1", options());
    run(first.resolve_manifest(&reference(&hub.reference("team/x:1")))).expect("resolved");
    let json = serde_json::to_string(&first.session()).expect("it travels");
    assert!(!format!("{:?}", first.session()).contains("token-1"));
    hub.clear_log();

    let session: Session = serde_json::from_str(&json).expect("it arrives");
    let second = client(&hub, "team/x", ClientOptions { session: Some(session), ..options() });
    run(fetch(&second, source(digest, 1000))).expect("fetched");
    let log = hub.log();
    assert_eq!(log.len(), 2, "the API and the store: {log:?}");
    // It can also renew what it was given.
    hub.expire_tokens();
    run(fetch(&second, source(digest, 1000))).expect("renewed");
}

#[test]
fn a_token_server_that_refuses_is_told_about_the_image() {
    let body = r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
    for status in [401, 403] {
        let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
        hub.misbehave(Fault::always(At::Token, Misdeed::Status { status, headers: vec![], body: body.into() }));
        let error = try_manifest(&hub, options()).expect_err("refused");
        let expected = "denied: requested access to the resource is denied";
        assert_eq!(error.to_string(), format!("Error reading manifest 1 in {}/team/x: {expected}", hub.host()));
    }
}

#[test]
fn bad_token_servers_are_told() {
    let huge = Misdeed::Status { status: 200, headers: vec![], body: " ".repeat(70 << 10) };
    let junk = Misdeed::Status { status: 200, headers: vec![], body: "<html>hunter2</html>".into() };
    let cases = [
        (huge, ErrorKind::LimitExceeded),
        (junk, ErrorKind::Corrupt),
        (Misdeed::Endless, ErrorKind::LimitExceeded),
        (Misdeed::status(404), ErrorKind::NotFound),
        (Misdeed::status(503), ErrorKind::Unavailable),
    ];
    for (misdeed, kind) in cases {
        let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
        hub.seed(&image(), "team/x:1");
        hub.misbehave(Fault::always(At::Token, misdeed.clone()));
        let error = try_manifest(&hub, options()).expect_err("no token");
        assert_eq!(error.kind(), kind, "{misdeed:?}: {}", story(&error));
        assert!(!story(&error).contains("hunter2"));
    }
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    hub.seed(&image(), "team/x:1");
    hub.misbehave(Fault::times(2, At::Token, Misdeed::status(503)));
    try_manifest(&hub, options()).expect("its bad days are waited out, too");
}
