//! Valid inputs for every target, made by the production encoders where they can be reached, and by hand after the format's
//! description where they cannot.

use buttress_consensus::{Body, EntryKind, LogEntry, MemberStep, Members, Message, SnapshotMeta, fuzz};
use buttress_core::{
    Append, Compare, Cursor, DeleteOp, Entry, Forget, Guard, Index, KeyRange, LeaseChange, LeaseId, LogId,
    Machine as _, NodeId, Offset, Operand, Put, PutOp, RangeOp, Relation, RequestId, Revision, Sequence, StatePut,
    Table, Term, TimeMs, Timer, TopicChange, Txn, TxnOp, Writer,
    entry::TopicSettings,
    txn::{SortOrder, SortTarget},
};
use buttress_node::transport::{Frame, Hello, Lane};
use buttress_state::{Machine, MemStore, local::opaque_batch};
use buttress_wal::{Batch, Identity, Marker, format::Header};
use buttress_wire::{
    kafka::Api,
    records::{Builder, HEADER_BYTES, Producer},
};
use bytes::{Bytes, BytesMut};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Prefixes each part with its length in two bytes, and joins them.
fn joined(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(&(part.len() as u16).to_be_bytes());
        all.extend_from_slice(&part);
    }
    all
}

fn append(log: u32, records: u32, sequence: Option<(&str, i32, i64)>) -> Append {
    let sequence = sequence.map(|(producer, epoch, number)| Sequence { producer: producer.into(), epoch, number });
    Append { log: LogId(log), records, max_timestamp_ms: 5, sequence, batch: opaque_batch(records, b"payload") }
}

/// A story that touches every part of an entry.
fn story() -> Vec<Entry> {
    let request = |number| Some(RequestId { client: 7, number, acknowledged_below: number.saturating_sub(2) });
    let key = || bytes("k");
    let put = |text: &str, lease| Put { key: key(), value: Some(bytes(text)), lease };
    let settings = TopicSettings {
        retention_bytes: Some(100),
        retention_ms: Some(1000),
        sequence_fields: Some(("machine".into(), "seq".into())),
        batch_bytes_max: None,
    };
    let limited = TopicSettings { batch_bytes_max: Some(300), ..TopicSettings::default() };
    let create = TopicChange::Create { name: "t".into(), id: [9; 16], partitions: 2, settings: settings.clone() };
    let small = TopicChange::Create { name: "u".into(), id: [8; 16], partitions: 1, settings: limited.clone() };
    vec![
        Entry { request: request(1), time: TimeMs(100), topics: vec![create], ..Entry::default() },
        Entry {
            request: request(2),
            time: TimeMs(200),
            leases: vec![LeaseChange::Grant { lease: LeaseId(5), ttl_ms: 50 }],
            puts: vec![put("1", Some(LeaseId(5)))],
            ..Entry::default()
        },
        Entry {
            request: request(3),
            time: TimeMs(210),
            guards: vec![
                Guard::ModRevision { key: key(), revision: Revision(2) },
                Guard::CreateRevision { key: key(), revision: Revision(2) },
                Guard::Version { key: key(), version: 1 },
                Guard::Value { key: key(), value: bytes("1") },
                Guard::LeaseAlive { lease: LeaseId(5) },
                Guard::Cursor { group: "g".into(), log: LogId(1), expected: None },
                Guard::LogEnd { log: LogId(1), expected: Offset(0) },
            ],
            puts: vec![put("2", None), Put { key: bytes("gone"), value: None, lease: None }],
            state: vec![StatePut { space: "f".into(), key: key(), value: Some(bytes("s")) }],
            appends: vec![
                append(1, 2, Some(("device:m1", 0, 0))),
                append(2, 1, Some(("kafka:4", 1, i64::from(i32::MAX)))),
            ],
            ..Entry::default()
        },
        Entry {
            request: request(4),
            appends: vec![append(1, 2, Some(("device:m1", 0, 0))), append(1, 3, None)],
            cursors: vec![Cursor { group: "g".into(), log: LogId(1), next: Offset(2), metadata: "m".into() }],
            timers: vec![
                Timer::Set { id: "x".into(), due: TimeMs(300), key: bytes("due"), value: bytes("v") },
                Timer::Cancel { id: "y".into() },
            ],
            leases: vec![LeaseChange::KeepAlive { lease: LeaseId(5) }],
            ..Entry::default()
        },
        Entry { time: TimeMs(400), expire: true, ..Entry::default() },
        Entry {
            request: request(5),
            topics: vec![TopicChange::Trim { log: LogId(1), before: Offset(3) }],
            leases: vec![
                LeaseChange::Grant { lease: LeaseId(6), ttl_ms: 9 },
                LeaseChange::Revoke { lease: LeaseId(6) },
            ],
            ..Entry::default()
        },
        Entry {
            request: request(7),
            topics: vec![
                small,
                TopicChange::Configure { name: "t".into(), from: settings, to: limited },
                TopicChange::Extend { name: "t".into(), partitions: 3 },
            ],
            forgets: vec![Forget { group: "g".into(), log: LogId(1) }],
            ..Entry::default()
        },
        Entry { request: request(6), topics: vec![TopicChange::Delete { name: "t".into() }], ..Entry::default() },
        Entry { request: request(7), txn: Some(transaction()), ..Entry::default() },
        Entry { request: request(7), txn: Some(transaction()), ..Entry::default() },
        Entry { request: request(8), compact: Some(Revision(3)), ..Entry::default() },
        Entry {
            txn: Some(Txn { success: vec![TxnOp::Range(RangeOp::new(KeyRange::key("k")))], ..Txn::default() }),
            compact: Some(Revision(4)),
            ..Entry::default()
        },
    ]
}

/// One of everything that a transaction can hold.
fn transaction() -> Txn {
    let compare = |relation, operand| Compare { range: KeyRange::prefix("k"), relation, operand };
    let range = RangeOp {
        revision: Some(Revision(2)),
        limit: 3,
        min_mod_revision: Some(Revision(1)),
        max_create_revision: Some(Revision(300)),
        order: SortOrder::Descending,
        target: SortTarget::Value,
        ..RangeOp::new(KeyRange { from: bytes("a"), to: Some(Bytes::new()) })
    };
    let put = PutOp { key: bytes("k"), value: bytes("3"), prev_kv: true, ..PutOp::default() };
    let inner = Txn {
        compares: vec![compare(Relation::Less, Operand::ModRevision(0))],
        success: vec![TxnOp::Put(PutOp { lease: Some(LeaseId(9)), ..put.clone() })],
        failure: vec![TxnOp::Range(RangeOp { keys_only: true, ..RangeOp::new(KeyRange::prefix("")) })],
    };
    Txn {
        compares: vec![
            compare(Relation::Greater, Operand::Version(0)),
            compare(Relation::NotEqual, Operand::Value(bytes("x"))),
            compare(Relation::Equal, Operand::Lease(0)),
            compare(Relation::Less, Operand::CreateRevision(77)),
        ],
        success: vec![
            TxnOp::Range(range),
            TxnOp::Txn(Box::new(inner)),
            TxnOp::Delete(DeleteOp { range: KeyRange { from: bytes("d"), to: Some(bytes("g")) }, prev_kv: true }),
            TxnOp::Put(PutOp { key: bytes("z"), ..put }),
        ],
        failure: vec![TxnOp::Range(RangeOp { count_only: true, ..RangeOp::new(KeyRange::key("k")) })],
    }
}

pub fn entries() -> Vec<Vec<u8>> {
    story().iter().map(|entry| entry.encode().to_vec()).collect()
}

pub fn entry_sequences() -> Vec<Vec<u8>> {
    let all = entries();
    (1..=all.len()).map(|upto| joined(all[..upto].to_vec())).collect()
}

/// The rows of a machine after each step of the story.
pub fn rows() -> Vec<Vec<u8>> {
    let mut machine = Machine::open(MemStore::new()).expect("memory can be read");
    let mut all = Vec::new();
    for entry in story() {
        machine.apply(machine.applied().0.next(), Term(1), entry.encode());
        let mut rows = Vec::new();
        for (at, table) in Table::ALL.iter().enumerate() {
            for (key, value) in machine.store().rows(*table) {
                rows.extend_from_slice(&[at as u8, key.len() as u8]);
                rows.extend_from_slice(&(value.len() as u16).to_be_bytes());
                rows.extend_from_slice(key);
                rows.extend_from_slice(value);
            }
        }
        all.push(rows);
    }
    all
}

pub fn results() -> Vec<Vec<u8>> {
    let mut machine = Machine::open(MemStore::new()).expect("memory can be read");
    for entry in story() {
        machine.apply(machine.applied().0.next(), Term(1), entry.encode());
    }
    let mut refused =
        Entry { request: Some(RequestId { client: 8, number: 1, acknowledged_below: 0 }), ..Entry::default() };
    refused.guards.push(Guard::Version { key: bytes("k"), version: 77 });
    machine.apply(machine.applied().0.next(), Term(1), refused.encode());
    refused = Entry { topics: vec![TopicChange::Delete { name: "none".into() }], guards: Vec::new(), ..refused };
    refused.request = Some(RequestId { client: 8, number: 2, acknowledged_below: 0 });
    machine.apply(machine.applied().0.next(), Term(1), refused.encode());
    // Kind, client, number; then floor and index, each a byte here, before the result.
    let rows = machine.store().rows(Table::Meta).iter().filter(|(key, _)| key.len() == 17 && key[0] == 8);
    rows.map(|(_, value)| value[2..].to_vec()).collect()
}

fn log_entry(index: u64, term: u64, text: &str) -> LogEntry {
    LogEntry { index: Index(index), term: Term(term), kind: EntryKind::Normal, data: bytes(text) }
}

fn members() -> Vec<Members> {
    let ids = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
    let joint = Members {
        voters: ids(&[1, 2, 4]),
        voters_outgoing: ids(&[1, 2, 3]),
        learners_next: ids(&[3]),
        learners: ids(&[5]),
        auto_leave: true,
        ..Members::default()
    };
    vec![Members::voters([1, 2, 3]), joint]
}

fn bodies() -> Vec<Body> {
    let meta = SnapshotMeta { index: Index(9), term: Term(3), members: Members::voters([1, 2, 3]) };
    let (commit, context) = (Index(1), bytes("0123456789abcdefghijklmn"));
    vec![
        Body::Append {
            prev_index: Index(1),
            prev_term: Term(1),
            commit,
            entries: vec![log_entry(2, 2, ""), log_entry(3, 2, "data")],
        },
        Body::Append { prev_index: Index(3), prev_term: Term(2), commit: Index(3), entries: Vec::new() },
        Body::Accepted { index: Index(3), commit },
        Body::Rejected { index: Index(3), hint_index: Index(2), hint_term: Term(1), commit },
        Body::Heartbeat { commit, context: context.clone() },
        Body::HeartbeatReply { commit, context: context.clone() },
        Body::Vote {
            pre: true,
            last_index: Index(1),
            last_term: Term(1),
            commit,
            commit_term: Term(1),
            transfer: false,
        },
        Body::Vote {
            pre: false,
            last_index: Index(9),
            last_term: Term(1),
            commit,
            commit_term: Term(1),
            transfer: true,
        },
        Body::VoteReply { pre: true, granted: true, commit, commit_term: Term(1) },
        Body::VoteReply { pre: false, granted: true, commit, commit_term: Term(1) },
        Body::Snapshot { meta },
        Body::TimeoutNow,
        Body::ReadIndex { context: context.clone() },
        Body::ReadIndexReply { index: Index(2), context },
    ]
}

fn message(from: u64, term: u64, body: Body) -> Vec<u8> {
    Message { from: NodeId(from), to: NodeId(1), term: Term(term), body }.encode().to_vec()
}

pub fn messages() -> Vec<Vec<u8>> {
    bodies().into_iter().map(|body| message(2, 2, body)).collect()
}

pub fn message_sequences() -> Vec<Vec<u8>> {
    let reply = |from, term, pre| {
        message(from, term, Body::VoteReply { pre, granted: true, commit: Index(1), commit_term: Term(1) })
    };
    // It campaigns, leads with two votes, and hears answers.
    let leads = |rest: Vec<Vec<u8>>| {
        let mut all = vec![Vec::new(), Vec::new(), reply(2, 2, true), reply(2, 2, false)];
        all.extend(rest);
        joined(all)
    };
    let accepted = |from, index| message(from, 2, Body::Accepted { index: Index(index), commit: Index(1) });
    vec![
        joined(messages()),
        leads(vec![accepted(2, 2), accepted(3, 2)]),
        leads(messages()),
        leads(vec![message(3, 5, bodies().remove(0)), message(3, 5, bodies().remove(10))]),
        joined(bodies().into_iter().map(|body| message(3, 7, body)).rev()),
    ]
}

pub fn frames() -> Vec<Vec<u8>> {
    let hello =
        Hello { cluster_id: "c".into(), from: NodeId(2), to: NodeId(1), lane: Lane::Data, address: Some("h:1".into()) };
    let frames = [
        Frame::Raft(message(2, 2, Body::TimeoutNow).into()),
        Frame::Propose { number: 5, entry: story()[1].encode() },
        Frame::NotTaken { number: 5, overloaded: true },
        Frame::SnapshotChunk(chunks()[0].clone().into()),
        Frame::SnapshotEnd(message(2, 2, bodies().remove(10)).into()),
    ];
    let mut all = vec![hello.encode().slice(2..).to_vec()];
    let mut together = BytesMut::new();
    for frame in frames {
        let mut alone = BytesMut::new();
        frame.encode(&mut alone);
        together.extend_from_slice(&alone);
        all.push(alone.to_vec());
    }
    all.push(together.to_vec());
    all
}

pub fn changes() -> Vec<Vec<u8>> {
    let steps = vec![MemberStep::Voter(NodeId(4)), MemberStep::Learner(NodeId(5)), MemberStep::Remove(NodeId(3))];
    fuzz::encoded_changes(&[NodeId(1), NodeId(2), NodeId(3)], &steps)
}

pub fn metas() -> Vec<Vec<u8>> {
    let of = |members| SnapshotMeta { index: Index(300), term: Term(3), members }.encode().to_vec();
    members().into_iter().map(of).collect()
}

/// One chunk, and one item of each kind.
pub fn chunks() -> Vec<Vec<u8>> {
    let meta = metas().remove(0);
    let item = |kind: u8, write: &dyn Fn(&mut Writer)| {
        let mut w = Writer::default();
        w.u8(kind);
        write(&mut w);
        w.finish().to_vec()
    };
    let items = vec![
        item(1, &|w| {
            w.u8(1);
            w.bytes(b"cluster");
            w.varint(300);
            w.varint(3);
            w.bytes(&meta);
        }),
        item(2, &|w| {
            w.u8(1);
            w.bytes(b"key");
            w.raw(b"value");
        }),
        item(3, &|w| {
            w.varint(1);
            w.zigzag(0);
            w.zigzag(9);
        }),
        item(4, &|w| {
            w.zigzag(0);
            w.varint(100);
        }),
        item(5, &|w| w.raw(b"data")),
        item(6, &|w| {
            w.varint(3);
            w.varint(100);
        }),
    ];
    let payload = joined(items.clone());
    let mut chunk = 0x4b4e_4843u32.to_le_bytes().to_vec();
    chunk.extend_from_slice(&[0; 4]);
    chunk.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    chunk.extend_from_slice(&payload);
    items.into_iter().chain([chunk]).collect()
}

fn records_of(text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let mut record = |kind: u8, index: u64, term: u64, payload: &[u8]| {
        body.push(kind);
        body.extend_from_slice(&0u32.to_le_bytes());
        body.extend_from_slice(&index.to_le_bytes());
        body.extend_from_slice(&term.to_le_bytes());
        body.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        body.extend_from_slice(payload);
    };
    for (at, word) in text.split(' ').enumerate() {
        let number = |from: usize| word[from..].parse::<u64>().unwrap_or(at as u64);
        match &word[..1] {
            "e" => record(1, number(1), 2, &[&[0u8][..], b"data"].concat()),
            "h" => record(2, number(1), 2, &1u64.to_le_bytes()),
            "m" => record(3, number(1), 2, &metas()[0]),
            _ => record(4, number(1), 2, &metas()[0]),
        }
    }
    body
}

pub fn wal_bodies() -> Vec<Vec<u8>> {
    let header = Header { epoch: 1, first_seq: 1, identity: Identity { cluster_id: "fuzz".into(), node: NodeId(1) } };
    vec![records_of("h1 e2 e3 m9 c9 e10"), records_of("e1"), header.encode()]
}

/// What a segment holds behind its header.
pub fn wal_segments() -> Vec<Vec<u8>> {
    use buttress_wal::{Disk, Options, Wal, disk::Open, faulty::MemDisk};
    let disk = std::sync::Arc::new(MemDisk::new(0));
    let identity = Identity { cluster_id: "fuzz".into(), node: NodeId(1) };
    let options = Options { fill_bytes: 0, ..Options::default() };
    let (mut log, _) = Wal::open(disk.clone(), identity, options).expect("an empty disk opens");
    let mut batch = Batch::default();
    for index in 1..4 {
        let state = buttress_wal::HardState { term: Term(2), vote: NodeId(1), commit: Index(index - 1) };
        batch.hard_state(0, state);
        batch.entry(0, &buttress_wal::LogEntry { index: Index(index), term: Term(2), kind: 0, data: bytes("data") });
        log.commit(&mut batch).expect("memory takes it");
        batch.clear();
    }
    batch.marker(0, &Marker { index: Index(9), term: Term(2), meta: metas()[0].clone().into() });
    log.commit(&mut batch).expect("memory takes it");
    let file = disk.open("wal-0000000000000001.seg", Open::Write).expect("the first segment is there");
    let mut content = vec![0; file.len().expect("memory knows") as usize];
    let got = buttress_wal::disk::read_full(&*file, &mut content, 0).expect("memory can be read");
    vec![content[buttress_wal::format::HEADER_BYTES.min(got)..got].to_vec()]
}

/// A store's place, and bodies of frames.
pub fn wal_frames() -> Vec<Vec<u8>> {
    let of = |head: [u8; 3], frames: &[&str]| {
        let mut all = head.to_vec();
        all.extend_from_slice(&joined(frames.iter().map(|frame| records_of(frame))));
        all
    };
    vec![
        of([0, 0, 2], &["h0 e1 e2", "e3 h2", "e2 e3 e4"]),
        of([3, 2, 0], &["h1 e1 e2 e3", "e4 h3 e5"]),
        of([9, 2, 2], &["h1 e1", "m9 h9", "e10 e11"]),
        of([9, 1, 1], &["h1 e8 e9 e10"]),
    ]
}

pub fn store_frames() -> Vec<Vec<u8>> {
    let batch = batches().remove(0);
    let mut frame = (batch.len() as u32).to_le_bytes().to_vec();
    for number in [7u64, 100, 0, 1, 5] {
        frame.extend_from_slice(&number.to_le_bytes());
    }
    frame.extend_from_slice(&batch);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&1u32.to_le_bytes()), &frame);
    vec![[&crc.to_le_bytes()[..], &frame].concat()]
}

pub fn checkpoints() -> Vec<Vec<u8>> {
    let mut segment = Writer::default();
    segment.u8(1);
    segment.zigzag(99);
    segment.varint(5000);
    segment.zigzag(5);
    segment.varint(100);
    segment.varint(200);
    segment.list(&[(0i64, 32u64), (50, 2000)], |w, (base, at)| {
        w.zigzag(*base);
        w.varint(*at);
        w.zigzag(4);
    });
    let mut log = Writer::default();
    log.zigzag(0);
    log.zigzag(100);
    let mut head = Writer::default();
    head.u8(1);
    head.varint(300);
    head.varint(3);
    head.bytes(&metas()[0]);
    let mut text = "buttress-store 1\ncluster fuzz\nnode 1\ndirectory store-0000000000000001 ready\n".to_owned();
    text += &format!("crc {:08x}\n", crc32c::crc32c(text.as_bytes()));
    vec![segment.finish().to_vec(), log.finish().to_vec(), head.finish().to_vec(), text.into_bytes()]
}

pub fn batches() -> Vec<Vec<u8>> {
    let built = |mut builder: Builder| {
        builder.push(1, Some(b"k"), Some(b"value"), &[(b"h", None), (b"i", Some(b"j"))]).push(2, None, None, &[]);
        builder.build().expect("records were pushed").to_vec()
    };
    let producer = Producer { id: 4, epoch: 1, base_sequence: 9 };
    vec![built(Builder::new()), built(Builder::new().producer(producer))]
}

/// Two batches one behind the other, wanted from the first on.
pub fn fetched() -> Vec<Vec<u8>> {
    let batches = batches();
    let mut second = batches[1].clone();
    second[..8].copy_from_slice(&2i64.to_be_bytes());
    vec![[&[0, 4][..], &batches[0], &second].concat(), [&[1, 2][..], &batches[0]].concat()]
}

/// The conversation of RFC 7677.
pub fn scram() -> Vec<Vec<u8>> {
    let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    vec![format!("{first}\nv=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").into_bytes()]
}

pub fn urls() -> Vec<Vec<u8>> {
    [
        "kafka://al%40ice@a:1,b:2?tls=/etc/ca.pem&sasl=scram-sha-256&password-file=/run/secret&prefix=plant",
        "etcd://root@a:1?tls=system&cert=c.pem&key=c.key&namespace=app/&cleartext=yes",
        "a:1,[::1]:2",
    ]
    .map(|url| url.as_bytes().to_vec())
    .to_vec()
}

/// What Kafka's own client packs, with the codec in front.
pub fn packed() -> Vec<Vec<u8>> {
    const GOLDEN: &str = include_str!("../../crates/wire/testdata/kafka_packed.txt");
    let lines = GOLDEN.lines().filter(|line| !line.starts_with('#'));
    let packed = lines.zip(0u8..).map(|(line, codec)| {
        let hex = line.split_once(' ').expect("a name and a batch").1;
        let batch = crate::from_hex(hex).expect("the file holds hexadecimal");
        [&[codec][..], &batch[HEADER_BYTES..]].concat()
    });
    packed.collect()
}

/// The Kafka messages of `crates/wire/testdata`: random ones after Kafka's own schemas, in every version.
fn golden(kind: &str, with_place: bool) -> Vec<Vec<u8>> {
    const GOLDEN: &str = include_str!("../../crates/wire/testdata/kafka_golden.txt");
    let mut all = Vec::new();
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        if words[1] != kind {
            continue;
        }
        let message = crate::from_hex(words[3]).expect("the file holds hexadecimal");
        let place = Api::SERVED.iter().position(|api| api.name == words[0]).expect("the file names APIs");
        let version: i16 = words[2].parse().expect("the file names versions");
        let mut input = Vec::new();
        if with_place {
            input.extend_from_slice(&[place as u8, (version - Api::SERVED[place].min) as u8]);
        }
        input.extend_from_slice(&message);
        all.push(input);
    }
    all
}

pub fn kafka_requests() -> Vec<Vec<u8>> {
    golden("Request", false)
}

pub fn kafka_responses() -> Vec<Vec<u8>> {
    golden("Response", true)
}

/// A group's record with one member, as format 1 has it, and a consumer's subscription.
pub fn kafka_groups() -> Vec<Vec<u8>> {
    let record = b"\0\x01\x02\x01\x08consumer\x01\x05range\x01\x03a-1\x01\x03a-1\x01\x01i\x01a\x0a/127.0.0.1\x90\x4e\xe0\xd4\x03\x01\x05range\x02xy\x01p";
    let subscription = b"\x01\0\x01\0\0\0\x02\0\x05plant\0\x05other\xff\xff\xff\xff";
    vec![record.to_vec(), subscription.to_vec()]
}

/// Packets after MQTT 3.1.1, chapter 3.
pub fn mqtt() -> Vec<Vec<u8>> {
    let connect = b"\x10\x23\0\x04MQTT\x04\xee\0\x3c\0\x03dev\0\x04will\0\x03bye\0\x04user\0\x02pw".to_vec();
    let rest = [
        b"\x30\x07\0\x03a/bhi".to_vec(),
        b"\x32\x09\0\x03a/b\0\x01hi".to_vec(),
        b"\x40\x02\0\x01\x62\x02\0\x01".to_vec(),
        b"\x82\x0b\0\x02\0\x03a/#\0\x00\x01".to_vec(),
        b"\xa2\x07\0\x03\0\x03a/+\xc0\0\xd0\0\xe0\0".to_vec(),
        b"\x20\x02\0\0\x90\x04\0\x02\x01\x80\xb0\x02\0\x03".to_vec(),
    ];
    let together = rest.concat();
    [connect.clone()].into_iter().chain(rest).chain([[connect, together].concat()]).collect()
}

pub fn http_events() -> Vec<Vec<u8>> {
    texts(&[
        "\0{\"machine\":\"m1\",\"seq\":1,\"values\":[1.5,null,true]}",
        "\0[{\"a\":1},{\"b\":\"\\u00e4\\n\"}]",
        "\x01{\"a\":1}\n\n{\"b\":2}\r\n",
        "\x02{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\"partitionkey\":\"k\",\"x\":5,\"data\":{\"a\":1}}",
        "\x02{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\"datacontenttype\":\"x/y\",\"data_base64\":\"aGk=\"}",
        "\x03[{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\"y\":null,\"z\":true}]",
    ])
}

pub fn http_produce() -> Vec<Vec<u8>> {
    texts(&[
        "{\"records\":[{\"key\":\"k\",\"value\":{\"a\":1},\"partition\":1},{\"value\":null},{\"key\":5,\"value\":[1]}]}",
        "{\"records\":[{\"key\":\"aw==\",\"value\":\"aGk=\"}]}",
    ])
}

pub fn http_entries() -> Vec<Vec<u8>> {
    texts(&[
        "{\"guards\":[{\"key\":\"a\",\"mod_revision\":0},{\"lease_alive\":7},{\"cursor\":{\"group\":\"g\",\"topic\":\"t\",\"offset\":null}},{\"log_end\":{\"topic\":\"t\",\"offset\":3}}],\"puts\":[{\"key\":\"a\",\"value\":\"1\",\"lease\":7}],\"deletes\":[\"b\",{\"key_base64\":\"Yw==\"}]}",
        "{\"leases\":[{\"grant\":7,\"ttl_ms\":5000},{\"keep_alive\":8},{\"revoke\":9}],\"state\":[{\"space\":\"s\",\"key\":\"k\"}],\"timers\":[{\"set\":\"i\",\"after_ms\":5,\"key\":\"k\",\"value\":\"v\"},{\"cancel\":\"j\"}]}",
        "{\"appends\":[{\"topic\":\"t\",\"partition\":0,\"records\":[{\"key\":\"k\",\"value\":\"v\",\"timestamp\":5,\"headers\":[{\"name\":\"n\",\"value\":\"x\"}]}],\"sequence\":{\"producer\":\"p\",\"epoch\":1,\"number\":2}}],\"cursors\":[{\"group\":\"g\",\"topic\":\"t\",\"offset\":1,\"metadata\":\"m\"}]}",
    ])
}

pub fn http_topic() -> Vec<Vec<u8>> {
    texts(&[
        "{\"name\":\"telemetry\",\"partitions\":8,\"retention_ms\":1000,\"retention_bytes\":5,\"sequence_fields\":[\"machine\",\"seq\"]}",
    ])
}

pub fn http_requests() -> Vec<Vec<u8>> {
    // gzip of "hi", stored.
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01\x02\0\xfd\xffhi\xac\x2a\x93\xd8\x02\0\0\0";
    let lines = [
        "/events?topic=a+b%26",
        "/topics/t/partitions/0/offsets",
        "/v1/topics/%74/partitions/1/records?offset=-5&max=9",
    ];
    lines.iter().map(|line| [line.as_bytes(), b"\n", gzip].concat()).collect()
}

pub fn sequences() -> Vec<Vec<u8>> {
    texts(&["{\"machine\":\"m1\",\"seq\":5,\"epoch\":2,\"more\":{\"x\":[1,2]}}", "{\"machine\":7,\"seq\":0}"])
}

pub fn windows() -> Vec<Vec<u8>> {
    let row = buttress_events::intake::Window::new(2, 70).to_row();
    vec![row.to_vec(), [&row[..], &[1, 0, 127, 200, 255]].concat()]
}

pub fn manifests() -> Vec<Vec<u8>> {
    texts(&[
        "{\"trigger\":{\"topic\":\"t\",\"max_records\":5},\"http\":true,\"routes\":[\"/a\"],\"grants\":{\"topics\":[\"b\"],\"models\":[\"m\"],\"state\":true},\"limits\":{\"deadline_ms\":5},\"output_partitions\":3,\"audit\":true}",
        "{\"trigger\":{\"topic\":\"t\"},\"name\":\"name\",\"component\":\"sha256:0000000000000000000000000000000000000000000000000000000000000000\"}",
    ])
}

pub fn resources() -> Vec<Vec<u8>> {
    texts(&[
        "{\"name\":\"f\",\"version\":1,\"component\":\"sha256:00\",\"component_bytes\":5,\"trigger\":{\"topic\":\"t\",\"max_records\":5},\"http\":true,\"routes\":[],\"grants\":{\"topics\":[],\"models\":[],\"state\":false},\"limits\":{},\"output_partitions\":1,\"audit\":true,\"created_ms\":1}",
        "{\"name\":\"m\",\"generation\":2,\"digest\":\"sha256:00\",\"kind\":\"trees\",\"size\":9,\"created_ms\":1,\"history\":[{\"generation\":1,\"digest\":\"d\",\"at_ms\":1}]}",
    ])
}

pub fn queries() -> Vec<Vec<u8>> {
    texts(&["path=%2Finfer&x=1+2", "a&path=&path=b"])
}

#[cfg(feature = "engine")]
pub fn models() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../crates/engine/tests/fixtures/tree.onnx").to_vec(),
        include_bytes!("../../crates/engine/tests/fixtures/modes.onnx").to_vec(),
        include_bytes!("../../crates/engine/tests/fixtures/plain_boosted.json").to_vec(),
        include_bytes!("../../crates/engine/tests/fixtures/refused_linear.onnx").to_vec(),
    ]
}

/// A component with a core module that does nothing, and the heads of both kinds of binaries. The examples' components are
/// tens of kilobytes and take a second to compile, which is what the engine's own tests are for.
#[cfg(feature = "engine")]
pub fn components() -> Vec<Vec<u8>> {
    let module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x05\x01\x01f\0\0\x0a\x04\x01\x02\0\x0b";
    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    component.extend_from_slice(&[1, module.len() as u8]);
    component.extend_from_slice(module);
    // A core instance of the module, and an empty component instance.
    component.extend_from_slice(&[2, 4, 1, 0, 0, 0]);
    vec![component, module.to_vec(), b"\0asm\x0d\0\x01\0".to_vec()]
}

/// A body for each path of the gateway, with all that it may hold; the first byte chooses the path.
pub fn etcd_bodies() -> Vec<Vec<u8>> {
    let put = r#"{"key":"Zm9v","value":"YmFy","lease":"7","prev_kv":true}"#;
    let range =
        r#"{"key":"Zm9v","range_end":"Zm9w","limit":"5","sort_order":"DESCEND","sortTarget":4,"keysOnly":true}"#;
    let compare = r#"{"key":"Zm9v","result":"GREATER","target":"VALUE","value":"YQ=="}"#;
    let txn = format!(
        r#"{{"compare":[{compare}],"success":[{{"request_put":{put}}}],"failure":[{{"request_range":{range}}},{{"request_txn":{{"success":[{{"request_delete_range":{{"key":"Zg=="}}}}]}}}}]}}"#
    );
    let watch = r#"{"create_request":{"key":"Zm9v","start_revision":"3","filters":["NOPUT"],"watch_id":9}} {"progress_request":{}}"#;
    let lease = r#"{"ID":"-5","TTL":60,"keys":true,"name":"bmFtZQ==","leader":{"rev":"4"}}"#;
    let bodies = [put, range, &txn, watch, lease, "{}"];
    let path = |path: u8| bodies.iter().map(move |body| [&[path], body.as_bytes()].concat());
    (0..51).flat_map(path).collect()
}

/// Transactions as a client encodes them.
pub fn etcd_txns() -> Vec<Vec<u8>> {
    use buttress_coordination::pb::etcdserverpb as pb;
    use pb::{compare::TargetUnion, request_op::Request};
    use prost::Message;
    let op = |request| pb::RequestOp { request: Some(request) };
    let put = pb::PutRequest { key: "a".into(), value: "1".into(), ..Default::default() };
    let range = pb::RangeRequest { key: "a".into(), range_end: "b".into(), limit: 3, ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: "c".into(), range_end: vec![0].into(), prev_kv: true };
    let compare = pb::Compare {
        result: 1,
        target: 3,
        key: "a".into(),
        range_end: "b".into(),
        target_union: Some(TargetUnion::Value("v".into())),
    };
    let inner = pb::TxnRequest {
        compare: vec![compare.clone()],
        success: vec![op(Request::RequestPut(put))],
        failure: vec![op(Request::RequestDeleteRange(delete))],
    };
    let outer = pb::TxnRequest {
        compare: vec![compare],
        success: vec![op(Request::RequestTxn(inner.clone())), op(Request::RequestRange(range))],
        failure: Vec::new(),
    };
    [inner, outer].iter().map(Message::encode_to_vec).collect()
}
