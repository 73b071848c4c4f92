//! Kafka's messages.
//!
//! A frame is a four-byte length and a message; a request's message is a header (API, version, correlation id, client)
//! and a body, a response's a correlation id and a body. [`Request::decode`] takes a frame's message apart;
//! [`encode_response`] builds a whole frame as chunks for one vectored write, in which record bytes are not copied.
//!
//! What is where: [`read`] and [`write`] know how values are laid out, `message` turns a definition into a type with
//! decoder and encoder, one file per API holds its definitions, and the table below holds each API's number, the
//! versions that are served and the version from which it is flexible. To add an API: a file, a line in `apis!`.
//!
//! Source: Kafka's protocol guide; KIP-482 (flexible versions), KIP-511 (ApiVersions).

pub mod alter_configs;
pub mod api_versions;
pub mod create_partitions;
pub mod create_topics;
pub mod delete_groups;
pub mod delete_records;
pub mod delete_topics;
pub mod describe_cluster;
pub mod describe_configs;
pub mod describe_groups;
pub mod end_txn;
mod error_code;
pub mod fetch;
pub mod find_coordinator;
pub mod heartbeat;
pub mod incremental_alter_configs;
pub mod init_producer_id;
pub mod join_group;
pub mod leave_group;
pub mod list_groups;
pub mod list_offsets;
pub(crate) mod message;
pub mod metadata;
pub mod offset_commit;
pub mod offset_delete;
pub mod offset_fetch;
pub mod offset_for_leader_epoch;
pub mod produce;
mod read;
pub mod sasl_authenticate;
pub mod sasl_handshake;
pub mod sync_group;
pub mod txn_offset_commit;
mod write;

use bytes::{Buf, Bytes};

pub use error_code::ErrorCode;
pub use message::{Field, Records, Uuid};
pub use read::{DecodeError, ITEMS_MAX, Reader};
pub use write::Writer;

/// One API: its number, the versions served, and from which version on it is flexible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    pub key: i16,
    pub name: &'static str,
    /// The lowest version that is advertised and decoded.
    pub min: i16,
    pub max: i16,
    pub flexible_from: i16,
}

impl Api {
    pub fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible_from
    }

    pub fn serves(&self, version: i16) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// ApiVersions answers with the oldest header, because the client cannot know yet what is understood (KIP-511).
    fn has_flexible_response_header(&self, version: i16) -> bool {
        self.is_flexible(version) && self.key != Self::API_VERSIONS.key
    }
}

/// For an API that has no flexible version.
const NEVER: i16 = i16::MAX;

macro_rules! apis {
    ($($name:ident, $const:ident = $key:literal, versions $min:literal..=$max:literal, flexible $flexible:tt..,
        $module:ident::{$request:ident, $response:ident};)*) => {
        impl Api {
            $(pub const $const: Api = Api {
                key: $key, name: stringify!($name), min: $min, max: $max, flexible_from: $flexible,
            };)*
            /// Every API that is served, by number.
            pub const SERVED: &'static [Api] = &[$(Api::$const),*];
        }

        /// A decoded request.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Request {
            $($name($module::$request),)*
        }

        impl Request {
            fn read(api: &Api, r: &mut Reader) -> Result<Self, DecodeError> {
                match api.key {
                    $($key => Field::read(r, stringify!($name)).map(Self::$name),)*
                    other => unreachable!("API {other} is not in the table"),
                }
            }

            pub fn api(&self) -> &'static Api {
                match self {
                    $(Self::$name(_) => &Api::$const,)*
                }
            }
        }

        $(impl Body for $module::$request { const API: Api = Api::$const; }
        impl Body for $module::$response { const API: Api = Api::$const; })*

        /// Decodes a response and encodes it again, for the fuzzer: the second decoding must equal the first.
        pub(crate) fn check_response_round_trip(api: &Api, version: i16, message: Bytes) {
            match api.key {
                $($key => check_round_trip::<$module::$response>(version, message),)*
                other => unreachable!("API {other} is not in the table"),
            }
        }

        /// The same for a request.
        pub(crate) fn check_request_round_trip(header: &RequestHeader, request: &Request) {
            let frame = match request {
                $(Request::$name(body) => encode_request(header, body),)*
            };
            let again = Request::decode(joined(frame).slice(4..)).expect("what was encoded decodes");
            assert_eq!((&again.0, &again.1), (header, request));
        }
    };
}

apis! {
    Produce, PRODUCE = 0, versions 0..=13, flexible 9.., produce::{ProduceRequest, ProduceResponse};
    Fetch, FETCH = 1, versions 4..=12, flexible 12.., fetch::{FetchRequest, FetchResponse};
    ListOffsets, LIST_OFFSETS = 2, versions 1..=10, flexible 6..,
        list_offsets::{ListOffsetsRequest, ListOffsetsResponse};
    Metadata, METADATA = 3, versions 0..=13, flexible 9.., metadata::{MetadataRequest, MetadataResponse};
    OffsetCommit, OFFSET_COMMIT = 8, versions 2..=9, flexible 8..,
        offset_commit::{OffsetCommitRequest, OffsetCommitResponse};
    OffsetFetch, OFFSET_FETCH = 9, versions 1..=9, flexible 6..,
        offset_fetch::{OffsetFetchRequest, OffsetFetchResponse};
    FindCoordinator, FIND_COORDINATOR = 10, versions 0..=6, flexible 3..,
        find_coordinator::{FindCoordinatorRequest, FindCoordinatorResponse};
    JoinGroup, JOIN_GROUP = 11, versions 0..=9, flexible 6.., join_group::{JoinGroupRequest, JoinGroupResponse};
    Heartbeat, HEARTBEAT = 12, versions 0..=4, flexible 4.., heartbeat::{HeartbeatRequest, HeartbeatResponse};
    LeaveGroup, LEAVE_GROUP = 13, versions 0..=5, flexible 4.., leave_group::{LeaveGroupRequest, LeaveGroupResponse};
    SyncGroup, SYNC_GROUP = 14, versions 0..=5, flexible 4.., sync_group::{SyncGroupRequest, SyncGroupResponse};
    DescribeGroups, DESCRIBE_GROUPS = 15, versions 0..=6, flexible 5..,
        describe_groups::{DescribeGroupsRequest, DescribeGroupsResponse};
    ListGroups, LIST_GROUPS = 16, versions 0..=5, flexible 3.., list_groups::{ListGroupsRequest, ListGroupsResponse};
    SaslHandshake, SASL_HANDSHAKE = 17, versions 0..=1, flexible NEVER..,
        sasl_handshake::{SaslHandshakeRequest, SaslHandshakeResponse};
    ApiVersions, API_VERSIONS = 18, versions 0..=4, flexible 3..,
        api_versions::{ApiVersionsRequest, ApiVersionsResponse};
    CreateTopics, CREATE_TOPICS = 19, versions 2..=7, flexible 5..,
        create_topics::{CreateTopicsRequest, CreateTopicsResponse};
    DeleteTopics, DELETE_TOPICS = 20, versions 1..=6, flexible 4..,
        delete_topics::{DeleteTopicsRequest, DeleteTopicsResponse};
    DeleteRecords, DELETE_RECORDS = 21, versions 0..=2, flexible 2..,
        delete_records::{DeleteRecordsRequest, DeleteRecordsResponse};
    InitProducerId, INIT_PRODUCER_ID = 22, versions 0..=5, flexible 2..,
        init_producer_id::{InitProducerIdRequest, InitProducerIdResponse};
    OffsetForLeaderEpoch, OFFSET_FOR_LEADER_EPOCH = 23, versions 2..=4, flexible 4..,
        offset_for_leader_epoch::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};
    DescribeConfigs, DESCRIBE_CONFIGS = 32, versions 1..=4, flexible 4..,
        describe_configs::{DescribeConfigsRequest, DescribeConfigsResponse};
    AlterConfigs, ALTER_CONFIGS = 33, versions 0..=2, flexible 2..,
        alter_configs::{AlterConfigsRequest, AlterConfigsResponse};
    SaslAuthenticate, SASL_AUTHENTICATE = 36, versions 0..=2, flexible 2..,
        sasl_authenticate::{SaslAuthenticateRequest, SaslAuthenticateResponse};
    CreatePartitions, CREATE_PARTITIONS = 37, versions 0..=3, flexible 2..,
        create_partitions::{CreatePartitionsRequest, CreatePartitionsResponse};
    DeleteGroups, DELETE_GROUPS = 42, versions 0..=2, flexible 2..,
        delete_groups::{DeleteGroupsRequest, DeleteGroupsResponse};
    IncrementalAlterConfigs, INCREMENTAL_ALTER_CONFIGS = 44, versions 0..=1, flexible 1..,
        incremental_alter_configs::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};
    OffsetDelete, OFFSET_DELETE = 47, versions 0..=0, flexible NEVER..,
        offset_delete::{OffsetDeleteRequest, OffsetDeleteResponse};
    DescribeCluster, DESCRIBE_CLUSTER = 60, versions 0..=2, flexible 0..,
        describe_cluster::{DescribeClusterRequest, DescribeClusterResponse};
}

/// APIs that we ask of a broker and do not serve.
macro_rules! asked {
    ($($const:ident = $key:literal, $name:literal, versions $min:literal..=$max:literal, flexible $flexible:literal..,
        $module:ident::{$request:ident, $response:ident};)*) => {
        impl Api {
            $(pub const $const: Api = Api {
                key: $key, name: $name, min: $min, max: $max, flexible_from: $flexible,
            };)*
        }
        $(impl Body for $module::$request { const API: Api = Api::$const; }
        impl Body for $module::$response { const API: Api = Api::$const; })*
    };
}

asked! {
    END_TXN = 26, "EndTxn", versions 0..=5, flexible 3.., end_txn::{EndTxnRequest, EndTxnResponse};
    TXN_OFFSET_COMMIT = 28, "TxnOffsetCommit", versions 0..=5, flexible 3..,
        txn_offset_commit::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};
}

/// A request's or a response's body, which knows its API.
pub trait Body: Field {
    const API: Api;
}

/// What comes before a request's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader {
    pub api_key: i16,
    pub version: i16,
    pub correlation_id: i32,
    pub client_id: Option<String>,
}

/// Why a frame is not a request that can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("API {} is not served", .0.api_key)]
    Api(RequestHeader),
    /// To an ApiVersions request there is an answer: its version 0 with UNSUPPORTED_VERSION.
    #[error("version {} of API {} is not served", .0.version, .0.api_key)]
    Version(RequestHeader),
    #[error("the request header is malformed: {0}")]
    Header(DecodeError),
    #[error("the request of API {} version {} is malformed: {error}", .header.api_key, .header.version)]
    Body { header: RequestHeader, error: DecodeError },
}

impl Request {
    /// Decodes a frame's message (the frame without its length).
    ///
    /// # Errors
    /// An API or version that is not served, or bytes that are not what they should be. For the first two the header
    /// has no client id, because its form is not known.
    pub fn decode(mut message: Bytes) -> Result<(RequestHeader, Self), RequestError> {
        if message.len() < 8 {
            return Err(RequestError::Header(DecodeError::Short("request header")));
        }
        let mut header = RequestHeader {
            api_key: message.get_i16(),
            version: message.get_i16(),
            correlation_id: message.get_i32(),
            client_id: None,
        };
        let Some(api) = Api::SERVED.iter().find(|api| api.key == header.api_key) else {
            return Err(RequestError::Api(header));
        };
        if !api.serves(header.version) {
            return Err(RequestError::Version(header));
        }
        let flexible = api.is_flexible(header.version);
        // The client id keeps its old form in a flexible header; only tagged fields follow it.
        let mut r = Reader::new(message, header.version, false);
        header.client_id = r.nullable_string("client_id").map_err(RequestError::Header)?;
        let rest = r.take(r.remaining(), "request").map_err(RequestError::Header)?;
        let mut r = Reader::new(rest, header.version, flexible);
        r.tagged_fields(|_, _| Ok(false)).map_err(RequestError::Header)?;
        // What comes behind the body is left alone, as Kafka leaves it: librdkafka 2.16 asks for the metadata of all topics in
        // version 13 with four bytes too many.
        match Self::read(api, &mut r) {
            Ok(request) => Ok((header, request)),
            Err(error) => Err(RequestError::Body { header, error }),
        }
    }
}

/// A whole response frame as chunks.
pub fn encode_response<B: Body>(version: i16, correlation_id: i32, body: &B) -> Vec<Bytes> {
    let mut w = Writer::new(version, B::API.has_flexible_response_header(version));
    w.i32(0);
    w.i32(correlation_id);
    w.tagged_fields(&[]);
    w.set_flexible(B::API.is_flexible(version));
    body.write(&mut w);
    w.finish_frame()
}

/// A whole request frame as chunks; `header.api_key` is taken from the body.
pub fn encode_request<B: Body>(header: &RequestHeader, body: &B) -> Vec<Bytes> {
    let mut w = Writer::new(header.version, false);
    w.i32(0);
    w.i16(B::API.key);
    w.i16(header.version);
    w.i32(header.correlation_id);
    w.nullable_string(header.client_id.as_deref());
    w.set_flexible(B::API.is_flexible(header.version));
    w.tagged_fields(&[]);
    body.write(&mut w);
    w.finish_frame()
}

/// Decodes a response's message (the frame without its length): its correlation id and body.
///
/// # Errors
/// Bytes that are not such a response.
pub fn decode_response<B: Body>(version: i16, message: Bytes) -> Result<(i32, B), DecodeError> {
    let mut r = Reader::new(message, version, B::API.has_flexible_response_header(version));
    let correlation_id = r.i32("correlation_id")?;
    r.tagged_fields(|_, _| Ok(false))?;
    let rest = r.take(r.remaining(), "response")?;
    let mut r = Reader::new(rest, version, B::API.is_flexible(version));
    let body = B::read(&mut r, B::API.name)?;
    r.end()?;
    Ok((correlation_id, body))
}

fn check_round_trip<B: Body + PartialEq + std::fmt::Debug>(version: i16, message: Bytes) {
    let Ok((correlation_id, body)) = decode_response::<B>(version, message) else { return };
    let frame = joined(encode_response(version, correlation_id, &body));
    let again = decode_response::<B>(version, frame.slice(4..)).expect("what was encoded decodes");
    assert_eq!(again, (correlation_id, body));
}

/// The chunks of a frame in one piece.
pub fn joined(chunks: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(chunks) {
        Ok([one]) => one,
        Err(many) => many.concat().into(),
    }
}
