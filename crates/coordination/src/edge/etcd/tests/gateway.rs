//! The JSON gateway and the pages, over plain HTTP/1.1, and what is no gRPC.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

/// Status and body of a request on a connection of its own, which ends with it: so the body comes in one piece.
async fn send(world: &World, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(&world.address).await.expect("it listens");
    let request = format!("{method} {path} HTTP/1.0\r\nhost: etcd\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    soon("the answer", stream.read_to_end(&mut answer)).await.expect("it answers");
    let answer = String::from_utf8(answer).expect("text");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (status, body.to_owned())
}

async fn ask(world: &World, path: &str, body: Value) -> (u16, Value) {
    let (status, body) = send(world, "POST", path, &body.to_string()).await;
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{body:?}: {error}")))
}

#[tokio::test]
async fn keys_leases_and_locks_over_json() {
    let world = World::start().await;
    let (status, answer) = ask(&world, "/v3/kv/put", json!({"key": b64("foo"), "value": b64("bar")})).await;
    assert_eq!((status, &answer["header"]["revision"]), (200, &json!("2")));
    let (_, answer) = ask(&world, "/v3/kv/range", json!({"key": b64("foo")})).await;
    let expected = json!([{"key": b64("foo"), "create_revision": "2", "mod_revision": "2", "version": "1",
        "value": b64("bar")}]);
    assert_eq!((&answer["kvs"], &answer["count"]), (&expected, &json!("1")));
    // Names in camel case, numbers as numbers, enums as names or numbers, and what nobody knows.
    let body = json!({"key": b64("f"), "rangeEnd": b64("g"), "limit": 1, "sort_order": "DESCEND", "sort_target": 3,
        "some_day": true});
    let (status, answer) = ask(&world, "/v3/kv/range", body).await;
    assert_eq!((status, &answer["count"]), (200, &json!("1")), "{answer}");
    let body = json!({
        "compare": [{"key": b64("foo"), "target": "VALUE", "result": "EQUAL", "value": b64("bar")}],
        "success": [{"request_put": {"key": b64("foo"), "value": b64("baz")}}],
    });
    let (_, answer) = ask(&world, "/v3/kv/txn", body).await;
    assert_eq!(answer["succeeded"], json!(true));
    assert_eq!(answer["responses"][0]["response_put"]["header"]["revision"], json!("3"));
    let (_, answer) = ask(&world, "/v3/lease/grant", json!({"TTL": "60", "ID": "5"})).await;
    assert_eq!((&answer["ID"], &answer["TTL"]), (&json!("5"), &json!("60")));
    let (_, answer) = ask(&world, "/v3/lease/keepalive", json!({"ID": 5})).await;
    assert_eq!(answer["result"]["TTL"], json!("60"));
    let (_, answer) = ask(&world, "/v3/lock/lock", json!({"name": b64("l"), "lease": "5"})).await;
    assert_eq!(answer["key"], json!(b64("l/5")));
    let (_, answer) = ask(&world, "/v3/kv/lease/timetolive", json!({"ID": 5, "keys": true})).await;
    assert_eq!(answer["keys"], json!([b64("l/5")]));
    let (_, answer) = ask(&world, "/v3/maintenance/status", json!({})).await;
    assert_eq!((&answer["version"], &answer["leader"]), (&json!("3.7.0"), &json!("7")));
    // A body of nothing is one of defaults.
    let (status, _) = send(&world, "POST", "/v3/cluster/member/list", "").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn what_is_wrong_has_a_status_and_a_text() {
    let world = World::start().await;
    for (path, body, status, code, text) in [
        ("/v3/kv/range", "{}", 400, 3, "etcdserver: key is not provided"),
        ("/v3/kv/range", r#"{"key":"YQ==","revision":"9"}"#, 400, 11, "required revision is a future revision"),
        ("/v3/lease/revoke", r#"{"ID":"9"}"#, 404, 5, "etcdserver: requested lease not found"),
        ("/v3/kv/range", "{", 400, 3, "the body is not what this takes"),
        ("/v3/kv/range", "[]", 400, 3, "the body is not what this takes"),
        ("/v3/kv/range", r#"{"key":7}"#, 400, 3, "the body is not what this takes"),
        ("/v3/kv/range", r#"{"key":"%%%"}"#, 400, 3, "the body is not what this takes"),
        ("/v3/kv/range", r#"{"key":"YQ==","limit":"many"}"#, 400, 3, "the body is not what this takes"),
        ("/v3/kv/range", r#"{"key":"YQ=="} more"#, 400, 3, "the body is not what this takes"),
        ("/v3/kv/nothing", "{}", 404, 5, "Not Found"),
    ] {
        let (found, answer) = send(&world, "POST", path, body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{path} {body}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(text), "{path} {body}: {answer}");
        assert_eq!(answer["error"], answer["message"]);
    }
    let deep = format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(200), "{}");
    assert_eq!(send(&world, "POST", "/v3/kv/txn", &deep).await.0, 400);
    let large = json!({"key": b64("k"), "value": "A".repeat(5 * 1024 * 1024)}).to_string();
    let (status, _) = send(&world, "POST", "/v3/kv/put", &large).await;
    assert_eq!(status, 429);
    let (status, _) = send(&world, "GET", "/v3/kv/range", "").await;
    assert_eq!(status, 501, "as etcd's gateway");
}

#[tokio::test]
async fn a_watch_is_a_line_per_answer_and_takes_requests_while_it_runs() {
    let world = World::start().await;
    world.put("k", "1").await;
    let mut stream = TcpStream::connect(&world.address).await.unwrap();
    let chunk = |body: &str| format!("{:x}\r\n{body}\r\n", body.len());
    let head = "POST /v3/watch HTTP/1.1\r\nhost: etcd\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let create = json!({"create_request": {"key": b64("k"), "start_revision": "2", "watch_id": "4"}}).to_string();
    // Cut anywhere, and two in a row.
    let (first, second) = create.split_at(17);
    stream.write_all(chunk(first).as_bytes()).await.unwrap();
    stream.write_all(chunk(&format!("{second} {{\"progress_request\":{{}}}}")).as_bytes()).await.unwrap();
    let mut seen = String::new();
    read_until(&mut stream, &mut seen, r#""watch_id":"-1""#).await;
    assert!(seen.contains("HTTP/1.1 200"), "{seen}");
    assert!(seen.contains(r#""created":true"#), "{seen}");
    assert!(seen.contains(&format!(r#""events":[{{"kv":{{"key":"{}""#, b64("k"))), "{seen}");
    world.delete("k").await;
    read_until(&mut stream, &mut seen, r#""type":"DELETE""#).await;
    let cancel = json!({"cancel_request": {"watch_id": 4}}).to_string();
    stream.write_all(chunk(&cancel).as_bytes()).await.unwrap();
    read_until(&mut stream, &mut seen, r#""canceled":true"#).await;
    stream.write_all(chunk("nonsense").as_bytes()).await.unwrap();
    read_until(&mut stream, &mut seen, "not a row of JSON objects").await;
    assert!(
        seen.lines()
            .filter(|line| line.starts_with('{'))
            .all(|line| { line.starts_with(r#"{"result":{"#) || line.starts_with(r#"{"error":{"#) })
    );
}

async fn read_until(stream: &mut TcpStream, seen: &mut String, wanted: &str) {
    let mut piece = [0; 4096];
    while !seen.contains(wanted) {
        let read = soon(wanted, stream.read(&mut piece)).await.unwrap();
        assert!(read > 0, "ended without {wanted}: {seen}");
        seen.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
}

#[tokio::test]
async fn pages_say_how_the_node_is() {
    let world = World::start().await;
    let get = async |path: &str| send(&world, "GET", path, "").await;
    let healthy = (200, json!({"health": "true", "reason": ""}).to_string());
    assert_eq!(get("/health").await, healthy);
    assert_eq!(get("/livez").await, (200, "ok\n".into()));
    assert_eq!(get("/readyz?verbose").await, (200, "[+]linearizable_read ok\nok\n".into()));
    let version: Value = serde_json::from_str(&get("/version").await.1).unwrap();
    assert_eq!(version["etcdserver"], json!("3.7.0"));
    assert_eq!(get("/metrics").await, (200, "some_metric 1\n".into()));
    assert_eq!(get("/").await.0, 404);
    assert_eq!(send(&world, "POST", "/health", "").await.0, 405);
    world.local.elect(None);
    let (status, body) = get("/health").await;
    assert_eq!((status, body.contains("RAFT NO LEADER")), (503, true), "{body}");
    assert_eq!(get("/health?serializable=true").await.0, 200);
    assert_eq!(get("/readyz").await.0, 503);
    assert_eq!(get("/livez").await.0, 200);
}

#[tokio::test]
async fn pages_and_the_gateway_answer_over_http2_too() {
    use http_body_util::{BodyExt, Full};
    use tonic::codegen::Service;
    let world = World::start().await;
    let ask = async |method: &str, path: &str, body: &str| {
        let body = tonic::body::Body::new(Full::new(bytes::Bytes::copy_from_slice(body.as_bytes())));
        let request = http::Request::builder().method(method).uri(path).body(body).unwrap();
        let answer = soon("the answer", world.channel.clone().call(request)).await.unwrap();
        let length = answer.headers().get("content-length").map(|length| length.to_str().unwrap().to_owned());
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (status, length, String::from_utf8(text.to_vec()).unwrap())
    };
    assert_eq!(ask("GET", "/livez", "").await, (200, Some("3".into()), "ok\n".into()));
    assert_eq!(ask("HEAD", "/livez", "").await, (200, Some("3".into()), String::new()));
    assert_eq!(ask("POST", "/livez", "a body that nobody reads").await.0, 405);
    assert_eq!(ask("GET", "/nothing", "").await.0, 404);
    let (status, _, body) = ask("POST", "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
    assert_eq!((status, body.contains("\"revision\":\"2\"")), (200, true), "{body}");
    assert_eq!(ask("GET", "/etcdserverpb.KV/Range", "").await.0, 415, "a call without gRPC's media type");
}

#[tokio::test]
async fn every_path_of_the_gateway_leads_somewhere() {
    let world = World::start().await;
    for path in world.etcd.gateway.paths() {
        if ["watch", "election/campaign", "lock/lock", "election/observe"].contains(&path) {
            continue; // They wait for something.
        }
        let (status, body) = send(&world, "POST", &format!("/v3/{path}"), "{}").await;
        let refused = body.contains("etcdserver:") || body.contains("election:") || body.contains("must be provided");
        assert!(status == 200 || refused, "{path}: {status} {body}");
    }
}

#[tokio::test]
async fn what_is_no_grpc_is_told_so() {
    use http_body_util::{BodyExt, Full};
    use tonic::codegen::Service;
    let world = World::start().await;
    let call = async |path: &str, body: &[u8]| {
        let body = tonic::body::Body::new(Full::new(bytes::Bytes::copy_from_slice(body)));
        let mut request = http::Request::post(path).header("content-type", "application/grpc").body(body).unwrap();
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let answer = soon("the answer", world.channel.clone().call(request)).await.unwrap();
        let head = Status::from_header_map(answer.headers());
        let trailers = answer.into_body().collect().await.unwrap().trailers().and_then(Status::from_header_map);
        said::<()>(Err(head.or(trailers).expect("a status")))
    };
    assert_eq!(call("/nobody.Knows/This", b"").await, "Unimplemented unknown service nobody.Knows");
    for (path, text) in [
        ("/etcdserverpb.KV/RangeBackwards", "unknown method RangeBackwards for service etcdserverpb.KV"),
        ("/etcdserverpb.Watch/Look", "unknown method Look for service etcdserverpb.Watch"),
        ("/etcdserverpb.KV/Range/More", "unknown service etcdserverpb.KV/Range"),
        ("/etcdserverpb.KV", "malformed method name: \"/etcdserverpb.KV\""),
    ] {
        assert_eq!(call(path, b"\0\0\0\0\0").await, format!("Unimplemented {text}"));
    }
    // To a call that is made the short way, and to one that is not.
    for path in ["/etcdserverpb.KV/Range", "/etcdserverpb.Lease/LeaseRevoke"] {
        for (body, wanted) in [
            (&b"\0\0\0"[..], "Unknown EOF"),
            (b"\0\0\0\0\x05ab", "Unknown unexpected EOF"),
            (
                b"\0\0\0\0\x03\xff\xff\xff",
                "Internal grpc: error unmarshalling request: proto: cannot parse invalid wire-format data",
            ),
            (b"\x01\0\0\0\x01a", "Internal grpc: compressed flag set with identity or empty encoding"),
            (b"\x07\0\0\0\x01a", "Internal grpc: received unexpected payload format 7"),
        ] {
            assert_eq!(call(path, body).await, wanted, "{path} {body:?}");
        }
        assert!(!call(path, b"").await.starts_with("Ok"));
    }
    // What comes behind the one message is not looked at.
    for more in [&b"\0\0"[..], b"\0\0\0\0\x03\xff\xff\xff"] {
        let body = [&b"\0\0\0\0\x03\x0a\x01k"[..], more].concat();
        assert_eq!(call("/etcdserverpb.KV/Range", &body).await, "Ok ");
    }
    let lying = call("/etcdserverpb.KV/Range", b"\0\xff\xff\xff\xff").await;
    assert_eq!(lying, "ResourceExhausted grpc: received message larger than max (4294967295 vs. 2097152)");
    let lying = call("/etcdserverpb.Watch/Watch", b"\0\xff\xff\xff\xff").await;
    assert_eq!(lying, "ResourceExhausted grpc: received message larger than max (4294967295 vs. 2097152)");
    assert_eq!(world.put("k", "v").await, 2);
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_cut_off() {
    let world = World::start().await;
    let mut silent = TcpStream::connect(&world.address).await.unwrap();
    let mut half = TcpStream::connect(&world.address).await.unwrap();
    half.write_all(b"GET /health HTTP/1.1\r\nhost:").await.unwrap();
    // Time runs on by itself while everybody waits.
    let mut rest = Vec::new();
    assert_eq!(silent.read_to_end(&mut rest).await.unwrap(), 0);
    half.read_to_end(&mut rest).await.unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
}
