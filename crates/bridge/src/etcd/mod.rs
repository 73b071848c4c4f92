//! The ledger on an etcd that the user runs: keys, guards, leases, watches. `scope()` is [`Scope::Keys`].
//!
//! Reads are linearizable or serializable as asked, and long ranges come in pages of one revision. Commits are in `submit.rs`,
//! how they can be repeated in `session.rs`, what happens when an endpoint fails in `endpoints.rs`.

mod convert;
mod endpoints;
mod session;
mod submit;
mod watch;

use std::{sync::Arc, time::Duration};

use buttress_core::{
    BoxFuture, Code, Consistency, Entry, Error, KeyRange, LeaseId, Ledger, RangeOp, RangeResult, Receipt, Revision,
    Scope, SubmitError,
    ledger::{KeyValues, LeaseView, Watch},
};
use buttress_etcd_proto::{
    client::Channel,
    etcdserverpb::{self as pb, kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient},
};
use bytes::Bytes;

use convert::{Namespace, number};
pub use endpoints::ENDPOINTS_MAX;
use endpoints::Endpoints;
pub use session::IN_FLIGHT_MAX;
use session::Sessions;
pub use submit::{TXN_BYTES_MAX, TXN_OPS_MAX};
use watch::EtcdWatch;

/// Keys of one page of a read. Sixteen values of the largest size would fill a response; usual ones come all at once.
const PAGE_KEYS: i64 = 1024;
/// The largest answer that is taken: a page of values of 64 KiB each.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Pages are read at one revision; how often a read starts over because that was compacted meanwhile.
const RESTARTS_MAX: usize = 3;
/// The oldest etcd that is known to do all of this.
const VERSION_MIN: (u32, u32) = (3, 5);

/// How an etcd is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// `http://HOST:PORT` of its members, [`ENDPOINTS_MAX`] at most; any of them will do.
    pub endpoints: Vec<String>,
    /// A prefix under which all keys lie; empty for none.
    pub namespace: String,
    /// How long a call is repeated before it is given up. Longer than an election, which takes an etcd a second or two.
    pub deadline: Duration,
}

impl Options {
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        Self { endpoints, namespace: String::new(), deadline: Duration::from_secs(20) }
    }
}

/// A ledger on an etcd.
pub struct EtcdLedger {
    endpoints: Arc<Endpoints>,
    ns: Namespace,
    sessions: Sessions,
}

/// The client of one connection.
fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX)
}

impl EtcdLedger {
    /// Connects to an etcd, and looks at its version.
    ///
    /// # Errors
    /// `CONFIG` for options that cannot be used, `UNREACHABLE`, `UNSUPPORTED` for an etcd that is too old.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let endpoints = Arc::new(Endpoints::new(&options.endpoints, options.deadline)?);
        let call = |channel| async move { MaintenanceClient::new(channel).status(pb::StatusRequest {}).await };
        let status = endpoints.call(call).await.map_err(|fault| {
            let error = convert::fault(&fault);
            let message = format!("no etcd can be reached at {}: {}", endpoints.addresses(), error.message);
            Error { message, ..error }
        })?;
        let version = status.into_inner().version;
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < VERSION_MIN {
            let message = format!("the etcd at {} is of version {version:?}", endpoints.addresses());
            return Err(Error::new(Code::UNSUPPORTED, message).hint("etcd 3.5 or newer is needed"));
        }
        let ns = Namespace(options.namespace.into_bytes().into());
        Ok(Self { endpoints, ns, sessions: Sessions::default() })
    }

    /// Gives back what this ledger holds in etcd, its request keys, at once instead of after a minute.
    pub async fn close(&self) {
        self.sessions.end(&self.endpoints).await;
    }

    async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        let call = |channel| {
            let request = request.clone();
            async move { kv(channel).range(request).await }
        };
        Ok(self.endpoints.call(call).await.map_err(|fault| convert::fault(&fault))?.into_inner())
    }

    /// Reads a range in pages, all of one revision.
    async fn pages(
        &self,
        range: KeyRange,
        limit: usize,
        consistency: Consistency,
        at: Option<Revision>,
    ) -> Result<KeyValues, Error> {
        'again: for restart in 0.. {
            let (mut key, range_end) = self.ns.range(&range);
            let mut all = KeyValues { revision: at.unwrap_or_default(), ..KeyValues::default() };
            let mut pinned = at;
            loop {
                let left = i64::try_from(limit - all.kvs.len()).unwrap_or(i64::MAX);
                let request = pb::RangeRequest {
                    key: key.clone(),
                    range_end: range_end.clone(),
                    limit: left.clamp(1, PAGE_KEYS),
                    revision: pinned.map_or(0, number),
                    serializable: consistency == Consistency::Serializable,
                    ..Default::default()
                };
                let page = match self.range(request).await {
                    Ok(page) => page,
                    Err(error) if error.code == Code::COMPACTED && at.is_none() && restart < RESTARTS_MAX => {
                        continue 'again;
                    }
                    Err(error) => return Err(error),
                };
                let now = page.header.map_or(0, |header| header.revision);
                if pinned.is_none() {
                    all.revision = convert::revision(now);
                    pinned = Some(all.revision);
                }
                let room = limit - all.kvs.len();
                all.kvs.extend(page.kvs.iter().filter_map(|kv| self.ns.kv(kv)).take(room));
                all.more = page.more;
                let Some(last) = page.kvs.last().filter(|_| page.more && all.kvs.len() < limit) else {
                    if limit == 0 {
                        all.more = !page.kvs.is_empty();
                    }
                    return Ok(all);
                };
                key = [&last.key[..], b"\0"].concat().into();
            }
        }
        unreachable!("the last restart returns")
    }
}

impl Ledger for EtcdLedger {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(self.carry_out(entry))
    }

    fn read(&self, range: KeyRange, limit: usize, consistency: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        Box::pin(self.pages(range, limit, consistency, None))
    }

    fn read_at(&self, range: KeyRange, limit: usize, at: Revision) -> BoxFuture<'_, Result<KeyValues, Error>> {
        Box::pin(self.pages(range, limit, Consistency::Linearizable, Some(at)))
    }

    fn state(&self, _: &str, _: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        Box::pin(async {
            let error = Error::new(Code::UNSUPPORTED, "etcd holds no state of functions");
            Err(error.hint("a function's state lies where its records do: in a Kafka, or in the embedded log"))
        })
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        Box::pin(async move {
            let watch = EtcdWatch::start(self.endpoints.clone(), self.ns.clone(), range, from).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn read_with(&self, op: RangeOp, consistency: Consistency) -> BoxFuture<'_, Result<RangeResult, Error>> {
        Box::pin(async move {
            let request = convert::range_request(&self.ns, &op, consistency == Consistency::Serializable);
            let answer = self.range(request).await?;
            let at = convert::revision(answer.header.as_ref().map_or(0, |header| header.revision));
            Ok(convert::range_result(&self.ns, &answer, at))
        })
    }

    fn leases(&self, _: Consistency) -> BoxFuture<'_, Result<Vec<LeaseId>, Error>> {
        Box::pin(async move {
            let call = |channel| async move { LeaseClient::new(channel).lease_leases(pb::LeaseLeasesRequest {}).await };
            let answer = self.endpoints.call(call).await.map_err(|fault| convert::fault(&fault))?;
            let mut leases: Vec<_> = answer.into_inner().leases.iter().map(|lease| LeaseId(lease.id)).collect();
            leases.sort_unstable();
            Ok(leases)
        })
    }

    fn lease(&self, lease: LeaseId, keys: bool, _: Consistency) -> BoxFuture<'_, Result<Option<LeaseView>, Error>> {
        Box::pin(async move {
            let asked = pb::LeaseTimeToLiveRequest { id: lease.0, keys };
            let call = |channel| async move { LeaseClient::new(channel).lease_time_to_live(asked).await };
            let answer = match self.endpoints.call(call).await {
                Ok(answer) => answer.into_inner(),
                Err(fault) => return Err(convert::fault(&fault)),
            };
            if answer.ttl < 0 {
                return Ok(None);
            }
            let mut keys: Vec<_> = answer.keys.iter().filter_map(|key| self.ns.strip(key)).collect();
            keys.sort_unstable();
            let ms = |seconds: i64| seconds.max(0) as u64 * 1000;
            Ok(Some(LeaseView { lease, ttl_ms: ms(answer.granted_ttl), remaining_ms: ms(answer.ttl), keys }))
        })
    }

    fn compact(&self, at: Revision, physical: bool) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(self.compact_at(number(at), physical))
    }

    fn scope(&self) -> Scope {
        Scope::Keys
    }
}
