//! Inventory, payment and shipping: a book with a row for each order, and one entry for each change of it.
//!
//! The entry holds the row, what else the change moves (the shelf), the event that tells of it, and two guards: the row is
//! as it was read, and the coordinator that asked is the one that counts. So a call that is repeated, late, or sent by a
//! coordinator that was replaced changes nothing.

use buttress_core::{Code, Error};
use buttress_saga::book::{self, Answer, Row};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{
    ledger::{Commit, Kept, Ledger},
    shape::{COMPENSATIONS, EVENTS, Event, Order, Role, Side, events_of, keys, stock_at_first},
};

/// Each round reads what another one wrote; there are never more than a few at one key.
const ROUNDS_MAX: u32 = 20;

/// What lies under the key of an order in a book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub row: Row,
    pub order: Order,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

pub struct Desk {
    pub role: Role,
    pub side: Side,
    /// One change of a shelf at a time, so that they do not refuse each other.
    shelf: Mutex<()>,
}

impl Desk {
    pub fn new(role: Role, side: Side) -> Self {
        Self { role, side, shelf: Mutex::new(()) }
    }

    fn undoes(&self, path: &str) -> Option<bool> {
        match (self.role, path) {
            (Role::Inventory, "/reserve") | (Role::Payment, "/capture") | (Role::Shipping, "/ship") => Some(false),
            (Role::Inventory, "/release") | (Role::Payment, "/refund") | (Role::Shipping, "/cancel") => Some(true),
            _ => None,
        }
    }

    /// Why the order cannot be carried out, for reasons that no repetition changes.
    fn objection(&self, order: &Order, stock: Option<u32>) -> Option<String> {
        match self.role {
            Role::Payment if order.card == "declined" => Some("the card was declined".to_owned()),
            Role::Shipping if order.to == "nowhere" => Some("there is no such address".to_owned()),
            Role::Inventory if stock.is_some_and(|stock| stock < order.quantity) => {
                Some(format!("article {} is sold out", order.sku))
            }
            _ => None,
        }
    }

    /// The row of an order.
    ///
    /// # Errors
    /// Where the log cannot be asked.
    pub async fn look(&self, ledger: &Ledger, order: &Order) -> Result<Option<Kept>, Error> {
        ledger.get(&keys::row(self.side, self.role, &order.id)).await
    }

    /// Whether a request finds that all it asks for was decided before.
    ///
    /// # Errors
    /// Where the row is none.
    pub fn has_settled(&self, path: &str, found: Option<&Kept>) -> Result<bool, Error> {
        let row = found.map(line_of).transpose()?.map(|line| line.row);
        let answer = self.undoes(path).map(|undo| if undo { book::undo(row) } else { book::act(row) });
        Ok(!matches!(answer, Some(Answer::Becomes(_))))
    }

    /// Does what a request asks, once. `found` is the row as it was a moment ago.
    ///
    /// # Errors
    /// Where the log cannot be asked.
    pub async fn ask(
        &self,
        ledger: &Ledger,
        path: &str,
        fence: &str,
        order: &Order,
        mut found: Option<Kept>,
    ) -> Result<(StatusCode, Value), Error> {
        let Some(undo) = self.undoes(path) else {
            return Ok((StatusCode::NOT_FOUND, json!({"message": format!("{} has no {path}", self.role.word())})));
        };
        let key = keys::row(self.side, self.role, &order.id);
        let _turn = match self.role {
            Role::Inventory => Some(self.shelf.lock().await),
            _ => None,
        };
        for _ in 0..ROUNDS_MAX {
            let revision = found.as_ref().map_or(0, |kept| kept.mod_revision);
            let line = found.take().as_ref().map(line_of).transpose()?;
            let row = line.as_ref().map(|line| line.row);
            let stock = match self.role {
                Role::Inventory => {
                    let key = keys::stock(self.side, order.sku);
                    let kept = ledger.get(&key).await?;
                    let left = kept.as_ref().and_then(|kept| kept.value.parse().ok());
                    Some((key, left.unwrap_or_else(|| stock_at_first(order.sku)), kept.map_or(0, |k| k.mod_revision)))
                }
                _ => None,
            };
            let left = stock.as_ref().map(|(_, left, _)| *left);
            let objection = if undo || row.is_some() { None } else { self.objection(order, left) };
            let next = match (if undo { book::undo(row) } else { book::act(row) }, &objection) {
                (Answer::Becomes(_), Some(_)) => Row::Void,
                (Answer::Becomes(next), None) => next,
                (Answer::Already, _) => return Ok((StatusCode::OK, json!({"order": order.id, "already": true}))),
                (Answer::Refused, _) => {
                    let why = line.and_then(|line| line.why).unwrap_or_else(|| "it was undone".to_owned());
                    return Ok((StatusCode::UNPROCESSABLE_ENTITY, json!({"refused": why})));
                }
            };
            let entry = self.entry(fence, order, &key, revision, undo, next, objection.as_deref(), stock);
            match ledger.submit(&entry).await? {
                Commit::Applied { .. } => {
                    return Ok(match objection {
                        Some(why) => (StatusCode::UNPROCESSABLE_ENTITY, json!({"refused": why})),
                        None => (StatusCode::OK, json!({"order": order.id})),
                    });
                }
                Commit::Refused { guard: 0 } => {
                    return Ok((StatusCode::CONFLICT, json!({"message": "another coordinator has taken over"})));
                }
                Commit::Refused { .. } | Commit::Unknown => found = ledger.get(&key).await?,
            }
        }
        Ok((StatusCode::SERVICE_UNAVAILABLE, json!({"message": "too many changes at once"})))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one entry")]
    fn entry(
        &self,
        fence: &str,
        order: &Order,
        key: &str,
        revision: u64,
        undo: bool,
        next: Row,
        objection: Option<&str>,
        stock: Option<(String, u32, u64)>,
    ) -> Value {
        let [done, undone, refused] = events_of(self.role);
        let (name, topic) = match (undo, objection) {
            (true, _) => (undone, COMPENSATIONS),
            (false, Some(_)) => (refused, EVENTS),
            (false, None) => (done, EVENTS),
        };
        let mut event = Event::new(name, &order.id, self.role);
        event.why = objection.map(str::to_owned);
        event.had_effect = undo.then_some(next == Row::Undone);
        let line = Line { row: next, order: order.clone(), why: objection.map(str::to_owned) };
        let line = serde_json::to_string(&line).expect("a row is plain data");
        let mut guards =
            vec![json!({"key": keys::owner(self.side), "value": fence}), json!({"key": key, "mod_revision": revision})];
        let mut puts = vec![json!({"key": key, "value": line})];
        if let Some((stock, left, revision)) = stock {
            let left = match next {
                Row::Done => Some(left - order.quantity),
                Row::Undone => Some(left + order.quantity),
                Row::Void => None,
            };
            if let Some(left) = left {
                guards.push(json!({"key": stock, "mod_revision": revision}));
                puts.push(json!({"key": stock, "value": left.to_string()}));
            }
        }
        json!({"guards": guards, "puts": puts, "appends": [event.append(topic, self.side)]})
    }
}

fn line_of(kept: &Kept) -> Result<Line, Error> {
    serde_json::from_str(&kept.value)
        .map_err(|error| Error::new(Code::BAD_REQUEST, format!("\"{}\" is no row: {error}", kept.key)))
}
