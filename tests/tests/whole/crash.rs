//! `kill -9` at every moment: the next pull succeeds, reuses what was
//! finished, gives the same bytes, and nothing half-written is left.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    image::Image,
    layer::{Entry, Layer},
    programs::{Scratch, have_root, stderr},
    registry::Registry,
};

/// Every step of publishing that a pull passes, as debug builds of the daemon
/// log them; `SCTL_FAILPOINT` makes it die at one.
fn failpoints(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).expect("the daemon logs the steps of publishing");
    // Those on the way of a start are the cache's own tests' business.
    let mut names: Vec<String> = text.lines().filter(|name| !name.starts_with("open.")).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn image() -> Image {
    let mut image = debian::layered();
    image.layers.push(Layer::new(&[Entry::file("last", "last")]));
    image
}

fn pull(daemon: &Daemon, user: &User, folder: &Path, uri: &str) -> Output {
    daemon.pull(user, folder, &["--force", "x.sif", uri])
}

#[test]
fn privileged_a_crash_at_every_step_of_publishing_loses_nothing() {
    if !have_root("privileged_a_crash_at_every_step_of_publishing_loses_nothing") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&image(), "image:1");
    let uri = format!("docker://{}", registry.reference("image:1"));
    let user = User::a();
    let scratch = Scratch::new();
    let out = user.folder(&scratch, "out");
    let log = scratch.join("failpoints");
    let log_text = log.to_str().expect("paths of tests are text");
    let daemon = Daemon::system_in(Scratch::new(), "", &[("SCTL_FAILPOINT_LOG", log_text)]);
    assert!(pull(&daemon, &user, &out, &uri).status.success());
    let expected = fs::read(out.join("x.sif")).expect("read the SIF");
    drop(daemon.stop());

    let names = failpoints(&log);
    assert!(names.len() >= 10, "failpoints: {names:?}");
    let mut died = 0;
    for name in &names {
        let mut daemon = match Daemon::try_system_in(Scratch::new(), "", &[("SCTL_FAILPOINT", name)]) {
            Ok(daemon) => daemon,
            Err((folder, _)) => {
                // Passed at the start already, before anybody could ask.
                let daemon = Daemon::system_in(folder, "", &[]);
                assert_eq!(daemon.leftovers(), Vec::<String>::new(), "{name}: at the start");
                continue;
            }
        };
        if out.join("x.sif").exists() {
            fs::remove_file(out.join("x.sif")).expect("remove the SIF");
        }
        let output = pull(&daemon, &user, &out, &uri);
        if output.status.success() {
            // Behind the answer: the daemon dies when it makes things durable.
            daemon.wait_ended(Duration::from_secs(20));
            drop(Daemon::system_in(daemon.kill(), "", &[]));
            continue;
        }
        died += 1;
        assert_eq!(output.status.code(), Some(255), "{name}: {}", stderr(&output));
        assert!(!out.join("x.sif").exists(), "{name}: a SIF without success");
        daemon.wait_ended(Duration::from_secs(10));
        let daemon = Daemon::system_in(daemon.kill(), "", &[]);
        assert_eq!(daemon.leftovers(), Vec::<String>::new(), "{name}");
        let output = pull(&daemon, &user, &out, &uri);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        assert!(fs::read(out.join("x.sif")).expect("read the SIF") == expected, "{name}: other bytes");
        assert_eq!(daemon.leftovers(), Vec::<String>::new(), "{name}: after the pull");
    }
    assert!(died >= 8, "a pull noticed only {died} of {names:?}");
}

#[test]
fn privileged_a_killed_daemon_at_random_moments_loses_nothing() {
    if !have_root("privileged_a_killed_daemon_at_random_moments_loses_nothing") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&image(), "image:1");
    let uri = format!("docker://{}", registry.reference("image:1"));
    let user = User::a();
    let scratch = Scratch::new();
    let out = user.folder(&scratch, "out");
    let daemon = Daemon::system("");
    let start = Instant::now();
    assert!(pull(&daemon, &user, &out, &uri).status.success());
    let whole = start.elapsed();
    let expected = fs::read(out.join("x.sif")).expect("read the SIF");
    drop(daemon);
    for eighth in 0..8 {
        let daemon = Daemon::system("");
        fs::remove_file(out.join("x.sif")).expect("remove the SIF");
        let mut client = daemon
            .pulling(&user, &out, &["x.sif", &uri])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start sctl");
        std::thread::sleep(whole * eighth / 8);
        let folder = daemon.kill();
        client.wait().expect("wait for sctl");
        let daemon = Daemon::system_in(folder, "", &[]);
        let packs = fs::read_dir(daemon.cache().join("packs")).expect("read packs").flatten();
        let finished = packs.filter(|entry| entry.path().extension().is_some_and(|ext| ext == "pack")).count();
        registry.clear_log();
        let output = pull(&daemon, &user, &out, &uri);
        assert!(output.status.success(), "{eighth}/8: {}", stderr(&output));
        assert!(fs::read(out.join("x.sif")).expect("read the SIF") == expected, "{eighth}/8: other bytes");
        let fetched = registry.blob_gets().len();
        assert!(fetched <= 5 - finished, "{eighth}/8: {finished} layers were finished, {fetched} blobs fetched");
        assert_eq!(daemon.leftovers(), Vec::<String>::new(), "{eighth}/8");
    }
}

#[test]
fn privileged_a_killed_job_is_told_and_leaves_nothing() {
    if !have_root("privileged_a_killed_job_is_told_and_leaves_nothing") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::with_runtime(), "image:1");
    let uri = format!("docker://{}", registry.reference("image:1"));
    let user = User::a();
    let scratch = Scratch::new();
    let out = user.folder(&scratch, "out");
    let daemon = Daemon::system("");
    let client = daemon
        .pulling(&user, &out, &["x.sif", &uri])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start sctl");
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut killed = false;
    while !killed && Instant::now() < deadline {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("read the daemon's tasks");
        for task in tasks.flatten() {
            let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for pid in list.split_whitespace() {
                // A layer's job is the one that writes a pack.
                let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
                let mut targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
                if targets.any(|target| target.extension().is_some_and(|extension| extension == "pack")) {
                    let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
                    killed |= rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok();
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(killed, "no layer job was seen ({children})");
    let output = client.wait_with_output().expect("wait for sctl");
    assert_eq!(output.status.code(), Some(255), "{}", stderr(&output));
    assert!(stderr(&output).contains("FATAL:   "), "{}", stderr(&output));
    assert_eq!(daemon.leftovers(), Vec::<String>::new());
    let output = pull(&daemon, &user, &out, &uri);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn privileged_a_lost_database_is_rebuilt_without_fetching() {
    if !have_root("privileged_a_lost_database_is_rebuilt_without_fetching") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&image(), "image:1");
    let uri = format!("docker://{}", registry.reference("image:1"));
    let user = User::a();
    let scratch = Scratch::new();
    let out = user.folder(&scratch, "out");
    let daemon = Daemon::system("");
    assert!(pull(&daemon, &user, &out, &uri).status.success());
    let expected = fs::read(out.join("x.sif")).expect("read the SIF");
    let mut folder = daemon.stop();
    for damage in ["lost", "garbage", "truncated"] {
        let database = folder.join("cache/state.db");
        match damage {
            "lost" => fs::remove_file(&database).expect("remove the database"),
            "garbage" => fs::write(&database, [0xa5; 5000]).expect("damage the database"),
            _ => {
                let len = fs::metadata(&database).expect("the database is there").len();
                let file = fs::OpenOptions::new().write(true).open(&database).expect("open the database");
                file.set_len(len / 3).expect("cut the database");
            }
        }
        registry.clear_log();
        let daemon = Daemon::system_in(folder, "", &[]);
        let output = pull(&daemon, &user, &out, &uri);
        assert!(output.status.success(), "{damage}: {}", stderr(&output));
        assert!(fs::read(out.join("x.sif")).expect("read the SIF") == expected, "{damage}: other bytes");
        assert_eq!(registry.blob_gets(), Vec::<String>::new(), "{damage}: fetched again");
        folder = daemon.stop();
    }
}

#[test]
fn privileged_a_leaving_client_cancels_only_its_own_work() {
    if !have_root("privileged_a_leaving_client_cancels_only_its_own_work") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::with_runtime(), "image:1");
    let uri = format!("docker://{}", registry.reference("image:1"));
    let scratch = Scratch::new();
    let (alice, bob) = (User::a(), User::b());
    let daemon = Daemon::system("");
    let start = |user: &User, name: &str| {
        daemon
            .pulling(user, &user.folder(&scratch, name), &["x.sif", &uri])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start sctl")
    };
    let (mut first, second) = (start(&alice, "alice"), start(&bob, "bob"));
    std::thread::sleep(Duration::from_millis(400));
    first.kill().expect("kill the first client");
    first.wait().expect("reap the first client");
    let output = second.wait_with_output().expect("wait for the second client");
    assert!(output.status.success(), "{}", stderr(&output));
    drop(daemon);

    let daemon = Daemon::system("");
    let mut only = daemon
        .pulling(&alice, &scratch.join("alice"), &["x.sif", &uri])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start sctl");
    std::thread::sleep(Duration::from_millis(400));
    only.kill().expect("kill the client");
    only.wait().expect("reap the client");
    sctl_tests::programs::wait_until("the work is cancelled", Duration::from_secs(5), || daemon.leftovers().is_empty());
}
