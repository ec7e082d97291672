//! The broker's side of a job: start, talk, wait, end.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use sctl_common::ErrorKind;
use sctl_sys::spawn::{self, Command, Exit, Identity, Process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    launcher::Remote,
    protocol::{self, Report, Start},
};
use crate::Failure;

/// How long a job may take to leave after its last word.
const LEAVING: Duration = Duration::from_secs(5);

/// How long a job may say nothing at all. Each step tells its progress many
/// times a minute, so one that is silent for that long does nothing.
const SILENCE: Duration = Duration::from_secs(600);

/// How much of a job's standard error is kept for the log.
const MAX_STDERR: usize = 8 << 10;

/// Starts job processes.
///
/// A job dies with the thread that started it, so one thread that lives as
/// long as this value starts them all.
#[derive(Debug)]
pub(crate) struct Launcher {
    requests: Mutex<mpsc::Sender<Request>>,
    running: Arc<AtomicUsize>,
}

struct Request {
    fds: Vec<OwnedFd>,
    stderr: OwnedFd,
    reply: oneshot::Sender<io::Result<Running>>,
}

/// Who starts the processes.
#[derive(Debug, Clone)]
pub(crate) enum Starter {
    /// The broker does, and lets them become somebody else if one is given.
    Broker(Option<Identity>),
    /// The launcher that listens here.
    Launcher(PathBuf),
}

impl Starter {
    fn start(&self, fds: &[OwnedFd], stderr: &OwnedFd, env: &[OsString]) -> io::Result<Running> {
        match self {
            Self::Broker(identity) => spawn_job(fds, stderr, env, *identity).map(Running::Own),
            Self::Launcher(path) => Remote::start(path, fds, stderr).map(Running::Remote),
        }
    }
}

/// A job's process, our child or the launcher's.
#[derive(Debug)]
enum Running {
    Own(Process),
    Remote(Remote),
}

impl Running {
    fn id(&self) -> i32 {
        match self {
            Self::Own(process) => process.id(),
            Self::Remote(process) => process.id(),
        }
    }

    /// Becomes readable when it has ended.
    fn watch(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(process) => process.pidfd(),
            Self::Remote(process) => process.watch(),
        }
    }

    fn kill(&self) -> io::Result<()> {
        match self {
            Self::Own(process) => process.kill(),
            Self::Remote(process) => process.kill(),
        }
    }

    fn wait(&mut self) -> io::Result<Exit> {
        match self {
            Self::Own(process) => process.wait(),
            Self::Remote(process) => process.wait(),
        }
    }
}

/// Variables that a job inherits: time zones and locales are none of its
/// business, failpoints and backtraces are for those who test it.
const KEPT: [&str; 2] = ["RUST_BACKTRACE", "SCTL_FAILPOINT"];

/// Asks the C library to ask the kernel for huge pages (other C libraries
/// ignore it): the tables of a compressor are looked up at random, and with
/// small pages many look-ups miss the processor's translation cache as well.
const HUGE_PAGES: &str = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1";

impl Launcher {
    /// Starts the thread that starts jobs, or has them started.
    ///
    /// # Privileges
    /// Those of [`spawn::spawn`], without a launcher.
    pub(crate) fn new(starter: Starter) -> io::Result<Self> {
        let (sender, requests) = mpsc::channel::<Request>();
        let env = environment();
        std::thread::Builder::new().name("launcher".to_owned()).spawn(move || {
            for request in requests {
                // Who asked may have gone: the process is ended, then.
                if let Err(Ok(process)) = request.reply.send(starter.start(&request.fds, &request.stderr, &env)) {
                    end(process);
                }
            }
        })?;
        Ok(Self { requests: Mutex::new(sender), running: Arc::default() })
    }

    /// Jobs that have not ended.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Starts a job. `what` completes "the job … failed", such as `that packs
    /// layer 2 of 5`; `fds` become 4, 5, … in it.
    pub(crate) async fn start(&self, what: String, message: &Start, fds: Vec<OwnedFd>) -> Result<Job, Failure> {
        let failed = |error: &io::Error| Failure::io(format!("cannot start the job {what}"), error);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|error| failed(&error))?;
        ours.set_nonblocking(true).map_err(|error| failed(&error))?;
        let (stderr_reader, stderr) = io::pipe().map_err(|error| failed(&error))?;
        let (reply, answer) = oneshot::channel();
        let all = std::iter::once(OwnedFd::from(theirs)).chain(fds).collect();
        let request = Request { fds: all, stderr: stderr.into(), reply };
        let sent = self.requests.lock().unwrap_or_else(PoisonError::into_inner).send(request);
        let gone = || io::Error::other("the thread that starts jobs has ended");
        sent.map_err(|_| failed(&gone()))?;
        let process = answer.await.map_err(|_| failed(&gone()))?.map_err(|error| failed(&error))?;
        debug!(pid = process.id(), what, "job started");
        self.running.fetch_add(1, Ordering::Relaxed);
        let mut job = Job {
            what,
            stream: UnixStream::from_std(ours).map_err(|error| Failure::io("cannot watch a job", &error))?,
            stderr: tokio::spawn(collect(stderr_reader)),
            process: Some(process),
            _counted: Counted(Arc::clone(&self.running)),
        };
        job.send(message).await?;
        Ok(job)
    }
}

/// The environment of a job.
pub(super) fn environment() -> Vec<OsString> {
    KEPT.iter()
        .filter_map(|name| std::env::var_os(name).map(|value| (name, value)))
        .map(|(name, value)| {
            let mut variable = OsString::from(name);
            variable.push("=");
            variable.push(value);
            variable
        })
        .chain([OsString::from(HUGE_PAGES)])
        .collect()
}

/// Starts a job that dies with the thread that calls this.
pub(super) fn spawn_job(
    fds: &[OwnedFd],
    stderr: &OwnedFd,
    env: &[OsString],
    identity: Option<Identity>,
) -> io::Result<Process> {
    let count = fds.len().to_string();
    let args = [OsStr::new("sctld"), OsStr::new("job"), OsStr::new(&count)];
    let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let env: Vec<_> = env.iter().map(OsString::as_os_str).collect();
    spawn::spawn(&Command {
        // This very program, even if its file was replaced since.
        program: OsStr::new("/proc/self/exe"),
        args: &args,
        env: &env,
        fds: &borrowed,
        stderr: Some(stderr.as_fd()),
        identity,
        powers: spawn::Powers::None,
    })
}

/// Ends a process whose work nobody wants, without waiting for it here.
fn end(mut process: Running) {
    if let Err(error) = process.kill() {
        warn!(pid = process.id(), %error, "cannot end a job");
    }
    // A process deep in a file system may take its time to die.
    let reaper = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || process.wait());
    if let Err(error) = reaper {
        warn!(%error, "cannot wait for an ended job");
    }
}

async fn collect(reader: io::PipeReader) -> String {
    let Ok(mut reader) = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()) else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut chunk = [0; 1024];
    // Read on when there is enough, or the job would block or die.
    while let Ok(len @ 1..) = reader.read(&mut chunk).await {
        let room = MAX_STDERR - kept.len();
        kept.extend_from_slice(&chunk[..len.min(room)]);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A running job. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Job {
    what: String,
    stream: UnixStream,
    stderr: JoinHandle<String>,
    process: Option<Running>,
    _counted: Counted,
}

impl Job {
    /// Its process id; 0 when it has been waited for.
    pub(crate) fn pid(&self) -> i32 {
        self.process.as_ref().map_or(0, Running::id)
    }

    /// Sends a message to the job.
    pub(crate) async fn send<T: serde::Serialize>(&mut self, message: &T) -> Result<(), Failure> {
        let frame = protocol::encode(message)
            .map_err(|error| Failure::io(format!("cannot talk to the job {}", self.what), &error))?;
        match self.stream.write_all(&frame).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.died().await),
        }
    }

    /// The job's next word. A [`Report::Failed`] comes as an error.
    ///
    /// # Errors
    /// What the job failed of, or that it ended without a last word.
    pub(crate) async fn next(&mut self) -> Result<Report, Failure> {
        match hear(&mut self.stream, SILENCE).await {
            Heard::Report(Report::Failed(failure)) => {
                let failure = failure.tamed();
                debug!(what = self.what, %failure, "job failed");
                Err(failure)
            }
            Heard::Report(report) => Ok(report),
            Heard::End => Err(self.died().await),
            Heard::Nothing => {
                if let Some(process) = self.process.take() {
                    warn!(pid = process.id(), what = self.what, "job ended: it said nothing for too long");
                    end(process);
                }
                let text = format!("the job {} said nothing for {} s", self.what, SILENCE.as_secs());
                Err(Failure::new(ErrorKind::DeadlineExceeded, text))
            }
            Heard::Junk(error) => {
                Err(Failure::io(format!("the job {} does not keep to the protocol", self.what), &error))
            }
        }
    }

    /// The failure of a job that spoke out of turn.
    pub(crate) fn unexpected(&self) -> Failure {
        Failure::internal(format!("the job {} does not keep to the protocol", self.what))
    }

    /// Waits until the process has ended after its last word. From then on
    /// nobody but the broker holds the descriptors that it was given.
    ///
    /// # Errors
    /// If it does not end well, or not in time.
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        let exit = self.exit().await?;
        if exit.is_success() {
            return Ok(());
        }
        Err(self.ended_with(exit).await)
    }

    /// Why the job has gone without a last word.
    async fn died(&mut self) -> Failure {
        match self.exit().await {
            Ok(exit) => self.ended_with(exit).await,
            Err(failure) => failure,
        }
    }

    async fn exit(&mut self) -> Result<Exit, Failure> {
        let Some(mut process) = self.process.take() else { return Err(self.unexpected()) };
        let what = self.what.clone();
        // Cancelled in mid-wait, it still ends: it cannot outlive `LEAVING`.
        let waited = tokio::task::spawn_blocking(move || -> io::Result<(bool, Exit)> {
            let in_time = has_ended(&process, LEAVING)?;
            if !in_time {
                process.kill()?;
            }
            Ok((in_time, process.wait()?))
        })
        .await;
        match waited {
            Ok(Ok((true, exit))) => Ok(exit),
            Ok(Ok((false, _))) => Err(Failure::internal(format!("the job {what} did not end when it was done"))),
            Ok(Err(error)) => Err(Failure::io(format!("cannot wait for the job {what}"), &error)),
            Err(error) => Err(Failure::internal(format!("cannot wait for the job {what}")).because(&error)),
        }
    }

    async fn ended_with(&mut self, exit: Exit) -> Failure {
        // What it left behind on standard error is for the log: it may name
        // anything.
        let said = timeout(Duration::from_secs(1), &mut self.stderr).await;
        let said = said.ok().and_then(Result::ok).unwrap_or_default();
        warn!(what = self.what, %exit, said, "job ended without a result");
        let failure = Failure::new(ErrorKind::Internal, format!("the job {} ended with {exit}", self.what));
        match exit {
            // SIGXFSZ
            Exit::Signal(25) => {
                failure.hint("files of the daemon may not become that large: see `ulimit -f` of whoever started it")
            }
            Exit::Signal(9) => failure.hint("the system may have run out of memory; the daemon's log may tell more"),
            _ => failure.hint("this is a fault of sctl; the daemon's log may tell more"),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            debug!(pid = process.id(), what = self.what, "job cancelled");
            end(process);
        }
    }
}

/// What came from a job.
#[derive(Debug)]
enum Heard {
    Report(Report),
    /// It has closed its end, perhaps in mid-word.
    End,
    /// Not one whole word in time.
    Nothing,
    /// No word of the protocol.
    Junk(io::Error),
}

/// The next word from a job, if it comes within `limit`.
async fn hear(stream: &mut UnixStream, limit: Duration) -> Heard {
    let listen = async {
        let mut head = [0; 4];
        if stream.read_exact(&mut head).await.is_err() {
            return Heard::End;
        }
        let len = match protocol::frame_len(head) {
            Ok(len) => len,
            Err(error) => return Heard::Junk(error),
        };
        let mut body = Vec::new();
        // Grows with what comes, not with what was announced.
        match stream.take(len as u64).read_to_end(&mut body).await {
            Ok(got) if got == len => protocol::decode(&body).map_or_else(Heard::Junk, Heard::Report),
            _ => Heard::End,
        }
    };
    timeout(limit, listen).await.unwrap_or(Heard::Nothing)
}

/// Waits up to `limit` for the end of `process`.
fn has_ended(process: &Running, limit: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let process = process.watch();
    let limit = Timespec { tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_word_is_whole_and_in_time_or_none() {
        let limit = Duration::from_millis(50);
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(matches!(hear(&mut ours, limit).await, Heard::Nothing));
        theirs.write_all(&protocol::encode(&Report::Known).unwrap()).await.unwrap();
        assert!(matches!(hear(&mut ours, limit).await, Heard::Report(Report::Known)));
        theirs.write_all(b"\x02\0\0\0[]").await.unwrap();
        assert!(matches!(hear(&mut ours, limit).await, Heard::Junk(_)));
        // Trickling does not help: a word has its time.
        theirs.write_all(b"\x09\0\0\0half").await.unwrap();
        assert!(matches!(hear(&mut ours, limit).await, Heard::Nothing));
        drop(theirs);
        assert!(matches!(hear(&mut ours, limit).await, Heard::End));
    }
}
