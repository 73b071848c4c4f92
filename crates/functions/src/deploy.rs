//! Changing what is deployed. Everything is checked on the node that was asked before anything is written: a component
//! is compiled, a model is loaded. Then the blob is stored, missing topics are created, and one guarded entry makes the
//! change. So a refused deploy changes nothing that anybody sees, and of two concurrent ones both are applied, one after
//! the other, each under a version of its own.
//!
//! Where records lie in an engine of the user's, a change has a second half: the partitions that may still use what was
//! there before are fenced ([`buttress_core::claims`]), then a model's marker is appended to the audit topic. Until both are
//! done a key under `/buttress/owed/`, put with the change, says so: whoever asks for the same again finishes it.

use std::sync::Arc;

use buttress_core::{
    Append, Cluster, Code, Consistency, Cursor, Engine, Entry, Error, Guard, KeyRange, Ledger, LogId, Offset, Refusal,
    Revision, StatePut, SubmitError,
    entry::{Put, TopicSettings},
    ledger::KeyValue,
    receipt::AppendOutcome,
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    blob,
    catalogue::blocking,
    home::{Home, Homes},
    plan,
    resource::{
        AUDIT_RETENTION_BYTES, AUDIT_TOPIC, FUNCTIONS_PREFIX, FunctionSpec, MODEL_BYTES_MAX, Manifest, ModelSpec,
        Stored, check_name, dead_letter_topic, function_key, group, model_key, owed_key, state_space,
    },
};

/// How often a change starts over because another came between.
const RACES_MAX: usize = 8;

/// Writes resources.
pub struct Deployer {
    pub ledger: Arc<dyn Ledger>,
    pub homes: Homes,
    pub cluster: Arc<dyn Cluster>,
    pub engine: Arc<dyn Engine>,
}

/// What a deploy has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deployed {
    pub name: String,
    pub version: u64,
    pub component: String,
    /// The key space's revision from which on the version counts.
    pub revision: u64,
    /// The same was deployed already.
    pub unchanged: bool,
    pub warnings: Vec<String>,
}

/// What a push has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    pub name: String,
    pub generation: u64,
    pub digest: String,
    /// The key space's revision from which on the generation counts.
    pub revision: u64,
    /// Offset of the marker in the audit topic; `None` where nothing changed.
    pub audit_offset: Option<i64>,
    /// The same bytes are the current generation already.
    pub unchanged: bool,
}

impl Deployer {
    /// Deploys a component that comes along or lies there as a blob.
    ///
    /// # Errors
    /// Everything that is wrong with manifest or component, by name; and what the ledger answers.
    pub async fn function(&self, name: &str, manifest: Manifest, component: Option<Bytes>) -> Result<Deployed, Error> {
        manifest.check(name)?;
        let component = match (component, &manifest.component) {
            (Some(bytes), None) => bytes,
            (Some(bytes), Some(stated)) => {
                let digest = blob::digest(&bytes);
                if digest != *stated {
                    return Err(Error::new(
                        Code::BAD_REQUEST,
                        format!("the body has digest '{digest}', the manifest states '{stated}'"),
                    )
                    .hint("leave 'component' out where the component is the body"));
                }
                bytes
            }
            (None, Some(digest)) => blob::get(&*self.ledger, digest, Consistency::Linearizable).await?,
            (None, None) => {
                return Err(Error::new(Code::BAD_REQUEST, "no component is given").hint(
                    r#"send the component as the body and the manifest in X-Buttress-Function, or PUT /v1/blobs and give "component":"sha256:…""#,
                ));
            }
        };
        self.check_routes(name, &manifest).await?;
        let home = self.home(name, &manifest).await?;
        let (grants, limits) = ((&manifest.grants).into(), (&manifest.limits).into());
        let engine = self.engine.clone();
        let bytes = component.clone();
        let guest = blocking(move || engine.compile(&bytes, &grants, limits)).await?;
        if manifest.trigger.is_some() && !guest.handles_batches() {
            return Err(Error::new(
                Code::EXPORT_MISSING,
                "the component does not export 'handle-batch', which its topic trigger needs",
            )
            .hint("export it from the world 'buttress:function/function@0.1.0', or leave 'trigger' out"));
        }
        if (manifest.http || !manifest.routes.is_empty()) && !guest.handles_http() {
            return Err(Error::new(
                Code::EXPORT_MISSING,
                "the component does not export 'wasi:http/incoming-handler', which HTTP needs",
            )
            .hint("leave 'http' and 'routes' out, or export the handler"));
        }

        let digest = blob::put(&*self.ledger, &component).await?;
        let mut warnings = Vec::new();
        for model in &manifest.grants.models {
            if self.read::<ModelSpec>(&model_key(model)).await?.is_none() {
                warnings.push(format!("model '{model}' does not exist yet: batches wait until it is pushed"));
            }
        }
        if manifest.trigger.is_some() {
            ensure_audit(&home).await?;
            home.ensure(&dead_letter_topic(name), 1, TopicSettings::default()).await?;
        }
        for topic in &manifest.grants.topics {
            home.ensure(topic, manifest.output_partitions, TopicSettings::default()).await?;
        }

        for _ in 0..RACES_MAX {
            let before = self.read::<FunctionSpec>(&function_key(name)).await?;
            let version = before.as_ref().map_or(1, |b| b.spec.version + 1);
            let spec =
                manifest.clone().into_spec(name, version, digest.clone(), component.len() as u64, self.cluster.now().0);
            if let Some(before) = before.as_ref().filter(|b| b.spec.same_as(&spec)) {
                self.fence_function(&before.spec).await?;
                return Ok(Deployed {
                    name: name.to_owned(),
                    version: before.spec.version,
                    component: digest,
                    revision: before.revision.0,
                    unchanged: true,
                    warnings,
                });
            }
            let mut entry = replace(function_key(name), before.as_ref().map(|b| b.revision), Some(json(&spec)));
            let owes = before.as_ref().map(|before| &before.spec);
            self.owe(&mut entry, owes).await?;
            match self.ledger.submit(entry).await {
                Ok(receipt) => {
                    if let Some(before) = owes {
                        self.fence_function(before).await?;
                    }
                    tracing::info!(
                        plane = "functions",
                        function = name,
                        version,
                        revision = receipt.revision.0,
                        "function deployed"
                    );
                    return Ok(Deployed {
                        name: name.to_owned(),
                        version,
                        component: digest,
                        revision: receipt.revision.0,
                        unchanged: false,
                        warnings,
                    });
                }
                Err(SubmitError::Refused(Refusal::Guard { .. })) => {}
                Err(error) => return Err(error.into_error()),
            }
        }
        Err(raced(name))
    }

    /// Removes a function. Its cursors and state stay, so that deploying it again goes on where it stopped.
    ///
    /// # Errors
    /// `FUNCTION_UNKNOWN`, and what the ledger answers.
    pub async fn remove_function(&self, name: &str) -> Result<Revision, Error> {
        check_name("function", name)?;
        for _ in 0..RACES_MAX {
            let before = self.read::<FunctionSpec>(&function_key(name)).await?.ok_or_else(|| unknown_function(name))?;
            let mut entry = replace(function_key(name), Some(before.revision), None);
            self.owe(&mut entry, Some(&before.spec)).await?;
            match self.ledger.submit(entry).await {
                Ok(receipt) => {
                    self.fence_function(&before.spec).await?;
                    tracing::info!(
                        plane = "functions",
                        function = name,
                        revision = receipt.revision.0,
                        "function removed"
                    );
                    return Ok(receipt.revision);
                }
                Err(SubmitError::Refused(Refusal::Guard { .. })) => {}
                Err(error) => return Err(error.into_error()),
            }
        }
        Err(raced(name))
    }

    /// Makes `bytes` the next generation of a model. From the entry on, no batch that an earlier generation judged is
    /// committed any more; the marker in the audit topic shows where that is.
    ///
    /// # Errors
    /// `MODEL_INVALID`, `TOO_LARGE`, and what the ledger answers.
    pub async fn model(&self, name: &str, bytes: Bytes) -> Result<Pushed, Error> {
        check_name("model", name)?;
        if bytes.len() > MODEL_BYTES_MAX {
            return Err(Error::new(Code::TOO_LARGE, format!("{} bytes are more than a model may have", bytes.len()))
                .hint(format!("the limit is {MODEL_BYTES_MAX} bytes")));
        }
        let engine = self.engine.clone();
        let content = bytes.clone();
        let model = blocking(move || engine.load_model(&content)).await?;
        let digest = blob::put(&*self.ledger, &bytes).await?;
        // The marker is part of the change where one commit holds both.
        let audit = match self.homes.all().iter().find(|home| home.claims.is_none()) {
            Some(home) => Some(ensure_audit(home).await?),
            None => None,
        };
        for _ in 0..RACES_MAX {
            let before = self.read::<ModelSpec>(&model_key(name)).await?;
            if let Some(before) = before.as_ref().filter(|b| b.spec.digest == digest) {
                let audit_offset = self.fence_model(&before.spec).await?;
                return Ok(Pushed {
                    name: name.to_owned(),
                    generation: before.spec.generation,
                    digest,
                    revision: before.revision.0,
                    audit_offset,
                    unchanged: true,
                });
            }
            let now_ms = self.cluster.now().0;
            let from = before.as_ref().map(|b| b.spec.generation);
            let generation = from.unwrap_or(0) + 1;
            let spec = ModelSpec {
                name: name.to_owned(),
                generation,
                digest: digest.clone(),
                kind: model.info().kind.clone(),
                size: bytes.len() as u64,
                created_ms: now_ms,
                history: before.as_ref().map_or(Vec::new(), |b| b.spec.history_with_current()),
            };
            let mut entry = replace(model_key(name), before.map(|b| b.revision), Some(json(&spec)));
            entry.appends.extend(audit.map(|log| plan::model_pushed(log, name, from, generation, &digest, now_ms)));
            if self.homes.all().iter().any(|home| home.claims.is_some()) {
                entry.puts.push(owed(&model_key(name)));
            }
            match self.ledger.submit(entry).await {
                Ok(receipt) => {
                    let marker = self.fence_model(&spec).await?;
                    tracing::info!(
                        plane = "functions",
                        model = name,
                        generation,
                        revision = receipt.revision.0,
                        "model pushed"
                    );
                    let audit_offset = match receipt.appends.first() {
                        Some(AppendOutcome::Appended { base_offset }) => Some(base_offset.0),
                        _ => marker,
                    };
                    return Ok(Pushed {
                        name: name.to_owned(),
                        generation,
                        digest,
                        revision: receipt.revision.0,
                        audit_offset,
                        unchanged: false,
                    });
                }
                Err(SubmitError::Refused(Refusal::Guard { .. })) => {}
                Err(error) => return Err(error.into_error()),
            }
        }
        Err(raced(name))
    }

    /// Stores bytes under their digest.
    ///
    /// # Errors
    /// As [`blob::put`].
    pub async fn blob(&self, bytes: &Bytes) -> Result<String, Error> {
        blob::put(&*self.ledger, bytes).await
    }

    /// A path belongs to one function.
    async fn check_routes(&self, name: &str, manifest: &Manifest) -> Result<(), Error> {
        if manifest.routes.is_empty() {
            return Ok(());
        }
        let all = self
            .ledger
            .read(KeyRange::prefix(FUNCTIONS_PREFIX), crate::catalogue::RESOURCES_MAX, Consistency::Linearizable)
            .await?;
        for kv in &all.kvs {
            let other: FunctionSpec = parse(kv)?.spec;
            if other.name == name {
                continue;
            }
            if let Some(route) = manifest.routes.iter().find(|route| other.routes.contains(route)) {
                return Err(Error::new(
                    Code::BAD_REQUEST,
                    format!("route '{route}' belongs to function '{}'", other.name),
                )
                .hint(format!("choose another path, or remove it there: buttress fn delete {}", other.name)));
            }
        }
        Ok(())
    }

    /// Where the function's records lie: all of them in one place, which can hold what it does.
    async fn home(&self, name: &str, manifest: &Manifest) -> Result<Home, Error> {
        let Some(trigger) = &manifest.trigger else { return Ok(self.homes.first().clone()) };
        let (home, view) = self.homes.find(&trigger.topic).await?.ok_or_else(|| {
            Error::new(Code::TOPIC_UNKNOWN, format!("the trigger's topic '{}' does not exist", trigger.topic))
                .hint(format!("create it first: buttress topic create {}", trigger.topic))
        })?;
        for topic in &manifest.grants.topics {
            let other = match self.homes.of(topic) {
                Some((other, _)) => Some(other),
                None => self.homes.chosen(topic).await?,
            };
            if let Some(other) = other.filter(|other| other.engine() != home.engine()) {
                let message = format!(
                    "function '{name}' would read '{}' ({}) and write '{topic}' ({}) in one commit, which no engine can hold",
                    trigger.topic,
                    home.engine(),
                    other.engine()
                );
                return Err(Error::new(Code::UNSUPPORTED, message).hint(format!(
                    "let both topics lie in one engine: buttress topic create NAME --engine {}",
                    home.engine()
                )));
            }
        }
        if let Some(claims) = &home.claims {
            let log = view.partitions.first().map_or(LogId(0), |partition| partition.log);
            claims.check(&specimen(name, manifest, log))?;
        }
        Ok(home.clone())
    }

    /// Lets the entry that replaces a function say that its partitions are to be fenced, where they are claimed.
    async fn owe(&self, entry: &mut Entry, before: Option<&FunctionSpec>) -> Result<(), Error> {
        let Some((spec, trigger)) = before.and_then(|spec| Some((spec, spec.trigger.as_ref()?))) else { return Ok(()) };
        if self.homes.find(&trigger.topic).await?.is_some_and(|(home, _)| home.claims.is_some()) {
            entry.puts.push(owed(&function_key(&spec.name)));
        }
        Ok(())
    }

    async fn is_owed(&self, resource: &Bytes) -> Result<Option<Revision>, Error> {
        if self.homes.all().iter().all(|home| home.claims.is_none()) {
            return Ok(None);
        }
        let found = self.ledger.read(KeyRange::key(owed_key(resource)), 1, Consistency::Linearizable).await?;
        Ok(found.kvs.first().map(|kv| kv.mod_revision))
    }

    /// Takes the debt away, unless a later change has made a new one.
    async fn paid(&self, resource: &Bytes, revision: Revision) -> Result<(), Error> {
        match self.ledger.submit(replace(owed_key(resource), Some(revision), None)).await {
            Ok(_) | Err(SubmitError::Refused(Refusal::Guard { .. })) => Ok(()),
            Err(error) => Err(error.into_error()),
        }
    }

    /// Fences the partitions of a function that was changed, if that is owed.
    async fn fence_function(&self, spec: &FunctionSpec) -> Result<(), Error> {
        let key = function_key(&spec.name);
        let Some(revision) = self.is_owed(&key).await? else { return Ok(()) };
        self.fence(spec).await?;
        self.paid(&key, revision).await
    }

    /// Fences the partitions of all functions that may ask a model that was changed, and appends its marker behind them.
    async fn fence_model(&self, spec: &ModelSpec) -> Result<Option<i64>, Error> {
        let key = model_key(&spec.name);
        let Some(revision) = self.is_owed(&key).await? else { return Ok(None) };
        // Read after the change: a function that is deployed later is claimed later, and finds the new generation.
        let range = KeyRange::prefix(FUNCTIONS_PREFIX);
        let all = self.ledger.read(range, crate::catalogue::RESOURCES_MAX, Consistency::Linearizable).await?;
        let mut judged_in = vec![self.homes.first().engine()];
        for kv in &all.kvs {
            let function: FunctionSpec = parse(kv)?.spec;
            if function.grants.models.contains(&spec.name) {
                judged_in.extend(self.fence(&function).await?);
            }
        }
        if self.read::<ModelSpec>(&key).await?.is_none_or(|now| now.spec.generation != spec.generation) {
            // A later push came between, and its marker stands for this one too.
            return Ok(None);
        }
        let mut offset = None;
        let asks = |home: &&Home| home.claims.is_some() && judged_in.contains(&home.engine());
        for home in self.homes.all().iter().filter(asks) {
            let audit = ensure_audit(home).await?;
            let from = spec.history.first().map(|earlier| earlier.generation);
            let now_ms = self.cluster.now().0;
            let marker = plan::model_pushed(audit, &spec.name, from, spec.generation, &spec.digest, now_ms);
            let entry = Entry { appends: vec![marker], ..Entry::default() };
            let receipt = home.records.submit(entry).await.map_err(SubmitError::into_error)?;
            if let Some(AppendOutcome::Appended { base_offset }) = receipt.appends.first() {
                offset = Some(base_offset.0);
            }
        }
        self.paid(&key, revision).await?;
        Ok(offset)
    }

    /// Nothing of this function that was claimed before this is committed after it. Gives the engine whose claims those were.
    async fn fence(&self, spec: &FunctionSpec) -> Result<Option<&'static str>, Error> {
        let Some(trigger) = &spec.trigger else { return Ok(None) };
        let Some((home, view)) = self.homes.find(&trigger.topic).await? else { return Ok(None) };
        let Some(claims) = &home.claims else { return Ok(None) };
        let group = group(&spec.name);
        let fences = view.partitions.iter().map(|partition| claims.fence(&group, partition.log));
        futures::future::try_join_all(fences).await?;
        Ok(Some(claims.engine()))
    }

    async fn read<S: DeserializeOwned>(&self, key: &Bytes) -> Result<Option<Stored<S>>, Error> {
        let found = self.ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await?;
        found.kvs.first().map(parse).transpose()
    }
}

fn parse<S: DeserializeOwned>(kv: &KeyValue) -> Result<Stored<S>, Error> {
    let spec = serde_json::from_slice(&kv.value).map_err(|e| {
        Error::new(Code::CORRUPT, format!("the resource at '{}' cannot be read: {e}", kv.key.escape_ascii()))
            .hint("a newer version of this program may have written it; delete the key to start over")
    })?;
    Ok(Stored { spec, revision: kv.mod_revision })
}

async fn ensure_audit(home: &Home) -> Result<LogId, Error> {
    let settings = TopicSettings { retention_bytes: Some(AUDIT_RETENTION_BYTES), ..TopicSettings::default() };
    Ok(home.ensure(AUDIT_TOPIC, 1, settings).await?.partitions[0].log)
}

/// An entry of the kind that the function's batches will be.
fn specimen(name: &str, manifest: &Manifest, log: LogId) -> Entry {
    let group = group(name);
    let append = Append { log, records: 1, max_timestamp_ms: 0, sequence: None, batch: Bytes::new() };
    let row = StatePut { space: state_space(name, 0), key: Bytes::from_static(b"k"), value: None };
    Entry {
        guards: vec![Guard::Cursor { group: group.clone(), log, expected: None }],
        state: manifest.grants.state.then_some(row).into_iter().collect(),
        appends: (manifest.audit || !manifest.grants.topics.is_empty()).then_some(append).into_iter().collect(),
        cursors: vec![Cursor { group, log, next: Offset(1), metadata: String::new() }],
        ..Entry::default()
    }
}

fn owed(resource: &Bytes) -> Put {
    Put { key: owed_key(resource), value: Some(Bytes::new()), lease: None }
}

fn json(spec: &impl Serialize) -> Bytes {
    serde_json::to_vec(spec).expect("resources have string keys only").into()
}

fn replace(key: Bytes, before: Option<Revision>, value: Option<Bytes>) -> Entry {
    Entry {
        guards: vec![Guard::ModRevision { key: key.clone(), revision: before.unwrap_or(Revision(0)) }],
        puts: vec![Put { key, value, lease: None }],
        ..Entry::default()
    }
}

fn raced(name: &str) -> Error {
    Error::new(Code::REFUSED, format!("'{name}' was changed by others {RACES_MAX} times in a row")).retryable()
}

pub fn unknown_function(name: &str) -> Error {
    Error::new(Code::FUNCTION_UNKNOWN, format!("there is no function '{name}'")).hint("list them: buttress fn list")
}

pub fn unknown_model(name: &str) -> Error {
    Error::new(Code::MODEL_UNKNOWN, format!("there is no model '{name}'")).hint("list them: buttress model list")
}
