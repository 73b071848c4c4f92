//! The steps of an ordinary user of the crate etcd-client.

use std::time::{Duration, SystemTime};

use conformance_checks::Checks;
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, KeyValue, LockOptions,
    PutOptions, ResignOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions,
};
use tokio::time::{Instant, sleep, timeout};

type Result<T> = std::result::Result<T, Error>;

struct User {
    client: Client,
    prefix: String,
}

impl User {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn name(&self, kv: &KeyValue) -> String {
        let key = String::from_utf8_lossy(kv.key());
        key.strip_prefix(&self.prefix).unwrap_or(&key).to_owned()
    }

    async fn put(&mut self, name: &str, value: &str) -> Result<i64> {
        let done = self.client.put(self.key(name), value, None).await?;
        Ok(done.header().map_or(0, |header| header.revision()))
    }

    async fn value(&mut self, name: &str) -> Result<String> {
        self.value_with(name, None).await
    }

    async fn value_with(&mut self, name: &str, options: Option<GetOptions>) -> Result<String> {
        let got = self.client.get(self.key(name), options).await?;
        Ok(got.kvs().first().map_or("gone".into(), |kv| String::from_utf8_lossy(kv.value()).into_owned()))
    }

    async fn names(&mut self, name: &str, options: GetOptions) -> Result<String> {
        let got = self.client.get(self.key(name), Some(options)).await?;
        Ok(got.kvs().iter().map(|kv| self.name(kv)).collect::<Vec<_>>().join(" "))
    }

    async fn change(&mut self) -> Result<()> {
        self.put("w", "1").await?;
        self.put("w", "2").await?;
        self.client.delete(self.key("w"), None).await.map(drop)
    }

    /// Opens a watch, changes a key if asked to once the watch is open, and collects events.
    async fn watch(&mut self, count: usize, change: bool, options: WatchOptions) -> Result<Vec<String>> {
        let mut stream = self.client.watch(self.key("w"), Some(options)).await?;
        let mut events = Vec::new();
        let end = Instant::now() + Duration::from_secs(10);
        while events.len() < count {
            let Ok(answer) = tokio::time::timeout_at(end, stream.message()).await else { break };
            let Some(answer) = answer? else { break };
            if answer.canceled() {
                return Err(Error::WatchError(format!("{} at {}", answer.cancel_reason(), answer.compact_revision())));
            }
            if answer.created() && change {
                self.change().await?;
            }
            for event in answer.events() {
                let kind = if event.event_type() == EventType::Put { "PUT" } else { "DELETE" };
                let mut words = vec![kind.to_owned()];
                words.extend(event.kv().map(|kv| self.name(kv)));
                words.extend(
                    event.kv().map(|kv| String::from_utf8_lossy(kv.value()).into_owned()).filter(|v| !v.is_empty()),
                );
                words.extend(event.prev_kv().map(|kv| format!("({})", String::from_utf8_lossy(kv.value()))));
                events.push(words.join(" "));
            }
        }
        Ok(events)
    }

    async fn gone_within(&mut self, name: &str, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        while self.value(name).await? != "gone" {
            if Instant::now() > end {
                return Ok(false);
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(true)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let endpoints = std::env::var("ETCD_ENDPOINTS").expect("ETCD_ENDPOINTS names the server");
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    let mut checks = Checks::begin("rust-etcd-client", env!("CLIENT_VERSION"));
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos();
    let client = match Client::connect(&endpoints, None).await {
        Ok(client) => client,
        Err(error) => return checks.check::<&str, _>("the client connects", "connected", Err(error)),
    };
    let mut user = User { client, prefix: format!("conformance/rust-etcd-client/{since}/") };
    ranges(&mut user, &mut checks).await;
    transactions(&mut user, &mut checks).await;
    watches(&mut user, &mut checks).await;
    leases(&mut user, &mut checks).await;
    coordination(&mut user, &mut checks).await;
    cluster(&mut user, &mut checks, endpoints.len()).await;
    refusals(&mut user, &mut checks).await;
    checks.end();
}

async fn ranges(user: &mut User, checks: &mut Checks) {
    checks.check("put answers with a revision", true, user.put("a", "1").await.map(|revision| revision > 0));
    checks.check("get returns what was put", "1".into(), user.value("a").await);
    let done = user.client.put(user.key("a"), "2", Some(PutOptions::new().with_prev_key())).await;
    let before = done.map(|done| done.prev_key().map(|kv| kv.value().to_vec()));
    checks.check("put returns the previous pair", Some(b"1".to_vec()), before);
    for name in ["b", "c", "d", "e"] {
        if let Err(error) = user.put(name, &format!("v-{name}")).await {
            checks.check::<&str, _>("keys are put", "put", Err(error));
        }
    }
    checks.check("get by prefix", "a b c d e".into(), user.names("", GetOptions::new().with_prefix()).await);
    let range = GetOptions::new().with_range(user.key("d"));
    checks.check("get of a range leaves out its end", "b c".into(), user.names("b", range).await);
    let from = GetOptions::new().with_from_key().with_limit(2);
    checks.check("from a key on", "d e".into(), user.names("d", from).await);
    let limited = user.client.get(user.key(""), Some(GetOptions::new().with_prefix().with_limit(2))).await;
    let limited = limited.map(|got| (got.kvs().len(), got.more(), got.count()));
    checks.check("a limit tells that there is more, and how many there are", (2, true, 5), limited);
    let counted = user.client.get(user.key(""), Some(GetOptions::new().with_prefix().with_count_only())).await;
    checks.check("count only", (0, 5), counted.map(|got| (got.kvs().len(), got.count())));
    let keys = user.client.get(user.key(""), Some(GetOptions::new().with_prefix().with_keys_only())).await;
    checks.check("keys only", true, keys.map(|got| got.kvs().iter().all(|kv| kv.value().is_empty())));
    for (by, target, order, wanted) in [
        ("key, descending", SortTarget::Key, SortOrder::Descend, "e d c b a"),
        ("modification", SortTarget::Mod, SortOrder::Ascend, "a b c d e"),
        ("creation, descending", SortTarget::Create, SortOrder::Descend, "e d c b a"),
        ("value, descending", SortTarget::Value, SortOrder::Descend, "e d c b a"),
    ] {
        let sorted = user.names("", GetOptions::new().with_prefix().with_sort(target, order)).await;
        checks.check(&format!("sorted by {by}"), wanted.into(), sorted);
    }
    let now = user.put("a", "3").await.unwrap_or_default();
    let older = user.value_with("a", Some(GetOptions::new().with_revision(now - 1))).await;
    checks.check("get at an older revision", "2".into(), older);
    let young = user.names("", GetOptions::new().with_prefix().with_min_mod_revision(now)).await;
    checks.check("bounds of the modification", "a".into(), young);
    let near = user.value_with("a", Some(GetOptions::new().with_serializable())).await;
    checks.check("a serializable get", "3".into(), near);
    checks.check("a range as a stream", 5, streamed(user).await);
    let done = user.client.delete(user.key("e"), Some(DeleteOptions::new().with_prev_key())).await;
    let done = done.map(|done| (done.deleted(), done.prev_kvs().first().map(|kv| kv.value().to_vec())));
    checks.check("delete counts and returns what was there", (1, Some(b"v-e".to_vec())), done);

    let future = user.client.get("a", Some(GetOptions::new().with_revision(1 << 40))).await;
    checks.fails("a future revision", "etcdserver: mvcc: required revision is a future revision", future);
    let done = user.client.compact(now, Some(CompactionOptions::new().with_physical())).await;
    checks.check("compaction", true, done.map(|_| true));
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    let old = user.client.get(user.key("a"), Some(GetOptions::new().with_revision(now - 1))).await;
    checks.fails("a read of what was compacted", compacted, old);
    checks.fails("compacting twice", compacted, user.client.compact(now, None).await);
    // The watch may come to a member that has not compacted yet.
    sleep(Duration::from_millis(500)).await;
    let watch = user.watch(1, false, WatchOptions::new().with_start_revision(1)).await;
    checks.fails("a watch of what was compacted names the revision", &format!("at {now}"), watch);
}

async fn streamed(user: &mut User) -> Result<usize> {
    let mut kv = user.client.kv_client();
    let mut stream = kv.get_stream(user.key(""), Some(GetOptions::new().with_prefix())).await?;
    let mut count = 0;
    while let Some(part) = stream.message().await? {
        count += part.kvs().len();
    }
    Ok(count)
}

async fn transactions(user: &mut User, checks: &mut Checks) {
    let (a, b) = (user.key("a"), user.key("b"));
    let read = |answers: &[TxnOpResponse], at: usize| match answers.get(at) {
        Some(TxnOpResponse::Get(got)) => got.kvs().first().map(|kv| String::from_utf8_lossy(kv.value()).into_owned()),
        _ => None,
    };
    let txn = Txn::new()
        .when([Compare::value(&*a, CompareOp::Equal, "3"), Compare::version(&*a, CompareOp::Greater, 1)])
        .and_then([TxnOp::put(&*a, "4", None), TxnOp::get(&*a, None)])
        .or_else([TxnOp::get(&*a, None)]);
    let done = user.client.txn(txn).await.map(|done| (done.succeeded(), read(&done.op_responses(), 1)));
    checks.check("a transaction whose compare holds", (true, Some("4".into())), done);
    let txn = Txn::new()
        .when([Compare::create_revision(&*a, CompareOp::Equal, 0)])
        .and_then([TxnOp::put(&*a, "5", None)])
        .or_else([TxnOp::get(&*a, None)]);
    let done = user.client.txn(txn).await.map(|done| (done.succeeded(), read(&done.op_responses(), 0)));
    checks.check("a transaction whose compare does not hold", (false, Some("4".into())), done);
    for (of, compare, wanted) in [
        ("less than a value", Compare::value(&*a, CompareOp::Less, "5"), true),
        ("not a value", Compare::value(&*a, CompareOp::NotEqual, "4"), false),
        ("a modification", Compare::mod_revision(&*a, CompareOp::Greater, 1), true),
        ("a lease", Compare::lease(&*a, CompareOp::Equal, 0), true),
        ("every key of a prefix", Compare::version(user.key(""), CompareOp::Greater, 0).with_prefix(), true),
        ("every value of a range", Compare::value(&*b, CompareOp::Equal, "v-b").with_range(user.key("d")), false),
    ] {
        let done = user.client.txn(Txn::new().when([compare])).await.map(|done| done.succeeded());
        checks.check(&format!("a compare of {of}"), wanted, done);
    }
    let inner = Txn::new()
        .when([Compare::version(&*a, CompareOp::Greater, 0)])
        .and_then([TxnOp::put(user.key("n"), "inner", None), TxnOp::get(user.key("n"), None)]);
    let done = user.client.txn(Txn::new().and_then([TxnOp::txn(inner), TxnOp::delete(&*b, None)])).await;
    let done = done.map(|done| match done.op_responses().as_slice() {
        [TxnOpResponse::Txn(inner), TxnOpResponse::Delete(deleted)] => {
            (inner.succeeded(), read(&inner.op_responses(), 1), deleted.deleted())
        }
        _ => (false, None, 0),
    });
    checks.check("a transaction in a transaction", (true, Some("inner".into()), 1), done);
}

async fn watches(user: &mut User, checks: &mut Checks) {
    let start = user.put("mark", "").await.unwrap_or_default();
    let all = || ["PUT w 1", "PUT w 2", "DELETE w"].map(str::to_owned).to_vec();
    checks.check("a live watch", all(), user.watch(3, true, WatchOptions::new()).await);
    let older = WatchOptions::new().with_start_revision(start + 1);
    checks.check("a watch from an older revision", all(), user.watch(3, false, older).await);
    let before = ["PUT w 1", "PUT w 2 (1)", "DELETE w (2)"].map(str::to_owned).to_vec();
    checks.check(
        "a watch with what was before",
        before,
        user.watch(3, true, WatchOptions::new().with_prev_key()).await,
    );
    let no_puts = WatchOptions::new().with_filters([WatchFilterType::NoPut]);
    checks.check("a watch that leaves out puts", vec!["DELETE w".to_owned()], user.watch(1, true, no_puts).await);
    let no_deletes = WatchOptions::new().with_filters([WatchFilterType::NoDelete]);
    let puts = ["PUT w 1", "PUT w 2"].map(str::to_owned).to_vec();
    checks.check("a watch that leaves out deletes", puts, user.watch(2, true, no_deletes).await);
    checks.check("a watch of a prefix", all(), user.watch(3, true, WatchOptions::new().with_prefix()).await);
    checks.check("a watch that tells its progress when asked", true, progress(user).await);
    checks.check("two watches on one stream, one cancelled", "7 8 cancelled 7".into(), two_watches(user).await);
}

async fn progress(user: &mut User) -> Result<bool> {
    let mut stream = user.client.watch(user.key("progress"), None).await?;
    stream.message().await?;
    stream.request_progress().await?;
    let answer = timeout(Duration::from_secs(10), stream.message())
        .await
        .map_err(|_| Error::WatchError("no answer".into()))??;
    Ok(answer.is_some_and(|answer| answer.events().is_empty() && answer.header().is_some_and(|h| h.revision() > 0)))
}

async fn two_watches(user: &mut User) -> Result<String> {
    let mut stream = user.client.watch(user.key("one"), Some(WatchOptions::new().with_watch_id(7))).await?;
    let mut said = vec![stream.message().await?.map_or(0, |answer| answer.watch_id()).to_string()];
    stream.watch(user.key("two"), Some(WatchOptions::new().with_watch_id(8))).await?;
    said.push(stream.message().await?.map_or(0, |answer| answer.watch_id()).to_string());
    stream.cancel(8).await?;
    let cancelled = stream.message().await?.is_some_and(|answer| answer.canceled() && answer.watch_id() == 8);
    said.push(if cancelled { "cancelled" } else { "not cancelled" }.into());
    user.put("two", "1").await?;
    user.put("one", "1").await?;
    said.push(stream.message().await?.map_or(0, |answer| answer.watch_id()).to_string());
    Ok(said.join(" "))
}

async fn leases(user: &mut User, checks: &mut Checks) {
    checks.check("a lease is granted, asked, kept alive and revoked", (60, 1, 60, "gone".into()), lease(user).await);
    checks.check("a key goes with its expired lease", true, expiry(user).await);
    let gone = "etcdserver: requested lease not found";
    checks.fails("a lease that is not there", gone, user.client.lease_revoke(99).await);
    checks.fails("a put with it", gone, user.client.put("l", "1", Some(PutOptions::new().with_lease(99))).await);
    let told = user.client.lease_time_to_live(99, None).await.map(|told| told.ttl());
    checks.check("its time to live is -1", -1, told);
    checks.fails("keeping it alive", "", user.client.lease_keep_alive(99).await.map(drop));
}

async fn lease(user: &mut User) -> Result<(i64, usize, i64, String)> {
    let id = user.client.lease_grant(60, None).await?.id();
    user.client.put(user.key("leased"), "1", Some(PutOptions::new().with_lease(id))).await?;
    let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
    let told = user.client.lease_time_to_live(id, Some(options)).await?;
    let (mut keeper, mut answers) = user.client.lease_keep_alive(id).await?;
    keeper.keep_alive().await?;
    let ttl = answers.message().await?.map_or(0, |answer| answer.ttl());
    user.client.lease_revoke(id).await?;
    Ok((told.granted_ttl(), told.keys().len(), ttl, user.value("leased").await?))
}

async fn expiry(user: &mut User) -> Result<bool> {
    let id = user.client.lease_grant(2, None).await?.id();
    user.client.put(user.key("short"), "1", Some(PutOptions::new().with_lease(id))).await?;
    Ok(user.value("short").await? == "1" && user.gone_within("short", Duration::from_secs(15)).await?)
}

async fn coordination(user: &mut User, checks: &mut Checks) {
    checks.check("the lock service hands a lock on", (true, true), lock(user).await);
    checks.check(
        "the election service: campaign, leader, proclaim, resign",
        "one two none".into(),
        election(user).await,
    );
}

async fn lock(user: &mut User) -> Result<(bool, bool)> {
    let name = user.key("lock");
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(user.client.lease_grant(20, None).await?.id());
    }
    let first = user.client.lock(&*name, Some(LockOptions::new().with_lease(ids[0]))).await?.key().to_vec();
    let mut other = user.client.clone();
    let second = other.lock(&*name, Some(LockOptions::new().with_lease(ids[1])));
    let mut second = std::pin::pin!(second);
    let waits = timeout(Duration::from_millis(500), &mut second).await.is_err();
    user.client.unlock(first.clone()).await?;
    let then = timeout(Duration::from_secs(10), second).await.map_err(|_| Error::Internal("never locked".into()))??;
    user.client.unlock(then.key()).await?;
    Ok((waits, then.key().starts_with(name.as_bytes()) && then.key() != first))
}

async fn election(user: &mut User) -> Result<String> {
    let name = user.key("election");
    let id = user.client.lease_grant(20, None).await?.id();
    let won = user.client.campaign(&*name, "one", id).await?;
    let value = |kv: Option<&KeyValue>| kv.map_or("none".into(), |kv| String::from_utf8_lossy(kv.value()).into_owned());
    let mut said: Vec<String> = vec![value(user.client.leader(&*name).await?.kv())];
    let leader = won.leader().cloned().ok_or_else(|| Error::ElectError("no leader key".into()))?;
    user.client.proclaim("two", Some(etcd_client::ProclaimOptions::new().with_leader(leader.clone()))).await?;
    let mut observed = user.client.observe(&*name).await?;
    let first = timeout(Duration::from_secs(10), observed.message())
        .await
        .map_err(|_| Error::ElectError("silence".into()))??;
    said.push(value(first.as_ref().and_then(|answer| answer.kv())));
    user.client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    said.push(match user.client.leader(&*name).await {
        Err(error) if error.to_string().contains("election: no leader") => "none".into(),
        Err(error) => error.to_string(),
        Ok(answer) => value(answer.kv()),
    });
    Ok(said.join(" "))
}

async fn cluster(user: &mut User, checks: &mut Checks, endpoints: usize) {
    let members = user.client.member_list().await.map(|list| {
        let whole =
            |m: &etcd_client::Member| !m.name().is_empty() && !m.peer_urls().is_empty() && !m.client_urls().is_empty();
        list.members().len() >= endpoints && list.members().iter().all(whole)
    });
    checks.check("members have names and addresses", true, members);
    let status = user.client.status().await;
    let status =
        status.map(|s| s.version().starts_with("3.") && s.leader() != 0 && s.raft_index() > 0 && s.db_size() > 0);
    checks.check("status names version, leader and size", true, status);
    checks.check("a hash of the keys", true, user.client.hash_kv(0).await.map(|hash| hash.hash_revision() > 0));
    checks.check("defragmenting succeeds", true, user.client.defragment().await.map(|_| true));
    checks.check("a snapshot is streamed to its end", (true, 0), snapshot(user).await);
}

async fn snapshot(user: &mut User) -> Result<(bool, u64)> {
    let mut stream = user.client.snapshot().await?;
    let (mut size, mut remaining) = (0, 0);
    while let Some(part) = stream.message().await? {
        size += part.blob().len();
        remaining = part.remaining_bytes();
    }
    Ok((size > 0, remaining))
}

async fn refusals(user: &mut User, checks: &mut Checks) {
    checks.fails("an empty key", "etcdserver: key is not provided", user.client.put("", "1", None).await);
    let z = user.key("z");
    let twice = Txn::new().and_then([TxnOp::put(&*z, "1", None), TxnOp::put(&*z, "2", None)]);
    let duplicate = "etcdserver: duplicate key given in txn request";
    checks.fails("a key twice in one transaction", duplicate, user.client.txn(twice).await);
    let many: Vec<_> = (0..129).map(|n| TxnOp::put(format!("{z}{n}"), "", None)).collect();
    let too_many = "etcdserver: too many operations in txn request";
    checks.fails(
        "more operations than a transaction may have",
        too_many,
        user.client.txn(Txn::new().and_then(many)).await,
    );
    let large = user.client.put(&*z, vec![b'x'; 1_700_000], None).await;
    checks.fails("a value that is too large", "etcdserver: request is too large", large);
    checks.check("and of what was refused nothing is there", "gone".into(), user.value("z").await);
}
