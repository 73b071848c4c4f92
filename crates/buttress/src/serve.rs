//! `buttress serve`: the composition root. It opens the listeners, starts the node, and hands every plane the same three
//! traits; no plane knows another, or the node.

use std::{net::SocketAddr, sync::Arc};

use buttress_coordination::edge::etcd;
use buttress_core::{Cluster, Code, Error, Ledger, Stream};
use buttress_engine::WasmEngine;
use buttress_events::{http as events_http, ingest, kafka, mqtt};
use buttress_functions::{Deps as FunctionsDeps, FunctionsPlane, Home};
use tokio::{io::AsyncReadExt, net::TcpListener, sync::watch};

use crate::{
    backups::Backups,
    cli::args::ServeArgs,
    config::Config,
    dev::{interrupted, seed},
    engines::{
        self, HOLD_TTL_DEFAULT, KafkaPlace,
        book::Book,
        edge::KafkaTopics,
        hosts::{Host, Hosts},
    },
    etcd::NodeAdmin,
    http::{Http, OwnLog},
    logging,
    members::MembersHttp,
    metrics::{Metrics, process_metrics},
    resources::store::Store,
    uplink::{self, Uplinks, secrets::Secrets},
    vitals::Nurse,
};

/// Runs a node until it is asked to stop or stops itself; tells whether all went well.
///
/// What kept it from starting, or made it stop, is said once: as a line of the log for machines, which whoever started us
/// reads, and otherwise as every command says it.
pub fn run(args: &ServeArgs) -> bool {
    logging::init(args.log, "info");
    let Err(error) = Config::load(&args.config).and_then(|config| start(&config, args.with_parent)) else {
        return true;
    };
    match args.log {
        logging::Format::Json => {
            let hint = error.hint.as_deref().unwrap_or_default();
            tracing::error!(code = error.code.0, error = %error.message, hint, event_type = "ended", "the node ended");
        }
        logging::Format::Text => eprintln!("error: {error}"),
    }
    false
}

/// Takes as many open files as the operating system lets this process have: a connection is one.
fn raise_open_files() {
    let Ok((soft, hard)) = rlimit::Resource::NOFILE.get() else { return };
    if soft < hard
        && let Err(error) = rlimit::Resource::NOFILE.set(hard, hard)
    {
        tracing::warn!(%error, soft, hard, "the limit of open files cannot be raised");
    }
}

fn start(config: &Config, with_parent: bool) -> Result<(), Error> {
    raise_open_files();
    // One thread for everything that waits: the edges, Raft and the planes. Disks and guests have their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Code::LIMITS, format!("cannot start a runtime: {error}")))?;
    let result = runtime.block_on(serve(config, with_parent));
    // Blocking work (a compilation, say) must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn serve(config: &Config, with_parent: bool) -> Result<(), Error> {
    let member = config.member().clone();
    let [peer, kafka_port, mqtt_port, http_port] =
        [bind(&member.peer).await?, bind(&member.kafka).await?, bind(&member.mqtt).await?, bind(&member.http).await?];
    let etcd_port = match member.etcd.as_str() {
        "" => None,
        address => Some(bind(address).await?),
    };
    let (node, running) = buttress_node::runtime::start(config.for_node(seed()?, seed()?), peer)?;
    let (ledger, stream, cluster): (Arc<dyn Ledger>, Arc<dyn Stream>, Arc<dyn Cluster>) =
        (node.clone(), node.clone(), node.clone());
    let (stop, shutdown) = watch::channel(false);

    let engine = WasmEngine::new(buttress_engine::Options {
        cache_dir: Some(config.node.data_dir.join("components")),
        ..buttress_engine::Options::default()
    })?;
    let mut homes = vec![Home { records: ledger.clone(), stream: stream.clone(), claims: None }];
    let mut elsewhere = None;
    if let Some(engines) = &config.engines {
        // It need not be there yet: the node's own log does not wait for it.
        let place = KafkaPlace { bootstrap: engines.kafka.clone(), namespace: engines.namespace.clone() };
        let kafka = Arc::new(place.open()?);
        let me =
            Host { id: member.id, name: member.name.clone(), http: member.http.clone(), mqtt: member.mqtt.clone() };
        let hosts = Hosts::start(ledger.clone(), me, HOLD_TTL_DEFAULT, shutdown.clone());
        let book = Book::start(ledger.clone(), kafka.clone(), shutdown.clone());
        homes.push(engines::home(&kafka, &hosts));
        elsewhere = Some(Arc::new(KafkaTopics { kafka, book }));
    }
    let functions = FunctionsPlane::start(FunctionsDeps {
        ledger: ledger.clone(),
        homes,
        cluster: cluster.clone(),
        engine: Arc::new(engine),
        shutdown: shutdown.clone(),
    })?;
    let functions = Arc::new(functions);

    let deps = ingest::Deps { ledger: ledger.clone(), stream: stream.clone(), cluster: cluster.clone() };
    let ingest = ingest::Ingest::new(deps, ingest::Options::default());
    tokio::spawn(ingest.clone().run());
    let broker = mqtt::Broker::new(ingest.clone(), mqtt::Options::default());
    let mut events = events_http::EventsHttp::new(
        ingest.clone(),
        events_http::Options { default_topic: config.events.default_topic.clone(), ..events_http::Options::default() },
    );
    if let Some(elsewhere) = &elsewhere {
        events = events.with_elsewhere(elsewhere.clone());
    }
    let events = Arc::new(events);
    let kafka_counters = Arc::new(kafka::Counters::default());

    let mut metrics = Metrics::default();
    metrics.add(process_metrics);
    metrics.add({
        let node = node.clone();
        move |out| node.render_metrics(out)
    });
    metrics.add({
        let (ingest, broker, events) = (ingest.clone(), broker.clone(), events.clone());
        move |out| {
            ingest.counters().prometheus(out);
            broker.counters().prometheus(out);
            events.prometheus(out);
        }
    });
    metrics.add({
        let counters = kafka_counters.clone();
        move |out| crate::metrics::render_kafka(&counters, out)
    });
    metrics.add({
        let functions = functions.clone();
        move |out| functions.metrics(out)
    });
    if let Some(elsewhere) = elsewhere {
        metrics.add(move |out| elsewhere.kafka.metrics(out));
    }
    let nurse = Arc::new(Nurse::new(node.clone(), config.node.data_dir.clone()));
    metrics.add({
        let nurse = nurse.clone();
        move |out| nurse.metrics(out)
    });
    let uplinks = Uplinks::start(uplink::Deps {
        ledger: ledger.clone(),
        stream: stream.clone(),
        cluster: cluster.clone(),
        edge: config.cluster.id.clone(),
        secrets: Secrets::new(&config.node.data_dir, &config.uplink.secrets),
        shutdown: shutdown.clone(),
    });
    metrics.add({
        let uplinks = uplinks.clone();
        move |out| uplinks.metrics(out)
    });
    let etcd_counters = Arc::new(etcd::Counters::default());
    metrics.add({
        let counters = etcd_counters.clone();
        move |out| counters.prometheus(out)
    });
    // The page is the same on the port of etcd clients.
    let metrics = Arc::new(metrics);
    let etcd = etcd::Etcd::new(etcd::Deps {
        ledger: ledger.clone(),
        cluster: cluster.clone(),
        admin: Arc::new(NodeAdmin { node: node.clone(), data_dir: config.node.data_dir.clone() }),
        metrics: Box::new({
            let metrics = metrics.clone();
            move |out| metrics.render_into(out)
        }),
        counters: etcd_counters,
        options: etcd::Options { connections_max: config.etcd.connections_max, ..etcd::Options::default() },
        stopping: shutdown.clone(),
    });
    let http = Arc::new(Http {
        events,
        functions: functions.http(),
        cluster: cluster.clone(),
        resources: Store { ledger: ledger.clone() },
        own: Some(OwnLog {
            members: MembersHttp { node: node.clone(), insecure: config.node.insecure },
            node: node.clone(),
            backups: Backups::new(node.clone()),
            nurse,
            uplinks,
        }),
        metrics,
    });

    let kafka_deps = kafka::Deps {
        ledger,
        stream,
        cluster,
        options: kafka::Options {
            auto_create_topics: config.events.auto_create_topics,
            default_partitions: config.events.default_partitions,
            connections_max: config.events.kafka_connections_max,
            ..kafka::Options::default()
        },
        counters: kafka_counters,
        shutdown: shutdown.clone(),
    };
    let kafka = tokio::spawn(kafka::serve(kafka_port, kafka_deps));
    tokio::spawn(broker.serve(mqtt_port));
    let http = tokio::spawn(http.serve(http_port, shutdown));
    let etcd = tokio::spawn(async move {
        if let Some(port) = etcd_port {
            etcd::serve(etcd, port).await;
        }
    });
    tracing::info!(
        node_id = member.id,
        kafka = %member.kafka,
        mqtt = %member.mqtt,
        http = %member.http,
        etcd = %member.etcd,
        event_type = "serving",
        "serving"
    );

    let mut running = tokio::spawn(running);
    let ended = tokio::select! {
        ended = &mut running => {
            let ended = ended.map_err(|error| Error::new(Code::STOPPED, error.to_string()))?;
            if ended.as_ref().is_err_and(|error| error.code == Code::REMOVED) {
                // Nothing is wrong here: whoever asked this very node to remove it hears that it is done.
                let _ = stop.send(true);
                let _ = tokio::join!(kafka, http, etcd);
            }
            return ended;
        }
        () = interrupted() => "signal",
        () = parent_gone(), if with_parent => "parent",
    };
    tracing::info!(reason = ended, event_type = "stopping", "stopping");
    // Whoever asks meanwhile is sent on to the next leader, so nobody waits for an election.
    node.hand_over().await;
    let _ = stop.send(true);
    // Both bound the time that they give to what runs.
    let _ = tokio::join!(kafka, http, etcd);
    node.stop().await;
    running.await.map_err(|error| Error::new(Code::STOPPED, error.to_string()))?
}

pub(crate) async fn bind(address: &str) -> Result<TcpListener, Error> {
    let parsed: SocketAddr =
        address.parse().map_err(|_| Error::new(Code::CONFIG, format!("\"{address}\" is not IP:PORT")))?;
    TcpListener::bind(parsed).await.map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::AddrInUse { Code::PORT_TAKEN } else { Code::CONFIG };
        Error::new(code, format!("cannot listen on {address}: {error}"))
            .hint(format!("see who listens with: ss -ltnp 'sport = :{}'", parsed.port()))
    })
}

/// Returns when standard input ends: then the process that started us is gone or wants us to stop.
pub(crate) async fn parent_gone() {
    let mut stdin = tokio::io::stdin();
    let mut scratch = [0u8; 64];
    while stdin.read(&mut scratch).await.is_ok_and(|read| read > 0) {}
}
