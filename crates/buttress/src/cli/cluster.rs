//! `buttress cluster …`, but for `join`.

use std::time::Duration;

use buttress_core::{Code, Error};
use http::Method;
use serde_json::{Value, json};

use super::{
    args::{ClusterCommand, Output, Server},
    show,
};
use crate::client::{Client, segment};

/// How often a member that has to catch up is asked for again.
const WAIT_POLL: Duration = Duration::from_millis(500);

pub async fn run(command: ClusterCommand) -> Result<(), Error> {
    match command {
        ClusterCommand::Status { server } => status(&server).await,
        ClusterCommand::Join(_) => unreachable!("joining may run a node, and is not for this runtime"),
        ClusterCommand::Remove { member, server } => {
            let path = format!("/v1/cluster/members/{}", segment(&member));
            let answer = Client::new(&server.server)?.send_json(Method::DELETE, &path, &Value::Null).await?;
            done(&server, &answer, &format!("{member} is no member any more"))
        }
        ClusterCommand::Promote { member, force, wait, server } => {
            let path = format!("/v1/cluster/members/{}/promote", segment(&member));
            let answer = when_caught_up(&server, &path, &json!({ "force": force }), wait).await?;
            done(&server, &answer, &format!("{} is a voter", show::cell(&answer["name"])))
        }
        ClusterCommand::Replace { member, with, force, wait, server } => {
            let path = format!("/v1/cluster/members/{}/replace", segment(&member));
            let answer = when_caught_up(&server, &path, &json!({ "with": with, "force": force }), wait).await?;
            done(&server, &answer, &format!("{} has taken the place of {member}", show::cell(&answer["name"])))
        }
        ClusterCommand::Transfer { member, server } => {
            let body = json!({ "to": member });
            let answer = Client::new(&server.server)?.send_json(Method::POST, "/v1/cluster/transfer", &body).await?;
            done(&server, &answer, &format!("{} leads", show::cell(&answer["name"])))
        }
    }
}

/// Asks again while the member is behind.
async fn when_caught_up(server: &Server, path: &str, body: &Value, wait_s: u64) -> Result<Value, Error> {
    let client = Client::new(&server.server)?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(wait_s);
    let mut told = String::new();
    loop {
        match client.send_json(Method::POST, path, body).await {
            Err(error) if error.code == Code::LAGGING && error.retryable && tokio::time::Instant::now() < deadline => {
                if told != error.message {
                    eprintln!("waiting: {}", error.message);
                }
                told = error.message;
                tokio::time::sleep(WAIT_POLL).await;
            }
            other => return other,
        }
    }
}

fn done(server: &Server, answer: &Value, what: &str) -> Result<(), Error> {
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        eprintln!("warning: {}", show::cell(warning));
    }
    match server.output {
        Output::Json => show::json(answer).map_err(show::output_failed),
        Output::Table => {
            let already = if answer["already"] == true { " already" } else { "" };
            eprintln!("{what}{already}\nnext: buttress cluster status --server {}", server.server);
            Ok(())
        }
    }
}

async fn status(server: &Server) -> Result<(), Error> {
    let mut answer = Client::new(&server.server)?.get("/v1/cluster").await?;
    add_progress(&mut answer).await;
    if server.output == Output::Json {
        return show::json(&answer).map_err(show::output_failed);
    }
    eprintln!(
        "cluster {}  leader {}  term {}",
        show::cell(&answer["cluster_id"]),
        leader_name(&answer),
        answer["term"]
    );
    let mut rows = Vec::new();
    for member in answer["members"].as_array().into_iter().flatten() {
        let seen = match Client::new(&show::cell(&member["http"])) {
            Ok(client) => client.get("/v1/cluster").await,
            Err(error) => Err(error),
        };
        let (state, applied) = match &seen {
            Ok(view) if view["leader"] == member["id"] => ("leader", show::cell(&view["applied"])),
            Ok(view) if view["leader"].is_null() => ("no leader", show::cell(&view["applied"])),
            Ok(view) => ("follower", show::cell(&view["applied"])),
            Err(_) => ("unreachable", "-".into()),
        };
        let text = |key: &str| show::cell(&member[key]);
        let lag = if member["snapshot"] == true { "snapshot".into() } else { text("lag") };
        rows.push(vec![
            text("name"),
            text("role"),
            state.into(),
            applied,
            lag,
            text("http"),
            text("kafka"),
            text("mqtt"),
            text("etcd"),
        ]);
    }
    show::table(&["NODE", "ROLE", "STATE", "APPLIED", "LAG", "HTTP", "KAFKA", "MQTT", "ETCD"], &rows)
        .map_err(show::output_failed)
}

/// How far each member is, which only the leader knows; left out where it cannot be asked.
async fn add_progress(view: &mut Value) {
    if view["leader"].is_null() || view["leader"] == view["node"] {
        return;
    }
    let members = view["members"].as_array().into_iter().flatten();
    let Some(leader) = members.filter(|m| m["id"] == view["leader"]).map(|m| show::cell(&m["http"])).next() else {
        return;
    };
    let Ok(client) = Client::new(&leader) else { return };
    let Ok(theirs) = client.get("/v1/cluster").await else { return };
    for member in view["members"].as_array_mut().into_iter().flatten() {
        let mut found = theirs["members"].as_array().into_iter().flatten().filter(|m| m["id"] == member["id"]);
        let Some(progress) = found.next() else { continue };
        for key in ["matched", "lag", "reachable", "snapshot", "sync_us"] {
            member[key] = progress[key].clone();
        }
    }
}

/// Members are shown by name; the API speaks of ids.
fn leader_name(view: &Value) -> String {
    let members = view["members"].as_array().into_iter().flatten();
    members.filter(|m| m["id"] == view["leader"]).map(|m| show::cell(&m["name"])).next().unwrap_or_else(|| "-".into())
}
