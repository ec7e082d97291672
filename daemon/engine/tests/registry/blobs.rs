//! Blobs that break off, lie about their length, stall or never end.

use std::{
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use sctl_common::{Digest, ErrorKind};
use sctl_engine::registry::{BlobSource, ClientOptions, Notice, RegistryError};
use sctl_tests::hub::{At, Fault, Hub, Manners, Misdeed, Part, Ranges};

use crate::{client, fetch, listening, noise, options, run, source, story};

const LEN: usize = 3 << 20;

/// Fetches `LEN` bytes from a registry with `manners` and `faults`.
fn fetch_from(manners: Manners, faults: &[Fault]) -> (Hub, Result<(), RegistryError>) {
    let hub = Hub::start(manners);
    let bytes = noise(LEN);
    let digest = hub.add_blob(bytes.clone());
    faults.iter().for_each(|fault| hub.misbehave(fault.clone()));
    let result = run(fetch(&client(&hub, "a/b", options()), source(digest, LEN)));
    (hub, result.map(|got| assert!(got == bytes, "other bytes")))
}

#[test]
fn a_blob_comes_as_it_is() {
    fetch_from(Manners::default(), &[]).1.expect("fetched");
    fetch_from(Manners::docker_hub(Duration::from_secs(300)), &[]).1.expect("fetched");
    let hub = Hub::start(Manners::default());
    let empty = run(fetch(&client(&hub, "a/b", options()), source(Digest::of(b""), 0)));
    assert_eq!(empty.expect("nothing is soon fetched"), b"");
}

#[test]
fn breaks_are_resumed_whatever_the_registry_thinks_of_ranges() {
    for ranges in [Ranges::Honoured, Ranges::Ignored, Ranges::Shifted, Ranges::Refused] {
        for redirects_blobs in [false, true] {
            let manners = Manners { ranges, redirects_blobs, ..Manners::default() };
            let breaks = [
                Fault::times(1, At::Blob, Misdeed::BreakAfter(1 << 20)),
                Fault::times(1, At::Blob, Misdeed::BreakAfter(1_500_000)),
                Fault::times(1, At::Blob, Misdeed::BreakAfter(0)),
            ];
            let (hub, result) = fetch_from(manners, &breaks);
            result.unwrap_or_else(|error| panic!("{ranges:?}: {}", story(&error)));
            let part = if redirects_blobs { Part::Store } else { Part::Api };
            let ranged = hub.seen(part, "").iter().filter(|seen| seen.header("range").is_some()).count();
            assert!(ranged > 0, "{ranges:?}: nothing was resumed");
        }
    }
}

#[test]
fn resuming_asks_the_registry_and_not_the_old_url() {
    let manners = Manners { redirects_blobs: true, ..Manners::default() };
    let (hub, result) = fetch_from(manners, &[Fault::times(1, At::Blob, Misdeed::BreakAfter(2 << 20))]);
    result.expect("fetched");
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 2);
    let parts = hub.seen(Part::Store, "");
    assert_eq!(parts.len(), 2);
    // How much arrived before the break is up to the network.
    let begin: u64 = parts[1].header("range").unwrap()["bytes=".len()..].trim_end_matches('-').parse().unwrap();
    assert!(begin > 0 && begin <= 2 << 20, "resumed at {begin}");
    assert_eq!(parts[1].status, 206);
}

#[test]
fn a_body_that_always_breaks_at_the_same_place_is_given_up() {
    let manners = Manners { ranges: Ranges::Ignored, ..Manners::default() };
    let (hub, result) = fetch_from(manners, &[Fault::always(At::Blob, Misdeed::BreakAfter(100))]);
    let error = result.expect_err("no end in sight");
    assert!(matches!(error, RegistryError::Interrupted { received: 100, .. }), "{}", story(&error));
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 4);
}

#[test]
fn progress_gives_patience_back() {
    // Ten breaks are more than the attempts, but each brought a mebibyte.
    let breaks: Vec<Fault> = (1..=9).map(|_| Fault::times(1, At::Blob, Misdeed::BreakAfter(1_100_000))).collect();
    let hub = Hub::start(Manners::default());
    let bytes = noise(11 << 20);
    let digest = hub.add_blob(bytes.clone());
    breaks.into_iter().for_each(|fault| hub.misbehave(fault));
    let got = run(fetch(&client(&hub, "a/b", options()), source(digest, bytes.len())));
    assert!(got.expect("fetched") == bytes);
}

#[test]
fn wrong_lengths_are_survived_or_told() {
    // Too large: the connection closes with all bytes sent.
    fetch_from(Manners::default(), &[Fault::always(At::Blob, Misdeed::LengthOffBy(10))]).1.expect("survived");
    // Too small: the rest can be had by a range.
    fetch_from(Manners::default(), &[Fault::times(1, At::Blob, Misdeed::LengthOffBy(-10))]).1.expect("survived");
    // Too small, always, and no ranges: that is another size than promised.
    let manners = Manners { ranges: Ranges::Ignored, ..Manners::default() };
    let error = fetch_from(manners, &[Fault::always(At::Blob, Misdeed::LengthOffBy(-10))]).1.expect_err("told");
    assert!(
        matches!(error, RegistryError::WrongSize { expected, found, .. } if expected == LEN as u64 && found == LEN as u64 - 10),
        "{}",
        story(&error)
    );
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn another_size_than_promised_is_told() {
    for (promised, got) in [(1000, 999), (1000, 1001), (10, 3 << 20)] {
        for ranges in [Ranges::Honoured, Ranges::Ignored, Ranges::Refused] {
            let hub = Hub::start(Manners { ranges, ..Manners::default() });
            let digest = hub.add_blob(noise(got));
            let error = run(fetch(&client(&hub, "a/b", options()), source(digest, promised))).expect_err("told");
            assert!(matches!(error, RegistryError::WrongSize { .. }), "{promised} {got} {ranges:?}: {}", story(&error));
        }
    }
}

#[test]
fn an_endless_body_ends_at_its_size() {
    let (_hub, result) = fetch_from(Manners::default(), &[Fault::always(At::Blob, Misdeed::Endless)]);
    let error = result.expect_err("more than promised");
    assert!(matches!(error, RegistryError::WrongSize { .. }), "{}", story(&error));
    assert!(error.to_string().ends_with("got more"), "{error}");
}

#[test]
fn wrong_bytes_are_never_the_last_ones() {
    let hub = Hub::start(Manners::default());
    let bytes = noise(LEN);
    let digest = hub.add_blob(bytes);
    hub.misbehave(Fault::always(At::Blob, Misdeed::WrongByte));
    let client = client(&hub, "a/b", options());
    let (seen, error) = run(async {
        let mut stream = client.fetch_blob(source(digest, LEN));
        let mut seen = 0;
        loop {
            match stream.next().await {
                Ok(Some(chunk)) => seen += chunk.len(),
                Ok(None) => panic!("accepted"),
                Err(error) => return (seen, error),
            }
        }
    });
    assert!(matches!(error, RegistryError::WrongDigest { expected, .. } if expected == digest));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(seen < LEN, "the last chunk was handed out");
}

#[test]
fn silence_is_broken_off_and_resumed() {
    let started = Instant::now();
    let (hub, result) = fetch_from(Manners::default(), &[Fault::times(1, At::Blob, Misdeed::Silence(1 << 20))]);
    result.expect("resumed");
    assert!(started.elapsed() < Duration::from_secs(5), "waited {:?}", started.elapsed());
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 2);
}

#[test]
fn slow_is_not_silent() {
    let slow = Misdeed::Slow { piece: 400_000, pause: Duration::from_millis(100) };
    let (hub, result) = fetch_from(Manners::default(), &[Fault::always(At::Blob, slow)]);
    result.expect("fetched");
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 1);
}

#[test]
fn a_trickle_is_as_good_as_silence() {
    let trickle = Misdeed::Slow { piece: 10, pause: Duration::from_millis(100) };
    let (hub, result) = fetch_from(Manners::default(), &[Fault::always(At::Blob, trickle)]);
    let error = result.expect_err("nobody waits for that");
    assert!(matches!(error, RegistryError::Interrupted { .. }), "{}", story(&error));
    assert!(story(&error).contains("trickle"), "{}", story(&error));
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 4);
}

#[test]
fn bad_days_of_a_server_are_waited_out() {
    for status in [408, 429, 499, 500, 502, 503, 504, 522] {
        let (hub, result) = fetch_from(Manners::default(), &[Fault::times(2, At::Blob, Misdeed::status(status))]);
        result.unwrap_or_else(|error| panic!("{status}: {}", story(&error)));
        assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 3, "{status}");
    }
    let (hub, result) = fetch_from(Manners::default(), &[Fault::always(At::Blob, Misdeed::status(503))]);
    let error = result.expect_err("too many bad days");
    assert!(matches!(error, RegistryError::Status { status: 503, .. }), "{}", story(&error));
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 4);
    let (hub, result) = fetch_from(Manners::default(), &[Fault::times(2, At::Blob, Misdeed::HangUp)]);
    result.expect("hanging up is forgiven");
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 3);
    let (hub, result) = fetch_from(Manners::default(), &[Fault::times(1, At::Blob, Misdeed::status(418))]);
    assert!(matches!(result, Err(RegistryError::Status { status: 418, .. })));
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 1);
}

#[test]
fn retry_after_is_obeyed_in_both_forms() {
    for as_date in [false, true] {
        let in_two_seconds = std::time::SystemTime::now() + Duration::from_secs(2);
        let value = if as_date { httpdate::fmt_http_date(in_two_seconds) } else { "1".to_owned() };
        let hub = Hub::start(Manners::default());
        let digest = hub.add_blob("x");
        hub.misbehave(Fault::times(1, At::Blob, Misdeed::retry_after(429, &value)));
        let (options, heard) = listening(options());
        let started = Instant::now();
        run(fetch(&client(&hub, "a/b", options), source(digest, 1))).expect("fetched after the wait");
        // The date has whole seconds, so up to one of its two is lost.
        assert!(started.elapsed() >= Duration::from_millis(900), "{value}: {:?}", started.elapsed());
        let heard = heard.lock().unwrap();
        let told = heard.iter().find(|notice| matches!(notice, Notice::Retry { .. })).expect("told");
        assert!(told.to_string().contains("You have reached your pull rate limit"), "{told}");
    }
}

#[test]
fn a_wish_for_hours_is_told_and_not_granted() {
    let started = Instant::now();
    let (hub, result) = fetch_from(Manners::default(), &[Fault::always(At::Blob, Misdeed::retry_after(429, "21600"))]);
    let error = result.expect_err("nobody waits for hours");
    assert_eq!(error.kind(), ErrorKind::RateLimited);
    let text = error.to_string();
    assert!(text.contains("toomanyrequests: You have reached your pull rate limit."), "{text}");
    assert!(text.contains("https://www.docker.com/increase-rate-limits"), "{text}");
    assert!(text.contains("21600 s"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 1);
}

#[test]
fn an_expired_signature_is_renewed_at_the_registry() {
    let manners = Manners { redirects_blobs: true, ..Manners::default() };
    let (hub, result) = fetch_from(manners, &[Fault::times(1, At::Blob, Misdeed::status(403))]);
    result.expect("the second URL is fresh");
    assert_eq!(hub.seen(Part::Api, "/blobs/").len(), 2);
}

#[test]
fn a_missing_blob_is_told() {
    let hub = Hub::start(Manners::default());
    let error = run(fetch(&client(&hub, "a/b", options()), source(Digest::of(b"nowhere"), 7))).expect_err("told");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("blob unknown"), "{error}");
    assert_eq!(hub.log().iter().filter(|seen| seen.status == 404).count(), 1, "404 is final");
}

#[test]
fn foreign_layers_come_from_their_urls_without_authorisation() {
    let hub = Hub::start(Manners::docker_hub(Duration::from_secs(300)));
    let elsewhere = Hub::start(Manners::default());
    let bytes = noise(100_000);
    let digest = elsewhere.add_blob(bytes.clone());
    let url = |host: String| format!("http://{host}/v2/x/blobs/{digest}");
    let urls = vec![url("127.0.0.1:1".into()).replace("/v2", "/nowhere"), url(elsewhere.host())];
    let source = BlobSource { urls, ..source(digest, bytes.len()) };
    // The first URL leads nowhere; what is refused there is not asked again.
    let reachable = BlobSource { urls: source.urls[1..].to_vec(), ..source.clone() };
    let got = run(fetch(&client(&hub, "a/b", options()), reachable)).expect("fetched elsewhere");
    assert!(got == bytes);
    let seen = elsewhere.seen(Part::Api, "/blobs/");
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].is_authorised());
    assert_eq!(hub.seen(Part::Api, "/blobs/").last().unwrap().status, 404, "the registry was asked first");
    let got = run(fetch(&client(&hub, "a/b", options()), source)).expect("the second URL has it");
    assert!(got == bytes);
}

#[test]
fn a_reader_on_another_thread_sees_the_blob_or_an_error() {
    let hub = Hub::start(Manners::default());
    let bytes = noise(LEN);
    let digest = hub.add_blob(bytes.clone());
    let client = client(&hub, "a/b", options());
    let read_all = |expect: usize| {
        let mut reached = 0;
        let (mut reader, transfer) =
            client.fetch_blob(source(digest, expect)).into_reader(256 << 10, |received| reached = received);
        let thread = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).map(|_| got)
        });
        let result = run(transfer);
        (result, thread.join().expect("no panic"), reached)
    };
    let (result, got, reached) = read_all(LEN);
    assert_eq!(result.expect("transferred"), LEN as u64);
    assert!(got.expect("read") == bytes);
    assert_eq!(reached, LEN as u64);

    // A wrong end is an error for both sides, never an early end of file.
    let (result, got, _) = read_all(LEN - 1);
    assert!(matches!(result, Err(RegistryError::WrongSize { .. })));
    assert!(got.is_err());
}

#[test]
fn readers_and_transfers_notice_when_the_other_leaves() {
    let hub = Hub::start(Manners::default());
    let digest = hub.add_blob(noise(LEN));
    let client = client(&hub, "a/b", options());
    let (mut reader, transfer) = client.fetch_blob(source(digest, LEN)).into_reader(64 << 10, |_| {});
    let thread = std::thread::spawn(move || {
        let mut some = [0; 1000];
        reader.read_exact(&mut some)
    });
    assert!(matches!(run(transfer), Err(RegistryError::Cancelled)));
    thread.join().expect("no panic").expect("the first bytes came");

    // Also while the server is silent.
    hub.misbehave(Fault::times(1, At::Blob, Misdeed::Silence(1000)));
    let patient = crate::client(&hub, "a/b", ClientOptions::default());
    let (mut reader, transfer) = patient.fetch_blob(source(digest, LEN)).into_reader(64 << 10, |_| {});
    let thread = std::thread::spawn(move || {
        let mut some = [0; 1000];
        reader.read_exact(&mut some)
    });
    let started = Instant::now();
    assert!(matches!(run(transfer), Err(RegistryError::Cancelled)));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    thread.join().expect("no panic").expect("the first bytes came");

    let (mut reader, transfer) = client.fetch_blob(source(digest, LEN)).into_reader(64 << 10, |_| {});
    run(async {
        let limited = tokio::time::timeout(Duration::from_millis(50), transfer);
        // Nobody reads, so it cannot end by itself.
        assert!(limited.await.is_err());
    });
    let mut rest = Vec::new();
    let error = reader.read_to_end(&mut rest).expect_err("the transfer was dropped");
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert!(rest.len() < LEN);
}

/// Not a test of behaviour: prints how fast a large blob comes through,
/// beside `curl`. Run it with `--release -- --ignored --nocapture throughput`.
#[test]
#[ignore = "a measurement"]
fn throughput_beside_curl() {
    const BIG: usize = 600 << 20;
    let scratch = tempfile::tempdir().expect("a folder");
    let path = scratch.path().join("blob");
    let mut file = std::fs::File::create(&path).expect("create");
    let piece = noise(4 << 20);
    let mut hash = sctl_common::Sha256::new();
    for _ in 0..BIG / piece.len() {
        file.write_all(&piece).expect("write");
        hash.update(&piece);
    }
    let digest = hash.finish();
    let hub = Hub::start(Manners::default());
    hub.add_blob_file(digest, &path);
    let client = client(&hub, "a/b", ClientOptions::default());
    let url = format!("http://{}/v2/a/b/blobs/{digest}", hub.host());
    let rate = |started: Instant| BIG as f64 / 1e6 / started.elapsed().as_secs_f64();
    for round in 1..=4 {
        let started = Instant::now();
        let status = std::process::Command::new("curl").args(["-s", "-o", "/dev/null", &url]).status().expect("curl");
        assert!(status.success());
        let curl = rate(started);
        let started = Instant::now();
        let (mut reader, transfer) =
            client.fetch_blob(source(digest, BIG)).into_reader(sctl_engine::registry::DEFAULT_PIPE_BYTES, |_| {});
        let thread = std::thread::spawn(move || {
            use std::io::BufRead as _;
            loop {
                let len = reader.fill_buf().expect("read").len();
                if len == 0 {
                    return;
                }
                reader.consume(len);
            }
        });
        run(transfer).expect("transferred");
        thread.join().expect("no panic");
        let ours = rate(started);
        println!("round {round}: curl {curl:.0} MB/s, ours with sha256 {ours:.0} MB/s, ratio {:.2}", ours / curl);
    }
}
