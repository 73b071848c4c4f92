//! Entry points for fuzzers: every body and every target that a client can send.

use buttress_core::{Code, Entry, Error, LogId, TimeMs};
use bytes::Bytes;
use http::{Request, header};

use super::{Target, admin, entries, events, proxy, request};

/// Largest body that is unpacked here.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// `POST /events`; the first byte chooses the media type.
///
/// # Panics
/// Where a body is taken for records that it does not hold.
pub fn fuzz_events(data: &[u8]) {
    const MEDIA: &[Option<&str>] = &[
        None,
        Some("application/x-ndjson"),
        Some("application/cloudevents+json"),
        Some("application/cloudevents-batch+json"),
    ];
    let Some((media, body)) = data.split_first() else { return };
    let media = MEDIA[usize::from(*media) % MEDIA.len()];
    let Ok(records) = events::records(media, body, 1) else { return };
    for record in &records {
        let plain = media.is_none() || media == Some("application/x-ndjson");
        let object = record.value.as_deref().is_some_and(|value| value.starts_with(b"{"));
        assert!(!plain || object, "a record is an object: {record:?}");
        assert!(record.value.as_ref().is_none_or(|value| value.len() <= body.len()), "nothing is made up");
    }
}

/// The REST proxy's produce request, in both formats.
pub fn fuzz_produce(data: &[u8]) {
    let Ok(produce) = proxy::Produce::parse(data) else { return };
    for record in &produce.records {
        for format in [proxy::Format::Json, proxy::Format::Binary] {
            let _ = (format.bytes(record.key, true), format.bytes(record.value, false));
        }
    }
}

/// A new topic.
///
/// # Panics
/// Where one is taken that the log would refuse.
pub fn fuzz_topic(data: &[u8]) {
    if let Ok(topic) = admin::CreateTopic::parse(data) {
        assert!(super::check_topic_name(&topic.name).is_ok() && topic.partitions > 0);
    }
}

/// `POST /v1/entries`, where topic `t` has one partition.
///
/// # Panics
/// Where an entry is taken that its own codec does not give back.
pub fn fuzz_entries(data: &[u8]) {
    let log = |topic: &str, _| match topic {
        "t" => Ok(LogId(1)),
        _ => Err(Error::new(Code::TOPIC_UNKNOWN, "there is only t")),
    };
    let reader = entries::Reader { log: &log, now: TimeMs(1_700_000_000_000) };
    if let Ok((entry, places)) = reader.parse(data) {
        assert_eq!(entry.appends.len(), places.len());
        assert_eq!(Entry::decode(entry.encode()).as_ref(), Ok(&entry));
    }
}

/// A path and a query, and the packed body behind the first line.
///
/// # Panics
/// Where a body grows beyond its limit.
pub fn fuzz_request(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    if let Ok(line) = std::str::from_utf8(&data[..end]) {
        let (path, query) = line.split_once('?').unwrap_or((line, ""));
        let _ = Target::parse(path).map(|target| target.name());
        let _ = (request::query(query, "topic"), request::number(query, "offset"));
    }
    let packed = Bytes::copy_from_slice(data.get(end + 1..).unwrap_or_default());
    let packed = Request::builder().header(header::CONTENT_ENCODING, "gzip").body(packed).expect("a plain request");
    if let Ok(body) = request::body(&packed, BODY_BYTES_MAX) {
        assert!(body.len() <= BODY_BYTES_MAX);
    }
}
