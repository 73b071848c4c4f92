//! The decision records of a proxy, as `GET /v1/records` gives them: what came, when, and what came of each attempt.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_gateway::{record::SAMPLE, rules::Point};
use buttress_policy::{
    Outcome, Pushback,
    outcome::{self, Kind},
};
use serde_json::Value;

/// The code of a record of a request that succeeded.
const SUCCEEDED: &str = "BT-RTY-DONE";
/// The code of an attempt that was not followed by another because the request's body was gone.
const BODY_GONE: &str = "BT-RTY-BODY";
/// What a path ends with that was cut.
const CUT: char = '…';

/// An attempt that was made.
#[derive(Clone, Debug)]
pub struct Tried {
    pub endpoint: String,
    pub backend: String,
    pub hedge: bool,
    pub took: Duration,
    /// None where the record does not say.
    pub outcome: Option<Outcome>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Past {
    pub id: String,
    /// Nanoseconds of the Unix epoch.
    pub began: u64,
    pub method: String,
    pub path: String,
    /// The end of the path is not known.
    pub cut: bool,
    pub host: String,
    pub client: String,
    /// At which it came in; none where the record is of an older proxy.
    pub listener: Option<String>,
    /// Who called, where the route of then found out.
    pub caller: Option<String>,
    /// What the record holds of the head, by name in lower case.
    pub fields: BTreeMap<String, Field>,
    /// By which weights choose; none where the record is of an older proxy, or got no further than to its route's rules.
    pub point: Option<Point>,
    /// Empty where no route took it.
    pub route: String,
    /// The first that was asked; empty where none was.
    pub backend: String,
    pub answered: bool,
    pub code: String,
    /// How many requests it stands for.
    pub weight: u64,
    pub keyed: bool,
    pub upgrade: bool,
    pub attempt: u32,
    pub left: Option<Duration>,
    pub priority: Option<u8>,
    pub replayable: bool,
    pub attempts: Vec<Tried>,
}

/// A field of a request, as far as its record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// All of its values; none where the request did not have it.
    Known(Vec<String>),
    /// A credential, or too long.
    Withheld,
}

impl Field {
    fn read(value: &Value) -> Self {
        let values = value["values"].as_array().filter(|_| value["cut"] != true && value["withheld"] != true);
        values.map_or(Self::Withheld, |values| {
            Self::Known(values.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        })
    }
}

impl Past {
    /// The first value of a field; inside, none where there was none. Outside, none where nobody knows.
    pub fn field(&self, name: &str) -> Option<Option<&str>> {
        match self.fields.get(&name.to_ascii_lowercase())? {
            Field::Known(values) => Some(values.first().map(String::as_str)),
            Field::Withheld => None,
        }
    }

    fn read(record: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let took = record["took_ms"].as_f64().filter(|ms| ms.is_finite() && *ms >= 0.0)?;
        let ended = record["at_ms"].as_u64()?.checked_mul(1_000_000)?;
        let attempts: Vec<Tried> = record["attempts"].as_array()?.iter().map(Tried::read).collect::<Option<_>>()?;
        let code = text(&record["outcome"]["code"]);
        let answered = code == SUCCEEDED;
        let said = &record["said"];
        let nexts = record["attempts"].as_array().into_iter().flatten().map(|attempt| &attempt["next"]["code"]);
        let path = text(&record["path"]);
        Some(Self {
            id: text(&record["id"]),
            began: ended.saturating_sub((took * 1e6) as u64),
            method: record["method"].as_str()?.to_owned(),
            cut: path.ends_with(CUT),
            path: path.trim_end_matches(CUT).to_owned(),
            host: text(&record["authority"]),
            client: text(&record["client"]),
            listener: record["listener"].as_str().map(str::to_owned),
            caller: record["caller"].as_str().map(str::to_owned),
            fields: record["fields"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.to_ascii_lowercase(), Field::read(value)))
                .collect(),
            point: record["point"].as_f64().and_then(Point::read),
            route: text(&record["route"]),
            backend: attempts.first().map_or_else(|| text(&record["backend"]), |first| first.backend.clone()),
            answered,
            code,
            // All others are kept whole.
            weight: if answered && attempts.len() == 1 { SAMPLE } else { 1 },
            keyed: said["keyed"] == true,
            upgrade: said["upgrade"] == true,
            attempt: said["attempt"].as_u64().and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(1),
            left: millis(&said["left_ms"]),
            priority: said["priority"].as_u64().and_then(|level| u8::try_from(level).ok()),
            replayable: nexts.into_iter().all(|code| code != BODY_GONE),
            attempts,
        })
    }

    pub fn retries(&self) -> u64 {
        (self.attempts.len() as u64).saturating_sub(1)
    }
}

impl Tried {
    fn read(attempt: &Value) -> Option<Self> {
        let kind = attempt["kind"].as_str().and_then(Kind::named);
        let status = attempt["grpc_status"].as_u64().or(attempt["status"].as_u64());
        let pushback = match &attempt["pushback"] {
            Value::String(_) => Pushback::Never,
            pause => millis(pause).map_or(Pushback::None, Pushback::After),
        };
        Some(Self {
            endpoint: attempt["endpoint"].as_str()?.to_owned(),
            backend: attempt["backend"].as_str().unwrap_or_default().to_owned(),
            hedge: attempt["hedge"] == true,
            took: millis(&attempt["took_ms"])?,
            outcome: kind.map(|kind| Outcome {
                kind,
                status: status.and_then(|status| u16::try_from(status).ok()).unwrap_or(0),
                undelivered: attempt["undelivered"] == true,
                pushback,
            }),
        })
    }

    /// It ended because its time was over, and not with an answer that says so.
    pub fn ran_out(&self) -> bool {
        self.outcome.is_some_and(|outcome| outcome.kind == outcome::Kind::Timeout && outcome.status == 0)
    }
}

fn millis(value: &Value) -> Option<Duration> {
    Duration::try_from_secs_f64(value.as_f64()? / 1e3).ok()
}

/// Reads records, one a line, and puts them in the order in which the requests came.
///
/// # Errors
/// `BAD_REQUEST` with the first line that is no record.
pub fn read(text: &str) -> Result<Vec<Past>, Error> {
    let mut all = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let record = serde_json::from_str(line).ok().and_then(|record| Past::read(&record));
        all.push(record.ok_or_else(|| {
            Error::new(Code::BAD_REQUEST, format!("line {} is no decision record", at + 1))
                .hint("records are what GET /v1/records of a proxy's admin address gives, one a line")
        })?);
    }
    Ok(once(all))
}

/// A request that a fallback took up, or whose answer broke off, left two records; the later one tells all.
fn once(all: Vec<Past>) -> Vec<Past> {
    /// Times of records are in whole milliseconds.
    const SAME_BEGIN: u64 = 2_000_000;
    let mut newest: HashMap<(String, String), u64> = HashMap::new();
    let mut kept: Vec<Past> = Vec::with_capacity(all.len());
    for past in all.into_iter().rev() {
        let key = (past.id.clone(), past.client.clone());
        if newest.get(&key).is_some_and(|began| began.abs_diff(past.began) <= SAME_BEGIN) {
            continue;
        }
        newest.insert(key, past.began);
        kept.push(past);
    }
    kept.reverse();
    kept.sort_by_key(|past| past.began);
    kept
}
