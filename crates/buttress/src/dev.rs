//! `buttress dev`: a cluster on this machine until Ctrl-C.

use std::{path::PathBuf, time::Duration};

use buttress_core::{Code, Error};

use crate::{
    cli::{
        Answer,
        args::{DevArgs, Output},
    },
    cluster::{LocalCluster, log_path},
    logging,
};

/// How often a node is looked after.
const WATCH_POLL: Duration = Duration::from_millis(200);

pub fn run(args: &DevArgs) -> Answer {
    logging::init(logging::Format::Text, "warn");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dev(args))
}

async fn dev(args: &DevArgs) -> Answer {
    let (dir, temporary) = match &args.data_dir {
        Some(dir) => (dir.clone(), false),
        None => (scratch_dir("dev")?, true),
    };
    let cluster = LocalCluster::lay_out(&dir, args.nodes.into(), &format!("dev-{:08x}", seed()? as u32), seed()?)?;
    if !args.kafka.is_empty() {
        cluster.use_kafka(&args.kafka)?;
    }
    if let Some(file) = &args.restore
        && let Err(error) = cluster.restore(file)
    {
        if temporary {
            let _ = std::fs::remove_dir_all(&dir);
        }
        return Err(error.into());
    }
    let ended = tokio::select! {
        ended = run_nodes(&cluster, args.output) => ended,
        () = interrupted() => {
            eprintln!("stopping");
            Ok(())
        }
    };
    cluster.stop_all().await;
    if !temporary {
        let (shown, nodes) = (dir.display(), args.nodes);
        eprintln!("data kept in {shown}; start again with: buttress dev --nodes {nodes} --data-dir {shown}");
    } else if ended.is_ok() {
        let _ = std::fs::remove_dir_all(&dir);
    }
    ended?;
    Ok(true)
}

/// Starts the nodes, says where they are, and starts a node that ends again. One that cannot start stays down and the
/// others go on; when none is left, the last one's reason is the end.
async fn run_nodes(cluster: &LocalCluster, output: Output) -> anyhow::Result<()> {
    cluster.start_all().await?;
    announce(cluster, output)?;
    loop {
        tokio::time::sleep(WATCH_POLL).await;
        let (removed, ended): (Vec<_>, Vec<_>) =
            cluster.reap().into_iter().partition(|(name, _)| cluster.was_removed(name));
        for (name, _) in removed {
            eprintln!("{name} was removed from the cluster and stays down");
        }
        // All at once: one alone may wait for the others to find a leader.
        for (name, how) in &ended {
            let log = log_path(cluster.dir(), name);
            eprintln!("{name} ended ({how}) and is started again; its log is {}", log.display());
            cluster.spawn(name)?;
        }
        for (name, _) in &ended {
            if let Err(error) = cluster.wait_ready(name).await {
                cluster.reap();
                if cluster.running().is_empty() {
                    return Err(error.into());
                }
                eprintln!("error: {error}");
            }
        }
    }
}

fn announce(cluster: &LocalCluster, output: Output) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => {
            let nodes: Vec<_> = cluster
                .members()
                .iter()
                .map(|m| {
                    serde_json::json!({
                        "name": m.name, "kafka": m.kafka, "mqtt": m.mqtt, "http": m.http, "etcd": m.etcd,
                    })
                })
                .collect();
            writeln!(out, "{}", serde_json::json!({ "nodes": nodes }))?;
        }
        Output::Table => {
            let row = |a: &str, b: &str, c: &str, d: &str, e: &str| format!("{a:<10}{b:<24}{c:<20}{d:<20}{e}");
            writeln!(out, "{}", row("NODE", "HTTP", "KAFKA", "MQTT", "ETCD"))?;
            for m in cluster.members() {
                writeln!(out, "{}", row(&m.name, &format!("http://{}", m.http), &m.kafka, &m.mqtt, &m.etcd))?;
            }
            eprintln!("\nnext, in another terminal:");
            eprintln!("  export BUTTRESS_SERVER=http://{}", cluster.members()[0].http);
            eprintln!("  buttress topic create telemetry --partitions 4");
            eprintln!("  kcat -b {} -L", cluster.members()[0].kafka);
            eprintln!("  etcdctl --endpoints {} member list", cluster.members()[0].etcd);
            eprintln!("Ctrl-C stops the cluster.");
        }
    }
    out.flush()
}

/// Comes back on Ctrl-C or SIGTERM. From the call on, not from the first poll, they do not end the process any more.
pub fn interrupted() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let asked = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        match asked {
            (Ok(mut interrupt), Ok(mut terminate)) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
            (Ok(mut one), Err(_)) | (Err(_), Ok(mut one)) => drop(one.recv().await),
            (Err(_), Err(_)) => std::future::pending().await,
        }
    }
}

/// A number that differs from run to run.
///
/// # Errors
/// When the operating system gives no randomness.
pub fn seed() -> Result<u64, Error> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(Code::LIMITS, format!("no randomness: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}

/// A new directory below the system's place for temporary files.
///
/// # Errors
/// `DISK` when it cannot be made.
pub fn scratch_dir(what: &str) -> Result<PathBuf, Error> {
    let dir = std::env::temp_dir().join(format!("buttress-{what}-{:012x}", seed()? & 0xffff_ffff_ffff));
    std::fs::create_dir_all(&dir).map_err(|error| {
        Error::new(Code::DISK, format!("cannot make \"{}\": {error}", dir.display())).hint("set TMPDIR")
    })?;
    Ok(dir)
}
