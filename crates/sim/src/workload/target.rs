//! What a transactional target does, as small as its contract needs.
//!
//! # The Kafka
//!
//! One transactional id. `Init` ends what is open and gives a new epoch. `Produce` and `Offsets` belong to the open transaction
//! of their epoch; a batch that comes again is known by its number. `End` commits or aborts at once or after a while, in which
//! `Init` and the position's reader are told to come again; it gives the next epoch, and says the same when it is asked again
//! (transactions of version 2). Whatever comes with another epoch is refused. A transaction that is open for too long is
//! aborted.

use buttress_uplink::Gap;
use bytes::Bytes;

use crate::{MS, SEC, Us, rng::Rng};

/// Requests to the target.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Init,
    Position,
    Produce {
        epoch: u64,
        number: usize,
        batch: Bytes,
    },
    Offsets {
        epoch: u64,
        next: i64,
        text: String,
        gap: Option<Gap>,
    },
    End {
        epoch: u64,
        commit: bool,
    },
    /// To a journal: all of it at once, if the journal ends there.
    Append {
        end: usize,
        commit: Commit,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Epoch(u64),
    Position(Option<(i64, String)>, usize),
    Done,
    Again,
    Fenced,
    TooLarge,
}

/// What one commit of the target holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Commit {
    pub(super) gap: Option<Gap>,
    pub(super) batches: Vec<Bytes>,
    pub(super) position: Option<(i64, String)>,
}

/// The target.
#[derive(Default)]
pub(super) struct Target {
    pub(super) journal: bool,
    pub(super) batch_bytes_max: Option<usize>,
    pub(super) epoch: u64,
    pub(super) open: Option<(Us, Commit)>,
    /// The epoch that was ended last, and how.
    pub(super) ended: Option<(u64, bool)>,
    /// A transaction that is being completed, until then.
    pub(super) completing: Option<(Us, Commit)>,
    pub(super) commits: Vec<Commit>,
    pub(super) away_until: Us,
    /// No more faults.
    pub(super) healed: bool,
}

/// Kafka aborts what is open for longer.
const OPEN_MAX: Us = 3 * SEC;

impl Target {
    pub(super) fn settle(&mut self, now: Us) {
        if let Some((_, commit)) = self.completing.take_if(|(until, _)| *until <= now) {
            self.commits.push(commit);
        }
        if self.open.as_ref().is_some_and(|(since, _)| since + OPEN_MAX < now) {
            self.open = None;
            self.epoch += 1;
            self.ended = None;
        }
    }

    pub(super) fn position(&self) -> Option<(i64, String)> {
        self.commits.iter().rev().find_map(|commit| commit.position.clone())
    }

    fn too_large(&self, batch: &Bytes) -> bool {
        self.batch_bytes_max.is_some_and(|most| batch.len() > most)
    }

    pub(super) fn handle(&mut self, now: Us, rng: &mut Rng, request: Request) -> Reply {
        self.settle(now);
        match request {
            Request::Init if self.completing.is_some() => Reply::Again,
            Request::Init => {
                self.open = None;
                self.epoch += 1;
                self.ended = None;
                Reply::Epoch(self.epoch)
            }
            Request::Position => {
                let unstable = self.completing.is_some()
                    || self.open.as_ref().is_some_and(|(_, commit)| commit.position.is_some());
                if unstable { Reply::Again } else { Reply::Position(self.position(), self.commits.len()) }
            }
            Request::Produce { epoch, .. } | Request::Offsets { epoch, .. } if epoch != self.epoch => Reply::Fenced,
            // The next transaction cannot begin yet.
            Request::Produce { .. } | Request::Offsets { .. } if self.completing.is_some() => Reply::Again,
            Request::Produce { batch, .. } if self.too_large(&batch) => Reply::TooLarge,
            Request::Produce { number, batch, .. } => {
                let (_, open) = self.open.get_or_insert_with(|| (now, Commit::default()));
                if number == open.batches.len() {
                    open.batches.push(batch);
                }
                if number < open.batches.len() { Reply::Done } else { Reply::Fenced }
            }
            Request::Offsets { next, text, gap, .. } => {
                let (_, open) = self.open.get_or_insert_with(|| (now, Commit::default()));
                // A gap record is a batch of another partition; it comes with the offsets here.
                (open.position, open.gap) = (Some((next, text)), gap);
                Reply::Done
            }
            Request::End { epoch, commit } if self.ended == Some((epoch, commit)) => Reply::Epoch(self.epoch),
            Request::End { epoch, .. } if epoch != self.epoch => Reply::Fenced,
            Request::End { commit, .. } => {
                if let Some((_, open)) = self.open.take().filter(|_| commit) {
                    let takes = if !self.healed && rng.percent(20) { rng.range(10 * MS, SEC) } else { 0 };
                    self.completing = Some((now + takes, open));
                    self.settle(now);
                }
                self.ended = Some((self.epoch, commit));
                self.epoch += 1;
                Reply::Epoch(self.epoch)
            }
            Request::Append { end, .. } if end != self.commits.len() => Reply::Fenced,
            Request::Append { commit, .. } if commit.batches.iter().any(|batch| self.too_large(batch)) => {
                Reply::TooLarge
            }
            Request::Append { commit, .. } => {
                self.commits.push(commit);
                Reply::Done
            }
        }
    }
}
