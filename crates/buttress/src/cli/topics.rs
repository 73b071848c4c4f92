//! `buttress topic …`

use buttress_core::{Code, Error};
use http::Method;
use serde_json::json;

use super::{
    args::{Output, TopicCommand},
    show,
};
use crate::client::{Client, segment};

pub async fn run(command: TopicCommand) -> Result<(), Error> {
    match command {
        TopicCommand::Create { name, partitions, retention_ms, retention_bytes, sequence, engine, server } => {
            let sequence_fields = match sequence.as_deref().map(|s| s.split_once(',')) {
                None => None,
                Some(Some((producer, number))) => Some([producer, number]),
                Some(None) => {
                    let message = format!("--sequence \"{}\" is not PRODUCER,NUMBER", sequence.unwrap_or_default());
                    return Err(Error::new(Code::TOPIC_INVALID, message).hint("for example --sequence machine,seq"));
                }
            };
            let mut body = json!({"name": name, "partitions": partitions});
            let settings = body.as_object_mut().expect("an object was written above");
            settings.extend(retention_ms.map(|v| ("retention_ms".into(), v.into())));
            settings.extend(retention_bytes.map(|v| ("retention_bytes".into(), v.into())));
            settings.extend(sequence_fields.map(|v| ("sequence_fields".into(), json!(v))));
            settings.extend(engine.map(|v| ("engine".into(), json!(v))));
            let answer = Client::new(&server.server)?.send_json(Method::POST, "/v1/topics", &body).await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => {
                    eprintln!("created topic {name} with {partitions} partitions\nnext: buttress produce {name}");
                }
            }
        }
        TopicCommand::List { server } => {
            let answer = Client::new(&server.server)?.get("/v1/topics").await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => {
                    let rows: Vec<Vec<String>> = topics(&answer).iter().map(|topic| summary(topic)).collect();
                    show::table(&["TOPIC", "PARTITIONS", "RECORDS", "SIZE"], &rows).map_err(show::output_failed)?;
                }
            }
        }
        TopicCommand::Describe { name, server } => {
            let answer = Client::new(&server.server)?.get(&format!("/v1/topics/{}", segment(&name))).await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => describe(&answer).map_err(show::output_failed)?,
            }
        }
        TopicCommand::Delete { name, server } => {
            let client = Client::new(&server.server)?;
            let path = format!("/v1/topics/{}", segment(&name));
            let answer = client.send_bytes(Method::DELETE, &path, bytes::Bytes::new()).await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => eprintln!("deleted topic {name} and its records\nnext: buttress topic list"),
            }
        }
    }
    Ok(())
}

fn topics(answer: &serde_json::Value) -> Vec<&serde_json::Value> {
    let list = answer.get("topics").unwrap_or(answer);
    list.as_array().map(|list| list.iter().collect()).unwrap_or_default()
}

fn partitions(topic: &serde_json::Value) -> &[serde_json::Value] {
    topic["partitions"].as_array().map_or(&[], Vec::as_slice)
}

fn records(partition: &serde_json::Value) -> i64 {
    partition["end"].as_i64().unwrap_or(0) - partition["start"].as_i64().unwrap_or(0)
}

fn summary(topic: &serde_json::Value) -> Vec<String> {
    let partitions = partitions(topic);
    let size: u64 = partitions.iter().filter_map(|p| p["bytes"].as_u64()).sum();
    let count: i64 = partitions.iter().map(records).sum();
    vec![show::cell(&topic["name"]), partitions.len().to_string(), count.to_string(), show::bytes(size)]
}

fn describe(topic: &serde_json::Value) -> std::io::Result<()> {
    let settings = &topic["settings"];
    let fields = ["name", "id", "engine"].map(|key| (key, &topic[key]));
    let kept = ["retention_ms", "retention_bytes", "sequence_fields"].map(|key| (key, &settings[key]));
    for (key, value) in fields.into_iter().chain(kept).filter(|(_, value)| !value.is_null()) {
        eprintln!("{key:<16} {}", show::cell(value));
    }
    let rows: Vec<Vec<String>> = partitions(topic)
        .iter()
        .enumerate()
        .map(|(at, p)| {
            vec![
                at.to_string(),
                show::cell(&p["start"]),
                show::cell(&p["end"]),
                records(p).to_string(),
                show::bytes(p["bytes"].as_u64().unwrap_or(0)),
            ]
        })
        .collect();
    show::table(&["PARTITION", "START", "END", "RECORDS", "SIZE"], &rows)
}
