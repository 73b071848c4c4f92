//! All oracles over one history, and what they found.

use std::fmt;

use buttress_core::{KeyRange, Violation};

use crate::{history::History, keys, leases, linear::BUDGET_STEPS, locks, records, revisions, txns, watches};

/// What a judge has to be told beside the history.
#[derive(Clone, Debug)]
pub struct Options {
    /// The keys that are locks.
    pub locks: Option<KeyRange>,
    /// Steps of the search for each key.
    pub budget: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { locks: None, budget: BUDGET_STEPS }
    }
}

/// What was judged, in numbers, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub keys: keys::Checked,
    pub revisions: revisions::Checked,
    pub leases: leases::Checked,
    pub locks: locks::Checked,
    pub records: records::Checked,
    pub txns: txns::Checked,
    pub watches: watches::Checked,
    /// The first violation that each oracle found.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Nothing is violated. It may be that some search gave up: see [`keys::Checked::undecided`].
    pub fn ok(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Judges a history by every oracle.
pub fn judge(history: &History, options: &Options) -> Report {
    let mut report = Report::default();
    let violations = &mut report.violations;
    fn take<T: Default>(result: Result<T, Violation>, violations: &mut Vec<Violation>) -> T {
        result.unwrap_or_else(|violation| {
            violations.push(violation);
            T::default()
        })
    }
    report.keys = take(keys::check_within(history, options.budget), violations);
    report.revisions = take(revisions::check(history), violations);
    report.leases = take(leases::check(history), violations);
    if let Some(locks) = &options.locks {
        report.locks = take(locks::check(history, locks), violations);
    }
    report.records = take(records::check(history), violations);
    report.txns = take(txns::check(history), violations);
    report.watches = take(watches::check(history), violations);
    report
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keys, revisions, leases, locks, records, txns, watches, violations } = self;
        let name = |id: &str| violations.iter().any(|violation| violation.id == id);
        let mut line = |id: &str, what: String| {
            if what.starts_with('0') && !name(id) {
                return Ok(());
            }
            writeln!(f, "{id}: {}", if name(id) { "violated" } else { what.trim_end_matches(", ") })
        };
        let some = |count: usize, what: &str| if count > 0 { format!("{count} {what}, ") } else { String::new() };
        line(
            "LIN-1",
            format!("{} operations on {} keys, ", keys.operations, keys.keys)
                + &some(keys.leased, "keys on leases left out")
                + &some(keys.undecided.len(), "keys undecided"),
        )?;
        line(
            "LIN-2",
            format!("{} commits and reads, ", revisions.commits + revisions.reads)
                + &some(revisions.recovered, "recovered")
                + &some(revisions.beyond, "reads judged by time alone"),
        )?;
        line("LEASE-3", format!("{} leases, ", leases.leases) + &some(leases.ended, "seen to end"))?;
        line(
            "LOCK-1",
            format!("{} locks, {} tokens, ", locks.locks, locks.tokens)
                + &some(locks.guarded, "commits under one")
                + &some(locks.fenced, "fenced off"),
        )?;
        line(
            "RECORD-1",
            format!("{} records, {} acknowledged, ", records.records, records.acknowledged)
                + &some(records.recovered, "recovered")
                + &some(records.trimmed, "trimmed")
                + &some(records.fetched, "fetched"),
        )?;
        line(
            "TXN-1",
            format!("{} transactions, ", txns.transactions)
                + &some(txns.failed, "went the other way")
                + &some(txns.reads, "reads")
                + &some(txns.recovered, "recovered"),
        )?;
        line(
            "WATCH-1",
            format!("{} watchers, {} sessions, {} events, ", watches.watchers, watches.sessions, watches.events)
                + &some(watches.compacted, "compactions")
                + &some(watches.unfinished, "unfinished"),
        )?;
        for violation in violations {
            writeln!(f, "{violation}")?;
        }
        Ok(())
    }
}
