//! Which topic and key an MQTT topic name stands for, and which name a record is delivered under.
//!
//! Rules are tried in order; the first whose filter matches decides. Where none does, the first level is the topic
//! and the rest the key: `telemetry/m1` is key `m1` in topic `telemetry`. A record that an MQTT client published carries
//! its name in the header [`TOPIC_HEADER`]; one that came through Kafka or HTTP is delivered under the name that
//! the same rules would map to its key.

use std::str::FromStr;

use buttress_core::{Code, Error};
use buttress_wire::mqtt::{Filter, Text, TopicName};
use bytes::Bytes;

/// The record header that holds the MQTT topic name.
pub const TOPIC_HEADER: &str = "mqtt.topic";

/// Where a record's key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFrom {
    /// This level of the name, counted from 0.
    Level(usize),
    /// The whole name.
    Topic,
}

impl FromStr for KeyFrom {
    type Err = Error;

    /// `"level N"` or `"topic"`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once(' ') {
            None if text == "topic" => Ok(Self::Topic),
            Some(("level", number)) if number.parse::<usize>().is_ok() => {
                Ok(Self::Level(number.parse().expect("just parsed")))
            }
            _ => Err(Error::new(Code::CONFIG, format!("key {text:?} of an MQTT rule is not known"))
                .hint("use \"topic\" or \"level N\", counted from 0: in telemetry/m1, level 1 is m1")),
        }
    }
}

/// Sends what matches `filter` to `topic`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    filter: Filter,
    topic: String,
    key: KeyFrom,
}

impl Rule {
    /// # Errors
    /// `CONFIG`: the filter or the topic's name is not valid.
    pub fn new(filter: &str, topic: &str, key: KeyFrom) -> Result<Self, Error> {
        let filter = Filter::try_from(filter)
            .map_err(|error| Error::new(Code::CONFIG, format!("filter {filter:?} of an MQTT rule: {error}")))?;
        crate::http::check_topic_name(topic).map_err(|error| Error { code: Code::CONFIG, ..error })?;
        Ok(Self { filter, topic: topic.to_owned(), key })
    }

    /// The name that this rule maps to `key`, where there is exactly one.
    fn name_for(&self, key: &str) -> Option<String> {
        match self.key {
            KeyFrom::Topic => self.filter.matches(key).then(|| key.to_owned()),
            KeyFrom::Level(at) => {
                if key.contains('/') {
                    return None;
                }
                let mut levels: Vec<&str> = self.filter.split('/').collect();
                if levels.get(at) != Some(&"+") {
                    return None;
                }
                levels[at] = key;
                let certain = !levels.iter().enumerate().any(|(i, level)| i != at && matches!(*level, "+" | "#"));
                certain.then(|| levels.join("/"))
            }
        }
    }
}

/// All rules of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// The topic and key of a message. The topic need not exist.
    pub fn target<'a>(&'a self, name: &'a TopicName) -> (&'a str, Option<Bytes>) {
        let share = |part: &str| name.text().bytes().slice_ref(part.as_bytes());
        for rule in &self.rules {
            if rule.filter.matches(name) {
                let key = match rule.key {
                    KeyFrom::Topic => Some(share(name)),
                    KeyFrom::Level(at) => name.split('/').nth(at).map(share),
                };
                return (&rule.topic, key);
            }
        }
        match name.split_once('/') {
            None => (name, None),
            Some((topic, key)) => (topic, Some(share(key))),
        }
    }

    /// The name under which a record of `topic` is delivered; `None` where it has none that MQTT allows.
    pub fn name(&self, topic: &str, header: Option<&Bytes>, key: Option<&Bytes>) -> Option<TopicName> {
        if let Some(header) = header {
            return Text::new(header.clone()).and_then(TopicName::new).ok();
        }
        let Some(key) = key else { return TopicName::try_from(topic).ok() };
        let key = std::str::from_utf8(key).ok()?;
        let by_rule = self.rules.iter().filter(|rule| rule.topic == topic).find_map(|rule| rule.name_for(key));
        let name = by_rule.unwrap_or_else(|| format!("{topic}/{key}"));
        TopicName::try_from(&name[..]).ok()
    }

    /// Whether a record of `topic` may be delivered to `filter`.
    pub fn may_match(&self, topic: &str, filter: &Filter) -> bool {
        let default = Filter::try_from(&format!("{topic}/#")[..]).expect("topic names have no wildcards");
        default.overlaps(filter) || self.rules.iter().any(|rule| rule.topic == topic && rule.filter.overlaps(filter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::new(vec![
            Rule::new("plant/+/telemetry", "telemetry", KeyFrom::Level(1)).expect("valid"),
            Rule::new("audit/#", "audit", KeyFrom::Topic).expect("valid"),
            Rule::new("any/+/+", "any", KeyFrom::Level(2)).expect("valid"),
        ])
    }

    #[test]
    fn names_map_to_topic_and_key() {
        for (name, topic, key) in [
            ("plant/m1/telemetry", "telemetry", Some("m1")),
            ("audit/a/b", "audit", Some("audit/a/b")),
            ("audit", "audit", Some("audit")),
            ("any/x/y", "any", Some("y")),
            ("telemetry/m1", "telemetry", Some("m1")),
            ("telemetry/hall/m1", "telemetry", Some("hall/m1")),
            ("telemetry", "telemetry", None),
            ("/m1", "", Some("m1")),
        ] {
            let name = TopicName::try_from(name).expect("valid");
            let rules = rules();
            let (got_topic, got_key) = rules.target(&name);
            assert_eq!((got_topic, got_key.as_deref()), (topic, key.map(str::as_bytes)), "{name:?}");
        }
    }

    #[test]
    fn records_map_to_names() {
        let rules = rules();
        for (topic, header, key, name) in [
            ("telemetry", Some("x/y"), Some("m1"), Some("x/y")),
            ("telemetry", Some("x/#"), Some("m1"), None),
            ("telemetry", None, Some("m1"), Some("plant/m1/telemetry")),
            ("telemetry", None, Some("hall/m1"), Some("telemetry/hall/m1")),
            ("audit", None, Some("audit/a"), Some("audit/a")),
            ("audit", None, Some("other"), Some("audit/other")),
            ("any", None, Some("y"), Some("any/y")),
            ("alerts", None, None, Some("alerts")),
            ("alerts", None, Some("a+b"), None),
        ] {
            let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
            let got = rules.name(topic, header.map(bytes).as_ref(), key.map(bytes).as_ref());
            assert_eq!(got.as_deref(), name, "{topic} {header:?} {key:?}");
        }
        assert_eq!(rules.name("alerts", None, Some(&Bytes::from_static(&[0xff]))), None);
    }

    #[test]
    fn filters_find_their_topics() {
        let rules = rules();
        for (topic, filter, may) in [
            ("telemetry", "telemetry/+", true),
            ("telemetry", "plant/#", true),
            ("telemetry", "plant/+/status", false),
            ("telemetry", "#", true),
            ("alerts", "telemetry/+", false),
            ("alerts", "alerts", true),
        ] {
            let parsed = Filter::try_from(filter).expect("valid");
            assert_eq!(rules.may_match(topic, &parsed), may, "{topic} {filter}");
        }
    }

    #[test]
    fn key_from_is_read_from_configuration() {
        assert_eq!("topic".parse::<KeyFrom>(), Ok(KeyFrom::Topic));
        assert_eq!("level 2".parse::<KeyFrom>(), Ok(KeyFrom::Level(2)));
        for wrong in ["", "level", "level x", "topics", "level  1"] {
            assert_eq!(wrong.parse::<KeyFrom>().expect_err("not a key").code, Code::CONFIG, "{wrong}");
        }
    }
}
