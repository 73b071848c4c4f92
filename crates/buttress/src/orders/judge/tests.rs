//! A small run that is in order, and what each way of breaking it is called.

use super::*;
use crate::orders::shape::Side;

fn event(name: &str, order: &str, by: Role, had_effect: Option<bool>) -> Event {
    let at_ms = 1_400;
    Event { event: name.into(), order: order.into(), by, at_ms, had_effect, why: None }
}

/// Order 0 completed, order 1 refused by payment, order 2 given up at shipping.
fn side(which: Side) -> SideEvidence {
    let mut side = SideEvidence { calls: 10, attempts: 11, killed: true, ..SideEvidence::default() };
    for role in Role::STEPS {
        side.books.insert(role, BTreeMap::new());
    }
    let mut reserved = BTreeMap::<u32, u32>::new();
    for number in 0..3 {
        let order = Order::draw(1, which, number);
        let id = order.id.clone();
        let events = &mut side.events;
        events.push(event("OrderCreated", &id, Role::Order, None));
        events.push(event("InventoryReserved", &id, Role::Inventory, None));
        let mut row = |role: Role, row: Row| {
            let line = Line { row, order: order.clone(), why: None };
            side.books.get_mut(&role).unwrap().insert(id.clone(), line);
        };
        match number {
            0 => {
                for role in Role::STEPS {
                    row(role, Row::Done);
                }
                events.push(event("PaymentCaptured", &id, Role::Payment, None));
                events.push(event("OrderShipped", &id, Role::Shipping, None));
                events.push(event("OrderCompleted", &id, Role::Coordinator, None));
                *reserved.entry(order.sku).or_default() += order.quantity;
            }
            _ => {
                row(Role::Inventory, Row::Undone);
                let compensations = &mut side.compensations;
                compensations.push(event("CompensationStarted", &id, Role::Coordinator, Some(number == 1)));
                if number == 1 {
                    row(Role::Payment, Row::Void);
                    events.push(event("PaymentDeclined", &id, Role::Payment, None));
                } else {
                    row(Role::Payment, Row::Undone);
                    row(Role::Shipping, Row::Void);
                    events.push(event("PaymentCaptured", &id, Role::Payment, None));
                    compensations.push(event("ShipmentCancelled", &id, Role::Shipping, Some(false)));
                    compensations.push(event("PaymentRefunded", &id, Role::Payment, Some(true)));
                }
                compensations.push(event("InventoryReleased", &id, Role::Inventory, Some(true)));
                events.push(event("OrderCancelled", &id, Role::Coordinator, Some(number == 1)));
            }
        }
        side.orders.insert(id, order);
        side.sent.push(Sent { due_ms: 1_000.0 + number as f64, answered: Answered::Placed });
    }
    for (sku, quantity) in reserved {
        side.stock.insert(sku, stock_at_first(sku) - quantity);
    }
    side
}

fn evidence() -> Evidence {
    let proxy = ProxyFigures { role: Role::Payment, requests: 100, attempts: 120, retries: 20, seconds: 1.0 };
    Evidence {
        rate: 3.0,
        duration_s: 1.0,
        started_ms: 1_000.0,
        without: side(Side::Without),
        with: side(Side::With),
        faults: vec![Window { what: "payment flaky", from_s: 0.0, to_s: 0.0 }],
        proxies: vec![proxy],
        ..Evidence::default()
    }
}

fn broken(change: impl FnOnce(&mut Evidence)) -> Vec<&'static str> {
    let mut evidence = evidence();
    change(&mut evidence);
    let report = judge(&evidence);
    assert_eq!(report.ok, report.promises.iter().all(|promise| promise.held));
    report.promises.iter().filter(|promise| !promise.held).map(|promise| promise.id).collect()
}

#[test]
fn a_run_in_order_keeps_every_promise_and_its_figures_are_counted() {
    let report = judge(&evidence());
    assert!(report.ok, "{}", report.render(Style { color: false }));
    let orders = &report.orders;
    assert_eq!((orders.placed, orders.completed, orders.compensated), (6, 2, 4));
    assert_eq!((orders.stuck, orders.inconsistent), (0, 0));
    // One shipped and one refused for a reason are good; one that could not be shipped is not.
    assert_eq!((report.with.good, report.with.failed, report.with.figures.goodput), (2, 1, 2.0));
    assert_eq!(report.with.figures.p99_ms, Some(400.0));
    assert_eq!(report.with.figures.amplification, 1.1);
    let json = report.to_json();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["ok", "orders", "promises", "recovery_s", "with", "without"]);
    assert_eq!(json["promises"][0].as_object().unwrap().len(), 3);
}

#[test]
fn each_way_of_breaking_it_breaks_the_promise_that_names_it() {
    let order = |number: u64| Order::draw(1, Side::With, number).id;
    let book = |evidence: &mut Evidence, role: Role, number: u64, row: Row| {
        evidence.with.books.get_mut(&role).unwrap().get_mut(&order(number)).unwrap().row = row;
    };
    assert_eq!(
        broken(|e| {
            e.with.orders.remove(&order(0));
        }),
        ["ORDERS-1"]
    );
    assert_eq!(broken(|e| e.with.events.retain(|event| event.event != "OrderCompleted")), ["ORDERS-2"]);
    assert_eq!(broken(|e| e.without.open = 1), ["ORDERS-2", "ORDERS-7"]);
    // Charged, and nothing on its way.
    assert_eq!(broken(|e| book(e, Role::Payment, 1, Row::Done)), ["ORDERS-3", "ORDERS-5"]);
    assert_eq!(broken(|e| book(e, Role::Shipping, 0, Row::Void)), ["ORDERS-3", "ORDERS-5"]);
    assert_eq!(broken(|e| e.with.compensations.swap(3, 4)), ["ORDERS-4"]);
    assert_eq!(broken(|e| e.with.compensations.retain(|event| event.event != "PaymentRefunded")), ["ORDERS-5"],);
    // The same event twice.
    assert_eq!(
        broken(|e| {
            let twice = e.with.events[1].clone();
            e.with.events.insert(1, twice);
        }),
        ["ORDERS-4", "ORDERS-5"],
    );
    assert_eq!(
        broken(|e| {
            let sku = e.with.orders[&order(0)].sku;
            *e.with.stock.get_mut(&sku).unwrap() += 1;
        }),
        ["ORDERS-5"],
    );
    assert_eq!(broken(|e| e.proxies[0].retries = 90), ["ORDERS-6"]);
    let mut stuck = evidence();
    stuck.with.events.retain(|event| event.event != "OrderCancelled");
    let report = judge(&stuck);
    assert_eq!((report.orders.stuck, report.ok), (2, false));
}

#[test]
fn a_side_is_back_once_two_seconds_in_a_row_are_good() {
    let mut evidence = evidence();
    evidence.duration_s = 8.0;
    evidence.faults[0].to_s = 2.5;
    evidence.with.sent.clear();
    evidence.with.events.clear();
    let good = |second: u64| ![2, 3, 5].contains(&second);
    for second in 0..8 {
        evidence.with.sent.push(Sent { due_ms: 1_000.0 + second as f64 * 1_000.0, answered: Answered::Placed });
        let mut end = event("OrderCompleted", &Order::draw(1, Side::With, second).id, Role::Coordinator, None);
        end.at_ms = 1_000 + second * 1_000 + if good(second) { 500 } else { 6_000 };
        evidence.with.events.push(end);
    }
    assert_eq!(judge(&evidence).with.recovery_s, [Some(3.5)]);
    evidence.with.events.truncate(2);
    assert_eq!(judge(&evidence).recovery_s, None);
}
