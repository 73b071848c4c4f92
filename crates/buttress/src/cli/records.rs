//! `buttress produce` and `buttress consume`.

use std::{
    io::{self, BufRead, Write},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use buttress_core::{Code, Error};
use http::Method;
use serde_json::{Value, json};

use super::{
    args::{ConsumeArgs, Output, ProduceArgs},
    show,
};
use crate::client::{Client, one_line, segment};

/// Records of one request: small enough to answer fast, large enough to share commits.
const BATCH_RECORDS: usize = 500;
/// Bytes of lines after which a request is sent, well below what a node takes once they are in base64.
const BATCH_BYTES: usize = 1024 * 1024;
const FOLLOW_POLL: Duration = Duration::from_millis(200);
const V2_BINARY: (&str, &str) = ("content-type", "application/vnd.kafka.binary.v2+json");

pub async fn produce(args: ProduceArgs) -> Result<(), Error> {
    let client = Client::new(&args.server.server)?;
    let input: Box<dyn BufRead> = match &args.file {
        None => Box::new(io::stdin().lock()),
        Some(path) => Box::new(io::BufReader::new(std::fs::File::open(path).map_err(|error| {
            Error::new(Code::DATA_FILE, format!("cannot read \"{}\": {error}", path.display())).hint("name a file")
        })?)),
    };
    let (mut batch, mut bytes, mut sent) = (Vec::new(), 0, 0);
    for line in input.lines() {
        let line = line.map_err(|error| Error::new(Code::DATA_FILE, format!("cannot read the input: {error}")))?;
        if line.is_empty() {
            continue;
        }
        // Every byte of the line arrives as it is, JSON or not.
        batch.push(match &args.key {
            Some(key) => json!({"key": BASE64.encode(key), "value": BASE64.encode(&line)}),
            None => json!({ "value": BASE64.encode(&line) }),
        });
        bytes += line.len();
        if batch.len() == BATCH_RECORDS || bytes >= BATCH_BYTES {
            sent += send(&client, &args.topic, &mut batch, sent).await?;
            bytes = 0;
        }
    }
    sent += send(&client, &args.topic, &mut batch, sent).await?;
    match args.server.output {
        Output::Json => show::json(&json!({ "acknowledged": sent })).map_err(show::output_failed)?,
        Output::Table => eprintln!("{sent} records acknowledged\nnext: buttress consume {} --max 10", args.topic),
    }
    Ok(())
}

/// Sends the batch; `before` records of the input are acknowledged already.
async fn send(client: &Client, topic: &str, batch: &mut Vec<Value>, before: usize) -> Result<usize, Error> {
    if batch.is_empty() {
        return Ok(0);
    }
    let body = json!({ "records": std::mem::take(batch) }).to_string();
    let answer = client.send(Method::POST, &format!("/topics/{}", segment(topic)), &[V2_BINARY], body.into()).await?;
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let offsets = answer["offsets"].as_array().cloned().unwrap_or_default();
    let Some(first) = offsets.iter().position(|o| !o["error_code"].is_null()) else {
        return Ok(offsets.len());
    };
    let refused = offsets.iter().filter(|o| !o["error_code"].is_null()).count();
    let why = one_line(&show::cell(&offsets[first]["error"]));
    let message = format!("record {} of the input was refused: {}", before + first + 1, why.message);
    let hint = format!(
        "{} of the {} records sent are acknowledged, {refused} refused; none behind them was sent",
        before + offsets.len() - refused,
        before + offsets.len()
    );
    Err(Error::new(why.code, message).hint(hint))
}

pub async fn consume(args: ConsumeArgs) -> Result<(), Error> {
    let client = Client::new(&args.server.server)?;
    let topic = client.get(&format!("/v1/topics/{}", segment(&args.topic))).await?;
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
            let topic = segment(&args.topic);
            let path = format!("/v1/topics/{topic}/partitions/{number}/records?offset={at}&max={max}");
            let answer = client.get(&path).await?;
            for record in answer["records"].as_array().into_iter().flatten() {
                print(&args, *number, record).map_err(show::output_failed)?;
                // A batch that cannot be unpacked stands for all its records.
                let last = [&record["last_offset"], &record["offset"]].into_iter().find_map(Value::as_i64);
                *at = last.unwrap_or(*at).max(*at) + 1;
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
    let mut out = io::stdout().lock();
    writeln!(out, "{partition}/{}  {}  {}", record["offset"], text(record, "key"), text(record, "value"))
}

/// A key or value for people: text as it is, other bytes in base64, and why there is none where a record is unreadable.
fn text(record: &Value, name: &str) -> String {
    match (&record[name], &record[format!("{name}_base64")], &record["error"]) {
        (Value::Null, Value::String(bytes), _) => format!("base64:{bytes}"),
        (Value::Null, _, Value::String(error)) if name == "value" => format!("unreadable: {error}"),
        (text, ..) => show::cell(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_shown_whatever_they_are() {
        assert_eq!(text(&json!({"key": "k"}), "key"), "k");
        assert_eq!(text(&json!({"key": null}), "key"), "-");
        assert_eq!(text(&json!({"value_base64": "/w=="}), "value"), "base64:/w==");
        let broken = json!({"offset": 4, "last_offset": 9, "error": "compressed records are not valid gzip"});
        assert_eq!(text(&broken, "value"), "unreadable: compressed records are not valid gzip");
        assert_eq!(text(&broken, "key"), "-");
    }
}
