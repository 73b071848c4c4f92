//! Kafka's messages, held against bytes that were made from Kafka's own schemas, and against damaged ones.

use std::sync::LazyLock;

use buttress_wire::{
    fuzz,
    kafka::{
        self, Api, Body, DecodeError, ITEMS_MAX, Request, RequestError, RequestHeader, alter_configs,
        api_versions::{self, ApiVersionsRequest},
        create_partitions, create_topics, delete_groups, delete_records, delete_topics, describe_cluster,
        describe_configs, describe_groups,
        fetch::{self, FetchPartitionResponse, FetchResponse, FetchTopicResponse},
        find_coordinator, heartbeat, incremental_alter_configs, init_producer_id, join_group, leave_group, list_groups,
        list_offsets,
        metadata::{self, MetadataRequest, MetadataRequestTopic},
        offset_commit, offset_delete, offset_fetch, offset_for_leader_epoch, produce, sasl_authenticate,
        sasl_handshake, sync_group,
    },
};
use bytes::Bytes;
use expect_test::{Expect, expect};
use proptest::prelude::*;

const GOLDEN: &str = include_str!("../testdata/kafka_golden.txt");

struct Golden {
    api: &'static Api,
    is_request: bool,
    version: i16,
    message: Bytes,
}

static GOLDENS: LazyLock<Vec<Golden>> = LazyLock::new(|| golden().collect());

fn golden() -> impl Iterator<Item = Golden> {
    GOLDEN.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        Golden {
            api: Api::SERVED.iter().find(|api| api.name == words[0]).unwrap(),
            is_request: words[1] == "Request",
            version: words[2].parse().unwrap(),
            message: words[3].as_bytes().chunks(2).map(byte).collect(),
        }
    })
}

/// Decodes a response of the API and encodes it again.
fn again(api: &Api, version: i16, message: Bytes) -> Result<Bytes, DecodeError> {
    fn through<B: Body>(version: i16, message: Bytes) -> Result<Bytes, DecodeError> {
        let (id, body) = kafka::decode_response::<B>(version, message)?;
        Ok(kafka::joined(kafka::encode_response(version, id, &body)))
    }
    match api.name {
        "Produce" => through::<produce::ProduceResponse>(version, message),
        "Fetch" => through::<fetch::FetchResponse>(version, message),
        "ListOffsets" => through::<list_offsets::ListOffsetsResponse>(version, message),
        "Metadata" => through::<metadata::MetadataResponse>(version, message),
        "FindCoordinator" => through::<find_coordinator::FindCoordinatorResponse>(version, message),
        "ApiVersions" => through::<api_versions::ApiVersionsResponse>(version, message),
        "CreateTopics" => through::<create_topics::CreateTopicsResponse>(version, message),
        "DeleteTopics" => through::<delete_topics::DeleteTopicsResponse>(version, message),
        "InitProducerId" => through::<init_producer_id::InitProducerIdResponse>(version, message),
        "OffsetCommit" => through::<offset_commit::OffsetCommitResponse>(version, message),
        "OffsetFetch" => through::<offset_fetch::OffsetFetchResponse>(version, message),
        "JoinGroup" => through::<join_group::JoinGroupResponse>(version, message),
        "Heartbeat" => through::<heartbeat::HeartbeatResponse>(version, message),
        "LeaveGroup" => through::<leave_group::LeaveGroupResponse>(version, message),
        "SyncGroup" => through::<sync_group::SyncGroupResponse>(version, message),
        "DescribeGroups" => through::<describe_groups::DescribeGroupsResponse>(version, message),
        "ListGroups" => through::<list_groups::ListGroupsResponse>(version, message),
        "SaslHandshake" => through::<sasl_handshake::SaslHandshakeResponse>(version, message),
        "DeleteRecords" => through::<delete_records::DeleteRecordsResponse>(version, message),
        "OffsetForLeaderEpoch" => through::<offset_for_leader_epoch::OffsetForLeaderEpochResponse>(version, message),
        "DescribeConfigs" => through::<describe_configs::DescribeConfigsResponse>(version, message),
        "AlterConfigs" => through::<alter_configs::AlterConfigsResponse>(version, message),
        "SaslAuthenticate" => through::<sasl_authenticate::SaslAuthenticateResponse>(version, message),
        "CreatePartitions" => through::<create_partitions::CreatePartitionsResponse>(version, message),
        "DeleteGroups" => through::<delete_groups::DeleteGroupsResponse>(version, message),
        "IncrementalAlterConfigs" => {
            through::<incremental_alter_configs::IncrementalAlterConfigsResponse>(version, message)
        }
        "OffsetDelete" => through::<offset_delete::OffsetDeleteResponse>(version, message),
        "DescribeCluster" => through::<describe_cluster::DescribeClusterResponse>(version, message),
        other => panic!("no test for {other}"),
    }
}

fn again_request(header: &RequestHeader, request: &Request) -> Bytes {
    let chunks = match request {
        Request::Produce(r) => kafka::encode_request(header, r),
        Request::Fetch(r) => kafka::encode_request(header, r),
        Request::ListOffsets(r) => kafka::encode_request(header, r),
        Request::Metadata(r) => kafka::encode_request(header, r),
        Request::FindCoordinator(r) => kafka::encode_request(header, r),
        Request::ApiVersions(r) => kafka::encode_request(header, r),
        Request::CreateTopics(r) => kafka::encode_request(header, r),
        Request::DeleteTopics(r) => kafka::encode_request(header, r),
        Request::InitProducerId(r) => kafka::encode_request(header, r),
        Request::OffsetCommit(r) => kafka::encode_request(header, r),
        Request::OffsetFetch(r) => kafka::encode_request(header, r),
        Request::JoinGroup(r) => kafka::encode_request(header, r),
        Request::Heartbeat(r) => kafka::encode_request(header, r),
        Request::LeaveGroup(r) => kafka::encode_request(header, r),
        Request::SyncGroup(r) => kafka::encode_request(header, r),
        Request::DescribeGroups(r) => kafka::encode_request(header, r),
        Request::ListGroups(r) => kafka::encode_request(header, r),
        Request::SaslHandshake(r) => kafka::encode_request(header, r),
        Request::DeleteRecords(r) => kafka::encode_request(header, r),
        Request::OffsetForLeaderEpoch(r) => kafka::encode_request(header, r),
        Request::DescribeConfigs(r) => kafka::encode_request(header, r),
        Request::AlterConfigs(r) => kafka::encode_request(header, r),
        Request::SaslAuthenticate(r) => kafka::encode_request(header, r),
        Request::CreatePartitions(r) => kafka::encode_request(header, r),
        Request::DeleteGroups(r) => kafka::encode_request(header, r),
        Request::IncrementalAlterConfigs(r) => kafka::encode_request(header, r),
        Request::OffsetDelete(r) => kafka::encode_request(header, r),
        Request::DescribeCluster(r) => kafka::encode_request(header, r),
    };
    kafka::joined(chunks)
}

#[test]
fn every_message_of_every_version_is_what_kafkas_schemas_say() {
    let mut seen = std::collections::BTreeSet::new();
    for Golden { api, is_request, version, message } in golden() {
        seen.insert((api.key, is_request, version));
        let frame = if is_request {
            let (header, request) = Request::decode(message.clone())
                .unwrap_or_else(|error| panic!("{} request {version}: {error}", api.name));
            assert_eq!(request.api(), api);
            again_request(&header, &request)
        } else {
            again(api, version, message.clone()).unwrap_or_else(|e| panic!("{} response {version}: {e}", api.name))
        };
        assert_eq!(frame[..4], (message.len() as u32).to_be_bytes(), "{} {version}", api.name);
        assert_eq!(frame.slice(4..), message, "{} {is_request} {version}", api.name);
    }
    let all: usize = Api::SERVED.iter().map(|api| 2 * (api.max - api.min + 1) as usize).sum();
    assert_eq!(seen.len(), all, "there is a message of every version that is served");
}

fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn check(message: &str, expected: Expect) {
    let text = match Request::decode(hex(message)) {
        Ok((header, request)) => format!("v{} #{} {request:?}", header.version, header.correlation_id),
        Err(error) => format!("{error}"),
    };
    expected.assert_eq(&text);
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    check("", expect!["the request header is malformed: message ends inside request header"]);
    check("0012 0000 00000001 ffff", expect!["v0 #1 ApiVersions(ApiVersionsRequest)"]);
    check("7fff 0000 00000001 ffff", expect!["API 32767 is not served"]);
    check("0012 0063 00000001 ffff", expect!["version 99 of API 18 is not served"]);
    // What comes behind the body is not looked at, as with Kafka. This is what librdkafka 2.16 sends for all topics.
    check("0012 0000 00000001 ffff 00", expect!["v0 #1 ApiVersions(ApiVersionsRequest)"]);
    check(
        "0003 000d 00000003 0007 72646b61666b61 00 00000000 00010000",
        expect!["v13 #3 Metadata(MetadataRequest { allow_auto_topic_creation: false })"],
    );
    check("0012 0000 00000001 7fff", expect!["the request header is malformed: client_id states a length of 32767"]);
    // Metadata: an array that states 2^31 − 1 topics, one of −2, one without its elements.
    check(
        "0003 0001 00000001 ffff 7fffffff",
        expect!["the request of API 3 version 1 is malformed: topics states a length of 2147483647"],
    );
    check(
        "0003 0001 00000001 ffff fffffffe",
        expect!["the request of API 3 version 1 is malformed: topics states a length of -2"],
    );
    check(
        "0003 0009 00000001 ffff 00 ffffffff0f",
        expect!["the request of API 3 version 9 is malformed: topics states a length of 4294967294"],
    );
    check(
        "0003 0001 00000001 ffff 00000001 0001 ff",
        expect!["the request of API 3 version 1 is malformed: name is not valid UTF-8"],
    );
    check(
        "0003 0004 00000001 ffff ffffffff 02",
        expect!["the request of API 3 version 4 is malformed: allow_auto_topic_creation is 2, neither 0 nor 1"],
    );
    // CreateTopics: the array of topics may not be null.
    check(
        "0013 0002 00000001 ffff ffffffff",
        expect!["the request of API 19 version 2 is malformed: topics may not be null"],
    );
    // A tagged field that nobody knows is skipped, one that is longer than the message is not.
    check(
        "0016 0002 00000001 ffff 00 00 00000000 01 63 02 aabb",
        expect!["v2 #1 InitProducerId(InitProducerIdRequest)"],
    );
    check(
        "0016 0002 00000001 ffff 00 00 00000000 01 63 7f aabb",
        expect!["the request of API 22 version 2 is malformed: message ends inside tagged field"],
    );
}

#[test]
fn arrays_have_a_budget_over_the_whole_message() {
    let items = |count: usize| {
        let topics = vec![MetadataRequestTopic { name: Some(String::new()), ..Default::default() }; count];
        let header = RequestHeader { version: 1, ..Default::default() };
        let frame = kafka::encode_request(&header, &MetadataRequest { topics: Some(topics), ..Default::default() });
        Request::decode(kafka::joined(frame).slice(4..)).map(|_| ())
    };
    assert_eq!(items(ITEMS_MAX), Ok(()));
    assert!(matches!(items(ITEMS_MAX + 1), Err(RequestError::Body { error: DecodeError::TooManyItems, .. })));
}

#[test]
fn record_bytes_are_sent_from_where_they_lie() {
    let batch = Bytes::from(vec![7; 100_000]);
    let partition =
        FetchPartitionResponse { records: kafka::Records(vec![batch.clone(), batch.clone()]), ..Default::default() };
    let response = FetchResponse {
        responses: vec![FetchTopicResponse {
            topic: "t".into(),
            topic_id: Default::default(),
            partitions: vec![partition],
        }],
        ..Default::default()
    };
    for version in [4, 12] {
        let chunks = kafka::encode_response(version, 1, &response);
        let shared = chunks.iter().filter(|chunk| chunk.as_ptr() == batch.as_ptr() && chunk.len() == batch.len());
        assert_eq!(shared.count(), 2, "version {version}");
        let whole = kafka::joined(chunks);
        let (_, decoded) = kafka::decode_response::<FetchResponse>(version, whole.slice(4..)).unwrap();
        assert_eq!(decoded.responses[0].partitions[0].records.size(), 200_000);
    }
}

#[test]
fn client_software_must_be_named_as_the_protocol_allows() {
    let check = |name: &str, version| {
        let request = ApiVersionsRequest { client_software_name: name.into(), client_software_version: "1.0".into() };
        request.is_valid(version)
    };
    assert!(check("kafka-python", 3) && check("a.b-c", 3) && check("", 2));
    assert!(!check("", 3) && !check("-a", 3) && !check("a b", 3) && !check("a-", 4));
}

fn damaged() -> impl Strategy<Value = (usize, Vec<(usize, u8)>, usize)> {
    (any::<usize>(), prop::collection::vec((any::<usize>(), any::<u8>()), 0..6), any::<usize>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_messages_do_no_harm((which, changes, cut) in damaged()) {
        let Golden { api, is_request, version, message } = &GOLDENS[which % GOLDENS.len()];
        let mut bytes = message.to_vec();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut % bytes.len().min(8));
        if *is_request {
            fuzz::fuzz_kafka_request(&bytes);
        } else {
            let place = Api::SERVED.iter().position(|served| served == *api).unwrap() as u8;
            let mut data = vec![place, (version - api.min) as u8];
            data.extend(bytes);
            fuzz::fuzz_kafka_response(&data);
        }
    }

    #[test]
    fn random_messages_do_no_harm(data in prop::collection::vec(any::<u8>(), 0..120), api in 0usize..9, version in 0u8..14) {
        fuzz::fuzz_kafka_request(&data);
        fuzz::fuzz_kafka_response(&data);
        let api = &Api::SERVED[api];
        let version = api.min + i16::from(version) % (api.max - api.min + 1);
        let mut request = Vec::new();
        request.extend(api.key.to_be_bytes());
        request.extend(version.to_be_bytes());
        request.extend([0, 0, 0, 1, 0xff, 0xff]);
        if api.is_flexible(version) {
            request.push(0);
        }
        request.extend(data);
        fuzz::fuzz_kafka_request(&request);
    }
}
