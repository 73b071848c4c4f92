//! The state rows of one partition that its runner has seen.
//!
//! The runner is the only writer of the rows as long as its commits succeed: every write of them carries the guard on
//! the partition's cursor. So a cached row is the row, until a commit fails in any way; then the runner drops the cache.
//! Misses are cached too, since most keys of a new function have no row yet.
//!
//! Two generations bound it: rows used since the last turn, and those before. When the young half is full, the old half
//! is forgotten and the young one becomes old; a row that is used again moves over. That is close to "least recently
//! used" without a list.

use std::collections::HashMap;

use bytes::Bytes;

/// 10,000 machines with 200 bytes of state are 3 MB over all partitions; this is the bound for each partition.
pub const STATE_CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a row costs beyond its bytes: hash slot, two `Bytes`.
const ROW_OVERHEAD_BYTES: usize = 96;

#[derive(Debug)]
pub struct StateCache {
    young: HashMap<Bytes, Option<Bytes>>,
    old: HashMap<Bytes, Option<Bytes>>,
    young_bytes: usize,
    half_bytes_max: usize,
}

impl Default for StateCache {
    fn default() -> Self {
        Self::new(STATE_CACHE_BYTES_MAX)
    }
}

impl StateCache {
    pub fn new(bytes_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, half_bytes_max: bytes_max / 2 }
    }

    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.young_bytes = 0;
    }

    /// `None`: not known here. `Some(None)`: known to have no row.
    pub fn get(&mut self, key: &Bytes) -> Option<Option<Bytes>> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let value = self.old.remove(key)?;
        self.put(key.clone(), value.clone());
        Some(value)
    }

    pub fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        let cost =
            |key: &Bytes, value: &Option<Bytes>| ROW_OVERHEAD_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len);
        // An older row must never be found again once it was overwritten.
        self.old.remove(&key);
        let added = cost(&key, &value);
        if self.young_bytes + added > self.half_bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.old.remove(&key);
            self.young_bytes = 0;
        }
        self.young_bytes += added;
        if let Some(before) = self.young.insert(key.clone(), value) {
            self.young_bytes -= cost(&key, &before);
        }
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is still cached is what was last written, and the bound holds.
        #[test]
        fn a_cached_row_is_the_last_one_written(ops in prop::collection::vec((0u8..12, prop::option::of(0u8..40), any::<bool>()), 1..200)) {
            let mut cache = StateCache::new(2_000);
            let mut model: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
            for (key, value, write) in ops {
                let key = Bytes::from(vec![key; 4]);
                if write {
                    let value = value.map(|len| Bytes::from(vec![len; len as usize]));
                    model.insert(key.clone(), value.clone());
                    cache.put(key, value);
                } else if let Some(found) = cache.get(&key) {
                    prop_assert_eq!(Some(&found), model.get(&key));
                }
                let bytes: usize = cache.young.iter().chain(&cache.old).map(|(k, v)| ROW_OVERHEAD_BYTES + k.len() + v.as_ref().map_or(0, Bytes::len)).sum();
                prop_assert!(bytes <= 2_000, "{bytes} bytes are cached");
            }
        }
    }
}
