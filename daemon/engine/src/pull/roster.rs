//! Who waits for what: the pulls under way, and the jobs that work for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use sctl_common::Reference;

use super::Board;
use crate::{Caller, JobInfo, JobWork, Stage};

/// Lists of both.
#[derive(Debug, Clone, Default)]
pub(super) struct Roster(Arc<Mutex<Lists>>);

#[derive(Debug, Default)]
struct Lists {
    next_id: u64,
    pulls: BTreeMap<u64, Pull>,
    jobs: BTreeMap<u64, Job>,
}

#[derive(Debug)]
struct Pull {
    uid: u32,
    account: u32,
    /// What it waits for at the moment.
    board: Option<Arc<Board>>,
}

#[derive(Debug)]
struct Job {
    pid: i32,
    work: JobWork,
    reference: Reference,
    board: Arc<Board>,
    started: Instant,
}

/// A pull that counts as its user's until this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    roster: Roster,
    id: u64,
}

/// A job that is listed until this is dropped.
#[derive(Debug)]
pub(super) struct Listed {
    roster: Roster,
    id: u64,
}

impl Lists {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Roster {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        // Each change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a pull of `caller`, unless its account has `limit` already.
    pub(super) fn admit(&self, caller: Caller, limit: usize) -> Option<Seat> {
        let mut lists = self.lists();
        if lists.pulls.values().filter(|pull| pull.account == caller.account).count() >= limit {
            return None;
        }
        let id = lists.id();
        lists.pulls.insert(id, Pull { uid: caller.uid, account: caller.account, board: None });
        Some(Seat { roster: self.clone(), id })
    }

    /// Pulls under way.
    pub(super) fn pulling(&self) -> usize {
        self.lists().pulls.len()
    }

    /// Lists a job that has been started and posts on `board`.
    pub(super) fn list(&self, pid: i32, work: JobWork, reference: &Reference, board: &Arc<Board>) -> Listed {
        let mut lists = self.lists();
        let id = lists.id();
        let job = Job { pid, work, reference: reference.clone(), board: Arc::clone(board), started: Instant::now() };
        lists.jobs.insert(id, job);
        Listed { roster: self.clone(), id }
    }

    /// The jobs that run, the oldest first.
    pub(super) fn jobs(&self) -> Vec<JobInfo> {
        let lists = self.lists();
        let mut waiting: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for pull in lists.pulls.values() {
            for board in pull.board.iter().flat_map(|board| board.reach()) {
                waiting.entry(board).or_default().insert(pull.uid);
            }
        }
        let info = |job: &Job| {
            let stage = match job.work {
                JobWork::Resolve => None,
                JobWork::Layer { .. } => Some(Stage::Fetch),
                JobWork::Assemble => Some(Stage::Assemble),
            };
            let (done_bytes, total_bytes) = stage.and_then(|stage| job.board.bytes(stage)).unwrap_or((0, None));
            JobInfo {
                pid: job.pid,
                work: job.work,
                reference: job.reference.clone(),
                uids: waiting.get(&job.board.id()).into_iter().flatten().copied().collect(),
                running: job.started.elapsed(),
                done_bytes,
                total_bytes,
            }
        };
        lists.jobs.values().map(info).collect()
    }
}

impl Seat {
    /// Says what the pull waits for now.
    pub(super) fn follow(&self, board: &Arc<Board>) {
        if let Some(pull) = self.roster.lists().pulls.get_mut(&self.id) {
            pull.board = Some(Arc::clone(board));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.roster.lists().pulls.remove(&self.id);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.roster.lists().jobs.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use sctl_common::Digest;

    use super::*;

    #[test]
    fn each_user_has_so_many_pulls() {
        let roster = Roster::default();
        let first = roster.admit(Caller::user(1), 2).unwrap();
        let _second = roster.admit(Caller::user(1), 2).unwrap();
        assert!(roster.admit(Caller::user(1), 2).is_none() && roster.admit(Caller::user(2), 2).is_some());
        assert!(
            roster.admit(Caller { account: 1, ..Caller::user(501) }, 2).is_none(),
            "the first user under another id"
        );
        drop(first);
        assert_eq!(roster.pulling(), 1);
        assert!(roster.admit(Caller::user(1), 2).is_some());
    }

    #[test]
    fn a_job_is_for_all_who_wait_for_it() {
        let roster = Roster::default();
        let reference = Reference::parse("registry.example/a:1").unwrap();
        let (layer, image, other) = (Arc::new(Board::new(1)), Arc::new(Board::new(1)), Arc::new(Board::new(9)));
        image.include(Arc::clone(&layer));
        let seats = [3, 1, 1].map(|uid| roster.admit(Caller::user(uid), 9).unwrap());
        seats.iter().for_each(|seat| seat.follow(&image));
        let stranger = roster.admit(Caller::user(9), 9).unwrap();
        stranger.follow(&other);
        layer.progress(Stage::Fetch, Some(Digest::of(b"l")), 5, Some(10), false);
        layer.progress(Stage::Pack, Some(Digest::of(b"l")), 50, None, false);

        let listed = roster.list(77, JobWork::Layer { number: 2, count: 3 }, &reference, &layer);
        let jobs = roster.jobs();
        let [job] = &jobs[..] else { panic!("{jobs:?}") };
        assert_eq!((job.pid, &job.reference, &job.uids[..]), (77, &reference, &[1, 3][..]));
        assert_eq!((job.done_bytes, job.total_bytes), (5, Some(10)));
        // The one who began it may leave.
        let [three, one, again] = seats;
        drop((one, again));
        assert_eq!(roster.jobs()[0].uids, [3]);
        drop(three);
        assert_eq!(roster.jobs()[0].uids, [0; 0]);
        drop(listed);
        assert_eq!(roster.jobs(), []);
    }
}
