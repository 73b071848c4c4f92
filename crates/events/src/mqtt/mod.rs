//! MQTT 3.1.1 in, and records out again.
//!
//! The problem: devices speak MQTT and believe a PUBACK. Here it is written only after the entry that holds the record is
//! committed, and where that cannot be, the connection is closed with a logged reason, because 3.1.1 has no
//! other way to say no: the client reconnects and sends again, and a topic with sequence fields takes nothing twice.
//!
//! * [`rules`] says which topic and key an MQTT topic name stands for, and back.
//! * [`hub`] knows the sessions and their filters, and tails the partitions that some filter asks for.
//! * [`session`] is one connection: one task, no timer but one, buffers only while there is something in them.
//!
//! Sessions end with their connection (COMPAT.md): CONNACK says `session present = 0`, and nothing is kept for a client that is
//! away. QoS 2 and retained messages are not served; COMPAT.md says what happens instead.

pub mod hub;
pub mod rules;
mod session;
mod tree;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::Code;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};

use crate::ingest::{Ingest, counter_line};
use hub::Hub;
pub use rules::{KeyFrom, Rule, Rules};

/// Limits and rules of the edge.
#[derive(Clone, Debug)]
pub struct Options {
    pub rules: Rules,
    /// Largest control packet, either way.
    pub packet_bytes_max: usize,
    /// Connections served at a time; further ones are closed at once.
    pub connections_max: usize,
    /// How long a stranger may take for its CONNECT.
    pub connect_timeout: Duration,
    /// How long the rest of a packet may take once its first byte is there.
    pub packet_timeout: Duration,
    /// PUBLISH packets of one connection that wait for their commit; then its socket is not read.
    pub unanswered_max: usize,
    /// Messages and bytes that wait for one subscriber; more, and it is disconnected as too slow.
    pub outbox_messages_max: usize,
    pub outbox_bytes_max: usize,
    /// QoS 1 messages sent to a subscriber and not yet acknowledged by it.
    pub in_flight_max: usize,
    /// Filters of one session.
    pub filters_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            packet_bytes_max: 1024 * 1024,
            connections_max: 65_536,
            connect_timeout: Duration::from_secs(10),
            packet_timeout: Duration::from_secs(30),
            unanswered_max: 256,
            outbox_messages_max: 1024,
            outbox_bytes_max: 1024 * 1024,
            in_flight_max: 64,
            filters_max: 256,
        }
    }
}

/// Plain counters; [`Counters::prometheus`] prints them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Sessions connected now.
    pub sessions: AtomicU64,
    pub connects: AtomicU64,
    /// Connections refused or closed by us, for whatever reason.
    pub refused: AtomicU64,
    pub slow_subscribers: AtomicU64,
    pub publishes: AtomicU64,
    pub pubacks: AtomicU64,
    /// QoS 0 messages that could not be kept.
    pub dropped: AtomicU64,
    pub delivered: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub wills: AtomicU64,
}

impl Counters {
    /// Appends the counters in Prometheus' text form.
    pub fn prometheus(&self, out: &mut String) {
        let sessions = self.sessions.load(Relaxed);
        out.push_str("# TYPE buttress_events_mqtt_sessions gauge\n");
        out.push_str(&format!("buttress_events_mqtt_sessions {sessions}\n"));
        for (name, counter) in [
            ("connects_total", &self.connects),
            ("refused_total", &self.refused),
            ("slow_subscribers_total", &self.slow_subscribers),
            ("publishes_total", &self.publishes),
            ("pubacks_total", &self.pubacks),
            ("dropped_total", &self.dropped),
            ("delivered_total", &self.delivered),
            ("bytes_in_total", &self.bytes_in),
            ("bytes_out_total", &self.bytes_out),
            ("wills_total", &self.wills),
        ] {
            counter_line(out, &format!("buttress_events_mqtt_{name}"), counter.load(Relaxed));
        }
    }
}

/// What all sessions of the node share.
pub struct Broker {
    ingest: Arc<Ingest>,
    options: Options,
    hub: Arc<Hub>,
    counters: Arc<Counters>,
}

impl Broker {
    pub fn new(ingest: Arc<Ingest>, options: Options) -> Arc<Self> {
        assert!(options.in_flight_max < usize::from(u16::MAX), "packet identifiers are 16 bits");
        let counters = Arc::new(Counters::default());
        let hub = Hub::new(ingest.deps().stream.clone(), options.rules.clone(), counters.clone());
        Arc::new(Self { ingest, options, hub, counters })
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Accepts connections for as long as it is polled; dropping it closes them all.
    ///
    /// [`Ingest::run`] must be polled as well: without it nothing is ever acknowledged.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        let hub = self.hub.clone();
        connections.spawn(async move { hub.watch_topics().await });
        let _stop = hub::StopTailers(self.hub.clone());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(error = %error, "mqtt session stopped by a bug");
                    }
                    continue;
                }
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: what is connected goes on, and the next try comes a little later.
                    tracing::warn!(code = %Code::LIMITS, error = %error, hint = "raise the limit of open files (ulimit -n)",
                        "mqtt connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if connections.len() > self.options.connections_max {
                self.counters.refused.fetch_add(1, Relaxed);
                tracing::warn!(code = %Code::OVERLOADED, peer = %peer, limit = self.options.connections_max,
                    "mqtt connection refused");
                continue;
            }
            // Acknowledgements are small and awaited.
            let _ = socket.set_nodelay(true);
            connections.spawn(session::run(self.clone(), socket, peer.to_string()));
        }
    }

    /// Serves one connection that some other listener accepted (TLS, a test's pipe).
    pub async fn serve_connection(self: Arc<Self>, io: impl AsyncRead + AsyncWrite + Unpin, peer: String) {
        session::run(self, io, peer).await;
    }
}

/// Serves MQTT on `listener` for as long as it is polled.
pub async fn serve(listener: TcpListener, ingest: Arc<Ingest>, options: Options) {
    Broker::new(ingest, options).serve(listener).await;
}
