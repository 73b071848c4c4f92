//! Routes and listeners in a ledger, embedded or an etcd.

use std::{collections::BTreeMap, sync::Arc};

use buttress_core::{
    Code, Consistency, Entry, Error, Guard, KeyRange, Ledger, Put, Refusal, Revision, SubmitError, ledger::KeyValue,
};
use buttress_resources::{
    kept::{self, Kept, Status},
    kinds::{Kind, Spec},
    matcher::{Found, Matcher},
    route::Route,
};
use bytes::Bytes;
use serde_json::{Value, json};

/// A gateway compiles all routes at once, and a plan of more would not fit one entry.
pub const RESOURCES_MAX: usize = 10_000;

pub struct Store {
    pub ledger: Arc<dyn Ledger>,
}

/// A resource as it was read.
#[derive(Clone, Debug)]
pub struct Present {
    pub kind: Kind,
    pub name: String,
    pub kept: Kept,
    /// Of its latest change.
    pub revision: u64,
    pub created_revision: u64,
}

/// What is wanted of a resource.
#[derive(Clone, Debug)]
pub struct Change {
    pub kind: Kind,
    pub name: String,
    /// None: it goes.
    pub wanted: Option<Wanted>,
    /// The revision that was read, 0 where there was none; absent: whatever is there now.
    pub revision: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Wanted {
    pub labels: BTreeMap<String, String>,
    /// As [`kept::canonical`] has it.
    pub spec: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Changed,
    Unchanged,
    Deleted,
}

impl Outcome {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        [Self::Created, Self::Changed, Self::Unchanged, Self::Deleted].into_iter().find(|one| one.name() == name)
    }
}

#[derive(Clone, Debug)]
pub struct Done {
    pub kind: Kind,
    pub name: String,
    pub outcome: Outcome,
    pub generation: u64,
}

impl Present {
    fn read(kind: Kind, kv: &KeyValue) -> Result<Self, Error> {
        let name = String::from_utf8_lossy(&kv.key[kept::prefix(kind).len()..]).into_owned();
        let kept = serde_json::from_slice(&kv.value).map_err(|error| {
            let message = format!("what lies at \"{}\" is no resource: {error}", kept::key(kind, &name));
            Error::new(Code::CORRUPT, message).hint(format!("buttress kv del {}", kept::key(kind, &name)))
        })?;
        let (revision, created_revision) = (kv.mod_revision.0, kv.create_revision.0);
        Ok(Self { kind, name, kept, revision, created_revision })
    }

    pub fn json(&self) -> Value {
        let Self { kind, name, kept, revision, created_revision } = self;
        json!({
            "kind": kind.name(), "name": name, "labels": kept.labels, "spec": kept.spec,
            "generation": kept.generation, "revision": revision, "created_revision": created_revision,
        })
    }

    /// From what a node answered.
    pub fn of_json(kind: Kind, value: &Value) -> Option<Self> {
        Some(Self {
            kind,
            name: value["name"].as_str()?.to_owned(),
            kept: serde_json::from_value(value.clone()).ok()?,
            revision: value["revision"].as_u64()?,
            created_revision: value["created_revision"].as_u64()?,
        })
    }
}

pub fn unknown(kind: Kind, name: &str) -> Error {
    let plural = kind.plural();
    Error::new(Code::RESOURCE_UNKNOWN, format!("there is no {} \"{name}\"", kind.name().to_lowercase()))
        .hint(format!("buttress get {plural}"))
}

fn changed(kind: Kind, name: &str) -> Error {
    let kind = kind.name();
    Error::new(Code::RESOURCE_CHANGED, format!("{kind} \"{name}\" was changed by somebody else since it was read"))
        .hint("look at `buttress diff`, and apply again if the file is still what you want; nothing was written")
}

impl Store {
    /// All of a kind, by name.
    pub async fn list(&self, kind: Kind) -> Result<Vec<Present>, Error> {
        let range = KeyRange::prefix(kept::prefix(kind));
        let found = self.ledger.read(range, RESOURCES_MAX + 1, Consistency::Linearizable).await?;
        if found.kvs.len() > RESOURCES_MAX {
            let message = format!("there are more than {RESOURCES_MAX} {}", kind.plural());
            return Err(Error::new(Code::TOO_LARGE, message));
        }
        found.kvs.iter().map(|kv| Present::read(kind, kv)).collect()
    }

    pub async fn get(&self, kind: Kind, name: &str) -> Result<Option<Present>, Error> {
        let range = KeyRange::key(kept::key(kind, name));
        let found = self.ledger.read(range, 1, Consistency::Linearizable).await?;
        found.kvs.first().map(|kv| Present::read(kind, kv)).transpose()
    }

    /// What gateways say of it, by gateway.
    pub async fn statuses(&self, kind: Kind, name: &str) -> Result<Vec<Status>, Error> {
        let range = KeyRange::prefix(kept::status_prefix(kind, name));
        let found = self.ledger.read(range, RESOURCES_MAX, Consistency::Linearizable).await?;
        // What a newer gateway writes otherwise is left out rather than in the way.
        Ok(found.kvs.iter().filter_map(|kv| serde_json::from_slice(&kv.value).ok()).collect())
    }

    /// Of all resources of a kind, by their names.
    pub async fn all_statuses(&self, kind: Kind) -> Result<BTreeMap<String, Vec<Status>>, Error> {
        let prefix = kept::status_prefix(kind, "");
        let prefix = prefix.trim_end_matches('/');
        let range = KeyRange::prefix(format!("{prefix}/"));
        let found = self.ledger.read(range, 10 * RESOURCES_MAX, Consistency::Linearizable).await?;
        let mut all: BTreeMap<String, Vec<Status>> = BTreeMap::new();
        for kv in &found.kvs {
            let rest = String::from_utf8_lossy(kv.key.get(prefix.len() + 1..).unwrap_or_default()).into_owned();
            if let (Some((name, _)), Ok(status)) = (rest.split_once('/'), serde_json::from_slice(&kv.value)) {
                all.entry(name.to_owned()).or_default().push(status);
            }
        }
        Ok(all)
    }

    /// Carries all changes out in one entry, or none. With `dry_run` nothing is written, and everything else is said.
    ///
    /// # Errors
    /// `RESOURCE_CHANGED` where something is not at the revision that was read, `MATCH_CONFLICT`, `RESOURCE_UNKNOWN`
    /// for what is to go and is not there; those of the ledger.
    pub async fn apply(&self, changes: &[Change], dry_run: bool) -> Result<(Vec<Done>, u64), Error> {
        let mut present: BTreeMap<(Kind, String), Present> = BTreeMap::new();
        for kind in [Kind::Route, Kind::Listener] {
            if changes.iter().any(|change| change.kind == kind) {
                let all = self.list(kind).await?;
                present.extend(all.into_iter().map(|one| ((kind, one.name.clone()), one)));
            }
        }
        let (mut entry, mut done) = (Entry::default(), Vec::new());
        for change in changes {
            let Change { kind, name, wanted, revision } = change;
            let old = present.get(&(*kind, name.clone()));
            let found = old.map_or(0, |old| old.revision);
            if revision.is_some_and(|read| read != found) {
                return Err(changed(*kind, name));
            }
            let before = old.map_or(0, |old| old.kept.generation);
            let (outcome, generation) = match (old, wanted) {
                (None, None) => return Err(unknown(*kind, name)),
                (Some(_), None) => (Outcome::Deleted, before),
                (None, Some(_)) => (Outcome::Created, 1),
                (Some(old), Some(wanted)) if old.kept.spec == wanted.spec => {
                    let same = old.kept.labels == wanted.labels;
                    (if same { Outcome::Unchanged } else { Outcome::Changed }, before)
                }
                (Some(_), Some(_)) => (Outcome::Changed, before + 1),
            };
            done.push(Done { kind: *kind, name: name.clone(), outcome, generation });
            if outcome == Outcome::Unchanged {
                continue;
            }
            let key = Bytes::from(kept::key(*kind, name));
            let kept = wanted.clone().map(|Wanted { labels, spec }| Kept { generation, labels, spec });
            let value = kept.map(|kept| Bytes::from(serde_json::to_vec(&kept).expect("a resource is plain data")));
            entry.guards.push(Guard::ModRevision { key: key.clone(), revision: Revision(found) });
            entry.puts.push(Put { key, value, lease: None });
        }
        let (present, wanted) = (present, changes.to_vec());
        aside(move || no_conflicts(&present, &wanted)).await??;
        if dry_run || entry.puts.is_empty() {
            return Ok((done, 0));
        }
        let guarded: Vec<(Kind, String)> = done
            .iter()
            .filter(|one| one.outcome != Outcome::Unchanged)
            .map(|one| (one.kind, one.name.clone()))
            .collect();
        match self.ledger.submit(entry).await {
            Ok(receipt) => Ok((done, receipt.revision.0)),
            Err(SubmitError::Refused(Refusal::Guard { position, .. })) => {
                let (kind, name) = &guarded[position.min(guarded.len() - 1)];
                Err(changed(*kind, name))
            }
            Err(error) => Err(error.into_error()),
        }
    }
}

/// Thousands of routes take longer than the thread that drives the log may be kept from it.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let stopped = |error: tokio::task::JoinError| Error::new(Code::STOPPED, format!("the check did not end: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(stopped)
}

/// Routes as they would be must not ask for the same requests, and listeners not for the same address.
fn no_conflicts(present: &BTreeMap<(Kind, String), Present>, changes: &[Change]) -> Result<(), Error> {
    let mut after: BTreeMap<(Kind, &str), &Value> =
        present.iter().map(|((kind, name), one)| ((*kind, name.as_str()), &one.kept.spec)).collect();
    for change in changes {
        match &change.wanted {
            Some(wanted) => after.insert((change.kind, &change.name), &wanted.spec),
            None => after.remove(&(change.kind, change.name.as_str())),
        };
    }
    let is_new = |kind: Kind, name: &str| {
        changes.iter().any(|change| change.kind == kind && change.name == name && change.wanted.is_some())
    };
    let mut routes: Vec<(&str, Box<Route>)> = Vec::new();
    let mut addresses: BTreeMap<String, &str> = BTreeMap::new();
    for ((kind, name), spec) in after {
        match kind.read(spec) {
            Ok(Spec::Route(route)) => routes.push((name, route)),
            Ok(Spec::Listener(listener)) => {
                if let Some(other) = addresses.insert(listener.address.clone(), name)
                    && (is_new(kind, name) || is_new(kind, other))
                {
                    let message = format!("listeners \"{other}\" and \"{name}\" have the address {}", listener.address);
                    return Err(Error::new(Code::RESOURCE_INVALID, message).hint("one address is listened at once"));
                }
            }
            // What an older or newer program kept is not judged by this one.
            _ => {}
        }
    }
    // Those that cannot be read were written by somebody else; they stand in nobody's way here.
    routes.retain(|(_, route)| Matcher::new([&**route]).is_ok());
    let Ok(matcher) = Matcher::new(routes.iter().map(|(_, route)| &**route)) else { return Ok(()) };
    for (first, second) in matcher.conflicts() {
        let (one, other) = (routes[first.route].0, routes[second.route].0);
        if is_new(Kind::Route, one) || is_new(Kind::Route, other) {
            let which = |found: Found| found.at.map_or("no `match`".to_owned(), |at| format!("match {}", at + 1));
            let message = format!(
                "route \"{one}\" ({}) and route \"{other}\" ({}) ask for exactly the same requests",
                which(first),
                which(second)
            );
            let hint = "join the two, tell them apart by a header field, or delete one";
            return Err(Error::new(Code::MATCH_CONFLICT, message).hint(hint));
        }
    }
    Ok(())
}
