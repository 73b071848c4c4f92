//! Reads, writes, transactions, compaction.

use super::*;
use pb::{
    compare::{CompareResult, CompareTarget, TargetUnion},
    range_request::{SortOrder, SortTarget},
    request_op::Request,
    response_op::Response,
};

fn range(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), ..Default::default() }
}

fn prefix(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { range_end: end_of(key), ..range(key) }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn put_op(key: &str, value: &str) -> pb::RequestOp {
    op(Request::RequestPut(put(key, value)))
}

fn delete_op(key: &str, range_end: &str) -> pb::RequestOp {
    op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
        key: bytes(key),
        range_end: bytes(range_end),
        ..Default::default()
    }))
}

fn compare(key: &str, result: CompareResult, target: CompareTarget, with: TargetUnion) -> pb::Compare {
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: bytes(key),
        range_end: bytes::Bytes::new(),
        target_union: Some(with),
    }
}

async fn read(world: &World, request: pb::RangeRequest) -> String {
    match world.kv().range(request).await {
        Err(status) => said::<()>(Err(status)),
        Ok(answer) => {
            let answer = answer.into_inner();
            let kvs: Vec<String> = answer.kvs.iter().map(shown).collect();
            format!("{} | count {} more {}", kvs.join(", "), answer.count, answer.more)
        }
    }
}

#[tokio::test]
async fn every_reply_has_a_header_that_says_who_and_when() {
    let world = World::start().await;
    let empty = world.kv().range(range("a")).await.unwrap().into_inner().header.unwrap();
    assert_eq!((empty.member_id, empty.revision, empty.raft_term), (7, 1, 2));
    assert_ne!(empty.cluster_id, 0);
    assert_eq!(world.put("a", "1").await, 2);
    let one = world.kv().range(range("a")).await.unwrap().into_inner().header.unwrap();
    assert_eq!((one.cluster_id, one.revision), (empty.cluster_id, 2));
}

#[tokio::test]
async fn ranges_are_served_in_full() {
    let world = World::start().await;
    for (key, value) in [("a/2", "x"), ("a/1", "z"), ("a/3", "y"), ("a/1", "w"), ("b", "b")] {
        world.put(key, value).await;
    }
    assert_eq!(read(&world, range("a/1")).await, "a/1=w c3 m5 v2 | count 1 more false");
    assert_eq!(read(&world, range("none")).await, " | count 0 more false");
    let all = "a/1=w c3 m5 v2, a/2=x c2 m2 v1, a/3=y c4 m4 v1 | count 3 more false";
    assert_eq!(read(&world, prefix("a/")).await, all);
    let limited = pb::RangeRequest { limit: 2, ..prefix("a/") };
    assert_eq!(read(&world, limited).await, "a/1=w c3 m5 v2, a/2=x c2 m2 v1 | count 3 more true");
    let from_key = pb::RangeRequest { range_end: vec![0].into(), ..range("a/3") };
    assert_eq!(read(&world, from_key).await, "a/3=y c4 m4 v1, b=b c6 m6 v1 | count 2 more false");
    let everything = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    assert!(read(&world, everything).await.ends_with("| count 4 more false"));

    let counted = pb::RangeRequest { count_only: true, ..prefix("a/") };
    assert_eq!(read(&world, counted).await, " | count 3 more false");
    let keys_only = pb::RangeRequest { keys_only: true, limit: 1, ..prefix("a/") };
    assert_eq!(read(&world, keys_only).await, "a/1= c3 m5 v2 | count 3 more true");
    let earlier = pb::RangeRequest { revision: 3, ..prefix("a/") };
    assert_eq!(read(&world, earlier).await, "a/1=z c3 m3 v1, a/2=x c2 m2 v1 | count 2 more false");
    let bounded = pb::RangeRequest { min_mod_revision: 3, max_mod_revision: 4, ..prefix("a/") };
    assert_eq!(read(&world, bounded).await, "a/3=y c4 m4 v1 | count 3 more false");
    let bounded = pb::RangeRequest { min_create_revision: 3, max_create_revision: 3, ..prefix("a/") };
    assert_eq!(read(&world, bounded).await, "a/1=w c3 m5 v2 | count 3 more false");

    let sorted = |order: SortOrder, target: SortTarget| pb::RangeRequest {
        sort_order: order.into(),
        sort_target: target.into(),
        limit: 1,
        ..prefix("a/")
    };
    for (order, target, first) in [
        (SortOrder::Descend, SortTarget::Key, "a/3"),
        (SortOrder::Ascend, SortTarget::Version, "a/2"),
        (SortOrder::Descend, SortTarget::Version, "a/1"),
        (SortOrder::Ascend, SortTarget::Create, "a/2"),
        (SortOrder::Descend, SortTarget::Create, "a/3"),
        (SortOrder::Descend, SortTarget::Mod, "a/1"),
        (SortOrder::Ascend, SortTarget::Value, "a/1"),
        (SortOrder::Descend, SortTarget::Value, "a/3"),
    ] {
        let found = read(&world, sorted(order, target)).await;
        assert!(found.starts_with(first) && found.ends_with("count 3 more true"), "{order:?} {target:?}: {found}");
    }
}

/// The pieces of a streamed range as the one answer that they are together, and how many keys each had.
async fn streamed(world: &World, request: pb::RangeRequest) -> Result<(pb::RangeResponse, Vec<usize>), Status> {
    let mut pieces = world.kv().range_stream(request).await?.into_inner();
    let (mut whole, mut sizes) = (pb::RangeResponse::default(), Vec::new());
    while let Some(piece) = soon("a piece", pieces.message()).await? {
        assert!(prost::Message::encoded_len(&piece) < 2 * 1024 * 1024);
        let piece = piece.range_response.expect("a piece of a range");
        assert_eq!(whole.header, None, "nothing comes after the piece that has a header");
        sizes.push(piece.kvs.len());
        whole.kvs.extend(piece.kvs);
        (whole.header, whole.more, whole.count) = (piece.header, piece.more, piece.count);
    }
    assert!(whole.header.is_some(), "the last piece has a header");
    Ok((whole, sizes))
}

#[tokio::test]
async fn a_range_that_is_streamed_is_the_same_range() {
    let world = World::start().await;
    for n in 0..300 {
        world.put(&format!("a/{n:03}"), &"v".repeat(n)).await;
    }
    for n in 0..5 {
        world.put(&format!("b/{n}"), &"v".repeat(400_000)).await;
    }
    world.delete("a/100").await;
    let limited = |limit: i64| pb::RangeRequest { limit, ..prefix("a/") };
    for (what, request, pieces) in [
        ("one key", range("a/001"), vec![1]),
        ("no key", range("none"), vec![0]),
        ("many small keys", prefix("a/"), vec![299]),
        ("large values", prefix("b/"), vec![2, 2, 1]),
        ("a limit", limited(70), vec![70]),
        ("a limit that is the end of a part", limited(64), vec![64]),
        ("a limit that is all there is", limited(299), vec![299]),
        ("a limit that is not reached", limited(300), vec![299]),
        ("a limit that is none", limited(-1), vec![299]),
        ("a limit of large ones", pb::RangeRequest { limit: 4, ..prefix("b/") }, vec![2, 2]),
        ("a count", pb::RangeRequest { count_only: true, limit: 7, ..prefix("a/") }, vec![0]),
        ("no values", pb::RangeRequest { keys_only: true, ..prefix("b/") }, vec![5]),
        ("the past", pb::RangeRequest { revision: 150, ..prefix("a/") }, vec![149]),
        ("in the order of keys", pb::RangeRequest { sort_order: SortOrder::Ascend.into(), ..prefix("a/") }, vec![299]),
    ] {
        let wanted = world.kv().range(request.clone()).await.expect(what).into_inner();
        let (got, sizes) = streamed(&world, request).await.expect(what);
        assert_eq!((got, sizes), (wanted, pieces), "{what}");
    }
}

#[tokio::test]
async fn a_range_that_is_streamed_stays_at_its_revision() {
    let world = World::start().await;
    for n in 0..9 {
        world.put(&format!("k{n}"), &"v".repeat(600_000)).await;
    }
    let mut pieces = world.kv().range_stream(prefix("k")).await.unwrap().into_inner();
    let first = soon("the first piece", pieces.message()).await.unwrap().unwrap().range_response.unwrap();
    assert_eq!((first.kvs.len(), first.header), (1, None));
    // The stream's window holds far less than the rest, so this comes before the last keys are read.
    world.put("k8", "changed").await;
    world.put("k9", "new").await;
    let (mut keys, mut last) = (1, first);
    while let Some(piece) = soon("a piece", pieces.message()).await.unwrap() {
        last = piece.range_response.unwrap();
        assert!(last.kvs.iter().all(|kv| kv.value.len() == 600_000));
        keys += last.kvs.len();
    }
    assert_eq!((keys, last.count, last.header.unwrap().revision), (9, 9, 10));

    let mut pieces = world.kv().range_stream(prefix("k")).await.unwrap().into_inner();
    soon("the first piece", pieces.message()).await.unwrap().unwrap();
    world.put("k8", "again").await;
    world.kv().compact(pb::CompactionRequest { revision: 13, physical: true }).await.unwrap();
    let ended = loop {
        match soon("a piece", pieces.message()).await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert_eq!(said(ended), "OutOfRange etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test]
async fn a_range_that_cannot_be_streamed_is_refused() {
    let world = World::start().await;
    world.put("k", "v").await;
    let sorted = |order: SortOrder, target: SortTarget| pb::RangeRequest {
        sort_order: order.into(),
        sort_target: target.into(),
        ..prefix("k")
    };
    for (request, wanted) in [
        (range(""), "InvalidArgument etcdserver: key is not provided"),
        (sorted(SortOrder::Descend, SortTarget::Key), "Unimplemented RangeStream does not support custom sort orders"),
        (sorted(SortOrder::None, SortTarget::Version), "Unimplemented RangeStream does not support custom sort orders"),
        (pb::RangeRequest { sort_order: 9, ..range("k") }, "InvalidArgument etcdserver: invalid sort option"),
        (
            pb::RangeRequest { max_create_revision: -1, ..range("k") },
            "Unimplemented RangeStream does not support revision filters",
        ),
        (
            pb::RangeRequest { revision: 99, ..range("k") },
            "OutOfRange etcdserver: mvcc: required revision is a future revision",
        ),
    ] {
        assert_eq!(said(streamed(&world, request).await), wanted);
    }
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_etcd_s_own_words() {
    let world = World::start().await;
    world.put("k", "v").await;
    let mut kv = world.kv();
    let refused = |text: &str| format!("InvalidArgument etcdserver: {text}");

    assert_eq!(said(kv.range(range("")).await), refused("key is not provided"));
    assert_eq!(said(kv.put(put("", "v")).await), refused("key is not provided"));
    assert_eq!(said(kv.delete_range(pb::DeleteRangeRequest::default()).await), refused("key is not provided"));
    let sort = pb::RangeRequest { sort_order: 9, ..range("k") };
    assert_eq!(said(kv.range(sort).await), refused("invalid sort option"));
    let sort = pb::RangeRequest { sort_target: -1, ..range("k") };
    assert_eq!(said(kv.range(sort).await), refused("invalid sort option"));
    let future = pb::RangeRequest { revision: 99, ..range("k") };
    let text = "OutOfRange etcdserver: mvcc: required revision is a future revision";
    assert_eq!(said(kv.range(future).await), text);

    let keep = pb::PutRequest { ignore_value: true, ..put("k", "new") };
    assert_eq!(said(kv.put(keep).await), refused("value is provided"));
    let keep = pb::PutRequest { ignore_lease: true, lease: 5, ..put("k", "new") };
    assert_eq!(said(kv.put(keep).await), refused("lease is provided"));
    let keep = pb::PutRequest { ignore_value: true, ..put("none", "") };
    assert_eq!(said(kv.put(keep).await), refused("key not found"));
    let keep = pb::PutRequest { ignore_lease: true, ..put("none", "v") };
    assert_eq!(said(kv.put(keep).await), refused("key not found"));
    let leased = pb::PutRequest { lease: 5, ..put("k", "v") };
    assert_eq!(said(kv.put(leased.clone()).await), "NotFound etcdserver: requested lease not found");
    let leased = pb::PutRequest { prev_kv: true, ..leased };
    assert_eq!(said(kv.put(leased).await), "NotFound etcdserver: requested lease not found");

    let large = put("k", &"v".repeat(convert_max()));
    assert_eq!(said(kv.put(large).await), refused("request is too large"));
    let huge = put("k", &"v".repeat(3 * 1024 * 1024));
    let text = "ResourceExhausted grpc: received message larger than max (3145736 vs. 2097152)";
    assert_eq!(said(kv.put(huge).await), text);
    let long = put(&"k".repeat(9000), "v");
    assert_eq!(said(kv.put(long).await), refused("request is too large"));
    // And the connection serves on.
    assert_eq!(read(&world, range("k")).await, "k=v c2 m2 v1 | count 1 more false");
}

fn convert_max() -> usize {
    crate::edge::etcd::REQUEST_BYTES_MAX
}

#[tokio::test]
async fn puts_and_deletes_give_what_was_there() {
    let world = World::start().await;
    let mut kv = world.kv();
    let asked = pb::PutRequest { prev_kv: true, ..put("k", "one") };
    assert_eq!(kv.put(asked.clone()).await.unwrap().into_inner().prev_kv, None);
    let again = pb::PutRequest { value: bytes("two"), ..asked };
    let prev = kv.put(again).await.unwrap().into_inner().prev_kv.unwrap();
    assert_eq!(shown(&prev), "k=one c2 m2 v1");
    let kept = pb::PutRequest { ignore_value: true, ..put("k", "") };
    kv.put(kept).await.unwrap();
    assert_eq!(read(&world, range("k")).await, "k=two c2 m4 v3 | count 1 more false");
    world.put("l", "three").await;
    let delete = pb::DeleteRangeRequest { key: bytes("k"), range_end: bytes("z"), prev_kv: true };
    let deleted = kv.delete_range(delete.clone()).await.unwrap().into_inner();
    let prevs: Vec<String> = deleted.prev_kvs.iter().map(shown).collect();
    assert_eq!((deleted.deleted, prevs.join(", ").as_str()), (2, "k=two c2 m4 v3, l=three c5 m5 v1"));
    // Nothing is there, and nothing happens.
    let none = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!((none.deleted, none.header.unwrap().revision), (0, 6));
}

#[tokio::test]
async fn a_transaction_goes_one_way_or_the_other() {
    let world = World::start().await;
    world.put("a", "1").await;
    let mut kv = world.kv();
    let request = pb::TxnRequest {
        compare: vec![
            compare("a", CompareResult::Equal, CompareTarget::Version, TargetUnion::Version(1)),
            compare("a", CompareResult::Greater, CompareTarget::Value, TargetUnion::Value(bytes("0"))),
            compare("a", CompareResult::NotEqual, CompareTarget::Mod, TargetUnion::ModRevision(9)),
            compare("a", CompareResult::Less, CompareTarget::Create, TargetUnion::CreateRevision(3)),
            compare("a", CompareResult::Equal, CompareTarget::Lease, TargetUnion::Lease(0)),
        ],
        success: vec![
            put_op("a", "2"),
            op(Request::RequestRange(range("a"))),
            delete_op("b", ""),
            op(Request::RequestTxn(pb::TxnRequest {
                compare: vec![compare("c", CompareResult::Equal, CompareTarget::Version, TargetUnion::Version(0))],
                success: vec![put_op("c", "new")],
                failure: vec![put_op("c", "old")],
            })),
        ],
        failure: vec![op(Request::RequestRange(range("a")))],
    };
    let done = kv.txn(request.clone()).await.unwrap().into_inner();
    assert!(done.succeeded);
    assert_eq!(done.header.unwrap().revision, 3);
    let [put, get, delete, nested] = &done.responses[..] else { panic!("four operations: {:?}", done.responses) };
    assert!(matches!(&put.response, Some(Response::ResponsePut(put)) if put.header.unwrap().revision == 3));
    // It sees what the operation before it wrote.
    let Some(Response::ResponseRange(get)) = &get.response else { panic!("a range") };
    assert_eq!(shown(&get.kvs[0]), "a=2 c2 m3 v2");
    assert!(matches!(&delete.response, Some(Response::ResponseDeleteRange(delete)) if delete.deleted == 0));
    let Some(Response::ResponseTxn(nested)) = &nested.response else { panic!("a transaction") };
    assert!(nested.succeeded && nested.responses.len() == 1);
    // One revision for all of it.
    assert_eq!(read(&world, range("c")).await, "c=new c3 m3 v1 | count 1 more false");

    let other = kv.txn(request).await.unwrap().into_inner();
    assert!(!other.succeeded, "the version is 2 now");
    assert_eq!(other.header.unwrap().revision, 3, "a read changes nothing");
    let Some(Response::ResponseRange(get)) = &other.responses[0].response else { panic!("a range") };
    assert_eq!(shown(&get.kvs[0]), "a=2 c2 m3 v2");
}

#[tokio::test]
async fn malformed_transactions_are_refused() {
    let world = World::start().await;
    let mut kv = world.kv();
    let refused = |text: &str| format!("InvalidArgument etcdserver: {text}");
    let success = |ops: Vec<pb::RequestOp>| pb::TxnRequest { success: ops, ..Default::default() };
    let nested = |inner: pb::TxnRequest| op(Request::RequestTxn(inner));

    let duplicate = refused("duplicate key given in txn request");
    for ops in [
        vec![put_op("a", "1"), put_op("a", "2")],
        vec![put_op("b", "1"), delete_op("a", "c")],
        vec![put_op("a", "1"), nested(success(vec![put_op("a", "2")]))],
        vec![nested(success(vec![put_op("a", "1")])), nested(success(vec![put_op("a", "2")]))],
        vec![delete_op("a", "z"), nested(success(vec![put_op("m", "1")]))],
    ] {
        assert_eq!(said(kv.txn(success(ops.clone())).await), duplicate, "{ops:?}");
    }
    // Only one of two branches is taken.
    let either =
        pb::TxnRequest { compare: Vec::new(), success: vec![put_op("a", "1")], failure: vec![put_op("a", "2")] };
    assert_eq!(said(kv.txn(success(vec![nested(either)])).await), "ok");

    let many = |count: usize| success((0..count).map(|n| put_op(&n.to_string(), "")).collect());
    assert_eq!(said(kv.txn(many(128)).await), "ok");
    assert_eq!(said(kv.txn(many(129)).await), refused("too many operations in txn request"));
    let within = success(vec![nested(many(127))]);
    assert_eq!(said(kv.txn(within).await), "ok");
    let within = success(vec![nested(many(128))]);
    assert_eq!(said(kv.txn(within).await), refused("too many operations in txn request"));

    assert_eq!(said(kv.txn(success(vec![pb::RequestOp::default()])).await), refused("key not found"));
    assert_eq!(said(kv.txn(success(vec![put_op("", "1")])).await), refused("key is not provided"));
    let nameless = pb::TxnRequest { compare: vec![pb::Compare::default()], ..Default::default() };
    assert_eq!(said(kv.txn(nameless).await), refused("key is not provided"));
    let unknown = pb::Compare { result: 7, key: bytes("a"), ..Default::default() };
    let unknown = pb::TxnRequest { compare: vec![unknown], ..Default::default() };
    assert_eq!(said(kv.txn(unknown).await), refused("unknown compare result 7"));

    // What cannot be done takes everything with it.
    let keep = pb::PutRequest { ignore_value: true, ..put("none", "") };
    let ops = vec![put_op("first", "1"), op(Request::RequestPut(keep))];
    assert_eq!(said(kv.txn(success(ops)).await), refused("key not found"));
    assert_eq!(read(&world, range("first")).await, " | count 0 more false");

    // Deeper than anybody nests: refused, wherever it is noticed, and the connection serves on.
    let mut deep = success(vec![put_op("deep", "1")]);
    for _ in 0..40 {
        deep = success(vec![nested(deep)]);
    }
    assert_eq!(said(kv.txn(deep).await), refused("too many operations in txn request"));
    let mut deeper = success(vec![put_op("deep", "1")]);
    for _ in 0..400 {
        deeper = success(vec![nested(deeper)]);
    }
    assert!(kv.txn(deeper).await.is_err());
    assert_eq!(read(&world, range("deep")).await, " | count 0 more false");
    // An empty transaction is one.
    let empty = kv.txn(pb::TxnRequest::default()).await.unwrap().into_inner();
    assert!(empty.succeeded && empty.responses.is_empty());
}

#[tokio::test]
async fn compaction_forgets_the_past_once() {
    let world = World::start().await;
    for value in ["1", "2", "3"] {
        world.put("a", value).await;
    }
    let mut kv = world.kv();
    let compact = |revision, physical| pb::CompactionRequest { revision, physical };
    let gone = "OutOfRange etcdserver: mvcc: required revision has been compacted";
    let future = "OutOfRange etcdserver: mvcc: required revision is a future revision";
    assert_eq!(said(kv.compact(compact(99, false)).await), future);
    let done = kv.compact(compact(3, true)).await.unwrap().into_inner();
    assert_eq!(done.header.unwrap().revision, 4);
    assert_eq!(said(kv.compact(compact(3, false)).await), gone);
    assert_eq!(said(kv.compact(compact(0, false)).await), gone);
    assert_eq!(said(kv.compact(compact(-5, false)).await), gone);
    assert_eq!(said(kv.range(pb::RangeRequest { revision: 2, ..range("a") }).await), gone);
    let kept = pb::RangeRequest { revision: 3, ..range("a") };
    assert_eq!(read(&world, kept).await, "a=2 c2 m3 v2 | count 1 more false");
    let inside = op(Request::RequestRange(pb::RangeRequest { revision: 2, ..range("a") }));
    let txn = pb::TxnRequest { success: vec![put_op("b", "1"), inside], ..Default::default() };
    assert_eq!(said(kv.txn(txn).await), gone);
}

#[tokio::test]
async fn what_the_ledger_cannot_do_now_is_said_as_etcd_says_it() {
    let world = World::start().await;
    world.local.elect(None);
    let mut kv = world.kv();
    let mut request = tonic::Request::new(range("a"));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert_eq!(said(kv.range(request).await), "Unavailable etcdserver: no leader");
    world.local.stop();
    assert_eq!(said(kv.put(put("a", "1")).await), "Unavailable etcdserver: server stopped");
}

/// Makes a call with a body of these pieces; status, text, and how long the answer is.
async fn raw(world: &World, call: &str, pieces: Vec<Vec<u8>>, generated: bool) -> (String, String, usize) {
    use http_body_util::{BodyExt, StreamBody};
    use tonic::codegen::Service;
    let frames = pieces.into_iter().map(|piece| Ok::<_, Status>(hyper::body::Frame::data(bytes::Bytes::from(piece))));
    let body = tonic::body::Body::new(StreamBody::new(futures::stream::iter(frames)));
    let mut request =
        http::Request::post(format!("/etcdserverpb.KV/{call}")).header("content-type", "application/grpc");
    if generated {
        // Said explicitly it means what it means anyway, and the call takes the way of the unusual ones.
        request = request.header("grpc-encoding", "identity");
    }
    let mut channel = world.channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("the connection lives");
    let answer = channel.call(request.body(body).expect("a request")).await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    let (head, body) = answer.into_parts();
    let body = body.collect().await.expect("a body");
    let trailers = body.trailers().cloned().unwrap_or_default();
    let of = |name: &str| {
        let value = head.headers.get(name).or_else(|| trailers.get(name));
        value.map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default()
    };
    (of("grpc-status"), of("grpc-message"), body.to_bytes().len())
}

#[tokio::test]
async fn common_calls_are_answered_as_the_generated_service_answers_them() {
    use prost::Message;
    let world = World::start().await;
    let message = |request: Vec<u8>| {
        let mut framed = vec![0];
        framed.extend_from_slice(&(request.len() as u32).to_be_bytes());
        framed.extend_from_slice(&request);
        framed
    };
    let good = message(put("a", "some value").encode_to_vec());
    let bodies: Vec<(&str, &str, Vec<Vec<u8>>)> = vec![
        ("Put", "one piece", vec![good.clone()]),
        ("Put", "byte by byte", good.iter().map(|byte| vec![*byte]).collect()),
        ("Range", "a read", vec![message(range("a").encode_to_vec())]),
        ("DeleteRange", "a delete of nothing", vec![message(range("nothing").encode_to_vec())]),
        ("Txn", "a transaction that does nothing", vec![message(Vec::new())]),
        ("Put", "an empty key", vec![message(put("", "v").encode_to_vec())]),
        ("Put", "no message", Vec::new()),
        ("Put", "an empty piece", vec![Vec::new()]),
        ("Put", "two messages", vec![[good.clone(), good.clone()].concat()]),
        ("Put", "many messages", vec![good.clone(); 50]),
        ("Put", "a length that is not allowed", vec![vec![0, 0xff, 0xff, 0xff, 0xff]]),
        ("Put", "half a message", vec![good[..good.len() / 2].to_vec()]),
        ("Put", "half a head", vec![good[..3].to_vec()]),
        ("Put", "said to be compressed", vec![[&[1], &good[1..]].concat()]),
        ("Put", "no protobuf", vec![message(vec![0xff; 9])]),
    ];
    for (call, what, pieces) in bodies {
        let ours = raw(&world, call, pieces.clone(), false).await;
        let generated = raw(&world, call, pieces, true).await;
        assert_eq!(ours, generated, "{what}");
    }
}
