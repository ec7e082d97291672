//! A cache of decoded blocks, shared by threads.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

/// A block that is decoded, being decoded by a thread that others wait for,
/// or `None` because decoding it failed.
type Slot<V> = Arc<OnceLock<Option<Arc<V>>>>;

/// Keeps the blocks used last, up to a budget of bytes. A block that several
/// threads ask for at once is decoded by one of them.
pub(super) struct BlockCache<K, V> {
    budget: usize,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Keys by the time of their last use.
    by_age: BTreeMap<u64, K>,
    clock: u64,
    cost: usize,
}

struct Entry<V> {
    slot: Slot<V>,
    used: u64,
    cost: usize,
}

impl<K: Copy + Eq + Hash, V> BlockCache<K, V> {
    pub fn new(budget: usize) -> Self {
        let state = State { entries: HashMap::new(), by_age: BTreeMap::new(), clock: 0, cost: 0 };
        Self { budget, state: Mutex::new(state) }
    }

    /// The block if it is decoded already.
    pub fn get(&self, key: K) -> Option<Arc<V>> {
        self.lock().touch(key)?.get()?.clone()
    }

    /// The block, decoded by `decode` unless it is here. It counts as `cost`
    /// bytes. Failures are not kept.
    pub fn get_or_decode<E>(&self, key: K, cost: usize, decode: impl Fn() -> Result<V, E>) -> Result<Arc<V>, E> {
        let slot = self.lock().slot(key, cost, self.budget);
        let mut error = None;
        let decoded = slot.get_or_init(|| match decode() {
            Ok(value) => Some(Arc::new(value)),
            Err(failure) => {
                error = Some(failure);
                None
            }
        });
        if let Some(value) = decoded {
            return Ok(Arc::clone(value));
        }
        self.lock().forget(key, &slot);
        match error {
            Some(error) => Err(error),
            // Another thread got the error; this one needs its own.
            None => decode().map(Arc::new),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        // Nothing is decoded under the lock, so a panic leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash, V> State<K, V> {
    fn touch(&mut self, key: K) -> Option<&Slot<V>> {
        let entry = self.entries.get_mut(&key)?;
        self.clock += 1;
        self.by_age.remove(&entry.used);
        entry.used = self.clock;
        self.by_age.insert(self.clock, key);
        Some(&entry.slot)
    }

    fn slot(&mut self, key: K, cost: usize, budget: usize) -> Slot<V> {
        if let Some(slot) = self.touch(key) {
            return Arc::clone(slot);
        }
        while self.cost.saturating_add(cost) > budget {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.cost -= entry.cost;
            }
        }
        self.clock += 1;
        let slot = Slot::default();
        self.entries.insert(key, Entry { slot: Arc::clone(&slot), used: self.clock, cost });
        self.by_age.insert(self.clock, key);
        self.cost += cost;
        slot
    }

    fn forget(&mut self, key: K, slot: &Slot<V>) {
        if let Some(entry) = self.entries.get(&key).filter(|entry| Arc::ptr_eq(&entry.slot, slot)) {
            self.by_age.remove(&entry.used);
            self.cost -= entry.cost;
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn blocks_used_last_stay_within_the_budget() {
        let cache = BlockCache::new(30);
        for key in 0..3 {
            cache.get_or_decode(key, 10, || Ok::<_, ()>(key)).unwrap();
        }
        assert_eq!(cache.get(0).as_deref(), Some(&0));
        cache.get_or_decode(3, 10, || Ok::<_, ()>(3)).unwrap();
        assert_eq!([0, 1, 2, 3].map(|key| cache.get(key).is_some()), [true, false, true, true]);
        cache.get_or_decode(4, 100, || Ok::<_, ()>(4)).unwrap();
        assert_eq!([0, 1, 2, 3, 4].map(|key| cache.get(key).is_some()), [false, false, false, false, true]);
    }

    #[test]
    fn failures_are_not_kept() {
        let cache = BlockCache::new(30);
        assert_eq!(cache.get_or_decode(1, 10, || Err::<u8, _>("bad")), Err("bad"));
        assert_eq!(cache.lock().cost, 0);
        assert_eq!(cache.get_or_decode(1, 10, || Ok::<_, ()>(7)).as_deref(), Ok(&7));
    }

    #[test]
    fn threads_share_one_decoding() {
        let (cache, decoded) = (BlockCache::new(1 << 20), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for key in 0..100 {
                        let decode = || {
                            decoded.fetch_add(1, Ordering::Relaxed);
                            Ok::<_, ()>(key)
                        };
                        assert_eq!(cache.get_or_decode(key, 10, decode).as_deref(), Ok(&key));
                    }
                });
            }
        });
        assert_eq!(decoded.into_inner(), 100);
    }
}
