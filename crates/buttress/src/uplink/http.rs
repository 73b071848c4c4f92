//! `/v1/uplinks`: make, list, look at, pause, resume, adopt and delete uplinks. Any node takes the requests; what runs is told
//! by the node on which it runs.

use buttress_core::{
    Code, Consistency, Entry, Error, Guard, KeyRange, Offset, Put, Refusal, Revision, SubmitError, TopicChange,
};
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    plane::{LaneView, Uplinks},
    resource::{KNOWN_PREFIX, PREFIX, Spec, UPLINKS_MAX, Wanted},
    target::Address,
};
use crate::http::{Body, failure, json as respond};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdoptBody {
    /// `start`, `end` or an offset, for every partition of the topic.
    from: Value,
    /// One topic; all of the uplink where it is not named.
    topic: Option<String>,
}

fn key(name: &str) -> Bytes {
    Bytes::from(format!("{PREFIX}{name}"))
}

fn parse<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| {
        Error::new(Code::BAD_REQUEST, format!("the body is not what is expected: {error}"))
            .hint("docs/reference/http.md shows every body")
    })
}

impl Uplinks {
    /// Answers what is below `/v1/uplinks`.
    pub async fn route(&self, method: &Method, path: &str, body: &Bytes) -> Option<Response<Body>> {
        let rest = path.strip_prefix("/v1/uplinks")?;
        if !rest.is_empty() && !rest.starts_with('/') {
            return None;
        }
        let steps: Vec<&str> = rest.split('/').skip(1).collect();
        let answer = match (method.as_str(), &steps[..]) {
            ("GET", []) => self.list().await,
            ("POST", []) => self.create(body).await,
            ("GET", [name]) => self.describe(name).await,
            ("DELETE", [name]) => self.delete(name).await,
            ("POST", [name, "pause"]) => self.pause(name, true).await,
            ("POST", [name, "resume"]) => self.pause(name, false).await,
            ("POST", [name, "adopt"]) => self.adopt(name, body).await,
            (_, [] | [_] | [_, "pause" | "resume" | "adopt"]) => {
                let error = Error::new(Code::METHOD, format!("{path} does not take {method}"));
                return Some(failure(StatusCode::METHOD_NOT_ALLOWED, &error));
            }
            _ => return None,
        };
        Some(match answer {
            Ok((status, value)) => respond(status, &value),
            Err(error) => failure(status_of(&error), &error),
        })
    }

    async fn find(&self, name: &str) -> Result<(Spec, Revision), Error> {
        let found = self.specs(Consistency::Linearizable).await?;
        found.into_iter().find(|(spec, _)| spec.name == name).ok_or_else(|| {
            Error::new(Code::UPLINK_UNKNOWN, format!("there is no uplink \"{name}\"")).hint("buttress uplink list")
        })
    }

    async fn put(&self, spec: &Spec, guard: Guard, topics: Vec<TopicChange>) -> Result<(), Error> {
        let value = serde_json::to_vec(spec).expect("an uplink is plain data");
        let put = Put { key: key(&spec.name), value: Some(value.into()), lease: None };
        // Topics are changed first, and by themselves: whoever asks again finds them as they are wanted.
        for change in topics {
            let entry = Entry { topics: vec![change], ..Entry::default() };
            self.deps.ledger.submit(entry).await.map_err(SubmitError::into_error)?;
        }
        let entry = Entry { guards: vec![guard], puts: vec![put], ..Entry::default() };
        self.deps.ledger.submit(entry).await.map_err(SubmitError::into_error)?;
        self.changed();
        Ok(())
    }

    async fn create(&self, body: &Bytes) -> Result<(StatusCode, Value), Error> {
        let wanted: Wanted = parse(body)?;
        let spec = wanted.resolve(&*self.deps.stream, &self.deps.edge)?;
        let exists = |name: &str| {
            Error::new(Code::UPLINK_EXISTS, format!("uplink \"{name}\" exists"))
                .hint(format!("buttress uplink delete {name}; what it sent is not sent again by a new one"))
        };
        let all = self.specs(Consistency::Linearizable).await?;
        if all.iter().any(|(known, _)| known.name == spec.name) {
            return Err(exists(&spec.name));
        }
        if all.len() >= UPLINKS_MAX {
            return Err(Error::new(Code::UPLINK_INVALID, format!("there are {UPLINKS_MAX} uplinks already")));
        }
        // Two lanes of one name at one target would fence each other for ever.
        let address = Address::parse(&spec.to)?;
        if let Address::Kafka(options) = &address {
            self.deps.secrets.resolve(&mut options.clone())?;
        }
        for route in &spec.topics {
            let twin = |other: &Spec| {
                other.edge == spec.edge
                    && Address::parse(&other.to).is_ok_and(|theirs| theirs.meets(&address))
                    && other.topics.iter().any(|theirs| theirs.topic == route.topic)
            };
            if let Some((other, _)) = all.iter().find(|(other, _)| twin(other)) {
                let message = format!("uplink \"{}\" sends topic \"{}\" there already", other.name, route.topic);
                return Err(Error::new(Code::UPLINK_INVALID, message).hint("give this one another --edge name"));
            }
        }
        let guard = Guard::Version { key: key(&spec.name), version: 0 };
        match self.put(&spec, guard, self.bounds(&spec)).await {
            Err(error) if error.code == Code::REFUSED => Err(exists(&spec.name)),
            done => {
                done?;
                Ok((StatusCode::CREATED, serde_json::to_value(&spec).expect("an uplink is plain data")))
            }
        }
    }

    /// The changes that give the topics what they may take: retention is what bounds them.
    fn bounds(&self, spec: &Spec) -> Vec<TopicChange> {
        let Some(bound) = spec.bound_bytes else { return vec![] };
        let change = |route: &super::resource::Route| {
            let view = self.deps.stream.topic(&route.topic)?;
            let each = (bound / view.partitions.len().max(1) as u64).max(1);
            let to = buttress_core::entry::TopicSettings { retention_bytes: Some(each), ..view.settings.clone() };
            (to != view.settings).then_some(TopicChange::Configure { name: view.name, from: view.settings, to })
        };
        spec.topics.iter().filter_map(change).collect()
    }

    async fn list(&self) -> Result<(StatusCode, Value), Error> {
        let mut uplinks = Vec::new();
        for (spec, _) in self.specs(Consistency::Linearizable).await? {
            uplinks.push(self.told(&spec));
        }
        Ok((StatusCode::OK, json!({"uplinks": uplinks})))
    }

    async fn describe(&self, name: &str) -> Result<(StatusCode, Value), Error> {
        let (spec, _) = self.find(name).await?;
        Ok((StatusCode::OK, self.told(&spec)))
    }

    fn told(&self, spec: &Spec) -> Value {
        let view = self.deps.cluster.view();
        let leader = view.leader.and_then(|id| view.members.iter().find(|member| member.id == id));
        let mut told = serde_json::to_value(spec).expect("an uplink is plain data");
        told["runs_here"] = json!(false);
        told["runs_on"] = json!(leader.map(|member| json!({"name": member.name, "http": member.http})));
        let Some((lanes, trouble)) = self.lanes(&spec.name) else { return told };
        let now = self.deps.cluster.now().0;
        told["runs_here"] = json!(true);
        told["error"] = json!(trouble.map(|e| json!({"code": e.code.0, "message": e.message, "hint": e.hint})));
        let lanes: Vec<Value> = lanes.iter().map(|lane| lane_json(lane, now)).collect();
        told["lanes"] = json!(lanes);
        told
    }

    async fn pause(&self, name: &str, paused: bool) -> Result<(StatusCode, Value), Error> {
        let (mut spec, revision) = self.find(name).await?;
        if spec.paused != paused {
            spec.paused = paused;
            let guard = Guard::ModRevision { key: key(name), revision };
            self.put(&spec, guard, vec![]).await.map_err(raced)?;
        }
        if !paused {
            self.retry(name);
        }
        Ok((StatusCode::OK, self.told(&spec)))
    }

    async fn adopt(&self, name: &str, body: &Bytes) -> Result<(StatusCode, Value), Error> {
        let AdoptBody { from, topic } = parse(body)?;
        let (mut spec, revision) = self.find(name).await?;
        let bad = || {
            Error::new(Code::BAD_REQUEST, format!("\"from\" is {from}"))
                .hint("start, end, or an offset of the local topic")
        };
        let mut found = false;
        for route in spec.topics.iter_mut().filter(|route| topic.as_ref().is_none_or(|topic| *topic == route.topic)) {
            found = true;
            let view = self.deps.stream.topic(&route.topic).ok_or_else(|| {
                Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic \"{}\" here", route.topic))
            })?;
            let origin = |partition: &buttress_core::ledger::PartitionView| match (&from, from.as_i64()) {
                (Value::String(text), _) if text == "start" => Ok(partition.start.0),
                (Value::String(text), _) if text == "end" => Ok(partition.end.0),
                (_, Some(offset)) if offset >= 0 && Offset(offset) <= partition.end => Ok(offset),
                _ => Err(bad()),
            };
            route.origins = view.partitions.iter().map(origin).collect::<Result<_, _>>()?;
            route.adopted += 1;
        }
        if !found {
            let message = format!("uplink \"{name}\" does not send topic \"{}\"", topic.unwrap_or_default());
            return Err(Error::new(Code::TOPIC_UNKNOWN, message));
        }
        // What was noted of the log before does not count any more.
        self.forget_known(name).await?;
        let guard = Guard::ModRevision { key: key(name), revision };
        self.put(&spec, guard, vec![]).await.map_err(raced)?;
        Ok((StatusCode::OK, self.told(&spec)))
    }

    async fn forget_known(&self, name: &str) -> Result<(), Error> {
        let range = KeyRange::prefix(format!("{KNOWN_PREFIX}{name}/"));
        let known = self.deps.ledger.read(range, usize::MAX, Consistency::Linearizable).await?;
        let puts: Vec<Put> = known.kvs.into_iter().map(|kv| Put { key: kv.key, value: None, lease: None }).collect();
        if !puts.is_empty() {
            let entry = Entry { puts, ..Entry::default() };
            self.deps.ledger.submit(entry).await.map_err(SubmitError::into_error)?;
        }
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(StatusCode, Value), Error> {
        let (_, revision) = self.find(name).await?;
        let entry = Entry {
            guards: vec![Guard::ModRevision { key: key(name), revision }],
            puts: vec![Put { key: key(name), value: None, lease: None }],
            ..Entry::default()
        };
        match self.deps.ledger.submit(entry).await {
            Err(SubmitError::Refused(Refusal::Guard { .. })) => return Err(raced(Error::new(Code::REFUSED, ""))),
            done => done.map_err(SubmitError::into_error)?,
        };
        self.changed();
        self.forget_known(name).await?;
        Ok((StatusCode::OK, json!({"deleted": name})))
    }
}

fn raced(error: Error) -> Error {
    if error.code != Code::REFUSED {
        return error;
    }
    Error::new(Code::REFUSED, "somebody else has changed the uplink meanwhile")
        .hint("look at it, and ask again")
        .retryable()
}

fn lane_json(lane: &LaneView, now: u64) -> Value {
    let LaneView { topic, target, partition, priority, phase, next, trouble, retry_at, tally, last_sent_at, lag } =
        lane;
    let error = trouble.as_ref().map(|trouble| {
        json!({
            "code": trouble.error.code.0,
            "message": trouble.error.message,
            "hint": trouble.error.hint,
            "since_ms": now.saturating_sub(trouble.since.0),
            "attempts": trouble.attempts + 1,
            "retry_in_ms": retry_at.map(|at| at.0.saturating_sub(now)),
        })
    });
    json!({
        "topic": topic,
        "target": target,
        "partition": partition,
        "priority": priority.text(),
        "state": phase.text(),
        "next": next.map(|next| next.0),
        "start": lag.start.0,
        "end": lag.end.0,
        "lag_records": lag.records,
        "lag_bytes": lag.bytes,
        "oldest_age_ms": lag.oldest.map(|oldest| now.saturating_sub(oldest.0)),
        "bound_bytes": lag.bound,
        "bytes_per_second": lag.rate.round(),
        "full_in_ms": lag.full_in_ms(),
        "sent": {"records": tally.records, "bytes": tally.bytes, "parcels": tally.parcels, "claims": tally.claims,
            "last_ms_ago": last_sent_at.map(|at| now.saturating_sub(at.0))},
        "gaps": {"count": tally.gaps, "records": tally.gap_records},
        "error": error,
    })
}

fn status_of(error: &Error) -> StatusCode {
    match error.code {
        Code::UPLINK_UNKNOWN | Code::TOPIC_UNKNOWN => StatusCode::NOT_FOUND,
        Code::UPLINK_EXISTS | Code::REFUSED => StatusCode::CONFLICT,
        Code::UPLINK_SECRET => StatusCode::FORBIDDEN,
        Code::NO_LEADER | Code::STOPPED | Code::OVERLOADED => StatusCode::SERVICE_UNAVAILABLE,
        Code::TIMEOUT => StatusCode::GATEWAY_TIMEOUT,
        Code::DISK => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    }
}
