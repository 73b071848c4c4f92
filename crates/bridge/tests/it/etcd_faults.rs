//! The ledger on a real etcd when it is hurt: a majority that is killed, a node under a watch, history that goes meanwhile.

use std::{sync::Arc, time::Duration};

use buttress_bridge::{
    etcd::{EtcdLedger, Options},
    hold::Hold,
};
use buttress_core::{
    Code, Consistency, Entry, KeyRange, Ledger, Put, Revision, ledger::WatchItem, ledger::WatchOptions,
};

use crate::{originals::Etcd, proxy::Pipe};

fn put(key: &str, value: u64) -> Entry {
    let value = Some(value.to_string().into());
    Entry { puts: vec![Put { key: key.to_owned().into(), value, lease: None }], ..Entry::default() }
}

/// Nothing that was not carried out is acknowledged, everybody hears within their deadline, and it goes on by itself.
#[tokio::test]
async fn an_etcd_without_its_majority_is_told_and_goes_on_when_it_is_back() {
    let Some(mut etcd) = Etcd::start("an etcd without its majority", 3, Vec::new()) else { return };
    let options = Options { deadline: Duration::from_secs(60), ..Options::new(etcd.endpoints()) };
    let patient = Arc::new(EtcdLedger::connect(options).await.expect("the etcd comes up"));
    let options = Options { deadline: Duration::from_secs(4), ..Options::new(etcd.endpoints()) };
    let ledger = EtcdLedger::connect(options).await.expect("the etcd is reached");
    let mut hold = Hold::take(patient.clone(), "hold".into(), "me", Duration::from_secs(5)).await.expect("a free key");
    for n in 1..=10 {
        ledger.submit(put("k", n)).await.expect("a majority is there");
    }
    etcd.kill_node(0);
    etcd.kill_node(2);

    let mut unknown = 0u64;
    for n in 11..=13 {
        let error = ledger.submit(put("k", n)).await.expect_err("nobody can carry it out").into_error();
        match error.code {
            Code::TIMEOUT => unknown += 1,
            // Where nobody could be asked, nothing has happened.
            Code::UNREACHABLE => {}
            other => panic!("an unclear answer {other}: {error}"),
        }
        assert!(error.hint.is_some(), "{error}");
    }
    let read = ledger.read(KeyRange::key("k"), 1, Consistency::Linearizable).await.expect_err("nobody can say");
    assert_eq!(read.code, Code::UNREACHABLE, "{read}");
    let stale = ledger.read(KeyRange::key("k"), 1, Consistency::Serializable).await.expect("what a node has, it says");
    assert_eq!(&stale.kvs[0].value[..], b"10");
    // Who holds something counts itself out when it cannot renew.
    hold.lost().await;

    let waiting = patient.clone();
    let waiting = tokio::spawn(async move { waiting.submit(put("waits", 1)).await });
    etcd.start_node(0);
    etcd.start_node(2);
    waiting.await.unwrap().expect("who waits long enough is carried out");
    ledger.submit(put("k", 14)).await.expect("it goes on");
    let found = ledger.read(KeyRange::key("k"), 1, Consistency::Linearizable).await.expect("it can be read");
    assert_eq!(&found.kvs[0].value[..], b"14");
    assert!((11..=11 + unknown).contains(&found.kvs[0].version), "{} and {unknown} unknown", found.kvs[0].version);
}

/// The node that a watch hangs on is killed: it goes on at another, without a gap and without anything twice.
#[tokio::test]
async fn a_watch_goes_on_when_its_node_is_killed() {
    let Some(mut etcd) = Etcd::start("a node under a watch", 3, Vec::new()) else { return };
    let ledger = EtcdLedger::connect(Options::new(etcd.endpoints())).await.expect("the etcd comes up");
    let mut watch = ledger.watch(KeyRange::prefix("w/"), None).await.expect("a range is watched");
    let mut wanted = Vec::new();
    for n in 0..30u64 {
        if n == 10 || n == 20 {
            // Both ledger and watch are on the same endpoint: the first that answers.
            etcd.kill_node(if n == 10 { 0 } else { 1 });
            etcd.start_node(if n == 10 { 0 } else { 1 });
        }
        wanted.push(ledger.submit(put(&format!("w/{n}"), n)).await.expect("a majority is there").revision);
    }
    let mut seen: Vec<Revision> = Vec::new();
    while seen.len() < wanted.len() {
        let events = watch.next().await.expect("the watch goes on").expect("it does");
        seen.extend(events.iter().map(|event| event.revision));
    }
    assert_eq!(seen, wanted);
}

/// History goes while a watch is cut off: it says so, and does not leave anything out in silence.
#[tokio::test]
async fn a_watch_whose_history_was_compacted_meanwhile_says_so() {
    let Some(etcd) = Etcd::start("a compaction under a watch", 1, Vec::new()) else { return };
    let direct = EtcdLedger::connect(Options::new(etcd.endpoints())).await.expect("the etcd comes up");
    let pipe = Pipe::start(etcd.endpoint(0)).await;
    let ledger = EtcdLedger::connect(Options::new([pipe.address.clone()])).await.expect("the etcd is reached");
    let mut plain = ledger.watch(KeyRange::prefix("c/"), None).await.expect("a range is watched");
    let options = WatchOptions::new(KeyRange::prefix("c/"));
    let mut with = ledger.watch_with(options).await.expect("a range is watched");
    let first = direct.submit(put("c/a", 1)).await.expect("a key is put").revision;
    assert_eq!(plain.next().await.unwrap().unwrap()[0].revision, first);
    while with.position() <= first {
        with.next().await.expect("the watch goes on");
    }
    pipe.shut();
    let mut last = first;
    for n in 2..=5 {
        last = direct.submit(put("c/a", n)).await.expect("a key is put").revision;
    }
    direct.compact(last, true).await.expect("history is compacted");
    pipe.pass();
    let error = plain.next().await.expect_err("what was missed cannot be told");
    assert!(error.code == Code::COMPACTED && error.hint.is_some(), "{error}");
    assert_eq!(with.next().await.expect("it says so"), Some(WatchItem::Compacted { compacted: last }));
}
