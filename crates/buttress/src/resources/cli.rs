//! `buttress apply | get | describe | diff | delete | edit`, and `buttress schema`.

use std::{
    collections::BTreeSet,
    io::{IsTerminal, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use buttress_core::{Code, Error};
use buttress_resources::{kept::Gateway, kinds::Kind, nearest::nearest, yaml};
use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Value, json};

use super::{
    files::Files,
    place::{Item, Place},
    plan::{Payload, Plan, Step},
    store::{Change, Done, Outcome, unknown},
};
use crate::cli::{Answer, args::Output, show};

/// Where resources are.
#[derive(Clone, Debug, ClapArgs)]
pub struct At {
    /// A node's HTTP address.
    #[arg(long, env = "BUTTRESS_SERVER", default_value = "http://127.0.0.1:7380")]
    pub server: String,
    /// Members of an etcd of yours in which routes and listeners lie, in place of a node; or one etcd:// address.
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    pub etcd: Vec<String>,
    /// What every key begins with in that etcd.
    #[arg(long, default_value = "", value_name = "PREFIX", requires = "etcd")]
    pub namespace: String,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  buttress apply -f routes.yaml\n  buttress apply -f deploy/ --dry-run\n  kustomize build . | buttress apply -f - --etcd http://127.0.0.1:2379"
)]
pub struct ApplyArgs {
    /// A file, a directory, or - for standard input; may be repeated.
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Delete what is there of this kind (route or listener) and stands in no file; may be repeated.
    #[arg(long, value_name = "KIND")]
    pub prune_kind: Vec<String>,
    #[command(flatten)]
    pub at: At,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Table,
    /// As it would stand in a file.
    Yaml,
    /// For programs; its shape is stable.
    Json,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  buttress get routes\n  buttress get route orders -o yaml > orders.yaml\n  buttress get gateways"
)]
pub struct GetArgs {
    /// route, listener, function, model, topic; or gateways: those that have their routes from there.
    pub kind: String,
    pub name: Option<String>,
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    pub output: Form,
    #[command(flatten)]
    pub at: At,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  buttress describe route orders")]
pub struct DescribeArgs {
    /// route, listener, function, model or topic.
    pub kind: String,
    pub name: String,
    #[command(flatten)]
    pub at: At,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Example:\n  buttress diff -f routes.yaml\n\nExit codes: 0 nothing differs, 1 something does, 2 it failed."
)]
pub struct DiffArgs {
    /// A file, a directory, or - for standard input; may be repeated.
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub at: At,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  buttress delete route orders\n  buttress delete -f routes.yaml")]
pub struct DeleteArgs {
    /// route, listener, function, model or topic.
    #[arg(required_unless_present = "files", requires = "name", conflicts_with = "files")]
    pub kind: Option<String>,
    pub name: Option<String>,
    /// What stands in these files.
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub at: At,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  EDITOR=vi buttress edit route orders")]
pub struct EditArgs {
    /// route or listener.
    pub kind: String,
    pub name: String,
    #[command(flatten)]
    pub at: At,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  buttress schema\n  buttress schema Route > route.json\n\nIn a file, for VS Code's YAML extension:\n  # yaml-language-server: $schema=./route.json"
)]
pub struct SchemaArgs {
    /// Route, Listener, Function, Model or Topic; the list of kinds when not given.
    pub kind: Option<String>,
}

/// Whether what is written there may have colours.
pub fn colours(out: &impl IsTerminal) -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && out.is_terminal()
}

pub fn kind_of(text: &str) -> Result<Kind, Error> {
    Kind::typed(text).ok_or_else(|| {
        let error = Error::new(Code::KIND_UNKNOWN, format!("there is no kind \"{text}\""));
        let (names, plurals) = (Kind::ALL.map(Kind::name), Kind::ALL.map(Kind::plural));
        match nearest(text, names.into_iter().chain(plurals)) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error.hint(format!("the kinds are {}", names.join(", "))),
        }
    })
}

/// Carries a command out with what it works on, and gives back what that holds.
async fn at<T>(at: &At, work: impl AsyncFnOnce(&Place) -> Result<T, Error>) -> Result<T, Error> {
    let place = Place::open(&at.server, &at.etcd, &at.namespace).await?;
    let done = work(&place).await;
    place.close().await;
    done
}

fn on_runtime<T>(work: impl Future<Output = Result<T, Error>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work)?)
}

pub fn apply(args: &ApplyArgs) -> Answer {
    let files = Files::read(&args.files)?;
    let reading = files.resources()?;
    files.tell(&reading.findings);
    let prune: Vec<Kind> = args.prune_kind.iter().map(|kind| prunable(kind)).collect::<Result<_, _>>()?;
    on_runtime(at(&args.at, async |place| {
        let plan = Plan::make(&files, reading.resources, place).await?;
        let mut changes = plan.kept();
        changes.extend(to_prune(place, &prune, &plan).await?);
        // A conflict with what is kept is heard before a plane is asked to do anything.
        if !changes.is_empty() {
            let done = place.apply(&changes, true).await?;
            if args.dry_run {
                tell(args.output, &planned(&plan, &done), true)?;
                return Ok(());
            }
        } else if args.dry_run {
            return tell(args.output, &planned(&plan, &[]), true);
        }
        carry_out(args.output, place, &plan, &changes).await
    }))?;
    Ok(true)
}

fn prunable(text: &str) -> Result<Kind, Error> {
    let kind = kind_of(text)?;
    if kind.is_kept() {
        return Ok(kind);
    }
    Err(Error::new(Code::UNSUPPORTED, format!("{} are not pruned: they have records or state", kind.plural()))
        .hint(format!("buttress delete {} NAME", kind.name().to_lowercase())))
}

async fn to_prune(place: &Place, kinds: &[Kind], plan: &Plan) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    for kind in kinds.iter().copied().collect::<BTreeSet<_>>() {
        let wanted: BTreeSet<&str> = plan
            .steps
            .iter()
            .filter(|step| step.resource.kind == kind)
            .map(|step| step.resource.name.as_str())
            .collect();
        for item in place.list(kind).await?.into_iter().filter(|item| !wanted.contains(item.name.as_str())) {
            changes.push(Change { kind, name: item.name, wanted: None, revision: Some(item.revision) });
        }
    }
    Ok(changes)
}

/// What was done to one resource, or would be.
fn row(kind: Kind, name: &str, outcome: Outcome, generation: Option<u64>) -> Value {
    json!({"kind": kind.name(), "name": name, "outcome": outcome.name(), "generation": generation})
}

fn row_of(done: &Done) -> Value {
    row(done.kind, &done.name, done.outcome, Some(done.generation))
}

fn planned(plan: &Plan, kept: &[Done]) -> Vec<Value> {
    let of_planes = plan.steps.iter().filter(|step| !step.resource.kind.is_kept()).map(|step| {
        let generation = step.item.as_ref().and_then(|item| item.generation);
        let generation = match step.outcome {
            Outcome::Unchanged => generation,
            _ if step.resource.kind == Kind::Topic => None,
            _ => Some(generation.unwrap_or(0) + 1),
        };
        row(step.resource.kind, &step.resource.name, step.outcome, generation)
    });
    of_planes.chain(kept.iter().map(row_of)).collect()
}

async fn carry_out(output: Output, place: &Place, plan: &Plan, changes: &[Change]) -> Result<(), Error> {
    let mut rows = Vec::new();
    for step in &plan.steps {
        match one(place, step).await {
            Ok(Some(row)) => rows.push(row),
            Ok(None) => {}
            Err(error) => {
                // What was done stays done; applying again goes on from here.
                tell(output, &rows, false)?;
                let message = format!("{}: {}", step.name(), error.message);
                let hint = error.hint.clone().map_or(String::new(), |hint| format!("{hint}; "));
                return Err(
                    Error { message, ..error }.hint(format!("{hint}what comes after it was not done: apply again"))
                );
            }
        }
    }
    if !changes.is_empty() {
        match place.apply(changes, false).await {
            Ok(done) => rows.extend(done.iter().map(row_of)),
            Err(error) => {
                tell(output, &rows, false)?;
                return Err(error);
            }
        }
    }
    tell(output, &rows, false)?;
    if output == Output::Table
        && let Some(last) = rows.last()
    {
        let kind = show::cell(&last["kind"]).to_lowercase();
        eprintln!("next: buttress describe {kind} {}", show::cell(&last["name"]));
    }
    Ok(())
}

/// One that a plane keeps.
async fn one(place: &Place, step: &Step) -> Result<Option<Value>, Error> {
    let (kind, name) = (step.resource.kind, step.resource.name.as_str());
    let before = step.item.as_ref().and_then(|item| item.generation);
    let generation = match (&step.payload, step.outcome) {
        (Payload::Kept(_), _) => return Ok(None),
        (_, Outcome::Unchanged) => before,
        (Payload::Topic(request), _) => {
            place.create_topic(request).await?;
            None
        }
        (Payload::Model(bytes), _) => Some(place.push_model(name, bytes.clone()).await?),
        (Payload::Function { manifest, component }, _) => {
            let (version, warnings) = place.deploy(name, manifest, component.clone()).await?;
            for warning in warnings {
                eprintln!("warning: function/{name}: {warning}");
            }
            Some(version)
        }
    };
    Ok(Some(row(kind, name, step.outcome, generation)))
}

fn tell(output: Output, rows: &[Value], dry_run: bool) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", json!({"dry_run": dry_run, "results": rows})),
        Output::Table => rows.iter().try_for_each(|row| {
            let text = |key: &str| show::cell(&row[key]);
            let generation =
                row["generation"].as_u64().map_or(String::new(), |number| format!(", generation {number}"));
            let would = if dry_run { " (dry run)" } else { "" };
            writeln!(out, "{}/{} {}{generation}{would}", text("kind").to_lowercase(), text("name"), text("outcome"))
        }),
    }
    .map_err(show::output_failed)
}

pub fn get(args: &GetArgs) -> Answer {
    // They are no resources: nobody applies a gateway.
    if ["gateways", "gateway"].contains(&args.kind.to_ascii_lowercase().as_str()) {
        return get_gateways(args);
    }
    let kind = kind_of(&args.kind)?;
    let items = on_runtime(at(&args.at, async |place| match &args.name {
        None => place.list(kind).await,
        Some(name) => Ok(vec![place.get(kind, name).await?.ok_or_else(|| unknown(kind, name))?]),
    }))?;
    let mut out = std::io::stdout().lock();
    match args.output {
        Form::Table => {
            drop(out);
            let (header, rows) = table(kind, &items);
            show::table(&header, &rows).map_err(show::output_failed)?;
        }
        Form::Yaml => {
            let documents: Vec<String> = items.iter().map(|item| yaml::write(&item.document())).collect();
            write!(out, "{}", documents.join("---\n")).map_err(show::output_failed)?;
        }
        Form::Json => {
            let told: Vec<Value> = items.iter().map(json_of).collect();
            let told = if args.name.is_some() { told[0].clone() } else { json!({"resources": told}) };
            writeln!(out, "{told}").map_err(show::output_failed)?;
        }
    }
    Ok(true)
}

/// The gateways that run with this store, where each is, and since when.
fn get_gateways(args: &GetArgs) -> Answer {
    let mut all = on_runtime(at(&args.at, async |place| place.gateways().await))?;
    crate::proxy::fleet::tell_if_cut(&all);
    if let Some(name) = &args.name {
        all.retain(|gateway| gateway.name == *name);
        if all.is_empty() {
            return Err(Error::new(Code::RESOURCE_UNKNOWN, format!("there is no gateway \"{name}\""))
                .hint("buttress get gateways; one that ended is gone after 30 s at most")
                .into());
        }
    }
    let told = |gateway: &Gateway| serde_json::to_value(gateway).expect("it is plain data");
    match args.output {
        Form::Table => {
            let row = |gateway: &Gateway| {
                let Gateway { name, host, listen, admin, version, started_ms } = gateway.clone();
                vec![name, host, listen, admin, version, show::utc(started_ms)]
            };
            let rows: Vec<Vec<String>> = all.iter().map(row).collect();
            show::table(&["GATEWAY", "HOST", "LISTENS", "ADMIN", "VERSION", "SINCE"], &rows)
                .map_err(show::output_failed)?;
        }
        Form::Yaml => {
            let documents: Vec<String> = all.iter().map(|gateway| yaml::write(&told(gateway))).collect();
            write!(std::io::stdout().lock(), "{}", documents.join("---\n")).map_err(show::output_failed)?;
        }
        Form::Json if args.name.is_some() => show::json(&told(&all[0])).map_err(show::output_failed)?,
        Form::Json => {
            let all: Vec<Value> = all.iter().map(told).collect();
            show::json(&json!({"gateways": all})).map_err(show::output_failed)?;
        }
    }
    Ok(true)
}

fn json_of(item: &Item) -> Value {
    let mut told = item.document();
    told["generation"] = json!(item.generation);
    if item.kind.is_kept() {
        told["revision"] = json!(item.revision);
        told["status"] = json!(item.statuses);
    } else {
        told["view"] = item.view.clone();
    }
    told
}

fn table(kind: Kind, items: &[Item]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let generation = |item: &Item| item.generation.map_or("-".to_owned(), |number| number.to_string());
    let ready = |item: &Item| match item.ready() {
        (_, 0) => "-".to_owned(),
        (ready, all) => format!("{ready}/{all}"),
    };
    let first = |list: &Value, one: &dyn Fn(&Value) -> String| match list.as_array().map(Vec::as_slice) {
        None | Some([]) => "-".to_owned(),
        Some([only]) => one(only),
        Some([first, rest @ ..]) => format!("{} +{}", one(first), rest.len()),
    };
    match kind {
        Kind::Route => {
            let matched = |one: &Value| {
                let part = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
                let method = match &one["method"] {
                    Value::Null => String::new(),
                    Value::Array(list) => list.iter().map(show::cell).collect::<Vec<_>>().join("|") + " ",
                    other => show::cell(other) + " ",
                };
                let fields: Vec<&String> = one["headers"].as_object().into_iter().flat_map(|map| map.keys()).collect();
                let fields = if fields.is_empty() { String::new() } else { format!(" [{} fields]", fields.len()) };
                let place = part("host") + &part("path");
                format!("{method}{}{fields}", if place.is_empty() { "*".to_owned() } else { place })
            };
            let sent = |one: &Value| {
                let weight = one["weight"].as_u64().map_or(String::new(), |weight| format!(":{weight}"));
                let source = ["name", "service", "dns"].iter().find_map(|key| one[*key].as_str());
                let endpoint = || show::cell(one["endpoints"].as_array().map_or(&one["endpoints"], |list| &list[0]));
                source.map_or_else(endpoint, str::to_owned) + &weight
            };
            let row = |item: &Item| {
                let matched = match &item.spec["match"] {
                    Value::Null => "the rest".to_owned(),
                    list => first(list, &matched),
                };
                vec![item.name.clone(), generation(item), ready(item), matched, first(&item.spec["to"], &sent)]
            };
            (vec!["ROUTE", "GENERATION", "READY", "MATCH", "TO"], items.iter().map(row).collect())
        }
        Kind::Listener => {
            let row = |item: &Item| {
                let tls = if item.spec["tls"].is_null() { "no" } else { "yes" };
                let address = show::cell(&item.spec["address"]);
                vec![item.name.clone(), generation(item), ready(item), address, tls.to_owned()]
            };
            (vec!["LISTENER", "GENERATION", "READY", "ADDRESS", "TLS"], items.iter().map(row).collect())
        }
        Kind::Function => {
            let row = |item: &Item| {
                let state = item.view.get("state").map_or("-".to_owned(), show::cell);
                let topic = show::cell(&item.spec["trigger"]["topic"]);
                let component = show::cell(&item.spec["component"]).chars().take(19).collect();
                vec![item.name.clone(), generation(item), state, topic, component]
            };
            (vec!["FUNCTION", "GENERATION", "STATE", "TOPIC", "COMPONENT"], items.iter().map(row).collect())
        }
        Kind::Model => {
            let row = |item: &Item| {
                let part = |key: &str| show::cell(&item.view[key]);
                vec![item.name.clone(), generation(item), part("kind"), part("size"), part("digest")]
            };
            (vec!["MODEL", "GENERATION", "KIND", "BYTES", "DIGEST"], items.iter().map(row).collect())
        }
        Kind::Topic => {
            let row = |item: &Item| {
                let part = |key: &str| show::cell(&item.spec[key]);
                vec![
                    item.name.clone(),
                    part("partitions"),
                    part("retention_time"),
                    part("retention_size"),
                    part("engine"),
                ]
            };
            (vec!["TOPIC", "PARTITIONS", "KEPT FOR", "KEPT UP TO", "ENGINE"], items.iter().map(row).collect())
        }
    }
}

pub fn describe(args: &DescribeArgs) -> Answer {
    let kind = kind_of(&args.kind)?;
    let item = on_runtime(at(&args.at, async |place| {
        place.get(kind, &args.name).await?.ok_or_else(|| unknown(kind, &args.name))
    }))?;
    if args.output == Output::Json {
        show::json(&json_of(&item)).map_err(show::output_failed)?;
        return Ok(true);
    }
    let mut out = std::io::stdout().lock();
    write!(out, "{}", described(&item)).map_err(show::output_failed)?;
    Ok(true)
}

fn described(item: &Item) -> String {
    let mut text = format!("{} {}\n", item.kind.name(), item.name);
    let mut line = |key: &str, value: String| text.push_str(&format!("  {key:<12} {value}\n"));
    if let Some(generation) = item.generation {
        line("generation", generation.to_string());
    }
    if item.kind.is_kept() {
        let created = show::cell(&item.view["created_revision"]);
        line("revision", format!("{}, created at {created}", item.revision));
    }
    if !item.labels.is_empty() {
        let labels = item.labels.iter().map(|(key, value)| format!("{key}={value}"));
        line("labels", labels.collect::<Vec<_>>().join(" "));
    }
    for key in ["state", "error", "serving_version", "serving_generation", "runs_on", "kind", "size", "id"] {
        if !item.kind.is_kept() && !item.view[key].is_null() {
            line(&key.replace('_', " "), show::cell(&item.view[key]));
        }
    }
    if item.kind.is_kept() {
        match item.ready() {
            (_, 0) => line("gateways", "none observes it".into()),
            (ready, all) => line("gateways", format!("{ready} of {all} serve this generation")),
        }
        for status in &item.statuses {
            let is = match (status.ready, Some(status.observed_generation) == item.generation) {
                (true, true) => "ready".to_owned(),
                (true, false) => format!("serves generation {}", status.observed_generation),
                (false, _) => format!("not ready, generation {}", status.observed_generation),
            };
            let message = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
            line("", format!("{} {is}{message}", status.gateway));
        }
    }
    text.push_str("spec:\n");
    for line in yaml::write(&item.spec).lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

pub fn diff(args: &DiffArgs) -> Answer {
    let files = Files::read(&args.files)?;
    let reading = files.resources()?;
    let plan = on_runtime(at(&args.at, async |place| Plan::make(&files, reading.resources, place).await))?;
    let mut out = std::io::stdout().lock();
    let mut same = true;
    for step in &plan.steps {
        let told = step.diff(colours(&out));
        same &= told.is_empty();
        write!(out, "{told}").map_err(show::output_failed)?;
    }
    if same {
        eprintln!("nothing differs");
    }
    Ok(same)
}

pub fn delete(args: &DeleteArgs) -> Answer {
    let targets: Vec<(Kind, String)> = match (&args.kind, &args.name) {
        (Some(kind), Some(name)) => {
            let kind = kind_of(kind)?;
            if kind == Kind::Model {
                let message =
                    format!("model \"{name}\" cannot be deleted: its generations are what batches were judged by");
                return Err(Error::new(Code::UNSUPPORTED, message).hint("delete the functions that ask it").into());
            }
            vec![(kind, name.clone())]
        }
        _ => {
            let files = Files::read(&args.files)?;
            let reading = files.resources()?;
            let (models, others): (Vec<_>, Vec<_>) =
                reading.resources.into_iter().partition(|resource| resource.kind == Kind::Model);
            for model in models {
                eprintln!("model/{} stays: its generations are what batches were judged by", model.name);
            }
            others.into_iter().map(|resource| (resource.kind, resource.name)).collect()
        }
    };
    on_runtime(at(&args.at, async |place| {
        // What names others goes before them.
        let mut rows = Vec::new();
        let (kept, planes): (Vec<_>, Vec<_>) = targets.iter().partition(|(kind, _)| kind.is_kept());
        let change =
            |(kind, name): &(Kind, String)| Change { kind: *kind, name: name.clone(), wanted: None, revision: None };
        let changes: Vec<Change> = kept.into_iter().map(change).collect();
        if !changes.is_empty() {
            rows.extend(place.apply(&changes, false).await?.iter().map(row_of));
        }
        let mut planes: Vec<&(Kind, String)> = planes;
        planes.sort_by_key(|(kind, _)| std::cmp::Reverse(Kind::ALL.iter().position(|one| one == kind)));
        for (kind, name) in planes {
            if let Err(error) = place.delete(*kind, name).await {
                tell(args.output, &rows, false)?;
                return Err(error);
            }
            rows.push(row(*kind, name, Outcome::Deleted, None));
        }
        tell(args.output, &rows, false)
    }))?;
    Ok(true)
}

pub fn edit(args: &EditArgs) -> Answer {
    let kind = kind_of(&args.kind)?;
    if !kind.is_kept() {
        let message = format!("{} are not edited in place: they have files beside their settings", kind.plural());
        return Err(Error::new(Code::UNSUPPORTED, message).hint("change the file, and buttress apply -f FILE").into());
    }
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".into());
    let item = on_runtime(at(&args.at, async |place| {
        place.get(kind, &args.name).await?.ok_or_else(|| unknown(kind, &args.name))
    }))?;
    let before = yaml::write(&item.document());
    let path =
        std::env::temp_dir().join(format!("buttress-{}-{}-{}.yaml", args.name, std::process::id(), item.revision));
    write_new(&path, &before)?;
    // Kept where anything goes wrong, so that nobody types it again.
    let kept = format!("what you wrote is kept in {}: buttress apply -f it", path.display());
    // As a shell does it, so that EDITOR may hold options.
    let shell = Command::new("sh").arg("-c").arg(r#"exec $0 "$1""#).arg(&editor).arg(&path).status();
    let ended = shell.map_err(|error| {
        Error::new(Code::DATA_FILE, format!("the editor {editor:?} cannot be started: {error}")).hint("set EDITOR")
    })?;
    if !ended.success() {
        return Err(Error::new(Code::DATA_FILE, format!("the editor ended with {ended}; nothing was changed"))
            .hint(kept)
            .into());
    }
    let files = Files::read(std::slice::from_ref(&path))?;
    if files.sources[0].text == before {
        let _ = std::fs::remove_file(&path);
        eprintln!("nothing was changed");
        return Ok(true);
    }
    let saved = |error: Error| match &error.hint {
        Some(hint) => error.clone().hint(format!("{hint}; {kept}")),
        None => error.clone().hint(kept.clone()),
    };
    let reading = files.resources().map_err(saved)?;
    match &reading.resources[..] {
        [one] if one.kind == kind && one.name == args.name => {}
        _ => {
            let message = format!("the file does not hold {} \"{}\" and nothing else", kind.name(), args.name);
            return Err(Error::new(Code::RESOURCE_INVALID, message).hint(kept).into());
        }
    }
    on_runtime(at(&args.at, async |place| {
        let plan = Plan::make(&files, reading.resources, place).await?;
        let mut changes = plan.kept();
        // The revision that was read before the editor began.
        changes.iter_mut().for_each(|change| change.revision = Some(item.revision));
        let done = place.apply(&changes, false).await.map_err(saved)?;
        tell(Output::Table, &done.iter().map(row_of).collect::<Vec<_>>(), false)
    }))?;
    let _ = std::fs::remove_file(&path);
    Ok(true)
}

/// For this user alone, and never over a file that is there.
fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
        Error::new(Code::DISK, format!("cannot write \"{}\": {error}", path.display())).hint("set TMPDIR")
    })
}

pub fn schema(args: &SchemaArgs) -> Answer {
    let mut out = std::io::stdout().lock();
    match &args.kind {
        Some(kind) => writeln!(out, "{:#}", kind_of(kind)?.schema()).map_err(show::output_failed)?,
        None => {
            drop(out);
            let rows: Vec<Vec<String>> = Kind::ALL
                .iter()
                .map(|kind| {
                    let schema = kind.schema();
                    let described = &schema["$defs"][kind.name()]["description"];
                    vec![kind.name().to_owned(), show::cell(described).replace('\n', " ")]
                })
                .collect();
            show::table(&["KIND", "WHAT IT IS"], &rows).map_err(show::output_failed)?;
            eprintln!("next: buttress schema Route");
        }
    }
    Ok(true)
}
