//! `buttress produce` and `buttress consume`.

use std::{
    io::{self, BufRead, Write},
    time::Duration,
};

use buttress_core::{Code, Error};
use http::Method;
use serde_json::{Value, json};

use super::{
    args::{ConsumeArgs, Output, ProduceArgs},
    show,
};
use crate::client::Client;

/// Records of one request: small enough to answer fast, large enough to share commits.
const BATCH_RECORDS: usize = 500;
const FOLLOW_POLL: Duration = Duration::from_millis(200);
const V2_JSON: (&str, &str) = ("content-type", "application/vnd.kafka.json.v2+json");

pub async fn produce(args: ProduceArgs) -> Result<(), Error> {
    let client = Client::new(&args.server.server)?;
    let input: Box<dyn BufRead> = match &args.file {
        None => Box::new(io::stdin().lock()),
        Some(path) => Box::new(io::BufReader::new(std::fs::File::open(path).map_err(|error| {
            Error::new(Code::DATA_FILE, format!("cannot read \"{}\": {error}", path.display())).hint("name a file")
        })?)),
    };
    let (mut batch, mut sent) = (Vec::new(), 0);
    for line in input.lines() {
        let line = line.map_err(|error| Error::new(Code::DATA_FILE, format!("cannot read the input: {error}")))?;
        if line.is_empty() {
            continue;
        }
        // A line that is JSON is sent as what it is; anything else as a string.
        let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
        batch.push(match &args.key {
            Some(key) => json!({"key": key, "value": value}),
            None => json!({ "value": value }),
        });
        if batch.len() == BATCH_RECORDS {
            sent += send(&client, &args.topic, &mut batch).await?;
        }
    }
    sent += send(&client, &args.topic, &mut batch).await?;
    match args.server.output {
        Output::Json => show::json(&json!({ "acknowledged": sent })).map_err(show::output_failed)?,
        Output::Table => eprintln!("{sent} records acknowledged\nnext: buttress consume {} --max 10", args.topic),
    }
    Ok(())
}

async fn send(client: &Client, topic: &str, batch: &mut Vec<Value>) -> Result<usize, Error> {
    if batch.is_empty() {
        return Ok(0);
    }
    let body = json!({ "records": std::mem::take(batch) }).to_string();
    let answer = client.send(Method::POST, &format!("/topics/{topic}"), &[V2_JSON], body.into()).await?;
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let offsets = answer["offsets"].as_array().cloned().unwrap_or_default();
    match offsets.iter().find(|o| !o["error_code"].is_null()) {
        None => Ok(offsets.len()),
        Some(failed) => {
            Err(Error::new(Code::RECORD_INVALID, format!("a record was refused: {}", show::cell(&failed["error"])))
                .hint("the records before it in the input are acknowledged"))
        }
    }
}

pub async fn consume(args: ConsumeArgs) -> Result<(), Error> {
    let client = Client::new(&args.server.server)?;
    let topic = client.get(&format!("/v1/topics/{}", args.topic)).await?;
    let partitions = topic["partitions"].as_array().cloned().unwrap_or_default();
    let mut positions = Vec::new();
    for (number, partition) in partitions.iter().enumerate() {
        if args.partition.is_some_and(|wanted| wanted as usize != number) {
            continue;
        }
        let at = match args.from.as_str() {
            "earliest" => partition["start"].as_i64().unwrap_or(0),
            "latest" => partition["end"].as_i64().unwrap_or(0),
            offset => offset.parse().map_err(|_| {
                Error::new(Code::BAD_REQUEST, format!("--from \"{offset}\" is not earliest, latest or an offset"))
                    .hint("for example --from 100")
            })?,
        };
        positions.push((number, at));
    }
    if positions.is_empty() {
        let message = format!("topic \"{}\" has no partition {}", args.topic, args.partition.unwrap_or(0));
        let hint = format!("partitions: 0 to {}", partitions.len().saturating_sub(1));
        return Err(Error::new(Code::TOPIC_UNKNOWN, message).hint(hint));
    }
    let mut left = args.max.unwrap_or(u64::MAX);
    loop {
        let mut grew = false;
        for (number, at) in &mut positions {
            if left == 0 {
                return Ok(());
            }
            let max = left.min(BATCH_RECORDS as u64);
            let path = format!("/v1/topics/{}/partitions/{number}/records?offset={at}&max={max}", args.topic);
            let answer = client.get(&path).await?;
            for record in answer["records"].as_array().into_iter().flatten() {
                print(&args, *number, record).map_err(show::output_failed)?;
                *at = record["offset"].as_i64().unwrap_or(*at) + 1;
                left -= 1;
                grew = true;
            }
        }
        if left == 0 || (!grew && !args.follow) {
            return Ok(());
        }
        if !grew {
            tokio::time::sleep(FOLLOW_POLL).await;
        }
    }
}

fn print(args: &ConsumeArgs, partition: usize, record: &Value) -> io::Result<()> {
    if args.server.output == Output::Json {
        let mut record = record.clone();
        record["partition"] = partition.into();
        return show::json(&record);
    }
    let text = |key: &str| show::cell(&record[key]);
    let mut out = io::stdout().lock();
    writeln!(out, "{partition}/{}  {}  {}", record["offset"], text("key"), text("value"))
}
