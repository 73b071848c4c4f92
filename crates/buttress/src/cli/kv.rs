//! `buttress kv`: keys, and whole entries, over the native HTTP API.

use std::io::{Read, Write};

use buttress_core::{Code, Error};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::{
    args::{KvCommand, Output, Server},
    show,
};
use crate::client::{Client, segment};

pub async fn run(command: KvCommand) -> Result<(), Error> {
    match command {
        KvCommand::Get { key, prefix, revision, serializable, server } => {
            let client = Client::new(&server.server)?;
            let how = if serializable { "serializable" } else { "linearizable" };
            let at = revision.map_or(String::new(), |revision| format!("&revision={revision}"));
            if prefix {
                list(&client, &key, how, &at, server.output).await
            } else {
                let found = client.get(&format!("/v1/keys/{}?consistency={how}{at}", segment(&key))).await?;
                match server.output {
                    Output::Json => show::json(&found).map_err(show::output_failed),
                    Output::Table => print_value(&found),
                }
            }
        }
        KvCommand::Put { key, value, server } => {
            commit(&server, &json!({"puts": [{"key": key, "value": value}]})).await?;
            eprintln!("next: buttress kv get {key}");
            Ok(())
        }
        KvCommand::Del { key, server } => commit(&server, &json!({"deletes": [key]})).await,
        KvCommand::Watch { key, prefix, from, server } => watch(&server, &key, prefix, from).await,
        KvCommand::Txn { file, server } => {
            let read = match &file {
                Some(path) => std::fs::read(path),
                None => {
                    let mut bytes = Vec::new();
                    std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
                }
            };
            let name = file.as_ref().map_or("standard input".into(), |path| format!("\"{}\"", path.display()));
            let text = read.map_err(|error| Error::new(Code::DISK, format!("cannot read {name}: {error}")))?;
            let entry: Value = serde_json::from_slice(&text).map_err(|error| {
                Error::new(Code::BAD_REQUEST, format!("{name} is not JSON: {error}"))
                    .hint("see POST /v1/entries in docs/reference/http.md")
            })?;
            commit(&server, &entry).await
        }
    }
}

/// Shows changes as they come; returns only when they cannot come any more, and says from where to go on.
async fn watch(server: &Server, key: &str, prefix: bool, from: Option<u64>) -> Result<(), Error> {
    let what = if prefix { "prefix" } else { "key" };
    let from = from.map_or(String::new(), |from| format!("&from={from}"));
    let path = format!("/v1/watch?{what}={}{from}", segment(key));
    let mut pending = Vec::new();
    let mut last = None;
    let ended = Client::new(&server.server)?
        .download(&path, |piece| {
            pending.extend_from_slice(&piece);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                // An empty line says that the server is there.
                if line.len() > 1 {
                    last = show_changes(&line, server.output)?.or(last);
                }
            }
            if pending.len() > WATCH_LINE_BYTES_MAX {
                let message = format!("a line of the answer is longer than {WATCH_LINE_BYTES_MAX} bytes");
                return Err(Error::new(Code::TOO_LARGE, message));
            }
            Ok(())
        })
        .await;
    let error = ended.err().unwrap_or_else(|| Error::new(Code::STOPPED, "the node ended the watch").retryable());
    let Some(last) = last else { return Err(error) };
    let said = error.hint.as_ref().map_or(String::new(), |hint| format!("{hint}; "));
    Err(error.hint(format!("{said}go on with --from {}", last + 1)))
}

/// The largest entry as JSON, with its values in base64.
const WATCH_LINE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// One line of a watch; gives its revision.
fn show_changes(line: &[u8], output: Output) -> Result<Option<u64>, Error> {
    let changes: Value = serde_json::from_slice(line)
        .map_err(|error| Error::new(Code::UNREACHABLE, format!("a line of the answer is not JSON: {error}")))?;
    if let Some(error) = changes.get("error") {
        let text = |name: &str| error[name].as_str().unwrap_or_default();
        let code = Code::ALL.iter().map(|(code, _)| *code).find(|code| code.0 == text("code"));
        let told = Error::new(code.unwrap_or(Code::BAD_REQUEST), text("message"));
        return Err(if text("hint").is_empty() { told } else { told.hint(text("hint")) });
    }
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => out.write_all(line).map_err(show::output_failed)?,
        Output::Table => {
            for event in changes["events"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let key = bytes_of(event, "key").escape_ascii().to_string();
                let (revision, kind) = (&changes["revision"], show::cell(&event["type"]));
                match event["type"] == "put" {
                    true => writeln!(out, "{revision}  {kind}  {key}  {}", bytes_of(event, "value").escape_ascii()),
                    false => writeln!(out, "{revision}  {kind}  {key}"),
                }
                .map_err(show::output_failed)?;
            }
        }
    }
    out.flush().map_err(show::output_failed)?;
    Ok(changes["revision"].as_u64())
}

async fn commit(server: &Server, entry: &Value) -> Result<(), Error> {
    let client = Client::new(&server.server)?;
    let done = client.send_json(Method::POST, "/v1/entries", entry).await?;
    match server.output {
        Output::Json => show::json(&done).map_err(show::output_failed)?,
        Output::Table => {
            let mut out = std::io::stdout().lock();
            writeln!(out, "revision {}", show::cell(&done["revision"])).map_err(show::output_failed)?;
            for append in done["appends"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let [topic, partition, outcome, offset] =
                    ["topic", "partition", "outcome", "base_offset"].map(|name| show::cell(&append[name]));
                writeln!(out, "{outcome} {topic}/{partition} at {offset}").map_err(show::output_failed)?;
            }
        }
    }
    Ok(())
}

/// The value as it is, and a line end: what a shell wants.
fn print_value(found: &Value) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let mut value = bytes_of(found, "value").to_vec();
    value.push(b'\n');
    out.write_all(&value).map_err(show::output_failed)
}

fn bytes_of(found: &Value, name: &str) -> Bytes {
    use base64::Engine as _;
    match found[name].as_str() {
        Some(text) => text.to_owned().into(),
        None => {
            let text = found[format!("{name}_base64")].as_str().unwrap_or_default();
            base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default().into()
        }
    }
}

async fn list(client: &Client, prefix: &str, how: &str, at: &str, output: Output) -> Result<(), Error> {
    let (mut start, mut at) = (String::new(), at.to_owned());
    let mut rows = Vec::new();
    loop {
        let page = client.get(&format!("/v1/keys?prefix={}&consistency={how}{at}{start}", segment(prefix))).await?;
        for key in page["keys"].as_array().map(Vec::as_slice).unwrap_or_default() {
            match output {
                Output::Json => show::json(key).map_err(show::output_failed)?,
                Output::Table => rows.push(vec![
                    bytes_of(key, "key").escape_ascii().to_string(),
                    bytes_of(key, "value").escape_ascii().to_string(),
                    show::cell(&key["mod_revision"]),
                    show::cell(&key["version"]),
                    show::cell(&key["lease"]),
                ]),
            }
        }
        if page["more"] != true {
            break;
        }
        // All pages are of one revision.
        at = format!("&revision={}", page["revision"]);
        let next: String = bytes_of(&page, "next").iter().map(|byte| format!("%{byte:02X}")).collect();
        start = format!("&start={next}");
    }
    match output {
        Output::Json => Ok(()),
        Output::Table => {
            show::table(&["KEY", "VALUE", "MODIFIED", "VERSION", "LEASE"], &rows).map_err(show::output_failed)
        }
    }
}
