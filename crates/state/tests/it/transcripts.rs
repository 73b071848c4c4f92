//! Runs `testdata/*.txt`: commands, `----`, and what the machine answers. `UPDATE_EXPECT=1` rewrites the answers.
//!
//! | command | does |
//! |---|---|
//! | `entry [time=MS] [req=CLIENT/NUMBER/ACKNOWLEDGED] [term=T]` | applies the entry whose parts are the lines below it |
//! | `bytes HEX` | applies bytes that may be no entry |
//! | `keys [FROM[..TO]] [at=REVISION] [limit=N]` | reads keys |
//! | `events [from=REVISION] [limit=N]` | reads changes of keys |
//! | `changed [from=REVISION] [limit=N] [prev]` | reads changes of keys with all that is known of them |
//! | `read` | evaluates the transaction whose lines are below it, without proposing it |
//! | `lease ID now=MS`, `hash [at=REVISION]` | show a lease with its keys, hash the keys |
//! | `rows` | shows the places of all changes of keys that are kept |
//! | `topics`, `batches LOG`, `cursors`, `leases`, `timers`, `state SPACE KEY` | show what there is |
//! | `retention now=MS` | shows the trims that retention asks for |
//! | `limits clients=N results=N producers=N ends=N sweep=N` | starts anew with other limits |
//!
//! Parts: `guard mod|create|version|value|lease|cursor|end …`, `create TOPIC partitions=N [bytes=N] [ms=N] [batch=N]`,
//! `delete TOPIC`, `trim LOG OFFSET`, `grant LEASE ttl=MS`, `keepalive LEASE`, `revoke LEASE`, `put KEY VALUE [lease=L]`,
//! `del KEY`, `state SPACE KEY [VALUE]`, `append LOG [records=N] [seq=PRODUCER/EPOCH/NUMBER] [size=N] [raw=HEX]`,
//! `cursor GROUP LOG NEXT [METADATA]`, `timer ID at=MS KEY VALUE`, `cancel ID`, `expire`,
//! `compact REVISION`, and the lines of a transaction:
//! `if version|create|mod|value|lease RANGE eq|gt|lt|ne OPERAND`, and behind `then` or `else` one of
//! `range RANGE [at=R] [limit=N] [count] [keys] [mod=MIN..MAX] [create=MIN..MAX] [sort=TARGET] [order=asc|desc]`,
//! `put KEY VALUE [lease=L] [prev] [keepvalue] [keeplease]`, `del RANGE [prev]`, and `txn`, which ends with `end`. A RANGE is
//! `KEY` or `FROM..TO`.
//!
//! After every entry all invariants are checked, and the machine is built again from its rows.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use buttress_core::{
    Append, Compare, Cursor, DeleteOp, Entry, Forget, Guard, KeyRange, LeaseChange, LeaseId, LogId, Machine as _,
    Offset, OpResult, Operand, Put, PutOp, RangeOp, Relation, RequestId, Revision, Sequence, StatePut, Table, Term,
    TimeMs, Timer, TopicChange, Txn, TxnOp, TxnResult,
    entry::TopicSettings,
    ledger::{KeyEvent, KeyValue},
    txn::{SortOrder, SortTarget},
};
use buttress_state::{Effects, Limits, Machine, MemStore, invariants, local::opaque_batch};
use bytes::Bytes;

/// The words of a line: plain ones in order, `name=value` ones by name.
struct Words<'a> {
    plain: std::vec::IntoIter<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let (named, plain): (Vec<&str>, Vec<&str>) = line.split_whitespace().partition(|word| word.contains('='));
        let named = named.into_iter().map(|word| word.split_once('=').expect("partitioned by =")).collect();
        Self { plain: plain.into_iter(), named }
    }

    fn word(&mut self) -> &'a str {
        self.plain.next().expect("a word is missing")
    }

    fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(&mut self) -> T {
        self.word().parse().expect("a number")
    }

    fn named<T: std::str::FromStr<Err: std::fmt::Debug>>(&mut self, name: &str) -> Option<T> {
        self.named.remove(name).map(|value| value.parse().expect("a number"))
    }

    /// Asserts that every word was understood.
    fn end(mut self) {
        assert_eq!((self.plain.next(), self.named), (None, BTreeMap::new()), "words that mean nothing here");
    }
}

fn bytes(word: &str) -> Bytes {
    Bytes::copy_from_slice(if word == "''" { b"" } else { word.as_bytes() })
}

fn hex(text: &str) -> Bytes {
    assert!(text.len().is_multiple_of(2), "hex digits come in pairs");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

fn text(word: &str) -> String {
    if word == "''" { String::new() } else { word.to_owned() }
}

fn guard(w: &mut Words<'_>) -> Guard {
    match w.word() {
        "mod" => Guard::ModRevision { key: bytes(w.word()), revision: Revision(w.number()) },
        "create" => Guard::CreateRevision { key: bytes(w.word()), revision: Revision(w.number()) },
        "version" => Guard::Version { key: bytes(w.word()), version: w.number() },
        "value" => Guard::Value { key: bytes(w.word()), value: bytes(w.word()) },
        "lease" => Guard::LeaseAlive { lease: LeaseId(w.number()) },
        "cursor" => Guard::Cursor {
            group: text(w.word()),
            log: LogId(w.number()),
            expected: match w.word() {
                "unset" => None,
                at => Some(Offset(at.parse().expect("an offset"))),
            },
        },
        "end" => Guard::LogEnd { log: LogId(w.number()), expected: Offset(w.number()) },
        other => panic!("no guard {other:?}"),
    }
}

fn range_of(word: &str) -> KeyRange {
    match word.split_once("..") {
        Some((from, to)) => KeyRange { from: bytes(from), to: Some(bytes(to)) },
        None => KeyRange::key(bytes(word)),
    }
}

/// The transactions that are open, each but the outermost with where it goes in the one around it.
#[derive(Default)]
struct Open {
    txn: Option<Txn>,
    inner: Vec<(bool, Txn)>,
}

impl Open {
    fn innermost(&mut self) -> &mut Txn {
        match self.inner.last_mut() {
            Some((_, txn)) => txn,
            None => self.txn.get_or_insert_default(),
        }
    }

    fn op(&mut self, then: bool, op: TxnOp) {
        let txn = self.innermost();
        if then { txn.success.push(op) } else { txn.failure.push(op) }
    }

    /// Takes a line of a transaction; `false` where it is none.
    fn line(&mut self, line: &str) -> bool {
        let mut w = Words::of(line);
        let then = match w.word() {
            "txn" => {
                self.innermost();
                return true;
            }
            "if" => {
                let (target, range, relation, operand) = (w.word(), range_of(w.word()), w.word(), w.word());
                let relation = match relation {
                    "eq" => Relation::Equal,
                    "gt" => Relation::Greater,
                    "lt" => Relation::Less,
                    "ne" => Relation::NotEqual,
                    other => panic!("no relation {other:?}"),
                };
                let number = || operand.parse().expect("a number");
                let operand = match target {
                    "version" => Operand::Version(number()),
                    "create" => Operand::CreateRevision(number()),
                    "mod" => Operand::ModRevision(number()),
                    "value" => Operand::Value(bytes(operand)),
                    "lease" => Operand::Lease(number()),
                    other => panic!("nothing {other:?} to compare"),
                };
                self.innermost().compares.push(Compare { range, relation, operand });
                w.end();
                return true;
            }
            "end" if !self.inner.is_empty() => {
                let (then, txn) = self.inner.pop().expect("one is open");
                self.op(then, TxnOp::Txn(Box::new(txn)));
                w.end();
                return true;
            }
            "then" => true,
            "else" => false,
            _ => return false,
        };
        match w.word() {
            "txn" => self.inner.push((then, Txn::default())),
            "range" => {
                let mut op = RangeOp::new(range_of(w.word()));
                op.revision = w.named("at").map(Revision);
                op.limit = w.named("limit").unwrap_or(0);
                let mut bounds = |name: &str| {
                    let (min, max) = w.named.remove(name)?.split_once("..").expect("MIN..MAX");
                    let bound = |word: &str| (!word.is_empty()).then(|| Revision(word.parse().expect("a revision")));
                    Some((bound(min), bound(max)))
                };
                (op.min_mod_revision, op.max_mod_revision) = bounds("mod").unwrap_or_default();
                (op.min_create_revision, op.max_create_revision) = bounds("create").unwrap_or_default();
                op.target = match w.named.remove("sort").unwrap_or("key") {
                    "key" => SortTarget::Key,
                    "version" => SortTarget::Version,
                    "create" => SortTarget::CreateRevision,
                    "mod" => SortTarget::ModRevision,
                    "value" => SortTarget::Value,
                    other => panic!("no target {other:?}"),
                };
                op.order = match w.named.remove("order") {
                    None => SortOrder::None,
                    Some("asc") => SortOrder::Ascending,
                    Some("desc") => SortOrder::Descending,
                    Some(other) => panic!("no order {other:?}"),
                };
                for flag in w.plain.by_ref() {
                    match flag {
                        "count" => op.count_only = true,
                        "keys" => op.keys_only = true,
                        other => panic!("no flag {other:?}"),
                    }
                }
                self.op(then, TxnOp::Range(op));
            }
            "put" => {
                let mut op = PutOp { key: bytes(w.word()), value: bytes(w.word()), ..PutOp::default() };
                op.lease = w.named("lease").map(LeaseId);
                for flag in w.plain.by_ref() {
                    match flag {
                        "prev" => op.prev_kv = true,
                        "keepvalue" => op.ignore_value = true,
                        "keeplease" => op.ignore_lease = true,
                        other => panic!("no flag {other:?}"),
                    }
                }
                self.op(then, TxnOp::Put(op));
            }
            "del" => {
                let range = range_of(w.word());
                let prev_kv = w.plain.next().is_some_and(|flag| flag == "prev");
                self.op(then, TxnOp::Delete(DeleteOp { range, prev_kv }));
            }
            other => panic!("no operation {other:?}"),
        }
        w.end();
        true
    }

    fn finish(self) -> Option<Txn> {
        assert!(self.inner.is_empty(), "a transaction is not closed");
        self.txn
    }
}

fn show_kv(out: &mut String, before: &str, kv: &KeyValue) {
    let lease = kv.lease.map_or(String::new(), |lease| format!(" lease {lease}"));
    let _ = writeln!(
        out,
        "{before}{} = {} created {} modified {} version {}{lease}",
        kv.key.escape_ascii(),
        kv.value.escape_ascii(),
        kv.create_revision,
        kv.mod_revision,
        kv.version
    );
}

fn show_txn(out: &mut String, before: &str, result: &TxnResult) {
    let _ = writeln!(out, "{before}{}", if result.succeeded { "then" } else { "else" });
    let inner = format!("{before}    ");
    for op in &result.results {
        match op {
            OpResult::Range(found) => {
                let more = if found.more { ", more" } else { "" };
                let _ = writeln!(out, "{before}  found {} at revision {}{more}", found.count, found.revision);
                found.kvs.iter().for_each(|kv| show_kv(out, &inner, kv));
            }
            OpResult::Put { revision, prev } => {
                let _ = writeln!(out, "{before}  put at revision {revision}");
                prev.iter().for_each(|kv| show_kv(out, &format!("{inner}was "), kv));
            }
            OpResult::Delete { revision, deleted, prev } => {
                let _ = writeln!(out, "{before}  deleted {deleted} at revision {revision}");
                prev.iter().for_each(|kv| show_kv(out, &format!("{inner}was "), kv));
            }
            OpResult::Txn(result) => show_txn(out, &format!("{before}  "), result),
        }
    }
}

fn part(entry: &mut Entry, line: &str) {
    let mut w = Words::of(line);
    match w.word() {
        "guard" => entry.guards.push(guard(&mut w)),
        "create" => entry.topics.push(TopicChange::Create {
            name: text(w.word()),
            id: [7; 16],
            partitions: w.named("partitions").expect("partitions=N"),
            settings: TopicSettings {
                retention_bytes: w.named("bytes"),
                retention_ms: w.named("ms"),
                sequence_fields: None,
                batch_bytes_max: w.named("batch"),
            },
        }),
        "configure" => {
            let mut settings = |prefix: &str| TopicSettings {
                retention_bytes: w.named(&format!("{prefix}bytes")),
                retention_ms: w.named(&format!("{prefix}ms")),
                sequence_fields: None,
                batch_bytes_max: w.named(&format!("{prefix}batch")),
            };
            let (from, to) = (settings("was-"), settings(""));
            entry.topics.push(TopicChange::Configure { name: text(w.word()), from, to });
        }
        "extend" => {
            let partitions = w.named("partitions").expect("partitions=N");
            entry.topics.push(TopicChange::Extend { name: text(w.word()), partitions });
        }
        "forget" => entry.forgets.push(Forget { group: text(w.word()), log: LogId(w.number()) }),
        "delete" => entry.topics.push(TopicChange::Delete { name: text(w.word()) }),
        "trim" => entry.topics.push(TopicChange::Trim { log: LogId(w.number()), before: Offset(w.number()) }),
        "grant" => entry
            .leases
            .push(LeaseChange::Grant { lease: LeaseId(w.number()), ttl_ms: w.named("ttl").expect("ttl=MS") }),
        "keepalive" => entry.leases.push(LeaseChange::KeepAlive { lease: LeaseId(w.number()) }),
        "revoke" => entry.leases.push(LeaseChange::Revoke { lease: LeaseId(w.number()) }),
        "put" => {
            let (key, value) = (bytes(w.word()), bytes(w.word()));
            entry.puts.push(Put { key, value: Some(value), lease: w.named("lease").map(LeaseId) });
        }
        "del" => {
            let key = bytes(w.word());
            entry.puts.push(Put { key, value: None, lease: w.named("lease").map(LeaseId) });
        }
        "state" => {
            let (space, key) = (text(w.word()), bytes(w.word()));
            entry.state.push(StatePut { space, key, value: w.plain.next().map(bytes) });
        }
        "append" => {
            let log = LogId(w.number());
            let records = w.named("records").unwrap_or(1);
            let size: usize = w.named("size").unwrap_or(0);
            let sequence = w.named.remove("seq").map(|seq| {
                let mut parts = seq.rsplitn(3, '/');
                let number = parts.next().expect("a number").parse().expect("a number");
                let epoch = parts.next().expect("an epoch").parse().expect("an epoch");
                Sequence { producer: parts.next().expect("a producer").into(), epoch, number }
            });
            let batch = match w.named.remove("raw") {
                Some(raw) => hex(raw),
                None => opaque_batch(records, &vec![b'x'; size]),
            };
            entry.appends.push(Append { log, records, max_timestamp_ms: entry.time.0 as i64, sequence, batch });
        }
        "cursor" => entry.cursors.push(Cursor {
            group: text(w.word()),
            log: LogId(w.number()),
            next: Offset(w.number()),
            metadata: w.plain.next().unwrap_or_default().into(),
        }),
        "timer" => {
            let due = TimeMs(w.named("at").expect("at=MS"));
            entry.timers.push(Timer::Set { id: text(w.word()), due, key: bytes(w.word()), value: bytes(w.word()) });
        }
        "cancel" => entry.timers.push(Timer::Cancel { id: text(w.word()) }),
        "expire" => entry.expire = true,
        "compact" => entry.compact = Some(Revision(w.number())),
        other => panic!("no part {other:?}"),
    }
    w.end();
}

fn show_event(out: &mut String, event: &KeyEvent) {
    match &event.value {
        Some(value) => {
            writeln!(out, "  {} put {} = {}", event.revision, event.key.escape_ascii(), value.escape_ascii())
        }
        None => writeln!(out, "  {} delete {}", event.revision, event.key.escape_ascii()),
    }
    .expect("writing to a string");
}

fn show_effects(out: &mut String, effects: &Effects) {
    match &effects.result {
        Ok(receipt) => {
            let replayed = if receipt.replayed { " replayed" } else { "" };
            let _ = writeln!(
                out,
                "ok index {} term {} revision {} time {}{replayed}",
                receipt.index, receipt.term, receipt.revision, receipt.time
            );
            for outcome in &receipt.appends {
                let _ = writeln!(out, "  {outcome:?}");
            }
            for (name, logs) in &receipt.created {
                let _ = writeln!(out, "  created {name} logs {:?}", logs.iter().map(|log| log.0).collect::<Vec<_>>());
            }
            if let Some(result) = &receipt.txn {
                show_txn(out, "  ", result);
            }
        }
        Err(refusal) => {
            let _ = writeln!(out, "refused {}", refusal.clone().into_error());
        }
    }
    for event in effects.events() {
        show_event(out, &event);
    }
    for (log, end) in &effects.ends {
        let _ = writeln!(out, "  log {log} ends at {end}");
    }
    for (log, start) in &effects.starts {
        let _ = writeln!(out, "  log {log} starts at {start}");
    }
    for topic in &effects.topics {
        let _ = writeln!(out, "  {topic:?}");
    }
    if !effects.leases_ended.is_empty() {
        let _ = writeln!(out, "  leases ended {:?}", effects.leases_ended.iter().map(|l| l.0).collect::<Vec<_>>());
    }
    if !effects.timers_fired.is_empty() {
        let _ = writeln!(out, "  timers fired {:?}", effects.timers_fired);
    }
}

struct World {
    machine: Machine<MemStore>,
    limits: Limits,
    time: TimeMs,
    term: Term,
}

impl World {
    fn new(limits: Limits) -> Self {
        let machine = Machine::open_with(MemStore::new(), limits).expect("memory can be read");
        Self { machine, limits, time: TimeMs(0), term: Term(1) }
    }

    fn apply(&mut self, entry: Bytes) -> String {
        let before = self.machine.next_deadline();
        let index = self.machine.applied().0.next();
        let effects = self.machine.apply(index, self.term, entry);
        let mut out = String::new();
        show_effects(&mut out, &effects);
        let after = self.machine.next_deadline();
        assert_eq!(effects.deadline_changed, before != after);
        if before != after {
            let _ = writeln!(out, "  deadline {}", after.map_or("none".into(), |at| at.to_string()));
        }
        invariants::check(&self.machine)
            .and_then(|()| invariants::check_batches(&self.machine))
            .and_then(|()| invariants::check_reopen(&self.machine).expect("memory can be read"))
            .unwrap_or_else(|violation| panic!("{violation}"));
        self.machine = Machine::open_with(self.machine.store().clone(), self.limits).expect("memory can be read");
        out
    }

    fn run(&mut self, command: &str) -> String {
        let (head, parts) = command.split_once('\n').unwrap_or((command, ""));
        let mut w = Words::of(head);
        let mut out = String::new();
        match w.word() {
            "entry" => {
                self.time = w.named("time").map_or(self.time, TimeMs);
                self.term = w.named("term").map_or(self.term, Term);
                let mut entry = Entry { time: self.time, ..Entry::default() };
                if let Some(request) = w.named.remove("req") {
                    let numbers: Vec<u64> = request.split('/').map(|n| n.parse().expect("a number")).collect();
                    let [client, number, acknowledged_below] = numbers[..] else { panic!("req=A/B/C") };
                    entry.request = Some(RequestId { client, number, acknowledged_below });
                }
                let mut open = Open::default();
                for line in parts.lines() {
                    if !open.line(line) {
                        part(&mut entry, line);
                    }
                }
                entry.txn = open.finish();
                out = self.apply(entry.encode());
            }
            "bytes" => out = self.apply(w.plain.next().map_or(Bytes::new(), hex)),
            "keys" => {
                let range = match w.plain.next().map(|range| range.split_once("..").ok_or(range)) {
                    None => KeyRange::prefix(""),
                    Some(Ok((from, to))) => KeyRange { from: bytes(from), to: Some(bytes(to)) },
                    Some(Err(key)) => KeyRange::key(bytes(key)),
                };
                let at = w.named("at").map(Revision);
                match self.machine.range(&range, w.named("limit").unwrap_or(usize::MAX), at) {
                    Ok(found) => {
                        let more = if found.more { ", more" } else { "" };
                        let _ = writeln!(out, "revision {}{more}", found.revision);
                        for kv in found.kvs {
                            let _ = writeln!(
                                out,
                                "  {} = {} created {} modified {} version {}",
                                kv.key.escape_ascii(),
                                kv.value.escape_ascii(),
                                kv.create_revision,
                                kv.mod_revision,
                                kv.version
                            );
                        }
                    }
                    Err(error) => {
                        let _ = writeln!(out, "{}", buttress_core::Error::from(error));
                    }
                }
            }
            "events" => {
                let from = Revision(w.named("from").unwrap_or(0));
                let limit = w.named("limit").unwrap_or(usize::MAX);
                match self.machine.events_since(&KeyRange::prefix(""), from, limit) {
                    Ok(found) => {
                        found.events.iter().for_each(|event| show_event(&mut out, event));
                        let _ = writeln!(out, "next {}", found.next);
                    }
                    Err(error) => {
                        let _ = writeln!(out, "{}", buttress_core::Error::from(error));
                    }
                }
            }
            "changed" => {
                let from = Revision(w.named("from").unwrap_or(0));
                let limits = (w.named("limit").unwrap_or(usize::MAX), usize::MAX);
                let prev = w.plain.next().is_some_and(|flag| flag == "prev");
                match self.machine.changed_since(&KeyRange::prefix(""), from, limits, prev) {
                    Ok(found) => {
                        for event in &found.events {
                            show_kv(&mut out, if event.deleted { "  delete " } else { "  put " }, &event.kv);
                            event.prev.iter().for_each(|kv| show_kv(&mut out, "    was ", kv));
                        }
                        let _ = writeln!(out, "next {}", found.next);
                    }
                    Err(error) => {
                        let _ = writeln!(out, "{}", buttress_core::Error::from(error));
                    }
                }
            }
            "read" => {
                let mut open = Open::default();
                parts.lines().for_each(|line| assert!(open.line(line), "{line:?} is no line of a transaction"));
                let txn = open.finish().expect("a transaction");
                match self.machine.read_txn(&txn).expect("memory can be read") {
                    Ok(result) => show_txn(&mut out, "", &result),
                    Err(refusal) => {
                        let _ = writeln!(out, "refused {}", refusal.into_error());
                    }
                }
            }
            "lease" => {
                let now = TimeMs(w.named("now").expect("now=MS"));
                match self.machine.lease(LeaseId(w.number()), now, true) {
                    Some(lease) => {
                        let keys: Vec<_> = lease.keys.iter().map(|key| key.escape_ascii().to_string()).collect();
                        let _ = writeln!(out, "{} of {} ms left, keys {keys:?}", lease.remaining_ms, lease.ttl_ms);
                    }
                    None => out.push_str("none\n"),
                }
            }
            "hash" => match self.machine.hash_page(&KeyRange::prefix(""), w.named("at").map(Revision), usize::MAX) {
                Ok((hash, _)) => {
                    let _ = writeln!(out, "{hash:016x}");
                }
                Err(error) => {
                    let _ = writeln!(out, "{}", buttress_core::Error::from(error));
                }
            },
            "rows" => {
                for place in self.machine.store().rows(Table::Keys).keys() {
                    let (main, sub) = place.split_at(8);
                    let main = u64::from_be_bytes(main.try_into().expect("eight bytes"));
                    let sub = u32::from_be_bytes(sub.try_into().expect("four bytes"));
                    let _ = writeln!(out, "  {main}.{sub}");
                }
            }
            "topics" => {
                for topic in self.machine.topics() {
                    let _ = writeln!(out, "{}", topic.name);
                    for p in topic.partitions {
                        let _ = writeln!(out, "  log {}: {} to {}, {} bytes", p.log, p.start, p.end, p.bytes);
                    }
                }
            }
            "batches" => {
                for b in self.machine.store().batches(LogId(w.number())) {
                    let epoch = i32::from_be_bytes(b.bytes[12..16].try_into().expect("four bytes"));
                    let _ = writeln!(
                        out,
                        "{} to {} epoch {epoch} index {} committed at {} {} bytes",
                        b.base_offset,
                        b.last_offset,
                        b.index,
                        b.committed_at,
                        b.bytes.len()
                    );
                }
            }
            "cursors" => {
                for (log, group, position) in self.machine.cursors().iter() {
                    let _ = writeln!(out, "{group} log {log} at {} {:?}", position.next, position.metadata);
                }
            }
            "leases" => {
                for (id, lease) in self.machine.leases().iter() {
                    let keys: Vec<_> =
                        self.machine.keys().attached_to(id).map(|key| key.escape_ascii().to_string()).collect();
                    let _ = writeln!(out, "{id} ttl {} until {} keys {keys:?}", lease.ttl_ms, lease.deadline);
                }
            }
            "timers" => {
                for (id, timer) in self.machine.timers().iter() {
                    let _ = writeln!(out, "{id} due {} puts {}", timer.due, timer.key.escape_ascii());
                }
            }
            "state" => {
                let found = self.machine.state_get(w.word(), &bytes(w.word())).expect("memory can be read");
                let _ = writeln!(out, "{}", found.map_or("none".into(), |value| value.escape_ascii().to_string()));
            }
            "retention" => {
                for trim in self.machine.retention(TimeMs(w.named("now").expect("now=MS"))) {
                    let _ = writeln!(out, "{trim:?}");
                }
            }
            "limits" => {
                let all = Limits::default();
                *self = Self::new(Limits {
                    request_clients: w.named("clients").unwrap_or(all.request_clients),
                    request_results_per_client: w.named("results").unwrap_or(all.request_results_per_client),
                    producers_per_partition: w.named("producers").unwrap_or(all.producers_per_partition),
                    ends_per_entry: w.named("ends").unwrap_or(all.ends_per_entry),
                    sweep_per_entry: w.named("sweep").unwrap_or(all.sweep_per_entry),
                    ..all
                });
            }
            other => panic!("no command {other:?}"),
        }
        w.end();
        if out.is_empty() { "(nothing)\n".into() } else { out }
    }
}

/// Answers every command of a transcript. Blank lines end a block; lines that start with `#` are for people.
fn answer(transcript: &str) -> String {
    let mut world = World::new(Limits::default());
    let mut out = String::new();
    for block in transcript.split("\n\n") {
        let mut command = Vec::new();
        for line in block.trim_matches('\n').lines() {
            if line == "----" {
                break;
            }
            let _ = writeln!(out, "{line}");
            if !line.starts_with('#') {
                command.push(line);
            }
        }
        if !command.is_empty() {
            let answer = world.run(&command.join("\n"));
            let _ = write!(out, "----\n{answer}");
        }
        out.push('\n');
    }
    format!("{}\n", out.trim_end())
}

#[test]
fn transcripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> = fs::read_dir(dir).expect("testdata is there").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 9, "transcripts are missing: {files:?}");
    for file in files {
        let expected = fs::read_to_string(&file).expect("a transcript can be read");
        let got = answer(&expected);
        expect_test::expect_file![&file].assert_eq(&got);
    }
}
