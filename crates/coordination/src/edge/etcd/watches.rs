//! A stream of watches.
//!
//! What a client is owed: every change of its range from the wanted revision on, once, in the order of revisions, all
//! changes of a revision in one answer (or in fragments of one, where it asked for those); its answers to creating and
//! cancelling in their order; and a progress answer only after everything up to the revision that it names. When
//! history is gone from under a watch, it is cancelled with the revision from which there is one.
//!
//! A watch is *live* where its position is in the ring of latest events (`feed.rs`): then all watches of a stream move
//! together, and a turn looks at a piece of the ring once for all of them. A watch that wants history, or whose client
//! reads too slowly, is *behind*: it reads from the store, one watch of a stream at a time, until it has come up to the
//! live ones.
//!
//! The stream is pulled: nothing is read or encoded before the transport asks for more, so a client that does not read
//! costs its positions and at most one piece of the ring.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use buttress_core::{
    Consistency, Error, KeyRange, Revision,
    ledger::{KeyWatch, KeysView, WatchItem, WatchOptions},
};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, Stream, StreamExt, future, stream::BoxStream};
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::{
    Etcd, convert, error,
    feed::{self, Group, Read, Subscription},
};
use crate::pb::etcdserverpb::{self as pb, watch_request::RequestUnion};

/// A new watch waits so long for the leader to say what was committed before it.
const PRESENT_WITHIN: Duration = Duration::from_secs(1);
/// Watches of one stream; each costs its range and about 200 bytes.
const WATCHES_PER_STREAM_MAX: usize = 16 * 1024;
/// About as much of the ring is looked at in one turn, and of the store's events put into one answer. Clients with
/// gRPC's default limit take 4 MiB.
const TURN_BYTES: usize = 512 * 1024;
/// Answers of watches that take fragments are split so that they stay below this: etcd's request limit and 512 KiB.
const FRAGMENT_BYTES: usize = convert::REQUEST_BYTES_MAX + 512 * 1024;
/// The id of an answer that belongs to no watch, or to all.
const NO_WATCH: i64 = -1;
/// A stream whose client requires a leader ends after so many seconds without one.
const LEADERLESS_SECONDS_MAX: u32 = 3;

struct Watching {
    range: KeyRange,
    /// Changes before this are not for it.
    from: Revision,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    fragment: bool,
    progress_notify: bool,
    /// It heard something since the last progress tick.
    heard: bool,
    live: bool,
}

impl Watching {
    fn wants(&self, deleted: bool) -> bool {
        if deleted { !self.no_delete } else { !self.no_put }
    }
}

/// The live watches of one feed.
struct Live {
    subscription: Subscription,
    /// All of them have heard everything below this.
    at: Revision,
    keys: HashMap<Bytes, BTreeSet<i64>>,
    ranges: BTreeMap<i64, KeyRange>,
}

impl Live {
    fn insert(&mut self, id: i64, range: &KeyRange) {
        match range.to {
            None => {
                self.keys.entry(range.from.clone()).or_default().insert(id);
            }
            Some(_) => {
                self.ranges.insert(id, range.clone());
            }
        }
    }

    fn remove(&mut self, id: i64, range: &KeyRange) {
        self.ranges.remove(&id);
        if range.to.is_none()
            && let Some(ids) = self.keys.get_mut(&range.from)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.keys.remove(&range.from);
            }
        }
    }

    fn ids(&self) -> impl Iterator<Item = i64> {
        self.ranges.keys().copied().chain(self.keys.values().flatten().copied())
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }
}

/// Something to say.
enum Reply {
    Control(pb::WatchResponse),
    /// Events of these groups, for this watch.
    Events(i64, Arc<Vec<Arc<Group>>>),
    Encoded(Bytes),
}

type CaughtUp = (i64, Box<dyn KeyWatch>, Result<Option<WatchItem>, Error>);

/// A watch that is behind: from where on, or already reading.
enum Behind {
    From(i64, Revision),
    Reading(i64, Box<dyn KeyWatch>),
}

struct Session {
    etcd: Arc<Etcd>,
    requests: BoxStream<'static, Result<pb::WatchRequest, Status>>,
    requests_ended: bool,
    watches: BTreeMap<i64, Watching>,
    next_id: i64,
    /// Without and with what keys were before.
    live: [Option<Live>; 2],
    behind: VecDeque<Behind>,
    catching_up: Option<Pin<Box<dyn Future<Output = CaughtUp> + Send>>>,
    out: VecDeque<Reply>,
    /// The client wants to hear when everything up to here was said.
    progress_wanted: Option<Revision>,
    progress_ticks: tokio::time::Interval,
    /// Ticks where the client requires a leader, and how often there was none.
    leader_ticks: Option<(tokio::time::Interval, u32)>,
}

/// What woke the stream.
enum Woken {
    Request(Option<Result<pb::WatchRequest, Status>>),
    CaughtUp(CaughtUp),
    Moved,
    ProgressTick,
    LeaderTick,
    Stopped,
}

impl Etcd {
    /// Serves one stream; answers are encoded messages.
    pub(super) fn watch_stream(
        self: &Arc<Self>,
        requests: BoxStream<'static, Result<pb::WatchRequest, Status>>,
        requires_leader: bool,
    ) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
        let interval = self.options.progress_interval;
        let second = Duration::from_secs(1);
        let start = |every| tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        let session = Session {
            etcd: self.clone(),
            requests,
            requests_ended: false,
            watches: BTreeMap::new(),
            next_id: 0,
            live: [None, None],
            behind: VecDeque::new(),
            catching_up: None,
            out: VecDeque::new(),
            progress_wanted: None,
            progress_ticks: start(interval),
            leader_ticks: requires_leader.then(|| (start(second), 0)),
        };
        futures::stream::try_unfold(session, |mut session| async move {
            let answer = session.next().await?;
            Ok(Some((answer, session)))
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.etcd.counters.watches.fetch_sub(self.watches.len() as u64, Ordering::Relaxed);
    }
}

impl Session {
    async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            if let Some(reply) = self.out.pop_front() {
                match self.encode(reply) {
                    Some(bytes) => return Ok(bytes),
                    None => continue,
                }
            }
            // One of each at a time, so that neither requests nor those behind starve where much happens.
            if !self.requests_ended
                && let Some(request) = self.requests.next().now_or_never()
            {
                self.take(request).await?;
            }
            self.start_catching_up().await?;
            if let Some(caught) = self.catching_up.as_mut().and_then(|reading| reading.now_or_never()) {
                self.caught_up(caught)?;
            }
            let mut moved = false;
            for prev_kv in [false, true] {
                moved |= self.turn(prev_kv)?;
            }
            moved |= self.answer_progress();
            if moved || !self.out.is_empty() {
                continue;
            }
            match self.woken().await {
                Woken::Request(request) => self.take(request).await?,
                Woken::CaughtUp(caught) => self.caught_up(caught)?,
                Woken::Moved => {}
                Woken::ProgressTick => self.notify_progress(),
                Woken::LeaderTick => self.check_leader()?,
                Woken::Stopped => return Err(error::STOPPED.into()),
            }
        }
    }

    async fn woken(&mut self) -> Woken {
        async fn past(live: &mut Option<Live>) {
            match live {
                Some(live) => live.subscription.past(live.at).await,
                None => future::pending().await,
            }
        }
        let Self { requests, live, catching_up, leader_ticks, progress_ticks, etcd, .. } = self;
        let [plain, with_prev] = live;
        let caught_up = async {
            match catching_up {
                Some(reading) => reading.await,
                None => future::pending().await,
            }
        };
        let leader_tick = async {
            match leader_ticks {
                Some((ticks, _)) => ticks.tick().await,
                None => future::pending().await,
            }
        };
        let mut stopping = etcd.stopping.clone();
        tokio::select! {
            request = requests.next(), if !self.requests_ended => Woken::Request(request),
            caught = caught_up => Woken::CaughtUp(caught),
            () = past(plain) => Woken::Moved,
            () = past(with_prev) => Woken::Moved,
            _ = progress_ticks.tick() => Woken::ProgressTick,
            _ = leader_tick => Woken::LeaderTick,
            _ = stopping.wait_for(|stop| *stop) => Woken::Stopped,
        }
    }

    async fn take(&mut self, request: Option<Result<pb::WatchRequest, Status>>) -> Result<(), Status> {
        let Some(request) = request.transpose()? else {
            // The client has nothing more to ask, and goes on listening.
            self.requests_ended = true;
            return Ok(());
        };
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })) => {
                if self.forget(watch_id) {
                    let revision = now(&self.etcd).await?;
                    self.control(pb::WatchResponse { watch_id, canceled: true, ..self.answer(revision) });
                }
                Ok(())
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                let now = now(&self.etcd).await?;
                self.progress_wanted = self.progress_wanted.max(Some(now));
                Ok(())
            }
            // As in etcd, what says nothing is no reason to end the stream.
            None => Ok(()),
        }
    }

    fn answer(&self, revision: Revision) -> pb::WatchResponse {
        pb::WatchResponse { header: self.etcd.header(revision), ..pb::WatchResponse::default() }
    }

    fn control(&mut self, response: pb::WatchResponse) {
        self.out.push_back(Reply::Control(response));
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> Result<(), Status> {
        use pb::watch_create_request::FilterType;
        // An empty key is the smallest one.
        let key = if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key.clone() };
        let range = convert::key_range(key, request.range_end.clone());
        // Subscribed before the revision is asked for, so that the feed has what comes after it.
        let live = &mut self.live[usize::from(request.prev_kv)];
        if live.is_none() {
            let subscription = self.etcd.feeds.subscribe(request.prev_kv).await.map_err(|e| error::status(&e))?;
            let at = subscription.next().ok_or(error::STOPPED)?;
            *live = Some(Live { subscription, at, keys: HashMap::new(), ranges: BTreeMap::new() });
        }
        let KeysView { revision: now, compacted, .. } = present(&self.etcd).await?;
        let refused = if request.start_revision < 0 {
            Some(error::COMPACTED.text)
        } else if range.to.as_ref().is_some_and(|to| !to.is_empty() && range.from >= *to) {
            Some(error::EMPTY_WATCH_RANGE)
        } else if request.watch_id != 0 && self.watches.contains_key(&request.watch_id) {
            Some(error::DUPLICATE_WATCH_ID)
        } else if self.watches.len() >= WATCHES_PER_STREAM_MAX {
            Some(error::TOO_MANY_REQUESTS.text)
        } else {
            None
        };
        if let Some(reason) = refused {
            self.control(pb::WatchResponse {
                watch_id: NO_WATCH,
                created: true,
                canceled: true,
                cancel_reason: reason.to_owned(),
                ..self.answer(now)
            });
            return Ok(());
        }
        let id = match request.watch_id {
            0 => {
                while self.watches.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id => id,
        };
        let from = convert::revision(request.start_revision).unwrap_or(Revision(now.0 + 1));
        let filters: Vec<_> = request.filters().collect();
        self.watches.insert(
            id,
            Watching {
                range: range.clone(),
                from,
                prev_kv: request.prev_kv,
                no_put: filters.contains(&FilterType::Noput),
                no_delete: filters.contains(&FilterType::Nodelete),
                fragment: request.fragment,
                progress_notify: request.progress_notify,
                heard: false,
                live: false,
            },
        );
        self.etcd.counters.watches.fetch_add(1, Ordering::Relaxed);
        self.control(pb::WatchResponse { watch_id: id, created: true, ..self.answer(now) });
        if from < compacted {
            // The ring may still have it, but not for long: a client hears at once that it must begin elsewhere.
            self.end_by_compaction(id, now, compacted);
        } else {
            self.join_or_fall_behind(id, from);
        }
        Ok(())
    }

    /// Ends a watch whose next changes were compacted away.
    fn end_by_compaction(&mut self, id: i64, now: Revision, compacted: Revision) {
        self.forget(id);
        self.control(pb::WatchResponse {
            watch_id: id,
            canceled: true,
            compact_revision: convert::number(compacted),
            ..self.answer(now.max(compacted))
        });
    }

    /// Puts a watch that has heard everything below `position` among the live ones, if those are not further.
    fn join_or_fall_behind(&mut self, id: i64, position: Revision) -> bool {
        let watching = self.watches.get_mut(&id).expect("the caller holds its id");
        let live = self.live[usize::from(watching.prev_kv)].as_mut().expect("subscribed when it was created");
        watching.from = watching.from.max(position);
        if live.is_empty() && position < live.at {
            // Nobody else is bound to where the live ones are, and the ring may have this position too.
            live.at = match live.subscription.feed.read(position, 0) {
                Read::Groups(..) => position,
                Read::Behind(next) => next,
            };
        }
        watching.live = position >= live.at;
        if watching.live {
            live.insert(id, &watching.range);
        } else {
            self.behind.push_back(Behind::From(id, position));
        }
        watching.live
    }

    /// Ends a watch; tells whether there was one.
    fn forget(&mut self, id: i64) -> bool {
        let Some(watching) = self.watches.remove(&id) else { return false };
        if let Some(live) = &mut self.live[usize::from(watching.prev_kv)] {
            live.remove(id, &watching.range);
        }
        // One that is behind is dropped when its turn comes.
        self.etcd.counters.watches.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Looks at the next piece of a feed for all live watches; tells whether there was any.
    fn turn(&mut self, prev_kv: bool) -> Result<bool, Status> {
        let Some(live) = &mut self.live[usize::from(prev_kv)] else { return Ok(false) };
        let next = live.subscription.next().ok_or(error::STOPPED)?;
        if live.at >= next {
            return Ok(false);
        }
        match live.subscription.feed.read(live.at, TURN_BYTES) {
            Read::Behind(next) => {
                let ids: Vec<i64> = live.ids().collect();
                self.etcd.counters.watches_behind.fetch_add(ids.len() as u64, Ordering::Relaxed);
                live.keys.clear();
                live.ranges.clear();
                for id in ids {
                    let watching = self.watches.get_mut(&id).expect("live watches are known");
                    watching.live = false;
                    // One that waits for a revision to come is not behind.
                    let position = watching.from.max(live.at);
                    if position >= next {
                        watching.live = true;
                        live.insert(id, &watching.range);
                    } else {
                        self.behind.push_back(Behind::From(id, position));
                    }
                }
                live.at = next;
            }
            Read::Groups(groups, next) => {
                live.at = next;
                let mut ids = BTreeSet::new();
                for event in groups.iter().flat_map(|group| &group.events) {
                    ids.extend(live.keys.get(&event.key).into_iter().flatten());
                    let matching = live.ranges.iter().filter(|(_, range)| range.contains(&event.key));
                    ids.extend(matching.map(|(id, _)| *id));
                }
                let groups = Arc::new(groups);
                self.out.extend(ids.into_iter().map(|id| Reply::Events(id, groups.clone())));
            }
        }
        Ok(true)
    }

    async fn start_catching_up(&mut self) -> Result<(), Status> {
        while self.catching_up.is_none() {
            let Some(behind) = self.behind.pop_front() else { return Ok(()) };
            let (id, mut watch) = match behind {
                Behind::Reading(id, watch) => (id, watch),
                Behind::From(id, position) => {
                    let Some(watching) = self.watches.get(&id).filter(|watching| !watching.live) else { continue };
                    let options = WatchOptions {
                        range: watching.range.clone(),
                        from: Some(position),
                        prev_kv: watching.prev_kv,
                        no_put: watching.no_put,
                        no_delete: watching.no_delete,
                    };
                    (id, self.etcd.ledger.watch_with(options).await.map_err(|e| error::status(&e))?)
                }
            };
            self.catching_up = Some(Box::pin(async move {
                let item = watch.next().await;
                (id, watch, item)
            }));
        }
        Ok(())
    }

    fn caught_up(&mut self, (id, watch, item): CaughtUp) -> Result<(), Status> {
        self.catching_up = None;
        if self.watches.get(&id).is_none_or(|watching| watching.live) {
            return Ok(()); // Cancelled meanwhile.
        }
        match item.map_err(|e| error::status(&e))? {
            None => return Err(error::STOPPED.into()),
            Some(WatchItem::Compacted { compacted }) => {
                let now = self.etcd.cluster.view().revision;
                self.end_by_compaction(id, now, compacted);
            }
            Some(WatchItem::Events { events, revision }) => {
                let position = Revision(revision.0 + 1).max(watch.position());
                let mut piece: Vec<Arc<Group>> = Vec::new();
                let (mut bytes, mut line) = (0, 0);
                let groups = feed::groups(events);
                let last = groups.len().saturating_sub(1);
                for (at, group) in groups.into_iter().enumerate() {
                    bytes += group.bytes;
                    piece.push(Arc::new(group));
                    if bytes >= TURN_BYTES || at == last {
                        let messages = self.messages(id, &piece);
                        line += messages.iter().map(Bytes::len).sum::<usize>();
                        self.out.extend(messages.into_iter().map(Reply::Encoded));
                        piece.clear();
                        bytes = 0;
                    }
                }
                self.etcd.counters.watch_line_bytes_max.fetch_max(line as u64, Ordering::Relaxed);
                let watching = self.watches.get_mut(&id).expect("looked up above");
                watching.heard |= last > 0 || !self.out.is_empty();
                watching.from = watching.from.max(position);
                let prev_kv = self.watches[&id].prev_kv;
                let live_at = self.live[usize::from(prev_kv)].as_ref().map_or(Revision(0), |live| live.at);
                if position >= live_at {
                    self.join_or_fall_behind(id, position);
                } else {
                    self.behind.push_back(Behind::Reading(id, watch));
                }
            }
        }
        Ok(())
    }

    fn encode(&mut self, reply: Reply) -> Option<Bytes> {
        match reply {
            Reply::Encoded(bytes) => Some(bytes),
            Reply::Control(response) => Some(response.encode_to_vec().into()),
            Reply::Events(id, groups) => {
                let mut messages = self.messages(id, &groups).into_iter();
                let first = messages.next()?;
                self.watches.get_mut(&id).expect("it had messages").heard = true;
                // Fragments of one answer follow one another.
                messages.rev().for_each(|message| self.out.push_front(Reply::Encoded(message)));
                Some(first)
            }
        }
    }

    /// The answer that has what a watch wants of these groups; none where that is nothing, several where it takes
    /// fragments.
    fn messages(&self, id: i64, groups: &[Arc<Group>]) -> Vec<Bytes> {
        let (Some(watching), Some(last)) = (self.watches.get(&id), groups.last()) else { return Vec::new() };
        let groups = groups.iter().filter(|group| group.revision >= watching.from);
        let wanted = groups
            .flat_map(|group| &group.events)
            .filter(|event| watching.wants(event.deleted) && watching.range.contains(&event.key));
        let mut fragments: Vec<(Vec<&Bytes>, usize)> = Vec::new();
        let mut count = 0;
        for event in wanted {
            count += 1;
            match fragments.last_mut() {
                Some((events, bytes)) if !watching.fragment || *bytes + event.bytes.len() <= FRAGMENT_BYTES => {
                    events.push(&event.bytes);
                    *bytes += event.bytes.len();
                }
                _ => fragments.push((vec![&event.bytes], event.bytes.len())),
            }
        }
        self.etcd.counters.events_sent.fetch_add(count, Ordering::Relaxed);
        let total = fragments.len();
        let encode = |(at, (events, bytes)): (usize, (Vec<&Bytes>, usize))| {
            let head = pb::WatchResponse { watch_id: id, fragment: at + 1 < total, ..self.answer(last.revision) };
            let mut message = BytesMut::with_capacity(head.encoded_len() + bytes);
            head.encode(&mut message).expect("the buffer grows");
            // `events` is the field with the highest number, and each event is encoded with its tag.
            events.into_iter().for_each(|event| message.extend_from_slice(event));
            message.freeze()
        };
        fragments.into_iter().enumerate().map(encode).collect()
    }

    /// Answers a request for progress once everything up to its revision was said; tells whether it did.
    fn answer_progress(&mut self) -> bool {
        let Some(wanted) = self.progress_wanted else { return false };
        let busy = !self.out.is_empty() || !self.behind.is_empty() || self.catching_up.is_some();
        let reached = |live: &Live| live.is_empty() || live.at > wanted;
        if busy || !self.live.iter().flatten().all(reached) {
            return false;
        }
        let positions = self.live.iter().flatten().filter(|live| !live.is_empty()).map(|live| live.at.0 - 1);
        let revision = Revision(positions.min().unwrap_or(wanted.0).max(wanted.0));
        self.progress_wanted = None;
        self.control(pb::WatchResponse { watch_id: NO_WATCH, ..self.answer(revision) });
        true
    }

    /// Tells the watches that asked for it, and heard nothing since the last time, how far they are.
    fn notify_progress(&mut self) {
        let mut quiet = Vec::new();
        for (id, watching) in &mut self.watches {
            let live = self.live[usize::from(watching.prev_kv)].as_ref();
            if watching.progress_notify
                && watching.live
                && !watching.heard
                && let Some(live) = live
            {
                quiet.push((*id, Revision(live.at.0 - 1)));
            }
            watching.heard = false;
        }
        for (watch_id, revision) in quiet {
            self.control(pb::WatchResponse { watch_id, ..self.answer(revision) });
        }
    }

    fn check_leader(&mut self) -> Result<(), Status> {
        let Some((_, without)) = &mut self.leader_ticks else { return Ok(()) };
        *without = if self.etcd.cluster.view().leader.is_some() { 0 } else { *without + 1 };
        if *without >= LEADERLESS_SECONDS_MAX { Err(error::NO_LEADER.into()) } else { Ok(()) }
    }
}

/// The revision that this node has applied.
async fn now(etcd: &Etcd) -> Result<Revision, Status> {
    let keys = etcd.ledger.keys(Consistency::Serializable).await.map_err(|e| error::status(&e))?;
    Ok(keys.revision)
}

/// The revision that a watch begins to look at: what was acknowledged on any node before, this node has applied then. So a
/// change of before is no news, and a compaction of before is known. Where no leader says so in time, it is what this node
/// has applied.
async fn present(etcd: &Etcd) -> Result<KeysView, Status> {
    if etcd.cluster.view().leader.is_some() {
        let barrier = etcd.ledger.keys(Consistency::Linearizable);
        if let Ok(Ok(keys)) = tokio::time::timeout(PRESENT_WITHIN, barrier).await {
            return Ok(keys);
        }
    }
    etcd.ledger.keys(Consistency::Serializable).await.map_err(|e| error::status(&e))
}

/// Requests are decoded, answers are encoded already.
#[derive(Default)]
pub(super) struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Bytes;
    type Decode = pb::WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self
    }
}

impl Encoder for WatchCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for WatchCodec {
    type Item = pb::WatchRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<pb::WatchRequest>, Status> {
        pb::WatchRequest::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
