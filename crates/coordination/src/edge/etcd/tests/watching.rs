//! Watches.

use futures::StreamExt;
use pb::{
    WatchCreateRequest, WatchRequest, WatchResponse, request_op::Request, watch_create_request::FilterType,
    watch_request::RequestUnion,
};
use tokio::sync::mpsc;

use super::*;

/// One stream, from its client's side.
struct Watcher {
    requests: mpsc::Sender<WatchRequest>,
    answers: tonic::Streaming<WatchResponse>,
}

impl Watcher {
    async fn open(world: &World) -> Self {
        Self::through(world.watch()).await
    }

    async fn through(mut client: WatchClient<Channel>) -> Self {
        let (requests, mut queue) = mpsc::channel::<WatchRequest>(2048);
        let stream = futures::stream::poll_fn(move |context| queue.poll_recv(context));
        let answers = client.watch(stream).await.expect("a stream").into_inner();
        Self { requests, answers }
    }

    async fn ask(&self, union: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(union) }).await.expect("the stream is open");
    }

    async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(create)).await;
        let answer = self.next().await;
        assert!(answer.created, "{}", told(&answer));
        answer
    }

    async fn progress(&self) {
        self.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    }

    async fn next(&mut self) -> WatchResponse {
        soon("an answer", self.answers.next()).await.expect("the stream is open").expect("no failure")
    }

    async fn shown(&mut self) -> String {
        told(&self.next().await)
    }
}

fn all(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), range_end: end_of(key), ..Default::default() }
}

fn one(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), ..Default::default() }
}

/// `#ID @REVISION` and the events, or what else it says.
fn told(answer: &WatchResponse) -> String {
    let mut text = format!("#{} @{}", answer.watch_id, answer.header.expect("every reply has one").revision);
    for (said, what) in [(answer.created, "created"), (answer.canceled, "canceled"), (answer.fragment, "fragment")] {
        if said {
            text += &format!(" {what}");
        }
    }
    if answer.compact_revision != 0 {
        text += &format!(" compacted {}", answer.compact_revision);
    }
    if !answer.cancel_reason.is_empty() {
        text += &format!(" ({})", answer.cancel_reason);
    }
    for event in &answer.events {
        let kv = event.kv.as_ref().expect("an event has a key");
        let deleted = event.r#type == mvccpb::event::EventType::Delete as i32;
        text += if deleted { " del " } else { " put " };
        text += &shown(kv);
        if let Some(prev) = &event.prev_kv {
            text += &format!(" [was {}]", shown(prev));
        }
    }
    text
}

#[tokio::test]
async fn what_happens_is_heard_a_revision_at_a_time() {
    let world = World::start().await;
    world.put("a/1", "before").await;
    let mut watcher = Watcher::open(&world).await;
    assert_eq!(told(&watcher.create(all("a/")).await), "#0 @2 created");
    world.put("b", "elsewhere").await;
    world.put("a/1", "one").await;
    assert_eq!(watcher.shown().await, "#0 @4 put a/1=one c2 m4 v2");
    let put = |key: &str| pb::RequestOp {
        request: Some(Request::RequestPut(pb::PutRequest { key: bytes(key), ..Default::default() })),
    };
    let txn = pb::TxnRequest { success: vec![put("a/2"), put("c"), put("a/3")], ..Default::default() };
    world.kv().txn(txn).await.unwrap();
    assert_eq!(watcher.shown().await, "#0 @5 put a/2= c5 m5 v1 put a/3= c5 m5 v1");
    world.delete("a/1").await;
    assert_eq!(watcher.shown().await, "#0 @6 del a/1= c0 m6 v0");
}

#[tokio::test]
async fn history_comes_first_and_nothing_is_missing_in_between() {
    let world = World::start().await;
    for n in 0..50 {
        world.put("k", &n.to_string()).await;
    }
    let mut watcher = Watcher::open(&world).await;
    // The first makes the stream live; the second begins far behind, the third in between, the last in the future.
    watcher.create(one("other")).await;
    watcher.create(WatchCreateRequest { start_revision: 2, ..one("k") }).await;
    world.put("k", "50").await;
    let mut seen = Vec::new();
    while seen.len() < 51 {
        let answer = watcher.next().await;
        assert_eq!(answer.watch_id, 1);
        seen.extend(answer.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision));
    }
    assert_eq!(seen, (2..53).collect::<Vec<i64>>());
    watcher.create(WatchCreateRequest { start_revision: 55, ..one("k") }).await;
    for n in 51..54 {
        world.put("k", &n.to_string()).await;
    }
    let mut heard = Vec::new();
    while heard.len() < 4 {
        let answer = watcher.next().await;
        for event in &answer.events {
            heard.push((answer.watch_id, event.kv.as_ref().unwrap().mod_revision));
        }
    }
    heard.sort();
    assert_eq!(heard, [(1, 53), (1, 54), (1, 55), (2, 55)]);
}

#[tokio::test]
async fn options_say_what_is_heard() {
    let world = World::start().await;
    world.put("k", "1").await;
    let mut watcher = Watcher::open(&world).await;
    let prev = WatchCreateRequest { prev_kv: true, watch_id: 9, ..one("k") };
    assert_eq!(told(&watcher.create(prev.clone()).await), "#9 @2 created");
    let deletes = WatchCreateRequest { filters: vec![FilterType::Noput as i32], watch_id: 5, ..one("k") };
    watcher.create(deletes).await;
    let puts = WatchCreateRequest { filters: vec![FilterType::Nodelete as i32], watch_id: 6, ..one("k") };
    watcher.create(puts).await;
    world.put("k", "2").await;
    let mut answers = vec![watcher.shown().await, watcher.shown().await];
    answers.sort();
    assert_eq!(answers, ["#6 @3 put k=2 c2 m3 v2", "#9 @3 put k=2 c2 m3 v2 [was k=1 c2 m2 v1]"]);
    world.delete("k").await;
    let mut answers = vec![watcher.shown().await, watcher.shown().await];
    answers.sort();
    assert_eq!(answers, ["#5 @4 del k= c0 m4 v0", "#9 @4 del k= c0 m4 v0 [was k=2 c2 m3 v2]"]);

    // History has the same to say.
    let again = WatchCreateRequest { start_revision: 3, watch_id: 1, ..prev.clone() };
    watcher.create(again).await;
    assert_eq!(watcher.shown().await, "#1 @4 put k=2 c2 m3 v2 [was k=1 c2 m2 v1] del k= c0 m4 v0 [was k=2 c2 m3 v2]");

    watcher.ask(RequestUnion::CreateRequest(prev)).await;
    let text = "#-1 @4 created canceled (mvcc: duplicate watch ID provided on the WatchStream)";
    assert_eq!(watcher.shown().await, text);
    let empty = WatchCreateRequest { range_end: bytes("a"), ..one("k") };
    watcher.ask(RequestUnion::CreateRequest(empty)).await;
    assert_eq!(watcher.shown().await, "#-1 @4 created canceled (mvcc: watcher range is empty)");
    let negative = WatchCreateRequest { start_revision: -1, ..one("k") };
    watcher.ask(RequestUnion::CreateRequest(negative)).await;
    let text = "#-1 @4 created canceled (etcdserver: mvcc: required revision has been compacted)";
    assert_eq!(watcher.shown().await, text);
    // An empty request says nothing, and a watch that is not there cannot be cancelled.
    watcher.requests.send(WatchRequest::default()).await.unwrap();
    watcher.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 77 })).await;
    watcher.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 9 })).await;
    assert_eq!(watcher.shown().await, "#9 @4 canceled");
    // An empty key is the smallest one.
    let everything = WatchCreateRequest { range_end: vec![0].into(), watch_id: 20, ..one("") };
    watcher.create(everything).await;
    world.put("zz", "last").await;
    assert_eq!(watcher.shown().await, "#20 @5 put zz=last c5 m5 v1");
}

#[tokio::test]
async fn progress_is_told_only_after_everything_before_it() {
    let world = World::start().await;
    for n in 0..300 {
        world.put("k", &n.to_string()).await;
    }
    let mut watcher = Watcher::open(&world).await;
    watcher.create(one("quiet")).await;
    watcher.create(WatchCreateRequest { start_revision: 2, ..one("k") }).await;
    watcher.progress().await;
    let mut last = 0;
    loop {
        let answer = watcher.next().await;
        if answer.watch_id == -1 {
            assert_eq!(told(&answer), "#-1 @301");
            break;
        }
        last = answer.events.last().expect("events").kv.as_ref().unwrap().mod_revision;
    }
    assert_eq!(last, 301);
    // On a stream without watches too, and as far as the node is.
    world.put("k", "more").await;
    let mut idle = Watcher::open(&world).await;
    idle.progress().await;
    assert_eq!(idle.shown().await, "#-1 @302");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_hears_how_far_it_is_from_time_to_time() {
    let world = World::with(Options { progress_interval: Duration::from_secs(600), ..Options::default() }).await;
    let mut watcher = Watcher::open(&world).await;
    watcher.create(WatchCreateRequest { progress_notify: true, ..one("k") }).await;
    watcher.create(one("k")).await;
    world.put("other", "1").await;
    let (requests, mut answers) = (watcher.requests.clone(), watcher.answers);
    // Time runs on by itself while everybody waits.
    let answer = answers.next().await.unwrap().unwrap();
    assert_eq!(told(&answer), "#0 @2");
    drop(requests);
}

#[tokio::test]
async fn large_revisions_are_split_for_who_asked_for_it() {
    let world = World::start().await;
    let mut watcher = Watcher::open(&world).await;
    watcher.create(all("k")).await;
    watcher.create(WatchCreateRequest { fragment: true, prev_kv: true, ..all("k") }).await;
    // Three times in one revision: the old values make it larger than one answer.
    for round in 0..2 {
        let put = |n: usize| pb::RequestOp {
            request: Some(Request::RequestPut(pb::PutRequest {
                key: bytes(&format!("k{n}")),
                value: vec![b'v'; 480 * 1024].into(),
                ..Default::default()
            })),
        };
        let txn = pb::TxnRequest { success: (0..3).map(put).collect(), ..Default::default() };
        world.kv().txn(txn).await.unwrap();
        let (mut whole, mut pieces) = (0, Vec::new());
        while whole < 3 || pieces.iter().map(|(count, _)| count).sum::<usize>() < 3 {
            let answer = watcher.next().await;
            match answer.watch_id {
                0 => whole += answer.events.len(),
                _ => pieces.push((answer.events.len(), answer.fragment)),
            }
        }
        assert_eq!(whole, 3);
        match round {
            0 => assert_eq!(pieces, [(3, false)]),
            _ => assert_eq!(pieces, [(2, true), (1, false)]),
        }
    }
}

#[tokio::test]
async fn a_watch_of_what_is_compacted_is_cancelled_and_told_where_to_begin() {
    let world = World::start().await;
    for n in 0..10 {
        world.put("k", &n.to_string()).await;
    }
    world.kv().compact(pb::CompactionRequest { revision: 6, physical: true }).await.unwrap();
    let mut watcher = Watcher::open(&world).await;
    watcher.create(WatchCreateRequest { start_revision: 3, ..one("k") }).await;
    assert_eq!(watcher.shown().await, "#0 @11 canceled compacted 6");
    // As a client does then.
    watcher.create(WatchCreateRequest { start_revision: 6, ..one("k") }).await;
    let answer = watcher.next().await;
    let seen: Vec<i64> = answer.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(seen, (6..12).collect::<Vec<i64>>());
    // A live watch does not mind, and one that reconnects goes on without a gap.
    world.kv().compact(pb::CompactionRequest { revision: 11, physical: true }).await.unwrap();
    world.put("k", "10").await;
    assert_eq!(watcher.shown().await, "#1 @12 put k=10 c2 m12 v11");
    drop(watcher);
    world.put("k", "11").await;
    let mut again = Watcher::open(&world).await;
    again.create(WatchCreateRequest { start_revision: 13, ..one("k") }).await;
    assert_eq!(again.shown().await, "#0 @13 put k=11 c2 m13 v12");
    // What the ring still has does not help one that begins where history is gone.
    world.kv().compact(pb::CompactionRequest { revision: 13, physical: true }).await.unwrap();
    again.create(WatchCreateRequest { start_revision: 12, ..one("k") }).await;
    assert_eq!(again.shown().await, "#1 @13 canceled compacted 13");
}

#[tokio::test]
async fn a_thousand_watches_hear_everything_in_order() {
    const STREAMS: usize = 10;
    const EACH: usize = 100;
    const PUTS: i64 = 20;
    let world = World::start().await;
    let mut watchers = Vec::new();
    for _ in 0..STREAMS {
        let mut watcher = Watcher::open(&world).await;
        for n in 0..EACH {
            watcher.create(WatchCreateRequest { prev_kv: n % 2 == 0, ..all("p/") }).await;
        }
        watchers.push(watcher);
    }
    assert_eq!(world.etcd.counters.watches.load(std::sync::atomic::Ordering::Relaxed), 1000);
    let listening = watchers.into_iter().map(|mut watcher| {
        tokio::spawn(async move {
            let mut heard = vec![1i64; EACH];
            while heard.iter().any(|last| *last < PUTS + 1) {
                let answer = watcher.next().await;
                for event in answer.events {
                    let last = &mut heard[answer.watch_id as usize];
                    assert_eq!(event.kv.unwrap().mod_revision, *last + 1, "of watch {}", answer.watch_id);
                    *last += 1;
                }
            }
        })
    });
    let listening: Vec<_> = listening.collect();
    for n in 0..PUTS {
        world.put(&format!("p/{n}"), "value").await;
    }
    for one in listening {
        soon("all events", one).await.unwrap();
    }
    // They went, and are not counted any more.
    soon("the end of the streams", async {
        while world.etcd.counters.watches.load(std::sync::atomic::Ordering::Relaxed) != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_reads_slowly_costs_no_memory_and_misses_nothing() {
    // A ring that holds a few events only, and far more happens than any buffer in between can take.
    let world = World::with(Options { ring_bytes_max: 64 * 1024, ..Options::default() }).await;
    let channel = Channel::connect(&world.address).await.unwrap();
    let mut slow = Watcher::through(WatchClient::new(channel).max_decoding_message_size(usize::MAX)).await;
    slow.create(all("k")).await;
    slow.create(WatchCreateRequest { prev_kv: true, ..all("k") }).await;
    let value = "v".repeat(16 * 1024);
    const PUTS: i64 = 600;
    for n in 0..PUTS {
        world.put(&format!("k{}", n % 7), &value).await;
    }
    let mut heard = [1i64; 2];
    while heard != [PUTS + 1; 2] {
        let answer = slow.next().await;
        for event in answer.events {
            let last = &mut heard[answer.watch_id as usize];
            assert_eq!(event.kv.unwrap().mod_revision, *last + 1);
            *last += 1;
        }
    }
    assert!(world.etcd.counters.watches_behind.load(std::sync::atomic::Ordering::Relaxed) > 0, "it fell behind");
}

#[tokio::test]
async fn a_stream_ends_when_the_node_stops() {
    let world = World::start().await;
    let mut watcher = Watcher::open(&world).await;
    watcher.create(one("k")).await;
    world.stop.send(true).unwrap();
    let ended = soon("the end", watcher.answers.next()).await.unwrap();
    assert_eq!(said(ended), "Unavailable etcdserver: server stopped");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_wants_a_leader_ends_without_one() {
    let world = World::start().await;
    let mut request = tonic::Request::new(futures::stream::pending::<WatchRequest>());
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let mut answers = world.watch().watch(request).await.unwrap().into_inner();
    world.local.elect(None);
    let ended = answers.next().await.unwrap();
    assert_eq!(said(ended), "Unavailable etcdserver: no leader");
}

#[tokio::test]
async fn a_client_that_has_asked_everything_goes_on_listening() {
    let world = World::start().await;
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(one("k"))) };
    let mut answers = world.watch().watch(futures::stream::iter([create])).await.unwrap().into_inner();
    assert!(soon("created", answers.next()).await.unwrap().unwrap().created);
    world.put("k", "1").await;
    assert_eq!(told(&soon("the event", answers.next()).await.unwrap().unwrap()), "#0 @2 put k=1 c2 m2 v1");
}

#[tokio::test]
async fn a_watcher_that_stops_reading_while_a_million_changes_go_by_has_one_piece_in_line() {
    const EACH: u64 = 4_000;
    const ENTRIES: u64 = 250;
    let world = World::with(Options { ring_bytes_max: 256 * 1024, ..Options::default() }).await;
    let channel = Channel::connect(&world.address).await.unwrap();
    let mut slow = Watcher::through(WatchClient::new(channel).max_decoding_message_size(usize::MAX)).await;
    slow.create(all("k")).await;
    // It does not read, and neither does the edge for it.
    for n in 0..ENTRIES {
        let put =
            |m: u64| buttress_core::Put { key: format!("k{m}").into(), value: Some(n.to_string().into()), lease: None };
        let puts = (0..EACH).map(put).collect();
        world.local.apply(buttress_core::Entry { puts, ..Default::default() }).result.unwrap();
        tokio::task::yield_now().await;
    }
    let mut heard = 0;
    let mut last = 1;
    while heard < EACH * ENTRIES {
        let answer = slow.next().await;
        for event in answer.events {
            let revision = event.kv.unwrap().mod_revision;
            assert!(revision == last || revision == last + 1, "{revision} behind {last}");
            last = revision;
            heard += 1;
        }
    }
    assert_eq!((heard, last), (1_000_000, ENTRIES as i64 + 1));
    assert!(world.etcd.counters.watches_behind.load(std::sync::atomic::Ordering::Relaxed) > 0, "it fell behind");
}

#[tokio::test]
async fn what_is_in_line_for_a_slow_watcher_of_large_values_is_bounded_by_bytes() {
    let world = World::with(Options { ring_bytes_max: 256 * 1024, ..Options::default() }).await;
    let value = "v".repeat(1_000_000);
    for _ in 0..40 {
        world.put("k", &value).await;
    }
    let channel = Channel::connect(&world.address).await.unwrap();
    let mut late = Watcher::through(WatchClient::new(channel).max_decoding_message_size(usize::MAX)).await;
    late.create(WatchCreateRequest { start_revision: 2, ..all("k") }).await;
    let mut heard = 0;
    while heard < 40 {
        heard += late.next().await.events.len();
    }
    // One change of a megabyte is more than a piece, and one piece is in line at a time; not forty, nor a thousand.
    let most = world.etcd.counters.watch_line_bytes_max.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1_000_000..1_600_000).contains(&most), "{most} bytes were in line");
}
