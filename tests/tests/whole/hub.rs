//! A registry with the manners of Docker Hub: redirects that hate our token,
//! tokens that die in mid-pull, rate limits, bodies that break off.

use std::{fs, process::Output, time::Duration};

use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    hub::{At, Fault, Hub, Manners, Misdeed, Part},
    programs::{Scratch, have_root, stderr},
};

struct Place {
    daemon: Daemon,
    user: User,
    scratch: Scratch,
    hub: Hub,
}

impl Place {
    fn new(manners: Manners) -> Self {
        let hub = Hub::start(manners);
        hub.seed(&debian::layered(), "library/layered:1");
        Self { daemon: Daemon::system(""), user: User::a(), scratch: Scratch::new(), hub }
    }

    fn pull(&self) -> Output {
        let folder = self.user.folder(&self.scratch, "out");
        let uri = format!("docker://{}", self.hub.reference("library/layered:1"));
        self.daemon
            .sctl(&self.user)
            .current_dir(folder)
            .args(["pull", "--no-https", "--force", "x.sif", &uri])
            .output()
            .expect("run sctl")
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
    let place = Place::new(Manners::docker_hub(Duration::from_secs(5)));
    // Slow enough that the first token is dead before the last blob begins.
    place.hub.misbehave(Fault::times(1, At::Blob, Misdeed::Slow { piece: 2 << 20, pause: Duration::from_millis(300) }));
    place.hub.misbehave(Fault::times(1, At::Blob, Misdeed::BreakAfter(4 << 20)));
    place.assert_pulled("five-second tokens");
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
