//! Starts the caller's own daemon, once, and waits until it answers.

use std::{
    convert::Infallible,
    ffi::{CString, OsString},
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, OFlags};
use sctl_sys::proc::{self, Fork};

use super::choose::Choice;
use crate::{
    cli::Environment,
    failure::{Failure, reason},
    output::{debug, verbose},
};

/// How long a daemon may take until it answers: the first start on a slow
/// shared file system has to read the whole cache.
const READY: Duration = Duration::from_secs(30);

/// Longest part of a daemon's last words that is shown.
const LAST_WORDS: u64 = 4096;

/// Variables that a daemon gets besides `HOME`, with and without capitals.
const PASSED_ON: [&str; 7] =
    ["http_proxy", "https_proxy", "no_proxy", "all_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE"];

/// Makes sure that the caller's own daemon answers at `choice`'s sockets;
/// `answers` tries.
///
/// # Errors
/// A directory that others could have prepared, no program, a program that
/// ends or does not answer in time.
pub fn ensure(choice: &Choice, environment: &Environment, answers: &dyn Fn() -> bool) -> Result<(), Failure> {
    let directory = choice.socket.parent().unwrap_or(Path::new("/"));
    prepare(directory)?;
    if let Some(temporary) = &choice.temporary {
        prepare(temporary)?;
    }
    let give_up = Instant::now() + READY;
    // One starter at a time: the others find its daemon when they get the lock.
    let _lock = lock(&choice.socket.with_extension("start"), give_up)?;
    if answers() {
        return Ok(());
    }
    let program = find_program()?;
    let home = home(environment)?;
    verbose!("Starting {} for this user", program.display());
    let log_path = choice.socket.with_extension("log");
    let unable = || Failure::new("Unable to start the image daemon");
    let log = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(&log_path)
        .map_err(|error| unable().cause(format!("{}: {}", log_path.display(), reason(&error))))?;
    let (alive, held) = io::pipe().map_err(|error| unable().cause(reason(&error)))?;
    let command = Command::new(&program, choice, environment, &home);
    spawn(&command, &held, &log)
        .map_err(|error| unable().cause(format!("{}: {}", program.display(), reason(&error))))?;
    drop(held);
    debug!("waiting for {}", choice.socket.display());
    wait(alive, &log, give_up, answers)
}

/// Polls until the daemon answers or has ended: its standard output is the
/// other end of `alive`, which reads as ended once nobody holds it.
fn wait(mut alive: io::PipeReader, log: &File, give_up: Instant, answers: &dyn Fn() -> bool) -> Result<(), Failure> {
    let unable = || Failure::new("Unable to start the image daemon");
    rustix::io::ioctl_fionbio(&alive, true).map_err(|errno| unable().cause(reason(&errno.into())))?;
    let mut pause = Duration::from_millis(2);
    loop {
        if answers() {
            return Ok(());
        }
        let ended = matches!(alive.read(&mut [0; 64]), Ok(0));
        if ended {
            let mut failure = unable().cause("it ended at once");
            for line in last_words(log) {
                failure = failure.cause(line);
            }
            return Err(failure);
        }
        if Instant::now() >= give_up {
            let failure = unable().cause(format!("it did not answer within {} seconds", READY.as_secs()));
            return Err(last_words(log).into_iter().fold(failure, |failure, line| failure.cause(line)));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The last lines that the daemon wrote.
fn last_words(log: &File) -> Vec<String> {
    let len = log.metadata().map_or(0, |meta| meta.len());
    let mut bytes = vec![0; len.min(LAST_WORDS) as usize];
    let start = len - bytes.len() as u64;
    if log.read_exact_at(&mut bytes, start).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    // They become causes here, whatever they were there.
    let bare = |line: &str| -> String {
        let line = line.trim();
        let label = ["FATAL:", "ERROR:", "cause:"].iter().find_map(|label| line.strip_prefix(label));
        label.unwrap_or(line).trim_start().to_owned()
    };
    lines.iter().rev().take(5).rev().map(|line| bare(line)).collect()
}

/// Makes the directory of the sockets, or checks that nobody else made it.
fn prepare(directory: &Path) -> Result<(), Failure> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(directory).cause(reason(&error))),
    }
    check(directory)
}

fn unusable(directory: &Path) -> Failure {
    Failure::new(format!("Unable to use the directory {}", directory.display()))
}

/// Checks that nobody else made the directory of the sockets, or can change
/// what lies in it: whoever could would choose the daemon that hears secrets.
///
/// # Errors
/// A directory that is missing or not the caller's alone.
pub fn check(directory: &Path) -> Result<(), Failure> {
    let meta = std::fs::symlink_metadata(directory).map_err(|error| unusable(directory).cause(reason(&error)))?;
    let uid = rustix::process::geteuid().as_raw();
    let wrong = if !meta.is_dir() {
        "it is not a directory".to_owned()
    } else if meta.uid() != uid {
        format!("it belongs to uid {}, not to you", meta.uid())
    } else if meta.permissions().mode() & 0o077 != 0 {
        format!("others may enter it: its mode is {:03o}, not 700", meta.permissions().mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(unusable(directory).cause(wrong).hint(format!("remove {}, or set XDG_RUNTIME_DIR", directory.display())))
}

fn lock(path: &Path, give_up: Instant) -> Result<File, Failure> {
    let unable = |why: String| Failure::new("Unable to start the image daemon").cause(why);
    let flags = (OFlags::NOFOLLOW | OFlags::CLOEXEC).bits() as i32;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| unable(format!("{}: {}", path.display(), reason(&error))))?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(unable(format!("another process holds {}", path.display())));
            }
            Err(errno) => return Err(unable(format!("{}: {}", path.display(), reason(&errno.into())))),
        }
    }
}

/// Looks for `sctld` beside this program, in `../libexec/sctl`, and in the
/// standard directories: never in the caller's `PATH`.
fn find_program() -> Result<PathBuf, Failure> {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Ok(own) = std::env::current_exe()
        && let Some(directory) = own.parent()
    {
        places.push(directory.to_owned());
        places.extend(directory.parent().map(|prefix| prefix.join("libexec/sctl")));
    }
    let standard =
        ["/usr/local/libexec/sctl", "/usr/libexec/sctl", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    places.extend(standard.map(PathBuf::from));
    for place in &places {
        let program = place.join("sctld");
        if std::fs::metadata(&program).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0) {
            return Ok(program);
        }
    }
    Err(Failure::new("Unable to start the image daemon")
        .cause("the program sctld is neither beside this one nor in the standard directories")
        .hint("install sctld, or set SCTL_SOCKET to the socket of a running daemon"))
}

fn home(environment: &Environment) -> Result<OsString, Failure> {
    if let Some(home) = environment.get("HOME").filter(|home| Path::new(home).is_absolute()) {
        return Ok(home.to_owned());
    }
    let uid = rustix::process::geteuid().as_raw();
    match proc::account(uid) {
        Ok(Some(account)) => Ok(OsString::from_vec(account.home)),
        _ => Err(Failure::new("Unable to start the image daemon")
            .cause(format!("HOME is not set, and uid {uid} has no account"))
            .hint("set HOME: the cache lies below it")),
    }
}

/// Everything that exec needs, made before the fork.
struct Command {
    program: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    fn new(program: &Path, choice: &Choice, environment: &Environment, home: &OsString) -> Self {
        // None of these strings can hold a NUL: paths and variables come from
        // the kernel, which ends them there.
        let text = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
        let program = text(program.as_os_str().as_bytes());
        let mut argv = vec![
            text(b"sctld"),
            text(b"--user"),
            text(b"--socket"),
            text(choice.socket.as_os_str().as_bytes()),
            text(b"--mount-socket"),
            text(choice.mount_socket.as_os_str().as_bytes()),
        ];
        if let Some(cache_dir) = &choice.cache_dir {
            argv.extend([text(b"--cache-dir"), text(cache_dir.as_os_str().as_bytes())]);
        }
        let pair = |name: &str, value: &[u8]| text(&[name.as_bytes(), b"=", value].concat());
        let mut env = vec![pair("HOME", home.as_bytes())];
        for name in PASSED_ON.iter().flat_map(|name| [(*name).to_owned(), name.to_uppercase()]) {
            if let Some(value) = environment.get(&name)
                && !env.iter().any(|had| had.as_bytes().starts_with(format!("{name}=").as_bytes()))
            {
                env.push(pair(&name, value.as_bytes()));
            }
        }
        Self { program, argv, env }
    }
}

/// Runs the command as a grandchild in a session of its own.
fn spawn(command: &Command, held: &io::PipeWriter, log: &File) -> io::Result<()> {
    let Fork::Parent(child) = proc::fork()? else {
        let keep = [held.as_raw_fd(), log.as_raw_fd()];
        let Err(error) = proc::become_server(&keep, || {
            let error = run(command, held, log);
            // The log is all that is left to tell anybody.
            let _ = (&*log).write_all(format!("cannot run the program: {}\n", reason(&error)).as_bytes());
            proc::exit_now(1)
        });
        let _ = (&*log).write_all(format!("cannot become a daemon: {}\n", reason(&error)).as_bytes());
        proc::exit_now(1)
    };
    // The first child ends as soon as it has forked again.
    loop {
        match rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// In the child: forks again and becomes the program. Returns what failed.
fn run(command: &Command, held: &io::PipeWriter, log: &File) -> io::Error {
    let prepare = || -> io::Result<Infallible> {
        if let Fork::Parent(_) = proc::fork()? {
            proc::exit_now(0)
        }
        rustix::stdio::dup2_stdout(held)?;
        rustix::stdio::dup2_stderr(log)?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        Err(proc::exec(&command.program, &command.argv, &command.env))
    };
    match prepare() {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::choose::Kind;

    #[test]
    fn directories_of_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        prepare(&own).unwrap();
        prepare(&own).unwrap();
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(prepare(&own).unwrap_err().causes[0].contains("750"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(prepare(&link).unwrap_err().causes[0].contains("not a directory"));
    }

    #[test]
    fn a_daemon_gets_home_proxies_and_nothing_else() {
        let environment = Environment::of(&[
            ("HOME", "/h"),
            ("https_proxy", "http://p:1"),
            ("NO_PROXY", "localhost"),
            ("SSL_CERT_FILE", "/ca.pem"),
            ("SINGULARITY_DOCKER_PASSWORD", "secret"),
            ("RUST_LOG", "trace"),
        ]);
        let choice = Choice {
            kind: Kind::User,
            socket: "/s/sctl.sock".into(),
            mount_socket: "/s/mount.sock".into(),
            record: None,
            temporary: None,
            cache_dir: None,
        };
        let home = home(&environment).unwrap();
        let command = Command::new(Path::new("/x/sctld"), &choice, &environment, &home);
        let mut env: Vec<&str> = command.env.iter().map(|text| text.to_str().unwrap()).collect();
        env.sort_unstable();
        assert_eq!(env, ["HOME=/h", "NO_PROXY=localhost", "SSL_CERT_FILE=/ca.pem", "https_proxy=http://p:1"]);
        assert_eq!(command.argv[1].to_str().unwrap(), "--user");
    }

    #[test]
    fn last_words_are_the_last_lines() {
        let mut log = tempfile::tempfile().unwrap();
        (0..6).for_each(|n| writeln!(log, "line {n}\n").unwrap());
        log.write_all(b"FATAL:   cannot open the cache\n  cause: Permission denied\n").unwrap();
        assert_eq!(last_words(&log), ["line 3", "line 4", "line 5", "cannot open the cache", "Permission denied"]);
    }

    #[test]
    fn an_ended_daemon_is_told_at_once() {
        let log = tempfile::tempfile().unwrap();
        (&log).write_all(b"error: no\n").unwrap();
        let (alive, held) = io::pipe().unwrap();
        drop(held);
        let failure = wait(alive, &log, Instant::now() + READY, &|| false).unwrap_err();
        assert_eq!(failure.causes, ["it ended at once", "error: no"]);
    }
}
