//! Entries read back from the segments while the log is written to: what a follower needs that lags further than memory goes.
//!
//! [`Places`] says where. It has a place per shard for every [`PLACE_EVERY_BYTES`] of a segment, and one wherever an entry
//! replaced others, which takes the places from there on away. So between a place and the next one a segment has every
//! entry once, in order, but for what one frame itself replaces; and a read goes from the place before its first entry on,
//! frame by frame.
//!
//! Only entries that are durable may be asked for. A segment may be let go, or be written over, while it is read: then
//! its place is gone too, and what was found counts as the end. A frame that is not whole while its place is still there is
//! `CORRUPT`, as it is at a start.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex},
};

use buttress_core::{Error, Index};

use super::{
    LogEntry,
    disk::{Disk, Open, corrupt, disk_error},
    format::{Note, Raw, frame_bytes, raw_records},
    log::{read_frame, segment_name},
};

/// A read passes over at most this much before it comes to its first entry, unless one frame has more. 1 GiB of log needs
/// 16,384 places of 24 bytes.
const PLACE_EVERY_BYTES: u64 = 64 * 1024;

/// Where a frame is, and its first entry of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    first: u64,
    epoch: u64,
    position: u64,
}

#[derive(Debug, Default)]
struct ShardPlaces {
    /// By `first`, and so by epoch and position.
    places: VecDeque<Place>,
    last: u64,
    /// Bytes of frames since the last place.
    passed: u64,
}

#[derive(Debug, Default)]
pub(super) struct Places {
    shards: BTreeMap<u32, ShardPlaces>,
}

impl Places {
    /// A frame was written there.
    pub fn frame<'a>(&mut self, epoch: u64, position: u64, bytes: u64, notes: impl Iterator<Item = &'a (u32, Note)>) {
        // First and last entry of each shard, as of the end of the frame.
        let mut spans: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (shard, note) in notes {
            match note {
                Note::Entry { index } => {
                    let span = spans.entry(*shard).or_insert((*index, *index));
                    *span = (span.0.min(*index), *index);
                }
                Note::Marker(marker) => {
                    spans.remove(shard);
                    self.shards.insert(*shard, ShardPlaces { last: marker.index.0, ..ShardPlaces::default() });
                }
                Note::HardState(_) => {}
            }
        }
        for (shard, (first, last)) in spans {
            let at = self.shards.entry(shard).or_default();
            let replaces = first <= at.last;
            while replaces && at.places.pop_back_if(|place| place.first >= first).is_some() {}
            let far = at.places.back().is_none_or(|back| back.epoch != epoch) || at.passed >= PLACE_EVERY_BYTES;
            if replaces || far {
                at.places.push_back(Place { first, epoch, position });
                at.passed = 0;
            }
            at.passed += bytes;
            at.last = last;
        }
    }

    /// Segments up to this one are let go.
    pub fn forget(&mut self, epoch: u64) {
        for at in self.shards.values_mut() {
            while at.places.pop_front_if(|place| place.epoch <= epoch).is_some() {}
        }
    }

    /// The place from which on the entry is found, and the entry at which the next place takes over.
    fn find(&self, shard: u32, index: u64) -> Option<(Place, u64)> {
        let places = &self.shards.get(&shard)?.places;
        let behind = places.partition_point(|place| place.first <= index);
        let place = places.get(behind.checked_sub(1)?)?;
        Some((*place, places.get(behind).map_or(u64::MAX, |next| next.first)))
    }
}

/// Reads entries of the log that wrote them, on any thread. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) places: Arc<Mutex<Places>>,
}

impl Reader {
    /// Entries from `low` on and below `high`, which are durable: as many as have `bytes_max` bytes of data, and at least
    /// one. Fewer or none where the log has let go of them.
    ///
    /// # Errors
    /// `CORRUPT`, `DISK`.
    pub fn read(&self, shard: u32, low: Index, high: Index, bytes_max: usize) -> Result<Vec<LogEntry>, Error> {
        let mut out = Vec::new();
        let mut room = bytes_max;
        loop {
            let next = out.last().map_or(low, |last: &LogEntry| last.index.next());
            if next >= high || (room == 0 && !out.is_empty()) {
                return Ok(out);
            }
            let Some((place, until)) = self.find(shard, next.0) else { return Ok(out) };
            let before = out.len();
            let whole = self
                .walk(place, shard, (next.0, until.min(high.0)), &mut room, &mut out)
                .map_err(|e| disk_error(format_args!("cannot read log segment \"{}\"", segment_name(place.epoch)), &e))?
                .map_err(|what| bad(place, what))?;
            // While the place is there so is its segment, and nothing is written over.
            if !whole && out.len() == before {
                return match self.find(shard, next.0) {
                    Some((again, _)) if again == place => Err(bad(place, "an entry that was written is not there")),
                    _ => Ok(out),
                };
            }
        }
    }

    fn find(&self, shard: u32, index: u64) -> Option<(Place, u64)> {
        self.places.lock().expect("nothing panics while it holds this lock").find(shard, index)
    }

    /// Takes entries of the range from the frames behind the place, until it has them all or `room` is used up; `false` where
    /// the frames end before that.
    fn walk(
        &self,
        place: Place,
        shard: u32,
        (low, high): (u64, u64),
        room: &mut usize,
        out: &mut Vec<LogEntry>,
    ) -> io::Result<Result<bool, &'static str>> {
        let file = match self.disk.open(&segment_name(place.epoch), Open::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(false)),
            Err(e) => return Err(e),
        };
        let len = file.len()?;
        let mut position = place.position;
        let mut body = Vec::new();
        let mut next = low;
        while read_frame(&*file, place.epoch, position, len, &mut body)?.is_some() {
            let mut found: Vec<Raw<'_>> = Vec::new();
            for record in raw_records(&body) {
                match record {
                    Ok(raw) if raw.shard != shard => {}
                    Ok(raw) if raw.is_marker() => found.clear(),
                    Ok(raw) if raw.is_entry() => {
                        // Within a frame, too, an entry replaces what was there from its index on.
                        let keep = found.partition_point(|f| f.index < raw.index);
                        found.truncate(keep);
                        found.push(raw);
                    }
                    Ok(_) => {}
                    Err(what) => return Ok(Err(what)),
                }
            }
            for raw in found {
                if raw.index < next {
                    continue;
                }
                if raw.index > next {
                    return Ok(Ok(false));
                }
                let entry = match raw.to_entry() {
                    Ok(entry) => entry,
                    Err(what) => return Ok(Err(what)),
                };
                if !out.is_empty() && entry.data.len() > *room {
                    *room = 0;
                    return Ok(Ok(true));
                }
                *room = room.saturating_sub(entry.data.len());
                out.push(entry);
                next += 1;
                if next >= high || *room == 0 {
                    return Ok(Ok(true));
                }
            }
            position += frame_bytes(body.len()) as u64;
        }
        Ok(Ok(false))
    }
}

fn bad(place: Place, what: &str) -> Error {
    corrupt(format_args!("log segment \"{}\" behind byte {}: {what}", segment_name(place.epoch), place.position))
}
