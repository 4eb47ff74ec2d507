//! A bounded map that evicts the least recently used entries.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// A cache of two generations, each of half the capacity. An entry that is read or written moves to the young
/// generation; when that is full, it replaces the old one. Use it for every map that is keyed by repositories, batches
/// or digests and lives as long as the process, so that memory does not grow with time.
#[derive(Debug)]
pub struct GenerationalCache<K, V> {
    capacity: usize,
    current: HashMap<K, V>,
    previous: HashMap<K, V>,
}

impl<K: Eq + Hash, V> GenerationalCache<K, V> {
    /// Creates an empty cache of at most `capacity` entries; at least the half used last is kept.
    pub fn new(capacity: usize) -> GenerationalCache<K, V> {
        GenerationalCache { capacity: capacity.max(2), current: HashMap::new(), previous: HashMap::new() }
    }

    /// Returns an entry and marks it as used.
    pub fn get<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if !self.current.contains_key(key) {
            let (key, value) = self.previous.remove_entry(key)?;
            self.insert(key, value);
        }
        self.current.get_mut(key)
    }

    /// Inserts an entry and returns the value that it replaces.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let replaced = self.previous.remove(&key);
        if self.current.len() >= self.capacity / 2 && !self.current.contains_key(&key) {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(key, value).or(replaced)
    }

    /// Returns an entry, inserting it first if it is missing.
    pub fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V
    where
        K: Clone,
    {
        if self.get(key).is_none() {
            self.insert(key.clone(), make());
        }
        self.current.entry(key.clone()).or_insert_with(|| unreachable!("it was written just now"))
    }

    /// Removes an entry.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.current.remove(key).or_else(|| self.previous.remove(key))
    }

    /// Iterates over all entries in no order, without marking them as used.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.current.iter().chain(&self.previous)
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// Returns whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_holds_its_capacity_and_forgets_what_was_not_used() {
        let mut cache = GenerationalCache::new(1000);
        for n in 0..100_000 {
            cache.insert(n, n);
            assert!(cache.get(&0).is_some(), "{n}: what is used stays");
            assert!(cache.len() <= 1000);
        }
        assert_eq!(cache.get(&99_999), Some(&mut 99_999));
        assert_eq!(cache.get(&1), None);
        assert!((99_500..100_000).all(|n| cache.get(&n).is_some()), "half of the capacity is kept");
    }

    #[test]
    fn an_entry_is_in_one_generation() {
        let mut cache = GenerationalCache::new(4);
        for n in 0..3 {
            cache.insert(n, "old");
        }
        assert_eq!(cache.insert(0, "new"), Some("old"));
        assert_eq!(cache.iter().filter(|(key, _)| **key == 0).count(), 1);
        assert_eq!(cache.remove(&0), Some("new"));
        assert_eq!(cache.get(&0), None);
        assert_eq!(*cache.get_or_insert_with(&0, || "made"), "made");
        assert!(!cache.is_empty());
    }
}
