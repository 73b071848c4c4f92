//! The plane on records whose commits cannot compare keys, as in a Kafka of the user's: keys in one ledger, records in
//! another, claims and fences between them.

mod support;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use buttress_core::{
    BoxFuture, Claimed, Claims, Code, Consistency, Entry, Error, Guard, KeyRange, Ledger, LogId, Receipt, Revision,
    Scope, Seat, Stream, SubmitError,
    ledger::{KeyValues, Watch},
};
use buttress_functions::{
    Deps, FunctionsPlane, Home,
    resource::{Manifest, OWED_PREFIX, TopicSpec, topic_key},
};
use buttress_state::local::Local;
use bytes::Bytes;
use expect_test::expect;
use serde_json::json;
use support::{
    FakeEngine, Rng, World, assert_tiled, audit, audit_text, caught_up, component, create, produce, read_topic, until,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

type Cursor = (String, LogId);

/// What hosts share: records, who has claimed what last, and one seat for each partition.
struct Engine {
    records: Arc<Local>,
    epochs: Mutex<HashMap<Cursor, u64>>,
    seats: Mutex<HashMap<(String, i32), Arc<Semaphore>>>,
    fences: Mutex<usize>,
}

/// The engine as one host sees it: its claims are good until somebody else claims or fences.
struct HostView {
    engine: Arc<Engine>,
    mine: Mutex<HashMap<Cursor, u64>>,
    /// Every change takes this host's seats away.
    kicks: watch::Sender<u32>,
}

impl HostView {
    fn new(engine: &Arc<Engine>) -> Arc<Self> {
        Arc::new(Self { engine: engine.clone(), mine: Mutex::default(), kicks: watch::Sender::new(0) })
    }

    fn bump(&self, cursor: Cursor) -> u64 {
        let mut epochs = self.engine.epochs.lock().unwrap();
        let epoch = epochs.entry(cursor).or_default();
        *epoch += 1;
        *epoch
    }

    fn current(&self, cursor: &Cursor) -> Result<(), Error> {
        let mine = self.mine.lock().unwrap().get(cursor).copied();
        match mine.is_some() && mine == self.engine.epochs.lock().unwrap().get(cursor).copied() {
            true => Ok(()),
            false => Err(Error::new(Code::EPOCH_STALE, "somebody else has claimed it").retryable()),
        }
    }
}

impl Ledger for HostView {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            assert!(entry.puts.is_empty(), "records only: {entry:?}");
            for guard in &entry.guards {
                assert!(matches!(guard, Guard::Cursor { .. }), "no key can be compared: {guard:?}");
            }
            for cursor in &entry.cursors {
                self.current(&(cursor.group.clone(), cursor.log)).map_err(SubmitError::Failed)?;
            }
            // Nothing is waited for between looking and applying.
            self.engine.records.submit(entry).await
        })
    }

    fn read(&self, _: KeyRange, _: usize, _: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        panic!("no keys lie here")
    }

    fn state(&self, _: &str, _: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        panic!("rows are read through the claim")
    }

    fn watch(&self, _: KeyRange, _: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        panic!("no keys lie here")
    }

    fn scope(&self) -> Scope {
        Scope::Records
    }
}

struct Given {
    _permit: OwnedSemaphorePermit,
    kicks: watch::Receiver<u32>,
}

impl Seat for Given {
    fn lost(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if self.kicks.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl Claims for HostView {
    fn engine(&self) -> &'static str {
        "kafka"
    }

    fn check(&self, entry: &Entry) -> Result<(), Error> {
        match entry.timers.is_empty() {
            true => Ok(()),
            false => Err(Error::new(Code::UNSUPPORTED, "no timers")),
        }
    }

    fn follow<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move { Ok(self.engine.records.topic(topic).is_some()) })
    }

    fn seat<'a>(&'a self, group: &'a str, _: &'a str, partition: i32) -> BoxFuture<'a, Result<Box<dyn Seat>, Error>> {
        Box::pin(async move {
            let seat = self
                .engine
                .seats
                .lock()
                .unwrap()
                .entry((group.to_owned(), partition))
                .or_insert_with(|| Arc::new(Semaphore::new(1)))
                .clone();
            let permit = seat.acquire_owned().await.unwrap();
            Ok(Box::new(Given { _permit: permit, kicks: self.kicks.subscribe() }) as Box<dyn Seat>)
        })
    }

    fn claim<'a>(&'a self, group: &'a str, log: LogId, _: bool) -> BoxFuture<'a, Result<Claimed, Error>> {
        Box::pin(async move {
            let cursor = (group.to_owned(), log);
            let epoch = self.bump(cursor.clone());
            self.mine.lock().unwrap().insert(cursor, epoch);
            let records = &self.engine.records;
            let partitions = records.topics().into_iter().flat_map(|topic| topic.partitions);
            let partition = partitions.into_iter().find(|p| p.log == log).unwrap();
            Ok(Claimed { position: records.cursor(group, log), start: partition.start, end: partition.end })
        })
    }

    fn fence<'a>(&'a self, group: &'a str, log: LogId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            *self.engine.fences.lock().unwrap() += 1;
            self.bump((group.to_owned(), log));
            Ok(())
        })
    }

    fn rows<'a>(
        &'a self,
        group: &'a str,
        log: LogId,
        space: &'a str,
        keys: Vec<Bytes>,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, Error>> {
        Box::pin(async move {
            self.current(&(group.to_owned(), log))?;
            self.engine.records.state(space, keys).await
        })
    }

    fn runs_on(&self, _: &str, _: &str, _: i32) -> Option<String> {
        None
    }
}

fn engine() -> Arc<Engine> {
    let (epochs, seats, fences) = Default::default();
    Arc::new(Engine { records: Local::new(), epochs, seats, fences })
}

/// A host: keys in `keys`, records in the engine. With `own`, as a node that has a log of its own besides.
fn host(keys: &Arc<Local>, engine: &Arc<Engine>, own: bool) -> (World, Arc<HostView>) {
    let view = HostView::new(engine);
    let elsewhere = Home { records: view.clone(), stream: engine.records.clone(), claims: Some(view.clone()) };
    let here = Home { records: keys.clone(), stream: keys.clone(), claims: None };
    let fake = Arc::new(FakeEngine::default());
    let (shutdown, receiver) = watch::channel(false);
    let plane = FunctionsPlane::start(Deps {
        ledger: keys.clone(),
        homes: if own { vec![here, elsewhere] } else { vec![elsewhere] },
        cluster: keys.clone(),
        engine: fake.clone(),
        shutdown: receiver,
    })
    .unwrap();
    (World { local: engine.records.clone(), engine: fake, plane, shutdown }, view)
}

fn judging() -> serde_json::Value {
    json!({
        "trigger": {"topic": "in", "max_wait_ms": 0},
        "grants": {"topics": ["out"], "state": true, "models": ["wear"]},
    })
}

/// FN-2. The new generation may judge before its marker, the old one not after it.
async fn assert_not_stale(records: &Local) {
    let mut marked = 0;
    for event in audit(records).await {
        let generation = event["generation"].as_u64().unwrap();
        match event["event"].as_str().unwrap() {
            "model-pushed" => marked = generation,
            _ => assert!(generation >= marked, "stale verdict: {event}"),
        }
    }
}

async fn debts(keys: &Local) -> usize {
    keys.read(KeyRange::prefix(OWED_PREFIX), 10, Consistency::Linearizable).await.unwrap().kvs.len()
}

/// A guest is in the middle of its call, with the old model, when another host pushes a new one: the push is answered, and
/// what the guest gave is not committed any more.
#[tokio::test(start_paused = true)]
async fn after_a_push_nothing_of_the_old_model_is_committed() {
    let (keys, engine) = (Local::new(), engine());
    let (one, _) = host(&keys, &engine, false);
    let (other, _) = host(&keys, &engine, false);
    let logs = create(&engine.records, "in", 1);
    one.plane.deployer().model("wear", "5".into()).await.unwrap();
    one.deploy("judge", judging(), component(json!({}))).await;
    produce(&engine.records, logs[0], &[("m1", "6"), ("m2", "3")]);
    one.caught_up("judge", "in").await;
    // Whichever host has the seat, its guest is held.
    one.engine.gate.close();
    other.engine.gate.close();
    produce(&engine.records, logs[0], &[("m1", "6"), ("m2", "3")]);
    while one.engine.gate.waiting() + other.engine.gate.waiting() == 0 {
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
    let pushed = other.plane.deployer().model("wear", "2".into()).await.unwrap();
    assert_eq!((pushed.generation, pushed.audit_offset), (2, Some(2)));
    one.engine.gate.open();
    other.engine.gate.open();
    one.caught_up("judge", "in").await;
    expect![[r#"
        model "wear" generation 1
        batch "judge" v1 p0 [0,2) records 2 outputs 1 model "wear"@1
        model "wear" generation 2
        batch "judge" v1 p0 [2,4) records 2 outputs 2 model "wear"@2
    "#]]
    .assert_eq(&audit_text(&engine.records).await);
    assert_tiled(&engine.records, "judge", "in").await;
    assert_eq!(debts(&keys).await, 0, "what was owed is done");
    one.stop().await;
    other.stop().await;
}

/// Seats move, models and versions come, records flow: each is judged once, with the state that those before it left.
#[tokio::test(start_paused = true)]
async fn every_record_is_judged_once_while_seats_move_and_models_change() {
    for seed in 0..8 {
        let mut rng = Rng::new(seed);
        let (keys, engine) = (Local::new(), engine());
        let logs = create(&engine.records, "in", 2);
        let hosts = [host(&keys, &engine, false), host(&keys, &engine, false)];
        hosts[0].0.plane.deployer().model("wear", "0".into()).await.unwrap();
        hosts[0].0.deploy("count", judging(), component(json!({}))).await;
        let mut sent = 0;
        for round in 0..40u32 {
            for (at, log) in logs.iter().enumerate() {
                let key = format!("m{at}");
                produce(&engine.records, *log, &[(&key, "1"), (&key, "1")]);
                sent += 2;
            }
            let at = rng.below(2) as usize;
            match rng.below(5) {
                0 => hosts[at].1.kicks.send_modify(|kicks| *kicks += 1),
                1 => drop(hosts[at].0.plane.deployer().model("wear", format!("0.{round}").into()).await.unwrap()),
                2 => {
                    let mut manifest = judging();
                    manifest["trigger"]["max_records"] = json!(1 + rng.below(50));
                    let manifest = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
                    hosts[at].0.plane.deployer().function("count", manifest, Some(component(json!({})))).await.unwrap();
                }
                _ => tokio::time::sleep(std::time::Duration::from_millis(rng.below(40))).await,
            }
        }
        until(&mut || caught_up(&engine.records, "count", "in")).await;
        assert_tiled(&engine.records, "count", "in").await;
        assert_not_stale(&engine.records).await;
        let out: Vec<String> =
            read_topic(&engine.records, "out").await.into_iter().map(|record| record.value).collect();
        assert_eq!(out.len(), sent, "seed {seed}");
        for (at, _) in logs.iter().enumerate() {
            let counts: Vec<String> = out.iter().filter(|v| v.starts_with(&format!("m{at}="))).cloned().collect();
            let expected: Vec<String> = (1..=sent / 2).map(|n| format!("m{at}={n}")).collect();
            assert_eq!(counts, expected, "seed {seed}: a count that was seen twice or missed");
        }
        assert!(*engine.fences.lock().unwrap() > 0);
        for (world, _) in hosts {
            world.stop().await;
        }
    }
}

/// A push whose second half did not happen is finished by asking for it again.
#[tokio::test(start_paused = true)]
async fn what_is_owed_is_paid_by_asking_again() {
    let (keys, engine) = (Local::new(), engine());
    let (world, _) = host(&keys, &engine, false);
    create(&engine.records, "in", 1);
    world.plane.deployer().model("wear", "5".into()).await.unwrap();
    world.deploy("judge", judging(), component(json!({}))).await;
    let again = world.plane.deployer().model("wear", "5".into()).await.unwrap();
    assert!(again.unchanged && again.audit_offset.is_none(), "nothing is owed: {again:?}");
    // As a host leaves it that ends between the two halves.
    let put =
        buttress_core::Put { key: format!("{OWED_PREFIX}models/wear").into(), value: Some(Bytes::new()), lease: None };
    keys.submit(Entry { puts: vec![put], ..Entry::default() }).await.unwrap();
    let before = *engine.fences.lock().unwrap();
    let again = world.plane.deployer().model("wear", "5".into()).await.unwrap();
    assert!(again.unchanged && again.audit_offset.is_some(), "{again:?}");
    assert_eq!(*engine.fences.lock().unwrap() - before, 1);
    assert_eq!(debts(&keys).await, 0);
    world.stop().await;
}

/// A node with a log of its own and a Kafka: a topic chooses, and a function stays in one of them.
#[tokio::test(start_paused = true)]
async fn a_function_between_two_engines_is_refused_when_it_is_deployed() {
    let (keys, engine) = (Local::new(), engine());
    let (world, _) = host(&keys, &engine, true);
    let logs = create(&engine.records, "in", 1);
    let deploy = |topic: &str, out: &str| {
        let manifest = json!({"trigger": {"topic": topic, "max_wait_ms": 0}, "grants": {"topics": [out]}});
        let manifest = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
        world.plane.deployer().function("f", manifest, Some(component(json!({}))))
    };
    let spec =
        |name: &str| TopicSpec { name: name.into(), engine: "kafka".into(), partitions: 1, sequence_fields: None };
    for name in ["in", "there"] {
        let value = serde_json::to_vec(&spec(name)).unwrap();
        let put = buttress_core::Put { key: topic_key(name), value: Some(value.into()), lease: None };
        keys.submit(Entry { puts: vec![put], ..Entry::default() }).await.unwrap();
    }
    create(&keys, "here", 1);
    expect![[r#"
        function 'f' would read 'in' (kafka) and write 'here' (embedded) in one commit, which no engine can hold [BT0604]

        hint: let both topics lie in one engine: buttress topic create NAME --engine kafka"#]]
    .assert_eq(&deploy("in", "here").await.unwrap_err().to_string());
    expect![[r#"
        function 'f' would read 'here' (embedded) and write 'there' (kafka) in one commit, which no engine can hold [BT0604]

        hint: let both topics lie in one engine: buttress topic create NAME --engine embedded"#]]
    .assert_eq(&deploy("here", "there").await.unwrap_err().to_string());
    assert_eq!(deploy("nowhere", "out").await.unwrap_err().code, Code::TOPIC_UNKNOWN);
    deploy("in", "out").await.unwrap();
    produce(&engine.records, logs[0], &[("a", "1")]);
    until(&mut || engine.records.topic("out").is_some_and(|topic| topic.partitions[0].end.0 == 1)).await;
    assert!(keys.topic("out").is_none(), "what it writes lies where it reads");
    world.stop().await;
}
