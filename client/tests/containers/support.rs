//! Images and a user to run them as.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use sctl_sif::{Arch, Builder, DataType, FsType, NewObject, Options, PartitionKind};

/// The user that containers are started as: it exists nowhere but in tests.
pub const USER: &str = "sctl-test-a";

/// What every test needs: root, to become another user, and a few programs.
/// A missing one is told loudly.
pub fn ready(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED {test}: needs root, to start containers as another user");
        return false;
    }
    for program in ["busybox", "mksquashfs", "runuser", "useradd"] {
        if !["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists()) {
            eprintln!("SKIPPED {test}: {program} is not installed");
            return false;
        }
    }
    static USER_MADE: OnceLock<bool> = OnceLock::new();
    let made = *USER_MADE.get_or_init(|| {
        // An existing one is as good, so only the outcome counts.
        let _ = Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", USER]).output();
        Command::new("id").arg(USER).output().is_ok_and(|output| output.status.success())
    });
    if !made {
        eprintln!("SKIPPED {test}: cannot make the user {USER}");
    }
    made
}

/// Folder with the program under test and images, that every user can read.
pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// Makes the folder with a copy of the program.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sctl-container-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Not by this process: a child of another test could still hold the copy
        // open for writing, and then it cannot be executed.
        let copied = Command::new("cp").args([env!("CARGO_BIN_EXE_sctl").as_ref(), folder.path()]).status();
        assert!(copied.unwrap().success());
        let bench = Self { folder };
        bench.make_tree();
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A root file system with busybox and little more.
    fn make_tree(&self) {
        let root = self.path("tree");
        for dir in ["bin", "dev", "proc", "sys", "tmp", "var/tmp", "home", "root", "run", "etc", "data"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in
            "sh ls cat env id mount ps sleep touch pwd stat wc readlink kill true false head grep test".split(' ')
        {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        self.write("tree/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        self.write("tree/etc/group", "root:x:0:\n");
        self.write("tree/etc/hosts", "");
        self.write("tree/etc/resolv.conf", "");
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn script(&self, name: &str, text: &str) {
        self.write(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn link(&self, target: &str, name: &str) {
        // Tests that share a bench may have made it.
        let _ = symlink(target, self.path(name));
    }

    /// Packs `tree` (or another folder) as squashfs.
    pub fn squashfs(&self, folder: &str, name: &str) -> PathBuf {
        let image = self.path(name);
        let output = Command::new("mksquashfs")
            .args([self.path(folder), image.clone()])
            .args(["-comp", "zstd", "-noappend", "-quiet", "-no-progress", "-all-root"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        image
    }

    /// A SIF as a pull makes it, with this inner OCI config.
    pub fn own_sif(&self, name: &str, config: &str) -> PathBuf {
        let partition = fs::read(self.squashfs("tree", "partition.squashfs")).unwrap();
        let definition = "bootstrap: docker\nfrom: registry.example/image@sha256:0123\n\n";
        let inspect = serde_json::json!({"data": {"attributes": {
            "labels": {"org.label-schema.usage.singularity.version": "sctl-1.1"},
            "deffile": definition.trim_end(),
        }}, "type": "container"});
        let mut builder = Builder::new(Options::deterministic()).unwrap();
        builder.add(NewObject::new(DataType::DefFile, ""), definition.into()).unwrap();
        let json = |name| NewObject::new(DataType::GenericJson, name);
        builder.add(json("inspect-metadata.json"), inspect.to_string().into()).unwrap();
        builder.add(json("oci-config.json"), config.into()).unwrap();
        let slot = builder.start_partition(FsType::Squashfs, PartitionKind::Primary).unwrap();
        let path = self.path(name);
        let file = fs::File::create(&path).unwrap();
        file.write_all_at(&partition, slot.offset).unwrap();
        builder.finish_partition(slot, partition.len() as u64, Arch::UNKNOWN).unwrap();
        let layout = builder.finish().unwrap();
        for piece in layout.pieces {
            file.write_all_at(&piece.bytes, piece.offset).unwrap();
        }
        file.set_len(layout.file_size).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// The program, started as the user, with a small environment.
    pub fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new("runuser");
        command.args(["-u", USER, "--"]).arg(self.path("sctl")).args(args);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("TERM", "dumb").current_dir("/");
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Runs `exec [options] image sh -c script`.
    pub fn sh(&self, options: &[&str], image: &Path, script: &str) -> Output {
        let mut args: Vec<OsString> = vec!["exec".into()];
        args.extend(options.iter().map(OsString::from));
        args.extend([image.as_os_str().to_owned(), "sh".into(), "-c".into(), script.into()]);
        self.command(args).output().unwrap()
    }
}

/// Standard output of a run that must have succeeded.
pub fn stdout(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
