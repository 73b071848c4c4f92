//! A watch that outlives its connection.
//!
//! It knows the next revision that it owes, so after a fault it is created anew from there, on whichever endpoint answers:
//! nothing is left out and nothing comes twice. etcd is asked for progress notices, so the position of a watch on a quiet range
//! moves on too, and a compaction does not overtake it. Where one has (nobody could be reached while history went), the watch
//! ends with `COMPACTED`: what was missed cannot be told any more, and whoever watches reads the range again.
//!
//! Its memory is bounded by one message of etcd's (64 MiB) and what HTTP/2 lets come unread; a watcher that does not ask makes
//! etcd wait, not us.

use std::{sync::Arc, time::Duration};

use buttress_core::{
    BoxFuture, Code, Error, Revision,
    ledger::{KeyEvent, KeyWatch, Watch, WatchEvent, WatchItem, WatchOptions},
};
use buttress_etcd_proto::{
    client::Channel,
    etcdserverpb::{
        self as pb, watch_client::WatchClient, watch_create_request::FilterType, watch_request::RequestUnion,
    },
    mvccpb::event::EventType,
};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{
    RESPONSE_BYTES_MAX,
    convert::{self, Namespace, number},
    endpoints::{ATTEMPT_MAX, Endpoints, Fault},
};
use crate::{
    patience::Patience,
    secure::{Dial, Trouble},
};

/// How long a watch looks for somebody who answers before it says so.
const SEARCH_MAX: Duration = Duration::from_secs(60);

pub(super) struct EtcdWatch {
    endpoints: Arc<Endpoints>,
    ns: Namespace,
    options: WatchOptions,
    /// The first revision that was not given yet; `None` before etcd has said which that is.
    next: Option<Revision>,
    stream: Option<Open>,
    /// Parts of a revision that came in several messages, and the last revision that was in them.
    parts: Vec<WatchEvent>,
    last: Revision,
    /// Where history begins, once it was found to begin behind what is wanted.
    compacted: Option<Revision>,
}

struct Open {
    at: usize,
    /// etcd ends the watch when the requests end.
    _requests: futures::channel::mpsc::UnboundedSender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

/// Why a watch was not created.
enum NotCreated {
    /// Nothing that a watcher need hear of: it is tried again.
    Again(String),
    Final(Error),
}

impl EtcdWatch {
    /// Begins to watch; what happens after this is seen.
    ///
    /// # Errors
    /// Nobody answers, or takes us.
    pub(super) async fn start(endpoints: Arc<Endpoints>, ns: Namespace, options: WatchOptions) -> Result<Self, Error> {
        let next = options.from;
        let (parts, last) = (Vec::new(), Revision(0));
        let mut watch = Self { endpoints, ns, options, next, stream: None, parts, last, compacted: None };
        let deadline = watch.endpoints.deadline;
        watch.open(deadline).await?;
        Ok(watch)
    }

    async fn open(&mut self, within: Duration) -> Result<(), Error> {
        let mut patience = Patience::new(within);
        loop {
            let why = match self.endpoints.channel().await {
                Ok((at, channel, trouble)) => match timeout(ATTEMPT_MAX, self.create(at, channel, trouble)).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(NotCreated::Final(error))) => return Err(error),
                    Ok(Err(NotCreated::Again(why))) => why,
                    Err(_) => {
                        self.endpoints.leave(at);
                        format!("no answer in {ATTEMPT_MAX:?}")
                    }
                },
                Err(Dial::Refused(error)) => return Err(error),
                Err(Dial::Unreachable(why)) => why,
            };
            if !patience.pause().await {
                return Err(convert::fault(&Fault::Open(why)));
            }
        }
    }

    async fn failed(&self, at: usize, trouble: &Trouble, status: &Status) -> NotCreated {
        use tonic::Code as Grpc;
        if self.endpoints.is_stale(status) {
            self.endpoints.forget(at);
            return NotCreated::Again(status.message().to_owned());
        }
        self.endpoints.leave(at);
        match (self.endpoints.refusal(at, trouble).await, status.code()) {
            (Some(error), _) => NotCreated::Final(error),
            (None, Grpc::PermissionDenied | Grpc::Unauthenticated | Grpc::InvalidArgument | Grpc::Unimplemented) => {
                NotCreated::Final(convert::error(status))
            }
            (None, _) => NotCreated::Again(format!("the watch was not created: {}", status.message())),
        }
    }

    /// Creates the watch on this connection.
    async fn create(&mut self, at: usize, channel: Channel, trouble: Trouble) -> Result<(), NotCreated> {
        let (key, range_end) = self.ns.range(&self.options.range);
        let mut filters = Vec::new();
        filters.extend(self.options.no_put.then_some(FilterType::Noput as i32));
        filters.extend(self.options.no_delete.then_some(FilterType::Nodelete as i32));
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: self.next.map_or(0, number),
            progress_notify: true,
            fragment: true,
            filters,
            prev_kv: self.options.prev_kv,
            ..Default::default()
        };
        let (requests, asked) = futures::channel::mpsc::unbounded();
        let first = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.unbounded_send(first).map_err(|_| NotCreated::Again("the watch was not asked for".into()))?;
        let mut client = WatchClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
        let mut answers = match client.watch(asked).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Err(self.failed(at, &trouble, &status).await),
        };
        let created = match answers.message().await {
            Ok(created) => created,
            Err(status) => return Err(self.failed(at, &trouble, &status).await),
        };
        let created = created.ok_or_else(|| {
            self.endpoints.leave(at);
            NotCreated::Again("the watch ended before it began".into())
        })?;
        if created.canceled {
            if created.compact_revision > 0 {
                self.compacted = Some(convert::revision(created.compact_revision));
                return Ok(());
            }
            return Err(NotCreated::Final(ended(&created.cancel_reason)));
        }
        let now = created.header.map_or(0, |header| header.revision);
        self.next.get_or_insert(Revision(now.max(0) as u64 + 1));
        self.parts.clear();
        self.last = Revision(0);
        self.stream = Some(Open { at, _requests: requests, answers });
        Ok(())
    }

    /// What comes next. Dropping the future loses nothing.
    async fn advance(&mut self) -> Result<WatchItem, Error> {
        loop {
            if let Some(compacted) = self.compacted {
                return Ok(WatchItem::Compacted { compacted });
            }
            let Some(open) = &mut self.stream else {
                self.open(SEARCH_MAX).await?;
                continue;
            };
            let message = match open.answers.message().await {
                Ok(Some(message)) => message,
                Ok(None) | Err(_) => {
                    let at = open.at;
                    self.stream = None;
                    self.endpoints.leave(at);
                    continue;
                }
            };
            if message.canceled {
                self.stream = None;
                if message.compact_revision > 0 {
                    self.compacted = Some(convert::revision(message.compact_revision));
                    continue;
                }
                return Err(ended(&message.cancel_reason));
            }
            let next = self.next.unwrap_or_default();
            for event in &message.events {
                let Some(kv) = &event.kv else { continue };
                let revision = convert::revision(kv.mod_revision);
                self.last = self.last.max(revision);
                // A watch that was created anew begins where it should; this holds whatever is on the other side.
                if revision < next {
                    continue;
                }
                if let Some(kv) = self.ns.kv(kv) {
                    let prev = event.prev_kv.as_ref().and_then(|kv| self.ns.kv(kv));
                    self.parts.push(WatchEvent { kv, deleted: event.r#type() == EventType::Delete, prev });
                }
            }
            if message.fragment {
                continue;
            }
            // Without events it is a notice of progress: everything up to the header's revision was sent.
            let seen = match message.events.is_empty() {
                true => message.header.map_or(Revision(0), |header| convert::revision(header.revision)),
                false => self.last,
            };
            let next = next.max(Revision(seen.0 + 1));
            self.next = Some(next);
            return Ok(WatchItem::Events {
                events: std::mem::take(&mut self.parts),
                revision: Revision(next.0.saturating_sub(1)),
            });
        }
    }
}

/// Why etcd has ended a watch.
fn ended(reason: &str) -> Error {
    let said = format!("etcd has ended the watch: {reason}");
    if reason.contains("permission denied") {
        return Error::new(Code::FORBIDDEN, said)
            .hint("give the user's role read on the range: etcdctl role grant-permission --prefix");
    }
    if reason.contains("auth token") || reason.contains("user name") {
        return Error::new(Code::CREDENTIALS, said).hint("check the user and the password");
    }
    Error::new(Code::UNREACHABLE, said).retryable()
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeyEvent>>, Error>> {
        Box::pin(async {
            loop {
                match self.advance().await? {
                    WatchItem::Events { events, .. } if events.is_empty() => {}
                    WatchItem::Events { events, .. } => {
                        let event = |WatchEvent { kv, deleted, .. }: WatchEvent| KeyEvent {
                            revision: kv.mod_revision,
                            key: kv.key,
                            value: (!deleted).then_some(kv.value),
                        };
                        return Ok(Some(events.into_iter().map(event).collect()));
                    }
                    WatchItem::Compacted { compacted } => {
                        let wanted = self.next.unwrap_or_default();
                        let message =
                            format!("the history of keys from revision {wanted} is gone, it begins at {compacted}");
                        return Err(Error::new(Code::COMPACTED, message)
                            .hint("read the range again, and watch from the revision of that read"));
                    }
                }
            }
        })
    }
}

impl KeyWatch for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<WatchItem>, Error>> {
        Box::pin(async { self.advance().await.map(Some) })
    }

    fn position(&self) -> Revision {
        self.next.unwrap_or_default()
    }
}
