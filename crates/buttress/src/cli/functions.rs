//! `buttress fn …`

use std::path::Path;

use buttress_core::{Code, Error};
use bytes::Bytes;
use http::Method;
use serde_json::json;

use super::{
    args::{FnCommand, Output},
    show,
};
use crate::client::{Client, segment};

pub async fn run(command: FnCommand) -> Result<(), Error> {
    match command {
        FnCommand::Deploy { name, component, topic, max_records, outputs, models, state, routes, server } => {
            let client = Client::new(&server.server)?;
            let component = read_file(&component, Code::COMPONENT_INVALID)?;
            let blob = client.send_bytes(Method::PUT, "/v1/blobs", component.into()).await?;
            let mut manifest = json!({
                "component": blob["digest"],
                "http": !routes.is_empty() || topic.is_none(),
                "routes": routes,
                "grants": {"models": models, "topics": outputs, "state": state},
            });
            if let Some(topic) = &topic {
                manifest["trigger"] = json!({ "topic": topic });
                if let Some(max_records) = max_records {
                    manifest["trigger"]["max_records"] = json!(max_records);
                }
            }
            let answer = client.send_json(Method::PUT, &format!("/v1/functions/{}", segment(&name)), &manifest).await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => {
                    let same = if answer["unchanged"] == true { "; nothing changed" } else { "" };
                    eprintln!("function {name} is deployed as version {}{same}", show::cell(&answer["version"]));
                    for warning in answer["warnings"].as_array().into_iter().flatten() {
                        eprintln!("warning: {}", show::cell(warning));
                    }
                    match topic {
                        Some(topic) => eprintln!("it gets batches of {topic}\nnext: buttress fn logs {name}"),
                        None => eprintln!("next: buttress fn invoke {name} /"),
                    }
                }
            }
        }
        FnCommand::List { server } => {
            let answer = Client::new(&server.server)?.get("/v1/functions").await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => {
                    let list = answer["functions"].as_array().cloned().unwrap_or_default();
                    let rows: Vec<Vec<String>> = list.iter().map(row).collect();
                    show::table(&["FUNCTION", "VERSION", "TOPIC", "ROUTES", "STATE", "COMPONENT"], &rows)
                        .map_err(show::output_failed)?;
                }
            }
        }
        FnCommand::Logs { name, limit, server } => {
            let answer = logs(&Client::new(&server.server)?, &name, limit).await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => {
                    let columns = ["at_ms", "node", "partition", "version", "level", "message"];
                    let list = answer["lines"].as_array().into_iter().flatten();
                    let rows: Vec<Vec<String>> = list
                        .map(|line| columns.map(|key| show::cell(&line[key]).trim_end().to_owned()).into())
                        .collect();
                    show::table(&["AT", "NODE", "PARTITION", "VERSION", "LEVEL", "MESSAGE"], &rows)
                        .map_err(show::output_failed)?;
                    if answer["dropped"] != 0 {
                        eprintln!("{} older lines are dropped", answer["dropped"]);
                    }
                }
            }
        }
        FnCommand::Invoke { name, path, data, server } => {
            let client = Client::new(&server.server)?;
            let path = format!("/fn/{}/{}", segment(&name), path.trim_start_matches('/'));
            let (method, body) = match data {
                Some(data) => (Method::POST, Bytes::from(data)),
                None => (Method::GET, Bytes::new()),
            };
            let answer = client.send(method, &path, &[("content-type", "application/json")], body).await?;
            let mut out = std::io::stdout().lock();
            std::io::Write::write_all(&mut out, &answer).map_err(show::output_failed)?;
            if !answer.ends_with(b"\n") {
                std::io::Write::write_all(&mut out, b"\n").map_err(show::output_failed)?;
            }
        }
    }
    Ok(())
}

/// The latest lines of every node that answers, oldest first: batches run on the leader, calls where they arrive.
async fn logs(client: &Client, name: &str, limit: u32) -> Result<serde_json::Value, Error> {
    let path = format!("/v1/functions/{}/logs?limit={limit}", segment(name));
    // The node that was named must know the function; others may be down.
    let named = client.get(&path).await?;
    let view = client.get("/v1/cluster").await?;
    let (mut lines, mut dropped) = (Vec::new(), 0);
    for member in view["members"].as_array().into_iter().flatten() {
        let answer = match member["id"] == view["node"] {
            true => named.clone(),
            false => match Client::new(&show::cell(&member["http"]))?.get(&path).await {
                Ok(answer) => answer,
                Err(error) => {
                    eprintln!("warning: no lines of {}: {}", show::cell(&member["name"]), error.message);
                    continue;
                }
            },
        };
        dropped += answer["dropped"].as_u64().unwrap_or(0);
        lines.extend(answer["lines"].as_array().into_iter().flatten().map(|line| {
            let mut line = line.clone();
            line["node"] = member["name"].clone();
            line
        }));
    }
    lines.sort_by_key(|line| line["at_ms"].as_u64());
    lines.drain(..lines.len().saturating_sub(limit as usize));
    Ok(json!({"lines": lines, "dropped": dropped}))
}

fn row(function: &serde_json::Value) -> Vec<String> {
    let spec = function.get("spec").unwrap_or(function);
    let routes: Vec<String> = spec["routes"].as_array().into_iter().flatten().map(show::cell).collect();
    vec![
        show::cell(&spec["name"]),
        show::cell(&spec["version"]),
        show::cell(&spec["trigger"]["topic"]),
        if routes.is_empty() { "-".into() } else { routes.join(" ") },
        function.get("state").map_or_else(|| "-".into(), show::cell),
        show::cell(&spec["component"]).chars().take(19).collect(),
    ]
}

/// Reads a file that is to be uploaded.
pub fn read_file(path: &Path, code: Code) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|error| Error::new(code, format!("cannot read \"{}\": {error}", path.display())).hint("name a file"))
}
