//! One lane: the records of one local partition, on their way to one partition of the target.
//!
//! # States
//!
//! | phase | asks the host for | goes on when |
//! |---|---|---|
//! | `Claiming` | [`Action::Claim`]: fence whoever had the lane before, read the position that the target has | the position is known |
//! | `Looking` | [`Action::Look`]: the local log's bounds, not older than the position, and the batch before the position | the log is the one that the position speaks of |
//! | `Reading` | [`Action::Read`]: batches from the position on; the host waits for them for a while | there are some, or retention has overtaken the position |
//! | `Sending` | [`Action::Send`]: a parcel, as one commit | the target has it |
//! | `Waiting` | [`Action::Wait`] | the time has come; then it claims again |
//! | `Diverged` | nothing: what this log has must not be sent | an operator adopts the log |
//! | `Paused` | nothing | it is resumed |
//!
//! # Why nothing is lost or sent twice
//!
//! A parcel's records and the position behind them are one commit of the target, and after *any* failure of a send, even one
//! whose outcome is known, the lane claims again: the claim ends what was under way and reads what has become of it. So what
//! this process remembers of a position is only ever used between a claim and the first failure after it. A crash at any
//! place is the same as such a failure. First start: the target knows no position, and the lane begins at the origin that was
//! noted when the uplink was made, so that what retention takes before the first connection is a gap as well.
//!
//! # Large records
//!
//! What the target does not take for its size is sent again in smaller pieces: batch by batch, then the batch cut into halves
//! of its bytes (which needs its records to be decoded), down to a single record. Then the lane stops, or skips the record with
//! a gap record, as its settings say. Behind that place batches are forwarded whole again.

use std::sync::Arc;

use buttress_core::{Code, Error, Mutant, Offset, TimeMs, mutant};
use buttress_wire::records::{BatchView, Builder, Codec};
use bytes::Bytes;

use crate::{
    gap::{Gap, Reason},
    position::{Lineage, Mark, Position},
};

/// Bytes of records in a parcel, if nothing else is asked for. A parcel holds at least a batch, which is at most as large.
pub const PARCEL_BYTES_DEFAULT: usize = 1024 * 1024;
/// A parcel is one entry or transaction of the target, and is in memory once: lanes × this is what an uplink needs.
pub const PARCEL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Batches below this are put together, where they are not compressed: a target takes a batch at a time, and a batch of one
/// record costs it as much as one of a thousand.
const MERGE_BELOW_BYTES: usize = 16 * 1024;
const MERGED_BYTES: usize = 256 * 1024;
/// A Kafka forgets positions that nobody has committed for days; one that is idle is committed again after this time.
const REFRESH_MS: u64 = 6 * 3600 * 1000;
/// After the first failure, doubled with each further one.
const PAUSE_MIN_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 15_000;

/// Where a lane's records come from, as the target is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub edge: String,
    pub topic: String,
    pub partition: u32,
}

/// What is done with a record that the target does not take for its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Oversized {
    /// The lane waits until the target takes it.
    #[default]
    Stop,
    /// A gap record takes its place.
    Gap,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub source: Source,
    pub lineage: Lineage,
    /// Where the lane begins, if the target knows no position, or one of an earlier adoption.
    pub origin: Offset,
    pub parcel_bytes: usize,
    pub oversized: Oversized,
    /// What this gateway remembers of the position: a later one may be in the target, but not none.
    pub known: Option<Offset>,
    /// Spreads the pauses of lanes and gateways.
    pub seed: u64,
}

/// First offset that the local log has, and the one behind its last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    pub start: Offset,
    pub end: Offset,
}

/// A batch of the local log, as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalBatch {
    pub base: Offset,
    pub last: Offset,
    pub max_timestamp_ms: i64,
    pub bytes: Bytes,
}

impl LocalBatch {
    fn mark(&self) -> Mark {
        let crc = self.bytes.get(17..21).map_or(0, |crc| u32::from_be_bytes(crc.try_into().expect("four bytes")));
        Mark { base: self.base, crc }
    }
}

/// One commit of the target: a gap, then batches, and the position behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// What the target had before; a guard where the target has such a thing.
    pub expected: Option<Position>,
    pub position: Position,
    /// Comes before the batches.
    pub gap: Option<Gap>,
    pub batches: Vec<Bytes>,
    pub records: u64,
    pub bytes: usize,
    /// The largest timestamp in it.
    pub max_timestamp_ms: Option<i64>,
    /// The one batch of it, if it is one: where it may be cut.
    single: Option<Single>,
    /// Where the lane goes on: what `position` says, unless the code is wrong on purpose.
    after: Position,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Single {
    /// Where the local batch ends.
    end: Offset,
    records: u32,
    bytes: usize,
    /// Its records can be taken apart.
    divisible: bool,
}

/// What the host is to do next. Asked again before it has answered, the lane says the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Then [`Lane::claimed`].
    Claim,
    /// Then [`Lane::looked`]. The bounds must not be older than this moment.
    Look { mark: Option<Offset> },
    /// Then [`Lane::read`]. Wait for records for a while, where there are none.
    Read { from: Offset, bytes_max: usize },
    /// Then [`Lane::sent`].
    Send(Arc<Parcel>),
    /// Until then, or until somebody changes something (`None`).
    Wait { until: Option<TimeMs> },
}

/// What a lane is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Claiming,
    Looking,
    Reading,
    Sending,
    Waiting,
    Diverged,
    Paused,
}

impl Phase {
    pub fn text(self) -> &'static str {
        match self {
            Self::Claiming => "claiming",
            Self::Looking => "looking",
            Self::Reading => "following",
            Self::Sending => "sending",
            Self::Waiting => "waiting",
            Self::Diverged => "diverged",
            Self::Paused => "paused",
        }
    }
}

/// Why a lane does not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub error: Error,
    /// Since the last commit that went well.
    pub since: TimeMs,
    pub attempts: u32,
}

/// What this process has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub parcels: u64,
    pub records: u64,
    pub bytes: u64,
    pub gaps: u64,
    pub gap_records: u64,
    pub claims: u64,
}

impl Parcel {
    /// The position alone.
    fn empty(expected: Option<Position>, position: Position) -> Self {
        Self {
            expected,
            position,
            after: position,
            gap: None,
            batches: Vec::new(),
            records: 0,
            bytes: 0,
            max_timestamp_ms: None,
            single: None,
        }
    }
}

enum State {
    Claiming,
    Looking(Option<Position>),
    Reading,
    Sending(Arc<Parcel>),
    Waiting { until: TimeMs, reading: bool },
    Diverged,
}

/// Smaller pieces, until the batch that was refused is behind.
#[derive(Clone, Copy, Debug)]
struct Squeeze {
    until: Offset,
    /// Bytes of records that a piece has at most; `None`: a batch at a time.
    piece: Option<usize>,
}

pub struct Lane {
    settings: Settings,
    state: State,
    paused: bool,
    /// What the target has, as far as is known since the last claim.
    position: Option<Position>,
    next: Offset,
    bounds: Bounds,
    squeeze: Option<Squeeze>,
    /// Goes with a gap record, from here up to there; and the batch that holds it.
    skip: Option<(Offset, Offset, Option<Mark>)>,
    trouble: Option<Trouble>,
    /// When the target has last had the position from here.
    committed_at: TimeMs,
    tally: Tally,
}

impl Lane {
    pub fn new(settings: Settings) -> Self {
        Self {
            next: settings.origin,
            settings,
            state: State::Claiming,
            paused: false,
            position: None,
            bounds: Bounds::default(),
            squeeze: None,
            skip: None,
            trouble: None,
            committed_at: TimeMs(0),
            tally: Tally::default(),
        }
    }

    /// What the host is to do.
    pub fn poll(&mut self, now: TimeMs) -> Action {
        if self.paused && !matches!(self.state, State::Sending(_)) {
            return Action::Wait { until: None };
        }
        if let State::Waiting { until, reading } = self.state {
            if now < until {
                return Action::Wait { until: Some(until) };
            }
            self.state = if reading { State::Reading } else { State::Claiming };
        }
        match &self.state {
            State::Claiming => Action::Claim,
            State::Looking(found) => {
                let mark = found.filter(|found| found.mark.is_some()).map(|found| Offset(found.next.0 - 1));
                Action::Look { mark }
            }
            State::Reading => {
                Action::Read { from: self.next.max(self.bounds.start), bytes_max: self.settings.parcel_bytes }
            }
            State::Sending(parcel) => Action::Send(parcel.clone()),
            State::Diverged => Action::Wait { until: None },
            State::Waiting { .. } => unreachable!("it was left above"),
        }
    }

    /// The target was claimed: offset and text that it has for this lane, if any.
    pub fn claimed(&mut self, now: TimeMs, found: Result<Option<(Offset, String)>, Error>) {
        if !matches!(self.state, State::Claiming) {
            return;
        }
        let found = match found {
            Ok(Some((next, text))) => Position::parse(next, &text).map(Some),
            Ok(None) => match self.settings.known {
                Some(known) => Err(Error::new(
                    Code::UPLINK_POSITION,
                    format!("the target knows no position, and this lane has been at offset {known}"),
                )
                .hint(
                    "a Kafka forgets positions after offsets.retention.minutes, 7 days unless set; look at the end of the \
                     target's topic, then `buttress uplink adopt NAME --from OFFSET`",
                )),
                None => Ok(None),
            },
            Err(error) => return self.wait(now, error, false),
        };
        match found {
            Ok(found) => {
                self.tally.claims += 1;
                self.state = State::Looking(found);
            }
            Err(error) => self.diverge(now, error),
        }
    }

    /// The local log's bounds after the claim, and the batch that holds the offset that was asked for.
    pub fn looked(&mut self, now: TimeMs, found: Result<(Bounds, Option<LocalBatch>), Error>) {
        let State::Looking(position) = self.state else { return };
        let (bounds, batch) = match found {
            Ok(found) => found,
            Err(error) => return self.wait(now, error, false),
        };
        let lineage = self.settings.lineage;
        let adopted = position.is_some_and(|found| found.lineage.adopted < lineage.adopted);
        let next = match position {
            Some(found) if !adopted => {
                let mark = batch.map(|batch| batch.mark());
                if let Err(error) = found.speaks_of(lineage, bounds.end, mark)
                    && !mutant::active(Mutant::UplinkAnyLog)
                {
                    return self.diverge(now, error);
                }
                found.next
            }
            _ => self.settings.origin,
        };
        let remembers = mutant::active(Mutant::UplinkMemory) && self.position.is_some();
        self.next = if remembers { self.next } else { next };
        self.position = position;
        self.bounds = bounds;
        self.committed_at = now;
        self.state = State::Reading;
    }

    /// Batches from the offset on that was asked for; none where there are none.
    pub fn read(&mut self, now: TimeMs, found: Result<(Bounds, Vec<LocalBatch>), Error>) {
        if !matches!(self.state, State::Reading) {
            return;
        }
        match found {
            // Retention has moved on; the bounds will say how far.
            Err(error) if error.code == Code::OFFSET_OUT_OF_RANGE => self.state = State::Looking(self.position),
            Err(error) => self.wait(now, error, true),
            Ok((bounds, batches)) => {
                // A replica that is behind says nothing new.
                self.bounds.start = self.bounds.start.max(bounds.start);
                self.bounds.end = self.bounds.end.max(bounds.end);
                match self.plan(&batches) {
                    Some(parcel) => self.state = State::Sending(Arc::new(parcel)),
                    // The target was claimed and has everything.
                    None => {
                        self.trouble = None;
                        if let Some(position) = self.position
                            && now.0 >= self.committed_at.0.saturating_add(REFRESH_MS)
                        {
                            self.state = State::Sending(Arc::new(Parcel::empty(self.position, position)));
                        }
                    }
                }
            }
        }
    }

    /// What has become of the parcel.
    pub fn sent(&mut self, now: TimeMs, outcome: Result<(), Error>) {
        let State::Sending(parcel) = &self.state else { return };
        let parcel = parcel.clone();
        match outcome {
            Ok(()) => {
                self.next = parcel.after.next;
                self.committed_at = now;
                self.position = Some(parcel.position);
                self.squeeze = self.squeeze.filter(|squeeze| self.next < squeeze.until);
                self.skip = None;
                self.trouble = None;
                self.tally.parcels += 1;
                self.tally.records += parcel.records;
                self.tally.bytes += parcel.bytes as u64;
                if let Some(gap) = parcel.gap {
                    self.tally.gaps += 1;
                    self.tally.gap_records += gap.count() as u64;
                }
                self.state = State::Reading;
                if parcel.position != parcel.after {
                    let apart = Parcel { position: parcel.after, batches: Vec::new(), gap: None, ..(*parcel).clone() };
                    self.state = State::Sending(Arc::new(apart));
                }
            }
            Err(error) if error.code == Code::TOO_LARGE => self.too_large(now, &parcel, error),
            Err(error) => self.wait(now, error, false),
        }
    }

    /// Stops after what is on its way, or goes on.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Does not wait any longer: somebody has mended what was in the way.
    pub fn retry(&mut self) {
        if let State::Waiting { until, .. } = &mut self.state {
            *until = TimeMs(0);
        }
    }

    pub fn phase(&self) -> Phase {
        match self.state {
            State::Diverged => Phase::Diverged,
            State::Sending(_) => Phase::Sending,
            _ if self.paused => Phase::Paused,
            State::Claiming => Phase::Claiming,
            State::Looking(_) => Phase::Looking,
            State::Reading => Phase::Reading,
            State::Waiting { .. } => Phase::Waiting,
        }
    }

    /// The target has everything before this offset, as far as this process knows; `None` before the first claim.
    pub fn next(&self) -> Option<Offset> {
        matches!(self.state, State::Reading | State::Sending(_))
            .then_some(self.next)
            .or_else(|| self.position.map(|position| position.next))
    }

    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn troubled(&mut self, now: TimeMs, error: Error) -> u32 {
        let (since, attempts) =
            self.trouble.as_ref().map_or((now, 0), |trouble| (trouble.since, trouble.attempts.saturating_add(1)));
        self.trouble = Some(Trouble { error, since, attempts });
        attempts
    }

    /// Waits longer each time, between half and the whole of the pause, so that many gateways do not come at once.
    fn wait(&mut self, now: TimeMs, error: Error, reading: bool) {
        let attempts = self.troubled(now, error);
        let pause = (PAUSE_MIN_MS << attempts.min(10)).min(PAUSE_MAX_MS);
        let drawn = (self.settings.seed ^ u64::from(attempts)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let until = TimeMs(now.0.saturating_add(pause / 2 + drawn % (pause / 2 + 1)));
        self.state = State::Waiting { until, reading };
    }

    fn diverge(&mut self, now: TimeMs, error: Error) {
        self.troubled(now, error);
        self.state = State::Diverged;
    }

    fn too_large(&mut self, now: TimeMs, parcel: &Parcel, error: Error) {
        match parcel.single {
            None => self.squeeze = Some(Squeeze { until: parcel.position.next, piece: None }),
            Some(single) if single.records > 1 && single.divisible => {
                self.squeeze = Some(Squeeze { until: single.end, piece: Some(single.bytes / 2) });
            }
            Some(_) if self.settings.oversized == Oversized::Gap => {
                let from = parcel.gap.map_or(self.next, |gap| gap.to);
                self.skip = Some((from, parcel.position.next, parcel.position.mark));
            }
            Some(_) => {
                let hint = "raise max.message.bytes of the target's topic, or let the uplink skip such records with a gap \
                            record: `buttress uplink create … --oversized gap`";
                return self.wait(now, Error { hint: Some(hint.into()), ..error }, false);
            }
        }
        // A commit that was refused ends the claim.
        self.state = State::Claiming;
    }

    /// Makes a parcel of what was read; `None` where there is nothing to send.
    fn plan(&self, batches: &[LocalBatch]) -> Option<Parcel> {
        let mut next = self.next;
        let (mut gap, mut mark) = (None, None);
        if self.bounds.start > next {
            gap = Some(Gap { from: next, to: self.bounds.start, reason: Reason::Retention });
            next = self.bounds.start;
        } else if let Some((_, to, holds)) = self.skip.filter(|(from, ..)| *from == next) {
            mark = holds;
            gap = Some(Gap { from: next, to, reason: Reason::TooLarge });
            next = to;
        }
        let position = Position { next, lineage: self.settings.lineage, mark };
        let mut parcel = Parcel { gap, ..Parcel::empty(self.position, position) };
        let squeeze = self.squeeze.filter(|squeeze| next < squeeze.until);
        // Where something was refused, a gap goes alone: what is refused behind it must not hold it up.
        let careful = squeeze.is_some() || self.skip.is_some();
        for batch in batches.iter().filter(|batch| batch.last >= self.next) {
            if batch.last < next {
                // Nothing of it is sent, but it may be the batch before the position.
                if batch.last.0 + 1 == next.0 {
                    parcel.position.mark = Some(batch.mark());
                }
                continue;
            }
            if careful && parcel.gap.is_some() {
                if batch.base < next {
                    parcel.position.mark = Some(batch.mark());
                }
                break;
            }
            let whole = batch.base >= next;
            let full = parcel.bytes + batch.bytes.len() > self.settings.parcel_bytes;
            if (full || squeeze.is_some()) && !parcel.batches.is_empty() {
                break;
            }
            let missing = |gap: &mut Option<Gap>, from: Offset, to: Offset, empty: bool| {
                let free = gap.is_none() && empty;
                if free {
                    *gap = Some(Gap { from, to, reason: Reason::Unreadable });
                }
                free
            };
            if batch.base > next {
                // A log has no holes; if one has, it is told.
                if !missing(&mut parcel.gap, next, batch.base, parcel.batches.is_empty()) {
                    break;
                }
                next = batch.base;
                parcel.position.next = next;
            }
            let piece = squeeze.and_then(|squeeze| squeeze.piece).filter(|piece| *piece < batch.bytes.len());
            let taken = match BatchView::parse_stored(batch.bytes.clone()) {
                Ok(view) if whole && piece.is_none() => {
                    Some((rebased(&batch.bytes), Offset(batch.last.0 + 1), view.records_count(), divisible(&view)))
                }
                Ok(view) => cut(&view, batch.base, next, piece.unwrap_or(usize::MAX))
                    .map(|(bytes, to, records)| (bytes, to, records, true)),
                Err(_) => None,
            };
            let after = Offset(batch.last.0 + 1);
            let Some((bytes, to, records, divisible)) = taken else {
                if !missing(&mut parcel.gap, next, after, parcel.batches.is_empty()) {
                    break;
                }
                next = after;
                parcel.position = Position { next, mark: Some(batch.mark()), ..parcel.position };
                continue;
            };
            let length = bytes.len();
            parcel.single =
                parcel.batches.is_empty().then_some(Single { end: after, records, bytes: length, divisible });
            parcel.batches.push(bytes);
            parcel.bytes += length;
            parcel.records += u64::from(records);
            parcel.max_timestamp_ms = parcel.max_timestamp_ms.max(Some(batch.max_timestamp_ms));
            next = to;
            parcel.position = Position { next, mark: Some(batch.mark()), ..parcel.position };
            if to < after {
                break;
            }
        }
        if squeeze.is_none() {
            merge(&mut parcel.batches);
        }
        if mutant::active(Mutant::UplinkSilentGap) {
            parcel.gap = None;
        }
        parcel.after = parcel.position;
        if mutant::active(Mutant::UplinkPositionApart) && !parcel.batches.is_empty() {
            parcel.position = Position { next: self.next, mark: None, ..parcel.position };
        }
        (next > self.next).then_some(parcel)
    }
}

/// The batch as a producer sends it: base offset and leader epoch, which lie outside its checksum, are whoever appends it to
/// say, and a Kafka refuses a batch that begins anywhere but at 0.
fn rebased(bytes: &Bytes) -> Bytes {
    let mut out = bytes.to_vec();
    out[..8].fill(0);
    out[12..16].fill(0xff);
    out.into()
}

/// Whether a batch's records can be taken apart here.
fn divisible(view: &BatchView) -> bool {
    matches!(view.codec(), Codec::None | Codec::Gzip)
}

/// The records from an offset on as a batch of their own, as many as fit into about `bytes_max` and at least one; where they
/// end, and how many they are. `None` for a batch that cannot be taken apart.
fn cut(view: &BatchView, base: Offset, from: Offset, bytes_max: usize) -> Option<(Bytes, Offset, u32)> {
    let shift = base.0 - view.base_offset();
    let mut builder = Builder::new();
    let mut to = from;
    for record in view.records().ok()? {
        let record = record.ok()?;
        let offset = Offset(record.offset + shift);
        if offset < from {
            continue;
        }
        let headers: Vec<_> = record.headers.iter().map(|header| (&header.key[..], header.value.as_deref())).collect();
        let size = Builder::record_size_max(record.key.as_deref(), record.value.as_deref(), &headers);
        if builder.count() > 0 && builder.size() + size > bytes_max {
            break;
        }
        builder.push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &headers);
        to = Offset(offset.0 + 1);
    }
    let records = builder.count();
    Some((builder.build()?, to, records))
}

/// Puts small uncompressed batches that follow each other together. What cannot be taken apart stays as it is.
fn merge(batches: &mut Vec<Bytes>) {
    let small = |bytes: &Bytes| {
        let view = BatchView::parse_stored(bytes.clone()).ok().filter(|_| bytes.len() < MERGE_BELOW_BYTES)?;
        if view.codec() != Codec::None {
            return None;
        }
        view.records().ok()?.collect::<Result<Vec<_>, _>>().ok()
    };
    if batches.len() < 2 {
        return;
    }
    let mut merged = Vec::new();
    let mut open: Option<(Builder, Bytes)> = None;
    let close = |open: &mut Option<(Builder, Bytes)>, merged: &mut Vec<Bytes>| {
        if let Some((builder, only)) = open.take() {
            // One alone is forwarded as it was.
            merged.push(if only.is_empty() { builder.build().expect("it has records") } else { only });
        }
    };
    for bytes in batches.drain(..) {
        let Some(records) = small(&bytes) else {
            close(&mut open, &mut merged);
            merged.push(bytes);
            continue;
        };
        if open.as_ref().is_some_and(|(builder, _)| builder.size() + bytes.len() > MERGED_BYTES) {
            close(&mut open, &mut merged);
        }
        let (builder, only) = open.get_or_insert_with(|| (Builder::new(), Bytes::new()));
        *only = if builder.count() == 0 { bytes } else { Bytes::new() };
        for record in &records {
            let headers: Vec<_> =
                record.headers.iter().map(|header| (&header.key[..], header.value.as_deref())).collect();
            builder.push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &headers);
        }
    }
    close(&mut open, &mut merged);
    *batches = merged;
}

#[cfg(test)]
mod tests;
