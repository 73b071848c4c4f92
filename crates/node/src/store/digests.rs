//! What was written, in digests that two nodes can compare while both go on.
//!
//! Replicas that applied the same entries are equal byte for byte (STATE-1), but they are never looked at in the same
//! moment. So each keeps a digest of what every [`WINDOW`] entries in a row have written: rows with their values,
//! batches with their bytes, what was forgotten. The digest of the window that ends at an index is the same on every
//! node, whenever it is asked. It costs a checksum of what is written anyway, and shows at which entries two nodes began
//! to differ. A window that a node did not write whole, because it started or took a snapshot in its midst, has none.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use buttress_core::{Index, WriteBatch};

/// Entries of one digest.
pub const WINDOW: u64 = 64;
/// Digests that are kept: 131,072 entries, a few seconds of a node that is busy, 48 KiB.
const KEPT: usize = 2048;

/// What the entries `from..=to` have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    pub from: Index,
    pub to: Index,
    pub hash: u64,
}

#[derive(Debug, Default)]
struct State {
    kept: VecDeque<Digest>,
    /// The window that is written, if it was begun at its beginning.
    current: Option<(u64, u64)>,
    next: u64,
}

#[derive(Debug, Default)]
pub(super) struct Digests(Mutex<State>);

/// FNV-1a, 64 bits.
const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

fn mix(hash: u64, number: u64) -> u64 {
    number.to_le_bytes().iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

fn mix_bytes(hash: u64, bytes: &[u8]) -> u64 {
    mix(mix(hash, bytes.len() as u64), crc32c::crc32c(bytes).into())
}

fn digest(mut hash: u64, batch: &WriteBatch) -> u64 {
    hash = mix(mix(hash, batch.index.0), batch.term.0);
    for row in &batch.rows {
        hash = mix_bytes(mix(hash, row.table as u64), &row.key);
        hash = match &row.value {
            Some(value) => mix_bytes(mix(hash, 1), value),
            None => mix(hash, 0),
        };
    }
    for append in &batch.appends {
        for number in [append.log.0.into(), append.base_offset.0 as u64, append.last_offset.0 as u64] {
            hash = mix(hash, number);
        }
        hash = mix_bytes(mix(hash, append.committed_at.0), &append.bytes);
    }
    for (log, before) in &batch.trims {
        hash = mix(mix(hash, log.0.into()), before.0 as u64);
    }
    batch.drops.iter().fold(hash, |hash, log| mix(hash, log.0.into()))
}

impl Digests {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// The store is at `index` now, from wherever.
    pub fn restart(&self, index: Index) {
        let mut state = self.lock();
        state.current = None;
        state.next = index.0 + 1;
        // What came of another history, or twice, says nothing.
        state.kept.retain(|digest| digest.to <= index);
    }

    pub fn write(&self, batch: &WriteBatch) {
        let mut state = self.lock();
        let index = batch.index.0;
        let begins = index.is_multiple_of(WINDOW);
        let hash = match state.current.take() {
            Some((from, hash)) if !begins && state.next == index => Some((from, hash)),
            _ => begins.then_some((index, OFFSET_BASIS)),
        };
        state.next = index + 1;
        let Some((from, hash)) = hash else { return };
        let hash = digest(hash, batch);
        if !(index + 1).is_multiple_of(WINDOW) {
            state.current = Some((from, hash));
            return;
        }
        if state.kept.len() == KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back(Digest { from: Index(from), to: Index(index), hash });
    }

    pub fn all(&self) -> Vec<Digest> {
        self.lock().kept.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use buttress_core::{Table, Term, store::Row};

    use super::*;

    fn batch(index: u64, value: &'static str) -> WriteBatch {
        let row = Row { table: Table::Keys, key: "k".into(), value: Some(value.into()), fresh: false };
        WriteBatch { index: Index(index), term: Term(1), rows: vec![row], ..WriteBatch::default() }
    }

    fn written(from: u64, to: u64, odd: Option<u64>) -> Vec<Digest> {
        let digests = Digests::default();
        digests.restart(Index(from - 1));
        for index in from..=to {
            digests.write(&batch(index, if odd == Some(index) { "other" } else { "same" }));
        }
        digests.all()
    }

    #[test]
    fn nodes_that_started_elsewhere_agree_on_whole_windows() {
        let (early, late) = (written(1, 400, None), written(100, 500, None));
        let ends = |digests: &[Digest]| digests.iter().map(|d| (d.from.0, d.to.0)).collect::<Vec<_>>();
        assert_eq!(ends(&early), [(64, 127), (128, 191), (192, 255), (256, 319), (320, 383)]);
        assert_eq!(ends(&late), [(128, 191), (192, 255), (256, 319), (320, 383), (384, 447)]);
        assert_eq!(early[1..], late[..4]);
    }

    #[test]
    fn one_value_that_differs_shows_in_its_window_and_no_other() {
        let (good, bad) = (written(1, 400, None), written(1, 400, Some(200)));
        let differ: Vec<u64> = good.iter().zip(&bad).filter(|(a, b)| a != b).map(|(a, _)| a.from.0).collect();
        assert_eq!(differ, [192]);
    }

    #[test]
    fn a_hole_or_a_restart_leaves_its_window_out() {
        let digests = Digests::default();
        for index in (64..200).filter(|index| *index != 150) {
            digests.write(&batch(index, "x"));
        }
        assert_eq!(digests.all().len(), 1);
        digests.restart(Index(199));
        (200..=255).for_each(|index| digests.write(&batch(index, "x")));
        assert_eq!(digests.all().len(), 1);
        digests.restart(Index(100));
        assert_eq!(digests.all(), [], "the store went back");
    }
}
