//! What an apply would do: each resource of the files beside what is there. A plan is made before anything is written.

use buttress_core::{Code, Error};
use buttress_functions::{blob, resource::Manifest};
use buttress_resources::{
    Resource, diff,
    finding::{Finding, Level},
    function::Function,
    kept,
    kinds::{Kind, Spec},
    model::Model,
    topic::Topic,
    yaml,
};
use bytes::Bytes;
use serde_json::Value;

use super::{
    files::Files,
    place::{Item, Place},
    store::{Change, Outcome, Wanted},
};

/// One resource of the files.
pub struct Step {
    pub resource: Resource,
    /// What is there.
    pub item: Option<Item>,
    /// The spec as it would be read after the apply.
    pub wanted: Value,
    pub outcome: Outcome,
    pub payload: Payload,
}

/// What is sent.
pub enum Payload {
    Kept(Change),
    Topic(Value),
    Model(Bytes),
    Function { manifest: Value, component: Option<Bytes> },
}

pub struct Plan {
    /// In the order in which they are carried out.
    pub steps: Vec<Step>,
}

impl Step {
    pub fn name(&self) -> String {
        format!("{}/{}", self.resource.kind.name().to_lowercase(), self.resource.name)
    }

    /// How what is there differs from what is wanted, as `diff -u` tells it; empty where it does not.
    pub fn diff(&self, colours: bool) -> String {
        let Resource { kind, name, labels, origin, .. } = &self.resource;
        let wanted = yaml::write(&kept::document(*kind, name, labels, &self.wanted));
        let (live_name, live) = match &self.item {
            None => ("/dev/null".to_owned(), String::new()),
            Some(item) => {
                let generation = item.generation.map_or(String::new(), |number| format!(" generation {number}"));
                (format!("{}{generation}", self.name()), yaml::write(&item.document()))
            }
        };
        diff::unified(&live_name, &live, &format!("{}:{}", origin.file, origin.line), &wanted, colours)
    }
}

impl Plan {
    /// # Errors
    /// What is wrong with files that resources name, when it is told; what a place answers.
    pub async fn make(files: &Files, resources: Vec<Resource>, place: &Place) -> Result<Self, Error> {
        let (mut steps, mut findings) = (Vec::new(), Vec::new());
        for resource in resources {
            let item = place.get(resource.kind, &resource.name).await?;
            match step(files, resource, item) {
                Ok(step) => steps.push(step),
                Err(finding) => findings.push(*finding),
            }
        }
        files.refuse(&findings)?;
        let place_of = |kind: Kind| Kind::ALL.iter().position(|one| *one == kind);
        steps.sort_by_key(|step: &Step| place_of(step.resource.kind));
        Ok(Self { steps })
    }

    /// The routes and listeners, which are written together.
    pub fn kept(&self) -> Vec<Change> {
        let change = |step: &Step| match &step.payload {
            Payload::Kept(change) => Some(change.clone()),
            _ => None,
        };
        self.steps.iter().filter_map(change).collect()
    }
}

fn step(files: &Files, resource: Resource, item: Option<Item>) -> Result<Step, Box<Finding>> {
    let same = |wanted: &Value| item.as_ref().is_some_and(|item| item.spec == *wanted);
    let outcome_of = |same: bool| match (&item, same) {
        (None, _) => Outcome::Created,
        (Some(_), true) => Outcome::Unchanged,
        (Some(_), false) => Outcome::Changed,
    };
    let (wanted, outcome, payload) = match &resource.typed {
        Spec::Route(_) | Spec::Listener(_) => {
            let spec = kept::canonical(&resource.typed);
            let labels = resource.labels.clone();
            let whole = same(&spec) && item.as_ref().is_some_and(|item| item.labels == labels);
            let change = Change {
                kind: resource.kind,
                name: resource.name.clone(),
                wanted: Some(Wanted { labels, spec: spec.clone() }),
                revision: Some(item.as_ref().map_or(0, |item| item.revision)),
            };
            (spec, outcome_of(whole), Payload::Kept(change))
        }
        Spec::Topic(topic) => {
            let mut filled = topic.clone();
            filled.partitions.get_or_insert(1);
            if let Some(item) = &item {
                // Where it lies is only asked about where the file says it.
                filled.engine = filled.engine.or(Topic::present(&item.view).engine);
            }
            let wanted = kept::canonical(&Spec::Topic(filled));
            if item.is_some() && !same(&wanted) {
                let says = format!(
                    "topic \"{}\" exists with other settings, and an apply does not change them",
                    resource.name
                );
                let hint = "`buttress diff` shows them; write what is there, or delete the topic with its records";
                let found = resource.finding(Level::Error, Code::TOPIC_INVALID.0, "/spec", says, hint);
                return Err(Box::new(found));
            }
            (wanted, outcome_of(item.is_some()), Payload::Topic(topic.request(&resource.name)))
        }
        Spec::Model(model) => {
            let bytes = open(files, &resource, "/spec/model", &model.model, Code::MODEL_INVALID)?;
            let wanted = kept::canonical(&Spec::Model(Model { model: blob::digest(&bytes) }));
            let outcome = outcome_of(same(&wanted));
            (wanted, outcome, Payload::Model(bytes))
        }
        Spec::Function(function) => {
            let uploaded = function.component.starts_with("sha256:");
            let (digest, component) = match uploaded {
                true => (function.component.clone(), None),
                false => {
                    let bytes =
                        open(files, &resource, "/spec/component", &function.component, Code::COMPONENT_INVALID)?;
                    (blob::digest(&bytes), Some(bytes))
                }
            };
            let manifest = function.manifest(&digest);
            // What is left out has the plane's own defaults, on both sides.
            let filled: Manifest = serde_json::from_value(manifest.clone()).map_err(|error| {
                let says = format!("the function's settings cannot be carried out: {error}");
                Box::new(resource.finding(Level::Error, Code::RESOURCE_INVALID.0, "/spec", says, ""))
            })?;
            let filled = serde_json::to_value(&filled).expect("a manifest is plain data");
            let wanted = kept::canonical(&Spec::Function(Box::new(Function::deployed(&filled))));
            let outcome = outcome_of(same(&wanted));
            (wanted, outcome, Payload::Function { manifest, component })
        }
    };
    Ok(Step { resource, item, wanted, outcome, payload })
}

fn open(files: &Files, resource: &Resource, pointer: &str, named: &str, code: Code) -> Result<Bytes, Box<Finding>> {
    let path = files.beside(&resource.origin.file, named);
    std::fs::read(&path).map(Bytes::from).map_err(|error| {
        let says = format!("cannot read \"{}\": {error}", path.display());
        Box::new(resource.finding(
            Level::Error,
            code.0,
            pointer,
            says,
            "files are looked for beside the one that names them",
        ))
    })
}
