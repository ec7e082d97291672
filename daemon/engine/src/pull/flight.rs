//! Single flight: equal requests share one piece of work.
//!
//! Whoever wants something boards the flight that is under way for it, or
//! starts one. A passenger who leaves does not stop it; when the last one
//! leaves, the work is dropped where it stands.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{sync::watch, task::AbortHandle};

use crate::Failure;

type Outcome<T> = Option<Result<T, Failure>>;

/// Work under way, by key. `B` is what passengers see of it meanwhile.
pub(crate) struct Flights<K, B, T> {
    entries: Mutex<HashMap<K, Entry<B, T>>>,
    next_id: AtomicU64,
}

struct Entry<B, T> {
    id: u64,
    passengers: usize,
    board: Arc<B>,
    outcome: watch::Receiver<Outcome<T>>,
    task: AbortHandle,
}

/// A place on a flight; leaving is dropping it.
pub(crate) struct Passenger<K: Hash + Eq, B, T> {
    flights: Arc<Flights<K, B, T>>,
    key: K,
    id: u64,
    board: Arc<B>,
    outcome: watch::Receiver<Outcome<T>>,
    /// Nobody was under way: this one started it.
    started: bool,
}

impl<K, B, T> Default for Flights<K, B, T> {
    fn default() -> Self {
        Self { entries: Mutex::default(), next_id: AtomicU64::new(0) }
    }
}

impl<K, B, T> fmt::Debug for Flights<K, B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("len", &self.len()).finish()
    }
}

impl<K, B, T> Flights<K, B, T> {
    fn entries(&self) -> MutexGuard<'_, HashMap<K, Entry<B, T>>> {
        // Each change of the map is one insertion or removal.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flights under way.
    pub(crate) fn len(&self) -> usize {
        self.entries().len()
    }
}

impl<K, B, T> Flights<K, B, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    B: Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Boards the flight for `key`, or starts one with `work`, which is given
    /// the new `board`.
    pub(crate) fn join<F>(self: &Arc<Self>, key: K, board: B, work: impl FnOnce(Arc<B>) -> F) -> Passenger<K, B, T>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let mut entries = self.entries();
        let mut started = false;
        let entry = entries.entry(key.clone()).or_insert_with(|| {
            started = true;
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let board = Arc::new(board);
            let (sender, outcome) = watch::channel(None);
            let work = work(Arc::clone(&board));
            let (flights, key) = (Arc::clone(self), key.clone());
            let task = tokio::spawn(async move {
                let result = work.await;
                // Out of the map first: who comes after the outcome looks
                // into the cache again.
                flights.remove(&key, id);
                // All may have left at this moment.
                let _ = sender.send(Some(result));
            });
            Entry { id, passengers: 0, board, outcome, task: task.abort_handle() }
        });
        entry.passengers += 1;
        Passenger {
            flights: Arc::clone(self),
            key,
            id: entry.id,
            board: Arc::clone(&entry.board),
            outcome: entry.outcome.clone(),
            started,
        }
    }
}

impl<K: Hash + Eq, B, T> Flights<K, B, T> {
    fn remove(&self, key: &K, id: u64) {
        let mut entries = self.entries();
        if entries.get(key).is_some_and(|entry| entry.id == id) {
            entries.remove(key);
        }
    }

    fn leave(&self, key: &K, id: u64) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else { return };
        if entry.id != id {
            return;
        }
        entry.passengers -= 1;
        if entry.passengers == 0
            && let Some(entry) = entries.remove(key)
        {
            entry.task.abort();
        }
    }
}

impl<K: Hash + Eq, B, T: Clone> Passenger<K, B, T> {
    /// What there is to see until the end.
    pub(crate) fn board(&self) -> &Arc<B> {
        &self.board
    }

    /// True if this passenger started the flight.
    pub(crate) fn started(&self) -> bool {
        self.started
    }

    /// Waits for the end. Dropping the future is harmless.
    pub(crate) async fn arrive(&mut self) -> Result<T, Failure> {
        let outcome = self.outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match outcome {
            Ok(Some(result)) => result,
            // The task is gone without an outcome: it panicked.
            Ok(None) | Err(_) => Err(Failure::internal("the daemon lost the work that this was waiting for")),
        }
    }
}

impl<K: Hash + Eq, B, T> Drop for Passenger<K, B, T> {
    fn drop(&mut self) {
        self.flights.leave(&self.key, self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    type Simple = Arc<Flights<&'static str, (), u32>>;

    #[tokio::test]
    async fn equal_requests_share_one_piece_of_work() {
        let flights = Simple::default();
        let (go, wait) = oneshot::channel::<()>();
        let mut first = flights.join("a", (), |_| async {
            wait.await.unwrap();
            Ok(7)
        });
        let mut second = flights.join("a", (), |_| async { panic!("started twice") });
        assert!(first.started() && !second.started());
        assert_eq!(flights.len(), 1);
        go.send(()).unwrap();
        assert_eq!((first.arrive().await.unwrap(), second.arrive().await.unwrap()), (7, 7));
        let mut later = flights.join("a", (), |_| async { Ok(8) });
        assert_eq!(later.arrive().await.unwrap(), 8, "what is over is not joined");
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all() {
        let flights = Simple::default();
        let mut first = flights.join("a", (), |_| async {
            tokio::task::yield_now().await;
            Err(Failure::internal("broken"))
        });
        let mut second = flights.join("a", (), |_| async { Ok(1) });
        for passenger in [&mut first, &mut second] {
            assert_eq!(passenger.arrive().await.unwrap_err().message, "broken");
        }
    }

    #[tokio::test]
    async fn the_last_to_leave_ends_the_work() {
        struct Tell(Option<oneshot::Sender<()>>);
        impl Drop for Tell {
            fn drop(&mut self) {
                self.0.take().unwrap().send(()).unwrap();
            }
        }
        let flights = Simple::default();
        let (sender, mut ended) = oneshot::channel();
        let tell = Tell(Some(sender));
        let first = flights.join("a", (), |_| async move {
            let _tell = tell;
            std::future::pending().await
        });
        let second = flights.join("a", (), |_| async { Ok(1) });
        tokio::task::yield_now().await;
        drop(first);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(ended.try_recv().is_err(), "somebody still waits");
        drop(second);
        assert_eq!(flights.len(), 0);
        tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_of_this_flight_only() {
        let flights = Simple::default();
        let mut bad = flights.join("a", (), |_| async { panic!("on purpose") });
        assert_eq!(bad.arrive().await.unwrap_err().kind, sctl_common::ErrorKind::Internal);
        drop(bad);
        assert_eq!(flights.join("a", (), |_| async { Ok(2) }).arrive().await.unwrap(), 2);
    }
}
