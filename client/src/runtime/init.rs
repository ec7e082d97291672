//! New PID namespaces: who waits outside, and PID 1 inside.
//!
//! The process that the caller started stays outside and waits. Its child is
//! PID 1 in the namespace: it starts the payload as PID 2, reaps what loses
//! its parents, and ends with the payload, which makes the kernel end
//! everything else in there.
//!
//! Keys of a terminal reach the payload by themselves, as part of the
//! foreground process group; every other signal is passed on.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use sctl_sys::proc::{self, Fork, SignalSet};

use crate::failure::{FATAL, Failure};

/// Signals that concern only whoever gets them: job control of the terminal
/// must stop and continue the waiting process like any other.
const OWN: [i32; 5] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGCONT, libc::SIGSTOP];

/// Inside of the new namespace: how to tell the outside what became of the
/// payload.
#[derive(Debug)]
pub struct Inside {
    report: PipeWriter,
    /// Signals that were blocked when the program was started.
    mask: SignalMask,
}

/// Signals that the payload starts with.
struct SignalMask(SignalSet);

impl std::fmt::Debug for SignalMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalMask")
    }
}

/// Goes on inside of the new PID namespace, as its PID 1. The process that
/// calls stays outside and never returns from here: it ends as the payload
/// does.
///
/// # Errors
/// A [`Failure`] if the process cannot be duplicated.
pub fn enter() -> Result<Inside, Failure> {
    let fail = |error: std::io::Error| Failure::new("Unable to start a process in a new PID namespace").source(&error);
    let (reader, report) = std::io::pipe().map_err(fail)?;
    // Before the fork, so that no signal gets lost in between.
    let mask = SignalSet::all_but(&OWN).block().map_err(fail)?;
    match proc::fork().map_err(fail)? {
        Fork::Parent(child) => {
            drop(report);
            wait_outside(child, reader)
        }
        Fork::Child => {
            drop(reader);
            // The death of the process outside is that of the container.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|errno| fail(errno.into()))?;
            // It may have died before that: then nobody reads the pipe.
            if is_abandoned(&report) {
                proc::exit_now(i32::from(FATAL));
            }
            Ok(Inside { report, mask: SignalMask(mask) })
        }
    }
}

fn is_abandoned(report: &PipeWriter) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(report, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// Waits for PID 1 and ends as the payload did.
fn wait_outside(child: Pid, mut report: PipeReader) -> ! {
    let signals = SignalSet::all_but(&OWN);
    let status = loop {
        match rustix::process::waitpid(Some(child), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => break status,
            Ok(None) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => proc::exit_now(i32::from(FATAL)),
        }
        let Ok(arrival) = signals.wait() else { proc::exit_now(i32::from(FATAL)) };
        if arrival.signal != libc::SIGCHLD && !arrival.from_terminal {
            // It can only have ended, which the next round sees.
            let _ = proc::kill(child, arrival.signal);
        }
    };
    let mut reported = [0; 4];
    let end = match report.read_exact(&mut reported) {
        Ok(()) => i32::from_ne_bytes(reported),
        // PID 1 was the payload itself, or did not get to start one.
        Err(_) => end_of(status),
    };
    if end < 0 { proc::die_of(-end) } else { proc::exit_now(end) }
}

/// How a process ended: its exit code, or its signal as a negative number.
fn end_of(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => -signal,
        (None, None) => i32::from(FATAL),
    }
}

impl Inside {
    /// Goes on as the payload. With `own_init` that is PID 2, and the process
    /// that calls stays PID 1 and never returns from here.
    ///
    /// # Errors
    /// A [`Failure`] if the process cannot be duplicated.
    pub fn become_payload(self, own_init: bool) -> Result<(), Failure> {
        let fail = |error: std::io::Error| Failure::new("Unable to start a process in the container").source(&error);
        if own_init && let Fork::Parent(payload) = proc::fork().map_err(fail)? {
            be_init(payload, self.report)
        }
        self.mask.0.set_as_mask().map_err(fail)
    }
}

/// Reaps, passes signals on, and ends with the payload.
fn be_init(payload: Pid, mut report: PipeWriter) -> ! {
    let signals = SignalSet::all_but(&OWN);
    loop {
        // Every child that has ended, and not only the one whose end was
        // announced: pending signals of one kind merge.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == payload {
                // Whoever waits has gone, then: nothing is left to tell.
                let _ = report.write_all(&end_of(status).to_ne_bytes());
                proc::exit_now(0);
            }
        }
        match signals.wait() {
            Ok(arrival) if arrival.signal != libc::SIGCHLD && !arrival.from_terminal => {
                // It can only have ended, which the next round sees.
                let _ = proc::kill(payload, arrival.signal);
            }
            Ok(_) => {}
            Err(_) => proc::exit_now(i32::from(FATAL)),
        }
    }
}
