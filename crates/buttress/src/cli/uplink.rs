//! `buttress uplink …`

use buttress_core::Error;
use http::Method;
use serde_json::{Value, json};

use super::{
    args::{Output, Server, UplinkCommand},
    show,
};
use crate::client::{Client, segment};

/// `NAME[:PRIORITY][=TARGET]`.
fn topic(text: &str, priority: &str) -> Value {
    let (name, target) = text.split_once('=').map_or((text, None), |(name, target)| (name, Some(target)));
    let (name, priority) = name.split_once(':').unwrap_or((name, priority));
    let mut topic = json!({"topic": name, "priority": priority});
    if let Some(target) = target {
        topic["target"] = json!(target);
    }
    topic
}

fn path(name: &str, verb: &str) -> String {
    format!("/v1/uplinks/{}{verb}", segment(name))
}

fn said(server: &Server, answer: &Value, text: &str) -> Result<(), Error> {
    match server.output {
        Output::Json => show::json(answer).map_err(show::output_failed),
        Output::Table => {
            eprintln!("{text}");
            Ok(())
        }
    }
}

pub async fn run(command: UplinkCommand) -> Result<(), Error> {
    match command {
        UplinkCommand::Create {
            name,
            topics,
            to,
            edge,
            priority,
            rate,
            bound,
            from,
            oversized,
            create_topics,
            parcel,
            server,
        } => {
            let topics: Vec<Value> = topics.iter().map(|text| topic(text, &priority)).collect();
            let mut body = json!({"name": name, "to": to, "topics": topics, "from": from, "oversized": oversized,
                "create_topics": create_topics});
            let given = body.as_object_mut().expect("an object was written above");
            given.extend(edge.map(|v| ("edge".into(), v.into())));
            given.extend(rate.map(|v| ("rate".into(), v.into())));
            given.extend(bound.map(|v| ("bound_bytes".into(), v.into())));
            given.extend(parcel.map(|v| ("parcel_bytes".into(), v.into())));
            let answer = Client::new(&server.server)?.send_json(Method::POST, "/v1/uplinks", &body).await?;
            said(&server, &answer, &format!("made uplink {name} to {to}\nnext: buttress uplink status {name}"))
        }
        UplinkCommand::List { server } => {
            let answer = on_runner(&server, "/v1/uplinks", |answer| &answer["uplinks"][0]).await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed),
                Output::Table => {
                    let uplinks = answer["uplinks"].as_array().cloned().unwrap_or_default();
                    let rows: Vec<Vec<String>> = uplinks.iter().map(summary).collect();
                    show::table(&["UPLINK", "TO", "TOPICS", "STATE", "LAG", "SENT", "GAPS"], &rows)
                        .map_err(show::output_failed)
                }
            }
        }
        UplinkCommand::Status { name, server } => {
            let answer = on_runner(&server, &path(&name, ""), |answer| answer).await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed),
                Output::Table => status(&answer).map_err(show::output_failed),
            }
        }
        UplinkCommand::Pause { name, server } => {
            let answer = post(&server, &path(&name, "/pause"), &json!({})).await?;
            said(
                &server,
                &answer,
                &format!("paused uplink {name}; its records wait here\nnext: buttress uplink resume {name}"),
            )
        }
        UplinkCommand::Resume { name, server } => {
            let answer = post(&server, &path(&name, "/resume"), &json!({})).await?;
            said(&server, &answer, &format!("uplink {name} goes on\nnext: buttress uplink status {name}"))
        }
        UplinkCommand::Adopt { name, topic, from, server } => {
            let from = from.parse::<i64>().map_or_else(|_| json!(from), |offset| json!(offset));
            let mut body = json!({"from": from});
            if let Some(topic) = topic {
                body["topic"] = json!(topic);
            }
            let answer = post(&server, &path(&name, "/adopt"), &body).await?;
            said(&server, &answer, &format!("uplink {name} goes on with this log\nnext: buttress uplink status {name}"))
        }
        UplinkCommand::Delete { name, server } => {
            let client = Client::new(&server.server)?;
            let answer = client.send_bytes(Method::DELETE, &path(&name, ""), bytes::Bytes::new()).await?;
            said(
                &server,
                &answer,
                &format!("deleted uplink {name}; records stay where they are\nnext: buttress uplink list"),
            )
        }
    }
}

async fn post(server: &Server, path: &str, body: &Value) -> Result<Value, Error> {
    Client::new(&server.server)?.send_json(Method::POST, path, body).await
}

/// What runs is known where it runs, so the node that says so is asked again there.
async fn on_runner(server: &Server, path: &str, of: impl Fn(&Value) -> &Value) -> Result<Value, Error> {
    let answer = Client::new(&server.server)?.get(path).await?;
    let uplink = of(&answer);
    if uplink["runs_here"] == json!(false)
        && let Some(runner) = uplink["runs_on"]["http"].as_str()
        && let Ok(answer) = Client::new(&format!("http://{runner}"))?.get(path).await
    {
        return Ok(answer);
    }
    Ok(answer)
}

fn lanes(uplink: &Value) -> &[Value] {
    uplink["lanes"].as_array().map_or(&[], Vec::as_slice)
}

fn sum(uplink: &Value, of: impl Fn(&Value) -> Option<u64>) -> u64 {
    lanes(uplink).iter().filter_map(of).sum()
}

/// What is wrong anywhere, or what most lanes do.
fn state(uplink: &Value) -> String {
    if uplink["runs_here"] != json!(true) {
        return "not here".into();
    }
    if let Some(code) = uplink["error"]["code"].as_str() {
        return format!("stopped {code}");
    }
    let trouble = lanes(uplink).iter().find(|lane| !lane["error"].is_null());
    match trouble {
        Some(lane) => format!("{} {}", show::cell(&lane["state"]), show::cell(&lane["error"]["code"])),
        None => lanes(uplink).first().map_or("-".into(), |lane| show::cell(&lane["state"])),
    }
}

/// An address without what it says of TLS and passwords, which `uplink status` shows.
fn place(to: &str) -> &str {
    to.split_once('?').map_or(to, |(place, _)| place)
}

fn summary(uplink: &Value) -> Vec<String> {
    let topics = uplink["topics"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<String> = topics.iter().map(|topic| show::cell(&topic["topic"])).collect();
    vec![
        show::cell(&uplink["name"]),
        place(&show::cell(&uplink["to"])).to_owned(),
        names.join(","),
        state(uplink),
        sum(uplink, |lane| lane["lag_records"].as_u64()).to_string(),
        sum(uplink, |lane| lane["sent"]["records"].as_u64()).to_string(),
        sum(uplink, |lane| lane["gaps"]["records"].as_u64()).to_string(),
    ]
}

/// `2h`, `5m`, `12s` or `300ms`.
fn span(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms}ms"),
        1_000..=119_999 => format!("{}s", ms / 1_000),
        120_000..=7_199_999 => format!("{}m", ms / 60_000),
        7_200_000..=172_799_999 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

fn status(uplink: &Value) -> std::io::Result<()> {
    eprintln!("uplink   {}", show::cell(&uplink["name"]));
    eprintln!("to       {}, as {}", show::cell(&uplink["to"]), show::cell(&uplink["edge"]));
    eprintln!("state    {}", state(uplink));
    if let Some(rate) = uplink["rate"].as_u64() {
        eprintln!("rate     at most {}/s", show::bytes(rate));
    }
    let rows: Vec<Vec<String>> = lanes(uplink)
        .iter()
        .map(|lane| {
            let number = |key: &str| lane[key].as_u64();
            vec![
                format!("{}/{}", show::cell(&lane["topic"]), show::cell(&lane["partition"])),
                show::cell(&lane["priority"]),
                show::cell(&lane["state"]),
                show::cell(&lane["next"]),
                show::cell(&lane["lag_records"]),
                number("oldest_age_ms").map_or("-".into(), span),
                show::bytes(number("lag_bytes").unwrap_or(0)),
                number("bound_bytes").map_or("-".into(), show::bytes),
                number("full_in_ms").map_or("-".into(), span),
                show::cell(&lane["sent"]["records"]),
                show::cell(&lane["gaps"]["records"]),
            ]
        })
        .collect();
    let header =
        ["LANE", "PRIORITY", "STATE", "NEXT", "WAITING", "OLDEST", "USED", "BOUND", "FULL IN", "SENT", "GAP RECORDS"];
    show::table(&header, &rows)?;
    let whole = Some(&uplink["error"]).filter(|error| !error.is_null());
    let each = lanes(uplink).iter().map(|lane| &lane["error"]).filter(|error| !error.is_null());
    let mut told: Vec<String> = Vec::new();
    for error in whole.into_iter().chain(each) {
        let mut text = format!("error: {} [{}]", show::cell(&error["message"]), show::cell(&error["code"]));
        if let Some(hint) = error["hint"].as_str() {
            text += &format!("\nhint: {hint}");
        }
        // Lanes of one uplink mostly have the same trouble.
        if !told.contains(&text) {
            eprintln!("{text}");
            if let Some(since) = error["since_ms"].as_u64() {
                let retry = error["retry_in_ms"].as_u64().map_or(String::new(), |ms| format!(", next in {}", span(ms)));
                eprintln!("      for {}, {} attempts{retry}", span(since), show::cell(&error["attempts"]));
            }
            told.push(text);
        }
    }
    let mut errors = lanes(uplink).iter().map(|lane| &lane["error"]).filter(|error| !error.is_null());
    if let Some(error) = whole.or_else(|| errors.next()) {
        eprintln!("next: buttress explain {}", show::cell(&error["code"]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_read_with_its_priority_and_its_target() {
        assert_eq!(topic("a", "low"), json!({"topic": "a", "priority": "low"}));
        assert_eq!(topic("a:high", "low"), json!({"topic": "a", "priority": "high"}));
        assert_eq!(topic("a:high=b", "low"), json!({"topic": "a", "priority": "high", "target": "b"}));
        assert_eq!(topic("a=b", "low"), json!({"topic": "a", "priority": "low", "target": "b"}));
    }
}
