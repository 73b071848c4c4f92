//! The customers: an open loop. An order is due when the schedule says so, however the ones before it fare, and its time
//! counts from then on.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{Method, StatusCode};

use super::{
    judge::{Answered, Sent},
    shape::{KEY_FIELD, Order, Side},
};
use crate::demo::http::{Ask, HttpClient};

/// A customer looks at the page that does not come for this long.
const CUSTOMER_WAITS: Duration = Duration::from_secs(5);

/// What was sent, by side and number.
pub type Ledgers = Arc<[Mutex<Vec<Sent>>; 2]>;

pub struct Load {
    pub seed: u64,
    pub rate: f64,
    pub total: u64,
    pub gateways: [String; 2],
    pub sent: Ledgers,
}

impl Load {
    /// Sends every order to both sides at the same moment, and returns when the last one is sent and answered.
    pub async fn run(self, started: Instant, started_ms: f64, stop: impl Fn() -> bool) {
        let clients: Vec<Arc<HttpClient>> = Side::ALL.map(|_| Arc::default()).into();
        let mut running = tokio::task::JoinSet::new();
        for number in 0..self.total {
            let due_s = number as f64 / self.rate;
            tokio::time::sleep_until((started + Duration::from_secs_f64(due_s)).into()).await;
            if stop() {
                break;
            }
            for (at, side) in Side::ALL.into_iter().enumerate() {
                let order = Order::draw(self.seed, side, number);
                let (gateway, client, sent) = (self.gateways[at].clone(), clients[at].clone(), self.sent.clone());
                let due_ms = started_ms + due_s * 1_000.0;
                sent[at].lock().expect("no panic under this lock").push(Sent { due_ms, answered: Answered::Not });
                running.spawn(async move {
                    let body = serde_json::to_vec(&order).expect("an order is plain data");
                    let mut ask = Ask::json(Method::POST, "/orders", body);
                    ask.fields.push((KEY_FIELD, order.id));
                    let answered = match client.ask(&gateway, &ask, CUSTOMER_WAITS).await {
                        Ok(answer) if answer.status == StatusCode::ACCEPTED => Answered::Placed,
                        Ok(_) | Err(_) => Answered::Otherwise,
                    };
                    sent[at].lock().expect("no panic under this lock")[number as usize].answered = answered;
                });
            }
        }
        while running.join_next().await.is_some() {}
    }
}
