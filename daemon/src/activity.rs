//! How busy the daemon is: connections of each user and in all, and since when
//! nobody needed it.

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
    by_account: HashMap<u32, usize>,
    count: usize,
    /// When the last connection went, or came.
    last: Instant,
}

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub struct Connection {
    activity: Activity,
    account: u32,
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one user.
    pub of_user: usize,
    /// In all, from which on a user may have `when_many` only, so that many
    /// users together do not keep others out.
    pub many: usize,
    /// Of one user when there are many.
    pub when_many: usize,
    /// In all, whoever has them.
    pub most: usize,
}

impl Activity {
    /// Nobody is connected yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { by_account: HashMap::new(), count: 0, last: Instant::now() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counters stay right whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection of `account`, unless that has too many already, or
    /// all have.
    pub fn connect(&self, account: u32, limits: &Limits) -> Option<Connection> {
        let mut state = self.state();
        state.last = Instant::now();
        let own = state.by_account.get(&account).copied().unwrap_or(0);
        let limit = if state.count < limits.many { limits.of_user } else { limits.when_many };
        if own >= limit || state.count >= limits.most {
            return None;
        }
        state.by_account.insert(account, own + 1);
        state.count += 1;
        drop(state);
        Some(Connection { activity: self.clone(), account })
    }

    /// Notes that there was work just now.
    pub fn touch(&self) {
        self.state().last = Instant::now();
    }

    /// For how long nobody has been connected; `None` if somebody is.
    pub fn idle_for(&self) -> Option<Duration> {
        let state = self.state();
        (state.count == 0).then(|| state.last.elapsed())
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
        state.count -= 1;
        if let Some(count) = state.by_account.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                state.by_account.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { of_user: 2, many: 4, when_many: 1, most: 6 };

    #[test]
    fn users_are_limited_each_for_themselves() {
        let activity = Activity::new();
        assert!(activity.idle_for().is_some());
        let first = activity.connect(1, &LIMITS).unwrap();
        let second = activity.connect(1, &LIMITS).unwrap();
        assert!(activity.connect(1, &LIMITS).is_none(), "the third of two");
        let other = activity.connect(2, &LIMITS).unwrap();
        assert!(activity.idle_for().is_none());
        drop(first);
        assert!(activity.connect(1, &LIMITS).is_some(), "one left, one may come");
        drop((second, other));
        assert!(activity.idle_for().is_some());
    }

    #[test]
    fn many_users_leave_something_to_others() {
        let activity = Activity::new();
        let connect = |account| activity.connect(account, &LIMITS);
        let mut all: Vec<_> = [1, 1, 2, 3].map(|account| connect(account).unwrap()).into();
        assert!(connect(2).is_none(), "there are many, and it has one");
        all.extend([4, 5].map(|account| connect(account).unwrap()));
        assert!(connect(6).is_none(), "there are as many as may be");
        all.truncate(3);
        assert!(connect(2).is_some(), "there are few again");
    }
}
