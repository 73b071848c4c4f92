//! The stream on a Kafka when something is in the way.

use std::{sync::Arc, time::Duration};

use buttress_bridge::kafka::{Kafka, Options};
use buttress_core::Code;
use tokio::{io::AsyncWriteExt, net::TcpListener};

#[tokio::test]
async fn addresses_that_cannot_be_used_are_refused_with_what_would_be_right() {
    for address in ["127.0.0.1", "kafka://127.0.0.1:9092", ":9092", "127.0.0.1:no"] {
        let error = Kafka::connect(Options::new([address])).await.map(|_| ()).unwrap_err();
        assert_eq!(error.code, Code::CONFIG, "{address}: {error}");
        assert!(error.hint.is_some());
    }
}

/// A server that answers every connection with these bytes.
async fn answering(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(bytes).await;
        }
    });
    address
}

/// Lengths that lie and answers to other questions are faults of the broker: told, not believed, and nothing is allocated
/// for them.
#[tokio::test]
async fn a_broker_that_lies_is_told() {
    for bytes in [
        &b"\x7f\xff\xff\xff"[..],
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x04\x00\x00\x00\x63",
        b"\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\xff\xff\xff\xff",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        let address = answering(bytes).await;
        let options = Options { deadline: Duration::from_millis(200), ..Options::new([address]) };
        let error = Kafka::connect(options).await.map(|_| ()).unwrap_err();
        assert_eq!(error.code, Code::UNREACHABLE, "{error}");
    }
}

/// A commit that meets a broker which goes away is not lost and not doubled; `conformance` restarts one for real.
#[tokio::test]
async fn nothing_is_claimed_on_a_topic_that_is_not_there() {
    let Some(bootstrap) = crate::addresses("KAFKA_BOOTSTRAP", "a claim on a topic that is not there") else { return };
    let kafka = Arc::new(Kafka::connect(Options::new(bootstrap)).await.expect("the Kafka is reached"));
    let error = kafka.claim("g", buttress_core::LogId(7), false).await.unwrap_err();
    assert_eq!(error.code, Code::TOPIC_UNKNOWN);
}

pub fn one(log: buttress_core::LogId, value: &str) -> buttress_core::Append {
    let mut builder = buttress_wire::records::Builder::new();
    builder.push(1_700_000_000_000, None, Some(value.as_bytes()), &[]);
    buttress_core::Append {
        log,
        records: 1,
        max_timestamp_ms: builder.max_timestamp_ms(),
        sequence: None,
        batch: builder.build().expect("a record was pushed"),
    }
}

/// Hosts die in the middle of commits, each at another moment, and others go on: every record has one output, in order, and the
/// state counts the same.
#[tokio::test]
async fn hosts_that_die_in_the_middle_of_a_commit_lose_nothing_and_double_nothing() {
    use buttress_core::{Cursor, Entry, Guard, Ledger, Offset, StatePut, Stream, TopicChange, entry::TopicSettings};
    const RECORDS: i64 = 40;
    let Some(bootstrap) = crate::addresses("KAFKA_BOOTSTRAP", "a host that dies in a commit") else { return };
    let prefix = crate::unique("contract-died");
    let kafka = Arc::new(Kafka::connect(Options::new(bootstrap)).await.expect("the Kafka is reached"));
    let mut logs = Vec::new();
    for name in ["in", "out"] {
        let create = TopicChange::Create {
            name: format!("{prefix}{name}"),
            id: [0; 16],
            partitions: 1,
            settings: TopicSettings::default(),
        };
        let receipt = kafka.submit(Entry { topics: vec![create], ..Entry::default() }).await.expect("a topic is made");
        logs.push(receipt.created[0].1[0]);
    }
    let (source, target) = (logs[0], logs[1]);
    let appends = (0..RECORDS).map(|n| one(source, &n.to_string())).collect();
    kafka.submit(Entry { appends, ..Entry::default() }).await.expect("the records are appended");

    let (group, space) = (format!("{prefix}group"), format!("{prefix}space"));
    let (mut died, mut delay_us, mut tries, mut before) = (0, 500, 0, -1);
    loop {
        // The claim is what finds out how the commit before it has ended.
        let position = kafka.claim(&group, source, true).await.expect("the cursor is claimed").position;
        let next = position.map_or(0, |offset| offset.0);
        let count = kafka.state(&space, vec!["count".into()]).await.unwrap().pop().flatten();
        let count: i64 = count.map_or(0, |count| String::from_utf8_lossy(&count).parse().unwrap());
        assert_eq!(count, next, "state and cursor are of the same commit");
        if next == RECORDS {
            break;
        }
        let entry = Entry {
            guards: vec![Guard::Cursor { group: group.clone(), log: source, expected: position }],
            state: vec![StatePut {
                space: space.clone(),
                key: "count".into(),
                value: Some((next + 1).to_string().into()),
            }],
            appends: vec![one(target, &next.to_string())],
            cursors: vec![Cursor {
                group: group.clone(),
                log: source,
                next: Offset(next + 1),
                metadata: String::new(),
            }],
            ..Entry::default()
        };
        tries = if next == before { tries + 1 } else { 0 };
        before = next;
        let committing = kafka.clone();
        let commit = tokio::spawn(async move { committing.submit(entry).await });
        if tries >= 3 {
            // However slow the machine is, the fourth host at a record does it.
            commit.await.unwrap().expect("nobody is in its way");
            continue;
        }
        tokio::time::sleep(Duration::from_micros(delay_us)).await;
        died += usize::from(!commit.is_finished());
        commit.abort();
        let _ = commit.await;
        delay_us = if delay_us > 60_000 { 500 } else { delay_us + 1_700 };
    }
    assert!(died > 0, "a host has died in the middle of a commit");
    let mut outputs = Vec::new();
    let mut next = Offset(0);
    loop {
        let fetched = kafka.fetch(target, next, 1 << 20, 100).await.unwrap();
        let Some(last) = fetched.batches.last() else { break };
        next = Offset(last.last_offset.0 + 1);
        for batch in fetched.batches {
            let view = buttress_wire::records::BatchView::parse_stored(batch.bytes).unwrap();
            if !view.is_control() {
                outputs.extend(view.records().unwrap().map(|record| record.unwrap().value.unwrap()));
            }
        }
    }
    let wanted: Vec<bytes::Bytes> = (0..RECORDS).map(|n| n.to_string().into()).collect();
    assert_eq!(outputs, wanted);
}
