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
    BoxFuture, Code, Error, KeyRange, Revision,
    ledger::{KeyEvent, Watch},
};
use buttress_etcd_proto::etcdserverpb::{self as pb, watch_client::WatchClient, watch_request::RequestUnion};
use tokio::time::timeout;
use tonic::Streaming;

use super::{
    RESPONSE_BYTES_MAX,
    convert::{self, Namespace, number},
    endpoints::{ATTEMPT_MAX, Endpoints, Fault},
};
use crate::patience::Patience;

/// How long a watch looks for somebody who answers before it says so.
const SEARCH_MAX: Duration = Duration::from_secs(60);

pub(super) struct EtcdWatch {
    endpoints: Arc<Endpoints>,
    ns: Namespace,
    range: KeyRange,
    /// The first revision that was not given yet; `None` before etcd has said which that is.
    next: Option<Revision>,
    stream: Option<Open>,
    /// Parts of a revision that came in several messages.
    parts: Vec<KeyEvent>,
}

struct Open {
    at: usize,
    /// etcd ends the watch when the requests end.
    _requests: futures::channel::mpsc::UnboundedSender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl EtcdWatch {
    /// Begins to watch; what happens after this is seen.
    ///
    /// # Errors
    /// `COMPACTED`, or nobody answers.
    pub(super) async fn start(
        endpoints: Arc<Endpoints>,
        ns: Namespace,
        range: KeyRange,
        from: Option<Revision>,
    ) -> Result<Self, Error> {
        let mut watch = Self { endpoints, ns, range, next: from, stream: None, parts: Vec::new() };
        let deadline = watch.endpoints.deadline;
        watch.open(deadline).await?;
        Ok(watch)
    }

    async fn open(&mut self, within: Duration) -> Result<(), Error> {
        let mut patience = Patience::new(within);
        loop {
            let why = match self.endpoints.channel().await {
                Ok((at, channel)) => match timeout(ATTEMPT_MAX, self.create(at, channel)).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(Some(error))) => return Err(error),
                    Ok(Err(None)) => {
                        self.endpoints.leave(at);
                        "the watch was not created".to_owned()
                    }
                    Err(_) => {
                        self.endpoints.leave(at);
                        format!("no answer in {ATTEMPT_MAX:?}")
                    }
                },
                Err(why) => why,
            };
            if !patience.pause().await {
                return Err(convert::fault(&Fault::Open(why)));
            }
        }
    }

    /// Creates the watch on this connection. An error of `None` is worth another try.
    async fn create(&mut self, at: usize, channel: buttress_etcd_proto::client::Channel) -> Result<(), Option<Error>> {
        let (key, range_end) = self.ns.range(&self.range);
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: self.next.map_or(0, number),
            progress_notify: true,
            fragment: true,
            ..Default::default()
        };
        let (requests, asked) = futures::channel::mpsc::unbounded();
        let first = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.unbounded_send(first).map_err(again)?;
        let mut client = WatchClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
        let answers = client.watch(asked).await.map_err(again)?;
        let mut answers = answers.into_inner();
        let created = answers.message().await.map_err(again)?.ok_or(None::<Error>)?;
        if created.canceled {
            return Err(Some(ended(&created, self.next)));
        }
        let now = created.header.map_or(0, |header| header.revision);
        self.next.get_or_insert(Revision(now.max(0) as u64 + 1));
        self.parts.clear();
        self.stream = Some(Open { at, _requests: requests, answers });
        Ok(())
    }

    async fn advance(&mut self) -> Result<Option<Vec<KeyEvent>>, Error> {
        loop {
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
                return Err(ended(&message, self.next));
            }
            let next = self.next.unwrap_or_default();
            let mut last = Revision(0);
            for event in &message.events {
                let Some(kv) = &event.kv else { continue };
                let revision = convert::revision(kv.mod_revision);
                last = last.max(revision);
                // A watch that was created anew begins where it should; this holds whatever is on the other side.
                if revision < next {
                    continue;
                }
                if let Some(key) = self.ns.strip(&kv.key) {
                    let deleted = event.r#type() == buttress_etcd_proto::mvccpb::event::EventType::Delete;
                    self.parts.push(KeyEvent { revision, key, value: (!deleted).then(|| kv.value.clone()) });
                }
            }
            if message.fragment {
                continue;
            }
            // Without events it is a notice of progress: everything up to the header's revision was sent.
            let seen = match message.events.is_empty() {
                true => message.header.map_or(Revision(0), |header| convert::revision(header.revision)),
                false => last,
            };
            self.next = Some(next.max(Revision(seen.0 + 1)));
            if !self.parts.is_empty() {
                return Ok(Some(std::mem::take(&mut self.parts)));
            }
        }
    }
}

/// Nothing that a watcher need hear of: it is tried again.
fn again<E>(_: E) -> Option<Error> {
    None
}

/// Why etcd has ended a watch.
fn ended(message: &pb::WatchResponse, next: Option<Revision>) -> Error {
    if message.compact_revision > 0 {
        let wanted = next.unwrap_or_default();
        let message =
            format!("the history of keys from revision {wanted} is gone, it begins at {}", message.compact_revision);
        return Error::new(Code::COMPACTED, message)
            .hint("read the range again, and watch from the revision of that read");
    }
    let reason = &message.cancel_reason;
    if reason.contains("permission denied") || reason.contains("auth token") {
        return Error::new(Code::CONFIG, format!("etcd has ended the watch: {reason}"));
    }
    Error::new(Code::UNREACHABLE, format!("etcd has ended the watch: {reason}")).retryable()
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeyEvent>>, Error>> {
        Box::pin(self.advance())
    }
}
