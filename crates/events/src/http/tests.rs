//! Transcripts: requests in, status, headers that matter and body out.

use std::{
    fmt::Write as _,
    io::Write as _,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use buttress_core::{Code, Error};
use buttress_state::local::{Fault, Local};
use bytes::Bytes;
use expect_test::{Expect, expect};
use http::Request;

use super::*;
use crate::testing;

const KAFKA_JSON: &str = "application/vnd.kafka.json.v2+json";

struct Edge {
    local: Arc<Local>,
    http: EventsHttp,
}

impl Edge {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let (local, ingest) = testing::start();
        Self { local, http: EventsHttp::new(ingest, options) }
    }

    async fn call(&self, request: Request<Bytes>) -> String {
        let Some(response) = self.http.route(request).await else { return "not ours\n".into() };
        let mut out = response.status().as_u16().to_string();
        for name in [header::RETRY_AFTER, header::ALLOW] {
            if let Some(value) = response.headers().get(&name) {
                write!(out, " {name}: {}", value.to_str().expect("text")).expect("strings can be written to");
            }
        }
        let body = std::str::from_utf8(response.body()).expect("text");
        assert!(response.headers()[header::CONTENT_TYPE].to_str().expect("text").ends_with("json"));
        let _: serde_json::Value = serde_json::from_str(body).expect("JSON");
        writeln!(out, " {}", body.trim_end()).expect("strings can be written to");
        out
    }

    /// One line per request: `METHOD path [media] body`.
    async fn check(&self, requests: &[(&str, &str, &str, &str)], expect: Expect) {
        let mut out = String::new();
        for (method, path, media, body) in requests {
            out.push_str(&self.call(request(method, path, media, body.as_bytes())).await);
        }
        expect.assert_eq(&out);
    }
}

fn request(method: &str, path: &str, media: &str, body: &[u8]) -> Request<Bytes> {
    let mut builder = Request::builder().method(method).uri(path);
    if !media.is_empty() {
        builder = builder.header(header::CONTENT_TYPE, media);
    }
    builder.body(Bytes::copy_from_slice(body)).expect("a request")
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).expect("into memory");
    encoder.finish().expect("into memory")
}

#[tokio::test]
async fn events_are_answered_after_their_commit() {
    let edge = Edge::new();
    let two = r#"[{"machine":"m1","seq":1}, {"machine":"m1","seq":2}]"#;
    edge.check(
        &[
            ("POST", "/events", "application/json", r#"{"machine":"m1","seq":1}"#),
            ("POST", "/events?topic=telemetry", "", two),
            (
                "POST",
                "/events",
                "application/x-ndjson",
                "{\"machine\":\"m1\",\"seq\":3}\n\n{\"machine\":\"m1\",\"seq\":4}\r\n",
            ),
            ("POST", "/events", "application/x-www-form-urlencoded", "[]"),
            // Refused by the log.
            ("POST", "/events", "", r#"[{"machine":"m1","seq":5},{"machine":"m1","seq":9}]"#),
            ("POST", "/events", "", r#"{"machine":"m1","seq":0,"epoch":1}"#),
            ("POST", "/events", "", r#"{"machine":"m1","seq":6}"#),
            // Refused whole, before anything is appended.
            ("POST", "/events", "", r#"[{"machine":"m2","seq":1},{"machine":"m2"}]"#),
            ("POST", "/events", "", r#"[{"machine":"m2","seq":1},7]"#),
            ("POST", "/events", "", r#"{"machine":"m2","seq":1"#),
            ("POST", "/events", "", ""),
            ("POST", "/events", "application/x-ndjson", "{\"machine\":\"m2\",\"seq\":1}\nnope"),
            ("POST", "/events?topic=nowhere", "", "{}"),
            ("POST", "/events", "text/csv", "a,b"),
            ("GET", "/events", "", ""),
        ],
        expect![[r#"
            200 {"accepted":1,"duplicates":0,"offsets":[{"offset":0,"partition":0}]}
            200 {"accepted":1,"duplicates":1,"offsets":[{"offset":0,"partition":0},{"offset":1,"partition":0}]}
            200 {"accepted":2,"duplicates":0,"offsets":[{"offset":2,"partition":0},{"offset":3,"partition":0}]}
            200 {"accepted":0,"duplicates":0,"offsets":[]}
            409 {"accepted":1,"code":"BT0306","duplicates":0,"errors":[{"code":"BT0306","message":"sequence number 9 of \"m1\" skips ahead, expected 6","record":1}],"failed":1,"hint":"resend from 6, or raise the record's \"epoch\" to start anew","message":"record 1: sequence number 9 of \"m1\" skips ahead, expected 6","offsets":[{"offset":4,"partition":0},null]}
            200 {"accepted":1,"duplicates":0,"offsets":[{"offset":5,"partition":0}]}
            409 {"accepted":0,"code":"BT0307","duplicates":0,"errors":[{"code":"BT0307","message":"epoch 0 of \"m1\" is over, the current one is 1","record":0}],"failed":1,"hint":"two senders use this name: stop the older one, or give it a name of its own","message":"record 0: epoch 0 of \"m1\" is over, the current one is 1","offsets":[null]}
            422 {"code":"BT0308","hint":"send a JSON object with \"machine\" (string or integer) and \"seq\" (integer, one more for each record)","message":"record 1: record is not what its topic expects: field \"seq\" is missing at line 1 column 16 (topic \"telemetry\")"}
            422 {"code":"BT0308","hint":"send an object, an array of objects, or lines of objects as application/x-ndjson","message":"record 1 is not a JSON object"}
            400 {"code":"BT0601","hint":null,"message":"the body is not JSON: EOF while parsing an object at line 1 column 23"}
            400 {"code":"BT0601","hint":null,"message":"the body is not JSON: EOF while parsing a value at line 1 column 0"}
            400 {"code":"BT0601","hint":null,"message":"line 2 is not JSON: expected ident at line 1 column 2"}
            404 {"code":"BT0301","hint":"create it first: buttress topic create nowhere --partitions 8","message":"there is no topic \"nowhere\""}
            415 {"code":"BT0604","hint":"use application/json, application/x-ndjson, application/cloudevents+json or application/cloudevents-batch+json","message":"content type \"text/csv\" is not served"}
            405 allow: POST {"code":"BT0603","hint":"use POST","message":"/events does not take GET"}
        "#]],
    )
    .await;
    assert_eq!(testing::records(&edge.local, "telemetry").await.len(), 6);
}

#[tokio::test]
async fn cloud_events_become_records_with_headers() {
    let edge = Edge::new();
    let one = r#"{"specversion":"1.0","id":"1","source":"/hall","type":"alert","partitionkey":"m1","sampled":3,
        "time":"2026-01-01T00:00:00Z","data":{"hot":true}}"#;
    let batch = r#"[{"specversion":"1.0","id":"2","source":"/hall","type":"raw","datacontenttype":"image/png","data_base64":"AP8="}]"#;
    let media = "application/cloudevents+json; charset=utf-8";
    edge.check(
        &[
            ("POST", "/events?topic=alerts", media, one),
            ("POST", "/events?topic=alerts", "application/cloudevents-batch+json", batch),
            ("POST", "/events?topic=alerts", media, r#"{"specversion":"0.3","id":"1","source":"/","type":"x"}"#),
            ("POST", "/events?topic=alerts", media, r#"{"specversion":"1.0","source":"/","type":"x"}"#),
            ("POST", "/events?topic=alerts", media, r#"{"specversion":"1.0","id":"","source":"/","type":"x"}"#),
            (
                "POST",
                "/events?topic=alerts",
                media,
                r#"{"specversion":"1.0","id":"1","source":"/","type":"x","ext":{}}"#,
            ),
            (
                "POST",
                "/events?topic=alerts",
                media,
                r#"{"specversion":"1.0","id":"1","source":"/","type":"x","data_base64":"!"}"#,
            ),
            ("GET", "/v1/topics/alerts/partitions/0/records", "", ""),
            ("GET", "/v1/topics/alerts/partitions/1/records", "", ""),
        ],
        expect![[r#"
            200 {"accepted":1,"duplicates":0,"offsets":[{"offset":0,"partition":0}]}
            200 {"accepted":1,"duplicates":0,"offsets":[{"offset":1,"partition":0}]}
            422 {"code":"BT0308","hint":null,"message":"only CloudEvents of specversion 1.0 are served"}
            422 {"code":"BT0308","hint":null,"message":"a CloudEvent lacks \"id\""}
            422 {"code":"BT0308","hint":null,"message":"attribute \"id\" of a CloudEvent is not a string with something in it"}
            422 {"code":"BT0308","hint":null,"message":"attribute \"ext\" of a CloudEvent is not a simple value"}
            422 {"code":"BT0308","hint":null,"message":"data_base64 of a CloudEvent: Invalid symbol 33, offset 0."}
            200 {"end":2,"partition":0,"records":[{"committed_at":1000000,"headers":[{"name":"ce_id","value":"1"},{"name":"ce_partitionkey","value":"m1"},{"name":"ce_sampled","value":"3"},{"name":"ce_source","value":"/hall"},{"name":"ce_specversion","value":"1.0"},{"name":"ce_time","value":"2026-01-01T00:00:00Z"},{"name":"ce_type","value":"alert"},{"name":"content-type","value":"application/json"}],"index":3,"key":"m1","offset":0,"timestamp":1000000,"value":"{\"hot\":true}"},{"committed_at":1000000,"headers":[{"name":"content-type","value":"image/png"},{"name":"ce_id","value":"2"},{"name":"ce_source","value":"/hall"},{"name":"ce_specversion","value":"1.0"},{"name":"ce_type","value":"raw"}],"index":4,"key":null,"offset":1,"timestamp":1000000,"value_base64":"AP8="}],"start":0,"topic":"alerts"}
            200 {"end":0,"partition":1,"records":[],"start":0,"topic":"alerts"}
        "#]],
    )
    .await;
}

#[tokio::test]
async fn the_proxy_produces_with_errors_per_record() {
    let edge = Edge::new();
    let telemetry = r#"{"records":[{"value":{"machine":"m1","seq":1}},{"value":{"machine":"m1","seq":1}},
        {"value":{"machine":"m1","seq":7}},{"value":{"machine":"m1"}},{"value":null},{"value":{"machine":"m1","seq":2}}]}"#;
    let keyed = r#"{"records":[{"key":"m1","value":{"a":1}},{"key":{"id":7},"value":"text"},{"value":null,"partition":1},{"key":"x","value":1,"partition":9}]}"#;
    let binary = r#"{"records":[{"key":"bTE=","value":"AAH/"},{"value":"not base64!"}]}"#;
    let binary_media = "application/vnd.kafka.binary.v2+json";
    edge.check(
        &[
            ("POST", "/topics/telemetry", KAFKA_JSON, telemetry),
            ("POST", "/topics/alerts", KAFKA_JSON, keyed),
            ("POST", "/topics/alerts", binary_media, binary),
            ("POST", "/topics/alerts/partitions/1", KAFKA_JSON, r#"{"records":[{"key":"m1","value":1}]}"#),
            ("POST", "/topics/alerts/partitions/2", KAFKA_JSON, r#"{"records":[{"value":1}]}"#),
            ("POST", "/topics/alerts/partitions/x", KAFKA_JSON, r#"{"records":[{"value":1}]}"#),
            ("POST", "/topics/nowhere", KAFKA_JSON, r#"{"records":[{"value":1}]}"#),
            ("POST", "/topics/alerts", KAFKA_JSON, r#"{"records":[]}"#),
            ("POST", "/topics/alerts", KAFKA_JSON, r#"{"records":[{"valu":1}]}"#),
            ("POST", "/topics/alerts", KAFKA_JSON, r#"{}"#),
            ("POST", "/topics/alerts", KAFKA_JSON, r#"{"records":["#),
            ("POST", "/topics/alerts", "application/json", r#"{"records":[]}"#),
            ("POST", "/topics/alerts", "", r#"{"records":[]}"#),
        ],
        expect![[r#"
            200 {"key_schema_id":null,"offsets":[{"error":null,"error_code":null,"offset":0,"partition":0},{"error":null,"error_code":null,"offset":0,"partition":0},{"error":"sequence number 7 of \"m1\" skips ahead, expected 2 [BT0306]","error_code":40906,"offset":null,"partition":null},{"error":"record is not what its topic expects: field \"seq\" is missing at line 1 column 16 (topic \"telemetry\") [BT0308]","error_code":42208,"offset":null,"partition":null},{"error":"topic \"telemetry\" takes no records without a body [BT0308]","error_code":42208,"offset":null,"partition":null},{"error":null,"error_code":null,"offset":1,"partition":0}],"value_schema_id":null}
            200 {"key_schema_id":null,"offsets":[{"error":null,"error_code":null,"offset":0,"partition":0},{"error":null,"error_code":null,"offset":0,"partition":1},{"error":null,"error_code":null,"offset":1,"partition":1},{"error":"topic \"alerts\" has no partition 9, only 0 to 1 [BT0601]","error_code":1,"offset":null,"partition":null}],"value_schema_id":null}
            200 {"key_schema_id":null,"offsets":[{"error":null,"error_code":null,"offset":1,"partition":0},{"error":"key or value is not a base64 string [BT0308]","error_code":42208,"offset":null,"partition":null}],"value_schema_id":null}
            200 {"key_schema_id":null,"offsets":[{"error":null,"error_code":null,"offset":2,"partition":1}],"value_schema_id":null}
            404 {"error_code":40402,"message":"topic \"alerts\" has no partition 2 [BT0602]"}
            404 {"error_code":40402,"message":"there is no partition \"x\" [BT0602]"}
            404 {"error_code":40401,"message":"there is no topic \"nowhere\" [BT0301]; hint: create it first: buttress topic create nowhere --partitions 8"}
            200 {"key_schema_id":null,"offsets":[],"value_schema_id":null}
            422 {"error_code":42208,"message":"the body is not a produce request: unknown field `valu`, expected one of `key`, `value`, `partition` at line 1 column 19 [BT0308]; hint: send {\"records\":[{\"key\":…,\"value\":…,\"partition\":…}]}"}
            422 {"error_code":42208,"message":"the body is not a produce request: missing field `records` at line 1 column 2 [BT0308]; hint: send {\"records\":[{\"key\":…,\"value\":…,\"partition\":…}]}"}
            400 {"error_code":400,"message":"the body is not a produce request: EOF while parsing a list at line 1 column 12 [BT0601]; hint: send {\"records\":[{\"key\":…,\"value\":…,\"partition\":…}]}"}
            415 {"error_code":415,"message":"content type \"application/json\" is not served [BT0604]; hint: use application/vnd.kafka.json.v2+json or application/vnd.kafka.binary.v2+json"}
            415 {"error_code":415,"message":"the request has no content type [BT0604]; hint: use application/vnd.kafka.json.v2+json or application/vnd.kafka.binary.v2+json"}
        "#]],
    )
    .await;
    let mut lines: Vec<String> = testing::records(&edge.local, "alerts")
        .await
        .iter()
        .map(|(_, r)| format!("{} = {}", testing::text(r.key.as_ref()), testing::text(r.value.as_ref())))
        .collect();
    lines.sort();
    expect![[r#"
        [
            "- = -",
            "m1 = 1",
            "m1 = \\x00\\x01\\xff",
            "m1 = {\"a\":1}",
            "{\"id\":7} = \"text\"",
        ]
    "#]]
    .assert_debug_eq(&lines);
}

#[tokio::test]
async fn the_proxy_describes_topics_and_brokers() {
    let edge = Edge::new();
    edge.check(
        &[
            ("GET", "/topics", "", ""),
            ("GET", "/topics/alerts", "", ""),
            ("GET", "/topics/alerts/partitions", "", ""),
            ("GET", "/topics/alerts/partitions/1", "", ""),
            ("GET", "/topics/alerts/partitions/1/offsets", "", ""),
            ("GET", "/topics/alerts/partitions/2", "", ""),
            ("GET", "/topics/nowhere", "", ""),
            ("GET", "/brokers", "", ""),
            ("DELETE", "/topics/alerts", "", ""),
            ("GET", "/consumers/g", "", ""),
            ("GET", "/", "", ""),
        ],
        expect![[r#"
            200 ["alerts","telemetry"]
            200 {"configs":{"cleanup.policy":"delete","retention.bytes":"-1","retention.ms":"-1"},"name":"alerts","partitions":[{"leader":1,"partition":0,"replicas":[{"broker":1,"in_sync":true,"leader":true}]},{"leader":1,"partition":1,"replicas":[{"broker":1,"in_sync":true,"leader":true}]}]}
            200 [{"leader":1,"partition":0,"replicas":[{"broker":1,"in_sync":true,"leader":true}]},{"leader":1,"partition":1,"replicas":[{"broker":1,"in_sync":true,"leader":true}]}]
            200 {"leader":1,"partition":1,"replicas":[{"broker":1,"in_sync":true,"leader":true}]}
            200 {"beginning_offset":0,"end_offset":0}
            404 {"error_code":40402,"message":"topic \"alerts\" has no partition 2 [BT0602]"}
            404 {"error_code":40401,"message":"there is no topic \"nowhere\" [BT0301]; hint: create it first: buttress topic create nowhere --partitions 8"}
            200 {"brokers":[1]}
            405 allow: GET, POST {"error_code":405,"message":"/topics/{t} does not take DELETE [BT0603]; hint: use GET, POST"}
            not ours
            not ours
        "#]],
    )
    .await;
}

#[tokio::test]
async fn topics_are_made_listed_read_and_deleted() {
    let local = Local::new();
    let ingest = crate::ingest::Ingest::new(testing::deps(&local), crate::ingest::Options::default());
    tokio::spawn(ingest.clone().run());
    let edge = Edge { local, http: EventsHttp::new(ingest, Options::default()) };
    let id = |text: String| {
        // The id is random; everything else is not.
        let mut out = String::new();
        let mut rest = &text[..];
        while let Some(at) = rest.find("\"id\":\"") {
            out.push_str(&rest[..at]);
            out.push_str("\"id\":\"…\"");
            assert_eq!(rest.as_bytes()[at + 28], b'"', "22 characters");
            rest = &rest[at + 29..];
        }
        out + rest
    };
    let mut out = String::new();
    for (method, path, body) in [
        ("POST", "/v1/topics", r#"{"name":"telemetry","sequence_fields":["machine","seq"],"retention_ms":60000}"#),
        ("POST", "/v1/topics", r#"{"name":"telemetry"}"#),
        ("POST", "/v1/topics", r#"{"name":"tele metry"}"#),
        ("POST", "/v1/topics", r#"{"name":".."}"#),
        ("POST", "/v1/topics", r#"{"name":"x","partitions":0}"#),
        ("POST", "/v1/topics", r#"{"name":"x","partitions":1025}"#),
        ("POST", "/v1/topics", r#"{"name":"x","sequence_fields":["a","a"]}"#),
        ("POST", "/v1/topics", r#"{"name":"x","retention":1}"#),
        ("POST", "/v1/topics", "nope"),
        ("POST", "/v1/topics", r#"{"name":"raw","partitions":2}"#),
        ("POST", "/events", r#"[{"machine":"m1","seq":1},{"machine":"m1","seq":2},{"machine":"m1","seq":3}]"#),
        ("GET", "/v1/topics", ""),
        ("GET", "/v1/topics/telemetry", ""),
        ("GET", "/v1/topics/telemetry/partitions/0/records?offset=1&max=1", ""),
        ("GET", "/v1/topics/telemetry/partitions/0/records?offset=-1", ""),
        ("GET", "/v1/topics/telemetry/partitions/0/records?offset=3", ""),
        ("GET", "/v1/topics/telemetry/partitions/0/records?offset=4", ""),
        ("GET", "/v1/topics/telemetry/partitions/0/records?offset=x", ""),
        ("GET", "/v1/topics/telemetry/partitions/0/records?max=0", ""),
        ("GET", "/v1/topics/telemetry/partitions/7/records", ""),
        ("DELETE", "/v1/topics/telemetry", ""),
        ("DELETE", "/v1/topics/telemetry", ""),
        ("GET", "/v1/topics/telemetry", ""),
        ("PUT", "/v1/topics/telemetry", ""),
    ] {
        out.push_str(&id(edge.call(request(method, path, "", body.as_bytes())).await));
    }
    expect![[r#"
        201 {"id":"…","name":"telemetry","partitions":[{"bytes":0,"end":0,"log":1,"partition":0,"start":0}],"settings":{"retention_bytes":null,"retention_ms":60000,"sequence_fields":["machine","seq"]}}
        409 {"code":"BT0302","hint":null,"message":"topic \"telemetry\" exists"}
        422 {"code":"BT0303","hint":"use letters, digits, '.', '_' and '-', at most 249 of them","message":"topic name \"tele metry\" has characters other than a-z, A-Z, 0-9, '.', '_' and '-'"}
        422 {"code":"BT0303","hint":"use letters, digits, '.', '_' and '-', at most 249 of them","message":"topic name \"..\" is \".\" or \"..\""}
        422 {"code":"BT0303","hint":null,"message":"0 partitions is not 1 to 1024"}
        422 {"code":"BT0303","hint":null,"message":"1025 partitions is not 1 to 1024"}
        422 {"code":"BT0303","hint":null,"message":"sequence fields \"a\" and \"a\" are not two different field names"}
        400 {"code":"BT0601","hint":"send {\"name\":\"telemetry\",\"partitions\":8,\"sequence_fields\":[\"machine\",\"seq\"]}","message":"the body does not describe a topic: unknown field `retention`, expected one of `name`, `partitions`, `retention_ms`, `retention_bytes`, `sequence_fields`, `engine` at line 1 column 23"}
        400 {"code":"BT0601","hint":"send {\"name\":\"telemetry\",\"partitions\":8,\"sequence_fields\":[\"machine\",\"seq\"]}","message":"the body does not describe a topic: expected ident at line 1 column 2"}
        201 {"id":"…","name":"raw","partitions":[{"bytes":0,"end":0,"log":2,"partition":0,"start":0},{"bytes":0,"end":0,"log":3,"partition":1,"start":0}],"settings":{"retention_bytes":null,"retention_ms":null,"sequence_fields":null}}
        200 {"accepted":3,"duplicates":0,"offsets":[{"offset":0,"partition":0},{"offset":1,"partition":0},{"offset":2,"partition":0}]}
        200 {"topics":[{"id":"…","name":"raw","partitions":[{"bytes":0,"end":0,"log":2,"partition":0,"start":0},{"bytes":0,"end":0,"log":3,"partition":1,"start":0}],"settings":{"retention_bytes":null,"retention_ms":null,"sequence_fields":null}},{"id":"…","name":"telemetry","partitions":[{"bytes":282,"end":3,"log":1,"partition":0,"start":0}],"settings":{"retention_bytes":null,"retention_ms":60000,"sequence_fields":["machine","seq"]}}]}
        200 {"id":"…","name":"telemetry","partitions":[{"bytes":282,"end":3,"log":1,"partition":0,"start":0}],"settings":{"retention_bytes":null,"retention_ms":60000,"sequence_fields":["machine","seq"]}}
        200 {"end":3,"partition":0,"records":[{"committed_at":1000000,"headers":[],"index":4,"key":"m1","offset":1,"timestamp":1000000,"value":"{\"machine\":\"m1\",\"seq\":2}"}],"start":0,"topic":"telemetry"}
        200 {"end":3,"partition":0,"records":[{"committed_at":1000000,"headers":[],"index":4,"key":"m1","offset":2,"timestamp":1000000,"value":"{\"machine\":\"m1\",\"seq\":3}"}],"start":0,"topic":"telemetry"}
        200 {"end":3,"partition":0,"records":[],"start":0,"topic":"telemetry"}
        416 {"code":"BT0305","hint":null,"message":"offset 4 is not in log 1, which holds 0 to 3"}
        400 {"code":"BT0601","hint":null,"message":"query parameter offset=\"x\" is not an integer"}
        400 {"code":"BT0601","hint":null,"message":"max=0 is not 1 to 1000"}
        404 {"code":"BT0602","hint":null,"message":"topic \"telemetry\" has no partition 7"}
        200 {"deleted":"telemetry"}
        404 {"code":"BT0301","hint":null,"message":"there is no topic \"telemetry\""}
        404 {"code":"BT0301","hint":"create it first: buttress topic create telemetry --partitions 8","message":"there is no topic \"telemetry\""}
        405 allow: GET, DELETE {"code":"BT0603","hint":"use GET, DELETE","message":"/v1/topics/{t} does not take PUT"}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn gzip_is_unpacked_within_bounds() {
    let edge = Edge::with(Options { body_bytes_max: 1024, records_max: 20, ..Options::default() });
    let mut out = String::new();
    let packed = |body: &[u8], encoding: &'static str| {
        let mut request = request("POST", "/events?topic=alerts", "", body);
        request.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        request
    };
    let bomb = gzip(&vec![b' '; 100 * 1024 * 1024]);
    assert!(bomb.len() < 128 * 1024, "a small bomb: {}", bomb.len());
    for (body, encoding) in [
        (gzip(br#"{"a":1}"#), "gzip"),
        (bomb, "gzip"),
        (br#"{"a":1}"#.to_vec(), "gzip"),
        (gzip(br#"{"a":1}"#)[..12].to_vec(), "gzip"),
        (br#"{"a":1}"#.to_vec(), "identity"),
        (br#"{"a":1}"#.to_vec(), "br"),
        (vec![b' '; 1025], "identity"),
        (format!("[{}]", vec!["{}"; 21].join(",")).into_bytes(), "identity"),
    ] {
        out.push_str(&edge.call(packed(&body, encoding)).await);
    }
    expect![[r#"
        200 {"accepted":1,"duplicates":0,"offsets":[{"offset":0,"partition":0}]}
        413 {"code":"BT0105","hint":"send several requests","message":"the body is larger than 1024 bytes"}
        400 {"code":"BT0601","hint":null,"message":"the body is not valid gzip: unexpected end of file"}
        400 {"code":"BT0601","hint":null,"message":"the body is not valid gzip: incomplete deflate stream"}
        200 {"accepted":1,"duplicates":0,"offsets":[{"offset":1,"partition":0}]}
        415 {"code":"BT0604","hint":"send gzip, or nothing","message":"content encoding \"br\" is not served"}
        413 {"code":"BT0105","hint":"send several requests","message":"the body is larger than 1024 bytes"}
        413 {"code":"BT0105","hint":"send them in several requests","message":"21 records in one request, more than the limit of 20"}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn what_may_succeed_later_says_when() {
    let edge = Edge::new();
    let mut out = String::new();
    for code in [Code::NO_LEADER, Code::OVERLOADED, Code::TIMEOUT] {
        edge.local.fail_next(Fault::Lost(Error::new(code, "not now").retryable()));
        out.push_str(&edge.call(request("POST", "/events?topic=alerts", "", b"{}")).await);
    }
    edge.local.fail_next(Fault::Lost(Error::new(Code::NO_LEADER, "not now")));
    let body = br#"{"records":[{"value":1}]}"#;
    out.push_str(&edge.call(request("POST", "/topics/alerts", KAFKA_JSON, body)).await);
    edge.local.fail_next(Fault::Lost(Error::new(Code::NO_LEADER, "not now")));
    out.push_str(&edge.call(request("POST", "/v1/topics", "", br#"{"name":"x"}"#)).await);
    expect![[r#"
        503 retry-after: 1 {"accepted":0,"code":"BT0101","duplicates":0,"errors":[{"code":"BT0101","message":"not now","record":0}],"failed":1,"hint":null,"message":"record 0: not now","offsets":[null]}
        503 retry-after: 1 {"accepted":0,"code":"BT0106","duplicates":0,"errors":[{"code":"BT0106","message":"not now","record":0}],"failed":1,"hint":null,"message":"record 0: not now","offsets":[null]}
        503 retry-after: 1 {"accepted":0,"code":"BT0102","duplicates":0,"errors":[{"code":"BT0102","message":"not now","record":0}],"failed":1,"hint":null,"message":"record 0: not now","offsets":[null]}
        200 {"key_schema_id":null,"offsets":[{"error":"not now [BT0101]","error_code":2,"offset":null,"partition":null}],"value_schema_id":null}
        503 retry-after: 1 {"code":"BT0101","hint":null,"message":"not now"}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn an_overloaded_node_takes_no_more() {
    let local = Local::new();
    testing::topics(&local);
    let gate = testing::Gate::new(local.clone());
    let deps = crate::ingest::Deps { ledger: gate.clone(), ..testing::deps(&local) };
    let options = crate::ingest::Options { queued_bytes_max: 100, ..crate::ingest::Options::default() };
    let ingest = crate::ingest::Ingest::new(deps, options);
    tokio::spawn(ingest.clone().run());
    let http = Arc::new(EventsHttp::new(ingest.clone(), Options::default()));
    let waits = tokio::spawn({
        let http = http.clone();
        async move { http.route(request("POST", "/events?topic=alerts", "", br#"{"a":1}"#)).await }
    });
    let (_, go) = gate.next().await;
    let edge = Edge { local, http: EventsHttp::new(ingest, Options::default()) };
    edge.check(&[("POST", "/events?topic=alerts", "", "{}")], expect![[r#"
        503 retry-after: 1 {"code":"BT0106","hint":null,"message":"more records wait for their commit than this node holds"}
    "#]]).await;
    go.send(()).expect("the submission waits");
    assert_eq!(waits.await.expect("no panic").expect("ours").status(), 200);
}

#[tokio::test]
async fn requests_are_counted_by_route_and_status() {
    let edge = Edge::new();
    edge.call(request("GET", "/topics/alerts", "", b"")).await;
    edge.call(request("GET", "/topics/nowhere", "", b"")).await;
    edge.call(request("GET", "/topics/elsewhere", "", b"")).await;
    let mut out = String::new();
    edge.http.prometheus(&mut out);
    expect![[r##"
        # TYPE buttress_events_http_requests_total counter
        buttress_events_http_requests_total{route="/topics/{t}",status="200"} 1
        buttress_events_http_requests_total{route="/topics/{t}",status="404"} 2
    "##]]
    .assert_eq(&out);
    assert_eq!(edge.http.ingest.counters().entries.load(Relaxed), 0);
}

#[tokio::test]
async fn bodies_and_queries_of_garbage_never_panic() {
    let edge = Edge::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let alphabet = br#"{}[]",:\ue0"records""value""key"null1.5-"machine""seq""#;
    for round in 0..2000 {
        let body: Vec<u8> = (0..next() % 60)
            .map(|_| if round % 3 == 0 { next() as u8 } else { alphabet[next() as usize % alphabet.len()] })
            .collect();
        let (path, media) = [
            ("/events", ""),
            ("/events?topic=%F0%zz&&=", ""),
            ("/events", "application/x-ndjson"),
            ("/events?topic=alerts", "application/cloudevents+json"),
            ("/events?topic=alerts", "application/cloudevents-batch+json"),
            ("/topics/alerts", KAFKA_JSON),
            ("/topics/alerts", "application/vnd.kafka.binary.v2+json"),
            ("/v1/topics", ""),
        ][round % 8];
        edge.call(request("POST", path, media, &body)).await;
    }
}

#[tokio::test]
async fn an_entry_happens_whole_or_not_at_all() {
    let edge = Edge::new();
    let everything = r#"{
        "guards": [{"key": "a", "mod_revision": 0}, {"cursor": {"group": "g", "topic": "alerts", "partition": 1, "offset": null}}],
        "leases": [{"grant": 7, "ttl_ms": 5000}],
        "puts": [{"key": "a", "value": "1", "lease": 7}, {"key_base64": "/w==", "value_base64": "AP8="}],
        "state": [{"space": "f", "key": "row", "value": "s"}],
        "appends": [{"topic": "alerts", "partition": 1, "records": [{"key": "k", "value": "v", "headers": [{"name": "h", "value": "x"}]}, {}]}],
        "cursors": [{"group": "g", "topic": "alerts", "partition": 1, "offset": 0}],
        "timers": [{"set": "t", "due_ms": 9, "key": "later", "value": "now"}]
    }"#;
    let numbered = r#"{"appends":[{"topic":"alerts","partition":0,"records":[{"value":"x"}],"sequence":{"producer":"p","number":3}}]}"#;
    let skipped = r#"{"appends":[{"topic":"alerts","partition":0,"records":[{"value":"x"}],"sequence":{"producer":"p","number":9}}],"puts":[{"key":"b","value":"1"}]}"#;
    edge.check(
        &[
            ("POST", "/v1/entries", "application/json", everything),
            ("POST", "/v1/entries", "", everything),
            ("GET", "/v1/keys/a", "", ""),
            ("GET", "/v1/keys/%FF?consistency=serializable", "", ""),
            ("GET", "/v1/keys/b", "", ""),
            ("POST", "/v1/entries", "", r#"{"guards":[{"key":"a","value":"1"},{"lease_alive":7}],"deletes":["a",{"key_base64":"/w=="}]}"#),
            ("POST", "/v1/entries", "", r#"{"guards":[{"log_end":{"topic":"alerts","partition":1,"offset":3}}],"puts":[{"key":"b","value":""}]}"#),
            ("POST", "/v1/entries", "", r#"{"leases":[{"keep_alive":8}]}"#),
            ("POST", "/v1/entries", "", r#"{"leases":[{"grant":7,"ttl_ms":1}]}"#),
            ("GET", "/v1/keys/a?revision=2", "", ""),
            ("GET", "/v1/keys/a?revision=99", "", ""),
            ("GET", "/v1/keys/", "", ""),
            // A retry is acknowledged, a gap is told; the rest of the entry stands.
            ("POST", "/v1/entries", "", numbered),
            ("POST", "/v1/entries", "", numbered),
            ("POST", "/v1/entries", "", skipped),
            ("GET", "/v1/keys/b?consistency=stale", "", ""),
        ],
        expect![[r#"
            200 {"appends":[{"base_offset":0,"outcome":"appended","partition":1,"topic":"alerts"}],"complete":true,"index":3,"outcome":"applied","revision":2,"term":1}
            409 {"code":"BT0104","guard":{"expected":"mod_revision(\"a\") == 0","found":"2","position":0},"hint":null,"message":"guard 0 does not hold: mod_revision(\"a\") == 0, found 2","outcome":"refused"}
            200 {"create_revision":2,"key":"a","lease":7,"mod_revision":2,"revision":2,"value":"1","version":1}
            200 {"create_revision":2,"key_base64":"/w==","lease":null,"mod_revision":2,"revision":2,"value_base64":"AP8=","version":1}
            404 {"code":"BT0602","hint":null,"message":"there is no key \"b\"","revision":2}
            200 {"appends":[],"complete":true,"index":5,"outcome":"applied","revision":3,"term":1}
            409 {"code":"BT0104","guard":{"expected":"end(log 4) == 3","found":"2","position":0},"hint":null,"message":"guard 0 does not hold: end(log 4) == 3, found 2","outcome":"refused"}
            409 {"code":"BT0109","hint":null,"message":"there is no lease 8","outcome":"refused"}
            409 {"code":"BT0110","hint":null,"message":"lease 7 exists","outcome":"refused"}
            200 {"create_revision":2,"key":"a","lease":7,"mod_revision":2,"revision":2,"value":"1","version":1}
            400 {"code":"BT0117","hint":null,"message":"revision 99 is in the future, the key space is at 3"}
            400 {"code":"BT0601","hint":null,"message":"a key is empty"}
            200 {"appends":[{"base_offset":0,"outcome":"appended","partition":0,"topic":"alerts"}],"complete":true,"index":9,"outcome":"applied","revision":3,"term":1}
            200 {"appends":[{"base_offset":0,"outcome":"duplicate","partition":0,"topic":"alerts"}],"complete":true,"index":10,"outcome":"applied","revision":3,"term":1}
            200 {"appends":[{"code":"BT0306","expected":4,"outcome":"gap","partition":0,"topic":"alerts"}],"complete":false,"index":11,"outcome":"applied","revision":4,"term":1}
            400 {"code":"BT0601","hint":"linearizable or serializable","message":"consistency=\"stale\" is not known"}
        "#]],
    )
    .await;
    let appended: Vec<String> =
        testing::records(&edge.local, "alerts").await.iter().map(|(_, r)| testing::text(r.value.as_ref())).collect();
    assert_eq!(appended, ["x", "v", "-"]);
}

#[tokio::test]
async fn entries_that_cannot_be_read_are_refused_with_what_would_be_right() {
    let edge = Edge::new();
    let bodies = [
        "",
        "{}",
        r#"{"put":[]}"#,
        r#"{"request_id":1,"puts":[{"key":"a","value":"1"}]}"#,
        r#"{"puts":[{"key":"a"}]}"#,
        r#"{"puts":[{"key":"","value":"1"}]}"#,
        r#"{"puts":[{"key":"a","key_base64":"YQ==","value":"1"}]}"#,
        r#"{"puts":[{"key":"a","value_base64":"?"}]}"#,
        r#"{"guards":[{"key":"a"}]}"#,
        r#"{"guards":[{"key":"a","version":1,"mod_revision":1}]}"#,
        r#"{"guards":[{"version":1}]}"#,
        r#"{"leases":[{"grant":7}]}"#,
        r#"{"appends":[{"topic":"alerts","records":[{}]}]}"#,
        r#"{"appends":[{"topic":"alerts","partition":7,"records":[{}]}]}"#,
        r#"{"appends":[{"topic":"alerts","partition":0,"records":[]}]}"#,
        r#"{"appends":[{"topic":"nowhere","records":[{}]}]}"#,
        r#"{"timers":[{"set":"t","key":"a","value":"1"}]}"#,
        r#"{"cursors":[{"group":"g","topic":"alerts","partition":0,"offset":-1}]}"#,
    ];
    let requests: Vec<(&str, &str, &str, &str)> =
        bodies.iter().map(|body| ("POST", "/v1/entries", "application/json", *body)).collect();
    edge.check(&requests, expect![[r#"
        400 {"code":"BT0601","hint":"send {\"guards\":[{\"key\":\"a\",\"mod_revision\":0}],\"puts\":[{\"key\":\"a\",\"value\":\"1\"}]}","message":"the body is not an entry: EOF while parsing a value at line 1 column 0"}
        400 {"code":"BT0601","hint":"give it puts, deletes, appends, cursors, leases or timers","message":"the entry asks for nothing"}
        400 {"code":"BT0601","hint":"send {\"guards\":[{\"key\":\"a\",\"mod_revision\":0}],\"puts\":[{\"key\":\"a\",\"value\":\"1\"}]}","message":"the body is not an entry: unknown field `put`, expected one of `guards`, `leases`, `puts`, `deletes`, `state`, `appends`, `cursors`, `timers` at line 1 column 6"}
        400 {"code":"BT0601","hint":"send {\"guards\":[{\"key\":\"a\",\"mod_revision\":0}],\"puts\":[{\"key\":\"a\",\"value\":\"1\"}]}","message":"the body is not an entry: unknown field `request_id`, expected one of `guards`, `leases`, `puts`, `deletes`, `state`, `appends`, `cursors`, `timers` at line 1 column 13"}
        400 {"code":"BT0601","hint":null,"message":"puts[0]: \"value\" is missing"}
        400 {"code":"BT0601","hint":null,"message":"puts[0]: a key is empty"}
        400 {"code":"BT0601","hint":null,"message":"puts[0]: both \"key\" and \"key_base64\" are given"}
        400 {"code":"BT0601","hint":"standard alphabet, with padding","message":"puts[0]: \"value_base64\" is not base64: Invalid symbol 63, offset 0."}
        400 {"code":"BT0601","hint":"mod_revision, create_revision, version or value of a key; lease_alive; cursor; log_end","message":"guards[0]: a guard asks one thing, this one asks 0"}
        400 {"code":"BT0601","hint":"mod_revision, create_revision, version or value of a key; lease_alive; cursor; log_end","message":"guards[0]: a guard asks one thing, this one asks 2"}
        400 {"code":"BT0601","hint":null,"message":"guards[0]: \"key\" is missing"}
        400 {"code":"BT0601","hint":null,"message":"leases[0]: a grant needs \"ttl_ms\" above 0"}
        400 {"code":"BT0601","hint":"name one with \"partition\"","message":"appends[0]: topic \"alerts\" has 2 partitions"}
        404 {"code":"BT0602","hint":null,"message":"appends[0]: topic \"alerts\" has no partition 7"}
        400 {"code":"BT0601","hint":null,"message":"appends[0]: \"records\" is empty"}
        404 {"code":"BT0301","hint":"create it first: buttress topic create nowhere --partitions 8","message":"appends[0]: there is no topic \"nowhere\""}
        400 {"code":"BT0601","hint":null,"message":"timers[0]: a timer has either \"due_ms\" or \"after_ms\""}
        400 {"code":"BT0601","hint":null,"message":"cursors[0]: offset -1 is negative"}
    "#]]).await;
}

#[tokio::test]
async fn an_append_takes_a_whole_batch_or_says_what_is_wrong_with_it() {
    use base64::Engine as _;
    let edge = Edge::new();
    let mut builder = buttress_wire::records::Builder::new();
    builder.push(5, Some(b"k"), Some(b"v"), &[]).push(6, None, Some(b"w"), &[]);
    let batch = builder.build().unwrap();
    let view = buttress_wire::records::BatchView::parse(batch.clone()).unwrap();
    let producer = buttress_wire::records::Producer { id: 1, epoch: 0, base_sequence: 0 };
    let (open, mut rotten) = (view.in_transaction(producer), batch.to_vec());
    rotten[70] ^= 1;
    let body = |batch: &[u8], more: &str| {
        let batch = base64::engine::general_purpose::STANDARD.encode(batch);
        format!(r#"{{"appends":[{{"topic":"alerts","partition":1,"batch_base64":"{batch}"{more}}}]}}"#)
    };
    let bodies = [
        body(&batch, ""),
        body(&rotten, ""),
        body(&batch[..20], ""),
        body(&open, ""),
        body(&view.as_control(), ""),
        body(&batch, r#","records":[{}]"#),
        body(&batch, r#","sequence":{"producer":"p","number":0}"#),
    ];
    let mut requests: Vec<(&str, &str, &str, &str)> =
        bodies.iter().map(|body| ("POST", "/v1/entries", "", body.as_str())).collect();
    requests.push(("GET", "/v1/topics/alerts/partitions/1/records?offset=0", "", ""));
    edge.check(&requests, expect![[r#"
        200 {"appends":[{"base_offset":0,"outcome":"appended","partition":1,"topic":"alerts"}],"complete":true,"index":3,"outcome":"applied","revision":1,"term":1}
        422 {"code":"BT0304","hint":null,"message":"appends[0]: record batch has CRC32C 0a345b86 where 430826a1 is stated"}
        422 {"code":"BT0304","hint":null,"message":"appends[0]: record batch states a length of 66 bytes where 8 are there"}
        422 {"code":"BT0304","hint":null,"message":"appends[0]: the batch is part of a transaction"}
        422 {"code":"BT0304","hint":null,"message":"appends[0]: the batch is part of a transaction"}
        400 {"code":"BT0601","hint":"leave \"records\" and \"sequence\" away","message":"appends[0]: \"batch_base64\" stands alone"}
        400 {"code":"BT0601","hint":"leave \"records\" and \"sequence\" away","message":"appends[0]: \"batch_base64\" stands alone"}
        200 {"end":2,"partition":1,"records":[{"committed_at":1000000,"headers":[],"index":3,"key":"k","offset":0,"timestamp":5,"value":"v"},{"committed_at":1000000,"headers":[],"index":3,"key":null,"offset":1,"timestamp":6,"value":"w"}],"start":0,"topic":"alerts"}
    "#]]).await;
}

#[tokio::test]
async fn an_unknown_outcome_is_told_apart_from_none() {
    let edge = Edge::new();
    let mut out = String::new();
    for fault in [
        Fault::Unanswered(Error::new(Code::TIMEOUT, "no commit in time")),
        Fault::Lost(Error::new(Code::NO_LEADER, "no leader is known")),
        Fault::Lost(Error::new(Code::OVERLOADED, "too much")),
    ] {
        edge.local.fail_next(fault);
        out.push_str(&edge.call(request("POST", "/v1/entries", "", br#"{"puts":[{"key":"a","value":"1"}]}"#)).await);
    }
    expect![[r#"
        504 retry-after: 1 {"code":"BT0102","hint":null,"message":"no commit in time","outcome":"unknown"}
        503 retry-after: 1 {"code":"BT0101","hint":null,"message":"no leader is known","outcome":"none"}
        503 retry-after: 1 {"code":"BT0106","hint":null,"message":"too much","outcome":"none"}
    "#]]
    .assert_eq(&out);
}

#[tokio::test]
async fn keys_come_in_pages_of_one_revision() {
    let edge = Edge::new();
    let puts: Vec<String> = (0..40).map(|n| format!(r#"{{"key":"p/{n:02}","value":"{n}"}}"#)).collect();
    edge.call(request("POST", "/v1/entries", "", format!(r#"{{"puts":[{}]}}"#, puts.join(",")).as_bytes())).await;
    let mut start = String::new();
    let mut seen = Vec::new();
    loop {
        let path = format!("/v1/keys?prefix=p/&limit=17&revision=2&start={start}");
        let response = edge.http.route(request("GET", &path, "", b"")).await.expect("ours");
        let page: serde_json::Value = serde_json::from_slice(response.body()).expect("JSON");
        seen.extend(
            page["keys"].as_array().expect("keys").iter().map(|key| key["key"].as_str().expect("text").to_owned()),
        );
        // What happens between the pages is not in them.
        edge.call(request("POST", "/v1/entries", "", br#"{"deletes":["p/39"]}"#)).await;
        assert_eq!(page["revision"], 2);
        if page["more"] == false {
            break;
        }
        start = format!("p/{}", seen.len());
        assert_eq!(page["next"].as_str().expect("text").trim_end_matches('\0'), seen.last().expect("a page"));
    }
    assert_eq!(seen, (0..40).map(|n| format!("p/{n:02}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_large_answer_stops_at_its_limit_of_bytes() {
    let edge = Edge::new();
    let value = "x".repeat(1_000_000);
    for n in 0..7 {
        let body = format!(r#"{{"puts":[{{"key":"big/{n}","value":"{value}"}}]}}"#);
        edge.call(request("POST", "/v1/entries", "", body.as_bytes())).await;
    }
    let response = edge.http.route(request("GET", "/v1/keys?prefix=big/", "", b"")).await.expect("ours");
    let page: serde_json::Value = serde_json::from_slice(response.body()).expect("JSON");
    assert_eq!((page["keys"].as_array().expect("keys").len(), page["more"].as_bool()), (5, Some(true)));
    assert_eq!(page["next"], "big/5");
}

#[tokio::test]
async fn a_watch_gives_each_revision_as_a_line() {
    use futures::StreamExt as _;
    let edge = Edge::new();
    edge.call(request(
        "POST",
        "/v1/entries",
        "",
        br#"{"puts":[{"key":"w/1","value":"a"},{"key":"w/2","value":"b"},{"key":"x","value":"c"}]}"#,
    ))
    .await;
    let watched = edge.http.watch(&request("GET", "/v1/watch?prefix=w/&from=1", "", b"")).await.expect("ours");
    let mut lines = std::pin::pin!(watched.unwrap_or_else(|_| panic!("a watch of what is there")));
    let mut out = String::from_utf8(lines.next().await.expect("a line").to_vec()).expect("text");
    edge.call(request(
        "POST",
        "/v1/entries",
        "",
        br#"{"deletes":["w/1"],"puts":[{"key":"w/3","value_base64":"/w=="}]}"#,
    ))
    .await;
    edge.call(request("POST", "/v1/entries", "", br#"{"puts":[{"key":"y","value":"not watched"}]}"#)).await;
    out.push_str(std::str::from_utf8(&lines.next().await.expect("a line")).expect("text"));
    expect![[r#"
        {"events":[{"key":"w/1","type":"put","value":"a"},{"key":"w/2","type":"put","value":"b"}],"revision":2}
        {"events":[{"key":"w/3","type":"put","value_base64":"/w=="},{"key":"w/1","type":"delete"}],"revision":3}
    "#]]
    .assert_eq(&out);
    edge.local.stop();
    assert!(lines.next().await.is_none());
    let refused = edge.http.watch(&request("GET", "/v1/watch?prefix=w/&from=0", "", b"")).await.expect("ours");
    assert_eq!(refused.err().expect("no revision").status(), 400);
    assert!(edge.http.watch(&request("POST", "/v1/watch", "", b"")).await.is_none());
    assert_eq!(edge.call(request("POST", "/v1/watch", "", b"")).await.split(' ').next(), Some("405"));
}
