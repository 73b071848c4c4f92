//! What one commit of an engine can hold, and what is answered where more is asked for.
//!
//! A refusal comes before anything is sent, so nothing of the entry has happened, and it names the part that does not fit and
//! the way out. Whoever deploys something checks with an entry of the kind that it will submit.

use buttress_core::{Code, Entry, Error, Guard, LeaseChange, Scope};

fn unsupported(what: &str, engine: &str, hint: &str) -> Error {
    Error::new(Code::UNSUPPORTED, format!("one transaction of {engine} cannot hold {what}")).hint(hint)
}

/// Passes an entry that one commit of this scope can hold.
///
/// # Errors
/// `UNSUPPORTED`, with what does not fit and what would.
pub fn check(scope: Scope, entry: &Entry) -> Result<(), Error> {
    match scope {
        Scope::Entry => Ok(()),
        Scope::Keys => keys(entry),
        Scope::Records => records(entry),
    }
}

fn keys(entry: &Entry) -> Result<(), Error> {
    const EMBEDDED: &str =
        "submit it to the embedded log, or split it: records and cursors to a Kafka, keys to this etcd";
    let refuse = |what| Err(unsupported(what, "etcd", EMBEDDED));
    if !entry.appends.is_empty() || !entry.topics.is_empty() {
        return refuse("records or topics");
    }
    if !entry.cursors.is_empty() || !entry.forgets.is_empty() {
        return refuse("cursors");
    }
    if !entry.state.is_empty() {
        return refuse("function state");
    }
    if !entry.timers.is_empty() || entry.expire {
        return Err(unsupported(
            "timers",
            "etcd",
            "put a key with a lease and watch for its end, or use the embedded log",
        ));
    }
    if entry.guards.iter().any(|guard| matches!(guard, Guard::Cursor { .. } | Guard::LogEnd { .. })) {
        return refuse("guards on cursors or logs");
    }
    let ends = entry.leases.iter().filter(|change| !matches!(change, LeaseChange::Grant { .. })).count();
    let alone = entry.puts.is_empty() && entry.guards.is_empty() && entry.txn.is_none() && ends == entry.leases.len();
    if ends > 0 && !(alone && ends == 1) {
        let hint = "submit the keep-alive or the revocation as an entry of its own";
        return Err(unsupported("the end or the renewal of a lease beside other parts", "etcd", hint));
    }
    if entry.txn.is_some() && (!entry.puts.is_empty() || !entry.leases.is_empty() || !entry.guards.is_empty()) {
        let hint = "make the guards compares of the transaction, and the puts its operations";
        return Err(unsupported("guards, puts or leases beside a transaction", "etcd", hint));
    }
    if entry.compact.is_some() && (entry.parts() > 0) {
        return Err(unsupported(
            "a compaction beside other parts",
            "etcd",
            "submit the compaction as an entry of its own",
        ));
    }
    Ok(())
}

fn records(entry: &Entry) -> Result<(), Error> {
    const KEYS: &str = "keep keys in an etcd, or use the embedded log, where one commit holds both";
    let refuse = |what| Err(unsupported(what, "Kafka", KEYS));
    if !entry.puts.is_empty() || entry.txn.is_some() || entry.compact.is_some() {
        return refuse("keys");
    }
    if !entry.leases.is_empty() {
        return refuse("leases");
    }
    if !entry.timers.is_empty() || entry.expire {
        return refuse("timers");
    }
    if !entry.forgets.is_empty() {
        return Err(unsupported("a cursor that is forgotten", "Kafka", "delete the offsets with Kafka's own tools"));
    }
    for guard in &entry.guards {
        match guard {
            Guard::Cursor { .. } => {}
            Guard::LogEnd { .. } => {
                let hint = "guard by a cursor, which only one transactional id can move";
                return Err(unsupported("a guard on the end of a partition", "Kafka", hint));
            }
            _ => return refuse("guards on keys or leases"),
        }
    }
    if entry.appends.iter().any(|append| append.sequence.is_some()) {
        let hint = "let the producer be idempotent by Kafka's own means, or take devices in through the embedded log";
        return Err(unsupported("the sequence of a device", "Kafka", hint));
    }
    if !entry.topics.is_empty() && entry.parts() > entry.topics.len() {
        return Err(unsupported("a change of topics beside other parts", "Kafka", "submit it as an entry of its own"));
    }
    if entry.cursors.len() > 1 {
        let hint = "submit an entry for each group and partition";
        return Err(unsupported("the cursors of more than one group and partition", "Kafka", hint));
    }
    if entry.cursors.is_empty() && !(entry.state.is_empty() && entry.guards.is_empty()) {
        let hint = "move the cursor in the same entry: its group and partition decide who may write the state";
        return Err(unsupported("state or a guard without a cursor", "Kafka", hint));
    }
    let same = |guard: &Guard| match (guard, entry.cursors.first()) {
        (Guard::Cursor { group, log, .. }, Some(cursor)) => *group == cursor.group && *log == cursor.log,
        _ => false,
    };
    if !entry.guards.iter().all(same) {
        let hint = "guard the cursor that the entry moves";
        return Err(unsupported("a guard on a cursor that the entry does not move", "Kafka", hint));
    }
    Ok(())
}
