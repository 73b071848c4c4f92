//! `/v1/resources`: routes and listeners over HTTP. Any node takes the requests.

use std::collections::BTreeMap;

use buttress_core::{Code, Error};
use buttress_resources::{
    check,
    finding::{Level, Source},
    kept,
    kinds::Kind,
};
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::store::{Change, Store, Wanted, aside, unknown};
use crate::http::{Body, failure, json as respond};

/// What is posted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    /// Documents as in a file, each perhaps with the `revision` that was read.
    #[serde(default)]
    resources: Vec<Value>,
    #[serde(default)]
    deletes: Vec<Delete>,
    /// Say what would happen.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    kind: String,
    name: String,
    revision: Option<u64>,
}

/// Why nothing was done, and everything that was found.
struct Refused(Error, Vec<Value>);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error, Vec::new())
    }
}

impl Store {
    /// Answers what is below `/v1/resources`.
    pub async fn route(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        body: &Bytes,
    ) -> Option<Response<Body>> {
        let rest = path.strip_prefix("/v1/resources")?;
        if !rest.is_empty() && !rest.starts_with('/') {
            return None;
        }
        let steps: Vec<&str> = rest.split('/').skip(1).collect();
        let answer = match (method.as_str(), &steps[..]) {
            ("POST", []) => self.take(body).await,
            ("GET", [kind]) => self.listed(kind).await,
            ("GET", [kind, name]) => self.described(kind, name).await,
            ("DELETE", [kind, name]) => self.removed(kind, name, query).await,
            (_, [] | [_] | [_, _]) => {
                let error = Error::new(Code::METHOD, format!("{path} does not take {method}"));
                return Some(failure(StatusCode::METHOD_NOT_ALLOWED, &error));
            }
            _ => return None,
        };
        Some(match answer {
            Ok(value) => respond(StatusCode::OK, &value),
            Err(Refused(error, findings)) if findings.is_empty() => failure(status_of(&error), &error),
            Err(Refused(error, findings)) => {
                let told =
                    json!({"code": error.code.0, "message": error.message, "hint": error.hint, "findings": findings});
                respond(status_of(&error), &told)
            }
        })
    }

    async fn listed(&self, kind: &str) -> Result<Value, Refused> {
        let kind = kept_kind(kind)?;
        let (all, mut statuses) = (self.list(kind).await?, self.all_statuses(kind).await?);
        let told = all.iter().map(|one| {
            let mut told = one.json();
            told["status"] = json!(statuses.remove(&one.name).unwrap_or_default());
            told
        });
        Ok(json!({"resources": told.collect::<Vec<_>>()}))
    }

    async fn described(&self, kind: &str, name: &str) -> Result<Value, Refused> {
        let kind = kept_kind(kind)?;
        let found = self.get(kind, name).await?.ok_or_else(|| unknown(kind, name))?;
        let mut told = found.json();
        told["status"] = json!(self.statuses(kind, name).await?);
        Ok(told)
    }

    async fn removed(&self, kind: &str, name: &str, query: Option<&str>) -> Result<Value, Refused> {
        let revision = match query.map(|query| query.strip_prefix("revision=").and_then(|text| text.parse().ok())) {
            None => None,
            Some(Some(revision)) => Some(revision),
            Some(None) => {
                return Err(Error::new(Code::BAD_REQUEST, "the query is not revision=NUMBER").into());
            }
        };
        let change = Change { kind: kept_kind(kind)?, name: name.to_owned(), wanted: None, revision };
        let (_, revision) = self.apply(&[change], false).await?;
        Ok(json!({"deleted": name, "revision": revision}))
    }

    async fn take(&self, body: &Bytes) -> Result<Value, Refused> {
        let Apply { mut resources, deletes, dry_run } = serde_json::from_slice(body).map_err(|error| {
            Error::new(Code::BAD_REQUEST, format!("the body is not what is expected: {error}"))
                .hint("docs/reference/http.md shows every body")
        })?;
        let mut revisions = Vec::new();
        let mut sources = Vec::new();
        for (at, document) in resources.iter_mut().enumerate() {
            let revision = document.as_object_mut().and_then(|fields| fields.remove("revision"));
            revisions.push(match revision {
                None => None,
                Some(Value::Number(number)) if number.is_u64() => number.as_u64(),
                Some(other) => {
                    let message = format!("resources[{at}].revision is {other}, not a number");
                    return Err(Error::new(Code::BAD_REQUEST, message).into());
                }
            });
            // JSON is YAML; written with line ends, findings have lines that mean something.
            sources.push(Source { file: format!("resources[{at}]"), text: format!("{document:#}") });
        }
        let (reading, sources) = aside(move || (check::read(&sources), sources)).await?;
        if let Some(first) = reading.findings.iter().find(|finding| finding.level == Level::Error) {
            let code = Code::ALL.iter().map(|(code, _)| *code).find(|code| code.0 == first.code);
            let error = Error::new(code.unwrap_or(Code::RESOURCE_INVALID), first.line()).hint(first.hint.clone());
            let findings = reading.findings.iter().map(buttress_resources::finding::Finding::json).collect();
            return Err(Refused(error, findings));
        }
        let places: BTreeMap<&str, usize> =
            sources.iter().enumerate().map(|(at, source)| (source.file.as_str(), at)).collect();
        let mut changes = Vec::new();
        for resource in reading.resources {
            let at = places.get(resource.origin.file.as_str());
            let kind = kept_kind(resource.kind.name())?;
            let wanted = Wanted { labels: resource.labels, spec: kept::canonical(&resource.typed) };
            let revision = at.and_then(|at| revisions[*at]);
            changes.push(Change { kind, name: resource.name, wanted: Some(wanted), revision });
        }
        for Delete { kind, name, revision } in deletes {
            let kind = kept_kind(&kind)?;
            if changes.iter().any(|change| change.kind == kind && change.name == name) {
                let message = format!("{} \"{name}\" is to be written and to go", kind.name());
                return Err(Error::new(Code::BAD_REQUEST, message).into());
            }
            changes.push(Change { kind, name, wanted: None, revision });
        }
        let (done, revision) = self.apply(&changes, dry_run).await?;
        let results: Vec<Value> = done
            .iter()
            .map(|one| {
                json!({"kind": one.kind.name(), "name": one.name, "outcome": one.outcome.name(), "generation": one.generation})
            })
            .collect();
        Ok(json!({"revision": revision, "dry_run": dry_run, "results": results}))
    }
}

fn kept_kind(text: &str) -> Result<Kind, Error> {
    match Kind::typed(text) {
        Some(kind) if kind.is_kept() => Ok(kind),
        Some(kind) => Err(Error::new(Code::BAD_REQUEST, format!("a {} is not kept here", kind.name()))
            .hint(format!("use /v1/{}", kind.plural()))),
        None => Err(Error::new(Code::KIND_UNKNOWN, format!("there is no kind \"{text}\"")).hint("routes or listeners")),
    }
}

fn status_of(error: &Error) -> StatusCode {
    match error.code {
        Code::RESOURCE_UNKNOWN | Code::KIND_UNKNOWN => StatusCode::NOT_FOUND,
        Code::RESOURCE_CHANGED | Code::MATCH_CONFLICT => StatusCode::CONFLICT,
        Code::TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        Code::BAD_REQUEST => StatusCode::BAD_REQUEST,
        Code::YAML_MALFORMED
        | Code::FIELD_UNKNOWN
        | Code::FIELD_TYPE
        | Code::FIELD_MISSING
        | Code::RESOURCE_INVALID => StatusCode::UNPROCESSABLE_ENTITY,
        Code::OVERLOADED => StatusCode::TOO_MANY_REQUESTS,
        Code::TIMEOUT => StatusCode::GATEWAY_TIMEOUT,
        Code::NO_LEADER | Code::STOPPED | Code::UNREACHABLE => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
