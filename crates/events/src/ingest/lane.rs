//! One sender's place in the queue: items in at one end, outcomes out at the other, both in order.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex},
    task::Poll,
};

use buttress_core::{Error, Offset};
use futures::task::AtomicWaker;

use super::Item;

/// Where a record lies now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub partition: u32,
    /// Unknown for a duplicate of long ago.
    pub offset: Option<Offset>,
    /// It had been there before.
    pub duplicate: bool,
}

/// The answer to one item.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub tag: u64,
    pub result: Result<Placed, Error>,
}

/// See the module's documentation. The owner's task is woken through the waker it gave.
#[derive(Debug)]
pub struct Lane {
    state: Mutex<State>,
    waker: Arc<AtomicWaker>,
}

#[derive(Debug, Default)]
struct State {
    queued: VecDeque<Item>,
    queued_bytes: usize,
    outcomes: Vec<Outcome>,
    /// Items that have no outcome yet.
    unanswered: usize,
    /// Items of this lane are in an entry under way.
    busy: bool,
    /// The lane stands in the batcher's queue.
    ready: bool,
    abandoned: bool,
    /// An item failed, and nothing that came after it may be appended.
    broken: Option<Error>,
}

/// What an arrival means for the batcher.
pub(super) enum Arrival {
    /// The lane is in an entry; its items follow when that is answered.
    Waits,
    AlreadyReady,
    BecameReady,
    /// The lane is broken: the items have failed.
    Failed,
}

pub(super) struct Taken {
    pub bytes: usize,
    pub left_bytes: usize,
    pub left_records: usize,
}

pub(super) struct Left {
    pub bytes: usize,
    pub records: usize,
}

pub(super) struct Dropped {
    pub bytes: usize,
    pub records: usize,
    pub was_ready: bool,
}

impl Lane {
    pub fn new(waker: Arc<AtomicWaker>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), waker })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds the lock")
    }

    /// Items that have no outcome yet.
    pub fn unanswered(&self) -> usize {
        self.state().unanswered
    }

    pub fn has_outcomes(&self) -> bool {
        !self.state().outcomes.is_empty()
    }

    /// Moves the outcomes that have come, oldest first, to the end of `into`.
    pub fn take_outcomes(&self, into: &mut Vec<Outcome>) {
        into.append(&mut self.state().outcomes);
    }

    /// Waits until every item has its outcome.
    pub async fn answered(&self) -> Vec<Outcome> {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            let mut state = self.state();
            if state.unanswered > 0 { Poll::Pending } else { Poll::Ready(std::mem::take(&mut state.outcomes)) }
        })
        .await
    }

    pub(super) fn push(&self, items: &mut Vec<Item>) -> Arrival {
        let mut state = self.state();
        assert!(!state.abandoned, "the owner gave this lane up");
        if let Some(error) = state.broken.clone() {
            let failed = items.drain(..).map(|item| Outcome { tag: item.tag, result: Err(error.clone()) });
            state.outcomes.extend(failed);
            drop(state);
            self.waker.wake();
            return Arrival::Failed;
        }
        state.unanswered += items.len();
        state.queued_bytes += items.iter().map(|item| item.size).sum::<usize>();
        state.queued.extend(items.drain(..));
        if state.busy {
            Arrival::Waits
        } else if state.ready {
            Arrival::AlreadyReady
        } else {
            state.ready = true;
            Arrival::BecameReady
        }
    }

    /// Hands items to `add` until it gives one back. The lane leaves the queue, and is busy if any was taken.
    pub(super) fn take(&self, mut add: impl FnMut(Item) -> Option<Item>) -> Taken {
        let mut state = self.state();
        assert!(state.ready && !state.busy, "only a ready lane stands in the queue");
        let before = state.queued_bytes;
        while let Some(item) = state.queued.pop_front() {
            let size = item.size;
            match add(item) {
                None => {
                    state.queued_bytes -= size;
                    state.busy = true;
                }
                Some(item) => {
                    state.queued.push_front(item);
                    break;
                }
            }
        }
        state.ready = false;
        Taken { bytes: before - state.queued_bytes, left_bytes: state.queued_bytes, left_records: state.queued.len() }
    }

    pub(super) fn keep_ready(&self) {
        self.state().ready = true;
    }

    /// Delivers outcomes; with items left the lane is ready again.
    pub(super) fn settle(&self, outcomes: impl Iterator<Item = Outcome>) -> Option<Left> {
        let mut state = self.state();
        let before = state.outcomes.len();
        state.outcomes.extend(outcomes);
        let came = state.outcomes.len() - before;
        if state.abandoned {
            state.outcomes.clear();
        }
        state.unanswered -= came;
        state.busy = false;
        let left = (!state.queued.is_empty()).then(|| {
            state.ready = true;
            Left { bytes: state.queued_bytes, records: state.queued.len() }
        });
        drop(state);
        self.waker.wake();
        left
    }

    /// Delivers failures, and fails what is queued and what will be. Gives the bytes that were queued.
    pub(super) fn break_off(&self, outcomes: impl Iterator<Item = Outcome>, error: &Error) -> usize {
        self.settle(outcomes);
        let mut state = self.state();
        state.ready = false;
        state.broken = Some(error.clone());
        let queued = std::mem::take(&mut state.queued);
        state.unanswered -= queued.len();
        if !state.abandoned {
            state.outcomes.extend(queued.iter().map(|item| Outcome { tag: item.tag, result: Err(error.clone()) }));
        }
        let bytes = std::mem::take(&mut state.queued_bytes);
        drop(state);
        self.waker.wake();
        bytes
    }

    pub(super) fn abandon(&self) -> Dropped {
        let mut state = self.state();
        state.abandoned = true;
        state.outcomes.clear();
        let records = state.queued.len();
        let bytes = std::mem::take(&mut state.queued_bytes);
        state.queued.clear();
        state.unanswered -= records;
        Dropped { bytes, records, was_ready: state.ready }
    }
}
