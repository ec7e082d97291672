//! A registry with the manners of Docker Hub: redirects that hate our token,
//! tokens that die in mid-pull, rate limits, bodies that break off.

use std::{
    fs,
    process::{Child, Output, Stdio},
    time::Duration,
};

use sctl_common::Digest;
use sctl_tests::{
    corpus::pseudo_random,
    daemon::{Daemon, User},
    debian,
    hub::{At, Fault, Hub, Login, Manners, Misdeed, Part, Seen},
    image::Image,
    layer::{BlobCompression, Entry, Layer},
    programs::{Scratch, have_root, stderr, wait_until},
};

struct Place {
    daemon: Daemon,
    user: User,
    scratch: Scratch,
    hub: Hub,
}

impl Place {
    fn new(manners: Manners) -> Self {
        Self::holding(manners, &debian::layered())
    }

    fn holding(manners: Manners, image: &Image) -> Self {
        let hub = Hub::start(manners);
        hub.seed(image, "library/image:1");
        Self { daemon: Daemon::system(""), user: User::a(), scratch: Scratch::new(), hub }
    }

    fn pull(&self) -> Output {
        let folder = self.user.folder(&self.scratch, "out");
        let uri = format!("docker://{}", self.hub.reference("library/image:1"));
        self.daemon.pull(&self.user, &folder, &["--force", "x.sif", &uri])
    }

    fn assert_pulled(&self, name: &str) {
        let output = self.pull();
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        fs::metadata(self.scratch.join("out/x.sif")).expect("the SIF is there");
    }

    fn assert_refused(&self, name: &str, words: &[&str]) {
        let output = self.pull();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(255), "{name}: {text}");
        for word in words {
            assert!(text.to_lowercase().contains(&word.to_lowercase()), "{name}: {word:?} is not in: {text}");
        }
        assert_eq!(fs::read_dir(self.scratch.join("out")).expect("read the folder").count(), 0, "{name}");
        assert_eq!(self.daemon.leftovers(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn privileged_docker_hubs_manners_are_survived() {
    if !have_root("privileged_docker_hubs_manners_are_survived") {
        return;
    }
    let place = Place::new(Manners::docker_hub(Duration::from_secs(300)));
    place.assert_pulled("redirects and tokens");
    let stored = place.hub.seen(Part::Store, "");
    assert!(!stored.is_empty(), "blobs came from the object store");
    assert!(stored.iter().all(|seen| !seen.is_authorised()), "our token went to another host");
}

#[test]
fn privileged_faults_that_pass_are_survived() {
    if !have_root("privileged_faults_that_pass_are_survived") {
        return;
    }
    let cases: Vec<(&str, Fault)> = vec![
        ("a body that breaks off", Fault::times(1, At::Blob, Misdeed::BreakAfter(1 << 20))),
        ("three bodies that break off", Fault::times(3, At::Blob, Misdeed::BreakAfter(8 << 20))),
        ("a wait is asked for", Fault::times(2, At::Manifest, Misdeed::retry_after(429, "1"))),
        ("a wait is asked for a blob", Fault::times(1, At::BlobApi, Misdeed::retry_after(429, "1"))),
        ("a server that is down for a moment", Fault::times(1, At::Manifest, Misdeed::status(503))),
        ("a connection closed without a reply", Fault::times(1, At::Blob, Misdeed::HangUp)),
        ("a length that is too small", Fault::times(1, At::Blob, Misdeed::LengthOffBy(-100))),
        ("a token server that is down for a moment", Fault::times(1, At::Token, Misdeed::status(502))),
    ];
    for (name, fault) in cases {
        let place = Place::new(Manners::docker_hub(Duration::from_secs(300)));
        place.hub.misbehave(fault);
        place.assert_pulled(name);
    }
}

#[test]
fn privileged_tokens_that_die_in_mid_pull_are_renewed() {
    if !have_root("privileged_tokens_that_die_in_mid_pull_are_renewed") {
        return;
    }
    let layer = Layer::new(&[Entry::file("data", pseudo_random(4 << 20, 1))]).stored(BlobCompression::None);
    let digest = Digest::of(&layer.tar);
    let image = Image::new(vec![layer]);
    let cases = [
        // The first blob that is fetched is the config.
        ("between two blobs", Fault::times(1, At::Blob, Misdeed::TokensDie(u64::MAX)), false),
        ("in the middle of a blob", Fault::times(1, At::BlobOf(digest), Misdeed::TokensDie(1 << 20)), true),
    ];
    for (name, fault, is_resumed) in cases {
        // What is told of their life says nothing of their early death.
        let place = Place::holding(Manners::docker_hub(Duration::from_secs(300)), &image);
        place.hub.misbehave(fault);
        place.assert_pulled(name);
        let log = place.hub.log();
        let token = |seen: &Seen| seen.header("authorization").map(str::to_owned);
        let asked: Vec<&Seen> = log.iter().filter(|seen| seen.part == Part::Api && seen.is_authorised()).collect();
        let refused = asked.iter().position(|seen| seen.status == 401);
        let refused = refused.unwrap_or_else(|| panic!("{name}: no token was refused: {asked:#?}"));
        let dead = token(asked[refused]);
        let was_good = asked[..refused].iter().any(|seen| token(seen) == dead && seen.status < 400);
        assert!(was_good, "{name}: the refused token had never been good");
        let blob = format!("/blobs/{digest}");
        let renewed = asked[refused..].iter().any(|seen| {
            seen.path.ends_with(&blob) && seen.status == 307 && token(seen).is_some_and(|new| Some(new) != dead)
        });
        assert!(renewed, "{name}: the layer did not come by another token: {asked:#?}");
        let stored = place.hub.seen(Part::Store, &digest.hex());
        let ranges: Vec<bool> = stored.iter().map(|seen| seen.header("range").is_some()).collect();
        assert_eq!(ranges, if is_resumed { vec![false, true] } else { vec![false] }, "{name}: {stored:#?}");
    }
}

#[test]
fn privileged_faults_that_stay_are_told() {
    if !have_root("privileged_faults_that_stay_are_told") {
        return;
    }
    let cases: Vec<(&str, Fault, &[&str])> = vec![
        ("another byte", Fault::always(At::Blob, Misdeed::WrongByte), &["digest"]),
        ("a body without end", Fault::always(At::Blob, Misdeed::Endless), &["size"]),
        ("the rate limit", Fault::always(At::Manifest, Misdeed::retry_after(429, "86400")), &["pull rate limit"]),
        ("no manifest", Fault::always(At::Manifest, Misdeed::status(404)), &["manifest unknown"]),
        ("a redirect loop", Fault::always(At::BlobApi, Misdeed::RedirectToItself), &["redirect"]),
    ];
    for (name, fault, words) in cases {
        let place = Place::new(Manners::docker_hub(Duration::from_secs(300)));
        place.hub.misbehave(fault);
        place.assert_refused(name, words);
    }
}

#[test]
fn privileged_who_waited_for_anothers_refused_work_does_it_again() {
    if !have_root("privileged_who_waited_for_anothers_refused_work_does_it_again") {
        return;
    }
    let login = |user: &str| Login::Basic { user: user.to_owned(), password: format!("word of {user}") };
    let hub = Hub::start(Manners { login: login("alice"), ..Manners::default() });
    let layer = |name: &str| Layer::new(&[Entry::file(name, vec![7; 3 << 20])]).stored(BlobCompression::None);
    hub.seed(&Image::new(vec![layer("one"), layer("two")]), "private/image:1");
    let uri = format!("docker://{}", hub.reference("private/image:1"));
    // One layer after the other, each slow enough for all that follows.
    let daemon = Daemon::system("max_layer_jobs = 1\n[log]\nlevel = \"debug\"\n");
    hub.misbehave(Fault::always(At::Blob, Misdeed::Slow { piece: 64 << 10, pause: Duration::from_millis(100) }));
    let scratch = Scratch::new();
    let (alice, bob) = (User::a(), User::b());
    let start = |user: &User, name: &str| -> Child {
        let mut command = daemon.pulling(user, &user.folder(&scratch, name), &["x.sif", &uri]);
        command.env("SINGULARITY_DOCKER_USERNAME", name).env("SINGULARITY_DOCKER_PASSWORD", format!("word of {name}"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start sctl")
    };
    let blob_gets = || {
        let gets = hub.seen(Part::Api, "/blobs/").into_iter();
        gets.filter(|seen| seen.status == 200).count()
    };
    let first = start(&alice, "alice");
    wait_until("the config and a layer are asked for", Duration::from_secs(20), || blob_gets() >= 2);
    // From now on the registry knows bob, and alice no more.
    hub.change(|manners| manners.login = login("bob"));
    hub.behave();
    let second = start(&bob, "bob");
    let first = first.wait_with_output().expect("wait for the first client");
    assert_eq!(first.status.code(), Some(255), "{}", stderr(&first));
    assert!(stderr(&first).contains("authentication required"), "{}", stderr(&first));
    let second = second.wait_with_output().expect("wait for the second client");
    assert!(second.status.success(), "{}", stderr(&second));
    assert!(scratch.join("bob/x.sif").exists() && !scratch.join("alice/x.sif").exists());
    assert!(daemon.log().contains("somebody else's work failed: doing it again"), "bob never waited for alice's work");
}
