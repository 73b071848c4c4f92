//! Entry points for fuzzers, one per decoder, which the property tests run as well. Each asserts what must hold for
//! any bytes whatever: no panic, no allocation by a lying count, and what decodes encodes to the same again.

use bytes::Bytes;

use crate::{
    kafka::{self, Api, Request},
    records::{self, BatchView},
};

/// Kafka's record batches: an accepted batch has as many records as it states, or says why not.
pub fn fuzz_record_batch(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let _ = records::split_batches(bytes.clone());
    let Ok(batch) = BatchView::parse(bytes) else { return };
    let walked = batch.check_records();
    let Ok(iterator) = batch.records() else { return };
    let decoded: Result<Vec<_>, _> = iterator.collect();
    if batch.codec() == records::Codec::None {
        assert_eq!(walked.is_ok(), decoded.is_ok(), "the walk and the decoder agree: {walked:?} {decoded:?}");
    }
    if let Ok(decoded) = decoded {
        assert_eq!(decoded.len(), batch.records_count() as usize);
    }
}

/// The same for bytes with a CRC that fits, so that the records are reached.
pub fn fuzz_record_batch_with_crc(data: &[u8]) {
    let mut data = data.to_vec();
    if data.len() >= records::HEADER_BYTES {
        let length = (data.len() - 12) as i32;
        data[8..12].copy_from_slice(&length.to_be_bytes());
        data[16] = 2;
        let crc = crc32c::crc32c(&data[21..]);
        data[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    fuzz_record_batch(&data);
}

/// The packed records of a batch; the first byte chooses how they are packed. What unpacks stays within its bound.
pub fn fuzz_unpack(data: &[u8]) {
    use records::Codec;
    let [codec, packed @ ..] = data else { return };
    let codec = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd][usize::from(codec % 4)];
    if let Ok(content) = crate::compression::unpack(codec, Bytes::copy_from_slice(packed)) {
        assert!(content.len() <= records::DECOMPRESSED_BYTES_MAX, "{} bytes", content.len());
    }
}

/// Kafka requests of every API and version.
pub fn fuzz_kafka_request(data: &[u8]) {
    if let Ok((header, request)) = Request::decode(Bytes::copy_from_slice(data)) {
        kafka::check_request_round_trip(&header, &request);
    }
}

/// Kafka responses; the first two bytes choose API and version.
pub fn fuzz_kafka_response(data: &[u8]) {
    let [api, version, message @ ..] = data else { return };
    let api = &Api::SERVED[usize::from(*api) % Api::SERVED.len()];
    let version = api.min + i16::from(*version) % (api.max - api.min + 1);
    kafka::check_response_round_trip(api, version, Bytes::copy_from_slice(message));
}
