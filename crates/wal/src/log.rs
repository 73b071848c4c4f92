//! The log without threads: open and recover, commit a batch, forget.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering::Relaxed},
    time::Instant,
};

use buttress_core::{Code, Error, Index, Mutant, Term, mutant};

use super::{
    HardState, LogEntry, Marker,
    disk::{Disk, DiskFile, Open, corrupt, disk_error, read_full},
    format::{
        Batch, CLUSTER_ID_BYTES_MAX, FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, HEADER_BYTES, Header, Identity,
        Note, Record, frame_bytes, records,
    },
    reader::{Places, Reader},
    stats::WalStats,
};

#[derive(Clone, Debug)]
pub struct Options {
    /// A segment is closed when the next frame does not fit; a frame larger than this has a segment for itself.
    pub segment_bytes: u64,
    /// Small commits find their blocks allocated and zeroed: every so many bytes are zeroed ahead in one write. Zero
    /// turns it off.
    pub fill_bytes: u64,
    /// Forgotten segments kept for reuse.
    pub spares_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 * 1024 * 1024, fill_bytes: 1024 * 1024, spares_max: 2 }
    }
}

/// One shard's part of an opened log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardLog {
    pub hard_state: Option<HardState>,
    /// The last snapshot that was put in place of the log.
    pub marker: Option<Marker>,
    /// Without gaps. Begins at or before the index that was last given to `forget_before`, or behind the marker.
    pub entries: Vec<LogEntry>,
}

impl ShardLog {
    /// The entries that follow the state at `applied`, given what the store says it is.
    ///
    /// If the log has another term at `applied`, then a snapshot was put into the store and the node died before the log
    /// heard of it: the log's entries are of a history that did not happen, and none is given.
    ///
    /// # Errors
    /// `CORRUPT` where entries between the store's state and the log are missing.
    pub fn after(&self, applied: Index, term: Term) -> Result<Vec<LogEntry>, Error> {
        let Some(first) = self.entries.first() else {
            return match &self.marker {
                Some(marker) if marker.index > applied => Err(corrupt(format_args!(
                    "the log restarts behind a snapshot at {}, the store is at {applied}",
                    marker.index
                ))),
                _ => Ok(Vec::new()),
            };
        };
        if first.index > applied.next() {
            return Err(corrupt(format_args!("the log begins at {}, the store is at {applied}", first.index)));
        }
        let at = self.entries.partition_point(|e| e.index <= applied);
        let conflicts = at > 0 && self.entries[at - 1].index == applied && self.entries[at - 1].term != term;
        Ok(if conflicts { Vec::new() } else { self.entries[at..].to_vec() })
    }
}

/// What an opened log holds, per shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub shards: BTreeMap<u32, ShardLog>,
    /// Bytes of a torn tail that were left out.
    pub torn_bytes: u64,
}

impl Recovered {
    /// Takes one shard's part; empty if the log never heard of it.
    pub fn take(&mut self, shard: u32) -> ShardLog {
        self.shards.remove(&shard).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Segment {
    epoch: u64,
    /// The largest entry index per shard.
    last: BTreeMap<u32, u64>,
}

#[derive(Debug, Default)]
struct ShardState {
    hard_state: Option<HardState>,
    marker: Option<Marker>,
    /// Index of the last entry; `None` where any index may come next.
    last: Option<u64>,
    forgotten_before: u64,
}

impl ShardState {
    fn note(&mut self, note: Note) {
        match note {
            Note::Entry { index } => self.last = Some(index),
            Note::HardState(state) => self.hard_state = Some(state),
            Note::Marker(marker) => {
                self.last = Some(marker.index.0);
                self.marker = Some(marker);
            }
        }
    }
}

/// An open log.
pub struct Wal {
    disk: Arc<dyn Disk>,
    identity: Identity,
    options: Options,
    stats: Arc<WalStats>,
    /// Oldest first; the last one is written to.
    segments: Vec<Segment>,
    spares: Vec<u64>,
    file: Arc<dyn DiskFile>,
    position: u64,
    /// Bytes of the segment's file that exist.
    filled: u64,
    next_seq: u64,
    shards: BTreeMap<u32, ShardState>,
    places: Arc<Mutex<Places>>,
    failed: Option<Error>,
}

pub(super) fn segment_name(epoch: u64) -> String {
    format!("wal-{epoch:016x}.seg")
}

fn spare_name(epoch: u64) -> String {
    format!("spare-{epoch:016x}.seg")
}

fn epoch_of(name: &str, prefix: &str) -> Option<u64> {
    let hex = name.strip_prefix(prefix)?.strip_suffix(".seg")?;
    (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok())?
}

/// The name under which a segment without a spare is made.
const NEW_NAME: &str = "new.tmp";

impl Wal {
    /// Opens the log in the disk's root, making it where there is none, and reads what it holds.
    ///
    /// # Errors
    /// `WRONG_CLUSTER`, `FORMAT`, `CORRUPT`, `DISK`, `DISK_FULL`, `TOO_LARGE` for a cluster id of more than 255 bytes.
    pub fn open(disk: Arc<dyn Disk>, identity: Identity, options: Options) -> Result<(Self, Recovered), Error> {
        if identity.cluster_id.len() > CLUSTER_ID_BYTES_MAX {
            return Err(Error::new(Code::TOO_LARGE, "the cluster id is longer than 255 bytes"));
        }
        let names = disk.list("").map_err(|e| disk_error("cannot list the log's directory", &e))?;
        let mut epochs: Vec<u64> = names.iter().filter_map(|n| epoch_of(n, "wal-")).collect();
        epochs.sort_unstable();
        let mut recovery = Recovery::new(&*disk, &identity);
        for (at, epoch) in epochs.iter().enumerate() {
            recovery.segment(*epoch, at + 1 == epochs.len())?;
        }
        let Recovery { segments, next_seq, shards, expected, torn_bytes, places, .. } = recovery;

        // A spare whose number is not below every segment's is not ours to reuse: its epoch could come again.
        let mut spares: Vec<u64> = names.iter().filter_map(|n| epoch_of(n, "spare-")).collect();
        let last_epoch = epochs.last().copied().unwrap_or(0);
        spares.retain(|epoch| {
            let keep = *epoch < last_epoch;
            if !keep {
                let _ = disk.remove(&spare_name(*epoch));
            }
            keep
        });

        let states = shards
            .iter()
            .map(|(shard, log)| {
                let last = log.entries.last().map(|e| e.index.0).or(expected.get(shard).map(|next| next - 1));
                let state =
                    ShardState { hard_state: log.hard_state, marker: log.marker.clone(), last, forgotten_before: 0 };
                (*shard, state)
            })
            .collect();
        let (file, epoch) = Self::make_segment(&*disk, &identity, &mut spares, last_epoch + 1, next_seq)
            .map_err(|e| disk_error("cannot make a log segment", &e))?;
        let filled = file.len().map_err(|e| disk_error("cannot read a log segment's length", &e))?;
        let mut wal = Self {
            disk,
            identity,
            options,
            stats: Arc::default(),
            segments,
            spares,
            file,
            position: HEADER_BYTES as u64,
            filled,
            next_seq,
            shards: states,
            places: Arc::new(Mutex::new(places)),
            failed: None,
        };
        wal.segments.push(Segment { epoch, last: BTreeMap::new() });
        wal.write_preamble()?;
        wal.stats.segments.store(wal.segments.len() as u64, Relaxed);
        Ok((wal, Recovered { shards, torn_bytes }))
    }

    pub fn stats(&self) -> Arc<WalStats> {
        self.stats.clone()
    }

    /// Reads entries back, on any thread, while the log goes on.
    pub fn reader(&self) -> Reader {
        Reader { disk: self.disk.clone(), places: self.places.clone() }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().expect("nothing panics while it holds this lock")
    }

    /// Writes the batch and syncs. When this returns, what the batch says is durable.
    ///
    /// # Errors
    /// `DISK` or `DISK_FULL`; then the log has failed for good, and every later call gives the same error.
    pub fn commit(&mut self, batch: &mut Batch) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if batch.is_empty() {
            return Ok(());
        }
        // The error keeps the log from being used again; the assertions inside are for our own bugs.
        self.check_contiguous(batch);
        let result = self.try_commit(batch);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn check_contiguous(&self, batch: &Batch) {
        let mut last: BTreeMap<u32, Option<u64>> = self.shards.iter().map(|(s, state)| (*s, state.last)).collect();
        for (shard, note) in &batch.notes {
            let last = last.entry(*shard).or_default();
            match note {
                Note::Entry { index } => {
                    assert!(
                        last.is_none_or(|l| *index <= l + 1),
                        "entry {index} of shard {shard} leaves a gap after {last:?}"
                    );
                    *last = Some(*index);
                }
                Note::Marker(marker) => *last = Some(marker.index.0),
                Note::HardState(_) => {}
            }
        }
    }

    fn try_commit(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let started = Instant::now();
        let need = frame_bytes(batch.bytes() - FRAME_HEADER_BYTES) as u64;
        let fresh = self.segments.last().expect("an open log has a segment").last.is_empty();
        if self.position + need > self.options.segment_bytes && !(fresh && self.position < self.options.segment_bytes) {
            self.rotate()?;
        }
        let entries = batch.notes.iter().filter(|(_, n)| matches!(n, Note::Entry { .. })).count();
        let position = self.position;
        self.write_frame(batch)?;
        let epoch = self.segments.last().expect("an open log has a segment").epoch;
        self.places().frame(epoch, position, need, batch.notes.iter());
        let segment = self.segments.last_mut().expect("an open log has a segment");
        for (shard, note) in batch.notes.drain(..) {
            if let Note::Entry { index } = note {
                let last = segment.last.entry(shard).or_default();
                *last = (*last).max(index);
            }
            self.shards.entry(shard).or_default().note(note);
        }
        self.stats.commits.fetch_add(1, Relaxed);
        self.stats.entries.fetch_add(entries as u64, Relaxed);
        self.stats.bytes.fetch_add(need, Relaxed);
        self.stats.commit_us.record_us(started.elapsed().as_micros() as u64);
        Ok(())
    }

    /// Writes one frame at the position and syncs it.
    fn write_frame(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let epoch = self.segments.last().expect("an open log has a segment").epoch;
        let frame = batch.seal(epoch, self.next_seq);
        let len = frame.len();
        let end = self.position + len as u64;
        // Growing a file costs its sync a second, metadata write. A small frame that grows it brings zeros for those
        // behind it; for a large frame the zeros would cost more bandwidth than they save.
        let fill = self.options.fill_bytes;
        if end > self.filled && fill > 0 && (len as u64) < fill / 4 {
            let target = end.next_multiple_of(fill).min(self.options.segment_bytes).max(end);
            frame.resize(len + (target - end) as usize, 0);
        }
        let written = self.file.write_all_at(frame, self.position);
        self.filled = self.filled.max(self.position + frame.len() as u64);
        frame.truncate(len);
        written.map_err(|e| disk_error("cannot write to the log", &e))?;
        let started = Instant::now();
        if !mutant::active(Mutant::SkipFsync) {
            self.file.sync_data().map_err(|e| disk_error("cannot sync the log", &e))?;
        }
        self.stats.sync_us.record_us(started.elapsed().as_micros() as u64);
        self.position = end;
        self.next_seq += 1;
        Ok(())
    }

    fn write_preamble(&mut self) -> Result<(), Error> {
        let mut batch = Batch::default();
        for (shard, state) in &self.shards {
            batch.carry(*shard, state.hard_state, state.marker.as_ref());
        }
        if batch.bytes() > FRAME_HEADER_BYTES { self.write_frame(&mut batch) } else { Ok(()) }
    }

    fn rotate(&mut self) -> Result<(), Error> {
        let epoch = self.segments.last().expect("an open log has a segment").epoch + 1;
        let spares = self.spares.len();
        let (file, epoch) = Self::make_segment(&*self.disk, &self.identity, &mut self.spares, epoch, self.next_seq)
            .map_err(|e| disk_error("cannot make a log segment", &e))?;
        if self.spares.len() < spares {
            self.stats.segments_recycled.fetch_add(1, Relaxed);
        }
        self.filled = file.len().map_err(|e| disk_error("cannot read a log segment's length", &e))?;
        self.file = file;
        self.position = HEADER_BYTES as u64;
        self.segments.push(Segment { epoch, last: BTreeMap::new() });
        self.stats.segments.store(self.segments.len() as u64, Relaxed);
        self.write_preamble()
    }

    /// A segment has its final name only when its header is on disk, so a bad header is never a torn write.
    fn make_segment(
        disk: &dyn Disk,
        identity: &Identity,
        spares: &mut Vec<u64>,
        epoch: u64,
        first_seq: u64,
    ) -> std::io::Result<(Arc<dyn DiskFile>, u64)> {
        let from = match spares.pop() {
            Some(spare) => spare_name(spare),
            None => NEW_NAME.to_owned(),
        };
        let file = disk.open(&from, Open::Create)?;
        if from == NEW_NAME {
            file.set_len(0)?;
        }
        file.write_all_at(&Header { epoch, first_seq, identity: identity.clone() }.encode(), 0)?;
        file.sync_data()?;
        disk.rename(&from, &segment_name(epoch))?;
        if !mutant::active(Mutant::SkipDirSync) {
            disk.sync_dir("")?;
        }
        Ok((file, epoch))
    }

    /// Lets go of whole segments whose entries of the shard are all below `index`; other shards' forgetting counts too.
    /// Returns how many segments went.
    ///
    /// # Errors
    /// `DISK`; the log has then failed for good.
    pub fn forget_before(&mut self, shard: u32, index: Index) -> Result<usize, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let state = self.shards.entry(shard).or_default();
        state.forgotten_before = state.forgotten_before.max(index.0);
        let result = self.drop_forgotten();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn drop_forgotten(&mut self) -> Result<usize, Error> {
        let failed = |e| disk_error("cannot remove a log segment", &e);
        let mut gone = 0;
        while self.segments.len() > 1 + gone {
            let segment = &self.segments[gone];
            let needed = segment
                .last
                .iter()
                .any(|(shard, last)| self.shards.get(shard).is_none_or(|state| *last >= state.forgotten_before));
            if needed && !mutant::active(Mutant::TruncateTooFar) {
                break;
            }
            self.places().forget(segment.epoch);
            if self.spares.len() < self.options.spares_max {
                self.disk.rename(&segment_name(segment.epoch), &spare_name(segment.epoch)).map_err(failed)?;
                self.spares.push(segment.epoch);
            } else {
                self.disk.remove(&segment_name(segment.epoch)).map_err(failed)?;
            }
            gone += 1;
        }
        if gone > 0 {
            self.segments.drain(..gone);
            self.disk.sync_dir("").map_err(failed)?;
            self.stats.segments.store(self.segments.len() as u64, Relaxed);
        }
        Ok(gone)
    }
}

/// Reads segments in order and puts the shards' logs together.
struct Recovery<'a> {
    disk: &'a dyn Disk,
    identity: &'a Identity,
    segments: Vec<Segment>,
    next_seq: u64,
    shards: BTreeMap<u32, ShardLog>,
    /// Index that must come next, where known.
    expected: BTreeMap<u32, u64>,
    places: Places,
    torn_bytes: u64,
}

impl<'a> Recovery<'a> {
    fn new(disk: &'a dyn Disk, identity: &'a Identity) -> Self {
        Self {
            disk,
            identity,
            segments: Vec::new(),
            next_seq: 1,
            shards: BTreeMap::new(),
            expected: BTreeMap::new(),
            places: Places::default(),
            torn_bytes: 0,
        }
    }

    fn segment(&mut self, epoch: u64, newest: bool) -> Result<(), Error> {
        let name = segment_name(epoch);
        let failed = |e| disk_error(format_args!("cannot read log segment \"{name}\""), &e);
        let file = self.disk.open(&name, Open::Write).map_err(failed)?;
        let mut block = vec![0; HEADER_BYTES];
        let got = read_full(&*file, &mut block, 0).map_err(failed)?;
        let header = Header::decode(&name, &block[..got])?;
        if header.identity != *self.identity {
            let theirs = &header.identity;
            return Err(Error::new(
                Code::WRONG_CLUSTER,
                format!(
                    "the log belongs to node {} of cluster \"{}\", not to node {} of cluster \"{}\"",
                    theirs.node, theirs.cluster_id, self.identity.node, self.identity.cluster_id
                ),
            )
            .hint("start the node with the data directory that is its own, or with an empty one under a new node id"));
        }
        if header.epoch != epoch {
            return Err(corrupt(format_args!("log segment \"{name}\" says it is number {}", header.epoch)));
        }
        if self.segments.is_empty() {
            self.next_seq = header.first_seq;
        } else if header.first_seq != self.next_seq {
            return Err(corrupt(format_args!(
                "the log breaks off at frame {}, before segment \"{name}\" begins with frame {}",
                self.next_seq, header.first_seq
            )));
        }
        // What was torn lies in the segment that was the newest when the node stopped; those behind it come from later starts.
        self.torn_bytes = 0;
        let len = file.len().map_err(failed)?;
        let mut last = BTreeMap::new();
        let mut position = HEADER_BYTES as u64;
        let mut body = Vec::new();
        while let Some(frame) = read_frame(&*file, epoch, position, len, &mut body).map_err(failed)? {
            if frame.seq != self.next_seq {
                return Err(corrupt(format_args!(
                    "log segment \"{name}\" has frame {} at byte {position}, where frame {} belongs",
                    frame.seq, self.next_seq
                )));
            }
            let parts = records(&body)
                .map_err(|what| corrupt(format_args!("log segment \"{name}\" at byte {position}: {what}")))?;
            let notes: Vec<(u32, Note)> =
                parts.iter().filter_map(|(shard, record)| Some((*shard, record.note()?))).collect();
            self.places.frame(epoch, position, frame_bytes(body.len()) as u64, notes.iter());
            for (shard, record) in parts {
                if let Record::Entry(entry) = &record {
                    let last = last.entry(shard).or_default();
                    *last = entry.index.0.max(*last);
                }
                self.record(shard, record)
                    .map_err(|what| corrupt(format_args!("log segment \"{name}\" at byte {position}: {what}")))?;
            }
            self.next_seq += 1;
            position += frame_bytes(body.len()) as u64;
        }
        if newest {
            if !mutant::active(Mutant::RotIsTorn) {
                self.torn_bytes = self.check_tail(&*file, &name, epoch, position, len)?;
            }
            // A process that was killed leaves frames that only the page cache has. They are part of what this start
            // builds on, so they must be on disk before anything is.
            file.sync_data().map_err(|e| disk_error(format_args!("cannot sync log segment \"{name}\""), &e))?;
        }
        self.segments.push(Segment { epoch, last });
        Ok(())
    }

    fn record(&mut self, shard: u32, record: Record) -> Result<(), String> {
        let log = self.shards.entry(shard).or_default();
        let expected = self.expected.get(&shard).copied();
        match record {
            Record::HardState(state) => log.hard_state = Some(state),
            Record::CarriedMarker(marker) => log.marker = Some(marker),
            Record::Marker(marker) => {
                log.entries.clear();
                self.expected.insert(shard, marker.index.0 + 1);
                log.marker = Some(marker);
            }
            Record::Entry(entry) => {
                let index = entry.index.0;
                if let Some(expected) = expected
                    && index > expected
                {
                    return Err(format!("entry {index} of shard {shard} comes where {expected} belongs"));
                }
                let keep = log.entries.partition_point(|e| e.index.0 < index);
                log.entries.truncate(keep);
                log.entries.push(entry);
                self.expected.insert(shard, index + 1);
            }
        }
        Ok(())
    }

    /// Behind the last good frame of the newest segment there may be zeros, a recycled segment's old frames, or the
    /// remains of one frame that was being written. A good frame there means that a synced one before it has rotted.
    fn check_tail(&self, file: &dyn DiskFile, name: &str, epoch: u64, from: u64, len: u64) -> Result<u64, Error> {
        let failed = |e| disk_error(format_args!("cannot read log segment \"{name}\""), &e);
        const WINDOW: usize = 256 * 1024;
        let mut window = vec![0; WINDOW + FRAME_HEADER_BYTES];
        let mut body = Vec::new();
        let mut torn = 0;
        let mut at = from;
        while at < len {
            let got = read_full(file, &mut window, at).map_err(failed)?;
            for offset in (0..got.min(WINDOW)).step_by(8) {
                let word = &window[offset..got];
                if word.len() < FRAME_HEADER_BYTES || word[..4] != FRAME_MAGIC.to_le_bytes() {
                    continue;
                }
                let position = at + offset as u64;
                if position == from {
                    torn = FrameHeader::decode(word).map_or(0, |h| u64::from(h.len).min(len - from));
                    continue;
                }
                // A frame of this segment behind the break can only have a later number, and not more of them than fit.
                let plausible = FrameHeader::decode(word)
                    .is_some_and(|h| h.seq > self.next_seq && h.seq - self.next_seq <= len / FRAME_HEADER_BYTES as u64);
                if plausible && let Some(frame) = read_frame(file, epoch, position, len, &mut body).map_err(failed)? {
                    return Err(corrupt(format_args!(
                        "log segment \"{name}\" fails its checksum at byte {from}, but frame {} behind it at byte {position} is good, \
                         so this is not a torn write",
                        frame.seq
                    )));
                }
            }
            at += WINDOW as u64;
        }
        Ok(torn)
    }
}

/// Reads the frame at `position` if a whole and good one is there.
pub(super) fn read_frame(
    file: &dyn DiskFile,
    epoch: u64,
    position: u64,
    len: u64,
    body: &mut Vec<u8>,
) -> std::io::Result<Option<FrameHeader>> {
    let mut head = [0; FRAME_HEADER_BYTES];
    if read_full(file, &mut head, position)? < head.len() {
        return Ok(None);
    }
    let Some(frame) = FrameHeader::decode(&head) else { return Ok(None) };
    let start = position + FRAME_HEADER_BYTES as u64;
    if start + u64::from(frame.len) > len {
        return Ok(None);
    }
    body.clear();
    body.resize(frame.len as usize, 0);
    if read_full(file, body, start)? < body.len() || !(frame.matches(epoch, body) || mutant::active(Mutant::IgnoreCrc))
    {
        return Ok(None);
    }
    Ok(Some(frame))
}
