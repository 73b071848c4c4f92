//! The stream on a real Kafka when it is hurt: brokers that are killed, answers that are lost, hosts that fight, topics that
//! change under a claim, bytes that are not what was sent.

use std::time::Duration;

use buttress_bridge::kafka::{Kafka, Options};
use buttress_core::{
    Append, Code, Cursor, Entry, Error, Guard, Ledger, LogId, Offset, StatePut, Stream, SubmitError, TopicChange,
    entry::TopicSettings,
};
use buttress_wire::records::{BatchView, Builder};
use bytes::Bytes;

use crate::{originals::broker, proxy::Harm, unique};

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const METADATA: i16 = 3;
const OFFSET_FETCH: i16 = 9;
const FIND_COORDINATOR: i16 = 10;
const INIT_PRODUCER_ID: i16 = 22;
const END_TXN: i16 = 26;
const TXN_OFFSET_COMMIT: i16 = 28;

async fn connect(bootstrap: String, topics: &[String]) -> Kafka {
    let options = Options { topics: topics.to_vec(), ..Options::new([bootstrap]) };
    Kafka::connect(options).await.expect("the Kafka is reached")
}

fn records(log: LogId, values: &[String]) -> Append {
    let mut builder = Builder::new();
    values.iter().for_each(|value| _ = builder.push(1_700_000_000_000, None, Some(value.as_bytes()), &[]));
    Append {
        log,
        records: builder.count(),
        max_timestamp_ms: builder.max_timestamp_ms(),
        sequence: None,
        batch: builder.build().expect("there are values"),
    }
}

/// Two topics of one partition each, the first with so many records.
struct Job {
    topics: [String; 2],
    group: String,
    space: String,
    records: i64,
}

impl Job {
    async fn new(kafka: &Kafka, records_count: i64) -> Self {
        let prefix = unique("fault");
        let topics = ["in", "out"].map(|name| format!("{prefix}{name}"));
        for topic in &topics {
            create(kafka, topic, 1, TopicSettings::default()).await;
        }
        let job =
            Self { topics, group: format!("{prefix}group"), space: format!("{prefix}space"), records: records_count };
        let values: Vec<String> = (0..records_count).map(|n| n.to_string()).collect();
        if !values.is_empty() {
            let appends = vec![records(job.source(kafka), &values)];
            kafka.submit(Entry { appends, ..Entry::default() }).await.expect("the records are appended");
        }
        job
    }

    fn source(&self, kafka: &Kafka) -> LogId {
        kafka.topic(&self.topics[0]).expect("the source is there").partitions[0].log
    }

    fn target(&self, kafka: &Kafka) -> LogId {
        kafka.topic(&self.topics[1]).expect("the target is there").partitions[0].log
    }

    /// The commit of the record at the position: the record's number as output, the count as state.
    fn entry(&self, kafka: &Kafka, position: Option<Offset>) -> Entry {
        let next = position.map_or(0, |offset| offset.0);
        let row =
            StatePut { space: self.space.clone(), key: "count".into(), value: Some((next + 1).to_string().into()) };
        let (group, log) = (self.group.clone(), self.source(kafka));
        Entry {
            guards: vec![Guard::Cursor { group: group.clone(), log, expected: position }],
            state: vec![row],
            appends: vec![records(self.target(kafka), &[next.to_string()])],
            cursors: vec![Cursor { group, log, next: Offset(next + 1), metadata: String::new() }],
            ..Entry::default()
        }
    }

    async fn claim(&self, kafka: &Kafka) -> Result<Option<Offset>, Error> {
        let position = kafka.claim(&self.group, self.source(kafka), true).await?.position;
        let count = kafka.state(&self.space, vec!["count".into()]).await?.pop().flatten();
        let count: i64 = count.map_or(0, |count| String::from_utf8_lossy(&count).parse().expect("a number"));
        assert_eq!(count, position.map_or(0, |offset| offset.0), "state and cursor are of the same commit");
        Ok(position)
    }

    /// Does the job to its end, through whatever happens.
    async fn work(&self, kafka: &Kafka) {
        let mut position = None;
        let mut claimed = false;
        loop {
            if !claimed {
                match self.claim(kafka).await {
                    Ok(found) => position = found,
                    Err(error) => {
                        assert!(error.retryable, "a claim fails for good: {error}");
                        continue;
                    }
                }
                claimed = true;
            }
            if position == Some(Offset(self.records)) {
                return;
            }
            match kafka.submit(self.entry(kafka, position)).await {
                Ok(_) => position = Some(Offset(position.map_or(0, |offset| offset.0) + 1)),
                Err(_) => claimed = false,
            }
        }
    }

    /// Everything that a reader of committed records finds in the target.
    async fn outputs(&self, kafka: &Kafka) -> Vec<String> {
        values(kafka, self.target(kafka))
            .await
            .into_iter()
            .map(|value| String::from_utf8_lossy(&value).into_owned())
            .collect()
    }

    async fn check(&self, kafka: &Kafka) {
        let wanted: Vec<String> = (0..self.records).map(|n| n.to_string()).collect();
        assert_eq!(self.outputs(kafka).await, wanted, "each record has one output, in order");
    }
}

async fn create(kafka: &Kafka, name: &str, partitions: u32, settings: TopicSettings) -> Vec<LogId> {
    let create = TopicChange::Create { name: name.to_owned(), id: [0; 16], partitions, settings };
    let receipt = kafka.submit(Entry { topics: vec![create], ..Entry::default() }).await.expect("a topic is made");
    receipt.created[0].1.clone()
}

/// The values up to where everything is committed or aborted.
async fn values(kafka: &Kafka, log: LogId) -> Vec<Bytes> {
    let mut values = Vec::new();
    let mut next = Offset(0);
    loop {
        let fetched = kafka.fetch(log, next, 1 << 20, 500).await.expect("the target is read");
        let Some(last) = fetched.batches.last() else { return values };
        next = Offset(last.last_offset.0 + 1);
        for batch in fetched.batches {
            let view = BatchView::parse_stored(batch.bytes).expect("a batch is one");
            if !view.is_control() {
                values.extend(view.records().expect("it can be read").map(|record| record.unwrap().value.unwrap()));
            }
        }
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, SubmitError>) -> Code {
    result.expect_err("it is refused").code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_in_the_middle_of_transactions_loses_nothing_and_doubles_nothing() {
    let Some(mut broker) = broker("a broker that is killed").await else { return };
    let kafka = std::sync::Arc::new(connect(broker.bootstrap(), &[]).await);
    let job = std::sync::Arc::new(Job::new(&kafka, 120).await);
    let (host, its) = (kafka.clone(), job.clone());
    let work = tokio::spawn(async move { its.work(&host).await });
    for share in [20, 70] {
        // In the middle: some records are done, and the host does not pause between commits.
        while kafka.cursor(&job.group, job.source(&kafka)).is_none_or(|at| at.0 < share) {
            assert!(!work.is_finished(), "the host works until it is hurt");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::task::block_in_place(|| broker.kill_and_restart());
    }
    work.await.expect("the host does its job to the end");
    job.check(&kafka).await;
}

/// A host goes away in the middle of each of its commits, with its connections; another process's client takes over.
#[tokio::test]
async fn a_host_that_dies_in_a_commit_is_taken_over_by_another() {
    let Some(broker) = broker("a host that dies").await else { return };
    let reader = connect(broker.bootstrap(), &[]).await;
    let job = Job::new(&reader, 12).await;
    let (mut died, mut before, mut tries) = (0, None, 0u64);
    for round in 0u64.. {
        let host = std::sync::Arc::new(connect(broker.bootstrap(), &job.topics).await);
        let position = job.claim(&host).await.expect("another host claims");
        if position == Some(Offset(job.records)) {
            break;
        }
        tries = if position == before { tries + 1 } else { 0 };
        before = position;
        let entry = job.entry(&host, position);
        let working = host.clone();
        let commit = tokio::spawn(async move { working.submit(entry).await });
        if tries >= 2 {
            // However slow the machine is, the third host at a record does it.
            commit.await.unwrap().expect("nobody is in its way");
            continue;
        }
        tokio::time::sleep(Duration::from_micros(300 + round % 10 * 2_000)).await;
        died += usize::from(!commit.is_finished());
        commit.abort();
        let _ = commit.await;
    }
    assert!(died > 0, "a host has died in the middle of a commit");
    job.check(&reader).await;
}

/// Of each kind of request the answer is lost, or the request: the commit is carried out once all the same.
#[tokio::test]
async fn requests_and_answers_that_are_lost_are_made_up_for() {
    let Some(broker) = broker("answers that are lost").await else { return };
    let kafka = connect(broker.bootstrap(), &[]).await;
    let job = Job::new(&kafka, 24).await;
    let mut position = job.claim(&kafka).await.expect("the cursor is claimed");
    for api in [PRODUCE, TXN_OFFSET_COMMIT, END_TXN] {
        for harm in [Harm::LoseAnswer, Harm::LoseRequest] {
            for times in [1, 2] {
                broker.proxy.harm(api, harm, times);
                let committed = kafka.submit(job.entry(&kafka, position)).await;
                assert!(committed.is_ok(), "{harm:?} of {api}, {times} times: {committed:?}");
                assert!(broker.proxy.hits() > 0, "{harm:?} of {api} has happened");
                position = Some(Offset(position.map_or(0, |offset| offset.0) + 1));
            }
        }
    }
    for api in [INIT_PRODUCER_ID, OFFSET_FETCH, FIND_COORDINATOR, METADATA] {
        for harm in [Harm::LoseAnswer, Harm::LoseRequest] {
            broker.proxy.harm(api, harm, 1);
            let host = connect(broker.bootstrap(), &job.topics).await;
            assert_eq!(job.claim(&host).await.expect("the cursor is claimed"), position, "{harm:?} of {api}");
            assert!(broker.proxy.hits() > 0, "{harm:?} of {api} has happened");
            broker.proxy.pass();
            host.submit(job.entry(&host, position)).await.expect("and the host goes on");
            position = Some(Offset(position.map_or(0, |offset| offset.0) + 1));
        }
    }
    let host = connect(broker.bootstrap(), &job.topics).await;
    job.work(&host).await;
    job.check(&host).await;
}

/// Where no answer to the end of a transaction comes until the deadline, nobody claims to know; the next claim does know.
#[tokio::test]
async fn an_end_whose_answers_are_all_lost_is_unknown_until_the_next_claim() {
    let Some(broker) = broker("an end without an answer").await else { return };
    let options = Options { deadline: Duration::from_secs(3), ..Options::new([broker.bootstrap()]) };
    let kafka = Kafka::connect(options).await.expect("the Kafka is reached");
    let job = Job::new(&kafka, 4).await;
    let mut position = job.claim(&kafka).await.expect("the cursor is claimed");
    for (harm, found) in [(Harm::LoseAnswer, Some(Offset(1))), (Harm::LoseRequest, Some(Offset(1)))] {
        broker.proxy.harm(END_TXN, harm, usize::MAX);
        assert_eq!(code(kafka.submit(job.entry(&kafka, position)).await), Code::TIMEOUT, "{harm:?}");
        broker.proxy.pass();
        position = job.claim(&kafka).await.expect("the cursor is claimed again");
        assert_eq!(position, found, "{harm:?}: the first was carried out, the second is ended by the claim");
    }
    job.work(&kafka).await;
    job.check(&kafka).await;
}

/// The one who is fenced hears so, and nothing that it did is seen, whether it had begun its commit or not.
#[tokio::test]
async fn of_two_hosts_that_fight_the_fenced_one_hears_it_and_leaves_nothing() {
    let Some(broker) = broker("two hosts that fight").await else { return };
    let first = connect(broker.bootstrap(), &[]).await;
    let job = Job::new(&first, 12).await;
    let second = connect(broker.bootstrap(), &job.topics).await;
    let mut hosts = [&first, &second];
    job.claim(hosts[0]).await.expect("one claims");
    for round in 0..job.records {
        let position = (round > 0).then_some(Offset(round));
        let late = job.entry(hosts[0], position);
        if round % 2 == 0 {
            // It has produced already, and asks for the end of its transaction too late.
            broker.proxy.harm(END_TXN, Harm::Delay(Duration::from_secs(2)), 1);
            let take_over = async {
                while broker.proxy.hits() == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                job.claim(hosts[1]).await
            };
            let (fenced, claimed) = futures::future::join(hosts[0].submit(late), take_over).await;
            assert_eq!(claimed.expect("the other claims"), position, "what was open is ended by the claim");
            assert_eq!(code(fenced), Code::EPOCH_STALE);
            broker.proxy.pass();
        } else {
            assert_eq!(job.claim(hosts[1]).await.expect("the other claims"), position);
            assert_eq!(code(hosts[0].submit(late).await), Code::EPOCH_STALE);
        }
        hosts.swap(0, 1);
        hosts[0].submit(job.entry(hosts[0], position)).await.expect("who has claimed commits");
    }
    job.check(&first).await;
}

#[tokio::test]
async fn a_transaction_that_takes_too_long_is_ended_by_kafka_and_told() {
    let Some(broker) = broker("a transaction that takes too long").await else { return };
    let options = Options { transaction_max: Duration::from_secs(1), ..Options::new([broker.bootstrap()]) };
    let kafka = Kafka::connect(options).await.expect("the Kafka is reached");
    let job = Job::new(&kafka, 3).await;
    let position = job.claim(&kafka).await.expect("the cursor is claimed");
    broker.proxy.harm(END_TXN, Harm::Delay(Duration::from_secs(8)), 1);
    assert_eq!(code(kafka.submit(job.entry(&kafka, position)).await), Code::EPOCH_STALE);
    job.work(&kafka).await;
    job.check(&kafka).await;
}

#[tokio::test]
async fn records_that_are_too_large_are_refused_and_nothing_of_their_commit_is_seen() {
    let Some(broker) = broker("records that are too large").await else { return };
    let kafka = connect(broker.bootstrap(), &[]).await;
    let job = Job::new(&kafka, 2).await;
    let small = TopicSettings { batch_bytes_max: Some(1_000), ..TopicSettings::default() };
    let narrow = create(&kafka, &unique("narrow"), 1, small).await[0];
    let position = job.claim(&kafka).await.expect("the cursor is claimed");
    let mut entry = job.entry(&kafka, position);
    entry.appends.push(records(narrow, &["x".repeat(5_000)]));
    let error = kafka.submit(entry).await.unwrap_err().into_error();
    assert!(error.code == Code::TOO_LARGE && error.hint.is_some(), "{error}");
    assert_eq!(job.outputs(&kafka).await, Vec::<String>::new(), "the other output neither");
    job.work(&kafka).await;
    job.check(&kafka).await;
}

#[tokio::test]
async fn a_topic_that_is_deleted_and_made_again_is_another_one() {
    let Some(broker) = broker("a topic that is made again").await else { return };
    let kafka = connect(broker.bootstrap(), &[]).await;
    let job = Job::new(&kafka, 5).await;
    let old = job.source(&kafka);
    job.claim(&kafka).await.expect("the cursor is claimed");
    let entry = job.entry(&kafka, None);
    let other = connect(broker.bootstrap(), &job.topics).await;
    let delete = TopicChange::Delete { name: job.topics[0].clone() };
    other.submit(Entry { topics: vec![delete], ..Entry::default() }).await.expect("somebody deletes the topic");
    create(&other, &job.topics[0], 1, TopicSettings::default()).await;
    // A read by the old id finds out by itself.
    assert_eq!(kafka.fetch(old, Offset(0), 1024, 0).await.unwrap_err().code, Code::TOPIC_UNKNOWN);
    assert_eq!(code(kafka.submit(entry).await), Code::TOPIC_UNKNOWN, "a claim on it does not count for the new one");
    kafka.refresh().await.expect("the topics are looked at");
    let new = job.source(&kafka);
    assert_ne!(new, old);
    assert_eq!(kafka.topic(&job.topics[0]).unwrap().partitions[0].end, Offset(0), "it is empty");
    assert_eq!(kafka.fetch(new, Offset(0), 1024, 0).await.unwrap().batches, []);
    assert_eq!(kafka.cursor(&job.group, old), None, "and the claim is gone");
}

#[tokio::test]
async fn a_topic_that_grows_can_be_claimed_where_it_has_grown_with_its_state() {
    let Some(broker) = broker("a topic that grows").await else { return };
    let kafka = connect(broker.bootstrap(), &[]).await;
    let job = Job::new(&kafka, 1).await;
    job.work(&kafka).await;
    let extend = TopicChange::Extend { name: job.topics[0].clone(), partitions: 3 };
    let receipt =
        kafka.submit(Entry { topics: vec![extend], ..Entry::default() }).await.expect("it gets more partitions");
    assert_eq!(receipt.created[0].1.len(), 2);
    let log = receipt.created[0].1[1];
    kafka
        .submit(Entry { appends: vec![records(log, &["a".into()])], ..Entry::default() })
        .await
        .expect("it takes records");
    let claimed = kafka.claim(&job.group, log, true).await.expect("a new partition is claimed, with its state");
    assert_eq!((claimed.position, claimed.rows), (None, 0));
    let space = format!("{}/2", job.space);
    let entry = Entry {
        guards: vec![Guard::Cursor { group: job.group.clone(), log, expected: None }],
        state: vec![StatePut { space: space.clone(), key: "k".into(), value: Some("v".into()) }],
        cursors: vec![Cursor { group: job.group.clone(), log, next: Offset(1), metadata: String::new() }],
        ..Entry::default()
    };
    kafka.submit(entry).await.expect("and moved");
    let other = connect(broker.bootstrap(), &job.topics).await;
    let log = other.topic(&job.topics[0]).unwrap().partitions[2].log;
    let claimed = other.claim(&job.group, log, true).await.expect("another host claims it");
    assert_eq!((claimed.position, claimed.rows), (Some(Offset(1)), 1));
    let fewer = TopicChange::Extend { name: job.topics[0].clone(), partitions: 2 };
    assert_eq!(code(kafka.submit(Entry { topics: vec![fewer], ..Entry::default() }).await), Code::TOPIC_INVALID);
}

/// What a broker sends is believed only as far as it holds.
#[tokio::test]
async fn bytes_that_are_not_what_was_sent_are_told_and_not_handed_on() {
    let Some(broker) = broker("bytes that change").await else { return };
    let kafka = connect(broker.bootstrap(), &[]).await;
    let job = Job::new(&kafka, 3).await;
    let log = job.source(&kafka);
    broker.proxy.harm(FETCH, Harm::Flip, 1);
    let error = kafka.fetch(log, Offset(0), 1 << 20, 100).await.unwrap_err();
    assert!(error.code == Code::BATCH_INVALID && error.retryable && error.hint.is_some(), "{error}");
    assert_eq!(values(&kafka, log).await.len(), 3, "the next read has them");
    for harm in [Harm::Tear, Harm::Lie, Harm::Mix] {
        broker.proxy.harm(FETCH, harm, 1);
        assert_eq!(values(&kafka, log).await.len(), 3, "{harm:?} once is made up for");
        let options = Options {
            deadline: Duration::from_millis(300),
            topics: job.topics.to_vec(),
            ..Options::new([broker.bootstrap()])
        };
        let hasty = Kafka::connect(options).await.expect("the Kafka is reached");
        broker.proxy.harm(FETCH, harm, usize::MAX);
        let error = hasty.fetch(job.source(&hasty), Offset(0), 1 << 20, 100).await.unwrap_err();
        assert!(error.code == Code::UNREACHABLE && error.retryable, "{harm:?} for good is told: {error}");
        broker.proxy.pass();
    }
}

#[tokio::test]
async fn what_other_producers_have_packed_is_read() {
    let Some(broker) = broker("packed records").await else { return };
    let kafka = connect(broker.bootstrap(), &[]).await;
    let packed = include_str!("../../../wire/testdata/kafka_packed.txt");
    for line in packed.lines().filter(|line| !line.starts_with('#')) {
        let (name, hex) = line.split_once(' ').expect("a name and a batch");
        let batch: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let view = BatchView::parse(batch.into()).expect("it is a batch");
        let log = create(&kafka, &unique(name), 1, TopicSettings::default()).await[0];
        let append = Append {
            log,
            records: view.records_count(),
            max_timestamp_ms: view.max_timestamp_ms(),
            sequence: None,
            batch: view.into_bytes(),
        };
        kafka
            .submit(Entry { appends: vec![append], ..Entry::default() })
            .await
            .expect("the broker unpacks and takes it");
        let values = values(&kafka, log).await;
        assert_eq!(values.len(), 20, "{name}");
        assert_eq!(values[19], r#"{"machine":"press-19","temperature":21.5}"#, "{name}");
    }
}
