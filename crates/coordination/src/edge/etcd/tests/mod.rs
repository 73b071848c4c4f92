//! The edge over the in-memory ledger, as clients see it: over real sockets, through the generated clients.

mod abuse;
mod gateway;
mod keys;
mod leases;
mod members;
mod watching;

use std::{sync::Arc, time::Duration};

use buttress_core::{BoxFuture, Code, Error, NodeId, ledger::Member};
use buttress_state::local::Local;
use tokio::{net::TcpListener, sync::watch};
use tonic::Status;

use super::{Admin, Counters, Deps, Etcd, Options, serve};
use crate::pb::{
    client::Channel,
    etcdserverpb::{
        self as pb, auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient, watch_client::WatchClient,
    },
    mvccpb,
    v3electionpb::election_client::ElectionClient,
    v3lockpb::lock_client::LockClient,
};

/// Nothing that a test waits for takes so long.
const DEADLINE: Duration = Duration::from_secs(20);

/// Knows nobody to change.
struct NoAdmin;

impl Admin for NoAdmin {
    fn remove(&self, _: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(Error::new(Code::QUORUM, "the last voter")) })
    }

    fn promote(&self, _: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(Error::new(Code::LAGGING, "far behind")) })
    }

    fn transfer(&self, _: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn disk_bytes(&self) -> BoxFuture<'_, u64> {
        Box::pin(async { 4096 })
    }
}

struct World {
    local: Arc<Local>,
    etcd: Arc<Etcd>,
    address: String,
    channel: Channel,
    stop: watch::Sender<bool>,
}

impl World {
    async fn start() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let local = Local::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let member = Member { id: NodeId(7), name: "seven".into(), etcd: address.clone(), ..Member::default() };
        let member = Member { http: "127.0.0.1:7380".into(), ..member };
        local.set_member(Member { peer: "127.0.0.1:2380".into(), ..member });
        local.elect(Some(NodeId(7)));
        let (stop, stopping) = watch::channel(false);
        let etcd = Etcd::new(Deps {
            ledger: local.clone(),
            cluster: local.clone(),
            admin: Arc::new(NoAdmin),
            metrics: Box::new(|out| out.push_str("some_metric 1\n")),
            counters: Arc::new(Counters::default()),
            options,
            stopping,
        });
        tokio::spawn(serve(etcd.clone(), listener));
        let channel = Channel::connect(&address).await.expect("it listens");
        Self { local, etcd, address, channel, stop }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }

    fn lock(&self) -> LockClient<Channel> {
        LockClient::new(self.channel.clone())
    }

    fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel.clone())
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        let request = pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() };
        let answer = self.kv().put(request).await.expect("a plain put");
        answer.into_inner().header.expect("every reply has one").revision
    }

    async fn delete(&self, key: &str) -> i64 {
        let request = pb::DeleteRangeRequest { key: bytes(key), ..Default::default() };
        self.kv().delete_range(request).await.expect("a plain delete").into_inner().header.expect("a header").revision
    }
}

fn bytes(text: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

/// `prefix` with its last byte one higher.
fn end_of(prefix: &str) -> bytes::Bytes {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    end.into()
}

/// Code and text of a failure.
fn said<T>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

/// `key=value cREV mREV vN`.
fn shown(kv: &mvccpb::KeyValue) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease {:x}", kv.lease) };
    format!("{}={} c{} m{} v{}{lease}", text(&kv.key), text(&kv.value), kv.create_revision, kv.mod_revision, kv.version)
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}
