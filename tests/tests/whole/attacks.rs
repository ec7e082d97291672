//! What users of one host try against each other and against the root daemon:
//! guesses, races, floods, and programs that promise powers.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crate::mounts::{FUSE, exec};
use prost::Message as _;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, RenameFlags, StatVfsMountFlags},
    process::{Gid, Resource, Rlimit, Uid},
};
use sctl_proto::v1::{
    DeliveredRequest, ImageRequest, MountWish, OpenReply, OpenRequest, open_reply::Status, open_request::What,
};
use sctl_sys::{
    mount::{self, MountAttributes},
    scm,
};
use sctl_tests::{
    daemon::{Daemon, User},
    debian, image,
    layer::{Entry, Layer},
    programs::{Scratch, have_root, programs, stderr, stdout, succeeded, wait_until},
    registry::{Demands, Registry},
    sif,
};

/// Does something as another user, which only a thread of its own becomes.
fn as_user<T: Send>(user: &User, work: impl FnOnce() -> T + Send) -> T {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let become_user = move || {
        rustix::thread::set_thread_groups(&[]).expect("give up groups");
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("change the group");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("change the user");
        work()
    };
    std::thread::scope(|scope| match scope.spawn(become_user).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn mount_socket(daemon: &Daemon) -> PathBuf {
    daemon.socket().with_file_name("mount.sock")
}

/// Sends one request to mount.sock: the bytes of the answer, and what came
/// along.
fn ask(socket: &OwnedFd, what: &What, wish: MountWish) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let request = OpenRequest { what: Some(what.clone()), mount: wish.into() }.encode_to_vec();
    scm::send(socket, &request, &[]).ok()?;
    let mut buffer = vec![0; sctl_proto::MAX_OPEN_MESSAGE];
    let received = scm::recv(socket, &mut buffer).ok().filter(|received| received.len > 0)?;
    buffer.truncate(received.len);
    Some((buffer, received.fds))
}

fn connect(daemon: &Daemon) -> OwnedFd {
    scm::connect_within(&mount_socket(daemon), Duration::from_secs(20)).expect("connect to mount.sock")
}

fn image_request(reference: impl Into<String>, platform: &str) -> What {
    What::Image(ImageRequest { reference: reference.into(), platform: platform.to_owned() })
}

/// Opens an image on a lease of `user`'s.
fn open(daemon: &Daemon, user: &User, reference: &str) -> (OpenReply, Vec<OwnedFd>) {
    let what = image_request(reference, "");
    let answer = as_user(user, || ask(&connect(daemon), &what, MountWish::Shared));
    let (bytes, fds) = answer.expect("an answer");
    (OpenReply::decode(&bytes[..]).expect("a reply"), fds)
}

/// A registry with a private image in it, which `alice` has pulled.
struct Private {
    registry: Registry,
    reference: String,
}

impl Private {
    fn pulled(daemon: &Daemon, alice: &User) -> Self {
        let registry = Registry::start_with(&Demands {
            user: Some(("alice".to_owned(), "wonder land".to_owned())),
            ..Demands::default()
        });
        let scratch = Scratch::new();
        let mut image = debian::busybox();
        image.layers.push(Layer::new(&[Entry::file("private", "private bytes")]));
        image.write_layout(&scratch.join("layout"), "t");
        let reference = registry.reference("team/secret-tool:1");
        image::push(&scratch.join("layout"), "t", &reference, Some("alice:wonder land"));
        let private = Self { registry, reference };
        succeeded(&private.sctl(daemon, alice).arg("true").output().expect("run sctl"));
        private
    }

    /// `sctl exec` of the image with alice's password.
    fn sctl(&self, daemon: &Daemon, alice: &User) -> Command {
        let mut command = daemon.sctl(alice);
        command.env("SINGULARITY_DOCKER_USERNAME", "alice").env("SINGULARITY_DOCKER_PASSWORD", "wonder land").args([
            "exec",
            "--no-https",
            &format!("docker://{}", self.reference),
        ]);
        command
    }
}

/// `security.capability` of version 2: `CAP_DAC_OVERRIDE`, `CAP_SETUID` and
/// `CAP_SYS_ADMIN`, permitted, and effective from the start.
const CAPABLE: [u8; 20] = [1, 0, 0, 2, 0x82, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn privileged_programs_that_promise_powers_give_none_in_a_container() {
    if !have_root("privileged_programs_that_promise_powers_give_none_in_a_container") {
        return;
    }
    let grep = fs::read(debian::state().join("debian/usr/bin/grep")).expect("read grep (tests/install.sh)");
    let mut image = debian::base();
    image.layers.push(Layer::new(&[
        Entry::file("usr/bin/setuid", &grep).mode(0o6755),
        Entry::file("usr/bin/capable", &grep).mode(0o755).xattr("security.capability", CAPABLE),
    ]));
    let registry = Registry::start();
    registry.seed(&image, "powers:1");
    let uri = format!("docker://{}", registry.reference("powers:1"));
    let daemon = Daemon::with_mounts("", "");
    let user = User::a();
    let question = ["-E", "^(Uid|Gid|Cap.*|NoNewPrivs):", "/proc/self/status"];
    let words = |output: &Output| succeeded(output).split_whitespace().collect::<Vec<_>>().join(" ");
    let (uid, gid, none) = (user.uid, user.gid, "0".repeat(16));
    // Of what keeps powers away each is there, though one would do: ids that
    // mean nothing in the container's user namespace, sets that hold nothing to
    // gain, no new privileges, and the mount.
    let powerless = format!(
        "Uid: {uid} {uid} {uid} {uid} Gid: {gid} {gid} {gid} {gid} \
         CapInh: {none} CapPrm: {none} CapEff: {none} CapBnd: {none} CapAmb: {none} NoNewPrivs: 1"
    );
    for options in [&[][..], &["--writable-tmpfs"]] {
        for program in ["setuid", "capable"] {
            let output = exec(&daemon, &user, &[options, &[&uri, program], &question].concat());
            assert_eq!(words(&output), powerless, "{program} {options:?}");
            assert!(!stderr(&output).contains(FUSE), "{}", stderr(&output));
        }
        let output =
            exec(&daemon, &user, &[options, &[&uri, "cat", "/proc/self/uid_map", "/proc/self/mountinfo"]].concat());
        let text = succeeded(&output);
        let (ids, mountinfo) = text.split_once('\n').expect("lines");
        assert_eq!(ids.split_whitespace().collect::<Vec<_>>(), [&uid.to_string(), &uid.to_string(), "1"]);
        let root = mountinfo.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("a root");
        assert!(root.split(' ').nth(5).is_some_and(|flags| flags.split(',').any(|flag| flag == "nosuid")), "{root}");
    }
    // The image does hold what it promises: mounted by anybody else it gives it.
    let files = fs::read_dir(daemon.cache().join("sif")).expect("list the cache").flatten().map(|file| file.path());
    let sifs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "sif")).collect();
    let bare = sif::Mounted::new(&sifs[0]);
    let run = |program: &str| {
        let program = bare.path().join("usr/bin").join(program);
        words(&user.command(program).args(question).output().expect("run a program of the image"))
    };
    let said = run("setuid");
    assert!(said.starts_with(&format!("Uid: {uid} 0 0 0 Gid: {gid} 0 0 0 ")), "{said}");
    let said = run("capable");
    assert!(said.contains("CapPrm: 0000000000200082 CapEff: 0000000000200082 "), "{said}");
}

#[test]
fn privileged_what_was_opened_outlives_its_lease_and_serves_whoever_holds_it() {
    if !have_root("privileged_what_was_opened_outlives_its_lease_and_serves_whoever_holds_it") {
        return;
    }
    let daemon = Daemon::with_mounts("lease_seconds = 3", "");
    let (alice, bob) = (User::a(), User::b());
    let private = Private::pulled(&daemon, &alice);
    let (reply, fds) = open(&daemon, &alice, &private.reference);
    assert_eq!((reply.status(), reply.mounted), (Status::Sif, true), "{reply:?}");
    let [file, mounted] = <[OwnedFd; 2]>::try_from(fds).expect("two descriptors");
    let gone = OpenReply { status: Status::NotAvailable.into(), ..OpenReply::default() };
    wait_until("the lease ends", Duration::from_secs(10), || open(&daemon, &alice, &private.reference).0 == gone);
    // Accepted: both are bearer rights, as open files are. They give what they
    // gave, to bob as well, and no more.
    as_user(&bob, || {
        let inner = rustix::fs::openat(&mounted, "private", OFlags::RDONLY, Mode::empty()).expect("open a file of it");
        assert_eq!(io::read_to_string(File::from(inner)).expect("read it"), "private bytes");
        let flags = rustix::fs::fstatvfs(&mounted).expect("inspect the mount").f_flag;
        let restricted = StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
        assert!(flags.contains(restricted), "{flags:?}");
        let create = OFlags::WRONLY | OFlags::CREATE;
        assert_eq!(rustix::fs::openat(&mounted, "new", create, Mode::empty()).map(drop), Err(rustix::io::Errno::ROFS));
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let again = |flags| rustix::fs::open(format!("/proc/thread-self/fd/{number}"), flags, Mode::empty()).map(drop);
        assert_eq!(again(OFlags::WRONLY), Err(rustix::io::Errno::ACCESS));
        assert_eq!(rustix::fs::fchmod(&file, Mode::from_raw_mode(0o666)), Err(rustix::io::Errno::PERM));
        assert_eq!(open_now(&daemon, &private.reference), gone, "bob has no right of his own");
    });
    // Not even root takes away what restricts it.
    for flag in [MountAttributes::READ_ONLY, MountAttributes::NO_SUID, MountAttributes::NO_DEV] {
        let error = mount::relax(&mounted, flag).expect_err("it is locked");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{flag:?}");
    }
}

/// As the calling thread's user.
fn open_now(daemon: &Daemon, reference: &str) -> OpenReply {
    let (bytes, fds) = ask(&connect(daemon), &image_request(reference, ""), MountWish::Shared).expect("an answer");
    assert_eq!(fds.len(), 0);
    OpenReply::decode(&bytes[..]).expect("a reply")
}

/// Everything that somebody may try who has learned of an image its
/// repository, digest and key, and where the cache is.
fn guesses(repository: &str, digest: &str, key: &str, own: &str, cache: &Path) -> Vec<What> {
    let path = format!("{}/sif/{key}.sif", cache.display());
    let (tag, exact) = (format!("{repository}:1"), format!("{repository}@{digest}"));
    let references = [
        tag.clone(),
        exact.clone(),
        format!("{tag}@{digest}"),
        repository.to_owned(),
        format!("{repository}:{}", &digest[7..]),
        digest.to_owned(),
        format!("x@{digest}"),
        key.to_owned(),
        format!("{key}@{digest}"),
        format!("sif/{key}"),
        format!("sif/{key}.sif"),
        format!("./sif/{key}.sif"),
        format!("../sif/{key}.sif"),
        format!("{repository}/../../sif/{key}.sif"),
        format!("file://{path}"),
        path,
    ];
    let keys = [
        key.to_owned(),
        key.to_uppercase(),
        key[..32].to_owned(),
        format!("sha256:{key}"),
        format!("{key}.sif"),
        format!("sif/{key}.sif"),
        format!("../sif/{key}"),
        format!("{key}\0"),
        digest[7..].to_owned(),
    ];
    let delivered = |reference: &str, platform: &str, key: &str| {
        What::Delivered(DeliveredRequest {
            reference: reference.to_owned(),
            platform: platform.to_owned(),
            image_key: key.to_owned(),
        })
    };
    let mut all = Vec::new();
    for platform in ["", "linux/amd64", "linux/arm64"] {
        for reference in &references {
            all.push(image_request(reference.as_str(), platform));
            all.push(delivered(reference, platform, key));
        }
        for key in &keys {
            for reference in [&tag, &exact, own] {
                all.push(delivered(reference, platform, key));
            }
        }
    }
    all
}

#[test]
fn privileged_guesses_at_an_image_of_another_are_answered_as_if_there_were_none() {
    if !have_root("privileged_guesses_at_an_image_of_another_are_answered_as_if_there_were_none") {
        return;
    }
    let daemon = Daemon::with_mounts("", "");
    let (alice, bob) = (User::a(), User::b());
    let private = Private::pulled(&daemon, &alice);
    // Bob has an image of his own, and a right to that.
    let public = Registry::start();
    public.seed(&debian::busybox(), "own:1");
    let own = public.reference("own:1");
    succeeded(&exec(&daemon, &bob, &[&format!("docker://{own}"), "true"]));
    assert_eq!(open(&daemon, &bob, &own).0.status(), Status::Sif);

    let (reply, _) = open(&daemon, &alice, &private.reference);
    assert_eq!(reply.status(), Status::Sif, "{reply:?}");
    let (key, digest) = (reply.image_key, reply.manifest_digest);
    let repository = private.registry.reference("team/secret-tool");
    let cache = daemon.cache();
    let there = guesses(&repository, &digest, &key, &own, &cache);
    let nowhere = guesses(
        &private.registry.reference("team/secrex-tool"),
        &format!("sha256:{}", "0d".repeat(32)),
        &"0f".repeat(32),
        &own,
        &cache,
    );
    assert!(cache.join(format!("sif/{key}.sif")).exists(), "bob knows the right path");
    // Both answers on one connection, so that it counts whether there is one.
    let answers = |what: &What, wish| {
        let socket = connect(&daemon);
        [(); 2].map(|()| ask(&socket, what, wish).map(|(bytes, fds)| (bytes, fds.len())))
    };
    let of = |status: Status| (OpenReply { status: status.into(), ..OpenReply::default() }.encode_to_vec(), 0);
    let refusals =
        [[Some(of(Status::NotAvailable)), Some(of(Status::NotAvailable))], [Some(of(Status::BadRequest)), None]];
    let mut seen = [0; 2];
    for wish in [MountWish::Unspecified, MountWish::Shared, MountWish::Private] {
        for (there, nowhere) in there.iter().zip(&nowhere) {
            let (found, expected) = as_user(&bob, || (answers(there, wish), answers(nowhere, wish)));
            assert_eq!(found, expected, "{there:?} {wish:?}");
            let which = refusals.iter().position(|refusal| *refusal == found);
            seen[which.unwrap_or_else(|| panic!("{there:?} {wish:?}: {found:?}"))] += 1;
        }
    }
    assert!(seen[0] > 100 && seen[1] > 50, "{seen:?}");
    // The guesses were good: to alice both kinds open the image.
    for what in [&there[0], &there[1]] {
        let (bytes, fds) = as_user(&alice, || ask(&connect(&daemon), what, MountWish::Shared)).expect("an answer");
        let reply = OpenReply::decode(&bytes[..]).expect("a reply");
        assert_eq!((reply.status(), fds.len()), (Status::Sif, 2), "{what:?}: {reply:?}");
    }
}

/// Processes that `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("read /proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|ppid| ppid.trim() == parent.to_string()))
        })
        .collect()
}

/// What everybody can read of loop devices, mounts, and these processes.
fn public_texts(pids: &[u32]) -> Vec<(PathBuf, String)> {
    let mut texts = Vec::new();
    let mut folders = Vec::new();
    for device in fs::read_dir("/sys/block").expect("list block devices").flatten() {
        if device.file_name().to_string_lossy().starts_with("loop") {
            folders.extend([device.path(), device.path().join("loop"), device.path().join("holders")]);
        }
    }
    let mut files: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.is_file())
        .collect();
    let of_proc = ["mounts", "thread-self/mountinfo", "partitions", "diskstats", "locks", "net/unix", "swaps"];
    files.extend(of_proc.map(|name| Path::new("/proc").join(name)));
    for pid in pids {
        let of_process = ["mounts", "mountinfo", "mountstats", "cmdline", "comm", "stat", "status", "cgroup"];
        files.extend(of_process.map(|name| PathBuf::from(format!("/proc/{pid}/{name}"))));
    }
    for file in files {
        // Some are root's to read, or to write.
        if let Ok(bytes) = fs::read(&file) {
            texts.push((file, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    texts
}

#[test]
fn privileged_devices_and_places_of_the_daemon_are_closed_to_those_who_guess_them() {
    if !have_root("privileged_devices_and_places_of_the_daemon_are_closed_to_those_who_guess_them") {
        return;
    }
    let daemon = Daemon::with_mounts("", "");
    let (alice, bob) = (User::a(), User::b());
    let private = Private::pulled(&daemon, &alice);
    // Held while others look.
    let (reply, held) = open(&daemon, &alice, &private.reference);
    assert_eq!(held.len(), 2, "{reply:?}");
    let key = &reply.image_key;
    let cache = daemon.cache();
    let mut pids = children(daemon.pid());
    assert!(!pids.is_empty(), "the mount helper");
    pids.push(daemon.pid());

    let mut closed: Vec<PathBuf> = vec![cache.clone(), cache.with_file_name("slots")];
    closed.extend(["sif", "packs", "oci", "tmp", "lock", "state.db"].map(|name| cache.join(name)));
    closed.extend(["sif", "json"].map(|end| cache.join(format!("sif/{key}.{end}"))));
    let devices = fs::read_dir("/dev").expect("list devices").flatten();
    let is_loop = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("loop"));
    closed.extend(devices.map(|entry| entry.path()).filter(is_loop));
    let of_process = ["root", "cwd", "exe", "fd", "fd/0", "fdinfo", "environ", "maps", "mem", "ns/mnt", "stack"];
    for pid in &pids {
        closed.extend(of_process.map(|name| PathBuf::from(format!("/proc/{pid}/{name}"))));
    }
    for path in &closed {
        assert!(path.symlink_metadata().is_ok(), "{} is there", path.display());
    }
    // The users of jobs and of the helper are no closer to it than bob.
    for user in [bob.clone(), User::named("sctl"), User::named("sctl-mount")] {
        as_user(&user, || {
            for path in &closed {
                for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::PATH] {
                    // Names that everybody may know: of devices, of what a
                    // process has.
                    if flags == OFlags::PATH && !(path.starts_with(&cache) && path != &cache) {
                        continue;
                    }
                    let opened = rustix::fs::open(path, flags | OFlags::NONBLOCK, Mode::empty()).map(drop);
                    // No directory is opened for writing, whoever asks.
                    let refused = [rustix::io::Errno::ACCESS, rustix::io::Errno::PERM, rustix::io::Errno::ISDIR];
                    let refused = &refused[..if flags == OFlags::WRONLY { 3 } else { 2 }];
                    assert!(
                        opened.is_err_and(|errno| refused.contains(&errno)),
                        "{} {flags:?} {}: {opened:?}",
                        user.name,
                        path.display()
                    );
                }
                let through = path.join("etc");
                assert!(fs::metadata(&through).is_err(), "{} {}", user.name, through.display());
            }
        });
    }
    // Nothing that bob can read names it.
    let secrets = [key.as_str(), &reply.manifest_digest[7..], "secret-tool", &reply.path];
    let texts = as_user(&bob, || public_texts(&pids));
    assert!(texts.iter().any(|(path, text)| path.ends_with("loop/backing_file") && text == "/\n"), "its device");
    assert!(texts.iter().any(|(path, text)| path.ends_with("mountinfo") && text.contains(" - squashfs ")), "its mount");
    for (path, text) in texts {
        for secret in secrets {
            assert!(!text.contains(secret), "{}: {text}", path.display());
        }
    }
}

#[test]
fn privileged_a_cache_whose_path_is_swapped_serves_what_it_served() {
    if !have_root("privileged_a_cache_whose_path_is_swapped_serves_what_it_served") {
        return;
    }
    let (mallory, bob) = (User::a(), User::b());
    let registry = Registry::start();
    let saying = |word: &str| {
        let mut image = debian::busybox();
        image.layers.push(Layer::new(&[Entry::file("word", word)]));
        image
    };
    for (name, word) in [("good:1", "good"), ("evil:1", "evil"), ("late:1", "late")] {
        registry.seed(&saying(word), name);
    }
    let says = |daemon: &Daemon, name: &str| {
        let uri = format!("docker://{}", registry.reference(name));
        succeeded(&exec(daemon, &bob, &[&uri, "cat", "/word"]))
    };
    // The way to the cache leads through a folder of mallory's.
    let scratch = Scratch::of_root();
    let theirs = mallory.folder(&scratch, "theirs");
    let (real, copy) = (scratch.join("real"), scratch.join("copy"));
    fs::create_dir(&real).expect("make the cache");
    for (link, target) in [(scratch.join("cache"), theirs.join("cache")), (theirs.join("cache"), real.clone())] {
        std::os::unix::fs::symlink(target, link).expect("make a link");
    }
    let daemon = Daemon::with_mounts_in(scratch, "", "", &[]);
    assert_eq!((says(&daemon, "good:1").as_str(), says(&daemon, "evil:1").as_str()), ("good", "evil"));
    // Another cache of root's, in which the two images have each other's bytes,
    // and the same in a folder of mallory's own.
    let key = |name: &str| open(&daemon, &bob, &registry.reference(name)).0.image_key;
    let (good, evil) = (key("good:1"), key("evil:1"));
    let copied = |from: &Path, to: &Path| {
        let status = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
        assert!(status.success());
    };
    copied(&real, &copy);
    for (name, other) in [(&good, &evil), (&evil, &good)] {
        let to = copy.join(format!("sif/{name}.sif"));
        fs::remove_file(&to).expect("remove a file");
        copied(&real.join(format!("sif/{other}.sif")), &to);
    }
    copied(&copy, &theirs.join("own"));
    let status = Command::new("chown").args(["-R", mallory.name]).arg(theirs.join("own")).status();
    assert!(status.expect("chown runs").success());
    std::os::unix::fs::symlink(&copy, theirs.join("other")).expect("make a link");

    let (stop, swaps) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            as_user(&mallory, || {
                let folder = File::open(&theirs).expect("open mallory's folder");
                for other in ["own", "other"].iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    rustix::fs::renameat_with(&folder, "cache", &folder, *other, RenameFlags::EXCHANGE).expect("swap");
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let _stops = Stop(&stop);
        for round in 0..20 {
            assert_eq!(says(&daemon, "good:1"), "good", "round {round}");
        }
        assert_eq!(says(&daemon, "late:1"), "late");
    });
    assert!(swaps.load(Ordering::Relaxed) > 100);
    let sifs = |folder: &Path| fs::read_dir(folder.join("sif")).expect("list images").count();
    let others: Vec<PathBuf> =
        ["cache", "own", "other"].map(|name| theirs.join(name)).into_iter().filter(|path| !path.is_symlink()).collect();
    assert_eq!((sifs(&real), sifs(&copy), sifs(&others[0])), (6, 4, 4), "what is new is in the cache alone");
}

/// Tells threads to stop when a test ends, however it does.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connects `count` times and keeps what the other end keeps, until that has
/// closed all of them.
fn flood<T: std::os::fd::AsFd>(count: usize, connect: impl Fn() -> io::Result<T>) {
    let mut held: Vec<T> = Vec::new();
    let forget_closed = |held: &mut Vec<T>, timeout| {
        let mut polled: Vec<PollFd<'_>> = held.iter().map(|socket| PollFd::new(socket, PollFlags::RDHUP)).collect();
        poll(&mut polled, Some(&timeout)).expect("poll");
        let closed: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut closed = closed.into_iter();
        held.retain(|_| !closed.next().expect("one for each"));
    };
    for n in 0..count {
        held.push(connect().expect("connect"));
        if n % 50 == 0 {
            forget_closed(&mut held, Timespec { tv_sec: 0, tv_nsec: 0 });
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while !held.is_empty() {
        assert!(Instant::now() < deadline, "{} connections are held for ever", held.len());
        forget_closed(&mut held, Timespec { tv_sec: 0, tv_nsec: 100_000_000 });
    }
}

#[test]
fn privileged_ten_thousand_connections_of_two_users_keep_no_third_one_out() {
    if !have_root("privileged_ten_thousand_connections_of_two_users_keep_no_third_one_out") {
        return;
    }
    // Those that wait to be accepted are held here as well.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < 8192) {
        let enough = Rlimit { current: Some(8192), ..limit };
        rustix::process::setrlimit(Resource::Nofile, enough).expect("raise the limit of open files");
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let daemon = Daemon::with_mounts("", "");
    let third = User::admin();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("list descriptors").count();
    for _ in 0..2 {
        succeeded(&exec(&daemon, &third, &[&uri, "true"]));
    }
    let mut before = 0;
    wait_until("the daemon is quiet", Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(200));
        std::mem::replace(&mut before, descriptors()) == before
    });
    let (mut runs, mut peak, mut slowest) = (0, 0, Duration::ZERO);
    std::thread::scope(|scope| {
        let mut floods = Vec::new();
        for user in [User::a(), User::b()] {
            for mount in [true, false] {
                let (daemon, user) = (&daemon, user.clone());
                floods.push(scope.spawn(move || {
                    as_user(&user, || {
                        if mount {
                            flood(2500, || scm::connect(&mount_socket(daemon)));
                        } else {
                            flood(2500, || UnixStream::connect(daemon.socket()));
                        }
                    });
                }));
            }
        }
        while !floods.iter().all(|flood| flood.is_finished()) {
            let started = Instant::now();
            succeeded(&exec(&daemon, &third, &[&uri, "true"]));
            (runs, slowest) = (runs + 1, slowest.max(started.elapsed()));
            peak = peak.max(descriptors());
        }
    });
    assert!(runs >= 10, "{runs} runs");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    // 64 of each user on each socket, one that is being refused, and what the
    // third one's own take.
    assert!(peak > before + 64 && peak < before + 4 * 64 + 32, "{peak} descriptors, {before} before");
    wait_until("all descriptors are closed again", Duration::from_secs(10), || descriptors() <= before);
}

/// A root daemon that lacks a capability.
struct Weak {
    child: Child,
    folder: Scratch,
}

impl Weak {
    fn without(capability: &str) -> Self {
        let folder = Scratch::of_root();
        let slots = folder.join("slots").display().to_string();
        fs::write(folder.join("sctld.toml"), format!("[mount]\nslots_dir = {slots:?}\n")).expect("write settings");
        let log = File::create(folder.join("log")).expect("make the log");
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set", &format!("-{capability}"), "--inh-caps", &format!("-{capability}")])
            .arg(programs().join("sctld"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        let options = [
            ("--config", "sctld.toml"),
            ("--socket", "sctl.sock"),
            ("--mount-socket", "mount.sock"),
            ("--cache-dir", "cache"),
        ];
        for (option, name) in options {
            command.arg(option).arg(folder.join(name));
        }
        let mut weak = Self { child: command.spawn().expect("setpriv runs"), folder };
        wait_until("the daemon answers", Duration::from_secs(20), || {
            assert!(weak.child.try_wait().expect("ask for its state").is_none(), "{}", weak.log());
            UnixStream::connect(weak.folder.join("sctl.sock")).is_ok() && weak.folder.join("mount.sock").exists()
        });
        weak
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Weak {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn privileged_a_root_daemon_that_may_not_mount_serves_over_fuse_and_says_why_once() {
    if !have_root("privileged_a_root_daemon_that_may_not_mount_serves_over_fuse_and_says_why_once") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let daemon = Weak::without("sys_admin");
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).expect("read its status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("its capabilities");
    let effective = u64::from_str_radix(effective.trim(), 16).expect("a set of bits");
    assert!(effective != 0 && effective & 1 << 21 == 0, "{effective:x}: all but CAP_SYS_ADMIN");
    // Pulled, then leased.
    for _ in 0..2 {
        let output = User::a()
            .command(programs().join("sctl"))
            .env("SCTL_SOCKET", daemon.folder.join("sctl.sock"))
            .args(["-v", "exec", "--no-https", &uri, "cat", "/proc/self/mountinfo"])
            .output()
            .expect("run sctl");
        assert!(succeeded(&output).contains(" - fuse"), "{}", stdout(&output));
        let text = stderr(&output);
        assert_eq!(text.matches("FUSE").count(), 1, "{text}");
        let why = text.lines().find_map(|line| line.strip_prefix(FUSE)).expect("a reason");
        assert!(why.starts_with("there is no place to mount images at: "), "{why}");
    }
    assert_eq!(daemon.log().matches("no kernel mounts: containers use FUSE").count(), 1, "{}", daemon.log());
}
