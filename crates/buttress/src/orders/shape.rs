//! What everybody in the demo agrees on: the sides, the parts, names of topics and keys, what an order is, and the saga.

use buttress_saga::{Definition, Step};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The events of all orders, a partition for each side.
pub const EVENTS: &str = "order-events";
/// What was given up and undone, a partition for each side.
pub const COMPENSATIONS: &str = "order-compensations";

/// Under which a service does its part once; the proxy sends such a request again where it may.
pub const KEY_FIELD: &str = "idempotency-key";
/// The fencing token of the coordinator that asks.
pub const FENCE_FIELD: &str = "saga-fence";

pub const SKUS: u32 = 20;
/// Of the first article there is little, so that some orders meet an empty shelf.
const SCARCE: u32 = 12;
const PLENTY: u32 = 1_000_000;
/// Of a hundred cards so many are declined, of a hundred addresses so many do not exist.
const DECLINED: u64 = 3;
const NOWHERE: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Without,
    With,
}

impl Side {
    pub const ALL: [Side; 2] = [Side::Without, Side::With];

    pub fn word(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::With => "with",
        }
    }

    /// Its partition of the topics.
    pub fn partition(self) -> i32 {
        self as i32
    }
}

/// The processes of a side, in the order in which a request meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Gateway,
    Order,
    Coordinator,
    Inventory,
    Payment,
    Shipping,
}

impl Role {
    pub const ALL: [Role; 6] =
        [Role::Gateway, Role::Order, Role::Coordinator, Role::Inventory, Role::Payment, Role::Shipping];
    /// Who is called, and so has a proxy before it.
    pub const CALLED: [Role; 4] = [Role::Order, Role::Inventory, Role::Payment, Role::Shipping];
    /// Who does a step of the saga, in its order.
    pub const STEPS: [Role; 3] = [Role::Inventory, Role::Payment, Role::Shipping];

    pub fn word(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Order => "order",
            Self::Coordinator => "coordinator",
            Self::Inventory => "inventory",
            Self::Payment => "payment",
            Self::Shipping => "shipping",
        }
    }

    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }
}

/// What a service says in the log, beside the row in its book: done, undone, refused.
pub fn events_of(role: Role) -> [&'static str; 3] {
    match role {
        Role::Inventory => ["InventoryReserved", "InventoryReleased", "InventoryRefused"],
        Role::Payment => ["PaymentCaptured", "PaymentRefunded", "PaymentDeclined"],
        Role::Shipping => ["OrderShipped", "ShipmentCancelled", "ShipmentRefused"],
        Role::Gateway | Role::Order | Role::Coordinator => ["OrderCreated", "OrderCancelled", "OrderRefused"],
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub id: String,
    pub sku: u32,
    pub quantity: u32,
    pub cents: u64,
    pub card: String,
    pub to: String,
}

impl Order {
    /// The order of this number; the same on both sides but for its id.
    pub fn draw(seed: u64, side: Side, number: u64) -> Self {
        let mut state = seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mut below = |bound: u64| mix(&mut state) % bound;
        let sku = below(SKUS.into()) as u32;
        let quantity = 1 + below(3) as u32;
        let cents = u64::from(quantity) * (199 + below(9_800));
        let card = if below(100) < DECLINED { "declined".to_owned() } else { format!("card-{}", below(10_000)) };
        let to = if below(100) < NOWHERE { "nowhere".to_owned() } else { format!("{} Arch Street", 1 + below(400)) };
        Self { id: format!("{}-{number:06}", side.word()), sku, quantity, cents, card, to }
    }

    /// The number in an order's id.
    pub fn number(id: &str) -> Option<u64> {
        id.rsplit_once('-')?.1.parse().ok()
    }
}

/// SplitMix64.
pub fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub fn stock_at_first(sku: u32) -> u32 {
    if sku == 0 { SCARCE } else { PLENTY }
}

/// The saga of an order. Calls, pauses and the thirty seconds for a step are those of the articles that the demo follows;
/// a charge that cannot be given back is tried for a quarter of an hour before somebody is called.
pub fn definition() -> Definition {
    let step = |name: &str, role: Role, act: &str, undo: &str| Step {
        name: name.to_owned(),
        service: role.word().to_owned(),
        act: act.to_owned(),
        undo: Some(undo.to_owned()),
        attempts: 8,
        timeout_ms: 2_000,
        deadline_ms: 30_000,
        undo_attempts: 100,
        pause_first_ms: 500,
        pause_max_ms: 10_000,
    };
    Definition {
        name: "order".to_owned(),
        steps: vec![
            step("reserve", Role::Inventory, "/reserve", "/release"),
            step("charge", Role::Payment, "/capture", "/refund"),
            step("ship", Role::Shipping, "/ship", "/cancel"),
        ],
    }
}

/// Where things are in the key space.
pub mod keys {
    use super::{Role, Side};

    /// The row of an order in a service's book.
    pub fn row(side: Side, role: Role, order: &str) -> String {
        format!("orders/{}/{}/{order}", side.word(), role.word())
    }

    pub fn stock(side: Side, sku: u32) -> String {
        format!("orders/{}/stock/{sku:02}", side.word())
    }

    /// Journals of sagas that have not ended.
    pub fn open(side: Side, order: &str) -> String {
        format!("sagas/{}/open/{order}", side.word())
    }

    pub fn ended(side: Side, order: &str) -> String {
        format!("sagas/{}/ended/{order}", side.word())
    }

    /// Holds the fencing token of the coordinator that counts.
    pub fn owner(side: Side) -> String {
        format!("sagas/{}/owner", side.word())
    }

    pub fn definition(hash: &str) -> String {
        format!("sagas/definitions/{hash}")
    }
}

/// A record of one of the topics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub event: String,
    pub order: String,
    pub by: Role,
    pub at_ms: u64,
    /// Whether there was something to undo; or, of a cancelled order, whether a service refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub had_effect: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Event {
    pub fn new(event: &str, order: &str, by: Role) -> Self {
        let at_ms = crate::demo::feed::now_ms() as u64;
        Self { event: event.to_owned(), order: order.to_owned(), by, at_ms, had_effect: None, why: None }
    }

    /// As an append of an entry.
    pub fn append(&self, topic: &str, side: Side) -> serde_json::Value {
        let value = serde_json::to_string(self).expect("an event is plain data");
        serde_json::json!({
            "topic": topic, "partition": side.partition(), "records": [{"key": self.order, "value": value}],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_get_the_same_orders_and_some_cannot_be_carried_out() {
        let draw = |side| (0..1_000).map(|number| Order::draw(7, side, number)).collect::<Vec<_>>();
        let (without, with) = (draw(Side::Without), draw(Side::With));
        for (a, b) in without.iter().zip(&with) {
            assert_eq!(Order { id: String::new(), ..a.clone() }, Order { id: String::new(), ..b.clone() });
        }
        let share = |wrong: fn(&Order) -> bool| with.iter().filter(|order| wrong(order)).count();
        assert!((10..60).contains(&share(|order| order.card == "declined")));
        assert!((5..50).contains(&share(|order| order.to == "nowhere")));
        assert_eq!(Order::number(&with[41].id), Some(41));
    }

    #[test]
    fn the_saga_can_be_run() {
        definition().check().unwrap();
        assert!(definition().steps.iter().all(|step| step.deadline_ms == 30_000));
    }
}
