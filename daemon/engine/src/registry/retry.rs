//! When to try again, and how long to wait before.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

/// How often and how patiently a request is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Tries in a row that bring nothing, the first one included.
    pub attempts: u32,
    /// Wait after the first failure; it doubles with each further one.
    pub first_delay: Duration,
    /// Longest wait that this client chooses by itself.
    pub max_delay: Duration,
    /// Longest sum of the waits of one request. A registry that asks for more
    /// by `Retry-After` is not waited for: the error tells its wish.
    pub max_total_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
            max_total_wait: Duration::from_secs(180),
        }
    }
}

/// Counts the failures of one request.
#[derive(Debug)]
pub(crate) struct Retrier {
    policy: RetryPolicy,
    failures: u32,
    waited: Duration,
    last_reset: Instant,
}

impl Retrier {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self { policy, failures: 0, waited: Duration::ZERO, last_reset: Instant::now() }
    }

    /// How long to wait after one more failure, or `None` if it is the last.
    ///
    /// `asked` is the server's `Retry-After`.
    pub(crate) fn next_delay(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.failures += 1;
        if self.failures >= self.policy.attempts {
            return None;
        }
        let doubled = self.policy.first_delay.saturating_mul(1 << (self.failures - 1).min(16));
        let own = jitter(doubled.min(self.policy.max_delay));
        let delay = asked.map_or(own, |asked| asked.max(self.policy.first_delay.min(own)));
        let total = self.waited.saturating_add(delay);
        if total > self.policy.max_total_wait {
            return None;
        }
        self.waited = total;
        Some(delay)
    }

    /// Starts over, because the transfer moved on.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.policy);
    }

    /// Failures in a row so far.
    pub(crate) const fn failures(&self) -> u32 {
        self.failures
    }

    /// Time since the start or the last [`Retrier::reset`].
    pub(crate) fn age(&self) -> Duration {
        self.last_reset.elapsed()
    }
}

/// Takes up to a fifth off, so that the layers of one image do not come back
/// all at once.
fn jitter(delay: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    let mixed = nanos ^ std::process::id().wrapping_mul(0x9e37_79b9);
    delay.saturating_sub(delay / 5 * (mixed % 1000) / 1000)
}

/// Statuses that may be gone at the next try.
///
/// # Source
/// services.md §2 "Blobs" of the project's references.
pub(crate) const fn is_retryable_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 499 | 500 | 502 | 503 | 504 | 522)
}

/// Parses `Retry-After`: whole seconds, or an HTTP date seen from `now`.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit is a very long time, not no wish at all.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let cases = [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 09 Sep 2001 01:47:10 GMT", Some(30)),
            ("Sun, 09 Sep 2001 01:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse_retry_after(text, now), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn waits_double_and_end() {
        let policy = RetryPolicy { attempts: 4, ..RetryPolicy::default() };
        let mut retrier = Retrier::new(policy);
        for seconds in [1u64, 2, 4] {
            let delay = retrier.next_delay(None).expect("a further try");
            let full = Duration::from_secs(seconds);
            assert!(delay <= full && delay >= full / 5 * 4, "{delay:?} for {seconds} s");
        }
        assert_eq!(retrier.next_delay(None), None);
        retrier.reset();
        assert!(retrier.next_delay(None).is_some());
    }

    #[test]
    fn a_wish_past_the_limit_is_not_waited_for() {
        let mut retrier = Retrier::new(RetryPolicy::default());
        assert_eq!(retrier.next_delay(Some(Duration::from_secs(100))), Some(Duration::from_secs(100)));
        assert_eq!(retrier.next_delay(Some(Duration::from_secs(100))), None, "200 s in all");
        let mut retrier = Retrier::new(RetryPolicy::default());
        assert_eq!(retrier.next_delay(Some(Duration::from_secs(u64::MAX))), None);
    }
}
