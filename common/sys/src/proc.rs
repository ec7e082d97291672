//! Processes: fork, exec, signals, descriptors, and who their owner is.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::RawFd,
};

use libc::c_int;
use rustix::process::Pid;

/// Where a process finds itself after [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// In the process that called; this is its child.
    Parent(Pid),
    /// In the new process.
    Child,
}

/// Duplicates the calling process, which must have a single thread.
///
/// # Errors
/// `InvalidInput` if there is more than one thread: another thread may hold a
/// lock, of the allocator for one, that nobody would ever release in the
/// child. Otherwise as `fork(2)`.
pub fn fork() -> io::Result<Fork> {
    let threads = rustix::fs::stat(c"/proc/self/task").map(|stat| stat.st_nlink.saturating_sub(2));
    match threads {
        Ok(1) => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "fork in a process with several threads")),
        Err(errno) => return Err(io::Error::new(errno.kind(), format!("cannot count the threads: {errno}"))),
    }
    // SAFETY: fork(2) touches no memory of the caller. The process was just
    // seen to have one thread, and this is it, so no other can have been in
    // the middle of anything that the child would find half done.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => match Pid::from_raw(pid) {
            Some(pid) if pid.as_raw_nonzero().get() > 0 => Ok(Fork::Parent(pid)),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Replaces the program of this process; returns only if that fails.
///
/// # Errors
/// As `execve(2)`.
pub fn exec(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: execve(2) reads a NUL-terminated path and two arrays of pointers
    // to NUL-terminated strings, each ended by a null pointer: built just
    // above from `CString`s that the caller keeps alive.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the process at once: nothing is flushed, no destructor runs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Makes this process a server of its own that holds nothing of its caller's:
/// new session, `/` as working directory, `/dev/null` as standard streams,
/// every descriptor closed but `keep`. Then runs `body`, which must own what
/// it needs, and never returns.
///
/// # Errors
/// As `setsid(2)`, `chdir(2)`, `open(2)` of `/dev/null`, `close_range(2)`.
pub fn become_server(keep: &[RawFd], body: impl FnOnce() -> Infallible) -> io::Result<Infallible> {
    leave_caller(keep).map(|()| body())
}

fn leave_caller(keep: &[RawFd]) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir(c"/")?;
    let null = rustix::fs::open(
        c"/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first = 3;
    for fd in keep {
        close_range(first, fd - 1)?;
        first = fd + 1;
    }
    close_range(first, RawFd::MAX)
}

/// Closes the descriptors from `first` to `last`, both included.
fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: close_range(2) takes integers and touches no memory. Whoever
    // owned these descriptors never runs again: the only caller goes on in a
    // function that does not return, with nothing but what it kept.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// Every signal but those in `without`.
    pub fn all_but(without: &[c_int]) -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigfillset writes a whole `sigset_t` at the address given.
        unsafe { libc::sigfillset(set.as_mut_ptr()) };
        // SAFETY: it has just been written; sigfillset cannot fail.
        let mut set = unsafe { set.assume_init() };
        for &signal in without {
            // SAFETY: `set` is a live, initialised set; an invalid number is
            // refused with EINVAL and changes nothing.
            unsafe { libc::sigdelset(&raw mut set, signal) };
        }
        Self(set)
    }

    /// Blocks these signals in this thread besides those that are, and
    /// returns what was blocked before.
    ///
    /// # Errors
    /// None in practice: as `sigprocmask(2)`.
    pub fn block(&self) -> io::Result<Self> {
        self.change(libc::SIG_BLOCK)
    }

    /// Blocks these signals in this thread and no others.
    ///
    /// # Errors
    /// None in practice: as `sigprocmask(2)`.
    pub fn set_as_mask(&self) -> io::Result<()> {
        self.change(libc::SIG_SETMASK).map(drop)
    }

    fn change(&self, how: c_int) -> io::Result<Self> {
        let mut old = MaybeUninit::uninit();
        // SAFETY: pthread_sigmask reads one live set and writes another whole
        // one; both belong to this frame.
        match unsafe { libc::pthread_sigmask(how, &raw const self.0, old.as_mut_ptr()) } {
            // SAFETY: a successful call has written `old`.
            0 => Ok(Self(unsafe { old.assume_init() })),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for one of these signals, which must be blocked.
    ///
    /// # Errors
    /// As `sigwaitinfo(2)`; interruptions are waited out.
    pub fn wait(&self) -> io::Result<Arrival> {
        loop {
            let mut info = MaybeUninit::uninit();
            // SAFETY: sigwaitinfo reads a live set and writes a whole
            // `siginfo_t` when it succeeds.
            let signal = unsafe { libc::sigwaitinfo(&raw const self.0, info.as_mut_ptr()) };
            if signal > 0 {
                // SAFETY: the call succeeded, so `info` has been written.
                let info: libc::siginfo_t = unsafe { info.assume_init() };
                return Ok(Arrival { signal, from_terminal: info.si_code == libc::SI_KERNEL });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// A signal that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its number.
    pub signal: c_int,
    /// The kernel sent it, as it does for keys of a terminal, to the whole
    /// foreground process group.
    pub from_terminal: bool,
}

/// Ignores `signals` from here on.
///
/// # Errors
/// `EINVAL` for a signal that cannot be ignored.
pub fn ignore_signals(signals: &[c_int]) -> io::Result<()> {
    signals.iter().try_for_each(|&signal| set_disposition(signal, libc::SIG_IGN))
}

/// Gives `signal` its default effect again. The Rust runtime ignores SIGPIPE,
/// which programs do not expect to inherit.
///
/// # Errors
/// `EINVAL` for an invalid signal.
pub fn default_signal(signal: c_int) -> io::Result<()> {
    set_disposition(signal, libc::SIG_DFL)
}

fn set_disposition(signal: c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: signal(2) with SIG_DFL or SIG_IGN installs no handler, so no
    // code of ours ever runs in signal context.
    match unsafe { libc::signal(signal, disposition) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sends `signal` to a process.
///
/// # Errors
/// As `kill(2)`.
pub fn kill(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: kill(2) takes two integers and touches no memory. A `Pid` is
    // positive, so this never means a group.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process by `signal`, as if it had been sent from outside, and
/// without a core dump of its own; exits with 128 + `signal` if that signal
/// does not end it.
pub fn die_of(signal: c_int) -> ! {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    // None of these can fail in a way that matters: the exit below remains.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let _ = default_signal(signal);
    let _ = SignalSet::all_but(&[signal]).set_as_mask();
    let _ = kill(rustix::process::getpid(), signal);
    exit_now(128 + signal)
}

/// An account as the system's databases know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: Vec<u8>,
    /// Full name and more.
    pub gecos: Vec<u8>,
    /// Home directory.
    pub home: Vec<u8>,
    /// Login shell.
    pub shell: Vec<u8>,
}

/// Most bytes that one record of a database may take.
const MAX_RECORD: usize = 1 << 20;

/// Asks the system's databases (files, LDAP, …) for the account of `uid`.
///
/// # Errors
/// As `getpwuid_r(3)`; an unknown uid is `None`.
pub fn account(uid: u32) -> io::Result<Option<Account>> {
    let mut buffer = vec![0u8; 4096];
    loop {
        let mut record = MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: getpwuid_r writes a `passwd` to `record`, strings to at most
        // `buffer.len()` bytes of `buffer`, and to `found` either null or the
        // address of `record`; all three live in this frame.
        let error = unsafe {
            libc::getpwuid_r(uid, record.as_mut_ptr(), buffer.as_mut_ptr().cast(), buffer.len(), &raw mut found)
        };
        match error {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: `found` is not null, so `record` has been written.
                let record = unsafe { record.assume_init() };
                let text = |pointer: *const libc::c_char| {
                    if pointer.is_null() {
                        return Vec::new();
                    }
                    // SAFETY: the members of a found record are null or point
                    // to NUL-terminated strings in `buffer`, which is alive.
                    unsafe { CStr::from_ptr(pointer) }.to_bytes().to_vec()
                };
                return Ok(Some(Account {
                    name: text(record.pw_name),
                    gecos: text(record.pw_gecos),
                    home: text(record.pw_dir),
                    shell: text(record.pw_shell),
                }));
            }
            libc::ERANGE if buffer.len() < MAX_RECORD => buffer.resize(buffer.len() * 2, 0),
            // What glibc answers for "not found" differs between modules.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Asks the system's databases for the name of group `gid`.
///
/// # Errors
/// As `getgrgid_r(3)`; an unknown gid is `None`.
pub fn group_name(gid: u32) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0u8; 4096];
    loop {
        let mut record = MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: as for getpwuid_r in `account`.
        let error = unsafe {
            libc::getgrgid_r(gid, record.as_mut_ptr(), buffer.as_mut_ptr().cast(), buffer.len(), &raw mut found)
        };
        match error {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: `found` is not null, so `record` has been written.
                let name = unsafe { record.assume_init() }.gr_name;
                if name.is_null() {
                    return Ok(None);
                }
                // SAFETY: the name of a found record is a NUL-terminated
                // string in `buffer`, which is alive.
                return Ok(Some(unsafe { CStr::from_ptr(name) }.to_bytes().to_vec()));
            }
            libc::ERANGE if buffer.len() < MAX_RECORD => buffer.resize(buffer.len() * 2, 0),
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Name of the link that a user's own daemon leaves in its cache, to its socket
/// on this host: hosts may share the cache.
pub fn socket_record() -> String {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    format!("socket-{}", node.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forking_with_threads_is_refused() {
        // The test harness runs every test in a thread of its own.
        assert_eq!(fork().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_failed_exec_says_why() {
        let error = exec(c"/does/not/exist", &[c"x".to_owned()], &[]);
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn blocked_signals_can_be_waited_for() {
        let all = SignalSet::all_but(&[]);
        let old = all.block().unwrap();
        // SAFETY: raises a blocked signal in this thread only.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(all.wait().unwrap(), Arrival { signal: libc::SIGUSR1, from_terminal: false });
        old.set_as_mask().unwrap();
    }

    #[test]
    fn root_has_an_account_and_a_group() {
        assert_eq!(account(0).unwrap().unwrap().name, b"root");
        assert_eq!(group_name(0).unwrap().unwrap(), b"root");
        assert_eq!(account(4_000_000_123).unwrap(), None);
        assert_eq!(group_name(4_000_000_123).unwrap(), None);
    }
}
