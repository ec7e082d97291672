//! Places for jobs, shared out fairly among users.
//!
//! Whoever waits and holds the fewest places gets the next one. So a user
//! alone may have them all, and as soon as somebody else waits, places that
//! fall free go there until both have as many.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::Failure;

/// A number of places.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    count: usize,
    /// More than `count` after it was lowered, until some fall free.
    taken: usize,
    /// How many one user may hold even if nobody else wants any.
    per_user: usize,
    held: HashMap<u32, usize>,
    /// In the order of their coming.
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    account: u32,
    turn: oneshot::Sender<Slot>,
}

/// A place that is held until this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    /// None once it was given back otherwise.
    slots: Option<Slots>,
    account: u32,
}

impl Slots {
    /// Places of which one user may hold `per_user`.
    pub(super) fn limited(count: usize, per_user: usize) -> Self {
        Self(Arc::new(Mutex::new(State { count, taken: 0, per_user, held: HashMap::new(), waiting: VecDeque::new() })))
    }

    /// Places that one user alone may hold.
    pub(super) fn new(count: usize) -> Self {
        Self::limited(count, count)
    }

    /// Makes it `count` places, all of which one user may hold.
    pub(super) fn resize(&self, count: usize) {
        let mut state = self.state();
        (state.count, state.per_user) = (count, count);
        self.hand_out(&mut state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place for `account`. Dropping the future is harmless.
    pub(super) async fn acquire(&self, account: u32) -> Result<Slot, Failure> {
        let (turn, mine) = oneshot::channel();
        {
            let mut state = self.state();
            state.waiting.push_back(Waiter { account, turn });
            self.hand_out(&mut state);
        }
        mine.await.map_err(|_| super::stopping())
    }

    fn hand_out(&self, state: &mut State) {
        state.waiting.retain(|waiter| !waiter.turn.is_closed());
        while state.taken < state.count {
            // Of several, the first, who has waited longest.
            let held = |waiter: &Waiter| state.held.get(&waiter.account).copied().unwrap_or(0);
            let waiting = state.waiting.iter().enumerate().filter(|(_, waiter)| held(waiter) < state.per_user);
            let Some((at, _)) = waiting.min_by_key(|(_, waiter)| held(waiter)) else { return };
            let Some(Waiter { account, turn }) = state.waiting.remove(at) else { return };
            state.taken += 1;
            *state.held.entry(account).or_default() += 1;
            if let Err(mut unwanted) = turn.send(Slot { slots: Some(self.clone()), account }) {
                // It must not come back by itself, under the lock.
                unwanted.slots = None;
                state.take_back(account);
            }
        }
    }
}

impl State {
    fn take_back(&mut self, account: u32) {
        self.taken -= 1;
        if let Some(count) = self.held.get_mut(&account) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&account);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.take() {
            let mut state = slots.state();
            state.take_back(self.account);
            slots.hand_out(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn who_holds_the_fewest_comes_next() {
        let slots = Slots::new(4);
        let acquire = |account| {
            Box::pin({
                let slots = slots.clone();
                async move { slots.acquire(account).await }
            })
        };
        let mut greedy: Vec<_> = (0..4).map(|_| acquire(1).now_or_never().expect("alone").unwrap()).collect();
        let mut more: Vec<_> = (0..8).map(|_| acquire(1)).collect();
        assert!(more.iter_mut().all(|wait| wait.now_or_never().is_none()), "no fifth");
        let mut others: Vec<_> = (0..3).map(|_| acquire(2)).collect();
        assert!(others.iter_mut().all(|wait| wait.now_or_never().is_none()));
        greedy.truncate(2);
        let got: Vec<_> = others.iter_mut().map(|wait| wait.now_or_never()).collect();
        assert_eq!(got.iter().flatten().count(), 2, "each has half");
        assert!(more.iter_mut().all(|wait| wait.now_or_never().is_none()));
    }

    #[test]
    fn a_user_has_so_many_and_others_pass_by() {
        let slots = Slots::limited(2, 1);
        let first = slots.acquire(1).now_or_never().unwrap().unwrap();
        let mut second = Box::pin(slots.acquire(1));
        assert!(second.as_mut().now_or_never().is_none());
        let _other = slots.acquire(2).now_or_never().unwrap().unwrap();
        drop(first);
        assert!(second.as_mut().now_or_never().is_some());
    }

    #[test]
    fn places_come_and_go_while_some_are_held() {
        let slots = Slots::new(2);
        let take = |account| slots.acquire(account).now_or_never().transpose().unwrap();
        let held = [take(1).unwrap(), take(1).unwrap()];
        slots.resize(1);
        let mut waiting = Box::pin(slots.acquire(2));
        assert!(waiting.as_mut().now_or_never().is_none());
        let [first, second] = held;
        drop(first);
        assert!(waiting.as_mut().now_or_never().is_none(), "one is still held, of one");
        slots.resize(2);
        let _waited = waiting.as_mut().now_or_never().expect("there are two again").unwrap();
        drop(second);
        assert!(take(3).is_some());
    }

    #[test]
    fn who_leaves_leaves_nothing_taken() {
        let slots = Slots::new(1);
        let held = slots.acquire(1).now_or_never().unwrap().unwrap();
        {
            let mut left = pin!(slots.acquire(2));
            assert!(left.as_mut().now_or_never().is_none());
            // It is given the place and never looks.
            drop(held);
            assert_eq!(slots.state().taken, 1);
        }
        assert!(slots.state().held.is_empty());
        let mut first = Box::pin(slots.acquire(3));
        assert!(first.as_mut().now_or_never().is_some_and(|slot| slot.is_ok()));
        assert_eq!(slots.state().taken, 0);
    }
}
