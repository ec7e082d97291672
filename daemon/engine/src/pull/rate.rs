//! How fast a layer comes: one that only trickles holds a place that others
//! wait for.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sctl_common::ErrorKind;
use tokio::time::{Instant, sleep_until};

use crate::Failure;

/// Over how long a rate is measured: registries may pause for a while.
const WINDOW: Duration = Duration::from_secs(300);

/// Watches one transfer.
#[derive(Debug)]
pub(super) struct Rate {
    /// Bytes per second; 0 asks for none.
    floor: u64,
    total_bytes: u64,
    done_bytes: AtomicU64,
    started: Instant,
    /// Full windows that have been looked at.
    windows: AtomicU64,
    /// Bytes at the end of the last one.
    before: AtomicU64,
}

impl Rate {
    pub(super) fn new(floor: u64, total_bytes: u64) -> Self {
        Self {
            floor,
            total_bytes,
            done_bytes: AtomicU64::new(0),
            started: Instant::now(),
            windows: AtomicU64::new(0),
            before: AtomicU64::new(0),
        }
    }

    /// Notes how many bytes have come.
    pub(super) fn update(&self, done_bytes: u64) {
        self.done_bytes.fetch_max(done_bytes, Ordering::Relaxed);
    }

    /// Ready when the transfer has been too slow for a whole window. It can be
    /// dropped and called again.
    pub(super) async fn too_low(&self) -> Failure {
        if self.floor == 0 {
            return std::future::pending().await;
        }
        loop {
            let windows = self.windows.load(Ordering::Relaxed) + 1;
            sleep_until(self.started + WINDOW * u32::try_from(windows).unwrap_or(u32::MAX)).await;
            self.windows.store(windows, Ordering::Relaxed);
            let done = self.done_bytes.load(Ordering::Relaxed);
            let came = done - self.before.swap(done, Ordering::Relaxed);
            if done < self.total_bytes && came < self.floor.saturating_mul(WINDOW.as_secs()) {
                let text = format!(
                    "the registry sends too slowly: {came} bytes in {} s, of {} bytes in all",
                    WINDOW.as_secs(),
                    self.total_bytes
                );
                return Failure::new(ErrorKind::DeadlineExceeded, text)
                    .hint("try again when the registry or the line to it is faster");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How long a transfer that gets `per_second` bytes goes on; at most an hour.
    async fn lasts(rate: Rate, per_second: u64) -> Option<u64> {
        let started = Instant::now();
        let work = async {
            for done in 1.. {
                // As in a job's loop: each piece of news starts the wait anew.
                if timeout(SECOND, rate.too_low()).await.is_ok() {
                    break;
                }
                rate.update(done * per_second);
            }
        };
        timeout(SECOND * 3600, work).await.ok().map(|()| started.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_given_up_and_the_rest_goes_on() {
        assert_eq!(lasts(Rate::new(100, u64::MAX), 99).await, Some(300));
        assert_eq!(lasts(Rate::new(100, u64::MAX), 102).await, None);
        assert_eq!(lasts(Rate::new(0, u64::MAX), 0).await, None, "no floor");
        assert_eq!(lasts(Rate::new(100, 10 * 99), 99).await, None, "complete, and being packed");
        let rate = Rate::new(100, u64::MAX);
        sleep(SECOND * 200).await;
        rate.update(40_000);
        assert_eq!(timeout(SECOND * 399, rate.too_low()).await.ok().map(|_| ()), None, "a pause is fine");
        assert!(timeout(SECOND * 2, rate.too_low()).await.is_ok(), "but not a second window of it");
    }
}
