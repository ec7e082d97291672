//! Mounts that a daemon hands over, by a daemon that does as it is told: what
//! the client takes, what it refuses, and how it goes on without.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use prost::Message as _;
use rustix::fs::{CWD, Mode, OFlags};
use sctl_proto::v1::{MountWish, OpenReply, OpenRequest, open_reply::Status, open_request::What};
use sctl_sys::{
    mount,
    scm::{self, Blocking},
};

use super::support::{Bench, USER, ready, stderr, stdout};

/// A squashfs mounted on this host; unmounted with this value.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts the SIF's partition, with restrictions besides read-only.
    fn new(bench: &Bench, name: &str, restrictions: &str) -> Self {
        let place = bench.path(name);
        fs::create_dir(&place).unwrap();
        let output = Command::new("mount")
            .args(["-t", "squashfs", "-o", &format!("loop,ro{restrictions}")])
            .args([&bench.path("partition.squashfs"), &place])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        Self(place)
    }

    /// A detached clone, as the daemon sends.
    fn detached(&self) -> OwnedFd {
        mount::clone_one(CWD, &self.0).unwrap()
    }

    /// The mount itself, which is in use where it is.
    fn attached(&self) -> OwnedFd {
        rustix::fs::open(&self.0, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot unmount {}", self.0.display());
    }
}

/// A daemon for one message: answers with the SIF, `reply` and `second`.
/// Returns what it was asked.
fn daemon(socket: &Path, sif: &Path, reply: OpenReply, second: Option<OwnedFd>) -> JoinHandle<OpenRequest> {
    let listener = scm::listen(socket, 1, Blocking::Yes).unwrap();
    // Everybody may connect: the client runs as another user.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).unwrap();
    let sif = File::open(sif).unwrap();
    std::thread::spawn(move || {
        let client = scm::accept(&listener, Blocking::Yes).unwrap();
        let mut buffer = [0; 4096];
        let received = scm::recv(&client, &mut buffer).unwrap();
        let fds: Vec<_> = [sif.as_fd()].into_iter().chain(second.as_ref().map(|fd| fd.as_fd())).collect();
        scm::send(&client, &reply.encode_to_vec(), &fds).unwrap();
        OpenRequest::decode(&buffer[..received.len]).unwrap()
    })
}

fn sif(mounted: bool, no_mount: &str) -> OpenReply {
    OpenReply {
        status: Status::Sif.into(),
        path: "/cache/x.sif".to_owned(),
        mounted,
        no_mount: no_mount.to_owned(),
        ..OpenReply::default()
    }
}

/// Runs a script in the image that a daemon with these manners hands out.
fn exec(
    bench: &Bench,
    options: &[&str],
    reply: OpenReply,
    second: Option<OwnedFd>,
    script: &str,
) -> (Output, OpenRequest) {
    let socket = bench.path("mount.sock");
    let answered = daemon(&socket, &bench.path("image.sif"), reply, second);
    let args = [&["-v", "exec"], options, &["docker://r.example/a:1", "sh", "-c", script]].concat();
    let output = bench.command(args).env("SCTL_SOCKET", bench.path("sctl.sock")).output().unwrap();
    fs::remove_file(socket).unwrap();
    (output, answered.join().unwrap())
}

const ROOT: &str = "grep ' / / ' /proc/self/mountinfo";

fn bench() -> Bench {
    let bench = Bench::new();
    bench.own_sif("image.sif", r#"{"Env":["FROM_IMAGE=yes"]}"#);
    bench
}

#[test]
fn privileged_the_mount_becomes_the_root() {
    if !ready("privileged_the_mount_becomes_the_root") {
        return;
    }
    let bench = bench();
    let mounted = Mounted::new(&bench, "mounted", ",nosuid,nodev");
    for options in [&[][..], &["--containall"]] {
        let script = format!("{ROOT}; echo $FROM_IMAGE $SINGULARITY_CONTAINER $SINGULARITY_NAME");
        let (output, asked) = exec(&bench, options, sif(true, ""), Some(mounted.detached()), &script);
        let text = stdout(&output);
        assert!(text.contains(" / / ro,nosuid,nodev") && text.contains(" - squashfs "), "{text}");
        assert!(text.ends_with("\nyes /cache/x.sif a_1.sif\n"), "{text}");
        assert!(!stderr(&output).contains("FUSE"), "{}", stderr(&output));
        assert_eq!(asked.mount(), MountWish::Shared, "{options:?}");
    }
    let (_, asked) = exec(&bench, &["--writable-tmpfs"], sif(false, "no"), None, "true");
    assert_eq!(asked.mount(), MountWish::Private);
}

#[test]
fn privileged_without_a_mount_fuse_serves_and_the_reason_is_told_once() {
    if !ready("privileged_without_a_mount_fuse_serves_and_the_reason_is_told_once") {
        return;
    }
    let bench = bench();
    for (reply, why) in [
        (sif(false, "no loop devices"), "no loop devices"),
        (sif(false, "bad\x1b[2Jwords"), "bad\u{fffd}[2Jwords"),
        // A daemon that has never heard of mounts.
        (sif(false, ""), "the daemon mounts no images"),
    ] {
        let (output, _) = exec(&bench, &[], reply, None, ROOT);
        assert!(stdout(&output).contains(" - fuse "), "{}", stdout(&output));
        let line = format!("VERBOSE: The image is served over FUSE: {why}\n");
        assert_eq!(stderr(&output).matches("FUSE").count(), 1, "{}", stderr(&output));
        assert!(stderr(&output).contains(&line), "{}", stderr(&output));
    }
}

#[test]
fn privileged_a_mount_that_cannot_be_attached_is_no_end() {
    if !ready("privileged_a_mount_that_cannot_be_attached_is_no_end") {
        return;
    }
    let bench = bench();
    let mounted = Mounted::new(&bench, "mounted", ",nosuid,nodev");
    for options in [&[][..], &["--writable-tmpfs"], &["--containall"]] {
        let script = "echo a > /bin/a 2>/dev/null && cat /bin/a; ls /image /session 2>/dev/null; cat /proc/self/mountinfo; exit 7";
        let (output, _) = exec(&bench, options, sif(true, ""), Some(mounted.attached()), script);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(7), "{options:?}: {text}{}", stderr(&output));
        let reason = "VERBOSE: The image is served over FUSE: its mount cannot be used here: Invalid argument\n";
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
        let roots: Vec<&str> = text.lines().filter(|line| line.contains(" / / ")).collect();
        let kind = if options == ["--writable-tmpfs"] { " - overlay " } else { " - fuse " };
        assert!(matches!(roots[..], [root] if root.contains(kind)), "{options:?}: {text}");
        assert_eq!(text.starts_with("a\n"), options == ["--writable-tmpfs"], "{options:?}: {text}");
    }
}

#[test]
fn privileged_a_recorded_copy_is_asked_for_by_name_and_key() {
    if !ready("privileged_a_recorded_copy_is_asked_for_by_name_and_key") {
        return;
    }
    let bench = bench();
    let own = bench.path("own.sif");
    fs::copy(bench.path("image.sif"), &own).unwrap();
    let found = fs::metadata(&own).unwrap();
    let cache = bench.path("home");
    let records = cache.join("sctl/delivered");
    fs::create_dir_all(&records).unwrap();
    let record = records.join(format!("{:x}-{:x}", found.dev(), found.ino()));
    let text = format!(
        r#"{{"file":{{"device":{},"inode":{},"size":{},"modified":[{},{}],"changed":[{},{}]}},
            "reference":"r.example/a:1","platform":"linux/arm64","image_key":"{}"}}"#,
        found.dev(),
        found.ino(),
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
        "0f".repeat(32)
    );
    fs::write(&record, text).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&records, 0o700);
    mode(&record, 0o600);
    let output = Command::new("chown").args(["-R", USER]).arg(&cache).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let run = || {
        let script = format!("{ROOT}; echo $SINGULARITY_CONTAINER");
        let args = ["-v".as_ref(), "exec".as_ref(), own.as_os_str(), "sh".as_ref(), "-c".as_ref(), script.as_ref()];
        let socket = bench.path("sctl.sock");
        let output = bench.command(args).env("SCTL_SOCKET", socket).env("XDG_CACHE_HOME", &cache).output().unwrap();
        assert!(stdout(&output).ends_with(&format!("\n{}\n", own.display())), "{}", stdout(&output));
        (stdout(&output), stderr(&output))
    };
    let socket = bench.path("mount.sock");
    let mounted = Mounted::new(&bench, "mounted", ",nosuid,nodev");
    let answered = daemon(&socket, &bench.path("image.sif"), sif(true, ""), Some(mounted.detached()));
    let (text, messages) = run();
    assert!(text.contains(" - squashfs ") && !messages.contains("FUSE"), "{text}{messages}");
    let asked = answered.join().unwrap();
    let Some(What::Delivered(image)) = asked.what else { panic!("{asked:?}") };
    assert_eq!((image.reference.as_str(), image.platform.as_str()), ("r.example/a:1", "linux/arm64"));
    assert_eq!(image.image_key, "0f".repeat(32));
    fs::remove_file(&socket).unwrap();

    // A daemon that is silent costs some seconds and no more.
    let listener = scm::listen(&socket, 1, Blocking::Yes).unwrap();
    mode(&socket, 0o777);
    let start = Instant::now();
    let (text, messages) = run();
    assert!(text.contains(" - fuse ") && start.elapsed() < Duration::from_secs(15), "{text}");
    assert!(
        messages.contains("FUSE: Unable to open the image in the cache: the daemon does not answer\n"),
        "{messages}"
    );
    drop(listener);
    // Nor does one that breaks the rules.
    fs::remove_file(&socket).unwrap();
    let answered = daemon(&socket, &bench.path("image.sif"), sif(true, ""), Some(File::open("/etc").unwrap().into()));
    let (text, messages) = run();
    assert!(text.contains(" - fuse ") && messages.contains("something else than a read-only mount"), "{messages}");
    answered.join().unwrap();
}

#[test]
fn privileged_what_is_no_mount_of_an_image_is_refused() {
    if !ready("privileged_what_is_no_mount_of_an_image_is_refused") {
        return;
    }
    let bench = bench();
    let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
    let bare = Mounted::new(&bench, "bare", "");
    let restricted = Mounted::new(&bench, "restricted", ",nosuid,nodev");
    let below = rustix::fs::openat(restricted.attached(), "bin", OFlags::PATH, Mode::empty()).unwrap();
    for (name, second) in [
        ("a directory of the host", open("/etc")),
        ("the host's root", mount::clone_one(CWD, "/").unwrap()),
        ("another file system", mount::clone_one(CWD, "/proc").unwrap()),
        ("a mount with set-id programs and devices", bare.detached()),
        ("a directory in a mount", below),
        ("a file", open("/dev/null")),
    ] {
        let (output, _) = exec(&bench, &[], sif(true, ""), Some(second), "true");
        assert_eq!(output.status.code(), Some(255), "{name}");
        let text = stderr(&output);
        assert!(text.contains("FATAL:   Unable to open the image in the cache\n"), "{name}: {text}");
        assert!(text.contains("something else than a read-only mount of an image"), "{name}: {text}");
    }
    // A descriptor that nobody announced, and one that was and is not there.
    let (output, _) = exec(&bench, &[], sif(false, ""), Some(restricted.detached()), "true");
    assert!(stderr(&output).contains("sent 2 descriptors instead of 1"), "{}", stderr(&output));
    let (output, _) = exec(&bench, &[], sif(true, ""), None, "true");
    assert!(stderr(&output).contains("sent 1 descriptors instead of 2"), "{}", stderr(&output));
}
