//! One user, no root: the client starts the daemon, which leaves when idle.

use std::{process::Stdio, time::Duration};

use sctl_tests::{
    daemon::{User, UserHome},
    debian,
    programs::{have_root, stderr, stdout, wait_until},
    registry::Registry,
};

/// The tests become another user by root's power; the product needs none.
fn home(test: &str) -> Option<UserHome> {
    if !have_root(test) {
        return None;
    }
    if std::path::Path::new("/run/sctl/sctl.sock").exists() {
        eprintln!("SKIPPED {test}: a system daemon is installed on this host, so no client starts its own");
        return None;
    }
    Some(UserHome::new(User::a()))
}

#[test]
fn privileged_the_client_starts_a_daemon_that_leaves_when_idle() {
    let Some(home) = home("privileged_the_client_starts_a_daemon_that_leaves_when_idle") else { return };
    std::fs::create_dir_all(home.home().join(".config/sctl")).expect("make the configuration's folder");
    std::fs::write(home.home().join(".config/sctl/sctld.toml"), "idle_seconds = 2\n").expect("write the configuration");
    let registry = Registry::start();
    registry.seed(&debian::layered(), "layered:1");
    let uri = format!("docker://{}", registry.reference("layered:1"));
    // A pipe that the daemon kept open would never end.
    let output = home
        .sctl()
        .args(["exec", "--no-https", &uri, "cat", "/opt/data/keep"])
        .stdout(Stdio::piped())
        .output()
        .expect("run sctl");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "keep me");
    assert_eq!(home.daemons().len(), 1, "one daemon serves the user");
    wait_until("the idle daemon leaves", Duration::from_secs(20), || home.daemons().is_empty());
    // Another start finds the cache.
    registry.clear_log();
    let output = home.sctl().args(["pull", "--no-https", &uri]).output().expect("run sctl");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(registry.blob_gets(), Vec::<String>::new());
    assert!(home.home().join("layered_1.sif").exists());
    assert!(home.home().join(".cache/sctl/sif").exists());
}

#[test]
fn privileged_many_first_clients_start_one_daemon() {
    let Some(home) = home("privileged_many_first_clients_start_one_daemon") else { return };
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            home.sctl()
                .args(["exec", "--no-https", &uri, "echo", "ok"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("start sctl")
        })
        .collect();
    for client in clients {
        let output = client.wait_with_output().expect("wait for sctl");
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), "ok\n");
    }
    assert_eq!(home.daemons().len(), 1);
}

#[test]
fn privileged_an_empty_environment_is_enough() {
    let Some(home) = home("privileged_an_empty_environment_is_enough") else { return };
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let output = home.sctl().args(["pull", "--no-https", "x.sif", &uri]).output().expect("run sctl");
    assert!(output.status.success(), "{}", stderr(&output));
    let output = home
        .sctl()
        .env_clear()
        .args(["exec", "x.sif", "/bin/sh", "-c", "echo $FROM_IMAGE $PATH"])
        .output()
        .expect("run sctl");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("busybox /bin"), "{}", stdout(&output));
}

#[test]
fn privileged_a_named_daemon_that_does_not_answer_is_an_error() {
    let Some(home) = home("privileged_a_named_daemon_that_does_not_answer_is_an_error") else { return };
    let output = home
        .sctl()
        .env("SCTL_SOCKET", home.run().join("nobody.sock"))
        .args(["pull", "docker://127.0.0.1:1/x"])
        .output()
        .expect("run sctl");
    assert_eq!(output.status.code(), Some(255));
    let text = stderr(&output);
    assert!(text.starts_with("FATAL:   ") && text.contains("  hint: "), "{text}");
    assert_eq!(home.daemons(), Vec::<u32>::new(), "no daemon is started behind the user's back");
}

#[test]
fn privileged_another_cache_directory_is_another_cache_with_its_own_daemon() {
    let Some(home) = home("privileged_another_cache_directory_is_another_cache_with_its_own_daemon") else { return };
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let parent = home.home().join("scratch");
    let exec = |variable: Option<&str>| {
        let mut sctl = home.sctl();
        if let Some(variable) = variable {
            sctl.env(variable, &parent);
        }
        let output = sctl.args(["exec", "--no-https", &uri, "echo", "ok"]).output().expect("run sctl");
        assert_eq!(stdout(&output), "ok\n", "{}", stderr(&output));
    };
    exec(Some("SINGULARITY_CACHEDIR"));
    let images = |cache: &str| {
        let files = std::fs::read_dir(home.home().join(cache).join("sif")).into_iter().flatten().flatten();
        files.filter(|file| file.path().extension().is_some_and(|extension| extension == "sif")).count()
    };
    assert_eq!([images("scratch/cache/sctl"), images(".cache/sctl")], [1, 0]);
    exec(Some("APPTAINER_CACHEDIR"));
    assert_eq!(home.daemons().len(), 1, "the same cache has the same daemon");
    exec(None);
    assert_eq!([images("scratch/cache/sctl"), images(".cache/sctl")], [1, 1]);
    assert_eq!(home.daemons().len(), 2);
}

#[test]
fn privileged_environments_of_one_user_share_the_daemon() {
    let Some(home) = home("privileged_environments_of_one_user_share_the_daemon") else { return };
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let exec = |prepare: &dyn Fn(&mut std::process::Command)| {
        let mut sctl = home.sctl();
        prepare(&mut sctl);
        let output = sctl.args(["exec", "--no-https", &uri, "echo", "ok"]).output().expect("run sctl");
        assert_eq!(stdout(&output), "ok\n", "{}", stderr(&output));
    };
    // A login session starts it; a batch job of the same user finds it, though
    // its environment leads to another place for the socket.
    exec(&|_| {});
    exec(&|sctl| {
        sctl.env_remove("XDG_RUNTIME_DIR");
    });
    exec(&|_| {});
    assert_eq!(home.daemons().len(), 1);
}

#[test]
fn privileged_a_home_that_cannot_be_written_costs_the_cache_only() {
    let Some(home) = home("privileged_a_home_that_cannot_be_written_costs_the_cache_only") else { return };
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let closed = home.home().join("closed");
    std::fs::create_dir(&closed).expect("make a home of root's");
    let exec = home.sctl().env("HOME", &closed).args(["exec", "--no-https", &uri, "echo", "ok"]).output();
    let exec = exec.expect("run sctl");
    assert_eq!(stdout(&exec), "ok\n", "{}", stderr(&exec));
    let warning =
        format!("WARNING: Cache disabled - cache location {}/.cache/sctl is not writable.\n", closed.display());
    assert!(stderr(&exec).starts_with(&warning), "{}", stderr(&exec));
    // A file of one's own needs no cache.
    let pull = home.sctl().args(["pull", "--no-https", "own.sif", &uri]).output().expect("run sctl");
    assert!(pull.status.success(), "{}", stderr(&pull));
    let own = home.sctl().env("HOME", &closed).args(["exec", "own.sif", "echo", "ok"]).output().expect("run sctl");
    assert_eq!((stdout(&own).as_str(), stderr(&own).contains("Cache disabled")), ("ok\n", false), "{}", stderr(&own));
    assert_eq!(std::fs::read_dir(&closed).expect("read the home").count(), 0);
}
