//! How busy the daemon is: connections of each user, and since when nobody
//! needed it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Counts connections.
#[derive(Debug, Clone)]
pub struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    by_uid: HashMap<u32, usize>,
    /// When the last connection went, or came.
    last: Instant,
}

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub struct Connection {
    activity: Activity,
    uid: u32,
}

impl Activity {
    /// Nobody is connected yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { by_uid: HashMap::new(), last: Instant::now() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counters stay right whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection of `uid`, unless that user has `limit` already.
    pub fn connect(&self, uid: u32, limit: usize) -> Option<Connection> {
        let mut state = self.state();
        state.last = Instant::now();
        let count = state.by_uid.entry(uid).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        drop(state);
        Some(Connection { activity: self.clone(), uid })
    }

    /// Notes that there was work just now.
    pub fn touch(&self) {
        self.state().last = Instant::now();
    }

    /// For how long nobody has been connected; `None` if somebody is.
    pub fn idle_for(&self) -> Option<Duration> {
        let state = self.state();
        state.by_uid.is_empty().then(|| state.last.elapsed())
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.last = Instant::now();
        if let Some(count) = state.by_uid.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                state.by_uid.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_limited_each_for_themselves() {
        let activity = Activity::new();
        assert!(activity.idle_for().is_some());
        let first = activity.connect(1, 2).unwrap();
        let second = activity.connect(1, 2).unwrap();
        assert!(activity.connect(1, 2).is_none(), "the third of two");
        let other = activity.connect(2, 2).unwrap();
        assert!(activity.idle_for().is_none());
        drop(first);
        assert!(activity.connect(1, 2).is_some(), "one left, one may come");
        drop((second, other));
        assert!(activity.idle_for().is_some());
    }
}
