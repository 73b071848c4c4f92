//! A copy loop with exactly-once semantics, to be measured beside one of the Java client or of librdkafka:
//! `copy HOST:PORT FROM TO RECORDS [BYTES_PER_BATCH]` copies partition 0 of a topic to another and prints records per second.
//! Both topics must exist.

use std::time::Instant;

use buttress_bridge::kafka::{Kafka, Options};
use buttress_core::{Append, Cursor, Entry, Guard, Ledger, Offset, Stream};
use buttress_wire::records::{BatchView, Builder};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, from, to, total, rest @ ..] = &arguments[..] else {
        return Err("usage: copy HOST:PORT FROM TO RECORDS [BYTES_PER_BATCH]".into());
    };
    let total: i64 = total.parse()?;
    let bytes: usize = rest.first().map_or(Ok(100 * 1024), |bytes| bytes.parse())?;
    let options = Options { topics: vec![from.clone(), to.clone()], ..Options::new([bootstrap.clone()]) };
    let kafka = Kafka::connect(options).await?;
    let log =
        |topic: &str| kafka.topic(topic).map(|view| view.partitions[0].log).ok_or(format!("there is no topic {topic}"));
    let (source, target) = (log(from)?, log(to)?);
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| error.to_string())?;
    let group = format!("copy-{:016x}", u64::from_be_bytes(random));
    let mut position = kafka.claim(&group, source, false).await?.position;
    let (mut copied, mut transactions) = (0, 0);
    let started = Instant::now();
    while copied < total {
        let offset = position.unwrap_or_default();
        let fetched = kafka.fetch(source, offset, bytes, 1_000).await?;
        let mut builder = Builder::new();
        let mut next = offset;
        for batch in fetched.batches {
            next = Offset(batch.last_offset.0 + 1);
            let view = BatchView::parse_stored(batch.bytes)?;
            if view.is_control() {
                continue;
            }
            for record in view.records()? {
                let record = record?;
                if record.offset >= offset.0 {
                    builder.push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &[]);
                }
            }
        }
        let records = builder.count();
        if records == 0 {
            continue;
        }
        let max_timestamp_ms = builder.max_timestamp_ms();
        let batch = builder.build().ok_or("there are records")?;
        let entry = Entry {
            guards: vec![Guard::Cursor { group: group.clone(), log: source, expected: position }],
            appends: vec![Append { log: target, records, max_timestamp_ms, sequence: None, batch }],
            cursors: vec![Cursor { group: group.clone(), log: source, next, metadata: String::new() }],
            ..Entry::default()
        };
        kafka.submit(entry).await.map_err(|error| error.into_error())?;
        position = Some(next);
        copied += i64::from(records);
        transactions += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("bridge {copied} records {transactions} txns {seconds:.2} s {:.0} records/s", copied as f64 / seconds);
    Ok(())
}
