//! `buttress cluster …`

use buttress_core::Error;

use super::{
    args::{ClusterCommand, Output},
    show,
};
use crate::client::Client;

pub async fn run(command: ClusterCommand) -> Result<(), Error> {
    let ClusterCommand::Status { server } = command;
    let answer = Client::new(&server.server)?.get("/v1/cluster").await?;
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
        rows.push(vec![text("name"), state.into(), applied, text("http"), text("kafka"), text("mqtt")]);
    }
    show::table(&["NODE", "STATE", "APPLIED", "HTTP", "KAFKA", "MQTT"], &rows).map_err(show::output_failed)
}

/// Members are shown by name; the API speaks of ids.
fn leader_name(view: &serde_json::Value) -> String {
    let members = view["members"].as_array().into_iter().flatten();
    members.filter(|m| m["id"] == view["leader"]).map(|m| show::cell(&m["name"])).next().unwrap_or_else(|| "-".into())
}
