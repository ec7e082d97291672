//! Every verb with its options: the command line as data.

use super::flag::Flag;

/// How many arguments a verb takes besides its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Args {
    /// Exactly this many.
    Exactly(usize),
    /// This many or more.
    AtLeast(usize),
    /// From, to.
    Between(usize, usize),
}

/// What the program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Only holds other verbs.
    Group,
    /// `pull`
    Pull,
    /// `build`
    Build,
    /// `exec`
    Exec,
    /// `run`
    Run,
    /// `shell`
    Shell,
    /// `inspect`
    Inspect,
    /// `cache list`
    CacheList,
    /// `cache info`
    CacheInfo,
    /// `cache clean`
    CacheClean,
    /// `admin mounts`
    AdminMounts,
    /// `admin jobs`
    AdminJobs,
    /// `admin leases`
    AdminLeases,
    /// `admin unmount`
    AdminUnmount,
    /// `version`
    Version,
    /// `help`
    Help,
    /// `completion`
    Completion,
    /// `man`
    Manual,
}

/// One verb.
#[derive(Debug)]
pub struct Verb {
    /// Its name.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// What follows its name in the usage line.
    pub usage: &'static str,
    /// What it does.
    pub action: Action,
    /// How many arguments it takes.
    pub args: Args,
    /// Options end at the first argument: the rest belongs to the container.
    pub stops_at_image: bool,
    /// Its options, in groups that verbs share.
    pub flags: &'static [&'static [Flag]],
    /// Verbs below it.
    pub verbs: &'static [Verb],
    /// Text at the end of its help.
    pub examples: &'static str,
}

impl Verb {
    const LEAF: Self = Self {
        name: "",
        about: "",
        usage: "",
        action: Action::Group,
        args: Args::Exactly(0),
        stops_at_image: false,
        flags: &[],
        verbs: &[],
        examples: "",
    };

    /// All its options, without the global ones.
    pub fn own_flags(&self) -> impl Iterator<Item = &'static Flag> {
        self.flags.iter().flat_map(|group| group.iter())
    }
}

/// Options before or after every verb.
pub static GLOBAL: &[Flag] = &[
    Flag::switch("debug", "print debugging information (highest verbosity)").short('d').keys(&["DEBUG"]),
    Flag::switch("nocolor", "print without color output").keys(&["NOCOLOR"]),
    Flag::switch("quiet", "suppress normal output").short('q').keys(&["QUIET"]),
    Flag::switch("silent", "only print errors").short('s').keys(&["SILENT"]),
    Flag::switch("verbose", "print additional information").short('v').keys(&["VERBOSE"]),
];

/// Options before the verb only.
pub static ROOT: &[Flag] = &[
    // Without a variable: CONFIG_FILE names files of another format to the
    // established tools.
    Flag::value("config", "FILE", "specify a configuration file").short('c'),
    Flag::switch("version", "print the version of the program"),
];

const REGISTRY: &[Flag] = &[
    Flag::switch("docker-login", "login to a Docker Repository interactively").keys(&["DOCKER_LOGIN"]),
    Flag::value("docker-username", "NAME", "specify a username for docker authentication")
        .keys(&["DOCKER_USERNAME"])
        .bare_keys(&["DOCKER_USERNAME"])
        .hidden(),
    Flag::value("docker-password", "TEXT", "specify a password for docker authentication")
        .keys(&["DOCKER_PASSWORD"])
        .bare_keys(&["DOCKER_PASSWORD"])
        .hidden(),
    // The socket of a Docker daemon is used by docker-daemon:// only, which is
    // refused as a transport; a variable set for other programs must not hurt.
    Flag::value("docker-host", "URL", "specify a custom Docker daemon host").harmless().hidden(),
    Flag::value("authfile", "FILE", "Docker-style authentication file to use instead of the default ones")
        .keys(&["AUTH_FILE", "AUTHFILE"]),
    Flag::switch("no-https", "use http instead of https, or accept any certificate")
        .keys(&["NO_HTTPS", "NOHTTPS"])
        .aliases(&["nohttps"]),
    Flag::switch("disable-cache", "do not keep anything in the cache").keys(&["DISABLE_CACHE"]),
    Flag::value("tmpdir", "DIR", "no effect: nothing is unpacked to disk").keys(&["TMPDIR"]).harmless().hidden(),
];

const PLATFORM: &[Flag] = &[
    Flag::value("arch", "ARCH", "architecture to select from a multi-platform image").keys(&["PULL_ARCH"]),
    Flag::value("arch-variant", "VARIANT", "variant of the architecture, such as v7").keys(&["PULL_ARCH_VARIANT"]),
    Flag::value("platform", "OS/ARCH/VARIANT", "platform to select, such as linux/arm64").keys(&["PLATFORM"]),
    Flag::value("compression", "NAME[:LEVEL]", "compressor of the image: zstd[:1-22] or gzip[:1-9]")
        .keys(&["COMPRESSION"]),
];

const PULL: &[Flag] = &[
    Flag::switch("force", "overwrite an image file if it exists").short('F').keys(&["FORCE"]),
    Flag::value("dir", "DIR", "download images to the specific directory").keys(&["PULLDIR", "PULLFOLDER"]),
    Flag::value("name", "NAME", "specify a custom image name").keys(&["PULL_NAME"]).hidden(),
    Flag::switch("allow-unsigned", "no effect").short('U').keys(&["ALLOW_UNSIGNED"]).harmless().hidden(),
    Flag::switch("no-cleanup", "no effect: nothing is unpacked to disk").keys(&["NO_CLEANUP"]).harmless().hidden(),
    Flag::value("library", "URL", "download images from the provided library").missing(),
    Flag::switch("sandbox", "write a directory instead of an image file").missing(),
    Flag::switch("reproducible", "no effect: images are always reproducible").harmless().hidden(),
    Flag::switch("oci", "pull to an OCI-SIF").missing(),
    Flag::switch("keep-layers", "keep layers in an OCI-SIF").missing(),
    Flag::switch("cosign", "pull cosign signatures").missing(),
];

const BUILD: &[Flag] = &[
    Flag::switch("force", "overwrite an image file if it exists").short('F').keys(&["FORCE"]),
    Flag::switch("sandbox", "build a directory instead of an image file").short('s').missing(),
    Flag::switch("update", "run a definition over an existing directory").short('u').missing(),
    Flag::switch("remote", "build on a remote builder").short('r').missing(),
    Flag::switch("fakeroot", "no effect: no build needs privileges").short('f').keys(&["FAKEROOT"]).harmless().hidden(),
    Flag::switch("fix-perms", "change permissions so that the owner can delete everything").missing(),
    Flag::switch("notest", "no effect: only definition files have tests").short('T').harmless().hidden(),
    Flag::switch("no-test", "no effect: only definition files have tests").harmless().hidden(),
    Flag::switch("json", "interpret the definition as JSON").missing(),
    Flag::many("section", "NAME", "run only some sections of a definition").missing(),
    Flag::many("bind", "SPEC", "bind paths during a definition's %post").short('B').missing(),
    Flag::many("build-arg", "KEY=VALUE", "argument for a definition").missing(),
    Flag::value("build-arg-file", "FILE", "arguments for a definition").missing(),
    Flag::switch("encrypt", "encrypt the image").short('e').missing(),
    Flag::switch("no-cleanup", "no effect: nothing is unpacked to disk").keys(&["NO_CLEANUP"]).harmless().hidden(),
    Flag::switch("nv", "bind NVIDIA files during %post").missing(),
    Flag::switch("rocm", "bind ROCm files during %post").missing(),
    Flag::value("library", "URL", "library of the base image").missing(),
    Flag::switch("oci", "build an OCI-SIF").missing(),
];

const CONTAINER: &[Flag] = &[
    Flag::many("bind", "SPEC", "bind path as source[:destination[:options]]; several are separated by commas")
        .short('B')
        .keys(&["BIND", "BINDPATH"])
        .adds_up(),
    Flag::many("mount", "SPEC", "mount as type=bind,source=PATH,destination=PATH[,ro]").keys(&["MOUNT"]).adds_up(),
    Flag::switch("contain", "use minimal /dev and empty other directories (such as /tmp and $HOME)")
        .short('c')
        .keys(&["CONTAIN"]),
    Flag::switch("containall", "contain, and also PID, IPC and environment").short('C').keys(&["CONTAINALL"]),
    Flag::switch("compat", "like --containall --no-init --no-umask --writable-tmpfs").keys(&["COMPAT"]),
    Flag::switch("cleanenv", "clean the environment before running the container").short('e').keys(&["CLEANENV"]),
    Flag::many("env", "NAME=VALUE", "pass environment variables to the container; several are separated by commas"),
    Flag::many("env-file", "FILE", "pass environment variables from a file").keys(&["ENV_FILE"]),
    Flag::value("home", "SOURCE[:DESTINATION]", "home directory of the container").short('H').keys(&["HOME"]),
    Flag::switch("no-home", "do not mount the home directory").keys(&["NO_HOME"]),
    Flag::many("no-mount", "NAME", "leave out mounts: proc,sys,dev,devpts,home,tmp,hostfs,cwd,bind-paths")
        .keys(&["NO_MOUNT"]),
    Flag::value("cwd", "DIR", "initial working directory inside the container")
        .keys(&["CWD", "TARGET_CWD", "PWD", "TARGET_PWD"])
        .aliases(&["pwd"]),
    Flag::value("workdir", "DIR", "host directory for /tmp, /var/tmp and $HOME (with --contain)")
        .short('W')
        .keys(&["WORKDIR"]),
    Flag::many("scratch", "DIR", "empty writable directory inside the container")
        .short('S')
        .keys(&["SCRATCH", "SCRATCHDIR"]),
    Flag::switch("writable-tmpfs", "make the image writable; what is written is thrown away").keys(&["WRITABLE_TMPFS"]),
    Flag::switch("no-umask", "do not carry the umask into the container").keys(&["NO_UMASK"]),
    Flag::switch("pid", "run in a new PID namespace").short('p').keys(&["PID", "UNSHARE_PID"]),
    Flag::switch("no-init", "run the program as PID 1 of a new PID namespace").keys(&["NOSHIMINIT"]),
    Flag::switch("ipc", "run in a new IPC namespace").short('i').keys(&["IPC", "UNSHARE_IPC"]),
    Flag::switch("uts", "run in a new UTS namespace").keys(&["UTS", "UNSHARE_UTS"]),
    Flag::value("hostname", "NAME", "host name inside the container; implies --uts").keys(&["HOSTNAME"]),
    Flag::switch("net", "run in a new network namespace (with --network none)")
        .short('n')
        .keys(&["NET", "UNSHARE_NET"]),
    Flag::value("network", "NAME", "network of the new namespace: none").keys(&["NETWORK"]),
    Flag::many("dns", "IP", "DNS servers inside the container, separated by commas").keys(&["DNS"]),
    Flag::switch("userns", "no effect: containers always run in a user namespace")
        .short('u')
        .keys(&["USERNS", "UNSHARE_USERNS"])
        .harmless(),
    Flag::switch("no-eval", "no effect: arguments and variables are always passed exactly")
        .keys(&["NO_EVAL"])
        .harmless(),
    Flag::switch("no-privs", "no effect: containers never have privileges").keys(&["NO_PRIVS"]).harmless().hidden(),
    Flag::switch("underlay", "no effect").keys(&["UNDERLAY"]).harmless().hidden(),
    Flag::switch("unsquash", "no effect: images are never unpacked").keys(&["UNSQUASH"]).harmless().hidden(),
    Flag::switch("tmp-sandbox", "no effect: images are never unpacked").keys(&["TMP_SANDBOX"]).harmless().hidden(),
    Flag::switch("no-tmp-sandbox", "no effect: images are never unpacked").harmless().hidden(),
    Flag::switch("no-pid", "no effect").keys(&["NO_PID"]).harmless().hidden(),
    Flag::switch("no-oci", "no effect").keys(&["NO_OCI"]).harmless().hidden(),
    Flag::switch("no-compat", "no effect").keys(&["NO_COMPAT"]).harmless().hidden(),
    Flag::switch("no-nv", "no effect").keys(&["NV_OFF", "NO_NV"]).harmless().hidden(),
    Flag::switch("no-rocm", "no effect").keys(&["ROCM_OFF", "NO_ROCM"]).harmless().hidden(),
    Flag::value("runscript-timeout", "TIME", "no effect").keys(&["RUNSCRIPT_TIMEOUT"]).harmless().hidden(),
    Flag::switch("nv", "make NVIDIA devices usable").keys(&["NV"]).hidden(),
    Flag::switch("rocm", "make AMD devices usable").keys(&["ROCM"]).hidden(),
    Flag::switch("nvccli", "").keys(&["NVCCLI"]).missing(),
    Flag::switch("intel-hpu", "").keys(&["INTEL_HPU"]).missing(),
    Flag::switch("compat32", "").keys(&["COMPAT32"]).missing(),
    Flag::switch("writable", "").short('w').keys(&["WRITABLE"]).missing(),
    Flag::many("overlay", "PATH", "").short('o').keys(&["OVERLAY", "OVERLAYIMAGE"]).missing(),
    Flag::switch("fakeroot", "").short('f').keys(&["FAKEROOT"]).missing(),
    Flag::many("network-args", "ARGS", "").keys(&["NETWORK_ARGS"]).missing(),
    Flag::value("netns-path", "PATH", "").keys(&["NETNS_PATH"]).missing(),
    Flag::many("no-env", "NAME", "").keys(&["NOENV"]).missing(),
    Flag::value("app", "NAME", "").keys(&["APP", "APPNAME"]).missing(),
    Flag::many("device", "NAME", "").missing(),
    Flag::many("cdi-dirs", "DIR", "").missing(),
    Flag::many("security", "SPEC", "").keys(&["SECURITY"]).missing(),
    Flag::value("add-caps", "LIST", "").keys(&["ADD_CAPS"]).missing(),
    Flag::value("drop-caps", "LIST", "").keys(&["DROP_CAPS"]).missing(),
    Flag::switch("keep-privs", "").keys(&["KEEP_PRIVS"]).missing(),
    Flag::switch("allow-setuid", "").keys(&["ALLOW_SETUID"]).missing(),
    Flag::value("apply-cgroups", "FILE", "").keys(&["APPLY_CGROUPS"]).missing(),
    Flag::value("cpus", "N", "").keys(&["CPUS"]).missing(),
    Flag::value("cpu-shares", "N", "").keys(&["CPU_SHARES"]).missing(),
    Flag::value("cpuset-cpus", "LIST", "").keys(&["CPUSET_CPUS"]).missing(),
    Flag::value("cpuset-mems", "LIST", "").keys(&["CPUSET_MEMS"]).missing(),
    Flag::value("memory", "SIZE", "").keys(&["MEMORY"]).missing(),
    Flag::value("memory-reservation", "SIZE", "").keys(&["MEMORY_RESERVATION"]).missing(),
    Flag::value("memory-swap", "SIZE", "").keys(&["MEMORY_SWAP"]).missing(),
    Flag::switch("oom-kill-disable", "").keys(&["OOM_KILL_DISABLE"]).missing(),
    Flag::value("pids-limit", "N", "").keys(&["PIDS_LIMIT"]).missing(),
    Flag::value("blkio-weight", "N", "").keys(&["BLKIO_WEIGHT"]).missing(),
    Flag::many("blkio-weight-device", "SPEC", "").keys(&["BLKIO_WEIGHT_DEVICE"]).missing(),
    Flag::many("fusemount", "SPEC", "").keys(&["FUSESPEC"]).missing(),
    Flag::switch("sharens", "").keys(&["SHARENS"]).missing(),
    Flag::switch("passphrase", "").missing(),
    Flag::value("pem-path", "FILE", "").keys(&["ENCRYPTION_PEM_PATH"]).missing(),
    Flag::switch("oci", "").keys(&["OCI"]).missing(),
    Flag::switch("keep-layers", "").keys(&["KEEP_LAYERS"]).missing(),
    Flag::switch("no-setgroups", "").missing(),
];

const SHELL: &[Flag] =
    &[Flag::value("shell", "PATH", "path to the program to use for the interactive shell").short('s').keys(&["SHELL"])];

const INSPECT: &[Flag] = &[
    Flag::switch("labels", "show the labels of the image (default)").short('l'),
    Flag::switch("deffile", "show the definition that made the image").short('d'),
    Flag::switch("runscript", "show the runscript").short('r'),
    Flag::switch("startscript", "show the startscript").short('s'),
    Flag::switch("test", "show the test script").short('t'),
    Flag::switch("helpfile", "show the help of the image").short('H'),
    Flag::switch("environment", "show the environment scripts").short('e'),
    Flag::switch("list-apps", "list the apps in the image"),
    Flag::value("app", "NAME", "inspect an app of the image"),
    Flag::switch("json", "print JSON").short('j'),
    Flag::switch("all", "show everything (implies --json)"),
];

const CACHE_LIST: &[Flag] = &[
    Flag::many("type", "TYPE", "show only these types, separated by commas: oci-tmp, blob, all").short('T'),
    Flag::switch("json", "print JSON").short('j'),
];

const JSON: &[Flag] = &[Flag::switch("json", "print JSON").short('j')];

const CACHE_CLEAN: &[Flag] = &[
    Flag::switch("dry-run", "show what would be removed and remove nothing").short('n'),
    Flag::switch("force", "do not ask").short('f'),
    Flag::many("type", "TYPE", "").short('T').missing(),
    Flag::value("days", "N", "").short('D').missing(),
];

static CACHE: &[Verb] = &[
    Verb {
        name: "list",
        about: "List what the cache holds",
        usage: "[list options...]",
        action: Action::CacheList,
        flags: &[CACHE_LIST],
        examples: "  $ {program} cache list -v\n",
        ..Verb::LEAF
    },
    Verb {
        name: "info",
        about: "Show sizes and reuse of the cache",
        usage: "[info options...]",
        action: Action::CacheInfo,
        flags: &[JSON],
        ..Verb::LEAF
    },
    Verb {
        name: "clean",
        about: "Remove what nothing uses from the cache",
        usage: "[clean options...]",
        action: Action::CacheClean,
        flags: &[CACHE_CLEAN],
        examples: "  $ {program} cache clean --dry-run\n",
        ..Verb::LEAF
    },
];

static ADMIN: &[Verb] = &[
    Verb {
        name: "mounts",
        about: "List the kernel mounts of images: for whom, by whom used",
        usage: "[mounts options...]",
        action: Action::AdminMounts,
        flags: &[JSON],
        examples: "  $ {program} admin mounts\n",
        ..Verb::LEAF
    },
    Verb {
        name: "jobs",
        about: "List the jobs that run: what they do, and for whom",
        usage: "[jobs options...]",
        action: Action::AdminJobs,
        flags: &[JSON],
        examples: "  $ {program} admin jobs --json\n",
        ..Verb::LEAF
    },
    Verb {
        name: "leases",
        about: "List who may start which image without asking its registry",
        usage: "[leases options...]",
        action: Action::AdminLeases,
        flags: &[JSON],
        examples: "  $ {program} admin leases\n",
        ..Verb::LEAF
    },
    Verb {
        name: "unmount",
        about: "Let go of a mounted image; containers that run keep it",
        usage: "<reference|key>",
        action: Action::AdminUnmount,
        args: Args::Exactly(1),
        examples: "  $ {program} admin unmount docker://debian:12\n  $ {program} admin unmount 3fd0a2c17b9e\n",
        ..Verb::LEAF
    },
];

/// Every verb.
pub static VERBS: &[Verb] = &[
    Verb {
        name: "admin",
        about: "See and manage what the daemon does for all users",
        usage: "<verb>",
        verbs: ADMIN,
        examples: "  $ {program} admin mounts\n  $ {program} admin jobs\n",
        ..Verb::LEAF
    },
    Verb {
        name: "build",
        about: "Build an image",
        usage: "[build options...] <image path> <URI>",
        action: Action::Build,
        args: Args::Exactly(2),
        flags: &[BUILD, PLATFORM, REGISTRY],
        examples: "  $ {program} build lolcow.sif docker://godlovedc/lolcow\n",
        ..Verb::LEAF
    },
    Verb {
        name: "cache",
        about: "Manage the cache",
        usage: "<verb>",
        verbs: CACHE,
        examples: "  $ {program} cache list\n  $ {program} cache clean\n",
        ..Verb::LEAF
    },
    Verb {
        name: "completion",
        about: "Print a completion script for a shell",
        usage: "<bash|zsh|fish|powershell|elvish>",
        action: Action::Completion,
        args: Args::Exactly(1),
        ..Verb::LEAF
    },
    Verb {
        name: "exec",
        about: "Run a command within a container",
        usage: "[exec options...] <container> <command>",
        action: Action::Exec,
        args: Args::AtLeast(2),
        stops_at_image: true,
        flags: &[CONTAINER, PLATFORM, REGISTRY],
        examples: "  $ {program} exec lolcow_latest.sif cowsay moo\n  $ {program} exec docker://debian:12 cat /etc/os-release\n",
        ..Verb::LEAF
    },
    Verb {
        name: "help",
        about: "Help about any command",
        usage: "[command]",
        action: Action::Help,
        args: Args::AtLeast(0),
        ..Verb::LEAF
    },
    Verb {
        name: "inspect",
        about: "Show metadata for an image",
        usage: "[inspect options...] <image path>",
        action: Action::Inspect,
        args: Args::Exactly(1),
        flags: &[INSPECT],
        examples: "  $ {program} inspect --runscript lolcow_latest.sif\n",
        ..Verb::LEAF
    },
    Verb {
        name: "man",
        about: "Print a page of the manual",
        usage: "[sctl|sctl.toml]",
        action: Action::Manual,
        args: Args::Between(0, 1),
        examples: "  $ {program} man | man -l -\n",
        ..Verb::LEAF
    },
    Verb {
        name: "pull",
        about: "Pull an image from a URI",
        usage: "[pull options...] [output file] <URI>",
        action: Action::Pull,
        args: Args::Between(1, 2),
        flags: &[PULL, PLATFORM, REGISTRY],
        examples: "  $ {program} pull docker://godlovedc/lolcow\n  $ {program} pull tools.sif docker://quay.io/me/tools:1.0\n",
        ..Verb::LEAF
    },
    Verb {
        name: "run",
        about: "Run the user-defined default command within a container",
        usage: "[run options...] <container> [args for runscript...]",
        action: Action::Run,
        args: Args::AtLeast(1),
        stops_at_image: true,
        flags: &[CONTAINER, PLATFORM, REGISTRY],
        examples: "  $ {program} run docker://godlovedc/lolcow\n",
        ..Verb::LEAF
    },
    Verb {
        name: "shell",
        about: "Run a shell within a container",
        usage: "[shell options...] <container>",
        action: Action::Shell,
        args: Args::AtLeast(1),
        stops_at_image: true,
        flags: &[SHELL, CONTAINER, PLATFORM, REGISTRY],
        examples: "  $ {program} shell docker://debian:12\n",
        ..Verb::LEAF
    },
    Verb { name: "version", about: "Show the version", action: Action::Version, ..Verb::LEAF },
];
