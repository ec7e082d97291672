//! Containers on kernel mounts that one root daemon hands to several users,
//! and what happens where there are none.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Output, Stdio},
    time::Duration,
};

use sctl_tests::{
    daemon::{Daemon, User},
    debian,
    image::{self, Image},
    layer::{Entry, Layer},
    programs::{Scratch, have_root, stderr, stdout, succeeded, wait_until},
    registry::{Demands, Registry},
};

pub(crate) const FUSE: &str = "VERBOSE: The image is served over FUSE: ";

pub(crate) fn exec(daemon: &Daemon, user: &User, arguments: &[&str]) -> Output {
    daemon.sctl(user).args(["-v", "exec", "--no-https"]).args(arguments).output().expect("run sctl")
}

/// The line of `/proc/self/mountinfo` that is about the root.
fn root_line(mountinfo: &str) -> Vec<&str> {
    let roots: Vec<&str> = mountinfo.lines().filter(|line| line.split(' ').nth(4) == Some("/")).collect();
    let [root] = roots[..] else { panic!("{} mounts on the root: {mountinfo}", roots.len()) };
    root.split(' ').collect()
}

/// Type of the root's file system.
fn kind(mountinfo: &str) -> String {
    let line = root_line(mountinfo);
    let dash = line.iter().position(|field| *field == "-").expect("a dash before the type");
    line[dash + 1].to_owned()
}

/// Processes that have a file of the daemon's cache open, but for the daemon
/// and what it has started.
fn holders(daemon: &Daemon) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
    };
    let pids = fs::read_dir("/proc").expect("read /proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| {
            let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
            fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path.starts_with(daemon.cache())))
        })
        .filter(|&pid| pid != daemon.pid() && parent(pid) != Some(daemon.pid()))
        .collect()
}

/// A container that has told about its mounts and waits to be ended.
struct Container {
    child: Child,
    output: BufReader<ChildStdout>,
    mountinfo: String,
}

impl Container {
    fn start(daemon: &Daemon, user: &User, uri: &str) -> Self {
        let script = "cat /proc/self/mountinfo; echo; read line";
        let mut child = daemon
            .sctl(user)
            .args(["exec", "--no-https", uri, "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start sctl");
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Self { child, output, mountinfo: String::new() }
    }

    fn listen(&mut self) {
        loop {
            let mut line = String::new();
            let len = self.output.read_line(&mut line).expect("read the container's output");
            assert!(len > 0, "the container ended: {}", self.mountinfo);
            if line == "\n" {
                return;
            }
            self.mountinfo += &line;
        }
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("wait for the container").code().is_some());
    }
}

#[test]
fn privileged_users_run_the_same_and_different_images_on_kernel_mounts() {
    if !have_root("privileged_users_run_the_same_and_different_images_on_kernel_mounts") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    registry.seed(&debian::layered(), "layered:1");
    let daemon = Daemon::with_mounts("", "");
    let users = [User::a(), User::b()];
    let uris = ["busybox:1", "layered:1"].map(|name| format!("docker://{}", registry.reference(name)));
    let mut containers: Vec<(usize, Container)> = Vec::new();
    for user in &users {
        for (image, uri) in uris.iter().enumerate() {
            containers.push((image, Container::start(&daemon, user, uri)));
        }
    }
    for (_, container) in &mut containers {
        container.listen();
    }
    let mut devices = [const { Vec::new() }; 2];
    for (image, container) in &containers {
        let root = root_line(&container.mountinfo);
        let flags: Vec<&str> = root[5].split(',').collect();
        for flag in ["ro", "nosuid", "nodev"] {
            assert!(flags.contains(&flag), "{flag}: {}", container.mountinfo);
        }
        assert_eq!(kind(&container.mountinfo), "squashfs");
        assert!(!container.mountinfo.contains(" - fuse"), "{}", container.mountinfo);
        assert!(!container.mountinfo.contains(&daemon.cache().display().to_string()), "{}", container.mountinfo);
        devices[*image].push(root[2].to_owned());
        // The payload is the process that the user started, and has no helper.
        let pid = container.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("read its children");
        assert_eq!(children, "");
    }
    assert_eq!(holders(&daemon), Vec::<u32>::new(), "somebody serves an image");
    for same in &devices {
        assert_eq!(same[0], same[1], "both users share one superblock");
    }
    assert_ne!(devices[0][0], devices[1][0], "two images");
    containers.into_iter().for_each(|(_, container)| container.end());
}

#[test]
fn privileged_without_kernel_mounts_fuse_serves_and_says_why() {
    if !have_root("privileged_without_kernel_mounts_fuse_serves_and_says_why") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::busybox(), "busybox:1");
    let daemon = Daemon::with_mounts("", "enabled = false");
    let user = User::a();
    let uri = format!("docker://{}", registry.reference("busybox:1"));
    let pulled = exec(&daemon, &user, &[&uri, "cat", "/proc/self/mountinfo"]);
    let leased = exec(&daemon, &user, &[&uri, "cat", "/proc/self/mountinfo"]);
    for output in [pulled, leased] {
        assert_eq!(kind(&succeeded(&output)), "fuse");
        let text = stderr(&output);
        assert_eq!(text.matches("FUSE").count(), 1, "{text}");
        let why = text.lines().find_map(|line| line.strip_prefix(FUSE)).expect("a reason");
        assert!(why.contains("enabled"), "{why}");
    }
    let quiet = daemon.sctl(&user).args(["exec", "--no-https", &uri, "true"]).output().expect("run sctl");
    succeeded(&quiet);
    assert!(!stderr(&quiet).contains("FUSE"), "{}", stderr(&quiet));
    // A server ends soon after its container.
    let all_ended = || wait_until("the FUSE servers end", Duration::from_secs(10), || holders(&daemon).is_empty());
    all_ended();
    // What holds the image in the test above, if it does.
    let mut served = Container::start(&daemon, &user, &uri);
    served.listen();
    assert_eq!(holders(&daemon).len(), 1, "the FUSE server");
    served.end();
    all_ended();
}

/// Writes everywhere, and says what became of it.
const WRITES: &str = r#"set -e
for dir in /etc /root; do
    echo created > $dir/new
    echo appended >> $dir/new
    mv $dir/new $dir/renamed
    ln $dir/renamed $dir/linked
    mkdir $dir/folder
    echo inside > $dir/folder/file
    cat $dir/linked
done
echo more >> /etc/motd
tail -n 1 /etc/motd
rm /etc/issue
[ ! -e /etc/issue ]
mv /etc/debian_version /etc/moved
[ -s /etc/moved ]
ln /etc/os-release /etc/release-linked 2>/dev/null || ln /usr/lib/os-release /etc/release-linked
chmod 600 /etc/motd
rm -r /usr/share/man
stat -c %u /etc/motd /root
if dd if=/dev/zero of=/root/big bs=1M count=100 2>/dev/null; then echo unlimited; else echo limited; fi
"#;

#[test]
fn privileged_a_throw_away_layer_can_be_written_everywhere() {
    if !have_root("privileged_a_throw_away_layer_can_be_written_everywhere") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::layered(), "layered:1");
    let uri = format!("docker://{}", registry.reference("layered:1"));
    for mount in ["", "enabled = false"] {
        let daemon = Daemon::with_mounts("", mount);
        for user in [User::a(), User::b()] {
            let output = exec(&daemon, &user, &["--writable-tmpfs", &uri, "sh", "-c", WRITES]);
            let written = succeeded(&output);
            let expected =
                format!("created\nappended\ncreated\nappended\nmore\n{uid}\n{uid}\nlimited\n", uid = user.uid);
            assert_eq!(written, expected, "{mount:?}: {}", stderr(&output));
            assert_eq!(stderr(&output).contains(FUSE), !mount.is_empty(), "{}", stderr(&output));
            let mountinfo =
                succeeded(&exec(&daemon, &user, &["--writable-tmpfs", &uri, "cat", "/proc/self/mountinfo"]));
            assert_eq!(kind(&mountinfo), "overlay");
            let accounts = "echo 'added:x:5:5::/:/bin/sh' >> /etc/passwd && id -un 5 && tail -n 1 /etc/passwd";
            let added = exec(&daemon, &user, &["--writable-tmpfs", &uri, "sh", "-c", accounts]);
            assert!(succeeded(&added).ends_with("added:x:5:5::/:/bin/sh\n"), "{}", stdout(&added));
            // Nothing of it is left, in the layer or in the image.
            let after = exec(&daemon, &user, &["--writable-tmpfs", &uri, "ls", "/etc/issue", "/etc/debian_version"]);
            assert_eq!(succeeded(&after), "/etc/debian_version\n/etc/issue\n");
        }
    }
}

/// A user's own copy of an image, pulled through the daemon.
struct Copy<'a> {
    daemon: &'a Daemon,
    user: User,
    folder: PathBuf,
    home: PathBuf,
}

impl<'a> Copy<'a> {
    fn pull(daemon: &'a Daemon, user: User, scratch: &Scratch, name: &str, uri: &str) -> Self {
        let copy = Self {
            daemon,
            folder: user.folder(scratch, name),
            home: user.folder(scratch, &format!("{name}-home")),
            user,
        };
        succeeded(&copy.sctl().args(["pull", "--no-https", "own.sif", uri]).output().expect("run sctl"));
        copy
    }

    /// The program with a home directory of this copy's own.
    fn sctl(&self) -> std::process::Command {
        let mut command = self.daemon.sctl(&self.user);
        command.env("HOME", &self.home).current_dir(&self.folder);
        command
    }

    fn path(&self) -> PathBuf {
        self.folder.join("own.sif")
    }

    /// Runs the copy: type of its root, and why it is FUSE.
    fn run(&self, path: &Path) -> (String, Option<String>) {
        let script = "echo $SINGULARITY_CONTAINER $BASE >&2; cat /proc/self/mountinfo";
        let output = self.sctl().args(["-v", "exec"]).arg(path).args(["sh", "-c", script]).output().expect("run sctl");
        let kind = kind(&succeeded(&output));
        let text = stderr(&output);
        assert!(text.contains(&format!("{} debian\n", path.display())), "{text}");
        (kind, text.lines().find_map(|line| line.strip_prefix(FUSE)).map(str::to_owned))
    }

    /// The only record of a delivery.
    fn record(&self) -> PathBuf {
        let folder = self.home.join(".cache/sctl/delivered");
        let records: Vec<PathBuf> =
            fs::read_dir(folder).expect("there are records").flatten().map(|e| e.path()).collect();
        let [record] = &records[..] else { panic!("{records:?}") };
        record.clone()
    }
}

fn served(why: &str) -> (String, Option<String>) {
    ("fuse".to_owned(), Some(why.to_owned()))
}

const CHANGED: &str = "it has been changed since it was delivered";
const UNKNOWN: &str = "it is not known as a copy of an image of the cache";

#[test]
fn privileged_an_unchanged_copy_of_a_cached_image_is_as_fast() {
    if !have_root("privileged_an_unchanged_copy_of_a_cached_image_is_as_fast") {
        return;
    }
    let registry = Registry::start();
    registry.seed(&debian::base(), "debian:12");
    let uri = format!("docker://{}", registry.reference("debian:12"));
    let daemon = Daemon::with_mounts("", "");
    let scratch = Scratch::new();
    let fast = ("squashfs".to_owned(), None);
    let copy = Copy::pull(&daemon, User::a(), &scratch, "own", &uri);
    let own = copy.path();
    assert_eq!(copy.run(&own), fast);
    let written = copy.sctl().args(["exec", "--writable-tmpfs", "own.sif", "touch", "/etc/x"]).output();
    succeeded(&written.expect("run sctl"));

    // Another file of the same content is another file.
    let other = copy.folder.join("other.sif");
    fs::copy(&own, &other).expect("copy the SIF");
    assert_eq!(copy.run(&other), served(UNKNOWN));
    // Nobody else's records count, root's neither.
    let stranger = Copy::pull(&daemon, User::b(), &scratch, "stranger", &uri);
    assert_eq!(stranger.run(&own), served(UNKNOWN));
    assert_eq!(copy.run(&own), fast);
    let record = fs::read(copy.record()).expect("read the record");
    std::os::unix::fs::chown(copy.record(), Some(0), Some(0)).expect("give the record away");
    fs::set_permissions(copy.record(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("let it be read");
    assert_eq!(copy.run(&own), served(UNKNOWN));
    std::os::unix::fs::chown(copy.record(), Some(copy.user.uid), None).expect("give the record back");
    assert_eq!(copy.run(&own), fast);

    // A record is only a name for what the caller may use anyway.
    let text = String::from_utf8(record).expect("records are text");
    let key = text.split('"').rfind(|part| part.len() == 64).expect("a key");
    fs::write(copy.record(), text.replace(key, &"0".repeat(64))).expect("change the record");
    assert_eq!(copy.run(&own), served("the image is not in the cache, or not yours to use"));
    fs::write(copy.record(), text.replace("debian:12", "other:12")).expect("change the record");
    assert_eq!(copy.run(&own), served("the image is not in the cache, or not yours to use"));
    fs::write(copy.record(), &text).expect("restore the record");
    assert_eq!(copy.run(&own), fast);

    // Renamed, as workflow engines do once a pull has succeeded.
    let renamed = copy.folder.join("renamed.img");
    fs::rename(&own, &renamed).expect("rename the SIF");
    assert_eq!(copy.run(&renamed), fast);
    fs::rename(&renamed, &own).expect("rename the SIF");
    assert_eq!(copy.run(&own), fast);
    // Written to, with its times put back.
    let time = fs::metadata(&own).expect("stat").modified().expect("a time");
    let file = fs::File::options().read(true).write(true).open(&own).expect("open the SIF");
    let (mut byte, last) = ([0], file.metadata().expect("stat").len() - 1);
    file.read_exact_at(&mut byte, last).expect("read the SIF");
    file.write_all_at(&[!byte[0]], last).expect("write to the SIF");
    file.set_modified(time).expect("put the time back");
    assert_eq!(copy.run(&own), served(CHANGED));
    // Replaced by another pull: known again, and the old one forgotten.
    succeeded(&copy.sctl().args(["pull", "--force", "--no-https", "own.sif", &uri]).output().expect("run sctl"));
    assert_eq!(copy.run(&own), fast);
    fs::rename(&other, &own).expect("replace the SIF");
    assert_eq!(copy.run(&own), served(UNKNOWN));

    // A daemon that does not answer is not missed, and no other is started.
    succeeded(&copy.sctl().args(["pull", "--force", "--no-https", "own.sif", &uri]).output().expect("run sctl"));
    let run = user_folder(&copy);
    let output = copy
        .sctl()
        .env("SCTL_SOCKET", run.join("none.sock"))
        .env("XDG_RUNTIME_DIR", &run)
        .args(["-v", "exec", "own.sif", "true"])
        .output()
        .expect("run sctl");
    succeeded(&output);
    assert!(stderr(&output).contains(&format!("{FUSE}Unable to reach the image daemon")), "{}", stderr(&output));
    assert_eq!(fs::read_dir(&run).expect("read the folder").count(), 0, "something was started");
}

fn user_folder(copy: &Copy<'_>) -> PathBuf {
    let run = copy.folder.join("run");
    fs::create_dir(&run).expect("make a folder");
    std::os::unix::fs::chown(&run, Some(copy.user.uid), Some(copy.user.gid)).expect("give the folder away");
    run
}

#[test]
fn privileged_a_forged_record_opens_no_image_of_another() {
    if !have_root("privileged_a_forged_record_opens_no_image_of_another") {
        return;
    }
    let registry = Registry::start_with(&Demands {
        user: Some(("alice".to_owned(), "wonder land".to_owned())),
        ..Demands::default()
    });
    let scratch = Scratch::new();
    let mut private = debian::busybox();
    private.layers.push(Layer::new(&[Entry::file("private", "private bytes")]));
    private.write_layout(&scratch.join("layout"), "t");
    image::push(&scratch.join("layout"), "t", &registry.reference("private:1"), Some("alice:wonder land"));
    let daemon = Daemon::with_mounts("", "");
    let (alice, bob) = (User::a(), User::b());
    let home = alice.folder(&scratch, "alice");
    let uri = format!("docker://{}", registry.reference("private:1"));
    let pulled = daemon
        .sctl(&alice)
        .env("HOME", &home)
        .env("SINGULARITY_DOCKER_USERNAME", "alice")
        .env("SINGULARITY_DOCKER_PASSWORD", "wonder land")
        .current_dir(&home)
        .args(["pull", "--no-https", "x.sif", &uri])
        .output();
    succeeded(&pulled.expect("run sctl"));
    let folder = home.join(".cache/sctl/delivered");
    let record = fs::read_dir(&folder).expect("there is a record").flatten().next().expect("one").path();
    // Bob has learned it all, and makes a file and a record of his own.
    let public = Registry::start();
    public.seed(&debian::base(), "debian:12");
    let copy = Copy::pull(&daemon, bob, &scratch, "bob", &format!("docker://{}", public.reference("debian:12")));
    let words = |path: &Path| -> Vec<String> {
        fs::read_to_string(path).expect("read a record").split('"').map(str::to_owned).collect()
    };
    let (theirs, mut forged) = (words(&record), words(&copy.record()));
    for name in ["reference", "platform", "image_key"] {
        let value = |words: &[String]| 2 + words.iter().position(|word| word == name).expect("a member");
        let at = value(&forged);
        forged[at] = theirs[value(&theirs)].clone();
    }
    fs::write(copy.record(), forged.join("\"")).expect("forge the record");
    assert_eq!(copy.run(&copy.path()), served("the image is not in the cache, or not yours to use"));
}

#[test]
fn privileged_odd_images_start_on_kernel_mounts() {
    if !have_root("privileged_odd_images_start_on_kernel_mounts") {
        return;
    }
    let registry = Registry::start();
    let mut odd = debian::busybox();
    odd.layers.push(Layer::new(&[
        // Closed to everybody but the image's root, as which nobody runs.
        Entry::dir("private").mode(0o700),
        Entry::file("private/file", "closed"),
        Entry::dir("root").mode(0o700),
        Entry::dir("home").mode(0o700),
        Entry::file("etc/shadow", "root:*").mode(0o600),
        Entry::dir("etc/closed").mode(0o700),
        Entry::symlink("etc/hosts", "/private/hosts"),
        // No directory where everybody expects one.
        Entry::file("tmp", "a file"),
    ]));
    registry.seed(&odd, "odd:1");
    let bare = fs::read("/bin/busybox").expect("read busybox (tests/install.sh installs it)");
    registry.seed(&Image::new(vec![Layer::new(&[Entry::file("sh", bare).mode(0o755)])]), "bare:1");
    let daemon = Daemon::with_mounts("", "");
    let user = User::a();
    let scratch = Scratch::new();
    let data = user.folder(&scratch, "data");
    fs::write(data.join("file"), "from the host\n").expect("write");
    let uri = format!("docker://{}", registry.reference("odd:1"));
    // What is in a closed directory is out of everybody's reach, so it may be
    // covered where a place in it is needed.
    let script = "cat /new/place/file /root/inner/file; ls /root; ls -d $HOME; cat /proc/self/mountinfo; \
                  ls /private 2>&1; id -un";
    let bind = format!("{}:/new/place", data.display());
    let inner = format!("{}:/root/inner", data.display());
    let output = exec(&daemon, &user, &["--bind", &bind, "--bind", &inner, &uri, "sh", "-c", script]);
    let text = succeeded(&output);
    let home = user.home.display();
    assert!(text.starts_with(&format!("from the host\nfrom the host\ninner\n{home}\n")), "{text}");
    assert!(text.ends_with(&format!("'/private': Permission denied\n{}\n", user.name)), "{text}");
    assert!(text.contains(" - squashfs ") && !text.contains(" - fuse"), "{text}");
    assert!(!stderr(&output).contains(FUSE), "{}", stderr(&output));
    assert!(!stderr(&output).contains("Skipping mount of /home"), "{}", stderr(&output));
    // An image with nothing but a shell.
    let uri = format!("docker://{}", registry.reference("bare:1"));
    for options in [&[][..], &["--containall"]] {
        let script =
            "while read line; do echo $line; done < /proc/self/mountinfo; read line < /new/place/file; echo $line";
        let output = exec(&daemon, &user, &[options, &["--bind", &bind, &uri, "/sh", "-c", script]].concat());
        let text = succeeded(&output);
        assert!(text.ends_with("\nfrom the host\n"), "{options:?}: {text}");
        assert!(text.contains(" - squashfs ") && !text.contains(" - fuse"), "{options:?}: {text}");
    }
}
