//! The plane against an in-memory ledger: what an independent reader of the topics finds, whatever goes wrong.

mod support;

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

use buttress_core::{Entry, LogId, NodeId, Offset, Stream as _, TopicChange};
use buttress_state::local::{Fault, Local};
use buttress_wire::records::Builder;
use bytes::Bytes;
use expect_test::{Expect, expect};
use serde_json::json;
use support::{
    Flaky, Rng, World, append, assert_no_stale_verdict, assert_tiled, audit, audit_text, caught_up, component, create,
    produce, read_topic, until,
};

fn counting() -> serde_json::Value {
    json!({"trigger": {"topic": "in", "max_wait_ms": 0}, "grants": {"topics": ["out"], "state": true}})
}

fn judging() -> serde_json::Value {
    json!({
        "trigger": {"topic": "in", "max_wait_ms": 0},
        "grants": {"topics": ["out"], "state": true, "models": ["wear"]},
    })
}

async fn values(local: &Local, topic: &str) -> Vec<String> {
    read_topic(local, topic).await.into_iter().map(|r| r.value).collect()
}

/// Two planes that both believe to lead, on a ledger that loses, delays and repeats: everything is still judged once,
/// in order, with the state that the records before left.
#[tokio::test(start_paused = true)]
async fn every_record_is_judged_once_under_faults() {
    let mut told: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut resyncs = 0;
    for seed in 0..12 {
        let local = support_local();
        let logs = create(&local, "in", 3);
        let calm = World::on(local.clone(), local.clone());
        calm.plane.deployer().model("wear", "2".into()).await.unwrap();
        calm.deploy("count", judging(), component(json!({}))).await;
        calm.stop().await;

        let flaky = Flaky::new(local.clone(), seed, 30);
        let one = World::on(local.clone(), flaky.clone());
        let two = World::on(local.clone(), flaky.clone());
        let mut rng = Rng::new(seed + 1_000);
        let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for round in 0..25 {
            let key = format!("m{}", rng.below(9));
            // A key stays in its partition, as producers have it.
            let log = logs[key.len().wrapping_add(key.as_bytes()[1] as usize) % 3];
            let values: Vec<String> = (0..=rng.below(6)).map(|_| rng.below(6).to_string()).collect();
            let records: Vec<(&str, &str)> = values.iter().map(|v| (key.as_str(), v.as_str())).collect();
            produce(&local, log, &records);
            for value in &values {
                let count = counts.entry(key.clone()).or_default();
                *count += 1;
                if value.parse::<f32>().unwrap() > 2.0 {
                    expected.entry(key.clone()).or_default().push(format!("{key}={count}"));
                }
            }
            if round % 7 == 3 {
                // The same threshold in other bytes: another generation with the same verdicts.
                let bytes = Bytes::from(format!("2.{}", "0".repeat(round)));
                // A lost answer is a failure to the pusher; trying again is harmless.
                while one.plane.deployer().model("wear", bytes.clone()).await.is_err() {}
            }
            for _ in 0..rng.below(20) {
                tokio::task::yield_now().await;
            }
        }
        *flaky.percent.lock().unwrap() = 5;
        until(&mut || caught_up(&local, "count", "in")).await;
        resyncs += one.counter("count", |s| s.resyncs.load(Relaxed));
        one.stop().await;
        two.stop().await;

        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for record in read_topic(&local, "out").await {
            found.entry(record.key).or_default().push(record.value);
        }
        assert_eq!(found, expected, "seed {seed}");
        assert_tiled(&local, "count", "in").await;
        assert_no_stale_verdict(&local).await;
        let records: u64 = audit(&local).await.iter().filter_map(|e| e["records"].as_u64()).sum();
        assert_eq!(records, counts.values().sum::<u64>(), "seed {seed}: every record is in one audit record");
        let outputs: u64 = audit(&local).await.iter().filter_map(|e| e["outputs"].as_u64()).sum();
        assert_eq!(outputs as usize, expected.values().map(Vec::len).sum::<usize>(), "seed {seed}");
        assert!(read_topic(&local, "count-dead-letter").await.is_empty(), "seed {seed}: faults are nobody's poison");
        for (what, n) in flaky.told.lock().unwrap().iter() {
            *told.entry(what).or_default() += n;
        }
    }
    for what in ["applied", "refused", "lost", "answer lost", "late and applied", "late and refused", "no leader"] {
        assert!(told.get(what).is_some_and(|n| *n > 0), "the seeds do not cover '{what}': {told:?}");
    }
    assert!(resyncs > 0, "positions were read again");
}

fn support_local() -> std::sync::Arc<Local> {
    Local::new()
}

/// A batch in the middle of its call when the model changes is judged again, and the topic proves it.
#[tokio::test(start_paused = true)]
async fn a_batch_of_the_old_model_is_scored_again() {
    let world = World::new();
    let logs = create(&world.local, "in", 1);
    let first = world.plane.deployer().model("wear", "5".into()).await.unwrap();
    assert_eq!((first.generation, first.audit_offset), (1, Some(0)));
    world.deploy("judge", judging(), component(json!({}))).await;
    produce(&world.local, logs[0], &[("m1", "6"), ("m2", "3")]);
    world.caught_up("judge", "in").await;

    world.engine.gate.close();
    produce(&world.local, logs[0], &[("m1", "6"), ("m2", "3")]);
    world.held().await;
    let second = world.plane.deployer().model("wear", "2".into()).await.unwrap();
    assert_eq!(second.generation, 2);
    world.engine.gate.open();
    world.caught_up("judge", "in").await;

    expect![[r#"
        model "wear" generation 1
        batch "judge" v1 p0 [0,2) records 2 outputs 1 model "wear"@1
        model "wear" generation 2
        batch "judge" v1 p0 [2,4) records 2 outputs 2 model "wear"@2
    "#]]
    .assert_eq(&audit_text(&world.local).await);
    expect![[r#"
        p0 0..2 wear@1
        p0 2..4 wear@1
        p0 2..4 wear@2"#]]
    .assert_eq(&world.engine.calls.lock().unwrap().join("\n"));
    assert_eq!(values(&world.local, "out").await, ["m1=1", "m1=2", "m2=2"]);
    assert_eq!(world.counter("judge", |s| s.rescored.load(Relaxed)), 1);
    let again = world.plane.deployer().model("wear", "2".into()).await.unwrap();
    assert!(
        again.unchanged && again.generation == 2 && again.revision == second.revision,
        "a repeated push is no push"
    );
    assert_no_stale_verdict(&world.local).await;
    assert_tiled(&world.local, "judge", "in").await;
    world.stop().await;
}

/// A new version takes over in the middle of the stream.
#[tokio::test(start_paused = true)]
async fn a_new_version_takes_over_between_two_records() {
    let world = World::new();
    let logs = create(&world.local, "in", 1);
    world.deploy("count", counting(), component(json!({"tag": "one:"}))).await;
    produce(&world.local, logs[0], &[("m1", "")]);
    world.caught_up("count", "in").await;
    world.engine.gate.close();
    produce(&world.local, logs[0], &[("m1", "")]);
    world.held().await;
    let second = world.deploy("count", counting(), component(json!({"tag": "two:"}))).await;
    assert_eq!(second.version, 2);
    world.engine.gate.open();
    world.caught_up("count", "in").await;
    assert_eq!(values(&world.local, "out").await, ["one:m1=1", "two:m1=2"]);
    assert!(world.deploy("count", counting(), component(json!({"tag": "two:"}))).await.unchanged);
    expect![[r#"
        batch "count" v1 p0 [0,1) records 1 outputs 1 model null@null
        batch "count" v2 p0 [1,2) records 1 outputs 1 model null@null
    "#]]
    .assert_eq(&audit_text(&world.local).await);

    // Removing and deploying it again goes on where it stopped.
    world.plane.deployer().remove_function("count").await.unwrap();
    world.until(|| world.plane.catalogue().borrow().functions.is_empty()).await;
    produce(&world.local, logs[0], &[("m1", "")]);
    let third = world.deploy("count", counting(), component(json!({"tag": "three:"}))).await;
    assert_eq!(third.version, 1, "versions count from the function's creation");
    world.caught_up("count", "in").await;
    assert_eq!(values(&world.local, "out").await, ["one:m1=1", "two:m1=2", "three:m1=3"]);
    world.stop().await;
}

/// Bad records go to the dead-letter topic, unchanged and with their reason; the others, and other functions, go on.
#[tokio::test(start_paused = true)]
async fn poison_is_set_aside_alone() {
    let world = World::new();
    let logs = create(&world.local, "in", 2);
    create(&world.local, "elsewhere", 1);
    world.deploy("count", counting(), component(json!({}))).await;
    let healthy = json!({"trigger": {"topic": "other"}, "grants": {"topics": ["out"]}});
    let other = create(&world.local, "other", 1);
    world.deploy("healthy", healthy, component(json!({"tag": "healthy:"}))).await;
    let records: Vec<(&str, &str)> = vec![
        ("a", ""),
        ("b", "boom"),
        ("c", ""),
        ("d", ""),
        ("e", "slow"),
        ("f", "stray"),
        ("g", ""),
        ("h", "panic"),
        ("i", ""),
    ];
    produce(&world.local, logs[0], &records);
    produce(&world.local, logs[1], &[("z", "")]);
    produce(&world.local, other[0], &[("o", "")]);
    world.caught_up("count", "in").await;
    world.caught_up("healthy", "other").await;
    let mut out = values(&world.local, "out").await;
    out.sort();
    assert_eq!(out, ["a=1", "c=1", "d=1", "g=1", "healthy:o", "i=1", "z=1"]);
    let mut text = String::new();
    for record in read_topic(&world.local, "count-dead-letter").await {
        text += &format!("{} = {}\n", record.key, record.value);
        for (key, value) in record.headers.iter().filter(|(k, _)| k.contains("error") || k.ends_with("offset")) {
            text += &format!("    {key}: {value}\n");
        }
    }
    expect![[r#"
        b = boom
            buttress.error.code: BT0405
            buttress.error.message: wasm trap: unreachable executed
            buttress.offset: 1
        e = slow
            buttress.error.code: BT0406
            buttress.error.message: the call ran longer than 1000 ms
            buttress.offset: 4
        f = stray
            buttress.error.code: BT0403
            buttress.error.message: the function produced to topic 'elsewhere', which is not granted
            buttress.offset: 5
        h = panic
            buttress.error.code: BT0405
            buttress.error.message: the engine panicked: the engine has a bug
            buttress.offset: 7
    "#]]
    .assert_eq(&text);
    assert_tiled(&world.local, "count", "in").await;
    let status = world.plane.stats().function("count").partitions();
    assert_eq!((status[&0].dead_letters, status[&0].attempts), (4, 0));
    assert_eq!(status[&1].dead_letters, 0);
    assert_eq!(world.counter("healthy", |s| s.errors.load(Relaxed)), 0);
    world.stop().await;
}

/// What the node cannot do for the moment is nobody's poison.
#[tokio::test(start_paused = true)]
async fn trouble_of_the_node_is_waited_out() {
    let world = World::new();
    let logs = create(&world.local, "in", 1);
    world.deploy("count", counting(), component(json!({}))).await;
    *world.engine.broken_instances.lock().unwrap() = 7;
    let error = || buttress_core::Error::new(buttress_core::Code::TIMEOUT, "no answer");
    produce(&world.local, logs[0], &[("a", ""), ("a", "")]);
    world.until(|| *world.engine.broken_instances.lock().unwrap() == 0).await;
    world.local.fail_next(Fault::Lost(error()));
    world.local.fail_next(Fault::Unanswered(error()));
    produce(&world.local, logs[0], &[("a", "")]);
    world.caught_up("count", "in").await;
    produce(&world.local, logs[0], &[("a", "")]);
    world.caught_up("count", "in").await;
    assert_eq!(values(&world.local, "out").await, ["a=1", "a=2", "a=3", "a=4"]);
    assert!(values(&world.local, "count-dead-letter").await.is_empty());
    assert_tiled(&world.local, "count", "in").await;
    world.stop().await;
}

/// What retention takes before it was judged leaves a gap record; what cannot be read leaves a dead letter.
#[tokio::test(start_paused = true)]
async fn loss_is_never_silent() {
    let world = World::new();
    let logs = create(&world.local, "in", 1);
    world.deploy("count", counting(), component(json!({}))).await;
    produce(&world.local, logs[0], &[("a", "")]);
    world.caught_up("count", "in").await;
    world.local.elect(Some(NodeId(9)));
    world
        .until(|| {
            world.plane.stats().function("count").partitions()[&0].state
                == buttress_functions::stats::RunnerState::Stopped
        })
        .await;
    for _ in 0..4 {
        produce(&world.local, logs[0], &[("a", ""), ("a", "")]);
    }
    let trim = TopicChange::Trim { log: logs[0], before: Offset(5) };
    world.local.apply(Entry { topics: vec![trim], ..Entry::default() }).result.unwrap();
    let start = world.local.topic("in").unwrap().partitions[0].start;
    assert!(start.0 > 1, "retention took something: the log begins at {start}");
    assert!(!caught_up(&world.local, "count", "in"), "nobody runs without leading");
    append_unreadable(&world.local, logs[0], 3);
    produce(&world.local, logs[0], &[("a", "")]);
    world.local.elect(Some(NodeId(1)));
    world.caught_up("count", "in").await;
    expect![[r#"
        batch "count" v1 p0 [0,1) records 1 outputs 1 model null@null
        gap "count" v1 p0 [1,5) records null outputs null model null@null
        batch "count" v1 p0 [5,9) records 4 outputs 4 model null@null
        dead-letter "count" v1 p0 [9,12) records null outputs null model null@null error BT0304
        batch "count" v1 p0 [12,13) records 1 outputs 1 model null@null
    "#]]
    .assert_eq(&audit_text(&world.local).await);
    assert_tiled(&world.local, "count", "in").await;
    assert_eq!(world.counter("count", |s| s.gaps.load(Relaxed)), 1);
    let letters = read_topic(&world.local, "count-dead-letter").await;
    assert!(letters[0].headers.contains(&("buttress.value".into(), "record-batch".into())), "the batch as it was");
    world.stop().await;
}

/// A batch that says it is compressed with zstd and holds something else.
fn append_unreadable(local: &Local, log: LogId, records: u32) {
    let mut builder = Builder::new();
    for _ in 0..records {
        builder.push(0, None, Some(b"x"), &[]);
    }
    let mut batch = builder.build().unwrap().to_vec();
    batch[22] = 4;
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    append(local, log, records, batch.into());
}

/// State that was not loaded in advance is read from the middle of a call.
#[tokio::test(start_paused = true)]
async fn a_guest_reads_rows_that_its_records_do_not_name() {
    let world = World::new();
    let logs = create(&world.local, "in", 1);
    world.deploy("count", counting(), component(json!({}))).await;
    produce(&world.local, logs[0], &[("a", ""), ("a", "")]);
    world.caught_up("count", "in").await;
    // Without its memory, the row of `a` is only in the ledger.
    world.local.elect(None);
    world
        .until(|| {
            world.plane.stats().function("count").partitions()[&0].state
                == buttress_functions::stats::RunnerState::Stopped
        })
        .await;
    world.local.elect(Some(NodeId(1)));
    produce(&world.local, logs[0], &[("b", "peek:a"), ("b", "peek:nobody")]);
    world.caught_up("count", "in").await;
    let (lines, _) = world.plane.stats().function("count").logs(10);
    let lines: Vec<&str> = lines.iter().map(|l| l.message.as_str()).collect();
    assert_eq!(lines, ["a is 2", "nobody is nothing"]);
    world.stop().await;
}

/// A batch waits for a model that is not there yet, and for one only: nothing is lost or set aside.
#[tokio::test(start_paused = true)]
async fn batches_wait_for_their_model() {
    let world = World::new();
    let logs = create(&world.local, "in", 1);
    let deployed = world.deploy("judge", judging(), component(json!({}))).await;
    check(&deployed.warnings.join("\n"), expect!["model 'wear' does not exist yet: batches wait until it is pushed"]);
    produce(&world.local, logs[0], &[("m1", "6")]);
    world
        .until(|| {
            let partitions = world.plane.stats().function("judge").partitions();
            partitions.get(&0).is_some_and(|p| p.waits_for.is_some())
        })
        .await;
    check(
        world.plane.stats().function("judge").partitions()[&0].waits_for.as_deref().unwrap(),
        expect!["model 'wear' does not exist"],
    );
    world.plane.deployer().model("wear", "5".into()).await.unwrap();
    world.caught_up("judge", "in").await;
    assert_eq!(values(&world.local, "out").await, ["m1=1"]);
    world.stop().await;
}

/// While busy, a runner begins one batch per `max_wait_ms`; after a pause, at once.
#[tokio::test(start_paused = true)]
async fn busy_runners_fill_their_batches() {
    let world = World::new();
    let logs = create(&world.local, "in", 1);
    let mut manifest = counting();
    manifest["trigger"]["max_wait_ms"] = json!(40);
    world.deploy("count", manifest, component(json!({}))).await;
    let begun = tokio::time::Instant::now();
    produce(&world.local, logs[0], &[("a", "")]);
    world.caught_up("count", "in").await;
    assert!(begun.elapsed().as_millis() < 40, "the first record did not wait: {:?}", begun.elapsed());
    for _ in 0..8 {
        produce(&world.local, logs[0], &[("a", "")]);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    world.caught_up("count", "in").await;
    expect![[r#"
        p0 0..1 -
        p0 1..9 -"#]]
    .assert_eq(&world.engine.calls.lock().unwrap().join("\n"));
    world.stop().await;
}

/// A component that one node cannot load is reported, and the others serve; what a crashed upload left is completed.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_loaded_is_reported_alone() {
    let world = World::new();
    let logs = create(&world.local, "in", 1);
    world.deploy("count", counting(), component(json!({}))).await;
    // The stored bytes of the next function are torn.
    let torn = component(json!({"tag": "torn"}));
    let digest = buttress_functions::blob::digest(&torn);
    let put = |key: String, value: Bytes| Entry {
        puts: vec![buttress_core::Put { key: key.into(), value: Some(value), lease: None }],
        ..Entry::default()
    };
    world.local.apply(put(format!("/buttress/blobs/{digest}/00000"), torn.slice(..9)));
    let spec = buttress_functions::resource::Manifest::parse(counting().to_string().as_bytes())
        .unwrap()
        .into_spec("torn", 1, digest, 9, 0);
    world.local.apply(put("/buttress/functions/torn".into(), serde_json::to_vec(&spec).unwrap().into()));
    world.local.apply(put("/buttress/functions/alien".into(), "not json".into()));
    world
        .until(|| world.plane.catalogue().borrow().functions.get("torn").is_some_and(|slot| slot.error.is_some()))
        .await;
    let error = world.plane.catalogue().borrow().functions["torn"].error.clone().unwrap();
    check(
        &error.to_string().replace(&spec.component, "sha256:…"),
        expect![[r#"
        the stored bytes of 'sha256:…' do not have this digest [BT0203]

        hint: upload the file again; an upload that was cut off is completed by it"#]],
    );
    produce(&world.local, logs[0], &[("a", "")]);
    world.caught_up("count", "in").await;
    assert_eq!(values(&world.local, "out").await, ["a=1"]);
    world.stop().await;
}

/// A blob of several chunks comes back whole, is written once, and is never given out damaged.
#[tokio::test(start_paused = true)]
async fn blobs_are_whole_or_refused() {
    use buttress_core::{Consistency, Ledger as _};
    use buttress_functions::blob;
    let local = Local::new();
    let bytes: Bytes = (0..blob::CHUNK_BYTES * 9 + 17).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
    let digest = blob::put(&*local, &bytes).await.unwrap();
    assert_eq!(blob::get(&*local, &digest, Consistency::Linearizable).await.unwrap(), bytes);
    let revision = local.with(|m| m.revision());
    blob::put(&*local, &bytes).await.unwrap();
    assert_eq!(local.with(|m| m.revision()), revision, "nothing was written again");
    let key = Bytes::from(format!("/buttress/blobs/{digest}/00003"));
    let delete = buttress_core::Put { key, value: None, lease: None };
    local.submit(Entry { puts: vec![delete], ..Entry::default() }).await.unwrap();
    let torn = blob::get(&*local, &digest, Consistency::Linearizable).await.unwrap_err();
    assert_eq!(torn.code, buttress_core::Code::CORRUPT);
    blob::put(&*local, &bytes).await.unwrap();
    assert_eq!(blob::get(&*local, &digest, Consistency::Linearizable).await.unwrap(), bytes, "an upload completes it");
    let none = blob::get(&*local, &blob::digest(b"x"), Consistency::Linearizable).await.unwrap_err();
    assert_eq!(none.code, buttress_core::Code::NOT_FOUND);
}

fn check(text: &str, expect: Expect) {
    expect.assert_eq(text);
}
