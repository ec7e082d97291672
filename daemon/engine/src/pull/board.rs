//! What passengers see of work under way, and how they are kept informed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sctl_common::Digest;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::roster::Seat;
use crate::{Failure, Notice, PullEvent, Stage};

/// How often a passenger looks at the board.
const INTERVAL: Duration = Duration::from_millis(100);

/// Notices of one job past this many are a flood.
const MAX_NOTICES: usize = 64;

/// Longest notice in characters.
const MAX_NOTICE: usize = 1000;

/// Where one piece of work posts its progress and its notices.
#[derive(Debug)]
pub(crate) struct Board {
    id: u64,
    /// Who started the work.
    uid: u32,
    posted: Mutex<Posted>,
}

#[derive(Debug, Default)]
struct Posted {
    stages: BTreeMap<(u8, Option<Digest>), State>,
    notices: Vec<Notice>,
    /// Work that this work waits for.
    parts: Vec<Arc<Board>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    stage: Stage,
    done_bytes: u64,
    total_bytes: Option<u64>,
    finished: bool,
}

impl Board {
    pub(crate) fn new(uid: u32) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), uid, posted: Mutex::default() }
    }

    /// Tells boards apart.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Who started the work.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    fn posted(&self) -> MutexGuard<'_, Posted> {
        // Whatever panicked, what stands here is for display only.
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts how far a stage has come; a finished one stays so.
    pub(crate) fn progress(
        &self,
        stage: Stage,
        digest: Option<Digest>,
        done_bytes: u64,
        total_bytes: Option<u64>,
        finished: bool,
    ) {
        let mut posted = self.posted();
        let state = State { stage, done_bytes, total_bytes, finished };
        let place = posted.stages.entry((stage as u8, digest)).or_insert(state);
        if !place.finished {
            *place = state;
        }
    }

    /// Posts a line for the user. Jobs are not trusted to be brief.
    pub(crate) fn notice(&self, mut notice: Notice) {
        let mut posted = self.posted();
        if posted.notices.len() < MAX_NOTICES {
            notice.text = notice.text.chars().filter(|c| !c.is_control()).take(MAX_NOTICE).collect();
            posted.notices.push(notice);
        }
    }

    /// Shows another board as part of this one.
    pub(crate) fn include(&self, part: Arc<Board>) {
        self.posted().parts.push(part);
    }

    /// This board, and those that it shows. Images show layers, and layers
    /// show nothing more.
    pub(crate) fn reach(&self) -> Vec<u64> {
        std::iter::once(self.id).chain(self.posted().parts.iter().map(|part| part.id)).collect()
    }

    /// How far a stage of the work has come: bytes so far, and in all.
    pub(crate) fn bytes(&self, stage: Stage) -> Option<(u64, Option<u64>)> {
        let posted = self.posted();
        let state = posted.stages.values().find(|state| state.stage == stage)?;
        Some((state.done_bytes, state.total_bytes))
    }
}

/// Passes on to one caller what is new on boards.
#[derive(Debug)]
pub(crate) struct Informer {
    seat: Seat,
    events: mpsc::Sender<Result<PullEvent, Failure>>,
    stages: HashMap<(Stage, Option<Digest>), State>,
    /// How many notices of each board have been passed on.
    notices: HashMap<u64, usize>,
}

impl Informer {
    /// Informs the caller of the pull that has `seat`.
    pub(crate) fn new(seat: Seat, events: mpsc::Sender<Result<PullEvent, Failure>>) -> Self {
        Self { seat, events, stages: HashMap::new(), notices: HashMap::new() }
    }

    /// Tells one thing. A caller who has left is noticed elsewhere.
    pub(crate) async fn tell(&self, event: PullEvent) {
        let _ = self.events.send(Ok(event)).await;
    }

    /// Keeps the caller informed from `board` until `work` is done.
    pub(crate) async fn follow<T>(&mut self, board: &Arc<Board>, work: impl Future<Output = T>) -> T {
        self.seat.follow(board);
        tokio::pin!(work);
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = ticks.tick() => self.pass_on(board).await,
            }
        };
        self.pass_on(board).await;
        result
    }

    async fn pass_on(&mut self, board: &Board) {
        let mut news = Vec::new();
        self.collect(board, &mut news, 0);
        for event in news {
            self.tell(event).await;
        }
    }

    fn collect(&mut self, board: &Board, news: &mut Vec<PullEvent>, depth: u32) {
        // Layers come to an end before their image goes on. Images show
        // layers, and layers show nothing more.
        let parts = board.posted().parts.clone();
        if depth < 2 {
            for part in parts {
                self.collect(&part, news, depth + 1);
            }
        }
        let posted = board.posted();
        let seen = self.notices.entry(board.id).or_default();
        news.extend(posted.notices[*seen..].iter().cloned().map(PullEvent::Notice));
        *seen = posted.notices.len();
        for (&(_, digest), &state) in &posted.stages {
            if self.stages.insert((state.stage, digest), state) != Some(state) {
                let State { stage, done_bytes, total_bytes, finished } = state;
                news.push(PullEvent::Progress { stage, digest, done_bytes, total_bytes, finished });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::roster::Roster, *};
    use crate::NoticeLevel;

    fn drain(receiver: &mut mpsc::Receiver<Result<PullEvent, Failure>>) -> Vec<PullEvent> {
        std::iter::from_fn(|| receiver.try_recv().ok()).map(Result::unwrap).collect()
    }

    #[tokio::test]
    async fn each_thing_is_told_once_and_late_comers_hear_all() {
        let digest = Some(Digest::of(b"layer"));
        let board = Arc::new(Board::new(1));
        let part = Arc::new(Board::new(1));
        board.include(Arc::clone(&part));
        part.progress(Stage::Fetch, digest, 5, Some(10), false);
        let text = "a\nb".to_owned();
        part.notice(Notice { level: NoticeLevel::Info, text });

        let (sender, mut receiver) = mpsc::channel(16);
        let seat = Roster::default().admit(crate::Caller::user(1), 1).unwrap();
        let mut informer = Informer::new(seat, sender);
        informer.follow(&board, async {}).await;
        let first = drain(&mut receiver);
        assert_eq!(first.len(), 2, "{first:?}");
        assert!(first.contains(&PullEvent::Notice(Notice { level: NoticeLevel::Info, text: "ab".to_owned() })));
        informer.follow(&board, async {}).await;
        assert_eq!(drain(&mut receiver), [], "nothing is new");

        part.progress(Stage::Fetch, digest, 10, Some(10), true);
        part.progress(Stage::Fetch, digest, 3, Some(10), false);
        informer.follow(&board, async {}).await;
        let total_bytes = Some(10);
        let done = PullEvent::Progress { stage: Stage::Fetch, digest, done_bytes: 10, total_bytes, finished: true };
        assert_eq!(drain(&mut receiver), [done]);
    }

    #[test]
    fn a_flood_of_notices_is_cut() {
        let board = Board::new(1);
        for _ in 0..1000 {
            board.notice(Notice { level: NoticeLevel::Warning, text: "x".repeat(5000) });
        }
        let posted = board.posted();
        assert_eq!((posted.notices.len(), posted.notices[0].text.len()), (MAX_NOTICES, MAX_NOTICE));
    }
}
