//! Record batches: golden bytes of another implementation, the refusals, and the model.

use std::io::Write;

use buttress_wire::{
    fuzz,
    records::{self, BatchView, Builder, Codec, HEADER_BYTES, Header, Producer, Record, RecordError},
};
use bytes::Bytes;
use expect_test::{Expect, expect};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

/// As kafka-python 3.0.12 builds it (leader epoch 0), without and with an idempotent producer.
const GOLDEN: &str = "00000000000000000000005b0000000002fe57c7430000000000020000018bcfe568000000018bcfe56807ffffffffffffffffffff\
    ffffffff0000000332000000046d31147b2274223a32312e357d04026102310261010c000e0201000010001304046d320100";
const GOLDEN_PRODUCER: &str = "00000000000000000000005b00000000022930c4960000000000020000018bcfe568000000018bcfe568070000000000\
    00109200037ffffffe0000000332000000046d31147b2274223a32312e357d04026102310261010c000e0201000010001304046d320100";

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn golden_builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .push(1_700_000_000_000, Some(b"m1"), Some(br#"{"t":21.5}"#), &[(b"a", Some(b"1")), (b"a", None)])
        .push(1_700_000_000_007, None, Some(b""), &[])
        .push(1_699_999_999_990, Some(b"m2"), None, &[]);
    builder
}

#[test]
fn the_builder_writes_what_another_implementation_writes() {
    for (golden, producer) in
        [(GOLDEN, None), (GOLDEN_PRODUCER, Some(Producer { id: 4242, epoch: 3, base_sequence: i32::MAX - 1 }))]
    {
        let mut builder = golden_builder();
        if let Some(producer) = producer {
            builder = builder.producer(producer);
        }
        let mut ours = builder.build().unwrap().to_vec();
        // We leave the leader epoch unset; it lies outside the checksum.
        ours[12..16].fill(0);
        assert_eq!(ours, unhex(golden));
        let view = BatchView::parse(ours.into()).unwrap();
        assert_eq!(view.producer(), producer);
        assert_eq!((view.base_timestamp_ms(), view.max_timestamp_ms()), (1_700_000_000_000, 1_700_000_000_007));
        view.check_records().unwrap();
    }
}

#[test]
fn records_come_out_as_they_went_in() {
    let mut bytes = unhex(GOLDEN);
    bytes[..8].copy_from_slice(&100i64.to_be_bytes());
    let view = BatchView::parse(bytes.into()).unwrap();
    assert_eq!((view.base_offset(), view.last_offset(), view.records_count()), (100, 102, 3));
    let records: Vec<Record> = view.records().unwrap().map(Result::unwrap).collect();
    expect![[r#"
        [
            Record {
                offset: 100,
                timestamp_ms: 1700000000000,
                key: Some(
                    b"m1",
                ),
                value: Some(
                    b"{\"t\":21.5}",
                ),
                headers: [
                    Header {
                        key: b"a",
                        value: Some(
                            b"1",
                        ),
                    },
                    Header {
                        key: b"a",
                        value: None,
                    },
                ],
            },
            Record {
                offset: 101,
                timestamp_ms: 1700000000007,
                key: None,
                value: Some(
                    b"",
                ),
                headers: [],
            },
            Record {
                offset: 102,
                timestamp_ms: 1699999999990,
                key: Some(
                    b"m2",
                ),
                value: None,
                headers: [],
            },
        ]
    "#]]
    .assert_debug_eq(&records);
}

/// Sets a field, then length and checksum so that only the field is wrong.
fn with(field: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = unhex(GOLDEN);
    bytes[field..field + value.len()].copy_from_slice(value);
    seal(bytes)
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn gzip(records: &[u8], count: i32) -> Bytes {
    let mut bytes = unhex(GOLDEN);
    bytes.truncate(HEADER_BYTES);
    bytes[22] = 1;
    bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    let mut encoder = GzEncoder::new(bytes, Compression::fast());
    encoder.write_all(records).unwrap();
    seal(encoder.finish().unwrap()).into()
}

fn check(bytes: Vec<u8>, expected: Expect) {
    let bytes = Bytes::from(bytes);
    let error = match BatchView::parse(bytes) {
        Err(error) => format!("parse: {error}"),
        Ok(view) => match view.check_records() {
            Err(error) => format!("check: {error}"),
            Ok(()) => match view.records().and_then(|records| records.collect::<Result<Vec<_>, _>>()) {
                Err(error) => format!("records: {error}"),
                Ok(records) => format!("{} records", records.len()),
            },
        },
    };
    expected.assert_eq(&error);
}

#[test]
fn what_is_wrong_is_said() {
    check(unhex(GOLDEN), expect!["3 records"]);
    check(Vec::new(), expect!["parse: there is no record batch"]);
    check(unhex(GOLDEN)[..16].to_vec(), expect!["parse: record batch ends inside header"]);
    check(unhex(GOLDEN)[..60].to_vec(), expect!["parse: record batch states a length of 91 bytes where 48 are there"]);
    let mut torn = unhex(GOLDEN);
    torn.truncate(HEADER_BYTES - 1);
    check(seal(torn), expect!["parse: record batch ends inside header"]);
    let mut negative = unhex(GOLDEN);
    negative[8..12].copy_from_slice(&(-1i32).to_be_bytes());
    check(negative, expect!["parse: record batch states a length of -1 bytes where 91 are there"]);
    check(with(16, &[1]), expect!["parse: record batch has magic 1, only 2 is accepted"]);
    let mut flipped = unhex(GOLDEN);
    flipped[70] ^= 1;
    check(flipped, expect!["parse: record batch has CRC32C a46eec6c where fe57c743 is stated"]);
    let lie = i32::MAX.to_be_bytes();
    check(
        with(57, &lie),
        expect!["parse: record batch states 2147483647 records (last offset delta 2), which 42 bytes cannot hold"],
    );
    check(
        with(57, &0i32.to_be_bytes()),
        expect!["parse: record batch states 0 records (last offset delta 2), which 42 bytes cannot hold"],
    );
    check(
        with(23, &3i32.to_be_bytes()),
        expect!["parse: record batch states 3 records (last offset delta 3), which 42 bytes cannot hold"],
    );
    check(with(61, &[0x7e]), expect!["check: record 0 is malformed: its length"]);
    check(with(64, &[2]), expect!["check: record 0 is malformed: its offset is out of order"]);
    let two = [with(23, &1i32.to_be_bytes()), with(57, &2i32.to_be_bytes())];
    let mut short = two[0].clone();
    short[57..61].copy_from_slice(&two[1][57..61]);
    check(seal(short), expect!["check: 9 bytes are left over after the last record"]);
    let mut large = unhex(GOLDEN);
    large.resize(2 << 20, 0);
    check(seal(large), expect!["parse: record batch is 2097152 bytes, more than the limit of 1052672"]);
}

#[test]
fn gzip_is_unpacked_within_bounds() {
    let plain = unhex(GOLDEN)[HEADER_BYTES..].to_vec();
    let view = BatchView::parse(gzip(&plain, 3)).unwrap();
    assert_eq!(view.codec(), Codec::Gzip);
    assert_eq!(view.records().unwrap().map(Result::unwrap).count(), 3);

    check(gzip(&plain, 4).into(), expect!["records: record 3 is malformed: its length"]);
    check(gzip(&plain, 2).into(), expect!["records: 9 bytes are left over after the last record"]);
    // Forty kilobytes that hold 40 MiB of zeros.
    check(gzip(&vec![0; 40 << 20], 3).into(), expect!["records: records unpack to more than 33685504 bytes"]);
    check(with(22, &[1]), expect!["records: compressed records are not valid gzip"]);
    check(with(22, &[7]), expect!["records: records are compressed with codec 7, which cannot be decoded here"]);
}

/// The golden batch with its records packed, by whoever can pack.
fn packed(codec: u8, content: &[u8]) -> Bytes {
    let mut batch = unhex(GOLDEN)[..HEADER_BYTES].to_vec();
    batch.extend_from_slice(content);
    batch[22] = codec;
    seal(batch).into()
}

/// As snappy-java frames it: blocks of at most so many bytes.
fn xerial(plain: &[u8], block: usize) -> Vec<u8> {
    let mut out = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for part in plain.chunks(block) {
        let part = snap::raw::Encoder::new().compress_vec(part).unwrap();
        out.extend_from_slice(&(part.len() as u32).to_be_bytes());
        out.extend_from_slice(&part);
    }
    out
}

fn lz4(plain: &[u8], info: lz4_flex::frame::FrameInfo) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn what_kafka_s_own_client_packs_is_read_with_every_codec() {
    let golden = include_str!("../testdata/kafka_packed.txt");
    let mut seen = Vec::new();
    for line in golden.lines().filter(|line| !line.starts_with('#')) {
        let (name, hex) = line.split_once(' ').unwrap();
        let view = BatchView::parse(unhex(hex).into()).unwrap();
        assert_eq!(view.codec().to_string(), name);
        let records: Vec<Record> = view.records().unwrap().map(Result::unwrap).collect();
        assert_eq!(records.len(), 20);
        for (n, record) in records.iter().enumerate() {
            let value = format!(r#"{{"machine":"press-{n}","temperature":21.5}}"#);
            assert_eq!(
                (record.key.as_deref(), record.value.as_deref()),
                (Some(format!("m{n}").as_bytes()), Some(value.as_bytes()))
            );
            assert_eq!((record.offset, record.timestamp_ms), (n as i64, 1_700_000_000_000 + n as i64));
        }
        seen.push(name);
    }
    assert_eq!(seen, ["gzip", "snappy", "lz4", "zstd"]);
}

/// The forms that clients other than Kafka's own send.
#[test]
fn every_form_of_a_codec_is_read() {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameInfo};
    let plain = unhex(GOLDEN)[HEADER_BYTES..].to_vec();
    let skipped = [&0x184d_2a5bu32.to_le_bytes()[..], &3u32.to_le_bytes(), b"abc"].concat();
    let linked = FrameInfo::new().block_mode(BlockMode::Linked).block_size(BlockSize::Max256KB).content_checksum(true);
    let sized = FrameInfo::new().content_size(Some(plain.len() as u64)).block_checksums(true);
    let forms = [
        ("a raw block of snappy", 2, snap::raw::Encoder::new().compress_vec(&plain).unwrap()),
        ("frames of snappy-java", 2, xerial(&plain, 10)),
        ("lz4 with linked blocks", 3, lz4(&plain, linked)),
        ("lz4 with a size and checksums", 3, lz4(&plain, sized)),
        ("two frames of lz4", 3, [lz4(&plain[..9], FrameInfo::new()), lz4(&plain[9..], FrameInfo::new())].concat()),
        ("a frame of lz4 behind one to skip", 3, [&skipped[..], &lz4(&plain, FrameInfo::new())].concat()),
        ("zstd", 4, zstd(&plain)),
        ("two frames of zstd", 4, [zstd(&plain[..9]), zstd(&plain[9..])].concat()),
        ("a frame of zstd behind one to skip", 4, [&skipped[..], &zstd(&plain)].concat()),
    ];
    for (form, codec, content) in forms {
        let records = BatchView::parse(packed(codec, &content)).unwrap().records().expect(form);
        let records: Vec<Record> = records.map(|record| record.expect(form)).collect();
        assert_eq!(records.len(), 3, "{form}");
        // Half of it is an error, of the codec or of the records, and never a panic.
        let half = BatchView::parse(packed(codec, &content[..content.len() / 2])).unwrap();
        assert!(half.records().and_then(|records| records.collect::<Result<Vec<_>, _>>()).is_err(), "half of {form}");
    }
}

#[test]
fn what_unpacks_to_too_much_is_refused_in_every_codec() {
    let zeros = vec![0; 40 << 20];
    for (codec, content) in [
        (
            2,
            snap::raw::Encoder::new()
                .compress_vec(&vec![0; 20 << 20])
                .map(|one| {
                    let frame = [&(one.len() as u32).to_be_bytes()[..], &one].concat();
                    [b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01", &frame[..], &frame[..]].concat()
                })
                .unwrap(),
        ),
        (3, lz4(&zeros, lz4_flex::frame::FrameInfo::new().block_size(lz4_flex::frame::BlockSize::Max4MB))),
        (4, zstd(&zeros)),
    ] {
        let whole = packed(codec, &content);
        if whole.len() > 1 << 20 {
            // snappy packs to a twentieth at best, so that the limit of a batch is met first.
            assert_eq!((codec, BatchView::parse(whole).unwrap_err().code()), (2, buttress_core::Code::TOO_LARGE));
            continue;
        }
        let error = BatchView::parse(whole).unwrap().records().unwrap_err();
        assert_eq!(error, RecordError::Bomb, "codec {codec}");
        assert_eq!(error.code(), buttress_core::Code::TOO_LARGE);
    }
}

#[test]
fn what_is_of_no_codec_says_so() {
    check(with(22, &[2]), expect!["records: compressed records are not valid snappy"]);
    check(with(22, &[3]), expect!["records: compressed records are not valid lz4"]);
    check(with(22, &[4]), expect!["records: compressed records are not valid zstd"]);
    // Sizes that lie: 4 GiB of snappy in a few bytes, and a window of zstd that nobody makes room for.
    check(packed(2, b"\xff\xff\xff\xff\x0f\0\0").into(), expect!["records: compressed records are not valid snappy"]);
    check(
        packed(2, b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\xff\xff\xff\xff").into(),
        expect!["records: compressed records are not valid snappy"],
    );
    check(
        packed(4, b"\x28\xb5\x2f\xfd\0\xff\x01\0\0").into(),
        expect!["records: compressed records are not valid zstd"],
    );
}

#[test]
fn a_record_set_is_split_into_its_batches() {
    let one = unhex(GOLDEN);
    let set: Bytes = [&one[..], &one[..]].concat().into();
    assert_eq!(records::split_batches(set.clone()).unwrap().len(), 2);
    assert_eq!(records::split_batches(set.slice(..set.len() - 1)), Err(RecordError::Length { stated: 91, actual: 90 }));
    assert_eq!(records::split_batches(Bytes::new()), Err(RecordError::Empty));
}

#[test]
fn an_empty_builder_builds_nothing() {
    assert_eq!(Builder::new().build(), None);
}

prop_compose! {
    fn record()(
        timestamp_ms in prop_oneof![0i64..4_000_000_000_000, Just(-1)],
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
        headers in prop::collection::vec(("[a-z]{0,4}", prop::option::of(prop::collection::vec(any::<u8>(), 0..9))), 0..4),
    ) -> Record {
        Record {
            offset: 0,
            timestamp_ms,
            key: key.map(Bytes::from),
            value: value.map(Bytes::from),
            headers: headers
                .into_iter()
                .map(|(key, value)| Header { key: Bytes::from(key.into_bytes()), value: value.map(Bytes::from) })
                .collect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_built_batch_gives_its_records_back(mut given in prop::collection::vec(record(), 1..40)) {
        let mut builder = Builder::new();
        for (offset, record) in given.iter_mut().enumerate() {
            record.offset = offset as i64;
            let headers: Vec<(&[u8], Option<&[u8]>)> =
                record.headers.iter().map(|h| (&h.key[..], h.value.as_deref())).collect();
            let before = builder.size();
            builder.push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &headers);
            let bound = Builder::record_size_max(record.key.as_deref(), record.value.as_deref(), &headers);
            prop_assert!(builder.size() - before <= bound);
        }
        let bytes = builder.build().unwrap();
        let view = BatchView::parse(bytes.clone()).unwrap();
        view.check_records().unwrap();
        prop_assert_eq!(Some(view.max_timestamp_ms()), given.iter().map(|r| r.timestamp_ms).max());
        let records: Vec<Record> = view.records().unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(&records, &given);

        let packed = gzip(&bytes[HEADER_BYTES..], given.len() as i32);
        let unpacked = BatchView::parse(packed).unwrap().records().unwrap().map(Result::unwrap).count();
        prop_assert_eq!(unpacked, given.len());
    }

    #[test]
    fn a_flipped_bit_never_passes_for_a_good_batch(at in 12usize..103, bit in 0u8..8) {
        let mut bytes = unhex(GOLDEN);
        bytes[at] ^= 1 << bit;
        // The leader epoch is not covered by the checksum.
        prop_assert_eq!(BatchView::parse(bytes.into()).is_ok(), at < 16);
    }

    #[test]
    fn random_bytes_do_no_harm(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz::fuzz_record_batch(&data);
        fuzz::fuzz_record_batch_with_crc(&data);
    }

    #[test]
    fn damaged_batches_with_a_good_checksum_do_no_harm(
        changes in prop::collection::vec((21usize..103, any::<u8>()), 1..8),
        cut in 61usize..104,
    ) {
        let mut bytes = unhex(GOLDEN);
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes.truncate(cut);
        fuzz::fuzz_record_batch_with_crc(&bytes);
    }
}

/// A broker keeps a batch's offsets when compaction takes records out of it; a producer may not send such a batch.
#[test]
fn a_batch_that_was_compacted_is_read_where_it_is_stored() {
    let whole = golden_builder().build().unwrap();
    let mut bytes = whole.to_vec();
    // The records' length, attributes, timestamp and then offset delta: the second of three goes.
    let sizes: Vec<usize> = {
        let mut sizes = Vec::new();
        let mut at = HEADER_BYTES;
        while at < bytes.len() {
            let size = 1 + usize::from(bytes[at] >> 1);
            sizes.push(size);
            at += size;
        }
        sizes
    };
    bytes.drain(HEADER_BYTES + sizes[0]..HEADER_BYTES + sizes[0] + sizes[1]);
    bytes[57..61].copy_from_slice(&2i32.to_be_bytes());
    let length = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let bytes = Bytes::from(seal(bytes));
    assert!(matches!(BatchView::parse(bytes.clone()), Err(RecordError::Count { count: 2, last_offset_delta: 2, .. })));
    let stored = BatchView::parse_stored(bytes).unwrap();
    let offsets: Vec<i64> = stored.records().unwrap().map(|record| record.unwrap().offset).collect();
    assert_eq!((offsets, stored.last_offset()), (vec![0, 2], 2));
}

#[test]
fn a_batch_becomes_part_of_a_transaction_and_nothing_else_of_it_changes() {
    let batch = BatchView::parse(golden_builder().build().unwrap()).unwrap();
    let producer = Producer { id: 7, epoch: 2, base_sequence: 40 };
    let sent = BatchView::parse(batch.in_transaction(producer)).unwrap();
    assert!(sent.is_transactional() && !sent.is_control() && !batch.is_transactional());
    assert_eq!(sent.producer(), Some(producer));
    let records = |batch: &BatchView| batch.records().unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(records(&sent), records(&batch));
    assert!(BatchView::parse(batch.as_control()).unwrap().is_control());
}
