//! The daemon under a service manager: what it tells, and how it reloads.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sctl_common::ErrorKind;
use sctl_proto::from_status;

use super::{
    fake::client,
    jobs::Silent,
    program::{Daemon, SCTLD, fails},
};

/// A daemon, and the socket that hears what it tells its manager.
fn managed(config: &str) -> (Daemon, UnixDatagram) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let env = [("NOTIFY_SOCKET", path.as_path()), ("WATCHDOG_USEC", Path::new("600000"))];
    (Daemon::start_in(dir, config, &["--user"], &env), socket)
}

/// The next message that is no ping.
fn next(socket: &UnixDatagram) -> String {
    loop {
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer).expect("the daemon tells something");
        let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
        if text != "WATCHDOG=1" {
            return text;
        }
    }
}

fn rewrite(daemon: &Daemon, config: &str) {
    fs::write(daemon.dir.path().join("sctld.toml"), config).unwrap();
    daemon.signal(Signal::HUP);
}

#[test]
fn start_pings_reload_and_stop_are_told() {
    let (mut daemon, socket) = managed("");
    let opening = next(&socket);
    assert!(opening.starts_with("STATUS=opening the cache\nEXTEND_TIMEOUT_USEC="), "{opening}");
    assert_eq!(next(&socket), "READY=1\nSTATUS=ready");
    let mut buffer = [0; 64];
    let started = Instant::now();
    for _ in 0..4 {
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"WATCHDOG=1");
    }
    assert!(started.elapsed() < Duration::from_secs(2), "every fifth of a second: {:?}", started.elapsed());
    rewrite(&daemon, "lease_seconds = 60\njob_user = \"somebody\"\n");
    let reloading = next(&socket);
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{reloading}"));
    assert!(time.parse::<u64>().is_ok_and(|time| time > 0), "{time}");
    assert_eq!(next(&socket), "READY=1\nSTATUS=ready");
    daemon.signal(Signal::TERM);
    assert_eq!(next(&socket), "STOPPING=1\nSTATUS=stopping");
    assert!(daemon.ended().0.success());
    let log = daemon.log();
    assert!(log.contains("configuration reloaded") && log.contains("changed=\"lease_seconds\""), "{log}");
    assert!(log.contains("only after a restart") && log.contains("keys=\"job_user\""), "{log}");
}

/// Starts a pull that lasts; or why it may not.
fn pull(
    daemon: &Daemon,
    registry: &Silent,
) -> Result<(tokio::runtime::Runtime, impl Sized + use<>), (ErrorKind, String)> {
    let (runtime, mut client) = client(&daemon.socket());
    let mut stream = runtime.block_on(client.pull(registry.request())).unwrap().into_inner();
    // It has nothing to say before the registry has: news are a refusal.
    let refused = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(300), stream.message()).await });
    match refused {
        Ok(Err(status)) => {
            let failure = from_status(&status);
            Err((failure.kind, failure.message))
        }
        Ok(Ok(_)) => panic!("the pull goes on without its registry"),
        Err(_) => Ok((runtime, (client, stream))),
    }
}

#[test]
fn limits_change_without_a_restart_and_a_bad_file_changes_nothing() {
    let (daemon, socket) = managed("max_pulls_per_user = 1\nshutdown_seconds = 0\n");
    let registry = Silent::new();
    next(&socket);
    next(&socket);
    let first = pull(&daemon, &registry).unwrap();
    let refused = |daemon: &Daemon| match pull(daemon, &Silent::new()) {
        Err((kind, message)) => (kind, message),
        Ok(_) => panic!("a pull too many"),
    };
    assert_eq!(refused(&daemon), (ErrorKind::LimitExceeded, "1 pulls of yours are running".to_owned()));
    let settled = |config: &str| {
        rewrite(&daemon, config);
        loop {
            if let Some(status) = next(&socket).strip_prefix("READY=1\nSTATUS=") {
                return status.to_owned();
            }
        }
    };
    let status = settled("max_pulls_per_user = 2\nspeed = 1\n");
    assert!(status.starts_with("the old configuration stays in force: "), "{status}");
    assert!(status.contains("sctld.toml, line 2: unknown field `speed`"), "{status}");
    let status = settled("max_pulls_per_user = 2\nca_files = [\"/nonexistent.pem\"]\n");
    assert!(status.contains("cannot read the certificates in /nonexistent.pem"), "{status}");
    let status = settled("max_pulls_per_user = 2\n[log]\nlevel = \"loud,,=\"\n");
    assert!(status.contains("neither a level nor a filter"), "{status}");
    assert_eq!(refused(&daemon).0, ErrorKind::LimitExceeded);
    let status = settled("max_pulls_per_user = 2\n");
    assert!(status.starts_with("ready"), "{status}");
    let second = pull(&daemon, &Silent::new()).expect("two may run now, and the first one still does");
    assert_eq!(refused(&daemon), (ErrorKind::LimitExceeded, "2 pulls of yours are running".to_owned()));
    drop((first, second));
}

#[test]
fn check_says_what_a_start_would_say() {
    let check = |config: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sctld.toml");
        fs::write(&path, config).unwrap();
        let mut command = Command::new(SCTLD);
        command.args(["--user", "--check", "--config"]).arg(&path).env_clear().env("HOME", dir.path());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap().replace(dir.path().to_str().unwrap(), ""))
    };
    assert_eq!(check("lease_seconds = 60\n"), (Some(0), String::new()));
    let (code, text) = check("\nspeed = 1\n");
    assert_eq!(code, fails("speed = 1\n").status.code());
    assert!(text.contains("sctld.toml, line 2: unknown field `speed`"), "{text}");
    assert_eq!(check("[log]\nlevel = \"loud,,=\"\n").0, Some(1));
    assert_eq!(check("ca_files = [\"/nonexistent.pem\"]\n").0, Some(1));
}
