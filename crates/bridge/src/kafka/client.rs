//! Connections to a Kafka's brokers, who leads what, and who coordinates whom.
//!
//! A connection carries one request at a time and goes back to its pool after the answer; one that failed, or whose caller has
//! gone away in the middle, is dropped. A fetch that waits for records therefore keeps nothing else waiting. Everything that
//! is on the wire has a time limit, everything that comes from it a size limit, and no count of it allocates.
//!
//! Source: Kafka's protocol guide; KIP-511 (ApiVersions), KIP-584 (features), KIP-890 (transactions).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_wire::kafka::{
    Api, Body, ErrorCode, RequestHeader,
    api_versions::{ApiVersionsRequest, ApiVersionsResponse},
    decode_response, encode_request,
    find_coordinator::{FindCoordinatorRequest, FindCoordinatorResponse},
    metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse},
    sasl_authenticate::{SaslAuthenticateRequest, SaslAuthenticateResponse},
    sasl_handshake::{SaslHandshakeRequest, SaslHandshakeResponse},
};
use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    errors,
    sasl::{self, Mechanism, Scram},
};
use crate::{
    patience::lock,
    secure::{self, Connector, Dial, User, Wire},
};

/// Requests on their way to one broker at the same time, each on a connection of its own.
pub const CONNECTIONS_PER_BROKER_MAX: usize = 128;
/// Idle connections that are kept for each broker.
const IDLE_MAX: usize = 16;
/// Addresses to begin with.
pub const BOOTSTRAP_MAX: usize = 32;
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The largest answer that is taken: a fetch of one batch beyond what was asked for, and metadata of many topics.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a read makes room for at once, whatever length was stated.
const READ_STEP: usize = 64 * 1024;
/// Longest wait for an answer, beyond what the request itself lets the broker wait.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nothing was sent.
    #[error("no broker can be reached: {0}")]
    Unreachable(String),
    /// Sent, and no answer, or one that makes no sense. What was asked for may have been done.
    #[error("no answer from broker {address}: {why}")]
    Open { address: String, why: String },
    /// It cannot be asked.
    #[error("{0}")]
    Refused(Error),
}

impl Failure {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::Unreachable(_) | Self::Open { .. } => {
                let hint = "is the address one of a broker's, can what it advertises be reached from here, and does it want \
                            TLS (tls=) or a user?";
                Error::new(Code::UNREACHABLE, self.to_string()).hint(hint).retryable()
            }
        }
    }
}

type Versions = BTreeMap<i16, (i16, i16)>;

struct Connection {
    stream: Wire,
    address: String,
    versions: Arc<Versions>,
    /// When the broker no longer counts us as who we are.
    until: Option<Instant>,
}

/// Who a client says that it is.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) mechanism: Mechanism,
    pub(super) user: User,
    /// PLAIN may go over a connection that anybody can read.
    pub(super) cleartext: bool,
}

struct Broker {
    room: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

/// A partition as metadata has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leader {
    pub(super) broker: i32,
    pub(super) epoch: i32,
}

#[derive(Clone, Debug)]
pub(super) struct TopicMeta {
    pub(super) id: [u8; 16],
    pub(super) partitions: Vec<Leader>,
}

#[derive(Default)]
struct Known {
    brokers: HashMap<i32, String>,
    topics: HashMap<String, TopicMeta>,
    /// Topics that may not be looked at.
    denied: BTreeSet<String>,
    coordinators: HashMap<(i8, String), String>,
}

pub(super) struct Client {
    bootstrap: Vec<String>,
    connector: Connector,
    login: Option<Login>,
    client_id: String,
    correlation: AtomicI32,
    brokers: Mutex<HashMap<String, Arc<Broker>>>,
    known: Mutex<Known>,
}

impl Client {
    /// # Errors
    /// `CONFIG` for a list that cannot be used.
    pub(super) fn new(
        bootstrap: &[String],
        client_id: String,
        connector: Connector,
        login: Option<Login>,
    ) -> Result<Self, Error> {
        if let Some(login) = &login {
            login.user.password()?;
        }
        let config = |message: String| Error::new(Code::CONFIG, message).hint("HOST:PORT[,HOST:PORT…]");
        if bootstrap.is_empty() || bootstrap.len() > BOOTSTRAP_MAX {
            return Err(config(format!("{} brokers are given, 1 to {BOOTSTRAP_MAX} can be", bootstrap.len())));
        }
        for address in bootstrap {
            let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
            if port.is_none_or(|port| port.parse::<u16>().is_err()) || address.contains(['/', ' ']) {
                return Err(config(format!("'{address}' is not the address of a broker")));
            }
        }
        Ok(Self {
            bootstrap: bootstrap.to_vec(),
            connector,
            login,
            client_id,
            correlation: AtomicI32::new(1),
            brokers: Mutex::default(),
            known: Mutex::default(),
        })
    }

    fn broker(&self, address: &str) -> Arc<Broker> {
        let new = || Arc::new(Broker { room: Semaphore::new(CONNECTIONS_PER_BROKER_MAX), idle: Mutex::default() });
        lock(&self.brokers).entry(address.to_owned()).or_insert_with(new).clone()
    }

    async fn connect(&self, address: &str) -> Result<Connection, Failure> {
        let unreachable = |why: String| Failure::Unreachable(format!("{address}: {why}"));
        let stream = self.connector.connect(address, CONNECT_MAX).await.map_err(|dial| match dial {
            Dial::Refused(error) => Failure::Refused(error),
            Dial::Unreachable(why) => Failure::Unreachable(why),
        })?;
        let mut connection = Connection { stream, address: address.to_owned(), versions: Arc::default(), until: None };
        let hello = ApiVersionsRequest {
            client_software_name: "buttress".into(),
            client_software_version: env!("CARGO_PKG_VERSION").into(),
        };
        let answer: ApiVersionsResponse =
            self.exchange(&mut connection, 4, &hello, ANSWER_MAX).await.map_err(|failure| match failure {
                Failure::Open { why, .. } => unreachable(why),
                other => other,
            })?;
        if answer.error_code.is_error() {
            return Err(unreachable(format!("ApiVersions is answered with {}", answer.error_code)));
        }
        check_features(&answer).map_err(Failure::Refused)?;
        let versions = answer.api_keys.iter().map(|api| (api.api_key, (api.min_version, api.max_version)));
        connection.versions = Arc::new(versions.collect());
        if let Some(login) = &self.login {
            self.log_in(&mut connection, login).await.map_err(|failure| match failure {
                Failure::Open { why, .. } => unreachable(why),
                other => other,
            })?;
        }
        Ok(connection)
    }

    /// Says who we are, before anything else is asked.
    async fn log_in(&self, connection: &mut Connection, login: &Login) -> Result<(), Failure> {
        let address = connection.address.clone();
        let config = |message: String| Error::new(Code::CONFIG, message);
        let Login { mechanism, user, cleartext } = login;
        if *mechanism == Mechanism::Plain {
            secure::check_cleartext(&address, self.connector.is_secure(), *cleartext).map_err(Failure::Refused)?;
        }
        let asked = SaslHandshakeRequest { mechanism: mechanism.name().into() };
        let answer: SaslHandshakeResponse = self.exchange(connection, 1, &asked, ANSWER_MAX).await?;
        match answer.error_code {
            ErrorCode::NONE => {}
            ErrorCode::UNSUPPORTED_SASL_MECHANISM => {
                let offered = answer.mechanisms.join(", ").to_lowercase();
                let error = config(format!("broker {address} does not take {}", mechanism.name()));
                return Err(Failure::Refused(error.hint(format!("it takes sasl={offered}"))));
            }
            code => {
                let error = config(format!("broker {address} takes no users there: {code}"));
                return Err(Failure::Refused(error.hint("leave the user out, or name a listener with SASL")));
            }
        }
        let password = user.password().map_err(Failure::Refused)?;
        let lifetime_ms = match mechanism {
            Mechanism::Plain => self.authenticate(connection, user, sasl::plain(&user.name, &password)).await?.1,
            _ => {
                let mut random = [0; 18];
                getrandom::fill(&mut random).map_err(|error| {
                    Failure::Refused(Error::new(Code::LIMITS, format!("no random number: {error}")))
                })?;
                let nonce = random.iter().map(|byte| format!("{byte:02x}")).collect();
                let mut scram = Scram::new(*mechanism, &user.name, nonce);
                let (answer, _) = self.authenticate(connection, user, scram.first()).await?;
                let second = scram.second(&answer, &password).map_err(Failure::Refused)?;
                let (answer, lifetime_ms) = self.authenticate(connection, user, second).await?;
                scram.third(&answer).map_err(Failure::Refused)?;
                lifetime_ms
            }
        };
        if let Ok(lifetime_ms @ 1..) = u64::try_from(lifetime_ms) {
            // A broker that has been told connections.max.reauth.ms hangs up on who is late; a new connection costs little.
            connection.until = Some(Instant::now() + Duration::from_millis(lifetime_ms) * 4 / 5);
        }
        Ok(())
    }

    async fn authenticate(
        &self,
        connection: &mut Connection,
        user: &User,
        bytes: Vec<u8>,
    ) -> Result<(Bytes, i64), Failure> {
        let asked = SaslAuthenticateRequest { auth_bytes: bytes.into() };
        let answer: SaslAuthenticateResponse = self.exchange(connection, 2, &asked, ANSWER_MAX).await?;
        if answer.error_code.is_error() {
            let said = answer.error_message.unwrap_or_else(|| answer.error_code.to_string());
            let message = format!("broker {} does not take user '{}': {said}", connection.address, user.name);
            let error = Error::new(Code::CREDENTIALS, message);
            return Err(Failure::Refused(error.hint("check the user, the password and its mechanism (sasl=)")));
        }
        Ok((answer.auth_bytes, answer.session_lifetime_ms))
    }

    async fn exchange<Q: Body, A: Body>(
        &self,
        connection: &mut Connection,
        version: i16,
        request: &Q,
        within: Duration,
    ) -> Result<A, Failure> {
        let correlation_id = self.correlation.fetch_add(1, Relaxed);
        let header =
            RequestHeader { api_key: Q::API.key, version, correlation_id, client_id: Some(self.client_id.clone()) };
        let frame = encode_request(&header, request);
        let answer = timeout(within, async {
            for chunk in &frame {
                connection.stream.write_all(chunk).await?;
            }
            connection.stream.flush().await?;
            read_frame(&mut connection.stream).await
        });
        let open = |why: String| Failure::Open { address: connection.address.clone(), why };
        let message = match answer.await {
            Ok(Ok(message)) => message,
            // With TLS 1.3 a server looks at our certificate after the handshake, and says then what it thinks of it.
            Ok(Err(error)) => match secure::tls_error(&connection.address, &error) {
                Some(error) => return Err(Failure::Refused(error)),
                None => return Err(open(error.to_string())),
            },
            Err(_) => return Err(open(format!("nothing in {within:?}"))),
        };
        match decode_response::<A>(version, message) {
            Ok((id, body)) if id == correlation_id => Ok(body),
            Ok((id, _)) => Err(open(format!("the answer to request {id} came for request {correlation_id}"))),
            Err(error) => Err(open(format!("its answer to {} is malformed: {error}", Q::API.name))),
        }
    }

    /// Asks a broker, in the newest version that both speak and that is at least `min`. `wait`: how long the request lets
    /// the broker wait.
    pub(super) async fn ask<Q: Body, A: Body>(
        &self,
        address: &str,
        min: i16,
        request: &Q,
        wait: Duration,
    ) -> Result<A, Failure> {
        let broker = self.broker(address);
        let _room = broker.room.acquire().await.expect("the semaphore is never closed");
        loop {
            let pooled = lock(&broker.idle).pop();
            let was_idle = pooled.is_some();
            let mut connection = match pooled {
                Some(connection) if connection.is_fresh() => connection,
                Some(_) => continue,
                None => self.connect(address).await?,
            };
            let version = version_of::<Q>(&connection.versions, min).map_err(Failure::Refused)?;
            let answer = self.exchange(&mut connection, version, request, ANSWER_MAX + wait).await;
            if answer.is_ok() {
                let mut idle = lock(&broker.idle);
                if idle.len() < IDLE_MAX {
                    idle.push(connection);
                }
            } else if was_idle {
                // The others are likely to be as dead; new ones say what is the matter.
                lock(&broker.idle).clear();
            }
            return answer;
        }
    }

    /// Asks any broker that answers.
    pub(super) async fn ask_any<Q: Body, A: Body>(&self, min: i16, request: &Q) -> Result<A, Failure> {
        let mut addresses: Vec<String> = lock(&self.known).brokers.values().cloned().collect();
        addresses.sort_unstable();
        addresses.extend(self.bootstrap.iter().cloned());
        let mut last = Failure::Unreachable("no broker is known".into());
        for address in addresses {
            match self.ask(&address, min, request, Duration::ZERO).await {
                Err(failure @ (Failure::Unreachable(_) | Failure::Open { .. })) => last = failure,
                answered => return answered,
            }
        }
        Err(last)
    }

    /// Asks for these topics and remembers what is answered. A topic that is not there is forgotten.
    pub(super) async fn refresh(&self, topics: &[String]) -> Result<(), Failure> {
        let named =
            |name: &String| MetadataRequestTopic { name: Some(name.clone()), ..MetadataRequestTopic::default() };
        let request = MetadataRequest {
            topics: Some(topics.iter().map(named).collect()),
            allow_auto_topic_creation: false,
            ..MetadataRequest::default()
        };
        let answer: MetadataResponse = self.ask_any(10, &request).await?;
        let asked: HashSet<&String> = topics.iter().collect();
        let mut known = lock(&self.known);
        known.brokers = answer.brokers.iter().map(|b| (b.node_id, format!("{}:{}", b.host, b.port))).collect();
        for topic in answer.topics {
            // Names that nobody asked for are not remembered.
            let Some(name) = topic.name.filter(|name| asked.contains(name)) else { continue };
            if topic.error_code == ErrorCode::TOPIC_AUTHORIZATION_FAILED {
                known.topics.remove(&name);
                known.denied.insert(name);
                continue;
            }
            known.denied.remove(&name);
            if topic.error_code.is_error() {
                if topic.error_code == ErrorCode::UNKNOWN_TOPIC_OR_PARTITION {
                    known.topics.remove(&name);
                }
                continue;
            }
            let mut partitions = topic.partitions;
            partitions.sort_unstable_by_key(|p| p.partition_index);
            let leaders = partitions.iter().map(|p| Leader { broker: p.leader_id, epoch: p.leader_epoch }).collect();
            known.topics.insert(name, TopicMeta { id: topic.topic_id.0, partitions: leaders });
        }
        Ok(())
    }

    pub(super) fn topic(&self, name: &str) -> Option<TopicMeta> {
        lock(&self.known).topics.get(name).cloned()
    }

    /// # Errors
    /// `FORBIDDEN` for a topic that may not be looked at.
    pub(super) fn check_allowed(&self, topic: &str) -> Result<(), Error> {
        match lock(&self.known).denied.contains(topic) {
            true => Err(errors::of(ErrorCode::TOPIC_AUTHORIZATION_FAILED, &format!("a look at topic '{topic}'"))),
            false => Ok(()),
        }
    }

    pub(super) fn forget_topic(&self, name: &str) {
        lock(&self.known).topics.remove(name);
    }

    /// The address of the broker that leads, and its epoch; `None` where nobody is known to.
    pub(super) fn leader(&self, topic: &str, partition: i32) -> Option<(String, i32)> {
        let known = lock(&self.known);
        let leader = known.topics.get(topic)?.partitions.get(usize::try_from(partition).ok()?)?;
        Some((known.brokers.get(&leader.broker)?.clone(), leader.epoch))
    }

    /// The broker that coordinates a group or a transactional id.
    pub(super) async fn coordinator(&self, kind: i8, key: &str) -> Result<Result<String, ErrorCode>, Failure> {
        if let Some(address) = lock(&self.known).coordinators.get(&(kind, key.to_owned())) {
            return Ok(Ok(address.clone()));
        }
        let request =
            FindCoordinatorRequest { key_type: kind, coordinator_keys: vec![key.to_owned()], ..Default::default() };
        let answer: FindCoordinatorResponse = self.ask_any(4, &request).await?;
        let Some(found) = answer.coordinators.into_iter().find(|c| c.key == key) else {
            return Ok(Err(ErrorCode::COORDINATOR_NOT_AVAILABLE));
        };
        if found.error_code.is_error() {
            return Ok(Err(found.error_code));
        }
        let address = format!("{}:{}", found.host, found.port);
        lock(&self.known).coordinators.insert((kind, key.to_owned()), address.clone());
        Ok(Ok(address))
    }

    /// The coordinator does not answer, or says that it is none.
    pub(super) fn forget_coordinator(&self, kind: i8, key: &str) {
        lock(&self.known).coordinators.remove(&(kind, key.to_owned()));
    }
}

impl Connection {
    fn is_fresh(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until) && self.stream.is_quiet()
    }
}

async fn read_frame(stream: &mut Wire) -> io::Result<Bytes> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut buffer = BytesMut::with_capacity(READ_STEP);
    while buffer.len() < 4 {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if buffer.starts_with(b"\x15\x03") {
        return Err(invalid("it speaks TLS there: tls=ca.pem".into()));
    }
    let stated = buffer.get_i32();
    let length = usize::try_from(stated).ok().filter(|length| *length <= RESPONSE_BYTES_MAX);
    let length = length
        .ok_or_else(|| invalid(format!("an answer of {stated} bytes is stated, {RESPONSE_BYTES_MAX} are taken")))?;
    while buffer.len() < length {
        buffer.reserve(READ_STEP.min(length - buffer.len()));
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if buffer.len() > length {
        return Err(invalid(format!("{} bytes come that nobody asked for", buffer.len() - length)));
    }
    Ok(buffer.freeze())
}

fn version_of<Q: Body>(versions: &Versions, min: i16) -> Result<i16, Error> {
    let (from, to) = versions.get(&Q::API.key).copied().unwrap_or((0, -1));
    let version = to.min(ceiling(&Q::API));
    if version < min || version < from {
        let message = format!("the broker speaks {} in versions {from} to {to}, {min} is needed", Q::API.name);
        return Err(Error::new(Code::UNSUPPORTED, message).hint("Apache Kafka 4.0 or newer is needed"));
    }
    Ok(version)
}

/// The newest version that we ask in. From 13 on a Fetch names topics by their ids, which is what we want; a Produce of that
/// version is not served by Kafka 4.0.
fn ceiling(api: &Api) -> i16 {
    match api.key {
        key if key == Api::PRODUCE.key => 12,
        key if key == Api::FETCH.key => 13,
        _ => api.max,
    }
}

/// Transactions of version 2 bump the producer's epoch with each transaction and verify each write, so that a request which
/// comes late can never be counted to a later transaction (KIP-890). Nothing less is used.
fn check_features(answer: &ApiVersionsResponse) -> Result<(), Error> {
    let level = answer.finalized_features.iter().find(|f| f.name == "transaction.version").map(|f| f.max_version_level);
    if level.is_none_or(|level| level < 2) {
        let found = level.map_or("none".to_owned(), |level| level.to_string());
        let error = Error::new(Code::UNSUPPORTED, format!("the Kafka has transaction.version {found}, 2 is needed"));
        return Err(error.hint("on Kafka 4: kafka-features.sh upgrade --feature transaction.version=2"));
    }
    Ok(())
}
