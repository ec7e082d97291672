//! How a job tells the broker what it does.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::protocol::{self, Report};
use crate::{Notice, NoticeLevel, Stage, registry};

/// Most users look at progress ten times a second at best.
const INTERVAL: Duration = Duration::from_millis(100);

/// Writes reports; clones write to the same socket.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    socket: Arc<Mutex<UnixStream>>,
}

impl Reporter {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket: Arc::new(Mutex::new(socket)) }
    }

    pub(super) fn send(&self, report: &Report) -> io::Result<()> {
        // A frame is written whole or the broker is gone.
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::write(&*socket, report)
    }

    pub(super) fn notice(&self, notice: &registry::Notice) {
        let level = if notice.is_warning() { NoticeLevel::Warning } else { NoticeLevel::Verbose };
        self.tell(level, notice.to_string());
    }

    pub(super) fn tell(&self, level: NoticeLevel, text: String) {
        // Without a broker there is nobody to tell, and this process is about
        // to be ended.
        let _ = self.send(&Report::Notice(Notice { level, text }));
    }

    /// Progress of one stage, told ten times a second at most.
    pub(super) fn progress(&self, stage: Stage, total_bytes: Option<u64>) -> Progress {
        Progress { reporter: self.clone(), stage, total_bytes, started: Instant::now(), next_ms: AtomicU64::new(0) }
    }
}

/// Progress of one stage.
#[derive(Debug)]
pub(super) struct Progress {
    reporter: Reporter,
    stage: Stage,
    total_bytes: Option<u64>,
    started: Instant,
    /// Not before this many milliseconds after the start.
    next_ms: AtomicU64,
}

impl Progress {
    /// Says how many bytes are done. Cheap if it is not yet time to tell.
    pub(super) fn update(&self, done_bytes: u64) {
        self.tell(done_bytes, self.total_bytes);
    }

    /// Says how many bytes of how many are done.
    pub(super) fn update_of(&self, done_bytes: u64, total_bytes: u64) {
        self.tell(done_bytes, Some(total_bytes));
    }

    fn tell(&self, done_bytes: u64, total_bytes: Option<u64>) {
        let now = self.started.elapsed().as_millis() as u64;
        let next = self.next_ms.load(Ordering::Relaxed);
        if now < next {
            return;
        }
        let then = now + INTERVAL.as_millis() as u64;
        // Of several threads, one tells.
        if self.next_ms.compare_exchange(next, then, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let report = Report::Progress { stage: self.stage, done_bytes, total_bytes };
            // As in `tell`.
            let _ = self.reporter.send(&report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_throttled() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let reporter = Reporter::new(ours);
        let progress = reporter.progress(Stage::Fetch, Some(1000));
        for done in 0..1000 {
            progress.update(done);
        }
        drop((progress, reporter));
        let mut count = 0;
        while let Ok(report) = protocol::read::<Report>(&theirs) {
            assert!(matches!(report, Report::Progress { stage: Stage::Fetch, total_bytes: Some(1000), .. }));
            count += 1;
        }
        assert!((1..=3).contains(&count), "{count} reports");
    }
}
