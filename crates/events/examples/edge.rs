//! The MQTT and HTTP edges over a ledger in memory that takes 5 ms for a commit, as a disk would: for trying clients by
//! hand and for measuring the edges alone.
//!
//!     cargo run --release -p buttress-events --example edge -- 1883 8080
//!     mosquitto_sub -p 1883 -t 'alerts/#' -v &
//!     mosquitto_pub -p 1883 -t alerts/m1 -q 1 -m hot
//!     curl -d '{"machine":"m1","seq":1}' localhost:8080/events

use std::{convert::Infallible, sync::Arc, time::Duration};

use buttress_core::{
    BoxFuture, Cluster, Consistency, Entry, Error, KeyRange, Ledger, Receipt, Revision, Scope, SubmitError, TimeMs,
    entry::TopicSettings,
    ledger::{ClusterView, KeyValues, Watch},
};
use buttress_events::{
    http::{EventsHttp, Options as HttpOptions},
    ingest::{Deps, Ingest, Options as IngestOptions},
    mqtt::{Broker, Options as MqttOptions},
};
use buttress_state::local::Local;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use tokio::net::TcpListener;

/// The ledger in memory, as slow as a disk and with the clock of this machine.
struct Slow(Arc<Local>);

impl Ledger for Slow {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.0.submit(entry).await
        })
    }

    fn read(&self, range: KeyRange, limit: usize, how: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        self.0.read(range, limit, how)
    }

    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        self.0.state(space, keys)
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        self.0.watch(range, from)
    }

    fn scope(&self) -> Scope {
        Scope::Entry
    }
}

impl Cluster for Slow {
    fn view(&self) -> ClusterView {
        self.0.view()
    }

    fn changed(&self, seen: &ClusterView) -> BoxFuture<'_, ClusterView> {
        self.0.changed(seen)
    }

    fn now(&self) -> TimeMs {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("the clock is past 1970");
        TimeMs(since.as_millis() as u64)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port = |at: usize, default: u16| std::env::args().nth(at).map_or(default, |p| p.parse().expect("a port"));
    let (mqtt_port, http_port) = (port(1, 1883), port(2, 8080));
    let local = Local::new();
    let sequence_fields = Some(("machine".into(), "seq".into()));
    local.create_topic("telemetry", 8, TopicSettings { sequence_fields, ..TopicSettings::default() });
    local.create_topic("alerts", 4, TopicSettings::default());
    let slow = Arc::new(Slow(local.clone()));
    let deps = Deps { ledger: slow.clone(), stream: local, cluster: slow };
    let ingest = Ingest::new(deps, IngestOptions::default());
    tokio::spawn(ingest.clone().run());
    let broker = Broker::new(ingest.clone(), MqttOptions::default());
    let mqtt = TcpListener::bind(("127.0.0.1", mqtt_port)).await.expect("a free port for MQTT");
    tokio::spawn(broker.clone().serve(mqtt));
    let edge = Arc::new(EventsHttp::new(ingest.clone(), HttpOptions::default()));
    let http = TcpListener::bind(("127.0.0.1", http_port)).await.expect("a free port for HTTP");
    println!("mqtt 127.0.0.1:{mqtt_port} http 127.0.0.1:{http_port}/metrics");
    loop {
        let (socket, _) = http.accept().await.expect("descriptors are left");
        let (edge, broker, ingest) = (edge.clone(), broker.clone(), ingest.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (edge, broker, ingest) = (edge.clone(), broker.clone(), ingest.clone());
            async move {
                if request.uri().path() == "/metrics" {
                    let mut out = String::new();
                    broker.counters().prometheus(&mut out);
                    ingest.counters().prometheus(&mut out);
                    edge.prometheus(&mut out);
                    return Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(out))));
                }
                let (head, body) = request.into_parts();
                let answer = match Limited::new(body, 8 * 1024 * 1024).collect().await {
                    Ok(body) => edge.route(Request::from_parts(head, body.to_bytes())).await,
                    Err(_) => Some(Response::builder().status(413).body(Bytes::new()).expect("a response")),
                };
                let none = || Response::builder().status(404).body(Bytes::new()).expect("a response");
                Ok(answer.unwrap_or_else(none).map(Full::new))
            }
        });
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(socket), service);
        tokio::spawn(connection);
    }
}
