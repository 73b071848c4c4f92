//! An uplink as it lies in the key space: JSON under `/buttress/uplinks/<name>`; beside it, under `/buttress/uplinks-known/`,
//! how far each lane is known to have been, which serves only to notice that a target has forgotten a position.

use buttress_core::{Code, Error, Offset, Stream};
use buttress_uplink::{Oversized, PARCEL_BYTES_DEFAULT, PARCEL_BYTES_MAX, Priority};
use serde::{Deserialize, Serialize};

use super::target::Address;

pub const PREFIX: &str = "/buttress/uplinks/";
pub const KNOWN_PREFIX: &str = "/buttress/uplinks-known/";
/// Names are parts of topic names and transactional ids at the target.
const NAME_BYTES_MAX: usize = 63;
/// Partitions of all topics of an uplink: each may have a parcel in memory.
pub const LANES_MAX: usize = 64;
pub const UPLINKS_MAX: usize = 32;
const PARCEL_BYTES_MIN: usize = 1024;

/// What is asked for: `POST /v1/uplinks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    pub name: String,
    /// `kafka://[USER@]HOST:PORT[,…][?tls=…]` or `buttress://HOST:PORT[,…]`, the latter with nodes' HTTP addresses.
    pub to: String,
    /// This gateway's name at the target; the cluster's id where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<String>,
    pub topics: Vec<WantedTopic>,
    /// Bytes a second; none: as fast as the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Bytes that the records of each topic may take here while they wait; none: the topic's own retention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_bytes: Option<u64>,
    #[serde(default)]
    pub from: From,
    #[serde(default)]
    pub oversized: OversizedText,
    #[serde(default)]
    pub create_topics: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parcel_bytes: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedTopic {
    pub topic: String,
    /// The topic at the target; the same name where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default)]
    pub priority: PriorityText,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// Everything that is there.
    #[default]
    Start,
    /// What comes from now on.
    End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PriorityText {
    High,
    #[default]
    Normal,
    Low,
}

impl PriorityText {
    pub fn class(self) -> Priority {
        match self {
            Self::High => Priority::High,
            Self::Normal => Priority::Normal,
            Self::Low => Priority::Low,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OversizedText {
    #[default]
    Stop,
    Gap,
}

impl OversizedText {
    pub fn policy(self) -> Oversized {
        match self {
            Self::Stop => Oversized::Stop,
            Self::Gap => Oversized::Gap,
        }
    }
}

/// An uplink as it lies in the key space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub edge: String,
    pub to: String,
    pub topics: Vec<Route>,
    pub rate: Option<u64>,
    pub bound_bytes: Option<u64>,
    pub oversized: OversizedText,
    pub create_topics: bool,
    pub parcel_bytes: usize,
    pub paused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub topic: String,
    pub target: String,
    pub priority: PriorityText,
    /// How often an operator has given it another log.
    pub adopted: u32,
    /// Where each partition began, or begins again after an adoption. A partition that came later begins at its beginning.
    pub origins: Vec<i64>,
}

impl Route {
    pub fn origin(&self, partition: usize) -> Offset {
        Offset(self.origins.get(partition).copied().unwrap_or(0))
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::UPLINK_INVALID, message)
}

fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(invalid(format!("{what} {name:?} is not a name"))
            .hint(format!("letters, digits, - and _, at most {NAME_BYTES_MAX}")));
    }
    Ok(())
}

impl Wanted {
    /// Checks what is asked for against the topics that are here.
    ///
    /// # Errors
    /// `UPLINK_INVALID`, `TOPIC_UNKNOWN`.
    pub fn resolve(&self, stream: &dyn Stream, default_edge: &str) -> Result<Spec, Error> {
        check_name("the uplink's name", &self.name)?;
        let edge = self.edge.as_deref().unwrap_or(default_edge);
        check_name("the edge's name", edge)
            .map_err(|error| error.hint("give this gateway a name of its own with --edge NAME"))?;
        Address::parse(&self.to)?;
        if self.topics.is_empty() {
            return Err(invalid("an uplink without topics forwards nothing").hint("name one with --topic"));
        }
        if self.rate == Some(0) {
            return Err(
                invalid("a rate of 0 bytes a second forwards nothing").hint("`buttress uplink pause` stops an uplink")
            );
        }
        let parcel_bytes = self.parcel_bytes.unwrap_or(PARCEL_BYTES_DEFAULT);
        if !(PARCEL_BYTES_MIN..=PARCEL_BYTES_MAX).contains(&parcel_bytes) {
            return Err(invalid(format!("parcels of {parcel_bytes} bytes"))
                .hint(format!("give {PARCEL_BYTES_MIN} to {PARCEL_BYTES_MAX}")));
        }
        let mut topics: Vec<Route> = Vec::new();
        let mut lanes = 0;
        for wanted in &self.topics {
            let view = stream.topic(&wanted.topic).ok_or_else(|| {
                Error::new(Code::TOPIC_UNKNOWN, format!("there is no topic \"{}\" here", wanted.topic))
                    .hint(format!("buttress topic create {}", wanted.topic))
            })?;
            if topics.iter().any(|route| route.topic == wanted.topic) {
                return Err(invalid(format!("topic \"{}\" is named twice", wanted.topic)));
            }
            lanes += view.partitions.len();
            if self.bound_bytes.is_none() && view.settings.retention_bytes.is_none() {
                let message =
                    format!("topic \"{}\" keeps records for ever, so a long outage fills the disk", wanted.topic);
                return Err(invalid(message).hint("say what it may take with --bound, for example --bound 2GiB"));
            }
            let origins = view.partitions.iter().map(|partition| match self.from {
                From::Start => partition.start.0,
                From::End => partition.end.0,
            });
            topics.push(Route {
                topic: wanted.topic.clone(),
                target: wanted.target.clone().unwrap_or_else(|| wanted.topic.clone()),
                priority: wanted.priority,
                adopted: 0,
                origins: origins.collect(),
            });
        }
        if lanes > LANES_MAX {
            return Err(invalid(format!("the topics have {lanes} partitions, an uplink takes {LANES_MAX}"))
                .hint("make a second uplink"));
        }
        Ok(Spec {
            name: self.name.clone(),
            edge: edge.to_owned(),
            to: self.to.clone(),
            topics,
            rate: self.rate,
            bound_bytes: self.bound_bytes,
            oversized: self.oversized,
            create_topics: self.create_topics,
            parcel_bytes,
            paused: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use buttress_core::entry::TopicSettings;
    use buttress_state::local::Local;

    use super::*;

    fn wanted(topic: &str) -> Wanted {
        serde_json::from_value(serde_json::json!({
            "name": "hq", "to": "kafka://10.0.0.1:9092", "topics": [{"topic": topic}]
        }))
        .unwrap()
    }

    #[test]
    fn what_cannot_be_forwarded_is_refused_with_what_would_be_right() {
        let local = Local::new();
        local.create_topic("bounded", 2, TopicSettings { retention_bytes: Some(1_000), ..TopicSettings::default() });
        local.create_topic("endless", 1, TopicSettings::default());
        let resolve = |wanted: &Wanted| wanted.resolve(&*local, "press-7");
        let good = resolve(&wanted("bounded")).unwrap();
        assert_eq!((good.edge.as_str(), good.topics[0].origins.as_slice()), ("press-7", &[0, 0][..]));
        let said = |wanted: Wanted| resolve(&wanted).unwrap_err().to_string();
        expect_test::expect![[r#"
            topic "endless" keeps records for ever, so a long outage fills the disk [BT0803]

            hint: say what it may take with --bound, for example --bound 2GiB"#]]
        .assert_eq(&said(wanted("endless")));
        assert!(resolve(&Wanted { bound_bytes: Some(1), ..wanted("endless") }).is_ok());
        expect_test::expect![[r#"
            there is no topic "none" here [BT0301]

            hint: buttress topic create none"#]]
        .assert_eq(&said(wanted("none")));
        expect_test::expect![[r#"
            "ftp://x:1" is not a target [BT0803]

            hint: kafka://[USER@]HOST:PORT[,HOST:PORT…][?tls=ca.pem|system&cert=PEM&key=PEM&sasl=scram-sha-512|scram-sha-256|plain&password-file=PATH|password-env=NAME&cleartext=yes], where paths and variables are the node's; or buttress://HOST:PORT[,HOST:PORT…], nodes' HTTP addresses"#]]
        .assert_eq(&said(Wanted { to: "ftp://x:1".into(), ..wanted("bounded") }));
        for broken in [
            Wanted { name: "a b".into(), ..wanted("bounded") },
            Wanted { edge: Some("a/b".into()), ..wanted("bounded") },
            Wanted { rate: Some(0), ..wanted("bounded") },
            Wanted { parcel_bytes: Some(1), ..wanted("bounded") },
            Wanted { topics: vec![], ..wanted("bounded") },
            Wanted { topics: [wanted("bounded").topics, wanted("bounded").topics].concat(), ..wanted("bounded") },
        ] {
            assert_eq!(resolve(&broken).unwrap_err().code, Code::UPLINK_INVALID, "{broken:?}");
        }
    }
}
