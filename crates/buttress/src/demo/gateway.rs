//! HTTP players: gateways that collect the readings of some machines and post them in batches, as the REST proxy's
//! records (half of them gzipped) or to `/events`.
//!
//! A gateway has at most one request in flight, because the next one would overtake a retry; during a failover its
//! readings queue up and go out in larger batches. What an answer does not name as appended is sent again, in order, to
//! another node.

use std::{
    collections::VecDeque,
    io::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_core::Code;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::Method;
use tokio::sync::Notify;

use super::{
    cluster::NodeAddress,
    http::{Answer, Ask, HttpClient},
    journal::Journal,
};

/// Most readings of one request: 500 of about 200 bytes are 100 KiB.
const BATCH_MAX: usize = 500;
const DEADLINE: Duration = Duration::from_secs(5);
const REST_JSON: &str = "application/vnd.kafka.json.v2+json";

struct Pending {
    machine: u32,
    seq: u32,
    payload: Bytes,
}

/// How a gateway speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// `POST /topics/telemetry`.
    Rest { gzip: bool },
    /// `POST /events?topic=telemetry`.
    Events,
}

/// One gateway.
pub struct Gateway {
    number: usize,
    dialect: Dialect,
    queue: Mutex<VecDeque<Pending>>,
    wake: Notify,
    names: Arc<Vec<String>>,
    journal: Arc<Journal>,
}

impl Gateway {
    pub fn new(number: usize, names: Arc<Vec<String>>, journal: Arc<Journal>) -> Self {
        // Of five gateways two speak REST plain, two REST with gzip, one posts events.
        let dialect = match number % 5 {
            0 | 1 => Dialect::Rest { gzip: false },
            2 | 3 => Dialect::Rest { gzip: true },
            _ => Dialect::Events,
        };
        Self { number, dialect, queue: Mutex::default(), wake: Notify::new(), names, journal }
    }

    /// Queues a reading; [`Gateway::flush`] sends what was queued.
    pub fn push(&self, machine: u32, seq: u32, payload: Bytes) {
        self.queue.lock().expect("no panic under this lock").push_back(Pending { machine, seq, payload });
    }

    pub fn flush(&self) {
        self.wake.notify_one();
    }

    /// Posts batches until it is aborted.
    pub async fn run(self: Arc<Self>, nodes: Arc<Vec<NodeAddress>>) {
        let client = HttpClient::default();
        let mut node = self.number % nodes.len();
        let mut failures = 0u32;
        loop {
            let batch = self.take();
            if batch.is_empty() {
                self.wake.notified().await;
                continue;
            }
            let outcome = self.post(&client, &nodes[node].http, &batch).await;
            let left = match outcome {
                Ok(appended) => {
                    let mut left = VecDeque::new();
                    for (item, appended) in batch.into_iter().zip(appended) {
                        if appended {
                            self.journal.acknowledge(item.machine, item.seq);
                        } else {
                            left.push_back(item);
                        }
                    }
                    left
                }
                Err(_) => batch,
            };
            if left.is_empty() {
                failures = 0;
                continue;
            }
            self.journal.count_retries(left.len());
            self.put_back(left);
            failures += 1;
            node = (node + 1) % nodes.len();
            tokio::time::sleep(Duration::from_millis(20) * (1 << failures.min(4))).await;
        }
    }

    fn take(&self) -> VecDeque<Pending> {
        let mut queue = self.queue.lock().expect("no panic under this lock");
        let count = queue.len().min(BATCH_MAX);
        queue.drain(..count).collect()
    }

    /// In front of what came meanwhile, in order.
    fn put_back(&self, mut left: VecDeque<Pending>) {
        let mut queue = self.queue.lock().expect("no panic under this lock");
        left.append(&mut queue);
        *queue = left;
    }

    /// Which readings of the batch the answer says are in the log.
    async fn post(
        &self,
        client: &HttpClient,
        address: &str,
        batch: &VecDeque<Pending>,
    ) -> Result<Vec<bool>, buttress_core::Error> {
        let mut body = Vec::with_capacity(batch.len() * 220 + 32);
        let ask = match self.dialect {
            Dialect::Rest { gzip } => {
                body.extend_from_slice(b"{\"records\":[");
                for (at, item) in batch.iter().enumerate() {
                    body.extend_from_slice(if at == 0 { b"{\"key\":" } else { b",{\"key\":" });
                    let name = &self.names[item.machine as usize];
                    // Writing to memory does not fail.
                    let _ = serde_json::to_writer(&mut body, name);
                    body.extend_from_slice(b",\"value\":");
                    body.extend_from_slice(&item.payload);
                    body.push(b'}');
                }
                body.extend_from_slice(b"]}");
                if gzip {
                    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 3), Compression::fast());
                    let _ = encoder.write_all(&body);
                    body = encoder.finish().unwrap_or_default();
                }
                Ask {
                    method: Method::POST,
                    path: "/topics/telemetry",
                    content_type: Some(REST_JSON),
                    gzip,
                    fields: Vec::new(),
                    body: body.into(),
                }
            }
            Dialect::Events => {
                body.push(b'[');
                for (at, item) in batch.iter().enumerate() {
                    if at > 0 {
                        body.push(b',');
                    }
                    body.extend_from_slice(&item.payload);
                }
                body.push(b']');
                Ask::json(Method::POST, "/events?topic=telemetry", body)
            }
        };
        let answer = client.ask(address, &ask, DEADLINE).await?;
        if !answer.ok() {
            return Err(buttress_core::Error::new(Code::UNREACHABLE, answer.problem()).retryable());
        }
        Ok(appended(self.dialect, &answer, batch.len()))
    }
}

/// Reads the answer; what is not clearly named as appended counts as not appended, which a retry finds out.
fn appended(dialect: Dialect, answer: &Answer, count: usize) -> Vec<bool> {
    let json = answer.json();
    let per_record = |offsets: &[serde_json::Value]| {
        (0..count)
            .map(|at| {
                offsets.get(at).is_some_and(|offset| {
                    !offset.is_null() && offset["error_code"].is_null() && offset["error"].is_null()
                })
            })
            .collect()
    };
    match dialect {
        Dialect::Rest { .. } => per_record(json["offsets"].as_array().map_or(&[], Vec::as_slice)),
        Dialect::Events => {
            let number = |field: &str| json[field].as_u64().unwrap_or(0);
            if number("accepted") + number("duplicates") >= count as u64 {
                vec![true; count]
            } else {
                per_record(json["offsets"].as_array().map_or(&[], Vec::as_slice))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn answer(body: &str) -> Answer {
        Answer { status: StatusCode::OK, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    #[test]
    fn only_what_an_answer_names_as_appended_is_acknowledged() {
        let rest = Dialect::Rest { gzip: false };
        let cases = [
            (rest, r#"{"offsets":[{"partition":1,"offset":2},{"error_code":50003,"error":"retry"}]}"#, [true, false]),
            (rest, r#"{"offsets":[{"partition":1,"offset":2,"error_code":null,"error":null}]}"#, [true, false]),
            (rest, "not json", [false, false]),
            (Dialect::Events, r#"{"accepted":1,"duplicates":1,"offsets":[]}"#, [true, true]),
            (
                Dialect::Events,
                r#"{"accepted":1,"duplicates":0,"offsets":[null,{"partition":0,"offset":7}]}"#,
                [false, true],
            ),
            (Dialect::Events, "{}", [false, false]),
        ];
        for (dialect, body, expected) in cases {
            assert_eq!(appended(dialect, &answer(body), 2), expected, "{body}");
        }
    }

    #[test]
    fn what_failed_goes_in_front_of_what_came_meanwhile() {
        let gateway = Gateway::new(0, Arc::new(vec!["m".into()]), Arc::new(Journal::new(1)));
        for seq in 1..=3 {
            gateway.push(0, seq, Bytes::new());
        }
        let batch = gateway.take();
        gateway.push(0, 4, Bytes::new());
        gateway.put_back(batch.into_iter().skip(1).collect());
        assert_eq!(gateway.take().iter().map(|item| item.seq).collect::<Vec<_>>(), [2, 3, 4]);
    }
}
