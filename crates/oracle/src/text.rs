//! A history as text: what failures show, what tests are written in, and what a run leaves behind to be judged again.
//!
//! ```text
//! 1 10..20 put a 1 -> done 2
//! 2 15.. put a 2 -> unknown
//! 3 30..40 if a mod=2; put a 3; del b -> done 3
//! 3 41..42 if a mod=2; put a 4 -> refused 0
//! 2 50..60 read a..c -> found 3: a=3@3/2v2
//! 4 61..62 append 1 from p/0/0 7,8 -> done 3 at 0
//! 4 63..64 fetch 1 0 -> fetched 0:7,8
//! 5 65..66 txn ( if mod a = 3 then put a 5 prev else range a..c limit 1 ) -> transacted 4 ( yes put 4 a=3@3/2v2 )
//! watch w a..c from 2: 2 a=1, 3 a=3; upto 3
//! log 1 from 0: 0:7,8
//! scope a..c
//! change 2 a=1
//! changes upto 3
//! ```
//!
//! An operation is its client, the times of call and answer, what was asked, and what came. The parts of a commit are
//! separated by semicolons. A key that was read stands with its value, its revision, and, where they are not that revision
//! and 1, the revision of its creation and its version, and where it hangs on one, `+` and its lease.
//!
//! A transaction stands in parentheses: compares (`if version|create|mod|value|lease RANGE =|!=|<|> OPERAND`), then operations
//! behind `then` or `else`: `put KEY VALUE [lease L] [keepvalue] [keeplease] [prev]`, `del RANGE [prev]`,
//! `range RANGE [at R] [limit N] [count] [keys] [minmod R] [maxmod R] [mincreate R] [maxcreate R] [by TARGET] [asc|desc]`, and
//! `txn`. Its answer says `yes` or `no`, and for each operation `put REVISION [KEY]`, `deleted N REVISION KEYS`,
//! `found N REVISION [more] KEYS` or `txn`.

use std::fmt::{self, Display, Write as _};

use buttress_core::{
    Compare, DeleteOp, Guard, KeyRange, LeaseChange, LeaseId, LogId, Offset, OpResult, Operand, Put, PutOp, RangeOp,
    RangeResult, Relation, Revision, Sequence, StatePut, Txn, TxnOp, TxnResult,
    ledger::{KeyEvent, KeyValue, KeyValues},
    txn::{SortOrder, SortTarget},
};
use bytes::Bytes;

use crate::history::{
    Appended, Commit, Done, History, LogContent, Operation, Outcome, Records, Serial, Session, SessionEnd, Watcher,
    What,
};

/// Bytes as one word: letters, digits, `-`, `_` and `/` as they are, all else as `\xNN`.
pub struct Word<'a>(pub &'a [u8]);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("\"\"");
        }
        for byte in self.0 {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'/' => f.write_char(char::from(*byte))?,
                other => write!(f, "\\x{other:02x}")?,
            }
        }
        Ok(())
    }
}

struct Range<'a>(&'a KeyRange);

impl Display for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.to {
            None => Word(&self.0.from).fmt(f),
            Some(to) if to.is_empty() => write!(f, "{}..", Word(&self.0.from)),
            Some(to) => write!(f, "{}..{}", Word(&self.0.from), Word(to)),
        }
    }
}

struct Kv<'a>(&'a KeyValue);

impl Display for Kv<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kv = self.0;
        write!(f, "{}={}@{}", Word(&kv.key), Word(&kv.value), kv.mod_revision)?;
        if (kv.create_revision, kv.version) != (kv.mod_revision, 1) {
            write!(f, "/{}v{}", kv.create_revision, kv.version)?;
        }
        if let Some(lease) = kv.lease {
            write!(f, "+{lease}")?;
        }
        Ok(())
    }
}

/// One change, as `2 a=1` or `3 a=-`.
pub struct Change<'a>(pub &'a KeyEvent);

impl Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeyEvent { revision, key, value } = self.0;
        match value {
            Some(value) => write!(f, "{revision} {}={}", Word(key), Word(value)),
            None => write!(f, "{revision} {}=-", Word(key)),
        }
    }
}

fn list<T: Display>(f: &mut fmt::Formatter<'_>, between: &str, items: impl Iterator<Item = T>) -> fmt::Result {
    for (position, item) in items.enumerate() {
        if position > 0 {
            f.write_str(between)?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

fn records(f: &mut fmt::Formatter<'_>, records: &[(Offset, Serial)]) -> fmt::Result {
    let mut next = None;
    for (offset, serial) in records {
        match next {
            Some(expected) if expected == *offset => write!(f, ",{serial}")?,
            Some(_) => write!(f, " {offset}:{serial}")?,
            None => write!(f, "{offset}:{serial}")?,
        }
        next = Some(Offset(offset.0 + 1));
    }
    Ok(())
}

impl Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        for guard in &self.guards {
            parts.push(match guard {
                Guard::ModRevision { key, revision } => format!("if {} mod={revision}", Word(key)),
                Guard::CreateRevision { key, revision } => format!("if {} create={revision}", Word(key)),
                Guard::Version { key, version } => format!("if {} version={version}", Word(key)),
                Guard::Value { key, value } => format!("if {} value={}", Word(key), Word(value)),
                Guard::LeaseAlive { lease } => format!("if lease {lease}"),
                Guard::Cursor { group, log, expected } => {
                    let expected = expected.map_or("unset".into(), |at| at.to_string());
                    format!("if cursor {} {log} {expected}", Word(group.as_bytes()))
                }
                Guard::LogEnd { log, expected } => format!("if end {log} {expected}"),
            });
        }
        for change in &self.leases {
            parts.push(match change {
                LeaseChange::Grant { lease, ttl_ms } => format!("grant {lease} {ttl_ms}"),
                LeaseChange::KeepAlive { lease } => format!("keepalive {lease}"),
                LeaseChange::Revoke { lease } => format!("revoke {lease}"),
            });
        }
        for put in &self.puts {
            let mut part = match &put.value {
                Some(value) => format!("put {} {}", Word(&put.key), Word(value)),
                None => format!("del {}", Word(&put.key)),
            };
            if let Some(lease) = put.lease {
                let _ = write!(part, " lease {lease}");
            }
            parts.push(part);
        }
        for put in &self.state {
            let value = put.value.as_ref().map_or("-".into(), |value| Word(value).to_string());
            parts.push(format!("state {} {} {value}", Word(put.space.as_bytes()), Word(&put.key)));
        }
        for append in &self.appends {
            let mut part = format!("append {}", append.log);
            if let Some(Sequence { producer, epoch, number }) = &append.sequence {
                let _ = write!(part, " from {} {epoch} {number}", Word(producer.as_bytes()));
            }
            for (position, serial) in append.serials.iter().enumerate() {
                let _ = write!(part, "{}{serial}", if position == 0 { " " } else { "," });
            }
            parts.push(part);
        }
        for cursor in &self.cursors {
            parts.push(format!("cursor {} {} {}", Word(cursor.group.as_bytes()), cursor.log, cursor.next));
        }
        if let Some(revision) = self.compact {
            parts.push(format!("compact {revision}"));
        }
        if parts.is_empty() {
            return f.write_str("nothing");
        }
        list(f, "; ", parts.iter())
    }
}

const TARGETS: [(&str, SortTarget); 5] = [
    ("key", SortTarget::Key),
    ("version", SortTarget::Version),
    ("create", SortTarget::CreateRevision),
    ("mod", SortTarget::ModRevision),
    ("value", SortTarget::Value),
];

const RELATIONS: [(&str, Relation); 4] =
    [("=", Relation::Equal), ("!=", Relation::NotEqual), ("<", Relation::Less), (">", Relation::Greater)];

fn name_of<T: PartialEq>(all: &[(&'static str, T)], wanted: &T) -> &'static str {
    all.iter().find(|(_, one)| one == wanted).expect("every one has a name").0
}

struct Transaction<'a>(&'a Txn);

impl Display for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for Compare { range, relation, operand } in &self.0.compares {
            let relation = name_of(&RELATIONS, relation);
            let (what, operand) = match operand {
                Operand::Version(number) => ("version", number.to_string()),
                Operand::CreateRevision(number) => ("create", number.to_string()),
                Operand::ModRevision(number) => ("mod", number.to_string()),
                Operand::Value(value) => ("value", Word(value).to_string()),
                Operand::Lease(number) => ("lease", number.to_string()),
            };
            write!(f, " if {what} {} {relation} {operand}", Range(range))?;
        }
        for (branch, ops) in [("then", &self.0.success), ("else", &self.0.failure)] {
            for op in ops {
                write!(f, " {branch} {}", TransactionOp(op))?;
            }
        }
        f.write_str(" )")
    }
}

struct TransactionOp<'a>(&'a TxnOp);

impl Display for TransactionOp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = |f: &mut fmt::Formatter<'_>, flags: &[(&str, bool)]| {
            flags.iter().filter(|(_, set)| *set).try_for_each(|(name, _)| write!(f, " {name}"))
        };
        match self.0 {
            TxnOp::Put(op) => {
                write!(f, "put {} {}", Word(&op.key), Word(&op.value))?;
                if let Some(lease) = op.lease {
                    write!(f, " lease {lease}")?;
                }
                flags(f, &[("keepvalue", op.ignore_value), ("keeplease", op.ignore_lease), ("prev", op.prev_kv)])
            }
            TxnOp::Delete(op) => {
                write!(f, "del {}", Range(&op.range))?;
                flags(f, &[("prev", op.prev_kv)])
            }
            TxnOp::Txn(txn) => write!(f, "txn {}", Transaction(txn)),
            TxnOp::Range(op) => {
                write!(f, "range {}", Range(&op.range))?;
                let limit = (op.limit > 0).then_some(Revision(op.limit));
                for (name, number) in [
                    ("at", op.revision),
                    ("limit", limit),
                    ("minmod", op.min_mod_revision),
                    ("maxmod", op.max_mod_revision),
                    ("mincreate", op.min_create_revision),
                    ("maxcreate", op.max_create_revision),
                ] {
                    if let Some(number) = number {
                        write!(f, " {name} {number}")?;
                    }
                }
                flags(f, &[("count", op.count_only), ("keys", op.keys_only)])?;
                if op.target != SortTarget::Key {
                    write!(f, " by {}", name_of(&TARGETS, &op.target))?;
                }
                flags(f, &[("asc", op.order == SortOrder::Ascending), ("desc", op.order == SortOrder::Descending)])
            }
        }
    }
}

/// The answer to a transaction.
pub struct Transacted<'a>(pub &'a TxnResult);

impl Display for Transacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.succeeded { "( yes" } else { "( no" })?;
        let kvs = |f: &mut fmt::Formatter<'_>, kvs: &[KeyValue]| kvs.iter().try_for_each(|kv| write!(f, " {}", Kv(kv)));
        for result in &self.0.results {
            match result {
                OpResult::Put { revision, prev } => {
                    write!(f, " put {revision}")?;
                    kvs(f, prev.as_slice())?;
                }
                OpResult::Delete { revision, deleted, prev } => {
                    write!(f, " deleted {deleted} {revision}")?;
                    kvs(f, prev)?;
                }
                OpResult::Range(found) => {
                    write!(f, " found {} {}{}", found.count, found.revision, if found.more { " more" } else { "" })?;
                    kvs(f, &found.kvs)?;
                }
                OpResult::Txn(result) => write!(f, " txn {}", Transacted(result))?,
            }
        }
        f.write_str(" )")
    }
}

impl Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit(commit) => commit.fmt(f),
            Self::Txn { txn, linearizable: true } => write!(f, "txn {}", Transaction(txn)),
            Self::Txn { txn, linearizable: false } => write!(f, "txn {} stale", Transaction(txn)),
            Self::Read { range, at, linearizable } => {
                write!(f, "read {}", Range(range))?;
                if let Some(at) = at {
                    write!(f, " at {at}")?;
                }
                if !linearizable {
                    f.write_str(" stale")?;
                }
                Ok(())
            }
            Self::Fetch { log, from } => write!(f, "fetch {log} {from}"),
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(Done { revision, offsets }) => {
                f.write_str("done")?;
                if let Some(revision) = revision {
                    write!(f, " {revision}")?;
                }
                if !offsets.is_empty() {
                    f.write_str(" at ")?;
                    let offsets = offsets.iter().map(|offset| match offset {
                        Appended::At(offset) => offset.to_string(),
                        Appended::Before => "before".into(),
                        Appended::Not => "not".into(),
                    });
                    list(f, ",", offsets)?;
                }
                Ok(())
            }
            Self::Found(KeyValues { revision, kvs, more }) => {
                write!(f, "found {revision}:")?;
                for kv in kvs {
                    write!(f, " {}", Kv(kv))?;
                }
                if *more {
                    f.write_str(" more")?;
                }
                Ok(())
            }
            Self::Transacted { revision, result } => write!(f, "transacted {revision} {}", Transacted(result)),
            Self::Fetched(found) => {
                f.write_str("fetched ")?;
                records(f, found)
            }
            Self::Refused { guard: Some(position) } => write!(f, "refused {position}"),
            Self::Refused { guard: None } => f.write_str("refused"),
            Self::Failed => f.write_str("failed"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}..", self.client, self.invoked_us)?;
        if let Some(returned) = self.returned_us {
            write!(f, "{returned}")?;
        }
        write!(f, " {} -> {}", self.what, self.outcome)
    }
}

impl Display for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, session) in self.sessions.iter().enumerate() {
            if position > 0 {
                f.write_char('\n')?;
            }
            write!(f, "watch {} {} from {}: ", Word(self.name.as_bytes()), Range(&self.range), session.from)?;
            list(f, ", ", session.events.iter().map(Change))?;
            if !session.events.is_empty() {
                f.write_str("; ")?;
            }
            match session.end {
                SessionEnd::Lost => f.write_str("lost")?,
                SessionEnd::UpTo(revision) => write!(f, "upto {revision}")?,
                SessionEnd::Compacted(revision) => write!(f, "compacted {revision}")?,
            }
        }
        Ok(())
    }
}

impl Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for operation in self.operations() {
            writeln!(f, "{operation}")?;
        }
        for watcher in &self.watchers {
            writeln!(f, "{watcher}")?;
        }
        for (log, content) in &self.logs {
            write!(f, "log {log} from {}: ", content.start)?;
            records(f, &content.records)?;
            f.write_char('\n')?;
        }
        if let Some(scope) = &self.scope {
            writeln!(f, "scope {}", Range(scope))?;
        }
        for change in &self.changes {
            writeln!(f, "change {}", Change(change))?;
        }
        if let Some(end) = self.changes_end {
            writeln!(f, "changes upto {end}")?;
        }
        Ok(())
    }
}

/// Why a text is no history, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    pub line: String,
    pub why: &'static str,
}

impl Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {:?}", self.why, self.line)
    }
}

impl std::error::Error for ParseError {}

impl std::str::FromStr for History {
    type Err = ParseError;

    /// Reads what [`Display`] writes; empty lines and lines from `#` on are left out. Operations are ordered by their
    /// times.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut operations = Vec::new();
        let mut rest = History::new();
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            parse_line(line, &mut operations, &mut rest).map_err(|why| ParseError { line: line.to_owned(), why })?;
        }
        let mut history = History::of(operations);
        history.watchers = rest.watchers;
        history.logs = rest.logs;
        history.scope = rest.scope;
        history.changes = rest.changes;
        history.changes_end = rest.changes_end;
        Ok(history)
    }
}

type Parsed<T> = Result<T, &'static str>;

fn parse_line(line: &str, operations: &mut Vec<Operation>, rest: &mut History) -> Parsed<()> {
    let (first, tail) = line.split_once(' ').ok_or("a line has several words")?;
    match first {
        "watch" => parse_watch(tail, rest),
        "log" => {
            let (head, content) = tail.split_once(':').ok_or("a log has a colon")?;
            let (log, start) = head.split_once(" from ").ok_or("a log has its start")?;
            let content = LogContent { start: Offset(number(start)?), records: parse_records(content)? };
            rest.logs.insert(LogId(number(log)?), content);
            Ok(())
        }
        "scope" => {
            rest.scope = Some(range(tail)?);
            Ok(())
        }
        "change" => {
            rest.changes.push(parse_change(tail)?);
            Ok(())
        }
        "changes" => {
            let end = tail.strip_prefix("upto ").ok_or("changes have an end")?;
            rest.changes_end = Some(Revision(number(end)?));
            Ok(())
        }
        client => {
            let (times, tail) = tail.split_once(' ').ok_or("an operation has its times")?;
            let (invoked, returned) = times.split_once("..").ok_or("times are `CALL..ANSWER`")?;
            let returned = if returned.is_empty() { None } else { Some(number(returned)?) };
            let (what, outcome) = tail.split_once(" -> ").ok_or("an operation has its outcome")?;
            let (what, outcome) = (parse_what(what)?, parse_outcome(outcome)?);
            if returned.is_some_and(|returned| returned < number(invoked).unwrap_or(0)) {
                return Err("an answer comes after its call");
            }
            operations.push(Operation::new(number(client)?, number(invoked)?, returned, what, outcome));
            Ok(())
        }
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Parsed<T> {
    word.trim().parse().map_err(|_| "a number is wrong")
}

fn word(text: &str) -> Parsed<Bytes> {
    if text == "\"\"" {
        return Ok(Bytes::new());
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (byte, tail) {
            (b'\\', [b'x', high, low, tail @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).map_err(|_| "an escape is wrong")?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| "an escape is wrong")?);
                rest = tail;
            }
            (b'\\', _) => return Err("an escape is wrong"),
            (byte, _) => bytes.push(*byte),
        }
    }
    Ok(bytes.into())
}

fn name(text: &str) -> Parsed<String> {
    String::from_utf8(word(text)?.to_vec()).map_err(|_| "a name is UTF-8")
}

fn range(text: &str) -> Parsed<KeyRange> {
    Ok(match text.split_once("..") {
        None => KeyRange::key(word(text)?),
        Some((from, "")) => KeyRange { from: word(from)?, to: Some(Bytes::new()) },
        Some((from, to)) => KeyRange { from: word(from)?, to: Some(word(to)?) },
    })
}

fn parse_change(text: &str) -> Parsed<KeyEvent> {
    let (revision, change) = text.trim().split_once(' ').ok_or("a change has its revision")?;
    let (key, value) = change.split_once('=').ok_or("a change is `KEY=VALUE`")?;
    let value = if value == "-" { None } else { Some(word(value)?) };
    Ok(KeyEvent { revision: Revision(number(revision)?), key: word(key)?, value })
}

fn parse_records(text: &str) -> Parsed<Vec<(Offset, Serial)>> {
    let mut found = Vec::new();
    for run in text.split_whitespace() {
        let (base, serials) = run.split_once(':').ok_or("records have their offset")?;
        let base: i64 = number(base)?;
        for (serial, offset) in serials.split(',').zip(base..) {
            found.push((Offset(offset), Serial(number(serial)?)));
        }
    }
    Ok(found)
}

fn parse_watch(text: &str, rest: &mut History) -> Parsed<()> {
    let (head, story) = text.split_once(": ").ok_or("a watch has a colon")?;
    let words: Vec<&str> = head.split(' ').collect();
    let [watcher, keys, "from", from] = words[..] else { return Err("a watch is `NAME RANGE from REVISION`") };
    let (watcher, keys) = (name(watcher)?, range(keys)?);
    let (events, end) = story.rsplit_once("; ").unwrap_or(("", story));
    let events = events.split(", ").filter(|event| !event.is_empty()).map(parse_change).collect::<Parsed<_>>()?;
    let end = match end.split_once(' ') {
        None if end == "lost" => SessionEnd::Lost,
        Some(("upto", revision)) => SessionEnd::UpTo(Revision(number(revision)?)),
        Some(("compacted", revision)) => SessionEnd::Compacted(Revision(number(revision)?)),
        _ => return Err("a watch ends `lost`, `upto REVISION` or `compacted REVISION`"),
    };
    let session = Session { from: Revision(number(from)?), events, end };
    match rest.watchers.iter_mut().find(|known| known.name == watcher) {
        Some(known) if known.range == keys => known.sessions.push(session),
        Some(_) => return Err("a watcher keeps its range"),
        None => rest.watchers.push(Watcher { name: watcher, range: keys, sessions: vec![session] }),
    }
    Ok(())
}

type Words<'a> = std::iter::Peekable<std::str::Split<'a, char>>;

fn next<'a>(words: &mut Words<'a>) -> Parsed<&'a str> {
    words.next().ok_or("a transaction ends too early")
}

/// Takes the word where it comes next.
fn skip(words: &mut Words<'_>, word: &str) -> bool {
    words.next_if(|next| *next == word).is_some()
}

fn named<T: Copy>(all: &[(&'static str, T)], word: &str) -> Parsed<T> {
    all.iter().find(|(name, _)| *name == word).map(|(_, one)| *one).ok_or("a word in a transaction is wrong")
}

fn parse_txn(words: &mut Words<'_>) -> Parsed<Txn> {
    let mut txn = Txn::default();
    if !skip(words, "(") {
        return Err("a transaction begins with a parenthesis");
    }
    loop {
        match next(words)? {
            ")" => return Ok(txn),
            "if" => {
                let what = next(words)?;
                let range = range(next(words)?)?;
                let relation = named(&RELATIONS, next(words)?)?;
                let operand = next(words)?;
                let operand = match what {
                    "version" => Operand::Version(number(operand)?),
                    "create" => Operand::CreateRevision(number(operand)?),
                    "mod" => Operand::ModRevision(number(operand)?),
                    "value" => Operand::Value(word(operand)?),
                    "lease" => Operand::Lease(number(operand)?),
                    _ => return Err("a compare asks for version, create, mod, value or lease"),
                };
                txn.compares.push(Compare { range, relation, operand });
            }
            "then" => txn.success.push(parse_op(words)?),
            "else" => txn.failure.push(parse_op(words)?),
            _ => return Err("a transaction has `if`, `then` and `else`"),
        }
    }
}

fn parse_op(words: &mut Words<'_>) -> Parsed<TxnOp> {
    Ok(match next(words)? {
        "put" => {
            let (key, value) = (word(next(words)?)?, word(next(words)?)?);
            let lease = if skip(words, "lease") { Some(LeaseId(number(next(words)?)?)) } else { None };
            let (ignore_value, ignore_lease) = (skip(words, "keepvalue"), skip(words, "keeplease"));
            TxnOp::Put(PutOp { key, value, lease, ignore_value, ignore_lease, prev_kv: skip(words, "prev") })
        }
        "del" => TxnOp::Delete(DeleteOp { range: range(next(words)?)?, prev_kv: skip(words, "prev") }),
        "txn" => TxnOp::Txn(Box::new(parse_txn(words)?)),
        "range" => {
            let mut op = RangeOp::new(range(next(words)?)?);
            while words.peek().is_some_and(|word| !matches!(*word, "then" | "else" | ")")) {
                let option = next(words)?;
                match option {
                    "count" => op.count_only = true,
                    "keys" => op.keys_only = true,
                    "asc" => op.order = SortOrder::Ascending,
                    "desc" => op.order = SortOrder::Descending,
                    "by" => op.target = named(&TARGETS, next(words)?)?,
                    "limit" => op.limit = number(next(words)?)?,
                    _ => {
                        let revision = Some(Revision(number(next(words)?)?));
                        *match option {
                            "at" => &mut op.revision,
                            "minmod" => &mut op.min_mod_revision,
                            "maxmod" => &mut op.max_mod_revision,
                            "mincreate" => &mut op.min_create_revision,
                            "maxcreate" => &mut op.max_create_revision,
                            _ => return Err("a range has no such option"),
                        } = revision;
                    }
                }
            }
            TxnOp::Range(op)
        }
        _ => return Err("an operation is `put`, `del`, `range` or `txn`"),
    })
}

fn parse_result(words: &mut Words<'_>) -> Parsed<TxnResult> {
    if !skip(words, "(") {
        return Err("an answer begins with a parenthesis");
    }
    let succeeded = match next(words)? {
        "yes" => true,
        "no" => false,
        _ => return Err("an answer is yes or no"),
    };
    let kvs = |words: &mut Words<'_>| {
        let mut kvs = Vec::new();
        while let Some(kv) = words.next_if(|word| word.contains('@')) {
            kvs.push(parse_kv(kv)?);
        }
        Ok(kvs)
    };
    let mut results = Vec::new();
    loop {
        results.push(match next(words)? {
            ")" => return Ok(TxnResult { succeeded, results }),
            "put" => OpResult::Put { revision: Revision(number(next(words)?)?), prev: kvs(words)?.pop() },
            "deleted" => OpResult::Delete {
                deleted: number(next(words)?)?,
                revision: Revision(number(next(words)?)?),
                prev: kvs(words)?,
            },
            "found" => OpResult::Range(RangeResult {
                count: number(next(words)?)?,
                revision: Revision(number(next(words)?)?),
                more: skip(words, "more"),
                kvs: kvs(words)?,
            }),
            "txn" => OpResult::Txn(parse_result(words)?),
            _ => return Err("an answer has no such part"),
        });
    }
}

fn parse_what(text: &str) -> Parsed<What> {
    if let Some(rest) = text.strip_prefix("txn ") {
        let mut words = rest.split(' ').peekable();
        let txn = parse_txn(&mut words)?;
        let linearizable = !skip(&mut words, "stale");
        return if words.next().is_none() {
            Ok(What::Txn { txn, linearizable })
        } else {
            Err("something is behind it")
        };
    }
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["read", keys] => Ok(What::Read { range: range(keys)?, at: None, linearizable: true }),
        ["read", keys, "stale"] => Ok(What::Read { range: range(keys)?, at: None, linearizable: false }),
        ["read", keys, "at", at] => {
            Ok(What::Read { range: range(keys)?, at: Some(Revision(number(at)?)), linearizable: true })
        }
        ["read", keys, "at", at, "stale"] => {
            Ok(What::Read { range: range(keys)?, at: Some(Revision(number(at)?)), linearizable: false })
        }
        ["fetch", log, from] => Ok(What::Fetch { log: LogId(number(log)?), from: Offset(number(from)?) }),
        _ => {
            let mut commit = Commit::default();
            if text != "nothing" {
                text.split("; ").try_for_each(|part| parse_part(part, &mut commit))?;
            }
            Ok(What::Commit(commit))
        }
    }
}

fn parse_part(part: &str, commit: &mut Commit) -> Parsed<()> {
    let words: Vec<&str> = part.split(' ').collect();
    match words[..] {
        ["if", "lease", lease] => commit.guards.push(Guard::LeaseAlive { lease: LeaseId(number(lease)?) }),
        ["if", "cursor", group, log, at] => {
            let expected = if at == "unset" { None } else { Some(Offset(number(at)?)) };
            commit.guards.push(Guard::Cursor { group: name(group)?, log: LogId(number(log)?), expected });
        }
        ["if", "end", log, at] => {
            commit.guards.push(Guard::LogEnd { log: LogId(number(log)?), expected: Offset(number(at)?) });
        }
        ["if", key, condition] => {
            let key = word(key)?;
            let (what, value) = condition.split_once('=').ok_or("a guard is `if KEY WHAT=VALUE`")?;
            commit.guards.push(match what {
                "mod" => Guard::ModRevision { key, revision: Revision(number(value)?) },
                "create" => Guard::CreateRevision { key, revision: Revision(number(value)?) },
                "version" => Guard::Version { key, version: number(value)? },
                "value" => Guard::Value { key, value: word(value)? },
                _ => return Err("a guard asks for mod, create, version or value"),
            });
        }
        ["grant", lease, ttl] => {
            commit.leases.push(LeaseChange::Grant { lease: LeaseId(number(lease)?), ttl_ms: number(ttl)? });
        }
        ["keepalive", lease] => commit.leases.push(LeaseChange::KeepAlive { lease: LeaseId(number(lease)?) }),
        ["revoke", lease] => commit.leases.push(LeaseChange::Revoke { lease: LeaseId(number(lease)?) }),
        ["put", key, value] => {
            commit.puts.push(Put { key: word(key)?, value: Some(word(value)?), lease: None });
        }
        ["put", key, value, "lease", lease] => {
            let lease = Some(LeaseId(number(lease)?));
            commit.puts.push(Put { key: word(key)?, value: Some(word(value)?), lease });
        }
        ["del", key] => commit.puts.push(Put { key: word(key)?, value: None, lease: None }),
        ["state", space, key, value] => {
            let value = if value == "-" { None } else { Some(word(value)?) };
            commit.state.push(StatePut { space: name(space)?, key: word(key)?, value });
        }
        ["append", log, "from", producer, epoch, first, serials] => {
            let sequence = Sequence { producer: name(producer)?, epoch: number(epoch)?, number: number(first)? };
            commit.appends.push(parse_append(log, Some(sequence), serials)?);
        }
        ["append", log, serials] => commit.appends.push(parse_append(log, None, serials)?),
        ["cursor", group, log, next] => commit.cursors.push(buttress_core::Cursor {
            group: name(group)?,
            log: LogId(number(log)?),
            next: Offset(number(next)?),
            metadata: String::new(),
        }),
        ["compact", revision] => commit.compact = Some(Revision(number(revision)?)),
        _ => return Err("no part of a commit starts so"),
    }
    Ok(())
}

fn parse_append(log: &str, sequence: Option<Sequence>, serials: &str) -> Parsed<Records> {
    let serials = serials.split(',').map(|serial| number(serial).map(Serial)).collect::<Parsed<_>>()?;
    Ok(Records { log: LogId(number(log)?), sequence, serials })
}

fn parse_outcome(text: &str) -> Parsed<Outcome> {
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    match kind {
        "done" => {
            let mut done = Done::default();
            let (revision, offsets) = match rest.split_once("at ") {
                Some((revision, offsets)) => (revision.trim(), offsets),
                None => (rest, ""),
            };
            if !revision.is_empty() {
                done.revision = Some(Revision(number(revision)?));
            }
            for offset in offsets.split(',').filter(|offset| !offset.is_empty()) {
                done.offsets.push(match offset {
                    "before" => Appended::Before,
                    "not" => Appended::Not,
                    offset => Appended::At(Offset(number(offset)?)),
                });
            }
            Ok(Outcome::Done(done))
        }
        "found" => {
            let (revision, kvs) = rest.split_once(':').ok_or("what was found has its revision")?;
            let mut found = KeyValues { revision: Revision(number(revision)?), kvs: Vec::new(), more: false };
            for kv in kvs.split_whitespace() {
                if kv == "more" {
                    found.more = true;
                } else {
                    found.kvs.push(parse_kv(kv)?);
                }
            }
            Ok(Outcome::Found(found))
        }
        "transacted" => {
            let (revision, rest) = rest.split_once(' ').ok_or("a transaction has its revision and its answer")?;
            let mut words = rest.split(' ').peekable();
            Ok(Outcome::Transacted { revision: Revision(number(revision)?), result: parse_result(&mut words)? })
        }
        "fetched" => Ok(Outcome::Fetched(parse_records(rest)?)),
        "refused" if rest.is_empty() => Ok(Outcome::Refused { guard: None }),
        "refused" => Ok(Outcome::Refused { guard: Some(number(rest)?) }),
        "failed" => Ok(Outcome::Failed),
        "unknown" => Ok(Outcome::Unknown),
        _ => Err("no outcome is called so"),
    }
}

fn parse_kv(text: &str) -> Parsed<KeyValue> {
    const SHAPE: &str = "a key is `KEY=VALUE@REVISION[/CREATEvVERSION][+LEASE]`";
    let (key, rest) = text.split_once('=').ok_or(SHAPE)?;
    let (value, rest) = rest.split_once('@').ok_or(SHAPE)?;
    let (rest, lease) = match rest.split_once('+') {
        None => (rest, None),
        Some((rest, lease)) => (rest, Some(LeaseId(number(lease)?))),
    };
    let (modified, life) = rest.split_once('/').unwrap_or((rest, ""));
    let mod_revision = Revision(number(modified)?);
    let (create_revision, version) = match life.split_once('v') {
        None => (mod_revision, 1),
        Some((create, version)) => (Revision(number(create)?), number(version)?),
    };
    Ok(KeyValue { key: word(key)?, value: word(value)?, create_revision, mod_revision, version, lease })
}
