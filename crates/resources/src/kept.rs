//! How routes and listeners lie in a ledger: as JSON, each under a key of its own.
//!
//! | key | value | who writes it |
//! |---|---|---|
//! | `/buttress/routes/NAME`, `/buttress/listeners/NAME` | [`Kept`] | whoever applies |
//! | `/buttress/status/routes/NAME/GATEWAY` | [`Status`], with a lease | a gateway that observes the route |
//! | `/buttress/gateways/NAME` | [`Gateway`], with a lease | the gateway itself |
//!
//! An apply reads, plans and writes what it planned in one entry, guarded with the revisions that it read: what somebody
//! else wrote in between is never lost, the entry is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kinds::{Kind, Spec};

/// A resource in a ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// 1 for the first, and one more with every change of the spec; labels do not count.
    pub generation: u64,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// As [`canonical`] has it.
    pub spec: Value,
}

/// What a gateway says of a route or a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the resource as the gateway has taken it up; a lower one than the resource's: it is not there yet, or refused.
    pub observed_generation: u64,
    pub gateway: String,
    /// Requests are served as this generation says.
    pub ready: bool,
    /// Why not, or what is worth knowing; empty: nothing.
    #[serde(default)]
    pub message: String,
}

/// Where a gateway is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    pub name: String,
    /// The machine's name, which says whose loopback an address is of.
    pub host: String,
    /// Where clients connect.
    pub listen: String,
    /// Where its page, metrics and records are.
    pub admin: String,
    #[serde(default)]
    pub version: String,
    /// Milliseconds of the Unix epoch.
    #[serde(default)]
    pub started_ms: u64,
}

pub fn gateways_prefix() -> String {
    "/buttress/gateways/".to_owned()
}

pub fn gateway_key(name: &str) -> String {
    format!("{}{name}", gateways_prefix())
}

/// Where resources of a kind lie.
pub fn prefix(kind: Kind) -> String {
    format!("/buttress/{}/", kind.plural())
}

pub fn key(kind: Kind, name: &str) -> String {
    format!("{}{name}", prefix(kind))
}

/// Where gateways tell of a resource.
pub fn status_prefix(kind: Kind, name: &str) -> String {
    format!("/buttress/status/{}/{name}/", kind.plural())
}

pub fn status_key(kind: Kind, name: &str, gateway: &str) -> String {
    format!("{}{gateway}", status_prefix(kind, name))
}

/// A spec as its type writes it, so that `0.5` and `50%` are no change.
pub fn canonical(typed: &Spec) -> Value {
    let written = match typed {
        Spec::Route(spec) => serde_json::to_value(spec),
        Spec::Listener(spec) => serde_json::to_value(spec),
        Spec::Function(spec) => serde_json::to_value(spec),
        Spec::Model(spec) => serde_json::to_value(spec),
        Spec::Topic(spec) => serde_json::to_value(spec),
    };
    written.expect("specs are plain data")
}

/// A document as it would be written in a file.
pub fn document(kind: Kind, name: &str, labels: &BTreeMap<String, String>, spec: &Value) -> Value {
    let mut document = json!({"kind": kind.name(), "name": name, "spec": spec});
    if !labels.is_empty() {
        document["labels"] = json!(labels);
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_is_kept_as_the_same() {
        let spec = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap();
            canonical(&Kind::Route.read(&value).unwrap())
        };
        let to = r#""to":[{"endpoints":"a:1"}]"#;
        let one = spec(&format!(r#"{{{to},"deadline":"2000ms","breaker":{{"failure_rate":0.5}}}}"#));
        assert_eq!(one, spec(&format!(r#"{{{to},"breaker":{{"failure_rate":"50%"}},"deadline":"2s"}}"#)));
        assert_eq!(one["breaker"]["failure_rate"], "50%");
        assert_eq!(canonical(&Kind::Route.read(&one).unwrap()), one);
        assert_eq!(status_key(Kind::Route, "a", "gw-1"), "/buttress/status/routes/a/gw-1");
    }
}
