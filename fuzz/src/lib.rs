//! Fuzzing: every decoder of bytes that somebody else wrote, as a plain `fn(&[u8])`, in one table.
//!
//! A target may answer whatever it likes; it fails by a panic, which includes the assertions that the targets themselves
//! make (a round trip changes nothing, two ways of reading agree, nothing is larger than what was sent). The functions
//! live beside the decoders, in each crate's `fuzz` module; here stand their names, the words that their formats are
//! made of, and what a run starts from:
//!
//! 1. [`Target::seeds`]: valid inputs, made by the production encoders when a run starts, so they never grow stale;
//! 2. `corpus/<target>.txt`: inputs that reached something new in a long run, one in hexadecimal per line;
//! 3. `regressions/<target>.txt`: inputs that once failed, each with a line that says how.
//!
//! Two drivers use the table. `libfuzzer/` is the long one, guided by coverage (`cargo xtask fuzz`). [`short`] needs
//! nothing but the pinned toolchain: a fixed number of seeded mutations, the same on every machine
//! (`cargo xtask fuzz --short`).

pub mod mutate;
mod seeds;
pub mod short;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// One decoder.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// What it reads, for people.
    pub reads: &'static str,
    pub run: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What the format is made of.
    pub words: &'static [&'static str],
    /// Inputs of a short run. What is slow has fewer: the whole stays below a minute in a build without optimisation.
    pub short_inputs: u32,
    /// Longer inputs are not tried.
    pub bytes_max: usize,
}

const JSON: &[&str] =
    &["{", "}", "[", "]", "\"", ":", ",", "null", "true", "1e999", "-0", "\\u0000", "\\ud800", "18446744073709551616"];

macro_rules! targets {
    ($($(#[$when:meta])? $name:literal, $reads:literal, $run:path, $seeds:path, $words:expr, $inputs:literal, $bytes:literal;)*) => {
        pub const TARGETS: &[Target] = &[$($(#[$when])? Target {
            name: $name,
            reads: $reads,
            run: $run,
            seeds: $seeds,
            words: $words,
            short_inputs: $inputs,
            bytes_max: $bytes,
        },)*];
    };
}

targets! {
    "entry", "an encoded entry", buttress_core::fuzz::fuzz_entry, seeds::entries, &["device:", "kafka:"], 80_000, 4096;
    "peer-message", "a consensus message", buttress_consensus::fuzz::fuzz_message, seeds::messages, &[], 100_000, 4096;
    "peer-sequence", "consensus messages one after the other, into a replica", buttress_consensus::fuzz::fuzz_step, seeds::message_sequences, &["\0\0"], 12_000, 4096;
    "peer-frames", "a peer's connection", buttress_node::transport::fuzz::fuzz_frames, seeds::frames, &["BTRS"], 100_000, 4096;
    "member-change", "a logged change of members", buttress_consensus::fuzz::fuzz_change, seeds::changes, &[], 80_000, 512;
    "snapshot-meta", "index, term and member list of a snapshot", buttress_consensus::fuzz::fuzz_snapshot_meta, seeds::metas, &[], 80_000, 512;
    "snapshot-chunk", "a chunk of a snapshot and what is in it", buttress_node::store::fuzz::fuzz_snapshot, seeds::chunks, &[], 80_000, 4096;
    "snapshot-rows", "the rows of a snapshot, opened as a machine", buttress_state::fuzz::fuzz_rows, seeds::rows, &["device:m", "kafka:"], 25_000, 8192;
    "apply", "entries one after the other, into the state machine", buttress_state::fuzz::fuzz_apply, seeds::entry_sequences, &["device:", "kafka:"], 4_000, 8192;
    "remembered-result", "a result remembered for retries", buttress_state::fuzz::fuzz_result, seeds::results, &["BT0301"], 80_000, 1024;
    "wal-segment", "headers and records of a log segment", buttress_wal::fuzz::fuzz_segment, seeds::wal_bodies, &["BUTTRWAL", "WALF"], 80_000, 8192;
    "wal-open", "a log's directory", buttress_wal::fuzz::fuzz_open, seeds::wal_segments, &["WALF"], 10_000, 8192;
    "wal-restore", "a log with good checksums and any contents, up to a running replica", buttress_wal::fuzz::fuzz_restore, seeds::wal_frames, &[], 3_000, 4096;
    "backup", "a backup file", buttress_node::backup::fuzz::fuzz_backup, seeds::chunks, &["BUTTRESS"], 6_000, 4096;
    "store-frame", "a frame of a record segment", buttress_node::store::fuzz::fuzz_frame, seeds::store_frames, &[], 80_000, 4096;
    "store-checkpoint", "what a checkpoint says of itself", buttress_node::store::fuzz::fuzz_checkpoint, seeds::checkpoints, &["buttress-store", "cluster ", "directory store-", "crc "], 100_000, 4096;
    "record-batch", "a Kafka record batch", buttress_wire::fuzz::fuzz_record_batch_with_crc, seeds::batches, &[], 100_000, 8192;
    "records-packed", "the packed records of a batch, of every codec", buttress_wire::fuzz::fuzz_unpack, seeds::packed, &["SNAPPY\0", "\x04\"M\x18"], 30_000, 4096;
    "kafka-request", "a Kafka request", buttress_wire::fuzz::fuzz_kafka_request, seeds::kafka_requests, &[], 100_000, 4096;
    "kafka-response", "a Kafka response", buttress_wire::fuzz::fuzz_kafka_response, seeds::kafka_responses, &[], 100_000, 4096;
    "bridge-fetch", "the records that a user's Kafka has sent", buttress_bridge::fuzz::fuzz_fetch, seeds::fetched, &[], 60_000, 8192;
    "bridge-scram", "a user's Kafka in a conversation of SCRAM", buttress_bridge::fuzz::fuzz_scram, seeds::scram, &["r=", ",s=", ",i=4096", "v=", "e="], 1_500, 1024;
    "bridge-url", "the address of a user's engine", buttress_bridge::fuzz::fuzz_url, seeds::urls, &["kafka://", "etcd://", "@", "?", "&", "=", "%", "tls", "password-file", ","], 60_000, 1024;
    "kafka-group", "the record of a consumer group, or a consumer's subscription", buttress_events::kafka::fuzz::fuzz_group, seeds::kafka_groups, &["consumer", "range", "plant"], 80_000, 2048;
    "mqtt", "an MQTT connection", buttress_wire::mqtt::fuzz::fuzz_mqtt_decode, seeds::mqtt, &["MQTT", "\0\x04MQTT\x04", "#", "+", "/"], 80_000, 2048;
    "http-events", "the body of POST /events", buttress_events::http::fuzz::fuzz_events, seeds::http_events, JSON, 80_000, 4096;
    "http-produce", "the body of a REST proxy's produce", buttress_events::http::fuzz::fuzz_produce, seeds::http_produce, JSON, 80_000, 4096;
    "http-topic", "the body of POST /v1/topics", buttress_events::http::fuzz::fuzz_topic, seeds::http_topic, JSON, 50_000, 2048;
    "http-entries", "the body of POST /v1/entries", buttress_events::http::fuzz::fuzz_entries, seeds::http_entries, JSON, 60_000, 4096;
    "http-request", "path, query and packed body of a request", buttress_events::http::fuzz::fuzz_request, seeds::http_requests, &["/v1/topics/", "%2F", "%", "?topic=", "&offset=", "\n"], 40_000, 2048;
    "sequence-fields", "a device's record with its sequence", buttress_events::ingest::fuzz_sequence_of, seeds::sequences, JSON, 80_000, 1024;
    "device-window", "a device's window of an intake, and numbers that come", buttress_events::intake::fuzz_window, seeds::windows, &[], 80_000, 256;
    "etcd-gateway", "a body of etcd's JSON gateway", buttress_coordination::edge::etcd::fuzz::fuzz_gateway, seeds::etcd_bodies, JSON, 20_000, 2048;
    "etcd-txn", "an encoded etcd transaction", buttress_coordination::edge::etcd::fuzz::fuzz_txn, seeds::etcd_txns, &["\x12", "\x1a", "\x22"], 40_000, 2048;
    "http2-connection", "what a client of HTTP/2 sends, whole and in pieces", buttress_http2::fuzz::fuzz_connection, buttress_http2::fuzz::connections, &["\0\0\x04\x08\0", "\0\0\0\x04\x01\0\0\0\0", "\0\0\0\0\x01"], 30_000, 4096;
    "http2-headers", "compressed headers, one block after the other", buttress_http2::fuzz::fuzz_hpack, buttress_http2::fuzz::blocks, &["\x20", "\x40", "\0\x02"], 60_000, 2048;
    "http2-huffman", "the Huffman code of header texts", buttress_http2::fuzz::fuzz_huffman, buttress_http2::fuzz::texts, &[], 60_000, 256;
    "function-manifest", "a function's manifest", buttress_functions::fuzz::fuzz_manifest, seeds::manifests, JSON, 50_000, 2048;
    "function-resource", "a stored function or model resource", buttress_functions::fuzz::fuzz_resources, seeds::resources, JSON, 50_000, 4096;
    "function-query", "the query of a deployment", buttress_functions::fuzz::fuzz_query, seeds::queries, &["path=", "%", "&"], 50_000, 512;
    "function-batch", "record batches on their way into a function", buttress_functions::fuzz::fuzz_batches, seeds::batches, &[], 60_000, 8192;
    "proxy-request", "the head of a request to the proxy", buttress_gateway::fuzz::request, buttress_gateway::fuzz::requests, &["\r\n", "Host: ", "Content-Length: ", "Transfer-Encoding: chunked", "Connection: ", "Upgrade: ", "HTTP/1.1", "http://"], 60_000, 4096;
    "proxy-response", "the head of an upstream's answer", buttress_gateway::fuzz::response, buttress_gateway::fuzz::responses, &["\r\n", "HTTP/1.1 ", "Content-Length: ", "Transfer-Encoding: chunked"], 40_000, 2048;
    "proxy-chunks", "a chunked body", buttress_gateway::fuzz::chunks, buttress_gateway::fuzz::bodies, &["\r\n", "0\r\n\r\n", ";", "ffffffff"], 60_000, 1024;
    "resources", "a file of resources", buttress_resources::fuzz::file, buttress_resources::fuzz::files, &["kind: ", "Route", "spec:", "match", "endpoints", "\n---\n", "\n  - ", ": ", "{", "}", "[", "]", "&a ", "*a", "\"", "'", "off", "5s", "50%", "#", "|\n", "!", "? "], 4_000, 2048;
    "proxy-certificate", "a client's certificate, and what is forwarded of it", buttress_gateway::fuzz::certificate, buttress_gateway::fuzz::certificates, &["\x06\x03\x55\x1d\x11", "\x06\x03\x55\x04\x03", "spiffe://", "\x0c\x01", "\x30\x00", "\r\n"], 20_000, 2048;
    "proxy-token", "a token, and the claims of one", buttress_gateway::fuzz::token, buttress_gateway::fuzz::tokens, &[".", "eyJ", "\"exp\":", "\"nbf\":", "\"aud\":[", "1e999", "\"sub\":\"\""], 30_000, 2048;
    "proxy-jwks", "the JWKS of an issuer", buttress_gateway::fuzz::jwks, buttress_gateway::fuzz::key_sets, &["\"kty\":", "\"RSA\"", "\"EC\"", "\"OKP\"", "\"crv\":", "\"alg\":", "{", "}", ",", "null"], 20_000, 2048;
    "proxy-api-keys", "a file of API keys", buttress_gateway::fuzz::api_keys, buttress_gateway::fuzz::key_files, &["\n", " ", "#", "\r\n", "%"], 40_000, 1024;
    "uplink-position", "the position of an uplink's lane as its target keeps it", buttress_uplink::fuzz::position, buttress_uplink::fuzz::positions, &["buttress-uplink/1 lineage=", " mark=", "none"], 80_000, 512;
    "saga-journal", "the definition and the journal of a saga", buttress_saga::fuzz::journal, buttress_saga::fuzz::journals, &["\"record\":\"", "started", "step-scheduled", "comp-done", "\n\n", "\"attempt\":"], 40_000, 2048;
    "policy-header", "headers about time and attempts, and durations", buttress_policy::fuzz::headers, buttress_policy::fuzz::header_seeds, &["GMT", "Nov", "ms", "99999999", ":", "Sun, "], 80_000, 64;
    #[cfg(feature = "engine")]
    "model", "a model, in JSON or ONNX", buttress_engine::fuzz::fuzz_model, seeds::models, JSON, 15_000, 16384;
    #[cfg(feature = "engine")]
    "component", "an uploaded component, which is compiled and never run", buttress_engine::fuzz::fuzz_component, seeds::components, &["\0asm\x0d\0\x01\0", "buttress:function/", "wasi:http/"], 2_000, 16384;
}

pub fn target(name: &str) -> Result<&'static Target> {
    match TARGETS.iter().find(|target| target.name == name) {
        Some(target) => Ok(target),
        None => bail!("there is no target {name:?}\n\nhint: cargo xtask fuzz --list"),
    }
}

impl Target {
    /// Everything that a run starts from: seeds, corpus, regressions.
    ///
    /// # Errors
    /// A corpus file that cannot be read.
    pub fn inputs(&self) -> Result<Vec<Vec<u8>>> {
        let mut inputs = (self.seeds)();
        for (_, input) in self.kept("corpus")?.into_iter().chain(self.kept("regressions")?) {
            inputs.push(input);
        }
        inputs.retain(|input| input.len() <= self.bytes_max);
        if inputs.is_empty() {
            bail!("target {} starts from nothing", self.name);
        }
        Ok(inputs)
    }

    pub fn file(&self, kind: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(format!("{}.txt", self.name))
    }

    /// The inputs of a file with the comment above each.
    ///
    /// # Errors
    /// A line that is not hexadecimal.
    pub fn kept(&self, kind: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let path = self.file(kind);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut comment = String::new();
        let mut inputs = Vec::new();
        for (number, line) in text.lines().enumerate() {
            match line.strip_prefix('#') {
                Some(said) => comment = said.trim().to_owned(),
                None => {
                    let input = from_hex(line).with_context(|| format!("{}:{}", path.display(), number + 1))?;
                    inputs.push((std::mem::take(&mut comment), input));
                }
            }
        }
        Ok(inputs)
    }
}

pub fn to_hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).expect("a nibble is a digit");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// # Errors
/// Text that is not pairs of hexadecimal digits.
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.trim().chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    match digits {
        Some(digits) if digits.len() % 2 == 0 => Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()),
        _ => bail!("not an even number of hexadecimal digits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_target_starts_from_something() {
        let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TARGETS.len());
        for target in TARGETS {
            assert!(!target.inputs().unwrap().is_empty(), "{}", target.name);
        }
    }

    #[test]
    fn hexadecimal_goes_there_and_back() {
        assert_eq!(from_hex(&to_hex(b"\0\xff1")).unwrap(), b"\0\xff1");
        assert!(from_hex("0").is_err() && from_hex("0g").is_err());
    }

    /// What failed once does not fail again.
    #[test]
    fn regressions() {
        for target in TARGETS.iter().filter(|target| target.name != "component") {
            for (said, input) in target.kept("regressions").unwrap() {
                assert!(!said.is_empty(), "a regression of {} says what it was", target.name);
                (target.run)(&input);
            }
        }
    }
}
