//! Judges a run by what lies in the log: the topics as a stock Kafka client reads them back, and the rows of the services'
//! books. What the coordinator thinks counts for nothing here; the journals that it left are looked at only to see that
//! none is open.

use std::{collections::BTreeMap, fmt::Write as _};

use buttress_saga::book::Row;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    desk::Line,
    schedule::Window,
    shape::{Event, Order, Role, SKUS, events_of, stock_at_first},
};
use crate::demo::report::{Style, grouped, percentile};

/// A customer who has waited longer has left.
pub const PATIENCE_MS: f64 = 5_000.0;
/// What share of the orders of a second must be good for the side to be back.
const BACK_AT: f64 = 0.95;
/// The proxies' retry budget: a share of requests, and so many a second, over ten seconds
/// (`buttress_policy::budget::Config::default`).
const BUDGET_SHARE: f64 = 0.2;
const BUDGET_FLOOR_PER_S: f64 = 3.0;
const BUDGET_WINDOW_S: f64 = 10.0;

/// What became of a customer's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Not,
    Placed,
    /// Turned away, or no answer in time: the order may be there all the same.
    Otherwise,
}

#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// When the schedule of the load had it, whenever it was sent.
    pub due_ms: f64,
    pub answered: Answered,
}

/// How an order ended, as its events tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct End {
    pub completed: bool,
    /// Cancelled because a service said no, not because one could not be reached.
    pub refused: bool,
    pub at_ms: f64,
}

impl End {
    pub fn of(event: &Event) -> Option<Self> {
        let completed = event.event == "OrderCompleted";
        (completed || event.event == "OrderCancelled").then(|| Self {
            completed,
            refused: !completed && event.had_effect == Some(true),
            at_ms: event.at_ms as f64,
        })
    }
}

/// What a customer made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Shipped, or refused for a reason, in time.
    Good,
    /// Ended too late, or not yet and it is too late already.
    Late,
    /// Cancelled or turned away because something did not work.
    Failed,
    Waiting,
}

pub fn mood(sent: &Sent, end: Option<&End>, now_ms: f64) -> Mood {
    match end {
        Some(end) if !end.completed && !end.refused => Mood::Failed,
        Some(end) if end.at_ms - sent.due_ms <= PATIENCE_MS => Mood::Good,
        Some(_) => Mood::Late,
        None if sent.answered == Answered::Otherwise => Mood::Failed,
        None if now_ms - sent.due_ms > PATIENCE_MS => Mood::Late,
        None => Mood::Waiting,
    }
}

/// Everything of one side.
#[derive(Clone, Debug, Default)]
pub struct SideEvidence {
    /// By the number of the order.
    pub sent: Vec<Sent>,
    pub events: Vec<Event>,
    pub compensations: Vec<Event>,
    pub orders: BTreeMap<String, Order>,
    pub books: BTreeMap<Role, BTreeMap<String, Line>>,
    /// Of the articles that were ever moved.
    pub stock: BTreeMap<u32, u32>,
    /// Journals that have not ended.
    pub open: usize,
    /// What was to be called, and what was sent for it.
    pub calls: u64,
    pub attempts: u64,
    /// Sagas that the killed coordinator left open.
    pub left_open: u64,
    pub killed: bool,
}

#[derive(Clone, Debug)]
pub struct ProxyFigures {
    pub role: Role,
    pub requests: u64,
    pub attempts: u64,
    pub retries: u64,
    pub seconds: f64,
}

#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub seed: u64,
    pub rate: f64,
    pub duration_s: f64,
    /// When the load began.
    pub started_ms: f64,
    pub without: SideEvidence,
    pub with: SideEvidence,
    /// When each fault really ended, in seconds of the run.
    pub faults: Vec<Window>,
    pub proxies: Vec<ProxyFigures>,
    pub interrupted: bool,
    /// The share of the processors' time that was used by anybody.
    pub busy: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    pub goodput: f64,
    pub p99_ms: Option<f64>,
    pub amplification: f64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Orders {
    pub placed: u64,
    pub completed: u64,
    pub compensated: u64,
    pub stuck: u64,
    pub inconsistent: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    pub id: &'static str,
    pub text: String,
    pub held: bool,
    #[serde(skip)]
    pub detail: String,
}

/// More of a side than the stable JSON tells.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SideReport {
    pub figures: Figures,
    pub p50_ms: Option<f64>,
    pub orders: Orders,
    pub sent: u64,
    pub good: u64,
    pub late: u64,
    pub failed: u64,
    pub calls: u64,
    pub attempts: u64,
    /// For each fault, until the side was back.
    pub recovery_s: Vec<Option<f64>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub without: SideReport,
    pub with: SideReport,
    pub faults: Vec<Window>,
    pub recovery_s: Option<f64>,
    pub orders: Orders,
    pub promises: Vec<Promise>,
    pub ok: bool,
    pub rate: f64,
    pub duration_s: f64,
    pub seed: u64,
    pub interrupted: bool,
    pub busy: Option<f64>,
}

/// What is found wrong with the orders of a side.
#[derive(Default)]
struct Findings {
    orders: Orders,
    unknown: Vec<String>,
    contradictions: Vec<String>,
    money: Vec<String>,
    twice: Vec<String>,
    disorder: Vec<String>,
    events: Vec<String>,
}

pub fn judge(evidence: &Evidence) -> Report {
    let sides = [&evidence.without, &evidence.with];
    let found = sides.map(examine);
    let [without, with] = [0, 1].map(|at| figures(evidence, sides[at], &found[at]));
    let all = |pick: fn(&Findings) -> &Vec<String>| -> Vec<String> {
        found.iter().flat_map(|findings| pick(findings).iter().cloned()).collect()
    };
    let promise = |id, text: &str, wrong: Vec<String>, proof: String| Promise {
        id,
        text: text.to_owned(),
        held: wrong.is_empty(),
        detail: match wrong.as_slice() {
            [] => proof,
            some => {
                let more = if some.len() > 3 { format!(", and {} more", some.len() - 3) } else { String::new() };
                format!("{}{more}", some[..some.len().min(3)].join("; "))
            }
        },
    };
    let sum = |pick: fn(&Orders) -> u64| found.iter().map(|findings| pick(&findings.orders)).sum::<u64>();
    let orders = Orders {
        placed: sum(|orders| orders.placed),
        completed: sum(|orders| orders.completed),
        compensated: sum(|orders| orders.compensated),
        stuck: sum(|orders| orders.stuck),
        inconsistent: sum(|orders| orders.inconsistent),
    };
    let open: usize = sides.iter().map(|side| side.open).sum();
    let mut unended = all(|findings| &findings.twice);
    if open > 0 {
        unended.push(format!("{open} journals are open"));
    }
    let events: usize = sides.iter().map(|side| side.events.len() + side.compensations.len()).sum();
    let left_open: u64 = sides.iter().map(|side| side.left_open).sum();
    let (over, used) = budget(&evidence.proxies);
    let mut promises = vec![
        promise(
            "ORDERS-1",
            "every order that was acknowledged is in the log, once",
            all(|findings| &findings.unknown),
            format!("{} placed", grouped(orders.placed)),
        ),
        promise(
            "ORDERS-2",
            "every order ended, completed or compensated, exactly once",
            unended,
            format!("{} completed, {} compensated", grouped(orders.completed), grouped(orders.compensated)),
        ),
        promise(
            "ORDERS-3",
            "no money without goods, and no goods without money",
            all(|findings| &findings.money),
            "by the books of inventory, payment and shipping".to_owned(),
        ),
        promise(
            "ORDERS-4",
            "what was done and given up was undone, in reverse",
            all(|findings| &findings.disorder),
            format!("{} compensations", grouped(orders.compensated)),
        ),
        promise(
            "ORDERS-5",
            "the events in the log and the rows in the books tell the same, and each of them once",
            [all(|findings| &findings.events), all(|findings| &findings.contradictions)].concat(),
            format!("{} events", grouped(events as u64)),
        ),
        promise("ORDERS-6", "the proxies' retries stayed within their budgets", over, used),
    ];
    if sides.iter().any(|side| side.killed) {
        let stays = match open {
            0 => Vec::new(),
            open => vec![format!("{open} journals are open")],
        };
        promises.push(promise(
            "ORDERS-7",
            "what the killed coordinators left open was ended by their successors",
            stays,
            format!("{left_open} were open"),
        ));
    }
    let recovery_s = match with.recovery_s.iter().copied().collect::<Option<Vec<f64>>>() {
        Some(all) => all.into_iter().reduce(f64::max),
        None => None,
    };
    Report {
        ok: promises.iter().all(|promise| promise.held),
        without,
        with,
        faults: evidence.faults.clone(),
        recovery_s,
        orders,
        promises,
        rate: evidence.rate,
        duration_s: evidence.duration_s,
        seed: evidence.seed,
        interrupted: evidence.interrupted,
        busy: evidence.busy,
    }
}

/// Looks at every order, by its events and its rows.
fn examine(side: &SideEvidence) -> Findings {
    let mut found = Findings::default();
    let mut told: BTreeMap<&str, (Vec<&Event>, Vec<&Event>)> = BTreeMap::new();
    for order in side.orders.keys() {
        told.entry(order).or_default();
    }
    for event in &side.events {
        told.entry(&event.order).or_default().0.push(event);
    }
    for event in &side.compensations {
        told.entry(&event.order).or_default().1.push(event);
    }
    for order in side.books.values().flat_map(BTreeMap::keys) {
        told.entry(order).or_default();
    }
    for (number, sent) in side.sent.iter().enumerate() {
        let is_there = || side.orders.keys().any(|id| Order::number(id) == Some(number as u64));
        if sent.answered == Answered::Placed && !is_there() {
            found.unknown.push(format!("order {number} was acknowledged and is not there"));
        }
    }
    for (order, (events, compensations)) in told {
        let wrong = found.contradictions.len() + found.events.len() + found.money.len() + found.disorder.len();
        found.order(side, order, &events, &compensations);
        let now = found.contradictions.len() + found.events.len() + found.money.len() + found.disorder.len();
        found.orders.inconsistent += u64::from(now > wrong);
    }
    for sku in 0..SKUS {
        let kept = side.books.get(&Role::Inventory).into_iter().flat_map(BTreeMap::values);
        let gone: u32 =
            kept.filter(|line| line.row == Row::Done && line.order.sku == sku).map(|line| line.order.quantity).sum();
        let left = side.stock.get(&sku).copied().unwrap_or_else(|| stock_at_first(sku));
        if i64::from(left) != i64::from(stock_at_first(sku)) - i64::from(gone) {
            found.contradictions.push(format!("of article {sku} {left} are left, and {gone} are reserved"));
            found.orders.inconsistent += 1;
        }
    }
    found
}

impl Findings {
    fn order(&mut self, side: &SideEvidence, order: &str, events: &[&Event], compensations: &[&Event]) {
        let count = |of: &[&Event], name: &str| of.iter().filter(|event| event.event == name).count();
        if count(events, "OrderCreated") != 1 || !side.orders.contains_key(order) {
            let times = count(events, "OrderCreated");
            self.unknown.push(format!("{order} was created {times} times"));
        } else {
            self.orders.placed += 1;
        }
        let (completed, cancelled) = (count(events, "OrderCompleted"), count(events, "OrderCancelled"));
        match (completed, cancelled, count(events, "OrderStuck")) {
            (1, 0, 0) => self.orders.completed += 1,
            (0, 1, 0) => self.orders.compensated += 1,
            (0, 0, _) => {
                self.orders.stuck += 1;
                self.twice.push(format!("{order} has not ended"));
            }
            ends => self.twice.push(format!("{order} ended more than once: {ends:?}")),
        }
        let ended = completed + cancelled == 1;
        let row = |role: Role| side.books.get(&role).and_then(|book| book.get(order)).map(|line| line.row);
        let [goods, money, way] = Role::STEPS.map(|role| row(role) == Some(Row::Done));
        if ended && !(goods == money && money == way && money == (completed == 1)) {
            self.money.push(format!("{order}: reserved {goods}, paid {money}, shipped {way}, completed {completed}"));
        }
        // Each row and the events that tell of it.
        for role in Role::STEPS {
            let [done, undone, refused] = events_of(role);
            let with_effect = |wanted: bool| {
                let fits = |event: &&&Event| event.event == undone && event.had_effect == Some(wanted);
                compensations.iter().filter(fits).count()
            };
            let told = (count(events, done), with_effect(true), with_effect(false), count(events, refused));
            let fits = match row(role) {
                None => told == (0, 0, 0, 0),
                Some(Row::Done) => told == (1, 0, 0, 0),
                Some(Row::Undone) => told == (1, 1, 0, 0),
                Some(Row::Void) => told == (0, 0, 1, 0) || told == (0, 0, 0, 1),
            };
            if !fits {
                self.events.push(format!("{order}: {} says {:?}, its events {told:?}", role.word(), row(role)));
            }
        }
        // Forward in order, the end last.
        let place = |event: &Event| match event.by {
            Role::Order => 0,
            Role::Coordinator => 4,
            role => 1 + Role::STEPS.iter().position(|step| *step == role).unwrap_or(9),
        };
        if !events.windows(2).all(|pair| place(pair[0]) < place(pair[1])) {
            let names: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
            self.disorder.push(format!("{order}: {}", names.join(", ")));
        }
        // Backwards, behind the event that says so, and as often.
        let names: Vec<&str> = compensations.iter().map(|event| event.event.as_str()).collect();
        let undone: Vec<usize> =
            compensations.iter().filter(|event| event.by != Role::Coordinator).map(|e| place(e)).collect();
        let begins = names.first() == Some(&"CompensationStarted") && count(compensations, "CompensationStarted") == 1;
        if (begins != (cancelled == 1) && ended)
            || (!begins && !names.is_empty())
            || !undone.windows(2).all(|pair| pair[0] > pair[1])
        {
            self.disorder.push(format!("{order}, undone: {}", names.join(", ")));
        }
    }
}

/// Which proxies retried more than they may, and a sentence about all.
fn budget(proxies: &[ProxyFigures]) -> (Vec<String>, String) {
    let allowed = |proxy: &ProxyFigures| {
        BUDGET_SHARE * proxy.requests as f64 + BUDGET_FLOOR_PER_S * (proxy.seconds + BUDGET_WINDOW_S)
    };
    let over = proxies.iter().filter(|proxy| proxy.retries as f64 > allowed(proxy));
    let over = over.map(|proxy| {
        let (retries, requests, may) = (proxy.retries, proxy.requests, allowed(proxy));
        format!("before {}: {retries} retries for {requests} requests, {may:.0} allowed", proxy.role.word())
    });
    let sum = |pick: fn(&ProxyFigures) -> u64| proxies.iter().map(pick).sum::<u64>();
    let (retries, requests) = (sum(|proxy| proxy.retries), sum(|proxy| proxy.requests));
    (over.collect(), format!("{} retries for {} requests", grouped(retries), grouped(requests)))
}

fn figures(evidence: &Evidence, side: &SideEvidence, found: &Findings) -> SideReport {
    let ends: BTreeMap<u64, End> =
        side.events.iter().filter_map(|event| Some((Order::number(&event.order)?, End::of(event)?))).collect();
    let mut report = SideReport {
        orders: found.orders.clone(),
        sent: side.sent.len() as u64,
        calls: side.calls,
        attempts: side.attempts,
        ..SideReport::default()
    };
    let mut latencies = Vec::new();
    let mut seconds: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (number, sent) in side.sent.iter().enumerate() {
        let end = ends.get(&(number as u64));
        let second = ((sent.due_ms - evidence.started_ms) / 1_000.0).max(0.0) as u64;
        let of_second = seconds.entry(second).or_default();
        of_second.1 += 1;
        match mood(sent, end, f64::INFINITY) {
            Mood::Good => {
                report.good += 1;
                of_second.0 += 1;
            }
            Mood::Late => report.late += 1,
            Mood::Failed | Mood::Waiting => report.failed += 1,
        }
        latencies.extend(end.map(|end| (end.at_ms - sent.due_ms).max(0.0)));
    }
    report.figures.goodput = round(report.good as f64 / evidence.duration_s.max(0.001), 2);
    report.figures.p99_ms = percentile(&mut latencies, 0.99).map(|ms| round(ms, 1));
    report.p50_ms = percentile(&mut latencies, 0.5).map(|ms| round(ms, 1));
    report.figures.amplification = round(side.attempts as f64 / side.calls.max(1) as f64, 3);
    let back = |second: &u64| seconds.get(second).is_none_or(|(good, all)| *good as f64 >= BACK_AT * *all as f64);
    report.recovery_s = evidence
        .faults
        .iter()
        .map(|fault| {
            let mut after = seconds.keys().filter(|second| **second as f64 + 1.0 > fault.to_s);
            let first = after.find(|second| back(second) && back(&(*second + 1)))?;
            Some(round((*first as f64 - fault.to_s).max(0.0), 1))
        })
        .collect();
    report
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

impl Report {
    /// The one object of `--output json`.
    pub fn to_json(&self) -> Value {
        json!({
            "without": self.without.figures, "with": self.with.figures, "recovery_s": self.recovery_s,
            "orders": self.orders, "promises": self.promises, "ok": self.ok,
        })
    }

    /// The report for people. Colour repeats what the words say and can be left away.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        let title = if self.interrupted { "Report (ended early; judged for what was sent)" } else { "Report" };
        let _ = writeln!(out, "{}\n", style.paint("1", title));
        let _ = writeln!(out, "  {:<42}{:>12}{:>12}", "", "without", "with");
        let mut line = |name: &str, pick: &dyn Fn(&SideReport) -> String| {
            let _ = writeln!(out, "  {name:<42}{:>12}{:>12}", pick(&self.without), pick(&self.with));
        };
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        line("orders sent", &|side| grouped(side.sent));
        line("good within 5 s, a second", &|side| format!("{:.2}", side.figures.goodput));
        line("too late", &|side| grouped(side.late));
        line("failed or turned away", &|side| grouped(side.failed));
        line("sent to ended, p50", &|side| ms(side.p50_ms));
        line("sent to ended, p99", &|side| ms(side.figures.p99_ms));
        line("calls wanted", &|side| grouped(side.calls));
        line("requests sent for them", &|side| grouped(side.attempts));
        line("amplification", &|side| format!("{:.2}x", side.figures.amplification));
        for (at, fault) in self.faults.iter().enumerate() {
            line(&format!("back after {}", fault.what), &|side| {
                side.recovery_s.get(at).copied().flatten().map_or("not".to_owned(), |s| format!("{s:.1} s"))
            });
        }
        line("completed", &|side| grouped(side.orders.completed));
        line("compensated", &|side| grouped(side.orders.compensated));
        line("stuck", &|side| grouped(side.orders.stuck));
        line("inconsistent", &|side| grouped(side.orders.inconsistent));
        if let Some(busy) = self.busy {
            let _ = writeln!(
                out,
                "\n  {}",
                style.paint("2", &format!("both sides ran at once; the processors were {:.0} % busy", busy * 100.0))
            );
        }
        let title = "Promises, checked from the services' books and a stock Kafka client's read-back";
        let _ = writeln!(out, "\n{}\n", style.paint("1", title));
        for promise in &self.promises {
            let mark = if promise.held { style.paint("32", "held  ") } else { style.paint("1;31", "BROKEN") };
            let _ = writeln!(out, "  {}  {mark}  {}", promise.id, promise.text);
            if !promise.detail.is_empty() {
                let _ = writeln!(out, "                    {}", style.paint("2", &promise.detail));
            }
        }
        let verdict = match self.promises.iter().filter(|promise| !promise.held).count() {
            0 => style.paint("1;32", "Every promise held."),
            1 => style.paint("1;31", "One promise was broken."),
            broken => style.paint("1;31", &format!("{broken} promises were broken.")),
        };
        let _ = writeln!(out, "\n{verdict}");
        out
    }
}

#[cfg(test)]
mod tests;
