//! Where parcels go. A [`Port`] is one lane's way into a target; it holds nothing that a claim does not bring back.
//!
//! | target | a parcel is | the position is | who is fenced |
//! |---|---|---|---|
//! | Kafka | a transaction of the lane's transactional id, `buttress.uplink.EDGE.TOPIC.PARTITION` | an offset of the lane's group with its text, added to the transaction | earlier holders of the id |
//! | Buttress | one entry, through `POST /v1/entries` | the last record of the lane's journal, a topic at the target, appended by the entry | by a guard: the journal must end where it did when the lane claimed it |
//!
//! A Buttress keeps the last 16 MiB of a journal. Its records are small and are the history of the lane.

use std::{sync::Arc, time::Duration};

use base64::Engine as _;
use buttress_bridge::kafka::{Kafka, LanePlace, LaneSession, Options};
use buttress_core::{Code, Error, Offset, TimeMs};
use buttress_uplink::{Parcel, Settings, gap};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    resource::{Route, Spec},
    secrets::Secrets,
};
use crate::client::{Client, segment};

/// A request to a Kafka is repeated for this long before the lane says that there is no link.
const KAFKA_DEADLINE: Duration = Duration::from_secs(10);
/// A claim or a commit as a whole, whatever its parts may take.
const WHOLE_MAX: Duration = Duration::from_secs(60);
/// A Buttress answers a commit within this time, or the lane claims again.
const ENTRY_MAX: Duration = Duration::from_secs(8);
const JOURNAL_RETENTION_BYTES: u64 = 16 * 1024 * 1024;

const PLACES_MAX: usize = 16;
const FORM: &str = "kafka://[USER@]HOST:PORT[,HOST:PORT…][?tls=ca.pem|system&cert=PEM&key=PEM&sasl=scram-sha-512|scram-sha-256|plain&\
                    password-file=PATH|password-env=NAME&cleartext=yes], where paths and variables are the node's; or \
                    buttress://HOST:PORT[,HOST:PORT…], nodes' HTTP addresses";

/// What `--to` says.
#[derive(Clone, Debug)]
pub enum Address {
    Kafka(Box<Options>),
    Buttress(Vec<String>),
}

impl Address {
    /// Reads the text and nothing else: files and variables that it names are the node's, and looked at where the uplink runs.
    ///
    /// # Errors
    /// `UPLINK_INVALID`, with the form that is right. What the text says of users is not repeated: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |message: String| Error::new(Code::UPLINK_INVALID, message).hint(FORM);
        // What stands before an '@' may hold a password.
        let wrong = || match text.rsplit_once('@') {
            Some((_, places)) => invalid(format!("a user at {places:?} is not a target")),
            None => invalid(format!("{text:?} is not a target")),
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let address = match scheme {
            "kafka" => {
                let options = Options::from_url(text).map_err(|error| {
                    let hint = error.hint.filter(|hint| !hint.starts_with("kafka://")).unwrap_or_else(|| FORM.into());
                    Error::new(Code::UPLINK_INVALID, error.message).hint(hint)
                })?;
                if options.prefix != Options::new([""; 0]).prefix {
                    return Err(Error::new(Code::UPLINK_INVALID, "an uplink has no prefix")
                        .hint("what it uses begins with buttress.uplink. and the name of the gateway: --edge NAME"));
                }
                Self::Kafka(Box::new(Options { deadline: KAFKA_DEADLINE, ..options }))
            }
            "buttress" | "http" => Self::Buttress(rest.trim_end_matches('/').split(',').map(str::to_owned).collect()),
            _ => return Err(wrong()),
        };
        let good = |place: &String| {
            let port = place.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            matches!(port, Some(Ok(1..))) && !place.contains(['/', ' ', '@', '?'])
        };
        match address.places() {
            places if places.len() > PLACES_MAX => {
                Err(invalid(format!("{} hosts are named, {PLACES_MAX} can be", places.len())))
            }
            places if places.iter().all(good) => Ok(address),
            places if matches!(address, Self::Kafka(_)) => {
                let bad = places.iter().find(|place| !good(place)).expect("one is not good");
                Err(invalid(format!("{bad:?} is no HOST:PORT of a broker")))
            }
            _ => Err(wrong()),
        }
    }

    fn places(&self) -> &[String] {
        match self {
            Self::Kafka(options) => &options.bootstrap,
            Self::Buttress(nodes) => nodes,
        }
    }

    /// Whether both name a host in common, and so the same target, by whatever user.
    pub fn meets(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Kafka(_), Self::Kafka(_)) | (Self::Buttress(_), Self::Buttress(_)))
            && self.places().iter().any(|place| other.places().contains(place))
    }
}

/// The connection to a Kafka, or why there was none when it was last tried.
#[derive(Default)]
pub struct Link {
    kafka: Option<Arc<Kafka>>,
    failed: Option<(Instant, Error)>,
}

/// What the lanes of an uplink share.
pub enum Target {
    Kafka { options: Box<Options>, secrets: Secrets, link: tokio::sync::Mutex<Link> },
    Buttress { nodes: Vec<String> },
}

impl Target {
    /// # Errors
    /// `UPLINK_INVALID`, `UPLINK_SECRET`.
    pub fn new(to: &str, secrets: &Secrets) -> Result<Self, Error> {
        Ok(match Address::parse(to)? {
            Address::Kafka(mut options) => {
                secrets.resolve(&mut options)?;
                Self::Kafka { options, secrets: secrets.clone(), link: tokio::sync::Mutex::default() }
            }
            Address::Buttress(nodes) => Self::Buttress { nodes },
        })
    }

    /// The connection that the lanes share, made by whoever needs it first. Those who have waited meanwhile hear what that one
    /// has heard: one by one, each would wait for the others' deadlines.
    async fn kafka(&self) -> Result<Arc<Kafka>, Error> {
        let Self::Kafka { options, secrets, link } = self else { unreachable!("it is asked for a Kafka") };
        let asked = Instant::now();
        let mut link = link.lock().await;
        if let Some(kafka) = &link.kafka {
            return Ok(kafka.clone());
        }
        if let Some((_, error)) = link.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(error.clone());
        }
        let connected = match secrets.follow(options) {
            Ok(()) => Kafka::connect((**options).clone()).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(kafka) => {
                let kafka = Arc::new(kafka);
                *link = Link { kafka: Some(kafka.clone()), failed: None };
                Ok(kafka)
            }
            Err(error) => {
                link.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

/// One lane's way into the target.
pub struct Port {
    target: Arc<Target>,
    settings: Settings,
    place: LanePlace,
    journal: String,
    /// Of a Kafka: the claim.
    session: Option<(Arc<Kafka>, LaneSession)>,
    /// Of a Buttress: where the journal must end.
    journal_end: Option<i64>,
    /// Which node is asked.
    node: usize,
}

impl Port {
    pub fn new(target: Arc<Target>, spec: &Spec, route: &Route, settings: Settings, partitions: u32) -> Self {
        let partition = settings.source.partition;
        let group = format!("buttress.uplink.{}.{}", spec.edge, route.topic);
        let place = LanePlace {
            transactional_id: format!("{group}.{partition}"),
            topic: route.target.clone(),
            partition: partition as i32,
            partitions,
            create: spec.create_topics,
            gaps: gap::TOPIC.into(),
            group: group.clone(),
        };
        Self { target, settings, place, journal: group, session: None, journal_end: None, node: 0 }
    }

    /// Fences whoever had the lane before, and reads the position.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn claim(&mut self) -> Result<Option<(Offset, String)>, Error> {
        self.session = None;
        self.journal_end = None;
        let claim = async {
            match &*self.target.clone() {
                Target::Kafka { .. } => {
                    let kafka = self.target.kafka().await?;
                    let (session, found) = kafka.claim_lane(self.place.clone()).await?;
                    self.session = Some((kafka, session));
                    Ok(found)
                }
                Target::Buttress { nodes } => self.claim_journal(nodes).await,
            }
        };
        timeout(WHOLE_MAX, claim).await.unwrap_or_else(|_| Err(no_answer(WHOLE_MAX)))
    }

    /// Commits a parcel, all of it or nothing.
    ///
    /// # Errors
    /// What is in the way. The lane must claim again.
    pub async fn commit(&mut self, parcel: &Parcel, now: TimeMs) -> Result<(), Error> {
        let gap = parcel.gap.map(|gap| gap.batch(&self.settings.source, self.settings.lineage, now));
        match &*self.target.clone() {
            Target::Kafka { .. } => {
                let (kafka, mut session) =
                    self.session.take().ok_or_else(|| Error::new(Code::EPOCH_STALE, "the lane is not claimed"))?;
                let (next, text) = (parcel.position.next, parcel.position.text());
                let commit = kafka.commit_lane(&mut session, &parcel.batches, gap, next, &text);
                timeout(WHOLE_MAX, commit).await.unwrap_or_else(|_| Err(no_answer(WHOLE_MAX)))?;
                self.session = Some((kafka, session));
                Ok(())
            }
            Target::Buttress { nodes } => {
                let end = self.journal_end.take();
                let end = end.ok_or_else(|| Error::new(Code::EPOCH_STALE, "the lane is not claimed"))?;
                self.append(nodes, parcel, gap, end, now).await?;
                self.journal_end = Some(end + 1);
                Ok(())
            }
        }
    }

    /// A node that answers; after a failure the next one is asked.
    fn client(&self, nodes: &[String]) -> Result<Client, Error> {
        Client::new(&format!("http://{}", nodes[self.node % nodes.len()]))
    }

    async fn claim_journal(&mut self, nodes: &[String]) -> Result<Option<(Offset, String)>, Error> {
        let client = self.client(nodes)?;
        let found = self.read_journal(&client).await;
        if found.is_err() {
            self.node += 1;
        }
        let (end, found) = found?;
        self.journal_end = Some(end);
        Ok(found)
    }

    async fn read_journal(&self, client: &Client) -> Result<(i64, Option<(Offset, String)>), Error> {
        let LanePlace { topic, partition, partitions, create, gaps, .. } = &self.place;
        let found = ensure(client, topic, *create, json!({"name": topic, "partitions": partitions})).await?;
        if found < *partitions as usize {
            let message =
                format!("topic \"{topic}\" of the target has {found} partitions, the uplink's has {partitions}");
            return Err(Error::new(Code::TOPIC_INVALID, message)
                .hint("give it more, or send to another topic with --topic NAME=TARGET"));
        }
        ensure(client, gaps, true, json!({"name": gaps, "partitions": 1})).await?;
        let journal = &self.journal;
        let settings = json!({"name": journal, "partitions": partitions, "retention_bytes": JOURNAL_RETENTION_BYTES});
        let found = ensure(client, journal, true, settings).await?;
        if found < *partitions as usize {
            let message = format!("the journal \"{journal}\" at the target has {found} partitions, not {partitions}");
            return Err(
                Error::new(Code::TOPIC_INVALID, message).hint("the local topic was extended: extend the journal too")
            );
        }
        let path = format!("/v1/topics/{}/partitions/{partition}/records?offset=-1&max=1", segment(journal));
        let answer = timeout(ENTRY_MAX, client.get(&path)).await.unwrap_or_else(|_| Err(no_answer(ENTRY_MAX)))?;
        let Some(record) = answer["records"].as_array().and_then(|records| records.last()) else {
            return Ok((0, None));
        };
        let offset = record["offset"].as_i64();
        let value = record["value"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        let position = value.and_then(|value| Some((value["next"].as_i64()?, value["position"].as_str()?.to_owned())));
        match (offset, position) {
            (Some(offset), Some((next, text))) => Ok((offset + 1, Some((Offset(next), text)))),
            _ => Err(Error::new(
                Code::UPLINK_POSITION,
                format!("the last record of \"{journal}\" at the target is no position"),
            )
            .hint("nobody but the uplink may write there; give the uplink another --edge name")),
        }
    }

    async fn append(
        &mut self,
        nodes: &[String],
        parcel: &Parcel,
        gap: Option<bytes::Bytes>,
        end: i64,
        now: TimeMs,
    ) -> Result<(), Error> {
        let client = self.client(nodes)?;
        let LanePlace { topic, partition, gaps, .. } = &self.place;
        let base64 = |batch: &bytes::Bytes| base64::engine::general_purpose::STANDARD.encode(batch);
        let mut appends: Vec<Value> = parcel
            .batches
            .iter()
            .map(|batch| json!({"topic": topic, "partition": partition, "batch_base64": base64(batch)}))
            .collect();
        appends.extend(gap.iter().map(|gap| json!({"topic": gaps, "partition": 0, "batch_base64": base64(gap)})));
        let note = json!({
            "next": parcel.position.next.0,
            "position": parcel.position.text(),
            "records": parcel.records,
            "gap": parcel.gap.map(|gap| json!({"from": gap.from.0, "to": gap.to.0})),
        });
        appends.push(json!({
            "topic": self.journal,
            "partition": partition,
            "records": [{"value": note.to_string(), "timestamp": now.0}],
        }));
        let entry = json!({
            "guards": [{"log_end": {"topic": self.journal, "partition": partition, "offset": end}}],
            "appends": appends,
        });
        let sent = timeout(ENTRY_MAX, client.send_json(Method::POST, "/v1/entries", &entry)).await;
        let answer = sent.unwrap_or_else(|_| {
            Err(Error::new(Code::TIMEOUT, format!("no answer from the target in {ENTRY_MAX:?}")).retryable())
        });
        match answer {
            Ok(answer) if answer["complete"].as_bool() == Some(true) => Ok(()),
            Ok(_) => Err(Error::new(Code::TOPIC_UNKNOWN, format!("topic \"{topic}\" of the target was deleted"))),
            Err(error) if error.code == Code::REFUSED => {
                let message =
                    "the target's journal does not end where this lane left it: somebody else sends under this name";
                Err(Error::new(Code::EPOCH_STALE, message)
                    .hint("does a clone of this gateway run? give one of them another --edge name")
                    .retryable())
            }
            Err(error) => {
                self.node += 1;
                Err(error)
            }
        }
    }
}

fn no_answer(within: Duration) -> Error {
    Error::new(Code::UNREACHABLE, format!("no answer from the target in {within:?}"))
        .hint("is the link up, and does the target run?")
        .retryable()
}

/// How many partitions a topic of a Buttress has; makes it where it is missing and `create` says so.
async fn ensure(client: &Client, name: &str, create: bool, settings: Value) -> Result<usize, Error> {
    let asked = async {
        let count = |topic: &Value| topic["partitions"].as_array().map_or(0, Vec::len);
        match client.get(&format!("/v1/topics/{}", segment(name))).await {
            Err(error) if error.code == Code::TOPIC_UNKNOWN && create => {
                match client.send_json(Method::POST, "/v1/topics", &settings).await {
                    Ok(topic) => Ok(count(&topic)),
                    // Another lane was quicker.
                    Err(error) if error.code == Code::TOPIC_EXISTS => {
                        Ok(count(&client.get(&format!("/v1/topics/{}", segment(name))).await?))
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) if error.code == Code::TOPIC_UNKNOWN => {
                Err(Error::new(Code::TOPIC_UNKNOWN, format!("the target has no topic \"{name}\""))
                    .hint("make it there, or let the uplink make it: `buttress uplink create … --create-topics`"))
            }
            found => Ok(count(&found?)),
        }
    };
    timeout(ENTRY_MAX, asked).await.unwrap_or_else(|_| Err(no_answer(ENTRY_MAX)))
}

#[cfg(test)]
mod tests {
    use buttress_bridge::{
        kafka::Mechanism,
        secure::{Password, Roots},
    };

    use super::*;

    #[test]
    fn targets_are_told_from_what_is_none() {
        let two = ["a:1".to_owned(), "b:2".to_owned()];
        for (text, kafka) in [("kafka://a:1,b:2", true), ("buttress://a:1,b:2/", false), ("http://a:1,b:2", false)] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.places(), matches!(address, Address::Kafka(_))), (&two[..], kafka), "{text}");
        }
        for text in [
            "a:1",
            "kafka://",
            "kafka://a",
            "kafka://a:0",
            "kafka://a:x",
            "kafka://a:1/x",
            "mqtt://a:1",
            "kafka://a:1,",
            "buttress://me@a:1",
            "buttress://a:1?tls=ca.pem",
            "kafka://me@a:1?sasl=gssapi",
            "kafka://a:1?sasl=plain",
            "kafka://a:1?tls=",
            "kafka://a:1?nothing=x",
            "kafka://a:1?prefix=line-",
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.code == Code::UPLINK_INVALID && error.hint.is_some(), "{text}: {error}");
        }
    }

    #[test]
    fn a_kafka_is_named_with_its_tls_and_its_user_and_no_file_is_read() {
        let to = "kafka://alice@a:1,b:2?tls=/nowhere/ca.pem&sasl=scram-sha-256&password-file=/nowhere/password";
        let Ok(Address::Kafka(options)) = Address::parse(to) else { panic!("it is a Kafka") };
        assert_eq!(options.bootstrap, ["a:1", "b:2"]);
        assert_eq!(options.tls.unwrap().roots, Roots::File("/nowhere/ca.pem".into()));
        let sasl = options.sasl.unwrap();
        assert_eq!((sasl.mechanism, &*sasl.user.name), (Mechanism::ScramSha256, "alice"));
        assert_eq!(sasl.user.password, Password::File("/nowhere/password".into()));
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        for scheme in ["kafka", "buttress", "http", "mqtt"] {
            let error = Address::parse(&format!("{scheme}://alice:hunter2@a:1")).unwrap_err();
            assert!(error.code == Code::UPLINK_INVALID && !format!("{error:?}").contains("hunter2"), "{error}");
        }
        let error = Address::parse("kafka://alice@a:1?password=hunter2").unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_that_wait_for_one_connection_hear_the_same() {
        // Nobody listens there: each attempt alone lasts until its deadline.
        let target = Target::new("kafka://127.0.0.1:1", &Secrets::new("/nowhere".as_ref(), &[])).unwrap();
        let began = Instant::now();
        let heard = futures::future::join_all((0..16).map(|_| target.kafka())).await;
        assert!(heard.into_iter().all(|heard| heard.is_err_and(|error| error.code == Code::UNREACHABLE)));
        assert!(began.elapsed() < KAFKA_DEADLINE * 4, "about one deadline in the clock of the test, not sixteen");
    }

    #[test]
    fn one_target_is_known_by_another_user_and_by_one_of_its_hosts() {
        let meets = |one: &str, other: &str| Address::parse(one).unwrap().meets(&Address::parse(other).unwrap());
        assert!(meets("kafka://a:1,b:2", "kafka://me@b:2?tls=system"));
        assert!(meets("buttress://a:1", "http://a:1"));
        assert!(!meets("kafka://a:1", "kafka://a:2"));
        assert!(!meets("kafka://a:1", "buttress://a:1"));
    }
}
