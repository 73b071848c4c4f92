//! Components and models as chunked keys: `/buttress/blobs/<digest>/<n>`.
//!
//! A blob is immutable because its name is its digest. A chunk is put only where there is none, so that a retried or
//! concurrent upload writes each chunk once; what is read back is held against the digest, so that neither a torn upload
//! nor a foreign write can ever be executed. Chunks go one per entry: a component of 13 MB must not stand before the
//! readings of ten thousand machines as one entry of 13 MB.

use buttress_core::{
    Code, Consistency, Entry, Error, Guard, KeyRange, Ledger, Refusal, Revision, SubmitError, entry::Put,
};
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::resource::{BLOBS_PREFIX, COMPONENT_BYTES_MAX};

/// A third of the largest value, and 16 of them fill an entry.
pub const CHUNK_BYTES: usize = 512 * 1024;
/// Chunks per read: 4 MiB of memory beyond the blob itself.
const CHUNKS_PER_READ: usize = 8;

/// `sha256:` and the hex digest.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(7 + 64);
    text.push_str("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push(char::from_digit((byte >> 4).into(), 16).expect("a nibble is a digit"));
        text.push(char::from_digit((byte & 15).into(), 16).expect("a nibble is a digit"));
    }
    text
}

fn chunk_key(digest: &str, n: usize) -> Bytes {
    format!("{BLOBS_PREFIX}{digest}/{n:05}").into()
}

/// Stores `bytes` under its digest, and answers it. Doing it again writes nothing.
///
/// # Errors
/// `TOO_LARGE`, `BAD_REQUEST` for no bytes at all, and what the ledger answers.
pub async fn put(ledger: &dyn Ledger, bytes: &Bytes) -> Result<String, Error> {
    if bytes.is_empty() {
        return Err(Error::new(Code::BAD_REQUEST, "the body is empty").hint("send the file's bytes as the body"));
    }
    if bytes.len() > COMPONENT_BYTES_MAX {
        return Err(Error::new(Code::TOO_LARGE, format!("{} bytes are more than a blob may have", bytes.len()))
            .hint(format!("the limit is {COMPONENT_BYTES_MAX} bytes")));
    }
    let digest = digest(bytes);
    for n in 0..bytes.len().div_ceil(CHUNK_BYTES) {
        let chunk = bytes.slice(n * CHUNK_BYTES..bytes.len().min((n + 1) * CHUNK_BYTES));
        let key = chunk_key(&digest, n);
        // Reading before writing keeps a re-deploy of known bytes from shipping them through the log to be refused.
        let known = ledger.read(KeyRange::key(key.clone()), 1, Consistency::Serializable).await?;
        if let Some(kv) = known.kvs.first() {
            if kv.value != chunk {
                return Err(damaged(&digest));
            }
            continue;
        }
        let entry = Entry {
            guards: vec![Guard::ModRevision { key: key.clone(), revision: Revision(0) }],
            puts: vec![Put { key, value: Some(chunk), lease: None }],
            ..Entry::default()
        };
        match ledger.submit(entry).await {
            Ok(_) | Err(SubmitError::Refused(Refusal::Guard { .. })) => {}
            Err(error) => return Err(error.into_error()),
        }
    }
    Ok(digest)
}

/// Reads a blob and holds it against its digest.
///
/// # Errors
/// `NOT_FOUND`, `CORRUPT`, and what the ledger answers.
pub async fn get(ledger: &dyn Ledger, wanted: &str, consistency: Consistency) -> Result<Bytes, Error> {
    let range = KeyRange::prefix(format!("{BLOBS_PREFIX}{wanted}/"));
    let mut from = range.from.clone();
    let mut bytes = BytesMut::new();
    loop {
        let range = KeyRange { from: from.clone(), to: range.to.clone() };
        let chunks = ledger.read(range, CHUNKS_PER_READ, consistency).await?;
        for kv in &chunks.kvs {
            bytes.extend_from_slice(&kv.value);
        }
        if bytes.len() > COMPONENT_BYTES_MAX {
            return Err(damaged(wanted));
        }
        match chunks.kvs.last() {
            Some(last) if chunks.more => from = [&last.key[..], &[0]].concat().into(),
            _ => break,
        }
    }
    if bytes.is_empty() {
        return Err(Error::new(Code::NOT_FOUND, format!("there is no blob '{wanted}'"))
            .hint("upload it first with PUT /v1/blobs"));
    }
    let bytes = bytes.freeze();
    if digest(&bytes) != wanted {
        return Err(damaged(wanted));
    }
    Ok(bytes)
}

fn damaged(digest: &str) -> Error {
    Error::new(Code::CORRUPT, format!("the stored bytes of '{digest}' do not have this digest"))
        .hint("upload the file again; an upload that was cut off is completed by it")
}
