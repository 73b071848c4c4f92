//! The ledger on an etcd when something is in the way: an address that is none, an endpoint that is down, an answer that is
//! lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress_bridge::etcd::{EtcdLedger, Options};
use buttress_core::{Code, Consistency, Entry, KeyRange, Ledger, Put};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};

use crate::{addresses, unique};

#[tokio::test]
async fn addresses_that_cannot_be_used_are_refused_with_what_would_be_right() {
    for (endpoint, code) in [
        ("127.0.0.1", Code::CONFIG),
        ("http://127.0.0.1:port", Code::CONFIG),
        ("http://:2379", Code::CONFIG),
        ("http://user@host:2379", Code::CONFIG),
    ] {
        let error = EtcdLedger::connect(Options::new([endpoint])).await.map(|_| ()).unwrap_err();
        assert_eq!(error.code, code, "{endpoint}: {error}");
        assert!(error.hint.is_some());
    }
    let none: [&str; 0] = [];
    assert_eq!(EtcdLedger::connect(Options::new(none)).await.map(|_| ()).unwrap_err().code, Code::CONFIG);
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_told_by_address() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let options = Options { deadline: Duration::from_millis(200), ..Options::new([address.clone()]) };
    let error = EtcdLedger::connect(options).await.map(|_| ()).unwrap_err();
    assert_eq!(error.code, Code::UNREACHABLE);
    assert!(error.message.contains(&address) && error.retryable, "{error}");
}

/// A server that says nothing sensible: the ledger neither panics nor waits for ever.
#[tokio::test]
async fn a_server_that_is_no_etcd_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let options = Options { deadline: Duration::from_millis(200), ..Options::new([address]) };
    assert_eq!(EtcdLedger::connect(options).await.map(|_| ()).unwrap_err().code, Code::UNREACHABLE);
    server.abort();
}

/// Hands bytes on in both directions. While `cut` is not zero, each connection that hears an answer of more than a few bytes
/// is broken instead: the request was carried out, and its answer is lost.
async fn proxy(target: String, cut: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&target).await.expect("the etcd takes connections");
            let cut = cut.clone();
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = tokio::spawn(async move {
                    let _ = copy(&mut from_client, &mut to_server).await;
                });
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                    // Settings, acknowledgements and pings are short; an answer has headers and a body.
                    let lose = read > 60 && cut.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
                    if lose || to_client.write_all(&buffer[..read]).await.is_err() {
                        break;
                    }
                }
                up.abort();
            });
        }
    });
    address
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_carried_out_once() {
    let Some(endpoints) = addresses("ETCD_ENDPOINTS", "a lost answer of an etcd") else { return };
    let cut = Arc::new(AtomicUsize::new(0));
    let address = proxy(endpoints[0].trim_start_matches("http://").to_owned(), cut.clone()).await;
    let ledger = EtcdLedger::connect(Options::new([address])).await.expect("the etcd is reached through the proxy");
    let key: bytes::Bytes = format!("{}k", unique("lost")).into();
    let entry = |value: &str| Entry {
        puts: vec![Put { key: key.clone(), value: Some(bytes::Bytes::copy_from_slice(value.as_bytes())), lease: None }],
        ..Entry::default()
    };
    ledger.submit(entry("0")).await.expect("the session is begun");
    let mut replayed = 0;
    for round in 1..=10u64 {
        cut.store(1, SeqCst);
        let receipt = ledger.submit(entry(&round.to_string())).await.expect("it is carried out in spite of the fault");
        replayed += usize::from(receipt.replayed);
        cut.store(0, SeqCst);
        let read = ledger.read(KeyRange::key(key.clone()), 1, Consistency::Linearizable).await.unwrap();
        assert_eq!(read.kvs[0].version, round + 1, "once, not twice");
        assert_eq!(read.kvs[0].mod_revision, receipt.revision, "and the receipt names the revision");
    }
    assert!(replayed > 0, "an answer was lost after the commit at least once");
    ledger.close().await;
}

/// One endpoint is down, another is there.
#[tokio::test]
async fn a_dead_endpoint_is_stepped_over() {
    let Some(mut endpoints) = addresses("ETCD_ENDPOINTS", "an etcd with a dead endpoint") else { return };
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    endpoints.insert(0, nobody.local_addr().unwrap().to_string());
    drop(nobody);
    let ledger = EtcdLedger::connect(Options::new(endpoints)).await.expect("another endpoint answers");
    ledger.read(KeyRange::key("k"), 1, Consistency::Linearizable).await.expect("a key is read");
}
