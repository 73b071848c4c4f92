//! `buttress host`: a process that runs functions on the user's Kafka and etcd, and has no log of its own.
//!
//! The ledger is the etcd (functions, models, components, settings, and who runs what), records lie in the Kafka. Hosts are
//! equal and know each other through the etcd alone; any number of them share the partitions ([`super::hosts`]). A host
//! keeps nothing on disk but compiled components, which it can lose.

use std::{path::PathBuf, sync::Arc, time::Duration};

use buttress_bridge::etcd::EtcdLedger;
use buttress_core::{
    BoxFuture, Cluster, Consistency, Entry, Error, KeyRange, Ledger, NodeId, Put, Stream, SubmitError, Term, TimeMs,
    ledger::{ClusterView, Member},
};
use buttress_engine::WasmEngine;
use buttress_events::{http as events_http, ingest, intake, mqtt};
use buttress_functions::{Deps as FunctionsDeps, FunctionsPlane};
use bytes::Bytes;
use clap::Args;
use tokio::sync::watch;

use super::{
    HOLD_TTL_DEFAULT, KafkaClaims, KafkaPlace,
    book::{Book, Topics, intake_topic},
    check_namespace,
    edge::{HostLedger, HostStream},
    etcd_options, home,
    hosts::{HOSTS, Host, Hosts, View},
};
use crate::{
    demo::cli::duration,
    dev::interrupted,
    http::Http,
    logging,
    metrics::{Metrics, process_metrics},
    resources::store::Store,
    serve::{bind, parent_gone},
};

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  buttress host --kafka 127.0.0.1:9092 --etcd http://127.0.0.1:2379\n  buttress host --kafka a:9092,b:9092 --etcd http://c:2379,http://d:2379 --name line-2 --namespace plant. --http 127.0.0.1:7381"
)]
pub struct HostArgs {
    /// Brokers of the Kafka in which records lie, separated by commas; or one kafka:// address, which can name TLS and a user.
    #[arg(long, value_name = "HOST:PORT", env = "BUTTRESS_KAFKA", value_delimiter = ',', required = true)]
    pub kafka: Vec<String>,
    /// Members of the etcd in which functions, models and settings lie, separated by commas; or one etcd:// address, which can
    /// name TLS and a user.
    #[arg(long, value_name = "URL", env = "BUTTRESS_ETCD", value_delimiter = ',', required = true)]
    pub etcd: Vec<String>,
    /// This host among the others; two hosts of one name wait for each other.
    #[arg(long, default_value = "host-1")]
    pub name: String,
    /// A number for this host, where programs want one.
    #[arg(long, default_value_t = 1, hide = true)]
    pub id: u64,
    /// What the names of topics, groups and keys begin with, so that several installations can share the engines.
    #[arg(long, default_value = "", env = "BUTTRESS_NAMESPACE")]
    pub namespace: String,
    /// Where HTTP is served.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7380")]
    pub http: String,
    /// Where MQTT is served; left out, it is not.
    #[arg(long, value_name = "IP:PORT")]
    pub mqtt: Option<String>,
    /// Where compiled components are kept; left out, they are compiled at each start.
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,
    /// After this time without a sign of life a host's partitions go to others.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub hold_ttl: Duration,
    /// The topic of `POST /events` without `?topic=`.
    #[arg(long, default_value = "telemetry")]
    pub default_topic: String,
    /// Serve addresses other than loopback without TLS and authentication, which do not exist yet.
    #[arg(long)]
    pub insecure: bool,
    #[arg(long, value_enum, default_value_t = logging::Format::Text)]
    pub log: logging::Format,
    /// Stop when standard input ends: the parent process holds the other end.
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

/// Runs a host until it is asked to stop; tells whether all went well.
pub fn run(args: &HostArgs) -> bool {
    logging::init(args.log, "info");
    let Err(error) = start(args) else { return true };
    match args.log {
        logging::Format::Json => {
            let hint = error.hint.as_deref().unwrap_or_default();
            tracing::error!(code = error.code.0, error = %error.message, hint, event_type = "ended", "the host ended");
        }
        logging::Format::Text => eprintln!("error: {error}"),
    }
    false
}

fn start(args: &HostArgs) -> Result<(), Error> {
    check(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(buttress_core::Code::LIMITS, format!("cannot start a runtime: {error}")))?;
    let result = runtime.block_on(serve(args));
    runtime.shutdown_background();
    result
}

fn check(args: &HostArgs) -> Result<(), Error> {
    let config = |message: String, hint: String| Err(Error::new(buttress_core::Code::CONFIG, message).hint(hint));
    check_namespace(&args.namespace)?;
    if args.hold_ttl < buttress_bridge::hold::TTL_MIN {
        let least = buttress_bridge::hold::TTL_MIN;
        return config(format!("--hold-ttl is {:?}", args.hold_ttl), format!("give {least:?} or more"));
    }
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if args.name.is_empty() || args.name.len() > 63 || !args.name.bytes().all(named) {
        return config(
            format!("--name {:?} cannot be a host's", args.name),
            "use up to 63 letters, digits, '.', '_' and '-'".into(),
        );
    }
    for (edge, address) in [("--http", Some(&args.http)), ("--mqtt", args.mqtt.as_ref())] {
        let Some(address) = address else { continue };
        let Ok(parsed) = address.parse::<std::net::SocketAddr>() else {
            return config(format!("{edge} {address:?} is not IP:PORT"), "for example 127.0.0.1:7380".into());
        };
        if !parsed.ip().is_loopback() && !args.insecure {
            let hint = "TLS and authentication are not served yet; say --insecure to serve it in the clear";
            return config(format!("{edge} {address:?} is not a loopback address"), hint.into());
        }
    }
    Ok(())
}

/// A host among hosts, where planes ask for a cluster. What stands for its leader is the host of the first seat: there is no
/// leader, but people and the demo want to know whose end would be felt.
struct HostCluster {
    hosts: Arc<Hosts>,
    id: String,
}

impl HostCluster {
    fn of(&self, view: &View) -> ClusterView {
        let first = view.seats.values().next();
        let leader = match first {
            Some(held) => view.hosts.get(&held.host).map(|host| NodeId(host.id)),
            None => view.hosts.values().map(|host| NodeId(host.id)).min(),
        };
        let member = |host: &Host| Member {
            id: NodeId(host.id),
            name: host.name.clone(),
            http: host.http.clone(),
            mqtt: host.mqtt.clone(),
            ..Member::default()
        };
        ClusterView {
            cluster_id: self.id.clone(),
            node: NodeId(self.hosts.me().id),
            members: view.hosts.values().map(member).collect(),
            leader,
            term: Term(first.map_or(0, |held| held.since.0)),
            committed: buttress_core::Index(view.revision.0),
            applied: buttress_core::Index(view.revision.0),
            revision: view.revision,
            ..ClusterView::default()
        }
    }
}

impl Cluster for HostCluster {
    fn view(&self) -> ClusterView {
        self.of(&self.hosts.view())
    }

    fn changed(&self, seen: &ClusterView) -> BoxFuture<'_, ClusterView> {
        let (leader, term) = (seen.leader, seen.term);
        Box::pin(async move {
            let mut changes = self.hosts.changes();
            loop {
                let view = self.of(&changes.borrow_and_update());
                if (view.leader, view.term) != (leader, term) {
                    return view;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        })
    }

    fn now(&self) -> TimeMs {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        TimeMs(since.map_or(0, |since| since.as_millis() as u64))
    }
}

async fn serve(args: &HostArgs) -> Result<(), Error> {
    let http_port = bind(&args.http).await?;
    let mqtt_port = match &args.mqtt {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let place = KafkaPlace { bootstrap: args.kafka.clone(), namespace: args.namespace.clone() };
    let etcd_options = etcd_options(&args.etcd, &args.namespace)?;
    let (kafka, etcd) = futures::future::try_join(place.connect(), EtcdLedger::connect(etcd_options)).await?;
    let (kafka, etcd) = (Arc::new(kafka), Arc::new(etcd));
    let ledger: Arc<dyn Ledger> = etcd.clone();
    may_keep_keys(&*ledger).await?;
    let (stop, shutdown) = watch::channel(false);

    let me = Host {
        id: args.id,
        name: args.name.clone(),
        http: args.http.clone(),
        mqtt: args.mqtt.clone().unwrap_or_default(),
    };
    let hosts = Hosts::start(ledger.clone(), me, args.hold_ttl, shutdown.clone());
    let book = Book::start(ledger.clone(), kafka.clone(), shutdown.clone());
    let id = if args.namespace.is_empty() { "engines".to_owned() } else { args.namespace.clone() };
    let cluster: Arc<dyn Cluster> = Arc::new(HostCluster { hosts: hosts.clone(), id });

    let engine = WasmEngine::new(buttress_engine::Options {
        cache_dir: args.cache_dir.clone(),
        ..buttress_engine::Options::default()
    })?;
    let functions = Arc::new(FunctionsPlane::start(FunctionsDeps {
        ledger: ledger.clone(),
        homes: vec![home(&kafka, &hosts)],
        cluster: cluster.clone(),
        engine: Arc::new(engine),
        shutdown: shutdown.clone(),
    })?);

    let edge: Arc<dyn Ledger> = Arc::new(HostLedger { etcd: etcd.clone(), kafka: kafka.clone(), book: book.clone() });
    let seen = |written_only| -> Arc<dyn Stream> {
        Arc::new(HostStream { kafka: kafka.clone(), book: book.clone(), written_only })
    };
    let (stream, ways_in) = (seen(false), seen(true));
    let deps = ingest::Deps { ledger: edge, stream, cluster: cluster.clone() };
    let ingest = ingest::Ingest::with_ways_in(
        deps,
        ways_in,
        ingest::Options { sequences_behind: true, ..ingest::Options::default() },
    );
    tokio::spawn(ingest.clone().run());
    let broker = mqtt::Broker::new(ingest.clone(), mqtt::Options::default());
    let events = Arc::new(
        events_http::EventsHttp::new(
            ingest.clone(),
            events_http::Options { default_topic: args.default_topic.clone(), ..events_http::Options::default() },
        )
        .on_engine("kafka"),
    );
    let moved = Arc::new(intake::Counters::default());
    let claims = Arc::new(KafkaClaims { kafka: kafka.clone(), hosts: hosts.clone() });
    let intakes = tokio::spawn(lead_intakes(book.changes(), kafka.clone(), claims, moved.clone(), shutdown.clone()));

    let mut metrics = Metrics::default();
    metrics.add(process_metrics);
    metrics.add({
        let (ingest, broker, events) = (ingest.clone(), broker.clone(), events.clone());
        move |out| {
            ingest.counters().prometheus(out);
            broker.counters().prometheus(out);
            events.prometheus(out);
            moved.prometheus(out);
        }
    });
    metrics.add({
        let functions = functions.clone();
        move |out| functions.metrics(out)
    });
    metrics.add({
        let kafka = kafka.clone();
        move |out| kafka.metrics(out)
    });
    let http = Arc::new(Http {
        events,
        functions: functions.http(),
        cluster,
        resources: Store { ledger },
        own: None,
        metrics: Arc::new(metrics),
    });
    // Who connects earlier waits; what topics are like must be known first.
    tokio::select! {
        () = book.ready() => {}
        () = interrupted() => return Ok(()),
        () = parent_gone(), if args.with_parent => return Ok(()),
    }
    if let Some(port) = mqtt_port {
        tokio::spawn(broker.serve(port));
    }
    let http = tokio::spawn(http.serve(http_port, shutdown));
    tracing::info!(
        host = args.name,
        http = args.http,
        mqtt = args.mqtt.as_deref().unwrap_or_default(),
        namespace = args.namespace,
        event_type = "serving",
        "serving"
    );
    let ended = tokio::select! {
        () = interrupted() => "signal",
        () = parent_gone(), if args.with_parent => "parent",
    };
    tracing::info!(reason = ended, event_type = "stopping", "stopping");
    let _ = stop.send(true);
    let _ = tokio::join!(http, intakes);
    // Seats are given back, and what else hangs on our leases.
    tokio::time::sleep(Duration::from_millis(200)).await;
    etcd.close().await;
    Ok(())
}

/// A host that may not read and write its keys would wait for ever: it is told here, while somebody looks.
async fn may_keep_keys(ledger: &dyn Ledger) -> Result<(), Error> {
    ledger.read(KeyRange::prefix(HOSTS), 1, Consistency::Linearizable).await?;
    // Nobody has this key, so nothing is deleted; the right to is asked for all the same.
    let put = Put { key: Bytes::from_static(b"/buttress/nobody"), value: None, lease: None };
    ledger.submit(Entry { puts: vec![put], ..Entry::default() }).await.map_err(SubmitError::into_error)?;
    Ok(())
}

/// Keeps a task for every partition of every intake.
async fn lead_intakes(
    mut topics: watch::Receiver<Topics>,
    kafka: Arc<buttress_bridge::kafka::Kafka>,
    claims: Arc<KafkaClaims>,
    counters: Arc<intake::Counters>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut running: std::collections::BTreeMap<(String, i32), tokio::task::JoinHandle<()>> = Default::default();
    loop {
        let specs = topics.borrow_and_update().specs.clone();
        let mut wanted = std::collections::BTreeMap::new();
        for spec in specs.into_values() {
            let Some(fields) = spec.sequence_fields else { continue };
            let intake = intake_topic(&spec.name);
            let (Some(to), Some(from)) = (kafka.topic(&spec.name), kafka.topic(&intake)) else { continue };
            for (partition, (to, from)) in to.partitions.iter().zip(&from.partitions).enumerate() {
                let lead = intake::Lead {
                    records: kafka.clone(),
                    stream: kafka.clone(),
                    claims: claims.clone(),
                    topic: spec.name.clone(),
                    intake: intake.clone(),
                    fields: fields.clone(),
                    partition: partition as i32,
                    from: from.log,
                    to: to.log,
                    counters: counters.clone(),
                };
                wanted.insert((spec.name.clone(), partition as i32), lead);
            }
        }
        running.retain(|key, task| {
            let keep = wanted.contains_key(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for (key, lead) in wanted {
            running.entry(key).or_insert_with(|| tokio::spawn(intake::run(lead)));
        }
        tokio::select! {
            changed = topics.changed() => if changed.is_err() { break },
            _ = shutdown.wait_for(|stop| *stop) => break,
        }
    }
    running.values().for_each(tokio::task::JoinHandle::abort);
}

const _: () = assert!(HOLD_TTL_DEFAULT.as_secs() == 5, "the help of --hold-ttl says so");
