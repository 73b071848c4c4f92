//! The configuration file of a node: one TOML file, unknown keys are errors that name the nearest right one.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use buttress_core::{Code, Error, NodeId, ledger::Member};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub node: Node,
    pub cluster: Cluster,
    /// The founders, the same on every node, and this node.
    pub members: Vec<MemberConfig>,
    #[serde(default)]
    pub events: Events,
    /// Engines of the user's own, in which topics may lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engines: Option<Engines>,
    #[serde(default)]
    pub etcd: Etcd,
    #[serde(default)]
    pub uplink: Uplink,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub id: u64,
    pub data_dir: PathBuf,
    /// Serve addresses other than loopback without TLS and authentication, which do not exist yet.
    #[serde(default)]
    pub insecure: bool,
    /// This node joins the cluster of `members` under an id that it was given, and founds nothing.
    #[serde(default)]
    pub join: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Any text; a node refuses peers and data directories of another cluster.
    pub id: String,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    pub id: u64,
    pub name: String,
    pub peer: String,
    pub kafka: String,
    pub mqtt: String,
    pub http: String,
    /// Where etcd clients are served; left out, they are not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub etcd: String,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Create topics that Kafka clients ask for and that do not exist.
    pub auto_create_topics: bool,
    /// Partitions of topics that are created so.
    pub default_partitions: u32,
    /// The topic of `POST /events` without `?topic=`.
    pub default_topic: String,
    /// Connections of Kafka clients at a time; one more is closed at once.
    pub kafka_connections_max: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Etcd {
    /// Connections of etcd clients at a time; one more is closed at once.
    pub connections_max: usize,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Uplink {
    /// Folders, and variables as `env:NAME`, in which uplinks may name passwords and keys, beside `secrets` of `data_dir`.
    pub secrets: Vec<String>,
}

impl Default for Etcd {
    fn default() -> Self {
        Self { connections_max: 12 * 1024 }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self {
            auto_create_topics: true,
            default_partitions: 1,
            default_topic: "telemetry".into(),
            kafka_connections_max: 12 * 1024,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Engines {
    /// `HOST:PORT` of some brokers of a Kafka.
    pub kafka: Vec<String>,
    /// What our topics, groups and transactional ids begin with there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// `CONFIG` with file, line and, for an unknown key, the nearest right one.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::new(Code::CONFIG, format!("cannot read \"{}\": {error}", path.display()))
                .hint("name a file with --config; `buttress dev` writes one for every node it starts")
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// # Errors
    /// As [`Config::load`]; `origin` names the file in the message.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let message = format!("{origin}:{line}: {}", error.message());
            let described = Error::new(Code::CONFIG, message);
            match nearest_key(error.message()) {
                Some(key) => described.hint(format!("did you mean \"{key}\"?")),
                None => described.hint("see docs/reference/config.md for every key"),
            }
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        for member in &self.members {
            for (edge, address) in
                [("peer", &member.peer), ("kafka", &member.kafka), ("mqtt", &member.mqtt), ("http", &member.http)]
                    .into_iter()
                    .chain((!member.etcd.is_empty()).then_some(("etcd", &member.etcd)))
            {
                let parsed: SocketAddr = address.parse().map_err(|_| {
                    Error::new(
                        Code::CONFIG,
                        format!("{edge} address \"{address}\" of \"{}\" is not IP:PORT", member.name),
                    )
                    .hint("for example 127.0.0.1:9092")
                })?;
                if !parsed.ip().is_loopback() && !self.node.insecure {
                    let message =
                        format!("{edge} address \"{address}\" of \"{}\" is not a loopback address", member.name);
                    return Err(Error::new(Code::CONFIG, message).hint(
                        "TLS and authentication are not served yet; set node.insecure = true to serve it in the clear",
                    ));
                }
            }
        }
        crate::uplink::secrets::check_listed(&self.uplink.secrets)?;
        if let Some(engines) = &self.engines {
            crate::engines::check_namespace(&engines.namespace)?;
            if engines.kafka.is_empty() {
                return Err(Error::new(Code::CONFIG, "engines.kafka names no broker")
                    .hint(r#"kafka = ["10.0.0.1:9092"], or leave the section out"#));
            }
        }
        self.node_config().validate()
    }

    pub fn member(&self) -> &MemberConfig {
        self.members.iter().find(|m| m.id == self.node.id).expect("checked: this node is a member")
    }

    fn node_config(&self) -> buttress_node::runtime::Config {
        buttress_node::runtime::Config {
            cluster_id: self.cluster.id.clone(),
            node: NodeId(self.node.id),
            members: self.members(),
            join: self.node.join,
            data_dir: self.node.data_dir.clone(),
            seed: 0,
            client: 0,
        }
    }

    /// What the node needs, with the randomness it is given.
    pub fn for_node(&self, seed: u64, client: u64) -> buttress_node::runtime::Config {
        buttress_node::runtime::Config { seed, client, ..self.node_config() }
    }

    fn members(&self) -> Vec<Member> {
        let member = |m: &MemberConfig| Member {
            id: NodeId(m.id),
            name: m.name.clone(),
            peer: m.peer.clone(),
            kafka: m.kafka.clone(),
            mqtt: m.mqtt.clone(),
            http: m.http.clone(),
            etcd: m.etcd.clone(),
            ..Member::default()
        };
        self.members.iter().map(member).collect()
    }
}

/// Finds the right key in serde's "unknown field `x`, expected one of `a`, `b`".
fn nearest_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut names = rest.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    nearest(wrong, names).map(str::to_owned)
}

/// The candidate with the smallest edit distance to `wrong`, where one is near.
pub fn nearest<'a>(wrong: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (edit_distance(wrong, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(wrong.len()).div_ceil(2))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in characters, ignoring case.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[node]
id = 1
data_dir = "d"
[cluster]
id = "c"
[[members]]
id = 1
name = "node-1"
peer = "127.0.0.1:7000"
kafka = "127.0.0.1:7001"
mqtt = "127.0.0.1:7002"
http = "127.0.0.1:7003"
"#;

    fn error(text: &str) -> String {
        Config::parse(text, "b.toml").unwrap_err().to_string()
    }

    #[test]
    fn a_good_file_is_read_and_written_back() {
        let config = Config::parse(GOOD, "b.toml").unwrap();
        assert_eq!(config.events, Events::default());
        assert_eq!(Config::parse(&toml::to_string(&config).unwrap(), "b.toml").unwrap(), config);
    }

    #[test]
    fn bad_files_say_where_and_what_would_be_right() {
        expect_test::expect![[r#"
            b.toml:4: unknown field `data_dri`, expected one of `id`, `data_dir`, `insecure`, `join` [BT0701]

            hint: did you mean "data_dir"?"#]]
        .assert_eq(&error(&GOOD.replace("data_dir", "data_dri")));
        expect_test::expect![[r#"
            kafka address "0.0.0.0:7001" of "node-1" is not a loopback address [BT0701]

            hint: TLS and authentication are not served yet; set node.insecure = true to serve it in the clear"#]]
        .assert_eq(&error(&GOOD.replace("127.0.0.1:7001", "0.0.0.0:7001")));
        expect_test::expect![[r#"
            node 2 is not among the members [NodeId(1)] [BT0701]

            hint: add this node to [[members]]"#]]
        .assert_eq(&error(&GOOD.replacen("id = 1", "id = 2", 1)));
    }
}
