//! The service manager: what it is told, and how it knows that we live.
//!
//! Without one ([`Manager::from_environment`] finds no socket) all of it does
//! nothing.
//!
//! # Source
//! sd_notify(3), sd_watchdog_enabled(3).

use std::{
    convert::Infallible,
    ffi::OsString,
    future::Future,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

/// How often the status line is looked at.
const STATUS: Duration = Duration::from_secs(5);

/// The service manager that started us, if one did.
#[derive(Debug, Clone)]
pub struct Manager {
    /// Where it listens: a path, or an abstract name after an `@`.
    socket: Option<OsString>,
    /// It ends us when it has heard nothing for that long.
    patience: Option<Duration>,
}

impl Manager {
    /// Looks at `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_environment() -> Self {
        let patience = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero());
        Self { socket: std::env::var_os("NOTIFY_SOCKET"), patience }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let send = || -> io::Result<()> {
            let address = match socket.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(socket)?,
            };
            let text: Vec<String> = states.iter().map(ToString::to_string).collect();
            UnixDatagram::unbound()?.send_to_addr(text.join("\n").as_bytes(), &address)?;
            Ok(())
        };
        if let Err(error) = send() {
            warn!(%error, "cannot notify the service manager");
        }
    }

    /// Says that a start that takes its time is still one: the manager is to
    /// wait that much longer.
    pub fn starting(&self, status: &str, longer: Duration) {
        let usec = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(usec)]);
    }

    /// Says that clients can connect, or that a reload is over.
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Says that the configuration is being read again; [`Manager::ready`]
    /// ends it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            // Without the time it counts as a failed reload, which is worse
            // than one that nobody hears of.
            Err(error) => warn!(%error, "cannot read the clock"),
        }
    }

    /// Says that we are leaving.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// Tells that we live for as long as `answer` comes in time, and keeps the
    /// status line; never returns.
    ///
    /// It runs on the same runtime as all services, so that a runtime which no
    /// longer turns is silent, too; `answer` has to ask what requests ask.
    pub async fn attend<A: Future<Output = ()>>(
        &self,
        answer: impl Fn() -> A,
        status: impl Fn() -> String,
    ) -> Infallible {
        if self.socket.is_none() {
            return std::future::pending().await;
        }
        // Two may be late: a busy host is no dead daemon.
        let pace = self.patience.map(|patience| patience / 3);
        let mut ticks = interval(pace.unwrap_or(STATUS).min(STATUS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = status();
        let mut silent = false;
        loop {
            ticks.tick().await;
            if let Some(pace) = pace {
                if timeout(pace, answer()).await.is_ok() {
                    self.tell(&[NotifyState::Watchdog]);
                    if std::mem::take(&mut silent) {
                        info!("the engine answers again");
                    }
                } else if !std::mem::replace(&mut silent, true) {
                    warn!(waited_s = pace.as_secs(), "the engine does not answer: the watchdog hears nothing");
                }
            }
            let now = status();
            if now != told {
                self.tell(&[NotifyState::Status(&now)]);
                told = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A manager of ours with this patience, and what it hears.
    fn manager(patience: Duration) -> (Manager, UnixDatagram, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        (Manager { socket: Some(path.into()), patience: Some(patience) }, socket, dir)
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 4096];
        let next = || socket.recv(&mut buffer).ok().map(|len| String::from_utf8_lossy(&buffer[..len]).into_owned());
        std::iter::from_fn(next).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_hears_of_an_engine_that_answers_and_of_no_other() {
        let (manager, socket, _dir) = manager(Duration::from_secs(6));
        let (stuck, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        let answer = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            if stuck.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let watch = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            assert_eq!(heard(&socket), ["WATCHDOG=1"; 4], "at once and every two seconds");
            stuck.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(heard(&socket), Vec::<String>::new(), "it was asked {asked:?} times");
            stuck.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert!(!heard(&socket).is_empty(), "it answers again");
        };
        tokio::select! {
            () = watch => {}
            never = manager.attend(answer, String::new) => match never {},
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_status_line_is_told_when_it_changes() {
        let (mut manager, socket, _dir) = manager(Duration::from_secs(6));
        manager.patience = None;
        let busy = AtomicBool::new(false);
        let status = || if busy.load(Ordering::Relaxed) { "busy".to_owned() } else { "ready".to_owned() };
        let watch = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(heard(&socket), Vec::<String>::new());
            busy.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(heard(&socket), ["STATUS=busy"]);
        };
        tokio::select! {
            () = watch => {}
            never = manager.attend(|| async {}, status) => match never {},
        }
    }
}
