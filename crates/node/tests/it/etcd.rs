//! What the etcd edge stands on: transactions, ranges in pages, watches with options, leases, compactions.

use buttress_core::{
    Code, Compare, Consistency, DeleteOp, Entry, KeyRange, LeaseChange, LeaseId, Ledger as _, OpResult, Operand, Put,
    PutOp, RangeOp, Relation, Revision, SubmitError, Txn, TxnOp,
    ledger::{KeyWatch, WatchEvent, WatchItem, WatchOptions},
};
use bytes::Bytes;
use futures::future::join_all;

use crate::world::{World, code, get, must, put, quick, until};

fn txn(compares: Vec<Compare>, success: Vec<TxnOp>, failure: Vec<TxnOp>) -> Entry {
    Entry { txn: Some(Txn { compares, success, failure }), ..Entry::default() }
}

fn version(key: &str, operand: i64) -> Compare {
    let range = KeyRange::key(key.to_owned());
    Compare { range, relation: Relation::Equal, operand: Operand::Version(operand) }
}

fn put_op(key: &str, value: &str) -> TxnOp {
    TxnOp::Put(PutOp { key: key.to_owned().into(), value: value.to_owned().into(), prev_kv: true, ..PutOp::default() })
}

fn range_op(key: &str) -> TxnOp {
    TxnOp::Range(RangeOp::new(KeyRange::key(key.to_owned())))
}

#[tokio::test]
async fn of_many_transactions_at_once_one_creates_the_key_and_the_others_see_it() {
    let world = World::started(3, quick()).await;
    world.leader().await;
    let answers = join_all((0..12u64).map(|round| {
        let node = world.node(1 + round % 3);
        async move {
            let create = txn(vec![version("k", 0)], vec![put_op("k", &round.to_string())], vec![range_op("k")]);
            must(&node, create).await
        }
    }))
    .await;
    let winners: Vec<_> = answers.iter().filter(|receipt| receipt.txn.as_ref().unwrap().succeeded).collect();
    assert_eq!(winners.len(), 1);
    let created = get(&world.node(1), "k").await.unwrap();
    for receipt in answers.iter().filter(|receipt| !receipt.txn.as_ref().unwrap().succeeded) {
        let [OpResult::Range(found)] = &receipt.txn.as_ref().unwrap().results[..] else { panic!("{receipt:?}") };
        assert_eq!((found.count, found.kvs[0].value.as_ref()), (1, created.as_bytes()));
        assert_eq!(receipt.revision, winners[0].revision, "who changes nothing makes no revision");
    }
    world.agree().await;
}

#[tokio::test]
async fn what_cannot_be_done_refuses_all_of_it_with_its_code() {
    let world = World::started(1, quick()).await;
    let node = world.node(world.leader().await);
    must(&node, put("k", "v")).await;
    let with = |op: TxnOp| node.submit(txn(vec![], vec![put_op("lost", "1"), op], vec![]));
    let leased = PutOp { key: "l".into(), lease: Some(LeaseId(9)), ..PutOp::default() };
    assert_eq!(code(with(TxnOp::Put(leased)).await), Code::LEASE_UNKNOWN);
    let kept = PutOp { key: "nothing".into(), ignore_value: true, ..PutOp::default() };
    assert_eq!(code(with(TxnOp::Put(kept)).await), Code::KEY_UNKNOWN);
    let at = |revision: u64| RangeOp { revision: Some(Revision(revision)), ..RangeOp::new(KeyRange::key("k")) };
    assert_eq!(code(with(TxnOp::Range(at(99))).await), Code::REVISION_FUTURE);
    assert_eq!(code(with(put_op("lost", "2")).await), Code::BAD_REQUEST);
    must(&node, put("k", "w")).await;
    node.compact(Revision(3), true).await.unwrap();
    assert_eq!(code(with(TxnOp::Range(at(2))).await), Code::COMPACTED);
    assert_eq!(get(&node, "lost").await, None);
    // A transaction that only looks needs no log, on any node.
    let looks = Txn { success: vec![TxnOp::Range(at(3))], ..Txn::default() };
    let (revision, result) = node.read_txn(looks, Consistency::Linearizable).await.unwrap();
    let [OpResult::Range(found)] = &result.results[..] else { panic!("{result:?}") };
    assert_eq!((revision, found.kvs[0].value.as_ref()), (Revision(3), &b"w"[..]));
    let changes = Txn { success: vec![put_op("k", "x")], ..Txn::default() };
    assert_eq!(node.read_txn(changes, Consistency::Linearizable).await.unwrap_err().code, Code::BAD_REQUEST);
}

#[tokio::test]
async fn a_large_range_is_read_in_pages_at_one_revision() {
    const KEYS: u64 = 5000;
    let world = World::started(3, quick()).await;
    let leader = world.node(world.leader().await);
    let key = |number: u64| Bytes::from(format!("k/{number:05}"));
    let puts = (0..KEYS).map(|number| Put { key: key(number), value: Some("v".into()), lease: None });
    let filled = must(&leader, Entry { puts: puts.collect(), ..Entry::default() }).await;
    let follower = world.node(world.follower().await);
    let all = RangeOp::new(KeyRange::prefix("k/"));
    let (found, _) = futures::join!(follower.read_with(all.clone(), Consistency::Linearizable), async {
        for number in 0..20 {
            must(&leader, txn(vec![], vec![put_op(&format!("k/new{number}"), "v")], vec![])).await;
        }
    });
    let found = found.unwrap();
    assert_eq!(found.count - KEYS, found.revision.0 - filled.revision.0, "as many as there were at its revision");
    assert_eq!(found.kvs.len() as u64, found.count);
    assert!(!found.more && found.kvs.is_sorted_by(|a, b| a.key < b.key));
    let some = RangeOp { limit: 3000, revision: Some(filled.revision), ..all.clone() };
    let found = follower.read_with(some, Consistency::Linearizable).await.unwrap();
    assert_eq!((found.kvs.len(), found.more, found.count), (3000, true, KEYS));
    let count = RangeOp { count_only: true, ..all.clone() };
    let found = follower.read_with(count, Consistency::Linearizable).await.unwrap();
    assert_eq!((found.kvs.len(), found.more, found.count), (0, false, KEYS + 20));
    let late = RangeOp { revision: Some(Revision(9999)), ..all };
    assert_eq!(follower.read_with(late, Consistency::Linearizable).await.unwrap_err().code, Code::REVISION_FUTURE);
}

/// Takes what a watch gives until it has given everything up to a revision.
async fn upto(watch: &mut dyn KeyWatch, revision: Revision) -> Vec<WatchEvent> {
    let mut all = Vec::new();
    while watch.position() <= revision {
        match watch.next().await.unwrap().unwrap() {
            WatchItem::Events { events, revision } => {
                assert_eq!(watch.position(), Revision(revision.0 + 1));
                all.extend(events);
            }
            WatchItem::Compacted { compacted } => panic!("compacted to {compacted}"),
        }
    }
    all
}

#[tokio::test]
async fn a_watch_out_of_memory_and_one_out_of_history_see_the_same() {
    let world = World::started(3, quick()).await;
    world.leader().await;
    let node = world.node(world.follower().await);
    must(&node, put("w/a", "0")).await;
    let start = Revision(2);
    let options = WatchOptions { from: Some(start), prev_kv: true, ..WatchOptions::new(KeyRange::prefix("w/")) };
    let mut early = node.watch_with(options.clone()).await.unwrap();
    let mut last = Revision(0);
    for round in 0..40u64 {
        let delete = TxnOp::Delete(DeleteOp { range: KeyRange::key("w/b"), prev_kv: false });
        let ops = match round % 3 {
            0 => vec![put_op("w/a", &round.to_string()), put_op("w/b", "there")],
            1 => vec![delete, put_op("elsewhere", "x")],
            _ => vec![put_op("elsewhere", "y")],
        };
        last = must(&world.node(1 + round % 3), txn(vec![], ops, vec![])).await.revision;
    }
    let mut late = node.watch_with(options.clone()).await.unwrap();
    let (early, late) = (upto(&mut *early, last).await, upto(&mut *late, last).await);
    assert_eq!(early, late);
    assert_eq!(early.len(), 1 + 14 * 2 + 13);
    for event in &early {
        let first = event.kv.mod_revision == event.kv.create_revision;
        assert_eq!(event.prev.is_none(), first && !event.deleted, "{event:?}");
        if let Some(prev) = &event.prev {
            assert!(prev.mod_revision < event.kv.mod_revision && prev.key == event.kv.key);
        }
    }
    // Only what was asked for.
    let puts = WatchOptions { no_delete: true, prev_kv: false, ..options.clone() };
    let puts = upto(&mut *node.watch_with(puts).await.unwrap(), last).await;
    assert!(puts.len() == 29 && puts.iter().all(|event| !event.deleted && event.prev.is_none()));
    let deletes = WatchOptions { no_put: true, ..options };
    let deletes = upto(&mut *node.watch_with(deletes).await.unwrap(), last).await;
    assert!(deletes.len() == 13 && deletes.iter().all(|event| event.deleted && event.prev.is_some()));
}

#[tokio::test]
async fn a_watch_of_what_is_compacted_is_told_so_and_one_from_there_on_is_not() {
    let world = World::started(1, quick()).await;
    let node = world.node(world.leader().await);
    for value in 0..20 {
        must(&node, put("k", &value.to_string())).await;
    }
    must(&node, txn(vec![], vec![TxnOp::Delete(DeleteOp { range: KeyRange::key("k"), prev_kv: false })], vec![])).await;
    let at = node.keys(Consistency::Linearizable).await.unwrap().revision;
    must(&node, put("other", "1")).await;
    node.compact(at, true).await.unwrap();
    let view = node.keys(Consistency::Linearizable).await.unwrap();
    assert_eq!((view.compacted, view.keys, view.unswept), (at, 1, false));
    let from = |from: Revision| WatchOptions { from: Some(from), ..WatchOptions::new(KeyRange::prefix("")) };
    let mut before = node.watch_with(from(Revision(at.0 - 1))).await.unwrap();
    assert_eq!(before.next().await.unwrap(), Some(WatchItem::Compacted { compacted: at }));
    assert_eq!(before.next().await.unwrap(), None);
    let seen = upto(&mut *node.watch_with(from(at)).await.unwrap(), view.revision).await;
    assert_eq!(seen.iter().map(|event| event.deleted).collect::<Vec<_>>(), [true, false]);
    let again = node.compact(at, false).await.unwrap_err();
    assert!(matches!(again, SubmitError::Refused(_)) && again.code() == Code::COMPACTED);
    let future = node.compact(Revision(999), false).await.unwrap_err();
    assert_eq!(future.code(), Code::REVISION_FUTURE);
}

#[tokio::test]
async fn what_a_compaction_left_is_removed_though_nobody_writes() {
    let world = World::started(3, quick()).await;
    let leader = world.node(world.leader().await);
    let puts: Vec<Put> = (0..5_000)
        .map(|number| Put { key: format!("k{number}").into(), value: Some("v".into()), lease: None })
        .collect();
    must(&leader, Entry { puts: puts.clone(), ..Entry::default() }).await;
    let last = must(&leader, Entry { puts, ..Entry::default() }).await.revision;
    leader.compact(last, false).await.unwrap();
    for id in world.ids() {
        let node = world.node(id);
        until("all is removed", async || {
            let keys = node.keys(Consistency::Serializable).await.unwrap();
            (keys.compacted == last && !keys.unswept).then_some(())
        })
        .await;
    }
    let hashes = join_all(world.ids().into_iter().map(|id| {
        let node = world.node(id);
        async move { node.hash_keys(Some(last)).await.unwrap() }
    }))
    .await;
    assert!(hashes.windows(2).all(|pair| (pair[0].hash, pair[0].at) == (pair[1].hash, pair[1].at)), "{hashes:?}");
}

#[tokio::test]
async fn leases_are_listed_shown_with_their_keys_and_keep_their_time_over_a_change_of_leader() {
    let world = World::started(3, quick()).await;
    let node = world.node(world.leader().await);
    let (lease, ttl_ms) = (LeaseId(7), 60_000);
    let granted = must(&node, Entry { leases: vec![LeaseChange::Grant { lease, ttl_ms }], ..Entry::default() }).await;
    assert_eq!(granted.lease_ttls_ms, [ttl_ms]);
    let leased = |key: &'static str| TxnOp::Put(PutOp { key: key.into(), lease: Some(lease), ..PutOp::default() });
    must(&node, txn(vec![], vec![leased("l/b"), leased("l/a")], vec![])).await;
    node.hand_over().await;
    let other = world.node(world.leader().await);
    assert_eq!(other.leases(Consistency::Linearizable).await.unwrap(), [lease]);
    let view = other.lease(lease, true, Consistency::Linearizable).await.unwrap().unwrap();
    assert_eq!((view.ttl_ms, &view.keys[..]), (ttl_ms, &[Bytes::from("l/a"), Bytes::from("l/b")][..]));
    assert!(view.remaining_ms < ttl_ms, "the new leader did not begin anew");
    assert_eq!(other.lease(LeaseId(8), true, Consistency::Linearizable).await.unwrap(), None);
    let kept = must(&other, Entry { leases: vec![LeaseChange::KeepAlive { lease }], ..Entry::default() }).await;
    assert_eq!(kept.lease_ttls_ms, [ttl_ms]);
    let ended = must(&other, Entry { leases: vec![LeaseChange::Revoke { lease }], ..Entry::default() }).await;
    assert_eq!(ended.lease_ttls_ms, [0]);
    assert_eq!(get(&other, "l/a").await, None);
    assert_eq!(other.leases(Consistency::Linearizable).await.unwrap(), []);
    world.agree().await;
}
