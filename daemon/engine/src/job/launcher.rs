//! Jobs that another service starts for the broker.
//!
//! Under a service manager the broker needs no network and no right to become
//! or to signal another user, because this launcher (`sctld launcher`) starts
//! its jobs: a process that runs as the service user from its first
//! instruction and holds no power at all. It runs the jobs as they are run
//! otherwise ([`process`](super::process)); a job that a bug has turned could
//! end the launcher, which is of its uid, and so all jobs, but not look into it.
//!
//! # Layout
//! One `SOCK_SEQPACKET` connection for each job, at whose end the job ends,
//! too. Numbers are `i32`, little endian.
//!
//! | packet | from | holds | descriptors |
//! |---|---|---|---|
//! | start | broker | `J`, how many descriptors the job gets | its standard error |
//! | files | broker | `F`; as many packets as it takes | one or two |
//! | started | launcher | `P`, its pid | |
//! | failed | launcher | `E`, text; the last one | |
//! | end it | broker | `K` | |
//! | ended | launcher | `C`, status, or `S`, signal; the last one | |

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketType, sockopt},
};
use sctl_sys::{
    peer,
    scm::{self, Blocking, Received},
    spawn::{Exit, Process},
};
use tracing::{info, warn};

use super::process;

const START: u8 = b'J';
const FILES: u8 = b'F';
const STARTED: u8 = b'P';
const FAILED: u8 = b'E';
const KILL: u8 = b'K';
const CODE: u8 = b'C';
const SIGNAL: u8 = b'S';

/// Descriptors in one packet.
const BATCH: usize = 2;

/// Most descriptors of a job: it cannot have more open.
const MAX_FDS: usize = 4096;

/// Most bytes of a packet.
const MAX_PACKET: usize = 1024;

/// Most jobs at the same time; the broker starts far fewer.
const MAX_JOBS: usize = 256;

/// How long one side waits for a packet that the other one has to send at
/// once. A launcher that is only being started takes its time.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take until an end is told.
const ENDING: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The launcher leaves after that long without a job; its socket starts it
/// again.
const IDLE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// A job that a launcher started.
#[derive(Debug)]
pub(super) struct Remote {
    socket: OwnedFd,
    pid: i32,
}

impl Remote {
    /// Asks the launcher at `path` for a job with these descriptors.
    pub(super) fn start(path: &Path, fds: &[OwnedFd], stderr: &OwnedFd) -> io::Result<Self> {
        let socket = scm::connect(path)?;
        scm::set_timeout(&socket, PATIENCE)?;
        scm::send(&socket, &packet(START, fds.len() as i32), &[stderr.as_fd()])?;
        for batch in fds.chunks(BATCH) {
            let batch: Vec<BorrowedFd<'_>> = batch.iter().map(OwnedFd::as_fd).collect();
            scm::send(&socket, &[FILES], &batch)?;
        }
        let mut buffer = [0; MAX_PACKET];
        let received = receive(&socket, &mut buffer)?;
        match Packet::parse(&buffer[..received.len]) {
            Some(Packet::Number(STARTED, pid)) => Ok(Self { socket, pid }),
            Some(Packet::Failed(text)) => Err(io::Error::other(text)),
            _ => Err(babble()),
        }
    }

    pub(super) fn id(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the job has ended, or the launcher has.
    pub(super) fn watch(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        match scm::send(&self.socket, &[KILL], &[]) {
            // It has said its last word and left.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    pub(super) fn wait(&self) -> io::Result<Exit> {
        // It has ended, or was told to: a launcher that says nothing now has
        // been stopped, and must not stop the broker.
        if !watch(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&ENDING))? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the launcher of jobs does not answer"));
        }
        let mut buffer = [0; MAX_PACKET];
        let received = receive(&self.socket, &mut buffer)?;
        match Packet::parse(&buffer[..received.len]) {
            Some(Packet::Number(CODE, code)) => Ok(Exit::Code(code)),
            Some(Packet::Number(SIGNAL, signal)) => Ok(Exit::Signal(signal)),
            _ => Err(babble()),
        }
    }
}

fn babble() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the launcher of jobs does not keep to the protocol")
}

/// The next whole packet.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    let received = scm::recv(socket, buffer)?;
    if received.len == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the launcher of jobs has gone"));
    }
    if received.truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is too long"));
    }
    Ok(received)
}

fn packet(tag: u8, number: i32) -> [u8; 5] {
    let [a, b, c, d] = number.to_le_bytes();
    [tag, a, b, c, d]
}

#[derive(Debug, PartialEq, Eq)]
enum Packet {
    Number(u8, i32),
    Tag(u8),
    Failed(String),
}

impl Packet {
    fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [tag @ (START | STARTED | CODE | SIGNAL), number @ ..] => {
                Some(Self::Number(*tag, i32::from_le_bytes(number.try_into().ok()?)))
            }
            [tag @ (FILES | KILL)] => Some(Self::Tag(*tag)),
            [FAILED, text @ ..] => Some(Self::Failed(String::from_utf8_lossy(text).into_owned())),
            _ => None,
        }
    }
}

/// The whole life of a launcher that accepts on `listener`; root, or the user
/// it runs as, may ask it for jobs.
///
/// # Privileges
/// None: what it has, its jobs have, too, but for capabilities.
pub fn main(listener: OwnedFd) -> ExitCode {
    let is_listener = sockopt::socket_domain(&listener) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&listener) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_acceptconn(&listener) == Ok(true);
    if !is_listener {
        eprintln!("sctld launcher: there is no socket to listen on; this is started by the service manager");
        return ExitCode::FAILURE;
    }
    // Its jobs have the same uid, and it holds the descriptors of all of them.
    if let Err(error) = sctl_sys::spawn::forbid_tracing() {
        eprintln!("sctld launcher: cannot forbid others to trace it: {error}");
        return ExitCode::FAILURE;
    }
    let env: Arc<[OsString]> = process::environment().into();
    let jobs = Arc::new(AtomicUsize::new(0));
    loop {
        match watch(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&IDLE)) {
            Ok(true) => {}
            Ok(false) if jobs.load(Ordering::Acquire) > 0 => continue,
            Ok(false) => {
                info!("nobody needs this launcher: leaving");
                return ExitCode::SUCCESS;
            }
            Err(error) => {
                warn!(%error, "cannot listen");
                return ExitCode::FAILURE;
            }
        }
        let Ok(socket) = scm::accept(&listener, Blocking::Yes) else {
            // Whoever called has gone again; or too much is open, which passes.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if jobs.fetch_add(1, Ordering::AcqRel) >= MAX_JOBS {
            jobs.fetch_sub(1, Ordering::AcqRel);
            refuse(&socket, "too many jobs are running");
            continue;
        }
        let (env, counted) = (Arc::clone(&env), Counted(Arc::clone(&jobs)));
        // A job dies with the thread that started it: each has one of its own.
        let thread = std::thread::Builder::new().name("job".to_owned()).spawn(move || {
            let _counted = counted;
            if let Err(error) = serve(&socket, &env) {
                warn!(%error, "job not started");
                refuse(&socket, &error.to_string());
            }
        });
        if let Err(error) = thread {
            warn!(%error, "cannot start a thread for a job");
        }
    }
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn refuse(socket: &OwnedFd, why: &str) {
    let text: Vec<u8> = std::iter::once(FAILED).chain(why.bytes()).take(MAX_PACKET).collect();
    // Whoever asked may have gone; then nobody waits for a reason.
    let _ = scm::send(socket, &text, &[]);
}

/// Starts the job that a connection asks for, and stays with it to its end.
fn serve(socket: &OwnedFd, env: &[OsString]) -> io::Result<()> {
    let uid = peer::credentials(socket)?.uid;
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {uid} may not start jobs")));
    }
    scm::set_timeout(socket, PATIENCE)?;
    let mut buffer = [0; MAX_PACKET];
    let mut first = receive(socket, &mut buffer)?;
    let count = match (Packet::parse(&buffer[..first.len]), first.fds.len()) {
        (Some(Packet::Number(START, count)), 1) => usize::try_from(count).ok().filter(|&count| count <= MAX_FDS),
        _ => None,
    };
    let (Some(count), Some(stderr)) = (count, first.fds.pop()) else { return Err(babble()) };
    let mut fds = Vec::with_capacity(count);
    while fds.len() < count {
        let received = receive(socket, &mut buffer)?;
        let wanted = 1..=BATCH.min(count - fds.len());
        if Packet::parse(&buffer[..received.len]) != Some(Packet::Tag(FILES)) || !wanted.contains(&received.fds.len()) {
            return Err(babble());
        }
        fds.extend(received.fds);
    }
    let mut process = process::spawn_job(&fds, &stderr, env, None)?;
    // From here on they are the job's alone.
    drop((fds, stderr));
    // If the broker has just gone, the next look at the socket tells.
    let _ = scm::send(socket, &packet(STARTED, process.id()), &[]);
    let exit = attend(socket, &mut process)?;
    let last = match exit {
        Exit::Code(code) => packet(CODE, code),
        Exit::Signal(signal) => packet(SIGNAL, signal),
    };
    let _ = scm::send(socket, &last, &[]);
    Ok(())
}

/// Waits for the end of a job, and ends it when the broker says so or goes.
fn attend(socket: &OwnedFd, process: &mut Process) -> io::Result<Exit> {
    let has_ended = {
        let pidfd = process.pidfd();
        let mut both = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        // A job that cannot be watched is not left alone.
        watch(&mut both, None).is_ok() && !both[0].revents().is_empty()
    };
    // Otherwise the broker has gone, or says that it should end: there is
    // nothing else that it could say.
    if !has_ended {
        process.kill()?;
    }
    process.wait()
}

/// Waits until one of them has news; false if that takes longer than `limit`.
fn watch(watched: &mut [PollFd<'_>], limit: Option<&Timespec>) -> io::Result<bool> {
    loop {
        match poll(watched, limit) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A launcher's half of a connection with this half of the broker's.
    fn connection() -> (OwnedFd, std::thread::JoinHandle<io::Result<()>>) {
        let (broker, launcher) = scm::pair(Blocking::Yes).unwrap();
        (broker, std::thread::spawn(move || serve(&launcher, &[])))
    }

    #[test]
    fn packets_are_whole_or_none() {
        assert_eq!(Packet::parse(&packet(CODE, -1)), Some(Packet::Number(CODE, -1)));
        assert_eq!(Packet::parse(b"K"), Some(Packet::Tag(KILL)));
        assert_eq!(Packet::parse(b"Eno"), Some(Packet::Failed("no".to_owned())));
        for junk in [&b""[..], b"C", b"C123", b"C12345", b"KK", b"x", b"J"] {
            assert_eq!(Packet::parse(junk), None, "{junk:?}");
        }
    }

    #[test]
    fn an_end_is_told_once_and_a_gone_launcher_is_no_end() {
        let (broker, launcher) = scm::pair(Blocking::Yes).unwrap();
        let job = Remote { socket: broker, pid: 1 };
        scm::send(&launcher, &packet(SIGNAL, 9), &[]).unwrap();
        assert_eq!(job.wait().unwrap(), Exit::Signal(9));
        scm::send(&launcher, &packet(STARTED, 9), &[]).unwrap();
        assert_eq!(job.wait().unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(launcher);
        job.kill().unwrap();
        assert_eq!(job.wait().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn requests_that_lie_start_nothing() {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let one = [null.as_fd()];
        // Each: packets with how many descriptors.
        let cases: [&[(&[u8], usize)]; 6] = [
            (&[(&packet(START, 1), 0)]),
            (&[(&packet(START, -1), 1)]),
            (&[(&packet(START, 1 << 20), 1)]),
            (&[(&packet(START, 1), 1), (b"F", 0)]),
            (&[(&packet(START, 1), 1), (b"F", 2)]),
            (&[(&packet(START, 2), 1), (b"K", 1)]),
        ];
        for (at, packets) in cases.iter().enumerate() {
            let (broker, served) = connection();
            for (bytes, count) in *packets {
                let fds: Vec<_> = one.iter().cycle().take(*count).copied().collect();
                scm::send(&broker, bytes, &fds).unwrap();
            }
            assert!(served.join().unwrap().is_err(), "case {at}");
        }
        let (broker, served) = connection();
        drop(broker);
        assert_eq!(served.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
