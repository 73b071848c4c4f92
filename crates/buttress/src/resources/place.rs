//! Where resources are: a node, which has all kinds, or an etcd, which has routes and listeners.

use std::{collections::BTreeMap, sync::Arc};

use buttress_bridge::etcd::EtcdLedger;
use buttress_core::{Code, Error};
use buttress_resources::{
    function::Function,
    kept::{self, Gateway, Status},
    kinds::{Kind, Spec},
    model::Model,
    topic::Topic,
};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::store::{Change, Done, Outcome, Present, Store, unknown};
use crate::{
    client::{Client, segment},
    proxy::fleet,
};

pub enum Place {
    Node(Client),
    Etcd { store: Store, etcd: Arc<EtcdLedger> },
}

/// A resource as it is.
#[derive(Clone, Debug)]
pub struct Item {
    pub kind: Kind,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// As [`kept::canonical`] has it, with everything that its plane filled in.
    pub spec: Value,
    /// Rises with every change; topics have none.
    pub generation: Option<u64>,
    /// Of the latest change; 0 for kinds whose planes keep them.
    pub revision: u64,
    /// What else is known.
    pub view: Value,
    pub statuses: Vec<Status>,
}

impl Item {
    fn of_kept(present: Present, statuses: Vec<Status>) -> Self {
        let view = json!({"created_revision": present.created_revision});
        Self {
            kind: present.kind,
            name: present.name,
            labels: present.kept.labels,
            spec: present.kept.spec,
            generation: Some(present.kept.generation),
            revision: present.revision,
            view,
            statuses,
        }
    }

    fn of_plane(kind: Kind, view: Value) -> Option<Self> {
        let spec = view.get("spec").unwrap_or(&view);
        let name = spec["name"].as_str()?.to_owned();
        let (typed, generation) = match kind {
            Kind::Function => (Spec::Function(Box::new(Function::deployed(&view))), spec["version"].as_u64()),
            Kind::Model => {
                let digest = view["digest"].as_str().unwrap_or_default().to_owned();
                (Spec::Model(Model { model: digest }), view["generation"].as_u64())
            }
            Kind::Topic => (Spec::Topic(Topic::present(&view)), None),
            Kind::Route | Kind::Listener => return None,
        };
        let (labels, spec, statuses) = (BTreeMap::new(), kept::canonical(&typed), Vec::new());
        Some(Self { kind, name, labels, spec, generation, revision: 0, view, statuses })
    }

    /// As it would stand in a file.
    pub fn document(&self) -> Value {
        kept::document(self.kind, &self.name, &self.labels, &self.spec)
    }

    /// Gateways that serve this generation, and all that observe it.
    pub fn ready(&self) -> (usize, usize) {
        let serves = |status: &&Status| status.ready && Some(status.observed_generation) == self.generation;
        (self.statuses.iter().filter(serves).count(), self.statuses.len())
    }
}

fn not_understood(what: &str) -> Error {
    Error::new(Code::UNREACHABLE, format!("the answer about {what} is not what is expected"))
        .hint("is it a node of Buttress, and not an older one?")
}

impl Place {
    /// # Errors
    /// `CONFIG`, `UNREACHABLE` and what else an etcd says; a node is not asked yet.
    pub async fn open(server: &str, etcd: &[String], namespace: &str) -> Result<Self, Error> {
        if etcd.is_empty() {
            return Ok(Self::Node(Client::new(server)?));
        }
        let etcd = Arc::new(EtcdLedger::connect(crate::engines::etcd_options(etcd, namespace)?).await?);
        Ok(Self::Etcd { store: Store { ledger: etcd.clone() }, etcd })
    }

    pub async fn close(&self) {
        if let Self::Etcd { etcd, .. } = self {
            etcd.close().await;
        }
    }

    /// Gateways that have their routes from here.
    pub async fn gateways(&self) -> Result<Vec<Gateway>, Error> {
        match self {
            Self::Etcd { store, .. } => fleet::gateways(&*store.ledger).await,
            Self::Node(client) => {
                let path =
                    format!("/v1/keys?prefix={}&limit={}", segment(&kept::gateways_prefix()), fleet::GATEWAYS_MAX);
                let answer = client.get(&path).await?;
                let keys = answer["keys"].as_array().ok_or_else(|| not_understood("gateways"))?;
                let read = |key: &Value| serde_json::from_str(key["value"].as_str()?).ok();
                Ok(keys.iter().filter_map(read).collect())
            }
        }
    }

    fn client(&self, kind: Kind) -> Result<&Client, Error> {
        match self {
            Self::Node(client) => Ok(client),
            Self::Etcd { .. } => Err(Error::new(
                Code::UNSUPPORTED,
                format!("an etcd keeps routes and listeners, and {} lie with nodes", kind.plural()),
            )
            .hint("name a node or a host with --server, in place of --etcd")),
        }
    }

    pub async fn list(&self, kind: Kind) -> Result<Vec<Item>, Error> {
        match self {
            Self::Etcd { store, .. } if kind.is_kept() => {
                let (all, mut statuses) = (store.list(kind).await?, store.all_statuses(kind).await?);
                let item = |present: Present| {
                    let statuses = statuses.remove(&present.name).unwrap_or_default();
                    Item::of_kept(present, statuses)
                };
                Ok(all.into_iter().map(item).collect())
            }
            _ => {
                let plural = kind.plural();
                let path = if kind.is_kept() { format!("/v1/resources/{plural}") } else { format!("/v1/{plural}") };
                let answer = self.client(kind)?.get(&path).await?;
                let key = if kind.is_kept() { "resources" } else { plural };
                let list = answer[key].as_array().ok_or_else(|| not_understood(plural))?;
                let items = list.iter().map(|value| told(kind, value.clone()));
                items.collect::<Option<_>>().ok_or_else(|| not_understood(plural))
            }
        }
    }

    pub async fn get(&self, kind: Kind, name: &str) -> Result<Option<Item>, Error> {
        match self {
            Self::Etcd { store, .. } if kind.is_kept() => match store.get(kind, name).await? {
                None => Ok(None),
                Some(present) => Ok(Some(Item::of_kept(present, store.statuses(kind, name).await?))),
            },
            _ => {
                let plural = kind.plural();
                let begin = if kind.is_kept() { "/v1/resources/" } else { "/v1/" };
                let path = format!("{begin}{plural}/{}", segment(name));
                match self.client(kind)?.get(&path).await {
                    Ok(value) => told(kind, value).map(Some).ok_or_else(|| not_understood(name)),
                    Err(error) if error.code == missing(kind) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Routes and listeners, all in one entry.
    pub async fn apply(&self, changes: &[Change], dry_run: bool) -> Result<Vec<Done>, Error> {
        let client = match self {
            Self::Etcd { store, .. } => return Ok(store.apply(changes, dry_run).await?.0),
            Self::Node(client) => client,
        };
        let (mut resources, mut deletes) = (Vec::new(), Vec::new());
        for Change { kind, name, wanted, revision } in changes {
            let mut told = match wanted {
                Some(wanted) => kept::document(*kind, name, &wanted.labels, &wanted.spec),
                None => json!({"kind": kind.name(), "name": name}),
            };
            if let Some(revision) = revision {
                told["revision"] = json!(revision);
            }
            if wanted.is_some() { resources.push(told) } else { deletes.push(told) }
        }
        let body = json!({"resources": resources, "deletes": deletes, "dry_run": dry_run});
        let answer = client.send_json(Method::POST, "/v1/resources", &body).await?;
        let results = answer["results"].as_array().ok_or_else(|| not_understood("what was applied"))?;
        let done = |one: &Value| {
            Some(Done {
                kind: Kind::written(one["kind"].as_str()?)?,
                name: one["name"].as_str()?.to_owned(),
                outcome: Outcome::of(one["outcome"].as_str()?)?,
                generation: one["generation"].as_u64()?,
            })
        };
        results.iter().map(done).collect::<Option<_>>().ok_or_else(|| not_understood("what was applied"))
    }

    /// One that a plane keeps.
    pub async fn delete(&self, kind: Kind, name: &str) -> Result<(), Error> {
        let path = format!("/v1/{}/{}", kind.plural(), segment(name));
        match self.client(kind)?.send_bytes(Method::DELETE, &path, Bytes::new()).await {
            Ok(_) => Ok(()),
            Err(error) if error.code == missing(kind) => Err(unknown(kind, name)),
            Err(error) => Err(error),
        }
    }

    pub async fn create_topic(&self, request: &Value) -> Result<(), Error> {
        self.client(Kind::Topic)?.send_json(Method::POST, "/v1/topics", request).await.map(drop)
    }

    pub async fn push_model(&self, name: &str, bytes: Bytes) -> Result<u64, Error> {
        let path = format!("/v1/models/{}", segment(name));
        let answer = self.client(Kind::Model)?.send_bytes(Method::PUT, &path, bytes).await?;
        Ok(answer["generation"].as_u64().unwrap_or_default())
    }

    /// The version, and what the plane warns of.
    pub async fn deploy(
        &self,
        name: &str,
        manifest: &Value,
        component: Option<Bytes>,
    ) -> Result<(u64, Vec<String>), Error> {
        let client = self.client(Kind::Function)?;
        if let Some(component) = component {
            client.send_bytes(Method::PUT, "/v1/blobs", component).await?;
        }
        let answer = client.send_json(Method::PUT, &format!("/v1/functions/{}", segment(name)), manifest).await?;
        let warnings = answer["warnings"].as_array().into_iter().flatten();
        let warnings = warnings.map(crate::cli::show::cell).collect();
        Ok((answer["version"].as_u64().unwrap_or_default(), warnings))
    }
}

fn told(kind: Kind, value: Value) -> Option<Item> {
    if !kind.is_kept() {
        return Item::of_plane(kind, value);
    }
    let statuses = serde_json::from_value(value["status"].clone()).unwrap_or_default();
    Some(Item::of_kept(Present::of_json(kind, &value)?, statuses))
}

/// What is said where there is none of this name.
fn missing(kind: Kind) -> Code {
    match kind {
        Kind::Route | Kind::Listener => Code::RESOURCE_UNKNOWN,
        Kind::Function => Code::FUNCTION_UNKNOWN,
        Kind::Model => Code::MODEL_UNKNOWN,
        Kind::Topic => Code::TOPIC_UNKNOWN,
    }
}
