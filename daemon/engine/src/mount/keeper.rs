//! The broker's side of the mount helper: start, ask, end, start again.

use std::{
    ffi::{OsStr, OsString},
    fmt, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use sctl_sys::{
    scm::{self, Blocking},
    spawn::{self, Command, Powers, Process},
    userns::{IdRange, map_child},
};
use tracing::{info, warn};

use super::{
    HelperUser, Slots,
    helper::{CLONED, FAILED, MAPPED, MAX_PACKET, OTHER_DEVICE, READY, UNSHARED},
};

/// How long a helper may take for a step of its start.
const STARTING: Duration = Duration::from_secs(5);

/// How long a helper may take to answer: it makes three system calls.
const ANSWERING: Duration = Duration::from_secs(2);

/// Shortest and longest wait before a helper that died is started again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A helper that lived that long did not die of its start.
const SETTLED: Duration = Duration::from_secs(60);

/// Variables that a helper inherits: for those who test it.
const KEPT: [&str; 2] = ["RUST_BACKTRACE", "SCTL_FAILPOINT"];

/// Why a clone was not to be had.
#[derive(Debug)]
pub(super) enum AskError {
    /// The slot shows another device by now.
    Other,
    /// The helper has gone.
    Gone(io::Error),
}

/// Keeps one helper running.
///
/// A helper dies with the thread that started it, so one thread that lives as
/// long as this value starts them all.
pub(super) struct Keeper {
    starts: Mutex<mpsc::Sender<Start>>,
    user: HelperUser,
    state: Mutex<State>,
}

struct Start {
    control: OwnedFd,
    reply: mpsc::Sender<io::Result<Process>>,
}

#[derive(Default)]
struct State {
    helper: Option<Helper>,
    /// Helpers in a row that did not live long.
    failures: u32,
    /// Not to be started before.
    not_before: Option<Instant>,
    /// Why the last one did not start.
    reason: String,
}

struct Helper {
    control: OwnedFd,
    process: Process,
    started: Instant,
}

impl Drop for Helper {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait().map(drop));
        if let Err(error) = ended {
            warn!(pid = self.process.id(), %error, "cannot end the mount helper");
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Gets ready to start helpers of `program` as `user`.
    pub(super) fn new(program: OsString, user: HelperUser) -> io::Result<Self> {
        let (sender, starts) = mpsc::channel::<Start>();
        let env: Vec<OsString> = KEPT
            .iter()
            .filter_map(|name| {
                let value = std::env::var_os(name)?;
                Some([OsStr::new(name), OsStr::new("="), &value].into_iter().collect())
            })
            .collect();
        std::thread::Builder::new().name("mount-keeper".to_owned()).spawn(move || {
            for start in starts {
                let env: Vec<_> = env.iter().map(OsString::as_os_str).collect();
                let process = spawn::spawn(&Command {
                    program: &program,
                    args: &[OsStr::new("sctld"), OsStr::new("mount-helper")],
                    env: &env,
                    fds: &[start.control.as_fd()],
                    stderr: None,
                    identity: None,
                    powers: Powers::Kept,
                });
                // Its end is closed here, so that the helper's is the only one.
                drop(start.control);
                if let Err(mpsc::SendError(Ok(process))) = start.reply.send(process) {
                    // Who asked has gone, so nobody needs it.
                    let _ = process.kill();
                }
            }
        })?;
        Ok(Self { starts: Mutex::new(sender), user, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether a helper runs.
    pub(super) fn is_running(&self) -> bool {
        let mut state = self.state();
        let has_ended = state.helper.as_ref().is_some_and(|helper| has_ended(&helper.process));
        if has_ended {
            state.lose("it has ended");
        }
        state.helper.is_some()
    }

    /// Starts a helper, unless the last ones died too soon. No slot should have
    /// anything mounted, so that all that it will ever see came to it by
    /// propagation.
    ///
    /// # Errors
    /// Why there is none, for a user.
    pub(super) fn start(&self, slots: &Slots) -> Result<(), String> {
        let mut state = self.state();
        if state.helper.is_some() {
            return Ok(());
        }
        if state.not_before.is_some_and(|time| time > Instant::now()) {
            return Err(state.reason.clone());
        }
        match self.launch(slots) {
            Ok(helper) => {
                info!(pid = helper.process.id(), "mount helper started");
                state.helper = Some(helper);
                Ok(())
            }
            Err(error) => {
                state.fail(error.to_string());
                warn!(%error, "cannot start the mount helper");
                Err(state.reason.clone())
            }
        }
    }

    fn launch(&self, slots: &Slots) -> io::Result<Helper> {
        let (control, theirs) = scm::pair(Blocking::Yes)?;
        scm::set_timeout(&control, STARTING)?;
        let (reply, answer) = mpsc::channel();
        let gone = |_| io::Error::other("the thread that starts the mount helper has ended");
        let start = Start { control: theirs, reply };
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).send(start).map_err(|_| gone(()))?;
        let process = answer.recv().map_err(|_| gone(()))??;
        let helper = Helper { control, process, started: Instant::now() };
        expect(&helper.control, UNSHARED)?;
        // From root's point of view: the one id that exists in there.
        map_child(helper.process.id(), IdRange::one(0, self.user.uid), IdRange::one(0, self.user.gid))?;
        let path = slots.path().as_os_str().as_bytes();
        let message = [&[MAPPED], &slots.device().to_le_bytes()[..], path].concat();
        scm::send(&helper.control, &message, &[])?;
        expect(&helper.control, READY)?;
        scm::set_timeout(&helper.control, ANSWERING)?;
        Ok(helper)
    }

    /// Has the helper clone what is mounted on `slot`, if its device is
    /// `device`. What comes back has been checked by nobody.
    pub(super) fn clone_slot(&self, slot: u32, device: u64) -> Result<OwnedFd, AskError> {
        let mut state = self.state();
        let Some(helper) = &state.helper else {
            return Err(AskError::Gone(io::Error::other("no mount helper runs")));
        };
        match ask(&helper.control, slot, device) {
            Ok(Some(mount)) => Ok(mount),
            Ok(None) => Err(AskError::Other),
            Err(error) => {
                warn!(%error, "the mount helper failed");
                state.lose(&error.to_string());
                Err(AskError::Gone(error))
            }
        }
    }

    /// Ends the helper; the next one has to wait as if it had died.
    pub(super) fn end(&self, reason: &str) {
        self.state().lose(reason);
    }

    /// Ends the helper for good.
    pub(super) fn stop(&self) {
        self.state().helper = None;
    }

    /// Process id of the helper.
    pub(super) fn pid(&self) -> Option<i32> {
        self.state().helper.as_ref().map(|helper| helper.process.id())
    }
}

impl State {
    /// Ends the helper and notes that it did not do well.
    fn lose(&mut self, reason: &str) {
        if let Some(helper) = self.helper.take() {
            if helper.started.elapsed() > SETTLED {
                self.failures = 0;
            }
            self.fail(format!("the mount helper failed: {reason}"));
        }
    }

    fn fail(&mut self, reason: String) {
        self.reason = reason;
        // One death may be an accident: the next one is started at once.
        self.not_before = self.failures.checked_sub(1).map(|again| {
            let wait = BACK_OFF.0.saturating_mul(1 << again.min(16));
            Instant::now() + wait.min(BACK_OFF.1)
        });
        self.failures = self.failures.saturating_add(1);
    }
}

fn has_ended(process: &Process) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let pidfd = process.pidfd();
    // A failing poll says nothing; the next question to it will.
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

/// Waits for a word of the start.
fn expect(control: &OwnedFd, word: u8) -> io::Result<()> {
    let mut buffer = [0; MAX_PACKET];
    let received = scm::recv(control, &mut buffer)?;
    match &buffer[..received.len] {
        [found] if *found == word && received.fds.is_empty() => Ok(()),
        [FAILED, text @ ..] => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
        [] => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the mount helper ended while it started")),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the mount helper does not keep to the protocol")),
    }
}

fn ask(control: &OwnedFd, slot: u32, device: u64) -> io::Result<Option<OwnedFd>> {
    let request = [&slot.to_le_bytes()[..], &device.to_le_bytes()].concat();
    scm::send(control, &request, &[])?;
    let mut answer = [0; 6];
    let received = scm::recv(control, &mut answer)?;
    let junk = || io::Error::new(io::ErrorKind::InvalidData, "it does not keep to the protocol");
    if received.truncated {
        return Err(junk());
    }
    let mut fds = received.fds.into_iter();
    match (&answer[..received.len], fds.next(), fds.next()) {
        ([CLONED], Some(mount), None) => Ok(Some(mount)),
        ([OTHER_DEVICE], None, None) => Ok(None),
        ([super::helper::NO_CLONE, errno @ ..], None, None) => {
            let errno = errno.try_into().map_err(|_| junk())?;
            Err(io::Error::from_raw_os_error(i32::from_le_bytes(errno)))
        }
        ([], None, None) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended")),
        _ => Err(junk()),
    }
}
