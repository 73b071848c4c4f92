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
    Scope, SubmitError, Txn, TxnResult,
    ledger::{KeyValues, KeyWatch, KeysHash, KeysView, LeaseView, Watch, WatchOptions},
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

use crate::{
    secure::{Tls, User},
    url::Parts,
};

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
    /// `http://HOST:PORT` of its members, or `https://…`, [`ENDPOINTS_MAX`] at most; any of them will do.
    pub endpoints: Vec<String>,
    /// A prefix under which all keys lie; empty for none.
    pub namespace: String,
    /// How long a call is repeated before it is given up. Longer than an election, which takes an etcd a second or two.
    pub deadline: Duration,
    /// TLS to the members. With `https://` and nothing here, the authorities count that this machine trusts.
    pub tls: Option<Tls>,
    /// Who we say that we are; `None` where nobody asks, or where our certificate says it.
    pub user: Option<User>,
    /// The password may go over a connection that anybody can read. Not needed on one machine.
    pub cleartext: bool,
}

/// Where the password of an etcd's user is looked for, unless something else is said.
pub const PASSWORD_VARIABLE: &str = "BUTTRESS_ETCD_PASSWORD";
const URL_FORM: &str = "etcd://[USER@]HOST:PORT[,HOST:PORT…][?tls=ca.pem|system&cert=PEM&key=PEM&\
                        password-file=PATH|password-env=NAME&namespace=PREFIX&cleartext=yes]";

impl Options {
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        Self {
            endpoints,
            namespace: String::new(),
            deadline: Duration::from_secs(20),
            tls: None,
            user: None,
            cleartext: false,
        }
    }

    /// Takes `etcd://[USER@]HOST:PORT,…[?NAME=VALUE&…]`, `HOST:PORT,…`, or a list of `http://HOST:PORT` or
    /// `https://HOST:PORT`.
    ///
    /// | name | value |
    /// |---|---|
    /// | `tls` | a PEM file of the authorities that count, or `system`; without it there is no TLS |
    /// | `cert`, `key` | PEM files: a certificate of ours, and its key |
    /// | `password-file`, `password-env` | where the user's password is; else in `BUTTRESS_ETCD_PASSWORD` |
    /// | `cleartext` | `yes`: the password without TLS to another machine |
    /// | `namespace` | [`Options::namespace`] |
    ///
    /// # Errors
    /// `CONFIG`, with the form that is right.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        if url.starts_with("http://") || url.starts_with("https://") {
            return Ok(Self::new(url.split(',')));
        }
        let mut parts = Parts::read(url, "etcd", URL_FORM)?;
        let (tls, user) = (parts.tls(false)?, parts.user(PASSWORD_VARIABLE)?);
        let cleartext = parts.switch("cleartext")?;
        let namespace = parts.take("namespace").unwrap_or_default();
        Ok(Self { namespace, tls, user, cleartext, ..Self::new(parts.end()?) })
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
    /// `CONFIG` for options that cannot be used, `UNREACHABLE`, `TLS`, `CREDENTIALS`, `UNSUPPORTED` for an etcd that is too
    /// old.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let endpoints = Arc::new(Endpoints::new(
            &options.endpoints,
            options.tls,
            options.user,
            options.cleartext,
            options.deadline,
        )?);
        let call = |channel| async move { MaintenanceClient::new(channel).status(pb::StatusRequest {}).await };
        let status = endpoints.call(call).await.map_err(|fault| {
            let error = convert::fault(&fault);
            match error.code {
                Code::UNREACHABLE => {
                    let message = format!("no etcd can be reached at {}: {}", endpoints.addresses(), error.message);
                    Error { message, ..error }
                }
                _ => error,
            }
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

    /// The least revision that can be read, of which there is one up to `now`; 0 where nothing was compacted.
    async fn compacted(&self, now: Revision) -> Result<Revision, Error> {
        // Reads are refused below `high` or one after it, and not at `high`.
        let (mut low, mut high) = (0, number(now));
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let key = self.ns.key(convert::OWN);
            let request =
                pb::RangeRequest { key, revision: middle, count_only: true, serializable: true, ..Default::default() };
            match self.range(request).await {
                Ok(_) => high = middle,
                Err(error) if error.code == Code::COMPACTED => low = middle,
                Err(error) => return Err(error),
            }
        }
        Ok(Revision(if low == 0 { 0 } else { high as u64 }))
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
            let options = WatchOptions { from, ..WatchOptions::new(range) };
            let watch = EtcdWatch::start(self.endpoints.clone(), self.ns.clone(), options).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn watch_with(&self, options: WatchOptions) -> BoxFuture<'_, Result<Box<dyn KeyWatch>, Error>> {
        Box::pin(async move {
            let watch = EtcdWatch::start(self.endpoints.clone(), self.ns.clone(), options).await?;
            Ok(Box::new(watch) as Box<dyn KeyWatch>)
        })
    }

    /// One transaction of etcd, which is read at one revision.
    fn read_txn(&self, txn: Txn, consistency: Consistency) -> BoxFuture<'_, Result<(Revision, TxnResult), Error>> {
        Box::pin(async move {
            if !txn.is_read_only() {
                let error = Error::new(Code::BAD_REQUEST, "a transaction that changes something is no read");
                return Err(error.hint("submit it as an entry's transaction"));
            }
            txn.check().map_err(Error::from)?;
            let mut request = convert::txn_request(&self.ns, &txn);
            if consistency == Consistency::Serializable {
                convert::serializable(&mut request);
            }
            let call = |channel| {
                let request = request.clone();
                async move { kv(channel).txn(request).await }
            };
            let answer = self.endpoints.call(call).await.map_err(|fault| convert::fault(&fault))?.into_inner();
            let at = convert::revision(answer.header.as_ref().map_or(0, |header| header.revision));
            Ok((at, convert::txn_result(&self.ns, answer.succeeded, &answer.responses, at)?))
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

    /// Counts the keys of the namespace. Where history begins etcd does not tell, so it is searched for, which takes as many
    /// reads of one key as the revision has digits in binary. `unswept` is not known of an etcd.
    fn keys(&self, consistency: Consistency) -> BoxFuture<'_, Result<KeysView, Error>> {
        Box::pin(async move {
            let count = |range: &KeyRange| {
                let (key, range_end) = self.ns.range(range);
                let serializable = consistency == Consistency::Serializable;
                self.range(pb::RangeRequest { key, range_end, count_only: true, serializable, ..Default::default() })
            };
            let all = count(&KeyRange { from: Bytes::new(), to: Some(Bytes::new()) }).await?;
            let hidden = count(&KeyRange::prefix(Bytes::from_static(convert::OWN))).await?;
            let revision = convert::revision(all.header.map_or(0, |header| header.revision));
            Ok(KeysView {
                revision,
                compacted: self.compacted(revision).await?,
                keys: (all.count - hidden.count).max(0) as u64,
                unswept: false,
            })
        })
    }

    fn hash_keys(&self, _: Option<Revision>) -> BoxFuture<'_, Result<KeysHash, Error>> {
        Box::pin(async {
            let error = Error::new(
                Code::UNSUPPORTED,
                "each member of an etcd hashes its own keys, in a way that is its version's own",
            );
            Err(error.hint("compare the members with etcdctl endpoint hashkv --cluster"))
        })
    }

    fn compact(&self, at: Revision, physical: bool) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(self.compact_at(number(at), physical))
    }

    fn scope(&self) -> Scope {
        Scope::Keys
    }
}
