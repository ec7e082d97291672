//! The gRPC service with an engine of the test's own.

use std::time::Duration;

use sctl_common::{Digest, ErrorKind};
use sctl_daemon::Ended;
use sctl_engine::{Failure, Notice, NoticeLevel, PullEvent, Stage};
use sctl_proto::{from_status, v1};

use super::fake::{Fake, Served, TICKET, client, key, wait_until};

fn done() -> PullEvent {
    PullEvent::Done {
        ticket: TICKET,
        manifest: Digest::of(b"m"),
        size: 9,
        fetched_bytes: 5,
        reused_bytes: 4,
        path: "/cache/x.sif".into(),
        image_cached: false,
        key: None,
    }
}

fn request(reference: &str) -> v1::PullRequest {
    v1::PullRequest { reference: reference.to_owned(), ..Default::default() }
}

#[test]
fn version_tells_who_answers() {
    let served = Served::start(Fake::default(), None);
    let (runtime, mut client) = client(&served.socket());
    let version = runtime.block_on(client.version(v1::VersionRequest {})).unwrap().into_inner();
    assert_eq!(version.version, env!("CARGO_PKG_VERSION"));
    assert!(version.user_mode);
    assert_eq!((version.protocol, version.pid), (sctl_proto::PROTOCOL_VERSION, std::process::id()));
}

#[test]
fn events_arrive_in_order() {
    use v1::pull_event::Kind;
    let digest = Some(Digest::of(b"layer"));
    let script = vec![
        Ok(PullEvent::Notice(Notice { level: NoticeLevel::Warning, text: "careful".to_owned() })),
        Ok(PullEvent::Progress { stage: Stage::Fetch, digest, done_bytes: 1, total_bytes: Some(2), finished: false }),
        Ok(done()),
    ];
    let served = Served::start(Fake { script, ..Fake::default() }, None);
    let (runtime, mut client) = client(&served.socket());
    let events: Vec<Kind> = runtime.block_on(async {
        let mut stream = client.pull(request("ubuntu")).await.unwrap().into_inner();
        let mut events = Vec::new();
        while let Some(event) = stream.message().await.unwrap() {
            events.push(event.kind.unwrap());
        }
        events
    });
    match &events[..] {
        [Kind::Notice(notice), Kind::Progress(progress), Kind::Done(done)] => {
            assert_eq!((notice.level(), notice.text.as_str()), (v1::Level::Warning, "careful"));
            assert_eq!((progress.stage(), progress.done_bytes, progress.total_bytes), (v1::Stage::Fetch, 1, 2));
            assert_eq!(progress.digest, Digest::of(b"layer").to_string());
            assert_eq!((done.ticket.as_slice(), done.size), (&TICKET.0[..], 9));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(served.calls(), ["pull docker.io/library/ubuntu:latest"]);
    let caller = served.engine.calls.lock().unwrap()[0].0;
    assert_eq!(caller.uid, rustix::process::geteuid().as_raw(), "from the socket");
}

#[test]
fn a_failure_keeps_its_details() {
    let mut failure = Failure::new(ErrorKind::RateLimited, "too many").hint("wait");
    failure.causes.push("429".to_owned());
    failure.retry_after_seconds = Some(60);
    let served = Served::start(Fake { script: vec![Err(failure)], ..Fake::default() }, None);
    let (runtime, mut client) = client(&served.socket());
    let status = runtime
        .block_on(async { client.pull(request("ubuntu")).await.unwrap().into_inner().message().await.unwrap_err() });
    let detail = from_status(&status);
    assert_eq!((detail.kind, detail.message.as_str()), (ErrorKind::RateLimited, "too many"));
    assert_eq!((detail.causes, detail.hint.as_str()), (vec!["429".to_owned()], "wait"));
    assert_eq!(detail.retry_after_seconds, 60);
}

#[test]
fn a_wrong_request_never_reaches_the_engine() {
    let served = Served::start(Fake::default(), None);
    let (runtime, mut client) = client(&served.socket());
    let status = runtime.block_on(client.pull(request("Not A Reference"))).unwrap_err();
    let detail = from_status(&status);
    assert_eq!(detail.kind, ErrorKind::InvalidInput);
    assert!(detail.message.starts_with("reference"), "{}", detail.message);
    let huge = v1::PullRequest { reference: "x".repeat(1 << 20), ..Default::default() };
    assert!(runtime.block_on(client.pull(huge)).is_err());
    assert_eq!(served.calls(), [""; 0]);
}

#[test]
fn leaving_a_pull_tells_the_engine() {
    let served = Served::start(Fake { hangs: true, ..Fake::default() }, None);
    let (runtime, mut client) = client(&served.socket());
    let stream = runtime.block_on(client.pull(request("ubuntu"))).unwrap();
    wait_until("the pull runs", || *served.engine.active.lock().unwrap() == 1);
    drop(stream);
    runtime.block_on(async {
        // The reset has to be sent.
        let _ = client.version(v1::VersionRequest {}).await;
    });
    wait_until("the engine hears of it", || *served.engine.left.lock().unwrap() == 1);
    let stream = runtime.block_on(client.pull(request("ubuntu"))).unwrap();
    drop((runtime, client));
    wait_until("a lost connection counts too", || *served.engine.left.lock().unwrap() == 2);
    drop(stream);
}

#[test]
fn cache_calls_are_passed_on() {
    let served = Served::start(Fake::default(), None);
    let (runtime, mut client) = client(&served.socket());
    runtime.block_on(async {
        assert!(client.cache_list(v1::CacheListRequest {}).await.unwrap().into_inner().entries.is_empty());
        let info = client.cache_info(v1::CacheInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.images, info.path.as_str(), info.user_mode), (3, "/cache", true));
        let status = client.cache_clean(v1::CacheCleanRequest { dry_run: true }).await.unwrap_err();
        assert_eq!(from_status(&status).kind, ErrorKind::Denied);
    });
    assert_eq!(served.calls(), ["list", "info", "clean true"]);
}

#[test]
fn administrators_calls_are_passed_on() {
    use v1::{admin_jobs_reply::Work, admin_unmount_request::What};
    let served = Served::start(Fake::default(), None);
    let (runtime, mut client) = client(&served.socket());
    runtime.block_on(async {
        let mounts = client.admin_mounts(v1::AdminMountsRequest {}).await.unwrap().into_inner().mounts;
        let [mount] = &mounts[..] else { panic!("{mounts:?}") };
        assert_eq!((mount.image_key.clone(), mount.loop_device.as_str()), (key().to_string(), "loop7"));
        assert_eq!((mount.private_for, mount.last_attach, mount.held_by_clients), (Some(1000), 0, true));
        let leases = client.admin_leases(v1::AdminLeasesRequest {}).await.unwrap().into_inner().leases;
        // Root's is not everybody's, and one that still holds is not over.
        let seen: Vec<_> = leases.iter().map(|lease| (lease.uid, lease.remaining_seconds)).collect();
        assert_eq!(seen, [(None, 1), (Some(0), 1)]);
        let jobs = client.admin_jobs(v1::AdminJobsRequest {}).await.unwrap().into_inner().jobs;
        let [job] = &jobs[..] else { panic!("{jobs:?}") };
        assert_eq!((job.pid, job.work(), job.layer, job.layers), (9, Work::Layer, 2, 3));
        assert_eq!((job.running_seconds, job.done_bytes, job.total_bytes), (1, 4, 0));
        let mut unmount = async |what| {
            let status = client.admin_unmount(v1::AdminUnmountRequest { what }).await.unwrap_err();
            from_status(&status).kind
        };
        assert_eq!(unmount(Some(What::Reference("ubuntu".to_owned()))).await, ErrorKind::NotFound);
        assert_eq!(unmount(Some(What::ImageKey("not hex".to_owned()))).await, ErrorKind::InvalidInput);
        assert_eq!(unmount(None).await, ErrorKind::InvalidInput);
    });
    let calls = served.calls();
    assert_eq!(calls[..3], ["mounts", "leases", "jobs"]);
    assert!(calls.len() == 4 && calls[3].starts_with("unmount Reference("), "{calls:?}");
}

#[test]
fn an_idle_daemon_leaves_and_a_busy_one_stays() {
    let mut served = Served::start(Fake { hangs: true, ..Fake::default() }, Some(Duration::from_millis(300)));
    let (runtime, mut client_) = client(&served.socket());
    let stream = runtime.block_on(client_.pull(request("ubuntu"))).unwrap();
    std::thread::sleep(Duration::from_millis(900));
    assert!(served.socket().exists(), "somebody is connected");
    drop((stream, client_, runtime));
    assert_eq!(served.ended(), Ended::Idle);
    assert!(!served.socket().exists() && !served.mount_socket().exists());
}

#[test]
fn stopping_gives_the_engine_its_deadline() {
    let mut served = Served::start(Fake::default(), None);
    assert_eq!(served.stop(), Ended::Stopped);
    assert_eq!(served.calls(), ["shutdown 9"]);
    assert!(!served.socket().exists());
}

#[test]
fn who_only_connects_is_sent_away() {
    use std::io::{Read as _, Write as _};
    let served = Served::start(Fake::default(), None);
    for said in [&b""[..], b"PRI * HTTP/2.0"] {
        let mut socket = std::os::unix::net::UnixStream::connect(served.socket()).unwrap();
        socket.write_all(said).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut heard = Vec::new();
        // The end, or a reset; but no silence.
        let ended = socket.read_to_end(&mut heard);
        assert!(
            ended.as_ref().map_or_else(|error| error.kind() != std::io::ErrorKind::WouldBlock, |_| true),
            "{ended:?}"
        );
    }
    // One that has begun may think for as long as it likes.
    let (runtime, mut client) = client(&served.socket());
    runtime.block_on(async {
        client.version(v1::VersionRequest {}).await.unwrap();
        tokio::time::sleep(Duration::from_millis(900)).await;
        client.version(v1::VersionRequest {}).await.unwrap();
    });
}
