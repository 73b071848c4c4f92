//! Who runs a partition, on the embedded machine and on a real etcd.

use std::{sync::Arc, time::Duration};

use buttress_bridge::{
    etcd::{EtcdLedger, Options},
    hold::Hold,
};
use buttress_core::{Code, Ledger};
use buttress_state::local::Local;
use bytes::Bytes;

use crate::{addresses, unique};

const TTL: Duration = Duration::from_secs(3);

async fn one_after_the_other(ledger: Arc<dyn Ledger>, key: Bytes) {
    let first = Hold::take(ledger.clone(), key.clone(), "first", TTL).await.expect("a free key is taken");
    let waiting = tokio::spawn(Hold::take(ledger.clone(), key.clone(), "second", TTL));
    // Longer than a renewal takes, so that the first is seen to renew.
    tokio::time::sleep(TTL / 2).await;
    assert!(!waiting.is_finished(), "a key that is held is waited for");
    let token = first.revision;
    first.release().await.expect("it is given back");
    let second = waiting.await.unwrap().expect("whoever waited has it");
    assert!(second.revision > token, "tokens grow from holder to holder");
    second.release().await.expect("it is given back");
}

#[tokio::test(start_paused = true)]
async fn a_key_goes_from_holder_to_holder_on_the_embedded_machine() {
    one_after_the_other(Local::new(), "hold/a".into()).await;
}

#[tokio::test]
async fn a_key_goes_from_holder_to_holder_on_an_etcd() {
    let Some(endpoints) = addresses("ETCD_ENDPOINTS", "a hold on an etcd") else { return };
    let ledger = Arc::new(EtcdLedger::connect(Options::new(endpoints)).await.expect("the etcd is reached"));
    one_after_the_other(ledger.clone(), unique("hold").into()).await;
    ledger.close().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_could_not_renew_hears_it_and_another_takes_over() {
    let local = Local::new();
    let mut first = Hold::take(local.clone(), "hold/b".into(), "first", TTL).await.unwrap();
    let waiting = tokio::spawn(Hold::take(local.clone(), "hold/b".into(), "second", TTL));
    tokio::task::yield_now().await;
    local.advance(TTL.as_millis() as u64 + 1_000);
    first.lost().await;
    let second = waiting.await.unwrap().unwrap();
    assert!(second.revision > first.revision);
}

#[tokio::test]
async fn a_time_to_live_that_no_engine_can_keep_is_refused() {
    let error = Hold::take(Local::new(), "k".into(), "me", Duration::from_secs(1)).await.map(|_| ()).unwrap_err();
    assert_eq!(error.code, Code::CONFIG);
}
