//! One connection, from its first byte to its last.
//!
//! One task owns the socket and does everything in turn: decode what has arrived, queue publishes, write PUBACKs for
//! outcomes that have come, write messages from the mailbox, then wait for whatever is next. Transitions:
//!
//! ```text
//! stranger ── CONNECT ──▶ connected ── DISCONNECT ──▶ ended, no will
//!    │ anything else,        │ malformed packet, refused record, silence, taken over, too slow, socket closed
//!    ▼ or 10 s               ▼
//!  ended                  ended, will published
//! ```
//!
//! A session that is idle holds no buffer: input is allocated for the bytes that came and let go with the last packet
//! in it, output likewise. Its one timer is armed for the earliest of: keep-alive × 1.5, a packet that stays
//! unfinished, a peer that does not read. It is not moved for every packet but looks again when it fires.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_wire::mqtt::{self, Connect, ConnectCode, Filter, Packet, Publish, Qos, Text, Will};
use bytes::{Buf, Bytes, BytesMut};
use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{
    Broker,
    hub::{Kill, Mailbox},
    rules::TOPIC_HEADER,
};
use crate::ingest::{Incoming, Item, Lane, Outcome};

/// One read from the socket. Lives on the stack while polled.
const READ_BYTES: usize = 8 * 1024;
/// With this much unsent output neither publishes are read nor messages taken from the mailbox.
const OUTPUT_HIGH: usize = 64 * 1024;
/// Longest client id. MQTT asks for 23 at least (MQTT-3.1.3-5).
const CLIENT_ID_BYTES_MAX: usize = 256;
/// How long a closing connection may take for its last acknowledgements.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The tag of a publish that wants no PUBACK.
const NO_ACK: u64 = u64::MAX;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    Disconnect,
    PeerClosed,
    Io(io::Error),
    Malformed(mqtt::Error),
    /// A CONNECT that was answered with this code.
    Turned(ConnectCode, &'static str),
    /// What the peer sent cannot be taken.
    Refused(Error),
    /// A record that was taken could not be committed.
    Uncommitted(Error),
    KeepAlive,
    PacketTimeout,
    NotReading,
    TakenOver,
    SlowSubscriber,
}

impl End {
    fn log(&self, client_id: &str, peer: &str) {
        let (code, error, hint) = match self {
            Self::Disconnect | Self::PeerClosed => {
                tracing::debug!(client_id, peer, end = ?self, "mqtt connection ended");
                return;
            }
            Self::Io(error) => {
                tracing::debug!(client_id, peer, error = %error, "mqtt connection broke");
                return;
            }
            Self::TakenOver => {
                tracing::info!(client_id, peer, "mqtt session taken over by a newer connection");
                return;
            }
            Self::Malformed(error @ mqtt::Error::TooLarge { .. }) => {
                (Code::TOO_LARGE, error.to_string(), "send smaller packets, or raise the packet limit")
            }
            Self::Malformed(error @ mqtt::Error::Level(_)) => {
                (Code::UNSUPPORTED, error.to_string(), "set the client to MQTT 3.1.1")
            }
            Self::Malformed(error) => (Code::BAD_REQUEST, error.to_string(), "the peer does not speak MQTT 3.1.1"),
            Self::Turned(_, why) => (Code::BAD_REQUEST, (*why).to_owned(), ""),
            Self::Refused(error) | Self::Uncommitted(error) => {
                (error.code, error.message.clone(), error.hint.as_deref().unwrap_or(""))
            }
            Self::KeepAlive => (Code::TIMEOUT, "nothing came for 1.5 times the keep-alive".to_owned(), ""),
            Self::PacketTimeout => (Code::TIMEOUT, "a packet was not finished in time".to_owned(), ""),
            Self::NotReading => (Code::TIMEOUT, "the peer does not read".to_owned(), ""),
            Self::SlowSubscriber => (
                Code::OVERLOADED,
                "more messages wait than the subscriber's queue holds".to_owned(),
                "subscribe to less, read faster, or raise the outbox limit",
            ),
        };
        tracing::warn!(client_id, peer, code = %code, error = %error, hint = %hint, "mqtt connection closed");
    }
}

/// A socket with its buffers.
struct Wire<IO> {
    io: IO,
    input: BytesMut,
    output: BytesMut,
    broker: Arc<Broker>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Wire<IO> {
    fn decode(&mut self) -> Result<Option<Packet>, End> {
        let packet = mqtt::decode(&mut self.input, self.broker.options.packet_bytes_max).map_err(End::Malformed);
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        packet
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let mut scratch = [std::mem::MaybeUninit::uninit(); READ_BYTES];
        let mut read = ReadBuf::uninit(&mut scratch);
        match ready!(Pin::new(&mut self.io).poll_read(cx, &mut read)) {
            Err(error) => Poll::Ready(Err(End::Io(error))),
            Ok(()) if read.filled().is_empty() => Poll::Ready(Err(End::PeerClosed)),
            Ok(()) => {
                self.input.extend_from_slice(read.filled());
                self.broker.counters.bytes_in.fetch_add(read.filled().len() as u64, Relaxed);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Writes what it can; ready when something went out.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let mut wrote = false;
        while !self.output.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, &self.output) {
                Poll::Pending if wrote => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(End::Io(error))),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(End::PeerClosed)),
                Poll::Ready(Ok(n)) => {
                    wrote = true;
                    self.output.advance(n);
                    self.broker.counters.bytes_out.fetch_add(n as u64, Relaxed);
                }
            }
        }
        self.output = BytesMut::new();
        // A plain socket has nothing to flush; a TLS stream may, and wakes us until it has.
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(End::Io(error))),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Sends what is left and closes; gives up after a while.
    async fn close(mut self) {
        let last = async {
            while !self.output.is_empty() {
                if poll_fn(|cx| self.poll_write(cx)).await.is_err() {
                    return;
                }
            }
            let _ = poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await;
        };
        let _ = timeout(LAST_WORDS, last).await;
    }
}

/// Serves one connection until it ends.
pub(super) async fn run(broker: Arc<Broker>, io: impl AsyncRead + AsyncWrite + Unpin, peer: String) {
    let mut wire = Wire { io, input: BytesMut::new(), output: BytesMut::new(), broker: broker.clone() };
    let handshake = async {
        loop {
            if let Some(packet) = wire.decode()? {
                return Ok(packet);
            }
            poll_fn(|cx| wire.poll_read(cx)).await?;
        }
    };
    let first = match timeout(broker.options.connect_timeout, handshake).await {
        Err(_) => Err(End::PacketTimeout),
        Ok(Ok(Packet::Connect(connect))) => accept(*connect),
        Ok(Ok(other)) => Err(End::Refused(Error::new(
            Code::BAD_REQUEST,
            format!("the first packet is {}, not CONNECT [MQTT-3.1.0-1]", other.name()),
        ))),
        Ok(Err(end)) => Err(end),
    };
    let connect = match first {
        Ok(connect) => connect,
        Err(end) => {
            match &end {
                End::Malformed(mqtt::Error::Level(level)) => mqtt::refuse_level(*level, &mut wire.output),
                End::Turned(code, _) => {
                    Packet::Connack { session_present: false, code: *code }.encode(&mut wire.output)
                }
                _ => {}
            }
            if !matches!(end, End::PeerClosed) {
                broker.counters.refused.fetch_add(1, Relaxed);
            }
            end.log("", &peer);
            wire.close().await;
            return;
        }
    };
    broker.counters.connects.fetch_add(1, Relaxed);
    let registered = Registered::new(&broker, connect.client_id.clone());
    Packet::Connack { session_present: false, code: ConnectCode::Accepted }.encode(&mut wire.output);
    tracing::debug!(client_id = %&*connect.client_id, peer = %peer, clean = connect.clean_session, "mqtt session begins");

    let mut session = Session::new(wire, registered, connect.keep_alive_s);
    let end = session.serve().await;
    end.log(&connect.client_id, &peer);
    let Session { wire, registered, lane, .. } = session;
    if matches!(end, End::Uncommitted(_)) {
        // What follows it would be appended out of order; the client sends all of it again.
        broker.ingest.abandon(&lane);
    }
    if !matches!(end, End::Disconnect | End::PeerClosed | End::Io(_) | End::TakenOver) {
        broker.counters.refused.fetch_add(1, Relaxed);
    }
    if matches!(end, End::SlowSubscriber) {
        broker.counters.slow_subscribers.fetch_add(1, Relaxed);
    }
    drop(registered);
    wire.close().await;
    if let Some(will) = connect.will
        && !matches!(end, End::Disconnect)
    {
        publish_will(&broker, &connect.client_id, will).await;
    }
}

/// Completes or turns away a well-formed CONNECT.
fn accept(mut connect: Connect) -> Result<Connect, End> {
    if connect.client_id.len() > CLIENT_ID_BYTES_MAX {
        return Err(End::Turned(ConnectCode::IdentifierRejected, "client id is longer than 256 bytes"));
    }
    if connect.client_id.is_empty() {
        if !connect.clean_session {
            let why = "an empty client id needs a clean session [MQTT-3.1.3-8]";
            return Err(End::Turned(ConnectCode::IdentifierRejected, why));
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|_| End::Turned(ConnectCode::ServerUnavailable, "the system gives no random bytes"))?;
        let name = format!("auto-{:016x}", u64::from_be_bytes(random));
        connect.client_id = Text::new(name.into()).expect("hex digits are text");
    }
    Ok(connect)
}

async fn publish_will(broker: &Arc<Broker>, client_id: &str, will: Will) {
    let prepared = prepare(broker, &will.topic, will.payload, broker.ingest.now_ms(), NO_ACK);
    let result = match prepared {
        Err(error) => Err(error),
        Ok(item) => {
            let lane = Lane::new(Arc::new(AtomicWaker::new()));
            broker.ingest.enqueue(&lane, &mut vec![item]);
            let outcome = lane.answered().await.pop().expect("one item, one outcome");
            outcome.result.map(|_| ())
        }
    };
    match result {
        Ok(()) => {
            broker.counters.wills.fetch_add(1, Relaxed);
        }
        Err(error) => {
            broker.counters.dropped.fetch_add(1, Relaxed);
            tracing::warn!(client_id, topic = %&*will.topic, code = %error.code, error = %error.message,
                "mqtt will not published");
        }
    }
}

/// Turns a message into a record by the rules.
fn prepare(
    broker: &Broker,
    name: &mqtt::TopicName,
    payload: Bytes,
    timestamp_ms: i64,
    tag: u64,
) -> Result<Item, Error> {
    let (topic, key) = broker.options.rules.target(name);
    let route = broker.ingest.route(topic).map_err(|error| {
        let message = format!("mqtt topic {:?} stands for topic {topic:?}, which does not exist", &**name);
        let hint = format!("create topic {topic:?}, or map the name to another one with an MQTT rule");
        Error { message, hint: Some(hint), ..error }
    })?;
    let incoming = Incoming {
        partition: None,
        key,
        value: Some(payload),
        headers: vec![(Bytes::from_static(TOPIC_HEADER.as_bytes()), name.text().bytes().clone())],
        timestamp_ms,
    };
    broker.ingest.prepare(&route, incoming, tag)
}

/// The session's entry in the hub, which goes with it however it ends.
struct Registered {
    broker: Arc<Broker>,
    mailbox: Arc<Mailbox>,
    filters: Vec<Filter>,
}

impl Registered {
    fn new(broker: &Arc<Broker>, client_id: Text) -> Self {
        broker.counters.sessions.fetch_add(1, Relaxed);
        let mailbox = broker.hub.connect(client_id, &broker.options);
        Self { broker: broker.clone(), mailbox, filters: Vec::new() }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.broker.hub.disconnect(&self.mailbox, &self.filters);
        self.broker.counters.sessions.fetch_sub(1, Relaxed);
    }
}

struct Session<IO> {
    wire: Wire<IO>,
    registered: Registered,
    lane: Arc<Lane>,
    /// Publishes of this round, queued together.
    items: Vec<Item>,
    outcomes: Vec<Outcome>,
    /// Packet identifiers of messages that the peer has not acknowledged.
    in_flight: VecDeque<u16>,
    next_id: u16,
    keep_alive: Option<Duration>,
    /// When the last packet was complete, or the last outcome came.
    active_at: Instant,
    partial_since: Option<Instant>,
    stalled_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    armed: Option<Instant>,
    drop_reported: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Session<IO> {
    fn new(wire: Wire<IO>, registered: Registered, keep_alive_s: u16) -> Self {
        let now = Instant::now();
        let keep_alive = (keep_alive_s > 0).then(|| Duration::from_millis(u64::from(keep_alive_s) * 1500));
        Self {
            wire,
            lane: Lane::new(registered.mailbox.waker.clone()),
            registered,
            items: Vec::new(),
            outcomes: Vec::new(),
            in_flight: VecDeque::new(),
            next_id: 0,
            keep_alive,
            active_at: now,
            partial_since: None,
            stalled_since: None,
            timer: Box::pin(sleep_until(now)),
            armed: None,
            drop_reported: false,
        }
    }

    async fn serve(&mut self) -> End {
        loop {
            let read = self.take_packets();
            // What came before the packet that ends the connection was sent, and is kept.
            let broker = self.wire.broker.clone();
            broker.ingest.enqueue(&self.lane, &mut self.items);
            if let Err(end) = read {
                return end;
            }
            if let Err(end) = self.take_outcomes() {
                return end;
            }
            self.take_messages();
            if let Err(end) = poll_fn(|cx| self.poll_next(cx)).await {
                return end;
            }
        }
    }

    /// Whether another publish may be taken in now.
    fn may_read(&self) -> bool {
        let unanswered = self.lane.unanswered() + self.items.len();
        unanswered < self.wire.broker.options.unanswered_max
            && self.wire.output.len() < OUTPUT_HIGH
            && (unanswered == 0 || !self.wire.broker.ingest.overloaded())
    }

    fn may_send(&self) -> bool {
        self.wire.output.len() < OUTPUT_HIGH && self.in_flight.len() < self.wire.broker.options.in_flight_max
    }

    fn take_packets(&mut self) -> Result<(), End> {
        let mut now = None;
        while self.may_read() {
            let Some(packet) = self.wire.decode()? else {
                if self.wire.input.is_empty() {
                    self.partial_since = None;
                } else if self.partial_since.is_none() || now.is_some() {
                    self.partial_since = Some(Instant::now());
                }
                break;
            };
            if now.is_none() {
                now = Some(self.wire.broker.ingest.now_ms());
                self.active_at = Instant::now();
            }
            self.packet(packet, now.expect("just set"))?;
        }
        Ok(())
    }

    fn packet(&mut self, packet: Packet, now_ms: i64) -> Result<(), End> {
        let violation = |message: String| Err(End::Refused(Error::new(Code::BAD_REQUEST, message)));
        match packet {
            Packet::Publish(publish) => self.publish(publish, now_ms)?,
            Packet::Puback { packet_id } => {
                if let Some(at) = self.in_flight.iter().position(|id| *id == packet_id) {
                    self.in_flight.remove(at);
                }
            }
            Packet::Subscribe { packet_id, filters } => {
                let granted = filters.into_iter().map(|(filter, qos)| self.subscribe(filter, qos)).collect();
                Packet::Suback { packet_id, granted }.encode(&mut self.wire.output);
            }
            Packet::Unsubscribe { packet_id, filters } => {
                for filter in filters {
                    if let Some(at) = self.registered.filters.iter().position(|have| *have == filter) {
                        self.registered.filters.swap_remove(at);
                        self.wire.broker.hub.unsubscribe(&self.registered.mailbox, &filter);
                    }
                }
                Packet::Unsuback { packet_id }.encode(&mut self.wire.output);
            }
            Packet::Pingreq => Packet::Pingresp.encode(&mut self.wire.output),
            Packet::Disconnect => return Err(End::Disconnect),
            Packet::Connect(_) => return violation("a second CONNECT [MQTT-3.1.0-2]".into()),
            Packet::Pubrec { .. } | Packet::Pubrel { .. } | Packet::Pubcomp { .. } => {
                return violation(format!("{} without a QoS 2 message", packet.name()));
            }
            Packet::Connack { .. } | Packet::Suback { .. } | Packet::Unsuback { .. } | Packet::Pingresp => {
                return violation(format!("{} is for servers to send", packet.name()));
            }
        }
        Ok(())
    }

    fn publish(&mut self, publish: Publish, now_ms: i64) -> Result<(), End> {
        let broker = &self.wire.broker;
        broker.counters.publishes.fetch_add(1, Relaxed);
        if publish.qos == Qos::ExactlyOnce {
            let message = format!("a QoS 2 message to {:?}: QoS 2 is not served yet", &*publish.topic);
            let hint = "publish with QoS 1; a topic with sequence fields takes nothing twice";
            return Err(End::Refused(Error::new(Code::UNSUPPORTED, message).hint(hint)));
        }
        let tag = publish.packet_id.map_or(NO_ACK, u64::from);
        match prepare(broker, &publish.topic, publish.payload, now_ms, tag) {
            Ok(item) => self.items.push(item),
            Err(error) if tag == NO_ACK && error.code == Code::TOPIC_UNKNOWN => self.dropped(&error),
            Err(error) => return Err(End::Refused(error)),
        }
        Ok(())
    }

    /// A QoS 0 message is gone; said once per session.
    fn dropped(&mut self, error: &Error) {
        self.wire.broker.counters.dropped.fetch_add(1, Relaxed);
        if !std::mem::replace(&mut self.drop_reported, true) {
            tracing::warn!(client_id = %&*self.registered.mailbox.client_id, code = %error.code, error = %error.message,
                "qos 0 messages dropped");
        }
    }

    fn subscribe(&mut self, filter: Filter, qos: Qos) -> Option<Qos> {
        let broker = self.wire.broker.clone();
        let client_id = &*self.registered.mailbox.client_id;
        if filter.starts_with("$share/") {
            tracing::warn!(client_id, filter = %&*filter, code = %Code::UNSUPPORTED, "shared subscription refused");
            return None;
        }
        let known = self.registered.filters.contains(&filter);
        if !known && self.registered.filters.len() >= broker.options.filters_max {
            tracing::warn!(client_id, limit = broker.options.filters_max, code = %Code::TOO_LARGE,
                "subscription refused: too many filters");
            return None;
        }
        let granted = qos.min(Qos::AtLeastOnce);
        broker.hub.subscribe(&self.registered.mailbox, &filter, granted, known);
        if !known {
            self.registered.filters.push(filter);
        }
        Some(granted)
    }

    /// Acknowledges what is committed, in the order of the publishes (MQTT-4.6.0-2).
    fn take_outcomes(&mut self) -> Result<(), End> {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        self.lane.take_outcomes(&mut outcomes);
        if !outcomes.is_empty() {
            self.active_at = Instant::now();
            self.partial_since = self.partial_since.map(|_| self.active_at);
        }
        for Outcome { tag, result } in outcomes.drain(..) {
            match result {
                Ok(_) if tag == NO_ACK => {}
                Ok(_) => {
                    let packet_id = u16::try_from(tag).expect("tags are packet identifiers");
                    Packet::Puback { packet_id }.encode(&mut self.wire.output);
                    self.wire.broker.counters.pubacks.fetch_add(1, Relaxed);
                }
                // Its number is in the way of all that follow, so the device must hear of it.
                Err(error) if tag == NO_ACK && !matches!(error.code, Code::SEQUENCE_GAP | Code::EPOCH_STALE) => {
                    self.dropped(&error);
                }
                Err(error) => return Err(End::Uncommitted(error)),
            }
        }
        self.outcomes = outcomes;
        Ok(())
    }

    fn take_messages(&mut self) {
        while self.may_send() {
            let Some(message) = self.registered.mailbox.pop() else { break };
            let packet_id = (message.qos == Qos::AtLeastOnce).then(|| self.new_id());
            let publish = Publish {
                dup: false,
                qos: message.qos,
                retain: false,
                topic: message.topic,
                packet_id,
                payload: message.payload,
            };
            publish.encode(&mut self.wire.output);
            self.wire.broker.hub.counters().delivered.fetch_add(1, Relaxed);
        }
    }

    fn new_id(&mut self) -> u16 {
        loop {
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains(&self.next_id) {
                self.in_flight.push_back(self.next_id);
                return self.next_id;
            }
        }
    }

    /// Ready when there is something to do, or a reason to end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        // Registered before looking, so that nothing that comes in between is missed.
        self.registered.mailbox.waker.register(cx.waker());
        match self.registered.mailbox.killed() {
            Some(Kill::TakenOver) => return Poll::Ready(Err(End::TakenOver)),
            Some(Kill::Slow) => return Poll::Ready(Err(End::SlowSubscriber)),
            None => {}
        }
        let mut progress = self.lane.has_outcomes();
        if !self.wire.output.is_empty() {
            match self.wire.poll_write(cx) {
                Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                Poll::Ready(Ok(())) => {
                    self.stalled_since = (!self.wire.output.is_empty()).then(Instant::now);
                    // What was too much before may fit now.
                    progress |= self.may_read() && !self.wire.input.is_empty();
                }
                Poll::Pending => {
                    self.stalled_since.get_or_insert_with(Instant::now);
                }
            }
        }
        progress |= self.may_send() && self.registered.mailbox.has_messages();
        if self.may_read() {
            match self.wire.poll_read(cx) {
                Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                Poll::Ready(Ok(())) => progress = true,
                Poll::Pending => {}
            }
        }
        if progress {
            return Poll::Ready(Ok(()));
        }
        self.poll_timer(cx).map(Err)
    }

    /// The earliest moment at which patience ends, and with what.
    fn deadline(&self) -> Option<(Instant, End)> {
        let options = &self.wire.broker.options;
        // While publishes wait for their commit the socket may be unread: then the silence is ours.
        let silence = self.keep_alive.filter(|_| self.lane.unanswered() == 0);
        [
            silence.map(|patience| (self.active_at + patience, End::KeepAlive)),
            self.partial_since
                .filter(|_| self.may_read())
                .map(|since| (since + options.packet_timeout, End::PacketTimeout)),
            self.stalled_since.map(|since| (since + options.packet_timeout, End::NotReading)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Some((at, end)) = self.deadline() else { return Poll::Pending };
        loop {
            if self.armed.is_none_or(|armed| armed > at) {
                self.timer.as_mut().reset(at);
                self.armed = Some(at);
            }
            ready!(self.timer.as_mut().poll(cx));
            let fired = self.armed.take();
            if fired == Some(at) {
                return Poll::Ready(end);
            }
        }
    }
}
