//! Starts job processes that keep nothing of the broker's powers, and takes
//! over inherited descriptors.
//!
//! A job gets the descriptors it is given (as 3, 4, …), `/dev/null` as
//! standard input and output, an environment and an identity of the caller's
//! choice, and nothing else: no other descriptor, no capability in any set, no
//! way to gain one, no core dumps, no controlling terminal, and no life beyond
//! that of the thread that started it. When memory runs out it is the first
//! to go.
//!
//! `std::process::Command` cannot map descriptors without a risk: its own
//! error pipe may sit on one of the target numbers. Hence `fork` and `execve`
//! by hand; everything that allocates happens before the fork.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use libc::c_int;

/// First descriptor number that a child finds its own descriptors at.
pub const FIRST_FD: RawFd = 3;

/// Numeric user and group that a child runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id; there are no supplementary ones.
    pub gid: u32,
}

/// What to start, and with what.
#[derive(Debug)]
pub struct Command<'a> {
    /// Path of the program.
    pub program: &'a OsStr,
    /// Arguments, `argv[0]` included.
    pub args: &'a [&'a OsStr],
    /// The whole environment, as `NAME=value`.
    pub env: &'a [&'a OsStr],
    /// Become 3, 4, … in the child.
    pub fds: &'a [BorrowedFd<'a>],
    /// Becomes standard error; `/dev/null` if not given.
    pub stderr: Option<BorrowedFd<'a>>,
    /// Whom to become. Without one the child keeps its ids; it loses its
    /// capabilities all the same where the caller may drop them.
    pub identity: Option<Identity>,
    /// What is left of the caller's powers.
    pub powers: Powers,
}

/// What a child keeps of its parent's powers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Powers {
    /// No capability in any set, first to go when memory runs out.
    None,
    /// Capabilities as they are: for a child that gives them up by itself,
    /// before it does anything else.
    Kept,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It left with this status.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
}

impl Exit {
    /// True for status 0.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Code(0))
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "status {code}"),
            Self::Signal(libc::SIGKILL) => f.write_str("signal 9 (killed)"),
            Self::Signal(libc::SIGSEGV) => f.write_str("signal 11 (memory fault)"),
            Self::Signal(libc::SIGABRT) => f.write_str("signal 6 (aborted)"),
            Self::Signal(libc::SIGSYS) => f.write_str("signal 31 (forbidden system call)"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A child that has not been waited for. Dropping it leaves it running; see
/// [`Process::kill`].
#[derive(Debug)]
pub struct Process {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    exit: Option<Exit>,
}

impl Process {
    /// Process id.
    pub fn id(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends the process at once. Harmless if it has ended.
    ///
    /// # Errors
    /// As `pidfd_send_signal(2)`.
    pub fn kill(&self) -> io::Result<()> {
        if self.exit.is_some() {
            return Ok(());
        }
        match rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until the process has ended, and frees its pid.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub fn wait(&mut self) -> io::Result<Exit> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let pid = rustix::process::Pid::from_raw(self.pid)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such process"))?;
        let status = loop {
            match rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()) {
                Ok(Some((_, status))) => break status,
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => return Err(io::Error::other("a stopped process was reported as ended")),
        };
        self.exit = Some(exit);
        Ok(exit)
    }
}

/// Steps that a child takes before `execve`, in order; told when one fails.
const STEPS: [&str; 12] = [
    "reset its signals",
    "map its descriptors",
    "close the other descriptors",
    "set no_new_privs",
    "empty its capability bounding set",
    "give up its groups",
    "change its user and group",
    "prove that it cannot change back",
    "empty its capability sets",
    "bind its life to its parent's",
    "set its limits",
    "run its program",
];

const SIGNALS: usize = 0;
const MAP: usize = 1;
const CLOSE: usize = 2;
const NO_NEW_PRIVS: usize = 3;
const BOUNDING: usize = 4;
const GROUPS: usize = 5;
const IDS: usize = 6;
const PROOF: usize = 7;
const CAPABILITIES: usize = 8;
const PARENT: usize = 9;
const LIMITS: usize = 10;
const EXEC: usize = 11;

/// All that the child needs, made before the fork: between fork and exec of a
/// process with threads nothing may allocate or lock.
struct Prepared {
    program: CString,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// Where each descriptor is now, and after the first move.
    fds: Vec<RawFd>,
    stderr: RawFd,
    null: RawFd,
    report: RawFd,
    identity: Option<Identity>,
    powers: Powers,
    parent: libc::pid_t,
    open_max: RawFd,
}

/// Starts `command`.
///
/// The child dies (`SIGKILL`) when the *thread* that calls this ends, so call
/// it from one that lives as long as the process.
///
/// # Privileges
/// `CAP_SETUID`, `CAP_SETGID` and `CAP_SETPCAP` if an identity is given; none
/// otherwise.
///
/// # Errors
/// What failed, in the parent or in the child before its program ran.
pub fn spawn(command: &Command<'_>) -> io::Result<Process> {
    let text = |value: &OsStr| {
        CString::new(value.as_bytes())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an argument holds a NUL byte"))
    };
    let args = command.args.iter().map(|arg| text(arg)).collect::<io::Result<Vec<_>>>()?;
    let env = command.env.iter().map(|var| text(var)).collect::<io::Result<Vec<_>>>()?;
    let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let (report_reader, report) = io::pipe()?;
    let mut prepared = Prepared {
        program: text(command.program)?,
        argv: pointers(&args),
        envp: pointers(&env),
        fds: command.fds.iter().map(|fd| fd.as_raw_fd()).collect(),
        stderr: command.stderr.map_or(null.as_raw_fd(), |fd| fd.as_raw_fd()),
        null: null.as_raw_fd(),
        report: report.as_raw_fd(),
        identity: command.identity,
        powers: command.powers,
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        open_max: open_max(),
    };

    // No handler of the parent may run in the child: it would write to pipes
    // that both share. All signals wait until the child has reset them.
    let mut all = empty_set();
    let mut before = empty_set();
    // SAFETY: both sets are live and initialised; the calls touch nothing else.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    // SAFETY: the child calls nothing but `run`, which neither allocates nor
    // locks, uses only what was prepared above, and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: this is the child of a fork, with every pointer in
        // `prepared` alive in its copy of the memory.
        unsafe { run(&mut prepared) }
    }
    let forked = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    // SAFETY: `before` was filled in by the call above.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
    let pid = forked?;
    drop(report);
    drop(null);

    // Not reaped yet, so the pid cannot name another process.
    let named = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no pid"))?;
    let pidfd = match rustix::process::pidfd_open(named, rustix::process::PidfdFlags::NONBLOCK) {
        // Kernels before 5.10 know no flags.
        Err(rustix::io::Errno::INVAL) => rustix::process::pidfd_open(named, rustix::process::PidfdFlags::empty()),
        other => other,
    };
    let pidfd = match pidfd {
        Ok(pidfd) => pidfd,
        Err(errno) => {
            // Without a handle nobody could end it: do so now. Errors would
            // mean that it has ended.
            let _ = rustix::process::kill_process(named, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(named), rustix::process::WaitOptions::empty());
            return Err(errno.into());
        }
    };
    let mut process = Process { pid, pidfd, exit: None };
    let mut failure = [0u8; 8];
    let got = read_all(&report_reader, &mut failure)?;
    if got == 0 {
        return Ok(process);
    }
    process.wait()?;
    let word = |at: usize| i32::from_ne_bytes([failure[at], failure[at + 1], failure[at + 2], failure[at + 3]]);
    let step = usize::try_from(word(0)).ok().and_then(|step| STEPS.get(step)).unwrap_or(&"start");
    let cause = io::Error::from_raw_os_error(word(4));
    Err(io::Error::new(cause.kind(), format!("the new process could not {step}: {cause}")))
}

fn read_all(mut reader: &io::PipeReader, buffer: &mut [u8]) -> io::Result<usize> {
    use io::Read as _;
    let mut got = 0;
    while got < buffer.len() {
        match reader.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: `sigset_t` is an array of integers, for which zero is valid;
    // sigemptyset(3) then sets it as the library wants it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}

fn open_max() -> RawFd {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(65_536);
    RawFd::try_from(limit.min(65_536)).unwrap_or(65_536)
}

/// Tells the parent which step failed and leaves.
///
/// # Safety
/// Only in the child of a fork.
unsafe fn fail(report: RawFd, step: usize) -> ! {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    let mut message = [0u8; 8];
    message[..4].copy_from_slice(&(step as i32).to_ne_bytes());
    message[4..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: write(2) reads 8 bytes of a live array; _exit(2) runs no handler
    // that the parent registered.
    unsafe {
        libc::write(report, message.as_ptr().cast(), message.len());
        libc::_exit(127)
    }
}

/// The child's way from fork to exec.
///
/// # Safety
/// Only in the child of a fork; the pointers in `p` must be alive.
unsafe fn run(p: &mut Prepared) -> ! {
    // SAFETY: of the whole block: every call is a plain system call (or an
    // async-signal-safe function of the C library) on integers, on live locals
    // and on memory that `p` keeps alive, in a process with this one thread.
    // Descriptors are closed and replaced at will: the process has no other
    // owner of any of them, and this function never returns.
    unsafe {
        let mut report = p.report;
        let check = |result: c_int, report: RawFd, step: usize| {
            if result < 0 {
                fail(report, step);
            }
        };

        // Handlers to default, ignored signals too; then let them come.
        for signal in 1..=64 {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                // The C library keeps two for itself and refuses them: they
                // have no handler that could run here.
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let none = empty_set();
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()), report, SIGNALS);
        // A session of its own: Ctrl-C at the broker's terminal is not for it.
        check(libc::setsid(), report, SIGNALS);

        // First out of the way of all targets, then to their places.
        let first_free = FIRST_FD + p.fds.len() as RawFd;
        report = libc::fcntl(report, libc::F_DUPFD_CLOEXEC, first_free);
        if report < 0 {
            fail(p.report, MAP);
        }
        let null = libc::fcntl(p.null, libc::F_DUPFD_CLOEXEC, first_free);
        check(null, report, MAP);
        let stderr = libc::fcntl(p.stderr, libc::F_DUPFD_CLOEXEC, first_free);
        check(stderr, report, MAP);
        for fd in &mut p.fds {
            *fd = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, first_free);
            check(*fd, report, MAP);
        }
        check(libc::dup2(null, 0), report, MAP);
        check(libc::dup2(null, 1), report, MAP);
        check(libc::dup2(stderr, 2), report, MAP);
        for (target, fd) in (FIRST_FD..).zip(&p.fds) {
            check(libc::dup2(*fd, target), report, MAP);
        }
        // Close-on-exec rather than closed: the report must outlive this.
        let from = first_free as libc::c_uint;
        let closed = libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if closed != 0 {
            // Kernels before 5.11.
            for fd in first_free..p.open_max.max(report + 1) {
                let flags = libc::fcntl(fd, libc::F_GETFD);
                if flags >= 0 {
                    check(libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC), report, CLOSE);
                }
            }
        }

        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), report, NO_NEW_PRIVS);
        let capabilities = if p.powers == Powers::None { 64 } else { 0 };
        for capability in 0..capabilities {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                match *libc::__errno_location() {
                    // Past the last one that this kernel knows.
                    libc::EINVAL => break,
                    // Only root can, and only root has any.
                    libc::EPERM if p.identity.is_none() => break,
                    _ => fail(report, BOUNDING),
                }
            }
        }
        // Rather the job than its broker or anybody's work. Before the change
        // of ids, which gives the file to root; without /proc the score stays
        // as it is.
        let score = match p.powers {
            Powers::None => libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC),
            Powers::Kept => -1,
        };
        if score >= 0 {
            libc::write(score, c"1000".as_ptr().cast(), 4);
            libc::close(score);
        }
        if let Some(Identity { uid, gid }) = p.identity {
            // The system calls themselves: the C library's functions would
            // look for other threads, under a lock that one of the parent's
            // may have held at the fork.
            let none = std::ptr::null::<libc::gid_t>();
            check(libc::syscall(libc::SYS_setgroups, 0, none) as c_int, report, GROUPS);
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid) as c_int, report, IDS);
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as c_int, report, IDS);
            if uid != 0 && libc::syscall(libc::SYS_setresuid, 0, 0, 0) == 0 {
                *libc::__errno_location() = libc::EPERM;
                fail(report, PROOF);
            }
        }
        // Inheritable and ambient ones survive a change of uid. A process
        // that keeps its ids may always give up what it has.
        let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
        let sets = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
        if p.powers == Powers::None {
            check(libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) as c_int, report, CAPABILITIES);
        }

        // After the last change of ids, which clears it.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0), report, PARENT);
        if libc::getppid() != p.parent {
            *libc::__errno_location() = libc::ESRCH;
            fail(report, PARENT);
        }
        let core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const core), report, LIMITS);
        let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files), report, LIMITS);
        // The hard limit may be lower already, and nobody can raise it.
        let most = files.rlim_max.min(MAX_FILES);
        let files = libc::rlimit { rlim_cur: most, rlim_max: most };
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files), report, LIMITS);
        libc::umask(0o077);
        check(libc::chdir(c"/".as_ptr()), report, LIMITS);
        libc::execve(p.program.as_ptr(), p.argv.as_ptr(), p.envp.as_ptr());
        fail(report, EXEC)
    }
}

/// Descriptors of a child: those of the layers of an image, and some more.
const MAX_FILES: libc::rlim_t = 4096;

/// `_LINUX_CAPABILITY_VERSION_3` of `<linux/capability.h>`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over descriptors 3 to 3 + `count` − 1 that this process was started
/// with, and makes them close-on-exec.
///
/// Call it first in `main`, before anything opens a descriptor: it succeeds
/// once, and only while the process has a single thread.
///
/// # Errors
/// If it was called before, if there are other threads, or if one of the
/// descriptors is not open.
pub fn take_inherited(count: usize) -> io::Result<Vec<OwnedFd>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("inherited descriptors were already taken"));
    }
    let last = RawFd::try_from(count).ok().and_then(|count| FIRST_FD.checked_add(count));
    let Some(end) = last else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many inherited descriptors"));
    };
    for fd in FIRST_FD..end {
        // SAFETY: fcntl(2) with integers only; a closed number gives EBADF.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            let error = io::Error::last_os_error();
            return Err(io::Error::new(error.kind(), format!("inherited descriptor {fd}: {error}")));
        }
    }
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("inherited descriptors must be taken before threads start"));
    }
    // SAFETY: they are open, they were there when the process started (this
    // runs first in `main`, in its only thread), and `TAKEN` makes sure that
    // nobody is given them twice.
    Ok((FIRST_FD..end).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

/// Keeps other processes of the same uid from tracing this one, reading its
/// memory or opening its descriptors through `/proc`.
///
/// # Errors
/// As `prctl(2)`.
pub fn forbid_tracing() -> io::Result<()> {
    // SAFETY: prctl(2) with integers only.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    fn shell(script: &str, fds: &[BorrowedFd<'_>], identity: Option<Identity>) -> (Exit, String) {
        let (mut reader, writer) = io::pipe().unwrap();
        let args = [OsStr::new("sh"), OsStr::new("-c"), OsStr::new(script)];
        let command = Command {
            program: OsStr::new("/bin/sh"),
            args: &args,
            env: &[OsStr::new("ONLY=this")],
            fds,
            stderr: Some(writer.as_fd()),
            identity,
            powers: Powers::None,
        };
        let mut process = spawn(&command).unwrap();
        drop(writer);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        (process.wait().unwrap(), output)
    }

    #[test]
    fn descriptors_are_mapped_in_order_and_nothing_else_is_open() {
        let mut files: Vec<std::fs::File> = (0..12)
            .map(|n| {
                let mut file = tempfile();
                write!(file, "{n}").unwrap();
                file.rewind().unwrap();
                file
            })
            .collect();
        // In an order that no plain sequence of dup2 gets right.
        files.reverse();
        let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        let script = "for n in 3 4 5 6 7 8 9; do eval \"cat <&$n\"; echo; done >&2; set -- /proc/$$/fd/*; echo $# >&2";
        let (exit, output) = shell(script, &fds, None);
        assert_eq!(exit, Exit::Code(0));
        // Counted by the shell itself: a pipe to a counter would be one more while it is set up.
        assert_eq!(output, "11\n10\n9\n8\n7\n6\n5\n16\n", "twelve, the standard three, and the listing");
    }

    fn tempfile() -> std::fs::File {
        let path = std::env::temp_dir();
        rustix::fs::open(&path, rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR, 0o600.into()).unwrap().into()
    }

    #[test]
    fn environment_directory_session_and_limits_are_set() {
        let script = "env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD=; pwd; ulimit -c; umask; cat /proc/$$/oom_score_adj; \
                      test $(ulimit -Hn) -le 4096 && echo few; \
                      grep NoNewPrivs /proc/self/status; grep SigIgn /proc/self/status";
        let (exit, output) = shell(&format!("{{ {script}; }} >&2"), &[], None);
        assert_eq!(exit, Exit::Code(0));
        let (head, ignored) = output.trim_end().rsplit_once("SigIgn:\t").unwrap();
        assert_eq!(head, "ONLY=this\n/\n0\n0077\n1000\nfew\nNoNewPrivs:\t1\n");
        // The C library lets nobody touch signals 32 and 33.
        assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & !(3 << 31), 0, "{ignored}");
    }

    #[test]
    fn failures_name_the_step() {
        let args = [OsStr::new("x")];
        let command = Command {
            program: OsStr::new("/nonexistent/program"),
            args: &args,
            env: &[],
            fds: &[],
            stderr: None,
            identity: None,
            powers: Powers::None,
        };
        let error = spawn(&command).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("could not run its program"), "{error}");
    }

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(shell("exit 3", &[], None).0, Exit::Code(3));
        assert_eq!(shell("kill -9 $$", &[], None).0, Exit::Signal(9));
        let args = [OsStr::new("sleep"), OsStr::new("60")];
        let command = Command {
            program: OsStr::new("/bin/sleep"),
            args: &args,
            env: &[],
            fds: &[],
            stderr: None,
            identity: None,
            powers: Powers::None,
        };
        let mut process = spawn(&command).unwrap();
        process.kill().unwrap();
        assert_eq!(process.wait().unwrap(), Exit::Signal(9));
        process.kill().unwrap();
        assert_eq!(process.wait().unwrap(), Exit::Signal(9), "asked twice, answered twice");
    }

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let (mut reader, writer) = io::pipe().unwrap();
        let thread = std::thread::spawn(move || {
            let args = [OsStr::new("sleep"), OsStr::new("60")];
            spawn(&Command {
                program: OsStr::new("/bin/sleep"),
                args: &args,
                env: &[],
                fds: &[writer.as_fd()],
                stderr: None,
                identity: None,
                powers: Powers::None,
            })
            .unwrap()
        });
        let mut process = thread.join().unwrap();
        assert_eq!(process.wait().unwrap(), Exit::Signal(9));
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn privileged_an_identity_leaves_no_power() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to change ids");
            return;
        }
        let script = "id -u; id -g; cat /proc/self/oom_score_adj; grep -e ^Groups -e ^Cap -e ^NoNewPrivs /proc/self/status; \
                      cat /etc/shadow >/dev/null 2>&1 && echo readable";
        let (_, output) = shell(&format!("{{ {script}; }} >&2"), &[], Some(Identity { uid: 54_321, gid: 54_322 }));
        let zero = "0000000000000000";
        let expected = format!(
            "54321\n54322\n1000\nGroups:\t \nCapInh:\t{zero}\nCapPrm:\t{zero}\nCapEff:\t{zero}\nCapBnd:\t{zero}\n\
             CapAmb:\t{zero}\nNoNewPrivs:\t1\n"
        );
        assert_eq!(output, expected);
    }

    #[test]
    fn privileged_root_without_identity_keeps_no_capability() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root, who alone has any");
            return;
        }
        let (_, output) = shell("grep -e ^CapPrm -e ^CapBnd /proc/self/status >&2", &[], None);
        let zero = "0000000000000000";
        assert_eq!(output, format!("CapPrm:\t{zero}\nCapBnd:\t{zero}\n"));
    }
}
