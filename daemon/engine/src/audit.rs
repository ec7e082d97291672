//! Who was given what, who was refused, and what administrators did.
//!
//! Each of these acts is one event of the target [`TARGET`], with fields that
//! stay as they are; `daemon/docs/audit.md` is their manual. Users can cause
//! events as fast as they can ask, and a log that takes so many a second and
//! drops the rest would lose those of others. So the first of equal acts is
//! told at once, and further ones within [`WINDOW`] are counted and told as
//! one, at its end: the sum over `count` is the number of acts.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sctl_common::Digest;
use tracing::info;

use crate::cache::ImageKey;

/// Target of the events: what log filters and queries name.
pub const TARGET: &str = "sctl_audit";

/// For how long equal acts are told as one.
pub const WINDOW: Duration = Duration::from_secs(60);

/// Different acts of one user within a window that are told one by one.
const MAX_PER_USER: usize = 256;

/// What stands in the place of the others' subjects.
const TOO_MANY: &str = "more different ones within a minute than are told one by one";

/// The image that an act is about, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Image<'a> {
    /// Canonical reference by which it was asked for.
    pub reference: Option<&'a str>,
    /// Of the platform's manifest.
    pub manifest: Option<&'a Digest>,
    /// Names it in the cache.
    pub key: Option<&'a ImageKey>,
}

/// Why somebody was given an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The registry answered to this caller's credentials just now.
    Registry,
    /// It had, within the time of a lease.
    Lease,
    /// The caller holds an unchanged copy and a right to the image.
    Delivered,
}

/// Whose superblock is behind a mount that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All users'.
    Shared,
    /// This user's own.
    Private,
}

/// Notes that `uid` was given an image: a ticket for it, or the file.
pub fn grant(uid: u32, image: Image<'_>, basis: Basis) {
    let reason = match basis {
        Basis::Registry => "registry",
        Basis::Lease => "lease",
        Basis::Delivered => "delivered",
    };
    tell(Act::new(Kind::Grant, Some(uid), None, image, Some(reason)));
}

/// Notes that `uid` was refused `act` (a word or two, such as `pull`) and why.
/// The reason is for administrators and never holds what a caller showed to be
/// let in.
pub fn denial(uid: u32, act: &'static str, image: Image<'_>, reason: &str) {
    tell(Act::new(Kind::Denial, Some(uid), Some(act), image, Some(reason)));
}

/// Notes that `uid` was handed a mount of an image.
pub fn mount(uid: u32, image: Image<'_>, sharing: Sharing) {
    let act = match sharing {
        Sharing::Shared => "shared",
        Sharing::Private => "private",
    };
    tell(Act::new(Kind::Mount, Some(uid), Some(act), image, None));
}

/// Notes that the daemon took its own mount of an image down. `reason` is a
/// word or two, such as `idle`.
pub fn unmount(image: Image<'_>, reason: &'static str) {
    tell(Act::new(Kind::Unmount, None, None, image, Some(reason)));
}

/// Notes that the administrator `uid` did `act`; `detail` says to what, or
/// with which result.
pub fn admin(uid: u32, act: &'static str, image: Image<'_>, detail: Option<&str>) {
    tell(Act::new(Kind::Admin, Some(uid), Some(act), image, detail));
}

/// Tells what has been counted and not told yet; for a daemon that ends.
pub fn flush() {
    let rest = with_ledger(Ledger::close);
    rest.iter().for_each(|(act, count)| act.log(*count));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Grant,
    Denial,
    Mount,
    Unmount,
    Admin,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Act {
    kind: Kind,
    uid: Option<u32>,
    act: Option<&'static str>,
    reference: Option<String>,
    manifest: Option<Digest>,
    key: Option<ImageKey>,
    reason: Option<String>,
}

impl Act {
    fn new(kind: Kind, uid: Option<u32>, act: Option<&'static str>, image: Image<'_>, reason: Option<&str>) -> Self {
        Self {
            kind,
            uid,
            act,
            reference: image.reference.map(str::to_owned),
            manifest: image.manifest.copied(),
            key: image.key.copied(),
            reason: reason.map(str::to_owned),
        }
    }

    /// The same act on anything.
    fn without_subject(&self) -> Self {
        Self { reference: None, manifest: None, key: None, reason: Some(TOO_MANY.to_owned()), ..self.clone() }
    }

    fn log(&self, count: u64) {
        let (event, message) = match self.kind {
            Kind::Grant => ("grant", "image granted"),
            Kind::Denial => ("denial", "request denied"),
            Kind::Mount => ("mount", "mount handed over"),
            Kind::Unmount => ("unmount", "mount taken down"),
            Kind::Admin => ("admin", "administrator's act"),
        };
        // Without a parent: fields of spans must not mix with these.
        info!(
            target: TARGET,
            parent: None,
            event,
            uid = self.uid,
            act = self.act,
            reference = self.reference.as_deref(),
            manifest = self.manifest.as_ref().map(display),
            key = self.key.as_ref().map(display),
            reason = self.reason.as_deref(),
            count,
            "{message}"
        );
    }
}

/// Acts of the window that runs.
#[derive(Debug, Default)]
struct Ledger {
    /// None until something happens.
    since: Option<Instant>,
    /// How often each was done since it was told.
    repeats: HashMap<Act, u64>,
    /// How many different ones are of each user.
    of_users: HashMap<u32, usize>,
}

/// What is to be done about an act.
#[derive(Debug, Default, PartialEq, Eq)]
struct Noted {
    /// To be told, each with how often it was done.
    tell: Vec<(Act, u64)>,
    /// A window has begun.
    begun: bool,
}

impl Ledger {
    fn note(&mut self, mut act: Act, now: Instant) -> Noted {
        let mut noted = Noted::default();
        if self.since.is_some_and(|since| now.saturating_duration_since(since) >= WINDOW) {
            noted.tell = self.close();
        }
        noted.begun = self.since.is_none();
        self.since.get_or_insert(now);
        if let Some(uid) = act.uid
            && !self.repeats.contains_key(&act)
        {
            let different = self.of_users.entry(uid).or_default();
            if *different >= MAX_PER_USER {
                act = act.without_subject();
            } else {
                *different += 1;
            }
        }
        match self.repeats.get_mut(&act) {
            Some(repeats) => *repeats += 1,
            None => {
                self.repeats.insert(act.clone(), 0);
                noted.tell.push((act, 1));
            }
        }
        noted
    }

    /// Ends the window; answers what was done again in it.
    fn close(&mut self) -> Vec<(Act, u64)> {
        let ended = std::mem::take(self);
        ended.repeats.into_iter().filter(|(_, repeats)| *repeats > 0).collect()
    }
}

fn with_ledger<T>(work: impl FnOnce(&mut Ledger) -> T) -> T {
    static LEDGER: LazyLock<Mutex<Ledger>> = LazyLock::new(Mutex::default);
    // Counters: whatever panicked, they are as good as before.
    work(&mut LEDGER.lock().unwrap_or_else(PoisonError::into_inner))
}

fn tell(act: Act) {
    let noted = with_ledger(|ledger| ledger.note(act, Instant::now()));
    // Outside the lock: a log may be slow.
    noted.tell.iter().for_each(|(act, count)| act.log(*count));
    // Without a runtime the next act, or the end, closes the window.
    if noted.begun
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        runtime.spawn(async {
            tokio::time::sleep(WINDOW).await;
            flush();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(uid: u32, reference: &str) -> Act {
        let image = Image { reference: Some(reference), ..Image::default() };
        Act::new(Kind::Denial, Some(uid), Some("open"), image, Some("no lease"))
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_as_one() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        let first = ledger.note(act(1, "a"), start);
        assert_eq!(first, Noted { tell: vec![(act(1, "a"), 1)], begun: true });
        for _ in 0..5 {
            assert_eq!(ledger.note(act(1, "a"), start + WINDOW / 2), Noted::default());
        }
        // Somebody else's, or about something else, is another act.
        assert_eq!(ledger.note(act(2, "a"), start).tell, [(act(2, "a"), 1)]);
        assert_eq!(ledger.note(act(1, "b"), start).tell, [(act(1, "b"), 1)]);
        assert_eq!(ledger.close(), [(act(1, "a"), 5)]);
        assert_eq!(ledger.note(act(1, "a"), start), Noted { tell: vec![(act(1, "a"), 1)], begun: true });
    }

    #[test]
    fn a_window_that_nobody_closed_is_closed_by_the_next_act() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        ledger.note(act(1, "a"), start);
        ledger.note(act(1, "a"), start);
        let later = ledger.note(act(1, "a"), start + WINDOW);
        assert_eq!(later, Noted { tell: vec![(act(1, "a"), 1), (act(1, "a"), 1)], begun: true });
        assert_eq!(ledger.close(), []);
    }

    #[test]
    fn a_flood_of_different_acts_is_counted_and_hides_nobody_else() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        let flood = 10 * MAX_PER_USER as u64;
        let told: usize = (0..flood).map(|n| ledger.note(act(1, &n.to_string()), start).tell.len()).sum();
        assert_eq!(told, MAX_PER_USER + 1);
        assert_eq!(ledger.repeats.len(), MAX_PER_USER + 1, "memory is bounded");
        assert_eq!(ledger.note(act(2, "a"), start).tell, [(act(2, "a"), 1)]);
        let rest = ledger.close();
        assert_eq!(rest, [(act(1, "").without_subject(), flood - told as u64)], "none is lost");
    }
}
