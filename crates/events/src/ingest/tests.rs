use std::{collections::BTreeMap, sync::Arc};

use buttress_core::{Code, Error, entry::TopicSettings};
use buttress_state::local::{Fault, Local};
use bytes::Bytes;
use futures::task::AtomicWaker;
use proptest::prelude::*;

use super::*;
use crate::testing::{self, Gate};

fn lane() -> Arc<Lane> {
    Lane::new(Arc::new(AtomicWaker::new()))
}

fn reading(ingest: &Ingest, machine: &str, seq: i64) -> Item {
    let body = format!(r#"{{"machine":"{machine}","seq":{seq}}}"#);
    let route = ingest.route("telemetry").expect("exists");
    let incoming = Incoming { value: Some(body.into()), timestamp_ms: 1, ..Incoming::default() };
    ingest.prepare(&route, incoming, seq as u64).expect("valid")
}

fn alert(ingest: &Ingest, key: &str, tag: u64) -> Item {
    let route = ingest.route("alerts").expect("exists");
    let key = Some(Bytes::copy_from_slice(key.as_bytes()));
    let value = Some(Bytes::from(tag.to_string()));
    ingest.prepare(&route, Incoming { key, value, timestamp_ms: 1, ..Incoming::default() }, tag).expect("valid")
}

/// Starts every entry at once, so that a test decides alone what is in flight.
fn immediate() -> Options {
    Options { entry_pause_ms: 0, ..Options::default() }
}

/// The batcher over a gate.
fn gated(options: Options) -> (Arc<Local>, Arc<Gate>, Arc<Ingest>) {
    let local = Local::new();
    testing::topics(&local);
    let gate = Gate::new(local.clone());
    let deps = Deps { ledger: gate.clone(), ..testing::deps(&local) };
    let ingest = Ingest::new(deps, options);
    tokio::spawn(ingest.clone().run());
    (local, gate, ingest)
}

fn summary(outcomes: &[Outcome]) -> Vec<String> {
    outcomes
        .iter()
        .map(|o| match &o.result {
            Ok(p) if p.duplicate => format!("{} duplicate of {:?}", o.tag, p.offset.map(|o| o.0)),
            Ok(p) => format!("{} at {}", o.tag, p.offset.expect("appended").0),
            Err(error) => format!("{} {} {}", o.tag, error.code, error.message),
        })
        .collect()
}

#[tokio::test]
async fn the_first_goes_at_once_and_the_rest_share_the_next_entry() {
    let (_, gate, ingest) = gated(immediate());
    let first = lane();
    ingest.enqueue(&first, &mut vec![reading(&ingest, "m0", 0)]);
    let (entry, go) = gate.next().await;
    assert_eq!(entry.appends.len(), 1);

    let others: Vec<_> = (1..=50).map(|_| lane()).collect();
    for (i, lane) in others.iter().enumerate() {
        ingest.enqueue(lane, &mut vec![reading(&ingest, &format!("m{}", i + 1), 0)]);
    }
    tokio::task::yield_now().await;
    assert_eq!(gate.held(), 0, "too little to start another entry beside the first");
    go.send(()).expect("the submission waits");
    let (entry, go) = gate.next().await;
    assert_eq!(entry.appends.len(), 50, "everything queued goes together");
    go.send(()).expect("the submission waits");
    for lane in &others {
        assert_eq!(lane.answered().await.len(), 1);
    }
    assert_eq!(first.answered().await.len(), 1);
    assert_eq!(ingest.counters().entries.load(Relaxed), 2);
    assert_eq!(ingest.queued_bytes.load(Relaxed), 0);
}

#[tokio::test]
async fn much_starts_another_entry_up_to_the_limit_and_never_of_the_same_lane() {
    let options = Options { entries_in_flight_max: 3, entry_records_target: 10, ..immediate() };
    let (_, gate, ingest) = gated(options);
    let lanes: Vec<_> = (0..5).map(|_| lane()).collect();
    let mut held = Vec::new();
    for (i, lane) in lanes.iter().enumerate() {
        let mut items = (0..10).map(|seq| reading(&ingest, &format!("m{i}"), seq)).collect();
        ingest.enqueue(lane, &mut items);
        // The same lane again: this must wait for its first ten.
        ingest.enqueue(lane, &mut vec![reading(&ingest, &format!("m{i}"), 10)]);
        if i < 3 {
            held.push(gate.next().await);
        }
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(gate.held(), 0, "three are in flight, no more");
    // Answer the last one first: order within a lane does not depend on the order of entries.
    while let Some((_, go)) = held.pop() {
        go.send(()).expect("the submission waits");
    }
    let open = tokio::spawn(async move {
        loop {
            let (_, go) = gate.next().await;
            let _ = go.send(());
        }
    });
    for lane in &lanes {
        let outcomes = lane.answered().await;
        let tags: Vec<u64> = outcomes.iter().map(|o| o.tag).collect();
        assert_eq!(tags, (0..=10).collect::<Vec<_>>());
        assert!(outcomes.iter().all(|o| o.result.is_ok()), "{:?}", summary(&outcomes));
    }
    open.abort();
    let queue = ingest.queue.lock().expect("unpoisoned");
    assert_eq!((queue.ready.len(), queue.ready_bytes, queue.ready_records, queue.in_flight), (0, 0, 0, 0));
}

#[tokio::test]
async fn records_without_a_sequence_share_a_batch_per_partition() {
    let (local, gate, ingest) = gated(immediate());
    let lane = lane();
    let mut items: Vec<Item> = (0..20).map(|tag| alert(&ingest, &format!("k{tag}"), tag)).collect();
    ingest.enqueue(&lane, &mut items);
    let (entry, go) = gate.next().await;
    assert_eq!(entry.appends.iter().map(|a| a.records).sum::<u32>(), 20);
    assert_eq!(entry.appends.len(), 2, "one batch for each of two partitions");
    go.send(()).expect("the submission waits");
    let outcomes = lane.answered().await;
    let records = testing::records(&local, "alerts").await;
    let route = ingest.route("alerts").expect("exists");
    for outcome in outcomes {
        let placed = outcome.result.expect("appended");
        let log = route.logs[placed.partition as usize];
        let offset = placed.offset.expect("known").0;
        let (_, record) =
            records.iter().find(|(l, r)| *l == log && r.offset == offset).expect("where it was said to be");
        assert_eq!(record.value.as_deref(), Some(outcome.tag.to_string().as_bytes()));
    }
}

#[tokio::test]
async fn an_entry_is_never_larger_than_allowed() {
    let options = Options { entry_bytes_max: RECORD_BATCH_BYTES_MAX + 64 * 1024, ..immediate() };
    let (local, gate, ingest) = gated(options);
    let lane = lane();
    let route = ingest.route("alerts").expect("exists");
    let mut items: Vec<Item> = (0..8)
        .map(|tag| {
            let value = Some(Bytes::from(vec![b'x'; 400 * 1024]));
            let incoming = Incoming { partition: Some(0), value, timestamp_ms: 1, ..Incoming::default() };
            ingest.prepare(&route, incoming, tag).expect("fits")
        })
        .collect();
    ingest.enqueue(&lane, &mut items);
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let (entry, go) = gate.next().await;
        sizes.push(entry.encode().len());
        go.send(()).expect("the submission waits");
    }
    assert!(sizes.iter().all(|size| *size <= RECORD_BATCH_BYTES_MAX + 64 * 1024), "{sizes:?}");
    assert_eq!(lane.answered().await.len(), 8);
    assert_eq!(testing::records(&local, "alerts").await.len(), 8);

    let too_large = Incoming { value: Some(vec![0; RECORD_BATCH_BYTES_MAX].into()), ..Incoming::default() };
    assert_eq!(ingest.prepare(&route, too_large, 0).expect_err("too large").code, Code::TOO_LARGE);
}

#[tokio::test]
async fn duplicates_gaps_and_epochs_are_told_apart() {
    let (local, ingest) = testing::start();
    let lane = lane();
    let mut items: Vec<Item> = [1, 2, 2, 1, 5].into_iter().map(|seq| reading(&ingest, "m1", seq)).collect();
    let route = ingest.route("telemetry").expect("exists");
    for body in [r#"{"machine":"m1","seq":0,"epoch":1}"#, r#"{"machine":"m1","seq":3}"#] {
        let incoming = Incoming { value: Some(Bytes::from_static(body.as_bytes())), ..Incoming::default() };
        items.push(ingest.prepare(&route, incoming, 100).expect("valid"));
    }
    ingest.enqueue(&lane, &mut items);
    expect_test::expect![[r#"
        [
            "1 at 0",
            "2 at 1",
            "2 duplicate of Some(1)",
            "1 duplicate of Some(0)",
            "5 BT0306 sequence number 5 of \"m1\" skips ahead, expected 3",
            "100 at 2",
            "100 BT0307 epoch 0 of \"m1\" is over, the current one is 1",
        ]
    "#]]
    .assert_debug_eq(&summary(&lane.answered().await));
    let records = testing::records(&local, "telemetry").await;
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|(_, r)| r.key.as_deref() == Some(b"m1")), "the device is the key");
}

#[tokio::test]
async fn a_failed_entry_is_told_to_every_item_and_a_resend_is_no_duplicate() {
    let (local, ingest) = testing::start();
    let timeout = Error::new(Code::TIMEOUT, "the commit did not come in time").retryable();
    local.fail_next(Fault::Unanswered(timeout));
    let first = lane();
    ingest.enqueue(&first, &mut vec![reading(&ingest, "m1", 0), reading(&ingest, "m2", 0)]);
    assert_eq!(
        summary(&first.answered().await),
        ["0 BT0102 the commit did not come in time", "0 BT0102 the commit did not come in time"]
    );
    let second = lane();
    ingest.enqueue(&second, &mut vec![reading(&ingest, "m1", 0), reading(&ingest, "m2", 0)]);
    assert!(second.answered().await.iter().all(|o| o.result.as_ref().is_ok_and(|p| p.duplicate)));
    assert_eq!(testing::records(&local, "telemetry").await.len(), 2);
}

/// Where sequences are held against each other behind the ledger, nothing of a connection gets past what has failed, and the
/// records of different devices share a batch.
#[tokio::test]
async fn behind_a_failure_a_lane_lets_nothing_pass() {
    let (local, gate, ingest) = gated(Options { sequences_behind: true, ..immediate() });
    let first = lane();
    ingest.enqueue(&first, &mut vec![reading(&ingest, "m1", 0)]);
    let (_, go) = gate.next().await;
    ingest.enqueue(&first, &mut vec![reading(&ingest, "m1", 1)]);
    local.fail_next(Fault::Unanswered(Error::new(Code::TIMEOUT, "lost").retryable()));
    go.send(()).expect("the submission waits");
    assert_eq!(summary(&first.answered().await), ["0 BT0102 lost", "1 BT0102 lost"]);
    ingest.enqueue(&first, &mut vec![reading(&ingest, "m1", 2)]);
    assert_eq!(summary(&first.answered().await), ["2 BT0102 lost"]);
    assert_eq!((gate.held(), ingest.queued_bytes.load(Relaxed)), (0, 0));
    assert_eq!(testing::records(&local, "telemetry").await.len(), 1);

    let second = lane();
    ingest.enqueue(&second, &mut vec![reading(&ingest, "m1", 0), reading(&ingest, "m1", 1)]);
    let (entry, go) = gate.next().await;
    assert_eq!(entry.appends.iter().map(|a| (a.records, a.sequence.is_some())).collect::<Vec<_>>(), [(2, false)]);
    go.send(()).expect("the submission waits");
    assert!(second.answered().await.iter().all(|outcome| outcome.result.is_ok()));
}

/// A topic that can be read takes no records before it is a way in: its sequence fields may not be known yet.
#[tokio::test]
async fn a_topic_that_is_no_way_in_takes_no_records() {
    let local = Local::new();
    testing::topics(&local);
    let ways_in = Local::new();
    let options = Options { topic_cache_ms: 0, ..immediate() };
    let ingest = Ingest::with_ways_in(testing::deps(&local), ways_in.clone(), options);
    assert!(local.topic("telemetry").is_some());
    assert_eq!(ingest.route("telemetry").expect_err("no way in").code, Code::TOPIC_UNKNOWN);
    testing::topics(&ways_in);
    assert!(ingest.route("telemetry").expect("a way in").sequence_fields.is_some());
}

#[tokio::test]
async fn a_topic_that_went_is_forgotten() {
    let (local, ingest) = testing::start();
    let item = alert(&ingest, "k", 7);
    let delete = buttress_core::TopicChange::Delete { name: "alerts".into() };
    assert!(local.apply(Entry { topics: vec![delete], ..Entry::default() }).result.is_ok());
    let lane = lane();
    ingest.enqueue(&lane, &mut vec![item]);
    assert_eq!(summary(&lane.answered().await), ["7 BT0301 there is no topic \"alerts\""]);
    assert_eq!(ingest.route("alerts").expect_err("gone").code, Code::TOPIC_UNKNOWN);
    local.create_topic("alerts", 1, TopicSettings::default());
    let lane2 = Lane::new(Arc::new(AtomicWaker::new()));
    ingest.enqueue(&lane2, &mut vec![alert(&ingest, "k", 8)]);
    assert_eq!(summary(&lane2.answered().await), ["8 at 0"]);
}

#[tokio::test]
async fn an_abandoned_lane_appends_no_more() {
    let (local, gate, ingest) = gated(immediate());
    let lane = lane();
    ingest.enqueue(&lane, &mut vec![reading(&ingest, "m1", 0)]);
    let (_, go) = gate.next().await;
    ingest.enqueue(&lane, &mut vec![reading(&ingest, "m1", 1), reading(&ingest, "m1", 2)]);
    ingest.abandon(&lane);
    go.send(()).expect("the submission waits");
    lane.answered().await;
    assert_eq!(ingest.queued_bytes.load(Relaxed), 0);
    assert_eq!(testing::records(&local, "telemetry").await.len(), 1);
    // A ready lane that is abandoned leaves nothing behind either.
    let second = self::lane();
    ingest.enqueue(&second, &mut vec![reading(&ingest, "m2", 0)]);
    ingest.abandon(&second);
    for _ in 0..5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(gate.held(), 0);
    let queue = ingest.queue.lock().expect("unpoisoned");
    assert_eq!((queue.ready.len(), queue.ready_bytes, queue.ready_records), (0, 0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        lane: usize,
        count: usize,
    },
    /// Lets the held entry at this position go.
    Release(usize),
    Abandon(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6usize, 1..8usize).prop_map(|(lane, count)| Step::Send { lane, count }),
        3 => (0..8usize).prop_map(Step::Release),
        1 => (0..6usize).prop_map(Step::Abandon),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the order in which entries are answered: every lane's records are in the log in its order, each
    /// outcome comes once and in order, and the books are even at the end (INGEST-1).
    #[test]
    fn lanes_keep_their_order(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let options = Options { entries_in_flight_max: 4, entry_records_target: 5, ..immediate() };
            let (local, gate, ingest) = gated(options);
            let mut lanes: Vec<Option<Arc<Lane>>> = (0..6).map(|_| Some(lane())).collect();
            let mut sent = [0u64; 6];
            let mut held = Vec::new();
            for step in steps {
                match step {
                    Step::Send { lane, count } => {
                        let Some(to) = &lanes[lane] else { continue };
                        let mut items = Vec::new();
                        for _ in 0..count {
                            // The key spreads one lane over both partitions; the value says lane and number.
                            let route = ingest.route("alerts").expect("exists");
                            let value = Some(Bytes::from(format!("{lane}/{}", sent[lane])));
                            let incoming = Incoming { partition: Some(lane as u32 % 2), value, ..Incoming::default() };
                            items.push(ingest.prepare(&route, incoming, sent[lane]).expect("valid"));
                            sent[lane] += 1;
                        }
                        ingest.enqueue(to, &mut items);
                    }
                    Step::Release(at) => {
                        if at < held.len() {
                            let go: tokio::sync::oneshot::Sender<()> = held.swap_remove(at);
                            go.send(()).expect("the submission waits");
                        }
                    }
                    Step::Abandon(lane) => {
                        if let Some(lane) = lanes[lane].take() {
                            ingest.abandon(&lane);
                        }
                    }
                }
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                while gate.held() > 0 {
                    held.push(gate.next().await.1);
                }
            }
            for go in held {
                let _ = go.send(());
            }
            let opener = tokio::spawn(async move {
                loop {
                    let _ = gate.next().await.1.send(());
                }
            });
            for (at, lane) in lanes.iter().enumerate() {
                if let Some(lane) = lane {
                    let tags: Vec<u64> = lane.answered().await.iter().map(|o| o.tag).collect();
                    assert_eq!(tags, (0..sent[at]).collect::<Vec<_>>());
                }
            }
            // Entries of abandoned lanes may still be under way.
            while ingest.queue.lock().expect("unpoisoned").in_flight > 0 {
                tokio::task::yield_now().await;
            }
            opener.abort();
            let mut seen: BTreeMap<usize, u64> = BTreeMap::new();
            for (_, record) in testing::records(&local, "alerts").await {
                let text = testing::text(record.value.as_ref());
                let (lane, number) = text.split_once('/').expect("as sent");
                let next = seen.entry(lane.parse().expect("a lane")).or_default();
                assert_eq!(number.parse::<u64>().expect("a number"), *next, "lane {lane}");
                *next += 1;
            }
            for (at, lane) in lanes.iter().enumerate() {
                if lane.is_some() {
                    assert_eq!(seen.get(&at).copied().unwrap_or(0), sent[at]);
                }
            }
            let queue = ingest.queue.lock().expect("unpoisoned");
            assert_eq!((queue.ready.len(), queue.ready_bytes, queue.ready_records), (0, 0, 0));
            assert_eq!(ingest.queued_bytes.load(Relaxed), 0);
        });
    }
}
