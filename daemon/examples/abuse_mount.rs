//! Takes a mount on descriptor 3, as a client of mount.sock gets one, and
//! tries to make more of it than it is. Tells on standard error what came of
//! each attempt; the tests of kernel mounts start it as an ordinary user.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags};
use sctl_sys::{
    lease,
    mount::{self, MountAttributes},
    ns::{self, Namespaces},
};

fn tell(what: &str, result: io::Result<impl std::fmt::Display>) {
    match result {
        Ok(value) => eprintln!("{what}: {value}"),
        Err(error) => eprintln!("{what}: errno {}", error.raw_os_error().unwrap_or(0)),
    }
}

fn attempt(what: &str, result: io::Result<()>) {
    tell(what, result.map(|()| "done"));
}

const FLAGS: [(&str, MountAttributes); 3] = [
    ("read-only", MountAttributes::READ_ONLY),
    ("nosuid", MountAttributes::NO_SUID),
    ("nodev", MountAttributes::NO_DEV),
];

fn relax_all(when: &str, mount: &OwnedFd) {
    for (name, flag) in FLAGS {
        attempt(&format!("{when}, clear {name}"), mount::relax(mount, flag));
    }
}

fn remount(path: &str, flags: MountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(path, MountFlags::BIND | flags, "")?)
}

fn main() -> io::Result<()> {
    let mount = sctl_sys::spawn::take_inherited(1)?.remove(0);
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    ns::unshare(Namespaces::USER | Namespaces::MOUNT)?;
    ns::map_single_ids((0, 0), ids)?;
    mount::make_everything_slave()?;

    relax_all("detached", &mount);

    let own = mount::new_filesystem(c"tmpfs", &[], MountAttributes::NONE)?;
    mount::attach(&own, File::open("/tmp")?)?;
    for name in ["/tmp/a", "/tmp/b", "/tmp/c"] {
        fs::create_dir(name)?;
    }
    mount::attach(&mount, File::open("/tmp/a")?)?;

    relax_all("attached", &mount);
    for (name, flags) in [
        ("remount without read-only", MountFlags::NOSUID | MountFlags::NODEV),
        ("remount without nosuid", MountFlags::RDONLY | MountFlags::NODEV),
        ("remount without nodev", MountFlags::RDONLY | MountFlags::NOSUID),
    ] {
        attempt(name, remount("/tmp/a", flags));
    }
    attempt(
        "reconfigure the superblock",
        rustix::mount::mount_remount("/tmp/a", MountFlags::NOSUID | MountFlags::NODEV, "").map_err(Into::into),
    );
    rustix::mount::mount_bind("/tmp/a", "/tmp/b")?;
    attempt("bind, remount without read-only", remount("/tmp/b", MountFlags::NOSUID | MountFlags::NODEV));
    let copy = mount::clone_tree(File::open("/tmp/a")?, c"", false)?;
    relax_all("a clone of it", &copy);

    attempt("give it ids of one's own", mount::idmap(&copy, File::open("/proc/self/ns/user")?));

    look(Path::new("/tmp/a"));

    // Deeper, where the caller owns one more user namespace.
    ns::unshare(Namespaces::USER | Namespaces::MOUNT)?;
    ns::map_single_ids((0, 0), (0, 0))?;
    attempt("attach it in a second namespace", mount::attach(&mount, File::open("/tmp/c")?));
    let deeper = mount::clone_tree(File::open("/tmp/a")?, c"", false)?;
    relax_all("nested", &deeper);
    attempt("nested, remount without read-only", remount("/tmp/a", MountFlags::NOSUID | MountFlags::NODEV));
    attempt(
        "nested, unmount what was mounted above",
        rustix::mount::unmount("/tmp/a", UnmountFlags::DETACH).map_err(Into::into),
    );

    // Whoever is root, even of a namespace only, has every capability there
    // after any program. So not as that.
    ns::unshare(Namespaces::USER)?;
    ns::map_single_ids((1, 1), (0, 0))?;
    for name in ["setuid", "capable"] {
        let program = Path::new("/tmp/a").join(name);
        if program.exists() {
            tell(&format!("run {name}"), run(&program));
        }
    }
    Ok(())
}

/// What a copy of grep finds out about the process that it runs in.
fn run(program: &Path) -> io::Result<String> {
    let output = Command::new(program).args(["-E", "^(Uid|Gid|CapPrm|CapEff):", "/proc/self/status"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What the files are, and what may be done to them.
fn look(root: &Path) {
    let read = |name: &str| -> io::Result<String> {
        let mut text = String::new();
        File::open(root.join(name))?.read_to_string(&mut text)?;
        Ok(text.trim_end().to_owned())
    };
    tell("read a file", read("hello"));
    tell("who owns image root's file", fs::metadata(root.join("hello")).map(|stat| stat.uid()));
    tell("who owns the file with this user's id", fs::metadata(root.join("of-test-a")).map(|stat| stat.uid()));
    attempt("create a file", File::create(root.join("new")).map(drop));
    attempt("write a file", File::options().write(true).open(root.join("hello")).map(drop));
    // A lease is the owner's to take, for reading as for writing.
    for name in ["hello", "of-test-a"] {
        let leased = File::open(root.join(name)).and_then(|file| lease::check_writers(file.as_fd()));
        attempt(&format!("lease {name}"), leased.map(drop));
    }
    attempt("unlink a file", fs::remove_file(root.join("hello")));
    tell(
        "what is above it",
        fs::metadata(root.join("..")).map(|above| {
            let own = fs::metadata("/tmp").map(|stat| stat.dev()).unwrap_or(0);
            if above.dev() == own { "this user's own folder" } else { "something of the host" }
        }),
    );
    tell("open a device", File::open(root.join("null")).map(|_| "done"));
    if root.join("pipe").exists() {
        let pipe = File::options().read(true).write(true).open(root.join("pipe"));
        tell("open a FIFO", pipe.map(|_| "done"));
    }
}
