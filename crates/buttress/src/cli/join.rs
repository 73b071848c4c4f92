//! `buttress cluster join`: from an empty directory to a member.
//!
//! Three steps, each of which may be the last one before a crash: the cluster gives an id and notes name and addresses in
//! its log; the node's configuration is written, whole or not at all; the node starts. Running the command again takes up
//! where the last one ended. Before the configuration is there, the same name gets the same id, with the addresses of this
//! run, for nothing was ever acknowledged under it. Once it is there, its addresses count, and when the cluster says that
//! the member has started it is enough that it is this one.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use buttress_core::{Code, Error};
use http::Method;

use super::{
    args::{JoinArgs, Output, ServeArgs},
    show,
};
use crate::{
    client::Client,
    config::{self, Config, MemberConfig},
    dev::seed,
    ports, serve,
};

/// Joins, and runs the node where that is asked for: then tells whether it ended well.
pub fn run(args: &JoinArgs) -> anyhow::Result<Option<bool>> {
    let path = args.config.clone().unwrap_or_else(|| PathBuf::from(format!("{}.toml", args.name)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let joined = runtime.block_on(join(args, &path))?;
    drop(runtime);
    if args.server.output == Output::Json && !args.serve {
        show::json(&joined)?;
    }
    if args.serve {
        let serve = ServeArgs { config: path, log: args.log, with_parent: args.with_parent };
        return Ok(Some(serve::run(&serve)));
    }
    eprintln!("start it with:\n  buttress serve --config {}", path.display());
    Ok(None)
}

/// Makes the node a member and writes its configuration; gives what a program wants to know of it.
///
/// # Errors
/// What the cluster says, `UNREACHABLE`, `CONFIG` where the file is another's, `DISK`.
pub async fn join(args: &JoinArgs, path: &Path) -> Result<serde_json::Value, Error> {
    let client = Client::new(&args.server.server)?;
    let view = client.get("/v1/cluster").await?;
    let cluster_id = view["cluster_id"].as_str().unwrap_or_default().to_owned();
    let written = if path.exists() { Some(take_up(args, path, &cluster_id)?) } else { None };
    let addresses = match &written {
        Some(config) => config.member().clone(),
        None => addresses(args)?,
    };
    let MemberConfig { name, peer, kafka, mqtt, http, etcd, .. } = &addresses;
    let body = serde_json::json!({
        "name": name, "peer": peer, "kafka": kafka, "mqtt": mqtt, "http": http, "etcd": etcd, "learner": args.learner,
    });
    let answer = match client.send_json(Method::POST, "/v1/cluster/members", &body).await {
        Ok(answer) => answer,
        // It has started, and this is its own configuration: all that was wanted is there.
        Err(error) if error.code == Code::MEMBER_EXISTS && is_this(&written, &view) => view,
        Err(error) => return Err(error),
    };
    let id = match &written {
        Some(config) => config.node.id,
        None => answer["id"].as_u64().ok_or_else(|| {
            Error::new(Code::UNREACHABLE, "the server's answer has no id").hint("is --server a node of this version?")
        })?,
    };
    if written.is_none() {
        let config = configuration(args, id, &cluster_id, addresses.clone(), &answer)?;
        write(path, &config)?;
    } else if answer["id"].as_u64().is_some_and(|given| given != id) {
        let message = format!("\"{}\" has the id {id}, and the cluster has given {}", path.display(), answer["id"]);
        return Err(Error::new(Code::CONFIG, message)
            .hint("the member it was written for is gone: remove the file and its data directory, and join again"));
    }
    eprintln!("{name} is a member with the id {id}; its configuration is {}", path.display());
    Ok(serde_json::json!({
        "id": id, "name": name, "config": path, "peer": peer, "kafka": kafka, "mqtt": mqtt, "http": http,
        "etcd": etcd,
    }))
}

/// A configuration that an earlier run wrote.
fn take_up(args: &JoinArgs, path: &Path, cluster_id: &str) -> Result<Config, Error> {
    let config = Config::load(path)?;
    let other = |what: String| {
        Error::new(Code::CONFIG, format!("\"{}\" exists and is {what}", path.display()))
            .hint("name another file with --config")
    };
    if config.cluster.id != cluster_id {
        return Err(other(format!("for cluster \"{}\", not for \"{cluster_id}\"", config.cluster.id)));
    }
    if config.member().name != args.name || !config.node.join {
        return Err(other(format!("for \"{}\", which did not join as \"{}\"", config.member().name, args.name)));
    }
    if absolute(&config.node.data_dir)? != absolute(&args.data_dir)? {
        return Err(other(format!("for the data directory \"{}\"", config.node.data_dir.display())));
    }
    Ok(config)
}

fn is_this(written: &Option<Config>, view: &serde_json::Value) -> bool {
    let Some(config) = written else { return false };
    let own = config.member();
    let mut members = view["members"].as_array().into_iter().flatten();
    members.any(|m| m["id"] == own.id && m["name"] == own.name.as_str() && m["peer"] == own.peer.as_str())
}

fn addresses(args: &JoinArgs) -> Result<MemberConfig, Error> {
    let mut free = ports::free(5, seed()?)?.into_iter();
    let mut address = |given: &Option<String>| {
        let port = free.next().expect("five were asked for");
        given.clone().unwrap_or_else(|| format!("127.0.0.1:{port}"))
    };
    let (peer, kafka) = (address(&args.peer), address(&args.kafka));
    let (mqtt, http, etcd) = (address(&args.mqtt), address(&args.http), address(&args.etcd));
    Ok(MemberConfig { id: 0, name: args.name.clone(), peer, kafka, mqtt, http, etcd })
}

/// The new node's configuration: whom it knows before it has the log, and itself.
fn configuration(
    args: &JoinArgs,
    id: u64,
    cluster_id: &str,
    own: MemberConfig,
    answer: &serde_json::Value,
) -> Result<Config, Error> {
    let text = |m: &serde_json::Value, key: &str| m[key].as_str().unwrap_or_default().to_owned();
    let others = answer["members"].as_array().into_iter().flatten().filter(|m| m["id"] != id);
    let mut members: Vec<MemberConfig> = others
        .map(|m| MemberConfig {
            id: m["id"].as_u64().unwrap_or_default(),
            name: text(m, "name"),
            peer: text(m, "peer"),
            kafka: text(m, "kafka"),
            mqtt: text(m, "mqtt"),
            http: text(m, "http"),
            etcd: text(m, "etcd"),
        })
        .filter(|m| !m.peer.is_empty())
        .collect();
    members.push(MemberConfig { id, ..own });
    Ok(Config {
        node: config::Node { id, data_dir: absolute(&args.data_dir)?, insecure: args.insecure, join: true },
        cluster: config::Cluster { id: cluster_id.to_owned() },
        members,
        events: config::Events::default(),
        engines: None,
        etcd: config::Etcd::default(),
        uplink: config::Uplink::default(),
    })
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| Error::new(Code::CONFIG, format!("\"{}\": {error}", path.display())))
}

/// Writes the whole file or none of it.
fn write(path: &Path, config: &Config) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::new(Code::DISK, format!("cannot write \"{}\": {error}", path.display()))
            .hint("run the same command again; it gets the same id")
    };
    let text = toml::to_string(config).expect("a configuration is plain data");
    // Checked as the node will check it, so that what is written can be started.
    Config::parse(&text, &path.display().to_string())?;
    let temporary = path.with_extension("toml.tmp");
    let mut file = std::fs::File::create(&temporary).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}
