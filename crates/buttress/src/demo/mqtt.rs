//! MQTT players on the stock client `rumqttc`: one session carries the readings of some machines, each at QoS 1.
//!
//! **What the client does not do.** A publisher is not told which packet id its message got, and after a lost connection
//! to one broker the client cannot move to another. So the session keeps its own queue: readings in the order of
//! their machines, each until its PUBACK. The event loop reports the packet ids in the order in which messages
//! were given to it, which maps every PUBACK to its reading. After a loss a new client is made for the next node and
//! everything unacknowledged is published again in the same order, so that no machine's sequence ever has a gap; what was
//! in the log already is recognised there and not appended again.
//!
//! **Wake-ups.** The reading's producer hands it straight to the client's channel; the session's task wakes once for a
//! run of readings.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};

use super::{cluster::NodeAddress, journal::Journal};

/// An unacknowledged reading older than this on a connection that looks alive makes the session try another node.
const ACK_WAIT_MAX: Duration = Duration::from_secs(5);
/// Pauses between attempts to connect grow to this.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// A reading on its way.
struct Pending {
    machine: u32,
    seq: u32,
    payload: Bytes,
    /// 0 until the event loop has reported it.
    packet_id: u16,
    acked: bool,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Pending>,
    /// Of the items, how many the present client was given.
    handed: usize,
    /// Of those, how many have their packet id.
    numbered: usize,
    /// There while connected.
    client: Option<AsyncClient>,
    /// Since when the oldest reading in flight has waited: the last acknowledgement, or when it was sent.
    waiting_since: Option<Instant>,
}

/// One MQTT session.
pub struct Session {
    number: usize,
    /// Packets in flight; small where there is one session per machine.
    window: u16,
    queue: Mutex<Queue>,
    names: Arc<Vec<String>>,
    journal: Arc<Journal>,
}

impl Session {
    pub fn new(number: usize, window: u16, names: Arc<Vec<String>>, journal: Arc<Journal>) -> Self {
        Self { number, window, queue: Mutex::default(), names, journal }
    }

    /// Queues a reading behind those of the same session.
    pub fn push(&self, machine: u32, seq: u32, payload: Bytes) {
        let mut queue = self.queue.lock().expect("no panic under this lock");
        queue.items.push_back(Pending { machine, seq, payload, packet_id: 0, acked: false });
        queue.hand_over(&self.names);
    }

    pub fn connected(&self) -> bool {
        self.queue.lock().expect("no panic under this lock").client.is_some()
    }

    pub fn disconnect(&self) {
        if let Some(client) = &self.queue.lock().expect("no panic under this lock").client {
            // A full channel only means that the connection is closed without a DISCONNECT.
            let _ = client.try_disconnect();
        }
    }

    /// Keeps the session connected, to one node after the other, until it is aborted.
    pub async fn run(self: Arc<Self>, nodes: Arc<Vec<NodeAddress>>) {
        let mut node = self.number % nodes.len();
        let mut failures = 0u32;
        loop {
            let was_connected = self.connection(&nodes[node]).await;
            let resend = self.queue.lock().expect("no panic under this lock").lost();
            self.journal.count_retries(resend);
            node = (node + 1) % nodes.len();
            failures = if was_connected { 0 } else { failures + 1 };
            // Sessions of a killed node come back spread over some tens of milliseconds, not all in one instant.
            let spread = Duration::from_millis(1 + self.number as u64 % 40);
            let pause = Duration::from_millis(10) * (1 << failures.min(6));
            tokio::time::sleep(spread + pause.min(PAUSE_MAX)).await;
        }
    }

    /// One connection from CONNECT to its loss. Whether it was ever accepted.
    async fn connection(&self, node: &NodeAddress) -> bool {
        let Some((host, port)) = node.mqtt.rsplit_once(':') else { return false };
        let Ok(port) = port.parse() else { return false };
        let mut options = MqttOptions::new(format!("plant-{:05}", self.number), host, port);
        options.set_keep_alive(Duration::from_secs(60)).set_clean_session(true).set_inflight(self.window);
        let (client, mut events) = AsyncClient::new(options, usize::from(self.window));
        let mut network = events.network_options();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(3);
        events.set_network_options(network);
        let mut client = Some(client);
        loop {
            match self.poll(&mut events).await {
                Ok(Some(Event::Incoming(Packet::ConnAck(_)))) => {
                    let mut queue = self.queue.lock().expect("no panic under this lock");
                    if let Some(client) = client.take() {
                        queue.client = Some(client);
                        queue.hand_over(&self.names);
                    }
                }
                Ok(Some(Event::Incoming(Packet::PubAck(ack)))) => {
                    let mut queue = self.queue.lock().expect("no panic under this lock");
                    queue.acknowledge(ack.pkid, &self.journal);
                    queue.hand_over(&self.names);
                }
                Ok(Some(Event::Outgoing(Outgoing::Publish(packet_id)))) => {
                    let mut queue = self.queue.lock().expect("no panic under this lock");
                    queue.number(packet_id);
                    if queue.stuck() {
                        return true;
                    }
                }
                Ok(Some(Event::Outgoing(Outgoing::Disconnect))) => {
                    // Only asked for at the end, when nothing is left to send.
                    std::future::pending::<()>().await;
                }
                Ok(_) => {
                    let queue = self.queue.lock().expect("no panic under this lock");
                    if queue.stuck() {
                        return client.is_none();
                    }
                }
                Err(_) => return client.is_none(),
            }
        }
    }

    /// The next event, or `None` after a while without one. Dropping a poll in the middle is fine where nothing was
    /// happening; where the poll hung, the connection is given up afterwards.
    async fn poll(&self, events: &mut EventLoop) -> Result<Option<Event>, rumqttc::ConnectionError> {
        match tokio::time::timeout(ACK_WAIT_MAX, events.poll()).await {
            Ok(event) => event.map(Some),
            Err(_) => Ok(None),
        }
    }
}

impl Queue {
    /// Gives the client what it has room for.
    fn hand_over(&mut self, names: &[String]) {
        let Some(client) = &self.client else { return };
        while let Some(item) = self.items.get(self.handed) {
            let topic = format!("telemetry/{}", names[item.machine as usize]);
            if client.try_publish(topic, QoS::AtLeastOnce, false, item.payload.as_ref()).is_err() {
                // The channel is full: the next acknowledgement continues here.
                break;
            }
            self.handed += 1;
        }
    }

    /// The event loop has sent the next reading in order under this packet id.
    fn number(&mut self, packet_id: u16) {
        if let Some(item) = self.items.get_mut(self.numbered) {
            item.packet_id = packet_id;
            self.numbered += 1;
            self.waiting_since.get_or_insert_with(Instant::now);
        }
    }

    fn acknowledge(&mut self, packet_id: u16, journal: &Journal) {
        // Acknowledgements come in order but for a broker's whim, so this looks at the first item and stops.
        let found = self.items.iter_mut().take(self.numbered).find(|item| !item.acked && item.packet_id == packet_id);
        if let Some(item) = found {
            item.acked = true;
            journal.acknowledge(item.machine, item.seq);
            self.waiting_since = Some(Instant::now());
        }
        while self.items.front().is_some_and(|item| item.acked) {
            self.items.pop_front();
            self.handed -= 1;
            self.numbered -= 1;
        }
        if self.numbered == 0 {
            self.waiting_since = None;
        }
    }

    /// Sent, connected, and still no acknowledgement for too long.
    fn stuck(&self) -> bool {
        self.waiting_since.is_some_and(|since| since.elapsed() > ACK_WAIT_MAX)
    }

    /// The connection is gone: everything unacknowledged starts anew. Returns how many had been sent.
    fn lost(&mut self) -> usize {
        let sent = self.numbered;
        self.client = None;
        self.handed = 0;
        self.numbered = 0;
        self.waiting_since = None;
        self.items.retain(|item| !item.acked);
        for item in &mut self.items {
            item.packet_id = 0;
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(readings: u32) -> Queue {
        let mut queue = Queue::default();
        for seq in 1..=readings {
            queue.items.push_back(Pending { machine: 0, seq, payload: Bytes::new(), packet_id: 0, acked: false });
        }
        queue
    }

    fn left(queue: &Queue) -> Vec<(u32, u16)> {
        queue.items.iter().map(|item| (item.seq, item.packet_id)).collect()
    }

    #[test]
    fn acknowledgements_find_their_reading_also_out_of_order_and_twice() {
        let journal = Journal::new(1);
        let mut queue = queue(4);
        queue.handed = 3;
        for packet_id in [1, 2, 3] {
            queue.number(packet_id);
        }
        queue.acknowledge(2, &journal);
        queue.acknowledge(2, &journal);
        assert_eq!(left(&queue).len(), 4);
        queue.acknowledge(1, &journal);
        assert_eq!(left(&queue), [(3, 3), (4, 0)]);
        assert_eq!((queue.handed, queue.numbered, journal.acked()), (1, 1, 2));
        // Not yet sent, so nothing can acknowledge it.
        queue.acknowledge(0, &journal);
        assert_eq!(journal.acked(), 2);
    }

    #[test]
    fn after_a_loss_everything_unacknowledged_is_sent_again_in_order() {
        let journal = Journal::new(1);
        let mut queue = queue(4);
        queue.handed = 4;
        for packet_id in [1, 2, 3] {
            queue.number(packet_id);
        }
        queue.acknowledge(2, &journal);
        assert_eq!(queue.lost(), 3);
        assert_eq!(left(&queue), [(1, 0), (3, 0), (4, 0)]);
        assert_eq!((queue.handed, queue.numbered), (0, 0));
        queue.handed = 1;
        queue.number(1);
        queue.acknowledge(1, &journal);
        assert_eq!(left(&queue), [(3, 0), (4, 0)]);
    }

    /// Enough of a broker: CONNACK, and a PUBACK for each PUBLISH until `acks` are spent; then it hangs up.
    async fn broker(listener: tokio::net::TcpListener, mut acks: usize, seen: Arc<Mutex<Vec<String>>>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            loop {
                let kind = stream.read_u8().await.unwrap_or(0);
                if kind == 0 {
                    break;
                }
                let (mut length, mut shift) = (0usize, 0);
                loop {
                    let byte = stream.read_u8().await.unwrap();
                    length |= usize::from(byte & 0x7f) << shift;
                    shift += 7;
                    if byte & 0x80 == 0 {
                        break;
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.unwrap();
                match kind >> 4 {
                    1 => stream.write_all(&[0x20, 2, 0, 0]).await.unwrap(),
                    3 => {
                        let topic = usize::from(body[0]) << 8 | usize::from(body[1]);
                        let payload = String::from_utf8(body[4 + topic..].to_vec()).unwrap();
                        seen.lock().unwrap().push(payload);
                        if acks == 0 {
                            acks = usize::MAX;
                            break;
                        }
                        acks -= 1;
                        stream.write_all(&[0x40, 2, body[2 + topic], body[3 + topic]]).await.unwrap();
                    }
                    _ => {}
                }
            }
        }
    }

    #[tokio::test]
    async fn a_session_moves_to_another_node_and_sends_again_what_was_not_acknowledged() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut nodes = Vec::new();
        // The first node acknowledges two readings and hangs up on the third; the second one takes everything.
        for (id, acks) in [(1, 2), (2, usize::MAX)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mqtt = listener.local_addr().unwrap().to_string();
            nodes.push(NodeAddress { name: format!("n{id}"), id, kafka: String::new(), mqtt, http: String::new() });
            tokio::spawn(broker(listener, acks, Arc::clone(&seen)));
        }
        let journal = Arc::new(Journal::new(1));
        let session = Arc::new(Session::new(0, 16, Arc::new(vec!["m-0".into()]), Arc::clone(&journal)));
        for _ in 0..40 {
            let seq = journal.send(0, false);
            session.push(0, seq, Bytes::from(seq.to_string()));
        }
        let running = tokio::spawn(Arc::clone(&session).run(Arc::new(nodes)));
        while journal.acked() < 40 {
            tokio::task::yield_now().await;
        }
        running.abort();
        let seen: Vec<u32> = seen.lock().unwrap().iter().map(|payload| payload.parse().unwrap()).collect();
        // What the second node got begins with the first unacknowledged reading and has no gap.
        let again = seen.iter().rposition(|seq| *seq == 3).unwrap();
        assert_eq!(seen[again..], (3..=40).collect::<Vec<_>>());
        assert_eq!(journal.snapshot()[0].acked.len(), 40);
        assert!(journal.retries() > 0);
    }
}
