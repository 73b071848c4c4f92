//! The suite, against each.

use std::{sync::Arc, time::Duration};

use buttress_bridge::{
    contract::{Claims, Host, Keys, Pass, Records},
    etcd::{self, EtcdLedger},
    kafka::{self, Kafka},
};
use buttress_core::BoxFuture;
use buttress_state::local::Local;

use crate::{addresses, unique};

/// One suite at a time on an etcd: each compacts the history of all keys.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn real_time() -> Pass {
    Box::new(|ms| Box::pin(tokio::time::sleep(Duration::from_millis(ms))))
}

#[tokio::test]
async fn keys_of_the_embedded_machine() {
    let local = Local::new();
    let clock = local.clone();
    let pass: Pass = Box::new(move |ms| {
        clock.advance(ms);
        Box::pin(async {})
    });
    Keys { ledger: local, prefix: "contract/".into(), pass }.run().await;
}

#[tokio::test]
async fn keys_of_an_etcd() {
    let Some(endpoints) = addresses("ETCD_ENDPOINTS", "the ledger on an etcd") else { return };
    let _alone = ONE_AT_A_TIME.lock().await;
    let ledger = Arc::new(EtcdLedger::connect(etcd::Options::new(endpoints)).await.expect("the etcd is reached"));
    Keys { ledger: ledger.clone(), prefix: unique("contract"), pass: real_time() }.run().await;
    ledger.close().await;
}

#[tokio::test]
async fn keys_of_an_etcd_in_a_namespace() {
    let Some(endpoints) = addresses("ETCD_ENDPOINTS", "the ledger in a namespace of an etcd") else { return };
    let _alone = ONE_AT_A_TIME.lock().await;
    let options = etcd::Options { namespace: unique("space"), ..etcd::Options::new(endpoints) };
    let ledger = Arc::new(EtcdLedger::connect(options).await.expect("the etcd is reached"));
    Keys { ledger: ledger.clone(), prefix: "contract/".into(), pass: real_time() }.run().await;
    let all = buttress_core::KeyRange { from: Default::default(), to: Some(Default::default()) };
    let read =
        buttress_core::Ledger::read(&*ledger, all, 1000, buttress_core::Consistency::Linearizable).await.unwrap();
    assert!(read.kvs.iter().all(|kv| kv.key.starts_with(b"contract/")), "the bridge's own keys are not seen");
    ledger.close().await;
}

#[tokio::test]
async fn records_of_the_embedded_machine() {
    let local = Local::new();
    let host = || {
        let claim: Claims = Box::new(|_, _| Box::pin(async { Ok(()) }));
        Host { ledger: local.clone(), stream: local.clone(), claim }
    };
    let look = Box::new(|| -> BoxFuture<'static, ()> { Box::pin(async {}) });
    // The machine has no clock, so somebody says when a fetch has waited long enough.
    let clock = local.clone();
    let ticks = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            clock.expire_waits();
        }
    });
    Records { host: host(), other: host(), look, prefix: "contract-".into() }.run().await;
    ticks.abort();
}

fn host(kafka: &Arc<Kafka>) -> Host {
    let claiming = kafka.clone();
    let claim: Claims = Box::new(move |group, log| {
        let (kafka, group) = (claiming.clone(), group.to_owned());
        Box::pin(async move { kafka.claim(&group, log, true).await.map(|_| ()) })
    });
    Host { ledger: kafka.clone(), stream: kafka.clone(), claim }
}

#[tokio::test]
async fn records_of_a_kafka() {
    let Some(bootstrap) = addresses("KAFKA_BOOTSTRAP", "the stream on a Kafka") else { return };
    let prefix = unique("contract");
    let topics = ["in", "out"].map(|name| format!("{prefix}{name}")).to_vec();
    let first = Arc::new(Kafka::connect(kafka::Options::new(bootstrap.clone())).await.expect("the Kafka is reached"));
    let options = kafka::Options { topics, ..kafka::Options::new(bootstrap) };
    let second = Arc::new(Kafka::connect(options).await.expect("the Kafka is reached"));
    let looking = second.clone();
    let look = Box::new(move || -> BoxFuture<'static, ()> {
        let kafka = looking.clone();
        Box::pin(async move { kafka.refresh().await.expect("the topics are looked at") })
    });
    Records { host: host(&first), other: host(&second), look, prefix }.run().await;
    let mut metrics = String::new();
    first.metrics(&mut metrics);
    assert!(metrics.contains("buttress_bridge_lag_records{group="), "{metrics}");
}
