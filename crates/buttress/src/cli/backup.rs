//! `buttress backup`, `buttress backup verify` and `buttress restore`.

use std::{
    io::{IsTerminal, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use buttress_core::{Code, Consistency, Error};
use buttress_functions::resource::{FUNCTIONS_PREFIX, FunctionSpec, MODELS_PREFIX, ModelSpec};
use buttress_node::backup::{self, Progress, RestoreOptions, Verified};
use serde_json::{Value, json};

use super::{
    Answer,
    args::{BackupArgs, BackupCommand, Output, RestoreArgs},
    show,
};
use crate::{backups, client::Client, config::Config, dev};

/// How often progress is written.
const TICK: Duration = Duration::from_millis(200);

/// A line on a terminal that is written over; nothing where standard error is no terminal.
struct Meter {
    live: bool,
    last: Instant,
    begun: Instant,
    shown: bool,
}

impl Meter {
    fn new() -> Self {
        let now = Instant::now();
        Self { live: std::io::stderr().is_terminal(), last: now, begun: now, shown: false }
    }

    fn show(&mut self, what: &str, bytes: u64, total: Option<u64>) {
        if !self.live || self.last.elapsed() < TICK {
            return;
        }
        self.last = Instant::now();
        self.shown = true;
        let rate = bytes as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let of = total.map(|total| format!(" of {}", show::bytes(total))).unwrap_or_default();
        eprint!("\r\x1b[K{what} {}{of}, {}/s", show::bytes(bytes), show::bytes(rate as u64));
        let _ = std::io::stderr().flush();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

pub fn run(args: BackupArgs) -> Answer {
    match args.command {
        Some(BackupCommand::Verify { file, output }) => verify(&file, output),
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(take(args))?;
            Ok(true)
        }
    }
}

async fn take(args: BackupArgs) -> Result<(), Error> {
    let file = args.to.expect("required where there is no subcommand");
    let consistency = if args.stale { Consistency::Serializable } else { Consistency::Linearizable };
    let client = Client::new(&args.server.server)?;
    let mut meter = Meter::new();
    let taking = backups::take(&client, &file, consistency, args.force, |bytes| meter.show("received", bytes, None));
    let verified = tokio::select! {
        verified = taking => verified?,
        // What was written so far goes with the future.
        () = dev::interrupted() => {
            return Err(Error::new(Code::STOPPED, "interrupted; no backup was written"));
        }
    };
    drop(meter);
    print(&file, &verified, args.server.output).map_err(show::output_failed)?;
    if args.server.output == Output::Table {
        eprintln!("\nnext: buttress backup verify {}", file.display());
    }
    Ok(())
}

fn verify(file: &Path, output: Output) -> Answer {
    let total = std::fs::metadata(file).map(|m| m.len()).ok();
    let mut meter = Meter::new();
    let verified = backup::verify(file, backups::PREFIXES, |bytes| meter.show("verified", bytes, total));
    drop(meter);
    match verified {
        Ok(verified) => {
            print(file, &verified, output)?;
            Ok(true)
        }
        // The answer to what was asked is no; that it cannot be read at all is a failure.
        Err(error) if error.code == Code::BACKUP_DAMAGED || error.code == Code::FORMAT => {
            if output == Output::Json {
                let said = json!({"file": file, "ok": false, "code": error.code.0, "message": error.message, "hint": error.hint});
                show::json(&said)?;
            } else {
                eprintln!("error: {error}");
            }
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

pub fn restore(args: &RestoreArgs) -> Answer {
    let config = Config::load(&args.config)?;
    let total = std::fs::metadata(&args.file).map(|m| m.len()).ok();
    let mut meter = Meter::new();
    let options = RestoreOptions { same_cluster_id: args.same_cluster_id, ..RestoreOptions::default() };
    // Nothing of the node runs, so nothing random is needed.
    let node = config.for_node(0, 0);
    let verified = backup::restore(&args.file, &node, &options, |progress| match progress {
        Progress::Verifying(bytes) => meter.show("verified", bytes, total),
        Progress::Writing(bytes) => meter.show("restored", bytes, total),
    })?;
    drop(meter);
    let dir = config.node.data_dir.display();
    if args.output == Output::Json {
        let mut told = summary(&args.file, &verified);
        told["restored"] = json!({
            "node": config.node.id,
            "cluster_id": config.cluster.id,
            "data_dir": config.node.data_dir,
            "members": config.members.iter().map(|m| &m.name).collect::<Vec<_>>(),
        });
        show::json(&told)?;
        return Ok(true);
    }
    let of = &verified.header;
    println!(
        "restored {} to index {}, term {}, revision {} of cluster \"{}\" as cluster \"{}\" in {dir}",
        config.member().name,
        of.index,
        of.term,
        verified.inventory.counts.revision,
        of.cluster_id,
        config.cluster.id
    );
    if config.members.len() > 1 {
        let others: Vec<&str> =
            config.members.iter().filter(|m| m.id != config.node.id).map(|m| m.name.as_str()).collect();
        eprintln!("\nrestore {} from the same file before any node starts", others.join(" and "));
    }
    eprintln!("next: buttress serve --config {}", args.config.display());
    Ok(true)
}

/// What a backup holds, for programs.
fn summary(file: &Path, verified: &Verified) -> Value {
    let (of, inventory) = (&verified.header, &verified.inventory);
    let counts = &inventory.counts;
    json!({
        "file": file,
        "ok": true,
        "bytes": verified.bytes,
        "sha256": verified.trailer.sha256_hex(),
        "version": of.version,
        "cluster_id": of.cluster_id,
        "node": of.node.0,
        "taken_at_ms": of.taken_at.0,
        "linearizable": of.linearizable,
        "index": of.index.0,
        "term": of.term.0,
        "members": of.members.iter().map(|m| json!({
            "id": m.id.0, "name": m.name, "peer": m.peer, "http": m.http, "voter": of.voters.contains(&m.id),
        })).collect::<Vec<_>>(),
        "revision": counts.revision.0,
        "keys": counts.keys,
        "key_changes": counts.key_changes,
        "state_rows": counts.state_rows,
        "producers": counts.producers,
        "cursors": counts.cursors,
        "leases": counts.leases,
        "timers": counts.timers,
        "request_results": counts.results,
        "row_bytes": inventory.row_bytes(),
        "record_bytes": inventory.record_bytes(),
        "topics": counts.topics.iter().map(|topic| json!({
            "name": topic.name,
            "partitions": topic.partitions.iter().map(|p| {
                let log = inventory.logs.get(&p.log).copied().unwrap_or_default();
                json!({"log": p.log.0, "start": p.start.0, "end": p.end.0, "batches": log.batches, "bytes": log.bytes})
            }).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "functions": functions(verified).iter().map(|f| json!({
            "name": f.name, "version": f.version, "component": f.component,
        })).collect::<Vec<_>>(),
        "models": models(verified).iter().map(|m| json!({
            "name": m.name, "generation": m.generation, "digest": m.digest,
        })).collect::<Vec<_>>(),
    })
}

fn specs<T: serde::de::DeserializeOwned>(verified: &Verified, prefix: &str) -> Vec<T> {
    let wanted = verified.inventory.counts.wanted.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes()));
    wanted.filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect()
}

fn functions(verified: &Verified) -> Vec<FunctionSpec> {
    specs(verified, FUNCTIONS_PREFIX)
}

fn models(verified: &Verified) -> Vec<ModelSpec> {
    specs(verified, MODELS_PREFIX)
}

fn print(file: &Path, verified: &Verified, output: Output) -> std::io::Result<()> {
    if output == Output::Json {
        return show::json(&summary(file, verified));
    }
    let (of, inventory) = (&verified.header, &verified.inventory);
    let counts = &inventory.counts;
    let names = |ids: &mut dyn Iterator<Item = (bool, &str)>| {
        ids.map(|(votes, name)| if votes { name.to_owned() } else { format!("{name} (no voter)") })
            .collect::<Vec<_>>()
            .join(", ")
    };
    let members = names(&mut of.members.iter().map(|m| (of.voters.contains(&m.id), m.name.as_str())));
    let asked = of.members.iter().find(|m| m.id == of.node).map_or_else(|| of.node.to_string(), |m| m.name.clone());
    let fresh = if of.linearizable {
        "everything acknowledged before it was asked for"
    } else {
        "what that node had applied (stale)"
    };
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let functions = list(functions(verified).iter().map(|f| format!("{}@{}", f.name, f.version)).collect());
    let models = list(models(verified).iter().map(|m| format!("{}#{}", m.name, m.generation)).collect());
    let facts = [
        ("file", format!("{}, {}, every byte verified", file.display(), show::bytes(verified.bytes))),
        ("sha256", format!("{} (of all before the trailer)", verified.trailer.sha256_hex())),
        ("cluster", format!("{}: {members}", of.cluster_id)),
        ("taken", format!("{} from {asked} by buttress {}: {fresh}", show::utc(of.taken_at.0), of.version)),
        ("state", format!("index {}, term {}, revision {}", of.index, of.term, counts.revision)),
        ("keys", format!("{} ({} changes in history)", counts.keys, counts.key_changes)),
        ("functions", functions),
        ("models", models),
        (
            "also",
            format!(
                "{} rows of function state, {} cursors, {} producers, {} leases, {} timers, {} remembered results",
                counts.state_rows, counts.cursors, counts.producers, counts.leases, counts.timers, counts.results
            ),
        ),
        (
            "sizes",
            format!("rows {}, records {}", show::bytes(inventory.row_bytes()), show::bytes(inventory.record_bytes())),
        ),
    ];
    let mut out = std::io::stdout().lock();
    for (name, fact) in facts {
        writeln!(out, "{name:<10} {fact}")?;
    }
    drop(out);
    let mut rows = Vec::new();
    for topic in &counts.topics {
        for (number, partition) in topic.partitions.iter().enumerate() {
            let log = inventory.logs.get(&partition.log).copied().unwrap_or_default();
            rows.push(vec![
                topic.name.clone(),
                number.to_string(),
                partition.start.to_string(),
                partition.end.to_string(),
                log.batches.to_string(),
                show::bytes(log.bytes),
            ]);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    println!();
    show::table(&["TOPIC", "PARTITION", "START", "END", "BATCHES", "SIZE"], &rows)
}
